"""
What a model says of faces whose age and gender are known: counts, in a file beside the model.

The file names the model, the SHA-256 of its weights and of its card, and the faces that it was
measured on. It holds for that model with that calibration alone, so both are checked before use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agelens.bundle import Bundle
from agelens.data.schema import KNOWN_DATASETS, LicenceClass, write_text
from agelens.errors import ArgumentError, DataError, ModelError
from agelens.evaluation.scored import DataFile, ScoredFaces
from agelens.evaluation.scoring import card_sha256, model_sha256
from agelens.evaluation.tables import read_result
from agelens.evaluation.values import NINE_RANGES, Band, band_of
from agelens.results import AGE_COUNT

SCHEMA: Final = "agelens.confusion/1"
LABELS: Final = ("male", "female", "uncertain")
"""Predicted labels, in the order of the counts; the true genders are the first two."""

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Confusion:
    """How often which answer was given to faces of which true cell.

    Attributes:
        model: "name@version".
        model_sha256: Over the weights, as ``evaluation.scoring.model_sha256``.
        card_sha256: Of the card, calibration included.
        bands: Bands of age, both ends included, without gaps from 0 to 100.
        counts: (B, 2, B, 3) test faces by true band, true gender (male, female), predicted band
            and predicted label (``LABELS``). Read-only.
        data: The files of faces.
        licence_class: What the terms of these data sets allow; None when they are not known.
        date: Day of the measurement, as 2025-01-31.
    """

    model: str
    model_sha256: str
    card_sha256: str
    bands: tuple[Band, ...]
    counts: Counts
    data: tuple[DataFile, ...]
    licence_class: LicenceClass | None = None
    date: str = ""

    def __post_init__(self) -> None:
        check_bands(self.bands)
        size = len(self.bands)
        counts = np.array(self.counts, np.int64)
        if counts.shape != (size, 2, size, len(LABELS)) or counts.min(initial=0) < 0:
            raise ArgumentError(
                f"confusion counts of {size} bands must be ({size}, 2, {size}, {len(LABELS)}) and "
                f"not negative, got the shape {counts.shape}"
            )
        counts.setflags(write=False)
        object.__setattr__(self, "counts", counts)

    @property
    def faces(self) -> Counts:
        """(B, 2) test faces of each true cell."""
        return np.asarray(self.counts.sum(axis=(2, 3)))

    def require_model(self, bundle: Bundle) -> None:
        """Refuse a model that this was not measured on.

        Raises:
            ModelError: The weights or the card are others.
        """
        card = bundle.card
        for what, mine, found in (
            ("weights", self.model_sha256, model_sha256(bundle)),
            ("card", self.card_sha256, card_sha256(card)),
        ):
            if mine != found:
                raise ModelError(
                    f"the confusion counts are of {self.model} with the {what} {mine[:12]}, and "
                    f"{card.identifier} has {found[:12]}; measure them again on this model"
                )

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "model_sha256": self.model_sha256,
            "card_sha256": self.card_sha256,
            "date": self.date,
            "data": [asdict(file) for file in self.data],
            "licence_class": self.licence_class,
            "bands": [list(band) for band in self.bands],
            "genders": list(LABELS[:2]),
            "labels": list(LABELS),
            "counts": self.counts.tolist(),
        }


def check_bands(bands: Sequence[Band]) -> None:
    """Refuse bands of age that overlap, leave a gap, or do not reach from 0 to 100.

    Raises:
        ArgumentError: They do.
    """
    starts = [0, *(high + 1 for _, high in bands)]
    if not bands or [low for low, _ in bands] != starts[:-1] or starts[-1] != AGE_COUNT:
        raise ArgumentError(
            f"bands of age must follow each other from 0 to {AGE_COUNT - 1} without a gap, got "
            f"{', '.join(f'{low}-{high}' for low, high in bands) or 'none'}"
        )


def join_bands(probabilities: Floats, fine: Sequence[Band], bands: Sequence[Band]) -> Floats:
    """Probabilities of wider bands from those of finer ones.

    Args:
        probabilities: (N, F) of the bands ``fine``.
        fine: Bands of age.
        bands: Wider ones, each made of whole fine ones.

    Returns:
        (N, B) float64.

    Raises:
        ArgumentError: A band begins inside a fine one.
    """
    return np.add.reduceat(np.asarray(probabilities, np.float64), band_starts(bands, fine), axis=1)


def band_starts(bands: Sequence[Band], fine: Sequence[Band]) -> list[int]:
    """Place among finer bands at which each band begins.

    Raises:
        ArgumentError: These are no bands of age, or one begins inside a fine one.
    """
    check_bands(bands)
    places = {low: place for place, (low, _) in enumerate(fine)}
    split = [low for low, _ in bands if low not in places]
    if split:
        raise ArgumentError(
            f"no band can begin at {split[0]} years: ages are told apart by "
            f"{', '.join(f'{low}-{high}' for low, high in fine)}"
        )
    return [places[low] for low, _ in bands]


def count_answers(ages: Floats, female: Floats, threshold: float) -> Counts:
    """How many answers fall on which band and label.

    Args:
        ages: (N, B) probabilities of the bands; the likeliest one counts, of several the youngest.
        female: (N,) P(female).
        threshold: Probability that a label needs; below it is "uncertain".

    Returns:
        (B, 3) int64, by band and ``LABELS``.
    """
    band, label = said_cells(ages, female, threshold)
    found = np.zeros((np.shape(ages)[1], len(LABELS)), np.int64)
    np.add.at(found, (band, label), 1)
    return found


def said_cells(
    ages: Floats, female: Floats, threshold: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(N,) numbers of the band and of the label that each answer counts for; see above."""
    likelier = np.maximum(female, 1 - female)
    unsure = (likelier < threshold) | (female == 0.5)
    label = np.where(unsure, LABELS.index("uncertain"), (female > 0.5).astype(np.intp))
    return np.argmax(ages, axis=1), label.astype(np.intp)


