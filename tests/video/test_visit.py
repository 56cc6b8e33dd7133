"""A visit is checked at birth."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from agelens import AgeDistribution
from agelens.analytics.confusion import check_bands, join_bands
from agelens.errors import ArgumentError
from agelens.video.visit import COUNTED_BANDS, VISIT_BANDS, LineCrossing, ZoneStay, visit_ages
from analytics.people import NOON, visit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"camera": ""}, "camera"),
        ({"site": "a\nb"}, "printable"),
        ({"start": datetime(2026, 1, 1)}, "time zone"),
        ({"end": NOON - timedelta(seconds=1)}, "before it starts"),
        ({"seconds": -1.0}, "not negative"),
        ({"seconds": float("nan")}, "finite"),
        ({"stays": (ZoneStay("a", 1), ZoneStay("a", 2))}, "named twice"),
        ({"crossings": (LineCrossing("a", "up", NOON),)}, "'in' or 'out'"),  # type: ignore[arg-type]
        ({"quality": 1.5}, "quality"),
        ({"age": (0.5, 0.5)}, "18 probabilities"),
        ({"age": (0.5,) * 18}, "sum to 1"),
        ({"age": None}, "abstained"),
        ({"female": None}, "both"),
        ({"female": 1.2}, "0..1"),
        ({"gender": "unknown"}, "gender must be"),
    ],
    ids=str,
)
def test_a_visit_that_cannot_have_been_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        visit(1, **changes)


def test_the_bands_of_a_visit_can_be_joined_to_those_it_is_counted_by() -> None:
    check_bands(VISIT_BANDS)
    age = AgeDistribution.from_normal(33, 9)

    ages = visit_ages(age)

    assert ages is not None
    joined = join_bands(np.array([ages]), VISIT_BANDS, COUNTED_BANDS)[0]
    expected = [g.probability for g in age.group([low for low, _ in COUNTED_BANDS])]
    assert joined == pytest.approx(expected, abs=1e-5)
    assert visit(1, age=ages).band == int(np.argmax(expected))
    assert visit_ages(AgeDistribution.unknown()) is None
