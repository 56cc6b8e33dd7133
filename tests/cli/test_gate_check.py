"""``agelens gate check``, ``keys`` and ``verify-journal`` as a user runs them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import pytest

pytest.importorskip("cryptography", reason="needs the 'gate' extra")
pytest.importorskip("jwt", reason="needs the 'gate' extra")
pytest.importorskip("scipy", reason="needs the 'gate' extra")

import jwt

from agelens import Analyzer
from agelens.evaluation.signing import key_folder
from agelens.gate.journal import Journal, head_path
from command_line import agelens
from gate.heads import Pose, poses, video
from gate.papers import OVERRIDE, policy_for, write_audit

FACES = Path(__file__).parents[1] / "faces"
ADULT, GROUP = FACES / "astronaut.jpg", FACES / "group.jpg"


@pytest.fixture
def door(analyzer: Analyzer, tmp_path: Path) -> Any:
    """Writes a policy with an audit beside it; gives the policy's path."""

    def write(**fields: Any) -> Path:
        write_audit(tmp_path / "audit.json", analyzer)
        policy_for(analyzer, **fields).save(tmp_path / "policy.toml")
        return tmp_path / "policy.toml"

    return write


# --- check ----------------------------------------------------------------------------------------


def test_an_adult_is_accepted_with_status_0(door: Any) -> None:
    done = agelens("gate", "check", ADULT, "--policy", door())

    assert done.status == 0, done.err
    assert done.out.splitlines()[0] == "accept"
    assert "clearly 18 or over" in done.out
    assert "probability of being 18 or over: at least 0.9" in done.out


@pytest.mark.parametrize(
    ("fields", "pictures", "outcome"),
    [
        ({"threshold": 0.9999}, [ADULT], "step_up"),
        ({"threshold": 0.99999, "refuse_below": 0.9999}, [ADULT], "refuse"),
        ({}, [GROUP], "step_up"),
        ({}, [FACES / "README.md"], "retry"),
    ],
    ids=["step_up", "refuse", "second face", "no picture"],
)
def test_everybody_else_has_status_1_and_the_outcome_printed(
    door: Any, fields: dict[str, Any], pictures: list[Path], outcome: str
) -> None:
    done = agelens("gate", "check", *pictures, "--policy", door(**fields))

    assert done.status == 1
    assert done.out.splitlines()[0] == outcome


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["missing.jpg"], r"missing\.jpg: cannot be read \(No such file or directory\)"),
        ([ADULT, "missing.jpg"], r"missing\.jpg: cannot be read"),
        (["shots"], r"shots: is a folder; name the frames of one person, or a video"),
        ([ADULT, "walk.mp4"], r"walk\.mp4: a video is given by itself"),
    ],
    ids=["missing", "one of two missing", "folder", "video beside a picture"],
)
def test_a_slip_of_the_operator_is_no_decision_and_is_not_recorded(
    door: Any, tmp_path: Path, given: list[str | Path], words: str
) -> None:
    policy = door(journal={"path": "gate.jsonl"})
    (tmp_path / "shots").mkdir()
    (tmp_path / "walk.mp4").write_bytes(b"frames")
    agelens("gate", "check", ADULT, "--policy", policy)
    before = (tmp_path / "gate.jsonl").read_bytes()

    done = agelens("gate", "check", *(tmp_path / path for path in given), "--policy", policy)

    assert done.status == 2
    assert done.out == ""
    assert re.search(words, " ".join(done.err.split()))
    assert (tmp_path / "gate.jsonl").read_bytes() == before


def test_a_file_that_is_no_picture_is_recorded_without_its_name_or_content(
    door: Any, tmp_path: Path
) -> None:
    policy = door(journal={"path": "gate.jsonl"})
    named = tmp_path / "jane-doe.jpg"
    for content in (b"jane-doe 1990", ADULT.read_bytes(), GROUP.read_bytes()):
        named.write_bytes(content)
        agelens("gate", "check", named, "--policy", policy)

    record = (tmp_path / "gate.jsonl").read_text()
    reasons = [json.loads(line)["reasons"] for line in record.splitlines()[1:]]

    assert "jane" not in record
    assert "1990" not in record
    assert [[one["code"] for one in found] for found in reasons] == [
        ["unreadable"],
        ["over_limit"],
        ["second_face"],
    ]
    assert [one["text"] for found in reasons for one in found] == [
        "not a readable picture: 1 of 1 frames",
        "clearly 18 or over",
        "more than one face in 1 of 1 frames",
    ]


def test_a_gate_for_the_young_says_so(door: Any) -> None:
    done = agelens("gate", "check", ADULT, "--policy", door(admit="under"))

    assert done.status == 1
    assert done.out.splitlines()[0] == "refuse"
    assert "clearly not under 18" in done.out
    assert "probability of being under 18: at least 0" in done.out


