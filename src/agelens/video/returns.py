"""
Who comes back: the odds that a newcomer is someone who was lost, without any stored appearance.

Place, time, movement and the fused age and gender say it, and how many others come. What they can't
tell apart: two people of one age and gender of whom one enters where the other left a few seconds
before are taken for one; and a person who comes back elsewhere, or later, is counted again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from agelens.results import AgeDistribution, GenderEstimate
from agelens.video.evidence import FRAMES_CORRELATION
from agelens.video.guests import Guest, Step
from agelens.video.zones import Box, Point, middle_of

_NEAR: Final = 2.0
"""Sides of the face around the expected place within which one is looked for at once."""
_WANDER: Final = 0.7
"""Sides by which this widens in a second, for one who left the picture."""
_WANDER_HIDDEN: Final = 2.5
"""The same for one who is hidden in it, and may have set off meanwhile."""
_FARTHEST: Final = 6.0
"""Sides at which it ends."""
_COAST_S: Final = 5.0
"""Seconds for which one who is hidden is taken to have gone on."""
_PEAK: Final = 2.0 / (1 - math.exp(-2.0))
"""Density where one is expected, of a normal distribution cut off at two spreads, over the same
within the reach."""
_SIZES_APART: Final = 1.7
"""Ratio of the sides of two faces over which they are not one."""
_EDGE: Final = 0.75
"""Sides between a face's middle and the rim of the picture within which it comes or goes there."""
_MOMENT_S: Final = 0.4
"""Time by which a face may be seen later than it came, or last before it left."""
_RETURNS_INSIDE: Final = 0.9
"""Share of those lost in the middle of the picture who soon are seen there again."""
_RETURNS_LINGERING: Final = 0.4
"""Share of those lost at the rim, hardly moving, who soon come back there."""
_RETURNS_WALKED: Final = 0.08
"""Share of those who walked out, and of those who come back elsewhere than they were lost."""
_WALKS: Final = 1.0
"""Sides a second from which one walks."""
_TURNS: Final = 3.0
"""Usual change of speed of one who turns back, sides a second in a second."""
_SOON_S: Final = 5.0
"""Mean time that those who come back stay away."""
_LEAST_YEARS: Final = 1.5
"""Least spread of the difference of two estimates of one person, years."""
_PEOPLE_YEARS: Final = 15.0
"""Spread of the ages of visitors, years."""
ARRIVALS_S: Final = 120.0
"""Time over which arrivals are counted."""
_ARRIVALS_LEAST_S: Final = 10.0
_SHARE_NEAR: Final = 0.15
"""Share of all arrivals that is to be expected near a place where somebody has come."""
_SPEED_OVER_S: Final = 0.5
"""Time that they take."""


class Arrival(NamedTuple):
    """Which track came into view when and where (fractions of the picture)."""

    track: int
    seconds: float
    x: float
    y: float
    at_edge: bool


def likeness_odds(
    ages: tuple[AgeDistribution | None, AgeDistribution | None],
    genders: tuple[GenderEstimate | None, GenderEstimate | None],
) -> float:
    """How much likelier two estimates are of one person than of two, by age and gender.

    The means of one person differ by what the frames' errors do not share: normally, with the
    variance of both times one less ``FRAMES_CORRELATION``. Those of two people differ by their ages
    too. Genders agree with the probability that both are the same, and where they do not, it counts
    twice: one person's errors go the same way. What is not known says nothing (1).
    """
    odds = 1.0
    if ages[0] is not None and ages[1] is not None:
        apart = ages[0].mean - ages[1].mean
        unshared = (1 - FRAMES_CORRELATION) * (ages[0].std ** 2 + ages[1].std ** 2)
        alike = max(_LEAST_YEARS, math.sqrt(unshared))
        odds *= _normal(apart, alike) / _normal(apart, math.hypot(alike, 2**0.5 * _PEOPLE_YEARS))
    if genders[0] is not None and genders[1] is not None:
        one, other = (gender.female_probability for gender in genders if gender is not None)
        agree = 2 * (one * other + (1 - one) * (1 - other))
        odds *= agree if agree >= 1 else agree**2
    return odds


def _normal(value: float, spread: float) -> float:
    return math.exp(-((value / spread) ** 2) / 2) / spread


