"""The page of visitors in a real Chromium: figures, filters, tables, and names that mean harm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the 'serve' extra")
pytest.importorskip("sqlalchemy", reason="needs the 'visitors' extra")
pytest.importorskip("playwright", reason="needs the package playwright")

from playwright.sync_api import Page

from agelens.analytics.records import WatchedMinute
from agelens.analytics.store import open_store
from agelens.server.keys import KeyFile, Scope
from agelens.video.visit import LineCrossing, ZoneStay
from analytics.people import visit
from server.browser import OpenPage, Visit, chromium, contrasts, open_page, overflow, unnamed, until
from server.charted import check_csv
from server.hostile_names import HOSTILE_NAMES
from server.sites import audience_site
from server.visitor_sites import Site, served
from server.visitors_month import FIRST, SPRING
from video.moments import person

__all__ = ["chromium", "open_page"]

SATURDAY = FIRST + timedelta(days=5)


@pytest.fixture(scope="module")
def site(month: Path) -> Iterator[Site]:
    with served(month) as found:
        yield found


def shown(page: Page) -> None:
    """Wait for the figures of what was chosen."""
    until(page, "document.querySelector('#period-content').getAttribute('aria-busy') === 'false'")


def opened(open_page: OpenPage, site: Site, query: str, **options: Any) -> Visit:
    found = open_page(site.url, f"/visitors?{query}", **options)
    shown(found.page)
    return found


def on(day: Any, more: str = "") -> str:
    return f"period=days&first={day}&last={day}{more}"


def figure(page: Page, name: str) -> str:
    """What stands under a title at the top."""
    found = page.locator("#figures > div", has=page.get_by_text(name, exact=True))
    return found.locator(".figure").inner_text()


def table_of(page: Page, chart: str) -> list[list[str]]:
    """Head and rows of the table below a chart."""
    found: list[list[str]] = page.evaluate(
        """(name) => [...document.querySelectorAll(`[data-chart="${name}"] tr`)].map(
          (row) => [...row.children].map((cell) => cell.textContent))""",
        chart,
    )
    return found


# --- what it shows --------------------------------------------------------------------------------


def test_a_day_shows_what_the_service_tells(site: Site, open_page: OpenPage) -> None:
    told = site.get(f"/v1/visitors/overview?site=shop&first={SATURDAY}").json()

    page = opened(open_page, site, on(SATURDAY, "&site=shop")).page

    assert page.inner_text("#period-title") == "Saturday 8 March 2025"
    assert figure(page, "Visitors") == f"{told['overview']['visitors']:,}"
    (change,) = [one["change"] for one in told["against"] if "Friday" in one["title"]]
    assert figure(page, "Against Friday 7 March 2025") == f"+{round(100 * change)} %"
    assert figure(page, "In view") == "20 s"
    drawn = page.locator("#charts .chart svg")
    assert drawn.count() == len(told["charts"])
    for chart in told["charts"]:
        assert table_of(page, chart["name"]) == [chart["head"], *chart["rows"]]
    assert page.locator("#notes li").count() == len(told["overview"]["notes"])


def test_charts_are_drawn_as_the_service_drew_them(site: Site, open_page: OpenPage) -> None:
    told = site.get(f"/v1/visitors/overview?site=shop&first={SATURDAY}").json()

    page = opened(open_page, site, on(SATURDAY, "&site=shop")).page

    for chart in told["charts"]:
        place = page.locator(f"[data-chart={chart['name']}] svg")
        for shape in ("rect", "path", "line", "text", "title"):
            wanted = len(re.findall(rf"<{shape}[ >/]", chart["svg"]))
            assert place.locator(shape).count() == wanted, (chart["name"], shape)
        fills = place.evaluate(
            "svg => [...svg.querySelectorAll('rect, text')].map(n => getComputedStyle(n).fill)"
        )
        assert len(set(fills)) > 1, chart["name"]  # the colours of the page have reached it


def test_too_few_are_not_shown_as_none(open_page: OpenPage, tmp_path: Path) -> None:
    noon = datetime(2025, 3, 8, 12, tzinfo=UTC)
    store = tmp_path / "few.sqlite"
    with open_store(store) as opened_store:
        opened_store.add((), watched=[WatchedMinute("shop", "door", noon, 60)])
    with served(store) as quiet:
        page = opened(open_page, quiet, on(SATURDAY)).page

        assert figure(page, "Visitors") == "too few to show"
        assert "too few to show" in page.inner_text("#cameras")
        rows = {row[0]: row[1] for row in table_of(page, "by-hour")[1:]}
        assert rows["13:00 to 13:59"] == "too few to show"
        assert rows["03:00 to 03:59"] == "no camera"


def test_the_day_on_which_the_clocks_are_put_on(site: Site, open_page: OpenPage) -> None:
    page = opened(open_page, site, on(SPRING, "&site=shop")).page

    rows = {row[0]: row[1] for row in table_of(page, "by-hour")[1:]}
    assert rows["02:00 to 02:59"] == "no camera"
    assert "the day has 23 hours" in page.inner_text("#notes")


def test_the_table_that_is_saved_is_the_one_that_is_shown(
    site: Site, open_page: OpenPage, tmp_path: Path
) -> None:
    page = opened(open_page, site, on(SATURDAY, "&site=shop&camera=till")).page

    for chart in ("by-hour", "pyramid", "lines"):
        with page.expect_download() as told:
            page.click(f"[data-chart={chart}] .csv")
        assert told.value.suggested_filename == f"{chart}-{SATURDAY}-{SATURDAY}.csv"
        told.value.save_as(tmp_path / chart)
        head, *rows = table_of(page, chart)
        check_csv((tmp_path / chart).read_text("utf-8"), head, rows)


def test_cameras_say_how_they_are_now(site: Site, open_page: OpenPage) -> None:
    page = opened(open_page, site, on(SATURDAY, "&site=shop")).page
    page.wait_for_selector("#cameras .state")
    door, till = page.locator("#cameras tr").all_inner_texts()

    assert "running" in door
    assert "down" in till
    assert "no answer for 40 s" in till
    assert page.locator("#cameras .state.bad").count() == 1


def test_a_store_alone_shows_no_present(month: Path, open_page: OpenPage) -> None:
    with served(month, watched=False) as alone:
        page = opened(open_page, alone, on(SATURDAY)).page

        assert page.locator("#cameras-head th").all_inner_texts()[:2] == ["Camera", "Visitors"]
        assert page.locator("#live").is_hidden()


def test_who_is_in_view_now_is_told_as_it_changes(open_page: OpenPage, tmp_path: Path) -> None:
    with audience_site(tmp_path) as found:
        page = open_page(found.url, "/visitors").page
        pair = person(30.0, 0.95), person(8.0, 0.1, track=2, attentive=False)
        found.see(*pair, person(40.0, 0.9, track=3))
        until(page, "document.querySelector('#people').textContent === '3'")

        assert "2 looking" in page.inner_text("#attention")
        assert "perceived as female" in page.inner_text("#groups")
        found.see(*pair)
        until(page, "document.querySelector('#people').textContent === '2'")
        assert page.inner_text("#groups") == ""
        assert "Too few for shares" in page.inner_text("#live-words")
        found.see()
        until(page, "document.querySelector('#people').textContent === '0'")
        page.goto(f"{found.url}/static/mark.svg")


# --- choosing -------------------------------------------------------------------------------------


def test_what_is_chosen_is_shown_and_kept_in_the_address(site: Site, open_page: OpenPage) -> None:
    visited = opened(open_page, site, on(SATURDAY))
    page = visited.page
    everyone = figure(page, "Visitors")
    page.select_option("#site", "shop")
    page.select_option("#camera", "till")
    shown(page)
    page.wait_for_timeout(100)
    shown(page)

    told = site.get(f"/v1/visitors/overview?site=shop&camera=till&first={SATURDAY}").json()
    assert figure(page, "Visitors") == f"{told['overview']['visitors']:,}" != everyone
    assert page.locator("#cameras tr").count() == 1
    assert "hall" not in page.inner_text("#camera")
    page.reload()
    shown(page)
    assert page.input_value("#camera") == "till"
    assert figure(page, "Visitors") == f"{told['overview']['visitors']:,}"


def test_a_zone_can_be_chosen(site: Site, open_page: OpenPage) -> None:
    page = opened(open_page, site, on(SATURDAY, "&site=shop")).page
    page.select_option("#zone", "window")
    until(page, "!document.querySelector('[data-chart=pyramid]')")

    assert "by camera, not by zone" in page.inner_text("#profile-reason")


def test_days_that_end_before_they_begin_are_not_asked_for(site: Site, open_page: OpenPage) -> None:
    page = opened(open_page, site, on(SATURDAY)).page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.fill("#last", "2025-03-01")
    page.dispatch_event("#last", "change")
    page.wait_for_timeout(200)

    assert page.get_attribute("#last", "aria-invalid") == "true"
    assert not [url for url in asked if "overview" in url]


def test_named_periods_are_days_of_the_calendar(site: Site, open_page: OpenPage) -> None:
    wanted = [
        ("today", "2025-03-30", ["2025-03-30", "2025-03-30"]),
        ("yesterday", "2025-03-01", ["2025-02-28", "2025-02-28"]),
        ("week", "2025-03-30", ["2025-03-24", "2025-03-30"]),
        ("week", "2025-03-31", ["2025-03-31", "2025-04-06"]),
        ("last-week", "2025-01-01", ["2024-12-23", "2024-12-29"]),
        ("month", "2024-02-10", ["2024-02-01", "2024-02-29"]),
        ("last-month", "2025-01-15", ["2024-12-01", "2024-12-31"]),
    ]

    page = opened(open_page, site, on(SATURDAY)).page
    found = page.evaluate(
        """async (wanted) => {
          const { daysOf } = await import("/static/visitors-filters.js");
          return wanted.map(([name, today]) => daysOf(name, today));
        }""",
        wanted,
    )

    assert found == [days for _, _, days in wanted]


def test_a_server_with_keys_asks_for_one(month: Path, open_page: OpenPage, tmp_path: Path) -> None:
    key = KeyFile(tmp_path / "keys.toml").add("office", [Scope.VISITORS]).text
    with served(month, keys=tmp_path / "keys.toml") as closed:
        refused = ("Failed to load resource: the server responded with a status of 401",)
        page = open_page(closed.url, f"/visitors?{on(SATURDAY)}", expected=refused).page
        page.fill("#key-input", key)
        page.click("#key-form button.main")
        shown(page)

        assert figure(page, "Visitors") != "–"
        with page.expect_download():
            page.click("[data-chart=by-hour] .csv")


# --- for everybody --------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (800, "dark")])
def test_it_can_be_read_on_a_telephone_and_in_the_dark(
    site: Site, open_page: OpenPage, scheme: str, width: int
) -> None:
    page = opened(
        open_page, site, on(SATURDAY), viewport={"width": width, "height": 844}, color_scheme=scheme
    ).page
    page.wait_for_selector("#cameras .state")

    assert overflow(page) == 0
    assert unnamed(page) == []
    assert [(ratio, text) for ratio, text in contrasts(page) if ratio < 4.5] == []


def test_it_can_be_used_with_the_keyboard_alone(site: Site, open_page: OpenPage) -> None:
    page = opened(open_page, site, on(SATURDAY, "&site=shop")).page
    page.focus("#camera")
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(150)
    shown(page)
    assert page.input_value("#camera") == "door"
    page.focus("[data-chart=by-hour] summary")
    page.keyboard.press("Enter")
    assert page.locator("[data-chart=by-hour] table").is_visible()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.className") == "copy csv"


# --- names that mean harm -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Each name is that of a camera, its zone and its line; one is that of a site too."""
    store = tmp_path_factory.mktemp("hostile") / "visits.sqlite"
    noon = datetime(2025, 3, 8, 12, tzinfo=UTC)
    with open_store(store) as opened_store:
        visits = [
            visit(
                9 * number + n, at=noon, site=HOSTILE_NAMES[0], camera=name,
                stays=(ZoneStay(name, 3.0),), crossings=(LineCrossing(name, "in", noon),),
            )
            for number, name in enumerate(HOSTILE_NAMES)
            for n in range(9)
        ]  # fmt: skip
        minutes = [WatchedMinute(HOSTILE_NAMES[0], name, noon, 60) for name in HOSTILE_NAMES]
        opened_store.add(visits, watched=minutes)
    with served(store, watched=False) as found:
        yield found


