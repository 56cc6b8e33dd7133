"""
The gate itself: frames of one person in, accept, refuse, step up or retry out, with the reasons.

    Gate(policy)            opens only under a passed audit of this very model, or an override
    gate.challenge()        moves to ask the person for
    gate.decide(frames)     -> Decision, which is in the journal before it is returned

    look(analyzer, frames, policy)  -> Look   the first half, for another process; and
    gate.decide_on(look)            -> Decision, as ``decide`` would have

Frames live as long as the call. What a gate remembers are the challenges that are not answered yet.
"""

from __future__ import annotations

import math
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
from agelens.analyzer import Analyzer, AnalyzerOptions
from agelens.bundle import Bundle, find_model
from agelens.errors import ArgumentError, AuditError, GateError, ImageError
from agelens.evaluation.scoring import card_sha256, model_sha256
from agelens.evaluation.signing import VerifiedAudit, verify_audit
from agelens.fusion import fuse
from agelens.gate.journal import Journal
from agelens.gate.liveness import (
    DEFAULT_CONSISTENCY,
    AttackDetector,
    Challenge,
    ChallengeCheck,
    ConsistencyCheck,
    LiveFrame,
    Move,
    Reason,
)
from agelens.gate.policy import (
    Admit,
    Fallback,
    GatePolicy,
    JournalPart,
    ModelPart,
    OverridePart,
    admitted_words,
)
from agelens.gate.token import Token, TokenIssuer, TokenKeys
from agelens.identifiers import new_identifier, utc_now
from agelens.images import ImageLimits, ImageSource, load_image
from agelens.quality import DEFAULT_QUALITY_LIMITS
from agelens.results import AgeDistribution, Face
from agelens.sources import VIDEO_SUFFIXES, expand, video_frames

SCHEMA: Final = "agelens.gate-decision/1"

Outcome = Literal["accept", "refuse", "step_up", "retry"]
AuditStatus = Literal["passed", "overridden"]

_MOST_WAITING: Final = 10_000
_EVERY_S: Final = 0.2
_EVERY_S_OF_CHALLENGE: Final = 0.08
_LIVE_SIDE_PX: Final = 640
"""Long side to which frames are reduced while they wait for the liveness checks."""


@dataclass(frozen=True, eq=False)
class TimedFrame:
    """A frame and when it was taken.

    Attributes:
        image: What ``images.load_image`` takes.
        seconds: Counted from any moment, the same for all frames.
    """

    image: ImageSource
    seconds: float


@dataclass(frozen=True, eq=False)
class Clip:
    """A video in memory, in place of single frames.

    Attributes:
        data: An MP4, QuickTime, WebM or Matroska file.
        max_s: Seconds after which it is refused as too long.
    """

    data: bytes
    max_s: float = math.inf


Frame = ImageSource | TimedFrame
Frames = Frame | Clip | Iterable[Frame]


@dataclass(frozen=True)
class AuditState:
    """On what the gate is open.

    Attributes:
        status: "passed", or "overridden" by the operator's word.
        problem: Why the audit does not hold; None when it does.
        policy: Audit policy that the model was judged by.
        policy_sha256: Of that policy's text.
        created: When the audit was made, ISO 8601.
        expires: Until when it holds, ISO 8601.
        key: Public key that signed it.
    """

    status: AuditStatus
    problem: str | None = None
    policy: str | None = None
    policy_sha256: str | None = None
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
        confidence: Highest of the policy's steps that P(age >= required age) reached, or P(age <
            required age) where those under it are let in; None when no age was asked for or the
            lowest step was not reached.
        frames: Frames that were given.
        used: Frames that the age was taken from.
        required_age: Completed years at which the two sides part.
        policy: Name of the policy.
        policy_sha256: Of its fields.
        model: The model that the policy was fitted for, and that decided.
        audit: On what the gate is open.
        override: The operator's word against the audit, when the policy has one.
        liveness: Checks that were asked for, by name.
        token: Says "over the required age", or "under" it, to others; None when there is none.
        admit: Who is let in: those "over" the required age, or "under" it.
        trial: No visitor's: the moves were given and not drawn, or the caller said so. Only then
            it stands in the record.
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
    admit: Admit = "over"
    trial: bool = False

    @property
    def admitted(self) -> str:
        """Who is let in, in words: "18 or over", "under 13"."""
        return admitted_words(self.required_age, self.admit)

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
            "admit": self.admit,
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
            **({"trial": True} if self.trial else {}),
        }


