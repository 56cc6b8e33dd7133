"""
Labelled faces for the benchmarks: Parquet with ``image``, ``age_min``, ``age_max``, ``gender``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from agelens import Analyzer
from agelens.calibration import decode_age, decode_gender
from agelens.estimation import estimate_in_batches


@dataclass(frozen=True, eq=False)
class LabelledFaces:
    """Encoded pictures and their labels, row by row."""

    images: list[bytes]
    age_min: NDArray[np.int64]
    age_max: NDArray[np.int64]
    is_female: NDArray[np.bool_]
    race: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Rows whose age is known to the year."""
        return np.asarray(self.age_min == self.age_max)


def read_faces(path: Path) -> LabelledFaces:
    """Read a file of labelled faces."""
    table = pq.read_table(path).to_pydict()
    return LabelledFaces(
        table["image"],
        np.asarray(table["age_min"], np.int64),
        np.asarray(table["age_max"], np.int64),
        np.asarray(table["gender"]) == "female",
        np.asarray(table["race"]),
    )


def decoded_outputs(
    analyzer: Analyzer, faces: LabelledFaces
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Uncalibrated age probabilities (N, 101) and P(female) (N,) of each face, usable or not."""
    card = analyzer.bundle.card
    assert card.gender is not None
    chips = np.stack(list(_chips(analyzer, faces)))
    raw = estimate_in_batches(analyzer.estimator, chips, flip=analyzer.options.flip)
    assert raw.gender is not None
    return decode_age(raw.age, card.age), decode_gender(raw.gender, card.gender)


def _chips(analyzer: Analyzer, faces: LabelledFaces) -> Iterator[NDArray[np.uint8]]:
    for image in faces.images:
        (chip,) = analyzer.chips(image)
        yield chip
