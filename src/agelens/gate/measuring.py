"""
What a gate does to whom: exact bounds of error rates, and the figures that NIST reports.

    exact bounds        upper_bound, faces_needed, errors_allowed (Clopper and Pearson 1934)
    who is counted      gate_faces, cells: who is under age, of age, or left out, by group
    measure_gate        one policy on labelled faces -> GateReport

The figures follow NIST's evaluation of age estimation and verification (FATE AEV, NIST IR 8525):
mean absolute error as the mean over cells of sex and year of age, false acceptance at challenge 25
for 14 to 17, by exact age, child-safety bands, true acceptance by age. Rates get exact intervals
over independent faces: faces of one subject, and copies of one picture, count once, and as an
error when any of them is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agelens.bundle import ModelCard
from agelens.errors import ArgumentError, MissingExtra
from agelens.evaluation.bootstrap import (
    DEFAULT_SAMPLES,
    MIN_CLUSTERS,
    Draws,
    Estimate,
    percentiles,
    weights,
)
from agelens.evaluation.gate_errors import exact_interval
from agelens.evaluation.metrics import measure, weighted_mean
from agelens.evaluation.scored import UNKNOWN, Floats, ScoredFaces
from agelens.evaluation.values import absolute_errors
from agelens.gate.policy import Admit, GatePolicy, Promise, Rule, rule_scores
from agelens.results import AGE_COUNT

REPORT_SCHEMA: Final = "agelens.gate-report/1"

Mask = NDArray[np.bool_]
Band = tuple[int, int]

ALL: Final = "all"
"""Group of everybody."""
OLDEST: Final = AGE_COUNT - 1
CHALLENGE_AGE: Final = 25
CHALLENGE_BAND: Final[Band] = (14, 17)
CHILD_BAND: Final[Band] = (13, 16)
CHILD_NEIGHBOURS: Final[tuple[Band, ...]] = ((8, 12), (17, 22))
NIST_AGES: Final[Band] = (18, 30)
LEFT_OUT: Final = ("no_age_label", "label_straddles", "face_not_found", "not_answered")
"""Why faces are not counted: no label; a range of ages on both sides of the required age; the
detector found nothing; the quality allows no estimate."""


# --- exact bounds ---------------------------------------------------------------------------------


def upper_bound(errors: ArrayLike, faces: ArrayLike, confidence: float) -> Floats:
    """One-sided upper Clopper-Pearson bound of an error rate.

    Whatever the true rate, the bound is under it in at most ``1 - confidence`` of all samples
    (Clopper and Pearson, Biometrika 1934).

    Args:
        errors: Errors seen.
        faces: Independent faces; without any the bound is 1.
        confidence: 0..1.
    """
    from_beta = _beta_quantile()
    k, n = np.broadcast_arrays(np.asarray(errors, np.float64), np.asarray(faces, np.float64))
    open_ended = k >= n
    bound = from_beta(k + 1, np.where(open_ended, 1, n - k), confidence)
    return np.where(open_ended, 1.0, bound)


def faces_needed(bound: float, confidence: float) -> int:
    """Least number of independent faces that can show a rate under the bound: without any error.

    The smallest n with (1 - bound)^n <= 1 - confidence.
    """
    needed = math.ceil(math.log(1 - confidence) / math.log(1 - bound))
    # The two logarithms can round to the wrong side of a whole number.
    while (1 - bound) ** needed > 1 - confidence:
        needed += 1
    return needed


def errors_allowed(faces: int, bound: float, confidence: float) -> int:
    """Most errors among so many independent faces that show a rate under the bound; -1: none do."""
    bounds = upper_bound(np.arange(faces + 1), faces, confidence)
    return int(np.searchsorted(bounds, bound, side="right")) - 1


def _beta_quantile() -> Any:
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise MissingExtra("gate", "fitting and measuring an age gate") from error
    return betaincinv


@dataclass(frozen=True)
class Rate:
    """A share of independent faces, with its exact two-sided 95 % interval.

    Attributes:
        events: Faces of which it is so.
        faces: Faces in all.
    """

    events: int
    faces: int

    @property
    def value(self) -> float:
        """The share; NaN without faces."""
        return self.events / self.faces if self.faces else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson interval of level 0.95; 0 to 1 without faces."""
        return exact_interval(self.events, self.faces) if self.faces else (0.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        low, high = self.interval
        value = None if math.isnan(self.value) else self.value
        return {
            "value": value,
            "low": low,
            "high": high,
            "events": self.events,
            "faces": self.faces,
        }


def error_rate(is_error: Mask, rows: Mask, clusters: NDArray[np.int64]) -> Rate:
    """How many of the independent faces among these rows are errors.

    A cluster with an error in any of its rows is one error.

    Args:
        is_error: (N,) of each face.
        rows: (N,) faces that are looked at.
        clusters: (N,) faces that count as one share a number.
    """
    return Rate(len(np.unique(clusters[rows & is_error])), len(np.unique(clusters[rows])))


# --- who is counted -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GateFaces:
    """Who stands before a gate, by the labels.

    Attributes:
        minors: (N,) faces that are surely under the required age, and that the gate would decide
            on.
        adults: (N,) faces that are surely of age, likewise.
        straddling: (N,) faces whose label is a range on both sides of the required age.
        left_out: Faces that are neither, by the reasons of ``LEFT_OUT``.
    """

    minors: Mask
    adults: Mask
    straddling: Mask
    left_out: Mapping[str, int]

    def sides(self, admit: Admit) -> tuple[Mask, Mask]:
        """(N,) faces to be kept out, and (N,) faces to be let in."""
        return (self.minors, self.adults) if admit == "over" else (self.adults, self.minors)


def gate_faces(faces: ScoredFaces, required_age: int) -> GateFaces:
    """Tell those under age from those of age, and leave out what cannot be told or decided.

    A gate does not decide on a face that it does not find or cannot judge, so such faces would only
    flatter its rates. A label that is a range counts when all of it is on one side.
    """
    labelled = faces.age_min != UNKNOWN
    straddles = labelled & (faces.age_min < required_age) & (faces.age_max >= required_age)
    found = _found(faces)
    told = labelled & ~straddles
    counted = told & found & faces.answered
    reasons = (~labelled, straddles, told & ~found, told & found & ~faces.answered)
    return GateFaces(
        minors=counted & (faces.age_max < required_age),
        adults=counted & (faces.age_min >= required_age),
        straddling=straddles,
        left_out={name: int(mask.sum()) for name, mask in zip(LEFT_OUT, reasons, strict=True)},
    )


def _found(faces: ScoredFaces) -> Mask:
    """(N,) faces that a gate would find; with ``crops`` there are estimates of others too."""
    without_detector = faces.provenance.options.get("detector") == "none"
    return np.isfinite(faces.age[:, 0]) & (faces.detected | without_detector)


def within(faces: ScoredFaces, band: Band) -> Mask:
    """(N,) faces whose whole label lies in a band of ages; a band that ends at 100 is open."""
    low, high = band
    upper = np.inf if high >= OLDEST else high
    return np.asarray((faces.age_min >= low) & (faces.age_max <= upper))


def groups(faces: ScoredFaces, by: Sequence[str]) -> dict[str, Mask]:
    """Everybody, then the groups of each column.

    Args:
        faces: Labelled faces.
        by: "gender", names of audit columns, and intersections of them as "race+gender".

    Returns:
        (N,) masks by "all" and "COLUMN=VALUE" (of an intersection "race=A, gender=female"). A face
        without a label is in no group of that column.

    Raises:
        ArgumentError: There is no such column, or no label in it.
    """
    found = {ALL: np.ones(len(faces), bool)}
    for name in by:
        columns = [_column(faces, part.strip()) for part in name.split("+")]
        cells = {"": np.ones(len(faces), bool)}
        for part, column in zip(name.split("+"), columns, strict=True):
            values = sorted({value for value in column.tolist() if value is not None})
            cells = {
                f"{before}, {part.strip()}={value}".removeprefix(", "): mask & (column == value)
                for before, mask in cells.items()
                for value in values
            }
        found |= {cell: mask for cell, mask in cells.items() if mask.any()}
    return found


def _column(faces: ScoredFaces, name: str) -> NDArray[np.object_]:
    if name == "gender":
        words = np.array([None, "male", "female"], object)
        column = words[faces.female_label + 1]
    elif name in faces.audit:
        column = faces.audit[name]
    else:
        known = ", ".join(["gender", *sorted(faces.audit)])
        raise ArgumentError(f"no column {name!r} to group the faces by; there are: {known}")
    if all(value is None for value in column.tolist()):
        raise ArgumentError(f"the column {name!r} is empty, so there are no groups by it")
    return column


# --- the trade-off --------------------------------------------------------------------------------


@dataclass(frozen=True)
class TradeOff:
    """What one limit would cost whom.

    Attributes:
        limit: P(of the age that is admitted) or expected age from which is accepted.
        false_accept: Share of those to be kept out that are accepted, by "FIRST-LAST" ages.
        not_accepted: Share of those to be let in that are not accepted at once, by "FIRST-LAST"
            ages.
    """

    limit: float
    false_accept: Mapping[str, float]
    not_accepted: Mapping[str, float]


def adult_bands(required_age: int) -> tuple[Band, ...]:
    """Bands of those of age: the first years apart, because they pay most; for 18: 18 to 20, 21 to
    24, 25 to 29, 30 to 39, 40 to 59, 60 and over.
    """
    starts = [required_age + years for years in (0, 3, 7, 12, 22, 42)]
    held = [start for start in starts if start <= OLDEST]
    return tuple(zip(held, [*(start - 1 for start in held[1:]), OLDEST], strict=True))


def minor_band(required_age: int) -> Band:
    """The five years under the required age: who is hardest to tell from those of age."""
    return (max(0, required_age - 5), required_age - 1)


def child_bands(required_age: int) -> tuple[Band, ...]:
    """Bands of those under an age, from the oldest: the last years apart, because they pay most
    where those under it are let in; for 13: 10 to 12, 6 to 9, 1 to 5, 0.
    """
    ends = [required_age - years for years in (1, 4, 8, 13)]
    held = [end for end in ends if end >= 0]
    return tuple(zip([*(end + 1 for end in held[1:]), 0], held, strict=True))


def whole_sides(required_age: int, admit: Admit) -> tuple[Band, Band]:
    """Ages of all who are to be kept out, and of all who are to be let in."""
    under, over = (0, required_age - 1), (required_age, OLDEST)
    return (under, over) if admit == "over" else (over, under)


def let_in_bands(required_age: int, admit: Admit) -> tuple[Band, ...]:
    """Bands of those to be let in, from those next to the required age."""
    return adult_bands(required_age) if admit == "over" else child_bands(required_age)


def hardest_band(required_age: int, admit: Admit) -> Band:
    """Those to be kept out who are hardest to tell: the five years next to the required age."""
    if admit == "over":
        return minor_band(required_age)
    return (required_age, min(required_age + 4, OLDEST))


def band_name(band: Band) -> str:
    """A band as text: "13-17"; an open one is "60+", a single year "0"."""
    low, high = band
    if low == high:
        return f"{low}"
    return f"{low}+" if high >= OLDEST else f"{low}-{high}"


def trade_off(
    faces: ScoredFaces,
    rule: Rule,
    required_age: int,
    kept_out: Iterable[Band],
    fitted: float | None = None,
    admit: Admit = "over",
) -> tuple[TradeOff, ...]:
    """The price of each limit in refusals, from lax to strict.

    Args:
        faces: Labelled faces with answers.
        rule: See ``policy.GatePolicy``.
        required_age: Completed years at which the two sides part.
        kept_out: Bands of those to be kept out to show.
        fitted: A limit to show among the others.
        admit: Who is let in.
    """
    out, let_in = gate_faces(faces, required_age).sides(admit)
    scores = rule_scores(faces.age, rule, required_age, admit)
    wrong = {band_name(b): out & within(faces, b) for b in kept_out}
    right = {band_name(b): let_in & within(faces, b) for b in let_in_bands(required_age, admit)}
    points = []
    for limit in sorted({*shown_limits(rule, required_age), *([] if fitted is None else [fitted])}):
        accepted = scores >= limit
        points.append(
            TradeOff(
                limit,
                {k: error_rate(accepted, v, faces.clusters).value for k, v in wrong.items()},
                {k: error_rate(~accepted, v, faces.clusters).value for k, v in right.items()},
            )
        )
    return tuple(points)


def shown_limits(rule: Rule, required_age: int) -> list[float]:
    """Limits that the price is shown at."""
    if rule == "challenge":
        return [round(required_age + step / 2, 1) for step in range(45)]
    steps = [*np.linspace(0.5, 0.95, 19), *(1 - np.geomspace(0.045, 0.0005, 16))]
    return [round(float(step), 4) for step in steps]


# --- the report -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decisions:
    """What the gate says to one kind of people.

    Attributes:
        ages: First and last true age.
        group: "all" or "COLUMN=VALUE".
        under_age: Whether they are under the required age.
        kept_out: Whether they are to be kept out.
        accept: Accepted; for those to be kept out the false acceptance.
        step_up: Asked for another proof.
        refuse: Refused outright; for those to be let in the false refusal.

    Of several faces that count as one, the worst counts: the three can add up to over 1.
    """

    ages: Band
    group: str
    under_age: bool
    kept_out: bool
    accept: Rate
    step_up: Rate
    refuse: Rate

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "ages": list(self.ages),
            "group": self.group,
            "under_age": self.under_age,
            "kept_out": self.kept_out,
            **{name: getattr(self, name).to_dict() for name in ("accept", "step_up", "refuse")},
        }


