"""
Limits with a promise behind them: fitted so that an error rate stays below its bound.

    fit_gate     labelled faces with answers -> GateFit: a policy, its figures and its price

The threshold is found by learn-then-test (Angelopoulos, Bates, Candès, Jordan and Lei, "Learn then
Test", 2021). Each threshold of a fixed grid, from the strictest down, stands for the hypothesis
"some cell's false-acceptance rate is over the bound", tested by an exact binomial test
(Clopper-Pearson) at level 1 - confidence; the last one before the first that is not rejected is
taken. Testing in a fixed order needs no correction for the number of thresholds. The cells are
bands of those to be kept out, overall and of each group; the hypothesis "some cell is over" is a
union, so it is rejected when each cell's own test rejects it, each at the full level
(intersection-union test, Berger 1982). docs/explanation/gate-statistics.md has the argument.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from agelens import __version__
from agelens.errors import ArgumentError, DataError
from agelens.evaluation.scored import Floats, ScoredFaces
from agelens.gate.measuring import (
    ALL,
    LEFT_OUT,
    OLDEST,
    Band,
    GateFaces,
    Mask,
    TradeOff,
    band_name,
    error_rate,
    errors_allowed,
    faces_needed,
    gate_faces,
    groups,
    hardest_band,
    trade_off,
    upper_bound,
    whole_sides,
    within,
)
from agelens.gate.policy import (
    Admit,
    FitPart,
    FittedData,
    FittedFor,
    GatePolicy,
    ModelPart,
    Promise,
    Rule,
    kept_out_words,
    reaches_the_age,
    rule_scores,
)

FIT_SCHEMA: Final = "agelens.gate-fit/1"
LET_IN_YEARS: Final = 7
"""Width of the default band of those just on the admitted side: 18 to 24, or 6 to 12."""
LEFT_OUT_WORDS: Final[Mapping[str, str]] = dict(
    zip(
        LEFT_OUT,
        (
            "without an age label",
            "whose label is a range across the required age",
            "whose face the detector did not find",
            "too poor for an estimate",
        ),
        strict=True,
    )
)
"""The reasons of ``LEFT_OUT`` in words that follow a number."""


def left_out_words(counts: Mapping[str, int]) -> list[str]:
    """How many faces were left out for which reason: "3 too poor for an estimate"."""
    return [
        f"{counts[name]:,} {words}" for name, words in LEFT_OUT_WORDS.items() if counts.get(name)
    ]


@dataclass(frozen=True)
class GateFit:
    """A fitted policy and what it costs.

    Attributes:
        policy: Complete, with ``fit``.
        price: The trade-off at other limits, on the faces of the fit.
        counts: Faces of the fit: under age, of age, and left out by reason.
        notes: What the reader has to know, in sentences.
    """

    policy: GatePolicy
    price: tuple[TradeOff, ...]
    counts: Mapping[str, int]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fit as JSON values."""
        return {
            "schema": FIT_SCHEMA,
            "policy": {"sha256": self.policy.sha256, **self.policy.to_table()},
            "counts": dict(self.counts),
            "notes": list(self.notes),
            "price": [
                {
                    "limit": point.limit,
                    "false_accept": _without_nan(point.false_accept),
                    "not_accepted": _without_nan(point.not_accepted),
                }
                for point in self.price
            ],
        }


@dataclass(frozen=True, eq=False)
class _Cell:
    """One kind of people that is promised on.

    Attributes:
        ages: First and last true age.
        group: "all" or "COLUMN=VALUE".
        scores: (n,) the worst score of each independent face, rising.
        covered: First and last age in the labels of these faces; None without faces.
    """

    ages: Band
    group: str
    scores: Floats
    covered: Band | None

    @property
    def title(self) -> str:
        """As messages name it."""
        return _title(self.ages, self.group)


def _title(ages: Band, group: str) -> str:
    people = f"aged {band_name(ages)}"
    return people if group == ALL else f"{people}, {group}"


