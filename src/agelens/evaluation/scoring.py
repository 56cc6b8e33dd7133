"""
From a model and files of labelled faces to ``ScoredFaces``: read, cut, estimate, keep.

    score          the whole way, or what is kept of it
    recalibrated   the same faces under another calibration, without the network
    answer         decoded answers of any stream of pictures
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from agelens import __version__
from agelens.analyzer import Analyzer, AnalyzerOptions, Cutout
from agelens.bundle import Bundle, CalibrationFields, ModelCard, find_model
from agelens.calibration import (
    calibrate_age,
    calibrate_gender,
    decode_age,
    decode_gender,
    distributions,
)
from agelens.data.duplicates import PictureFacts, RowSets, encoded_picture, find_duplicates
from agelens.data.schema import (
    FaceTable,
    file_sha256,
    find_row_problems,
    import_pyarrow,
    picture_source,
    write_bytes,
)
from agelens.errors import ArgumentError, DataError, ImageError
from agelens.estimation import RawOutputs, estimate_in_batches
from agelens.evaluation.scored import (
    LEVELS,
    QUALITY_MEASURES,
    ROWWISE,
    UNKNOWN,
    DataFile,
    Floats,
    Provenance,
    ScoredFaces,
)
from agelens.images import Picture, load_image
from agelens.results import AGE_COUNT

if TYPE_CHECKING:
    import pyarrow as pa

    from agelens.results import Quality

KEPT_SCHEMA: Final = "agelens.scored/1"
Progress = Callable[[int, int], None]
"""Called with faces done and faces in all."""

_FEMALE: Final = {"female": 1, "male": 0}
_LARGEST: Final = 32_767
_ROWS_AT_ONCE: Final = 64
_TIMED_FACES: Final = 64
_WARM_UP: Final = 4


@dataclass(frozen=True)
class ScoringOptions:
    """How faces are put to a model.

    Attributes:
        detector: "default", "none" (each picture is a face) or "insightface:DIR".
        crops: Each picture is one face crop: take the whole picture when no face is found. Without
            it such a face gets no answer.
        flip: Average each face with its mirror image.
        accept_licence: Accept a research-class model licence.
        threads: Threads inside one inference.
        timed: Also measure the CPU time a face on a sample of them.
        max_rows: Take this many rows at most, spread evenly over the data; None takes all.
    """

    detector: str = "default"
    crops: bool = True
    flip: bool = False
    accept_licence: bool = False
    threads: int = 1
    timed: bool = False
    max_rows: int | None = None

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 1:
            raise ArgumentError(f"max_rows must be 1 or more, got {self.max_rows}")

    def analyzer(self, model: str) -> Analyzer:
        """The analyzer that these options describe.

        Raises:
            ModelNotFound, ModelCorrupt, CardError, ModelError: The model or the detector.
            LicenceNotAccepted: A research-class model that was not accepted.
        """
        return Analyzer(
            AnalyzerOptions(
                model=model,
                detector=self.detector,
                crops=self.crops,
                max_faces=1,
                flip=self.flip,
                accept_licence=self.accept_licence,
                threads=self.threads,
            )
        )

    def to_provenance(self) -> dict[str, Any]:
        """What can change an answer, as the provenance keeps it."""
        return {
            "agelens": __version__,
            "detector": self.detector,
            "crops": self.crops,
            "flip": self.flip,
            "max_rows": self.max_rows,
        }


@dataclass(frozen=True, eq=False)
class FaceLabels:
    """What is known of each row of a table; the arrays are those of ``ScoredFaces``."""

    names: NDArray[np.object_]
    dataset: NDArray[np.object_]
    age_min: NDArray[np.int16]
    age_max: NDArray[np.int16]
    female_label: NDArray[np.int8]
    subject: NDArray[np.object_]
    audit: Mapping[str, NDArray[np.object_]]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says of N pictures, before calibration.

    Attributes:
        decoded_age: (N, 101) float64; NaN rows where there is no face.
        decoded_female: (N,) float64; NaN where there is none.
        detected: (N,) bool: the detector found the face.
        answered: (N,) bool: the analyzer would answer.
        quality: (N,) float32 by the names of ``QUALITY_MEASURES``.
        facts: Content and perceptual hashes of the pictures.
        errors: By position, why a picture could not be read.
    """

    decoded_age: Floats
    decoded_female: Floats
    detected: NDArray[np.bool_]
    answered: NDArray[np.bool_]
    quality: Mapping[str, NDArray[np.float32]]
    facts: PictureFacts
    errors: Mapping[int, str]


