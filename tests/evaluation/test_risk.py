"""The error that is left when the least certain faces are left out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the 'eval' extra")

from agelens.evaluation.metrics import measure
from agelens.evaluation.risk import area_under_risk_coverage, risk_coverage
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.values import quality_order, spread
from evaluation.simulation import simulated


@pytest.fixture(scope="module")
def faces() -> ScoredFaces:
    return simulated(800, 1)


def value(faces: ScoredFaces, name: str) -> float:
    return measure(faces, [name], samples=2)[name].value


def test_the_area_is_that_of_a_loop(faces: ScoredFaces) -> None:
    errors = np.abs(faces.mean_age - faces.age_min)
    surest = np.argsort(spread(faces), kind="stable")
    risks = [errors[surest[: kept + 1]].mean() for kept in range(len(faces))]

    assert value(faces, "age_aurc") == pytest.approx(np.mean(risks))


def test_a_model_that_knows_where_it_is_wrong_has_a_rising_curve(faces: ScoredFaces) -> None:
    curve = risk_coverage(faces, samples=200)

    assert curve is not None
    assert curve.error[-1] == pytest.approx(value(faces, "age_mae"))
    assert curve.error[4] < 0.6 * curve.error[-1]
    assert (curve.low <= curve.error).all()
    assert (curve.error <= curve.high).all()
    assert curve.share[-1] == 1


def test_an_order_that_says_nothing_leaves_the_error_as_it_is() -> None:
    rng = np.random.default_rng(0)
    errors, order = rng.exponential(size=4000), rng.uniform(size=4000)
    once = np.ones((1, 4000), np.uint8)

    assert area_under_risk_coverage(once, errors, order)[0] == pytest.approx(1, abs=0.1)
    # The integral of the mean of the smallest shares of an exponential distribution.
    best = 2 - math.pi**2 / 6
    assert area_under_risk_coverage(once, errors, -errors)[0] == pytest.approx(best, abs=0.02)


def test_better_pictures_come_first_in_the_order_of_quality(faces: ScoredFaces) -> None:
    few = faces.take(np.arange(4))
    unknown = np.full(4, np.nan, np.float32)
    quality = {
        "size_px": np.array([200, 100, 50, 20], np.float32),
        "sharpness": np.array([1.0, 0.9, 0.5, 0.2], np.float32),
        "exposure": np.array([0.5, 0.4, 0.9, 0.05], np.float32),
        "yaw": np.array([0, -10, 20, -50], np.float32),
        "pitch": unknown,
        "roll": unknown,
    }

    order = quality_order(replace(few, quality=quality))

    assert np.argsort(-order).tolist() == [0, 1, 2, 3]


def test_a_gender_curve_needs_labels(faces: ScoredFaces) -> None:
    unlabelled = replace(faces, female_label=np.full_like(faces.female_label, -1))

    assert risk_coverage(unlabelled, "gender", "confidence", samples=5) is None
