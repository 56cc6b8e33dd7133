"""Hours are those of the site's clocks, also when these are changed."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import pytest

from agelens.analytics.hours import (
    by_hour_of_day,
    by_weekday_and_hour,
    day_quarters,
    day_start,
    local_day,
    site_zone,
)
from agelens.errors import ArgumentError

SPRING, AUTUMN = (
    date(2026, 3, 29),
    date(2026, 10, 25),
)  # Europe/Berlin: 02:00 -> 03:00, 03:00 -> 02:00


@pytest.mark.parametrize(
    ("name", "day", "start", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 10), "2026-03-09T23:00", 24),
        ("Europe/Berlin", SPRING, "2026-03-28T23:00", 23),
        ("Europe/Berlin", AUTUMN, "2026-10-24T22:00", 25),
        ("America/New_York", date(2026, 11, 1), "2026-11-01T04:00", 25),
        ("Asia/Kathmandu", date(2026, 3, 10), "2026-03-09T18:15", 24),
        ("Australia/Lord_Howe", date(2026, 4, 5), "2026-04-04T13:00", 24.5),
        ("America/Santiago", date(2026, 9, 6), "2026-09-06T04:00", 23),  # midnight is skipped
    ],
)
def test_a_day_begins_at_the_sites_midnight_and_has_its_own_length(
    name: str, day: date, start: str, hours: float
) -> None:
    zone = site_zone(name)

    assert day_start(day, zone) == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert len(list(day_quarters(day, zone))) == 4 * hours
    assert {local_day(moment, zone) for moment in day_quarters(day, zone)} == {day}


def test_the_skipped_hour_is_empty_and_the_repeated_one_counts_twice() -> None:
    zone = site_zone("Europe/Berlin")
    for day, hour_two in ((SPRING, 0.0), (AUTUMN, 2.0)):
        quarters = [(moment, 1) for moment in day_quarters(day, zone)]

        hours = by_hour_of_day(quarters, day, day, zone)

        assert [hour.open_hours for hour in hours] == [1, 1, hour_two, *[1] * 21]
        assert [hour.visits for hour in hours] == [4, 4, 4 * hour_two, *[4] * 21]
        rates = [hour.visits_an_hour for hour in hours]
        assert all(rate == 4 for rate in rates if not math.isnan(rate))
        assert math.isnan(rates[2]) == (day == SPRING)


def test_opening_at_ten_stays_at_ten_over_a_change_of_the_clocks() -> None:
    zone = site_zone("Europe/Berlin")
    first, last = SPRING - timedelta(days=7), SPRING + timedelta(days=7)
    opened = [
        (datetime(day.year, day.month, day.day, 10, tzinfo=zone).astimezone(UTC), 3)
        for day in (first + timedelta(days=n) for n in range(15))
    ]

    hours = by_hour_of_day(opened, first, last, zone)

    assert [hour.visits for hour in hours] == [0] * 10 + [45] + [0] * 13


def test_quarters_outside_of_the_period_are_left_out() -> None:
    zone = site_zone("Europe/Berlin")
    day = date(2026, 3, 10)
    start = day_start(day, zone)
    quarters = [
        (start - timedelta(minutes=15), 5),
        (start, 7),
        (start + timedelta(hours=24), 9),
    ]

    assert sum(hour.visits for hour in by_hour_of_day(quarters, day, day, zone)) == 7


def test_weekdays_are_those_of_the_site() -> None:
    zone = site_zone("Pacific/Auckland")
    monday = date(2026, 3, 9)
    late_sunday_utc = datetime(2026, 3, 8, 20, tzinfo=UTC)  # Monday, 09:00 in Auckland

    table = by_weekday_and_hour([(late_sunday_utc, 4)], monday, monday, zone)

    assert table[0][9].visits == 4
    assert sum(hour.open_hours for row in table for hour in row) == 24


def test_an_unknown_zone_and_a_reversed_period_are_refused() -> None:
    with pytest.raises(ArgumentError, match="Mars/Base"):
        site_zone("Mars/Base")
    with pytest.raises(ArgumentError, match="before it begins"):
        by_hour_of_day([], AUTUMN, SPRING, site_zone("UTC"))
