"""Conformal tables hold what they promise on fresh faces: on average, by age, and by group."""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from age_shapes import Floats, Row, distributions, slow_normal
from agelens.bundle import CalibrationFields
from agelens.calibration import distributions as as_results
from agelens.calibration import fit_age
from agelens.conformal import (
    KNOTS,
    TablePlan,
    conformal_table,
    fit_tables,
    masses_needed,
)
from agelens.results import AgeDistribution, Coverage, normal_masses

# --- one table ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(distributions(st.just(1)), st.integers(0, 100))
def test_the_mass_needed_is_the_smallest_whose_interval_contains_the_age(
    probabilities: Floats, age: int
) -> None:
    distribution = AgeDistribution(probabilities[0].astype(np.float32))

    def contains(mass: float) -> bool:
        low, high = distribution.interval(mass)
        return low <= age <= high

    needed = float(masses_needed(probabilities, np.array([age]))[0])

    grid = np.linspace(0, 1, 401)
    inside = [contains(float(mass)) for mass in grid]
    assert inside == sorted(inside)  # once inside, always inside
    smallest = float(grid[inside.index(True)])
    assert smallest - 1 / 400 - 1e-5 <= needed <= smallest + 1e-5
    assert contains(min(1.0, needed + 1e-5))
    assert needed < 1e-5 or not contains(needed - 1e-5)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60),
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6, unique=True),
)
def test_a_table_holds_the_split_conformal_quantiles(needed: Row, inner: Row) -> None:
    levels = [0.0, *sorted(inner), 1.0]

    table = conformal_table(np.array(needed), levels)

    assert table.levels == tuple(levels)
    for level, mass in zip(levels[1:-1], table.masses[1:-1], strict=True):
        enough = math.ceil((len(needed) + 1) * level)
        smallest = next((v for v in sorted(needed) if sum(n <= v for n in needed) >= enough), 1.0)
        assert smallest <= mass <= smallest + 1e-5 or mass == smallest == 1


@pytest.mark.parametrize("age", [33, 38, 42, 47, 55])
def test_the_faces_a_table_was_fitted_on_are_inside_their_intervals(age: int) -> None:
    """The mass that is just needed leaves the age just outside; the table has a little more."""
    distribution = AgeDistribution.from_normal(40, 5)
    rows = np.tile(distribution.probabilities.astype(np.float64), (60, 1))
    table = conformal_table(masses_needed(rows, np.full(60, age)))

    low, high = AgeDistribution(distribution.probabilities, coverage=table).interval(0.9)

    assert low <= age <= high
    assert age in (low, high)


def test_a_table_of_too_few_faces_gives_the_whole_range_for_a_high_level() -> None:
    table = conformal_table(np.linspace(0.1, 0.8, 8))

    assert table.inner(0.95) == 1.0
    age = AgeDistribution(AgeDistribution.from_normal(30, 3).probabilities, coverage=table)
    assert age.interval(0.95) == (0, 100)


def simulated(count: int, seed: int, *, narrowed: float, shift: float) -> tuple[Floats, Any]:
    """Distributions of a model, and ages drawn from the true ones.

    The model's spread is the true one divided by ``narrowed``; its mean is too high by ``shift``.
    """
    rng = np.random.default_rng(seed)
    means, stds = rng.uniform(8, 75, count), rng.uniform(3, 9, count)
    ages = np.clip(np.round(rng.normal(means, stds)), 0, 100).astype(np.intp)
    model = [
        slow_normal(mean + shift, std / narrowed) for mean, std in zip(means, stds, strict=True)
    ]
    return np.array(model), ages


def coverage_rate(probabilities: Floats, ages: Any, table: Coverage | None, level: float) -> float:
    hits = 0
    for row, age in zip(probabilities, ages, strict=True):
        low, high = AgeDistribution(row.astype(np.float32), coverage=table).interval(level)
        hits += low <= age <= high
    return hits / len(ages)


MODELS = {
    "calibrated": {"narrowed": 1.0, "shift": 0.0},
    "too sure": {"narrowed": 2.5, "shift": 0.0},
    "too unsure": {"narrowed": 0.5, "shift": 0.0},
    "too old": {"narrowed": 1.3, "shift": 6.0},
}


@cache
def split(name: str) -> tuple[Coverage, Floats, Any]:
    """A table fitted on one half, and the other half."""
    table = conformal_table(masses_needed(*simulated(1500, 1, **MODELS[name])))
    return table, *simulated(2500, 2, **MODELS[name])