@dataclass(frozen=True)
class Check:
    """A promise of the fit, looked at on other faces.

    Attributes:
        promise: What was promised, with the figures of the fit.
        bound: Rate that it must not pass.
        found: Rate on these faces.
        verdict: "below" the bound; "too_few": not over it, on fewer faces than can show a rate
            under it; "above", but by no more than chance explains; "broken": the whole 95 %
            interval is over it; "unknown" without faces, or when their group is not labelled.
        needed: Independent faces that can show a rate under the bound: ``faces_needed``.
    """

    promise: Promise
    bound: float
    found: Rate
    verdict: str
    needed: int

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "promise": self.promise.model_dump(mode="json"),
            "bound": self.bound,
            "found": self.found.to_dict(),
            "verdict": self.verdict,
            "needed": self.needed,
        }


@dataclass(frozen=True)
class AgeFigures:
    """Error of the expected age in one band of true ages and one group.

    Attributes:
        ages: First and last true age.
        group: "all" or "COLUMN=VALUE".
        mae: Mean absolute error in years.
        bias: Mean of expected less true age in years.
    """

    ages: Band
    group: str
    mae: Estimate
    bias: Estimate


@dataclass(frozen=True)
class GateReport:
    """Everything measured of a gate; ``to_dict`` is the stored JSON.

    Attributes:
        policy: The policy that was measured.
        model: "name@version" of the answers, with ``model_sha256`` and ``card_sha256``.
        data: Files of faces: name, sha256 and rows.
        datasets: Names of the data sets of these faces, in order.
        counts: Faces under age, of age, and left out by reason; of independent ones.
        decisions: By band of ages and group.
        by_age: Decisions by exact age (single years up to 12 over the required age, then bands).
        checks: The promises of the fit on these faces.
        undecided: Share of the labelled faces that the gate does not decide on, by group.
        nist: Figures at NIST's definitions, by name and group; see ``NIST_FIGURES``.
        nist_mae: Mean over 26 cells of sex and age 18 to 30 of the mean absolute error; None when
            no cell has faces. ``nist_cells`` of them have some.
        ages: Error by band and group.
        price: The trade-off at other limits.
    """

    policy: GatePolicy
    model: Mapping[str, str]
    data: tuple[Mapping[str, Any], ...]
    counts: Mapping[str, int]
    decisions: tuple[Decisions, ...]
    by_age: tuple[Decisions, ...]
    checks: tuple[Check, ...]
    undecided: Mapping[str, Rate]
    nist: Mapping[str, Mapping[str, Rate]]
    nist_mae: Estimate | None
    nist_cells: int
    ages: tuple[AgeFigures, ...]
    price: tuple[TradeOff, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "schema": REPORT_SCHEMA,
            "policy": {"sha256": self.policy.sha256, **self.policy.to_table()},
            "model": dict(self.model),
            "data": [dict(one) for one in self.data],
            "datasets": list(self.datasets),
            "options": dict(self.options),
            "counts": dict(self.counts),
            "decisions": [one.to_dict() for one in self.decisions],
            "by_age": [one.to_dict() for one in self.by_age],
            "checks": [one.to_dict() for one in self.checks],
            "undecided": {group: rate.to_dict() for group, rate in self.undecided.items()},
            "nist": {
                "definitions": NIST_FIGURES,
                "mae": None if self.nist_mae is None else self.nist_mae.to_dict(),
                "mae_cells": self.nist_cells,
                **{
                    name: {group: rate.to_dict() for group, rate in rates.items()}
                    for name, rates in self.nist.items()
                },
            },
            "ages": [
                {
                    "ages": list(one.ages),
                    "group": one.group,
                    "mae": one.mae.to_dict(),
                    "bias": one.bias.to_dict(),
                }
                for one in self.ages
            ],
            "price": [{k: _finite(v) for k, v in asdict(point).items()} for point in self.price],
        }


