"""
``agelens leaderboard``: every model and installed package on the same faces, in one table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape

from agelens.cli.console import error_console, output_console
from agelens.cli.options import Samples


def leaderboard(
    data: Annotated[
        list[Path], typer.Argument(help="Labelled faces: Parquet files, or folders of them.")
    ],
    models: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Names or files of models, by commas; by default all there are."
        ),
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Also run other packages, where installed.")
    ] = True,
    flip: Annotated[
        bool,
        typer.Option("--flip", help="Each model a second time, averaged with the mirrored face."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for leaderboard.json, .md, .csv, .svg and .png, and for "
            "the answers of each model, so that an interrupted run goes on.",
        ),
    ] = None,
    detector: Annotated[
        str, typer.Option(help="The models' detector: default, none, or insightface:DIR.")
    ] = "default",
    audit: Annotated[
        str | None,
        typer.Option(
            help="Audit column for the gap between groups.", show_default="race, where there is one"
        ),
    ] = None,
    samples: Samples = 1000,
    max_faces: Annotated[
        int | None, typer.Option(min=1, help="Take this many faces, spread over the data.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Also run what is licensed for research only.")
    ] = False,
) -> None:
    """Compare every model, and other packages where they are installed, on the same faces.

    Nothing is downloaded: a package that is not there, or whose weights are not, is a row that
    says so.

    [bold]Examples[/]

      agelens leaderboard utkface-test.parquet fairface-test.parquet --out leaderboard/

      agelens leaderboard ours.parquet --models cc0,models/ours.onnx --no-peers
    """
    from agelens.evaluation.leaderboard import run_leaderboard, write_leaderboard
    from agelens.evaluation.peers import PEERS
    from agelens.evaluation.scoring import ScoringOptions
    from agelens.evaluation.tables import leaderboard_notes

    names = None if models is None else [name.strip() for name in models.split(",") if name.strip()]
    with _Progress() as progress:
        wire = run_leaderboard(
            data,
            names,
            peers=PEERS if peers else (),
            options=ScoringOptions(
                detector=detector, accept_licence=accept_licence, max_rows=max_faces
            ),
            flip=flip,
            kept=None if out is None else out / "answers",
            audit=audit,
            samples=samples,
            progress=progress,
        )
    _print(wire)
    console = output_console()
    for note in leaderboard_notes(wire):
        console.print(f"[dim]{escape(note)}[/]")
    if out is not None:
        for path in write_leaderboard(wire, out):
            error_console().print(f"wrote {escape(str(path))}", soft_wrap=True)


def _print(wire: Mapping[str, Any]) -> None:
    """A row an entry where the terminal is wide enough, else a column an entry."""
    from rich.table import Table

    from agelens.evaluation.tables import leaderboard_columns, leaderboard_rows

    shown = leaderboard_columns(wire)
    titles = [f"{column['title']}, {column['unit']}" for column in shown]
    console = output_console()
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    if console.width >= _WIDE:
        for title in ("model", *titles):
            table.add_column(title, justify="left" if title == "model" else "right")
        for row in leaderboard_rows(wire, shown, interval=False):
            table.add_row(*map(escape, row))
    else:
        measured = {**wire, "entries": [e for e in wire["entries"] if e["state"] == "measured"]}
        rows = leaderboard_rows(measured, shown)
        for name in ("", *(row[0] for row in rows)):
            table.add_column(escape(name), justify="right" if name else "left", overflow="fold")
        for number, title in enumerate(titles, start=1):
            table.add_row(title, *(escape(row[number]) for row in rows))
    console.print(table)


_WIDE: Final = 170


class _Progress:
    """A line on standard error while it is a terminal: whose faces, how many."""

    def __enter__(self) -> Callable[[str, int, int], None]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._shown = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=error_console(),
            transient=True,
        )
        self._shown.start()
        self._tasks: dict[str, Any] = {}
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._shown.stop()

    def _tell(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._shown.add_task(escape(name), total=total)
        self._shown.update(self._tasks[name], completed=done)
