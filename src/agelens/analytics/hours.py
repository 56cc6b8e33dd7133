"""
Hours and days as the site's clocks show them, right on the days when these are put on or back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agelens.errors import ArgumentError

HOURS: Final = 24


def site_zone(name: str) -> ZoneInfo:
    """A time zone by its name, as "Europe/Berlin".

    Raises:
        ArgumentError: There is no such zone, or this computer has no zones at all.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ArgumentError(
            f"no time zone {name!r}; expected a name as 'Europe/Berlin' (the package tzdata, of "
            "the extra 'visitors', has them all)"
        ) from error


def local_day(moment: datetime, zone: ZoneInfo) -> date:
    """The day that the site's calendar shows."""
    return moment.astimezone(zone).date()


def day_start(day: date, zone: ZoneInfo) -> datetime:
    """First moment of a day of the site, in UTC; where midnight is skipped, the first after it."""
    start = datetime.combine(day, time(0), zone).astimezone(UTC)
    while local_day(start, zone) < day:  # the clocks were put on at midnight
        start += timedelta(minutes=15)
    return start


def day_quarters(day: date, zone: ZoneInfo) -> Iterator[datetime]:
    """Starts (UTC) of the quarters of an hour of one day of the site: 96, or 92, or 100."""
    moment, end = day_start(day, zone), day_start(day + timedelta(days=1), zone)
    while moment < end:
        yield moment
        moment += timedelta(minutes=15)


@dataclass(frozen=True)
class HourOfDay:
    """One hour of the clock over a period.

    Attributes:
        hour: 0..23, as the site's clocks show it.
        visits: Visits that began in it, on all days.
        open_hours: How long the clocks showed this hour in the period: one for each day, none on a
            day that skips it, two on a day that repeats it.
    """

    hour: int
    visits: int
    open_hours: float

    @property
    def visits_an_hour(self) -> float:
        """Visits in an hour of this name; NaN when the period has none."""
        return self.visits / self.open_hours if self.open_hours else float("nan")


def by_hour_of_day(
    quarters: Iterable[tuple[datetime, int]], first: date, last: date, zone: ZoneInfo
) -> tuple[HourOfDay, ...]:
    """Visits by the hour of the site's clocks.

    Args:
        quarters: Start of a quarter of an hour, and visits that began in it; those outside of the
            period are left out.
        first: First day of the period, by the site's calendar.
        last: Last day of it.
        zone: Time zone of the site.

    Returns:
        24 of them.
    """
    table = by_weekday_and_hour(quarters, first, last, zone)
    return tuple(
        HourOfDay(
            hour,
            sum(row[hour].visits for row in table),
            sum(row[hour].open_hours for row in table),
        )
        for hour in range(HOURS)
    )


def by_weekday_and_hour(
    quarters: Iterable[tuple[datetime, int]], first: date, last: date, zone: ZoneInfo
) -> tuple[tuple[HourOfDay, ...], ...]:
    """Visits by weekday (Monday first) and hour of the site's clocks; see ``by_hour_of_day``."""
    if last < first:
        raise ArgumentError(f"the period ends ({last}) before it begins ({first})")
    begin, end = day_start(first, zone), day_start(last + timedelta(days=1), zone)
    visits = [[0] * HOURS for _ in range(7)]
    for moment, count in quarters:
        if begin <= moment < end:
            local = moment.astimezone(zone)
            visits[local.weekday()][local.hour] += count
    shown = [[0.0] * HOURS for _ in range(7)]
    day = first
    while day <= last:
        for moment in day_quarters(day, zone):
            shown[day.weekday()][moment.astimezone(zone).hour] += 0.25
        day += timedelta(days=1)
    return tuple(
        tuple(HourOfDay(hour, visits[row][hour], shown[row][hour]) for hour in range(HOURS))
        for row in range(7)
    )
