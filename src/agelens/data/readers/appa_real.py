"""
APPA-REAL: real ages, and apparent ages as the mean and spread of about 38 people's votes.

Agustsson et al., "Apparent and real age estimation in still images with deep residual regressors on
APPA-REAL database", FG 2017; gender and further labels by Clapés et al., CVPRW 2018.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agelens.data.readers.labels import LabelError, is_missing, parse_age, parse_gender
from agelens.data.readers.reading import Reading, ReadingLog
from agelens.data.schema import (
    KNOWN_DATASETS,
    OLDEST_AGE,
    AgeKind,
    FaceRecord,
    Gender,
    RowProblem,
    shorten,
)
from agelens.errors import ArgumentError, DataError

SPLITS: Final = {"train": "train", "valid": "val", "test": "test"}
_COLUMNS: Final = ("file_name", "num_ratings", "apparent_age_avg", "apparent_age_std", "real_age")


def read_appa_real(root: Path, *, age: AgeKind = "apparent", originals: bool = False) -> Reading:
    """Read APPA-REAL as its authors publish it.

    With ``age="apparent"`` the label is the mean vote, rounded to the nearest year, and ``age_std``
    the spread of the votes; with ``age="real"`` it is the real age, without a spread. The other age
    is kept as an audit column. Mixing both kinds in one training set teaches neither.

    Args:
        root: Folder with ``gt_avg_train.csv``, ``gt_avg_valid.csv``, ``gt_avg_test.csv`` and the
            folders ``train``, ``valid``, ``test``. Gender comes from ``allcategories_*.csv`` when
            these are there.
        age: Which age is the label.
        originals: Take the whole pictures instead of the authors' face crops (``_face.jpg``).

    Raises:
        DataError: There is no label file, or it lacks a column.
        ArgumentError: ``age`` is neither "real" nor "apparent".
    """
    if age not in ("real", "apparent"):
        raise ArgumentError(f"age must be 'real' or 'apparent', got {age!r}")
    parts = [part for part in SPLITS if (root / f"gt_avg_{part}.csv").is_file()]
    if not parts:
        raise DataError(
            f"{root}: no gt_avg_train.csv, gt_avg_valid.csv or gt_avg_test.csv here; name the "
            "folder 'appa-real-release'"
        )
    log = ReadingLog()
    people = {part: _categories(root / f"allcategories_{part}.csv", log) for part in parts}
    extra = {name: None for rows in people.values() for row in rows.values() for name in row}
    named = tuple(name for name in extra if name not in ("file", "gender"))
    audit = ("num_ratings", "real_age", "apparent_age", *named)
    without = [part for part in parts if not people[part]]
    notes = (f"no gender: allcategories_{without[0]}.csv is not there",) if without else ()
    rows = _rows(root, people, age, originals, log)
    return Reading("appa-real", rows, log, audit, notes)


def _categories(table: Path, log: ReadingLog) -> dict[str, dict[str, str]]:
    """Rows of the gender table by picture; empty when there is none."""
    if not table.is_file():
        return {}
    with open(table, encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle)
        missing = [name for name in ("file", "gender") if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{table} row 1: no column {missing[0]!r}, only {reader.fieldnames}")
        return {row["file"]: {k: v for k, v in row.items() if k} for row in reader}


def _rows(
    root: Path,
    people: dict[str, dict[str, dict[str, str]]],
    age: AgeKind,
    originals: bool,
    log: ReadingLog,
) -> Iterator[FaceRecord]:
    for part, categories in people.items():
        table = root / f"gt_avg_{part}.csv"
        with open(table, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{table} row 1: no column {missing[0]!r}")
            for number, row in enumerate(reader, start=2):
                picture = root / part / (row["file_name"] + ("" if originals else "_face.jpg"))
                problems: list[tuple[str, str, str]] = []
                record = _record(row, part, picture, age, categories, problems)
                log.problems += [
                    RowProblem(table.name, number, column, shorten(value), reason)
                    for column, value, reason in problems
                ]
                if record is not None:
                    yield record


def _record(
    row: dict[str, str],
    part: str,
    picture: Path,
    age: AgeKind,
    categories: dict[str, dict[str, str]],
    problems: list[tuple[str, str, str]],
) -> FaceRecord | None:
    person = categories.get(row["file_name"], {})
    if not picture.is_file():
        problems.append(("file_name", picture.name, f"no such picture in {part}/"))
    apparent = _years(row, "apparent_age_avg", problems)
    spread = _years(row, "apparent_age_std", problems)
    real = _real_age(row["real_age"], problems)
    gender = _gender(person, problems)
    if problems:
        return None
    years = real if age == "real" else math.floor(apparent + 0.5)
    terms = KNOWN_DATASETS["appa-real"]
    audit = {name: None if is_missing(v) else v for name, v in person.items()}
    audit.update(
        num_ratings=row["num_ratings"],
        real_age=row["real_age"],
        apparent_age=row["apparent_age_avg"],
    )
    audit.pop("file", None)
    audit.pop("gender", None)
    return FaceRecord(
        dataset="appa-real",
        source_file=f"{part}/{picture.name}",
        path=str(picture.resolve()),
        split=SPLITS[part],
        age_min=years,
        age_max=years,
        age_std=spread if age == "apparent" else None,
        age_kind=age,
        gender=gender,
        licence=terms.licence,
        licence_class=terms.licence_class,
        audit=audit,
    )


def _years(row: dict[str, str], column: str, problems: list[tuple[str, str, str]]) -> float:
    try:
        years = float(row[column])
    except (TypeError, ValueError):
        years = math.nan
    if not 0 <= years <= OLDEST_AGE:
        problems.append((column, str(row[column]), f"expected years, 0..{OLDEST_AGE}"))
    return years


def _real_age(value: str, problems: list[tuple[str, str, str]]) -> int:
    try:
        return parse_age(value)[0]
    except LabelError as error:
        problems.append(("real_age", value, str(error)))
        return 0


def _gender(person: dict[str, str], problems: list[tuple[str, str, str]]) -> Gender | None:
    try:
        return parse_gender(person.get("gender"), {})
    except LabelError as error:
        problems.append(("gender", person["gender"], f"{error} (in allcategories)"))
        return None
