"""
What degraded faces cost the default model, and which of them the quality limits refuse.

    python benchmarks/quality.py FACES.parquet [--faces 600] [--json FILE]

Each face is degraded with its box and landmarks kept, so that the effect on the estimate is seen
apart from that on detection. "guess" is the error of answering everybody with the median age.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from agelens import Analyzer, QualityLimits, load_detector, load_image
from agelens.alignment import align
from agelens.calibration import Calibrator
from agelens.detection import Detections
from agelens.estimation import estimate_in_batches
from agelens.quality import measure
from labelled_faces import read_faces

Image = NDArray[np.uint8]
Degradation = Callable[[Image, float], Image]


def shrunk(to: float) -> Degradation:
    """The face at so many pixels, brought back to its size."""

    def degrade(image: Image, side: float) -> Image:
        size = (
            max(1, round(image.shape[1] * to / side)),
            max(1, round(image.shape[0] * to / side)),
        )
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        back = cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        return np.asarray(back, np.uint8)

    return degrade


def blurred(share: float) -> Degradation:
    """Gaussian blur whose standard deviation is a share of the face's side."""
    return lambda image, side: np.asarray(cv2.GaussianBlur(image, (0, 0), share * side), np.uint8)


def darkened(factor: float) -> Degradation:
    """Light scaled, with the noise of a sensor in the dark."""

    def degrade(image: Image, side: float) -> Image:
        noise = np.random.default_rng(0).normal(0, 4, image.shape)
        return np.clip(image * factor + noise, 0, 255).astype(np.uint8)

    return degrade


DEGRADATIONS: dict[str, Degradation] = {
    "as it is": lambda image, side: image,
    **{f"face of {px} px": shrunk(px) for px in (64, 40, 32, 24, 20, 16, 12, 8)},
    **{f"blur of {100 * s:g} % of the face": blurred(s) for s in (0.02, 0.04, 0.06, 0.08, 0.12)},
    **{f"light times {f:g}": darkened(f) for f in (0.5, 0.25, 0.12, 0.06, 0.03)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--faces", type=int, default=600)
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    faces = read_faces(options.file)
    detector = load_detector()
    assert detector is not None
    found: list[tuple[int, Image, Detections]] = []
    drawn = np.random.default_rng(0).permutation(len(faces))[: options.faces]
    for row in sorted(drawn.tolist()):
        pixels = load_image(faces.images[row]).pixels
        detections = detector.detect(pixels)
        if len(detections):
            found.append((row, pixels, detections))
    rows = np.array([row for row, _, _ in found])
    true, female = faces.age_min[rows], faces.is_female[rows]
    table = Table(title=f"{options.file.name}, {len(rows)} faces")
    for name in ("faces", "MAE, years", "gender, %", "sharpness", "exposure", "refused, %"):
        table.add_column(name, justify="left" if name == "faces" else "right")
    guess = np.abs(np.median(true) - true).mean()
    table.add_row("guess", f"{guess:.1f}", f"{100 * max(female.mean(), 1 - female.mean()):.0f}")
    rows_of = {n: measured(n, d, found, true, female) for n, d in DEGRADATIONS.items()}
    for name, cells in rows_of.items():
        table.add_row(name, *cells)
    Console(width=110).print(table)
    if options.json is not None:
        command = f"python benchmarks/quality.py {options.file.name} --faces {options.faces}"
        stored = {
            "schema": "agelens.table/1",
            "command": command,
            "model": Analyzer().model,
            "columns": ["face", "error, years", "gender right, %", "refused by default, %"],
            "rows": [
                ["guess: the median age for all", f"{guess:.1f}", "", ""],
                *([name, cells[0], cells[1], cells[4]] for name, cells in rows_of.items()),
            ],
        }
        options.json.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")


def measured(
    name: str,
    degrade: Degradation,
    found: list[tuple[int, Image, Detections]],
    true: NDArray[np.int64],
    female: NDArray[np.bool_],
) -> tuple[str, ...]:
    """One row of the table."""
    analyzer = Analyzer()
    spec, calibrator = analyzer.bundle.card.crop_spec(), Calibrator.from_card(analyzer.bundle.card)
    limits = QualityLimits()
    chips, qualities = [], []
    for _, pixels, detections in found:
        assert detections.landmarks is not None
        x0, y0, x1, y1 = (float(v) for v in detections.boxes[0])
        points, side = detections.landmarks[0], ((x1 - x0) * (y1 - y0)) ** 0.5
        image = degrade(pixels, side)
        chips.append(align(image, points, spec))
        shown = float(name.split()[2]) / side if name.startswith("face of") else 1.0
        qualities.append(measure(image, (x0, y0, x1, y1), points, limits, scale=shown))
    raw = estimate_in_batches(analyzer.estimator, np.stack(chips))
    ages = np.array([age.mean for age in calibrator.ages(raw)])
    genders = calibrator.genders(raw) or []
    right = np.array([g.female_probability > 0.5 for g in genders]) == female
    return (
        f"{np.abs(ages - true).mean():.1f}",
        f"{100 * right.mean():.0f}",
        f"{np.median([q.sharpness for q in qualities]):.2f}",
        f"{np.median([q.exposure for q in qualities]):.2f}",
        f"{100 * np.mean([not q.usable for q in qualities]):.0f}",
    )


if __name__ == "__main__":
    main()
