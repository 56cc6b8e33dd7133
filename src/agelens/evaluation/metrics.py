"""
What is measured: every figure once, as a function of scored faces and bootstrap weights.

    METRICS, over        figures with name, unit and direction
    measure, by_group    figures with 95 % intervals, of all faces and of groups

Figures are over all faces with an estimate, those too on which the analyzer would abstain, so that
no model gains by abstaining. Labels that are ranges count where they say something: they are
censored observations for NLL and the coverage of intervals, and are left out of MAE, bias and CS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError, DataError
from agelens.evaluation.bootstrap import (
    DEFAULT_SAMPLES,
    MIN_CLUSTERS,
    Draws,
    Estimate,
    chunks,
    percentiles,
    weighted_sums,
    weights,
    wilson,
)
from agelens.evaluation.risk import area_under_risk_coverage
from agelens.evaluation.risk import risk_coverage as risk_coverage
from agelens.evaluation.scored import LEVELS, UNKNOWN, Floats, ScoredFaces
from agelens.evaluation.values import AGE_BANDS as AGE_BANDS
from agelens.evaluation.values import (
    PIT_LEVELS,
    Band,
    Mask,
    absolute_errors,
    band_of,
    covered,
    crps,
    errors,
    gender_right,
    gender_right_when_said,
    gender_said,
    gender_squared_errors,
    in_range,
    interval_widths,
    near_range,
    negative_log_likelihoods,
    nine_range_steps,
    over_label,
    over_squared_errors,
    pit,
    probability_over,
    range_distances,
    spread,
)
from agelens.results import AGE_COUNT

Better = Literal["lower", "higher", "zero", "nominal"]
Unit = Literal["years", "share", ""]
Subject = Literal["age", "gender", "face"]


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        name: As results carry it.
        title: For tables.
        unit: "years", "share" (0..1) or nothing.
        better: Where good figures lie: "nominal" means at ``nominal``.
        subject: What it is about; a face without a gender estimate has no part in "gender".
        rows: (N,) the faces that it stands on.
        estimate: (S,) the figure in each of S draws (S, N); NaN where a draw has none.
        values: (N,) per-face values whose weighted mean the figure is, NaN elsewhere; None for
            figures that are no mean.
        nominal: What it should be, where ``better`` is "nominal".
        alone: False where more of it is no merit without another figure: narrow intervals are good
            only while they hold the age, labels for more faces only while they are right.
    """

    name: str
    title: str
    unit: Unit
    better: Better
    subject: Subject
    rows: Callable[[ScoredFaces], Mask]
    estimate: Callable[[ScoredFaces, NDArray[Any]], Floats]
    values: Callable[[ScoredFaces], Floats] | None = None
    nominal: float | None = None
    alone: bool = True

    def loss(self, figures: Floats) -> Floats:
        """Figures as something of which less is better."""
        if self.better == "higher":
            return -figures
        return np.abs(figures - (self.nominal or 0.0)) if self.better != "lower" else figures

    def text(self, value: float, *, signed: bool = False) -> str:
        """A figure as people read it, without its unit: shares in per cent, "-" for none."""
        if np.isnan(value):
            return "-"
        sign = "+" if signed or self.better == "zero" else ""
        if self.unit == "share":
            return f"{100 * value:{sign}.1f}"
        return f"{value:{sign}.{2 if self.unit else 3}f}"

    @property
    def shown_unit(self) -> str:
        """Unit of ``text``."""
        return "%" if self.unit == "share" else self.unit


def _mean(
    name: str,
    title: str,
    unit: Unit,
    better: Better,
    subject: Subject,
    values: Callable[[ScoredFaces], Floats],
    *,
    nominal: float | None = None,
    root: bool = False,
    alone: bool = True,
) -> Metric:
    """A figure that is the mean of one value a face, or the root of it."""

    def estimate(faces: ScoredFaces, draws: NDArray[Any]) -> Floats:
        means = weighted_mean(draws, values(faces))
        return np.sqrt(means) if root else means

    def rows(faces: ScoredFaces) -> Mask:
        return ~np.isnan(values(faces))

    held = None if root else values
    return Metric(
        name, title, unit, better, subject, rows, estimate, held, nominal=nominal, alone=alone
    )


