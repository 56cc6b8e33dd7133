"""What a gate does to whom: exact bounds, who is counted, and the figures as NIST defines them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the 'gate' extra")

from scipy.stats import binom, binomtest

from agelens.bundle import find_model
from agelens.errors import ArgumentError
from agelens.evaluation.scored import ScoredFaces
from agelens.gate.measuring import (
    Rate,
    child_bands,
    error_rate,
    errors_allowed,
    faces_needed,
    gate_faces,
    groups,
    known_to_the_model,
    measure_gate,
    trade_off,
    upper_bound,
    verdict,
)
from agelens.gate.policy import GatePolicy
from evaluation.simulation import normal_masses, scored
from gate.people import faces_with


def policy(**fields: Any) -> GatePolicy:
    return GatePolicy.from_table({"name": "g", "required_age": 18, "threshold": 0.9, **fields})


def sharp(means: Sequence[float], ages: Sequence[int], **labels: Any) -> ScoredFaces:
    """Faces whose expected age is given, nearly without spread."""
    count = len(means)
    return scored(
        normal_masses(np.array(means, float), np.full(count, 0.01)),
        np.full(count, 0.5),
        np.array(ages),
        np.array(labels.pop("ends", ages)),
        np.array(labels.pop("female", [0] * count)),
        intervals=False,
    )


# --- exact bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("errors", "faces"), [(0, 1), (0, 59), (3, 59), (17, 40), (40, 40)])
def test_interval_is_that_of_an_independent_implementation(errors: int, faces: int) -> None:
    exact = binomtest(errors, faces).proportion_ci(0.95, "exact")

    assert Rate(errors, faces).interval == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_under_the_upper_bound_so_few_errors_come_by_chance_as_seldom_as_promised() -> None:
    for errors, faces in [(0, 30), (2, 100), (9, 80)]:
        bound = float(upper_bound(errors, faces, 0.9))
        assert binom.cdf(errors, faces, bound) == pytest.approx(0.1)


def test_without_faces_nothing_is_known() -> None:
    assert float(upper_bound(0, 0, 0.95)) == 1.0
    assert Rate(0, 0).interval == (0.0, 1.0)


@pytest.mark.parametrize(
    ("bound", "confidence", "needed"),
    [(0.05, 0.95, 59), (0.05, 0.9, 45), (0.01, 0.95, 299), (0.1, 0.95, 29), (0.5, 0.75, 2)],
)
def test_faces_needed_are_the_fewest_that_can_show_the_bound(
    bound: float, confidence: float, needed: int
) -> None:
    assert faces_needed(bound, confidence) == needed
    assert errors_allowed(needed, bound, confidence) == 0
    assert errors_allowed(needed - 1, bound, confidence) == -1


def test_errors_allowed_are_the_most_that_the_binomial_test_rejects() -> None:
    for faces in (59, 93, 181, 1000):
        by_hand = max(k for k in range(faces + 1) if binom.cdf(k, faces, 0.05) <= 0.05)
        assert errors_allowed(faces, 0.05, 0.95) == by_hand


def test_faces_of_one_cluster_count_once_and_as_their_worst() -> None:
    clusters = np.array([0, 0, 0, 1, 2, 2])
    wrong = np.array([False, True, True, False, False, False])

    assert error_rate(wrong, np.ones(6, bool), clusters) == Rate(1, 3)
    assert error_rate(wrong, np.array([True] + 5 * [False]), clusters) == Rate(0, 1)


# --- who is counted -------------------------------------------------------------------------------


def test_labels_across_the_required_age_are_left_out_and_counted() -> None:
    faces = faces_with([0.1] * 6, [3, 10, 17, 18, 20, -1], ends=[9, 19, 17, 18, 29, -1])

    who = gate_faces(faces, 18)

    assert who.minors.tolist() == [True, False, True, False, False, False]
    assert who.adults.tolist() == [False, False, False, True, True, False]
    assert who.left_out == {
        "no_age_label": 1,
        "label_straddles": 1,
        "face_not_found": 0,
        "not_answered": 0,
    }


def test_faces_that_the_gate_would_not_decide_on_flatter_no_rate() -> None:
    faces = replace(
        faces_with([0.1] * 4, [15, 15, 15, 30]),
        detected=np.array([True, False, True, True]),
        answered=np.array([True, True, False, True]),
    )

    who = gate_faces(faces, 18)

    assert who.minors.tolist() == [True, False, False, False]
    assert (who.left_out["face_not_found"], who.left_out["not_answered"]) == (1, 1)


def test_without_a_detector_no_face_counts_as_not_found() -> None:
    faces = replace(faces_with([0.1], [15]), detected=np.array([False]))
    without = replace(faces.provenance, options={"detector": "none"})

    assert gate_faces(faces, 18).minors.tolist() == [False]
    assert gate_faces(replace(faces, provenance=without), 18).minors.tolist() == [True]


def test_groups_are_columns_and_their_combinations() -> None:
    faces = faces_with([0.1] * 4, [15] * 4, female=[0, 1, 1, -1], groups=["A", "A", "B", None])

    found = {name: mask.tolist() for name, mask in groups(faces, ["gender", "race+gender"]).items()}

    assert found == {
        "all": [True] * 4,
        "gender=female": [False, True, True, False],
        "gender=male": [True, False, False, False],
        "race=A, gender=female": [False, True, False, False],
        "race=A, gender=male": [True, False, False, False],
        "race=B, gender=female": [False, False, True, False],
    }


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    faces = faces_with([0.1], [15], groups=["A"])

    with pytest.raises(ArgumentError, match=r"no column 'skin' .* there are: gender, race"):
        groups(faces, ["skin"])
    with pytest.raises(ArgumentError, match="the column 'gender' is empty"):
        groups(replace(faces, female_label=np.array([-1], np.int8)), ["gender"])


# --- the report -----------------------------------------------------------------------------------


def test_decisions_are_counted_by_true_age_and_group() -> None:
    faces = faces_with(
        [0.95, 0.5, 0.1, 0.99, 0.5, 0.05],
        [16, 17, 5, 19, 20, 70],
        female=[1, 0, 0, 1, 0, 1],
    )

    report = measure_gate(faces, policy(refuse_below=0.2), samples=20)
    found = {
        (one.ages, one.group): (one.accept, one.step_up, one.refuse) for one in report.decisions
    }

    assert found[(0, 17), "all"] == (Rate(1, 3), Rate(1, 3), Rate(1, 3))
    assert found[(13, 17), "all"] == (Rate(1, 2), Rate(1, 2), Rate(0, 2))
    assert found[(13, 17), "gender=female"] == (Rate(1, 1), Rate(0, 1), Rate(0, 1))
    assert found[(18, 20), "all"] == (Rate(1, 2), Rate(1, 2), Rate(0, 2))
    assert found[(18, 100), "all"] == (Rate(1, 3), Rate(1, 3), Rate(1, 3))
    assert found[(60, 100), "gender=female"] == (Rate(0, 1), Rate(0, 1), Rate(1, 1))


def test_of_two_pictures_of_one_adult_the_one_that_is_sent_on_counts() -> None:
    faces = faces_with([0.99, 0.5], [30, 30], clusters=[7, 7])

    report = measure_gate(faces, policy(), samples=20)

    assert report.decisions[0].accept == Rate(0, 1)
    assert report.decisions[0].step_up == Rate(1, 1)


def test_challenge_25_counts_those_of_14_to_17_who_look_25() -> None:
    faces = sharp([26, 24, 30, 25, 40], [13, 14, 15, 17, 18])

    report = measure_gate(faces, policy(), samples=20)

    assert report.nist["challenge_25"]["all"] == Rate(2, 3)


def test_child_bands_count_who_is_taken_for_13_to_16() -> None:
    faces = sharp([14, 16.4, 17.2, 13, 9, 16, 30], [13, 16, 15, 12, 8, 17, 22])

    report = measure_gate(faces, policy(), samples=20)

    assert report.nist["child_13_16"]["all"] == Rate(2, 3)
    assert report.nist["child_8_12"]["all"] == Rate(1, 2)
    assert report.nist["child_17_22"]["all"] == Rate(1, 2)


def test_mean_error_is_the_mean_over_cells_and_not_over_faces() -> None:
    # Nine faces with an error of 1 in one cell, one with an error of 7 in another.
    faces = sharp([21] * 9 + [32], [20] * 9 + [25], female=[0] * 9 + [1])

    report = measure_gate(faces, policy(), samples=50)

    assert report.nist_mae is not None
    assert report.nist_mae.value == pytest.approx((1 + 7) / 2, abs=1e-3)
    assert report.nist_cells == 2


def test_price_falls_for_minors_and_rises_for_adults_as_the_limit_rises() -> None:
    rng = np.random.default_rng(1)
    faces = faces_with(rng.uniform(size=400), rng.integers(5, 80, 400))

    points = trade_off(faces, "probability", 18, [(0, 17)], fitted=0.8765)

    assert 0.8765 in [point.limit for point in points]
    minors = [point.false_accept["0-17"] for point in points]
    adults = [point.not_accepted["25-29"] for point in points]
    assert minors == sorted(minors, reverse=True)
    assert adults == sorted(adults)
    over = faces.age[:, 18:].sum(axis=1)
    for point in points:
        accepted = (over >= point.limit)[faces.age_max < 18].mean()
        assert point.false_accept["0-17"] == pytest.approx(accepted)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Rate(0, 0), "unknown"),
        (Rate(0, 3), "too_few"),
        (Rate(2, 58), "too_few"),
        (Rate(2, 59), "below"),
        (Rate(1, 3), "above"),
        (Rate(3, 3), "broken"),
        (Rate(5, 100), "below"),
        (Rate(8, 100), "above"),
        (Rate(20, 100), "broken"),
    ],
)
def test_a_rate_over_its_bound_is_broken_only_beyond_chance(found: Rate, words: str) -> None:
    assert verdict(found, 0.05, 0.95) == words


def test_faces_that_the_card_says_the_model_has_learned_from_are_named() -> None:
    card = find_model("agelens-s").card
    (calibrated,) = card.calibration.files
    data = [
        {"name": "again.parquet", "sha256": calibrated.sha256},
        {"name": "new.parquet", "sha256": "0" * 64},
    ]

    lines = known_to_the_model(data, ["FairFace", "utkface"], card)

    assert [line.partition(":")[0] for line in lines] == ["again.parquet", "FairFace"]
    assert "calibrated on this file" in lines[0]
    assert "trained on faces of this data set" in lines[1]
    assert known_to_the_model(data[1:], ["utkface"], card) == ()


def test_policy_of_another_model_or_calibration_is_not_measured() -> None:
    faces = faces_with([0.1], [15])
    fitted = {"name": "other@1", "sha256": "9" * 64, "card_sha256": "1" * 64}

    with pytest.raises(ArgumentError, match=r"fitted for other@1 .* answers are of simulated"):
        measure_gate(faces, policy(model=fitted))
    with pytest.raises(ArgumentError, match="calibration included, has changed since"):
        measure_gate(faces, policy(model={**fitted, "sha256": "0" * 64, "card_sha256": "9" * 64}))


def test_report_is_json_without_nan_and_names_what_was_left_out() -> None:
    faces = faces_with([0.2, 0.99, 0.4], [3, 40, 10], ends=[9, 40, 19])

    wire = json.loads(
        json.dumps(measure_gate(faces, policy(), samples=20).to_dict(), allow_nan=False)
    )

    assert wire["counts"]["label_straddles"] == 1
    assert wire["policy"]["sha256"] == policy().sha256
    assert wire["nist"]["challenge_25"] == {}


# --- promises, whatever the report is grouped by --------------------------------------------------


def promised(**promise: Any) -> dict[str, Any]:
    """What a fit leaves, with one promise about those under 18."""
    return {
        "max_false_accept": 0.05,
        "confidence": 0.95,
        "minor_band": [13, 17],
        "adult_band": [18, 24],
        "by": ["gender"],
        "date": "2026-11-20",
        "agelens": "0.1.0",
        "data": [{"name": "other.parquet", "sha256": "1" * 64, "rows": 10}],
        "promises": [
            {"error": "false_acceptance", "ages": [0, 17], "faces": 99, "errors": 0, "upper": 0.03}
            | promise
        ],
    }


def test_promise_on_a_group_is_checked_when_the_report_is_grouped_otherwise() -> None:
    faces = faces_with([0.95, 0.1, 0.1], [15] * 3, female=[1, 1, 0], groups=["A"] * 3)
    fitted = policy(fit=promised(group="gender=female"))

    for by in (None, ["race"], []):
        (check,) = measure_gate(faces, fitted, by=by, samples=20).checks
        assert check.found == Rate(1, 2)


def test_promise_on_a_group_without_labels_is_unknown() -> None:
    faces = faces_with([0.1] * 3, [15] * 3, female=[-1] * 3)

    (check,) = measure_gate(
        faces, policy(fit=promised(group="gender=female")), by=[], samples=20
    ).checks

    assert check.verdict == "unknown"


# --- a gate for the young -------------------------------------------------------------------------


def test_of_a_gate_for_the_young_grown_ups_accepted_are_the_error() -> None:
    # P(under 13) is what is on 10; the rest is on 30.
    faces = faces_with([0.05, 0.5, 0.95, 0.05, 0.6], [14, 15, 40, 12, 9])
    children = policy(required_age=13, admit="under", refuse_below=0.2)

    report = measure_gate(faces, children, by=[], samples=20)
    found = {one.ages: one for one in report.decisions}

    assert found[13, 100].accept == Rate(1, 3)
    assert found[13, 17].step_up == Rate(1, 2)
    assert found[0, 12].accept == Rate(1, 2)
    assert (found[6, 9].kept_out, found[6, 9].under_age) == (False, True)
    assert [ages for ages, one in found.items() if one.kept_out] == [(13, 100), (13, 17)]
    assert {one.ages: one.kept_out for one in report.by_age}[14, 14] is True
    assert list(report.price[0].false_accept) == ["13+", "13-17"]
    assert list(report.price[0].not_accepted) == ["10-12", "6-9", "1-5", "0"]


def test_of_two_pictures_of_one_child_the_one_that_is_sent_on_counts() -> None:
    faces = faces_with([0.01, 0.5, 0.99, 0.01], [9, 9, 40, 40], clusters=[7, 7, 8, 8])

    report = measure_gate(faces, policy(required_age=13, admit="under"), by=[], samples=20)
    found = {one.ages: one.accept for one in report.decisions}

    assert found[0, 12] == Rate(0, 1)
    assert found[13, 100] == Rate(1, 1)


@pytest.mark.parametrize(
    ("age", "bands"),
    [
        (13, ((10, 12), (6, 9), (1, 5), (0, 0))),
        (18, ((15, 17), (11, 14), (6, 10), (0, 5))),
        (4, ((1, 3), (0, 0))),
        (1, ((0, 0),)),
    ],
)
def test_bands_under_an_age_meet_and_reach_birth(age: int, bands: Any) -> None:
    assert child_bands(age) == bands
