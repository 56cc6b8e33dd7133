"""
Age checks over HTTP: gates by name, their challenges, decisions and the keys of their tokens.

    POST /v1/gate/challenge   moves to ask a person for
    POST /v1/gate             frames or a clip of one person -> a decision, which is in the journal
    GET  /v1/policies         the gates, open or shut, and why
    GET  /.well-known/jwks.json   public keys of the tokens

Frames are decoded in a worker process; the decision, the journal and the signing keys are here.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from agelens.bundle import Bundle, find_model
from agelens.errors import AgeLensError, ArgumentError, GateError, JournalError
from agelens.evaluation.scoring import card_sha256, model_sha256
from agelens.gate.decision import (
    Clip,
    Decision,
    Gate,
    Look,
    TimedFrame,
    analyzer_options,
    look,
    require_model,
)
from agelens.gate.liveness import Challenge
from agelens.gate.policy import GatePolicy, ModelPart
from agelens.gate.token import TokenKeys
from agelens.identifiers import utc_now
from agelens.server.auth import Caller, Scope, require
from agelens.server.description import BINARY, request_body
from agelens.server.intake import (
    Part,
    decoded,
    media_type,
    read_json,
    read_parts,
    while_connected,
)
from agelens.server.jobs import PictureOptions
from agelens.server.logs import open_log
from agelens.server.problems import Problem
from agelens.server.service import Service, pool_problems, service_of, turns_of
from agelens.server.wire import BASE64_PATTERN, EXAMPLE_PICTURE
from agelens.settings import MOST_IN_A_LIST

if TYPE_CHECKING:
    from agelens.server.inference import Analyzers
    from agelens.settings import ServerSettings

router = APIRouter()

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_LONGEST_TEXT: Final = 256
_FRAME_S: Final = 0.4
"""Seconds that a worker on a busy core may take for a frame, beyond the deadline of a picture."""
_LONGEST_S: Final = 50.0
_SHUT_RETRY_S: Final = 300
_BUSY_RETRY_S: Final = 30
_KEYS_KEPT_S: Final = 10.0
_KEYS_CACHED_S: Final = 300


# --- the gates ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Door:
    """One gate of the server, open or shut.

    Attributes:
        name: Name of the policy's file without ``.toml``.
        policy: The policy; None when the file holds none.
        gate: The gate; None when it stays shut.
        reason: Why it stays shut.
        place: What the workers know its model by.
        folder: What the policy's paths are relative to.
    """

    name: str
    policy: GatePolicy | None
    gate: Gate | None
    reason: str | None
    place: str
    folder: Path

    def state(self) -> tuple[Gate | None, str | None]:
        """The gate when it is open at this moment, and why when it is not."""
        if self.gate is None:
            return None, self.reason
        try:
            self.gate.audit_now()
        except GateError as error:
            return None, self.told(error)
        return self.gate, None

    def told(self, words: object) -> str:
        """An error or a reason, without the folder in which this server keeps its policies."""
        return str(words).replace(f"{self.folder}/", "")


class Gates:
    """The gates of a server, by name; opened at the start, closed at the end."""

    def __init__(self, doors: Sequence[Door]) -> None:
        self._doors = {door.name: door for door in doors}
        self._keys: dict[str, Any] = {"keys": []}
        self._keys_until = 0.0

    @classmethod
    def open(cls, settings: ServerSettings) -> Self:
        """Open a gate for each ``NAME.toml`` of the folder; one that must stay shut says why.

        Raises:
            ArgumentError: The folder cannot be read, or a name is none.
            ModelError: A model of the settings cannot be used.
        """
        if settings.policies is None:
            return cls(())
        if not settings.policies.is_dir():
            raise ArgumentError(
                f"{settings.policies}: no such folder; make it and put policies NAME.toml there"
            )
        log = open_log(settings.log_level)
        loaded = [(place, find_model(place)) for place in (settings.model, *settings.models)]
        doors = []
        for path in sorted(settings.policies.glob("*.toml")):
            if _NAME.fullmatch(path.stem) is None:
                raise ArgumentError(
                    f"{path}: a policy's file is named of letters, digits, '.', '_' and '-', at "
                    "most 80; rename it"
                )
            door = _door(path, loaded, settings.accept_licence)
            if door.gate is None:
                log.warning("gate_shut", policy=door.name, reason=door.reason)
            elif door.gate.journal is not None and door.gate.journal.recovery is not None:
                found = str(door.gate.journal.recovery)
                log.warning("journal_recovered", policy=door.name, found=found)
            doors.append(door)
        return cls(doors)

    def close(self) -> None:
        """Close the journals; safe to call twice."""
        for door in self._doors.values():
            if door.gate is not None:
                door.gate.close()

    @property
    def doors(self) -> tuple[Door, ...]:
        """All gates, open and shut, by name."""
        return tuple(self._doors.values())

    def find(self, name: str) -> tuple[Door, Gate]:
        """The open gate of this name.

        Raises:
            Problem: 422 ``unknown_policy``; 503 ``gate_shut``, with the reason.
        """
        door = self._doors.get(name)
        if door is None:
            there_are = ", ".join(self._doors) or "none"
            raise Problem(422, "unknown_policy", f"no such policy; there are: {there_are}")
        gate, reason = door.state()
        if gate is None:
            raise _shut(door, reason or "")
        return door, gate

    def jwks(self) -> dict[str, Any]:
        """The public keys that verify tokens, of all gates, also of those that are shut now."""
        if time.monotonic() >= self._keys_until:
            self._keys = {"keys": list(_keys_of(self.doors))}
            self._keys_until = time.monotonic() + _KEYS_KEPT_S
        return self._keys


def _door(path: Path, loaded: Sequence[tuple[str, Bundle]], accept_licence: bool) -> Door:
    folder, policy = path.parent, None
    try:
        policy = GatePolicy.load(path)
        gate = Gate(policy, folder=folder, accept_licence=accept_licence, weights=False)
    except AgeLensError as error:
        reason = str(error).replace(f"{folder}/", "")
        return Door(path.stem, policy, None, reason, "", folder)
    assert policy.model is not None  # an open gate has one
    return Door(path.stem, policy, gate, None, _place(policy.model, loaded), folder)


def _place(model: ModelPart, loaded: Sequence[tuple[str, Bundle]]) -> str:
    """The name under which workers have this model already, else its own."""
    for place, bundle in loaded:
        if (model_sha256(bundle), card_sha256(bundle.card)) == (model.sha256, model.card_sha256):
            return place
    return analyzer_options(model).model


def _keys_of(doors: Sequence[Door]) -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    for door in doors:
        if door.policy is None or door.policy.token is None:
            continue
        try:
            keys = TokenKeys.open(door.folder / door.policy.token.keys).jwks()["keys"]
        except GateError:  # then the gate is shut, and says so
            continue
        for key in keys:
            if key["kid"] not in seen:
                seen.add(key["kid"])
                yield key


def _shut(door: Door, reason: str) -> Problem:
    wait = {"retry-after": str(_SHUT_RETRY_S)}
    return Problem(503, "gate_shut", reason, headers=wait, policy=door.name)


# --- in a worker ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Presented:
    """What a worker is to look at; it can be pickled.

    Attributes:
        policy: The gate's policy.
        place: What the workers know its model by.
        frames: Encoded pictures, with their times where these are known; or a clip.
        challenge: What was asked for.
    """

    policy: GatePolicy
    place: str
    frames: tuple[TimedFrame | bytes, ...] | Clip
    challenge: Challenge | None


def see(analyzers: Analyzers, presented: Presented) -> Look:
    """Look at frames as the gate of this policy does; runs in a worker.

    Raises:
        GateError: The model there is not the one of the policy.
        ArgumentError: There are too many frames, or the clip is too long.
    """
    policy = presented.policy
    wanted = analyzer_options(policy.require_ready())
    common = analyzers.of(PictureOptions(model=presented.place, flip=wanted.flip))
    is_same = common.options.detector == wanted.detector
    analyzer = common if is_same else common.variant(detector=wanted.detector)
    require_model(policy, analyzer.bundle, analyzer.options)
    return look(analyzer, presented.frames, policy, challenge=presented.challenge)


# --- shapes ---------------------------------------------------------------------------------------


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


_Policy = Annotated[
    str, Field(min_length=1, max_length=80, description="Name of a policy of GET /v1/policies.")
]
_Text = Annotated[str, Field(min_length=1, max_length=_LONGEST_TEXT)]


class ChallengeBody(_Closed):
    """The JSON body of POST /v1/gate/challenge."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"policy": "site-18"}]})

    policy: _Policy
    moves: int = Field(3, ge=2, le=8, description="How many moves to ask for.")


