"""
Labelled faces for the benchmarks: Parquet with ``image``, ``age_min``, ``age_max``, ``gender``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray


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
