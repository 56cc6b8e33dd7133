"""Augmentation: the same for the same seed, near the canonical crop, by either library."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from agelens.alignment import CropSpec, align, align_box
from agelens.data.augmentation import (
    AugmentationSettings,
    Crop,
    augmentation,
    pixel_augmentation,
)
from agelens.errors import ArgumentError

BACKENDS = ("albumentations", "torchvision")
CANONICAL = Crop.canonical(160, 0.6, 0.4)


def photograph(side: int = 160, seed: int = 0) -> np.ndarray:
    """A smooth colour picture, different at every place."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def test_canonical_crop_is_the_centred_share_of_the_chip() -> None:
    assert Crop(80, 80, 160 * 1.8 / 2.2, margin=0.4) == CANONICAL


def test_canonical_crop_is_what_inference_cuts_from_the_picture() -> None:
    picture = photograph(400)
    box = (140, 140, 260, 260)
    wide = CropSpec(size=220, margin=0.6, box_scale=1.0, box_shift=(0.0, 0.0))
    narrow = CropSpec(size=90, margin=0.4, box_scale=1.0, box_shift=(0.0, 0.0))
    prepared = align_box(picture, box, wide)

    cut = Crop.canonical(220, 0.6, 0.4).cut(prepared, 90)

    direct = align_box(picture, box, narrow)
    assert np.abs(cut.astype(int) - direct.astype(int)).mean() < 1.5


def test_crop_with_more_margin_than_was_prepared_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"margin of 0\.3, the network needs 0\.4"):
        Crop.canonical(160, 0.3, 0.4)


def test_rotation_turns_the_content_clockwise() -> None:
    chip = np.zeros((100, 100, 3), np.uint8)
    chip[45:55, 70:90] = 255

    turned = Crop(50, 50, 100, angle=90).cut(chip, 100)

    assert turned[70:90, 45:55].mean() > 250
    assert turned[45:55, 70:90].mean() < 5


