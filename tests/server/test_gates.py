"""Age checks over HTTP: the same decisions as the command, recorded, and nothing kept."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image

from agelens import Analyzer, Client, ServiceError
from agelens.errors import ArgumentError
from agelens.gate.decision import Gate, look
from agelens.gate.journal import verify_journal
from agelens.gate.token import ReplayCache, TokenKeys, TokenVerifier
from agelens.server.gates import Gates
from agelens.server.keys import KeyFile, Scope
from agelens.settings import ServerSettings
from command_line import agelens
from gate.heads import Pixels, Pose, noisy, poses, seen, video
from gate.papers import OVERRIDE, policy_for, write_audit
from server.conftest import RunningServer, StartServer, close, launch

FACES = Path(__file__).parents[1] / "faces"
ADULT, OLDER, GROUP = (FACES / f"{name}.jpg" for name in ("astronaut", "hopper", "group"))
ISSUER, AUDIENCE = "https://gate.example", "https://shop.example"


@dataclass(frozen=True)
class Site:
    """A server with gates.

    Attributes:
        server: The server.
        policies: Its folder of policies.
        temporary: What it has for a temporary folder.
        keys: Keys by scope.
    """

    server: RunningServer
    policies: Path
    temporary: Path
    keys: Mapping[str, str]

    def ask(self, path: str, scope: str = "gate", **options: Any) -> httpx2.Response:
        headers = {"x-api-key": self.keys[scope], **options.pop("headers", {})}
        return self.server.post(path, headers=headers, **options)

    def decide(self, policy: str, pictures: Sequence[bytes], **fields: Any) -> dict[str, Any]:
        body = {"policy": policy, "frames": [encoded(one) for one in pictures], **fields}
        answer = self.ask("/v1/gate", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def site(
    own_registry: Path, analyzer: Analyzer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("gates")
    policies, temporary = folder / "policies", folder / "temporary"
    policies.mkdir()
    temporary.mkdir()
    write_policies(policies, analyzer)
    ring = KeyFile(folder / "keys.toml")
    keys = {scope.value: ring.add(scope.value, [scope]).text for scope in Scope}
    server = launch(
        folder,
        *("--keys", str(folder / "keys.toml"), "--workers", "1"),
        *("--set", f"policies={policies}", "--set", "max_frames=60", "--set", "max_clip_seconds=3"),
        *("--set", "rate_per_minute=100000", "--set", "rate_per_address=100000"),
        env={"TMPDIR": str(temporary)},
    )
    yield Site(server, policies, temporary, keys)
    close(server)


def write_policies(folder: Path, analyzer: Analyzer) -> None:
    def save(name: str, **fields: Any) -> None:
        policy_for(analyzer, name=name, **fields).save(folder / f"{name}.toml")

    write_audit(folder / "audit.json", analyzer)
    write_audit(folder / "failed.json", analyzer, verdict="failed")
    TokenKeys.create(folder / "gate-keys")
    save(
        "door",
        summary="At the door.",
        frames={"max": 5},
        journal={"path": "door.jsonl"},
        token={"issuer": ISSUER, "audience": AUDIENCE},
    )
    save("moves", liveness="challenge", frames={"max": 6, "min": 2})
    save("steady", liveness="consistency", frames={"max": 4, "min": 2}, journal={"path": "s.jsonl"})
    save("full", journal={"path": "full.jsonl"})
    save("unaudited", audit={"path": "none.json"})
    save("failed", audit={"path": "failed.json"})
    save("trial", audit={"path": "none.json"}, override=OVERRIDE)
    save("unfitted", threshold=None)
    (folder / "broken.toml").write_text("required_age = 'many'\n")


def encoded(picture: bytes, seconds: float | None = None) -> dict[str, Any]:
    text = base64.b64encode(picture).decode()
    return {"base64": text} if seconds is None else {"base64": text, "seconds": seconds}


def jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def recording(path: Path, frames: Sequence[Pixels], rate: float = 10.0) -> Path:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def by_the_command(folder: Path, policy: str, *paths: Path) -> dict[str, Any]:
    """What ``agelens gate check`` says; on another journal, for the server has the policy's."""
    journal = folder.parent / f"command-{policy}.jsonl"
    arguments = ("--policy", folder / f"{policy}.toml", "--journal", journal, "--json")
    found: dict[str, Any] = json.loads(agelens("gate", "check", *paths, *arguments).out)
    return found


