"""
Scenes of real pixels with a known truth: faces cut out of photographs walk over a photograph.

    Cutout     a head, with shoulders where the photograph has them, and where its face is
    Walk       the way of one person: where its face is and how large, over time
    Scene      people, a background, lines and zones; ``Scene.write`` makes the video
    Truth      who was visible when, who crossed what, who stayed where, who hid whom

What counts is said by the way and by the pixels that were drawn, never by a detector. A face is
visible in a frame when its box has ``SEEN_SIDE`` pixels (the root of its area), ``SEEN_INSIDE`` of
it lies within the picture and at most ``SEEN_COVERED`` of it is covered by nearer people. A person
who is visible for ``SEEN_S`` at a stretch is to be counted; a line is crossed when the centre of
the face goes from more than ``CLEAR`` sides before it to as much behind it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from agelens.video.zones import Line, Zone

SEEN_SIDE: Final = 32.0
"""Pixels; smaller faces are not asked for."""
SEEN_INSIDE: Final = 0.9
"""Share of the face's box that lies within the picture."""
SEEN_COVERED: Final = 0.25
"""Share of the face's box that nearer people cover at most."""
SEEN_S: Final = 0.5
"""Seconds at a stretch after which somebody is to be counted: three frames at eight a second."""
CLEAR: Final = 0.5
"""Sides of the face before and behind a line."""

_EXPOSURE_S: Final = 1 / 60
_NOISE: Final = 2.5
"""Spread of the sensor's noise, grey levels of 255."""
_BOB: Final = 0.03
"""Rise and fall of a walking head, sides."""
_STEPS_HZ: Final = 1.8
_SMOOTH_S: Final = 0.3
"""Time over which a walker changes speed."""
_LARGEST_SIDE: Final = 150.0
"""Side of a face in a cutout at most, pixels."""
_ROOM: Final = 0.3
"""Width that a photograph needs around a face for its outline to be looked for, of the face's."""
_FADE: Final = 0.05
"""Width of the soft edge where a photograph ends, heights of the face."""
_COVER_STEP: Final = 4
"""Pixels of the picture along one of the map in which covered places are noted."""

Pixels = NDArray[np.uint8]
Direction = Literal["in", "out"]


@dataclass(frozen=True, eq=False)
class Cutout:
    """Somebody cut out of a photograph.

    Attributes:
        pixels: (H, W, 3) uint8 BGR.
        opaque: (H, W) float32 0..1, soft at the edge.
        face: x0 y0 x1 y1 of the face in ``pixels``.
        ages: Youngest and oldest age in completed years, or None.
        is_female: Perceived gender, or None.
    """

    pixels: Pixels
    opaque: NDArray[np.float32]
    face: tuple[float, float, float, float]
    ages: tuple[int, int] | None = None
    is_female: bool | None = None

    @property
    def side(self) -> float:
        """Root of the area of the face's box, pixels."""
        x0, y0, x1, y1 = self.face
        return math.sqrt((x1 - x0) * (y1 - y0))

    def mirrored(self) -> Cutout:
        """Seen in a mirror."""
        x0, y0, x1, y1 = self.face
        width = self.pixels.shape[1]
        return Cutout(
            np.ascontiguousarray(self.pixels[:, ::-1]),
            np.ascontiguousarray(self.opaque[:, ::-1]),
            (width - x1, y0, width - x0, y1),
            self.ages,
            self.is_female,
        )

    def relit(self, gain: float, saturation: float) -> Cutout:
        """In other light: so much brighter, with so much of its colour."""
        grey = self.pixels.mean(axis=2, keepdims=True)
        lit = gain * (grey + saturation * (self.pixels - grey))
        pixels = np.clip(lit, 0, 255).astype(np.uint8)
        return Cutout(pixels, self.opaque, self.face, self.ages, self.is_female)


