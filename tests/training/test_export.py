"""Export: the file says what the network says, its card holds, and it runs without torch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from agelens.bundle import find_model
from agelens.calibration import decode_age, decode_gender
from agelens.data.loading import PreparedFaces, ShardFolder
from agelens.errors import ArgumentError, CardError
from agelens.estimation import load_estimator
from agelens.training import Recipe, load_checkpoint, train
from agelens.training.checkpoint import TrainingData, onnx_weights, save_checkpoint
from agelens.training.export import export
from agelens.training.network import AgeGenderNetwork

Tiny = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(prepared: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(Recipe.from_table(tiny(loop__epochs=3)), prepared, out)
    return out


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    export(run, out, name="tiny", version="1.2", limits=["Knows stripes only."])
    return out / "tiny.onnx"


def chips(prepared: Path, count: int = 9) -> np.ndarray:
    faces = PreparedFaces([ShardFolder(prepared)], split="val", size=32, margin=0.4)
    return np.stack([faces.face(row) for row in range(count)])


def said_by_network(run: Path, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    network = load_checkpoint(run).network
    with torch.no_grad():
        outputs = network(torch.from_numpy(faces))
        ages = network.probabilities(outputs).numpy()
        return ages, torch.sigmoid(outputs["gender"][:, 0]).numpy()


@pytest.mark.parametrize("count", [1, 2, 9])
def test_exported_file_says_what_the_network_says(
    run: Path, exported: Path, prepared: Path, count: int
) -> None:
    faces = chips(prepared, count)
    bundle = find_model(str(exported))
    assert bundle.card.gender is not None

    raw = load_estimator(bundle).estimate(faces)

    ages, female = said_by_network(run, faces)
    np.testing.assert_allclose(decode_age(raw.age, bundle.card.age), ages, atol=1e-5)
    assert raw.gender is not None
    np.testing.assert_allclose(decode_gender(raw.gender, bundle.card.gender), female, atol=1e-5)


def test_card_tells_crop_data_licence_recipe_and_limits(exported: Path, run: Path) -> None:
    card = find_model(str(exported)).card

    assert card.identifier == "tiny@1.2"
    assert (card.input.size, card.crop.margin) == (32, 0.4)
    assert card.licence_class == "research"
    assert {(d.name, d.rows) for d in card.training_data} == {("exact", 128), ("ranged", 64)}
    assert card.limits[0] == "Knows stripes only."
    assert Recipe.from_table(card.recipe).network == load_checkpoint(run).recipe.network
    figures = {figure.metric: figure.value for figure in card.figures}
    assert figures["mae"] == pytest.approx(load_checkpoint(run).metrics["mae"], abs=1e-4)


def test_exported_file_runs_where_there_is_no_torch(exported: Path, prepared: Path) -> None:
    program = f"""
import sys

for name in ("torch", "timm", "onnx", "accelerate", "albumentations"):
    sys.modules[name] = None
import numpy as np
from agelens.bundle import find_model
from agelens.calibration import Calibrator
from agelens.estimation import load_estimator

bundle = find_model({str(exported)!r})
raw = load_estimator(bundle).estimate(np.zeros((3, 32, 32, 3), np.uint8))
ages = Calibrator.from_card(bundle.card).ages(raw)
print(len(ages), 0 <= ages[0].mean <= 100)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout.split() == ["3", "True"], done.stderr


HEADS: dict[str, dict[str, Any]] = {
    "regression": {"regression": {"loss": "l1"}},
    "ranges": {"ranges": {"starts": [0, 5, 30, 90]}},
    "coral": {"ordinal": {"loss": "coral"}},
    "corn": {"ordinal": {"loss": "corn"}},
    "mixture": {"distribution": {}, "ordinal": {}, "exported": "mixture"},
    "without gender": {"distribution": {}, "gender": "off"},
}


