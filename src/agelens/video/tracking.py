"""
Boxes over time: which of them are the same face, by place and motion alone.

    Tracker.update(boxes, scores, seconds) -> TrackUpdate
    ├── ids      one for each box; None until a track is confirmed
    ├── begun    tracks that were confirmed now, with the boxes they had before
    └── ended    tracks that were not seen for too long

After ByteTrack (Zhang et al., ECCV 2022): doubtful boxes may go on with a track but not begin one.
Unlike there, all durations are in seconds and the motion has the same spread whatever the frame
rate, so that frames may be missing; and a small face that moves by more than its own size between
two frames is matched by the place where it is expected. Nothing is remembered of how a face looks:
a person who comes back after ``lost_s`` gets another id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agelens.detection import intersection_over_union
from agelens.errors import ArgumentError

# Lengths of the motion model are in sides of the face (the root of its box's area), so that a far
# face and a near one are followed alike.
_SPEED: Final = 2.0
"""Usual speed of a face, sides a second (a person of 1.5 m/s makes about 7, a head at a desk 1)."""
_SPEED_AT_FIRST: Final = 4.0
"""Of one that was seen once: who walks through the picture is lost if its second sight is."""
_SPEED_LASTS_S: Final = 4.0
"""Time in which a speed is forgotten to 1/e."""
_JITTER: Final = 0.05
"""Spread of a detector's box around the face."""
_GROWTH: Final = 0.2
"""Spread of the change of a face's size in a second."""
_FARTHEST: Final = 9.21
"""Squared distance, in its own spread, under which 99 % of a track's next boxes lie (chi-squared
with two degrees of freedom)."""
_SAME_PLACE: Final = 0.2
"""IoU with the expected box from which motion is not asked."""
_SAME_FACE: Final = 0.2
"""IoU with the box of a track from which another box of the frame is a second one of its face: a
blurred face may give two, and heads that overlap so much hide one another's faces."""
_SIGHTS_KEPT: Final = 50
"""Sights that are kept of a track that is not confirmed."""
_SIZES_APART: Final = 2.0
"""Ratio of the sides of two boxes over which they are not one face."""


