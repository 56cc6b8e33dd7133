"""
AgeDB: everything is in the file name, ``id_Name_age_gender.jpg``; the name is the subject.

Moschoglou et al., "AgeDB: the first manually collected, in-the-wild age database", CVPRW 2017.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agelens.data.readers.reading import Reading, ReadingLog, is_picture, pictures_below
from agelens.data.schema import KNOWN_DATASETS, OLDEST_AGE, FaceRecord, RowProblem

_NAME: Final = re.compile(r"(\d+)_(.+)_(\d+)_([mf])", re.IGNORECASE)


def read_agedb(root: Path) -> Reading:
    """Read AgeDB as its authors publish it.

    Args:
        root: Folder with the pictures, at any depth.

    Raises:
        DataError: There is no such folder.
    """
    log = ReadingLog()
    return Reading("agedb", _rows(root, pictures_below(root), log), log)


def _rows(root: Path, files: list[Path], log: ReadingLog) -> Iterator[FaceRecord]:
    terms = KNOWN_DATASETS["agedb"]
    for path in files:
        if not is_picture(path):
            continue
        name = path.relative_to(root).as_posix()
        found = _NAME.fullmatch(path.stem)
        if found is None or int(found[3]) > OLDEST_AGE:
            log.problems.append(_problem(name, path.name, found))
            continue
        yield FaceRecord(
            dataset="agedb",
            source_file=name,
            path=str(path.resolve()),
            age_min=int(found[3]),
            age_max=int(found[3]),
            age_kind=terms.age_kind,
            gender="male" if found[4].lower() == "m" else "female",
            subject=found[2],
            licence=terms.licence,
            licence_class=terms.licence_class,
        )


def _problem(name: str, file: str, found: re.Match[str] | None) -> RowProblem:
    if found is None:
        return RowProblem(name, None, "file name", file, "expected id_Name_age_m.jpg or _f.jpg")
    return RowProblem(name, None, "age", found[3], f"no human age; expected 0..{OLDEST_AGE}")
