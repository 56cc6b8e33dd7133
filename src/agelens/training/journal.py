"""
A run's folder: what was asked for, on which machine, and how it went, epoch by epoch.

    recipe.toml        complete, with every default
    environment.json   versions, devices, the data's digest
    metrics.csv        one line an epoch, a function of recipe and data alone
    timings.csv        one line an epoch: seconds, faces a second, share of time waited for data
    curves.png         the same, drawn
    tensorboard/       the same, as events
    best.safetensors   the checkpoint with the best validation figure
    last.safetensors   the checkpoint of the last epoch
    state.safetensors  what ``resume`` needs
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Self

from agelens.errors import MissingExtra

History = Sequence[Mapping[str, float]]

RECIPE: Final = "recipe.toml"
ENVIRONMENT: Final = "environment.json"
METRICS: Final = "metrics.csv"
TIMINGS: Final = "timings.csv"
CURVES: Final = "curves.png"
STATE: Final = "state.safetensors"

_PACKAGES: Final = (
    "torch",
    "timm",
    "accelerate",
    "safetensors",
    "albumentations",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "coral-pytorch",
)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name and then give it its own."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_environment(folder: Path, *, data: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Write ``environment.json``.

    Args:
        folder: The run's.
        data: What was learned from.
        run: Device, precision, processes, and where the first weights came from.
    """
    versions = {name: _version(name) for name in ("agelens", *_PACKAGES)}
    environment = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "packages": {name: version for name, version in versions.items() if version},
        "run": dict(run),
        "data": dict(data),
    }
    write_whole(folder / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")


def write_table(path: Path, rows: History) -> None:
    """Write one line an epoch as CSV; numbers read back as exactly the same ones."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in names])
    write_whole(path, text.getvalue())


def draw_curves(path: Path, history: History) -> None:
    """Draw loss, age error, gender accuracy, and learning rate with task weights, as PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("train", "drawing the curves of a run") from error
    figure = Figure(figsize=(11, 7), layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    epochs = [row["epoch"] for row in history]
    panels = figure.subplots(2, 2)
    _panel(panels[0, 0], epochs, history, "Loss", _losses_in(history))
    ages = {
        "train": "train_age_error",
        "val, all labels": "val_age_error",
        "val, exact ages": "val_mae",
    }
    _panel(panels[0, 1], epochs, history, "Age error (years)", ages)
    genders = {"train": "train_gender_accuracy", "val": "val_gender_accuracy"}
    _panel(panels[1, 0], epochs, history, "Gender accuracy", genders)
    weights = {
        name.removeprefix("log_variance_"): name
        for name in history[-1]
        if name.startswith("log_variance_")
    }
    if weights:
        _panel(panels[1, 1], epochs, history, "Learned log-variance of each task", weights)
    else:
        rate = {"learning rate": "learning_rate"}
        _panel(panels[1, 1], epochs, history, "Learning rate", rate)
    png = io.BytesIO()
    canvas.print_png(png)
    write_whole(path, png.getvalue())


class EventLog:
    """TensorBoard events of a run; nothing when switched off. Closes as a context manager."""

    def __init__(self, folder: Path | None, *, first_step: int = 0) -> None:
        """Open the log.

        Args:
            folder: Where events go; None writes none.
            first_step: Events from this step on, of an earlier start, are superseded.
        """
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("train", "TensorBoard events") from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write each finite value under its name."""
        if self._writer is None:
            return
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(name.replace("_", "/", 1), value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def _losses_in(history: History) -> dict[str, str]:
    chosen = {"train, weighted": "train_loss"}
    tasks = [name for name in history[-1] if name.startswith("train_loss_")]
    chosen |= {f"train, {name.removeprefix('train_loss_')}": name for name in tasks}
    return chosen | {"val, age -log likelihood": "val_age_nll"}


def _panel(
    axes: Any, epochs: Sequence[float], history: History, title: str, series: Mapping[str, str]
) -> None:
    for label, name in series.items():
        values = [row.get(name, math.nan) for row in history]
        if any(math.isfinite(value) for value in values):
            axes.plot(epochs, values, marker=".", label=label)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(value)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


__all__ = [
    "CURVES",
    "ENVIRONMENT",
    "METRICS",
    "RECIPE",
    "STATE",
    "TIMINGS",
    "EventLog",
    "draw_curves",
    "write_environment",
    "write_table",
    "write_whole",
]
