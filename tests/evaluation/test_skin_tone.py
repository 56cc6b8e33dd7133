"""Skin tone measured from the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("pyarrow", reason="needs the 'eval' extra")

from agelens import Analyzer
from agelens.alignment import FACE_TEMPLATE
from agelens.data.schema import FaceRecord, FaceWriter
from agelens.errors import DataError
from agelens.evaluation.scoring import ScoringOptions, score
from agelens.evaluation.skin_tone import (
    TONES,
    measure_tones,
    skin_angle,
    tone_of,
    typology_angle,
    with_tones,
)
from agelens.images import read_pixels
from data.pictures import blob, encoded
from evaluation.groups_of_people import people

LANDMARKS = 100 + 200 * np.array(FACE_TEMPLATE)


def face_of(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((400, 400, 3), colour, np.uint8)


def by_hand(colour: tuple[int, int, int]) -> float:
    """ITA of an sRGB colour from the definitions of sRGB (IEC 61966-2-1) and CIELAB, D65."""
    level = np.array(colour) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    ratio = to_xyz @ linear / np.array([0.9505, 1.0, 1.089])
    _, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    return float(np.degrees(np.arctan2(116 * y - 16 - 50, 200 * (y - z))))


@pytest.mark.parametrize(
    ("angle", "tone"),
    [
        (80, "very light"), (55.1, "very light"), (55, "light"), (41, "intermediate"),
        (28, "tan"), (10, "brown"), (-29.9, "brown"), (-30, "dark"), (-80, "dark"),
    ],
)  # fmt: skip
def test_classes_are_those_of_the_published_limits(angle: float, tone: str) -> None:
    assert tone_of(angle) == tone


def test_the_angle_is_the_published_one() -> None:
    assert typology_angle(70, 20) == pytest.approx(45)
    assert typology_angle(30, 20) == pytest.approx(-45)


@pytest.mark.parametrize(
    "colour", [(241, 209, 188), (224, 172, 105), (141, 85, 36), (70, 45, 35)], ids=str
)
def test_a_face_of_one_colour_has_the_angle_of_that_colour(colour: tuple[int, int, int]) -> None:
    assert skin_angle(face_of(colour), LANDMARKS) == pytest.approx(by_hand(colour), abs=1.0)


def test_darker_skin_in_the_picture_has_a_smaller_angle() -> None:
    angles = [
        skin_angle(face_of(colour), LANDMARKS)
        for colour in ((241, 209, 188), (224, 172, 105), (141, 85, 36), (70, 45, 35))
    ]

    assert angles == sorted(angles, key=lambda angle: -(angle or 0))


def test_shine_and_a_covered_forehead_do_not_count() -> None:
    clean = face_of((224, 172, 105))
    spoilt = clean.copy()
    spoilt[:150] = (30, 20, 15)  # hair down to the brows
    spoilt[185:200, 130:150] = 255  # a highlight on one cheek

    expected = skin_angle(clean, LANDMARKS)
    assert skin_angle(spoilt, LANDMARKS) == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize(
    "colour", [(120, 120, 120), (255, 255, 255), (60, 70, 140)], ids=["grey", "burnt", "blue"]
)
def test_pictures_without_skin_colour_have_no_angle(colour: tuple[int, int, int]) -> None:
    assert skin_angle(face_of(colour), LANDMARKS) is None


def test_what_lies_outside_the_picture_is_no_skin() -> None:
    # Only the eyes are in the picture.
    assert skin_angle(face_of((224, 172, 105))[:150], LANDMARKS) is None


def test_light_moves_the_measure_by_classes(faces: Path) -> None:
    """The limit that the documentation states: the same person, two exposures, two classes."""
    pixels = read_pixels(faces / "astronaut.jpg")
    analyzer = Analyzer(max_faces=1)
    landmarks = analyzer(pixels).faces[0].landmarks
    assert landmarks is not None

    usual = skin_angle(pixels, landmarks)
    dim = skin_angle((pixels * 0.5).astype(np.uint8), landmarks)

    assert usual is not None
    assert dim is not None
    assert TONES.index(tone_of(dim)) - TONES.index(tone_of(usual)) >= 2


def test_the_column_goes_by_row_and_leaves_out_what_cannot_be_measured(
    tmp_path: Path, faces: Path
) -> None:
    path = tmp_path / "faces.parquet"
    with FaceWriter(path) as writer:
        for name, image in (
            ("a", encoded(blob(0, 64))),
            ("b", (faces / "astronaut.jpg").read_bytes()),
            ("c", b"no picture"),
        ):
            writer.write(FaceRecord("ours", name, image=image, age_min=30, age_max=30))

    tones = measure_tones(path)
    scored = with_tones(score("default", path, ScoringOptions()), tones)

    assert list(tones) == ["faces.parquet#1"]
    column = scored.audit["skin_tone_measured"].tolist()
    assert column == [None, tones["faces.parquet#1"], None]
    assert column[1] in TONES


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(DataError, match="skin tone can be measured on none of these faces"):
        with_tones(people(20), {})
