"""Visits of made-up people, the same for the same seed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from agelens.identifiers import new_identifier
from agelens.results import GenderLabel
from agelens.video.visit import VISIT_BANDS, LineCrossing, Visit, ZoneStay

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def visit(number: int, *, at: datetime = NOON, seed: int = 0, **changes: Any) -> Visit:
    """The visit of one person; numbers and seeds tell people apart."""
    rng = np.random.default_rng([seed, number])
    seconds = float(rng.integers(1_000, 300_000)) / 1000
    ages = np.round(rng.dirichlet(np.full(len(VISIT_BANDS), 0.2)), 6)
    ages[int(ages.argmax())] += 1 - ages.sum()
    female = float(np.round(rng.random(), 6))
    label: GenderLabel = "female" if female > 0.75 else "male" if female < 0.25 else "uncertain"
    fields: dict[str, Any] = {
        "id": new_identifier(at),
        "site": "museum",
        "camera": f"door-{1 + number % 2}",
        "epoch": "run-1",
        "track": number,
        "first_pts": number * 40_000,
        "start": at,
        "end": at + timedelta(seconds=seconds),
        "seconds": seconds,
        "attentive_seconds": round(seconds / 2, 3),
        "age": tuple(float(p) for p in ages),
        "female": female,
        "gender": label,
        "frames": int(rng.integers(1, 30)),
        "quality": float(np.round(rng.random(), 3)),
        "model": "agelens-s@1.0",
        "stays": (ZoneStay("entrance", 1.5), ZoneStay("screen", float(number % 7))),
        "crossings": (LineCrossing("gate", "in", at), LineCrossing("gate", "out", at)),
    }
    return Visit(**{**fields, **changes})


def crowd(
    count: int, *, start: datetime = NOON, every_s: float = 7.0, seed: int = 0
) -> list[Visit]:
    """So many visits, one every few seconds; some abstained, some staff."""
    found = []
    for number in range(count):
        changes: dict[str, Any] = {}
        if number % 11 == 10:
            changes = {"age": None, "female": None, "gender": None, "abstained": True, "frames": 0}
        if number % 13 == 12:
            changes["staff"] = True
        at = start + timedelta(seconds=every_s * number)
        found.append(visit(number, at=at, seed=seed, **changes))
    return found
