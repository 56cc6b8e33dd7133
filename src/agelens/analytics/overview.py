"""
All that is told of the visitors of a period: counts, profile, stays, lines, coverage, alarms.

Nothing in an ``Overview`` is a true count. Every count is made of lots (``lots``), so that whatever
is added up or subtracted, over hours, days, cameras, zones or pages, a small number stays unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np

from agelens.analytics.coverage import Gap, Watching, gaps, read_watching
from agelens.analytics.drift import drift_alarms
from agelens.analytics.hours import HOURS, day_quarters
from agelens.analytics.lots import Count, Whole
from agelens.analytics.period import MONTHS, WEEKDAYS, Period, SiteClock
from agelens.analytics.presence import (
    Mask,
    Place,
    Premises,
    Presence,
    Selection,
    premises,
    read_presence,
    stretches,
    zone_total,
)
from agelens.analytics.profile import (
    Confusions,
    Profile,
    find_confusion,
    no_profile,
    read_profile,
)
from agelens.analytics.records import Scope
from agelens.analytics.store import Store
from agelens.analytics.suppression import DEFAULT_MINIMUM
from agelens.evaluation.bootstrap import Estimate
from agelens.identifiers import utc_now
from agelens.video.health import HealthSample

SCHEMA: Final = "agelens.visitors/1"
_LONGEST_COMPARED_BY_WEEK: Final = 6


@dataclass(frozen=True)
class Comparison:
    """The same part of an earlier period.

    Attributes:
        period: The earlier one.
        now: Visitors of the period, as far as it is over.
        before: Visitors of the same part of the earlier one; None too where no camera watched.
        change: Relative change, as 0.08 for 8 % more; None when either is unknown.
        watched_share: Hours watched then for each hour watched now; NaN without.
    """

    period: Period
    now: Count
    before: Count
    change: float | None
    watched_share: float


@dataclass(frozen=True)
class HourCount:
    """One hour of the clock, over all days of the period.

    Attributes:
        hour: 0..23, as the site's clocks show it.
        visitors: Who came in it.
        before: The same of the previous period.
        open_hours: How long the clocks showed it, summed over sites: none on a day that skips it.
        watched_hours: How much of that some camera of the site watched.
    """

    hour: int
    visitors: Count
    before: Count
    open_hours: float
    watched_hours: float


@dataclass(frozen=True)
class DayCount:
    """One day.

    Attributes:
        day: By the calendar.
        visitors: Who came.
        before: Who came on the same day of the previous period.
        watched_hours: Hours watched, summed over cameras.
        missing_hours: Hours without a camera that usually watches, summed over cameras.
    """

    day: date
    visitors: Count
    before: Count
    watched_hours: float
    missing_hours: float


@dataclass(frozen=True)
class HeatCell:
    """One hour of the clock on one weekday.

    Attributes:
        visitors: Who came, on all days of the period together.
        open_hours: How long the clocks showed it, summed over sites.
        watched_hours: How much of that some camera of the site watched.
    """

    visitors: Count
    open_hours: float
    watched_hours: float

    @property
    def visitors_an_hour(self) -> float | None:
        """Visitors in one watched hour of this name; None when hidden or never watched."""
        if self.visitors is None or self.watched_hours <= 0:
            return None
        return self.visitors / self.watched_hours


@dataclass(frozen=True)
class Stay:
    """How long visitors stayed in view and looked; None where too few.

    Attributes:
        seconds: Mean time in view.
        attentive_seconds: Mean time with the face turned to the screen.
        attentive_share: Of the time in view.
    """

    seconds: float | None
    attentive_seconds: float | None
    attentive_share: float | None


@dataclass(frozen=True)
class ZoneCount:
    """Visitors of one zone of one camera, and their mean stay in it."""

    site: str
    camera: str
    zone: str
    visitors: Count
    seconds: float | None


@dataclass(frozen=True)
class LineCount:
    """Crossings of one line of one camera."""

    site: str
    camera: str
    line: str
    entered: Count
    left: Count


@dataclass(frozen=True)
class CameraPart:
    """What one camera contributes, and how it was.

    Attributes:
        site: Name of its site.
        camera: Its name.
        visitors: Who came before it.
        before: In the previous period.
        stay: How long they stayed.
        watched_hours: Hours watched.
        missing_hours: Hours in which it usually watches and did not.
        usable_share: Share of the faces that allowed an estimate; None without faces.
        quality: Mean usability of the faces, 0..1; None without faces.
        dropped_share: Share of the frames left out for want of time; None without frames.
        reconnects: How often its source was opened anew.
        down_hours: Hours in which the source gave nothing.
    """

    site: str
    camera: str
    visitors: Count
    before: Count
    stay: Stay
    watched_hours: float
    missing_hours: float
    usable_share: float | None
    quality: float | None
    dropped_share: float | None
    reconnects: int
    down_hours: float


@dataclass(frozen=True)
class SitePart:
    """One site of several: its names, a note, and its visitors."""

    site: str
    title: str
    note: str
    zone: str
    visitors: Count
    before: Count


@dataclass(frozen=True)
class Alarm:
    """A camera that sees otherwise than it used to; ``words`` is a sentence."""

    site: str
    camera: str
    kind: str
    at: datetime
    words: str


@dataclass(frozen=True)
class Overview:
    """Everything that a page or a report shows of a period.

    Attributes:
        period: What was asked for.
        selection: Of the store.
        made_at: When, in UTC.
        until: First moment that is not in it: the period's end, or the present when it is not over.
        minimum: Lot that all counts are made of.
        visitors: Who came; a person is counted at each camera.
        previous: Against the period of the same length right before.
        week_before: Against the same days a week earlier; None where that is ``previous``, or the
            period is longer than a week.
        sites: One each, in order of their names.
        cameras: One each, by site and name.
        hours: 24, from midnight.
        days: One each.
        heat: 7 rows from Monday, 24 hours each.
        profile: Age and gender.
        stay: How long visitors stayed and looked.
        zones: By site, camera and name.
        lines: By site, camera and name.
        expected_hours: Hours in which cameras usually watch, summed over cameras.
        watched_hours: Hours that they watched, summed over cameras.
        gaps: Times without a camera, longest first.
        alarms: Of cameras that see otherwise than they used to.
        notes: What a reader has to know, a sentence or two each.
    """

    period: Period
    selection: Selection
    made_at: datetime
    until: datetime
    minimum: int
    visitors: Count
    previous: Comparison
    week_before: Comparison | None
    sites: tuple[SitePart, ...]
    cameras: tuple[CameraPart, ...]
    hours: tuple[HourCount, ...]
    days: tuple[DayCount, ...]
    heat: tuple[tuple[HeatCell, ...], ...]
    profile: Profile
    stay: Stay
    zones: tuple[ZoneCount, ...]
    lines: tuple[LineCount, ...]
    expected_hours: float
    watched_hours: float
    gaps: tuple[Gap, ...]
    alarms: tuple[Alarm, ...]
    notes: tuple[str, ...]

    @property
    def is_running(self) -> bool:
        """The period is not over yet."""
        return self.until < self.period.end

    def to_dict(self) -> dict[str, Any]:
        """Wire form; times are ISO 8601 in UTC, what is hidden or not known is None."""
        return {"schema": SCHEMA, **_wire(self), "is_running": self.is_running}


def overview(
    store: Store,
    period: Period,
    *,
    selection: Selection | None = None,
    minimum: int = DEFAULT_MINIMUM,
    now: datetime | None = None,
    confusions: Confusions = find_confusion,
) -> Overview:
    """Everything that may be told of the visitors of a period; staff are left out.

    Args:
        store: Where the visits are.
        period: Whole days; a period that is not over counts up to now.
        selection: Sites, cameras, a zone; None takes all.
        minimum: Fewest visitors that are shown; 1 shows true counts.
        now: The present; None asks the clock.
        confusions: Where the confusion of a model is found.

    Raises:
        ArgumentError: The store knows no such site or camera, or the minimum is under 1.
        StoreError: It cannot be read.
    """
    moment = now or utc_now()
    found = premises(store, selection or Selection(), SiteClock(period.zone), minimum)
    previous = period.earlier(period.days)
    last_week = period.earlier(7) if period.days <= _LONGEST_COMPARED_BY_WEEK else None
    start = min(previous.first, previous.first if last_week is None else last_week.first)
    visits = read_presence(found, start, period.last)
    watching = read_watching(found, start, period.last, moment)
    view = _View(found, period, previous, moment, visits, watching)
    missing = gaps(watching, period.first, period.last)
    profile = _profile_of(found, period, confusions)
    return Overview(
        period=period,
        selection=found.selection,
        made_at=moment,
        until=min(moment, period.end),
        minimum=minimum,
        visitors=view.shown(view.now),
        previous=view.compared(previous),
        week_before=None if last_week is None else view.compared(last_week),
        sites=view.sites(),
        cameras=view.cameras(),
        hours=view.hours(),
        days=view.days(),
        heat=view.heat(),
        profile=profile,
        stay=view.stay(view.now),
        zones=_zones(found, period),
        lines=_lines(found, period),
        expected_hours=sum(view.watched(one) + view.missing(one) for one in watching),
        watched_hours=sum(view.watched(one) for one in watching),
        gaps=missing,
        alarms=_alarms(found, period, moment),
        notes=tuple(_notes(view, profile, missing)),
    )


class _View:
    """The arrays of an overview, and what is summed from them."""

    def __init__(
        self,
        found: Premises,
        period: Period,
        previous: Period,
        moment: datetime,
        visits: Presence,
        watching: Sequence[Watching],
    ) -> None:
        self.found = found
        self.period = period
        self.previous = previous
        self.moment = moment
        self.visits = visits
        self.watching = watching
        self.now = visits.on(period.first, period.last)
        self.before = visits.on(previous.first, previous.last)

    def shown(self, mask: Mask) -> Count:
        return self.found.lots.shown(self.visits.summed(mask))

    # --- comparisons ------------------------------------------------------------------------------

    def compared(self, earlier: Period) -> Comparison:
        """The hours of the period that are over, against the same hours of an earlier one."""
        days = (self.period.first - earlier.first).days
        visits = self.visits
        over = self._hours_over(visits.place, visits.day, visits.hour)
        over_then = self._hours_over(visits.place, visits.day + days, visits.hour)
        now = self.shown(self.now & over)
        then = visits.on(earlier.first, earlier.last) & over_then
        watched, watched_then = 0.0, 0.0
        for place, one in enumerate(self.watching):
            where = np.full(len(one.day), place)
            mask = one.on(self.period.first, self.period.last)
            watched += _sum(one.watched_h, mask & self._hours_over(where, one.day, one.hour))
            mask = one.on(earlier.first, earlier.last)
            over_then = self._hours_over(where, one.day + days, one.hour)
            watched_then += _sum(one.watched_h, mask & over_then)
        before = self.shown(then)
        change = None if now is None or not before else round(now / before - 1, 4)
        share = watched_then / watched if watched else math.nan
        return Comparison(earlier, now, before, change, share)

    def _hours_over(self, place: Whole, day: Whole, hour: Whole) -> Mask:
        """Which hours of the clock are over at their places."""
        ends = [self._end_of(clock) for clock, _ in self.found.groups()]
        if all(self.moment >= end for end in ends):
            return np.ones(len(day), np.bool_)
        shown = [
            self.moment.astimezone(self.found.clocks[site].zone) for site, _ in self.found.places
        ]
        limit = np.array([HOURS * at.date().toordinal() + at.hour for at in shown], np.int64)
        return np.asarray(HOURS * day + hour < limit[place])

    def _end_of(self, clock: SiteClock) -> datetime:
        return Period(self.period.first, self.period.last, clock.zone).end

    # --- sums -------------------------------------------------------------------------------------

    def hours(self) -> tuple[HourCount, ...]:
        now = self._by(self.now, self.visits.hour, HOURS)
        before = self._by(self.before, self.visits.hour, HOURS)
        heat = self._watched_by_weekday_and_hour()
        opened, watched = (table.sum(axis=0) for table in heat)
        return tuple(
            HourCount(hour, now[hour], before[hour], float(opened[hour]), float(watched[hour]))
            for hour in range(HOURS)
        )

    def days(self) -> tuple[DayCount, ...]:
        first, count = self.period.first.toordinal(), self.period.days
        now = self._by(self.now, self.visits.day - first, count)
        before = self._by(self.before, self.visits.day - self.previous.first.toordinal(), count)
        watched, missing = np.zeros(count), np.zeros(count)
        for one in self.watching:
            mask = one.on(self.period.first, self.period.last)
            np.add.at(watched, one.day[mask] - first, one.watched_h[mask])
            np.add.at(missing, one.day[mask] - first, one.missing_h[mask])
        return tuple(
            DayCount(
                date.fromordinal(first + number), now[number], before[number],
                float(watched[number]), float(missing[number]),
            )
            for number in range(count)
        )  # fmt: skip

    def heat(self) -> tuple[tuple[HeatCell, ...], ...]:
        weekday = (self.visits.day + 6) % 7
        counts = self._by(self.now, HOURS * weekday + self.visits.hour, 7 * HOURS)
        opened, watched = self._watched_by_weekday_and_hour()
        return tuple(
            tuple(
                HeatCell(
                    counts[HOURS * row + hour], float(opened[row, hour]), float(watched[row, hour])
                )
                for hour in range(HOURS)
            )
            for row in range(7)
        )

    def _by(self, mask: Mask, key: Whole, size: int) -> list[Count]:
        sums = np.zeros(size, np.int64)
        np.add.at(sums, key[mask], self.visits.lots[mask])
        return [self.found.lots.shown(int(count)) for count in sums]

    def _watched_by_weekday_and_hour(self) -> tuple[Any, Any]:
        """(7, 24) hours that the clocks showed, and those with a camera; summed over sites."""
        opened, watched = np.zeros((7, HOURS)), np.zeros((7, HOURS))
        for site in self.found.clocks:
            held = [one for one in self.watching if one.place[0] == site]
            first = held[0]
            best = np.max([one.watched_h for one in held], axis=0)
            mask = first.on(self.period.first, self.period.last)
            where = (first.day[mask] + 6) % 7, first.hour[mask]
            np.add.at(opened, where, 0.25)
            np.add.at(watched, where, best[mask])
        return opened, watched

    def watched(self, one: Watching) -> float:
        return _sum(one.watched_h, one.on(self.period.first, self.period.last))

    def missing(self, one: Watching) -> float:
        return _sum(one.missing_h, one.on(self.period.first, self.period.last))

    def stay(self, mask: Mask) -> Stay:
        """Means over visitors; hidden unless at least as many as the minimum stand behind them."""
        lots, totals = self.visits.summed(mask), len(np.unique(self.visits.total[mask]))
        count = int(self.visits.visits[mask].sum())
        if count == 0 or lots < self.found.lots.surely(totals):
            return Stay(None, None, None)
        seen = float(self.visits.seen_s[mask].sum())
        attentive = float(self.visits.attentive_s[mask].sum())
        if self.found.selection.zone is not None:
            return Stay(_rounded(seen / count), None, None)
        share = round(attentive / seen, 2) if seen else None
        return Stay(_rounded(seen / count), _rounded(attentive / count), share)

    # --- parts ------------------------------------------------------------------------------------

    def sites(self) -> tuple[SitePart, ...]:
        told = {site.name: site for site in self.found.store.sites()}
        parts = []
        for name, clock in self.found.clocks.items():
            numbers = [n for n, (site, _) in enumerate(self.found.places) if site == name]
            here = np.isin(self.visits.place, numbers)
            site = told.get(name)
            parts.append(
                SitePart(
                    name,
                    (site.title if site else "") or name,
                    site.note if site else "",
                    clock.zone.key,
                    self.shown(self.now & here),
                    self.shown(self.before & here),
                )
            )
        return tuple(sorted(parts, key=lambda part: part.site))

    def cameras(self) -> tuple[CameraPart, ...]:
        health: dict[Place, HealthSample] = {}
        for clock, sites in self.found.groups():
            scope = self.found.scope(clock, sites, self.period.first, self.period.last)
            health |= self.found.store.health_by_camera(scope)
        return tuple(
            self._camera(number, one, health.get(one.place))
            for number, one in enumerate(self.watching)
        )

    def _camera(self, number: int, one: Watching, health: HealthSample | None) -> CameraPart:
        here = self.visits.place == number
        visitors = self.visits.summed(self.now & here)
        # Faces are of visitors: what is told of them needs as many as any mean.
        told = visitors >= self.found.lots.surely(len(np.unique(self.visits.total[here])))
        faces = health if told else None
        return CameraPart(
            *one.place,
            visitors=self.found.lots.shown(visitors),
            before=self.shown(self.before & here),
            stay=self.stay(self.now & here),
            watched_hours=self.watched(one),
            missing_hours=self.missing(one),
            usable_share=_known(faces.usable_share) if faces else None,
            quality=_known(faces.quality) if faces else None,
            dropped_share=health.dropped / health.frames_in
            if health and health.frames_in
            else None,
            reconnects=health.reconnects if health else 0,
            down_hours=health.down_s / 3600 if health else 0.0,
        )


def _sum(values: Any, mask: Mask) -> float:
    return float(values[mask].sum())


def _rounded(seconds: float) -> float:
    return round(seconds, 1) if seconds < 10 else float(round(seconds))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


# --- profile, zones, lines, alarms ----------------------------------------------------------------


def _profile_of(found: Premises, period: Period, confusions: Confusions) -> Profile:
    if found.selection.zone is not None:
        return no_profile("Age and gender are counted by camera, not by zone.")
    return read_profile(found, period, confusions)


def _zones(found: Premises, period: Period) -> tuple[ZoneCount, ...]:
    """Visitors and mean stay of each zone."""

    def read(scope: Scope) -> dict[tuple[str, ...], Whole]:
        return {
            (site, camera, zone): np.array([visits, round(1000 * seconds)], np.int64)
            for site, camera, zone, visits, seconds in found.store.zones(scope)
        }

    kept: dict[date, dict[tuple[str, ...], Whole]] = {}
    if found.is_deleted(period.first):
        for one in found.store.kept_zones():
            both = np.array([one.visits or 0, round(1000 * (one.seconds or 0))], np.int64)
            kept.setdefault(one.day, {})[one.site, one.camera, one.zone] = both
    sums: dict[tuple[str, ...], Whole] = {}  # lots, running totals, visits, milliseconds
    for part in stretches(found, period.first, period.last, read, kept):
        name = zone_total(part.key[:2], part.key[2], part.block)
        lots = found.lots.between(int(part.before[0]), int(part.after[0]), *name)
        held = np.array([lots, 1, *(part.after - part.before)], np.int64)
        sums[part.key] = sums.get(part.key, np.zeros(4, np.int64)) + held
    return tuple(
        ZoneCount(site, camera, zone, found.lots.shown(int(held[0])), _mean_stay(held, found))
        for (site, camera, zone), held in sorted(sums.items())
        if found.selection.zone in (None, zone)
    )


def _mean_stay(held: Whole, found: Premises) -> float | None:
    lots, totals, visits, stay_ms = (int(value) for value in held)
    if visits == 0 or lots < found.lots.surely(totals):
        return None
    return _rounded(stay_ms / 1000 / visits)


def _lines(found: Premises, period: Period) -> tuple[LineCount, ...]:
    """Crossings of each line, by direction."""

    def read(scope: Scope) -> dict[tuple[str, ...], Whole]:
        return {
            tuple(key): np.array([crossings], np.int64)
            for *key, crossings in found.store.lines(scope)
        }

    kept: dict[date, dict[tuple[str, ...], Whole]] = {}
    if found.selection.zone is not None:
        return ()
    if found.is_deleted(period.first):
        for one in found.store.kept_lines():
            key = one.site, one.camera, one.line, one.direction
            kept.setdefault(one.day, {})[key] = np.array([one.crossings or 0], np.int64)
    lots: dict[tuple[str, ...], int] = {}
    for part in stretches(found, period.first, period.last, read, kept):
        name = ("line", *part.key, part.block.name)
        more = found.lots.between(int(part.before[0]), int(part.after[0]), *name)
        lots[part.key] = lots.get(part.key, 0) + more
    shown = found.lots.shown
    return tuple(
        LineCount(
            *(site, camera, line),
            entered=shown(lots.get((site, camera, line, "in"), 0)),
            left=shown(lots.get((site, camera, line, "out"), 0)),
        )
        for site, camera, line in sorted({(key[0], key[1], key[2]) for key in lots})
    )


def _alarms(found: Premises, period: Period, moment: datetime) -> tuple[Alarm, ...]:
    """Cameras that saw otherwise than on the days before, day by day of the period."""
    end = min(moment, period.end)
    if end <= period.start:
        return ()
    scope = Scope(sites=found.selection.sites, cameras=found.selection.cameras)
    alarms = drift_alarms(found.store, now=end, scope=scope, lasting=period.days)
    return tuple(
        Alarm(
            one.site,
            one.camera,
            one.measure,
            one.start,
            f"{one.camera} ({one.site}) on {one.start:%Y-%m-%d} (UTC): {one.message}",
        )
        for one in alarms
    )


# --- words ----------------------------------------------------------------------------------------


def _notes(view: _View, profile: Profile, missing: Sequence[Gap]) -> Iterator[str]:
    """What a reader has to know."""
    found, period = view.found, view.period
    if view.moment < period.end:
        yield (
            "The period is not over: figures go up to now, and comparisons take the hours that "
            "are over."
        )
    yield from _rounding_notes(found)
    if len(found.places) > 1 and found.selection.zone is None:
        yield "A person who passes several cameras is counted at each of them."
    yield from _watching_notes(view, missing)
    if view.visits.hidden_hours:
        yield (
            f"Visits of {view.visits.hidden_hours} hours of older days were deleted, and too few "
            "for their number to be kept: they are not counted here."
        )
    yield from _clock_notes(found, period)
    if profile.reason:
        yield profile.reason


def _rounding_notes(found: Premises) -> Iterator[str]:
    k = found.lots.minimum
    if k > 1:
        yield (
            f"All counts are in lots of {k}, so that nobody can be singled out: each is off by at "
            f"most {k - 1} for each camera and month in it, one way as often as the other. What "
            f"is shown as too few may be none. Counts of different kinds (hours, ages, zones, "
            f"lines) are rounded each by themselves and do not add up exactly."
        )


def _watching_notes(view: _View, missing: Sequence[Gap]) -> Iterator[str]:
    unknown = [one.place for one in view.watching if not one.is_known]
    if unknown:
        names = ", ".join(f"{camera} ({site})" for site, camera in unknown)
        yield f"It is not known when these cameras watched: {names}."
    if missing:
        hours = sum(gap.hours for gap in missing)
        yield (
            f"Cameras were missing for {hours:.1f} hours in which they usually watch; visitors of "
            "these hours are not in any figure, and nothing was made up for them."
        )


def _clock_notes(found: Premises, period: Period) -> Iterator[str]:
    for clock, _ in found.groups():
        for number in range(period.days):
            day = period.first + timedelta(days=number)
            hours = sum(1 for _ in day_quarters(day, clock.zone)) / 4
            if hours != HOURS:
                way = "put forward" if hours < HOURS else "put back"
                yield (
                    f"On {WEEKDAYS[day.weekday()]} {day.day} {MONTHS[day.month - 1]} the clocks of "
                    f"{clock.zone.key} were {way}: the day has {hours:g} hours."
                )


def _wire(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, Estimate):
        return value.to_dict()
    if is_dataclass(value):
        return {field.name: _wire(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [_wire(one) for one in value]
    if isinstance(value, ZoneInfo):
        return value.key
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value
