"""
The gate's policy: one TOML file that decides, with the faces, every decision.

    GatePolicy
    ├── admit     "over": those of required_age or more; "under": those who are younger
    ├── rule      "probability": P(of the age that is admitted) against threshold and refuse_below
    │             "challenge": the expected age against challenge_age and refuse_under_age
    ├── frames, on_unusable, on_no_face, on_second_face, liveness
    ├── model     which model the limits were fitted for
    ├── audit     which audit must hold; override: the operator's written word against it
    ├── fit       what is promised of the limits, and the figures behind it
    └── token, journal, retention

Two policies with the same fields have the same ``sha256`` and decide the same way.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from agelens.data.schema import write_text
from agelens.errors import ArgumentError
from agelens.evaluation.signing import canonical_json
from agelens.results import AGE_COUNT, AgeDistribution
from agelens.toml import TomlFolder, checked_table, parsed_toml, toml_text

if TYPE_CHECKING:
    from agelens.evaluation.policy import AuditPolicy

SCHEMA: Final = "agelens.gate-policy/1"
_FILES: Final = TomlFolder("agelens.gate", "policies", "policy")

LONGEST_NAME: Final = 80
"""Characters of a policy's name."""
MOST_CHALLENGE_FRAMES: Final = 300
"""Frames of one answer to a challenge that are looked at."""

Rule = Literal["probability", "challenge"]
Admit = Literal["over", "under"]
Outcome = Literal["accept", "refuse", "step_up"]
Fallback = Literal["step_up", "refuse", "retry"]
Liveness = Literal["none", "consistency", "challenge"]

Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

_EARLIEST_ZONE: Final = dt.timedelta(hours=14)
"""Ahead of UTC where a day begins first: a date that is today somewhere is not in the future."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FramesPart(_Part):
    """How many frames one decision is made of.

    Attributes:
        min: Usable frames that a decision needs.
        max: Frames after which it is made with what there is. A challenge is followed over all
            frames; the age is then taken from so many of them.
        correlation: Of the age errors of two frames of a person, as in ``fusion``. At 1 several
            frames make an answer steadier but never surer than one; less has to be measured with
            ``fusion.estimate_correlation``.
    """

    min: int = Field(default=1, ge=1, le=1000)
    max: int = Field(default=10, ge=1, le=1000)
    correlation: Share = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min must not be over max, got {self.min} and {self.max}")
        return self


class ModelPart(_Part):
    """The model that the limits were fitted for; no other decides.

    Attributes:
        name: "name@version".
        sha256: Of its weights, as ``evaluation.scored.Provenance.model_sha256``.
        card_sha256: Of its card, calibration included, as ``Provenance.card_sha256``.
        detector: Detector in front of it.
        flip: Whether each face is averaged with its mirror image.
    """

    name: str = Field(min_length=1)
    sha256: Sha256
    card_sha256: Sha256
    detector: str = "default"
    flip: bool = False


class AuditPart(_Part):
    """Which audit must hold before the gate opens.

    Attributes:
        required: Whether a passed audit of this model is needed; False only with an override.
        policy: What the model must have been audited by: the name of a shipped audit policy, or a
            TOML file relative to the policy's file. An audit by another one, whatever its name,
            does not hold.
        path: The signed audit, relative to the policy's file.
        max_age_days: Days since the audit was made after which it no longer counts here, however
            long it says it is valid itself.
        key: Public key that must have signed it, "ed25519:BASE64" or a file; None takes that of
            this installation.
    """

    required: bool = True
    policy: str = Field(default="strict", min_length=1)
    path: str = "audit.json"
    max_age_days: int = Field(default=365, ge=1)
    key: str | None = None

    def trusted_key(self, folder: Path) -> str | Path | None:
        """``key`` as ``verify_audit`` takes it: a file is relative to the policy's folder."""
        key = self.key
        return key if key is None or key.startswith("ed25519:") else folder / key

    def holds_until(self, created: dt.datetime, expires: dt.datetime) -> dt.datetime:
        """When an audit stops to open the gate: at its own end, or sooner at ``max_age_days``."""
        return min(expires, created + dt.timedelta(days=self.max_age_days))

    def audit_policy(self, folder: Path) -> AuditPolicy:
        """The audit policy that ``policy`` names; a file is relative to the policy's folder.

        Raises:
            ArgumentError: There is no such policy, or it is none.
        """
        from agelens.evaluation.policy import AuditPolicy
        from agelens.evaluation.policy import shipped_policies as shipped_audit_policies

        shipped = self.policy in shipped_audit_policies()
        return AuditPolicy.load(self.policy if shipped else folder / self.policy)


