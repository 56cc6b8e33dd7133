"""
Validation: a network's answers on a split, and the figures that choose the best checkpoint.

The full evaluation, with confidence intervals and groups, is ``agelens.evaluation``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

try:
    import torch
    from torch.utils.data import DataLoader
except ImportError as error:
    from agelens.errors import MissingExtra

    raise MissingExtra("train", "training") from error

import numpy as np
from numpy.typing import NDArray

from agelens.data.loading import (
    Draw,
    FaceBatch,
    Labels,
    PreparedFaces,
    ShardFolder,
    start_worker,
    to_tensors,
)
from agelens.results import AGE_COUNT
from agelens.training.checkpoint import load_checkpoint
from agelens.training.network import AgeGenderNetwork

_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Predictions:
    """A network's answers.

    Attributes:
        rows: (N,) int64 of the faces that were asked about.
        probabilities: (N, 101) float32, rows sum to 1.
        female: (N,) float32, NaN without a gender head.
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    female: NDArray[np.float32]

    @property
    def mean_age(self) -> NDArray[np.float64]:
        """(N,) expected ages in years."""
        mean: NDArray[np.float64] = self.probabilities.astype(np.float64) @ np.arange(AGE_COUNT)
        return mean

    @classmethod
    def joined(cls, parts: list[Predictions]) -> Predictions:
        """Several processes' answers, by rising row."""
        rows = np.concatenate([part.rows for part in parts])
        order = np.argsort(rows, kind="stable")
        return cls(
            rows[order],
            np.concatenate([part.probabilities for part in parts])[order],
            np.concatenate([part.female for part in parts])[order],
        )


def predict(
    network: AgeGenderNetwork,
    faces: PreparedFaces,
    *,
    rows: NDArray[np.int64] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Predictions:
    """Ask a network about faces, in evaluation mode and float32.

    Args:
        network: Stays where it is, on whichever device.
        faces: Prepared faces with the network's input size.
        rows: Rows of ``faces``; None asks about all.
        batch_size: Faces at a time.
        workers: Processes that load.
        advance: Called with the number of faces after each batch.
    """
    wanted = np.arange(len(faces)) if rows is None else rows
    device = next(network.parameters()).device
    loader: DataLoader[FaceBatch] = DataLoader(
        cast("Any", faces),
        batch_size=batch_size,
        sampler=cast("Any", [Draw(int(row), 0) for row in wanted]),
        collate_fn=cast("Any", to_tensors),
        num_workers=workers,
        worker_init_fn=start_worker if workers else None,
    )
    was_training = network.training
    network.eval()
    ages, females = [np.empty((0, AGE_COUNT), np.float32)], [np.empty(0, np.float32)]
    with torch.inference_mode():
        for batch in loader:
            outputs = network(batch.chips.to(device))
            ages.append(network.probabilities(outputs).float().cpu().numpy())
            females.append(_female(outputs, len(batch.row)))
            if advance is not None:
                advance(len(batch.row))
    network.train(was_training)
    return Predictions(wanted, np.concatenate(ages), np.concatenate(females))


def validation_metrics(predictions: Predictions, labels: Labels) -> dict[str, float]:
    """Figures of a split; NaN where no face has the label.

    Args:
        predictions: Of some of the faces.
        labels: Of all of them.

    Returns:
        ``faces``; ``mae`` years and ``cs5`` share within 5 years, both on exact ages only;
        ``age_error`` mean distance in years of the expected age from the label's interval, exact
        ages included; ``age_nll`` mean -log of the label's probability; ``coverage_90`` share of
        labels that the central 90 % touches; ``gender_accuracy``; ``gender_nll``.
    """
    known = labels.take(predictions.rows)
    low, high = known.low.astype(np.int64), known.high.astype(np.int64)
    has_age, exact = low >= 0, (low >= 0) & (low == high)
    distance = np.maximum(low - predictions.mean_age, 0) + np.maximum(
        predictions.mean_age - high, 0
    )
    upto = np.cumsum(predictions.probabilities, axis=1, dtype=np.float64)
    upto = np.concatenate([np.zeros((len(upto), 1)), upto], axis=1)
    row = np.arange(len(low))
    inside = upto[row, np.maximum(high, 0) + 1] - upto[row, np.maximum(low, 0)]
    nll = -np.log(np.clip(inside, _LEAST_PROBABILITY, 1))
    # The central 90 % reaches from the 5 % to the 95 % quantile.
    touched = (upto[row, np.maximum(high, 0) + 1] > 0.05) & (upto[row, np.maximum(low, 0)] < 0.95)
    has_gender = (known.female >= 0) & np.isfinite(predictions.female)
    female = np.clip(predictions.female.astype(np.float64), _LEAST_PROBABILITY, 1 - 1e-7)
    chosen = np.where(known.female == 1, female, 1 - female)
    return {
        "faces": float(len(low)),
        "mae": _mean(distance, exact),
        "cs5": _mean(distance <= 5, exact),
        "age_error": _mean(distance, has_age),
        "age_nll": _mean(nll, has_age),
        "coverage_90": _mean(touched, has_age),
        "gender_accuracy": _mean(chosen > 0.5, has_gender),
        "gender_nll": _mean(-np.log(chosen), has_gender),
    }


def predict_checkpoint(
    checkpoint: str | Path,
    data: str | Path,
    *,
    split: str | None = "val",
    datasets: tuple[str, ...] = (),
    batch_size: int = 64,
    workers: int = 0,
) -> tuple[Predictions, Labels]:
    """A checkpoint's answers on prepared faces.

    Args:
        checkpoint: Its path, or a run's folder.
        data: Folder of prepared faces.
        split: ``train``, ``val``, ``test`` or None for all.
        datasets: Names to keep; empty keeps all.
        batch_size: Faces at a time.
        workers: Processes that load.

    Raises:
        ModelNotFound: There is no such checkpoint.
        DataError: The faces cannot be read, or there are none in the split.
    """
    trained = load_checkpoint(checkpoint)
    part = trained.network.settings
    folder = ShardFolder(data, group_column=trained.recipe.data.group_column)
    faces = PreparedFaces(
        [folder], split=split, size=part.size, margin=part.margin, datasets=datasets
    )
    network = trained.network.to(memory_format=cast("Any", torch.channels_last))
    answers = predict(network, faces, batch_size=batch_size, workers=workers)
    return answers, faces.labels


def evaluate_checkpoint(
    checkpoint: str | Path,
    data: str | Path,
    *,
    split: str | None = "val",
    datasets: tuple[str, ...] = (),
    batch_size: int = 64,
    workers: int = 0,
) -> dict[str, float]:
    """Validation figures of a checkpoint; see ``predict_checkpoint`` and ``validation_metrics``."""
    answers, labels = predict_checkpoint(
        checkpoint, data, split=split, datasets=datasets, batch_size=batch_size, workers=workers
    )
    return validation_metrics(answers, labels)


def _female(outputs: dict[str, torch.Tensor], count: int) -> NDArray[np.float32]:
    if "gender" not in outputs:
        return np.full(count, np.nan, np.float32)
    female: NDArray[np.float32] = torch.sigmoid(outputs["gender"][:, 0]).float().cpu().numpy()
    return female


def _mean(values: NDArray[Any], where: NDArray[np.bool_]) -> float:
    return float(values[where].mean()) if where.any() else float("nan")


__all__ = [
    "Predictions",
    "evaluate_checkpoint",
    "predict",
    "predict_checkpoint",
    "validation_metrics",
]
