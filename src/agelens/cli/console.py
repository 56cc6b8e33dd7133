"""
Where the command line writes: results to standard output, all else to standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console

_WIDEST: Final = 1000


class _Output(Console):
    """Ends quietly when the reader goes away; Rich would exit with status 1."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        leave_closed_output()
        raise SystemExit(0)


def output_console() -> Console:
    """For results."""
    return _Output(highlight=False, soft_wrap=False)


def error_console() -> Console:
    """For progress and messages."""
    return Console(stderr=True, highlight=False)


def print_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int,
    styles: Sequence[str | None] = (),
) -> None:
    """The first ``left`` columns to the left, figures to the right, nothing left out.

    A figure that is cut short would be a wrong one: a narrow terminal wraps the lines instead.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for place, title in enumerate(head):
        table.add_column(escape(title), justify="left" if place < left else "right", no_wrap=True)
    for number, row in enumerate(rows):
        table.add_row(*map(escape, row), style=styles[number] if styles else None)
    console = output_console()
    console.width = max(console.width, _WIDEST)
    console.print(table)


def leave_closed_output() -> None:
    """After a broken pipe: what is still held back goes nowhere, without another error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, as a function of rows done and rows in all."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console(), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update
