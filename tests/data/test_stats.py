"""Counting ages by gender by group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agelens.data.schema import FaceRecord, FaceTable, FaceWriter
from agelens.data.stats import band_names, count_faces, count_labels, draw
from agelens.errors import ArgumentError
from data.pictures import blob, encoded


def test_a_range_counts_evenly_for_each_of_its_years() -> None:
    counts = count_labels([20, 0, 30], [29, 3, 30], ["female", None, "male"], ["a", "a", "b"])

    female, male, unlabelled = counts.ages[0]
    assert female[20:30] == pytest.approx(0.1)
    assert female.sum() == pytest.approx(1)
    assert unlabelled[:4] == pytest.approx(0.25)
    assert male.sum() == 0
    assert counts.groups == ("a", "b")
    assert counts.ages[1, 1, 30] == pytest.approx(1)
    # Two of the four years of 0-3 lie under 2.
    assert counts.banded([0, 2, 25])[0, 2].tolist() == pytest.approx([0.5, 0.5, 0.0])


labels = st.lists(
    st.tuples(
        st.one_of(st.none(), st.tuples(st.integers(0, 122), st.integers(0, 122))),
        st.sampled_from(["female", "male", None]),
        st.sampled_from(["x", "y", None]),
    ),
    max_size=30,
)


@given(labels)
@settings(deadline=None)
def test_no_face_is_lost_and_the_order_does_not_matter(
    rows: list[tuple[tuple[int, int] | None, str | None, str | None]],
) -> None:
    def count(order: list[tuple[tuple[int, int] | None, str | None, str | None]]) -> object:
        lows = [None if r[0] is None else min(r[0]) for r in order]
        highs = [None if r[0] is None else max(r[0]) for r in order]
        return count_labels(lows, highs, [r[1] for r in order], [r[2] for r in order])

    one, other = count(rows), count(rows[::-1])

    assert one.total == len(rows)  # type: ignore[attr-defined]
    assert np.allclose(one.ages, other.ages)  # type: ignore[attr-defined]


def table(tmp_path: Path) -> FaceTable:
    with FaceWriter(tmp_path / "f.parquet", ["race"]) as writer:
        for age, gender, split, race in [
            (5, "female", "train", "A"),
            (40, "male", "train", "B"),
            (41, "male", "test", "B"),
            (None, None, "test", None),
        ]:
            writer.write(
                FaceRecord(
                    dataset="d",
                    source_file="x",
                    image=encoded(blob(0, 16)),
                    age_min=age,
                    age_max=age,
                    gender=gender,  # type: ignore[arg-type]
                    split=split,
                    audit={"race": race},
                )
            )
    return FaceTable.open(tmp_path / "f.parquet")


def test_groups_can_be_any_column_of_words(tmp_path: Path) -> None:
    faces = table(tmp_path)

    by_race = count_faces(faces, by="race")
    test_only = count_faces(faces, by="split", split="test")

    assert by_race.groups == ("(none)", "A", "B")
    assert by_race.ages.sum((1, 2)).tolist() == [0, 1, 2]
    assert by_race.without_age.sum(1).tolist() == [1, 0, 0]
    assert (test_only.groups, test_only.total) == (("test",), 2)
    rows = by_race.rows([0, 18])
    assert {"race": "B", "gender": "male", "ages": "18+", "faces": 2.0, "share": 1.0} in rows
    assert sum(float(row["faces"]) for row in rows) == 4
    with pytest.raises(ArgumentError, match=r"choose one of .*race"):
        count_faces(faces, by="colour")


def test_bands_have_names() -> None:
    assert band_names([0, 3, 4, 18]) == ["0-2", "3", "4-17", "18+"]
    for wrong in ([3, 10], [0, 10, 10], [0, 200], []):
        with pytest.raises(ArgumentError, match="rise"):
            band_names(wrong)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_ages_are_drawn(tmp_path: Path, ending: str) -> None:
    counts = count_faces(table(tmp_path), by="race")

    draw(counts, tmp_path / f"out/ages.{ending}")
    draw(counts, tmp_path / f"out/again.{ending}")

    content = (tmp_path / f"out/ages.{ending}").read_bytes()
    if ending == "png":
        picture = np.asarray(Image.open(tmp_path / "out/ages.png").convert("RGB")).reshape(-1, 3)
        assert {(198, 93, 33), (47, 109, 179)} <= {tuple(int(v) for v in p) for p in picture}
        assert content == (tmp_path / "out/again.png").read_bytes()
    else:
        assert content.lstrip().startswith(b"<?xml")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"again.{ending}",
        f"ages.{ending}",
    ]
    with pytest.raises(ArgumentError, match="ends in"):
        draw(counts, tmp_path / "ages.bmp")
