"""Splits keep people and copies together, keep the mix of ages, and stay when faces are added."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agelens.data.duplicates import DuplicateGroup
from agelens.data.schema import FaceRecord, FaceTable, FaceWriter
from agelens.data.splits import (
    SplitOptions,
    SplitReport,
    split_rows,
    split_table,
    stratum_of,
    write_split,
)
from agelens.errors import ArgumentError, DataError
from data.pictures import blob, encoded


def named(count: int, prefix: str = "face") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


@given(
    st.integers(1, 60),
    st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=4), max_size=8),
    st.integers(0, 5),
    st.sampled_from(["quota", "hash"]),
)
@settings(max_examples=60, deadline=None)
def test_families_are_never_parted_and_everybody_is_placed(
    rows: int, families: list[list[int]], seed: int, method: str
) -> None:
    inside = [[row % rows for row in family] for family in families]
    strata = [("old", "young")[row % 2] for row in range(rows)]
    options = SplitOptions(seed=seed, method=method)  # type: ignore[arg-type]

    report = split_rows(named(rows), strata, families=inside, options=options)

    assert len(report.splits) == rows
    assert set(report.splits) <= {"train", "val", "test"}
    for family in inside:
        assert len({report.splits[row] for row in family}) == 1
    assert sum(report.counts.values()) == rows


@given(st.permutations(range(30)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_rows_does_not_matter(order: list[int]) -> None:
    names, strata = named(30), [("a", "b", "c")[i % 3] for i in range(30)]
    plain = dict(zip(names, split_rows(names, strata).splits, strict=True))

    mixed = split_rows([names[i] for i in order], [strata[i] for i in order])

    assert dict(zip([names[i] for i in order], mixed.splits, strict=True)) == plain


def test_every_stratum_gets_its_shares() -> None:
    strata = ["20-29 female"] * 500 + ["70-79 male"] * 100 + ["0-9 male"] * 40

    report = split_rows(named(640), strata)

    for stratum, size in (("20-29 female", 500), ("70-79 male", 100), ("0-9 male", 40)):
        for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
            assert abs(report.strata[stratum][split] - share * size) <= 1


def test_tiny_strata_do_not_all_train() -> None:
    strata = [f"stratum {row}" for row in range(2000)]

    report = split_rows(named(2000), strata)

    assert report.counts["test"] == pytest.approx(200, abs=45)
    assert report.counts["val"] == pytest.approx(200, abs=45)


def test_the_seed_decides() -> None:
    strata = ["a"] * 200

    one, same, other = (
        split_rows(named(200), strata, options=SplitOptions(seed=seed)) for seed in (1, 1, 2)
    )

    assert one.splits == same.splits
    moved = sum(a != b for a, b in zip(one.splits, other.splits, strict=True))
    assert moved > 20


def test_nobody_moves_when_faces_are_added_and_hashes_decide() -> None:
    names = named(3000)
    options = SplitOptions(method="hash")

    few = split_rows(names[:2000], ["a"] * 2000, options=options)
    many = split_rows(names, ["a"] * 3000, options=options)

    assert many.splits[:2000] == few.splits
    assert many.counts["train"] == pytest.approx(2400, abs=90)


def test_few_move_when_faces_are_added_and_quotas_are_kept_and_none_with_keep() -> None:
    names = named(2200)
    few = split_rows(names[:2000], ["a"] * 2000)

    many = split_rows(names, ["a"] * 2200)
    kept = split_rows(names, ["a"] * 2200, keep=[*few.splits, *[None] * 200])

    moved = sum(a != b for a, b in zip(few.splits, many.splits, strict=False))
    assert moved <= 0.03 * 2000
    assert kept.splits[:2000] == few.splits
    assert [kept.counts[s] for s in ("train", "val", "test")] == [1760, 220, 220]


def test_families_follow_a_kept_row_and_a_contradiction_is_told() -> None:
    report = split_rows(named(3), ["a"] * 3, families=[[0, 2]], keep=["test", None, None])
    assert report.splits[2] == "test"

    with pytest.raises(DataError, match=r"face0 \(test\), face2 \(train\)"):
        split_rows(named(3), ["a"] * 3, families=[[0, 2]], keep=["test", None, "train"])


@pytest.mark.parametrize(
    ("low", "high", "gender", "expected"),
    [
        (20, 29, "female", "20-29 female"),
        (34, 34, None, "30-39 unlabelled"),
        (70, 100, "male", "80-89 male"),
        (101, 101, "male", "90+ male"),
        (None, None, "male", "no age male"),
    ],
)
def test_strata_are_decades_and_genders(
    low: int | None, high: int | None, gender: str | None, expected: str
) -> None:
    assert stratum_of(low, high, gender) == expected


def table(path: Path, count: int = 60) -> FaceTable:
    with FaceWriter(path, ["race"]) as writer:
        for row in range(count):
            writer.write(
                FaceRecord(
                    dataset="d",
                    source_file=f"{row}.jpg",
                    image=encoded(blob(0, 16)),
                    split="test" if row == 7 else None,
                    age_min=row,
                    age_max=row,
                    gender=("female", "male")[row % 2],
                    subject=f"p{row // 3}",
                    audit={"race": "x"},
                )
            )
    return FaceTable.open(path)


def test_a_table_is_split_by_person_and_by_picture(tmp_path: Path) -> None:
    faces = table(tmp_path / "t.parquet")
    copies = [DuplicateGroup((2, 50), copies=((2, 50),), distance=0)]

    report = split_table(faces, duplicates=copies, keep_own=True)
    write_split(faces, report, tmp_path / "split.parquet")

    written = FaceTable.open(tmp_path / "split.parquet").labels()
    splits = written["split"].to_pylist()
    by_person: dict[str, set[str]] = {}
    for subject, split in zip(written["subject"].to_pylist(), splits, strict=True):
        by_person.setdefault(subject, set()).add(split)
    assert all(len(held) == 1 for held in by_person.values())
    assert splits[2] == splits[50]
    assert splits[6] == splits[7] == splits[8] == "test"
    assert written["race"].to_pylist() == ["x"] * 60
    assert report.families == 19  # twenty people, two of whom share a picture
    assert report.largest == 6
    assert Counter(splits) == {k: v for k, v in report.counts.items() if v}


def test_an_earlier_table_is_kept_to(tmp_path: Path) -> None:
    small = table(tmp_path / "small.parquet", 30)
    write_split(small, split_table(small), tmp_path / "first.parquet")
    first = FaceTable.open(tmp_path / "first.parquet")

    report = split_table(table(tmp_path / "large.parquet"), SplitOptions(seed=9), keep=first)

    assert list(report.splits[:30]) == first.labels(["split"])["split"].to_pylist()


def test_relative_paths_still_point_to_their_pictures(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with FaceWriter(tmp_path / "set/t.parquet") as writer:
        writer.write(FaceRecord(dataset="d", source_file="a", path="sub/a.jpg"))
    faces = FaceTable.open(tmp_path / "set/t.parquet")

    write_split(faces, split_table(faces), tmp_path / "elsewhere/s.parquet")

    (path,) = FaceTable.open(tmp_path / "elsewhere/s.parquet").labels(["path"])["path"].to_pylist()
    assert path == str((tmp_path / "set/sub/a.jpg").resolve())


def test_wrong_shares_and_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="sum to 1"):
        SplitOptions({"train": 0.5, "test": 0.1})
    with pytest.raises(ArgumentError, match="2 names, 1 strata"):
        split_rows(["a", "b"], ["x"])
    report = SplitReport(("train",), {}, {}, 1, 1)
    with pytest.raises(DataError, match="of 1 rows"):
        write_split(table(tmp_path / "t.parquet"), report, tmp_path / "s.parquet")


def test_hashes_are_even() -> None:
    """Of many equal shares each gets its part: a chi-squared test at one in a thousand."""
    shares = {f"s{i}": 0.1 for i in range(10)}

    report = split_rows(named(5000), ["a"] * 5000, options=SplitOptions(shares, method="hash"))

    counts = np.array([report.counts[s] for s in shares])
    assert ((counts - 500) ** 2 / 500).sum() < 27.9
