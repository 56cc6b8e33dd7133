"""Raw outputs become distributions; fitted tables hold what they promise on fresh data."""

from __future__ import annotations

import bisect
import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from age_shapes import AGES, Floats, Row, distributions, slow_normal
from agelens.bundle import AgeOutput, CalibrationFields, CoverageBand, GenderOutput
from agelens.calibration import (
    Calibrator,
    Criterion,
    calibrate_age,
    calibrate_gender,
    censored_nll,
    decode_age,
    decode_gender,
    draw_ages,
    fit_age,
    fit_gender,
)
from agelens.errors import ArgumentError, ModelError
from agelens.estimation import RawOutputs
from agelens.results import AgeDistribution

UNCALIBRATED = CalibrationFields()


def logits(columns: int | st.SearchStrategy[int]) -> st.SearchStrategy[Floats]:
    widths = st.just(columns) if isinstance(columns, int) else columns
    return widths.flatmap(
        lambda width: hnp.arrays(
            np.float64, st.tuples(st.integers(1, 3), st.just(width)), elements=st.floats(-40, 40)
        )
    )


def slow_softmax(row: Floats) -> Row:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / math.fsum(powers) for power in powers]


def slow_sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > 0 else 1 - 1 / (1 + math.exp(value))


# --- decoding ages --------------------------------------------------------------------------------


def assert_rows_are_distributions(ages: Floats) -> None:
    assert ages.shape[1] == 101
    assert ages.min() >= 0
    np.testing.assert_allclose(ages.sum(axis=1), 1, atol=1e-9)


@given(logits(101))
def test_a_class_an_age_is_a_softmax(raw: Floats) -> None:
    ages = decode_age(raw, AgeOutput(output="age", kind="distribution"))

    assert_rows_are_distributions(ages)
    np.testing.assert_allclose(ages, [slow_softmax(row) for row in raw], atol=1e-12)


@given(logits(st.integers(102, 120)))
def test_classes_over_a_hundred_are_a_hundred_or_more(raw: Floats) -> None:
    ages = decode_age(raw, AgeOutput(output="age", kind="distribution"))

    assert_rows_are_distributions(ages)
    classes = [slow_softmax(row) for row in raw]
    np.testing.assert_allclose(ages[:, 100], [math.fsum(row[100:]) for row in classes], atol=1e-12)
    np.testing.assert_allclose(ages[:, :100], [row[:100] for row in classes], atol=1e-12)


@given(logits(st.integers(2, 100)))
def test_ages_without_a_class_have_no_probability(raw: Floats) -> None:
    ages = decode_age(raw, AgeOutput(output="age", kind="distribution"))

    assert_rows_are_distributions(ages)
    assert (ages[:, raw.shape[1] :] == 0).all()


@given(logits(st.integers(2, 100)), st.floats(0.1, 12))
def test_the_last_class_is_spread_geometrically_over_the_older_ages(
    raw: Floats, tail_years: float
) -> None:
    output = AgeOutput(output="age", kind="distribution", tail_years=tail_years)
    last = raw.shape[1] - 1

    ages = decode_age(raw, output)

    assert_rows_are_distributions(ages)
    classes = np.array([slow_softmax(row) for row in raw])
    np.testing.assert_allclose(ages[:, :last], classes[:, :last], atol=1e-12)
    np.testing.assert_allclose(ages[:, last:].sum(axis=1), classes[:, last], atol=1e-9)
    # 100 is left out: it may stand for all that lies beyond.
    for one, next_ in itertools.pairwise(range(last, 100)):
        np.testing.assert_allclose(
            ages[:, next_] * (1 + tail_years), ages[:, one] * tail_years, atol=1e-12
        )


@pytest.mark.parametrize(("classes", "tail_years"), [(31, 3.0), (51, 5.0), (81, 2.0)])
def test_the_tail_has_the_stated_mean_excess_when_there_is_room(
    classes: int, tail_years: float
) -> None:
    sure = np.full((1, classes), -60.0)
    sure[0, -1] = 60.0

    ages = decode_age(sure, AgeOutput(output="a", kind="distribution", tail_years=tail_years))

    excess = float(ages[0] @ np.arange(101)) - (classes - 1)
    assert excess == pytest.approx(tail_years, rel=0.01)


