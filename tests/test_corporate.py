"""The whole way of a company: a table of its own photographs to a model of its own.

Everything happens on the command line, from a CSV with dates of birth and of the photographs to an
analysis where nothing of training is installed. The faces are cut from the public-domain
photographs; who they belong to, and how old they are, is made up.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("torch", reason="needs the 'train' extra")
pytest.importorskip("pyarrow", reason="needs the 'train' extra")

import pyarrow.parquet as pq
import torch

from agelens.alignment import CropSpec, align
from agelens.bundle import find_model
from agelens.images import load_image
from agelens.training import evaluate_checkpoint, load_checkpoint
from command_line import Outcome, agelens
from install.test_missing_extras import EXTRAS, agelens_without

FACES = Path(__file__).parent / "faces"

# Centre and height of the face, read off the photographs.
PORTRAITS = {"astronaut.jpg": ((224, 115), 110), "hopper.jpg": ((264, 235), 150)}

RECIPE = """
schema = "agelens.recipe/1"
name = "badge"
summary = "A network for a test."

[network]
backbone = "test_efficientnet"
size = 64
representation = 32

[heads.distribution]

[heads.gender]

[augmentation]
preset = "light"

[optimizer]
learning_rate = 1e-2
warmup_epochs = 0.5

[loop]
epochs = 10
batch_size = 8
ema_decay = 0.5
"""

ON_THIS_COMPUTER = (
    *("--set", "loop.device=cpu", "--set", "loop.threads=1", "--set", "loop.tensorboard=false"),
    *("--set", "data.workers=0"),
)


@dataclass(frozen=True)
class Photograph:
    """A row of the company's table."""

    file: str
    employee: str
    born: dt.date
    taken: dt.date
    gender: str

    @property
    def age(self) -> int:
        """Completed years, counted by birthdays."""
        birthdays = range(self.born.year + 1, self.taken.year + 1)
        return sum(dt.date(y, self.born.month, self.born.day) <= self.taken for y in birthdays)


