"""
One row a face: what every data set is turned into, and the Parquet files that hold it.

    FaceRecord    one labelled face, checked at birth
    FaceTable     Parquet files read as one stream of record batches in this schema
    FaceWriter    records to one Parquet file, whole or not at all

Ages are intervals in completed years, both ends included; an exact age is an interval of length 0.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from agelens.errors import DataError, MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA: Final = "agelens.faces/1"
OLDEST_AGE: Final = 122
"""Completed years of the longest human life on record (Jeanne Calment, 1875-1997)."""
OPEN_AGE: Final = 100
"""Upper end of a range without one ("70 and over"); estimates count 100 as "100 or more"."""

AgeKind = Literal["real", "apparent"]
Gender = Literal["female", "male"]
LicenceClass = Literal["commercial", "research"]

AGE_KINDS: Final[tuple[AgeKind, ...]] = ("real", "apparent")
GENDERS: Final[tuple[Gender, ...]] = ("female", "male")
LICENCE_CLASSES: Final[tuple[LicenceClass, ...]] = ("commercial", "research")

CORE_COLUMNS: Final = (
    "image",
    "path",
    "dataset",
    "split",
    "source_file",
    "age_min",
    "age_max",
    "age_std",
    "age_kind",
    "gender",
    "subject",
    "box",
    "landmarks",
    "licence",
    "licence_class",
)
PREPARED_COLUMNS: Final = ("score", "origin")
"""Columns that ``prepare`` adds; like the core ones they are never audit columns."""

MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class DatasetTerms:
    """What a data set's authors state, and what its ages are.

    Attributes:
        licence: The licence in words.
        licence_class: "research" when weights trained on it may not be used commercially.
        age_kind: "real" for ages from dates, "apparent" for ages that people estimated.
    """

    licence: str
    licence_class: LicenceClass
    age_kind: AgeKind | None


KNOWN_DATASETS: Final[Mapping[str, DatasetTerms]] = {
    "imdb": DatasetTerms("academic research only (IMDB-WIKI)", "research", "real"),
    "wiki": DatasetTerms("academic research only (IMDB-WIKI)", "research", "real"),
    "utkface": DatasetTerms("non-commercial research only (UTKFace)", "research", "apparent"),
    "appa-real": DatasetTerms("not stated by its authors (APPA-REAL)", "research", None),
    "fairface": DatasetTerms("CC BY 4.0 (FairFace)", "commercial", "apparent"),
    "agedb": DatasetTerms("non-commercial research only (AgeDB)", "research", "real"),
}


@dataclass(frozen=True)
class RowProblem:
    """Why one row cannot be used.

    Attributes:
        file: The file that holds the row, or the picture's own name where its name is the label.
        row: As a spreadsheet shows it (the header is row 1) for text tables; counted from 0 for
            Parquet and Matlab files; None when the whole file is meant.
        column: The column's name, or None.
        value: What was found, shortened.
        reason: What is wrong, what is expected and what to do.
    """

    file: str
    row: int | None
    column: str | None
    value: str
    reason: str

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file} row {self.row}"
        column = "" if self.column is None else f", column {self.column!r}"
        return f"{where}{column}: {self.value!r}: {self.reason}"

    def to_dict(self) -> dict[str, str | int | None]:
        """Wire form."""
        return {
            "file": self.file,
            "row": self.row,
            "column": self.column,
            "value": self.value,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class FaceRecord:
    """One labelled face.

    Attributes:
        dataset: Name of the data set; never empty.
        source_file: The picture's name within the data set.
        image: Encoded picture, or None when ``path`` names it.
        path: File of the picture, or None when ``image`` holds it.
        split: "train", "val", "test" or a name of the user's own; None when not split.
        age_min: Lowest age in completed years, 0..122; None when unknown.
        age_max: Highest age; equal to ``age_min`` when the exact age is known.
        age_std: Spread of the raters' votes in years; None when there is none.
        age_kind: "real", "apparent", or None when unknown.
        gender: Perceived presentation, or None when not labelled.
        subject: Who it is, as a key within the data set; None when unknown.
        box: (x0, y0, x1, y1) of the labelled face in pixels of the upright picture, or None.
        landmarks: 10 numbers: x, y of left eye, right eye, nose, left and right mouth corner, left
            and right as seen in the picture; None when unknown.
        licence: In words.
        licence_class: "commercial", "research", or None when not stated.
        audit: Further columns, such as the data set's own race labels: for audits, never outputs.
    """

    dataset: str
    source_file: str
    image: bytes | None = None
    path: str | None = None
    split: str | None = None
    age_min: int | None = None
    age_max: int | None = None
    age_std: float | None = None
    age_kind: AgeKind | None = None
    gender: Gender | None = None
    subject: str | None = None
    box: tuple[float, float, float, float] | None = None
    landmarks: tuple[float, ...] | None = None
    licence: str | None = None
    licence_class: LicenceClass | None = None
    audit: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for column, value, reason in _complaints(self):
            raise DataError(f"{self.source_file}, column {column!r}: {value!r}: {reason}")


def _complaints(row: FaceRecord) -> Iterator[tuple[str, object, str]]:
    """Column, value and reason of everything that a row may not hold."""
    if not row.dataset:
        yield "dataset", row.dataset, "the data set needs a name"
    if row.image is None and not row.path:
        yield "image", None, "there is neither an image nor a path; one of the two is needed"
    yield from _age_complaints(row.age_min, row.age_max)
    if row.age_std is not None and not (math.isfinite(row.age_std) and row.age_std >= 0):
        yield "age_std", row.age_std, "the raters' spread is a number of years, 0 or more"
    for column, value, allowed in (
        ("age_kind", row.age_kind, AGE_KINDS),
        ("gender", row.gender, GENDERS),
        ("licence_class", row.licence_class, LICENCE_CLASSES),
    ):
        if value is not None and value not in allowed:
            yield column, value, f"expected one of {', '.join(allowed)}, or nothing"
    if row.box is not None and not _is_box(row.box):
        yield "box", row.box, "a box is x0, y0, x1, y1 in pixels with x0 < x1 and y0 < y1"
    if row.landmarks is not None and not _are_finite(row.landmarks, 10):
        yield "landmarks", row.landmarks, "landmarks are 10 numbers: x and y of five points"


def _age_complaints(low: int | None, high: int | None) -> Iterator[tuple[str, object, str]]:
    if (low is None) != (high is None):
        column = "age_min" if low is None else "age_max"
        yield column, None, "an age needs both ends; repeat the exact age in both"
        return
    if low is None or high is None:
        return
    if not 0 <= low <= OLDEST_AGE:
        yield "age_min", low, f"no human age; expected 0..{OLDEST_AGE} completed years"
    elif not 0 <= high <= OLDEST_AGE:
        yield "age_max", high, f"no human age; expected 0..{OLDEST_AGE} completed years"
    elif low > high:
        yield "age_min", low, f"the range ends at {high}, before it starts"


def _is_box(box: Sequence[float]) -> bool:
    return _are_finite(box, 4) and box[0] < box[2] and box[1] < box[3]


def _are_finite(values: Sequence[float], count: int) -> bool:
    return len(values) == count and all(v is not None and math.isfinite(v) for v in values)


# --- the Arrow side -------------------------------------------------------------------------------


def arrow_schema(audit: Sequence[str] = ()) -> pa.Schema:
    """Arrow schema of a face table: the core columns, then the audit columns as text.

    Raises:
        DataError: An audit column has the name of a core column.
        MissingExtra: pyarrow is not installed.
    """
    pa = import_pyarrow()
    taken = [name for name in audit if name in CORE_COLUMNS or name in PREPARED_COLUMNS]
    if taken:
        raise DataError(f"an audit column may not be called {taken[0]!r}; rename that column")
    kinds = {
        "image": pa.binary(),
        "age_min": pa.int16(),
        "age_max": pa.int16(),
        "age_std": pa.float32(),
        "box": pa.list_(pa.float32()),
        "landmarks": pa.list_(pa.float32()),
    }
    fields = [pa.field(name, kinds.get(name, pa.string())) for name in CORE_COLUMNS]
    fields += [pa.field(name, pa.string()) for name in audit]
    return pa.schema(fields, metadata={"schema": SCHEMA})


def records_to_batch(records: Sequence[FaceRecord], audit: Sequence[str] = ()) -> pa.RecordBatch:
    """Records as one Arrow batch; audit values that a record lacks are null."""
    pa = import_pyarrow()
    schema = arrow_schema(audit)
    columns = [
        pa.array([getattr(record, name) for record in records], type=schema.field(name).type)
        for name in CORE_COLUMNS
    ]
    columns += [
        pa.array([record.audit.get(name) for record in records], type=pa.string()) for name in audit
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def batch_to_records(batch: pa.RecordBatch) -> list[FaceRecord]:
    """Arrow batch in this schema as records.

    Raises:
        DataError: A row holds what it may not; the message names the row's file and column.
    """
    audit = [name for name in batch.schema.names if name not in CORE_COLUMNS]
    return [_record(row, audit) for row in batch.to_pylist()]


def _record(row: dict[str, Any], audit: Sequence[str]) -> FaceRecord:
    core = {name: row[name] for name in CORE_COLUMNS if name in row}
    for name in ("box", "landmarks"):
        if core.get(name) is not None:
            core[name] = tuple(core[name])
    return FaceRecord(**core, audit={name: row[name] for name in audit})


def find_row_problems(batch: pa.RecordBatch, file: str, first_row: int) -> list[RowProblem]:
    """Everything a batch holds that it may not.

    Args:
        batch: Rows in this schema; columns may be missing.
        file: Name for the report.
        first_row: Number of the batch's first row in that file, counted from 0.
    """
    have_picture = {"image", "path"} & set(batch.schema.names)
    light = [name for name in batch.schema.names if name != "image"]
    rows = batch.select(light).to_pylist()
    held = batch.column("image").is_valid().to_pylist() if "image" in have_picture else None
    problems = []
    for offset, row in enumerate(rows):
        values = {name: row.get(name) for name in CORE_COLUMNS if name != "image"}
        has_image = not have_picture or (held is not None and held[offset])
        plain = _Loose(image=b"" if has_image else None, **values)
        problems += [
            RowProblem(file, first_row + offset, column, shorten(value), reason)
            for column, value, reason in _complaints(plain)
        ]
    return problems


class _Loose(FaceRecord):
    """A row as it was found, not yet judged."""

    def __post_init__(self) -> None:
        return


def shorten(value: object, limit: int = 80) -> str:
    """A value as printable text for a report, at most ``limit`` characters long."""
    text = "" if value is None else str(value)
    # Bytes that did not decode are kept as lone surrogates, which no terminal can print.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 1] + "…"


# --- reading --------------------------------------------------------------------------------------


def picture_source(image: bytes | None, path: str | None, file: Path) -> bytes | Path:
    """The picture of a row: its bytes, or its file.

    A relative path is meant from the folder of the Parquet file that holds the row.
    """
    if image is not None:
        return image
    return file.parent / (path or "")


def with_whole_paths(batch: pa.RecordBatch, file: Path) -> pa.RecordBatch:
    """A batch whose relative paths, meant from the folder of ``file``, are made absolute."""
    pa = import_pyarrow()
    paths = [
        None if path is None else str((file.parent / path).resolve())
        for path in batch.column("path").to_pylist()
    ]
    return batch.set_column(
        batch.schema.get_field_index("path"), "path", pa.array(paths, pa.string())
    )


@dataclass(frozen=True)
class FaceTable:
    """Parquet files of faces as one table, read in record batches.

    Files need an ``image`` or ``path`` column; every other column of the schema may be missing and
    is then null, with licence and kind of age filled in for the data sets we know. Columns that the
    schema does not name are audit columns. Rows are numbered from 0 through all files.

    Attributes:
        files: In reading order.
        rows: Rows of each file.
        audit: Names of the audit columns of all files, in order of appearance.
    """

    files: tuple[Path, ...]
    rows: tuple[int, ...]
    audit: tuple[str, ...]

    @classmethod
    def open(cls, sources: Path | str | Iterable[Path | str]) -> FaceTable:
        """Open Parquet files, or folders of them.

        A folder with a ``manifest.json`` gives the shards that the manifest lists, any other its
        ``*.parquet`` files by name.

        Raises:
            DataError: There is no such file, it is no Parquet file, or it holds no pictures.
            MissingExtra: pyarrow is not installed.
        """
        listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
        files = tuple(file for source in listed for file in _parquet_files(Path(source)))
        if not files:
            raise DataError("no Parquet file was given; name at least one file or folder")
        rows, audit = [], {}
        for file in files:
            count, names = _look_at(file)
            rows.append(count)
            audit.update(dict.fromkeys(names))
        return cls(files, tuple(rows), tuple(audit))

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Core columns, then audit columns."""
        return (*CORE_COLUMNS, *self.audit)

    def locate(self, row: int) -> tuple[Path, int]:
        """File and row within it of a row of the table.

        Raises:
            DataError: The table has no such row.
        """
        rest = row
        for file, count in zip(self.files, self.rows, strict=True):
            if 0 <= rest < count:
                return file, rest
            rest -= count
        raise DataError(f"row {row} is outside this table of {self.num_rows} rows")

    def name_of(self, row: int) -> str:
        """A row as a person finds it: ``FILE#ROW``, counted from 0."""
        file, within = self.locate(row)
        return f"{file.name}#{within}"

    def batches(
        self, columns: Sequence[str] | None = None, *, size: int = 512
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Record batches in this schema with the table's row number of their first row.

        Args:
            columns: Columns wanted, in this order; None for all.
            size: Most rows in a batch.
        """
        start = 0
        for file in self.files:
            for batch in self._of_file(file, columns, size, None):
                yield start, batch
                start += batch.num_rows

    def slice(
        self, first: int, count: int, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches of ``count`` rows from row ``first`` on; reads only their row groups."""
        last = first + count
        start = 0
        for file, rows in zip(self.files, self.rows, strict=True):
            low, high = max(first, start), min(last, start + rows)
            if low < high:
                yield from self._slice_of_file(file, start, low - start, high - start, columns)
            start += rows

    def labels(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Everything but the pictures, in memory.

        Args:
            columns: Columns wanted; None for all but ``image``.
        """
        pa = import_pyarrow()
        wanted = [c for c in self.columns if c != "image"] if columns is None else list(columns)
        parts = [batch for _, batch in self.batches(wanted, size=16_384)]
        schema = arrow_schema(self.audit)
        return pa.Table.from_batches(parts, pa.schema([schema.field(name) for name in wanted]))

    def take(
        self, rows: Iterable[int], columns: Sequence[str] | None = None
    ) -> dict[int, dict[str, Any]]:
        """Single rows as dictionaries, keyed by row number; reads only their row groups."""
        taken: dict[int, dict[str, Any]] = {}
        for run in _runs(sorted(set(rows))):
            for start, batch in self.slice(run[0], run[-1] - run[0] + 1, columns):
                for row in run:
                    if start <= row < start + batch.num_rows:
                        taken[row] = batch.slice(row - start, 1).to_pylist()[0]
        return taken

    def fingerprint(self) -> str:
        """SHA-256 over the content of all files, in order."""
        total = hashlib.sha256()
        for file in self.files:
            total.update(file_sha256(file).encode())
        return total.hexdigest()

    def _slice_of_file(
        self, file: Path, start: int, low: int, high: int, columns: Sequence[str] | None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        meta = _open_parquet(file).metadata
        groups: list[int] = []
        offset = begin = 0
        for group in range(meta.num_row_groups):
            rows = meta.row_group(group).num_rows
            if offset < high and offset + rows > low:
                if not groups:
                    begin = offset
                groups.append(group)
            offset += rows
        at = begin
        for batch in self._of_file(file, columns, 512, groups):
            first, last = max(low, at), min(high, at + batch.num_rows)
            if first < last:
                yield start + first, batch.slice(first - at, last - first)
            at += batch.num_rows

    def _of_file(
        self, file: Path, columns: Sequence[str] | None, size: int, groups: list[int] | None
    ) -> Iterator[pa.RecordBatch]:
        wanted = list(self.columns if columns is None else columns)
        parquet = _open_parquet(file)
        present = set(parquet.schema_arrow.names)
        needed = {*wanted, "dataset"} if set(wanted) & _FILLED.keys() else set(wanted)
        stored = [name for name in parquet.schema_arrow.names if name in needed & present]
        # A column that is there has to be read to know how many rows there are.
        stored = stored or [min(present, key=lambda name: name == "image")]
        batches = parquet.iter_batches(
            batch_size=size, columns=stored, row_groups=groups, use_threads=False
        )
        for batch in batches:
            yield self._conform(batch, wanted, file)

    def _conform(self, batch: pa.RecordBatch, wanted: Sequence[str], file: Path) -> pa.RecordBatch:
        pa = import_pyarrow()
        schema = arrow_schema(self.audit)
        arrays = []
        for name in wanted:
            kind = schema.field(name).type
            if name in batch.schema.names:
                arrays.append(_cast(batch.column(name), kind, file, name))
            elif name == "dataset":
                arrays.append(pa.array([file.stem] * batch.num_rows, kind))
            else:
                arrays.append(pa.nulls(batch.num_rows, kind))
        fields = [schema.field(name) for name in wanted]
        whole = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
        return _fill_terms(whole, batch)


_FILLED: Final[Mapping[str, str]] = {
    "licence": "licence",
    "licence_class": "licence_class",
    "age_kind": "age_kind",
}


def _fill_terms(batch: pa.RecordBatch, source: pa.RecordBatch) -> pa.RecordBatch:
    """Fill in licence and kind of age of the known data sets where a whole batch has none."""
    pa = import_pyarrow()
    empty = [
        name
        for name in _FILLED
        if name in batch.schema.names and batch.column(name).null_count == batch.num_rows
    ]
    if not empty or "dataset" not in source.schema.names:
        return batch
    names = source.column("dataset").to_pylist()
    for column in empty:
        terms = [KNOWN_DATASETS.get(name or "") for name in names]
        values = [None if term is None else getattr(term, column) for term in terms]
        batch = batch.set_column(
            batch.schema.get_field_index(column), column, pa.array(values, pa.string())
        )
    return batch


def _cast(array: Any, kind: Any, file: Path, column: str) -> Any:
    pa = import_pyarrow()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.type == kind:
        return array
    try:
        return array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{file}, column {column!r}: holds {array.type}, expected {kind}: {error}"
        ) from error


def _parquet_files(source: Path) -> list[Path]:
    if source.is_dir():
        manifest = source / MANIFEST
        if manifest.is_file():
            return [source / shard["file"] for shard in _shards_of(manifest)]
        found = sorted(source.glob("*.parquet"))
        if not found:
            raise DataError(f"{source}: no *.parquet in this folder; import the data set first")
        return found
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    return [source]


def _shards_of(manifest: Path) -> list[dict[str, Any]]:
    try:
        shards = json.loads(manifest.read_text(encoding="utf-8"))["shards"]
        return [dict(shard) for shard in shards]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{manifest}: is no manifest of prepared faces: {error}") from error


def _open_parquet(file: Path) -> Any:
    pa = import_pyarrow()
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}") from error


def _look_at(file: Path) -> tuple[int, list[str]]:
    parquet = _open_parquet(file)
    names = parquet.schema_arrow.names
    if not {"image", "path"} & set(names):
        raise DataError(
            f"{file}: has neither an 'image' nor a 'path' column, only {', '.join(names)}; "
            "read a table of your own with 'agelens data import csv'"
        )
    extra = [n for n in names if n not in CORE_COLUMNS and n not in PREPARED_COLUMNS]
    return parquet.metadata.num_rows, extra


def _runs(rows: Sequence[int], gap: int = 64) -> Iterator[list[int]]:
    """Rising rows in groups whose neighbours are at most ``gap`` apart."""
    run: list[int] = []
    for row in rows:
        if run and row - run[-1] > gap:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


# --- writing --------------------------------------------------------------------------------------


class FaceWriter:
    """Writes records to one Parquet file that appears when it is complete, or not at all.

    Use as a context manager: leaving it with an error, or after ``discard``, leaves no file.
    """

    def __init__(self, path: Path, audit: Sequence[str] = (), *, group_rows: int = 1000) -> None:
        import_pyarrow()
        import pyarrow.parquet as pq

        self.path = path
        self.num_rows = 0
        self._audit = tuple(audit)
        self._group_rows = group_rows
        self._pending: list[FaceRecord] = []
        self._discarded = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._writer = pq.ParquetWriter(self._partial, arrow_schema(audit), compression="zstd")

    def write(self, record: FaceRecord) -> None:
        """Add one row."""
        self._pending.append(record)
        self.num_rows += 1
        if len(self._pending) >= self._group_rows:
            self._flush()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add a batch of rows in the schema."""
        self._flush()
        self._writer.write_batch(batch)
        self.num_rows += batch.num_rows

    def discard(self) -> None:
        """Leave no file behind."""
        self._discarded = True

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_batch(records_to_batch(self._pending, self._audit))
            self._pending = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None and not self._discarded:
                self._flush()
            self._writer.close()
            if kind is None and not self._discarded:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file that appears when it is complete, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears when it is complete, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def import_pyarrow(extra: str = "train") -> Any:
    """The pyarrow module.

    Args:
        extra: What to install when it is missing: "train" or "eval".

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra(extra, "reading and writing data sets as Parquet") from error
    return pyarrow
