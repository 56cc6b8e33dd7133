"""
The service for long and under attack: kills, slow clients, overload, leaving, memory.

    python benchmarks/soak_serving.py [--only kills,slow,overload,leaving,memory] [--quick]
                                      [--minutes 120] [--set NAME=VALUE]

Each part starts the real command ``agelens serve`` and loads it as ``benchmarks/serving.py`` does.
Exits with 1 when a goal is missed:

* kills: a worker is killed (SIGKILL) every 5 s for 2 min under load: no request hangs, at most one
  fails for each kill, and the worker is back within 3 s;
* slow: 200 connections send a head or a body at one byte a second for 60 s: the p99 of the others
  at most doubles, and every slow one is closed within 30 s;
* overload: four times the capacity for 5 min, as in serving.py;
* leaving: SIGTERM under load, several times: not one request that was sent goes unanswered, and
  the end comes within 10 s; and two servers taking turns lose none of 5,000 requests;
* memory: two hours of requests: at most 1 MB in 10,000 of them, files and threads constant.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import psutil

from serving import (
    FEWEST_FOR_A_SLOPE,
    MEGABYTE,
    Generator,
    Outcome,
    Plan,
    Report,
    Server,
    percentile,
    run_latency,
    run_overload,
    run_throughput,
    tell_failures,
)

SLOW_CONNECTIONS = 200
CLIENTS = 8


# --- kills ----------------------------------------------------------------------------------------


def run_kills(report: Report, settings: list[str], seconds: float) -> None:
    """Kill a worker every 5 s under load."""
    back_s: list[float] = []
    with Server(*settings) as server:
        load = Generator(Plan(server.url, CLIENTS, seconds=seconds))
        end = time.monotonic() + seconds - 4
        turn = 0
        while time.monotonic() < end:
            start = time.monotonic()
            workers = server.workers()
            killed = workers[turn % len(workers)]
            killed.kill()
            turn += 1
            back_s.append(_until_back(server, killed.pid, len(workers), start))
            time.sleep(max(0.0, start + 5 - time.monotonic()))
        outcome = load.result()
    lost = outcome.errors
    report.table(
        f"Kills: {len(back_s)} in {seconds:g} s, {CLIENTS} clients",
        {
            "kills, answered": (outcome.good, "{:.0f}"),
            "kills, not answered": (lost, "{:.0f}"),
            "kills, longest answer ms": (max(outcome.good_ms, default=0), "{:.0f}"),
            "back after, median s": (percentile(back_s, 0.5), "{:.2f}"),
            "back after, most s": (max(back_s), "{:.2f}"),
        },
    )
    tell_failures(report, outcome)
    report.goal(lost <= len(back_s), f"kills: {lost} requests failed in {len(back_s)} kills")
    report.goal(max(back_s) <= 3, f"kills: a worker was back after {max(back_s):.1f} s, not 3")
    report.goal(max(outcome.good_ms, default=0) < 15_000, "kills: a request hung")


def _until_back(server: Server, killed: int, wanted: int, start: float) -> float:
    """Seconds until as many workers as before have loaded.

    A worker that has loaded works at a lower priority than the front: that is the last thing it
    does before it takes work.
    """
    front = psutil.Process(server.process.pid).nice()
    while time.monotonic() - start < 60:
        with suppress(psutil.Error):
            others = [worker for worker in server.workers() if worker.pid != killed]
            if sum(worker.nice() > front for worker in others) >= wanted:
                break
        time.sleep(0.02)
    return time.monotonic() - start


# --- slow clients ---------------------------------------------------------------------------------


@dataclass
class SlowClients:
    """Connections that send one byte a second, half of them in the head and half in the body.

    Attributes:
        closed_s: Seconds after which the server closed each.
    """

    url: str
    closed_s: list[float] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until all are closed or ``stop``."""
        address = urlsplit(self.url)
        head = (
            f"POST /v1/analyze HTTP/1.1\r\nHost: {address.hostname}:{address.port}\r\n"
            "Content-Type: image/jpeg\r\nContent-Length: 70000\r\n"
        ).encode()
        open_: dict[socket.socket, tuple[float, bytes, int]] = {}
        for number in range(SLOW_CONNECTIONS):
            client = socket.create_connection((address.hostname, address.port or 80))
            client.setblocking(False)
            content = head if number % 2 else head + b"\r\n"
            first = 20 if number % 2 else len(content)
            client.send(content[:first])
            open_[client] = (time.monotonic(), content + b"x" * 200, first)
        while open_ and not self._ended.wait(1.0):
            for client, (start, content, sent) in list(open_.items()):
                if _is_closed(client) or not _send_one(client, content, sent):
                    self.closed_s.append(time.monotonic() - start)
                    client.close()
                    del open_[client]
                else:
                    open_[client] = (start, content, sent + 1)
        for client, (start, _, _) in open_.items():
            self.closed_s.append(time.monotonic() - start)
            client.close()

    def stop(self) -> None:
        """End those that are left."""
        self._ended.set()


