"""
Where the command line writes: results to standard output, all else to standard error.
"""

from __future__ import annotations

import os
import sys

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