@pytest.mark.parametrize("level", [0.5, 0.8, 0.88, 0.9, 0.95])
@pytest.mark.parametrize("name", MODELS)
def test_intervals_hold_their_level_on_fresh_faces(name: str, level: float) -> None:
    table, fresh, ages = split(name)

    rate = coverage_rate(fresh, ages, table, level)

    error = math.sqrt(level * (1 - level) * (1 / 1500 + 1 / 2500))
    assert rate >= level - 3 * error
    assert rate <= level + 0.09 + 3 * error  # whole years hold a little more


@pytest.mark.parametrize("name", ["too sure", "too old"])
def test_without_a_table_a_bad_model_does_not_hold_its_level(name: str) -> None:
    _, fresh, ages = split(name)

    assert coverage_rate(fresh, ages, None, 0.9) < 0.8


def test_a_calibrated_model_s_table_changes_little() -> None:
    table = split("calibrated")[0]

    # Whole years need a little less than the mass of the same name.
    np.testing.assert_allclose(table.masses, table.levels, atol=0.1)
    assert all(mass <= level + 0.04 for level, mass in zip(*table_rows(table), strict=True))


def table_rows(table: Coverage) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return table.levels[:-1], table.masses[:-1]


@given(
    st.lists(st.floats(0.001, 0.999), min_size=3, max_size=80),
    st.sampled_from([0.5, 0.8, 0.9, 0.95]),
)
def test_a_table_agrees_with_a_library_of_conformal_prediction(needed: Row, level: float) -> None:
    """The mass needed is a residual like any other: its quantile is that of split conformal."""
    # At a whole rank one rounding decides, and the library's differs from ours.
    rank = (len(needed) + 1) * level
    assume(abs(rank - round(rank)) > 1e-6)
    crepes = pytest.importorskip("crepes")
    regressor = crepes.ConformalRegressor().fit(residuals=np.array(needed))
    with warnings.catch_warnings():  # it says so when there are too few for the level
        warnings.simplefilter("ignore", UserWarning)
        _, upper = regressor.predict_int(np.zeros(1), confidence=level)[0]

    mass = conformal_table(np.array(needed), (0.0, level, 1.0)).inner(level)

    assert mass == pytest.approx(min(upper, 1.0), abs=1e-5)


# --- tables by age --------------------------------------------------------------------------------

STARTS: Final = np.array([0, 3, 10, 20, 30, 40, 50, 60, 70])
ENDS: Final = np.array([2, 9, 19, 29, 39, 49, 59, 69, 100])


def towards_the_middle(count: int, seed: int) -> tuple[Floats, NDArray[np.intp]]:
    """A model that draws every age towards 40, as networks do; errors grow with age."""
    rng = np.random.default_rng(seed)
    ages = rng.integers(0, 96, count)
    spread = 2 + 0.08 * ages
    means = np.clip(40 + 0.85 * (ages - 40) + rng.normal(0, 1, count) * spread, 0, 100)
    return normal_masses(means, 2 + 0.08 * means), ages


def held(fields: CalibrationFields, probabilities: Floats, ages: Any, level: float) -> Any:
    """Whether each face's interval holds its age."""
    results = as_results(probabilities, fields)
    ends = np.array([result.interval(level) for result in results])
    return (ends[:, 0] <= ages) & (ages <= ends[:, 1])


def tables_of(
    probabilities: Floats, low: Any, high: Any, groups: Any = None, **changes: Any
) -> CalibrationFields:
    """The tables alone: temperature and smoothing stay 1 and 0."""
    plan: dict[str, Any] = {
        "age_bands": tuple(STARTS.tolist()),
        "mean_bands": (0, 20, 60),
        "levels": KNOTS,
        "min_rows": 100,
        "min_band": 30,
        "confidence": 0.5,
        "seed": 0,
    } | changes
    numbers = np.zeros(len(low), np.intp) if groups is None else groups
    return CalibrationFields(
        coverage=fit_tables(probabilities, low, high, numbers, TablePlan(**plan))
    )


@cache
def fresh_towards_the_middle() -> tuple[Floats, NDArray[np.intp]]:
    return towards_the_middle(6000, 2)