class OverridePart(_Part):
    """The operator's written word to open the gate without a passed audit.

    It goes into every decision made under it.

    Attributes:
        text: Why, and who bears the risk.
        name: Who wrote it.
        date: When it was written, "2026-11-24"; not in the future.
    """

    text: str = Field(min_length=20)
    name: str = Field(min_length=2)
    date: dt.date

    @model_validator(mode="after")
    def _is_written(self) -> Self:
        today = (dt.datetime.now(dt.UTC) + _EARLIEST_ZONE).date()
        if self.date > today:
            raise ValueError(
                f"date is {self.date}, which is in the future; write the day on which the override "
                "was written"
            )
        return self


class TokenPart(_Part):
    """Tokens that say "over the required age" (or "under" it) and nothing more.

    Attributes:
        issuer: Claim ``iss``.
        audience: Claim ``aud``: who accepts the tokens.
        lifetime_s: Seconds that a token is valid.
        keys: Folder of the signing keys, relative to the policy's file.
    """

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    lifetime_s: int = Field(default=300, ge=1, le=86_400)
    keys: str = "gate-keys"


class JournalPart(_Part):
    """The record of decisions, without pictures.

    Attributes:
        path: File, relative to the policy's file.
        confidence_steps: Rising probabilities; a decision keeps the highest one that it reached, so
            that the record cannot tell faces apart.
    """

    path: str = "gate-journal.jsonl"
    confidence_steps: tuple[Share, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        steps = self.confidence_steps
        if not steps or any(b <= a for a, b in pairwise(steps)):
            raise ValueError(f"confidence_steps must rise, got {list(steps)}")
        return self


# --- what a fit leaves ----------------------------------------------------------------------------


class FittedData(_Part):
    """One file of faces that the limits were fitted on."""

    name: str
    sha256: Sha256
    rows: int = Field(ge=0)


class Promise(_Part):
    """An error rate of one kind of people at the fitted limits.

    Attributes:
        error: "false_acceptance" (to be kept out, accepted) or "false_refusal" (to be let in,
            refused outright; one who is asked to step up is not refused).
        ages: First and last true age of the people it is about.
        covered: First and last age in the labels of the faces it stands on; None when the fit did
            not keep them.
        group: "all", or "COLUMN=VALUE".
        faces: Independent faces it stands on: copies of one picture and faces of one subject
            count once.
        errors: Those among them.
        upper: One-sided Clopper-Pearson bound of the rate at the stated confidence.
    """

    error: Literal["false_acceptance", "false_refusal"]
    ages: tuple[int, int]
    covered: tuple[int, int] | None = None
    group: str = "all"
    faces: int = Field(ge=0)
    errors: int = Field(ge=0)
    upper: Share

    @property
    def rate(self) -> float:
        """Observed rate; NaN without faces."""
        return self.errors / self.faces if self.faces else float("nan")


class FittedFor(_Part):
    """What the promise of a fit was made for; with anything else the policy is no policy.

    Attributes:
        rule: Rule that the limits are of.
        accept_from: ``GatePolicy.accept_from`` as it was fitted.
        refuse_under: ``GatePolicy.refuse_under`` as it was fitted.
        correlation: ``frames.correlation``.
        model: ``model``.
    """

    rule: Rule
    accept_from: float
    refuse_under: float
    correlation: Share
    model: ModelPart


class FitPart(_Part):
    """What is promised of the limits, on which data.

    Attributes:
        max_false_accept: Bound of the false-acceptance rate.
        confidence: Share of data sets of this kind for which a fit keeps the bound.
        max_false_refuse: Bound of the rate of outright refusals of those to be let in; None when
            there is no such promise.
        minor_band: First and last age of the band under the required age that is promised on
            apart: by ``max_false_accept``, or when those under it are let in by
            ``max_false_refuse``.
        adult_band: The same for the band from the required age, by the other of the two.
        by: Columns whose groups were each held to the bounds.
        date: Day of the fit (UTC).
        agelens: Version that fitted.
        data: Files it was fitted on.
        left_out: Faces that were not used, by reason.
        promises: The rates behind the promise, overall and by group.
        step_up_rate: Share of those to be let in, in the data, that are asked to step up.
        refusal_rate: Share of those to be let in, in the data, that are refused outright.
        fitted: What the promise was made for; None in a policy of a version that did not keep it,
            of which the papers promise nothing.
    """

    max_false_accept: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    max_false_refuse: float | None = Field(default=None, gt=0, lt=1)
    minor_band: tuple[int, int]
    adult_band: tuple[int, int]
    by: tuple[str, ...] = ()
    date: dt.date
    agelens: str
    data: tuple[FittedData, ...] = Field(min_length=1)
    left_out: dict[str, int] = {}
    promises: tuple[Promise, ...] = ()
    step_up_rate: Share | None = None
    refusal_rate: Share | None = None
    fitted: FittedFor | None = None


# --- the policy -----------------------------------------------------------------------------------


class GatePolicy(_Part):
    """Everything that decides a gate's decisions, apart from the faces.

    Attributes:
        name: Name of the policy.
        summary: One sentence for those who read it.
        required_age: Completed years at which the two sides part.
        admit: Who is let in: "over", those of the required age or more, or "under", those who have
            not reached it (a children's area). "under" goes with the rule "probability" only.
        rule: What is compared; see the module.
        threshold: Rule "probability": P(age >= required_age), or P(age < required_age) where those
            under it are let in, from which is accepted.
        refuse_below: Rule "probability": P under which is refused; from it to ``threshold`` the
            answer is ``step_up``.
        challenge_age: Rule "challenge": expected age in years from which is accepted.
        refuse_under_age: Rule "challenge": expected age under which is refused.
        on_unusable: When no face is good enough for an estimate.
        on_no_face: When there is no face.
        on_second_face: When there is more than one face.
        on_failed_liveness: When a check against presentation attacks is not passed.
        frames: See ``FramesPart``.
        liveness: Check against presentation attacks: "none", "consistency" of the frames, or an
            active "challenge" as well.
        model: See ``ModelPart``; None in a policy that is not fitted yet.
        audit: See ``AuditPart``.
        override: See ``OverridePart``; with it ``journal`` is needed.
        fit: See ``FitPart``; None when the limits were set by hand, and nothing is promised.
        token: See ``TokenPart``; None issues none.
        journal: See ``JournalPart``; None keeps none.
        retention: What is kept of pictures, crops and features: always nothing.
    """

    policy_schema: Literal["agelens.gate-policy/1"] = Field(default=SCHEMA, alias="schema")
    name: str = Field(min_length=1, max_length=LONGEST_NAME)
    summary: str = ""
    required_age: int = Field(ge=1, le=AGE_COUNT - 1)
    admit: Admit = "over"
    rule: Rule = "probability"
    threshold: float | None = Field(default=None, gt=0, le=1)
    refuse_below: Share | None = None
    challenge_age: float | None = Field(default=None, gt=0, le=AGE_COUNT - 1)
    refuse_under_age: float | None = Field(default=None, ge=0, le=AGE_COUNT - 1)
    on_unusable: Fallback = "retry"
    on_no_face: Fallback = "retry"
    on_second_face: Fallback = "step_up"
    on_failed_liveness: Fallback = "retry"
    liveness: Liveness = "none"
    retention: Literal["none"] = "none"
    frames: FramesPart = FramesPart()
    model: ModelPart | None = None
    audit: AuditPart = AuditPart()
    override: OverridePart | None = None
    fit: FitPart | None = None
    token: TokenPart | None = None
    journal: JournalPart | None = None

    @model_validator(mode="after")
    def _limits_of_the_rule(self) -> Self:
        if self.admit == "under" and self.rule == "challenge":
            raise ValueError(
                "admit = 'under' does not go with rule = 'challenge': a buffer age is there to "
                "keep the young out; take rule = 'probability', which can keep out those of the "
                "required age or more"
            )
        foreign = {
            "probability": ("challenge_age", "refuse_under_age"),
            "challenge": ("threshold", "refuse_below"),
        }[self.rule]
        for key in foreign:
            if getattr(self, key) is not None:
                raise ValueError(f"{key} does not go with rule = {self.rule!r}")
        accept, refuse = self.accept_from, self.refuse_under
        if accept is not None and refuse > accept:
            raise ValueError(
                f"nothing would lie between refusing under {refuse:g} and accepting from "
                f"{accept:g}; the first must not be over the second"
            )
        if self.challenge_age is not None and self.challenge_age < self.required_age:
            raise ValueError(
                f"challenge_age must be the required age ({self.required_age}) or more, got "
                f"{self.challenge_age:g}"
            )
        return self

    @model_validator(mode="after")
    def _fitted_for_this_age(self) -> Self:
        if self.fit is None:
            return self
        kept_out, let_in = (
            [one.ages for one in self.fit.promises if one.error == error]
            for error in ("false_acceptance", "false_refusal")
        )
        if kept_out:
            self._require_fitted_for(kept_out)
        for low, high in let_in:
            younger, older = high < self.required_age, low >= self.required_age
            if not (younger if self.admit == "under" else older):
                raise ValueError(
                    f"fit.promises speaks of refusing those aged {low} to {high} by mistake, but "
                    f"this gate admits those {self.admitted}; fit the policy again"
                )
        return self

    def _require_fitted_for(self, kept_out: Sequence[tuple[int, int]]) -> None:
        """Refuse promises about keeping out others than this policy keeps out."""
        oldest = max(high for _, high in kept_out)
        admit: Admit = "under" if oldest >= AGE_COUNT - 1 else "over"
        age = min(low for low, _ in kept_out) if admit == "under" else oldest + 1
        again = (
            f"fit the policy again (agelens gate fit --required-age {self.required_age} --admit "
            f"{self.admit})"
        )
        if admit != self.admit:
            raise ValueError(
                f"this policy admits those {self.admitted}, but the limits were fitted to admit "
                f"those {admitted_words(age, admit)}; {again}"
            )
        if age != self.required_age:
            raise ValueError(
                f"required_age is {self.required_age}, but the limits were fitted for {age}; "
                f"{again}"
            )

    @model_validator(mode="after")
    def _unchanged_since_the_fit(self) -> Self:
        fitted = None if self.fit is None else self.fit.fitted
        if fitted is None:
            return self
        lowest = "refuse_below" if self.rule == "probability" else "refuse_under_age"
        limit = "threshold" if self.rule == "probability" else "challenge_age"
        for key, was, now in (
            ("rule", fitted.rule, self.rule),
            (limit, fitted.accept_from, self.accept_from),
            (lowest, fitted.refuse_under, self.refuse_under),
            ("frames.correlation", fitted.correlation, self.frames.correlation),
            *(
                (f"model.{name}", getattr(fitted.model, name), getattr(self.model, name, None))
                for name in ModelPart.model_fields
            ),
        ):
            if was != now:
                raise ValueError(
                    f"{key} was changed after the fit, from {was!r} to {now!r}, so what [fit] "
                    "promises does not hold; fit again (agelens gate fit MODEL DATA --base POLICY "
                    "--out POLICY), or remove [fit] and promise nothing"
                )
        return self

    @model_validator(mode="after")
    def _audit_or_override(self) -> Self:
        if not self.audit.required and self.override is None:
            raise ValueError(
                "audit.required = false needs an [override] with text, name and date: who opens "
                "the gate without an audit, and why"
            )
        if self.override is not None and self.journal is None:
            raise ValueError(
                "[override] needs a [journal]: what is decided without a passed audit has to be on "
                "record; add [journal] with a path"
            )
        if self.liveness != "none" and self.frames.max < 3:
            raise ValueError(
                f"liveness = {self.liveness!r} needs 3 frames or more, but frames.max is "
                f"{self.frames.max}"
            )
        return self

    # --- deciding ---------------------------------------------------------------------------------

    @property
    def admitted(self) -> str:
        """Who is let in, in words: "18 or over", "under 13"."""
        return admitted_words(self.required_age, self.admit)

    @property
    def accept_from(self) -> float | None:
        """The limit from which is accepted: a probability or an age; None before the fit."""
        return self.threshold if self.rule == "probability" else self.challenge_age

    @property
    def refuse_under(self) -> float:
        """The limit under which is refused; 0 refuses nobody outright."""
        limit = self.refuse_below if self.rule == "probability" else self.refuse_under_age
        return 0.0 if limit is None else limit

    @property
    def most_frames(self) -> int:
        """Frames of one decision that are looked at, at most."""
        return MOST_CHALLENGE_FRAMES if self.liveness == "challenge" else self.frames.max

    def scores(self, ages: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """What the rule compares: P(of the age that is admitted), or the expected age.

        Args:
            ages: (N, 101) calibrated probabilities; NaN rows give NaN.

        Returns:
            (N,) float64.
        """
        return rule_scores(ages, self.rule, self.required_age, self.admit)

    def outcome(self, age: AgeDistribution) -> Outcome:
        """What the rule says of one calibrated distribution.

        Raises:
            ArgumentError: The distribution abstains (see ``on_unusable``), or the policy has no
                limit yet.
        """
        if age.abstained:
            raise ArgumentError("an abstention has no outcome; on_unusable says what to do")
        (outcome,) = self.outcomes(age.probabilities[None])
        return outcome

    def outcomes(self, ages: NDArray[np.floating[Any]]) -> list[Outcome]:
        """``outcome`` of each of (N, 101) calibrated probabilities.

        Raises:
            ArgumentError: The policy has no limit yet.
        """
        scores = self.scores(ages)
        limit = self.require_limit()
        return [
            "accept" if score >= limit else "refuse" if score < self.refuse_under else "step_up"
            for score in scores
        ]

    def require_limit(self) -> float:
        """The limit from which is accepted.

        Raises:
            ArgumentError: The policy has none yet.
        """
        limit = self.accept_from
        if limit is None:
            key = "threshold" if self.rule == "probability" else "challenge_age"
            raise ArgumentError(
                f"{self.name}: the policy has no {key} yet; fit it: agelens gate fit MODEL DATA "
                f"--base POLICY --out POLICY"
            )
        return limit

    def require_ready(self) -> ModelPart:
        """Refuse a policy that cannot decide yet.

        Returns:
            The model that it is for.

        Raises:
            ArgumentError: It has no limit, or names no model.
        """
        self.require_limit()
        if self.model is None:
            raise ArgumentError(
                f"{self.name}: the policy names no model, so nothing says that its limit fits the "
                "one in use; fit it: agelens gate fit MODEL DATA --base POLICY --out POLICY"
            )
        return self.model

    @property
    def sha256(self) -> str:
        """SHA-256 of the fields in a canonical form; the layout of the TOML does not count."""
        return hashlib.sha256(canonical_json(self.to_table())).hexdigest()

    # --- reading and writing ----------------------------------------------------------------------

    @classmethod
    def load(cls, source: str | Path) -> GatePolicy:
        """Read a policy.

        Args:
            source: Path of a TOML file, or the name of a shipped example (``shipped_policies()``).

        Raises:
            ArgumentError: There is no such policy, it is not TOML, or a key or value is wrong; the
                message names each one.
        """
        where, text = _FILES.read(source)
        table = parsed_toml(text, where)
        return cls.from_table(table, where=where)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, where: str = "policy") -> GatePolicy:
        """Check a policy that is already a dict.

        Args:
            table: As TOML gives it.
            where: What error messages call it.

        Raises:
            ArgumentError: A key is unknown or missing, or a value is wrong.
        """
        return checked_table(cls, table, where)

    def changed(self, **fields: Any) -> GatePolicy:
        """The same policy with other fields, checked as a whole.

        Raises:
            ArgumentError: They do not go together.
        """
        table = {**self.to_table(), **fields}
        return self.from_table({k: _plain(v) for k, v in table.items() if v is not None})

    def to_table(self) -> dict[str, Any]:
        """The policy as plain values; what is None is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_toml(self) -> str:
        """The policy as TOML that ``load`` reads back into an equal one."""
        return toml_text(self.to_table())

    def save(self, path: Path) -> None:
        """Write the policy as TOML; the file appears when it is complete, or not at all."""
        write_text(path, self.to_toml())


def rule_scores(
    ages: NDArray[np.floating[Any]], rule: Rule, required_age: int, admit: Admit = "over"
) -> NDArray[np.float64]:
    """What a rule compares, for each of (N, 101) calibrated age probabilities.

    Args:
        ages: NaN rows give NaN.
        rule: "probability" gives P(age >= required_age), or P(age < required_age) to admit those
            under it; "challenge" the expected age in years.
        required_age: Completed years, 1..100.
        admit: Who is let in.

    Returns:
        (N,) float64; the higher, the surer that the person is to be let in.
    """
    values = np.asarray(ages, np.float64)
    # A float32 row sums to 1 only nearly; the same division as in AgeDistribution.
    totals = values.sum(axis=1)
    if rule == "probability":
        admitted = values[:, required_age:] if admit == "over" else values[:, :required_age]
        return np.asarray(admitted.sum(axis=1) / totals)
    return np.asarray(values @ np.arange(AGE_COUNT, dtype=np.float64) / totals)


def admitted_words(required_age: int, admit: Admit) -> str:
    """Who is let in: "18 or over", "under 13"."""
    return f"{required_age} or over" if admit == "over" else f"under {required_age}"


def kept_out_words(required_age: int, admit: Admit) -> str:
    """Who is to be kept out: "under 18", "13 or over"."""
    return admitted_words(required_age, "under" if admit == "over" else "over")


def reaches_the_age(ages: Sequence[int], covered: Sequence[int], required_age: int) -> bool:
    """Whether faces of the ages ``covered`` show something of those of ``ages`` who are next to the
    required age, and not only of those far from it.
    """
    return covered[1] >= ages[1] if ages[0] < required_age else covered[0] <= ages[0]


def shipped_policies() -> tuple[str, ...]:
    """Names of the example policies that come with AgeLens; each is to be fitted first."""
    return _FILES.names()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return value
