"""
Skin tone as the picture shows it, for audits of data without a label of it.

    typology_angle    Lab colours -> individual typology angle (ITA, Chardon et al. 1991)
    tone_of           that angle -> one of six classes
    measure_tones     the faces of files -> a class for each row
    with_tones        scored faces with the audit column "skin_tone_measured"

It is the colour of skin **in the picture**: light, white balance and exposure move it by more than
a class, and so it says how a model does on faces that look dark or light in pictures, not on people
with dark or light skin. A label from people who saw the person is better where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agelens.alignment import CropSpec, align
from agelens.analyzer import Analyzer
from agelens.data.duplicates import encoded_picture
from agelens.data.schema import FaceTable
from agelens.errors import DataError, ImageError
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.scoring import ScoringOptions, pictures, read_labels
from agelens.images import load_image

TONES: Final = ("very light", "light", "intermediate", "tan", "brown", "dark")
"""From light to dark."""
TONE_LIMITS: Final = (55.0, 41.0, 28.0, 10.0, -30.0)
"""Degrees over which a face is of the class at the same place of ``TONES``, else of a later one.

Chardon, Cretois and Hourseau (International Journal of Cosmetic Science 1991), with the limit of
-30 between brown and dark of Del Bino and Bernerd (British Journal of Dermatology 2013).
"""
TONE_COLUMN: Final = "skin_tone_measured"

_CROP: Final = CropSpec(size=96, margin=0.25)
# Left, top, right, bottom in the unit face square: both cheeks beside the nose, and the forehead.
_PATCHES: Final = (
    (0.12, 0.42, 0.34, 0.64),
    (0.66, 0.42, 0.88, 0.64),
    (0.34, -0.16, 0.66, 0.02),
)
_CLIPPED: Final = 250
"""From this level of a channel on the sensor, or the JPEG, says nothing of the colour."""
_KEPT_LIGHTNESS: Final = (20.0, 80.0)
"""Percentiles of lightness between which pixels count: without shine, shadow or hair."""
_MIN_SHARE: Final = 0.25
_MIN_YELLOW: Final = 1.0
"""Least b*: pictures without colour, or in blue light, have no angle that means anything."""

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int], None]


def typology_angle(lightness: float, yellow: float) -> float:
    """Individual typology angle in degrees: arctan((L* - 50) / b*).

    Args:
        lightness: L* of the skin, 0..100.
        yellow: b* of the skin, over 0.
    """
    return float(np.degrees(np.arctan2(lightness - 50.0, yellow)))


def tone_of(angle: float) -> str:
    """The class of an angle in degrees."""
    for tone, limit in zip(TONES, TONE_LIMITS, strict=False):
        if angle > limit:
            return tone
    return TONES[-1]


def skin_angle(pixels: Pixels, landmarks: NDArray[np.floating]) -> float | None:
    """Typology angle of a face: the middle one of both cheeks and the forehead.

    Within each the darkest and the brightest fifth of the pixels and clipped ones are left out, so
    that shine, a shadow or a strand of hair does not count; one region under hair or a beard is
    outvoted by the other two.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        landmarks: (5, 2) pixels.

    Returns:
        Degrees, or None where fewer than two regions can be measured, or the picture has no colour.
    """
    chip = align(pixels, landmarks, _CROP)
    inside = align(np.full_like(pixels, 255), landmarks, replace(_CROP, fill=0)).min(axis=2) == 255
    lab = cv2.cvtColor(chip.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    usable = inside & (chip.max(axis=2) < _CLIPPED)
    angles = []
    for x0, y0, x1, y1 in _PATCHES:
        scale, margin = _CROP.size / (1 + 2 * _CROP.margin), _CROP.margin
        rows = slice(round((y0 + margin) * scale), round((y1 + margin) * scale))
        columns = slice(round((x0 + margin) * scale), round((x1 + margin) * scale))
        held = lab[rows, columns][usable[rows, columns]]
        area = usable[rows, columns].size
        if len(held) < _MIN_SHARE * area:
            continue
        low, high = np.percentile(held[:, 0], _KEPT_LIGHTNESS)
        middle = np.median(held[(held[:, 0] >= low) & (held[:, 0] <= high)], axis=0)
        if middle[2] >= _MIN_YELLOW:
            angles.append(typology_angle(float(middle[0]), float(middle[2])))
    return float(np.median(angles)) if len(angles) >= 2 else None


def measure_tones(
    data: Sequence[Path] | Path,
    *,
    model: str = "default",
    options: ScoringOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, str]:
    """The skin tone of the face in each row's picture.

    Args:
        data: Parquet files of faces, or folders of them.
        model: Whose analyzer finds the faces; its answers are not asked for.
        options: How faces are found, as for ``scoring.score``.
        progress: Told faces done and faces in all.

    Returns:
        Class by the name of the row; rows without landmarks or without a measurable tone are left
        out.
    """
    table = FaceTable.open(data)
    names = read_labels(table).names.tolist()
    analyzer = (options or ScoringOptions()).analyzer(model)
    found = {}
    for row, source in enumerate(pictures(table)):
        angle = _angle_of(analyzer, source)
        if angle is not None:
            found[names[row]] = tone_of(angle)
        if progress is not None:
            progress(row + 1, len(names))
    return found


def _angle_of(analyzer: Analyzer, source: bytes | Path) -> float | None:
    try:
        picture = load_image(encoded_picture(source), limits=analyzer.options.limits)
    except ImageError:
        return None
    faces = analyzer.cut(picture)
    if not faces or faces[0].landmarks is None:
        return None
    return skin_angle(picture.pixels, np.asarray(faces[0].landmarks) / picture.scale)


def with_tones(faces: ScoredFaces, tones: dict[str, str]) -> ScoredFaces:
    """The same faces with the audit column "skin_tone_measured".

    Args:
        faces: Scored faces.
        tones: From ``measure_tones`` over the same files.

    Raises:
        DataError: There is such a column already, or no face has a measured tone.
    """
    if TONE_COLUMN in faces.audit:
        raise DataError(f"there is a column {TONE_COLUMN!r} already; rename it")
    column = np.array([tones.get(name) for name in faces.names.tolist()], object)
    if not any(value is not None for value in column):
        raise DataError(
            "skin tone can be measured on none of these faces: no face was found, or the pictures "
            "are without colour"
        )
    return replace(faces, audit={**faces.audit, TONE_COLUMN: column})
