"""Lines are crossed once a passage and zones are stayed in, whatever their shape and slope."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agelens.errors import ArgumentError
from agelens.video.zones import Box, Line, LinePassage, Passage, Point, Zone, ZoneTime

FACE = (0.06, 0.1)
UP_THE_MIDDLE = Line("middle", (0.5, 1.0), (0.5, 0.0), in_side="right")
"""As seen by one who walks up it, the right half of the picture is "in"."""


def face_at(x: float, y: float, size: tuple[float, float] = FACE) -> Box:
    return x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2


def passages(line: Line, way: Sequence[Point], step_s: float = 0.125) -> list[Passage]:
    watch = LinePassage(line)
    seen = [watch.see(face_at(x, y), step_s * step) for step, (x, y) in enumerate(way)]
    return [one for one in seen if one is not None]


def straight(start: Point, end: Point, steps: int = 20) -> list[Point]:
    shares = np.linspace(0, 1, steps)
    return [
        (start[0] + s * (end[0] - start[0]), start[1] + s * (end[1] - start[1])) for s in shares
    ]


def directions(line: Line, way: Sequence[Point]) -> list[str]:
    return [one.direction for one in passages(line, way)]


coordinates = st.floats(0, 1).map(lambda value: round(value, 3))
points = st.tuples(coordinates, coordinates)
ways = st.lists(points, min_size=2, max_size=12)
lines = st.builds(
    lambda start, end, side: (start, end, side), points, points, st.sampled_from(["left", "right"])
).filter(lambda line: math.dist(line[0], line[1]) > 0.05)


# --- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "into"),
    [
        (Line("up", (0.5, 0.9), (0.5, 0.1), "right"), (0.8, 0.5)),
        (Line("down", (0.5, 0.1), (0.5, 0.9), "right"), (0.2, 0.5)),
        (Line("to the right", (0.1, 0.5), (0.9, 0.5), "right"), (0.5, 0.8)),
        (Line("to the left", (0.9, 0.5), (0.1, 0.5), "right"), (0.5, 0.2)),
        (Line("slanting", (0.1, 0.9), (0.9, 0.1), "right"), (0.8, 0.8)),
        (Line("slanting, left", (0.1, 0.9), (0.9, 0.1), "left"), (0.2, 0.2)),
    ],
    ids=lambda value: value.name if isinstance(value, Line) else "",
)
def test_who_walks_to_the_in_side_goes_in_and_back_out(line: Line, into: Point) -> None:
    outside = (1 - into[0], 1 - into[1])

    assert directions(line, straight(outside, into)) == ["in"]
    assert directions(line, straight(into, outside)) == ["out"]
    assert directions(line, straight(outside, into) + straight(into, outside)) == ["in", "out"]


def test_a_line_is_crossed_when_the_middle_of_the_face_passes_it() -> None:
    (one,) = passages(UP_THE_MIDDLE, straight((0.2, 0.5), (0.9, 0.5), 29), step_s=0.1)

    assert one.direction == "in"
    assert one.seconds == pytest.approx(1.2)


def test_a_person_who_trembles_on_a_line_has_not_crossed_it() -> None:
    rng = np.random.default_rng(0)
    way = [(0.5 + x, 0.5) for x in rng.uniform(-0.014, 0.014, 500)]

    assert directions(UP_THE_MIDDLE, way) == []
    assert directions(UP_THE_MIDDLE, [(0.3, 0.5), *way, (0.3, 0.5)]) == []
    assert directions(UP_THE_MIDDLE, [(0.3, 0.5), *way, (0.7, 0.5)]) == ["in"]


def test_who_walks_around_the_end_of_a_line_has_not_crossed_it() -> None:
    short = Line("short", (0.5, 0.6), (0.5, 0.4), "right")
    around = [(0.3, 0.5), (0.3, 0.2), (0.7, 0.2), (0.7, 0.5)]

    assert directions(short, around) == []
    assert directions(short, [*around, (0.3, 0.5)]) == ["out"]
    assert directions(short, [*around, *around[::-1]]) == []


def test_who_was_not_seen_on_a_line_crossed_it_on_a_straight_way() -> None:
    (one,) = passages(UP_THE_MIDDLE, [(0.3, 0.5), (0.6, 0.5)], step_s=3.0)

    assert one.direction == "in"
    assert one.seconds == pytest.approx(2.0)


def test_who_appears_on_a_line_comes_from_neither_side() -> None:
    assert directions(UP_THE_MIDDLE, [(0.49, 0.5), (0.55, 0.5), (0.8, 0.5)]) == []


@settings(max_examples=150, deadline=None)
@given(line=lines, way=ways)
def test_a_mirrored_picture_has_the_same_crossings(
    line: tuple[Point, Point, str], way: list[Point]
) -> None:
    start, end, side = line
    other = "left" if side == "right" else "right"
    plain = Line("a", start, end, side)  # type: ignore[arg-type]
    mirrored = Line("a", (1 - start[0], start[1]), (1 - end[0], end[1]), other)  # type: ignore[arg-type]
    turned = Line("a", end, start, other)  # type: ignore[arg-type]
    # A way that ends exactly at a line's end may be rounded to either side of it.
    assume(all(abs(plain.offset(point)) > 1e-9 for point in way))
    assume(all(_misses_ends(plain, *step) for step in itertools.pairwise(way)))

    expected = directions(plain, way)

    assert directions(mirrored, [(1 - x, y) for x, y in way]) == expected
    assert directions(turned, way) == expected
    assert directions(plain, way[::-1]) == [
        "in" if one == "out" else "out" for one in reversed(expected)
    ] or any(abs(plain.offset(p)) <= plain.reach(FACE) for p in way)


def _misses_ends(line: Line, before: Point, after: Point) -> bool:
    """Whether the way between two points stays clear of both ends of a line."""
    for end in (line.start, line.end):
        (x0, y0), (x1, y1) = before, after
        area = abs((x1 - x0) * (end[1] - y0) - (y1 - y0) * (end[0] - x0))
        if area < 1e-6:
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(heights=st.lists(st.floats(0, 1), min_size=2, max_size=30), rows=st.floats(0.2, 0.8))
def test_ins_less_outs_say_on_which_side_one_ends(heights: list[float], rows: float) -> None:
    # The line goes through the whole picture, so that nobody gets around it.
    line = Line("across", (0.0, rows), (1.0, rows), "right")
    way = [(0.5, 0.02), *((0.5, height) for height in heights), (0.5, 0.98)]

    found = directions(line, way)

    assert found.count("in") - found.count("out") == 1
    assert all(a != b for a, b in itertools.pairwise(found))


@settings(max_examples=60, deadline=None)
@given(way=ways, stretch=st.floats(0.2, 5))
def test_the_shape_of_the_picture_changes_no_crossing(way: list[Point], stretch: float) -> None:
    line = Line("slanting", (0.2, 0.1), (0.7, 0.9))
    small = LinePassage(Line("slanting", (0.2, 0.1 / 5), (0.7, 0.9 / 5)))
    plain = LinePassage(line)
    assume(all(abs(line.offset(point)) > 1e-9 for point in way))

    for step, (x, y) in enumerate(way):
        flat = face_at(x, y / 5, (FACE[0], FACE[1] / 5))
        one, other = plain.see(face_at(x, y), step), small.see(flat, step)

        assert (one is None) == (other is None)


# --- zones ----------------------------------------------------------------------------------------


@st.composite
def polygons(draw: st.DrawFn) -> tuple[Point, ...]:
    """A star of 3 to 9 corners around a middle: simple, mostly not convex."""
    count = draw(st.integers(3, 9))
    turns = np.cumsum([draw(st.floats(0.5, 1.0)) for _ in range(count)])
    angles = 2 * math.pi * turns / turns[-1]
    radii = [draw(st.floats(0.1, 0.45)) for _ in range(count)]
    return tuple(
        (0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)
    )


def winding(polygon: Sequence[Point], point: Point) -> float:
    """Turns that a polygon makes around a point: the sum of the angles that its sides subtend."""
    total = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise((*polygon, polygon[0])):
        a, b = (x0 - point[0], y0 - point[1]), (x1 - point[0], y1 - point[1])
        total += math.atan2(a[0] * b[1] - a[1] * b[0], a[0] * b[0] + a[1] * b[1])
    return total / (2 * math.pi)


@settings(max_examples=200, deadline=None)
@given(polygon=polygons(), point=points)
def test_a_point_is_in_a_zone_that_winds_around_it(
    polygon: tuple[Point, ...], point: Point
) -> None:
    turns = winding(polygon, point)
    assume(abs(turns - round(turns)) < 1e-6)  # not on a side

    assert Zone("z", polygon).contains(point) == (round(abs(turns)) == 1)
    assert Zone("z", polygon[::-1]).contains(point) == (round(abs(turns)) == 1)


def test_a_point_on_a_common_side_is_in_one_of_two_zones() -> None:
    left = Zone("left", ((0.1, 0.1), (0.5, 0.2), (0.5, 0.8), (0.1, 0.9)))
    right = Zone("right", ((0.5, 0.2), (0.9, 0.1), (0.9, 0.9), (0.5, 0.8)))

    for y in np.linspace(0.25, 0.75, 11):
        assert left.contains((0.5, y)) + right.contains((0.5, y)) == 1


@settings(max_examples=100, deadline=None)
@given(
    polygon=polygons(),
    way=ways,
    steps=st.lists(st.floats(0, 3), min_size=12, max_size=12),
)
def test_nobody_stays_longer_in_a_zone_than_they_are_in_view(
    polygon: tuple[Point, ...], way: list[Point], steps: list[float]
) -> None:
    time = ZoneTime(Zone("z", polygon))
    moments = np.cumsum(steps)[: len(way)]

    for moment, (x, y) in zip(moments, way, strict=False):
        time.see(face_at(x, y), float(moment))

    assert 0 <= time.seconds <= moments[-1] - moments[0] + 1e-9


def test_the_time_in_a_zone_is_that_between_coming_and_going() -> None:
    time = ZoneTime(Zone("z", ((0.4, 0.0), (0.6, 0.0), (0.6, 1.0), (0.4, 1.0))))

    for step in range(101):  # 0.1 of the picture a second: 2 s in the zone
        time.see(face_at(step / 100, 0.5), step / 10)

    assert time.seconds == pytest.approx(2.0, abs=0.1)
    assert not time.inside


def test_no_time_counts_while_one_is_out_of_view() -> None:
    time = ZoneTime(Zone("z", ((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9))))
    for moment in (0.0, 1.0):
        time.see(face_at(0.5, 0.5), moment)
    time.pause()
    for moment in (20.0, 20.5):
        time.see(face_at(0.5, 0.5), moment)

    assert time.seconds == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Line("", (0, 0), (1, 1)), "name"),
        (lambda: Line("a\nb", (0, 0), (1, 1)), "printable"),
        (lambda: Line("a", (0.2, 0.2), (0.2, 0.2)), "length"),
        (lambda: Line("a", (0, 0), (640, 1)), "fractions 0..1"),
        (lambda: Line("a", (0, 0), (float("nan"), 1)), "fractions 0..1"),
        (lambda: Line("a", (0, 0), (1, 1), "up"), "'left' or 'right'"),  # type: ignore[arg-type]
        (lambda: Line("a", (0, 0), (1,)), "pairs"),  # type: ignore[arg-type]
        (lambda: Zone("a", ((0, 0), (1, 1))), "three corners"),
        (lambda: Zone("a", ((0, 0), (0.5, 0.5), (1, 1))), "no area"),
        (lambda: Zone("a", ((0, 0), (1, 1), (1, 0), (0, 1), (0.5, 0.9))), "order around"),
        (lambda: Zone("a", ((0, 0), (1, 0), (1, 1), (1, 0), (0, 1))), "order around"),
        (lambda: Zone("a", ((0, 0), (1, 0), (1, 1)), staff="yes"), "true or false"),  # type: ignore[arg-type]
    ],
    ids=[
        "nameless",
        "line break",
        "point",
        "pixels",
        "nan",
        "side",
        "pair",
        "two corners",
        "flat",
        "crossed",
        "folded",
        "staff",
    ],
)
def test_what_cannot_be_a_line_or_a_zone_is_refused(make: object, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        make()  # type: ignore[operator]


def test_a_polygon_may_be_closed_by_its_first_corner() -> None:
    open_zone = Zone("z", ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)))

    assert Zone("z", (*open_zone.polygon, (0.0, 0.0))) == open_zone
