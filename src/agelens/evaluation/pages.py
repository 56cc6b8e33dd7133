"""
What the pages of evaluation are made of: charts, tables, sections, and words for groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agelens.errors import DataError, MissingExtra
from agelens.evaluation import plots
from agelens.evaluation.metrics import find_metric
from agelens.evaluation.plots import Reading
from agelens.evaluation.tables import estimate_text

Wire = Mapping[str, Any]

ENOUGH: Final = 100
"""Faces of a group that a finding needs."""
COVERAGE_BOUNDS: Final = (0.85, 0.95)
"""Where the coverage of 90 % intervals may lie in a group."""

_TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        title: Above it, without a full stop.
        caption: One sentence or two: what to see.
        svg: The element.
    """

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        head: Column titles.
        rows: Cells as text.
        title: Above it.
        caption: One sentence.
        left: Columns that are words; the others are figures.
        marked: Rows to be pointed out.
        marked_cells: Row and column of single cells to be pointed out.
        wide: Its words need room, also on a phone.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""
    left: int = 1
    marked: frozenset[int] = frozenset()
    marked_cells: frozenset[tuple[int, int]] = frozenset()
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading."""

    title: str
    words: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()


def render(template: str, context: Mapping[str, Any], *, folder: Path = _TEMPLATES) -> str:
    """A page from its template; text in HTML is escaped, charts are not.

    Args:
        template: Its file name.
        context: What it is filled with.
        folder: Where it lies; it can build on the page and the parts that lie here.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtra("eval", "writing an HTML report") from error
    environment = Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Charts are our own SVG, escaped where they hold a label of the data.
    environment.filters["chart"] = Markup
    page = environment.get_template(template)
    return page.render(plot_style=Markup(plots.PLOT_STYLE), **context)


def check_schema(wire: Wire, schema: str, what: str) -> None:
    """Refuse a result of another kind.

    Raises:
        DataError: Its "schema" is another one.
    """
    if wire.get("schema") != schema:
        raise DataError(f"a stored {what} has the schema {schema!r}, got {wire.get('schema')!r}")


# --- groups and figures --------------------------------------------------------------------------


def group_words(column: str, group: Wire) -> str:
    """The faces of a group, as a sentence names them."""
    if column in ("age", "age range"):
        return f"ages {group_name(column, group['value'])}"
    if column == "gender":
        return f"faces labelled {group['value']}"
    if column == "dataset":
        return f"faces of {group['value']}"
    return f"faces labelled {group['value']} ({column})"


def group_name(column: str, value: str) -> str:
    """A group's name as people read it: a range of ages with a dash."""
    return value.replace("-", "–") if column in ("age", "age range") else value


def listed(words: Sequence[str]) -> str:
    """One or more, as a sentence lists them."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def group_table(
    column: str, groups: Sequence[Wire], names: Sequence[str], title: str = ""
) -> Table:
    """Figures of stored groups, a row each, with their intervals.

    Args:
        column: What the groups are of, as "age" or an audit column.
        groups: As the evaluation has them.
        names: Metrics wanted; those that no group has are left out.
        title: Of the table.
    """
    held = [name for name in names if any(name in group["metrics"] for group in groups)]
    if "age_mae" in held and "range_distance" in held:
        held.remove("range_distance")
    metrics = [find_metric(name) for name in held]
    rows = [
        [
            group_name(column, group["value"]),
            f"{group['count']:,}",
            *(estimate_text(group["metrics"].get(m.name), m.text) for m in metrics),
        ]
        for group in groups
    ]
    head = [column, "faces", *(with_unit(metric.title, metric.shown_unit) for metric in metrics)]
    caption = "A label counts in the band that holds all of it." if column == "age" else ""
    return Table(head, rows, title=title, caption=caption)


def reading(label: str, found: Wire, *, marked: bool = False) -> Reading:
    """A stored estimate as a chart takes it."""
    value = math.nan if found["value"] is None else float(found["value"])
    return Reading(label, value, *ends(found), count=found.get("count"), marked=marked)


def readings(column: str, groups: Sequence[Wire], name: str) -> list[Reading]:
    """One metric of stored groups as a chart takes it; groups without it are left out."""
    return [
        reading(group_name(column, group["value"]), group["metrics"][name])
        for group in groups
        if name in group["metrics"]
    ]


def ends(found: Wire) -> tuple[float, float]:
    """Ends of a stored interval; NaN where there is none."""
    low, high = (math.nan if found[k] is None else float(found[k]) for k in ("low", "high"))
    return low, high


def with_unit(title: str, unit: str) -> str:
    """A title with its unit, where it has one."""
    return f"{title}, {unit}" if unit else title


def slug(text: str) -> str:
    """A name that can be part of an id."""
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower())
