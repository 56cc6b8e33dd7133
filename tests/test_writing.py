"""Results on disk: JSON lines, CSV and Parquet that are whole when they have their name."""

from __future__ import annotations

import csv
import gc
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from agelens import AgeDistribution, Analysis, Face, GenderEstimate, Quality, analysis_json_schema
from agelens.errors import ArgumentError
from agelens.results import AnalysisDict, AnalysisError
from agelens.writing import FORMATS, ResultWriter, open_sink, save_picture

pa = pytest.importorskip("pyarrow", reason="Parquet needs the 'eval' extra")
pq = pytest.importorskip("pyarrow.parquet")

FACE = Face(
    (1.0, 2.0, 33.3, 44.4),
    0.9876,
    Quality(36.5, 0.8, 0.5, 1.0, -2.0, 3.0),
    AgeDistribution.from_normal(30, 4),
    GenderEstimate(0.9, 0.75),
    np.arange(10, dtype=np.float32).reshape(5, 2),
)
UNUSABLE = Face(
    (50.0, 2.0, 58.0, 10.0),
    1.0,
    Quality(8, 0.05, 0.5, usable=False, reasons=("too small: 8 px", "blurred: sharpness 0.05")),
    AgeDistribution.unknown(),
    GenderEstimate(0.5),
    origin="caller",
)
NO_GENDER = Face((0.0, 0.0, 9.0, 9.0), 1.0, Quality(9, 1, 0.5), FACE.age, None)

TWO_FACES = Analysis("two.jpg", 640, 480, (FACE, UNUSABLE), None, "cc0@1.0")
NO_FACE = Analysis("none.jpg", 32, 16, (), None, "cc0@1.0")
UNREAD = Analysis("bad.jpg", 0, 0, (), AnalysisError("truncated", "cut off, get it again"), "cc0@1")
ODD_NAME = Analysis('é, "quoted"\nname; =1+1.jpg', 9, 9, (NO_GENDER,), None, "cc0@1.0")
UNNAMED = Analysis(None, 9, 9, (), None, "cc0@1.0")
ALL = (TWO_FACES, NO_FACE, UNREAD, ODD_NAME, UNNAMED)
ROWS = 6
"""Flat rows of ``ALL``: one a face, and one for each picture without any."""


def write(path: Path, form: str, *analyses: Analysis, **options: Any) -> Path:
    with ResultWriter(path, form, **options) as writer:
        for analysis in analyses:
            writer.write(analysis)
    return path


def read_json(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "", "the last line has no end"
    return [json.loads(line, parse_constant=refuse) for line in lines]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "jsonl": read_json,
    "csv": read_csv,
    "parquet": lambda path: pq.read_table(path).to_pylist(),
}


# --- JSON lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", [False, True])
def test_each_json_line_is_the_wire_form_of_one_picture(tmp_path: Path, distribution: bool) -> None:
    path = write(tmp_path / "r.jsonl", "jsonl", *ALL, distribution=distribution)

    wires = read_json(path)

    assert wires == [analysis.to_dict(distribution=distribution) for analysis in ALL]
    for line in path.read_text(encoding="utf-8").splitlines():
        TypeAdapter(AnalysisDict).validate_json(line, strict=True)


def test_json_lines_have_exactly_the_members_of_the_schema(tmp_path: Path) -> None:
    schema = analysis_json_schema()
    path = write(tmp_path / "r.jsonl", "jsonl", *ALL)

    for wire in read_json(path):
        assert set(wire) == set(schema["properties"]) == set(schema["required"])
        for face in wire["faces"]:
            assert set(face) == set(schema["$defs"]["FaceDict"]["required"])
            assert set(face["age"]) == set(schema["$defs"]["AgeDict"]["required"])


def test_a_distribution_read_back_is_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", "jsonl", TWO_FACES, distribution=True)

    faces = read_json(path)[0]["faces"]

    assert [AgeDistribution.from_dict(face["age"]) for face in faces] == [FACE.age, UNUSABLE.age]


def test_groups_and_level_are_those_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", "jsonl", TWO_FACES, edges=(0, 18, 30), level=0.5)

    age = read_json(path)[0]["faces"][0]["age"]

    # A normal distribution has half of its mass within 0.674 standard deviations: 27.3 to 32.7.
    assert age["interval"] == {"level": 0.5, "low": 27, "high": 33}
    assert [(group["low"], group["high"]) for group in age["groups"]] == [
        (0, 17),
        (18, 29),
        (30, 100),
    ]