@given(logits(7))
def test_a_range_is_spread_evenly_over_its_ages(raw: Floats) -> None:
    starts = (0, 3, 13, 18, 40, 65, 100)

    ages = decode_age(raw, AgeOutput(output="age", kind="ranges", starts=starts))

    assert_rows_are_distributions(ages)
    for row, found in zip(raw, ages, strict=True):
        classes = slow_softmax(row)
        for age in AGES:
            kind = bisect.bisect_right(starts, age) - 1
            width = [*starts, 101][kind + 1] - starts[kind]
            assert found[age] == pytest.approx(classes[kind] / width, abs=1e-12)


def test_other_columns_than_ranges_are_refused() -> None:
    output = AgeOutput(output="age", kind="ranges", starts=(0, 18, 65))

    with pytest.raises(ModelError, match="4 classes for 3 age ranges"):
        decode_age(np.zeros((2, 4)), output)


@given(logits(st.integers(1, 100)))
def test_ordinal_outputs_are_differences_of_falling_probabilities(raw: Floats) -> None:
    ages = decode_age(raw, AgeOutput(output="age", kind="ordinal"))

    assert_rows_are_distributions(ages)
    for row, found in zip(raw, ages, strict=True):
        over, least = [1.0], 1.0
        for value in row:
            least = min(least, slow_sigmoid(value))
            over.append(least)
        over.append(0.0)
        for age, (a, b) in enumerate(itertools.pairwise(over)):
            assert found[age] == pytest.approx(a - b, abs=1e-9)


def test_ordinal_outputs_of_a_sigmoid_are_taken_as_they_are() -> None:
    over = np.array([[1.0, 0.75, 0.25, 0.25]])
    output = AgeOutput(output="age", kind="ordinal", activation="sigmoid")

    ages = decode_age(over, output)[0]

    np.testing.assert_allclose(ages[:6], [0, 0.25, 0.5, 0, 0.25, 0], atol=1e-12)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-2, 6)), min_size=1, max_size=4))
def test_a_mean_and_its_log_variance_are_a_normal_distribution(rows: list[Any]) -> None:
    raw = np.array(rows)

    ages = decode_age(raw, AgeOutput(output="age", kind="regression"))

    assert_rows_are_distributions(ages)
    for (mean, log_variance), found in zip(rows, ages, strict=True):
        std = max(0.3, math.exp(log_variance / 2))
        np.testing.assert_allclose(found, slow_normal(mean, std), atol=1e-9)


@given(st.floats(0, 100), st.floats(0.5, 20))
def test_a_point_age_is_widened_by_the_card_s_standard_error(mean: float, std: float) -> None:
    output = AgeOutput(output="age", kind="regression", std=std)

    ages = decode_age(np.array([[mean]]), output)

    assert_rows_are_distributions(ages)
    np.testing.assert_allclose(ages[0], slow_normal(mean, std), atol=1e-9)


@pytest.mark.parametrize("value", [-30.0, 140.0, 1e6])
def test_a_point_age_out_of_range_goes_to_the_nearest_age(value: float) -> None:
    output = AgeOutput(output="age", kind="regression", std=0.5)

    ages = decode_age(np.array([[value]]), output)

    assert ages[0].argmax() == (0 if value < 0 else 100)
    assert_rows_are_distributions(ages)


@pytest.mark.parametrize(("columns", "std"), [(1, None), (3, None), (3, 5.0), (101, 5.0)])
def test_a_regression_of_other_columns_is_refused(columns: int, std: float | None) -> None:
    output = AgeOutput(output="age", kind="regression", std=std)

    with pytest.raises(ModelError, match=f"got {columns}"):
        decode_age(np.zeros((1, columns)), output)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_of_the_graph_are_kept(activation: Any) -> None:
    classes = np.random.default_rng(0).dirichlet(np.ones(101), 3)
    output = AgeOutput(output="age", kind="distribution", activation=activation)

    np.testing.assert_allclose(decode_age(classes, output), classes, atol=1e-12)


@pytest.mark.parametrize(
    "row",
    [np.zeros(101), np.linspace(-8, 9, 101), np.full(101, 0.5)],
    ids=["all zero", "logits", "sum of fifty"],
)
def test_an_output_that_is_no_softmax_contradicts_its_card(row: Floats) -> None:
    """Taken as probabilities, logits give an age without any warning."""
    output = AgeOutput(output="age", kind="distribution", activation="softmax")

    with pytest.raises(ModelError, match="softmax"):
        decode_age(row[None], output)


