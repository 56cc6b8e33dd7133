"""
The prior that a network has learned, and what its answers are without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from numpy.typing import NDArray

from agelens.data.loading import Labels
from agelens.errors import ArgumentError
from agelens.results import AGE_COUNT
from agelens.training.checkpoint import build_network
from agelens.training.prior import adjusted, fairest_strength, held_prior, take_back_prior
from agelens.training.recipe import Recipe

Tiny = Callable[..., dict[str, Any]]
AGES = np.arange(AGE_COUNT)


def labels_of(low: NDArray[Any], high: NDArray[Any]) -> Labels:
    text = np.array([""] * len(low))
    return Labels(
        low=low.astype(np.int16),
        high=high.astype(np.int16),
        std=np.full(len(low), np.nan, np.float32),
        female=np.full(len(low), -1, np.int8),
        dataset=text,
        split=text,
        source_file=text,
        group=text,
    )


def bayesian_faces(
    strength: float, count: int = 4000, oldest: int = 79
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Answers of a network that sees an age within 8 years and weighs it with a prior.

    The prior is a normal around 30 with a spread of 20 years, to a power; the faces are of all
    ages alike, so that the prior does harm.
    """
    rng = np.random.default_rng(0)
    ages = rng.integers(10, oldest + 1, count)
    seen = ages + rng.normal(0, 8, count)
    likelihood = np.exp(-0.5 * ((AGES - seen[:, None]) / 8) ** 2)
    prior = np.exp(-0.5 * ((AGES - 30) / 20) ** 2) ** strength
    answers = likelihood * prior
    return answers / answers.sum(axis=1, keepdims=True), ages


def test_prior_is_the_smoothed_mean_of_the_answers() -> None:
    answers = np.zeros((4, AGE_COUNT))
    answers[:3, 30], answers[3, 60] = 1, 1

    prior = held_prior(answers)

    assert prior.sum() == pytest.approx(1)
    assert prior.argmax() == 30
    # Three quarters of the mass lie around 30; within two spreads of 4 years, 95 % of them.
    assert prior[22:39].sum() == pytest.approx(0.75 * 0.9661, abs=0.01)


def test_whole_prior_taken_back_leaves_the_likelihood() -> None:
    likelihood = np.random.default_rng(0).dirichlet(np.ones(AGE_COUNT), 5)
    prior = np.random.default_rng(1).dirichlet(np.full(AGE_COUNT, 9.0))
    answers = likelihood * prior
    answers /= answers.sum(axis=1, keepdims=True)

    np.testing.assert_allclose(adjusted(answers, prior, 1.0), likelihood, rtol=1e-9)
    np.testing.assert_allclose(adjusted(answers, prior, 0.0), answers, rtol=1e-9)


def test_fairest_strength_brings_the_old_back_up() -> None:
    answers, ages = bayesian_faces(strength=1.0)
    old = ages >= 60
    before = (answers @ AGES - ages)[old].mean()

    strength = fairest_strength(answers, labels_of(ages, ages))

    after = (adjusted(answers, held_prior(answers), strength) @ AGES - ages)[old].mean()
    assert strength > 0
    assert before < -4
    assert abs(after) < abs(before) / 2


def test_answers_without_a_prior_stay_nearly_as_they_are() -> None:
    answers, ages = bayesian_faces(strength=0.0)

    assert fairest_strength(answers, labels_of(ages, ages)) <= 0.2


def test_ranges_have_a_middle_too() -> None:
    answers, ages = bayesian_faces(strength=1.0)
    decade = ages // 10 * 10

    by_range = fairest_strength(answers, labels_of(decade, decade + 9))

    assert abs(by_range - fairest_strength(answers, labels_of(ages, ages))) <= 0.2


def test_open_range_counts_with_eight_years_over_its_start() -> None:
    answers, ages = bayesian_faces(strength=0.5, oldest=86)
    low = np.minimum(ages // 10 * 10, 70)
    old = low == 70
    # One year of width, so that no label is exact: those alone would count.
    told = labels_of(np.where(old, 78, low), np.where(old, 79, low + 9))

    found = fairest_strength(answers, labels_of(low, np.where(old, 100, low + 9)))

    assert found == fairest_strength(answers, told) > 0


def test_exact_ages_alone_count_where_there_are_some() -> None:
    answers, ages = bayesian_faces(strength=1.0)
    exact = fairest_strength(answers, labels_of(ages, ages))
    wrong = labels_of(np.r_[ages, np.full(4000, 20)], np.r_[ages, np.full(4000, 29)])

    assert fairest_strength(np.concatenate([answers, answers]), wrong) == exact


def test_wide_labels_alone_are_refused() -> None:
    answers, _ = bayesian_faces(strength=1.0, count=50)

    with pytest.raises(ArgumentError, match="there are 0 such faces"):
        fairest_strength(answers, labels_of(np.full(50, 18), np.full(50, 64)))


def test_network_gives_the_adjusted_answers_afterwards(tiny: Tiny) -> None:
    import torch

    network = build_network(Recipe.from_table(tiny())).eval()
    chips = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        before = network.probabilities(network(chips)).double().numpy()
    prior = held_prior(np.random.default_rng(0).dirichlet(np.ones(AGE_COUNT), 3))

    take_back_prior(network, prior, 0.6)

    with torch.inference_mode():
        after = network.probabilities(network(chips)).double().numpy()
    np.testing.assert_allclose(after, adjusted(before, prior, 0.6), rtol=1e-4)


def test_only_a_distribution_head_has_a_prior_to_take_back(tiny: Tiny) -> None:
    network = build_network(
        Recipe.from_table(tiny(heads={"ordinal": {"loss": "corn"}, "gender": {}}))
    )

    with pytest.raises(ArgumentError, match="comes from its ordinal head"):
        take_back_prior(network, np.full(AGE_COUNT, 1 / AGE_COUNT), 0.5)
