"""Simulated faces in groups, with the truth about every gap known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agelens.evaluation.scored import ScoredFaces
from evaluation.simulation import normal_masses, scored


def people(
    count: int = 300,
    groups: tuple[str, ...] = ("one", "other"),
    *,
    seed: int = 0,
    gap_years: float = 0.0,
    wider: float = 1.0,
    gender_right: tuple[float, ...] = (0.92, 0.92),
    error_years: float = 6.0,
    ages: tuple[int, int] = (25, 70),
    intervals: bool = False,
) -> ScoredFaces:
    """Equal groups by the audit column "race".

    Args:
        count: Faces of each group.
        groups: Their names.
        seed: Of everything.
        gap_years: Years by which the last group comes out too old.
        wider: Factor on the errors of the last group.
        gender_right: Share of each group whose gender is right.
        error_years: Standard deviation of the errors.
        ages: Youngest and oldest true age.
        intervals: Compute the age intervals too.
    """
    rng = np.random.default_rng(seed)
    race = np.repeat(np.array(groups, object), count)
    number = np.repeat(np.arange(len(groups)), count)
    last = number == len(groups) - 1
    age = rng.integers(ages[0], ages[1] + 1, len(race))
    off = rng.normal(0, error_years, len(race)) * np.where(last, wider, 1) + gap_years * last
    label = rng.integers(0, 2, len(race))
    right = rng.uniform(size=len(race)) < np.resize(gender_right, len(groups))[number]
    female = np.where(right, np.where(label == 1, 0.9, 0.1), np.where(label == 1, 0.2, 0.8))
    ages_said = normal_masses(np.clip(age + off, 0, 100), np.full(len(race), error_years))
    faces = scored(ages_said, female, age, age, label, intervals=intervals)
    return replace(faces, audit={"race": race})


def with_column(faces: ScoredFaces, name: str, values: NDArray[np.object_]) -> ScoredFaces:
    """The same faces with another audit column."""
    return replace(faces, audit={**faces.audit, name: values})
