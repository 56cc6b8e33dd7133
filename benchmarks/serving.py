"""
The service under load, beside the same pipeline in process: throughput, latency, overload, memory.

    python benchmarks/serving.py [--seconds 60] [--clients 32] [--requests 20000] [--quick]
                                 [--only throughput,latency,overload,memory] [--json FILE]

Starts the real command ``agelens serve`` and sends it the photographs of ``tests/faces`` as raw
bodies, in turns, from a process of its own (asyncio, bare sockets, answers searched and not
parsed). Everything shares the cores this program may use. The baseline is ``Analyzer.stream`` over
the same bytes in as many processes. CPU times do not depend on what else the machine does; wall
times do, so run it on an idle one. Exits with 1 when a goal is missed.

* throughput: closed loop, as many clients as stated; goal: 85 % of the baseline's faces a second,
  no errors but 503.
* latency: one client; then arrivals at random times (open loop, counted from when each was due) at
  70 % of what was reached before; goal: p99 under five times the unloaded p99.
* overload: open loop at four times that; goals: 90 % of that goodput, p99 of what is accepted
  within three times that at 70 %, refusals are 503 with Retry-After within 100 ms.
* memory: resident megabytes of all processes over the requests; goal: 1 MB in 10,000 at most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import urlsplit

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src"
FACES = REPOSITORY / "tests" / "faces"
PHOTOGRAPHS = ("astronaut.jpg", "hopper.jpg", "group.jpg")
MEGABYTE = 1 << 20
# Under so many requests the slope is that of warming up: it is printed and not judged.
FEWEST_FOR_A_SLOPE = 5000
# One face of an answer, whatever it holds.
FACE_MARK = b'"origin"'
# The benchmark is one caller with one key; it is not there to measure the rate limits.
FREE = ("rate_per_minute=100000000", "rate_per_address=100000000")


def photographs() -> list[bytes]:
    return [(FACES / name).read_bytes() for name in PHOTOGRAPHS]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, str]:
    """That of a process which imports this checkout."""
    paths = [str(SOURCE), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else math.nan


# --- the load -------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What the load generator does.

    Attributes:
        url: Of the server.
        clients: Connections of a closed loop; ignored by an open one.
        rate: Requests a second of an open loop; None is a closed one.
        seconds: For so long.
        requests: So many at most; None sets no limit.
        patient: A refused client of a closed loop waits for its Retry-After.
        seed: Of the arrival times.
        leaving: The server leaves meanwhile: a client ends when it can no longer connect.
    """

    url: str
    clients: int = 1
    rate: float | None = None
    seconds: float = 10.0
    requests: int | None = None
    patient: bool = True
    seed: int = 1
    leaving: bool = False


@dataclass
class Outcome:
    """What the load generator saw.

    Attributes:
        seconds: From the first request to the last answer.
        statuses: Answers by status.
        failures: Requests without an answer, by what happened.
        faces: Faces in all answers.
        good_ms: Milliseconds of each answer 200, from when the request was due.
        refused_ms: Milliseconds of each answer 503.
        without_retry_after: Answers 503 that do not say when to come again.
        late: Requests of an open loop that were sent over 50 ms after they were due.
        cpu_s: Processor time of the generator.
    """

    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    faces: int = 0
    good_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    late: int = 0
    cpu_s: float = 0.0

    @property
    def good(self) -> int:
        """Answers 200."""
        return self.statuses["200"]

    @property
    def errors(self) -> int:
        """Everything but an answer and a refusal."""
        others = sum(n for status, n in self.statuses.items() if status not in ("200", "503"))
        return others + sum(self.failures.values())


class Connection(asyncio.Protocol):
    """One connection that sends a request and waits for its answer."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_open = False
        self._received = bytearray()
        self._end = 0
        self._answer: asyncio.Future[tuple[int, int, float | None]] | None = None
        self._head: bytes = b""

    async def ask(self, request: bytes) -> tuple[int, int, float | None]:
        """Send; returns status, faces and Retry-After in seconds.

        Raises:
            ConnectionError: The server closed the connection without an answer.
        """
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        self._received += data
        if not self._end:
            mark = self._received.find(b"\r\n\r\n")
            if mark < 0:
                return
            self._head = bytes(self._received[: mark + 2]).lower()
            self._end = mark + 4 + int(self._field(b"content-length") or 0)
        if len(self._received) >= self._end:
            self._take()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed it."""
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("closed without an answer"))

    def _take(self) -> None:
        status = int(self._received[9:12])
        faces = self._received.count(FACE_MARK)
        wait = self._field(b"retry-after")
        if self._field(b"connection") == b"close":
            self.is_open = False
        self._received.clear()
        self._end = 0
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, faces, None if wait is None else float(wait)))

    def _field(self, name: bytes) -> bytes | None:
        _, mark, rest = self._head.partition(b"\r\n" + name + b":")
        return rest.partition(b"\r\n")[0].strip() if mark else None


