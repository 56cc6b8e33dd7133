"""
What cameras do to their readers, with figures: freezes, floods, wrong bits and clocks set anew.

    python benchmarks/video_streams.py [--only freeze,flood,bits,clocks] [--cycles 20]
                                       [--freeze-s 45] [--flood-s 60] [--people 40]

The cameras are real servers on this computer, over RTSP and HTTP:

    freeze  an RTSP server with a person in view is stopped (SIGSTOP) and let go on: until it is
            seen, until frames come again, threads and files afterwards, visits counted
    flood   60 pictures a second of 1280 x 720 for somebody who takes 100 ms for each
    bits    wrong bits in 5 % of what an HTTP camera sends while people walk past: visits against
            those of the same without; and over RTSP
    clocks  the time of day set back and forth by an hour, a change to summer time, clocks of
            streams that wrap or start anew: durations that come out

Goals 22, 23, 24 and 26 of the project are these; each line says what is asked and whether it holds.
Exit status 1: one does not.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self
from zoneinfo import ZoneInfo

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "src")]

from agelens import Analyzer  # noqa: E402
from agelens.identifiers import utc_now  # noqa: E402
from agelens.video.camera import CameraWatch  # noqa: E402
from agelens.video.decoding import open_stream  # noqa: E402
from agelens.video.live import LiveStream  # noqa: E402
from agelens.video.plan import CameraPlan, StaffRules  # noqa: E402
from agelens.video.source import SourceOptions, VideoSource, open_source  # noqa: E402
from agelens.video.visit import Visit  # noqa: E402
from video.scenes_small import write_scene  # noqa: E402
from video.streams import (  # noqa: E402
    BALL,
    STILL,
    FlippingProxy,
    MjpegCamera,
    RtspCamera,
    jpeg,
    number_in,
    numbered,
    why_no_rtsp,
    with_other_times,
    write_clip,
)

FACE: Final = REPOSITORY / "tests" / "faces" / "hopper.jpg"
SEEN_S, BACK_S, LATE_MS, COUNT_OFF, FRAMES_OFF = 5.0, 10.0, 500.0, 0.05, 1.0


@dataclass(frozen=True)
class Line:
    """One figure against what is asked of it; None asks nothing."""

    goal: int
    what: str
    figure: str
    asked: str
    holds: bool | None = None

    def __str__(self) -> str:
        mark = {True: "yes", False: "NO", None: ""}[self.holds]
        return f"{self.goal:>4}  {self.what:<58} {self.figure:>24}  {self.asked:<20} {mark}"


def main() -> int:
    arguments = _arguments()
    chosen = arguments.only.split(",")
    parts: dict[str, Callable[[], Iterator[Line]]] = {
        "freeze": lambda: freezes(arguments.cycles, arguments.freeze_s),
        "flood": lambda: flood(arguments.flood_s),
        "bits": lambda: wrong_bits(arguments.people),
        "clocks": clocks,
    }
    print(f"goal  {'what':<58} {'measured':>24}  {'asked':<20} holds")
    holds = True
    for name in chosen:
        for line in parts[name]():
            print(line, flush=True)
            holds = holds and line.holds is not False
    return 0 if holds else 1


# --- 22: freezes ----------------------------------------------------------------------------------


def freezes(cycles: int, freeze_s: float) -> Iterator[Line]:
    """A person stands before an RTSP camera that is stopped again and again."""
    if why_no_rtsp():
        yield Line(22, f"left out: {why_no_rtsp()}", "", "")
        return
    launch = STILL.format(path=FACE, width=640, height=640, rate=10)
    with RtspCamera(launch) as camera, Watched(camera.address, rejoin_s=freeze_s + 30) as watched:
        watched.until_more(20)
        threads, files = threading.active_count(), _open_files()
        seen, back = [], []
        for _ in range(cycles):
            camera.freeze()
            frozen_s = time.monotonic()
            seen.append(watched.until(lambda: watched.state() != "running", freeze_s))
            time.sleep(max(0.0, frozen_s + freeze_s - time.monotonic()))
            frames = watched.source.status().frames_in
            camera.thaw()
            thawed_s = time.monotonic()
            watched.until(functools.partial(_has_more_than, watched.source, frames), 60)
            back.append(time.monotonic() - thawed_s)
            watched.until_more(15)
        left = (threading.active_count() - threads, _open_files() - files)
        reconnects = watched.source.status().reconnects
    visits = watched.visits
    asked = f"{cycles} freezes of {freeze_s:g} s"
    yield Line(22, "RTSP freezes survived, connections made anew", f"{reconnects}", asked)
    yield _most(22, "a freeze is seen after, s (median, most)", seen, SEEN_S)
    yield _most(22, "frames come again after, s (median, most)", back, BACK_S)
    yield Line(
        22, "threads and files more than before", f"{left[0]}, {left[1]}", "0, 0", left == (0, 0)
    )
    yield Line(22, "visits of the one person in view", f"{len(visits)}", "1", len(visits) == 1)


def _has_more_than(source: VideoSource, frames: int) -> bool:
    return source.status().frames_in > frames


# --- 23: floods -----------------------------------------------------------------------------------


def flood(seconds: float) -> Iterator[Line]:
    """60 pictures a second for a reader that manages 10."""
    pictures = [jpeg(numbered(number, size=(1280, 720))) for number in range(256)]
    with (
        MjpegCamera(lambda tick: pictures[tick % 256], rate=60) as camera,
        open_source(camera.address) as source,
    ):
        ages_ms: list[float] = []
        memory_mb: list[float] = []
        until_s = time.monotonic() + seconds
        for frame in source.frames():
            number = number_in(frame.pixels)
            tick = camera.tick
            taken = tick - (tick - number) % 256
            ages_ms.append(1000 * (time.monotonic() - camera.born_s - taken / camera.rate))
            memory_mb.append(_resident_mb())
            if time.monotonic() > until_s:
                break
            time.sleep(0.1)
        status = source.status()
    waiting = status.frames_in - status.delivered - status.dropped
    settled = memory_mb[len(memory_mb) // 4 :]
    growth_mb = float(np.median(settled[-20:]) - np.median(settled[:20]))
    yield Line(
        23,
        "frames in, delivered, dropped",
        _joined(status.frames_in, status.delivered, status.dropped),
        "sums up",
        waiting in (0, 1),
    )
    yield _most(
        23, "age of a frame when it is handed over, ms (median, most)", ages_ms[5:], LATE_MS
    )
    yield Line(
        23,
        "and 100 ms later, when the work is done (most)",
        f"{max(ages_ms[5:]) + 100:.0f}",
        f"<= {LATE_MS:g}",
        max(ages_ms[5:]) + 100 <= LATE_MS,
    )
    yield Line(
        23, f"memory: growth over {seconds:g} s, MB", f"{growth_mb:+.1f}", "<= 5", growth_mb <= 5
    )


# --- 24: wrong bits -------------------------------------------------------------------------------


def wrong_bits(people: int) -> Iterator[Line]:
    """People walk past an HTTP camera whose line flips bits; then an RTSP camera's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.mp4"
        truth = write_scene(path, people=people, seconds=people * 1.5, seed=3)
        with open_source(path) as source:
            pictures = [jpeg(frame.pixels) for frame in source.frames()]
    clean = _counted(pictures, share=0.0)
    spoiled = _counted(pictures, share=0.05)
    off = abs(spoiled.visits - clean.visits) / max(1, clean.visits)
    yield Line(
        24, f"{truth.visitors} people over HTTP: visits without wrong bits", f"{clean.visits}", ""
    )
    yield Line(
        24,
        f"visits with {spoiled.flips} wrong bits in {spoiled.pieces} pieces",
        f"{spoiled.visits}",
        f"within {COUNT_OFF:.0%}",
        off <= COUNT_OFF,
    )
    yield Line(
        24,
        "frames in, dropped, connections made anew",
        _joined(spoiled.frames, spoiled.dropped, spoiled.reconnects),
        "",
    )
    if why_no_rtsp():
        return
    with (
        RtspCamera(BALL.format(width=640, height=360, rate=25)) as camera,
        FlippingProxy(camera.port, share=0.05, seed=1) as proxy,
        Watched(f"rtsp://127.0.0.1:{proxy.port}/camera", analyzer=None) as watched,
    ):
        time.sleep(30)
        status = watched.source.status()
        share = status.frames_in / (30 * 25)
    yield Line(
        24,
        f"RTSP for 30 s with {proxy.flipped} wrong bits: frames that arrived",
        f"{share:.0%}",
        "",
    )
    yield Line(
        24,
        "frames in, dropped, connections made anew",
        _joined(status.frames_in, status.dropped, status.reconnects),
        "no crash",
        watched.is_sound,
    )


