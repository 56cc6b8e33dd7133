"""
Augmentation: one prepared chip in, one network input out, the same for the same seed.

The crop (margin, place, rotation) is ours and uses the resampling of inference, ``alignment.warp``.
What happens to the pixels afterwards stands behind one seam, ``PixelAugmentation``, with two
implementations: Albumentations 2.0.8 (the faster one on a CPU, no longer maintained) and
torchvision's transforms v2.
"""

from __future__ import annotations

import io
import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from agelens.alignment import FACE_TEMPLATE, IN_FACE_PLANE, similarity_transform, warp
from agelens.errors import ArgumentError, MissingExtra

Chip = NDArray[np.uint8]
Share = tuple[float, float]

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "none": {},
    "light": {
        "scale": 0.08,
        "shift": 0.02,
        "flip": 0.5,
        "light": 0.3,
        "brightness": 0.1,
        "contrast": 0.1,
    },
    "standard": {
        "scale": 0.15,
        "shift": 0.05,
        "rotation": 8.0,
        "flip": 0.5,
        "light": 0.5,
        "brightness": 0.2,
        "contrast": 0.2,
        "blur": 0.1,
        "low_resolution": 0.15,
        "jpeg": 0.15,
        "grey": 0.05,
        "dropout": 0.15,
    },
    "strong": {
        "scale": 0.25,
        "shift": 0.08,
        "rotation": 15.0,
        "flip": 0.5,
        "light": 0.7,
        "brightness": 0.35,
        "contrast": 0.35,
        "blur": 0.2,
        "blur_sigma": (0.3, 2.0),
        "low_resolution": 0.3,
        "low_resolution_scale": (0.2, 0.8),
        "jpeg": 0.3,
        "jpeg_quality": (20, 85),
        "grey": 0.1,
        "dropout": 0.4,
        "dropout_side": (0.1, 0.35),
    },
}
"""What each preset sets; everything else keeps the defaults of ``AugmentationSettings``."""


