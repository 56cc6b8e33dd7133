"""
The user's own table: a CSV or Parquet file of pictures with ages, ranges, or dates.

Columns are found by their usual names or mapped by hand. A bad row never stops the reading: every
one is reported with row, column, value and reason.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, cast, get_args

from agelens.data.readers.labels import (
    LabelError,
    age_between,
    is_missing,
    parse_age,
    parse_date,
    parse_gender,
)
from agelens.data.readers.reading import Reading, ReadingLog
from agelens.data.schema import (
    AgeKind,
    FaceRecord,
    Gender,
    LicenceClass,
    RowProblem,
    import_pyarrow,
    shorten,
)
from agelens.errors import ArgumentError, DataError

DELIMITERS: Final = (",", ";", "\t", "|")
_SUGGESTED_ENCODING: Final = "cp1252"
_MOJIBAKE_ENCODINGS: Final = ("cp1252", "latin-1", "iso-8859-1", "iso8859-15", "mac_roman")


@dataclass(frozen=True)
class ColumnMap:
    """Which column holds what; None where the table has no such column.

    Attributes:
        file: Picture's file, from the images folder or absolute.
        image: Encoded picture itself (Parquet only).
        age: Years (34) or a range (20-29, 70+).
        age_min: Lowest age, with ``age_max`` instead of ``age``.
        age_max: Highest age.
        age_std: Spread of several people's estimates.
        birth_date: Date of birth, with ``photo_date`` instead of ``age``.
        photo_date: Date of the photograph.
        gender: Word for the perceived gender.
        subject: Key of the person.
        split: Name of the split.
        box: Box of the face: "x0 y0 x1 y1" in one column.
        audit: Further columns to keep for audits.
    """

    file: str | None = None
    image: str | None = None
    age: str | None = None
    age_min: str | None = None
    age_max: str | None = None
    age_std: str | None = None
    birth_date: str | None = None
    photo_date: str | None = None
    gender: str | None = None
    subject: str | None = None
    split: str | None = None
    box: str | None = None
    audit: tuple[str, ...] = ()

    def used(self) -> dict[str, str]:
        """What is mapped, as meaning and column, without the audit columns."""
        pairs = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "audit"}
        return {meaning: column for meaning, column in pairs.items() if column is not None}


USUAL_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "file": ("file", "filename", "file_name", "path", "image_path", "photo", "picture", "image"),
    "age": ("age", "age_range", "age_group", "years"),
    "age_min": ("age_min", "min_age", "age_from"),
    "age_max": ("age_max", "max_age", "age_to"),
    "age_std": ("age_std",),
    "birth_date": ("birth_date", "birthdate", "date_of_birth", "birthday", "dob", "born"),
    "photo_date": ("photo_date", "date_taken", "taken", "photo_taken", "capture_date", "shot_date"),
    "gender": ("gender", "sex"),
    "subject": ("subject", "subject_id", "person", "person_id", "identity", "employee_id"),
    "split": ("split", "subset"),
    "box": ("box", "bbox", "face_box"),
}


@dataclass(frozen=True)
class TableOptions:
    """How a table of the user's own is written.

    Attributes:
        dataset: Name to give the data set; None takes the file's name.
        images: Folder that file names are meant from; None takes the table's folder.
        columns: Which column holds what; what is not mapped is found by its usual name.
        encoding: "auto" (UTF-8, or UTF-16 by its mark), or a codec's name such as "cp1252".
        delimiter: "auto", or the character.
        date_formats: ``strptime`` patterns, such as "%d/%m/%Y"; empty reads year-first dates.
        gender_words: Further words for gender; None leaves such rows unlabelled.
        age_kind: "real" for ages from records, "apparent" for ages people estimated.
        licence: Licence of the pictures in words.
        licence_class: "commercial" or "research"; None when not stated.
    """

    dataset: str | None = None
    images: Path | None = None
    columns: ColumnMap = field(default_factory=ColumnMap)
    encoding: str = "auto"
    delimiter: str = "auto"
    date_formats: tuple[str, ...] = ()
    gender_words: Mapping[str, Gender | None] = field(default_factory=dict)
    age_kind: AgeKind = "real"
    licence: str | None = None
    licence_class: LicenceClass | None = None

    def __post_init__(self) -> None:
        if self.age_kind not in get_args(AgeKind):
            raise ArgumentError(f"age_kind must be 'real' or 'apparent', got {self.age_kind!r}")
        if self.delimiter != "auto" and len(self.delimiter) != 1:
            raise ArgumentError(f"a delimiter is one character, got {self.delimiter!r}")
        if self.encoding != "auto":
            try:
                "".encode(self.encoding)
            except LookupError as error:
                raise ArgumentError(f"there is no encoding {self.encoding!r}") from error


def read_table(path: Path, options: TableOptions | None = None) -> Reading:
    """Read a CSV or Parquet file of the user's own.

    The table is gone through twice, the first time to find pictures that are labelled twice.

    Args:
        path: ``.parquet``, or text with a header row.
        options: How it is written; None finds out.

    Raises:
        DataError: The file cannot be read at all: no such file, no header, a column that is not
            there, an encoding that does not fit. Bad rows are in the reading's log instead.
        ArgumentError: The mapping contradicts itself.
        MissingExtra: pyarrow is not installed and the table is Parquet.
    """
    chosen = options or TableOptions()
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    source = _ParquetRows(path) if path.suffix.lower() == ".parquet" else _text_rows(path, chosen)
    columns = find_columns(source.header, chosen.columns, path)
    notes = (*source.notes, "columns: " + _told(columns))
    log = ReadingLog()
    dataset = chosen.dataset or path.stem
    parser = _RowParser(path, dataset, columns, chosen)
    return Reading(dataset, _records(source, parser, log), log, columns.audit, notes)


def _told(columns: ColumnMap) -> str:
    return ", ".join(f"{meaning} = {column!r}" for meaning, column in columns.used().items())


def find_columns(header: Sequence[str], given: ColumnMap, path: Path) -> ColumnMap:
    """The mapping with what is missing in it found by usual names, in any case.

    Raises:
        DataError: A mapped column is not in the header, or nothing names the picture.
        ArgumentError: The age is mapped in two ways.
    """
    for name in (*given.used().values(), *given.audit):
        if name not in header:
            raise DataError(f"{path}: no column {name!r}; the header has {', '.join(header)}")
    lowered = {name.strip().lower().replace(" ", "_"): name for name in reversed(header)}
    taken = set(given.used().values()) | set(given.audit)
    found: dict[str, str] = {}
    for meaning, names in USUAL_NAMES.items():
        usual = next((lowered[n] for n in names if n in lowered and lowered[n] not in taken), None)
        if getattr(given, meaning) is None and usual is not None:
            found[meaning] = usual
            taken.add(usual)
    if given.image is not None:
        found.pop("file", None)
    if given.used().keys() & _AGE_WAYS_FLAT:
        # The age was mapped by hand, so that other columns that look like one are left alone.
        found = {m: c for m, c in found.items() if m not in _AGE_WAYS_FLAT or _same_way(m, given)}
    columns = replace(given, **cast("dict[str, Any]", found))
    _check_age_way(given, columns, path)
    if columns.file is None and columns.image is None:
        raise DataError(
            f"{path}: no column names the picture; the header has {', '.join(header)}; map it, for "
            "example --column file=NAME"
        )
    return columns


_AGE_WAYS: Final = (
    frozenset({"age"}),
    frozenset({"age_min", "age_max"}),
    frozenset({"birth_date", "photo_date"}),
)
_AGE_WAYS_FLAT: Final = frozenset().union(*_AGE_WAYS)


def _same_way(meaning: str, given: ColumnMap) -> bool:
    return any(meaning in way and way & given.used().keys() for way in _AGE_WAYS)


def _check_age_way(given: ColumnMap, columns: ColumnMap, path: Path) -> None:
    used = columns.used().keys()
    for way in _AGE_WAYS[1:]:
        if 0 < len(way & used) < 2:
            have, need = next(iter(way & used)), next(iter(way - used))
            raise DataError(f"{path}: {have} is there but {need} is not; map it with --column")
    if len([way for way in _AGE_WAYS if way & used]) > 1:
        told = _told(columns)
        if given.used().keys() & _AGE_WAYS_FLAT:
            raise ArgumentError(f"the age is mapped in two ways: {told}")
        raise DataError(
            f"{path}: the age is there in two ways ({told}); choose one, for example --column "
            "age=NAME"
        )


# --- rows of a file -------------------------------------------------------------------------------


class _Row(NamedTuple):
    number: int
    cells: dict[str, Any]
    problem: tuple[str | None, str, str] | None


class _ParquetRows:
    """Rows of a Parquet file, counted from 0."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        pa = import_pyarrow()
        import pyarrow.parquet as pq

        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
        self.header = list(self._file.schema_arrow.names)

    def rows(self, columns: Sequence[str]) -> Iterator[_Row]:
        number = 0
        for batch in self._file.iter_batches(256, columns=list(columns), use_threads=False):
            for cells in batch.to_pylist():
                yield _Row(number, cells, None)
                number += 1


