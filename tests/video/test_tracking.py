"""A tracker gives each face one id for as long as it can be followed, whatever the frame rate."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agelens.errors import ArgumentError
from agelens.video.tracking import Track, Tracker, TrackerOptions, best_pairs

AT_ONCE = TrackerOptions(confirm_hits=1)


@dataclass(frozen=True)
class Walk:
    """A face on a straight way.

    Attributes:
        start: Centre at second 0, in pixels.
        speed: Pixels a second.
        side: Side of its square box.
        hidden: Seconds from and to which it cannot be seen.
    """

    start: tuple[float, float]
    speed: tuple[float, float] = (0.0, 0.0)
    side: float = 60.0
    hidden: tuple[float, float] = (0.0, 0.0)

    def box(self, seconds: float, noise: NDArray[np.float64] | None = None) -> list[float]:
        x, y = (at + rate * seconds for at, rate in zip(self.start, self.speed, strict=True))
        half = self.side / 2
        box = np.array([x - half, y - half, x + half, y + half])
        return list(box if noise is None else box + noise * self.side)

    def is_seen(self, seconds: float) -> bool:
        return not self.hidden[0] <= seconds < self.hidden[1]


def follow(
    walks: Sequence[Walk],
    times: Iterable[float],
    options: TrackerOptions = AT_ONCE,
    jitter: float = 0.0,
    seed: int = 0,
) -> list[list[int | None]]:
    """Ids by frame and walk; None too for a walk that is hidden."""
    rng = np.random.default_rng(seed)
    tracker = Tracker(options)
    rows = []
    for seconds in times:
        seen = [number for number, walk in enumerate(walks) if walk.is_seen(seconds)]
        boxes = [walks[n].box(seconds, rng.normal(size=4) * jitter) for n in seen]
        update = tracker.update(boxes, [0.9] * len(seen), seconds)
        row: list[int | None] = [None] * len(walks)
        for number, given_id in zip(seen, update.ids, strict=True):
            row[number] = given_id
        rows.append(row)
    return rows


def ids_of(rows: list[list[int | None]], walk: int) -> set[int]:
    return {row[walk] for row in rows if row[walk] is not None}  # type: ignore[misc]


# --- one face -------------------------------------------------------------------------------------


def test_a_face_that_moves_keeps_its_id() -> None:
    rows = follow([Walk((100, 100), (90, 10))], np.arange(0, 5, 0.1), jitter=0.03)

    assert rows == [[1]] * 50


@pytest.mark.parametrize("rate", [4, 10, 30, 60])
def test_a_small_face_that_moves_by_more_than_its_own_size_a_frame_is_followed(rate: int) -> None:
    # 5 sides a second: at 4 frames a second 1.25 sides a frame, so that boxes never overlap.
    rows = follow([Walk((50, 300), (120, 0), side=24)], np.arange(0, 4, 1 / rate), jitter=0.03)

    assert ids_of(rows, 0) == {1}


def test_frames_at_uneven_times_are_followed_like_even_ones() -> None:
    times = np.cumsum(np.random.default_rng(3).uniform(0.03, 0.35, 60))

    rows = follow([Walk((100, 100), (70, 0))], times, jitter=0.03)

    assert ids_of(rows, 0) == {1}


def test_an_id_is_given_once_the_track_is_confirmed() -> None:
    rows = follow([Walk((100, 100))], np.arange(5) / 10, TrackerOptions(confirm_hits=3))

    assert rows == [[None], [None], [1], [1], [1]]


def test_a_face_that_stays_is_confirmed_at_a_frame_a_second_too() -> None:
    rows = follow([Walk((100, 100))], range(4), TrackerOptions(confirm_hits=3), jitter=0.03)

    assert rows == [[None], [None], [1], [1]]


def test_a_false_detection_of_one_frame_gets_no_id() -> None:
    tracker = Tracker()
    flash = Walk((400, 400))
    seen = []
    for frame in range(30):
        boxes = [Walk((100, 100)).box(0), *([flash.box(0)] if frame == 12 else [])]
        seen.append(tracker.update(boxes, [0.9] * len(boxes), frame / 10).ids)

    assert seen[12] == (1, None)
    assert {name for row in seen for name in row} == {None, 1}


def test_a_doubtful_box_goes_on_with_a_track_but_begins_none() -> None:
    tracker = Tracker(AT_ONCE)
    box, other = Walk((100, 100)).box(0), Walk((300, 100)).box(0)

    scores = [(0.9, 0.5), (0.5, 0.5), (0.2, 0.5), (0.9, 0.5)]
    ids = [tracker.update([box, other], pair, i / 10).ids for i, pair in enumerate(scores)]

    assert ids == [(1, None), (1, None), (None, None), (1, None)]


def test_a_box_of_another_size_at_the_same_place_is_another_face() -> None:
    tracker = Tracker(AT_ONCE)
    tracker.update([Walk((100, 100), side=30).box(0)], [0.9], 0.0)

    assert tracker.update([Walk((100, 100), side=90).box(0)], [0.9], 0.1).ids == (2,)


def test_a_confirmed_track_tells_where_it_was_seen_before() -> None:
    tracker = Tracker(TrackerOptions(confirm_hits=3))
    walk = Walk((100, 100), (90, 10))
    updates = [tracker.update([walk.box(i / 10)], [0.9], i / 10) for i in range(5)]

    assert [len(update.begun) for update in updates] == [0, 0, 1, 0, 0]
    (begun,) = updates[2].begun
    assert begun.id == 1
    assert [seconds for seconds, _ in begun.sights] == [0.0, 0.1, 0.2]
    assert [list(box) for _, box in begun.sights] == [walk.box(i / 10) for i in range(3)]


def test_a_track_is_confirmed_by_a_sure_box_where_one_is_asked_for() -> None:
    tracker = Tracker(TrackerOptions(high_score=0.5, confirm_hits=3, confirm_score=0.8))
    box, scores = Walk((100, 100)).box(0), [0.6, 0.6, 0.6, 0.6, 0.9, 0.6]

    ids = [tracker.update([box], [score], i / 10).ids for i, score in enumerate(scores)]

    assert ids == [(None,)] * 4 + [(1,)] * 2


def test_a_face_is_followed_that_walks_by_quickly() -> None:
    # 7 sides a second, as of one who walks across the picture, looked for eight times a second.
    rows = follow([Walk((50, 300), (420, 0))], np.arange(0, 3, 1 / 8), jitter=0.03)

    assert ids_of(rows, 0) == {1}


def test_a_forgotten_track_ends_without_a_word_and_its_number_is_not_used_again() -> None:
    tracker = Tracker(AT_ONCE)
    box = Walk((100, 100)).box(0)
    tracker.update([box], [0.9], 0.0)
    was_idle = tracker.is_idle

    tracker.forget(1)

    assert (was_idle, tracker.is_idle) == (False, True)
    assert tracker.update([], [], 5.0).ended == ()
    assert tracker.update([box], [0.9], 5.1).ids == (2,)
    assert Tracker(AT_ONCE, last_id=tracker.last_id).update([box], [0.9], 0.0).ids == (3,)


# --- gone and back --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    gap=st.floats(0.2, 1.9),
    speed=st.floats(-60, 60),
    rate=st.sampled_from([5, 10, 25]),
    seed=st.integers(0, 10_000),
)
def test_an_occlusion_shorter_than_the_buffer_is_bridged(
    gap: float, speed: float, rate: int, seed: int
) -> None:
    # Up to one side a second; faster ones are found again as far as ``reach`` goes.
    walk = Walk((400, 300), (speed, 0), hidden=(2.0, 2.0 + gap))
    times = np.arange(0, 5, 1 / rate)

    rows = follow([walk], times, TrackerOptions(confirm_hits=1, lost_s=2.0), 0.02, seed)

    # From the last sight to the next one it is one frame longer than the occlusion at most.
    assert gap + 1 / rate > 2.0 or ids_of(rows, 0) == {1}


def test_a_face_that_comes_back_after_the_buffer_gets_a_new_id() -> None:
    walk = Walk((100, 100), hidden=(1.0, 3.5))

    rows = follow([walk], np.arange(0, 5, 0.1), TrackerOptions(confirm_hits=1, lost_s=2.0))

    assert rows[0] == [1]
    assert rows[-1] == [2]


def test_the_buffer_is_in_seconds_whatever_the_frame_rate() -> None:
    walk = Walk((100, 100), hidden=(1.0, 2.45))
    bridged = TrackerOptions(confirm_hits=1, lost_s=2.0)
    ended = TrackerOptions(confirm_hits=1, lost_s=1.2)

    for rate in (5, 20, 50):
        times = np.arange(0, 4, 1 / rate)
        assert ids_of(follow([walk], times, bridged), 0) == {1}
        assert ids_of(follow([walk], times, ended), 0) == {1, 2}


def test_a_track_ends_once_with_its_whole_time() -> None:
    tracker = Tracker(AT_ONCE)
    box = Walk((100, 100)).box(0)
    ended: list[Track] = []
    for frame in range(60):
        boxes = [box] if frame < 10 else []
        ended += tracker.update(boxes, [0.8] * len(boxes), frame / 10).ended

    x0, y0, x1, y1 = box
    assert ended == [Track(1, 0.0, 0.9, 10, (x0, y0, x1, y1))]
    assert tracker.tracks == ()
    assert tracker.finish() == ()


def test_finishing_ends_what_is_under_way_and_ids_go_on() -> None:
    tracker = Tracker(AT_ONCE)
    tracker.update([Walk((100, 100)).box(0), Walk((300, 100)).box(0)], [0.9, 0.9], 0.0)

    assert [track.id for track in tracker.finish()] == [1, 2]
    assert tracker.update([Walk((100, 100)).box(0)], [0.9], 0.1).ids == (3,)


# --- several faces --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    speed=st.floats(40, 160),
    lanes=st.floats(0, 20),
    rate=st.sampled_from([10, 15, 25]),
    seed=st.integers(0, 10_000),
)
def test_two_who_cross_in_full_view_keep_their_ids(
    speed: float, lanes: float, rate: int, seed: int
) -> None:
    left, right = Walk((100, 300), (speed, 0)), Walk((500, 300 + lanes), (-speed, 0))
    times = np.arange(0, 400 / speed, 1 / rate)

    rows = follow([left, right], times, jitter=0.02, seed=seed)

    # Where one box lies on the other nothing tells them apart for that frame.
    apart = np.abs(400 - 2 * speed * times) > 15
    assert {tuple(row) for row, is_apart in zip(rows, apart, strict=True) if is_apart} == {(1, 2)}


@settings(max_examples=25, deadline=None)
@given(speed=st.floats(40, 160), rate=st.sampled_from([5, 10, 25]), seed=st.integers(0, 10_000))
def test_two_who_cross_one_behind_the_other_share_two_ids_whatever_happens(
    speed: float, rate: int, seed: int
) -> None:
    # The one behind is hidden while less than half of the face shows.
    half = 30 / (2 * speed)
    meet = 200 / speed
    front = Walk((100, 300), (speed, 0))
    behind = Walk((500, 305), (-speed, 0), hidden=(meet - half, meet + half))

    rows = follow([front, behind], np.arange(0, 400 / speed, 1 / rate), jitter=0.02, seed=seed)

    assert ids_of(rows, 0) | ids_of(rows, 1) == {1, 2}
    assert all(row[0] != row[1] for row in rows)


def test_of_100_crossings_behind_another_at_least_95_in_100_keep_both_ids() -> None:
    rng = np.random.default_rng(11)
    kept = 0
    for seed in range(100):
        speed = rng.uniform(40, 160)
        half, meet = 30 / (2 * speed), 200 / speed
        front = Walk((100, 300), (speed, 0))
        behind = Walk((500, 305), (-speed, 0), hidden=(meet - half, meet + half))
        rows = follow([front, behind], np.arange(0, 2 * meet, 0.1), jitter=0.03, seed=seed)
        kept += [ids_of(rows, 0), ids_of(rows, 1)] == [{1}, {2}]

    assert kept >= 95


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[float, NDArray[np.float64], NDArray[np.float64]]]:
    """Frames of boxes that appear, stay near, jump and vanish, at rising times."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    centres = rng.uniform(0, 400, (draw(st.integers(1, 8)), 2))
    seconds, frames = 0.0, []
    for _ in range(draw(st.integers(1, 25))):
        seconds += float(rng.choice([0.0, 0.04, 0.1, 0.5, 3.0]))
        centres += rng.normal(size=centres.shape) * rng.choice([2, 30])
        here = centres[rng.random(len(centres)) < 0.8]
        half = rng.uniform(10, 40, (len(here), 1))
        boxes = np.concatenate([here - half, here + half], axis=1).round(0)
        frames.append((seconds, boxes, rng.uniform(0.1, 1.0, len(boxes)).round(1)))
    return frames


