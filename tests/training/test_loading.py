"""Prepared faces: labels, cache, balanced draws, and what is refused."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from agelens.data.augmentation import AugmentationSettings
from agelens.data.loading import (
    BalancedDraws,
    Draw,
    PreparedFaces,
    ShardFolder,
    balance_weights,
    draw_weights,
    group_balance_weights,
    loss_weights,
    to_tensors,
)
from agelens.errors import ArgumentError, DataError

MakeShards = Callable[..., Path]
MakeFace = Callable[..., dict[str, Any]]


def faces_of(folder: Path, split: str | None = "train", **options: Any) -> PreparedFaces:
    return PreparedFaces([ShardFolder(folder)], split=split, size=32, margin=0.4, **options)


def test_labels_are_those_of_the_shards_in_their_order(prepared: Path) -> None:
    rows = [
        row
        for shard in sorted(prepared.glob("*.parquet"))
        for row in pq.read_table(shard).to_pylist()
        if row["split"] == "val"
    ]

    labels = faces_of(prepared, "val").labels

    genders = {"female": 1, "male": 0, None: -1}
    assert labels.source_file.tolist() == [row["source_file"] for row in rows]
    assert labels.low.tolist() == [row["age_min"] for row in rows]
    assert labels.high.tolist() == [row["age_max"] for row in rows]
    assert labels.female.tolist() == [genders[row["gender"]] for row in rows]
    assert labels.group.tolist() == [row["race"] or "" for row in rows]
    known = [row["age_std"] or np.nan for row in rows]
    np.testing.assert_array_equal(labels.std, np.array(known, np.float32))


def test_ages_over_a_hundred_are_a_hundred(
    make_shards: MakeShards, make_face: MakeFace, tmp_path: Path
) -> None:
    row = make_face(1, "train", np.random.default_rng(0)) | {"age_min": 110, "age_max": 116}

    labels = faces_of(make_shards(tmp_path, [row], shards=1)).labels

    assert (labels.low[0], labels.high[0]) == (100, 100)


def test_cached_chip_is_the_decoded_one(
    make_shards: MakeShards, make_face: MakeFace, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = [make_face(i, "train", rng) for i in range(7)]
    folder = ShardFolder(make_shards(tmp_path, rows))
    decoded = [np.asarray(Image.open(io.BytesIO(row["image"]))) for row in rows]
    before = [folder.chip(i) for i in range(7)]

    path = folder.cache()

    for fresh in (folder, pickle.loads(pickle.dumps(folder)), ShardFolder(tmp_path)):
        for row in range(7):
            np.testing.assert_array_equal(fresh.chip(row), decoded[row])
    np.testing.assert_array_equal(before, decoded)
    assert path.parent == tmp_path
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_cache_is_made_once(prepared: Path) -> None:
    folder = ShardFolder(prepared)
    made = folder.cache().stat()

    again = ShardFolder(prepared).cache().stat()

    assert (made.st_ino, made.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)


def test_changed_shard_is_not_cached(
    make_shards: MakeShards, make_face: MakeFace, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    make_shards(tmp_path, [make_face(i, "train", rng) for i in range(4)])
    shard = tmp_path / "shard-00001.parquet"
    pq.write_table(pq.read_table(shard), shard, compression="gzip")

    with pytest.raises(DataError, match=r"shard-00001\.parquet: SHA-256 is"):
        ShardFolder(tmp_path).cache()

    assert list(tmp_path.glob("*chips*")) == []


def test_picture_that_cannot_be_decoded_is_named(
    make_shards: MakeShards, make_face: MakeFace, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = [make_face(i, "train", rng) for i in range(3)]
    rows[2]["image"] = b"no picture"

    with pytest.raises(DataError, match="row 2: cannot be decoded"):
        ShardFolder(make_shards(tmp_path, rows, shards=1)).cache()


def spoil(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": "agelens.prepared/9"}, "schema is 'agelens.prepared/9'"),
        ({"margin": None}, "prepare the faces again"),
        ({"shards": [{"file": "gone.parquet", "rows": 1, "sha256": "0"}]}, "not there"),
        ({"shards": [{"file": "shard-00000.parquet", "rows": 9, "sha256": "0"}]}, "says 9"),
    ],
    ids=["schema", "margin", "missing shard", "row count"],
)
def test_manifest_that_contradicts_the_shards_is_refused(
    make_shards: MakeShards,
    make_face: MakeFace,
    tmp_path: Path,
    changes: dict[str, Any],
    said: str,
) -> None:
    make_shards(tmp_path, [make_face(1, "train", np.random.default_rng(0))], shards=1)
    spoil(tmp_path, **changes)

    with pytest.raises(DataError, match=said):
        ShardFolder(tmp_path)


def test_folder_that_was_never_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json: not there"):
        ShardFolder(tmp_path)


@pytest.mark.parametrize(
    "change", [{"age_min": 30, "age_max": 20}, {"age_min": None}, {"gender": "woman"}], ids=str
)
def test_impossible_label_is_refused(
    make_shards: MakeShards, make_face: MakeFace, tmp_path: Path, change: dict[str, Any]
) -> None:
    row = make_face(1, "train", np.random.default_rng(0)) | change

    with pytest.raises(DataError, match="expected"):
        ShardFolder(make_shards(tmp_path, [row], shards=1))


def test_split_without_faces_says_what_there_is(prepared: Path) -> None:
    with pytest.raises(DataError, match=r"split 'test'; there are exact train: 128, exact val: 42"):
        faces_of(prepared, "test")


def test_unknown_data_set_says_what_there_is(prepared: Path) -> None:
    with pytest.raises(ArgumentError, match=r"no data set utkface; there are exact train"):
        faces_of(prepared, datasets=("utkface",))


def test_network_with_more_margin_than_the_chips_is_refused(prepared: Path) -> None:
    with pytest.raises(ArgumentError, match=r"prepared with a margin of 0\.6"):
        PreparedFaces([ShardFolder(prepared)], split="train", size=32, margin=0.8)


def test_unlabelled_faces_come_along_without_their_labels(prepared: Path) -> None:
    folder = ShardFolder(prepared)

    faces = faces_of(prepared, "val", unlabelled=[folder])

    assert len(faces) == 64 + 256
    assert (faces.labels.low[64:] == -1).all()
    assert (faces.labels.female[64:] == -1).all()
    np.testing.assert_array_equal(faces.prepared_chip(64 + 5), folder.chip(5))


def test_batch_is_the_faces_of_its_draws(prepared: Path) -> None:
    faces = faces_of(prepared, settings=AugmentationSettings(preset="standard"))
    draws = [Draw(3, 11), Draw(5, 11), Draw(3, 12), Draw(3, 11)]

    batch = to_tensors(faces.__getitems__(draws))

    assert batch.chips.shape == (4, 32, 32, 3)
    np.testing.assert_array_equal(batch.chips[0], batch.chips[3])
    assert (batch.chips[0] != batch.chips[2]).any()
    assert batch.low.tolist() == faces.labels.low[[3, 5, 3, 3]].tolist()
    assert batch.row.tolist() == [3, 5, 3, 3]


# --- draws ----------------------------------------------------------------------------------------


def plan(weights: np.ndarray, **options: Any) -> BalancedDraws:
    settings = {"batch_size": 10, "batches": 6, "seed": 3} | options
    return BalancedDraws(weights, **settings)


WEIGHTS = np.random.default_rng(1).uniform(0.2, 3, 37)


def test_draws_from_the_middle_are_the_tail_of_the_whole_epoch() -> None:
    whole, tail = plan(WEIGHTS), plan(WEIGHTS)
    whole.go_to(4)
    tail.go_to(4, batch=4)

    assert list(tail) == list(whole)[40:]
    assert len(tail) == 20


def test_epochs_differ_and_repeat() -> None:
    draws = plan(WEIGHTS)
    epochs = []
    for epoch in (0, 1, 0):
        draws.go_to(epoch)
        epochs.append(list(draws))

    assert epochs[0] == epochs[2] != epochs[1]


def test_two_processes_share_the_batches_of_one_with_the_doubled_batch() -> None:
    one = list(plan(WEIGHTS, batch_size=20))
    pair = [list(plan(WEIGHTS, rank=rank, world=2)) for rank in range(2)]

    for step in range(6):
        together = [draw for draws in pair for draw in draws[10 * step : 10 * step + 10]]
        assert together == one[20 * step : 20 * step + 20]


def test_each_face_comes_as_often_as_its_weight_rounded_up_or_down() -> None:
    rows, _ = plan(WEIGHTS, batches=50).epoch(2)

    counts = np.bincount(rows, minlength=37)
    expected = WEIGHTS / WEIGHTS.sum() * 500
    assert counts.sum() == 500
    assert (np.abs(counts - expected) < 1 + 1e-9).all()


def test_even_weights_shuffle_without_repeats() -> None:
    rows, seeds = plan(np.ones(60)).epoch(0)

    assert sorted(rows) == list(range(60))
    assert rows.tolist() != list(range(60))
    assert len(set(seeds.tolist())) == 60


def test_cells_count_by_the_square_root_of_their_size(prepared: Path) -> None:
    labels = faces_of(prepared).labels

    weights = balance_weights(labels, ("dataset", "gender"))

    for dataset in ("exact", "ranged"):
        for female in (-1, 0, 1):
            cell = (labels.dataset == dataset) & (labels.female == female)
            assert weights[cell].sum() == pytest.approx(np.sqrt(cell.sum()))


def test_decades_are_those_of_the_middle_of_the_label(prepared: Path) -> None:
    labels = faces_of(prepared).labels

    weights = balance_weights(labels, ("decade",))

    middles = (labels.low.astype(int) + labels.high) // 2 // 10
    sizes = np.array([(middles == middle).sum() for middle in middles])
    np.testing.assert_allclose(weights, sizes**-0.5)


def uneven(make_face: MakeFace, groups: dict[str | None, int]) -> list[dict[str, Any]]:
    """Faces of groups of very different size."""
    rng = np.random.default_rng(3)
    names = [group for group, count in groups.items() for _ in range(count)]
    return [make_face(i, "train", rng) | {"race": group} for i, group in enumerate(names)]


def test_every_group_is_drawn_equally_often_whatever_its_size(
    make_shards: MakeShards, make_face: MakeFace, tmp_path: Path
) -> None:
    faces = faces_of(make_shards(tmp_path, uneven(make_face, {"a": 240, "b": 30, "c": 6})))
    weights = draw_weights(faces.labels, "group_balanced", ("decade", "gender"))

    rows, _ = BalancedDraws(weights, batch_size=30, batches=100, seed=0).epoch(0)

    drawn = faces.labels.group[rows]
    # Systematic draws: each face comes as often as expected, rounded up or down.
    for group, size in (("a", 240), ("b", 30), ("c", 6)):
        assert (drawn == group).sum() == pytest.approx(1000, abs=size)


def test_within_a_group_cells_count_by_the_square_root_of_their_size(prepared: Path) -> None:
    labels = faces_of(prepared).labels

    weights = group_balance_weights(labels, ("gender",))

    for group in ("a", "b"):
        shares = []
        for female in (-1, 0, 1):
            cell = (labels.group == group) & (labels.female == female)
            if cell.any():
                shares.append(weights[cell].sum() / np.sqrt(cell.sum()))
        assert len(shares) > 1
        np.testing.assert_allclose(shares, shares[0])


def test_faces_without_a_group_keep_their_share(
    make_shards: MakeShards, make_face: MakeFace, tmp_path: Path
) -> None:
    rows = uneven(make_face, {"a": 60, "b": 20, None: 20})
    labels = faces_of(make_shards(tmp_path, rows)).labels

    weights = group_balance_weights(labels, ())

    shares = {group: weights[labels.group == group].sum() for group in ("a", "b", "")}
    assert shares == pytest.approx({"a": 0.4, "b": 0.4, "": 0.2})


def test_groups_can_be_those_of_several_columns(
    make_shards: MakeShards, make_face: MakeFace, tmp_path: Path
) -> None:
    folder = make_shards(tmp_path, uneven(make_face, {"a": 12, None: 3}), shards=1)
    shard = folder / "shard-00000.parquet"
    table = pq.read_table(shard)
    table = table.append_column("tone", [["dark", "light", None] * 5])
    pq.write_table(table, shard)

    labels = ShardFolder(folder, group_column=("race", "tone")).labels

    assert set(labels.group.tolist()) == {"a / dark", "a / light", ""}
    assert (labels.group == "a / dark").sum() == 4
    assert (labels.group == "").sum() == 3 + 4


@pytest.mark.parametrize(
    ("groups", "said"),
    [({"a": 9}, "names 'a' in these 9 faces"), ({None: 9}, "names none in these 9 faces")],
)
def test_group_balance_needs_two_groups(
    make_shards: MakeShards,
    make_face: MakeFace,
    tmp_path: Path,
    groups: dict[str | None, int],
    said: str,
) -> None:
    labels = faces_of(make_shards(tmp_path, uneven(make_face, groups))).labels

    with pytest.raises(DataError, match=said):
        draw_weights(labels, "group_balanced", ())


def test_losses_count_by_a_power_of_the_size_of_their_cell(
    make_shards: MakeShards, make_face: MakeFace, tmp_path: Path
) -> None:
    rows = uneven(make_face, {"a": 90, "b": 10})
    labels = faces_of(make_shards(tmp_path, rows)).labels

    for power in (0.0, 0.5, 1.0):
        weights = loss_weights(labels, ("group",), power=power, limit=100)

        assert weights.mean() == pytest.approx(1, rel=1e-5)
        sums = {group: weights[labels.group == group].sum() for group in ("a", "b")}
        assert sums["a"] / sums["b"] == pytest.approx(9 ** (1 - power), rel=1e-5)


def test_no_face_counts_more_than_the_limit_and_the_mean_stays_one(
    make_shards: MakeShards, make_face: MakeFace, tmp_path: Path
) -> None:
    rows = uneven(make_face, {"a": 150, "b": 8, "c": 2})
    labels = faces_of(make_shards(tmp_path, rows)).labels
    free = loss_weights(labels, ("group",), power=1, limit=1000)

    for limit in (1.0, 2.0, 4.0):
        weights = loss_weights(labels, ("group",), power=1, limit=limit)

        assert weights.max() == pytest.approx(limit, rel=1e-5)
        assert weights.mean() == pytest.approx(1, rel=1e-5)
    assert free.max() > 20


def test_the_mean_weight_is_one_over_the_draws_too(prepared: Path) -> None:
    labels = faces_of(prepared).labels
    drawn = draw_weights(labels, "balanced", ("dataset", "decade"))

    weights = loss_weights(labels, ("group", "decade"), power=0.5, limit=5, drawn=drawn)

    assert np.average(weights, weights=drawn) == pytest.approx(1, rel=1e-5)
