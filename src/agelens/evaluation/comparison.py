"""
Which of two models is better: the same faces, the same bootstrap draws, figure by figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from agelens.errors import DataError
from agelens.evaluation.bootstrap import (
    DEFAULT_SAMPLES,
    MIN_CLUSTERS,
    Draws,
    Estimate,
    percentiles,
    weights,
)
from agelens.evaluation.metrics import METRICS, Metric, find_metric
from agelens.evaluation.scored import ScoredFaces

Verdict = Literal["better", "worse", "no difference beyond noise", "no merit alone"]

NO_DIFFERENCE: Final[Verdict] = "no difference beyond noise"
NO_MERIT: Final[Verdict] = "no merit alone"
"""For figures that are good only beside another one; see ``Metric.alone``."""


@dataclass(frozen=True)
class Comparison:
    """One figure of two models.

    Attributes:
        one: Of the first model, on the faces that both models estimate.
        other: Of the second model, on the same faces.
        difference: First less second.
        improvement: How much nearer the first model is to where good figures lie: in the figure's
            own unit, over 0 when the first is better.
        p_value: Two-sided, of no improvement either way, from the bootstrap; 1 when there are too
            few faces for an interval.
        verdict: Of the first model: "better" or "worse" when the interval of the improvement leaves
            out 0; ``NO_MERIT`` for figures that say nothing by themselves.
    """

    one: Estimate
    other: Estimate
    difference: Estimate
    improvement: Estimate
    p_value: float
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        names = ("one", "other", "difference", "improvement")
        wire = {name: getattr(self, name).to_dict() for name in names}
        return {**wire, "p_value": round(self.p_value, 4), "verdict": self.verdict}

    @classmethod
    def from_dict(cls, wire: dict[str, Any]) -> Self:
        """Read back what ``to_dict`` gave."""
        names = ("one", "other", "difference", "improvement")
        figures = {name: Estimate.from_dict(wire[name]) for name in names}
        return cls(**figures, p_value=wire["p_value"], verdict=wire["verdict"])


def compare(
    one: ScoredFaces,
    other: ScoredFaces,
    names: Sequence[str] | None = None,
    *,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare two models by a paired bootstrap.

    Each figure is of the faces that both models have an estimate for, and both are measured on the
    same draws, so that what is hard for both does not widen the interval of the difference (Efron
    and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 16). One verdict in twenty is
    wrong where there is no difference: of many figures some will be "better" by chance.

    Args:
        one: Answers of the first model.
        other: Answers of the second model on the same rows.
        names: Metrics wanted; None takes all that both have.
        samples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        DataError: The rows or their labels differ; the message names the first that does.
        ArgumentError: An unknown metric.
    """
    _check_same_faces(one, other)
    # Copies that one of them joins are copies for both.
    draws = weights(one.clusters, samples, seed)
    found = {}
    for name in METRICS if names is None else names:
        comparison = _compare_one(find_metric(name), one, other, draws)
        if comparison is not None:
            found[name] = comparison
    return found


def _compare_one(
    metric: Metric, one: ScoredFaces, other: ScoredFaces, draws: Draws
) -> Comparison | None:
    rows = np.flatnonzero(_estimated(metric, one) & _estimated(metric, other))
    first, second, drawn = one.take(rows), other.take(rows), draws[:, rows]
    counts = int(metric.rows(first).sum()), int(metric.rows(second).sum())
    if 0 in counts:
        return None
    values = np.array([metric.estimate(faces, _once(rows))[0] for faces in (first, second)])
    if np.isnan(values).any():
        return None
    spread = np.array([metric.estimate(faces, drawn) for faces in (first, second)])
    clusters = len(np.unique(first.clusters[metric.rows(first)]))
    if clusters < MIN_CLUSTERS:
        spread = np.full_like(spread, np.nan)
    ends = [percentiles(figures) for figures in (*spread, spread[0] - spread[1])]
    gain = metric.loss(values[1:])[0] - metric.loss(values[:1])[0]
    gains = metric.loss(spread[1]) - metric.loss(spread[0])
    improvement = Estimate(float(gain), *percentiles(gains), count=min(counts))
    return Comparison(
        Estimate(float(values[0]), *ends[0], count=counts[0]),
        Estimate(float(values[1]), *ends[1], count=counts[1]),
        Estimate(float(values[0] - values[1]), *ends[2], count=min(counts)),
        improvement,
        _p_value(gains),
        _verdict(improvement) if metric.alone else NO_MERIT,
    )


def _estimated(metric: Metric, faces: ScoredFaces) -> NDArray[np.bool_]:
    if metric.subject == "face":
        return np.ones(len(faces), bool)
    answers = faces.female if metric.subject == "gender" else faces.age[:, 0]
    return ~np.isnan(answers)


def _once(rows: NDArray[Any]) -> Draws:
    return np.ones((1, len(rows)), np.uint8)


def _p_value(gains: NDArray[np.float64]) -> float:
    held = gains[~np.isnan(gains)]
    if len(held) == 0:
        return 1.0
    # The observed figure is one draw more (Davison and Hinkley 1997, section 4.2.5).
    tail = 1 + min(int((held <= 0).sum()), int((held >= 0).sum()))
    return min(1.0, 2 * tail / (len(held) + 1))


def _verdict(improvement: Estimate) -> Verdict:
    if improvement.low > 0:
        return "better"
    if improvement.high < 0:
        return "worse"
    return NO_DIFFERENCE


def _check_same_faces(one: ScoredFaces, other: ScoredFaces) -> None:
    if len(one) != len(other):
        raise DataError(
            f"{one.provenance.model} was measured on {len(one)} faces and "
            f"{other.provenance.model} on {len(other)}; compare them on the same files"
        )
    for name in ("names", "age_min", "age_max", "female_label"):
        differing = np.flatnonzero(getattr(one, name) != getattr(other, name))
        if len(differing):
            row = differing[0]
            raise DataError(
                f"row {row}: {name} is {getattr(one, name)[row]} for {one.provenance.model} and "
                f"{getattr(other, name)[row]} for {other.provenance.model}; compare them on the "
                "same files"
            )
    if [file.sha256 for file in one.provenance.data] != [
        file.sha256 for file in other.provenance.data
    ]:
        raise DataError(
            f"the files of {one.provenance.model} and {other.provenance.model} differ in their "
            "SHA-256; compare them on the same files"
        )