def weighted_mean(draws: NDArray[Any], values: Floats) -> Floats:
    """Mean of the values that are not NaN in each draw; NaN where a draw has none of them.

    Args:
        draws: (S, N).
        values: (N,) or (N, K).

    Returns:
        (S,) or (S, K).
    """
    there = ~np.isnan(values)
    total = weighted_sums(draws, np.where(there, values, 0.0))
    count = weighted_sums(draws, there)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def weighted_median(draws: NDArray[Any], values: Floats) -> Floats:
    """(S,) median of the values that are not NaN in each draw, as of the faces repeated."""
    rows = np.flatnonzero(~np.isnan(values))
    order = rows[np.argsort(values[rows], kind="stable")]
    ordered = values[order]
    medians = np.full(len(draws), np.nan)
    if len(order) == 0:
        return medians
    for part in chunks(draws[:, order]):
        upto = draws[part][:, order].cumsum(axis=1, dtype=np.int64)
        total = upto[:, -1:]
        lower = ordered[np.argmax(2 * upto >= total, axis=1)]
        upper = ordered[np.argmax(2 * upto > total, axis=1)]
        medians[part] = np.where(total[:, 0] > 0, (lower + upper) / 2, np.nan)
    return medians


def weighted_auc(draws: NDArray[Any], scores: Floats, positive: Floats) -> Floats:
    """(S,) area under the ROC curve in each draw; NaN where a draw has one class only.

    The share of pairs of one positive and one negative that the score puts in order, ties counting
    half (the Mann-Whitney statistic).

    Args:
        draws: (S, N).
        scores: (N,), higher for positives.
        positive: (N,) 1, 0, or NaN for rows without a class.
    """
    rows = np.flatnonzero(~np.isnan(positive) & ~np.isnan(scores))
    areas = np.full(len(draws), np.nan)
    if len(rows) == 0:
        return areas
    order = rows[np.argsort(scores[rows], kind="stable")]
    is_positive = positive[order] == 1
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    for part in chunks(draws[:, order]):
        held = draws[part][:, order].astype(np.float64)
        ups = np.add.reduceat(np.where(is_positive, held, 0), starts, axis=1)
        downs = np.add.reduceat(np.where(is_positive, 0, held), starts, axis=1)
        below = downs.cumsum(axis=1) - downs / 2
        pairs = ups.sum(axis=1) * downs.sum(axis=1)
        won = (ups * below).sum(axis=1)
        areas[part] = np.divide(won, pairs, out=np.full_like(won, np.nan), where=pairs > 0)
    return areas


def _macro_error(faces: ScoredFaces, draws: NDArray[Any]) -> Floats:
    place, values = band_of(faces), absolute_errors(faces)
    held = np.unique(place[faces.exact & (place >= 0)])
    banded = np.where(place[:, None] == held, values[:, None], np.nan)
    # A draw may miss a band of few faces: the others then stand for it.
    return _nan_mean(weighted_mean(draws, banded))


def _nan_mean(columns: Floats) -> Floats:
    there = ~np.isnan(columns)
    count = there.sum(axis=1)
    total = np.where(there, columns, 0).sum(axis=1)
    return np.asarray(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))


def _balanced_accuracy(faces: ScoredFaces, draws: NDArray[Any]) -> Floats:
    label = faces.female_label[:, None]
    recalls = weighted_mean(
        draws, np.where(label == np.array([1, 0]), gender_right(faces)[:, None], np.nan)
    )
    return np.asarray(recalls.mean(axis=1))


def _calibration_error(faces: ScoredFaces, draws: NDArray[Any]) -> Floats:
    achieved = weighted_mean(draws, pit(faces))
    return np.asarray(np.abs(achieved - PIT_LEVELS).mean(axis=1))


