"""The vocabulary: distributions, intervals, groups, wire forms."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agelens.errors import ArgumentError
from agelens.results import (
    AGE_COUNT,
    AgeDistribution,
    AgeInterval,
    Analysis,
    AnalysisError,
    Coverage,
    Face,
    GenderEstimate,
    OlderAges,
    Quality,
    age_group_starts,
    analysis_json_schema,
)


@st.composite
def distributions(draw: st.DrawFn) -> AgeDistribution:
    """Anything from a single age to a ragged many-peaked shape."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    held = draw(st.integers(1, AGE_COUNT))  # ages with any probability
    weights = np.zeros(AGE_COUNT)
    weights[rng.choice(AGE_COUNT, held, replace=False)] = 10 ** rng.uniform(-6, 3, held)
    if draw(st.booleans()):
        weights = np.sort(weights)[:: draw(st.sampled_from([1, -1]))]
    coverage = draw(st.one_of(st.none(), coverages()))
    return AgeDistribution.from_weights(weights, coverage=coverage)


@st.composite
def coverages(draw: st.DrawFn) -> Coverage:
    """One table, or one for each of up to four bands of age."""
    inner = sorted(draw(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5, unique=True)))
    count = len(inner) + 2
    rows = st.lists(st.floats(0, 1), min_size=count, max_size=count).map(sorted).map(tuple)
    starts = sorted(draw(st.lists(st.integers(1, 100), max_size=3, unique=True)))
    older = tuple(OlderAges(start, draw(rows)) for start in starts)
    return Coverage((0.0, *inner, 1.0), draw(rows), older)


ages = st.integers(-5, 130)
levels = st.floats(0, 1)


@given(distributions())
def test_probabilities_sum_to_one_and_cannot_be_written(age: AgeDistribution) -> None:
    assert math.isclose(float(age.probabilities.sum(dtype=np.float64)), 1, abs_tol=1e-5)
    with pytest.raises(ValueError, match="read-only"):
        age.probabilities[0] = 1


@given(distributions(), levels, levels)
def test_intervals_nest_and_contain_the_median(
    age: AgeDistribution, one: float, other: float
) -> None:
    narrow, wide = age.interval(min(one, other)), age.interval(max(one, other))

    assert wide.low <= narrow.low <= age.median <= narrow.high <= wide.high


@given(distributions(), levels)
def test_an_uncalibrated_interval_holds_at_least_its_level(
    age: AgeDistribution, level: float
) -> None:
    plain = AgeDistribution(age.probabilities)
    low, high = plain.interval(level)

    assert plain.probabilities[low : high + 1].sum(dtype=np.float64) >= level - 1e-6


@given(distributions(), ages, ages)
def test_probability_at_least_falls_with_age(age: AgeDistribution, one: int, other: int) -> None:
    younger, older = sorted((one, other))

    assert age.probability_at_least(younger) >= age.probability_at_least(older)
    assert 0 <= age.probability_at_least(one) <= 1


@given(distributions(), st.lists(st.integers(0, 100), min_size=1, max_size=12, unique=True))
def test_groups_cover_all_ages_and_sum_to_one(age: AgeDistribution, edges: list[int]) -> None:
    groups = age.group(sorted(edges))

    assert next(g.low for g in groups) == 0
    assert groups[-1].high == 100
    assert all(a.high + 1 == b.low for a, b in itertools.pairwise(groups))
    assert math.isclose(sum(g.probability for g in groups), 1, abs_tol=1e-6)


@given(distributions(), ages)
def test_a_group_boundary_agrees_with_probability_at_least(age: AgeDistribution, at: int) -> None:
    inside = min(max(at, 1), 100)
    upper = age.group([0, inside])[1].probability

    assert math.isclose(upper, age.probability_at_least(inside), abs_tol=1e-9)


@given(st.lists(distributions(), min_size=1, max_size=5), st.data())
def test_mixing_is_the_weighted_average(mixed: list[AgeDistribution], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 10), min_size=len(mixed), max_size=len(mixed)))
    expected = np.average(
        [d.probabilities.astype(np.float64) for d in mixed], axis=0, weights=weights
    )

    result = AgeDistribution.mix(mixed, weights)

    np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)
    means = [d.mean for d in mixed]
    assert min(means) - 1e-3 <= result.mean <= max(means) + 1e-3


@given(distributions())
def test_a_distribution_survives_json(age: AgeDistribution) -> None:
    text = json.dumps(age.to_dict(distribution=True))

    assert AgeDistribution.from_dict(json.loads(text)) == age


@given(distributions())
def test_moments_agree_with_a_direct_computation(age: AgeDistribution) -> None:
    p: NDArray[np.float64] = age.probabilities.astype(np.float64)
    mean = sum(a * q for a, q in enumerate(p))
    variance = sum((a - mean) ** 2 * q for a, q in enumerate(p))

    assert math.isclose(age.mean, mean, abs_tol=1e-6)
    assert math.isclose(age.std, math.sqrt(variance), abs_tol=1e-4)
    assert p[: int(age.median) + 1].sum() >= 0.5 - 1e-6
    assert p[: int(age.median)].sum() <= 0.5 + 1e-6


