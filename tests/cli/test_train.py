"""``agelens train`` and ``agelens export``: what they print, refuse, and leave behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the 'train' extra")
pytest.importorskip("pyarrow", reason="needs the 'train' extra")

from PIL import Image

import onnx_models
from agelens.bundle import HOME_VARIABLE
from command_line import agelens, command
from data.pictures import blob

RECIPE = """
schema = "agelens.recipe/1"
name = "tiny"

[network]
backbone = "test_efficientnet"
size = 32
representation = 8

[heads.distribution]

[heads.gender]

[data]
workers = 0

[loop]
epochs = 2
batch_size = 8
device = "cpu"
threads = 1
save_every_steps = 1
tensorboard = false
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared pictures in ``prepared``, the recipe ``tiny.toml`` and its run in ``run``."""
    folder = tmp_path_factory.mktemp("room")
    for row in range(24):
        split = "val" if row % 3 == 0 else "train"
        gender = "female" if row % 2 else "male"
        picture = folder / f"set/{split}/{20 + row}/{gender}/{row}.png"
        picture.parent.mkdir(parents=True)
        Image.fromarray(blob(row)).save(picture)
    tree = ("tree", folder / "set", "--layout", "split/age/gender", "-o", folder / "t.parquet")
    agelens("data", "import", *tree)
    out = ("-o", folder / "prepared", "--detector", "none", "--workers", "1")
    agelens("data", "prepare", folder / "t.parquet", *out)
    (folder / "tiny.toml").write_text(RECIPE)
    whole = agelens(
        *("train", folder / "tiny.toml", "--data", folder / "prepared", "--out", folder / "run")
    )
    assert whole.status == 0, whole.err
    return folder


@pytest.fixture(autouse=True)
def inside(room: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands run in the room, with an empty registry."""
    monkeypatch.chdir(room)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


DATA = ("--data", "prepared")


def test_a_run_prints_a_line_an_epoch_and_the_figures_of_the_best(tmp_path: Path) -> None:
    outcome = agelens("train", "tiny.toml", *DATA, "--out", tmp_path / "run", columns=60)

    assert outcome.status == 0
    lines = outcome.err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]
    assert len(lines) == 2
    assert re.match(r"finished 2 epochs; the best was [12]\n", outcome.out)
    assert re.search(r"^  faces +8$", outcome.out, re.MULTILINE)
    assert f"best checkpoint: {tmp_path / 'run' / 'best.safetensors'}" in outcome.out


