"""
The gate itself: frames of one person in, accept, refuse, step up or retry out, with the reasons.

    Gate(policy)            opens only under a passed audit of this very model, or an override
    gate.challenge()        moves to ask the person for
    gate.decide(frames)     -> Decision, which is in the journal before it is returned

Frames live as long as the call. What a gate remembers are the challenges that are not answered yet.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agelens import __version__
from agelens.analyzer import Analyzer
from agelens.errors import ArgumentError, AuditError, GateError, ImageError
from agelens.evaluation.scoring import card_sha256, model_sha256
from agelens.evaluation.signing import VerifiedAudit, verify_audit
from agelens.gate.fusion import fuse
from agelens.gate.journal import Journal, new_identifier, utc_now
from agelens.gate.liveness import (
    AttackDetector,
    Challenge,
    ChallengeCheck,
    ConsistencyCheck,
    LiveFrame,
    Move,
    Reason,
)
from agelens.gate.policy import Fallback, GatePolicy, JournalPart, ModelPart, OverridePart
from agelens.gate.token import Token, TokenIssuer, TokenKeys
from agelens.images import ImageSource, load_image
from agelens.quality import DEFAULT_QUALITY_LIMITS
from agelens.results import AgeDistribution, Face
from agelens.sources import VIDEO_SUFFIXES, expand

SCHEMA: Final = "agelens.gate-decision/1"

Outcome = Literal["accept", "refuse", "step_up", "retry"]
AuditStatus = Literal["passed", "overridden"]

_MOST_FRAMES: Final = 300
"""Frames of one answer to a challenge that are looked at."""
_MOST_WAITING: Final = 10_000
_EVERY_S: Final = 0.2
_EVERY_S_OF_CHALLENGE: Final = 0.08
_LIVE_SIDE_PX: Final = 640
"""Long side to which frames are reduced while they wait for the liveness checks."""
_FACING_DEG: Final = 15.0


@dataclass(frozen=True, eq=False)
class TimedFrame:
    """A frame and when it was taken.

    Attributes:
        image: What ``images.load_image`` takes.
        seconds: Counted from any moment, the same for all frames.
    """

    image: ImageSource
    seconds: float


Frame = ImageSource | TimedFrame
Frames = Frame | Iterable[Frame]


@dataclass(frozen=True)
class AuditState:
    """On what the gate is open.

    Attributes:
        status: "passed", or "overridden" by the operator's word.
        problem: Why the audit does not hold; None when it does.
        policy: Audit policy that the model passed.
        created: When the audit was made, ISO 8601.
        expires: Until when it holds, ISO 8601.
        key: Public key that signed it.
    """

    status: AuditStatus
    problem: str | None = None
    policy: str | None = None
    created: str | None = None
    expires: str | None = None
    key: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Wire form; what is None is left out."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Decision:
    """What the gate says of one person, and on what grounds.

    Attributes:
        id: UUID, version 7.
        time: When, UTC.
        outcome: "accept", "refuse", "step_up" (to another proof) or "retry".
        reasons: Why; the first one decided.
        confidence: Highest of the policy's steps that P(age >= required age) reached; None when no
            age was asked for or the lowest step was not reached.
        frames: Frames that were given.
        used: Frames that the age was taken from.
        required_age: Completed years that admit.
        policy: Name of the policy.
        policy_sha256: Of its fields.
        model: The model that the policy was fitted for, and that decided.
        audit: On what the gate is open.
        override: The operator's word against the audit, when the policy has one.
        liveness: Checks that were asked for, by name.
        token: Says "over the required age" to others; None when there is none.
    """

    id: str
    time: datetime
    outcome: Outcome
    reasons: tuple[Reason, ...]
    confidence: float | None
    frames: int
    used: int
    required_age: int
    policy: str
    policy_sha256: str
    model: ModelPart
    audit: AuditState
    override: OverridePart | None
    liveness: tuple[str, ...]
    token: Token | None = None

    @property
    def accepted(self) -> bool:
        """Whether the person may pass."""
        return self.outcome == "accept"

    def to_dict(self) -> dict[str, Any]:
        """Wire form, with the token."""
        token = self.token
        return {
            **self.to_record(),
            "token": None
            if token is None
            else {"jwt": token.text, "expires": token.expires.isoformat()},
        }

    def to_record(self) -> dict[str, Any]:
        """What the journal keeps: whether a token was issued, but nothing that finds it again."""
        override = self.override
        return {
            "schema": SCHEMA,
            "id": self.id,
            "time": self.time.isoformat(timespec="milliseconds"),
            "outcome": self.outcome,
            "reasons": [reason.to_dict() for reason in self.reasons],
            "confidence": self.confidence,
            "frames": self.frames,
            "used": self.used,
            "required_age": self.required_age,
            "policy": {"name": self.policy, "sha256": self.policy_sha256},
            "model": {
                "name": self.model.name,
                "sha256": self.model.sha256,
                "card_sha256": self.model.card_sha256,
            },
            "audit": self.audit.to_dict(),
            "override": None if override is None else override.model_dump(mode="json"),
            "liveness": list(self.liveness),
            "token": self.token is not None,
            "agelens": __version__,
        }


@dataclass(frozen=True, eq=False)
class _Sight:
    """One frame after the analysis.

    Attributes:
        problem: "unreadable", "no_face", "second_face", "unusable", or None for a good frame.
        details: Words of the quality's reasons, without their numbers.
        live: The frame for the liveness checks, when it has one face with landmarks.
        face: The face of a good frame.
    """

    problem: str | None
    details: tuple[str, ...] = ()
    live: LiveFrame | None = None
    face: Face | None = None


class Gate:
    """Decides on one person at a time by one policy; several threads may ask it.

    Example:
        with Gate("policy.toml") as gate:
            challenge = gate.challenge()
            decision = gate.decide(frames, challenge=challenge, nonce=nonce)

    Attributes:
        policy: The policy.
        analyzer: Finds and estimates the faces.
        audit: On what the gate was opened.
        journal: Where decisions are recorded, or None.
    """

    def __init__(
        self,
        policy: GatePolicy | str | os.PathLike[str],
        *,
        folder: Path | None = None,
        analyzer: Analyzer | None = None,
        audit: Path | None = None,
        journal: Journal | Path | None = None,
        detectors: Sequence[AttackDetector] = (),
        accept_licence: bool = False,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Open the gate, or say why it must stay shut.

        Args:
            policy: The policy, or its file.
            folder: What the policy's paths are relative to; None takes the folder of its file, or
                the current one.
            analyzer: An analyzer of the policy's model; None makes one.
            audit: The signed audit; None takes the policy's.
            journal: An open journal, which stays open, or its file; None takes the policy's.
            detectors: Presentation attack detectors of others, besides the policy's checks.
            accept_licence: Use a model that is licensed for research only.
            clock: Gives the time, with its zone.

        Raises:
            GateError: The policy is not fitted, or for another model; the audit is missing, failed,
                expired, or not of this model, and the policy has no override; the journal or the
                keys do not hold.
            ArgumentError: The policy is no policy.
            ModelError, LicenceNotAccepted: The model cannot be used.
            MissingExtra: A package of the extra "gate" is not installed.
        """
        if isinstance(policy, GatePolicy):
            self.policy, here = policy, Path()
        else:
            self.policy, here = GatePolicy.load(os.fspath(policy)), Path(policy).parent
        here = here if folder is None else folder
        self._clock = clock
        try:
            self._model = self.policy.require_ready()
        except ArgumentError as error:
            raise GateError(str(error)) from error
        self.analyzer = analyzer or _analyzer_of(self._model, accept_licence)
        _require_model(self.policy, self._model, self.analyzer)
        self._verified, self._problem = self._read_audit(
            here / self.policy.audit.path if audit is None else audit, here
        )
        self.audit = self._audit_at(self._now())
        self._issuer = self._token_issuer(here)
        self._checks = (*_checks_of(self.policy), *detectors)
        self._waiting: dict[str, Challenge] = {}
        self._lock = threading.Lock()
        self._owns_journal = not isinstance(journal, Journal)
        self.journal = self._opened_journal(journal, here)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal that the gate opened; safe to call twice."""
        if self.journal is not None and self._owns_journal:
            self.journal.close()

    # --- opening ----------------------------------------------------------------------------------

    def _now(self) -> datetime:
        now = self._clock()
        if now.tzinfo is None:
            raise ArgumentError(f"the clock must give a time zone, got {now.isoformat()}")
        return now

    def _read_audit(self, path: Path, here: Path) -> tuple[VerifiedAudit | None, str | None]:
        """The audit when its signature and subject hold, and what is wrong with it."""
        if not path.exists():
            return None, (
                f"there is no audit at {path}; make one with `agelens audit "
                f"{self._model.name.partition('@')[0]} DATA --out FOLDER`, or name it with --audit"
            )
        try:
            verified = verify_audit(
                path, bundle=self.analyzer.bundle, now=self._now(), trusted_key=self._key(here)
            )
        except AuditError as error:
            return None, str(error)
        if not verified.passed:
            return verified, (
                f"{path}: {verified.model} failed the audit by the policy {verified.policy!r}; its "
                "audit.html says for whom. Take a model that passes"
            )
        return verified, None

    def _key(self, here: Path) -> str | Path | None:
        key = self.policy.audit.key
        return key if key is None or key.startswith("ed25519:") else here / key

    def _audit_at(self, now: datetime) -> AuditState:
        """On what the gate is open at this time.

        Raises:
            GateError: On nothing.
        """
        problem, verified = self._problem, self._verified
        if problem is None and verified is not None:
            problem = _out_of_date(verified, self.policy.audit.max_age_days, now)
        if problem is not None and self.policy.override is None:
            raise GateError(
                f"the gate {self.policy.name!r} stays shut: {problem}. To open it without a valid "
                "audit, the operator writes an [override] with text, name and date into the "
                "policy; it is then recorded in every decision"
            )
        facts = (
            {}
            if verified is None
            else {
                "policy": verified.policy,
                "created": verified.created.isoformat(),
                "expires": verified.expires.isoformat(),
                "key": verified.key,
            }
        )
        return AuditState("passed" if problem is None else "overridden", problem, **facts)

    def _token_issuer(self, here: Path) -> TokenIssuer | None:
        part = self.policy.token
        if part is None:
            return None
        return TokenIssuer.of(
            TokenKeys.open(here / part.keys),
            issuer=part.issuer,
            audience=part.audience,
            lifetime_s=part.lifetime_s,
            clock=self._clock,
        )

    def _opened_journal(self, journal: Journal | Path | None, here: Path) -> Journal | None:
        if isinstance(journal, Journal):
            return journal
        if journal is not None:
            return Journal(journal, clock=self._clock)
        part = self.policy.journal
        return None if part is None else Journal(here / part.path, clock=self._clock)

    # --- asking -----------------------------------------------------------------------------------

    def challenge(self, *, moves: int = 3, time_limit_s: float = 30.0) -> Challenge:
        """Draw moves to ask the person for; they can be answered once, until they expire.

        Args:
            moves: How many, 2 to 8.
            time_limit_s: Seconds to answer in.

        Raises:
            ArgumentError: A number is out of range.
            GateError: More than 10,000 challenges wait for an answer.
        """
        return self._await(Challenge.draw(moves, time_limit_s=time_limit_s, clock=self._clock))

    def challenge_of(self, moves: Sequence[Move], *, time_limit_s: float = 30.0) -> Challenge:
        """A challenge with given moves, for recordings and tests: nothing random protects it."""
        drawn = Challenge.draw(max(2, len(moves)), time_limit_s=time_limit_s, clock=self._clock)
        return self._await(replace(drawn, moves=tuple(moves)))

    def _await(self, challenge: Challenge) -> Challenge:
        with self._lock:
            now = self._now()
            for nonce in [n for n, one in self._waiting.items() if one.expires < now]:
                del self._waiting[nonce]
            if len(self._waiting) >= _MOST_WAITING:
                raise GateError(
                    f"{_MOST_WAITING:,} challenges wait for an answer; limit how often one visitor "
                    "may ask"
                )
            self._waiting[challenge.nonce] = challenge
        return challenge

    def _taken(self, challenge: Challenge | None) -> Reason | None:
        """Use up a challenge; why it does not count, or None."""
        if challenge is None:
            return None
        with self._lock:
            known = self._waiting.pop(challenge.nonce, None)
        if known != challenge:
            return Reason("unknown_challenge", "these moves were not asked for, or answered before")
        if self._now() > known.expires:
            return Reason("challenge_expired", "the moves were made too late")
        return None

    # --- deciding ---------------------------------------------------------------------------------

    def decide(
        self, frames: Frames, *, challenge: Challenge | None = None, nonce: str | None = None
    ) -> Decision:
        """Decide on one person.

        The same frames under the same policy, model and version give the same outcome.

        Args:
            frames: Pictures of one person in the order they were taken, or the path of a video.
            challenge: What was asked for, from ``challenge``.
            nonce: From the party that will accept the token; without it no token is issued.

        Returns:
            The decision; it is in the journal, on disk.

        Raises:
            ArgumentError: There are no frames, or more than 300 for a challenge; or a nonce was
                given and the policy issues no tokens.
            GateError: The audit ran out since the gate was opened.
            JournalError: The decision could not be recorded: it must not be acted on.
        """
        if nonce is not None and self._issuer is None:
            raise ArgumentError(
                f"{self.policy.name}: a nonce was given, but the policy has no [token]"
            )
        state = self._audit_at(self._now())
        late = self._taken(challenge)
        sights = self._look(frames)
        outcome, reasons, age, used = self._judged(sights, challenge, late)
        now = self._now()
        token = None
        if outcome == "accept" and self._issuer is not None and nonce is not None:
            token = self._issuer.issue(self.policy.required_age, nonce)
        decision = Decision(
            id=new_identifier(now),
            time=now,
            outcome=outcome,
            reasons=reasons,
            confidence=None if age is None else self._coarse(age),
            frames=len(sights),
            used=used,
            required_age=self.policy.required_age,
            policy=self.policy.name,
            policy_sha256=self.policy.sha256,
            model=self._model,
            audit=state,
            override=self.policy.override,
            liveness=tuple(check.card.name for check in self._checks),
            token=token,
        )
        if self.journal is not None:
            self.journal.append(decision.to_record())
        return decision

    def _judged(
        self, sights: Sequence[_Sight], challenge: Challenge | None, late: Reason | None
    ) -> tuple[Outcome, tuple[Reason, ...], AgeDistribution | None, int]:
        """Outcome, reasons, the fused age when one was asked for, and frames used for it."""
        policy = self.policy
        hindrance = _hindrance(policy, sights)
        if hindrance is not None:
            return (*hindrance, None, 0)
        doubts = self._doubts(sights, challenge, late)
        if doubts:
            return policy.on_failed_liveness, doubts, None, 0
        ages = [face.age for face in self._faces_for_age(sights)]
        fused = fuse(ages, correlation=policy.frames.correlation)
        outcome = policy.outcome(fused.age)
        return outcome, (_verdict(outcome, policy.required_age),), fused.age, fused.frames

    def _doubts(
        self, sights: Sequence[_Sight], challenge: Challenge | None, late: Reason | None
    ) -> tuple[Reason, ...]:
        if late is not None:
            return (late,)
        frames = [sight.live for sight in sights if sight.live is not None]
        return tuple(reason for one in self._checks for reason in one.check(frames, challenge))

    def _faces_for_age(self, sights: Sequence[_Sight]) -> list[Face]:
        """At most ``frames.max`` good faces, evenly spread; of a challenge those to the camera."""
        faces = [sight.face for sight in sights if sight.face is not None]
        if self.policy.liveness == "challenge":
            facing = [face for face in faces if abs(face.quality.yaw or 0.0) <= _FACING_DEG]
            faces = facing if len(facing) >= self.policy.frames.min else faces
        most = self.policy.frames.max
        if len(faces) <= most:
            return faces
        rows = np.linspace(0, len(faces) - 1, most).round().astype(int)
        return [faces[row] for row in rows]

    def _coarse(self, age: AgeDistribution) -> float | None:
        steps = (self.policy.journal or JournalPart()).confidence_steps
        chance = age.probability_at_least(self.policy.required_age)
        return max((step for step in steps if step <= chance), default=None)

    # --- looking ----------------------------------------------------------------------------------

    def _look(self, frames: Frames) -> list[_Sight]:
        active = self.policy.liveness == "challenge"
        most = _MOST_FRAMES if active else self.policy.frames.max
        sights: list[_Sight] = []
        every_s = _EVERY_S_OF_CHALLENGE if active else _EVERY_S
        for image, seconds in _taken_apart(frames, every_s):
            if len(sights) == most:
                raise ArgumentError(
                    f"more than {most} frames to follow a challenge in; send about ten a second"
                )
            sights.append(self._sight(image, seconds))
            if len(sights) == most and not active:
                break
        if not sights:
            raise ArgumentError("a decision needs at least one frame, got none")
        return sights

    def _sight(self, source: ImageSource | None, seconds: float | None) -> _Sight:
        if source is None:
            return _Sight("unreadable")
        try:
            pixels = load_image(source, limits=self.analyzer.options.limits).pixels
        except ImageError:
            return _Sight("unreadable")
        faces = self.analyzer(pixels).faces
        if len(faces) != 1:
            return _Sight("second_face" if faces else "no_face")
        (face,) = faces
        live = _live(pixels, face, seconds) if self._checks else None
        if face.age.abstained:
            words = tuple(reason.partition(":")[0] for reason in face.quality.reasons)
            return _Sight("unusable", words, live)
        return _Sight(None, (), live, face)


# --- opening --------------------------------------------------------------------------------------


def _analyzer_of(model: ModelPart, accept_licence: bool) -> Analyzer:
    return Analyzer(
        model=model.name.rpartition("@")[0] or model.name,
        detector=model.detector,
        flip=model.flip,
        accept_licence=accept_licence,
    )


def _require_model(policy: GatePolicy, model: ModelPart, analyzer: Analyzer) -> None:
    """Refuse a model, a calibration or a way of asking that the limits were not fitted for."""
    bundle, options = analyzer.bundle, analyzer.options
    again = "fit the policy again: agelens gate fit MODEL DATA --base POLICY --out POLICY"
    found = model_sha256(bundle)
    if found != model.sha256:
        raise GateError(
            f"{policy.name}: its limits were fitted for {model.name} ({model.sha256[:12]}...), and "
            f"this is {analyzer.model} ({found[:12]}...); {again}"
        )
    card = card_sha256(bundle.card)
    if card != model.card_sha256:
        raise GateError(
            f"{policy.name}: the card of {analyzer.model} (its calibration, crop or another field) "
            f"has changed since the fit ({card[:12]}..., fitted with {model.card_sha256[:12]}...); "
            f"{again}"
        )
    for name, wanted, used in (
        ("detector", model.detector, options.detector),
        ("flip", model.flip, options.flip),
        ("crops", False, options.crops),
        ("quality", DEFAULT_QUALITY_LIMITS, options.quality),
    ):
        if wanted != used:
            raise GateError(
                f"{policy.name}: its limits were fitted with {name} = {wanted!r}, and the analyzer "
                f"has {used!r}; leave out analyzer, or make one with the fitted options"
            )


def _checks_of(policy: GatePolicy) -> tuple[AttackDetector, ...]:
    checks: dict[str, tuple[AttackDetector, ...]] = {
        "none": (),
        "consistency": (ConsistencyCheck(),),
        "challenge": (ChallengeCheck(), ConsistencyCheck()),
    }
    return checks[policy.liveness]


def _out_of_date(audit: VerifiedAudit, max_age_days: int, now: datetime) -> str | None:
    if now >= audit.expires:
        return f"the audit of {audit.model} expired on {audit.expires:%Y-%m-%d}; audit it again"
    if now - audit.created > timedelta(days=max_age_days):
        return (
            f"the audit of {audit.model} is from {audit.created:%Y-%m-%d}, and the policy takes "
            f"none older than {max_age_days} days; audit it again"
        )
    return None


# --- looking --------------------------------------------------------------------------------------


def _taken_apart(
    frames: Frames, every_s: float
) -> Iterator[tuple[ImageSource | None, float | None]]:
    """Each frame and its time; None for one that a video does not give."""
    if isinstance(frames, str | os.PathLike) and Path(frames).suffix.lower() in VIDEO_SUFFIXES:
        for item in expand([frames], every_s=every_s):
            _, mark, seconds = item.name.rpartition("#t=")
            yield item.image, float(seconds) if mark else None
        return
    for frame in _listed(frames):
        if isinstance(frame, TimedFrame):
            yield frame.image, frame.seconds
        else:
            yield frame, None


def _listed(frames: Frames) -> Iterable[Frame]:
    """Several frames as they are, one as a list; an array of four dimensions is several."""
    if isinstance(frames, np.ndarray):
        return frames if frames.ndim > 3 else [frames]
    if hasattr(frames, "read") or isinstance(
        frames, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | TimedFrame
    ):
        return [cast("Frame", frames)]
    return frames


def _live(pixels: NDArray[np.uint8], face: Face, seconds: float | None) -> LiveFrame | None:
    """The frame for the liveness checks, reduced; None without landmarks to compare."""
    if face.landmarks is None:
        return None
    height, width = pixels.shape[:2]
    factor = min(1.0, _LIVE_SIDE_PX / max(height, width))
    if factor == 1.0:
        return LiveFrame(pixels, face, seconds)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    step = np.array([size[0] / width, size[1] / height], np.float32)
    x0, y0, x1, y1 = (float(v) for v in np.array(face.box) * np.tile(step, 2))
    return LiveFrame(
        small, replace(face, box=(x0, y0, x1, y1), landmarks=face.landmarks * step), seconds
    )


# --- judging --------------------------------------------------------------------------------------


def _hindrance(
    policy: GatePolicy, sights: Sequence[_Sight]
) -> tuple[Fallback, tuple[Reason, ...]] | None:
    """What keeps the gate from asking for an age, and what the policy says to it."""
    counts = Counter(sight.problem for sight in sights)
    if counts["second_face"]:
        return policy.on_second_face, (
            Reason("second_face", f"more than one face in {_of(counts['second_face'], sights)}"),
        )
    missing = policy.frames.min - counts[None]
    if missing <= 0:
        return None
    reasons = []
    if counts["no_face"]:
        reasons.append(Reason("no_face", f"no face in {_of(counts['no_face'], sights)}"))
    if counts["unusable"]:
        words = sorted({word for sight in sights for word in sight.details})
        reasons.append(
            Reason(
                "unusable",
                f"too poor for an estimate in {_of(counts['unusable'], sights)}: "
                + ", ".join(words),
            )
        )
    if counts["unreadable"]:
        reasons.append(
            Reason("unreadable", f"not a readable picture: {_of(counts['unreadable'], sights)}")
        )
    if len(sights) < policy.frames.min:
        reasons.append(
            Reason(
                "too_few_frames",
                f"frames given: {len(sights)}; the policy needs {policy.frames.min}",
            )
        )
    faceless = counts["no_face"] > counts["unusable"] + counts["unreadable"]
    return (policy.on_no_face if faceless else policy.on_unusable), tuple(reasons)


def _of(count: int, sights: Sequence[_Sight]) -> str:
    return f"{count} of {len(sights)} frames"


def _verdict(outcome: Outcome, required_age: int) -> Reason:
    return {
        "accept": Reason("over_limit", f"clearly over {required_age}"),
        "refuse": Reason("under_limit", f"clearly not over {required_age}"),
        "step_up": Reason("between_limits", f"not sure enough to say over {required_age}"),
    }[outcome]


__all__ = [
    "SCHEMA",
    "AuditState",
    "Decision",
    "Frames",
    "Gate",
    "Outcome",
    "TimedFrame",
]