def test_a_normal_distribution_has_the_textbook_quantiles() -> None:
    age = AgeDistribution.from_normal(40, 5)

    assert age.interval(0.9) == AgeInterval(32, 48)
    assert math.isclose(age.probability_at_least(45), 1 - 0.8159, abs_tol=1e-3)  # z = 0.9


def test_mass_beyond_the_ends_goes_to_the_ends() -> None:
    assert AgeDistribution.from_normal(0, 3).probabilities[0] == pytest.approx(0.566, abs=1e-3)
    assert AgeDistribution.from_normal(110, 3).probabilities[100] == pytest.approx(1, abs=1e-3)


def test_an_abstention_passes_no_threshold() -> None:
    unknown = AgeDistribution.unknown()

    assert not unknown.probability_at_least(18) >= 0.5
    assert not unknown.probability_at_least(18) < 0.5
    assert unknown.interval(0.5) == AgeInterval(0, 100)
    assert math.isnan(unknown.mean)
    assert unknown.to_dict()["mean"] is None
    assert unknown.to_dict()["groups"][0]["probability"] is None


def test_abstentions_do_not_vote_in_a_mixture() -> None:
    sure = AgeDistribution.from_normal(30, 2)

    assert AgeDistribution.mix([sure, AgeDistribution.unknown()]) == sure
    assert AgeDistribution.mix([AgeDistribution.unknown()]).abstained


def test_a_coverage_table_widens_the_interval() -> None:
    plain = AgeDistribution.from_normal(40, 5)
    wide = AgeDistribution(plain.probabilities, coverage=Coverage((0, 0.9, 1), (0, 0.99, 1)))

    assert wide.interval(0.9) == plain.interval(0.99)
    assert wide.interval(1) == AgeInterval(0, 100)


@given(distributions(), levels)
def test_an_age_is_held_by_the_mass_of_its_own_band_and_the_ages_between_too(
    age: AgeDistribution, level: float
) -> None:
    plain = AgeDistribution(age.probabilities)
    held = {int(age.median)}
    for band in age.coverage.bands(level) if age.coverage is not None else ():
        low, high = plain.interval(band.mass)
        held |= {one for one in range(band.low, band.high + 1) if low <= one <= high}

    found = age.interval(level)

    if age.coverage is None:
        assert found == plain.interval(level)
    else:
        assert found == (min(held), max(held))


def test_children_can_be_held_further_than_adults() -> None:
    plain = AgeDistribution.from_normal(30, 6)
    one = Coverage((0.0, 0.9, 1.0), (0.0, 0.8, 1.0))
    young = Coverage((0.0, 0.9, 1.0), (0.0, 0.99, 1.0), (OlderAges(20, (0.0, 0.8, 1.0)),))

    wide = AgeDistribution(plain.probabilities, coverage=young).interval(0.9)

    assert AgeDistribution(plain.probabilities, coverage=one).interval(0.9) == (22, 38)
    assert wide == (15, 38)


def test_a_table_of_one_band_has_the_wire_form_of_two_rows() -> None:
    wire = AgeDistribution(
        AgeDistribution.from_normal(30, 4).probabilities,
        coverage=Coverage((0, 0.5, 1), (0, 0.4, 1)),
    ).to_dict(distribution=True)

    assert wire["coverage"] == [[0, 0.5, 1], [0, 0.4, 1]]