NIST_FIGURES: Final[Mapping[str, str]] = {
    "mae": "Mean absolute error of the expected age in years: the mean over the cells of two sexes "
    "and each age from 18 to 30 that have faces.",
    "challenge_25": "False acceptance at challenge 25: share of those aged 14 to 17 whose expected "
    "age is 25 or more.",
    "child_13_16": "True acceptance of the child band: share of those aged 13 to 16 whose expected "
    "age is from 13 to under 17.",
    "child_8_12": "False acceptance of the child band: share of those aged 8 to 12 whose expected "
    "age is from 13 to under 17.",
    "child_17_22": "False acceptance of the child band: share of those aged 17 to 22 whose "
    "expected age is from 13 to under 17.",
}
"""The figures after NIST FATE AEV by name, with their definitions."""


def measure_gate(
    faces: ScoredFaces,
    policy: GatePolicy,
    *,
    by: Sequence[str] | None = None,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
) -> GateReport:
    """Put labelled faces before a gate and report what it does to whom.

    Args:
        faces: Faces that the policy was not fitted on, with the answers of its model.
        policy: With its limits.
        by: Columns to group by, as of ``groups``; None takes those of the fit, or gender and the
            audit columns that have labels.
        samples: Bootstrap draws behind the intervals of errors in years.
        seed: Of the draws.

    Raises:
        ArgumentError: The policy has no limit, is for another model or calibration, or a column is
            not there.
        MissingExtra: scipy is not installed.
    """
    source = faces.provenance
    require_same_model(policy, source.model, source.model_sha256, source.card_sha256)
    outcomes = np.array(policy.outcomes(faces.age), object)
    parts = groups(faces, _columns(faces, policy) if by is None else by)
    who = gate_faces(faces, policy.required_age)
    draws = weights(faces.clusters, samples, seed)
    mae, cells = _nist_mae(faces, draws)
    bands = _kept_out_bands(policy)
    return GateReport(
        policy=policy,
        model={
            "name": faces.provenance.model,
            "sha256": faces.provenance.model_sha256,
            "card_sha256": faces.provenance.card_sha256,
        },
        data=tuple(asdict(file) for file in faces.provenance.data),
        datasets=datasets_of(faces),
        options=dict(faces.provenance.options),
        counts=_counts(faces, who),
        decisions=_decisions(faces, who, policy, outcomes, parts, bands),
        by_age=_by_age(faces, who, policy, outcomes),
        checks=_checks(faces, who, policy, outcomes),
        undecided=_undecided(faces, policy.required_age, parts),
        nist=_nist_rates(faces, parts),
        nist_mae=mae,
        nist_cells=cells,
        ages=_age_figures(faces, policy.required_age, parts, draws),
        price=trade_off(
            faces, policy.rule, policy.required_age, bands, policy.accept_from, policy.admit
        ),
    )


