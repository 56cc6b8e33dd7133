"""Shards: the right face, the canonical chip, and the same bytes whatever happened on the way."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from agelens.alignment import CropSpec, align
from agelens.data.prepare import (
    PrepareOptions,
    cut_chip,
    encode_chip,
    find_face,
    prepare_faces,
)
from agelens.data.schema import FaceRecord, FaceTable, FaceWriter
from agelens.detection import Detections, load_detector
from agelens.errors import ArgumentError, DataError
from agelens.images import load_image
from data.pictures import FACES, blob, encoded

ASTRONAUT = (FACES / "astronaut.jpg").read_bytes()
HOPPER = (FACES / "hopper.jpg").read_bytes()


def write(path: Path, pictures: list[bytes], **changed: Any) -> FaceTable:
    with FaceWriter(path, ["race"], group_rows=3) as writer:
        for number, picture in enumerate(pictures):
            values: dict[str, Any] = {
                "dataset": "staff",
                "split": "train",
                "age_min": 30 + number,
                "age_max": 30 + number,
                "gender": "female",
                "licence": "own",
                "licence_class": "commercial",
                "audit": {"race": "x"},
            }
            writer.write(
                FaceRecord(**{**values, **changed}, source_file=f"{number}.jpg", image=picture)
            )
    return FaceTable.open(path)


def files_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for f in sorted(folder.glob("*.parquet")) for row in pq.read_table(f).to_pylist()]


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_shard_holds_the_canonical_chip_and_all_labels(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", [ASTRONAUT, HOPPER])
    told: list[tuple[int, int]] = []

    report = prepare_faces(
        table, tmp_path / "out", workers=1, progress=lambda done, rows: told.append((done, rows))
    )

    assert (report.rows, report.shards, report.whole_pictures, report.skipped) == (2, 1, 0, ())
    assert told == [(0, 2), (2, 2)]
    first, second = rows_of(tmp_path / "out")
    picture = load_image(ASTRONAUT).pixels
    detector = load_detector()
    assert detector is not None
    found = detector.detect(picture)
    assert found.landmarks is not None
    wanted = align(picture, found.landmarks[0], CropSpec(192, 0.7)).astype(int)
    difference = np.abs(pixels_of(first["image"]).astype(int) - wanted)
    assert difference.mean() < 3  # what WebP at quality 90 changes
    assert first["box"] == pytest.approx(found.boxes[0].tolist())
    assert first["landmarks"] == pytest.approx(found.landmarks[0].ravel().tolist())
    assert (first["origin"], first["score"]) == ("detector", pytest.approx(float(found.scores[0])))
    assert (first["age_min"], second["age_min"], first["gender"]) == (30, 31, "female")
    assert (first["race"], first["licence_class"], first["source_file"]) == (
        "x",
        "commercial",
        "0.jpg",
    )
    assert "path" not in first


def test_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", [ASTRONAUT, HOPPER, HOPPER])

    prepare_faces(table, tmp_path / "out", PrepareOptions(shard_rows=2, size=96), workers=1)

    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    shards = manifest.pop("shards")
    assert manifest == {
        "schema": "agelens.prepared/1",
        "size": 96,
        "margin": 0.7,
        "landmarks": [list(point) for point in CropSpec(96, 0.7).landmarks],
        "rows": 3,
        "datasets": {"staff": {"licence": "own", "licence_class": "commercial"}},
    }
    assert [(s["file"], s["rows"]) for s in shards] == [
        ("shard-00000.parquet", 2),
        ("shard-00001.parquet", 1),
    ]
    hashes = files_of(tmp_path / "out")
    assert all(hashes[s["file"]] == s["sha256"] for s in shards)
    assert sorted(hashes) == [
        "ledger.jsonl",
        "manifest.json",
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]
    schema = pq.read_schema(tmp_path / "out/shard-00000.parquet")
    assert str(schema.field("age_min").type) == "int16"
    assert str(schema.field("image").type) == "binary"
    assert FaceTable.open(tmp_path / "out").num_rows == 3


@pytest.mark.parametrize(("stated", "wanted"), [(None, "research"), ("research", "research")])
def test_what_is_not_stated_counts_as_research_only(
    tmp_path: Path, stated: str | None, wanted: str
) -> None:
    table = write(tmp_path / "t.parquet", [HOPPER], licence=None, licence_class=stated)

    prepare_faces(table, tmp_path / "out", workers=1)

    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["datasets"] == {"staff": {"licence": "not stated", "licence_class": wanted}}


PROGRAM = """
import sys
from pathlib import Path
from agelens.data.prepare import PrepareOptions, prepare_faces
from agelens.data.schema import FaceTable

