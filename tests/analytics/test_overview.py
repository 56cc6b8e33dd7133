"""What is told of a period is right by the site's clocks, and tells of nobody in particular."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agelens.analytics.lots import Lots, blocks
from agelens.analytics.overview import Overview, overview
from agelens.analytics.period import Period, SiteClock
from agelens.analytics.presence import Selection
from agelens.analytics.profile import find_confusion
from agelens.analytics.records import Site, WatchedMinute, milliseconds
from agelens.analytics.store import Store, open_store
from agelens.errors import ArgumentError
from agelens.video.visit import VISIT_BANDS, Visit
from analytics.people import visit

BERLIN = ZoneInfo("Europe/Berlin")
SPRING = date(2026, 3, 29)  # the clocks go from 2:00 to 3:00
AUTUMN = date(2026, 10, 25)  # and from 3:00 back to 2:00
K = 5


def public(count: int, first: date, days: int, *, seed: int = 0) -> list[Visit]:
    """So many visitors at any time of so many days, at two cameras; some are staff."""
    rng = np.random.default_rng(seed)
    start = datetime(first.year, first.month, first.day, tzinfo=BERLIN).astimezone(UTC)
    seconds = np.sort(rng.integers(0, days * 86_400, count)).tolist()
    return [
        visit(n, at=start + timedelta(seconds=s), seed=seed, staff=n % 17 == 16)
        for n, s in enumerate(seconds)
    ]


def counted(visits: list[Visit], period: Period) -> list[datetime]:
    """Beginnings of the visits that count, by the site's clocks."""
    local = [one.start.astimezone(period.zone) for one in visits if not one.staff]
    return [at for at in local if period.first <= at.date() <= period.last]


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, list[Visit]]]:
    """Three weeks around the change of the clocks, and those before."""
    visits = public(3000, date(2026, 3, 1), 35)
    path = tmp_path_factory.mktemp("month") / "visits.sqlite"
    with open_store(path) as store:
        store.set_site(Site("museum", "Europe/Berlin"))
        store.add(visits)
        yield store, visits


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "visits.sqlite") as opened:
        yield opened


def told(store: Store, period: Period, minimum: int = K, **given_: object) -> Overview:
    """An overview without the correction, which takes its time."""
    found: Overview = overview(
        store,
        period,
        minimum=minimum,
        confusions=lambda _: None,
        **given_,  # type: ignore[arg-type]
    )
    return found


def sums(counts: Iterator[int | None]) -> int:
    return sum(count or 0 for count in counts)


# --- lots -----------------------------------------------------------------------------------------


def consistent(shown: list[int], minimum: int) -> list[tuple[int, ...]]:
    """All counts of up to three steps that could have been shown so, from any beginning."""
    found = []
    for counts in itertools.product(range(3 * minimum), repeat=len(shown)):
        for phase in range(minimum):
            total, steps = phase, []
            for count in counts:
                steps.append(minimum * ((total + count) // minimum - total // minimum))
                total += count
            if steps == shown:
                found.append(counts)
    return found


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=3), st.integers(0, 99))
def test_no_stretch_of_a_running_total_can_be_told_closer_than_a_lot(
    counts: list[int], seed: int
) -> None:
    minimum = 3
    shown = Lots(bytes([seed]), minimum).steps(np.array(counts), "visitors").tolist()

    possible = consistent(shown, minimum)
    assert tuple(counts) in possible
    for start, end in itertools.combinations(range(len(counts) + 1), 2):
        values = {sum(one[start:end]) for one in possible}
        assert max(values) - min(values) >= minimum - 1
        lots = sum(shown[start:end])
        assert min(values) == max(0, lots - minimum + 1)
        assert sum(counts[start:end]) <= lots + minimum - 1


def test_rounding_is_even_handed_and_the_same_whenever_it_is_asked() -> None:
    lots = Lots(b"secret", K)
    names = [f"camera {number}" for number in range(4000)]
    found = [lots.between(10, 12, name) for name in names]

    assert found == [Lots(b"secret", K).between(10, 12, name) for name in names]
    assert found != [Lots(b"other", K).between(10, 12, name) for name in names]
    assert set(found) == {0, K}
    assert np.mean(found) == pytest.approx(2, abs=0.2)


