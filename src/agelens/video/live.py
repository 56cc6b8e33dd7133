"""
Sources that go on by themselves: a thread reads them, and the newest frame waits to be taken.

    open ──frames──> running ──nothing for stall_s──> stalled
      ^                 │ broken, or read timed out      │
      └── backoff ──────┴────────────────────────────────┘   nothing for down_after_s: down
"""

from __future__ import annotations

import logging
import random
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Generator
from contextlib import closing
from datetime import datetime
from typing import Final

from agelens.errors import AgeLensError, ArgumentError
from agelens.identifiers import new_identifier, utc_now
from agelens.video.clock import LiveClock, Pace
from agelens.video.decoding import Decoder
from agelens.video.frames import Frame, SourceOptions, SourceState, SourceStatus, VideoSource
from agelens.video.newest import NewestFrame
from agelens.video.recording import Recording

_LOOK_S: Final = 0.5
"""How often somebody who waits for a frame looks after the thread that should bring it."""
_CLOSE_S: Final = 1.0
_MOST_THREADS: Final = 3
"""Threads of one source, those included that hang in a read."""
_PATIENCE_S: Final = 2.0
_ALMOST: Final = 0.98

_log = logging.getLogger(__name__)


class ThreadedSource(VideoSource):
    """A source that a thread of its own reads; the thread starts with ``frames``.

    Args:
        name: What messages call it, without a password.
        epoch: Which run it is.
        replaces: Whether a newer frame takes the place of one that waits.
    """

    def __init__(self, name: str, epoch: str, *, replaces: bool) -> None:
        self._name = name
        self._epoch = epoch
        self._newest = NewestFrame(replaces=replaces)
        self._threads: list[threading.Thread] = []
        self._generation = 0
        self._is_read = False
        self._failure: AgeLensError | None = None
        self._last_frame_at: datetime | None = None
        self._size = (0, 0)

    @property
    def name(self) -> str:
        """The place, without the password of an address."""
        return self._name

    @property
    def epoch(self) -> str:
        """Which run of the source the times belong to."""
        return self._epoch

    def frames(self, from_pts_us: int = 0) -> Generator[Frame]:
        """The frames, in order; it ends with the source or when that is closed."""
        if self._newest.is_closed():
            raise ArgumentError(f"{self._name}: the source is closed; open it again")
        if self._is_read:
            raise ArgumentError(f"{self._name}: its frames are being read already")
        self._is_read = True
        try:
            if not self._threads:
                self._start(from_pts_us)
            while True:
                frame = self._newest.take(_LOOK_S)
                if frame is not None:
                    yield frame
                elif self._newest.is_closed():
                    break
                else:
                    self._look_after(from_pts_us)
        finally:
            self._is_read = False
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the frames and the thread; one that is stuck in a read ends after its timeout."""
        self._newest.close(at_once=True)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_CLOSE_S)

    @abstractmethod
    def _pump(self, generation: int, from_pts_us: int) -> None:
        """Bring frames while ``_is_mine(generation)``; runs in a thread."""

    def _look_after(self, from_pts_us: int) -> None:
        """Called now and then while there is no frame."""

    def _start(self, from_pts_us: int) -> None:
        self._generation += 1
        arguments = (self._generation, from_pts_us)
        name = f"frames of {self._name}"
        thread = threading.Thread(target=self._pump, args=arguments, name=name, daemon=True)
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        thread.start()

    def _is_mine(self, generation: int) -> bool:
        return generation == self._generation and not self._newest.is_closed()

    def _sleep(self, seconds: float, generation: int) -> None:
        """Wait, but not beyond the end."""
        until = time.monotonic() + seconds
        with self._newest.changed:
            while self._is_mine(generation) and (left := until - time.monotonic()) > 0:
                self._newest.changed.wait(left)

    def _put(self, frame: Frame, generation: int) -> bool:
        height, width = frame.pixels.shape[:2]
        self._size = (width, height)
        return self._newest.put(frame, is_wanted=lambda: self._is_mine(generation))


class Playback(ThreadedSource):
    """A recording played at its own speed, as if it were a camera: the newest frame wins."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording.name, recording.epoch, replaces=True)
        self._recording = recording

    @property
    def is_live(self) -> bool:
        """It is not: it can be read again."""
        return False

    def status(self) -> SourceStatus:
        """What it is doing."""
        played = self._recording.status()
        newest = self._newest
        with newest.changed:
            return SourceStatus(
                "ended" if newest.is_closed() else played.state,
                newest.frames_in,
                newest.delivered,
                newest.dropped,
                0,
                self._last_frame_at,
                *self._size,
                played.message,
            )

    def close(self) -> None:
        """End the frames and the thread."""
        super().close()
        self._recording.close()

    def _pump(self, generation: int, from_pts_us: int) -> None:
        pace = Pace()
        try:
            with closing(self._recording.frames(from_pts_us)) as frames:
                for frame in frames:
                    now_s = time.monotonic()
                    self._sleep(pace.due_s(frame.pts_us, now_s=now_s) - now_s, generation)
                    shown = Frame(
                        frame.pixels, frame.pts_us, frame.at, frame.number, time.monotonic()
                    )
                    self._last_frame_at = utc_now()
                    if not self._put(shown, generation):
                        return
        except AgeLensError as error:
            self._failure = error
        finally:
            self._newest.close(at_once=False)