# --- CSV ------------------------------------------------------------------------------------------


def test_csv_has_a_row_for_each_face_and_for_each_picture_without(tmp_path: Path) -> None:
    rows = read_csv(write(tmp_path / "r.csv", "csv", *ALL))

    assert [(row["path"], row["face"]) for row in rows] == [
        ("two.jpg", "0"),
        ("two.jpg", "1"),
        ("none.jpg", ""),
        ("bad.jpg", ""),
        (ODD_NAME.path, "0"),
        ("", ""),
    ]
    first, unusable, none, bad = rows[:4]
    assert [float(first[side]) for side in ("x0", "y0", "x1", "y1")] == [1.0, 2.0, 33.3, 44.4]
    assert float(first["age_mean"]) == pytest.approx(30, abs=0.01)
    assert (first["age_low"], first["age_high"]) == ("23", "37")
    assert (first["gender"], first["gender_probability"]) == ("female", "0.9")
    assert (first["abstained"], first["usable"]) == ("False", "True")
    assert (unusable["age_mean"], unusable["abstained"]) == ("", "True")
    assert (unusable["gender"], unusable["origin"]) == ("uncertain", "caller")
    assert unusable["reasons"] == "too small: 8 px; blurred: sharpness 0.05"
    assert (none["width"], none["error_code"]) == ("32", "")
    assert (bad["error_code"], bad["error_message"]) == ("truncated", "cut off, get it again")
    assert rows[4]["gender"] == ""


def test_csv_groups_are_columns_that_sum_to_one(tmp_path: Path) -> None:
    rows = read_csv(write(tmp_path / "r.csv", "csv", TWO_FACES, edges=(0, 18, 65)))

    groups = [rows[0][name] for name in ("age_0_17", "age_18_64", "age_65_100")]
    assert sum(map(float, groups)) == pytest.approx(1, abs=1e-3)
    assert rows[1]["age_18_64"] == ""


def test_a_csv_distribution_is_101_numbers(tmp_path: Path) -> None:
    rows = read_csv(write(tmp_path / "r.csv", "csv", TWO_FACES, distribution=True))

    numbers = np.array(rows[0]["distribution"].split(), float)
    np.testing.assert_allclose(numbers, FACE.age.probabilities, rtol=1e-6)


def test_csv_without_pictures_still_has_its_header(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", "csv")

    assert path.read_text().startswith("path,width,height,model,face,x0,")
    assert read_csv(path) == []


# --- Parquet --------------------------------------------------------------------------------------


def test_parquet_has_the_rows_of_csv_with_types(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "r.parquet", "parquet", *ALL))

    plain = read_csv(write(tmp_path / "r.csv", "csv", *ALL))
    assert table.column_names == list(plain[0])
    assert table.num_rows == ROWS
    types = {name: table.schema.field(name).type for name in table.column_names}
    assert {types[name] for name in ("path", "gender", "reasons", "error_code")} == {pa.string()}
    assert {types[name] for name in ("width", "face", "age_low", "size_px")} == {pa.int32()}
    assert {types[name] for name in ("x0", "score", "age_mean", "age_0_12")} == {pa.float32()}
    assert {types[name] for name in ("abstained", "usable")} == {pa.bool_()}
    for row, text in zip(table.to_pylist(), plain, strict=True):
        for name, value in row.items():
            assert same(value, text[name]), f"{name}: {value!r} and {text[name]!r}"


def same(value: object, text: str) -> bool:
    """Whether a Parquet value and a CSV cell say the same; float32 has seven digits."""
    if value is None:
        return text == ""
    if isinstance(value, float):
        return math.isclose(value, float(text), rel_tol=1e-6)
    return str(value) == text


def test_a_parquet_distribution_is_a_list_of_101(tmp_path: Path) -> None:
    table = pq.read_table(
        write(tmp_path / "r.parquet", "parquet", TWO_FACES, NO_FACE, distribution=True)
    )

    first, unusable, none = table.column("distribution").to_pylist()
    np.testing.assert_array_equal(np.array(first, np.float32), FACE.age.probabilities)
    assert len(unusable) == 101
    assert none is None


