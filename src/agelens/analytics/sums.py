"""
Sums of visits by minute, quarter of an hour and day of UTC, and how a period is read from them.

Days are few, so a month is read in milliseconds; what a period cuts off of its first and last day
(those of the site are not those of UTC) is read by the minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agelens.analytics.database import insert_rows
from agelens.analytics.records import DAY_MS, MINUTE_MS, QUARTER_MS, Scope, milliseconds
from agelens.analytics.rows import NO_GENDER
from agelens.video.visit import Visit

if TYPE_CHECKING:
    import sqlalchemy as sa

Key = tuple[Any, ...]
Sums = dict[str, dict[Key, list[int]]]
"""By table: what to add, by the table's key."""


@dataclass(frozen=True)
class Ladder:
    """Two tables of the same sums.

    Attributes:
        fine: By minute.
        coarse: By the unit.
        unit_ms: How long one of its rows is.
        unit: Name of its column of time.
    """

    fine: str
    coarse: str
    unit_ms: int
    unit: str


ANSWERS: Final = Ladder("minutes", "days", DAY_MS, "day_ms")
TOTALS: Final = Ladder("minutes", "quarters", QUARTER_MS, "quarter_ms")
ZONES: Final = Ladder("minute_zones", "day_zones", DAY_MS, "day_ms")
LINES: Final = Ladder("minute_lines", "day_lines", DAY_MS, "day_ms")
WATCHED: Final = Ladder("watched", "watched_quarters", QUARTER_MS, "quarter_ms")
HEALTH: Final = Ladder("health", "health_quarters", QUARTER_MS, "quarter_ms")
OF_VISITS: Final = (ANSWERS, TOTALS, ZONES, LINES)
"""Those that are made from visits alone."""

_MINUTE: Final = "minute_ms"


# --- making ---------------------------------------------------------------------------------------


def sums_of(visits: Iterable[Visit], bands: Iterable[int]) -> Sums:
    """All sums of visits whose bands are known."""
    found: Sums = {ladder.fine: {} for ladder in OF_VISITS}
    answers, zones, lines = (found[one.fine] for one in (ANSWERS, ZONES, LINES))
    for visit, band in zip(visits, bands, strict=True):
        start = milliseconds(visit.start)
        key = (start - start % MINUTE_MS, visit.site, visit.camera, visit.staff)
        seen, attentive = round(1000 * visit.seconds), round(1000 * visit.attentive_seconds)
        _add(answers, (*key, band, visit.gender or NO_GENDER), (1, seen, attentive))
        for stay in visit.stays:
            _add(zones, (*key, stay.zone), (1, round(1000 * stay.seconds)))
        for one in visit.crossings:
            _add(lines, (*key, one.line, one.direction), (1,))
    for ladder in OF_VISITS:
        coarse = found.setdefault(ladder.coarse, {})
        size = 4 if ladder is TOTALS else None
        for key, values in found[ladder.fine].items():
            _add(coarse, (key[0] - key[0] % ladder.unit_ms, *key[1:size]), values)
    return found


def _add(sums: dict[Key, list[Any]], key: Key, values: Sequence[int | float]) -> None:
    held = sums.get(key)
    if held is None:
        sums[key] = list(values)
    else:
        for place, value in enumerate(values):
            held[place] += value


def add_sums(connection: sa.Connection, tables: sa.MetaData, sums: Sums) -> None:
    """Add to what the tables hold."""
    for name, found in sums.items():
        # In one order everywhere, so that two writers cannot wait for each other.
        rows = [(*key, *values) for key, values in sorted(found.items())]
        insert_rows(connection, tables.tables[name], rows, conflict="add")


def take_away(connection: sa.Connection, tables: sa.MetaData, sums: Sums) -> None:
    """Take from what the tables hold what ``add_sums`` added; a row that counts nothing goes."""
    lessened = {
        name: {key: [-value for value in values] for key, values in found.items()}
        for name, found in sums.items()
    }
    add_sums(connection, tables, lessened)
    for name in lessened:
        table = tables.tables[name]
        count = table.c.crossings if "crossings" in table.c else table.c.visits
        connection.execute(table.delete().where(count == 0))


def renew(
    connection: sa.Connection, tables: sa.MetaData, ladder: Ladder, start: int, end: int
) -> None:
    """Make coarse rows anew from the fine ones.

    Args:
        connection: In a transaction.
        tables: Of the store.
        ladder: Which sums.
        start: First moment of the first row.
        end: First moment after the last one.
    """
    import sqlalchemy as sa

    fine, coarse = tables.tables[ladder.fine], tables.tables[ladder.coarse]
    time, unit = fine.c[_MINUTE], coarse.c[ladder.unit]
    keys = [one.name for one in coarse.primary_key.columns][1:]
    sums = [one.name for one in coarse.columns if not one.primary_key]
    connection.execute(coarse.delete().where(unit >= start, unit < end))
    beginning = (time - time % ladder.unit_ms).label(ladder.unit)
    kept = [fine.c[name] for name in keys]
    summed = (
        sa.select(beginning, *kept, *(sa.func.sum(fine.c[name]) for name in sums))
        .where(time >= start, time < end)
        .group_by(beginning, *kept)
    )
    connection.execute(coarse.insert().from_select([ladder.unit, *keys, *sums], summed))


