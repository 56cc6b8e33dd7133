"""The chain from a picture to its faces: sources, options, abstention, threads, processes."""

from __future__ import annotations

import io
import math
import multiprocessing
import pickle
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import agelens
import hostile
import onnx_models
from agelens import Analysis, Analyzer, AnalyzerOptions, Face, QualityLimits, SourceItem
from agelens.errors import ArgumentError, ImageError, LicenceNotAccepted, ModelNotFound
from agelens.images import ImageLimits, ImageSource

FACES = Path(__file__).parent / "faces"
Pixels = NDArray[np.uint8]

# Read off the enlarged photographs by eye: pupils, tip of the nose, corners of the mouth.
EYES_NOSE_MOUTH = {
    "astronaut": [(203, 101), (246, 103), (224, 123), (204, 140), (246, 140)],
    "hopper": [(221, 190), (304, 187), (265, 237), (228, 278), (309, 278)],
}
FACE_OF_HOPPER = (178, 115, 351, 328)


@cache
def photograph(name: str) -> Pixels:
    """(H, W, 3) RGB of a photograph, decoded without AgeLens."""
    pixels = np.asarray(Image.open(FACES / f"{name}.jpg").convert("RGB"))
    pixels.setflags(write=False)
    return pixels


@cache
def variants(count: int) -> list[Pixels]:
    """Small different pictures: crops of the photographs, mirrored, lighter and darker."""
    source = random.Random(7)
    windows = {"astronaut": (80, 0, 360, 260), "hopper": (60, 40, 460, 460), "group": (0, 0, 0, 0)}
    made = []
    for _ in range(count):
        name = source.choice(list(windows))
        image = Image.fromarray(photograph(name))
        x0, y0, x1, y1 = windows[name]
        if name == "group":
            x0, y0 = source.randrange(0, 900), source.randrange(0, 440)
            x1, y1 = x0 + 380, y0 + 300
        x0, y0 = x0 + source.randrange(0, 30), y0 + source.randrange(0, 30)
        side = source.randrange(200, 301)
        small = image.crop((x0, y0, x1, y1)).resize((side, source.randrange(200, 301)))
        if source.random() < 0.5:
            small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        light = source.uniform(0.5, 1.3)
        made.append(np.clip(np.asarray(small) * light, 0, 255).astype(np.uint8))
    return made


def fingerprint(analysis: Analysis) -> list[tuple[Any, ...]]:
    """Every bit of every face."""
    return [
        (
            face.box,
            face.score,
            face.origin,
            None if face.landmarks is None else face.landmarks.tobytes(),
            face.age.probabilities.tobytes(),
            face.age.abstained,
            face.age.coverage,
            face.gender,
            face.quality,
        )
        for face in analysis.faces
    ]


def only_face(analysis: Analysis) -> Face:
    (face,) = analysis.faces
    return face


def png(pixels: Pixels) -> bytes:
    return hostile.encoded(Image.fromarray(pixels), "PNG")


# --- one picture ----------------------------------------------------------------------------------


def test_one_call_finds_a_face_and_tells_age_and_gender() -> None:
    path = str(FACES / "astronaut.jpg")

    analysis = agelens.analyze(path)

    face = only_face(analysis)
    x0, y0, x1, y1 = face.box
    assert (analysis.path, analysis.width, analysis.height) == (path, 512, 512)
    assert analysis.ok
    assert analysis.model.startswith("agelens-s@")
    assert all(x0 < x < x1 and y0 < y < y1 for x, y in EYES_NOSE_MOUTH["astronaut"])
    assert face.landmarks is not None
    assert np.abs(face.landmarks - EYES_NOSE_MOUTH["astronaut"]).max() < 8
    assert face.origin == "detector"
    assert 0.7 <= face.score <= 1
    assert face.quality.usable
    assert face.gender is not None
    assert face.gender.label == "female"
    # Eileen Collins was 35 when the photograph was taken.
    low, high = face.age.interval(0.9)
    assert low <= 35 <= high


def test_one_call_takes_options() -> None:
    analysis = agelens.analyze(FACES / "group.jpg", max_faces=2, gender=False)

    assert [face.gender for face in analysis.faces] == [None, None]


