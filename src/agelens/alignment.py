"""
From a face in a picture to the square chip a network was trained on.

One ``CropSpec`` per model, stored in its card and used in training and inference alike: a crop that
differs between the two costs more accuracy than any choice of loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from agelens.errors import ArgumentError

FACE_TEMPLATE: Final[tuple[tuple[float, float], ...]] = (
    (0.214, 0.232),
    (0.786, 0.232),
    (0.500, 0.545),
    (0.250, 0.780),
    (0.750, 0.780),
)
"""Where the five landmarks lie in the unit face square (brows to chin, cheek to cheek).

Means over 2,592 faces of FairFace and UTKFace, mirrored and rounded: YuNet's landmarks in the
square that dlib's five-point chips cut out with padding 0.
"""

# The same faces: the unit face square against YuNet's box, and against the whole crop.
_BOX_SCALE: Final = 0.78
_BOX_SHIFT: Final = (0.0, 0.018)
_PICTURE_SCALE: Final = 0.70

IN_FACE_PLANE: Final[tuple[int, ...]] = (0, 1, 3, 4)
"""Eyes and mouth corners; the nose stands out and moves across the face as the head turns."""

_SHRINK_BELOW: Final = 0.67
"""Chip pixels per picture pixel under which the picture is shrunk first, against aliasing."""


@dataclass(frozen=True)
class CropSpec:
    """How a face becomes a chip.

    The unit face square (brows to chin) is widened by ``margin`` of its side on each side and
    scaled to ``size`` pixels: with ``margin=0.4`` the square covers 1 / 1.8 of the chip's side.

    Attributes:
        size: Side of the chip in pixels.
        margin: Extra on each side as a share of the face square's side, 0 or more.
        landmarks: (5, 2) places of the landmarks in the unit face square.
        anchor: "landmarks" aligns by them where there are some; "box" always cuts around the box.
        box_measure: Side of a box: "root_area" (of its area) or "longest" (of its sides).
        box_scale: Side of the face square over the side of a detector's box.
        box_shift: Offset (x, y) of the square's centre from the box's centre, in box sides.
        picture_scale: As ``box_scale``, when the whole picture is the face.
        picture_shift: As ``box_shift``, when the whole picture is the face.
        fill: Grey level (0..255) where the picture ends.
    """

    size: int
    margin: float
    landmarks: tuple[tuple[float, float], ...] = FACE_TEMPLATE
    anchor: Literal["landmarks", "box"] = "landmarks"
    box_measure: Literal["root_area", "longest"] = "root_area"
    box_scale: float = _BOX_SCALE
    box_shift: tuple[float, float] = _BOX_SHIFT
    picture_scale: float = _PICTURE_SCALE
    picture_shift: tuple[float, float] = (0.0, 0.0)
    fill: int = 128

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ArgumentError(f"a chip needs a size of 8 pixels or more, got {self.size}")
        if not 0 <= self.margin <= 4:
            raise ArgumentError(f"the crop margin must be within 0..4, got {self.margin}")
        if np.shape(self.landmarks) != (5, 2):
            raise ArgumentError(
                f"the crop needs five landmark places (5, 2), got {np.shape(self.landmarks)}"
            )
        if self.box_scale <= 0 or self.picture_scale <= 0:
            raise ArgumentError("box_scale and picture_scale must be over 0")

    @property
    def landmarks_px(self) -> NDArray[np.float64]:
        """(5, 2) places of the landmarks in the chip, in pixels."""
        unit = np.asarray(self.landmarks, np.float64)
        return (unit + self.margin) / (1 + 2 * self.margin) * self.size


def align(
    image: NDArray[np.uint8], landmarks: NDArray[np.floating], spec: CropSpec
) -> NDArray[np.uint8]:
    """Warp one face onto the canonical chip by a similarity transform.

    Args:
        image: (H, W, 3) uint8 RGB.
        landmarks: (5, 2) pixels: eyes, nose, mouth corners, left to right in the image.
        spec: Crop of the model's card; the same object was used in training.

    Returns:
        (size, size, 3) uint8 RGB.

    Raises:
        ArgumentError: The landmarks have another shape, are not finite, or fall on one point.
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape != (5, 2):
        raise ArgumentError(f"landmarks must have shape (5, 2), got {points.shape}")
    rows = list(IN_FACE_PLANE)
    matrix = similarity_transform(points[rows], spec.landmarks_px[rows])
    return warp(image, matrix, spec.size, spec.fill)


