"""
Whether a camera sees as it used to: each day against the days before it, with few false alarms.

A lens gets dirty, a lamp fails, somebody turns the camera: the shares of the public then change for
no reason of the public's. Four measures of a day are compared with those of the days before:

    usable     share of the faces found that allowed an estimate
    quality    mean usability of the faces found
    faces      faces found in a frame (its logarithm)
    ages       how far the bands of age are from those of all days before (its logarithm)

A day raises an alarm when it lies outside of the interval that the days before predict for another
one (Student's t; Hahn and Meeker, "Statistical Intervals", 2nd ed., 4.7). The chance of that is
shared out among the four measures, so that of the days of an unchanged camera, which vary
independently about one level, no more than ``FALSE_ALARMS`` raise one. Days that follow a season or
a weekday vary more, which makes the intervals wider.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from agelens.analytics.records import DAY_MS, Scope, milliseconds, moment_of
from agelens.analytics.store import Place, Store
from agelens.errors import ArgumentError
from agelens.identifiers import utc_now
from agelens.video.health import HealthSample
from agelens.video.visit import COUNTED_BANDS

Measure = Literal["usable", "quality", "faces", "ages"]
Counts = NDArray[np.int64]
Value = TypeVar("Value")

FALSE_ALARMS: Final = 0.001
"""Share of the days of an unchanged camera that raise an alarm."""
PAST_DAYS: Final = 28
MIN_DAYS: Final = 7
"""Fewest days before that a day is compared with."""
MIN_FACES: Final = 200
MIN_VISITS: Final = 30
"""Days with less say nothing about the camera."""

_LEAST: Final[Mapping[Measure, float]] = {
    "usable": 0.01,
    "quality": 0.005,
    "faces": 0.05,
    "ages": 0.1,
}
"""Standard deviations below which days are taken for equal: smaller changes are of no interest."""
_MEASURES: Final[tuple[Measure, ...]] = get_args(Measure)


@dataclass(frozen=True)
class DriftAlarm:
    """One measure of one camera's day that the days before do not explain.

    Attributes:
        site: Name of the place.
        camera: Name of the camera.
        start: First moment of the day (UTC); it is 24 hours long.
        measure: "usable" and "quality" are 0..1, "faces" are faces in a frame, "ages" is the share
            of the visitors in other bands of age than before, 0..1.
        value: Of this day.
        expected: Middle of the days before.
        low: Least value that they explain.
        high: Greatest one.
        days: Number of days before.
    """

    site: str
    camera: str
    start: datetime
    measure: Measure
    value: float
    expected: float
    low: float
    high: float
    days: int

    @property
    def message(self) -> str:
        """The alarm in words."""
        return _WORDS[self.measure].format(
            value=self.value, expected=self.expected, low=self.low, high=self.high
        )

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "site": self.site,
            "camera": self.camera,
            "start": self.start.isoformat(),
            "measure": self.measure,
            "value": self.value,
            "expected": self.expected,
            "low": self.low,
            "high": self.high,
            "days": self.days,
            "message": self.message,
        }


_WORDS: Final[Mapping[Measure, str]] = {
    "usable": (
        "{value:.0%} of the faces allowed an estimate, {expected:.0%} before ({low:.0%} to "
        "{high:.0%}); look for a dirty lens, a lamp that failed, a camera that was turned"
    ),
    "quality": (
        "the faces were of a quality of {value:.2f}, {expected:.2f} before ({low:.2f} to "
        "{high:.2f}); look for a dirty lens, a lamp that failed, a camera that was turned"
    ),
    "faces": (
        "{value:.2g} faces in a frame, {expected:.2g} before ({low:.2g} to {high:.2g}); is the "
        "camera covered or turned, or was the day an unusual one?"
    ),
    "ages": (
        "{value:.0%} of the visitors were in other bands of age than before, usually "
        "{expected:.0%} ({high:.0%} at most); another public, or pictures that are read differently"
    ),
}


@dataclass(frozen=True)
class Expected:
    """What days before say of another one: the middle of them, and the ends of the interval."""

    middle: float
    low: float
    high: float


def drift_alarms(
    store: Store,
    *,
    now: datetime | None = None,
    scope: Scope | None = None,
    false_alarms: float = FALSE_ALARMS,
    days: int = PAST_DAYS,
    lasting: int = 1,
) -> tuple[DriftAlarm, ...]:
    """Alarms of the last whole days (of UTC) before a moment.

    Args:
        store: Health of the cameras, and visits.
        now: With a time zone; None asks the clock.
        scope: Its sites and cameras count; None takes all.
        false_alarms: Share of the days of an unchanged camera that may raise one, 0..1.
        days: Days before that are compared with, at most.
        lasting: Whole days that are looked at, each against those before it.

    Returns:
        By day, site and camera, then measure; none where fewer than ``MIN_DAYS`` days can be
        compared.

    Raises:
        ArgumentError: ``false_alarms`` or ``days`` are out of range.
    """
    if not 0 < false_alarms < 1 or days < MIN_DAYS or lasting < 1:
        raise ArgumentError(
            f"false_alarms must be between 0 and 1, days {MIN_DAYS} or more and lasting 1 or more, "
            f"got {false_alarms}, {days}, {lasting}"
        )
    end = milliseconds(now or utc_now())
    end -= end % DAY_MS
    chosen = scope or Scope()
    period = Scope(
        start=moment_of(end - (days + lasting) * DAY_MS),
        end=moment_of(end),
        sites=chosen.sites,
        cameras=chosen.cameras,
    )
    health = _health_by_camera(store.health(period, step=timedelta(days=1)))
    bands = _bands_by_camera(store.bands_by_day(period))
    found: list[DriftAlarm] = []
    for back in range(lasting, 0, -1):
        last = moment_of(end - back * DAY_MS)
        first = last - timedelta(days=days)
        for place in sorted({*health, *bands}):
            values = _day_values(
                _between(health.get(place, {}), first, last),
                _between(bands.get(place, {}), first, last),
                last,
            )
            found += _alarms(place, last, values, false_alarms / len(_MEASURES))
    return tuple(found)


def _between(
    values: Mapping[datetime, Value], first: datetime, last: datetime
) -> dict[datetime, Value]:
    return {day: value for day, value in values.items() if first <= day <= last}


def _alarms(
    place: Place,
    last: datetime,
    values: Mapping[Measure, tuple[float, list[float]]],
    chance: float,
) -> Iterator[DriftAlarm]:
    for measure, (value, past) in values.items():
        expected = expect(measure, past, chance)
        if not expected.low <= value <= expected.high:
            yield DriftAlarm(
                *place,
                start=last,
                measure=measure,
                value=value,
                expected=expected.middle,
                low=expected.low,
                high=expected.high,
                days=len(past),
            )


def _health_by_camera(samples: Sequence[HealthSample]) -> dict[Place, dict[datetime, HealthSample]]:
    found: dict[Place, dict[datetime, HealthSample]] = {}
    for sample in samples:
        if sample.faces >= MIN_FACES:
            found.setdefault((sample.site, sample.camera), {})[sample.minute] = sample
    return found


def _bands_by_camera(
    rows: Sequence[tuple[str, str, datetime, int, int]],
) -> dict[Place, dict[datetime, Counts]]:
    found: dict[Place, dict[datetime, Counts]] = {}
    for site, camera, day, band, visits in rows:
        days = found.setdefault((site, camera), {})
        days.setdefault(day, np.zeros(len(COUNTED_BANDS), np.int64))[band] += visits
    return {
        place: {day: counts for day, counts in days.items() if counts.sum() >= MIN_VISITS}
        for place, days in found.items()
    }


def _day_values(
    health: Mapping[datetime, HealthSample], bands: Mapping[datetime, Counts], last: datetime
) -> dict[Measure, tuple[float, list[float]]]:
    """The last day's value and those of the days before, by measure."""
    found: dict[Measure, tuple[float, list[float]]] = {}
    past = [sample for day, sample in health.items() if day < last]
    if last in health and len(past) >= MIN_DAYS:
        day = health[last]
        found["usable"] = day.usable_share, [one.usable_share for one in past]
        found["quality"] = day.quality, [one.quality for one in past]
        found["faces"] = day.faces_a_frame, [one.faces_a_frame for one in past]
    before = [counts for day, counts in bands.items() if day < last]
    if last in bands and len(before) >= MIN_DAYS:
        past_counts = np.array(before)
        total = past_counts.sum(axis=0)
        apart = _distances(past_counts, total - past_counts).tolist()
        found["ages"] = float(_distances(bands[last][None], total[None])[0]), apart
    return found


