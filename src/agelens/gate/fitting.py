"""
Limits with a promise behind them: fitted so that an error rate stays below its bound.

    fit_gate     labelled faces with answers -> GateFit: a policy, its figures and its price

The threshold is found by learn-then-test (Angelopoulos, Bates, Candès, Jordan and Lei, "Learn then
Test", 2021). Each threshold of a fixed grid, from the strictest down, stands for the hypothesis
"some cell's false-acceptance rate is over the bound", tested by an exact binomial test
(Clopper-Pearson) at level 1 - confidence; the last one before the first that is not rejected is
taken. Testing in a fixed order needs no correction for the number of thresholds. The cells are
bands of under-age faces, overall and of each group; the hypothesis "some cell is over" is a union,
so it is rejected when each cell's own test rejects it, each at the full level (intersection-union
test, Berger 1982). docs/explanation/gate-statistics.md has the argument.
"""

from __future__ import annotations

import math
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
    minor_band,
    trade_off,
    upper_bound,
    within,
)
from agelens.gate.policy import (
    FitPart,
    FittedData,
    GatePolicy,
    ModelPart,
    Promise,
    Rule,
    rule_scores,
)

FIT_SCHEMA: Final = "agelens.gate-fit/1"
ADULT_YEARS: Final = 7
"""Width of the default band of those just of age: 18 to 24."""
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
    """

    ages: Band
    group: str
    scores: Floats

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
) -> GateFit:
    """The laxest limit whose false-acceptance rate is below the bound, with the stated confidence.

    It is promised for all who are under age, for the adjacent band of them, and for every group of
    both: the whole promise fails for at most ``1 - confidence`` of such data sets. A gate that lets
    no toddler in says little, so the adjacent band decides nearly always.

    Args:
        faces: Faces that the model was neither trained nor calibrated on, with its answers, like
            those that the gate will see.
        required_age: Completed years that admit; with ``base`` that policy's is taken.
        max_false_accept: Bound of the false-acceptance rate, 0..1.
        confidence: 0..1.
        by: Columns whose groups are each held to the bound; see ``measuring.groups``.
        rule: "probability" fits ``threshold``, "challenge" the buffer ``challenge_age``; with
            ``base`` that policy's is taken.
        minors: The adjacent band; None takes the five years under the required age. (0,
            required_age - 1) promises on all under age only, which is far easier.
        adults: Band that ``max_false_refuse`` is promised on, besides all of age; None takes the
            required age and the six years after.
        max_false_refuse: Bound of the rate at which those of age are refused outright: it fits
            ``refuse_below`` (or ``refuse_under_age``). None refuses nobody outright.
        base: Policy whose other fields are kept; None takes the defaults.
        name: Of the policy; None keeps that of ``base``, or makes one.

    Raises:
        ArgumentError: A number is out of range, a column is missing, or ``base`` says otherwise.
        DataError: The faces are too few for the promise, or no limit keeps it; with the numbers.
        MissingExtra: scipy is not installed.
    """
    if base is not None:
        required_age, rule = base.required_age, base.rule
    _check_shares(max_false_accept, confidence, max_false_refuse)
    adjacent = _checked_band(minors or minor_band(required_age), 0, required_age - 1, "minors")
    young = (required_age, min(required_age + ADULT_YEARS - 1, OLDEST))
    just_over = _checked_band(adults or young, required_age, OLDEST, "adults")
    who = gate_faces(faces, required_age)
    parts = groups(faces, by)
    scores = rule_scores(faces.age, rule, required_age)
    under_age, of_age = (0, required_age - 1), (required_age, OLDEST)
    kept_out = _cells(faces, who.minors, scores, parts, [under_age, adjacent], worst=max)
    let_in = _cells(faces, who.adults, scores, parts, [of_age, just_over], worst=min)

    _require_enough(kept_out, max_false_accept, confidence, who)
    limit = _strictest(kept_out, limits(rule, required_age), max_false_accept, confidence)
    _require_someone(let_in, limit, rule)
    refuse, notes = _refusal(let_in, limits(rule, 0), limit, max_false_refuse, confidence)

    promises = _promises(kept_out, limit, confidence, minor=True)
    if refuse > 0:
        promises += _promises(let_in, refuse, confidence, minor=False)
    fit = FitPart(
        max_false_accept=max_false_accept,
        confidence=confidence,
        max_false_refuse=max_false_refuse if refuse > 0 else None,
        minor_band=adjacent,
        adult_band=just_over,
        by=tuple(by),
        date=datetime.now(UTC).date(),
        agelens=__version__,
        data=tuple(FittedData(**asdict(file)) for file in faces.provenance.data),
        left_out=dict(who.left_out),
        promises=promises,
        step_up_rate=_share(faces, who.adults, (scores < limit) & (scores >= refuse)),
        refusal_rate=_share(faces, who.adults, scores < refuse),
    )
    return GateFit(
        policy=_policy(faces, base, name, required_age, rule, limit, refuse, fit),
        price=trade_off(
            faces, rule, required_age, dict.fromkeys([under_age, adjacent]), fitted=limit
        ),
        counts={
            "under_age": int(who.minors.sum()),
            "of_age": int(who.adults.sum()),
            **who.left_out,
        },
        notes=(*_notes(fit, limit, let_in), *notes),
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


def _check_shares(
    max_false_accept: float, confidence: float, max_false_refuse: float | None
) -> None:
    for name, value in (
        ("max_false_accept", max_false_accept),
        ("confidence", confidence),
        ("max_false_refuse", max_false_refuse),
    ):
        if value is not None and not 0 < value < 1:
            raise ArgumentError(f"{name} must be between 0 and 1, got {value}")


def _checked_band(band: Band, lowest: int, highest: int, name: str) -> Band:
    low, high = band
    if not lowest <= low <= high <= highest:
        raise ArgumentError(
            f"the band {name} must rise and stay within {lowest} to {highest}, got {low} to {high}"
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
            cells.append(_Cell(band, group, np.sort(np.array([*by_cluster.values()], np.float64))))
    return cells


def _require_enough(
    cells: Sequence[_Cell], bound: float, confidence: float, who: GateFaces
) -> None:
    needed = faces_needed(bound, confidence)
    short = [cell for cell in cells if len(cell.scores) < needed]
    if not short:
        return
    left_out = ", ".join(
        f"{count:,} {LEFT_OUT_WORDS[name]}" for name, count in who.left_out.items() if count
    )
    raise DataError(
        f"too few faces to promise a false-acceptance rate below {bound:g} with confidence "
        f"{confidence:g}: each kind of people needs {needed} independent faces even if none of "
        "them is accepted, and there are\n"
        + "\n".join(f"  {len(cell.scores):>5,}  {cell.title}" for cell in short)
        + (f"\nNot counted: {left_out}." if left_out else "")
        + "\nAdd faces of these ages, or promise less: a higher --max-false-accept, a lower "
        "--confidence, a wider --minor-band, fewer groups in --by"
    )


def _strictest(cells: Sequence[_Cell], grid: Floats, bound: float, confidence: float) -> float:
    found = []
    for cell in cells:
        allowed = errors_allowed(len(cell.scores), bound, confidence)
        limit = lowest_limit(cell.scores, allowed, grid)
        if math.isnan(limit):
            reached = int((cell.scores >= grid[-1]).sum())
            raise DataError(
                f"no limit keeps the bound: of {len(cell.scores):,} faces {cell.title}, "
                f"{reached:,} reach even the strictest limit ({grid[-1]:g}), and only {allowed:,} "
                "may; this model cannot tell them from those of age. Promise less (a higher "
                "--max-false-accept), or take another model"
            )
        found.append(limit)
    return max(found)


def _require_someone(cells: Sequence[_Cell], limit: float, rule: Rule) -> None:
    everybody = cells[0]
    if len(everybody.scores) == 0:
        raise DataError(
            f"there are no faces {everybody.title}, so the price in refusals cannot be shown; add "
            "faces of those of age"
        )
    if everybody.scores[-1] < limit:
        what = "P(of age)" if rule == "probability" else "expected age"
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
) -> tuple[float, list[str]]:
    """The limit under which is refused outright, and why there is none."""
    if bound is None:
        return 0.0, ["Nobody is refused outright: those who are not accepted are asked to step up."]
    short = [c for c in cells if errors_allowed(len(c.scores), bound, confidence) < 0]
    if short:
        needed = faces_needed(bound, confidence)
        named = "; ".join(f"{c.title}: {len(c.scores)}" for c in short)
        return 0.0, [
            f"Nobody is refused outright: promising it for at most {bound:g} of those of age needs "
            f"{needed} faces of each kind, and there are fewer ({named})."
        ]
    highest = min(
        highest_refusal(c.scores, errors_allowed(len(c.scores), bound, confidence), grid)
        for c in cells
    )
    return min(highest, limit), []


def _promises(
    cells: Sequence[_Cell], limit: float, confidence: float, *, minor: bool
) -> tuple[Promise, ...]:
    found = []
    for cell in cells:
        wrong = cell.scores >= limit if minor else cell.scores < limit
        errors = int(wrong.sum())
        found.append(
            Promise(
                error="false_acceptance" if minor else "false_refusal",
                ages=cell.ages,
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
    base: GatePolicy | None,
    name: str | None,
    required_age: int,
    rule: Rule,
    limit: float,
    refuse: float,
    fit: FitPart,
) -> GatePolicy:
    source = faces.provenance
    accept, under = (
        ("threshold", "refuse_below")
        if rule == "probability"
        else ("challenge_age", "refuse_under_age")
    )
    fields: dict[str, Any] = {
        accept: limit,
        under: refuse,
        "fit": fit,
        "model": ModelPart(
            name=source.model,
            sha256=source.model_sha256,
            card_sha256=source.card_sha256,
            detector=str(source.options.get("detector", "default")),
            flip=bool(source.options.get("flip", False)),
        ),
    }
    start = base or GatePolicy(name=f"over-{required_age}", required_age=required_age, rule=rule)
    return start.changed(**fields, **({} if name is None else {"name": name}))


def _notes(fit: FitPart, limit: float, let_in: Sequence[_Cell]) -> list[str]:
    accepted = (let_in[0].scores >= limit).mean()
    nearest = max(
        (one for one in fit.promises if one.error == "false_acceptance"),
        key=lambda one: one.upper,
    )
    notes = [
        f"Nearest to the bound: {_title(nearest.ages, nearest.group)}, {nearest.errors:,} of "
        f"{nearest.faces:,} accepted, at most {100 * nearest.upper:.1f} % with confidence "
        f"{fit.confidence:g}.",
        f"Price: {100 * (1 - accepted):.0f} % of those of age in these data are not accepted at "
        "once.",
    ]
    if fit.minor_band[0] == 0:
        notes.append(
            "The promise is on all under age together, small children included; it says little of "
            f"those just under {fit.minor_band[1] + 1}. Look at the rates by age."
        )
    if not fit.by:
        notes.append("No group was held to the bound by itself; --by names columns of groups.")
    return notes


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {k: None if math.isnan(v) else v for k, v in values.items()}
