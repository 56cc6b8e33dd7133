"""
The tables of the store; times are milliseconds since 1970 in UTC, durations whole milliseconds.

    visits ── stays, crossings     one row a visit, until retention deletes it
    minutes, minute_zones, minute_lines      sums by minute of the visit's start
    quarters                       all visits of a quarter of an hour
    days, day_zones, day_lines     sums by day of UTC, so that a month is read in milliseconds
    watched, watched_quarters      how much of each minute (quarter) a camera was seen
    health, health_quarters        how well it saw
    kept_hours, kept_days, kept_zones, kept_lines, kept_health      what retention leaves
    sites, cameras                 which there are
    positions                      how far each source was watched
    facts                          what the store knows of itself
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from agelens.video.visit import VISIT_BANDS

metadata: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

AGE_COLUMNS: Final = tuple(f"age_{low}_{high}" for low, high in VISIT_BANDS)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=True)


def _place() -> tuple[sa.Column[str], sa.Column[str]]:
    return _text("site"), _text("camera")


def _sums(*names: str) -> tuple[sa.Column[int], ...]:
    return tuple(sa.Column(name, sa.BigInteger, nullable=False) for name in names)


def _summed(
    name: str, time: str, keys: Sequence[sa.Column[Any]], sums: Sequence[sa.Column[Any]]
) -> sa.Table:
    """A table of sums, in the file ordered by time: what is asked for is a period."""
    return sa.Table(
        name,
        metadata,
        sa.Column(time, sa.BigInteger, primary_key=True, autoincrement=False),
        *_place(),
        *keys,
        *sums,
        sqlite_with_rowid=False,
    )


def _staff() -> sa.Column[bool]:
    return sa.Column("staff", sa.Boolean, primary_key=True)


def _answer() -> tuple[sa.Column[Any], ...]:
    band = sa.Column("band", sa.SmallInteger, primary_key=True, autoincrement=False)
    return _staff(), band, _text("gender")


def _measured() -> tuple[sa.Column[Any], ...]:
    whole = _sums("frames_in", "dropped", "detections", "faces", "usable", "reconnects", "down_ms")
    return *whole, *(
        sa.Column(name, sa.Double, nullable=False) for name in ("quality_sum", "age_sum")
    )


visits: Final = sa.Table(
    "visits",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("site", sa.Text, nullable=False),
    sa.Column("camera", sa.Text, nullable=False),
    sa.Column("epoch", sa.Text, nullable=False),
    sa.Column("track", sa.BigInteger, nullable=False),
    sa.Column("first_pts", sa.BigInteger, nullable=False),
    sa.Column("start_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("end_ms", sa.BigInteger, nullable=False),
    sa.Column("seen_ms", sa.BigInteger, nullable=False),
    sa.Column("attentive_ms", sa.BigInteger, nullable=False),
    sa.Column("band", sa.SmallInteger, nullable=False),
    sa.Column("gender", sa.Text, nullable=False),
    sa.Column("female", sa.Double),
    *(sa.Column(name, sa.Double) for name in AGE_COLUMNS),
    sa.Column("frames", sa.Integer, nullable=False),
    sa.Column("quality", sa.Double, nullable=False),
    sa.Column("abstained", sa.Boolean, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("staff", sa.Boolean, nullable=False),
    sa.UniqueConstraint("site", "camera", "epoch", "track", "first_pts"),
    sa.Index(None, "model", "start_ms"),
)

stays: Final = sa.Table(
    "stays",
    metadata,
    sa.Column(
        "visit_id", sa.Text, sa.ForeignKey("visits.id", ondelete="CASCADE"), primary_key=True
    ),
    _text("zone"),
    *_sums("stay_ms"),
    sqlite_with_rowid=False,
)

crossings: Final = sa.Table(
    "crossings",
    metadata,
    sa.Column(
        "visit_id", sa.Text, sa.ForeignKey("visits.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("direction", sa.Text, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

minutes: Final = _summed(
    "minutes", "minute_ms", _answer(), _sums("visits", "seen_ms", "attentive_ms")
)
minute_zones: Final = _summed(
    "minute_zones", "minute_ms", (_staff(), _text("zone")), _sums("visits", "stay_ms")
)
minute_lines: Final = _summed(
    "minute_lines", "minute_ms", (_staff(), _text("line"), _text("direction")), _sums("crossings")
)
quarters: Final = _summed(
    "quarters", "quarter_ms", (_staff(),), _sums("visits", "seen_ms", "attentive_ms")
)
days: Final = _summed("days", "day_ms", _answer(), _sums("visits", "seen_ms", "attentive_ms"))
day_zones: Final = _summed(
    "day_zones", "day_ms", (_staff(), _text("zone")), _sums("visits", "stay_ms")
)
day_lines: Final = _summed(
    "day_lines", "day_ms", (_staff(), _text("line"), _text("direction")), _sums("crossings")
)

watched: Final = _summed("watched", "minute_ms", (), _sums("watched_ms"))
watched_quarters: Final = _summed("watched_quarters", "quarter_ms", (), _sums("watched_ms"))
health: Final = _summed("health", "minute_ms", (_text("epoch"),), _measured())
health_quarters: Final = _summed("health_quarters", "quarter_ms", (), _measured())

kept_hours: Final = sa.Table(
    "kept_hours",
    metadata,
    *_place(),
    sa.Column("hour_ms", sa.BigInteger, primary_key=True),
    sa.Column("visits", sa.BigInteger),
)

kept_days: Final = sa.Table(
    "kept_days",
    metadata,
    *_place(),
    sa.Column("day", sa.Text, primary_key=True),
    sa.Column("band", sa.SmallInteger, primary_key=True),
    sa.Column("gender", sa.Text, primary_key=True),
    sa.Column("visits", sa.BigInteger),
)

kept_zones: Final = sa.Table(
    "kept_zones",
    metadata,
    *_place(),
    _text("day"),
    _text("zone"),
    sa.Column("visits", sa.BigInteger),
    sa.Column("stay_ms", sa.BigInteger),
)

kept_lines: Final = sa.Table(
    "kept_lines",
    metadata,
    *_place(),
    _text("day"),
    _text("line"),
    _text("direction"),
    sa.Column("crossings", sa.BigInteger),
)

kept_health: Final = sa.Table(
    "kept_health",
    metadata,
    *_place(),
    _text("day"),
    *_sums("frames_in", "dropped", "detections", "reconnects", "down_ms"),
    *(sa.Column(name, sa.BigInteger) for name in ("faces", "usable")),
    *(sa.Column(name, sa.Double) for name in ("quality_sum", "age_sum")),
)

sites: Final = sa.Table(
    "sites",
    metadata,
    _text("name"),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("timezone", "title", "note")),
)

cameras: Final = sa.Table("cameras", metadata, *_place())

positions: Final = sa.Table(
    "positions",
    metadata,
    *_place(),
    _text("epoch"),
    *_sums("pts_us"),
    sa.Column("state", sa.Text, nullable=False),
)

facts: Final = sa.Table(
    "facts",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