@dataclass(frozen=True)
class _TextRows:
    """Rows of a text file; the header is row 1, as a spreadsheet counts."""

    path: Path
    encoding: str
    delimiter: str
    header: list[str]
    notes: tuple[str, ...]

    def rows(self, columns: Sequence[str]) -> Iterator[_Row]:
        wanted = [(name, self.header.index(name)) for name in columns]
        for number, cells in _csv_rows(self.path, self.encoding, self.delimiter):
            if number == 1 or not cells:
                continue
            problem = self._problem(cells)
            yield _Row(number, {} if problem else {name: cells[at] for name, at in wanted}, problem)

    def _problem(self, cells: list[str]) -> tuple[str | None, str, str] | None:
        if len(cells) != len(self.header):
            reason = (
                f"{len(cells)} cells under {len(self.header)} columns; a cell with "
                f"{self.delimiter!r} in it needs quotes"
            )
            return None, self.delimiter.join(cells), reason
        for name, cell in zip(self.header, cells, strict=True):
            reason = _encoding_reason(cell, self.encoding) or ""
            if reason:
                return name, cell, reason
        return None


def _text_rows(path: Path, options: TableOptions) -> _TextRows:
    encoding = find_encoding(path) if options.encoding == "auto" else options.encoding
    delimiter = options.delimiter
    if delimiter == "auto":
        delimiter = find_delimiter(path, encoding)
    header = next((cells for _, cells in _csv_rows(path, encoding, delimiter)), [])
    header = [name.strip() for name in header]
    if not any(header):
        raise DataError(f"{path}: is empty; the first row must name the columns")
    doubled = sorted({name for name in header if header.count(name) > 1 and name})
    if doubled:
        raise DataError(f"{path} row 1: two columns are called {doubled[0]!r}; rename one")
    notes = (f"read as {encoding} text, columns separated by {delimiter!r}",)
    return _TextRows(path, encoding, delimiter, header, notes)