@dataclass(frozen=True, eq=False)
class Sight:
    """One frame after the analysis, without its pixels.

    Attributes:
        problem: "unreadable", "no_face", "second_face", "unusable", or None for a good frame.
        details: Words of the quality's reasons, without their numbers.
        face: The face of a good frame.
    """

    problem: str | None
    details: tuple[str, ...] = ()
    face: Face | None = None


@dataclass(frozen=True, eq=False)
class Look:
    """What ``look`` saw; it can be pickled.

    Attributes:
        sights: One for each frame that was looked at.
        doubts: Why they do not look like one living person; empty when they do, or when the
            policy decides without asking.
    """

    sights: tuple[Sight, ...]
    doubts: tuple[Reason, ...]


class Gate:
    """Decides on one person at a time by one policy; several threads may ask it.

    Example:
        with Gate("policy.toml") as gate:
            challenge = gate.challenge()
            decision = gate.decide(frames, challenge=challenge, nonce=nonce)

    Attributes:
        policy: The policy.
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
        weights: bool = True,
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
            weights: False loads none: frames are looked at elsewhere, and only ``decide_on``
                decides.

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
        options = analyzer_options(self._model, accept_licence=accept_licence)
        self._analyzer = (analyzer or Analyzer(options)) if weights else None
        self._bundle = find_model(options.model) if self._analyzer is None else self.analyzer.bundle
        self._bundle.require_licence(accept_licence or analyzer is not None)
        require_model(self.policy, self._bundle, options if analyzer is None else analyzer.options)
        self._verified, self._problem = self._read_audit(
            here / self.policy.audit.path if audit is None else audit, here
        )
        self.audit = self._audit_at(self._now())
        self._issuer = self._token_issuer(here)
        self._detectors = tuple(detectors)
        self._checks = (*_checks_of(self.policy), *self._detectors)
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

    @property
    def analyzer(self) -> Analyzer:
        """Finds and estimates the faces.

        Raises:
            ArgumentError: The gate was opened without weights.
        """
        if self._analyzer is None:
            raise ArgumentError(
                f"{self.policy.name}: this gate was opened without weights; look at the frames "
                "with agelens.gate.decision.look and pass what it saw to decide_on"
            )
        return self._analyzer

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
            verified = read_audit(path, self.policy, here, self._bundle, now=self._now())
        except AuditError as error:
            return None, str(error)
        return verified, None

    def audit_now(self) -> AuditState:
        """On what the gate is open now.

        Raises:
            GateError: On nothing: the audit ran out since the gate was opened.
        """
        return self._audit_at(self._now())

    def _audit_at(self, now: datetime) -> AuditState:
        """On what the gate is open at this time.

        Raises:
            GateError: On nothing.
        """
        problem, verified = self._problem, self._verified
        if problem is None and verified is not None:
            problem = audit_problem(verified, self.policy.audit.max_age_days, now)
        if problem is not None and self.policy.override is None:
            raise GateError(
                f"the gate {self.policy.name!r} stays shut: {problem}. To open it without a valid "
                "audit, the operator writes an [override] with text, name and date into the "
                "policy, beside a [journal]; it is then recorded in every decision"
            )
        facts = (
            {}
            if verified is None
            else {
                "policy": verified.policy,
                "policy_sha256": str(verified.document["policy"]["sha256"]),
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
            ArgumentError: A number is out of range, or nothing at this gate looks at the answer.
            GateError: More than 10,000 challenges wait for an answer.
        """
        return self._await(Challenge.draw(moves, time_limit_s=time_limit_s, clock=self._clock))

    def challenge_of(self, moves: Sequence[Move], *, time_limit_s: float = 30.0) -> Challenge:
        """A challenge with given moves, for recordings and tests: nothing random protects it.

        The decision on it is marked as a trial.
        """
        drawn = Challenge.draw(max(2, len(moves)), time_limit_s=time_limit_s, clock=self._clock)
        return self._await(replace(drawn, moves=tuple(moves), drawn=False))

    def _require_challenges(self) -> None:
        """Refuse moves that nothing would look at: they would protect nobody."""
        if self.policy.liveness == "challenge" or len(self._checks) > len(_checks_of(self.policy)):
            return
        raise ArgumentError(
            f"{self.policy.name}: the policy has liveness = {self.policy.liveness!r}, so nothing "
            "looks at the moves of a challenge; leave the challenge out, or set liveness = "
            "'challenge'"
        )

    def _await(self, challenge: Challenge) -> Challenge:
        self._require_challenges()
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

    def waiting(self, nonce: str) -> Challenge | None:
        """The challenge of this nonce, if it was drawn here and not answered yet."""
        with self._lock:
            return self._waiting.get(nonce)

    def _taken(self, challenge: Challenge | None, received: datetime) -> Reason | None:
        """Use up a challenge; why it does not count, or None."""
        if challenge is None:
            return None
        with self._lock:
            known = self._waiting.pop(challenge.nonce, None)
        if known != challenge:
            return Reason("unknown_challenge", "these moves were not asked for, or answered before")
        if received > known.expires:
            return Reason("challenge_expired", "the moves were made too late")
        return None

    # --- deciding ---------------------------------------------------------------------------------

    def decide(
        self,
        frames: Frames,
        *,
        challenge: Challenge | None = None,
        nonce: str | None = None,
        trial: bool = False,
    ) -> Decision:
        """Decide on one person.

        The same frames under the same policy, model and version give the same outcome.

        Args:
            frames: Pictures of one person in the order they were taken, or the path of a video.
            challenge: What was asked for, from ``challenge``.
            nonce: From the party that will accept the token; without it no token is issued.
            trial: Mark the decision as no visitor's.

        Returns:
            The decision; it is in the journal, on disk.

        Raises:
            ArgumentError: There are no frames, more than 300 for a challenge, or too long a clip; a
                nonce was given and the policy issues no tokens; or a challenge, and nothing looks
                at it.
            GateError: The audit ran out since the gate was opened.
            JournalError: The decision could not be recorded: it must not be acted on.
        """
        self.require_answerable(challenge, nonce)
        state = self.audit_now()
        late = self._taken(challenge, self._now())
        seen = look(
            self.analyzer, frames, self.policy, challenge=challenge, detectors=self._detectors
        )
        return self._decided(seen, late, nonce, state, trial=trial or _is_given(challenge))

    def decide_on(
        self,
        seen: Look,
        *,
        challenge: Challenge | None = None,
        nonce: str | None = None,
        received: datetime | None = None,
    ) -> Decision:
        """Decide on what ``look`` saw under this gate's policy, detectors and challenge.

        Args:
            seen: What was seen.
            challenge: As for ``decide``.
            nonce: As for ``decide``.
            received: When the frames were there, which is when the challenge was answered; None
                takes the time of this call.

        Returns:
            What ``decide`` would have returned for the frames; it is in the journal, on disk.

        Raises:
            ArgumentError, GateError, JournalError: As for ``decide``.
        """
        self.require_answerable(challenge, nonce)
        state = self.audit_now()
        late = self._taken(challenge, received or self._now())
        return self._decided(seen, late, nonce, state, trial=_is_given(challenge))

    def require_answerable(self, challenge: Challenge | None, nonce: str | None) -> None:
        """Refuse what cannot be asked of this gate, before anything is looked at or used up.

        Raises:
            ArgumentError: A nonce was given and the policy issues no tokens; or a challenge, and
                nothing looks at it.
        """
        if nonce is not None and self._issuer is None:
            raise ArgumentError(
                f"{self.policy.name}: a nonce was given, but the policy has no [token]"
            )
        if challenge is not None:
            self._require_challenges()

    def _decided(
        self,
        seen: Look,
        late: Reason | None,
        nonce: str | None,
        state: AuditState,
        *,
        trial: bool,
    ) -> Decision:
        outcome, reasons, age, used = self._judged(seen, late)
        now = self._now()
        token = None
        if outcome == "accept" and self._issuer is not None and nonce is not None:
            issuer = self._issuer
            issue = issuer.issue if self.policy.admit == "over" else issuer.issue_under
            token = issue(self.policy.required_age, nonce)
        decision = Decision(
            id=new_identifier(now),
            time=now,
            outcome=outcome,
            reasons=reasons,
            confidence=None if age is None else self._coarse(age),
            frames=len(seen.sights),
            used=used,
            required_age=self.policy.required_age,
            policy=self.policy.name,
            policy_sha256=self.policy.sha256,
            model=self._model,
            audit=state,
            override=self.policy.override,
            liveness=tuple(check.card.name for check in self._checks),
            token=token,
            admit=self.policy.admit,
            trial=trial,
        )
        if self.journal is not None:
            self.journal.append(decision.to_record())
        return decision

    def _judged(
        self, seen: Look, late: Reason | None
    ) -> tuple[Outcome, tuple[Reason, ...], AgeDistribution | None, int]:
        """Outcome, reasons, the fused age when one was asked for, and frames used for it."""
        policy = self.policy
        hindrance = _hindrance(policy, seen.sights)
        if hindrance is not None:
            return (*hindrance, None, 0)
        doubts = seen.doubts if late is None else (late,)
        if doubts:
            return policy.on_failed_liveness, doubts, None, 0
        ages = [face.age for face in self._faces_for_age(seen.sights)]
        fused = fuse(ages, correlation=policy.frames.correlation)
        outcome = policy.outcome(fused.age)
        return outcome, (_verdict(outcome, policy.admitted),), fused.age, fused.frames

    def _faces_for_age(self, sights: Sequence[Sight]) -> list[Face]:
        """At most ``frames.max`` good faces, evenly spread; of a challenge those to the camera."""
        faces = [sight.face for sight in sights if sight.face is not None]
        if self.policy.liveness == "challenge":
            most_deg = DEFAULT_CONSISTENCY.facing_deg
            facing = [face for face in faces if abs(face.quality.yaw or 0.0) <= most_deg]
            faces = facing if len(facing) >= self.policy.frames.min else faces
        most = self.policy.frames.max
        if len(faces) <= most:
            return faces
        rows = np.linspace(0, len(faces) - 1, most).round().astype(int)
        return [faces[row] for row in rows]

    def _coarse(self, age: AgeDistribution) -> float | None:
        steps = (self.policy.journal or JournalPart()).confidence_steps
        over = age.probability_at_least(self.policy.required_age)
        chance = over if self.policy.admit == "over" else 1 - over
        return max((step for step in steps if step <= chance), default=None)


