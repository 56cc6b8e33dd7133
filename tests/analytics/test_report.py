"""Reports are whole in themselves, say the same on page and paper, and are safe from names."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from agelens.analytics.overview import overview
from agelens.analytics.period import Period
from agelens.analytics.presence import Selection
from agelens.analytics.records import Site, WatchedMinute
from agelens.analytics.report import (
    Report,
    last_period,
    make_report,
    report_csv,
    report_html,
    report_zone,
    summary_sentences,
    write_report,
)
from agelens.analytics.store import Store, open_store
from agelens.errors import ArgumentError
from agelens.video.visit import ZoneStay
from analytics.people import visit

BERLIN = ZoneInfo("Europe/Berlin")
WEEK = Period(date(2026, 3, 23), date(2026, 3, 29), BERLIN)
NOW = datetime(2026, 3, 30, 9, tzinfo=BERLIN)


class _Asked(HTTPServer):
    """Remembers what it is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.paths: list[str] = []


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Asked)
        self.server.paths.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[_Asked]:
    with _Asked() as opened:
        thread = threading.Thread(target=opened.serve_forever)
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def names(server: _Asked) -> tuple[str, str, str]:
    """A site, a camera and a zone that try to get out of their place."""
    address = f"http://127.0.0.1:{server.server_port}"
    return (
        f'shop"><img src="{address}/site" onerror="alert(1)">',
        f"</text><script src='{address}/camera'></script><style>@import url({address}/css)",
        f"=HYPERLINK(&quot;{address}/zone&quot;)",
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, names: tuple[str, str, str]) -> Iterator[Store]:
    """Two weeks of two sites; the second week has half as many visitors again."""
    site, camera, zone = names
    visits, minutes = [], []
    first = datetime(2026, 3, 16, 8, tzinfo=UTC)
    for day in range(14):
        for number in range(60 if day >= 7 else 40):
            at = first + timedelta(days=day, minutes=8 * number)
            place: dict[str, Any] = {"site": site, "camera": camera}
            place["stays"] = (ZoneStay(zone, 5.0),)
            key = 1000 * day + 2 * number
            visits += [visit(key, at=at, **place), visit(key, at=at, crossings=())]
        for minute in range(600):
            at = first + timedelta(days=day, minutes=minute)
            if not (day == 10 and minute < 120):
                minutes.append(WatchedMinute(site, camera, at, 60.0))
            minutes.append(WatchedMinute("museum", "door-1", at, 60.0))
    with open_store(tmp_path_factory.mktemp("report") / "visits.sqlite") as opened:
        opened.set_site(Site("museum", "Europe/Berlin", "City & Museum", "Closed on Monday"))
        opened.set_site(Site(site, "Europe/Berlin"))
        opened.add(visits, watched=minutes)
        yield opened


@pytest.fixture(scope="module")
def report(store: Store) -> Report:
    return make_report(store, WEEK, now=NOW)


