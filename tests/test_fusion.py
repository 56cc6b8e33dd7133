"""Frames of one person: they count for more than one frame, and for less than so many people."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agelens.errors import ArgumentError
from agelens.fusion import effective_frames, estimate_correlation, fuse, fuse_genders
from agelens.results import AGE_COUNT, AgeDistribution, Coverage, GenderEstimate

correlations = st.floats(0, 1)


@st.composite
def ages(draw: st.DrawFn) -> AgeDistribution:
    """Distributions with peaks, plateaus and empty ages."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    weights = rng.gamma(draw(st.sampled_from([0.05, 0.5, 5.0])), size=AGE_COUNT)
    return AgeDistribution.from_weights(weights + 1e-12)


frames = st.lists(ages(), min_size=1, max_size=6)


# --- properties -----------------------------------------------------------------------------------


@given(ages(), correlations)
def test_one_frame_is_itself(age: AgeDistribution, rho: float) -> None:
    fused = fuse([age], correlation=rho)

    assert fused.age == age
    assert (fused.frames, fused.effective) == (1, 1)


@given(ages(), st.integers(2, 30))
def test_identical_frames_do_not_sharpen_when_all_error_is_shared(
    age: AgeDistribution, count: int
) -> None:
    fused = fuse([age] * count, correlation=1.0)

    np.testing.assert_allclose(fused.age.probabilities, age.probabilities, atol=2e-5)
    assert fused.effective == pytest.approx(1)


@given(frames, correlations, st.randoms())
def test_the_order_of_the_frames_does_not_matter(
    given_frames: list[AgeDistribution], rho: float, random: object
) -> None:
    shuffled = list(given_frames)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert fuse(shuffled, correlation=rho) == fuse(given_frames, correlation=rho)


@given(frames, st.integers(0, 3), correlations)
def test_frames_that_abstain_change_nothing(
    given_frames: list[AgeDistribution], more: int, rho: float
) -> None:
    with_gaps = [AgeDistribution.unknown()] * more + given_frames + [AgeDistribution.unknown()]

    assert fuse(with_gaps, correlation=rho) == fuse(given_frames, correlation=rho)


@given(st.integers(1, 1000), correlations)
def test_frames_are_worth_between_one_and_their_number(count: int, rho: float) -> None:
    worth = effective_frames(count, rho)

    assert 1 - 1e-9 <= worth <= count
    if rho > 0:
        assert worth <= 1 / rho + 1e-6


# --- against independent computations -------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "rho", "worth"),
    [(1, 0.3, 1), (5, 0, 5), (5, 1, 1), (10, 0.5, 10 / 5.5), (4, 0.9, 4 / 3.7)],
)
def test_how_much_frames_are_worth_by_hand(count: int, rho: float, worth: float) -> None:
    assert effective_frames(count, rho) == pytest.approx(worth)


def test_without_correlation_it_is_the_product() -> None:
    rng = np.random.default_rng(3)
    rows = rng.dirichlet(np.full(AGE_COUNT, 5.0), size=3)
    product = rows.prod(axis=0) / rows.prod(axis=0).sum()

    fused = fuse([AgeDistribution.from_weights(row) for row in rows], correlation=0.0)

    np.testing.assert_allclose(fused.age.probabilities, product, atol=1e-5)


@pytest.mark.parametrize(("count", "rho"), [(2, 0.0), (4, 0.5), (10, 0.8), (10, 1.0)])
def test_normal_frames_give_the_normal_of_the_design_effect(count: int, rho: float) -> None:
    spread = 5.0
    centres = 30 + np.linspace(-3, 3, count)

    fused = fuse([AgeDistribution.from_normal(c, spread) for c in centres], correlation=rho)

    assert fused.age.mean == pytest.approx(30, abs=0.02)
    assert fused.age.std == pytest.approx(spread * math.sqrt((1 + (count - 1) * rho) / count), 0.02)


@pytest.mark.parametrize("rho", [0.3, 0.7])
def test_fused_distributions_of_correlated_errors_stay_calibrated(rho: float) -> None:
    """4,000 people with ten frames whose errors are drawn with the stated correlation."""
    rng = np.random.default_rng(11)
    people, count, spread = 4000, 10, 6.0
    shared = rng.normal(0, spread * math.sqrt(rho), (people, 1))
    own = rng.normal(0, spread * math.sqrt(1 - rho), (people, count))
    truth = rng.uniform(35, 65, people)
    held = {"stated": 0, "as if independent": 0}
    for person in range(people):
        seen = truth[person] + shared[person] + own[person]
        rows = [AgeDistribution.from_normal(value, spread) for value in seen]
        for name, assumed in (("stated", rho), ("as if independent", 0.0)):
            age = fuse(rows, correlation=assumed).age
            below = np.cumsum(age.probabilities)
            place = np.interp(truth[person] + 0.5, np.arange(1, AGE_COUNT + 1), below)
            held[name] += 0.05 <= place <= 0.95

    assert held["stated"] / people == pytest.approx(0.9, abs=0.015)
    assert held["as if independent"] / people < 0.75


