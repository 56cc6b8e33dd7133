"""
Every model, and the packages that are installed beside it, on the same faces in one run.

    Leaderboard
    ├── columns     what is measured: name, title, unit, where good figures lie
    └── entries     one a model or package: figures with intervals, time, size, or why it has none

Figures stand on the faces that every measured entry has an answer for, and on the same bootstrap
draws, so that rows can be compared. Packages that give a number and no distribution have no
coverage of intervals.
"""

from __future__ import annotations

import io
import json
import math
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from agelens import __version__
from agelens.bundle import Bundle, find_model, list_models
from agelens.data.schema import FaceTable, file_sha256, write_bytes, write_text
from agelens.errors import ArgumentError, DataError, LicenceNotAccepted, ModelError
from agelens.evaluation.bootstrap import DEFAULT_SAMPLES, Draws, Estimate, weights
from agelens.evaluation.gate_errors import RULES
from agelens.evaluation.metrics import Metric, find_metric, measure_one, weighted_mean
from agelens.evaluation.peers import PEERS, Peer, run_peer
from agelens.evaluation.peers import status as peer_status
from agelens.evaluation.plots import (
    Reading,
    TimedModel,
    accuracy_against_time,
    accuracy_against_time_png,
    standalone,
)
from agelens.evaluation.scored import LEVELS, Floats, ScoredFaces
from agelens.evaluation.scoring import ScoringOptions, pictures, score
from agelens.evaluation.tables import LEADERBOARD_SCHEMA, leaderboard_csv, leaderboard_page
from agelens.evaluation.values import gender_right
from agelens.results import AGE_COUNT

MIN_GROUP: Final = 30
"""Faces that a group needs for the gap between groups."""

Kind = Literal["model", "peer"]
Progress = Callable[[str, int, int], None]
"""Told whose faces, how many are done, and how many there are."""

_KEPT_PEER: Final = "agelens.peer/1"


