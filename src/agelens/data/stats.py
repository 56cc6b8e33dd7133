"""
Who is in a data set: ages by gender by group, as numbers, tables and one picture.

A label that is a range counts evenly for each of its years.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agelens.data.schema import OLDEST_AGE, FaceTable
from agelens.errors import ArgumentError, MissingExtra

GENDER_ROWS: Final = ("female", "male", "unlabelled")
DEFAULT_EDGES: Final = (0, 3, 10, 13, 18, 25, 35, 45, 55, 65, 75)
_AGES: Final = OLDEST_AGE + 1
_UNKNOWN: Final = "(none)"
_COLOURS: Final = ("#c65d21", "#2f6db3", "#8a8a8a")


@dataclass(frozen=True, eq=False)
class AgeCounts:
    """Faces by group, gender and age.

    Attributes:
        by: Column that the groups are values of.
        groups: Names, sorted.
        ages: (groups, 3, 123) float64: faces of each gender and age; the second axis is female,
            male, unlabelled. Sums to the number of faces with an age.
        without_age: (groups, 3) int64: faces without an age.
    """

    by: str
    groups: tuple[str, ...]
    ages: NDArray[np.float64]
    without_age: NDArray[np.int64]

    @property
    def total(self) -> int:
        """Faces in all."""
        return round(float(self.ages.sum())) + int(self.without_age.sum())

    def banded(self, edges: Sequence[int] = DEFAULT_EDGES) -> NDArray[np.float64]:
        """(groups, 3, bands) faces of the ages from each edge to before the next.

        Raises:
            ArgumentError: The edges do not rise from 0 within 0..122.
        """
        starts = _checked_edges(edges)
        upto = np.concatenate([np.zeros((*self.ages.shape[:2], 1)), self.ages.cumsum(-1)], -1)
        ends = [*starts[1:], _AGES]
        return np.stack(
            [upto[..., e] - upto[..., s] for s, e in zip(starts, ends, strict=True)], -1
        )

    def rows(self, edges: Sequence[int] = DEFAULT_EDGES) -> list[dict[str, str | float]]:
        """One row a group, gender and band: group, gender, ages, faces, share of the group."""
        names = band_names(edges)
        table = self.banded(edges)
        rows: list[dict[str, str | float]] = []
        for g, group in enumerate(self.groups):
            size = float(table[g].sum() + self.without_age[g].sum())
            for k, gender in enumerate(GENDER_ROWS):
                cells = [*zip(names, table[g, k], strict=True)]
                cells.append(("no age", float(self.without_age[g, k])))
                rows += [
                    {
                        self.by: group,
                        "gender": gender,
                        "ages": name,
                        "faces": round(float(faces), 1),
                        "share": round(float(faces) / size, 5) if size else 0.0,
                    }
                    for name, faces in cells
                ]
        return rows

    def to_dict(self, edges: Sequence[int] = DEFAULT_EDGES) -> dict[str, Any]:
        """Wire form: counts by group, gender and band."""
        table = self.banded(edges)
        return {
            "by": self.by,
            "ages": band_names(edges),
            "groups": {
                group: {
                    gender: [round(float(v), 1) for v in table[g, k]]
                    for k, gender in enumerate(GENDER_ROWS)
                }
                | {"without_age": int(self.without_age[g].sum())}
                for g, group in enumerate(self.groups)
            },
        }


def band_names(edges: Sequence[int] = DEFAULT_EDGES) -> list[str]:
    """Names such as 0-2, 3-9 and 75+."""
    starts = _checked_edges(edges)
    names = [str(a) if b - a == 1 else f"{a}-{b - 1}" for a, b in pairwise(starts)]
    return [*names, f"{starts[-1]}+"]


def _checked_edges(edges: Sequence[int]) -> list[int]:
    starts = [int(edge) for edge in edges]
    rising = all(a < b for a, b in pairwise(starts))
    if not starts or starts[0] != 0 or not rising or starts[-1] > OLDEST_AGE:
        raise ArgumentError(
            f"age bands must start at 0 and rise within 0..{OLDEST_AGE}, got {list(edges)}"
        )
    return starts


def count_faces(table: FaceTable, *, by: str = "dataset", split: str | None = None) -> AgeCounts:
    """Count the faces of a table; reads no pictures.

    Args:
        table: The faces.
        by: Column whose values are the groups: dataset, split, licence_class or an audit column.
        split: Count this split only.

    Raises:
        ArgumentError: There is no such column.
        DataError: The table cannot be read.
    """
    if by not in table.columns or by in ("image", "box", "landmarks"):
        possible = [c for c in table.columns if c not in ("image", "box", "landmarks")]
        raise ArgumentError(f"cannot group by {by!r}; choose one of {', '.join(possible)}")
    columns = list(dict.fromkeys(["age_min", "age_max", "gender", "split", by]))
    labels = table.labels(columns).to_pydict()
    kept = [i for i, name in enumerate(labels["split"]) if split is None or name == split]
    return count_labels(
        [labels["age_min"][i] for i in kept],
        [labels["age_max"][i] for i in kept],
        [labels["gender"][i] for i in kept],
        [labels[by][i] for i in kept],
        by=by,
    )


def count_labels(
    age_min: Sequence[int | None],
    age_max: Sequence[int | None],
    gender: Sequence[str | None],
    group: Sequence[object],
    *,
    by: str = "group",
) -> AgeCounts:
    """Count labels given as columns of the same length."""
    keys = [_UNKNOWN if name is None else str(name) for name in group]
    groups = sorted(set(keys))
    place = {name: i for i, name in enumerate(groups)}
    row = {"female": 0, "male": 1}
    # Ranges are added as steps up and down; their running sum is the count of each age.
    steps = np.zeros((len(groups), 3, _AGES + 1))
    without = np.zeros((len(groups), 3), np.int64)
    for low, high, word, key in zip(age_min, age_max, gender, keys, strict=True):
        g, k = place[key], row.get(word or "", 2)
        if low is None or high is None or not 0 <= low <= high <= OLDEST_AGE:
            without[g, k] += 1
            continue
        share = 1 / (high - low + 1)
        steps[g, k, low] += share
        steps[g, k, high + 1] -= share
    ages = np.maximum(steps.cumsum(-1)[..., :-1], 0)
    return AgeCounts(by, tuple(groups), ages, without)


def draw(counts: AgeCounts, output: Path, *, title: str = "") -> None:
    """Draw ages by gender, one panel a group, to a PNG, SVG or PDF file.

    Raises:
        ArgumentError: There are no faces, or the file's ending is none of these.
        MissingExtra: matplotlib is not installed.
    """
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ArgumentError(f"{output}: a picture ends in .png, .svg or .pdf")
    if not counts.groups:
        raise ArgumentError("there are no faces to draw")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("train", "drawing the ages of a data set") from error
    shown = np.argsort(-counts.ages.sum((1, 2)), kind="stable")[:_MOST_PANELS]
    wide = min(3, len(shown))
    high = -(-len(shown) // wide)
    figure = Figure(figsize=(4.6 * wide, 0.7 + 3.1 * high), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(high, wide, squeeze=False).ravel()
    for panel, g in zip(panels, sorted(shown), strict=False):
        _draw_panel(panel, counts, int(g))
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    left_out = len(counts.groups) - len(shown)
    figure.suptitle(title or f"Ages by gender and {counts.by}")
    if left_out:
        figure.supxlabel(f"{left_out} smaller groups are not drawn", fontsize=8)
    _save(figure, output)


_MOST_PANELS: Final = 12


def _draw_panel(panel: Any, counts: AgeCounts, g: int) -> None:
    """Two histograms back to back, as demographers draw them; unlabelled in grey behind."""
    ages = np.arange(_AGES)
    female, male, unlabelled = counts.ages[g]
    for values, sign, colour, name in (
        (female, 1, _COLOURS[0], "female"),
        (male, -1, _COLOURS[1], "male"),
    ):
        faces = round(float(values.sum()))
        panel.bar(ages, sign * values, width=1.0, color=colour, label=f"{name} {faces:,}")
    if unlabelled.any():
        faces = round(float(unlabelled.sum()))
        label = f"gender not labelled {faces:,}"
        for sign, base in ((1, female), (-1, male)):
            panel.bar(
                ages,
                sign * unlabelled / 2,
                width=1.0,
                bottom=sign * base,
                color=_COLOURS[2],
                label=label if sign > 0 else None,
            )
    panel.axhline(0, color="black", linewidth=0.6)
    oldest = int(np.flatnonzero(counts.ages[g].sum(0) > 1e-6).max(initial=0))
    panel.set_xlim(-1, max(90, oldest + 2))
    panel.set_title(f"{counts.groups[g]}", fontsize=10)
    panel.set_xlabel("age in completed years", fontsize=8)
    panel.set_ylabel("faces a year of age", fontsize=8)
    panel.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    panel.tick_params(labelsize=8)
    panel.legend(fontsize=7, frameon=False)


def _save(figure: Any, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.{os.getpid()}.tmp{output.suffix}")
    # Without these the file holds the time of drawing, and no two runs are alike.
    undated: Mapping[str, Mapping[str, None]] = {
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None},
    }
    try:
        figure.savefig(partial, dpi=140, metadata=dict(undated.get(output.suffix.lower(), {})))
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
