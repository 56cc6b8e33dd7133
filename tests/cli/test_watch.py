"""``agelens watch``: what it says, what it keeps, and what it never keeps."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from agelens.analytics.export import export_visits
from agelens.analytics.store import Scope, open_store
from analytics.watched import camera_of, write_visits
from command_line import agelens, command

PEOPLE = 3
GATE = "door:0.5,0,0.5,1"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_visits(path, people=PEOPLE)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_video_alone_gives_its_visitors_with_ages_and_genders_and_a_store_beside(
    clip: Path, here: Path
) -> None:
    done = agelens("watch", clip)

    assert done.status == 0, done.err
    assert done.out.startswith(f"{PEOPLE} visitors at here, ")
    table = {line.split()[0]: line.split() for line in done.out.splitlines() if line}
    assert table["clip"][1] == str(PEOPLE)
    ages = [int(row[1]) for name, row in table.items() if re.fullmatch(r"\d+(-\d+|\+)", name)]
    assert sum(ages) == PEOPLE
    assert sum(int(table[label][1]) for label in ("male", "female", "uncertain")) == PEOPLE
    low, high = (int(table["female"][place].rstrip("%")) for place in (4, 6))
    assert 0 <= low < int(table["female"][3].rstrip("%")) < high <= 100
    assert "clip: ended" in done.err
    assert sorted(one.name for one in here.iterdir() if one.suffix != ".lock")[0] == "visits.sqlite"

    again = agelens("watch", clip)
    assert again.status == 0
    assert again.out == done.out
    assert "not counted again (--again counts it anew)" in again.err


def test_the_summary_as_json_holds_crossings_and_shares_counted_and_corrected(
    clip: Path, here: Path
) -> None:
    done = agelens("watch", f"gate={clip}", "--line", GATE, "--json", "--no-progress")

    assert (done.status, done.err) == (0, "")
    (told,) = done.lines
    assert (told["visitors"], told["site"]) == (PEOPLE, "here")
    (camera,) = told["cameras"]
    assert camera["camera"] == "gate"
    assert sum(one["count"] for one in camera["crossings"]) == PEOPLE
    assert sum(told["ages"].values()) == PEOPLE
    for kind in ("age", "gender"):
        shares = told["shares"][kind]
        assert sum(share["corrected"]["value"] for share in shares) == pytest.approx(1)
        assert sum(share["raw"]["value"] for share in shares) == pytest.approx(1)
        assert all(
            share["corrected"]["low"] <= share["corrected"]["value"] <= share["corrected"]["high"]
            for share in shares
        )


def test_a_source_that_fails_gives_status_1_and_the_others_are_counted(
    clip: Path, here: Path
) -> None:
    done = agelens("watch", "none.mp4", clip, "--json")

    assert done.status == 1
    assert done.lines[0]["visitors"] == PEOPLE
    assert "none: failed" in done.err
    assert "no such file" in done.err


WRONG = {
    "nothing": ((), "give sources to watch, or --plan"),
    "both": (("a.mp4", "--plan", "b.toml"), "give sources to watch, or --plan"),
    "no such plan": (("--plan", "b.toml"), "b.toml: no such plan"),
    "a line of one point": (("a.mp4", "--line", "gate:0.5,0"), "expected NAME:X,Y,X,Y"),
    "a line in pixels": (("a.mp4", "--line", "gate:320,0,320,360"), "fractions 0..1"),
    "a zone of two points": (("a.mp4", "--zone", "desk:0,0,1,1"), "three corners"),
    "one name for two": (("x/a.mp4", "y/a.mp4"), "give each a name, as door=FILE"),
    "an unknown zone": (("a.mp4", "--timezone", "Mars/Olympus"), "no time zone 'Mars/Olympus'"),
    "no address": (("a.mp4", "--listen", "8080"), "expected HOST:PORT"),
    "an unknown model": (("a.mp4", "--model", "none"), "none"),
    "a folder as store": (("a.mp4", "--store", "."), "a folder; give a file in it"),
    "another database": (("a.mp4", "--store", "mysql://db/x"), "SQLite file or a postgresql://"),
}


@pytest.mark.parametrize(("arguments", "complaint"), WRONG.values(), ids=WRONG)
def test_wrong_usage_gives_status_2_and_says_what_to_do(
    here: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    done = agelens("watch", *arguments)

    assert done.status == 2
    assert complaint in " ".join(done.err.split())


def test_without_the_extra_it_says_which_one_to_install(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)

    done = agelens("watch", "clip.mp4")

    assert done.status == 2
    assert "pip install 'agelens[visitors]'" in " ".join(done.err.split())


def test_the_pages_are_served_meanwhile_until_a_signal_ends_it_in_order(
    clip: Path, here: Path
) -> None:
    pytest.importorskip("fastapi")
    program = subprocess.Popen(
        command("watch", clip, "--listen", "127.0.0.1:0"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    try:
        assert program.stderr is not None
        for line in program.stderr:
            said.append(line)
            if "still serving" in line:
                break
        address = next(line.split()[-1] for line in said if line.startswith("pages at "))
        with urllib.request.urlopen(f"{address}/v1/audience", timeout=10) as answer:
            assert json.load(answer)["people"] == 0
        with urllib.request.urlopen(f"{address}/visitors", timeout=10) as answer:
            assert answer.headers.get_content_type() == "text/html"
    finally:
        program.send_signal(signal.SIGTERM)
        out, rest = program.communicate(timeout=30)
    assert program.returncode == 0
    assert rest == ""
    assert out.startswith(f"{PEOPLE} visitors")


# --- what is never kept ---------------------------------------------------------------------------

MAGIC = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n",
    "WebP": b"WEBPVP8",
    "GIF": b"GIF8",
    "NumPy": b"\x93NUMPY",
    "an MP4": b"ftypisom",
}


def test_no_picture_crop_or_embedding_is_in_store_logs_or_exports(clip: Path, here: Path) -> None:
    done = agelens("watch", clip, "--line", GATE, "--zone", "shelf:0.6,0,1,0,1,1,0.6,1")
    assert done.status == 0
    (here / "out.log").write_text(done.out)
    (here / "err.log").write_text(done.err)
    with open_store("visits.sqlite") as store:
        for name in ("visits.parquet", "visits.csv"):
            export_visits(store, Path(name))
        visits = list(store.visits(Scope(staff=True)))
    assert len(visits) == PEOPLE
    assert len(list(here.iterdir())) >= 5

    for path in here.iterdir():
        content = path.read_bytes()
        for kind, magic in MAGIC.items():
            assert magic not in content, f"{path.name} holds {kind}"
        # A face of 24 x 24 pixels, the smallest that is looked for, has no place in these.
        assert longest_dense(content) < 24 * 24, path.name
    with contextlib.closing(sqlite3.connect("visits.sqlite")) as database:
        for table, statement in database.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table'"
        ).fetchall():
            assert "BLOB" not in statement.upper()
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            for column in columns:
                kinds = database.execute(
                    f"SELECT DISTINCT typeof({column}), max(length({column})) FROM {table}"
                ).fetchall()
                assert all(kind != "blob" for kind, _ in kinds), (table, column)
                # A list of numbers as long as the least embedding would not fit into this.
                longest = max((length or 0 for _, length in kinds), default=0)
                assert longest < 2000, (table, column)


def longest_dense(content: bytes) -> int:
    """Longest run of bytes that neither text nor a database has: high entropy, as of pixels.

    Windows of 256 bytes count in which more than 150 different bytes are.
    """
    window = 256
    values = np.frombuffer(content, np.uint8)
    longest = run = 0
    for start in range(0, len(values) - window, window // 4):
        if len(np.unique(values[start : start + window])) > 150:
            run = run + window // 4 if run else window
            longest = max(longest, run)
        else:
            run = 0
    return longest


def test_the_search_would_find_a_face(clip: Path, here: Path) -> None:
    rng = np.random.default_rng(1)
    assert longest_dense(b"text " * 400 + rng.bytes(24 * 24 * 3) + b"text " * 400) >= 24 * 24
    assert camera_of(clip).min_face == 24


def test_the_command_line_page_names_every_option() -> None:
    known = set(re.findall(r"--[a-z-]+", agelens("watch", "--help", columns=200).out))
    page = Path(__file__).parents[2] / "docs/reference/command-line.md"
    section = page.read_text("utf-8").split("## agelens watch")[1].split("\n## ")[0]

    assert [name for name in sorted(known - {"--help", "--progress"}) if name not in section] == []
