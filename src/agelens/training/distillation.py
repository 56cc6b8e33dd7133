"""
Distillation: what other models say of the faces, kept beside the run and learned from.

Teachers answer once, on the canonical crop of each face, and their distributions are averaged
(Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"). Faces need no labels for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from agelens.alignment import CropSpec, similarity_transform, warp
from agelens.bundle import Bundle, find_model
from agelens.calibration import calibrate_age, calibrate_gender, decode_age, decode_gender
from agelens.data.loading import Labels, PreparedFaces, ShardFolder
from agelens.errors import ArgumentError, DataError
from agelens.estimation import load_estimator
from agelens.results import AGE_COUNT

SOFT_LABELS: Final = "soft_labels.npz"
_LEAST_SHARE: Final = 1e-4


@dataclass(frozen=True)
class Answers:
    """What a teacher says of some faces.

    Attributes:
        age: (N, 101) float32, rows sum to 1.
        female: (N,) float32 probability of female; NaN when the teacher does not say.
    """

    age: NDArray[np.float32]
    female: NDArray[np.float32]

    @classmethod
    def averaged(cls, parts: Sequence[Answers]) -> Answers:
        """The mean of several teachers' answers (a linear opinion pool)."""
        female = np.stack([part.female for part in parts])
        heard = np.isfinite(female)
        total = np.where(heard, female, 0).sum(axis=0)
        voters = heard.sum(axis=0)
        mean = np.where(voters > 0, total / np.maximum(voters, 1), np.nan)
        ages = np.mean([part.age for part in parts], axis=0)
        return cls(ages.astype(np.float32), mean.astype(np.float32))


class Teacher(Protocol):
    """A model that answers for chips of its own crop."""

    @property
    def identity(self) -> str:
        """Changes when its answers could."""
        ...

    @property
    def crop(self) -> CropSpec:
        """Of its input."""
        ...

    def answer(self, chips: NDArray[np.uint8]) -> Answers:
        """(N, size, size, 3) uint8 RGB, cut by its crop, to N answers."""
        ...


class ModelTeacher:
    """Any model of the registry, or an exported ONNX file with its card, calibrated as it says."""

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        """Load a model.

        Args:
            bundle: The model.
            threads: Threads inside one operator.
        """
        self.card = bundle.card
        self.crop = bundle.card.crop_spec()
        self._estimator = load_estimator(bundle, threads=threads)

    @property
    def identity(self) -> str:
        """Name, version, files and calibration."""
        hashes = ",".join(file.sha256 for file in self.card.files)
        return f"{self.card.identifier} {hashes} {self.card.calibration!r}"

    def answer(self, chips: NDArray[np.uint8]) -> Answers:
        """Calibrated answers; see ``Teacher.answer``."""
        raw, fields = self._estimator.estimate(chips), self.card.calibration
        age = calibrate_age(decode_age(raw.age, self.card.age), fields)
        if raw.gender is None or self.card.gender is None:
            female = np.full(len(chips), np.nan)
        else:
            female = calibrate_gender(decode_gender(raw.gender, self.card.gender), fields)
        return Answers(age.astype(np.float32), female.astype(np.float32))


def load_teachers(
    names: Sequence[str], *, accept_licence: bool = False, threads: int = 1
) -> list[ModelTeacher]:
    """Models to learn from.

    Args:
        names: As ``find_model`` takes them: a name of the registry, or the path of an ONNX file.
        accept_licence: Take research-class weights too; the student is then research-class.
        threads: Threads inside one operator.

    Raises:
        ModelNotFound, CardError, ModelCorrupt: A model is not whole.
        LicenceNotAccepted: One is research-class and ``accept_licence`` is False.
    """
    bundles = [find_model(name) for name in names]
    for bundle in bundles:
        bundle.require_licence(accept_licence)
    return [ModelTeacher(bundle, threads=threads) for bundle in bundles]


