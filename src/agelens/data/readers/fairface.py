"""
FairFace: label tables beside the pictures; nine age ranges, seven race groups.

Kärkkäinen and Joo, "FairFace: Face Attribute Dataset for Balanced Race, Gender, and Age for Bias
Measurement and Mitigation", WACV 2021.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agelens.data.readers.labels import LabelError, is_missing, parse_age, parse_gender
from agelens.data.readers.reading import Reading, ReadingLog
from agelens.data.schema import KNOWN_DATASETS, FaceRecord, RowProblem, shorten
from agelens.errors import DataError

LABEL_FILES: Final = ("fairface_label_train.csv", "fairface_label_val.csv")
_COLUMNS: Final = ("file", "age", "gender", "race")
_SPREADSHEET_DATE: Final = re.compile(r"[A-Za-z]{3,9}[- ]\d{1,4}|\d{1,2}[- ][A-Za-z]{3,9}")


def read_fairface(root: Path) -> Reading:
    """Read FairFace as its authors publish it.

    The authors' validation part becomes the split "val". "more than 70" is 70 to 100. The race
    labels and ``service_test`` are audit columns.

    Args:
        root: Folder with ``fairface_label_*.csv`` and, in it or one folder below, ``train/`` and
            ``val/``.

    Raises:
        DataError: There is no label file, or it lacks a column.
    """
    tables = [root / name for name in LABEL_FILES if (root / name).is_file()]
    if not tables:
        raise DataError(
            f"{root}: none of {', '.join(LABEL_FILES)} is here; name the folder that holds the "
            "label files and the unpacked pictures"
        )
    for table in tables:
        _check_header(table)
    log = ReadingLog()
    return Reading("fairface", _rows(root, tables, log), log, audit=("race", "service_test"))


def _check_header(table: Path) -> None:
    with open(table, encoding="utf-8-sig", newline="") as handle:
        header = next(csv.reader(handle), [])
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise DataError(f"{table} row 1: no column {missing[0]!r}, only {', '.join(header)}")


def _rows(root: Path, tables: list[Path], log: ReadingLog) -> Iterator[FaceRecord]:
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    for table in tables:
        with open(table, encoding="utf-8-sig", newline="") as handle:
            for number, row in enumerate(csv.DictReader(handle), start=2):
                record = _record(table, number, row, folders, log)
                if record is not None:
                    yield record


def _record(
    table: Path, number: int, row: dict[str, str], folders: list[Path], log: ReadingLog
) -> FaceRecord | None:
    file = row["file"] or ""
    picture = next((f / file for f in folders if file and (f / file).is_file()), None)
    problems = []
    if picture is None:
        problems.append(("file", file, "no such picture below the data set's folder"))
    try:
        low, high = parse_age(row["age"])
    except LabelError as error:
        problems.append(("age", row["age"], _age_reason(row["age"], str(error))))
    try:
        gender = parse_gender(row["gender"], {})
    except LabelError as error:
        problems.append(("gender", row["gender"], str(error)))
    if problems or picture is None:
        log.problems += [
            RowProblem(table.name, number, column, shorten(value), reason)
            for column, value, reason in problems
        ]
        return None
    terms = KNOWN_DATASETS["fairface"]
    audit = {k: None if is_missing(row.get(k)) else row[k] for k in ("race", "service_test")}
    return FaceRecord(
        dataset="fairface",
        source_file=file,
        path=str(picture.resolve()),
        split=file.split("/")[0] or None,
        age_min=low,
        age_max=high,
        age_kind=terms.age_kind,
        gender=gender,
        licence=terms.licence,
        licence_class=terms.licence_class,
        audit=audit,
    )


def _age_reason(value: str, reason: str) -> str:
    if _SPREADSHEET_DATE.fullmatch((value or "").strip()):
        return "a spreadsheet turned this range into a date; use the label file as published"
    return reason