def score(
    model: str,
    data: Sequence[Path] | Path,
    options: ScoringOptions | None = None,
    *,
    kept: Path | None = None,
    progress: Progress | None = None,
) -> ScoredFaces:
    """Put every labelled face to a model.

    Labels are checked before the first picture is read. Pictures are read one after another, so
    that memory holds a batch of chips and the answers.

    Args:
        model: Name, path or "insightface:DIR"; see ``bundle.find_model``.
        data: Parquet files of faces, or folders of them (prepared ones too).
        options: How.
        kept: A .npz file: answers in it are taken when model, data and options are the same (the
            calibration may differ and is applied afresh), otherwise it is written.
        progress: Told faces done and faces in all.

    Raises:
        DataError: No faces, no labels, or a wrong one; the message names file, column and row.
        ModelError: The model or the detector; LicenceNotAccepted for a research-class model.
        MissingExtra: pyarrow is not installed.
    """
    chosen = options or ScoringOptions()
    bundle = find_model(model)
    bundle.require_licence(chosen.accept_licence)
    import_pyarrow("eval")
    table = FaceTable.open(data)
    labels = read_labels(table)
    rows = _chosen_rows(len(labels), chosen.max_rows)
    provenance = _provenance(bundle, table, chosen)
    found = None if kept is None else _reusable(kept, provenance)
    if found is not None:
        timed = found.provenance.milliseconds
        if chosen.timed and not timed:
            timed = milliseconds(model, table, rows, chosen)
        again = replace(provenance, milliseconds=timed)
        return recalibrated(replace(found, provenance=again), bundle.card)
    analyzer = chosen.analyzer(model)
    answers = answer(analyzer, pictures(table, rows), total=len(rows), progress=progress)
    if len(answers.errors) == len(rows):
        first = min(answers.errors)
        raise DataError(
            f"none of the {len(rows)} pictures can be read; {labels.names[rows[first]]}: "
            f"{answers.errors[first]}"
        )
    if chosen.timed:
        times = milliseconds(model, table, rows, chosen)
        provenance = replace(provenance, milliseconds=times)
    faces = assemble(labels, rows, answers, provenance, bundle.card)
    if kept is not None:
        save_scored(faces, kept)
    return faces


def assemble(
    labels: FaceLabels,
    rows: NDArray[np.intp],
    answers: Answers,
    provenance: Provenance,
    card: ModelCard,
) -> ScoredFaces:
    """Labels and answers as one, calibrated by the card."""
    count = len(rows)
    names = labels.names[rows]
    faces = ScoredFaces(
        names=names,
        dataset=labels.dataset[rows],
        age_min=labels.age_min[rows],
        age_max=labels.age_max[rows],
        female_label=labels.female_label[rows],
        clusters=find_clusters(labels.dataset[rows], labels.subject[rows], answers.facts),
        audit={name: column[rows] for name, column in labels.audit.items()},
        decoded_age=answers.decoded_age,
        decoded_female=answers.decoded_female,
        age=answers.decoded_age,
        female=answers.decoded_female,
        interval_low=np.zeros((count, len(LEVELS)), np.int16),
        interval_high=np.zeros((count, len(LEVELS)), np.int16),
        gender_threshold=0.5,
        detected=answers.detected,
        answered=answers.answered,
        quality=answers.quality,
        provenance=provenance,
        errors={str(names[row]): message for row, message in answers.errors.items()},
    )
    return recalibrated(faces, card)


# --- labels ---------------------------------------------------------------------------------------


