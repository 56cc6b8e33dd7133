"""Soak of the image room: hostile files by the thousand, bombs, and files cut short.

    python benchmarks/soak_images.py [--files 10000] [--seed 1] [--photo tests/faces/NAME]

Prints three tables and exits with 1 when a goal is missed:

* mutated files, in a process of their own under a time limit: no crash, no hang (over 2 s), no
  error but ``ImageError`` (and not its code ``internal``), memory growth of at most 300 MB;
* bombs, each in a fresh process: the expected code within 100 ms and 50 MB;
* every kind of file cut at every 5 %: an error, or, where only something behind the first picture
  was lost, exactly the pixels of the whole file.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "src")]

from agelens.errors import ImageError  # noqa: E402
from agelens.images import load_image  # noqa: E402
from hostile import OK, bombs, encodings, mutated  # noqa: E402  (needs the path above)

HANG_S = 2.0
GIVE_UP_S = 30.0
GROWTH_MB = 300.0
REFUSE_MS = 100.0
REFUSE_MB = 50.0
UNTYPED = "untyped"


@dataclass
class Tally:
    """What became of the mutated files."""

    outcomes: Counter[str] = field(default_factory=Counter)
    untyped: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    growth_mb: float = 0.0
    noise_lines: int = 0


def main() -> int:
    arguments = _arguments()
    if arguments.worker is not None:
        return _work(arguments.photo, arguments.seed, arguments.worker, arguments.files)
    if arguments.bomb is not None:
        return _time_bomb(arguments.photo, arguments.bomb)
    tally = _soak(arguments.photo, arguments.files, arguments.seed)
    missed = _report_soak(tally, arguments.files)
    missed += _report_bombs(arguments.photo)
    missed += _report_cuts(arguments.photo)
    for goal in missed:
        print(f"MISSED: {goal}")
    if not missed:
        print("all goals met")
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000, help="how many mutated files")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same files")
    parser.add_argument("--photo", type=Path, default=_default_photo(), help="what to make them of")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bomb", help=argparse.SUPPRESS)
    return parser.parse_args()


def _default_photo() -> Path:
    return REPOSITORY / "tests" / "faces" / "astronaut.jpg"


def _photo(path: Path, side: int) -> Image.Image:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((side, side))
    return image


def _own_command(*options: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), *options]


# ------------------------------------------------------------------ mutated files


def _work(photo: Path, seed: int, first: int, stop: int) -> int:
    """Read the mutated files ``first`` to ``stop``; one line of JSON on stdout for each."""
    # No pages of other formats' sizes: small pictures keep 10,000 files within minutes.
    originals = list(encodings(_photo(photo, 160)).values())
    for data in originals:
        load_image(data)
    before = _resident_mb()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.jpg"
        for index in range(first, stop):
            data = mutated(random.Random(f"{seed}/{index}"), originals)
            # Every tenth goes by way of the disk, so that paths are soaked too.
            if index % 10 == 0:
                path.write_bytes(data)
            start = time.perf_counter()
            try:
                load_image(path if index % 10 == 0 else data)
                outcome, detail = OK, ""
            except ImageError as error:
                outcome, detail = error.code, error.message
            except Exception as error:
                outcome, detail = UNTYPED, repr(error)
            line = {
                "index": index,
                "outcome": outcome,
                "detail": detail,
                "seconds": time.perf_counter() - start,
                "growth_mb": _resident_mb() - before,
            }
            print(json.dumps(line), flush=True)
    return 0


def _resident_mb() -> float:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _soak(photo: Path, files: int, seed: int) -> Tally:
    tally = Tally()
    next_index = 0
    while next_index < files:
        next_index = _run_worker(photo, files, seed, next_index, tally)
    return tally


def _run_worker(photo: Path, files: int, seed: int, first: int, tally: Tally) -> int:
    """One worker until it is done, dies or hangs; returns the index to go on at."""
    options = ["--worker", str(first), "--files", str(files), "--seed", str(seed)]
    with tempfile.TemporaryFile("w+") as noise:
        worker = subprocess.Popen(
            _own_command(*options, "--photo", str(photo)),
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
        )
        assert worker.stdout is not None
        done = first
        for line in _lines(worker.stdout):
            _count(tally, line)
            done = line["index"] + 1
        if done < files and worker.poll() is None:
            worker.kill()
            tally.hangs.append(f"file {done}: no end after {GIVE_UP_S:.0f} s")
            done += 1
        code = worker.wait()
        noise.seek(0)
        said = noise.readlines()
        tally.noise_lines += len(said)
        if code > 0:
            raise SystemExit("".join(said))
        if (
            code < 0
            and done < files
            and not (tally.hangs and f"file {done - 1}:" in tally.hangs[-1])
        ):
            tally.crashes.append(f"file {done}: signal {-code}")
            done += 1
    return done


def _lines(stream: IO[str]) -> Iterator[dict[str, Any]]:
    """The worker's lines, until it ends or is silent for ``GIVE_UP_S``."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while selector.select(GIVE_UP_S):
            line = stream.readline()
            if not line:
                return
            yield json.loads(line)


