"""
Who came when: quarters of an hour of each camera, in lots, by the clocks of its site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agelens.analytics.hours import day_start, local_day
from agelens.analytics.lots import Block, Lots, blocks
from agelens.analytics.period import SiteClock
from agelens.analytics.records import Scope, milliseconds
from agelens.analytics.store import Store
from agelens.errors import ArgumentError

Place = tuple[str, str]
"""Site and camera."""
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Which part of the store is meant.

    Attributes:
        sites: Names of sites; empty for all.
        cameras: Names of cameras; empty for all.
        zone: Name of a zone: visitors are then those who stayed in it, without profile and lines.
    """

    sites: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    zone: str | None = None


@dataclass(frozen=True, eq=False)
class Premises:
    """The cameras that are meant, the clocks of their sites, and how counts leave.

    Attributes:
        store: Where the visits are.
        selection: As asked for.
        places: Site and camera of each.
        clocks: Of each site.
        lots: How counts leave.
        horizon: Moment before which retention has deleted; None where it has not.
    """

    store: Store
    selection: Selection
    places: tuple[Place, ...]
    clocks: Mapping[str, SiteClock]
    lots: Lots
    horizon: datetime | None

    def groups(self) -> Iterator[tuple[SiteClock, tuple[str, ...]]]:
        """Sites that share a time zone, and its clock."""
        sites = sorted(self.clocks, key=lambda site: (self.clocks[site].zone.key, site))
        for _, found in groupby(sites, key=lambda site: self.clocks[site].zone.key):
            names = tuple(found)
            yield self.clocks[names[0]], names

    def scope(self, clock: SiteClock, sites: tuple[str, ...], first: date, last: date) -> Scope:
        """Whole days of the sites of a zone."""
        start = day_start(first, clock.zone)
        end = day_start(last + timedelta(days=1), clock.zone)
        return Scope(start=start, end=end, sites=sites, cameras=self.selection.cameras)

    def deleted_before(self, clock: SiteClock) -> date | None:
        """First day of a zone that retention has left whole."""
        if self.horizon is None:
            return None
        day = local_day(self.horizon, clock.zone)
        return day if day_start(day, clock.zone) >= self.horizon else day + timedelta(days=1)

    def is_deleted(self, day: date) -> bool:
        """Retention has deleted the day at some site."""
        deleted = (self.deleted_before(clock) for clock, _ in self.groups())
        return any(since is not None and day < since for since in deleted)


@dataclass(frozen=True, eq=False)
class Stretch:
    """Part of some running totals that begin together.

    Attributes:
        block: How long they last, and which part it is.
        key: What is counted: site, camera, and what else tells it from others.
        before: (N,) the totals at the beginning of the part.
        after: (N,) the totals at its end.
    """

    block: Block
    key: tuple[Any, ...]
    before: Whole
    after: Whole


Read = Callable[[Scope], Mapping[tuple[Any, ...], Whole]]
"""Sums of a scope, as many for each key."""
Kept = Mapping[date, Mapping[tuple[Any, ...], Whole]]
"""The same as retention has kept them, by day."""


def stretches(
    found: Premises, first: date, last: date, read: Read, kept: Kept
) -> Iterator[Stretch]:
    """Running totals over whole days of each site.

    Args:
        found: The cameras; keys of others are left out.
        first: First day.
        last: Last day.
        read: Where the sums come from.
        kept: Where those of deleted days come from.
    """
    for clock, sites in found.groups():
        deleted = found.deleted_before(clock)
        for block in blocks(first, last, deleted):
            before: Mapping[tuple[Any, ...], Whole] = {}
            if block.begins < block.first:
                yesterday = block.first - timedelta(days=1)
                before = read(found.scope(clock, sites, block.begins, yesterday))
            after = dict(read(found.scope(clock, sites, block.begins, block.last)))
            if deleted is not None and block.first < deleted:
                held = kept.get(block.first, {})
                after |= {key: sums for key, sums in held.items() if key[0] in sites}
            for key, sums in after.items():
                if key[:2] in found.places:
                    yield Stretch(block, key, before.get(key, np.zeros_like(sums)), sums)


def premises(store: Store, selection: Selection, default: SiteClock, minimum: int) -> Premises:
    """Find the cameras that are meant.

    Args:
        store: Where the visits are.
        selection: What is asked for.
        default: Clock of the sites whose zone the store does not know.
        minimum: Fewest visitors that are shown.

    Raises:
        ArgumentError: The store knows no such site or camera.
    """
    known = store.cameras()
    for what, wanted, there in (
        ("site", selection.sites, {site for site, _ in known}),
        ("camera", selection.cameras, {camera for _, camera in known}),
    ):
        for name in wanted:
            if name not in there:
                raise ArgumentError(
                    f"the store knows no {what} {name!r}; it has: {', '.join(sorted(there))}"
                )
    places = tuple(
        (site, camera)
        for site, camera in known
        if (not selection.sites or site in selection.sites)
        and (not selection.cameras or camera in selection.cameras)
    )
    zones = {site.name: site.zone for site in store.sites()}
    clocks: dict[str, SiteClock] = {}
    by_zone = {default.zone.key: default}
    for site, _ in places:
        zone = zones.get(site, default.zone)
        clocks[site] = by_zone.setdefault(zone.key, SiteClock(zone))
    # Drawn at random when the store was begun, and shown nowhere.
    lots = Lots((store.fact("store_id") or "").encode(), minimum)
    return Premises(store, selection, places, clocks, lots, store.horizon())