PER_DECISION = ("id", "time", "token", "trial")


def lasting(decision: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in decision.items() if name not in PER_DECISION}


# --- decisions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "pictures"),
    [
        ("door", [ADULT]),
        ("door", [ADULT, OLDER, ADULT, OLDER, ADULT, OLDER]),
        ("door", [GROUP]),
        ("steady", [ADULT, ADULT]),
        ("steady", [ADULT]),
        ("trial", [OLDER]),
    ],
    ids=["one", "more-than-counted", "two-faces", "a-still-picture", "too-few", "overridden"],
)
def test_the_same_frames_give_the_decision_of_the_command(
    site: Site, policy: str, pictures: list[Path]
) -> None:
    contents = [picture.read_bytes() for picture in pictures]
    expected = lasting(by_the_command(site.policies, policy, *pictures))

    assert lasting(site.decide(policy, contents)) == expected
    form = [("frame", ("f.jpg", content, "image/jpeg")) for content in contents]
    posted = site.ask("/v1/gate", data={"policy": policy}, files=form)
    assert lasting(posted.json()) == expected


def test_a_clip_gives_the_decision_of_the_command(site: Site, tmp_path: Path) -> None:
    frames = [noisy(seen("astronaut", Pose(3.0 * row)), row) for row in range(8)]
    clip = recording(tmp_path / "clip.mp4", frames)

    answer = site.ask(
        "/v1/gate", data={"policy": "steady"}, files={"clip": clip.read_bytes()}
    ).json()

    assert lasting(answer) == lasting(by_the_command(site.policies, "steady", clip))
    assert answer["outcome"] == "accept"
    assert answer["frames"] == 4


def test_moves_that_were_asked_for_open_the_gate_once(site: Site) -> None:
    drawn = site.ask("/v1/gate/challenge", json={"policy": "moves", "moves": 2}).json()
    frames = video("astronaut", poses(drawn["moves"]))
    body = {
        "policy": "moves",
        "challenge": drawn["challenge"],
        "frames": [encoded(jpeg(frame), row / 10) for row, frame in enumerate(frames)],
    }

    first, again = (site.ask("/v1/gate", json=body).json() for _ in range(2))

    assert len(drawn["instructions"]) == 3
    assert [reason["code"] for reason in first["reasons"]] == ["over_limit"]
    assert (first["outcome"], first["frames"], first["used"]) == ("accept", len(frames), 6)
    assert (again["outcome"], again["reasons"][0]["code"]) == ("retry", "unknown_challenge")


def test_frames_without_the_moves_do_not_open_it(site: Site) -> None:
    drawn = site.ask("/v1/gate/challenge", json={"policy": "moves"}).json()
    stills = [jpeg(noisy(seen("astronaut", Pose(0)), seed)) for seed in range(16)]

    answered = site.decide("moves", stills, challenge=drawn["challenge"])
    unasked = site.decide("moves", stills)

    assert [reason["code"] for reason in answered["reasons"]] == ["wrong_moves", "still_picture"]
    assert "no_challenge" in [reason["code"] for reason in unasked["reasons"]]
    assert {answered["outcome"], unasked["outcome"]} == {"retry"}


def test_frames_that_cannot_be_read_are_a_retry(site: Site) -> None:
    decision = site.decide("door", [b"no picture at all"])

    assert decision["outcome"] == "retry"
    assert decision["reasons"][0]["code"] == "unreadable"