def read_labels(table: FaceTable) -> FaceLabels:
    """Labels of every row of a table, all of them checked.

    Raises:
        DataError: There are no rows, no column of labels, or a value that no face can have; the
            message names file, column and row.
    """
    if table.num_rows == 0:
        raise DataError(
            f"{_listed(table.files)}: holds no rows; a table of labelled faces is needed"
        )
    _check_columns(table)
    columns = ["dataset", "age_min", "age_max", "gender", "subject"]
    held = table.labels([*columns, *table.audit]).to_pydict()
    _check_rows(table)
    names = _row_names(table)
    ages = {name: _whole(held[name]) for name in ("age_min", "age_max")}
    female = np.array([_FEMALE.get(word, UNKNOWN) for word in held["gender"]], np.int8)
    if not (ages["age_min"] != UNKNOWN).any() and not (female != UNKNOWN).any():
        raise DataError(
            f"{_listed(table.files)}: the columns 'age_min', 'age_max' and 'gender' are empty in "
            f"all {table.num_rows} rows; a model can only be measured on labelled faces"
        )
    return FaceLabels(
        names,
        _objects(held["dataset"]),
        ages["age_min"],
        ages["age_max"],
        female,
        _objects(held["subject"]),
        {name: _objects([v or None for v in held[name]]) for name in table.audit},
    )


def _check_columns(table: FaceTable) -> None:
    import pyarrow.parquet as pq

    for file in table.files:
        schema = pq.ParquetFile(file).schema_arrow
        present = set(schema.names)
        ages = {"age_min", "age_max"} & present
        if len(ages) == 1 or not ages | ({"gender"} & present):
            lacking = {"age_min", "age_max"} - present
            raise DataError(
                f"{file}: the column{'s' if len(lacking) > 1 else ''} "
                f"{' and '.join(repr(c) for c in sorted(lacking))} "
                f"{'are' if len(lacking) > 1 else 'is'} missing; labels are 'age_min' with "
                f"'age_max', or 'gender', or both, and there are: {', '.join(schema.names)}"
            )
        _check_age_columns(file, sorted(ages), schema)


def _check_age_columns(file: Path, columns: Sequence[str], schema: pa.Schema) -> None:
    """Refuse, by row, what the cast to the schema's small integers would refuse by column only."""
    pa = import_pyarrow()
    import pyarrow.parquet as pq

    for column in columns:
        kind = schema.field(column).type
        if pa.types.is_null(kind):
            continue
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise DataError(
                f"{file}, column {column!r}: holds {kind}, expected whole numbers of years"
            )
        values = pq.read_table(file, columns=[column]).column(0)
        known = np.flatnonzero(values.is_valid().to_numpy())
        numbers = values.cast(pa.float64(), safe=False).to_numpy()[known]
        # Not a number is neither whole nor within a range.
        wrong = np.flatnonzero(~((numbers % 1 == 0) & (np.abs(numbers) <= _LARGEST)))
        if len(wrong):
            raise DataError(
                f"{file} row {known[wrong[0]]}, column {column!r}: {numbers[wrong[0]]:g} is no age "
                "in completed years; expected a whole number, or an empty cell where it is unknown"
            )


def _check_rows(table: FaceTable) -> None:
    light = [name for name in table.columns if name not in ("image", "path", *table.audit)]
    for start, batch in table.batches(light, size=4096):
        file, first = table.locate(start)
        problems = find_row_problems(batch, str(file), first)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise DataError(f"{problems[0]}{more}")


def _row_names(table: FaceTable) -> NDArray[np.object_]:
    """``FILE#ROW``; files of the same name are told apart by their folder."""
    same = len({file.name for file in table.files}) < len(table.files)
    names = []
    for file, count in zip(table.files, table.rows, strict=True):
        called = f"{file.parent.name}/{file.name}" if same else file.name
        names += [f"{called}#{row}" for row in range(count)]
    return _objects(names)


def _whole(values: Sequence[int | None]) -> NDArray[np.int16]:
    return np.array([UNKNOWN if value is None else value for value in values], np.int16)


def _objects(values: Sequence[Any]) -> NDArray[np.object_]:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _listed(files: Sequence[Path]) -> str:
    return ", ".join(str(file) for file in files)


def _chosen_rows(count: int, most: int | None) -> NDArray[np.intp]:
    if most is None or most >= count:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.intp))


# --- answers --------------------------------------------------------------------------------------


