"""What the store keeps besides visits, what retention leaves of it, and copies of it all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from agelens.analytics.copying import copy_visits
from agelens.analytics.database import sqlite_driver
from agelens.analytics.store import (
    Added,
    KeptLine,
    Position,
    Scope,
    Site,
    Store,
    WatchedMinute,
    open_store,
)
from agelens.errors import ArgumentError, StoreError
from agelens.video.health import HealthSample
from agelens.video.visit import LineCrossing, Visit, ZoneStay
from analytics.people import NOON, crowd, visit

BERLIN = ZoneInfo("Europe/Berlin")
ALL = Scope(staff=True)


def sample(minute: int, **changes: object) -> HealthSample:
    """Health of one minute after noon."""
    fields: dict[str, object] = {
        "frames_in": 1500,
        "dropped": 900,
        "detections": 480,
        "faces": 20 + minute,
        "usable": 10,
        "quality_sum": 12.5,
        "age_sum": 350.25,
        "epoch": "run-1",
    }
    at = NOON + timedelta(minutes=minute)
    return HealthSample("museum", "door-1", at, **{**fields, **changes})  # type: ignore[arg-type]


def everything(store: Store) -> None:
    """A store with something of everything."""
    store.set_site(Site("museum", "Europe/Berlin", "Museum", "Open from ten"))
    for day in range(3):
        at, run = NOON + timedelta(days=day), f"run-{day}"
        made = [replace(one, epoch=run) for one in crowd(200, start=at, every_s=60, seed=day)]
        position = Position("museum", "door-1", run, 1234, {"next": 7})
        minutes = [at + timedelta(minutes=n) for n in range(40)]
        notes = [WatchedMinute("museum", "door-1", minute, 60) for minute in minutes]
        health = [replace(sample(n, epoch=run), minute=at) for n, at in enumerate(minutes)]
        store.add(made, watched=notes, health=health, position=position)


# --- health, positions, sites ---------------------------------------------------------------------


def test_health_is_summed_by_quarters_and_by_minutes(store: Store) -> None:
    store.add_health([sample(n) for n in range(20)])

    quarters = store.health()

    assert [one.minute for one in quarters] == [NOON, NOON + timedelta(minutes=15)]
    assert [one.faces for one in quarters] == [sum(range(20, 35)), sum(range(35, 40))]
    assert quarters[0].quality_sum == pytest.approx(15 * 12.5)
    whole = store.health_by_camera(Scope(start=NOON, end=NOON + timedelta(minutes=17)))
    assert whole["museum", "door-1"].faces == sum(range(20, 37))
    minutes = store.health(step=timedelta(minutes=1))
    assert [replace(one, epoch="run-1") for one in minutes] == [sample(n) for n in range(20)]
    assert [one.frames_in for one in store.health(step=timedelta(hours=1))] == [30_000]


def test_a_repeated_minute_changes_nothing_and_the_longest_of_one_run_holds(store: Store) -> None:
    store.add_health([sample(0)])
    store.add_health([sample(0)])
    store.add_health([sample(0, frames_in=700, faces=3, usable=1)])
    store.add_health([sample(1, frames_in=700, faces=3, usable=1)])
    store.add_health([sample(1)])

    assert store.health(step=timedelta(minutes=1))[0].faces == 20
    assert store.health()[0].faces == 20 + 21


def test_runs_that_share_a_minute_add_up(store: Store) -> None:
    store.add_health([sample(0), sample(0, epoch="run-2")])

    assert store.health()[0].faces == 40


def test_a_minute_that_was_down_for_longer_than_it_lasts_is_refused(store: Store) -> None:
    with pytest.raises(ArgumentError, match="61 seconds"):
        store.add_health([sample(0, down_s=61.0)])


def test_a_position_is_stored_with_its_visits_or_not_at_all(store: Store) -> None:
    first = visit(1)
    early, late = (
        Position("museum", "door-1", "run-1", pts, {"next track": pts, "open": [1, 2]})
        for pts in (40_000, 80_000)
    )
    store.add([first], position=early)

    with pytest.raises(StoreError):
        store.add([visit(2, id=first.id)], position=late)

    assert store.position("museum", "door-1", "run-1") == early
    store.add([visit(2)], position=late)
    assert store.position("museum", "door-1", "run-1") == late
    assert store.position("museum", "door-1", "run-2") is None
    assert store.positions() == [late]


def test_a_site_is_noted_and_changed(store: Store) -> None:
    store.set_site(Site("museum", "Europe/Berlin"))
    store.set_site(Site("museum", "Europe/Paris", "Musée", "moved"))
    store.set_site(Site("baths", "Asia/Kolkata"))

    baths, museum = store.sites()

    assert museum == Site("museum", "Europe/Paris", "Musée", "moved")
    assert baths.zone == ZoneInfo("Asia/Kolkata")
    with pytest.raises(ArgumentError, match="time zone"):
        Site("x", "Europe/Atlantis")


def test_cameras_are_known_from_whatever_they_gave(store: Store) -> None:
    store.add([visit(1, camera="a")])
    store.watch("museum", "b", NOON, 30)
    store.add_health([replace(sample(0), camera="c")])

    assert store.cameras() == [("museum", "a"), ("museum", "b"), ("museum", "c")]


def test_the_span_is_that_of_the_visits(store: Store) -> None:
    assert store.span() is None
    store.add([visit(1, at=NOON + timedelta(minutes=7)), visit(2, at=NOON + timedelta(hours=2))])

    assert store.span() == (NOON, NOON + timedelta(hours=2, minutes=15))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (NOON.replace(hour=0), NOON.replace(hour=0) + timedelta(days=3)),
        (NOON - timedelta(hours=13, minutes=30), NOON + timedelta(days=2, minutes=7)),
        (NOON + timedelta(minutes=1), NOON + timedelta(minutes=11)),
        (None, NOON + timedelta(days=1, minutes=3)),
        (NOON + timedelta(minutes=3, seconds=30), None),
    ],
    ids=["whole days", "half hours", "minutes", "no start", "no end"],
)
def test_sums_of_any_period_are_those_of_its_visits(
    store: Store, start: datetime | None, end: datetime | None
) -> None:
    everything(store)
    # Sums count whole minutes: one that has begun before the start is left out.
    first = None if start is None else start + timedelta(seconds=-start.second % 60)
    meant = [
        one
        for one in store.visits(ALL)
        if (first is None or one.start >= first) and (end is None or one.start < end)
    ]
    scope = Scope(start=start, end=end, staff=True)

    counts, unknown = store.answers(scope)

    assert counts.sum() + unknown == len(meant) > 5
    by_camera = store.answers_by_camera(scope)
    for place, (held, without) in by_camera.items():
        assert held.sum() + without == sum((one.site, one.camera) == place for one in meant)
    assert sum(n for _, n, _, _ in store.quarters(scope)) == len(meant)
    assert sum(n for _, _, _, n, _, _ in store.quarters_by_camera(scope)) == len(meant)
    assert sum(n for *_, n, _ in store.zones(scope)) == sum(len(one.stays) for one in meant)
    assert sum(n for *_, n in store.lines(scope)) == sum(len(one.crossings) for one in meant)


def test_watched_seconds_of_a_period(store: Store) -> None:
    everything(store)
    scope = Scope(start=NOON + timedelta(minutes=5), end=NOON + timedelta(minutes=25))

    assert store.watched_by_camera(scope) == {("museum", "door-1"): 20 * 60.0}
    assert sum(seconds for *_, seconds in store.watched_quarters(scope)) == 20 * 60.0


def test_the_check_finds_days_that_are_not_the_sums_of_the_visits(store: Store) -> None:
    store.add(crowd(30))
    with store._writer.begin() as connection:
        connection.exec_driver_sql("DELETE FROM day_zones WHERE zone = 'screen'")

    (problem,) = store.check()

    assert "day_zones" in problem


def test_a_large_batch_is_stored_and_a_large_wrong_one_is_not(store: Store) -> None:
    made = crowd(1200)
    store.add(made[:600])
    wrong = [*made[600:1199], replace(made[1199], id=made[0].id)]

    with pytest.raises(StoreError):
        store.add(wrong)

    assert store.add(made) == Added(stored=600, known=600, expired=0)
    assert store.check() == ()


# --- retention ------------------------------------------------------------------------------------


def people(count: int, **changes: Any) -> list[Visit]:
    """Visits of one camera within an hour, none of them staff."""
    return [visit(2 * n, at=NOON + timedelta(seconds=20 * n), **changes) for n in range(count)]


def test_zones_and_lines_are_kept_by_day_and_small_ones_are_hidden(store: Store) -> None:
    door = people(40, camera="door", stays=(ZoneStay("all", 2.0),), crossings=())
    few = [
        visit(
            1001 + 2 * n,
            camera="door",
            stays=(ZoneStay("few", 1.0),),
            crossings=(LineCrossing("side", "in", NOON),),
        )
        for n in range(3)
    ]
    many = people(
        12,
        camera="hall",
        stays=(ZoneStay("hall", 5.0),),
        crossings=(LineCrossing("main", "in", NOON), LineCrossing("main", "in", NOON)),
    )
    store.add([*door, *few, *many])

    store.retain(0, BERLIN, minimum=5, now=NOON + timedelta(days=1))

    kept = {(one.camera, one.zone): (one.visits, one.seconds) for one in store.kept_zones()}
    # All but three were in "all": its number would tell the three.
    assert kept[("door", "all")] == kept[("door", "few")] == (None, None)
    assert kept[("hall", "hall")] == (12, 60.0)
    assert store.kept_lines() == [
        KeptLine("museum", "door", date(2026, 3, 10), "side", "in", None),
        KeptLine("museum", "hall", date(2026, 3, 10), "main", "in", 24),
    ]


def test_a_camera_without_a_total_keeps_no_zone_or_line(store: Store) -> None:
    store.add(people(3, camera="quiet"))

    store.retain(0, BERLIN, minimum=5, now=NOON + timedelta(days=1))

    assert {one.visits for one in store.kept_zones()} == {None}
    assert {one.crossings for one in store.kept_lines()} == {None}


def test_sums_stay_right_where_the_site_s_day_ends_within_one_of_utc(store: Store) -> None:
    everything(store)

    store.retain(1, BERLIN, now=NOON + timedelta(days=2))

    left = list(store.visits(ALL))
    assert left[0].start >= datetime(2026, 3, 10, 23, tzinfo=UTC)
    assert store.check() == ()
    counts, unknown = store.answers(ALL)
    assert counts.sum() + unknown == len(left)
    assert min(one.minute for one in store.health()) == NOON + timedelta(days=1)


def test_health_is_kept_by_day_without_faces_where_few_came(store: Store) -> None:
    store.add(people(40, camera="door-1"))
    store.add_health([sample(n) for n in range(30)])
    store.add_health([replace(sample(n), camera="quiet") for n in range(30)])

    store.retain(0, BERLIN, now=NOON + timedelta(days=1))

    door, quiet = store.kept_health()
    assert (door.camera, door.has_faces, door.faces) == ("door-1", True, sum(range(20, 50)))
    assert (quiet.camera, quiet.has_faces, quiet.faces) == ("quiet", False, 0)
    assert door.frames_in == quiet.frames_in == 30 * 1500
    assert store.health() == []


# --- copies ---------------------------------------------------------------------------------------

TABLES = (
    *("watched", "watched_quarters", "health", "health_quarters", "positions", "sites", "cameras"),
    *("days", "day_zones", "day_lines", "quarters"),
    *("kept_hours", "kept_days", "kept_zones", "kept_lines", "kept_health"),
)


def same(source: Store, target: Store) -> Iterator[str]:
    """Tables that differ."""
    for name in TABLES:
        assert source.rows(name), name
        if sorted(source.rows(name), key=repr) != sorted(target.rows(name), key=repr):
            yield name


def test_a_copy_holds_everything(store: Store, tmp_path: Path) -> None:
    everything(store)
    store.retain(1, BERLIN, now=NOON + timedelta(days=2))
    with open_store(tmp_path / "copy.db") as copy:
        added = copy_visits(store, copy, at_once=64)

        assert added == Added(stored=len(list(store.visits(ALL))), known=0, expired=0)
        assert copy.checksum() == store.checksum()
        assert list(same(store, copy)) == []
        assert copy.check() == ()
        assert copy.horizon() == store.horizon()
        assert copy_visits(store, copy).stored == 0


COPYING = """
import sys
from agelens.analytics.copying import copy_visits
from agelens.analytics.store import Store, open_store
added = Store.add
turns = 0
def add(self, *arguments, **named):
    global turns
    found = added(self, *arguments, **named)
    turns += 1
    if turns == 5:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return found