def test_faces_are_ordered_by_area_times_score(analyzer: Analyzer) -> None:
    found = analyzer(FACES / "group.jpg").faces
    weights = [(f.box[2] - f.box[0]) * (f.box[3] - f.box[1]) * f.score for f in found]

    assert len(found) >= 10
    assert weights == sorted(weights, reverse=True)


@pytest.mark.parametrize(
    "kind", ["str", "bytes", "bytearray", "memoryview", "file", "pil", "array", "png", "rgba"]
)
def test_all_kinds_of_source_give_the_same_faces(analyzer: Analyzer, kind: str) -> None:
    path = FACES / "hopper.jpg"
    content = path.read_bytes()
    pixels = photograph("hopper")
    sources: dict[str, ImageSource] = {
        "str": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "file": io.BytesIO(content),
        "pil": Image.open(io.BytesIO(content)),
        "array": pixels,
        "png": png(pixels),
        "rgba": np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
    }

    assert fingerprint(analyzer(sources[kind])) == fingerprint(analyzer(path))


def test_what_cannot_be_read_raises_with_a_code_and_the_place(
    analyzer: Analyzer, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")

    with pytest.raises(ImageError, match=r"broken\.jpg") as caught:
        analyzer(broken)

    assert caught.value.code == "not_an_image"


def test_a_picture_without_a_face_has_none(analyzer: Analyzer) -> None:
    analysis = analyzer(np.full((200, 300, 3), 90, np.uint8))

    assert (analysis.faces, analysis.ok, analysis.path) == ((), True, None)
    assert (analysis.width, analysis.height) == (300, 200)


@pytest.mark.parametrize("name", ["astronaut", "hopper"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_gives_the_same_face_in_upright_coordinates(
    analyzer: Analyzer, name: str, orientation: int
) -> None:
    upright = Image.fromarray(photograph(name))
    lying = hostile.with_orientation(upright, orientation, "JPEG", quality=92)

    analysis = analyzer(lying)

    expected, face = only_face(analyzer(upright)), only_face(analysis)
    assert (analysis.width, analysis.height) == upright.size
    np.testing.assert_allclose(face.box, expected.box, atol=2)
    assert face.landmarks is not None
    assert expected.landmarks is not None
    np.testing.assert_allclose(face.landmarks, expected.landmarks, atol=2)


def test_faces_of_a_reduced_picture_are_in_pixels_of_the_full_one(analyzer: Analyzer) -> None:
    canvas = np.full((700, 8192, 3), 128, np.uint8)
    canvas[50:650, 7000:7512] = photograph("hopper")

    analysis = analyzer(canvas)

    face, plain = only_face(analysis), only_face(analyzer(photograph("hopper")))
    assert (analysis.width, analysis.height) == (8192, 700)
    np.testing.assert_allclose(face.box, np.add(plain.box, (7000, 50, 7000, 50)), atol=12)
    assert face.quality.size_px == pytest.approx(plain.quality.size_px, rel=0.08)


# --- the caller's own boxes -----------------------------------------------------------------------


def test_given_boxes_are_answered_in_the_callers_order(analyzer: Analyzer) -> None:
    found = analyzer(FACES / "group.jpg").faces
    boxes = [face.box for face in reversed(found)]

    answered = analyzer(FACES / "group.jpg", boxes=boxes).faces

    np.testing.assert_allclose([face.box for face in answered], boxes, rtol=1e-5)
    assert {(face.origin, face.score) for face in answered} == {("caller", 1.0)}
    assert all(face.landmarks is None for face in answered)


def test_given_boxes_are_neither_sorted_nor_left_out() -> None:
    picky = Analyzer(min_face=100, max_faces=1)
    boxes = [(200, 130, 240, 180), FACE_OF_HOPPER, (0, 0, 30, 30)]

    answered = picky(FACES / "hopper.jpg", boxes=boxes).faces

    assert [face.box for face in answered] == boxes


def test_a_box_may_reach_outside_the_picture(analyzer: Analyzer) -> None:
    face = only_face(analyzer(FACES / "hopper.jpg", boxes=[(-40, -60, 380, 400)]))

    assert face.box == (-40, -60, 380, 400)


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4))])
def test_no_boxes_give_no_faces(analyzer: Analyzer, boxes: Any) -> None:
    assert analyzer(FACES / "hopper.jpg", boxes=boxes).faces == ()