# --- checking -------------------------------------------------------------------------------------


def first_day(connection: sa.Connection, tables: sa.MetaData, after: int | None) -> int | None:
    """Start of the first day of UTC, from a moment on, that has a visit or a sum; None without."""
    import sqlalchemy as sa

    columns = [tables.tables["visits"].c.start_ms]
    for ladder in OF_VISITS:
        columns.append(tables.tables[ladder.fine].c[_MINUTE])
        columns.append(tables.tables[ladder.coarse].c[ladder.unit])
    found = [
        connection.execute(
            sa.select(sa.func.min(one)).where(*_within(after, None)(one))
        ).scalar_one_or_none()
        for one in columns
    ]
    first = min((int(value) for value in found if value is not None), default=None)
    return None if first is None else first - first % DAY_MS


def rows_within(
    connection: sa.Connection, tables: sa.MetaData, name: str, ends: tuple[int, int]
) -> dict[Key, list[int]]:
    """What a table holds of a time, by its key."""
    import sqlalchemy as sa

    table = tables.tables[name]
    keys = list(table.primary_key.columns)
    asked = sa.select(table).where(keys[0] >= ends[0], keys[0] < ends[1])
    return {tuple(row[: len(keys)]): list(row[len(keys) :]) for row in connection.execute(asked)}


# --- reading --------------------------------------------------------------------------------------


def read_sums(
    connection: sa.Connection,
    tables: sa.MetaData,
    ladder: Ladder,
    scope: Scope,
    by: Sequence[str],
    sums: Sequence[str],
    *,
    step_ms: int | None = None,
    only: Mapping[str, str] | None = None,
) -> list[tuple[Any, ...]]:
    """Sums of a scope.

    Args:
        connection: To read on.
        tables: Of the store.
        ladder: Which sums.
        scope: What is meant; it counts whole minutes.
        by: Columns that rows are told apart by.
        sums: Columns to be summed.
        step_ms: Tell rows apart by the beginning of such a time too; it comes first.
        only: Values that columns must have.

    Returns:
        By key in order: the step, what they are told apart by, the sums.
    """
    import sqlalchemy as sa

    parts: list[list[tuple[Any, ...]]] = []
    width = len(by) + (step_ms is not None)
    for table, time, condition in _pieces(tables, ladder, scope, step_ms):
        column = table.c[time]
        keys: list[Any] = [table.c[name] for name in by]
        if step_ms is not None:
            is_whole = time == ladder.unit and step_ms == ladder.unit_ms
            start = column if is_whole else column - column % step_ms
            keys = [start.label("step"), *keys]
        # PostgreSQL sums whole numbers as decimals.
        added = (sa.cast(sa.func.sum(table.c[name]), table.c[name].type) for name in sums)
        asked = (
            sa.select(*keys, *added)
            .where(
                *condition(column),
                *scope_conditions(table, scope),
                *(table.c[name] == value for name, value in (only or {}).items()),
            )
            .group_by(*keys)
            .order_by(*keys)
        )
        parts.append([tuple(row) for row in connection.execute(asked)])
    if not by and step_ms is None:
        # Without anything to group by, no rows give one row of nulls.
        parts = [[row for row in part if row[0] is not None] for part in parts]
    if len(parts) == 1:
        return parts[0]
    found: dict[Key, list[Any]] = {}
    for part in parts:
        for row in part:
            _add(found, row[:width], row[width:])
    return [(*key, *values) for key, values in sorted(found.items())]


def scope_conditions(table: sa.Table, scope: Scope) -> list[Any]:
    """Conditions on everything but time."""
    found: list[Any] = []
    if scope.sites:
        found.append(table.c.site.in_(scope.sites))
    if scope.cameras:
        found.append(table.c.camera.in_(scope.cameras))
    if not scope.staff and "staff" in table.c:
        found.append(table.c.staff.is_(False))
    return found


def _pieces(
    tables: sa.MetaData, ladder: Ladder, scope: Scope, step_ms: int | None
) -> Iterator[tuple[sa.Table, str, Callable[[Any], list[Any]]]]:
    """Tables that a period is read from, the name of their time, and which of it."""
    start = None if scope.start is None else _up(milliseconds(scope.start), MINUTE_MS)
    end = None if scope.end is None else _up(milliseconds(scope.end), MINUTE_MS)
    fine, coarse = tables.tables[ladder.fine], tables.tables[ladder.coarse]
    first = None if start is None else _up(start, ladder.unit_ms)
    last = None if end is None else end - end % ladder.unit_ms
    is_finer = step_ms is not None and step_ms % ladder.unit_ms
    if is_finer or (first is not None and last is not None and first >= last):
        yield fine, _MINUTE, _within(start, end)
        return
    yield coarse, ladder.unit, _within(first, last)
    if start != first:
        yield fine, _MINUTE, _within(start, first)
    if end != last:
        yield fine, _MINUTE, _within(last, end)


def _up(moment: int, unit: int) -> int:
    return -(-moment // unit) * unit


def _within(start: int | None, end: int | None) -> Callable[[Any], list[Any]]:
    def conditions(column: Any) -> list[Any]:
        found = [] if start is None else [column >= start]
        return found if end is None else [*found, column < end]

    return conditions
