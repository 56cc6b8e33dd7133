"""
The stream's own clock, made to rise: resets, wraps and gaps never give a negative duration.

Neither clock here looks at the time of day: setting the computer's clock, or a change to summer
time, moves nothing.
"""

from __future__ import annotations

from typing import Final

_MICRO: Final = 1_000_000
_LEAST_STEP_US: Final = 1_000
_HICCUP_US: Final = _MICRO
"""A clock that falls by less has shown a frame twice or out of turn; by more, it was set anew."""
_LONGEST_GAP_US: Final = 3_600 * _MICRO
"""Longest pause within a recording; more is a clock that was set anew."""
_TOLERANCE_US: Final = 10 * _MICRO
"""Most that a stream's clock may be off the time that passed here, before it is set anew."""
_LEAK: Final = 1e-3
"""Share of the passing time by which ours follows the stream's: crystals differ by up to 1e-4."""


class RecordedClock:
    """Times of the frames of a recording, from what its container states; the same at each run."""

    def __init__(self) -> None:
        self._offset_us: int | None = None
        self._last_us = -1
        self._step_us = 0
        self._repeats = 0

    def new_piece(self) -> None:
        """The next frame is the first of another file: it follows the last one."""
        self._offset_us = None

    def time_of(self, stated_ms: float | None, *, step_s: float) -> int:
        """Microseconds since the first frame; more than for the frame before.

        Args:
            stated_ms: What the container says; None where it says nothing.
            step_s: Time between two frames, for where it says nothing, or what can't be.
        """
        following_us = 0 if self._last_us < 0 else self._last_us + self._step_us
        self._step_us = max(_LEAST_STEP_US, round(step_s * _MICRO))
        self._last_us = self._next(stated_ms, following_us)
        return self._last_us

    def _next(self, stated_ms: float | None, following_us: int) -> int:
        if stated_ms is None:
            return following_us
        stated_us = round(stated_ms * 1000)
        if self._offset_us is None:
            self._offset_us = following_us - stated_us
            return following_us
        rise_us = stated_us + self._offset_us - self._last_us
        if 0 < rise_us <= _LONGEST_GAP_US:
            self._repeats = 0
            return self._last_us + rise_us
        if -_HICCUP_US < rise_us <= 0:
            self._repeats += 1
            # Half a step leaves the next stated time free.
            short = self._repeats == 1 and self._step_us >= 2 * _LEAST_STEP_US
            return self._last_us + (self._step_us // 2 if short else self._step_us)
        self._offset_us = following_us - stated_us
        return following_us


class LiveClock:
    """Times of the frames of a camera: its own where it can be believed, else of their arrival.

    The camera's clock counts the time between two frames better than their arrival does, which
    comes in bursts. It is held against the monotonic clock of this computer: where it falls or
    jumps, or drifts off by more than ten seconds, the count goes on with the time that passed here.
    """

    def __init__(self) -> None:
        self._last_us: int | None = None
        self._last_s = 0.0
        self._offset_us: int | None = None
        self._opened_s: float | None = None
        self._origin_s = 0.0

    def reopened(self, at_s: float) -> None:
        """The stream is opened at this monotonic time; what it states starts anew.

        What it sent while it was being opened arrives in a burst afterwards, so that its first
        frame belongs to this time and not to that of its arrival.
        """
        self._offset_us = None
        self._opened_s = at_s

    def time_of(self, stated_ms: float | None, *, now_s: float) -> int:
        """Microseconds since the first frame; more than for the frame before.

        Args:
            stated_ms: What the stream says; None where it says nothing.
            now_s: Monotonic time of its arrival.
        """
        if self._last_us is None:
            opened_s = None if stated_ms is None else self._opened_s
            self._origin_s = now_s if opened_s is None else opened_s
        time_us = self._passed_us(now_s) if stated_ms is None else self._stated(stated_ms, now_s)
        self._last_us, self._last_s = max(time_us, self._least_us), now_s
        return self._last_us

    @property
    def _least_us(self) -> int:
        return 0 if self._last_us is None else self._last_us + _LEAST_STEP_US

    def _passed_us(self, now_s: float) -> int:
        """Time that has passed here since the first frame."""
        return round((now_s - self._origin_s) * _MICRO)

    def _stated(self, stated_ms: float, now_s: float) -> int:
        stated_us = round(stated_ms * 1000)
        if self._offset_us is None:
            first_s = now_s if self._opened_s is None else self._opened_s
            self._offset_us = max(self._passed_us(first_s), self._least_us) - stated_us
        time_us = stated_us + self._offset_us
        if self._last_us is None:
            return time_us
        since_us = max(0.0, now_s - self._last_s) * _MICRO
        ahead_us = time_us - self._passed_us(now_s)
        if time_us <= self._last_us - _HICCUP_US or abs(ahead_us) > _TOLERANCE_US:
            time_us = self._last_us + max(_LEAST_STEP_US, round(since_us))
            self._offset_us = time_us - stated_us
            return time_us
        most_us = _LEAK * since_us
        self._origin_s -= min(max(ahead_us, -most_us), most_us) / _MICRO
        return time_us


class Pace:
    """When a frame is due, for what arrives faster than it was taken: files and segments."""

    def __init__(self, *, most_behind_s: float = 1.0) -> None:
        self._most_behind_s = most_behind_s
        self._start_s: float | None = None

    def due_s(self, pts_us: int, *, now_s: float) -> float:
        """Monotonic time at which the frame is shown; after a delay the others follow on."""
        if self._start_s is None:
            self._start_s = now_s - pts_us / _MICRO
        due_s = self._start_s + pts_us / _MICRO
        if now_s - due_s > self._most_behind_s:
            self._start_s += now_s - due_s
            return now_s
        return due_s


__all__ = ["LiveClock", "Pace", "RecordedClock"]