def cut_out(
    photograph: Pixels,
    face: Sequence[float],
    *,
    ages: tuple[int, int] | None = None,
    is_female: bool | None = None,
) -> Cutout:
    """Cut a head, and the shoulders that the photograph has, out of it.

    Where there is enough around the head, its outline is found by colour (GrabCut; Rother et al.,
    SIGGRAPH 2004). A photograph of little more than the face is continued by its blurred edges and
    gives an oval.

    Args:
        photograph: (H, W, 3) uint8 BGR with one face.
        face: Its box, x0 y0 x1 y1.
        ages: Youngest and oldest age in completed years, where known.
        is_female: Perceived gender, where known.
    """
    x0, y0, x1, y1 = (float(value) for value in face)
    scale = min(1.0, _LARGEST_SIDE / math.sqrt((x1 - x0) * (y1 - y0)))
    size = (round(scale * photograph.shape[1]), round(scale * photograph.shape[0]))
    pixels = np.asarray(cv2.resize(photograph, size, interpolation=cv2.INTER_AREA), np.uint8)
    x0, y0, x1, y1 = (scale * value for value in (x0, y0, x1, y1))
    wide, high = x1 - x0, y1 - y0
    room = min(x0 / wide, (size[0] - x1) / wide, y0 / high, (size[1] - y1) / high)
    if room < _ROOM:
        grown = math.ceil(_ROOM * max(wide, high))
        pixels = _continued(pixels, grown)
        x0, y0, x1, y1 = (value + grown for value in (x0, y0, x1, y1))
    left, top = max(0, int(x0 - 0.9 * wide)), max(0, int(y0 - 0.75 * high))
    right, bottom = int(x1 + 0.9 * wide), int(y1 + 0.9 * high)
    pixels = np.ascontiguousarray(pixels[top:bottom, left:right])
    box = (x0 - left, y0 - top, x1 - left, y1 - top)
    inside = _oval(pixels, box) if room < _ROOM else _outline(pixels, box)
    return Cutout(pixels, _softened(inside, box), box, ages, is_female)


def _continued(pixels: Pixels, by: int) -> Pixels:
    """A photograph with so many pixels more on each side: its edges, blurred."""
    sides = (by, by, by, by)
    larger = np.asarray(cv2.copyMakeBorder(pixels, *sides, cv2.BORDER_REPLICATE), np.uint8)
    blurred = np.asarray(cv2.GaussianBlur(larger, (0, 0), by / 6), np.uint8)
    blurred[by:-by, by:-by] = pixels
    return blurred


