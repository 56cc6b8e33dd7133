"""
Recordings: a video file, a picture, or a folder of them, read frame by frame the same at each run.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError, DataError, ImageError
from agelens.identifiers import utc_now
from agelens.images import ImageLimits, display_name, read_pixels
from agelens.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from agelens.video.clock import RecordedClock
from agelens.video.decoding import open_file
from agelens.video.frames import Frame, SourceOptions, SourceStatus, VideoSource

Pixels: TypeAlias = NDArray[np.uint8]

FOLDER_SUFFIXES: Final = IMAGE_SUFFIXES | VIDEO_SUFFIXES | {".ts", ".mts", ".m2ts"}
"""Files of a folder that are read; the others are left out."""

_BLOCK: Final = 1 << 16
_WHOLE_BELOW: Final = 1 << 23
_SAMPLES: Final = 32


class Recording(VideoSource):
    """Files read from the first frame to the last, one after the other.

    The pieces of a folder follow one another without a gap, as those of one recording that was cut;
    a piece that can't be read is passed over, and said when all the others have been read.

    Args:
        path: A video, a picture, or a folder of them.
        options: Limits, and when the first frame was taken.

    Raises:
        DataError: There is no such file, it is broken or no video, or the folder holds none.
    """

    def __init__(self, path: str | os.PathLike[str], options: SourceOptions) -> None:
        self._name = display_name(path)
        self._options = options
        self._pieces = _pieces(Path(path))
        self._starts_at = _start_of(self._pieces, options)
        self._epoch = fingerprint(self._pieces)
        self._status = SourceStatus("opening", 0, 0, 0, 0, None, 0, 0)
        self._closed = threading.Event()

    @property
    def name(self) -> str:
        """The path."""
        return self._name

    @property
    def epoch(self) -> str:
        """A fingerprint of the content."""
        return self._epoch

    @property
    def is_live(self) -> bool:
        """It is not."""
        return False

    def status(self) -> SourceStatus:
        """What it is doing; a frame that can't be decoded counts as dropped."""
        return self._status

    def close(self) -> None:
        """End the frames after the one that is being read."""
        self._closed.set()
        self._status = replace(self._status, state="ended")

    def frames(self, from_pts_us: int = 0) -> Generator[Frame]:
        """Every frame, in order, from the first that is not before ``from_pts_us``."""
        if self._closed.is_set():
            raise ArgumentError(f"{self._name}: the source is closed; open it again")
        clock = RecordedClock()
        number = 0
        faults: list[DataError] = []
        for piece in self._pieces:
            clock.new_piece()
            with closing(self._moments(piece, faults)) as moments:
                for moment in moments:
                    if self._closed.is_set():
                        return
                    pts_us = clock.time_of(moment.stated_ms, step_s=moment.step_s)
                    if pts_us >= from_pts_us:
                        frame = self._frame(moment.pixels(), pts_us, number)
                        if frame is not None:
                            yield frame
                    number += 1
        self._status = replace(self._status, state="ended")
        for fault in faults[:1]:
            self._fail(fault, len(faults))

    def _frame(self, pixels: Pixels | None, pts_us: int, number: int) -> Frame | None:
        status = self._status
        if pixels is None:
            self._status = replace(
                status, frames_in=status.frames_in + 1, dropped=status.dropped + 1
            )
            return None
        height, width = pixels.shape[:2]
        self._status = SourceStatus(
            "ended" if self._closed.is_set() else "running",
            status.frames_in + 1,
            status.delivered + 1,
            status.dropped,
            0,
            utc_now(),
            width,
            height,
            status.message,
        )
        at = self._starts_at + timedelta(microseconds=pts_us)
        return Frame(pixels, pts_us, at, number, time.monotonic())

    def _moments(self, piece: Path, faults: list[DataError]) -> Generator[_Moment]:
        """The frames of one file, not yet decoded into pixels; what is wrong with it in the end."""
        try:
            if _is_picture(piece):
                pixels = _picture(piece, self._options)
                yield _Moment(None, 1 / self._options.picture_rate, lambda: pixels)
            else:
                yield from _video(piece, self._options)
        except DataError as fault:
            faults.append(fault)
            self._status = replace(self._status, message=str(fault))

    def _fail(self, fault: DataError, count: int) -> None:
        if len(self._pieces) == 1:
            raise fault
        raise DataError(
            f"{self._name}: {count} of its {len(self._pieces)} files could not be read whole; "
            f"the first: {fault}"
        ) from fault


