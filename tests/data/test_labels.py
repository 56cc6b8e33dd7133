"""Ages, dates and genders as people write them."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agelens.data.readers.labels import (
    DateSpan,
    LabelError,
    age_between,
    completed_years,
    parse_age,
    parse_date,
    parse_gender,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("34", (34, 34)),
        (34, (34, 34)),
        ("34.7", (34, 34)),
        ("34,5", (34, 34)),
        ("0", (0, 0)),
        ("20-29", (20, 29)),
        ("20 – 29", (20, 29)),
        ("20 to 29", (20, 29)),
        ("(25, 32)", (25, 32)),
        ("[8, 12]", (8, 12)),
        ("70+", (70, 100)),
        ("more than 70", (70, 100)),
        ("70 and over", (70, 100)),
        (">=60", (60, 100)),
        ("110+", (110, 110)),
    ],
)
def test_ages_and_ranges_are_read(text: object, expected: tuple[int, int]) -> None:
    assert parse_age(text) == expected


@pytest.mark.parametrize(
    "text", ["230", "-5", "old", "29-20", "20-290", "25,32", "1990-01-01", "1e2", "٣٤x"]
)
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(LabelError):
        parse_age(text)


@pytest.mark.parametrize(
    ("text", "formats", "first", "last"),
    [
        ("2019-05-31", (), date(2019, 5, 31), date(2019, 5, 31)),
        ("2019/05/31", (), date(2019, 5, 31), date(2019, 5, 31)),
        ("20190531", (), date(2019, 5, 31), date(2019, 5, 31)),
        ("31.05.2019", (), date(2019, 5, 31), date(2019, 5, 31)),
        ("2019-05-31T08:00:00", (), date(2019, 5, 31), date(2019, 5, 31)),
        ("2019:05:31 08:00:00", (), date(2019, 5, 31), date(2019, 5, 31)),
        ("2020-02", (), date(2020, 2, 1), date(2020, 2, 29)),
        ("2019", (), date(2019, 1, 1), date(2019, 12, 31)),
        ("05/06/2019", ("%d/%m/%Y",), date(2019, 6, 5), date(2019, 6, 5)),
        ("05/06/2019", ("%m/%d/%Y",), date(2019, 5, 6), date(2019, 5, 6)),
        ("June 2019", ("%B %Y",), date(2019, 6, 1), date(2019, 6, 30)),
    ],
)
def test_dates_are_read_as_the_days_they_may_be(
    text: str, formats: tuple[str, ...], first: date, last: date
) -> None:
    assert parse_date(text, formats) == (first, last)


def test_a_date_whose_day_and_month_can_be_swapped_needs_a_form() -> None:
    with pytest.raises(LabelError, match="can be swapped"):
        parse_date("05/06/2019")
    with pytest.raises(LabelError, match="no date"):
        parse_date("2019-13-01")
    with pytest.raises(LabelError, match="%d/%m/%Y"):
        parse_date("2019-05-31", ("%d/%m/%Y",))


days = st.dates(date(1900, 1, 1), date(2030, 12, 31))


@given(days, days)
@settings(deadline=None)
def test_completed_years_count_birthdays(birth: date, day: date) -> None:
    """Counted one by one; who is born on 29 February grows older on 1 March in common years."""
    if day < birth:
        birth, day = day, birth
    birthdays = 0
    for year in range(birth.year + 1, day.year + 1):
        try:
            birthday = birth.replace(year=year)
        except ValueError:
            birthday = date(year, 3, 1)
        birthdays += birthday <= day

    assert completed_years(birth, day) == birthdays


@given(days, st.integers(0, 400), days, st.integers(0, 400), st.integers(), st.integers())
@settings(deadline=None)
def test_the_age_of_every_possible_pair_of_days_is_inside(
    birth: date, birth_days: int, photo: date, photo_days: int, a: int, b: int
) -> None:
    births = DateSpan(birth, birth + timedelta(birth_days))
    photos = DateSpan(photo, photo + timedelta(photo_days))
    one = birth + timedelta(a % (birth_days + 1))
    other = photo + timedelta(b % (photo_days + 1))
    try:
        low, high = age_between(births, photos)
    except LabelError:
        assert photos.last < births.first or completed_years(births.first, photos.last) > 122
        return

    if one <= other:
        assert low <= completed_years(one, other) <= high


def test_a_photograph_older_than_the_person_is_refused() -> None:
    with pytest.raises(LabelError, match="swapped"):
        age_between(parse_date("2001-01-01"), parse_date("1999-01-01"))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("Female", "female"),
        ("F", "female"),
        (" woman ", "female"),
        ("W", "female"),
        ("male", "male"),
        ("M", "male"),
        ("", None),
        ("n/a", None),
        (float("nan"), None),
    ],
)
def test_usual_gender_words_are_read(word: object, expected: str | None) -> None:
    assert parse_gender(word, {}) == expected


def test_other_gender_words_need_a_meaning() -> None:
    for word in ("0", "1", "kvinna", "diverse"):
        with pytest.raises(LabelError, match="--gender-word"):
            parse_gender(word, {})

    assert parse_gender("Kvinna", {"kvinna": "female"}) == "female"
    assert parse_gender("diverse", {"diverse": None}) is None
    assert parse_gender("m", {"m": "female"}) == "female"
