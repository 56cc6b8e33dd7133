"""The store keeps each visit once, in SQLite and in PostgreSQL alike."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from agelens.analytics.confusion import LABELS
from agelens.analytics.copying import copy_visits
from agelens.analytics.store import Added, Scope, Store, open_store
from agelens.errors import ArgumentError, StoreError
from agelens.video.visit import COUNTED_BANDS, VISIT_BANDS, LineCrossing, ZoneStay
from analytics.people import NOON, crowd, visit

BERLIN = ZoneInfo("Europe/Berlin")
ALL = Scope(staff=True)


def test_visits_are_read_back_as_they_were_stored(store: Store) -> None:
    visits = crowd(50)

    added = store.add(visits)

    assert added == Added(stored=50, known=0, expired=0)
    assert sorted(store.visits(ALL), key=lambda one: one.track) == visits


def test_visits_come_in_order_of_their_start_over_many_pages(store: Store) -> None:
    visits = crowd(4100, every_s=0.4)
    store.add(visits[2000:])
    store.add(visits[:2000])

    found = [one.start for one in store.visits(ALL)]

    assert found == [one.start for one in visits]


def test_a_replay_with_new_ids_and_clocks_changes_nothing(store: Store) -> None:
    visits = crowd(40)
    store.add(visits)
    before = store.checksum()
    replayed = [
        replace(
            one,
            id=other.id,
            start=one.start + timedelta(hours=1),
            end=one.end + timedelta(hours=1),
        )
        for one, other in zip(visits, crowd(40), strict=True)
    ]

    added = store.add([*replayed, visit(40)])

    assert added == Added(stored=1, known=40, expired=0)
    assert store.add([visit(40)]) == Added(stored=0, known=1, expired=0)
    assert len(list(store.visits(ALL))) == 41
    assert store.checksum() != before
    assert store.check() == ()


def test_one_call_with_the_same_visit_twice_stores_it_once(store: Store) -> None:
    one = visit(1)

    assert store.add([one, one]) == Added(stored=1, known=0, expired=0)


@pytest.mark.parametrize(
    "changes",
    [{"camera": "door-9"}, {"site": "shop"}, {"epoch": "run-2"}, {"track": 9}, {"first_pts": 9}],
    ids=lambda changes: next(iter(changes)),
)
def test_another_camera_run_track_or_first_frame_is_another_visit(
    store: Store, changes: dict[str, Any]
) -> None:
    store.add([visit(1)])

    assert store.add([visit(1, **changes)]).stored == 1


def test_a_batch_with_one_visit_that_cannot_be_stored_is_not_stored_at_all(store: Store) -> None:
    first, second = visit(1), visit(2)
    store.add([first])

    with pytest.raises(StoreError):
        store.add([second, visit(3, id=first.id)])

    assert [one.track for one in store.visits(ALL)] == [1]
    assert store.check() == ()


def test_answers_are_counted_by_the_likeliest_band_and_the_label(store: Store) -> None:
    visits = crowd(200)
    store.add(visits)
    expected = np.zeros((len(COUNTED_BANDS), len(LABELS)), int)
    unknown = 0
    for one in visits:
        if one.staff:
            continue
        if one.age is None or one.gender is None:
            unknown += 1
            continue
        sums = [
            sum(p for p, (a, b) in zip(one.age, VISIT_BANDS, strict=True) if low <= a and b <= high)
            for low, high in COUNTED_BANDS
        ]
        expected[int(np.argmax(sums)), LABELS.index(one.gender)] += 1

    counts, found_unknown = store.answers()

    assert counts.tolist() == expected.tolist()
    assert found_unknown == unknown
    assert counts.sum() + unknown == sum(not one.staff for one in visits)


def test_a_scope_picks_cameras_sites_times_and_staff(store: Store) -> None:
    visits = crowd(300, every_s=30)
    store.add(visits)
    start, end = NOON + timedelta(minutes=30), NOON + timedelta(minutes=90)
    scope = Scope(start=start, end=end, sites=("museum",), cameras=("door-2",))
    meant = [
        one.track
        for one in visits
        if start <= one.start < end and one.camera == "door-2" and not one.staff
    ]

    assert [one.track for one in store.visits(scope)] == meant
    assert sum(n for _, n, _, _ in store.quarters(scope)) == len(meant)
    assert list(store.visits(Scope(sites=("shop",)))) == []


def test_quarters_zones_and_lines_are_the_sums_of_the_visits(store: Store) -> None:
    visits = crowd(150, every_s=20)
    store.add(visits)
    public = [one for one in visits if not one.staff]
    quarters = Counter(
        one.start.replace(minute=one.start.minute // 15 * 15, second=0, microsecond=0)
        for one in public
    )

    found = store.quarters()

    assert {moment: n for moment, n, _, _ in found} == dict(quarters)
    assert sum(s for _, _, s, _ in found) == pytest.approx(sum(one.seconds for one in public))
    by_zone: Counter[tuple[str, str, str]] = Counter()
    for one in public:
        by_zone.update((one.site, one.camera, stay.zone) for stay in one.stays)
    assert {(s, c, z): n for s, c, z, n, _ in store.zones()} == dict(by_zone)
    assert sum(n for *_, n in store.lines()) == 2 * len(public)


def test_a_visit_read_back_holds_no_more_than_its_milliseconds(store: Store) -> None:
    moment = datetime(2026, 3, 29, 1, 59, 59, 123_456, tzinfo=ZoneInfo("America/New_York"))
    one = visit(
        1,
        at=moment,
        seconds=1.23456,
        stays=(ZoneStay("z", 0.5), ZoneStay("Ä", 0.25)),
        crossings=(LineCrossing("a", "out", moment),),
    )

    store.add([one])

    (found,) = store.visits()
    assert found == one
    assert found.start == datetime(2026, 3, 29, 5, 59, 59, 123_000, tzinfo=UTC)
    assert found.seconds == 1.235


def test_the_longest_note_of_a_watched_minute_holds(store: Store) -> None:
    for seconds in (20, 55, 40):
        store.watch("museum", "door-1", NOON + timedelta(seconds=12), seconds)
    store.watch("museum", "door-1", NOON + timedelta(minutes=14), 60)
    store.watch("museum", "door-1", NOON + timedelta(minutes=15), 60)

    assert store.watched_quarters() == [
        ("museum", "door-1", NOON, 115.0),
        ("museum", "door-1", NOON + timedelta(minutes=15), 60.0),
    ]


def test_many_threads_store_each_visit_once(store: Store) -> None:
    visits = crowd(120)
    outcomes: list[Added] = []
    threads = [
        threading.Thread(
            target=lambda part=part: outcomes.extend(
                store.add(visits[start : start + 10]) for start in range(part % 3 * 10, 120, 10)
            )
        )
        for part in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(one.stored for one in outcomes) == 120
    assert len(list(store.visits(ALL))) == 120
    assert store.check() == ()


def test_the_check_finds_sums_that_are_not_those_of_the_visits(store: Store) -> None:
    store.add(crowd(30))
    with store._writer.begin() as connection:
        connection.exec_driver_sql("UPDATE minutes SET visits = visits + 1 WHERE camera = 'door-1'")

    (problem,) = store.check()

    assert "minutes" in problem
    assert "door-1" in problem


def test_copies_into_another_store_are_equal_and_may_be_begun_again(
    store: Store, tmp_path: Path
) -> None:
    store.add(crowd(300))
    with open_store(tmp_path / "copy.db") as copy:
        copy.add(list(store.visits(ALL))[:120])

        added = copy_visits(store, copy, at_once=64)

        assert added == Added(stored=180, known=120, expired=0)
        assert copy.checksum() == store.checksum()
        assert copy.check() == ()


def test_a_store_opened_to_look_at_cannot_be_written(place: str) -> None:
    with open_store(place) as writer, open_store(place, read_only=True) as reader:
        writer.add([visit(1)])

        assert [one.track for one in reader.visits()] == [1]
        with pytest.raises(StoreError, match="read_only"):
            reader.add([visit(2)])


def test_a_store_of_a_newer_form_is_refused(place: str) -> None:
    with open_store(place) as store, store._writer.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(StoreError, match="newer AgeLens"):
        open_store(place)


def test_tables_made_by_the_steps_are_those_the_store_works_with(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from agelens.analytics.tables import metadata

    with store._reader.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []


def test_nothing_but_numbers_names_and_times_is_kept(store: Store) -> None:
    import sqlalchemy as sa

    inspector = sa.inspect(store._reader)
    kinds = {
        type(column["type"]).__name__.upper()
        for table in inspector.get_table_names()
        for column in inspector.get_columns(table)
    }

    names = {"TEXT", "BIGINT", "SMALLINT", "INTEGER", "BOOLEAN", "DOUBLE", "VARCHAR"}
    assert kinds <= names | {"DOUBLE_PRECISION"}


# --- retention ------------------------------------------------------------------------------------


def test_retention_deletes_old_days_and_refuses_their_replay(store: Store) -> None:
    old, new = crowd(60), crowd(60, start=NOON + timedelta(days=3), seed=1)
    new = [replace(one, epoch="run-2") for one in new]
    store.add(old + new)

    deleted = store.retain(2, BERLIN, now=NOON + timedelta(days=4))

    assert deleted == 60
    assert {one.epoch for one in store.visits(ALL)} == {"run-2"}
    assert store.add(old) == Added(stored=0, known=0, expired=60)
    assert store.check() == ()
    assert store.retain(2, BERLIN, now=NOON + timedelta(days=4)) == 0


def test_retention_ends_at_midnight_of_the_site(store: Store) -> None:
    midnight = datetime(2026, 3, 9, 23, tzinfo=UTC)  # 10 March in Berlin
    before = visit(1, at=midnight - timedelta(milliseconds=1))
    after = visit(2, at=midnight)
    store.add([before, after])

    store.retain(0, BERLIN, now=NOON)

    assert [one.track for one in store.visits()] == [2]


def test_what_is_kept_agrees_with_the_visits_and_hides_small_cells(store: Store) -> None:
    visits = [one for one in crowd(400, every_s=60) if not one.staff]
    store.add(visits)

    store.retain(0, BERLIN, minimum=5, now=NOON + timedelta(days=1))

    shown = 0
    for _site, camera, _day, band, gender, count in store.kept_days():
        true = sum(
            one.camera == camera
            and (band is None or (-1 if one.band is None else one.band) == band)
            and (gender is None or (one.gender or "") == gender)
            for one in visits
        )
        if count is not None:
            shown += 1
            assert count == true
            assert not 0 < count < 5
    assert shown > 20
    hours = store.kept_hours()
    assert len(hours) == 48
    for _site, camera, start, count in hours:
        true = sum(
            one.camera == camera and start <= one.start < start + timedelta(hours=1)
            for one in visits
        )
        assert count in (true, None)
        assert count is None or not 0 < count < 5


def test_a_day_with_few_visitors_keeps_no_number_at_all(store: Store) -> None:
    store.add([visit(2), visit(4), visit(6)])

    store.retain(0, BERLIN, now=NOON + timedelta(days=1))

    assert all(count in (None, 0) for *_, count in store.kept_days())
    assert all(count is None for *_, count in store.kept_hours())


def test_a_day_on_which_the_clocks_change_has_its_own_number_of_hours(store: Store) -> None:
    for number, day in enumerate((datetime(2026, 3, 29, 12), datetime(2026, 10, 25, 12))):
        at = day.replace(tzinfo=UTC)
        store.add([visit(2 * (10 * number + n), at=at) for n in range(1, 8)])

    store.retain(0, BERLIN, now=datetime(2026, 11, 1, tzinfo=UTC))

    starts = [start for *_, start, _ in store.kept_hours()]
    assert sum(start.month == 3 for start in starts) == 23
    assert sum(start.month == 10 for start in starts) == 25


def test_deleted_visits_are_gone_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "visits.db"
    with open_store(path) as store:
        store.add([visit(n, epoch="telltale-epoch") for n in range(300)])
        assert any(b"telltale-epoch" in file.read_bytes() for file in tmp_path.iterdir())

        store.retain(0, BERLIN, now=NOON + timedelta(days=1))

        assert not any(b"telltale-epoch" in file.read_bytes() for file in tmp_path.iterdir())


def test_negative_days_are_refused(store: Store) -> None:
    with pytest.raises(ArgumentError, match="days"):
        store.retain(-1, BERLIN)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("not a database, but long enough to be taken for one\n" * 100)

    with pytest.raises(StoreError, match="damaged or no store"):
        open_store(path)

    assert path.read_text().startswith("not a database")


def test_an_unknown_kind_of_database_is_refused() -> None:
    with pytest.raises(StoreError, match="mysql"):
        open_store("mysql://user:secret@host/db")


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(StoreError) as caught:
        open_store("postgresql://me:very-secret@localhost:1/x", patience_s=0.1)

    assert "very-secret" not in str(caught.value)


def test_damage_in_the_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "visits.db"
    with open_store(path) as store:
        store.add(crowd(500))
    with sqlite3.connect(path) as connection:
        page = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    content = bytearray(path.read_bytes())
    for start in range(5 * page, len(content) - page, 3 * page):
        content[start : start + 64] = b"\xff" * 64
    path.write_bytes(content)

    try:
        with open_store(path) as store:
            problems = store.check()
    except StoreError as error:
        problems = (str(error),)

    assert problems
