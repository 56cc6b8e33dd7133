"""
A folder tree whose folder names are the labels, such as ``ROOT/20-29/female/anna.jpg``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agelens.data.readers.labels import LabelError, is_missing, parse_age, parse_gender
from agelens.data.readers.reading import Reading, ReadingLog, is_picture, pictures_below
from agelens.data.schema import (
    CORE_COLUMNS,
    AgeKind,
    FaceRecord,
    Gender,
    LicenceClass,
    RowProblem,
    shorten,
)
from agelens.errors import ArgumentError

_LEVELS = ("age", "gender", "subject", "split", "-")


def read_tree(
    root: Path,
    *,
    layout: str = "age/gender",
    dataset: str | None = None,
    gender_words: Mapping[str, Gender | None] | None = None,
    age_kind: AgeKind = "real",
    licence: str | None = None,
    licence_class: LicenceClass | None = None,
) -> Reading:
    """Read pictures whose folders are named after their labels.

    Args:
        root: Top of the tree.
        layout: What the folders mean from the top down: "age" (34, 20-29 or 70+), "gender",
            "subject", "split", "-" for a folder that means nothing; any other word is the name of
            an audit column. Deeper folders are allowed and mean nothing.
        dataset: Name to give the data set; None takes the folder's name.
        gender_words: Further folder names for gender.
        age_kind: "real" for ages from records, "apparent" for ages people estimated.
        licence: Licence of the pictures in words.
        licence_class: "commercial" or "research"; None when not stated.

    Raises:
        DataError: There is no such folder.
        ArgumentError: The layout is empty or names a level twice.
    """
    levels = [level.strip() for level in layout.split("/") if level.strip()]
    named = [level for level in levels if level != "-"]
    if not named or len(set(named)) != len(named):
        raise ArgumentError(f"a layout is like age/gender with each level once, got {layout!r}")
    audit = tuple(level for level in named if level not in _LEVELS)
    taken = [level for level in audit if level in CORE_COLUMNS]
    if taken:
        raise ArgumentError(f"a folder level cannot be {taken[0]!r}; expected {', '.join(_LEVELS)}")
    log = ReadingLog()
    name = dataset or root.resolve().name
    words = {word.lower(): gender for word, gender in (gender_words or {}).items()}
    common: dict[str, Any] = {
        "dataset": name,
        "age_kind": age_kind if "age" in levels else None,
        "licence": licence,
        "licence_class": licence_class,
    }
    rows = _rows(root, levels, pictures_below(root), words, common, log)
    return Reading(name, rows, log, audit)


def _rows(
    root: Path,
    levels: list[str],
    files: list[Path],
    words: Mapping[str, Gender | None],
    common: dict[str, Any],
    log: ReadingLog,
) -> Iterator[FaceRecord]:
    for path in files:
        if not is_picture(path):
            log.filtered["not a picture by its name"] += 1
            continue
        name = path.relative_to(root).as_posix()
        folders = path.relative_to(root).parts[:-1]
        if len(folders) < len(levels):
            wanted = "/".join(f"<{level}>" for level in levels)
            reason = f"lies too high in the tree; expected {wanted}/{path.name}"
            log.problems.append(RowProblem(name, None, "folder", name, reason))
            continue
        given = dict(zip(levels, folders, strict=False))
        labels, problems = _labels(given, words)
        log.problems += [
            RowProblem(name, None, level, shorten(given[level]), reason)
            for level, reason in problems
        ]
        if not problems:
            yield FaceRecord(source_file=name, path=str(path.resolve()), **common, **labels)


def _labels(
    given: dict[str, str], words: Mapping[str, Gender | None]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Record fields of the folder names, and what is wrong with them as level and reason."""
    labels: dict[str, Any] = {"audit": {k: v for k, v in given.items() if k not in _LEVELS}}
    problems = []
    if "age" in given and not is_missing(given["age"]):
        try:
            labels["age_min"], labels["age_max"] = parse_age(given["age"])
        except LabelError as error:
            problems.append(("age", str(error)))
    if "gender" in given:
        try:
            labels["gender"] = parse_gender(given["gender"], words)
        except LabelError as error:
            problems.append(("gender", str(error)))
    for level in ("subject", "split"):
        if level in given:
            labels[level] = given[level]
    return labels, problems