@pytest.mark.parametrize("name", HEADS)
def test_every_kind_of_head_is_exported_as_its_card_says(
    name: str, prepared: Path, tiny: Tiny, tmp_path: Path
) -> None:
    recipe = Recipe.from_table(tiny(heads=HEADS[name]))
    assert recipe.network is not None
    assert recipe.heads is not None
    torch.manual_seed(1)
    network = AgeGenderNetwork(recipe.network, recipe.heads).eval()
    folder = ShardFolder(prepared)
    data = TrainingData.of([folder], folder.labels)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, network, recipe, data, epoch=1, metrics={"mae": float("nan")})

    report = export(path, tmp_path, name="kind", version="1")

    faces = chips(prepared)
    bundle = find_model(str(tmp_path / "kind.onnx"))
    raw = load_estimator(bundle).estimate(faces)
    with torch.no_grad():
        expected = network.probabilities(network(torch.from_numpy(faces))).numpy()
    np.testing.assert_allclose(decode_age(raw.age, bundle.card.age), expected, atol=2e-5)
    assert report.age_difference_max < 0.01
    assert (bundle.card.gender is None) == (name == "without gender")


def test_half_weights_halve_the_file_and_hardly_move_the_ages(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    report = export(run, tmp_path, name="half", version="1", precision="fp16")

    whole = onnx.load(exported).graph.initializer
    large = sum(4 * np.prod(t.dims) for t in whole if np.prod(t.dims) >= 1024)
    saved = exported.stat().st_size - report.size_bytes
    assert saved == pytest.approx(large / 2, rel=0.05)
    assert 0 < report.age_difference_max < 0.5
    assert report.age_error_after == pytest.approx(report.age_error_before, abs=0.1)


def test_int8_quantises_convolutions_and_tells_the_difference(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    report = export(run, tmp_path, name="quantised", version="1", precision="int8")

    nodes = onnx.load(report.model).graph.node
    assert any(node.op_type == "DequantizeLinear" for node in nodes)
    assert report.size_bytes < exported.stat().st_size
    assert report.age_error_after == pytest.approx(report.age_error_before, abs=2.0)
    assert any("int8" in limit for limit in find_model(str(report.model)).card.limits)
    assert len(report.lines()) == 3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_training_goes_on_from_an_exported_model(
    run: Path, prepared: Path, tiny: Tiny, tmp_path: Path, precision: Any
) -> None:
    export(run, tmp_path, name="start", version="1", precision=precision)
    weights = onnx_weights(tmp_path / "start.onnx")
    own = load_checkpoint(run).network.state_dict()
    table = tiny(init=str(tmp_path / "start.onnx"), optimizer__learning_rate=1e-9)
    del table["network"], table["heads"]

    result = train(Recipe.from_table(table), prepared, tmp_path / "again", fast_dev_run=True)

    named = [key for key in own if not key.endswith("num_batches_tracked")]
    rounding = 0 if precision == "fp32" else 2e-3
    for key in named:
        np.testing.assert_allclose(weights[key], own[key], rtol=rounding, atol=1e-7)
    assert result.metrics["faces"] == 32
    again = load_checkpoint(tmp_path / "again")
    assert again.data.licence_class == "research"


def test_int8_model_is_not_a_start(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path, name="quantised", version="1", precision="int8")

    with pytest.raises(ArgumentError, match="its weights cannot be taken out"):
        onnx_weights(tmp_path / "quantised.onnx")


def test_int8_without_faces_asks_for_some(run: Path, prepared: Path, tmp_path: Path) -> None:
    lonely = lonely_checkpoint(run, tmp_path)

    with pytest.raises(ArgumentError, match="give calibration_data"):
        export(lonely, tmp_path / "out", name="tiny", version="1", precision="int8")

    report = export(lonely, tmp_path / "out", name="tiny", version="1", calibration_data=prepared)
    assert report.faces == 64


def test_export_without_faces_compares_on_noise_and_says_so(run: Path, tmp_path: Path) -> None:
    report = export(lonely_checkpoint(run, tmp_path), tmp_path, name="tiny", version="1")

    assert "noise" in report.faces_from
    assert np.isnan(report.age_error_before)
    assert report.age_difference_max < 0.01


def lonely_checkpoint(run: Path, folder: Path) -> Path:
    """The run's checkpoint, on a machine where its faces are not."""
    from dataclasses import replace

    known = load_checkpoint(run)
    path = folder / "lonely.safetensors"
    data = replace(known.data, folders=(str(folder / "gone"),))
    save_checkpoint(path, known.network, known.recipe, data, epoch=1, metrics=known.metrics)
    return path


def test_name_that_a_card_cannot_have_writes_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CardError, match="name"):
        export(run, tmp_path / "out", name="Not A Name", version="1")

    assert not (tmp_path / "out").exists()
