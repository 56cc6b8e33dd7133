"""
The three large backbones, one forward, backward and export each, on a real batch.

    python benchmarks/training_backbones.py PREPARED [--batch 8] [--threads 1]

Weights start at random and take three steps: what is measured is size, speed, and whether ONNX
says what PyTorch says.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from agelens.bundle import import_onnxruntime
from agelens.calibration import decode_age
from agelens.data.loading import PreparedFaces, ShardFolder
from agelens.training import Recipe
from agelens.training.export import age_output, export_graph
from agelens.training.losses import Objectives, Targets
from agelens.training.network import AgeGenderNetwork

ort = import_onnxruntime()
AGES = np.arange(101)


def main() -> None:
    """Print one line a backbone."""
    options = arguments()
    torch.set_num_threads(options.threads)
    print(f"batches of {options.batch}, {options.threads} thread(s), times in ms a face\n")
    print(
        "| recipe | input | parameters | multiply-adds | forward | forward and backward | "
        "ONNX Runtime | largest age difference |\n|---|---|---|---|---|---|---|---|"
    )
    for name in ("efficientnet_b2", "mobilenetv3_large", "vit_base_16", "small"):
        print(line(name, options), flush=True)


def line(name: str, options: argparse.Namespace) -> str:
    recipe = Recipe.load(name)
    assert recipe.network is not None
    assert recipe.heads is not None
    torch.manual_seed(0)
    network = AgeGenderNetwork(recipe.network, recipe.heads).eval()
    network.to(memory_format=torch.channels_last)
    faces = PreparedFaces(
        [ShardFolder(options.data)], split="val", size=network.settings.size, margin=0.4
    )
    chips = np.stack([faces.face(row) for row in range(options.batch)])
    batch = torch.from_numpy(chips)
    targets = targets_of(faces, options.batch)
    parameters = sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(batch[:1])
    forward = fastest(lambda: forward_only(network, batch), options.repeats)
    both = fastest(lambda: backward_too(network, batch, targets), options.repeats)
    take_steps(network, batch, targets)
    session, difference = exported(network, chips, options.threads)
    runtime = fastest(lambda: session.run(None, {"faces": chips}), options.repeats)
    times = " | ".join(f"{1000 * t / options.batch:.1f}" for t in (forward, both, runtime))
    return (
        f"| {name} | {network.settings.size} | {parameters / 1e6:.2f} M | "
        f"{counter.get_total_flops() / 2e9:.2f} G | {times} | {difference:.1e} years |"
    )


def targets_of(faces: PreparedFaces, count: int) -> Targets:
    labels = faces.labels.take(np.arange(count))
    return Targets(
        torch.from_numpy(labels.low.astype(np.int64)),
        torch.from_numpy(labels.high.astype(np.int64)),
        torch.from_numpy(labels.std),
        torch.from_numpy(labels.female.astype(np.int64)),
        torch.empty(count, 0),
        torch.empty(0),
    )


def forward_only(network: AgeGenderNetwork, batch: torch.Tensor) -> None:
    with torch.inference_mode():
        network(batch)


def backward_too(network: AgeGenderNetwork, batch: torch.Tensor, targets: Targets) -> None:
    sums = Objectives(network.heads_settings).sums(network(batch), targets)
    loss = torch.stack([task.total for task in sums.values()]).sum()
    torch.autograd.backward(loss)
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    network.zero_grad(set_to_none=True)


def take_steps(network: AgeGenderNetwork, batch: torch.Tensor, targets: Targets) -> None:
    """A few real steps, so that statistics and weights are no longer the even ones of a start."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network.train()
    for _ in range(3):
        sums = Objectives(network.heads_settings).sums(network(batch), targets)
        torch.autograd.backward(torch.stack([task.total for task in sums.values()]).sum())
        optimizer.step()
        optimizer.zero_grad()
    network.eval()


def exported(
    network: AgeGenderNetwork, chips: NDArray[np.uint8], threads: int
) -> tuple[Any, float]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    content = export_graph(network).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    raw = session.run(None, {"faces": chips})[0]
    with torch.inference_mode():
        wanted = network.probabilities(network(torch.from_numpy(chips))).double().numpy() @ AGES
    difference = np.abs(decode_age(raw, age_output(network)) @ AGES - wanted)
    return session, float(difference.max())


def fastest(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder of prepared faces")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
