"""
The tables of the store; times are milliseconds since 1970 in UTC, durations whole milliseconds.

    visits ── stays, crossings     one row a visit, until retention deletes it
    minutes, minute_zones, minute_lines      sums by minute of the visit's start
    watched                        how much of each minute a camera was seen
    kept_hours, kept_days          what stays after retention, small cells hidden
    facts                          what the store knows of itself
"""

from __future__ import annotations

from typing import Final

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

NO_BAND: Final = -1
"""``band`` of visits without an estimate."""
NO_GENDER: Final = ""
"""``gender`` of visits without one."""
ALL_BANDS: Final = -2
ALL_GENDERS: Final = "*"
"""Rows of sums in ``kept_days``."""
AGE_COLUMNS: Final = tuple(f"age_{low}_{high}" for low, high in VISIT_BANDS)


def _place() -> tuple[sa.Column[str], sa.Column[str]]:
    return (
        sa.Column("site", sa.Text, primary_key=True),
        sa.Column("camera", sa.Text, primary_key=True),
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
)

stays: Final = sa.Table(
    "stays",
    metadata,
    sa.Column(
        "visit_id", sa.Text, sa.ForeignKey("visits.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("zone", sa.Text, primary_key=True),
    sa.Column("stay_ms", sa.BigInteger, nullable=False),
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
)

minutes: Final = sa.Table(
    "minutes",
    metadata,
    *_place(),
    sa.Column("minute_ms", sa.BigInteger, primary_key=True, index=True),
    sa.Column("staff", sa.Boolean, primary_key=True),
    sa.Column("band", sa.SmallInteger, primary_key=True),
    sa.Column("gender", sa.Text, primary_key=True),
    sa.Column("visits", sa.BigInteger, nullable=False),
    sa.Column("seen_ms", sa.BigInteger, nullable=False),
    sa.Column("attentive_ms", sa.BigInteger, nullable=False),
)

minute_zones: Final = sa.Table(
    "minute_zones",
    metadata,
    *_place(),
    sa.Column("minute_ms", sa.BigInteger, primary_key=True, index=True),
    sa.Column("staff", sa.Boolean, primary_key=True),
    sa.Column("zone", sa.Text, primary_key=True),
    sa.Column("visits", sa.BigInteger, nullable=False),
    sa.Column("stay_ms", sa.BigInteger, nullable=False),
)

minute_lines: Final = sa.Table(
    "minute_lines",
    metadata,
    *_place(),
    sa.Column("minute_ms", sa.BigInteger, primary_key=True, index=True),
    sa.Column("staff", sa.Boolean, primary_key=True),
    sa.Column("line", sa.Text, primary_key=True),
    sa.Column("direction", sa.Text, primary_key=True),
    sa.Column("crossings", sa.BigInteger, nullable=False),
)

watched: Final = sa.Table(
    "watched",
    metadata,
    *_place(),
    sa.Column("minute_ms", sa.BigInteger, primary_key=True),
    sa.Column("watched_ms", sa.BigInteger, nullable=False),
)

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

facts: Final = sa.Table(
    "facts",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
