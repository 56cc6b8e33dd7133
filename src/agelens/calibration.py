"""
From raw outputs to probabilities that mean what they say.

``decode_*`` turn each kind of output into ages 0..100 and P(female); ``calibrate_*`` apply what the
card has fitted (temperature, smoothing, conformal tables); ``fit_*`` make it from labelled faces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from agelens.bundle import AgeOutput, CalibrationFields, CoverageBand, GenderOutput, ModelCard
from agelens.conformal import (
    AGE_BAND_STARTS,
    CONFIDENCE,
    KNOTS,
    MEAN_BAND_STARTS,
    MIN_BAND_FACES,
    MIN_FACES,
    TablePlan,
    fit_tables,
    joined_starts,
    place_in,
)
from agelens.errors import ArgumentError, ModelError
from agelens.estimation import RawOutputs
from agelens.results import (
    AGE_COUNT,
    AgeDistribution,
    Coverage,
    GenderEstimate,
    age_group_starts,
    normal_masses,
)

Floats = NDArray[np.float64]

_UNCALIBRATED: Final = CalibrationFields()

_ROUNDING: Final = 1e-2
"""How far probabilities of a graph, perhaps in half precision, may be off."""
_FLOOR: Final = 1e-7
"""Least probability of an age: no single face rules an age out."""


# --- decode ---------------------------------------------------------------------------------------


def decode_age(raw: NDArray[np.floating], output: AgeOutput) -> Floats:
    """Turn an age output into probabilities of the ages.

    Args:
        raw: (N, K), as the network gave it.
        output: What it is, from the card.

    Returns:
        (N, 101) float64, rows sum to 1.

    Raises:
        ModelError: The number of columns does not fit the kind.
    """
    values = np.asarray(raw, np.float64)
    if output.kind == "distribution":
        return _from_classes(_as_probabilities(values, output.activation), output.tail_years)
    if output.kind == "ranges":
        starts = age_group_starts(output.starts or ())
        if values.shape[1] != len(starts):
            raise ModelError(f"{values.shape[1]} classes for {len(starts)} age ranges")
        return _from_ranges(_as_probabilities(values, output.activation), starts)
    if output.kind == "ordinal":
        return _from_ordinal(_as_sigmoid(values, output.activation))
    return _from_regression(values, output.std)


def decode_gender(raw: NDArray[np.floating], output: GenderOutput) -> Floats:
    """Turn a gender output into P(female).

    Args:
        raw: (N, 1) or (N, 2), as the network gave it.
        output: What it is, from the card.

    Returns:
        (N,) float64 within 0..1.

    Raises:
        ModelError: It has more than two columns.
    """
    values = np.asarray(raw, np.float64)
    if values.shape[1] == 1:
        return _as_sigmoid(values[:, 0], output.activation)
    if values.shape[1] != 2:
        raise ModelError(f"a gender output has one or two columns, got {values.shape[1]}")
    return _as_probabilities(values, output.activation)[:, output.female_index]


def _from_classes(classes: Floats, tail_years: float) -> Floats:
    count = classes.shape[1]
    ages = np.zeros((len(classes), AGE_COUNT))
    ages[:, : min(count, AGE_COUNT)] = classes[:, :AGE_COUNT]
    if count > AGE_COUNT:
        ages[:, -1] += classes[:, AGE_COUNT:].sum(axis=1)
    elif tail_years > 0 and count < AGE_COUNT:
        # "That age or more": spread over the older ages with the stated mean excess.
        excess = np.arange(AGE_COUNT - count + 1)
        tail = (tail_years / (1 + tail_years)) ** excess
        tail[-1] *= 1 + tail_years  # 100 stands for 100 or more
        ages[:, count - 1 :] = classes[:, -1:] * (tail / tail.sum())
    return ages


def _from_ranges(classes: Floats, starts: Sequence[int]) -> Floats:
    ends = [*starts[1:], AGE_COUNT]
    widths = np.diff([*starts, AGE_COUNT])
    spread = np.zeros((len(starts), AGE_COUNT))
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        spread[row, start:end] = 1 / widths[row]
    result: Floats = classes @ spread
    return result


def _from_ordinal(over: Floats) -> Floats:
    # P(age > k) cannot rise with k; independent binary outputs may break that.
    falling = np.minimum.accumulate(np.clip(over[:, : AGE_COUNT - 1], 0, 1), axis=1)
    padded = np.concatenate([np.ones((len(over), 1)), falling], axis=1)
    ages = np.zeros((len(over), AGE_COUNT))
    ages[:, : padded.shape[1]] = padded
    ages[:, : padded.shape[1] - 1] -= padded[:, 1:]
    return ages


def _from_regression(values: Floats, std: float | None) -> Floats:
    if values.shape[1] == 2:
        spread = np.exp(np.clip(values[:, 1], -10, 10) / 2)
    elif values.shape[1] == 1 and std is not None:
        spread = np.full(len(values), std)
    else:
        raise ModelError(
            f"a regression output has (mean, log-variance), or a mean and the card's 'std'; got "
            f"{values.shape[1]} columns"
        )
    return normal_masses(np.clip(values[:, 0], 0, AGE_COUNT - 1), np.maximum(spread, 0.3))


def _as_probabilities(values: Floats, activation: str) -> Floats:
    if activation == "none":
        values = np.exp(values - values.max(axis=1, keepdims=True))
    else:
        sums = values.sum(axis=1)
        wrong = np.flatnonzero((values.min(axis=1) < -_ROUNDING) | (np.abs(sums - 1) > _ROUNDING))
        if len(wrong):
            raise ModelError(
                f"the card states a {activation} output, but its row {wrong[0]} has the minimum "
                f"{values[wrong[0]].min():.3g} and the sum {sums[wrong[0]]:.3g}"
            )
        values = np.clip(values, 0, None)
    result: Floats = values / values.sum(axis=1, keepdims=True)
    return result


def _as_sigmoid(values: Floats, activation: str) -> Floats:
    if activation == "none":
        return _sigmoid(values)
    if values.size and (values.min() < -_ROUNDING or values.max() > 1 + _ROUNDING):
        raise ModelError(
            f"the card states a {activation} output, but it reaches from {values.min():.3g} to "
            f"{values.max():.3g}"
        )
    return np.clip(values, 0, 1)


def _sigmoid(values: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(values / 2))


# --- apply ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibrator:
    """Raw outputs of one model to its calibrated results.

    Attributes:
        age: The card's age output.
        gender: The card's gender output, or None.
        fields: What was fitted.
    """

    age: AgeOutput
    gender: GenderOutput | None
    fields: CalibrationFields = _UNCALIBRATED

    @classmethod
    def from_card(cls, card: ModelCard) -> Calibrator:
        """The calibrator that a model's card describes."""
        return cls(card.age, card.gender, card.calibration)

    def ages(self, raw: RawOutputs) -> list[AgeDistribution]:
        """One calibrated distribution a row."""
        return distributions(calibrate_age(decode_age(raw.age, self.age), self.fields), self.fields)

    def genders(self, raw: RawOutputs) -> list[GenderEstimate] | None:
        """One calibrated estimate a row, or None when the model has no gender output."""
        if raw.gender is None or self.gender is None:
            return None
        female = calibrate_gender(decode_gender(raw.gender, self.gender), self.fields)
        threshold = self.fields.gender_threshold
        return [GenderEstimate(float(value), threshold) for value in female]


