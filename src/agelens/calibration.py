"""
From raw outputs to probabilities that mean what they say.

``decode_*`` turn each kind of output into ages 0..100 and P(female); ``calibrate_*`` apply what the
card has fitted (temperature, smoothing, conformal tables); ``fit_*`` make it from labelled faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agelens.bundle import AgeOutput, CalibrationFields, CoverageBand, GenderOutput, ModelCard
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
        probabilities = calibrate_age(decode_age(raw.age, self.age), self.fields)
        means = probabilities @ np.arange(AGE_COUNT)
        return [
            AgeDistribution(row.astype(np.float32), coverage=_coverage(mean, self.fields.coverage))
            for row, mean in zip(probabilities, means, strict=True)
        ]

    def genders(self, raw: RawOutputs) -> list[GenderEstimate] | None:
        """One calibrated estimate a row, or None when the model has no gender output."""
        if raw.gender is None or self.gender is None:
            return None
        female = calibrate_gender(decode_gender(raw.gender, self.gender), self.fields)
        threshold = self.fields.gender_threshold
        return [GenderEstimate(float(value), threshold) for value in female]


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
_SMOOTHING_AT_ZERO: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
_SMOOTHING_A_YEAR: Final = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2)
_LEVELS: Final = (0.0, 0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0)
_ROWS_AT_ONCE: Final = 4096
_OLDEST: Final = 130
DEFAULT_BANDS: Final = (0, 10, 20, 30, 45, 60)


def fit_age(
    probabilities: Floats,
    age_min: NDArray[np.integer],
    age_max: NDArray[np.integer],
    *,
    bands: Sequence[int] = DEFAULT_BANDS,
    min_rows: int = 100,
    seed: int = 0,
    data: str = "",
) -> CalibrationFields:
    """Fit temperature and smoothing by censored likelihood, then the conformal tables.

    Args:
        probabilities: (N, 101) decoded and uncalibrated.
        age_min: (N,) least age of each label, in completed years.
        age_max: (N,) greatest age of each label; equal to ``age_min`` when exact.
        bands: Starts of the bands of predicted mean age that get a table of their own
            (Mondrian conformal prediction, Vovk et al. 2005).
        min_rows: Bands with fewer rows share the table of all.
        seed: For the age that is drawn inside an interval label.
        data: What it is fitted on, for the card.

    Raises:
        ArgumentError: Shapes differ, a label is impossible, or there are fewer than ``min_rows``.
    """
    low, high = _checked_labels(probabilities, age_min, age_max, min_rows)
    best = _likeliest(probabilities, low, high)
    calibrated = calibrate_age(probabilities, best)
    needed = masses_needed(calibrated, draw_ages(calibrated, low, high, seed=seed))
    means = calibrated @ np.arange(AGE_COUNT)
    everyone = conformal_table(needed)
    tables = []
    for start, end in zip(bands, [*bands[1:], AGE_COUNT], strict=True):
        inside = needed[(means >= start) & (means < end)]
        table = conformal_table(inside) if len(inside) >= min_rows else everyone
        tables.append(CoverageBand(low=start, high=end, levels=table.levels, masses=table.masses))
    return best.model_copy(update={"coverage": tuple(tables), "data": data})


def _likeliest(
    probabilities: Floats, low: NDArray[np.intp], high: NDArray[np.intp]
) -> CalibrationFields:
    """The temperature and smoothing of the grid with the least censored negative log-likelihood."""
    smoothings = [(s0, s1) for s0 in _SMOOTHING_AT_ZERO for s1 in _SMOOTHING_A_YEAR]
    # Smoothing is linear, so P(label) under each kernel is one product with the tempered ages:
    # the share of each age's mass that the kernel moves into the label.
    upto = [np.pad(_kernel(*s), ((0, 0), (1, 0))).cumsum(axis=1) for s in smoothings]
    losses = np.zeros((len(_TEMPERATURES), len(smoothings)))
    for start in range(0, len(probabilities), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        tempered = [
            calibrate_age(probabilities[rows], CalibrationFields(age_temperature=t))
            for t in _TEMPERATURES
        ]
        for column, moved in enumerate(upto):
            into = (moved[:, high[rows] + 1] - moved[:, low[rows]]).T
            for row, ages in enumerate(tempered):
                inside = np.maximum((ages * into).sum(axis=1), 1e-12)
                losses[row, column] -= float(np.log(inside).sum())
    row, column = divmod(int(losses.argmin()), len(smoothings))
    return CalibrationFields(age_temperature=_TEMPERATURES[row], age_smoothing=smoothings[column])


def fit_gender(
    female: Floats, is_female: NDArray[np.bool_], *, threshold: float = 0.75
) -> CalibrationFields:
    """Fit temperature and bias of the gender logit by likelihood (Platt 1999).

    Args:
        female: (N,) decoded and uncalibrated P(female).
        is_female: (N,) labels.
        threshold: Probability that a label will need.

    Raises:
        ArgumentError: Shapes differ, or only one gender is labelled.
    """
    labels = np.asarray(is_female, bool)
    if female.shape != labels.shape or labels.all() or not labels.any():
        raise ArgumentError("gender calibration needs labelled faces of both genders")

    def loss(fields: CalibrationFields) -> float:
        p = np.clip(calibrate_gender(female, fields), 1e-9, 1 - 1e-9)
        return float(-np.mean(np.where(labels, np.log(p), np.log(1 - p))))

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


def masses_needed(probabilities: Floats, ages: NDArray[np.integer]) -> Floats:
    """Central mass at which ``AgeDistribution.interval`` begins to contain each true age: (N,)."""
    upto = probabilities.cumsum(axis=1)
    rows = np.arange(len(ages))
    at = upto[rows, ages]
    before = np.where(ages > 0, upto[rows, np.maximum(np.asarray(ages) - 1, 0)], 0)
    needed: Floats = np.clip(np.maximum(1 - 2 * at, 2 * before - 1), 0, 1)
    return needed


def conformal_table(needed: Floats, levels: Sequence[float] = _LEVELS) -> Coverage:
    """Central mass for each level: the split-conformal quantile of ``masses_needed``.

    Args:
        needed: (N,) from calibration faces.
        levels: Nominal levels from 0 to 1.
    """
    ordered = np.sort(needed)
    count = len(ordered)
    masses = []
    for level in levels:
        rank = int(np.ceil((count + 1) * level))
        masses.append(1.0 if rank > count else float(ordered[rank - 1]) if rank > 0 else 0.0)
    # A mass just over what is needed: at equality the true age is still outside.
    nudged = [min(1.0, mass + 1e-6) if 0 < mass < 1 else mass for mass in masses]
    return Coverage(tuple(levels), tuple(float(v) for v in np.maximum.accumulate(nudged)))


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
