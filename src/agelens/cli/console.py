"""
Where the command line writes: results to standard output, all else to standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


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