# --- decoding gender ------------------------------------------------------------------------------


@given(logits(1))
def test_one_gender_logit_is_a_sigmoid(raw: Floats) -> None:
    female = decode_gender(raw, GenderOutput(output="gender"))

    assert female.shape == (len(raw),)
    np.testing.assert_allclose(female, [slow_sigmoid(row[0]) for row in raw], atol=1e-12)


@given(logits(2), st.sampled_from([0, 1]))
def test_two_gender_logits_are_a_softmax(raw: Floats, female_index: int) -> None:
    female = decode_gender(raw, GenderOutput(output="gender", female_index=female_index))

    np.testing.assert_allclose(female, [slow_softmax(row)[female_index] for row in raw], atol=1e-12)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_gender_probabilities_of_the_graph_are_kept(activation: Any) -> None:
    two = GenderOutput(output="gender", activation=activation, female_index=1)
    one = GenderOutput(output="gender", activation="sigmoid")

    np.testing.assert_allclose(decode_gender(np.array([[0.3, 0.7], [1, 0]]), two), [0.7, 0])
    np.testing.assert_allclose(decode_gender(np.array([[0.3], [1]]), one), [0.3, 1])


def test_a_gender_output_of_other_columns_is_refused() -> None:
    with pytest.raises(ModelError, match="one or two columns, got 3"):
        decode_gender(np.zeros((1, 3)), GenderOutput(output="gender"))


@pytest.mark.parametrize("value", [-0.5, 1.5, 40.0])
def test_a_gender_output_that_is_no_sigmoid_contradicts_its_card(value: float) -> None:
    with pytest.raises(ModelError, match="sigmoid"):
        decode_gender(np.array([[value]]), GenderOutput(output="g", activation="sigmoid"))


# --- applying -------------------------------------------------------------------------------------


def entropy(rows: Floats) -> Floats:
    result: Floats = -(rows * np.log(np.maximum(rows, 1e-300))).sum(axis=1)
    return result


@given(distributions())
def test_without_anything_fitted_the_distribution_stays(probabilities: Floats) -> None:
    calibrated = calibrate_age(probabilities, UNCALIBRATED)

    assert_rows_are_distributions(calibrated)
    np.testing.assert_allclose(calibrated, probabilities, atol=101 * 1e-7)
    assert calibrated.min() > 0  # no single face rules an age out


@given(distributions(), st.floats(0.3, 5), st.floats(0, 5), st.floats(0, 0.3))
def test_calibrated_rows_sum_to_one(
    probabilities: Floats, temperature: float, at_zero: float, a_year: float
) -> None:
    fields = CalibrationFields(age_temperature=temperature, age_smoothing=(at_zero, a_year))

    assert_rows_are_distributions(calibrate_age(probabilities, fields))


@given(distributions(), st.floats(0.3, 4), st.floats(1.05, 3))
def test_a_higher_temperature_widens(probabilities: Floats, one: float, more: float) -> None:
    cool = calibrate_age(probabilities, CalibrationFields(age_temperature=one))
    warm = calibrate_age(probabilities, CalibrationFields(age_temperature=one * more))

    assert (entropy(warm) >= entropy(cool) - 1e-9).all()
    np.testing.assert_array_equal(warm.max(axis=1) <= cool.max(axis=1) + 1e-9, True)


@given(distributions(), st.floats(0.5, 4))
def test_temperature_is_a_power_of_the_probabilities(
    probabilities: Floats, temperature: float
) -> None:
    calibrated = calibrate_age(probabilities, CalibrationFields(age_temperature=temperature))

    for row, found in zip(probabilities, calibrated, strict=True):
        powers = [max(p, 1e-7) ** (1 / temperature) for p in row]
        np.testing.assert_allclose(found, np.array(powers) / math.fsum(powers), atol=1e-9)


