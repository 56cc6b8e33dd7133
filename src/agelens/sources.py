"""
What the user pointed at, as an ordered stream of named pictures.

Folders, globs, single files, Parquet tables with an ``image`` or ``path`` column, and videos all
become ``SourceItem`` rows; nothing is decoded here but the frames of a video.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from agelens.errors import DataError, ImageError, MissingExtra
from agelens.images import (
    DEFAULT_LIMITS,
    ImageLimits,
    ImageSource,
    display_name,
    source_name,
)

IMAGE_SUFFIXES: Final = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "webp", "gif", "bmp", "dib"),
        *("tif", "tiff", "avif", "heic", "heif"),
    )
)
VIDEO_SUFFIXES: Final = frozenset(
    (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
)
_PARQUET_SUFFIXES: Final = frozenset((".parquet", ".pq"))
_ROWS_AT_ONCE: Final = 64


@dataclass(frozen=True, eq=False)
class SourceItem:
    """One picture to analyse.

    Attributes:
        name: What results call it: a path, ``FILE#ROW`` of a Parquet table, ``FILE#t=SECONDS`` of
            a video.
        image: What ``images.load_image`` takes; None when ``error`` says why there is nothing.
        error: Why this row could not be had.
    """

    name: str
    image: ImageSource | None
    error: ImageError | None = None


def expand(
    paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    recursive: bool = False,
    every_s: float = 1.0,
) -> Iterator[SourceItem]:
    """The pictures of these paths, in the order given; folders by name.

    A path that does not exist gives an item with an error, so that no row is lost. In a folder,
    files without an image suffix are left out; hidden ones too.

    Args:
        paths: Files, folders, globs, Parquet tables, videos; one of them or several.
        recursive: Go into the folders of a folder.
        every_s: Seconds between the frames taken from a video.

    Raises:
        DataError: A Parquet table has neither an ``image`` nor a ``path`` column, or is broken.
        MissingExtra: A Parquet table was named and pyarrow is not installed.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    for given in paths:
        text = os.fspath(given)
        matches = matching(text)
        if not matches:
            name = display_name(text)
            error = ImageError("not_found", "no file matches this pattern", where=name)
            yield SourceItem(name, None, error)
        for match in matches:
            yield from _expand_one(match, recursive=recursive, every_s=every_s)


def count(paths: Sequence[str | os.PathLike[str]], *, recursive: bool = False) -> int | None:
    """How many pictures ``expand`` will give, or None when only reading a video would tell."""
    total = 0
    for given in paths:
        text = os.fspath(given)
        for match in matching(text) or [text]:
            suffix = Path(match).suffix.lower()
            if os.path.isdir(match):
                total += sum(1 for _ in _files(match, recursive=recursive))
            elif suffix in VIDEO_SUFFIXES:
                return None
            elif suffix in _PARQUET_SUFFIXES and os.path.isfile(match):
                total += _open_parquet(match).metadata.num_rows
            else:
                total += 1
    return total


def matching(text: str) -> list[str]:
    """The paths that an argument names: itself, or what its pattern matches, by name."""
    return sorted(glob.glob(text, recursive=True)) if _is_pattern(text) else [text]


def _is_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _is_pattern(text: str) -> bool:
    return not _is_address(text) and not os.path.lexists(text) and glob.has_magic(text)


def _expand_one(path: str, *, recursive: bool, every_s: float) -> Iterator[SourceItem]:
    suffix = Path(path).suffix.lower()
    if _is_address(path):
        yield SourceItem(source_name(path) or path, path)
    elif os.path.isdir(path):
        yield from _files(path, recursive=recursive)
    elif suffix in _PARQUET_SUFFIXES and os.path.isfile(path):
        yield from _parquet_rows(path)
    elif suffix in VIDEO_SUFFIXES and os.path.isfile(path):
        yield from video_frames(path, every_s=every_s)
    else:
        yield SourceItem(display_name(path), path)


