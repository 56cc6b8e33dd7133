"""
What the store takes and gives besides visits: sites, watched minutes, positions, scopes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from agelens.analytics.hours import site_zone
from agelens.errors import ArgumentError

MINUTE_MS: Final = 60_000
QUARTER_MS: Final = 900_000
"""Sums come by quarters of an hour: every time zone of today begins its hours at one."""
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def milliseconds(moment: datetime) -> int:
    """Whole milliseconds since 1970 in UTC."""
    return (moment - _EPOCH) // _MILLISECOND


def moment_of(since_1970_ms: int) -> datetime:
    """The moment in UTC."""
    return _EPOCH + timedelta(milliseconds=int(since_1970_ms))


@dataclass(frozen=True)
class Added:
    """What became of the visits that were handed over.

    Attributes:
        stored: New ones, now on disk.
        known: They were there already.
        expired: They began before the last day that retention has deleted.
    """

    stored: int
    known: int
    expired: int


@dataclass(frozen=True)
class Scope:
    """Which visits are meant.

    Attributes:
        start: First moment, with a time zone; None from the beginning.
        end: First moment after it; None to the end. Sums count whole minutes.
        sites: Their names; empty for all.
        cameras: Their names; empty for all.
        staff: Take staff in.
    """

    start: datetime | None = None
    end: datetime | None = None
    sites: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    staff: bool = False

    def __post_init__(self) -> None:
        for moment in (self.start, self.end):
            if moment is not None and moment.tzinfo is None:
                raise ArgumentError(f"start and end of a scope need a time zone, got {moment}")


@dataclass(frozen=True)
class Site:
    """A place with cameras.

    Attributes:
        name: As in ``Visit.site``.
        timezone: Name of its time zone, as "Europe/Berlin".
        title: What pages and reports call it; empty for the name.
        note: A line for whoever reads the report: opening hours, works, a moved camera.
    """

    name: str
    timezone: str
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        site_zone(self.timezone)
        for what, text in (("name", self.name), ("title", self.title), ("note", self.note)):
            if not text.isprintable() or (what == "name" and not text):
                raise ArgumentError(f"the {what} of a site must be printable, got {text!r}")

    @property
    def zone(self) -> ZoneInfo:
        """Its time zone."""
        return site_zone(self.timezone)


@dataclass(frozen=True)
class WatchedMinute:
    """How much of a minute a camera was seen; of several notes of one minute the longest holds.

    Attributes:
        site: Name of the place.
        camera: Name of the camera.
        minute: Any moment of the minute, with a time zone.
        seconds: 0..60.
    """

    site: str
    camera: str
    minute: datetime
    seconds: float

    def __post_init__(self) -> None:
        if self.minute.tzinfo is None or not 0 <= self.seconds <= 60:
            raise ArgumentError(
                "a watched minute needs a time zone and 0..60 seconds, "
                f"got {self.minute}, {self.seconds}"
            )


@dataclass(frozen=True)
class Position:
    """How far a source has been watched: where to go on after a restart.

    Attributes:
        site: Name of the place.
        camera: Name of the camera.
        epoch: Run of the source, as in ``Visit``.
        pts_us: Presentation time to go on from, in microseconds of the stream.
        state: What else the watcher needs there; anything that JSON can hold.
    """

    site: str
    camera: str
    epoch: str
    pts_us: int
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptZone:
    """What retention has kept of one zone on one day of the site.

    ``visits`` and ``seconds`` (of all of them together) are None where hidden.
    """

    site: str
    camera: str
    day: date
    zone: str
    visits: int | None
    seconds: float | None


@dataclass(frozen=True)
class KeptLine:
    """What retention has kept of one line on one day; ``crossings`` is None where hidden."""

    site: str
    camera: str
    day: date
    line: str
    direction: str
    crossings: int | None


@dataclass(frozen=True)
class KeptHealth:
    """What retention has kept of how well a camera saw on one day.

    The sums are those of ``HealthSample``; without ``has_faces`` the day had too few visitors, and
    those of faces are 0.
    """

    site: str
    camera: str
    day: date
    frames_in: int
    dropped: int
    detections: int
    reconnects: int
    down_s: float
    has_faces: bool
    faces: int
    usable: int
    quality_sum: float
    age_sum: float
