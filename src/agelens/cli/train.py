"""
``agelens train`` and ``agelens export``: from a recipe and prepared faces to a model file.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from agelens.cli.console import error_console, output_console


class Precision(StrEnum):
    """How the weights of an exported model are stored."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a TOML file.")],
    data: Annotated[
        Path, typer.Option(help="Folder of prepared faces, from `agelens data prepare`.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out where it stopped.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe."),
    ] = None,
    fast_dev_run: Annotated[
        bool, typer.Option("--fast-dev-run", help="Two steps of everything, to see that it runs.")
    ] = False,
) -> None:
    """Train a network on prepared faces.

    The run's folder gets the recipe, the environment, metrics (CSV, TensorBoard), curves and the
    best and last checkpoints. Interrupted or killed, it goes on with --resume to the same numbers.

    [bold]Examples[/]

      agelens train small --data prepared/ --out runs/first

      agelens train small --data prepared/ --out runs/short --set loop.epochs=5

      agelens train finetune --data prepared/ --out runs/ours --set init=runs/first
    """
    from agelens.training import Recipe
    from agelens.training import train as run

    try:
        result = run(
            Recipe.load(recipe, set_ or ()), data, out, resume=resume, fast_dev_run=fast_dev_run
        )
    except KeyboardInterrupt:
        again = escape(_resuming(recipe, data, out, set_ or (), fast_dev_run))
        error_console().print(f"[yellow]interrupted[/]; go on with: {again}", soft_wrap=True)
        # What is to be kept is on disk. An orderly exit can abort on torch's threads, which the
        # interrupt left in the middle of a step.
        os._exit(130)
    if os.environ.get("RANK", "0") != "0":  # of several processes one speaks
        return
    console = output_console()
    how = "stopped early after" if result.stopped_early else "finished"
    console.print(f"{how} {result.epochs} epochs; the best was {result.best_epoch}")
    for name, value in result.metrics.items():
        figure = f"{value:,.0f}" if name == "faces" else f"{value:.4f}"
        console.print(f"  [dim]{name:24}[/] {figure}")
    console.print(f"best checkpoint: {escape(str(result.best))}", soft_wrap=True)


def _resuming(
    recipe: str, data: Path, out: Path, changes: Sequence[str], fast_dev_run: bool
) -> str:
    """The command that goes on; a recipe that differs in a value would be refused."""
    words = ["agelens", "train", recipe, "--data", str(data), "--out", str(out), "--resume"]
    words += [word for change in changes for word in ("--set", change)]
    return shlex.join([*words, "--fast-dev-run"] if fast_dev_run else words)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint of it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the model to.")],
    name: Annotated[str, typer.Option(help="Name of the model: small letters, digits, dashes.")],
    version: Annotated[str, typer.Option(help="Version of the model.")] = "1.0",
    precision: Annotated[
        Precision, typer.Option(help="fp32, fp16 (half the size), or int8 (a quarter).")
    ] = Precision.fp32,
    calibration_data: Annotated[
        Path | None,
        typer.Option(help="Prepared faces to calibrate int8 on; by default those of the run."),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, in words.")] = None,
) -> None:
    """Write a trained network as an ONNX file and its card, and compare both.

    The model then runs without torch: agelens analyze photo.jpg --model OUT/NAME.onnx

    [bold]Example[/]: agelens export runs/first --out models/ --name ours --version 1.0
    """
    from agelens.training.export import export as write

    report = write(
        checkpoint,
        out,
        name=name,
        version=version,
        precision=precision.value,
        calibration_data=calibration_data,
        licence=licence,
    )
    for line in report.lines():
        output_console().print(escape(line), soft_wrap=True)
