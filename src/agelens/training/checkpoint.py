"""
Checkpoints: a network's weights in safetensors, with everything that says what they are.

The file's own header carries the recipe, the training data with their licences, the crop and the
measured figures, so that one checkpoint is enough to go on from, to evaluate or to export. Nothing
here is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

try:
    import torch
    from safetensors.torch import save
    from torch import Tensor
except ImportError as error:
    from agelens.errors import MissingExtra

    raise MissingExtra("train", "training") from error

import numpy as np

from agelens.bundle import ModelCard, find_model, list_models
from agelens.data.loading import Labels, ShardFolder
from agelens.errors import ArgumentError, CardError, MissingExtra, ModelCorrupt, ModelNotFound
from agelens.training.journal import write_whole
from agelens.training.network import AgeGenderNetwork, initialise_backbone, read_safetensors
from agelens.training.recipe import Recipe

SCHEMA: Final = "agelens.checkpoint/1"
BEST: Final = "best.safetensors"
LAST: Final = "last.safetensors"


@dataclass(frozen=True)
class DatasetUsed:
    """A data set that a network learned from, directly or through another network.

    Attributes:
        name: As in the prepared faces; of a teacher, the model's name.
        licence: In its authors' words.
        licence_class: ``commercial`` or ``research``.
        rows: Faces of it in the training split; None when another network learned from them.
    """

    name: str
    licence: str
    licence_class: str
    rows: int | None


@dataclass(frozen=True)
class TrainingData:
    """What a network learned from, and how those faces were cropped.

    Attributes:
        landmarks: (5, 2) places of the landmarks in the unit face square.
        fill: Grey level where a picture ends.
        datasets: By falling number of rows.
        folders: Where the prepared faces were; for exports on the same machine.
        digest: Of the shards.
    """

    landmarks: tuple[tuple[float, float], ...]
    fill: int
    datasets: tuple[DatasetUsed, ...]
    folders: tuple[str, ...]
    digest: str

    @property
    def licence_class(self) -> str:
        """``research`` as soon as one of the data sets is."""
        classes = {used.licence_class for used in self.datasets}
        return "commercial" if classes == {"commercial"} else "research"

    @classmethod
    def of(
        cls,
        folders: Sequence[ShardFolder],
        labels: Labels,
        inherited: Sequence[DatasetUsed] = (),
    ) -> TrainingData:
        """Describe the faces of a training split.

        Args:
            folders: Where they are; all with one landmark template.
            labels: Of the faces that are learned from.
            inherited: What the first weights and the teachers learned from.

        Raises:
            ArgumentError: The folders were prepared with different templates.
        """
        if len({folder.landmarks for folder in folders}) != 1:
            raise ArgumentError(
                "the folders were prepared with different landmark templates: prepare them alike"
            )
        terms: dict[str, Mapping[str, Any]] = {}
        for folder in folders:
            terms.update(folder.datasets)
        names, counts = np.unique(labels.dataset, return_counts=True)
        used = [
            DatasetUsed(
                str(name),
                str(terms.get(str(name), {}).get("licence") or "not stated"),
                str(terms.get(str(name), {}).get("licence_class") or "research"),
                int(count),
            )
            for name, count in zip(names, counts, strict=True)
        ]
        return cls(
            landmarks=folders[0].landmarks,
            fill=folders[0].fill,
            datasets=tuple(
                sorted([*used, *_unseen(inherited, used)], key=lambda one: -(one.rows or 0))
            ),
            folders=tuple(str(folder.path.resolve()) for folder in folders),
            digest="+".join(folder.digest[:16] for folder in folders),
        )

    @classmethod
    def from_dict(cls, wire: Mapping[str, Any]) -> TrainingData:
        """Read back what ``dataclasses.asdict`` gave."""
        return cls(
            landmarks=tuple((float(x), float(y)) for x, y in wire["landmarks"]),
            fill=int(wire["fill"]),
            datasets=tuple(DatasetUsed(**used) for used in wire["datasets"]),
            folders=tuple(wire["folders"]),
            digest=str(wire["digest"]),
        )


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what is known of it.

    Attributes:
        path: The file.
        network: In evaluation mode, on the CPU.
        recipe: Complete: with ``network`` and ``heads``.
        data: What it learned from.
        epoch: Epochs it has seen.
        metrics: On the validation split.
    """

    path: Path
    network: AgeGenderNetwork
    recipe: Recipe
    data: TrainingData
    epoch: int
    metrics: Mapping[str, float]