# --- tokens and keys ------------------------------------------------------------------------------


def test_a_token_holds_by_the_published_keys_alone(site: Site) -> None:
    decision = site.decide("door", [ADULT.read_bytes()], nonce="visit-1")
    published = site.server.get("/.well-known/jwks.json")

    with ReplayCache() as replays:
        verifier = TokenVerifier(
            published.json(), issuer=ISSUER, audience=AUDIENCE, replays=replays
        )
        claims = verifier.verify(decision["token"]["jwt"], nonce="visit-1", at_least=18)

    assert claims.over == 18
    assert published.headers["cache-control"] == "public, max-age=300"


def test_without_a_nonce_or_an_acceptance_there_is_no_token(site: Site) -> None:
    assert site.decide("door", [ADULT.read_bytes()])["token"] is None
    assert site.decide("door", [GROUP.read_bytes()], nonce="visit-2")["token"] is None


# --- shut gates -----------------------------------------------------------------------------------


def test_a_gate_that_must_stay_shut_is_listed_with_the_reason_and_the_others_work(
    site: Site,
) -> None:
    answer = httpx2.get(
        f"{site.server.url}/v1/policies", headers={"x-api-key": site.keys["gate"]}
    ).json()
    rows = {row["name"]: row for row in answer["policies"]}

    shut = {name: row["reason"] for name, row in rows.items() if not row["open"]}
    assert sorted(shut) == ["broken", "failed", "unaudited", "unfitted"]
    assert "required_age" in shut["broken"]
    assert "failed the audit by the policy 'strict'" in shut["failed"]
    assert "there is no audit at none.json; make one" in shut["unaudited"]
    assert "agelens gate fit" in shut["unfitted"]
    assert str(site.policies) not in json.dumps(answer)
    assert rows["trial"]["audit"]["status"] == "overridden"
    assert rows["moves"]["liveness"] == "challenge"
    assert (rows["door"]["tokens"], rows["door"]["summary"]) == (True, "At the door.")
    assert site.server.get("/readyz").status_code == 200


@pytest.mark.parametrize("path", ["/v1/gate", "/v1/gate/challenge"])
def test_asking_a_shut_gate_is_answered_with_the_reason(site: Site, path: str) -> None:
    body: dict[str, Any] = {"policy": "unaudited"}
    if path == "/v1/gate":
        body["frames"] = [encoded(ADULT.read_bytes())]

    answer = site.ask(path, json=body)

    assert answer.status_code == 503
    assert answer.json()["code"] == "gate_shut"
    assert "there is no audit at none.json" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) > 0


def test_a_folder_that_is_not_there_or_a_name_that_is_none_stops_the_start(
    tmp_path: Path, analyzer: Analyzer
) -> None:
    with pytest.raises(ArgumentError, match="no such folder"):
        Gates.open(ServerSettings.load(policies=tmp_path / "none"))
    policy_for(analyzer).save(tmp_path / "the door.toml")
    with pytest.raises(ArgumentError, match="rename it"):
        Gates.open(ServerSettings.load(policies=tmp_path))


# --- the record -----------------------------------------------------------------------------------


def test_each_decision_is_in_the_journal_and_nothing_else(site: Site) -> None:
    journal = site.policies / "s.jsonl"
    before = journal.read_bytes().count(b"\n")
    decisions = [site.decide("steady", [picture.read_bytes()] * 2) for picture in (ADULT, OLDER)]

    lines = [json.loads(line) for line in journal.read_bytes().splitlines()[before:]]
    assert [line["id"] for line in lines] == [decision["id"] for decision in decisions]
    copy = site.policies.parent / "copy"
    copy.mkdir()
    for name in ("s.jsonl", "s.jsonl.head"):
        shutil.copy(site.policies / name, copy)
    assert verify_journal(copy / "s.jsonl").intact