def soft_labels(
    teachers: Sequence[Teacher],
    faces: PreparedFaces,
    kept: Path,
    *,
    batch_size: int = 64,
    advance: Callable[[int, int], None] | None = None,
) -> Answers:
    """The teachers' averaged answers for every face, in the order of ``faces``.

    Args:
        teachers: One or more.
        faces: Faces that are learned from.
        kept: File that keeps the answers; read instead when it is of these teachers and faces.
        batch_size: Faces at a time.
        advance: Called with the answers given so far and all there will be.

    Raises:
        ArgumentError: The faces were prepared with less margin than a teacher needs.
        DataError: The kept file cannot be read.
    """
    key = faces_digest([teacher.identity for teacher in teachers], faces)
    found = read_answers(kept, key)
    if found is not None:
        return found
    parts = []
    for number, teacher in enumerate(teachers):
        batches = []
        for start in range(0, len(faces), batch_size):
            rows = range(start, min(start + batch_size, len(faces)))
            batches.append(teacher.answer(_chips(teacher, faces, rows)))
            if advance is not None:
                advance(number * len(faces) + rows.stop, len(teachers) * len(faces))
        parts.append(
            Answers(
                np.concatenate([batch.age for batch in batches]),
                np.concatenate([batch.female for batch in batches]),
            )
        )
    answers = Answers.averaged(parts)
    write_answers(kept, key, answers)
    return answers


def faces_digest(sources: Sequence[str], faces: PreparedFaces) -> str:
    """Names what was said of these faces: another face or another source, another digest.

    Args:
        sources: Identities of those who say it.
        faces: In their order.
    """
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source}\n".encode())
    for folder in faces.folders:
        digest.update(f"{folder.digest}\n".encode())
    digest.update("\n".join(faces.labels.source_file.tolist()).encode())
    return digest.hexdigest()


def within_labels(age: NDArray[np.float32], labels: Labels) -> NDArray[np.float32]:
    """What teachers say of the ages that a face's label allows.

    Of an interval such as 20-29 the label says that the age lies in it, and the teachers how its
    ages are to be weighed against each other.

    Args:
        age: (N, 101) probabilities.
        labels: Of the same faces; without an age, a row stays as it is.

    Returns:
        (N, 101), rows sum to 1; even where the teachers gave the whole interval next to nothing.
    """
    ages = np.arange(AGE_COUNT)
    low, high = labels.low[:, None], labels.high[:, None]
    allowed = (low < 0) | ((ages >= low) & (ages <= high))
    kept = np.where(allowed, age.astype(np.float64) + _LEAST_SHARE, 0)
    result: NDArray[np.float32] = (kept / kept.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def read_answers(path: Path, key: str) -> Answers | None:
    """Answers that were kept under this key; None when there are none.

    Raises:
        DataError: The file cannot be read.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["key"]) != key:
                return None
            return Answers(kept["age"].astype(np.float32), kept["female"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it") from error


def write_answers(path: Path, key: str, answers: Answers) -> None:
    """Keep answers under a key, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            # float32: half precision would flush the tails that P(age >= 18) is made of.
            np.savez(stream, key=np.array(key), age=answers.age, female=answers.female)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _chips(teacher: Teacher, faces: PreparedFaces, rows: range) -> NDArray[np.uint8]:
    size = teacher.crop.size
    chips = np.empty((len(rows), size, size, 3), np.uint8)
    for place, row in enumerate(rows):
        folder = faces.folder_of(row)
        matrix = _between(folder, teacher.crop)
        chips[place] = warp(faces.prepared_chip(row), matrix, size, teacher.crop.fill)
    return chips


def _between(folder: ShardFolder, wanted: CropSpec) -> NDArray[np.float64]:
    """From a prepared chip to a teacher's, over the places of the same five landmarks."""
    if wanted.margin > folder.margin + 1e-9:
        raise ArgumentError(
            f"{folder.path}: prepared with a margin of {folder.margin}, a teacher needs "
            f"{wanted.margin}: prepare the faces again with a larger margin"
        )
    prepared = CropSpec(folder.size, folder.margin, folder.landmarks)
    return similarity_transform(prepared.landmarks_px, wanted.landmarks_px)


__all__ = [
    "SOFT_LABELS",
    "Answers",
    "ModelTeacher",
    "Teacher",
    "faces_digest",
    "load_teachers",
    "read_answers",
    "soft_labels",
    "within_labels",
    "write_answers",
]
