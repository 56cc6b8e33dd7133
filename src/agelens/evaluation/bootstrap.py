"""
How far a figure could be off: cluster bootstrap, percentile intervals, paired differences.

Faces of one subject, and copies of one picture, stand or fall together, so whole clusters are drawn
(Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8). A draw is kept
as the number of times that each face is in it, so that a figure over all draws is one matrix
product.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError

LEVEL: Final = 0.95
"""Level of every interval."""
DEFAULT_SAMPLES: Final = 1000
MIN_CLUSTERS: Final = 10
"""A figure on fewer clusters gets no interval: their spread says nothing yet."""

_CELLS_AT_ONCE: Final = 4_000_000

Floats = NDArray[np.float64]
Draws = NDArray[np.uint8]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: On the faces as they are.
        low: Lower end of the interval; NaN when there are too few faces for one.
        high: Upper end.
        count: Faces that it stands on.
    """

    value: float
    low: float
    high: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Wire form; an interval that is not there is None."""
        wire = asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in wire.items()}

    @classmethod
    def from_dict(cls, wire: dict[str, Any]) -> Self:
        """Read back what ``to_dict`` gave."""
        value, low, high = (
            math.nan if wire[k] is None else float(wire[k]) for k in ("value", "low", "high")
        )
        return cls(value, low, high, int(wire["count"]))


def weights(clusters: NDArray[np.int64], samples: int = DEFAULT_SAMPLES, seed: int = 0) -> Draws:
    """How often each face is in each bootstrap draw.

    As many clusters as there are are drawn with replacement, each with all of its faces.

    Args:
        clusters: (N,) faces that stand together share a number.
        samples: Draws.
        seed: The same seed gives the same draws.

    Returns:
        (samples, N) uint8.

    Raises:
        ArgumentError: ``samples`` is under 1, or there are no faces.
    """
    if samples < 1:
        raise ArgumentError(f"samples must be 1 or more, got {samples}")
    if len(clusters) == 0:
        raise ArgumentError("there are no faces to draw from")
    _, place = np.unique(clusters, return_inverse=True)
    count = int(place.max()) + 1
    rng = np.random.default_rng(seed)
    draws = np.empty((samples, len(clusters)), np.uint8)
    for row in range(samples):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        draws[row] = np.minimum(times, 255)[place]
    return draws


def weighted_sums(draws: NDArray[Any], values: NDArray[Any]) -> Floats:
    """Sum of the values in each draw.

    Args:
        draws: (S, N) how often each face counts.
        values: (N,) or (N, K), finite.

    Returns:
        (S,) or (S, K) float64.
    """
    columns = np.asarray(values, np.float64)
    sums = np.empty((len(draws), *columns.shape[1:]))
    for rows in chunks(draws):
        sums[rows] = draws[rows].astype(np.float64) @ columns
    return sums


def chunks(draws: NDArray[Any]) -> list[slice]:
    """Slices of the draws that are small enough to be held as float64 several times over."""
    step = max(1, _CELLS_AT_ONCE // max(1, draws.shape[1]))
    return [slice(start, start + step) for start in range(0, len(draws), step)]


def percentiles(samples: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Ends of the central interval of bootstrap values; draws without a value (NaN) are left out.

    NaN, NaN when more than half of the draws have none.
    """
    held = samples[~np.isnan(samples)]
    if 2 * len(held) < len(samples) or len(held) < 2:
        return math.nan, math.nan
    low, high = np.quantile(held, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(share: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927); not degenerate where all faces agree.

    Args:
        share: Observed, 0..1.
        count: Independent observations, 1 or more.
        level: Of the interval.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    half /= 1 + z * z / count
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)
