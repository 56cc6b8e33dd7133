"""Presentation attacks: photographs and exchanged people do not pass, a moving head does."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise, permutations
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the 'gate' extra")

from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from agelens import Analyzer
from agelens.alignment import similarity_transform
from agelens.errors import ArgumentError
from agelens.gate.liveness import (
    MOVES,
    AttackDetectorCard,
    AttackRate,
    Challenge,
    ChallengeCheck,
    ChallengeRules,
    ConsistencyCheck,
    LiveFrame,
    Move,
    Presentation,
    Reason,
    measure_detector,
)
from agelens.quality import head_pose
from agelens.results import AgeDistribution, Face, Quality
from gate.heads import Pixels, Pose, live, noisy, portrait, poses, seen, tilted, turned, video

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
ORDERS: list[tuple[Move, ...]] = list(permutations(MOVES))
PEOPLE = ["astronaut", "hopper"]

Moving = Callable[[str, tuple[str, ...]], list[LiveFrame]]

consistency, head_turn = ConsistencyCheck(), ChallengeCheck()


def asked(*moves: Move) -> Challenge:
    return Challenge("n", moves, NOON, NOON + timedelta(seconds=30))


def codes(reasons: Sequence[Reason]) -> list[str]:
    return [reason.code for reason in reasons]


@pytest.fixture(scope="module")
def moving(analyzer: Analyzer) -> Moving:
    """Frames of a person who makes moves; each video is analysed once."""
    kept: dict[tuple[str, tuple[str, ...]], list[LiveFrame]] = {}

    def frames(name: str, moves: tuple[str, ...]) -> list[LiveFrame]:
        if (name, moves) not in kept:
            kept[name, moves] = live(analyzer, video(name, poses(moves)))
        return kept[name, moves]

    return frames


# --- the generated heads themselves ---------------------------------------------------------------


@pytest.mark.parametrize("name", PEOPLE)
@pytest.mark.parametrize("yaw", [-30, -20, 20, 30])
def test_a_generated_turn_is_measured_as_one(analyzer: Analyzer, name: str, yaw: int) -> None:
    """If this fails, the tests below say nothing."""
    image, landmarks = portrait(name)
    (face, *_) = analyzer(turned(image, landmarks, yaw)).faces

    found = face.quality.yaw
    assert found is not None
    assert abs(found - head_pose(landmarks)[0] - yaw) < 13


# --- the active check -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
@pytest.mark.parametrize("name", PEOPLE)
def test_a_head_that_turns_in_the_right_order_passes(
    moving: Moving, name: str, order: tuple[Move, ...]
) -> None:
    frames = moving(name, order)

    assert head_turn.check(frames, asked(*order)) == ()
    assert consistency.check(frames, asked(*order)) == ()


@pytest.mark.parametrize("order", ORDERS[1:], ids=" ".join)
def test_a_head_that_turns_in_another_order_fails(moving: Moving, order: tuple[Move, ...]) -> None:
    frames = moving("astronaut", ORDERS[0])

    assert codes(head_turn.check(frames, asked(*order))) == ["wrong_moves"]


@pytest.mark.parametrize("made", [(), ("left",), ("left", "right", "closer", "left")], ids=str)
def test_too_few_or_too_many_moves_fail(analyzer: Analyzer, made: tuple[str, ...]) -> None:
    frames = live(analyzer, video("astronaut", [*poses(made), *[Pose()] * 20]))

    assert codes(head_turn.check(frames, asked("left", "right", "closer"))) == ["wrong_moves"]


def test_a_half_turn_is_no_turn(analyzer: Analyzer) -> None:
    path = poses(("left", "right", "closer"), reach_deg=8.0)

    frames = live(analyzer, video("astronaut", path))

    assert codes(head_turn.check(frames, asked("left", "right", "closer"))) == ["wrong_moves"]


def test_left_and_right_are_exchanged_in_mirrored_frames(analyzer: Analyzer) -> None:
    images = [np.ascontiguousarray(image[:, ::-1]) for image in video("astronaut", poses(MOVES))]
    frames = live(analyzer, images)
    mirrored = ChallengeCheck(ChallengeRules(mirrored=True))

    assert mirrored.check(frames, asked(*MOVES)) == ()
    assert codes(head_turn.check(frames, asked(*MOVES))) == ["wrong_moves"]


@pytest.mark.parametrize("name", PEOPLE)
def test_a_photograph_held_still_fails(analyzer: Analyzer, name: str) -> None:
    frames = live(analyzer, video(name, [Pose()] * 40))

    assert codes(head_turn.check(frames, asked(*MOVES))) == ["wrong_moves"]
    assert "still_picture" in codes(consistency.check(frames, None))


def slant(share: float, *, to_the_left: bool) -> Any:
    """A photograph turned about its upright axis: narrower, and one side farther away."""
    near, far = [share, 0.0], [share, share]
    left, right = (far, near) if to_the_left else (near, far)
    return np.array([left, [-right[0], right[1]], [left[0], -left[1]], [-right[0], -right[1]]])


def shifted(image: Pixels, x: float, y: float) -> Pixels:
    height, width = image.shape[:2]
    matrix = np.array([[1, 0, x * width], [0, 1, y * height]])
    moved = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return moved.astype(np.uint8, copy=False)


def photographs_moved(name: str) -> dict[str, list[Pixels]]:
    """What a hand can do with a photograph."""
    image, _ = portrait(name)
    steps = [*np.linspace(0, 1, 8), *np.linspace(1, 0, 8)]
    return {
        "shifted": [shifted(image, 0.1 * s, 0.04 * s) for s in steps],
        "nearer": [seen(name, Pose(near=1 + 0.4 * float(s))) for s in steps],
        "slanted": [tilted(image, slant(0.16, to_the_left=True) * s) for s in steps],
        "slanted back": [tilted(image, slant(0.16, to_the_left=False) * s) for s in steps],
        "dimmed": [np.asarray(image * (1 - 0.3 * s), np.uint8) for s in steps],
    }


@pytest.mark.parametrize("name", PEOPLE)
def test_a_photograph_moved_about_is_still_one_flat_picture(analyzer: Analyzer, name: str) -> None:
    for way, images in photographs_moved(name).items():
        frames = live(analyzer, [noisy(image, row) for row, image in enumerate(images)])
        assert "still_picture" in codes(consistency.check(frames, None)), way


def smeared(image: Pixels, length: int, degrees: float) -> Pixels:
    """With the blur of a camera that moves in one direction while it takes the picture."""
    row = np.zeros((length, length), np.float32)
    row[length // 2] = 1
    middle = ((length - 1) / 2, (length - 1) / 2)
    line = cv2.warpAffine(row, cv2.getRotationMatrix2D(middle, degrees, 1), (length, length))
    return cv2.filter2D(image, -1, line / line.sum()).astype(np.uint8, copy=False)


@pytest.mark.parametrize("name", PEOPLE)
@pytest.mark.parametrize("degrees", [0, 45, 90])
def test_a_photograph_before_a_shaking_camera_is_still_one_flat_picture(
    analyzer: Analyzer, name: str, degrees: int
) -> None:
    image = seen(name, Pose())
    images = [image, smeared(image, 13, degrees), image, smeared(image, 13, 90 - degrees)]
    frames = live(analyzer, [noisy(one, row) for row, one in enumerate(images)])

    assert codes(consistency.check(frames, None)) == ["still_picture"]


@pytest.mark.parametrize("name", PEOPLE)
def test_something_before_a_photograph_in_one_frame_makes_nobody_alive(
    analyzer: Analyzer, name: str
) -> None:
    image, landmarks = portrait(name)
    eye = float(np.linalg.norm(landmarks[1] - landmarks[0]))
    covered = image.copy()
    end = tuple(int(v) for v in landmarks[3])
    far = (end[0] + int(1.5 * eye), end[1] + int(2.5 * eye))
    cv2.line(covered, end, far, (200, 150, 130), int(0.4 * eye))
    images = [image, image, covered, image]
    frames = live(analyzer, [noisy(one, row) for row, one in enumerate(images)])

    assert "still_picture" in codes(consistency.check(frames, None))


@pytest.mark.parametrize("name", PEOPLE)
def test_a_photograph_slanted_to_both_sides_makes_no_head_turns(
    analyzer: Analyzer, name: str
) -> None:
    moved = photographs_moved(name)
    images = moved["slanted"] + moved["slanted back"] + moved["nearer"]
    frames = live(analyzer, [noisy(image, row) for row, image in enumerate(images)])

    for order in ORDERS:
        assert codes(head_turn.check(frames, asked(*order))) == ["wrong_moves"]


def test_photographs_of_each_pose_exchanged_one_for_another_jump(analyzer: Analyzer) -> None:
    path = [Pose()] * 5 + [Pose(28)] * 5 + [Pose()] * 5 + [Pose(-28)] * 5 + [Pose()] * 5
    frames = live(analyzer, video("astronaut", path))

    assert codes(head_turn.check(frames, asked("left", "right"))) == ["jump"]


def test_a_slow_answer_with_missing_frames_fails(moving: Moving) -> None:
    frames = moving("astronaut", MOVES)
    late = [
        LiveFrame(f.pixels, f.face, (f.seconds or 0) + (2 if row > 20 else 0))
        for row, f in enumerate(frames)
    ]

    assert codes(head_turn.check(late, asked(*MOVES))) == ["gap"]
    assert codes(head_turn.check(frames[::-1], asked(*MOVES))) == ["gap"]


def test_without_times_the_order_of_the_frames_counts(moving: Moving) -> None:
    frames = [LiveFrame(frame.pixels, frame.face) for frame in moving("astronaut", MOVES)]

    assert head_turn.check(frames, asked(*MOVES)) == ()
    assert codes(head_turn.check(frames[::-1], asked(*MOVES))) == ["wrong_moves"]
    for missed, expected in ((4, []), (5, ["gap"])):
        holed = [*frames[:20], replace(frames[20], missed=missed), *frames[21:]]
        assert codes(head_turn.check(holed, asked(*MOVES))) == expected


def test_without_a_challenge_nobody_passes_the_active_check(moving: Moving) -> None:
    assert codes(head_turn.check(moving("astronaut", MOVES), None)) == ["no_challenge"]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_too_few_frames_do_not_pass(analyzer: Analyzer, count: int) -> None:
    frames = live(analyzer, video("astronaut", [Pose()] * count))

    assert codes(head_turn.check(frames, asked(*MOVES))) == ["too_few_frames"]
    if count < 3:
        assert codes(consistency.check(frames, None)) == ["too_few_frames"]


def test_frames_without_landmarks_show_nothing(analyzer: Analyzer) -> None:
    image, _ = portrait("astronaut")
    face = Face((0, 0, 9, 9), 1.0, Quality(9, 1, 0.5), AgeDistribution.unknown(), None)

    assert codes(consistency.check([LiveFrame(image, face)] * 9, None)) == ["too_few_frames"]


# --- geometry of the active check -----------------------------------------------------------------

# Millimetres, x right, y down, z away from the camera: eyes, nose tip, mouth corners of a longer
# face than the one the measurement assumes.
_HEAD = np.array([(-30, -38, 2), (30, -38, 2), (0, 8, -30), (-24, 42, 2), (24, 42, 2)], float)
_EMPTY = np.zeros((64, 64, 3), np.uint8)


def drawn(yaw: float, near: float) -> LiveFrame:
    """A frame of which only the landmarks are there."""
    angle = math.radians(yaw)
    x = _HEAD[:, 0] * math.cos(angle) - _HEAD[:, 2] * math.sin(angle)
    points = 30 + 0.2 * near * np.stack([x, _HEAD[:, 1]], axis=1)
    face = Face(
        (0, 0, 40, 40),
        1.0,
        Quality(40, 1, 0.5),
        AgeDistribution.unknown(),
        None,
        points.astype(np.float32),
    )
    return LiveFrame(_EMPTY, face)


sequences = st.lists(st.sampled_from(MOVES), min_size=2, max_size=5)


@settings(max_examples=40)
@given(sequences, sequences, st.randoms())
def test_exactly_the_moves_that_were_made_pass(
    moves: list[Move], others: list[Move], random: Any
) -> None:
    frames = [
        drawn(pose.yaw + random.uniform(-2, 2), pose.near * random.uniform(0.99, 1.01))
        for pose in poses(moves)
    ]

    assert head_turn.check(frames, asked(*moves)) == ()
    if others != moves and len(others) <= len(moves):
        assert codes(head_turn.check(frames, asked(*others))) == ["wrong_moves"]


@pytest.mark.parametrize("yaw", [-28, 28])
def test_a_head_that_is_turned_away_at_the_start_fails(yaw: float) -> None:
    assert codes(head_turn.check([drawn(yaw, 1)] * 30, asked(*MOVES))) == ["not_facing"]


def test_two_moves_at_once_are_unclear() -> None:
    both = [Pose(yaw, 1 + yaw / 60) for yaw in (4, 8, 12, 16)]
    path = [
        *[Pose()] * 4,
        *both,
        *[Pose(16, 1.4)] * 3,
        *[Pose(24, 1.4)] * 3,
        *both[::-1],
        *[Pose()] * 12,
    ]

    frames = [drawn(pose.yaw, pose.near) for pose in path]

    assert codes(head_turn.check(frames, asked("closer", "left"))) == ["wrong_moves"]
    assert codes(head_turn.check(frames, asked("left", "closer"))) == ["wrong_moves"]


# --- exchange of person ---------------------------------------------------------------------------


def in_place_of(name: str, other: str) -> tuple[Pixels, NDArray[np.float64]]:
    """The photograph of ``name`` with its face where that of ``other`` is, of the same size."""
    image, landmarks = portrait(name)
    frame, places = portrait(other)
    matrix = similarity_transform(landmarks, places)
    height, width = frame.shape[:2]
    moved = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return moved.astype(np.uint8, copy=False), places


@pytest.mark.parametrize(("first", "second"), [PEOPLE, PEOPLE[::-1]], ids=" then ".join)
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_a_change_of_person_between_the_frames_fails(
    analyzer: Analyzer, first: str, second: str, grey: bool
) -> None:
    path = poses(MOVES)
    half = len(path) // 2
    image, landmarks = in_place_of(second, first)
    images = video(first, path[:half]) + [
        noisy(_moved(image, landmarks, pose), 100 + row) for row, pose in enumerate(path[half:])
    ]
    if grey:
        images = [cv2.cvtColor(cv2.cvtColor(i, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
                  .astype(np.uint8) for i in images]  # fmt: skip
    frames = live(analyzer, images)

    assert "person_changed" in codes(consistency.check(frames, None))


def _moved(image: Pixels, landmarks: NDArray[np.float64], pose: Pose) -> Pixels:
    from gate.heads import nearer

    return nearer(turned(image, landmarks, pose.yaw), landmarks, pose.near)


def test_one_other_person_among_a_few_frames_fails(analyzer: Analyzer) -> None:
    other, _ = in_place_of("hopper", "astronaut")
    images = [*video("astronaut", [Pose(), Pose(12)]), other]

    assert "person_changed" in codes(consistency.check(live(analyzer, images), None))


@pytest.mark.parametrize(("first", "second"), [PEOPLE, PEOPLE[::-1]])
@pytest.mark.parametrize("kind", ["photograph", "turned a little"])
def test_one_who_faces_the_camera_and_another_who_turns_are_two_people(
    analyzer: Analyzer, first: str, second: str, kind: str
) -> None:
    """The age would be taken from the one, and the moves from the other."""
    image, landmarks = in_place_of(second, first)
    images = []
    for row, pose in enumerate(poses(("left", "right"))):
        if abs(pose.yaw) > 12:
            images.append(noisy(_moved(image, landmarks, pose), 100 + row))
        else:
            still = Pose() if kind == "photograph" else pose
            images.append(noisy(seen(first, still), row))
    frames = live(analyzer, images)

    assert "person_changed" in codes(consistency.check(frames, asked("left", "right")))


def test_a_photograph_between_turns_that_begin_beside_the_camera_is_found(
    analyzer: Analyzer,
) -> None:
    """All steps are small enough for the active check, and no face to the camera is another's."""
    image, landmarks = in_place_of("hopper", "astronaut")
    photograph = live(analyzer, video("astronaut", [Pose()] * 3))
    other = live(
        analyzer,
        [noisy(_moved(image, landmarks, Pose(y)), 60 + y) for y in (14, 18, 22, 26)]
        + [noisy(_moved(image, landmarks, Pose(-y)), 60 + y) for y in (10, 14, 18, 22, 26)],
    )

    def way(side: int) -> list[LiveFrame]:
        turned_so = [(side * head_pose(f.face.landmarks)[0], f) for f in other
                     if f.face.landmarks is not None]  # fmt: skip
        out = [frame for _, frame in sorted((t for t in turned_so if t[0] > 12.05),
                                            key=lambda t: t[0])]  # fmt: skip
        return [*out, out[-1], *reversed(out)]

    frames = [*photograph, photograph[0], *way(1), *photograph, *way(-1), *photograph]
    timed = [LiveFrame(f.pixels, f.face, row * 0.1) for row, f in enumerate(frames)]

    assert head_turn.check(timed, asked("left", "right")) == ()
    assert codes(consistency.check(timed, asked("left", "right"))) == ["person_changed"]