def fit_gate(
    faces: ScoredFaces,
    required_age: int = 18,
    max_false_accept: float = 0.05,
    confidence: float = 0.95,
    by: Sequence[str] = (),
    rule: Rule = "probability",
    *,
    minors: Band | None = None,
    adults: Band | None = None,
    max_false_refuse: float | None = 0.05,
    base: GatePolicy | None = None,
    name: str | None = None,
    admit: Admit = "over",
) -> GateFit:
    """The laxest limit whose false-acceptance rate is below the bound, with the stated confidence.

    It is promised for all who are to be kept out, for the band of them next to the required age,
    and for every group of both: the whole promise fails for at most ``1 - confidence`` of such data
    sets. A gate that lets no toddler in says little, so the adjacent band decides nearly always.

    Args:
        faces: Faces that the model was neither trained nor calibrated on, with its answers, like
            those that the gate will see.
        required_age: Completed years at which the two sides part; with ``base`` that policy's is
            taken.
        max_false_accept: Bound of the false-acceptance rate, 0..1.
        confidence: 0..1.
        by: Columns whose groups are each held to the bound; see ``measuring.groups``.
        rule: "probability" fits ``threshold``, "challenge" the buffer ``challenge_age``; with
            ``base`` that policy's is taken.
        minors: Band under the required age that is promised on apart: those to be kept out, or to
            be let in, who are next to it; None takes the five years under it to keep them out, the
            seven to let them in. (0, required_age - 1) promises on all of them only, which is far
            easier.
        adults: The same from the required age on; None takes the seven years from it to let them
            in, the five to keep them out.
        max_false_refuse: Bound of the rate at which those to be let in are refused outright: it
            fits ``refuse_below`` (or ``refuse_under_age``). None refuses nobody outright.
        base: Policy whose other fields are kept; None takes the defaults. What its name and summary
            say of its buffer age is rewritten for the fitted one.
        name: Of the policy; None keeps that of ``base``, or makes one.
        admit: Who is let in; with ``base`` that policy's is taken.

    Raises:
        ArgumentError: A number is out of range, a column is missing, or ``base`` says otherwise.
        DataError: The faces are too few for the promise, or no limit keeps it; with the numbers.
        MissingExtra: scipy is not installed.
    """
    if base is None:
        base = GatePolicy.from_table(
            {
                "name": f"{admit}-{required_age}",
                "required_age": required_age,
                "admit": admit,
                "rule": rule,
            }
        )
    required_age, rule, admit = base.required_age, base.rule, base.admit
    minors, adults = checked_promise(
        required_age, max_false_accept, confidence, max_false_refuse, minors, adults, admit
    )
    adjacent, just_in = (minors, adults) if admit == "over" else (adults, minors)
    all_out, all_in = whole_sides(required_age, admit)
    who = gate_faces(faces, required_age)
    out, right = who.sides(admit)
    parts = groups(faces, by)
    scores = rule_scores(faces.age, rule, required_age, admit)
    kept_out = _cells(faces, out, scores, parts, [all_out, adjacent], worst=max)
    let_in = _cells(faces, right, scores, parts, [all_in, just_in], worst=min)

    _require_enough(kept_out, max_false_accept, confidence, who, admit)
    _require_next_to_the_age(
        faces, who, parts, required_age, faces_needed(max_false_accept, confidence), admit
    )
    limit = _strictest(
        kept_out, limits(rule, required_age), max_false_accept, confidence, base.admitted
    )
    _require_someone(let_in, limit, rule, base.admitted)
    refuse, notes = _refusal(
        let_in, limits(rule, 0), limit, max_false_refuse, confidence, base.admitted
    )

    promises = _promises(kept_out, limit, confidence, keeps_out=True)
    if refuse > 0:
        promises += _promises(let_in, refuse, confidence, keeps_out=False)
    fit = FitPart(
        max_false_accept=max_false_accept,
        confidence=confidence,
        max_false_refuse=max_false_refuse if refuse > 0 else None,
        minor_band=minors,
        adult_band=adults,
        by=tuple(by),
        date=datetime.now(UTC).date(),
        agelens=__version__,
        data=tuple(FittedData(**asdict(file)) for file in faces.provenance.data),
        left_out=dict(who.left_out),
        promises=promises,
        step_up_rate=_share(faces, right, (scores < limit) & (scores >= refuse)),
        refusal_rate=_share(faces, right, scores < refuse),
    )
    policy = _policy(faces, base, name, limit, refuse, fit)
    return GateFit(
        policy=policy,
        price=trade_off(
            faces, rule, required_age, dict.fromkeys([all_out, adjacent]), limit, admit
        ),
        counts={
            "under_age": int(who.minors.sum()),
            "of_age": int(who.adults.sum()),
            **who.left_out,
        },
        notes=(*_notes(base, policy, fit, let_in), *notes, _left_out_note(who)),
    )


