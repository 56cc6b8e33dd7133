"""
``agelens watch`` killed at random moments, on SQLite and PostgreSQL: is a visit lost or doubled?

    python benchmarks/watch_kills.py [--kills 20] [--seed 1] [--only sqlite|postgres]

A video of people who walk past one after another is watched again and again by the real command,
which is ended by kill -9 at random moments, now and then before it has begun; on PostgreSQL the
server crashes in the middle of every other run too, and comes back. When a video is through, its
visits are held against those of a run that nothing happened to: each has to be there once, equal to
the last digit, and the store has to pass its own check. Needs a PostgreSQL server's programs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from agelens.analytics.store import Scope, open_store  # noqa: E402
from agelens.analytics.watching import Watch  # noqa: E402
from agelens.video.plan import WatchPlan, plan_toml  # noqa: E402
from agelens.video.visit import Visit  # noqa: E402
from analytics.servers import PostgresServer  # noqa: E402
from analytics.watched import camera_of, write_visits  # noqa: E402

PEOPLE = 40
ALL = Scope(staff=True)


@dataclass
class Tally:
    """What happened on one database."""

    kills: int = 0
    before: int = 0
    inside: int = 0
    restarts: int = 0
    videos: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    problems: int = 0

    @property
    def faults(self) -> int:
        """What must not happen."""
        return self.lost + self.doubled + self.changed + self.problems


def main() -> int:
    """Print a line for each database; 1 when anything was lost, doubled or changed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("sqlite", "postgres"))
    parser.add_argument("--processes", action="store_true")
    asked = parser.parse_args()
    moments = random.Random(asked.seed)
    options = ("--processes",) if asked.processes else ()
    tallies = {}
    with tempfile.TemporaryDirectory(prefix="agelens-kills-") as name:
        folder = Path(name)
        clip = folder / "door.mp4"
        truth = write_visits(clip, people=PEOPLE)
        began = time.monotonic()
        expected = undisturbed(clip, folder / "undisturbed.sqlite")
        took_s = time.monotonic() - began
        print(f"{truth.visitors} people, {len(expected)} visits, {took_s:.1f} s a run undisturbed")
        if asked.only != "postgres":
            tallies["SQLite"] = killed(
                clip, folder, expected, moments, asked.kills, took_s, options
            )
        if asked.only != "sqlite":
            server = PostgresServer()
            try:
                tallies["PostgreSQL"] = killed(
                    clip, folder, expected, moments, asked.kills, took_s, options, server
                )
            finally:
                server.remove()
    for database, tally in tallies.items():
        print(
            f"{database}: {tally.kills} kills ({tally.inside} in the middle of the video, "
            f"{tally.before} before it), {tally.restarts} crashes of the server, {tally.videos} "
            f"videos: {tally.lost} visits lost, {tally.doubled} doubled, {tally.changed} changed, "
            f"{tally.problems} problems found by the store's check"
        )
    return int(any(tally.faults for tally in tallies.values()))


def undisturbed(clip: Path, where: Path) -> list[Visit]:
    """The visits of a run that nothing happens to."""
    with open_store(where) as store:
        Watch(WatchPlan(cameras=(camera_of(clip),)), store=store).run()
        return list(store.visits(ALL))


def killed(
    clip: Path,
    folder: Path,
    expected: list[Visit],
    moments: random.Random,
    kills: int,
    took_s: float,
    options: tuple[str, ...],
    server: PostgresServer | None = None,
) -> Tally:
    """Watch until so many runs were killed, and the last video is through."""
    tally = Tally()
    while tally.kills < kills:
        number = tally.videos
        if server is None:
            where = str(folder / f"visits-{number}.sqlite")
        else:
            where = server.create(f"visits_{number}")
        plan = folder / "watch.toml"
        plan.write_text(plan_toml(WatchPlan(cameras=(camera_of(clip),), store=where)))
        while not run(plan, options, moments, took_s, tally, server, kills):
            pass
        tally.videos += 1
        compare(where, expected, tally)
        if tally.faults:
            break
    return tally


def run(
    plan: Path,
    options: tuple[str, ...],
    moments: random.Random,
    took_s: float,
    tally: Tally,
    server: PostgresServer | None,
    kills: int,
) -> bool:
    """One run; whether it came to its end."""
    crashes = server is not None and moments.random() < 0.5
    program = subprocess.Popen(
        [sys.executable, "-m", "agelens", "watch", "--plan", str(plan), *options],
        cwd=plan.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stderr is not None
    if moments.random() < 0.15 and tally.kills < kills:
        time.sleep(moments.uniform(0, 1.5))
        program.send_signal(signal.SIGKILL)
        tally.kills += 1
        tally.before += 1
        program.wait()
        return False
    said = until_it_watches(program.stderr)
    if crashes:
        assert server is not None
        time.sleep(moments.uniform(0, 0.3 * took_s))
        server.stop("immediate")
        tally.restarts += 1
        if moments.random() < 0.5:
            server.start()
            crashes = False
    time.sleep(moments.uniform(0, 0.6 * took_s))
    if program.poll() is None and tally.kills < kills:
        program.send_signal(signal.SIGKILL)
        tally.kills += 1
        tally.inside += 1
    if crashes:
        assert server is not None
        server.start()
    said += program.stderr.readlines()
    status = program.wait()
    if status not in (0, -signal.SIGKILL):
        print("".join(said), f"exit status {status}", file=sys.stderr)
        tally.problems += 1
        return True
    return status == 0


def until_it_watches(lines: IO[str]) -> list[str]:
    """What the command says until it says that it watches."""
    said = []
    for line in lines:
        said.append(line)
        if any(word in line for word in ("running", "ended", "known", "error")):
            break
    return said


def compare(where: str, expected: list[Visit], tally: Tally) -> None:
    """Hold the visits of a store against those expected."""
    with open_store(where) as store:
        found = list(store.visits(ALL))
        problems = store.check()
    wanted = {visit.key: visit for visit in expected}
    there = {visit.key: visit for visit in found}
    tally.lost += len(wanted.keys() - there.keys())
    tally.doubled += len(found) - len(there) + len(there.keys() - wanted.keys())
    tally.changed += sum(there[key] != wanted[key] for key in wanted.keys() & there.keys())
    tally.problems += len(problems)
    for key in sorted(wanted.keys() - there.keys()):
        print(f"{where}: lost: {key}, {wanted[key].start}", file=sys.stderr)
    for problem in problems:
        print(problem, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
