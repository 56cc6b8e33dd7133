"""
``agelens card``: the model card, from stored results only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from agelens.cli.console import error_console
from agelens.cli.options import ModelName


def card(
    model: ModelName,
    evaluation: Annotated[
        list[Path],
        typer.Option(
            "--evaluation", "-e", help="evaluation.json of this model; may be given several times."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Markdown file to write.")],
    audit: Annotated[
        Path | None, typer.Option("--audit", "-a", help="audit.json of this model; it is verified.")
    ] = None,
    audit_key: Annotated[
        str | None,
        typer.Option(
            "--audit-key", help="Public key that must have signed it; by default this computer's."
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the training run, for its time and device.")
    ] = None,
    figures: Annotated[
        bool,
        typer.Option("--figures", help="Also write the figures into the model's own TOML card."),
    ] = False,
) -> None:
    """Write a model card in Markdown from evaluations and an audit of the model.

    Results of another model, or of this one before its card changed, are refused.

    [bold]Examples[/]

      agelens card cc0 --evaluation results/evaluation.json --out CARD.md

      agelens card ours.onnx -e utkface.json -e fairface.json -a audit.json -o CARD.md --figures
    """
    from agelens.bundle import find_model
    from agelens.evaluation.card import read_evaluation, write_card, write_figures

    write_card(model, out, evaluations=evaluation, audit=audit, audit_key=audit_key, run=run)
    error_console().print(f"-> {escape(str(out))}", soft_wrap=True)
    if figures:
        held = [read_evaluation(path) for path in evaluation]
        written = write_figures(find_model(model), held)
        error_console().print(f"-> {escape(str(written))} (figures)", soft_wrap=True)
