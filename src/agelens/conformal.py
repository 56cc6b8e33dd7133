"""
Conformal prediction of ages: from faces with labels to intervals that hold their level.

    fit_tables       the tables of a card, by band of predicted and of true age
    conformal_table  one table: the split-conformal quantiles
    masses_needed    the central mass at which an interval begins to hold an age

An interval reaches as far as the distribution's own quantiles, and a table says how far that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agelens.bundle import CoverageBand, OlderMasses
from agelens.results import AGE_COUNT, Coverage, age_group_starts

Floats = NDArray[np.float64]

KNOTS: Final = (0.0, 0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0)
"""Nominal levels that a table holds a mass for."""
_FOLDS: Final = 20
_RATES: Final[Floats] = np.concatenate(
    [np.arange(0.01, 0.8, 0.01), np.arange(0.8, 0.98, 0.002), np.arange(0.98, 0.9999, 0.0005)]
)
"""Rates at which the bands of ages are tried together."""
_MASS_DIGITS: Final = 4

AGE_BAND_STARTS: Final = (0, 3, 10, 20, 30, 40, 50, 60, 70)
"""Starts of the bands of true age that are held at one rate."""
MEAN_BAND_STARTS: Final = (0, 10, 30, 50)
"""Starts of the bands of predicted mean age that are held at their level each."""
CONFIDENCE: Final = 0.9
"""Probability, over the faces of a fit, that new faces of their kind are held at least so often."""
MIN_FACES: Final = 100
MIN_BAND_FACES: Final = 30


def masses_needed(probabilities: Floats, ages: NDArray[np.integer]) -> Floats:
    """Central mass at which ``AgeDistribution.interval`` begins to contain each true age: (N,)."""
    return np.asarray(_entering(probabilities)[np.arange(len(ages)), ages])


def _entering(probabilities: Floats) -> Floats:
    """(N, 101) central mass at which each age begins to be contained."""
    upto = probabilities.cumsum(axis=1)
    before = np.pad(upto[:, :-1], ((0, 0), (1, 0)))
    entering: Floats = np.clip(np.maximum(1 - 2 * upto, 2 * before - 1), 0, 1)
    return entering


def conformal_table(needed: Floats, levels: Sequence[float] = KNOTS) -> Coverage:
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


@dataclass(frozen=True, eq=False)
class _LabelAges:
    """The ages that labels allow, each with its share: those of one face add up to 1.

    Attributes:
        rows: (P,) the face.
        ages: (P,) the age.
        shares: (P,) 1 for an exact label; within a range, the model's probability of the age.
    """

    rows: NDArray[np.intp]
    ages: NDArray[np.intp]
    shares: Floats

    @classmethod
    def of(cls, probabilities: Floats, low: NDArray[np.intp], high: NDArray[np.intp]) -> _LabelAges:
        widths = high - low + 1
        rows = np.repeat(np.arange(len(low)), widths)
        first = np.repeat(widths.cumsum() - widths, widths)
        ages = low[rows] + np.arange(len(rows)) - first
        mass = np.maximum(probabilities[rows, ages], 1e-12)
        shares = mass / np.bincount(rows, mass)[rows]
        return cls(rows, ages, shares)


@dataclass(frozen=True)
class TablePlan:
    """What tables are wanted.

    Attributes:
        age_bands: Starts of the bands of true age; one with fewer than ``min_band`` faces is joined
            to the one before.
        mean_bands: Starts of the bands of predicted mean age; one with fewer than ``min_rows``
            faces takes the rate of all.
        levels: Nominal levels, from 0 to 1.
        min_rows: Fewest faces of a band or group that is held at its level by itself.
        min_band: Fewest faces for a threshold.
        confidence: Probability that new faces are held at the level or more; see ``fit_tables``.
        seed: Of the folds.
    """

    age_bands: tuple[int, ...]
    mean_bands: tuple[int, ...]
    levels: tuple[float, ...]
    min_rows: int
    min_band: int
    confidence: float
    seed: int


def fit_tables(
    probabilities: Floats,
    low: NDArray[np.intp],
    high: NDArray[np.intp],
    groups: NDArray[np.intp],
    plan: TablePlan,
) -> tuple[CoverageBand, ...]:
    """The conformal tables of a card.

    They answer two questions at once. Of the faces predicted to be in a band of ``mean_bands``, the
    intervals hold the level (Mondrian conformal prediction, Vovk et al. 2005, 4.5). Of the faces
    that truly are in a band of ``age_bands``, they hold about the same rate each: an age belongs
    to the interval when it lies in the central mass of its own band (label-conditional, the same
    place). With one mass for all, faces of the many adults would be held more often, children and
    old people less. Both cannot be exact at once; with one band of predicted age the second is.

    The interval reaches from its first age to its last, which holds ages that their own band would
    not. So the rate of the bands is the least at which the whole intervals hold the level, found by
    cross-conformal prediction (Vovk 2015): each face is tried on bands of the other folds.

    A quantile of N faces is as likely too low as too high for all the faces that come after. So
    it is taken at a level raised by the spread of a share of N faces: with ``confidence``, new
    faces are held at the level or more (training-conditional validity, Vovk 2012).

    A label that is a range counts with every age in it, each as much as the model says.

    Args:
        probabilities: (N, 101) calibrated distributions.
        low: (N,) first age of each label.
        high: (N,) last age, at most 100.
        groups: (N,) number of each face's group, -1 without one; the worst group in a band of
            predicted age is held at the level.
        plan: What is wanted.
    """
    pairs = _LabelAges.of(probabilities, low, high)
    entering = _entering(probabilities)
    needed = entering[pairs.rows, pairs.ages]
    starts = joined_starts(plan.age_bands, pairs.ages, pairs.shares, plan.min_band)
    bands = place_in(pairs.ages, starts)

    fold = np.random.default_rng(plan.seed).permutation(len(low)) % min(_FOLDS, len(low))
    rates = np.empty(len(pairs.rows))
    for number in range(int(fold.max()) + 1):
        held = fold == number
        own = held[pairs.rows]
        others = _thresholds(needed[~own], bands[~own], pairs.shares[~own], len(starts))
        reached = _hull_rates(probabilities[held], entering[held], others, starts)
        place = np.cumsum(held) - 1
        rates[own] = reached[place[pairs.rows[own]], pairs.ages[own]]

    table = _thresholds(needed, bands, pairs.shares, len(starts))
    means = place_in(probabilities @ np.arange(AGE_COUNT), plan.mean_bands)
    coverage = []
    for number, start in enumerate(plan.mean_bands):
        faces = means == number
        if faces.sum() < plan.min_rows:
            faces = np.ones(len(faces), bool)
        wanted = _wanted_rates(rates, pairs, faces, groups, plan)
        masses = [_masses(plan.levels, wanted, row) for row in table]
        coverage.append(
            CoverageBand(
                low=start,
                high=[*plan.mean_bands, AGE_COUNT][number + 1],
                levels=plan.levels,
                masses=masses[0],
                older=tuple(
                    OlderMasses(start=first, masses=row)
                    for first, row in zip(starts[1:], masses[1:], strict=True)
                ),
            )
        )
    return tuple(coverage)


def place_in(values: NDArray[Any], starts: Sequence[int]) -> NDArray[np.intp]:
    """(N,) number of the band that each value lies in; values under all starts in the first."""
    return np.maximum(np.searchsorted(np.asarray(starts), values, side="right") - 1, 0)


def joined_starts(
    starts: Sequence[int], ages: NDArray[np.intp], shares: Floats, least: float
) -> tuple[int, ...]:
    """Starts of the bands with enough faces; one with fewer is joined to the band before it."""
    kept = list(age_group_starts(starts))
    while len(kept) > 1:
        sizes = np.bincount(place_in(ages, kept), shares, minlength=len(kept))
        few = np.flatnonzero(sizes < least - 1e-6)
        if not len(few):
            break
        # The first band has none before it: the second one joins it.
        del kept[max(int(few[-1]), 1)]
    return tuple(kept)


def _thresholds(needed: Floats, bands: NDArray[np.intp], shares: Floats, count: int) -> Floats:
    """(count, len(_RATES)) central mass at which each band holds its ages at each rate.

    A rate that a band has too few faces for takes the mass that all faces need, or the greatest
    of the band where that is more.
    """
    everyone = _weighted_quantiles(needed, shares)
    table = np.ones((count, len(_RATES)))
    for band in range(count):
        own = bands == band
        row = _weighted_quantiles(needed[own], shares[own])
        most = needed[own].max(initial=0.0)
        table[band] = np.where(np.isnan(row), np.fmax(np.nan_to_num(everyone, nan=1.0), most), row)
    return np.asarray(np.maximum.accumulate(table, axis=1))


def _weighted_quantiles(values: Floats, shares: Floats, rates: Floats = _RATES) -> Floats:
    """Split-conformal quantile of values that count by shares; NaN beyond the greatest."""
    if not len(values):
        return np.full(len(rates), np.nan)
    order = np.argsort(values, kind="stable")
    upto = shares[order].cumsum()
    # One more face, the new one, is outside; the small step is the rounding of the sum.
    wanted = (upto[-1] + 1) * rates - 1e-9
    at = np.searchsorted(upto, wanted)
    return np.where(at < len(values), values[order][np.minimum(at, len(values) - 1)], np.nan)


def _hull_rates(
    probabilities: Floats, entering: Floats, table: Floats, starts: Sequence[int]
) -> Floats:
    """(N, 101) least rate at which the interval, as ``AgeDistribution`` makes it, holds an age.

    The interval reaches from its first age to its last, so an age is held too when younger and
    older ones are.
    """
    places = np.empty(entering.shape, np.intp)
    for age, band in enumerate(place_in(np.arange(AGE_COUNT), starts)):
        places[:, age] = np.searchsorted(table[band], entering[:, age])
    medians = (probabilities.cumsum(axis=1) < 0.5 - 1e-12).sum(axis=1)
    places[np.arange(len(places)), np.minimum(medians, AGE_COUNT - 1)] = 0
    younger = np.minimum.accumulate(places, axis=1)
    older = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1]
    rates: Floats = np.append(_RATES, 1.0)[np.maximum(younger, older)]
    return rates


def _wanted_rates(
    rates: Floats,
    pairs: _LabelAges,
    faces: NDArray[np.bool_],
    groups: NDArray[np.intp],
    plan: TablePlan,
) -> Floats:
    """Rate at which these faces, and the worst group among them, are held at each level."""
    wanted = np.zeros(len(plan.levels))
    raised = _raised(plan.levels, len(groups), plan.confidence)
    chosen = [faces]
    for group in np.unique(groups[faces & (groups >= 0)]):
        members = faces & (groups == group)
        chosen += [members] if members.sum() >= plan.min_rows else []
    for members in chosen:
        own = members[pairs.rows]
        reached = _weighted_quantiles(rates[own], pairs.shares[own], raised)
        wanted = np.maximum(wanted, np.nan_to_num(reached, nan=1.0))
    return wanted


def _raised(levels: Sequence[float], count: int, confidence: float) -> Floats:
    """Levels with a margin for the chance in ``count`` faces."""
    wanted = np.asarray(levels)
    margin = NormalDist().inv_cdf(confidence) * np.sqrt(wanted * (1 - wanted) / count)
    return np.asarray(np.clip(wanted + margin, 0, 1))


def _masses(levels: Sequence[float], wanted: Floats, row: Floats) -> tuple[float, ...]:
    """A band's central mass for each level, rounded up so that a face just held stays so."""
    at = np.searchsorted(_RATES, wanted - 1e-9)
    found = np.append(row, 1.0)[at]
    scale = 10**_MASS_DIGITS
    up = np.minimum(np.ceil((found + 1e-6) * scale) / scale, 1.0)
    ends = {0.0: 0.0, 1.0: 1.0}
    masses = [ends.get(level, float(mass)) for level, mass in zip(levels, up, strict=True)]
    return tuple(float(mass) for mass in np.maximum.accumulate(masses))