Store.add = add
copy_visits(open_store(sys.argv[1], read_only=True), open_store(sys.argv[2]), at_once=50)
"""


def test_a_copy_that_was_killed_goes_on_where_it_stopped(place: str, tmp_path: Path) -> None:
    path = tmp_path / "origin.db"
    with open_store(path) as source:
        everything(source)
        killed = subprocess.run(
            [sys.executable, "-c", COPYING, str(path), place], check=False, timeout=120
        )
        assert killed.returncode < 0

        with open_store(place) as target:
            assert len(list(target.visits(ALL))) == 250

            assert copy_visits(source, target) == Added(stored=350, known=0, expired=0)

            assert target.checksum() == source.checksum()
            assert target.check() == ()


# --- older stores ---------------------------------------------------------------------------------


def test_a_store_of_the_first_form_is_brought_up_to_date_with_all_it_holds(
    store: Store, place: str
) -> None:
    everything(store)
    before, zones = store.checksum(), store.zones(ALL)
    from alembic.runtime.environment import EnvironmentContext

    from agelens.analytics.database import _scripts

    script, config = _scripts()
    with (
        EnvironmentContext(
            config, script, fn=lambda revision, _: script._downgrade_revs("0001", revision)
        ) as environment,
        store._writer.begin() as connection,
    ):
        environment.configure(connection=connection)
        environment.run_migrations()
    store.close()

    with open_store(place) as opened:
        assert opened.checksum() == before
        assert opened.zones(ALL) == zones
        assert opened.check() == ()
        assert opened.cameras() == [("museum", "door-1"), ("museum", "door-2")]
        assert opened.watched_by_camera(ALL) == {("museum", "door-1"): 3 * 40 * 60.0}


def test_sums_are_kept_in_the_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "visits.db"
    with open_store(path):
        pass
    connection = sqlite_driver().connect(str(path))
    plan = connection.execute(
        "EXPLAIN QUERY PLAN SELECT SUM(visits) FROM days WHERE day_ms >= 5 AND day_ms < 9"
    ).fetchall()
    connection.close()

    assert "SEARCH days USING PRIMARY KEY (day_ms>? AND day_ms<?)" in str(plan)
