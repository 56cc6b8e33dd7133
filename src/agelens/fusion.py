"""
Several frames of one person as one calibrated distribution, not as so many independent witnesses.

A face that looks old for its age does so in every frame, so most of the error is shared. With the
correlation rho of the errors of two frames of a person, n frames are worth

    n_eff = n / (1 + (n - 1) rho)

independent ones (the design effect, Kish 1965). The frames' log-probabilities are averaged and
multiplied by n_eff (a logarithmic opinion pool, Genest and Zidek 1986). For normal errors of equal
spread this is exact: the average of n errors has the variance of one divided by n_eff. A plain
product is the case rho = 0 and is far too sure; rho = 1 only averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from agelens.errors import ArgumentError
from agelens.results import AgeDistribution, GenderEstimate

_FLOOR: Final = 1e-7
"""Least probability of an age in a frame: no single frame rules an age out for all others."""
_LEAST_PEOPLE: Final = 2


@dataclass(frozen=True)
class FusedAge:
    """What the frames say together.

    Attributes:
        age: The fused distribution; the abstention when no frame has an estimate.
        frames: Frames that had an estimate.
        effective: How many independent frames they are worth, 0 to ``frames``.
    """

    age: AgeDistribution
    frames: int
    effective: float


def fuse(frames: Sequence[AgeDistribution], *, correlation: float) -> FusedAge:
    """Fuse the calibrated distributions of several frames of one person.

    Their order does not matter. Frames that abstain are left out. The conformal table is kept when
    all frames share one; otherwise ``interval`` is that of the distribution itself.

    Args:
        frames: One distribution a frame.
        correlation: Of the age errors of two frames of a person, 0..1; see
            ``estimate_correlation``.

    Raises:
        ArgumentError: ``correlation`` is outside 0..1.
    """
    if not 0 <= correlation <= 1:
        raise ArgumentError(f"the correlation of frames must be within 0..1, got {correlation}")
    voters = [frame for frame in frames if not frame.abstained]
    if not voters:
        return FusedAge(AgeDistribution.unknown(), 0, 0.0)
    effective = effective_frames(len(voters), correlation)
    if len(voters) == 1:
        return FusedAge(voters[0], 1, effective)
    stacked = np.stack([frame.probabilities for frame in voters]).astype(np.float64)
    # Summed in a fixed order of values, so that the order of the frames changes no last digit.
    logs = np.sort(np.log(np.maximum(stacked, _FLOOR)), axis=0)
    pooled = logs.sum(axis=0) * (effective / len(voters))
    tables = {frame.coverage for frame in voters}
    age = AgeDistribution.from_weights(
        np.exp(pooled - pooled.max()), coverage=tables.pop() if len(tables) == 1 else None
    )
    return FusedAge(age, len(voters), effective)


def fuse_genders(frames: Sequence[GenderEstimate], *, correlation: float) -> GenderEstimate | None:
    """Fuse the calibrated gender estimates of several frames of one person, as ``fuse`` does ages.

    The frames' log-odds are averaged and multiplied by the number of frames they are worth.

    Args:
        frames: One estimate a frame, of one model; their order does not matter.
        correlation: Of the errors of two frames of a person, 0..1.

    Returns:
        The fused estimate with the frames' threshold; None when there is no frame.

    Raises:
        ArgumentError: ``correlation`` is outside 0..1.
    """
    if not 0 <= correlation <= 1:
        raise ArgumentError(f"the correlation of frames must be within 0..1, got {correlation}")
    if len(frames) < 2:
        return frames[0] if frames else None
    shares = np.sort([frame.female_probability for frame in frames])
    shares = np.clip(shares, _FLOOR, 1 - _FLOOR)
    odds = np.log(shares / (1 - shares)).mean() * effective_frames(len(frames), correlation)
    return GenderEstimate(float(1 / (1 + np.exp(-odds))), frames[0].threshold)


def effective_frames(frames: int, correlation: float) -> float:
    """How many independent frames ``frames`` correlated ones are worth.

    Args:
        frames: 1 or more.
        correlation: 0..1.
    """
    return frames / (1 + (frames - 1) * correlation)


def estimate_correlation(errors: ArrayLike, people: ArrayLike) -> float:
    """Correlation of the age errors of two frames of a person, from labelled frames.

    The intraclass correlation ICC(1) of a one-way analysis of variance (Shrout and Fleiss 1979)
    with unequal numbers of frames (Donner 1986). Errors of the whole range of ages shrink towards
    the middle, which counts as shared error: estimate on people near the required age.

    Args:
        errors: (N,) estimated minus true age of each frame, in years.
        people: (N,) who is seen; any labels.

    Returns:
        Within 0..1; a negative estimate is 0.

    Raises:
        ArgumentError: The shapes differ, an error is not finite, there are fewer than two people,
            nobody has two frames, or all errors are the same.
    """
    values, who = np.asarray(errors, np.float64), np.asarray(people)
    if values.ndim != 1 or values.shape != who.shape or not np.isfinite(values).all():
        raise ArgumentError(
            f"need as many finite errors as people, got {values.shape} and {who.shape}"
        )
    _, groups, counts = np.unique(who, return_inverse=True, return_counts=True)
    persons, total = len(counts), len(values)
    if persons < _LEAST_PEOPLE or total == persons:
        raise ArgumentError(
            f"need several frames of several people, got {total} frames of {persons}"
        )
    means = np.bincount(groups, values) / counts
    between = float((counts * (means - values.mean()) ** 2).sum()) / (persons - 1)
    within = float(((values - means[groups]) ** 2).sum()) / (total - persons)
    usual = (total - float((counts**2).sum()) / total) / (persons - 1)
    spread = between + (usual - 1) * within
    if spread <= 0:
        raise ArgumentError("all errors are the same; nothing says how frames differ")
    return float(np.clip((between - within) / spread, 0, 1))


__all__ = ["FusedAge", "effective_frames", "estimate_correlation", "fuse", "fuse_genders"]
