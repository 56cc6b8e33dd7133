"""Changed pictures: what each change does to pixels, and what the change of a figure is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the 'eval' extra")

from agelens import Analyzer
from agelens.data.schema import FaceRecord, FaceWriter
from agelens.errors import ArgumentError, DataError
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.scoring import ScoringOptions, score
from agelens.evaluation.stress import (
    SLICES,
    CropSlice,
    FacePlace,
    PictureSlice,
    Pixels,
    stress,
)
from agelens.images import read_pixels
from data.pictures import blob, encoded

PHOTOS = ("astronaut.jpg", "hopper.jpg")


def place(side: float = 40.0, turn: int = 0) -> FacePlace:
    points = np.array([[40, 45], [60, 45], [50, 55], [43, 66], [57, 66]], float)
    return FacePlace((30, 30, 30 + side, 30 + side), points, side, turn)


def changed(name: str, pixels: Pixels, where: FacePlace | None = None) -> Pixels | None:
    found = SLICES[name]
    assert isinstance(found, PictureSlice)
    return found.change(pixels, where or place())


def certainly(pixels: Pixels | None) -> Pixels:
    assert pixels is not None
    return pixels


# --- changes --------------------------------------------------------------------------------------


def test_no_change_touches_the_picture_it_was_given() -> None:
    pixels = blob(1, 100)
    kept = pixels.copy()

    for one in SLICES.values():
        if isinstance(one, PictureSlice):
            result = one.change(pixels, place())
            assert result is None or (result.dtype == np.uint8 and result.shape[2] == 3), one.name

    assert np.array_equal(pixels, kept)


def test_dark_and_bright_are_an_eighth_and_four_times_the_light() -> None:
    pixels = np.full((4, 4, 3), 128, np.uint8)
    linear = ((128 / 255 + 0.055) / 1.055) ** 2.4

    for name, factor in (("dark", 1 / 8), ("bright", 4.0)):
        light = min(1.0, linear * factor)
        expected = 255 * (1.055 * light ** (1 / 2.4) - 0.055)
        assert certainly(changed(name, pixels))[0, 0, 0] == pytest.approx(expected, abs=1)


def test_small_brings_the_face_to_its_side_and_never_enlarges() -> None:
    pixels = blob(2, 200)

    assert certainly(changed("small_24", pixels, place(48))).shape == (100, 100, 3)
    assert changed("small_64", pixels, place(48)) is None


@pytest.mark.parametrize(
    ("name", "corner"),
    [("rotated_right_90", (0, 99)), ("rotated_right_15", None), ("rotated_left_30", None)],
)
def test_a_turned_picture_holds_all_of_it(name: str, corner: tuple[int, int] | None) -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:3, :3] = 255  # the upper left corner

    result = certainly(changed(name, pixels))

    assert result.max() > 200
    if corner is not None:
        ys, xs = np.nonzero(result[..., 0] == 255)
        assert abs(ys.mean() - corner[0]) < 3
        assert abs(xs.mean() - corner[1]) < 3


def test_bars_cover_mouth_and_eyes_and_nothing_else() -> None:
    pixels = np.full((100, 100, 3), 90, np.uint8)
    points = place().landmarks.astype(int)

    mouth, eyes = (certainly(changed(name, pixels)) for name in ("mouth_covered", "eyes_covered"))

    covered = [(image[points[:, 1], points[:, 0], 0] != 90).tolist() for image in (mouth, eyes)]
    assert covered[0] == [False, False, False, True, True]
    assert covered[1] == [True, True, False, False, False]
    assert 0.03 < (mouth != 90).mean() < 0.12
    assert 0.02 < (eyes != 90).mean() < 0.08


def test_jpeg_gets_worse_with_its_quality_and_grey_has_no_colour() -> None:
    pixels = blob(3, 100)
    loss = [
        np.abs(certainly(changed(name, pixels)).astype(int) - pixels).mean()
        for name in ("jpeg_20", "jpeg_10")
    ]

    assert 0 < loss[0] < loss[1]
    assert np.ptp(certainly(changed("grey", pixels)), axis=2).max() == 0


# --- the run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Path:
    """Two photographs with labels, and one that is nothing."""
    path = tmp_path_factory.mktemp("data") / "faces.parquet"
    with FaceWriter(path) as writer:
        for row, (image, age) in enumerate(
            [((faces / PHOTOS[0]).read_bytes(), 36), ((faces / PHOTOS[1]).read_bytes(), 40)]
        ):
            writer.write(
                FaceRecord("ours", f"{row}", image=image, age_min=age, age_max=age, gender="female")
            )
        writer.write(FaceRecord("ours", "2", image=encoded(blob(0, 64)), age_min=5, age_max=5))
    return path


@pytest.fixture(scope="module")
def plain(table: Path) -> ScoredFaces:
    return score("default", table, ScoringOptions(crops=False))


def test_the_change_of_a_figure_is_that_of_the_same_faces_analysed_by_hand(
    table: Path, plain: ScoredFaces, faces: Path
) -> None:
    found = stress("default", table, plain, ScoringOptions(crops=False), slices=["grey", "dark"])

    analyzer = Analyzer(max_faces=1)
    wrong: dict[str, list[float]] = {"before": [], "grey": []}
    for name, age in zip(PHOTOS, (36, 40), strict=True):
        pixels = read_pixels(faces / name)
        without = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        for key, image in (("before", pixels), ("grey", without)):
            wrong[key].append(abs(analyzer(np.asarray(image, np.uint8)).faces[0].age.mean - age))
    change = found.slices[0].all["age_mae"]
    assert found.faces == 2
    assert change.before == pytest.approx(np.mean(wrong["before"]), abs=1e-4)
    assert change.after == pytest.approx(np.mean(wrong["grey"]), abs=1e-4)
    assert change.change.value == pytest.approx(change.after - change.before)
    assert np.isnan(change.change.low)  # two people are too few for an interval


def test_every_slice_says_for_how_many_faces_there_is_an_answer(
    table: Path, plain: ScoredFaces
) -> None:
    told: list[tuple[int, int]] = []

    found = stress(
        "default",
        table,
        plain,
        ScoringOptions(crops=False),
        progress=lambda done, total: told.append((done, total)),
    )

    assert [one.name for one in found.slices] == list(SLICES)
    assert told == [(1, 2), (2, 2)]
    for one in found.slices:
        assert 0 <= one.answered <= one.estimated <= one.faces <= 2, one.name
    by_name = {one.name: one for one in found.slices}
    assert by_name["jpeg_20"].answered == 2
    assert by_name["small_200"].faces < 2
    assert by_name["blurred"].answered <= by_name["jpeg_20"].answered


def test_a_shifted_crop_changes_the_answer_and_no_shift_does_not(
    table: Path, plain: ScoredFaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = CropSlice("still", "not shifted")
    with monkeypatch.context() as patch:
        patch.setattr("agelens.evaluation.stress.SLICES", {**SLICES, "still": still})
        found = stress(
            "default", table, plain, ScoringOptions(crops=False),
            slices=["still", "crop_shifted_20", "crop_wider_20"],
        )  # fmt: skip

    unmoved, shifted, wider = (one.all["age_mae"].change.value for one in found.slices)
    assert unmoved == pytest.approx(0, abs=1e-6)
    assert abs(shifted) > 0.05
    assert abs(wider) > 0.05


def test_an_interrupted_run_goes_on_where_it_stopped(
    table: Path, plain: ScoredFaces, tmp_path: Path
) -> None:
    options, kept = ScoringOptions(crops=False), tmp_path / "kept.npz"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    told: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        stress("default", table, plain, options, slices=["grey"], kept=kept, progress=stop)
    went_on = stress(
        "default", table, plain, options, slices=["grey"], kept=kept,
        progress=lambda done, total: told.append(done),
    )  # fmt: skip

    assert told == [2]
    assert went_on == stress("default", table, plain, options, slices=["grey"])


def test_kept_answers_to_another_question_are_not_taken(
    table: Path, plain: ScoredFaces, tmp_path: Path
) -> None:
    options, kept = ScoringOptions(crops=False), tmp_path / "kept.npz"
    stress("default", table, plain, options, slices=["grey"], kept=kept)

    other = stress("default", table, plain, options, slices=["dark"], kept=kept)

    assert other == stress("default", table, plain, options, slices=["dark"])
    kept.write_bytes(b"nothing")
    with pytest.raises(DataError, match="holds no kept answers"):
        stress("default", table, plain, options, slices=["dark"], kept=kept)


def test_wrong_requests_are_named(table: Path, plain: ScoredFaces) -> None:
    with pytest.raises(ArgumentError, match="no slice 'foggy'; there are dark"):
        stress("default", table, plain, slices=["foggy"])
    strangers = np.array([f"other.parquet#{row}" for row in range(len(plain))], object)
    with pytest.raises(DataError, match=r"the scored face other\.parquet#0 is not in these files"):
        stress("default", table, replace(plain, names=strangers))