def by_true_age(inside: Any, ages: Any) -> Floats:
    bands = np.searchsorted(STARTS, ages, side="right") - 1
    return np.array([inside[bands == band].mean() for band in range(len(STARTS))])


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_every_band_of_true_age_is_held_at_the_level(level: float) -> None:
    probabilities, ages = towards_the_middle(3000, 1)
    fields = tables_of(probabilities, ages, ages, mean_bands=(0,))
    fresh, true = fresh_towards_the_middle()

    rates = by_true_age(held(fields, fresh, true, level), true)

    fitted, tried = (np.histogram(each, [*STARTS, 101])[0] for each in (ages, true))
    error = np.sqrt(level * (1 - level) * (1 / fitted + 1 / tried))
    assert (rates >= level - 3 * error).all()
    # Ages between others are held along with them, and whole years hold a little more.
    assert (rates <= level + 3 * error + 0.05).all()


def test_bands_of_true_age_stay_near_the_level_when_those_of_predicted_age_hold_it() -> None:
    probabilities, ages = towards_the_middle(3000, 1)
    fields = tables_of(probabilities, ages, ages)
    fresh, true = fresh_towards_the_middle()

    rates = by_true_age(held(fields, fresh, true, 0.9), true)

    assert rates == pytest.approx(0.9, abs=0.1)


def test_with_one_mass_for_all_ages_children_and_the_old_are_held_less_often() -> None:
    """What the bands of true age are for: the same data without them."""
    probabilities, ages = towards_the_middle(3000, 1)
    fields = tables_of(probabilities, ages, ages, age_bands=(0,))
    fresh, true = fresh_towards_the_middle()

    rates = by_true_age(held(fields, fresh, true, 0.9), true)

    assert rates[[0, -1]].max() < 0.86
    assert rates[4] > 0.93


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_every_band_of_predicted_age_is_held_at_the_level(level: float) -> None:
    probabilities, ages = towards_the_middle(3000, 1)
    fields = tables_of(probabilities, ages, ages)
    fresh, true = fresh_towards_the_middle()
    inside, means = held(fields, fresh, true, level), fresh @ np.arange(101)

    for low, high in ((0, 20), (20, 60), (60, 101)):
        rows = (means >= low) & (means < high)
        error = math.sqrt(level * (1 - level) * (1 / rows.sum() + 2 / rows.sum()))
        assert inside[rows].mean() == pytest.approx(level, abs=3 * error + 0.01)


def exact_model(count: int, seed: int) -> tuple[Floats, NDArray[np.intp]]:
    """Distributions that are true: each age is drawn from what the model says."""
    rng = np.random.default_rng(seed)
    rows = normal_masses(rng.uniform(5, 85, count), rng.uniform(4, 9, count))
    drawn = (rows.cumsum(axis=1) < rng.uniform(size=count)[:, None]).sum(axis=1)
    return rows, np.minimum(drawn, 100)


@pytest.mark.parametrize("ranges", [False, True], ids=["exact ages", "nine ranges"])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_a_true_model_is_held_at_its_level_whatever_the_labels_are(
    level: float, ranges: bool
) -> None:
    probabilities, ages = exact_model(2000, 3)
    band = np.searchsorted(STARTS, ages, side="right") - 1
    low, high = (STARTS[band], ENDS[band]) if ranges else (ages, ages)
    fields = tables_of(probabilities, low, high)
    fresh, true = exact_model(4000, 4)

    rate = held(fields, fresh, true, level).mean()

    error = math.sqrt(level * (1 - level) * (1 / 2000 + 1 / 4000))
    # Within a range the model is taken at its word, which this one deserves.
    assert level - 3 * error <= rate <= level + 3 * error + 0.015


def test_the_margin_makes_the_level_hold_in_nine_fits_of_ten() -> None:
    level, faces, fits = 0.8, 250, 60
    needed = masses_needed(*exact_model(20_000, 5))
    rates: dict[float, list[float]] = {0.5: [], 0.9: []}
    for fit in range(fits):
        probabilities, ages = exact_model(faces, 100 + fit)
        for confidence, found in rates.items():
            fields = tables_of(
                probabilities, ages, ages, confidence=confidence, mean_bands=(0,), age_bands=(0,)
            )
            # With one table an age is inside as soon as the mass is over what it needs.
            mass = fields.coverage[0].table().inner(level)
            found.append(float((needed < mass).mean()))

    with_margin, without = (np.array(rates[confidence]) for confidence in (0.9, 0.5))
    assert (with_margin >= level).mean() >= 0.82
    assert 0.35 <= (without >= level).mean() <= 0.75
    expected = 1.2816 * math.sqrt(level * (1 - level) / faces)
    assert with_margin.mean() - without.mean() == pytest.approx(expected, abs=0.01)


