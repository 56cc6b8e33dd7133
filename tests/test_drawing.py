"""Annotated pictures, blurred faces and plots, checked by their pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import hostile
from agelens import (
    AgeDistribution,
    Analysis,
    Analyzer,
    Face,
    GenderEstimate,
    Quality,
    annotate,
    blur_faces,
    plot_age,
)
from agelens.detection import intersection_over_union
from agelens.drawing import label
from agelens.errors import ArgumentError

FACES = Path(__file__).parent / "faces"
Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]
GREY = 120


def face(
    box: Box,
    *,
    age: AgeDistribution | None = None,
    gender: GenderEstimate | None = None,
    reasons: tuple[str, ...] = (),
) -> Face:
    """A face of 30 years; unusable when there are reasons."""
    quality = Quality(50, 1, 0.5, usable=not reasons, reasons=reasons)
    usual = AgeDistribution.unknown() if reasons else AgeDistribution.from_normal(30, 4)
    return Face(box, 0.9, quality, age or usual, gender)


def woman(*box: float) -> Face:
    x0, y0, x1, y1 = box
    return face((x0, y0, x1, y1), gender=GenderEstimate(0.97, 0.75))


def grey(width: int, height: int) -> Pixels:
    return np.full((height, width, 3), GREY, np.uint8)


def found(pixels: Pixels, *faces: Face) -> Analysis:
    return Analysis(None, pixels.shape[1], pixels.shape[0], faces)


def changed(before: Pixels, after: Image.Image) -> NDArray[np.bool_]:
    """(H, W): whether a pixel is another."""
    return np.asarray((np.asarray(after) != before).any(axis=2))


def white(picture: Image.Image) -> NDArray[np.bool_]:
    """(H, W): whether a pixel is the ink of a label."""
    return np.asarray((np.asarray(picture) > 235).all(axis=2))


# --- labels in words ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drawn", "text"),
    [
        (face((0, 0, 9, 9), gender=GenderEstimate(0.97)), "30 (23-37) female 97%"),
        (face((0, 0, 9, 9), gender=GenderEstimate(0.2)), "30 (23-37) male 80%"),
        (face((0, 0, 9, 9), gender=GenderEstimate(0.6, 0.75)), "30 (23-37) uncertain"),
        (face((0, 0, 9, 9)), "30 (23-37)"),
        (face((0, 0, 9, 9), reasons=("too small: 9 px, 20 needed", "blurred")), "too small"),
        (face((0, 0, 9, 9), age=AgeDistribution.unknown()), "cannot tell"),
    ],
)
def test_a_label_says_age_interval_and_gender_or_why_not(drawn: Face, text: str) -> None:
    assert label(drawn) == text


def test_the_interval_of_a_label_has_the_level_asked_for() -> None:
    # Half of a normal distribution's mass lies within 0.674 standard deviations.
    assert label(woman(0, 0, 9, 9), level=0.5) == "30 (27-33) female 97%"


# --- annotated pictures ---------------------------------------------------------------------------


def test_a_box_is_drawn_around_the_face_and_nothing_in_it() -> None:
    before = grey(400, 300)

    after = annotate(before, found(before, woman(100, 120, 220, 260)))

    drawn = changed(before, after)
    assert after.size == (400, 300)
    assert after.mode == "RGB"
    assert (before == GREY).all()
    assert drawn[190, 100]
    assert drawn[190, 220]
    assert drawn[120, 160]
    assert drawn[260, 160]
    assert not drawn[125:255, 105:215].any()
    assert not drawn[265:].any()
    assert not drawn[:, :95].any()


def test_genders_and_abstentions_differ_in_colour() -> None:
    faces = [
        face((10, 40, 90, 120), gender=GenderEstimate(0.97)),
        face((110, 40, 190, 120), gender=GenderEstimate(0.03)),
        face((210, 40, 290, 120), gender=GenderEstimate(0.5)),
        face((310, 40, 390, 120)),
        face((410, 40, 490, 120), reasons=("blurred: sharpness 0.01",)),
    ]
    before = grey(500, 200)

    after = np.asarray(annotate(before, found(before, *faces)))

    colours = {tuple(after[80, int(drawn.box[0])]) for drawn in faces}
    assert len(colours) == 5
    assert (GREY, GREY, GREY) not in colours


EDGES = {
    "top left": (-30, -40, 50, 60),
    "top": (160, -20, 240, 80),
    "top right": (350, -40, 430, 60),
    "right": (370, 100, 450, 200),
    "bottom right": (350, 240, 430, 340),
    "bottom": (160, 220, 240, 320),
    "left": (-40, 100, 40, 200),
    "tall": (160, -20, 240, 320),
    "all": (-10, -10, 410, 310),
}


@pytest.mark.parametrize("box", EDGES.values(), ids=EDGES)
def test_a_label_is_whole_wherever_the_face_is(box: Box) -> None:
    before = grey(400, 300)
    x0, y0, x1, y1 = box
    # The same face where there is room for its label on all sides.
    roomy = grey(1200, 450)
    middle = woman(400, 70, 400 + x1 - x0, 70 + y1 - y0)

    after = annotate(before, found(before, woman(*box)))

    ink = int(white(after).sum())
    whole = int(white(annotate(roomy, found(roomy, middle))).sum())
    assert ink == pytest.approx(whole, rel=0.15)


@pytest.mark.parametrize("width", range(60, 160, 10))
def test_a_label_is_whole_in_a_narrow_picture(width: int) -> None:
    before = grey(width, 140)

    after = annotate(before, found(before, woman(5, 40, width - 5, 130)))

    ink = white(after)
    assert after.size == (width, 140)
    assert ink.any()
    # A label has padding around its text: ink in the last column is a letter cut off.
    assert not ink[:, -1].any()
    assert not ink[:, 0].any()


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    before = grey(600, 300)
    faces = [woman(100 + 25 * i, 120, 120 + 25 * i, 145) for i in range(3)]

    together = int(white(annotate(before, found(before, *faces))).sum())

    alone = sum(int(white(annotate(before, found(before, one))).sum()) for one in faces)
    assert together == pytest.approx(alone, rel=0.1)


def test_hundreds_of_faces_are_all_drawn() -> None:
    before = grey(1300, 900)
    faces = [
        woman(40 * c + 5, 40 * r + 5, 40 * c + 31, 40 * r + 35)
        for r in range(21)
        for c in range(31)
    ]

    after = changed(before, annotate(before, found(before, *faces)))

    assert len(faces) == 651
    for drawn in faces:
        x0, y0, x1, y1 = (int(side) for side in drawn.box)
        assert after[y0 : y1 + 1, x0 : x1 + 1].any()


@pytest.mark.parametrize("box", [(-90, -80, -20, -10), (500, 100, 600, 200), (50, 50, 50, 50)])
def test_a_box_outside_the_picture_or_without_extent_is_no_error(box: Box) -> None:
    before = grey(400, 300)

    assert annotate(before, found(before, woman(*box))).size == (400, 300)
    assert blur_faces(before, found(before, woman(*box))).size == (400, 300)


def test_a_picture_without_faces_is_copied() -> None:
    before = grey(40, 30)

    after = annotate(before, found(before))

    assert not changed(before, after).any()
    after.putpixel((0, 0), (0, 0, 0))
    assert (before == GREY).all()


def test_a_lying_photograph_is_annotated_upright(analyzer: Analyzer) -> None:
    upright = Image.open(FACES / "hopper.jpg").convert("RGB")
    lying = hostile.with_orientation(upright, 6, "PNG")
    analysis = analyzer(lying)

    after = annotate(lying, analysis)

    x0, y0, x1, y1 = (round(side) for side in analysis.faces[0].box)
    drawn = changed(np.asarray(upright), after)
    assert after.size == upright.size
    assert drawn[(y0 + y1) // 2, x0 - 2 : x0 + 3].any()
    assert not drawn[y0 + 10 : y1 - 10, x0 + 10 : x1 - 10].any()


# --- blurred faces --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut", "hopper", "group"])
def test_a_blurred_face_is_not_found_or_not_usable(analyzer: Analyzer, name: str) -> None:
    path = FACES / f"{name}.jpg"
    analysis = analyzer(path)

    blurred = blur_faces(path, analysis)

    boxes = [found.box for found in analysis.faces]
    for again in analyzer(blurred).faces:
        assert intersection_over_union(again.box, boxes).max() < 0.5 or again.age.abstained


def test_blurring_removes_the_detail_of_faces_and_of_nothing_else(analyzer: Analyzer) -> None:
    before = np.asarray(Image.open(FACES / "hopper.jpg").convert("RGB"))
    analysis = analyzer(before)
    x0, y0, x1, y1 = (round(side) for side in analysis.faces[0].box)

    after = np.asarray(blur_faces(before, analysis)).astype(float)

    inside = np.s_[y0 + 20 : y1 - 20, x0 + 20 : x1 - 20]
    steps_before = np.abs(np.diff(before[inside].astype(float), axis=1)).mean()
    steps_after = np.abs(np.diff(after[inside], axis=1)).mean()
    assert steps_after < 0.3 * steps_before
    reach = round(0.3 * (y1 - y0))
    np.testing.assert_array_equal(after[:, : x0 - reach], before[:, : x0 - reach])
    np.testing.assert_array_equal(after[y1 + reach :], before[y1 + reach :])


def test_blurring_leaves_about_eight_cells_a_side() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 256, (600, 600, 3), np.uint8)

    after = np.asarray(blur_faces(before, found(before, woman(200, 200, 400, 400)))).astype(float)

    # Noise averaged over a cell of 35 x 35 pixels keeps 1/35 of its spread.
    assert before[250:350, 250:350].std() > 70
    assert after[250:350, 250:350].std() < 6


@pytest.mark.parametrize(
    "box",
    [
        (-75, 100, 75, 250),
        (-50, -50, 100, 100),
        (300, 300, 500, 500),
        (100, -90, 200, 30),
        (100, 100, 200, 220),
    ],
)
def test_a_face_cut_by_the_edge_is_blurred_to_the_edge(box: Box) -> None:
    rng = np.random.default_rng(1)
    before = rng.integers(0, 256, (400, 400, 3), np.uint8)

    after = blur_faces(before, found(before, woman(*box)))

    x0, y0, x1, y1 = box
    y, x = np.mgrid[:400, :400] + 0.5
    oval = np.hypot((2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)) <= 1
    kept = ~changed(before, after) & oval
    assert kept.sum() / oval.sum() < 0.001


def test_annotating_can_blur_as_well(analyzer: Analyzer) -> None:
    path = FACES / "hopper.jpg"
    analysis = analyzer(path)
    x0, y0, x1, y1 = (round(side) for side in analysis.faces[0].box)

    both = np.asarray(annotate(path, analysis, blur=True))

    blurred = np.asarray(blur_faces(path, analysis))
    inside = np.s_[y0 + 10 : y1 - 10, x0 + 10 : x1 - 10]
    np.testing.assert_array_equal(both[inside], blurred[inside])
    assert (both[(y0 + y1) // 2, x0] != blurred[(y0 + y1) // 2, x0]).any()


# --- plots ----------------------------------------------------------------------------------------


def highest_bar(picture: Image.Image) -> float:
    """Where the highest blue bar stands, 0 (left) to 1 (right)."""
    pixels = np.asarray(picture).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0] > 90) & (pixels[..., 0] < 120)
    columns = blue.sum(axis=0)
    return float(np.flatnonzero(columns == columns.max()).mean() / picture.width)


def test_the_bars_stand_where_the_ages_are() -> None:
    # A narrow distribution beside the mean line, which would cover its highest bar.
    young = plot_age(AgeDistribution.mix([normal(20), normal(60)], [0.7, 0.3]), size=(1010, 400))
    old = plot_age(AgeDistribution.mix([normal(80), normal(40)], [0.7, 0.3]), size=(1010, 400))

    assert highest_bar(young) == pytest.approx(20 / 101, abs=0.03)
    assert highest_bar(old) == pytest.approx(80 / 101, abs=0.03)


def normal(age: float) -> AgeDistribution:
    return AgeDistribution.from_normal(age, 1)


def test_a_wider_interval_shades_more() -> None:
    age = AgeDistribution.from_normal(50, 10)

    def shaded(level: float) -> int:
        pixels = np.asarray(plot_age(age, level=level)).astype(int)
        return int(((pixels[..., 2] > pixels[..., 0] + 10) & (pixels[..., 0] > 200)).sum())

    assert 0 < shaded(0.5) < shaded(0.9) < shaded(0.99)


@pytest.mark.parametrize("size", [(640, 320), (200, 100), (50, 40)])
def test_a_plot_has_the_size_asked_for(size: tuple[int, int]) -> None:
    assert plot_age(AgeDistribution.from_normal(30, 5), size=size).size == size
    assert plot_age(AgeDistribution.unknown(), size=size).size == size


def test_a_plot_of_an_abstention_has_words_and_no_bars() -> None:
    picture = plot_age(AgeDistribution.unknown())

    pixels = np.asarray(picture).astype(int)
    assert (pixels[:60] < 128).any()
    assert (pixels[60:] == 255).all()
    assert np.ptp(pixels, axis=2).max() < 10


def test_a_plot_of_an_impossible_level_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"level must be within 0\.\.1, got 1\.5"):
        plot_age(AgeDistribution.from_normal(30, 5), level=1.5)