def _is_closed(client: socket.socket) -> bool:
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _send_one(client: socket.socket, content: bytes, sent: int) -> bool:
    try:
        client.send(content[sent : sent + 1] or b"x")
    except OSError:
        return False
    return True


def run_slow(report: Report, settings: list[str], seconds: float) -> None:
    """Good clients beside slow ones."""
    with Server(*settings) as server:
        before = Generator(Plan(server.url, rate=5, seconds=seconds / 2)).result()
        slow = SlowClients(server.url)
        thread = threading.Thread(target=slow.run, daemon=True)
        thread.start()
        time.sleep(1)
        beside = Generator(Plan(server.url, rate=5, seconds=seconds)).result()
        thread.join(max(0.0, 40 - seconds))
        slow.stop()
        thread.join()
    ratio = percentile(beside.good_ms, 0.99) / percentile(before.good_ms, 0.99)
    report.table(
        f"Slow clients: {SLOW_CONNECTIONS} at one byte a second, 5 requests/s beside them",
        {
            "p99 without them, ms": (percentile(before.good_ms, 0.99), "{:.1f}"),
            "p99 beside them, ms": (percentile(beside.good_ms, 0.99), "{:.1f}"),
            "slow, ratio": (ratio, "{:.2f}"),
            "slow ones closed after, most s": (max(slow.closed_s), "{:.1f}"),
            "slow, other errors": (before.errors + beside.errors, "{:.0f}"),
        },
    )
    report.goal(ratio <= 2, f"slow: p99 is {ratio:.1f} times that without them, not 2")
    report.goal(max(slow.closed_s) <= 30, f"slow: one stayed for {max(slow.closed_s):.0f} s")
    report.goal(not before.errors + beside.errors, "slow: a good client got an error")


# --- leaving --------------------------------------------------------------------------------------


def run_leaving(report: Report, settings: list[str], turns: int, requests: int) -> None:
    """SIGTERM under load, then two servers that take turns."""
    lost, ends = 0, []
    seen: Counter[str] = Counter()
    for _ in range(turns):
        with Server(*settings) as server:
            load = Generator(Plan(server.url, 16, seconds=4, patient=False, leaving=True))
            time.sleep(3)
            start = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(60)
            ends.append(time.monotonic() - start)
            report.goal(code == 0, f"leaving: the server ended with status {code}")
            outcome = load.result()
        lost += outcome.failures["ConnectionError: closed without an answer"]
        seen.update(outcome.statuses)
    rolled = _roll(settings, requests)
    report.table(
        f"Leaving: {turns} x SIGTERM under load; {requests:,} requests over restarts",
        {
            "leaving, answered": (seen["200"], "{:.0f}"),
            "leaving, refused": (seen["503"], "{:.0f}"),
            "leaving, unanswered": (lost, "{:.0f}"),
            "leaving, most s to the end": (max(ends), "{:.2f}"),
            "restarts, answered": (rolled.good, "{:.0f}"),
            "restarts, not answered": (rolled.errors + rolled.statuses["503"], "{:.0f}"),
        },
    )
    tell_failures(report, rolled)
    report.goal(not lost, f"leaving: {lost} requests were sent and not answered")
    report.goal(max(ends) <= 10, f"leaving: the end took {max(ends):.1f} s, not 10")
    report.goal(rolled.good == requests, f"restarts: {rolled.good} of {requests} answered")