@dataclass(frozen=True)
class TrackerOptions:
    """How a ``Tracker`` decides.

    Attributes:
        high_score: Detector's confidence from which a box may begin a track, 0..1.
        low_score: From which a box may go on with a track that was seen in the frame before, 0..1.
        confirm_hits: Boxes after which a track is confirmed and gets an id, 1 or more.
        confirm_score: Confidence that one of them needs for that, 0..1.
        tentative_s: Seconds without a box after which an unconfirmed track is forgotten that was
            missing in a frame; without one it may wait for ``lost_s`` too.
        lost_s: Seconds without a box after which a confirmed track ends.
        reach: Farthest from the expected place that a box may lie, in sides of the face.
        max_tracks: Tracks that are followed at a time; beyond, the longest unseen end first.
    """

    high_score: float = 0.7
    low_score: float = 0.3
    confirm_hits: int = 3
    confirm_score: float = 0.0
    tentative_s: float = 0.5
    lost_s: float = 2.0
    reach: float = 1.5
    max_tracks: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.low_score <= self.high_score <= 1:
            raise ArgumentError(
                "need 0 <= low_score <= high_score <= 1, got "
                f"low_score={self.low_score} and high_score={self.high_score}"
            )
        if not 0 <= self.confirm_score <= 1:
            raise ArgumentError(f"confirm_score must be within 0..1, got {self.confirm_score!r}")
        for name in ("confirm_hits", "max_tracks"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ArgumentError(f"{name} must be a whole number of 1 or more, got {count!r}")
        for name in ("tentative_s", "lost_s", "reach"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ArgumentError(f"{name} must be 0 or more, got {value!r}")


@dataclass(frozen=True)
class Track:
    """One face over time.

    Attributes:
        id: From 1 in the order of confirmation; never used twice by one tracker.
        first_s: When its first box was seen.
        last_s: When its last box was seen.
        hits: Boxes it consists of.
        box: The last of them, x0 y0 x1 y1.
    """

    id: int
    first_s: float
    last_s: float
    hits: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Begun:
    """A track that was confirmed.

    Attributes:
        id: Of the track.
        sights: When and where it was seen up to now, this frame included: seconds and box.
    """

    id: int
    sights: tuple[tuple[float, tuple[float, float, float, float]], ...]


@dataclass(frozen=True)
class TrackUpdate:
    """What one frame did.

    Attributes:
        ids: Track of each box, in the order of the boxes; None where it belongs to no confirmed
            track (yet). No id stands twice.
        ended: Tracks that ended, by id.
        begun: Tracks that were confirmed, by id.
    """

    ids: tuple[int | None, ...]
    ended: tuple[Track, ...]
    begun: tuple[Begun, ...] = ()


@dataclass(eq=False)
class _Motion:
    """A Kalman filter over one face's centre and size, as of its last box.

    The speed is an Ornstein-Uhlenbeck process and the place its integral: two steps of half a
    second say the same as one of a second. Variances are in squared sides of the face; both axes
    share them.
    """

    centre: NDArray[np.float64]
    size: NDArray[np.float64]
    speed: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    place_var: float = _JITTER**2
    both_var: float = 0.0
    speed_var: float = _SPEED_AT_FIRST**2
    size_var: float = _JITTER**2

    @property
    def side(self) -> float:
        return math.sqrt(self.size[0] * self.size[1])

    def after(self, seconds: float) -> _Motion:
        """Where it is expected after this time without a box."""
        kept = math.exp(-seconds / _SPEED_LASTS_S)
        way = _SPEED_LASTS_S * (1 - kept)
        noise = _SPEED**2
        drift = 2 * seconds / _SPEED_LASTS_S - 3 + 4 * kept - kept**2
        return _Motion(
            centre=self.centre + way * self.speed,
            size=self.size,
            speed=kept * self.speed,
            place_var=self.place_var
            + 2 * way * self.both_var
            + way**2 * self.speed_var
            + noise * _SPEED_LASTS_S**2 * max(0.0, drift),
            both_var=kept * (self.both_var + way * self.speed_var) + noise * way * (1 - kept),
            speed_var=kept**2 * self.speed_var + noise * (1 - kept**2),
            size_var=self.size_var + _GROWTH**2 * seconds,
        )

    def seen(self, centre: NDArray[np.float64], size: NDArray[np.float64]) -> _Motion:
        """Corrected by the box that was found."""
        total = self.place_var + _JITTER**2
        gain, speed_gain = self.place_var / total, self.both_var / total
        size_gain = self.size_var / (self.size_var + _JITTER**2)
        off = centre - self.centre
        return _Motion(
            centre=self.centre + gain * off,
            size=self.size + size_gain * (size - self.size),
            speed=self.speed + speed_gain * off,
            place_var=(1 - gain) * self.place_var,
            both_var=(1 - gain) * self.both_var,
            speed_var=self.speed_var - speed_gain * self.both_var,
            size_var=(1 - size_gain) * self.size_var,
        )


@dataclass(eq=False)
class _Followed:
    """A track under way; until it is confirmed ``id`` is None and ``sights`` are kept."""

    motion: _Motion
    first_s: float
    last_s: float
    box: tuple[float, float, float, float]
    hits: int = 1
    best_score: float = 0.0
    id: int | None = None
    sights: list[tuple[float, tuple[float, float, float, float]]] = field(default_factory=list)

    def track(self) -> Track:
        assert self.id is not None  # only confirmed tracks are told
        return Track(self.id, self.first_s, self.last_s, self.hits, self.box)


class Tracker:
    """Follows the faces of one camera; not for several threads at a time.

    What it says depends on nothing but the boxes, scores and times it was given, and not on the
    order of the boxes in a frame.

    Example:
        >>> tracker = Tracker(TrackerOptions(confirm_hits=1))
        >>> tracker.update([[10, 10, 50, 60]], [0.9], 0.0).ids
        (1,)
        >>> tracker.update([[200, 10, 240, 60], [12, 10, 52, 60]], [0.9, 0.9], 0.1).ids
        (2, 1)

    Attributes:
        options: How it decides.
    """

    def __init__(self, options: TrackerOptions | None = None, *, last_id: int = 0) -> None:
        """Begin with no track.

        Args:
            options: How it decides; may be exchanged between frames.
            last_id: The first track gets the number after it.
        """
        self.options = options or TrackerOptions()
        self._tracks: list[_Followed] = []
        self._before_s = -math.inf
        self._ids = last_id

    @property
    def tracks(self) -> tuple[Track, ...]:
        """The confirmed tracks that have not ended, seen or not, by id."""
        return _told(self._tracks)

    @property
    def is_idle(self) -> bool:
        """Nothing is followed, not even a track that is not confirmed yet."""
        return not self._tracks

    @property
    def last_id(self) -> int:
        """Number of the track that was confirmed last; see ``__init__``."""
        return self._ids

    def update(self, boxes: ArrayLike, scores: ArrayLike, seconds: float) -> TrackUpdate:
        """Take the boxes of one frame.

        Args:
            boxes: (N, 4) x0 y0 x1 y1 in pixels, N from 0 on; they may reach outside the picture.
            scores: (N,) detector's confidence, 0..1.
            seconds: When the frame was taken, counted from any moment; never falling.

        Raises:
            ArgumentError: A shape is wrong, a box is empty or not finite, a score is outside 0..1,
                or the time runs backwards. The tracker is as before.
        """
        given, confidence = _checked(boxes, scores)
        if not (math.isfinite(seconds) and seconds >= self._before_s):
            raise ArgumentError(
                f"the frames' times must not fall: {seconds!r} s after {self._before_s!r} s"
            )
        ended = self._without_the_lost(seconds)
        # A fixed order of the boxes makes ties, and ids given in one frame, independent of theirs.
        order = np.lexsort((confidence, *given.T[::-1]))
        found = self._matched(given[order], confidence[order], seconds)
        self._before_s = seconds
        ended += self._without_the_surplus()
        ids: list[int | None] = [None] * len(given)
        for row, track in found.items():
            ids[order[row]] = track.id
        return TrackUpdate(tuple(ids), _told(ended), self._just_begun())

    def forget(self, name: int) -> None:
        """End the track of this id without a word; of one that has ended nothing is left to end."""
        self._forget([track for track in self._tracks if track.id == name])

    def finish(self) -> tuple[Track, ...]:
        """End all tracks; the confirmed ones, by id. The tracker may go on with new ones."""
        ended, self._tracks = self._tracks, []
        return _told(ended)

    def _just_begun(self) -> tuple[Begun, ...]:
        begun = []
        for track in self._tracks:
            if track.id is not None and track.sights:
                begun.append(Begun(track.id, tuple(track.sights)))
                track.sights = []
        return tuple(sorted(begun, key=lambda one: one.id))

    # --- who goes on ------------------------------------------------------------------------------

    def _matched(
        self, boxes: NDArray[np.float64], scores: NDArray[np.float64], seconds: float
    ) -> dict[int, _Followed]:
        """The track of each row; rows that belong to none are left out.

        Tracks that were seen in the frame before choose first: where a lost one may be by now is
        so uncertain that it would fit nearly any box.
        """
        options = self.options
        expected = {id(track): track.motion.after(seconds - track.last_s) for track in self._tracks}
        visible = [track for track in self._tracks if track.last_s == self._before_s]
        confirmed = [track for track in visible if track.id is not None]
        tentative = [track for track in visible if track.id is None]
        unseen = [track for track in self._tracks if track.last_s < self._before_s]
        high = scores >= options.high_score
        low = ~high & (scores >= options.low_score)
        found: dict[int, _Followed] = {}
        for candidates, allowed, near in (
            (confirmed, high, False),
            (confirmed, low, True),
            (tentative, high, False),
            (unseen, high, False),
        ):
            taken = {id(track) for track in found.values()}
            open_tracks = [track for track in candidates if id(track) not in taken]
            rows = [row for row in np.flatnonzero(allowed).tolist() if row not in found]
            if not open_tracks or not rows:
                continue
            likeness = _likeness(
                [expected[id(track)] for track in open_tracks], boxes[rows], options.reach, near
            )
            for which, column in best_pairs(likeness):
                track = open_tracks[which]
                self._go_on(track, expected[id(track)], boxes[rows[column]], seconds)
                found[rows[column]] = track
        followed = boxes[sorted(found)]
        for row in np.flatnonzero(high).tolist():
            if row in found or (intersection_over_union(boxes[row], followed) >= _SAME_FACE).any():
                continue
            found[row] = self._begin(boxes[row], seconds)
        for row in sorted(found):
            track = found[row]
            track.best_score = max(track.best_score, float(scores[row]))
            is_sure = track.best_score >= options.confirm_score
            if track.id is None and track.hits >= options.confirm_hits and is_sure:
                self._ids += 1
                track.id = self._ids
        return found

    def _go_on(
        self, track: _Followed, expected: _Motion, box: NDArray[np.float64], seconds: float
    ) -> None:
        track.motion = expected.seen(*_centre_and_size(box))
        track.last_s, track.box = seconds, _plain(box)
        track.hits += 1
        if track.id is None:
            track.sights = [*track.sights[-_SIGHTS_KEPT:], (seconds, track.box)]

    def _begin(self, box: NDArray[np.float64], seconds: float) -> _Followed:
        track = _Followed(_Motion(*_centre_and_size(box)), seconds, seconds, _plain(box))
        track.sights.append((seconds, track.box))
        self._tracks.append(track)
        return track

    # --- who ends ---------------------------------------------------------------------------------

    def _without_the_lost(self, seconds: float) -> list[_Followed]:
        """Forget the tracks that were not seen for too long; these.

        One that was in the latest frame has missed none: where frames are rare it may wait.
        """

        def patience_s(track: _Followed) -> float:
            may_wait = track.id is not None or track.last_s == self._before_s
            return self.options.lost_s if may_wait else self.options.tentative_s

        return self._forget([t for t in self._tracks if seconds - t.last_s > patience_s(t)])

    def _without_the_surplus(self) -> list[_Followed]:
        surplus = len(self._tracks) - self.options.max_tracks
        if surplus <= 0:
            return []
        # Longest unseen first, and of those last seen together the ones with the fewest boxes.
        return self._forget(sorted(self._tracks, key=lambda t: (t.last_s, t.hits))[:surplus])

    def _forget(self, gone: list[_Followed]) -> list[_Followed]:
        leaving = {id(track) for track in gone}
        self._tracks = [track for track in self._tracks if id(track) not in leaving]
        return gone


# --- likeness -------------------------------------------------------------------------------------


def _likeness(
    expected: Sequence[_Motion], boxes: NDArray[np.float64], reach: float, near: bool
) -> NDArray[np.float64]:
    """How well each box fits each track, over 0 to 2; 0 where it can't be the same face.

    The sum of the IoU with the expected box and of the nearness of the centres, which is 1 at the
    expected place and 0 where 1 % of the boxes would lie. With ``near`` the boxes must overlap.
    """
    centres = np.stack([one.centre for one in expected])[:, None]
    sizes = np.stack([one.size for one in expected])[:, None]
    sides = np.sqrt(sizes.prod(axis=2))
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=2)[:, 0]
    overlap = np.stack([intersection_over_union(box, boxes) for box in corners])
    found, found_sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    way = np.linalg.norm(found - centres, axis=2) / sides
    spread = np.array([[one.place_var + _JITTER**2] for one in expected])
    off = way**2 / spread
    ratio = np.sqrt(found_sizes.prod(axis=1)) / sides
    fits = (np.maximum(ratio, 1 / ratio) <= _SIZES_APART) & (way <= reach)
    fits &= overlap >= _SAME_PLACE if near else (off <= _FARTHEST) | (overlap >= _SAME_PLACE)
    return np.where(fits, overlap + np.clip(1 - off / _FARTHEST, 1e-6, 1), 0.0)


def best_pairs(likeness: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of a row and a column, each at most once, whose likeness sums to the most.

    Exact: the Hungarian method by shortest augmenting paths (Jonker and Volgenant 1987).

    Args:
        likeness: (N, M) numbers of 0 or more; a pair of 0 is left apart.

    Returns:
        Pairs with a likeness over 0, by row.
    """
    if likeness.shape[0] > likeness.shape[1]:
        return sorted((row, column) for column, row in best_pairs(likeness.T))
    rows, columns = likeness.shape
    if rows == 0:
        return []
    cost = likeness.max() - likeness
    row_price, column_price = np.zeros(rows), np.zeros(columns + 1)
    # Column ``columns`` stands for the row that is looking for a partner.
    partner = np.full(columns + 1, -1)
    for row in range(rows):
        partner[columns] = row
        column = columns
        least = np.full(columns, np.inf)
        came_from = np.full(columns, columns)
        visited = np.zeros(columns + 1, bool)
        while partner[column] != -1:
            visited[column] = True
            here = partner[column]
            step = cost[here] - row_price[here] - column_price[:columns]
            shorter = ~visited[:columns] & (step < least)
            least[shorter], came_from[shorter] = step[shorter], column
            following = int(np.argmin(np.where(visited[:columns], np.inf, least)))
            rise = least[following]
            row_price[partner[visited]] += rise
            column_price[visited] -= rise
            least[~visited[:columns]] -= rise
            column = following
        while column != columns:
            partner[column] = partner[came_from[column]]
            column = int(came_from[column])
    pairs = ((int(partner[column]), column) for column in range(columns) if partner[column] != -1)
    return sorted((row, column) for row, column in pairs if likeness[row, column] > 0)


# --- forms ----------------------------------------------------------------------------------------


def _checked(
    boxes: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    given, confidence = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
    if given.size == 0:
        given = given.reshape(0, 4)
    if given.ndim != 2 or given.shape[1] != 4 or confidence.shape != (len(given),):
        raise ArgumentError(
            f"boxes must be (N, 4) and scores (N,), got {given.shape} and {confidence.shape}"
        )
    good = np.isfinite(given).all(axis=1) & (given[:, :2] < given[:, 2:]).all(axis=1)
    good &= (confidence >= 0) & (confidence <= 1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise ArgumentError(
            f"box {row} must be finite with x0 < x1 and y0 < y1, and its score within 0..1; got "
            f"{given[row].tolist()} and {confidence[row]}"
        )
    return given, confidence


def _centre_and_size(
    box: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (box[:2] + box[2:]) / 2, box[2:] - box[:2]


def _plain(box: NDArray[np.float64]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, x1, y1


def _told(tracks: Sequence[_Followed]) -> tuple[Track, ...]:
    """The confirmed ones, by id."""
    confirmed = [one.track() for one in tracks if one.id is not None]
    return tuple(sorted(confirmed, key=lambda track: track.id))


__all__ = ["Begun", "Track", "TrackUpdate", "Tracker", "TrackerOptions", "best_pairs"]
