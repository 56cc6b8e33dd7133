"""The gate: when it opens, what it says, and that it keeps nothing."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import subprocess
import sys
import threading
import uuid
import weakref
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("cryptography", reason="needs the 'gate' extra")
pytest.importorskip("jwt", reason="needs the 'gate' extra")
pytest.importorskip("scipy", reason="needs the 'gate' extra")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agelens import Analyzer
from agelens.errors import ArgumentError, GateError, JournalError
from agelens.evaluation.policy import AuditPolicy
from agelens.evaluation.signing import public_key_text
from agelens.fusion import fuse
from agelens.gate.decision import Decision, Gate, TimedFrame
from agelens.gate.journal import Journal, verify_journal
from agelens.gate.liveness import (
    MOVES,
    AttackDetectorCard,
    Challenge,
    LiveFrame,
    Reason,
)
from agelens.gate.token import ReplayCache, TokenKeys, TokenVerifier
from agelens.quality import QualityLimits
from gate.heads import Pixels, Pose, noisy, portrait, poses, seen, video
from gate.papers import OVERRIDE, policy_for, write_audit

FACES = Path(__file__).parents[1] / "faces"
ADULT = FACES / "astronaut.jpg"
OLDER = FACES / "hopper.jpg"
GROUP = FACES / "group.jpg"

Opener = Callable[..., Gate]


@pytest.fixture
def opened(analyzer: Analyzer, tmp_path: Path) -> Opener:
    """Opens a gate with a passed audit; the policy's fields can be changed."""

    def open_gate(*, options: dict[str, Any] | None = None, **fields: Any) -> Gate:
        write_audit(tmp_path / "audit.json", analyzer)
        policy = policy_for(analyzer, **fields)
        given: dict[str, Any] = {"folder": tmp_path, "analyzer": analyzer}
        return Gate(policy, **given | (options or {}))

    return open_gate


def blank(side: int = 200) -> Pixels:
    return np.full((side, side, 3), 128, np.uint8)


def blurred() -> Pixels:
    image, _ = portrait("astronaut")
    return cv2.GaussianBlur(image, (0, 0), 9).astype(np.uint8)


def reason_codes(decision: Decision) -> list[str]:
    return [reason.code for reason in decision.reasons]


# --- opening --------------------------------------------------------------------------------------


def test_a_gate_with_a_passed_audit_of_its_model_opens(opened: Opener) -> None:
    with opened() as gate:
        assert gate.audit.status == "passed"
        assert gate.audit.problem is None
        assert gate.decide(ADULT).accepted


def missing(path: Path, analyzer: Analyzer) -> None:
    assert not path.exists()


def failed(path: Path, analyzer: Analyzer) -> None:
    write_audit(path, analyzer, verdict="failed")


def expired(path: Path, analyzer: Analyzer) -> None:
    write_audit(path, analyzer, days=91)


def of_another_model(path: Path, analyzer: Analyzer) -> None:
    other = {"name": "other@1.0", "sha256": "0" * 64, "card_sha256": "0" * 64}
    write_audit(path, analyzer, model=other)


def of_another_calibration(path: Path, analyzer: Analyzer) -> None:
    write_audit(path, analyzer)
    document = json.loads(path.read_bytes())
    model = {**document["model"], "card_sha256": "0" * 64}
    write_audit(path, analyzer, model=model)


def by_a_stranger(path: Path, analyzer: Analyzer) -> None:
    write_audit(path, analyzer, key=Ed25519PrivateKey.generate())


def altered(path: Path, analyzer: Analyzer) -> None:
    failed(path, analyzer)
    path.write_bytes(path.read_bytes().replace(b'"failed"', b'"passed"'))


def no_audit_at_all(path: Path, analyzer: Analyzer) -> None:
    path.write_text("{}")


def lenient(path: Path, analyzer: Analyzer) -> None:
    policy = AuditPolicy.load("lenient")
    write_audit(path, analyzer, policy={"name": policy.name, "sha256": policy.sha256})


def by_a_homemade_policy_called_strict(path: Path, analyzer: Analyzer) -> None:
    write_audit(path, analyzer, policy={"name": "strict", "sha256": "e" * 64})


def with_another_detector(path: Path, analyzer: Analyzer) -> None:
    write_audit(path, analyzer, options={"detector": "none", "crops": True, "flip": False})