def distributions(calibrated: Floats, fields: CalibrationFields) -> list[AgeDistribution]:
    """Calibrated probabilities (N, 101) as results, each with the conformal table of its band."""
    means = calibrated @ np.arange(AGE_COUNT)
    return [
        AgeDistribution(row.astype(np.float32), coverage=_coverage(mean, fields.coverage))
        for row, mean in zip(calibrated, means, strict=True)
    ]


def calibrate_age(probabilities: Floats, fields: CalibrationFields) -> Floats:
    """Temperature, then smoothing.

    Temperature scaling is that of Guo et al. (ICML 2017), on log-probabilities. The smoothing adds
    an error of the stated standard deviation that may grow with age.

    Args:
        probabilities: (N, 101), rows sum to 1.
        fields: What was fitted.

    Returns:
        (N, 101) float64, rows sum to 1.
    """
    log = np.log(np.maximum(probabilities, _FLOOR)) / fields.age_temperature
    scaled = np.exp(log - log.max(axis=1, keepdims=True))
    scaled /= scaled.sum(axis=1, keepdims=True)
    if fields.age_smoothing != (0.0, 0.0):
        scaled = scaled @ _kernel(*fields.age_smoothing)
    result: Floats = scaled / scaled.sum(axis=1, keepdims=True)
    return result


