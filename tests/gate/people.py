"""Faces before a gate, drawn so that the true rate of every error is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agelens.evaluation.scored import ScoredFaces
from evaluation.simulation import scored

YOUNG, OLD = 10, 30
"""Ages that the answers of ``faces_with`` are mixed of."""


def faces_with(
    over: Sequence[float] | NDArray[np.float64],
    ages: Sequence[int] | NDArray[np.integer],
    *,
    ends: Sequence[int] | NDArray[np.integer] | None = None,
    female: Sequence[int] | NDArray[np.integer] | None = None,
    clusters: Sequence[int] | NDArray[np.integer] | None = None,
    groups: Sequence[str | None] | None = None,
) -> ScoredFaces:
    """Faces whose P(age >= 18) is given: that share is on 30, the rest on 10.

    Args:
        over: (N,) the probabilities.
        ages: (N,) true ages; the first ages where ``ends`` are given.
        ends: (N,) last ages of labels that are ranges.
        female: (N,) labels; None takes male for all.
        clusters: (N,) None makes all independent.
        groups: (N,) audit column "race".
    """
    shares = np.asarray(over, np.float64)
    masses = np.zeros((len(shares), 101))
    masses[:, YOUNG], masses[:, OLD] = 1 - shares, shares
    first = np.asarray(ages)
    faces = scored(
        masses,
        np.full(len(shares), 0.5),
        first,
        first if ends is None else np.asarray(ends),
        np.zeros(len(shares), np.int8) if female is None else np.asarray(female),
        intervals=False,
    )
    if clusters is not None:
        faces = replace(faces, clusters=np.asarray(clusters, np.int64))
    if groups is not None:
        faces = replace(faces, audit={"race": np.array(groups, object)})
    return faces


def crowd(rng: np.random.Generator, minors: int, adults: int, *, skill: float = 3.0) -> ScoredFaces:
    """Minors of 13 to 17 whose P(of age) is Beta(1, skill), and adults whose is Beta(skill, 1).

    Half of the adults are 18 to 24, the others 25 to 59.
    """
    over = np.concatenate([rng.beta(1, skill, minors), rng.beta(skill, 1, adults)])
    young = adults // 2
    ages = np.concatenate(
        [
            rng.integers(13, 18, minors),
            rng.integers(18, 25, young),
            rng.integers(25, 60, adults - young),
        ]
    )
    return faces_with(over, ages, female=rng.integers(0, 2, minors + adults))