def with_mirrored_faces(path: Path, analyzer: Analyzer) -> None:
    write_audit(path, analyzer, options={"detector": "default", "crops": True, "flip": True})


AUDITS = [
    (missing, r"no audit at .*audit\.json; make one with `agelens audit \S+ DATA"),
    (failed, r"failed the audit by the policy 'strict'.*Take a model that passes"),
    (expired, r"expired on .*audit the model again"),
    (of_another_model, r"another model, or a changed one. Audit the model"),
    (of_another_calibration, r"has changed since the audit.*audit the model again"),
    (by_a_stranger, r"not the trusted one"),
    (altered, r"changed after it was signed"),
    (no_audit_at_all, r"no audit: its schema"),
    (lenient, r"judged by another policy \('lenient'.* than 'strict'"),
    (by_a_homemade_policy_called_strict, r"judged by another policy \('strict'.* than 'strict'"),
    (with_another_detector, r"audited with detector = 'none', and the gate 'door' uses 'default'"),
    (with_mirrored_faces, r"audited with flip = True, and the gate 'door' uses False"),
]


@pytest.mark.parametrize(("make", "words"), AUDITS, ids=lambda v: getattr(v, "__name__", ""))
def test_without_a_valid_audit_a_gate_stays_shut_and_says_what_to_do(
    analyzer: Analyzer, tmp_path: Path, make: Any, words: str
) -> None:
    write_audit(tmp_path / "first.json", analyzer)  # so that this installation has a key
    make(tmp_path / "audit.json", analyzer)

    with pytest.raises(GateError, match=words) as shut:
        Gate(policy_for(analyzer), folder=tmp_path, analyzer=analyzer)

    assert "stays shut" in str(shut.value)
    assert "[override] with text, name and date" in str(shut.value)


@pytest.mark.parametrize(("make", "words"), AUDITS, ids=lambda v: getattr(v, "__name__", ""))
def test_the_operators_override_opens_it_and_stands_in_every_decision(
    analyzer: Analyzer, tmp_path: Path, make: Any, words: str
) -> None:
    write_audit(tmp_path / "first.json", analyzer)
    make(tmp_path / "audit.json", analyzer)
    policy = policy_for(analyzer, override=OVERRIDE, journal={"path": "j"})

    with Gate(policy, folder=tmp_path, analyzer=analyzer) as gate:
        decisions = [gate.decide(ADULT), gate.decide(blank())]

    recorded = [json.loads(line) for line in (tmp_path / "j").read_bytes().splitlines()[1:]]
    for decision, record in zip(decisions, recorded, strict=True):
        assert decision.audit.status == "overridden"
        assert decision.audit.problem
        assert record["override"] == OVERRIDE
        assert record["audit"]["problem"] == decision.audit.problem


def test_an_audit_by_the_policy_that_the_gate_names_opens_it(
    analyzer: Analyzer, tmp_path: Path
) -> None:
    own = AuditPolicy.load("lenient").text.replace('name = "lenient"', 'name = "ours"')
    (tmp_path / "ours.toml").write_text(own)
    sha256 = hashlib.sha256(own.encode()).hexdigest()
    write_audit(tmp_path / "audit.json", analyzer, policy={"name": "ours", "sha256": sha256})

    def opened_for(policy: str) -> Gate:
        fields = {"audit": {"policy": policy}}
        return Gate(policy_for(analyzer, **fields), folder=tmp_path, analyzer=analyzer)

    with opened_for("ours.toml") as gate:
        assert (gate.audit.policy, gate.audit.policy_sha256) == ("ours", sha256)
        assert gate.decide(ADULT).to_dict()["audit"]["policy_sha256"] == sha256
    with pytest.raises(GateError, match="judged by another policy"):
        opened_for("lenient")
    with pytest.raises(GateError, match=r"audit\.policy = 'gone\.toml' of door.*no such policy"):
        opened_for("gone.toml")


def test_an_audit_older_than_the_policy_allows_does_not_open_it(
    analyzer: Analyzer, tmp_path: Path
) -> None:
    write_audit(tmp_path / "audit.json", analyzer, days=31)

    Gate(policy_for(analyzer), folder=tmp_path, analyzer=analyzer).close()
    with pytest.raises(GateError, match="none older than 30 days"):
        Gate(policy_for(analyzer, audit={"max_age_days": 30}), folder=tmp_path, analyzer=analyzer)


