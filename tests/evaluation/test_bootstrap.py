"""The bootstrap: whole clusters, repeatable, and intervals that hold the truth at their rate."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the 'eval' extra")

from scipy.stats import binomtest

from agelens.errors import ArgumentError
from agelens.evaluation.bootstrap import (
    MIN_CLUSTERS,
    Estimate,
    percentiles,
    weighted_sums,
    weights,
    wilson,
)
from agelens.evaluation.metrics import measure
from evaluation.simulation import simulated


def test_a_draw_takes_as_many_faces_as_there_are() -> None:
    draws = weights(np.arange(37), 50, seed=1)

    assert draws.shape == (50, 37)
    assert (draws.sum(axis=1) == 37).all()


def test_faces_of_a_cluster_are_drawn_together() -> None:
    clusters = np.array([5, 5, 2, 9, 2, 5])

    draws = weights(clusters, 200, seed=1)

    assert (draws[:, 0] == draws[:, 1]).all()
    assert (draws[:, 0] == draws[:, 5]).all()
    assert (draws[:, 2] == draws[:, 4]).all()
    assert (draws[:, 0].astype(int) + draws[:, 2] + draws[:, 3] == 3).all()


def test_every_cluster_is_drawn_once_on_average() -> None:
    draws = weights(np.arange(20), 4000, seed=3)

    np.testing.assert_allclose(draws.mean(axis=0), 1, atol=0.07)
    np.testing.assert_allclose(draws.var(axis=0), 1 - 1 / 20, atol=0.1)


def test_a_seed_gives_the_same_draws_and_another_seed_others() -> None:
    clusters = np.arange(30)

    assert (weights(clusters, 10, seed=7) == weights(clusters, 10, seed=7)).all()
    assert (weights(clusters, 10, seed=7) != weights(clusters, 10, seed=8)).any()


def test_sums_are_those_of_the_faces_repeated() -> None:
    rng = np.random.default_rng(0)
    draws, values = weights(np.arange(40), 9, seed=2), rng.normal(size=(40, 3))
    expected = [np.repeat(values, draw, axis=0).sum(axis=0) for draw in draws]

    np.testing.assert_allclose(weighted_sums(draws, values), expected)


@pytest.mark.parametrize(("samples", "count"), [(0, 5), (-1, 5), (10, 0)])
def test_nothing_to_draw_is_refused(samples: int, count: int) -> None:
    with pytest.raises(ArgumentError):
        weights(np.arange(count), samples)


def test_intervals_contain_the_truth_at_their_rate() -> None:
    names = ("age_mae", "age_bias", "age_cs5", "age_crps", "over18_auc", "gender_accuracy")
    truth = measure(simulated(200_000, 999, intervals=False), names, samples=1)
    held = dict.fromkeys(names, 0)
    for repetition in range(200):
        faces = simulated(300, repetition, intervals=False)
        for name, found in measure(faces, names, samples=300, seed=repetition).items():
            held[name] += found.low <= truth[name].value <= found.high

    # 190 expected; 179 to 199 has a probability of 99.9 %.
    assert all(179 <= count <= 199 for count in held.values()), held


def test_copies_do_not_make_a_figure_surer() -> None:
    faces = simulated(250, 4)
    copied = faces.take(np.repeat(np.arange(250), 4))

    alone = measure(faces, ["age_mae"])["age_mae"]
    known = measure(copied, ["age_mae"])["age_mae"]
    unknown = measure(replace(copied, clusters=np.arange(1000)), ["age_mae"])["age_mae"]

    assert known.value == pytest.approx(alone.value)
    assert known.high - known.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert unknown.high - unknown.low == pytest.approx((alone.high - alone.low) / 2, rel=0.15)


def test_too_few_clusters_give_a_figure_without_an_interval() -> None:
    faces = simulated(40, 5)
    few = replace(faces, clusters=np.arange(40) % (MIN_CLUSTERS - 1))

    estimate = measure(few, ["age_mae"])["age_mae"]

    assert estimate.value == pytest.approx(np.abs(faces.mean_age - faces.age_min).mean())
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


@pytest.mark.parametrize(("right", "count"), [(20, 20), (0, 20), (7, 10), (500, 1000), (1, 1)])
def test_the_score_interval_is_that_of_scipy(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")

    assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_draws_without_a_value_are_left_out_unless_they_are_most() -> None:
    values = np.r_[np.linspace(0, 1, 101), np.full(50, np.nan)]

    assert percentiles(values) == pytest.approx((0.025, 0.975))
    assert all(math.isnan(end) for end in percentiles(np.r_[values, np.full(101, np.nan)]))


def test_an_estimate_survives_its_wire_form() -> None:
    whole, bare = Estimate(1.5, 1.25, 2.0, 30), Estimate(1.5, math.nan, math.nan, 3)

    assert Estimate.from_dict(whole.to_dict()) == whole
    assert bare.to_dict() == {"value": 1.5, "low": None, "high": None, "count": 3}
    assert math.isnan(Estimate.from_dict(bare.to_dict()).low)
