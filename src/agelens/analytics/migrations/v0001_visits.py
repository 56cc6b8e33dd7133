"""
The first form: visits, sums by minute, and what is kept after retention.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None

_AGES: Final = (
    *("age_0_2", "age_3_6", "age_7_9", "age_10_12", "age_13_17", "age_18_19", "age_20_24"),
    *("age_25_29", "age_30_34", "age_35_39", "age_40_44", "age_45_49", "age_50_54", "age_55_59"),
    *("age_60_64", "age_65_69", "age_70_74", "age_75_100"),
)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "visits",
        _text("id"),
        *(_text(name) for name in ("site", "camera", "epoch")),
        *(_count(name) for name in ("track", "first_pts", "start_ms", "end_ms")),
        *(_count(name) for name in ("seen_ms", "attentive_ms")),
        sa.Column("band", sa.SmallInteger, nullable=False),
        _text("gender"),
        sa.Column("female", sa.Double),
        *(sa.Column(name, sa.Double) for name in _AGES),
        sa.Column("frames", sa.Integer, nullable=False),
        sa.Column("quality", sa.Double, nullable=False),
        sa.Column("abstained", sa.Boolean, nullable=False),
        _text("model"),
        sa.Column("staff", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_visits"),
        sa.UniqueConstraint(
            *("site", "camera", "epoch", "track", "first_pts"),
            name="uq_visits_site_camera_epoch_track_first_pts",
        ),
    )
    op.create_index("ix_visits_start_ms", "visits", ["start_ms"])
    for name, columns, key in (
        ("stays", (_text("zone"), _count("stay_ms")), "zone"),
        (
            "crossings",
            (
                sa.Column("number", sa.Integer, nullable=False),
                *(_text("line"), _text("direction"), _count("at_ms")),
            ),
            "number",
        ),
    ):
        op.create_table(
            name,
            _text("visit_id"),
            *columns,
            sa.ForeignKeyConstraint(
                ["visit_id"], ["visits.id"], name=f"fk_{name}_visit_id", ondelete="CASCADE"
            ),
            sa.PrimaryKeyConstraint("visit_id", key, name=f"pk_{name}"),
        )
    _create_sums()
    op.create_table(
        "facts", _text("name"), _text("value"), sa.PrimaryKeyConstraint("name", name="pk_facts")
    )


def _create_sums() -> None:
    minute = ("site", "camera", "minute_ms", "staff")
    band = sa.Column("band", sa.SmallInteger, nullable=False)
    for name, extra, sums in (
        (
            "minutes",
            (band, _text("gender")),
            ("visits", "seen_ms", "attentive_ms"),
        ),
        ("minute_zones", (_text("zone"),), ("visits", "stay_ms")),
        ("minute_lines", (_text("line"), _text("direction")), ("crossings",)),
    ):
        op.create_table(
            name,
            *(_text("site"), _text("camera"), _count("minute_ms")),
            sa.Column("staff", sa.Boolean, nullable=False),
            *extra,
            *(_count(column) for column in sums),
            sa.PrimaryKeyConstraint(*minute, *(c.name for c in extra), name=f"pk_{name}"),
        )
        op.create_index(f"ix_{name}_minute_ms", name, ["minute_ms"])
    op.create_table(
        "watched",
        *(_text("site"), _text("camera"), _count("minute_ms"), _count("watched_ms")),
        sa.PrimaryKeyConstraint("site", "camera", "minute_ms", name="pk_watched"),
    )
    op.create_table(
        "kept_hours",
        *(_text("site"), _text("camera"), _count("hour_ms")),
        sa.Column("visits", sa.BigInteger),
        sa.PrimaryKeyConstraint("site", "camera", "hour_ms", name="pk_kept_hours"),
    )
    op.create_table(
        "kept_days",
        *(_text("site"), _text("camera"), _text("day")),
        sa.Column("band", sa.SmallInteger, nullable=False),
        _text("gender"),
        sa.Column("visits", sa.BigInteger),
        sa.PrimaryKeyConstraint("site", "camera", "day", "band", "gender", name="pk_kept_days"),
    )


def downgrade() -> None:
    """Drop everything: visits are lost."""
    for name in (
        *("facts", "kept_days", "kept_hours", "watched", "minute_lines", "minute_zones"),
        *("minutes", "crossings", "stays", "visits"),
    ):
        op.drop_table(name)