class ChallengeAnswer(BaseModel):
    """Moves to ask the person for, once, before they expire."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "challenge": "pOqXW7IQtQSDpoP8z9Gq3A",
                    "moves": ["left", "closer", "right"],
                    "instructions": ["Look into the camera.", "Turn your head slowly to the left."],
                    "expires": "2026-11-24T12:00:30.000000+00:00",
                }
            ]
        }
    )

    challenge: str = Field(description="To send with the frames.")
    moves: list[Literal["left", "right", "closer"]] = Field(
        description="In this order; left and right are the person's own."
    )
    instructions: list[str] = Field(description="The same in English, to show to the person.")
    expires: datetime


class EncodedFrame(_Closed):
    """One frame."""

    base64: str = Field(
        min_length=4,
        description="The bytes of the file in base64 (RFC 4648), with padding, in one line.",
        json_schema_extra={"pattern": BASE64_PATTERN, "contentEncoding": "base64"},
    )
    seconds: float | None = Field(
        None,
        ge=0,
        le=1e9,
        allow_inf_nan=False,
        description="When it was taken, counted from any moment, the same for all frames.",
    )


class GateBody(_Closed):
    """The JSON body of POST /v1/gate."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"policy": "shop-18", "frames": [{"base64": EXAMPLE_PICTURE, "seconds": 0}]}
            ]
        }
    )

    policy: _Policy
    frames: list[EncodedFrame] = Field(
        min_length=1,
        max_length=MOST_IN_A_LIST,
        description="Of one person, in the order they were taken; not mirrored.",
    )
    challenge: _Text | None = Field(None, description="Of POST /v1/gate/challenge.")
    nonce: _Text | None = Field(
        None, description="From the party that accepts the token; without it there is no token."
    )