def test_of_a_month_that_is_being_deleted_whole_weeks_and_days_are_left() -> None:
    found = [one.name for one in blocks(date(2026, 2, 27), date(2026, 4, 2), date(2026, 3, 12))]

    days = [f"2026-02-{day}" for day in (27, 28)] + [f"2026-03-{day:02d}" for day in range(1, 16)]
    weeks = ["2026-W12", "2026-W13"]
    assert found == [*days, *weeks, "2026-03-30", "2026-03-31", "2026-04"]


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [SPRING - timedelta(days=6), date(2026, 3, 9)])
def test_hours_days_and_weekdays_are_those_of_the_sites_clocks(
    month: tuple[Store, list[Visit]], first: date
) -> None:
    store, visits = month
    period = Period(first, first + timedelta(days=6), BERLIN)
    found = told(store, period, minimum=1)

    local = counted(visits, period)
    assert found.visitors == len(local) > 300
    by_hour = Counter(at.hour for at in local)
    assert [one.visitors for one in found.hours] == [by_hour[hour] for hour in range(24)]
    by_day = Counter(at.date() for at in local)
    assert [one.visitors for one in found.days] == [by_day[one.day] for one in found.days]
    cells = Counter((at.weekday(), at.hour) for at in local)
    for weekday, row in enumerate(found.heat):
        assert [one.visitors for one in row] == [cells[weekday, hour] for hour in range(24)]


def test_the_hour_that_comes_twice_holds_the_visitors_of_both(store: Store) -> None:
    start = datetime(2026, 10, 25, 0, 5, tzinfo=UTC)  # 2:05 by the clocks, and again an hour later
    store.add([visit(n, at=start + timedelta(hours=n)) for n in range(2)])
    found = told(store, Period(AUTUMN, AUTUMN, BERLIN), minimum=1)

    assert found.hours[2].visitors == 2
    assert found.hours[2].open_hours == 2
    assert any("the day has 25 hours" in note for note in found.notes)


def test_the_hour_that_is_skipped_was_never_open(month: tuple[Store, list[Visit]]) -> None:
    found = told(month[0], Period(SPRING, SPRING, BERLIN))

    assert [one.open_hours for one in found.hours] == [1, 1, 0, *[1] * 21]
    assert any("Sunday 29 March" in note and "23 hours" in note for note in found.notes)


def test_each_site_has_its_own_clocks(store: Store) -> None:
    at = datetime(2026, 3, 10, 22, 30, tzinfo=UTC)  # 23:30 in Berlin, 18:30 in New York
    store.set_site(Site("museum", "Europe/Berlin"))
    store.set_site(Site("shop", "America/New_York"))
    store.add([visit(0, at=at), visit(0, at=at, site="shop")])
    found = told(store, Period(date(2026, 3, 10), date(2026, 3, 10), BERLIN), minimum=1)

    assert found.visitors == 2
    assert (found.hours[23].visitors, found.hours[18].visitors) == (1, 1)
    assert [one.zone for one in found.sites] == ["Europe/Berlin", "America/New_York"]


def test_all_counts_are_lots_that_add_up_and_are_off_by_less_than_one_a_camera(
    month: tuple[Store, list[Visit]],
) -> None:
    store, visits = month
    period = Period(date(2026, 3, 2), date(2026, 3, 29), BERLIN)
    found = told(store, period)

    truth = counted(visits, period)
    assert found.visitors is not None
    assert abs(found.visitors - len(truth)) <= 2 * (K - 1)
    assert found.visitors != len(truth)
    parts = {
        "hours": [one.visitors for one in found.hours],
        "days": [one.visitors for one in found.days],
        "heat": [one.visitors for row in found.heat for one in row],
        "cameras": [one.visitors for one in found.cameras],
        "sites": [one.visitors for one in found.sites],
    }
    for counts in parts.values():
        assert sums(iter(counts)) == found.visitors
        assert all(count is None or (count % K == 0 and count > 0) for count in counts)
    groups = [one.visitors for one in (*found.profile.age, *found.profile.joint)]
    assert all(count is None or count % K == 0 for count in groups)