def datasets_of(faces: ScoredFaces) -> tuple[str, ...]:
    """Names of the data sets that faces are of, in order."""
    return tuple(sorted({str(name) for name in faces.dataset.tolist()}))


def known_to_the_model(
    data: Iterable[Mapping[str, Any]], datasets: Iterable[str], card: ModelCard
) -> tuple[str, ...]:
    """Sentences on faces that the model's card says it has learned from; empty when none are known.

    Args:
        data: Files of faces, with name and sha256.
        datasets: Names of the data sets of these faces.
        card: Card of the model.
    """
    calibrated = {one.sha256 for one in card.calibration.files}
    trained = {one.name.casefold() for one in card.training_data}
    return (
        *(
            f"{one['name']}: the model was calibrated on this file, so its figures here are too "
            "good"
            for one in data
            if one["sha256"] in calibrated
        ),
        *(
            f"{name}: the model was trained on faces of this data set by its card; if these were "
            "among them, its figures here are too good"
            for name in datasets
            if name.casefold() in trained
        ),
    )


def require_same_model(policy: GatePolicy, model: str, model_sha256: str, card_sha256: str) -> None:
    """Refuse answers of another model or calibration than the policy was fitted for.

    Args:
        policy: One that names no model takes any.
        model: "name@version".
        model_sha256: As ``evaluation.scored.Provenance.model_sha256``.
        card_sha256: As ``Provenance.card_sha256``.

    Raises:
        ArgumentError: It is another one.
    """
    fitted = policy.model
    if fitted is None:
        return
    if fitted.sha256 != model_sha256:
        raise ArgumentError(
            f"{policy.name}: the policy was fitted for {fitted.name} (SHA-256 "
            f"{fitted.sha256[:12]}...), these answers are of {model} "
            f"({model_sha256[:12]}...); name that model, or fit the policy again"
        )
    if fitted.card_sha256 != card_sha256:
        raise ArgumentError(
            f"{policy.name}: the card of {model}, calibration included, has changed since "
            f"the policy was fitted (SHA-256 {fitted.card_sha256[:12]}... then, "
            f"{card_sha256[:12]}... now), so its limits mean something else; fit it again"
        )


