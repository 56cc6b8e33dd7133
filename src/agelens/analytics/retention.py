"""
What is left of a day when its visits are deleted: sums that tell nothing of a single person.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import numpy as np

from agelens.analytics import sums
from agelens.analytics.confusion import LABELS
from agelens.analytics.database import insert_rows
from agelens.analytics.hours import day_start
from agelens.analytics.records import HOUR_MS, Scope, milliseconds, moment_of
from agelens.analytics.rows import NO_BAND, NO_GENDER
from agelens.analytics.suppression import suppress
from agelens.video.visit import COUNTED_BANDS

if TYPE_CHECKING:
    import sqlalchemy as sa

ALL_BANDS: Final = -2
ALL_GENDERS: Final = "*"
"""Rows of sums in ``kept_days``."""

_GENDERS: Final = (*LABELS, NO_GENDER)
_BANDS: Final = (*range(len(COUNTED_BANDS)), NO_BAND)
_BY_MINUTE: Final = ("minutes", "minute_zones", "minute_lines", "watched", "health")
_BY_DAY: Final = (sums.ANSWERS, sums.ZONES, sums.LINES)
_MACHINE: Final = ("frames_in", "dropped", "detections", "reconnects", "down_ms")
_FACES: Final = ("faces", "usable", "quality_sum", "age_sum")

Place = tuple[str, str]


def first_moment(connection: sa.Connection, tables: sa.MetaData) -> int | None:
    """The earliest time that retention has not dealt with; None where there is nothing."""
    import sqlalchemy as sa

    columns = [tables.tables["visits"].c.start_ms]
    columns += [tables.tables[name].c.minute_ms for name in _BY_MINUTE]
    found = [
        connection.execute(sa.select(sa.func.min(column))).scalar_one_or_none()
        for column in columns
    ]
    return min((int(value) for value in found if value is not None), default=None)


def retire_day(
    connection: sa.Connection, tables: sa.MetaData, day: date, zone: ZoneInfo, minimum: int
) -> int:
    """Turn one day of the site, and all before it, into what is kept of it.

    Args:
        connection: In a transaction.
        tables: Of the store.
        day: By the site's calendar; nothing is older.
        zone: Time zone of the site.
        minimum: Fewest visitors of a cell that is kept.

    Returns:
        Visits deleted.
    """
    begin = milliseconds(day_start(day, zone))
    end = milliseconds(day_start(day + timedelta(days=1), zone))
    told = _keep_answers(connection, tables, day, (begin, end), minimum)
    _keep_zones(connection, tables, day, end, told, minimum)
    _keep_lines(connection, tables, day, end, told, minimum)
    _keep_health(connection, tables, day, end, told)
    visits = tables.tables["visits"]
    gone = connection.execute(visits.delete().where(visits.c.start_ms < end)).rowcount
    for name in _BY_MINUTE:
        table = tables.tables[name]
        connection.execute(table.delete().where(table.c.minute_ms < end))
    for name in ("quarters", "health_quarters"):
        table = tables.tables[name]
        connection.execute(table.delete().where(table.c.quarter_ms < end))
    for ladder in _BY_DAY:
        table = tables.tables[ladder.coarse]
        connection.execute(table.delete().where(table.c.day_ms < end))
        # The site's day ends within one of UTC, of which the rest is still there.
        first = end - end % ladder.unit_ms
        sums.renew(connection, tables, ladder, first, first + ladder.unit_ms)
    return int(gone)


def _keep_answers(
    connection: sa.Connection,
    tables: sa.MetaData,
    day: date,
    ends: tuple[int, int],
    minimum: int,
) -> dict[Place, int | None]:
    """Keep hours, bands and genders; all visits of each camera, None where hidden."""
    import sqlalchemy as sa

    table = tables.tables["minutes"]
    names = ("site", "camera", "minute_ms", "band", "gender", "visits")
    asked = sa.select(*(table.c[name] for name in names)).where(
        table.c.minute_ms < ends[1], table.c.staff.is_(False)
    )
    by_camera: dict[Place, list[Any]] = {}
    for row in connection.execute(asked):
        by_camera.setdefault((row.site, row.camera), []).append(row)
    told: dict[Place, int | None] = {}
    for place, rows in sorted(by_camera.items()):
        hours, cells, told[place] = _kept(rows, *ends, minimum)
        for name, found in (
            ("kept_hours", [(*place, *row) for row in hours]),
            ("kept_days", [(*place, day.isoformat(), *row) for row in cells]),
        ):
            insert_rows(connection, tables.tables[name], found)
    return told


def _kept(
    rows: Sequence[Any], begin: int, end: int, minimum: int
) -> tuple[list[tuple[int, int | None]], list[tuple[int, str, int | None]], int | None]:
    """Of one camera's day: hours; bands by gender; and all visits, None where hidden."""
    cells = np.zeros((len(_BANDS), len(_GENDERS)), np.int64)
    # The hours of the day, counted from its midnight: 23 or 25 where the clocks change.
    hours = np.zeros((max(1, -(-(end - begin) // HOUR_MS)), 1), np.int64)
    for row in rows:
        cells[_BANDS.index(row.band), _GENDERS.index(row.gender)] += row.visits
        hours[max(0, (row.minute_ms - begin) // HOUR_MS), 0] += row.visits
    table = suppress(cells, minimum)
    by_hour = suppress(hours, minimum)
    # Without the total of the day nothing may tell it: not the hours, and not another total.
    is_hidden = bool(table.hidden[-1, -1] or by_hour.hidden[-1, -1])
    kept = [
        (band, gender, count)
        for band, counts in zip((*_BANDS, ALL_BANDS), table.rows(), strict=True)
        for gender, count in zip((*_GENDERS, ALL_GENDERS), counts, strict=True)
    ]
    held = [
        (
            begin + number * HOUR_MS,
            None if by_hour.hidden[number, 0] or is_hidden else int(hours[number, 0]),
        )
        for number in range(len(hours))
    ]
    return held, kept, None if is_hidden else int(cells.sum())


def _keep_zones(
    connection: sa.Connection,
    tables: sa.MetaData,
    day: date,
    end: int,
    told: dict[Place, int | None],
    minimum: int,
) -> None:
    rows = []
    for site, camera, zone, visits, stay_ms in _until(
        connection, tables, sums.ZONES, end, ("site", "camera", "zone"), ("visits", "stay_ms")
    ):
        total = told.get((site, camera))
        # Who was in the zone and who was not add up to the total of the day.
        hidden = total is None or suppress([[visits], [total - visits]], minimum).hidden[0, 0]
        kept = (None, None) if hidden else (visits, stay_ms)
        rows.append((site, camera, day.isoformat(), zone, *kept))
    insert_rows(connection, tables.tables["kept_zones"], rows)


def _keep_lines(
    connection: sa.Connection,
    tables: sa.MetaData,
    day: date,
    end: int,
    told: dict[Place, int | None],
    minimum: int,
) -> None:
    by = ("site", "camera", "line", "direction")
    rows = []
    for site, camera, line, direction, crossings in _until(
        connection, tables, sums.LINES, end, by, ("crossings",)
    ):
        hidden = told.get((site, camera)) is None or 0 < crossings < minimum
        kept = None if hidden else crossings
        rows.append((site, camera, day.isoformat(), line, direction, kept))
    insert_rows(connection, tables.tables["kept_lines"], rows)


def _keep_health(
    connection: sa.Connection,
    tables: sa.MetaData,
    day: date,
    end: int,
    told: dict[Place, int | None],
) -> None:
    rows = []
    for site, camera, *values in _until(
        connection, tables, sums.HEALTH, end, ("site", "camera"), (*_MACHINE, *_FACES)
    ):
        seen = values[len(_MACHINE) :]
        faces = seen if told.get((site, camera)) is not None else [None] * len(seen)
        rows.append((site, camera, day.isoformat(), *values[: len(_MACHINE)], *faces))
    insert_rows(connection, tables.tables["kept_health"], rows)


def _until(
    connection: sa.Connection,
    tables: sa.MetaData,
    ladder: sums.Ladder,
    end: int,
    by: Sequence[str],
    added: Sequence[str],
) -> Iterable[tuple[Any, ...]]:
    """Sums of everything before a moment, staff left out."""
    scope = Scope(end=moment_of(end))
    return sums.read_sums(connection, tables, ladder, scope, by, added)
