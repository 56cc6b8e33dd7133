"""Alarms come when a camera sees otherwise than before, and hardly ever when it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from agelens.analytics.drift import (
    MIN_DAYS,
    drift_alarms,
    expect,
    student_quantile,
    student_tail,
)
from agelens.analytics.store import Store, open_store
from agelens.errors import ArgumentError
from agelens.video.health import HealthSample
from analytics.people import visit

FIRST = datetime(2026, 3, 1, tzinfo=UTC)
Change = Callable[[HealthSample], HealthSample]


def days_of(camera: str, count: int, change: Change | None = None) -> list[HealthSample]:
    """Days that vary a little; the last one is changed."""
    rng = np.random.default_rng(sum(camera.encode()))
    found = []
    for day in range(count):
        faces = int(20_000 * rng.lognormal(0, 0.2))
        usable = round(faces * rng.normal(0.6, 0.02))
        sample = HealthSample(
            "museum",
            camera,
            FIRST + timedelta(days=day, hours=12),
            frames_in=90_000,
            detections=30_000,
            faces=faces,
            usable=usable,
            quality_sum=faces * rng.normal(0.5, 0.01),
            age_sum=35.0 * usable,
        )
        found.append(change(sample) if change is not None and day == count - 1 else sample)
    return found


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "visits.db"


def alarms(store: Store, days: int) -> list[tuple[str, str]]:
    """Camera and measure of the alarms of the last of so many days."""
    found = drift_alarms(store, now=FIRST + timedelta(days=days, hours=7))
    assert all(one.start == FIRST + timedelta(days=days - 1) for one in found)
    return [(one.camera, one.measure) for one in found]


@pytest.mark.parametrize(
    ("change", "measure"),
    [
        (lambda s: replace(s, usable=s.usable // 2), "usable"),
        (lambda s: replace(s, quality_sum=0.8 * s.quality_sum), "quality"),
        (lambda s: replace(s, faces=1000, usable=600, quality_sum=500.0), "faces"),
    ],
    ids=["blurred", "dim", "turned away"],
)
def test_a_changed_camera_raises_an_alarm_and_its_neighbour_none(
    files: Path, change: Change, measure: str
) -> None:
    with open_store(files) as store:
        store.add_health([*days_of("door", 20, change), *days_of("hall", 20)])

        found = drift_alarms(store, now=FIRST + timedelta(days=20))

        assert [(one.camera, one.measure) for one in found] == [("door", measure)]
        (alarm,) = found
        assert not alarm.low <= alarm.value <= alarm.high
        assert alarm.days == 19
        assert alarm.to_dict()["message"] == alarm.message


def test_ages_that_jump_raise_an_alarm(files: Path) -> None:
    young = (0.0,) * 5 + (1.0,) + (0.0,) * 12
    with open_store(files) as store:
        for day in range(12):
            changes: dict[str, Any] = {"age": young} if day == 11 else {}
            store.add(
                [
                    visit(1000 * day + n, camera="door", at=FIRST + timedelta(days=day), **changes)
                    for n in range(60)
                ]
            )

        assert alarms(store, 11) == []
        assert alarms(store, 12) == [("door", "ages")]


def test_too_few_days_or_faces_raise_none(files: Path) -> None:
    dim: Change = lambda s: replace(s, quality_sum=0.1 * s.quality_sum)  # noqa: E731
    few: Change = lambda s: replace(s, faces=50, usable=1, quality_sum=1.0)  # noqa: E731
    with open_store(files) as store:
        store.add_health(days_of("new", MIN_DAYS, dim))
        store.add_health(days_of("quiet", MIN_DAYS, few))
        assert alarms(store, MIN_DAYS) == []


def test_unchanged_days_lie_outside_as_often_as_is_said() -> None:
    rng = np.random.default_rng(3)
    draws, chance = 4000, 0.05
    outside = 0
    for _ in range(draws):
        values = rng.normal(0.5, 0.03, 15)
        expected = expect("quality", values[:-1].tolist(), chance)
        outside += not expected.low <= values[-1] <= expected.high

    # Binomial: four standard errors of 4,000 draws at 5 % are 1.4 %.
    assert abs(outside / draws - chance) < 0.014


@pytest.mark.parametrize("freedom", [1, 2, 6, 7, 20, 27])
@pytest.mark.parametrize("tail", [0.25, 0.025, 0.000125])
def test_students_quantiles_are_those_of_the_tables(freedom: int, tail: float) -> None:
    quantile = student_quantile(tail, freedom)

    assert quantile == pytest.approx(student.isf(tail, freedom), rel=1e-9)
    assert student_tail(quantile, freedom) == pytest.approx(tail, rel=1e-6)


@pytest.mark.parametrize("wrong", [{"false_alarms": 0.0}, {"days": 3}])
def test_settings_out_of_range_are_refused(files: Path, wrong: dict[str, float]) -> None:
    with open_store(files) as store, pytest.raises(ArgumentError, match="days 7 or more"):
        drift_alarms(store, now=FIRST, **wrong)  # type: ignore[arg-type]
