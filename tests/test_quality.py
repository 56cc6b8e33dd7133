"""Size, sharpness, light and pose of a face, and the reasons to abstain."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from agelens.detection import YuNet
from agelens.errors import ArgumentError
from agelens.quality import DEFAULT_QUALITY_LIMITS, QualityLimits, head_pose, judge, measure
from agelens.results import Quality

FACES = Path(__file__).parent / "faces"
Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]
Head = list[tuple[float, float, float]]

GOOD = Quality(size_px=120, sharpness=0.5, exposure=0.5, yaw=5.0, pitch=-3.0, roll=1.0)


@cache
def face(name: str) -> tuple[Pixels, Box, NDArray[np.float32]]:
    image = np.asarray(Image.open(FACES / f"{name}.jpg").convert("RGB"))
    found = YuNet().detect(image)
    assert found.landmarks is not None
    x0, y0, x1, y1 = (float(v) for v in found.boxes[0])
    return image, (x0, y0, x1, y1), found.landmarks[0]


# --- pose -----------------------------------------------------------------------------------------

# Millimetres, x right, y down, z away from the camera: eyes, nose tip, mouth corners. The first
# has the proportions that the module states; the others are people of other proportions.
GENERIC: Head = [(-32, -34, 0), (32, -34, 0), (0, 6, -26), (-26, 36, 4), (26, 36, 4)]
LONG_FACE: Head = [(-30, -38, 2), (30, -38, 2), (0, 8, -30), (-24, 42, 2), (24, 42, 2)]
ROUND_FACE: Head = [(-35, -32, 0), (35, -32, 0), (0, 4, -20), (-28, 33, 6), (28, 33, 6)]


def projected(
    head: Head,
    yaw: float,
    pitch: float,
    roll: float,
    *,
    distance: float = math.inf,
    scale: float = 1.7,
) -> NDArray[np.float64]:
    """Points of a turned head as a camera sees them, written out point by point.

    The head first nods (looks up by ``pitch``), then turns to the right of the picture by ``yaw``,
    then leans clockwise by ``roll``; all in degrees.
    """
    p, y, r = (math.radians(angle) for angle in (pitch, yaw, roll))
    points = []
    for px, py, pz in head:
        # Looking up: the nose (z < 0) goes up (y falls).
        px, py, pz = px, py * math.cos(p) + pz * math.sin(p), pz * math.cos(p) - py * math.sin(p)
        # To the right of the picture: the nose (z < 0) goes right (x rises).
        px, pz = px * math.cos(y) - pz * math.sin(y), pz * math.cos(y) + px * math.sin(y)
        # Clockwise as seen: the right eye goes down (y rises).
        px, py = px * math.cos(r) - py * math.sin(r), py * math.cos(r) + px * math.sin(r)
        nearer = 1.0 if math.isinf(distance) else distance / (distance + pz)
        points.append((300 + scale * nearer * px, 200 + scale * nearer * py))
    return np.array(points)


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"),
    [
        (0, 0, 0), (30, 0, 0), (-30, 0, 0), (0, 20, 0), (0, -20, 0), (0, 0, 25), (0, 0, -90),
        (45, 10, 5), (-50, -15, 30), (20, 25, -140),
    ],
)  # fmt: skip
def test_the_turn_of_the_generic_head_is_recovered(yaw: int, pitch: int, roll: int) -> None:
    found = head_pose(projected(GENERIC, yaw, pitch, roll))

    np.testing.assert_allclose(found, (yaw, pitch, roll), atol=0.1)


@given(st.floats(-60, 60), st.floats(-30, 30), st.floats(-170, 170), st.floats(0.1, 20))
def test_pose_does_not_depend_on_the_size_of_the_face(
    yaw: float, pitch: float, roll: float, scale: float
) -> None:
    found = head_pose(projected(GENERIC, yaw, pitch, roll, scale=scale))

    np.testing.assert_allclose(found, (yaw, pitch, roll), atol=0.1)


@pytest.mark.parametrize("head", [LONG_FACE, ROUND_FACE], ids=["long face", "round face"])
@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (25, 0), (-40, 0), (0, 15), (20, -15)])
def test_other_heads_near_a_camera_are_good_to_some_ten_degrees(
    head: Head, yaw: int, pitch: int
) -> None:
    found = head_pose(projected(head, yaw, pitch, 8, distance=600))

    np.testing.assert_allclose(found, (yaw, pitch, 8), atol=12)


@pytest.mark.parametrize(
    "points", [np.zeros((5, 2)), np.full((5, 2), 7.0), np.full((5, 2), np.nan)]
)
def test_points_without_a_pose_give_zero_angles(points: NDArray[np.float64]) -> None:
    assert head_pose(points) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_the_portraits_look_at_the_camera(name: str) -> None:
    yaw, pitch, roll = head_pose(face(name)[2])

    assert abs(yaw) < 15
    assert abs(pitch) < 15
    assert abs(roll) < 6


def test_mirroring_a_face_turns_yaw_and_roll_round() -> None:
    points = projected(GENERIC, 25, 10, 15)
    mirrored = np.c_[600 - points[:, 0], points[:, 1]][[1, 0, 2, 4, 3]]

    np.testing.assert_allclose(head_pose(mirrored), (-25, 10, -15), atol=0.1)


# --- what is measured -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_a_good_portrait_is_usable(name: str) -> None:
    quality = measure(*face(name))

    assert quality.usable
    assert quality.reasons == ()
    assert 0.2 < quality.exposure < 0.8


def blurred(name: str, share: float) -> Quality:
    """The quality of a portrait blurred by a Gaussian of this share of the face's side."""
    image, box, landmarks = face(name)
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    soft = cv2.GaussianBlur(image, (0, 0), share * side).astype(np.uint8)
    return measure(soft, box, landmarks)


