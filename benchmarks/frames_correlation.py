"""
How much of their error the frames of one person share, and what fusing them may claim.

    python benchmarks/frames_correlation.py FACES.parquet [--faces 300] [--frames 6]

Each labelled face is taken as a camera would in passing: at 32 to 110 pixels, tilted by up to 6 %,
in other light, blurred by up to 1.2 pixels, with a sensor's noise and JPEG. Shown are the
correlation of the errors (``fusion.estimate_correlation``), and how often the fused 90 % interval
contains the true age for several values of it. Poses and expressions of a living person are not in
these frames: between real ones the correlation is lower, so that the interval is rather too wide.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agelens import Analyzer, Face
from agelens.fusion import estimate_correlation, fuse
from agelens.video.evidence import FRAMES_CORRELATION
from gate_frames import varied
from labelled_faces import read_faces

Pixels = NDArray[np.uint8]
CLAIMS = (0.0, 0.5, FRAMES_CORRELATION, 1.0)
LEVEL = 0.9


def main_face(analyzer: Analyzer, image: Pixels) -> Face | None:
    """The only usable face, or None."""
    faces = analyzer(image).faces
    return faces[0] if len(faces) == 1 and faces[0].quality.usable else None


def in_passing(image: Pixels, side: float, rng: np.random.Generator) -> Pixels:
    """The picture, whose face has this side, as one frame of a camera."""
    scale = float(rng.uniform(32, 110)) / side
    moved = cv2.copyMakeBorder(varied(image, rng), 40, 40, 40, 40, cv2.BORDER_REPLICATE)
    small = cv2.resize(moved, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small, (0, 0), float(rng.uniform(0.2, 1.2)))
    coded = cv2.imencode(".jpg", soft, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 92))])[1]
    return np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("faces", type=Path)
    parser.add_argument("--faces", dest="most", type=int, default=300)
    parser.add_argument("--frames", type=int, default=6)
    options: Any = parser.parse_args()
    analyzer, rng = Analyzer(), np.random.default_rng(0)
    table = read_faces(options.faces)
    errors: list[float] = []
    gender_errors: list[float] = []
    people: list[int] = []
    inside = dict.fromkeys(CLAIMS, 0)
    counted = 0
    for row in rng.permutation(np.flatnonzero(table.exact)).tolist():
        if counted == options.most:
            break
        image = np.asarray(Image.open(io.BytesIO(table.images[row])).convert("RGB"), np.uint8)
        whole = main_face(analyzer, image)
        if whole is None:
            continue
        side = whole.quality.size_px
        taken = [main_face(analyzer, in_passing(image, side, rng)) for _ in range(options.frames)]
        frames = [face for face in taken if face is not None]
        if len(frames) < 2:
            continue
        age = int(table.age_min[row])
        errors += [face.age.mean - age for face in frames]
        gender_errors += [
            face.gender.female_probability - table.is_female[row] for face in frames if face.gender
        ]
        people += [counted] * len(frames)
        for claim in CLAIMS:
            low, high = fuse([face.age for face in frames], correlation=claim).age.interval(LEVEL)
            inside[claim] += low <= age <= high
        counted += 1
    print(f"{counted} people, {len(errors)} frames, {analyzer.model}")
    print(f"correlation of the age errors     {estimate_correlation(errors, people):.2f}")
    print(f"correlation of the gender errors  {estimate_correlation(gender_errors, people):.2f}")
    for claim in CLAIMS:
        share = 100 * inside[claim] / counted
        print(f"fused {LEVEL:.0%} interval with {claim:.2f} contains the age of {share:.1f} %")


if __name__ == "__main__":
    main()