class Load:
    """Carries out a plan in this process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        address = urlsplit(plan.url)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        head = (
            f"POST /v1/analyze HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            "Content-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n"
        )
        self._bodies = [head.format(length=len(body)).encode() + body for body in photographs()]
        self._sent = 0
        self._has_left = False
        self._free: deque[Connection] = deque()
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Send all of it."""
        start, cpu = time.monotonic(), time.process_time()
        if self._plan.rate is None:
            until = start + self._plan.seconds
            await asyncio.gather(*(self._client(until) for _ in range(self._plan.clients)))
        else:
            await self._arrivals(start, self._plan.rate)
        self.outcome.seconds = time.monotonic() - start
        self.outcome.cpu_s = time.process_time() - cpu
        return self.outcome

    async def _client(self, until: float) -> None:
        """One client of a closed loop."""
        while time.monotonic() < until and self._may_send():
            wait_s = await self._ask(time.monotonic())
            if wait_s is not None and self._plan.patient:
                await asyncio.sleep(wait_s)

    async def _arrivals(self, start: float, rate: float) -> None:
        """An open loop: requests come at random, whether or not the others are answered."""
        source, due = random.Random(self._plan.seed), start
        asking: set[asyncio.Task[float | None]] = set()
        while due < start + self._plan.seconds and self._may_send():
            due += source.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self._ask(due))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)

    def _may_send(self) -> bool:
        if self._has_left:
            return False
        return self._plan.requests is None or self._sent < self._plan.requests

    async def _ask(self, due: float) -> float | None:
        """Send the next photograph; returns how long to wait after a refusal."""
        body = self._bodies[self._sent % len(self._bodies)]
        self._sent += 1
        outcome = self.outcome
        try:
            connection = await self._connection()
            outcome.late += time.monotonic() - due > 0.05
            status, faces, wait_s = await connection.ask(body)
        except OSError as error:
            if self._plan.leaving and isinstance(error, ConnectionRefusedError):
                self._has_left = True
                return None
            outcome.failures[f"{type(error).__name__}: {error}"] += 1
            await asyncio.sleep(0.05)
            return None
        taken_ms = 1000 * (time.monotonic() - due)
        if connection.is_open:
            self._free.append(connection)
        outcome.statuses[str(status)] += 1
        outcome.faces += faces
        if status == 200:
            outcome.good_ms.append(taken_ms)
        elif status == 503:
            outcome.refused_ms.append(taken_ms)
            outcome.without_retry_after += wait_s is None
            return wait_s or 0.1
        return None

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port)
        return connection


def generate(plan: Plan) -> Outcome:
    """Carry out a plan on the cheapest loop there is."""
    with suppress(ImportError):
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Load(plan).run())
    return asyncio.run(Load(plan).run())


class Generator:
    """The load generator in a process of its own."""

    def __init__(self, plan: Plan) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--role", "load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(plan)).encode())
        self._process.stdin.close()

    def result(self) -> Outcome:
        """Wait for its end."""
        assert self._process.stdout is not None
        with self._process as process:
            text = self._process.stdout.read()
        if process.returncode:
            raise SystemExit(f"the load generator ended with status {process.returncode}")
        found: dict[str, Any] = json.loads(text)
        found.update({name: Counter(found[name]) for name in ("statuses", "failures")})
        return Outcome(**found)


# --- the server -----------------------------------------------------------------------------------


@dataclass
class Usage:
    """Processor seconds and megabytes of the server's processes."""

    front_s: float
    workers_s: float
    front_mb: float
    workers_mb: float

    def since(self, before: Usage) -> tuple[float, float]:
        """Processor seconds of the front and of the workers."""
        return self.front_s - before.front_s, self.workers_s - before.workers_s