if __name__ == "__main__":
    prepare_faces(
        FaceTable.open(sys.argv[1]), Path(sys.argv[2]), PrepareOptions(shard_rows=2),
        workers=2, progress=lambda done, rows: print(done, flush=True),
    )
"""


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_a_kill_in_the_middle_and_a_restart_give_the_same_files(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", [ASTRONAUT, HOPPER] * 20)
    script = tmp_path / "run.py"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), str(tmp_path / "t.parquet"), str(tmp_path / "killed")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    ) as process:
        assert process.stdout is not None
        done = 0
        while done < 4:
            done = int(process.stdout.readline())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed/manifest.json").exists()
    deadline = time.monotonic() + 10
    while any(is_running(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children
    assert not any(is_running(int(child)) for child in children)

    options = PrepareOptions(shard_rows=2)
    resumed = prepare_faces(table, tmp_path / "killed", options, workers=1)
    prepare_faces(table, tmp_path / "undisturbed", options, workers=1)

    assert 2 <= resumed.reused < 20
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "undisturbed")


def test_a_damaged_shard_and_half_a_line_are_made_good(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", [ASTRONAUT, HOPPER] * 3)
    options = PrepareOptions(shard_rows=2)
    out = tmp_path / "out"
    prepare_faces(table, out, options, workers=1)
    before = files_of(out)
    shard = out / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    (out / "manifest.json").unlink()
    ledger = out / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    ledger.write_text("\n".join(lines[:3]) + "\n" + lines[3][: len(lines[3]) // 2])
    (out / ".shard-00002.parquet.123.tmp").write_bytes(b"half")

    report = prepare_faces(table, out, options, workers=1)

    assert report.reused == 1
    assert files_of(out) == before


def test_a_finished_folder_is_left_as_it_is(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", [HOPPER] * 4)
    options = PrepareOptions(shard_rows=2)
    prepare_faces(table, tmp_path / "out", options, workers=1)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.parquet")}

    report = prepare_faces(table, tmp_path / "out", options, workers=1)

    assert report.reused == report.shards == 2
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.parquet")} == before


def test_shards_of_other_options_or_sources_are_not_mixed(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", [HOPPER])
    other = write(tmp_path / "u.parquet", [ASTRONAUT])
    out = tmp_path / "out"
    prepare_faces(table, out, workers=1)

    with pytest.raises(DataError, match="size = 192, now it is 128"):
        prepare_faces(table, out, PrepareOptions(size=128), workers=1)
    with pytest.raises(DataError, match="from other files"):
        prepare_faces(other, out, workers=1)
    assert rows_of(out)[0]["age_min"] == 30
    report = prepare_faces(table, out, PrepareOptions(size=128), workers=1, overwrite=True)
    assert report.reused == 0
    assert pixels_of(rows_of(out)[0]["image"]).shape == (128, 128, 3)


def test_two_runs_do_not_work_in_one_folder(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    table = write(tmp_path / "t.parquet", [HOPPER])
    out = tmp_path / "out"
    out.mkdir()
    with open(out / ".lock", "w", encoding="utf-8") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        with pytest.raises(DataError, match="another 'data prepare'"):
            prepare_faces(table, out, workers=1)


def test_pictures_without_a_face_are_left_out_or_taken_whole(tmp_path: Path) -> None:
    empty = encoded(blob(1, 120))
    table = write(tmp_path / "t.parquet", [HOPPER, empty, b"no picture"])

    strict = prepare_faces(table, tmp_path / "strict", workers=1)
    loose = prepare_faces(table, tmp_path / "loose", PrepareOptions(crops=True), workers=1)

    assert strict.rows == 1
    assert [(told.row, told.name) for told in strict.skipped] == [
        (1, "t.parquet#1"),
        (2, "t.parquet#2"),
    ]
    assert "--crops" in strict.skipped[0].reason
    assert (loose.rows, loose.whole_pictures) == (2, 1)
    whole = rows_of(tmp_path / "loose")[1]
    assert (whole["origin"], whole["box"], whole["landmarks"]) == (
        "whole_picture",
        [0, 0, 120, 120],
        None,
    )
    with pytest.raises(DataError, match="not one face was prepared"):
        prepare_faces(write(tmp_path / "e.parquet", [empty]), tmp_path / "none", workers=1)
    assert not (tmp_path / "none/manifest.json").exists()


def test_impossible_labels_stop_the_preparation_unless_skipped(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", [HOPPER, HOPPER])
    rows = pq.read_table(tmp_path / "t.parquet")
    ages = rows.column("age_max").to_pylist()
    wrong = pa.array([ages[0], 230], pa.int16())
    rows = rows.set_column(rows.schema.get_field_index("age_max"), "age_max", wrong)
    pq.write_table(rows, tmp_path / "t.parquet")
    table = FaceTable.open(tmp_path / "t.parquet")

    with pytest.raises(DataError, match=r"t\.parquet#1, column 'age_max'.*--skip-bad-rows"):
        prepare_faces(table, tmp_path / "out", workers=1)
    report = prepare_faces(table, tmp_path / "out", PrepareOptions(skip_bad_rows=True), workers=1)
    assert report.rows == 1
    assert "no human age" in report.skipped[0].reason


class Given:
    """A detector that finds what it was told, for the choice among faces."""

    name = "given"

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        self.boxes = boxes

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        boxes = np.array(self.boxes, np.float32).reshape(-1, 4)
        return Detections(boxes, np.linspace(0.9, 0.8, len(boxes), dtype=np.float32))


CENTRE = (45.0, 45.0, 60.0, 60.0)
LARGE_ASIDE = (0.0, 0.0, 28.0, 28.0)
SMALL_CENTRE = (48.0, 48.0, 54.0, 54.0)


@pytest.mark.parametrize(
    ("boxes", "given", "expected", "origin"),
    [
        ([LARGE_ASIDE, CENTRE], None, CENTRE, "detector"),
        ([LARGE_ASIDE, SMALL_CENTRE], None, LARGE_ASIDE, "detector"),
        ([LARGE_ASIDE, CENTRE], [1.0, 1.0, 27.0, 27.0], LARGE_ASIDE, "detector"),
        ([CENTRE], [0.0, 70.0, 20.0, 90.0], (0.0, 70.0, 20.0, 90.0), "caller"),
        ([], [0.0, 70.0, 20.0, 90.0], (0.0, 70.0, 20.0, 90.0), "caller"),
    ],
)
def test_the_labelled_face_is_chosen_among_several(
    boxes: list[tuple[float, float, float, float]],
    given: list[float] | None,
    expected: tuple[float, float, float, float],
    origin: str,
) -> None:
    face = find_face(blob(0, 100), Given(*boxes), box=given)

    assert (face.box, face.origin) == (expected, origin)


def test_a_given_box_picks_its_face_in_a_group_photograph(tmp_path: Path) -> None:
    """The same picture twice, with the boxes of two people: two different chips."""
    group = (FACES / "group.jpg").read_bytes()
    detector = load_detector()
    assert detector is not None
    found = detector.detect(load_image(group).pixels)
    assert len(found) >= 2
    with FaceWriter(tmp_path / "t.parquet") as writer:
        for row in (0, 1):
            x0, y0, x1, y1 = (float(v) for v in found.boxes[row])
            writer.write(
                FaceRecord(dataset="d", source_file="g", image=group, box=(x0 + 2, y0 - 2, x1, y1))
            )

    prepare_faces(FaceTable.open(tmp_path / "t.parquet"), tmp_path / "out", workers=1)

    rows = rows_of(tmp_path / "out")
    assert [row["box"] for row in rows] == [
        pytest.approx(found.boxes[row].tolist(), abs=1e-3) for row in (0, 1)
    ]
    assert rows[0]["image"] != rows[1]["image"]


@pytest.mark.parametrize("encoding", ["webp", "jpeg"])
def test_chips_are_encoded_with_little_loss(encoding: Any) -> None:
    picture = load_image(HOPPER).pixels
    chip = cut_chip(picture, find_face(picture, load_detector()), CropSpec(192, 0.7))

    data = encode_chip(chip, encoding, 90)

    assert Image.open(io.BytesIO(data)).format == encoding.upper()
    assert np.abs(pixels_of(data).astype(int) - chip).mean() < 3


@pytest.mark.parametrize(
    "wrong", [{"quality": 80}, {"encoding": "png"}, {"shard_rows": 0}, {"size": 4}, {"margin": -1}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        PrepareOptions(**wrong)