def true_cells(
    faces: ScoredFaces, bands: Sequence[Band] = NINE_RANGES
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """True band of each face, and whether the face can be counted at all.

    Counted are faces with an answer of both kinds whose labels say one gender and one band.

    Returns:
        (N,) place of the band, -1 where the label spans several; (N,) bool.
    """
    band = band_of(faces, bands)
    return band, faces.has_age & faces.has_gender & faces.answered & (band >= 0)


def measure_confusion(faces: ScoredFaces, bands: Sequence[Band] = NINE_RANGES) -> Confusion:
    """Count a model's answers by the labels of the faces.

    Args:
        faces: Labelled faces that the model was neither trained nor, at best, calibrated on.
        bands: Bands of age, from 0 to 100 without gaps.

    Raises:
        ArgumentError: The bands are no such bands.
        DataError: A band has no face: what the model says of it would be made up.
    """
    check_bands(bands)
    band, counted = true_cells(faces, bands)
    rows = np.flatnonzero(counted)
    ages = np.add.reduceat(faces.age[rows], [low for low, _ in bands], axis=1)
    said = said_cells(ages, faces.female[rows], faces.gender_threshold)
    size = len(bands)
    counts = np.zeros((size, 2, size, len(LABELS)), np.int64)
    np.add.at(counts, (band[rows], faces.female_label[rows], *said), 1)
    held = counts.sum(axis=(1, 2, 3)).tolist()
    empty = [band for band, faces_in_it in zip(bands, held, strict=True) if not faces_in_it]
    if empty:
        low, high = empty[0]
        raise DataError(
            f"no face of {low} to {high} years with a gender and an answer among the {len(faces)} "
            "faces; add some, or choose bands that the labels fit into"
        )
    made = faces.provenance
    return Confusion(
        model=made.model,
        model_sha256=made.model_sha256,
        card_sha256=made.card_sha256,
        bands=tuple((int(low), int(high)) for low, high in bands),
        counts=counts,
        data=made.data,
        licence_class=_licence_class(set(faces.dataset[rows].tolist())),
        date=datetime.now(UTC).date().isoformat(),
    )


def _licence_class(datasets: Iterable[Any]) -> LicenceClass | None:
    classes = {
        KNOWN_DATASETS[name].licence_class if name in KNOWN_DATASETS else None for name in datasets
    }
    if "research" in classes:
        return "research"
    return None if None in classes or not classes else "commercial"


# --- the file -------------------------------------------------------------------------------------

_SUFFIX: Final = ".confusion.json"
_COMMAND: Final = "python benchmarks/quantification.py DATA --write"


def confusion_path(bundle: Bundle) -> Path:
    """Where the counts of a model lie: beside its card."""
    return bundle.folder / f"{bundle.card.name}{_SUFFIX}"


def write_confusion(confusion: Confusion, path: Path) -> None:
    """Write the counts to a file that appears when it is complete, or not at all."""
    wire = confusion.to_dict()
    counts = wire.pop("counts")
    head = json.dumps(wire, indent=1)[:-2]
    bands = ",\n".join(
        "  [\n" + ",\n".join(f"   {json.dumps(gender)}" for gender in band) + "\n  ]"
        for band in counts
    )
    write_text(path, f'{head},\n "counts": [\n{bands}\n ]\n}}\n')


def read_confusion(path: Path, *, bundle: Bundle | None = None) -> Confusion:
    """Read what ``write_confusion`` wrote.

    Args:
        path: The file.
        bundle: The model in use, to check against.

    Raises:
        DataError: There is no such file, or it holds no counts.
        ModelError: They are of another model, or of another calibration of it.
    """
    wire = read_result(path, SCHEMA, _COMMAND)
    try:
        if wire["labels"] != list(LABELS) or wire["genders"] != list(LABELS[:2]):
            raise ValueError(f"labels {wire['labels']} and genders {wire['genders']}")
        found = Confusion(
            model=str(wire["model"]),
            model_sha256=str(wire["model_sha256"]),
            card_sha256=str(wire["card_sha256"]),
            bands=tuple((int(low), int(high)) for low, high in wire["bands"]),
            counts=_whole_numbers(wire["counts"]),
            data=tuple(DataFile(**file) for file in wire["data"]),
            licence_class=wire["licence_class"],
            date=str(wire["date"]),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path}: holds no confusion counts ({error})") from error
    if bundle is not None:
        try:
            found.require_model(bundle)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
    return found


def _whole_numbers(values: Any) -> Counts:
    found = np.array(values)
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"the counts must be whole numbers, found {found.dtype}")
    return found.astype(np.int64)