def pictures(table: FaceTable, rows: NDArray[np.intp] | None = None) -> Iterator[bytes | Path]:
    """The pictures of a table, or of these rising rows of it, a few in memory at a time."""
    wanted = None if rows is None else set(rows.tolist())
    for start, batch in table.batches(["image", "path"], size=_ROWS_AT_ONCE):
        file, _ = table.locate(start)
        for offset, row in enumerate(batch.to_pylist()):
            if wanted is None or start + offset in wanted:
                yield picture_source(row["image"], row["path"], file)


def answer(
    analyzer: Analyzer,
    sources: Iterable[bytes | Path],
    *,
    total: int = 0,
    progress: Progress | None = None,
    change: Callable[[Picture], Picture] | None = None,
) -> Answers:
    """What a model says of the most prominent face of each picture, usable or not.

    Args:
        analyzer: The model, with ``crops`` or ``max_faces=1``.
        sources: Encoded pictures or their files.
        total: How many, for the progress.
        progress: Told pictures done and ``total``.
        change: Applied to each decoded picture before a face is looked for.

    Raises:
        ModelError: The network fails.
    """
    collected = _Collector(analyzer)
    for done, source in enumerate(sources, start=1):
        collected.add(source, change)
        if progress is not None and (done % analyzer.options.batch == 0 or done == total):
            progress(done, total)
    return collected.finish()


class _Collector:
    """Answers as they come; chips wait until they fill a batch."""

    def __init__(self, analyzer: Analyzer) -> None:
        self._analyzer = analyzer
        self._ages: list[Floats] = []
        self._females: list[Floats] = []
        self._at: list[int] = []
        self._waiting: list[NDArray[np.uint8]] = []
        self._detected: list[bool] = []
        self._answered: list[bool] = []
        self._quality: list[Quality | None] = []
        self._facts: list[PictureFacts] = []
        self._errors: dict[int, str] = {}

    def add(self, source: bytes | Path, change: Callable[[Picture], Picture] | None) -> None:
        row = len(self._detected)
        facts = PictureFacts.empty(1)
        self._facts.append(facts)
        faces: tuple[Cutout, ...] = ()
        try:
            encoded = encoded_picture(source)
            facts.record(0, encoded, None)
            picture = load_image(encoded, limits=self._analyzer.options.limits)
            facts.record(0, encoded, picture.pixels)
            faces = self._analyzer.cut(picture if change is None else change(picture))
        except ImageError as error:
            self._errors[row] = error.message
        face = faces[0] if faces else None
        self._detected.append(face is not None and face.origin == "detector")
        self._answered.append(face is not None and face.quality.usable)
        self._quality.append(None if face is None else face.quality)
        if face is not None:
            self._at.append(row)
            self._waiting.append(face.chip)
            if len(self._waiting) == self._analyzer.options.batch:
                self._estimate()

    def finish(self) -> Answers:
        self._estimate()
        count = len(self._detected)
        age, female = np.full((count, AGE_COUNT), np.nan), np.full(count, np.nan)
        if self._at:
            age[self._at] = np.concatenate(self._ages)
            female[self._at] = np.concatenate(self._females)
        facts = PictureFacts.empty(count)
        for row, one in enumerate(self._facts):
            for name in ("sizes", "content", "hashes", "mirrored", "contrast"):
                getattr(facts, name)[row] = getattr(one, name)[0]
        return Answers(
            age,
            female,
            np.array(self._detected, bool),
            np.array(self._answered, bool),
            {
                name: np.array([_measured(q, name) for q in self._quality], np.float32)
                for name in QUALITY_MEASURES
            },
            facts,
            self._errors,
        )

    def _estimate(self) -> None:
        if not self._waiting:
            return
        raw = estimate_in_batches(
            self._analyzer.estimator,
            np.stack(self._waiting),
            batch=self._analyzer.options.batch,
            flip=self._analyzer.options.flip,
        )
        age, female = decoded(raw, self._analyzer.bundle.card)
        self._ages.append(age)
        self._females.append(female)
        self._waiting = []


def decoded(raw: RawOutputs, card: ModelCard) -> tuple[Floats, Floats]:
    """Age probabilities (N, 101) and P(female) (N,), NaN where the model has no gender output."""
    age = decode_age(raw.age, card.age)
    if raw.gender is None or card.gender is None:
        return age, np.full(len(age), np.nan)
    return age, decode_gender(raw.gender, card.gender)


