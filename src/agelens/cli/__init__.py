"""
The command ``agelens``: each command parses, calls one function of the library, and prints.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from agelens import __version__
from agelens.cli import analyze as _analyze
from agelens.cli import audit as _audit
from agelens.cli import calibrate as _calibrate
from agelens.cli import card as _card
from agelens.cli import data as _data
from agelens.cli import evaluate as _evaluate
from agelens.cli import gate as _gate
from agelens.cli import keys as _keys
from agelens.cli import leaderboard as _leaderboard
from agelens.cli import models as _models
from agelens.cli import report as _report
from agelens.cli import serve as _serve
from agelens.cli import train as _train
from agelens.cli import visits as _visits
from agelens.cli import watch as _watch
from agelens.cli.console import error_console
from agelens.errors import AgeLensError

app = typer.Typer(
    name="agelens",
    help="Age and gender of faces as calibrated distributions: offline, fast, auditable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("analyze")(_analyze.analyze)
app.add_typer(_models.app, name="models")
app.add_typer(_data.app, name="data")
app.command("train")(_train.train)
app.command("export")(_train.export)
app.command("evaluate")(_evaluate.evaluate)
app.command("calibrate")(_calibrate.calibrate)
app.command("audit")(_audit.audit)
app.command("leaderboard")(_leaderboard.leaderboard)
app.command("card")(_card.card)
app.add_typer(_gate.app, name="gate")
app.add_typer(_keys.app, name="keys")
app.command("serve")(_serve.serve)
app.command("watch")(_watch.watch)
app.command("report")(_report.report)
app.add_typer(_visits.app, name="visits")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agelens {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; exits 0 all well, 1 some failed, 2 wrong usage, 130 interrupted."""
    try:
        app(standalone_mode=True)
    except AgeLensError as error:
        error_console().print(f"[bold red]error:[/] {_escape(error)}", soft_wrap=True)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder without permission
        error_console().print(f"[bold red]error:[/] {_escape(error)}", soft_wrap=True)
        sys.exit(2)


def _escape(error: Exception) -> str:
    from rich.markup import escape

    return escape(str(error))