@pytest.mark.parametrize("smoothing", [(2.0, 0.0), (0.0, 0.1), (1.5, 0.06)])
def test_smoothing_sends_each_age_s_mass_into_a_normal_about_it(
    smoothing: tuple[float, float],
) -> None:
    probabilities = np.random.default_rng(1).dirichlet(np.ones(101), 2)
    fields = CalibrationFields(age_smoothing=smoothing)

    calibrated = calibrate_age(probabilities, fields)

    for row, found in zip(probabilities, calibrated, strict=True):
        expected = np.zeros(101)
        for age in AGES:
            std = max(smoothing[0] + smoothing[1] * age, 1e-3)
            expected += row[age] * np.array(slow_normal(age, std))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_smoothing_adds_its_variance_and_keeps_the_mean() -> None:
    narrow = np.array([slow_normal(50, 3)])

    wide = calibrate_age(narrow, CalibrationFields(age_smoothing=(4.0, 0.0)))[0]

    mean = wide @ np.arange(101)
    assert mean == pytest.approx(50, abs=0.01)
    assert wide @ (np.arange(101) - mean) ** 2 == pytest.approx(9 + 16 + 2 / 12, abs=0.05)


@given(
    hnp.arrays(np.float64, st.integers(1, 5), elements=st.floats(1e-5, 1 - 1e-5)),
    st.floats(0.3, 5),
    st.floats(-2, 2),
)
def test_gender_is_scaled_and_shifted_on_its_logit(
    female: Floats, temperature: float, bias: float
) -> None:
    fields = CalibrationFields(gender_temperature=temperature, gender_bias=bias)

    found = calibrate_gender(female, fields)

    expected = [slow_sigmoid(math.log(p / (1 - p)) / temperature + bias) for p in female]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_a_certain_gender_stays_finite(certain: float) -> None:
    found = calibrate_gender(np.array([certain]), CalibrationFields(gender_temperature=2))

    assert 0 < found[0] < 1


def band(low: float, high: float, mass: float) -> CoverageBand:
    return CoverageBand(low=low, high=high, levels=(0, 0.9, 1), masses=(0, mass, 1))


def raw_normals(*means: float) -> RawOutputs:
    rows = np.array([slow_normal(mean, 4) for mean in means])
    return RawOutputs(np.log(rows + 1e-12).astype(np.float32), None)


@pytest.mark.parametrize(
    ("mean", "mass"), [(10, 0.5), (29.0, 0.5), (31.0, 0.7), (59.0, 0.7), (61.0, 0.95), (95, 0.95)]
)
def test_a_face_gets_the_table_of_the_band_of_its_mean_age(mean: float, mass: float) -> None:
    bands = (band(0, 30, 0.5), band(30, 60, 0.7), band(60, 101, 0.95))
    fields = CalibrationFields(coverage=bands)
    calibrator = Calibrator(AgeOutput(output="age", kind="distribution"), None, fields)

    (age,) = calibrator.ages(raw_normals(mean))

    assert age.coverage is not None
    assert age.coverage.inner(0.9) == mass


def test_a_face_younger_than_every_band_gets_the_nearest_table() -> None:
    fields = CalibrationFields(coverage=(band(20, 40, 0.5), band(40, 101, 0.95)))
    calibrator = Calibrator(AgeOutput(output="age", kind="distribution"), None, fields)

    (age,) = calibrator.ages(raw_normals(8))

    assert age.coverage is not None
    assert age.coverage.inner(0.9) == 0.5


def test_a_model_without_tables_gives_its_own_quantiles() -> None:
    calibrator = Calibrator(AgeOutput(output="age", kind="distribution"), None)

    (age,) = calibrator.ages(raw_normals(40))

    assert age.coverage is None
    assert age.interval(0.9) == AgeDistribution.from_normal(40, 4).interval(0.9)


def test_genders_carry_the_card_s_threshold() -> None:
    fields = CalibrationFields(gender_threshold=0.8)
    calibrator = Calibrator(
        AgeOutput(output="age", kind="distribution"), GenderOutput(output="gender"), fields
    )
    raw = RawOutputs(np.zeros((3, 101), np.float32), np.array([[3.0], [0.5], [-3.0]], np.float32))

    genders = calibrator.genders(raw)

    assert genders is not None
    assert [gender.label for gender in genders] == ["female", "uncertain", "male"]


def test_no_faces_give_no_results() -> None:
    calibrator = Calibrator(
        AgeOutput(output="age", kind="distribution"), GenderOutput(output="gender")
    )
    raw = RawOutputs(np.zeros((0, 101), np.float32), np.zeros((0, 1), np.float32))

    assert calibrator.ages(raw) == []
    assert calibrator.genders(raw) == []


