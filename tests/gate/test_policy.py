"""A gate's policy: what it says it decides, the same way for the same fields."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agelens import AgeDistribution
from agelens.errors import ArgumentError
from agelens.evaluation.policy import AuditPolicy
from agelens.gate.policy import GatePolicy, rule_scores, shipped_policies

HASH = "0123456789abcdef" * 4
OVERRIDE = {
    "text": "Trial week in the shop, staff check everybody again.",
    "name": "A. Keeper",
    "date": "2026-11-24",
}
FULL = f"""
schema = "agelens.gate-policy/1"
name = "over-18"
required_age = 18
rule = "probability"
threshold = 0.97
refuse_below = 0.2
on_unusable = "retry"
on_no_face = "refuse"
on_second_face = "step_up"
liveness = "challenge"
retention = "none"
frames = {{ min = 3, max = 20 }}

[model]
name = "ours@1.0"
sha256 = "{HASH}"
card_sha256 = "{HASH}"

[audit]
path = "audits/ours.json"
max_age_days = 90

[override]
text = "Trial week in the shop, staff check everybody again."
name = "A. Keeper"
date = 2026-11-24

[token]
issuer = "https://gate.example"
audience = "https://shop.example"

[journal]
path = "journal.jsonl"
confidence_steps = [0.0, 0.9]

[fit]
max_false_accept = 0.05
confidence = 0.95
minor_band = [13, 17]
adult_band = [18, 24]
by = ["gender"]
date = 2026-11-20
agelens = "0.1.0"
data = [{{ name = "faces.parquet", sha256 = "{HASH}", rows = 10 }}]

