"""
Where the command line writes: results to standard output, all else to standard error.
"""

from __future__ import annotations

from rich.console import Console


def output_console() -> Console:
    """For results."""
    return Console(highlight=False, soft_wrap=False)


def error_console() -> Console:
    """For progress and messages."""
    return Console(stderr=True, highlight=False)