def test_a_decision_that_cannot_be_recorded_is_not_given(site: Site) -> None:
    head = site.policies / "full.jsonl.head"
    lines = (site.policies / "full.jsonl").read_bytes()
    head.unlink()
    head.mkdir()

    answer = site.ask("/v1/gate", json={"policy": "full", "frames": [encoded(ADULT.read_bytes())]})

    assert answer.status_code == 503
    assert answer.json()["code"] == "journal_failed"
    assert (site.policies / "full.jsonl").read_bytes() == lines
    head.rmdir()


def test_frames_and_clips_are_never_on_the_disk_and_name_no_file(
    site: Site, tmp_path: Path
) -> None:
    clip = recording(tmp_path / "clip.mp4", [seen("astronaut", Pose(0))] * 4)
    lists = b"ffconcat version 1.0\nfile '%s'\n" % os.fsencode(clip)
    playlist = b"#EXTM3U\n#EXTINF:1,\n%s\n#EXT-X-ENDLIST\n" % os.fsencode(clip)

    for hostile in (lists, playlist, clip.read_bytes()[:3000], b"\x1a\x45\xdf\xa3" * 100):
        answer = site.ask("/v1/gate", data={"policy": "door"}, files={"clip": hostile}).json()
        assert answer["outcome"] == "retry"
        assert answer["reasons"][0]["code"] == "unreadable"
    site.ask("/v1/gate", data={"policy": "door"}, files={"clip": clip.read_bytes()})

    # ONNX Runtime itself leaves two files there, without content of ours.
    left = [path for path in site.temporary.rglob("*") if path.stat().st_size > 100]
    assert left == []


# --- refusals -------------------------------------------------------------------------------------


FRAME = encoded(ADULT.read_bytes())
BAD_JSON: list[tuple[str, dict[str, Any], int, str]] = [
    ("unknown-policy", {"policy": "none", "frames": [FRAME]}, 422, "unknown_policy"),
    ("a-path", {"policy": "../door", "frames": [FRAME]}, 422, "unknown_policy"),
    ("no-policy", {"frames": [FRAME]}, 422, "bad_json"),
    ("no-frames", {"policy": "door", "frames": []}, 422, "bad_json"),
    ("unknown-key", {"policy": "door", "frames": [FRAME], "age": 19}, 422, "bad_json"),
    ("not-base64", {"policy": "door", "frames": [{"base64": "????"}]}, 422, "bad_json"),
    ("time-before-0", {"policy": "door", "frames": [{**FRAME, "seconds": -1}]}, 422, "bad_json"),
    ("empty-nonce", {"policy": "door", "frames": [FRAME], "nonce": ""}, 422, "bad_json"),
    ("too-many", {"policy": "door", "frames": [encoded(b"abcd")] * 61}, 422, "too_many_images"),
    ("no-tokens", {"policy": "moves", "frames": [FRAME], "nonce": "n"}, 422, "bad_option"),
    ("no-moves", {"policy": "door", "frames": [FRAME], "challenge": "c"}, 422, "bad_option"),
]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [pytest.param(*rest, id=name) for name, *rest in BAD_JSON],
)
def test_a_request_that_is_none_is_refused(
    site: Site, body: dict[str, Any], status: int, code: str
) -> None:
    answer = site.ask("/v1/gate", json=body)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


BAD_FORMS: list[tuple[str, dict[str, str], list[str], int, str]] = [
    ("no-policy", {}, ["frame"], 422, "bad_multipart"),
    ("neither", {"policy": "door"}, [], 422, "no_image"),
    ("both", {"policy": "door"}, ["frame", "clip"], 422, "no_image"),
    ("two-clips", {"policy": "door"}, ["clip", "clip"], 422, "bad_multipart"),
    ("unknown-part", {"policy": "door", "age": "19"}, ["frame"], 422, "bad_multipart"),
    ("times-too-few", {"policy": "door", "seconds": "0"}, ["frame"] * 2, 422, "bad_multipart"),
    ("times-are-words", {"policy": "door", "seconds": "now"}, ["frame"], 422, "bad_multipart"),
    ("times-of-a-clip", {"policy": "door", "seconds": "0"}, ["clip"], 422, "bad_multipart"),
]


