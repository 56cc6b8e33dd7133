"""The data commands from outside: a corporate CSV of photographs, to prepared shards."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from agelens.cli.data import app
from agelens.errors import DataError
from data.pictures import FACES, blob, encoded, save


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def good(result: Result) -> str:
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture
def staff(tmp_path: Path) -> Path:
    """Twelve people photographed twice, with dates of birth and of the photograph, from Windows."""
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = ["Datei;Person;Geburtsdatum;Aufnahme;Geschlecht;Standort"]
    for person in range(12):
        face = FACES / ("astronaut.jpg" if person % 2 else "hopper.jpg")
        for shot in range(2):
            name = f"p{person}_{shot}.jpg"
            shutil.copy(face, photos / name)
            # Same people, different files: the comment keeps the bytes apart.
            with open(photos / name, "ab") as handle:
                handle.write(name.encode())
            word = "w" if person % 2 else "m"
            born = f"0{1 + person % 9}.03.{1950 + 4 * person}"
            lines.append(f"{name};Müller{person};{born};15.06.20{10 + shot};{word};Köln")
    (tmp_path / "staff.csv").write_bytes("\n".join(lines).encode("cp1252"))
    return tmp_path


MAPPED = (
    "--images", "photos", "--column", "file=Datei", "--column", "subject=Person",
    "--column", "birth_date=Geburtsdatum", "--column", "photo_date=Aufnahme",
    "--column", "gender=Geschlecht", "--audit", "Standort", "--licence", "own photographs",
    "--licence-class", "commercial",
)  # fmt: skip


def test_a_corporate_table_goes_from_csv_to_shards(
    staff: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(staff)

    told = good(run("import", "csv", "staff.csv", *MAPPED, "--encoding", "cp1252"))
    assert "24 faces -> staff.parquet" in told
    rows = pq.read_table("staff.parquet").to_pylist()
    assert (rows[0]["age_min"], rows[0]["age_max"], rows[0]["gender"]) == (60, 60, "male")
    assert (rows[0]["subject"], rows[0]["Standort"]) == ("Müller0", "Köln")

    told = good(run("split", "staff.parquet", "-o", "split.parquet", "--no-duplicates"))
    assert "24 faces of 12 families" in told

    told = good(
        run("check", "split.parquet", "--no-read", "--licence-class", "commercial",
            "--json", "check.json", "--html", "check.html")
    )  # fmt: skip
    assert "error " not in told
    assert json.loads(Path("check.json").read_text())["rows"] == 24
    assert "<html" in Path("check.html").read_text()

    told = good(run("prepare", "split.parquet", "-o", "prepared", "--workers", "1", "--size", "96"))
    assert "24 faces in 1 shards (0 were there already)" in told
    manifest = json.loads(Path("prepared/manifest.json").read_text())
    assert manifest["datasets"] == {
        "staff": {"licence": "own photographs", "licence_class": "commercial"}
    }

    told = good(run("stats", "prepared", "--by", "Standort", "--bands", "0,30,60"))
    assert re.search(r"Köln male .* 12 Köln|Köln female .* 12", told)
    lines = run("stats", "prepared", "--format", "csv", "--bands", "0,60").stdout.splitlines()
    assert lines[0] == "dataset,gender,ages,faces,share"
    wire = json.loads(run("stats", "prepared", "--format", "json").stdout)
    assert wire["groups"]["staff"]["without_age"] == 0


def test_the_right_encoding_is_asked_for(staff: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(staff)

    result = run("import", "csv", "staff.csv", *MAPPED)

    assert isinstance(result.exception, DataError)
    assert "24 bad rows, 0 good ones" in str(result.exception)
    assert "--encoding cp1252" in str(result.exception)
    assert not Path("staff.parquet").exists()


def test_an_import_with_bad_rows_goes_on_when_told(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    table = tmp_path / "t.csv"
    table.write_text("file,age,gender\na.jpg,30,d\nb.jpg,230,f\n")
    out = tmp_path / "t.parquet"

    refused = run("import", "csv", table, "-o", out, "--gender-word", "d=none")
    assert isinstance(refused.exception, DataError)
    assert not out.exists()

    told = good(
        run("import", "csv", table, "-o", out, "--gender-word", "d=none", "--skip-bad-rows")
    )
    assert "bad: t.csv row 3, column 'age': '230'" in told
    assert "bad: t.csv row 3, column 'file': 'b.jpg'" in told
    assert pq.read_table(out).num_rows == 1


def test_a_check_with_errors_ends_with_one(tmp_path: Path) -> None:
    for name, pixels in (("train/20/female/a", blob(1)), ("test/20/female/b", blob(1))):
        save(tmp_path / f"set/{name}.jpg", pixels)
    out = tmp_path / "t.parquet"
    good(run("import", "tree", tmp_path / "set", "--layout", "split/age/gender", "-o", out))

    result = run("check", out, "--workers", "1", "--html", tmp_path / "r.html", "--no-pictures")

    assert result.exit_code == 1
    assert "copies-across-splits" in result.output
    assert "<img" not in (tmp_path / "r.html").read_text()
    assert run("check", out, "--workers", "1", "--allow", "copies-across-splits").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("import", "csv", "t.csv", "--column", "colour=x"),
        ("import", "csv", "t.csv", "--gender-word", "d=both"),
        ("stats", "t.parquet", "--bands", "young"),
        ("check",),
        ("prepare", "t.parquet"),
        ("import", "nothing"),
    ],
)
def test_wrong_usage_ends_with_two(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("import",),
        ("import", "csv"),
        ("check",),
        ("prepare",),
        ("stats",),
        ("split",),
        ("noise",),
    ],
)
def test_every_command_explains_itself(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--help")

    assert result.exit_code == 0
    assert "Usage" in result.output


def test_doubtful_labels_are_listed(tmp_path: Path) -> None:
    for row in range(12):
        save(tmp_path / f"set/{75 if row == 3 else 30}/female/{row}.jpg", seed=row)
    out = tmp_path / "t.parquet"
    good(run("import", "tree", tmp_path / "set", "-o", out))
    ages = np.zeros((12, 101))
    ages[:, 30] = 1
    np.savez(tmp_path / "p.npz", ages=ages, female=np.full(12, 0.9))

    told = good(
        run("noise", out, "--predictions", tmp_path / "p.npz", "--json", tmp_path / "n.json")
    )

    (doubt,) = json.loads((tmp_path / "n.json").read_text())
    assert (doubt["given"], doubt["expected"]) == ("75", "about 30")
    assert "1 age labels are most likely wrong" in told
    assert doubt["row"] in told


def test_published_sets_are_imported_by_name(tmp_path: Path) -> None:
    save(tmp_path / "utk/26_1_2_20170116174525125.jpg.chip.jpg")
    save(tmp_path / "utk/39_1_20170116174525125.jpg.chip.jpg")
    save(tmp_path / "db/0_MariaCallas_35_f.jpg")

    told = good(run("import", "utkface", tmp_path / "utk", "-o", tmp_path / "u.parquet"))
    assert "known defect: 39_1_20170116174525125.jpg.chip.jpg" in told
    assert "1 faces" in told
    good(run("import", "agedb", tmp_path / "db", "-o", tmp_path / "d.parquet", "--embed"))
    assert pq.read_table(tmp_path / "d.parquet")["image"][0].as_py() == encoded(blob(0))
