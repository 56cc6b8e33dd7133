"""Exports hold every visit, and a spreadsheet runs nothing in them."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from agelens.analytics.export import COLUMNS, export_visits
from agelens.analytics.store import Scope, open_store
from agelens.errors import ArgumentError
from analytics.people import crowd, visit


def test_parquet_and_csv_hold_the_same_visits(tmp_path: Path) -> None:
    visits = crowd(60)
    with open_store(tmp_path / "visits.db") as store:
        store.add(visits)
        counts = [
            export_visits(store, tmp_path / name, scope=Scope(staff=True))
            for name in ("a.parquet", "a.csv")
        ]

    table = pq.read_table(tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert counts == [60, 60]
    assert table.column_names == list(COLUMNS) == list(rows[0])
    assert table["id"].to_pylist() == [one.id for one in visits] == [row["id"] for row in rows]
    assert table["start"].to_pylist() == [one.start for one in visits]
    assert [float(row["seconds"]) for row in rows] == [one.seconds for one in visits]
    assert [row["female"] == "" for row in rows] == [one.abstained for one in visits]
    assert rows[1]["crossings"].startswith("gate=in@2026-03-10T12:00:07.000+00:00; gate=out@")


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_a_name_that_is_a_formula_is_defused_in_csv(tmp_path: Path, start: str) -> None:
    with open_store(tmp_path / "visits.db") as store:
        store.add([visit(1, camera=f"{start}HYPERLINK(1)")])
        export_visits(store, tmp_path / "a.csv")

    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["camera"] == f"'{start}HYPERLINK(1)"


def test_an_unknown_format_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with (
        open_store(tmp_path / "visits.db") as store,
        pytest.raises(ArgumentError, match="'xlsx'"),
    ):
        export_visits(store, tmp_path / "a.xlsx")

    assert not (tmp_path / "a.xlsx").exists()