@pytest.mark.parametrize(
    ("fields", "files", "status", "code"),
    [pytest.param(*rest, id=name) for name, *rest in BAD_FORMS],
)
def test_a_form_that_is_none_is_refused(
    site: Site, fields: dict[str, str], files: list[str], status: int, code: str
) -> None:
    parts: list[Any] = [(name, (None, value)) for name, value in fields.items()]
    parts += [(name, ("x", b"data")) for name in files]

    answer = site.ask("/v1/gate", files=parts)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_clip_that_is_too_long_is_refused(site: Site, tmp_path: Path) -> None:
    clip = recording(tmp_path / "long.mp4", [seen("astronaut", Pose(0))] * 14, rate=1.0)

    # Of a challenge all is looked at; the gate without one has enough after five frames.
    answer = site.ask("/v1/gate", data={"policy": "moves"}, files={"clip": clip.read_bytes()})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_option")
    assert "longer than 3 s" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/gate", "/v1/gate/challenge"])
def test_another_content_type_is_refused(site: Site, path: str) -> None:
    answer = site.ask(path, content=b"policy=door", headers={"content-type": "text/plain"})

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("moves", [1, 9, "3", None])
def test_a_challenge_has_two_to_eight_moves(site: Site, moves: Any) -> None:
    answer = site.ask("/v1/gate/challenge", json={"policy": "moves", "moves": moves})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_json")


def test_a_gate_that_looks_at_no_moves_draws_none(site: Site) -> None:
    answer = site.ask("/v1/gate/challenge", json={"policy": "door"})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_option")


@pytest.mark.parametrize("path", ["/v1/gate", "/v1/gate/challenge", "/v1/policies"])
def test_a_key_for_pictures_does_not_open_gates(site: Site, path: str) -> None:
    method = "GET" if path == "/v1/policies" else "POST"

    for headers, status in (({}, 401), ({"x-api-key": site.keys["analyze"]}, 403)):
        answer = httpx2.request(method, site.server.url + path, headers=headers)
        assert answer.status_code == status


# --- looking apart from judging -------------------------------------------------------------------


def test_a_gate_without_weights_only_judges(analyzer: Analyzer, tmp_path: Path) -> None:
    write_audit(tmp_path / "audit.json", analyzer)

    with (
        Gate(policy_for(analyzer), folder=tmp_path, weights=False) as gate,
        pytest.raises(ArgumentError, match="opened without weights"),
    ):
        gate.decide(ADULT)


@pytest.mark.parametrize("pictures", [[ADULT], [GROUP], [ADULT, OLDER]], ids=str)
def test_what_was_seen_elsewhere_is_decided_on_alike(
    analyzer: Analyzer, tmp_path: Path, pictures: list[Path]
) -> None:
    write_audit(tmp_path / "audit.json", analyzer)
    policy = policy_for(analyzer, liveness="consistency", frames={"max": 4, "min": 1})
    carried = pickle.loads(pickle.dumps(look(analyzer, pictures, policy)))

    with (
        Gate(policy, folder=tmp_path, analyzer=analyzer) as whole,
        Gate(policy, folder=tmp_path, weights=False) as judge,
    ):
        expected, found = whole.decide(pictures), judge.decide_on(carried)

    assert lasting(found.to_dict()) == lasting(expected.to_dict())


