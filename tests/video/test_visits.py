"""A person is one visit, also when hidden or out of view for a moment; two people are two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agelens.fusion import fuse, fuse_genders
from agelens.results import AgeDistribution, GenderEstimate, Quality
from agelens.video.evidence import FRAMES_CORRELATION, Evidence, Vote, usability
from agelens.video.guests import Sight, VisitRules
from agelens.video.returns import likeness_odds
from agelens.video.tracking import Tracker
from agelens.video.visit import Visit, visit_ages
from agelens.video.visits import VisitBook
from agelens.video.zones import Box, Line, Zone

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ASPECT = 16 / 9
STEP_S = 0.125
GOOD = Quality(100, 1.0, 0.5, 0.0, 0.0, 0.0)
DOOR = Line("door", (0.5, 0.0), (0.5, 1.0), in_side="left")

Place = tuple[float, float]
Way = Callable[[float], Place | None]


@dataclass(frozen=True)
class Walker:
    """Somebody on a way: the middle of the face in heights of the picture, None when unseen."""

    way: Way
    age: float = 40
    female: float = 0.95
    side: float = 0.1
    quality: Quality = GOOD

    def box(self, seconds: float, noise: np.random.Generator) -> Box | None:
        place = self.way(seconds)
        if place is None:
            return None
        x, y = np.array(place) + noise.normal(0, 0.02, 2) * self.side
        half = self.side / 2
        return ((x - half) / ASPECT, y - half, (x + half) / ASPECT, y + half)


def along(*points: tuple[float, float, float], hidden: Sequence[tuple[float, float]] = ()) -> Way:
    """A way through (seconds, x, y); not seen outside it, outside the picture and when hidden."""
    times, xs, ys = np.array(points, float).T

    def way(seconds: float) -> Place | None:
        x, y = float(np.interp(seconds, times, xs)), float(np.interp(seconds, times, ys))
        is_there = times[0] <= seconds <= times[-1] and 0.03 < x < ASPECT - 0.03
        is_there = is_there and not any(start <= seconds < end for start, end in hidden)
        return (x, y) if is_there else None

    return way


@dataclass
class Watched:
    """What a tracker and a book make of walkers, without pictures."""

    rules: VisitRules = field(default_factory=VisitRules)
    step_s: float = STEP_S

    def visits(self, walkers: Sequence[Walker], seconds: float) -> list[Visit]:
        noise = np.random.default_rng(0)
        tracker = Tracker()
        book = VisitBook(self.rules, site="shop", camera="door", epoch="e", model="m@1")
        visits: list[Visit] = []
        for now in np.arange(0, seconds, self.step_s).tolist():
            seen = [(one, one.box(now, noise)) for one in walkers]
            boxes = [(one, box) for one, box in seen if box is not None]
            visits += self._step(tracker, book, boxes, now)
        return [*visits, *book.finish(seconds, ASPECT)]

    def _step(
        self,
        tracker: Tracker,
        book: VisitBook,
        boxes: Sequence[tuple[Walker, Box]],
        now: float,
    ) -> Iterable[Visit]:
        high = [_pixels(box) for _, box in boxes]
        update = tracker.update(high, [0.9] * len(boxes), now)
        at = NOON + timedelta(seconds=now)
        named = [(n, one, box) for n, (one, box) in zip(update.ids, boxes, strict=True) if n]
        book.update(
            now,
            at,
            seen={name: Sight(now, box, one.quality) for name, one, box in named},
            begun={
                one.id: [Sight(then, _fractions(box)) for then, box in one.sights[:-1]]
                for one in update.begun
            },
            ended=[track.id for track in update.ended],
        )
        for name, one, _ in named:
            guest = book.guest(name)
            assert guest is not None
            if guest.evidence.worth(usability(one.quality), now) > 0:
                age = AgeDistribution.from_normal(one.age, 6)
                vote = Vote(usability(one.quality), now, age, GenderEstimate(one.female))
                guest.evidence.add(vote)
        for track in book.rejoin(now, ASPECT):
            tracker.forget(track)
        return book.finished(now)


def _pixels(box: Box) -> Box:
    return box[0] * 720 * ASPECT, box[1] * 720, box[2] * 720 * ASPECT, box[3] * 720


def _fractions(box: Box) -> Box:
    return box[0] / 720 / ASPECT, box[1] / 720, box[2] / 720 / ASPECT, box[3] / 720


def visits_of(*walkers: Walker, seconds: float = 20.0, **rules: Any) -> list[Visit]:
    return Watched(VisitRules(**rules)).visits(walkers, seconds)


RIGHT = ASPECT + 0.15
THROUGH = along((1, -0.15, 0.5), (7, RIGHT, 0.5))


# --- one person -----------------------------------------------------------------------------------


def test_a_person_who_walks_through_is_one_visit() -> None:
    (visit,) = visits_of(Walker(THROUGH), lines=(DOOR,))

    assert (visit.site, visit.camera, visit.epoch, visit.track) == ("shop", "door", "e", 1)
    assert visit.seconds == pytest.approx(4.96, abs=0.25)
    assert (visit.end - visit.start).total_seconds() == pytest.approx(visit.seconds, abs=0.01)
    assert [one.direction for one in visit.crossings] == ["in"]
    assert visit.crossings[0].at == pytest.approx(NOON + timedelta(seconds=4), abs=_MOMENT)
    assert visit.gender == "female"
    assert visit.attentive_seconds == pytest.approx(visit.seconds, abs=0.5)


_MOMENT = timedelta(seconds=0.1)


def test_a_visit_begins_with_the_first_sight_and_not_with_the_confirmation() -> None:
    # The line stands where the second of the three sights that confirm a track has crossed it.
    line = Line("rim", (0.1, 0.0), (0.1, 1.0), in_side="left")
    walker = Walker(along((1, -0.15, 0.5), (4, RIGHT, 0.5)))

    (visit,) = visits_of(walker, lines=(line,))

    assert [one.direction for one in visit.crossings] == ["in"]


@pytest.mark.parametrize("step_s", [0.04, 0.125, 0.25, 0.5])
def test_a_person_is_one_visit_however_often_faces_are_looked_for(step_s: float) -> None:
    slow = Walker(along((1, -0.15, 0.5), (13, RIGHT, 0.5)))

    (visit,) = Watched(VisitRules(lines=(DOOR,)), step_s).visits([slow], 20)

    assert [one.direction for one in visit.crossings] == ["in"]


def test_the_same_run_gives_the_same_visits_and_another_epoch_others() -> None:
    walkers = [Walker(THROUGH), Walker(along((3, RIGHT, 0.3), (9, -0.15, 0.3)), age=20)]

    assert visits_of(*walkers) == visits_of(*walkers)
    assert len({visit.id for visit in visits_of(*walkers)}) == 2


def test_a_visit_ends_once_nobody_can_come_back() -> None:
    watched = Watched(VisitRules(rejoin_s=5))

    early, late = watched.visits([Walker(THROUGH)], 11), watched.visits([Walker(THROUGH)], 20)

    assert early == late


# --- gone and back --------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(gap=st.floats(0.3, 5), speed=st.floats(0.0, 0.25))
def test_a_person_who_is_hidden_in_the_picture_stays_one_visit(gap: float, speed: float) -> None:
    way = along((1, 0.3, 0.5), (15, 0.3 + 5 * speed, 0.5), hidden=[(5, 5 + gap)])

    (visit,) = visits_of(Walker(way), seconds=30)

    assert visit.seconds <= 14.01
    assert (visit.end - visit.start).total_seconds() == pytest.approx(14, abs=0.2)


def test_who_steps_out_of_the_picture_and_comes_back_is_one_visit() -> None:
    way = along((1, -0.15, 0.5), (4, 0.6, 0.5), (7, -0.15, 0.5), (9, -0.15, 0.5), (12, 0.6, 0.5))

    (visit,) = visits_of(Walker(way), seconds=30)

    assert (visit.end - visit.start).total_seconds() == pytest.approx(10.3, abs=0.5)
    assert visit.seconds == pytest.approx(6.84, abs=0.4)


def test_a_crossing_while_hidden_counts_once() -> None:
    way = along((1, -0.15, 0.5), (7, RIGHT, 0.5), hidden=[(3.2, 4.8)])

    (visit,) = visits_of(Walker(way), lines=(DOOR,))

    assert [one.direction for one in visit.crossings] == ["in"]


@pytest.mark.parametrize(
    "other",
    [
        Walker(along((8, RIGHT, 0.5), (14, -0.15, 0.5)), age=8),
        Walker(along((8, RIGHT, 0.5), (14, -0.15, 0.5)), female=0.05),
        Walker(along((8, RIGHT, 0.5), (14, -0.15, 0.5)), side=0.2),
        Walker(along((8, -0.15, 0.5), (14, RIGHT, 0.5))),
        Walker(along((6.7, RIGHT, 0.5), (9.2, -0.15, 0.5))),
        Walker(along((19, RIGHT, 0.5), (25, -0.15, 0.5))),
    ],
    ids=["age", "gender", "size", "place", "turned on the spot", "later"],
)
def test_somebody_else_who_comes_where_one_left_is_another_visit(other: Walker) -> None:
    assert len(visits_of(Walker(THROUGH), other, seconds=40)) == 2


def test_where_many_come_and_go_age_and_gender_must_be_surer() -> None:
    left = Walker(along((20, -0.15, 0.5), (26, RIGHT, 0.5)))
    came = Walker(along((28.5, RIGHT, 0.5), (34, -0.15, 0.5)), age=45)
    at_the_same_end = [
        Walker(along((1 + 2 * k, RIGHT, 0.3), (6 + 2 * k, -0.15, 0.3)), age=a)
        for k, a in enumerate((10, 70, 20, 60, 15, 75, 5, 65))
    ]

    alone = visits_of(left, came, seconds=50)
    among_many = visits_of(*at_the_same_end, left, came, seconds=50)

    assert len(alone) == 1
    assert len(among_many) == 8 + 2


def test_two_people_in_view_at_a_time_are_never_one() -> None:
    two = [Walker(along((1, -0.15, y), (7, RIGHT, y))) for y in (0.3, 0.7)]

    assert len(visits_of(*two)) == 2


def test_without_rejoining_a_person_who_was_lost_is_counted_again() -> None:
    way = along((1, 0.5, 0.5), (15, 0.5, 0.5), hidden=[(5, 9)])

    assert len(visits_of(Walker(way), rejoin_s=0.0)) == 2
    assert len(visits_of(Walker(way), rejoin_s=10.0)) == 1


def test_likeness_tells_people_apart_and_what_is_unknown_says_nothing() -> None:
    forty, sixty = (AgeDistribution.from_normal(age, 6) for age in (40, 60))
    woman, man = GenderEstimate(0.97), GenderEstimate(0.02)

    assert likeness_odds((forty, forty), (woman, woman)) > 5
    assert likeness_odds((forty, sixty), (woman, woman)) < 0.1
    assert likeness_odds((forty, forty), (woman, man)) < 0.1
    assert likeness_odds((None, forty), (None, man)) == 1


# --- zones and staff ------------------------------------------------------------------------------


def test_the_time_in_a_zone_is_kept_by_name() -> None:
    half = Zone("left half", ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)))

    (visit,) = visits_of(Walker(THROUGH), zones=(half,))

    (stay,) = visit.stays
    assert stay.zone == "left half"
    assert stay.seconds == pytest.approx(visit.seconds / 2, abs=0.2)


def test_who_brushes_a_zone_has_not_stayed_in_it() -> None:
    strip = Zone("strip", ((0.5, 0.0), (0.52, 0.0), (0.52, 1.0), (0.5, 1.0)))

    (visit,) = visits_of(Walker(THROUGH), zones=(strip,))

    assert visit.stays == ()


COUNTER = Zone("counter", ((0.0, 0.0), (0.4, 0.0), (0.4, 1.0), (0.0, 1.0)), staff=True)


@pytest.mark.parametrize(
    ("walker", "rules", "is_staff"),
    [
        (Walker(along((1, 0.3, 0.5), (9, 0.3, 0.5))), {"zones": (COUNTER,)}, False),
        (
            Walker(along((1, 0.3, 0.5), (9, 0.3, 0.5))),
            {"zones": (COUNTER,), "staff_zones": frozenset(["counter"])},
            True,
        ),
        (
            Walker(along((1, 0.6, 0.5), (1.5, 0.6, 0.5), (9, 1.2, 0.5))),
            {"zones": (COUNTER,), "staff_zones": frozenset(["counter"])},
            False,
        ),
        (Walker(along((1, 1.2, 0.5), (9, 1.2, 0.5))), {"staff_after_s": 5.0}, True),
        (Walker(along((1, 1.2, 0.5), (9, 1.2, 0.5))), {"staff_after_s": 9.0}, False),
    ],
    ids=["no rule", "at the counter", "past the counter", "long", "short"],
)
def test_staff_are_told_by_zone_and_by_long_presence(
    walker: Walker, rules: dict[str, Any], is_staff: bool
) -> None:
    (visit,) = visits_of(walker, **rules)

    assert visit.staff is is_staff


# --- what the frames say --------------------------------------------------------------------------


def test_the_best_frames_are_fused_with_what_they_share() -> None:
    evidence = Evidence()
    ages = [AgeDistribution.from_normal(30 + n, 6) for n in range(20)]
    for n, age in enumerate(ages):
        evidence.add(Vote(0.5 + 0.02 * n, float(n), age, GenderEstimate(0.6 + 0.01 * n)))

    best = ages[-8:]
    assert len(evidence.votes) == 8
    assert evidence.age == fuse(best, correlation=FRAMES_CORRELATION).age
    genders = [GenderEstimate(0.6 + 0.01 * n) for n in range(12, 20)]
    assert evidence.gender == fuse_genders(genders, correlation=FRAMES_CORRELATION)


def test_a_frame_much_worse_than_the_best_has_no_vote() -> None:
    evidence = Evidence()
    far, near = AgeDistribution.from_normal(60, 9), AgeDistribution.from_normal(30, 5)
    for second, (worth, age) in enumerate([(0.3, far), (0.3, far), (0.9, near)]):
        evidence.add(Vote(worth, float(second), age, None))

    assert evidence.age == near


def test_who_is_known_well_is_estimated_rarely() -> None:
    evidence = Evidence()
    asked = 0
    for step in range(int(60 / STEP_S)):
        if evidence.worth(0.8, step * STEP_S) > 0:
            asked += 1
            age = AgeDistribution.from_normal(30, 5)
            evidence.add(Vote(0.8, step * STEP_S, age, None))

    assert asked <= 5 + 60 / 5
    assert evidence.worth(0.8 * 1.3, 60.0) > 0


def test_nothing_is_said_of_one_whose_face_allowed_no_estimate() -> None:
    turned = replace(GOOD, yaw=80.0, usable=False, reasons=("turned away",))

    (visit,) = visits_of(Walker(THROUGH, quality=turned))

    assert visit.abstained
    assert (visit.age, visit.female, visit.frames, visit.quality) == (None, None, 0, 0.0)
    assert visit.attentive_seconds == 0


def test_usability_falls_with_size_light_sharpness_and_pose() -> None:
    assert usability(GOOD) == pytest.approx(1.0)
    worse = [
        {"size_px": 30},
        {"sharpness": 0.3},
        {"exposure": 0.95},
        {"yaw": 45.0},
        {"pitch": -30.0},
    ]
    assert all(0 < usability(replace(GOOD, **one)) < 0.9 for one in worse)  # type: ignore[arg-type]
    assert usability(replace(GOOD, usable=False)) == 0


def test_the_estimate_of_a_visit_is_that_of_its_frames() -> None:
    (visit,) = visits_of(Walker(THROUGH, age=33, female=0.2))

    frames = [AgeDistribution.from_normal(33, 6)] * visit.frames
    assert visit.age == visit_ages(fuse(frames, correlation=FRAMES_CORRELATION).age)
    assert visit.gender == "male"
