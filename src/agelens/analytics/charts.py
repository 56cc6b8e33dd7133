"""
Charts of visitors: one specification, drawn as SVG for the page and for paper, and told as a table.

A drawing is 360 units wide and as wide as its parent, so that on a telephone one unit is one pixel
and the smallest text stays readable. Colours are those of ``evaluation.plots``, and nothing is told
by colour alone. What is hidden is hatched, what no camera saw is dotted; neither looks like 0.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from agelens.analytics.export import plain_cell
from agelens.analytics.overview import Overview
from agelens.analytics.period import MONTHS, WEEKDAYS
from agelens.analytics.profile import GroupShare, Profile
from agelens.evaluation.plots import LIGHT

Ground = Literal["page", "paper"]
Kind = Literal["count", "rate", "share", "seconds", "hours"]
Row = tuple[str, ...]
Interval = tuple[float, float, float]
"""Value, lower and upper end."""

HIDDEN: Final = "too few to show"
ABSENT: Final = "no camera"


@dataclass(frozen=True)
class Series:
    """Values of one kind; None is drawn as hidden, never as 0."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Columns:
    """Upright bars side by side; a second series is drawn as marks before them.

    Attributes:
        title: What it shows; not in the picture.
        axis: What the values are, with unit.
        kind: How values are written.
        head: What the columns are.
        labels: Below the columns; as many are left out as would touch.
        names: Of the columns, in full.
        series: One, or two where the second is what it is compared with.
        absent: Columns that nothing was measured in.
    """

    title: str
    axis: str
    kind: Kind
    head: str
    labels: tuple[str, ...]
    names: tuple[str, ...]
    series: tuple[Series, ...]
    absent: tuple[bool, ...]