def test_no_augmentation_is_the_canonical_crop() -> None:
    plain = augmentation(AugmentationSettings(preset="none"), CANONICAL, 112)

    np.testing.assert_array_equal(plain(photograph(), 1), CANONICAL.cut(photograph(), 112))
    np.testing.assert_array_equal(plain(photograph(), 1), plain(photograph(), 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("preset", ["light", "standard", "strong"])
def test_same_seed_gives_the_same_face(preset: str, backend: str) -> None:
    settings = AugmentationSettings.model_validate({"preset": preset, "backend": backend})
    one, other = (augmentation(settings, CANONICAL, 64) for _ in range(2))
    chip = photograph()
    kept = chip.copy()

    faces = [one(chip, seed) for seed in range(20)]
    again = [other(chip, seed) for seed in reversed(range(20))][::-1]

    assert all(face.shape == (64, 64, 3) and face.dtype == np.uint8 for face in faces)
    for face, same in zip(faces, again, strict=True):
        np.testing.assert_array_equal(face, same)
    assert len({face.tobytes() for face in faces}) == 20
    np.testing.assert_array_equal(chip, kept)


def test_crop_stays_within_its_jitter() -> None:
    settings = AugmentationSettings(preset="none", scale=0.2, shift=0.1, rotation=10)
    rng = np.random.default_rng(0)

    crops = [CANONICAL.jittered(settings, rng) for _ in range(2000)]

    scales = np.log([crop.side / CANONICAL.side for crop in crops])
    shifts = np.array([(c.centre_x - 80, c.centre_y - 80) for c in crops]) / CANONICAL.side
    angles = np.array([crop.angle for crop in crops])
    for values, most in ((scales, 0.2), (shifts, 0.1), (angles, 10)):
        assert -most <= values.min() < -0.95 * most
        assert 0.95 * most < values.max() <= most
        assert abs(values.mean()) < 0.1 * most


def test_landmarks_that_are_off_move_turn_and_scale_the_crop_as_alignment_does() -> None:
    """The spread of a least-squares similarity by four points: theirs over their distances."""
    settings = AugmentationSettings(preset="none", landmarks=0.02)
    rng = np.random.default_rng(0)

    crops = [CANONICAL.jittered(settings, rng) for _ in range(4000)]

    eyes_and_mouth = np.delete(np.array(CropSpec(112, 0.4).landmarks), 2, axis=0)
    reach = np.sqrt(((eyes_and_mouth - eyes_and_mouth.mean(axis=0)) ** 2).sum())
    face = 160 / 2.2
    scales = np.log([crop.side / CANONICAL.side for crop in crops])
    angles = np.radians([crop.angle for crop in crops])
    shifts = np.array([(c.centre_x - 80, c.centre_y - 80) for c in crops]) / face
    for values, spread in ((scales, 0.02 / reach), (angles, 0.02 / reach), (shifts, 0.02 / 2)):
        assert values.std() == pytest.approx(spread, rel=0.05)
        assert abs(values.mean()) < 0.2 * spread


def test_crop_of_landmarks_that_are_off_is_what_alignment_by_them_cuts() -> None:
    picture, seed = photograph(400), 5
    spec, prepared = CropSpec(90, 0.4), CropSpec(220, 0.6)
    true = 140 + 120 * np.array(spec.landmarks)
    chip = align(picture, true, prepared)
    settings = AugmentationSettings(preset="none", landmarks=0.05)

    cut = augmentation(settings, Crop.canonical(220, 0.6, 0.4), 90, spec.fill)(chip, seed)

    rng = np.random.default_rng(seed)
    rng.uniform(size=4)
    found = true.copy()
    found[[0, 1, 3, 4]] += 120 * rng.normal(0, 0.05, (4, 2))
    direct, plain = (align(picture, points, spec).astype(int) for points in (found, true))
    assert np.abs(cut - direct).mean() < 2 < np.abs(cut - plain).mean() / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_are_drawn_independently_of_each_other(backend: str) -> None:
    settings = AugmentationSettings.model_validate(
        {"preset": "none", "backend": backend, "flip": 0.5, "grey": 0.5}
    )
    change = pixel_augmentation(settings, 32)
    chip = photograph(32)
    chip[:, :16] //= 4

    pairs = []
    for seed in range(400):
        face = change(chip, np.random.default_rng(seed)).astype(int)
        flipped = face[:, :16].mean() > face[:, 16:].mean()
        grey = np.abs(face[..., 0] - face[..., 2]).max() == 0
        pairs.append((flipped, grey))

    flips, greys = np.array(pairs).T
    assert 0.4 < flips.mean() < 0.6
    assert 0.4 < greys.mean() < 0.6
    assert abs(np.corrcoef(flips, greys)[0, 1]) < 0.15


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "step", ["flip", "light", "blur", "low_resolution", "jpeg", "grey", "dropout"]
)
def test_each_step_alone_changes_the_face(step: str, backend: str) -> None:
    settings = AugmentationSettings.model_validate(
        {
            "preset": "none",
            "backend": backend,
            step: 1.0,
            "low_resolution_scale": (0.2, 0.4),
            "blur_sigma": (2, 3),
        }
    )
    change = pixel_augmentation(settings, 64)
    chip = photograph(64)

    changed = change(chip, np.random.default_rng(3))

    assert changed.shape == chip.shape
    assert changed.dtype == np.uint8
    assert (changed != chip).any()


def test_albumentations_opens_no_socket_when_it_is_loaded() -> None:
    program = """
import sys

from agelens.data.augmentation import AugmentationSettings, pixel_augmentation


def refuse(event, arguments):
    if event.startswith("socket."):
        raise SystemExit(f"a socket was opened: {event}")


sys.addaudithook(refuse)
pixel_augmentation(AugmentationSettings(preset="strong"), 32)
print("albumentations" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (done.stdout.strip(), done.returncode) == ("True", 0), done.stderr
