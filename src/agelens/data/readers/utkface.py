"""
UTKFace: everything is in the file name, ``[age]_[gender]_[race]_[date].jpg``.

Zhang, Song and Qi, "Age Progression/Regression by Conditional Adversarial Autoencoder", CVPR 2017.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agelens.data.readers.reading import Reading, ReadingLog, is_picture, pictures_below
from agelens.data.schema import KNOWN_DATASETS, OLDEST_AGE, FaceRecord, Gender, RowProblem

RACES: Final = ("White", "Black", "Asian", "Indian", "Others")
_GENDERS: Final[tuple[Gender, Gender]] = ("male", "female")

_NAME: Final = re.compile(r"(\d{1,3})_([01])_([0-4])_(\d{8,17})(?:jpg)?(?:\.\w+)*", re.IGNORECASE)
_KNOWN_DEFECTS: Final = (
    "61_1_20170109142408075",
    "61_1_20170109150557335",
    "61_3_20170109150557335",
    "39_1_20170116174525125",
    "53__0_20170116184028385",
)
"""Published names that lack a field; which one is not told, so none is filled in."""


def read_utkface(root: Path) -> Reading:
    """Read UTKFace as its authors publish it: aligned and cropped, or the parts in the wild.

    Names that lack the race or gender field are a known defect of the set: they are reported and
    left out. Any other name that does not fit is a bad row.

    Args:
        root: Folder with the pictures, at any depth.

    Raises:
        DataError: There is no such folder.
    """
    log = ReadingLog()
    return Reading("utkface", _rows(root, pictures_below(root), log), log, audit=("race",))


def _rows(root: Path, files: list[Path], log: ReadingLog) -> Iterator[FaceRecord]:
    terms = KNOWN_DATASETS["utkface"]
    for path in files:
        if not (is_picture(path) or path.name[:1].isdigit()):
            continue
        name = path.relative_to(root).as_posix()
        found = _NAME.fullmatch(path.name.replace(" ", ""))
        problem = _problem(path.name, name, found)
        if problem is not None:
            known = path.name.startswith(_KNOWN_DEFECTS)
            (log.defects if known else log.problems).append(problem)
            continue
        assert found is not None
        yield FaceRecord(
            dataset="utkface",
            source_file=name,
            path=str(path.resolve()),
            age_min=int(found[1]),
            age_max=int(found[1]),
            age_kind=terms.age_kind,
            gender=_GENDERS[int(found[2])],
            licence=terms.licence,
            licence_class=terms.licence_class,
            audit={"race": RACES[int(found[3])]},
        )


def _problem(file: str, name: str, found: re.Match[str] | None) -> RowProblem | None:
    if found is None:
        return RowProblem(
            name,
            None,
            "file name",
            file,
            "expected [age]_[gender 0 or 1]_[race 0 to 4]_[date].jpg; a field is missing or wrong",
        )
    if int(found[1]) > OLDEST_AGE:
        return RowProblem(name, None, "age", found[1], f"no human age; expected 0..{OLDEST_AGE}")
    return None
