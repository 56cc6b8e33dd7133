"""The schema: what a row may hold, and Parquet files read as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agelens.data.schema import (
    FaceRecord,
    FaceTable,
    FaceWriter,
    batch_to_records,
    find_row_problems,
    picture_source,
    records_to_batch,
)
from agelens.errors import DataError
from data.pictures import blob, encoded

PICTURE = encoded(blob(0, 16))


def face(**changed: Any) -> FaceRecord:
    values: dict[str, Any] = {"dataset": "mine", "source_file": "a.jpg", "image": PICTURE}
    return FaceRecord(**{**values, **changed})


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        ({"age_min": 230, "age_max": 230}, "age_min"),
        ({"age_min": -1, "age_max": 3}, "age_min"),
        ({"age_min": 30, "age_max": 20}, "age_min"),
        ({"age_min": 30}, "age_max"),
        ({"gender": "Female"}, "gender"),
        ({"age_kind": "guessed"}, "age_kind"),
        ({"age_std": -1.0}, "age_std"),
        ({"age_std": float("nan")}, "age_std"),
        ({"box": (10, 10, 5, 20)}, "box"),
        ({"landmarks": (1.0, 2.0)}, "landmarks"),
        ({"licence_class": "free"}, "licence_class"),
        ({"dataset": ""}, "dataset"),
        ({"image": None}, "image"),
    ],
)
def test_a_record_that_no_face_can_have_is_refused_by_column(
    changed: dict[str, Any], column: str
) -> None:
    with pytest.raises(DataError, match=f"a.jpg, column '{column}'"):
        face(**changed)


ages = st.integers(0, 122)
records = st.builds(
    lambda a, b, **rest: face(age_min=min(a, b), age_max=max(a, b), **rest),
    ages,
    ages,
    gender=st.sampled_from(["female", "male", None]),
    age_std=st.none() | st.floats(0, 20, width=32),
    age_kind=st.sampled_from(["real", "apparent", None]),
    subject=st.none() | st.text(max_size=5),
    split=st.none() | st.sampled_from(["train", "val"]),
    box=st.none() | st.just((1.0, 2.0, 3.5, 4.5)),
    landmarks=st.none() | st.just(tuple(float(v) for v in range(10))),
    licence_class=st.sampled_from(["commercial", "research", None]),
    audit=st.fixed_dictionaries({"race": st.none() | st.text(max_size=8)}),
)


@given(st.lists(records, max_size=5))
@settings(max_examples=40, deadline=None)
def test_records_survive_the_way_through_arrow(rows: list[FaceRecord]) -> None:
    assert batch_to_records(records_to_batch(rows, ["race"])) == rows


def write(path: Path, rows: list[FaceRecord], audit: tuple[str, ...] = ()) -> Path:
    with FaceWriter(path, audit, group_rows=3) as writer:
        for row in rows:
            writer.write(row)
    return path


def test_several_files_are_one_table_with_rising_row_numbers(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(11)]
    write(tmp_path / "a.parquet", [face(source_file=n) for n in names[:7]])
    write(tmp_path / "b.parquet", [face(source_file=n) for n in names[7:]], ())

    table = FaceTable.open([tmp_path / "a.parquet", tmp_path / "b.parquet"])

    assert table.num_rows == 11
    assert table.labels(["source_file"])["source_file"].to_pylist() == names
    assert table.locate(8) == (tmp_path / "b.parquet", 1)
    assert table.name_of(8) == "b.parquet#1"
    starts = [(start, batch.num_rows) for start, batch in table.batches(size=2)]
    assert all(rows <= 2 for _, rows in starts)
    assert [start for start, _ in starts] == [
        sum(r for _, r in starts[:i]) for i in range(len(starts))
    ]


@pytest.mark.parametrize(("first", "count"), [(0, 11), (2, 3), (5, 4), (6, 1), (10, 1), (4, 0)])
def test_a_slice_gives_the_rows_that_were_asked_for(tmp_path: Path, first: int, count: int) -> None:
    names = [f"{i}.jpg" for i in range(11)]
    write(tmp_path / "a.parquet", [face(source_file=n) for n in names[:7]])
    write(tmp_path / "b.parquet", [face(source_file=n) for n in names[7:]])
    table = FaceTable.open(tmp_path)

    got = [
        (start + i, name)
        for start, batch in table.slice(first, count, ["source_file"])
        for i, name in enumerate(batch.column("source_file").to_pylist())
    ]

    assert got == [(row, names[row]) for row in range(first, first + count)]
    taken = table.take([1, 9], ["source_file"])
    assert {row: held["source_file"] for row, held in taken.items()} == {1: "1.jpg", 9: "9.jpg"}


def test_a_table_with_few_and_foreign_columns_is_filled_up(tmp_path: Path) -> None:
    """As data sets are handed round: dictionary-encoded text, small integers, a race column."""
    table = pa.table(
        {
            "image": pa.array([PICTURE, PICTURE]),
            "dataset": pa.array(["fairface", "utkface"]).dictionary_encode(),
            "age_min": pa.array([3, 40], pa.int32()),
            "age_max": pa.array([9, 40], pa.int32()),
            "gender": pa.array(["male", None]).dictionary_encode(),
            "race": pa.array(["White", "Black"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")

    opened = FaceTable.open(tmp_path / "x.parquet")
    (first, second) = [
        r
        for _, b in opened.batches()
        for r in batch_to_records(
            b.set_column(
                b.schema.get_field_index("source_file"), "source_file", pa.array(["a", "b"])
            )
        )
    ]

    assert opened.audit == ("race",)
    assert (first.age_min, first.age_max, first.gender) == (3, 9, "male")
    assert first.licence_class == "commercial"
    assert second.licence_class == "research"
    assert second.age_kind == "apparent"
    assert (second.gender, second.subject, second.audit["race"]) == (None, None, "Black")


def test_a_column_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [PICTURE], "age_min": ["old"]}), tmp_path / "x.parquet")

    with pytest.raises(DataError, match=r"x\.parquet, column 'age_min'"):
        FaceTable.open(tmp_path / "x.parquet").labels()


def test_what_is_no_face_table_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"age": [1]}), tmp_path / "x.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")

    with pytest.raises(DataError, match="neither an 'image' nor a 'path' column"):
        FaceTable.open(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        FaceTable.open(tmp_path / "text.parquet")
    with pytest.raises(DataError, match="no such file"):
        FaceTable.open(tmp_path / "missing.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.parquet"):
        FaceTable.open(tmp_path / "empty")


def test_every_problem_of_a_batch_is_told_with_its_row() -> None:
    schema = records_to_batch([face()]).schema
    rows = [
        {"dataset": "m", "source_file": "a", "image": PICTURE, "age_min": 230, "age_max": 230},
        {"dataset": "m", "source_file": "b", "path": "b.jpg", "gender": "x", "age_min": 5},
        {"dataset": "m", "source_file": "c", "path": "c.jpg"},
        {"dataset": "m", "source_file": "d"},
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)

    problems = find_row_problems(batch, "f.parquet", 100)

    assert [(p.row, p.column) for p in problems] == [
        (100, "age_min"),
        (101, "age_max"),
        (101, "gender"),
        (103, "image"),
    ]


def test_a_failed_writer_leaves_no_file(tmp_path: Path) -> None:
    def failing() -> None:
        with FaceWriter(tmp_path / "x.parquet") as writer:
            writer.write(face())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()

    assert list(tmp_path.iterdir()) == []


def test_relative_paths_are_meant_from_the_table(tmp_path: Path) -> None:
    assert picture_source(None, "sub/a.jpg", tmp_path / "t.parquet") == tmp_path / "sub/a.jpg"
    assert picture_source(None, "/x/a.jpg", tmp_path / "t.parquet") == Path("/x/a.jpg")
    assert picture_source(b"1", None, tmp_path / "t.parquet") == b"1"


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    one = FaceTable.open(write(tmp_path / "a.parquet", [face()])).fingerprint()
    same = FaceTable.open(write(tmp_path / "b.parquet", [face()])).fingerprint()
    other = FaceTable.open(write(tmp_path / "c.parquet", [face(gender="male")])).fingerprint()

    assert one == same != other
