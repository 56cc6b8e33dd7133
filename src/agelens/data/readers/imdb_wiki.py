"""
IMDB-WIKI: half a million pictures of actors and of people on Wikipedia, with Matlab metadata.

Rothe, Timofte and Van Gool, "Deep expectation of real and apparent age from a single image without
facial landmarks", IJCV 2018. The labels were crawled, not checked: clean them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal

from agelens.data.readers.labels import DateSpan, completed_years
from agelens.data.readers.reading import Reading, ReadingLog
from agelens.data.schema import KNOWN_DATASETS, OLDEST_AGE, FaceRecord, Gender, RowProblem
from agelens.errors import ArgumentError, DataError, MissingExtra

_MATLAB_YEAR_ZERO: Final = 366
"""Days from Matlab's day 1 (1 January of the year 0) to Python's (1 January of the year 1)."""


@dataclass(frozen=True)
class Cleaning:
    """Which rows to keep; the defaults are the usual ones for training.

    Attributes:
        min_face_score: Least score of the authors' face detector. Minus infinity means that it
            found no face, and the "crop" is the whole picture.
        max_second_face_score: Most score of a second face in the picture, which may be the one the
            labels mean. None keeps only pictures in which no second face was found.
        min_age: Lowest age kept.
        max_age: Highest age kept; wrong dates give ages from below 0 to some 2000.
        need_gender: Drop rows without gender instead of leaving it unlabelled.
        age: "midyear" takes the picture as taken on 1 July, as its authors do; "interval" keeps
            both ages that a year of taking allows.
    """

    min_face_score: float = 1.0
    max_second_face_score: float | None = None
    min_age: int = 0
    max_age: int = 100
    need_gender: bool = False
    age: Literal["midyear", "interval"] = "midyear"

    def __post_init__(self) -> None:
        if not 0 <= self.min_age <= self.max_age <= OLDEST_AGE:
            raise ArgumentError(
                f"ages must rise within 0..{OLDEST_AGE}, got {self.min_age} and {self.max_age}"
            )
        if self.age not in ("midyear", "interval"):
            raise ArgumentError(f"age must be 'midyear' or 'interval', got {self.age!r}")


def read_imdb_wiki(root: Path, *, cleaning: Cleaning | None = None) -> Reading:
    """Read ``imdb_crop`` or ``wiki_crop`` as their authors publish them.

    The pictures are the authors' crops, so ``face_location``, which means the uncropped picture, is
    not taken over. The person is the subject. Rows that cleaning leaves out are counted by reason.

    Args:
        root: Folder with ``imdb.mat`` or ``wiki.mat`` and the numbered folders.
        cleaning: Which rows to keep; None for the defaults.

    Raises:
        DataError: There is no metadata, or it is not as published.
        MissingExtra: scipy is not installed.
    """
    rules = cleaning or Cleaning()
    found = [name for name in ("imdb", "wiki") if (root / f"{name}.mat").is_file()]
    if len(found) != 1:
        raise DataError(
            f"{root}: expected one of imdb.mat and wiki.mat here, found {len(found)}; name the "
            "folder imdb_crop or wiki_crop"
        )
    metadata = load_metadata(root / f"{found[0]}.mat")
    log = ReadingLog()
    return Reading(
        found[0], _rows(root, found[0], metadata, rules, log), log, audit=("face_score",)
    )


def load_metadata(file: Path) -> dict[str, list[Any]]:
    """Fields of the Matlab struct, each as a list with one item a picture.

    Raises:
        DataError: It is no such file, or lacks a field.
        MissingExtra: scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingExtra("eval", "reading the metadata of IMDB-WIKI") from error
    try:
        struct = loadmat(file, squeeze_me=True, struct_as_record=False)[file.stem]
    except (ValueError, NotImplementedError, KeyError, OSError) as error:
        raise DataError(f"{file}: is not the metadata as published: {error}") from error
    needed = (
        "dob",
        "photo_taken",
        "full_path",
        "gender",
        "name",
        "face_score",
        "second_face_score",
    )
    missing = [name for name in needed if name not in getattr(struct, "_fieldnames", ())]
    if missing:
        raise DataError(f"{file}: the struct {file.stem!r} has no field {missing[0]!r}")
    names = [*needed, "celeb_id"] if "celeb_id" in struct._fieldnames else list(needed)
    fields = {name: _as_list(getattr(struct, name)) for name in names}
    lengths = {len(values) for values in fields.values()}
    if len(lengths) != 1:
        raise DataError(f"{file}: the fields have {sorted(lengths)} items, expected as many each")
    return fields