def test_there_are_fifty_names() -> None:
    assert len(set(HOSTILE_NAMES)) == 50


def test_names_that_mean_harm_are_shown_as_text(hostile: Site, open_page: OpenPage) -> None:
    visited = opened(open_page, hostile, on(SATURDAY))
    page = visited.page
    page.on("dialog", lambda dialog: visited.faults.append(f"dialog: {dialog.message}"))
    names = sorted(HOSTILE_NAMES)

    assert page.locator("#cameras th[scope=row]").all_inner_texts() == names
    assert [row[0] for row in table_of(page, "cameras")[1:]] == names
    assert page.locator("#camera option").all_text_contents()[1:] == names
    kinds = page.evaluate(
        "[...new Set([...document.querySelectorAll('main *')].map(n => n.localName))]"
    )
    harmful = {
        "script",
        "img",
        "image",
        "iframe",
        "object",
        "embed",
        "style",
        "link",
        "meta",
        "base",
    }
    assert not set(kinds) & {*harmful, "form action", "foreignObject", "animate", "video", "use"}
    assert not page.evaluate(
        "[...document.querySelectorAll('main *')].some(n => [...n.attributes].some("
        "a => a.name.startsWith('on') || /^\\\\s*javascript:/i.test(a.value) && a.name !== 'value'"
        " && a.name !== 'aria-label'))"
    )
    for name in HOSTILE_NAMES[:3]:
        page.select_option("#camera", name)
        page.wait_for_timeout(50)
        shown(page)
    assert overflow(page) == 0


