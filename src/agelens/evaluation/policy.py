"""
What a model must do to pass an audit: one TOML file, checked before anything is measured.

    AuditPolicy
    ├── require   limits on figures, of all faces or of every group of a column
    ├── gate      limits on the errors of an age check, by exact age
    └── stress    limits on how much worse a figure may become on changed pictures
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from agelens.evaluation.gate_errors import RULES, ErrorKind
from agelens.evaluation.metrics import find_metric
from agelens.evaluation.stress import SLICES, STRESS_METRICS
from agelens.toml import TomlFolder, checked_table, parsed_toml

POLICY_SCHEMA: Final = "agelens.audit-policy/1"
EVERY_COLUMN: Final = "*"
"""In ``by``: each audit column that the data has."""

JudgedBy = Literal["value", "confident"]

_FILES: Final = TomlFolder("agelens.evaluation", "policies", "policy")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Requirement(_Part):
    """A limit on one figure.

    Attributes:
        metric: Name of the figure.
        by: Columns whose groups are each held to the limit: audit columns, "gender", "age" (bands
            of true age), two of them for their intersections, "*" for each audit column there is;
            empty for all faces together.
        only: Values that a cell must have one of; empty takes all cells.
        min: Least figure.
        max: Greatest figure.
        max_gap: Most between the highest and the lowest cell.
        max_ratio: Most that the highest cell may be times the lowest, 1 or more.
        standardised: Judge gaps as if all cells had the same ages.
        judged_by: "value" fails when the figure is beyond the limit; "confident" only when its
            whole 95 % interval is, and a gap only when it is more than noise.
        why: What the limit is for, in the reader's words.
    """

    metric: str
    by: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    min: float | None = None
    max: float | None = None
    max_gap: float | None = Field(default=None, ge=0)
    max_ratio: float | None = Field(default=None, ge=1)
    standardised: bool = False
    judged_by: JudgedBy = "confident"
    why: str = ""

    @field_validator("metric")
    @classmethod
    def _metric_exists(cls, value: str) -> str:
        find_metric(value)
        return value

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        limits = (self.min, self.max, self.max_gap, self.max_ratio)
        if all(limit is None for limit in limits):
            raise ValueError("there is no limit; give min, max, max_gap or max_ratio")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is over max {self.max:g}")
        gaps = self.max_gap is not None or self.max_ratio is not None
        if gaps and not self.by:
            raise ValueError("max_gap and max_ratio compare groups; name a column in by")
        if len(self.by) > 2 or len(set(self.by)) < len(self.by):
            raise ValueError(f"by takes one column or two different ones, got {list(self.by)}")
        if EVERY_COLUMN in self.by and len(self.by) == 2 and self.by[1] == EVERY_COLUMN:
            raise ValueError('write by = ["*", COLUMN] with the star first')
        if self.only and gaps:
            raise ValueError("only goes with min and max; a gap is over all cells of a column")
        if self.standardised and self.max_gap is None:
            raise ValueError("standardised goes with max_gap")
        return self


class GateRequirement(_Part):
    """A limit on the errors of an age check.

    Attributes:
        rule: Name of the rule, as "challenge_25".
        error: "false_acceptance" or "false_refusal".
        ages: First and last true age, both included, on one side of the rule's age.
        by: Columns whose groups are each held to the limit too; "*" for each audit column.
        max: Greatest share of faces that are decided wrongly.
        judged_by: As for a ``Requirement``, with Clopper-Pearson intervals.
        why: What the limit is for.
    """

    rule: str
    error: ErrorKind
    ages: tuple[int, int]
    by: tuple[str, ...] = ()
    max: float = Field(ge=0, le=1)
    judged_by: JudgedBy = "confident"
    why: str = ""

    @field_validator("rule")
    @classmethod
    def _rule_exists(cls, value: str) -> str:
        if value not in RULES:
            raise ValueError(f"there is no rule {value!r}; there are {', '.join(RULES)}")
        return value

    @model_validator(mode="after")
    def _ages_fit(self) -> Self:
        low, high = self.ages
        legal = RULES[self.rule].legal_age if self.rule in RULES else 0
        if not 0 <= low <= high:
            raise ValueError(f"ages must be two ages from low to high, got {list(self.ages)}")
        if self.error == "false_acceptance" and high >= legal:
            raise ValueError(
                f"ages {low} to {high} are not all under {legal}: from there on acceptance is right"
            )
        if self.error == "false_refusal" and low < legal:
            raise ValueError(
                f"ages {low} to {high} are not all {legal} or over: under it refusal is right"
            )
        return self


class StressRequirement(_Part):
    """A limit on what changed pictures do to a figure.

    Attributes:
        slices: Names of changes, as "dark"; "*" for all.
        metric: Name of the figure.
        max_worse: Most that the figure may become worse, in its own unit, over the faces that the
            analyzer still answers.
        judged_by: As for a ``Requirement``.
        why: What the limit is for.
    """

    slices: tuple[str, ...] = Field(min_length=1)
    metric: str
    max_worse: float = Field(ge=0)
    judged_by: JudgedBy = "confident"
    why: str = ""

    @field_validator("slices")
    @classmethod
    def _slices_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != EVERY_COLUMN and name not in SLICES:
                raise ValueError(f"there is no slice {name!r}; there are {', '.join(SLICES)}")
        return value

    @field_validator("metric")
    @classmethod
    def _metric_is_measured(cls, value: str) -> str:
        if value not in STRESS_METRICS:
            raise ValueError(f"stress measures {', '.join(STRESS_METRICS)}, not {value!r}")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        """The slices meant."""
        return tuple(SLICES) if EVERY_COLUMN in self.slices else self.slices


class AuditPolicy(_Part):
    """What a model must do to pass.

    Attributes:
        policy_schema: "agelens.audit-policy/1".
        name: For reports and results.
        summary: One sentence.
        validity_days: Days that an audit by this policy holds.
        min_cell: Faces that a cell needs to be judged.
        unjudged: What a requirement does that these data cannot judge at all: "fail" the audit, or
            leave a "note".
        require: Limits on figures.
        gate: Limits on the errors of an age check.
        stress: Limits on changed pictures.
    """

    policy_schema: Literal["agelens.audit-policy/1"] = Field(alias="schema")
    name: str = Field(min_length=1)
    summary: str = ""
    validity_days: int = Field(ge=1, le=3650)
    min_cell: int = Field(default=30, ge=2)
    unjudged: Literal["fail", "note"] = "fail"
    require: tuple[Requirement, ...] = ()
    gate: tuple[GateRequirement, ...] = ()
    stress: tuple[StressRequirement, ...] = ()

    _text: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _requires_something(self) -> Self:
        if not (self.require or self.gate or self.stress):
            raise ValueError("the policy requires nothing; add [[require]], [[gate]] or [[stress]]")
        return self

    @property
    def text(self) -> str:
        """The whole file, as it was read."""
        return self._text

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's text."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    @classmethod
    def load(cls, source: str | Path = "strict") -> AuditPolicy:
        """Read a policy.

        Args:
            source: Path of a TOML file, or the name of a shipped policy (``shipped_policies()``).

        Raises:
            ArgumentError: There is no such policy, it is not TOML, or a key or value is wrong; the
                message names each key with the value that was found.
        """
        where, text = _FILES.read(source)
        return cls.parse(text, where=where)

    @classmethod
    def parse(cls, text: str, *, where: str = "policy") -> AuditPolicy:
        """Check the text of a policy.

        Args:
            text: TOML.
            where: What error messages call it.

        Raises:
            ArgumentError: See ``load``.
        """
        table = parsed_toml(text, where)
        policy = checked_table(cls, table, where)
        policy._text = text
        return policy


def shipped_policies() -> tuple[str, ...]:
    """Names of the policies that come with AgeLens."""
    return _FILES.names()
