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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from agelens.analytics import sums
from agelens.analytics.confusion import LABELS
from agelens.analytics.database import (
    WriterLock,
    import_sqlalchemy,
    insert_rows,
    migrate,
    postgres_engine,
    require_current,
    retried,
    sqlite_engine,
    translated,
)
from agelens.analytics.hours import day_start, local_day
from agelens.analytics.records import (
    DAY_MS,
    MINUTE_MS,
    QUARTER_MS,
    Added,
    KeptHealth,
    KeptLine,
    KeptZone,
    Position,
    Scope,
    Site,
    WatchedMinute,
    milliseconds,
    moment_of,
)
from agelens.analytics.retention import ALL_BANDS, ALL_GENDERS, first_moment, retire_day
from agelens.analytics.rows import NO_BAND, NO_GENDER, bands_of, canonical, rows_of, visit_of
from agelens.analytics.suppression import DEFAULT_MINIMUM
from agelens.errors import ArgumentError, StoreError
from agelens.video.health import HealthSample
from agelens.video.visit import COUNTED_BANDS, LineCrossing, Visit, ZoneStay

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = [
    "Added",
    "KeptHealth",
    "KeptLine",
    "KeptZone",
    "Position",
    "Scope",
    "Site",
    "Store",
    "WatchedMinute",
    "open_store",
]

Counts = NDArray[np.int64]
Made = TypeVar("Made")
Place = tuple[str, str]
"""Site and camera."""