@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_more_blur_is_less_sharp(name: str) -> None:
    sharpness = [measure(*face(name)).sharpness]
    sharpness += [blurred(name, share).sharpness for share in (0.005, 0.01, 0.02, 0.04, 0.06, 0.08)]

    assert all(more > less for more, less in itertools.pairwise(sharpness))


@pytest.mark.parametrize("share", [0.12, 0.16, 0.24, 0.3])
@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_a_face_blurred_beyond_recognition_is_not_usable(name: str, share: float) -> None:
    quality = blurred(name, share)

    assert not quality.usable
    assert any("blurred" in reason for reason in quality.reasons)


@pytest.mark.parametrize("factor", [0.5, 0.25, 0.125])
def test_a_face_of_fewer_pixels_has_less_detail(factor: float) -> None:
    image, box, landmarks = face("hopper")
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    x0, y0, x1, y1 = (v * factor for v in box)

    full = measure(image, box, landmarks)
    less = measure(small, (x0, y0, x1, y1), landmarks * factor)

    assert less.size_px == pytest.approx(full.size_px * factor)
    if 192 * factor < 60:
        assert less.sharpness < 0.9 * full.sharpness
    else:
        assert less.sharpness == pytest.approx(full.sharpness, rel=0.25)


def test_size_is_the_side_of_a_square_of_the_same_area() -> None:
    image, _, landmarks = face("astronaut")

    assert measure(image, (100, 50, 190, 90), landmarks).size_px == pytest.approx(60)
    assert measure(image, (100, 50, 190, 90), landmarks, scale=4).size_px == pytest.approx(240)


def test_size_counts_pixels_of_the_full_picture_when_it_is_judged() -> None:
    image, _, landmarks = face("astronaut")
    box = (100.0, 50.0, 112.0, 62.0)

    assert "too small" in " ".join(measure(image, box, landmarks).reasons)
    assert "too small" not in " ".join(measure(image, box, landmarks, scale=2).reasons)


@pytest.mark.parametrize(
    ("gain", "reason"), [(0.02, "too dark"), (1.0, None), (40.0, "too bright")]
)
def test_light_is_measured_and_its_extremes_are_reasons(gain: float, reason: str | None) -> None:
    image, box, landmarks = face("astronaut")
    lit = np.clip(image.astype(np.float64) * gain + (gain > 10) * 60, 0, 255).astype(np.uint8)

    quality = measure(lit, box, landmarks)

    assert any((reason or "") in text for text in quality.reasons) == (reason is not None)


@pytest.mark.parametrize("grey", [0, 64, 128, 255])
def test_exposure_is_the_mean_luminance(grey: int) -> None:
    flat = np.full((200, 200, 3), grey, np.uint8)

    assert measure(flat, (50, 50, 150, 150), None).exposure == pytest.approx(grey / 255, abs=1e-3)


def test_a_flat_area_is_no_face() -> None:
    flat = np.full((200, 200, 3), 128, np.uint8)

    quality = measure(flat, (50, 50, 150, 150), None)

    assert not quality.usable
    assert "no contrast: the area is flat" in quality.reasons


def test_without_landmarks_there_is_no_pose() -> None:
    image, box, _ = face("astronaut")

    quality = measure(image, box, None)

    assert (quality.yaw, quality.pitch, quality.roll) == (None, None, None)
    assert quality.usable


