"""Moving heads, generated from a photograph: frames as a camera would see them.

The photograph is laid over a coarse solid head by triangles, and the solid is turned; the nose is
nearer than the eyes, so that landmarks move against each other as on a living head and unlike on a
flat picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agelens import Analyzer
from agelens.detection import YuNet
from agelens.gate.liveness import LiveFrame

Pixels = NDArray[np.uint8]
Points = NDArray[np.float64]

FACES = Path(__file__).parents[1] / "faces"
STEP_DEG = 4.0

# In distances between the eyes, from the middle of the face: x to the right, y down, z to the
# camera. First the five landmarks, then brows, chin, cheeks, sides and back of the head.
_SOLID = np.array(
    [
        [-0.5, -0.53, 0], [0.5, -0.53, 0], [0, 0.09, 0.41], [-0.41, 0.56, -0.06],
        [0.41, 0.56, -0.06],
        [0, -0.53, 0.15], [-0.25, -0.53, 0.06], [0.25, -0.53, 0.06], [0, -1.1, 0.12],
        [-0.6, -1.0, -0.1], [0.6, -1.0, -0.1], [0, 1.15, 0.02], [-0.5, 1.0, -0.2],
        [0.5, 1.0, -0.2], [-0.85, -0.4, -0.4], [0.85, -0.4, -0.4], [-0.8, 0.3, -0.4],
        [0.8, 0.3, -0.4], [-0.16, 0.15, 0.16], [0.16, 0.15, 0.16], [0, 0.3, 0.18],
        [-0.55, 0.05, 0], [0.55, 0.05, 0], [0, 0.56, 0.08],
        [-1.2, -0.3, -1.3], [1.2, -0.3, -1.3], [-1.15, 0.6, -1.3], [1.15, 0.6, -1.3],
        [-1.1, -1.2, -1.0], [1.1, -1.2, -1.0], [0, -1.9, -0.6], [-0.6, -1.7, -0.8],
        [0.6, -1.7, -0.8], [0, 1.5, -0.5], [-0.7, 1.4, -0.7], [0.7, 1.4, -0.7],
    ]
)  # fmt: skip
_STILL_AROUND = 2.6
_BEHIND = -3.0


@dataclass(frozen=True)
class Pose:
    """Where the head is: degrees to the right of the picture, and how much nearer."""

    yaw: float = 0.0
    near: float = 1.0


@cache
def portrait(name: str) -> tuple[Pixels, Points]:
    """A public-domain photograph and the landmarks of its most prominent face."""
    image = np.asarray(Image.open(FACES / f"{name}.jpg").convert("RGB"))
    found = YuNet().detect(image)
    assert found.landmarks is not None
    return image, found.landmarks[0].astype(np.float64)


@cache
def seen(name: str, pose: Pose) -> Pixels:
    """The photograph with its head in a pose."""
    image, landmarks = portrait(name)
    return nearer(turned(image, landmarks, pose.yaw), landmarks, pose.near)


def turned(image: Pixels, landmarks: Points, yaw: float) -> Pixels:
    """The photograph with the head turned to the right of the picture by ``yaw`` degrees."""
    if yaw == 0:
        return image
    height, width = image.shape[:2]
    before, after, depths = _moved(landmarks, yaw, width, height)
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    for corners in _triangles(before, depths, width, height):
        area = np.zeros((height, width), np.uint8)
        outline = np.round(after[corners] * 16).astype(np.int32)
        cv2.fillConvexPoly(area, outline, 1, shift=4)
        back = cv2.getAffineTransform(
            after[corners].astype(np.float32), before[corners].astype(np.float32)
        )
        y, x = np.nonzero(area)
        columns[y, x], rows[y, x] = back @ np.stack([x, y, np.ones_like(x)])
    remapped = cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return remapped.astype(np.uint8, copy=False)


def _moved(
    landmarks: Points, yaw: float, width: int, height: int
) -> tuple[Points, Points, NDArray[np.float64]]:
    """Vertices before and after the turn, and their depths; the surroundings stay."""
    eye = float(np.linalg.norm(landmarks[1] - landmarks[0]))
    centre = landmarks[[0, 1, 3, 4]].mean(axis=0)
    before = centre + eye * _SOLID[:, :2]
    before[:5] = landmarks
    after = before.copy()
    angle = math.radians(yaw)
    after[:, 0] = (
        centre[0]
        + (before[:, 0] - centre[0]) * math.cos(angle)
        + eye * _SOLID[:, 2] * math.sin(angle)
    )
    around = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    ring = centre + _STILL_AROUND * eye * np.stack([np.cos(around), np.sin(around)], axis=1)
    inside = (ring > 2).all(axis=1) & (ring < (width - 2, height - 2)).all(axis=1)
    edge = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], float)
    fixed = np.concatenate([ring[inside], edge])
    depths = np.concatenate([_SOLID[:, 2], np.full(len(fixed), _BEHIND)])
    return np.concatenate([before, fixed]), np.concatenate([after, fixed]), depths


def _triangles(
    points: Points, depths: NDArray[np.float64], width: int, height: int
) -> list[list[int]]:
    """Delaunay triangles, the far ones first so that the near side covers them."""
    plane = cv2.Subdiv2D((-2 * width, -2 * height, 5 * width, 5 * height))
    for x, y in points:
        plane.insert((float(x), float(y)))
    found = []
    for triangle in np.asarray(plane.getTriangleList()).reshape(-1, 3, 2):
        distances = np.linalg.norm(points[None] - triangle[:, None], axis=2)
        if distances.min(axis=1).max() < 0.5:  # not with a corner of the plane
            found.append([int(row) for row in distances.argmin(axis=1)])
    return sorted(found, key=lambda rows: float(depths[rows].mean()))


def nearer(image: Pixels, landmarks: Points, factor: float) -> Pixels:
    """The camera's picture when everything comes nearer to the middle of the face."""
    if factor == 1:
        return image
    height, width = image.shape[:2]
    x, y = landmarks.mean(axis=0)
    matrix = np.array([[factor, 0, x * (1 - factor)], [0, factor, y * (1 - factor)]])
    moved = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return moved.astype(np.uint8, copy=False)