@dataclass(frozen=True)
class Counted:
    """What came of one run of the scene."""

    visits: int
    frames: int
    dropped: int
    reconnects: int
    flips: int
    pieces: int


def _counted(pictures: list[bytes], *, share: float) -> Counted:
    last = len(pictures) - 1
    with (
        MjpegCamera(lambda tick: pictures[min(tick, last)], rate=25) as camera,
        FlippingProxy(camera.port, share=share, seed=2) as proxy,
        Watched(f"http://127.0.0.1:{proxy.port}/video.mjpg") as watched,
    ):
        watched.until(lambda: camera.tick > last + 25, len(pictures))
        status = watched.source.status()
    return Counted(
        len(watched.visits),
        status.frames_in,
        status.dropped,
        status.reconnects,
        proxy.flipped,
        proxy.pieces,
    )


# --- 26: clocks -----------------------------------------------------------------------------------


def clocks() -> Iterator[Line]:
    """Durations where clocks are set, wrap or start anew."""
    for name, change in {
        "33-bit clock of a transport stream wraps": lambda ticks: ticks + (1 << 33) - 198_000,
        "clock of a recording starts anew in the middle": lambda t: t - 108_000 * (t > 198_000),
        "clock of a recording is set back by an hour": lambda t: t + 324_000_000 * (t < 198_000),
    }.items():
        yield _recorded(name, change)
    yield from _time_of_day()