def portrait(seed: int) -> NDArray[np.uint8]:
    """A face as a camera might have taken it: nearer, turned, darker, mirrored."""
    rng = np.random.default_rng(seed)
    name = sorted(PORTRAITS)[seed % 2]
    (x, y), height = PORTRAITS[name]
    pixels = np.asarray(Image.open(FACES / name).convert("RGB"))
    side = 160
    scale = side / (height * rng.uniform(1.7, 2.6))
    turn = cv2.getRotationMatrix2D((float(x), float(y)), rng.uniform(-14, 14), scale)
    matrix = np.asarray(turn, np.float64)
    matrix[:, 2] += side / 2 - np.array([x, y]) + rng.uniform(-14, 14, 2)
    shot = cv2.warpAffine(pixels, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
    shot = shot if rng.random() < 0.5 else shot[:, ::-1]
    light = shot * rng.uniform(0.7, 1.15) + rng.uniform(-15, 15, 3)
    return np.clip(light, 0, 255).astype(np.uint8)


def employees() -> Iterator[Photograph]:
    """28 people once and two, E007 and E019, six times each, over as many years."""
    rng = np.random.default_rng(11)
    for person in range(30):
        born = dt.date(1955 + person * 3 // 2, 1 + person % 12, 1 + person * 7 % 28)
        first = dt.date(2016, 1 + int(rng.integers(12)), 1 + int(rng.integers(28)))
        for shot in range(6 if person in (7, 19) else 1):
            yield Photograph(
                file=f"E{person:03d}_{shot}.jpg",
                employee=f"E{person:03d}",
                born=born,
                taken=first.replace(year=first.year + shot),
                gender="f" if person % 2 else "m",
            )


def write_company(folder: Path) -> list[Photograph]:
    """``staff.csv`` and ``photos/`` as a human resources department would send them."""
    rows = list(employees())
    (folder / "photos").mkdir()
    for seed, row in enumerate(rows):
        Image.fromarray(portrait(seed)).save(folder / "photos" / row.file, quality=92)
    with (folder / "staff.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "employee_id", "birth_date", "photo_date", "gender", "site"])
        for row in rows:
            writer.writerow(
                [row.file, row.employee, row.born, f"{row.taken:%d.%m.%Y}", row.gender, "Köln"]
            )
    return rows


def done(outcome: Outcome) -> str:
    """Standard output of a command that went well, as one line."""
    assert outcome.status == 0, outcome.err + outcome.out
    return " ".join(outcome.out.split())


def test_a_company_trains_a_model_on_its_own_table_and_uses_it_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    staff = {row.file: row for row in write_company(tmp_path)}

    # The table becomes faces with ages in completed years.
    told = done(
        agelens(
            *("data", "import", "csv", "staff.csv", "--images", "photos", "--audit", "site"),
            *("--licence", "own photographs, with consent", "--licence-class", "commercial"),
        )
    )
    assert "40 faces -> staff.parquet" in told
    imported = pq.read_table("staff.parquet").to_pylist()
    ages = {row["source_file"]: (row["age_min"], row["age_max"]) for row in imported}
    assert ages == {file: (row.age, row.age) for file, row in staff.items()}

    # It is looked over, and divided so that nobody is on two sides.
    told = done(agelens("data", "check", "staff.parquet", "--html", "check.html", "--workers", "1"))
    assert "40 faces in" in told
    shares = ("--train", "0.6", "--val", "0.2", "--test", "0.2", "--workers", "1")
    done(agelens("data", "split", "staff.parquet", "-o", "split.parquet", *shares))
    done(agelens("data", "check", "split.parquet", "--workers", "1"))
    split = pq.read_table("split.parquet").to_pylist()
    sides: dict[str, set[str]] = {}
    for row in split:
        sides.setdefault(row["subject"], set()).add(row["split"])
    assert len(sides) == 30
    assert all(len(side) == 1 for side in sides.values())
    assert set().union(*sides.values()) == {"train", "val", "test"}

    # Faces are found and cut out once.
    told = done(agelens("data", "prepare", "split.parquet", "-o", "prepared", "--workers", "1"))
    assert "40 faces in 1 shards" in told

    # A network of one's own, and a second one that goes on from the exported first.
    Path("badge.toml").write_text(RECIPE)
    data = ("--data", "prepared", *ON_THIS_COMPUTER)
    done(agelens("train", "badge.toml", "--out", "runs/first", *data))
    done(agelens("export", "runs/first", "--out", "models", "--name", "first"))
    tune = ("--set", "init=models/first.onnx", "--set", "loop.epochs=2", "--set", "loop.patience=0")
    told = done(agelens("train", "finetune", "--out", "runs/tuned", *data, *tune))
    assert told.startswith("finished 2 epochs")
    notes = json.loads(Path("runs/tuned/environment.json").read_text())["run"]["weights"]
    assert re.fullmatch(r"all weights from models/first\.onnx \(\d+ tensors\)", notes[0])

    # What was printed is what the best checkpoint does, on faces it was chosen by and on others.
    figures = evaluate_checkpoint("runs/tuned", "prepared")
    assert f"mae {figures['mae']:.4f}" in told
    unseen = evaluate_checkpoint("runs/tuned", "prepared", split="test")
    tests = [row for row in split if row["split"] == "test"]
    assert unseen["faces"] == len(tests) > 0
    assert 0 < unseen["mae"] < 100

    # The exported file answers where nothing of training can be imported, as the network does.
    told = done(agelens("export", "runs/tuned", "--out", "models", "--name", "ours"))
    assert "models/ours.onnx" in told
    photo = f"photos/{tests[0]['source_file']}"
    analysed = agelens_without(
        EXTRAS, "analyze", photo, "--model", "models/ours.onnx", "--format", "jsonl"
    )
    assert analysed.status == 0, analysed.err
    (line,) = analysed.lines
    assert line["model"] == "ours@1.0"
    assert line["faces"][0]["age"]["mean"] == pytest.approx(mean_age(photo, line), abs=0.02)
    card = find_model("models/ours.onnx").card
    assert card.licence_class == "commercial"
    (used,) = card.training_data
    assert (used.name, used.rows) == ("staff", sum(row["split"] == "train" for row in split))


def mean_age(photo: str, line: dict[str, object]) -> float:
    """What the network itself says of the face that was analysed."""
    trained = load_checkpoint("runs/tuned")
    settings = trained.network.settings
    faces = line["faces"]
    assert isinstance(faces, list)
    landmarks = np.array(faces[0]["landmarks"], np.float32)
    chip = align(load_image(photo).pixels, landmarks, CropSpec(settings.size, settings.margin))
    with torch.inference_mode():
        outputs = trained.network(torch.from_numpy(chip[None].copy()))
        probabilities = trained.network.probabilities(outputs)[0].double().numpy()
    return float(probabilities @ np.arange(101))


# --- a table with bad rows ------------------------------------------------------------------------

BAD_ROWS = (
    ("gone.jpg", "A", "34", "f"),
    ("0.jpg", "B", "230", "f"),
    ("1.jpg", "C", "40", "m"),
    ("1.jpg", "C", "41", "m"),
    ("2.jpg", "D", "29", "fm"),
    ("3.jpg", "Jörg", "51", "m"),
)


@pytest.fixture
def spoilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty good rows, saved as UTF-8, and six bad ones; the last comes from an older program."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    lines = ["file,person,age,gender"]
    for seed in range(24):
        Image.fromarray(portrait(100 + seed)).save(f"photos/{seed}.jpg")
        if seed >= 4:
            lines.append(f"{seed}.jpg,Zoë{seed},{20 + 2 * seed},{'f' if seed % 2 else 'm'}")
    good = "\n".join(lines).encode("utf-8")
    bad = "\n".join(",".join(row) for row in BAD_ROWS).encode("cp1252")
    Path("staff.csv").write_bytes(good + b"\n" + bad + b"\n")
    return tmp_path


IMPORT = ("data", "import", "csv", "staff.csv", "--images", "photos")


def test_every_bad_row_is_named_with_its_column_and_value_and_nothing_is_written(
    spoilt: Path,
) -> None:
    outcome = agelens(*IMPORT)

    assert (outcome.status, outcome.out) == (2, "")
    assert "20 good ones; nothing was written" in outcome.err
    # The header is row 1, the good rows are 2 to 21.
    for row, column, value in (
        (22, "file", "gone.jpg"),
        (23, "age", "230"),
        (24, "age", "40"),
        (25, "age", "41"),
        (26, "gender", "fm"),
        (27, "person", "J"),
    ):
        assert re.search(rf"staff\.csv row {row}, column '{column}': '{value}", outcome.err)
    assert "--skip-bad-rows" in outcome.err
    assert not list(spoilt.glob("*.parquet"))
    with (spoilt / "staff.parquet.problems.csv").open(encoding="utf-8") as stream:
        assert [line["row"] for line in csv.DictReader(stream)] == [str(n) for n in range(22, 28)]


def test_dates_that_give_two_ages_for_one_picture_are_named_as_they_stand(spoilt: Path) -> None:
    Path("dated.csv").write_text(
        "file,birth_date,photo_date\n0.jpg,1980-05-31,2020-05-30\n0.jpg,01.03.1990,2020-05-30\n"
    )

    outcome = agelens("data", "import", "csv", "dated.csv", "--images", "photos")

    assert outcome.status == 2
    for row, born, own, other in (
        (2, "1980-05-31", 39, "row 3 says 30"),
        (3, "01.03.1990", 30, ""),
    ):
        named = f"dated.csv row {row}, column 'birth_date': '{born}': these dates give {own}; "
        assert named in outcome.err
        assert other in outcome.err


def test_the_good_rows_are_trained_on_only_when_told_to(spoilt: Path) -> None:
    told = done(agelens(*IMPORT, "--skip-bad-rows"))

    assert "20 faces -> staff.parquet" in told
    assert all(f"staff.csv row {row}," in told for row in range(22, 28))
    names = pq.read_table("staff.parquet")["source_file"].to_pylist()
    assert set(names) == {f"{seed}.jpg" for seed in range(4, 24)}

    shares = ("--train", "0.6", "--val", "0.4", "--test", "0", "--no-duplicates")
    done(agelens("data", "split", "staff.parquet", "-o", "split.parquet", *shares))
    done(agelens("data", "prepare", "split.parquet", "-o", "prepared", "--workers", "1"))
    Path("badge.toml").write_text(RECIPE)
    done(
        agelens(
            *("train", "badge.toml", "--data", "prepared", "--out", "run", "--fast-dev-run"),
            *ON_THIS_COMPUTER,
        )
    )
    assert load_checkpoint("run").data.datasets[0].licence_class == "research"
