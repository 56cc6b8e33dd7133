"""Pictures in: a path, bytes, a file, a PIL image or an array becomes one upright RGB array.

``load_image`` checks bytes and pixels against ``ImageLimits`` before anything is decoded, lets
Pillow decode the one picture that ``containers`` cut out of the file, and turns it upright on the
way into the array. Every failure is an ``ImageError`` with a code. Nothing here changes Pillow's
settings or emits a warning, and every function may be called from several threads.

Colours are taken as they are stored: an embedded colour profile is not applied. Orientation is the
one EXIF states (``irot`` and ``imir`` in AVIF and HEIC); one that stands only in XMP is not read.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agelens.containers import Container, exif_orientation, open_container
from agelens.errors import ArgumentError, ImageError

if TYPE_CHECKING:
    from http.client import HTTPResponse

ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any]
)
"""What a picture can be given as.

* ``str`` or path: a file; its content decides what it is, not its name. A ``str`` that begins with
  ``http://`` or ``https://`` is fetched when the caller allows it.
* ``bytes``, ``bytearray``, ``memoryview``: an encoded picture.
* A file opened in binary mode: read from where it stands; left behind the last byte read.
* ``PIL.Image.Image``: any 8 or 16 bit mode; turned by its EXIF orientation; not altered.
* Array: (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; bool, uint8 or uint16.
"""

_URL_SILENCE_S: Final = 10.0
_URL_TOTAL_S: Final = 60.0
_STRIP_PIXELS: Final = 1 << 20


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may weigh; both limits are enforced before anything is decoded.

    Attributes:
        max_bytes: Bytes of an encoded picture, at least 1.
        max_pixels: Width times height, as stored, at least 1. Decoding takes 4 to 10 bytes of
            memory a pixel, and 16 in WebP.
    """

    max_bytes: int = 50_000_000
    max_pixels: int = 80_000_000

    def __post_init__(self) -> None:
        for field, value in (("max_bytes", self.max_bytes), ("max_pixels", self.max_pixels)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{field} must be a whole number of at least 1, not {value!r}")


DEFAULT_LIMITS: Final = ImageLimits()
"""50 MB and 80 megapixels."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One upright picture.

    Attributes:
        pixels: (h, w, 3) uint8, RGB, C-contiguous. It may be the caller's own array: read it, do
            not write to it.
        width: Width of the upright picture at full size, in pixels.
        height: The same, downwards.
        name: Path or name for messages and result rows, or None.

    Raises:
        ArgumentError: ``pixels`` is not such an array, or larger than the picture.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    name: str | None

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ArgumentError(
                f"pixels must be (h, w, 3) uint8, not {pixels.shape} {pixels.dtype}"
            )
        if not pixels.flags.c_contiguous:
            raise ArgumentError("pixels must be C-contiguous; pass numpy.ascontiguousarray(pixels)")
        if not 0 < pixels.shape[1] <= self.width or not 0 < pixels.shape[0] <= self.height:
            raise ArgumentError(
                f"pixels of {pixels.shape[1]} x {pixels.shape[0]} can't stand for a picture of "
                f"{self.width} x {self.height}"
            )

    @property
    def scale(self) -> tuple[float, float]:
        """(sx, sy): full-size pixels per pixel of ``pixels``; (1.0, 1.0) at full size."""
        height, width = self.pixels.shape[:2]
        return self.width / width, self.height / height


def load_image(
    source: ImageSource,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    work_side: int | None = 4096,
    allow_urls: bool = False,
    name: str | None = None,
) -> Picture:
    """Read one picture, upright and in RGB.

    Formats: JPEG, PNG, WebP, GIF and TIFF (the first picture of each), BMP, AVIF, and HEIC with the
    ``heif`` extra. Transparency is laid over white, 16 bits are scaled to 8.

    Args:
        source: See ``ImageSource``.
        limits: Bytes and pixels to refuse beyond.
        work_side: A picture whose long side is at least twice this many pixels is reduced to 1/2,
            1/4 or 1/8, so that the long side stays at least this long; None keeps full size.
        allow_urls: Fetch a ``str`` that is an http or https address. The caller vouches for the
            address: hosts of the local network are not refused.
        name: Name for messages and results, instead of the path's.

    Returns:
        The picture; its ``width`` and ``height`` are those of the full upright picture.

    Raises:
        ImageError: The picture cannot be read; ``code`` says why.
        ArgumentError: An argument is of the wrong kind.
    """
    if work_side is not None and (
        isinstance(work_side, bool) or not isinstance(work_side, int) or work_side < 1
    ):
        raise ArgumentError(f"work_side must be None or at least 1 pixel, not {work_side!r}")
    where = source_name(source) if name is None else name
    try:
        stored = _stored(source, limits, work_side, allow_urls)
        pixels = _upright(stored)
    except ImageError as error:
        raise ImageError(error.code, error.message, where=where) from error.__cause__
    except MemoryError as error:
        raise ImageError("too_many_pixels", _OUT_OF_MEMORY, where=where) from error
    turned = stored.orientation >= 5
    width, height = (stored.height, stored.width) if turned else (stored.width, stored.height)
    return Picture(pixels, width, height, where)


def read_pixels(
    source: ImageSource,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    allow_urls: bool = False,
    name: str | None = None,
) -> NDArray[np.uint8]:
    """The pixels of one picture at full size, upright and in RGB.

    Args:
        source: See ``ImageSource``.
        limits: Bytes and pixels to refuse beyond.
        allow_urls: Fetch a ``str`` that is an http or https address.
        name: Name for messages, instead of the path's.

    Returns:
        (H, W, 3) uint8; the caller's own to write to.

    Raises:
        ImageError: The picture cannot be read; ``code`` says why.
    """
    picture = load_image(source, limits=limits, work_side=None, allow_urls=allow_urls, name=name)
    is_callers = isinstance(source, np.ndarray) and np.shares_memory(picture.pixels, source)
    return picture.pixels.copy() if is_callers else picture.pixels


def display_name(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    r"""The path as valid UTF-8 text; bytes that are not UTF-8 become ``\xNN``.

    >>> display_name(b"caf\xe9.jpg")
    'caf\\xe9.jpg'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# ------------------------------------------------------------------ from a source to stored pixels


@dataclass(frozen=True)
class _Stored:
    """A decoded picture as it is stored: not yet turned, perhaps not yet reduced.

    Attributes:
        width, height: Full size, as stored.
        grid: (width, height) of what ``rows`` gives: full size, or less after scaled decoding.
        rows: ``rows(top, bottom)`` gives (bottom - top, grid width, 3) uint8.
        orientation: EXIF orientation, 1 to 8.
        factor: What is left to reduce by: 1, 2, 4 or 8.
        whole: The array itself where no row needs any work.
    """

    width: int
    height: int
    grid: tuple[int, int]
    rows: Callable[[int, int], NDArray[np.uint8]]
    orientation: int = 1
    factor: int = 1
    whole: NDArray[np.uint8] | None = None


def _stored(
    source: ImageSource, limits: ImageLimits, work_side: int | None, allow_urls: bool
) -> _Stored:
    if isinstance(source, np.ndarray):
        return _from_array(source, limits, work_side)
    if isinstance(source, Image.Image):
        return _from_pil(source, limits, work_side)

    def admit(width: int, height: int) -> None:
        _check_pixels(width, height, limits)

    container = open_container(_read(source, limits, allow_urls), admit)
    return _decode(container, admit, work_side)


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageError(
            "too_many_pixels",
            f"the picture is {width} x {height}, {_mega(width * height)} megapixels, over the "
            f"limit of {_mega(limits.max_pixels)}; shrink it or raise max_pixels (--max-pixels)",
        )


def _check_bytes(count: int, limits: ImageLimits, is_exact: bool = True) -> None:
    if count > limits.max_bytes:
        size = f"is {_mega(count)} MB" if is_exact else "goes on"
        raise ImageError(
            "too_many_bytes",
            f"the file {size}, over the limit of {_mega(limits.max_bytes)} MB; "
            "shrink it or raise max_bytes (--max-bytes)",
        )


def _mega(count: int) -> str:
    return f"{count / 1e6:,.1f}" if count >= 100_000 else f"{count / 1e6:.6f}".rstrip("0")


def _reduction(width: int, height: int, work_side: int | None) -> int:
    long_side = max(width, height)
    if work_side is None:
        return 1
    return next((factor for factor in (8, 4, 2) if long_side >= factor * work_side), 1)


# ------------------------------------------------------------------ bytes


def _read(source: object, limits: ImageLimits, allow_urls: bool) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        _check_bytes(memoryview(source).nbytes, limits)
        data = bytes(source)
    elif isinstance(source, str) and (scheme := _scheme(source)):
        data = _fetch(source, scheme, limits, allow_urls)
    elif isinstance(source, str | os.PathLike):
        data = _read_path(source, limits)
    elif hasattr(source, "read"):
        data = _read_file(source, limits)
    else:
        raise ArgumentError(
            f"a picture can't be read from {type(source).__name__}; pass a path, bytes, a file "
            "opened in binary mode, a PIL image or a numpy array"
        )
    if not data:
        hint = "; its position is at the end: seek(0) first" if _is_at_end(source) else ""
        raise ImageError("empty", f"the file has 0 bytes{hint or '; use another copy'}")
    return data


def _read_path(path: str | os.PathLike[str], limits: ImageLimits) -> bytes:
    try:
        size = _regular_size(os.stat(path))
        _check_bytes(size, limits)
        # Without O_NONBLOCK a FIFO put in the file's place since stat() would block for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb") as file:
            size = _regular_size(os.fstat(file.fileno()))
            # Some file systems state 0 for files that do have content (/proc, FUSE).
            data = file.read((size or limits.max_bytes) + 1)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("not_found", "no such file; check the path") from error
    except NotADirectoryError as error:
        raise ImageError("not_found", "a part of the path is no folder; check the path") from error
    except PermissionError as error:
        raise ImageError("not_readable", "no permission to read it; check its owner") from error
    except (OSError, ValueError) as error:
        raise ImageError("not_readable", _why_unreadable(error)) from error
    _check_bytes(len(data), limits)
    return data


def _why_unreadable(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "the path is a loop of symbolic links; mend the links"
    if isinstance(error, OSError):
        return f"the system can't read it ({error.strerror}); check the path and the disk"
    return "the path holds a zero character, which no file name can; check the path"


def _regular_size(status: os.stat_result) -> int:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError("is_directory", "this is a folder; pass the files in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not_readable", "this is a pipe, socket or device; pass a file's path")
    return status.st_size


def _read_file(file: Any, limits: ImageLimits) -> bytes:
    chunks: list[bytes] = []
    left = limits.max_bytes + 1
    while left > 0:
        try:
            chunk = file.read(left)
        except Exception as error:
            raise ImageError("not_readable", f"reading the file object failed: {error}") from error
        if isinstance(chunk, str):
            raise ImageError("not_readable", "the file is opened in text mode; open it with 'rb'")
        if chunk is None:
            raise ImageError("not_readable", "the file object has no data yet; pass its bytes")
        if not chunk:
            break
        chunks.append(bytes(chunk))
        left -= len(chunk)
    _check_bytes(limits.max_bytes + 1 - left, limits, is_exact=False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _is_at_end(source: object) -> bool:
    try:
        return hasattr(source, "tell") and source.tell() > 0
    except (OSError, ValueError):
        return False


def source_name(source: object) -> str | None:
    """What messages and results call a source, without the secrets of an address; or None."""
    if isinstance(source, str) and _scheme(source):
        return _without_secrets(source)
    if isinstance(source, str | os.PathLike):
        return display_name(source)
    given = getattr(source, "name", None) or getattr(source, "filename", None)
    return display_name(given) if isinstance(given, str | bytes | os.PathLike) else None


# ------------------------------------------------------------------ addresses


def _scheme(text: str) -> str | None:
    """The scheme of an address; None for a path, also for one that begins with a drive letter."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://|(data|file):", text, re.IGNORECASE)
    return (found[1] or found[2]).lower() if found else None


def _without_secrets(address: str) -> str:
    if address[:5].lower() == "data:":
        return "data:..."
    try:
        parts = urlsplit(address)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return address.partition("://")[0] + "://..."


def _fetch(address: str, scheme: str, limits: ImageLimits, allow_urls: bool) -> bytes:
    if scheme not in ("http", "https"):
        raise ImageError(
            "url_disabled", f"{scheme}: addresses are never read; pass a path or the bytes"
        )
    if not allow_urls:
        raise ImageError(
            "url_disabled",
            "addresses are not fetched unless asked for; pass allow_urls=True (--allow-urls) or "
            "download it first",
        )
    # Imported here: urllib.request brings ssl and http, which no local picture needs.
    from http.client import HTTPException
    from urllib.error import HTTPError

    try:
        return _fetch_body(address, limits)
    except ImageError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise ImageError(
            "fetch_failed", f"the address could not be fetched ({error}); download it yourself"
        ) from error


def _fetch_body(address: str, limits: ImageLimits) -> bytes:
    from urllib import request

    class OnlyHttp(request.HTTPRedirectHandler):
        max_redirections = 5

        def redirect_request(
            self,
            req: request.Request,
            fp: IO[bytes],
            code: int,
            msg: str,
            headers: Any,
            newurl: str,
        ) -> request.Request | None:
            if _scheme(newurl) not in ("http", "https"):
                fp.close()
                raise ImageError("fetch_failed", "the address leads on to one that is not http")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.UnknownHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        OnlyHttp,
        request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    deadline = time.monotonic() + _URL_TOTAL_S
    chunks: list[bytes] = []
    count = 0
    with opener.open(address, timeout=_URL_SILENCE_S) as response:
        _check_announced(response, limits)
        # read1 returns after one packet, so that a trickle can't outlive the deadline.
        while chunk := response.read1(1 << 16):
            chunks.append(chunk)
            count += len(chunk)
            _check_bytes(count, limits, is_exact=False)
            if time.monotonic() > deadline:
                raise ImageError("fetch_failed", f"no end after {_URL_TOTAL_S:.0f} seconds")
        if response.length:
            raise ImageError("fetch_failed", "the connection ended before the file did; try again")
    return b"".join(chunks)


def _check_announced(response: HTTPResponse, limits: ImageLimits) -> None:
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal():
        _check_bytes(int(announced), limits)


# ------------------------------------------------------------------ Pillow

_PILLOW_FORBIDS: Final = "this process's Image.MAX_IMAGE_PIXELS forbids it; raise that as well"
_OUT_OF_MEMORY: Final = "there is not enough memory to decode it; shrink it or lower max_pixels"


def _decode(
    container: Container, admit: Callable[[int, int], None], work_side: int | None
) -> _Stored:
    """Decode with Pillow: the one place where its errors become ours."""
    try:
        image = _open(container)
        width, height = image.size
        admit(width, height)
        factor = _reduction(width, height, work_side)
        if factor > 1 and container.format == "JPEG":
            image.draft(None, (width // factor, max(1, height // factor)))
        image.load()
    except ImageError:
        raise
    except Exception as error:
        raise _translated(error, container.format) from error
    is_fixed_size = container.format not in ("AVIF", "HEIF")
    if is_fixed_size and (width, height) != (container.width, container.height):
        raise ImageError("corrupt", "two parts of the file state two sizes; export it again")
    orientation = container.orientation
    if container.format == "AVIF":
        # Pillow states irot and imir as the EXIF orientation and leaves the turning to its caller.
        orientation = exif_orientation(image.info.get("exif", b""))
    drafted = round(max(width, height) / max(image.size))
    return _Stored(
        width,
        height,
        image.size,
        _rows_of(image, container.white, container.is_negative),
        orientation,
        factor // drafted,
    )


def _open(container: Container) -> Image.Image:
    """The plugin itself instead of ``Image.open``, which consults settings that are global."""
    stream = io.BytesIO(container.payload)
    match container.format:
        case "JPEG":
            from PIL.JpegImagePlugin import JpegImageFile

            return JpegImageFile(stream)
        case "PNG":
            from PIL.PngImagePlugin import PngImageFile

            return PngImageFile(stream)
        case "WEBP":
            from PIL.WebPImagePlugin import WebPImageFile

            return WebPImageFile(stream)
        case "GIF":
            from PIL.GifImagePlugin import GifImageFile

            return GifImageFile(stream)
        case "BMP":
            from PIL.BmpImagePlugin import BmpImageFile

            return BmpImageFile(stream)
        case "TIFF":
            from PIL.TiffImagePlugin import TiffImageFile

            tiff = TiffImageFile(stream)
            # A canvas that is there already is not checked against Image.MAX_IMAGE_PIXELS.
            tiff.im = Image.new(tiff.mode, tiff.size, None).im
            return tiff
        case "AVIF":
            from PIL.AvifImagePlugin import AvifImageFile

            return AvifImageFile(stream)
    return _open_heif(stream)


def _open_heif(stream: io.BytesIO) -> Image.Image:
    try:
        from pillow_heif import open_heif
    except ImportError as error:
        raise ImageError(
            "unsupported_format",
            "HEIC and HEIF pictures need the 'heif' extra: pip install 'agelens[heif]'",
        ) from error
    image: Image.Image = open_heif(stream, convert_hdr_to_8bit=True).to_pillow()
    return image


def _translated(error: Exception, form: str) -> ImageError:
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return ImageError("too_many_pixels", _OUT_OF_MEMORY)
    if isinstance(error, Image.DecompressionBombError):
        return ImageError("too_many_pixels", _PILLOW_FORBIDS)
    if "not available" in text or "not installed" in text:
        return ImageError(
            "unsupported_format", f"this build of Pillow can't decode {form} ({text}); use another"
        )
    if "truncated" in text.lower() or "not enough" in text or "end of file" in text.lower():
        return ImageError(
            "truncated", f"the {form} ends before its picture does; copy or download it again"
        )
    return ImageError(
        "corrupt", f"the {form} can't be decoded ({text}); export it again or use another copy"
    )


def _from_pil(image: Image.Image, limits: ImageLimits, work_side: int | None) -> _Stored:
    if 0 in image.size:
        raise ImageError("empty", f"the PIL image has no pixels ({image.width} x {image.height})")
    _check_pixels(*image.size, limits)
    try:
        image.load()
    except Exception as error:
        raise _translated(error, "PIL image") from error
    return _Stored(
        *image.size,
        image.size,
        _rows_of(image),
        _pil_orientation(image),
        _reduction(*image.size, work_side),
    )


def _pil_orientation(image: Image.Image) -> int:
    # Pillow parses EXIF once, warning where it is broken; what it holds by then may be edited.
    parsed = getattr(image, "_exif", None)
    if parsed is not None and getattr(parsed, "_loaded", False):
        value = image.getexif().get(0x0112, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    exif = image.info.get("exif", b"")
    return exif_orientation(exif) if isinstance(exif, bytes) else 1


def _rows_of(
    image: Image.Image, white: int = 65535, is_negative: bool = False
) -> Callable[[int, int], NDArray[np.uint8]]:
    def rows(top: int, bottom: int) -> NDArray[np.uint8]:
        strip = (
            image
            if (top, bottom) == (0, image.height)
            else image.crop((0, top, image.width, bottom))
        )
        try:
            if strip.mode.startswith("I;16"):
                return _rgb_of_deep_grey(strip, white, is_negative)
            return np.asarray(_rgb(strip))
        except ValueError as error:
            raise ImageError(
                "unsupported_format",
                f"pixels of PIL mode {strip.mode} have no plain colour; convert them to RGB",
            ) from error

    return rows


def _rgb(strip: Image.Image) -> Image.Image:
    if strip.mode in ("I", "F"):
        raise ValueError("32-bit numbers have no white")
    if strip.mode == "La":
        strip = strip.convert("LA")
    if strip.has_transparency_data:
        strip = strip.convert("RGBA")
        paper = Image.new("RGB", strip.size, "white")
        paper.paste(strip, mask=strip)
        return paper
    return strip if strip.mode == "RGB" else strip.convert("RGB")


def _rgb_of_deep_grey(strip: Image.Image, white: int, is_negative: bool) -> NDArray[np.uint8]:
    deep = np.asarray(strip)
    grey = _scaled(deep, white)
    if is_negative:
        grey = 255 - grey
    transparent = strip.info.get("transparency")
    if isinstance(transparent, int):
        grey[deep == transparent] = 255
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def _scaled(deep: NDArray[Any], white: int = 65535) -> NDArray[np.uint8]:
    """Samples of 0 to ``white`` as 0 to 255, to the nearest."""
    wide: NDArray[np.uint32] = np.minimum(deep, white).astype(np.uint32)
    return ((wide * 255 + white // 2) // white).astype(np.uint8)


# ------------------------------------------------------------------ arrays


def _from_array(array: NDArray[Any], limits: ImageLimits, work_side: int | None) -> _Stored:
    _check_array(array)
    height, width = array.shape[:2]
    _check_pixels(width, height, limits)
    is_plain = array.dtype == np.uint8 and array.shape[2:] == (3,) and array.flags.c_contiguous
    factor = _reduction(width, height, work_side)
    return _Stored(
        width,
        height,
        (width, height),
        lambda top, bottom: _rgb_of_samples(array[top:bottom]),
        factor=factor,
        whole=np.asarray(array) if is_plain and factor == 1 else None,
    )


def _check_array(array: NDArray[Any]) -> None:
    found = f"the array is {array.shape} {array.dtype}"
    if (array.dtype.kind, array.dtype.itemsize) not in (("b", 1), ("u", 1), ("u", 2)):
        advice = (
            "multiply by 255 if it runs from 0 to 1, round and convert with .astype('uint8')"
            if array.dtype.kind == "f"
            else "convert it with .astype('uint8')"
        )
        raise ImageError("bad_array", f"{found}; {advice}")
    if array.ndim == 4:
        raise ImageError("bad_array", f"{found}, a batch; pass one picture at a time")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError("bad_array", f"{found}; pass (height, width) or (height, width, 3)")
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        advice = (
            "transpose it with .transpose(1, 2, 0)"
            if array.shape[0] in (1, 3, 4)
            else "pass 1 (grey), 3 (RGB) or 4 (RGBA) channels, last"
        )
        raise ImageError("bad_array", f"{found}; {advice}")


def _rgb_of_samples(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """Rows of (n, w), (n, w, 1), (n, w, 3) or (n, w, 4) bool, uint8 or uint16 as RGB."""
    if samples.dtype == np.bool_:
        samples = samples.astype(np.uint8) * np.uint8(255)
    elif samples.dtype.itemsize == 2:
        samples = _scaled(samples)
    eight_bit: NDArray[np.uint8] = samples
    if eight_bit.ndim == 2 or eight_bit.shape[2] == 1:
        return np.repeat(eight_bit.reshape(*eight_bit.shape[:2], 1), 3, axis=2)
    if eight_bit.shape[2] == 4:
        return np.asarray(_rgb(Image.fromarray(np.ascontiguousarray(eight_bit))))
    return eight_bit


# ------------------------------------------------------------------ upright


def _upright(stored: _Stored) -> NDArray[np.uint8]:
    """Reduce and turn, strip by strip: no second copy of the picture is ever made."""
    if stored.whole is not None:
        return stored.whole
    (width, height), factor = stored.grid, stored.factor
    across, down = -(-width // factor), -(-height // factor)
    is_turned = stored.orientation >= 5
    upright = np.empty((across, down, 3) if is_turned else (down, across, 3), np.uint8)
    lying = _lying(upright, stored.orientation)
    # Pillow holds every crop, too, to Image.MAX_IMAGE_PIXELS, which is the whole process's.
    budget = min(_STRIP_PIXELS, Image.MAX_IMAGE_PIXELS or _STRIP_PIXELS)
    if Image.MAX_IMAGE_PIXELS and width * factor > Image.MAX_IMAGE_PIXELS:
        raise ImageError("too_many_pixels", _PILLOW_FORBIDS)
    step = max(1, budget // (width * factor)) * factor
    for top in range(0, height, step):
        strip = stored.rows(top, min(top + step, height))
        if factor > 1:
            strip = np.asarray(Image.fromarray(np.ascontiguousarray(strip)).reduce(factor))
        lying[top // factor : top // factor + len(strip)] = strip
    return upright


def _lying(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A view of an upright array that is indexed as the picture is stored."""
    match orientation:
        case 2:
            return upright[:, ::-1]
        case 3:
            return upright[::-1, ::-1]
        case 4:
            return upright[::-1]
        case 5:
            return upright.transpose(1, 0, 2)
        case 6:
            return np.rot90(upright, 1)
        case 7:
            return upright[::-1, ::-1].transpose(1, 0, 2)
        case 8:
            return np.rot90(upright, -1)
    return upright