def _recorded(name: str, change: Callable[[int], int]) -> Line:
    with tempfile.TemporaryDirectory() as folder:
        path = write_clip(Path(folder) / "clip.ts", 100, codec="MPG2")
        path.write_bytes(with_other_times(path.read_bytes(), change))
        with open_source(path) as source:
            times = [frame.pts_us for frame in source.frames()]
    falls = sum(later <= earlier for earlier, later in itertools.pairwise(times))
    off = abs(times[-1] - times[0] - 99 * 40_000) / 40_000
    return _clock_line(name, falls, off)


def _time_of_day() -> Iterator[Line]:
    """Our own clock, set while a camera is read that says when its pictures were made."""
    berlin = ZoneInfo("Europe/Berlin")
    before_summer = datetime(2026, 3, 29, 1, 59, 58, tzinfo=berlin).astimezone(UTC)
    shift = [timedelta(0)]
    options = SourceOptions()
    with MjpegCamera(rate=25) as camera:
        source = LiveStream(
            "camera",
            lambda: open_stream(camera.address, options),
            options,
            now=lambda: utc_now() + shift[0],
        )
        for name, shifts in {
            "time of day set back and forth by an hour": [
                timedelta(hours=h) for h in (0, -1, 1, 0)
            ],
            "change to summer time in Berlin": [before_summer - utc_now()],
        }.items():
            times, numbers = [], []
            frames = source.frames()
            # The first ones wait while the stream is opened, and are late together.
            next(itertools.islice(frames, 5, None))
            for step in shifts:
                shift[0] = step
                for frame in itertools.islice(frames, 60):
                    times.append(frame.pts_us)
                    numbers.append(number_in(frame.pixels))
            frames.close()
            falls = sum(later <= earlier for earlier, later in itertools.pairwise(times))
            off = abs((times[-1] - times[0]) / 40_000 - (numbers[-1] - numbers[0]))
            yield _clock_line(name, falls, off)
        source.close()


def _clock_line(name: str, falls: int, off: float) -> Line:
    figure = f"{falls} falls, off {off:.2f} frames"
    asked = f"0, <= {FRAMES_OFF:g} frame"
    return Line(26, name, figure, asked, falls == 0 and off <= FRAMES_OFF)


# --- watching -------------------------------------------------------------------------------------


class Watched:
    """A source read to the end in a thread, its visits counted."""

    def __init__(
        self, address: str, *, rejoin_s: float = 10.0, analyzer: bool | None = True
    ) -> None:
        self.source = open_source(address)
        self.visits: list[Visit] = []
        self.is_sound = False
        self._taken = 0
        plan = CameraPlan("camera", address, rejoin_s=rejoin_s)
        self._watch = (
            CameraWatch(
                plan, Analyzer(threads=1), site="here", epoch=self.source.epoch, staff=StaffRules()
            )
            if analyzer
            else None
        )
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()
        self._thread.join(30)

    def state(self) -> str:
        """What the source is doing."""
        return self.source.status().state

    def until(self, holds: Callable[[], bool], timeout_s: float) -> float:
        """Seconds until something holds."""
        began_s = time.monotonic()
        while not holds():
            if time.monotonic() - began_s > timeout_s:
                raise SystemExit(f"gave up after {timeout_s:g} s: {self.source.status()}")
            time.sleep(0.01)
        return time.monotonic() - began_s

    def until_more(self, frames: int) -> None:
        """Until so many more frames have been taken."""
        wanted = self._taken + frames
        self.until(lambda: self._taken >= wanted, 60)

    def _read(self) -> None:
        last_us = -1
        for frame in self.source.frames():
            assert frame.pts_us > last_us
            last_us = frame.pts_us
            self._taken += 1
            if self._watch is not None:
                self.visits += self._watch.feed(frame).visits
        if self._watch is not None:
            self.visits += self._watch.finish().visits
        self.is_sound = True


def _most(goal: int, what: str, values: list[float], most: float) -> Line:
    digits = 0 if most >= 100 else 1
    figure = f"{np.median(values):.{digits}f}, {max(values):.{digits}f}"
    return Line(goal, what, figure, f"<= {most:g}", max(values) <= most)


def _joined(*counts: int) -> str:
    return ", ".join(f"{count:,}" for count in counts)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="freeze,flood,bits,clocks")
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--freeze-s", type=float, default=45.0)
    parser.add_argument("--flood-s", type=float, default=60.0)
    parser.add_argument("--people", type=int, default=40)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
