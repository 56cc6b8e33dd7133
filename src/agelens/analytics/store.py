"""
Where visits are kept: a SQLite file or a PostgreSQL database, each visit once.

A visit that ``add`` has acknowledged is on disk. Handed over again after a crash, with the same
camera, epoch, track and first frame, it changes nothing. Sums by minute are made in the same
transaction, so that they never disagree with the visits.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from agelens.analytics.confusion import LABELS
from agelens.analytics.database import (
    WriterLock,
    import_sqlalchemy,
    migrate,
    postgres_engine,
    require_current,
    retried,
    sqlite_engine,
    translated,
)
from agelens.analytics.hours import day_start, local_day
from agelens.analytics.suppression import DEFAULT_MINIMUM, suppress
from agelens.errors import ArgumentError, StoreError
from agelens.video.visit import COUNTED_BANDS, LineCrossing, Visit, ZoneStay

if TYPE_CHECKING:
    import sqlalchemy as sa

Counts = NDArray[np.int64]
Made = TypeVar("Made")

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
QUARTER_MS: Final = 900_000
"""Sums come by quarters of an hour: every time zone of today begins its hours at one."""

_ROWS_AT_ONCE: Final = 2000
_KEYS_AT_ONCE: Final = 500
_HORIZON: Final = "horizon_ms"


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


def open_store(
    where: str | os.PathLike[str], *, read_only: bool = False, patience_s: float = 30.0
) -> Store:
    """Open a store, or begin one.

    Args:
        where: A file for SQLite; or a URL "postgresql://user@host/database".
        read_only: Only look: any number of processes may, while one writes.
        patience_s: How long a PostgreSQL server may be away before a call fails.

    Raises:
        StoreError: It cannot be opened, another process writes to the SQLite file, or its tables
            were made by a newer AgeLens.
        MissingExtra: The packages of ``visitors`` (or ``postgres``) are not installed.
    """
    return Store(where, read_only=read_only, patience_s=patience_s)


class Store:
    """Visits and their sums. Thread-safe; a forked child opens its own.

    Attributes:
        where: The file, or the URL without its password.
        is_sqlite: The store is a file.
        read_only: Nothing can be written.
    """

    def __init__(
        self, where: str | os.PathLike[str], *, read_only: bool = False, patience_s: float = 30.0
    ) -> None:
        """See ``open_store``."""
        self._sa = import_sqlalchemy()
        from agelens.analytics import tables

        self._t = tables
        self._mutex = threading.Lock()
        self._lock: WriterLock | None = None
        self._engines: list[sa.Engine] = []
        self.read_only = read_only
        self._patience_s = patience_s
        text = os.fspath(where)
        self.is_sqlite = "://" not in text
        try:
            if self.is_sqlite:
                self._open_file(Path(text))
            else:
                self._open_server(text)
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _open_file(self, path: Path) -> None:
        self.where = str(path)
        self._path: Path | None = path
        if self.read_only and not path.exists():
            raise StoreError(f"{path}: no such store")
        if not self.read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = WriterLock(path)
            self._writer = sqlite_engine(path, read_only=False)
            self._engines.append(self._writer)
        self._reader = sqlite_engine(path, read_only=True)
        self._engines.append(self._reader)

    def _open_server(self, url: str) -> None:
        self._path = None
        self._reader = self._writer = postgres_engine(url)
        self._engines.append(self._reader)
        self.where = self._reader.url.render_as_string(hide_password=True)

    def _prepare(self) -> None:
        if self.read_only:
            self._read(lambda connection: require_current(connection, self.where))
            return

        def prepare(connection: sa.Connection) -> None:
            if not self.is_sqlite:
                # Two processes may begin a store at once; the lock ends with the transaction.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(71023145)")
            migrate(connection, self.where)

        self._write(prepare)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file or the server; safe to call twice."""
        for engine in self._engines:
            engine.dispose()
        self._engines.clear()
        if self._lock is not None:
            self._lock.close()

    # --- transactions -----------------------------------------------------------------------------

    def _write(self, work: Callable[[sa.Connection], Made]) -> Made:
        if self.read_only:
            raise StoreError(f"{self.where}: was opened with read_only=True")

        def attempt() -> Made:
            with self._open_engine(self._writer).begin() as connection:
                return work(connection)

        with self._mutex if self.is_sqlite else _unlocked(), translated(self.where):
            return self._again_when_met(attempt)

    def _again_when_met(self, attempt: Callable[[], Made]) -> Made:
        """Once more where two writers stored the same visit at once: the second then finds it."""
        for _ in range(3):
            try:
                return retried(attempt, self._patience_s)
            except self._sa.exc.IntegrityError:
                continue
        return retried(attempt, self._patience_s)

    def _read(self, work: Callable[[sa.Connection], Made]) -> Made:
        def attempt() -> Made:
            with self._open_engine(self._reader).connect() as connection:
                return work(connection)

        with translated(self.where):
            return retried(attempt, self._patience_s)

    def _open_engine(self, engine: sa.Engine) -> sa.Engine:
        if not self._engines:
            raise StoreError(f"{self.where}: the store is closed")
        return engine

    # --- writing ----------------------------------------------------------------------------------

    def add(self, visits: Sequence[Visit]) -> Added:
        """Store visits; all are on disk when this returns, or none.

        Args:
            visits: New ones, and any that may be there already.

        Raises:
            StoreError: The disk is full, the server stays away, or the store was opened read-only.
        """
        rows = list({visit.key: visit for visit in visits}.values())
        if not rows:
            return Added(0, 0, 0)

        def work(connection: sa.Connection) -> Added:
            horizon = self._fact(connection, _HORIZON)
            fresh = [v for v in rows if horizon is None or _milliseconds(v.start) >= int(horizon)]
            known = self._known_keys(connection, fresh)
            new = [visit for visit in fresh if visit.key not in known]
            self._insert(connection, new)
            self._sum_up(connection, new)
            return Added(len(new), len(fresh) - len(new), len(rows) - len(fresh))

        return self._write(work)

    def watch(self, site: str, camera: str, minute: datetime, seconds: float) -> None:
        """Note how much of a minute a camera was seen; of several notes the longest holds.

        Args:
            site: Name of the place.
            camera: Name of the camera.
            minute: Any moment of the minute, with a time zone.
            seconds: 0..60.

        Raises:
            ArgumentError: No time zone, or the seconds are outside 0..60.
        """
        if minute.tzinfo is None or not 0 <= seconds <= 60:
            raise ArgumentError(
                f"a watched minute needs a time zone and 0..60 seconds, got {minute}, {seconds}"
            )
        table = self._t.watched
        start = _milliseconds(minute) // MINUTE_MS * MINUTE_MS
        row = {"site": site, "camera": camera, "minute_ms": start}

        def work(connection: sa.Connection) -> None:
            insert = self._insert_of(table).values(**row, watched_ms=round(1000 * seconds))
            longer = insert.excluded.watched_ms
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=list(table.primary_key.columns),
                    set_={"watched_ms": longer},
                    where=table.c.watched_ms < longer,
                )
            )

        self._write(work)

    def _insert_of(self, table: sa.Table) -> Any:
        if self.is_sqlite:
            from sqlalchemy.dialects import sqlite

            return sqlite.insert(table)
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)

    def _known_keys(
        self, connection: sa.Connection, visits: Sequence[Visit]
    ) -> set[tuple[str, str, str, int, int]]:
        table = self._t.visits
        by_source: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
        for visit in visits:
            by_source.setdefault(visit.key[:3], []).append(visit.key[3:])
        known = set()
        for (site, camera, epoch), tracks in by_source.items():
            for part in _parts(tracks, _KEYS_AT_ONCE):
                asked = self._sa.select(table.c.track, table.c.first_pts).where(
                    table.c.site == site,
                    table.c.camera == camera,
                    table.c.epoch == epoch,
                    self._sa.tuple_(table.c.track, table.c.first_pts).in_(part),
                )
                known |= {(site, camera, epoch, *row) for row in connection.execute(asked)}
        return known

    def _insert(self, connection: sa.Connection, visits: Sequence[Visit]) -> None:
        tables = self._t
        rows = [_visit_row(visit, tables.AGE_COLUMNS) for visit in visits]
        stays = [
            {"visit_id": visit.id, "zone": stay.zone, "stay_ms": round(1000 * stay.seconds)}
            for visit in visits
            for stay in visit.stays
        ]
        crossings = [
            {
                "visit_id": visit.id,
                "number": number,
                "line": crossing.line,
                "direction": crossing.direction,
                "at_ms": _milliseconds(crossing.at),
            }
            for visit in visits
            for number, crossing in enumerate(visit.crossings)
        ]
        for table, found in (
            (tables.visits, rows),
            (tables.stays, stays),
            (tables.crossings, crossings),
        ):
            if found:
                connection.execute(table.insert(), found)

    def _sum_up(self, connection: sa.Connection, visits: Sequence[Visit]) -> None:
        for table, sums in _minute_sums(visits, self._t).items():
            names = [column.name for column in table.primary_key.columns]
            added = [column.name for column in table.columns if column.name not in names]
            # In one order everywhere, so that two writers cannot wait for each other.
            rows = [
                {**dict(zip(names, key, strict=True)), **dict(zip(added, values, strict=True))}
                for key, values in sorted(sums.items())
            ]
            if not rows:
                continue
            insert = self._insert_of(table)
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=names,
                    set_={name: table.c[name] + insert.excluded[name] for name in added},
                ),
                rows,
            )

    def _fact(self, connection: sa.Connection, name: str) -> str | None:
        facts = self._t.facts
        found = connection.execute(self._sa.select(facts.c.value).where(facts.c.name == name))
        value = found.scalar_one_or_none()
        return None if value is None else str(value)

    def _set_fact(self, connection: sa.Connection, name: str, value: str) -> None:
        insert = self._insert_of(self._t.facts).values(name=name, value=value)
        connection.execute(
            insert.on_conflict_do_update(index_elements=["name"], set_={"value": value})
        )

    # --- reading ----------------------------------------------------------------------------------

    def visits(self, scope: Scope | None = None) -> Iterator[Visit]:
        """Visits by start, then id, read a few thousand at a time."""
        chosen = scope or Scope()
        last: tuple[int, str] | None = None
        while True:
            page = self._page(chosen, last)
            yield from page
            if len(page) < _ROWS_AT_ONCE:
                return
            last = _milliseconds(page[-1].start), page[-1].id

    def _page(self, scope: Scope, after: tuple[int, str] | None) -> list[Visit]:
        table, alchemy = self._t.visits, self._sa
        asked = alchemy.select(table).where(*self._conditions(table, table.c.start_ms, scope))
        if after is not None:
            asked = asked.where(
                alchemy.tuple_(table.c.start_ms, table.c.id) > alchemy.tuple_(*after)
            )
        asked = asked.order_by(table.c.start_ms, table.c.id).limit(_ROWS_AT_ONCE)

        def work(connection: sa.Connection) -> list[Visit]:
            rows = connection.execute(asked).mappings().all()
            stays, crossings = self._parts_of(connection, [row["id"] for row in rows])
            return [
                _visit_of(row, self._t, stays.get(row["id"], ()), crossings.get(row["id"], ()))
                for row in rows
            ]

        return self._read(work)

    def _parts_of(
        self, connection: sa.Connection, ids: Sequence[str]
    ) -> tuple[dict[str, tuple[ZoneStay, ...]], dict[str, tuple[LineCrossing, ...]]]:
        stays: dict[str, tuple[ZoneStay, ...]] = {}
        crossings: dict[str, tuple[LineCrossing, ...]] = {}
        for part in _parts(ids, _KEYS_AT_ONCE):
            table = self._t.stays
            asked = self._sa.select(table).where(table.c.visit_id.in_(part))
            for row in connection.execute(asked):
                stay = ZoneStay(row.zone, row.stay_ms / 1000)
                stays[row.visit_id] = (*stays.get(row.visit_id, ()), stay)
            table = self._t.crossings
            asked = self._sa.select(table).where(table.c.visit_id.in_(part))
            for row in connection.execute(asked.order_by(table.c.number)):
                crossing = LineCrossing(row.line, row.direction, _moment(row.at_ms))
                crossings[row.visit_id] = (*crossings.get(row.visit_id, ()), crossing)
        return stays, crossings

    def _conditions(self, table: sa.Table, time: Any, scope: Scope) -> list[Any]:
        found = []
        if scope.start is not None:
            found.append(time >= _milliseconds(scope.start))
        if scope.end is not None:
            found.append(time < _milliseconds(scope.end))
        if scope.sites:
            found.append(table.c.site.in_(scope.sites))
        if scope.cameras:
            found.append(table.c.camera.in_(scope.cameras))
        if not scope.staff and "staff" in table.c:
            found.append(table.c.staff.is_(False))
        return found

    def _summed(
        self, table: sa.Table, scope: Scope, by: Sequence[Any], sums: Sequence[Any]
    ) -> list[tuple[Any, ...]]:
        asked = (
            self._sa.select(*by, *(self._sa.func.sum(column) for column in sums))
            .where(*self._conditions(table, table.c.minute_ms, scope))
            .group_by(*by)
            .order_by(*by)
        )
        rows = self._rows(asked)
        # PostgreSQL sums whole numbers as decimals.
        return [(*row[: len(by)], *(int(value) for value in row[len(by) :])) for row in rows]

    def _rows(self, asked: Any) -> list[Any]:
        return self._read(lambda connection: list(connection.execute(asked)))

    def answers(self, scope: Scope | None = None) -> tuple[Counts, int]:
        """Visits by what the model said, for ``summary.correct_shares``.

        Returns:
            (B, 3) int64 by ``visit.COUNTED_BANDS`` and ``confusion.LABELS``; and the number of
            visits without an age or a gender.
        """
        table = self._t.minutes
        rows = self._summed(
            table, scope or Scope(), [table.c.band, table.c.gender], [table.c.visits]
        )
        counts = np.zeros((len(COUNTED_BANDS), len(LABELS)), np.int64)
        unknown = 0
        for band, gender, visits in rows:
            if band == self._t.NO_BAND or gender == self._t.NO_GENDER:
                unknown += visits
            else:
                counts[band, LABELS.index(gender)] += visits
        return counts, unknown

    def quarters(self, scope: Scope | None = None) -> list[tuple[datetime, int, float, float]]:
        """Visits that began in each quarter of an hour.

        Returns:
            Start of the quarter (UTC), visits, seconds in view, seconds attentive; quarters without
            a visit are left out. See ``hours`` for the hours of the site.
        """
        table = self._t.minutes
        quarter = (table.c.minute_ms - table.c.minute_ms % QUARTER_MS).label("quarter")
        sums = [table.c.visits, table.c.seen_ms, table.c.attentive_ms]
        return [
            (_moment(int(start)), visits, seen / 1000, attentive / 1000)
            for start, visits, seen, attentive in self._summed(
                table, scope or Scope(), [quarter], sums
            )
        ]

    def watched_quarters(
        self, scope: Scope | None = None
    ) -> list[tuple[str, str, datetime, float]]:
        """Seconds that each camera was seen in each quarter: site, camera, start (UTC), seconds."""
        table = self._t.watched
        quarter = (table.c.minute_ms - table.c.minute_ms % QUARTER_MS).label("quarter")
        by = [table.c.site, table.c.camera, quarter]
        return [
            (site, camera, _moment(int(start)), watched / 1000)
            for site, camera, start, watched in self._summed(
                table, scope or Scope(), by, [table.c.watched_ms]
            )
        ]

    def zones(self, scope: Scope | None = None) -> list[tuple[str, str, str, int, float]]:
        """Site, camera, zone, visits, and seconds spent there."""
        table = self._t.minute_zones
        by = [table.c.site, table.c.camera, table.c.zone]
        rows = self._summed(table, scope or Scope(), by, [table.c.visits, table.c.stay_ms])
        return [(site, camera, zone, n, stay / 1000) for site, camera, zone, n, stay in rows]

    def lines(self, scope: Scope | None = None) -> list[tuple[str, str, str, str, int]]:
        """Site, camera, line, direction, and crossings of the visits that began in the scope."""
        table = self._t.minute_lines
        by = [table.c.site, table.c.camera, table.c.line, table.c.direction]
        return self._summed(table, scope or Scope(), by, [table.c.crossings])

    def cameras(self) -> list[tuple[str, str]]:
        """Site and camera of everything in the store."""
        found: set[tuple[str, str]] = set()
        for table in (self._t.minutes, self._t.watched, self._t.kept_days):
            asked = self._sa.select(table.c.site, table.c.camera).distinct()
            found |= {(row.site, row.camera) for row in self._rows(asked)}
        return sorted(found)

    def kept_days(self) -> list[tuple[str, str, date, int | None, str | None, int | None]]:
        """What retention has kept of whole days.

        Returns:
            Site, camera, day, place of the band (None: all), gender label (None: all; "" for
            none), and visits (None where hidden).
        """
        table = self._t.kept_days
        rows = self._rows(self._sa.select(table).order_by(*table.primary_key.columns))
        return [
            (
                row.site,
                row.camera,
                date.fromisoformat(row.day),
                None if row.band == self._t.ALL_BANDS else row.band,
                None if row.gender == self._t.ALL_GENDERS else row.gender,
                row.visits,
            )
            for row in rows
        ]

    def kept_hours(self) -> list[tuple[str, str, datetime, int | None]]:
        """What retention has kept of hours: site, camera, start (UTC), visits (None if hidden)."""
        table = self._t.kept_hours
        rows = self._rows(self._sa.select(table).order_by(*table.primary_key.columns))
        return [(row.site, row.camera, _moment(row.hour_ms), row.visits) for row in rows]

    # --- retention --------------------------------------------------------------------------------

    def retain(
        self,
        days: int,
        zone: ZoneInfo,
        *,
        minimum: int = DEFAULT_MINIMUM,
        now: datetime | None = None,
    ) -> int:
        """Delete visits and minutes older than so many whole days; keep sums, small ones hidden.

        Of each day and camera stay the visits by band and gender with their sums, and the visits
        by hour, staff left out; both with small cells hidden so that they cannot be worked out
        from the sums (``suppression``). A day is done in one transaction, so that an interrupted
        run goes on where it stopped. Visits of a deleted day that are handed over later are
        refused as expired.

        Args:
            days: Whole days of the site that are left besides today; 0 leaves today only.
            zone: Time zone of the sites.
            minimum: Fewest visitors of a cell that is kept.
            now: The present; None asks the clock.

        Returns:
            Visits deleted.

        Raises:
            ArgumentError: ``days`` is negative.
        """
        if days < 0:
            raise ArgumentError(f"days must be 0 or more, got {days}")
        today = local_day(now or datetime.now(UTC), zone)
        end = day_start(today - timedelta(days=days), zone)
        deleted = 0
        while True:
            first = self._read(self._first_moment)
            if first is None or first >= _milliseconds(end):
                break
            day = local_day(_moment(first), zone)
            deleted += self._write(partial(self._retire, day=day, zone=zone, minimum=minimum))
        self._write(lambda connection: self._raise_horizon(connection, _milliseconds(end)))
        self._tidy()
        return deleted

    def _first_moment(self, connection: sa.Connection) -> int | None:
        tables = self._t
        columns = [
            tables.visits.c.start_ms,
            *(
                table.c.minute_ms
                for table in (
                    tables.minutes,
                    tables.minute_zones,
                    tables.minute_lines,
                    tables.watched,
                )
            ),
        ]
        found = [
            connection.execute(self._sa.select(self._sa.func.min(column))).scalar_one_or_none()
            for column in columns
        ]
        return min((int(value) for value in found if value is not None), default=None)

    def _retire(self, connection: sa.Connection, day: date, zone: ZoneInfo, minimum: int) -> int:
        """Turn one day of the site into what is kept of it."""
        tables = self._t
        begin = _milliseconds(day_start(day, zone))
        end = _milliseconds(day_start(day + timedelta(days=1), zone))
        table = tables.minutes
        asked = self._sa.select(
            table.c.site,
            table.c.camera,
            table.c.minute_ms,
            table.c.band,
            table.c.gender,
            table.c.visits,
        ).where(table.c.minute_ms < end, table.c.staff.is_(False))
        by_camera: dict[tuple[str, str], list[Any]] = {}
        for row in connection.execute(asked):
            by_camera.setdefault((row.site, row.camera), []).append(row)
        hours, cells = [], []
        for (site, camera), rows in sorted(by_camera.items()):
            place = {"site": site, "camera": camera}
            held, kept = _kept(rows, begin, end, minimum, tables)
            hours += [{**place, **row} for row in held]
            cells += [{**place, "day": day.isoformat(), **row} for row in kept]
        for kept_table, found in ((tables.kept_hours, hours), (tables.kept_days, cells)):
            if found:
                connection.execute(kept_table.insert(), found)
        gone = connection.execute(
            tables.visits.delete().where(tables.visits.c.start_ms < end)
        ).rowcount
        for old in (tables.minutes, tables.minute_zones, tables.minute_lines, tables.watched):
            connection.execute(old.delete().where(old.c.minute_ms < end))
        self._raise_horizon(connection, end)
        return int(gone)

    def _raise_horizon(self, connection: sa.Connection, moment: int) -> None:
        before = self._fact(connection, _HORIZON)
        if before is None or int(before) < moment:
            self._set_fact(connection, _HORIZON, str(moment))

    def _tidy(self) -> None:
        """Take deleted visits out of the journal too."""
        if self.is_sqlite:
            with self._mutex, translated(self.where):
                connection = self._open_engine(self._writer).raw_connection()
                try:
                    connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
                finally:
                    connection.close()

    # --- checking ---------------------------------------------------------------------------------

    def check(self) -> tuple[str, ...]:
        """Look for damage: the file's own check, and whether all sums are those of the visits.

        Returns:
            What is wrong, a sentence each; empty when nothing is.
        """
        return (*self._file_problems(), *self._sum_problems())

    def _file_problems(self) -> Iterator[str]:
        if not self.is_sqlite:
            return

        def work(connection: sa.Connection) -> list[str]:
            found = [row[0] for row in connection.exec_driver_sql("PRAGMA integrity_check")]
            problems = [] if found == ["ok"] else [f"SQLite finds damage: {one}" for one in found]
            lost = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            return problems + [f"a row of {row[0]} belongs to no visit" for row in lost[:10]]

        yield from self._read(work)

    def _sum_problems(self) -> Iterator[str]:
        tables = self._t
        expected = _minute_sums(self.visits(Scope(staff=True)), tables)
        for table, sums in expected.items():
            found = {}
            size = len(table.primary_key.columns)
            for row in self._rows(self._sa.select(table)):
                found[tuple(row[:size])] = tuple(row[size:])
            wrong = [key for key in {*sums, *found} if tuple(sums.get(key, ())) != found.get(key)]
            if wrong:
                yield (
                    f"{len(wrong)} rows of {table.name} are not the sums of the visits, the first "
                    f"is {min(wrong, key=str)}"
                )

    def checksum(self, scope: Scope | None = None) -> str:
        """SHA-256 over all visits in a canonical form; equal for equal visits in any database."""
        total = hashlib.sha256()
        for visit in self.visits(scope or Scope(staff=True)):
            text = json.dumps(asdict(visit), sort_keys=True, default=str)
            total.update(text.encode() + b"\n")
        return total.hexdigest()