def _roll(settings: list[str], requests: int) -> Outcome:
    """Clients go over to the next server before the last one is told to leave."""
    total, current = Outcome(), Server(*settings).__enter__()
    parts = 5
    for part in range(parts):
        load = Generator(Plan(current.url, CLIENTS, seconds=1e9, requests=requests // parts))
        following = Server(*settings).__enter__() if part + 1 < parts else None
        outcome = load.result()
        current.__exit__()
        total.statuses.update(outcome.statuses)
        total.failures.update(outcome.failures)
        if following is not None:
            current = following
    return total


# --- memory ---------------------------------------------------------------------------------------


@dataclass
class Sizes:
    """What the processes of a server hold at a moment."""

    requests: int
    megabytes: float
    files: int
    threads: int


def _sizes(server: Server, requests: int) -> Sizes:
    processes = [psutil.Process(server.process.pid), *server.workers()]
    return Sizes(
        requests,
        sum(one.memory_info().rss for one in processes) / MEGABYTE,
        sum(one.num_fds() for one in processes),
        sum(one.num_threads() for one in processes),
    )


def run_memory(report: Report, settings: list[str], minutes: float) -> None:
    """Many requests in rounds; what is held is looked at between them, when all is quiet."""
    sizes: list[Sizes] = []
    sent, errors = 0, 0
    with Server(*settings) as server:
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end or len(sizes) < 5:
            outcome = Generator(
                Plan(server.url, 16, seconds=max(2.0, 0.6 * minutes), patient=True)
            ).result()
            sent += outcome.good
            errors += outcome.errors
            time.sleep(0.5)
            sizes.append(_sizes(server, sent))
    settled = sizes[len(sizes) // 5 :]
    done = [size.requests for size in settled]
    slope = 1e4 * float(np.polyfit(done, [size.megabytes for size in settled], 1)[0])
    files = {size.files for size in settled}
    threads = {size.threads for size in settled}
    report.table(
        f"Memory: {sent:,} requests in {minutes:g} min",
        {
            "at the end, MB": (sizes[-1].megabytes, "{:.1f}"),
            "slope, MB in 10,000 requests": (slope, "{:.2f}"),
            "files, spread": (max(files) - min(files), "{:.0f}"),
            "threads, spread": (max(threads) - min(threads), "{:.0f}"),
            "memory, other errors": (errors, "{:.0f}"),
        },
    )
    if sent >= FEWEST_FOR_A_SLOPE:
        report.goal(slope <= 1, f"memory: grows by {slope:.1f} MB in 10,000 requests, not 1")
    # Idle connections that the clients of a round left behind are closed in their own time.
    report.goal(max(files) - min(files) <= 32, "memory: the number of open files grows")
    report.goal(max(threads) - min(threads) <= 2, "memory: the number of threads grows")
    report.goal(not errors, f"memory: {errors} errors other than 503")


def main() -> int:
    arguments = parse()
    quick, settings = arguments.quick, arguments.set
    parts = arguments.only.split(",")
    report = Report()
    if "kills" in parts:
        run_kills(report, settings, 20 if quick else 120)
    if "slow" in parts:
        run_slow(report, settings, 32 if quick else 60)
    if "overload" in parts:
        seconds = 6.0 if quick else 300.0
        with Server(*settings) as server:
            run_throughput(server, report, 32, min(seconds, 30.0))
            run_latency(server, report, min(seconds, 30.0))
            run_overload(server, report, seconds)
    if "leaving" in parts:
        run_leaving(report, settings, 2 if quick else 10, 200 if quick else 5000)
    if "memory" in parts:
        run_memory(report, settings, 0.5 if quick else arguments.minutes)
    return report.verdict()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", default="kills,slow,overload,leaving,memory")
    parser.add_argument("--minutes", type=float, default=120.0, help="of the memory part")
    parser.add_argument("--quick", action="store_true", help="a few minutes in all")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    raise SystemExit(main())