def _distances(some: Counts, others: Counts) -> NDArray[np.float64]:
    """(N, B) twice: share of the visitors who would have to change their band, row by row.

    This is the total variation; rows have a visitor or more.
    """
    apart = some / some.sum(axis=1, keepdims=True) - others / others.sum(axis=1, keepdims=True)
    return np.asarray(np.abs(apart).sum(axis=1) / 2)


def expect(measure: Measure, past: Sequence[float], chance: float) -> Expected:
    """What the days before say of another one.

    Args:
        measure: Whose values they are.
        past: Values of ``MIN_DAYS`` days or more.
        chance: That a day like them lies outside.

    Returns:
        Ends that a value may have; for "ages" the lower one is 0, as no day is too usual.
    """
    scaled = np.array([_scale(measure, value) for value in past])
    middle, count = float(scaled.mean()), len(scaled)
    spread = max(_LEAST[measure], float(scaled.std(ddof=1))) * math.sqrt(1 + 1 / count)
    is_one_sided = measure == "ages"
    reach = spread * student_quantile(chance if is_one_sided else chance / 2, count - 1)
    low = 0.0 if is_one_sided else _unscale(measure, middle - reach)
    return Expected(_unscale(measure, middle), low, _unscale(measure, middle + reach))


def _scale(measure: Measure, value: float) -> float:
    return math.log(max(value, 1e-4)) if measure in ("faces", "ages") else value


def _unscale(measure: Measure, value: float) -> float:
    if measure in ("faces", "ages"):
        return math.exp(min(value, 700.0))
    return min(1.0, max(0.0, value))


@cache
def student_quantile(tail: float, freedom: int) -> float:
    """Value that Student's t exceeds with a probability below 0.5.

    By bisection on the tail's finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4).

    >>> round(student_quantile(0.025, 10), 3)
    2.228
    """
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > tail:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > tail else (low, middle)
    return high


def student_tail(value: float, freedom: int) -> float:
    """P(T > value) for a whole number of degrees of freedom and a value of 0 or more."""
    angle = math.atan2(value, math.sqrt(freedom))
    square = math.cos(angle) ** 2
    if freedom % 2:
        term, total = math.cos(angle), 0.0
        for k in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= square * 2 * k / (2 * k + 1)
        inside = 2 / math.pi * (angle + math.sin(angle) * total)
    else:
        term, total = 1.0, 0.0
        for k in range(1, freedom // 2 + 1):
            total += term
            term *= square * (2 * k - 1) / (2 * k)
        inside = math.sin(angle) * total
    return max(0.0, (1 - inside) / 2)