@dataclass(frozen=True)
class Rows:
    """Lying bars under each other, each label in full above its bars.

    Attributes:
        title: What it shows; not in the picture.
        axis: What the values are, with unit.
        kind: How values are written.
        head: What the rows are.
        labels: Of the rows.
        series: One, or several.
    """

    title: str
    axis: str
    kind: Kind
    head: str
    labels: tuple[str, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Side:
    """Shares (0..1) by group, as counted and corrected, with intervals; None when not told.

    Where nothing is told as counted nothing is told as corrected, whatever it is.
    """

    name: str
    raw: tuple[Interval | None, ...]
    corrected: tuple[Interval | None, ...]


@dataclass(frozen=True)
class Pyramid:
    """Bands of age, the youngest lowest, with one side to the left and one to the right."""

    title: str
    axis: str
    bands: tuple[str, ...]
    left: Side
    right: Side


@dataclass(frozen=True)
class Shares:
    """Shares of groups under each other, with intervals."""

    title: str
    axis: str
    head: str
    labels: tuple[str, ...]
    side: Side


@dataclass(frozen=True)
class HeatMap:
    """A table of shades.

    Attributes:
        title: What it shows; not in the picture.
        axis: What the shades are, with unit.
        kind: How values are written.
        rows: Names of the rows.
        labels: Of the columns; as many are left out as would touch.
        columns: Names of the columns, in full.
        values: By row; None is hidden.
        absent: Cells that nothing was measured in.
    """

    title: str
    axis: str
    kind: Kind
    rows: tuple[str, ...]
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    absent: tuple[tuple[bool, ...], ...]


Chart = Columns | Rows | Pyramid | Shares | HeatMap


# --- what is charted ------------------------------------------------------------------------------


def overview_charts(overview: Overview) -> dict[str, Chart]:
    """The charts of an overview by name, in the order of the page; those without data left out.

    Names: by-hour, by-day, heat-map, pyramid, age, gender, cameras, zones, zone-stays, lines,
    coverage.
    """
    charts: dict[str, Chart] = {"by-hour": _by_hour(overview)}
    if overview.period.days > 1:
        charts["by-day"] = _by_day(overview)
        charts["heat-map"] = _heat_map(overview)
    charts |= _profile_charts(overview.profile)
    if len(overview.cameras) > 1:
        charts["cameras"] = _cameras(overview)
    if overview.zones:
        charts["zones"] = _zones(overview)
        charts["zone-stays"] = _zone_stays(overview)
    if overview.lines:
        charts["lines"] = _lines(overview)
    if overview.expected_hours > 0:
        charts["coverage"] = _coverage(overview)
    return charts


def _by_hour(overview: Overview) -> Columns:
    hours = overview.hours
    return Columns(
        "Visitors by hour of the day",
        "visitors",
        "count",
        "hour",
        tuple(str(one.hour) for one in hours),
        tuple(f"{one.hour:02d}:00 to {one.hour:02d}:59" for one in hours),
        (
            Series("this period", tuple(one.visitors for one in hours)),
            Series("the one before", tuple(one.before for one in hours)),
        ),
        tuple(one.watched_hours <= 0 for one in hours),
    )


def _by_day(overview: Overview) -> Columns:
    days = overview.days
    series = [Series("this period", tuple(one.visitors for one in days))]
    if len(days) % len(WEEKDAYS) == 0:  # else a Sunday would stand against a Monday
        series.append(Series("the one before", tuple(one.before for one in days)))
    labels = [
        f"{one.day.day} {MONTHS[one.day.month - 1][:3]}"
        if number == 0 or one.day.day == 1
        else str(one.day.day)
        for number, one in enumerate(days)
    ]
    return Columns(
        "Visitors by day",
        "visitors",
        "count",
        "day",
        tuple(labels),
        tuple(f"{WEEKDAYS[one.day.weekday()][:3]} {one.day.isoformat()}" for one in days),
        tuple(series),
        tuple(one.watched_hours <= 0 for one in days),
    )


def _heat_map(overview: Overview) -> HeatMap:
    heat = overview.heat
    return HeatMap(
        "Visitors by weekday and hour",
        "visitors in an hour, on average",
        "rate",
        tuple(name[:3] for name in WEEKDAYS),
        tuple(str(hour) for hour in range(len(heat[0]))),
        tuple(f"{hour:02d}:00" for hour in range(len(heat[0]))),
        tuple(tuple(cell.visitors_an_hour for cell in row) for row in heat),
        tuple(tuple(cell.watched_hours <= 0 for cell in row) for row in heat),
    )


def _profile_charts(profile: Profile) -> dict[str, Chart]:
    if not profile.age:
        return {}
    bands = tuple(name.replace("-", "–") for name in profile.bands)
    men, women = profile.joint[0::2], profile.joint[1::2]
    axis = "share of the visitors"
    return {
        "pyramid": Pyramid(
            "Visitors by age and perceived gender",
            axis,
            bands,
            _side("perceived male", men),
            _side("perceived female", women),
        ),
        "age": Shares("Visitors by age", axis, "age", bands, _side("", profile.age)),
        "gender": Shares(
            "Visitors by perceived gender",
            axis,
            "perceived gender",
            tuple(group.name for group in profile.gender),
            _side("", profile.gender),
        ),
    }


def _side(name: str, groups: Sequence[GroupShare]) -> Side:
    return Side(
        name,
        tuple(
            None if one.raw is None else (one.raw.value, one.raw.low, one.raw.high)
            for one in groups
        ),
        tuple(
            None
            if one.corrected is None
            else (one.corrected.value, one.corrected.low, one.corrected.high)
            for one in groups
        ),
    )


def _cameras(overview: Overview) -> Rows:
    cameras = overview.cameras
    return Rows(
        "Visitors by camera",
        "visitors",
        "count",
        "camera",
        tuple(place_words(overview, one.site, one.camera) for one in cameras),
        (
            Series("this period", tuple(one.visitors for one in cameras)),
            Series("the one before", tuple(one.before for one in cameras)),
        ),
    )


def _zones(overview: Overview) -> Rows:
    return Rows(
        "Visitors by zone",
        "visitors",
        "count",
        "zone",
        tuple(place_words(overview, one.site, one.camera, one.zone) for one in overview.zones),
        (Series("this period", tuple(one.visitors for one in overview.zones)),),
    )


def _zone_stays(overview: Overview) -> Rows:
    return Rows(
        "Stay in a zone",
        "mean, seconds",
        "seconds",
        "zone",
        tuple(place_words(overview, one.site, one.camera, one.zone) for one in overview.zones),
        (Series("mean stay", tuple(one.seconds for one in overview.zones)),),
    )


def _lines(overview: Overview) -> Rows:
    return Rows(
        "Crossings of lines",
        "crossings",
        "count",
        "line",
        tuple(place_words(overview, one.site, one.camera, one.line) for one in overview.lines),
        (
            Series("in", tuple(one.entered for one in overview.lines)),
            Series("out", tuple(one.left for one in overview.lines)),
        ),
    )


def _coverage(overview: Overview) -> Rows:
    cameras = overview.cameras
    return Rows(
        "Hours that cameras watched",
        "hours",
        "hours",
        "camera",
        tuple(place_words(overview, one.site, one.camera) for one in cameras),
        (
            Series("watched", tuple(one.watched_hours for one in cameras)),
            Series("missing", tuple(one.missing_hours for one in cameras)),
        ),
    )


def place_words(overview: Overview, site: str, camera: str, part: str = "") -> str:
    """A camera, or a part of its picture; with its site where there are several."""
    words = f"{part} ({camera})" if part and len(overview.cameras) > 1 else part or camera
    if len(overview.sites) == 1:
        return words
    title = next((one.title for one in overview.sites if one.site == site), site)
    return f"{title}: {words}"


# --- tables ---------------------------------------------------------------------------------------


def table(chart: Chart) -> tuple[Row, list[Row]]:
    """Head and rows of the same figures as text; what is hidden says so."""
    if isinstance(chart, Columns):
        head = (chart.head, *(one.name for one in chart.series))
        return head, [
            (name, *_cells(chart.series, place, chart.kind, chart.absent[place]))
            for place, name in enumerate(chart.names)
        ]
    if isinstance(chart, Rows):
        head = (chart.head, *(one.name for one in chart.series))
        return head, [
            (name, *_cells(chart.series, place, chart.kind, absent=False))
            for place, name in enumerate(chart.labels)
        ]
    if isinstance(chart, HeatMap):
        return ("", *chart.columns), [
            (name, *(_cell(v, chart.kind, gone) for v, gone in zip(values, absent, strict=True)))
            for name, values, absent in zip(chart.rows, chart.values, chart.absent, strict=True)
        ]
    if isinstance(chart, Shares):
        return (chart.head, "as counted", "corrected"), [
            (name, *_both(chart.side, place)) for place, name in enumerate(chart.labels)
        ]
    sides = chart.left, chart.right
    head = ("age", *(f"{one.name}, {what}" for one in sides for what in _COUNTED_AND_CORRECTED))
    return head, [
        (name, *(cell for one in sides for cell in _both(one, place)))
        for place, name in enumerate(chart.bands)
    ]


_COUNTED_AND_CORRECTED: Final = ("as counted", "corrected")


def _cells(series: Sequence[Series], place: int, kind: Kind, absent: bool) -> Iterator[str]:
    for number, one in enumerate(series):
        yield _cell(one.values[place], kind, absent and number == 0)


def _cell(value: float | None, kind: Kind, absent: bool) -> str:
    if absent:
        return ABSENT
    return HIDDEN if value is None else value_text(value, kind)


def _both(side: Side, place: int) -> tuple[str, str]:
    raw, corrected = side.raw[place], side.corrected[place]
    if raw is None:
        return HIDDEN, HIDDEN
    return interval_text(raw), "not possible" if corrected is None else interval_text(corrected)


def value_text(value: float, kind: Kind) -> str:
    """A value as people read it."""
    if kind == "share":
        return f"{100 * value:.1f} %" if value < 0.0995 else f"{100 * value:.0f} %"
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "seconds":
        return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"
    if kind == "hours":
        return f"{value:,.1f} h"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def interval_text(found: Interval) -> str:
    """A share with its interval, as "12 % (9.1 % to 15 %)"."""
    value, low, high = (value_text(one, "share") for one in found)
    return f"{value} ({low} to {high})"


@dataclass(frozen=True)
class Figure:
    """One figure of a chart.

    Attributes:
        row: What it is of.
        column: Which of its figures.
        value: None when hidden, or when there is none.
        low: Lower end of its interval, or None.
        high: Upper end.
        state: ``HIDDEN``, ``ABSENT`` or empty.
    """

    row: str
    column: str
    value: float | None
    low: float | None = None
    high: float | None = None
    state: str = ""


CSV_HEAD: Final = ("row", "column", "value", "low", "high", "state")


def figures(chart: Chart) -> Iterator[Figure]:
    """All figures of a chart, row by row."""
    if isinstance(chart, Columns | Rows):
        names = chart.names if isinstance(chart, Columns) else chart.labels
        for place, name in enumerate(names):
            gone = isinstance(chart, Columns) and chart.absent[place]
            for number, one in enumerate(chart.series):
                yield _figure(name, one.name, one.values[place], gone and number == 0)
    elif isinstance(chart, HeatMap):
        for row, values, absent in zip(chart.rows, chart.values, chart.absent, strict=True):
            for column, value, gone in zip(chart.columns, values, absent, strict=True):
                yield _figure(row, column, value, gone)
    else:
        names = chart.labels if isinstance(chart, Shares) else chart.bands
        sides = [chart.side] if isinstance(chart, Shares) else [chart.left, chart.right]
        for place, name in enumerate(names):
            for side in sides:
                yield from _share_figures(name, side, place)


def _figure(row: str, column: str, value: float | None, gone: bool) -> Figure:
    if gone:
        return Figure(row, column, None, state=ABSENT)
    return Figure(row, column, value, state=HIDDEN if value is None else "")


def _share_figures(row: str, side: Side, place: int) -> Iterator[Figure]:
    prefix = f"{side.name}, " if side.name else ""
    raw, corrected = side.raw[place], side.corrected[place]
    if raw is None:
        yield Figure(row, f"{prefix}as counted", None, state=HIDDEN)
        if any(one is not None for one in side.corrected):
            yield Figure(row, f"{prefix}corrected", None, state=HIDDEN)
        return
    yield Figure(row, f"{prefix}as counted", *raw)
    if corrected is not None:
        yield Figure(row, f"{prefix}corrected", *corrected)


def figure_cells(figure: Figure) -> tuple[str, ...]:
    """A figure as cells of CSV, by ``CSV_HEAD``."""
    numbers = (figure.value, figure.low, figure.high)
    return (
        plain_cell(figure.row),
        plain_cell(figure.column),
        *("" if number is None else f"{number:.10g}" for number in numbers),
        figure.state,
    )


def csv_text(chart: Chart) -> str:
    """The figures as CSV, one a line; names that a spreadsheet would run get a leading "'"."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    writer.writerows(figure_cells(figure) for figure in figures(chart))
    return output.getvalue()


# --- drawing --------------------------------------------------------------------------------------

WIDTH: Final = 360.0
_FONT: Final = "system-ui, 'DejaVu Sans', sans-serif"
_SIZE: Final = 11.0
_LINE: Final = 15.0
_PLOT_HEIGHT: Final = 150.0
_GAP: Final = 6.0
_NARROW: Final = frozenset("iljtfrI.,:;'|!()[] ")
_WIDE: Final = frozenset("mwMW%@—…")


def svg(chart: Chart, *, ground: Ground = "page") -> str:
    """A chart as one ``<svg>`` element that is as wide as its parent, with a text alternative.

    Args:
        chart: What to draw.
        ground: "page" takes colours from the CSS variables of ``evaluation.plots.PLOT_STYLE`` in
            style attributes, "paper" has plain colours.
    """
    canvas = _Canvas(ground)
    if isinstance(chart, Columns):
        height = _draw_columns(canvas, chart)
    elif isinstance(chart, Rows):
        height = _draw_rows(canvas, chart)
    elif isinstance(chart, HeatMap):
        height = _draw_heat_map(canvas, chart)
    elif isinstance(chart, Shares):
        height = _draw_shares(canvas, chart)
    else:
        height = _draw_pyramid(canvas, chart)
    words = html.escape(in_words(chart), quote=True)
    return (
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} '
        f'{_number(height)}" role="img" aria-label="{words}" font-family="{_FONT}" '
        f'font-size="{_SIZE:g}">{"".join(canvas.parts)}</svg>'
    )


def in_words(chart: Chart) -> str:
    """What a chart shows, in a sentence or two, for readers who cannot see it."""
    words = f"{chart.title}. "
    if isinstance(chart, Columns | Rows):
        names = chart.names if isinstance(chart, Columns) else chart.labels
        first = chart.series[0]
        told = [(value, name) for value, name in zip(first.values, names, strict=True) if value]
        if told:
            value, name = max(told, key=lambda pair: pair[0])
            words += f"Most: {value_text(value, chart.kind)}, {name}. "
        hidden = sum(value is None for value in first.values)
        return words + (f"{hidden} of {len(names)} {HIDDEN}." if hidden else "")
    if isinstance(chart, HeatMap):
        cells = [
            (value, f"{row} {column}")
            for row, values in zip(chart.rows, chart.values, strict=True)
            for column, value in zip(chart.columns, values, strict=True)
            if value
        ]
        if not cells:
            return words
        value, name = max(cells)
        return f"{words}Most: {value_text(value, chart.kind)} {chart.axis}, {name}."
    head, rows = table(chart)
    return words + "; ".join(
        f"{row[0]}: " + ", ".join(f"{h} {c}" for h, c in zip(head[1:], row[1:], strict=True))
        for row in rows
    )


class _Canvas:
    """Collects the elements of one drawing."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.parts: list[str] = []

    def paint(self, **colours: str) -> str:
        """Attributes that colour an element; names as of ``plots.Palette.named``."""
        light = LIGHT.named()
        plain = {name: light.get(value, value) for name, value in colours.items()}
        if self.ground == "paper":
            return "".join(f' {name}="{value}"' for name, value in plain.items())
        css = ";".join(
            f"{name}:var(--plot-{value},{plain[name]})" if value in light else f"{name}:{value}"
            for name, value in colours.items()
        )
        return f' style="{css}"'

    def text(
        self, x: float, y: float, words: str, *, anchor: str = "start", colour: str = "ink"
    ) -> None:
        place = f'x="{_number(x)}" y="{_number(y)}"'
        turn = "" if anchor == "start" else f' text-anchor="{anchor}"'
        safe = html.escape(words, quote=False)
        self.parts.append(f"<text {place}{turn}{self.paint(fill=colour)}>{safe}</text>")

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: str,
        *,
        opacity: float = 1,
        title: str = "",
        outline: bool = False,
    ) -> None:
        see = "" if opacity == 1 else f' {"stroke" if outline else "fill"}-opacity="{opacity:.3g}"'
        paint = self.paint(fill="none", stroke=colour) if outline else self.paint(fill=colour)
        shape = (
            f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(max(width, 0))}" '
            f'height="{_number(max(height, 0))}"{see}{paint}'
        )
        self.parts.append(shape + _titled("rect", title))

    def line(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        colour: str,
        *,
        width: float = 1,
        dash: str = "",
    ) -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{_number(x0)}" y1="{_number(y0)}" x2="{_number(x1)}" y2="{_number(y1)}" '
            f'stroke-width="{width:g}"{dashes}{self.paint(stroke=colour)}/>'
        )

    def hatched(self, x: float, y: float, width: float, height: float, title: str = "") -> None:
        """What is hidden."""
        steps = []
        for start in range(-int(height), int(width) + 1, 4):
            # A stroke of 45 degrees, cut to the box.
            low, high = max(0, -start), min(height, width - start)
            if high > low:
                steps.append(
                    f"M{_number(x + start + low)} {_number(y + height - low)}"
                    f"L{_number(x + start + high)} {_number(y + height - high)}"
                )
        stroke = self.paint(fill="none", stroke="muted")
        self.parts.append(f'<path d="{"".join(steps)}" stroke-width="0.8"{stroke}/>')
        self.rect(x, y, width, height, "muted", outline=True, title=title)

    def dotted(self, x: float, y: float, width: float, height: float, title: str = "") -> None:
        """What no camera saw."""
        self.rect(x, y, width, height, "muted", opacity=0.12, title=title)
        middle = x + width / 2
        self.line(middle, y, middle, y + height, "muted", dash="1 3")

    def tick(self, x: float, y: float, width: float, title: str = "") -> None:
        """A mark of what is compared with: a dash with a dot."""
        self.line(x, y, x + width, y, "2", width=1.6)
        self.dot(x + width / 2, y, "2", title=title, radius=min(2.2, width / 3))

    def dot(self, x: float, y: float, colour: str, *, title: str = "", radius: float = 2.6) -> None:
        shape = f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{radius:.3g}"'
        self.parts.append(shape + self.paint(fill=colour) + _titled("circle", title))


