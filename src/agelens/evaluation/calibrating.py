"""
Calibration from scored faces: fitted, judged on faces left out, written into the model's card.

    fit_fields         scored faces -> CalibrationFields
    calibrate          the same, with figures before and after: CalibrationReport
    write_calibration  the fields into a card

A calibration is judged by cross-fitting: each face is looked at under one that was fitted without
it, and without the other faces of its cluster. The one that is written is fitted on all.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from agelens import __version__
from agelens.bundle import (
    Bundle,
    CalibrationFields,
    CalibrationFile,
    LicenceClass,
    ModelCard,
    WeightsFile,
    bundled_folder,
    card_faults,
    read_card,
)
from agelens.calibration import (
    Criterion,
    calibrate_gender,
    fit_age,
    fit_gender,
    gender_threshold_for,
)
from agelens.conformal import KNOTS, MIN_FACES
from agelens.data.schema import KNOWN_DATASETS, file_sha256, write_bytes, write_text
from agelens.errors import ArgumentError, CardError, DataError
from agelens.evaluation.bootstrap import DEFAULT_SAMPLES, Draws, Estimate, weights
from agelens.evaluation.evaluating import (
    MOST_GROUPS,
    Figures,
    GroupFigures,
    band_name,
    gender_words,
    provenance_dict,
)
from agelens.evaluation.metrics import by_group, find_metric, measure_one
from agelens.evaluation.scored import UNKNOWN, ScoredFaces
from agelens.evaluation.scoring import recalibrated
from agelens.evaluation.values import AGE_BANDS, NINE_RANGES, Band, Mask, band_of
from agelens.toml import toml_text

SCHEMA: Final = "agelens.calibration/1"
FOLDS: Final = 5
FIGURES: Final = (
    "age_nll",
    "age_crps",
    "age_mae",
    "age_calibration_error",
    "coverage_50",
    "coverage_80",
    "coverage_90",
    "coverage_95",
    "interval_width_90",
    "over18_brier",
    "gender_accuracy",
    "gender_brier",
    "gender_labelled",
    "gender_labelled_accuracy",
)
"""Figures that a report gives before and after."""
NOT_CALIBRATED: Final = "Not calibrated:"
"""How a card's limit begins that a calibration lifts."""

_LEAST: Final = math.ceil(MIN_FACES * FOLDS / (FOLDS - 1))


@dataclass(frozen=True)
class CalibrationOptions:
    """How a calibration is fitted.

    Attributes:
        by: Column whose groups are held at the level each: an audit column, "gender" or
            "dataset"; None without.
        criterion: What temperature and smoothing are fitted by; see ``calibration.fit_age``.
        levels: Nominal levels of the tables between 0 and 1; empty takes the usual ones.
        gender: Fit the gender too; False leaves the card's.
        gender_threshold: Probability that a gender label needs; None leaves the card's.
        threshold_accuracy: Take the least threshold at which this share of the labels is right.
        seed: Of the folds.
        samples: Bootstrap draws behind the report's intervals.
    """

    by: str | None = None
    criterion: Criterion = "nll"
    levels: tuple[float, ...] = ()
    gender: bool = True
    gender_threshold: float | None = None
    threshold_accuracy: float | None = None
    seed: int = 0
    samples: int = DEFAULT_SAMPLES

    def __post_init__(self) -> None:
        if self.gender_threshold is not None and self.threshold_accuracy is not None:
            raise ArgumentError(
                "give the gender threshold or the accuracy it is to reach, not both"
            )
        if self.gender_threshold is not None and not 0.5 <= self.gender_threshold <= 1:
            raise ArgumentError(f"the gender threshold is 0.5 to 1, got {self.gender_threshold}")
        if self.threshold_accuracy is not None and not 0.5 <= self.threshold_accuracy < 1:
            raise ArgumentError(
                f"the accuracy of gender labels is 0.5 to under 1, got {self.threshold_accuracy}"
            )
        wrong = [level for level in self.levels if not 0 <= level <= 1]
        if wrong:
            raise ArgumentError(f"levels lie within 0..1, got {wrong[0]}")


