"""
The place where one frame waits: a newer one takes its place, so that a slow reader never lags.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agelens.video.frames import Frame


class NewestFrame:
    """One frame between the thread that brings it and the one that takes it; for any thread.

    Attributes:
        frames_in: Frames that came, broken ones included.
        delivered: Frames that were taken.
        dropped: Frames that were replaced before that, or broken.

    Args:
        replaces: Whether a newer frame takes the place of one that waits; else whoever brings it
            waits until there is room.
    """

    def __init__(self, *, replaces: bool) -> None:
        self.frames_in = 0
        self.delivered = 0
        self.dropped = 0
        self._replaces = replaces
        self._waiting: Frame | None = None
        self._closed = False
        self.changed = threading.Condition()

    def is_closed(self) -> bool:
        """Whether nothing is taken in any more."""
        return self._closed

    def is_full(self) -> bool:
        """Whether a frame waits."""
        return self._waiting is not None

    def put(self, frame: Frame, *, is_wanted: Callable[[], bool] = lambda: True) -> bool:
        """Leave a frame to be taken; False when it is not wanted any more."""
        with self.changed:
            while self._waiting is not None and not self._replaces:
                if self._closed or not is_wanted():
                    return False
                self.changed.wait(0.5)
            if self._closed or not is_wanted():
                return False
            self.frames_in += 1
            self.dropped += self._waiting is not None
            self._waiting = frame
            self.changed.notify_all()
            return True

    def count_broken(self) -> None:
        """A frame came that can't be decoded."""
        with self.changed:
            self.frames_in += 1
            self.dropped += 1

    def take(self, timeout_s: float) -> Frame | None:
        """The frame that waits, once there is one; None when none comes in time or it is closed."""
        until = time.monotonic() + timeout_s
        with self.changed:
            while self._waiting is None:
                left = until - time.monotonic()
                if self._closed or left <= 0:
                    return None
                self.changed.wait(left)
            frame, self._waiting = self._waiting, None
            self.delivered += 1
            self.changed.notify_all()
            return frame

    def close(self, *, at_once: bool) -> None:
        """Take nothing in any more.

        Args:
            at_once: Drop the frame that waits too, instead of letting it be taken.
        """
        with self.changed:
            self._closed = True
            if at_once and self._waiting is not None:
                self._waiting = None
                self.dropped += 1
            self.changed.notify_all()


__all__ = ["NewestFrame"]