def _columns(faces: ScoredFaces, policy: GatePolicy) -> list[str]:
    if policy.fit is not None and policy.fit.by:
        return list(policy.fit.by)
    named = ["gender"] if (faces.female_label != UNKNOWN).any() else []
    audited = [
        name
        for name, column in sorted(faces.audit.items())
        if any(value is not None for value in column.tolist())
    ]
    return named + audited


def _kept_out_bands(policy: GatePolicy) -> tuple[Band, ...]:
    """All to be kept out, those next to the required age, and those that the fit promises on."""
    required, admit = policy.required_age, policy.admit
    bands = [whole_sides(required, admit)[0], hardest_band(required, admit)]
    if policy.fit is not None:
        bands.append(policy.fit.minor_band if admit == "over" else policy.fit.adult_band)
    return tuple(dict.fromkeys(bands))


def _counts(faces: ScoredFaces, who: GateFaces) -> dict[str, int]:
    return {
        "faces": len(faces),
        "independent": len(np.unique(faces.clusters)),
        "under_age": int(who.minors.sum()),
        "of_age": int(who.adults.sum()),
        **who.left_out,
    }


def _decide(
    faces: ScoredFaces,
    who: GateFaces,
    policy: GatePolicy,
    outcomes: NDArray[Any],
    band: Band,
    group: str = ALL,
    members: Mask | None = None,
) -> Decisions:
    """What the gate says to those of a band that lies on one side of the required age."""
    under_age = band[0] < policy.required_age
    kept_out = under_age == (policy.admit == "over")
    rows = (who.minors if under_age else who.adults) & within(faces, band)
    rows = rows if members is None else rows & members
    rates = {
        name: error_rate(outcomes == name, rows, faces.clusters) for name in ("refuse", "step_up")
    }
    accept = error_rate(outcomes == "accept", rows, faces.clusters)
    if not kept_out:
        # Of a cluster of those to be let in, one picture that is not accepted is the error.
        missed = error_rate(outcomes != "accept", rows, faces.clusters)
        accept = Rate(missed.faces - missed.events, missed.faces)
    return Decisions(band, group, under_age, kept_out, accept, rates["step_up"], rates["refuse"])