@dataclass(frozen=True)
class CalibrationSide:
    """Figures under one calibration.

    Attributes:
        metrics: Of all faces with an estimate.
        groups: By "age" (exact labels), "age range" (labels that are one of nine ranges),
            "gender", "dataset" where there are several, and each audit column.
    """

    metrics: Figures
    groups: dict[str, tuple[GroupFigures, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "metrics": {name: found.to_dict() for name, found in self.metrics.items()},
            "groups": {k: [one.to_dict() for one in v] for k, v in self.groups.items()},
        }

    @classmethod
    def from_dict(cls, wire: Mapping[str, Any]) -> Self:
        """Read back what ``to_dict`` gave."""
        return cls(
            {name: Estimate.from_dict(found) for name, found in wire["metrics"].items()},
            {
                name: tuple(GroupFigures.from_dict(one) for one in groups)
                for name, groups in wire["groups"].items()
            },
        )


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration and what it changes.

    Attributes:
        created: UTC time, ISO 8601.
        agelens: Version that made it.
        provenance: Model, data and options, as ``scored.Provenance`` in plain values.
        settings: "by", "criterion", "seed", "samples" and "folds".
        fields: What was fitted, on all faces.
        before: Figures under the card as it was.
        after: Figures of each face under a calibration that was fitted without it.
        notes: What was not fitted, and why; what the data's licence asks for.
    """

    created: str
    agelens: str
    provenance: dict[str, Any]
    settings: dict[str, Any]
    fields: CalibrationFields
    before: CalibrationSide
    after: CalibrationSide
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Wire form, for JSON."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "agelens": self.agelens,
            "provenance": self.provenance,
            "settings": self.settings,
            "fields": self.fields.model_dump(mode="json"),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, wire: Mapping[str, Any]) -> Self:
        """Read back what ``to_dict`` gave.

        Raises:
            DataError: It is of another schema, or a part is missing.
        """
        if wire.get("schema") != SCHEMA:
            raise DataError(f"this is {wire.get('schema')!r}, expected {SCHEMA!r}")
        try:
            return cls(
                wire["created"],
                wire["agelens"],
                wire["provenance"],
                wire["settings"],
                CalibrationFields.model_validate(wire["fields"]),
                CalibrationSide.from_dict(wire["before"]),
                CalibrationSide.from_dict(wire["after"]),
                tuple(wire["notes"]),
            )
        except (KeyError, ValidationError) as error:
            raise DataError(f"this calibration report has no {error}; calibrate again") from error

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(path, text + "\n")


def calibrate(
    faces: ScoredFaces, card: ModelCard, options: CalibrationOptions | None = None
) -> CalibrationReport:
    """Fit a calibration on all faces, and judge it on faces left out.

    Args:
        faces: Labelled faces with the model's answers, under whatever calibration.
        card: The model's card: what is not fitted stays as it is there.
        options: How.

    Raises:
        DataError: Too few faces, no labels, one value only, or answers that are not finite; the
            message names the column or the row.
        ArgumentError: No gender threshold reaches the wanted accuracy.
    """
    chosen = options or CalibrationOptions()
    plan = _plan(faces, chosen)
    files = _files(faces)
    fields = _fit(faces, card.calibration, chosen, plan).model_copy(
        update={
            "data": _in_words(faces, files),
            "files": files,
            "group_column": chosen.by or "",
            "date": datetime.now(UTC).date().isoformat(),
        }
    )
    notes = plan.notes
    research = [file.name for file in files if file.licence_class == "research"]
    if research and card.licence_class == "commercial":
        notes += (
            f"{', '.join(research)}: faces for research only; a card calibrated on them is of "
            "class 'research' too and loads with --accept-licence",
        )
    draws = weights(faces.clusters, chosen.samples, chosen.seed)
    return CalibrationReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        agelens=__version__,
        provenance=provenance_dict(faces.provenance),
        settings={
            "by": chosen.by,
            "criterion": chosen.criterion,
            "seed": chosen.seed,
            "samples": chosen.samples,
            "folds": FOLDS,
        },
        fields=fields,
        before=_side(recalibrated(faces, card), draws),
        after=_side(_cross_fitted(faces, fields, chosen, plan), draws),
        notes=notes,
    )


def fit_fields(
    faces: ScoredFaces, current: CalibrationFields, options: CalibrationOptions | None = None
) -> CalibrationFields:
    """Temperature, smoothing, gender and conformal tables from scored faces.

    Args:
        faces: Labelled faces with the model's answers; only the decoded ones are looked at.
        current: What stays where the faces or the model do not allow a fit.
        options: How.

    Raises:
        DataError, ArgumentError: See ``calibrate``.
    """
    chosen = options or CalibrationOptions()
    return _fit(faces, current, chosen, _plan(faces, chosen))


# --- what can be fitted ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What the faces and the model allow.

    Attributes:
        ages: Ages are fitted.
        gender: Gender is fitted.
        notes: What is not, and why.
    """

    ages: bool
    gender: bool
    notes: tuple[str, ...]


def _plan(faces: ScoredFaces, options: CalibrationOptions) -> _Plan:
    notes = () if options.by is None else _small_groups(faces, options.by)
    no_ages = _why_no_ages(faces)
    no_gender = "it was not asked for" if not options.gender else _why_no_gender(faces)
    if no_ages and no_gender:
        raise DataError(f"nothing to calibrate: no ages: {no_ages}; no gender: {no_gender}")
    if no_ages:
        notes += (f"ages are not calibrated: {no_ages}",)
    if no_gender:
        notes += (f"gender is not calibrated: {no_gender}",)
    return _Plan(not no_ages, not no_gender, notes)


def _age_rows(faces: ScoredFaces) -> Mask:
    """(N,) faces with an age label and an answer, which must be finite."""
    there = ~np.isnan(faces.decoded_age).all(axis=1)
    broken = np.flatnonzero(there & ~np.isfinite(faces.decoded_age).all(axis=1))
    if len(broken):
        raise DataError(
            f"{faces.names[broken[0]]}: {faces.provenance.model} gives ages that are not finite "
            f"({len(broken)} of {len(faces)} faces); the model is broken on them"
        )
    return np.asarray(there & (faces.age_min != UNKNOWN))


def _why_no_ages(faces: ScoredFaces) -> str:
    """Why there is nothing to calibrate ages on; empty when there is.

    Raises:
        DataError: There are labels, but not such as a calibration can be fitted on.
    """
    rows = _age_rows(faces)
    if not (faces.age_min != UNKNOWN).any():
        return "the columns 'age_min' and 'age_max' are empty or missing"
    if rows.sum() < _LEAST:
        raise DataError(
            f"calibration needs {_LEAST} faces or more with labels in 'age_min' and 'age_max' and "
            f"an estimate, got {rows.sum()} of {len(faces)}"
        )
    labels = set(zip(faces.age_min[rows].tolist(), faces.age_max[rows].tolist(), strict=True))
    if len(labels) == 1:
        low, high = labels.pop()
        raise DataError(
            f"the columns 'age_min' and 'age_max' hold one label only, {low} to {high}; "
            "calibration needs faces of several ages"
        )
    return ""


def _gender_rows(faces: ScoredFaces) -> Mask:
    """(N,) faces with a gender label and an answer, which must be a probability."""
    broken = np.flatnonzero(np.isinf(faces.decoded_female))
    if len(broken):
        raise DataError(
            f"{faces.names[broken[0]]}: {faces.provenance.model} gives a gender that is not finite"
        )
    return np.asarray((faces.female_label != UNKNOWN) & ~np.isnan(faces.decoded_female))


def _why_no_gender(faces: ScoredFaces) -> str:
    """Why there is nothing to calibrate gender on; empty when there is.

    Raises:
        DataError: There are labels, but of one gender only or too few.
    """
    rows = _gender_rows(faces)
    if np.isnan(faces.decoded_female).all():
        return f"{faces.provenance.model} gives no gender"
    if not (faces.female_label != UNKNOWN).any():
        return "the column 'gender' is empty or missing"
    advice = "; --no-gender leaves the gender as it is"
    if rows.sum() < _LEAST:
        raise DataError(
            f"calibration of the gender needs {_LEAST} faces or more with a label in 'gender' and "
            f"an estimate, got {rows.sum()} of {len(faces)}{advice}"
        )
    held = faces.female_label[rows]
    if (held == held[0]).all():
        word = "female" if held[0] == 1 else "male"
        raise DataError(
            f"the column 'gender' holds {word!r} only ({rows.sum()} faces); both are needed{advice}"
        )
    return ""


def group_column(faces: ScoredFaces, name: str) -> NDArray[np.object_]:
    """(N,) the group of each face by an audit column, "gender" or "dataset"; None without one.

    Raises:
        DataError: There is no such column, it is empty, or it names no groups.
    """
    columns = {**faces.audit, "gender": gender_words(faces), "dataset": faces.dataset}
    if name not in columns:
        raise DataError(f"no column {name!r}; there are: {', '.join(sorted(columns))}")
    values = sorted({value for value in columns[name].tolist() if value is not None})
    if len(values) < 2:
        found = f"holds {values[0]!r} only" if values else "is empty"
        raise DataError(f"column {name!r} {found}; two groups or more are needed")
    if len(values) > MOST_GROUPS:
        raise DataError(
            f"column {name!r} has {len(values)} values, more than {MOST_GROUPS}; it names no groups"
        )
    return np.asarray(columns[name])


def _small_groups(faces: ScoredFaces, name: str) -> tuple[str, ...]:
    """Notes on groups whose level cannot be looked after.

    Raises:
        DataError: All groups are too small.
    """
    groups, rows = group_column(faces, name), _age_rows(faces) | _gender_rows(faces)
    values = sorted({value for value in groups.tolist() if value is not None})
    sizes = {value: int((rows & (groups == value)).sum()) for value in values}
    largest = max(values, key=lambda value: sizes[value])
    if sizes[largest] < MIN_FACES:
        raise DataError(
            f"no group in column {name!r} has {MIN_FACES} faces; the largest, {largest!r}, has "
            f"{sizes[largest]}"
        )
    return tuple(
        f"group {value!r} of {name!r} has {size} faces, fewer than {MIN_FACES}: its level is not "
        "looked after"
        for value, size in sizes.items()
        if size < MIN_FACES
    )


# --- fitting --------------------------------------------------------------------------------------


def _fit(
    faces: ScoredFaces, current: CalibrationFields, options: CalibrationOptions, plan: _Plan
) -> CalibrationFields:
    groups = None if options.by is None else group_column(faces, options.by)
    fields = current
    if plan.ages:
        fields = _with_ages(faces, fields, groups, options)
    if plan.gender:
        fields = _with_gender(faces, fields, groups, options)
    return fields


def _with_ages(
    faces: ScoredFaces,
    fields: CalibrationFields,
    groups: NDArray[np.object_] | None,
    options: CalibrationOptions,
) -> CalibrationFields:
    rows = _age_rows(faces)
    knots = tuple(sorted({0.0, 1.0, *(options.levels or KNOTS)}))
    fitted = fit_age(
        faces.decoded_age[rows],
        faces.age_min[rows],
        faces.age_max[rows],
        groups=None if groups is None else groups[rows],
        criterion=options.criterion,
        levels=knots,
        # The plan has looked at the count of all; a fold may have a few faces less.
        min_rows=min(MIN_FACES, int(rows.sum())),
        seed=options.seed,
    )
    names = ("age_temperature", "age_smoothing", "coverage")
    return fields.model_copy(update={name: getattr(fitted, name) for name in names})


def _with_gender(
    faces: ScoredFaces,
    fields: CalibrationFields,
    groups: NDArray[np.object_] | None,
    options: CalibrationOptions,
) -> CalibrationFields:
    rows = _gender_rows(faces)
    said, labels = faces.decoded_female[rows], faces.female_label[rows] == 1
    own = None if groups is None else groups[rows]
    threshold = options.gender_threshold or fields.gender_threshold
    fitted = fit_gender(said, labels, groups=own, threshold=threshold)
    if options.threshold_accuracy is not None:
        threshold = gender_threshold_for(
            options.threshold_accuracy, calibrate_gender(said, fitted), labels, groups=own
        )
    return fields.model_copy(
        update={
            "gender_temperature": fitted.gender_temperature,
            "gender_bias": fitted.gender_bias,
            "gender_threshold": threshold,
        }
    )


def _cross_fitted(
    faces: ScoredFaces, final: CalibrationFields, options: CalibrationOptions, plan: _Plan
) -> ScoredFaces:
    """Each face under a calibration fitted without its fold; whole clusters share a fold."""
    _, cluster = np.unique(faces.clusters, return_inverse=True)
    order = np.random.default_rng(options.seed).permutation(int(cluster.max()) + 1)
    fold = order[cluster] % FOLDS
    # The threshold of all stays, so that "uncertain" means the same for every face.
    without = replace(options, gender_threshold=None, threshold_accuracy=None)
    judged = recalibrated(faces, final)
    age, female = judged.age.copy(), judged.female.copy()
    low, high = judged.interval_low.copy(), judged.interval_high.copy()
    for number in np.unique(fold):
        held = fold == number
        part = recalibrated(faces.take(held), _fit(faces.take(~held), final, without, plan))
        age[held], female[held] = part.age, part.female
        low[held], high[held] = part.interval_low, part.interval_high
    return replace(judged, age=age, female=female, interval_low=low, interval_high=high)


# --- judging --------------------------------------------------------------------------------------


def _side(faces: ScoredFaces, draws: Draws) -> CalibrationSide:
    figures = {name: measure_one(find_metric(name), faces, draws) for name in FIGURES}
    exact = faces.age_min == faces.age_max
    groups = {
        "age": _by_band(faces, AGE_BANDS, exact, draws),
        "age range": _by_band(faces, NINE_RANGES, ~exact, draws),
    }
    for name, column in _report_columns(faces).items():
        found = by_group(faces, column, FIGURES, draws=draws)
        groups[name] = tuple(
            GroupFigures(str(value), int((column == value).sum()), held)
            for value, held in found.items()
        )
    return CalibrationSide(
        {name: found for name, found in figures.items() if found is not None},
        {name: found for name, found in groups.items() if found},
    )


def _by_band(
    faces: ScoredFaces, bands: Sequence[Band], rows: Mask, draws: Draws
) -> tuple[GroupFigures, ...]:
    place = np.where(rows, band_of(faces, bands), -1).astype(object)
    place[place == -1] = None
    found = by_group(faces, place, FIGURES, draws=draws)
    return tuple(
        GroupFigures(band_name(bands[number]), int((place == number).sum()), held)
        for number, held in found.items()
    )


def _report_columns(faces: ScoredFaces) -> dict[str, NDArray[np.object_]]:
    """Columns by whose groups a report looks: those of few values, and of several."""
    kept = {}
    for name, column in (
        {"gender": gender_words(faces), "dataset": faces.dataset} | dict(faces.audit)
    ).items():
        values = {value for value in column.tolist() if value is not None}
        if 1 < len(values) <= MOST_GROUPS:
            kept[name] = column
    return kept


# --- what it was fitted on ------------------------------------------------------------------------


def _files(faces: ScoredFaces) -> tuple[CalibrationFile, ...]:
    """The files of faces, with what the terms of their data sets allow, as far as known."""
    prefixes = np.array([str(name).rpartition("#")[0] for name in faces.names], object)
    waiting = list(dict.fromkeys(prefixes.tolist()))
    answered = ~np.isnan(faces.decoded_age).all(axis=1)
    found = []
    for file in faces.provenance.data:
        # Rows stand in the order of the files; files of one name are told apart by their folder.
        own = next((prefix for prefix in waiting if Path(prefix).name == file.name), None)
        rows = np.zeros(len(faces), bool)
        if own is not None:
            waiting.remove(own)
            rows = prefixes == own
        found.append(
            CalibrationFile(
                name=file.name,
                sha256=file.sha256,
                faces=int((rows & answered).sum()),
                licence_class=_licence_class(set(faces.dataset[rows].tolist())),
            )
        )
    return tuple(found)


def _licence_class(datasets: set[str]) -> LicenceClass | None:
    """The strictest class of these data sets; None when one of them is not known."""
    classes = {
        KNOWN_DATASETS[name].licence_class if name in KNOWN_DATASETS else None for name in datasets
    }
    if "research" in classes:
        return "research"
    return "commercial" if classes == {"commercial"} else None


def _in_words(faces: ScoredFaces, files: Sequence[CalibrationFile]) -> str:
    named = ", ".join(f"{file.name} ({file.faces:,} faces)" for file in files)
    terms = [
        KNOWN_DATASETS[name].licence
        for name in sorted(set(faces.dataset.tolist()))
        if name in KNOWN_DATASETS
    ]
    return f"{named}; {'; '.join(terms)}" if terms else named


# --- writing --------------------------------------------------------------------------------------


def write_calibration(
    bundle: Bundle,
    fields: CalibrationFields,
    out: Path | None = None,
    *,
    version: str | None = None,
) -> Path:
    """Write a model's card with another calibration; it appears whole, or not at all.

    A card lies beside its weights: written into another folder, it gets a copy of them there.

    What is written by hand in the card stays as it is, comments too, where only the calibration
    changes; otherwise the card is written anew under its leading comment.

    Args:
        bundle: The model.
        fields: Its calibration.
        out: The new card, a .toml file; None replaces the model's own.
        version: Version in the new card; None keeps it.

    Returns:
        The card's path: ``agelens analyze --model PATH`` takes it.

    Raises:
        ArgumentError: The card cannot be written there; the message says where it can.
        CardError: It would not be a valid card.
    """
    source, target = _source(bundle), check_target(bundle, out)
    text = None if source is None else source.read_text(encoding="utf-8")
    table = (
        tomllib.loads(text)
        if text is not None
        else bundle.card.model_dump(mode="json", by_alias=True, exclude_none=True)
    )
    table["calibration"] = _plain(fields)
    if version is not None:
        table["version"] = version
    researched = any(file.licence_class == "research" for file in fields.files)
    if researched and table["licence_class"] != "research":
        table["licence_class"] = "research"
        table["licence"] += "; calibrated on faces for research only"
    limits = [limit for limit in table.get("limits", []) if not limit.startswith(NOT_CALIBRATED)]
    if "limits" in table:
        table["limits"] = limits
    try:
        ModelCard.model_validate(table)
    except ValidationError as error:
        raise CardError(f"{target}: would not be a valid card: {card_faults(error)}") from error
    for file in _own_files(bundle):
        place = target.parent / file.path
        if not place.is_file():
            write_bytes(place, bundle.read(file.role))
    write_text(target, _card_text(text, table))
    read_card(target)
    return target


def check_target(bundle: Bundle, out: Path | None) -> Path:
    """Where ``write_calibration`` will write.

    Args:
        bundle: The model.
        out: The new card, or None for the model's own.

    Raises:
        ArgumentError: The card cannot be written there.
    """
    source = _source(bundle)
    if out is None:
        if source is None or source.resolve().is_relative_to(bundled_folder().resolve()):
            raise ArgumentError(
                f"the card of {bundle.card.identifier} comes with the package and is not changed "
                "in place; write another one (--out CARD.toml) and name it as the model"
            )
        return source
    if out.suffix.lower() != ".toml":
        raise ArgumentError(f"{out}: a card is a .toml file; name it CARD.toml")
    for file in _own_files(bundle):
        place = out.parent / file.path
        if place.is_file() and file_sha256(place) != file.sha256:
            raise ArgumentError(
                f"{place}: exists and is not the file of {bundle.card.identifier}, which has to "
                "lie beside its card; write the card into another folder"
            )
    if out.exists() and (source is None or not out.samefile(source)):
        _check_replaceable(bundle, out)
    return out


def _own_files(bundle: Bundle) -> list[WeightsFile]:
    """The weights that lie beside the card, not in an installed package."""
    return [file for file in bundle.card.files if file.distribution is None]


def _source(bundle: Bundle) -> Path | None:
    """The file of a model's card; None for one that is made when the model is loaded."""
    path = Path(bundle.origin)
    return path if path.suffix == ".toml" and path.is_file() else None


def _check_replaceable(bundle: Bundle, out: Path) -> None:
    """Only a card of the same model may be replaced."""
    try:
        found = read_card(out).name
    except CardError as error:
        raise ArgumentError(f"{out}: exists and is no card; name another file") from error
    if found != bundle.card.name:
        raise ArgumentError(
            f"{out}: exists and is the card of {found!r}, not of {bundle.card.name!r}; name "
            "another file"
        )


def _plain(fields: CalibrationFields) -> dict[str, Any]:
    """As TOML takes it; what is left at its default is left out."""
    plain: dict[str, Any] = fields.model_dump(mode="json", exclude_defaults=True)
    return plain


_CALIBRATION: Final = re.compile(r"\s*\[{1,2}\s*calibration\s*[.\]]")
_HEADER: Final = re.compile(r"\s*\[")


def _card_text(text: str | None, table: Mapping[str, Any]) -> str:
    if text is None:
        return toml_text(table)
    kept = _with_section(text, toml_text({"calibration": table["calibration"]}))
    try:
        if tomllib.loads(kept) == table:
            return kept
    except tomllib.TOMLDecodeError:
        pass
    lines = text.splitlines()
    comment = lines[: next((i for i, line in enumerate(lines) if line[:1] != "#"), len(lines))]
    return "\n".join([*comment, toml_text(table)])


def _with_section(text: str, section: str) -> str:
    """The text with its calibration tables replaced, or with new ones at its end."""
    others: list[str] = []
    place, inside = None, False
    for line in text.splitlines():
        if _HEADER.match(line):
            inside = bool(_CALIBRATION.match(line))
            if inside and place is None:
                place = len(others)
        if not inside:
            others.append(line)
    before = others if place is None else others[:place]
    after = [] if place is None else others[place:]
    parts = ["\n".join(before).strip("\n"), section.strip("\n"), "\n".join(after).strip("\n")]
    return "\n\n".join(part for part in parts if part) + "\n"