GOOD_BOX = [10.0, 10.0, 60.0, 70.0]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        pytest.param([GOOD_BOX, [5, 5, 5, 9]], r"box 1 .*x0 < x1", id="no width"),
        pytest.param([GOOD_BOX, GOOD_BOX, [5, 9, 8, 5]], r"box 2 .*y0 < y1", id="upside down"),
        pytest.param([GOOD_BOX, [600, 0, 700, 50]], r"box 1 .*outside the 512x600", id="right"),
        pytest.param([[-50, -50, -1, -1]], r"box 0 .*outside", id="above"),
        pytest.param([GOOD_BOX, [5, 5, math.nan, 9]], r"box 1 .*finite", id="not a number"),
        pytest.param(GOOD_BOX, r"\(N, 4\).*\(4,\)", id="one box without its list"),
        pytest.param([[1, 2, 3]], r"\(N, 4\).*\(1, 3\)", id="three numbers"),
        pytest.param([[1, 2, 3, "x"]], r"\(N, 4\)", id="text"),
        pytest.param([GOOD_BOX, [1, 2, 3]], r"\(N, 4\)", id="ragged"),
    ],
)
def test_bad_boxes_are_refused_by_their_row(analyzer: Analyzer, boxes: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        analyzer(FACES / "hopper.jpg", boxes=boxes)


def test_a_bad_box_is_shown_in_plain_numbers(analyzer: Analyzer) -> None:
    with pytest.raises(ArgumentError) as caught:
        analyzer(FACES / "hopper.jpg", boxes=[[5, 5, 5, 9]])

    assert "(5.0, 5.0, 5.0, 9.0)" in str(caught.value)


# --- options --------------------------------------------------------------------------------------


def test_without_a_detector_the_whole_picture_is_one_face() -> None:
    crop = photograph("hopper")[100:350, 150:380]

    face = only_face(Analyzer(detector="none")(crop))

    assert (face.box, face.origin, face.landmarks) == ((0, 0, 230, 250), "whole_picture", None)
    assert face.quality.yaw is None
    assert not face.age.abstained


def test_a_crop_without_a_detected_face_falls_back_to_the_whole_picture(
    analyzer: Analyzer,
) -> None:
    nose_and_mouth = photograph("hopper")[215:300, 215:320]
    assert analyzer(nose_and_mouth).faces == ()

    face = only_face(Analyzer(crops=True)(nose_and_mouth))

    assert (face.box, face.origin, face.score) == ((0, 0, 105, 85), "whole_picture", 1)
    assert math.isfinite(face.age.mean)


def test_a_crop_with_several_faces_keeps_the_most_prominent(analyzer: Analyzer) -> None:
    face = only_face(Analyzer(crops=True)(FACES / "group.jpg"))

    assert face.origin == "detector"
    assert face.box == analyzer(FACES / "group.jpg").faces[0].box


def test_max_faces_keeps_the_first(analyzer: Analyzer) -> None:
    three = Analyzer(max_faces=3)(FACES / "group.jpg")

    boxes = [face.box for face in analyzer(FACES / "group.jpg").faces]
    assert [face.box for face in three.faces] == boxes[:3]


def test_min_face_leaves_small_faces_out(analyzer: Analyzer) -> None:
    all_sizes = [face.quality.size_px for face in analyzer(FACES / "group.jpg").faces]
    limit = 70
    assert all(abs(size - limit) > 5 for size in all_sizes)

    large = Analyzer(min_face=limit)(FACES / "group.jpg").faces

    assert len(large) == sum(size > limit for size in all_sizes) < len(all_sizes)
    assert all(face.quality.size_px >= limit for face in large)


def test_gender_can_be_switched_off(analyzer: Analyzer) -> None:
    boxes = [FACE_OF_HOPPER, (0, 0, 8, 8)]

    usable, unusable = Analyzer(gender=False)(FACES / "hopper.jpg", boxes=boxes).faces

    assert (usable.gender, unusable.gender) == (None, None)
    assert unusable.age.abstained
    with_gender = analyzer(FACES / "hopper.jpg", boxes=boxes).faces[0]
    np.testing.assert_array_equal(usable.age.probabilities, with_gender.age.probabilities)


def test_flip_averages_with_the_mirror_image() -> None:
    flipping = Analyzer(flip=True)
    mirrored = np.ascontiguousarray(photograph("hopper")[:, ::-1])
    width = mirrored.shape[1]
    x0, y0, x1, y1 = FACE_OF_HOPPER

    one = only_face(flipping(photograph("hopper"), boxes=[FACE_OF_HOPPER]))
    other = only_face(flipping(mirrored, boxes=[(width - x1, y0, width - x0, y1)]))

    np.testing.assert_allclose(one.age.probabilities, other.age.probabilities, atol=0.01)
    plain = only_face(Analyzer()(photograph("hopper"), boxes=[FACE_OF_HOPPER]))
    assert not np.array_equal(one.age.probabilities, plain.age.probabilities)


def test_options_can_be_given_whole_and_changed() -> None:
    options = AnalyzerOptions(min_face=40, detector="none")

    changed = Analyzer(options, max_faces=2)

    assert changed.options == AnalyzerOptions(min_face=40, detector="none", max_faces=2)
    assert "none" in repr(changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"crops": True},
        {"gender": False},
        {"min_face": 70},
        {"max_faces": 2},
        {"flip": True},
        {"detector": "none"},
        {"quality": QualityLimits.off()},
        {"model": "cc0"},
        {"min_score": 0.95},
    ],
    ids=str,
)
def test_a_variant_answers_as_an_analyzer_of_its_options(
    analyzer: Analyzer, changes: dict[str, Any]
) -> None:
    variant, alone = analyzer.variant(**changes), Analyzer(**changes)

    assert variant.options == alone.options
    assert variant.model == alone.model
    for path in (FACES / "group.jpg", FACES / "hopper.jpg"):
        assert fingerprint(variant(path)) == fingerprint(alone(path))


