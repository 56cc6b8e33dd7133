"""
How much worse a model gets on worse pictures of the same faces: dark, small, turned, covered, badly
cut.

    SLICES    named changes: of the picture before a face is looked for, or of the crop after it
    stress    a sample of faces, every change, the whole chain again -> StressResult

What is measured is the change: the same faces with and without it, in the same bootstrap draws.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agelens.alignment import CropSpec, align, align_box
from agelens.analyzer import Analyzer, Cutout
from agelens.data.duplicates import encoded_picture
from agelens.data.schema import FaceTable, write_bytes
from agelens.errors import ArgumentError, DataError, ImageError
from agelens.estimation import estimate_in_batches
from agelens.evaluation.bootstrap import (
    DEFAULT_SAMPLES,
    MIN_CLUSTERS,
    Draws,
    Estimate,
    percentiles,
    weights,
)
from agelens.evaluation.metrics import Metric, find_metric
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.scoring import (
    ScoringOptions,
    decoded,
    pictures,
    read_labels,
    recalibrated,
)
from agelens.images import Picture, load_image
from agelens.results import AGE_COUNT

STRESS_METRICS: Final = (
    "age_mae",
    "age_bias",
    "age_crps",
    "range_distance",
    "range_exact",
    "gender_accuracy",
    "coverage_90",
)
"""Figures whose change is measured, where the labels allow them."""
DEFAULT_FACES: Final = 300

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int], None]

_KEPT_SCHEMA: Final = "agelens.stress/1"


# --- changes --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FacePlace:
    """Where the face is in the unchanged picture, in its pixels.

    Attributes:
        box: x0, y0, x1, y1.
        landmarks: (5, 2) eyes, nose, mouth corners; where the detector gave none, the places that
            the crop assumes.
        side: Side of the box.
        turn: 0..3, which way a crop is shifted; it differs from face to face.
    """

    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float64]
    side: float
    turn: int


Change = Callable[[Pixels, FacePlace], Pixels | None]
"""Picture to changed picture; None where the change is not possible, as for a smaller face."""


@dataclass(frozen=True)
class PictureSlice:
    """A change of the picture, before a face is looked for.

    Attributes:
        name: As policies and results call it.
        title: In words.
        change: The change.
    """

    name: str
    title: str
    change: Change


@dataclass(frozen=True)
class CropSlice:
    """A change of where the face is cut out, after it was found.

    Attributes:
        name: As policies and results call it.
        title: In words.
        zoom: Factor on what the chip shows; 1.1 shows a tenth more.
        shift: Sideways or up and down, as a share of the face square's side.
    """

    name: str
    title: str
    zoom: float = 1.0
    shift: float = 0.0


_AROUND: Final = ((-1, -1), (1, -1), (1, 1), (-1, 1))
"""Corners of a rectangle around its middle, in order."""


def relight(pixels: Pixels, face: FacePlace, *, stops: float) -> Pixels:
    """As if exposed this many stops more, in linear light (sRGB, IEC 61966-2-1)."""
    level = np.arange(256) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    exposed = np.clip(linear * 2.0**stops, 0, 1)
    encoded = np.where(exposed <= 0.0031308, exposed * 12.92, 1.055 * exposed ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * encoded).astype(np.uint8)[pixels])


def blur(pixels: Pixels, face: FacePlace, *, share: float) -> Pixels:
    """Gaussian blur with this share of the face's side as its standard deviation."""
    return _bytes(cv2.GaussianBlur(pixels, (0, 0), max(0.3, share * face.side)))