class Server:
    """The real command, on a free port, as a context."""

    def __init__(self, *settings: str) -> None:
        self._settings = settings
        self.url = ""

    def __enter__(self) -> Self:
        pairs = [part for setting in (*FREE, *self._settings) for part in ("--set", setting)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agelens", "serve", "--port", "0", *pairs],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("listening on "):
                self.url = line.split()[-1]
                break
        else:
            raise SystemExit("agelens serve ended before it listened; run it to see why")
        self.wait_ready()
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def wait_ready(self, within_s: float = 120.0) -> None:
        """Until /readyz answers 200."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=5):
                return
            time.sleep(0.05)
        raise SystemExit(f"the server was not ready within {within_s:g} s")

    def workers(self) -> list[psutil.Process]:
        """Its inference processes."""
        return [
            child
            for child in psutil.Process(self.process.pid).children()
            if "agelens.server.inference" in " ".join(child.cmdline())
        ]

    def usage(self) -> Usage:
        """What its processes have taken so far."""
        front = psutil.Process(self.process.pid)
        with front.oneshot():
            spent, size = front.cpu_times(), front.memory_info().rss
        others = [(child.cpu_times(), child.memory_info().rss) for child in self.workers()]
        return Usage(
            spent.user + spent.system,
            sum(times.user + times.system for times, _ in others),
            size / MEGABYTE,
            sum(rss for _, rss in others) / MEGABYTE,
        )


@contextmanager
def sampled(server: Server, samples: list[tuple[float, float]], every_s: float) -> Iterator[None]:
    """Note (monotonic time, megabytes of all processes) meanwhile."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            with suppress(psutil.Error):
                usage = server.usage()
                samples.append((time.monotonic(), usage.front_mb + usage.workers_mb))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# --- the baseline ---------------------------------------------------------------------------------


@dataclass
class Baseline:
    """The pipeline in process.

    Attributes:
        faces_per_s: Of all processes together.
        cpu_ms: Processor milliseconds a face.
    """

    faces_per_s: float
    cpu_ms: float


def stream_in_process(seconds: float) -> dict[str, float]:
    """What one process of the baseline does, after a first round to warm up."""
    import cv2

    from agelens import Analyzer

    # As in the service: one thread a process.
    cv2.setNumThreads(1)
    analyzer, bodies = Analyzer(), photographs()
    for body in bodies:
        analyzer(body)

    start, cpu, faces = time.monotonic(), time.process_time(), 0

    def endless() -> Iterator[bytes]:
        number = 0
        while time.monotonic() - start < seconds:
            yield bodies[number % len(bodies)]
            number += 1

    for analysis in analyzer.stream(endless(), workers=1):
        faces += len(analysis.faces)
    return {
        "faces": faces,
        "seconds": time.monotonic() - start,
        "cpu_s": time.process_time() - cpu,
    }


def measure_baseline(seconds: float) -> Baseline:
    """``Analyzer.stream`` in one process a core."""
    command = [sys.executable, __file__, "--role", "baseline", "--seconds", str(seconds)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) for _ in range(cores())
    ]
    found = [json.loads(process.communicate()[0]) for process in running]
    return Baseline(
        sum(one["faces"] / one["seconds"] for one in found),
        1000 * sum(one["cpu_s"] for one in found) / sum(one["faces"] for one in found),
    )


# --- the parts of the report ----------------------------------------------------------------------


@dataclass
class Report:
    """What was measured, and which goals were missed."""

    figures: dict[str, float] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    console: Console = field(default_factory=Console)

    def table(self, title: str, rows: dict[str, tuple[float, str]]) -> None:
        """Print and keep figures: by name, the value and how it is written."""
        table = Table("figure", "value", title=title, title_justify="left")
        table.columns[1].justify = "right"
        for name, (value, form) in rows.items():
            self.figures[name] = value
            table.add_row(name, form.format(value))
        self.console.print(table)

    def goal(self, holds: bool, text: str) -> None:
        """Check a goal."""
        if not holds:
            self.missed.append(text)

    def verdict(self) -> int:
        """Print the goals that were missed; the exit status."""
        for goal in self.missed:
            print(f"MISSED: {goal}")
        if not self.missed:
            print("all goals met")
        return 1 if self.missed else 0


