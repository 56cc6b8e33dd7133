"""``agelens report``: the last week for a timer, any days for people, and clear words otherwise."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from agelens.analytics.records import Site
from agelens.analytics.store import open_store
from analytics.people import visit
from command_line import agelens


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty visitors a day in the first weeks of March 2026, and a few yesterday."""
    path = tmp_path_factory.mktemp("reports") / "visits.sqlite"
    first = datetime(2026, 3, 2, 8, tzinfo=UTC)
    yesterday = datetime.now(UTC).replace(hour=12) - timedelta(days=1)
    with open_store(path) as opened:
        opened.set_site(Site("museum", "Europe/Berlin", "City Museum"))
        times = [(day, n) for day in range(21) for n in range(40)]
        opened.add(
            [
                visit(100 * day + n, at=first + timedelta(days=day, minutes=15 * n))
                for day, n in times
            ]
        )
        opened.add([visit(9000 + n, at=yesterday) for n in range(20)])
    return path


def report(store: Path, *options: object, status: int = 0) -> str:
    outcome = agelens("report", "--store", store, *map(str, options))
    assert outcome.status == status, outcome.err
    return outcome.out if status == 0 else " ".join(outcome.err.split())


def figures(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_days_from_and_to_are_counted_and_printed_as_csv(store: Path) -> None:
    rows = figures(
        report(store, "--from", "2026-03-09", "--to", "2026-03-12", "--format", "csv", "-o", "-",
               "--minimum", 1)
    )  # fmt: skip

    totals = [(row["row"], row["value"]) for row in rows if row["chart"] == "total"]
    assert totals == [
        ("9 to 12 March 2026", "160"),
        ("5 to 8 March 2026", "160"),
        ("2 to 5 March 2026", "160"),
    ]


def test_the_week_of_a_day_is_meant_with_period_and_from(store: Path) -> None:
    rows = figures(
        report(store, "--period", "week", "--from", "2026-03-12", "--format", "csv", "-o", "-")
    )

    total = next(row for row in rows if row["chart"] == "total")
    assert total["row"] == "9 to 15 March 2026"
    assert abs(int(total["value"]) - 7 * 40) <= 8


def test_a_timer_writes_the_last_day_into_a_folder_under_its_own_name(
    store: Path, tmp_path: Path
) -> None:
    outcome = agelens("report", "--store", store, "--period", "day", "-o", tmp_path)

    assert outcome.status == 0, outcome.err
    (path,) = tmp_path.iterdir()
    day = date.fromisoformat(path.stem.removeprefix("visitors-"))
    assert abs((datetime.now(UTC).date() - day).days) <= 2
    assert path.suffix == ".html"
    assert path.name in "".join(outcome.err.split())
    assert "City Museum" in path.read_text(encoding="utf-8")


def test_the_format_goes_by_the_name_of_the_file(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("weasyprint")
    path = tmp_path / "reports" / "march.pdf"
    report(store, "--from", "2026-03-09", "-o", path)

    assert path.read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--to", "2026-03-09"), "--to needs --from"),
        (("--from", "9.3.2026"), "--from 9.3.2026: expected a day as 2026-03-01"),
        (("--from", "2026-03-09", "--to", "2026-03-01"), "ends (2026-03-01) before it begins"),
        (("--period", "day", "--from", "2026-03-09", "--to", "2026-03-10"), "not both"),
        (("--site", "shop"), "the store knows no site 'shop'; it has: museum"),
        (("--timezone", "Berlin"), "no time zone 'Berlin'"),
        (("--format", "pdf", "-o", "-"), "a PDF is not printed"),
    ],
)
def test_wrong_options_are_told_with_what_is_expected(
    store: Path, options: tuple[str, ...], words: str
) -> None:
    assert words in report(store, *options, status=2)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none.sqlite"

    assert "no such store" in report(path, "--period", "day", status=2)
    assert not path.exists()