def shrink(pixels: Pixels, face: FacePlace, *, side: int) -> Pixels | None:
    """The picture made smaller until the face's side is this many pixels."""
    factor = side / face.side
    if factor >= 1:
        return None
    height, width = pixels.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return _bytes(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def compress(pixels: Pixels, face: FacePlace, *, quality: int) -> Pixels:
    """Saved as JPEG of this quality and read again."""
    _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(_bytes(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[..., ::-1])


def rotate(pixels: Pixels, face: FacePlace, *, degrees: float) -> Pixels:
    """Turned clockwise around its middle, on a canvas that holds all of it."""
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -degrees, 1.0)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    size = (round(width * cos + height * sin), round(width * sin + height * cos))
    matrix[:, 2] += ((size[0] - width) / 2, (size[1] - height) / 2)
    return _bytes(
        cv2.warpAffine(pixels, matrix, size, flags=cv2.INTER_LINEAR, borderValue=(128, 128, 128))
    )


def tilt(pixels: Pixels, face: FacePlace, *, sideways: bool) -> Pixels:
    """Seen at a slant: one edge of the face's surroundings is drawn in to 70 % of the other."""
    x, y = face.landmarks.mean(axis=0)
    reach = face.side
    corners = np.array(
        [(x + across * reach, y + down * reach) for across, down in _AROUND], np.float32
    )
    moved = corners.copy()
    if sideways:
        moved[1, 1] += 0.3 * reach
        moved[2, 1] -= 0.3 * reach
    else:
        moved[0, 0] += 0.3 * reach
        moved[1, 0] -= 0.3 * reach
    matrix = cv2.getPerspectiveTransform(corners, moved)
    height, width = pixels.shape[:2]
    return _bytes(
        cv2.warpPerspective(
            pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=(128, 128, 128)
        )
    )


def cover_mouth(pixels: Pixels, face: FacePlace) -> Pixels:
    """A pale bar from under the nose to the chin, as a mask that is worn low."""
    return _bar(
        pixels, face, face.landmarks[3:].mean(axis=0), wide=1.5, high=0.6, colour=(205, 210, 215)
    )


def cover_eyes(pixels: Pixels, face: FacePlace) -> Pixels:
    """A dark bar over both eyes, as sun glasses."""
    return _bar(
        pixels, face, face.landmarks[:2].mean(axis=0), wide=1.8, high=0.5, colour=(25, 25, 25)
    )


def grey(pixels: Pixels, face: FacePlace) -> Pixels:
    """Without colour."""
    return _bytes(cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def _bar(
    pixels: Pixels,
    face: FacePlace,
    centre: NDArray[np.float64],
    *,
    wide: float,
    high: float,
    colour: tuple[int, int, int],
) -> Pixels:
    """A bar along the line of the eyes; width and height in distances between the eyes."""
    across = face.landmarks[1] - face.landmarks[0]
    down = np.array([-across[1], across[0]])
    ends = [centre + a * wide / 2 * across + b * high / 2 * down for a, b in _AROUND]
    covered = pixels.copy()
    cv2.fillConvexPoly(covered, np.rint(ends).astype(np.int32), colour)
    return covered


def _bytes(image: Any) -> Pixels:
    return np.asarray(image, np.uint8)


_ALL_SLICES: Final[tuple[PictureSlice | CropSlice, ...]] = (
    PictureSlice("dark", "three stops darker", partial(relight, stops=-3)),
    PictureSlice("bright", "two stops brighter", partial(relight, stops=2)),
    PictureSlice("blurred", "blurred by 4 % of the face's side", partial(blur, share=0.04)),
    *(
        PictureSlice(f"small_{side}", f"face of {side} px", partial(shrink, side=side))
        for side in (24, 32, 48, 64, 100, 200)
    ),
    PictureSlice("jpeg_20", "JPEG of quality 20", partial(compress, quality=20)),
    PictureSlice("jpeg_10", "JPEG of quality 10", partial(compress, quality=10)),
    *(
        PictureSlice(
            f"rotated_{'left' if degrees < 0 else 'right'}_{abs(degrees)}",
            f"turned {abs(degrees)}° {'counterclockwise' if degrees < 0 else 'clockwise'}",
            partial(rotate, degrees=degrees),
        )
        for degrees in (-15, 15, -30, 30, 90)
    ),
    PictureSlice("tilted_back", "seen from below, in perspective", partial(tilt, sideways=False)),
    PictureSlice(
        "tilted_aside", "seen from the side, in perspective", partial(tilt, sideways=True)
    ),
    PictureSlice("mouth_covered", "bar over the mouth, as a mask", cover_mouth),
    PictureSlice("eyes_covered", "bar over the eyes, as sun glasses", cover_eyes),
    PictureSlice("grey", "without colour", grey),
    CropSlice("crop_shifted_10", "crop shifted by 10 %", shift=0.1),
    CropSlice("crop_shifted_20", "crop shifted by 20 %", shift=0.2),
    CropSlice("crop_wider_10", "crop wider by 10 %", zoom=1.1),
    CropSlice("crop_wider_20", "crop wider by 20 %", zoom=1.2),
    CropSlice("crop_tighter_10", "crop tighter by 10 %", zoom=0.9),
    CropSlice("crop_tighter_20", "crop tighter by 20 %", zoom=0.8),
)
SLICES: Final[Mapping[str, PictureSlice | CropSlice]] = {one.name: one for one in _ALL_SLICES}
"""By name, in the order of reports."""


def moved_chip(
    pixels: Pixels,
    face: Cutout,
    scale: tuple[float, float],
    place: FacePlace,
    spec: CropSpec,
    change: CropSlice,
) -> Pixels:
    """The chip of a face as a crop cuts it that is off by this much.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        face: As the analyzer cut it.
        scale: Full-size pixels a pixel of ``pixels``.
        place: Where it is.
        spec: Crop of the model's card.
        change: How far the crop is off.
    """
    sideways = ((1, 0), (0, 1), (-1, 0), (0, -1))[place.turn]
    if face.landmarks is not None and spec.anchor == "landmarks":
        points = np.asarray(face.landmarks, np.float64) / scale
        unit = np.asarray(spec.landmarks, np.float64)
        # Side of the face square in the picture, and its middle, from how far the points spread.
        spread, unit_spread = (float(np.std(p - p.mean(axis=0))) for p in (points, unit))
        side = spread / unit_spread
        middle = points.mean(axis=0) + (0.5 - unit.mean(axis=0)) * side
        off = change.shift * side * np.array(sideways)
        return align(pixels, middle + (points - middle) * change.zoom + off, spec)
    corners = np.asarray(face.box, np.float64).reshape(2, 2) / scale
    middle = corners.mean(axis=0)
    whole = face.origin == "whole_picture"
    side = place.side * (spec.picture_scale if whole else spec.box_scale)
    moved = middle + (corners - middle) * change.zoom + change.shift * side * np.array(sideways)
    return align_box(pixels, moved.reshape(4), spec, whole_picture=whole)


def _place(face: Cutout, scale: tuple[float, float], spec: CropSpec, turn: int) -> FacePlace:
    x0, y0, x1, y1 = (v / s for v, s in zip(face.box, (*scale, *scale), strict=True))
    side = float(((x1 - x0) * (y1 - y0)) ** 0.5)
    if face.landmarks is not None:
        points = np.asarray(face.landmarks, np.float64) / scale
    else:
        whole = face.origin == "whole_picture"
        share = spec.picture_scale if whole else spec.box_scale
        shift = spec.picture_shift if whole else spec.box_shift
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) + np.array(shift) * side
        points = middle + (np.asarray(spec.landmarks) - 0.5) * share * side
    return FacePlace((x0, y0, x1, y1), points, side, turn % 4)


# --- results --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StressChange:
    """What a change does to one figure.

    Attributes:
        before: The figure on the unchanged pictures of the faces that are compared.
        after: On the changed ones.
        change: After less before, with a paired bootstrap interval.
        worse: How much farther the figure is from where good ones lie; under 0 when it got better,
            with the interval of that.
    """

    before: float
    after: float
    change: Estimate
    worse: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "before": self.before,
            "after": self.after,
            "change": self.change.to_dict(),
            "worse": self.worse.to_dict(),
        }