@pytest.mark.parametrize("liveness", ["none", "consistency"])
def test_moves_at_a_gate_that_does_not_look_at_them_are_refused(door: Any, liveness: str) -> None:
    policy = door(liveness=liveness)

    done = agelens("gate", "check", ADULT, "--policy", policy, "--moves", "left,right")

    assert done.status == 2
    assert f"--moves left,right: door has liveness = '{liveness}'" in " ".join(done.err.split())


def test_json_is_the_decision_on_one_line(door: Any) -> None:
    done = agelens("gate", "check", ADULT, ADULT, "--policy", door(), "--json")

    (line,) = done.lines
    assert line["schema"] == "agelens.gate-decision/1"
    assert (line["outcome"], line["frames"], line["used"]) == ("accept", 2, 2)


def test_a_gate_without_an_audit_stays_shut_with_status_2(door: Any, tmp_path: Path) -> None:
    policy = door()
    (tmp_path / "audit.json").unlink()

    done = agelens("gate", "check", ADULT, "--policy", policy)

    assert done.status == 2
    assert "stays shut" in done.err
    assert "make one with `agelens audit " in done.err


def test_an_audit_elsewhere_can_be_named(door: Any, tmp_path: Path) -> None:
    policy = door()
    elsewhere = (tmp_path / "audit.json").rename(tmp_path / "other.json")

    assert agelens("gate", "check", ADULT, "--policy", policy, "--audit", elsewhere).status == 0


def test_an_override_is_shown(door: Any, tmp_path: Path) -> None:
    policy = door(override=OVERRIDE)
    (tmp_path / "audit.json").unlink()

    done = agelens("gate", "check", ADULT, "--policy", policy)

    assert done.status == 0
    assert OVERRIDE["text"] in done.out
    assert "no audit at" in done.out


def test_a_model_file_can_be_named(door: Any, analyzer: Analyzer) -> None:
    done = agelens("gate", "check", ADULT, "--policy", door(), "--model", "default")

    assert done.status == 0, done.err


