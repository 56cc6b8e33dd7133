"""
What the pixels of a face allow: size, sharpness, light and pose, and the reasons to abstain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agelens.alignment import CropSpec, align, align_box
from agelens.errors import ArgumentError
from agelens.results import Quality

_CROP: Final = CropSpec(size=64, margin=0.0)

# A generic head in millimetres, x to the right of the picture, y down, z away from the camera:
# eyes, nose tip, mouth corners. Only proportions matter.
_HEAD: Final = np.array(
    [[-32, -34, 0], [32, -34, 0], [0, 6, -26], [-26, 36, 4], [26, 36, 4]], np.float64
)
_DETAIL_SIGMA: Final = 1.5
_RIM: Final = 4
_CRISP: Final = 4.0
_HEAD_INVERSE: Final = np.linalg.pinv(_HEAD - _HEAD.mean(axis=0))


@dataclass(frozen=True)
class QualityLimits:
    """From where on an estimate would be a guess.

    The defaults follow ``benchmarks/quality.py``: beyond them the error of the default model on
    degraded faces is about that of answering with the average age.

    Attributes:
        min_size_px: Least side of the face box in pixels of the picture.
        min_sharpness: Least sharpness.
        min_exposure: Darkest mean luminance, 0..1.
        max_exposure: Brightest mean luminance, 0..1.
        max_yaw: Furthest turn to either side, degrees.
        max_pitch: Furthest up or down, degrees.
    """

    min_size_px: float = 20.0
    min_sharpness: float = 0.20
    min_exposure: float = 0.08
    max_exposure: float = 0.97
    max_yaw: float = 60.0
    max_pitch: float = 35.0

    def __post_init__(self) -> None:
        for name in ("min_size_px", "min_sharpness", "max_yaw", "max_pitch"):
            value = getattr(self, name)
            if not value >= 0:
                raise ArgumentError(f"{name} must be 0 or more, got {value}")
        if not self.min_exposure < self.max_exposure:
            raise ArgumentError(
                f"min_exposure {self.min_exposure} must be under max_exposure {self.max_exposure}"
            )

    @classmethod
    def off(cls) -> QualityLimits:
        """No face is ever called unusable."""
        return cls(0.0, 0.0, -1.0, 2.0, 360.0, 360.0)


DEFAULT_QUALITY_LIMITS: Final = QualityLimits()


def measure(
    image: NDArray[np.uint8],
    box: tuple[float, float, float, float],
    landmarks: NDArray[np.floating] | None,
    limits: QualityLimits = DEFAULT_QUALITY_LIMITS,
    *,
    whole_picture: bool = False,
    scale: float = 1.0,
) -> Quality:
    """Measure one face.

    Sharpness is the share of the contrast that is in fine detail (the luminance less its Gaussian
    blur of 1.5 px), on the face brought to 64 px, times 4: about 1 for an ordinary portrait, 0.5
    for a face of 20 px, under 0.2 for one blurred by 5 % of its side.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: x0 y0 x1 y1 in pixels of ``image``.
        landmarks: (5, 2) pixels of ``image``, or None.
        limits: From where on the face is not usable.
        whole_picture: The box is the whole picture.
        scale: Pixels of the full picture a pixel of ``image``.
    """
    chip = (
        align_box(image, box, _CROP, whole_picture=whole_picture)
        if landmarks is None
        else align(image, landmarks, _CROP)
    )
    grey = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean, contrast = (float(value[0, 0]) for value in cv2.meanStdDev(grey))
    fine = grey - cv2.GaussianBlur(grey, (0, 0), _DETAIL_SIGMA)
    # The rim is left out: where the picture ends inside the chip, it has an edge of its own.
    detail = float(cv2.meanStdDev(fine[_RIM:-_RIM, _RIM:-_RIM])[1][0, 0])
    size = math.sqrt(max(0.0, (box[2] - box[0]) * (box[3] - box[1]))) * scale
    yaw, pitch, roll = (None, None, None) if landmarks is None else head_pose(landmarks)
    quality = Quality(
        size_px=size,
        sharpness=_CRISP * detail / max(contrast, 1.0),
        exposure=mean / 255,
        yaw=yaw,
        pitch=pitch,
        roll=roll,
    )
    return judge(quality, limits, contrast=contrast)


def judge(quality: Quality, limits: QualityLimits, *, contrast: float = 255.0) -> Quality:
    """The same quality with ``usable`` and ``reasons`` by these limits.

    Args:
        quality: The measured numbers.
        limits: From where on a face is not usable.
        contrast: Standard deviation of the luminance, 0..127; a flat area is no face.
    """
    yaw, pitch = abs(quality.yaw or 0.0), abs(quality.pitch or 0.0)
    checks = (
        (
            quality.size_px < limits.min_size_px,
            f"too small: {math.floor(quality.size_px)} px, {limits.min_size_px:g} needed",
        ),
        (
            quality.sharpness < limits.min_sharpness,
            f"blurred: sharpness {math.floor(100 * quality.sharpness) / 100:.2f}, "
            f"{limits.min_sharpness:.2f} needed",
        ),
        (quality.exposure < limits.min_exposure, f"too dark: exposure {quality.exposure:.2f}"),
        (quality.exposure > limits.max_exposure, f"too bright: exposure {quality.exposure:.2f}"),
        (contrast < 2.0 and limits.min_sharpness > 0, "no contrast: the area is flat"),
        (yaw > limits.max_yaw, f"turned away: {yaw:.0f} degrees to the side"),
        (pitch > limits.max_pitch, f"turned away: {pitch:.0f} degrees up or down"),
    )
    reasons = tuple(reason for failed, reason in checks if failed)
    return Quality(
        quality.size_px,
        quality.sharpness,
        quality.exposure,
        quality.yaw,
        quality.pitch,
        quality.roll,
        usable=not reasons,
        reasons=reasons,
    )


def head_pose(landmarks: NDArray[np.floating]) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees from five landmarks.

    Scaled orthographic pose (the first step of POSIT, DeMenthon and Davis, IJCV 1995) of a generic
    head: good to some ten degrees, which is what deciding on usability needs.

    Args:
        landmarks: (5, 2) pixels: eyes, nose, mouth corners, left to right in the picture.

    Returns:
        (yaw, pitch, roll): positive when the face turns to the right of the picture, looks up, and
        leans clockwise.
    """
    points = np.asarray(landmarks, np.float64)
    rows = (_HEAD_INVERSE @ (points - points.mean(axis=0))).T  # (2, 3), least squares
    size = np.linalg.norm(rows, axis=1)
    if not np.isfinite(size).all() or size.min() < 1e-9:
        return 0.0, 0.0, 0.0
    # Nearest rotation to the two scaled rows, then its angles in the order pitch, yaw, roll.
    u, _, vt = np.linalg.svd(rows / size.mean(), full_matrices=False)
    first, second = u @ vt
    third = np.cross(first, second)
    yaw = math.degrees(math.atan2(third[0], math.hypot(third[1], third[2])))
    pitch = math.degrees(math.atan2(-third[1], third[2]))
    roll = math.degrees(math.atan2(second[0], first[0]))
    return yaw, pitch, roll
