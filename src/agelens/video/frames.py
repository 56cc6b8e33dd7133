"""
One frame with its two clocks, and what every source of frames promises.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError

SourceState = Literal["opening", "running", "stalled", "reconnecting", "down", "ended"]
"""What a source is doing; ``SourceStatus`` says when each holds."""

_MOST_PIXELS: Final = 80_000_000


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a source.

    Two clocks, which are never mixed: durations are differences of ``pts_us``; the time of day is
    ``at``, which follows this computer's clock, also where somebody sets it back.

    Attributes:
        pixels: (H, W, 3) uint8, RGB, C-contiguous; the reader's own.
        pts_us: Time of the frame by the stream's clock, in microseconds since the first frame of
            the epoch; never falls within an epoch.
        at: When it was taken, in UTC: for a live source when it arrived here, for a file its start
            plus ``pts_us``.
        number: Frames of the source before this one, those included that were dropped.
        received_s: ``time.monotonic()`` when it had arrived and was decoded.
    """

    pixels: NDArray[np.uint8]
    pts_us: int
    at: datetime
    number: int
    received_s: float


@dataclass(frozen=True)
class SourceOptions:
    """How a source is opened and watched over; the seconds are of the monotonic clock.

    Attributes:
        open_timeout_s: Give up opening a stream after this long.
        read_timeout_s: Give up waiting for a frame of a stream after this long.
        stall_s: A stream without a frame for this long is called stalled.
        backoff_s: (first, longest) wait between two attempts to open a stream; it doubles from one
            to the other, and each wait is shortened at random by up to half.
        down_after_s: A stream without a frame for this long is called down. Attempts go on.
        realtime: Keep only the newest frame, so that whoever reads too slowly never falls behind.
            None: streams and webcams yes, files no. True for a file plays it at its own speed.
        starts_at: When a file's first frame was taken, with a time zone. None: the file's time of
            modification less its length.
        picture_rate: Pictures of a folder that make up one second.
        max_pixels: Width times height of the largest frame that is taken.

    Raises:
        ArgumentError: A value is out of range.
    """

    open_timeout_s: float = 5.0
    read_timeout_s: float = 5.0
    stall_s: float = 3.0
    backoff_s: tuple[float, float] = (0.5, 5.0)
    down_after_s: float = 30.0
    realtime: bool | None = None
    starts_at: datetime | None = None
    picture_rate: float = 25.0
    max_pixels: int = _MOST_PIXELS

    def __post_init__(self) -> None:
        first, longest = self.backoff_s
        seconds = {
            "open_timeout_s": self.open_timeout_s,
            "read_timeout_s": self.read_timeout_s,
            "stall_s": self.stall_s,
            "the first of backoff_s": first,
            "the second of backoff_s": longest,
            "down_after_s": self.down_after_s,
            "picture_rate": self.picture_rate,
        }
        for name, value in seconds.items():
            if not math.isfinite(value) or value <= 0:
                raise ArgumentError(f"{name} must be finite and over 0, got {value!r}")
        if longest < first:
            raise ArgumentError(f"backoff_s must rise, got {self.backoff_s!r}")
        if isinstance(self.max_pixels, bool) or self.max_pixels < 1:
            raise ArgumentError(f"max_pixels must be at least 1, got {self.max_pixels!r}")
        if self.starts_at is not None and self.starts_at.tzinfo is None:
            raise ArgumentError("starts_at must have a time zone")


@dataclass(frozen=True)
class SourceStatus:
    """What a source is doing and has done.

    ``frames_in`` is ``delivered`` plus ``dropped`` plus the frame that waits to be taken, if any.

    Attributes:
        state: "opening" before the first frame; "running"; "stalled" when the stream is open and
            has sent nothing for ``stall_s``; "reconnecting" when it broke or will not open; "down"
            when there has been no frame for ``down_after_s``; "ended" when it is over or closed.
        frames_in: Frames that arrived.
        delivered: Frames that were handed out.
        dropped: Frames that a newer one replaced before they were taken, or that arrived broken.
        reconnects: Times it was opened again and gave a frame.
        last_frame_at: When the newest frame arrived, in UTC; None before the first.
        width: Of the newest frame, in pixels; 0 before the first.
        height: The same, downwards.
        message: One sentence where something is wrong, without any password; else "".
    """

    state: SourceState
    frames_in: int
    delivered: int
    dropped: int
    reconnects: int
    last_frame_at: datetime | None
    width: int
    height: int
    message: str = ""


class VideoSource(ABC):
    """An ordered run of frames from one place; a context manager.

    ``frames`` belongs to one thread; ``status`` and ``close`` may be called from any.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The place, for messages; without the password of an address."""

    @property
    @abstractmethod
    def epoch(self) -> str:
        """Which run of the source the times belong to.

        For files a fingerprint of their content: the same at each replay, wherever they lie. For a
        live source a new identifier for each object; its times go on rising over reconnects.
        """

    @property
    @abstractmethod
    def is_live(self) -> bool:
        """Whether it is a camera, which can't be read again from the start."""

    @abstractmethod
    def frames(self, from_pts_us: int = 0) -> Iterator[Frame]:
        """The frames, in order; it ends with the source or when that is closed.

        Args:
            from_pts_us: Leave out what lies before. Of no use to a live source.

        Raises:
            DataError: A file is broken, not a video, or too large.
            ArgumentError: The source is closed, or its frames are being read already.
        """

    @abstractmethod
    def status(self) -> SourceStatus:
        """What it is doing."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; more than once does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


__all__ = ["Frame", "SourceOptions", "SourceState", "SourceStatus", "VideoSource"]