def _files(folder: str, *, recursive: bool) -> Iterator[SourceItem]:
    """Image files of a folder, by name; a folder named like an image is listed as one too."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        name = display_name(folder)
        message = f"the folder cannot be listed ({error.strerror}); check its permissions"
        yield SourceItem(name, None, ImageError("not_readable", message, where=name))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        is_image = Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
        if entry.is_dir(follow_symlinks=False) and not (is_image and not recursive):
            if recursive:
                yield from _files(entry.path, recursive=True)
        elif is_image:
            yield SourceItem(display_name(entry.path), entry.path)


def _open_parquet(path: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("eval", f"reading {path} (Parquet)") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def _parquet_rows(path: str) -> Iterator[SourceItem]:
    with _open_parquet(path) as table:
        column = _picture_column(path, table.schema_arrow)
        row = 0
        batches = table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column])
        while True:
            try:
                values = next(batches).column(0).to_pylist()
            except StopIteration:
                return
            except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
                raise DataError(f"{path}: broken from row {row} on: {error}") from error
            for value in values:
                yield _row_item(value, column, f"{display_name(path)}#{row}", Path(path).parent)
                row += 1


def _picture_column(path: str, schema: Any) -> str:
    """The column to read: "image" before "path"."""
    import pyarrow

    column = next((name for name in ("image", "path") if name in schema.names), None)
    if column is None:
        raise DataError(
            f"{path}: needs a column 'image' (bytes) or 'path', has {', '.join(schema.names)}"
        )
    kind = schema.field(column).type
    types = pyarrow.types
    is_text = types.is_string(kind) or types.is_large_string(kind)
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_struct(kind)
    if not (is_text or (is_bytes and column == "image") or types.is_null(kind)):
        raise DataError(
            f"{path}: the column {column!r} holds {kind}; expected the bytes of encoded pictures "
            "or the paths of files"
        )
    return column


def _row_item(value: Any, column: str, name: str, folder: Path) -> SourceItem:
    # Data sets written by other tools wrap a picture in {"bytes", "path"}, either of them null.
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        error = ImageError("empty", f"the column {column!r} is null", where=name)
        return SourceItem(name, None, error)
    if isinstance(value, str) and not _is_address(value):
        return SourceItem(name, folder / value)
    return SourceItem(name, value)


def video_frames(
    video: str | bytes, *, every_s: float = 1.0, limits: ImageLimits = DEFAULT_LIMITS
) -> Iterator[SourceItem]:
    """Frames of a video, in order; a name ends with its time, as ``#t=SECONDS``.

    Args:
        video: A path; or the bytes of an MP4, QuickTime, WebM or Matroska file, which are decoded
            in memory and can't name other files.
        every_s: Seconds between the frames taken; 0 takes all.
        limits: Largest picture; a video of larger ones gives an error.
    """
    import cv2

    name = "video" if isinstance(video, bytes) else display_name(video)
    if isinstance(video, bytes) and not is_plain_video(video):
        message = "not a video that can be read from memory; send MP4, QuickTime, WebM or Matroska"
        yield SourceItem(name, None, ImageError("unsupported_format", message, where=name))
        return
    if isinstance(video, bytes):
        stream: Any = SteadyFile(io.BytesIO(video))  # the stubs of OpenCV do not know files
        capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [])
    else:
        capture = cv2.VideoCapture(video)
    try:
        if not capture.isOpened():
            error = ImageError("corrupt", "the video cannot be opened", where=name)
            yield SourceItem(name, None, error)
            return
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > limits.max_pixels:
            message = f"its frames of {width} x {height} are over {limits.max_pixels:,} pixels"
            yield SourceItem(name, None, ImageError("too_many_pixels", message, where=name))
            return
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        wanted, seconds = 0.0, -1 / rate
        while capture.grab():
            # Browsers record frames at uneven times; some containers state none.
            stated = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            seconds = stated if stated > seconds else seconds + 1 / rate
            if seconds + 1e-9 < wanted:
                continue
            while every_s > 0 and wanted <= seconds + 1e-9:
                wanted += every_s
            decoded, frame = capture.retrieve()
            at = f"{name}#t={seconds:.3f}"
            if decoded:
                yield SourceItem(at, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            else:
                error = ImageError("corrupt", "the frame cannot be decoded", where=at)
                yield SourceItem(at, None, error)
        if seconds < 0:
            error = ImageError("corrupt", "the video has no frame", where=name)
            yield SourceItem(name, None, error)
    finally:
        capture.release()


class SteadyFile(io.BufferedIOBase):
    """A file for OpenCV, whose reads and seeks never raise: OpenCV 4.14 crashes when one does.

    A damaged video makes FFmpeg seek to places before the beginning.

    Args:
        file: Opened in binary mode; closed together with this.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes from here on; none where they can't be read."""
        try:
            return self._file.read(-1 if size is None else size)
        except (OSError, ValueError, MemoryError):
            return b""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place; -1 where there is none."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def is_plain_video(video: bytes) -> bool:
    """Whether it holds its frames itself: playlists (HLS, ffconcat) name files of this computer."""
    return video[4:8] == b"ftyp" or video[:4] == b"\x1a\x45\xdf\xa3"
