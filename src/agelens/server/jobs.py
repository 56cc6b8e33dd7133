"""
What the front process and its inference processes say to each other, as plain values.

    front   -> worker   Setup, then Batch after Batch
    worker  -> front    Ready or Failed, then one Done for each Batch

Both sides are the same program on the same machine, and a message travels over a socket pair that
nobody else holds: its length, then a pickle. A worker looks at untrusted pictures, so that the
front takes from it only the types named here: see ``unpack``.
"""

from __future__ import annotations

import builtins
import io
import json
import math
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agelens import errors
from agelens.analyzer import AnalyzerOptions
from agelens.detection import DEFAULT_MIN_FACE
from agelens.errors import AgeLensError
from agelens.results import DEFAULT_AGE_GROUPS, DEFAULT_LEVEL, Analysis, AnalysisError

if TYPE_CHECKING:
    from agelens.server.inference import Analyzers

LENGTH: Final = struct.Struct("!Q")
"""What stands before each message: its bytes."""

Image: TypeAlias = bytes | NDArray[np.uint8]
Function: TypeAlias = "Callable[[Analyzers, Any], Any]"


@dataclass(frozen=True)
class PictureOptions:
    """What one request may ask for; the rest is the server's. Fields as in ``AnalyzerOptions``.

    Attributes:
        model: Name of the model; None is the server's.
        detector: "default", "none" or "insightface:DIR".
        crops: Each picture is one face crop.
        gender: False switches the gender estimate off.
        min_face: Smallest face to look for, in pixels.
        max_faces: Keep this many faces; never more than the server's own limit.
        flip: Average each face with its mirror image.
    """

    model: str | None = None
    detector: str = "default"
    crops: bool = False
    gender: bool = True
    min_face: int = DEFAULT_MIN_FACE
    max_faces: int | None = None
    flip: bool = False

    def changes(self, base: AnalyzerOptions) -> dict[str, Any]:
        """What differs from an analyzer of ``base``, for ``Analyzer.variant``."""
        wanted: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        if self.model is None:
            wanted["model"] = base.model
        if self.detector == "default":
            wanted["detector"] = base.detector
        limits = [limit for limit in (base.max_faces, self.max_faces) if limit is not None]
        wanted["max_faces"] = min(limits, default=None)
        return {name: value for name, value in wanted.items() if value != getattr(base, name)}


DEFAULT_PICTURE: Final = PictureOptions()


@dataclass(frozen=True)
class Form:
    """How an analysis is written; see ``Analysis.to_dict``.

    Attributes:
        edges: Starts of the age groups.
        level: Level of the interval.
        distribution: Add the 101 probabilities.
    """

    edges: tuple[int, ...] = DEFAULT_AGE_GROUPS
    level: float = DEFAULT_LEVEL
    distribution: bool = False


DEFAULT_FORM: Final = Form()


@dataclass(frozen=True)
class Written:
    """An analysis as it goes over the wire, and what the front has to know of it.

    Attributes:
        json: The object as ASCII JSON.
        faces: Faces found.
        abstained: Faces of which no age is told.
        error: Why the picture could not be read, or None.
    """

    json: bytes = field(repr=False)
    faces: int
    abstained: int
    error: AnalysisError | None

    @classmethod
    def of(cls, analysis: Analysis, form: Form) -> Written:
        """Write an analysis.

        Raises:
            ArgumentError: The edges or the level of the form are out of range.
        """
        wire = analysis.to_dict(edges=form.edges, level=form.level, distribution=form.distribution)
        abstained = sum(face.age.abstained for face in analysis.faces)
        text = json.dumps(wire, separators=(",", ":")).encode("ascii")
        return cls(text, len(analysis.faces), abstained, analysis.error)


@dataclass(frozen=True)
class Setup:
    """The first message to a worker.

    Attributes:
        base: The server's own options.
        nice: Added to the niceness, so that the front stays responsive.
        memory_limit_mb: Resident megabytes a worker may grow to; None sets no limit.
    """

    base: AnalyzerOptions
    nice: int
    memory_limit_mb: int | None


@dataclass(frozen=True)
class Ready:
    """The worker has loaded its weights and estimated a first face.

    Attributes:
        model: "name@version".
        resident_mb: Memory it takes.
    """

    model: str
    resident_mb: float


@dataclass(frozen=True)
class Failed:
    """The worker could not load; it ends.

    Attributes:
        error: Why.
    """

    error: Exception