@settings(max_examples=50, deadline=None)
@given(frames=streams(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_boxes_does_not_matter(
    frames: list[tuple[float, NDArray[np.float64], NDArray[np.float64]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    one, other = Tracker(TrackerOptions(confirm_hits=2)), Tracker(TrackerOptions(confirm_hits=2))
    for seconds, boxes, scores in frames:
        order = rng.permutation(len(boxes))

        straight = one.update(boxes, scores, seconds)
        mixed = other.update(boxes[order], scores[order], seconds)

        assert mixed.ids == tuple(straight.ids[row] for row in order)
        assert mixed.ended == straight.ended
    assert one.finish() == other.finish()


@settings(max_examples=50, deadline=None)
@given(frames=streams())
def test_no_id_stands_twice_in_a_frame_or_comes_back_after_its_end(
    frames: list[tuple[float, NDArray[np.float64], NDArray[np.float64]]],
) -> None:
    tracker = Tracker(TrackerOptions(confirm_hits=2))
    over: set[int] = set()
    highest = 0
    for seconds, boxes, scores in frames:
        update = tracker.update(boxes, scores, seconds)
        over |= {track.id for track in update.ended}
        named = [name for name in update.ids if name is not None]
        assert len(named) == len(set(named))
        assert not over & set(named)
        new = sorted({name for name in named if name > highest})
        assert new == list(range(highest + 1, highest + 1 + len(new)))
        highest += len(new)
    assert over | {track.id for track in tracker.finish()} == set(range(1, highest + 1))


@settings(max_examples=25, deadline=None)
@given(frames=streams())
def test_the_same_boxes_and_times_give_the_same_ids(
    frames: list[tuple[float, NDArray[np.float64], NDArray[np.float64]]],
) -> None:
    first, second = Tracker(), Tracker()

    assert [first.update(b, s, t) for t, b, s in frames] == [
        second.update(b, s, t) for t, b, s in frames
    ]


# --- a long day -----------------------------------------------------------------------------------


def test_memory_stays_bounded_however_many_people_pass() -> None:
    tracker = Tracker(TrackerOptions(confirm_hits=1, lost_s=1.0))
    rng = np.random.default_rng(1)

    def pass_by(start: int, frames: int) -> int:
        for frame in range(start, start + frames):
            corner = rng.uniform(0, 2000, (5, 2))
            boxes = np.concatenate([corner, corner + 40], axis=1)
            tracker.update(boxes, np.full(5, 0.9), frame / 10)
        return len(tracker.tracks)

    pass_by(0, 300)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    following = pass_by(300, 600)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert following <= 5 * 11
    assert grown < 100_000


def test_no_more_tracks_are_followed_than_allowed() -> None:
    tracker = Tracker(TrackerOptions(confirm_hits=1, lost_s=1e9, max_tracks=10))
    ended: list[Track] = []
    for frame in range(40):
        ended += tracker.update([Walk((200.0 * frame, 0)).box(0)], [0.9], frame / 10).ended

    assert [track.id for track in tracker.tracks] == list(range(31, 41))
    assert [track.id for track in ended] == list(range(1, 31))


# --- pairs ----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(0, 9), columns=st.integers(0, 9), seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
)  # fmt: skip
def test_the_pairs_are_those_an_independent_solver_finds(
    rows: int, columns: int, seed: int, share: float
) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    likeness = rng.uniform(0, 2, (rows, columns)) * (rng.random((rows, columns)) < share)

    pairs = best_pairs(likeness)

    assert all(likeness[pair] > 0 for pair in pairs)
    assert all(len(set(side)) == len(pairs) for side in zip(*pairs, strict=True))
    best = likeness[optimize.linear_sum_assignment(likeness, maximize=True)].sum()
    assert sum(likeness[pair] for pair in pairs) == pytest.approx(best)


def test_the_best_sum_is_found_where_the_best_pair_alone_would_spoil_it() -> None:
    assert best_pairs(np.array([[1.0, 0.9], [0.9, 0.0]])) == [(0, 1), (1, 0)]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "scores", "words"),
    [
        pytest.param([[0, 0, 10]], [0.9], r"\(N, 4\)", id="three-numbers"),
        pytest.param([[0, 0, 10, 10]], [0.9, 0.8], r"\(2,\)", id="a-score-too-many"),
        pytest.param([[0, 0, 10, 10], [5, 5, 5, 9]], [0.9, 0.9], "box 1 must", id="empty-box"),
        pytest.param([[0, 0, np.nan, 10]], [0.9], "box 0 must be finite", id="not-a-number"),
        pytest.param([[0, 0, 10, 10]], [1.2], "within 0..1", id="score-over-one"),
    ],
)
def test_wrong_boxes_are_refused_and_change_nothing(
    boxes: list[list[float]], scores: list[float], words: str
) -> None:
    tracker = Tracker(AT_ONCE)
    good = Walk((100, 100)).box(0)
    tracker.update([good], [0.9], 0.0)

    with pytest.raises(ArgumentError, match=words):
        tracker.update(boxes, scores, 9.0)

    assert tracker.update([good], [0.9], 0.1).ids == (1,)


@pytest.mark.parametrize("seconds", [0.9, float("nan"), float("inf")])
def test_a_time_that_runs_backwards_or_is_none_is_refused(seconds: float) -> None:
    tracker = Tracker()
    tracker.update([], [], 1.0)

    with pytest.raises(ArgumentError, match="must not fall"):
        tracker.update([], [], seconds)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"low_score": 0.8, "high_score": 0.5}, "low_score <= high_score"),
        ({"confirm_hits": 0}, "confirm_hits must be a whole number of 1 or more, got 0"),
        ({"max_tracks": 2.5}, "max_tracks must be a whole number"),
        ({"lost_s": -1.0}, "lost_s must be 0 or more"),
        ({"reach": float("nan")}, "reach must be 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        TrackerOptions(**options)  # type: ignore[arg-type]


def test_a_picture_full_of_faces_is_followed_in_time() -> None:
    walks = [
        Walk((80.0 * x, 80.0 * y), (20, 5)) for x, y in itertools.product(range(14), range(14))
    ]

    rows = follow(walks, np.arange(10) / 10, jitter=0.02)

    assert all(len(ids_of(rows, number)) == 1 for number in range(len(walks)))
