"""
One value a face: error, score, coverage; what every figure is a mean of.

NaN where a value is not defined for a face, for want of a label, of an estimate or of an exact age.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError
from agelens.evaluation.scored import LEVELS, Floats, ScoredFaces
from agelens.results import AGE_COUNT

AGE_BANDS: Final = (
    (0, 2),
    (3, 9),
    (10, 12),
    (13, 17),
    (18, 24),
    (25, 39),
    (40, 59),
    (60, 69),
    (70, 100),
)
"""Bands of true age; the last is open."""
NINE_RANGES: Final = (
    (0, 2),
    (3, 9),
    (10, 19),
    (20, 29),
    (30, 39),
    (40, 49),
    (50, 59),
    (60, 69),
    (70, 100),
)
"""The nine ranges of FairFace (Kärkkäinen and Joo, WACV 2021); the last is open."""

Band = tuple[int, int]
Mask = NDArray[np.bool_]

PIT_LEVELS: Final = np.arange(0.05, 0.96, 0.05)
"""Probabilities at which the calibration of ages is looked at."""

_FLOOR: Final = 1e-12
_OLDEST: Final = AGE_COUNT - 1


def errors(faces: ScoredFaces) -> Floats:
    """(N,) expected age less the true one, in years; exact labels only."""
    return np.where(faces.exact, faces.mean_age - faces.age_min, np.nan)


def absolute_errors(faces: ScoredFaces) -> Floats:
    """(N,) years between expected and true age; exact labels only."""
    return np.abs(errors(faces))


def range_distances(faces: ScoredFaces) -> Floats:
    """(N,) years from the expected age to the nearest age of the label; 0 within a range.

    For an exact label this is the absolute error.
    """
    outside = np.maximum(faces.age_min - faces.mean_age, faces.mean_age - faces.age_max)
    return np.where(faces.has_age, np.maximum(outside, 0), np.nan)


def crps(faces: ScoredFaces) -> Floats:
    """(N,) continuous ranked probability score in years; exact labels only.

    The sum of (F(k) - 1[true <= k])² over the ages k (Gneiting and Raftery, JASA 2007): 0 for a
    certain and right answer, the absolute error for a certain one.
    """
    upto = faces.age.cumsum(axis=1)
    reached = np.arange(AGE_COUNT) >= faces.age_min[:, None]
    return np.where(faces.exact, ((upto - reached) ** 2).sum(axis=1), np.nan)


def negative_log_likelihoods(faces: ScoredFaces) -> Floats:
    """(N,) -log P(the label's ages); for a range the censored likelihood."""
    _, mass = _label_mass(faces)
    return np.where(faces.has_age, -np.log(np.maximum(mass, _FLOOR)), np.nan)


def covered(faces: ScoredFaces, level: float = 0.9) -> Floats:
    """(N,) whether the interval of this level holds the true age.

    0 or 1 for an exact label. A range does not say where in it the age is: the value is then the
    share of the label's probability, as the model has it, that lies in the interval, which is the
    expectation of drawing the age inside the label from the model (``calibration.draw_ages``).

    Raises:
        ArgumentError: The level is not one of ``scored.LEVELS``.
    """
    low, high = _interval(faces, level)
    first, last = _label_ages(faces)
    start, end = np.maximum(low, first), np.minimum(high, last)
    upto, mass = _label_mass(faces)
    rows = np.arange(len(faces))
    shared = np.where(end >= start, upto[rows, end + 1] - upto[rows, start], 0.0)
    even = np.maximum(end - start + 1, 0) / (last - first + 1)
    expected = np.where(mass > _FLOOR, shared / np.maximum(mass, _FLOOR), even)
    inside = ((low <= first) & (first <= high)).astype(np.float64)
    values = np.where(faces.age_min == faces.age_max, inside, np.clip(expected, 0, 1))
    return np.where(faces.has_age, values, np.nan)


def interval_widths(faces: ScoredFaces, level: float = 0.9) -> Floats:
    """(N,) years from the lower to the upper end of the interval of this level.

    Raises:
        ArgumentError: The level is not one of ``scored.LEVELS``.
    """
    low, high = _interval(faces, level)
    return np.where(faces.has_age, (high - low).astype(np.float64), np.nan)


def in_range(faces: ScoredFaces) -> Floats:
    """(N,) whether the rounded expected age is an age of the label; ranges only."""
    return np.where(_has_range(faces), _is_within(faces, faces.age_min, faces.age_max), np.nan)


def near_range(faces: ScoredFaces) -> Floats:
    """(N,) whether the rounded expected age is in the label or the range before or after it.

    The ranges are those of the data set; where they overlap there are no neighbours.
    """
    values = np.full(len(faces), np.nan)
    for name, ranges in label_ranges(faces).items():
        starts = np.array([low for low, _ in ranges])
        ends = np.array([high for _, high in ranges])
        if (starts[1:] <= ends[:-1]).any():
            continue
        rows = np.flatnonzero(_has_range(faces) & (faces.dataset == name))
        place = np.searchsorted(starts, faces.age_min[rows])
        low = starts[np.maximum(place - 1, 0)]
        high = ends[np.minimum(place + 1, len(ends) - 1)]
        values[rows] = _is_within(faces.take(rows), low, high)
    return values


def nine_range_steps(faces: ScoredFaces) -> Floats:
    """(N,) ranges of ``NINE_RANGES`` between the rounded expected age and the label.

    For exact labels and for ranges that lie in one of the nine.
    """
    true = band_of(faces, NINE_RANGES)
    ends = np.array([high for _, high in NINE_RANGES])
    rounded = np.clip(np.rint(np.nan_to_num(faces.mean_age)), 0, _OLDEST)
    said = np.searchsorted(ends, rounded)
    return np.where(faces.has_age & (true >= 0), np.abs(said - true).astype(np.float64), np.nan)


def gender_right(faces: ScoredFaces) -> Floats:
    """(N,) whether the likelier gender is that of the label."""
    right = (faces.female > 0.5) == (faces.female_label == 1)
    return np.where(faces.has_gender, right.astype(np.float64), np.nan)


def gender_said(faces: ScoredFaces) -> Floats:
    """(N,) whether the estimate has a label at all, and is not "uncertain"."""
    likelier = np.maximum(faces.female, 1 - faces.female)
    said = (likelier >= faces.gender_threshold) & (faces.female != 0.5)
    return np.where(faces.has_gender, said.astype(np.float64), np.nan)


def gender_right_when_said(faces: ScoredFaces) -> Floats:
    """(N,) whether the label is right, for faces that are not "uncertain"."""
    return np.where(gender_said(faces) == 1, gender_right(faces), np.nan)


def gender_squared_errors(faces: ScoredFaces) -> Floats:
    """(N,) squared error of P(female): the Brier score of each face."""
    return np.where(faces.has_gender, (faces.female - faces.female_label) ** 2, np.nan)


def over_label(faces: ScoredFaces, age: int) -> Floats:
    """(N,) 1 where the label is this age or more, 0 where it is less, NaN where it may be both."""
    values = np.where(faces.age_min >= age, 1.0, np.where(faces.age_max < age, 0.0, np.nan))
    return np.where(faces.has_age, values, np.nan)


def probability_over(faces: ScoredFaces, age: int) -> Floats:
    """(N,) P(true age >= ``age``), as the model has it."""
    return np.asarray(np.clip(faces.age[:, max(age, 0) :].sum(axis=1), 0, 1))


def over_squared_errors(faces: ScoredFaces, age: int) -> Floats:
    """(N,) squared error of P(true age >= ``age``)."""
    return np.asarray((probability_over(faces, age) - over_label(faces, age)) ** 2)


def pit(faces: ScoredFaces, levels: Floats = PIT_LEVELS) -> Floats:
    """Probability integral transform of each label, as a distribution function at these levels.

    The non-randomised form for discrete distributions (Czado, Gneiting and Held, Biometrics 2009):
    uniform between the model's P(age < label) and P(age <= label). A range spans from its first
    to its last age: drawing the age inside it from the model gives the same. Over the faces of a
    calibrated model the mean at each level is that level.

    Returns:
        (N, len(levels)); NaN rows where there is no label or no estimate.
    """
    first, last = _label_ages(faces)
    upto, _ = _label_mass(faces)
    rows = np.arange(len(faces))
    before, through = upto[rows, first][:, None], upto[rows, last + 1][:, None]
    values = np.clip((levels - before) / np.maximum(through - before, _FLOOR), 0, 1)
    return np.where(faces.has_age[:, None], values, np.nan)


def _label_ages(faces: ScoredFaces) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First and last age of each label as columns of the distribution; 0 where there is none."""
    return (
        np.clip(faces.age_min, 0, _OLDEST).astype(np.intp),
        np.clip(faces.age_max, 0, _OLDEST).astype(np.intp),
    )


def _label_mass(faces: ScoredFaces) -> tuple[Floats, Floats]:
    """(N, 102) probability of less than each age, and (N,) that of the label's ages."""
    upto = np.pad(faces.age.cumsum(axis=1), ((0, 0), (1, 0)))
    first, last = _label_ages(faces)
    rows = np.arange(len(faces))
    return upto, upto[rows, last + 1] - upto[rows, first]


def _interval(faces: ScoredFaces, level: float) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    if level not in LEVELS:
        raise ArgumentError(f"intervals are kept at the levels {LEVELS}, not at {level}")
    column = LEVELS.index(level)
    return faces.interval_low[:, column], faces.interval_high[:, column]


def _has_range(faces: ScoredFaces) -> Mask:
    return faces.has_age & (faces.age_min < faces.age_max)


def _is_within(faces: ScoredFaces, low: NDArray[Any], high: NDArray[Any]) -> Floats:
    rounded = np.rint(faces.mean_age)
    return ((rounded >= low) & (rounded <= high)).astype(np.float64)


def label_ranges(faces: ScoredFaces) -> dict[str, list[Band]]:
    """The ranges that the labels of each data set come in, rising, where there are any."""
    held = _has_range(faces)
    return {
        str(name): sorted(
            set(
                zip(
                    faces.age_min[held & (faces.dataset == name)].tolist(),
                    faces.age_max[held & (faces.dataset == name)].tolist(),
                    strict=True,
                )
            )
        )
        for name in sorted(set(faces.dataset[held].tolist()))
    }


def band_of(faces: ScoredFaces, bands: Sequence[Band] = AGE_BANDS) -> NDArray[np.intp]:
    """(N,) place of the band that holds the whole label, or -1; the last band is open."""
    place = np.full(len(faces), -1, np.intp)
    for number, (low, high) in enumerate(bands):
        most = np.inf if number == len(bands) - 1 else high
        place[(faces.age_min >= low) & (faces.age_max <= most)] = number
    return place


def spread(faces: ScoredFaces) -> Floats:
    """(N,) standard deviation of each age distribution in years."""
    ages = np.arange(AGE_COUNT, dtype=np.float64)
    second = faces.age @ ages**2
    return np.sqrt(np.maximum(second - faces.mean_age**2, 0))


def quality_order(faces: ScoredFaces) -> Floats:
    """(N,) 0..1, higher for better pictures: the mean rank over the measures of quality.

    Larger, sharper, nearer to medium light, and turned less are better; a measure that a face does
    not have counts as the middle.
    """
    quality = {name: np.asarray(column, np.float64) for name, column in faces.quality.items()}
    better = (
        quality["size_px"],
        quality["sharpness"],
        -np.abs(quality["exposure"] - 0.5),
        -np.abs(quality["yaw"]),
        -np.abs(quality["pitch"]),
    )
    ranks = []
    for values in better:
        there = ~np.isnan(values)
        rank = np.full(len(faces), 0.5)
        if there.sum() > 1:
            _, place = np.unique(values[there], return_inverse=True)
            rank[there] = place / max(1, place.max())
        ranks.append(rank)
    return np.asarray(np.mean(ranks, axis=0))