_ROWS_AT_ONCE: Final = 2000
_KEYS_AT_ONCE: Final = 500
_SPARSE: Final = 4
_HORIZON: Final = "horizon_ms"
_MEASURED: Final = (
    *("frames_in", "dropped", "detections", "faces", "usable", "reconnects", "down_ms"),
    *("quality_sum", "age_sum"),
)
_LONGER: Final = "(excluded.frames_in, excluded.down_ms) > ({0}.frames_in, {0}.down_ms)"


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
        self._all = tables.metadata
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
        if path.is_dir():
            raise StoreError(f"{path}: a folder; give a file in it, as {path / 'visits.sqlite'}")
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

    def add(
        self,
        visits: Sequence[Visit] = (),
        *,
        watched: Sequence[WatchedMinute] = (),
        health: Sequence[HealthSample] = (),
        position: Position | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> Added:
        """Store what a camera gave; all of it is on disk when this returns, or none.

        Handed over again, the same changes nothing, so what was not acknowledged can be repeated.
        Many at a time (some thousands) are stored at a much greater speed than one by one.

        Args:
            visits: New ones, and any that may be there already.
            watched: How long cameras were seen; of several notes of one minute the longest holds.
            health: How well they saw; of several samples of one minute and epoch the longest holds.
            position: Where the source can be gone on with after this; the last one holds.
            facts: What else to remember, by names of your own; the last value holds.

        Returns:
            What became of the visits.

        Raises:
            ArgumentError: A sample is longer than its minute.
            StoreError: The disk is full, the server stays away, or the store was opened read-only.
        """
        rows = list({visit.key: visit for visit in visits}.values())
        longest = _longest(watched)
        samples = _checked_samples(health)
        if not (rows or longest or samples or position or facts):
            return Added(0, 0, 0)

        def work(connection: sa.Connection) -> Added:
            if (longest or samples) and not self.is_sqlite:
                # Quarters are made anew from their minutes: not by two writers at once.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(71023146)")
            horizon = int(self._fact(connection, _HORIZON) or -(1 << 62))
            added = self._add_visits(connection, rows, horizon)
            self._add_watched(connection, longest, horizon)
            self._add_health(connection, samples, horizon)
            if position is not None:
                self._set_position(connection, position)
            for name, value in (facts or {}).items():
                self._set_fact(connection, name, value)
            return added

        return self._write(work)

    def watch(self, site: str, camera: str, minute: datetime, seconds: float) -> None:
        """Note how much of a minute a camera was seen; see ``WatchedMinute``."""
        self.add(watched=[WatchedMinute(site, camera, minute, seconds)])

    def add_health(self, samples: Sequence[HealthSample]) -> None:
        """Store samples alone; see ``add``."""
        self.add(health=samples)

    def forget(self, site: str, camera: str, epoch: str) -> int:
        """Delete what one run of a source gave, so that it can be counted anew.

        Visits go with their sums, then health and position. Watched minutes stay: of several notes
        the longest holds.

        Args:
            site: Name of the place.
            camera: Name of the camera.
            epoch: Run of the source, as in ``Visit``.

        Returns:
            Visits deleted.
        """
        scope = Scope(sites=(site,), cameras=(camera,), staff=True)
        gone = [visit for visit in self.visits(scope) if visit.epoch == epoch]

        def work(connection: sa.Connection) -> int:
            found = self._known_keys(connection, gone)
            there = [visit for visit in gone if visit.key in found]
            sums.take_away(connection, self._all, sums.sums_of(there, bands_of(there)))
            for name in ("visits", "health", "positions"):
                table = self._all.tables[name]
                mine = (table.c.site == site, table.c.camera == camera, table.c.epoch == epoch)
                if name == "health":
                    minutes = connection.execute(self._sa.select(table.c.minute_ms).where(*mine))
                    rows = [(row.minute_ms, site, camera) for row in minutes]
                connection.execute(table.delete().where(*mine))
            self._renew_quarters(connection, sums.HEALTH, rows)
            return len(there)

        return self._write(work)

    def set_site(self, site: Site) -> None:
        """Note a site, or change what is known of it."""
        row = (site.name, site.timezone, site.title, site.note)
        self._write(lambda c: insert_rows(c, self._t.sites, [row], conflict="replace"))

    def _add_visits(
        self, connection: sa.Connection, visits: Sequence[Visit], horizon: int
    ) -> Added:
        fresh = [visit for visit in visits if milliseconds(visit.start) >= horizon]
        known = self._known_keys(connection, fresh)
        new = [visit for visit in fresh if visit.key not in known] if known else fresh
        bands = bands_of(new)
        rows = rows_of(new, bands)
        for table, found in (
            (self._t.visits, rows.visits),
            (self._t.stays, rows.stays),
            (self._t.crossings, rows.crossings),
        ):
            insert_rows(connection, table, found)
        sums.add_sums(connection, self._all, sums.sums_of(new, bands))
        self._add_cameras(connection, {(visit.site, visit.camera) for visit in new})
        return Added(len(new), len(fresh) - len(new), len(visits) - len(fresh))

    def _add_watched(
        self, connection: sa.Connection, longest: Mapping[sums.Key, int], horizon: int
    ) -> None:
        rows = [(*key, held) for key, held in sorted(longest.items()) if key[0] >= horizon]
        longer = "excluded.watched_ms > watched.watched_ms"
        insert_rows(connection, self._t.watched, rows, conflict="replace", where=longer)
        self._renew_quarters(connection, sums.WATCHED, rows)

    def _add_health(
        self, connection: sa.Connection, samples: Sequence[HealthSample], horizon: int
    ) -> None:
        rows = sorted(row for row in map(_health_row, samples) if row[0] >= horizon)
        longer = _LONGER.format("health")
        insert_rows(connection, self._t.health, rows, conflict="replace", where=longer)
        self._renew_quarters(connection, sums.HEALTH, rows)

    def _renew_quarters(
        self, connection: sa.Connection, ladder: sums.Ladder, rows: Sequence[Sequence[Any]]
    ) -> None:
        self._add_cameras(connection, {(row[1], row[2]) for row in rows})
        starts = sorted({row[0] - row[0] % QUARTER_MS for row in rows})
        for start, end in _runs(starts, QUARTER_MS):
            sums.renew(connection, self._all, ladder, start, end)

    def _add_cameras(self, connection: sa.Connection, places: set[Place]) -> None:
        insert_rows(connection, self._t.cameras, sorted(places), conflict="ignore")

    def _set_position(self, connection: sa.Connection, position: Position) -> None:
        where = position.site, position.camera, position.epoch
        state = json.dumps(dict(position.state))
        row = (*where, position.pts_us, state)
        insert_rows(connection, self._t.positions, [row], conflict="replace")

    def _known_keys(
        self, connection: sa.Connection, visits: Sequence[Visit]
    ) -> set[tuple[str, str, str, int, int]]:
        table = self._t.visits
        by_source: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
        for visit in visits:
            by_source.setdefault(visit.key[:3], []).append(visit.key[3:])
        known = set()
        for (site, camera, epoch), tracks in by_source.items():
            for part in _parts(sorted(tracks), _KEYS_AT_ONCE):
                first, last = part[0][0], part[-1][0]
                # One range of the index is much faster than its keys one by one.
                if last - first < _SPARSE * len(part):
                    condition = table.c.track.between(first, last)
                else:
                    condition = self._sa.tuple_(table.c.track, table.c.first_pts).in_(part)
                asked = self._sa.select(table.c.track, table.c.first_pts).where(
                    table.c.site == site,
                    table.c.camera == camera,
                    table.c.epoch == epoch,
                    condition,
                )
                known |= {(site, camera, epoch, *row) for row in connection.execute(asked)}
        return known

    def _fact(self, connection: sa.Connection, name: str) -> str | None:
        facts = self._t.facts
        found = connection.execute(self._sa.select(facts.c.value).where(facts.c.name == name))
        value = found.scalar_one_or_none()
        return None if value is None else str(value)

    def _set_fact(self, connection: sa.Connection, name: str, value: str) -> None:
        insert_rows(connection, self._t.facts, [(name, value)], conflict="replace")

    # --- reading ----------------------------------------------------------------------------------

    def visits(
        self, scope: Scope | None = None, *, after: tuple[datetime, str] | None = None
    ) -> Iterator[Visit]:
        """Visits by start, then id, read a few thousand at a time.

        Args:
            scope: Which; None takes all but staff.
            after: Start and id of a visit: only those behind it.
        """
        chosen = scope or Scope()
        last = None if after is None else (milliseconds(after[0]), after[1])
        while True:
            page = self._page(chosen, last)
            yield from page
            if len(page) < _ROWS_AT_ONCE:
                return
            last = milliseconds(page[-1].start), page[-1].id

    def _page(self, scope: Scope, after: tuple[int, str] | None) -> list[Visit]:
        table, alchemy = self._t.visits, self._sa
        asked = alchemy.select(table).where(*self._conditions(table, table.c.start_ms, scope))
        if after is not None:
            asked = asked.where(
                alchemy.tuple_(table.c.start_ms, table.c.id) > alchemy.tuple_(*after)
            )
        asked = asked.order_by(table.c.start_ms, table.c.id).limit(_ROWS_AT_ONCE)

        def work(connection: sa.Connection) -> list[Visit]:
            rows = connection.execute(asked).all()
            stays, crossings = self._parts_of(connection, [row[0] for row in rows])
            return [visit_of(row, stays, crossings) for row in rows]

        return self._read(work)

    def _parts_of(
        self, connection: sa.Connection, ids: Sequence[str]
    ) -> tuple[dict[str, list[ZoneStay]], dict[str, list[LineCrossing]]]:
        stays: dict[str, list[ZoneStay]] = {}
        crossings: dict[str, list[LineCrossing]] = {}
        for part in _parts(ids, _KEYS_AT_ONCE):
            table = self._t.stays
            asked = self._sa.select(table).where(table.c.visit_id.in_(part))
            for visit, zone, stay_ms in connection.execute(asked):
                stays.setdefault(visit, []).append(ZoneStay(zone, stay_ms / 1000))
            table = self._t.crossings
            asked = self._sa.select(table).where(table.c.visit_id.in_(part))
            for visit, _, line, direction, at in connection.execute(
                asked.order_by(table.c.visit_id, table.c.number)
            ):
                found = LineCrossing(line, direction, moment_of(at))
                crossings.setdefault(visit, []).append(found)
        return stays, crossings

    def _conditions(self, table: sa.Table, time: Any, scope: Scope) -> list[Any]:
        found = sums.scope_conditions(table, scope)
        if scope.start is not None:
            found.append(time >= milliseconds(scope.start))
        if scope.end is not None:
            found.append(time < milliseconds(scope.end))
        return found

    def _summed(
        self,
        ladder: sums.Ladder,
        scope: Scope | None,
        by: Sequence[str],
        added: Sequence[str],
        step_ms: int | None = None,
        only: Mapping[str, str] | None = None,
    ) -> list[tuple[Any, ...]]:
        return self._read(
            lambda connection: sums.read_sums(
                connection,
                self._all,
                ladder,
                scope or Scope(),
                by,
                added,
                step_ms=step_ms,
                only=only,
            )
        )

    def _rows(self, asked: Any) -> list[Any]:
        return self._read(lambda connection: list(connection.execute(asked)))

    def answers(self, scope: Scope | None = None) -> tuple[Counts, int]:
        """Visits by what the model said, for ``summary.correct_shares``.

        Returns:
            (B, 3) int64 by ``visit.COUNTED_BANDS`` and ``confusion.LABELS``; and the number of
            visits without an age or a gender.
        """
        counts, unknown = _no_answers(), 0
        for found, without in self.answers_by_camera(scope).values():
            counts += found
            unknown += without
        return counts, unknown

    def answers_by_camera(self, scope: Scope | None = None) -> dict[Place, tuple[Counts, int]]:
        """``answers`` for each site and camera that has any."""
        found: dict[Place, tuple[Counts, int]] = {}
        by = ("site", "camera", "band", "gender")
        for site, camera, band, gender, visits in self._summed(
            sums.ANSWERS, scope, by, ("visits",)
        ):
            counts, unknown = found.get((site, camera), (_no_answers(), 0))
            if band == NO_BAND or gender == NO_GENDER:
                unknown += visits
            else:
                counts[band, LABELS.index(gender)] += visits
            found[site, camera] = counts, unknown
        return found

    def bands_by_day(self, scope: Scope | None = None) -> list[tuple[str, str, datetime, int, int]]:
        """Site, camera, start of the day of UTC, place of the band, and visits with an age."""
        by = ("site", "camera", "band")
        return [
            (site, camera, moment_of(start), band, visits)
            for start, site, camera, band, visits in self._summed(
                sums.ANSWERS, scope, by, ("visits",), DAY_MS
            )
            if band != NO_BAND
        ]

    def quarters(self, scope: Scope | None = None) -> list[tuple[datetime, int, float, float]]:
        """Visits that began in each quarter of an hour.

        Returns:
            Start of the quarter (UTC), visits, seconds in view, seconds attentive; quarters without
            a visit are left out. See ``hours`` for the hours of the site.
        """
        return [
            (moment_of(start), visits, seen / 1000, attentive / 1000)
            for start, visits, seen, attentive in self._summed(
                sums.TOTALS, scope, (), ("visits", "seen_ms", "attentive_ms"), QUARTER_MS
            )
        ]

    def quarters_by_camera(
        self, scope: Scope | None = None
    ) -> list[tuple[str, str, datetime, int, float, float]]:
        """``quarters`` of each camera: site and camera come before the start."""
        added = ("visits", "seen_ms", "attentive_ms")
        at = _Moments()
        return [
            (site, camera, at[start], visits, seen / 1000, attentive / 1000)
            for start, site, camera, visits, seen, attentive in self._summed(
                sums.TOTALS, scope, ("site", "camera"), added, QUARTER_MS
            )
        ]

    def watched_quarters(
        self, scope: Scope | None = None
    ) -> list[tuple[str, str, datetime, float]]:
        """Seconds that each camera was seen in each quarter: site, camera, start (UTC), seconds."""
        found = self._summed(sums.WATCHED, scope, ("site", "camera"), ("watched_ms",), QUARTER_MS)
        found.sort(key=itemgetter(1, 2))
        at = _Moments()
        return [(site, camera, at[start], ms / 1000) for start, site, camera, ms in found]

    def watched_by_camera(self, scope: Scope | None = None) -> dict[Place, float]:
        """Seconds that each camera was seen in the whole scope."""
        rows = self._summed(sums.WATCHED, scope, ("site", "camera"), ("watched_ms",))
        return {(site, camera): watched / 1000 for site, camera, watched in rows}

    def zones(self, scope: Scope | None = None) -> list[tuple[str, str, str, int, float]]:
        """Site, camera, zone, visits, and seconds spent there."""
        by = ("site", "camera", "zone")
        rows = self._summed(sums.ZONES, scope, by, ("visits", "stay_ms"))
        return [(site, camera, zone, n, stay / 1000) for site, camera, zone, n, stay in rows]

    def zone_quarters(self, scope: Scope, zone: str) -> list[tuple[str, str, datetime, int, float]]:
        """Site, camera, quarter of an hour, visits of one zone that began in it, seconds there."""
        by = ("site", "camera", "zone")
        at = _Moments()
        return [
            (site, camera, at[start], visits, stay / 1000)
            for start, site, camera, _, visits, stay in self._summed(
                sums.ZONES, scope, by, ("visits", "stay_ms"), QUARTER_MS, only={"zone": zone}
            )
        ]

    def models(self, scope: Scope | None = None) -> tuple[str, ...]:
        """Which models made the estimates of the visits of a scope, by name."""
        table, alchemy = self._t.visits, self._sa
        conditions = self._conditions(table, table.c.start_ms, scope or Scope())
        found: list[str] = []
        last = ""
        # One step of the index for each model, however many visits there are.
        while True:
            after = alchemy.select(alchemy.func.min(table.c.model)).where(table.c.model > last)
            ((name,),) = self._rows(after)
            if name is None:
                return tuple(found)
            last = str(name)
            asked = alchemy.select(alchemy.literal(1)).where(table.c.model == last, *conditions)
            if self._rows(asked.limit(1)):
                found.append(last)

    def lines(self, scope: Scope | None = None) -> list[tuple[str, str, str, str, int]]:
        """Site, camera, line, direction, and crossings of the visits that began in the scope."""
        by = ("site", "camera", "line", "direction")
        return self._summed(sums.LINES, scope, by, ("crossings",))

    def health(
        self, scope: Scope | None = None, *, step: timedelta = timedelta(minutes=15)
    ) -> list[HealthSample]:
        """How well each camera saw, added up over equal times.

        Args:
            scope: Of it count the times, the sites and the cameras.
            step: Whole minutes; those of 15, 30 or 60 are read fastest. Steps begin at multiples of
                their length since 1970 in UTC.

        Returns:
            By time, site and camera; ``minute`` is the start of the step, ``epoch`` is empty.

        Raises:
            ArgumentError: The step is not of whole minutes.
        """
        step_ms = step // timedelta(milliseconds=1)
        if step_ms < MINUTE_MS or step_ms % MINUTE_MS:
            raise ArgumentError(f"a step of health is of whole minutes, got {step}")
        rows = self._summed(sums.HEALTH, scope, ("site", "camera"), _MEASURED, step_ms)
        return [
            HealthSample(site, camera, moment_of(start), **_measured(row))
            for start, site, camera, *row in rows
        ]

    def health_by_camera(self, scope: Scope | None = None) -> dict[Place, HealthSample]:
        """How well each camera saw over the whole scope; ``minute`` is its start."""
        begin = (scope.start if scope else None) or moment_of(0)
        rows = self._summed(sums.HEALTH, scope, ("site", "camera"), _MEASURED)
        return {
            (site, camera): HealthSample(site, camera, begin, **_measured(row))
            for site, camera, *row in rows
        }

    def span(self, scope: Scope | None = None) -> tuple[datetime, datetime] | None:
        """First quarter of an hour with visits, and the end of the last; None without visits."""
        table = self._t.quarters
        time, alchemy = table.c.quarter_ms, self._sa
        asked = alchemy.select(alchemy.func.min(time), alchemy.func.max(time)).where(
            *self._conditions(table, time, scope or Scope(staff=True))
        )
        ((first, last),) = self._rows(asked)
        return None if first is None else (moment_of(first), moment_of(last + QUARTER_MS))

    def cameras(self) -> list[Place]:
        """Site and camera of everything that the store ever held."""
        table = self._t.cameras
        return [(row.site, row.camera) for row in self._rows(self._ordered(table))]

    def sites(self) -> tuple[Site, ...]:
        """What ``set_site`` noted, by name."""
        return tuple(Site(*row) for row in self._rows(self._ordered(self._t.sites)))

    def position(self, site: str, camera: str, epoch: str) -> Position | None:
        """Where to go on with a source; None when nothing was noted."""
        table = self._t.positions
        asked = self._sa.select(table).where(
            table.c.site == site, table.c.camera == camera, table.c.epoch == epoch
        )
        found = [self._position_of(row) for row in self._rows(asked)]
        return found[0] if found else None

    def positions(self) -> list[Position]:
        """All of them."""
        return [self._position_of(row) for row in self._rows(self._ordered(self._t.positions))]

    def _position_of(self, row: Any) -> Position:
        return Position(row.site, row.camera, row.epoch, row.pts_us, json.loads(row.state))

    def _ordered(self, table: sa.Table) -> Any:
        return self._sa.select(table).order_by(*table.primary_key.columns)

    def kept_days(self) -> list[tuple[str, str, date, int | None, str | None, int | None]]:
        """What retention has kept of whole days.

        Returns:
            Site, camera, day, place of the band (None: all), gender label (None: all; "" for
            none), and visits (None where hidden).
        """
        table = self._t.kept_days
        rows = self._rows(self._ordered(table))
        return [
            (
                row.site,
                row.camera,
                date.fromisoformat(row.day),
                None if row.band == ALL_BANDS else row.band,
                None if row.gender == ALL_GENDERS else row.gender,
                row.visits,
            )
            for row in rows
        ]

    def kept_hours(self) -> list[tuple[str, str, datetime, int | None]]:
        """What retention has kept of hours: site, camera, start (UTC), visits (None if hidden)."""
        table = self._t.kept_hours
        rows = self._rows(self._ordered(table))
        return [(row.site, row.camera, moment_of(row.hour_ms), row.visits) for row in rows]

    def kept_zones(self) -> list[KeptZone]:
        """What retention has kept of zones."""
        return [
            KeptZone(site, camera, date.fromisoformat(day), zone, visits, _seconds(stay_ms))
            for site, camera, day, zone, visits, stay_ms in self._rows(
                self._ordered(self._t.kept_zones)
            )
        ]

    def kept_lines(self) -> list[KeptLine]:
        """What retention has kept of lines."""
        return [
            KeptLine(site, camera, date.fromisoformat(day), *rest)
            for site, camera, day, *rest in self._rows(self._ordered(self._t.kept_lines))
        ]

    def kept_health(self) -> list[KeptHealth]:
        """What retention has kept of how well cameras saw."""
        return [
            KeptHealth(
                row.site,
                row.camera,
                date.fromisoformat(row.day),
                has_faces=row.faces is not None,
                **_measured([getattr(row, name) or 0 for name in _MEASURED]),
            )
            for row in self._rows(self._ordered(self._t.kept_health))
        ]

    def fact(self, name: str) -> str | None:
        """What ``add`` was told to remember; None when it was not, "store_id" names the store."""
        return self._read(lambda connection: self._fact(connection, name))

    # --- copying ----------------------------------------------------------------------------------

    def rows(
        self, name: str, *, after: Sequence[Any] | None = None, count: int | None = None
    ) -> list[tuple[Any, ...]]:
        """Rows of one of the ``tables`` in the order of its key; for ``copying``.

        Args:
            name: Of the table.
            after: A key: only rows behind it.
            count: So many at most; None takes all.
        """
        table = self._all.tables[name]
        asked = self._ordered(table).limit(count)
        if after is not None:
            key = self._sa.tuple_(*table.primary_key.columns)
            asked = asked.where(key > self._sa.tuple_(*after))
        return [tuple(row) for row in self._rows(asked)]

    def take_rows(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Put in rows that ``rows`` gave, where their keys are not there yet; for ``copying``."""
        table = self._all.tables[name]
        self._write(lambda connection: insert_rows(connection, table, rows, conflict="ignore"))

    def horizon(self) -> datetime | None:
        """End of the last day that retention has deleted."""
        value = self.fact(_HORIZON)
        return None if value is None else moment_of(int(value))

    def raise_horizon(self, moment: datetime) -> None:
        """Refuse visits before a moment, as after retention; it is never lowered."""
        self._write(lambda connection: self._raise_horizon(connection, milliseconds(moment)))

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
            first = self._read(partial(first_moment, tables=self._all))
            if first is None or first >= milliseconds(end):
                break
            day = local_day(moment_of(first), zone)
            deleted += self._write(partial(self._retire, day=day, zone=zone, minimum=minimum))
        self._write(lambda connection: self._raise_horizon(connection, milliseconds(end)))
        self.checkpoint()
        return deleted

    def _retire(self, connection: sa.Connection, day: date, zone: ZoneInfo, minimum: int) -> int:
        deleted = retire_day(connection, self._all, day, zone, minimum)
        end = day_start(day + timedelta(days=1), zone)
        self._raise_horizon(connection, milliseconds(end))
        return deleted

    def _raise_horizon(self, connection: sa.Connection, moment: int) -> None:
        before = self._fact(connection, _HORIZON)
        if before is None or int(before) < moment:
            self._set_fact(connection, _HORIZON, str(moment))

    def checkpoint(self) -> None:
        """Write the journal back into the file: what was deleted is then in neither."""
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
        wrong: dict[str, list[sums.Key]] = {}
        moment = -(1 << 62)
        while (
            first := self._read(partial(sums.first_day, tables=self._all, after=moment))
        ) is not None:
            moment = first + DAY_MS
            scope = Scope(start=moment_of(first), end=moment_of(moment), staff=True)
            visits = list(self.visits(scope))
            expected = sums.sums_of(visits, bands_of(visits))
            for name in expected:
                found = self._read(
                    partial(sums.rows_within, tables=self._all, name=name, ends=(first, moment))
                )
                keys = {*expected[name], *found}
                bad = [key for key in keys if expected[name].get(key) != found.get(key)]
                wrong.setdefault(name, []).extend(bad)
        for name, bad in wrong.items():
            if bad:
                yield (
                    f"{len(bad)} rows of {name} are not the sums of the visits, the first is "
                    f"{min(bad, key=str)}"
                )

    def _days_with_rows(self) -> Iterator[int]:
        """Starts of the days of UTC that have visits or sums of them."""
        first = self._read(partial(sums.first_day, tables=self._all, after=None))
        while first is not None:
            yield first
            first = self._read(partial(sums.first_day, tables=self._all, after=first + DAY_MS))

    def checksum(self, scope: Scope | None = None) -> str:
        """SHA-256 over all visits in a canonical form; equal for equal visits in any database."""
        total = hashlib.sha256()
        for visit in self.visits(scope or Scope(staff=True)):
            total.update(canonical(visit).encode() + b"\n")
        return total.hexdigest()


# --- rows -----------------------------------------------------------------------------------------


class _Moments(dict[int, datetime]):
    """Moments by their milliseconds, each made once: rows of several cameras share them."""

    def __missing__(self, since_1970_ms: int) -> datetime:
        found = self[since_1970_ms] = moment_of(since_1970_ms)
        return found


def _no_answers() -> Counts:
    return np.zeros((len(COUNTED_BANDS), len(LABELS)), np.int64)


def _longest(watched: Sequence[WatchedMinute]) -> dict[sums.Key, int]:
    """Milliseconds of each minute, site and camera."""
    found: dict[sums.Key, int] = {}
    for one in watched:
        start = milliseconds(one.minute)
        key = (start - start % MINUTE_MS, one.site, one.camera)
        found[key] = max(found.get(key, 0), round(1000 * one.seconds))
    return found


def _checked_samples(samples: Sequence[HealthSample]) -> list[HealthSample]:
    """The longest sample of each minute and epoch."""
    found: dict[sums.Key, HealthSample] = {}
    for sample in samples:
        if sample.down_s > 60:
            raise ArgumentError(
                f"health of {sample.camera} at {sample.minute}: a minute cannot be down for "
                f"{sample.down_s:g} seconds; hand over one sample a minute"
            )
        key = (sample.minute, sample.site, sample.camera, sample.epoch)
        held = found.get(key)
        if held is None or (held.frames_in, held.down_s) < (sample.frames_in, sample.down_s):
            found[key] = sample
    return list(found.values())


def _health_row(sample: HealthSample) -> tuple[Any, ...]:
    return (
        milliseconds(sample.minute),
        sample.site,
        sample.camera,
        sample.epoch,
        sample.frames_in,
        sample.dropped,
        sample.detections,
        sample.faces,
        sample.usable,
        sample.reconnects,
        round(1000 * sample.down_s),
        sample.quality_sum,
        sample.age_sum,
    )


def health_sample(row: Sequence[Any]) -> HealthSample:
    """The sample of a row of the table health, with the columns in order."""
    start, site, camera, epoch, *values = row
    return HealthSample(site, camera, moment_of(start), epoch=epoch, **_measured(values))


def _measured(row: Sequence[Any]) -> dict[str, Any]:
    """Fields of a sample from the columns ``_MEASURED``."""
    found = dict(zip(_MEASURED, row, strict=True))
    found["down_s"] = found.pop("down_ms") / 1000
    return found


def _seconds(held_ms: int | None) -> float | None:
    return None if held_ms is None else held_ms / 1000


def _runs(starts: Sequence[int], length: int) -> Iterator[tuple[int, int]]:
    """Ends of the runs that sorted starts of equal lengths form."""
    first = 0
    for place, start in enumerate(starts):
        if place + 1 == len(starts) or starts[place + 1] > start + length:
            yield starts[first], start + length
            first = place + 1


def _parts(values: Sequence[Made], size: int) -> Iterator[Sequence[Made]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


@contextmanager
def _unlocked() -> Iterator[None]:
    yield
