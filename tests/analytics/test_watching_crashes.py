"""Whatever ends ``agelens watch``, the same command goes on; its visits are those of one run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agelens.analytics.store import Scope, open_store
from agelens.analytics.watching import Watch, spool_path
from agelens.errors import StoreError
from agelens.video.camera import Moment
from agelens.video.plan import WatchPlan, plan_toml
from agelens.video.visit import Visit
from analytics.servers import PostgresServer
from analytics.watched import EVERY_S, camera_of, write_visits

PEOPLE = 11
ALL = Scope(staff=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "door.mp4"
    assert write_visits(path, people=PEOPLE).visitors == PEOPLE
    return path


@pytest.fixture(scope="module")
def undisturbed(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Visit]:
    """The visits of one run that nothing happens to."""
    path = tmp_path_factory.mktemp("undisturbed") / "visits.sqlite"
    with open_store(path) as store:
        Watch(WatchPlan(cameras=(camera_of(clip),)), store=store).run()
        found = list(store.visits(ALL))
    assert len(found) == PEOPLE
    return found


def plan_file(folder: Path, clip: Path, where: str, **changes: object) -> Path:
    plan = replace(WatchPlan(cameras=(camera_of(clip),), store=where), **changes)  # type: ignore[arg-type]
    path = folder / "watch.toml"
    path.write_text(plan_toml(plan))
    return path


@contextmanager
def watching(plan: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, from the moment that it watches."""
    program = subprocess.Popen(
        [sys.executable, "-m", "agelens", "watch", "--plan", str(plan), *options],
        cwd=plan.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stderr is not None
        for line in program.stderr:
            if "running" in line or "ended" in line:
                break
        yield program
    finally:
        program.kill()
        program.wait()
        if program.stderr is not None:
            program.stderr.close()


@contextmanager
def stopped(program: subprocess.Popen[str]) -> Iterator[None]:
    """While it stands still."""
    program.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        program.send_signal(signal.SIGCONT)


def ended(program: subprocess.Popen[str]) -> int:
    """Its exit status; what it said, where that is not 0."""
    assert program.stderr is not None
    said = program.stderr.read()
    status = program.wait(timeout=60)
    assert status in (0, 130), said
    return status


def visits_in(where: str) -> list[Visit]:
    with open_store(where) as store:
        assert store.check() == ()
        return list(store.visits(ALL))


@pytest.mark.parametrize(
    ("options", "kills"), [((), 2), (("--processes",), 1)], ids=["threads", "processes"]
)
def test_kill_9_at_random_moments_neither_loses_nor_doubles_a_visit(
    options: tuple[str, ...], kills: int, clip: Path, undisturbed: list[Visit], tmp_path: Path
) -> None:
    where = str(tmp_path / "visits.sqlite")
    plan = plan_file(tmp_path, clip, where)
    moments = random.Random(7)
    places = []
    for number in range(kills):
        with watching(plan, *options) as program:
            wait_for_visits(where, 3 * number + 1)
            time.sleep(moments.uniform(0.0, 0.1))
            program.send_signal(signal.SIGKILL)
        with open_store(where) as store:
            places += [(one.pts_us, bool(one.state["finished"])) for one in store.positions()]
            found = list(store.visits(ALL))
        assert {visit.key for visit in found} <= {visit.key for visit in undisturbed}
    with watching(plan, *options) as program:
        assert ended(program) == 0

    assert any(place > 0 and not finished for place, finished in places)
    assert visits_in(where) == undisturbed


def test_kill_9_and_a_server_that_goes_and_comes_back_lose_nothing_on_postgresql(
    clip: Path, undisturbed: list[Visit], postgres: PostgresServer, tmp_path: Path
) -> None:
    where = postgres.create("watched")
    plan = plan_file(tmp_path, clip, where)
    with watching(plan) as program:
        time.sleep(0.2)
        program.send_signal(signal.SIGKILL)
    with watching(plan) as program:
        with stopped(program):
            postgres.stop("immediate")
        time.sleep(0.5)
        postgres.start()
        assert ended(program) == 0

    assert visits_in(where) == undisturbed


def test_what_waits_for_a_server_survives_a_kill_9_and_is_brought_in_by_the_next_run(
    clip: Path, undisturbed: list[Visit], postgres: PostgresServer, tmp_path: Path
) -> None:
    where = postgres.create("waiting")
    plan = plan_file(tmp_path, clip, where)
    with open_store(where) as store:
        spool = tmp_path / spool_path(WatchPlan(cameras=(camera_of(clip),)), store)
    with watching(plan) as program:
        with stopped(program):
            postgres.stop("fast")
        until = time.monotonic() + 20
        while time.monotonic() < until and not (spool.exists() and len(visits_in_copy(spool))):
            time.sleep(0.1)
        program.send_signal(signal.SIGKILL)
    postgres.start()
    waiting = visits_in(str(spool))
    assert waiting
    assert all(visit in undisturbed for visit in waiting)
    with watching(plan) as program:
        assert ended(program) == 0

    assert visits_in(where) == undisturbed
    assert not list(tmp_path.glob(f"{spool.name}*"))


def test_a_run_ends_when_the_last_visit_is_in_a_server_that_was_away_at_the_end(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    path = tmp_path / "one.mp4"
    write_visits(path, people=1)
    where = postgres.create("away_at_the_end")
    back = threading.Timer(1.5, postgres.start)

    def see(moment: Moment) -> None:
        if moment.pts_us > 1e6 * (EVERY_S - 0.3) and not postgres_is_away.is_set():
            postgres_is_away.set()
            postgres.stop("immediate")
            back.start()

    postgres_is_away = threading.Event()
    plan = WatchPlan(cameras=(camera_of(path),), store=where)
    with open_store(where, patience_s=0.2) as store:
        Watch(plan, store=store, on_moment=see, spool=tmp_path / "waiting.sqlite").run()
        back.join()
        found = list(store.visits(ALL))

    assert len(found) == 1
    assert not list(tmp_path.glob("waiting*"))


def wait_for_visits(where: str, count: int) -> None:
    """Until a store that another process writes to holds so many."""
    until = time.monotonic() + 20
    with open_store(where, read_only=True) as store:
        while len(list(store.visits(ALL))) < count:
            assert time.monotonic() < until, "no visit was stored in time"
            time.sleep(0.005)


def visits_in_copy(path: Path) -> list[Visit]:
    """What a store holds that another process writes to."""
    try:
        with open_store(path, read_only=True) as store:
            return list(store.visits(ALL))
    except StoreError:
        return []


def test_sigterm_ends_a_file_in_order_and_the_same_command_goes_on(
    clip: Path, undisturbed: list[Visit], tmp_path: Path
) -> None:
    where = str(tmp_path / "visits.sqlite")
    plan = plan_file(tmp_path, clip, where)
    with watching(plan) as program:
        program.send_signal(signal.SIGTERM)
        assert ended(program) == 130
    before = visits_in(where)
    assert len(before) < PEOPLE
    with watching(plan) as program:
        assert ended(program) == 0

    assert visits_in(where) == undisturbed
