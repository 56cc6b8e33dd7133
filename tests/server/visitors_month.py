"""A small month of made-up visits at two sites, across a change of the clocks."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np

from agelens.analytics.records import Site, WatchedMinute
from agelens.analytics.store import open_store
from agelens.video.health import HealthSample
from agelens.video.visit import LineCrossing, Visit, ZoneStay
from analytics.people import visit

BERLIN: Final = ZoneInfo("Europe/Berlin")
NEW_YORK: Final = ZoneInfo("America/New_York")
FIRST: Final = date(2025, 3, 3)
LAST: Final = date(2025, 3, 31)
SPRING: Final = date(2025, 3, 30)
"""Berlin puts its clocks on: two o'clock becomes three."""

_PLACES: Final = (("shop", "door", BERLIN), ("shop", "till", BERLIN), ("museum", "hall", NEW_YORK))
_OPENS, _CLOSES = 10, 17


def write_month(path: Path, *, a_day: int = 40, seed: int = 0) -> Path:
    """Write a store of both sites, each open from 10 to 17 by its own clocks."""
    rng = np.random.default_rng(seed)
    with open_store(path) as store:
        store.set_site(Site("shop", "Europe/Berlin", title="Shop in the Lange Strasse"))
        store.set_site(Site("museum", "America/New_York", title="Museum"))
        for number, (site, camera, zone) in enumerate(_PLACES):
            visits = list(_visits(site, camera, zone, a_day, number, rng))
            days = range((LAST - FIRST).days + 1)
            watched, health = [], []
            for day in (FIRST + timedelta(days=count) for count in days):
                for minute in _minutes(day, zone):
                    watched.append(WatchedMinute(site, camera, minute, 60.0))
                    if minute.minute == 0:
                        health.append(_health(site, camera, minute))
            store.add(visits, watched=watched, health=health)
    return path


def _minutes(day: date, zone: ZoneInfo) -> list[datetime]:
    opens = datetime.combine(day, time(_OPENS), zone).astimezone(UTC)
    closes = datetime.combine(day, time(_CLOSES), zone).astimezone(UTC)
    found: list[datetime] = []
    while opens < closes:
        found.append(opens)
        opens += timedelta(minutes=1)
    return found


def _visits(
    site: str, camera: str, zone: ZoneInfo, a_day: int, number: int, rng: np.random.Generator
) -> list[Visit]:
    found: list[Visit] = []
    for day in (FIRST + timedelta(days=count) for count in range((LAST - FIRST).days + 1)):
        busy = 1.6 if day.weekday() == 5 else 1.0
        for _ in range(int(rng.poisson(a_day * busy))):
            hour = _OPENS + (_CLOSES - _OPENS) * float(rng.beta(2.5, 2.0))
            clock = time(int(hour), int(60 * (hour % 1)), int(3600 * hour % 60))
            at = datetime.combine(day, clock, zone).astimezone(UTC)
            track = len(found)
            changes: dict[str, Any] = {
                "site": site,
                "camera": camera,
                "seconds": 20.0,
                "end": at + timedelta(seconds=20),
                "attentive_seconds": 6.0,
                "stays": (ZoneStay("window", 8.0),) if track % 3 else (),
                "crossings": (LineCrossing("entrance", "in" if track % 2 else "out", at),),
                "model": "agelens-s@1.1",
            }
            found.append(visit(track, at=at, seed=number, **changes))
    return found


def _health(site: str, camera: str, minute: datetime) -> HealthSample:
    return HealthSample(
        site, camera, minute, frames_in=1500, dropped=30, detections=480, faces=40, usable=30,
        quality_sum=28.0, age_sum=1080.0, epoch="run-1",
    )  # fmt: skip
