"""
What a reader hands over: rows one by one, and what it could not or would not use.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from agelens.data.schema import FaceRecord, FaceWriter, RowProblem, write_text
from agelens.errors import DataError
from agelens.sources import IMAGE_SUFFIXES

_TOLD: Final = 200
"""Problems that an error message spells out; the listing beside the output has them all."""


@dataclass
class ReadingLog:
    """Fills while the records are drawn; complete when they are exhausted.

    Attributes:
        problems: Bad rows: the import refuses because of them unless told to skip them.
        defects: Bad rows that the published data set is known to hold; left out and reported.
        filtered: Rows left out by the documented cleaning options, counted by reason.
    """

    problems: list[RowProblem] = field(default_factory=list)
    defects: list[RowProblem] = field(default_factory=list)
    filtered: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Reading:
    """A data set being read.

    Attributes:
        dataset: Its name.
        records: Good rows, each drawn once.
        log: What is not among them, and why.
        audit: Names of the audit columns that records may have.
        notes: Facts a person should see, such as how columns were understood.
    """

    dataset: str
    records: Iterator[FaceRecord]
    log: ReadingLog
    audit: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportReport:
    """What became of a data set.

    Attributes:
        dataset: Its name.
        output: The file that was written.
        rows: Rows in it.
        problems: Bad rows that were left out because the caller said so.
        defects: Known bad rows of the published data set that were left out.
        filtered: Rows left out by cleaning options, by reason.
        notes: Facts a person should see.
    """

    dataset: str
    output: Path
    rows: int
    problems: tuple[RowProblem, ...]
    defects: tuple[RowProblem, ...]
    filtered: dict[str, int]
    notes: tuple[str, ...]


def import_faces(
    reading: Reading, output: Path, *, skip_bad_rows: bool = False, embed: bool = False
) -> ImportReport:
    """Write what a reader reads to one Parquet file in the schema.

    Args:
        reading: From one of the ``read_...`` functions.
        output: Parquet file to write; it appears when it is complete, or not at all.
        skip_bad_rows: Go on with the good rows when there are bad ones.
        embed: Put the pictures into the file instead of their paths.

    Raises:
        DataError: There are bad rows and ``skip_bad_rows`` is off; the message names every one, and
            ``OUTPUT.problems.csv`` lists them for a spreadsheet. Or no good row is left.
        MissingExtra: pyarrow is not installed.
    """
    log = reading.log
    listing = output.with_name(output.name + ".problems.csv")
    listing.unlink(missing_ok=True)
    with FaceWriter(output, reading.audit) as writer:
        for record in reading.records:
            writer.write(_embedded(record) if embed else record)
        refused = bool(log.problems) and not skip_bad_rows
        if refused or writer.num_rows == 0:
            writer.discard()
    if log.problems or log.defects:
        write_text(listing, problems_csv([*log.problems, *log.defects]))
    if refused:
        raise DataError(_refusal(reading, writer.num_rows, listing))
    if writer.num_rows == 0:
        raise DataError(_nothing_left(reading))
    return ImportReport(
        reading.dataset,
        output,
        writer.num_rows,
        tuple(log.problems),
        tuple(log.defects),
        dict(log.filtered),
        reading.notes,
    )


def _embedded(record: FaceRecord) -> FaceRecord:
    if record.image is not None or record.path is None:
        return record
    return replace(record, image=Path(record.path).read_bytes(), path=None)


def _refusal(reading: Reading, good: int, listing: Path) -> str:
    problems = reading.log.problems
    rest = len(problems) - _TOLD
    ones = "good one" if good == 1 else "good ones"
    lines = [
        f"{reading.dataset}: {_bad_rows(problems)}, {good} {ones}; nothing was written.",
        *(f"  {problem}" for problem in problems[:_TOLD]),
        *([f"  ... and {rest} more problems in {listing}"] if rest > 0 else []),
        f"Correct them (all are listed for a spreadsheet in {listing}),",
        "or go on with the good rows only: --skip-bad-rows.",
    ]
    return "\n".join(lines)


def _bad_rows(problems: Sequence[RowProblem]) -> str:
    rows = {(problem.file, problem.row) for problem in problems}
    return f"{len(rows)} bad row{'s' if len(rows) != 1 else ''}"


def _nothing_left(reading: Reading) -> str:
    log = reading.log
    counts = {"bad rows": len(log.problems), "known defects": len(log.defects), **log.filtered}
    told = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    return f"{reading.dataset}: no usable row is left ({told or 'no rows were found'})"


def problems_csv(problems: Sequence[RowProblem]) -> str:
    """Bad rows as CSV text: file, row, column, value, reason."""
    text = io.StringIO()
    table = csv.DictWriter(text, ["file", "row", "column", "value", "reason"], lineterminator="\n")
    table.writeheader()
    for problem in problems:
        table.writerow({key: _harmless(cell) for key, cell in problem.to_dict().items()})
    return text.getvalue()


def _harmless(cell: str | int | None) -> str | int | None:
    """A cell that a spreadsheet does not take for a formula."""
    if isinstance(cell, str):
        return "'" + cell if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
    return cell


def pictures_below(root: Path) -> list[Path]:
    """Files below a folder, sorted by path, so that every machine reads them in the same order.

    Raises:
        DataError: There is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the folder the data set was unpacked to")
    return sorted(path for path in root.rglob("*") if path.is_file())


def is_picture(path: Path) -> bool:
    """True when the name ends like a picture's."""
    return path.suffix.lower() in IMAGE_SUFFIXES