def checked_promise(
    required_age: int,
    max_false_accept: float,
    confidence: float,
    max_false_refuse: float | None,
    minors: Band | None,
    adults: Band | None,
    admit: Admit = "over",
    *,
    names: Mapping[str, str] | None = None,
) -> tuple[Band, Band]:
    """Refuse a question that ``fit_gate`` cannot answer, before any face is looked at.

    Args:
        required_age: As of ``fit_gate``, like those that follow.
        max_false_accept: 0..1.
        confidence: 0..1.
        max_false_refuse: 0..1, or None.
        minors: Band under the required age; None takes the default.
        adults: Band from the required age on; None takes the default.
        admit: Who is let in.
        names: What messages call these arguments, by name; as a command's options are typed.

    Returns:
        The bands ``minors`` and ``adults``, given or by default.

    Raises:
        ArgumentError: A share is not between 0 and 1, or a band does not lie on its side of the
            required age.
    """
    called = {"minors": "the band minors", "adults": "the band adults", **(names or {})}
    for name, value in (
        ("max_false_accept", max_false_accept),
        ("confidence", confidence),
        ("max_false_refuse", max_false_refuse),
    ):
        if value is not None and not 0 < value < 1:
            hint = f"; {value:g} % is {value / 100:g}" if 1 <= value < 100 else ""
            raise ArgumentError(
                f"{called.get(name, name)} must be between 0 and 1, got {value:g}{hint}"
            )
    keeps, lets = hardest_band(required_age, admit), _just_let_in(required_age, admit)
    under, over = (keeps, lets) if admit == "over" else (lets, keeps)
    return (
        _checked_band(minors or under, 0, required_age - 1, called["minors"]),
        _checked_band(adults or over, required_age, OLDEST, called["adults"]),
    )


def limits(rule: Rule, required_age: int) -> Floats:
    """The fixed grid of limits, rising: chances in steps of 0.0001, or tenths of a year from the
    required age.
    """
    if rule == "probability":
        return np.round(np.arange(1, 10_000) / 10_000, 4)
    return np.round(np.arange(10 * required_age, 10 * OLDEST + 1) / 10, 1)


def lowest_limit(scores: Floats, allowed: int, grid: Floats) -> float:
    """The laxest limit of a grid that at most ``allowed`` scores reach; NaN when none is.

    Args:
        scores: (n,) rising.
        allowed: Errors that the test allows, 0 or more.
        grid: Rising limits.
    """
    if allowed >= len(scores):
        return float(grid[0])
    # The highest score that must not be accepted; the limit has to lie above it.
    place = int(np.searchsorted(grid, scores[len(scores) - 1 - allowed], side="right"))
    return float(grid[place]) if place < len(grid) else math.nan


def highest_refusal(scores: Floats, allowed: int, grid: Floats) -> float:
    """The highest limit of a grid that at most ``allowed`` scores lie under; 0 when none is."""
    if allowed >= len(scores):
        return float(grid[-1])
    place = int(np.searchsorted(grid, scores[allowed], side="right")) - 1
    return float(grid[place]) if place >= 0 else 0.0


# --- the steps ------------------------------------------------------------------------------------


def _just_let_in(required_age: int, admit: Admit) -> Band:
    """The years next to the required age of those to be let in."""
    if admit == "over":
        return (required_age, min(required_age + LET_IN_YEARS - 1, OLDEST))
    return (max(0, required_age - LET_IN_YEARS), required_age - 1)


def _checked_band(band: Band, lowest: int, highest: int, name: str) -> Band:
    low, high = band
    if not lowest <= low <= high <= highest:
        raise ArgumentError(
            f"{name} must rise and stay within {lowest} to {highest}, got {low} to {high}"
        )
    return (low, high)


def _cells(
    faces: ScoredFaces,
    people: Mask,
    scores: Floats,
    parts: Mapping[str, Mask],
    bands: Iterable[Band],
    *,
    worst: Callable[[float, float], float],
) -> list[_Cell]:
    cells = []
    for band in dict.fromkeys(bands):
        for group, mask in parts.items():
            rows = people & mask & within(faces, band)
            by_cluster: dict[int, float] = {}
            for cluster, score in zip(
                faces.clusters[rows].tolist(), scores[rows].tolist(), strict=True
            ):
                by_cluster[cluster] = worst(score, by_cluster.get(cluster, score))
            covered = (
                (int(faces.age_min[rows].min()), min(OLDEST, int(faces.age_max[rows].max())))
                if rows.any()
                else None
            )
            sorted_scores = np.sort(np.array([*by_cluster.values()], np.float64))
            cells.append(_Cell(band, group, sorted_scores, covered))
    return cells


