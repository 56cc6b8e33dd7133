"""
Periods of whole days, and what the clocks of a site show at a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from agelens.analytics.hours import day_start
from agelens.analytics.records import DAY_MS, HOUR_MS, QUARTER_MS, milliseconds, moment_of
from agelens.errors import ArgumentError

PeriodName = Literal["day", "week", "month"]
Whole = NDArray[np.int64]

WEEKDAYS: Final = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"
)  # fmt: skip
MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


@dataclass(frozen=True)
class Period:
    """Whole days of the site's calendar.

    Attributes:
        first: First day.
        last: Last day; the same for one day.
        zone: Time zone of the site; where several sites have other ones, each has these days in
            its own.
    """

    first: date
    last: date
    zone: ZoneInfo

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise ArgumentError(f"the period ends ({self.last}) before it begins ({self.first})")

    @classmethod
    def containing(cls, name: PeriodName, day: date, zone: ZoneInfo) -> Period:
        """The day, the week from Monday, or the month of the calendar that a day lies in.

        Raises:
            ArgumentError: It is another name.
        """
        if name == "day":
            return cls(day, day, zone)
        if name == "week":
            monday = day - timedelta(days=day.weekday())
            return cls(monday, monday + timedelta(days=6), zone)
        if name == "month":
            first = day.replace(day=1)
            return cls(first, (first + timedelta(days=31)).replace(day=1) - _DAY, zone)
        raise ArgumentError(f"a period is a day, a week or a month, got {name!r}")

    @property
    def days(self) -> int:
        """How many."""
        return (self.last - self.first).days + 1

    @property
    def start(self) -> datetime:
        """First moment, in UTC."""
        return day_start(self.first, self.zone)

    @property
    def end(self) -> datetime:
        """First moment after it, in UTC."""
        return day_start(self.last + _DAY, self.zone)

    def earlier(self, days: int) -> Period:
        """As long, so many days before."""
        shift = timedelta(days=days)
        return Period(self.first - shift, self.last - shift, self.zone)

    @property
    def words(self) -> str:
        """As "Monday 9 March 2026", "9 to 15 March 2026" or "March 2026".

        >>> Period(date(2026, 3, 30), date(2026, 4, 5), ZoneInfo("Europe/Berlin")).words
        '30 March to 5 April 2026'
        """
        first, last = self.first, self.last
        if self == Period.containing("month", first, self.zone):
            return f"{MONTHS[first.month - 1]} {first.year}"
        end = f"{last.day} {MONTHS[last.month - 1]} {last.year}"
        if first == last:
            return f"{WEEKDAYS[first.weekday()]} {end}"
        start = str(first.day)
        if (first.year, first.month) != (last.year, last.month):
            start += f" {MONTHS[first.month - 1]}"
        if first.year != last.year:
            start += f" {first.year}"
        return f"{start} to {end}"


_DAY: Final = timedelta(days=1)


class SiteClock:
    """What the clocks of one time zone show; remembers the offsets that it was asked for."""

    def __init__(self, zone: ZoneInfo) -> None:
        """The clocks of a zone."""
        self.zone = zone
        self._offsets: dict[int, Whole] = {}

    def shown(self, moments_ms: Whole) -> tuple[Whole, Whole]:
        """Day and hour at moments.

        Args:
            moments_ms: (N,) milliseconds since 1970 in UTC.

        Returns:
            (N,) the day, as of ``date.toordinal``; (N,) the hour, 0..23.
        """
        days, quarters = np.divmod(moments_ms // QUARTER_MS, _DAY_QUARTERS)
        asked, places = np.unique(days, return_inverse=True)
        offsets = [self._offsets_of(int(day)) for day in asked]
        local = moments_ms + (np.array(offsets)[places, quarters] if offsets else 0)
        shown, rest = np.divmod(local, DAY_MS)
        return shown + _EPOCH_DAY, rest // HOUR_MS

    def _offsets_of(self, day: int) -> Whole:
        """(96,) milliseconds that the clocks are ahead in each quarter of an hour of a UTC day."""
        if day not in self._offsets:
            first = day * _DAY_QUARTERS
            found = [self._offset(first), self._offset(first + _DAY_QUARTERS)]
            # Clocks are never put forward and back on one day.
            if found[0] != found[1]:
                found = [self._offset(first + number) for number in range(_DAY_QUARTERS)]
            self._offsets[day] = np.resize(np.array(found, np.int64), _DAY_QUARTERS)
        return self._offsets[day]

    def _offset(self, quarter: int) -> int:
        ahead = moment_of(quarter * QUARTER_MS).astimezone(self.zone).utcoffset()
        return (ahead or timedelta()) // timedelta(milliseconds=1)

    def quarters(self, first: date, last: date) -> Whole:
        """(N,) starts of all quarters of an hour of whole days, milliseconds since 1970 in UTC."""
        start, end = (day_start(day, self.zone) for day in (first, last + _DAY))
        return np.arange(milliseconds(start), milliseconds(end), QUARTER_MS, dtype=np.int64)


_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_DAY_QUARTERS: Final = DAY_MS // QUARTER_MS