def test_a_variant_leaves_the_analyzer_as_it_was(analyzer: Analyzer) -> None:
    before = fingerprint(analyzer(FACES / "group.jpg"))

    analyzer.variant(min_face=100, max_faces=1, gender=False)(FACES / "group.jpg")

    assert analyzer.options == AnalyzerOptions()
    assert fingerprint(analyzer(FACES / "group.jpg")) == before


def test_a_variant_takes_no_memory_for_weights(analyzer: Analyzer) -> None:
    process = psutil.Process()
    kept = [analyzer.variant(min_face=20 + number) for number in range(5)]
    before = process.memory_info().rss

    kept += [analyzer.variant(min_face=30, max_faces=1 + number) for number in range(200)]

    # Two hundred networks of 3.4 MB would be 680.
    assert process.memory_info().rss - before < 20_000_000
    assert [len(one(FACES / "group.jpg").faces) for one in kept[5:8]] == [1, 2, 3]


def test_a_variant_loads_the_gender_network_that_was_left_out() -> None:
    ages_only = Analyzer(model="cc0", gender=False)

    face = only_face(ages_only.variant(gender=True)(FACES / "hopper.jpg"))

    assert face.gender == only_face(Analyzer(model="cc0")(FACES / "hopper.jpg")).gender
    assert face.gender is not None


def test_a_variant_is_held_to_the_same_rules(tmp_path: Path, analyzer: Analyzer) -> None:
    (tmp_path / "genderage.onnx").write_bytes(onnx_models.genderage().graph)

    with pytest.raises(ArgumentError, match="'minface'"):
        analyzer.variant(minface=3)
    with pytest.raises(ArgumentError, match="min_face"):
        analyzer.variant(min_face=0)
    with pytest.raises(ModelNotFound, match="'nonesuch'"):
        analyzer.variant(model="nonesuch")
    with pytest.raises(LicenceNotAccepted):
        analyzer.variant(model=f"insightface:{tmp_path}")


def test_an_unknown_option_is_named_with_those_there_are() -> None:
    with pytest.raises(ArgumentError, match=r"'minface'.*min_face.*max_faces"):
        Analyzer(minface=30)


def test_a_model_name_in_the_place_of_options_is_refused_with_advice() -> None:
    with pytest.raises(ArgumentError, match="model="):
        Analyzer("cc0")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_faces", 0), ("threads", 0), ("batch", 0), ("min_face", 0), ("min_score", 1.5)],
)
def test_an_option_out_of_range_is_refused(option: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=str(value)):
        Analyzer(**{option: value})