@dataclass(frozen=True)
class SliceResult:
    """One change.

    Attributes:
        name: Of the slice.
        title: In words.
        faces: Faces that could be changed so.
        detected: Of these, in how many the detector found a face.
        estimated: For how many there is an estimate, usable or not.
        answered: How many the analyzer answers; it abstains on the others, or sees no face.
        all: Changes of figures over the faces with an estimate.
        answers: Changes of figures over the faces that are answered.
    """

    name: str
    title: str
    faces: int
    detected: int
    estimated: int
    answered: int
    all: Mapping[str, StressChange]
    answers: Mapping[str, StressChange]

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "name": self.name,
            "title": self.title,
            "faces": self.faces,
            "detected": self.detected,
            "estimated": self.estimated,
            "answered": self.answered,
            "all": {name: change.to_dict() for name, change in self.all.items()},
            "answers": {name: change.to_dict() for name, change in self.answers.items()},
        }


@dataclass(frozen=True)
class StressResult:
    """Every change on one sample of faces.

    Attributes:
        faces: Faces in the sample.
        answered: How many of them the analyzer answers unchanged.
        seed: Of the sample.
        slices: In the order of ``SLICES``.
    """

    faces: int
    answered: int
    seed: int
    slices: tuple[SliceResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "faces": self.faces,
            "answered": self.answered,
            "seed": self.seed,
            "slices": [one.to_dict() for one in self.slices],
        }


# --- the run --------------------------------------------------------------------------------------


