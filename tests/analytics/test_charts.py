"""Charts hold their figures, hide what is hidden, and neither cut nor cover their words."""

from __future__ import annotations

import csv
import io
import itertools
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import ImageFont

from agelens.analytics.charts import (
    ABSENT,
    HIDDEN,
    WIDTH,
    Chart,
    Columns,
    HeatMap,
    Pyramid,
    Rows,
    Series,
    Shares,
    Side,
    csv_text,
    in_words,
    svg,
    table,
)

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "</text><script>alert(1)</script>"
LONG = "Donaudampfschifffahrtsgesellschaftskapitänskajüte" * 4

HOURS = Columns(
    "Visitors by hour of the day",
    "visitors",
    "count",
    "hour",
    tuple(str(hour) for hour in range(24)),
    tuple(f"{hour:02d}:00 to {hour:02d}:59" for hour in range(24)),
    (
        Series("this period", (None, *range(5, 120, 5))),
        Series("the one before", tuple(range(120, 0, -5))),
    ),
    tuple(hour > 20 for hour in range(24)),
)
DAYS = Columns(
    "Visitors by day",
    "visitors",
    "count",
    "day",
    ("1 Mar", *(str(day) for day in range(2, 32))),
    tuple(f"2026-03-{day:02d}" for day in range(1, 32)),
    (Series("this period", tuple(123_455 + 5 * day for day in range(31))),),
    (False,) * 31,
)
PLACES = Rows(
    "Visitors by camera",
    "visitors",
    "count",
    "camera",
    ("door", NASTY, LONG, "=1+2"),
    (Series("this period", (1_234_565, None, 5, 0)), Series("the one before", (5, 10, None, 20))),
)
STAYS = Rows("Stay", "mean, seconds", "seconds", "zone", ("a",), (Series("mean", (12.5,)),))
EMPTY = Rows("Stay", "mean, seconds", "seconds", "zone", ("a",), (Series("mean", (None,)),))
BANDS = ("0–2", "3–9", "10–19", "70+")
MEN = Side(
    "perceived male",
    ((0.1, 0.05, 0.15), None, (0.2, 0.1, 0.3), (0.02, 0.0, 0.05)),
    ((0.12, 0.06, 0.18), (0.01, 0.0, 0.03), (0.3, 0.2, 0.45), (0.01, 0.0, 0.02)),
)
WOMEN = Side("perceived female", MEN.raw, (None,) * 4)
PYRAMID = Pyramid("Visitors by age", "share of the visitors", BANDS, MEN, WOMEN)
AGES = Shares("Visitors by age", "share of the visitors", "age", BANDS, MEN)
HEAT = HeatMap(
    "Visitors by weekday and hour",
    "visitors in an hour, on average",
    "rate",
    ("Mon", "Tue"),
    tuple(str(hour) for hour in range(24)),
    tuple(f"{hour:02d}:00" for hour in range(24)),
    (tuple(1.5 * hour for hour in range(24)), (None, *(100.0,) * 23)),
    ((False,) * 24, (*(False,) * 20, *(True,) * 4)),
)
CHARTS: dict[str, Chart] = {
    "hours": HOURS, "days": DAYS, "places": PLACES, "stays": STAYS, "empty": EMPTY,
    "pyramid": PYRAMID, "ages": AGES, "heat": HEAT,
}  # fmt: skip