def _decisions(
    faces: ScoredFaces,
    who: GateFaces,
    policy: GatePolicy,
    outcomes: NDArray[Any],
    parts: Mapping[str, Mask],
    kept_out: Sequence[Band],
) -> tuple[Decisions, ...]:
    required, admit = policy.required_age, policy.admit
    let_in = (whole_sides(required, admit)[1], *let_in_bands(required, admit))
    found = [
        _decide(faces, who, policy, outcomes, band, group, mask)
        for band in dict.fromkeys([*kept_out, *let_in])
        for group, mask in parts.items()
    ]
    return tuple(one for one in found if one.accept.faces)


def _by_age(
    faces: ScoredFaces, who: GateFaces, policy: GatePolicy, outcomes: NDArray[Any]
) -> tuple[Decisions, ...]:
    required = policy.required_age
    single = [(age, age) for age in range(min(required + 13, OLDEST))]
    older = [band for band in adult_bands(required) if band[0] > required + 12]
    middle = [(required + 13, older[0][0] - 1)] if older else []
    bands = single + (middle if middle and middle[0][0] <= middle[0][1] else []) + older
    found = [_decide(faces, who, policy, outcomes, band) for band in bands]
    return tuple(one for one in found if one.accept.faces)


def _checks(
    faces: ScoredFaces, who: GateFaces, policy: GatePolicy, outcomes: NDArray[Any]
) -> tuple[Check, ...]:
    """Each promise on all faces of its own ages and group, whatever the report is grouped by."""
    if policy.fit is None:
        return ()
    parts = _promised_groups(faces, policy.fit.by)
    decided = who.minors | who.adults
    none = np.zeros(len(faces), bool)
    checks = []
    for promise in policy.fit.promises:
        keeps_out = promise.error == "false_acceptance"
        bound = policy.fit.max_false_accept if keeps_out else policy.fit.max_false_refuse
        if bound is None:
            raise ArgumentError(
                f"{policy.name}: fit.promises speaks of refusals, but there is no "
                "fit.max_false_refuse; fit the policy again"
            )
        rows = decided & within(faces, promise.ages) & parts.get(promise.group, none)
        wrong = outcomes == ("accept" if keeps_out else "refuse")
        rate = error_rate(wrong, rows, faces.clusters)
        confidence = policy.fit.confidence
        judged = verdict(rate, bound, confidence)
        checks.append(Check(promise, bound, rate, judged, faces_needed(bound, confidence)))
    return tuple(checks)


