"""
A small scene of public-domain faces for tests: people walk past one another on lanes of their own.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from agelens.video.zones import Line, Zone
from video.scenes import Cutout, Person, Pixels, Scene, Truth, Walk, cut_out

FACES: Final = Path(__file__).resolve().parents[1] / "faces"
DOOR: Final = Line("door", (0.5, 0.0), (0.5, 1.0), in_side="left")
"""From top to bottom through the middle; who walks to the right goes in."""
SHELF: Final = Zone("shelf", ((0.6, 0.0), (1.0, 0.0), (1.0, 1.0), (0.6, 1.0)))
"""The right two fifths."""

_LANES: Final = (0.24, 0.72)
"""Heights of the faces of which nobody covers those of the other lane."""
_SIDE: Final = (0.14, 0.17)
"""Sides of the faces, of the picture's height."""


def write_scene(
    path: Path,
    *,
    people: int,
    seconds: float,
    size: tuple[int, int] = (640, 360),
    fps: float = 25.0,
    seed: int = 0,
) -> Truth:
    """Write a video in which so many people walk through, nobody hidden by another.

    Each comes in at one side and goes out at the other: everyone crosses ``DOOR`` once and stays in
    ``SHELF`` for a while. Two are in view at a time at most, so that a scene takes people / 2 times
    the seconds of a walk, which must be 2.5 or more.

    Args:
        path: A new .mp4 or .avi.
        people: How many, 0 or more.
        seconds: How long the video is.
        size: Width and height.
        fps: Frames a second.
        seed: Chooses who walks which way, how large and in which light.
    """
    return small_scene(people=people, seconds=seconds, size=size, fps=fps, seed=seed).write(path)


def small_scene(
    *,
    people: int,
    seconds: float,
    size: tuple[int, int] = (640, 360),
    fps: float = 25.0,
    seed: int = 0,
) -> Scene:
    """The scene that ``write_scene`` writes, for those who need its frames."""
    rng = np.random.default_rng(seed)
    width, height = size
    a_lane = -(-people // len(_LANES))
    slot = seconds / max(1, a_lane)
    if people and slot < 2.5:
        raise ValueError(f"{people} people can't walk through in {seconds} s; give each lane 2.5 s")
    walking = []
    for number in range(people):
        lane, turn = number % len(_LANES), number // len(_LANES)
        side = float(rng.uniform(*_SIDE)) * height
        begins = turn * slot + (0.1 + 0.1 * lane) * min(slot, 2)
        ends = (turn + 1) * slot - 0.1 * min(slot, 2)
        ways = (-side, width + side)
        if rng.random() < 0.5:
            ways = (width + side, -side)
        y = _LANES[lane] * height
        walk = Walk(((begins, ways[0], y, side), (ends, ways[1], y, side)))
        walking.append(Person(somebody(rng, (lane + turn) % 2), walk))
    return Scene(
        "small", wall(size), tuple(walking), seconds, fps, lines=(DOOR,), zones=(SHELF,), seed=seed
    )


def somebody(rng: np.random.Generator, which: int | None = None) -> Cutout:
    """One of the two people of the photographs, in some light, perhaps mirrored.

    Who leaves a lane is followed by the other one: the same face there again a moment later would
    rightly be taken for a person who comes back.
    """
    cutout = portraits()[int(rng.integers(2)) if which is None else which]
    lit = cutout.relit(float(rng.uniform(0.8, 1.1)), float(rng.uniform(0.4, 1.1)))
    return lit.mirrored() if rng.random() < 0.5 else lit


@functools.cache
def portraits() -> tuple[Cutout, Cutout]:
    """Eileen Collins and Grace Hopper."""
    astronaut, hopper = photograph("astronaut"), photograph("hopper")
    return (
        cut_out(astronaut, (180, 63, 269, 174), is_female=True),
        cut_out(hopper, (176, 113, 351, 325), is_female=True),
    )


def photograph(name: str) -> Pixels:
    """One of ``tests/faces``, (H, W, 3) uint8 BGR."""
    pixels = cv2.imread(str(FACES / f"{name}.jpg"))
    assert pixels is not None, f"tests/faces/{name}.jpg can't be read"
    return np.asarray(pixels, np.uint8)


@functools.cache
def wall(size: tuple[int, int]) -> Pixels:
    """A place without people: the wall behind the astronaut, mirrored into a picture's width."""
    part = photograph("astronaut")[0:250, 310:512]
    tiled = np.hstack([part, part[:, ::-1]])
    width, height = size
    return np.asarray(cv2.resize(tiled, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
