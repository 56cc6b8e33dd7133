"""How well a camera sees: sums that add up, and means that say when there is nothing to mean."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from agelens.errors import ArgumentError
from agelens.video.health import HealthSample

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def test_samples_add_up_and_their_means_are_those_of_all_faces() -> None:
    one = HealthSample(
        "s", "c", NOON, 100, 60, 40, faces=10, usable=5, quality_sum=4.0, age_sum=150.0, down_s=2
    )
    other = HealthSample(
        "s",
        "c",
        NOON,
        50,
        0,
        20,
        faces=30,
        usable=15,
        quality_sum=24.0,
        age_sum=750.0,
        reconnects=1,
    )

    both = one + other

    assert (both.frames_in, both.dropped, both.detections) == (150, 60, 60)
    assert (both.reconnects, both.down_s) == (1, 2)
    assert both.usable_share == 20 / 40
    assert both.quality == 28 / 40
    assert both.age == 900 / 20
    assert both.faces_a_frame == 40 / 60


def test_without_faces_there_are_no_means() -> None:
    empty = HealthSample("s", "c", NOON)

    means = (empty.usable_share, empty.quality, empty.age, empty.faces_a_frame)
    assert all(math.isnan(mean) for mean in means)


def test_a_minute_is_kept_as_its_beginning_in_utc() -> None:
    india = timezone(timedelta(hours=5, minutes=30))
    sample = HealthSample("s", "c", datetime(2026, 3, 10, 17, 30, 59, 999_999, tzinfo=india))

    assert sample.minute == NOON
    assert sample.minute.tzinfo is UTC


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"minute": datetime(2026, 3, 10)}, "time zone"),
        ({"camera": ""}, "camera"),
        ({"site": "a\nb"}, "site"),
        ({"faces": 1, "usable": 2}, "2 faces of 1"),
        ({"dropped": -1}, "dropped"),
        ({"quality_sum": math.nan}, "quality_sum"),
    ],
)
def test_impossible_sums_are_refused(changes: dict[str, object], words: str) -> None:
    fields: dict[str, object] = {"site": "s", "camera": "c", "minute": NOON, **changes}

    with pytest.raises(ArgumentError, match=words):
        HealthSample(**fields)  # type: ignore[arg-type]