# --- fitting --------------------------------------------------------------------------------------


def sharpened(count: int, temperature: float, seed: int) -> tuple[Floats, Any]:
    """A model whose distributions are the true ones to the power of ``temperature``."""
    rng = np.random.default_rng(seed)
    rows, ages = [], []
    for _ in range(count):
        first, second = rng.uniform(15, 80, 2)
        share = rng.uniform(0.5, 1)
        true = share * np.array(slow_normal(first, rng.uniform(2, 12)))
        true += (1 - share) * np.array(slow_normal(second, rng.uniform(2, 12)))
        ages.append(rng.choice(101, p=true / true.sum()))
        power = true**temperature
        rows.append(power / power.sum())
    return np.array(rows), np.array(ages)


@cache
def fitted_sharpened() -> tuple[CalibrationFields, Floats, Any]:
    probabilities, ages = sharpened(500, 2.0, seed=3)
    return fit_age(probabilities, ages, ages, data="simulated"), probabilities, ages


def test_a_planted_temperature_is_recovered() -> None:
    fields, probabilities, ages = fitted_sharpened()
    truth = calibrate_age(probabilities, CalibrationFields(age_temperature=2.0))

    assert 1.55 <= fields.age_temperature <= 2.6
    fitted = censored_nll(calibrate_age(probabilities, fields), ages, ages)
    assert fitted <= censored_nll(truth, ages, ages) + 1e-3
    assert fitted < censored_nll(probabilities, ages, ages) - 0.1
    assert fields.data == "simulated"


def test_the_fitted_tables_hold_their_level_on_fresh_faces() -> None:
    fields = fitted_sharpened()[0]
    fresh, ages = sharpened(1500, 2.0, seed=4)
    calibrator = Calibrator(AgeOutput(output="age", kind="distribution"), None, fields)

    results = calibrator.ages(RawOutputs(np.log(fresh + 1e-30).astype(np.float32), None))

    for level in (0.5, 0.8, 0.9):
        hits = [
            low <= age <= high
            for (low, high), age in zip((r.interval(level) for r in results), ages, strict=True)
        ]
        error = math.sqrt(level * (1 - level) * (1 / 500 + 1 / 1500))
        assert np.mean(hits) >= level - 3 * error


def test_an_error_that_grows_with_age_is_fitted_as_smoothing_that_grows() -> None:
    rng = np.random.default_rng(5)
    means = rng.uniform(5, 75, 300)
    ages = np.clip(np.round(means + rng.normal(0, 1, 300) * 0.15 * means), 0, 100).astype(np.intp)
    model = np.array([slow_normal(mean, 1.5) for mean in means])

    fields = fit_age(model, ages, ages)

    widened = calibrate_age(model, fields)
    spread = np.sqrt([row @ (np.arange(101) - row @ np.arange(101)) ** 2 for row in widened])
    assert fields.age_smoothing[1] >= 0.1
    assert spread[means > 60].mean() == pytest.approx(0.15 * 67.5, rel=0.3)
    assert spread[means < 15].mean() < 4


def test_a_calibrated_model_is_left_about_as_it_is() -> None:
    probabilities, ages = sharpened(300, 1.0, seed=6)

    fields = fit_age(probabilities, ages, ages)

    moved = np.abs(calibrate_age(probabilities, fields) - probabilities).sum(axis=1) / 2
    assert 0.75 <= fields.age_temperature <= 1.35
    assert moved.mean() < 0.1


def test_range_labels_alone_are_enough_to_fit() -> None:
    probabilities, ages = sharpened(300, 2.0, seed=3)
    starts = np.array([0, 3, 10, 20, 30, 40, 50, 60, 70, 101])
    group = np.searchsorted(starts, ages, side="right") - 1

    fields = fit_age(probabilities, starts[group], starts[group + 1] - 1)

    assert 1.4 <= fields.age_temperature <= 2.9


def test_the_squared_distance_of_the_cumulative_probabilities_recovers_the_temperature_too() -> (
    None
):
    _, probabilities, ages = fitted_sharpened()

    fields = fit_age(probabilities, ages, ages, criterion="crps")

    assert 1.4 <= fields.age_temperature <= 2.9


