"""
What an age check with this model would get wrong: minors let in, adults turned away.

    RULES          three simple rules: 18 or over, 21 or over, challenge 25
    gate_errors    their errors by exact age, age band and group, with exact intervals

Only exact ages count. A range such as 10 to 19 does not say on which side of 18 a face is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from agelens.errors import MissingExtra
from agelens.evaluation.bootstrap import LEVEL
from agelens.evaluation.scored import UNKNOWN, ScoredFaces
from agelens.evaluation.values import Mask, probability_over

ErrorKind = Literal["false_acceptance", "false_refusal"]
ERROR_KINDS: Final[tuple[ErrorKind, ...]] = ("false_acceptance", "false_refusal")

EVERYBODY: Final = "all"
Ages = tuple[int, int]

_YEARS_AROUND: Final = 12
_OLDEST: Final = 122
_MINOR_BANDS: Final[tuple[Ages, ...]] = ((0, 12), (13, 17), (18, 20))
_ADULT_BANDS: Final[tuple[Ages, ...]] = (
    (18, 20),
    (21, 24),
    (25, 29),
    (30, 39),
    (40, 59),
    (60, _OLDEST),
)


@dataclass(frozen=True)
class GateRule:
    """A rule that lets a face in or not.

    Attributes:
        name: As policies and results call it.
        title: In words.
        legal_age: Completed years from which a face should be let in.
        accepts: (N,) whether each face is let in; False where there is no estimate.
    """

    name: str
    title: str
    legal_age: int
    accepts: Callable[[ScoredFaces], Mask]


def _likely_over(age: int) -> Callable[[ScoredFaces], Mask]:
    def accepts(faces: ScoredFaces) -> Mask:
        return np.asarray(np.nan_to_num(probability_over(faces, age)) > 0.5)

    return accepts


def _looks(age: int) -> Callable[[ScoredFaces], Mask]:
    def accepts(faces: ScoredFaces) -> Mask:
        return np.asarray(np.nan_to_num(faces.mean_age) >= age)

    return accepts


RULES: Final[Mapping[str, GateRule]] = {
    rule.name: rule
    for rule in (
        GateRule("over_18", "P(18 or over) above one half", 18, _likely_over(18)),
        GateRule("over_21", "P(21 or over) above one half", 21, _likely_over(21)),
        GateRule("challenge_25", "Expected age of 25 or more, for 18 and over", 18, _looks(25)),
    )
}
"""By name."""


@dataclass(frozen=True)
class GateError:
    """How often one rule is wrong about one cell.

    Attributes:
        rule: Name of the rule.
        kind: "false_acceptance" of faces under the rule's age, "false_refusal" of the others.
        ages: First and last true age of the cell, both included.
        column: Audit column or "gender", or "all".
        value: Its value, or "all".
        count: Independent faces (clusters), each counted once.
        wrong: How many of them are decided wrongly at least once.
        low: Lower end of the 95 % Clopper-Pearson interval of the rate.
        high: Upper end.
    """

    rule: str
    kind: ErrorKind
    ages: tuple[int, int]
    column: str
    value: str
    count: int
    wrong: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Share of the faces that are decided wrongly."""
        return self.wrong / self.count

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "rule": self.rule,
            "kind": self.kind,
            "ages": list(self.ages),
            "column": self.column,
            "value": self.value,
            "count": self.count,
            "wrong": self.wrong,
            "rate": self.rate,
            "low": self.low,
            "high": self.high,
        }