def align_box(
    image: NDArray[np.uint8], box: ArrayLike, spec: CropSpec, *, whole_picture: bool = False
) -> NDArray[np.uint8]:
    """Cut the canonical chip around a box, for faces without landmarks.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: x0 y0 x1 y1 pixels, as tight as a face detector's (forehead to chin).
        spec: Crop of the model's card.
        whole_picture: The box is a portrait with some margin, not a detector's box.

    Returns:
        (size, size, 3) uint8 RGB.

    Raises:
        ArgumentError: The box is empty or not finite.
    """
    x0, y0, x1, y1 = (float(v) for v in np.asarray(box, np.float64).reshape(4))
    if not np.isfinite([x0, y0, x1, y1]).all() or x1 <= x0 or y1 <= y0:
        raise ArgumentError(f"a face box needs x0 < x1 and y0 < y1, got {(x0, y0, x1, y1)}")
    side = ((x1 - x0) * (y1 - y0)) ** 0.5
    if spec.box_measure == "longest":
        side = max(x1 - x0, y1 - y0)
    scale = spec.picture_scale if whole_picture else spec.box_scale
    shift = spec.picture_shift if whole_picture else spec.box_shift
    centre = np.array([(x0 + x1) / 2 + shift[0] * side, (y0 + y1) / 2 + shift[1] * side])
    factor = spec.size / (scale * side * (1 + 2 * spec.margin))
    offset = spec.size / 2 - factor * centre
    matrix = np.array([[factor, 0, offset[0]], [0, factor, offset[1]]])
    return warp(image, matrix, spec.size, spec.fill)


def similarity_transform(source: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """Least-squares similarity (rotation, uniform scale, shift) from points to points.

    Args:
        source: (N, 2) points.
        target: (N, 2) points.

    Returns:
        (2, 3) matrix M with target ~ M @ (x, y, 1).

    Raises:
        ArgumentError: The points are not finite, not (N, 2), or all fall on one.
    """
    points, wanted = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if points.ndim != 2 or points.shape != wanted.shape or points.shape[1] != 2:
        raise ArgumentError(f"need two (N, 2) sets of points, got {points.shape}, {wanted.shape}")
    centre, aim = points.mean(axis=0), wanted.mean(axis=0)
    p, q = points - centre, wanted - aim
    spread = float((p**2).sum())
    if not np.isfinite(spread) or spread < 1e-9:
        raise ArgumentError("landmarks must be finite and not all on one point")
    # In two dimensions the optimum is linear: scale * (cos, sin) are two scalar products.
    cos = float((p * q).sum()) / spread
    sin = float((p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum()) / spread
    rotation = np.array([[cos, -sin], [sin, cos]])
    return np.concatenate([rotation, (aim - rotation @ centre)[:, None]], axis=1)


def warp(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], size: int, fill: int = 0
) -> NDArray[np.uint8]:
    """Resample a square of an image, without aliasing when it shrinks.

    Args:
        image: (H, W, 3) uint8.
        matrix: (2, 3) similarity from image pixels to chip pixels.
        size: Side of the chip.
        fill: Grey level (0..255) where the image ends.

    Returns:
        (size, size, 3) uint8.
    """
    factor = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if factor < _SHRINK_BELOW:
        image, matrix = _shrink_around(image, matrix, size, factor)
    # Pixel centres lie at half integers in our geometry and at integers in OpenCV's.
    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    chip = cv2.warpAffine(
        image,
        centred,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(fill, fill, fill),
    )
    return chip.astype(np.uint8, copy=False)


def _shrink_around(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], size: int, factor: float
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Cut out what the chip sees and shrink it by area averaging to about chip resolution."""
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64)
    seen = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    reach = 2 / factor
    x0, y0 = (int(max(0, v)) for v in np.floor(seen.min(axis=0) - reach))
    x1, y1 = np.minimum(np.ceil(seen.max(axis=0) + reach), (width, height)).astype(int)
    if x1 <= x0 or y1 <= y0:
        return image, matrix
    shrink = min(1.0, factor * 1.25)
    target = (max(1, round((x1 - x0) * shrink)), max(1, round((y1 - y0) * shrink)))
    small = cv2.resize(image[y0:y1, x0:x1], target, interpolation=cv2.INTER_AREA)
    step = np.array([(x1 - x0) / target[0], (y1 - y0) / target[1]])
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (x0, y0)
    shifted[:, :2] = matrix[:, :2] * step
    return small.astype(np.uint8, copy=False), shifted
