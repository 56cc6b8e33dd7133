"""
How well faces are followed on drawn scenes of people who walk past, and how fast.

    python benchmarks/tracking.py [--seeds 4] [--seconds 40]

People of different distances walk through a picture of 1280 x 720, hide each other and leave; boxes
jitter by 4 %, one in twenty is missing and one frame in fifty has a false one. Printed are, by
frame rate and people in view: IDF1 (Ristani et al. 2016; 1 is perfect), changes of id within a
person, ids that got more than one person, and milliseconds a frame. Where the packages ``trackers``
and ``supervision`` are installed, their ByteTrack is asked on the same boxes.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agelens.video.tracking import Tracker, best_pairs

WIDTH, HEIGHT = 1280, 720
SIDES = (30, 80)
SPEEDS = (0.3, 5.0)
"""Sides of the face a second."""
JITTER, RECALL, FALSE_BOXES, HIDDEN_FROM = 0.04, 0.95, 0.02, 0.5
MATCHED_LOST_S = 2.0

Ids = list[list[int | None]]


@dataclass(frozen=True)
class Frame:
    """What a detector says of one picture, and whom it saw; -1 for nobody."""

    seconds: float
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    people: NDArray[np.int64]


def scene(rng: np.random.Generator, people: int, seconds: float, rate: float) -> list[Frame]:
    """People who walk through the picture; who leaves is replaced by somebody new."""
    side = rng.uniform(*SIDES, people)
    place = rng.uniform((0, 0.3 * HEIGHT), (WIDTH, 0.6 * HEIGHT), (people, 2))
    speed = np.zeros((people, 2))
    speed[:, 0] = rng.uniform(*SPEEDS, people) * side * rng.choice([-1, 1], people)
    names, frames, step = np.arange(people), [], 1 / rate
    for number in range(int(seconds * rate)):
        speed[:, 0] += rng.normal(size=people) * side * 0.5 * np.sqrt(step)
        speed[:, 1] = 0.95 * speed[:, 1] + rng.normal(size=people) * side * 0.3 * np.sqrt(step)
        place += speed * step
        low, high = -side / 2, (WIDTH, HEIGHT)
        gone = (place[:, 0] < low) | (place[:, 0] > high[0] - low)
        gone |= (place[:, 1] < 0) | (place[:, 1] > high[1])
        for row in np.flatnonzero(gone):
            names[row] = names.max() + 1
            pace, right = rng.uniform(*SPEEDS) * side[row], bool(rng.random() < 0.5)
            place[row] = (low[row] if right else WIDTH - low[row], rng.uniform(0.2, 0.8) * HEIGHT)
            speed[row] = (pace if right else -pace, 0.1 * pace * rng.normal())
        frames.append(_detected(rng, number / rate, place, side, names))
    return frames


def _detected(
    rng: np.random.Generator,
    seconds: float,
    place: NDArray[np.float64],
    side: NDArray[np.float64],
    names: NDArray[np.int64],
) -> Frame:
    half = np.stack([0.425 * side, 0.575 * side], axis=1)
    low, high = place - half, place + half
    boxes, people = [], []
    for row in range(len(side)):
        shared = np.minimum(high, high[row]) - np.maximum(low, low[row])
        covered = np.clip(shared, 0, None).prod(axis=1) / (2 * half[row]).prod()
        if (covered[side > side[row]] > HIDDEN_FROM).any() or rng.random() > RECALL:
            continue
        centre = place[row] + rng.normal(size=2) * JITTER * side[row]
        reach = half[row] * (1 + rng.normal(size=2) * JITTER)
        boxes.append(np.concatenate([centre - reach, centre + reach]))
        people.append(int(names[row]))
    if rng.random() < FALSE_BOXES:
        centre, reach = rng.uniform((0, 0), (WIDTH, HEIGHT)), rng.uniform(*SIDES) / 2
        boxes.append(np.concatenate([centre - reach, centre + reach]))
        people.append(-1)
    scores = rng.uniform(0.7, 0.99, len(boxes))
    return Frame(seconds, np.reshape(boxes, (-1, 4)), scores, np.array(people, np.int64))


def by_agelens(frames: Sequence[Frame], rate: float) -> Ids:
    """Ids of our tracker."""
    tracker = Tracker()
    return [list(tracker.update(one.boxes, one.scores, one.seconds).ids) for one in frames]


def by_bytetrack(frames: Sequence[Frame], rate: float) -> Ids:
    """Ids of ``trackers.ByteTrackTracker`` with the same buffer and confirmation."""
    import supervision  # type: ignore[import-not-found]
    from trackers import ByteTrackTracker  # type: ignore[import-not-found]

    tracker = ByteTrackTracker(
        lost_track_buffer=int(30 * MATCHED_LOST_S), frame_rate=rate, minimum_consecutive_frames=3
    )
    found: Ids = []
    for frame in frames:
        given = supervision.Detections(
            xyxy=frame.boxes.astype(np.float32),
            confidence=frame.scores.astype(np.float32),
            class_id=np.arange(len(frame.boxes)),
        )
        answer = tracker.update(given)
        row: list[int | None] = [None] * len(frame.boxes)
        for place, name in zip(answer.class_id, answer.tracker_id, strict=True):
            row[int(place)] = int(name) if name >= 0 else None
        found.append(row)
    return found


def judged(frames: Sequence[Frame], ids: Ids) -> tuple[float, int, int]:
    """IDF1, changes of id within a person, ids of several people."""
    pairs: Counter[tuple[int, int]] = Counter()
    latest: dict[int, int] = {}
    boxes = named = changes = 0
    for frame, row in zip(frames, ids, strict=True):
        for person, name in zip(frame.people.tolist(), row, strict=True):
            boxes += person >= 0
            named += name is not None
            if person < 0 or name is None:
                continue
            pairs[person, name] += 1
            changes += latest.get(person, name) != name
            latest[person] = name
    people, names = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    table = np.zeros((len(people), len(names)))
    for (person, name), count in pairs.items():
        table[people.index(person), names.index(name)] = count
    right = sum(table[pair] for pair in best_pairs(table))
    return 2 * right / (boxes + named), changes, int(((table > 0).sum(axis=0) > 1).sum())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=40.0)
    options = parser.parse_args()
    trackers: dict[str, Callable[[Sequence[Frame], float], Ids]] = {"agelens": by_agelens}
    try:
        import supervision  # noqa: F401
        import trackers as _  # noqa: F401
    except ImportError as error:
        print(f"no comparison: {error}")
    else:
        trackers["bytetrack"] = by_bytetrack
    print(f"{'tracker':<10}{'fps':>5}{'people':>8}{'IDF1':>8}{'changes':>9}{'mixed':>7}{'ms':>7}")
    for rate in (5, 10, 25):
        for people in (4, 12):
            scenes = [
                scene(np.random.default_rng(seed), people, options.seconds, rate)
                for seed in range(options.seeds)
            ]
            for name, run in trackers.items():
                begun = time.perf_counter()
                found = [run(frames, rate) for frames in scenes]
                taken = 1000 * (time.perf_counter() - begun) / sum(map(len, scenes))
                marks = [judged(*pair) for pair in zip(scenes, found, strict=True)]
                idf1, changes, mixed = zip(*marks, strict=True)
                print(
                    f"{name:<10}{rate:>5}{people:>8}{np.mean(idf1):>8.3f}{sum(changes):>9}"
                    f"{sum(mixed):>7}{taken:>7.2f}"
                )


if __name__ == "__main__":
    main()
