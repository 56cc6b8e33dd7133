"""A gate's limits: the bound is kept as often as promised, or the fit refuses with the numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("scipy", reason="needs the 'gate' extra")

from scipy.stats import beta, binom

from agelens.errors import ArgumentError, DataError
from agelens.evaluation.scored import ScoredFaces
from agelens.gate.fitting import fit_gate, highest_refusal, limits, lowest_limit
from agelens.gate.measuring import errors_allowed, measure_gate
from agelens.gate.policy import GatePolicy
from gate.people import crowd, faces_with

BOUND, CONFIDENCE = 0.05, 0.95
DRAWS = 500
SKILL = 3.0  # of crowd()
# Three standard errors over the 5 % of draws that may break the bound.
TOLERATED = 0.05 + 3 * float(np.sqrt(0.05 * 0.95 / DRAWS))


def fixed_sequence(cells: list[NDArray[np.float64]], grid: NDArray[np.float64]) -> float:
    """Learn-then-test word by word: from the strictest limit down, until a cell is not shown."""
    taken = float("nan")
    for limit in grid[::-1]:
        p_values = [binom.cdf((cell >= limit).sum(), len(cell), BOUND) for cell in cells]
        if max(p_values) > 1 - CONFIDENCE:
            break
        taken = float(limit)
    return taken


# --- the promise ----------------------------------------------------------------------------------


def test_limit_is_that_of_learn_then_test_word_by_word() -> None:
    for seed in range(3):
        faces = crowd(np.random.default_rng(seed), 300, 100)
        over, minors = faces.age[:, 18:].sum(axis=1), faces.age_max < 18
        cells = [over[minors]] + [over[minors & (faces.female_label == sex)] for sex in (0, 1)]

        fitted = fit_gate(faces, by=["gender"]).policy

        assert fitted.threshold == fixed_sequence(cells, limits("probability", 18))


@pytest.mark.parametrize("count", [59, 150, 600])
def test_bound_is_kept_at_least_as_often_as_the_confidence_says(count: int) -> None:
    rng = np.random.default_rng(count)
    grid, allowed = limits("probability", 18), errors_allowed(count, BOUND, CONFIDENCE)

    found = np.array(
        [lowest_limit(np.sort(rng.beta(1, 6, count)), allowed, grid) for _ in range(DRAWS)]
    )
    broken = (beta.sf(found, 1, 6) > BOUND).mean()

    assert broken <= TOLERATED


def test_bound_holds_for_all_groups_at_once_without_a_correction_for_their_number() -> None:
    rng = np.random.default_rng(5)
    grid, shapes, count = limits("probability", 18), (6.0, 5.0, 4.0, 3.5), 120
    allowed = errors_allowed(count, BOUND, CONFIDENCE)

    broken = 0
    for _ in range(DRAWS):
        limit = max(
            lowest_limit(np.sort(rng.beta(1, shape, count)), allowed, grid) for shape in shapes
        )
        broken += any(beta.sf(limit, 1, shape) > BOUND for shape in shapes)

    assert broken / DRAWS <= TOLERATED


def test_groups_that_are_equally_hard_keep_the_bound_too() -> None:
    rng = np.random.default_rng(6)
    grid, allowed = limits("probability", 18), errors_allowed(120, BOUND, CONFIDENCE)

    limit = [
        max(lowest_limit(np.sort(rng.beta(1, 6, 120)), allowed, grid) for _ in range(5))
        for _ in range(DRAWS)
    ]

    assert (beta.sf(limit, 1, 6) > BOUND).mean() <= TOLERATED


def test_whole_fit_keeps_its_bounds_on_draws_of_faces() -> None:
    rng = np.random.default_rng(7)
    accepted = refused = 0
    for _ in range(DRAWS):
        fitted = fit_gate(crowd(rng, 200, 400), by=["gender"]).policy
        assert fitted.refuse_under > 0
        accepted += beta.sf(fitted.accept_from, 1, SKILL) > BOUND
        refused += beta.cdf(fitted.refuse_under, SKILL, 1) > BOUND

    assert accepted / DRAWS <= TOLERATED
    assert refused / DRAWS <= TOLERATED


def test_limit_is_no_stricter_than_the_promise_needs() -> None:
    faces = crowd(np.random.default_rng(8), 2000, 500)

    fitted = fit_gate(faces).policy

    assert fitted.threshold is not None
    assert 0.035 < beta.sf(fitted.threshold, 1, SKILL) < 0.05


def test_promise_on_other_faces_is_checked_by_the_report() -> None:
    fitted = fit_gate(crowd(np.random.default_rng(9), 400, 400), by=["gender"]).policy

    like = measure_gate(crowd(np.random.default_rng(10), 400, 400), fitted, samples=20)
    unlike = measure_gate(crowd(np.random.default_rng(10), 400, 400, skill=1.2), fitted, samples=20)

    assert "broken" not in {check.verdict for check in like.checks}
    assert unlike.checks[0].verdict == "broken"
    assert len(like.checks) == 12  # both errors, two bands, everybody and two genders


def test_limit_lies_above_the_score_that_must_not_be_accepted() -> None:
    grid = limits("probability", 18)

    assert lowest_limit(np.array([0.1, 0.25, 0.5]), 0, grid) == 0.5001
    assert lowest_limit(np.array([0.1, 0.25, 0.49995]), 0, grid) == 0.5
    assert lowest_limit(np.array([0.1, 0.25, 0.5]), 1, grid) == 0.2501
    assert lowest_limit(np.array([0.1]), 1, grid) == 0.0001
    assert np.isnan(lowest_limit(np.array([0.1, 0.9999]), 0, grid))


# --- refusing -------------------------------------------------------------------------------------


def easy(minors: int, **labels: Any) -> Any:
    """So many minors of 15 who are all told, and twenty adults who are too."""
    count = minors + 20
    return faces_with(
        [0.01] * minors + [0.999] * 20, [15] * minors + [40] * 20, female=[0] * count, **labels
    )


def test_with_59_minors_a_bound_of_5_percent_can_be_promised_and_with_58_not() -> None:
    assert fit_gate(easy(59)).policy.threshold is not None

    with pytest.raises(DataError) as caught:
        fit_gate(easy(58))

    message = str(caught.value)
    assert "needs 59 independent faces" in message
    assert "58  aged 13-17" in message
    assert "--max-false-accept" in message


def test_copies_of_a_face_do_not_make_up_for_faces() -> None:
    copied = easy(80, clusters=[row // 2 for row in range(80)] + list(range(100, 120)))

    with pytest.raises(DataError, match="40  aged 13-17"):
        fit_gate(copied)


def test_a_group_that_is_too_small_is_named() -> None:
    faces = replace(easy(100), female_label=np.array([0] * 70 + [1] * 30 + [0] * 20, np.int8))

    fit_gate(faces)
    with pytest.raises(DataError, match="30  aged 13-17, gender=female"):
        fit_gate(faces, by=["gender"])


def test_labels_across_the_required_age_are_no_minors() -> None:
    straddling = easy(70, ends=[19] * 70 + [40] * 20)

    with pytest.raises(DataError, match="70 whose label is a range across the required age"):
        fit_gate(straddling)


def test_small_children_cannot_stand_in_for_those_next_to_the_required_age() -> None:
    toddlers = faces_with([0.01] * 500 + [0.999] * 20, [3] * 500 + [40] * 20)

    with pytest.raises(DataError, match=r"\b0  aged 13-17"):
        fit_gate(toddlers)

    fit = fit_gate(toddlers, minors=(0, 17))
    assert any("says little of those just under 18" in note for note in fit.notes)


def decades(known: int = 0, *, first: int = 0, female: bool = False) -> ScoredFaces:
    """Faces in ranges of ages: 100 of ``first`` to 9, 100 of 10 to 19, 100 of 20 to 29; and so many
    of 15 to the year.
    """
    starts = [first] * 100 + [10] * 100 + [20] * 100 + [15] * known
    ends = [9] * 100 + [19] * 100 + [29] * 100 + [15] * known
    over = [0.01] * 100 + [0.4] * 100 + [0.9] * 100 + [0.3] * known
    sexes = [int(female)] * len(starts)
    return faces_with(over, starts, ends=ends, female=sexes)


def test_labels_that_leave_out_those_next_to_the_age_make_no_promise_on_all() -> None:
    with pytest.raises(DataError) as caught:
        fit_gate(decades(), minors=(0, 17), by=["gender"])

    message = " ".join(str(caught.value).split())
    assert "a range across 18 cannot be put on a side and was left out" in message
    assert (
        "59 independent faces are needed, and there are 0 aged 13-17, and 100 left out" in message
    )
    assert "0 aged 13-17, gender=male, and 100 left out" in message
    assert "hold only for those who are easy to tell" in message


def test_with_enough_known_ages_next_to_the_age_ranges_are_only_left_out() -> None:
    with pytest.raises(DataError, match="58  aged 13-17, and 100 left out"):
        fit_gate(decades(58), minors=(0, 17))

    fit = fit_gate(decades(59), minors=(0, 17))

    assert fit.policy.threshold == 0.3001
    assert fit.policy.fit is not None
    assert fit.policy.fit.promises[0].covered == (0, 15)
    assert "Not counted: 100 whose label is a range across the required age." in fit.notes


def test_ranges_that_end_at_the_required_age_hold_those_next_to_it() -> None:
    starts, ends = (
        [0] * 100 + [10] * 100 + [15] + [20] * 100,
        [9] * 100 + [19] * 100 + [24] + [29] * 100,
    )
    over = [0.01] * 100 + [0.4] * 100 + [0.5] + [0.9] * 100

    fit = fit_gate(faces_with(over, starts, ends=ends), 20, minors=(0, 19))

    assert fit.policy.fit is not None
    assert fit.policy.fit.promises[0].covered == (0, 19)
    assert fit.policy.fit.left_out["label_straddles"] == 1


def test_a_gate_for_the_young_needs_known_ages_over_its_age() -> None:
    with pytest.raises(DataError, match="0  aged 13-17, and 100 left out"):
        fit_gate(decades(), 13, admit="under", adults=(13, 100))


def test_promise_on_faces_far_from_the_age_says_which_they_were() -> None:
    toddlers = faces_with([0.01] * 500 + [0.999] * 20, [3] * 250 + [9] * 250 + [40] * 20)
    utkface_like = faces_with([0.01] * 500 + [0.999] * 20, [3] * 250 + [17] * 250 + [40] * 20)

    far, near = (fit_gate(faces, minors=(0, 17)) for faces in (toddlers, utkface_like))

    assert far.policy.fit is not None
    assert far.policy.fit.promises[0].covered == (3, 9)
    words = "The promise on those aged 0-17 stands on faces aged 3-9 only."
    assert words in far.notes
    assert not any("stands on faces" in note for note in near.notes)


def test_a_fitted_limit_that_is_changed_by_hand_is_refused() -> None:
    policy = fit_gate(crowd(np.random.default_rng(30), 200, 200)).policy
    assert policy.threshold is not None

    assert policy.changed(name="renamed").fit == policy.fit
    with pytest.raises(ArgumentError, match="threshold was changed after the fit"):
        policy.changed(threshold=policy.threshold - 0.2)
    with pytest.raises(ArgumentError, match=r"frames\.correlation was changed after the fit"):
        policy.changed(frames={"correlation": 0.0})


def test_model_that_takes_minors_for_adults_is_refused() -> None:
    blind = faces_with([1.0] * 100 + [1.0] * 100, [15] * 100 + [40] * 100)

    with pytest.raises(DataError, match=r"no limit keeps the bound.*100 reach even the strictest"):
        fit_gate(blind)


def test_gate_that_would_accept_nobody_is_refused() -> None:
    unsure = faces_with([0.6] * 100 + [0.55] * 100, [15] * 100 + [40] * 100)

    with pytest.raises(DataError, match="this gate would accept nobody"):
        fit_gate(unsure)


def test_without_adults_there_is_no_price() -> None:
    with pytest.raises(DataError, match="the price in refusals cannot be shown"):
        fit_gate(faces_with([0.01] * 100, [15] * 100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_false_accept": 0.0}, "max_false_accept must be between 0 and 1, got 0"),
        ({"confidence": 95.0}, "confidence must be between 0 and 1, got 95"),
        ({"minors": (15, 19)}, "the band minors must rise and stay within 0 to 17"),
        ({"adults": (17, 20)}, "the band adults must rise and stay within 18 to 100"),
        ({"by": ["skin"]}, "no column 'skin'"),
        ({"admit": "under", "rule": "challenge"}, "does not go with rule = 'challenge'"),
        ({"admit": "under", "minors": (15, 19)}, "the band minors must rise and stay within 0 to"),
    ],
)
def test_wrong_question_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        fit_gate(easy(100), **options)


# --- what is counted ------------------------------------------------------------------------------


def test_those_next_to_the_required_age_decide_the_limit() -> None:
    rng = np.random.default_rng(3)
    hard = crowd(rng, 200, 300)
    children = faces_with(
        np.concatenate([hard.age[:, 30], np.zeros(2000)]),
        np.concatenate([hard.age_min, np.full(2000, 4)]),
    )

    assert fit_gate(children).policy.threshold == fit_gate(hard).policy.threshold
    assert fit_gate(children, minors=(0, 17)).policy.accept_from < 0.4  # type: ignore[operator]


def test_hardest_group_decides_the_limit() -> None:
    rng = np.random.default_rng(4)
    over = np.concatenate([rng.beta(1, 6, 200), rng.beta(1, 2, 200), rng.beta(6, 1, 200)])
    ages = np.array([15] * 400 + [40] * 200)
    faces = faces_with(over, ages, groups=["A"] * 200 + ["B"] * 200 + ["A", "B"] * 100)

    apart = fit_gate(faces, by=["race"]).policy
    together = fit_gate(faces).policy
    only = fit_gate(faces.take(np.r_[200:600])).policy

    assert apart.threshold == only.threshold
    assert together.accept_from < apart.accept_from  # type: ignore[operator]


def test_worst_face_of_a_cluster_is_the_one_that_counts() -> None:
    rng = np.random.default_rng(11)
    over = rng.beta(1, 6, (200, 2))
    pairs = faces_with(
        [*over.ravel(), *[0.999] * 50],
        [15] * 400 + [40] * 50,
        clusters=[*np.repeat(np.arange(200), 2), *range(200, 250)],
    )
    worst = faces_with([*over.max(axis=1), *[0.999] * 50], [15] * 200 + [40] * 50)

    assert fit_gate(pairs).policy.threshold == fit_gate(worst).policy.threshold


def test_order_of_the_faces_does_not_matter() -> None:
    faces = crowd(np.random.default_rng(12), 200, 200)
    shuffled = faces.take(np.random.default_rng(0).permutation(400))

    assert fit_gate(faces, by=["gender"]).policy == fit_gate(shuffled, by=["gender"]).policy


@settings(max_examples=15)
@given(strict=st.floats(0.02, 0.1), lax=st.floats(0.1, 0.5), seed=st.integers(0, 20))
def test_stricter_bound_never_gives_a_laxer_limit(strict: float, lax: float, seed: int) -> None:
    faces = crowd(np.random.default_rng(seed), 200, 200)

    low = fit_gate(faces, max_false_accept=lax).policy
    high = fit_gate(faces, max_false_accept=strict).policy

    assert high.accept_from >= low.accept_from  # type: ignore[operator]


# --- refusing outright ----------------------------------------------------------------------------


def test_adults_are_refused_outright_no_more_often_than_promised() -> None:
    faces = crowd(np.random.default_rng(13), 200, 400)

    policy = fit_gate(faces, max_false_refuse=0.05).policy
    over, adults = faces.age[:, 18:].sum(axis=1), faces.age_min >= 18

    assert policy.refuse_below is not None
    assert 0 < policy.refuse_below < policy.accept_from  # type: ignore[operator]
    assert (over[adults] < policy.refuse_below).sum() <= errors_allowed(adults.sum(), 0.05, 0.95)
    for ages in ((18, 24), (18, 100)):
        (promise,) = [
            one
            for one in policy.fit.promises  # type: ignore[union-attr]
            if one.error == "false_refusal" and one.ages == ages
        ]
        assert promise.upper <= 0.05


def test_worst_face_of_an_adult_is_the_one_that_counts_for_refusals() -> None:
    rng = np.random.default_rng(17)
    over = rng.beta(3, 1, (200, 2))
    minors, ages = rng.beta(1, 3, 100), [15] * 100
    pairs = faces_with(
        [*minors, *over.ravel()],
        [*ages, *[20] * 400],
        clusters=[*range(100), *np.repeat(np.arange(100, 300), 2)],
    )
    worst = faces_with([*minors, *over.min(axis=1)], [*ages, *[20] * 200])

    limits_of = [fit_gate(faces).policy.refuse_below for faces in (pairs, worst)]

    assert limits_of[0] == limits_of[1] != 0.0


def test_with_too_few_adults_nobody_is_refused_outright_and_the_fit_says_so() -> None:
    fit = fit_gate(easy(100))

    assert fit.policy.refuse_under == 0.0
    assert any("needs 59 faces of each kind" in note for note in fit.notes)
    assert fit.policy.fit is not None
    assert {one.error for one in fit.policy.fit.promises} == {"false_acceptance"}


def test_highest_refusal_leaves_no_more_than_allowed_below_it() -> None:
    scores = np.array([0.1, 0.2, 0.30004, 0.4])
    grid = limits("probability", 18)

    assert highest_refusal(scores, 0, grid) == 0.1
    assert highest_refusal(scores, 2, grid) == 0.3
    assert highest_refusal(np.array([0.00001]), 0, grid) == 0.0


# --- the policy -----------------------------------------------------------------------------------


def test_challenge_rule_fits_a_buffer_age() -> None:
    rng = np.random.default_rng(14)
    # The expected age is 10 + 20 P: a fifth of the minors look 18 or over, none 26.
    faces = faces_with(
        np.concatenate([rng.uniform(0, 0.5, 300), np.full(200, 0.99)]),
        np.concatenate([np.full(300, 15), np.full(200, 40)]),
    )

    policy = fit_gate(faces, rule="challenge").policy

    assert policy.rule == "challenge"
    assert policy.threshold is None
    assert policy.challenge_age is not None
    assert 19.3 < policy.challenge_age < 20.1
    assert policy.challenge_age == round(policy.challenge_age, 1)


def test_base_policy_keeps_its_other_fields() -> None:
    base = GatePolicy.load("site-18")
    faces = crowd(np.random.default_rng(15), 100, 100)

    policy = fit_gate(faces, base=base, name="ours").policy

    assert policy.name == "ours"
    assert policy.token == base.token
    assert policy.liveness == "challenge"
    assert policy.model is not None
    assert policy.model.sha256 == faces.provenance.model_sha256
    assert policy.require_ready() == policy.model
    assert policy.fit is not None
    assert policy.fit.data[0].name == "faces.parquet"


def test_fitted_policy_survives_being_written(tmp_path: Any) -> None:
    policy = fit_gate(crowd(np.random.default_rng(16), 200, 200), by=["gender"]).policy

    policy.save(tmp_path / "policy.toml")

    assert GatePolicy.load(tmp_path / "policy.toml").sha256 == policy.sha256


@pytest.mark.parametrize("required_age", [18, 21])
def test_name_and_summary_of_a_challenge_speak_of_the_fitted_age(required_age: int) -> None:
    rng = np.random.default_rng(14)
    # The expected age is 10 + 20 P; for the bound it has to be a little under 20, or 28.
    top = 0.5 if required_age == 18 else 0.95
    faces = faces_with(
        np.concatenate([rng.uniform(0, top, 300), np.full(200, 0.99)]),
        np.concatenate([np.full(300, required_age - 2), np.full(200, 40)]),
    )
    base = GatePolicy.load("challenge-25").changed(required_age=required_age)

    fit = fit_gate(faces, base=base)
    policy, age = fit.policy, f"{fit.policy.challenge_age:g}"

    assert age not in ("25", "18", "21")
    assert policy.name == f"challenge-{age}"
    assert policy.summary == (
        f"The retail rule 'who looks under {age} shows a document': accept from an expected age of "
        f"{age}."
    )
    assert any(f"is 25, the fitted one {age}" in note for note in fit.notes)
    assert GatePolicy.from_table(policy.to_table()) == policy


def test_a_name_that_is_given_or_says_nothing_of_the_buffer_age_is_kept() -> None:
    faces = crowd(np.random.default_rng(20), 300, 300)
    base = GatePolicy.load("challenge-25")

    def named(**fields: Any) -> str:
        options = {"name": fields.pop("given", None)}
        return fit_gate(faces, base=base.changed(**fields), **options).policy.name

    assert named(given="door 25") == "door 25"
    assert named(name="kiosk-18, room 1.25") == "kiosk-18, room 1.25"
    assert named(name="room 125") == "room 125"


# --- keeping grown-ups out ------------------------------------------------------------------------


def mirrored(faces: ScoredFaces) -> ScoredFaces:
    """The same crowd on the other side of 18: 17 for 18, 13 for 22, and the chances likewise."""
    return faces_with(
        1 - faces.age[:, 18:].sum(axis=1),
        35 - faces.age_min,
        female=faces.female_label,
        clusters=faces.clusters,
    )


def test_keeping_grown_ups_out_is_keeping_minors_out_in_a_mirror() -> None:
    rng = np.random.default_rng(21)
    over = np.concatenate([rng.beta(1, 3, 300), rng.beta(3, 1, 400)])
    ages = np.concatenate([rng.integers(13, 18, 300), rng.integers(18, 36, 400)])
    faces = faces_with(over, ages, female=rng.integers(0, 2, 700))

    straight = fit_gate(faces, by=["gender"]).policy
    turned = fit_gate(mirrored(faces), by=["gender"], admit="under").policy

    assert turned.threshold == straight.threshold
    assert turned.refuse_below == pytest.approx(straight.refuse_below, abs=1.01e-4)
    assert turned.fit is not None
    assert straight.fit is not None
    assert turned.fit.minor_band == (11, 17)
    assert turned.fit.adult_band == (18, 22)
    assert [(one.error, one.group, one.faces, one.errors) for one in turned.fit.promises] == [
        (one.error, one.group, one.faces, one.errors) for one in straight.fit.promises
    ]
    assert {one.ages for one in turned.fit.promises} == {(18, 100), (18, 22), (0, 17), (11, 17)}


def test_limit_for_the_young_is_that_of_learn_then_test_word_by_word() -> None:
    rng = np.random.default_rng(22)
    under = np.concatenate([rng.beta(3, 1, 200), rng.beta(1, 3, 300)])
    faces = faces_with(1 - under, [*[8] * 200, *rng.integers(18, 23, 300)])
    grown = faces.age_min >= 18
    chances = faces.age[:, :18].astype(np.float64).sum(axis=1)

    fitted = fit_gate(faces, admit="under").policy

    assert fitted.threshold == fixed_sequence([chances[grown]], limits("probability", 18))
    assert fitted.name == "under-18"
    assert fitted.admit == "under"


def test_whole_fit_keeps_grown_ups_out_as_often_as_it_promises() -> None:
    rng = np.random.default_rng(23)
    broken = 0
    for _ in range(DRAWS):
        under = np.concatenate([rng.beta(SKILL, 1, 100), rng.beta(1, SKILL, 200)])
        faces = faces_with(1 - under, [*[15] * 100, *rng.integers(18, 23, 200)])
        fitted = fit_gate(faces, admit="under", max_false_refuse=None).policy
        broken += beta.sf(fitted.accept_from, 1, SKILL) > BOUND

    assert broken / DRAWS <= TOLERATED


def test_too_few_grown_ups_next_to_the_age_are_refused_by_their_number() -> None:
    old = faces_with([0.99] * 300 + [0.01] * 50, [60] * 300 + [9] * 50)

    with pytest.raises(DataError, match=r"\b0  aged 18-22\n.*a wider --adult-band"):
        fit_gate(old, admit="under")

    fit = fit_gate(old, admit="under", adults=(18, 100))
    assert any("all 18 or over together, grown-ups included" in note for note in fit.notes)
    assert any("of those under 18 in these data are not accepted" in note for note in fit.notes)


def test_promise_to_keep_grown_ups_out_is_checked_on_other_faces() -> None:
    fitted = fit_gate(mirrored(young(24)), by=["gender"], admit="under").policy

    like = measure_gate(mirrored(young(25)), fitted, samples=20)
    unlike = measure_gate(mirrored(young(25, skill=1.2)), fitted, samples=20)

    assert "broken" not in {check.verdict for check in like.checks}
    assert unlike.checks[0].verdict == "broken"
    assert unlike.checks[0].promise.ages == (18, 100)


def young(seed: int, *, skill: float = SKILL) -> ScoredFaces:
    """A crowd that has a mirror: nobody is over 35."""
    faces = crowd(np.random.default_rng(seed), 400, 400, skill=skill)
    return replace(
        faces, age_min=np.minimum(faces.age_min, 35), age_max=np.minimum(faces.age_max, 35)
    )