def _measured(quality: Quality | None, name: str) -> float:
    value = None if quality is None else getattr(quality, name)
    return np.nan if value is None else float(value)


def find_clusters(
    dataset: NDArray[np.object_], subject: NDArray[np.object_], facts: PictureFacts
) -> NDArray[np.int64]:
    """Number of the cluster of each row: the same subject, or the same picture (saved again too).

    Returns:
        (N,) int64 from 0 without gaps.
    """
    sets = RowSets(len(subject))
    first: dict[tuple[str, str], int] = {}
    for row, (name, who) in enumerate(zip(dataset, subject, strict=True)):
        if who is not None:
            sets.join(first.setdefault((str(name), str(who)), row), row)
    for group in find_duplicates(facts):
        for row in group.rows[1:]:
            sets.join(group.rows[0], row)
    numbers = np.empty(len(subject), np.int64)
    for number, rows in enumerate(sets.all()):
        numbers[rows] = number
    return numbers


def milliseconds(
    model: str, table: FaceTable, rows: NDArray[np.intp], options: ScoringOptions
) -> dict[str, float]:
    """Median CPU time a face in milliseconds, one face at a time on one thread.

    Returns:
        "network" for the chip through the network, "total" for the whole chain from the encoded
        picture; empty when no picture can be read.
    """
    analyzer = replace(options, threads=1).analyzer(model)
    wanted = rows[_chosen_rows(len(rows), _TIMED_FACES)]
    totals, networks = [], []
    for source in pictures(table, wanted):
        try:
            encoded = encoded_picture(source)
            begin = time.process_time()
            chips = [face.chip for face in analyzer.cut(load_image(encoded))][:1]
            located = time.process_time()
        except ImageError:
            continue
        if chips:
            decoded(
                estimate_in_batches(analyzer.estimator, np.stack(chips), flip=options.flip),
                analyzer.bundle.card,
            )
            networks.append(time.process_time() - located)
        totals.append(time.process_time() - begin)
    if not networks:
        return {}
    # The first ones pay for what is only done once.
    return {
        "network": 1000 * float(np.median(networks[_WARM_UP:] or networks)),
        "total": 1000 * float(np.median(totals[_WARM_UP:] or totals)),
    }


# --- calibration ----------------------------------------------------------------------------------


def recalibrated(faces: ScoredFaces, card: ModelCard | CalibrationFields) -> ScoredFaces:
    """The same faces with another calibration applied to their decoded answers.

    Args:
        faces: Scored before, under whatever calibration.
        card: The calibration, or the card that holds it.
    """
    fields = card.calibration if isinstance(card, ModelCard) else card
    there = ~np.isnan(faces.decoded_age[:, 0])
    age = np.full_like(faces.decoded_age, np.nan)
    age[there] = calibrate_age(faces.decoded_age[there], fields)
    low = np.zeros((len(faces), len(LEVELS)), np.int16)
    high = np.zeros_like(low)
    for row, ages in zip(np.flatnonzero(there), distributions(age[there], fields), strict=True):
        for column, level in enumerate(LEVELS):
            low[row, column], high[row, column] = ages.interval(level)
    female = np.full_like(faces.decoded_female, np.nan)
    said = ~np.isnan(faces.decoded_female)
    female[said] = calibrate_gender(faces.decoded_female[said], fields)
    return replace(
        faces,
        age=age,
        female=female,
        interval_low=low,
        interval_high=high,
        gender_threshold=fields.gender_threshold,
    )


# --- provenance -----------------------------------------------------------------------------------


def _provenance(bundle: Bundle, table: FaceTable, options: ScoringOptions) -> Provenance:
    return Provenance(
        model=bundle.card.identifier,
        model_sha256=model_sha256(bundle),
        card_sha256=card_sha256(bundle.card),
        data=tuple(
            DataFile(file.name, data_sha256(file), rows)
            for file, rows in zip(table.files, table.rows, strict=True)
        ),
        options=options.to_provenance(),
        decoding_sha256=decoding_sha256(bundle.card),
    )


def model_sha256(bundle: Bundle) -> str:
    """Hash over the SHA-256 of all weights files of a model, in the card's order."""
    return _sha256_of([file.sha256 for file in bundle.card.files])