@pytest.mark.parametrize("option", ["model", "detector"])
def test_a_wrong_name_fails_when_the_analyzer_is_made(option: str) -> None:
    with pytest.raises(ModelNotFound, match="'nonesuch'"):
        Analyzer(**{option: "nonesuch"})


def test_a_research_model_needs_the_licence_accepted(tmp_path: Path) -> None:
    (tmp_path / "genderage.onnx").write_bytes(onnx_models.genderage().graph)
    name = f"insightface:{tmp_path}"

    with pytest.raises(LicenceNotAccepted, match="accept_licence=True"):
        Analyzer(model=name)
    face = only_face(Analyzer(model=name, accept_licence=True)(FACES / "hopper.jpg"))

    assert math.isfinite(face.age.mean)
    assert face.gender is not None


def test_limits_on_the_picture_are_the_callers() -> None:
    with pytest.raises(ImageError) as caught:
        Analyzer(limits=ImageLimits(max_pixels=100_000))(FACES / "hopper.jpg")

    assert caught.value.code == "too_many_pixels"


def test_chips_are_what_the_model_sees(analyzer: Analyzer) -> None:
    chips = analyzer.chips(FACES / "group.jpg")

    assert chips.shape == (len(analyzer(FACES / "group.jpg").faces), 112, 112, 3)
    assert chips.dtype == np.uint8
    assert analyzer.chips(np.zeros((50, 50, 3), np.uint8)).shape == (0, 112, 112, 3)


# --- abstention -----------------------------------------------------------------------------------


def beyond_recognition(what: str) -> Image.Image:
    image = Image.fromarray(photograph("hopper"))
    if what == "blurred":
        return image.filter(ImageFilter.GaussianBlur(16))
    if what == "too dark":
        return image.point(lambda value: value * 0.05)
    return image.resize((image.width // 16, image.height // 16))


@pytest.mark.parametrize("what", ["blurred", "too dark", "too small"])
def test_an_unusable_face_gets_no_guess_but_the_reason(analyzer: Analyzer, what: str) -> None:
    image = beyond_recognition(what)
    box = np.array(FACE_OF_HOPPER) * image.width / 512

    face = only_face(analyzer(image, boxes=[box]))

    assert face.age.abstained
    assert not face.quality.usable
    assert any(reason.startswith(what) for reason in face.quality.reasons)
    assert math.isnan(face.age.mean)
    assert math.isnan(face.age.probability_at_least(18))
    assert face.gender is not None
    assert face.gender.label == "uncertain"
    assert face.to_dict()["age"]["mean"] is None


@pytest.mark.parametrize("what", ["blurred", "too dark", "too small"])
def test_without_quality_limits_every_face_is_answered(what: str) -> None:
    image = beyond_recognition(what)
    box = np.array(FACE_OF_HOPPER) * image.width / 512

    face = only_face(Analyzer(quality=QualityLimits.off())(image, boxes=[box]))

    assert face.quality.usable
    assert face.quality.reasons == ()
    assert math.isfinite(face.age.mean)


def test_an_unusable_face_beside_a_good_one_does_not_take_its_answer(analyzer: Analyzer) -> None:
    boxes = [(0, 0, 8, 8), FACE_OF_HOPPER, (20, 20, 26, 26)]

    first, middle, last = analyzer(FACES / "hopper.jpg", boxes=boxes).faces

    alone = only_face(analyzer(FACES / "hopper.jpg", boxes=[FACE_OF_HOPPER]))
    assert (first.age.abstained, last.age.abstained) == (True, True)
    np.testing.assert_array_equal(middle.age.probabilities, alone.age.probabilities)


# --- threads --------------------------------------------------------------------------------------


def test_eight_threads_on_one_analyzer_give_bit_for_bit_the_results_of_one(
    analyzer: Analyzer,
) -> None:
    pictures = variants(400)
    alone = [fingerprint(analyzer(picture)) for picture in pictures]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda picture: fingerprint(analyzer(picture)), pictures))

    assert sum(map(len, alone)) >= 300
    assert together == alone


# --- stages ---------------------------------------------------------------------------------------


