from __future__ import annotations

import itertools
import json
import math
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agelens.errors import ArgumentError
from agelens.results import AgeDistribution
from agelens.video.audience import (
    Audience,
    AudiencePlan,
    AudienceState,
    GroupRule,
    GroupShare,
    age_groups,
    number_chances,
)
from agelens.video.camera import Moment
from video.moments import NOON, moment, person

CHILDREN = GroupRule("children", 0, 12)
PROBABILITIES = st.lists(st.floats(0, 1), max_size=7)


def state_of(
    *moments: Moment, plan: AudiencePlan | None = None, after_s: float = 0.0
) -> AudienceState:
    audience = Audience(plan or AudiencePlan(groups=(CHILDREN, *age_groups((0, 18, 65)))))
    for one in moments:
        audience.add(one)
    return audience.state(NOON + timedelta(seconds=after_s))


def two_ages(young: float) -> AgeDistribution:
    """Eight years old with a probability, else forty."""
    weights = np.zeros(101)
    weights[8], weights[40] = young, 1 - young
    return AgeDistribution.from_weights(weights)


def share(state: AudienceState, name: str) -> GroupShare:
    found = state.group(name)
    assert found is not None
    return found


# --- sums of probabilities ------------------------------------------------------------------------


def test_a_group_counts_probabilities_and_not_labels() -> None:
    state = state_of(moment([person(two_ages(0.4)) for _ in range(5)]))

    # By labels all five would be forty.
    assert share(state, "children").count == pytest.approx(2.0)
    assert share(state, "children").share == pytest.approx(0.4)
    assert share(state, "18-64").count == pytest.approx(3.0)


def test_groups_of_ages_and_perceived_gender_multiply() -> None:
    plan = AudiencePlan(
        groups=(GroupRule("girls", 0, 12, "female"), GroupRule("men", 18, 100, "male"))
    )
    state = state_of(moment([person(two_ages(0.4), female=0.9)]), plan=plan)

    assert share(state, "girls").count == pytest.approx(0.36)
    assert share(state, "men").count == pytest.approx(0.06)


def test_an_uncertain_gender_counts_with_its_probability_and_is_told_as_uncertain() -> None:
    state = state_of(moment([person(female=0.6), person(female=0.99), person(female=None)]))

    assert state.female_share == pytest.approx((0.6 + 0.99) / 2)
    assert state.gender_uncertain == 2
    assert state.female is not None
    assert state.female.known == 2


@given(PROBABILITIES)
def test_the_chances_of_numbers_are_those_of_all_outcomes(probabilities: list[float]) -> None:
    expected = np.zeros(len(probabilities) + 1)
    for outcome in itertools.product((False, True), repeat=len(probabilities)):
        chance = math.prod(
            p if inside else 1 - p for p, inside in zip(probabilities, outcome, strict=True)
        )
        expected[sum(outcome)] += chance

    assert number_chances(probabilities) == pytest.approx(expected)


@given(PROBABILITIES, st.integers(0, 4), st.floats(0.001, 1), st.integers(0, 8))
def test_what_is_surely_so_holds_whatever_those_without_an_estimate_are(
    probabilities: list[float], unknown: int, at_least: float, count: int
) -> None:
    told = GroupShare.of("g", [*probabilities, *[None] * unknown])
    outside = GroupShare.of("g", [*probabilities, *[0.0] * unknown])
    inside = GroupShare.of("g", [*probabilities, *[1.0] * unknown])

    for kind in ("at_least", "under"):
        worst = outside if kind == "at_least" else inside
        assert told.chance_of_count(**{kind: count}) == pytest.approx(
            worst.chance_of_count(**{kind: count})
        )
        assert told.chance_of_share(**{kind: at_least}) == pytest.approx(
            worst.chance_of_share(**{kind: at_least})
        )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.integers(0, 8))
def test_reaching_a_number_and_staying_under_it_are_opposites(
    probabilities: list[float], count: int
) -> None:
    told = GroupShare.of("g", probabilities)

    both = told.chance_of_count(at_least=count) + told.chance_of_count(under=count)

    assert both == pytest.approx(1)


@pytest.mark.parametrize("people", range(1, 12))
def test_one_of_n_people_is_a_share_of_one_nth(people: int) -> None:
    told = GroupShare.of("g", [1.0] + [0.0] * (people - 1))

    assert told.chance_of_share(at_least=1 / people) == pytest.approx(1)
    assert told.chance_of_share(at_least=1 / people + 1e-3) == pytest.approx(0)
    assert told.chance_of_share(under=1 / people) == pytest.approx(0)


def test_seven_of_25_are_28_percent_though_their_product_is_a_digit_more() -> None:
    told = GroupShare.of("g", [1.0] * 7 + [0.0] * 18)

    assert told.chance_of_share(at_least=0.28) == 1


@given(st.permutations([0.1, 0.2, 0.3, 0.7, 0.9, 1 / 3, 1 / 7]))
def test_the_order_of_people_changes_no_last_digit(shuffled: list[float]) -> None:
    assert number_chances(shuffled).tolist() == number_chances(sorted(shuffled)[::-1]).tolist()


def test_confidence_falls_with_doubt_and_with_faces_that_tell_nothing() -> None:
    sure = GroupShare.of("g", [0.98])
    doubtful = GroupShare.of("g", [0.5])
    half_known = GroupShare.of("g", [0.98, None])

    assert sure.confidence == pytest.approx(0.98)
    assert doubtful.confidence == 0
    assert half_known.confidence == pytest.approx(0.49)
    assert GroupShare.of("g", []).confidence == 0


def test_a_face_without_an_estimate_is_counted_and_has_no_share() -> None:
    state = state_of(moment([person(None, None), person(AgeDistribution.unknown(), None)]))

    assert state.people == 2
    assert share(state, "children").share is None
    assert share(state, "children").known == 0