def test_one_frame_cannot_veto_an_age_for_all_others() -> None:
    sure = AgeDistribution.from_weights(np.eye(AGE_COUNT)[30])
    others = [AgeDistribution.from_normal(20, 3)] * 9

    assert fuse([*others, sure], correlation=0.9).age.probability_at_least(25) < 0.5


def test_no_frame_with_an_estimate_is_an_abstention() -> None:
    for given_frames in ([], [AgeDistribution.unknown()] * 3):
        fused = fuse(given_frames, correlation=0.5)
        assert fused.age.abstained
        assert (fused.frames, fused.effective) == (0, 0)


def test_a_shared_conformal_table_is_kept() -> None:
    table = Coverage((0.0, 0.9, 1.0), (0.0, 0.95, 1.0))
    other = Coverage((0.0, 0.9, 1.0), (0.0, 0.97, 1.0))
    weights = AgeDistribution.from_normal(30, 4).probabilities
    frame = AgeDistribution(weights, coverage=table)

    assert fuse([frame, frame], correlation=0.5).age.coverage == table
    mixed = fuse([frame, AgeDistribution(weights, coverage=other)], correlation=0.5)
    assert mixed.age.coverage is None


@pytest.mark.parametrize("rho", [-0.1, 1.1, math.nan])
def test_an_impossible_correlation_is_refused(rho: float) -> None:
    with pytest.raises(ArgumentError, match=r"within 0\.\.1"):
        fuse([AgeDistribution.from_normal(20, 3)], correlation=rho)


# --- the correlation ------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8, 0.95])
def test_the_correlation_of_drawn_errors_is_found(rho: float) -> None:
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 9, 3000)
    people = np.repeat(np.arange(3000), counts)
    shared = rng.normal(0, math.sqrt(rho), 3000)[people]
    errors = 4 + 5 * (shared + rng.normal(0, math.sqrt(1 - rho), len(people)))

    assert estimate_correlation(errors, people) == pytest.approx(rho, abs=0.03)


def test_the_published_example_of_the_intraclass_correlation() -> None:
    """Six targets and four ratings, Shrout and Fleiss 1979, table 2: ICC(1,1) = .17."""
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    people = np.repeat(np.arange(6), 4)

    assert estimate_correlation(np.ravel(ratings), people) == pytest.approx(0.17, abs=0.005)


@pytest.mark.parametrize(
    ("errors", "people"),
    [
        ([1.0, 2.0], ["a"]),
        ([1.0, 2.0], ["a", "a"]),
        ([1.0, 2.0], ["a", "b"]),
        ([1.0, math.nan, 2.0], ["a", "a", "b"]),
        ([1.0, 1.0, 1.0], ["a", "a", "b"]),
    ],
    ids=["lengths", "one person", "one frame each", "not finite", "no spread"],
)
def test_errors_that_say_nothing_of_the_correlation_are_refused(
    errors: list[float], people: list[str]
) -> None:
    with pytest.raises(ArgumentError):
        estimate_correlation(errors, people)


# --- gender ---------------------------------------------------------------------------------------


def test_genders_of_independent_frames_are_pooled_by_bayes() -> None:
    shares = [0.9, 0.8, 0.4]
    female, male = math.prod(shares), math.prod(1 - share for share in shares)

    fused = fuse_genders([GenderEstimate(share) for share in shares], correlation=0.0)

    assert fused is not None
    assert fused.female_probability == pytest.approx(female / (female + male))


def test_genders_of_frames_with_one_error_are_no_surer_than_one_frame() -> None:
    frames = [GenderEstimate(0.7, 0.65)] * 9

    fused = fuse_genders(frames, correlation=1.0)

    assert fused is not None
    assert fused.female_probability == pytest.approx(0.7)
    assert (fused.threshold, fused.label) == (0.65, "female")


def test_genders_that_are_certain_stay_probabilities() -> None:
    fused = fuse_genders([GenderEstimate(1.0), GenderEstimate(0.0)], correlation=0.5)

    assert fused is not None
    assert fused.female_probability == pytest.approx(0.5)
    assert fuse_genders([], correlation=0.5) is None
    with pytest.raises(ArgumentError):
        fuse_genders([], correlation=1.5)