def slow_crps(row: Floats, low: int, high: int) -> float:
    """Outside of the label: below it no probability is wanted, from its last age on all of it."""
    return math.fsum(
        math.fsum(row[: age + 1]) ** 2
        if age < low
        else (1 - math.fsum(row[: age + 1])) ** 2
        if age >= high
        else 0.0
        for age in AGES
    )


@pytest.mark.parametrize("criterion", ["nll", "crps"])
def test_the_chosen_shape_has_the_least_score_around_it(criterion: Criterion) -> None:
    """By direct sums, on exact ages and ranges."""
    probabilities, ages = sharpened(120, 1.6, seed=11)
    exact = np.arange(120) % 2 == 1
    low = np.where(exact, ages, np.maximum(ages - 4, 0))
    high = np.where(exact, ages, np.minimum(ages + 4, 100))

    def score(fields: CalibrationFields) -> float:
        rows = calibrate_age(probabilities, fields)
        if criterion == "nll":
            return 120 * censored_nll(rows, low, high)
        return math.fsum(slow_crps(*each) for each in zip(rows, low, high, strict=True))

    # One band of ages: every face then counts the same.
    fields = fit_age(probabilities, low, high, criterion=criterion, age_bands=(0,))

    best = score(fields)
    at_zero, a_year = fields.age_smoothing
    for factor, step in ((1 / 1.122, 0), (1.122, 0), (1, 0.25), (1, -0.25)):
        moved = {
            "age_temperature": fields.age_temperature * factor,
            "age_smoothing": (max(at_zero + step, 0.0), a_year),
        }
        assert score(fields.model_copy(update=moved)) >= best - 0.01


@pytest.mark.parametrize("criterion", ["nll", "crps"])
def test_a_sharp_model_that_is_right_is_not_widened(criterion: Criterion) -> None:
    rng = np.random.default_rng(13)
    at, shares = rng.integers(5, 90, 600), np.array([0.15, 0.7, 0.15])
    model = np.zeros((600, 101))
    for step, share in zip((-1, 0, 1), shares, strict=True):
        model[np.arange(600), at + step] = share
    ages = at + rng.choice([-1, 0, 1], 600, p=shares)

    fields = fit_age(model, ages, ages, criterion=criterion)

    assert calibrate_age(model, fields)[np.arange(600), at].mean() == pytest.approx(0.7, abs=0.08)


def test_a_few_babies_count_more_than_their_number() -> None:
    """The likelihood weighs bands of age by the square root of their size.

    The model is right about adults and far too sure of babies; one smoothing has to serve both.
    """
    rng = np.random.default_rng(12)
    means = np.concatenate([rng.uniform(25, 60, 900), rng.uniform(4, 8, 64)])
    spread = np.where(np.arange(964) < 900, 2.0, 5.0)
    ages = np.clip(np.round(rng.normal(means, spread)), 0, 100).astype(np.intp)
    model = np.array([slow_normal(m, 2.0 if m > 20 else 0.7) for m in means])

    def loss(age_bands: tuple[int, ...]) -> float:
        fields = fit_age(model, ages, ages, age_bands=age_bands)
        return censored_nll(calibrate_age(model[900:], fields), ages[900:], ages[900:])

    assert loss((0, 20)) < loss((0,)) - 0.1


def test_fitting_twice_gives_the_same() -> None:
    probabilities, ages = sharpened(30, 1.5, seed=8)
    low, high = np.maximum(ages - 2, 0), ages + 2

    one = fit_age(probabilities, low, high, min_rows=20)

    assert one == fit_age(probabilities, low, high, min_rows=20)


def planted_gender(count: int, temperature: float, bias: float, seed: int) -> tuple[Floats, Any]:
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 2, count)
    labels = rng.random(count) < 1 / (1 + np.exp(-logit))
    return 1 / (1 + np.exp(-(logit - bias) * temperature)), labels


@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (2.5, 0.6), (1.5, -0.8)])
def test_a_planted_gender_temperature_and_bias_are_recovered(
    temperature: float, bias: float
) -> None:
    female, labels = planted_gender(4000, temperature, bias, seed=9)

    fields = fit_gender(female, labels, threshold=0.8)

    assert fields.gender_temperature == pytest.approx(temperature, rel=0.15)
    assert fields.gender_bias == pytest.approx(bias, abs=0.15)
    assert fields.gender_threshold == 0.8
    calibrated = calibrate_gender(female, fields)
    for low in np.arange(0, 1, 0.2):
        rows = (calibrated >= low) & (calibrated < low + 0.2)
        assert labels[rows].mean() == pytest.approx(calibrated[rows].mean(), abs=0.06)


