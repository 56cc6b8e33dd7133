"""
Labelled faces with a model's answers, as arrays: all that the rooms of evaluation know of a model.

    ScoredFaces
    ├── labels       age_min, age_max, female_label, clusters, audit columns
    ├── answers      decoded (before calibration) and calibrated ages, intervals, P(female)
    ├── conditions   detected, answered, quality measures
    └── provenance   which model, which data, which options: hashes, not paths
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError
from agelens.results import AGE_COUNT

LEVELS: Final = (0.5, 0.8, 0.9, 0.95)
"""Levels at which every evaluation looks at the intervals."""
UNKNOWN: Final = -1
"""Label of an age or a gender that is not known."""
QUALITY_MEASURES: Final = ("size_px", "sharpness", "exposure", "yaw", "pitch", "roll")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DataFile:
    """One file of labelled faces.

    Attributes:
        name: Its name, without a folder.
        sha256: Of its content.
        rows: Faces in it.
    """

    name: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Provenance:
    """What the answers came from.

    Attributes:
        model: "name@version".
        model_sha256: Over the SHA-256 of all weights files of the model, in the card's order.
        card_sha256: Of the card's fields, calibration included, in a canonical form.
        data: The files of faces.
        options: Options of the analyzer that can change an answer.
        milliseconds: CPU time a face by stage ("network" and "total"), one thread; empty when the
            answers were not timed.
        decoding_sha256: Of the card's fields that answers depend on before calibration.
    """

    model: str
    model_sha256: str
    card_sha256: str
    data: tuple[DataFile, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    decoding_sha256: str = ""


@dataclass(frozen=True, eq=False)
class ScoredFaces:
    """N labelled faces and one model's answers.

    Attributes:
        names: (N,) object: "FILE#ROW".
        dataset: (N,) object: name of the data set.
        age_min: (N,) int16 least age of the label in completed years, or -1.
        age_max: (N,) int16 greatest age of the label; equal to ``age_min`` when exact.
        female_label: (N,) int8: 1 female, 0 male, -1 not labelled.
        clusters: (N,) int64: faces of one subject or copies of one picture share a number; the
            bootstrap draws whole clusters.
        audit: Audit columns: (N,) object of text, or None where a face has no label.
        decoded_age: (N, 101) float64, before calibration; NaN rows where there is no face.
        decoded_female: (N,) float64 before calibration; NaN where the model does not say.
        age: (N, 101) float64 calibrated; NaN rows where there is no face.
        female: (N,) float64 calibrated P(female); NaN where the model does not say.
        interval_low: (N, len(LEVELS)) int16 lower ends of the central intervals.
        interval_high: (N, len(LEVELS)) int16 upper ends.
        gender_threshold: Probability that a gender label needs.
        detected: (N,) bool: the detector found the face; False where the whole picture was taken.
        answered: (N,) bool: the analyzer answers; False where it abstains for quality, or where the
            picture could not be read. All other rows have answers too, for the risk-coverage curve.
        quality: (N,) float32 arrays by the names of ``QUALITY_MEASURES``; NaN where not measured.
        provenance: What the answers came from.
        errors: By name, why the picture of a face could not be read.
    """

    names: NDArray[np.object_]
    dataset: NDArray[np.object_]
    age_min: NDArray[np.int16]
    age_max: NDArray[np.int16]
    female_label: NDArray[np.int8]
    clusters: NDArray[np.int64]
    audit: Mapping[str, NDArray[np.object_]]
    decoded_age: Floats
    decoded_female: Floats
    age: Floats
    female: Floats
    interval_low: NDArray[np.int16]
    interval_high: NDArray[np.int16]
    gender_threshold: float
    detected: NDArray[np.bool_]
    answered: NDArray[np.bool_]
    quality: Mapping[str, NDArray[np.float32]]
    provenance: Provenance
    errors: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.names)
        for name, shape in (
            ("age", (count, AGE_COUNT)),
            ("decoded_age", (count, AGE_COUNT)),
            ("female", (count,)),
            ("age_min", (count,)),
            ("age_max", (count,)),
            ("female_label", (count,)),
            ("clusters", (count,)),
            ("interval_low", (count, len(LEVELS))),
            ("interval_high", (count, len(LEVELS))),
        ):
            found = getattr(self, name).shape
            if found != shape:
                raise ArgumentError(f"{name} of {count} faces must be {shape}, got {found}")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def has_age(self) -> NDArray[np.bool_]:
        """(N,) faces with an age label and an estimate."""
        return np.asarray((self.age_min != UNKNOWN) & ~np.isnan(self.age[:, 0]))

    @cached_property
    def exact(self) -> NDArray[np.bool_]:
        """(N,) faces whose age is known to the year, with an estimate."""
        return np.asarray(self.has_age & (self.age_min == self.age_max))

    @cached_property
    def has_gender(self) -> NDArray[np.bool_]:
        """(N,) faces with a gender label and an estimate."""
        return np.asarray((self.female_label != UNKNOWN) & ~np.isnan(self.female))

    @cached_property
    def mean_age(self) -> Floats:
        """(N,) expected ages in years; NaN where there is no face."""
        return np.asarray(self.age @ np.arange(AGE_COUNT, dtype=np.float64))

    def take(self, rows: NDArray[Any]) -> Self:
        """The faces of these rows (a mask or row numbers)."""
        return replace(
            self,
            audit={name: column[rows] for name, column in self.audit.items()},
            quality={name: column[rows] for name, column in self.quality.items()},
            **{name: getattr(self, name)[rows] for name in ROWWISE},
        )


ROWWISE: Final = (
    "names",
    "dataset",
    "age_min",
    "age_max",
    "female_label",
    "clusters",
    "decoded_age",
    "decoded_female",
    "age",
    "female",
    "interval_low",
    "interval_high",
    "detected",
    "answered",
)
"""Arrays of ``ScoredFaces`` with a row a face, besides the audit columns and the qualities."""
