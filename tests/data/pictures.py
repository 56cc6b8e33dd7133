"""Pictures that tests make: smooth random ones, and the public-domain photographs of the repo."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FACES = Path(__file__).parent.parent / "faces"


def blob(seed: int, size: int = 96) -> NDArray[np.uint8]:
    """A smooth random picture; two seeds give two pictures that look nothing alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def encoded(pixels: NDArray[np.uint8], form: str = "JPEG", quality: int = 92) -> bytes:
    """The picture as bytes of a file."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form, quality=quality)
    return data.getvalue()


def save(path: Path, pixels: NDArray[np.uint8] | None = None, *, seed: int = 0) -> Path:
    """Write a JPEG, making its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(blob(seed) if pixels is None else pixels))
    return path