def card_sha256(card: ModelCard) -> str:
    """Hash of a card's fields, calibration included; spaces and order do not count.

    Its figures are left out: they are measured on the model as it is, and written afterwards.
    Fields at their default do not count either, so that a card keeps its hash when cards learn new
    ones.
    """
    fields = card.model_dump(mode="json", by_alias=True, exclude={"figures"}, exclude_defaults=True)
    return _sha256_of(fields)


def decoding_sha256(card: ModelCard) -> str:
    """Hash of the card's fields that decoded answers depend on: all but words and calibration."""
    fields = {"files", "adapter", "input", "crop", "age", "gender"}
    return _sha256_of(card.model_dump(mode="json", include=fields, exclude_defaults=True))


def _sha256_of(value: object) -> str:
    """SHA-256 of a value's canonical JSON: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def data_sha256(file: Path) -> str:
    """SHA-256 of a Parquet file, and of the pictures that it only names."""
    import pyarrow.parquet as pq

    own = file_sha256(file)
    names = pq.ParquetFile(file).schema_arrow.names
    if "path" not in names:
        return own
    total = hashlib.sha256(own.encode())
    named = False
    for source in pictures(FaceTable.open(file)):
        if isinstance(source, Path):
            named = True
            try:
                total.update(hashlib.sha256(source.read_bytes()).digest())
            except OSError:
                total.update(b"missing")
    return total.hexdigest() if named else own


# --- keeping --------------------------------------------------------------------------------------

_BROKEN: Final = (zipfile.BadZipFile, zlib.error, EOFError)
_TEXTS: Final = ("names", "dataset")
_ARRAYS: Final = tuple(name for name in ROWWISE if name not in _TEXTS)


def save_scored(faces: ScoredFaces, path: Path) -> None:
    """Write scored faces to one .npz file that appears when it is complete, or not at all."""
    texts = {
        "schema": KEPT_SCHEMA,
        "names": faces.names.tolist(),
        "dataset": faces.dataset.tolist(),
        "audit": {name: column.tolist() for name, column in faces.audit.items()},
        "errors": dict(faces.errors),
        "gender_threshold": faces.gender_threshold,
        "provenance": asdict(faces.provenance),
    }
    arrays: dict[str, Any] = {name: getattr(faces, name) for name in _ARRAYS}
    arrays |= {f"quality_{name}": column for name, column in faces.quality.items()}
    arrays["texts"] = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def load_scored(path: Path) -> ScoredFaces:
    """Read what ``save_scored`` wrote; nothing in the file is executed.

    Raises:
        DataError: There is no such file, or it is not one of these.
    """
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as held:
            texts = json.loads(bytes(held["texts"]))
            if texts["schema"] != KEPT_SCHEMA:
                raise DataError(
                    f"{path}: is {texts['schema']!r}, no file of kept answers ({KEPT_SCHEMA}); "
                    "name another path"
                )
            return ScoredFaces(
                names=_objects(texts["names"]),
                dataset=_objects(texts["dataset"]),
                audit={name: _objects(column) for name, column in texts["audit"].items()},
                gender_threshold=float(texts["gender_threshold"]),
                quality={name: held[f"quality_{name}"] for name in QUALITY_MEASURES},
                provenance=_read_provenance(texts["provenance"]),
                errors=texts["errors"],
                **{name: held[name] for name in _ARRAYS},
            )
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except DataError:
        raise
    except (*_BROKEN, OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path}: is no file of kept answers, or a broken one; name another path"
        ) from error


def _read_provenance(wire: dict[str, Any]) -> Provenance:
    return Provenance(**{**wire, "data": tuple(DataFile(**file) for file in wire["data"])})


def _reusable(kept: Path, wanted: Provenance) -> ScoredFaces | None:
    """What is kept, when it answers the same question."""
    if not kept.exists():
        return None
    found = load_scored(kept)
    have = found.provenance
    same = (
        have.decoding_sha256 == wanted.decoding_sha256
        and [file.sha256 for file in have.data] == [file.sha256 for file in wanted.data]
        and dict(have.options) == dict(wanted.options)
    )
    return found if same else None
