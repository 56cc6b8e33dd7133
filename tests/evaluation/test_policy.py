"""Audit policies: what is shipped, what a file may say, and what is wrong with one that may not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from agelens.errors import ArgumentError
from agelens.evaluation.policy import AuditPolicy, shipped_policies

HEAD = 'schema = "agelens.audit-policy/1"\nname = "ours"\nvalidity_days = 30\n'
ONE = HEAD + '[[require]]\nmetric = "age_mae"\nmax = 6.0\n'


def test_the_shipped_policies_can_be_read_and_say_why() -> None:
    assert shipped_policies() == ("lenient", "strict")
    for name in shipped_policies():
        policy = AuditPolicy.load(name)
        assert policy.name == name
        assert policy.summary
        reasons = [part.why for part in policy.require]
        reasons += [part.why for part in policy.gate] + [part.why for part in policy.stress]
        assert all(reasons)


def test_the_strict_policy_asks_for_what_it_was_made_for() -> None:
    strict = AuditPolicy.load("strict")

    asked = {(part.metric, part.by) for part in strict.require}
    assert {("age_bias", ("age",)), ("gender_accuracy", ("*",))} <= asked
    assert {(part.rule, part.error, part.ages) for part in strict.gate} >= {
        ("challenge_25", "false_acceptance", (13, 17))
    }
    assert strict.unjudged == "fail"


def test_a_file_is_read_with_its_text_and_hash(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text(ONE, encoding="utf-8")

    policy = AuditPolicy.load(file)

    assert policy.text == ONE
    assert policy.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert policy.require[0].max == 6.0
    assert policy.require[0].judged_by == "confident"
    assert policy.min_cell == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE + "mx = 3\n", r"require\.0\.mx: unknown key"),
        (ONE.replace("6.0", '"six"'), r"require\.0\.max: expected a number, found 'six' \(str\)"),
        (ONE.replace("age_mae", "age_mea"), r"require\.0\.metric: no metric 'age_mea'"),
        (HEAD + '[[require]]\nmetric = "age_mae"\n', "there is no limit; give min, max"),
        (ONE + "min = 7.0\n", "min 7 is over max 6"),
        (ONE + "max_gap = 1.0\n", "compare groups; name a column in by"),
        (ONE + 'by = ["race", "race"]\n', "two different ones, got ['race', 'race']"),
        (ONE + 'by = ["race"]\nmax_gap = 1.0\nonly = ["a"]\n', "only goes with min and max"),
        (ONE + 'judged_by = "feeling"\n', r"judged_by: expected one of .*found 'feeling'"),
        (HEAD, "the policy requires nothing"),
        (HEAD.replace("30", "0") + "[[require]]\n", "validity_days: input should be greater"),
        (ONE.replace("name", "nme"), "name: missing"),
        (ONE.replace("/1", "/9"), r"schema: expected one of 'agelens.audit-policy/1'"),
        (HEAD + "[[require]\n", "not valid TOML"),
        (
            HEAD
            + '[[gate]]\nrule = "hunch"\nerror = "false_acceptance"\nages = [13, 17]\nmax = 0\n',
            r"gate\.0\.rule: there is no rule 'hunch'; there are over_18, over_21, challenge_25",
        ),
        (
            HEAD
            + '[[gate]]\nrule = "over_18"\nerror = "false_acceptance"\nages = [13, 18]\nmax = 0\n',
            "ages 13 to 18 are not all under 18",
        ),
        (
            HEAD
            + '[[gate]]\nrule = "over_21"\nerror = "false_refusal"\nages = [18, 30]\nmax = 0.1\n',
            "ages 18 to 30 are not all 21 or over",
        ),
        (
            HEAD + '[[stress]]\nslices = ["foggy"]\nmetric = "age_mae"\nmax_worse = 1\n',
            "there is no slice 'foggy'; there are dark",
        ),
        (
            HEAD + '[[stress]]\nslices = ["dark"]\nmetric = "age_nll"\nmax_worse = 1\n',
            "stress measures age_mae, .* not 'age_nll'",
        ),
        (HEAD + "since = 2026-01-01\n[[require]]\n", "since: unknown key"),
    ],
)
def test_a_wrong_file_is_refused_by_key_and_value(text: str, message: str) -> None:
    message = message.replace("['race', 'race']", r"\['race', 'race'\]")
    with pytest.raises(ArgumentError, match=message):
        AuditPolicy.parse(text, where="ours.toml")


def test_a_missing_policy_names_those_that_are_shipped(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"no such policy.*lenient, strict"):
        AuditPolicy.load(tmp_path / "none.toml")