def _count(tally: Tally, line: dict[str, Any]) -> None:
    tally.outcomes[line["outcome"]] += 1
    if line["outcome"] in (UNTYPED, "internal"):
        tally.untyped.append(f"file {line['index']}: {line['detail']}")
    if line["seconds"] > HANG_S:
        tally.hangs.append(f"file {line['index']}: {line['seconds']:.1f} s")
    tally.slowest_s = max(tally.slowest_s, line["seconds"])
    tally.growth_mb = max(tally.growth_mb, line["growth_mb"])


def _report_soak(tally: Tally, files: int) -> list[str]:
    print(f"mutated files          {files:>9,}")
    for outcome, count in tally.outcomes.most_common():
        print(f"  {outcome:<20} {count:>9,}")
    print(f"untyped or internal    {len(tally.untyped):>9}")
    print(f"crashes                {len(tally.crashes):>9}")
    print(f"hangs (over {HANG_S:.0f} s)       {len(tally.hangs):>9}")
    print(f"slowest file           {tally.slowest_s * 1e3:>6.0f} ms")
    print(f"memory growth          {tally.growth_mb:>6.0f} MB")
    print(f"lines on stderr        {tally.noise_lines:>9,}\n")
    missed = [*tally.untyped, *tally.crashes, *tally.hangs]
    if tally.growth_mb > GROWTH_MB:
        missed.append(f"memory grew by {tally.growth_mb:.0f} MB, over {GROWTH_MB:.0f}")
    return missed


# ------------------------------------------------------------------ bombs


def _time_bomb(photo: Path, name: str) -> int:
    """Refuse one bomb from disk; what it took goes to stdout as JSON."""
    bomb = next(bomb for bomb in bombs(photo) if bomb.name == name)
    load_image(photo)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / bomb.name
        path.write_bytes(bomb.data)
        # Fill what the making of the bomb has freed, so that growth is the refusal's own.
        before = _resident_mb()
        start = time.perf_counter()
        try:
            load_image(path)
            outcome = OK
        except ImageError as error:
            outcome = error.code
        spent_ms = (time.perf_counter() - start) * 1e3
    print(json.dumps({"outcome": outcome, "ms": spent_ms, "mb": _resident_mb() - before}))
    return 0


def _report_bombs(photo: Path) -> list[str]:
    missed = []
    print(f"{'bomb':<22}{'file':>10}  {'refused as':<20}{'ms':>7}{'MB':>7}")
    for bomb in bombs(photo):
        command = _own_command("--bomb", bomb.name, "--photo", str(photo))
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        outcome, spent_ms, grown_mb = found["outcome"], found["ms"], found["mb"]
        size = f"{len(bomb.data):,}"
        print(f"{bomb.name:<22}{size:>10}  {outcome:<20}{spent_ms:>7.1f}{grown_mb:>7.1f}")
        if outcome != bomb.expected or spent_ms > REFUSE_MS or grown_mb > REFUSE_MB:
            missed.append(f"{bomb.name}: {outcome}, {spent_ms:.0f} ms, {grown_mb:.0f} MB")
    print()
    return missed


# ------------------------------------------------------------------ files cut short


def _report_cuts(photo: Path) -> list[str]:
    missed = []
    print(f"{'cut at every 5 %':<22}{'truncated':>10}{'corrupt':>9}{'same':>6}{'SILENT':>8}")
    for name, data in encodings(_photo(photo, 384)).items():
        whole = load_image(data).pixels
        results = Counter(_cut(data[: len(data) * part // 100], whole) for part in range(5, 100, 5))
        silent = results["silent"] + results["other"]
        print(
            f"{name:<22}{results['truncated']:>10}{results['corrupt']:>9}"
            f"{results['same']:>6}{silent:>8}"
        )
        if silent:
            missed.append(f"{name}: {silent} cuts gave another picture or an odd error")
    print("same: the first picture was whole, only what follows it was lost\n")
    return missed


def _cut(data: bytes, whole: np.ndarray[Any, Any]) -> str:
    try:
        pixels = load_image(data).pixels
    except ImageError as error:
        return error.code if error.code in ("truncated", "corrupt") else "other"
    return "same" if np.array_equal(pixels, whole) else "silent"


if __name__ == "__main__":
    sys.exit(main())