# --- who counts -----------------------------------------------------------------------------------


def test_staff_and_people_outside_the_zones_do_not_count() -> None:
    people = [
        person(zones=("front",)),
        person(zones=("back",)),
        person(staff=True, zones=("front",)),
    ]

    assert state_of(moment(people)).people == 2
    assert state_of(moment(people), plan=AudiencePlan(zones=("front",))).people == 1


def test_groups_can_be_made_of_those_who_look() -> None:
    people = [person(8), person(40, attentive=False), person(41, attentive=False)]
    plan = AudiencePlan(groups=(CHILDREN,), counted="attentive")

    state = state_of(moment(people), plan=plan)

    assert (state.people, state.attentive) == (3, 1)
    assert share(state, "children").people == 1
    assert share(state, "children").share == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("people", "shares_from"), [(1, 3), (2, 3), (3, 4)])
def test_what_is_told_of_few_people_is_their_number_alone(people: int, shares_from: int) -> None:
    plan = AudiencePlan(groups=(CHILDREN,), shares_from=shares_from)

    few = state_of(moment([person(8)] * people), plan=plan).to_dict()

    assert (few["people"], few["attentive"]) == (people, people)
    assert (few["groups"], few["female"], few["gender_uncertain"]) == ([], None, None)
    told = {name: few[name] for name in ("groups", "female", "gender_uncertain", "attention")}
    other = state_of(moment([person(70)] * people), plan=plan).to_dict()
    assert told == {name: other[name] for name in told}, "two audiences can be told apart"


def test_shares_of_a_lone_visitor_are_not_told_unless_the_plan_says_so() -> None:
    assert AudiencePlan().shares_from == 3
    assert len(state_of(moment([person(8)] * 3)).to_dict()["groups"]) > 0
    assert state_of(moment([person(8)])).to_dict()["groups"] == []
    plan = AudiencePlan(shares_from=1)
    assert len(state_of(moment([person(8)]), plan=plan).to_dict()["groups"]) > 0


def test_those_who_look_are_as_many_as_shares_need() -> None:
    people = [person(8), person(40, attentive=False), person(41, attentive=False)]

    state = state_of(moment(people), plan=AudiencePlan(groups=(CHILDREN,), counted="attentive"))

    assert state.to_dict()["groups"] == []


def test_rules_decide_for_a_lone_visitor_by_shares_that_are_not_told() -> None:
    state = state_of(moment([person(8)]))

    assert share(state, "children").share == pytest.approx(1, abs=0.15)
    assert not state.may_tell_shares


def test_cameras_add_up_and_the_newest_moment_of_each_counts() -> None:
    state = state_of(
        moment([person(), person()], camera="left"),
        moment([person()], camera="right"),
        moment([person()], camera="left", seconds=1),
        moment([person()] * 5, camera="left", seconds=0.5),
        after_s=1.0,
    )

    assert (state.cameras, state.people) == (2, 2)


def test_a_camera_that_the_plan_does_not_name_is_passed_over() -> None:
    plan = AudiencePlan(cameras=("screen",))

    state = state_of(moment([person()], camera="door"), plan=plan)

    assert state.is_blind
    assert state.people == 0


def test_a_silent_camera_is_forgotten_and_nothing_is_known() -> None:
    plan = AudiencePlan(forget_s=3)
    seen = moment([person()], latency_s=0.1)

    assert state_of(seen, plan=plan, after_s=3).people == 1
    assert state_of(seen, plan=plan, after_s=3).age_s == pytest.approx(3.1)
    assert state_of(seen, plan=plan, after_s=3.1).is_blind
    assert state_of(seen, plan=plan, after_s=3.1).age_s is None


# --- what leaves ----------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 0.9)), min_size=1, max_size=6))
def test_a_state_says_nothing_of_tracks_places_and_order(marks: list[tuple[int, float]]) -> None:
    ages = [5.0 + 10 * place for place in range(len(marks))]
    plain = [person(age) for age in ages]
    marked = [person(age, track=track, x=x) for age, (track, x) in zip(ages, marks, strict=True)]

    first = json.dumps(state_of(moment(plain)).to_dict())
    second = json.dumps(state_of(moment(marked[::-1])).to_dict())

    assert first == second
    assert not {"track", "box", "seconds", "chances"} & set(keys_of(json.loads(first)))


def keys_of(value: object) -> list[str]:
    if isinstance(value, dict):
        return [str(k) for k in value] + [k for v in value.values() for k in keys_of(v)]
    if isinstance(value, list):
        return [k for v in value for k in keys_of(v)]
    return []


def test_an_empty_place_has_all_its_groups_at_nobody() -> None:
    state = state_of(moment())

    assert not state.is_blind
    assert state.to_dict()["attention"] is None
    assert share(state, "children").chance_of_count(under=1) == 1
    assert share(state, "children").chance_of_share(under=0.5) == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GroupRule("x", 20, 10), "group x: ages must be within 0..100"),
        (lambda: GroupRule("", 0, 10), "1 to 80 printable characters"),
        (lambda: GroupRule("x", gender="other"), "gender must be one of any, female, male"),  # type: ignore[arg-type]
        (lambda: AudiencePlan(groups=(CHILDREN, CHILDREN)), "two groups are called 'children'"),
        (lambda: AudiencePlan(forget_s=0), "forget_s must be over 0, got 0"),
        (lambda: AudiencePlan(shares_from=0), "shares_from must be 1 or more, got 0"),
        (lambda: AudiencePlan(counted="all"), "counted must be one of people, attentive"),  # type: ignore[arg-type]
    ],
)
def test_an_impossible_plan_is_refused_in_words(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(ArgumentError, match=words):
        make()