class ReasonAnswer(BaseModel):
    """Why; the first one decided."""

    code: str
    text: str


class PolicyOfDecision(BaseModel):
    """The policy that decided, by the name in its file."""

    name: str
    sha256: str


class ModelOfDecision(BaseModel):
    """The model that the policy was fitted for, and that decided."""

    name: str
    sha256: str
    card_sha256: str


class AuditAnswer(BaseModel):
    """On what the gate is open."""

    status: Literal["passed", "overridden"]
    problem: str | None = None
    policy: str | None = None
    policy_sha256: str | None = None
    created: str | None = None
    expires: str | None = None
    key: str | None = None


class OverrideAnswer(BaseModel):
    """The operator's word against the audit."""

    text: str
    name: str
    date: str


class TokenAnswer(BaseModel):
    """A token for the party that gave the nonce."""

    jwt: str
    expires: datetime


class DecisionAnswer(BaseModel):
    """What the gate says, as `agelens gate check --json` prints it. It is in the journal."""

    model_config = ConfigDict(
        populate_by_name=True,
        json_schema_extra={
            "examples": [
                {
                    "schema": "agelens.gate-decision/1",
                    "id": "019d0f2a-4b2c-7c11-9d6e-3f0a51b2c7d8",
                    "time": "2026-11-24T12:00:00.000+00:00",
                    "outcome": "accept",
                    "reasons": [{"code": "over_limit", "text": "clearly 18 or over"}],
                    "confidence": 0.99,
                    "frames": 3,
                    "used": 3,
                    "required_age": 18,
                    "admit": "over",
                    "policy": {"name": "shop-18", "sha256": "e" * 64},
                    "model": {
                        "name": "agelens-s@1.1",
                        "sha256": "a" * 64,
                        "card_sha256": "b" * 64,
                    },
                    "audit": {"status": "passed"},
                    "override": None,
                    "liveness": ["agelens-consistency"],
                    "token": None,
                    "agelens": "0.1.0",
                }
            ]
        },
    )

    schema_: Literal["agelens.gate-decision/1"] = Field(alias="schema")
    id: str
    time: datetime
    outcome: Literal["accept", "refuse", "step_up", "retry"]
    reasons: list[ReasonAnswer]
    confidence: float | None
    frames: int
    used: int
    required_age: int
    admit: Literal["over", "under"]
    policy: PolicyOfDecision
    model: ModelOfDecision
    audit: AuditAnswer
    override: OverrideAnswer | None
    liveness: list[str]
    token: TokenAnswer | None
    agelens: str