def _aurc(faces: ScoredFaces, draws: NDArray[Any]) -> Floats:
    values, certainty = range_distances(faces), -spread(faces)
    return area_under_risk_coverage(draws, values, certainty)


def _within(years: int) -> Callable[[ScoredFaces], Floats]:
    def values(faces: ScoredFaces) -> Floats:
        wrong = absolute_errors(faces)
        return np.where(np.isnan(wrong), np.nan, (wrong <= years).astype(np.float64))

    return values


def _at_most_steps(steps: int) -> Callable[[ScoredFaces], Floats]:
    def values(faces: ScoredFaces) -> Floats:
        away = nine_range_steps(faces)
        return np.where(np.isnan(away), np.nan, (away <= steps).astype(np.float64))

    return values


def _found(faces: ScoredFaces) -> Floats:
    values = faces.detected.astype(np.float64)
    if faces.provenance.options.get("detector") == "none":
        return np.full(len(faces), np.nan)
    readable = np.array([name not in faces.errors for name in faces.names], bool)
    return np.where(readable, values, np.nan)


def over(age: int) -> tuple[Metric, Metric]:
    """AUC and Brier score of P(true age >= ``age``); ranges around that age are left out.

    Raises:
        ArgumentError: ``age`` is outside 1..100.
    """
    if not 1 <= age < AGE_COUNT:
        raise ArgumentError(f"an age threshold is 1 to {AGE_COUNT - 1}, got {age}")

    def area(faces: ScoredFaces, draws: NDArray[Any]) -> Floats:
        return weighted_auc(draws, probability_over(faces, age), over_label(faces, age))

    return (
        Metric(
            f"over{age}_auc",
            f"AUC of P(age ≥ {age})",
            "",
            "higher",
            "age",
            lambda faces: ~np.isnan(over_label(faces, age)),
            area,
        ),
        _mean(
            f"over{age}_brier",
            f"Brier score of P(age ≥ {age})",
            "",
            "lower",
            "age",
            lambda faces: over_squared_errors(faces, age),
        ),
    )


def _coverage(level: float) -> Metric:
    percent = round(100 * level)
    return _mean(
        f"coverage_{percent}",
        f"{percent} % intervals that hold the age",
        "share",
        "nominal",
        "age",
        lambda faces: covered(faces, level),
        nominal=level,
    )