class LiveStream(ThreadedSource):
    """A camera: opened again for ever, its stalls seen from outside the thread that reads it.

    Args:
        name: What messages call it, without a password.
        opened: Opens it; raises an ``AgeLensError`` where that fails.
        options: Timeouts, backoff, whether the newest frame wins.
        is_paced: Whether what was opened arrives faster than it was taken, in segments or as a
            file, so that it must be played at its own speed.
        now: The time of day.
    """

    def __init__(
        self,
        name: str,
        opened: Callable[[], Decoder],
        options: SourceOptions,
        *,
        is_paced: Callable[[Decoder], bool] = lambda _: False,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(name, new_identifier(now()), replaces=options.realtime is not False)
        self._opened = opened
        self._options = options
        self._is_paced = is_paced
        self._now = now
        self._clock = LiveClock()
        self._is_open = False
        self._reconnects = 0
        self._message = ""
        self._newest_s = self._active_s = time.monotonic()
        self._too_late_s = _ALMOST * options.read_timeout_s
        self._stuck_after_s = _PATIENCE_S + options.open_timeout_s + 2 * options.read_timeout_s

    @property
    def is_live(self) -> bool:
        """It is."""
        return True

    def status(self) -> SourceStatus:
        """What it is doing, by the clock: a read that hangs can't hide that nothing comes."""
        newest = self._newest
        with newest.changed:
            state = self._state(time.monotonic())
            return SourceStatus(
                state,
                newest.frames_in,
                newest.delivered,
                newest.dropped,
                self._reconnects,
                self._last_frame_at,
                *self._size,
                self._said(state),
            )

    def _state(self, now_s: float) -> SourceState:
        silent_s = now_s - self._newest_s
        options = self._options
        if self._newest.is_closed():
            return "ended"
        # Where every frame counts, the reader rests while one waits to be taken.
        if options.realtime is False and self._newest.is_full():
            return "running"
        if silent_s >= options.down_after_s:
            return "down"
        if not self._is_open:
            return "reconnecting" if self._last_frame_at or self._message else "opening"
        if silent_s >= options.stall_s:
            return "stalled"
        return "running" if self._last_frame_at else "opening"

    def _said(self, state: SourceState) -> str:
        if state in ("running", "opening", "ended") or self._last_frame_at is None:
            return self._message
        silent = f"no frame since {self._last_frame_at:%Y-%m-%d %H:%M:%S} UTC"
        return f"{self._message}; {silent}" if self._message else f"{self._name}: {silent}"

    def _start(self, from_pts_us: int) -> None:
        self._active_s = time.monotonic()
        if self._last_frame_at is None:
            self._newest_s = self._active_s
        super()._start(from_pts_us)

    def _look_after(self, from_pts_us: int) -> None:
        """Leave a thread behind that hangs beyond every timeout, and read with another."""
        if time.monotonic() - self._active_s < self._stuck_after_s:
            return
        stuck = sum(thread.is_alive() for thread in self._threads)
        if stuck < _MOST_THREADS:
            _log.warning("%s: a read hangs; it is left behind", self._name)
            self._start(from_pts_us)

    def _pump(self, generation: int, from_pts_us: int) -> None:
        first_s, longest_s = self._options.backoff_s
        wait_s = first_s
        while self._is_mine(generation):
            if self._read_until_it_breaks(generation):
                wait_s = first_s
            self._active_s = time.monotonic() + wait_s
            self._sleep(wait_s * random.uniform(0.5, 1.0), generation)
            wait_s = min(2 * wait_s, longest_s)

    def _read_until_it_breaks(self, generation: int) -> bool:
        """Whether it gave a frame."""
        self._active_s = opened_s = time.monotonic()
        try:
            decoder = self._opened()
        except AgeLensError as error:
            self._say(str(error), generation)
            return False
        with closing(decoder):
            if not self._is_mine(generation):
                return False
            self._clock.reopened(opened_s)
            self._is_open = True
            try:
                return self._read(decoder, generation)
            finally:
                if self._is_mine(generation):
                    self._is_open = False

    def _read(self, decoder: Decoder, generation: int) -> bool:
        pace = Pace() if self._is_paced(decoder) else None
        is_first = True
        while self._is_mine(generation):
            self._active_s = asked_s = time.monotonic()
            # When a read times out, FFmpeg may still hand out the frame that its decoder held back.
            in_time = decoder.advance() and time.monotonic() - asked_s < self._too_late_s
            if not in_time:
                self._broke(decoder, generation)
                break
            frame = self._frame(decoder, generation, pace)
            if frame is None:
                continue
            self._came(is_first)
            is_first = False
            if not self._put(frame, generation):
                break
            self._newest_s = time.monotonic()
        return not is_first

    def _frame(self, decoder: Decoder, generation: int, pace: Pace | None) -> Frame | None:
        arrived_s = time.monotonic()
        stated_ms = decoder.stated_ms() if decoder.has_own_time() else None
        pixels = decoder.pixels()
        if not self._is_mine(generation):
            return None
        if pixels is None:
            self._newest.count_broken()
            return None
        pts_us = self._clock.time_of(stated_ms, now_s=arrived_s)
        if pace is not None:
            self._sleep(pace.due_s(pts_us, now_s=arrived_s) - arrived_s, generation)
        number = self._newest.frames_in
        return Frame(pixels, pts_us, self._now(), number, time.monotonic())

    def _came(self, is_first: bool) -> None:
        with self._newest.changed:
            self._reconnects += is_first and self._last_frame_at is not None
            self._last_frame_at = self._now()
            self._newest_s = time.monotonic()
            self._message = ""

    def _broke(self, decoder: Decoder, generation: int) -> None:
        if decoder.is_at_stated_end():
            self._newest.close(at_once=False)
            return
        self._say(f"{self._name}: the stream broke or sent nothing in time", generation)

    def _say(self, message: str, generation: int) -> None:
        if self._is_mine(generation) and message != self._message:
            self._message = message
            _log.info("%s; trying again", message)


__all__ = ["LiveStream", "Playback"]
