"""
How fast faces are loaded, how fast they are learned from, and how long learning waits for them.

    python benchmarks/training_throughput.py PREPARED [--recipe small] [--faces 3000]
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from torch.utils.data import DataLoader

from agelens.data.augmentation import AugmentationSettings
from agelens.data.loading import (
    BalancedDraws,
    FaceBatch,
    PreparedFaces,
    ShardFolder,
    balance_weights,
    start_worker,
    to_tensors,
)
from agelens.training import Recipe, train


def main() -> None:
    """Print one table for the input pipeline and one for training."""
    options = arguments()
    recipe = Recipe.load(options.recipe, options.set)
    assert recipe.network is not None
    folder = ShardFolder(options.data)
    began = time.perf_counter()
    folder.cache()
    seconds = time.perf_counter() - began
    print(f"{len(folder.labels):,} chips of {folder.size} px cached in {seconds:.1f} s\n")
    size = recipe.network.size
    print(f"Input pipeline alone, {folder.size} to {size} px, batches of {options.batch}\n")
    print("| augmentation | by | workers | images a second |\n|---|---|---|---|")
    for preset in ("none", "standard", "strong"):
        for backend in ("albumentations", "torchvision"):
            settings = AugmentationSettings.model_validate({"preset": preset, "backend": backend})
            for workers in (0, 1, 2) if backend == "albumentations" else (1,):
                rate = pipeline_rate(folder, recipe, settings, workers, options)
                print(f"| {preset} | {backend} | {workers} | {rate:,.0f} |", flush=True)
    print(f"\nTraining, recipe {recipe.name}, {options.faces:,} faces an epoch, second epoch\n")
    print("| workers | images a second | share of time waiting |\n|---|---|---|")
    for workers in (0, 1, 2):
        rate, waited = training_rate(options, workers)
        print(f"| {workers} | {rate:,.1f} | {waited:.1%} |", flush=True)


def pipeline_rate(
    folder: ShardFolder,
    recipe: Recipe,
    settings: AugmentationSettings,
    workers: int,
    options: argparse.Namespace,
) -> float:
    assert recipe.network is not None
    faces = PreparedFaces(
        [folder],
        split="train",
        size=recipe.network.size,
        margin=recipe.network.margin,
        settings=settings,
    )
    batches = max(4, options.faces // options.batch)
    draws = BalancedDraws(
        balance_weights(faces.labels, ("dataset", "decade", "gender", "group")),
        batch_size=options.batch,
        batches=batches + 2,
        seed=0,
    )
    loader: DataLoader[FaceBatch] = DataLoader(
        cast("Any", faces),
        batch_size=options.batch,
        sampler=cast("Any", draws),
        collate_fn=cast("Any", to_tensors),
        num_workers=workers,
        worker_init_fn=start_worker if workers else None,
    )
    iterator = iter(loader)
    # The first two batches start the workers and fill the file cache.
    next(iterator), next(iterator)
    began = time.perf_counter()
    count = sum(len(batch.row) for batch in iterator)
    return count / (time.perf_counter() - began)


def training_rate(options: argparse.Namespace, workers: int) -> tuple[float, float]:
    changes = [
        *options.set,
        f"data.workers={workers}",
        f"data.samples_per_epoch={options.faces}",
        "loop.epochs=2",
        "loop.tensorboard=false",
        f"loop.batch_size={options.batch}",
        f"loop.threads={options.threads}",
        "loop.save_every_steps=0",
    ]
    with tempfile.TemporaryDirectory() as out:
        train(Recipe.load(options.recipe, changes), options.data, Path(out) / "run")
        with (Path(out) / "run" / "timings.csv").open() as stream:
            last = list(csv.DictReader(stream))[-1]
    return float(last["faces_per_second"]), float(last["waited_share"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of prepared faces")
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--set", action="append", default=[], help="key=value of the recipe")
    parser.add_argument("--faces", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