def test_an_audit_that_runs_out_shuts_an_open_gate(analyzer: Analyzer, tmp_path: Path) -> None:
    write_audit(tmp_path / "audit.json", analyzer)
    now = [datetime.now(UTC)]
    with Gate(
        policy_for(analyzer), folder=tmp_path, analyzer=analyzer, clock=lambda: now[0]
    ) as gate:
        assert gate.decide(ADULT).accepted
        now[0] += timedelta(days=89.5)
        with pytest.raises(GateError, match="expired"):
            gate.decide(ADULT)


def test_an_audit_by_a_key_that_the_policy_names_is_trusted(
    analyzer: Analyzer, tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.generate()
    write_audit(tmp_path / "elsewhere.json", analyzer, key=key)
    (tmp_path / "auditor.pub").write_text(public_key_text(key) + "\n")

    for named in (public_key_text(key), "auditor.pub"):
        policy = policy_for(analyzer, audit={"key": named})
        with Gate(
            policy, folder=tmp_path, analyzer=analyzer, audit=tmp_path / "elsewhere.json"
        ) as gate:
            assert gate.audit.key == public_key_text(key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, "limits were fitted for .*fit the policy again"),
        ({"card_sha256": "0" * 64}, "has changed since the fit.*fit the policy again"),
        ({"detector": "none"}, "fitted with detector = 'none'"),
        ({"flip": True}, "fitted with flip = True"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_policy_fitted_for_another_model_or_way_of_asking_is_refused(
    analyzer: Analyzer, opened: Opener, change: dict[str, Any], words: str
) -> None:
    model = policy_for(analyzer).to_table()["model"] | change

    with pytest.raises(GateError, match=words):
        opened(model=model)


@pytest.mark.parametrize(
    "options", [{"crops": True}, {"quality": QualityLimits.off()}], ids=lambda o: next(iter(o))
)
def test_an_analyzer_that_answers_otherwise_than_in_the_fit_is_refused(
    opened: Opener, options: dict[str, Any]
) -> None:
    with pytest.raises(GateError, match="make one with the fitted options"):
        opened(options={"analyzer": Analyzer(**options)})


@pytest.mark.parametrize("fields", [{"threshold": None}, {"model": None}], ids=str)
def test_a_policy_that_was_not_fitted_does_not_open(opened: Opener, fields: Any) -> None:
    with pytest.raises(GateError, match="agelens gate fit"):
        opened(**fields)


def test_a_gate_makes_the_analyzer_that_its_policy_was_fitted_for(
    analyzer: Analyzer, tmp_path: Path
) -> None:
    write_audit(tmp_path / "audit.json", analyzer)
    policy_for(analyzer).save(tmp_path / "policy.toml")

    with Gate(tmp_path / "policy.toml") as gate:
        assert gate.analyzer.model == analyzer.model
        assert gate.decide(ADULT).accepted


# --- outcomes -------------------------------------------------------------------------------------


def chance(analyzer: Analyzer, picture: Path, age: int = 18) -> float:
    return analyzer(picture).faces[0].age.probability_at_least(age)


@pytest.mark.parametrize(
    ("over", "under", "outcome", "code"),
    [
        (-0.2, -0.9, "accept", "over_limit"),
        (0.2, -0.2, "step_up", "between_limits"),
        (0.4, 0.2, "refuse", "under_limit"),
    ],
)
def test_the_limits_on_the_probability_decide(
    analyzer: Analyzer, opened: Opener, over: float, under: float, outcome: str, code: str
) -> None:
    found = chance(analyzer, ADULT)

    def near(share: float) -> float:
        """Over what was found by a share of the way to 1, or under it by a share of the rest."""
        return found + share * ((1 - found) if share > 0 else found)

    with opened(threshold=near(over), refuse_below=near(under)) as gate:
        decision = gate.decide(ADULT)

    assert decision.outcome == outcome
    assert reason_codes(decision) == [code]
    assert decision.accepted == (outcome == "accept")


@pytest.mark.parametrize(
    ("over", "under", "outcome"), [(-1, -5, "accept"), (1, -1, "step_up"), (3, 1, "refuse")]
)
def test_the_limits_on_the_expected_age_decide(
    analyzer: Analyzer, opened: Opener, over: float, under: float, outcome: str
) -> None:
    mean = analyzer(ADULT).faces[0].age.mean

    limits = {
        "rule": "challenge",
        "challenge_age": mean + over,
        "refuse_under_age": mean + under,
        "threshold": None,
        "refuse_below": None,
    }

    with opened(**limits) as gate:
        assert gate.decide(ADULT).outcome == outcome


def test_frames_are_fused_with_the_policys_correlation(analyzer: Analyzer, opened: Opener) -> None:
    images = [noisy(seen("astronaut", Pose(yaw)), 1, 6) for yaw in (-8, 0, 8)]
    ages = [analyzer(image).faces[0].age for image in images]

    for rho in (0.0, 0.6, 1.0):
        expected = fuse(ages, correlation=rho).age.probability_at_least(18)
        for margin, outcome in ((-1e-4, "accept"), (1e-4, "step_up")):
            limit = min(1.0, expected + margin)
            if limit <= expected and margin > 0:
                continue
            with opened(threshold=limit, frames={"max": 3, "correlation": rho}) as gate:
                decision = gate.decide(images)
            assert decision.outcome == outcome
            assert decision.used == 3


@pytest.mark.parametrize("steps", ["under and over", "over"])
def test_a_decision_keeps_only_the_step_that_the_probability_reached(
    analyzer: Analyzer, opened: Opener, steps: str
) -> None:
    found = chance(analyzer, ADULT)
    under, over = round(found - 0.03, 2), (1 + found) / 2
    chances = (0.0, under, over) if steps == "under and over" else (over,)

    with opened(journal={"path": "j", "confidence_steps": chances}) as gate:
        kept = gate.decide(ADULT).confidence

    assert kept == (under if steps == "under and over" else None)


def test_the_same_policy_text_decides_the_same_way(opened: Opener) -> None:
    images = video("astronaut", [Pose(yaw) for yaw in (0, 8, 12, 4)])
    results = set()
    for _ in range(3):
        with opened(frames={"min": 2, "max": 4}, liveness="consistency") as gate:
            one = gate.decide(images)
            results.add((one.outcome, one.reasons, one.confidence, one.used, one.policy_sha256))

    assert len(results) == 1


# --- what is in the way ---------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["step_up", "refuse", "retry"])
@pytest.mark.parametrize(
    ("key", "picture", "code"),
    [
        ("on_no_face", blank(), "no_face"),
        ("on_second_face", GROUP, "second_face"),
        ("on_unusable", blurred(), "unusable"),
        ("on_unusable", b"no picture at all", "unreadable"),
        ("on_unusable", FACES / "not there.jpg", "unreadable"),
    ],
    ids=["no face", "second face", "unusable", "unreadable bytes", "missing file"],
)
def test_what_keeps_it_from_an_estimate_is_answered_as_the_policy_says(
    opened: Opener, key: str, picture: Any, code: str, answer: str
) -> None:
    with opened(**{key: answer}) as gate:
        decision = gate.decide([picture])

    assert decision.outcome == answer
    assert code in reason_codes(decision)
    assert decision.confidence is None
    assert decision.used == 0


def test_frames_that_cannot_be_used_are_left_out_when_enough_remain(opened: Opener) -> None:
    with opened(frames={"min": 2, "max": 9}) as gate:
        decision = gate.decide([blank(), ADULT, b"garbage", ADULT, blurred()])

    assert decision.accepted
    assert (decision.frames, decision.used) == (5, 2)


def test_a_second_face_in_any_frame_is_answered_first(opened: Opener) -> None:
    with opened(frames={"min": 1, "max": 9}, on_second_face="refuse") as gate:
        decision = gate.decide([ADULT, ADULT, GROUP])

    assert decision.outcome == "refuse"
    assert reason_codes(decision) == ["second_face"]


def test_too_few_frames_are_said(opened: Opener) -> None:
    with opened(frames={"min": 3, "max": 9}) as gate:
        decision = gate.decide([ADULT, ADULT])

    assert decision.outcome == "retry"
    assert reason_codes(decision) == ["too_few_frames"]


def test_the_reasons_of_a_poor_picture_are_in_words_without_measurements(opened: Opener) -> None:
    with opened() as gate:
        (reason,) = gate.decide([blurred()]).reasons

    assert reason.text == "too poor for an estimate in 1 of 1 frames: blurred"


def test_no_more_frames_are_looked_at_than_the_policy_says(opened: Opener) -> None:
    def endless() -> Any:
        yield ADULT
        yield ADULT
        raise AssertionError("a third frame was asked for")

    with opened(frames={"min": 1, "max": 2}) as gate:
        assert gate.decide(endless()).frames == 2


def test_a_decision_needs_a_frame(opened: Opener) -> None:
    with opened() as gate, pytest.raises(ArgumentError, match="at least one frame"):
        gate.decide([])


@pytest.mark.parametrize(
    "form",
    [
        lambda path: path,
        lambda path: str(path),
        lambda path: path.read_bytes(),
        lambda path: io.BytesIO(path.read_bytes()),
        lambda path: Image.open(path),
        lambda path: np.asarray(Image.open(path)),
        lambda path: np.asarray(Image.open(path))[None],
        lambda path: TimedFrame(path, 0.5),
        lambda path: (frame for frame in [path]),
    ],
    ids=["path", "text", "bytes", "file", "pil", "array", "stack", "timed", "generator"],
)
def test_a_frame_may_come_in_any_form(opened: Opener, form: Any) -> None:
    with opened() as gate:
        decision = gate.decide(form(ADULT))

    assert decision.accepted
    assert decision.frames == 1


# --- presentation attacks -------------------------------------------------------------------------


def timed(images: Sequence[NDArray[np.uint8]]) -> list[TimedFrame]:
    return [TimedFrame(image, row * 0.1) for row, image in enumerate(images)]


@pytest.mark.parametrize("answer", ["step_up", "refuse", "retry"])
def test_a_photograph_held_still_is_answered_as_the_policy_says(
    opened: Opener, answer: str
) -> None:
    still = video("astronaut", [Pose()] * 5)

    with opened(
        frames={"min": 2, "max": 5}, liveness="consistency", on_failed_liveness=answer
    ) as gate:
        decision = gate.decide(still)

    assert decision.outcome == answer
    assert reason_codes(decision) == ["still_picture"]
    assert decision.confidence is None


def test_a_person_who_moves_passes_the_passive_check(opened: Opener) -> None:
    moving = video("astronaut", [Pose(yaw) for yaw in (0, 4, 8, 12, 16)])

    with opened(frames={"min": 2, "max": 5}, liveness="consistency") as gate:
        decision = gate.decide(moving)

    assert decision.accepted
    assert decision.liveness == ("agelens-consistency",)


@pytest.fixture
def active(opened: Opener) -> Gate:
    """A gate that asks for head turns."""
    return opened(frames={"min": 3, "max": 10}, liveness="challenge")


def test_the_moves_that_were_asked_for_open_the_gate_once(active: Gate) -> None:
    with active as gate:
        challenge = gate.challenge()
        frames = timed(video("astronaut", poses(challenge.moves)))

        first = gate.decide(frames, challenge=challenge)
        again = gate.decide(frames, challenge=challenge)

    assert first.accepted
    assert first.liveness == ("agelens-head-turn", "agelens-consistency")
    assert first.used == 10
    assert again.outcome == "retry"
    assert reason_codes(again) == ["unknown_challenge"]


def test_a_failed_try_uses_the_challenge_up_too(active: Gate) -> None:
    with active as gate:
        challenge = gate.challenge_of(MOVES)
        still = gate.decide(timed(video("astronaut", [Pose()] * 40)), challenge=challenge)
        moving = gate.decide(timed(video("astronaut", poses(MOVES))), challenge=challenge)

    assert "wrong_moves" in reason_codes(still)
    assert reason_codes(moving) == ["unknown_challenge"]


def test_moves_in_another_order_do_not_open_it(active: Gate) -> None:
    with active as gate:
        challenge = gate.challenge_of(("closer", "right", "left"))
        decision = gate.decide(timed(video("astronaut", poses(MOVES))), challenge=challenge)

    assert decision.outcome == "retry"
    assert reason_codes(decision) == ["wrong_moves"]


def test_without_a_challenge_or_with_a_foreign_one_it_does_not_open(
    active: Gate, opened: Opener
) -> None:
    frames = timed(video("astronaut", poses(MOVES)))
    with active as gate:
        none = gate.decide(frames)
        foreign = gate.decide(frames, challenge=Challenge.draw())
        challenge = gate.challenge_of(("left", "right"))
        forged = Challenge(challenge.nonce, MOVES, challenge.issued, challenge.expires)
        changed = gate.decide(frames, challenge=forged)

    assert reason_codes(none) == ["no_challenge"]
    assert reason_codes(foreign) == ["unknown_challenge"]
    assert reason_codes(changed) == ["unknown_challenge"]


def test_a_late_answer_does_not_open_it(analyzer: Analyzer, tmp_path: Path) -> None:
    write_audit(tmp_path / "audit.json", analyzer)
    now = [datetime.now(UTC)]
    policy = policy_for(analyzer, frames={"max": 10}, liveness="challenge")
    with Gate(policy, folder=tmp_path, analyzer=analyzer, clock=lambda: now[0]) as gate:
        challenge = gate.challenge_of(MOVES, time_limit_s=30)
        now[0] += timedelta(seconds=31)
        decision = gate.decide(timed(video("astronaut", poses(MOVES))), challenge=challenge)

    assert reason_codes(decision) == ["challenge_expired"]


def test_a_change_of_person_within_the_challenge_does_not_open_it(active: Gate) -> None:
    path = poses(MOVES)
    half = len(path) // 2
    images = video("astronaut", path[:half]) + video("hopper", path[half:])

    with active as gate:
        decision = gate.decide(timed(images), challenge=gate.challenge_of(MOVES))

    assert decision.outcome == "retry"
    assert {"jump", "person_changed"} & set(reason_codes(decision))


@pytest.mark.parametrize("liveness", ["none", "consistency"])
def test_moves_that_nothing_would_look_at_are_not_asked_for(opened: Opener, liveness: str) -> None:
    stranger = Challenge.draw(2, time_limit_s=30)
    with opened(liveness=liveness, journal={"path": "j"}) as gate:
        with pytest.raises(ArgumentError, match=rf"liveness = '{liveness}', so nothing looks"):
            gate.challenge()
        with pytest.raises(ArgumentError, match=rf"liveness = '{liveness}', so nothing looks"):
            gate.challenge_of(MOVES)
        with pytest.raises(ArgumentError, match="leave the challenge out"):
            gate.decide(ADULT, challenge=stranger)

        assert gate.journal is not None
        assert gate.journal.count == 1


def test_a_detector_of_others_may_look_at_the_moves(opened: Opener) -> None:
    with opened(options={"detectors": [Suspicious()]}) as gate:
        decision = gate.decide(ADULT, challenge=gate.challenge())

    assert reason_codes(decision) == ["mask"]


def test_moves_that_were_given_and_not_drawn_are_marked_in_the_record(
    active: Gate, tmp_path: Path
) -> None:
    few = timed(video("astronaut", [Pose()] * 3))
    with active as gate:
        given = gate.decide(few, challenge=gate.challenge_of(MOVES))
        trial = gate.decide(few, trial=True)
        drawn = gate.decide(few, challenge=gate.challenge())

    assert [one.to_record().get("trial") for one in (given, trial, drawn)] == [True, True, None]


def test_frames_without_a_face_between_the_moves_are_missing_frames(active: Gate) -> None:
    """Where somebody could have taken the other's place."""
    images = video("astronaut", poses(("left", "closer")))
    for hidden, expected in ((3, []), (5, ["gap"])):
        frames: list[Any] = [*images[:20], *[blank()] * hidden, *images[20:]]
        with active as gate:
            decision = gate.decide(frames, challenge=gate.challenge_of(("left", "closer")))
        assert [c for c in reason_codes(decision) if c == "gap"] == expected


def test_endless_frames_do_not_answer_a_challenge(active: Gate) -> None:
    with active as gate, pytest.raises(ArgumentError, match="more than 300 frames"):
        gate.decide([blank(32)] * 301, challenge=gate.challenge())


def test_a_video_file_is_taken_apart_with_its_times(active: Gate, tmp_path: Path) -> None:
    images = video("astronaut", poses(MOVES))
    path = tmp_path / "answer.avi"
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    for image in images:
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()

    with active as gate:
        decision = gate.decide(path, challenge=gate.challenge_of(MOVES))

    assert decision.accepted
    assert decision.frames == len(images)


def test_a_broken_video_is_an_unreadable_picture(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")

    with opened() as gate:
        decision = gate.decide(tmp_path / "a.mp4")

    assert reason_codes(decision) == ["unreadable"]


class Suspicious:
    """A detector of somebody else, which takes everybody for an attack."""

    card = AttackDetectorCard(name="suspicious", version="1")

    def check(self, frames: Sequence[LiveFrame], challenge: Challenge | None) -> tuple[Reason, ...]:
        return (Reason("mask", f"{len(frames)} masks"),)


def test_a_detector_of_others_has_its_say(opened: Opener) -> None:
    with opened(options={"detectors": [Suspicious()]}) as gate:
        decision = gate.decide(ADULT)

    assert decision.outcome == "retry"
    assert decision.reasons == (Reason("mask", "1 masks"),)
    assert decision.liveness == ("suspicious",)


# --- tokens ---------------------------------------------------------------------------------------

TOKEN: dict[str, Any] = {"issuer": "https://gate.example", "audience": "https://shop.example"}


def test_who_is_accepted_gets_a_token_that_says_so_and_no_more(
    opened: Opener, tmp_path: Path
) -> None:
    keys = TokenKeys.create(tmp_path / "gate-keys")
    with opened(token=TOKEN) as gate, ReplayCache() as replays:
        decision = gate.decide(ADULT, nonce="once")

        assert decision.token is not None
        verifier = TokenVerifier(keys.jwks(), replays=replays, **TOKEN)
        claims = verifier.verify(decision.token.text, nonce="once", at_least=18)

    assert claims.over == 18
    assert decision.to_dict()["token"]["jwt"] == decision.token.text


def test_nobody_else_gets_one(opened: Opener, tmp_path: Path) -> None:
    TokenKeys.create(tmp_path / "gate-keys")
    with opened(token=TOKEN, threshold=0.9999) as gate:
        assert gate.decide(ADULT, nonce="once").token is None
        assert gate.decide(blank(), nonce="once").token is None
    with opened(token=TOKEN) as gate:
        assert gate.decide(ADULT).token is None


def test_a_nonce_without_tokens_in_the_policy_is_a_mistake(opened: Opener) -> None:
    with opened() as gate, pytest.raises(ArgumentError, match="no \\[token\\]"):
        gate.decide(ADULT, nonce="once")


def test_a_gate_that_cannot_sign_its_tokens_does_not_open(opened: Opener) -> None:
    with pytest.raises(GateError, match="agelens gate keys init"):
        opened(token=TOKEN)


# --- a gate for the young -------------------------------------------------------------------------


def test_a_gate_for_the_young_lets_in_who_is_clearly_under_the_age(
    opened: Opener, tmp_path: Path
) -> None:
    keys = TokenKeys.create(tmp_path / "gate-keys")
    with opened(required_age=90, admit="under", token=TOKEN, journal={"path": "j"}) as gate:
        decision = gate.decide(ADULT, nonce="once")

    assert decision.outcome == "accept"
    assert decision.reasons == (Reason("over_limit", "clearly under 90"),)
    assert decision.confidence is not None
    assert decision.confidence >= 0.9
    record = json.loads((tmp_path / "j").read_bytes().splitlines()[-1])
    assert (record["required_age"], record["admit"]) == (90, "under")
    assert decision.token is not None
    with ReplayCache() as replays:
        verifier = TokenVerifier(keys.jwks(), replays=replays, **TOKEN)
        claims = verifier.verify(decision.token.text, nonce="once", under=90)
    assert (claims.under, claims.over) == (90, None)


def test_a_gate_for_the_young_keeps_a_grown_up_out(opened: Opener) -> None:
    with opened(required_age=18, admit="under") as gate:
        refused = gate.decide(ADULT)
    with opened(required_age=18, admit="under", refuse_below=None) as gate:
        sent_on = gate.decide(ADULT)

    assert refused.outcome == "refuse"
    assert refused.reasons[0].text == "clearly not under 18"
    assert refused.confidence == 0.0
    assert sent_on.outcome == "step_up"
    assert sent_on.reasons[0].text == "not sure enough to say under 18"


# --- the record -----------------------------------------------------------------------------------


def test_every_decision_is_in_the_journal_before_it_is_given(
    opened: Opener, tmp_path: Path
) -> None:
    with opened(journal={"path": "j"}) as gate:
        pictures: list[Path | Pixels] = [ADULT, blank(), GROUP, OLDER]
        for number, picture in enumerate(pictures, start=1):
            decision = gate.decide([picture])
            last = json.loads((tmp_path / "j").read_bytes().splitlines()[-1])
            assert {k: v for k, v in last.items() if k not in ("seq", "prev")} == (
                decision.to_record()
            )
            assert last["seq"] == number

    assert verify_journal(tmp_path / "j").intact


def test_the_record_names_policy_model_and_audit_and_nothing_of_the_face(
    analyzer: Analyzer, opened: Opener, tmp_path: Path
) -> None:
    TokenKeys.create(tmp_path / "gate-keys")
    steps = (0.0, 0.5)
    with opened(journal={"path": "j", "confidence_steps": steps}, token=TOKEN) as gate:
        decision = gate.decide(ADULT, nonce="once")

    line = (tmp_path / "j").read_text().splitlines()[-1]
    record = json.loads(line)
    assert record["policy"] == {"name": "door", "sha256": gate.policy.sha256}
    assert record["model"]["name"] == analyzer.model
    assert record["audit"]["status"] == "passed"
    assert record["confidence"] == 0.5
    assert record["token"] is True
    assert decision.token is not None
    assert decision.token.jti not in line
    assert "astronaut" not in line
    assert sorted(record) == sorted(
        [
            *("seq", "prev", "schema", "id", "time", "outcome", "reasons", "confidence", "frames"),
            *("used", "required_age", "admit", "policy", "model", "audit", "override", "liveness"),
            *("token", "agelens"),
        ]
    )


def test_without_a_record_there_is_no_answer(opened: Opener, tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        gate = opened(options={"journal": journal})
        journal.close()
        with pytest.raises(JournalError, match="closed"):
            gate.decide(ADULT)


def test_a_journal_of_the_callers_stays_open(opened: Opener, tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        with opened(options={"journal": journal}) as gate:
            gate.decide(ADULT)
        journal.append({"outcome": "accept"})
        assert journal.count == 3


def test_two_gates_do_not_write_one_journal(opened: Opener) -> None:
    with (
        opened(journal={"path": "j"}),
        pytest.raises(JournalError, match="another gate writes"),
    ):
        opened(journal={"path": "j"})


def test_decisions_have_identifiers_that_sort_by_time(opened: Opener) -> None:
    with opened() as gate:
        decisions = [gate.decide(blank(64)) for _ in range(3)]

    assert len({one.id for one in decisions}) == 3
    assert all(uuid.UUID(one.id).version == 7 for one in decisions)
    assert all(one.time.tzinfo is not None for one in decisions)


def test_threads_may_ask_one_gate(opened: Opener, tmp_path: Path) -> None:
    outcomes: list[str] = []
    with opened(journal={"path": "j"}) as gate:
        threads = [
            threading.Thread(target=lambda: outcomes.append(gate.decide(ADULT).outcome))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert outcomes == ["accept"] * 4
    assert verify_journal(tmp_path / "j").decisions == 4


# --- nothing is kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("liveness", ["none", "consistency", "challenge"])
def test_no_frame_outlives_the_call(opened: Opener, liveness: str) -> None:
    with opened(frames={"max": 60}, liveness=liveness) as gate:
        images = [np.array(image) for image in video("astronaut", poses(MOVES))]
        kept = [weakref.ref(image) for image in images]
        challenge = gate.challenge_of(MOVES) if liveness == "challenge" else None
        gate.decide(images, challenge=challenge)

        del images
        gc.collect()

        assert [one() for one in kept if one() is not None] == []


ON_WATCH = """
import sys
from pathlib import Path

from agelens.gate.decision import Gate

folder, picture = Path(sys.argv[1]), Path(sys.argv[2])
written = []


def watch(event, arguments):
    if event == "open" and watching:
        path, mode, flags = arguments
        import os
        if (flags or 0) & (os.O_WRONLY | os.O_RDWR) or set(str(mode)) & set("wax+"):
            written.append(str(path))
    elif watching and event in ("os.rename", "os.mkdir", "shutil.copyfile", "socket.connect"):
        written.append(f"{event} {arguments}")


watching = False
sys.addaudithook(watch)
with Gate(folder / "policy.toml") as gate:
    gate.decide(picture)
    watching = True
    outcome = gate.decide([picture, picture.read_bytes()]).outcome
    watching = False
print(outcome, written)
"""


def test_a_decision_without_a_journal_writes_nothing_and_connects_nowhere(
    analyzer: Analyzer, tmp_path: Path
) -> None:
    write_audit(tmp_path / "audit.json", analyzer)
    policy_for(analyzer, liveness="consistency", frames={"max": 3}).save(tmp_path / "policy.toml")

    done = subprocess.run(
        [sys.executable, "-c", ON_WATCH, str(tmp_path), str(ADULT)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert done.stdout == "retry []\n", done.stderr