def test_a_recording_of_the_moves_is_accepted_and_a_still_one_is_not(
    door: Any, tmp_path: Path
) -> None:
    policy = door(liveness="challenge", frames={"min": 3, "max": 10})
    for name, path in (("moving", poses(["left", "closer"])), ("still", [Pose()] * 30)):
        images = video("astronaut", path)
        size = (images[0].shape[1], images[0].shape[0])
        writer = cv2.VideoWriter(
            str(tmp_path / f"{name}.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, size
        )
        for image in images:
            writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        writer.release()

    def check(name: str, *more: str) -> Any:
        return agelens("gate", "check", tmp_path / f"{name}.avi", "--policy", policy, *more)

    assert check("moving", "--moves", "left,closer").status == 0
    assert check("moving", "--moves", "closer,left").status == 1
    assert check("moving").status == 1
    assert check("still", "--moves", "left,closer").status == 1
    assert "'up' is no move" in check("moving", "--moves", "up,left").err


def test_a_token_is_printed_and_verifies_from_the_published_keys(door: Any, tmp_path: Path) -> None:
    policy = door(token={"issuer": "gate", "audience": "shop"})
    assert agelens("gate", "keys", "init", tmp_path / "gate-keys").status == 0
    published = agelens("gate", "keys", "jwks", tmp_path / "gate-keys").out

    (line,) = agelens("gate", "check", ADULT, "--policy", policy, "--nonce", "once", "--json").lines

    text = line["token"]["jwt"]
    key = jwt.PyJWKSet.from_json(published)[jwt.get_unverified_header(text)["kid"]]
    claims = jwt.decode(text, key, audience="shop", issuer="gate")
    assert (claims["over"], claims["nonce"]) == (18, "once")


@pytest.mark.parametrize("option", ["--moves", "--journal"])
def test_no_token_is_issued_for_a_trial(door: Any, tmp_path: Path, option: str) -> None:
    policy = door(
        liveness="challenge",
        frames={"min": 3, "max": 10},
        token={"issuer": "gate", "audience": "shop"},
    )
    agelens("gate", "keys", "init", tmp_path / "gate-keys")
    given = "left,right" if option == "--moves" else tmp_path / "other.jsonl"

    done = agelens("gate", "check", ADULT, "--policy", policy, "--nonce", "once", option, given)

    assert done.status == 2
    assert f"--nonce with {option}" in " ".join(done.err.split())
    assert not (tmp_path / "other.jsonl").exists()


def test_a_trial_is_marked_in_the_record_and_a_visit_is_not(door: Any, tmp_path: Path) -> None:
    policy = door(journal={"path": "gate.jsonl"})
    agelens("gate", "check", ADULT, "--policy", policy)
    agelens("gate", "check", ADULT, "--policy", policy, "--journal", tmp_path / "other.jsonl")

    visit, trial = (
        json.loads((tmp_path / name).read_text().splitlines()[1])
        for name in ("gate.jsonl", "other.jsonl")
    )

    assert "trial" not in visit
    assert trial["trial"] is True


# --- keys -----------------------------------------------------------------------------------------


def test_keys_are_made_rotated_and_published(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first = agelens("gate", "keys", "init", folder).out.split()[-1]
    rotated = agelens("gate", "keys", "rotate", folder).out.splitlines()
    second = rotated[0].removeprefix("signing key ")
    agelens("gate", "keys", "jwks", folder, "-o", tmp_path / "jwks.json")

    kids = [jwk["kid"] for jwk in json.loads((tmp_path / "jwks.json").read_text())["keys"]]
    assert kids == [second, first]
    (line,) = rotated[1:]
    until = datetime.strptime(line, f"{first} verifies until %Y-%m-%d %H:%M:%S UTC")
    left = until.replace(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(hours=23, minutes=59) < left <= timedelta(hours=24)


def test_after_a_theft_no_earlier_key_is_published_and_that_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    agelens("gate", "keys", "init", folder)
    agelens("gate", "keys", "rotate", folder)
    assert len(agelens("gate", "keys", "rotate", folder).out.splitlines()) == 3

    signing, said = agelens("gate", "keys", "rotate", folder, "--now").out.splitlines()

    published = json.loads(agelens("gate", "keys", "jwks", folder).out)
    assert [jwk["kid"] for jwk in published["keys"]] == [signing.removeprefix("signing key ")]
    assert said == "no earlier key verifies any more"


def test_keys_are_not_overwritten(tmp_path: Path) -> None:
    agelens("gate", "keys", "init", tmp_path)

    again = agelens("gate", "keys", "init", tmp_path)

    assert again.status == 2
    assert "keys rotate" in again.err


# --- verify-journal -------------------------------------------------------------------------------


@pytest.fixture
def journal(door: Any, tmp_path: Path) -> Path:
    """A record of three decisions."""
    policy = door(journal={"path": "gate.jsonl"})
    for _ in range(3):
        agelens("gate", "check", ADULT, "--policy", policy)
    return tmp_path / "gate.jsonl"


def test_a_whole_journal_is_intact(journal: Path) -> None:
    done = agelens("gate", "verify-journal", journal, "--key", key_folder() / "audit.pub")

    assert done.status == 0
    assert re.match(r"intact .*gate\.jsonl: 3 decisions, signed \d{4}-", done.out)


def test_a_changed_line_is_named(journal: Path) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"accept"', b'"refuse"')
    journal.write_bytes(b"".join(lines))

    done = agelens("gate", "verify-journal", journal)
    (facts,) = agelens("gate", "verify-journal", journal, "--json").lines

    assert done.status == 1
    assert "line 3: the line was changed" in done.out
    assert (facts["intact"], facts["line"]) == (False, 3)


def test_a_line_that_was_cut_short_is_unsigned_and_not_broken(journal: Path) -> None:
    with open(journal, "ab") as file:
        file.write(b'{"half')

    done = agelens("gate", "verify-journal", journal)
    (facts,) = agelens("gate", "verify-journal", journal, "--json").lines

    assert done.status == 3
    assert re.match(r"unsigned .*gate\.jsonl, line 5: 0 whole lines and 6 bytes", done.out)
    assert (facts["intact"], facts["state"]) == (False, "unsigned")


def test_an_older_copy_is_found_by_a_kept_head(journal: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "kept.head"
    anchor.write_bytes(head_path(journal).read_bytes())
    older = tmp_path / "older"
    with Journal(older) as fresh:
        fresh.append({"outcome": "accept"})
    journal.write_bytes(older.read_bytes())
    head_path(journal).write_bytes(head_path(older).read_bytes())

    assert agelens("gate", "verify-journal", journal).status == 0
    done = agelens("gate", "verify-journal", journal, "--anchor", anchor)
    assert done.status == 1
    assert "was cut" in done.out


def test_a_crash_is_reported_by_the_next_check_and_in_the_journal(
    journal: Path, tmp_path: Path
) -> None:
    with open(journal, "ab") as file:
        file.write(b'{"half')

    done = agelens("gate", "check", ADULT, "--policy", tmp_path / "policy.toml")

    assert done.status == 0
    assert "6 bytes of an unfinished line removed" in done.err
    checked = agelens("gate", "verify-journal", journal)
    assert checked.status == 0
    assert "line 5: the gate went on after a crash" in checked.out


def test_a_missing_journal_is_said(tmp_path: Path) -> None:
    Journal(tmp_path / "makes a key").close()

    done = agelens("gate", "verify-journal", tmp_path / "none")

    assert done.status == 2
    assert "cannot be read" in done.err