def _require_enough(
    cells: Sequence[_Cell], bound: float, confidence: float, who: GateFaces, admit: Admit
) -> None:
    needed = faces_needed(bound, confidence)
    short = [cell for cell in cells if len(cell.scores) < needed]
    if not short:
        return
    left_out = ", ".join(left_out_words(who.left_out))
    raise DataError(
        f"too few faces to promise a false-acceptance rate below {bound:g} with confidence "
        f"{confidence:g}: each kind of people needs {needed} independent faces even if none of "
        "them is accepted, and there are\n"
        + "\n".join(f"  {len(cell.scores):>5,}  {cell.title}" for cell in short)
        + (f"\nNot counted: {left_out}." if left_out else "")
        + "\nAdd faces of these ages, or promise less: a higher --max-false-accept, a lower "
        f"--confidence, a wider --{'minor' if admit == 'over' else 'adult'}-band, fewer groups in "
        "--by"
    )


def _require_next_to_the_age(
    faces: ScoredFaces,
    who: GateFaces,
    parts: Mapping[str, Mask],
    required_age: int,
    needed: int,
    admit: Admit,
) -> None:
    """Refuse when labels across the required age took away those next to it.

    What is left would be those who are easy to tell, promised on in the name of all.

    Raises:
        DataError: A group has such labels, and fewer faces than ``needed`` in the five years next
            to the required age.
    """
    band = hardest_band(required_age, admit)
    out, _ = who.sides(admit)
    # A range that ends at the required age holds those next to it too.
    up_to_it = (
        faces.age_max == required_age - 1 if admit == "over" else faces.age_min == required_age
    )
    next_to_it = out & (within(faces, band) | up_to_it)
    lines = []
    for group, mask in parts.items():
        near = len(np.unique(faces.clusters[next_to_it & mask]))
        lost = int((who.straddling & mask).sum())
        if lost and near < needed:
            lines.append(f"  {near:>5,}  {_title(band, group)}, and {lost:,} left out")
    if lines:
        raise DataError(
            "the labels do not tell those next to the required age: a label that is a range across "
            f"{required_age} cannot be put on a side and was left out, and of the ages next to it, "
            f"which are the hardest to tell, {needed} independent faces are needed, and there are\n"
            + "\n".join(lines)
            + "\nA limit fitted on the rest would be promised of all "
            f"{kept_out_words(required_age, admit)}, and hold only for those who are easy to tell. "
            "Add faces whose age is known to the year"
        )


def _strictest(
    cells: Sequence[_Cell], grid: Floats, bound: float, confidence: float, admitted: str
) -> float:
    found = []
    for cell in cells:
        allowed = errors_allowed(len(cell.scores), bound, confidence)
        limit = lowest_limit(cell.scores, allowed, grid)
        if math.isnan(limit):
            reached = int((cell.scores >= grid[-1]).sum())
            raise DataError(
                f"no limit keeps the bound: of {len(cell.scores):,} faces {cell.title}, "
                f"{reached:,} reach even the strictest limit ({grid[-1]:g}), and only {allowed:,} "
                f"may; this model cannot tell them from those {admitted}. Promise less (a higher "
                "--max-false-accept), or take another model"
            )
        found.append(limit)
    return max(found)


def _require_someone(cells: Sequence[_Cell], limit: float, rule: Rule, admitted: str) -> None:
    everybody = cells[0]
    if len(everybody.scores) == 0:
        raise DataError(
            f"there are no faces {everybody.title}, so the price in refusals cannot be shown; add "
            f"faces of those {admitted}"
        )
    if everybody.scores[-1] < limit:
        what = f"P({admitted})" if rule == "probability" else "expected age"
        raise DataError(
            f"the bound needs a limit of {limit:g}, which none of the {len(everybody.scores):,} "
            f"faces {everybody.title} reaches (their highest {what} is "
            f"{everybody.scores[-1]:.4f}); this gate would accept nobody. Promise less (a higher "
            "--max-false-accept), or take another model"
        )


def _refusal(
    cells: Sequence[_Cell],
    grid: Floats,
    limit: float,
    bound: float | None,
    confidence: float,
    admitted: str,
) -> tuple[float, list[str]]:
    """The limit under which is refused outright, and why there is none."""
    if bound is None:
        return 0.0, [
            "Nobody is refused for the estimate: those who are not accepted are asked to step up."
        ]
    short = [c for c in cells if errors_allowed(len(c.scores), bound, confidence) < 0]
    if short:
        needed = faces_needed(bound, confidence)
        named = "; ".join(f"{c.title}: {len(c.scores)}" for c in short)
        return 0.0, [
            f"Nobody is refused for the estimate: promising it for at most {bound:g} of those "
            f"{admitted} needs {needed} faces of each kind, and there are fewer ({named})."
        ]
    highest = min(
        highest_refusal(c.scores, errors_allowed(len(c.scores), bound, confidence), grid)
        for c in cells
    )
    return min(highest, limit), []