def test_a_challenge_is_answered_when_the_frames_are_there(
    analyzer: Analyzer, tmp_path: Path
) -> None:
    write_audit(tmp_path / "audit.json", analyzer)
    policy = policy_for(analyzer, liveness="challenge", frames={"max": 4, "min": 1})
    seen_frames = look(analyzer, [ADULT], policy)
    now = [datetime.now(UTC)]

    with Gate(policy, folder=tmp_path, weights=False, clock=lambda: now[0]) as gate:
        for waited_s, code in ((29, "no_challenge"), (31, "challenge_expired")):
            drawn = gate.challenge()
            received = now[0] + timedelta(seconds=waited_s)
            now[0] += timedelta(seconds=35)
            assert gate.waiting(drawn.nonce) == drawn
            decision = gate.decide_on(seen_frames, challenge=drawn, received=received)
            assert decision.reasons[0].code == code
            assert gate.waiting(drawn.nonce) is None


# --- from Python ----------------------------------------------------------------------------------


def test_client_gets_the_decision_and_the_token(site: Site) -> None:
    picture = ADULT.read_bytes()
    with Client(site.server.url, key=site.keys["gate"]) as client:
        rows = {row["name"]: row for row in client.policies()}
        plain = client.gate("door", [ADULT, io.BytesIO(picture), bytearray(picture)])
        signed = client.gate("door", [picture], nonce="n-1")
        with pytest.raises(ServiceError) as shut:
            client.gate("unaudited", [picture])

    assert rows["door"]["open"] is True
    assert lasting(dict(plain.wire)) == lasting(site.decide("door", [picture] * 3))
    assert (plain.outcome, plain.accepted, plain.token) == ("accept", True, None)
    assert plain.reasons == tuple(reason["text"] for reason in plain.wire["reasons"])
    assert signed.token is not None
    keys = TokenKeys.open(site.policies / "gate-keys").jwks()
    with ReplayCache() as replays:
        verifier = TokenVerifier(keys, issuer=ISSUER, audience=AUDIENCE, replays=replays)
        assert verifier.verify(signed.token, nonce="n-1", at_least=18).over == 18
    refusal = shut.value
    assert (refusal.code, refusal.status, refusal.retry_after_s) == ("gate_shut", 503, 300)


def test_client_sends_a_clip(site: Site, tmp_path: Path) -> None:
    frames = [noisy(seen("astronaut", Pose(3.0 * row)), row) for row in range(8)]
    clip = recording(tmp_path / "clip.mp4", frames)

    with Client(site.server.url, key=site.keys["gate"]) as client, clip.open("rb") as opened:
        answers = [client.gate("steady", one) for one in (clip, clip.read_bytes(), opened)]

    assert [(answer.outcome, answer.wire["frames"]) for answer in answers] == [("accept", 4)] * 3


def test_client_asks_for_moves_and_shows_them_once(site: Site) -> None:
    with Client(site.server.url, key=site.keys["gate"]) as client:
        asked = client.challenge("moves")
        way = poses(list(asked.moves), reach_deg=24)
        frames = [jpeg(frame) for frame in video("astronaut", way)]
        first, again = (client.gate("moves", frames, challenge=asked.challenge) for _ in range(2))

    assert len(asked.moves) == 3
    assert asked.expires > datetime.now(UTC)
    assert first.wire["frames"] == len(frames)
    assert again.outcome != "accept"
    assert again.wire["reasons"][0]["code"] != first.wire["reasons"][0]["code"]


def test_frames_have_their_time_on_a_machine_that_has_other_work(
    start_server: StartServer, analyzer: Analyzer, tmp_path: Path
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    write_policies(policies, analyzer)
    picture = Image.open(ADULT).convert("RGB").resize((640, 640))
    body = {"policy": "moves", "frames": [encoded(jpeg(np.asarray(picture)))] * 20}
    started = start_server(
        *("--workers", "1", "--set", f"policies={policies}", "--set", "deadline_s=1")
    )
    (worker,) = psutil.Process(started.process.pid).children()

    # For four seconds others have the processor.
    worker.suspend()
    later = threading.Timer(4, worker.resume)
    later.start()
    answer = started.post("/v1/gate", json=body)
    later.join()

    assert answer.status_code == 200, answer.text
    assert answer.json()["frames"] == 20