[[fit.promises]]
error = "false_acceptance"
ages = [13, 17]
faces = 60
errors = 0
upper = 0.049
"""


def table(**fields: Any) -> dict[str, Any]:
    """The shortest policy, with other fields."""
    return {"name": "over-18", "required_age": 18, **fields}


def surely(age: int) -> AgeDistribution:
    """All mass on one age."""
    return AgeDistribution.from_weights(np.eye(101)[age])


def between(share: float) -> AgeDistribution:
    """P(age >= 18) is ``share``: the rest is at 10."""
    weights = np.zeros(101)
    weights[10], weights[30] = 1 - share, share
    return AgeDistribution.from_weights(weights)


def test_policy_that_was_written_reads_back_equal(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(FULL)
    policy = GatePolicy.load(tmp_path / "policy.toml")

    policy.save(tmp_path / "again.toml")

    assert GatePolicy.load(tmp_path / "again.toml") == policy
    assert policy.fit is not None
    assert policy.fit.promises[0].ages == (13, 17)


def test_hash_depends_on_the_fields_and_not_on_the_layout(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(FULL)
    moved = FULL.replace('name = "over-18"\nrequired_age = 18\n', "# a remark\nrequired_age = 18\n")
    moved = moved.replace('rule = "probability"', 'rule   =   "probability"\nname = "over-18"')
    (tmp_path / "b.toml").write_text(moved)
    (tmp_path / "c.toml").write_text(FULL.replace("0.97", "0.96"))

    hashes = [GatePolicy.load(tmp_path / f"{name}.toml").sha256 for name in "abc"]

    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_every_shipped_policy_says_that_it_has_to_be_fitted() -> None:
    assert shipped_policies() == ("challenge-25", "shop-18", "site-18")
    for name in shipped_policies():
        policy = GatePolicy.load(name)
        assert policy.name == name
        assert policy.audit.required
        with pytest.raises(ArgumentError, match="agelens gate fit MODEL DATA"):
            policy.require_ready()


@pytest.mark.parametrize(
    ("age", "outcome"),
    [
        (between(0.97), "accept"),
        (between(1.0), "accept"),
        (between(0.96), "step_up"),
        (between(0.2), "step_up"),
        (between(0.19), "refuse"),
        (between(0.0), "refuse"),
    ],
)
def test_probability_rule_accepts_from_its_threshold_and_refuses_below_the_other(
    age: AgeDistribution, outcome: str
) -> None:
    # A hair under what float32 makes of 0.97 and 0.2.
    policy = GatePolicy.from_table(table(threshold=0.97 - 1e-6, refuse_below=0.2 - 1e-6))

    assert policy.outcome(age) == outcome


@pytest.mark.parametrize(
    ("age", "outcome"),
    [(25, "accept"), (60, "accept"), (24, "step_up"), (12, "step_up"), (11, "refuse")],
)
def test_challenge_rule_compares_the_expected_age(age: int, outcome: str) -> None:
    policy = GatePolicy.from_table(table(rule="challenge", challenge_age=25, refuse_under_age=12))

    assert policy.outcome(surely(age)) == outcome


@pytest.mark.parametrize(
    ("over", "outcome"),
    [(0.0, "accept"), (0.03, "accept"), (0.04, "step_up"), (0.8, "step_up"), (0.81, "refuse")],
)
def test_a_gate_for_the_young_accepts_who_is_surely_under_the_age(
    over: float, outcome: str
) -> None:
    limits = {"threshold": 0.97 - 1e-6, "refuse_below": 0.2 - 1e-6}
    policy = GatePolicy.from_table(table(admit="under", **limits))

    assert policy.outcome(between(over)) == outcome
    assert policy.admitted == "under 18"


def test_who_is_let_in_is_part_of_the_hash() -> None:
    over, under = (GatePolicy.from_table(table(threshold=0.9, admit=a)) for a in ("over", "under"))

    assert over.sha256 != under.sha256
    assert over == GatePolicy.from_table(table(threshold=0.9))


def test_without_a_lower_limit_nobody_is_refused() -> None:
    policy = GatePolicy.from_table(table(threshold=0.9))

    assert policy.outcome(surely(3)) == "step_up"


def test_abstention_has_no_outcome() -> None:
    policy = GatePolicy.from_table(table(threshold=0.9))

    with pytest.raises(ArgumentError, match="on_unusable"):
        policy.outcome(AgeDistribution.unknown())


def test_a_face_without_estimate_is_never_accepted_or_refused() -> None:
    policy = GatePolicy.from_table(table(threshold=0.9, refuse_below=0.5))

    assert policy.outcomes(np.full((1, 101), np.nan)) == ["step_up"]


@given(
    weights=st.lists(st.floats(0, 1), min_size=101, max_size=101).filter(lambda w: sum(w) > 0.1),
    age=st.integers(1, 100),
)
def test_what_the_rules_compare_is_what_the_results_say(weights: list[float], age: int) -> None:
    one = AgeDistribution.from_weights(weights)

    (over,) = rule_scores(one.probabilities[None], "probability", age)
    (mean,) = rule_scores(one.probabilities[None], "challenge", age)

    assert over == pytest.approx(one.probability_at_least(age), abs=1e-6)
    assert mean == pytest.approx(one.mean, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshhold": 0.9}, "threshhold: unknown key; did you mean threshold?"),
        ({"frames": {"mim": 1}}, "frames.mim: unknown key; did you mean frames.min?"),
        ({"required_age": "18"}, "required_age: expected a whole number, found '18' (str)"),
        ({"required_age": 0}, "required_age: input should be greater than or equal to 1, found 0"),
        ({"rule": "guess"}, "rule: expected one of 'probability' or 'challenge', found 'guess'"),
        ({"retention": "faces"}, "retention: expected one of 'none', found 'faces'"),
        ({"on_no_face": "accept"}, "on_no_face: expected one of 'step_up', 'refuse' or 'retry'"),
        ({"schema": "agelens.gate-policy/2"}, "schema: expected one of 'agelens.gate-policy/1'"),
        ({"challenge_age": 25.0}, "challenge_age does not go with rule = 'probability'"),
        ({"threshold": 0.5, "refuse_below": 0.6}, "nothing would lie between refusing under 0.6"),
        (
            {"rule": "challenge", "challenge_age": 17.0},
            "challenge_age must be the required age (18) or more, got 17",
        ),
        ({"frames": {"min": 9, "max": 3}}, "frames: min must not be over max, got 9 and 3"),
        ({"liveness": "challenge", "frames": {"max": 1}}, "liveness = 'challenge' needs 3 frames"),
        ({"audit": {"required": False}}, "audit.required = false needs an [override]"),
        ({"override": OVERRIDE}, "[override] needs a [journal]"),
        ({"override": {**OVERRIDE, "text": "ok"}}, "override.text: string should have at least 20"),
        ({"override": {**OVERRIDE, "date": "soon"}}, "override.date"),
        (
            {"override": {**OVERRIDE, "date": "2999-01-31"}},
            "override: date is 2999-01-31, which is in the future",
        ),
        ({"admit": "all"}, "admit: expected one of 'over' or 'under', found 'all'"),
        (
            {"admit": "under", "rule": "challenge", "challenge_age": 25.0},
            "admit = 'under' does not go with rule = 'challenge'",
        ),
        ({"journal": {"confidence_steps": [0.5, 0.5]}}, "confidence_steps must rise"),
        ({"model": {"name": "x", "sha256": "12", "card_sha256": HASH}}, "model.sha256"),
    ],
)
def test_wrong_policy_is_refused_with_the_key_that_is_wrong(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        GatePolicy.from_table(table(**fields), where="policy.toml")

    assert message in str(caught.value)
    assert str(caught.value).startswith("policy.toml: ")


def test_an_override_opens_without_an_audit() -> None:
    journal = {"path": "journal.jsonl"}
    policy = GatePolicy.from_table(
        table(audit={"required": False}, override=OVERRIDE, journal=journal)
    )

    assert policy.override is not None
    assert policy.override.name == "A. Keeper"
    assert policy.override.date.isoformat() == "2026-11-24"


def test_missing_file_and_text_that_is_no_toml_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("name = ")

    with pytest.raises(ArgumentError, match=r"no such policy; give the path .* shop-18"):
        GatePolicy.load(tmp_path / "none.toml")
    with pytest.raises(ArgumentError, match=r"bad\.toml: not valid TOML"):
        GatePolicy.load(tmp_path / "bad.toml")


def test_changed_policy_is_checked_as_a_whole() -> None:
    policy = GatePolicy.from_table(table(threshold=0.9))

    assert policy.changed(threshold=0.95).threshold == 0.95
    assert policy.changed(refuse_below=0.1).threshold == 0.9
    with pytest.raises(ArgumentError, match="nothing would lie between"):
        policy.changed(refuse_below=0.95)


def test_policy_cannot_be_altered_after_it_was_read() -> None:
    policy = GatePolicy.from_table(table(threshold=0.9))

    with pytest.raises(ValidationError, match="frozen"):
        policy.threshold = 0.1


@pytest.mark.parametrize("age", [16, 21])
def test_limits_fitted_for_one_age_are_not_used_for_another(tmp_path: Path, age: int) -> None:
    (tmp_path / "policy.toml").write_text(
        FULL.replace("required_age = 18", f"required_age = {age}")
    )

    with pytest.raises(ArgumentError, match=rf"required_age is {age}, but .* fitted for 18"):
        GatePolicy.load(tmp_path / "policy.toml")


def test_limits_that_keep_the_young_out_are_not_used_to_keep_them_in(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(
        FULL.replace("required_age = 18", 'required_age = 18\nadmit = "under"')
    )

    with pytest.raises(ArgumentError, match=r"admits those under 18, but .* to admit those 18 or "):
        GatePolicy.load(tmp_path / "policy.toml")


def test_limits_that_keep_grown_ups_out_hold_for_their_own_age_only() -> None:
    fit = {
        "max_false_accept": 0.05,
        "confidence": 0.95,
        "minor_band": [6, 12],
        "adult_band": [13, 17],
        "date": "2026-11-20",
        "agelens": "0.1.0",
        "data": [{"name": "faces.parquet", "sha256": HASH, "rows": 10}],
        "promises": [
            {"error": "false_acceptance", "ages": ages, "faces": 60, "errors": 0, "upper": 0.049}
            for ages in ([13, 17], [13, 100])
        ],
    }
    limits = {"name": "children", "admit": "under", "threshold": 0.9, "fit": fit}

    assert GatePolicy.from_table({**limits, "required_age": 13}).fit is not None
    with pytest.raises(ArgumentError, match=r"required_age is 12, but .* were fitted for 13"):
        GatePolicy.from_table({**limits, "required_age": 12})
    with pytest.raises(ArgumentError, match=r"admits those 13 or over, but .* those under 13"):
        GatePolicy.from_table({**limits, "required_age": 13, "admit": "over"})


def test_a_promise_that_reaches_over_the_required_age_is_refused_and_not_cut(
    tmp_path: Path,
) -> None:
    refusals = """
