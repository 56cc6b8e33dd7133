"""``agelens analyze`` as a user meets it: output forms, exit statuses, interruptions, bad input."""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

import hostile
from agelens import Analyzer, AnalyzerOptions, ImageLimits
from agelens.cli import analyze as command_line
from agelens.results import DEFAULT_AGE_GROUPS, DEFAULT_LEVEL, AnalysisDict
from command_line import Outcome, agelens, agelens_apart, command

HOPPER = Path(__file__).parents[1] / "faces" / "hopper.jpg"


def copies(folder: Path, photo: Path, number: int) -> Path:
    """A folder of that many copies of a photograph."""
    folder.mkdir()
    first = folder / "0000.jpg"
    shutil.copyfile(photo, first)
    for index in range(1, number):
        os.link(first, folder / f"{index:04}.jpg")
    return folder


def refused(outcome: Outcome, *words: str) -> None:
    """Wrong usage: status 2, one message with these words, no traceback, no result."""
    assert outcome.status == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    message = " ".join(outcome.err.replace("│", " ").split())
    for word in words:
        assert word in message


# --- what is printed ------------------------------------------------------------------------------


def test_a_table_shows_each_face_with_age_interval_and_gender(
    faces: Path, analyzer: Analyzer
) -> None:
    outcome = agelens("analyze", faces / "astronaut.jpg", faces / "group.jpg", columns=160)

    age = analyzer(faces / "astronaut.jpg").faces[0].age
    low, high = age.interval(0.9)
    expected = rf"astronaut\.jpg +0 +{age.mean:.0f} +{low}-{high} +female \d+% +\d+x\d+ at \d+,\d+"
    assert outcome.status == 0
    assert re.search(expected, outcome.out)
    assert re.search(r"group\.jpg +0 ", outcome.out)
    assert len(outcome.out.splitlines()) == 2 + len(analyzer(faces / "group.jpg").faces)
    assert re.search(r"2 pictures, \d+ faces", outcome.err)


@pytest.mark.parametrize("columns", [60, 80, 100, 160, 250])
def test_a_table_fits_the_terminal_and_loses_nothing(
    faces: Path, tmp_path: Path, columns: int
) -> None:
    deep = tmp_path / "a folder with a long name" / "and another one inside of it"
    deep.mkdir(parents=True)
    shutil.copyfile(faces / "hopper.jpg", deep / "a portrait with quite a long name.jpg")
    (deep / "broken.jpg").write_bytes(b"no picture")
    (deep / "empty [red].png").write_bytes(b"")

    outcome = agelens("analyze", deep, faces / "group.jpg", columns=columns)

    lines = outcome.out.splitlines()
    together = re.sub(r"\s", "", outcome.out)
    assert max(map(len, lines)) <= columns
    assert "…" not in outcome.out, "a cell is cut off"
    assert "face" in lines[0]
    assert "90%" in lines[0]
    assert len([line for line in lines if re.search(r"\d+x\d+ at", line)]) >= 12
    assert outcome.out.count("error") >= 2
    assert "[red]" in together
    assert "not_an_image" in together
    assert "empty:" in together


def test_a_table_says_where_it_cannot_tell_and_why(tmp_path: Path) -> None:
    dark = np.asarray(Image.open(HOPPER).convert("RGB")) // 20
    Image.fromarray(dark.astype(np.uint8)).save(tmp_path / "dark.png")

    outcome = agelens("analyze", tmp_path, "--crops", columns=160)

    assert re.search(r"dark\.png +0 +\? +cannot tell +.*too dark", outcome.out)
    assert "1 face (1 without an estimate)" in outcome.err


def test_json_lines_are_whole_pure_and_in_the_order_given(faces: Path) -> None:
    given = [faces / "group.jpg", faces / "hopper.jpg", faces / "astronaut.jpg"] * 4

    outcome = agelens("analyze", *given, "--format", "jsonl", "--workers", "4")

    assert outcome.status == 0
    assert [line["path"] for line in outcome.lines] == [str(path) for path in given]
    for line in outcome.out.splitlines():
        TypeAdapter(AnalysisDict).validate_json(line, strict=True)


