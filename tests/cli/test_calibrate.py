"""``agelens calibrate``: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the 'eval' extra")
pytest.importorskip("matplotlib", reason="needs the 'eval' extra")
pytest.importorskip("jinja2", reason="needs the 'eval' extra")
pytest.importorskip("onnx", reason="needs the 'train' extra")

import onnx_models
from agelens.bundle import find_model
from agelens.data.schema import FaceRecord, FaceWriter, Gender, file_sha256
from agelens.evaluation.calibrating import CalibrationReport
from command_line import Outcome, agelens
from data.pictures import blob, encoded

COUNT = 150
QUICK = ("--detector", "none", "--samples", "50")


def write_faces(path: Path, count: int = COUNT, *, gender: Gender | None = None) -> Path:
    """Labelled pictures that say nothing of age or gender."""
    rng = np.random.default_rng(0)
    with FaceWriter(path, ["race"]) as writer:
        for row in range(count):
            age = int(rng.integers(0, 90))
            writer.write(
                FaceRecord(
                    "ours",
                    f"{row}.jpg",
                    image=encoded(blob(row, 48)),
                    age_min=age,
                    age_max=age,
                    gender=gender or ("female" if rng.random() < 0.5 else "male"),
                    audit={"race": "one" if row % 4 else "other"},
                )
            )
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("data") / "faces.parquet")


def write_model(folder: Path) -> Path:
    return onnx_models.write_model(folder, onnx_models.distribution_network().graph)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, table: Path) -> tuple[Path, Outcome]:
    """A model calibrated in place, and what was printed."""
    folder = tmp_path_factory.mktemp("ours")
    model = write_model(folder)
    done = agelens(
        *("calibrate", model, table, "--in-place", "--by", "race", *QUICK),
        *("--report", folder / "report", "--version", "2.2", "--keep", folder / "kept.npz"),
        columns=120,
    )
    assert done.status == 0, done.err
    return model, done


def test_the_model_s_own_card_gets_the_calibration(
    written: tuple[Path, Outcome], table: Path
) -> None:
    card = find_model(str(written[0])).card

    assert card.version == "2.2"
    assert card.calibration.coverage
    assert card.calibration.group_column == "race"
    (file,) = card.calibration.files
    assert (file.name, file.sha256, file.faces) == ("faces.parquet", file_sha256(table), COUNT)
    assert card.calibration.data == "faces.parquet (150 faces)"


def test_it_prints_the_figures_before_and_after(written: tuple[Path, Outcome]) -> None:
    model, done = written
    report = CalibrationReport.from_dict(
        json.loads((model.parent / "report" / "calibration.json").read_text("utf-8"))
    )

    lines = {line.split("  ")[0]: line.split() for line in done.out.splitlines() if line}
    for side, place in ((report.before, -6), (report.after, -5)):
        rate = side.metrics["coverage_90"].value
        assert lines["90 % intervals that hold the age"][place] == f"{100 * rate:.1f}"
    groups = {group.value: group for group in report.after.groups["race"]}
    shown = next(line for line in done.out.splitlines() if line.startswith("other"))
    assert f"-> {100 * groups['other'].metrics['coverage_90'].value:.1f}" in shown
    assert "each face under a calibration fitted without it (5 folds)" in done.out
    assert "group 'other' of 'race' has 38 faces" in done.err


def test_the_page_of_the_report_is_there(written: tuple[Path, Outcome]) -> None:
    page = (written[0].parent / "report" / "calibration.html").read_text("utf-8")

    assert "small@2.1" in page


def test_the_calibrated_model_answers_with_its_tables(
    written: tuple[Path, Outcome], tmp_path: Path
) -> None:
    picture = tmp_path / "face.jpg"
    picture.write_bytes(encoded(blob(3, 48)))

    done = agelens(
        *("analyze", picture, "--model", written[0], "--detector", "none", "--distribution"),
        *("--format", "jsonl", "--min-face", "8"),
    )

    assert done.status == 0, done.err
    (face,) = json.loads(done.out)["faces"]
    held = find_model(str(written[0])).card.calibration.coverage
    assert face["age"]["coverage"] in [band.table().to_rows() for band in held]


def test_without_a_place_nothing_is_written(table: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path)
    before = model.with_suffix(".toml").read_bytes()

    done = agelens("calibrate", model, table, "--no-gender", *QUICK)

    assert done.status == 0, done.err
    assert "nothing written: name --out CARD.toml or --in-place" in done.err
    assert "gender is not calibrated: it was not asked for" in done.err
    assert model.with_suffix(".toml").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "small.toml"]


def test_answers_that_were_kept_are_not_asked_for_again(
    written: tuple[Path, Outcome], table: Path, tmp_path: Path
) -> None:
    kept = written[0].parent / "kept.npz"
    before = kept.stat().st_mtime_ns

    done = agelens(
        *("calibrate", written[0], table, "--out", written[0].parent / "again.toml"),
        *("--criterion", "crps", "--levels", "0.5,0.9", "--keep", kept, *QUICK),
    )

    assert done.status == 0, done.err
    assert kept.stat().st_mtime_ns == before
    levels = find_model(str(written[0].parent / "again.toml")).card.calibration.coverage[0].levels
    assert levels == (0.0, 0.5, 0.9, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "card.json"), "a card is a .toml file"),
        (("--out", "card.toml", "--in-place"), "name one of them"),
        (("--by", "tone"), "no column 'tone'; there are: dataset, gender, race"),
        (("--levels", "half"), "--levels half: write numbers such as"),
        (("--gender-threshold", "0.9", "--threshold-accuracy", "0.9"), "not both"),
        (("--report", "faces.parquet"), "is a file; name a folder"),
    ],
    ids=["suffix", "two places", "column", "levels", "thresholds", "report"],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    model = write_model(tmp_path)
    monkeypatch.chdir(table.parent)

    done = agelens("calibrate", model, table, *QUICK, *options)

    assert done.status == 2
    assert message in " ".join(done.err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "small.toml"]


def test_the_bundled_model_is_not_changed_in_place(table: Path) -> None:
    done = agelens("calibrate", "cc0", table, "--in-place", *QUICK)

    assert done.status == 2
    assert "comes with the package" in done.err


def test_one_gender_only_names_the_column(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "men.parquet", 130, gender="male")

    done = agelens("calibrate", write_model(tmp_path / "m"), faces, *QUICK)

    assert done.status == 2
    assert "the column 'gender' holds 'male' only (130 faces)" in " ".join(done.err.split())


def test_too_few_faces_are_refused(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "few.parquet", 20)

    done = agelens("calibrate", write_model(tmp_path / "m"), faces, *QUICK)

    assert done.status == 2
    assert "calibration needs 125 faces or more" in " ".join(done.err.split())
