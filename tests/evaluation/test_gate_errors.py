"""Errors of age checks by exact age and group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the 'eval' extra")

from agelens.evaluation.gate_errors import (
    RULES,
    errors_within,
    exact_interval,
    gate_errors,
    left_out,
)
from agelens.evaluation.scored import ScoredFaces
from evaluation.simulation import in_ranges, scored


def certain(true: list[int], said: list[int], race: list[str] | None = None) -> ScoredFaces:
    """Faces of which the model is certain."""
    ages = np.zeros((len(true), 101))
    ages[np.arange(len(true)), said] = 1
    labels = np.array(true)
    faces = scored(ages, np.full(len(true), 0.5), labels, labels, np.zeros(len(true), int))
    column = np.array(race or ["one"] * len(true), object)
    return replace(faces, audit={"race": column})


def test_each_rule_lets_in_by_its_own_limit() -> None:
    faces = certain([30] * 6, [17, 18, 20, 21, 24, 25])

    accepted = {name: rule.accepts(faces).tolist() for name, rule in RULES.items()}

    assert accepted["over_18"] == [False, True, True, True, True, True]
    assert accepted["over_21"] == [False, False, False, True, True, True]
    assert accepted["challenge_25"] == [False, False, False, False, False, True]


def test_minors_let_in_and_adults_turned_away_are_counted_by_exact_age() -> None:
    faces = certain([16, 16, 16, 17, 18, 18, 40], [15, 19, 30, 20, 17, 30, 50])

    errors = {
        (e.kind, e.ages): (e.wrong, e.count) for e in gate_errors(faces, {}, rules=["over_18"])
    }

    assert errors["false_acceptance", (16, 16)] == (2, 3)
    assert errors["false_acceptance", (17, 17)] == (1, 1)
    assert errors["false_acceptance", (13, 17)] == (3, 4)
    assert errors["false_acceptance", (0, 17)] == (3, 4)
    assert errors["false_refusal", (18, 18)] == (1, 2)
    assert errors["false_refusal", (18, 122)] == (1, 3)
    assert ("false_acceptance", (15, 15)) not in errors


def test_groups_are_counted_apart() -> None:
    faces = certain([15, 15, 15, 15], [30, 30, 10, 10], ["a", "b", "a", "a"])

    found = errors_within(
        "challenge_25", "false_acceptance", (13, 17), faces, "race", faces.audit["race"]
    )

    assert [(e.value, e.wrong, e.count) for e in found] == [("a", 1, 3), ("b", 1, 1)]


def test_a_person_in_many_pictures_counts_once_and_as_wrong_if_any_is() -> None:
    faces = replace(certain([15] * 5, [30, 10, 10, 10, 10]), clusters=np.array([0, 0, 0, 1, 1]))

    (found,) = errors_within("over_18", "false_acceptance", (13, 17), faces)

    assert (found.wrong, found.count) == (1, 2)


def test_ranges_are_left_out_and_that_is_said() -> None:
    faces = in_ranges(certain([5, 15, 40], [5, 30, 40]))

    assert gate_errors(faces, {}) == ()
    notes = " ".join(left_out(faces))
    assert "3 faces with a range of ages are left out, 1 of them" in notes
    assert "no label in 'age_min' and 'age_max' is exact" in notes


@pytest.mark.parametrize(("wrong", "count"), [(0, 20), (3, 20), (20, 20), (1, 1)])
def test_intervals_are_those_of_an_independent_library(wrong: int, count: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(wrong, count).proportion_ci(0.95, method="exact")

    assert exact_interval(wrong, count) == pytest.approx((expected.low, expected.high))
