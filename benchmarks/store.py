"""
What the store of visits withstands, and how fast it is.

    python benchmarks/store.py [--only speed kills full cuts stress copy drift] [--visits 1000000]
        [--kills 200] [--minutes 1] [--postgres URL]

    speed    a month of two sites of four cameras: stored, then all that a dashboard asks for
    kills    kill -9 in the middle of writing: no acknowledged visit lost, none there twice
    full     a disk of 4 MB filled to the brim (needs to mount one; root): reported, nothing lost
    cuts     the journal cut at every 512th byte: the store opens to a prefix of its commits
    stress   one process writes, another one reads and tries to write, for --minutes (15 for the
             record), with the journal written back all the time
    copy     the month into PostgreSQL, killed twice on the way: equal checksums
    drift    false alarms of a camera that does not change, and days until a change is found

The copy starts a PostgreSQL server of its own where its programs are installed; with --postgres URL
it uses an empty database there. Times include a machine that others use too.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from rich.console import Console
from rich.table import Table

from agelens.analytics.copying import copy_visits
from agelens.analytics.database import sqlite_driver
from agelens.analytics.drift import FALSE_ALARMS, MIN_DAYS, PAST_DAYS, drift_alarms
from agelens.analytics.hours import day_start, local_day
from agelens.analytics.records import Scope, Site, WatchedMinute
from agelens.analytics.store import Store, open_store
from agelens.errors import StoreError
from agelens.identifiers import new_identifier
from agelens.results import GenderLabel
from agelens.video.health import HealthSample
from agelens.video.visit import LineCrossing, Visit, ZoneStay

ZONE = ZoneInfo("Europe/Berlin")
FIRST = datetime(2026, 3, 1, tzinfo=ZONE).astimezone(UTC)
DAYS = 31
PLACES = tuple((site, f"camera-{n}") for site in ("museum", "shop") for n in range(1, 5))
ALL = Scope(staff=True)
Row = tuple[str, str, str]


# --- visits ---------------------------------------------------------------------------------------


def visits_of(number: int, count: int, day: datetime, rng: np.random.Generator) -> list[Visit]:
    """So many visits of one day, by start; ``number`` is the first track."""
    seconds = np.sort(rng.uniform(9 * 3600, 21 * 3600, count))
    ages = rng.dirichlet(np.full(18, 0.15), count)
    places = rng.integers(0, len(PLACES), count)
    rest = rng.random((count, 2)).round(3)
    found = []
    for i in range(count):
        at = day + timedelta(seconds=float(seconds[i]))
        site, camera = PLACES[int(places[i])]
        stay, female = 5 + 100 * float(rest[i, 0]), float(rest[i, 1])
        label: GenderLabel = "female" if female > 0.6 else "male" if female < 0.4 else "uncertain"
        track = number + i
        crossed = LineCrossing("door", "in", at), LineCrossing("door", "out", at)
        found.append(
            Visit(
                id=new_identifier(at, key=f"{site} {camera} {track}"),
                site=site,
                camera=camera,
                epoch="run",
                track=track,
                first_pts=40_000 * track,
                start=at,
                end=at + timedelta(seconds=stay),
                seconds=stay,
                attentive_seconds=stay / 3,
                age=tuple(ages[i].tolist()),
                female=female,
                gender=label,
                frames=8,
                quality=0.5,
                model="agelens-s@1.1",
                stays=(ZoneStay("entrance", 2.0), ZoneStay("screen", stay / 2))[: 1 + i % 2],
                crossings=crossed[: i % 3],
            )
        )
    return found


def minutes_of(day: datetime) -> tuple[list[WatchedMinute], list[HealthSample]]:
    """A whole day of all cameras."""
    watched, health = [], []
    for minute in range(24 * 60):
        at = day + timedelta(minutes=minute)
        for site, camera in PLACES:
            watched.append(WatchedMinute(site, camera, at, 60))
            sums = {"faces": 300, "usable": 200, "quality_sum": 150.0, "age_sum": 6000.0}
            health.append(
                HealthSample(site, camera, at, 1500, 1000, 480, epoch="run", **sums)  # type: ignore[arg-type]
            )
    return watched, health


def fill(store: Store, visits: int, *, with_minutes: bool = True) -> float:
    """Store a month; seconds that storing the visits took."""
    rng = np.random.default_rng(1)
    for site in sorted({site for site, _ in PLACES}):
        store.set_site(Site(site, ZONE.key))
    spent, number = 0.0, 0
    for day in range(DAYS):
        count = visits * (day + 1) // DAYS - number
        made = visits_of(number, count, FIRST + timedelta(days=day), rng)
        number += count
        begun = time.perf_counter()
        for start in range(0, count, 5000):
            store.add(made[start : start + 5000])
        spent += time.perf_counter() - begun
        if with_minutes:
            watched, health = minutes_of(FIRST + timedelta(days=day))
            store.add(watched=watched, health=health)
    return spent


# --- speed ----------------------------------------------------------------------------------------


def speed(folder: Path, visits: int) -> Iterator[Row]:
    """Storing, and reading what a dashboard shows."""
    path = folder / "month.db"
    with open_store(path) as store:
        spent = fill(store, visits)
    size = path.stat().st_size
    yield "store visits", f"{visits / spent:,.0f} a second", f"{size / 1e6:,.0f} MB in all"
    month = Scope(start=FIRST, end=day_start(local_day(FIRST, ZONE).replace(month=4), ZONE))
    week = Scope(start=FIRST + timedelta(days=7), end=FIRST + timedelta(days=14))
    before = Scope(start=FIRST, end=week.start)
    with open_store(path, read_only=True) as store:
        for name, scope, previous in (("month", month, None), ("week", week, before)):
            asked: dict[str, Callable[[], Any]] = {
                "answers": partial(store.answers_by_camera, scope),
                "quarters": partial(store.quarters_by_camera, scope),
                "zones": partial(store.zones, scope),
                "lines": partial(store.lines, scope),
                "watched": partial(store.watched_quarters, scope),
                "health": partial(store.health, scope, step=timedelta(hours=1)),
                "cameras": store.cameras,
            }
            if previous is not None:
                asked["answers before"] = partial(store.answers_by_camera, previous)
                asked["quarters before"] = partial(store.quarters, previous)
            times = {what: best_ms(work) for what, work in asked.items()}
            told = ", ".join(f"{what} {ms:.0f}" for what, ms in times.items())
            yield f"read a {name}", f"{sum(times.values()):.0f} ms", told


def best_ms(work: Callable[[], Any]) -> float:
    """Milliseconds of the fastest of five runs."""
    found = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        found.append(1000 * (time.perf_counter() - begun))
    return min(found)


# --- kills, full disks, cut journals --------------------------------------------------------------


def write_forever(where: str, start: int) -> None:
    """Store visit after visit, and say the number of each that was acknowledged."""
    rng = np.random.default_rng(0)
    made = {one.track: one for one in visits_of(0, 4000, FIRST, rng)}
    with open_store(where) as store:
        print("ready", flush=True)
        for number in range(start, len(made)):
            store.add([made[number]])
            print(number, flush=True)


@contextmanager
def another(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """This program in a process of its own."""
    program = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        yield program
    finally:
        program.kill()
        program.wait()
        if program.stdout is not None:
            program.stdout.close()


def kills(folder: Path, count: int) -> Iterator[Row]:
    """Kill the writer again and again."""
    path = folder / "killed.db"
    moments = random.Random(1)
    acknowledged, lost, doubled, damaged = -1, 0, 0, 0
    slowest, begun_again = 0.0, 0
    for _ in range(count):
        start = acknowledged + 1
        if start >= 3500:
            for file in folder.glob("killed.db*"):
                file.unlink()
            acknowledged, start, begun_again = -1, 0, begun_again + 1
        with another("--write", str(path), "--start", str(start)) as program:
            assert program.stdout is not None
            program.stdout.readline()
            time.sleep(moments.uniform(0.0, 0.15))
            program.send_signal(signal.SIGKILL)
            whole = program.stdout.read().split("\n")[:-1]
        acknowledged = int(whole[-1]) if whole else acknowledged
        opened = time.perf_counter()
        with open_store(path) as store:
            slowest = max(slowest, time.perf_counter() - opened)
            tracks = [visit.track for visit in store.visits(ALL)]
            damaged += bool(store.check())
        doubled += len(tracks) - len(set(tracks))
        lost += len(set(range(acknowledged + 1)) - set(tracks))
    yield (
        f"kill -9 x {count}",
        f"{lost} lost, {doubled} twice, {damaged} damaged",
        f"opened again in {slowest:.2f} s at most; begun anew {begun_again} times",
    )


def full(folder: Path, count: int = 20) -> Iterator[Row]:
    """Fill a small disk to the brim."""
    disk = folder / "disk"
    disk.mkdir()
    lost = damaged = unreported = 0
    rng = np.random.default_rng(0)
    made = visits_of(0, 6000, FIRST, rng)
    for number in range(count):
        size = 3000 + 37 * number
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            yield "full disk", "not run", "no disk can be mounted here"
            return
        try:
            stored = 0
            with open_store(disk / "visits.db") as store:
                try:
                    while stored < len(made):
                        store.add(made[stored : stored + 1 + number % 7])
                        stored += 1 + number % 7
                    unreported += 1
                except StoreError as error:
                    unreported += "disk is full" not in str(error)
            subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
            with open_store(disk / "visits.db") as store:
                tracks = {visit.track for visit in store.visits(ALL)}
                lost += len(set(range(stored)) - tracks)
                damaged += bool(store.check())
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    told = f"{lost} lost, {damaged} damaged, {unreported} not reported as a full disk"
    yield f"full disk x {count}", told, "acknowledged visits are all there once room is made"


def cuts(folder: Path) -> Iterator[Row]:
    """Cut the journal at every 512th byte."""
    origin = folder / "whole"
    origin.mkdir()
    with open_store(origin / "visits.db") as store:
        store.checkpoint()
        made = visits_of(0, 8, FIRST, np.random.default_rng(0))
        for visit in made:
            store.add([visit])
        copies = folder / "copies"
        shutil.copytree(origin, copies)
    wal = (copies / "visits.db-wal").read_bytes()
    no_prefix = damaged = 0
    slowest = 0.0
    lengths = set()
    for size in range(0, len(wal) + 1, 512):
        for file in folder.glob("cut.db*"):
            file.unlink()
        shutil.copy(copies / "visits.db", folder / "cut.db")
        (folder / "cut.db-wal").write_bytes(wal[:size])
        begun = time.perf_counter()
        with open_store(folder / "cut.db") as store:
            slowest = max(slowest, time.perf_counter() - begun)
            tracks = [visit.track for visit in store.visits(ALL)]
            no_prefix += tracks != list(range(len(tracks)))
            damaged += bool(store.check())
        lengths.add(len(tracks))
    yield (
        f"journal cut {len(wal) // 512 + 1} times",
        f"{no_prefix} not a prefix, {damaged} damaged",
        f"{len(lengths)} different lengths of {len(made)} commits; opened in {slowest:.2f} s",
    )


# --- two processes --------------------------------------------------------------------------------


def stress(folder: Path, minutes: float) -> Iterator[Row]:
    """One process writes and writes its journal back; this one reads, and may not write."""
    path = folder / "stress.db"
    until = time.monotonic() + 60 * minutes
    refused = reads = backwards = 0
    longest = 0
    with another("--churn", str(path), "--minutes", str(minutes)) as program:
        assert program.stdout is not None
        program.stdout.readline()
        while time.monotonic() < until:
            try:
                open_store(path).close()
            except StoreError:
                refused += 1
            with open_store(path, read_only=True) as reader:
                found = sum(n for _, n, _, _ in reader.quarters(ALL))
                reads += 1
                backwards += found < longest
                longest = max(longest, found)
            time.sleep(0.2)
        written = int(program.stdout.readline())
        program.wait()
    with open_store(path) as store:
        problems = store.check()
        held = sum(n for _, n, _, _ in store.quarters(ALL))
    version = sqlite_driver().sqlite_version
    yield (
        f"two processes, {minutes:g} minutes",
        f"{len(problems)} problems, {written - held} of {written:,} visits lost",
        f"{reads} reads, {backwards} went back, second writer refused {refused} times "
        f"(SQLite {version})",
    )


def churn(where: str, minutes: float) -> None:
    """Write in small and larger transactions, and write the journal back after each hundredth."""
    until = time.monotonic() + 60 * minutes
    rng = np.random.default_rng(2)
    written = turn = 0
    with open_store(where) as store:
        print("ready", flush=True)
        while time.monotonic() < until:
            turn += 1
            day = FIRST + timedelta(days=turn % DAYS)
            made = visits_of(written, 1 + turn % 50, day, rng)
            written += store.add(made).stored
            if turn % 100 == 0:
                store.checkpoint()
            time.sleep(0.02)
    print(written, flush=True)


# --- copy -----------------------------------------------------------------------------------------


def copy(folder: Path, visits: int, url: str) -> Iterator[Row]:
    """A month into PostgreSQL, killed twice on the way."""
    path = folder / "month.db"
    if not path.exists():
        with open_store(path) as store:
            fill(store, visits)
    begun = time.perf_counter()
    for _ in range(2):
        with another("--copy", str(path), "--postgres", url) as program:
            assert program.stdout is not None
            program.stdout.readline()
            time.sleep(6)
            program.send_signal(signal.SIGKILL)
    with open_store(path, read_only=True) as source, open_store(url) as target:
        kept = sum(n for _, n, _, _ in target.quarters(ALL))
        added = copy_visits(source, target)
        spent = time.perf_counter() - begun
        yield (
            f"copy {visits:,} visits",
            f"{spent:.0f} s with 2 kills",
            f"{kept:,} were there after the second kill, {added.stored:,} added, "
            f"{added.known:,} known",
        )
        same = {
            "visits": source.checksum() == target.checksum(),
            **{
                name: sorted(source.rows(name)) == sorted(target.rows(name))
                for name in ("watched", "health", "days", "quarters", "watched_quarters", "sites")
            },
        }
        told = ", ".join(
            f"{name} {'equal' if is_same else 'DIFFERENT'}" for name, is_same in same.items()
        )
        yield "checksums", "equal" if all(same.values()) else "DIFFERENT", told


@contextmanager
def postgres(url: str | None) -> Iterator[str | None]:
    """An empty database; None where there is no server."""
    if url is not None:
        yield url
        return
    sys.path.append(os.fspath(Path(__file__).parents[1] / "tests"))
    try:
        from analytics.servers import PostgresServer

        server = PostgresServer()
    except BaseException as error:
        print(f"no PostgreSQL: {error}", file=sys.stderr)
        yield None
        return
    try:
        yield server.create("copied")
    finally:
        server.remove()


# --- drift ----------------------------------------------------------------------------------------


def drift(folder: Path, cameras: int = 60, days: int = 90) -> Iterator[Row]:
    """False alarms of cameras that do not change, and how soon a change is found."""
    rng = np.random.default_rng(5)
    path = folder / "drift.db"
    first = FIRST.replace(hour=0)
    change = days - 10
    with open_store(path) as store:
        for number in range(cameras):
            is_dimmed = number % 2 == 1
            samples = []
            for day in range(days):
                dim = 0.8 if is_dimmed and day >= change else 1.0
                faces = int(20_000 * rng.lognormal(0, 0.25))
                share = dim * rng.normal(0.62, 0.02)
                quality = dim * rng.normal(0.55, 0.015)
                samples.append(
                    HealthSample(
                        "site",
                        f"camera-{number:02}",
                        first + timedelta(days=day, hours=12),
                        frames_in=90_000,
                        detections=30_000,
                        faces=faces,
                        usable=round(faces * share),
                        quality_sum=faces * quality,
                        age_sum=35.0 * round(faces * share),
                    )
                )
            store.add_health(samples)
        false = judged = 0
        found: dict[str, int] = {}
        for day in range(MIN_DAYS, days):
            alarms = drift_alarms(store, now=first + timedelta(days=day + 1))
            raised = {alarm.camera for alarm in alarms}
            dimmed = {f"camera-{n:02}" for n in range(1, cameras, 2)} if day >= change else set()
            judged += cameras - len(dimmed)
            false += len(raised - dimmed)
            for camera in raised & dimmed:
                found.setdefault(camera, day - change)
    yield (
        f"drift, {judged:,} days of unchanged cameras",
        f"{false} false alarms ({100 * false / judged:.2f} %)",
        f"promised at most {100 * FALSE_ALARMS:g} % against {PAST_DAYS} days before",
    )
    on_first = sum(day == 0 for day in found.values())
    yield (
        f"drift, {cameras // 2} cameras a fifth dimmer",
        f"{len(found)} found, {on_first} on the first day",
        "share of usable faces and their quality fell to 80 %",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = ("speed", "kills", "full", "cuts", "stress", "copy", "drift")
    parser.add_argument("--only", nargs="+", choices=every, default=[*every])
    parser.add_argument("--visits", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--postgres", help="URL of an empty database")
    for name in ("--write", "--churn", "--copy"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_forever(arguments.write, arguments.start)
    elif arguments.churn:
        churn(arguments.churn, arguments.minutes)
    elif arguments.copy:
        source = open_store(arguments.copy, read_only=True)
        with source, open_store(arguments.postgres) as target:
            print("ready", flush=True)
            copy_visits(source, target)
    else:
        report(arguments)


def report(arguments: argparse.Namespace) -> None:
    """Run what is asked for, and print a table."""
    table = Table("what", "result", "beside", title="the store of visits")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "speed": lambda: speed(folder, arguments.visits),
            "kills": lambda: kills(folder, arguments.kills),
            "full": lambda: full(folder),
            "cuts": lambda: cuts(folder),
            "stress": lambda: stress(folder, arguments.minutes),
            "drift": lambda: drift(folder),
        }
        for part in (name for name in parts if name in arguments.only):
            for row in parts[part]():
                print(*row, sep=" | ", flush=True)
                table.add_row(*row)
        if "copy" in arguments.only:
            with postgres(arguments.postgres) as url:
                for row in copy(folder, arguments.visits, url) if url else ():
                    print(*row, sep=" | ", flush=True)
                    table.add_row(*row)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
