"""Chips: the similarity transform, margins, boxes, and what lies outside the picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agelens.alignment import CropSpec, align, align_box, similarity_transform, warp
from agelens.errors import ArgumentError

SPEC = CropSpec(size=96, margin=0.4)


@given(
    st.floats(-3, 3), st.floats(0.2, 5), st.floats(-100, 100), st.floats(-100, 100),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_a_similarity_is_recovered_from_its_points(
    angle: float, scale: float, x: float, y: float, seed: int
) -> None:
    points = np.random.default_rng(seed).uniform(-50, 50, (5, 2))
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    matrix = similarity_transform(points, points @ rotation.T + (x, y))

    np.testing.assert_allclose(matrix, np.c_[rotation, [x, y]], atol=1e-6)


def test_the_fit_agrees_with_a_general_least_squares_solver() -> None:
    rng = np.random.default_rng(3)
    source, target = rng.uniform(0, 100, (5, 2)), rng.uniform(0, 100, (5, 2))
    # Unknowns a, b, tx, ty of x' = a x - b y + tx, y' = b x + a y + ty.
    rows = [[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in source]
    a, b, tx, ty = np.linalg.lstsq(np.reshape(rows, (10, 4)), target.ravel(), rcond=None)[0]

    expected = [[a, -b, tx], [b, a, ty]]

    np.testing.assert_allclose(similarity_transform(source, target), expected, atol=1e-9)


def marked_face(turn: float = 0.0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture with white dots at the landmarks of a turned and scaled face."""
    unit = np.asarray(SPEC.landmarks) - 0.5
    c, s = np.cos(turn), np.sin(turn)
    points = unit @ np.array([[c, s], [-s, c]]) * 200 * scale + (400, 300)
    image = np.full((700, 900, 3), 60, np.uint8)
    for x, y in points:
        # shift=4: a sixteenth of a pixel; OpenCV counts pixel centres as integers.
        centre = (round((x - 0.5) * 16), round((y - 0.5) * 16))
        cv2.circle(image, centre, round(7 * scale * 16), (255, 255, 255), -1, cv2.LINE_AA, 4)
    return image, points.astype(np.float32)


@pytest.mark.parametrize("turn", [0, 0.3, -1.2, 3.0])
@pytest.mark.parametrize("scale", [0.3, 1.0, 1.7])
def test_landmarks_land_on_their_places_in_the_chip(turn: float, scale: float) -> None:
    image, points = marked_face(turn, scale)

    chip = align(image, points, SPEC)

    assert chip.shape == (96, 96, 3)
    for wanted in SPEC.landmarks_px:
        spot = chip[..., 0].astype(float)
        ys, xs = np.mgrid[0:96, 0:96] + 0.5
        near = np.hypot(xs - wanted[0], ys - wanted[1]) < 7
        weight = np.where(near, spot - 60, 0).clip(0)
        found = np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum()
        assert np.abs(found - wanted).max() < 0.35


def test_a_wider_margin_shows_more_around_the_face() -> None:
    image, points = marked_face()
    tight = align(image, points, CropSpec(96, 0.0))
    loose = align(image, points, CropSpec(96, 0.5))

    assert (tight[..., 0] > 200).sum() > 3 * (loose[..., 0] > 200).sum()


def test_shrinking_does_not_alias() -> None:
    """A fine checkerboard of mean 127 must become grey, not a moire."""
    board = (np.indices((800, 800)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = np.repeat(board[..., None], 3, axis=2)

    chip = warp(image, np.array([[0.11, 0, 3.0], [0, 0.11, 3.0]]), 80)

    assert chip[5:-5, 5:-5].std() < 3
    assert abs(float(chip[5:-5, 5:-5].mean()) - 127.5) < 2


def test_outside_the_picture_is_the_fill() -> None:
    image = np.full((50, 50, 3), 200, np.uint8)

    chip = align_box(image, (-100, -100, -50, -50), CropSpec(32, 0.0, fill=7))

    assert (chip == 7).all()


def test_a_detector_box_and_the_landmarks_inside_it_give_about_the_same_chip() -> None:
    spec = CropSpec(100, 0.2)
    side = 100 / spec.box_scale
    x, y = 400 - side / 2, 300 - side / 2 - spec.box_shift[1] * side
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3)).astype(np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 6).astype(np.uint8)
    points = ((np.asarray(spec.landmarks) - 0.5) * 100 + (400, 300)).astype(np.float32)

    by_box = align_box(image, (x, y, x + side, y + side), spec).astype(float)
    by_points = align(image, points, spec).astype(float)

    assert np.abs(by_box - by_points).mean() < 1.0


@pytest.mark.parametrize(
    "points",
    [np.zeros((5, 2)), np.full((5, 2), np.nan), np.zeros((4, 2))],
    ids=["one point", "not finite", "four points"],
)
def test_impossible_landmarks_are_refused(points: np.ndarray) -> None:
    with pytest.raises(ArgumentError):
        align(np.zeros((50, 50, 3), np.uint8), points, SPEC)


@pytest.mark.parametrize("box", [(0, 0, 0, 10), (5, 5, 1, 9), (0, 0, np.nan, 1)])
def test_empty_boxes_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ArgumentError, match="face box"):
        align_box(np.zeros((50, 50, 3), np.uint8), box, SPEC)


@pytest.mark.parametrize(
    "fields", [{"size": 4}, {"margin": -1}, {"landmarks": ((0.0, 0.0),)}, {"box_scale": 0}]
)
def test_impossible_crops_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ArgumentError):
        CropSpec(**{"size": 64, "margin": 0.2, **fields})  # type: ignore[arg-type]
