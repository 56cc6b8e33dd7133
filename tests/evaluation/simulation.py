"""Labelled faces drawn from known distributions, so that the truth about every figure is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agelens.bundle import CalibrationFields
from agelens.evaluation.scored import (
    LEVELS,
    QUALITY_MEASURES,
    DataFile,
    Provenance,
    ScoredFaces,
)
from agelens.evaluation.scoring import recalibrated
from agelens.results import AGE_COUNT

RANGE_STARTS = np.array([0, 3, 10, 20, 30, 40, 50, 60, 70])
RANGE_ENDS = np.array([2, 9, 19, 29, 39, 49, 59, 69, 100])


def simulated(
    count: int,
    seed: int = 0,
    *,
    shift: float = 0.0,
    narrow: float = 1.0,
    model: str = "simulated@1",
    intervals: bool = True,
) -> ScoredFaces:
    """Faces whose true age and gender are drawn from what the model says of them.

    Args:
        count: Faces.
        seed: Of everything.
        shift: Years by which the model is moved up, after the truth was drawn.
        narrow: Factor on the model's spread, after the truth was drawn; under 1 it is too sure.
        model: Its name.
        intervals: False saves the time for the age intervals; they are then 0 to 0.
    """
    rng = np.random.default_rng(seed)
    centre, spread = rng.uniform(4, 85, count), rng.uniform(2, 8, count)
    age = drawn(rng, normal_masses(centre, spread))
    female = rng.beta(0.4, 0.4, count)
    label = rng.uniform(size=count) < female
    return scored(
        normal_masses(np.clip(centre + shift, 0, 100), narrow * spread),
        female,
        age,
        age,
        label.astype(np.int8),
        model=model,
        intervals=intervals,
    )


def scored(
    ages: NDArray[np.float64],
    female: NDArray[np.float64],
    age_min: NDArray[np.integer],
    age_max: NDArray[np.integer],
    female_label: NDArray[np.integer],
    *,
    model: str = "simulated@1",
    intervals: bool = True,
) -> ScoredFaces:
    """Faces from their distributions and labels, all found and answered, no two alike."""
    count = len(ages)
    names = np.array([f"faces.parquet#{row}" for row in range(count)], object)
    faces = ScoredFaces(
        names=names,
        dataset=np.full(count, "simulated", object),
        age_min=np.asarray(age_min, np.int16),
        age_max=np.asarray(age_max, np.int16),
        female_label=np.asarray(female_label, np.int8),
        clusters=np.arange(count),
        audit={},
        decoded_age=ages,
        decoded_female=female,
        age=ages,
        female=female,
        interval_low=np.zeros((count, len(LEVELS)), np.int16),
        interval_high=np.zeros((count, len(LEVELS)), np.int16),
        gender_threshold=0.75,
        detected=np.ones(count, bool),
        answered=np.ones(count, bool),
        quality={name: np.full(count, np.nan, np.float32) for name in QUALITY_MEASURES},
        provenance=Provenance(
            model, "0" * 64, "1" * 64, (DataFile("faces.parquet", "2" * 64, count),)
        ),
    )
    fields = CalibrationFields(gender_threshold=0.75)
    return recalibrated(faces, fields) if intervals else faces


def normal_masses(centre: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 101) normal distributions over whole ages; what lies outside 0..100 goes to the ends."""
    from scipy.special import ndtr

    edges = np.r_[-np.inf, np.arange(0.5, AGE_COUNT - 1), np.inf]
    return np.diff(ndtr((edges - centre[:, None]) / spread[:, None]), axis=1)


def drawn(rng: np.random.Generator, masses: NDArray[np.float64]) -> NDArray[np.intp]:
    """One age from each row of (N, 101) probabilities."""
    upto = masses.cumsum(axis=1)
    mark = rng.uniform(size=(len(masses), 1)) * upto[:, -1:]
    return np.asarray(np.minimum((upto < mark).sum(axis=1), AGE_COUNT - 1), np.intp)


def in_ranges(faces: ScoredFaces) -> ScoredFaces:
    """The same faces with FairFace's nine ranges for labels."""
    place = np.searchsorted(RANGE_ENDS, np.minimum(faces.age_min, 100))
    return replace(
        faces,
        age_min=RANGE_STARTS[place].astype(np.int16),
        age_max=RANGE_ENDS[place].astype(np.int16),
    )