def test_the_stages_one_after_another_give_what_a_call_gives(analyzer: Analyzer) -> None:
    paths = [FACES / "hopper.jpg", FACES / "group.jpg"]
    few = analyzer.variant(max_faces=2)

    scenes = [analyzer.locate(analyzer.read(paths[0])), few.locate(few.read(paths[1]))]
    hopper, group = analyzer.estimate(scenes)

    assert [len(scene.faces) for scene in scenes] == [1, 2]
    assert (hopper.path, group.path) == tuple(str(path) for path in paths)
    for found, expected in ((hopper, analyzer(paths[0])), (group, few(paths[1]))):
        assert [f.box for f in found.faces] == [f.box for f in expected.faces]
        for face, known in zip(found.faces, expected.faces, strict=True):
            np.testing.assert_allclose(face.age.probabilities, known.age.probabilities, atol=1e-4)


def test_a_picture_that_cannot_be_read_stays_in_its_place_through_the_stages(
    analyzer: Analyzer,
) -> None:
    scenes = [analyzer.locate(source) for source in (b"no picture", FACES / "hopper.jpg")]

    broken, hopper = analyzer.estimate(scenes)

    assert broken.error is not None
    assert broken.error.code == "not_an_image"
    assert (broken.faces, len(hopper.faces)) == ((), 1)
    with pytest.raises(ImageError):
        analyzer.read(b"no picture")


# --- streams --------------------------------------------------------------------------------------


def test_a_stream_keeps_the_order_and_agrees_with_one_by_one(analyzer: Analyzer) -> None:
    pictures = variants(80)
    items = [SourceItem(f"picture {i}", picture) for i, picture in enumerate(pictures)]

    streamed = list(analyzer.stream(items, workers=4))

    assert [analysis.path for analysis in streamed] == [item.name for item in items]
    for analysis, picture in zip(streamed, pictures, strict=True):
        alone = analyzer(picture)
        assert [f.box for f in analysis.faces] == [f.box for f in alone.faces]
        for face, expected in zip(analysis.faces, alone.faces, strict=True):
            np.testing.assert_allclose(
                face.age.probabilities, expected.age.probabilities, atol=1e-4
            )
            assert face.gender is not None
            assert expected.gender is not None
            assert face.gender.female_probability == pytest.approx(
                expected.gender.female_probability, abs=1e-4
            )


def test_a_slow_first_picture_does_not_let_the_others_pass(analyzer: Analyzer) -> None:
    slow = hostile.encoded(Image.fromarray(photograph("group")).resize((2560, 1480)), "PNG")
    items = [SourceItem("slow", slow)]
    items += [SourceItem(f"fast {i}", picture) for i, picture in enumerate(variants(80)[:12])]

    names = [analysis.path for analysis in analyzer.stream(items, workers=4)]

    assert names == [item.name for item in items]


def test_many_faces_need_several_batches_and_lose_none() -> None:
    one = Analyzer(batch=1)
    many = Analyzer(batch=32)

    single = list(one.stream([FACES / "group.jpg"] * 3))
    batched = list(many.stream([FACES / "group.jpg"] * 3))

    for first, second in zip(single, batched, strict=True):
        assert [f.box for f in first.faces] == [f.box for f in second.faces]
        np.testing.assert_allclose(
            [f.age.probabilities for f in first.faces],
            [f.age.probabilities for f in second.faces],
            atol=1e-4,
        )


def test_a_stream_looks_only_so_far_ahead(analyzer: Analyzer) -> None:
    pulled, delivered, furthest = 0, 0, 0

    def source() -> Iterator[ImageSource]:
        nonlocal pulled, furthest
        for picture in variants(80)[:40]:
            pulled += 1
            furthest = max(furthest, pulled - delivered)
            yield picture

    for _ in analyzer.stream(source(), workers=2, ahead=5):
        delivered += 1

    assert delivered == 40
    assert 2 <= furthest <= 5


def test_a_picture_that_cannot_be_read_is_a_row_in_its_place(
    analyzer: Analyzer, tmp_path: Path
) -> None:
    good = FACES / "astronaut.jpg"
    unavailable = SourceItem("table#3", None, ImageError("empty", "null", where="table#3"))
    gone = tmp_path / "gone.jpg"
    sources: list[ImageSource | SourceItem] = [good, gone, b"", SourceItem("named", b"abc")]

    rows = list(analyzer.stream([*sources, unavailable, good]))

    codes = [None if row.error is None else row.error.code for row in rows]
    assert codes == [None, "not_found", "empty", "not_an_image", "empty", None]
    assert [row.path for row in rows[1:5]] == [str(gone), None, "named", "table#3"]
    assert [len(row.faces) for row in rows] == [1, 0, 0, 0, 0, 1]
    assert all(row.model == analyzer.model for row in rows)


