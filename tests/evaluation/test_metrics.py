"""Figures agree with scikit-learn or with a loop that follows the definition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the 'eval' extra")
pytest.importorskip("scipy", reason="needs the 'eval' extra")

from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from agelens.calibration import censored_nll
from agelens.errors import ArgumentError, DataError
from agelens.evaluation.bootstrap import weights
from agelens.evaluation.metrics import (
    METRICS,
    by_age_band,
    by_group,
    find_metric,
    measure,
    over,
    weighted_auc,
    weighted_median,
)
from agelens.evaluation.scored import LEVELS, ScoredFaces
from agelens.evaluation.values import (
    AGE_BANDS,
    pit,
)
from evaluation.simulation import in_ranges, normal_masses, scored, simulated


@pytest.fixture(scope="module")
def faces() -> ScoredFaces:
    return simulated(800, 1)


@pytest.fixture(scope="module")
def mixed() -> ScoredFaces:
    """Exact ages, ranges, and faces without an age, a gender or an answer, in clusters."""
    exact, ranged = simulated(150, 2), in_ranges(simulated(150, 3))
    rng = np.random.default_rng(4)
    both = scored(
        np.concatenate([exact.age, ranged.age]),
        np.r_[exact.female, ranged.female].round(2),
        np.where(rng.uniform(size=300) < 0.1, -1, np.r_[exact.age_min, ranged.age_min]),
        np.r_[exact.age_max, ranged.age_max],
        np.where(rng.uniform(size=300) < 0.1, -1, np.r_[exact.female_label, ranged.female_label]),
    )
    silent = rng.uniform(size=300) < 0.05
    return replace(
        both,
        age_max=np.where(both.age_min == -1, -1, both.age_max).astype(np.int16),
        age=np.where(silent[:, None], np.nan, both.age),
        female=np.where(silent, np.nan, both.female),
        detected=~silent,
        answered=rng.uniform(size=300) < 0.8,
        clusters=np.arange(300) // 2,
    )


def value(faces: ScoredFaces, name: str) -> float:
    return measure(faces, [name], samples=2)[name].value


# --- against scikit-learn -------------------------------------------------------------------------


def test_age_errors_are_those_of_scikit_learn(faces: ScoredFaces) -> None:
    true, said = faces.age_min, faces.age @ np.arange(101)

    assert value(faces, "age_mae") == pytest.approx(sk.mean_absolute_error(true, said))
    assert value(faces, "age_median_error") == pytest.approx(sk.median_absolute_error(true, said))
    assert value(faces, "age_rmse") == pytest.approx(sk.root_mean_squared_error(true, said))


def test_bias_and_shares_within_years_are_those_of_a_loop(faces: ScoredFaces) -> None:
    said = [sum(age * float(p) for age, p in enumerate(row)) for row in faces.age]
    errors = [mean - int(true) for mean, true in zip(said, faces.age_min, strict=True)]

    assert value(faces, "age_bias") == pytest.approx(sum(errors) / len(errors))
    for years in (3, 5, 10):
        within = sum(abs(error) <= years for error in errors)
        assert value(faces, f"age_cs{years}") == pytest.approx(within / len(errors))


def test_gender_figures_are_those_of_scikit_learn(faces: ScoredFaces) -> None:
    label, female = faces.female_label, faces.female
    unbalanced = faces.take((label == 1) | (np.arange(len(faces)) % 3 == 0))
    wanted, said = unbalanced.female_label, unbalanced.female > 0.5

    assert value(faces, "gender_accuracy") == pytest.approx(sk.accuracy_score(label, female > 0.5))
    assert value(unbalanced, "gender_balanced_accuracy") == pytest.approx(
        sk.balanced_accuracy_score(wanted, said)
    )
    assert value(faces, "gender_auc") == pytest.approx(sk.roc_auc_score(label, female))
    assert value(faces, "gender_brier") == pytest.approx(sk.brier_score_loss(label, female))


@pytest.mark.parametrize("age", [18, 21, 40])
def test_thresholds_are_those_of_scikit_learn(faces: ScoredFaces, age: int) -> None:
    label, probability = faces.age_min >= age, faces.age[:, age:].sum(axis=1)

    assert value(faces, f"over{age}_auc") == pytest.approx(sk.roc_auc_score(label, probability))
    assert value(faces, f"over{age}_brier") == pytest.approx(
        sk.brier_score_loss(label, np.clip(probability, 0, 1))
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=2))
def test_a_weighted_auc_is_that_of_scikit_learn_with_ties(
    rows: list[tuple[int, bool, int]],
) -> None:
    score, label, weight = (np.array(column) for column in zip(*rows, strict=True))
    held = set(label[weight > 0].tolist())

    found = weighted_auc(weight[None, :], score.astype(float), label.astype(float))[0]

    if held == {True, False}:
        assert found == pytest.approx(sk.roc_auc_score(label, score, sample_weight=weight))
    else:
        assert math.isnan(found)


@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(0, 3)), min_size=1))
def test_a_weighted_median_is_that_of_the_values_repeated(rows: list[tuple[float, int]]) -> None:
    values, weight = (np.array(column) for column in zip(*rows, strict=True))
    repeated = np.repeat(values, weight)

    found = weighted_median(weight[None, :], values)[0]

    if len(repeated):
        assert found == pytest.approx(np.median(repeated))
    else:
        assert math.isnan(found)


# --- against the truth ----------------------------------------------------------------------------


def test_nll_is_that_of_calibration_and_of_a_loop(mixed: ScoredFaces) -> None:
    rows = mixed.take(mixed.has_age)
    by_hand = [
        -math.log(sum(row[int(low) : int(high) + 1]))
        for row, low, high in zip(rows.age, rows.age_min, rows.age_max, strict=True)
    ]

    assert value(mixed, "age_nll") == pytest.approx(np.mean(by_hand))
    assert value(mixed, "age_nll") == pytest.approx(
        censored_nll(rows.age, rows.age_min, rows.age_max)
    )


def test_intervals_of_a_true_model_hold_at_their_level() -> None:
    faces = simulated(6000, 11)

    for level in LEVELS:
        share = value(faces, f"coverage_{round(100 * level)}")
        # Whole ages make an interval a little too wide, never too narrow.
        assert level - 0.015 <= share <= level + 0.12


def test_the_transform_of_a_true_model_is_even_and_of_a_shifted_one_is_not() -> None:
    levels = np.arange(0.05, 0.96, 0.05)
    true, shifted = simulated(5000, 6), simulated(5000, 6, shift=5)

    np.testing.assert_allclose(pit(true).mean(axis=0), levels, atol=0.02)
    assert value(true, "age_calibration_error") < 0.01
    assert value(in_ranges(true), "age_calibration_error") < 0.01
    assert value(shifted, "age_calibration_error") > 0.2
    assert value(simulated(5000, 6, narrow=0.5), "age_calibration_error") > 0.08


# --- draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*METRICS, "over30_auc", "over30_brier"])
def test_a_figure_in_a_draw_is_that_of_the_faces_repeated(name: str, mixed: ScoredFaces) -> None:
    metric = find_metric(name)
    draws = weights(mixed.clusters, 4, seed=8)
    once = np.ones((1, int(draws[0].sum())), np.uint8)

    found = metric.estimate(mixed, draws)

    for draw, figure in zip(draws, found, strict=True):
        repeated = mixed.take(np.repeat(np.arange(len(mixed)), draw))
        # A face drawn twice is one step of the risk-coverage curve, not two.
        tolerance = 0.02 if name == "age_aurc" else 1e-9
        assert figure == pytest.approx(metric.estimate(repeated, once)[0], rel=tolerance)


def test_figures_of_all_metrics_lie_inside_their_intervals(mixed: ScoredFaces) -> None:
    figures = measure(mixed, samples=300)

    assert set(figures) == set(METRICS)
    for name, estimate in figures.items():
        if name != "age_calibration_error":  # a distance: resampling only adds to it
            assert estimate.low <= estimate.value <= estimate.high, name
        assert estimate.low < estimate.high, name


def test_a_share_of_all_faces_is_not_certain() -> None:
    faces = simulated(40, 9)
    right = replace(faces, female=faces.female_label.astype(np.float64))

    estimate = measure(right, ["gender_accuracy"])["gender_accuracy"]

    assert estimate.value == 1
    assert estimate.high == 1
    assert estimate.low == pytest.approx(0.912, abs=0.001)


def test_abstaining_does_not_make_a_model_look_better(faces: ScoredFaces) -> None:
    wrong = np.abs(faces.mean_age - faces.age_min) > 5
    shy = replace(faces, answered=~wrong)

    assert value(shy, "age_mae") == value(faces, "age_mae")
    assert value(shy, "answered_rate") == pytest.approx(1 - wrong.mean())


# --- groups ---------------------------------------------------------------------------------------


def test_the_macro_error_is_the_mean_over_bands(faces: ScoredFaces) -> None:
    bands = [
        np.abs(faces.mean_age - faces.age_min)[(faces.age_min >= low) & (faces.age_min <= high)]
        for low, high in AGE_BANDS
    ]

    assert value(faces, "age_mae_macro") == pytest.approx(
        np.mean([band.mean() for band in bands if len(band)])
    )


def test_bands_have_the_figures_of_their_faces(faces: ScoredFaces) -> None:
    found = by_age_band(faces, ["age_mae", "age_bias"], samples=50)

    assert list(found) == list(AGE_BANDS)
    for (low, high), figures in found.items():
        rows = (faces.age_min >= low) & (faces.age_min <= high)
        assert figures["age_mae"].count == rows.sum()
        assert figures["age_bias"].value == pytest.approx(
            (faces.mean_age - faces.age_min)[rows].mean()
        )


def test_groups_leave_out_faces_without_one_and_keep_a_group_of_one(faces: ScoredFaces) -> None:
    groups = np.array(["a", "b", None, "c"], object)[np.r_[0, np.arange(799) % 3]]
    groups[5] = "c"

    found = by_group(faces, groups, ["age_mae"], samples=50)

    assert list(found) == ["a", "b", "c"]
    assert found["c"]["age_mae"].count == 1
    assert math.isnan(found["c"]["age_mae"].low)
    assert found["a"]["age_mae"].low < found["a"]["age_mae"].value


def test_uncertain_is_what_does_not_reach_the_threshold() -> None:
    female = np.array([0.9, 0.75, 0.74, 0.26, 0.25, 0.5])
    faces = scored(
        normal_masses(np.full(6, 30.0), np.full(6, 4.0)),
        female,
        np.full(6, 30),
        np.full(6, 30),
        np.array([1, 0, 1, 0, 0, 1]),
    )

    assert value(faces, "gender_labelled") == pytest.approx(3 / 6)
    assert value(faces, "gender_labelled_accuracy") == pytest.approx(2 / 3)


# --- what cannot be measured ----------------------------------------------------------------------


def test_metrics_without_a_label_are_left_out(faces: ScoredFaces) -> None:
    figures = measure(in_ranges(faces), samples=5)

    assert not {"age_mae", "age_crps", "age_bias"} & set(figures)
    assert {"range_exact", "age_nll", "coverage_90", "gender_auc"} <= set(figures)


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        pytest.param(
            {"age_min": -1, "age_max": -1}, "age_mae", "'age_min' and 'age_max'", id="no age"
        ),
        pytest.param({"female_label": -1}, "gender_auc", "'gender' is empty", id="no gender"),
        pytest.param({"female_label": 1}, "gender_auc", "holds 'female' only (800", id="one class"),
        pytest.param(
            {"female_label": 0}, "gender_balanced_accuracy", "'male' only", id="the other class"
        ),
        pytest.param({"female": np.nan}, "gender_accuracy", "gives no gender", id="no output"),
        pytest.param({"female": 0.6}, "gender_labelled_accuracy", "'uncertain'", id="never sure"),
        pytest.param({"age_max": 200}, "age_mae", "ranges in all rows", id="ranges"),
        pytest.param({}, "range_exact", "are ranges", id="no ranges"),
        pytest.param(
            {"age_min": 30, "age_max": 30}, "over18_auc", "on either side", id="all adults"
        ),
    ],
)
def test_a_metric_that_was_asked_for_names_the_column_it_lacks(
    faces: ScoredFaces, change: dict[str, Any], name: str, message: str
) -> None:
    arrays = {
        field: np.full_like(getattr(faces, field), number) for field, number in change.items()
    }

    with pytest.raises(DataError, match=name) as raised:
        measure(replace(faces, **arrays), [name], samples=5)

    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["age_mea", "over_auc", "over0_auc", "over101_brier"])
def test_an_unknown_metric_is_refused(name: str, faces: ScoredFaces) -> None:
    with pytest.raises(ArgumentError):
        measure(faces, [name])


def test_any_age_can_be_a_threshold() -> None:
    assert [metric.name for metric in over(25)] == ["over25_auc", "over25_brier"]
    assert find_metric("over25_auc").better == "higher"


def test_no_faces_give_no_figures(faces: ScoredFaces) -> None:
    assert measure(faces.take(np.zeros(800, bool))) == {}


def test_text_is_per_cent_for_shares_and_signed_for_bias() -> None:
    assert METRICS["age_cs5"].text(0.5678) == "56.8"
    assert METRICS["age_mae"].text(5.987) == "5.99"
    assert METRICS["age_bias"].text(0.034) == "+0.03"
    assert METRICS["gender_auc"].text(math.nan) == "-"
