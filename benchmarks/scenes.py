"""
A set of videos with known truth: real faces walk over real photographs, 1280x720 at 25 a second.

    python benchmarks/scenes.py DATA OUT [--faces fairface-test] [--seed 1] [--only door,crowd]
                                         [--processes 2]

DATA is the folder of the Parquet tables of faces; OUT gets a video (MPEG-4) and its truth (JSON) of
each scene and is not meant to be kept: the pictures of the tables must not be published. Labels of
age and gender are those of the table. Backgrounds are parts of a photograph that comes with
scikit-learn.

    door       people cross a line both ways, nobody hidden
    approach   people come towards the camera over a line, from 20 to 150 pixels, nobody hidden
    shelf      people stop in zones, walk around, turn back before the line; nobody hidden
    crowd      ten people in view at a time, twice; nobody hidden
    passing    people are hidden by nearer ones, standing and walking, for up to a second and a half
    return     people leave the picture and come back at the same place within five seconds
    hall-a     two cameras: the same people walk through
    hall-b     one picture and then the other

A face of the table is used when the detector finds it, alone, in the photograph itself and, cut
out, at 45 and at 80 pixels and six sides a second before four places of the background, but for one
of these eight times at most: the set measures following and counting, not how many blurred or pale
portraits a detector misses (the share that is passed over is printed). What counts as visible, as
crossed and as to be counted is told by ``tests/video/scenes.py``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "src")]

from agelens import Analyzer  # noqa: E402
from agelens.video.zones import Line, Zone  # noqa: E402
from video.scenes import (  # noqa: E402
    Cutout,
    Person,
    Pixels,
    Scene,
    Truth,
    Walk,
    cut_out,
    read_truth,
)

WIDTH, HEIGHT, FPS = 1280, 720, 25.0
FEWEST_PIXELS: Final = 70
"""Side of a face in its photograph from which on it is large enough to be shown large."""
FOUND_AT: Final = (45.0, 80.0)
"""Sides at which a cutout must be found while it moves."""
FOUND_PACE: Final = 6.0
"""Sides a second at that."""
NOT_FOUND: Final = 1
"""Of all these times, how often it may be missed."""
CLEAR_S: Final = 0.1
"""Seconds between two moments at which it is asked whether two people meet."""

Points = list[tuple[float, float, float, float]]


# --- who and where --------------------------------------------------------------------------------


def faces_of(table: Path, place: Pixels, seed: int, count: int) -> tuple[list[Cutout], int]:
    """People of a table in random order, each cut out, and how many were passed over."""
    rows = pq.read_table(table, columns=["image", "age_min", "age_max", "gender"]).to_pydict()
    analyzer = Analyzer(gender=False)
    found: list[Cutout] = []
    for tried, row in enumerate(np.random.default_rng(seed).permutation(len(rows["image"]))):
        if len(found) == count:
            return found, tried - count
        pixels = cv2.imdecode(np.frombuffer(rows["image"][row], np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None, f"{table.name}: the picture of row {row} can't be read"
        photograph = np.asarray(pixels, np.uint8)
        seen = analyzer.cut(analyzer.read(np.ascontiguousarray(photograph[..., ::-1])))
        if len(seen) != 1 or not seen[0].quality.usable or seen[0].quality.size_px < FEWEST_PIXELS:
            continue
        ages = (int(rows["age_min"][row]), int(rows["age_max"][row]))
        cutout = cut_out(
            photograph, seen[0].box, ages=ages, is_female=rows["gender"][row] == "female"
        )
        if _is_found(analyzer, cutout, place):
            found.append(cutout)
    raise SystemExit(f"{table.name} has {len(found)} usable faces, {count} are needed")


def _is_found(analyzer: Analyzer, cutout: Cutout, place: Pixels) -> bool:
    """Whether the detector finds a cutout that moves before parts of a background."""
    missed = 0
    for side in FOUND_AT:
        size = int(4 * side)
        way = FOUND_PACE * side
        walk = Walk(((0.0, size / 2 - way, size / 2, side), (2.0, size / 2 + way, size / 2, side)))
        for left, top in ((100, 100), (700, 100), (100, 380), (700, 380)):
            part = np.ascontiguousarray(place[top : top + size, left : left + size])
            drawn = Scene("part", part, (Person(cutout, walk),), 2.0, FPS).frame(1.0)
            rgb = np.ascontiguousarray(drawn.pixels[..., ::-1])
            missed += len(analyzer.cut(analyzer.read(rgb))) != 1
    return missed <= NOT_FOUND


def places() -> list[Pixels]:
    """Parts of a photograph without a face that is found, as large as the videos."""
    from sklearn.datasets import load_sample_image

    temple = np.asarray(load_sample_image("china.jpg"))
    parts = (temple, temple[:, ::-1], temple[100:, 60:500], temple[60:300, ::-1][:, :400])
    return [_filling(np.ascontiguousarray(part[..., ::-1])) for part in parts]


def _filling(pixels: Pixels) -> Pixels:
    """The middle of a picture, as large as the videos."""
    scale = max(WIDTH / pixels.shape[1], HEIGHT / pixels.shape[0])
    size = (math.ceil(scale * pixels.shape[1]), math.ceil(scale * pixels.shape[0]))
    large = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    top, left = (size[1] - HEIGHT) // 2, (size[0] - WIDTH) // 2
    return np.ascontiguousarray(large[top : top + HEIGHT, left : left + WIDTH])


# --- walks ----------------------------------------------------------------------------------------


def shifted(points: Points, seconds: float) -> Walk:
    return Walk(tuple((t + seconds, x, y, side) for t, x, y, side in points))


def straight(
    start: tuple[float, float], end: tuple[float, float], side: float, pace: float
) -> Points:
    """A way at a pace in sides a second."""
    seconds = math.dist(start, end) / (pace * side)
    return [(0.0, *start, side), (seconds, *end, side)]


def joined(*parts: Points, rests: Sequence[float] = ()) -> Points:
    """One way after the other, with a rest between them."""
    whole: Points = []
    begins = 0.0
    for number, part in enumerate(parts):
        whole += [(begins + t, x, y, side) for t, x, y, side in part]
        begins = whole[-1][0] + (rests[number] if number < len(rests) else 0.0)
    return whole


def outside(x: float, side: float) -> float:
    """Where a face is out of the picture at this end of it, 0 or WIDTH."""
    return -1.2 * side if x == 0 else WIDTH + 1.2 * side


def extent(cutout: Cutout) -> tuple[float, float, float, float]:
    """The cutout around the middle of its face, in sides of the face."""
    x0, y0, x1, y1 = cutout.face
    x, y, side = (x0 + x1) / 2, (y0 + y1) / 2, cutout.side
    height, width = cutout.opaque.shape
    return -x / side, -y / side, (width - x) / side, (height - y) / side


def meet(one: Person, other: Person) -> bool:
    """Whether two people ever overlap in the picture."""
    first = max(one.walk.points[0][0], other.walk.points[0][0])
    last = min(one.walk.points[-1][0], other.walk.points[-1][0])
    moments = np.arange(first, last, CLEAR_S)
    reaches = extent(one.cutout), extent(other.cutout)
    for moment in moments.tolist():
        spans = []
        for person, (x0, y0, x1, y1) in zip((one, other), reaches, strict=True):
            place = person.walk.at(moment)
            if place is None:
                break
            x, y, side = place
            spans.append((x + x0 * side, y + y0 * side, x + x1 * side, y + y1 * side))
        else:
            a, b = spans
            if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]:
                return True
    return False


def unhidden(
    faces: Iterator[Cutout],
    ways: Iterator[Points],
    count: int,
    seconds: float,
    rng: np.random.Generator,
) -> list[Person]:
    """People who set out one after another, each as soon as nobody is met on the way."""
    people: list[Person] = []
    begins, cutout = 0.3, next(faces)
    for way in itertools.islice(ways, 4 * count):
        person = _not_meeting(people, cutout, way, begins, seconds)
        if person is None:
            continue
        people.append(person)
        if len(people) == count:
            break
        begins = max(0.3, person.walk.points[0][0] - 3.0) + float(rng.uniform(0.2, 1.2))
        cutout = next(faces)
    return people


def _not_meeting(
    people: Sequence[Person], cutout: Cutout, way: Points, begins: float, seconds: float
) -> Person | None:
    """Somebody on a way, from the first moment on from which nobody is met; None without one."""
    while begins + way[-1][0] <= seconds - 0.2:
        person = Person(cutout, shifted(way, begins))
        if not any(meet(person, other) for other in people):
            return person
        begins += 0.2
    return None


# --- the scenes -----------------------------------------------------------------------------------


def door(faces: Iterator[Cutout], place: Pixels, rng: np.random.Generator) -> Scene:
    line = Line("door", (0.5, 0.0), (0.5, 1.0), in_side="left")
    people = unhidden(faces, _through(rng), 40, 45, rng)
    return Scene("door", place, tuple(people), 45, FPS, lines=(line,), seed=1)


def _through(rng: np.random.Generator) -> Iterator[Points]:
    """Ways from one end of the picture to the other, somewhat up or down."""
    while True:
        side = float(rng.uniform(40, 110))
        y = float(rng.uniform(1.2 * side, HEIGHT - 1.2 * side))
        there = float(np.clip(y + rng.normal(0, 40), 1.2 * side, HEIGHT - 1.2 * side))
        ends = (0, WIDTH) if rng.random() < 0.5 else (WIDTH, 0)
        start, end = (outside(ends[0], side), y), (outside(ends[1], side), there)
        yield straight(start, end, side, float(rng.uniform(2.5, 6.5)))


def approach(faces: Iterator[Cutout], place: Pixels, rng: np.random.Generator) -> Scene:
    line = Line("entrance", (0.0, 0.6), (1.0, 0.6), in_side="right")
    people = unhidden(faces, _nearer(rng), 24, 40, rng)
    return Scene("approach", place, tuple(people), 40, FPS, lines=(line,), seed=2)


def _nearer(rng: np.random.Generator) -> Iterator[Points]:
    """Ways of those who come nearer at an even pace: the side goes with one over the distance."""
    while True:
        seconds, x = float(rng.uniform(3.5, 6)), float(rng.uniform(0.15, 0.85)) * WIDTH
        aside = float(rng.uniform(-120, 120))
        points: Points = []
        for share in np.linspace(0, 1, 12).tolist():
            distance = 1 - share * (1 - 20 / 150)
            side = 20 / distance
            y = 170 + (side - 20) / 130 * (HEIGHT + 120 - 170)
            points.append((share * seconds, x + aside * (side - 20) / 130, y, side))
        yield points


def shelf(faces: Iterator[Cutout], place: Pixels, rng: np.random.Generator) -> Scene:
    line = Line("aisle", (0.35, 1.0), (0.25, 0.0), in_side="right")
    zones = (
        Zone("upper", ((0.45, 0.02), (0.95, 0.02), (0.95, 0.48), (0.45, 0.48))),
        Zone("lower", ((0.5, 0.52), (0.98, 0.55), (0.9, 0.98), (0.45, 0.98))),
    )
    people = unhidden(faces, _looking(rng), 20, 50, rng)
    return Scene("shelf", place, tuple(people), 50, FPS, lines=(line,), zones=zones, seed=3)


def _looking(rng: np.random.Generator) -> Iterator[Points]:
    """Ways into a zone, a rest there and back; of every fourth only up to the line and back."""
    number = 0
    while True:
        number += 1
        side, pace = float(rng.uniform(40, 70)), float(rng.uniform(3, 5.5))
        y = HEIGHT * float(rng.uniform(0.15, 0.4) if number % 2 else rng.uniform(0.6, 0.85))
        start = (outside(0, side), y)
        if number % 4 == 0:
            turn = (WIDTH * (0.25 + 0.1 * y / HEIGHT) - float(rng.uniform(0.8, 1.5)) * side, y)
            rest = float(rng.uniform(0.3, 1.5))
        else:
            turn = (WIDTH * float(rng.uniform(0.58, 0.85)), y + float(rng.uniform(-20, 20)))
            rest = float(rng.uniform(1, 5))
        back = start if number % 3 else (outside(WIDTH, side), y)
        if number % 4 == 0:
            back = start
        yield joined(
            straight(start, turn, side, pace), straight(turn, back, side, pace), rests=[rest]
        )


def crowd(faces: Iterator[Cutout], place: Pixels, rng: np.random.Generator) -> Scene:
    zone = Zone("left", ((0.0, 0.0), (0.4, 0.0), (0.4, 1.0), (0.0, 1.0)))
    people = []
    for turn in range(2):
        for number in range(10):
            column, row = number % 5, number // 5
            side = float(rng.uniform(60, 100))
            x = (column + 0.5) * WIDTH / 5 + float(rng.uniform(-30, 30))
            y = HEIGHT * (0.27 if row == 0 else 0.73)
            beyond = -1.2 * side if row == 0 else HEIGHT + 1.2 * side
            pace = float(rng.uniform(1.5, 3))
            come = straight((x, beyond), (x, y), side, pace)
            sways = joined(
                straight((x, y), (x + 15, y), side, 0.15), straight((x + 15, y), (x, y), side, 0.1)
            )
            go = straight((x, y), (x, beyond), side, pace)
            begins = 20.0 * turn + 0.4 + float(rng.uniform(0, 2.5))
            stays = 20.0 * turn + 15.5 + float(rng.uniform(0, 1.0)) - begins
            way = joined(come, sways, go, rests=[0, max(0.0, stays - come[-1][0] - sways[-1][0])])
            people.append(Person(next(faces), shifted(way, begins)))
    return Scene("crowd", place, tuple(people), 41, FPS, zones=(zone,), seed=4)


def passing(faces: Iterator[Cutout], place: Pixels, rng: np.random.Generator) -> Scene:
    """Behind, people stand or walk; before them, larger ones walk by."""
    line = Line("middle", (0.5, 0.0), (0.5, 1.0), in_side="left")
    people = []
    for number in range(9):
        begins = 0.3 + 4.6 * number
        side, y = float(rng.uniform(45, 60)), HEIGHT * float(rng.uniform(0.3, 0.6))
        ends = (0, WIDTH) if number % 2 else (WIDTH, 0)
        start, end = (outside(ends[0], side), y), (outside(ends[1], side), y)
        if number % 3 == 0:
            x = WIDTH * float(rng.uniform(0.3, 0.7))
            halves = (
                straight(start, (x, y), side, 5.5),
                straight((x, y), end, side, 5.5),
            )
            people.append(Person(next(faces), shifted(joined(*halves, rests=[2.0]), begins)))
            crossing_s = halves[0][-1][0] + 1.0
        else:
            behind = straight(start, end, side, 5.0)
            people.append(Person(next(faces), shifted(behind, begins)))
            x, crossing_s = WIDTH * float(rng.uniform(0.35, 0.65)), 0.0
            crossing_s = abs(x - start[0]) / (5.0 * side)
        near = float(rng.uniform(85, 120))
        ends = ends[::-1] if number % 3 != 2 else ends
        pace = float(rng.uniform(3.5, 5)) if number % 3 != 2 else 3.8
        first, last = (outside(ends[0], near), y + 0.3 * near), (outside(ends[1], near), y)
        way = straight(first, last, near, pace)
        reached = abs(x - first[0]) / (pace * near)
        people.append(Person(next(faces), shifted(way, max(0.1, begins + crossing_s - reached))))
    return Scene("passing", place, tuple(people), 46, FPS, lines=(line,), seed=5)


def come_back(faces: Iterator[Cutout], place: Pixels, rng: np.random.Generator) -> Scene:
    """Each leaves once and comes back; two are in view at a time at most."""
    line = Line("door", (0.5, 0.0), (0.5, 1.0), in_side="left")
    people: list[Person] = []
    for number in range(10):
        side, pace = float(rng.uniform(50, 85)), float(rng.uniform(3, 5))
        y = HEIGHT * (0.27 if number % 2 else 0.73) + float(rng.uniform(-30, 30))
        near, far = (0, WIDTH) if rng.random() < 0.5 else (WIDTH, 0)
        # Either before the line or behind it, not on it.
        turn = WIDTH / 2 + float(rng.choice((-1, 1))) * float(rng.uniform(1.2 * side, 300))
        start, inside = (outside(near, side), y), (turn, y)
        end = (outside(far, side), y)
        way = joined(
            straight(start, inside, side, pace),
            straight(inside, start, side, pace),
            straight(start, end, side, pace),
            rests=[float(rng.uniform(0.5, 1.5)), float(rng.uniform(0.5, 3.5))],
        )
        lane = [person for person in people if person.walk.points[0][2] > HEIGHT / 2]
        if number % 2:
            lane = [person for person in people if person.walk.points[0][2] < HEIGHT / 2]
        begins = lane[-1].walk.points[-1][0] + 0.5 if lane else 0.3 + 2 * (number % 2)
        people.append(Person(next(faces), shifted(way, begins)))
    seconds = math.ceil(max(person.walk.points[-1][0] for person in people)) + 1
    return Scene("return", place, tuple(people), seconds, FPS, lines=(line,), seed=6)


def hall(
    faces: Iterator[Cutout], seen_before: Pixels, seen_after: Pixels, rng: np.random.Generator
) -> tuple[Scene, Scene]:
    """The same people walk out of one picture and some seconds later into the other."""
    line = Line("passage", (0.45, 0.0), (0.55, 1.0), in_side="left")
    first = unhidden(faces, _through(rng), 24, 36, rng)
    second = [
        Person(one.cutout, Walk(tuple((t + 3, x, y, side) for t, x, y, side in one.walk.points)))
        for one in first
    ]
    return (
        Scene("hall-a", seen_before, tuple(first), 40, FPS, lines=(line,), seed=7),
        Scene("hall-b", seen_after, tuple(second), 40, FPS, lines=(line,), seed=8),
    )


Maker = Callable[[Iterator[Cutout], list[Pixels], np.random.Generator], tuple[Scene, ...]]
MAKERS: Final[dict[str, tuple[int, Maker]]] = {
    "door": (45, lambda f, p, r: (door(f, p[0], r),)),
    "approach": (30, lambda f, p, r: (approach(f, p[1], r),)),
    "shelf": (25, lambda f, p, r: (shelf(f, p[2], r),)),
    "crowd": (20, lambda f, p, r: (crowd(f, p[3], r),)),
    "passing": (18, lambda f, p, r: (passing(f, p[0], r),)),
    "return": (10, lambda f, p, r: (come_back(f, p[1], r),)),
    "hall": (25, lambda f, p, r: hall(f, p[2], p[0], r)),
}
"""By name: how many people it needs at most, and what makes it."""


def write_one(name: str, table: Path, out: Path, seed: int) -> tuple[tuple[Truth, ...], int, int]:
    """Write the video or videos of a scene and their truth; with the faces used and passed over."""
    cv2.setNumThreads(1)
    count, make = MAKERS[name]
    own = seed * 100 + list(MAKERS).index(name)
    parts = places()
    people, passed_over = faces_of(table, parts[0], own, count)
    truths = []
    for scene in make(iter(people), parts, np.random.default_rng(own)):
        truth = scene.write(out / f"{scene.name}.mp4")
        truth.write(out / f"{scene.name}.json")
        truths.append(truth)
    return tuple(truths), count, passed_over


def write_set(
    data: Path,
    out: Path,
    *,
    faces: str = "fairface-test",
    seed: int = 1,
    only: Sequence[str] = (),
    processes: int = 2,
) -> tuple[list[Truth], float]:
    """Write the set; its truths, and the share of faces of the table that were passed over."""
    out.mkdir(parents=True, exist_ok=True)
    table = data / f"{faces}.parquet"
    names = list(only) or list(MAKERS)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(write_one, name, table, out, seed) for name in names]
        done = [one.result() for one in waiting]
    used, passed_over = sum(one[1] for one in done), sum(one[2] for one in done)
    return [truth for one in done for truth in one[0]], passed_over / (used + passed_over)


def read_set(out: Path) -> dict[Path, Truth]:
    """The videos of a folder and their truths, by name."""
    return {
        path.with_suffix(".mp4"): read_truth(path)
        for path in sorted(out.glob("*.json"))
        if path.with_suffix(".mp4").exists()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--faces", default="fairface-test", help="table of DATA, without .parquet")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help=f"of {', '.join(MAKERS)}")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    unknown = sorted(set(only) - set(MAKERS))
    if unknown:
        parser.error(f"no scene {unknown[0]!r}; there are {', '.join(MAKERS)}")
    begun = time.monotonic()
    truths, passed_over = write_set(
        options.data,
        options.out,
        faces=options.faces,
        seed=options.seed,
        only=only,
        processes=options.processes,
    )
    for truth in truths:
        hidden = len(truth.occlusions)
        print(
            f"{truth.name:10} {truth.seconds:4.0f} s  {truth.visitors:3} visitors, "
            f"{len(truth.crossings):3} crossings, {hidden:3} times hidden or away, "
            f"{truth.faces} in view at most"
        )
    print(f"{100 * passed_over:.0f} % of the faces of the table passed over")
    print(f"written in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