class PolicyRow(BaseModel):
    """A gate of this server."""

    name: str = Field(description="For `policy` in requests.")
    open: bool
    reason: str | None = Field(description="Why it is shut.")
    summary: str | None = None
    required_age: int | None = None
    admit: Literal["over", "under"] | None = None
    rule: Literal["probability", "challenge"] | None = None
    liveness: Literal["none", "consistency", "challenge"] | None = None
    min_frames: int | None = Field(default=None, description="Usable frames that a decision needs.")
    max_frames: int | None = Field(
        default=None,
        description="Frames after which it is made; of a challenge up to 300 are followed.",
    )
    model: str | None = None
    tokens: bool = Field(
        default=False, description="Whether it issues tokens when a nonce is sent."
    )
    journal: bool = Field(default=False, description="Whether decisions are recorded.")
    audit: AuditAnswer | None = None

    @classmethod
    def of(cls, door: Door) -> PolicyRow:
        """What is told of a gate."""
        gate, reason = door.state()
        row = cls(name=door.name, open=gate is not None, reason=reason)
        policy = door.policy
        if policy is None:
            return row
        facts: dict[str, Any] = {
            "summary": policy.summary,
            "required_age": policy.required_age,
            "admit": policy.admit,
            "rule": policy.rule,
            "liveness": policy.liveness,
            "min_frames": policy.frames.min,
            "max_frames": policy.frames.max,
            "model": None if policy.model is None else policy.model.name,
            "tokens": policy.token is not None,
            "journal": policy.journal is not None,
            "audit": None if gate is None else _audit(door, gate),
        }
        return row.model_copy(update=facts)


def _audit(door: Door, gate: Gate) -> AuditAnswer:
    facts = gate.audit_now().to_dict()
    if "problem" in facts:
        facts["problem"] = door.told(facts["problem"])
    return AuditAnswer(**facts)


class PoliciesAnswer(BaseModel):
    """The gates of this server, by name."""

    policies: list[PolicyRow]


class Key(BaseModel):
    """A JSON Web Key (RFC 7517, RFC 8037)."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    kid: str
    use: Literal["sig"]
    alg: Literal["EdDSA"]


class KeysAnswer(BaseModel):
    """A JSON Web Key Set; empty when no gate issues tokens."""

    keys: list[Key]


# --- routes ---------------------------------------------------------------------------------------


_Admitted = Annotated[Caller, Depends(require(Scope.GATE))]


@router.get("/v1/policies", tags=["gate"], summary="The gates, open or shut")
async def policies(request: Request, caller: _Admitted) -> PoliciesAnswer:
    """The gates of this server, with what keeps one shut."""
    return PoliciesAnswer(policies=[PolicyRow.of(door) for door in service_of(request).gates.doors])


@router.get("/.well-known/jwks.json", tags=["gate"], summary="Public keys of the gates' tokens")
async def jwks(request: Request, response: Response) -> KeysAnswer:
    """The keys that verify the tokens of this server's gates; no key of the service is needed."""
    found = await asyncio.to_thread(service_of(request).gates.jwks)
    response.headers["cache-control"] = f"public, max-age={_KEYS_CACHED_S}"
    return KeysAnswer.model_validate(found)


@router.post(
    "/v1/gate/challenge",
    tags=["gate"],
    summary="Draw moves to ask a person for",
    response_model=ChallengeAnswer,
    openapi_extra=request_body(
        {"application/json": {"schema": {"$ref": "#/components/schemas/ChallengeBody"}}},
        models=(ChallengeBody,),
    ),
)
async def challenge(request: Request, caller: _Admitted) -> ChallengeAnswer:
    """Draw moves, in an order for this one occasion.

    They are answered once, with the frames of POST /v1/gate, before they expire (30 s). The policy
    must have `liveness = "challenge"`.
    """
    _require_json(media_type(request))
    body = await read_json(request, ChallengeBody)
    _, gate = service_of(request).gates.find(body.policy)
    try:
        drawn = gate.challenge(moves=body.moves)
    except ArgumentError as error:
        raise Problem(422, "bad_option", str(error)) from error
    except GateError as error:  # too many wait for an answer
        wait = {"retry-after": str(_BUSY_RETRY_S)}
        raise Problem(503, "overloaded", str(error), headers=wait) from error
    return ChallengeAnswer(
        challenge=drawn.nonce,
        moves=list(drawn.moves),
        instructions=list(drawn.instructions),
        expires=drawn.expires,
    )


