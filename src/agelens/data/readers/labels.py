"""
What people write for ages, dates and genders, turned into intervals and words of the schema.

Nothing is guessed: a text that can mean two things is refused with what to do about it.
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Final, NamedTuple

from agelens.data.schema import OLDEST_AGE, OPEN_AGE, Gender

MISSING_WORDS: Final = frozenset(
    {"", "-", "?", "na", "n/a", "nan", "none", "null", "nil", "unknown", "unk", "not known"}
)
"""Cells that mean "not labelled"."""

GENDER_WORDS: Final[Mapping[str, Gender]] = {
    "female": "female",
    "f": "female",
    "woman": "female",
    "girl": "female",
    "w": "female",
    "male": "male",
    "m": "male",
    "man": "male",
    "boy": "male",
}

_NUMBER: Final = re.compile(r"[+-]?\d+(?:\.\d+|,\d)?")
_RANGE: Final = re.compile(
    r"[\[(]?\s*(\d{1,4})\s*(?:-|–|—|to|bis|\.\.)\s*(\d{1,4})\s*[\])]?"
    r"|[\[(]\s*(\d{1,4})\s*,\s*(\d{1,4})\s*[\])]",
    re.IGNORECASE,
)
_OPEN: Final = re.compile(
    r"(?:more than|over|older than|>=?|from)\s*(\d{1,3})(?:\s*(?:years)?)"
    r"|(\d{1,3})\s*(?:\+|and over|and older|or more|or older|plus)",
    re.IGNORECASE,
)
_DATE_FORMATS: Final = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%Y%m%d",
    "%d.%m.%Y",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
    "%Y:%m:%d %H:%M:%S",
    "%Y-%m",
    "%Y",
)
_TWO_WAYS: Final = re.compile(r"\d{1,2}/\d{1,2}/\d{2,4}|\d{1,2}-\d{1,2}-\d{2,4}")


class LabelError(ValueError):
    """A text that is no label; the message says what is expected."""


class DateSpan(NamedTuple):
    """The days a date may be: one day, or the whole month or year that was written."""

    first: date
    last: date


def is_missing(value: object) -> bool:
    """True for None, NaN and the words for "not labelled"."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return str(value).strip().lower() in MISSING_WORDS


def parse_age(value: object) -> tuple[int, int]:
    """Age or range in completed years, both ends included.

    Reads ``34``, ``34.7`` (34 completed years), ``20-29``, ``(25, 32)``, ``70+``, ``more than 70``.

    Raises:
        LabelError: It is none of these, or outside 0..122.
    """
    text = str(value).strip()
    if _NUMBER.fullmatch(text):
        years = float(text.replace(",", "."))
        return _checked(math.floor(years), math.floor(years))
    found = _RANGE.fullmatch(text)
    if found:
        return _checked(int(found[1] or found[3]), int(found[2] or found[4]))
    found = _OPEN.fullmatch(text)
    if found:
        low = int(found[1] or found[2])
        return _checked(low, max(low, OPEN_AGE))
    raise LabelError("no age; expected years such as 34, a range such as 20-29, or 70+")


def _checked(low: int, high: int) -> tuple[int, int]:
    for age in (low, high):
        if not 0 <= age <= OLDEST_AGE:
            raise LabelError(f"no human age; expected 0..{OLDEST_AGE} completed years")
    if low > high:
        raise LabelError(f"the range ends at {high}, before it starts at {low}")
    return low, high


def parse_date(value: object, formats: Sequence[str] = ()) -> DateSpan:
    """A day, or all days of the month or year that is written.

    Without formats, reads year first (2019-05-31, 2019/05/31, 20190531, 2019-05, 2019, with or
    without a time) and German 31.05.2019. Day and month of 05/06/2019 can be swapped, so such dates
    need a format.

    Args:
        value: Text, ``date`` or ``datetime``.
        formats: ``strptime`` patterns; when given, only these are read.

    Raises:
        LabelError: It is no such date.
    """
    if isinstance(value, datetime):
        return DateSpan(value.date(), value.date())
    if isinstance(value, date):
        return DateSpan(value, value)
    text = str(value).strip()
    for pattern in formats or _DATE_FORMATS:
        try:
            day = datetime.strptime(text, pattern).date()
        except ValueError:
            continue
        return _span(day, pattern)
    if not formats and _TWO_WAYS.fullmatch(text):
        raise LabelError(
            "day and month can be swapped in this date; state its form, for example "
            "--date-format '%d/%m/%Y' or '%m/%d/%Y'"
        )
    expected = " or ".join(repr(f) for f in formats) or "a date such as 2019-05-31, 2019-05 or 2019"
    raise LabelError(f"no date; expected {expected}")


def _span(day: date, pattern: str) -> DateSpan:
    if "%d" in pattern or "%j" in pattern or "%x" in pattern or "%c" in pattern:
        return DateSpan(day, day)
    if any(code in pattern for code in ("%m", "%b", "%B")):
        return DateSpan(day, day.replace(day=calendar.monthrange(day.year, day.month)[1]))
    return DateSpan(day, day.replace(month=12, day=31))


def age_between(birth: DateSpan, photo: DateSpan) -> tuple[int, int]:
    """Completed years from birth to photograph: an interval when a date is only a year or month.

    Raises:
        LabelError: The photograph is older than the person, or the age is over 122.
    """
    if photo.last < birth.first:
        raise LabelError(
            f"the photograph ({photo.last.isoformat()}) is older than the person "
            f"({birth.first.isoformat()}); are the two columns swapped?"
        )
    low = max(0, completed_years(birth.last, photo.first))
    high = completed_years(birth.first, photo.last)
    if high > OLDEST_AGE:
        raise LabelError(f"these dates give {high} years; expected 0..{OLDEST_AGE}")
    return low, high


def completed_years(birth: date, day: date) -> int:
    """Birthdays reached from birth to a day; negative before birth."""
    return day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day))


def parse_gender(value: object, words: Mapping[str, Gender | None]) -> Gender | None:
    """Perceived gender of a word, in any case; None for "not labelled".

    Args:
        value: The cell.
        words: Further words in lower case, before the usual English ones; None leaves unlabelled.

    Raises:
        LabelError: The word is unknown. Numbers are: data sets disagree on which is which.
    """
    word = str(value).strip().lower()
    if word in words:
        return words[word]
    if is_missing(value):
        return None
    if word in GENDER_WORDS:
        return GENDER_WORDS[word]
    raise LabelError(
        f"unknown gender word; say what it means, for example --gender-word '{word}=female', or "
        f"--gender-word '{word}=none' to leave such rows without gender"
    )
