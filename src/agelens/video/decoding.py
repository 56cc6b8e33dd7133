"""
OpenCV's FFmpeg, held to what may be opened: files that hold their frames, addresses of cameras.

Nothing else of ``video`` opens a capture. A local file is handed over as an open file, never by its
name, and only when its first bytes are those of a container that holds its frames itself: FFmpeg
would take a name for a pattern or a protocol, and a playlist may name any file of this computer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError, DataError
from agelens.images import display_name, source_name
from agelens.sources import SteadyFile, is_plain_video
from agelens.video.frames import SourceOptions

STREAM_SCHEMES: Final = ("rtsp", "rtsps", "http", "https")

_HEAD: Final = 1024
_QUICKTIME: Final = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_MAGICS: Final = (
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"FLV\x01",
    b"OggS",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\xff\xd8\xff",  # motion JPEG
)
_PACKETS: Final = ((188, 0), (192, 4), (204, 0))
"""(length, bytes before the first sync byte) of packets of MPEG transport streams."""
_SYNC: Final = 0x47
_SYNCS: Final = 3
_NOT_STATED: Final = -float(1 << 62)
_LIKELY_RATE: Final = 25.0
_FASTEST_RATE: Final = 1000.0
_SHORT_BY: Final = 0.01
_SHORT_S: Final = 0.5
"""A recording may end this share of its length and these seconds before the end that it states."""


class Decoder:
    """An open capture, from its next frame on; for one thread.

    Attributes:
        name: What messages call it.
        rate: Frames a second that it states, or 25.
        length: Frames that it states to have; 0 where that is unknown or endless.
        width: Of its frames when it was opened, in pixels; a stream that changes its size later is
            scaled to this one.
        height: The same, downwards.
    """

    def __init__(self, capture: Any, name: str, *, file: BinaryIO | None = None) -> None:
        import cv2

        self._cv2 = cv2
        self._capture = capture
        self._file = file
        self._stated_ms = self._furthest_ms = 0.0
        self.name = name
        stated = capture.get(cv2.CAP_PROP_FPS)
        self.rate = stated if 0 < stated <= _FASTEST_RATE else _LIKELY_RATE
        self.length = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))

    def advance(self) -> bool:
        """Go to the next frame; False at the end, when the stream broke or sent nothing in time."""
        if not self._capture.grab():
            return False
        self._stated_ms = float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC))
        self._furthest_ms = max(self._furthest_ms, self._stated_ms)
        return True

    def stated_ms(self) -> float:
        """Time of the frame since the first one that was opened, by the container."""
        return self._stated_ms

    def furthest_ms(self) -> float:
        """The latest of these times; frames that a decoder held back to the end may come with 0."""
        return self._furthest_ms

    def has_own_time(self) -> bool:
        """Whether the frame came with a time of presentation.

        Without one, as in motion JPEG, ``stated_ms`` is made up from a rate of 25.
        """
        return float(self._capture.get(self._cv2.CAP_PROP_PTS)) > _NOT_STATED

    def is_at_stated_end(self) -> bool:
        """Whether the frames went as far as the container says; False when it says nothing."""
        if not self.length:
            return False
        stated_s = self.length / self.rate
        ended_s = self.furthest_ms() / 1000 + 1 / self.rate
        return ended_s >= (1 - _SHORT_BY) * stated_s - _SHORT_S

    def pixels(self) -> NDArray[np.uint8] | None:
        """(H, W, 3) uint8, RGB; None when the frame can't be decoded."""
        decoded, pixels = self._capture.retrieve()
        if not decoded or pixels is None or pixels.size == 0:
            return None
        if pixels.ndim == 2:
            return np.asarray(self._cv2.cvtColor(pixels, self._cv2.COLOR_GRAY2RGB))
        return np.asarray(self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB))

    def close(self) -> None:
        """Let go of the file, device or connection."""
        self._capture.release()
        if self._file is not None:
            self._file.close()


