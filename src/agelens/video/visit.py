"""
One visit: when someone was where, and how old and of which gender they looked; never a picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, get_args

import numpy as np

from agelens.errors import ArgumentError
from agelens.evaluation.values import NINE_RANGES, Band
from agelens.results import AgeDistribution, GenderLabel

VISIT_BANDS: Final[tuple[Band, ...]] = (
    (0, 2),
    (3, 6),
    (7, 9),
    (10, 12),
    (13, 17),
    (18, 19),
    (20, 24),
    (25, 29),
    (30, 34),
    (35, 39),
    (40, 44),
    (45, 49),
    (50, 54),
    (55, 59),
    (60, 64),
    (65, 69),
    (70, 74),
    (75, 100),
)
"""Bands of age that a visit keeps probabilities of; those of FairFace and of most surveys are made
of whole ones."""
COUNTED_BANDS: Final = NINE_RANGES
"""Bands of age that visits are counted by: what the shipped confusion was measured on."""

Direction = Literal["in", "out"]

_SUM_TOLERANCE: Final = 1e-3
_LONGEST_NAME: Final = 200
_STARTS: Final = tuple([low for low, _ in VISIT_BANDS].index(low) for low, _ in COUNTED_BANDS)


@dataclass(frozen=True)
class ZoneStay:
    """Time spent in one zone."""

    zone: str
    seconds: float


@dataclass(frozen=True)
class LineCrossing:
    """One crossing of a line; ``at`` has a time zone."""

    line: str
    direction: Direction
    at: datetime


@dataclass(frozen=True)
class Visit:
    """One person's stay in view of one camera.

    Attributes:
        id: UUID of version 7, as text.
        site: Name of the place.
        camera: Name of the camera, one of its kind at the site.
        epoch: Which run of the source the track numbers and times belong to: a replay of the same
            source has the same.
        track: Number of the track within the epoch.
        first_pts: Presentation time of the track's first frame, in microseconds of the stream.
        start: When the visit began, with a time zone; kept in UTC, to the millisecond.
        end: When it ended.
        seconds: How long the person was in view, by the stream's own clock.
        attentive_seconds: How much of it the face was turned to the screen.
        stays: Time by zone; each zone once.
        crossings: Lines crossed, in order.
        age: Probabilities of ``VISIT_BANDS``, sum 1; None when abstained.
        female: P(female); None when abstained or switched off.
        gender: The label that the model's threshold gives; None like ``female``.
        frames: Frames that the estimate stands on.
        quality: Mean usability of these frames, 0..1.
        abstained: No frame allowed an estimate.
        model: "name@version".
        staff: The rules of the site hold the person for staff.
    """

    id: str
    site: str
    camera: str
    epoch: str
    track: int
    first_pts: int
    start: datetime
    end: datetime
    seconds: float
    attentive_seconds: float
    age: tuple[float, ...] | None
    female: float | None
    gender: GenderLabel | None
    frames: int
    quality: float
    model: str
    abstained: bool = False
    staff: bool = False
    stays: tuple[ZoneStay, ...] = ()
    crossings: tuple[LineCrossing, ...] = ()

    def __post_init__(self) -> None:
        for complaint in _complaints(self):
            raise ArgumentError(f"visit {self.id} of {self.camera}: {complaint}")
        # To the millisecond and in one order, so that what is read back equals what was stored.
        for name in ("start", "end"):
            object.__setattr__(self, name, whole_milliseconds(getattr(self, name)))
        for name in ("seconds", "attentive_seconds"):
            object.__setattr__(self, name, round(getattr(self, name), 3))
        stays = sorted((stay.zone, round(stay.seconds, 3)) for stay in self.stays)
        object.__setattr__(self, "stays", tuple(ZoneStay(*stay) for stay in stays))
        crossed = (replace(one, at=whole_milliseconds(one.at)) for one in self.crossings)
        object.__setattr__(self, "crossings", tuple(crossed))

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """What a replay of the same source repeats."""
        return self.site, self.camera, self.epoch, self.track, self.first_pts

    @property
    def band(self) -> int | None:
        """Place of the likeliest of ``COUNTED_BANDS``, of several the youngest; None without."""
        if self.age is None:
            return None
        return int(np.argmax(np.add.reduceat(self.age, _STARTS)))


def visit_ages(age: AgeDistribution) -> tuple[float, ...] | None:
    """Probabilities of ``VISIT_BANDS``; None when the distribution abstains."""
    if age.abstained:
        return None
    groups = age.group([low for low, _ in VISIT_BANDS])
    return tuple(round(group.probability, 6) for group in groups)


def whole_milliseconds(moment: datetime) -> datetime:
    """The moment in UTC, to the millisecond that the store keeps."""
    exact = moment.astimezone(UTC)
    return exact - timedelta(microseconds=exact.microsecond % 1000)


def _complaints(visit: Visit) -> Iterator[str]:
    for name, text in _names(visit):
        if not text or len(text) > _LONGEST_NAME or not text.isprintable():
            yield (
                f"{name} must be 1 to {_LONGEST_NAME} printable characters, "
                f"got {text[:40]!r} of {len(text)}"
            )
    if visit.start.tzinfo is None or visit.end.tzinfo is None:
        yield "start and end must have a time zone"
        return
    if visit.end < visit.start:
        yield f"it ends ({visit.end}) before it starts ({visit.start})"
    durations = [visit.seconds, visit.attentive_seconds, *(s.seconds for s in visit.stays)]
    if not all(math.isfinite(value) and value >= 0 for value in durations):
        yield f"durations must be finite and not negative, got {durations}"
    if len({stay.zone for stay in visit.stays}) < len(visit.stays):
        yield "a zone is named twice; add its stays up"
    yield from _crossing_complaints(visit.crossings)
    if visit.frames < 0 or not 0 <= visit.quality <= 1:
        yield f"frames must be 0 or more and quality 0..1, got {visit.frames}, {visit.quality}"
    yield from _estimate_complaints(visit)


def _names(visit: Visit) -> Iterator[tuple[str, str]]:
    for name in ("id", "site", "camera", "epoch", "model"):
        yield name, getattr(visit, name)
    for stay in visit.stays:
        yield "a zone", stay.zone
    for crossing in visit.crossings:
        yield "a line", crossing.line


def _crossing_complaints(crossings: Sequence[LineCrossing]) -> Iterator[str]:
    for crossing in crossings:
        if crossing.direction not in get_args(Direction):
            yield f"a crossing goes 'in' or 'out', got {crossing.direction!r}"
        if crossing.at.tzinfo is None:
            yield "the time of a crossing must have a time zone"


def _estimate_complaints(visit: Visit) -> Iterator[str]:
    if visit.abstained != (visit.age is None):
        yield "age must be None exactly when it abstained"
    if (visit.female is None) != (visit.gender is None):
        yield "female and gender must both be there or both be None"
    if visit.gender is not None and visit.gender not in get_args(GenderLabel):
        yield f"gender must be one of {', '.join(get_args(GenderLabel))}, got {visit.gender!r}"
    if visit.female is not None and not 0 <= visit.female <= 1:
        yield f"female must be within 0..1, got {visit.female}"
    if visit.age is None:
        return
    if len(visit.age) != len(VISIT_BANDS):
        yield f"age must have {len(VISIT_BANDS)} probabilities, got {len(visit.age)}"
    elif not all(math.isfinite(p) and p >= 0 for p in visit.age):
        yield "age probabilities must be finite and not negative"
    elif abs(sum(visit.age) - 1) > _SUM_TOLERANCE:
        yield f"age probabilities must sum to 1, got {sum(visit.age):.4f}"
