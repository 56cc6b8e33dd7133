"""
How well a gate's frame-consistency check knows one flat picture, and a change of person.

    python benchmarks/gate_frames.py FACES.parquet [--faces 300]

    flat picture    one face, eight frames: moved, tilted, lit anew, with a camera's noise; also
                    each smeared, or with a bar over a part of one of them, as by a finger
    other person    two faces of the table; also without colours, as under one light at best
    same person     one face in other light, size, slant and noise

Only faces that look at the camera are taken, as the check compares no others. Such tables hold no
videos: expressions and turns of one living person are not in these figures.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agelens import Analyzer
from agelens.gate.liveness import ConsistencyCheck, LiveFrame
from labelled_faces import read_faces

Pixels = NDArray[np.uint8]
CHECK = ConsistencyCheck()
LEAST_SIDE_PX = 80
FRAMES = 8
CONFIDENCE = 0.95


def live(analyzer: Analyzer, image: Pixels) -> LiveFrame | None:
    """The picture as a gate takes it: with one usable face to the camera, else None."""
    faces = analyzer(image).faces
    if len(faces) != 1 or not faces[0].quality.usable:
        return None
    yaw, size = faces[0].quality.yaw, faces[0].quality.size_px
    good = yaw is not None and abs(yaw) <= CHECK.rules.facing_deg and size >= LEAST_SIDE_PX
    return LiveFrame(image, faces[0]) if good else None


def varied(image: Pixels, rng: np.random.Generator) -> Pixels:
    """One flat picture before a camera once more: tilted, nearer, in other light, with noise."""
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float32)
    moved = corners + rng.uniform(-0.06, 0.06, (4, 2)).astype(np.float32) * (width, height)
    matrix = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    tilted = cv2.warpPerspective(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    noisy = tilted * rng.uniform(0.8, 1.15) + rng.normal(0, 3, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def smeared(image: Pixels, rng: np.random.Generator) -> Pixels:
    """As a camera takes it that moves by up to a tenth of the face's width."""
    length = 2 * int(rng.integers(1, max(2, min(image.shape[:2]) // 20))) + 1
    row = np.zeros((length, length), np.float32)
    row[length // 2] = 1
    middle = ((length - 1) / 2, (length - 1) / 2)
    turn = cv2.getRotationMatrix2D(middle, float(rng.uniform(0, 180)), 1)
    line = cv2.warpAffine(row, turn, (length, length))
    return cv2.filter2D(image, -1, line / line.sum()).astype(np.uint8, copy=False)


def covered(frame: LiveFrame) -> Pixels:
    """With a bar of one colour from a corner of the mouth to the lower edge."""
    image = frame.pixels.copy()
    assert frame.face.landmarks is not None  # of a face to the camera
    eye = float(np.linalg.norm(frame.face.landmarks[1] - frame.face.landmarks[0]))
    x, y = (int(value) for value in frame.face.landmarks[3])
    end = (int(x + 1.5 * eye), int(y + 2.5 * eye))
    cv2.line(image, (x, y), end, (200, 150, 130), max(1, int(0.4 * eye)))
    return image


def grey(frame: LiveFrame) -> LiveFrame:
    """The frame without its colours."""
    light = cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2GRAY)
    return LiveFrame(np.repeat(light[..., None], 3, axis=2).astype(np.uint8), frame.face)


def share(codes: Sequence[bool]) -> str:
    """A share with its Clopper-Pearson interval."""
    from agelens.evaluation.gate_errors import exact_interval

    low, high = exact_interval(sum(codes), len(codes), CONFIDENCE)
    return f"{100 * np.mean(codes):5.1f} % ({100 * low:.1f} to {100 * high:.1f}) of {len(codes)}"


def found(code: str, frames: Sequence[LiveFrame]) -> bool:
    """Whether the check gives this reason."""
    return code in {reason.code for reason in CHECK.check(frames, None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("faces", type=Path)
    parser.add_argument("--faces", dest="most", type=int, default=300)
    options: Any = parser.parse_args()
    analyzer, rng = Analyzer(), np.random.default_rng(0)
    frames: list[LiveFrame] = []
    for content in read_faces(options.faces).images:
        frame = live(analyzer, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
        if frame is not None:
            frames.append(frame)
        if len(frames) == options.most:
            break
    flat, blurred, hidden, same = [], [], [], []
    for frame in frames:
        again = [live(analyzer, varied(frame.pixels, rng)) for _ in range(FRAMES - 1)]
        kept = [frame, *(one for one in again if one is not None)]
        if len(kept) > 2:
            flat.append(found("still_picture", kept))
            same.append(found("person_changed", [*kept[:2], kept[1]]))
        moved = [smeared(varied(frame.pixels, rng), rng) for _ in range(FRAMES - 1)]
        shaken = [frame, *(one for one in (live(analyzer, image) for image in moved) if one)]
        if len(shaken) > 2:
            blurred.append(found("still_picture", shaken))
        patched = live(analyzer, covered(frame))
        if patched is not None and len(kept) > 2:
            hidden.append(found("still_picture", [frame, patched, *kept[1:]]))
    pairs = [(frames[row], frames[row - step]) for row in range(len(frames)) for step in (1, 9, 37)]
    rows = (
        ("flat picture, found", flat),
        ("flat picture, smeared, found", blurred),
        ("flat picture, covered in one frame, found", hidden),
        ("other person, found", [found("person_changed", [*pair, pair[1]]) for pair in pairs]),
        (
            "other person without colours, found",
            [found("person_changed", [grey(one) for one in (*pair, pair[1])]) for pair in pairs],
        ),
        ("same person, wrongly taken for another", same),
    )
    for name, codes in rows:
        print(f"{name:40} {share(codes)}")


if __name__ == "__main__":
    main()
