"""
How soon a screen knows who is there: from a frame of a camera to the event in a browser's page.

    python benchmarks/audience.py [--seconds 60] [--people 10] [--rate 25] [--size 1280x720]

A camera of this program (Motion JPEG over HTTP) shows nobody and, in turns, so many people: cut out
of the two portraits of ``tests/faces``, swaying. The real ``agelens watch`` looks at it, and a real
Chromium has its page ``/signage`` open. Everything shares the cores this program may use, camera
and browser included. Exits with 1 when the goal is missed.

* latency: of each event but the first, which is about the past: from when its newest frame had
  arrived and was decoded to when the page has it. Goal: under 500 ms for every one.
* reaction: from the first frame that shows somebody to the new content in the page, with rules that
  wait for nothing. It holds the three detections after which a face is believed.

All clocks are this computer's.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from playwright.sync_api import Page, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "src")]

from video.scenes import Person, Pixels, Scene, Walk  # noqa: E402
from video.scenes_small import portraits, wall  # noqa: E402
from video.streams import MjpegCamera  # noqa: E402

GOAL_MS: Final = 500
FORGOTTEN_MS: Final = 3500
"""After which whoever comes is somebody new."""
RULES: Final = """
schema = "agelens.audience-rules/1"
fallback = "house"
minimum_s = 0
steady_s = 0
release_s = 0
[slots.house]
title = "Welcome"
[slots.somebody]
title = "Hello"
[[rules]]
slot = "somebody"
people_from = 1
"""
LISTEN: Final = """() => {
  window.latencies = [];
  window.changes = [];
  new EventSource("/v1/audience/events").addEventListener("audience", ({ data }) => {
    const now = Date.now();
    const told = JSON.parse(data);
    if (told.age_s !== null) window.latencies.push(now - Date.parse(told.at) + 1000 * told.age_s);
  });
  new MutationObserver(() => window.changes.push([document.body.dataset.slot, Date.now()]))
    .observe(document.body, { attributes: true, attributeFilter: ["data-slot"] });
}"""


class Stage:
    """What the camera shows, and when it began to."""

    def __init__(self, acts: dict[str, list[Pixels]]) -> None:
        self._acts = acts
        self._act = "nobody"
        self.begun_ms = 0.0

    def show(self, act: str) -> None:
        """Go on with another act."""
        self._act, self.begun_ms = act, 0.0

    def __call__(self, tick: int) -> Pixels:
        """The picture of a tick."""
        frames = self._acts[self._act]
        self.begun_ms = self.begun_ms or 1000 * time.time()
        return frames[tick % len(frames)]


def act(people: int, size: tuple[int, int], rate: float) -> list[Pixels]:
    """Frames of people in two rows, to be played in a circle."""
    width, height = size
    columns = max(1, -(-people // 2))
    side = min(0.13 * height, 0.5 * width / columns)
    walkers = []
    for number in range(people):
        x = (number % columns + 0.4) * width / columns
        y = (0.25 if number < columns else 0.7) * height
        way = ((0.0, x, y, side), (1.0, x + 0.3 * side, y, side))
        walkers.append(Person(portraits()[number % 2], Walk(way)))
    scene = Scene("act", wall(size), tuple(walkers), 1.0, rate)
    frames = [np.ascontiguousarray(drawn.pixels[:, :, ::-1]) for drawn in scene.frames()]
    return [*frames, *frames[::-1]]


@contextmanager
def watching(address: str, folder: Path) -> Iterator[str]:
    """The command, watching; the address of its pages."""
    (folder / "rules.toml").write_text(RULES)
    log = folder / "log"
    with log.open("wb") as errors:
        running = subprocess.Popen(
            [
                *(sys.executable, "-m", "agelens", "watch", f"screen={address}"),
                *("--store", folder / "visits.sqlite", "--listen", "127.0.0.1:0"),
                *("--audience-rules", folder / "rules.toml"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={"PYTHONPATH": str(REPOSITORY / "src"), "PATH": "/usr/bin:/bin"},
        )
    try:
        while (found := re.search(r"pages at (\S+)", log.read_text())) is None:
            if running.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield found[1]
    finally:
        running.terminate()
        running.wait(30)


def shown(page: Page, slot: str) -> float:
    """Wait for a slot; when the page had it, in milliseconds of the computer's clock."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        changes: list[Any] = page.evaluate("window.changes")
        if changes and changes[-1][0] == slot:
            return float(changes[-1][1])
        page.wait_for_timeout(50)
    raise SystemExit(f"the page did not show {slot!r} within 20 s")


def told(name: str, values: list[float]) -> None:
    middle, late = np.percentile(values, [50, 95])
    print(
        f"{name:<10} {len(values):>5} x   median {middle:>5.0f} ms   95 % {late:>5.0f} ms   "
        f"max {max(values):>5.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--rate", type=float, default=25)
    parser.add_argument("--size", default="1280x720")
    options = parser.parse_args()
    width, height = (int(part) for part in options.size.split("x"))
    stage = Stage(
        {
            name: act(count, (width, height), options.rate)
            for name, count in (("nobody", 0), ("somebody", options.people))
        }
    )
    reactions = []
    with (
        tempfile.TemporaryDirectory() as folder,
        MjpegCamera(stage, rate=options.rate) as camera,
        watching(camera.address, Path(folder)) as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.goto(f"{url}/signage")
        page.evaluate(LISTEN)
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            stage.show("somebody")
            at_ms = shown(page, "somebody")
            reactions.append(at_ms - stage.begun_ms)
            page.wait_for_timeout(3000)
            stage.show("nobody")
            shown(page, "house")
            page.wait_for_timeout(FORGOTTEN_MS)
        latencies: list[float] = page.evaluate("window.latencies.slice(1)")
        browser.close()
    print(f"{options.people} people, {options.size} at {options.rate:g} frames a second")
    told("latency", latencies)
    told("reaction", reactions)
    if max(latencies) >= GOAL_MS:
        raise SystemExit(f"goal missed: every event within {GOAL_MS} ms")


if __name__ == "__main__":
    main()