@dataclass(frozen=True)
class Task:
    """A picture to analyse, or a function to call.

    Attributes:
        content: The encoded picture; or a pickled array; or a pickled (function, payload).
        kind: Which of the three.
        options: Of a picture.
        name: What results call a picture.
        form: Wanted is the ``Written`` form of the analysis, not the ``Analysis``.
        until: Time of ``time.monotonic``, which all processes share, after which nobody waits.
    """

    content: bytes = field(repr=False)
    kind: str
    options: PictureOptions = DEFAULT_PICTURE
    name: str | None = field(default=None, repr=False)
    form: Form | None = None
    until: float = math.inf


ENCODED: Final = "encoded"
ARRAY: Final = "array"
CALL: Final = "call"


@dataclass(frozen=True)
class Batch:
    """Pictures to be analysed together, or one function."""

    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Answer:
    """What became of a task.

    Attributes:
        value: An ``Analysis`` or its ``Written`` form; or what the function returned.
        error: Why there is no value; then the task cannot be done on any worker.
        seconds: How long it took.
        is_late: Nothing was done for it, for nobody waits any more.
    """

    value: Any = field(default=None, repr=False)
    error: Exception | None = None
    seconds: float = 0.0
    is_late: bool = False


@dataclass
class Times:
    """How long the pictures of a batch took.

    Attributes:
        decode_s: Seconds of each picture that was to be decoded.
        detect_s: Seconds of each picture in which faces were looked for.
        estimate_s: Seconds of each inference.
        batch_faces: Faces of each inference.
    """

    decode_s: list[float] = field(default_factory=list)
    detect_s: list[float] = field(default_factory=list)
    estimate_s: list[float] = field(default_factory=list)
    batch_faces: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Done:
    """What became of a batch.

    Attributes:
        answers: One for each task, in order; of pictures that take long, of the first ones only.
        times: How long its pictures took.
        resident_mb: Memory the worker takes afterwards.
        is_full: The worker keeps too much of the memory it may take, and should be replaced.
    """

    answers: tuple[Answer, ...]
    times: Times
    resident_mb: float
    is_full: bool


Message: TypeAlias = Setup | Batch | Ready | Failed | Done


def pack(message: Message) -> bytes:
    """A message as it stands on the wire, without its length."""
    return pickle.dumps(message, protocol=5)


# What workers answer with. Errors beside: those of AgeLens and Python's own.
_DATA: Final = {
    "agelens.server.jobs": frozenset({"Answer", "Done", "Failed", "Ready", "Times", "Written"}),
    "agelens.results": frozenset(
        {
            "AgeDistribution",
            "Analysis",
            "AnalysisError",
            "Coverage",
            "Face",
            "GenderEstimate",
            "OlderAges",
            "Quality",
        }
    ),
    "agelens.gate.decision": frozenset({"Look", "Sight"}),
    "agelens.gate.liveness": frozenset({"Reason"}),
    "numpy": frozenset({"dtype", "ndarray"}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.numeric": frozenset({"_frombuffer"}),
}
_ERRORS: Final = {"agelens.errors": AgeLensError, "builtins": Exception}


class _Unpickler(pickle.Unpickler):
    """Loads plain data and errors: a worker that a picture has taken over may send anything."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _DATA.get(module, ()):
            return super().find_class(module, name)
        if module in _ERRORS:
            place = builtins if module == "builtins" else errors
            found = getattr(place, name, None)
            if isinstance(found, type) and issubclass(found, _ERRORS[module]):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is nothing that a worker answers with")


def unpack(content: bytes | bytearray | memoryview) -> Any:
    """What a worker packed, when it holds nothing but results, errors and numbers.

    Raises:
        Exception: It holds something else, or is no pickle; ``pickle`` raises many kinds.
    """
    return _Unpickler(io.BytesIO(content)).load()


def picture_task(
    image: Image,
    options: PictureOptions,
    name: str | None = None,
    form: Form | None = None,
    *,
    until: float = math.inf,
) -> Task:
    """The task of one picture.

    Args:
        image: Encoded bytes, or (H, W, 3) uint8 RGB.
        options: What was asked for.
        name: What results call it.
        form: Wanted is the ``Written`` form of the analysis.
        until: Time of ``time.monotonic`` after which nobody waits.
    """
    if isinstance(image, np.ndarray):
        return Task(pickle.dumps(image, protocol=5), ARRAY, options, name, form, until)
    return Task(image, ENCODED, options, name, form, until)


def call_task(function: Function, payload: Any, *, until: float = math.inf) -> Task:
    """The task of calling ``function(analyzers, payload)`` in a worker; both are pickled here."""
    return Task(pickle.dumps((function, payload), protocol=5), CALL, until=until)
