"""
Progress of a run on a terminal: a bar with the current figures, and one line an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Bars on a terminal, lines elsewhere, nothing when not shown. Closes as a context manager."""

    def __init__(
        self, steps: int, epochs: int, *, shown: bool, console: Console | None = None
    ) -> None:
        """Set up the display.

        Args:
            steps: Of an epoch.
            epochs: Of the run.
            shown: False on all processes but one.
            console: Where to; None takes the standard error stream.
        """
        self._steps, self._epochs = steps, epochs
        self._console = console or Console(stderr=True, quiet=not shown)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            transient=True,
            disable=not (shown and self._console.is_terminal),
        )
        self._task: Any = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start_epoch(self, epoch: int, done: int) -> None:
        """Begin a bar for the steps of an epoch, some of which may be done."""
        self._begin(f"epoch {epoch + 1}/{self._epochs}", self._steps, done)

    def advance(self, figures: Mapping[str, float]) -> None:
        """One step more, with the means of the epoch so far."""
        text = (
            f"loss {figures['train_loss']:.3f}  age error {figures['train_age_error']:.2f} y  "
            f"{_gender(figures['train_gender_accuracy'])}"
        )
        self._bars.update(self._task, advance=1, figures=text)

    def start_validation(self, faces: int) -> None:
        """Begin a bar for the faces of a validation."""
        self._begin("validation", faces, 0)

    def advance_validation(self, faces: int) -> None:
        """Some faces more."""
        self._bars.update(self._task, advance=faces)

    def end_epoch(self, row: Mapping[str, float], *, improved: bool) -> None:
        """Write an epoch's line."""
        self._clear()
        self._console.print(
            f"epoch {row['epoch']:.0f}/{self._epochs}  loss {row['train_loss']:.3f}  "
            f"val: MAE {row['val_mae']:.2f} y, age error {row['val_age_error']:.2f} y, "
            f"nll {row['val_age_nll']:.3f}, {_gender(row['val_gender_accuracy'])}"
            f"{'  best' if improved else ''}",
            highlight=False,
            soft_wrap=True,
        )

    def _begin(self, description: str, total: int, done: int) -> None:
        self._clear()
        self._task = self._bars.add_task(description, total=total, completed=done, figures="")

    def _clear(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


__all__ = ["Progress"]


def _gender(accuracy: float) -> str:
    """Accuracy in words; without gender labels or head it is NaN."""
    return "no gender" if math.isnan(accuracy) else f"gender {accuracy:.1%}"
