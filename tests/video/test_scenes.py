"""The truth that counts are held against is itself held against pixels and arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from agelens import Analyzer
from agelens.video.zones import Line, Zone
from video.scenes import Person, Scene, Walk, read_truth
from video.scenes_small import DOOR, SHELF, portraits, small_scene, wall, write_scene

SIZE = (640, 360)


def walking(*points: tuple[float, float, float, float], who: int = 0) -> Person:
    return Person(portraits()[who], Walk(points, bobs=False))


def scene(*people: Person, seconds: float = 4.0, lines: tuple[Line, ...] = (DOOR,)) -> Scene:
    return Scene("test", wall(SIZE), people, seconds, 25.0, lines=lines, zones=(SHELF,))


def test_everyone_who_walks_through_is_counted_once_and_crosses_once(tmp_path: Path) -> None:
    truth = write_scene(tmp_path / "a.mp4", people=5, seconds=9, seed=3)

    assert truth.visitors == 5
    assert truth.crossed("door", "in") + truth.crossed("door", "out") == 5
    assert {crossing.person for crossing in truth.crossings} == {0, 1, 2, 3, 4}
    assert truth.faces <= 2
    assert truth.occlusions == ()


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_the_video_has_its_frames_and_its_truth_can_be_read_back(tmp_path: Path, name: str) -> None:
    truth = write_scene(tmp_path / name, people=2, seconds=3, seed=1)
    truth.write(tmp_path / "a.json")

    capture = cv2.VideoCapture(str(tmp_path / name))
    frames = 0
    while capture.grab():
        frames += 1
    assert frames == 75
    assert capture.get(cv2.CAP_PROP_FPS) == 25
    assert (truth.width, truth.height) == SIZE
    assert read_truth(tmp_path / "a.json") == truth


def test_the_detector_finds_visible_faces_where_they_are_drawn(analyzer: Analyzer) -> None:
    visible = found = unknown = 0
    for number, drawn in enumerate(small_scene(people=4, seconds=6, seed=2).frames()):
        if number % 5:
            continue
        faces = analyzer.cut(analyzer.read(np.ascontiguousarray(drawn.pixels[..., ::-1])))
        places = [((f.box[0] + f.box[2]) / 2, (f.box[1] + f.box[3]) / 2) for f in faces]
        near = set()
        for person, (x0, y0, x1, y1) in drawn.boxes.items():
            apart = [math.hypot(x - (x0 + x1) / 2, y - (y0 + y1) / 2) for x, y in places]
            here = {place for place, way in enumerate(apart) if way < 0.4 * (x1 - x0)}
            near |= here
            if drawn.is_visible(person):
                visible, found = visible + 1, found + bool(here)
        unknown += len(places) - len(near)

    assert visible > 30
    assert found >= 0.98 * visible
    assert unknown == 0


def test_a_walk_at_constant_speed_crosses_and_stays_when_arithmetic_says(tmp_path: Path) -> None:
    person = walking((0.0, 40, 180, 60), (4.0, 600, 180, 60))

    truth = scene(person).write(tmp_path / "a.mp4")

    (crossing,) = truth.crossings
    assert crossing.direction == "in"
    assert crossing.seconds == pytest.approx((320 - 40) / 140, abs=0.05)
    (stay,) = truth.stays
    assert stay.seconds == pytest.approx((600 - 0.6 * 640) / 140, abs=0.2)


def test_who_turns_back_on_the_line_has_not_crossed_it(tmp_path: Path) -> None:
    turning = ((0.0, 100, 180, 60), (2.0, 330, 180, 60), (4.0, 100, 180, 60))
    clearly = ((0.0, 100, 180, 60), (2.0, 420, 180, 60), (4.0, 100, 180, 60))

    assert scene(walking(*turning)).write(tmp_path / "a.mp4").crossings == ()
    there_and_back = scene(walking(*clearly)).write(tmp_path / "b.mp4").crossings
    assert [one.direction for one in there_and_back] == ["in", "out"]


def test_who_passes_beside_the_end_of_a_line_has_not_crossed_it(tmp_path: Path) -> None:
    half = replace(DOOR, end=(0.5, 0.4))
    below = walking((0.0, 40, 250, 60), (4.0, 600, 250, 60))
    through = walking((0.0, 40, 100, 60), (4.0, 600, 100, 60))

    truth = scene(below, through, lines=(half,)).write(tmp_path / "a.mp4")

    assert [one.person for one in truth.crossings] == [1]


def test_the_smaller_face_is_hidden_while_a_larger_one_covers_it(tmp_path: Path) -> None:
    behind = walking((0.0, 320, 180, 50), (4.0, 320, 180, 50))
    before = walking((0.0, -100, 180, 90), (4.0, 740, 180, 90), who=1)

    truth = scene(behind, before).write(tmp_path / "a.mp4")

    (hidden,) = truth.occlusions
    assert hidden.person == 0
    assert hidden.start_s < (320 + 100) / 210 < hidden.end_s
    assert truth.visitors == 2


def test_a_face_that_is_too_small_or_half_outside_is_not_asked_for(tmp_path: Path) -> None:
    small = walking((0.0, 100, 100, 20), (4.0, 300, 100, 20))
    outside = walking((0.0, 0, 250, 60), (4.0, 10, 250, 60), who=1)

    truth = scene(small, outside).write(tmp_path / "a.mp4")

    assert truth.visitors == 0
    assert truth.faces == 0


def test_the_same_seed_gives_the_same_pixels() -> None:
    one, other = (list(small_scene(people=2, seconds=3, seed=5).frames())[40] for _ in range(2))

    assert np.array_equal(one.pixels, other.pixels)
    assert one.boxes == other.boxes


def test_zones_are_counted_by_the_middle_of_the_face(tmp_path: Path) -> None:
    zone = Zone("corner", ((0.0, 0.0), (0.3, 0.0), (0.3, 0.6), (0.0, 0.6)))
    inside = walking((0.0, 150, 180, 60), (2.0, 150, 180, 60))
    beside = walking((0.0, 230, 180, 60), (2.0, 230, 180, 60), who=1)
    standing = Scene("test", wall(SIZE), (inside, beside), 2.0, zones=(zone,))

    truth = standing.write(tmp_path / "a.mp4")

    (stay,) = truth.stays
    assert stay.person == 0
    assert stay.seconds == pytest.approx(2.0, abs=0.1)