def test_names_that_mean_harm_are_harmless_in_a_spreadsheet(hostile: Site) -> None:
    text = hostile.get(f"/v1/visitors/csv?first={SATURDAY}&chart=cameras").text
    starts = {line[:1] for line in text.splitlines()} | {
        line[1:2] for line in text.splitlines() if line[:1] == '"'
    }

    assert not starts & set("=+-@")
    assert "'=HYPERLINK" in text


DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9" onload="alert(1)">
<script>alert(1)</script><foreignObject><p>x</p></foreignObject><image href="x"/>
<a href="javascript:alert(1)"><text>no</text></a><style>*{}</style>
<rect id="main" x="1" onclick="alert(1)" style="fill:red; background:url(//evil.example/x)"/>
<text>a &lt;b&gt;</text></svg>"""


def test_a_drawing_is_taken_for_its_shapes_only(site: Site, open_page: OpenPage) -> None:
    # The policy of the page stops what the parser meets, and says so.
    stopped = ("Executing inline", "Applying inline", "policy violation: s")
    page = opened(open_page, site, on(SATURDAY), expected=stopped).page
    found = page.evaluate(
        """async (text) => {
          const { chartNode } = await import("/static/visitors-charts.js");
          const svg = chartNode(text);
          document.body.append(svg);
          return svg.outerHTML.replace(/\\s+/g, " ");
        }""",
        DRAWING,
    )

    assert re.sub(r"> <", "><", found) == (
        '<svg viewBox="0 0 9 9"><rect x="1" style="fill: red;"></rect>'
        "<text>a &lt;b&gt;</text></svg>"
    )