def calibrate_gender(female: Floats, fields: CalibrationFields) -> Floats:
    """Temperature and bias on the logit.

    Args:
        female: (N,) P(female).
        fields: What was fitted.

    Returns:
        (N,) float64 within 0..1.
    """
    inside = np.clip(female, 1e-6, 1 - 1e-6)
    logit = np.log(inside / (1 - inside))
    return _sigmoid(logit / fields.gender_temperature + fields.gender_bias)


@cache
def _kernel(at_zero: float, a_year: float) -> Floats:
    """(101, 101) rows: where the mass of an age goes. Read-only."""
    ages = np.arange(AGE_COUNT, dtype=np.float64)
    kernel = normal_masses(ages, np.maximum(at_zero + a_year * ages, 1e-3))
    kernel.setflags(write=False)
    return kernel


def _coverage(mean: float, bands: Sequence[CoverageBand]) -> Coverage | None:
    if not bands:
        return None
    nearest = min(bands, key=lambda band: max(band.low - mean, mean - band.high, 0.0))
    inside = (band for band in bands if band.low <= mean < band.high)
    return next(inside, nearest).table()


# --- fit ------------------------------------------------------------------------------------------

_TEMPERATURES: Final = tuple(np.round(np.geomspace(0.5, 4.0, 19), 4).tolist())
_SMOOTHING_AT_ZERO: Final = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
_SMOOTHING_A_YEAR: Final = tuple(round(0.02 * step, 2) for step in range(11))
_ROWS_AT_ONCE: Final = 4096
_ROWS_FOR_SHAPE: Final = 20_000
_OLDEST: Final = 130
Criterion = Literal["nll", "crps"]