def run_throughput(server: Server, report: Report, clients: int, seconds: float) -> None:
    """Closed loop beside the baseline; half of the baseline before and half after it."""
    Generator(Plan(server.url, clients, seconds=min(5.0, seconds))).result()
    first = measure_baseline(seconds / 2)
    before = server.usage()
    outcome = Generator(Plan(server.url, clients, seconds=seconds)).result()
    front_s, workers_s = server.usage().since(before)
    second = measure_baseline(seconds / 2)
    baseline = (first.faces_per_s + second.faces_per_s) / 2
    baseline_ms = (first.cpu_ms + second.cpu_ms) / 2
    faces = max(1, outcome.faces)
    rate = outcome.faces / outcome.seconds
    served_ms = 1000 * (front_s + workers_s) / faces
    report.table(
        f"Throughput: {clients} clients, {seconds:g} s, {cores()} cores",
        {
            "in process, faces/s": (baseline, "{:.1f}"),
            "server, faces/s": (rate, "{:.1f}"),
            "server, requests/s": (outcome.good / outcome.seconds, "{:.1f}"),
            "ratio": (rate / baseline, "{:.3f}"),
            "p50, ms": (percentile(outcome.good_ms, 0.5), "{:.0f}"),
            "p99, ms": (percentile(outcome.good_ms, 0.99), "{:.0f}"),
            "answers 503": (outcome.statuses["503"], "{:.0f}"),
            "503 without Retry-After": (outcome.without_retry_after, "{:.0f}"),
            "other errors": (outcome.errors, "{:.0f}"),
            "CPU in process, ms/face": (baseline_ms, "{:.2f}"),
            "CPU front, ms/face": (1000 * front_s / faces, "{:.2f}"),
            "CPU workers, ms/face": (1000 * workers_s / faces, "{:.2f}"),
            "CPU client, ms/face": (1000 * outcome.cpu_s / faces, "{:.2f}"),
            "CPU front, ms/request": (1000 * front_s / max(1, outcome.good), "{:.2f}"),
            "CPU in process / server": (baseline_ms / served_ms, "{:.3f}"),
        },
    )
    tell_failures(report, outcome)
    report.goal(rate >= 0.85 * baseline, f"throughput: {rate / baseline:.3f} of 0.85")
    report.goal(not outcome.errors, f"throughput: {outcome.errors} errors other than 503")
    report.goal(not outcome.without_retry_after, "throughput: a 503 without Retry-After")


def run_latency(server: Server, report: Report, seconds: float) -> None:
    """One client, then 70 % of capacity."""
    alone = Generator(Plan(server.url, 1, seconds=seconds / 2)).result()
    rate = 0.7 * capacity(report)
    busy = Generator(Plan(server.url, rate=rate, seconds=seconds)).result()
    unloaded, loaded = percentile(alone.good_ms, 0.99), percentile(busy.good_ms, 0.99)
    report.table(
        f"Latency: one client, then {rate:.1f} requests/s at random",
        {
            "unloaded p50, ms": (percentile(alone.good_ms, 0.5), "{:.1f}"),
            "unloaded p99, ms": (unloaded, "{:.1f}"),
            "at 70 % p50, ms": (percentile(busy.good_ms, 0.5), "{:.1f}"),
            "at 70 % p99, ms": (loaded, "{:.1f}"),
            "p99 / unloaded p99": (loaded / unloaded, "{:.2f}"),
            "at 70 %, answers 503": (busy.statuses["503"], "{:.0f}"),
            "at 70 %, other errors": (busy.errors, "{:.0f}"),
            "at 70 %, sent late": (busy.late, "{:.0f}"),
        },
    )
    tell_failures(report, busy)
    report.goal(loaded < 5 * unloaded, f"latency: p99 is {loaded / unloaded:.1f} times unloaded")
    report.goal(not busy.errors + alone.errors, "latency: errors other than 503")


