"""Picture containers: what a file says of itself, read before any decoder touches it.

``open_container`` walks the markers, chunks, blocks or directories of the eight formats AgeLens
reads. It finds the size early enough to refuse it, the orientation, and whether the file is whole,
and it hands on only the bytes that hold the first picture's pixels. Metadata, later frames and
directories that point elsewhere never reach a decoder, so they can neither overload it nor make it
warn. Every function here is pure and safe to call from several threads.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from agelens.errors import ImageError

Admit = Callable[[int, int], None]
"""Called with (width, height) as soon as the header is read; raises ``ImageError`` to refuse."""

_MAX_JPEG_SCANS: Final = 100
"""Each scan costs one pass over the picture; real encoders write about ten (libtiff's cap too)."""
_MAX_DEFLATE_RATIO: Final = 1032
"""The most that deflate can shrink its input (zlib technical details)."""
_MAX_RLE_PIXELS: Final = 4_000_000
"""Pillow decodes run-length BMP in Python: a larger one would hold a thread for seconds."""


@dataclass(frozen=True)
class Container:
    """One picture file, understood but not decoded.

    Attributes:
        format: "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF" or "HEIF".
        width: Pixels of the picture as stored, before it is turned upright.
        height: The same, downwards.
        orientation: EXIF orientation, 1 to 8; 1 where the decoder turns the picture itself.
        payload: The bytes for the decoder: the first picture and nothing else.
        white: The value of white in pictures of more than 8 bits a sample.
        is_negative: True when such a picture stores black as ``white``.
    """

    format: str
    width: int
    height: int
    orientation: int
    payload: bytes
    white: int = 65535
    is_negative: bool = False


def open_container(data: bytes, admit: Admit) -> Container:
    """Walk a picture file.

    Args:
        data: The whole file.
        admit: Called with every size the file declares, before anything else is looked at.

    Raises:
        ImageError: ``not_an_image`` or ``unsupported_format`` for what the content is,
            ``truncated`` when the file ends before its picture does, ``corrupt`` when its parts
            contradict each other, or whatever ``admit`` raises. ``where`` is left empty.
    """
    walk = _walker(data)
    try:
        return walk(data, admit)
    except (struct.error, IndexError) as error:
        raise _truncated() from error


def _walker(data: bytes) -> Callable[[bytes, Admit], Container]:
    if data.startswith(b"\xff\xd8"):
        return _walk_jpeg
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _walk_png
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _walk_webp
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _walk_gif
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _walk_tiff
    if data[4:8] == b"ftyp":
        return _walk_isobmff
    if data.startswith(b"BM") and data[14:18] in _BMP_HEADERS:
        return _walk_bmp
    raise _foreign(data)


def _truncated() -> ImageError:
    return ImageError(
        "truncated", "the file ends before its picture does; copy or download it again"
    )


def _corrupt(what: str) -> ImageError:
    return ImageError("corrupt", f"{what}; export the picture again or use another copy")


def _unsupported(what: str) -> ImageError:
    return ImageError("unsupported_format", f"{what}; convert it to JPEG, PNG, WebP or TIFF")


def _check_proportion(canvas: tuple[int, int], part: tuple[int, int]) -> None:
    """Refuse a canvas, or a tile, that costs far more memory than the picture on it warrants."""
    if canvas[0] * canvas[1] > max(4 * part[0] * part[1], 1 << 22):
        raise _corrupt("the file declares a size out of all proportion to its pixels")


# ------------------------------------------------------------------ what the content looks like

_UNSUPPORTED: Final = (
    (b"8BPS", "a Photoshop (PSD) file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 codestream"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"II\xbc\x01", "a JPEG XR picture"),
    (b"%!PS", "a PostScript (EPS) file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript (EPS) file"),
    (b"\0\0\x01\0", "a Windows icon (ICO)"),
    (b"\0\0\x02\0", "a Windows cursor (CUR)"),
    (b"icns", "an Apple icon (ICNS)"),
    (b"DDS ", "a DirectDraw surface (DDS)"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance (HDR) picture"),
    (b"SIMPLE  =", "a FITS file"),
    (b"qoif", "a QOI picture"),
    (b"gimp xcf", "a GIMP (XCF) file"),
    (b"FUJIFILMCCD-RAW", "a camera raw file"),
    (b"IIRO", "a camera raw file"),
    (b"IIU\0", "a camera raw file"),
    (b"BPG\xfb", "a BPG picture"),
    (b"AT&TFORM", "a DjVu document"),
    (b"\x8aMNG", "an MNG animation"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"),
    (b"\x59\xa6\x6a\x95", "a Sun raster picture"),
    (b"\x01\xda", "an SGI picture"),
)
_NOT_IMAGES: Final = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive or an office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (b"\0\0\x01\xba", "a video (MPEG)"),
    (b"\0\0\x01\xb3", "a video (MPEG)"),
    (b"FLV\x01", "a video (FLV)"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (WMV)"),
    (b"OggS", "a sound or video file (Ogg)"),
    (b"ID3", "a sound file (MP3)"),
    (b"fLaC", "a sound file (FLAC)"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"PAR1", "a Parquet table"),
    (b"SQLite format 3\0", "a SQLite database"),
    (b"\x93NUMPY", "a NumPy array file; load it with numpy and pass the array"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with git lfs pull"),
)


def _foreign(data: bytes) -> ImageError:
    """The error for content that is none of the eight formats."""
    for magic, what in _UNSUPPORTED:
        if data.startswith(magic):
            return _unsupported(f"this is {what}, which is not read here")
    if re.match(rb"P[1-7]\s", data):
        return _unsupported("this is a PNM picture, which is not read here")
    if data.startswith(b"RIFF"):
        kind = {b"AVI ": "a video (AVI)", b"WAVE": "a sound file (WAV)"}.get(data[8:12])
        return _not_an_image(kind or "a RIFF file of another kind")
    for magic, what in _NOT_IMAGES:
        if data.startswith(magic):
            return _not_an_image(what)
    if data[128:132] == b"DICM":
        return _unsupported("this is a DICOM file, which is not read here")
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head and head.startswith((b"<svg", b"<?xml", b"<!doctype svg", b"<!--")):
        return _unsupported("this is an SVG drawing, which is not read here")
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return _not_an_image(
            "a web page (HTML), perhaps an error page saved under a picture's name"
        )
    if head.startswith(b"<?xml"):
        return _not_an_image("an XML document")
    if not data.strip(b"\0"):
        return ImageError(
            "not_an_image", "the file holds nothing but zero bytes; copy or download it again"
        )
    if _is_text(data[:1024]):
        return _not_an_image("text")
    return ImageError(
        "not_an_image", "the content is of no known kind; pass a picture file, or another copy"
    )


def _not_an_image(what: str) -> ImageError:
    return ImageError("not_an_image", f"this is {what}, not a picture; pass a picture file")


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter.isspace() for letter in text)


# ------------------------------------------------------------------ EXIF


def exif_orientation(exif: bytes) -> int:
    """The orientation stated by an EXIF block.

    Args:
        exif: A TIFF structure, with or without the leading ``Exif`` signature.

    Returns:
        1 to 8; 1 when the block states none or cannot be read.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for index in range(count):
            tag, kind = struct.unpack_from(order + "HH", exif, at + 2 + 12 * index)
            if tag == 0x0112:
                letter = {3: "H", 4: "I"}.get(kind)
                if letter is None:
                    return 1
                (value,) = struct.unpack_from(order + letter, exif, at + 10 + 12 * index)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


# ------------------------------------------------------------------ JPEG (ITU-T T.81)

_JPEG_FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _walk_jpeg(data: bytes, admit: Admit) -> Container:
    kept = [b"\xff\xd8"]
    frame: bytes | None = None
    frame_code = orientation = 0
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise _truncated()
        code = data[at + 1]
        if code == 0xFF:
            at += 1
            continue
        if code <= 0x01 or 0xD0 <= code <= 0xD8:
            at += 2
            continue
        if code == 0xD9:
            raise _corrupt("the JPEG ends before any pixels")
        end = _jpeg_segment_end(data, at)
        body = data[at + 4 : end]
        if code in _JPEG_FRAMES:
            if frame is not None:
                raise _corrupt("the JPEG has two frame headers")
            frame, frame_code = body, code
            admit(*_jpeg_size(frame))
        elif code == 0xE1 and not orientation and body.startswith(b"Exif\0\0"):
            orientation = exif_orientation(body)
        elif code == 0xDA:
            break
        # APP0 and APP14 tell the decoder the colour space; all else of APPn and COM is metadata.
        if not (0xE1 <= code <= 0xED or code in (0xEF, 0xFE)):
            kept.append(data[at:end])
        at = end
    if frame is None:
        raise _corrupt("the JPEG has no frame header")
    stop = _jpeg_scans_end(data, at)
    if stop - at < _jpeg_least_bytes(frame, frame_code):
        raise _truncated()
    width, height = _jpeg_size(frame)
    kept.append(data[at:stop])
    return Container("JPEG", width, height, orientation or 1, b"".join(kept))


def _jpeg_segment_end(data: bytes, at: int) -> int:
    (length,) = struct.unpack_from(">H", data, at + 2)
    if length < 2:
        raise _corrupt("a JPEG segment has an impossible length")
    end: int = at + 2 + length
    if end > len(data):
        raise _truncated()
    return end


def _jpeg_size(frame: bytes) -> tuple[int, int]:
    precision, height, width, components = struct.unpack_from(">BHHB", frame)
    if precision != 8:
        raise _unsupported(f"this JPEG has {precision} bits a sample, only 8 are read")
    if components not in (1, 3, 4):
        raise _unsupported(f"this JPEG has {components} colour components; 1, 3 or 4 are read")
    if height == 0:
        raise _unsupported("this JPEG states its height only after the pixels (DNL)")
    if width == 0:
        raise _corrupt("the JPEG states a width of 0")
    return width, height


def _jpeg_scans_end(data: bytes, at: int) -> int:
    """Where the picture that has its first scan at ``at`` ends, after its EOI marker."""
    scans = 0
    while True:
        code = data[at + 1]
        if code == 0xD9:
            return at + 2
        if code == 0xD8:
            raise _truncated()
        if 0x02 <= code < 0xC0:
            raise _corrupt("the JPEG's pixel data holds a marker that has no meaning")
        scans += code == 0xDA
        if scans > _MAX_JPEG_SCANS:
            raise _corrupt(f"the JPEG has more than {_MAX_JPEG_SCANS} scans")
        next_marker = _JPEG_MARKER.search(
            data, at + 2 if code == 1 else _jpeg_segment_end(data, at)
        )
        if next_marker is None:
            raise _truncated()
        at = next_marker.start()


def _jpeg_least_bytes(frame: bytes, frame_code: int) -> int:
    """The fewest bytes that Huffman coding can put this many blocks in.

    A block costs at least one bit in its first scan and another, in sequential JPEG, for its end.
    """
    is_huffman = frame_code <= 0xC2
    if not is_huffman:
        return 0
    width, height = _jpeg_size(frame)
    factors = [(byte >> 4, byte & 15) for byte in frame[7::3]]
    across, down = (max(pair[axis] for pair in factors) for axis in (0, 1))
    if not across or not down:
        raise _corrupt("the JPEG states a sampling factor of 0")
    blocks = sum(-(-width * h // (8 * across)) * -(-height * v // (8 * down)) for h, v in factors)
    return blocks * (1 if frame_code == 0xC2 else 2) // 8


# ------------------------------------------------------------------ PNG (W3C PNG, third edition)

_PNG_DEPTHS: Final = {
    0: (1, (1, 2, 4, 8, 16)),
    2: (3, (8, 16)),
    3: (1, (1, 2, 4, 8)),
    4: (2, (8, 16)),
    6: (4, (8, 16)),
}
"""Colour type -> samples a pixel, allowed bits a sample."""


def _walk_png(data: bytes, admit: Admit) -> Container:
    view = memoryview(data)
    kept: list[bytes | memoryview] = [data[:8]]
    kinds: set[bytes] = set()
    width = height = packed = 0
    orientation = 1
    at = 8
    while b"IEND" not in kinds:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        body = view[at + 8 : end - 4]
        if kind == b"CgBI":
            raise _unsupported("this PNG is in Apple's private variant (CgBI)")
        if not kind.isalpha() or (kind == b"IHDR") is bool(kinds):
            raise _corrupt("the PNG's chunks are damaged")
        if end > len(data):
            raise _truncated()
        if kind == b"IHDR":
            width, height = _png_size(bytes(body), admit)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
                raise _corrupt(f"the checksum of a PNG chunk ({kind.decode()}) does not fit")
            kept.append(view[at:end])
            packed += length if kind == b"IDAT" else 0
        elif kind == b"eXIf":
            orientation = exif_orientation(bytes(body))
        elif kind[:1].isupper():
            raise _corrupt("the PNG has a chunk that has no meaning")
        kinds.add(kind)
        at = end
    _, _, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if b"IDAT" not in kinds or (colour == 3 and b"PLTE" not in kinds):
        raise _corrupt("the PNG lacks its pixels or its palette")
    if height * (-(-width * depth * _PNG_DEPTHS[colour][0] // 8)) > packed * _MAX_DEFLATE_RATIO:
        raise _truncated()
    return Container("PNG", width, height, orientation, b"".join(kept))


def _png_size(header: bytes, admit: Admit) -> tuple[int, int]:
    width, height, depth, colour, packing, filtering, interlace = struct.unpack(">IIBBBBB", header)
    admit(width, height)
    if not width or not height or colour not in _PNG_DEPTHS:
        raise _corrupt("the PNG header is impossible")
    if depth not in _PNG_DEPTHS[colour][1] or packing or filtering or interlace > 1:
        raise _corrupt("the PNG header is impossible")
    return width, height


# ------------------------------------------------------------------ WebP (RFC 9649)


def _walk_webp(data: bytes, admit: Admit) -> Container:
    (size,) = struct.unpack_from("<I", data, 4)
    end = 8 + size
    if end > len(data):
        raise _truncated()
    kept: list[bytes] = []
    canvas: tuple[int, int] | None = None
    orientation = 1
    has_pixels = is_animation = False
    at = 12
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        stop = at + 8 + length + (length & 1)
        if at + 8 + length > end:
            raise _corrupt("a WebP chunk is longer than the file it is in")
        body = memoryview(data)[at + 8 : at + 8 + length]
        if kind == b"VP8X":
            is_animation = bool(body[0] & 0x02)
            canvas = _webp_canvas(bytes(body[:10]))
            admit(*canvas)
            # The metadata flags go with the metadata; alpha (0x10) and animation (0x02) stay.
            kept.append(data[at : at + 8] + bytes([body[0] & 0x12]) + data[at + 9 : stop])
        elif kind in (b"VP8 ", b"VP8L", b"ANMF"):
            if not has_pixels:
                if canvas is None:
                    canvas = _webp_bitstream_size(kind, bytes(body[:10]))
                    admit(*canvas)
                if kind == b"ANMF":
                    _check_proportion(canvas, _webp_frame_size(bytes(body[:16])))
                kept.append(data[at:stop])
            has_pixels = True
        elif kind == b"ALPH" or (kind == b"ANIM" and is_animation):
            kept.append(data[at:stop])
        elif kind == b"EXIF":
            orientation = exif_orientation(bytes(body))
        at = stop
    if canvas is None or not has_pixels:
        raise _corrupt("the WebP holds no picture")
    chunks = b"".join(kept)
    payload = b"".join((b"RIFF", struct.pack("<I", 4 + len(chunks)), b"WEBP", chunks))
    return Container("WEBP", *canvas, orientation, payload)


def _webp_canvas(header: bytes) -> tuple[int, int]:
    if len(header) < 10:
        raise _corrupt("the WebP header is too short")
    width = int.from_bytes(header[4:7], "little") + 1
    height = int.from_bytes(header[7:10], "little") + 1
    return width, height


def _webp_frame_size(header: bytes) -> tuple[int, int]:
    if len(header) < 16:
        raise _corrupt("a WebP frame header is too short")
    return 1 + int.from_bytes(header[6:9], "little"), 1 + int.from_bytes(header[9:12], "little")


def _webp_bitstream_size(kind: bytes, head: bytes) -> tuple[int, int]:
    if kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and head[:1] == b"\x2f":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise _corrupt("the WebP's pixel data does not begin as it must")


# ------------------------------------------------------------------ GIF (GIF89a)


def _walk_gif(data: bytes, admit: Admit) -> Container:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    admit(width, height)
    at = 13 + _gif_palette_bytes(flags)
    kept = [data[13:at]]
    control = b""
    has_pixels = False
    while (kind := data[at]) != 0x3B:
        if kind == 0x21:
            end = _gif_blocks_end(data, at + 2)
            if data[at + 1] == 0xF9 and not has_pixels:
                control = data[at:end]
        elif kind == 0x2C:
            left, top, across, down, local = struct.unpack_from("<HHHHB", data, at + 1)
            end = _gif_blocks_end(data, at + 11 + _gif_palette_bytes(local))
            if not has_pixels:
                width, height = max(width, left + across), max(height, top + down)
                admit(width, height)
                if (
                    not across
                    or not down
                    or not 1 <= data[at + 10 + _gif_palette_bytes(local)] < 12
                ):
                    raise _corrupt("the GIF's first frame is impossible")
                _check_proportion((width, height), (across, down))
                kept += [control, data[at:end]]
            has_pixels = True
        elif kind == 0:
            end = at + 1
        else:
            raise _corrupt("the GIF holds a block that has no meaning")
        at = end
    if not has_pixels:
        raise _corrupt("the GIF holds no picture")
    screen = data[:6] + struct.pack("<HH", width, height) + data[10:13]
    return Container("GIF", width, height, 1, b"".join((screen, *kept, b";")))


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_blocks_end(data: bytes, at: int) -> int:
    while length := data[at]:
        at += 1 + length
    return at + 1


# ------------------------------------------------------------------ BMP (Windows and OS/2 bitmaps)

_BMP_HEADERS: Final = {struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124)}


def _walk_bmp(data: bytes, admit: Admit) -> Container:
    (pixels_at, header) = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        packing, colours, entry = 0, 0, 3
    else:
        width, height, _, bits, packing = struct.unpack_from("<IiHHI", data, 18)
        (colours,) = struct.unpack_from("<I", data, 46)
        entry = 4
    height = abs(height)
    admit(width, height)
    if not width or not height:
        raise _corrupt("the BMP states a width or a height of 0")
    if bits not in (1, 4, 8, 16, 24, 32) or packing > 3:
        raise _unsupported(f"this BMP has {bits} bits a pixel in packing {packing}")
    palette_end = 14 + header + (entry * (colours or 1 << bits) if bits <= 8 else 0)
    # Decoders take the palette for granted where the header points straight behind itself.
    at = max(pixels_at, palette_end) if pixels_at in (0, 14 + header) else pixels_at
    if packing in (1, 2):
        if width * height > _MAX_RLE_PIXELS:
            raise _unsupported("this BMP is run-length coded and large")
    elif at + height * ((width * bits + 31) // 32 * 4) > len(data):
        raise _truncated()
    return Container("BMP", width, height, 1, data)


# ------------------------------------------------------------------ TIFF 6.0 and BigTIFF

_TIFF_SIZES: Final = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    16: 8,
}
_TIFF_INTEGERS: Final = {1: "B", 3: "H", 4: "I", 16: "Q"}
_TIFF_SINGLE: Final = frozenset({256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323})
_TIFF_MANY: Final = frozenset({258, 273, 279, 320, 324, 325, 338, 339, 347, 529, 530, 532})
"""The tags that hold or describe pixels; no other reaches the decoder."""
_TIFF_COMPRESSIONS: Final = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000})
"""None, CCITT, LZW, JPEG, deflate, PackBits, LZMA, Zstandard; not old-style JPEG (6)."""
_MAX_TIFF_PIECES: Final = 1 << 20


@dataclass(frozen=True)
class _Entry:
    """One directory entry: its bytes as they stand and where its values lie in the file."""

    raw: bytes
    kind: int
    count: int
    at: int


class _Directory:
    """The first image directory of a TIFF file, with only the entries that concern pixels."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = "<" if data[:2] == b"II" else ">"
        self.is_big = 43 in data[2:4]
        self.entries: dict[int, _Entry] = {}
        self.flags: dict[int, int] = {}
        start = self._unpack("Q" if self.is_big else "I", 8 if self.is_big else 4)
        count = self._unpack("Q" if self.is_big else "H", start)
        entry_size, head = (20, 8) if self.is_big else (12, 2)
        if start + head + count * entry_size > len(data):
            raise _truncated()
        for index in range(count):
            self._add(start + head + index * entry_size)

    def _unpack(self, letter: str, at: int) -> int:
        value: int = struct.unpack_from(self.order + letter, self.data, at)[0]
        return value

    def _add(self, at: int) -> None:
        tag, kind = self._unpack("H", at), self._unpack("H", at + 2)
        count = self._unpack("Q" if self.is_big else "I", at + 4)
        size, room = count * _TIFF_SIZES.get(kind, 0), 8 if self.is_big else 4
        inline_at = at + (12 if self.is_big else 8)
        if tag in (254, 274, 50706) and kind in (1, 3, 4) and count:
            self.flags.setdefault(tag, self._unpack(_TIFF_INTEGERS[kind], inline_at))
        if tag not in _TIFF_SINGLE | _TIFF_MANY or tag in self.entries:
            return
        if not size or (tag in _TIFF_SINGLE and (count != 1 or kind not in _TIFF_INTEGERS)):
            raise _corrupt("a field of the TIFF directory is malformed")
        if tag == 347 and kind not in (1, 7):
            raise _corrupt("the JPEG tables of the TIFF are malformed")
        values_at = (
            inline_at if size <= room else self._unpack("Q" if room == 8 else "I", inline_at)
        )
        if values_at + size > len(self.data):
            raise _truncated()
        raw = self.data[at : inline_at + room]
        self.entries[tag] = _Entry(raw, kind, count, values_at)

    def values(self, tag: int, most: int) -> tuple[int, ...] | None:
        """The integers of a tag, at most ``most`` of them; None when the tag is absent."""
        entry = self.entries.get(tag)
        if entry is None:
            return None
        if entry.kind not in _TIFF_INTEGERS or entry.count > most:
            raise _corrupt("a field of the TIFF directory is malformed")
        form = f"{self.order}{entry.count}{_TIFF_INTEGERS[entry.kind]}"
        return struct.unpack_from(form, self.data, entry.at)

    def value(self, tag: int, default: int = 0) -> int:
        found = self.values(tag, 1)
        return default if found is None else found[0]

    def without_metadata(self) -> bytes:
        """The file again, led to a copy of this directory that has the pixel entries alone."""
        gap = b"\0" * (-len(self.data) % 8)
        start = len(self.data) + len(gap)
        letters = ("Q", "Q") if self.is_big else ("H", "I")
        directory = b"".join(
            (
                struct.pack(self.order + letters[0], len(self.entries)),
                *(self.entries[tag].raw for tag in sorted(self.entries)),
                struct.pack(self.order + letters[1], 0),
            )
        )
        pointer_at = 8 if self.is_big else 4
        pointer = struct.pack(self.order + letters[1], start)
        rest = memoryview(self.data)[pointer_at + len(pointer) :]
        return b"".join((self.data[:pointer_at], pointer, rest, gap, directory))


def _walk_tiff(data: bytes, admit: Admit) -> Container:
    directory = _Directory(data)
    if directory.flags.get(254, 0) & 1 or 50706 in directory.flags or data[8:10] == b"CR":
        raise _unsupported("this is a camera raw or DNG file, whose first picture is a preview")
    width, height = directory.value(256), directory.value(257)
    admit(width, height)
    if not width or not height:
        raise _corrupt("the TIFF states no width or no height")
    compression, photometric = directory.value(259, 1), directory.value(262)
    if compression not in _TIFF_COMPRESSIONS:
        raise _unsupported(f"this TIFF uses compression {compression}")
    samples = directory.value(277, 1)
    bits = directory.values(258, most=8) or (1,)
    formats = directory.values(339, most=8) or (1,)
    if set(formats) != {1} or max(bits) > 16 or not 1 <= samples <= 8:
        raise _unsupported("this TIFF holds numbers instead of colours of 8 or 16 bits")
    if photometric == 6 and samples == 3 and compression == 1:
        raise _unsupported("this TIFF holds YCbCr colours without compression")
    pixel_bits = sum(bits) if len(bits) == samples else bits[0] * samples
    _check_tiff_pieces(directory, width, height, 0 if compression != 1 else pixel_bits)
    orientation = directory.flags.get(274, 1)
    return Container(
        "TIFF",
        width,
        height,
        orientation if 1 <= orientation <= 8 else 1,
        directory.without_metadata(),
        white=(1 << max(bits)) - 1,
        is_negative=photometric == 0,
    )


def _check_tiff_pieces(directory: _Directory, width: int, height: int, raw_bits: int) -> None:
    """Check that every strip or tile is there, and no tile is out of proportion to the picture.

    ``raw_bits`` is the size of an uncompressed pixel, 0 when the pieces are compressed.
    """
    planes = directory.value(277, 1) if directory.value(284, 1) == 2 else 1
    is_tiled = 324 in directory.entries
    if is_tiled:
        across, rows = directory.value(322), directory.value(323)
        if min(across, rows) < 16:
            raise _corrupt("the TIFF's tiles are smaller than tiles may be")
        _check_proportion((across, rows), (width, height))
    else:
        across, rows = width, min(directory.value(278, height), height)
        if not rows:
            raise _corrupt("the TIFF's strips have no rows")
    count = -(-width // across) * -(-height // rows) * planes
    if count > _MAX_TIFF_PIECES:
        raise _unsupported(f"this TIFF is cut in {count} pieces")
    starts = directory.values(324 if is_tiled else 273, most=count) or ()
    sizes = directory.values(325 if is_tiled else 279, most=count)
    row_bytes = -(-across * raw_bits // planes // 8)
    needed = [rows * row_bytes] * count
    if not is_tiled and height % rows:
        last = height // rows
        needed[last :: last + 1] = [height % rows * row_bytes] * planes
    if sizes is None and raw_bits:
        sizes = tuple(needed)
    if sizes is None or len(starts) != count or len(sizes) != count:
        raise _corrupt("strips or tiles of the TIFF are missing")
    if any(start + size > len(directory.data) for start, size in zip(starts, sizes, strict=True)):
        raise _truncated()
    if not all(sizes) or any(size < need for size, need in zip(sizes, needed, strict=True)):
        raise _corrupt("strips or tiles of the TIFF are too short for its size")


# ------------------------------------------------------------------ AVIF and HEIF (ISO 23008-12)

_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_HEIF_BRANDS: Final = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)

Span = tuple[int, int]
"""Where something lies in the file: its first byte and the byte after its last."""


def _walk_isobmff(data: bytes, admit: Admit) -> Container:
    length, major = struct.unpack_from(">I4x4s", data)
    brands = {major, *(data[at : at + 4] for at in range(16, min(length, 1024, len(data)), 4))}
    if not brands & (_AVIF_BRANDS | _HEIF_BRANDS):
        if major == b"crx ":
            raise _unsupported("this is a camera raw file (CR3), which is not read here")
        raise _not_an_image("a video or sound file (MP4 or QuickTime)")
    boxes = dict(_boxes(data, (0, len(data))))
    if b"meta" not in boxes:
        raise _unsupported("this is an AVIF or HEIF sequence without a still picture")
    start, end = boxes[b"meta"]
    meta = dict(_boxes(data, (start + 4, end)))
    if not {b"iinf", b"iloc", b"iprp"} <= meta.keys():
        raise _corrupt("the AVIF or HEIF lists no pictures")
    width, height = _largest_declared(data, meta[b"iprp"], admit)
    kinds = _item_kinds(data, meta[b"iinf"])
    spans = _item_spans(data, meta[b"iloc"], meta.get(b"idat", (0, 0)))
    if all(kind != b"av01" for kind, _ in kinds.values()):
        return Container("HEIF", width, height, 1, data)
    coded = 0
    for item, (kind, _) in kinds.items():
        if kind == b"av01":
            stream = b"".join(data[first:last] for first, last in spans.get(item, []))
            coded += max((_area(size, admit) for size in _av1_sizes(stream)), default=0)
    if width * height > coded:
        raise _corrupt("the AVIF declares more pixels than it holds")
    # As "avif" the file is opened as its still picture, not as a sequence. An item of kind "free"
    # is passed over: AVIF states its turn elsewhere, and a broken EXIF block would cause warnings.
    patches = [(8, b"avif"), *((at, b"free") for kind, at in kinds.values() if kind == b"Exif")]
    return Container("AVIF", width, height, 1, _patched(data, patches))


def _patched(data: bytes, patches: list[tuple[int, bytes]]) -> bytes:
    parts: list[bytes | memoryview] = []
    done = 0
    for at, replacement in sorted(patches):
        parts += [memoryview(data)[done:at], replacement]
        done = at + len(replacement)
    return b"".join((*parts, memoryview(data)[done:]))


def _boxes(data: bytes, span: Span) -> Iterator[tuple[bytes, Span]]:
    """The boxes in a part of the file, each with the span of its body."""
    at, end = span
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        elif size == 0:
            size = end - at
        if size < head:
            raise _corrupt("a box of the AVIF or HEIF has an impossible length")
        if at + size > end:
            raise _truncated()
        yield kind, (at + head, at + size)
        at += size


def _largest_declared(data: bytes, iprp: Span, admit: Admit) -> tuple[int, int]:
    largest = (0, 0)
    for kind, span in _boxes(data, iprp):
        for inner, (at, _) in _boxes(data, span) if kind == b"ipco" else ():
            if inner == b"ispe":
                width, height = struct.unpack_from(">II", data, at + 4)
                admit(width, height)
                largest = max(largest, (width, height), key=lambda size: size[0] * size[1])
    if not all(largest):
        raise _corrupt("the AVIF or HEIF states no size")
    return largest


def _item_kinds(data: bytes, iinf: Span) -> dict[int, tuple[bytes, int]]:
    """Item number -> its kind and where in the file the kind stands."""
    start, end = iinf
    kinds: dict[int, tuple[bytes, int]] = {}
    for box, (at, _) in _boxes(data, (start + (8 if data[start] else 6), end)):
        form = {2: ">HH", 3: ">IH"}.get(data[at])
        if box == b"infe" and form is not None:
            number, _ = struct.unpack_from(form, data, at + 4)
            kind_at = at + 4 + struct.calcsize(form)
            kinds[number] = (data[kind_at : kind_at + 4], kind_at)
    return kinds


def _item_spans(data: bytes, iloc: Span, idat: Span) -> dict[int, list[Span]]:
    """Item number -> the spans of its data, all of them checked to lie in the file."""
    at = iloc[0]
    version, widths = data[at], struct.unpack_from(">BB", data, at + 4)
    sizes = [widths[0] >> 4, widths[0] & 15, widths[1] >> 4, widths[1] & 15 if version else 0]
    if version > 2 or not set(sizes) <= {0, 4, 8}:
        raise _corrupt("the AVIF or HEIF's table of places is malformed")
    offset_size, length_size, base_size, index_size = sizes
    at += 6

    def take(size: int) -> int:
        nonlocal at
        if at + size > iloc[1]:
            raise _corrupt("the AVIF or HEIF's table of places is malformed")
        at += size
        return int.from_bytes(data[at - size : at])

    spans: dict[int, list[Span]] = {}
    total = 0
    for _ in range(take(4 if version == 2 else 2)):
        number = take(4 if version == 2 else 2)
        method = take(2) & 15 if version else 0
        take(2)
        base = take(base_size) + (idat[0] if method == 1 else 0)
        for _ in range(take(2)):
            take(index_size)
            first = base + take(offset_size)
            last = first + take(length_size) if length_size else len(data)
            if last > len(data):
                raise _truncated()
            total += last - first
            spans.setdefault(number, []).append((first, last))
    if total > 2 * len(data):
        raise _corrupt("the AVIF or HEIF's items overlap")
    return spans


class _Bits:
    """Reads whole numbers off a string of bits."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise _corrupt("the AVIF's sequence header is cut short")
        return self._value >> self._left & (1 << count) - 1


def _area(size: tuple[int, int], admit: Admit) -> int:
    admit(*size)
    return size[0] * size[1]


def _av1_sizes(stream: bytes) -> Iterator[tuple[int, int]]:
    """The frame sizes that an AV1 stream states, which a decoder believes before any box."""
    at = 0
    while at < len(stream):
        head = stream[at]
        at += 2 if head & 4 else 1
        length = len(stream) - at
        if head & 2:
            length = shift = 0
            while True:
                byte = stream[at]
                at += 1
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80 or shift > 56:
                    break
        if head >> 3 & 15 == 1:
            yield _av1_size(_Bits(stream[at : at + min(length, 512)]))
        at += length


def _av1_size(bits: _Bits) -> tuple[int, int]:
    """The largest frame of a sequence header (AV1 specification, section 5.5)."""
    bits.take(4)
    if bits.take(1):
        bits.take(5)
    else:
        delay_bits = 0
        if bits.take(1):
            bits.take(64)
            if bits.take(1):
                zeros = 0
                while not bits.take(1):
                    zeros += 1
                bits.take(min(zeros, 32))
            if bits.take(1):
                delay_bits = bits.take(5) + 1
                bits.take(42)
        has_display_delay = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if delay_bits and bits.take(1):
                bits.take(2 * delay_bits + 1)
            if has_display_delay and bits.take(1):
                bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1