[[fit.promises]]
error = "false_refusal"
ages = [16, 24]
faces = 60
errors = 0
upper = 0.049
"""
    (tmp_path / "policy.toml").write_text(FULL + refusals)

    with pytest.raises(ArgumentError, match="those aged 16 to 24 by mistake"):
        GatePolicy.load(tmp_path / "policy.toml")


# --- after the fit --------------------------------------------------------------------------------

MODEL = {"name": "ours@1.0", "sha256": HASH, "card_sha256": HASH}
FITTED = {
    "threshold": 0.97,
    "refuse_below": 0.2,
    "model": MODEL,
    "fit": {
        "max_false_accept": 0.05,
        "confidence": 0.95,
        "minor_band": [13, 17],
        "adult_band": [18, 24],
        "date": "2026-11-20",
        "agelens": "0.1.0",
        "data": [{"name": "faces.parquet", "sha256": HASH, "rows": 10}],
        "fitted": {
            "rule": "probability",
            "accept_from": 0.97,
            "refuse_under": 0.2,
            "correlation": 1.0,
            "model": MODEL,
        },
    },
}


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"threshold": 0.6}, "threshold"),
        ({"refuse_below": 0.5}, "refuse_below"),
        ({"frames": {"correlation": 0.0}}, "frames.correlation"),
        ({"model": {**MODEL, "name": "other@1.0", "sha256": "f" * 64}}, "model.name"),
        ({"model": {**MODEL, "detector": "none"}}, "model.detector"),
        ({"model": None}, "model.name"),
        (
            {"rule": "challenge", "challenge_age": 25.0, "threshold": None, "refuse_below": None},
            "rule",
        ),
    ],
)
def test_what_was_changed_by_hand_after_the_fit_does_not_keep_its_promise(
    fields: dict[str, Any], key: str
) -> None:
    changed = {k: v for k, v in (FITTED | fields).items() if v is not None}

    with pytest.raises(ArgumentError, match=f"{key} was changed after the fit.*fit again"):
        GatePolicy.from_table(table(**changed))


def test_what_no_promise_depends_on_can_be_changed_after_the_fit() -> None:
    policy = GatePolicy.from_table(table(**FITTED))

    assert policy.changed(name="shop", on_no_face="refuse", frames={"min": 3}).fit == policy.fit
    assert GatePolicy.from_table(table(threshold=0.6, model=MODEL)).fit is None


# --- the audit that is asked for ------------------------------------------------------------------


def test_audit_policy_is_the_strict_one_unless_another_is_named(tmp_path: Path) -> None:
    own = AuditPolicy.load("lenient").text.replace('name = "lenient"', 'name = "strict"')
    (tmp_path / "ours.toml").write_text(own)

    def sha256(**audit: str) -> str:
        return GatePolicy.from_table(table(audit=audit)).audit.audit_policy(tmp_path).sha256

    assert sha256() == AuditPolicy.load("strict").sha256
    assert sha256(policy="lenient") == AuditPolicy.load("lenient").sha256
    assert sha256(policy="ours.toml") == hashlib.sha256(own.encode()).hexdigest()
    with pytest.raises(ArgumentError, match=r"nowhere\.toml: no such policy"):
        sha256(policy="nowhere.toml")