def noisy(image: Pixels, seed: int, strength: float = 3.0) -> Pixels:
    """With a camera's noise."""
    rng = np.random.default_rng(seed)
    values = image + rng.normal(0, strength, image.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


def poses(moves: Iterable[str], *, reach_deg: float = 32.0, reach_near: float = 1.4) -> list[Pose]:
    """A head that makes the moves, each from the start position and back."""
    path = [Pose()] * 4
    for move in moves:
        if move == "closer":
            way = [Pose(near=float(f)) for f in np.linspace(1, reach_near, 6)[1:]]
        else:
            sign = 1 if move == "left" else -1  # the person's left is the picture's right
            steps = np.arange(STEP_DEG, reach_deg + 0.1, STEP_DEG)
            way = [Pose(yaw=float(sign * step)) for step in steps]
        path += [*way, way[-1], way[-1], *reversed(way[:-1]), Pose(), Pose()]
    return path


def video(name: str, path: Sequence[Pose], *, first_seed: int = 0) -> list[Pixels]:
    """The frames of a head that goes through poses, each with noise of its own."""
    return [noisy(seen(name, pose), first_seed + row) for row, pose in enumerate(path)]


def live(
    analyzer: Analyzer, images: Iterable[Pixels], *, every_s: float | None = 0.1
) -> list[LiveFrame]:
    """Frames with their faces, as a gate sees them."""
    frames = []
    for row, image in enumerate(images):
        (face, *_) = analyzer(image).faces
        frames.append(LiveFrame(image, face, None if every_s is None else row * every_s))
    return frames


def tilted(image: Pixels, by: Any) -> Pixels:
    """A photograph held slantwise: its corners moved by (4, 2) shares of its size."""
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float32)
    moved = corners + np.asarray(by, np.float32) * np.array([width, height], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, moved)
    slanted = cv2.warpPerspective(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return slanted.astype(np.uint8, copy=False)
