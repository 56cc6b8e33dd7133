"""
The second form: health, positions and sites; sums by quarter and day; tables ordered by time.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"

_SUMS: Final = ("visits", "seen_ms", "attentive_ms")
_ANSWER: Final = ("site", "camera", "staff", "band", "gender")
_ZONE: Final = ("site", "camera", "staff", "zone")
_LINE: Final = ("site", "camera", "staff", "line", "direction")
_PLACE: Final = ("site", "camera")
_MEASURED: Final = (
    *("frames_in", "dropped", "detections", "faces", "usable", "reconnects", "down_ms"),
    *("quality_sum", "age_sum"),
)
_FACES: Final = ("faces", "usable", "quality_sum", "age_sum")
_TYPES: Final[dict[str, Any]] = {
    **dict.fromkeys(("quality_sum", "age_sum"), sa.Double),
    **dict.fromkeys(("staff",), sa.Boolean),
    **dict.fromkeys(("band",), sa.SmallInteger),
    **dict.fromkeys(("number",), sa.Integer),
    **dict.fromkeys(("site", "camera", "gender", "zone", "line", "direction", "epoch"), sa.Text),
    **dict.fromkeys(("visit_id", "name", "timezone", "title", "note", "state", "day"), sa.Text),
}
_QUARTER_MS: Final = 900_000
_DAY_MS: Final = 86_400_000


def _create(
    name: str,
    keys: Sequence[str],
    rest: Sequence[str],
    *,
    hidden: Sequence[str] = (),
    **options: Any,
) -> None:
    """A table of columns known by their names; only hidden ones may be null."""
    op.create_table(
        name,
        *(sa.Column(key, _TYPES.get(key, sa.BigInteger), nullable=False) for key in keys),
        *(sa.Column(one, _TYPES.get(one, sa.BigInteger), nullable=one in hidden) for one in rest),
        sa.PrimaryKeyConstraint(*keys, name=f"pk_{name}"),
        *(
            sa.ForeignKeyConstraint(
                ["visit_id"], ["visits.id"], name=f"fk_{name}_visit_id", ondelete="CASCADE"
            )
            for key in keys
            if key == "visit_id"
        ),
        **options,
    )


def _rebuild(name: str, keys: Sequence[str], rest: Sequence[str]) -> None:
    """The same rows in a table that SQLite keeps in the order of its key, without a second copy."""
    columns = ", ".join((*keys, *rest))
    op.execute(f"CREATE TABLE moved_{name} AS SELECT {columns} FROM {name}")
    op.drop_table(name)
    _create(name, keys, rest, sqlite_with_rowid=False)
    op.execute(f"INSERT INTO {name} ({columns}) SELECT {columns} FROM moved_{name}")
    op.drop_table(f"moved_{name}")


def _sum_up(source: str, target: str, unit: tuple[str, int], keys: Sequence[str]) -> None:
    """Fill sums over longer times from those by minute."""
    column, length = unit
    sums = {"minute_zones": ("visits", "stay_ms"), "minute_lines": ("crossings",)}
    names = {"watched": ("watched_ms",), **sums}.get(source, _SUMS)
    _create(target, (column, *keys), names, sqlite_with_rowid=False)
    start = f"minute_ms - minute_ms % {length}"
    listed = ", ".join(keys)
    added = ", ".join(f"SUM({name})" for name in names)
    op.execute(
        f"INSERT INTO {target} ({column}, {listed}, {', '.join(names)}) "
        f"SELECT {start}, {listed}, {added} FROM {source} GROUP BY {start}, {listed}"
    )


def upgrade() -> None:
    """Make the new tables, and fill what follows from the old ones."""
    _rebuild("stays", ("visit_id", "zone"), ("stay_ms",))
    _rebuild("crossings", ("visit_id", "number"), ("line", "direction", "at_ms"))
    _rebuild("minutes", ("minute_ms", *_ANSWER), _SUMS)
    _rebuild("minute_zones", ("minute_ms", *_ZONE), ("visits", "stay_ms"))
    _rebuild("minute_lines", ("minute_ms", *_LINE), ("crossings",))
    _rebuild("watched", ("minute_ms", *_PLACE), ("watched_ms",))
    quarter, day = ("quarter_ms", _QUARTER_MS), ("day_ms", _DAY_MS)
    _sum_up("minutes", "quarters", quarter, ("site", "camera", "staff"))
    _sum_up("minutes", "days", day, _ANSWER)
    _sum_up("minute_zones", "day_zones", day, _ZONE)
    _sum_up("minute_lines", "day_lines", day, _LINE)
    _sum_up("watched", "watched_quarters", quarter, _PLACE)
    _create("health", ("minute_ms", *_PLACE, "epoch"), _MEASURED, sqlite_with_rowid=False)
    _create("health_quarters", ("quarter_ms", *_PLACE), _MEASURED, sqlite_with_rowid=False)
    zone, line = ("visits", "stay_ms"), ("crossings",)
    _create("kept_zones", (*_PLACE, "day", "zone"), zone, hidden=zone)
    _create("kept_lines", (*_PLACE, "day", "line", "direction"), line, hidden=line)
    _create("kept_health", (*_PLACE, "day"), _MEASURED, hidden=_FACES)
    _create("sites", ("name",), ("timezone", "title", "note"))
    _create("cameras", _PLACE, ())
    op.execute(
        "INSERT INTO cameras (site, camera) SELECT site, camera FROM minutes "
        "UNION SELECT site, camera FROM watched UNION SELECT site, camera FROM kept_days"
    )
    _create("positions", (*_PLACE, "epoch"), ("pts_us", "state"))
    op.create_index("ix_visits_model_start_ms", "visits", ["model", "start_ms"])
    facts = sa.table("facts", sa.column("name"), sa.column("value"))
    op.execute(facts.insert().values(name="store_id", value=str(uuid.uuid4())))


def downgrade() -> None:
    """Drop what is new: health, positions, sites and kept zones and lines are lost."""
    _drop(("positions", "cameras", "sites", "kept_health", "kept_lines", "kept_zones"))
    _drop(("health_quarters", "health", "watched_quarters"))
    _drop(("day_lines", "day_zones", "days", "quarters"))
    op.drop_index("ix_visits_model_start_ms", "visits")
    op.execute("DELETE FROM facts WHERE name = 'store_id'")
    for name in ("minutes", "minute_zones", "minute_lines"):
        op.create_index(f"ix_{name}_minute_ms", name, ["minute_ms"])


def _drop(names: Iterable[str]) -> None:
    for name in names:
        op.drop_table(name)