# --- columns --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One figure of the table.

    Attributes:
        name: In files.
        metric: How it is measured; None for time and size.
        title: At the head of tables.
        unit: Of the text: "years", "%", "ms", "MB".
        better: "lower", "higher", or "nominal": near ``metric.nominal``.
        rows: Faces it is measured on, or None for all.
        needs_distribution: Says nothing about a model that gives one number.
    """

    name: str
    metric: Metric | None
    title: str
    unit: str
    better: str
    rows: Callable[[ScoredFaces], NDArray[np.bool_]] | None = None
    needs_distribution: bool = False

    def measure(self, faces: ScoredFaces, draws: Draws) -> Estimate | None:
        """The figure, or None where the labels do not allow it."""
        assert self.metric is not None
        rows = np.arange(len(faces)) if self.rows is None else np.flatnonzero(self.rows(faces))
        if len(rows) == 0:
            return None
        return measure_one(self.metric, faces.take(rows), draws[:, rows])


def _labelled(low: int, high: int | None) -> Callable[[ScoredFaces], NDArray[np.bool_]]:
    """Faces whose whole label lies from ``low`` to ``high``; None is open."""

    def rows(faces: ScoredFaces) -> NDArray[np.bool_]:
        return faces.has_age & (faces.age_min >= low) & (faces.age_max <= (high or np.inf))

    return rows


def passes_challenge_25(faces: ScoredFaces) -> Floats:
    """(N,) whether a check that asks who looks under 25 lets the face in; NaN without an age."""
    let_in = RULES["challenge_25"].accepts(faces)
    return np.where(faces.has_age, let_in.astype(np.float64), np.nan)


def _challenge_25() -> Metric:
    return Metric(
        "passes_challenge_25",
        "taken for 25 or more",
        "share",
        "lower",
        "age",
        lambda faces: faces.has_age,
        lambda faces, draws: weighted_mean(draws, passes_challenge_25(faces)),
        passes_challenge_25,
    )


def gap_metric(column: str, *, min_group: int = MIN_GROUP) -> Metric:
    """Gender accuracy of the best less that of the worst group of an audit column.

    Data sets name their groups differently, so groups are compared within a data set; of several
    the widest gap counts. Noise alone makes a gap, and the interval leans upward for it.

    Args:
        column: The audit column.
        min_group: Groups of fewer faces are left out.
    """

    def groups(faces: ScoredFaces) -> list[list[NDArray[np.bool_]]]:
        labels = faces.audit.get(column)
        if labels is None:
            return []
        found = []
        for name in sorted(set(faces.dataset.tolist())):
            own = (faces.dataset == name) & faces.has_gender
            values = sorted({str(label) for label in labels[own] if label is not None})
            masks = [own & (labels == value) for value in values]
            found.append([mask for mask in masks if mask.sum() >= min_group])
        return [masks for masks in found if len(masks) > 1]

    def rows(faces: ScoredFaces) -> NDArray[np.bool_]:
        held = [mask for masks in groups(faces) for mask in masks]
        return np.logical_or.reduce(held) if held else np.zeros(len(faces), bool)

    def estimate(faces: ScoredFaces, draws: NDArray[Any]) -> Floats:
        right = gender_right(faces)
        gaps = []
        for masks in groups(faces):
            parts = np.stack([np.where(mask, right, np.nan) for mask in masks], axis=1)
            shares = weighted_mean(draws, parts)
            gaps.append(shares.max(axis=1) - shares.min(axis=1))
        return np.asarray(np.max(gaps, axis=0))

    title = f"gender gap by {column}"
    return Metric(f"gender_gap_{column}", title, "share", "lower", "gender", rows, estimate)


def columns(audit: str | None) -> tuple[Column, ...]:
    """The table's columns, in order.

    Args:
        audit: Audit column for the gap between groups; None leaves that out.
    """
    mae = find_metric("age_mae")
    held = [
        Column("age_mae", mae, "MAE", "years", "lower"),
        Column("age_cs5", find_metric("age_cs5"), "CS@5", "%", "higher"),
        Column("nine_ranges", find_metric("nine_ranges_exact"), "nine ranges", "%", "higher"),
        Column("gender", find_metric("gender_accuracy"), "gender", "%", "higher"),
        Column("children_mae", mae, "MAE 0–12", "years", "lower", _labelled(0, 12)),
        Column("elderly_mae", mae, "MAE 60+", "years", "lower", _labelled(60, None)),
        Column(
            "minors_over_25", _challenge_25(), "13–17 taken for 25+", "%", "lower",
            _labelled(13, 17),
        ),
        Column(
            "coverage_90", find_metric("coverage_90"), "90 % interval holds", "%", "nominal",
            needs_distribution=True,
        ),
        Column("network_ms", None, "network", "ms", "lower"),
        Column("total_ms", None, "whole chain", "ms", "lower"),
        Column("megabytes", None, "weights", "MB", "lower"),
    ]  # fmt: skip
    if audit is not None:
        gap = gap_metric(audit)
        held.insert(7, Column("gender_gap", gap, gap.title, "%", "lower"))
    return tuple(held)


# --- the run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One row.

    Attributes:
        name: "name@version"; with "+ flip" when faces were averaged with their mirror image.
        kind: "model" of the registry, or "peer".
        state: "measured", or why not: "licence not accepted", "not installed", "weights not
            available", "failed".
        note: More about the state.
        licence: Of the weights, in words.
        licence_class: "commercial" or "research".
        model_sha256: Over its weights; "" for packages and for what was not run.
        megabytes: Size of the age and gender networks; None when they are not there.
        milliseconds: CPU time a face: "network" and "total".
        answered: Faces that it gave an age or a gender for, of all.
        figures: By the names of the columns.
    """

    name: str
    kind: Kind
    state: str
    note: str = ""
    licence: str = ""
    licence_class: str = ""
    model_sha256: str = ""
    megabytes: float | None = None
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    answered: int = 0
    figures: Mapping[str, Estimate] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        wire = asdict(self)
        wire["milliseconds"] = {k: round(v, 3) for k, v in self.milliseconds.items()}
        wire["figures"] = {name: found.to_dict() for name, found in self.figures.items()}
        return wire