def _csv_rows(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Records with their number from 1; bytes that do not decode become lone surrogates."""
    number = 0
    try:
        with open(path, encoding=encoding, errors="surrogateescape", newline="") as handle:
            for number, cells in enumerate(csv.reader(handle, delimiter=delimiter), start=1):
                yield number, cells
    except UnicodeError as error:
        raise DataError(
            f"{path} after row {number}: is not {encoding} text ({error.__class__.__name__}: "
            f"{error}); state how it was saved with --encoding, or save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{path} after row {number}: is no CSV ({error}); is a quote left open?"
        ) from error


def find_encoding(path: Path) -> str:
    """How a text file was saved, by its first bytes.

    Raises:
        DataError: It looks like UTF-16 without a mark, or is no text.
    """
    with open(path, "rb") as handle:
        start = handle.read(4096)
    if start.startswith(b"\xef\xbb\xbf"):
        return "utf-8-sig"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\x00" in start:
        order = "utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be"
        raise DataError(
            f"{path}: holds zero bytes, so it is no UTF-8 text; if it was saved as Unicode text, "
            f"pass --encoding {order}"
        )
    return "utf-8"


def find_delimiter(path: Path, encoding: str) -> str:
    """The separator that gives the first rows the same number of columns, the most first."""
    best, width = ",", 1
    for delimiter in DELIMITERS:
        widths = []
        for number, cells in _csv_rows(path, encoding, delimiter):
            if cells:
                widths.append(len(cells))
            if number >= 20:
                break
        # The header decides; a stray separator in one of the rows must not.
        alike = sum(w == widths[0] for w in widths) if widths else 0
        if widths and widths[0] > width and alike * 2 > len(widths):
            best, width = delimiter, widths[0]
    return best


def _encoding_reason(cell: str, encoding: str) -> str | None:
    if cell.isascii():
        return None
    broken = [char for char in cell if "\udc80" <= char <= "\udcff"]
    if broken:
        byte = ord(broken[0]) - 0xDC00
        read = bytes([byte]).decode(_SUGGESTED_ENCODING, "replace")
        return (
            f"byte 0x{byte:02x} is not {encoding}; in {_SUGGESTED_ENCODING} it is {read!r}: if the "
            f"table was saved by Windows, pass --encoding {_SUGGESTED_ENCODING}, or save it as "
            "UTF-8"
        )
    if encoding.lower() in _MOJIBAKE_ENCODINGS:
        meant = _undone(cell, encoding)
        if meant is not None:
            return f"is UTF-8 read as {encoding} ({meant!r} was meant); pass --encoding utf-8"
    return None


def _undone(cell: str, encoding: str) -> str | None:
    """The text that was meant when UTF-8 bytes were read in a one-byte encoding."""
    try:
        return cell.encode(encoding, "surrogateescape").decode("utf-8")
    except UnicodeError:
        return None


# --- a row's meaning ------------------------------------------------------------------------------


class _Told(NamedTuple):
    """What the first row of a picture says, to compare later rows with."""

    row: int
    ages: tuple[int, int] | None
    gender: Gender | None
    subject: str | None


def _records(source: Any, parser: _RowParser, log: ReadingLog) -> Iterator[FaceRecord]:
    columns = [*parser.columns.used().values(), *parser.columns.audit]
    wanted = list(dict.fromkeys(columns))
    first, clashes = _first_pass(source, parser, [c for c in wanted if c != parser.columns.image])
    for row in source.rows(wanted):
        record, problems = parser.parse(row)
        key = parser.key(row)
        if record is not None and key is not None and key in clashes:
            problems = [_clash(parser, row, key, clashes[key])]
        elif record is not None and key is not None and first[key].row != row.number:
            reason = f"the same picture, labelled the same, is in row {first[key].row} already"
            problems = [(parser.columns.file, parser.name(row), reason)]
        if problems:
            log.problems += [
                RowProblem(parser.path.name, row.number, column, shorten(value), reason)
                for column, value, reason in problems
            ]
        elif record is not None:
            yield record


def _first_pass(
    source: Any, parser: _RowParser, columns: list[str]
) -> tuple[dict[str, _Told], dict[str, list[_Told]]]:
    """First row of each picture, and all rows of the pictures whose rows disagree."""
    first: dict[str, _Told] = {}
    rows_of: dict[str, list[_Told]] = {}
    clashes: dict[str, list[_Told]] = {}
    if parser.columns.file is None:
        return first, clashes
    for row in source.rows(columns):
        key = parser.key(row)
        record, _ = parser.parse(row)
        if key is None or record is None:
            continue
        ages = None if record.age_min is None else (record.age_min, record.age_max or 0)
        told = _Told(row.number, ages, record.gender, record.subject)
        if key in first:
            rows_of.setdefault(key, [first[key]]).append(told)
            if told[1:] != first[key][1:]:
                clashes[key] = rows_of[key]
        else:
            first[key] = told
    return first, clashes


def _clash(
    parser: _RowParser, row: _Row, key: str, rows: list[_Told]
) -> tuple[str | None, object, str]:
    own = next(told for told in rows if told.row == row.number)
    others = [told for told in rows if told.row != row.number and told[1:] != own[1:]]
    other = others[0] if others else next(told for told in rows if told.row != row.number)
    numbers = ", ".join(str(told.row) for told in rows if told.row != row.number)
    if own.ages != other.ages:
        column = parser.age_column()
        said = f"two ages for {parser.name(row)}: row {other.row} says {_ages_text(other.ages)}"
        if column == parser.columns.birth_date:
            said = f"these dates give {_ages_text(own.ages)}; {said}"
        value = row.cells.get(column) if column else None
        return column, value, f"{said}; only one can be right"
    if own.gender != other.gender:
        said = f"two genders for {parser.name(row)}: row {other.row} says {other.gender}"
        return parser.columns.gender, own.gender, f"{said}; only one can be right"
    if own.subject != other.subject:
        said = f"two subjects for {parser.name(row)}: row {other.row} says {other.subject}"
        return parser.columns.subject, own.subject, f"{said}; give each face its box"
    return parser.columns.file, key, f"the same picture is in rows {numbers}, which disagree"


def _ages_text(ages: tuple[int, int] | None) -> str:
    if ages is None:
        return "no age"
    return str(ages[0]) if ages[0] == ages[1] else f"{ages[0]}-{ages[1]}"


class _RowParser:
    """Turns cells into a record, or into the reasons why they are none."""

    def __init__(self, path: Path, dataset: str, columns: ColumnMap, options: TableOptions) -> None:
        self.path = path
        self.columns = columns
        self._dataset = dataset
        self._options = options
        self._images = options.images or path.parent
        self._words = {word.strip().lower(): to for word, to in options.gender_words.items()}

    def name(self, row: _Row) -> str:
        """The picture's name in the table."""
        column = self.columns.file
        if column is None:
            return f"{self.path.stem}/{row.number}"
        return str(row.cells.get(column) or "").strip()

    def key(self, row: _Row) -> str | None:
        """What two rows of the same face have in common; None for embedded pictures."""
        if self.columns.file is None or row.problem is not None:
            return None
        box = row.cells.get(self.columns.box) if self.columns.box else None
        return f"{self.name(row)}\0{'' if is_missing(box) else box}".replace("\\", "/")

    def age_column(self) -> str | None:
        """The column to name when the age is wrong."""
        c = self.columns
        return c.age or c.age_min or c.birth_date

    def parse(self, row: _Row) -> tuple[FaceRecord | None, list[tuple[str | None, object, str]]]:
        """A record, or every problem of the row as column, value and reason."""
        if row.problem is not None:
            return None, [row.problem]
        problems: list[tuple[str | None, object, str]] = []
        picture = self._picture(row, problems)
        ages = self._ages(row, problems)
        gender = self._gender(row, problems)
        box = self._box(row, problems)
        spread = self._spread(row, problems)
        if problems:
            return None, problems
        record = FaceRecord(
            dataset=self._dataset,
            source_file=self.name(row),
            image=row.cells.get(self.columns.image) if self.columns.image else None,
            path=picture,
            split=self._text(row, self.columns.split),
            age_min=None if ages is None else ages[0],
            age_max=None if ages is None else ages[1],
            age_std=spread,
            age_kind=None if ages is None else self._options.age_kind,
            gender=gender,
            subject=self._text(row, self.columns.subject),
            box=box,
            licence=self._options.licence,
            licence_class=self._options.licence_class,
            audit={name: self._text(row, name) for name in self.columns.audit},
        )
        return record, []

    def _text(self, row: _Row, column: str | None) -> str | None:
        value = None if column is None else row.cells.get(column)
        return None if is_missing(value) else str(value).strip()

    def _picture(self, row: _Row, problems: list[tuple[str | None, object, str]]) -> str | None:
        if self.columns.file is None:
            held = row.cells.get(self.columns.image or "", b"")
            if held is not None and not isinstance(held, bytes):
                problems.append((self.columns.image, type(held), "expected encoded bytes"))
            elif held is None:
                problems.append((self.columns.image, None, "there is no picture"))
            return None
        name = self.name(row)
        if not name:
            problems.append((self.columns.file, name, "the picture is not named"))
            return None
        if "://" in name:
            problems.append((self.columns.file, name, "is a link; download the pictures first"))
            return None
        for candidate in (name, name.replace("\\", "/")):
            picture = self._images / candidate
            if _is_file(picture):
                return str(picture.resolve())
        reason = f"no such file in {self._images}; --images names another folder"
        problems.append((self.columns.file, name, reason))
        return None

    def _ages(
        self, row: _Row, problems: list[tuple[str | None, object, str]]
    ) -> tuple[int, int] | None:
        c = self.columns
        if c.birth_date and c.photo_date:
            return self._ages_of_dates(row, c.birth_date, c.photo_date, problems)
        if c.age_min and c.age_max:
            low = self._age(row, c.age_min, problems)
            high = self._age(row, c.age_max, problems)
            if low is None or high is None:
                if (low is None) != (high is None) and not problems:
                    lacking = c.age_min if low is None else c.age_max
                    problems.append((lacking, "", "a range needs both ends"))
                return None
            if low[0] > high[1]:
                problems.append((c.age_min, low[0], f"the range ends at {high[1]}, before it"))
                return None
            return low[0], high[1]
        return self._age(row, c.age, problems) if c.age else None

    def _age(
        self, row: _Row, column: str, problems: list[tuple[str | None, object, str]]
    ) -> tuple[int, int] | None:
        value = row.cells.get(column)
        if is_missing(value):
            return None
        try:
            return parse_age(value)
        except LabelError as error:
            problems.append((column, value, str(error)))
            return None

    def _ages_of_dates(
        self,
        row: _Row,
        birth_column: str,
        photo_column: str,
        problems: list[tuple[str | None, object, str]],
    ) -> tuple[int, int] | None:
        spans = []
        for column in (birth_column, photo_column):
            value = row.cells.get(column)
            if is_missing(value):
                return None
            try:
                spans.append(parse_date(value, self._options.date_formats))
            except LabelError as error:
                problems.append((column, value, str(error)))
        if len(spans) < 2:
            return None
        try:
            return age_between(spans[0], spans[1])
        except LabelError as error:
            problems.append((birth_column, row.cells.get(birth_column), str(error)))
            return None

    def _gender(self, row: _Row, problems: list[tuple[str | None, object, str]]) -> Gender | None:
        column = self.columns.gender
        if column is None:
            return None
        value = row.cells.get(column)
        try:
            return parse_gender("" if value is None else value, self._words)
        except LabelError as error:
            problems.append((column, value, str(error)))
            return None

    def _box(
        self, row: _Row, problems: list[tuple[str | None, object, str]]
    ) -> tuple[float, float, float, float] | None:
        column = self.columns.box
        value = None if column is None else row.cells.get(column)
        if is_missing(value):
            return None
        try:
            cells = value if isinstance(value, (list, tuple)) else _numbers_of(str(value))
            x0, y0, x1, y1 = (float(cell) for cell in cells)
        except (TypeError, ValueError):
            problems.append((column, value, "expected four numbers: x0 y0 x1 y1 in pixels"))
            return None
        if not (x0 < x1 and y0 < y1 and all(map(math.isfinite, (x0, y0, x1, y1)))):
            problems.append((column, value, "a box needs x0 < x1 and y0 < y1"))
            return None
        return x0, y0, x1, y1

    def _spread(self, row: _Row, problems: list[tuple[str | None, object, str]]) -> float | None:
        column = self.columns.age_std
        value = None if column is None else row.cells.get(column)
        if is_missing(value):
            return None
        try:
            spread = float(str(value))
        except ValueError:
            spread = math.nan
        if not (math.isfinite(spread) and spread >= 0):
            problems.append((column, value, "expected a spread in years, 0 or more"))
            return None
        return spread


def _numbers_of(text: str) -> list[str]:
    return text.strip("[]() ").replace(",", " ").replace(";", " ").split()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        # Names too long or with a zero byte are no files.
        return False