# --- opening --------------------------------------------------------------------------------------


def analyzer_options(model: ModelPart, *, accept_licence: bool = False) -> AnalyzerOptions:
    """How the frames of a gate are looked at whose limits were fitted for this model."""
    return AnalyzerOptions(
        model=model.name.rpartition("@")[0] or model.name,
        detector=model.detector,
        flip=model.flip,
        accept_licence=accept_licence,
    )


def require_model(policy: GatePolicy, bundle: Bundle, options: AnalyzerOptions) -> None:
    """Refuse a model, a calibration or a way of asking that the limits were not fitted for.

    Args:
        policy: A fitted policy.
        bundle: The model that looks at the frames.
        options: How it is asked.

    Raises:
        GateError: They are not those of the fit.
    """
    model = policy.require_ready()
    again = "fit the policy again: agelens gate fit MODEL DATA --base POLICY --out POLICY"
    found = model_sha256(bundle)
    if found != model.sha256:
        raise GateError(
            f"{policy.name}: its limits were fitted for {model.name} ({model.sha256[:12]}...), and "
            f"this is {bundle.card.identifier} ({found[:12]}...); {again}"
        )
    card = card_sha256(bundle.card)
    if card != model.card_sha256:
        raise GateError(
            f"{policy.name}: the card of {bundle.card.identifier} (its calibration, crop or "
            f"another field) has changed since the fit ({card[:12]}..., fitted with "
            f"{model.card_sha256[:12]}...); {again}"
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


def read_audit(
    path: Path,
    policy: GatePolicy,
    folder: Path,
    bundle: Bundle,
    *,
    now: datetime,
    trusted_key: str | Path | None = None,
) -> VerifiedAudit:
    """The audit at a path, when it is one by the policy's audit policy, of the model as it is used.

    Args:
        path: The signed audit.
        policy: A policy that names its model.
        folder: What the policy's paths are relative to.
        bundle: The model.
        now: The time, with its zone.
        trusted_key: Public key that must have signed; None takes the policy's.

    Raises:
        AuditError: It is not; the message says what was found. Whether the model passed, and how
            old the audit may be, is ``audit_problem``'s.
    """
    try:
        wanted = policy.audit.audit_policy(folder)
    except ArgumentError as error:
        raise AuditError(
            f"audit.policy = {policy.audit.policy!r} of {policy.name}, which the model must have "
            f"been audited by, cannot be read: {error}"
        ) from error
    key = policy.audit.trusted_key(folder) if trusted_key is None else trusted_key
    audit = verify_audit(path, bundle=bundle, policy=wanted, now=now, trusted_key=key)
    _require_same_options(path, audit, policy)
    return audit


def _require_same_options(path: Path, audit: VerifiedAudit, policy: GatePolicy) -> None:
    """Refuse an audit of other answers than the gate will get.

    ``crops`` only adds faces that no detector finds, on which a gate does not decide.
    """
    model = policy.model
    if model is None:
        return
    options = audit.document.get("options", {})
    for name, audited, used in (
        ("detector", options.get("detector", "default"), model.detector),
        ("flip", options.get("flip", False), model.flip),
    ):
        if audited != used:
            raise AuditError(
                f"{path}: the model was audited with {name} = {audited!r}, and the gate "
                f"{policy.name!r} uses {used!r}, which gives other answers; audit it as the gate "
                "uses it"
            )


def audit_problem(audit: VerifiedAudit, max_age_days: int, now: datetime) -> str | None:
    """Why a verified audit opens no gate at this time; None when it does.

    Args:
        audit: The audit.
        max_age_days: Days after which the policy takes it no longer.
        now: The time, with its zone.
    """
    if not audit.passed:
        return (
            f"{audit.model} failed the audit by the policy {audit.policy!r}; its audit.html says "
            "for whom. Take a model that passes"
        )
    if now >= audit.expires:
        return f"the audit of {audit.model} expired on {audit.expires:%Y-%m-%d}; audit it again"
    if now - audit.created > timedelta(days=max_age_days):
        return (
            f"the audit of {audit.model} is from {audit.created:%Y-%m-%d}, and the policy takes "
            f"none older than {max_age_days} days; audit it again"
        )
    return None


# --- looking --------------------------------------------------------------------------------------


def look(
    analyzer: Analyzer,
    frames: Frames,
    policy: GatePolicy,
    *,
    challenge: Challenge | None = None,
    detectors: Sequence[AttackDetector] = (),
) -> Look:
    """Look at the frames of one person as a gate of this policy does.

    Args:
        analyzer: An analyzer of the policy's model; see ``require_model``.
        frames: As for ``Gate.decide``.
        policy: Says how many frames are looked at, and which checks they have to pass.
        challenge: What was asked for.
        detectors: Presentation attack detectors besides the policy's checks.

    Raises:
        ArgumentError: There are no frames, more than 300 for a challenge, or too long a clip.
    """
    active = policy.liveness == "challenge"
    most = policy.most_frames
    checks = (*_checks_of(policy), *detectors)
    sights: list[Sight] = []
    alive: list[LiveFrame] = []
    missed = 0
    every_s = _EVERY_S_OF_CHALLENGE if active else _EVERY_S
    for image, seconds in _taken_apart(frames, every_s, analyzer.options.limits):
        if len(sights) == most:
            raise ArgumentError(
                f"more than {most} frames to follow a challenge in; send about ten a second"
            )
        sight, live = _sight(analyzer, image, seconds, keep=bool(checks))
        sights.append(sight)
        missed += live is None
        if live is not None:
            alive.append(replace(live, missed=missed))
            missed = 0
        if len(sights) == most and not active:
            break
    if not sights:
        raise ArgumentError("a decision needs at least one frame, got none")
    doubts: tuple[Reason, ...] = ()
    if _hindrance(policy, sights) is None:
        doubts = tuple(reason for one in checks for reason in one.check(alive, challenge))
    return Look(tuple(sights), doubts)


def _sight(
    analyzer: Analyzer, source: ImageSource | None, seconds: float | None, *, keep: bool
) -> tuple[Sight, LiveFrame | None]:
    """One frame; and what the liveness checks look at, when ``keep`` and there is one face."""
    if source is None:
        return Sight("unreadable"), None
    try:
        pixels = load_image(source, limits=analyzer.options.limits).pixels
    except ImageError:
        return Sight("unreadable"), None
    faces = analyzer(pixels).faces
    if len(faces) != 1:
        return Sight("second_face" if faces else "no_face"), None
    (face,) = faces
    live = _live(pixels, face, seconds) if keep else None
    if face.age.abstained:
        words = tuple(reason.partition(":")[0] for reason in face.quality.reasons)
        return Sight("unusable", words), live
    return Sight(None, (), face), live


def _taken_apart(
    frames: Frames, every_s: float, limits: ImageLimits
) -> Iterator[tuple[ImageSource | None, float | None]]:
    """Each frame and its time; None for one that a video does not give."""
    if isinstance(frames, str | os.PathLike) and Path(frames).suffix.lower() in VIDEO_SUFFIXES:
        for item in expand([frames], every_s=every_s):
            _, mark, seconds = item.name.rpartition("#t=")
            yield item.image, float(seconds) if mark else None
        return
    if isinstance(frames, Clip):
        for item in video_frames(frames.data, every_s=every_s, limits=limits):
            _, mark, text = item.name.rpartition("#t=")
            if mark and float(text) > frames.max_s:
                raise ArgumentError(f"the clip is longer than {frames.max_s:g} s; send less of it")
            yield item.image, float(text) if mark else None
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
    return cast("Iterable[Frame]", frames)


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
    policy: GatePolicy, sights: Sequence[Sight]
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


def _is_given(challenge: Challenge | None) -> bool:
    return challenge is not None and not challenge.drawn


def _of(count: int, sights: Sequence[Sight]) -> str:
    return f"{count} of {len(sights)} frames"


def _verdict(outcome: Outcome, admitted: str) -> Reason:
    return {
        "accept": Reason("over_limit", f"clearly {admitted}"),
        "refuse": Reason("under_limit", f"clearly not {admitted}"),
        "step_up": Reason("between_limits", f"not sure enough to say {admitted}"),
    }[outcome]


__all__ = [
    "SCHEMA",
    "AuditState",
    "Clip",
    "Decision",
    "Frames",
    "Gate",
    "Look",
    "Outcome",
    "Sight",
    "TimedFrame",
    "analyzer_options",
    "audit_problem",
    "look",
    "read_audit",
    "require_model",
]
