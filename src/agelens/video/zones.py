"""
Lines that are crossed and zones that are stayed in, counted once a passage.

    Line, Zone     what is drawn on the picture: coordinates are fractions 0..1 of it, y downwards
    LinePassage    one face and one line: which side it is on, and when it has crossed
    ZoneTime       one face and one zone: how long it was in

What crosses a line or is in a zone is the middle of the face's box: draw lines and zones at the
height of the heads in the picture, not of the feet. Nothing here depends on the shape of the
picture: to stretch it, or to mirror it with the sides exchanged, changes no count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

from agelens.errors import ArgumentError
from agelens.video.visit import Direction

Point = tuple[float, float]
Box = tuple[float, float, float, float]
Side = Literal["left", "right"]

_SETTLED: Final = 0.5
"""Share of the way from touching a line to having left it behind from which on a face is on its
side: a quarter of its size, for a line that it crosses straight."""
_LEAST_STAY_S: Final = 0.5
"""Seconds under which a face only brushed a zone."""
_LONGEST_NAME: Final = 200
_NO_AREA: Final = 1e-6


@dataclass(frozen=True)
class Line:
    """A line that people cross.

    Attributes:
        name: Of its own among the lines of the camera.
        start: x, y as fractions 0..1 of the picture, y downwards.
        end: Likewise; not the same point.
        in_side: Who comes to this side goes "in": "left" or "right" as seen in the picture by one
            who walks from ``start`` to ``end``.
    """

    name: str
    start: Point
    end: Point
    in_side: Side = "left"

    def __post_init__(self) -> None:
        what = f"line {self.name!r}"
        _check_name(what, self.name)
        points = _checked_points(what, (self.start, self.end))
        if points[0] == points[1]:
            raise ArgumentError(f"{what} starts and ends at {points[0]}; give it a length")
        if self.in_side not in get_args(Side):
            raise ArgumentError(f"{what}: in_side must be 'left' or 'right', got {self.in_side!r}")
        object.__setattr__(self, "start", points[0])
        object.__setattr__(self, "end", points[1])

    def offset(self, point: Point) -> float:
        """Which side a point is on: over 0 to the right of one who walks from start to end.

        Twice the area of the triangle of the point and the line, in fractions of the picture.
        """
        (x0, y0), (x1, y1) = self.start, self.end
        return (x1 - x0) * (point[1] - y0) - (y1 - y0) * (point[0] - x0)

    def reach(self, size: tuple[float, float]) -> float:
        """The ``offset`` of a box's middle at which the box, of this width and height, touches."""
        (x0, y0), (x1, y1) = self.start, self.end
        return (abs(x1 - x0) * size[1] + abs(y1 - y0) * size[0]) / 2

    def along(self, point: Point) -> float:
        """Where on the way from start (0) to end (1) a point of the line lies."""
        (x0, y0), (x1, y1) = self.start, self.end
        dx, dy = x1 - x0, y1 - y0
        if abs(dx) >= abs(dy):
            return (point[0] - x0) / dx
        return (point[1] - y0) / dy


@dataclass(frozen=True)
class Zone:
    """An area that people stay in.

    Attributes:
        name: Of its own among the zones of the camera.
        polygon: Three or more corners, x, y as fractions 0..1 of the picture, y downwards; its
            sides do not cross.
        staff: Only staff stay here, as behind a counter.
    """

    name: str
    polygon: tuple[Point, ...]
    staff: bool = False

    def __post_init__(self) -> None:
        what = f"zone {self.name!r}"
        _check_name(what, self.name)
        corners = _checked_points(what, self.polygon)
        if len(corners) > 1 and corners[0] == corners[-1]:
            corners = corners[:-1]
        if len(corners) < 3:
            raise ArgumentError(f"{what} needs three corners or more, got {len(corners)}")
        if abs(_area(corners)) < _NO_AREA:
            raise ArgumentError(f"{what} has no area: its corners lie on one line")
        for first, second in _crossed_sides(corners):
            raise ArgumentError(
                f"{what}: the side after corner {first + 1} touches that after corner "
                f"{second + 1}; give the corners in their order around the zone"
            )
        if not isinstance(self.staff, bool):
            raise ArgumentError(f"{what}: staff must be true or false, got {self.staff!r}")
        object.__setattr__(self, "polygon", corners)

    def contains(self, point: Point) -> bool:
        """Whether a point is inside.

        The number of sides to the right of the point is odd. Of two zones that share a side, a
        point on it is in exactly one.
        """
        x, y = point
        inside = False
        for (x0, y0), (x1, y1) in _sides(self.polygon):
            if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
                inside = not inside
        return inside


class Passage(NamedTuple):
    """A line was crossed: which way, and when by the stream's clock."""

    direction: Direction
    seconds: float


