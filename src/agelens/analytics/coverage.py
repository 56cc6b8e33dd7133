"""
When cameras watched, and when one that usually does did not.

A camera is expected in an hour of a weekday in which it watched at least half of the times since it
was first seen, within the period, the one before and four weeks before that; of a weekday that came
only once, the hour of all days decides. So the nights of a shop are no gap, and a power cut is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agelens.analytics.hours import HOURS
from agelens.analytics.period import SiteClock, Whole
from agelens.analytics.presence import Place, Premises
from agelens.analytics.records import QUARTER_MS, milliseconds, moment_of

LOOK_BACK_DAYS: Final = 28
_QUARTER_S: Final = QUARTER_MS // 1000
_HOUR_S: Final = 3600

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Gap:
    """A time without a camera that usually watches then; both ends are in UTC."""

    site: str
    camera: str
    start: datetime
    end: datetime
    hours: float


@dataclass(frozen=True, eq=False)
class Watching:
    """When one camera watched; all arrays are (Q,), by quarters of an hour.

    Attributes:
        place: Site and camera.
        moment_ms: Start of the quarter, milliseconds since 1970 in UTC.
        day: By the site's calendar, as of ``date.toordinal``.
        hour: 0..23, by the site's clocks.
        watched_h: Hours watched, 0..0.25; the whole quarter where nothing is known.
        missing_h: Hours not watched of those in which the camera usually does.
        is_known: The store knows when this camera watched.
    """

    place: Place
    moment_ms: Whole
    day: Whole
    hour: Whole
    watched_h: Floats
    missing_h: Floats
    is_known: bool

    def on(self, first: date, last: date) -> Mask:
        """(Q,) which quarters lie in the days."""
        return (self.day >= first.toordinal()) & (self.day <= last.toordinal())


def read_watching(found: Premises, first: date, last: date, now: datetime) -> tuple[Watching, ...]:
    """When each camera watched on whole days of its site, up to now.

    Args:
        found: The cameras.
        first: First day.
        last: Last day.
        now: Quarters that begin later are left out.
    """
    before = first - timedelta(days=LOOK_BACK_DAYS)
    made: dict[Place, Watching] = {}
    for clock, sites in found.groups():
        moments = clock.quarters(before, last)
        moments = moments[moments < milliseconds(now)]
        day, hour = clock.shown(moments)
        seconds = {place: np.zeros(len(moments)) for place in found.places if place[0] in sites}
        known = set()
        scope = found.scope(clock, sites, before, last)
        rows = found.store.watched_quarters(scope)
        for place, held in groupby(rows, key=itemgetter(0, 1)):
            if place in seconds and len(moments):
                starts, watched_s = zip(*(row[2:] for row in held), strict=True)
                at = np.array([milliseconds(one) for one in starts], np.int64) - moments[0]
                at //= QUARTER_MS
                inside = (at >= 0) & (at < len(moments))
                seconds[place][at[inside]] = np.minimum(watched_s, _QUARTER_S)[inside]
                if inside.any():
                    known.add(place)
        deleted = found.deleted_before(clock)
        since = 0 if deleted is None else deleted.toordinal()
        for place, watched_s in seconds.items():
            made[place] = _watching(
                place, moments, day, hour, watched_s, since, place in known, first
            )
    return tuple(made[place] for place in found.places)


def _watching(
    place: Place,
    moments: Whole,
    day: Whole,
    hour: Whole,
    watched_s: Floats,
    since: int,
    is_known: bool,
    first: date,
) -> Watching:
    told = (day >= since) if is_known else np.zeros(len(day), np.bool_)
    watched = np.where(told, watched_s, _QUARTER_S)
    expected = _expected(day, hour, watched_s, told)
    missing = np.where(expected & told, _QUARTER_S - watched, 0)
    asked = day >= first.toordinal()
    return Watching(
        place, moments[asked], day[asked], hour[asked],
        watched[asked] / _HOUR_S, missing[asked] / _HOUR_S, is_known,
    )  # fmt: skip


def _expected(day: Whole, hour: Whole, watched_s: Floats, told: Mask) -> Mask:
    """(Q,) whether the camera usually watches at such an hour of such a weekday."""
    seen = told & (2 * watched_s >= _QUARTER_S)
    if not seen.any():
        return np.zeros(len(day), np.bool_)
    counted = told & (np.arange(len(day)) >= int(seen.argmax()))
    weekday = (day + 6) % 7  # the first of January of the year 1 was a Monday
    times, watched = np.zeros((7, HOURS)), np.zeros((7, HOURS))
    np.add.at(times, (weekday[counted], hour[counted]), 0.25)
    np.add.at(watched, (weekday[counted & seen], hour[counted & seen]), 0.25)
    rare = times < 2
    usual = np.where(
        rare,
        2 * watched.sum(axis=0) >= np.maximum(times.sum(axis=0), 1),
        2 * watched >= times,
    )
    return np.asarray(counted & usual[weekday, hour])


def gaps(watching: Sequence[Watching], first: date, last: date) -> tuple[Gap, ...]:
    """Times of a quarter of an hour or more without a camera, longest first."""
    found = [gap for one in watching for gap in _gaps_of(one, first, last)]
    return tuple(sorted(found, key=lambda gap: (-gap.hours, gap.start, gap.site, gap.camera)))


def _gaps_of(one: Watching, first: date, last: date) -> Iterator[Gap]:
    missing = one.on(first, last) & (one.missing_h > _QUARTER_S / _HOUR_S / 2)
    edges = np.diff(np.concatenate([[False], missing, [False]]).astype(np.int8))
    for start, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        begin = moment_of(int(one.moment_ms[start]))
        after = moment_of(int(one.moment_ms[end - 1]) + QUARTER_MS)
        yield Gap(*one.place, begin, after, float(one.missing_h[start:end].sum()))


def local_words(moment: datetime, clock: SiteClock) -> str:
    """A moment as the site's clocks show it, as "2026-03-29 14:15"."""
    return f"{moment.astimezone(clock.zone):%Y-%m-%d %H:%M}"