def open_file(path: Path, options: SourceOptions) -> Decoder:
    """A video file from its first frame.

    Raises:
        DataError: It can't be read, is not a video that holds its frames, or too large.
    """
    import cv2

    name = display_name(path)
    try:
        file = open(path, "rb")  # noqa: SIM115 (the decoder closes it)
    except OSError as error:
        raise DataError(f"{name}: can't be read ({error.strerror}); check the path") from error
    try:
        _require_video(file, name)
        stream: Any = SteadyFile(file)  # the stubs of OpenCV do not know files
        capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not capture.isOpened():
            raise DataError(
                f"{name}: begins like a video but can't be opened; it is broken, cut short or of "
                "an unknown codec: repair it or export it again as MP4 (H.264)"
            )
        decoder = Decoder(capture, name, file=stream)
        _require_size(decoder, options)
    except BaseException:
        file.close()
        raise
    return decoder


def open_stream(address: str, options: SourceOptions) -> Decoder:
    """A stream over the network, from what it sends next.

    Raises:
        ArgumentError: The address is none of ``STREAM_SCHEMES`` with a host.
        DataError: Nothing answers in time, it is no video, or too large.
    """
    import cv2

    name = require_address(address)
    settings = [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(options.open_timeout_s * 1000)),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(options.read_timeout_s * 1000)),
        # Several threads would each hold a frame back.
        *(cv2.CAP_PROP_N_THREADS, 1),
    ]
    capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, settings)
    if not capture.isOpened():
        raise DataError(
            f"{name}: does not answer with a video; check the address, the password and the camera"
        )
    decoder = Decoder(capture, name)
    _require_size(decoder, options)
    return decoder


def open_webcam(number: int, options: SourceOptions) -> Decoder:
    """A camera of this computer.

    Raises:
        DataError: There is none of that number, or another program has it.
    """
    import cv2

    name = f"webcam {number}"
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise DataError(f"{name}: can't be opened; check that it is there and not in use")
    decoder = Decoder(capture, name)
    _require_size(decoder, options)
    return decoder


def require_address(address: str) -> str:
    """The name of a stream's address for messages, without its password.

    Raises:
        ArgumentError: The address is none of ``STREAM_SCHEMES`` with a host.
    """
    name = source_name(address) or "..."
    try:
        parts = urlsplit(address)
        is_whole = parts.scheme.lower() in STREAM_SCHEMES and bool(parts.hostname)
    except ValueError:
        is_whole = False
    if not is_whole or not address.isprintable() or " " in address:
        raise ArgumentError(
            f"{name}: not the address of a camera; expected {'://, '.join(STREAM_SCHEMES)}:// and "
            "a host, with every special character of a password as %XX"
        )
    return name


def _require_video(file: BinaryIO, name: str) -> None:
    head = file.read(_HEAD)
    file.seek(0)
    if not head:
        raise DataError(f"{name}: the file is empty; use another copy")
    if not _holds_its_frames(head):
        raise DataError(
            f"{name}: not a video that is read here; expected MP4, QuickTime, Matroska, WebM, AVI, "
            "MPEG, FLV, Ogg, ASF or motion JPEG (playlists are not followed)"
        )


def _holds_its_frames(head: bytes) -> bool:
    """Whether a file that begins so is a container of frames, and not one that names others."""
    return (
        is_plain_video(head)
        or head[4:8] in _QUICKTIME
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or head.startswith(_MAGICS)
        or any(_is_transport_stream(head, *layout) for layout in _PACKETS)
    )


def _is_transport_stream(head: bytes, length: int, before: int) -> bool:
    starts = head[before::length]
    return len(starts) >= _SYNCS and set(starts) == {_SYNC}


def _require_size(decoder: Decoder, options: SourceOptions) -> None:
    if decoder.width * decoder.height <= options.max_pixels:
        return
    decoder.close()
    raise DataError(
        f"{decoder.name}: its frames of {decoder.width} x {decoder.height} are over "
        f"{options.max_pixels:,} pixels; scale it down or raise max_pixels"
    )


__all__ = [
    "STREAM_SCHEMES",
    "Decoder",
    "open_file",
    "open_stream",
    "open_webcam",
    "require_address",
]