_FORM: Final = {
    "type": "object",
    "required": ["policy"],
    "additionalProperties": False,
    "properties": {
        "policy": {"type": "string", "minLength": 1, "maxLength": 80},
        "frame": {
            "type": "array",
            "minItems": 1,
            "items": BINARY,
            "description": "Frames in the order they were taken; or else a clip.",
        },
        "seconds": {
            "type": "string",
            "description": "When the frames were taken: a number for each, with commas.",
        },
        "clip": {**BINARY, "description": "MP4, QuickTime, WebM or Matroska."},
        "challenge": {"type": "string", "minLength": 1, "maxLength": _LONGEST_TEXT},
        "nonce": {"type": "string", "minLength": 1, "maxLength": _LONGEST_TEXT},
    },
}


@router.post(
    "/v1/gate",
    tags=["gate"],
    summary="Decide on one person",
    response_model=DecisionAnswer,
    openapi_extra=request_body(
        {
            "application/json": {"schema": {"$ref": "#/components/schemas/GateBody"}},
            "multipart/form-data": {"schema": _FORM},
        },
        models=(GateBody,),
    ),
)
async def decide(request: Request, caller: _Admitted) -> Response:
    """Decide on one person from frames or a short clip; the decision is in the journal.

    The body is JSON with frames in base64, or a form with parts `frame` or one part `clip`. Nothing
    of it is written to the disk. The same frames give the same outcome as `agelens gate check`. A
    gate whose audit is missing, failed or expired answers 503 `gate_shut`.
    """
    service = service_of(request)
    with service.metrics.stage("receive"):
        asked = await _asked(request, service)
    received = utc_now()
    work = _decided(service, asked, received, caller)
    decision = await while_connected(request, work)
    return Response(
        json.dumps(decision.to_dict(), ensure_ascii=False), media_type="application/json"
    )


# --- from the body to a decision ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Asked:
    """A request for a decision."""

    policy: str
    frames: tuple[TimedFrame | bytes, ...] | Clip
    challenge: str | None
    nonce: str | None


async def _decided(service: Service, asked: _Asked, received: datetime, caller: Caller) -> Decision:
    door, gate = service.gates.find(asked.policy)
    answered = _challenge(gate, asked.challenge, received)
    with _gate_problems(door):
        gate.require_answerable(answered, asked.nonce)
        presented = Presented(gate.policy, door.place, asked.frames, answered)
        limit_s = _deadline_s(service, presented)
        with service.metrics.stage("analyze"), pool_problems():
            seen = await service.pool.run(
                see, presented, deadline_s=limit_s, caller=turns_of(caller)
            )
        with service.metrics.stage("decide"):
            # The journal waits for the disk.
            return await asyncio.to_thread(
                gate.decide_on, seen, challenge=answered, nonce=asked.nonce, received=received
            )


def _challenge(gate: Gate, nonce: str | None, now: datetime) -> Challenge | None:
    """The challenge that is answered; one that the gate does not know stands for a wrong nonce."""
    if nonce is None:
        return None
    return gate.waiting(nonce) or Challenge(nonce, (), now, now)


def _deadline_s(service: Service, presented: Presented) -> float:
    policy, frames = presented.policy, presented.frames
    most = policy.most_frames
    count = most if isinstance(frames, Clip) else min(most, len(frames))
    # A worker that works on one call for two minutes is taken for stuck.
    return min(_LONGEST_S, service.settings.deadline_s + _FRAME_S * count)