@dataclass(frozen=True)
class _Moment:
    """A frame of a file that has not been turned into pixels.

    Attributes:
        stated_ms: Its time by the container; None for a picture.
        step_s: Time until the next one, where the container says nothing.
        pixels: Decodes it; None when it is broken.
    """

    stated_ms: float | None
    step_s: float
    pixels: Callable[[], Pixels | None]


def _video(piece: Path, options: SourceOptions) -> Generator[_Moment]:
    with closing(open_file(piece, options)) as decoder:
        step_s = 1 / decoder.rate
        frames = 0
        while decoder.advance():
            frames += 1
            yield _Moment(decoder.stated_ms(), step_s, decoder.pixels)
        if frames == 0:
            raise DataError(f"{decoder.name}: no frame of it can be decoded; use another copy")
        if decoder.length and not decoder.is_at_stated_end():
            raise DataError(
                f"{decoder.name}: it ends after {decoder.furthest_ms() / 1000:.1f} s of "
                f"{decoder.length / decoder.rate:.1f} s, so it is cut short or broken; what was "
                "there has been read"
            )


def _picture(piece: Path, options: SourceOptions) -> Pixels:
    try:
        return read_pixels(piece, limits=ImageLimits(max_pixels=options.max_pixels))
    except ImageError as error:
        raise DataError(str(error)) from error


def _is_picture(piece: Path) -> bool:
    return piece.suffix.lower() in IMAGE_SUFFIXES


def fingerprint(pieces: tuple[Path, ...]) -> str:
    """What the files hold, as 32 hexadecimal digits; the same wherever they lie.

    Files of 8 MiB and more are sampled: their length, and 32 blocks of 64 KiB from the first to the
    last.
    """
    total = hashlib.sha256()
    for piece in pieces:
        try:
            with open(piece, "rb") as file:
                total.update(_digest(file))
        except OSError as error:
            name = display_name(piece)
            raise DataError(f"{name}: can't be read ({error.strerror}); check it") from error
    return total.hexdigest()[:32]


def _digest(file: BinaryIO) -> bytes:
    size = os.fstat(file.fileno()).st_size
    digest = hashlib.sha256(size.to_bytes(8, "big"))
    if size < _WHOLE_BELOW:
        digest.update(file.read())
        return digest.digest()
    for sample in range(_SAMPLES):
        file.seek((size - _BLOCK) * sample // (_SAMPLES - 1))
        digest.update(file.read(_BLOCK))
    return digest.digest()


def _pieces(path: Path) -> tuple[Path, ...]:
    name = display_name(path)
    if path.is_dir():
        try:
            listing = [one for one in path.iterdir() if not one.name.startswith(".")]
        except OSError as error:
            raise DataError(f"{name}: can't be listed ({error.strerror}); check it") from error
        listing = [one for one in listing if one.suffix.lower() in FOLDER_SUFFIXES]
        pieces = sorted((one for one in listing if one.is_file()), key=_natural)
        if not pieces:
            raise DataError(
                f"{name}: the folder holds no video and no picture; expected files ending in "
                f"{', '.join(sorted(FOLDER_SUFFIXES))}"
            )
        return tuple(pieces)
    if not path.exists():
        raise DataError(f"{name}: no such file or folder; check the path")
    if not path.is_file():
        raise DataError(f"{name}: a pipe, socket or device; pass a file, a folder or an address")
    return (path,)


def _natural(piece: Path) -> list[tuple[bool, int, str]]:
    """A key that puts frame10 after frame9."""
    parts = re.split(r"([0-9]+)", piece.name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _start_of(pieces: tuple[Path, ...], options: SourceOptions) -> datetime:
    """When the first frame was taken: a camera writes to its file until the last one.

    Opens the first file, so that one that can't be read is an error at once.
    """
    first = pieces[0]
    seconds = 0.0
    if len(pieces) == 1 or options.starts_at is None:
        seconds = _seconds_of(first, options, is_alone=len(pieces) == 1)
    if options.starts_at is not None:
        return options.starts_at.astimezone(UTC)
    try:
        ended = datetime.fromtimestamp(first.stat().st_mtime, UTC)
    except (OSError, OverflowError, ValueError) as error:
        raise DataError(f"{display_name(first)}: has no usable time; pass starts_at") from error
    return ended - timedelta(seconds=seconds)


def _seconds_of(piece: Path, options: SourceOptions, *, is_alone: bool) -> float:
    """Length that a video states; 0 for a picture, or where it says nothing."""
    try:
        if _is_picture(piece):
            _picture(piece, options)
            return 0.0
        with closing(open_file(piece, options)) as decoder:
            return decoder.length / decoder.rate
    except DataError:
        if is_alone:
            raise
        return 0.0


__all__ = ["FOLDER_SUFFIXES", "Recording", "fingerprint"]