def stress(
    model: str,
    data: Sequence[Path] | Path,
    faces: ScoredFaces,
    options: ScoringOptions | None = None,
    *,
    slices: Iterable[str] | None = None,
    count: int = DEFAULT_FACES,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    kept: Path | None = None,
    progress: Progress | None = None,
) -> StressResult:
    """Change the pictures of a sample of faces in every way, and ask the model again.

    Args:
        model: As it was scored.
        data: The files that ``faces`` are of.
        faces: Their answers on the unchanged pictures, from ``scoring.score``.
        options: As they were scored.
        slices: Names of changes; None takes all.
        count: Faces in the sample; those without a label or an estimate are not drawn.
        samples: Bootstrap draws.
        seed: Of the sample and of the draws.
        kept: A .npz file: what is in it is not asked again, and an interrupted run leaves there
            what it had.
        progress: Told faces done and faces in all.

    Raises:
        ArgumentError: An unknown slice, or a count under 1.
        DataError: No face can be drawn, or ``faces`` are not of ``data``.
    """
    chosen = options or ScoringOptions()
    names = tuple(SLICES) if slices is None else tuple(slices)
    for name in names:
        if name not in SLICES:
            raise ArgumentError(f"there is no slice {name!r}; there are {', '.join(SLICES)}")
    if count < 1:
        raise ArgumentError(f"the sample needs 1 face or more, got {count}")
    drawn = _sample(faces, count, seed)
    sample = faces.take(drawn)
    answers = _asked(model, data, sample, chosen, names, kept, progress)
    draws = weights(sample.clusters, samples, seed)
    card = answers.analyzer.bundle.card
    results = []
    for place, name in enumerate(names):
        changed = recalibrated(
            replace(
                sample,
                decoded_age=answers.age[:, place],
                decoded_female=answers.female[:, place],
                detected=answers.detected[:, place],
                answered=answers.answered[:, place],
            ),
            card,
        )
        rows = answers.possible[:, place]
        results.append(_slice_result(SLICES[name], sample, changed, rows, draws))
    return StressResult(len(sample), int(sample.answered.sum()), seed, tuple(results))


def _sample(faces: ScoredFaces, count: int, seed: int) -> NDArray[np.intp]:
    able = np.flatnonzero(faces.has_age | faces.has_gender)
    if len(able) == 0:
        raise DataError("no face can be put under stress: none has both a label and an estimate")
    if count >= len(able):
        return able
    return np.sort(np.random.default_rng(seed).choice(able, count, replace=False))


@dataclass(eq=False)
class _Asked:
    """Answers by face and slice, before calibration; ``done`` faces are in."""

    analyzer: Analyzer
    age: NDArray[np.float64]
    female: NDArray[np.float64]
    detected: NDArray[np.bool_]
    answered: NDArray[np.bool_]
    possible: NDArray[np.bool_]
    done: int = 0

    @classmethod
    def none(cls, analyzer: Analyzer, faces: int, slices: int) -> _Asked:
        shape = (faces, slices)
        return cls(
            analyzer,
            age=np.full((*shape, AGE_COUNT), np.nan),
            female=np.full(shape, np.nan),
            detected=np.zeros(shape, bool),
            answered=np.zeros(shape, bool),
            possible=np.zeros(shape, bool),
        )


_ARRAYS: Final = ("age", "female", "detected", "answered", "possible")


def _asked(
    model: str,
    data: Sequence[Path] | Path,
    sample: ScoredFaces,
    options: ScoringOptions,
    names: Sequence[str],
    kept: Path | None,
    progress: Progress | None,
) -> _Asked:
    table = FaceTable.open(data)
    row_of = {name: row for row, name in enumerate(read_labels(table).names.tolist())}
    unknown = next((name for name in sample.names.tolist() if name not in row_of), None)
    if unknown is not None:
        raise DataError(f"the scored face {unknown} is not in these files; score them again")
    rows = np.array([row_of[name] for name in sample.names.tolist()], np.intp)
    analyzer = options.analyzer(model)
    asked = _Asked.none(analyzer, len(sample), len(names))
    key = _key(sample, names)
    if kept is not None and kept.exists():
        _take_kept(kept, key, asked)
    changes = [SLICES[name] for name in names]
    try:
        todo = rows[asked.done :]
        for source in pictures(table, todo) if len(todo) else ():
            _ask_one(asked, source, changes)
            asked.done += 1
            if progress is not None:
                progress(asked.done, len(rows))
    finally:
        if kept is not None:
            _keep(kept, key, asked)
    return asked