def return_odds(guest: Guest, newcomer: Guest, arrivals: Sequence[Arrival], aspect: float) -> float:
    """Odds that a newcomer is a guest who was lost, against that they are someone else.

        how many come back so, times the density of the time away,
        over the rate of new arrivals near the newcomer's place,
        times how much likelier place, movement, age and gender are of one person than of two

    So where nobody else comes, one who reappears is taken for the same; and the more people come
    and go at a door, the surer age and gender must be. 0 where the place is too far from that of
    the loss and from the way on which the last movement led, or the size differs too much; small
    where one who walked out would have had to turn on the spot.

    Args:
        guest: Not in view; the last sight is the place of the loss.
        newcomer: Seen after it.
        arrivals: Others who came lately.
        aspect: Width of the picture over its height.
    """
    away_s = newcomer.first_s - guest.last.seconds
    lost, came = guest.last.box, newcomer.first_box
    sides = _side(lost, aspect), _side(came, aspect)
    if away_s <= 0 or max(sides) > _SIZES_APART * min(sides):
        return 0.0
    side = math.sqrt(sides[0] * sides[1])
    apart = _apart(guest, middle_of(came), min(away_s, _COAST_S), aspect) / side
    wander = _WANDER if _left_at_edge(guest, aspect) else _WANDER_HIDDEN
    reach = min(_NEAR + wander * away_s, _FARTHEST)
    if apart > reach:
        return 0.0
    # Who comes back soon is seen back soon, unless nobody was looking.
    looked_s = max(0.0, away_s - guest.unseen_s)
    density = _share_back(guest, newcomer, aspect) * math.exp(-looked_s / _SOON_S) / _SOON_S
    others = [one for one in arrivals if one.track != guest.track]
    rate = _arrival_rate(others, newcomer, _FARTHEST * side, aspect) * reach / _FARTHEST
    before, after = _speed(guest.recent, lost, aspect), _speed(newcomer.opening, came, aspect)
    turned = math.dist(before, after) / (away_s + _SPEED_OVER_S)
    place = _PEAK * math.exp(-2 * (apart / reach) ** 2 - (turned / _TURNS) ** 2 / 2)
    likeness = likeness_odds(
        (guest.evidence.age, newcomer.evidence.age),
        (guest.evidence.gender, newcomer.evidence.gender),
    )
    return density / rate * place * likeness


def _share_back(guest: Guest, newcomer: Guest, aspect: float) -> float:
    """How many of those who are lost so soon come back so."""
    is_lost_inside = not _left_at_edge(guest, aspect)
    if is_lost_inside == came_at_edge(newcomer, aspect):
        return _RETURNS_WALKED
    if is_lost_inside:
        return _RETURNS_INSIDE
    is_walking = math.hypot(*_speed(guest.recent, guest.last.box, aspect)) >= _WALKS
    return _RETURNS_WALKED if is_walking else _RETURNS_LINGERING


def _speed(way: Sequence[Step], box: Box, aspect: float) -> Point:
    """Sides of the face a second."""
    (vx, vy), side = _velocity(way), _side(box, aspect)
    return vx * aspect / side, vy / side


def _velocity(way: Sequence[Step]) -> Point:
    """Fractions of the picture a second."""
    if len(way) < 2 or way[-1].seconds <= way[0].seconds:
        return 0.0, 0.0
    passed = way[-1].seconds - way[0].seconds
    return (way[-1].x - way[0].x) / passed, (way[-1].y - way[0].y) / passed


def _arrival_rate(
    arrivals: Sequence[Arrival], newcomer: Guest, reach: float, aspect: float
) -> float:
    """How many new people come within reach of the newcomer's place, and as that one, in a second.

    Those who came there lately, and one more at the rate at which they come anywhere.
    """
    now, at_edge = newcomer.first_s, came_at_edge(newcomer, aspect)
    lately = [one for one in arrivals if now - ARRIVALS_S <= one.seconds < now]
    passed = now - min((one.seconds for one in lately), default=now)
    alike = [one for one in lately if one.at_edge == at_edge]
    anywhere = (len(alike) + 0.5) / (passed + _ARRIVALS_LEAST_S)
    x, y = middle_of(newcomer.first_box)
    near = sum(math.hypot((one.x - x) * aspect, one.y - y) <= reach for one in alike)
    return (near + 1) / (passed + 1 / (_SHARE_NEAR * anywhere))


def _apart(guest: Guest, place: Point, coast_s: float, aspect: float) -> float:
    """Distance of a place from the way on which a lost guest may be, in heights of the picture."""
    (x, y), (vx, vy) = middle_of(guest.last.box), _velocity(guest.recent)
    way = np.array([vx * coast_s * aspect, vy * coast_s])
    off = np.array([(place[0] - x) * aspect, place[1] - y])
    length = float(way @ way)
    share = min(1.0, max(0.0, float(off @ way) / length)) if length > 0 else 0.0
    return float(np.linalg.norm(off - share * way))


def _side(box: Box, aspect: float) -> float:
    """Side of a square with the box's area, in heights of the picture."""
    return math.sqrt((box[2] - box[0]) * aspect * (box[3] - box[1]))


def _left_at_edge(guest: Guest, aspect: float) -> bool:
    """Whether a guest was lost where people leave the picture, or on the way there."""
    return _at_edge(guest.last.box, _velocity(guest.recent), aspect)


def came_at_edge(newcomer: Guest, aspect: float) -> bool:
    """Whether a newcomer was first seen where people come into the picture, or soon after."""
    vx, vy = _velocity(newcomer.opening)
    return _at_edge(newcomer.first_box, (-vx, -vy), aspect)


def _at_edge(box: Box, velocity: Point, aspect: float) -> bool:
    """Whether a face is at the rim of the picture or will be in a moment."""
    reach = _EDGE * _side(box, aspect)
    x, y = middle_of(box)
    places = ((x, y), (x + _MOMENT_S * velocity[0], y + _MOMENT_S * velocity[1]))
    return any(min(u * aspect, (1 - u) * aspect, v, 1 - v) <= reach for u, v in places)


__all__ = ["ARRIVALS_S", "Arrival", "came_at_edge", "likeness_odds", "return_odds"]
