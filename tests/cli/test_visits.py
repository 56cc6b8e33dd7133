"""``agelens visits``: tables of visits, old ones deleted, damage found, stores copied."""

from __future__ import annotations

import csv
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agelens.analytics.store import open_store
from analytics.people import visit
from command_line import agelens

FIRST = datetime(2026, 3, 2, 22, 30, tzinfo=UTC)
"""Half past eleven in the evening in Berlin; the next visit is of the next day there."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "visits.sqlite"
    with open_store(path) as opened:
        opened.add([visit(n, at=FIRST + timedelta(hours=n)) for n in range(30)])
    return path


def starts(path: Path) -> list[datetime]:
    with open(path, encoding="utf-8", newline="") as file:
        return [datetime.fromisoformat(row["start"]) for row in csv.DictReader(file)]


def test_the_visits_of_a_day_of_the_site_are_exported(store: Path, tmp_path: Path) -> None:
    table = tmp_path / "day.csv"
    day = ("--from", "2026-03-03", "--timezone", "Europe/Berlin")
    outcome = agelens("visits", "export", table, "--store", store, *day)

    assert outcome.status == 0, outcome.err
    assert starts(table) == [FIRST + timedelta(hours=n) for n in range(1, 25)]
    assert "24 visits" in outcome.err


def test_all_visits_are_exported_without_days(store: Path, tmp_path: Path) -> None:
    table = tmp_path / "all.csv"
    assert agelens("visits", "export", table, "--store", store).status == 0
    assert len(starts(table)) == 30


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (("--to", "2026-03-03"), "--to needs --from"),
        (("--from", "2026-03-03", "--to", "2026-03-02"), "is before"),
        (("--from", "March"), "expected a day"),
    ],
)
def test_days_that_are_none_are_refused(
    store: Path, tmp_path: Path, days: tuple[str, ...], words: str
) -> None:
    outcome = agelens("visits", "export", tmp_path / "x.csv", "--store", store, *days)
    assert outcome.status == 2
    assert words in " ".join(outcome.err.split())
    assert not (tmp_path / "x.csv").exists()


def test_old_visits_are_deleted(store: Path) -> None:
    outcome = agelens("visits", "retain", "--days", "1", "--store", store)
    assert outcome.status == 0, outcome.err
    assert "30 visits deleted" in outcome.err
    with open_store(store, read_only=True) as opened:
        assert not list(opened.visits())


def test_damage_is_found(store: Path) -> None:
    assert agelens("visits", "check", "--store", store).status == 0
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE minutes SET visits = visits + 1")
    outcome = agelens("visits", "check", "--store", store)
    assert outcome.status == 1
    assert "not the sums of the visits" in " ".join(outcome.err.split())


def test_a_store_is_copied_once(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.sqlite"
    assert "30 visits copied" in agelens("visits", "copy", target, "--store", store).err
    assert "30 were there" in agelens("visits", "copy", target, "--store", store).err
    with open_store(store, read_only=True) as one, open_store(target, read_only=True) as other:
        assert one.checksum() == other.checksum()


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    outcome = agelens("visits", "check", "--store", tmp_path / "none.sqlite")
    assert outcome.status == 2
    assert not (tmp_path / "none.sqlite").exists()