def test_thousands_of_parquet_rows_keep_their_order(tmp_path: Path) -> None:
    pictures = [Analysis(f"{i}.jpg", i, 1, (FACE, FACE), None, "m@1") for i in range(2500)]

    table = pq.read_table(write(tmp_path / "r.parquet", "parquet", *pictures))

    assert table.column("path").to_pylist() == [f"{i // 2}.jpg" for i in range(5000)]


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_of_no_pictures_can_be_read(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "r", form)

    assert READERS[form](path) == []


# --- whole files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"r.{form}"

    with ResultWriter(path, form) as writer:
        writer.write(TWO_FACES)
        assert not path.exists()
        assert writer.partial.exists()

    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert len(READERS[form](path)) == (1 if form == "jsonl" else 2)


def write_and_fail(path: Path, form: str, *analyses: Analysis) -> None:
    """A run that is interrupted after these pictures."""
    with ResultWriter(path, form) as writer:
        for analysis in analyses:
            writer.write(analysis)
        raise KeyboardInterrupt


@pytest.mark.parametrize("form", FORMATS)
def test_an_interrupted_run_leaves_the_finished_rows_under_another_name(
    tmp_path: Path, form: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(tmp_path / f"r.{form}", form, *ALL)

    (partial,) = tmp_path.iterdir()
    assert partial.name == f"r.{form}.partial"
    assert len(READERS[form](partial)) == (len(ALL) if form == "jsonl" else ROWS)


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_that_fails_before_its_first_row_leaves_nothing(tmp_path: Path, form: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(tmp_path / "r", form)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMATS)
def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path, form: str) -> None:
    path = tmp_path / "r"
    path.write_text("older")

    with pytest.raises(KeyboardInterrupt):
        write_and_fail(path, form, NO_FACE)
    assert path.read_text() == "older"

    write(path, form, NO_FACE, NO_FACE)
    assert len(READERS[form](path)) == 2


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_row_can_be_read_as_soon_as_it_is_written(tmp_path: Path, form: str) -> None:
    with (tmp_path / "r").open("w", encoding="utf-8", newline="") as file:
        sink = open_sink(file, form)
        for number in (1, 2, 3):
            sink.write(NO_FACE)

            assert len(READERS[form](tmp_path / "r")) == number


def test_a_leftover_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl.partial").write_text("half a li")

    path = write(tmp_path / "r.jsonl", "jsonl", NO_FACE)

    assert [wire["path"] for wire in read_json(path)] == ["none.jpg"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize(
    ("place", "form", "message"),
    [
        ("gone/r.csv", "csv", r"gone/r\.csv: its folder does not exist; make it first"),
        (".", "csv", "is a folder; name a file"),
        ("r.xml", "xml", "unknown format 'xml'; there are: jsonl, csv, parquet"),
        ("file/r.csv", "csv", r"file/r\.csv: its folder"),
    ],
)
def test_a_place_or_format_that_cannot_be_is_refused(
    tmp_path: Path, place: str, form: str, message: str
) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ArgumentError, match=message):
        ResultWriter(tmp_path / place, form)

    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("form", FORMATS)
def test_impossible_age_groups_are_refused_before_the_first_row(tmp_path: Path, form: str) -> None:
    with pytest.raises(ArgumentError, match="age groups"):
        ResultWriter(tmp_path / "r", form, edges=(18, 13))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_keeps_the_older_file_and_closes_the_new_one(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", "jsonl", NO_FACE)
    (tmp_path / "r.jsonl.partial").symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space left"):
        write(path, "jsonl", TWO_FACES)
    gc.collect()

    assert [wire["path"] for wire in read_json(path)] == ["none.jpg"]


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "form"), [("jpg", "JPEG"), ("JPEG", "JPEG"), ("png", "PNG")])
def test_a_picture_is_saved_whole_in_the_form_of_its_suffix(
    tmp_path: Path, suffix: str, form: str
) -> None:
    picture = Image.new("RGB", (30, 20), (200, 30, 30))

    save_picture(picture, tmp_path / f"p.{suffix}")

    assert [entry.name for entry in tmp_path.iterdir()] == [f"p.{suffix}"]
    with Image.open(tmp_path / f"p.{suffix}") as saved:
        saved.load()
        assert (saved.format, saved.size) == (form, (30, 20))
