"""A video of people who come one after another, with quiet places between, and its true counts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import cv2
import numpy as np

from agelens.video.plan import CameraPlan
from video.scenes import Person, Scene, Truth, Walk
from video.scenes_small import DOOR, SHELF, somebody, wall

SIZE: Final = (320, 180)
FPS: Final = 12.5
SIDE: Final = 40.0
"""Of a face, in pixels."""
WALK_S: Final = 2.6
EVERY_S: Final = 6.0
"""From one person to the next: the track is lost after two seconds, and nobody comes back."""
REJOIN_S: Final = 0.5


def write_visits(path: Path, *, people: int, seed: int = 0) -> Truth:
    """Write a video in which one person after another walks through, alone in the picture.

    Args:
        path: A new .mp4 or .avi.
        people: How many.
        seed: Chooses who walks which way and in which light.
    """
    rng = np.random.default_rng(seed)
    width, height = SIZE
    walkers = []
    for number in range(people):
        begins = 0.2 + EVERY_S * number
        ways = (-SIDE, width + SIDE) if rng.random() < 0.5 else (width + SIDE, -SIDE)
        y = float(rng.uniform(0.35, 0.65)) * height
        walk = Walk(((begins, ways[0], y, SIDE), (begins + WALK_S, ways[1], y, SIDE)))
        walkers.append(Person(somebody(rng), walk))
    scene = Scene(
        "visits",
        np.asarray(cv2.resize(wall(SIZE), SIZE), np.uint8),
        tuple(walkers),
        EVERY_S * people,
        FPS,
        lines=(DOOR,),
        zones=(SHELF,),
        seed=seed,
    )
    return scene.write(path)


def camera_of(path: Path, name: str = "door") -> CameraPlan:
    """The camera that watches such a video."""
    return CameraPlan(name, str(path), lines=(DOOR,), zones=(SHELF,), rejoin_s=REJOIN_S)
