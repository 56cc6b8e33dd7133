"""
Charts of measured figures, as SVG text that stands inside a page and follows its colours.

Every function takes plain values, draws with matplotlib and returns one ``<svg>`` element: no
outside reference, text as text, colours as CSS variables (``PLOT_STYLE`` sets them for light and
dark). The four series colours stay apart for red-green and blue-yellow blindness, and no chart
tells its series apart by colour alone.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from agelens.errors import ArgumentError, MissingExtra


@dataclass(frozen=True)
class Palette:
    """Colours of one way of drawing.

    Attributes:
        ink: Text.
        muted: Axes and reference lines.
        faint: Grid.
        series: Four colours that stay apart.
    """

    ink: str
    muted: str
    faint: str
    series: tuple[str, str, str, str]

    def named(self) -> dict[str, str]:
        """The colours by the names of their CSS variables."""
        return {
            "ink": self.ink,
            "muted": self.muted,
            "faint": self.faint,
            **{str(number + 1): colour for number, colour in enumerate(self.series)},
        }


LIGHT: Final = Palette(
    "#1b1b1b", "#5d5d5d", "#dcdcdc", ("#0b62a8", "#b4500c", "#13775a", "#7a459b")
)
DARK: Final = Palette("#ececec", "#b5b5b5", "#444444", ("#74b4f0", "#ffa566", "#62d0a8", "#cfa6ec"))
_STAND_INS: Final = Palette(
    "#010203", "#040506", "#070809", ("#0a0b0c", "#0d0e0f", "#101112", "#131415")
)
"""What matplotlib draws with where a CSS variable will stand."""

Draw = Callable[[Any, Palette], None]

_MARKERS: Final = ("o", "s", "D", "^")
_DASHES: Final = ("-", "--", ":", "-.")
_FONT: Final = "system-ui, 'DejaVu Sans', sans-serif"
_WIDTH: Final = 5.2


def _settings(palette: Palette) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "agelens",
        "font.family": ["DejaVu Sans"],
        "font.size": 9.5,
        "axes.facecolor": "none",
        "axes.edgecolor": palette.muted,
        "axes.labelcolor": palette.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": palette.faint,
        "grid.linewidth": 0.7,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
        "text.color": palette.ink,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
    }


def _style() -> str:
    light = " ".join(f"--plot-{name}: {value};" for name, value in LIGHT.named().items())
    dark = " ".join(f"--plot-{name}: {value};" for name, value in DARK.named().items())
    return (
        f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"@media print {{ :root {{ {light} }} }}\n"
        "svg.plot { width: 100%; height: auto; display: block; }"
    )


PLOT_STYLE: Final = _style()
"""CSS that gives the charts their colours; a page holds it once."""


@dataclass(frozen=True)
class Reading:
    """One measured value.

    Attributes:
        label: What it is of.
        value: NaN when it could not be measured.
        low: Lower end of its interval; NaN without one.
        high: Upper end.
        count: Faces behind it, or None.
        marked: To be pointed out, as a cell that fails.
    """

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    count: int | None = None
    marked: bool = False


@dataclass(frozen=True)
class Bin:
    """Faces with like predictions.

    Attributes:
        predicted: Their mean prediction.
        observed: What was so.
        low: Lower end of the interval of ``observed``; NaN without one.
        high: Upper end.
        count: Faces.
    """

    predicted: float
    observed: float
    low: float = math.nan
    high: float = math.nan
    count: int = 0


# --- charts ---------------------------------------------------------------------------------------


def error_by_age(
    error: Sequence[Reading], bias: Sequence[Reading], *, name: str = "error-by-age"
) -> str:
    """Mean absolute error and bias by true age band, with intervals."""

    def draw(axes: Any, colours: Palette) -> None:
        places = np.arange(len(error), dtype=np.float64)
        axes.axhline(0, color=colours.muted, linewidth=0.9)
        for series, (label, shift, rows) in enumerate(
            (("mean absolute error", -0.12, error), ("bias (over 0: too old)", 0.12, bias))
        ):
            _whiskers(axes, colours, places + shift, rows, series=series, label=label)
        axes.set_xticks(places, [_counted(row) for row in error])
        axes.set_xlabel("true age, and faces")
        axes.set_ylabel("years")
        axes.grid(visible=False, axis="x")
        axes.legend(loc="best")

    return svg(draw, name, "Mean absolute error and bias by true age", height=3.5)


def predicted_against_true(
    counts: Sequence[Sequence[float]],
    true_edges: Sequence[float],
    predicted_edges: Sequence[float],
    *,
    name: str = "predicted-against-true",
) -> str:
    """How often each predicted age meets each true age.

    Args:
        counts: (true, predicted) faces.
        true_edges: One more than rows.
        predicted_edges: One more than columns.
        name: Of the chart within its page.
    """
    table = np.asarray(counts, np.float64)
    if table.shape != (len(true_edges) - 1, len(predicted_edges) - 1):
        raise ArgumentError(
            f"counts of {len(true_edges)} and {len(predicted_edges)} edges must be one less each "
            f"way, got {table.shape}"
        )

    def draw(axes: Any, colours: Palette) -> None:
        strongest = math.sqrt(max(float(table.max(initial=0)), 1.0))
        for row, column in zip(*np.nonzero(table), strict=True):
            left, right = true_edges[row], true_edges[row + 1]
            low, high = predicted_edges[column], predicted_edges[column + 1]
            # By the root of the count: a linear scale would show the crowded twenties only.
            shade = 0.12 + 0.88 * math.sqrt(table[row, column]) / strongest
            axes.fill_between(
                [left, right], low, high, color=colours.series[0], alpha=shade, linewidth=0
            )
        end = max(true_edges[-1], predicted_edges[-1])
        axes.plot(
            [0, end], [0, end], color=colours.series[1], linestyle="--", label="prediction = age"
        )
        axes.legend(loc="upper left")
        axes.set_xlim(true_edges[0], true_edges[-1])
        axes.set_ylim(predicted_edges[0], predicted_edges[-1])
        axes.set_xlabel("true age, years")
        axes.set_ylabel("predicted age, years")

    return svg(draw, name, "Predicted against true age", height=4.6)


def confusion(
    counts: Sequence[Sequence[float]], labels: Sequence[str], *, name: str = "confusion"
) -> str:
    """Per cent of each true class (row) that is put into each class (column)."""
    table = np.asarray(counts, np.float64)
    if table.shape != (len(labels), len(labels)):
        raise ArgumentError(f"{len(labels)} classes need a square of counts, got {table.shape}")
    sums = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, sums, out=np.zeros_like(table), where=sums > 0)

    def draw(axes: Any, colours: Palette) -> None:
        for row, column in np.ndindex(*table.shape):
            share = float(shares[row, column])
            if share > 0:
                axes.fill_between(
                    [column - 0.5, column + 0.5], row - 0.5, row + 0.5,
                    color=colours.series[0], alpha=0.08 + 0.62 * share, linewidth=0,
                )  # fmt: skip
            if sums[row, 0] and share >= 0.005:
                weight = "bold" if row == column else "normal"
                axes.text(
                    column, row, f"{100 * share:.0f}", ha="center", va="center",
                    fontsize=8.5, fontweight=weight,
                )  # fmt: skip
        places = range(len(labels))
        axes.set_xticks(places, labels)
        axes.set_yticks(
            places,
            [f"{label} ({int(total):,})" for label, total in zip(labels, sums[:, 0], strict=True)],
        )
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(visible=False)
        axes.set_xlabel("predicted range, per cent of the row")
        axes.set_ylabel("labelled range (faces)")

    return svg(draw, name, "Confusion of age ranges", height=4.4)


def reliability(
    series: Mapping[str, Sequence[Bin]], *, predicted: str, observed: str, name: str
) -> str:
    """Observed share against predicted probability; on the diagonal it means what it says.

    Args:
        series: Bins by the series' name.
        predicted: Title of the axis of probabilities.
        observed: Title of the axis of shares.
        name: Of the chart within its page.
    """

    def draw(axes: Any, colours: Palette) -> None:
        axes.plot([0, 1], [0, 1], color=colours.muted, linestyle="--", linewidth=1)
        for number, (label, bins) in enumerate(series.items()):
            rows = [Reading("", b.observed, b.low, b.high, b.count) for b in bins]
            places = np.array([b.predicted for b in bins], np.float64)
            _whiskers(axes, colours, places, rows, series=number, label=label, joined=True)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(predicted)
        axes.set_ylabel(observed)
        if len(series) > 1:
            axes.legend(loc="upper left")

    return svg(draw, name, f"{observed} against {predicted}", height=3.9)


def interval_levels(
    series: Mapping[str, Sequence[tuple[float, Reading]]], *, name: str = "interval-levels"
) -> str:
    """Share of true ages inside the intervals against the level they are stated at.

    Args:
        series: (level, share) pairs by the series' name, as "before" and "after".
        name: Of the chart within its page.
    """

    def draw(axes: Any, colours: Palette) -> None:
        axes.plot([40, 100], [40, 100], color=colours.muted, linestyle="--", linewidth=1)
        for number, (label, pairs) in enumerate(series.items()):
            shift = 0.5 * (number - (len(series) - 1) / 2)
            places = np.array([100 * level + shift for level, _ in pairs])
            rows = [_per_cent(reading) for _, reading in pairs]
            _whiskers(axes, colours, places, rows, series=number, label=label, joined=True)
        levels = sorted({100 * level for pairs in series.values() for level, _ in pairs})
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
        axes.set_xlim(min(levels, default=50) - 5, 100)
        axes.set_xlabel("stated level, per cent")
        axes.set_ylabel("intervals that hold the age, per cent")
        if len(series) > 1:
            axes.legend(loc="upper left")

    return svg(draw, name, "Stated and achieved coverage of the intervals", height=3.9)


def risk_coverage(
    shares: Sequence[float],
    errors: Sequence[Reading],
    *,
    axis: str,
    order: str,
    name: str = "risk-coverage",
) -> str:
    """Error among the faces that are answered when the least certain ones are left out.

    Args:
        shares: Shares of the faces that are answered, rising to 1.
        errors: The error at each, with its interval.
        axis: What the error is, with unit.
        order: Which faces are answered first.
        name: Of the chart within its page.
    """

    def draw(axes: Any, colours: Palette) -> None:
        percent = 100 * np.array(shares, np.float64)
        values, lows, highs = (
            np.array([getattr(row, end) for row in errors]) for end in ("value", "low", "high")
        )
        axes.fill_between(percent, lows, highs, color=colours.series[0], alpha=0.2, linewidth=0)
        axes.plot(percent, values, color=colours.series[0])
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, 101)
        axes.set_xlabel(f"faces answered, {order}, per cent")
        axes.set_ylabel(axis)

    return svg(draw, name, f"{axis} against the share of faces answered", height=3.4)


def dots(
    rows: Sequence[Reading],
    *,
    axis: str,
    name: str,
    title: str,
    reference: float | None = None,
    reference_label: str = "",
    within: tuple[float, float] | None = None,
    percent: bool = False,
) -> str:
    """One horizontal line a row: a dot with its interval, against a reference.

    Args:
        rows: From top to bottom; marked ones get the second colour, a diamond and a bold label.
        axis: What the values are, with unit.
        name: Of the chart within its page.
        title: For readers who cannot see it.
        reference: Drawn as a line, as the value of all faces or 0.
        reference_label: What that line is.
        within: Values that are allowed, as a band.
        percent: The values are shares; they are drawn as per cent.
    """
    shown = [_per_cent(row) for row in rows] if percent else list(rows)
    factor = 100 if percent else 1

    def draw(axes: Any, colours: Palette) -> None:
        places = np.arange(len(shown), dtype=np.float64)
        _guides(axes, colours, within, reference, factor)
        for marked in (False, True):
            chosen = [number for number, row in enumerate(shown) if row.marked is marked]
            _whiskers(
                axes, colours, places[chosen], [shown[number] for number in chosen],
                series=1 if marked else 0, marker="D" if marked else "o", sideways=True,
            )  # fmt: skip
        axes.set_yticks(places, [_counted(row, line=", ") for row in shown])
        for row, text in zip(shown, axes.get_yticklabels(), strict=True):
            text.set_fontweight("bold" if row.marked else "normal")
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        label = f"{axis}\n(dashed: {reference_label})" if reference_label else axis
        axes.set_xlabel(label)

    return svg(draw, name, title, height=max(1.6, 0.9 + 0.25 * len(rows)))


def _guides(
    axes: Any,
    colours: Palette,
    within: tuple[float, float] | None,
    reference: float | None,
    factor: int,
) -> None:
    """The band of values that are allowed, and the line they are compared with."""
    if within is not None:
        low, high = factor * within[0], factor * within[1]
        axes.axvspan(low, high, color=colours.series[2], alpha=0.15, linewidth=0)
    if reference is not None:
        axes.axvline(factor * reference, color=colours.muted, linestyle="--", linewidth=1.1)


def paired_dots(
    rows: Sequence[tuple[Reading, Reading]],
    *,
    series: tuple[str, str] = ("before", "after"),
    axis: str,
    name: str,
    title: str,
    reference: float | None = None,
    within: tuple[float, float] | None = None,
    percent: bool = False,
) -> str:
    """Two dots a row with their intervals, as before and after.

    Args:
        rows: Pairs from top to bottom; the label is that of the first.
        series: What the two are.
        axis: What the values are, with unit.
        name: Of the chart within its page.
        title: For readers who cannot see it.
        reference: Drawn as a line.
        within: Values that are allowed, as a band.
        percent: The values are shares; they are drawn as per cent.
    """
    shown = [tuple(map(_per_cent, pair)) if percent else pair for pair in rows]
    factor = 100 if percent else 1

    def draw(axes: Any, colours: Palette) -> None:
        places = np.arange(len(shown), dtype=np.float64)
        _guides(axes, colours, within, reference, factor)
        for number, label in enumerate(series):
            _whiskers(
                axes,
                colours,
                places + 0.32 * number - 0.16,
                [pair[number] for pair in shown],
                series=number,
                label=label,
                sideways=True,
            )
        axes.set_yticks(places, [_counted(pair[0], line=", ") for pair in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(axis)
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)

    return svg(draw, name, title, height=max(2.0, 1.1 + 0.36 * len(rows)))


@dataclass(frozen=True)
class TimedModel:
    """A model's place in the chart of accuracy against time.

    Attributes:
        name: Of the model.
        milliseconds: CPU time a face.
        error: Mean absolute error in years, with its interval.
        is_peer: Another package's model.
    """

    name: str
    milliseconds: float
    error: Reading
    is_peer: bool = False


def accuracy_against_time(models: Sequence[TimedModel], *, name: str = "accuracy-time") -> str:
    """Mean absolute error against CPU time a face, one mark a model."""
    return svg(_time_chart(models), name, "Mean absolute error against time a face", height=3.8)


def accuracy_against_time_png(models: Sequence[TimedModel]) -> bytes:
    """The same as a PNG picture in light colours."""
    return png(_time_chart(models), height=3.8)


def _time_chart(models: Sequence[TimedModel]) -> Draw:
    def draw(axes: Any, colours: Palette) -> None:
        for number, kind in enumerate((False, True)):
            chosen = [model for model in models if model.is_peer is kind]
            if chosen:
                _whiskers(
                    axes, colours, np.array([model.milliseconds for model in chosen]),
                    [model.error for model in chosen], series=number,
                    label="peer" if kind else "AgeLens",
                )  # fmt: skip
        middle = float(np.median([model.milliseconds for model in models])) if models else 1.0
        for model in models:
            left = model.milliseconds <= middle
            axes.annotate(
                model.name, (model.milliseconds, model.error.value),
                xytext=(7 if left else -7, 0), textcoords="offset points",
                ha="left" if left else "right", va="center", fontsize=9,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.margins(x=0.25, y=0.25)
        _plain_log_ticks(axes, [model.milliseconds for model in models])
        axes.set_xlabel("CPU time a face, the whole chain, milliseconds")
        axes.set_ylabel("mean absolute error, years")
        if {model.is_peer for model in models} == {False, True}:
            axes.legend(loc="best")

    return draw


def _plain_log_ticks(axes: Any, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values, default=1.0), max(values, default=1.0)
    axes.set_xlim(low / 2.2, high * 2.2)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


# --- drawing --------------------------------------------------------------------------------------


def _whiskers(
    axes: Any,
    colours: Palette,
    places: Any,
    rows: Sequence[Reading],
    *,
    series: int,
    label: str | None = None,
    joined: bool = False,
    marker: str | None = None,
    sideways: bool = False,
) -> None:
    """Marks with their intervals; those that could not be measured are left out."""
    kept = [number for number, row in enumerate(rows) if math.isfinite(row.value)]
    if not kept:
        return
    at = np.asarray(places, np.float64)[kept]
    values = np.array([rows[number].value for number in kept])
    lows = np.array([rows[number].low for number in kept])
    highs = np.array([rows[number].high for number in kept])
    # A resampled interval need not hold the estimate itself; a bar cannot have a negative length.
    below = np.nan_to_num(np.maximum(values - lows, 0))
    above = np.nan_to_num(np.maximum(highs - values, 0))
    colour = colours.series[series % len(colours.series)]
    spread = {"xerr" if sideways else "yerr": np.stack([below, above])}
    axes.errorbar(
        values if sideways else at,
        at if sideways else values,
        **spread,
        fmt=marker or _MARKERS[series % len(_MARKERS)],
        linestyle=_DASHES[series % len(_DASHES)] if joined else "none",
        color=colour,
        ecolor=colour,
        elinewidth=1.3,
        capsize=2.5,
        label=label,
    )


def _counted(row: Reading, *, line: str = "\n") -> str:
    return row.label if row.count is None else f"{row.label}{line}{row.count:,}"


def _per_cent(row: Reading) -> Reading:
    return Reading(row.label, 100 * row.value, 100 * row.low, 100 * row.high, row.count, row.marked)


def svg(draw: Draw, name: str, title: str, *, height: float) -> str:
    """A chart as one ``<svg>`` element.

    Args:
        draw: Draws on matplotlib axes in the colours of a palette.
        name: Unique within its page; the element's ids start with it.
        title: For readers who cannot see it.
        height: In inches, at a width of 5.2.
    """
    text = _rendered(draw, "svg", height).decode("utf-8")
    start = text.index("<svg")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[start:], flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # One declaration or several, as the version of matplotlib likes it.
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", rf"\1 {_FONT}", text)
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONT}", text)
    light = LIGHT.named()
    for variable, stand_in in _STAND_INS.named().items():
        text = text.replace(stand_in, f"var(--plot-{variable}, {light[variable]})")
    words = html.escape(title, quote=True)
    return _own_ids(text, name).replace(
        "<svg ", f'<svg class="plot" role="img" aria-label="{words}" ', 1
    )


def png(draw: Draw, *, height: float) -> bytes:
    """A chart as a PNG picture in light colours on white."""
    return _rendered(draw, "png", height)


def standalone(chart: str) -> str:
    """An SVG file from a chart: its colours and a ground that goes with them, light or dark."""
    # Where it is embedded, the page around it may be light when the reader's system is dark.
    ground = (
        "svg.plot { background: white; } "
        "@media (prefers-color-scheme: dark) { svg.plot { background: #121212; } }"
    )
    return chart.replace(">", f"><style>{PLOT_STYLE}\n{ground}</style>", 1) + "\n"


def _rendered(draw: Draw, kind: str, height: float) -> bytes:
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("eval", "drawing charts") from error
    palette = _STAND_INS if kind == "svg" else LIGHT
    settings: Any = _settings(palette)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        canvas: Any = FigureCanvasSVG(figure) if kind == "svg" else FigureCanvasAgg(figure)
        draw(figure.subplots(), palette)
        output = io.BytesIO()
        canvas.print_figure(
            output,
            format=kind,
            metadata={"Date": None} if kind == "svg" else {"Software": None},
            dpi=160 if kind == "png" else 72,
            facecolor="none" if kind == "svg" else "white",
            edgecolor="none",
        )
    return output.getvalue()


def _own_ids(text: str, name: str) -> str:
    """Keep the ids that something refers to, under the chart's name; drop the others."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))

    def rename(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]*)"', rename, text)
    return re.sub(r'(href="#|url\(#)([^")]+)', rf"\g<1>{name}-\g<2>", text)
