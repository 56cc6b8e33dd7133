"""Shapes of age distributions for tests, made one age at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Row = list[float]

AGES = range(101)


def slow_normal(mean: float, std: float) -> Row:
    """Mass of each age under a normal distribution, one age at a time."""

    def below(x: float) -> float:
        return 0.5 * math.erfc((mean - x) / (std * math.sqrt(2)))

    masses = [below(age + 0.5) - below(age - 0.5) for age in AGES]
    masses[0], masses[100] = below(0.5), 1 - below(99.5)
    return masses


few = st.integers(1, 4)


@st.composite
def distributions(draw: st.DrawFn, rows: st.SearchStrategy[int] = few) -> Floats:
    """Smooth, ragged and one-age shapes."""
    count = draw(rows)
    kinds = draw(st.lists(st.sampled_from("nrs"), min_size=count, max_size=count))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes: dict[str, Callable[[], Floats]] = {
        "n": lambda: np.array(slow_normal(rng.uniform(0, 100), rng.uniform(0.5, 20))),
        "r": lambda: rng.dirichlet(np.full(101, 0.2)),
        "s": lambda: np.eye(101)[rng.integers(101)],
    }
    return np.array([shapes[kind]() for kind in kinds])
