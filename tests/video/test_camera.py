"""One camera: from frames of people with a known truth to the same visits each time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from agelens import Analyzer
from agelens.errors import ArgumentError
from agelens.video.camera import CameraWatch, Moment, Step
from agelens.video.plan import CameraPlan, StaffRules
from agelens.video.source import Frame
from agelens.video.visit import Visit
from video.scenes import Cutout, Person, Pixels, Scene, Walk
from video.scenes_small import DOOR, SHELF, portraits, small_scene, wall

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SIZE = (640, 360)
PLAN = CameraPlan("door", "any", lines=(DOOR,), zones=(SHELF,))


def frames_of(scene: Scene, began: datetime = NOON) -> list[Frame]:
    def frame(number: int, pixels: Pixels) -> Frame:
        pts_us = round(1e6 * number / scene.fps)
        at = began + timedelta(microseconds=pts_us)
        return Frame(np.ascontiguousarray(pixels[..., ::-1]), pts_us, at, number, 0.0)

    return [frame(number, drawn.pixels) for number, drawn in enumerate(scene.frames())]


def watch(analyzer: Analyzer, plan: CameraPlan = PLAN, epoch: str = "e") -> CameraWatch:
    return CameraWatch(plan, analyzer, site="shop", epoch=epoch, staff=StaffRules())


def steps_of(camera: CameraWatch, frames: Sequence[Frame]) -> list[Step]:
    return [*(camera.feed(frame) for frame in frames), camera.finish()]


def visits_of(camera: CameraWatch, frames: Sequence[Frame]) -> list[Visit]:
    return [visit for step in steps_of(camera, frames) for visit in step.visits]


def moments_of(steps: Sequence[Step]) -> list[Moment]:
    return [step.moment for step in steps if step.moment is not None]


def scene_of(*people: Person, seconds: float, fps: float = 12.5) -> Scene:
    return Scene("own", wall(SIZE), people, seconds, fps, lines=(DOOR,), zones=(SHELF,))


def walking(who: Cutout, *points: tuple[float, float], side: float = 60, y: float = 170) -> Person:
    """Somebody at these seconds at these x, in pixels."""
    return Person(who, Walk(tuple((seconds, x, y, side) for seconds, x in points)))


@pytest.fixture(scope="module")
def four_people() -> tuple[Scene, list[Frame]]:
    scene = small_scene(people=4, seconds=8, seed=3)
    return scene, frames_of(scene)


def test_everyone_is_counted_once_and_crosses_the_line_once(
    analyzer: Analyzer, four_people: tuple[Scene, list[Frame]]
) -> None:
    scene, frames = four_people
    rightwards = sum(one.walk.points[0][1] < one.walk.points[-1][1] for one in scene.people)

    visits = visits_of(watch(analyzer), frames)

    directions = [crossing.direction for visit in visits for crossing in visit.crossings]
    assert len(visits) == len(scene.people)
    assert directions.count("in") == rightwards
    assert len(directions) == len(scene.people)
    assert all([stay.zone for stay in visit.stays] == ["shelf"] for visit in visits)
    assert all(visit.frames >= 3 and visit.model == analyzer.model for visit in visits)


def test_the_crossing_is_timed_as_it_happened(analyzer: Analyzer) -> None:
    collins, _ = portraits()
    frames = frames_of(scene_of(walking(collins, (0.5, -60), (4.5, 700)), seconds=6))

    (visit,) = visits_of(watch(analyzer), frames)

    # At 320 of the way from -60 to 700 pixels.
    expected_s = 0.5 + 4 * (320 + 60) / 760
    (crossing,) = visit.crossings
    assert (crossing.at - NOON).total_seconds() == pytest.approx(expected_s, abs=0.1)
    assert visit.gender == "female"


def test_a_replay_gives_the_same_and_another_epoch_other_visits(
    analyzer: Analyzer, four_people: tuple[Scene, list[Frame]]
) -> None:
    _, frames = four_people

    first, again = (visits_of(watch(analyzer), frames) for _ in range(2))
    other = visits_of(watch(analyzer, epoch="f"), frames)

    assert first == again
    assert not {visit.id for visit in first} & {visit.id for visit in other}


def test_from_a_quiet_place_on_it_goes_on_as_if_nothing_had_happened(analyzer: Analyzer) -> None:
    collins, hopper = portraits()
    first = walking(collins, (0.2, -60), (2.2, 700))
    second = walking(hopper, (7.0, 700), (9.0, -60))
    frames = frames_of(scene_of(first, second, seconds=10))
    plan = replace(PLAN, rejoin_s=1.0)
    whole = watch(analyzer, plan)
    expected: list[Visit] = []
    kept = None
    for number, frame in enumerate(frames):
        step = whole.feed(frame)
        expected += step.visits
        if expected and whole.is_quiet and kept is None:
            kept = number, json.dumps(whole.state())
    last = whole.finish()
    assert kept is not None

    resumed = watch(analyzer, plan)
    resumed.restore(json.loads(kept[1]))
    steps = steps_of(resumed, frames[kept[0] + 1 :])

    assert [visit for step in steps for visit in step.visits] == [*expected, *last.visits][1:]
    assert steps[-1].health == last.health


def test_a_state_is_told_in_quiet_places_only(
    analyzer: Analyzer, four_people: tuple[Scene, list[Frame]]
) -> None:
    fresh, camera = watch(analyzer), watch(analyzer)
    for frame in four_people[1][:60]:
        camera.feed(frame)

    assert fresh.is_quiet
    assert not camera.is_quiet
    with pytest.raises(ArgumentError, match="somebody is followed"):
        camera.state()
    with pytest.raises(ArgumentError, match="no state of a camera"):
        watch(analyzer).restore({"last_id": 3})


def test_a_face_behind_another_goes_on_with_its_visit(analyzer: Analyzer) -> None:
    collins, hopper = portraits()
    behind = walking(hopper, (0.3, -60), (4.8, 700), side=50)
    before = walking(collins, (0.3, 700), (4.3, -90), side=90, y=190)
    frames = frames_of(scene_of(behind, before, seconds=6))

    visits = visits_of(watch(analyzer), frames)

    assert sorted(one.direction for visit in visits for one in visit.crossings) == ["in", "out"]
    assert sorted(str(visit.gender) for visit in visits) == ["female", "male"]


def test_who_steps_out_and_comes_back_is_one_visit_and_another_face_is_two(
    analyzer: Analyzer,
) -> None:
    collins, hopper = portraits()
    out = ((0.3, -60), (2.3, 200), (4.3, -60))
    back = ((5.6, -60), (7.6, 200), (9.6, -60))
    same = frames_of(scene_of(walking(collins, *out, *back), seconds=10))
    other = frames_of(scene_of(walking(collins, *out), walking(hopper, *back), seconds=10))

    assert len(visits_of(watch(analyzer), same)) == 1
    assert len(visits_of(watch(analyzer), other)) == 2


@pytest.mark.parametrize(("rejoin_s", "visits"), [(75.0, 1), (20.0, 2)])
def test_time_without_pictures_does_not_make_a_new_visit_of_one_who_stands_there(
    analyzer: Analyzer, rejoin_s: float, visits: int
) -> None:
    collins, _ = portraits()
    frames = frames_of(scene_of(walking(collins, (0, 320), (4, 320)), seconds=4))

    def later(frame: Frame) -> Frame:
        gap = timedelta(seconds=45)
        pts_us = frame.pts_us + gap // timedelta(microseconds=1)
        return replace(frame, pts_us=pts_us, at=frame.at + gap)

    half = len(frames) // 2
    frozen = [*frames[:half], *map(later, frames[half:])]

    found = visits_of(watch(analyzer, replace(PLAN, rejoin_s=rejoin_s)), frozen)

    assert len(found) == visits
    assert sum(visit.seconds for visit in found) == pytest.approx(4, abs=0.5)
    assert sum(visit.attentive_seconds for visit in found) <= 4


@pytest.mark.parametrize("rate", [2.0, 4.0, 12.0])
def test_slow_and_fast_machines_count_the_same(analyzer: Analyzer, rate: float) -> None:
    collins, hopper = portraits()
    one, other = walking(collins, (0.3, -60), (7, 700)), walking(hopper, (0.6, 700), (7, -60), y=60)
    frames = frames_of(scene_of(one, replace(other), seconds=8))

    visits = visits_of(watch(analyzer, replace(PLAN, detections_per_second=rate)), frames)

    assert len(visits) == 2
    assert sorted(one.direction for visit in visits for one in visit.crossings) == ["in", "out"]


def test_faces_are_looked_for_once_an_interval_of_the_streams_clock(
    analyzer: Analyzer, four_people: tuple[Scene, list[Frame]]
) -> None:
    frames = four_people[1][:75]

    moments = moments_of(steps_of(watch(analyzer), frames))
    sparse = moments_of(steps_of(watch(analyzer), frames[::5]))

    assert len(moments) == 3 * 8
    assert all(b.pts_us - a.pts_us >= 80_000 for a, b in itertools.pairwise(moments))
    assert len(sparse) == len(frames[::5])  # a reader that drops frames: every one that comes


def test_a_stream_that_changes_its_size_goes_on_with_its_tracks(analyzer: Analyzer) -> None:
    collins, _ = portraits()
    frames = frames_of(scene_of(walking(collins, (0.3, -60), (4.3, 700)), seconds=5, fps=25))

    def smaller(frame: Frame) -> Frame:
        return replace(frame, pixels=np.ascontiguousarray(frame.pixels[::2, ::2]))

    changing = [smaller(f) if n // 25 % 2 else f for n, f in enumerate(frames)]

    (visit,) = visits_of(watch(analyzer, replace(PLAN, min_face=16)), changing)

    assert [one.direction for one in visit.crossings] == ["in"]


def test_a_moment_says_who_is_there(analyzer: Analyzer) -> None:
    collins, _ = portraits()
    frames = frames_of(scene_of(walking(collins, (0, 480), (4, 485)), seconds=4))

    moments = moments_of(steps_of(watch(analyzer), frames))

    (person,) = moments[-1].people
    assert moments[0].people == ()
    assert moments[-1].camera == "door"
    assert person.box[0] < 480 / 640 < person.box[2]
    assert person.zones == ("shelf",)
    assert person.attentive
    assert 2.5 < person.attentive_seconds <= person.seconds <= 4
    assert person.age is not None
    assert person.gender is not None
    assert person.gender.label == "female"
    assert not person.staff


def test_staff_zones_are_named_by_the_plan_or_drawn_so(analyzer: Analyzer) -> None:
    collins, _ = portraits()
    frames = frames_of(scene_of(walking(collins, (0, 480), (2, 485)), seconds=2))
    drawn = replace(PLAN, zones=(replace(SHELF, staff=True),))
    named = CameraWatch(PLAN, analyzer, site="shop", epoch="e", staff=StaffRules(zones=("shelf",)))

    assert [visit.staff for visit in visits_of(watch(analyzer), frames)] == [False]
    assert [visit.staff for visit in visits_of(watch(analyzer, drawn), frames)] == [True]
    assert [visit.staff for visit in visits_of(named, frames)] == [True]


def test_health_sums_up_each_minute(analyzer: Analyzer) -> None:
    collins, _ = portraits()
    scene = scene_of(walking(collins, (0, 480), (4, 485)), seconds=4, fps=25)
    began = NOON + timedelta(seconds=58)
    dropping = [frame for frame in frames_of(scene, began) if frame.number % 25 < 20]

    steps = steps_of(watch(analyzer), dropping)

    first, last = (step.health for step in steps if step.health is not None)
    assert (first.minute, last.minute) == (NOON, NOON + timedelta(minutes=1))
    assert first.frames_in + last.frames_in == 4 * 25 - 5
    assert first.dropped + last.dropped == 3 * 5
    detections = first.detections + last.detections
    assert detections == len(moments_of(steps))
    assert detections - 3 <= first.faces + last.faces <= detections
    assert first.usable + last.usable == first.faces + last.faces
    assert 0.5 < last.quality_sum / last.faces <= 1
    assert 20 < last.age_sum / last.usable < 60
    assert {first.site, first.camera, first.epoch} == {"shop", "door", "e"}


def test_an_empty_picture_has_no_visit(analyzer: Analyzer) -> None:
    frames = frames_of(scene_of(seconds=2))

    steps = steps_of(watch(analyzer), frames)

    assert _visitors(steps) == []
    assert all(moment.people == () for moment in moments_of(steps))


def _visitors(steps: Sequence[Step]) -> list[str]:
    def ids() -> Iterator[str]:
        for step in steps:
            yield from (visit.id for visit in step.visits)

    return list(ids())