@dataclass(frozen=True, eq=False)
class Presence:
    """Quarters of an hour with visitors; all arrays are (N,).

    Attributes:
        place: Number of the place among the premises'.
        day: By the site's calendar, as of ``date.toordinal``.
        hour: 0..23, by the site's clocks.
        lots: Visitors who came, in lots.
        visits: Visitors who came; to divide sums of time by, not to be shown.
        seen_s: Seconds in view (or in the zone), of all of them together.
        attentive_s: Seconds turned to the screen.
        total: Number of the running total that the quarter is of.
        hidden_hours: Hours of days before the horizon whose visitors are hidden.
    """

    place: Whole
    day: Whole
    hour: Whole
    lots: Whole
    visits: Whole
    seen_s: Floats
    attentive_s: Floats
    total: Whole
    hidden_hours: int

    def on(self, first: date, last: date) -> Mask:
        """(N,) which quarters lie in the days."""
        return (self.day >= first.toordinal()) & (self.day <= last.toordinal())

    def summed(self, mask: Mask) -> int:
        """Visitors of some quarters, in lots."""
        return int(self.lots[mask].sum())


_Row = tuple[str, str, datetime, int, float, float]


def read_presence(found: Premises, first: date, last: date) -> Presence:
    """Read the visitors of whole days of each site.

    The running totals are read from their beginnings, up to a month before the first day.
    """
    parts: list[Sequence[Whole]] = []
    hidden = 0
    total = 0
    for clock, sites in found.groups():
        kept, gone = _kept_rows(found, clock, sites, first, last)
        hidden += gone
        rows = [*kept, *_stored_rows(found, clock, sites, first, last)]
        for place, held in _by_place(rows):
            arrays = _in_lots(found, clock, place, held, first, last, total)
            total = int(arrays[-1].max(initial=total - 1)) + 1
            parts.append(arrays)
    empty = [np.zeros(0, np.int64)] * len(fields(Presence))
    numbers, day, hour, lots, visits, seen_ms, attentive_ms, totals = (
        np.concatenate(column) for column in zip(*(parts or [empty[:-1]]), strict=True)
    )
    return Presence(
        *(numbers, day, hour, lots, visits),
        seen_s=seen_ms / 1000,
        attentive_s=attentive_ms / 1000,
        total=totals,
        hidden_hours=hidden,
    )


def _stored_rows(
    found: Premises, clock: SiteClock, sites: tuple[str, ...], first: date, last: date
) -> Iterable[_Row]:
    begins = next(blocks(first, last, found.deleted_before(clock))).begins
    scope = found.scope(clock, sites, begins, last)
    zone = found.selection.zone
    if zone is None:
        return found.store.quarters_by_camera(scope)
    return [(*row, 0.0) for row in found.store.zone_quarters(scope, zone)]


def _kept_rows(
    found: Premises, clock: SiteClock, sites: tuple[str, ...], first: date, last: date
) -> tuple[list[_Row], int]:
    """What retention has kept of the hours, and how many of them are hidden."""
    until = found.deleted_before(clock)
    if until is None or first >= until or found.selection.zone is not None:
        return [], 0
    start, end = day_start(first, clock.zone), day_start(min(last, until), clock.zone)
    rows: list[_Row] = []
    hidden = 0
    for site, camera, at, visits in found.store.kept_hours():
        if site in sites and (site, camera) in found.places and start <= at < end:
            hidden += visits is None
            if visits:
                rows.append((site, camera, at, visits, 0.0, 0.0))
    return rows, hidden


def _by_place(rows: Iterable[_Row]) -> Iterator[tuple[Place, list[_Row]]]:
    ordered = sorted(rows, key=itemgetter(0, 1, 2))
    for place, held in groupby(ordered, key=itemgetter(0, 1)):
        yield place, list(held)


def _in_lots(
    found: Premises,
    clock: SiteClock,
    place: Place,
    rows: Sequence[_Row],
    first: date,
    last: date,
    total: int,
) -> tuple[Whole, ...]:
    """Columns of a ``Presence``, times in milliseconds; rows before the first day are used only."""
    moments = np.array([milliseconds(row[2]) for row in rows], np.int64)
    day, hour = clock.shown(moments)
    visits = np.array([row[3] for row in rows], np.int64)
    lots = np.zeros_like(visits)
    totals = np.zeros_like(visits)
    deleted = found.deleted_before(clock)
    for number, block in enumerate(blocks(first, last, deleted), start=total):
        mask = (day >= block.begins.toordinal()) & (day <= block.last.toordinal())
        lots[mask] = found.lots.steps(visits[mask], *visitors_total(found, place, block))
        totals[mask] = number
    times = np.array([[row[4], row[5]] for row in rows]).reshape(-1, 2)
    wanted = (day >= first.toordinal()) & (day <= last.toordinal())
    columns = (
        np.full(len(rows), found.places.index(place)), day, hour, lots, visits,
        np.rint(1000 * times[:, 0]).astype(np.int64), np.rint(1000 * times[:, 1]).astype(np.int64),
        totals,
    )  # fmt: skip
    return tuple(column[wanted] for column in columns)


def visitors_total(found: Premises, place: Place, block: Block) -> tuple[str, ...]:
    """Name of the running total of the visitors that are meant at one camera."""
    zone = found.selection.zone
    return zone_total(place, zone, block) if zone else ("visitors", *place, block.name)


def zone_total(place: Place, zone: str, block: Block) -> tuple[str, ...]:
    """Name of the running total of the visitors of a zone."""
    return "zone", *place, zone, block.name
