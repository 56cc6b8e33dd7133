"""
Visits as rows of the store's tables, and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from agelens.analytics.records import milliseconds, moment_of
from agelens.video.visit import COUNTED_BANDS, VISIT_BANDS, LineCrossing, Visit, ZoneStay

NO_BAND: Final = -1
"""``band`` of visits without an estimate."""
NO_GENDER: Final = ""
"""``gender`` of visits without one."""

_AGES: Final = len(VISIT_BANDS)
_NO_AGES: Final = (None,) * _AGES
_FIRST_AGE: Final = 13
_STARTS: Final = [[low for low, _ in VISIT_BANDS].index(low) for low, _ in COUNTED_BANDS]


@dataclass(frozen=True)
class VisitRows:
    """Rows of the tables visits, stays and crossings, with the columns in the tables' order."""

    visits: list[tuple[Any, ...]]
    stays: list[tuple[str, str, int]]
    crossings: list[tuple[str, int, str, str, int]]


def bands_of(visits: Sequence[Visit]) -> list[int]:
    """``Visit.band`` of each, ``NO_BAND`` for those without."""
    bands = [NO_BAND] * len(visits)
    held = [(place, visit.age) for place, visit in enumerate(visits) if visit.age is not None]
    if held:
        ages = np.array([age for _, age in held])
        found = np.add.reduceat(ages, _STARTS, axis=1).argmax(axis=1).tolist()
        for (place, _), band in zip(held, found, strict=True):
            bands[place] = band
    return bands


def rows_of(visits: Sequence[Visit], bands: Sequence[int]) -> VisitRows:
    """Rows of visits whose bands are known."""
    rows = VisitRows([], [], [])
    for visit, band in zip(visits, bands, strict=True):
        rows.visits.append(
            (
                visit.id,
                visit.site,
                visit.camera,
                visit.epoch,
                visit.track,
                visit.first_pts,
                milliseconds(visit.start),
                milliseconds(visit.end),
                round(1000 * visit.seconds),
                round(1000 * visit.attentive_seconds),
                band,
                visit.gender or NO_GENDER,
                visit.female,
                *(visit.age or _NO_AGES),
                visit.frames,
                visit.quality,
                visit.abstained,
                visit.model,
                visit.staff,
            )
        )
        for stay in visit.stays:
            rows.stays.append((visit.id, stay.zone, round(1000 * stay.seconds)))
        for number, one in enumerate(visit.crossings):
            rows.crossings.append((visit.id, number, one.line, one.direction, milliseconds(one.at)))
    return rows


def visit_of(
    row: Sequence[Any],
    stays: Mapping[str, Sequence[ZoneStay]],
    crossings: Mapping[str, Sequence[LineCrossing]],
) -> Visit:
    """The visit of a row of the table visits.

    Args:
        row: All columns, in order.
        stays: By the visit's id.
        crossings: By the visit's id.
    """
    frames, quality, abstained, model, staff = row[_FIRST_AGE + _AGES :]
    return Visit(
        id=row[0],
        site=row[1],
        camera=row[2],
        epoch=row[3],
        track=row[4],
        first_pts=row[5],
        start=moment_of(row[6]),
        end=moment_of(row[7]),
        seconds=row[8] / 1000,
        attentive_seconds=row[9] / 1000,
        gender=row[11] or None,
        female=row[12],
        age=None if abstained else tuple(row[_FIRST_AGE : _FIRST_AGE + _AGES]),
        frames=frames,
        quality=quality,
        abstained=bool(abstained),
        model=model,
        staff=bool(staff),
        stays=tuple(stays.get(row[0], ())),
        crossings=tuple(crossings.get(row[0], ())),
    )


def canonical(visit: Visit) -> str:
    """One line that is equal for equal visits, whatever database they come from."""
    stays = [(stay.zone, round(1000 * stay.seconds)) for stay in visit.stays]
    crossings = [(one.line, one.direction, milliseconds(one.at)) for one in visit.crossings]
    row = rows_of([visit], [NO_BAND if visit.band is None else visit.band]).visits[0]
    return repr((row, stays, crossings))
