"""What the clocks of streams may do, and what is made of it: times that rise, and durations."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agelens.video.clock import LiveClock, Pace, RecordedClock

RTP_WRAP_MS = (1 << 32) / 90
"""A 32-bit count of 90,000 a second starts anew after 13.3 hours."""


def live(stated: list[float | None], arrived: list[float]) -> list[int]:
    clock = LiveClock()
    clock.reopened(arrived[0])
    return [clock.time_of(ms, now_s=at) for ms, at in zip(stated, arrived, strict=True)]


def recorded(stated: list[float | None], *, step_s: float = 0.04) -> list[int]:
    clock = RecordedClock()
    return [clock.time_of(ms, step_s=step_s) for ms in stated]


def test_the_cameras_clock_counts_although_frames_arrive_in_bursts() -> None:
    stated = [40.0 * number for number in range(100)]
    arrived = [1000 + 0.2 * (number // 5) for number in range(100)]

    assert [40_000 * number for number in range(100)] == live(list(stated), arrived)


def test_without_a_clock_of_its_own_the_arrival_counts() -> None:
    arrived = [500.0, 500.1, 500.25, 501.0]

    assert live([None] * 4, arrived) == [0, 100_000, 250_000, 1_000_000]


def test_what_was_sent_while_the_stream_was_opened_belongs_to_that_time() -> None:
    clock = LiveClock()
    clock.reopened(10.0)
    first = [clock.time_of(40.0 * number, now_s=11.2) for number in range(30)]
    later = clock.time_of(40.0 * 100, now_s=14.0)

    assert first[0] == 0
    assert first[-1] == 29 * 40_000
    assert later == 100 * 40_000


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("wrap of the RTP clock", lambda number: 40.0 * number - RTP_WRAP_MS),
        ("set back by an hour", lambda number: 40.0 * number - 3_600_000),
        ("set forward by an hour", lambda number: 40.0 * number + 3_600_000),
        ("started at zero", lambda number: 40.0 * (number - 50)),
    ],
)
def test_a_clock_set_anew_adds_no_more_than_a_frame_to_a_duration(name: str, after: object) -> None:
    assert callable(after)
    start = RTP_WRAP_MS - 2000 if "wrap" in name else 7_200_000.0
    stated = [start + (40.0 * n if n < 50 else after(n)) for n in range(100)]
    arrived = [1000 + 0.04 * number for number in range(100)]

    times = live(list(stated), arrived)

    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    assert abs(times[-1] - times[0] - 99 * 40_000) <= 40_000


def test_a_frozen_camera_that_goes_on_counting_keeps_the_time_it_was_frozen() -> None:
    stated = [0.0, 40.0, 45_040.0, 45_080.0]
    arrived = [0.0, 0.04, 45.04, 45.08]

    assert live(list(stated), arrived) == [0, 40_000, 45_040_000, 45_080_000]


def test_a_frozen_camera_that_stopped_counting_is_given_the_time_that_passed() -> None:
    times = live([0.0, 40.0, 80.0, 120.0], [0.0, 0.04, 45.0, 45.04])

    assert pytest.approx(times[2] / 1e6, abs=0.05) == 45.0
    assert times[3] - times[2] == 40_000


def test_reconnecting_goes_on_with_the_time_that_passed() -> None:
    clock = LiveClock()
    clock.reopened(100.0)
    before = clock.time_of(5_000.0, now_s=100.0)
    clock.reopened(160.0)
    after = clock.time_of(0.0, now_s=161.0)

    assert after - before == 60_000_000


def test_a_crystal_that_is_a_little_fast_is_followed_for_days() -> None:
    hours = 48
    seconds = range(0, hours * 3600, 2)
    times = live([second * 1000 * 1.0001 for second in seconds], [float(s) for s in seconds])
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]

    assert max(steps) - min(steps) < 1_000


def test_a_clock_of_the_wrong_speed_is_held_to_the_time_that_passes() -> None:
    arrived = [0.05 * number for number in range(20_000)]
    times = live([40.0 * number for number in range(20_000)], arrived)

    assert arrived[-1] == pytest.approx(times[-1] / 1e6, abs=10.1)


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(0, 100), st.booleans()), min_size=2))
def test_times_of_a_camera_always_rise_and_never_leave_the_passing_time(
    frames: list[tuple[float, float, bool]],
) -> None:
    arrived, now_s = [], 0.0
    for _, pause_s, _ in frames:
        now_s += pause_s
        arrived.append(now_s)
    times = live([ms if states else None for ms, _, states in frames], arrived)

    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    assert abs(times[-1] / 1e6 - (arrived[-1] - arrived[0])) < 11 + 0.002 * len(frames)


@given(
    st.lists(st.none() | st.floats(-1e12, 1e12), min_size=1),
    st.floats(0.0005, 10),
)
def test_times_of_a_recording_always_rise_from_zero(
    stated: list[float | None], step_s: float
) -> None:
    times = recorded(stated, step_s=step_s)

    assert times[0] == 0
    assert all(later > earlier for earlier, later in itertools.pairwise(times))


def test_a_frame_shown_twice_moves_no_other() -> None:
    assert recorded([0.0, 40.0, 40.0, 80.0]) == [0, 40_000, 60_000, 80_000]


def test_uneven_times_of_a_recording_are_kept() -> None:
    assert recorded([0.0, 33.0, 100.0, 5_000.0]) == [0, 33_000, 100_000, 5_000_000]


def test_a_recording_whose_clock_stands_still_goes_on_by_its_rate() -> None:
    times = recorded([0.0] * 100)

    assert pytest.approx(times[-1], abs=40_000) == 99 * 40_000


def test_a_recording_whose_clock_wraps_goes_on_by_its_rate() -> None:
    assert recorded([95_443_717.0, 95_443_757.0, 10.0, 50.0]) == [0, 40_000, 80_000, 120_000]


def test_pieces_of_a_recording_follow_one_another() -> None:
    clock = RecordedClock()
    times = []
    for _ in range(2):
        clock.new_piece()
        times += [clock.time_of(ms, step_s=0.04) for ms in (0.0, 40.0, 80.0)]

    assert times == [0, 40_000, 80_000, 120_000, 160_000, 200_000]


def test_what_arrives_early_is_shown_at_its_time_and_what_is_late_at_once() -> None:
    pace = Pace(most_behind_s=1.0)

    assert pace.due_s(0, now_s=5.0) == 5.0
    assert pytest.approx(pace.due_s(400_000, now_s=5.1)) == 5.4
    assert pace.due_s(600_000, now_s=9.0) == 9.0
    assert pytest.approx(pace.due_s(800_000, now_s=9.0)) == 9.2


def test_random_resets_over_a_day_leave_durations_true() -> None:
    drawn = random.Random(3)
    offset, stated, arrived = 0.0, [], []
    for number in range(20_000):
        if drawn.random() < 0.001:
            offset = drawn.uniform(-1e8, 1e8)
        stated.append(40.0 * number + offset)
        arrived.append(0.04 * number + drawn.uniform(0, 0.03))
    times = live(list(stated), arrived)
    errors = [abs(times[end] - times[end - 250] - 10_000_000) for end in range(250, 20_000, 50)]

    assert max(errors) <= 80_000
