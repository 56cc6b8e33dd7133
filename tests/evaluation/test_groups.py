"""Groups, their figures, their gaps, and which gaps are more than noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("fairlearn", reason="needs the 'eval' extra")

from agelens.errors import ArgumentError, DataError
from agelens.evaluation.bootstrap import weights
from agelens.evaluation.groups import (
    age_groups,
    dimensions,
    disaggregate,
    step_down,
)
from evaluation.groups_of_people import people, with_column
from evaluation.simulation import in_ranges

FEW = ("age_mae", "age_bias", "gender_accuracy")


# --- figures --------------------------------------------------------------------------------------


def test_figures_of_cells_are_those_of_their_faces_alone() -> None:
    faces = people(80, gender_right=(0.95, 0.8), seed=1)

    found = disaggregate(faces, samples=50)

    off = faces.mean_age - faces.age_min
    right = (faces.female > 0.5) == (faces.female_label == 1)
    for cell in found.of(("race", "gender")):
        race, gender = cell.values
        own = (faces.audit["race"] == race) & (faces.female_label == (gender == "female"))
        assert cell.count == own.sum()
        figures = {name: figure.estimate for name, figure in cell.figures.items()}
        assert figures["age_mae"].value == pytest.approx(np.abs(off[own]).mean())
        assert figures["age_bias"].value == pytest.approx(off[own].mean())
        assert figures["age_rmse"].value == pytest.approx(np.sqrt((off[own] ** 2).mean()))
        assert figures["age_median_error"].value == pytest.approx(np.median(np.abs(off[own])))
        assert figures["gender_accuracy"].value == pytest.approx(right[own].mean())
        assert figures["gender_accuracy"].count == own.sum()


def test_every_column_and_every_pair_of_columns_is_looked_at() -> None:
    faces = with_column(people(60), "device", np.array(["phone", "door"] * 60, object))

    found = disaggregate(faces, metrics=FEW, samples=20)

    names = {cell.by for cell in found.cells}
    assert {frozenset(by) for by in names} == {
        frozenset(by)
        for by in (
            ("race",), ("device",), ("gender",), ("age",), ("race", "device"), ("race", "gender"),
            ("race", "age"), ("device", "gender"), ("device", "age"), ("gender", "age"),
        )
    }  # fmt: skip
    assert sum(cell.count for cell in found.of(("race", "device"))) == 120


def test_the_gap_is_highest_less_lowest_and_the_ratio_highest_over_lowest() -> None:
    faces = people(200, ("a", "b", "c"), wider=1.5, seed=2)

    gap = disaggregate(faces, metrics=("age_mae",), samples=400).gap("age_mae", ("race",))

    wrong = np.abs(faces.mean_age - faces.age_min)
    means = [wrong[faces.audit["race"] == race].mean() for race in ("a", "b", "c")]
    assert gap is not None
    assert gap.worst == ("c",)
    assert gap.worst_value == pytest.approx(max(means))
    assert gap.best_value == pytest.approx(min(means))
    assert gap.gap.value == pytest.approx(max(means) - min(means))
    assert gap.ratio == pytest.approx(max(means) / min(means))
    assert gap.gap.low < gap.gap.value < gap.gap.high


def test_a_bias_is_worst_where_it_is_farthest_from_zero() -> None:
    faces = people(200, gap_years=-5, seed=3)

    gap = disaggregate(faces, metrics=("age_bias",), samples=100).gap("age_bias", ("race",))

    assert gap is not None
    assert gap.worst == ("other",)
    assert gap.best == ("one",)
    assert gap.gap.value == pytest.approx(gap.best_value - gap.worst_value)
    assert gap.ratio is None


def test_the_order_of_the_faces_changes_nothing() -> None:
    faces = people(60, wider=1.4, seed=4)
    shuffled = faces.take(np.random.default_rng(0).permutation(len(faces)))

    one, other = (disaggregate(f, metrics=FEW, samples=50) for f in (faces, shuffled))

    for cell, same in zip(one.cells, other.cells, strict=True):
        assert (cell.name, cell.count) == (same.name, same.count)
        for name, figure in cell.figures.items():
            assert figure.estimate.value == pytest.approx(same.figures[name].estimate.value)


def test_intervals_of_a_cell_are_of_the_draws_of_all_faces() -> None:
    faces = people(100, seed=5)
    draws = weights(faces.clusters, 300, seed=7)

    found = disaggregate(faces, metrics=("age_bias",), draws=draws)

    own = np.flatnonzero(faces.audit["race"] == "other")
    off = (faces.mean_age - faces.age_min)[own]
    times = draws[:, own].astype(float)
    expected = np.quantile((times @ off) / times.sum(axis=1), (0.025, 0.975))
    (cell,) = (c for c in found.of(("race",)) if c.values == ("other",))
    estimate = cell.figures["age_bias"].estimate
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected))


def test_copies_of_few_people_make_intervals_wider() -> None:
    faces = people(100, seed=6)
    copied = faces.take(np.repeat(np.arange(0, 200, 4), 4))
    of_people = replace(copied, clusters=np.repeat(np.arange(50), 4))
    alone = replace(copied, clusters=np.arange(200))

    widths = []
    for one in (of_people, alone):
        (cell,) = (
            c
            for c in disaggregate(one, metrics=("age_mae",), samples=400).of(("race",))
            if c.values == ("one",)
        )
        estimate = cell.figures["age_mae"].estimate
        widths.append(estimate.high - estimate.low)

    assert widths[0] > 1.5 * widths[1]


# --- small cells ----------------------------------------------------------------------------------


def test_cells_with_too_few_faces_are_listed_and_not_judged() -> None:
    faces = people(100)
    race = faces.audit["race"].copy()
    race[:29] = "rare"
    race[29] = "single"

    found = disaggregate(replace(faces, audit={"race": race}), metrics=FEW, samples=20)

    cells = {cell.values[0]: cell for cell in found.of(("race",))}
    assert cells["rare"].count == 29
    assert cells["rare"].figures == {}
    assert set(cells["rare"].too_few) == set(FEW)
    assert cells["single"].count == 1
    gap = found.gap("age_mae", ("race",))
    assert gap is not None
    assert gap.cells == 2
    assert {gap.worst[0], gap.best[0]} <= {"one", "other"}


def test_the_minimum_is_of_faces_that_carry_the_figure() -> None:
    faces = people(60)
    label = faces.female_label.copy()
    label[:40] = -1

    found = disaggregate(replace(faces, female_label=label), metrics=FEW, samples=20)

    cells = {cell.values[0]: cell for cell in found.of(("race",))}
    assert "gender_accuracy" not in cells["one"].figures
    assert cells["one"].too_few == ("gender_accuracy",)
    assert "age_mae" in cells["one"].figures


def test_a_group_of_one_cannot_be_asked_for() -> None:
    with pytest.raises(ArgumentError, match="min_cell must be 2 or more, got 1"):
        disaggregate(people(40), min_cell=1)


# --- columns --------------------------------------------------------------------------------------


def test_a_missing_column_names_those_that_exist() -> None:
    with pytest.raises(DataError, match="no audit column 'skin'; these exist: 'race'"):
        disaggregate(people(40), columns=["skin"])


def test_a_column_with_one_value_and_an_empty_one_are_noted() -> None:
    faces = with_column(people(40), "device", np.full(80, "door", object))
    faces = with_column(faces, "site", np.full(80, None, object))
    faces = with_column(faces, "file", np.array([f"f{row}" for row in range(80)], object))

    columns, notes = dimensions(faces)

    assert list(columns) == ["race", "device", "gender", "age"]
    assert "column 'device' holds one value only, 'door'" in notes[0]
    assert "column 'site' is empty in all 80 rows" in notes[1]
    assert "column 'file' has 80 values" in notes[2]
    assert disaggregate(faces, metrics=FEW, samples=20).gap("age_mae", ("device",)) is None


def test_a_column_called_like_a_label_is_refused() -> None:
    faces = with_column(people(40), "gender", np.full(80, "x", object))

    with pytest.raises(DataError, match="the audit column 'gender' has the name of a label"):
        disaggregate(faces)


def test_faces_without_a_label_are_in_no_group() -> None:
    faces = people(60)
    race = faces.audit["race"].copy()
    race[::10] = None

    found = disaggregate(replace(faces, audit={"race": race}), metrics=FEW, samples=20)

    assert [cell.count for cell in found.of(("race",))] == [54, 54]


def test_nothing_to_group_by_is_an_error() -> None:
    faces = people(40)
    bare = replace(
        faces,
        audit={},
        female_label=np.full(80, -1, np.int8),
        age_min=np.full(80, -1, np.int16),
        age_max=np.full(80, -1, np.int16),
    )

    with pytest.raises(DataError, match="nothing to group faces by"):
        disaggregate(bare)


def test_a_range_that_no_band_holds_is_an_age_group_of_its_own() -> None:
    faces = in_ranges(people(100, ages=(0, 95)))

    groups = age_groups(faces)

    assert set(groups[faces.age_min == 10]) == {"10-19"}
    assert set(groups[faces.age_min == 30]) == {"25-39"}
    assert set(groups[faces.age_min == 70]) == {"70+"}


# --- noise ----------------------------------------------------------------------------------------


def race_gap_is_real(seed: int, **truth: float) -> bool:
    faces = people(300, seed=seed, **truth)  # type: ignore[arg-type]
    found = disaggregate(faces, metrics=FEW, samples=200, seed=seed)
    return any(gap.significant for gap in found.gaps if gap.by == ("race",))


def test_a_gap_of_three_years_between_groups_of_300_is_found() -> None:
    assert all(race_gap_is_real(seed, gap_years=3.0) for seed in range(20))


def test_an_error_that_is_three_years_larger_in_one_group_is_found() -> None:
    # Mean absolute errors of 4.8 and 7.8 years.
    assert all(race_gap_is_real(seed, wider=1.63) for seed in range(10))


def test_where_there_is_no_gap_the_audit_is_silent_in_95_of_100() -> None:
    silent = 0
    for seed in range(100):
        found = disaggregate(people(300, seed=seed), metrics=FEW, samples=200, seed=seed)
        silent += not any(gap.significant for gap in found.gaps)

    assert silent >= 95


def test_a_gap_by_ages_alone_is_gone_at_equal_ages() -> None:
    rng = np.random.default_rng(8)
    faces = people(600, ages=(18, 65), seed=8)
    old = faces.age_min >= 40
    # Errors grow with age and not with the group, but one group is older.
    off = rng.normal(0, np.where(old, 9.0, 3.0))
    race = np.where(rng.uniform(size=len(old)) < np.where(old, 0.75, 0.25), "older", "younger")
    masses = np.zeros((len(old), 101))
    masses[np.arange(len(old)), np.clip(np.rint(faces.age_min + off), 0, 100).astype(int)] = 1
    faces = replace(faces, age=masses, audit={"race": race.astype(object)})

    gap = disaggregate(faces, metrics=("age_mae",), samples=300).gap("age_mae", ("race",))

    assert gap is not None
    assert gap.significant
    assert gap.gap.value > 1.5
    assert gap.standardised is not None
    assert gap.standardised.value < 0.5
    assert gap.standardised_over == ("18-24", "25-39", "40-59", "60-69")


def test_standardised_figures_weigh_each_band_by_the_ages_of_all_faces() -> None:
    faces = people(300, ages=(18, 39), seed=9)

    found = disaggregate(faces, metrics=("age_mae",), samples=20)

    wrong = np.abs(faces.mean_age - faces.age_min)
    young = faces.age_min <= 24
    own = faces.audit["race"] == "one"
    expected = (
        young.mean() * wrong[own & young].mean() + (~young).mean() * wrong[own & ~young].mean()
    )
    (cell,) = (c for c in found.of(("race",)) if c.values == ("one",))
    standardised = cell.figures["age_mae"].standardised
    assert standardised is not None
    assert standardised.value == pytest.approx(expected)


def test_step_down_is_bonferroni_for_tests_that_have_nothing_in_common() -> None:
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4000, 10))
    scores = np.array([3.2, 2.6, *np.full(8, 0.5)])

    adjusted = step_down(scores, noise)

    single = 2 * norm.sf(scores)
    # Sidak's bound, as the tests are independent; Holm's step: nine are left for the second.
    assert adjusted[0] == pytest.approx(1 - (1 - single[0]) ** 10, abs=0.004)
    assert adjusted[1] == pytest.approx(1 - (1 - single[1]) ** 9, abs=0.01)
    assert (adjusted[2:] > 0.9).all()


def test_step_down_counts_the_same_test_ten_times_as_one() -> None:
    from scipy.stats import norm

    noise = np.repeat(np.random.default_rng(0).standard_normal((4000, 1)), 10, axis=1)

    adjusted = step_down(np.full(10, 2.5), noise)

    assert adjusted == pytest.approx(np.full(10, 2 * norm.sf(2.5)), abs=0.004)
