"""
One store into another, as from a file to a server: everything, and on from where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np

from agelens.analytics.records import Scope, WatchedMinute, milliseconds, moment_of
from agelens.analytics.store import Added, Store, health_sample
from agelens.video.visit import Visit

_ROWS_AT_ONCE: Final = 4000
_AS_THEY_ARE: Final = (
    *("cameras", "watched_quarters"),
    *("kept_hours", "kept_days", "kept_zones", "kept_lines", "kept_health"),
)
"""Tables whose rows are taken over where the target has none of that key."""


def copy_visits(source: Store, target: Store, *, at_once: int = _ROWS_AT_ONCE) -> Added:
    """Copy a store: visits, watched minutes, health, positions, sites, and what retention kept.

    An interrupted copy, begun again, goes on where it stopped. What the target has already is left
    as it is. Both may be in use; what comes to the source meanwhile is copied the next time.

    Args:
        source: Read from.
        target: Added to.
        at_once: Rows a transaction.

    Returns:
        What became of the visits, those of an interrupted copy not counted again.
    """
    # Taken first: what retention deletes from the source meanwhile is in neither part otherwise.
    horizon = source.horizon()
    for name in _AS_THEY_ARE:
        target.take_rows(name, source.rows(name))
    known = {site.name for site in target.sites()}
    for site in source.sites():
        if site.name not in known:
            target.set_site(site)
    progress = _Progress(source, target)
    added = _copy_visits(source, target, progress, at_once)
    for rows in _pages(source, "watched", progress, at_once):
        notes = [WatchedMinute(a, b, moment_of(at), ms / 1000) for at, a, b, ms in rows]
        target.add(watched=notes, facts=progress.facts("watched", rows[-1][:3]))
    for rows in _pages(source, "health", progress, at_once):
        samples = [health_sample(row) for row in rows]
        target.add(health=samples, facts=progress.facts("health", rows[-1][:4]))
    for position in source.positions():
        if target.position(position.site, position.camera, position.epoch) is None:
            target.add(position=position)
    if horizon is not None:
        target.raise_horizon(horizon)
    progress.forget()
    return added


def copy_fact(source: Store) -> str:
    """Name of the fact in a target that says how far this store was copied; "{}" begins anew."""
    return f"copied {source.fact('store_id')}"


class _Progress:
    """How far each table was copied, kept in the target with the rows themselves."""

    def __init__(self, source: Store, target: Store) -> None:
        self._name = copy_fact(source)
        self._target = target
        self._places: dict[str, Any] = json.loads(target.fact(self._name) or "{}")

    def of(self, table: str) -> Any:
        """Key of the last row that was copied; None at the beginning."""
        return self._places.get(table)

    def facts(self, table: str, key: Sequence[Any]) -> dict[str, str]:
        """What the target is to remember with the rows up to a key."""
        self._places[table] = list(key)
        return {self._name: json.dumps(self._places)}

    def forget(self) -> None:
        """The copy is complete: the next one looks at everything again."""
        self._target.add(facts={self._name: "{}"})


def _copy_visits(source: Store, target: Store, progress: _Progress, at_once: int) -> Added:
    last = progress.of("visits")
    after = None if last is None else (moment_of(last[0]), str(last[1]))
    totals = np.zeros(3, np.int64)
    for batch in _batches(source.visits(Scope(staff=True), after=after), at_once):
        key = milliseconds(batch[-1].start), batch[-1].id
        added = target.add(batch, facts=progress.facts("visits", key))
        totals += (added.stored, added.known, added.expired)
    return Added(*(int(count) for count in totals))


def _batches(visits: Iterator[Visit], size: int) -> Iterator[list[Visit]]:
    while batch := list(islice(visits, size)):
        yield batch


def _pages(
    source: Store, name: str, progress: _Progress, size: int
) -> Iterator[list[tuple[Any, ...]]]:
    """Rows of a table by its key, from where the last copy got to."""
    while rows := source.rows(name, after=progress.of(name), count=size):
        yield rows
        if len(rows) < size:
            return
