"""
The one writer of a store: takes what cameras hand over, and keeps it while a server is away.

    submit(batch) -> a bounded queue -> the store
                                     -> a spool file while a PostgreSQL server is away
                                        -> the store, when it is back

The spool is a store itself, in SQLite on this computer: it holds what a store holds, and nothing
else. What is in it survives a crash, and is brought into the server by the next run at the latest.
When neither takes anything (the disk is full), the queue fills up and the cameras wait: files stop
where they are, streams drop frames, and their minutes are not counted as watched.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Final, Self
from zoneinfo import ZoneInfo

from agelens.analytics.camera_run import Batch
from agelens.analytics.copying import copy_fact, copy_visits
from agelens.analytics.database import is_full, is_passing
from agelens.analytics.hours import local_day
from agelens.analytics.store import Store, open_store
from agelens.analytics.suppression import DEFAULT_MINIMUM
from agelens.errors import StoreError
from agelens.identifiers import utc_now

_MOST_WAITING: Final = 20_000
"""Rows that wait in memory at most, some 40 MB."""
_GATHER_S: Final = 0.2
"""Time in which what cameras hand over goes into one transaction."""
_RETRY_S: Final = 1.0
_PATIENCE_S: Final = 600.0
"""Time for which a store that refuses to write, other than a server that is away, is tried."""


class StoreWriter:
    """Writes to one store from a thread of its own; a context manager, thread-safe.

    Attributes:
        store: Where everything ends up.
        error: Why nothing more can be stored; None as long as it can.
        message: What is the matter now, for people; empty when nothing is.
        expired: Visits that were refused because they are older than retention keeps.
    """

    def __init__(
        self,
        store: Store,
        *,
        spool: Path | None = None,
        retention_days: int | None = None,
        minimum: int = DEFAULT_MINIMUM,
        zone: ZoneInfo,
    ) -> None:
        """Prepare a writer; what an earlier run left in the spool is brought into the store.

        Args:
            store: Open for writing.
            spool: File for what has to wait while a PostgreSQL server is away; None: it waits in
                memory.
            retention_days: Delete older visits each day; None: never.
            minimum: Fewest visitors of a cell that retention keeps.
            zone: Time zone of the site, for its days.

        Raises:
            StoreError: The spool cannot be read, or not be brought into the store.
        """
        self.store = store
        self.error: StoreError | None = None
        self.message = ""
        self.expired = 0
        self._spool_path = None if store.is_sqlite else spool
        self._spool: Store | None = None
        self._days, self._minimum, self._zone = retention_days, minimum, zone
        self._retained: date | None = None
        self._waiting: deque[Batch] = deque()
        self._rows = 0
        self._is_writing = False
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)
        if self._spool_path is not None and self._spool_path.exists():
            self._spool = open_store(self._spool_path)
            try:
                self._empty_spool()
            except BaseException:
                self._spool.close()
                raise

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_spooling(self) -> bool:
        """The server is away, and what comes waits in the spool."""
        return self._spool is not None

    def settled(self, timeout_s: float) -> bool:
        """Wait until all that was handed over is in the store itself, or nothing more can be.

        Args:
            timeout_s: Longest time to wait.

        Returns:
            Whether it came to that.
        """

        def is_over() -> bool:
            at_rest = not self._waiting and not self._is_writing and self._spool is None
            return at_rest or self.error is not None

        with self._changed:
            return self._changed.wait_for(is_over, timeout_s)

    def submit(self, batch: Batch) -> None:
        """Hand over a batch; waits while too much waits already.

        Raises:
            StoreError: Nothing more can be stored.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._rows < _MOST_WAITING or self.error is not None)
            if self.error is not None:
                raise self.error
            self._waiting.append(batch)
            self._rows += batch.size
            self._changed.notify_all()

    def close(self) -> None:
        """Store what waits, then let go; what a server that is away would get is in the spool."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    # --- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._retain()
            while True:
                batches = self._take()
                for batch in joined(batches):
                    self._keep(batch)
                if self._closing.is_set() and not batches:
                    return
                self._bring_back()
                self._rest()
                self._retain()
        except StoreError as error:
            self._fail(error)
        except Exception as error:
            self._fail(StoreError(f"{self.store.where}: {type(error).__name__}: {error}"))

    def _fail(self, error: StoreError) -> None:
        with self._changed:
            self.error = error
            self.message = str(error)
            self._changed.notify_all()

    def _rest(self) -> None:
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()

    def _take(self) -> list[Batch]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing.is_set(), _RETRY_S)
        self._closing.wait(_GATHER_S)
        with self._changed:
            batches = list(self._waiting)
            self._waiting.clear()
            self._rows = 0
            self._is_writing = True
            self._changed.notify_all()
        return batches

    def _keep(self, batch: Batch) -> None:
        """Store a batch, however long it takes.

        Raises:
            StoreError: It cannot be, for a reason that does not pass.
        """
        until = time.monotonic() + _PATIENCE_S
        while True:
            target = self._spool or self.store
            try:
                added = target.add(
                    batch.visits,
                    watched=batch.watched,
                    health=batch.health,
                    position=batch.position,
                )
            except StoreError as error:
                if target is self.store and is_away(error) and self._begin_spool(error):
                    continue
                if not may_pass(error) or (time.monotonic() > until and not is_away(error)):
                    raise
                self.message = str(error)
                if self._closing.wait(_RETRY_S):
                    raise
                continue
            self.expired += added.expired
            if target is self.store:
                self.message = ""
            return

    def _begin_spool(self, error: StoreError) -> bool:
        if self._spool_path is None:
            return False
        with contextlib.suppress(StoreError):
            self._spool = open_store(self._spool_path)
            self.message = f"{error}; visits wait in {self._spool_path}"
        return self._spool is not None

    def _bring_back(self) -> None:
        if self._spool is not None:
            try:
                self._empty_spool()
            except StoreError as error:
                if not may_pass(error):
                    raise
                self.message = f"{error}; visits wait in {self._spool_path}"

    def _empty_spool(self) -> None:
        assert self._spool is not None
        assert self._spool_path is not None
        # A visit that ended late may lie before the place where a copy was interrupted.
        self.store.add(facts={copy_fact(self._spool): "{}"})
        copy_visits(self._spool, self.store)
        for position in self._spool.positions():
            self.store.add(position=position)
        self._spool.close()
        self._spool = None
        remove_store(self._spool_path)
        self.message = ""

    def _retain(self) -> None:
        today = local_day(utc_now(), self._zone)
        if self._days is None or self._retained == today or self.is_spooling:
            return
        try:
            self.store.retain(self._days, self._zone, minimum=self._minimum)
        except StoreError as error:
            if not may_pass(error):
                raise
            return
        self._retained = today


def joined(batches: Iterable[Batch]) -> list[Batch]:
    """The same in fewer: one of each camera's file, or of all that has no position."""
    found: dict[tuple[str, str, str] | None, list[Batch]] = {}
    for batch in batches:
        position = batch.position
        key = None if position is None else (position.site, position.camera, position.epoch)
        found.setdefault(key, []).append(batch)
    # A position may only be stored with or after the visits before it.
    order = sorted(found, key=lambda key: key is not None)
    return [
        Batch(
            visits=tuple(visit for batch in found[key] for visit in batch.visits),
            watched=tuple(one for batch in found[key] for one in batch.watched),
            health=tuple(one for batch in found[key] for one in batch.health),
            position=found[key][-1].position,
        )
        for key in order
    ]


def is_away(error: StoreError) -> bool:
    """Whether a server cannot be reached at present."""
    cause = error.__cause__
    return isinstance(cause, Exception) and is_passing(cause)


def may_pass(error: StoreError) -> bool:
    """Whether the same may succeed later."""
    cause = error.__cause__
    return is_away(error) or (
        isinstance(cause, Exception) and (is_full(cause) or "locked" in str(cause).lower())
    )


def remove_store(path: Path) -> None:
    """Delete a SQLite store that nobody has open, with what lies beside it."""
    # The journal goes first: left over, it would be taken for that of a new file.
    for ending in ("-wal", "-shm", "-journal", "", ".lock"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


__all__ = ["StoreWriter", "is_away", "joined", "may_pass", "remove_store"]
