"""
One evaluation of one model: all the evidence from scored faces, as what the JSON file holds.

Reports, cards and documentation read the stored result, so that every figure they show is one that
was measured. It holds counts and figures of groups; single faces are in it by name only, as the
worst cases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from agelens import __version__
from agelens.data.schema import write_text
from agelens.errors import DataError
from agelens.evaluation.bootstrap import (
    DEFAULT_SAMPLES,
    LEVEL,
    Draws,
    Estimate,
    percentiles,
    weights,
)
from agelens.evaluation.comparison import Comparison, compare
from agelens.evaluation.metrics import (
    METRICS,
    by_age_band,
    by_group,
    measure,
    risk_coverage,
    weighted_mean,
    why_not,
)
from agelens.evaluation.scored import LEVELS, UNKNOWN, Floats, Provenance, ScoredFaces
from agelens.evaluation.tables import read_result
from agelens.evaluation.values import (
    AGE_BANDS,
    NINE_RANGES,
    PIT_LEVELS,
    Band,
    band_of,
    covered,
    gender_right,
    over_label,
    pit,
    probability_over,
    range_distances,
)
from agelens.results import AGE_COUNT

SCHEMA: Final = "agelens.evaluation/1"
MOST_GROUPS: Final = 30
"""A column with more values than this is no audit column."""

_BINS: Final = 10
_SCATTER_YEARS: Final = 4
_WORST: Final = 20
_THRESHOLDS: Final = (18, 21)
_GENDERS: Final = ("female", "male")

Figures = dict[str, Estimate]


@dataclass(frozen=True)
class GroupFigures:
    """Figures of the faces that share a value.

    Attributes:
        value: The group's name: an age band "13-17", a gender, or a value of an audit column.
        count: Faces in it.
        metrics: By name, where the group allows them.
    """

    value: str
    count: int
    metrics: Figures

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {"value": self.value, "count": self.count, "metrics": _wire(self.metrics)}

    @classmethod
    def from_dict(cls, wire: Mapping[str, Any]) -> Self:
        """Read back what ``to_dict`` gave."""
        return cls(wire["value"], wire["count"], _figures(wire["metrics"]))


@dataclass(frozen=True)
class EvaluationResult:
    """All that one evaluation found.

    Attributes:
        created: UTC time, ISO 8601.
        agelens: Version that made it.
        provenance: Model, data and options, as ``scored.Provenance`` in plain values.
        settings: "samples", "seed" and "level" of the intervals.
        faces: Counts: "rows", "clusters", "estimated", "answered", "unreadable", "exact_age",
            "range_age", "gender".
        metrics: Over all faces with an estimate.
        answered: Over those that the analyzer answers.
        groups: By "age", "gender", "dataset" where there are several, and each audit column.
        risk_coverage: Curves, as ``risk.RiskCoverage.to_dict``.
        reliability: "age" (probability integral transform), "intervals", and bins of "female",
            "over18" and "over21".
        scatter: Faces with exact labels by true and predicted age: "true_edges",
            "predicted_edges", "counts" (true, predicted); None without any.
        confusion: "gender" and "nine_ranges", each with "labels", "said" and "counts".
        worst: "age" and "gender": the worst cases by name.
        unreadable: Why pictures could not be read, by name.
        notes: What is not there and why.
        comparison: With another model: "other" (its provenance) and "figures" by metric; or None.
    """

    created: str
    agelens: str
    provenance: dict[str, Any]
    settings: dict[str, Any]
    faces: dict[str, int]
    metrics: Figures
    answered: Figures
    groups: dict[str, tuple[GroupFigures, ...]]
    risk_coverage: tuple[dict[str, Any], ...]
    reliability: dict[str, Any]
    scatter: dict[str, Any] | None
    confusion: dict[str, Any]
    worst: dict[str, list[dict[str, Any]]]
    unreadable: dict[str, str]
    notes: tuple[str, ...]
    comparison: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Wire form: the schema, what each metric means, then the attributes."""
        definitions = {
            name: {
                "title": metric.title,
                "unit": metric.unit,
                "better": metric.better,
                "nominal": metric.nominal,
            }
            for name, metric in METRICS.items()
        }
        wire: dict[str, Any] = {"schema": SCHEMA, "definitions": definitions}
        for name in self.__dataclass_fields__:
            wire[name] = getattr(self, name)
        wire["metrics"], wire["answered"] = _wire(self.metrics), _wire(self.answered)
        wire["groups"] = {k: [one.to_dict() for one in v] for k, v in self.groups.items()}
        wire["risk_coverage"], wire["notes"] = list(self.risk_coverage), list(self.notes)
        return wire

    @classmethod
    def from_dict(cls, wire: Mapping[str, Any]) -> Self:
        """Read back what ``to_dict`` gave.

        Raises:
            DataError: It is of another schema, or a part is missing.
        """
        if wire.get("schema") != SCHEMA:
            raise DataError(f"this is {wire.get('schema')!r}, expected {SCHEMA!r}")
        try:
            fields = {name: wire[name] for name in cls.__dataclass_fields__}
        except KeyError as error:
            raise DataError(f"this evaluation has no {error}; evaluate the model again") from error
        fields["metrics"], fields["answered"] = (
            _figures(fields["metrics"]),
            _figures(fields["answered"]),
        )
        fields["groups"] = {
            name: tuple(GroupFigures.from_dict(one) for one in found)
            for name, found in fields["groups"].items()
        }
        fields["risk_coverage"] = tuple(fields["risk_coverage"])
        fields["notes"] = tuple(fields["notes"])
        return cls(**fields)

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(path, text + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the JSON file.

        Raises:
            DataError: There is none, or it is no evaluation.
        """
        wire = read_result(path, SCHEMA, "agelens evaluate MODEL DATA --out FOLDER")
        try:
            return cls.from_dict(wire)
        except (DataError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: is no whole evaluation: {error}") from error


def evaluate(
    faces: ScoredFaces,
    *,
    other: ScoredFaces | None = None,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
) -> EvaluationResult:
    """Everything that labelled faces tell about a model.

    Args:
        faces: The model's answers.
        other: Another model's answers on the same rows, to compare with.
        samples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        DataError: No face has both a label and an estimate, or ``other`` is of other rows.
    """
    if not faces.has_age.any() and not faces.has_gender.any():
        raise DataError(
            f"{faces.provenance.model} has no estimate for any of the {len(faces)} labelled faces; "
            "are the pictures face crops that no detector finds (--crops), or of nothing at all?"
        )
    draws = weights(faces.clusters, samples, seed)
    metrics = measure(faces, draws=draws)
    groups, notes = _groups(faces, draws)
    return EvaluationResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        agelens=__version__,
        provenance=provenance_dict(faces.provenance),
        settings={"samples": samples, "seed": seed, "level": LEVEL},
        faces=face_counts(faces),
        metrics=metrics,
        answered=measure(faces.take(faces.answered), draws=draws[:, faces.answered]),
        groups=groups,
        risk_coverage=_risk(faces, draws),
        reliability=_reliability(faces, draws),
        scatter=_scatter(faces),
        confusion=_confusion(faces),
        worst={"age": _worst_ages(faces), "gender": _worst_genders(faces)},
        unreadable=dict(faces.errors),
        notes=(*_missing(faces, metrics), *notes),
        comparison=None if other is None else _compared(faces, other, samples, seed),
    )


def provenance_dict(provenance: Provenance) -> dict[str, Any]:
    """Plain values for JSON."""
    return {**asdict(provenance), "data": [asdict(file) for file in provenance.data]}


def _wire(figures: Figures) -> dict[str, Any]:
    return {name: estimate.to_dict() for name, estimate in figures.items()}


def _figures(wire: Mapping[str, Any]) -> Figures:
    return {name: Estimate.from_dict(estimate) for name, estimate in wire.items()}


def face_counts(faces: ScoredFaces) -> dict[str, int]:
    """How many faces there are, with which labels and answers."""
    labelled = faces.age_min != UNKNOWN
    exact = labelled & (faces.age_min == faces.age_max)
    return {
        "rows": len(faces),
        "clusters": len(np.unique(faces.clusters)),
        "estimated": int((~np.isnan(faces.age[:, 0])).sum()),
        "answered": int(faces.answered.sum()),
        "unreadable": len(faces.errors),
        "exact_age": int(exact.sum()),
        "range_age": int((labelled & ~exact).sum()),
        "gender": int((faces.female_label != UNKNOWN).sum()),
    }


def _missing(faces: ScoredFaces, metrics: Figures) -> list[str]:
    """Why metrics are not there, one line a reason."""
    reasons: dict[str, list[str]] = {}
    for name, metric in METRICS.items():
        if name not in metrics:
            reasons.setdefault(why_not(metric, faces), []).append(name)
    return [f"not measured: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


# --- groups ---------------------------------------------------------------------------------------


def _groups(
    faces: ScoredFaces, draws: Draws
) -> tuple[dict[str, tuple[GroupFigures, ...]], list[str]]:
    ages, place = by_age_band(faces, draws=draws), band_of(faces)
    groups = {
        "age": tuple(
            GroupFigures(band_name(band), int((place == AGE_BANDS.index(band)).sum()), figures)
            for band, figures in ages.items()
        ),
        "gender": _by_column(faces, gender_words(faces), draws),
    }
    columns = {"dataset": faces.dataset, **faces.audit}
    notes = []
    for name, column in columns.items():
        values = {value for value in column.tolist() if value is not None}
        if name in groups:
            notes.append(f"column {name!r} is not taken: the groups by age bands have that name")
        elif len(values) > MOST_GROUPS:
            notes.append(
                f"column {name!r} has {len(values):,} values, more than {MOST_GROUPS}: not taken "
                "as an audit column"
            )
        elif len(values) > 1 or (values and name != "dataset"):
            groups[name] = _by_column(faces, column, draws)
    return {name: found for name, found in groups.items() if found}, notes


def _by_column(
    faces: ScoredFaces, column: NDArray[np.object_], draws: Draws
) -> tuple[GroupFigures, ...]:
    found = by_group(faces, column, draws=draws)
    return tuple(
        GroupFigures(str(value), int((column == value).sum()), figures)
        for value, figures in found.items()
    )


def gender_words(faces: ScoredFaces) -> NDArray[np.object_]:
    """(N,) "female", "male" or None, as labelled."""
    words = np.full(len(faces), None, object)
    words[faces.female_label == 1], words[faces.female_label == 0] = _GENDERS
    return words


def band_name(band: Band) -> str:
    """As reports call it: "13-17", or "70+" where it is open."""
    low, high = band
    return f"{low}+" if high >= AGE_COUNT - 1 else f"{low}-{high}"


# --- curves and tables ----------------------------------------------------------------------------


def _risk(faces: ScoredFaces, draws: Draws) -> tuple[dict[str, Any], ...]:
    curves = (
        risk_coverage(faces, "age", "spread", draws=draws),
        risk_coverage(faces, "age", "quality", draws=draws),
        risk_coverage(faces, "gender", "confidence", draws=draws),
        risk_coverage(faces, "gender", "quality", draws=draws),
    )
    return tuple(curve.to_dict() for curve in curves if curve is not None)


def _reliability(faces: ScoredFaces, draws: Draws) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if faces.has_age.any():
        found["age"] = _levels(PIT_LEVELS, pit(faces), draws)
        held = np.stack([covered(faces, level) for level in LEVELS], axis=1)
        found["intervals"] = _levels(np.array(LEVELS), held, draws)
    if faces.has_gender.any():
        labels = np.where(faces.has_gender, faces.female_label, np.nan)
        found["female"] = _bins(faces.female, labels, draws)
    for age in _THRESHOLDS:
        labels = over_label(faces, age)
        if not np.isnan(labels).all():
            found[f"over{age}"] = _bins(probability_over(faces, age), labels, draws)
    return found


def _levels(levels: Floats, values: Floats, draws: Draws) -> list[dict[str, Any]]:
    """Achieved against stated levels; ``values`` is (N, K) for K levels."""
    everyone = weighted_mean(np.ones((1, len(values)), np.uint8), values)[0]
    spread = weighted_mean(draws, values)
    return [
        {
            "level": round(float(level), 4),
            "share": float(share),
            **dict(zip(("low", "high"), _ends(column), strict=True)),
        }
        for level, share, column in zip(levels, everyone, spread.T, strict=True)
    ]


def _bins(probabilities: Floats, labels: Floats, draws: Draws) -> list[dict[str, Any]]:
    """Observed against predicted share, by ten bins of the prediction; empty ones left out."""
    place = np.minimum((np.nan_to_num(probabilities) * _BINS).astype(int), _BINS - 1)
    found = []
    for number in range(_BINS):
        rows = np.flatnonzero((place == number) & ~np.isnan(labels) & ~np.isnan(probabilities))
        if len(rows):
            low, high = _ends(weighted_mean(draws[:, rows], labels[rows]))
            found.append(
                {
                    "predicted": float(probabilities[rows].mean()),
                    "observed": float(labels[rows].mean()),
                    "low": low,
                    "high": high,
                    "count": len(rows),
                }
            )
    return found


def _ends(samples: Floats) -> tuple[float | None, float | None]:
    low, high = percentiles(samples)
    return (None, None) if np.isnan(low) else (low, high)


def _scatter(faces: ScoredFaces) -> dict[str, Any] | None:
    rows = faces.exact
    if not rows.any():
        return None
    edges = np.arange(0, AGE_COUNT + _SCATTER_YEARS, _SCATTER_YEARS)
    true = np.minimum(faces.age_min[rows], AGE_COUNT - 1)
    counts, _, _ = np.histogram2d(true, faces.mean_age[rows], bins=[edges, edges])
    return {
        "true_edges": edges.tolist(),
        "predicted_edges": edges.tolist(),
        "counts": counts.astype(int).tolist(),
    }


def _confusion(faces: ScoredFaces) -> dict[str, Any]:
    found = {}
    if faces.has_gender.any():
        likelier = np.where(faces.female > 0.5, 0, 1)
        sure = np.maximum(faces.female, 1 - faces.female) >= faces.gender_threshold
        said = np.where(sure & (faces.female != 0.5), likelier, 2)
        found["gender"] = {
            "labels": list(_GENDERS),
            "said": [*_GENDERS, "uncertain"],
            "counts": _table(1 - faces.female_label, said, faces.has_gender, (2, 3)),
        }
    ranges = band_of(faces, NINE_RANGES)
    rows = faces.has_age & (ranges >= 0)
    if rows.any():
        ends = [high for _, high in NINE_RANGES]
        said = np.searchsorted(ends, np.clip(np.rint(np.nan_to_num(faces.mean_age)), 0, ends[-1]))
        names = [band_name(band) for band in NINE_RANGES]
        found["nine_ranges"] = {
            "labels": names,
            "said": names,
            "counts": _table(ranges, said, rows, (len(names), len(names))),
        }
    return found


def _table(
    true: NDArray[Any], said: NDArray[Any], rows: NDArray[np.bool_], shape: tuple[int, int]
) -> list[list[int]]:
    counts = np.zeros(shape, np.int64)
    np.add.at(counts, (true[rows], said[rows]), 1)
    listed: list[list[int]] = counts.tolist()
    return listed


# --- worst cases ----------------------------------------------------------------------------------


def _worst_ages(faces: ScoredFaces) -> list[dict[str, Any]]:
    away = range_distances(faces)
    column = LEVELS.index(0.9)
    return [
        {
            "name": str(faces.names[row]),
            "label": [int(faces.age_min[row]), int(faces.age_max[row])],
            "estimate": round(float(faces.mean_age[row]), 2),
            "interval": [
                int(faces.interval_low[row, column]),
                int(faces.interval_high[row, column]),
            ],
            "error": round(float(away[row]), 2),
            "answered": bool(faces.answered[row]),
        }
        for row in _largest(away)
    ]


def _worst_genders(faces: ScoredFaces) -> list[dict[str, Any]]:
    """Wrong ones only, the surest first."""
    sure = np.where(gender_right(faces) == 0, np.abs(faces.female - 0.5), np.nan)
    words = gender_words(faces)
    return [
        {
            "name": str(faces.names[row]),
            "label": str(words[row]),
            "female_probability": round(float(faces.female[row]), 4),
            "answered": bool(faces.answered[row]),
        }
        for row in _largest(sure)
    ]


def _largest(values: Floats) -> NDArray[np.intp]:
    rows = np.flatnonzero(~np.isnan(values))
    return np.asarray(rows[np.argsort(-values[rows], kind="stable")][:_WORST])


def _compared(faces: ScoredFaces, other: ScoredFaces, samples: int, seed: int) -> dict[str, Any]:
    figures = compare(faces, other, samples=samples, seed=seed)
    return {
        "other": provenance_dict(other.provenance),
        "figures": {name: comparison.to_dict() for name, comparison in figures.items()},
    }


def read_comparison(result: EvaluationResult) -> dict[str, Comparison]:
    """The comparison of a result as it was before it was written; empty without one."""
    held = (result.comparison or {}).get("figures", {})
    return {name: Comparison.from_dict(wire) for name, wire in held.items()}