def test_subtracting_periods_and_cameras_tells_nothing_that_is_not_shown_already(
    month: tuple[Store, list[Visit]],
) -> None:
    store, _ = month
    first = date(2026, 3, 10)
    days = [told(store, Period(first + timedelta(days=n), first + timedelta(days=n), BERLIN))
            for n in range(8)]  # fmt: skip
    for begin, end in itertools.combinations(range(8), 2):
        period = Period(first + timedelta(days=begin), first + timedelta(days=end), BERLIN)
        shown = sums(one.visitors for one in days[begin : end + 1])
        assert told(store, period).visitors == shown
    week = Period(first, first + timedelta(days=6), BERLIN)
    whole = told(store, week)
    for part in whole.cameras:
        alone = told(store, week, selection=Selection(cameras=(part.camera,)))
        assert alone.visitors == part.visitors
        hours = [one.visitors for one in alone.hours]
        assert sums(iter(hours)) == part.visitors
    for one in days[:7]:
        on_day = next(day for day in whole.days if day.day == one.period.first)
        assert on_day.visitors == one.visitors


def test_age_groups_of_periods_that_differ_by_a_day_differ_by_whole_lots(
    month: tuple[Store, list[Visit]],
) -> None:
    store, _ = month
    long = told(store, Period(date(2026, 3, 3), date(2026, 3, 24), BERLIN)).profile
    short = told(store, Period(date(2026, 3, 3), date(2026, 3, 23), BERLIN)).profile

    for one, other in zip((*long.age, *long.joint), (*short.age, *short.joint), strict=True):
        assert ((one.visitors or 0) - (other.visitors or 0)) % K == 0
    assert long.age[0].raw is not None
    assert long.age[0].raw.value * (long.visitors or 0) == pytest.approx(long.age[0].visitors)


def test_what_is_shown_does_not_change_when_the_store_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "visits.sqlite"
    period = Period(date(2026, 3, 2), date(2026, 3, 8), BERLIN)
    now = datetime(2026, 4, 1, tzinfo=UTC)
    with open_store(path) as store:
        store.add(public(300, date(2026, 3, 1), 10))
        before = told(store, period, now=now)
    with open_store(path, read_only=True) as store:
        assert told(store, period, now=now) == before


def test_a_day_that_is_not_over_is_compared_with_the_same_hours_of_a_week_ago(
    store: Store,
) -> None:
    now = datetime(2026, 3, 17, 13, 30, tzinfo=BERLIN)
    today = [now - timedelta(hours=h, minutes=45) for h in range(4)]  # at 12:45 and before
    last_week = [now - timedelta(days=7, hours=h) for h in range(-6, 2)]  # 12:30, and until 19:30
    store.add([visit(n, at=at) for n, at in enumerate((*today, now, *last_week))])
    found = told(store, Period(now.date(), now.date(), BERLIN), minimum=1, now=now)

    assert found.is_running
    assert found.visitors == 5
    assert found.week_before is not None
    assert (found.week_before.now, found.week_before.before) == (4, 1)
    assert found.week_before.change == 3


def test_stays_and_attention_are_means_and_hidden_behind_few_visitors(store: Store) -> None:
    at = datetime(2026, 3, 10, 12, tzinfo=UTC)
    many = [
        visit(2 * n, at=at + timedelta(minutes=n), seconds=30.0 + n, attentive_seconds=10.0)
        for n in range(60)
    ]
    store.add([*many, visit(1, at=at)])
    found = told(store, Period(at.date(), at.date(), BERLIN))

    busy, quiet = found.cameras
    assert busy.stay.seconds == pytest.approx(np.mean([one.seconds for one in many]), abs=0.5)
    assert busy.stay.attentive_seconds == 10
    assert quiet.visitors in (None, K)
    assert (quiet.stay.seconds, quiet.stay.attentive_share) == (None, None)


def test_zones_and_lines_are_counted_and_a_zone_can_be_chosen(
    month: tuple[Store, list[Visit]],
) -> None:
    store, visits = month
    period = Period(date(2026, 3, 2), date(2026, 3, 15), BERLIN)
    exact = told(store, period, minimum=1)

    kept = [one for one in visits if not one.staff]
    inside = [one for one in kept if period.start <= one.start < period.end]
    here = [one for one in inside if one.camera == "door-1"]
    screen = next(z for z in exact.zones if (z.camera, z.zone) == ("door-1", "screen"))
    assert screen.visitors == len(here)
    stays = [stay.seconds for one in here for stay in one.stays if stay.zone == "screen"]
    assert screen.seconds == pytest.approx(np.mean(stays), abs=0.06)
    line = next(one for one in exact.lines if one.camera == "door-1")
    assert (line.entered, line.left) == (len(here), len(here))
    lots = told(store, period)
    chosen = told(store, period, selection=Selection(zone="screen"))
    assert chosen.visitors == sums(z.visitors for z in lots.zones if z.zone == "screen")
    assert chosen.profile.age == ()
    assert "not by zone" in chosen.profile.reason


