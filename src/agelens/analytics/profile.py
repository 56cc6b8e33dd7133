"""
Age and gender of the visitors of a period: shares as counted, and corrected where that is possible.

All stands on counts in lots, so that shares tell no more than the counts beside them. What the lots
add to the uncertainty is in the intervals: the counts go into them as if there were fewer visitors,
by as much as the rounding adds to the variance of sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np

from agelens.analytics.confusion import LABELS, Confusion, confusion_path, read_confusion
from agelens.analytics.lots import Count, Whole
from agelens.analytics.period import Period
from agelens.analytics.presence import Place, Premises, stretches
from agelens.analytics.records import Scope
from agelens.analytics.summary import Demographics, Share, correct_shares
from agelens.bundle import find_model
from agelens.errors import DataError, ModelError
from agelens.evaluation.bootstrap import Estimate, wilson
from agelens.evaluation.evaluating import band_name
from agelens.video.visit import COUNTED_BANDS

Confusions = Callable[[str], Confusion | None]
"""From "name@version" to what that model confuses; None when it is not known."""

MIN_LOTS: Final = 10
"""Fewest lots that shares are told of."""
_GENDERS: Final = LABELS[:2]
_UNCERTAIN: Final = len(_GENDERS)
_CELLS: Final = len(COUNTED_BANDS) * len(LABELS)


@dataclass(frozen=True)
class GroupShare:
    """Share of the visitors in one group.

    Attributes:
        name: "13-17", "70+", "female", or "13-17 female".
        visitors: As counted.
        raw: As counted, with its interval from sampling and rounding; None where too few.
        corrected: Taken back by the model's confusion; None when that is not possible, and where
            too few were counted: nobody who may be shown would stand behind it.
        test_faces: Faces behind the correction.
    """

    name: str
    visitors: Count
    raw: Estimate | None
    corrected: Estimate | None
    test_faces: int = 0


@dataclass(frozen=True)
class Profile:
    """Age and gender of the visitors of the period.

    Attributes:
        visitors: Who has an estimate.
        unknown_share: Share of all visitors without one; they are in no group. None if unknown.
        uncertain_share: Share of those with an estimate whose gender is uncertain; they are in no
            raw share of gender. None if unknown.
        bands: Names of the bands of age.
        age: A share for each band.
        gender: male, female.
        joint: By band, then male, female; raw shares are of those whose gender is not uncertain.
        models: Which models made the estimates.
        confusion: What the correction stands on, in words; empty without one.
        reason: Why there is no correction, or no profile at all; empty otherwise.
    """

    visitors: Count
    unknown_share: float | None
    uncertain_share: float | None
    bands: tuple[str, ...]
    age: tuple[GroupShare, ...]
    gender: tuple[GroupShare, ...]
    joint: tuple[GroupShare, ...]
    models: tuple[str, ...]
    confusion: str
    reason: str

    @property
    def is_corrected(self) -> bool:
        """Corrected shares are there."""
        return bool(self.confusion)


def no_profile(reason: str, models: Sequence[str] = (), visitors: Count = None) -> Profile:
    """A profile that says why it is empty."""
    return Profile(visitors, None, None, (), (), (), (), tuple(models), "", reason)


def find_confusion(model: str) -> Confusion | None:
    """The confusion that lies beside a model, when both are here and belong together."""
    try:
        bundle = find_model(model.partition("@")[0])
        path = confusion_path(bundle)
        if bundle.card.identifier != model or not path.is_file():
            return None
        return read_confusion(path, bundle=bundle)
    except (DataError, ModelError):
        return None


@dataclass(frozen=True, eq=False)
class Answers:
    """Visitors by what the model said, in lots.

    Attributes:
        said: (B, 3) by ``COUNTED_BANDS`` and ``confusion.LABELS``.
        unknown: Visitors without an age or a gender.
        totals: Running totals that the visitors of ``said`` were counted in.
    """

    said: Whole
    unknown: int
    totals: int


def read_answers(found: Premises, first: date, last: date) -> Answers:
    """What the model said of the visitors of whole days of each site."""

    def read(scope: Scope) -> dict[Place, Whole]:
        return {
            place: np.append(counts.ravel(), unknown)
            for place, (counts, unknown) in found.store.answers_by_camera(scope).items()
        }

    cells = np.zeros(_CELLS + 1, np.int64)
    totals = 0
    for part in stretches(found, first, last, read, _kept_answers(found, first)):
        for cell, (low, high) in enumerate(zip(part.before, part.after, strict=True)):
            name = ("answer", *part.key, part.block.name, str(cell))
            lots = found.lots.between(int(low), int(high), *name)
            cells[cell] += lots
            totals += lots > 0 and cell < _CELLS
    return Answers(cells[:-1].reshape(-1, len(LABELS)), int(cells[-1]), totals)


def _kept_answers(found: Premises, first: date) -> dict[date, dict[Place, Whole]]:
    """What retention has kept, day by day; hidden cells count as 0."""
    rows: dict[date, dict[Place, Whole]] = {}
    if not found.is_deleted(first):
        return rows
    for site, camera, day, band, gender, visits in found.store.kept_days():
        if band is None or gender is None or not visits:
            continue
        told = band >= 0 and gender in LABELS
        cell = band * len(LABELS) + LABELS.index(gender) if told else _CELLS
        places = rows.setdefault(day, {})
        counts = places.setdefault((site, camera), np.zeros(_CELLS + 1, np.int64))
        counts[cell] += visits
    return rows


def read_profile(found: Premises, period: Period, confusions: Confusions) -> Profile:
    """Age and gender of the visitors of a period."""
    answers = read_answers(found, period.first, period.last)
    total = int(answers.said.sum())
    models = _models(found, period)
    if total < MIN_LOTS * found.lots.minimum:
        fewest = MIN_LOTS * found.lots.minimum
        return no_profile(
            f"Fewer than {fewest} visitors have an estimate of age and gender: too few for shares.",
            models, found.lots.shown(total),
        )  # fmt: skip
    thinning = 1 + answers.totals * found.lots.variance / total
    fewer = np.rint(answers.said / thinning).astype(np.int64)
    confusion, reason = _confusion_of(models, confusions)
    corrected = None if confusion is None else correct_shares(fewer, confusion)
    return _profile(answers, thinning, found, models, corrected, reason)


def _models(found: Premises, period: Period) -> tuple[str, ...]:
    names: set[str] = set()
    for clock, sites in found.groups():
        names.update(found.store.models(found.scope(clock, sites, period.first, period.last)))
    return tuple(sorted(names))


def _confusion_of(models: Sequence[str], confusions: Confusions) -> tuple[Confusion | None, str]:
    if not models:
        return None, "Which model made the estimates is not known, so they are shown as counted."
    if len(models) > 1:
        return None, (
            f"Several models made the estimates ({', '.join(models)}), and each errs in its own "
            "way: they are shown as counted. Choose a period with one of them for corrected shares."
        )
    confusion = confusions(models[0])
    if confusion is None:
        return None, (
            f"What {models[0]} confuses was not measured, so the estimates are shown as counted."
        )
    if confusion.bands != COUNTED_BANDS:
        return None, (
            f"What {models[0]} confuses was measured by other bands of age than visits are "
            "counted by, so the estimates are shown as counted."
        )
    return confusion, ""


def _profile(
    answers: Answers,
    thinning: float,
    found: Premises,
    models: tuple[str, ...],
    corrected: Demographics | None,
    reason: str,
) -> Profile:
    said = answers.said
    told = said[:, :_UNCERTAIN]
    total, unknown = int(said.sum()), answers.unknown
    names = tuple(band_name(band) for band in COUNTED_BANDS)

    def shares(labels: Sequence[str], counts: Whole, by: Sequence[Share]) -> tuple[GroupShare, ...]:
        whole = int(counts.sum())
        groups = []
        for place, (label, count) in enumerate(zip(labels, counts.ravel(), strict=True)):
            visitors = found.lots.shown(int(count))
            groups.append(
                GroupShare(
                    label,
                    visitors,
                    _raw(int(count), whole, thinning, found.lots.minimum),
                    by[place].corrected if by and visitors is not None else None,
                    by[place].test_faces if by else 0,
                )
            )
        return tuple(groups)

    return Profile(
        visitors=found.lots.shown(total),
        unknown_share=unknown / (total + unknown),
        uncertain_share=int(said[:, _UNCERTAIN].sum()) / total,
        bands=names,
        age=shares(names, said.sum(axis=1), corrected.age if corrected else ()),
        gender=shares(_GENDERS, told.sum(axis=0), corrected.gender if corrected else ()),
        joint=shares(
            [f"{name} {gender}" for name in names for gender in _GENDERS],
            told,
            corrected.joint if corrected else (),
        ),
        models=models,
        confusion=corrected.confusion if corrected else "",
        reason=reason,
    )


def _raw(count: int, whole: int, thinning: float, minimum: int) -> Estimate | None:
    if whole == 0 or (count == 0 and minimum > 1):
        return None
    share = count / whole
    low, high = wilson(share, max(1, round(whole / thinning)))
    return Estimate(share, low, high, whole)
