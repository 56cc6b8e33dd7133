"""People in view, made up by their estimates, for what comes after the cameras."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from agelens.results import AgeDistribution, GenderEstimate
from agelens.video.camera import Moment, Person

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def person(
    age: float | AgeDistribution | None = 30.0,
    female: float | None = 0.5,
    *,
    track: int = 1,
    attentive: bool = True,
    staff: bool = False,
    zones: tuple[str, ...] = (),
    x: float = 0.4,
) -> Person:
    """Somebody; a number stands for a normal distribution of four years' spread around it."""
    if isinstance(age, int | float):
        age = AgeDistribution.from_normal(age, 4)
    gender = None if female is None else GenderEstimate(female, 0.8)
    return Person(track, (x, 0.2, x + 0.1, 0.4), 5.0, attentive, 2.0, age, gender, zones, staff)


def moment(
    people: Sequence[Person] = (),
    *,
    camera: str = "door",
    seconds: float = 0.0,
    latency_s: float = 0.05,
) -> Moment:
    """What a camera sees, so many seconds after noon."""
    at = NOON + timedelta(seconds=seconds)
    return Moment(camera, at, round(seconds * 1e6), tuple(people), latency_s)