def test_pictures_before_a_failing_source_are_still_delivered(analyzer: Analyzer) -> None:
    def source() -> Iterator[ImageSource]:
        yield from variants(80)[:3]
        raise RuntimeError("the disk went away")

    delivered: list[Analysis] = []
    with pytest.raises(RuntimeError, match="the disk went away"):
        delivered.extend(analyzer.stream(source(), workers=2))

    assert len(delivered) == 3


def working_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("agelens")]


def test_closing_a_stream_early_stops_the_work_and_leaves_no_thread(analyzer: Analyzer) -> None:
    pulled = 0

    def endless() -> Iterator[ImageSource]:
        nonlocal pulled
        while True:
            pulled += 1
            yield variants(80)[pulled % 80]

    stream = analyzer.stream(endless(), workers=3, ahead=6)
    for _ in range(4):
        next(stream)
    assert working_threads()
    stream.close()

    after_closing = pulled
    assert working_threads() == []
    assert after_closing <= 4 + 6
    assert next(stream, None) is None


@pytest.mark.parametrize("option", ["workers", "ahead"])
def test_a_stream_without_workers_or_room_is_refused(analyzer: Analyzer, option: str) -> None:
    number = {option: -1}

    with pytest.raises(ArgumentError, match=option):
        list(analyzer.stream([FACES / "hopper.jpg"], **number))


@pytest.mark.parametrize("one", ["a.jpg", Path("a.jpg"), b"content"], ids=["str", "path", "bytes"])
def test_one_source_in_the_place_of_many_is_refused(analyzer: Analyzer, one: Any) -> None:
    with pytest.raises(ArgumentError, match="several"):
        analyzer.analyze_many(one)


def test_an_empty_stream_ends_at_once(analyzer: Analyzer) -> None:
    assert list(analyzer.stream([])) == []
    assert analyzer.analyze_many(iter(())) == []


def test_memory_stays_flat_over_many_pictures(analyzer: Analyzer) -> None:
    process = psutil.Process()
    pictures = variants(400)
    for picture in pictures[:150]:
        analyzer(picture)
    list(analyzer.stream(pictures[:50]))
    before = process.memory_info().rss

    for picture in pictures[150:]:
        analyzer(picture)
    for _ in analyzer.stream(pictures[:150]):
        pass

    assert process.memory_info().rss - before < 15_000_000


# --- processes ------------------------------------------------------------------------------------


def test_a_pickled_analyzer_carries_its_options_but_no_weights() -> None:
    original = Analyzer(min_face=40, max_faces=2)

    content = pickle.dumps(original)
    copy = pickle.loads(content)

    assert len(content) < 3_000
    assert copy.options == original.options
    picture = variants(80)[0]
    assert fingerprint(copy(picture)) == fingerprint(original(picture))


def send_fingerprint(analyzer: Analyzer, path: Path, pipe: Connection) -> None:
    pipe.send(fingerprint(analyzer(path)))


def answer_of_a_process(method: str, analyzer: Analyzer) -> Sequence[tuple[Any, ...]] | None:
    """What a child process says of a photograph; None when it does not answer in time."""
    context: Any = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    path = FACES / "hopper.jpg"
    child = context.Process(target=send_fingerprint, args=(analyzer, path, there))
    child.start()
    try:
        return list(here.recv()) if here.poll(20 if method == "spawn" else 10) else None
    finally:
        child.kill()
        child.join()
        here.close()
        there.close()


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system"
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_loads_weights_of_its_own(threads: int) -> None:
    analyzer = Analyzer(threads=threads)
    expected = fingerprint(analyzer(FACES / "hopper.jpg"))

    assert answer_of_a_process("fork", analyzer) == expected


def test_a_spawned_worker_gets_a_working_analyzer(analyzer: Analyzer) -> None:
    expected = fingerprint(analyzer(FACES / "hopper.jpg"))

    assert answer_of_a_process("spawn", analyzer) == expected