# --- profile --------------------------------------------------------------------------------------


def test_shares_of_one_model_are_corrected_by_what_it_confuses(
    month: tuple[Store, list[Visit]], tmp_path: Path
) -> None:
    period = Period(date(2026, 3, 2), date(2026, 3, 8), BERLIN)
    with open_store(tmp_path / "one.sqlite") as store:
        store.add([visit(n, at=one.start, model="agelens-s@1.1") for n, one in enumerate(month[1])])
        profile = overview(store, period).profile

    confusion = find_confusion("agelens-s@1.1")
    assert confusion is not None
    assert profile.is_corrected
    assert confusion.model in profile.confusion
    assert profile.models == ("agelens-s@1.1",)
    corrected = [one.corrected for one in profile.age if one.corrected is not None]
    assert sum(one.value for one in corrected) == pytest.approx(1)
    assert all(one.low <= one.value <= one.high for one in corrected)


def test_corrected_shares_are_told_where_counted_ones_are_and_stand_on_lots_alone(
    store: Store,
) -> None:
    day = date(2026, 3, 10)
    at = datetime(2026, 3, 10, 8, tzinfo=UTC)
    period = Period(day, day, BERLIN)

    def one(number: int, place: int) -> Visit:
        ages = tuple(float(band == place) for band in range(len(VISIT_BANDS)))
        return visit(
            number, at=at, seed=7, model="agelens-s@1.1", age=ages, female=0.1, gender="male",
            camera="door-1", staff=False, abstained=False,
        )  # fmt: skip

    store.add([one(number, 6 + number % 8) for number in range(150)])
    before = overview(store, period).profile
    kinds = set()
    for number in range(150, 180):
        store.add([one(number, 0)])
        after = overview(store, period).profile
        for group in (*after.age, *after.gender, *after.joint):
            assert (group.corrected is None) == (group.visitors is None), group
        counts = [[one.visitors for one in profile.joint] for profile in (before, after)]
        kinds.add(counts[0] == counts[1])
        # A visitor inside a lot changes no digit of anything that is told.
        assert (counts[0] == counts[1]) == (before == after)
        before = after
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (("a@1", "b@2"), "Several models made the estimates (a@1, b@2)"),
        (("nobody@1.0",), "What nobody@1.0 confuses was not measured"),
    ],
)
def test_without_one_known_confusion_shares_are_shown_as_counted_and_it_is_said(
    store: Store, models: tuple[str, ...], words: str
) -> None:
    day = date(2026, 3, 10)
    at = datetime(2026, 3, 10, 8, tzinfo=UTC)
    store.add(
        [visit(n, at=at + timedelta(minutes=n), model=models[n % len(models)]) for n in range(200)]
    )
    profile = overview(store, Period(day, day, BERLIN)).profile

    assert words in profile.reason
    assert not profile.is_corrected
    raw = [one.raw.value for one in profile.age if one.raw is not None]
    assert sum(raw) == pytest.approx(1)
    assert all(one.corrected is None for one in profile.age)


def test_too_few_visitors_have_no_shares(store: Store) -> None:
    at = datetime(2026, 3, 10, 8, tzinfo=UTC)
    store.add([visit(n, at=at + timedelta(minutes=n)) for n in range(30)])
    profile = overview(store, Period(at.date(), at.date(), BERLIN)).profile

    assert profile.age == ()
    assert "Fewer than 50" in profile.reason


# --- coverage and retention -----------------------------------------------------------------------


