"""One value a face: as its definition has it, by hand or in a loop."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the 'eval' extra")

from agelens.calibration import draw_ages
from agelens.errors import ArgumentError
from agelens.evaluation.scored import LEVELS, ScoredFaces
from agelens.evaluation.values import (
    AGE_BANDS,
    band_of,
    covered,
    crps,
    in_range,
    near_range,
    nine_range_steps,
    over_label,
    pit,
    range_distances,
)
from agelens.results import AgeDistribution
from evaluation.simulation import in_ranges, normal_masses, scored, simulated


@pytest.fixture(scope="module")
def faces() -> ScoredFaces:
    return simulated(800, 1)


def test_crps_is_that_of_two_draws(faces: ScoredFaces) -> None:
    ages = np.arange(101)
    apart = np.abs(ages[:, None] - ages)
    expected = [
        p @ np.abs(ages - int(true)) - p @ apart @ p / 2
        for p, true in zip(faces.age, faces.age_min, strict=True)
    ]

    np.testing.assert_allclose(crps(faces), expected, atol=1e-9)


def test_crps_of_a_certain_answer_is_its_absolute_error() -> None:
    certain = np.eye(101)[[30, 44]]
    faces = scored(
        certain, np.array([0.9, 0.1]), np.array([30, 40]), np.array([30, 40]), np.ones(2, int)
    )

    assert crps(faces).tolist() == pytest.approx([0, 4], abs=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_an_exact_age_is_held_when_the_result_s_own_interval_holds_it(
    faces: ScoredFaces, level: float
) -> None:
    intervals = [AgeDistribution(row.astype(np.float32)).interval(level) for row in faces.age]
    expected = [
        low <= true <= high
        for (low, high), true in zip(intervals, faces.age_min.tolist(), strict=True)
    ]

    assert covered(faces, level).tolist() == [float(inside) for inside in expected]


def test_a_range_is_held_as_often_as_ages_drawn_inside_it() -> None:
    faces = in_ranges(simulated(120, 5))
    low, high = faces.interval_low[:, 0], faces.interval_high[:, 0]
    draws = [draw_ages(faces.age, faces.age_min, faces.age_max, seed=seed) for seed in range(600)]
    expected = np.mean([(low <= drawn) & (drawn <= high) for drawn in draws], axis=0)

    np.testing.assert_allclose(covered(faces, 0.5), expected, atol=0.09)
    assert abs(covered(faces, 0.5).mean() - expected.mean()) < 0.005


def test_a_range_that_only_touches_the_interval_is_not_held() -> None:
    ages = normal_masses(np.array([35.0]), np.array([3.0]))
    faces = scored(ages, np.array([0.5]), np.array([20]), np.array([30]), np.array([1]))

    # The interval begins at 30, and most of what lies under 31 is at 30.
    assert faces.interval_low[0, 2] == 30
    inside = ages[0, 30] / ages[0, 20:31].sum()
    assert covered(faces, 0.9)[0] == pytest.approx(inside)


def test_the_transform_is_the_mean_of_a_random_one() -> None:
    faces = simulated(40, 7)
    rng = np.random.default_rng(0)
    upto = np.pad(faces.age.cumsum(axis=1), ((0, 0), (1, 0)))
    rows = np.arange(40)
    before, through = upto[rows, faces.age_min], upto[rows, faces.age_min + 1]
    random = before + rng.uniform(size=(20_000, 40)) * (through - before)
    levels = np.array([0.25, 0.5, 0.9])

    np.testing.assert_allclose(
        pit(faces, levels), (random[..., None] <= levels).mean(axis=0), atol=0.02
    )


def labelled(said: list[float], low: list[int], high: list[int]) -> ScoredFaces:
    """Certain estimates of these ages with these labels."""
    rows = np.zeros((len(said), 101))
    for row, age in enumerate(said):
        whole = int(age)
        rows[row, whole] = 1 - (age - whole)
        rows[row, min(whole + 1, 100)] += age - whole
    return scored(
        rows, np.full(len(said), 0.5), np.array(low), np.array(high), np.ones(len(said), int)
    )


def test_range_figures_by_hand() -> None:
    faces = labelled(
        [29.4, 29.6, 12.0, 75.0, 31.0, 8.0, 34.0],
        [20, 20, 30, 60, 30, 3, 33],
        [29, 29, 39, 69, 39, 9, 33],
    )

    assert in_range(faces).tolist() == pytest.approx([1, 0, 0, 0, 1, 1, np.nan], nan_ok=True)
    # The data set's ranges here are 3-9, 20-29, 30-39 and 60-69.
    assert near_range(faces).tolist() == pytest.approx([1, 1, 0, 0, 1, 1, np.nan], nan_ok=True)
    assert range_distances(faces).tolist() == pytest.approx([0.4, 0.6, 18, 6, 0, 0, 1], abs=2e-3)
    assert nine_range_steps(faces).tolist() == [0, 1, 2, 1, 0, 0, 0]


def test_ranges_that_overlap_have_no_neighbours() -> None:
    faces = labelled([25, 40], [20, 25], [29, 45])

    assert np.isnan(near_range(faces)).all()
    assert in_range(faces).tolist() == [1, 1]


def test_a_range_over_two_bands_is_in_none() -> None:
    faces = labelled([1, 1, 1, 1, 1], [0, 10, 30, 18, 116], [2, 19, 39, 18, 116])

    assert [AGE_BANDS[place] if place >= 0 else None for place in band_of(faces)] == [
        (0, 2),
        None,
        (25, 39),
        (18, 24),
        (70, 100),
    ]


def test_a_range_around_the_threshold_says_nothing_of_it() -> None:
    faces = labelled([30, 30, 30, 30], [10, 18, 3, 17], [19, 18, 9, 17])

    assert over_label(faces, 18).tolist() == pytest.approx([np.nan, 1, 0, 0], nan_ok=True)


def test_levels_without_intervals_are_refused(faces: ScoredFaces) -> None:
    with pytest.raises(ArgumentError, match=r"0\.7"):
        covered(faces, 0.7)
