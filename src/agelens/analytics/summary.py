"""
Who came: shares by age and gender as counted, and corrected for what the model confuses.

A model that rounds, or is unsure of children, shifts the shares of a whole week by the same few per
cent; more visitors do not help. What it confuses was measured on faces whose age and gender are
known (``confusion``), and is taken back here (``quantification``). The intervals hold both
uncertainties: few visitors, and few faces in the measurement.

What no correction can see: that the camera's pictures are worse than the test faces, or that its
people look different from them. Then the confusion is another one, and the interval too short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agelens.analytics.confusion import LABELS, Confusion, band_starts
from agelens.analytics.quantification import (
    CHAINS,
    GENDER_CELLS,
    Chains,
    Priors,
    worst_rhat,
)
from agelens.errors import ArgumentError
from agelens.evaluation.bootstrap import LEVEL, Estimate, wilson
from agelens.evaluation.evaluating import band_name
from agelens.evaluation.values import Band

MIN_TEST_FACES: Final = 20
"""A cell of age and gender that fewer test faces stand for is told apart by assumption mostly."""
_SETTLED: Final = 1.1
_LENGTH: Final = 150
_ROUNDS: Final = 3
_MALE, _FEMALE, _UNCERTAIN = range(len(LABELS))

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """One share of the visitors.

    Attributes:
        name: "13-17", "70+", "female", or "13-17 female".
        raw: As counted, with a Wilson interval from sampling alone; NaN when nothing was counted.
        corrected: Taken back by the confusion, with its interval from sampling and confusion.
        test_faces: Faces that the confusion of this group was measured on.
    """

    name: str
    raw: Estimate
    corrected: Estimate
    test_faces: int

    @property
    def is_well_measured(self) -> bool:
        """Enough test faces stand behind the correction."""
        return self.test_faces >= MIN_TEST_FACES

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "name": self.name,
            "raw": self.raw.to_dict(),
            "corrected": self.corrected.to_dict(),
            "test_faces": self.test_faces,
            "well_measured": self.is_well_measured,
        }


@dataclass(frozen=True)
class Demographics:
    """Shares of the visitors of a period.

    Attributes:
        visitors: Visitors with an estimate.
        unknown: Visitors without one; they are in no share.
        uncertain: Share of the visitors whose gender label is "uncertain"; in the raw shares of
            the genders they are left out.
        level: Of the intervals.
        age: By band of age; the shares sum to 1.
        gender: male, female; the shares sum to 1.
        joint: By band, then male, female.
        mixing: Split R-hat of the draws; under 1.1 the chains agree, over 1.5 trust no interval.
        confusion: Which model and which test faces, in words.
    """

    visitors: int
    unknown: int
    uncertain: float
    level: float
    age: tuple[Share, ...]
    gender: tuple[Share, ...]
    joint: tuple[Share, ...]
    mixing: float
    confusion: str

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "visitors": self.visitors,
            "unknown": self.unknown,
            "uncertain": None if self.visitors == 0 else self.uncertain,
            "level": self.level,
            "age": [share.to_dict() for share in self.age],
            "gender": [share.to_dict() for share in self.gender],
            "joint": [share.to_dict() for share in self.joint],
            "mixing": self.mixing,
            "confusion": self.confusion,
        }


def correct_shares(
    said: Counts,
    confusion: Confusion,
    *,
    unknown: int = 0,
    bands: Sequence[Band] | None = None,
    level: float = LEVEL,
    draws: Floats | None = None,
) -> Demographics:
    """Shares by age and gender, as counted and corrected.

    Args:
        said: (B, 3) visits by predicted band (those of the confusion) and label; see
            ``confusion.count_answers``.
        confusion: Of the model that made the estimates.
        unknown: Visits without an estimate, to be told beside.
        bands: Wider bands for the answer, each made of whole ones of the confusion; None takes
            those of the confusion.
        level: Of the intervals.
        draws: What ``draw_shares`` gave for the same counts, where several answers are wanted.

    Raises:
        ArgumentError: The counts do not fit the confusion, or the bands cannot be made of its own.
    """
    values = _checked(said, confusion, level)
    wide = confusion.bands if bands is None else tuple(bands)
    starts = band_starts(wide, confusion.bands)
    if draws is None:
        draws = draw_shares(values, confusion)
    joined = np.add.reduceat(draws, starts, axis=1)
    counted = np.add.reduceat(values, starts, axis=0)
    faces = np.add.reduceat(confusion.faces, starts, axis=0)
    names = [band_name(band) for band in wide]
    told = counted[:, :_UNCERTAIN]
    total = int(values.sum())
    return Demographics(
        visitors=total,
        unknown=unknown,
        uncertain=float(counted[:, _UNCERTAIN].sum() / total) if total else float("nan"),
        level=level,
        age=_shares(names, counted.sum(axis=1), joined.sum(axis=2), faces.sum(axis=1), level),
        gender=_shares(
            LABELS[:_UNCERTAIN], told.sum(axis=0), joined.sum(axis=1), faces.sum(axis=0), level
        ),
        joint=_shares(
            [f"{name} {label}" for name in names for label in LABELS[:_UNCERTAIN]],
            told.ravel(),
            joined.reshape(len(joined), -1),
            faces.ravel(),
            level,
        ),
        mixing=worst_rhat(draws),
        confusion=_in_words(confusion),
    )


def draw_shares(
    said: Counts, confusion: Confusion, *, priors: Priors | None = None, seed: int = 0
) -> Floats:
    """Draws of the true shares, from chains that are made longer until they agree.

    Args:
        said: As for ``correct_shares``.
        confusion: Of the model that made the estimates.
        priors: See ``quantification.Priors``.
        seed: The same seed gives the same draws.

    Returns:
        (S, B, 2) float64, by the bands of the confusion and male, female; each draw sums to 1.
        Read-only: the last answers are remembered.

    Raises:
        ArgumentError: The counts do not fit the confusion.
    """
    if np.shape(said) != confusion.counts.shape[2:]:
        raise ArgumentError(
            f"visits were counted in {np.shape(said)} cells (bands, labels), and the confusion "
            f"knows {confusion.counts.shape[2:]}"
        )
    bands, _, answers, labels = confusion.counts.shape
    return _drawn(
        confusion.counts.tobytes(),
        (bands, GENDER_CELLS, answers, labels),
        np.asarray(said, np.int64).tobytes(),
        priors or Priors(),
        seed,
    )


@lru_cache(maxsize=64)
def _drawn(
    counts: bytes, shape: tuple[int, int, int, int], said: bytes, priors: Priors, seed: int
) -> Floats:
    """The draws for one set of counts: pages ask for the same periods again and again."""
    chains = Chains(
        np.frombuffer(counts, np.int64).reshape(shape),
        np.frombuffer(said, np.int64).reshape(shape[2:]),
        priors=priors,
        seed=seed,
    )
    parts: list[Floats] = []
    for _ in range(_ROUNDS):
        parts.append(chains.draw(_LENGTH).reshape(CHAINS, _LENGTH, shape[0], GENDER_CELLS))
        draws = np.concatenate(parts, axis=1).reshape(-1, shape[0], GENDER_CELLS)
        if worst_rhat(draws) <= _SETTLED:
            break
    draws.setflags(write=False)
    return draws


def _checked(said: Counts, confusion: Confusion, level: float) -> Counts:
    values = np.asarray(said)
    wanted = (len(confusion.bands), len(LABELS))
    if values.shape != wanted or not np.issubdtype(values.dtype, np.integer):
        raise ArgumentError(
            f"visits must be counted as whole numbers in {wanted} cells (bands of age by "
            f"{', '.join(LABELS)}), got {values.dtype} of the shape {values.shape}"
        )
    if values.min(initial=0) < 0:
        raise ArgumentError(f"counts of visits must not be negative, got {values.min()}")
    if not 0 < level < 1:
        raise ArgumentError(f"level must be between 0 and 1, got {level}")
    return values.astype(np.int64)


def _shares(
    names: Sequence[str], counted: Counts, draws: Floats, faces: Counts, level: float
) -> tuple[Share, ...]:
    total = int(counted.sum())
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return tuple(
        Share(
            name=name,
            raw=_raw(int(counted[i]), total, level),
            corrected=Estimate(float(draws[:, i].mean()), float(low[i]), float(high[i]), total),
            test_faces=int(faces[i]),
        )
        for i, name in enumerate(names)
    )


def _raw(count: int, total: int, level: float) -> Estimate:
    if total == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    share = count / total
    return Estimate(share, *wilson(share, total, level), total)


def _in_words(confusion: Confusion) -> str:
    files = ", ".join(file.name for file in confusion.data)
    return f"{confusion.model} on {int(confusion.counts.sum()):,} faces of {files}"