def _ask_one(
    asked: _Asked, source: bytes | Path, changes: Sequence[PictureSlice | CropSlice]
) -> None:
    """One face under every change; its chips are estimated in one batch."""
    analyzer, row = asked.analyzer, asked.done
    spec = analyzer.bundle.card.crop_spec()
    try:
        picture = load_image(encoded_picture(source), limits=analyzer.options.limits)
    except ImageError:
        return
    found = analyzer.cut(picture)
    if not found:
        return
    face, pixels = found[0], picture.pixels
    place = _place(face, picture.scale, spec, row)
    chips, columns = [], []
    for column, change in enumerate(changes):
        if isinstance(change, CropSlice):
            cut: Cutout | None = replace(
                face, chip=moved_chip(pixels, face, picture.scale, place, spec, change)
            )
        else:
            changed = change.change(pixels, place)
            if changed is None:
                continue
            cut = _cut(analyzer, changed)
        asked.possible[row, column] = True
        if cut is None:
            continue
        asked.detected[row, column] = cut.origin == "detector"
        asked.answered[row, column] = cut.quality.usable
        chips.append(cut.chip)
        columns.append(column)
    if chips:
        raw = estimate_in_batches(
            analyzer.estimator,
            np.stack(chips),
            batch=analyzer.options.batch,
            flip=analyzer.options.flip,
        )
        age, female = decoded(raw, analyzer.bundle.card)
        asked.age[row, columns], asked.female[row, columns] = age, female


def _cut(analyzer: Analyzer, pixels: Pixels) -> Cutout | None:
    height, width = pixels.shape[:2]
    found = analyzer.cut(Picture(np.ascontiguousarray(pixels), width, height, None))
    return found[0] if found else None


# --- comparing ------------------------------------------------------------------------------------


def _slice_result(
    change: PictureSlice | CropSlice,
    before: ScoredFaces,
    after: ScoredFaces,
    possible: NDArray[np.bool_],
    draws: Draws,
) -> SliceResult:
    estimated = possible & ~np.isnan(after.age[:, 0])
    answered = estimated & after.answered & before.answered
    return SliceResult(
        name=change.name,
        title=change.title,
        faces=int(possible.sum()),
        detected=int((possible & after.detected).sum()),
        estimated=int(estimated.sum()),
        answered=int((estimated & after.answered).sum()),
        all=_changes(before, after, np.flatnonzero(estimated), draws),
        answers=_changes(before, after, np.flatnonzero(answered), draws),
    )


def _changes(
    before: ScoredFaces, after: ScoredFaces, rows: NDArray[np.intp], draws: Draws
) -> dict[str, StressChange]:
    if len(rows) == 0:
        return {}
    pair, drawn = (before.take(rows), after.take(rows)), draws[:, rows]
    found = {}
    for name in STRESS_METRICS:
        metric = find_metric(name)
        held = metric.rows(pair[0]) & metric.rows(pair[1])
        if held.any():
            found[name] = _change(metric, pair, np.flatnonzero(held), drawn)
    return found


def _change(
    metric: Metric,
    pair: tuple[ScoredFaces, ScoredFaces],
    rows: NDArray[np.intp],
    draws: Draws,
) -> StressChange:
    before, after = pair[0].take(rows), pair[1].take(rows)
    once = np.ones((1, len(rows)), np.uint8)
    values = np.array([metric.estimate(faces, once)[0] for faces in (before, after)])
    spread = np.array([metric.estimate(faces, draws[:, rows]) for faces in (before, after)])
    if len(np.unique(before.clusters)) < MIN_CLUSTERS:
        spread = np.full_like(spread, np.nan)
    losses, loss_spread = metric.loss(values), metric.loss(spread)
    count = len(rows)
    return StressChange(
        float(values[0]),
        float(values[1]),
        Estimate(float(values[1] - values[0]), *percentiles(spread[1] - spread[0]), count),
        Estimate(
            float(losses[1] - losses[0]), *percentiles(loss_spread[1] - loss_spread[0]), count
        ),
    )


# --- keeping --------------------------------------------------------------------------------------


def _key(sample: ScoredFaces, names: Sequence[str]) -> str:
    """What the answers depend on: weights, crop, pictures, options, faces and slices."""
    provenance = sample.provenance
    facts = {
        "schema": _KEPT_SCHEMA,
        "decoding": provenance.decoding_sha256,
        "data": [file.sha256 for file in provenance.data],
        "options": dict(provenance.options),
        "faces": sample.names.tolist(),
        "slices": list(names),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _keep(path: Path, key: str, asked: _Asked) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: getattr(asked, name) for name in _ARRAYS}
    arrays["done"] = np.array(asked.done)
    arrays["key"] = np.frombuffer(key.encode(), np.uint8)
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def _take_kept(path: Path, key: str, asked: _Asked) -> None:
    """Fill in what is kept when it answers the same question."""
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as held:
            if bytes(held["key"]).decode() != key:
                return
            for name in _ARRAYS:
                getattr(asked, name)[:] = held[name]
            asked.done = int(held["done"])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, LookupError) as error:
        raise DataError(f"{path}: holds no kept answers ({error}); delete it") from error