def _titled(name: str, title: str) -> str:
    return f"><title>{html.escape(title, quote=False)}</title></{name}>" if title else "/>"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def text_width(words: str, size: float = _SIZE) -> float:
    """About how wide a text is, in units; rather more, as fonts differ."""
    total = 0.0
    for letter in words:
        if letter in _NARROW:
            total += 0.4
        elif letter in _WIDE:
            total += 1.0
        elif ord(letter) >= 0x1100:  # scripts whose letters fill a square
            total += 1.05
        else:
            total += 0.72 if letter.isupper() else 0.63
    return total * size


def wrapped(words: str, width: float) -> list[str]:
    """Lines that fit into a width; a word that does not is broken, nothing is left out."""
    lines: list[str] = []
    line = ""
    for word in words.split(" "):
        longer = f"{line} {word}" if line else word
        if text_width(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = ""
        for letter in word:
            if line and text_width(line + letter) > width:
                lines.append(line)
                line = ""
            line += letter
    return [*lines, line]


@dataclass(frozen=True)
class _Key:
    """One entry of a legend: a mark and what it is."""

    mark: Literal["bar", "second", "tick", "interval", "open", "hidden", "absent"]
    words: str


def _draw_keys(canvas: _Canvas, keys: Sequence[_Key], y: float) -> float:
    """A legend that breaks into lines; returns the height below it."""
    x = 0.0
    for key in keys:
        width = 20 + text_width(key.words)
        if x > 0 and x + width > WIDTH:
            x, y = 0.0, y + _LINE
        _draw_mark(canvas, key.mark, x, y)
        canvas.text(x + 16, y + 10, key.words)
        x += width + 8
    return y + _LINE + 4 if keys else y


def _draw_mark(canvas: _Canvas, mark: str, x: float, y: float) -> None:
    if mark == "bar":
        canvas.rect(x, y + 1, 11, 10, "1")
    elif mark == "second":
        canvas.rect(x + 0.5, y + 1.5, 10, 9, "2", outline=True)
    elif mark == "tick":
        canvas.tick(x, y + 6, 11)
    elif mark == "interval":
        canvas.rect(x, y + 1, 9, 10, "1", opacity=0.45)
        canvas.line(x + 5, y + 6, x + 13, y + 6, "1", width=1.8)
    elif mark == "open":
        canvas.line(x + 5.5, y + 1, x + 5.5, y + 11, "2", width=2)
    elif mark == "hidden":
        canvas.hatched(x + 0.5, y + 1.5, 10, 9)
    else:
        canvas.dotted(x, y + 1, 11, 10)


def _ticks(highest: float, wanted: int = 4, *, whole: bool = False) -> list[float]:
    """Round values from 0 to the first at or over the highest."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / wanted
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    count = math.ceil(highest / step - 1e-9)
    return [step * number for number in range(count + 1)]


def _axis_text(value: float, kind: Kind) -> str:
    if kind == "share":
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.10g}"


# --- columns --------------------------------------------------------------------------------------


def _draw_columns(canvas: _Canvas, chart: Columns) -> float:
    told = [value for one in chart.series for value in one.values if value is not None]
    ticks = _ticks(max(told, default=0), whole=chart.kind == "count")
    marks = [_axis_text(tick, chart.kind) for tick in ticks]
    left = max(text_width(mark) for mark in marks) + 6
    top = _draw_keys(canvas, _column_keys(chart), 0)
    canvas.text(0, top + 10, chart.axis, colour="muted")
    top += _LINE + 6
    bottom = top + _PLOT_HEIGHT
    scale = _PLOT_HEIGHT / ticks[-1]
    for tick, mark in zip(ticks, marks, strict=True):
        y = bottom - scale * tick
        canvas.line(left, y, WIDTH, y, "faint")
        canvas.text(left - 5, y + 4, mark, anchor="end")
    slot = (WIDTH - left) / len(chart.labels)
    for place in range(len(chart.labels)):
        _draw_column(canvas, chart, place, left + place * slot, slot, (top, bottom), scale)
    canvas.line(left, bottom, WIDTH, bottom, "muted")
    _draw_labels(canvas, chart.labels, left, slot, bottom + 15)
    return bottom + 20


def _column_keys(chart: Columns) -> list[_Key]:
    keys = []
    if len(chart.series) > 1:
        keys = [_Key("bar", chart.series[0].name), _Key("tick", chart.series[1].name)]
    if any(
        value is None and not gone
        for value, gone in zip(chart.series[0].values, chart.absent, strict=True)
    ):
        keys.append(_Key("hidden", HIDDEN))
    if any(chart.absent):
        keys.append(_Key("absent", ABSENT))
    return keys


def _draw_column(
    canvas: _Canvas,
    chart: Columns,
    place: int,
    x: float,
    slot: float,
    ends: tuple[float, float],
    scale: float,
) -> None:
    top, bottom = ends
    value = chart.series[0].values[place]
    width = max(1.0, min(0.7 * slot, 46))
    left = x + (slot - width) / 2
    title = f"{chart.names[place]}: {_cell(value, chart.kind, chart.absent[place])}"
    if chart.absent[place]:
        canvas.dotted(left, top, width, bottom - top, title)
    elif value is None:
        canvas.hatched(left, bottom - 7, width, 7, title)
    else:
        canvas.rect(left, bottom - scale * value, width, scale * value, "1", title=title)
    if len(chart.series) > 1:
        before = chart.series[1].values[place]
        if before is not None:
            words = f"{chart.names[place]}, {chart.series[1].name}: "
            wide = min(0.9 * slot, width + 6)
            words += value_text(before, chart.kind)
            canvas.tick(x + (slot - wide) / 2, bottom - scale * before, wide, words)


def _draw_labels(
    canvas: _Canvas, labels: Sequence[str], left: float, slot: float, y: float
) -> None:
    """Labels under their columns, from the first on, those that would touch left out."""
    widest = max(text_width(label) for label in labels)
    step = max(1, math.ceil((min(widest, 24) + _GAP) / slot))
    free = -math.inf
    for place in range(0, len(labels), step):
        width = text_width(labels[place])
        middle = left + (place + 0.5) * slot
        start = min(max(middle - width / 2, left - 6), WIDTH - width)
        if start >= free:
            canvas.text(start + width / 2, y, labels[place], anchor="middle")
            free = start + width + _GAP


# --- rows -----------------------------------------------------------------------------------------

_BAR: Final = 11.0


def _draw_rows(canvas: _Canvas, chart: Rows) -> float:
    several = len(chart.series) > 1
    keys = []
    if several:
        keys = [_Key("bar", chart.series[0].name), _Key("second", chart.series[1].name)]
    if any(value is None for one in chart.series for value in one.values):
        keys.append(_Key("hidden", HIDDEN))
    y = _draw_keys(canvas, keys, 0)
    canvas.text(0, y + 10, chart.axis, colour="muted")
    y += _LINE + 4
    told = [value for one in chart.series for value in one.values if value is not None]
    words = [value_text(value, chart.kind) for value in told]
    right = max((text_width(word) for word in words), default=0) + 8
    scale = (WIDTH - right) / max(*told, 1e-9, 0) if told else 1.0
    for place, label in enumerate(chart.labels):
        for line in wrapped(label, WIDTH):
            canvas.text(0, y + 10, line)
            y += _LINE
        for number, one in enumerate(chart.series):
            _draw_bar(canvas, chart.kind, label, one, place, y, scale, number)
            y += _BAR + 3
        y += 7
    return y


def _draw_bar(
    canvas: _Canvas,
    kind: Kind,
    label: str,
    series: Series,
    place: int,
    y: float,
    scale: float,
    number: int,
) -> None:
    value = series.values[place]
    title = f"{label}, {series.name}: {_cell(value, kind, absent=False)}"
    if value is None:
        canvas.hatched(0.5, y + 0.5, 24, _BAR - 1, title)
        return
    width = scale * value
    if number == 0:
        canvas.rect(0, y, width, _BAR, "1", title=title)
    else:
        canvas.rect(0.5, y + 0.5, max(width - 1, 0.5), _BAR - 1, "2", outline=True, title=title)
    canvas.text(width + 5, y + 9.5, value_text(value, kind))


# --- shares ---------------------------------------------------------------------------------------

_BAND: Final = 21.0


def _share_keys(sides: Sequence[Side]) -> list[_Key]:
    corrected = any(one is not None for side in sides for one in side.corrected)
    hidden = any(one is None for side in sides for one in side.raw)
    if corrected:
        return [
            _Key("interval", "corrected, with 95 % interval"),
            _Key("open", "as counted"),
        ]
    found = [_Key("interval", "as counted, with 95 % interval")]
    return [*found, _Key("hidden", HIDDEN)] if hidden else found


def _highest(sides: Sequence[Side]) -> float:
    ends = [one[2] for side in sides for one in (*side.corrected, *side.raw) if one is not None]
    return max(ends, default=0.1)


def _draw_shares(canvas: _Canvas, chart: Shares) -> float:
    y = _draw_keys(canvas, _share_keys([chart.side]), 0)
    canvas.text(0, y + 10, chart.axis, colour="muted")
    y += _LINE + 2
    left = max(text_width(label) for label in chart.labels) + 8
    ticks = _ticks(_highest([chart.side]))
    right = WIDTH - text_width(_axis_text(ticks[-1], "share")) / 2
    scale = (right - left) / ticks[-1]
    bottom = y + _BAND * len(chart.labels)
    for tick in ticks:
        x = left + scale * tick
        canvas.line(x, y, x, bottom, "faint")
        canvas.text(x, bottom + 13, _axis_text(tick, "share"), anchor="middle")
    for place, label in enumerate(chart.labels):
        middle = y + (place + 0.5) * _BAND
        canvas.text(left - 8, middle + 4, label, anchor="end")
        _draw_share(canvas, chart.side, place, label, middle, left, scale)
    canvas.line(left, y, left, bottom, "muted")
    return bottom + 18


def _draw_share(
    canvas: _Canvas, side: Side, place: int, label: str, y: float, start: float, scale: float
) -> None:
    """One bar with its interval; a negative scale draws to the left."""
    raw, corrected = side.raw[place], side.corrected[place]
    name = f"{label} {side.name}".strip()
    if raw is None:
        canvas.hatched(start if scale > 0 else start - 14, y - 6, 14, 12, f"{name}: {HIDDEN}")
        return
    found = corrected or raw
    value, low, high = (scale * one for one in found)
    left = min(start, start + value)
    title = f"{name}: {interval_text(found)}"
    # Pale enough for the interval and the mark to be seen on it.
    canvas.rect(left, y - 6, abs(value), 12, "1", opacity=0.45, title=title)
    canvas.line(start + low, y, start + high, y, "1", width=1.8)
    for end in (low, high):
        canvas.line(start + end, y - 3, start + end, y + 3, "1", width=1.8)
    if corrected is not None:
        x = start + scale * raw[0]
        canvas.line(x, y - 7.5, x, y + 7.5, "2", width=2.2)


def _draw_pyramid(canvas: _Canvas, chart: Pyramid) -> float:
    sides = chart.left, chart.right
    y = _draw_keys(canvas, _share_keys(sides), 0)
    canvas.text(0, y + 10, chart.axis, colour="muted")
    y += _LINE + 4
    middle = max(text_width(band) for band in chart.bands) + 14
    ticks = _ticks(_highest(sides), 3)
    edge = text_width(_axis_text(ticks[-1], "share")) / 2
    half = (WIDTH - middle) / 2
    scale = (half - edge) / ticks[-1]
    starts = half, half + middle
    canvas.text(starts[0] - 2, y + 9, chart.left.name, anchor="end")
    canvas.text(starts[1] + 2, y + 9, chart.right.name)
    y += _LINE + 2
    bottom = y + _BAND * len(chart.bands)
    for side, start, sign in zip(sides, starts, (-1, 1), strict=True):
        for number, tick in enumerate(ticks):
            x = start + sign * scale * tick
            canvas.line(x, y, x, bottom, "muted" if number == 0 else "faint")
            canvas.text(x, bottom + 13, _axis_text(tick, "share"), anchor="middle")
        for place, band in enumerate(chart.bands):
            height = bottom - (place + 0.5) * _BAND
            _draw_share(canvas, side, place, band, height, start, sign * scale)
    for place, band in enumerate(chart.bands):
        height = bottom - (place + 0.5) * _BAND + 4
        canvas.text(half + middle / 2, height, band, anchor="middle")
    return bottom + 18


# --- heat map -------------------------------------------------------------------------------------

_CELL: Final = 17.0


def _draw_heat_map(canvas: _Canvas, chart: HeatMap) -> float:
    told = [value for row in chart.values for value in row if value is not None]
    highest = max(told, default=0)
    y = _draw_shades(canvas, chart, highest)
    left = max(text_width(name) for name in chart.rows) + 6
    width = (WIDTH - left) / len(chart.columns)
    for row, name in enumerate(chart.rows):
        top = y + row * _CELL
        canvas.text(left - 6, top + 12, name, anchor="end")
        for column, value in enumerate(chart.values[row]):
            x = left + column * width
            gone = chart.absent[row][column]
            title = f"{name} {chart.columns[column]}: {_cell(value, chart.kind, gone)}"
            if gone:
                canvas.dotted(x + 0.5, top + 0.5, width - 1, _CELL - 1, title)
            elif value is None:
                canvas.hatched(x + 1, top + 1, width - 2, _CELL - 2, title)
            else:
                shade = _shade(value, highest)
                box = x + 0.5, top + 0.5, width - 1, _CELL - 1
                canvas.rect(*box, "1", opacity=shade, title=title)
    bottom = y + _CELL * len(chart.rows)
    _draw_labels(canvas, chart.labels, left, width, bottom + 12)
    return bottom + 17


def _shade(value: float, highest: float) -> float:
    return 0.08 + 0.92 * value / highest if highest > 0 else 0.08


def _draw_shades(canvas: _Canvas, chart: HeatMap, highest: float) -> float:
    """What the shades mean; returns the height below it."""
    canvas.text(0, 10, chart.axis, colour="muted")
    y, x = _LINE + 2, 0.0
    canvas.text(x, y + 10, "0")
    x += text_width("0") + 5
    for step in range(6):
        canvas.rect(x, y + 1, 15, 10, "1", opacity=_shade(step, 5))
        x += 16
    words = value_text(highest, chart.kind)
    canvas.text(x + 4, y + 10, words)
    pairs = [
        (value, gone)
        for values, absent in zip(chart.values, chart.absent, strict=True)
        for value, gone in zip(values, absent, strict=True)
    ]
    keys = []
    if any(value is None and not gone for value, gone in pairs):
        keys.append(_Key("hidden", HIDDEN))
    if any(gone for _, gone in pairs):
        keys.append(_Key("absent", ABSENT))
    return _draw_keys(canvas, keys, y + _LINE + 2) + (0 if keys else 4)