def test_a_poor_frame_between_two_people_hides_no_change(analyzer: Analyzer) -> None:
    """Grey people of one age, of whom only the shades tell."""
    other, landmarks = in_place_of("hopper", "astronaut")
    path = [Pose(yaw) for yaw in (18, 20, 22, 24)]
    ones = [seen("astronaut", pose) for pose in path]
    others = [_moved(other, landmarks, pose) for pose in path]
    between = (ones[-1] // 2 + others[-1] // 2).astype(np.uint8)
    images = [*ones, between, *others[::-1]]
    frames = live(analyzer, [_grey(image) for image in images])
    age = frames[0].face.age
    alike = [
        LiveFrame(f.pixels, replace(f.face, age=AgeDistribution.unknown() if row == 4 else age))
        for row, f in enumerate(frames)
    ]

    assert "person_changed" in codes(consistency.check(alike, None))


def _grey(image: Pixels) -> Pixels:
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def test_a_hand_before_the_face_for_one_frame_is_no_other_person(moving: Moving) -> None:
    frames = list(moving("astronaut", MOVES))
    pixels = frames[30].pixels.copy()
    x0, y0, x1, y1 = (int(v) for v in frames[30].face.box)
    pixels[(y0 + y1) // 2 : y1, x0:x1] = (200, 150, 130)
    frames[30] = replace(frames[30], pixels=pixels)

    assert consistency.check(frames, None) == ()


def test_turned_faces_that_are_too_poor_to_compare_do_not_pass(moving: Moving) -> None:
    frames = [
        replace(f, face=replace(f.face, age=AgeDistribution.unknown()))
        if abs(f.face.quality.yaw or 0) > 12
        else f
        for f in moving("astronaut", ("left", "right"))
    ]

    assert codes(consistency.check(frames, None)) == ["unclear"]


@pytest.mark.parametrize("name", PEOPLE)
def test_one_person_in_changing_light_is_one_person(analyzer: Analyzer, name: str) -> None:
    path = [Pose(yaw) for yaw in (0, 4, 8, 12, 8, 4, 0, -4, -8, -12)]
    lit = [
        np.clip(image * gain, 0, 255).astype(np.uint8)
        for image, gain in zip(video(name, path), np.linspace(0.8, 1.15, 10), strict=True)
    ]

    assert consistency.check(live(analyzer, lit), None) == ()


# --- the challenge --------------------------------------------------------------------------------


@given(st.integers(2, 8))
def test_no_move_is_asked_for_twice_in_a_row(count: int) -> None:
    moves = Challenge.draw(count).moves

    assert len(moves) == count
    assert all(a != b for a, b in pairwise(moves))


def test_every_order_is_drawn_about_equally_often() -> None:
    drawn_orders = [Challenge.draw(3).moves for _ in range(6000)]

    counts = {order: drawn_orders.count(order) for order in set(drawn_orders)}
    assert len(counts) == 12
    assert 500 - 6 * 22 < min(counts.values()) <= max(counts.values()) < 500 + 6 * 22


def test_a_challenge_names_its_occasion_and_ends() -> None:
    one, two = (Challenge.draw(time_limit_s=20, clock=lambda: NOON) for _ in range(2))

    assert one.nonce != two.nonce
    assert (one.issued, one.expires) == (NOON, NOON + timedelta(seconds=20))
    assert one.to_dict()["moves"] == list(one.moves)
    assert len(one.instructions) == 4


@pytest.mark.parametrize("options", [{"moves": 1}, {"moves": 9}, {"time_limit_s": 0}])
def test_an_impossible_challenge_is_not_drawn(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Challenge.draw(**options)


# --- cards ----------------------------------------------------------------------------------------


class Stillness:
    """A detector of somebody else: a real one, if a poor one."""

    card = AttackDetectorCard(name="stillness", version="1")

    def check(self, frames: Sequence[LiveFrame], challenge: Challenge | None) -> tuple[Reason, ...]:
        same = all(np.array_equal(frames[0].pixels, frame.pixels) for frame in frames)
        return (Reason("still", "nothing moves"),) if same else ()


def test_error_rates_are_counted_by_kind_of_attack(analyzer: Analyzer) -> None:
    still = live(analyzer, [portrait("astronaut")[0]] * 2)
    noise = live(analyzer, video("astronaut", [Pose()] * 2))
    presented = [
        *[Presentation(still, "file")] * 3,
        *[Presentation(noise, "print")] * 2,
        Presentation(still, "print"),
        *[Presentation(noise, None)] * 3,
        Presentation(still, None),
    ]

    card = measure_detector(Stillness(), presented, data="by hand")

    rates = {rate.kind: (rate.passed, rate.presentations) for rate in card.rates}
    assert rates == {"file": (0, 3), "print": (2, 3)}
    assert card.apcer == pytest.approx(2 / 3)
    assert card.bpcer == pytest.approx(1 / 4)
    text = "\n".join(card.lines())
    assert "APCER, print: 66.7 % (9.4 to 99.2 %; 2 of 3)" in text
    assert "BPCER: 25.0 % (0.6 to 80.6 %; 1 of 4)" in text


@pytest.mark.parametrize("detector", [consistency, head_turn], ids=["consistency", "head turn"])
def test_the_built_in_checks_claim_no_measured_rate_and_no_certificate(detector: Any) -> None:
    card = detector.card

    assert math.isnan(card.apcer)
    assert math.isnan(card.bpcer)
    assert card.limits
    text = "\n".join(card.lines())
    assert "APCER: not measured" in text
    assert "certificate after ISO/IEC 30107-3: none" in text


@pytest.mark.parametrize(
    "fields",
    [{"kind": "", "presentations": 1, "passed": 0}, {"kind": "print", "presentations": 0}],
    ids=str,
)
def test_a_rate_of_nothing_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AttackRate(**fields)


def test_nothing_of_the_frames_is_kept(analyzer: Analyzer) -> None:
    frames = live(analyzer, video("astronaut", poses(MOVES)))
    pixels = weakref.ref(frames[0].pixels)
    head_turn.check(frames, asked(*MOVES))
    consistency.check(frames, None)

    del frames
    gc.collect()

    assert pixels() is None