class AugmentationSettings(BaseModel):
    """A preset, and whatever differs from it.

    Probabilities are named by what happens; its strength follows in the next attributes.

    Attributes:
        preset: One of ``PRESETS``; gives every value that is not set beside it.
        backend: Who changes the pixels.
        scale: The crop's side is multiplied by exp(u), u uniform within plus and minus this.
        shift: Largest offset of the crop's centre in each direction, in sides of the crop.
        rotation: Largest rotation either way, in degrees.
        landmarks: Standard deviation of an error of each landmark in each direction, in sides of
            the face square; the crop goes where an alignment by such landmarks would put it. A
            detector that looks at another scale finds them up to 0.05 elsewhere.
        flip: Probability of a horizontal flip.
        light: Probability of a change of brightness and contrast.
        brightness: Largest change of brightness as a share of white.
        contrast: Largest change of contrast as a share.
        blur: Probability of a Gaussian blur.
        blur_sigma: Its standard deviation in pixels of a 112 pixel input, from and to.
        low_resolution: Probability of shrinking and growing back.
        low_resolution_scale: Factor of shrinking, from and to.
        jpeg: Probability of a JPEG round trip.
        jpeg_quality: Its quality, from and to.
        grey: Probability of losing the colour.
        dropout: Probability of grey rectangles over the face.
        dropout_holes: Number of rectangles, from and to.
        dropout_side: Their sides as a share of the input's, from and to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["none", "light", "standard", "strong"] = "standard"
    backend: Literal["albumentations", "torchvision"] = "albumentations"
    scale: float = Field(default=0.0, ge=0, le=0.7)
    shift: float = Field(default=0.0, ge=0, le=0.5)
    rotation: float = Field(default=0.0, ge=0, le=180)
    landmarks: float = Field(default=0.0, ge=0, le=0.2)
    flip: float = Field(default=0.0, ge=0, le=1)
    light: float = Field(default=0.0, ge=0, le=1)
    brightness: float = Field(default=0.2, ge=0, le=1)
    contrast: float = Field(default=0.2, ge=0, le=1)
    blur: float = Field(default=0.0, ge=0, le=1)
    blur_sigma: tuple[float, float] = (0.3, 1.5)
    low_resolution: float = Field(default=0.0, ge=0, le=1)
    low_resolution_scale: tuple[float, float] = (0.3, 0.9)
    jpeg: float = Field(default=0.0, ge=0, le=1)
    jpeg_quality: tuple[int, int] = (30, 90)
    grey: float = Field(default=0.0, ge=0, le=1)
    dropout: float = Field(default=0.0, ge=0, le=1)
    dropout_holes: tuple[int, int] = (1, 2)
    dropout_side: tuple[float, float] = (0.1, 0.25)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        preset = PRESETS.get(values.get("preset", "standard"), {})
        own = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return {**preset, **own}

    @model_validator(mode="after")
    def _ranges_rise(self) -> AugmentationSettings:
        limits = {
            "blur_sigma": (0.0, 10.0),
            "low_resolution_scale": (0.01, 1.0),
            "jpeg_quality": (1, 100),
            "dropout_holes": (1, 20),
            "dropout_side": (0.01, 1.0),
        }
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(
                    f"{name}: expected two rising numbers within {least}..{most}, "
                    f"found [{low}, {high}]"
                )
        return self


@dataclass(frozen=True)
class Crop:
    """A square of a prepared chip.

    Attributes:
        centre_x: Pixels of the chip, its left edge being 0.
        centre_y: Pixels of the chip, its top edge being 0.
        side: Pixels of the chip.
        angle: Degrees by which the content is turned clockwise.
        margin: ``CropSpec.margin`` that the crop shows around the face square.
    """

    centre_x: float
    centre_y: float
    side: float
    angle: float = 0.0
    margin: float = 0.0

    @classmethod
    def canonical(cls, chip_size: int, chip_margin: float, margin: float) -> Crop:
        """The crop of a network whose margin is smaller than the prepared chip's.

        Args:
            chip_size: Side of the prepared chip in pixels.
            chip_margin: ``CropSpec.margin`` that it was prepared with.
            margin: ``CropSpec.margin`` of the network.

        Raises:
            ArgumentError: The network wants more margin than there is.
        """
        if margin > chip_margin + 1e-9:
            raise ArgumentError(
                f"the faces were prepared with a margin of {chip_margin}, the network needs "
                f"{margin}: prepare them again with a larger margin"
            )
        centre = chip_size / 2
        side = chip_size * (1 + 2 * margin) / (1 + 2 * chip_margin)
        return cls(centre, centre, side, margin=margin)

    def jittered(self, settings: AugmentationSettings, rng: np.random.Generator) -> Crop:
        """A crop near this one, as far as the settings allow."""
        scale, dx, dy, turn = rng.uniform(-1, 1, size=4)
        aligned = self._realigned(settings.landmarks, rng) if settings.landmarks else self
        return replace(
            aligned,
            centre_x=aligned.centre_x + dx * settings.shift * self.side,
            centre_y=aligned.centre_y + dy * settings.shift * self.side,
            side=aligned.side * math.exp(scale * settings.scale),
            angle=aligned.angle + turn * settings.rotation,
        )

    def _realigned(self, error: float, rng: np.random.Generator) -> Crop:
        """The crop of an alignment by landmarks that are this far off, in face squares."""
        places = np.array(FACE_TEMPLATE)[list(IN_FACE_PLANE)]
        matrix = similarity_transform(places + rng.normal(0, error, places.shape), places)
        turn = matrix[:, :2]
        middle = np.linalg.solve(turn, 0.5 - matrix[:, 2])
        face = self.side / (1 + 2 * self.margin)
        return replace(
            self,
            centre_x=self.centre_x + (middle[0] - 0.5) * face,
            centre_y=self.centre_y + (middle[1] - 0.5) * face,
            side=self.side / math.hypot(turn[0, 0], turn[1, 0]),
            angle=self.angle + math.degrees(math.atan2(turn[1, 0], turn[0, 0])),
        )

    def cut(self, chip: Chip, size: int, fill: int = 0) -> Chip:
        """Resample this square of a chip.

        Args:
            chip: (P, P, 3) uint8 RGB.
            size: Side of the result in pixels.
            fill: Grey level where the chip ends.

        Returns:
            (size, size, 3) uint8 RGB.
        """
        factor, angle = size / self.side, math.radians(self.angle)
        cos, sin = factor * math.cos(angle), factor * math.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]])
        offset = size / 2 - turn @ (self.centre_x, self.centre_y)
        return warp(chip, np.column_stack([turn, offset]), size, fill)


class Augmentation(Protocol):
    """From a prepared chip to a network input.

    The same chip and seed give the same result, in any process.
    """

    def __call__(self, chip: Chip, seed: int) -> Chip:
        """(P, P, 3) uint8 RGB to (S, S, 3) uint8 RGB."""
        ...


class PixelAugmentation(Protocol):
    """The seam to the image libraries: changes pixels, keeps the shape."""

    def __call__(self, chip: Chip, rng: np.random.Generator) -> Chip:
        """(S, S, 3) uint8 RGB to the same."""
        ...


class CanonicalCrop:
    """No augmentation: the crop that inference takes. Holds settings only."""

    def __init__(self, crop: Crop, size: int, fill: int = 0) -> None:
        self.crop, self.size, self.fill = crop, size, fill

    def __call__(self, chip: Chip, seed: int = 0) -> Chip:
        """Cut the canonical crop; the seed has no influence."""
        return self.crop.cut(chip, self.size, self.fill)


class RandomFace:
    """The augmentation of training: a crop near the canonical one, then its pixels."""

    def __init__(
        self, crop: Crop, size: int, settings: AugmentationSettings, fill: int = 0
    ) -> None:
        self.crop, self.size, self.fill = crop, size, fill
        self.settings = settings
        self._pixels = pixel_augmentation(settings, size, fill)

    def __call__(self, chip: Chip, seed: int) -> Chip:
        """Draw everything from the seed."""
        rng = np.random.default_rng(seed)
        cut = self.crop.jittered(self.settings, rng).cut(chip, self.size, self.fill)
        return self._pixels(cut, rng)


def augmentation(
    settings: AugmentationSettings | None, crop: Crop, size: int, fill: int = 0
) -> Augmentation:
    """Make the augmentation for one kind of prepared chip.

    Args:
        settings: None, or the preset ``none`` with nothing set, gives the canonical crop.
        crop: Canonical crop in the prepared chip.
        size: Side of the network's input in pixels.
        fill: Grey level where a chip ends.

    Raises:
        MissingExtra: The library behind ``settings.backend`` is not installed.
    """
    if settings is None or settings == AugmentationSettings(
        preset="none", backend=settings.backend
    ):
        return CanonicalCrop(crop, size, fill)
    return RandomFace(crop, size, settings, fill)


def pixel_augmentation(
    settings: AugmentationSettings, size: int, fill: int = 0
) -> PixelAugmentation:
    """Make the chosen library's implementation.

    Args:
        settings: Probabilities and strengths.
        size: Side of the chips in pixels; scales the blur.
        fill: Grey level of dropped rectangles.

    Raises:
        MissingExtra: The library is not installed.
    """
    if settings.backend == "torchvision":
        return _Torchvision(settings, size, fill)
    return _Albumentations(settings, size, fill)


class _Albumentations:
    def __init__(self, settings: AugmentationSettings, size: int, fill: int) -> None:
        # Without this its import asks the package index for a newer version.
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        try:
            import albumentations as A
            import cv2
        except ImportError as error:
            raise MissingExtra("train", "augmentation with Albumentations") from error
        s = settings
        shrink_and_grow = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}
        steps: list[tuple[float, Any]] = [
            (s.flip, A.HorizontalFlip(p=s.flip)),
            (
                s.light,
                A.RandomBrightnessContrast(
                    brightness_limit=s.brightness, contrast_limit=s.contrast, p=s.light
                ),
            ),
            (s.grey, A.ToGray(p=s.grey)),
            (
                s.blur,
                A.GaussianBlur(
                    blur_limit=0, sigma_limit=_scaled(s.blur_sigma, size / 112), p=s.blur
                ),
            ),
            (
                s.low_resolution,
                A.Downscale(
                    scale_range=s.low_resolution_scale,
                    interpolation_pair=shrink_and_grow,
                    p=s.low_resolution,
                ),
            ),
            (s.jpeg, A.ImageCompression(quality_range=s.jpeg_quality, p=s.jpeg)),
            (
                s.dropout,
                A.CoarseDropout(
                    num_holes_range=s.dropout_holes,
                    hole_height_range=s.dropout_side,
                    hole_width_range=s.dropout_side,
                    fill=fill,
                    p=s.dropout,
                ),
            ),
        ]
        self._compose = A.Compose([step for probability, step in steps if probability > 0])

    def __call__(self, chip: Chip, rng: np.random.Generator) -> Chip:
        # set_random_seed would give every step the same stream, and so tie the flips to the greys.
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        return np.ascontiguousarray(self._compose(image=chip)["image"])


class _Torchvision:
    def __init__(self, settings: AugmentationSettings, size: int, fill: int) -> None:
        try:
            import torch
            from torchvision.transforms import v2
        except ImportError as error:
            raise MissingExtra("train", "augmentation with torchvision") from error
        s = settings
        low, high = s.dropout_side
        steps: list[tuple[float, Any]] = [
            (s.flip, v2.RandomHorizontalFlip(s.flip)),
            (
                s.light,
                v2.RandomApply(
                    [v2.ColorJitter(brightness=s.brightness, contrast=s.contrast)], s.light
                ),
            ),
            (s.grey, v2.RandomGrayscale(s.grey)),
            (
                s.blur,
                v2.RandomApply(
                    [v2.GaussianBlur(_odd(size / 12), _scaled(s.blur_sigma, size / 112))], s.blur
                ),
            ),
            (
                s.low_resolution,
                v2.RandomApply(
                    [v2.Lambda(_ShrinkAndGrow(s.low_resolution_scale))], s.low_resolution
                ),
            ),
            (s.jpeg, v2.RandomApply([v2.Lambda(_JpegRoundTrip(s.jpeg_quality))], s.jpeg)),
            (
                s.dropout,
                v2.RandomErasing(
                    s.dropout, scale=(low * low, high * high), ratio=(0.5, 2.0), value=fill
                ),
            ),
        ]
        kept = [step for probability, step in steps if probability > 0]
        self._compose = v2.Compose(kept) if kept else None
        self._torch = torch

    def __call__(self, chip: Chip, rng: np.random.Generator) -> Chip:
        if self._compose is None:
            return chip
        torch = self._torch
        image = torch.from_numpy(np.ascontiguousarray(chip)).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            changed: Chip = self._compose(image).permute(1, 2, 0).contiguous().numpy()
        return changed


class _ShrinkAndGrow:
    def __init__(self, scale: Share) -> None:
        self.scale = scale

    def __call__(self, image: Any) -> Any:
        import torch
        from torchvision.transforms.v2 import functional

        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(()))
        height, width = image.shape[-2:]
        small = [max(1, round(height * factor)), max(1, round(width * factor))]
        shrunk = functional.resize(image, small, antialias=True)
        return functional.resize(shrunk, [height, width], antialias=True)


class _JpegRoundTrip:
    """By Pillow: torchvision is giving up its own encoder."""

    def __init__(self, quality: tuple[int, int]) -> None:
        self.quality = quality

    def __call__(self, image: Any) -> Any:
        import torch

        low, high = self.quality
        quality = int(torch.randint(low, high + 1, ()))
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=quality)
        with Image.open(stream) as decoded:
            return torch.from_numpy(np.array(decoded)).permute(2, 0, 1)


def _scaled(values: Share, factor: float) -> Share:
    return values[0] * factor, values[1] * factor


def _odd(value: float) -> int:
    return max(3, 2 * round(value / 2) + 1)


__all__ = [
    "PRESETS",
    "Augmentation",
    "AugmentationSettings",
    "CanonicalCrop",
    "Chip",
    "Crop",
    "PixelAugmentation",
    "RandomFace",
    "augmentation",
    "pixel_augmentation",
]
