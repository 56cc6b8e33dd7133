"""
The chain from a picture to its faces' ages and genders, as one thread-safe call.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agelens.alignment import CropSpec, align, align_box
from agelens.bundle import Bundle, find_model
from agelens.calibration import Calibrator
from agelens.detection import (
    DEFAULT_MIN_FACE,
    Detections,
    Detector,
    Scrfd,
    YuNet,
    load_detector,
)
from agelens.errors import ArgumentError, ImageError, ModelError
from agelens.estimation import DEFAULT_BATCH, Estimator, estimate_in_batches, load_estimator
from agelens.images import (
    DEFAULT_LIMITS,
    ImageLimits,
    ImageSource,
    Picture,
    load_image,
    source_name,
)
from agelens.quality import DEFAULT_QUALITY_LIMITS, QualityLimits, measure
from agelens.results import (
    AgeDistribution,
    Analysis,
    AnalysisError,
    Face,
    GenderEstimate,
    Origin,
    Quality,
)
from agelens.sources import SourceItem


@dataclass(frozen=True)
class AnalyzerOptions:
    """How an ``Analyzer`` works; plain values, so that they can be sent to worker processes.

    Attributes:
        model: Name, path or "insightface:DIR"; see ``bundle.find_model``.
        detector: "default", "none" (the whole picture is one face) or "insightface:DIR".
        crops: Each picture is one face crop: fall back to the whole picture when no face is found,
            and keep only the most prominent face.
        gender: False switches the gender estimate off.
        min_face: Smallest face to look for, in pixels of the picture; smaller ones are left out.
            Pictures of 8192 px and more are decoded at a half, a quarter or an eighth of their
            size, and the smallest face found there is so much larger.
        max_faces: Keep this many faces, the most prominent first; None keeps all.
        min_score: Least detector confidence, 0..1.
        quality: From where on a face is not usable and its estimate abstains.
        flip: Average each face with its mirror image: a little accuracy for twice the time.
        limits: Limits on the pictures.
        allow_urls: Fetch sources that are http(s) addresses.
        accept_licence: Accept a research-class model licence.
        threads: Threads inside one inference.
        batch: Faces of one inference at most.
    """

    model: str = "default"
    detector: str = "default"
    crops: bool = False
    gender: bool = True
    min_face: int = DEFAULT_MIN_FACE
    max_faces: int | None = None
    min_score: float = 0.7
    quality: QualityLimits = DEFAULT_QUALITY_LIMITS
    flip: bool = False
    limits: ImageLimits = DEFAULT_LIMITS
    allow_urls: bool = False
    accept_licence: bool = False
    threads: int = 1
    batch: int = DEFAULT_BATCH

    def __post_init__(self) -> None:
        for name in ("min_face", "max_faces", "threads", "batch"):
            value = getattr(self, name)
            if name == "max_faces" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name} must be a whole number of 1 or more, got {value!r}")
        if not isinstance(self.min_score, int | float) or not 0 < self.min_score <= 1:
            raise ArgumentError(f"min_score must be over 0 and at most 1, got {self.min_score!r}")
        for name, kind in (("quality", QualityLimits), ("limits", ImageLimits)):
            if not isinstance(getattr(self, name), kind):
                raise ArgumentError(
                    f"{name} must be {kind.__name__}(...), got {getattr(self, name)!r}"
                )
        for name in ("crops", "gender", "flip", "allow_urls", "accept_licence"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("model", "detector"):
            if not isinstance(getattr(self, name), str):
                raise ArgumentError(f"{name} must be text, got {getattr(self, name)!r}")


@dataclass(frozen=True, eq=False)
class Cutout:
    """One face before it is estimated.

    Attributes:
        box: x0 y0 x1 y1 in pixels of the upright picture.
        score: Confidence of the detector, 0..1; 1 for a box that was given.
        landmarks: (5, 2) pixels of the upright picture, or None.
        origin: Where the box comes from; "whole_picture" where no face was found.
        quality: What the pixels allow.
        chip: (size, size, 3) uint8 RGB, cut by the model's crop.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: NDArray[np.float32] | None
    origin: Origin
    quality: Quality
    chip: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture with its faces cut out, or the reason why there are none.

    Attributes:
        name: Where the picture came from, or None.
        width: Pixels of the upright picture; 0 when it could not be read.
        height: Pixels of the upright picture; 0 when it could not be read.
        faces: From the most to the least prominent.
        error: Why there are none, or None.
    """

    name: str | None
    width: int
    height: int
    faces: tuple[Cutout, ...]
    error: AnalysisError | None = None

    @classmethod
    def unreadable(cls, error: ImageError, name: str | None = None) -> Scene:
        """A picture that could not be read."""
        return cls(name or error.where, 0, 0, (), AnalysisError(error.code, error.message))


@dataclass(frozen=True, eq=False)
class _Weights:
    """What is loaded, with which options, and in which process."""

    pid: int
    options: AnalyzerOptions
    bundle: Bundle
    detector: Detector | None
    estimator: Estimator
    calibrator: Calibrator
    crop: CropSpec


class Analyzer:
    """Finds faces and estimates age and gender.

    Thread-safe: it holds weights only, so that one instance serves all threads of a process, and
    the result of a picture does not depend on what else runs. It can be pickled and survives a
    fork: weights are loaded again in the new process. Weights are loaded when it is made, so that
    a wrong model fails at once.

    Example:
        >>> from agelens import Analyzer
        >>> analyzer = Analyzer(max_faces=5)
        >>> analysis = analyzer("tests/faces/astronaut.jpg")
        >>> len(analysis.faces), analysis.faces[0].gender.label
        (1, 'female')
    """

    def __init__(self, options: AnalyzerOptions | None = None, /, **changes: Any) -> None:
        """Load a model and a detector.

        Args:
            options: All options at once; the default ones when left out.
            **changes: Single options by the names of ``AnalyzerOptions``.

        Raises:
            ArgumentError: An unknown option, or a value out of range.
            ModelNotFound, ModelCorrupt, CardError, ModelError: The model or the detector.
            LicenceNotAccepted: A research-class model without ``accept_licence=True``.
        """
        if options is not None and not isinstance(options, AnalyzerOptions):
            raise ArgumentError(
                f"options must be AnalyzerOptions, got {options!r}; name single options, "
                "as Analyzer(model='cc0')"
            )
        changed = _changed(options or AnalyzerOptions(), changes)
        self._open(changed, find_model(changed.model), None)

    def variant(self, **changes: Any) -> Analyzer:
        """An analyzer with other options that shares the loaded weights.

        Only another model, detector, ``min_score`` or ``threads`` is loaded; and the gender network
        where it is one of its own and was left out.

        Args:
            **changes: Single options by the names of ``AnalyzerOptions``.

        Raises:
            ArgumentError: An unknown option, or a value out of range.
            ModelNotFound, ModelCorrupt, CardError, ModelError: Another model or detector.
            LicenceNotAccepted: A research-class model without ``accept_licence=True``.
        """
        options = _changed(self.options, changes)
        is_same = options.model == self.options.model
        made = object.__new__(type(self))
        made._open(options, self.bundle if is_same else find_model(options.model), self)
        return made

    def _open(self, options: AnalyzerOptions, bundle: Bundle, relative: Analyzer | None) -> None:
        bundle.require_licence(options.accept_licence)
        self.options = options
        self.bundle: Bundle = bundle
        self._lock = threading.Lock()
        self._of_parents: tuple[_Weights, ...] = ()
        self._weights = self._load(None if relative is None else relative._loaded())

    @property
    def model(self) -> str:
        """Name and version of the model, as "name@version"."""
        return self.bundle.card.identifier

    def __repr__(self) -> str:
        return f"Analyzer(model={self.model!r}, detector={self.options.detector!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["options"])  # type: ignore[misc]

    # --- one picture -----------------------------------------------------------------------------

    def __call__(self, source: ImageSource, *, boxes: ArrayLike | None = None) -> Analysis:
        """Analyse one picture.

        Args:
            source: A path, bytes, a binary file, a PIL image, or an array (RGB, grey, RGBA).
            boxes: (N, 4) x0 y0 x1 y1 pixels of the upright picture: the caller's own faces, in the
                order of the results; nothing is detected then.

        Raises:
            ImageError: The picture cannot be read; ``code`` says why.
            ArgumentError: The boxes are not (N, 4), or one is empty or outside the picture.
        """
        scene = self._locate(self.read(source), boxes)
        return self._estimate([scene])[0]

    def chips(self, source: ImageSource, *, boxes: ArrayLike | None = None) -> NDArray[np.uint8]:
        """The faces of a picture as the model sees them, most prominent first.

        Returns:
            (N, size, size, 3) uint8 RGB, cut by the model's crop; usable or not.

        Raises:
            ImageError: The picture cannot be read.
        """
        faces = self._locate(self.read(source), boxes).faces
        size = self.bundle.card.input.size
        return (
            np.stack([face.chip for face in faces])
            if faces
            else np.zeros((0, size, size, 3), np.uint8)
        )

    def cut(self, picture: Picture) -> tuple[Cutout, ...]:
        """The faces of a picture that was read before, most prominent first, usable or not.

        For those who estimate the chips themselves, such as an evaluation that has to know what the
        model says of faces on which the analyzer abstains.
        """
        return self._locate(picture, None).faces

    @property
    def estimator(self) -> Estimator:
        """The loaded network, for those who bring their own chips."""
        return self._loaded().estimator

    def analyze_many(self, sources: Iterable[ImageSource]) -> list[Analysis]:
        """Analyse pictures in overlapping stages; see ``stream``."""
        return list(self.stream(sources))

    # --- many pictures ---------------------------------------------------------------------------

    def stream(
        self,
        sources: Iterable[ImageSource | SourceItem],
        *,
        workers: int | None = None,
        ahead: int | None = None,
    ) -> Generator[Analysis, None, None]:
        """Analyse pictures one after another, in order, in overlapping stages.

        Worker threads decode, detect and align; faces of several pictures are then estimated in
        one batch. At most ``ahead`` pictures are in memory. A picture that cannot be read gives
        an ``Analysis`` with an ``error``. Closing the iterator stops the work.

        Args:
            sources: As for a call; or ``SourceItem`` rows, whose names the results then carry.
            workers: Threads that decode and detect; None takes one a core.
            ahead: Pictures under way at most; None takes four a worker.
        """
        if isinstance(sources, str | bytes | os.PathLike):
            raise ArgumentError(
                f"several sources are expected, got {sources!r}; pass a list, or call the analyzer "
                "itself for one picture"
            )
        for name, number in (("workers", workers), ("ahead", ahead)):
            if number is not None and number < 1:
                raise ArgumentError(f"{name} must be 1 or more, got {number}")
        threads = workers or os.cpu_count() or 1
        room = ahead or 4 * threads
        iterator = iter(sources)
        waiting: deque[Future[Scene]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="agelens")
        ended: Exception | None = None

        def refill(held: int = 0) -> None:
            nonlocal ended
            while ended is None and len(waiting) + held < room:
                try:
                    source = next(iterator)
                except Exception as error:  # what was read before it is still delivered
                    ended = error
                else:
                    waiting.append(pool.submit(self.locate, source))

        try:
            refill()
            while waiting:
                scenes = self._next_scenes(waiting)
                refill(len(scenes))  # the workers go on while these faces are estimated
                yield from self.estimate(scenes)
                refill()
            if not isinstance(ended, StopIteration):
                assert ended is not None  # nothing waits once the sources have ended
                raise ended
        finally:
            for future in waiting:
                future.cancel()
            pool.shutdown(wait=True, cancel_futures=True)

    def _next_scenes(self, waiting: deque[Future[Scene]]) -> list[Scene]:
        """The first scene, waited for, and those that follow and are ready, up to a batch."""
        scenes = [waiting.popleft().result()]
        faces = len(scenes[0].faces)
        while waiting and waiting[0].done() and faces < self.options.batch:
            scenes.append(waiting.popleft().result())
            faces += len(scenes[-1].faces)
        return scenes

    # --- stages ----------------------------------------------------------------------------------

    def read(self, source: ImageSource) -> Picture:
        """Read one picture within this analyzer's limits: the first stage of a call.

        Raises:
            ImageError: The picture cannot be read; ``code`` says why.
        """
        return load_image(source, limits=self.options.limits, allow_urls=self.options.allow_urls)

    def locate(self, source: Picture | ImageSource | SourceItem) -> Scene:
        """Find the faces of one picture and cut them out: the second stage of a call.

        Args:
            source: What ``read`` gave, or as for ``stream``.

        Returns:
            The scene; with an ``error`` when the picture cannot be read. ``estimate`` takes it,
            together with others.
        """
        name = (source.name or None) if isinstance(source, SourceItem | Picture) else None
        image = source.image if isinstance(source, SourceItem) else source
        try:
            if isinstance(source, SourceItem) and source.error is not None:
                raise source.error
            assert image is not None  # an item without an error has a picture
            picture = image if isinstance(image, Picture) else self.read(image)
            scene = self._locate(picture, None)
        except ImageError as error:
            return Scene.unreadable(error, name)
        except ArgumentError:
            raise  # the caller's mistake, not the picture's
        except Exception as error:  # one picture must never end a run of a million
            message = f"{type(error).__name__}: {error}; please report it with the picture"
            where = name or source_name(image)
            return Scene(where, 0, 0, (), AnalysisError("internal", message))
        return replace(scene, name=name or scene.name)

    def _locate(self, picture: Picture, boxes: ArrayLike | None) -> Scene:
        weights = self._loaded()
        detections, origin = self._detect(picture, boxes, weights)
        faces = tuple(
            self._cut(picture, detections, row, origin, weights) for row in range(len(detections))
        )
        return Scene(picture.name, picture.width, picture.height, faces)

    def _detect(
        self, picture: Picture, boxes: ArrayLike | None, weights: _Weights
    ) -> tuple[Detections, Origin]:
        if boxes is not None:
            return _given(boxes, picture), "caller"
        if weights.detector is not None:
            found = weights.detector.detect(picture.pixels)
            found = found.take(self._prominent(found, picture))
            if len(found) or not self.options.crops:
                return found, "detector"
        height, width = picture.pixels.shape[:2]
        whole = np.array([[0, 0, width, height]], np.float32)
        return Detections(whole, np.ones(1, np.float32)), "whole_picture"

    def _prominent(self, detections: Detections, picture: Picture) -> NDArray[np.intp]:
        """Rows of the faces to keep, by box area times score.

        Left out are faces under ``min_face`` and those centred outside the picture.
        """
        boxes = detections.boxes
        sides = boxes[:, 2:] - boxes[:, :2]
        areas = sides.prod(axis=1)
        centres = boxes[:, :2] + sides / 2
        height, width = picture.pixels.shape[:2]
        sx, sy = picture.scale
        keep = (centres >= 0).all(axis=1) & (centres < (width, height)).all(axis=1)
        keep &= areas * (sx * sy) >= self.options.min_face**2
        order = np.argsort(-areas * detections.scores, kind="stable")
        limit = 1 if self.options.crops else self.options.max_faces
        return np.asarray(order[keep[order]][:limit], np.intp)

    def _cut(
        self, picture: Picture, detections: Detections, row: int, origin: Origin, weights: _Weights
    ) -> Cutout:
        image, whole = picture.pixels, origin == "whole_picture"
        x0, y0, x1, y1 = (float(v) for v in detections.boxes[row])
        points = None if detections.landmarks is None else detections.landmarks[row]
        if points is not None and np.ptp(points, axis=0).max() < 1:
            points = None  # a detector's slip: all landmarks on one pixel
        if points is None or weights.crop.anchor == "box":
            chip = align_box(image, (x0, y0, x1, y1), weights.crop, whole_picture=whole)
        else:
            chip = align(image, points, weights.crop)
        sx, sy = picture.scale
        quality = measure(
            image,
            (x0, y0, x1, y1),
            points,
            self.options.quality,
            whole_picture=whole,
            scale=(sx * sy) ** 0.5,
        )
        return Cutout(
            (x0 * sx, y0 * sy, x1 * sx, y1 * sy),
            float(detections.scores[row]),
            None if points is None else points * np.array([sx, sy], np.float32),
            origin,
            quality,
            chip,
        )

    def _estimate(self, scenes: Sequence[Scene]) -> list[Analysis]:
        chips = [face.chip for scene in scenes for face in scene.faces if face.quality.usable]
        ages: list[AgeDistribution] = []
        genders: list[GenderEstimate] | None = None
        if chips:
            weights = self._loaded()
            raw = estimate_in_batches(
                weights.estimator, np.stack(chips), batch=self.options.batch, flip=self.options.flip
            )
            ages = weights.calibrator.ages(raw)
            genders = weights.calibrator.genders(raw) if self.options.gender else None
        return self._assemble(scenes, ages, genders)

    def estimate(self, scenes: Sequence[Scene]) -> list[Analysis]:
        """Estimate the faces of several pictures in true batches: the last stage of a call.

        Args:
            scenes: What ``locate`` gave, of this analyzer or of variants of the same model.

        Returns:
            An analysis for each scene, in order; a picture that the network fails on has an
            ``error`` of its own.
        """
        try:
            return self._estimate(scenes)
        except ModelError as error:
            if len(scenes) > 1:
                return [one for scene in scenes for one in self.estimate([scene])]
            (scene,) = scenes
            failed = AnalysisError("internal", str(error))
            return self._assemble([replace(scene, faces=(), error=failed)], [], None)

    def _assemble(
        self,
        scenes: Sequence[Scene],
        ages: Sequence[AgeDistribution],
        genders: Sequence[GenderEstimate] | None,
    ) -> list[Analysis]:
        answers = iter(zip(ages, genders or itertools.repeat(None), strict=False))
        abstained = (
            AgeDistribution.unknown(),
            GenderEstimate(0.5) if self.options.gender and self.bundle.card.gender else None,
        )
        analyses = []
        for scene in scenes:
            faces = []
            for face in scene.faces:
                age, gender = next(answers) if face.quality.usable else abstained
                faces.append(
                    Face(
                        face.box, face.score, face.quality, age, gender, face.landmarks, face.origin
                    )
                )
            analyses.append(
                Analysis(
                    scene.name, scene.width, scene.height, tuple(faces), scene.error, self.model
                )
            )
        return analyses

    # --- weights ---------------------------------------------------------------------------------

    def _loaded(self) -> _Weights:
        """The weights of this process: sessions do not survive a fork."""
        if self._weights.pid == os.getpid():
            return self._weights
        with self._lock:
            if self._weights.pid != os.getpid():
                # Sessions of the parent are kept: closing one would wait for threads that are
                # not in this process.
                self._of_parents = (*self._of_parents, self._weights)
                self._weights = self._load()
        return self._weights

    def _load(self, given: _Weights | None = None) -> _Weights:
        """What these options need; taken from ``given`` where it has it."""
        options, bundle = self.options, self.bundle
        if given is not None and _has_network(given, options, bundle):
            estimator = given.estimator
        else:
            estimator = load_estimator(bundle, threads=options.threads, gender=options.gender)
        return _Weights(
            os.getpid(),
            options,
            bundle,
            _detector(options, given),
            estimator,
            Calibrator.from_card(bundle.card),
            bundle.card.crop_spec(),
        )


def _has_network(given: _Weights, options: AnalyzerOptions, bundle: Bundle) -> bool:
    """Whether what was loaded serves these options; a gender network may have been left out."""
    had = given.options
    return (
        given.bundle is bundle
        and had.threads == options.threads
        and (had.gender or not options.gender or bundle.card.gender is None)
    )


def _detector(options: AnalyzerOptions, given: _Weights | None) -> Detector | None:
    """The detector of these options, on the network that is loaded where it is the same."""
    kept = ("detector", "min_score", "threads")
    if given is not None and isinstance(given.detector, YuNet | Scrfd):
        had = given.options
        if all(getattr(had, name) == getattr(options, name) for name in kept):
            return given.detector.looking_for(options.min_face)
    return load_detector(
        options.detector,
        score_threshold=options.min_score,
        min_face=options.min_face,
        threads=options.threads,
        accept_licence=options.accept_licence,
    )


def _changed(base: AnalyzerOptions, changes: Mapping[str, Any]) -> AnalyzerOptions:
    known = AnalyzerOptions.__dataclass_fields__
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ArgumentError(f"unknown option {unknown[0]!r}; there are: {', '.join(known)}")
    return replace(base, **changes)


def _given(boxes: ArrayLike, picture: Picture) -> Detections:
    """The caller's boxes as detections, in pixels of the decoded picture."""
    try:
        values = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"boxes must be (N, 4) numbers, got {boxes!r}") from error
    if values.size == 0:
        return Detections.none()
    if values.ndim != 2 or values.shape[1] != 4:
        raise ArgumentError(f"boxes must be (N, 4) numbers, got shape {values.shape}")
    sx, sy = picture.scale
    for row, (x0, y0, x1, y1) in enumerate(values.tolist()):
        if not np.isfinite((x0, y0, x1, y1)).all():
            raise ArgumentError(f"box {row} must be finite, got {(x0, y0, x1, y1)}")
        if x1 <= x0 or y1 <= y0:
            raise ArgumentError(f"box {row} needs x0 < x1 and y0 < y1, got {(x0, y0, x1, y1)}")
        if x1 <= 0 or y1 <= 0 or x0 >= picture.width or y0 >= picture.height:
            raise ArgumentError(
                f"box {row} {(x0, y0, x1, y1)} lies outside the {picture.width}x{picture.height} "
                "picture"
            )
    scaled = (values / (sx, sy, sx, sy)).astype(np.float32)
    return Detections(scaled, np.ones(len(scaled), np.float32))


_default: Analyzer | None = None
_default_lock: Final = threading.Lock()


def analyze(source: ImageSource, *, boxes: ArrayLike | None = None, **options: Any) -> Analysis:
    """Analyse one picture; the one-call form of ``Analyzer``.

    The default analyzer is loaded on the first call and kept. With options a new one is made for
    the call: keep an ``Analyzer`` of your own for more than a few pictures.

    Args:
        source: A path, bytes, a binary file, a PIL image, or an array (RGB, grey, RGBA).
        boxes: (N, 4) x0 y0 x1 y1 pixels: the caller's own faces; nothing is detected then.
        **options: Options of ``AnalyzerOptions``.

    Raises:
        ImageError: The picture cannot be read; ``code`` says why.

    Example:
        >>> import agelens
        >>> face = agelens.analyze("tests/faces/astronaut.jpg").faces[0]
        >>> face.gender.label
        'female'
    """
    if options:
        return Analyzer(**options)(source, boxes=boxes)
    global _default
    with _default_lock:
        if _default is None:
            _default = Analyzer()
    return _default(source, boxes=boxes)