def _promised_groups(faces: ScoredFaces, by: Sequence[str]) -> dict[str, Mask]:
    """The groups of these columns, but for columns that these faces have no labels of."""
    found = groups(faces, ())
    for name in by:
        try:
            found |= groups(faces, (name,))
        except ArgumentError:
            continue
    return found


def verdict(found: Rate, bound: float, confidence: float) -> str:
    """How a rate stands to a bound: see ``Check``."""
    if not found.faces:
        return "unknown"
    if found.value <= bound:
        return "below" if found.faces >= faces_needed(bound, confidence) else "too_few"
    return "broken" if found.interval[0] > bound else "above"


def _undecided(faces: ScoredFaces, required_age: int, parts: Mapping[str, Mask]) -> dict[str, Rate]:
    who = gate_faces(faces, required_age)
    straddles = (faces.age_min < required_age) & (faces.age_max >= required_age)
    told = (faces.age_min != UNKNOWN) & ~straddles
    undecided = told & ~(who.minors | who.adults)
    return {
        group: error_rate(undecided, told & mask, faces.clusters) for group, mask in parts.items()
    }


def _nist_rates(faces: ScoredFaces, parts: Mapping[str, Mask]) -> dict[str, dict[str, Rate]]:
    decided = _found(faces) & faces.answered
    as_child = (faces.mean_age >= CHILD_BAND[0]) & (faces.mean_age < CHILD_BAND[1] + 1)
    looked_at = {
        "challenge_25": (CHALLENGE_BAND, faces.mean_age >= CHALLENGE_AGE),
        "child_13_16": (CHILD_BAND, ~as_child),
        **{f"child_{band[0]}_{band[1]}": (band, as_child) for band in CHILD_NEIGHBOURS},
    }
    found: dict[str, dict[str, Rate]] = {}
    for name, (band, wrong) in looked_at.items():
        rates = {
            group: error_rate(wrong, decided & mask & within(faces, band), faces.clusters)
            for group, mask in parts.items()
        }
        if name == "child_13_16":
            rates = {k: Rate(rate.faces - rate.events, rate.faces) for k, rate in rates.items()}
        found[name] = {group: rate for group, rate in rates.items() if rate.faces}
    return found


