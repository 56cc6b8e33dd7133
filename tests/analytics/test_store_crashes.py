"""What was acknowledged is kept, once, whatever happens to the process, the server or the disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agelens.analytics.database import has_safe_wal, sqlite_driver
from agelens.analytics.store import Scope, Store, open_store
from agelens.errors import MissingExtra, StoreError
from analytics.people import crowd
from analytics.servers import PostgresServer

TESTS = Path(__file__).parents[1]
ALL = Scope(staff=True)
VISITS = 400
KILLS = 6


@contextmanager
def writing(where: str, count: int = VISITS) -> Iterator[subprocess.Popen[str]]:
    """A process that stores visits and says the number of each that was acknowledged."""
    paths = os.pathsep.join([str(TESTS), *sys.path])
    program = subprocess.Popen(
        [sys.executable, "-m", "analytics.writing_program", where, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        yield program
    finally:
        program.kill()
        program.wait()
        assert program.stdout is not None
        program.stdout.close()


def killed_after(where: str, seconds: float) -> int:
    """Kill -9 the writer so long after its start of writing; the last number it acknowledged."""
    with writing(where) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        time.sleep(seconds)
        program.send_signal(signal.SIGKILL)
        lines = program.stdout.read().split("\n")
    whole = lines[:-1]  # the last one may have been cut
    return int(whole[-1]) if whole else -1


def tracks(store: Store) -> list[int]:
    return [visit.track for visit in store.visits(ALL)]


def test_kill_9_at_random_moments_neither_loses_nor_doubles_a_visit(place: str) -> None:
    moments = random.Random(4)
    acknowledged = -1
    for _ in range(KILLS):
        acknowledged = max(acknowledged, killed_after(place, moments.uniform(0.0, 0.25)))
        with open_store(place) as store:
            found = tracks(store)
        assert len(found) == len(set(found))
        assert set(found) >= set(range(acknowledged + 1))
    with writing(place) as program:
        assert program.wait(timeout=120) == 0

    with open_store(place) as store:
        assert tracks(store) == list(range(VISITS))
        assert store.check() == ()
        kept = list(store.visits(ALL))
    for found_visit, made in zip(kept, crowd(VISITS), strict=True):
        assert found_visit.key == made.key
        assert (found_visit.age, found_visit.stays) == (made.age, made.stays)


def test_a_database_whose_journal_was_cut_anywhere_opens_to_a_prefix_of_the_commits(
    tmp_path: Path,
) -> None:
    if not has_safe_wal(sqlite_driver().sqlite_version):
        pytest.skip("this SQLite is used without a WAL")
    origin = tmp_path / "origin"
    origin.mkdir()
    count = 60
    with open_store(origin / "visits.db") as store:
        store.checkpoint()  # what follows is in the WAL alone
        for visit in crowd(count):
            store.add([visit])
        copies = tmp_path / "copy"
        shutil.copytree(origin, copies)
    wal = (copies / "visits.db-wal").read_bytes()
    places = random.Random(1).sample(range(len(wal)), 40)
    lengths = set()
    for number, size in enumerate([*places, 0, len(wal)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(copies / "visits.db", folder)
        (folder / "visits.db-wal").write_bytes(wal[:size])

        with open_store(folder / "visits.db") as store:
            found = tracks(store)
            assert found == list(range(len(found)))
            assert store.check() == ()
        lengths.add(len(found))
        if size == len(wal):
            assert len(found) == count
    assert len(lengths) > 20


def test_a_full_disk_is_reported_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    visits = crowd(3000)
    try:
        stored = 0
        with open_store(disk / "visits.db") as store:
            with pytest.raises(StoreError, match="disk is full"):  # noqa: PT012
                for visit in visits:
                    store.add([visit])
                    stored += 1
            with pytest.raises(StoreError, match="disk is full"):
                store.add(visits[stored:])
        assert stored > 20

        larger = ["mount", "-o", "remount,size=32m", str(disk)]
        subprocess.run(larger, check=True, capture_output=True)
        with open_store(disk / "visits.db") as store:
            assert tracks(store) == list(range(stored))
            assert store.check() == ()
            assert store.add(visits[: stored + 50]).stored == 50
    finally:
        subprocess.run(["umount", str(disk)], check=True, capture_output=True)


def test_a_server_that_stops_and_comes_back_in_the_middle_loses_nothing(
    postgres: PostgresServer,
) -> None:
    url = postgres.create("restarted")
    visits = crowd(300)
    with open_store(url, patience_s=120) as store:
        failures: list[Exception] = []

        def write() -> None:
            try:
                for visit in visits:
                    store.add([visit])
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        for mode in ("fast", "immediate", "fast"):
            time.sleep(0.15)
            postgres.stop(mode)
            postgres.start()
        thread.join()

        assert failures == []
        assert tracks(store) == list(range(300))
        assert store.check() == ()


def test_a_server_that_stays_away_is_reported(postgres: PostgresServer) -> None:
    url = postgres.create("away")
    with open_store(url, patience_s=0.5) as store:
        postgres.stop()
        try:
            with pytest.raises(StoreError):
                store.add(crowd(1))
        finally:
            postgres.start()
        assert store.add(crowd(1)).stored == 1


def test_two_processes_may_write_to_one_server(postgres: PostgresServer) -> None:
    url = postgres.create("shared")
    with writing(url) as first, writing(url) as second:
        assert first.wait(timeout=300) == 0
        assert second.wait(timeout=300) == 0

    with open_store(url) as store:
        assert tracks(store) == list(range(VISITS))
        assert store.check() == ()


def test_a_second_process_cannot_write_to_the_same_file_and_a_dead_one_is_no_hindrance(
    tmp_path: Path,
) -> None:
    path = tmp_path / "visits.db"
    with writing(str(path), 4000) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        with pytest.raises(StoreError, match="another process writes"):
            open_store(path)
        with open_store(path, read_only=True) as reader:
            found = tracks(reader)
        assert found == list(range(len(found)))
        program.kill()
        program.wait()

    with open_store(path) as store:
        assert store.check() == ()


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ("3.40.1", False),
        ("3.44.5", False),
        ("3.44.6", True),
        ("3.50.6", False),
        ("3.50.7", True),
        ("3.51.2", False),
        ("3.51.3", True),
        ("3.53.4", True),
    ],
)
def test_which_releases_of_sqlite_may_use_the_wal(version: str, safe: bool) -> None:
    assert has_safe_wal(version) is safe


OWN_SQLITE = """
import sys
sys.modules["pysqlite3"] = None
import sqlite3
from agelens.analytics.store import open_store
from analytics.people import crowd
with open_store(sys.argv[1]) as store:
    store.add(crowd(20))
    assert store.check() == (), store.check()
    with store._writer.connect() as connection:
        print(sqlite3.sqlite_version, connection.exec_driver_sql("PRAGMA journal_mode").scalar())
"""


def test_without_pysqlite3_an_unsafe_wal_is_not_used_even_on_a_file_that_has_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "visits.db"
    with open_store(path) as store:
        store.add(crowd(30))
    done = subprocess.run(
        [sys.executable, "-c", OWN_SQLITE, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    version, journal = done.stdout.split()
    assert journal == ("wal" if has_safe_wal(version) else "delete")
    with open_store(path) as store:
        assert tracks(store) == list(range(30))


@pytest.mark.parametrize(
    ("hidden", "where", "extra"),
    [
        ("sqlalchemy", "visits.db", "visitors"),
        ("alembic", "visits.db", "visitors"),
        ("psycopg", "postgresql://nobody@localhost/x", "postgres"),
    ],
)
def test_a_missing_package_is_named_by_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hidden: str, where: str, extra: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, hidden, None)

    with pytest.raises(MissingExtra, match=rf"agelens\[{extra}\]"):
        open_store(where)