def _as_list(value: Any) -> list[Any]:
    # One picture alone is squeezed to a scalar.
    return list(value) if getattr(value, "ndim", 0) == 1 else [value]


def _rows(
    root: Path, dataset: str, fields: dict[str, list[Any]], rules: Cleaning, log: ReadingLog
) -> Iterator[FaceRecord]:
    terms = KNOWN_DATASETS[dataset]
    for number, full_path in enumerate(fields["full_path"]):
        row = {name: values[number] for name, values in fields.items()}
        reason, ages = _judge(row, rules)
        if reason is not None or ages is None:
            log.filtered[reason or "no age"] += 1
            continue
        picture = root / str(full_path)
        if not picture.is_file():
            log.problems.append(
                RowProblem(
                    f"{dataset}.mat", number, "full_path", str(full_path), "no such picture here"
                )
            )
            continue
        subject = row.get("celeb_id", row["name"])
        yield FaceRecord(
            dataset=dataset,
            source_file=str(full_path),
            path=str(picture.resolve()),
            age_min=ages[0],
            age_max=ages[1],
            age_kind=terms.age_kind,
            gender=_gender(row["gender"]),
            subject=_subject(subject),
            licence=terms.licence,
            licence_class=terms.licence_class,
            audit={"face_score": f"{float(row['face_score']):.3f}"},
        )


def _judge(row: dict[str, Any], rules: Cleaning) -> tuple[str | None, tuple[int, int] | None]:
    """Why a row is left out, or its ages."""
    score, second = float(row["face_score"]), float(row["second_face_score"])
    if math.isinf(score) or math.isnan(score):
        return "no face found by the authors", None
    if score < rules.min_face_score:
        return f"face score under {rules.min_face_score:g}", None
    limit = rules.max_second_face_score
    if not math.isnan(second) and (limit is None or second > limit):
        return "a second face in the picture", None
    if rules.need_gender and _gender(row["gender"]) is None:
        return "no gender", None
    ages = _ages(row["dob"], row["photo_taken"], rules.age)
    if ages is None:
        return "impossible birth date", None
    if not (rules.min_age <= ages[0] and ages[1] <= rules.max_age):
        return f"age outside {rules.min_age}..{rules.max_age}", None
    return None, ages


def _ages(dob: Any, photo_taken: Any, kind: str) -> tuple[int, int] | None:
    birth = from_datenum(float(dob))
    year = int(photo_taken)
    if birth is None or not 1 <= year <= 9999:
        return None
    if kind == "midyear":
        age = completed_years(birth, date(year, 7, 1))
        return age, age
    taken = DateSpan(date(year, 1, 1), date(year, 12, 31))
    return completed_years(birth, taken.first), completed_years(birth, taken.last)


def from_datenum(number: float) -> date | None:
    """Day of a Matlab serial date number; None when it is before the year 1 or after 9999."""
    if not math.isfinite(number):
        return None
    ordinal = math.floor(number) - _MATLAB_YEAR_ZERO
    return date.fromordinal(ordinal) if 1 <= ordinal <= date.max.toordinal() else None


def _gender(value: Any) -> Gender | None:
    number = float(value)
    if math.isnan(number):
        return None
    return "male" if number == 1 else "female"


def _subject(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    return None if getattr(value, "size", 1) == 0 else str(int(value))