def fit_age(
    probabilities: Floats,
    age_min: NDArray[np.integer],
    age_max: NDArray[np.integer],
    *,
    groups: NDArray[Any] | None = None,
    criterion: Criterion = "nll",
    age_bands: Sequence[int] = AGE_BAND_STARTS,
    mean_bands: Sequence[int] = MEAN_BAND_STARTS,
    levels: Sequence[float] = KNOTS,
    min_rows: int = MIN_FACES,
    min_band: int = MIN_BAND_FACES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    data: str = "",
) -> CalibrationFields:
    """Fit temperature and smoothing by a censored score, then the conformal tables.

    The score counts bands of true age by the square root of their size, so that neither the many
    adults nor a few babies decide alone; the tables are those of ``conformal.fit_tables``.

    Args:
        probabilities: (N, 101) decoded and uncalibrated.
        age_min: (N,) least age of each label, in completed years.
        age_max: (N,) greatest age of each label; equal to ``age_min`` when exact.
        groups: (N,) any labels, None for faces without one. Groups of ``min_rows`` faces or more
            are then held at the level each, at the price of wider intervals for all, and count
            in the temperature by the square root of their size.
        criterion: What temperature and smoothing are fitted by: "nll", minus the logarithm of the
            label's probability, or "crps", the squared distance of the cumulative probabilities
            from the label's, outside of a range.
        age_bands: Starts of the bands of true age; neighbours with fewer than ``min_band`` faces
            are joined.
        mean_bands: Starts of the bands of predicted mean age; those with fewer than ``min_rows``
            faces take the rate of all.
        levels: Nominal levels of the tables, from 0 to 1.
        min_rows: Fewest faces for a fit.
        min_band: Fewest faces for a threshold.
        confidence: Probability that new faces are held at the level or more; 0.5 adds no margin.
        seed: Of the folds.
        data: What it is fitted on, for the card.

    Raises:
        ArgumentError: Shapes differ, a label is impossible, there are fewer than ``min_rows``, or
            ``confidence`` is not within 0.5 to under 1.
    """
    if not 0.5 <= confidence < 1:
        raise ArgumentError(f"confidence is 0.5 to under 1, got {confidence}")
    low, high = _checked_labels(probabilities, age_min, age_max, min_rows)
    cells = _group_numbers(groups, len(low))
    weights = _balanced_weights((low + high) // 2, cells, age_bands)
    shape = _best_shape(probabilities, low, high, weights, criterion)
    plan = TablePlan(
        tuple(age_bands), tuple(mean_bands), tuple(levels), min_rows, min_band, confidence, seed
    )
    coverage = fit_tables(calibrate_age(probabilities, shape), low, high, cells, plan)
    return shape.model_copy(update={"coverage": coverage, "data": data})


def _group_numbers(groups: NDArray[Any] | None, count: int) -> NDArray[np.intp]:
    """(N,) number of each face's group, -1 for a face without one."""
    if groups is None:
        return np.zeros(count, np.intp)
    if len(groups) != count:
        raise ArgumentError(f"{count} rows and {len(groups)} groups")
    known = np.array([group is not None for group in groups], bool)
    numbers = np.full(count, -1, np.intp)
    if known.any():
        numbers[known] = np.unique(np.asarray(groups[known], str), return_inverse=True)[1]
    return numbers


def _balanced_weights(
    ages: NDArray[np.intp], groups: NDArray[np.intp], age_bands: Sequence[int]
) -> Floats:
    """(N,) one over the root of the size of each face's cell of age band and group; mean 1.

    A calibration set has its own mix of ages; half-way between that mix and an even one, neither
    the many adults nor a few babies decide alone (as in training, ``data.loading``).
    """
    cells = place_in(ages, joined_starts(age_bands, ages, np.ones(len(ages)), MIN_BAND_FACES))
    cells = cells + (groups + 1) * AGE_COUNT
    _, numbers, sizes = np.unique(cells, return_inverse=True, return_counts=True)
    weights = 1 / np.sqrt(sizes[numbers].astype(np.float64))
    return np.asarray(weights / weights.mean())


def _best_shape(
    probabilities: Floats,
    low: NDArray[np.intp],
    high: NDArray[np.intp],
    weights: Floats,
    criterion: Criterion,
) -> CalibrationFields:
    """Temperature and smoothing with the least weighted score: a coarse grid, then around it."""
    rows = np.unique(np.linspace(0, len(low) - 1, min(len(low), _ROWS_FOR_SHAPE)).astype(np.intp))
    scores = partial(
        _label_scores, probabilities[rows], low[rows], high[rows], weights[rows], criterion
    )
    axes = (_TEMPERATURES, _SMOOTHING_AT_ZERO, _SMOOTHING_A_YEAR)
    at = _least(scores(*(axis[::2] for axis in axes)))
    near = [range(max(2 * i - 2, 0), min(2 * i + 3, len(a))) for i, a in zip(at, axes, strict=True)]
    at = _least(scores(*([axis[i] for i in span] for axis, span in zip(axes, near, strict=True))))
    temperature, at_zero, a_year = (
        axis[span[i]] for axis, span, i in zip(axes, near, at, strict=True)
    )
    return CalibrationFields(age_temperature=temperature, age_smoothing=(at_zero, a_year))


def _least(scores: Floats) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(scores.argmin(), scores.shape))