def _nist_mae(faces: ScoredFaces, draws: Draws) -> tuple[Estimate | None, int]:
    ages = range(NIST_AGES[0], NIST_AGES[1] + 1)
    decided = _found(faces) & faces.answered
    cells = np.stack(
        [
            decided & faces.exact & (faces.age_min == age) & (faces.female_label == sex)
            for sex in (0, 1)
            for age in ages
        ],
        axis=1,
    )
    filled = cells.any(axis=0)
    if not filled.any():
        return None, 0
    error = np.where(cells[:, filled], absolute_errors(faces)[:, None], np.nan)
    rows = cells.any(axis=1)

    def mean_over_cells(drawn: NDArray[Any]) -> Floats:
        by_cell = weighted_mean(drawn, error)
        there = ~np.isnan(by_cell)
        total = np.where(there, by_cell, 0).sum(axis=1)
        return np.asarray(total / np.maximum(1, there.sum(axis=1)))

    value = float(mean_over_cells(np.ones((1, len(faces)), np.uint8))[0])
    enough = len(np.unique(faces.clusters[rows])) >= MIN_CLUSTERS
    low, high = percentiles(mean_over_cells(draws)) if enough else (math.nan, math.nan)
    return Estimate(value, low, high, int(rows.sum())), int(filled.sum())


def _age_figures(
    faces: ScoredFaces, required_age: int, parts: Mapping[str, Mask], draws: Draws
) -> tuple[AgeFigures, ...]:
    starts = [age for age in (0, 8, 13, 18) if age < required_age]
    under = zip(starts, [*(start - 1 for start in starts[1:]), required_age - 1], strict=True)
    decided = _found(faces) & faces.answered & faces.exact
    found = []
    for band in ((0, OLDEST), *under, *adult_bands(required_age)):
        for group, mask in parts.items():
            rows = np.flatnonzero(decided & within(faces, band) & mask)
            if len(rows) == 0:
                continue
            figures = measure(faces.take(rows), ["age_mae", "age_bias"], draws=draws[:, rows])
            found.append(AgeFigures(band, group, figures["age_mae"], figures["age_bias"]))
    return tuple(found)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