def test_standard_output_holds_json_only_whatever_the_sources_are(
    faces: Path, tmp_path: Path
) -> None:
    (tmp_path / "fake.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "fake.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")

    outcome = agelens_apart(
        "analyze",
        *(tmp_path / "fake.mp4", tmp_path / "fake.jpg", tmp_path / "gone.png"),
        *(faces / "hopper.jpg", "--format", "jsonl", "--annotate", tmp_path / "marked"),
    )

    assert outcome.status == 1
    codes = [line["error"] and line["error"]["code"] for line in outcome.lines]
    assert codes == ["corrupt", codes[1], "not_found", None]
    assert codes[1] in ("truncated", "corrupt")
    assert "Traceback" not in outcome.err


def test_csv_goes_to_standard_output_too(faces: Path) -> None:
    outcome = agelens("analyze", faces, "--format", "csv")

    rows = list(csv.DictReader(outcome.out.splitlines()))
    assert len(rows) >= 12
    assert {Path(row["path"]).name for row in rows} == {"astronaut.jpg", "group.jpg", "hopper.jpg"}
    assert all(0 <= float(row["age_mean"]) <= 100 for row in rows)


@pytest.mark.parametrize(
    ("name", "reader"),
    [("r.jsonl", "json"), ("r.ndjson", "json"), ("r.CSV", "csv"), ("r.parquet", "parquet")],
)
def test_the_suffix_of_the_output_names_its_form(
    faces: Path, tmp_path: Path, name: str, reader: str
) -> None:
    output = tmp_path / name

    outcome = agelens("analyze", faces / "hopper.jpg", faces / "astronaut.jpg", "-o", output)

    assert (outcome.status, outcome.out) == (0, "")
    assert f"2 pictures, 2 faces -> {output}" in outcome.err
    readers: dict[str, Callable[[], list[str]]] = {
        "json": lambda: [json.loads(line)["path"] for line in output.read_text().splitlines()],
        "csv": lambda: [row["path"] for row in csv.DictReader(output.read_text().splitlines())],
        "parquet": lambda: parquet_column(output, "path"),
    }
    assert [Path(path).name for path in readers[reader]()] == ["hopper.jpg", "astronaut.jpg"]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def parquet_column(path: Path, column: str) -> list[Any]:
    parquet = pytest.importorskip("pyarrow.parquet")
    values: list[Any] = parquet.read_table(path).column(column).to_pylist()
    return values


def test_the_form_asked_for_goes_before_the_suffix(faces: Path, tmp_path: Path) -> None:
    agelens("analyze", faces / "hopper.jpg", "--format", "csv", "-o", tmp_path / "r.txt")

    assert (tmp_path / "r.txt").read_text().startswith("path,width,")


# --- options --------------------------------------------------------------------------------------


def test_age_groups_start_where_asked(faces: Path) -> None:
    outcome = agelens("analyze", faces / "hopper.jpg", "--age-groups", "18,65", "--format", "jsonl")

    groups = outcome.lines[0]["faces"][0]["age"]["groups"]
    assert [(group["low"], group["high"]) for group in groups] == [(0, 17), (18, 64), (65, 100)]
    assert sum(group["probability"] for group in groups) == pytest.approx(1, abs=1e-3)


def test_the_interval_has_the_level_asked_for(faces: Path, analyzer: Analyzer) -> None:
    outcome = agelens("analyze", faces / "hopper.jpg", "--level", "0.5", "--format", "jsonl")

    low, high = analyzer(faces / "hopper.jpg").faces[0].age.interval(0.5)
    interval = outcome.lines[0]["faces"][0]["age"]["interval"]
    assert interval == {"level": 0.5, "low": low, "high": high}
    assert "50%" in agelens("analyze", faces / "hopper.jpg", "--level", "0.5").out


def test_a_distribution_is_added_when_asked_for(faces: Path, analyzer: Analyzer) -> None:
    outcome = agelens("analyze", faces / "hopper.jpg", "--distribution", "--format", "jsonl")

    numbers = outcome.lines[0]["faces"][0]["age"]["distribution"]
    expected = analyzer(faces / "hopper.jpg").faces[0].age.probabilities
    np.testing.assert_array_equal(np.array(numbers, np.float32), expected)


def test_gender_is_left_out_when_asked(faces: Path) -> None:
    json_lines = agelens("analyze", faces / "hopper.jpg", "--no-gender", "--format", "jsonl").lines
    table = agelens("analyze", faces / "hopper.jpg", "--no-gender").out

    assert json_lines[0]["faces"][0]["gender"] is None
    assert not re.search("male|uncertain|None", table)


def test_faces_are_limited_in_size_and_number(faces: Path) -> None:
    group = (faces / "group.jpg", "--format", "jsonl")

    few = agelens("analyze", *group, "--max-faces", "2").lines[0]["faces"]
    large = agelens("analyze", *group, "--min-face", "62").lines[0]["faces"]

    assert len(few) == 2
    assert 2 < len(large) < 10
    assert all(face["quality"]["size_px"] >= 62 for face in large)


def test_crops_fall_back_to_the_whole_picture(tmp_path: Path) -> None:
    Image.open(HOPPER).crop((215, 215, 320, 300)).save(tmp_path / "nose.png")
    arguments = ("analyze", tmp_path, "--format", "jsonl")

    plain = agelens(*arguments).lines[0]["faces"]
    (face,) = agelens(*arguments, "--crops").lines[0]["faces"]

    assert plain == []
    assert (face["origin"], face["box"]) == ("whole_picture", [0, 0, 105, 85])
    assert "whole picture" in agelens("analyze", tmp_path, "--crops").out


def test_without_a_detector_each_picture_is_one_face(faces: Path) -> None:
    outcome = agelens("analyze", faces, "--detector", "none", "--format", "jsonl")

    assert [[face["origin"] for face in line["faces"]] for line in outcome.lines] == [
        ["whole_picture"]
    ] * 3


def test_an_unusable_face_is_answered_only_on_request(tmp_path: Path) -> None:
    dark = np.asarray(Image.open(HOPPER).convert("RGB")) // 20
    Image.fromarray(dark.astype(np.uint8)).save(tmp_path / "dark.png")
    arguments = ("analyze", tmp_path, "--detector", "none", "--format", "jsonl")

    usual = agelens(*arguments).lines[0]["faces"][0]
    always = agelens(*arguments, "--always-answer").lines[0]["faces"][0]

    assert (usual["age"]["abstained"], usual["age"]["mean"]) == (True, None)
    assert always["age"]["abstained"] is False
    assert 0 <= always["age"]["mean"] <= 100


def test_the_mirror_image_changes_the_answer_a_little(faces: Path) -> None:
    arguments = ("analyze", faces / "hopper.jpg", "--format", "jsonl")

    plain = agelens(*arguments).lines[0]["faces"][0]["age"]["mean"]
    flipped = agelens(*arguments, "--flip").lines[0]["faces"][0]["age"]["mean"]

    assert plain != flipped
    assert plain == pytest.approx(flipped, abs=10)


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [("--max-bytes", "1000", "too_many_bytes"), ("--max-pixels", "9000", "too_many_pixels")],
)
def test_limits_on_pictures_can_be_set(faces: Path, option: str, value: str, code: str) -> None:
    outcome = agelens("analyze", faces / "hopper.jpg", option, value, "--format", "jsonl")

    assert (outcome.status, outcome.lines[0]["error"]["code"]) == (1, code)


