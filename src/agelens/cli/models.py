"""
``agelens models``: which models there are, what their cards say, and whether they are whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from agelens.cli.console import output_console

if TYPE_CHECKING:
    from agelens.bundle import Bundle

app = typer.Typer(
    no_args_is_help=True, help="List, show, verify and add models.", rich_markup_mode="rich"
)


@app.command("list")
def list_() -> None:
    """List the models that --model takes by name."""
    from rich.table import Table

    from agelens.bundle import DEFAULT_MODEL, list_models

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for column in ("model", "licence", "class", "MB", "what it is"):
        table.add_column(column, justify="right" if column == "MB" else "left")
    for bundle in list_models():
        card = bundle.card
        default = " (default)" if card.name == DEFAULT_MODEL else ""
        table.add_row(
            f"{card.identifier}{default}",
            card.licence,
            card.licence_class,
            _megabytes(bundle),
            escape(card.summary),
        )
    output_console().print(table)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="A model's name, file, or insightface:DIR.")
    ] = "default",
) -> None:
    """Show what a model's card says: origin, licence, figures, limits.

    [bold]Example[/]: agelens models show cc0
    """
    from agelens.bundle import find_model, iter_figures

    bundle = find_model(name)
    card = bundle.card
    console = output_console()
    console.print(f"[bold]{card.identifier}[/]  {escape(card.summary)}", soft_wrap=True)
    crop = bundle.card.crop_spec()
    absent = bundle.absent_packages()
    lines = [
        ("licence", f"{card.licence} ({card.licence_class})"),
        ("attribution", card.attribution),
        ("size", "" if absent else f"{_megabytes(bundle)} MB"),
        ("input", f"{card.input.size} px, margin {crop.margin:g}, aligned by {crop.anchor}"),
        ("age output", card.age.kind),
        ("gender output", "yes" if card.gender else "no"),
        ("calibrated on", card.calibration.data or "not calibrated"),
    ]
    lines += [("trained on", f"{d.name} ({d.licence})") for d in card.training_data]
    lines += [("measured", line) for line in iter_figures(bundle)]
    lines += [("limit", line) for line in card.limits]
    lines += [("file", f"{f.role}: {bundle.path(f.role)}") for f in card.files if not absent]
    lines += [("not installed", f"pip install {name}") for name in absent]
    for key, value in lines:
        if value:
            console.print(f"  [dim]{key:14}[/] {escape(value)}", soft_wrap=True)


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Models to check; all when left out.")
    ] = None,
) -> None:
    """Check that the files of models and of the default detector are the right ones, by SHA-256.

    Exit status 1 when one is not whole.
    """
    from agelens.bundle import broken_cards, find_model, list_models
    from agelens.detection import read_yunet
    from agelens.errors import ModelError

    console = output_console()
    failed = 0
    for fault in [] if names else broken_cards():
        failed += 1
        console.print(f"[red]broken[/]  {escape(str(fault))}", soft_wrap=True)
    if not names:
        try:
            read_yunet()
            console.print("[green]ok[/]      yunet (detector)")
        except ModelError as error:
            failed += 1
            console.print(f"[red]broken[/]  yunet (detector): {escape(str(error))}", soft_wrap=True)
    for bundle in [find_model(name) for name in names] if names else list_models():
        absent = bundle.absent_packages()
        if absent and not names:  # an optional package that is not there breaks nothing
            console.print(
                f"[yellow]absent[/]  {bundle.card.identifier}: pip install {' '.join(absent)}"
            )
            continue
        try:
            bundle.verify()
            console.print(f"[green]ok[/]      {bundle.card.identifier}")
        except ModelError as error:
            failed += 1
            console.print(
                f"[red]broken[/]  {bundle.card.identifier}: {escape(str(error))}", soft_wrap=True
            )
    raise typer.Exit(1 if failed else 0)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="The .onnx file; its card .toml lies beside it.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model of the same name.")
    ] = False,
) -> None:
    """Copy a model and its card into the user's registry, so that --model takes it by name.

    [bold]Example[/]: agelens models add exported/mine.onnx
    """
    from agelens.bundle import add_model

    bundle = add_model(file, overwrite=overwrite)
    output_console().print(
        f"added [bold]{bundle.card.identifier}[/] in {escape(str(bundle.folder))}", soft_wrap=True
    )


def _megabytes(bundle: Bundle) -> str:
    """Size of the weights, or a dash where the package that carries them is not installed."""
    if bundle.absent_packages():
        return "-"
    return f"{bundle.size_bytes() / 1e6:.1f}"
