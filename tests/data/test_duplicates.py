"""The same picture twice: copies, saved again, mirrored; and nothing else."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agelens.data.duplicates import (
    PictureFacts,
    RowSets,
    find_duplicates,
    hamming,
    near_pairs,
    perceptual_hash,
    read_pictures,
)
from agelens.data.schema import FaceRecord, FaceTable, FaceWriter
from agelens.errors import ArgumentError
from data.pictures import blob, encoded, save


def table_of(folder: Path, pictures: list[bytes | str]) -> FaceTable:
    """Bytes are held in the table, text is the path of a file."""
    with FaceWriter(folder / "t.parquet", group_rows=3) as writer:
        for number, held in enumerate(pictures):
            where = {"image": held} if isinstance(held, bytes) else {"path": held}
            writer.write(FaceRecord(dataset="x", source_file=f"{number}", **where))
    return FaceTable.open(folder / "t.parquet")


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))


def test_copies_are_found_whatever_was_done_to_them(tmp_path: Path) -> None:
    one, two, three, four = (blob(seed, 160) for seed in range(4))
    grey = np.asarray(Image.fromarray(four).convert("L").convert("RGB"))
    pictures: list[bytes | str] = [
        encoded(one),
        encoded(two),
        encoded(one),  # a copy
        encoded(two, "WEBP", 50),  # saved again
        encoded(resized(two, 70)),  # made smaller
        encoded(three),
        encoded(np.ascontiguousarray(three[:, ::-1])),  # mirrored
        encoded(four),
        encoded((grey * 0.8 + 20).astype(np.uint8)),  # grey and paler
        encoded(blob(9, 160)),
    ]

    facts = read_pictures(table_of(tmp_path, pictures), workers=1)
    groups = find_duplicates(facts)

    assert [(group.rows, group.exact) for group in groups] == [
        ((0, 2), True),
        ((1, 3, 4), False),
        ((5, 6), False),
        ((7, 8), False),
    ]
    assert groups[0].distance == 0 < groups[1].distance <= 24
    assert [g.rows for g in find_duplicates(facts, mirrored=False)] == [(0, 2), (1, 3, 4), (7, 8)]


def test_pictures_that_cannot_be_read_are_told_and_are_nobodys_copy(tmp_path: Path) -> None:
    there = save(tmp_path / "a.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    flat = encoded(np.full((50, 60, 3), 128, np.uint8))
    table = table_of(
        tmp_path, [str(there), "bad.jpg", "gone.jpg", encoded(blob(1))[:900], flat, flat + b" "]
    )

    facts = read_pictures(table, workers=1)

    assert {row: code for row, (code, _) in facts.errors.items()} == {
        1: "not_an_image",
        2: "not_found",
        3: "truncated",
    }
    assert facts.sizes.tolist() == [[96, 96], [0, 0], [0, 0], [0, 0], [60, 50], [60, 50]]
    assert facts.blank.tolist() == [False, False, False, False, True, True]
    assert find_duplicates(facts) == []


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    one_of_each = [encoded(blob(seed, 40)) for seed in range(7)]
    pictures: list[bytes | str] = [*one_of_each * 150]
    table = table_of(tmp_path, pictures)
    told: list[tuple[int, int]] = []

    alone = read_pictures(table, workers=1)
    shared = read_pictures(table, workers=2, progress=lambda done, rows: told.append((done, rows)))

    assert np.array_equal(alone.hashes, shared.hashes)
    assert np.array_equal(alone.content, shared.content)
    assert told[-1] == (1050, 1050)
    assert [len(group.rows) for group in find_duplicates(shared)] == [150] * 7


def flipped(hashed: np.ndarray, bits: list[int]) -> np.ndarray:
    out = np.unpackbits(hashed.view(np.uint8))
    out[bits] ^= 1
    return np.packbits(out).view(np.uint64)


@given(
    st.integers(0, 10**6),
    st.integers(0, 24),
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 40)), max_size=10),
)
@settings(max_examples=30, deadline=None)
def test_no_near_pair_is_missed_and_none_is_made_up(
    seed: int, limit: int, plants: list[tuple[int, int]]
) -> None:
    """Against all pairs, compared one by one."""
    rng = np.random.default_rng(seed)
    hashes = list(rng.integers(0, 2**64, (20, 4), dtype=np.uint64))
    for source, bits in plants:
        hashes.append(flipped(hashes[source], list(rng.choice(256, bits, replace=False))))
    array = np.stack(hashes)
    wanted = RowSets(len(array))
    for a, b in combinations(range(len(array)), 2):
        if bin(int.from_bytes((array[a] ^ array[b]).tobytes(), "big")).count("1") <= limit:
            wanted.join(a, b)

    got = RowSets(len(array))
    for a, b, distance in near_pairs(array, limit):
        assert hamming(array[a], array[b]) == distance <= limit
        got.join(a, b)

    assert got.all() == wanted.all()


def test_ten_thousand_copies_cost_no_more_than_ten_thousand_pictures() -> None:
    array = np.zeros((10_000, 4), np.uint64)

    pairs = list(near_pairs(array, 24))

    assert len(pairs) == 9_999


def test_the_hash_is_of_the_picture_and_not_of_its_size_or_brightness() -> None:
    picture = blob(3, 200)
    paler = (picture * 0.7 + 40).astype(np.uint8)

    own = perceptual_hash(picture)

    assert hamming(own, perceptual_hash(resized(picture, 80))) <= 12
    assert hamming(own, perceptual_hash(paler)) <= 12
    assert hamming(own, perceptual_hash(blob(4, 200))) > 60


def test_a_distance_out_of_range_is_refused() -> None:
    empty = PictureFacts(
        {},
        np.zeros((0, 2), np.int32),
        np.zeros(0, "V16"),
        np.zeros((0, 4), np.uint64),
        np.zeros((0, 4), np.uint64),
        np.zeros(0, np.float32),
    )

    assert find_duplicates(empty) == []
    with pytest.raises(ArgumentError, match=r"0\.\.64"):
        find_duplicates(empty, max_distance=65)