def test_folders_inside_are_entered_only_on_request(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    shutil.copyfile(faces / "hopper.jpg", tmp_path / "inner" / "b.jpg")
    shutil.copyfile(faces / "hopper.jpg", tmp_path / "a.jpg")

    flat = agelens("analyze", tmp_path, "--format", "jsonl").lines
    deep = agelens("analyze", tmp_path, "--recursive", "--format", "jsonl").lines

    assert [Path(line["path"]).name for line in flat] == ["a.jpg"]
    assert [Path(line["path"]).name for line in deep] == ["a.jpg", "b.jpg"]


def test_a_glob_in_quotes_is_understood(faces: Path) -> None:
    outcome = agelens("analyze", f"{faces}/*o*.jpg", "--format", "jsonl")

    names = [Path(line["path"]).name for line in outcome.lines]
    assert names == ["astronaut.jpg", "group.jpg", "hopper.jpg"]


def test_rows_of_a_table_are_named_by_number(faces: Path, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = tmp_path / "faces.parquet"
    contents = [(faces / "hopper.jpg").read_bytes(), b"broken", None]
    parquet.write_table(arrow.table({"image": contents}), table)

    outcome = agelens("analyze", table, "--format", "jsonl")

    assert outcome.status == 1
    assert [line["path"] for line in outcome.lines] == [f"{table}#{row}" for row in range(3)]
    codes = [line["error"] and line["error"]["code"] for line in outcome.lines]
    assert codes == [None, "not_an_image", "empty"]


# --- annotated pictures ---------------------------------------------------------------------------


def test_annotated_pictures_have_the_size_and_name_of_the_original(
    faces: Path, tmp_path: Path
) -> None:
    marked = tmp_path / "new" / "marked"

    outcome = agelens("analyze", faces, tmp_path / "gone.jpg", "--annotate", marked)

    assert outcome.status == 1
    assert f"-> {marked}" in outcome.err
    assert sorted(path.name for path in marked.iterdir()) == [
        *("astronaut.jpg", "group.jpg", "hopper.jpg")
    ]
    for path in marked.iterdir():
        before = np.asarray(Image.open(faces / path.name).convert("RGB")).astype(int)
        after = np.asarray(Image.open(path)).astype(int)
        assert after.shape == before.shape
        assert 0.001 < (np.abs(after - before).max(axis=2) > 60).mean() < 0.2


def test_faces_of_annotated_pictures_can_be_blurred(
    faces: Path, tmp_path: Path, analyzer: Analyzer
) -> None:
    agelens("analyze", faces / "hopper.jpg", "--annotate", tmp_path, "--blur")

    x0, y0, x1, y1 = (round(value) for value in analyzer(faces / "hopper.jpg").faces[0].box)
    inside = np.s_[y0 + 20 : y1 - 20, x0 + 20 : x1 - 20]
    detail = [
        float(np.abs(np.diff(np.asarray(Image.open(path))[inside].astype(int), axis=1)).mean())
        for path in (faces / "hopper.jpg", tmp_path / "hopper.jpg")
    ]
    assert detail[1] < 0.4 * detail[0]


def test_pictures_of_one_name_are_annotated_under_names_of_their_own(tmp_path: Path) -> None:
    pictures = ["a/x.jpg", "b/x.jpg", "b/x.png", "a/x-2.jpg", "a/x-3.jpg", "b/x-2.jpg"]
    for name in pictures:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (90, 90, 90)).save(tmp_path / name)

    given = [tmp_path / name for name in pictures]
    agelens("analyze", *given, "--annotate", tmp_path / "marked")

    assert len(list((tmp_path / "marked").iterdir())) == len(pictures)


def test_annotating_never_replaces_a_photograph(faces: Path, tmp_path: Path) -> None:
    shutil.copyfile(faces / "hopper.jpg", tmp_path / "hopper.jpg")

    outcome = agelens("analyze", tmp_path, "--annotate", tmp_path)

    assert (tmp_path / "hopper.jpg").read_bytes() == (faces / "hopper.jpg").read_bytes()
    assert "Traceback" not in outcome.err


def test_annotated_pictures_are_not_taken_for_photographs_by_the_next_run(
    faces: Path, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    shutil.copyfile(faces / "hopper.jpg", tmp_path / "m" / "hopper.jpg")
    arguments = ("analyze", tmp_path, "-r", "--annotate", tmp_path / "marked", "--format", "jsonl")

    first = agelens(*arguments)
    second = agelens(*arguments)

    assert len(second.lines) == len(first.lines)


def test_a_name_at_the_limit_of_the_file_system_can_be_annotated(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 251 + ".jpg")
    Image.new("RGB", (40, 30)).save(long)

    outcome = agelens("analyze", long, "--annotate", tmp_path / "marked")

    assert outcome.status == 0
    assert len(list((tmp_path / "marked").iterdir())) == 1


# --- wrong usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "xml"], ["xml", "jsonl", "parquet"]),
        (["--format", "parquet"], ["--output FILE"]),
        (["--format", "table", "-o", "r.txt"], ["jsonl, csv or parquet"]),
        (["-o", "r.txt"], ["r.txt", ".jsonl, .csv or .parquet", "--format"]),
        (["-o", "gone/r.csv"], ["gone/r.csv", "folder does not exist", "make it first"]),
        (["--age-groups", "young,old"], ["young,old", "0,18,65"]),
        (["--age-groups", "0,65,18"], ["rising", "65"]),
        (["--age-groups", "0,200"], ["0..100", "200"]),
        (["--age-groups", ""], ["--age-groups", "0,18,65"]),
        (["--level", "1"], ["--level", "under 1"]),
        (["--level", "half"], ["--level", "number"]),
        (["--every", "0"], ["--every", "over 0"]),
        (["--min-face", "0"], ["min_face", "1 or more", "0"]),
        (["--max-faces", "0"], ["max_faces", "1 or more"]),
        (["--workers", "-1"], ["workers", "1 or more"]),
        (["--max-bytes", "0"], ["max_bytes", "0"]),
        (["--max-pixels", "-3"], ["max_pixels", "-3"]),
        (["--detector", "magic"], ["'magic'", "default", "none", "insightface:DIR"]),
        (["--model", "magic"], ["'magic'", "cc0", ".onnx"]),
        (["--model", "weights.pt"], ["weights.pt", "ONNX"]),
        (["--model", "insightface:gone"], ["gone", "genderage.onnx"]),
        (["--detecter", "none"], ["--detecter", "--detector"]),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    refused(agelens("analyze", HOPPER, *arguments), *words)

    assert list(tmp_path.iterdir()) == []


def test_no_path_at_all_is_refused() -> None:
    refused(agelens("analyze"), "PATH")


@pytest.mark.parametrize("place", ["file", "file/marked"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()

    refused(agelens("analyze", HOPPER, "--annotate", tmp_path / place), str(tmp_path / place))


def test_an_output_that_would_replace_its_own_source_is_refused(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = tmp_path / "faces.parquet"
    parquet.write_table(arrow.table({"image": [HOPPER.read_bytes()]}), table)
    before = table.read_bytes()

    outcome = agelens("analyze", table, "-o", table)

    assert table.read_bytes() == before
    refused(outcome, str(table))


def test_a_table_without_pictures_is_wrong_usage(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = tmp_path / "t.parquet"
    parquet.write_table(arrow.table({"age": [1]}), table)

    refused(agelens("analyze", table), "t.parquet", "'image'", "'path'", "age")


def test_an_address_is_not_fetched_unless_asked_for() -> None:
    outcome = agelens("analyze", "https://nowhere.invalid/a.jpg", "--format", "jsonl")

    (line,) = outcome.lines
    assert outcome.status == 1
    assert line["error"]["code"] == "url_disabled"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        pytest.param(["hopper.jpg"], 0, id="a face"),
        pytest.param(["plain.png"], 0, id="no face"),
        pytest.param(["hopper.jpg", "gone.jpg"], 1, id="one missing"),
        pytest.param(["gone-*.jpg"], 1, id="empty glob"),
    ],
)
def test_the_exit_status_says_whether_all_were_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: list[str], status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(HOPPER, tmp_path / "hopper.jpg")
    Image.new("RGB", (60, 60)).save(tmp_path / "plain.png")

    outcome = agelens("analyze", *given)

    assert outcome.status == status
    assert ("could not be read" in outcome.err) == (status == 1)


# --- help -----------------------------------------------------------------------------------------


def test_the_help_names_every_option_of_the_design_with_examples() -> None:
    text = agelens("analyze", "--help", columns=160).out

    for option in (
        *("--format", "--output", "--annotate", "--model", "--detector", "--distribution"),
        *("--age-groups", "--crops", "--min-face", "--max-faces", "--no-gender", "--recursive"),
        *("--workers", "--accept-licence"),
    ):
        assert option in text
    assert all(form in text for form in ("table", "jsonl", "csv", "parquet"))
    assert "agelens analyze photo.jpg" in text
    assert "Exit status" in text


def test_the_command_without_arguments_shows_its_help() -> None:
    outcome = agelens()

    assert all(name in outcome.out + outcome.err for name in ("analyze", "models", "--version"))


def test_the_version_is_that_of_the_package() -> None:
    import agelens as package

    assert agelens("--version").out == f"agelens {package.__version__}\n"


# --- interruptions --------------------------------------------------------------------------------


def started(*arguments: str | os.PathLike[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def interrupt_when(
    process: subprocess.Popen[bytes], growing: Path, sent: signal.Signals = signal.SIGINT
) -> tuple[str, str]:
    """Ctrl-C once the first rows are in a file; gives what the process wrote."""
    deadline = time.monotonic() + 30
    while not (growing.exists() and growing.stat().st_size > 3000):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(sent)
    out, err = process.communicate(timeout=20)
    return (out or b"").decode(), err.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_ctrl_c_keeps_the_finished_rows_and_writes_no_half_file(
    faces: Path, tmp_path: Path, form: str
) -> None:
    folder = copies(tmp_path / "photos", faces / "astronaut.jpg", 600)
    output, partial = tmp_path / f"r.{form}", tmp_path / f"r.{form}.partial"

    process = started("analyze", folder, "-o", output, "--workers", "2")
    out, err = interrupt_when(process, partial)

    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert str(partial) in " ".join(err.split())
    assert not output.exists()
    reported = int(re.findall(r"interrupted after ([\d,]+) picture", err)[0].replace(",", ""))
    text = partial.read_text(encoding="utf-8")
    assert text.endswith("\n")
    lines = text.splitlines()
    paths = (
        [json.loads(line)["path"] for line in lines]
        if form == "jsonl"
        else [row["path"] for row in csv.DictReader(lines, strict=True)]
    )
    assert 0 < reported < 600
    # The one being written when the key was pressed may or may not have been counted.
    assert len(paths) - reported in (0, 1)
    assert paths == [str(folder / f"{index:04}.jpg") for index in range(len(paths))]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_while_parquet_is_written_leaves_it_readable(faces: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet")
    folder = copies(tmp_path / "photos", faces / "astronaut.jpg", 600)
    partial = tmp_path / "r.parquet.partial"

    process = started("analyze", folder, "-o", tmp_path / "r.parquet")
    while not partial.exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert process.returncode == 130
    assert b"Traceback" not in err
    assert not (tmp_path / "r.parquet").exists()
    paths = parquet_column(partial, "path")
    assert paths == [str(folder / f"{index:04}.jpg") for index in range(len(paths))]
    assert 0 < len(paths) < 600


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGKILL"])
def test_what_was_printed_when_the_run_is_ended_is_whole_lines(
    faces: Path, tmp_path: Path, sent: str
) -> None:
    folder = copies(tmp_path / "photos", faces / "astronaut.jpg", 600)
    printed = tmp_path / "printed"

    with printed.open("w") as file:
        process = subprocess.Popen(
            command("analyze", folder, "--format", "jsonl"), stdout=file, stderr=subprocess.PIPE
        )
    interrupt_when(process, printed, signal.Signals[sent])

    lines = printed.read_text(encoding="utf-8").splitlines(keepends=True)
    assert process.returncode == (130 if sent == "SIGINT" else -signal.SIGKILL)
    assert 0 < len(lines) < 600
    assert lines[-1].endswith("\n")
    assert all(len(json.loads(line)["faces"]) == 1 for line in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
@pytest.mark.parametrize("form", ["jsonl", "table"])
def test_a_reader_that_leaves_after_a_line_ends_the_run_quietly(
    faces: Path, tmp_path: Path, form: str
) -> None:
    folder = copies(tmp_path / "photos", faces / "astronaut.jpg", 300)

    process = started("analyze", folder, "--format", form)
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    status = process.wait(timeout=20)

    assert line
    assert err == b""
    assert status == 0


# --- a careless world -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """About 45 hostile files between ten good photographs, and what each must come to."""
    folder = tmp_path_factory.mktemp("hostile")
    expected = {
        os.fsencode(file.path).decode("utf-8", "backslashreplace"): file.expected
        for file in hostile.write_hostile_folder(folder, HOPPER)
    }
    photographs = sorted(HOPPER.parent.glob("*.jpg"))
    for index in range(10):
        # Names that sort in between the hostile ones.
        path = folder / f"{'afglmpstuz'[index]}-good-{index}.jpg"
        shutil.copyfile(photographs[index % len(photographs)], path)
        expected[str(path)] = "good"
    return folder, expected


MEASURED = """
import atexit, pathlib, sys

def say_peak():
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    print(*[line for line in lines if line.startswith("VmHWM")], file=sys.stderr)

atexit.register(say_peak)
from agelens.cli import main
main()
"""


def run_measured(*arguments: str | os.PathLike[str]) -> tuple[Outcome, int]:
    """Run apart within a minute; also gives the peak memory in bytes, 0 where it is not known."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *(os.fspath(item) for item in arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    peak = re.findall(r"VmHWM:\s+(\d+) kB", done.stderr)
    return Outcome(done.returncode, done.stdout, done.stderr), 1024 * int(peak[0] if peak else 0)


def test_a_folder_of_hostile_files_costs_no_good_one(
    hostile_folder: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, expected = hostile_folder
    output = tmp_path / "r.jsonl"

    outcome, peak = run_measured("analyze", folder, "-o", output)

    lines = {}
    for text in output.read_text(encoding="utf-8").splitlines():
        line = TypeAdapter(AnalysisDict).validate_json(text, strict=True)
        lines[line["path"] or ""] = line
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    assert set(lines) == set(expected)
    codes = {path: line["error"]["code"] if line["error"] else "ok" for path, line in lines.items()}
    assert codes == {path: "ok" if code == "good" else code for path, code in expected.items()}
    assert sum(code != "ok" for code in codes.values()) >= 20
    for path, code in expected.items():
        assert len(lines[path]["faces"]) >= (code == "good")
        error = lines[path]["error"]
        assert error is None or len(error["message"]) > 10
    assert peak < 600_000_000


def test_hostile_files_do_not_disturb_the_table_or_the_annotated_pictures(
    hostile_folder: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, expected = hostile_folder

    outcome = agelens("analyze", folder, "--annotate", tmp_path, columns=120)

    good = [code for code in expected.values() if code in ("good", "ok")]
    assert outcome.status == 1
    assert len(list(tmp_path.iterdir())) == len(good)
    assert f"{len(expected)} pictures" in outcome.err
    assert f"{len(expected) - len(good)} could not be read" in outcome.err


def test_options_left_out_are_those_of_the_library() -> None:
    """The defaults stand in the signature, so that the help shows them without loading anything."""
    shown = inspect.signature(command_line.analyze).parameters
    options, limits = AnalyzerOptions(), ImageLimits()

    for name in ("model", "detector", "crops", "min_face", "max_faces", "flip", "allow_urls"):
        assert shown[name].default == getattr(options, name)
    assert shown["no_gender"].default is not options.gender
    assert shown["max_bytes"].default == limits.max_bytes
    assert shown["max_pixels"].default == limits.max_pixels
    assert shown["level"].default == DEFAULT_LEVEL
    assert shown["age_groups"].default == ",".join(str(edge) for edge in DEFAULT_AGE_GROUPS)


def test_a_source_whose_name_looks_like_a_pattern_is_not_written_over(
    faces: Path, tmp_path: Path
) -> None:
    source = tmp_path / "a[1].jpg"
    shutil.copy(faces / "hopper.jpg", source)
    shutil.copy(faces / "hopper.jpg", tmp_path / "a1.jpg")  # what it would match as a pattern
    before = source.read_bytes()

    outcome = agelens("analyze", source, "--format", "jsonl", "--output", source)

    assert outcome.status == 2
    assert source.read_bytes() == before