@contextmanager
def _gate_problems(door: Door) -> Iterator[None]:
    try:
        yield
    except ArgumentError as error:
        raise Problem(422, "bad_option", str(error)) from error
    except JournalError as error:
        wait = {"retry-after": str(_BUSY_RETRY_S)}
        raise Problem(503, "journal_failed", door.told(error), headers=wait) from error
    except GateError as error:
        raise _shut(door, door.told(error)) from error
    except MemoryError as error:
        detail = "a worker has not the memory to look at these frames; send smaller ones, or fewer"
        raise Problem(413, "unreadable_image", detail) from error
    except AgeLensError as error:
        wait = {"retry-after": str(_SHUT_RETRY_S)}
        raise Problem(503, "gate_failed", door.told(error), headers=wait) from error


async def _asked(request: Request, service: Service) -> _Asked:
    kind = media_type(request)
    limit = service.settings.max_frames
    if kind == "multipart/form-data":
        return _from_parts(await read_parts(request, limit + len(_FIELDS), _PARTS), service)
    _require_json(kind, "multipart/form-data")
    body = await read_json(request, GateBody)
    _require_few(len(body.frames), limit)
    frames = tuple(
        _frame(decoded(frame.base64, f"frames.{number}.base64"), frame.seconds)
        for number, frame in enumerate(body.frames)
    )
    return _Asked(body.policy, frames, body.challenge, body.nonce)


_FIELDS: Final = ("policy", "challenge", "nonce", "seconds", "clip")
_PARTS: Final = ("frame", *_FIELDS)


def _from_parts(parts: Sequence[Part], service: Service) -> _Asked:
    frames = [bytes(part.data) for part in parts if part.name == "frame"]
    single: dict[str, Part] = {}
    for part in parts:
        if part.name in single:
            raise Problem(422, "bad_multipart", f"there are two parts {part.name!r}; send one")
        if part.name != "frame":
            single[part.name] = part
    _require_few(len(frames), service.settings.max_frames)
    text = {name: _text(part) for name, part in single.items() if name not in ("clip", "seconds")}
    if "policy" not in text:
        raise Problem(422, "bad_multipart", "there is no part 'policy'; it names the gate")
    if ("clip" in single) == bool(frames):
        raise Problem(422, "no_image", "send parts named 'frame', or one named 'clip'")
    named = text["policy"], text.get("challenge"), text.get("nonce")
    if "clip" not in single:
        times = _times(single.get("seconds"), len(frames))
        pairs = zip(frames, times, strict=True)
        return _asked_of(named, tuple(_frame(data, seconds) for data, seconds in pairs))
    if "seconds" in single:
        raise Problem(422, "bad_multipart", "a clip has its own times; leave out 'seconds'")
    longest = service.settings.max_clip_seconds
    return _asked_of(named, Clip(bytes(single["clip"].data), longest))


def _asked_of(
    named: tuple[str, str | None, str | None], frames: tuple[TimedFrame | bytes, ...] | Clip
) -> _Asked:
    policy, challenge, nonce = named
    return _Asked(policy, frames, challenge, nonce)


def _text(part: Part) -> str:
    if not 1 <= len(part.text) <= _LONGEST_TEXT:
        raise Problem(
            422, "bad_multipart", f"part {part.name!r} must have 1 to {_LONGEST_TEXT} characters"
        )
    return part.text


def _times(part: Part | None, frames: int) -> list[float | None]:
    if part is None:
        return [None] * frames
    words = part.text.split(",", frames)
    if len(words) != frames or not all(map(_SECONDS.fullmatch, words)):
        raise Problem(
            422,
            "bad_multipart",
            f"part 'seconds' must be {frames} numbers with commas, one for each frame",
        )
    return [float(word) for word in words]


_SECONDS: Final = re.compile(r" ?[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)


def _frame(data: bytes, seconds: float | None) -> TimedFrame | bytes:
    return data if seconds is None else TimedFrame(data, seconds)


def _require_few(frames: int, limit: int) -> None:
    if frames > limit:
        raise Problem(
            422,
            "too_many_images",
            f"there are {frames} frames, over the limit of {limit}; send about ten a second",
            limit=limit,
        )


def _require_json(kind: str, *others: str) -> None:
    if kind != "application/json":
        raise Problem(
            415,
            "unsupported_media_type",
            f"the content type is {kind[:100] or 'missing'}; send "
            + " or ".join(("application/json", *others)),
        )
