"""Which model is better: found where there is a difference, silent where there is none."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the 'eval' extra")

from agelens.errors import ArgumentError, DataError
from agelens.evaluation.comparison import NO_DIFFERENCE, NO_MERIT, Comparison, compare
from agelens.evaluation.metrics import METRICS
from agelens.evaluation.scored import DataFile, ScoredFaces
from evaluation.simulation import normal_masses, scored, simulated


@pytest.fixture(scope="module")
def good() -> ScoredFaces:
    return simulated(500, 1, model="good@1")


@pytest.fixture(scope="module")
def shifted() -> ScoredFaces:
    """The same faces with ages 3 years too high, and genders that are noise half of the time."""
    rng = np.random.default_rng(5)
    faces = simulated(500, 1, shift=3, model="shifted@1")
    noise = np.where(rng.uniform(size=500) < 0.5, rng.uniform(size=500), faces.female)
    return replace(faces, female=noise)


def test_a_better_model_is_called_better_and_the_other_one_worse(
    good: ScoredFaces, shifted: ScoredFaces
) -> None:
    forth, back = compare(good, shifted), compare(shifted, good)

    for name in ("age_mae", "age_rmse", "age_bias", "age_cs5", "age_crps", "age_nll", "gender_auc"):
        assert forth[name].verdict == "better", name
        assert back[name].verdict == "worse", name
        assert forth[name].p_value < 0.05
        assert forth[name].improvement.value == pytest.approx(-back[name].improvement.value)


def test_figures_are_those_of_each_model(good: ScoredFaces, shifted: ScoredFaces) -> None:
    found = compare(good, shifted, ["age_mae"])["age_mae"]
    one = np.abs(good.mean_age - good.age_min).mean()
    other = np.abs(shifted.mean_age - shifted.age_min).mean()

    assert found.one.value == pytest.approx(one)
    assert found.other.value == pytest.approx(other)
    assert found.difference.value == pytest.approx(one - other)
    assert found.improvement.value == pytest.approx(other - one)


def test_a_model_does_not_differ_from_itself(good: ScoredFaces) -> None:
    for name, found in compare(good, good, samples=100).items():
        assert found.verdict == (NO_DIFFERENCE if METRICS[name].alone else NO_MERIT), name
        assert found.difference.value == 0
        assert found.p_value == 1


def test_pairing_narrows_the_interval_of_the_difference(
    good: ScoredFaces, shifted: ScoredFaces
) -> None:
    found = compare(good, shifted, ["age_mae"])["age_mae"]
    alone = [estimate.high - estimate.low for estimate in (found.one, found.other)]

    assert found.difference.high - found.difference.low < 0.8 * math.hypot(*alone)


def test_models_that_are_equally_good_are_rarely_told_apart() -> None:
    names = ("age_mae", "gender_brier")
    told = dict.fromkeys(names, 0)
    for repetition in range(200):
        one, other = equal_pair(repetition)
        for name, found in compare(one, other, names, samples=200, seed=repetition).items():
            told[name] += found.verdict != NO_DIFFERENCE

    # 10 expected; 20 and more have a probability of 0.3 %.
    assert all(count < 20 for count in told.values()), told


def equal_pair(seed: int) -> tuple[ScoredFaces, ScoredFaces]:
    """Two models that see the same faces, each with errors of its own but the same spread."""
    rng = np.random.default_rng(seed)
    true = rng.integers(5, 80, 200)
    label = rng.integers(0, 2, 200)
    models = []
    for _ in range(2):
        centre = np.clip(true + rng.normal(0, 5, 200), 0, 100)
        logit = 2 * (2 * label - 1) + rng.normal(0, 2, 200)
        models.append(
            scored(
                normal_masses(centre, np.full(200, 5.0)),
                1 / (1 + np.exp(-logit)),
                true,
                true,
                label,
                intervals=False,
            )
        )
    return models[0], models[1]


def test_less_bias_is_better_on_either_side() -> None:
    low, high = simulated(400, 3, shift=-2), simulated(400, 3, shift=6)

    found = compare(low, high, ["age_bias"])["age_bias"]

    assert found.one.value < 0 < found.other.value
    assert found.verdict == "better"


def test_coverage_is_better_near_its_level_not_above_it() -> None:
    right, wide = simulated(800, 4), simulated(800, 4, narrow=3)

    found = compare(right, wide, ["coverage_50"])["coverage_50"]

    assert found.other.value > found.one.value
    assert found.verdict == "better"


def test_narrow_intervals_that_hold_less_are_no_merit() -> None:
    right, narrow = simulated(500, 6), simulated(500, 6, narrow=0.4)

    found = compare(narrow, right, ["interval_width_90", "coverage_90"])

    assert found["interval_width_90"].difference.high < 0
    assert found["interval_width_90"].verdict == NO_MERIT
    assert found["coverage_90"].verdict == "worse"


def test_faces_that_only_one_model_estimates_do_not_count(good: ScoredFaces) -> None:
    wrong = np.argsort(-np.abs(good.mean_age - good.age_min))[:100]
    age = good.age.copy()
    age[wrong] = np.nan
    picky = replace(good, age=age)

    found = compare(picky, good)

    assert found["age_mae"].one.count == found["age_mae"].other.count == 400
    assert found["age_mae"].difference.value == 0
    assert found["gender_accuracy"].one.count == 500


def test_a_model_without_gender_is_compared_on_ages_alone(good: ScoredFaces) -> None:
    ages_only = replace(good, female=np.full(500, np.nan))

    found = compare(ages_only, good, samples=50)

    assert "age_mae" in found
    assert not [name for name in found if METRICS[name].subject == "gender"]


def test_few_clusters_give_no_verdict(good: ScoredFaces, shifted: ScoredFaces) -> None:
    clusters = np.arange(500) % 4

    found = compare(
        replace(good, clusters=clusters), replace(shifted, clusters=clusters), ["age_mae"]
    )["age_mae"]

    assert found.verdict == NO_DIFFERENCE
    assert math.isnan(found.improvement.low)
    assert found.p_value == 1


def test_other_rows_labels_or_files_are_refused(good: ScoredFaces, shifted: ScoredFaces) -> None:
    with pytest.raises(DataError, match="500 faces and shifted@1 on 499"):
        compare(good, shifted.take(np.arange(499)))
    relabelled = shifted.age_min.copy()
    relabelled[7] += 1
    with pytest.raises(DataError, match="row 7: age_min"):
        compare(good, replace(shifted, age_min=relabelled))
    file = DataFile("faces.parquet", "3" * 64, 500)
    with pytest.raises(DataError, match="SHA-256"):
        compare(good, replace(shifted, provenance=replace(shifted.provenance, data=(file,))))


def test_an_unknown_metric_is_refused(good: ScoredFaces, shifted: ScoredFaces) -> None:
    with pytest.raises(ArgumentError, match="age_mea"):
        compare(good, shifted, ["age_mea"])


def test_a_comparison_survives_its_wire_form(good: ScoredFaces, shifted: ScoredFaces) -> None:
    found = compare(good, shifted, ["age_mae"], samples=50)["age_mae"]

    read = Comparison.from_dict(found.to_dict())

    assert read.to_dict() == found.to_dict()
    assert read.one == found.one
    assert read.verdict == found.verdict