def save_checkpoint(
    path: Path,
    network: AgeGenderNetwork,
    recipe: Recipe,
    data: TrainingData,
    *,
    epoch: int,
    metrics: Mapping[str, float],
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: Where to; replaced when it is there.
        network: Its weights are stored in float32 as they are.
        recipe: Complete: with ``network`` and ``heads``.
        data: What it learned from.
        epoch: Epochs it has seen.
        metrics: On the validation split.
    """
    header = {
        "schema": SCHEMA,
        "recipe": json.dumps(recipe.to_table()),
        "data": json.dumps(asdict(data)),
        "epoch": str(epoch),
        "metrics": json.dumps(dict(metrics)),
    }
    write_safetensors(path, network.state_dict(), header)


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Read a checkpoint, or the best one of a run's folder.

    Raises:
        ModelNotFound: There is none.
        ModelCorrupt: The file is damaged or no checkpoint of ours.
    """
    path = resolve_checkpoint(source)
    tensors, header = read_safetensors(path)
    if header.get("schema") != SCHEMA:
        raise ModelCorrupt(
            f"{path}: its header says schema {header.get('schema')!r}, expected {SCHEMA!r}"
        )
    try:
        recipe = Recipe.from_table(json.loads(header["recipe"]), where=str(path))
        data = TrainingData.from_dict(json.loads(header["data"]))
        metrics = json.loads(header["metrics"])
        epoch = int(header["epoch"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelCorrupt(f"{path}: its header cannot be read: {error}") from error
    network = build_network(recipe)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelCorrupt(f"{path}: the weights are not of its own recipe: {error}") from error
    return Checkpoint(path, network.eval(), recipe, data, epoch, metrics)


def resolve_checkpoint(source: str | Path) -> Path:
    """A checkpoint's path as it is, a run's folder to its best checkpoint.

    Raises:
        ModelNotFound: There is neither.
    """
    path = Path(source)
    if not path.is_dir():
        if not path.is_file():
            raise ModelNotFound(f"{path}: no such checkpoint or run folder")
        return path
    if not (path / BEST).is_file():
        raise ModelNotFound(f"{path}: holds no {BEST}; has the run finished an epoch?")
    return path / BEST


def build_network(recipe: Recipe) -> AgeGenderNetwork:
    """The network of a complete recipe, with random weights."""
    if recipe.network is None or recipe.heads is None:
        raise ArgumentError("the recipe has no [network] or [heads]")
    return AgeGenderNetwork(recipe.network, recipe.heads)


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        recipe: Complete.
        network: With its first weights.
        notes: Sentences that say where they came from.
        inherited: What they learned from.
    """

    recipe: Recipe
    network: AgeGenderNetwork
    notes: tuple[str, ...]
    inherited: tuple[DatasetUsed, ...] = ()


def first_network(recipe: Recipe) -> Start:
    """The network that a run starts from.

    Args:
        recipe: With ``init``, its missing parts come from that network.

    Raises:
        ModelNotFound: The weights are not there.
        ArgumentError: They do not fit.
    """
    if recipe.init is None:
        network = build_network(recipe)
        return Start(recipe, network, (initialise_backbone(network),))
    tensors, known, inherited = _trained_weights(recipe.init)
    complete = recipe.model_copy(
        update={
            "network": recipe.network or known.network,
            "heads": recipe.heads or known.heads,
        }
    )
    network = build_network(complete)
    notes = _warm_start(network, tensors, recipe.init)
    return Start(complete, network, notes, inherited)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write tensors and text, whole or not at all."""
    # A clone each: shared or strided memory is refused by the format.
    plain = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    write_whole(path, save(plain, metadata=dict(header)))


# --- starting from a trained network --------------------------------------------------------------


def _trained_weights(
    source: str,
) -> tuple[dict[str, Tensor], Recipe, tuple[DatasetUsed, ...]]:
    if not _names_a_model(source):
        checkpoint = load_checkpoint(source)
        tensors = dict(checkpoint.network.state_dict())
        return tensors, checkpoint.recipe, _as_inherited(checkpoint.data.datasets)
    bundle = find_model(source)
    bundle.verify()
    if not bundle.card.recipe:
        raise CardError(f"{bundle.origin}: has no [recipe], so it cannot be trained on")
    recipe = Recipe.from_table(bundle.card.recipe, where=bundle.origin)
    return onnx_weights(bundle.path()), recipe, datasets_of(bundle.card)


def _names_a_model(source: str) -> bool:
    """An ONNX file or a model of the registry, rather than a run or a checkpoint."""
    if Path(source).exists():
        return source.endswith(".onnx")
    named = {one for model in list_models() for one in (model.card.name, model.card.identifier)}
    return source.endswith(".onnx") or source in {"default", *named}


def datasets_of(card: ModelCard) -> tuple[DatasetUsed, ...]:
    """What a model of the registry learned from, as far as its card tells."""
    if not card.training_data:
        return (DatasetUsed(card.identifier, card.licence, card.licence_class, None),)
    return tuple(
        DatasetUsed(one.name, one.licence, one.licence_class, None) for one in card.training_data
    )


def _as_inherited(used: Sequence[DatasetUsed]) -> tuple[DatasetUsed, ...]:
    return tuple(replace(one, rows=None) for one in used)


def _unseen(inherited: Sequence[DatasetUsed], used: Sequence[DatasetUsed]) -> list[DatasetUsed]:
    """Inherited data sets that are not learned from directly as well, each once."""
    known = {one.name for one in used}
    unseen = {one.name: one for one in inherited if one.name not in known}
    return list(unseen.values())


def onnx_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a network that ``export`` wrote, under their names in the network.

    Raises:
        ModelNotFound: There is no such file.
        ArgumentError: Its weights have no names, as those of an int8 export.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtra("train", "starting from an ONNX model") from error
    if not path.is_file():
        raise ModelNotFound(f"{path}: no such model")
    graph = onnx.load(path).graph
    tensors = {
        initializer.name: torch.from_numpy(numpy_helper.to_array(initializer).copy())
        for initializer in graph.initializer
    }
    # Half-precision files keep each weight beside the cast that widens it.
    suffix = ".half"
    named = {
        name.removeprefix("network.").removesuffix(suffix): tensor
        for name, tensor in tensors.items()
    }
    weights = {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in named.items()
        if name.split(".")[0] in ("backbone", "representation", "heads", "pixel_mean", "pixel_std")
    }
    quantised = any(node.op_type == "DequantizeLinear" for node in graph.node)
    if quantised or not any(name.startswith("backbone.") for name in weights):
        raise ArgumentError(
            f"{path}: its weights cannot be taken out (an int8 export, or another program's); "
            "start from its checkpoint or from the fp32 or fp16 export"
        )
    return weights


def _warm_start(
    network: AgeGenderNetwork, tensors: Mapping[str, Tensor], source: str
) -> tuple[str, ...]:
    own = network.state_dict()
    fitting = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    fresh = sorted(k for k in own if k not in fitting and not k.endswith("num_batches_tracked"))
    strangers = [k for k in fresh if k.startswith("backbone.")]
    if strangers:
        raise ArgumentError(
            f"init = {source!r} is not this recipe's backbone: {len(strangers)} of its tensors, "
            f"as {strangers[0]}, are missing there or of another shape; leave [network] out to "
            "take the network as it is"
        )
    network.load_state_dict(fitting, strict=False)
    note = f"all weights from {source} ({len(fitting)} tensors)"
    if not fresh:
        return (note,)
    return (
        f"weights from {source} ({len(fitting)} tensors)",
        f"started afresh: {', '.join(fresh)}",
    )


__all__ = [
    "BEST",
    "LAST",
    "Checkpoint",
    "DatasetUsed",
    "Start",
    "TrainingData",
    "build_network",
    "datasets_of",
    "first_network",
    "load_checkpoint",
    "onnx_weights",
    "resolve_checkpoint",
    "save_checkpoint",
    "write_safetensors",
]