@pytest.mark.parametrize("labels", [np.ones(5, bool), np.zeros(5, bool), np.array([True] * 4)])
def test_gender_calibration_needs_faces_of_both_genders(labels: NDArray[np.bool_]) -> None:
    with pytest.raises(ArgumentError, match="both genders"):
        fit_gender(np.full(5, 0.5), labels)


# --- labels ---------------------------------------------------------------------------------------


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
    probabilities = draw(distributions(st.integers(1, 6)))
    count = len(probabilities)
    ends = draw(
        hnp.arrays(np.intp, (count, 2), elements=st.integers(0, 100)).map(
            lambda pairs: np.sort(pairs, axis=1)
        )
    )
    return probabilities, ends[:, 0], ends[:, 1]


@given(labelled())
def test_the_censored_likelihood_is_that_of_a_direct_sum(
    case: tuple[Floats, NDArray[np.intp], NDArray[np.intp]],
) -> None:
    probabilities, low, high = case
    losses = [
        -math.log(max(math.fsum(row[a : b + 1]), 1e-12))
        for row, a, b in zip(probabilities, low, high, strict=True)
    ]

    expected = math.fsum(losses) / len(losses)

    # Below 1e-9 a difference of sums has lost its digits.
    assert min(censored_nll(probabilities, low, high), 20) == pytest.approx(
        min(expected, 20), abs=1e-3
    )


@given(labelled(), st.integers(0, 1000))
def test_drawn_ages_stay_within_their_labels(
    case: tuple[Floats, NDArray[np.intp], NDArray[np.intp]], seed: int
) -> None:
    probabilities, low, high = case

    drawn = draw_ages(probabilities, low, high, seed=seed)

    assert ((drawn >= low) & (drawn <= high)).all()
    np.testing.assert_array_equal(drawn[low == high], low[low == high])
    np.testing.assert_array_equal(drawn, draw_ages(probabilities, low, high, seed=seed))


def test_ages_are_drawn_as_often_as_the_model_says() -> None:
    row = np.array(slow_normal(32, 6))
    count = 20_000
    low, high = np.full(count, 30), np.full(count, 39)

    drawn = draw_ages(np.tile(row, (count, 1)), low, high)

    for age in range(30, 40):
        share = row[age] / row[30:40].sum()
        error = math.sqrt(share * (1 - share) / count)
        assert (drawn == age).mean() == pytest.approx(share, abs=4 * error)


def wrong_labels(**changes: Any) -> dict[str, Any]:
    probabilities = np.tile(slow_normal(30, 5), (6, 1))
    case = {
        "probabilities": probabilities,
        "age_min": np.full(6, 30),
        "age_max": np.full(6, 30),
        "min_rows": 2,
    }
    return case | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"age_min": np.array([30, 30, 30, 41, 30, 30])}, r"row 3: age_max 30 is under age_min"),
        ({"age_min": np.array([30, 30, -1, 30, 30, 30])}, r"row 2.*-1"),
        ({"age_max": np.array([30, 30, 30, 30, 400, 30])}, r"row 4.*400"),
        ({"age_max": np.full(5, 30)}, r"6 rows.*\(5,\)"),
        ({"min_rows": 7}, r"needs 7 faces or more, got 6"),
        ({"probabilities": np.ones((6, 81)) / 81}, r"\(N, 101\), got \(6, 81\)"),
        (
            {"probabilities": np.vstack([np.ones((4, 101)) / 101, np.full((2, 101), np.nan)])},
            r"row 4",
        ),
        ({"probabilities": np.vstack([np.ones((5, 101)) / 101, np.ones((1, 101))])}, r"row 5"),
    ],
    ids=[
        "upside down", "negative", "beyond any age", "lengths", "too few", "81 classes",
        "not finite", "no distribution",
    ],
)  # fmt: skip
def test_wrong_calibration_data_is_refused_and_the_row_named(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        fit_age(**wrong_labels(**changes))