def exact_interval(wrong: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Two-sided interval of a rate that holds at least at its level (Clopper and Pearson 1934).

    Args:
        wrong: Errors seen.
        count: Independent faces, 1 or more.
        level: Of the interval.
    """
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise MissingExtra("eval", "exact intervals of error rates") from error
    tail = (1 - level) / 2
    low = 0.0 if wrong == 0 else float(betaincinv(wrong, count - wrong + 1, tail))
    high = 1.0 if wrong == count else float(betaincinv(wrong + 1, count - wrong, 1 - tail))
    return low, high


def gate_errors(
    faces: ScoredFaces,
    columns: Mapping[str, NDArray[np.object_]],
    *,
    rules: Sequence[str] | None = None,
) -> tuple[GateError, ...]:
    """Errors of the rules by exact age, by age band, and by the values of each column.

    All faces with an estimate count, also those on which the analyzer would abstain.

    Args:
        faces: Labelled faces with answers; those whose label is a range are left out.
        columns: (N,) labels by name, None where a face has none; see ``groups.dimensions``.
        rules: Names of rules; None takes all.
    """
    found: list[GateError] = []
    for name in RULES if rules is None else rules:
        found += _errors_of(RULES[name], faces, columns)
    return tuple(found)


def _errors_of(
    rule: GateRule, faces: ScoredFaces, columns: Mapping[str, NDArray[np.object_]]
) -> Iterator[GateError]:
    legal = rule.legal_age
    for kind in ERROR_KINDS:
        if kind == "false_acceptance":
            years = range(max(0, legal - _YEARS_AROUND), legal)
            bands = [(0, legal - 1), *_within(_MINOR_BANDS, 0, legal - 1)]
        else:
            years = range(legal, legal + _YEARS_AROUND + 1)
            bands = [(legal, _OLDEST), *_within(_ADULT_BANDS, legal, _OLDEST)]
        for ages in (*bands, *((year, year) for year in years)):
            yield from errors_within(rule.name, kind, ages, faces)
        for column, labels in columns.items():
            for ages in bands:
                yield from errors_within(rule.name, kind, ages, faces, column, labels)


def _within(bands: Sequence[Ages], low: int, high: int) -> list[Ages]:
    cut = [(max(first, low), min(last, high)) for first, last in bands]
    return [(first, last) for first, last in cut if first <= last]


def errors_within(
    rule: str,
    kind: ErrorKind,
    ages: Ages,
    faces: ScoredFaces,
    column: str = EVERYBODY,
    labels: NDArray[np.object_] | None = None,
) -> list[GateError]:
    """How often a rule is wrong about faces of these true ages: all, or by the values of a column.

    Faces of one subject, and copies of one picture, count once, and as wrong when any of them is.

    Args:
        rule: Name of the rule.
        kind: Which error.
        ages: First and last true age, both included.
        faces: Labelled faces with answers; those whose label is a range are left out.
        column: Name of the column that ``labels`` are of.
        labels: (N,) labels, None where a face has none; None takes all faces together.

    Returns:
        One for each value with any face, in the order of the values.
    """
    accepted = RULES[rule].accepts(faces)
    wrong = accepted if kind == "false_acceptance" else ~accepted
    rows = faces.exact & (faces.age_min >= ages[0]) & (faces.age_min <= ages[1])
    named = np.full(len(faces), EVERYBODY, object) if labels is None else labels
    found = []
    for value in sorted({str(v) for v in named[rows].tolist() if v is not None}):
        own = rows & np.array([v is not None and str(v) == value for v in named], bool)
        _, place = np.unique(faces.clusters[own], return_inverse=True)
        once_wrong = np.bincount(place, weights=wrong[own]) > 0
        count, errors = len(once_wrong), int(once_wrong.sum())
        ends = exact_interval(errors, count)
        found.append(GateError(rule, kind, ages, column, value, count, errors, *ends))
    return found


def left_out(faces: ScoredFaces) -> tuple[str, ...]:
    """What gate errors do not cover on these faces, in sentences."""
    labelled = faces.age_min != UNKNOWN
    ranges = labelled & (faces.age_min < faces.age_max)
    straddling = ranges & (faces.age_min < 18) & (faces.age_max >= 18)
    notes = []
    if ranges.any():
        notes.append(
            f"gate errors are over exact ages only: {int(ranges.sum()):,} faces with a range of "
            f"ages are left out, {int(straddling.sum()):,} of them with ranges on both sides of 18 "
            "(as 10-19)"
        )
    if labelled.any() and not faces.exact.any():
        notes.append("there are no gate errors: no label in 'age_min' and 'age_max' is exact")
    return tuple(notes)
