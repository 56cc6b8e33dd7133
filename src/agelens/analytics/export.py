"""
Visits as a file of another program: Parquet or CSV, one row a visit, written whole or not at all.

These are rows of single people, for whoever may see such rows; what leaves the house are sums with
small cells hidden (``suppression``).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from agelens.analytics.store import Scope, Store
from agelens.data.schema import import_pyarrow
from agelens.errors import ArgumentError
from agelens.video.visit import VISIT_BANDS, Visit

ExportFormat = Literal["parquet", "csv"]

_AGES: Final = tuple(f"age_{low}_{high}" for low, high in VISIT_BANDS)
_GROUP_ROWS: Final = 10_000
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")

_TEXTS: Final = ("id", "site", "camera", "epoch", "gender", "model", "stays", "crossings")
_MOMENTS: Final = ("start", "end")
_WHOLE: Final = ("track", "first_pts", "frames")
_NUMBERS: Final = ("seconds", "attentive_seconds", "female", "quality", *_AGES)
_FLAGS: Final = ("abstained", "staff")
COLUMNS: Final = (
    *("id", "site", "camera", "epoch", "track", "first_pts", "start", "end", "seconds"),
    *("attentive_seconds", "gender", "female", *_AGES, "frames", "quality", "abstained", "staff"),
    *("model", "stays", "crossings"),
)
"""Columns of an export; ``stays`` is "zone=seconds; ..." and ``crossings`` "line=in@time; ..."."""


def export_visits(
    store: Store, path: Path, *, format: ExportFormat | None = None, scope: Scope | None = None
) -> int:
    """Write visits to a file, by start.

    Times are UTC. In CSV a text that a spreadsheet would run as a formula gets a leading "'".

    Args:
        store: Where they are.
        path: The file; it is replaced when it exists.
        format: None goes by the name's ending.
        scope: Which visits; None takes all but staff.

    Returns:
        Visits written.

    Raises:
        ArgumentError: The format is not one of these.
        MissingExtra: pyarrow is not installed (Parquet).
    """
    chosen = format or path.suffix.lstrip(".").lower()
    writers: dict[str, Callable[[Path, Iterable[dict[str, Any]]], int]] = {
        "parquet": _write_parquet,
        "csv": _write_csv,
    }
    if chosen not in writers:
        raise ArgumentError(f"{path}: visits are exported as parquet or csv, got {chosen!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _put_in_place(path) as partial:
        return writers[chosen](partial, (_row(visit) for visit in store.visits(scope)))


@contextmanager
def _put_in_place(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _row(visit: Visit) -> dict[str, Any]:
    found = {name: getattr(visit, name) for name in COLUMNS if name not in _AGES}
    found |= dict(zip(_AGES, visit.age or (None,) * len(_AGES), strict=True))
    found["stays"] = "; ".join(f"{stay.zone}={stay.seconds:g}" for stay in visit.stays)
    found["crossings"] = "; ".join(
        f"{one.line}={one.direction}@{one.at.isoformat(timespec='milliseconds')}"
        for one in visit.crossings
    )
    return found


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            for name in _MOMENTS:
                row[name] = row[name].isoformat(timespec="milliseconds")
            for name in _TEXTS:
                row[name] = None if row[name] is None else plain_cell(row[name])
            writer.writerow(row)
            count += 1
    return count


def plain_cell(text: str) -> str:
    """A text that a spreadsheet does not run as a formula."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    pa = import_pyarrow("eval")
    import pyarrow.parquet as pq

    kinds = {
        **dict.fromkeys(_TEXTS, pa.string()),
        **dict.fromkeys(_MOMENTS, pa.timestamp("ms", tz="UTC")),
        **dict.fromkeys(_WHOLE, pa.int64()),
        **dict.fromkeys(_NUMBERS, pa.float64()),
        **dict.fromkeys(_FLAGS, pa.bool_()),
    }
    schema = pa.schema([(name, kinds[name]) for name in COLUMNS])
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            count += 1
            if len(batch) == _GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))
    return count
