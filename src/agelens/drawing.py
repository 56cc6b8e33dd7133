"""
Results to look at: annotated pictures, age distributions, blurred faces.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from agelens.images import DEFAULT_LIMITS, ImageLimits, ImageSource, load_image
from agelens.results import AgeDistribution, Analysis, Face

Colour = tuple[int, int, int]

# Told apart in common colour vision deficiencies (Okabe and Ito 2008).
_COLOURS: Final[dict[str, Colour]] = {
    "female": (204, 121, 167),
    "male": (0, 114, 178),
    "uncertain": (230, 159, 0),
    "none": (0, 158, 115),
    "abstained": (110, 110, 110),
}
_INK: Final[Colour] = (255, 255, 255)
_DARK_INK: Final[Colour] = (20, 20, 20)
_LIGHT: Final = 155
"""Luma (0..255) of a colour from which on dark ink is easier to read on it."""
_SUPERSAMPLING: Final = 3
"""Pillow draws without smoothing; plots are drawn larger and shrunk."""


def annotate(
    source: ImageSource | NDArray[np.uint8],
    analysis: Analysis,
    *,
    level: float = 0.9,
    blur: bool = False,
) -> Image.Image:
    """Draw boxes, ages with intervals and genders on a picture.

    Args:
        source: The picture that was analysed.
        analysis: What was found in it.
        level: Level of the interval in brackets.
        blur: Make the faces unrecognisable first.

    Returns:
        A new RGB picture of the same size.
    """
    picture = blur_faces(source, analysis) if blur else _picture(source)
    draw = ImageDraw.Draw(picture)
    taken: list[tuple[float, float, float, float]] = []
    for face in analysis.faces:
        colour = _colour(face)
        width = max(2, round(min(picture.size) / 300))
        draw.rectangle(face.box, outline=colour, width=width)
        place = _draw_label(draw, picture.size, face, label(face, level), colour, taken)
        if place is not None:
            taken.append(place)
    return picture


def label(face: Face, level: float = 0.9) -> str:
    """One line on a face, as "34 (26-43) female 97%"."""
    if face.age.abstained:
        reason = face.quality.reasons[0] if face.quality.reasons else "cannot tell"
        return reason.split(":")[0]
    low, high = face.age.interval(level)
    age = f"{face.age.mean:.0f} ({low}-{high})"
    if face.gender is None:
        return age
    if face.gender.label == "uncertain":
        return f"{age} uncertain"
    return f"{age} {face.gender.label} {100 * face.gender.probability:.0f}%"


def blur_faces(source: ImageSource | NDArray[np.uint8], analysis: Analysis) -> Image.Image:
    """Make the faces of a picture unrecognisable.

    Each face is averaged down to 8 cells across, which no filter can undo, then smoothed. Faces
    that the analysis left out (``max_faces``, ``crops``, ``min_face``) stay as they are.

    Args:
        source: The picture that was analysed.
        analysis: What was found in it.

    Returns:
        A new RGB picture of the same size.
    """
    picture = _picture(source)
    for face in analysis.faces:
        x0, y0, x1, y1 = face.box
        reach = 0.2 * max(x1 - x0, y1 - y0)
        left, top = max(0, math.floor(x0 - reach)), max(0, math.floor(y0 - reach))
        right = min(picture.width, math.ceil(x1 + reach))
        bottom = min(picture.height, math.ceil(y1 + reach))
        if right <= left or bottom <= top:
            continue
        size = (right - left, bottom - top)
        crop = picture.crop((left, top, right, bottom))
        cells = crop.resize((8, 8), Image.Resampling.BOX).resize(size, Image.Resampling.BICUBIC)
        mask = Image.new("L", size, 0)
        # The oval of the whole face, also where the picture cuts it.
        oval = (x0 - reach - left, y0 - reach - top, x1 + reach - left, y1 + reach - top)
        ImageDraw.Draw(mask).ellipse(oval, fill=255)
        picture.paste(cells, (left, top), mask.filter(ImageFilter.GaussianBlur(size[0] / 40)))
    return picture


def plot_age(
    age: AgeDistribution, *, level: float = 0.9, size: tuple[int, int] = (640, 320)
) -> Image.Image:
    """Draw an age distribution: a bar an age, the interval shaded, the mean marked.

    Args:
        age: The distribution; an abstention gives a page that says so.
        level: Level of the shaded interval.
        size: Width and height in pixels.
    """
    width, height = (_SUPERSAMPLING * side for side in size)
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    font = _font(max(11 * _SUPERSAMPLING, height // 22))
    left, right, top, bottom = 0.02 * width, 0.98 * width, height * 0.16, height * 0.88
    if age.abstained:
        draw.text((left, height * 0.03), "no estimate", fill=(60, 60, 60), font=font)
        return picture.resize(size, Image.Resampling.BOX)
    low, high = age.interval(level)
    step = (right - left) / len(age.probabilities)
    draw.rectangle((left + low * step, top, left + (high + 1) * step, bottom), fill=(225, 238, 246))
    scale = (bottom - top) / max(float(age.probabilities.max()), 1e-9)
    for index, probability in enumerate(age.probabilities):
        x = left + index * step
        colour = (0, 114, 178) if low <= index <= high else (170, 170, 170)
        draw.rectangle(
            (x + 0.1 * step, bottom - float(probability) * scale, x + 0.9 * step, bottom),
            fill=colour,
        )
    x = left + (age.mean + 0.5) * step
    draw.line((x, top, x, bottom), fill=(213, 94, 0), width=2 * _SUPERSAMPLING)
    room = draw.textlength("100", font=font)
    for tick in range(
        0, 101, 10 if 10 * step > 1.4 * room else 20 if 20 * step > 1.4 * room else 50
    ):
        text = str(tick)
        wide = draw.textlength(text, font=font)
        x = min(left + (tick + 0.5) * step - wide / 2, width - wide - _SUPERSAMPLING)
        draw.text((x, bottom + height * 0.01), text, fill=(60, 60, 60), font=font)
    title = f"mean {age.mean:.1f}, {100 * level:g} % interval {low} to {high} years"
    draw.text((left, height * 0.03), title, fill=(20, 20, 20), font=font)
    return picture.resize(size, Image.Resampling.BOX)


def _picture(source: ImageSource | NDArray[np.uint8]) -> Image.Image:
    limits = DEFAULT_LIMITS
    if isinstance(source, np.ndarray):
        # Limits are for files; these pixels are in memory already.
        limits = ImageLimits(max_pixels=max(1, source.size))
    return Image.fromarray(load_image(source, limits=limits, work_side=None).pixels)


def _colour(face: Face) -> Colour:
    if face.age.abstained:
        return _COLOURS["abstained"]
    return _COLOURS["none" if face.gender is None else face.gender.label]


def _draw_label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    face: Face,
    text: str,
    colour: Colour,
    taken: list[tuple[float, float, float, float]],
) -> tuple[float, float, float, float] | None:
    """Write a label at the first place by the box that is free, shortened if need be.

    Returns:
        Where it stands, or None when there is no room: then the box speaks alone.
    """
    x0, y0, x1, y1 = face.box
    largest = max(40, min(size) / 25)
    usual = round(min(max(11, (x1 - x0) / 7, min(size) / 45), largest))
    words = text.split(" ")
    for count in range(len(words), 0, -1):
        shown = " ".join(words[:count])
        for points in (usual, *range(usual - 1, 7, -1)) if count == 1 else (usual, usual - 2):
            font = _font(max(points, 8))
            a, b, c, d = draw.textbbox((0, 0), shown, font=font)
            pad = max(2.0, (d - b) * 0.2)
            width, height = c - a + 2 * pad, d - b + 2 * pad
            if width > size[0] or height > size[1]:
                continue
            left = min(max(0.0, x0), size[0] - width)
            within = min(max(0.0, y0), size[1] - height)
            for top in (y0 - height, y1, y0, y1 - height, within):
                place = (left, top, left + width, top + height)
                is_inside = 0 <= top <= size[1] - height
                if is_inside and not any(_overlap(place, other) for other in taken):
                    draw.rectangle(place, fill=colour)
                    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
                    ink = _DARK_INK if luma > _LIGHT else _INK
                    draw.text((left + pad - a, top + pad - b), shown, fill=ink, font=font)
                    return place
    return None


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