def test_the_wire_form_adds_a_row_for_each_older_band() -> None:
    table = Coverage((0.0, 0.5, 1.0), (0.0, 0.4, 1.0), (OlderAges(13, (0.0, 0.6, 1.0)),))

    rows = json.loads(json.dumps(table.to_rows()))

    assert rows == [[0, 0.5, 1], [0, 0.4, 1], [13, 0, 0.6, 1]]
    assert Coverage.from_rows(rows) == table


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1]], "got 1 rows"),
        ([[0, 1], [0, 1], []], "got 3 rows"),
        ([[0, 1], [0, 1], [13.5, 0, 1]], "got 3 rows"),
        ([[0, 1], [0, 0.5, 1]], "got 2 and 3"),
        ([[0, 1], [0, 1], [13, 0, 0.5, 1]], "got 2 and 3"),
        ([[0, 1], [0, 1], [13, 0, 1], [13, 0, 1]], "rising ages"),
        ([[0, 1], [0, 1], [0, 0, 1]], "rising ages"),
        ([[0, 1], [0, 1], [101, 0, 1]], "rising ages"),
        ([[0, 1], [0, 1], [13, 1, 0]], "must not fall"),
        ([[0, 1], [0, float("nan")]], "must not fall"),
        ([[0.1, 1], [0, 1]], "rise from 0 to 1"),
    ],
)
def test_what_is_no_coverage_table_is_refused(rows: list[list[float]], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Coverage.from_rows(rows)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (np.ones(100) / 100, r"shape \(101,\), got \(100,\)"),
        (np.ones(101), "sum 101"),
        (np.full(101, np.nan), "finite"),
        (np.r_[-0.5, 1.5, np.zeros(99)], "minimum -0.5"),
    ],
)
def test_what_is_no_distribution_is_refused(
    probabilities: NDArray[np.float64], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        AgeDistribution(probabilities.astype(np.float32))


@pytest.mark.parametrize("edges", [[], [18, 13], [0, 18, 18], [0, 101], [-1, 5]])
def test_impossible_age_groups_are_refused(edges: list[int]) -> None:
    with pytest.raises(ArgumentError, match="age groups"):
        age_group_starts(edges)


@pytest.mark.parametrize(
    ("female", "threshold", "label"),
    [
        (0.9, 0.75, "female"),
        (0.1, 0.75, "male"),
        (0.7, 0.75, "uncertain"),
        (0.3, 0.75, "uncertain"),
        (0.5, 0.5, "uncertain"),
        (0.51, 0.5, "female"),
    ],
)
def test_gender_is_uncertain_under_its_threshold(
    female: float, threshold: float, label: str
) -> None:
    estimate = GenderEstimate(female, threshold)

    assert estimate.label == label
    assert estimate.probability == max(female, 1 - female)


def test_the_wire_form_fits_its_own_json_schema() -> None:
    from pydantic import TypeAdapter

    from agelens.results import AnalysisDict

    face = Face(
        (1.0, 2.0, 33.3, 44.4),
        0.987654,
        Quality(31.9, 0.8, 0.5, 1.0, 2.0, 3.0),
        AgeDistribution.from_normal(30, 4),
        GenderEstimate(0.9, 0.75),
        np.arange(10, dtype=np.float32).reshape(5, 2),
    )
    good = Analysis("a.jpg", 100, 200, (face,), None, "m@1").to_dict(distribution=True)
    bad = Analysis("b.jpg", 0, 0, (), AnalysisError("empty", "0 bytes"), "m@1").to_dict()

    for wire in (good, bad):
        TypeAdapter(AnalysisDict).validate_python(json.loads(json.dumps(wire)), strict=True)
    assert list(good) == ["schema", "path", "width", "height", "model", "faces", "error"]
    assert good["faces"][0]["box"] == [1.0, 2.0, 33.3, 44.4]
    assert bad["error"] == {"code": "empty", "message": "0 bytes"}
    assert analysis_json_schema()["properties"]["faces"]["type"] == "array"


@given(distributions(), st.floats(0, 1), st.floats(0.5, 1), st.booleans())
@example(AgeDistribution.unknown(), 0.99999, 1.0, False)
@example(AgeDistribution.unknown(), 0.50001, 0.5, True)
@example(AgeDistribution.unknown(), 0.49999, 0.5, True)
def test_an_analysis_survives_json(
    age: AgeDistribution, female: float, threshold: float, is_seen: bool
) -> None:
    quality = Quality(100.4, 1.0, 0.5, 1.26, None, -3.0, is_seen, () if is_seen else ("blurred",))
    points = (np.arange(10).reshape(5, 2) / 3).astype(np.float32)
    face = Face(
        (0.04, 1.0, 30.06, 40.0), 0.93456, quality, age, GenderEstimate(female, threshold), points
    )
    plain = Face((0, 0, 9, 9), 1.0, quality, age, None, None, "whole_picture")
    analysis = Analysis("a.jpg", 640, 480, (face, plain), None, "m@1")
    failed = Analysis(None, 0, 0, (), AnalysisError("empty", "the file has 0 bytes"))

    for original in (analysis, failed):
        wire = original.to_dict(distribution=True)
        found = Analysis.from_dict(json.loads(json.dumps(wire)))

        assert found.to_dict(distribution=True) == wire
        assert [face.age for face in found.faces] == [face.age for face in original.faces]


def test_an_analysis_of_another_schema_is_refused() -> None:
    wire = Analysis("a.jpg", 1, 1).to_dict()
    wire["schema"] = "agelens.analysis/2"

    with pytest.raises(ArgumentError, match=r"agelens\.analysis/1"):
        Analysis.from_dict(wire)


def test_landmarks_of_a_face_cannot_be_written() -> None:
    face = Face(
        (0, 0, 1, 1),
        1,
        Quality(1, 1, 1),
        AgeDistribution.unknown(),
        None,
        np.zeros((5, 2), np.float32),
    )

    assert face.landmarks is not None
    with pytest.raises(ValueError, match="read-only"):
        face.landmarks[0, 0] = 1