def run_overload(server: Server, report: Report, seconds: float) -> None:
    """Four times as much as it can do."""
    peak = capacity(report)
    before = server.usage()
    outcome = Generator(Plan(server.url, rate=4 * peak, seconds=seconds)).result()
    after = server.usage()
    front_s, _ = after.since(before)
    good = outcome.good / outcome.seconds
    accepted = percentile(outcome.good_ms, 0.99)
    refused = percentile(outcome.refused_ms, 0.99)
    growth = (after.front_mb + after.workers_mb) / (before.front_mb + before.workers_mb) - 1
    at_70 = report.figures.get("at 70 % p99, ms", math.nan)
    report.table(
        f"Overload: {4 * peak:.0f} requests/s at random, {seconds:g} s",
        {
            "goodput, requests/s": (good, "{:.1f}"),
            "goodput / capacity": (good / peak, "{:.3f}"),
            "accepted p50, ms": (percentile(outcome.good_ms, 0.5), "{:.0f}"),
            "accepted p99, ms": (accepted, "{:.0f}"),
            "accepted p99 / p99 at 70 %": (accepted / at_70, "{:.2f}"),
            "refused": (outcome.statuses["503"], "{:.0f}"),
            "time to 503 p50, ms": (percentile(outcome.refused_ms, 0.5), "{:.1f}"),
            "time to 503 p99, ms": (refused, "{:.1f}"),
            "overload, other errors": (outcome.errors, "{:.0f}"),
            "CPU front, share of a core": (front_s / outcome.seconds, "{:.2f}"),
            "CPU client, share of a core": (outcome.cpu_s / outcome.seconds, "{:.2f}"),
            "memory growth": (growth, "{:.1%}"),
        },
    )
    tell_failures(report, outcome)
    report.goal(good >= 0.9 * peak, f"overload: goodput {good / peak:.2f} of capacity, not 0.9")
    report.goal(not accepted > 3 * at_70, f"overload: p99 is {accepted / at_70:.1f} x that at 70 %")
    report.goal(not refused > 100, f"overload: a refusal takes {refused:.0f} ms, not 100")
    report.goal(not outcome.errors, f"overload: {outcome.errors} errors other than 503")
    report.goal(growth <= 0.2, f"overload: memory grows by {growth:.0%}, not 20 %")


def run_memory(server: Server, report: Report, clients: int, requests: int) -> None:
    """Megabytes of all processes over many requests; the first fifth is warming up."""
    samples: list[tuple[float, float]] = []
    start = time.monotonic()
    with sampled(server, samples, every_s=max(0.1, min(1.0, requests / 20_000))):
        plan = Plan(server.url, clients, seconds=1e9, requests=requests)
        outcome = Generator(plan).result()
    per_s = requests / outcome.seconds
    done = np.array([(moment - start) * per_s for moment, _ in samples])
    size = np.array([megabytes for _, megabytes in samples])
    settled = done > requests / 5
    slope = 1e4 * float(np.polyfit(done[settled], size[settled], 1)[0])
    report.table(
        f"Memory: {requests:,} requests",
        {
            "after the first fifth, MB": (float(size[settled][0]), "{:.1f}"),
            "at the end, MB": (float(size[-1]), "{:.1f}"),
            "most, MB": (float(size.max()), "{:.1f}"),
            "slope, MB in 10,000 requests": (slope, "{:.2f}"),
            "memory, other errors": (outcome.errors, "{:.0f}"),
        },
    )
    tell_failures(report, outcome)
    if requests >= FEWEST_FOR_A_SLOPE:
        report.goal(slope <= 1, f"memory: grows by {slope:.1f} MB in 10,000 requests, not 1")
    report.goal(not outcome.errors, f"memory: {outcome.errors} errors other than 503")


def capacity(report: Report) -> float:
    """Requests a second that were reached."""
    return report.figures["server, requests/s"]


def tell_failures(report: Report, outcome: Outcome) -> None:
    wrong = {k: n for k, n in outcome.statuses.items() if k not in ("200", "503")}
    if wrong or outcome.failures:
        report.console.print(f"errors: {wrong} {dict(outcome.failures)}")


def main() -> int:
    arguments = parse()
    if arguments.role == "load":
        print(json.dumps(vars(generate(Plan(**json.load(sys.stdin))))))
        return 0
    if arguments.role == "baseline":
        print(json.dumps(stream_in_process(arguments.seconds)))
        return 0
    seconds = 6.0 if arguments.quick else arguments.seconds
    requests = 600 if arguments.quick else arguments.requests
    parts = arguments.only.split(",")
    report = Report()
    with Server(*arguments.set) as server:
        if parts != ["memory"]:
            run_throughput(server, report, arguments.clients, seconds)
        if "latency" in parts:
            run_latency(server, report, seconds)
        if "overload" in parts:
            run_overload(server, report, seconds)
        if "memory" in parts:
            run_memory(server, report, arguments.clients, requests)
    if arguments.json:
        arguments.json.write_text(json.dumps(report.figures, indent=2) + "\n")
    return report.verdict()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each part")
    parser.add_argument("--clients", type=int, default=32, help="of the closed loop")
    parser.add_argument("--requests", type=int, default=20_000, help="of the memory part")
    parser.add_argument("--quick", action="store_true", help="6 s a part, 600 requests")
    parser.add_argument("--only", default="throughput,latency,overload,memory")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("--role", choices=("load", "baseline"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