def _label_scores(
    probabilities: Floats,
    low: NDArray[np.intp],
    high: NDArray[np.intp],
    weights: Floats,
    criterion: Criterion,
    temperatures: Sequence[float],
    at_zeros: Sequence[float],
    a_years: Sequence[float],
) -> Floats:
    """Weighted sum of the labels' scores for every combination: (T, Z, Y)."""
    scores = np.zeros((len(temperatures), len(at_zeros), len(a_years)))
    for start in range(0, len(probabilities), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        tempered = [
            calibrate_age(probabilities[part], CalibrationFields(age_temperature=t))
            for t in temperatures
        ]
        for z, at_zero in enumerate(at_zeros):
            for y, a_year in enumerate(a_years):
                score = _kernel_score(_kernel(at_zero, a_year), low[part], high[part], criterion)
                for t, ages in enumerate(tempered):
                    scores[t, z, y] += float(weights[part] @ score(ages))
    return scores


def _kernel_score(
    kernel: Floats, low: NDArray[np.intp], high: NDArray[np.intp], criterion: Criterion
) -> Callable[[Floats], Floats]:
    """How each label scores when its ages are smoothed by a kernel; less is better."""
    upto = np.pad(kernel, ((0, 0), (1, 0))).cumsum(axis=1)
    if criterion == "nll":
        # Smoothing is linear: P(label) is the share of each age's mass that moves into the label.
        into = (upto[:, high + 1] - upto[:, low]).T

        def likelihood(ages: Floats) -> Floats:
            return np.asarray(-np.log(np.maximum((ages * into).sum(axis=1), 1e-12)))

        return likelihood
    steps = np.arange(AGE_COUNT)
    younger, older = steps < low[:, None], steps >= high[:, None]

    def ranked(ages: Floats) -> Floats:
        below = ages @ upto[:, 1:]
        return np.asarray(((below**2) * younger + ((1 - below) ** 2) * older).sum(axis=1))

    return ranked


def fit_gender(
    female: Floats,
    is_female: NDArray[np.bool_],
    *,
    groups: NDArray[Any] | None = None,
    threshold: float = 0.75,
) -> CalibrationFields:
    """Fit temperature and bias of the gender logit by likelihood (Platt 1999).

    Args:
        female: (N,) decoded and uncalibrated P(female).
        is_female: (N,) labels.
        groups: (N,) any labels; each group then counts by the square root of its size.
        threshold: Probability that a label will need.

    Raises:
        ArgumentError: Shapes differ, only one gender is labelled, or a value is no probability.
    """
    labels = np.asarray(is_female, bool)
    if female.shape != labels.shape or labels.all() or not labels.any():
        raise ArgumentError("gender calibration needs labelled faces of both genders")
    wrong = np.flatnonzero(~((female >= 0) & (female <= 1)))
    if len(wrong):
        raise ArgumentError(f"row {wrong[0]}: P(female) {female[wrong[0]]} is not within 0..1")
    _, cells, sizes = np.unique(
        _group_numbers(groups, len(labels)), return_inverse=True, return_counts=True
    )
    weights = 1 / np.sqrt(sizes[cells].astype(np.float64))

    def loss(fields: CalibrationFields) -> float:
        p = np.clip(calibrate_gender(female, fields), 1e-9, 1 - 1e-9)
        return float(-np.average(np.where(labels, np.log(p), np.log(1 - p)), weights=weights))

    return min(
        (
            CalibrationFields(
                gender_temperature=float(t), gender_bias=float(b), gender_threshold=threshold
            )
            for t in np.geomspace(0.5, 6, 41).round(3)
            for b in np.linspace(-1.5, 1.5, 61).round(3)
        ),
        key=loss,
    )


def gender_threshold_for(
    accuracy: float,
    female: Floats,
    is_female: NDArray[np.bool_],
    *,
    groups: NDArray[Any] | None = None,
    min_rows: int = MIN_BAND_FACES,
) -> float:
    """The least threshold over which labels are right at a wanted rate.

    Args:
        accuracy: Wanted share of right labels among those given, 0..1.
        female: (N,) calibrated P(female).
        is_female: (N,) labels.
        groups: (N,) any labels; each group of ``min_rows`` faces or more must then reach the rate.
        min_rows: Fewest labelled faces that a rate is told from.

    Returns:
        A threshold within 0.5..0.99, in hundredths.

    Raises:
        ArgumentError: No threshold reaches the rate.
    """
    likelier, right = np.maximum(female, 1 - female), (female > 0.5) == is_female
    numbers = _group_numbers(groups, len(female))
    members = [np.ones(len(female), bool)]
    members += [numbers == group for group in np.unique(numbers[numbers >= 0])]
    members = [own for own in members if own.sum() >= min_rows]
    best = 0.0
    for threshold in np.arange(50, 100) / 100:
        said = [own & (likelier >= threshold) for own in members]
        if not said or any(own.sum() < min_rows for own in said):
            break
        worst = min(float(right[own].mean()) for own in said)
        if worst >= accuracy:
            return float(threshold)
        best = max(best, worst)
    raise ArgumentError(
        f"no gender threshold makes {accuracy:.0%} of the labels right with {min_rows} or more of "
        f"them left; the best is {best:.1%}. Ask for less, or set the threshold itself"
    )


def censored_nll(
    probabilities: Floats, age_min: NDArray[np.integer], age_max: NDArray[np.integer]
) -> float:
    """Mean of -log P(age_min <= age <= age_max) over the rows."""
    upto = np.concatenate([np.zeros((len(probabilities), 1)), probabilities.cumsum(axis=1)], axis=1)
    rows = np.arange(len(probabilities))
    inside = upto[rows, np.asarray(age_max) + 1] - upto[rows, np.asarray(age_min)]
    return float(-np.mean(np.log(np.maximum(inside, 1e-12))))


def draw_ages(
    probabilities: Floats,
    age_min: NDArray[np.integer],
    age_max: NDArray[np.integer],
    *,
    seed: int = 0,
) -> NDArray[np.intp]:
    """An age for each label: exact ones as they are, interval ones drawn from the model inside."""
    ages = np.arange(AGE_COUNT)
    inside = (ages >= age_min[:, None]) & (ages <= age_max[:, None])
    weights = np.where(inside, np.maximum(probabilities, 1e-12), 0)
    upto = weights.cumsum(axis=1)
    mark = np.random.default_rng(seed).uniform(0, 1, len(upto)) * upto[:, -1]
    drawn = (upto < mark[:, None]).sum(axis=1)
    return np.asarray(np.clip(drawn, age_min, age_max), np.intp)


def _checked_labels(
    probabilities: Floats,
    age_min: NDArray[np.integer],
    age_max: NDArray[np.integer],
    min_rows: int,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    if probabilities.ndim != 2 or probabilities.shape[1] != AGE_COUNT:
        raise ArgumentError(f"probabilities must be (N, {AGE_COUNT}), got {probabilities.shape}")
    sums = probabilities.sum(axis=1)
    bad = np.flatnonzero(~((np.abs(sums - 1) <= _ROUNDING) & (probabilities.min(axis=1) >= 0)))
    if len(bad):
        raise ArgumentError(f"row {bad[0]} of the probabilities is no distribution")
    for name, labels in (("age_min", np.asarray(age_min)), ("age_max", np.asarray(age_max))):
        odd = np.flatnonzero((labels < 0) | (labels > _OLDEST))
        if len(odd):
            raise ArgumentError(f"row {odd[0]}: {name} {labels[odd[0]]} is not within 0..{_OLDEST}")
    low = np.minimum(np.asarray(age_min), AGE_COUNT - 1).astype(np.intp)
    high = np.minimum(np.asarray(age_max), AGE_COUNT - 1).astype(np.intp)
    if low.shape != (len(probabilities),) or high.shape != low.shape:
        raise ArgumentError(f"{len(probabilities)} rows, {low.shape} and {high.shape} labels")
    wrong = np.flatnonzero(high < low)
    if len(wrong):
        raise ArgumentError(f"row {wrong[0]}: age_max {high[wrong[0]]} is under age_min")
    if len(low) < min_rows:
        raise ArgumentError(f"calibration needs {min_rows} faces or more, got {len(low)}")
    return low, high