def _all_metrics() -> Iterable[Metric]:
    yield _mean("age_mae", "MAE", "years", "lower", "age", absolute_errors)
    yield Metric(
        "age_median_error",
        "Median absolute error",
        "years",
        "lower",
        "age",
        lambda faces: faces.exact,
        lambda faces, draws: weighted_median(draws, absolute_errors(faces)),
    )
    yield _mean("age_rmse", "RMSE", "years", "lower", "age", lambda f: errors(f) ** 2, root=True)
    yield _mean("age_bias", "Bias", "years", "zero", "age", errors)
    for years in (3, 5, 10):
        yield _mean(
            f"age_cs{years}",
            f"Within {years} years (CS@{years})",
            "share",
            "higher",
            "age",
            _within(years),
        )
    yield Metric(
        "age_mae_macro",
        "MAE, mean of the age bands",
        "years",
        "lower",
        "age",
        lambda faces: faces.exact & (band_of(faces) >= 0),
        _macro_error,
    )
    yield _mean("range_exact", "In the labelled range", "share", "higher", "age", in_range)
    yield _mean("range_one_off", "At most one range off", "share", "higher", "age", near_range)
    yield _mean(
        "range_distance", "Years outside the label", "years", "lower", "age", range_distances
    )
    yield _mean(
        "nine_ranges_exact", "Right of nine ranges", "share", "higher", "age", _at_most_steps(0)
    )
    yield _mean(
        "nine_ranges_one_off",
        "At most one of nine off",
        "share",
        "higher",
        "age",
        _at_most_steps(1),
    )
    yield _mean("age_crps", "CRPS", "years", "lower", "age", crps)
    yield _mean("age_nll", "NLL", "", "lower", "age", negative_log_likelihoods)
    yield Metric(
        "age_calibration_error",
        "Calibration error of the ages",
        "share",
        "lower",
        "age",
        lambda faces: faces.has_age,
        _calibration_error,
    )
    for level in LEVELS:
        yield _coverage(level)
    yield _mean(
        "interval_width_90",
        "Width of 90 % intervals",
        "years",
        "lower",
        "age",
        interval_widths,
        alone=False,
    )
    yield Metric(
        "age_aurc",
        "Area under risk and coverage",
        "years",
        "lower",
        "age",
        lambda faces: faces.has_age,
        _aurc,
    )
    for age in (18, 21):
        yield from over(age)
    yield _mean("gender_accuracy", "Gender right", "share", "higher", "gender", gender_right)
    yield Metric(
        "gender_balanced_accuracy",
        "Gender right, mean of both",
        "share",
        "higher",
        "gender",
        lambda faces: faces.has_gender,
        _balanced_accuracy,
    )
    yield Metric(
        "gender_auc",
        "AUC of P(female)",
        "",
        "higher",
        "gender",
        lambda faces: faces.has_gender,
        lambda faces, draws: weighted_auc(
            draws, faces.female, np.where(faces.has_gender, faces.female_label, np.nan)
        ),
    )
    yield _mean(
        "gender_labelled", "Not uncertain", "share", "higher", "gender", gender_said, alone=False
    )
    yield _mean(
        "gender_labelled_accuracy",
        "Right when not uncertain",
        "share",
        "higher",
        "gender",
        gender_right_when_said,
        alone=False,
    )
    yield _mean(
        "gender_brier", "Brier score of P(female)", "", "lower", "gender", gender_squared_errors
    )
    yield _mean("detection_rate", "Faces found", "share", "higher", "face", _found)
    yield _mean(
        "answered_rate",
        "Faces answered",
        "share",
        "higher",
        "face",
        lambda faces: faces.answered.astype(np.float64),
        alone=False,
    )


METRICS: Final[Mapping[str, Metric]] = {metric.name: metric for metric in _all_metrics()}
"""By name, in the order of reports."""

_OVER: Final = re.compile(r"over(\d+)_(auc|brier)")


def find_metric(name: str) -> Metric:
    """A metric by its name; "over25_auc" and the like for any age.

    Raises:
        ArgumentError: There is no such metric.
    """
    if name in METRICS:
        return METRICS[name]
    match = _OVER.fullmatch(name)
    if match is None:
        raise ArgumentError(
            f"no metric {name!r}; there are: {', '.join(METRICS)}, overAGE_auc, ..."
        )
    area, brier = over(int(match[1]))
    return area if match[2] == "auc" else brier


# --- measuring ------------------------------------------------------------------------------------


def measure(
    faces: ScoredFaces,
    names: Sequence[str] | None = None,
    *,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    draws: Draws | None = None,
) -> dict[str, Estimate]:
    """Figures with their 95 % cluster bootstrap intervals.

    Args:
        faces: Labelled faces with answers.
        names: Metrics wanted; None takes all that have a face to stand on.
        samples: Bootstrap draws.
        seed: Of the draws.
        draws: (S, N) draws made before, instead of ``samples`` and ``seed``.

    Raises:
        ArgumentError: An unknown metric.
        DataError: A metric was named that no face has the labels for.
    """
    held = weights(faces.clusters, samples, seed) if draws is None and len(faces) else draws
    figures = {}
    for name in METRICS if names is None else names:
        metric = find_metric(name)
        found = None if held is None else measure_one(metric, faces, held)
        if found is not None:
            figures[name] = found
        elif names is not None:
            raise DataError(f"{name} cannot be measured: {why_not(metric, faces)}")
    return figures