def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    changes = ("--set", "loop.epochs=400", "--set", "name=long one")
    process = subprocess.Popen(
        command("train", "tiny.toml", *DATA, "--out", run, *changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (run / "metrics.csv").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (130, "")
    again = shlex.split(err.strip().splitlines()[-1].partition("go on with: ")[2])
    assert again[:2] == ["agelens", "train"]
    assert "Traceback" not in err
    # Another number of epochs would be another recipe: so the command carries the changes.
    changed = agelens(*again[1:], "--set", "loop.epochs=2")
    assert "loop.epochs differ" in changed.err
    resumed = subprocess.Popen(
        [sys.executable, "-m", *again], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    before = len((run / "metrics.csv").read_text().splitlines())
    deadline = time.monotonic() + 60
    while (
        len((run / "metrics.csv").read_text().splitlines()) <= before
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    resumed.send_signal(signal.SIGINT)
    resumed.communicate(timeout=60)
    assert resumed.returncode == 130
    epochs = [line.partition(",")[0] for line in (run / "metrics.csv").read_text().splitlines()]
    assert epochs[1:] == [str(number) for number in range(1, len(epochs))]
    assert len(epochs) - 1 >= before


def test_a_finished_run_is_resumed_to_the_same_figures() -> None:
    before = Path("run/metrics.csv").read_bytes()

    outcome = agelens("train", "tiny.toml", *DATA, "--out", "run", "--resume")

    assert outcome.status == 0
    assert outcome.out.startswith("finished 2 epochs")
    assert Path("run/metrics.csv").read_bytes() == before


def test_the_recipe_in_a_runs_folder_repeats_the_run(tmp_path: Path) -> None:
    outcome = agelens("train", "run/recipe.toml", *DATA, "--out", tmp_path / "again")

    assert outcome.status == 0
    assert (tmp_path / "again/metrics.csv").read_bytes() == Path("run/metrics.csv").read_bytes()


def test_of_several_processes_one_prints_the_figures(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    train = command("train", "tiny.toml", *DATA, "--out", tmp_path / "run", "--fast-dev-run")[1:]

    done = subprocess.run(
        [*launcher, "--standalone", *train],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished 1 epochs") == 1


def test_a_rehearsal_takes_two_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"

    outcome = agelens("train", "tiny.toml", *DATA, "--out", run, "--fast-dev-run")

    assert outcome.status == 0
    (row,) = (run / "metrics.csv").read_text().splitlines()[1:]
    assert row.startswith("1,2,")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("tiny.toml", "--data", "nowhere"), r"nowhere/manifest\.json: .*agelens data prepare"),
        (("tiny.toml", "--data", "set"), r"set/manifest\.json: .*agelens data prepare"),
        (("tinny", *DATA), r"tinny: no such recipe; .*efficientnet_b2, finetune"),
        (("tiny.toml", *DATA, "--set", "loop.epoch=3"), r"unknown key; did you mean loop\.epochs"),
        (("tiny.toml", *DATA, "--set", "loop.epochs=x"), r"expected a whole number, found 'x'"),
        (("tiny.toml", *DATA, "--set", "loop.epochs"), r"write key=value"),
        (("finetune", *DATA), r"a trained network to start from is needed: init ="),
        (("finetune", *DATA, "--set", "init=gone.onnx"), r"gone\.onnx: no such file"),
        (("finetune", *DATA, "--set", "init=gone"), r"gone: no such checkpoint or run folder"),
        (("finetune", *DATA, "--set", "init=cc0"), r"has no \[recipe\], so it cannot be train"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_ends_with_two_and_says_what_to_do(
    arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    outcome = agelens("train", *arguments, "--out", tmp_path / "run")

    assert (outcome.status, outcome.out) == (2, "")
    assert re.search(expected, outcome.err)
    assert outcome.err.startswith("error: ")
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_folder_that_holds_a_run_is_left_alone() -> None:
    outcome = agelens("train", "tiny.toml", *DATA, "--out", "run")

    assert outcome.status == 2
    assert "run: is not empty; go on with that run (--resume" in outcome.err


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    # Below a file, so that it holds for the superuser too, who may write anywhere.
    (tmp_path / "file").touch()

    outcome = agelens("train", "tiny.toml", *DATA, "--out", tmp_path / "file" / "run")

    assert outcome.status == 2
    assert "file/run: cannot be made (Not a directory); name a folder" in outcome.err


# --- export ---------------------------------------------------------------------------------------


def test_an_export_tells_size_and_difference_and_can_be_added_and_tuned(tmp_path: Path) -> None:
    models = tmp_path / "models"

    outcome = agelens(
        *("export", "run", "--out", models, "--name", "ours", "--version", "2.0"),
        *("--licence", "ours alone"),
    )

    assert outcome.status == 0, outcome.err
    assert re.search(r"ours\.onnx \(fp32, \d\.\d\d MB\) and .*ours\.toml", outcome.out)
    assert re.search(r"on 8 faces of .*: age differs by", outcome.out)
    assert agelens("models", "add", models / "ours.onnx").status == 0
    shown = agelens("models", "show", "ours@2.0").out
    assert "ours alone" in shown
    # Its name is enough to go on from it.
    tuned = agelens(
        *("train", "finetune", *DATA, "--out", tmp_path / "tuned", "--set", "init=ours"),
        *("--set", "loop.device=cpu", "--set", "loop.threads=1", "--fast-dev-run"),
    )
    assert tuned.status == 0, tuned.err
    assert "all weights from ours" in (tmp_path / "tuned" / "environment.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "--name", "Bad Name"), r"would not be a valid card: name: String should match"),
        (("gone", "--name", "a"), r"gone: no such checkpoint or run folder"),
        (("prepared", "--name", "a"), r"prepared: holds no best\.safetensors"),
        (("run/state.safetensors", "--name", "a"), r"expected 'agelens\.checkpoint/1'"),
        (("tiny.toml", "--name", "a"), r"tiny\.toml: not a whole safetensors file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_export_that_cannot_be_leaves_nothing(
    arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    outcome = agelens("export", *arguments, "--out", tmp_path / "models")

    assert (outcome.status, outcome.out) == (2, "")
    assert re.search(expected, outcome.err)
    assert "http" not in outcome.err
    assert not (tmp_path / "models").exists()


def test_a_model_of_another_program_is_no_start(tmp_path: Path) -> None:
    other = onnx_models.write_model(tmp_path, onnx_models.distribution_network().graph)

    outcome = agelens(
        "train", "finetune", *DATA, "--out", tmp_path / "run", "--set", f"init={other}"
    )

    assert outcome.status == 2
    assert "cannot be trained on" in outcome.err


@pytest.mark.parametrize("name", ["train", "export"])
def test_the_help_has_an_example(name: str) -> None:
    outcome = agelens(name, "--help")

    assert outcome.status == 0
    assert f"agelens {name} " in outcome.out