@pytest.fixture(scope="module")
def font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, wider than what most systems write pages with."""
    matplotlib = pytest.importorskip("matplotlib")
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), 110)


def drawn(chart: Chart, ground: str = "page") -> ElementTree.Element:
    return ElementTree.fromstring(svg(chart, ground=ground))  # type: ignore[arg-type]


def boxes(
    picture: ElementTree.Element, font: ImageFont.FreeTypeFont
) -> list[tuple[str, float, float, float, float]]:
    """Words with left, top, right and bottom as the font measures them."""
    found = []
    for text in picture.iter(f"{SVG}text"):
        words = text.text or ""
        width = font.getlength(words) / 10
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        x -= {"middle": width / 2, "end": width}.get(text.attrib.get("text-anchor", ""), 0)
        found.append((words, x, y - 8.5, x + width, y + 2.5))
    return found


@pytest.mark.parametrize("name", CHARTS)
def test_no_word_is_cut_and_none_covers_another(name: str, font: ImageFont.FreeTypeFont) -> None:
    picture = drawn(CHARTS[name])
    height = float(picture.attrib["viewBox"].split()[3])

    found = boxes(picture, font)
    assert found
    for words, left, top, right, bottom in found:
        assert left >= -0.5, words
        assert right <= WIDTH + 0.5, words
        assert top >= -0.5, words
        assert bottom <= height + 0.5, words
    for (one, *a), (other, *b) in itertools.combinations(found, 2):
        across = min(a[2], b[2]) - max(a[0], b[0])
        down = min(a[3], b[3]) - max(a[1], b[1])
        assert across <= 0 or down <= 0, (one, other)


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_a_picture_with_words_in_under_five_milliseconds(name: str) -> None:
    svg(CHARTS[name])
    start = time.process_time()
    for _ in range(10):
        text = svg(CHARTS[name])
    taken = (time.process_time() - start) / 10

    picture = ElementTree.fromstring(text)
    assert picture.attrib["role"] == "img"
    assert CHARTS[name].title in picture.attrib["aria-label"] == in_words(CHARTS[name])
    assert taken < 0.005


@pytest.mark.parametrize("name", CHARTS)
def test_paper_has_plain_colours_and_a_page_those_of_its_variables(name: str) -> None:
    paper = svg(CHARTS[name], ground="paper")
    assert "var(" not in paper
    assert "style=" not in paper
    for element in drawn(CHARTS[name]).iter():
        for attribute, value in element.attrib.items():
            assert attribute == "style" or "var(" not in value
            assert "url(" not in value


def test_names_from_outside_stay_words() -> None:
    picture = drawn(PLACES)

    assert {element.tag for element in picture.iter()} <= {
        f"{SVG}{name}" for name in ("svg", "text", "title", "rect", "line", "path", "circle")
    }
    words = "".join(text.text or "" for text in picture.iter(f"{SVG}text"))
    assert NASTY in words
    assert LONG in words


def test_hidden_figures_are_hatched_and_never_of_height_0() -> None:
    titles = [one.text or "" for one in drawn(HOURS).iter(f"{SVG}title")]
    assert f"00:00 to 00:59: {HIDDEN}" in titles
    assert f"23:00 to 23:59: {ABSENT}" in titles
    hatched = [one for one in drawn(HOURS).iter(f"{SVG}path") if one.attrib["d"].count("M") > 1]
    assert len(hatched) == 2  # one in the legend
    heights = [
        float(one.attrib["height"])
        for one in drawn(HOURS).iter(f"{SVG}rect")
        if any((title.text or "").endswith(f": {HIDDEN}") for title in one)
    ]
    assert len(heights) == 1
    assert heights[0] > 5


def test_bars_are_as_long_as_their_figures() -> None:
    bars = {}
    for rect in drawn(DAYS).iter(f"{SVG}rect"):
        for title in rect:
            bars[(title.text or "")[:10]] = float(rect.attrib["height"])
    values = DAYS.series[0].values
    for day, value in enumerate(values, start=1):
        assert value is not None
        share = bars[f"2026-03-{day:02d}"] / bars["2026-03-31"]
        assert share == pytest.approx(value / values[-1], abs=1e-3)  # type: ignore[operator]


def test_tables_say_what_the_charts_show() -> None:
    head, rows = table(HOURS)
    assert head == ("hour", "this period", "the one before")
    assert rows[0] == ("00:00 to 00:59", HIDDEN, "120")
    assert rows[23] == ("23:00 to 23:59", ABSENT, "5")
    head, rows = table(PYRAMID)
    assert head[1:3] == ("perceived male, as counted", "perceived male, corrected")
    assert rows[1] == (
        "3–9", HIDDEN, HIDDEN, HIDDEN, HIDDEN
    )  # fmt: skip
    assert table(HEAT)[1][1][1:3] == (HIDDEN, "100")


def test_a_share_that_is_hidden_as_counted_is_hidden_as_corrected_everywhere() -> None:
    assert PYRAMID.left.raw[1] is None
    assert PYRAMID.left.corrected[1] is not None

    rows = [row for row in csv.DictReader(io.StringIO(csv_text(PYRAMID))) if row["row"] == "3–9"]

    told = [(row["column"], row["value"], row["state"]) for row in rows]
    assert (f"{PYRAMID.left.name}, corrected", "", HIDDEN) in told
    assert all(value == "" for _, value, _ in told)
    assert f"3–9 {PYRAMID.left.name}: {HIDDEN}" in svg(PYRAMID)


def test_csv_has_a_figure_a_line_and_no_formulas() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(PLACES))))

    assert [row["value"] for row in rows] == ["1234565", "5", "", "10", "5", "", "0", "20"]
    assert rows[2]["row"] == NASTY
    assert rows[2]["state"] == HIDDEN
    assert rows[6]["row"] == "'=1+2"
    share = list(csv.DictReader(io.StringIO(csv_text(AGES))))[1]
    assert share["column"].endswith("corrected")
    assert (share["value"], share["low"], share["high"]) == ("0.12", "0.06", "0.18")
