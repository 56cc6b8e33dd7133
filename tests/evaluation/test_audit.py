"""Audits: figures held to a policy, failing groups named, what cannot be judged said."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fairlearn", reason="needs the 'eval' extra")
pytest.importorskip("cryptography", reason="needs the 'eval' extra")

from agelens.errors import DataError
from agelens.evaluation.audit import AuditResult, audit
from agelens.evaluation.bootstrap import Estimate
from agelens.evaluation.policy import AuditPolicy
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.signing import signing_key
from agelens.evaluation.stress import SliceResult, StressChange, StressResult
from evaluation.groups_of_people import people, with_column
from evaluation.simulation import in_ranges

HEAD = 'schema = "agelens.audit-policy/1"\nname = "ours"\nvalidity_days = 30\n'
MADE = datetime(2026, 3, 1, 12, tzinfo=UTC)


def judged(faces: ScoredFaces, rules: str, **options: Any) -> AuditResult:
    policy = AuditPolicy.parse(HEAD + rules)
    return audit(faces, policy, samples=100, now=MADE, **options)


GENDER = '[[require]]\nmetric = "gender_accuracy"\nby = ["race"]\n'


# --- verdicts -------------------------------------------------------------------------------------


def test_groups_under_the_least_figure_fail_and_are_named() -> None:
    faces = people(300, ("a", "b", "c"), gender_right=(0.97, 0.7, 0.96))

    result = judged(faces, GENDER + "min = 0.9\n")

    assert not result.passed
    (failure,) = result.failures
    assert (failure.cell, failure.metric, failure.limit) == ("race b", "gender_accuracy", "min")
    own = faces.audit["race"] == "b"
    share = ((faces.female > 0.5) == (faces.female_label == 1))[own].mean()
    assert failure.value == pytest.approx(share)
    assert failure.sentence.startswith(f"Gender right is {100 * share:.1f} % (")
    assert failure.sentence.endswith("for race b; at least 90.0 %.")
    assert result.sentences == (failure.sentence,)


def test_a_model_within_all_limits_passes() -> None:
    faces = people(300, gender_right=(0.97, 0.97))

    result = judged(faces, GENDER + 'min = 0.9\n[[require]]\nmetric = "age_mae"\nmax = 7.0\n')

    assert result.passed
    assert result.failures == ()
    assert [one.outcome for one in result.judgements] == ["passed", "passed"]
    assert [one.judged for one in result.judgements] == [2, 1]


def test_by_value_fails_where_by_interval_does_not() -> None:
    faces = people(60, gender_right=(0.9, 0.9), seed=3)
    share = ((faces.female > 0.5) == (faces.female_label == 1))[:60].mean()
    limit = f"min = {share + 0.02}\n"

    assert judged(faces, GENDER + limit).passed
    assert not judged(faces, GENDER + limit + 'judged_by = "value"\n').passed


def test_a_gap_fails_only_beyond_its_limit_and_beyond_noise() -> None:
    far = people(300, gender_right=(0.97, 0.8))
    near = people(300, gender_right=(0.9, 0.9), seed=1)

    (failure,) = judged(far, GENDER + "max_gap = 0.05\n").failures
    assert failure.limit == "max_gap"
    assert failure.cell == "race other"
    assert "points" in failure.sentence
    assert judged(far, GENDER + "max_gap = 0.25\n").passed
    assert judged(near, GENDER + "max_gap = 0.0\n").passed
    assert not judged(near, GENDER + 'max_gap = 0.0\njudged_by = "value"\n').passed


def test_a_ratio_fails_beyond_its_limit() -> None:
    rules = '[[require]]\nmetric = "age_mae"\nby = ["race"]\nmax_ratio = {}\n'
    faces = people(300, wider=1.8)
    wrong = np.abs(faces.mean_age - faces.age_min)
    ratio = wrong[300:].mean() / wrong[:300].mean()

    (failure,) = judged(faces, rules.format(round(ratio - 0.1, 3))).failures

    assert failure.value == pytest.approx(ratio)
    assert judged(faces, rules.format(round(ratio + 0.1, 3))).passed


def test_a_star_stands_for_each_audit_column() -> None:
    faces = with_column(people(200), "device", np.array(["phone", "door"] * 200, object))
    wrong = faces.audit["device"] == "door"
    faces = replace(faces, female=np.where(wrong, 1 - faces.female, faces.female))

    result = judged(faces, '[[require]]\nmetric = "gender_accuracy"\nby = ["*"]\nmin = 0.8\n')

    assert result.judgements[0].judged == 4
    assert "device door" in [failure.cell for failure in result.failures]


def test_bands_of_age_are_held_to_their_own_limit() -> None:
    faces = people(200, ages=(13, 24))
    faces = replace(faces, age=np.roll(faces.age, 4, axis=1))
    rules = '[[require]]\nmetric = "age_bias"\nby = ["age"]\nonly = ["13-17"]\nmax = 2.0\n'

    result = judged(faces, rules)

    assert [failure.cell for failure in result.failures] == ["age 13-17"]
    assert result.judgements[0].judged == 1


def test_minors_who_are_let_in_fail_a_limit_on_the_gate() -> None:
    faces = people(200, ages=(13, 60))
    rules = (
        '[[gate]]\nrule = "challenge_25"\nerror = "false_acceptance"\nages = [13, 17]\n'
        'by = ["race"]\nmax = {}\njudged_by = "value"\n'
    )
    minors = (faces.age_min <= 17) & (faces.age_min >= 13)
    let_in = (faces.mean_age[minors] >= 25).sum()
    assert let_in > 0

    result = judged(faces, rules.format(0.0), min_cell=2)

    whole = next(f for f in result.failures if f.cell == "age 13-17")
    assert whole.value == pytest.approx(let_in / minors.sum())
    assert f"lets in {let_in} of {minors.sum()} faces" in whole.sentence
    assert judged(faces, rules.format(1.0), min_cell=2).passed


# --- changed pictures -----------------------------------------------------------------------------


def stressed(worse: Estimate) -> StressResult:
    change = StressChange(5.0, 5.0 + worse.value, worse, worse)
    one = SliceResult("dark", "darker", 200, 200, 200, 200, {}, {"age_mae": change})
    return StressResult(200, 200, 0, (one,))


STRESS = '[[stress]]\nslices = ["dark"]\nmetric = "age_mae"\nmax_worse = 2.0\n'


@pytest.mark.parametrize(
    ("worse", "passed"),
    [
        (Estimate(3.0, 2.2, 3.8, 200), False),
        (Estimate(3.0, 1.8, 4.2, 200), True),
        (Estimate(1.0, 0.2, 1.8, 200), True),
    ],
    ids=["beyond", "not sure", "within"],
)
def test_changed_pictures_are_held_to_their_limit(worse: Estimate, passed: bool) -> None:
    result = judged(people(60), STRESS, stress=stressed(worse))

    assert result.passed == passed
    assert [f.cell for f in result.failures] == ([] if passed else ["dark"])


# --- what cannot be judged ------------------------------------------------------------------------


def test_what_was_not_tried_fails_or_is_noted_as_the_policy_says() -> None:
    failed = judged(people(60), STRESS)
    noted = judged(people(60), 'unjudged = "note"\n' + STRESS)

    assert not failed.passed
    assert "Not judged" in failed.sentences[0]
    assert failed.judgements[0].outcome == "unjudged"
    assert noted.judgements[0].outcome == "unjudged"
    assert noted.sentences == ()
    assert not noted.passed  # nothing at all was judged
    measured = '[[require]]\nmetric = "age_mae"\nmax = 60.0\n'
    assert judged(people(60), 'unjudged = "note"\n' + STRESS + measured).passed


@pytest.mark.parametrize("judged_by", ["value", "confident"])
def test_a_handful_of_faces_is_not_judged_over_all_faces_either(judged_by: str) -> None:
    required = f'[[require]]\nmetric = "age_mae"\nmax = 0.0\njudged_by = "{judged_by}"\n'

    few = judged(people(5), 'unjudged = "note"\n' + required)

    assert few.judgements[0].outcome == "unjudged"
    assert "10 faces that carry the figure, 30 needed" in few.judgements[0].note
    assert not few.passed


def test_ranges_cannot_show_a_bias() -> None:
    faces = in_ranges(people(300))

    result = judged(faces, '[[require]]\nmetric = "age_bias"\nmax = 5.0\n')

    assert result.judgements[0].outcome == "unjudged"
    assert "exact ages are needed" in result.judgements[0].note
    assert result.gate == ()
    assert any("600 faces with a range of ages are left out" in note for note in result.notes)


def test_cells_with_too_few_faces_are_counted_and_not_judged() -> None:
    faces = people(300, gender_right=(0.97, 0.97))
    race = faces.audit["race"].copy()
    race[:20] = "rare"
    female = faces.female.copy()
    female[:20] = 1 - female[:20]

    result = judged(replace(faces, female=female, audit={"race": race}), GENDER + "min = 0.9\n")

    assert result.passed
    assert (result.judgements[0].judged, result.judgements[0].too_few) == (2, 1)


def test_all_cells_too_small_is_not_a_pass() -> None:
    result = judged(people(20), GENDER + "min = 0.1\n")

    assert not result.passed
    assert "each with fewer than 30 faces" in result.judgements[0].note


def test_no_audit_column_is_not_a_pass() -> None:
    faces = replace(people(100), audit={})

    result = judged(faces, GENDER.replace('"race"', '"*"') + "min = 0.1\n")

    assert result.judgements[0].note == "there is no audit column"
    assert not result.passed


# --- wrong input ----------------------------------------------------------------------------------


def test_a_policy_on_a_missing_column_names_those_that_exist() -> None:
    with pytest.raises(DataError, match=r"by the column 'race', which is not among .*: 'site'"):
        judged(
            replace(people(40), audit={"site": people(40).audit["race"]}), GENDER + "min = 0.5\n"
        )


def test_a_model_without_any_estimate_is_an_error() -> None:
    faces = people(40)
    nothing = replace(faces, age=np.full_like(faces.age, np.nan), female=np.full(80, np.nan))

    with pytest.raises(DataError, match="no estimate for any of the 80 labelled faces"):
        judged(nothing, GENDER + "min = 0.5\n")


def test_a_row_that_is_partly_nan_is_named() -> None:
    faces = people(40)
    age = faces.age.copy()
    age[7, 30] = np.nan

    with pytest.raises(
        DataError, match=r"faces\.parquet#7: the model's age estimate is partly NaN"
    ):
        judged(replace(faces, age=age), GENDER + "min = 0.5\n")


# --- the document ---------------------------------------------------------------------------------


def test_the_document_says_what_was_audited_how_and_until_when(tmp_path: Path) -> None:
    faces = people(60)
    result = judged(faces, GENDER + "min = 0.9\n", stress=stressed(Estimate(1.0, 0.2, 1.8, 200)))

    signed = result.save(tmp_path / "audit.json", signing_key())

    wire = json.loads((tmp_path / "audit.json").read_text("utf-8"))
    assert wire == signed
    assert wire["schema"] == "agelens.audit/1"
    assert wire["model"] == {
        "name": "simulated@1",
        "sha256": "0" * 64,
        "card_sha256": "1" * 64,
    }
    assert wire["data"] == [{"name": "faces.parquet", "sha256": "2" * 64, "rows": 120}]
    assert wire["policy"]["text"] == HEAD + GENDER + "min = 0.9\n"
    assert datetime.fromisoformat(wire["created"]) == MADE
    assert datetime.fromisoformat(wire["expires"]) == MADE + timedelta(days=30)
    assert wire["settings"]["min_cell"] == 30
    assert wire["columns"]["race"] == ["one", "other"]
    assert wire["stress"]["slices"][0]["name"] == "dark"
    assert {cell["name"] for cell in wire["cells"]} >= {"race one", "race one, gender female"}
    assert wire["verdict"] == ("passed" if result.passed else "failed")


def test_the_same_seed_gives_the_same_document() -> None:
    one, again = (judged(people(60), GENDER + "min = 0.9\n").to_dict() for _ in range(2))

    assert one == again


def test_a_measured_skin_tone_is_said_to_be_measured() -> None:
    faces = people(60)
    tones = np.array(["light", "dark"] * 60, object)
    faces = replace(faces, audit={"skin_tone_measured": tones})

    result = judged(faces, GENDER.replace('"race"', '"*"') + "min = 0.1\n")

    assert result.settings["skin_tone_measured"] is True
    assert any("it is not a label of anybody's skin" in note for note in result.notes)


def test_a_figure_that_reports_leave_out_can_be_required() -> None:
    rules = '[[require]]\nmetric = "over40_auc"\nby = ["race"]\nmin = 0.5\n'

    result = judged(people(100), rules)

    assert result.judgements[0].outcome == "passed"
    assert result.judgements[0].judged == 2