def measure_one(metric: Metric, faces: ScoredFaces, draws: Draws) -> Estimate | None:
    """One figure with its interval, or None when no face allows it.

    Args:
        metric: Which.
        faces: N labelled faces with answers.
        draws: (S, N) from ``bootstrap.weights``, of these faces or cut from those of more.
    """
    rows = metric.rows(faces)
    count = int(rows.sum())
    if count == 0:
        return None
    value = float(metric.estimate(faces, np.ones((1, len(faces)), np.uint8))[0])
    if np.isnan(value):
        return None
    clusters = len(np.unique(faces.clusters[rows]))
    if clusters < MIN_CLUSTERS:
        return Estimate(value, np.nan, np.nan, count)
    low, high = percentiles(metric.estimate(faces, draws))
    if metric.unit == "share" and metric.values is not None and low == high:
        # All faces agree, and so do all draws: that is no certainty.
        low, high = wilson(value, clusters)
    return Estimate(value, low, high, count)


def why_not(metric: Metric, faces: ScoredFaces) -> str:
    """Why a metric has no figure on these faces, naming the columns."""
    if metric.subject == "face":
        return "no detector was used"
    if metric.subject == "gender":
        return _why_no_gender(faces)
    if not (faces.age_min != UNKNOWN).any():
        return "the columns 'age_min' and 'age_max' are empty or missing"
    if not faces.has_age.any():
        return "no face with a label in 'age_min' and 'age_max' has an estimate"
    if metric.name.startswith("over"):
        return "no labels in 'age_min' and 'age_max' are on either side of that age"
    if metric.name.startswith("range"):
        return "no labels in 'age_min' and 'age_max' are ranges (that do not overlap)"
    return "'age_min' and 'age_max' are ranges in all rows; exact ages are needed"


def _why_no_gender(faces: ScoredFaces) -> str:
    if not (faces.female_label != UNKNOWN).any():
        return "the column 'gender' is empty or missing"
    if np.isnan(faces.female).all():
        return f"the model {faces.provenance.model} gives no gender"
    held = faces.female_label[faces.has_gender]
    if len(held) == 0:
        return "no face with a label in 'gender' has an estimate"
    if (held == held[0]).all():
        word = "female" if held[0] == 1 else "male"
        return f"the column 'gender' holds {word!r} only ({len(held)} faces); both are needed"
    return "every gender estimate is 'uncertain'"


def by_group(
    faces: ScoredFaces,
    groups: NDArray[Any],
    names: Sequence[str] | None = None,
    *,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    draws: Draws | None = None,
) -> dict[Any, dict[str, Estimate]]:
    """Figures of each group of faces, from draws of all faces.

    Args:
        faces: Labelled faces with answers.
        groups: (N,) group of each face; None is no group.
        names: Metrics wanted where a group allows them; None takes all.
        samples: Bootstrap draws.
        seed: Of the draws.
        draws: (S, N) draws made before, instead of ``samples`` and ``seed``.
    """
    if len(faces) == 0:
        return {}
    held = weights(faces.clusters, samples, seed) if draws is None else draws
    wanted = [find_metric(name) for name in (METRICS if names is None else names)]
    figures = {}
    for group in sorted({group for group in groups.tolist() if group is not None}):
        rows = np.flatnonzero(groups == group)
        part, drawn = faces.take(rows), held[:, rows]
        found = {metric.name: measure_one(metric, part, drawn) for metric in wanted}
        figures[group] = {name: one for name, one in found.items() if one is not None}
    return figures


def by_age_band(
    faces: ScoredFaces,
    names: Sequence[str] | None = None,
    *,
    bands: Sequence[Band] = AGE_BANDS,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    draws: Draws | None = None,
) -> dict[Band, dict[str, Estimate]]:
    """Figures by true age; a range label counts in the band that holds all of it, or in none."""
    place = band_of(faces, bands).astype(object)
    place[place == -1] = None
    found = by_group(faces, place, names, samples=samples, seed=seed, draws=draws)
    return {bands[number]: figures for number, figures in found.items()}
