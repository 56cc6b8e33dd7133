"""
The error that is left when the least certain faces are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agelens.evaluation.bootstrap import (
    DEFAULT_SAMPLES,
    Draws,
    Estimate,
    chunks,
    percentiles,
    weights,
)
from agelens.evaluation.scored import Floats, ScoredFaces
from agelens.evaluation.values import gender_right, quality_order, range_distances, spread

Target = Literal["age", "gender"]
Order = Literal["spread", "quality", "confidence"]


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """The error of the faces that are kept when the least certain are left out.

    Attributes:
        target: "age" (years outside the label) or "gender" (share wrong).
        order: What faces are ordered by: "spread", "quality" or "confidence".
        share: (K,) share of the faces kept, rising to 1.
        error: (K,) mean error of those.
        low: (K,) lower ends of its 95 % intervals.
        high: (K,) upper ends.
        area: Area under the curve: its mean over all shares.
    """

    target: Target
    order: Order
    share: Floats
    error: Floats
    low: Floats
    high: Floats
    area: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        wire: dict[str, Any] = {"target": self.target, "order": self.order}
        for name in ("share", "error", "low", "high"):
            wire[name] = [None if np.isnan(v) else float(v) for v in getattr(self, name)]
        return {**wire, "area": self.area.to_dict()}


def area_under_risk_coverage(draws: NDArray[Any], values: Floats, certainty: Floats) -> Floats:
    """(S,) mean of the selective risk over all coverages (Geifman, Uziel and El-Yaniv, ICLR 2019).

    Args:
        draws: (S, N).
        values: (N,) error of each face, NaN where there is none.
        certainty: (N,) faces with the highest are kept longest.
    """
    rows = np.flatnonzero(~np.isnan(values))
    order = rows[np.argsort(-certainty[rows], kind="stable")]
    areas = np.full(len(draws), np.nan)
    for part in chunks(draws[:, order]) if len(order) else []:
        held = draws[part][:, order].astype(np.float64)
        upto = held.cumsum(axis=1)
        risk = (held * values[order]).cumsum(axis=1) / np.maximum(upto, 1)
        total = upto[:, -1]
        area = (held * risk).sum(axis=1)
        areas[part] = np.divide(area, total, out=np.full_like(area, np.nan), where=total > 0)
    return areas


def risk_coverage(
    faces: ScoredFaces,
    target: Target = "age",
    order: Order = "spread",
    *,
    points: int = 20,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    draws: Draws | None = None,
) -> RiskCoverage | None:
    """The risk-coverage curve, or None when no face has the label.

    Args:
        faces: Labelled faces with answers.
        target: Which error.
        order: "spread" of the age distribution, "quality" of the picture, or "confidence" of the
            gender estimate.
        points: Of the curve, evenly spaced shares up to 1.
        samples: Bootstrap draws.
        seed: Of the draws.
        draws: (S, N) draws made before, instead of ``samples`` and ``seed``.
    """
    values = range_distances(faces) if target == "age" else 1 - gender_right(faces)
    certainty = _certainty(faces, order)
    rows = np.flatnonzero(~np.isnan(values))
    if len(rows) == 0:
        return None
    held = weights(faces.clusters, samples, seed) if draws is None else draws
    kept = rows[np.argsort(-certainty[rows], kind="stable")]
    shares = np.arange(1, points + 1) / points
    ones = np.ones((1, len(faces)), np.uint8)
    curves = _curves(held[:, kept], values[kept], shares)
    low, high = np.array([percentiles(column) for column in curves.T]).T
    area = float(area_under_risk_coverage(ones, values, certainty)[0])
    ends = percentiles(area_under_risk_coverage(held, values, certainty))
    return RiskCoverage(
        target,
        order,
        shares,
        _curves(ones[:, kept], values[kept], shares)[0],
        low,
        high,
        Estimate(area, *ends, count=len(rows)),
    )


def _certainty(faces: ScoredFaces, order: Order) -> Floats:
    if order == "quality":
        return quality_order(faces)
    return -spread(faces) if order == "spread" else np.abs(faces.female - 0.5)


def _curves(draws: NDArray[Any], values: Floats, shares: Floats) -> Floats:
    """(S, K) mean of the first values up to each share of each draw's weight."""
    curves = np.full((len(draws), len(shares)), np.nan)
    for part in chunks(draws):
        held = draws[part].astype(np.float64)
        upto = held.cumsum(axis=1)
        total = (held * values).cumsum(axis=1)
        for column, share in enumerate(shares):
            last = np.argmax(upto >= share * upto[:, -1:] - 1e-9, axis=1)
            rows = np.arange(len(held))
            curves[part, column] = np.divide(
                total[rows, last],
                upto[rows, last],
                out=np.full(len(held), np.nan),
                where=upto[rows, last] > 0,
            )
    return curves