def _oval(pixels: Pixels, face: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """A head around a face, and nothing of the shoulders."""
    x0, y0, x1, y1 = face
    wide, high = x1 - x0, y1 - y0
    inside = np.zeros(pixels.shape[:2], np.uint8)
    middle = (int((x0 + x1) / 2), int((y0 + y1) / 2 - 0.08 * high))
    cv2.ellipse(inside, middle, (int(0.72 * wide), int(0.78 * high)), 0, 0, 360, 1, -1)
    return inside


def _outline(pixels: Pixels, face: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """A head and shoulders as their colours tell them from the surroundings."""
    x0, y0, x1, y1 = face
    wide, high = x1 - x0, y1 - y0
    middle = (int((x0 + x1) / 2), int((y0 + y1) / 2))
    crown, shoulders = (middle[0], int(middle[1] - 0.1 * high)), (middle[0], int(y1 + 1.15 * high))
    shape = pixels.shape[:2]
    possible, sure = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    cv2.ellipse(possible, crown, (int(0.85 * wide), int(0.95 * high)), 0, 0, 360, 1, -1)
    cv2.ellipse(possible, shoulders, (int(1.35 * wide), int(1.1 * high)), 0, 0, 360, 1, -1)
    cv2.ellipse(sure, middle, (int(0.48 * wide), int(0.55 * high)), 0, 0, 360, 1, -1)
    cv2.ellipse(sure, shoulders, (int(0.9 * wide), int(0.85 * high)), 0, 0, 360, 1, -1)
    mask = np.where(possible, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    mask[sure > 0] = cv2.GC_FGD
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(pixels, mask, (0, 0, 0, 0), *models, 3, cv2.GC_INIT_WITH_MASK)
    inside = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    size = max(3, int(0.06 * wide)) | 1
    for step in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
        inside = np.asarray(cv2.morphologyEx(inside, step, np.ones((size, size), np.uint8)))
    return inside


def _softened(
    inside: NDArray[np.uint8], face: tuple[float, float, float, float]
) -> NDArray[np.float32]:
    x0, y0, x1, y1 = face
    soft = _floats(cv2.GaussianBlur(inside.astype(np.float32), (0, 0), max(1.0, 0.02 * (x1 - x0))))
    # Where the photograph ends, the person must not end as with a knife.
    fade = max(2, int(_FADE * (y1 - y0)))
    rows, columns = (np.arange(length) for length in soft.shape)
    for along in (rows[:, None], columns[None]):
        from_edge = np.minimum(along, along.max() - along)
        soft *= np.clip(from_edge / fade, 0, 1).astype(np.float32)
    return soft


def _floats(values: NDArray[Any]) -> NDArray[np.float32]:
    """OpenCV does not say which numbers it gives back."""
    return np.ascontiguousarray(values, np.float32)


# --- who walks where ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walk:
    """The way of a face.

    Attributes:
        points: (seconds, x, y, side): the centre of the face and the root of its box's area, in
            pixels of the picture, in the order of time; straight between them, and resting where
            two are in one place. Before the first and after the last the person is not there.
        bobs: A walking head rises and falls.
    """

    points: tuple[tuple[float, float, float, float], ...]
    bobs: bool = True

    def at(self, seconds: float) -> tuple[float, float, float] | None:
        """Centre and side of the face; None when it is not there."""
        if not self.points[0][0] <= seconds <= self.points[-1][0]:
            return None
        times, xs, ys, sides = np.array(self.points, np.float64).T
        # The mean over a moment: nobody turns on the spot without slowing down.
        near = seconds + np.linspace(-0.5, 0.5, 9) * _SMOOTH_S
        x, y = np.interp(near, times, xs).mean(), np.interp(near, times, ys).mean()
        side = float(np.exp(np.interp(near, times, np.log(sides)).mean()))
        if self.bobs:
            y += _BOB * side * math.sin(2 * math.pi * _STEPS_HZ * (seconds - times[0]))
        return float(x), float(y), side


@dataclass(frozen=True, eq=False)
class Person:
    """A cutout on its way."""

    cutout: Cutout
    walk: Walk


@dataclass(frozen=True)
class TruePerson:
    """What is known of one person.

    Attributes:
        person: Place in the scene.
        visible: Stretches of seconds in which the face is visible.
        walk: Where the face is, visible or not.
        ages: Youngest and oldest age, or None.
        is_female: Perceived gender, or None.
    """

    person: int
    visible: tuple[tuple[float, float], ...]
    walk: Walk
    ages: tuple[int, int] | None
    is_female: bool | None

    @property
    def counts(self) -> bool:
        """Whether it is visible for long enough to be counted."""
        return any(end - start >= SEEN_S for start, end in self.visible)

    @property
    def enters_s(self) -> float:
        return self.visible[0][0]

    @property
    def leaves_s(self) -> float:
        return self.visible[-1][1]


@dataclass(frozen=True)
class TrueCrossing:
    """Somebody crossed a line."""

    person: int
    line: str
    direction: Direction
    seconds: float


@dataclass(frozen=True)
class TrueStay:
    """Seconds that somebody was in a zone while being visible."""

    person: int
    zone: str
    seconds: float


@dataclass(frozen=True)
class Occlusion:
    """Somebody was hidden by nearer people."""

    person: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Truth:
    """What happens in a video.

    Attributes:
        name: Name of the scene.
        width: Of the picture, pixels.
        height: Of the picture, pixels.
        fps: Frames a second.
        seconds: How long it lasts.
        lines: To be watched.
        zones: To be watched.
        people: All that walk in it, visible or not.
        crossings: By time.
        stays: By person and zone.
        occlusions: By person and time.
        faces: Most faces visible at a time.
    """

    name: str
    width: int
    height: int
    fps: float
    seconds: float
    lines: tuple[Line, ...]
    zones: tuple[Zone, ...]
    people: tuple[TruePerson, ...]
    crossings: tuple[TrueCrossing, ...]
    stays: tuple[TrueStay, ...]
    occlusions: tuple[Occlusion, ...]
    faces: int

    @property
    def visitors(self) -> int:
        """People that are to be counted."""
        return sum(person.counts for person in self.people)

    def crossed(self, line: str, direction: Direction) -> int:
        """How often a line was crossed by those who are to be counted."""
        counted = {person.person for person in self.people if person.counts}
        return sum(
            one.line == line and one.direction == direction and one.person in counted
            for one in self.crossings
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", "utf-8")


def read_truth(path: Path) -> Truth:
    """What ``Truth.write`` wrote."""
    wire = json.loads(path.read_text("utf-8"))

    def pair(values: Any) -> Any:
        return None if values is None else tuple(values)

    return Truth(
        **{key: wire[key] for key in ("name", "width", "height", "fps", "seconds", "faces")},
        lines=tuple(
            Line(**{**one, "start": pair(one["start"]), "end": pair(one["end"])})
            for one in wire["lines"]
        ),
        zones=tuple(
            Zone(**{**one, "polygon": tuple(pair(corner) for corner in one["polygon"])})
            for one in wire["zones"]
        ),
        people=tuple(
            TruePerson(
                one["person"],
                tuple(pair(stretch) for stretch in one["visible"]),
                Walk(tuple(pair(point) for point in one["walk"]["points"]), one["walk"]["bobs"]),
                pair(one["ages"]),
                one["is_female"],
            )
            for one in wire["people"]
        ),
        crossings=tuple(TrueCrossing(**one) for one in wire["crossings"]),
        stays=tuple(TrueStay(**one) for one in wire["stays"]),
        occlusions=tuple(Occlusion(**one) for one in wire["occlusions"]),
    )


# --- the scene ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Drawn:
    """One frame and where the faces are in it.

    Attributes:
        pixels: (H, W, 3) uint8 BGR.
        boxes: x0 y0 x1 y1 of each face in pixels, by person; of those who are there.
        inside: Share of the box within the picture, by person.
        covered: Share of the box that nearer people cover, by person.
    """

    pixels: Pixels
    boxes: dict[int, tuple[float, float, float, float]]
    inside: dict[int, float]
    covered: dict[int, float]

    def is_visible(self, person: int) -> bool:
        if person not in self.boxes:
            return False
        x0, y0, x1, y1 = self.boxes[person]
        return (
            math.sqrt((x1 - x0) * (y1 - y0)) >= SEEN_SIDE
            and self.inside[person] >= SEEN_INSIDE
            and self.covered[person] <= SEEN_COVERED
        )


@dataclass(frozen=True, eq=False)
class Scene:
    """People who walk before a background.

    Attributes:
        name: For tables.
        background: (H, W, 3) uint8 BGR; its size is that of the video.
        people: Who; the larger of two faces is the nearer one.
        seconds: How long it lasts.
        fps: Frames a second.
        lines: Drawn where the truth counts crossings.
        zones: Drawn where the truth counts stays.
        seed: Of the sensor's noise.
    """

    name: str
    background: Pixels
    people: tuple[Person, ...]
    seconds: float
    fps: float = 25.0
    lines: tuple[Line, ...] = ()
    zones: tuple[Zone, ...] = ()
    seed: int = 0

    def frames(self) -> Iterator[Drawn]:
        """The frames, one after another, with the noise of a sensor."""
        rng = np.random.default_rng(self.seed)
        shape = self.background.shape
        grains = [rng.normal(0, _NOISE, shape).astype(np.int16) for _ in range(4)]
        pyramids = [_Pyramid(person.cutout) for person in self.people]
        for number in range(round(self.seconds * self.fps)):
            drawn = self._drawn(number / self.fps, pyramids)
            grain = np.roll(grains[number % 4], tuple(rng.integers(0, shape[:2])), (0, 1))
            noisy = np.clip(drawn.pixels + grain, 0, 255).astype(np.uint8)
            yield Drawn(noisy, drawn.boxes, drawn.inside, drawn.covered)

    def frame(self, seconds: float) -> Drawn:
        """A single moment, without noise."""
        return self._drawn(seconds, [_Pyramid(person.cutout) for person in self.people])

    def write(self, path: Path) -> Truth:
        """Write the video (MPEG-4 in .mp4, Motion JPEG in .avi) and tell what is in it."""
        height, width = self.background.shape[:2]
        code = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
        writer = cv2.VideoWriter(str(path), code, self.fps, (width, height))
        if not writer.isOpened():
            raise OSError(f"{path}: this OpenCV can't write {path.suffix} videos")
        visible: list[list[bool]] = [[] for _ in self.people]
        try:
            for drawn in self.frames():
                writer.write(drawn.pixels)
                for number, seen in enumerate(visible):
                    seen.append(drawn.is_visible(number))
        finally:
            writer.release()
        return self._truth(np.array(visible, bool).reshape(len(self.people), -1))

    def _drawn(self, seconds: float, pyramids: Sequence[_Pyramid]) -> Drawn:
        pixels = self.background.copy()
        height, width = pixels.shape[:2]
        there = {
            number: place
            for number, person in enumerate(self.people)
            if (place := person.walk.at(seconds)) is not None
        }
        covering = np.zeros((height // _COVER_STEP + 1, width // _COVER_STEP + 1), np.float32)
        boxes, inside, covered, layers = {}, {}, {}, []
        for number, (x, y, side) in sorted(there.items(), key=lambda item: -item[1][2]):
            before = self.people[number].walk.at(seconds - _EXPOSURE_S) or (x, y, side)
            layer = pyramids[number].drawn(x, y, side, (x - before[0], y - before[1]))
            box = pyramids[number].box(x, y, side)
            boxes[number] = box
            inside[number] = _inside(box, width, height)
            covered[number] = _mean_of(covering, box)
            _cover(covering, layer)
            layers.append(layer)
        for layer in reversed(layers):
            _paste(pixels, layer)
        return Drawn(pixels, boxes, inside, covered)

    # --- what happens -----------------------------------------------------------------------------

    def _truth(self, visible: NDArray[np.bool_]) -> Truth:
        height, width = self.background.shape[:2]
        people = tuple(
            TruePerson(
                number,
                tuple(_stretches(visible[number], self.fps)),
                person.walk,
                person.cutout.ages,
                person.cutout.is_female,
            )
            for number, person in enumerate(self.people)
        )
        crossings = [
            crossing
            for number, person in enumerate(self.people)
            for line in self.lines
            for crossing in self._crossings(number, person.walk, line)
        ]
        stays = [
            TrueStay(number, zone.name, seconds)
            for number, person in enumerate(self.people)
            for zone in self.zones
            if (seconds := self._stay(person.walk, zone, visible[number])) > 0
        ]
        hidden = [
            Occlusion(number, start, end)
            for number, seen in enumerate(visible)
            for start, end in _gaps(seen, self.fps)
        ]
        return Truth(
            self.name,
            width,
            height,
            self.fps,
            self.seconds,
            self.lines,
            self.zones,
            people,
            tuple(sorted(crossings, key=lambda one: (one.seconds, one.person, one.line))),
            tuple(stays),
            tuple(hidden),
            int(visible.sum(axis=0).max(initial=0)),
        )

    def _crossings(self, number: int, walk: Walk, line: Line) -> Iterator[TrueCrossing]:
        height, width = self.background.shape[:2]
        start = np.array(line.start) * (width, height)
        along = np.array(line.end) * (width, height) - start
        length = float(np.hypot(*along))
        clear_side, passed = 0, math.nan
        last_side = 0
        for frame in range(round(self.seconds * self.fps)):
            place = walk.at(frame / self.fps)
            if place is None:
                continue
            x, y, side = place
            away = np.array((x, y)) - start
            # With y pointing down, the right hand of who looks along the line has a positive one.
            across = float(along[0] * away[1] - along[1] * away[0]) / length
            share = float(along @ away) / length**2
            here = 1 if across > 0 else -1
            if last_side and here != last_side:
                through = 0 <= share <= 1 and _in_view(x, y, width, height)
                passed = frame / self.fps if through else math.nan
            last_side = here
            if abs(across) < CLEAR * side:
                continue
            if clear_side and here != clear_side and not math.isnan(passed):
                into = "right" if here > 0 else "left"
                yield TrueCrossing(
                    number, line.name, "in" if into == line.in_side else "out", passed
                )
            clear_side = here

    def _stay(self, walk: Walk, zone: Zone, seen: NDArray[np.bool_]) -> float:
        height, width = self.background.shape[:2]
        polygon = (np.array(zone.polygon) * (width, height)).astype(np.float32)
        within = 0
        for frame in np.flatnonzero(seen).tolist():
            place = walk.at(frame / self.fps)
            assert place is not None  # who is visible is there
            within += cv2.pointPolygonTest(polygon, place[:2], False) >= 0
        return within / self.fps


# --- drawing --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Layer:
    """A patch of the picture: colours times opacity, opacity, and its upper left corner."""

    colours: NDArray[np.float32]
    opaque: NDArray[np.float32]
    left: int
    top: int


@dataclass(eq=False)
class _Pyramid:
    """A cutout at halved sizes, so that a small face is an average and no sieve of pixels."""

    cutout: Cutout
    levels: list[NDArray[np.float32]] = field(init=False)

    def __post_init__(self) -> None:
        colours = self.cutout.pixels.astype(np.float32) * self.cutout.opaque[..., None]
        level = np.dstack([colours, self.cutout.opaque])
        self.levels = [level]
        while min(level.shape[:2]) >= 16:
            size = (level.shape[1] // 2, level.shape[0] // 2)
            level = _floats(cv2.resize(level, size, interpolation=cv2.INTER_AREA))
            self.levels.append(level)

    def box(self, x: float, y: float, side: float) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = self.cutout.face
        scale = side / self.cutout.side
        half_x, half_y = scale * (x1 - x0) / 2, scale * (y1 - y0) / 2
        return x - half_x, y - half_y, x + half_x, y + half_y

    def drawn(self, x: float, y: float, side: float, moved: tuple[float, float]) -> _Layer:
        """The patch whose face has this centre and side and moved so far during the exposure."""
        scale = side / self.cutout.side
        fitting = min(max(0, int(math.log2(1 / scale) + 0.5)), len(self.levels) - 1)
        level = self.levels[fitting]
        height, width = self.cutout.pixels.shape[:2]
        factor_x = scale * width / level.shape[1]
        factor_y = scale * height / level.shape[0]
        x0, y0, x1, y1 = self.cutout.face
        left, top = x - scale * (x0 + x1) / 2, y - scale * (y0 + y1) / 2
        margin = 2 + int(max(abs(moved[0]), abs(moved[1])))
        corner = (math.floor(left) - margin, math.floor(top) - margin)
        extra = 2 * margin + 1
        size = (math.ceil(scale * width) + extra, math.ceil(scale * height) + extra)
        # Pixels are squares: their centres, not their corners, are mapped.
        turn = np.array(
            [
                [factor_x, 0, left - corner[0] + 0.5 * factor_x - 0.5],
                [0, factor_y, top - corner[1] + 0.5 * factor_y - 0.5],
            ]
        )
        patch = _floats(cv2.warpAffine(level, turn, size, flags=cv2.INTER_LINEAR))
        patch = _smeared(patch, moved)
        return _Layer(patch[..., :3], patch[..., 3], *corner)


def _smeared(patch: NDArray[np.float32], moved: tuple[float, float]) -> NDArray[np.float32]:
    length = math.hypot(*moved)
    if length < 1:
        return patch
    reach = math.ceil(length / 2)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for share in np.linspace(-0.5, 0.5, 4 * reach + 1):
        kernel[round(reach + share * moved[1]), round(reach + share * moved[0])] += 1
    kernel /= kernel.sum()
    return _floats(cv2.filter2D(patch, -1, kernel, borderType=cv2.BORDER_CONSTANT))


def _clipped(layer: _Layer, width: int, height: int) -> tuple[slice, slice, slice, slice] | None:
    """Rows and columns of the picture, then of the patch; None when they do not meet."""
    rows, columns = layer.opaque.shape
    top, left = max(0, layer.top), max(0, layer.left)
    bottom, right = min(height, layer.top + rows), min(width, layer.left + columns)
    if top >= bottom or left >= right:
        return None
    return (
        slice(top, bottom),
        slice(left, right),
        slice(top - layer.top, bottom - layer.top),
        slice(left - layer.left, right - layer.left),
    )


def _paste(pixels: Pixels, layer: _Layer) -> None:
    met = _clipped(layer, pixels.shape[1], pixels.shape[0])
    if met is None:
        return
    rows, columns, patch_rows, patch_columns = met
    free = 1 - layer.opaque[patch_rows, patch_columns, None]
    under = pixels[rows, columns]
    over = layer.colours[patch_rows, patch_columns] + free * under
    pixels[rows, columns] = np.clip(over + 0.5, 0, 255).astype(np.uint8)


def _cover(covering: NDArray[np.float32], layer: _Layer) -> None:
    step = _COVER_STEP
    rows, columns = layer.opaque.shape
    size = (max(1, columns // step), max(1, rows // step))
    small = _floats(cv2.resize(layer.opaque, size, interpolation=cv2.INTER_AREA))
    coarse = _Layer(small[..., None], small, round(layer.left / step), round(layer.top / step))
    met = _clipped(coarse, covering.shape[1], covering.shape[0])
    if met is not None:
        there = covering[met[0], met[1]]
        np.maximum(there, coarse.opaque[met[2], met[3]], out=there)


def _mean_of(covering: NDArray[np.float32], box: tuple[float, float, float, float]) -> float:
    x0, y0, x1, y1 = (value / _COVER_STEP for value in box)
    part = covering[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))]
    return float(part.mean()) if part.size else 0.0


def _inside(box: tuple[float, float, float, float], width: int, height: int) -> float:
    x0, y0, x1, y1 = box
    wide = max(0.0, min(x1, width) - max(x0, 0.0))
    high = max(0.0, min(y1, height) - max(y0, 0.0))
    return wide * high / ((x1 - x0) * (y1 - y0))


def _in_view(x: float, y: float, width: int, height: int) -> bool:
    return 0 <= x <= width and 0 <= y <= height


def _stretches(seen: NDArray[np.bool_], fps: float) -> Iterator[tuple[float, float]]:
    """Seconds from the first to the last frame of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], seen, [False]]).astype(np.int8)))
    for start, end in edges.reshape(-1, 2).tolist():
        yield start / fps, (end - 1) / fps


def _gaps(seen: NDArray[np.bool_], fps: float) -> Iterator[tuple[float, float]]:
    stretches = list(_stretches(seen, fps))
    for (_, end), (start, _) in itertools.pairwise(stretches):
        yield end, start