class LinePassage:
    """One face and one line.

    A face is on a side when its middle is past the line by half of what it takes to leave it
    behind; it has crossed when it is on the other side, at the moment its middle passed the line
    for the last time. So one who trembles on the line, or turns back on it, is not counted. Whose
    middle went around the end of the line is on the other side without having crossed. Where a
    face was not seen for a while, its way is straight.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self._side = 0
        self._before: tuple[float, Point, float] | None = None
        self._sign = 0
        self._passed: tuple[bool, float] | None = None

    def see(self, box: Box, seconds: float) -> Passage | None:
        """Take one sight of the face; the crossing that it completes, if any.

        Args:
            box: x0 y0 x1 y1 as fractions of the picture; may reach outside.
            seconds: When, by the stream's clock; never falling.
        """
        middle = middle_of(box)
        offset = self.line.offset(middle)
        sign = int(offset > 0) - int(offset < 0) or self._sign
        if self._before is not None and sign != self._sign != 0:
            self._passed = self._passage(middle, offset, seconds)
        self._before, self._sign = (offset, middle, seconds), sign
        if abs(offset) <= _SETTLED * self.line.reach((box[2] - box[0], box[3] - box[1])):
            return None
        came_from, self._side = self._side, sign
        if came_from in (0, sign) or self._passed is None or not self._passed[0]:
            return None
        is_in = (sign > 0) == (self.line.in_side == "right")
        return Passage("in" if is_in else "out", self._passed[1])

    def _passage(self, middle: Point, offset: float, seconds: float) -> tuple[bool, float]:
        """Whether the way from the sight before led through the line itself, and when."""
        assert self._before is not None  # there is a way only between two sights
        old_offset, old_middle, old_seconds = self._before
        share = old_offset / (old_offset - offset)
        x = old_middle[0] + share * (middle[0] - old_middle[0])
        y = old_middle[1] + share * (middle[1] - old_middle[1])
        is_through = 0 <= self.line.along((x, y)) <= 1
        return is_through, old_seconds + share * (seconds - old_seconds)


class ZoneTime:
    """One face and one zone.

    The time between two sights counts whole when the middle of the face was inside at both, and
    half when at one: never more than passed.

    Attributes:
        zone: The zone.
        inside: Whether the face was in it when last seen.
        seconds: How long it was in it in all.
    """

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.inside = False
        self.seconds = 0.0
        self._seen_s: float | None = None

    @property
    def is_stay(self) -> bool:
        """Whether it was long enough to be one."""
        return self.seconds >= _LEAST_STAY_S

    def see(self, box: Box, seconds: float) -> None:
        """Take one sight of the face; see ``LinePassage.see``."""
        was_inside, self.inside = self.inside, self.zone.contains(middle_of(box))
        if self._seen_s is not None:
            self.seconds += (was_inside + self.inside) / 2 * (seconds - self._seen_s)
        self._seen_s = seconds

    def pause(self) -> None:
        """The face is out of view: no time counts until it is seen again."""
        self.inside, self._seen_s = False, None


def middle_of(box: Box) -> Point:
    """The point of a face that crosses lines and is in zones: the middle of its box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


# --- checks ---------------------------------------------------------------------------------------


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise ArgumentError(f"{what} needs a name of 1 to {_LONGEST_NAME} printable characters")


def _checked_points(what: str, given: Sequence[Point]) -> tuple[Point, ...]:
    try:
        points = tuple((float(x), float(y)) for x, y in given)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{what}: points must be pairs (x, y), got {given!r}") from error
    for number, point in enumerate(points, 1):
        if not all(math.isfinite(value) and 0 <= value <= 1 for value in point):
            raise ArgumentError(
                f"{what}: point {number} is {point}; x and y are fractions 0..1 of the picture, "
                "pixels divided by its width and height"
            )
    return points


def _sides(corners: Sequence[Point]) -> Iterator[tuple[Point, Point]]:
    return itertools.pairwise((*corners, corners[0]))


def _area(corners: Sequence[Point]) -> float:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in _sides(corners)) / 2


def _crossed_sides(corners: Sequence[Point]) -> Iterator[tuple[int, int]]:
    """Pairs of sides that meet elsewhere than at the corner between them."""
    sides = list(_sides(corners))
    for first, second in itertools.combinations(range(len(sides)), 2):
        is_next = second - first in (1, len(sides) - 1)
        if is_next:
            fold = _folded(sides[first], sides[second])
            if fold:
                yield first, second
        elif _meet(*sides[first], *sides[second]):
            yield first, second


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _folded(first: tuple[Point, Point], second: tuple[Point, Point]) -> bool:
    """Whether two sides with a common corner lie on each other."""
    shared = first[1] if first[1] == second[0] else first[0]
    here = first[0] if shared == first[1] else first[1]
    there = second[1] if shared == second[0] else second[0]
    if _turn(shared, here, there) != 0:
        return False
    ahead = (here[0] - shared[0]) * (there[0] - shared[0])
    return ahead + (here[1] - shared[1]) * (there[1] - shared[1]) >= 0


def _meet(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the lines a-b and c-d have a point in common."""
    turns = (_turn(a, b, c), _turn(a, b, d), _turn(c, d, a), _turn(c, d, b))
    if turns[0] * turns[1] < 0 and turns[2] * turns[3] < 0:
        return True
    ends = ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
    return any(turn == 0 and _within(*end) for turn, end in zip(turns, ends, strict=True))


def _within(a: Point, b: Point, c: Point) -> bool:
    """Whether c, on the straight line through a and b, is between them."""
    return all(min(p, q) <= r <= max(p, q) for p, q, r in zip(a, b, c, strict=True))


__all__ = [
    "Box",
    "Line",
    "LinePassage",
    "Passage",
    "Point",
    "Side",
    "Zone",
    "ZoneTime",
    "middle_of",
]