def copy_visits(source: Store, target: Store, *, at_once: int = _ROWS_AT_ONCE) -> Added:
    """Copy all visits into another store; interrupted, it is simply begun again.

    Args:
        source: Read from.
        target: Added to; what is there already is left as it is.
        at_once: Visits a transaction.

    Returns:
        What became of them.
    """
    totals = np.zeros(3, np.int64)
    batch: list[Visit] = []
    for visit in source.visits(Scope(staff=True)):
        batch.append(visit)
        if len(batch) == at_once:
            totals += _as_counts(target.add(batch))
            batch = []
    totals += _as_counts(target.add(batch))
    return Added(*(int(count) for count in totals))


def _as_counts(added: Added) -> tuple[int, int, int]:
    return added.stored, added.known, added.expired


# --- rows -----------------------------------------------------------------------------------------


def _milliseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _moment(milliseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


def _visit_row(visit: Visit, ages: Sequence[str]) -> dict[str, Any]:
    band = visit.band
    return {
        "id": visit.id,
        "site": visit.site,
        "camera": visit.camera,
        "epoch": visit.epoch,
        "track": visit.track,
        "first_pts": visit.first_pts,
        "start_ms": _milliseconds(visit.start),
        "end_ms": _milliseconds(visit.end),
        "seen_ms": round(1000 * visit.seconds),
        "attentive_ms": round(1000 * visit.attentive_seconds),
        "band": -1 if band is None else band,
        "gender": visit.gender or "",
        "female": visit.female,
        **dict(zip(ages, visit.age or (None,) * len(ages), strict=True)),
        "frames": visit.frames,
        "quality": visit.quality,
        "abstained": visit.abstained,
        "model": visit.model,
        "staff": visit.staff,
    }


def _visit_of(
    row: Any, tables: Any, stays: Sequence[ZoneStay], crossings: Sequence[LineCrossing]
) -> Visit:
    ages = tuple(row[name] for name in tables.AGE_COLUMNS)
    return Visit(
        id=row["id"],
        site=row["site"],
        camera=row["camera"],
        epoch=row["epoch"],
        track=row["track"],
        first_pts=row["first_pts"],
        start=_moment(row["start_ms"]),
        end=_moment(row["end_ms"]),
        seconds=row["seen_ms"] / 1000,
        attentive_seconds=row["attentive_ms"] / 1000,
        age=None if row["abstained"] else ages,
        female=row["female"],
        gender=row["gender"] or None,
        frames=row["frames"],
        quality=row["quality"],
        model=row["model"],
        abstained=row["abstained"],
        staff=row["staff"],
        stays=tuple(stays),
        crossings=tuple(crossings),
    )


def _minute_sums(
    visits: Iterable[Visit], tables: Any
) -> dict[Any, dict[tuple[Any, ...], list[int]]]:
    """Rows of the minute tables by their keys, with what to add."""
    found: dict[Any, dict[tuple[Any, ...], list[int]]] = {
        tables.minutes: {},
        tables.minute_zones: {},
        tables.minute_lines: {},
    }

    def add(table: Any, key: tuple[Any, ...], *values: int) -> None:
        held = found[table].setdefault(key, [0] * len(values))
        held[:] = [a + b for a, b in zip(held, values, strict=True)]

    for visit in visits:
        minute = _milliseconds(visit.start) // MINUTE_MS * MINUTE_MS
        key = (visit.site, visit.camera, minute, visit.staff)
        band = tables.NO_BAND if visit.band is None else visit.band
        seen, attentive = round(1000 * visit.seconds), round(1000 * visit.attentive_seconds)
        add(tables.minutes, (*key, band, visit.gender or tables.NO_GENDER), 1, seen, attentive)
        for stay in visit.stays:
            add(tables.minute_zones, (*key, stay.zone), 1, round(1000 * stay.seconds))
        for crossing in visit.crossings:
            add(tables.minute_lines, (*key, crossing.line, crossing.direction), 1)
    return found


def _kept(
    rows: Sequence[Any], begin: int, end: int, minimum: int, tables: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is kept of one camera's day: rows of hours, and rows of bands by gender."""
    genders = (*LABELS, tables.NO_GENDER)
    bands = (*range(len(COUNTED_BANDS)), tables.NO_BAND)
    cells = np.zeros((len(bands), len(genders)), np.int64)
    # The hours of the day, counted from its midnight: 23 or 25 where the clocks change.
    hours = np.zeros((max(1, -(-(end - begin) // HOUR_MS)), 1), np.int64)
    for row in rows:
        cells[bands.index(row.band), genders.index(row.gender)] += row.visits
        hours[max(0, (row.minute_ms - begin) // HOUR_MS), 0] += row.visits
    table = suppress(cells, minimum)
    by_hour = suppress(hours, minimum)
    # Without the total of the day nothing may tell it: not the hours, and not another total.
    total_hidden = bool(table.hidden[-1, -1] or by_hour.hidden[-1, -1])
    kept = [
        {
            "band": band,
            "gender": gender,
            "visits": None if gone else int(count),
        }
        for band, counts, hidden in zip(
            (*bands, tables.ALL_BANDS), table.counts, table.hidden, strict=True
        )
        for gender, count, gone in zip((*genders, tables.ALL_GENDERS), counts, hidden, strict=True)
    ]
    held = [
        {
            "hour_ms": begin + number * HOUR_MS,
            "visits": None if by_hour.hidden[number, 0] or total_hidden else int(hours[number, 0]),
        }
        for number in range(len(hours))
    ]
    return held, kept


def _parts(values: Sequence[Made], size: int) -> Iterator[Sequence[Made]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


@contextmanager
def _unlocked() -> Iterator[None]:
    yield
