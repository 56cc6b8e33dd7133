"""
Where frames come from: a video file, a folder, a webcam, or a stream over RTSP or HTTP.

    open_source
    ├── Recording      a file or a folder: every frame, the same at each run
    ├── Playback       the same at its own speed, as if it were a camera
    └── LiveStream     a webcam or a stream: the newest frame, reconnected for ever
"""

from __future__ import annotations

import os
import re
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from agelens.errors import ArgumentError
from agelens.video.decoding import Decoder, open_stream, open_webcam, require_address
from agelens.video.frames import Frame, SourceOptions, SourceState, SourceStatus, VideoSource
from agelens.video.live import LiveStream, Playback
from agelens.video.recording import Recording

_DEFAULTS: Final = SourceOptions()
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def open_source(
    where: str | int | os.PathLike[str], *, options: SourceOptions = _DEFAULTS
) -> VideoSource:
    """Get ready to read frames; close what it returns, or use it in a ``with``.

    A camera that does not answer is no error: its ``status`` says so, and it is tried for ever.

    Args:
        where: Path of a video, a picture or a folder of them; number of a webcam, also as text; an
            rtsp, rtsps, http or https address. Playlists on this computer are not followed.
        options: Timeouts, limits, real time or not.

    Raises:
        DataError: There is no such file, it is broken or no video, or the folder holds none.
        ArgumentError: The address or number can't be one.
    """
    if isinstance(where, int):
        return _webcam(where, options)
    text = os.fspath(where)
    if text.isdecimal() and not os.path.exists(text):
        return _webcam(int(text), options)
    if _is_address(text):
        return _stream(text, options)
    recording = Recording(text, options)
    return Playback(recording) if options.realtime else recording


def _is_address(text: str) -> bool:
    """A path may begin like an address; one that is there is a path."""
    return _SCHEME.match(text) is not None and not os.path.exists(text)


def _webcam(number: int, options: SourceOptions) -> LiveStream:
    if isinstance(number, bool) or number < 0:
        raise ArgumentError(f"the number of a webcam must be 0 or more, got {number!r}")
    return LiveStream(f"webcam {number}", partial(open_webcam, number, options), options)


def _stream(address: str, options: SourceOptions) -> LiveStream:
    name = require_address(address)
    parts = urlsplit(address)
    is_playlist = parts.path.lower().endswith(".m3u8")

    def is_paced(decoder: Decoder) -> bool:
        return parts.scheme.lower().startswith("http") and (is_playlist or decoder.length > 0)

    return LiveStream(name, partial(open_stream, address, options), options, is_paced=is_paced)


__all__ = [
    "Frame",
    "SourceOptions",
    "SourceState",
    "SourceStatus",
    "VideoSource",
    "open_source",
]