def run_leaderboard(
    data: Sequence[Path],
    models: Sequence[str] | None = None,
    *,
    peers: Sequence[Peer] = PEERS,
    options: ScoringOptions | None = None,
    flip: bool = False,
    kept: Path | None = None,
    audit: str | None = None,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Put every face to every model and package.

    Args:
        data: Parquet files of faces, or folders of them.
        models: Names or paths; None takes all of the registry.
        peers: Packages to look for.
        options: How faces are put to the models.
        flip: Each model a second time, averaged with the mirrored face.
        kept: Folder for the answers of each: an interrupted run goes on from there.
        audit: Audit column for the gap between groups; None takes "race" where there is one.
        samples: Bootstrap draws.
        seed: Of the draws.
        progress: Told whose faces are done.

    Returns:
        The leaderboard in its wire form, schema "agelens.leaderboard/1".

    Raises:
        DataError: The data has no faces or no labels, or no face is answered by all.
        ModelError: A model that was named cannot be used, or none can.
    """
    there = FaceTable.open(data).audit
    if audit is not None and audit not in there:
        raise ArgumentError(
            f"the data has no audit column {audit!r}; there are: {', '.join(there) or 'none'}"
        )
    chosen = replace(options or ScoringOptions(), timed=True)
    entries: list[Entry] = []
    answers: list[ScoredFaces | None] = []
    for bundle, name in _wanted(models):
        for mirrored in (False, True) if flip else (chosen.flip,):
            found = _score_model(
                bundle, name, data, replace(chosen, flip=mirrored), kept, progress,
                strict=models is not None,
            )  # fmt: skip
            entries.append(found[0])
            answers.append(found[1])
    reference = next((faces for faces in answers if faces is not None), None)
    if reference is None:
        notes = "; ".join(f"{entry.name}: {entry.note}" for entry in entries)
        raise ModelError(f"none of the models can be run ({notes})")
    for peer in peers:
        entry, faces = _score_peer(peer, data, reference, chosen, kept, progress)
        entries.append(entry)
        answers.append(faces)
    column = audit or ("race" if "race" in reference.audit else None)
    shown = columns(column)
    common = _answered_by_all([faces for faces in answers if faces is not None])
    draws = weights(reference.take(common).clusters, samples, seed)
    measured = [
        entry if faces is None else _measured(entry, faces, common, draws, shown)
        for entry, faces in zip(entries, answers, strict=True)
    ]
    return {
        "schema": LEADERBOARD_SCHEMA,
        "agelens": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(data, models, chosen, flip, bool(peers), samples),
        "processor": platform.machine(),
        "data": [asdict(file) for file in reference.provenance.data],
        "options": {k: v for k, v in reference.provenance.options.items() if k != "flip"},
        "faces": len(reference),
        "compared": len(common),
        "samples": samples,
        "seed": seed,
        "min_group": MIN_GROUP,
        "columns": [
            {"name": c.name, "title": c.title, "unit": c.unit, "better": c.better} for c in shown
        ],
        "entries": [entry.to_dict() for entry in _ordered(measured)],
    }


def _wanted(models: Sequence[str] | None) -> list[tuple[Bundle, str]]:
    """Bundles with the name that ``score`` finds them by; named ones must be there."""
    if models is not None:
        return [(find_model(name), name) for name in models]
    return [(bundle, bundle.card.name) for bundle in list_models()]


def _score_model(
    bundle: Bundle,
    name: str,
    data: Sequence[Path],
    options: ScoringOptions,
    kept: Path | None,
    progress: Progress | None,
    *,
    strict: bool,
) -> tuple[Entry, ScoredFaces | None]:
    card = bundle.card
    called = card.identifier + (" + flip" if options.flip else "")
    entry = Entry(
        called, "model", "measured", licence=card.licence, licence_class=card.licence_class
    )
    file = None if kept is None else kept / f"{_safe(called)}.npz"
    try:
        faces = score(name, data, options, kept=file, progress=_about(progress, called))
        megabytes = bundle.size_bytes() / 1e6
    except LicenceNotAccepted:
        note = "for research only; --accept-licence runs it"
        return replace(entry, state="licence not accepted", note=note), None
    except ModelError as error:
        if strict:
            raise
        return replace(entry, state="failed", note=str(error)), None
    held = replace(
        entry,
        model_sha256=faces.provenance.model_sha256,
        megabytes=round(megabytes, 2),
        milliseconds=dict(faces.provenance.milliseconds),
    )
    return held, faces


def _score_peer(
    peer: Peer,
    data: Sequence[Path],
    reference: ScoredFaces,
    options: ScoringOptions,
    kept: Path | None,
    progress: Progress | None,
) -> tuple[Entry, ScoredFaces | None]:
    found = peer_status(peer, accept_licence=options.accept_licence)
    entry = Entry(peer.identifier, "peer", "measured", found.note, peer.licence, peer.licence_class)
    if found.state != "ready":
        return replace(entry, state=found.state), None
    try:
        faces = _peer_faces(peer, data, reference, kept, _about(progress, peer.identifier))
    except ModelError as error:
        return replace(entry, state="failed", note=str(error)), None
    held = replace(
        entry,
        megabytes=round(peer.size_bytes() / 1e6, 2),
        milliseconds=dict(faces.provenance.milliseconds),
    )
    return held, faces


def _about(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    told = progress
    return lambda done, total: told(name, done, total)


def _peer_faces(
    peer: Peer,
    data: Sequence[Path],
    reference: ScoredFaces,
    kept: Path | None,
    progress: Callable[[int, int], None] | None,
) -> ScoredFaces:
    """A package's answers with the labels of a model's faces: ages certain at one year."""
    file = None if kept is None else kept / f"peer-{_safe(peer.identifier)}.npz"
    question = {
        "schema": _KEPT_PEER,
        "peer": peer.identifier,
        "weights": [file_sha256(path) for path in peer.weights()],
        "data": [one.sha256 for one in reference.provenance.data],
        "names": len(reference),
        "last": str(reference.names[-1]),
    }
    held = _kept_answers(file, question)
    if held is None:
        table = FaceTable.open(data)
        rows = _rows_of(table, reference)
        found = run_peer(peer, pictures(table, rows), total=len(rows), progress=progress)
        held = {
            "age": found.age,
            "female": found.female,
            "detected": found.detected,
            "milliseconds": np.array([found.milliseconds.get("total", np.nan)]),
        }
        if file is not None:
            _keep_answers(file, question, held)
    return as_scored(
        reference, held["age"], held["female"], held["detected"], float(held["milliseconds"][0])
    )


def as_scored(
    reference: ScoredFaces,
    age: Floats,
    female: Floats,
    detected: NDArray[np.bool_],
    milliseconds: float = math.nan,
) -> ScoredFaces:
    """Point answers on the faces of another model, as scored faces.

    An age becomes a distribution that is certain between its two neighbouring whole years, so that
    its mean is that age; the intervals are that year, and mean nothing.

    Args:
        reference: Faces with their labels.
        age: (N,) years, NaN where there is no answer.
        female: (N,) P(female), NaN where there is no answer.
        detected: (N,) whether a face was found.
        milliseconds: CPU time a face of the whole chain, NaN when it was not measured.
    """
    rows = np.flatnonzero(~np.isnan(age))
    years = np.clip(age[rows], 0, AGE_COUNT - 1)
    below = np.minimum(years.astype(np.intp), AGE_COUNT - 2)
    ages = np.full((len(reference), AGE_COUNT), np.nan)
    ages[rows] = 0.0
    ages[rows, below] = 1 - (years - below)
    ages[rows, below + 1] = years - below
    ends = np.zeros((len(reference), len(LEVELS)), np.int16)
    ends[rows] = np.rint(years)[:, None].astype(np.int16)
    timed = {} if math.isnan(milliseconds) else {"total": milliseconds}
    return replace(
        reference,
        decoded_age=ages,
        age=ages,
        decoded_female=female,
        female=female,
        interval_low=ends,
        interval_high=ends,
        gender_threshold=0.5,
        detected=detected,
        answered=~np.isnan(age),
        provenance=replace(reference.provenance, milliseconds=timed),
    )


def _rows_of(table: FaceTable, reference: ScoredFaces) -> NDArray[np.intp]:
    """Rows of the table that the scored faces are, by their names."""
    from agelens.evaluation.scoring import read_labels

    place = {name: row for row, name in enumerate(read_labels(table).names)}
    return np.array([place[name] for name in reference.names], np.intp)


def _kept_answers(file: Path | None, question: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
    if file is None or not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as held:
            if json.loads(bytes(held["question"])) != question:
                return None
            return {name: held[name] for name in ("age", "female", "detected", "milliseconds")}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file}: holds no answers of a package: {error}; delete it") from error


def _keep_answers(
    file: Path, question: Mapping[str, Any], answers: Mapping[str, NDArray[Any]]
) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(answers)
    arrays["question"] = np.frombuffer(json.dumps(question).encode(), np.uint8)
    np.savez_compressed(buffer, **arrays)
    write_bytes(file, buffer.getvalue())


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._@" else "_" for letter in name)


def _answered_by_all(answers: Sequence[ScoredFaces]) -> NDArray[np.intp]:
    """Rows that each has an age or a gender for."""
    there = [~np.isnan(faces.age[:, 0]) | ~np.isnan(faces.female) for faces in answers]
    rows = np.flatnonzero(np.logical_and.reduce(there))
    if len(rows) == 0:
        raise DataError("no face has an answer of every model and package, so none can be compared")
    return rows


def _measured(
    entry: Entry,
    faces: ScoredFaces,
    common: NDArray[np.intp],
    draws: Draws,
    shown: Sequence[Column],
) -> Entry:
    part = faces.take(common)
    figures = {}
    for column in shown:
        if column.metric is None or (column.needs_distribution and entry.kind == "peer"):
            continue
        found = column.measure(part, draws)
        if found is not None:
            figures[column.name] = found
    answered = int((~np.isnan(faces.age[:, 0]) | ~np.isnan(faces.female)).sum())
    return replace(entry, figures=figures, answered=answered)


def _ordered(entries: Sequence[Entry]) -> list[Entry]:
    """The least error first; those that were not measured last."""

    def key(entry: Entry) -> tuple[float, ...]:
        figures = entry.figures
        signs = (("age_mae", 1), ("nine_ranges", -1), ("gender", -1))
        return (
            float(entry.state != "measured"),
            *(sign * figures[name].value if name in figures else np.inf for name, sign in signs),
        )

    return sorted(entries, key=key)


def _command(
    data: Sequence[Path],
    models: Sequence[str] | None,
    options: ScoringOptions,
    flip: bool,
    peers: bool,
    samples: int,
) -> str:
    words = ["agelens", "leaderboard", *(path.name for path in data)]
    words += ["--models", ",".join(Path(name).name for name in models)] if models else []
    words += [] if peers else ["--no-peers"]
    words += ["--flip"] if flip else []
    words += ["--accept-licence"] if options.accept_licence else []
    words += ["--detector", options.detector] if options.detector != "default" else []
    words += ["--max-faces", str(options.max_rows)] if options.max_rows is not None else []
    words += ["--samples", str(samples)] if samples != DEFAULT_SAMPLES else []
    return shlex.join(words)


# --- files ----------------------------------------------------------------------------------------


def timed_models(wire: Mapping[str, Any]) -> list[TimedModel]:
    """Entries that have an error and a time, for the chart."""
    models = []
    for entry in wire["entries"]:
        found, spent = entry["figures"].get("age_mae"), entry["milliseconds"].get("total")
        if found is not None and spent:
            low, high = (math.nan if found[k] is None else found[k] for k in ("low", "high"))
            reading = Reading(entry["name"], found["value"], low, high, found["count"])
            models.append(TimedModel(entry["name"], spent, reading, entry["kind"] == "peer"))
    return models


def write_leaderboard(wire: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``leaderboard.json``, ``.md``, ``.csv``, and ``.svg`` and ``.png`` of the chart.

    The chart is left out when no entry has both an error on exact ages and a time.

    Returns:
        The files written.
    """
    contents = {
        "json": json.dumps(wire, indent=2, allow_nan=False) + "\n",
        "md": leaderboard_page(wire),
        "csv": leaderboard_csv(wire),
    }
    paths = [folder / f"leaderboard.{suffix}" for suffix in contents]
    for path, text in zip(paths, contents.values(), strict=True):
        write_text(path, text)
    models = timed_models(wire)
    if models:  # last, so that without matplotlib the tables are there
        drawn = folder / "leaderboard.svg", folder / "leaderboard.png"
        write_text(drawn[0], standalone(accuracy_against_time(models)))
        write_bytes(drawn[1], accuracy_against_time_png(models))
        paths += drawn
    return paths