def test_a_power_cut_is_a_gap_and_a_closed_night_is_none(store: Store) -> None:
    first = date(2026, 3, 2)
    minutes = []
    for day in range(14):
        for minute in range(9 * 60, 17 * 60):
            at = datetime(2026, 3, 2, tzinfo=BERLIN) + timedelta(days=day, minutes=minute)
            if not (day == 9 and 11 * 60 <= minute < 14 * 60):
                minutes.append(WatchedMinute("museum", "door-1", at, 60.0))
    store.add([visit(0, at=datetime(2026, 3, 2, 12, tzinfo=UTC))], watched=minutes)
    now = datetime(2026, 3, 16, tzinfo=BERLIN)
    found = told(store, Period(first, first + timedelta(days=13), BERLIN), now=now)

    (gap,) = found.gaps
    assert (gap.start, gap.end) == (
        datetime(2026, 3, 11, 11, tzinfo=BERLIN),
        datetime(2026, 3, 11, 14, tzinfo=BERLIN),
    )
    assert gap.hours == 3
    assert found.watched_hours == pytest.approx(14 * 8 - 3)
    assert found.expected_hours == pytest.approx(14 * 8)
    assert found.days[9].missing_hours == pytest.approx(3)
    assert [one.hour for one in found.hours if one.watched_hours > 0] == list(range(9, 17))


def test_after_retention_the_kept_sums_are_told_and_what_they_hide_is_said(store: Store) -> None:
    visits = public(900, date(2026, 3, 1), 14)
    store.add(visits)
    period = Period(date(2026, 3, 1), date(2026, 3, 14), BERLIN)
    now = datetime(2026, 3, 15, 12, tzinfo=BERLIN)
    store.retain(7, BERLIN, now=now)
    found = told(store, period, now=now)

    deleted = [one for one in found.days if one.day < date(2026, 3, 8)]
    assert any("deleted" in note for note in found.notes)
    assert all(one.visitors is None or one.visitors % K == 0 for one in found.days)
    left = [one for one in found.days if one.day not in {day.day for day in deleted}]
    truth = Counter(at.date() for at in counted(visits, period))
    for one in left:
        assert abs((one.visitors or 0) - truth[one.day]) <= 2 * (K - 1)


def test_an_overview_is_json_and_says_what_is_hidden(month: tuple[Store, list[Visit]]) -> None:
    found = told(month[0], Period(date(2026, 3, 2), date(2026, 3, 2), BERLIN))
    wire = json.loads(json.dumps(found.to_dict(), allow_nan=False))

    assert wire["schema"] == "agelens.visitors/1"
    assert wire["period"]["first"] == "2026-03-02"
    assert [one["visitors"] for one in wire["hours"]] == [one.visitors for one in found.hours]
    assert None in [one["visitors"] for one in wire["hours"]]


@pytest.mark.parametrize("chosen", [Selection(sites=("shop",)), Selection(cameras=("roof",))])
def test_unknown_sites_and_cameras_are_named_with_those_that_there_are(
    month: tuple[Store, list[Visit]], chosen: Selection
) -> None:
    with pytest.raises(ArgumentError, match=r"it has: (museum|door-1, door-2)"):
        told(month[0], Period(SPRING, SPRING, BERLIN), selection=chosen)


@pytest.mark.parametrize(
    ("zone", "day", "offsets"),
    [("Australia/Lord_Howe", date(2026, 4, 5), {10.5, 11.0}), ("Asia/Kathmandu", SPRING, {5.75})],
)
def test_clocks_that_are_ahead_by_parts_of_an_hour_are_read_right(
    zone: str, day: date, offsets: set[float]
) -> None:
    clock = SiteClock(ZoneInfo(zone))
    moments = clock.quarters(day, day)
    days, hours = clock.shown(moments)

    local = [datetime.fromtimestamp(ms / 1000, clock.zone) for ms in moments.tolist()]
    assert [at.hour for at in local] == hours.tolist()
    assert {at.date() for at in local} == {day} == {date.fromordinal(n) for n in set(days.tolist())}
    assert {at.utcoffset().total_seconds() / 3600 for at in local} == offsets  # type: ignore[union-attr]
    assert milliseconds(local[0]) == moments[0]


def test_both_databases_tell_the_same(place: str) -> None:
    visits = public(200, date(2026, 3, 27), 4)
    period = Period(date(2026, 3, 28), SPRING, BERLIN)
    with open_store(place) as store:
        store.add(visits)
        found = told(store, period, minimum=1)
        screen = told(store, period, minimum=1, selection=Selection(zone="screen"))

    local = counted(visits, period)
    by_hour = Counter(at.hour for at in local)
    assert [one.visitors for one in found.hours] == [by_hour[hour] for hour in range(24)]
    assert [one.visitors for one in screen.hours] == [by_hour[hour] for hour in range(24)]
    assert found.profile.models == ("agelens-s@1.0",)
    assert found.profile.visitors == len(
        [one for one in visits if period.start <= one.start < period.end and not one.staff]
    )