def test_the_worst_group_is_held_when_groups_are_named() -> None:
    def faces(count: int, seed: int) -> tuple[Floats, Any, Any]:
        """One face in five is of a group that the model errs on twice as much."""
        rng = np.random.default_rng(seed)
        ages, harder = rng.integers(15, 75, count), rng.random(count) < 0.2
        means: Floats = np.clip(ages + rng.normal(0, 5, count) * (1 + harder), 0, 100)
        return normal_masses(means, np.full(count, 5.0)), ages, harder.astype(np.intp)

    probabilities, ages, group = faces(2500, 6)
    fresh, true, whose = faces(4000, 7)
    rates = {}
    for name, groups in (("by group", group), ("for all", None)):
        fields = tables_of(probabilities, ages, ages, groups, age_bands=(0,), mean_bands=(0,))
        inside = held(fields, fresh, true, 0.9)
        rates[name] = [inside[whose == one].mean() for one in (0, 1)]

    error = math.sqrt(0.9 * 0.1 * (1 / 500 + 1 / 800))
    assert rates["by group"][1] >= 0.9 - 3 * error
    assert rates["for all"][1] < 0.85
    assert rates["by group"][0] > 0.95  # the price: the others are held more often


def test_faces_without_a_group_count_but_are_no_group() -> None:
    probabilities, ages = exact_model(400, 8)

    unknown = tables_of(probabilities, ages, ages, np.full(400, -1))

    assert unknown == tables_of(probabilities, ages, ages)


def test_bands_of_few_faces_are_joined_to_the_band_before() -> None:
    rng = np.random.default_rng(9)
    ages = np.concatenate(
        [rng.integers(0, 10, 5), rng.integers(30, 50, 150), rng.integers(70, 90, 9)]
    )
    probabilities = normal_masses(ages.astype(np.float64), np.full(len(ages), 4.0))

    fields = tables_of(probabilities, ages, ages, age_bands=(0, 10, 30, 40, 60), mean_bands=(0,))

    # The five children join the first band with enough, the nine old ones the last.
    assert [band.start for band in fields.coverage[0].older] == [40]


def test_a_band_between_others_is_joined_to_the_younger_one() -> None:
    ages = np.concatenate([np.full(80, 4), np.full(9, 15), np.full(80, 40)])
    probabilities = normal_masses(ages.astype(np.float64), np.full(len(ages), 4.0))

    fields = tables_of(probabilities, ages, ages, age_bands=(0, 10, 30), mean_bands=(0,))

    assert [band.start for band in fields.coverage[0].older] == [30]


def test_ages_between_those_that_are_held_do_not_raise_the_level() -> None:
    """The middle band needs little, but lies between two that need much: it is held anyway."""

    def faces(count: int, seed: int) -> tuple[Floats, Any]:
        rng = np.random.default_rng(seed)
        ages = rng.choice([*range(25, 35), *range(45, 55), *range(65, 75)], count)
        far = (ages < 40) | (ages > 60)
        means = np.where(far, 50 + rng.normal(0, 12, count), ages + rng.normal(0, 4, count))
        return normal_masses(np.clip(means, 0, 100), np.full(count, 10.0)), ages

    probabilities, ages = faces(2000, 14)
    fields = tables_of(probabilities, ages, ages, age_bands=(0, 40, 60), mean_bands=(0,))
    fresh, true = faces(4000, 15)

    inside = held(fields, fresh, true, 0.8)

    middle = (true > 40) & (true < 60)
    assert inside[middle].mean() > 0.95
    assert inside.mean() == pytest.approx(0.8, abs=0.03)


def test_a_band_of_predicted_age_with_few_faces_takes_the_rate_of_all() -> None:
    rng = np.random.default_rng(7)
    means = np.concatenate([rng.uniform(32, 42, 120), rng.uniform(70, 80, 5)])
    ages = np.round(rng.normal(means, 4)).astype(np.intp)
    model = np.array([slow_normal(mean, 4) for mean in means])

    fields = fit_age(model, ages, ages, mean_bands=(0, 30, 60), min_rows=100)

    young, middle, old = fields.coverage
    assert [(b.low, b.high) for b in fields.coverage] == [(0, 30), (30, 60), (60, 101)]
    assert young.masses == old.masses
    assert young.older == old.older
    assert len(middle.masses) == len(old.masses)


def test_the_tables_take_the_levels_that_are_asked_for() -> None:
    probabilities, ages = exact_model(300, 10)

    fields = tables_of(probabilities, ages, ages, levels=(0.0, 0.75, 1.0))

    assert all(band.levels == (0.0, 0.75, 1.0) for band in fields.coverage)