def _promises(
    cells: Sequence[_Cell], limit: float, confidence: float, *, keeps_out: bool
) -> tuple[Promise, ...]:
    found = []
    for cell in cells:
        wrong = cell.scores >= limit if keeps_out else cell.scores < limit
        errors = int(wrong.sum())
        found.append(
            Promise(
                error="false_acceptance" if keeps_out else "false_refusal",
                ages=cell.ages,
                covered=cell.covered,
                group=cell.group,
                faces=len(cell.scores),
                errors=errors,
                upper=round(float(upper_bound(errors, len(cell.scores), confidence)), 6),
            )
        )
    return tuple(found)


def _share(faces: ScoredFaces, people: Mask, is_so: Mask) -> float:
    return round(error_rate(is_so, people, faces.clusters).value, 6)


def _policy(
    faces: ScoredFaces,
    base: GatePolicy,
    name: str | None,
    limit: float,
    refuse: float,
    fit: FitPart,
) -> GatePolicy:
    source = faces.provenance
    accept, under = (
        ("threshold", "refuse_below")
        if base.rule == "probability"
        else ("challenge_age", "refuse_under_age")
    )
    model = ModelPart(
        name=source.model,
        sha256=source.model_sha256,
        card_sha256=source.card_sha256,
        detector=str(source.options.get("detector", "default")),
        flip=bool(source.options.get("flip", False)),
    )
    fitted = FittedFor(
        rule=base.rule,
        accept_from=limit,
        refuse_under=refuse,
        correlation=base.frames.correlation,
        model=model,
    )
    fields: dict[str, Any] = {
        "name": _retold(base.name, base, limit) if name is None else name,
        "summary": _retold(base.summary, base, limit),
        accept: limit,
        under: refuse,
        "fit": fit.model_copy(update={"fitted": fitted}),
        "model": model,
    }
    return base.changed(**fields)


def _retold(text: str, base: GatePolicy, limit: float) -> str:
    """A name or summary with the fitted buffer age in place of that of the base."""
    before = base.challenge_age
    # A buffer of the required age itself cannot be told from the required age in a text.
    if before is None or before in (limit, base.required_age):
        return text
    return re.sub(rf"(?<![\d.]){re.escape(f'{before:g}')}(?!\.?\d)", f"{limit:g}", text)


def _notes(
    base: GatePolicy, policy: GatePolicy, fit: FitPart, let_in: Sequence[_Cell]
) -> list[str]:
    accepted = (let_in[0].scores >= policy.require_limit()).mean()
    nearest = max(
        (one for one in fit.promises if one.error == "false_acceptance"),
        key=lambda one: one.upper,
    )
    notes = [
        f"Nearest to the bound: {_title(nearest.ages, nearest.group)}, {nearest.errors:,} of "
        f"{nearest.faces:,} accepted, at most {100 * nearest.upper:.1f} % with confidence "
        f"{fit.confidence:g}.",
        f"Price: {100 * (1 - accepted):.0f} % of those {policy.admitted} in these data are not "
        "accepted at once.",
    ]
    whole = whole_sides(policy.required_age, policy.admit)[0]
    if whole in (fit.minor_band, fit.adult_band):
        everybody = kept_out_words(policy.required_age, policy.admit)
        rest, just = (
            ("small children", "under") if policy.admit == "over" else ("grown-ups", "from")
        )
        notes.append(
            f"The promise is on all {everybody} together, {rest} included; it says little of "
            f"those just {just} {policy.required_age}. Look at the rates by age."
        )
    if base.challenge_age not in (None, policy.challenge_age):
        notes.append(
            f"The buffer age of {base.name} is {base.challenge_age:g}, the fitted one "
            f"{policy.challenge_age:g}."
        )
    notes += [
        f"The promise on those aged {band_name(one.ages)} stands on faces aged "
        f"{band_name(one.covered)} only."
        for one in fit.promises
        if one.group == ALL
        and one.covered is not None
        and not reaches_the_age(one.ages, one.covered, policy.required_age)
    ]
    if not fit.by:
        notes.append("No group was held to the bound by itself; --by names columns of groups.")
    return notes


def _left_out_note(who: GateFaces) -> str:
    return f"Not counted: {', '.join(left_out_words(who.left_out)) or 'none'}."


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {k: None if math.isnan(v) else v for k, v in values.items()}