@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_a_crop_with_some_margin_is_measured_as_the_face_inside_it(name: str) -> None:
    image, box, _ = face(name)
    margin = 0.06 * (box[2] - box[0])
    x0, y0, x1, y1 = (round(v + way * margin) for v, way in zip(box, (-1, -1, 1, 1), strict=True))
    crop = np.ascontiguousarray(image[y0:y1, x0:x1])

    quality = measure(crop, (0, 0, x1 - x0, y1 - y0), None, whole_picture=True)

    assert quality.usable
    assert quality.sharpness == pytest.approx(measure(image, box, None).sharpness, rel=0.15)
    assert quality.exposure == pytest.approx(measure(image, box, None).exposure, abs=0.05)


# --- judging --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size_px": 12.0}, r"too small: 12 px, 20 needed"),
        ({"sharpness": 0.04}, r"blurred: sharpness 0\.04, 0\.10 needed"),
        ({"exposure": 0.02}, r"too dark: exposure 0\.02"),
        ({"exposure": 0.99}, r"too bright: exposure 0\.99"),
        ({"yaw": 71.0}, r"turned away: 71 degrees to the side"),
        ({"yaw": -71.0}, r"turned away: 71 degrees to the side"),
        ({"pitch": 44.0}, r"turned away: 44 degrees up or down"),
        ({"pitch": -44.0}, r"turned away: 44 degrees up or down"),
    ],
)
def test_each_limit_gives_its_reason_in_words(changes: dict[str, float], words: str) -> None:
    limits = QualityLimits(20, 0.10, 0.06, 0.97, 60, 35)

    judged = judge(dataclasses.replace(GOOD, **changes), limits)  # type: ignore[arg-type]

    assert not judged.usable
    assert len(judged.reasons) == 1
    assert re.match(words, judged.reasons[0])


def test_a_leaning_head_is_no_reason() -> None:
    assert judge(dataclasses.replace(GOOD, roll=170.0), DEFAULT_QUALITY_LIMITS).usable


def test_every_reason_is_given() -> None:
    bad = Quality(5, 0.01, 0.01, 80.0, 50.0, 0.0)

    reasons = judge(bad, DEFAULT_QUALITY_LIMITS).reasons

    assert [reason.split(":")[0] for reason in reasons] == [
        "too small", "blurred", "too dark", "turned away", "turned away",
    ]  # fmt: skip


qualities = st.builds(
    Quality,
    st.floats(0, 3000),
    st.floats(0, 3),
    st.floats(0, 1),
    st.none() | st.floats(-180, 180),
    st.none() | st.floats(-180, 180),
    st.none() | st.floats(-180, 180),
)


@given(qualities)
def test_judging_keeps_the_numbers(quality: Quality) -> None:
    judged = judge(quality, DEFAULT_QUALITY_LIMITS)

    assert dataclasses.replace(judged, usable=True, reasons=()) == quality
    assert judged.usable == (not judged.reasons)


@given(qualities)
def test_judging_again_with_other_limits_forgets_the_first_verdict(quality: Quality) -> None:
    assert judge(judge(quality, DEFAULT_QUALITY_LIMITS), QualityLimits.off()).usable


@given(qualities, st.floats(0, 127))
def test_with_the_limits_off_every_face_is_usable(quality: Quality, contrast: float) -> None:
    judged = judge(quality, QualityLimits.off(), contrast=contrast)

    assert judged.usable
    assert judged.reasons == ()


def test_the_limit_itself_is_still_usable() -> None:
    limits = QualityLimits(20, 0.10, 0.06, 0.97, 60, 35)

    assert judge(Quality(20, 0.10, 0.06, 60.0, 35.0, 0.0), limits).usable
    assert judge(Quality(20, 0.10, 0.97, -60.0, -35.0, 0.0), limits).usable


@pytest.mark.parametrize(
    "quality",
    [dataclasses.replace(GOOD, size_px=19.8), dataclasses.replace(GOOD, sharpness=0.0974)],
    ids=["size", "sharpness"],
)
def test_a_reason_never_says_that_what_is_there_is_what_is_needed(quality: Quality) -> None:
    """Rounded, 19.8 px would read "20 px, 20 needed"."""
    limits = QualityLimits(min_size_px=20, min_sharpness=0.10)

    (reason,) = judge(quality, limits).reasons

    found, needed = re.findall(r"\d+(?:\.\d+)?", reason)
    assert float(found) < float(needed)


@pytest.mark.parametrize(
    "fields",
    [
        {"min_exposure": 0.9, "max_exposure": 0.2},
        {"min_exposure": 0.5, "max_exposure": 0.5},
        {"min_size_px": -1.0},
        {"min_size_px": math.nan},
        {"min_sharpness": math.nan},
        {"max_yaw": -5.0},
        {"max_pitch": math.nan},
    ],
    ids=lambda fields: ", ".join(f"{k}={v}" for k, v in fields.items()),
)
def test_impossible_limits_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(fields))):
        QualityLimits(**fields)