class _Page(HTMLParser):
    """Elements with their attributes, and the words outside of style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._styled = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._styled = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._styled = False

    def handle_data(self, data: str) -> None:
        self.words += "" if self._styled else data


def test_the_page_refers_to_nothing_and_runs_nothing_whatever_names_say(
    report: Report, names: tuple[str, str, str]
) -> None:
    page = _Page(report_html(report))

    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "data"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert "url(" not in (attributes.get("style") or "")
    for name in names:
        assert name in page.words
    assert "City & Museum" in page.words
    assert len([tag for tag in page.elements if tag[0] == "style"]) == 1


def test_the_pdf_is_made_without_asking_anybody(
    report: Report, server: _Asked, tmp_path: Path
) -> None:
    pytest.importorskip("weasyprint")
    path = tmp_path / "report.pdf"
    write_report(report, path)

    assert path.read_bytes().startswith(b"%PDF-")
    assert server.paths == []
    if shutil.which("pdftotext") is None:
        pytest.skip("poppler-utils (pdftotext) is not installed")
    words = subprocess.run(
        ["pdftotext", "-layout", str(path), "-"], capture_output=True, text=True, check=True
    ).stdout
    assert "City & Museum" in words
    assert "Method and error" in words
    whole = " ".join(words.split())
    for sentence in summary_sentences(report.whole):
        assert " ".join(sentence.split())[:40] in whole or "<" in sentence


def test_the_cover_says_how_many_came_and_how_that_compares(report: Report) -> None:
    words = list(summary_sentences(report.whole))

    now, before = report.whole.visitors, report.whole.previous.before
    assert now is not None
    assert before is not None
    assert abs(now - 840) <= 8
    assert abs(before - 560) <= 8
    assert words[0].startswith(f"{now} visitors, ")
    assert f"{now / before - 1:.0%}".replace("%", " % more than in 16 to 22 March 2026") in words[0]
    assert f"({before})" in words[0]
    stay = next(sentence for sentence in words if sentence.startswith("They stayed"))
    assert "looked at the screen" in stay
    assert any("longest gap was 2.0 hours" in sentence for sentence in words)


def test_a_report_of_several_sites_has_a_part_for_each_and_they_add_up(report: Report) -> None:
    assert [part.sites[0].site for part in report.parts] == [s.site for s in report.whole.sites]
    assert sum(part.visitors or 0 for part in report.parts) == report.whole.visitors
    page = _Page(report_html(report)).words
    assert page.count("Visitors by hour of the day") >= 3


def test_a_report_of_one_site_speaks_of_no_other(store: Store) -> None:
    found = make_report(store, WEEK, selection=Selection(sites=("museum",)), now=NOW)

    assert found.parts == ()
    text = report_html(found) + report_csv(found)
    assert "127.0.0.1" not in text  # it is in all names of the other
    assert "Closed on Monday" in text


def test_csv_holds_the_figures_of_all_charts_and_runs_no_formula(
    report: Report, names: tuple[str, str, str]
) -> None:
    rows = list(csv.DictReader(io.StringIO(report_csv(report))))

    total = next(row for row in rows if row["chart"] == "total" and not row["site"])
    assert total["value"] == str(report.whole.visitors)
    for site in ("", "museum", names[0]):
        hours = [
            row
            for row in rows
            if row["chart"] == "by-hour" and row["site"] == site and row["column"] == "this period"
        ]
        assert len(hours) == 24
        shown = next(r for r in rows if r["chart"] == "total" and r["site"] == site)["value"]
        assert sum(int(row["value"] or 0) for row in hours) == int(shown)
    cells = [cell for row in rows for cell in row.values()]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)


def test_page_and_paper_have_the_same_charts(report: Report, store: Store) -> None:
    found = overview(store, WEEK, now=NOW)
    page = report_html(report)

    assert page.count("<svg") == page.count("<details>")
    for title in ("Visitors by hour of the day", "Visitors by day", "Visitors by weekday and hour"):
        assert page.count(f"<b>{title}.</b>") >= 1
    assert all(note.split(":")[0] in _Page(page).words for note in found.notes)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("day", date(2026, 3, 29), date(2026, 3, 29)),
        ("week", date(2026, 3, 23), date(2026, 3, 29)),
        ("month", date(2026, 2, 1), date(2026, 2, 28)),
    ],
)
def test_a_timer_gets_the_last_period_that_is_over(name: str, first: date, last: date) -> None:
    found = last_period(name, BERLIN, now=NOW)  # type: ignore[arg-type]

    assert (found.first, found.last) == (first, last)


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (date(2026, 3, 9), date(2026, 3, 9), "Monday 9 March 2026"),
        (date(2026, 3, 1), date(2026, 3, 31), "March 2026"),
        (date(2025, 12, 29), date(2026, 1, 4), "29 December 2025 to 4 January 2026"),
    ],
)
def test_periods_have_names(first: date, last: date, words: str) -> None:
    assert Period(first, last, BERLIN).words == words


def test_the_zone_is_that_of_the_sites(store: Store) -> None:
    assert report_zone(store) == BERLIN
    assert report_zone(store, ("nowhere",)) is None


def test_an_unknown_format_and_an_empty_store_are_refused(report: Report, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="html, pdf, csv"):
        write_report(report, tmp_path / "report.docx")
    with (
        open_store(tmp_path / "new.sqlite") as store,
        pytest.raises(ArgumentError, match="no camera has ever written"),
    ):
        make_report(store, WEEK, now=NOW)
