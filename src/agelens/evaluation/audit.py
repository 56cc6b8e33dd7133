"""
One audit of one model: what a policy asks, what the faces say, and whether it passed.

    audit          scored faces and a policy -> AuditResult
    AuditResult    figures, findings and verdict; ``to_dict`` is what is signed
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from agelens import __version__
from agelens.data.schema import write_text
from agelens.errors import ArgumentError, DataError
from agelens.evaluation.bootstrap import DEFAULT_SAMPLES, LEVEL, Estimate, weights
from agelens.evaluation.evaluating import face_counts
from agelens.evaluation.gate_errors import (
    EVERYBODY,
    RULES,
    GateError,
    errors_within,
    gate_errors,
    left_out,
)
from agelens.evaluation.groups import (
    AGE,
    GENDER,
    PRIMARY,
    SIGNIFICANCE,
    Cell,
    Disaggregation,
    Gap,
    cell_name,
    dimensions,
    disaggregate,
)
from agelens.evaluation.metrics import METRICS, Metric, find_metric, measure, why_not
from agelens.evaluation.policy import (
    EVERY_COLUMN,
    AuditPolicy,
    GateRequirement,
    JudgedBy,
    Requirement,
    StressRequirement,
)
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.signing import AUDIT_SCHEMA, data_fingerprint, sign
from agelens.evaluation.skin_tone import TONE_COLUMN
from agelens.evaluation.stress import StressResult
from agelens.evaluation.tables import estimate_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Outcome = Literal["passed", "failed", "unjudged"]
Limit = Literal["min", "max", "max_gap", "max_ratio", "max_worse", "unjudged"]

TEST_METHOD: Final = (
    "Each cell against all faces of its grouping: difference over its cluster bootstrap standard "
    "error, held to Student's distribution; all tests of the audit corrected together by Holm's "
    "step-down with the correlation of the tests from the bootstrap draws (Hothorn, Bretz and "
    "Westfall 2008). Four fifths of the chance of a false alarm go to the primary figures."
)


@dataclass(frozen=True)
class Failure:
    """One cell that does not meet one requirement.

    Attributes:
        cell: The cell as people read it: "race Black", "all faces", "dark".
        metric: Name of the figure, or of the gate rule's error.
        value: The figure.
        low: Lower end of its 95 % interval, or None.
        high: Upper end, or None.
        count: Faces that it stands on.
        limit: Which limit it breaks.
        allowed: That limit.
        sentence: All of this in words.
    """

    cell: str
    metric: str
    value: float
    low: float | None
    high: float | None
    count: int
    limit: Limit
    allowed: float
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Judgement:
    """One requirement of the policy and what became of it.

    Attributes:
        kind: "require", "gate" or "stress".
        number: Its place among those of its kind in the policy, from 1.
        text: What is required, in words.
        why: The policy's reason.
        outcome: "unjudged" where these data allow no judgement at all.
        judged: Cells that were judged.
        too_few: Cells that were not, for want of faces.
        failures: Those that failed.
        note: Why it could not be judged, or "".
    """

    kind: Literal["require", "gate", "stress"]
    number: int
    text: str
    why: str
    outcome: Outcome
    judged: int
    too_few: int
    failures: tuple[Failure, ...]
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        wire = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**wire, "failures": [failure.to_dict() for failure in self.failures]}


@dataclass(frozen=True)
class AuditResult:
    """All that one audit found.

    Attributes:
        created: When, UTC.
        expires: Until when it holds by its policy, UTC.
        passed: Whether the model passed.
        faces: Provenance and counts come from these.
        policy: What it was judged by.
        settings: "samples", "seed", "level", "min_cell", "skin_tone_measured".
        overall: Figures of all faces.
        groups: Figures by group, gaps and tests.
        gate: Errors of an age check; empty without exact ages.
        stress: What changed pictures do, or None where it was not tried.
        judgements: Every requirement with its outcome, in the policy's order.
        notes: What is not there and why.
    """

    created: datetime
    expires: datetime
    passed: bool
    faces: ScoredFaces
    policy: AuditPolicy
    settings: Mapping[str, Any]
    overall: Mapping[str, Estimate]
    groups: Disaggregation
    gate: tuple[GateError, ...]
    stress: StressResult | None
    judgements: tuple[Judgement, ...]
    notes: tuple[str, ...]

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The failing cells of all requirements, once each."""
        return tuple(dict.fromkeys(failure for one in self.judgements for failure in one.failures))

    @property
    def sentences(self) -> tuple[str, ...]:
        """Why the model failed: a sentence for each failing cell, and for what was not judged."""
        unjudged = [
            f"Not judged: {one.text} ({one.note})"
            for one in self.judgements
            if one.outcome == "unjudged" and self.policy.unjudged == "fail"
        ]
        return (*(failure.sentence for failure in self.failures), *unjudged)

    def to_dict(self) -> dict[str, Any]:
        """Wire form: JSON values, without a signature; NaN does not occur."""
        provenance = self.faces.provenance
        files = [
            {"name": file.name, "sha256": file.sha256, "rows": file.rows}
            for file in provenance.data
        ]
        return {
            "schema": AUDIT_SCHEMA,
            "agelens": __version__,
            "created": _stamp(self.created),
            "expires": _stamp(self.expires),
            "verdict": "passed" if self.passed else "failed",
            "model": {
                "name": provenance.model,
                "sha256": provenance.model_sha256,
                "card_sha256": provenance.card_sha256,
            },
            "data": files,
            "data_sha256": data_fingerprint([file.sha256 for file in provenance.data]),
            "policy": {
                "name": self.policy.name,
                "summary": self.policy.summary,
                "sha256": self.policy.sha256,
                "validity_days": self.policy.validity_days,
                "text": self.policy.text,
            },
            "options": dict(provenance.options),
            "settings": dict(self.settings),
            "faces": face_counts(self.faces),
            "definitions": _definitions(self.overall),
            "overall": {name: estimate.to_dict() for name, estimate in self.overall.items()},
            "columns": {name: list(values) for name, values in self.groups.columns.items()},
            "cells": [cell.to_dict() for cell in self.groups.cells],
            "gaps": [gap.to_dict() for gap in self.groups.gaps],
            "tests": {
                "count": self.groups.tests,
                "significance": SIGNIFICANCE,
                "primary": list(PRIMARY),
                "method": TEST_METHOD,
            },
            "gate": {
                "rules": {
                    rule.name: {"title": rule.title, "legal_age": rule.legal_age}
                    for rule in RULES.values()
                },
                "errors": [error.to_dict() for error in self.gate],
            },
            "stress": None if self.stress is None else self.stress.to_dict(),
            "judgements": [one.to_dict() for one in self.judgements],
            "failures": [failure.to_dict() for failure in self.failures],
            "sentences": list(self.sentences),
            "notes": list(self.notes),
        }

    def save(self, path: Path, key: Ed25519PrivateKey | None = None) -> dict[str, Any]:
        """Sign the audit and write it as JSON.

        Args:
            path: File to write; it appears when it is complete, or not at all.
            key: Private key; None takes ``signing.signing_key()``.

        Returns:
            The signed document.
        """
        signed = sign(self.to_dict(), key)
        write_text(path, json.dumps(signed, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return signed


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _definitions(held: Mapping[str, Estimate]) -> dict[str, Any]:
    metrics = [find_metric(name) for name in held]
    return {
        metric.name: {
            "title": metric.title,
            "unit": metric.unit,
            "better": metric.better,
            "nominal": metric.nominal,
        }
        for metric in metrics
    }


def audit(
    faces: ScoredFaces,
    policy: AuditPolicy,
    *,
    stress: StressResult | None = None,
    columns: Sequence[str] | None = None,
    min_cell: int | None = None,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    now: datetime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AuditResult:
    """Judge a model's answers by a policy.

    Args:
        faces: Labelled faces with answers, from ``scoring.score``.
        policy: What the model must do to pass.
        stress: The same model on changed pictures, from ``stress.stress``; without it limits on
            changed pictures are not judged.
        columns: Audit columns to look at; None takes all that can be used.
        min_cell: Faces that a cell needs; None takes the policy's.
        samples: Bootstrap draws.
        seed: Of the draws.
        now: When, with its zone; None takes the clock's.
        progress: Told groupings done and groupings in all.

    Raises:
        DataError: There is nothing to measure, or the policy names a column that does not exist.
        ArgumentError: ``min_cell`` is under 2, or ``now`` has no zone.
        MissingExtra: fairlearn, pandas or scipy is not installed.
    """
    moment = datetime.now(UTC) if now is None else now
    if moment.tzinfo is None:
        raise ArgumentError(f"now must have a time zone, got {moment.isoformat()}")
    least = policy.min_cell if min_cell is None else min_cell
    _check_measurable(faces)
    _check_columns(faces, policy, columns)
    draws = weights(faces.clusters, samples, seed)
    named = dict.fromkeys((*METRICS, *(required.metric for required in policy.require)))
    groups = disaggregate(
        faces,
        columns=columns,
        metrics=list(named),
        min_cell=least,
        seed=seed,
        draws=draws,
        progress=progress,
    )
    overall = measure(faces, draws=draws)
    judge = _Judge(faces, policy, overall, groups, stress, least)
    judgements = tuple(judge.all())
    failed = {"failed", "unjudged"} if policy.unjudged == "fail" else {"failed"}
    labels, _ = dimensions(faces, columns)
    by_group = {name: column for name, column in labels.items() if name != AGE}
    return AuditResult(
        created=moment.astimezone(UTC).replace(microsecond=0),
        expires=(moment + timedelta(days=policy.validity_days)).astimezone(UTC),
        # What judged nothing has shown nothing.
        passed=any(one.outcome == "passed" for one in judgements)
        and not any(one.outcome in failed for one in judgements),
        faces=faces,
        policy=policy,
        settings={
            "samples": samples,
            "seed": seed,
            "level": LEVEL,
            "min_cell": least,
            "skin_tone_measured": TONE_COLUMN in faces.audit,
        },
        overall=overall,
        groups=groups,
        gate=gate_errors(faces, by_group),
        stress=stress,
        judgements=judgements,
        notes=(*groups.notes, *left_out(faces), *_notes(faces, stress)),
    )


def _check_measurable(faces: ScoredFaces) -> None:
    if not faces.has_age.any() and not faces.has_gender.any():
        raise DataError(
            f"{faces.provenance.model} has no estimate for any of the {len(faces)} labelled faces; "
            "are the pictures face crops that no detector finds (--crops), or of nothing at all?"
        )
    for name in ("age", "female"):
        values = getattr(faces, name).reshape(len(faces), -1)
        partly = np.isnan(values).any(axis=1) & ~np.isnan(values).all(axis=1)
        if partly.any():
            raise DataError(
                f"{faces.names[int(np.flatnonzero(partly)[0])]}: the model's {name} estimate is "
                "partly NaN; its network or calibration is broken"
            )


def _check_columns(faces: ScoredFaces, policy: AuditPolicy, columns: Sequence[str] | None) -> None:
    labels = (AGE, GENDER, EVERY_COLUMN)
    held = tuple(faces.audit if columns is None else columns)
    for by in (*(one.by for one in policy.require), *(one.by for one in policy.gate)):
        for column in by:
            if column not in labels and column not in held:
                there = ", ".join(repr(name) for name in held) or "none"
                raise DataError(
                    f"the policy {policy.name!r} judges by the column {column!r}, which is not "
                    f"among the audit columns of these files: {there}; 'gender' and 'age' are "
                    "labels that it can judge by too"
                )


def _notes(faces: ScoredFaces, stress: StressResult | None) -> Iterator[str]:
    if TONE_COLUMN in faces.audit:
        measured = sum(value is not None for value in faces.audit[TONE_COLUMN])
        yield (
            f"{TONE_COLUMN!r} is measured from the pictures ({measured:,} of {len(faces):,} faces) "
            "and depends on their light: it is not a label of anybody's skin"
        )
    if stress is None:
        yield "changed pictures were not tried (--no-stress)"
    if faces.errors:
        yield f"{len(faces.errors):,} pictures could not be read and have no part in any figure"


# --- judging --------------------------------------------------------------------------------------


class _Judge:
    """Holds the measured figures to the policy, requirement by requirement."""

    def __init__(
        self,
        faces: ScoredFaces,
        policy: AuditPolicy,
        overall: Mapping[str, Estimate],
        groups: Disaggregation,
        stress: StressResult | None,
        min_cell: int,
    ) -> None:
        self._faces = faces
        self._policy = policy
        self._overall = overall
        self._groups = groups
        self._stress = stress
        self._min_cell = min_cell
        self._audit_columns = [n for n in groups.columns if n not in (AGE, GENDER)]

    def all(self) -> Iterator[Judgement]:
        for number, required in enumerate(self._policy.require, start=1):
            yield self._figure(number, required)
        for number, gate in enumerate(self._policy.gate, start=1):
            yield self._gate(number, gate)
        for number, stress in enumerate(self._policy.stress, start=1):
            yield self._stressed(number, stress)

    # --- figures

    def _figure(self, number: int, required: Requirement) -> Judgement:
        metric = find_metric(required.metric)
        make = partial(
            Judgement,
            "require",
            number,
            requirement_text(required),
            required.why,
        )
        if not metric.rows(self._faces).any():
            return make("unjudged", 0, 0, (), why_not(metric, self._faces))
        if not required.by:
            estimate = (
                self._overall.get(metric.name) or measure(self._faces, [metric.name])[metric.name]
            )
            if estimate.count < self._min_cell:
                note = f"{estimate.count} faces that carry the figure, {self._min_cell} needed"
                return make("unjudged", 0, 1, (), note)
            if required.judged_by == "confident" and np.isnan([estimate.low, estimate.high]).any():
                note = "there is no interval to judge by: too few independent faces or draws"
                return make("unjudged", 0, 1, (), note)
            failure = _beyond(required, metric, "all faces", estimate)
            return make(
                "failed" if failure else "passed", 1, 0, () if failure is None else (failure,), ""
            )
        judged = few = 0
        failures: list[Failure] = []
        groupings = self._groupings(required.by)
        for by in groupings:
            cells = [c for c in self._groups.of(by) if _is_meant(c, required.only)]
            held = [cell for cell in cells if metric.name in cell.figures]
            judged, few = judged + len(held), few + len(cells) - len(held)
            for cell in held:
                failure = _beyond(required, metric, cell.name, cell.figures[metric.name].estimate)
                failures += [] if failure is None else [failure]
            gap = self._groups.gap(metric.name, by)
            if gap is not None:
                failures += _too_far_apart(required, metric, gap)
        compares = required.max_gap is not None or required.max_ratio is not None
        enough = any(self._groups.gap(metric.name, by) for by in groupings) if compares else judged
        if not enough:
            return make("unjudged", judged, few, (), self._why_no_cell(required, groupings, few))
        return make("failed" if failures else "passed", judged, few, tuple(failures), "")

    def _groupings(self, by: Sequence[str]) -> list[tuple[str, ...]]:
        """What ``by`` means on these data; columns that cannot be grouped by are left out."""
        if EVERY_COLUMN not in by:
            wanted = [tuple(by)]
        else:
            rest = tuple(column for column in by if column != EVERY_COLUMN)
            wanted = [(column, *rest) for column in self._audit_columns if column not in rest]
        return [one for one in wanted if set(one) <= set(self._groups.columns)]

    def _why_no_cell(
        self, required: Requirement, groupings: Sequence[tuple[str, ...]], few: int
    ) -> str:
        if not groupings:
            if EVERY_COLUMN in required.by:
                return "there is no audit column"
            return f"no face has labels for {' and '.join(required.by)}"
        if few:
            return (
                f"{few} cells, each with fewer than {self._min_cell} faces that carry the figure"
                if required.max_gap is None and required.max_ratio is None
                else f"fewer than two cells of {self._min_cell} faces or more to compare"
            )
        only = f" among {', '.join(required.only)}" if required.only else ""
        return f"no cell by {' and '.join(required.by)}{only} to judge"

    # --- gate

    def _gate(self, number: int, required: GateRequirement) -> Judgement:
        make = partial(Judgement, "gate", number, gate_text(required), required.why)
        columns, _ = dimensions(self._faces)
        within = partial(errors_within, required.rule, required.error, required.ages, self._faces)
        found = within()
        named = [c for by in required.by for c in self._groupings([by])]
        for (column,) in named:
            found += within(column, columns[column])
        held = [error for error in found if error.count >= self._min_cell]
        if not held:
            seen = found[0].count if found else 0
            low, high = required.ages
            return make(
                "unjudged",
                0,
                len(found),
                (),
                f"{seen} faces of exact age {low} to {high}, {self._min_cell} needed",
            )
        failures = tuple(
            _gate_failure(required, error)
            for error in held
            if (error.low if required.judged_by == "confident" else error.rate) > required.max
        )
        outcome: Outcome = "failed" if failures else "passed"
        return make(outcome, len(held), len(found) - len(held), failures, "")

    # --- stress

    def _stressed(self, number: int, required: StressRequirement) -> Judgement:
        make = partial(Judgement, "stress", number, stress_text(required), required.why)
        if self._stress is None:
            return make("unjudged", 0, 0, (), "changed pictures were not tried")
        metric = find_metric(required.metric)
        slices = {one.name: one for one in self._stress.slices}
        judged = few = 0
        failures = []
        for name in required.names:
            change = slices[name].answers.get(metric.name) if name in slices else None
            if change is None or change.worse.count < self._min_cell:
                few += 1
                continue
            judged += 1
            worst = change.worse
            if _is_over(worst, required.max_worse, required.judged_by):
                failures.append(_stress_failure(required, metric, slices[name].title, name, worst))
        if not judged:
            note = f"no slice has {self._min_cell} answered faces that carry the figure"
            return make("unjudged", 0, few, (), note)
        return make("failed" if failures else "passed", judged, few, tuple(failures), "")


def _is_meant(cell: Cell, only: Sequence[str]) -> bool:
    return not only or any(value in only for value in cell.values)


def _is_over(estimate: Estimate, limit: float, judged_by: JudgedBy) -> bool:
    """Whether a figure is over a limit; without an interval nobody can be confident."""
    return (estimate.low if judged_by == "confident" else estimate.value) > limit


def _is_under(estimate: Estimate, limit: float, judged_by: JudgedBy) -> bool:
    return (estimate.high if judged_by == "confident" else estimate.value) < limit


def _beyond(required: Requirement, metric: Metric, cell: str, estimate: Estimate) -> Failure | None:
    words = _figure_words(metric, estimate)
    where = " over all faces" if cell == "all faces" else f" for {cell}"
    if required.min is not None and _is_under(estimate, required.min, required.judged_by):
        allowed = _amount(metric, required.min)
        sentence = f"{metric.title} is {words}{where}; at least {allowed}."
        return _failure(cell, metric.name, estimate, "min", required.min, sentence)
    if required.max is not None and _is_over(estimate, required.max, required.judged_by):
        allowed = _amount(metric, required.max)
        sentence = f"{metric.title} is {words}{where}; at most {allowed}."
        return _failure(cell, metric.name, estimate, "max", required.max, sentence)
    return None


def _too_far_apart(required: Requirement, metric: Metric, gap: Gap) -> Iterator[Failure]:
    confident = required.judged_by == "confident"
    ends = (
        f"{_amount(metric, gap.worst_value)} for {cell_name(gap.by, gap.worst)}, "
        f"{_amount(metric, gap.best_value)} for {cell_name(gap.by, gap.best)}"
    )
    cell = cell_name(gap.by, gap.worst)
    apart = gap.standardised if required.standardised else gap.gap
    if (
        required.max_gap is not None
        and apart is not None
        and _is_over(apart, required.max_gap, required.judged_by)
        and (gap.significant or not confident)
    ):
        equal = " at equal ages" if required.standardised else ""
        sentence = (
            f"{metric.title} differs by {_figure_words(metric, apart, apart=True)}{equal} between "
            f"groups by {' and '.join(gap.by)} ({ends}); at most "
            f"{_amount(metric, required.max_gap, apart=True)}."
        )
        yield _failure(cell, metric.name, apart, "max_gap", required.max_gap, sentence)
    if (
        required.max_ratio is not None
        and gap.ratio is not None
        and gap.ratio > required.max_ratio
        and (gap.significant or not confident)
    ):
        sentence = (
            f"{metric.title} is {gap.ratio:.2f} times as large in one group by "
            f"{' and '.join(gap.by)} as in another ({ends}); at most {required.max_ratio:g} times."
        )
        ratio = Estimate(gap.ratio, np.nan, np.nan, gap.gap.count)
        yield _failure(cell, metric.name, ratio, "max_ratio", required.max_ratio, sentence)


def _failure(
    cell: str, metric: str, estimate: Estimate, limit: Limit, allowed: float, sentence: str
) -> Failure:
    low, high = (None if np.isnan(end) else end for end in (estimate.low, estimate.high))
    return Failure(
        cell, metric, estimate.value, low, high, estimate.count, limit, allowed, sentence
    )


def _gate_failure(required: GateRequirement, error: GateError) -> Failure:
    low, high = required.ages
    who = "" if error.column == EVERYBODY else f", {error.column} {error.value}"
    what = "lets in" if required.error == "false_acceptance" else "turns away"
    words = f"{100 * error.rate:.1f} % ({100 * error.low:.1f}–{100 * error.high:.1f})"
    return Failure(
        cell=f"age {low}-{high}{who}",
        metric=f"{required.rule} {required.error}",
        value=error.rate,
        low=error.low,
        high=error.high,
        count=error.count,
        limit="max",
        allowed=required.max,
        sentence=(
            f"{RULES[required.rule].title}: {what} {error.wrong} of {error.count} faces of true "
            f"age {low} to {high}{who}, {words}; at most {100 * required.max:g} %."
        ),
    )


def _stress_failure(
    required: StressRequirement, metric: Metric, title: str, name: str, worst: Estimate
) -> Failure:
    words = _figure_words(metric, worst, apart=True)
    sentence = (
        f"{metric.title} gets worse by {words} on pictures that are changed ({title}); at most "
        f"{_amount(metric, required.max_worse, apart=True)}."
    )
    return _failure(name, metric.name, worst, "max_worse", required.max_worse, sentence)


# --- words ----------------------------------------------------------------------------------------


def requirement_text(required: Requirement) -> str:
    """What a requirement asks, in words."""
    metric = find_metric(required.metric)
    parts = []
    if required.min is not None and required.max is not None:
        lowest = _amount(metric, required.min).partition(" ")[0]
        parts.append(f"from {lowest} to {_amount(metric, required.max)}")
    elif required.min is not None:
        parts.append(f"at least {_amount(metric, required.min)}")
    elif required.max is not None:
        parts.append(f"at most {_amount(metric, required.max)}")
    if required.max_gap is not None:
        equal = ", at equal ages" if required.standardised else ""
        parts.append(
            f"at most {_amount(metric, required.max_gap, apart=True)} between groups{equal}"
        )
    if required.max_ratio is not None:
        parts.append(f"at most {required.max_ratio:g} times as large in one group as in another")
    columns = " and ".join(
        "each audit column" if column == EVERY_COLUMN else column for column in required.by
    )
    where = f", by {columns}" if columns else ", over all faces"
    only = f", {' or '.join(required.only)}" if required.only else ""
    return f"{metric.title}: {' and '.join(parts)}{where}{only}{_judged(required.judged_by)}"


def gate_text(required: GateRequirement) -> str:
    """What a limit on an age check asks, in words."""
    low, high = required.ages
    what = "let in" if required.error == "false_acceptance" else "turned away"
    columns = " and ".join(
        "each audit column" if column == EVERY_COLUMN else column for column in required.by
    )
    by = f", and by {columns}" if columns else ""
    return (
        f"{RULES[required.rule].title}: at most {100 * required.max:g} % of true age {low} to "
        f"{high} {what}{by}{_judged(required.judged_by)}"
    )


def stress_text(required: StressRequirement) -> str:
    """What a limit on changed pictures asks, in words."""
    metric = find_metric(required.metric)
    names = "every slice" if EVERY_COLUMN in required.slices else ", ".join(required.slices)
    return (
        f"{metric.title}: at most {_amount(metric, required.max_worse, apart=True)} worse on "
        f"{names}{_judged(required.judged_by)}"
    )


def _judged(judged_by: JudgedBy) -> str:
    return "; judged by its 95 % interval" if judged_by == "confident" else "; judged by its value"


def _amount(metric: Metric, value: float, *, apart: bool = False) -> str:
    """A figure with its unit; differences of shares are in points."""
    unit = "points" if apart and metric.unit == "share" else metric.shown_unit
    text = f"{100 * value:.1f}" if metric.unit == "share" else metric.text(value)
    return f"{text.lstrip('+') if apart else text} {unit}".rstrip()


def _figure_words(metric: Metric, estimate: Estimate, *, apart: bool = False) -> str:
    def text(value: float) -> str:
        return _amount(metric, value, apart=apart).partition(" ")[0]

    whole = _amount(metric, estimate.value, apart=apart)
    interval = estimate_text(estimate.to_dict(), text).partition(" ")[2]
    return f"{whole} {interval}".rstrip()
