"""Hostile pictures: files that are broken, lying, oversized or merely odd, made on the spot.

``write_hostile_folder`` fills a folder as a careless world would. ``bombs`` are small files that
ask for a great deal. ``encodings`` writes one photograph in every form AgeLens reads. ``mutated``
breaks encoded pictures at random, the same way for the same seed.
"""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

OK = "ok"

# How a stored picture must be laid down so that its EXIF orientation turns it upright again.
LAYING_DOWN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class HostileFile:
    """A file on disk and what reading it must come to: ``OK`` or an ``ImageError`` code."""

    path: bytes
    expected: str


@dataclass(frozen=True)
class Bomb:
    """A small file that asks for much; ``expected`` is the code it must be refused with."""

    name: str
    data: bytes
    expected: str


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The image as the bytes of a file of that format."""
    stream = io.BytesIO()
    # A copy, because Pillow leaves one encoder's settings on the image for the next.
    image.copy().save(stream, form, **options)
    return stream.getvalue()


def with_orientation(image: Image.Image, orientation: int, form: str, **options: Any) -> bytes:
    """The upright image stored lying, with the EXIF orientation that turns it upright again."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    way = LAYING_DOWN.get(orientation)
    lying = image if way is None else image.transpose(way)
    return encoded(lying, form, exif=exif.tobytes() if form == "HEIF" else exif, **options)


def deep_grey(image: Image.Image) -> Image.Image:
    """The image in 16 bit grey; every grey value v becomes 257 v."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def with_gradient_alpha(image: Image.Image) -> Image.Image:
    """The image in RGBA, clear at the top and solid at the bottom."""
    alpha = Image.linear_gradient("L").resize(image.size)
    rgba = image.convert("RGB")
    rgba.putalpha(alpha)
    return rgba


def encodings(image: Image.Image) -> dict[str, bytes]:
    """One RGB image in every kind of file that needs nothing but Pillow."""
    clear = with_gradient_alpha(image)
    palette = image.quantize(64)
    grey, deep, bilevel = image.convert("L"), deep_grey(image), image.convert("1")

    def several(form: str) -> bytes:
        turned = [image.rotate(90), image.rotate(180)]
        return encoded(image, form, save_all=True, append_images=turned)

    return {
        "baseline.jpg": encoded(image, "JPEG", quality=90),
        "progressive.jpg": encoded(image, "JPEG", quality=90, progressive=True),
        "restarts.jpg": encoded(image, "JPEG", restart_marker_rows=1),
        "grey.jpg": encoded(grey, "JPEG"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG", quality=95),
        "stereo.mpo": several("MPO"),
        "rgb.png": encoded(image, "PNG"),
        "alpha.png": encoded(clear, "PNG"),
        "grey-alpha.png": encoded(clear.convert("LA"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette-alpha.png": encoded(clear.quantize(64), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "bilevel.png": encoded(bilevel, "PNG"),
        "animated.png": several("PNG"),
        "lossy.webp": encoded(image, "WEBP", quality=90),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
        "alpha.webp": encoded(clear, "WEBP"),
        "animated.webp": several("WEBP"),
        "still.gif": encoded(image, "GIF"),
        "animated.gif": several("GIF"),
        "raw.tif": encoded(image, "TIFF"),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encoded(image, "TIFF", compression="jpeg"),
        "packbits.tif": encoded(image, "TIFF", compression="packbits"),
        "group4.tif": encoded(bilevel, "TIFF", compression="group4"),
        "deep.tif": encoded(deep, "TIFF"),
        "palette.tif": encoded(palette, "TIFF", compression="tiff_lzw"),
        "cmyk.tif": encoded(image.convert("CMYK"), "TIFF"),
        "alpha.tif": encoded(clear, "TIFF"),
        "big.tif": encoded(image, "TIFF", big_tiff=True, compression="tiff_lzw"),
        "pages.tif": several("TIFF"),
        "still.avif": encoded(image, "AVIF"),
        "alpha.avif": encoded(clear, "AVIF"),
        "animated.avif": several("AVIF"),
        "rgb.bmp": encoded(image, "BMP"),
        "palette.bmp": encoded(palette, "BMP"),
        "bilevel.bmp": encoded(bilevel, "BMP"),
    }


def write_hostile_folder(folder: Path, photo: Path) -> list[HostileFile]:
    """Fill a folder with about 45 files, most of them broken or odd.

    Args:
        folder: An empty folder.
        photo: A good photograph to make them of.

    Returns:
        Every file with what must come of it. Where the system can't make one (no FIFO, no name
        that is not UTF-8) it is left out; for a user who may read everything the unreadable file
        is simply good.
    """
    image = _small(photo)
    files = {name.encode(): (data, code) for name, (data, code) in _contents(image).items()}
    files[b"caf\xe9.jpg"] = (encoded(image, "JPEG"), OK)
    written: list[HostileFile] = []
    for name, (data, code) in files.items():
        path = os.path.join(os.fsencode(folder), name)
        try:
            Path(os.fsdecode(path)).write_bytes(data)
        except OSError:
            continue
        written.append(HostileFile(path, code))
    return written + _odd_entries(folder, encoded(image, "JPEG"))


def _small(photo: Path) -> Image.Image:
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    image.thumbnail((384, 384))
    return image


def _contents(image: Image.Image) -> dict[str, tuple[bytes, str]]:
    whole = encodings(image)
    files = {
        f"cut-{name}": (data[: len(data) * 6 // 10], "truncated")
        for name, data in whole.items()
        if name in ("baseline.jpg", "rgb.png", "lossy.webp", "still.gif", "lzw.tif", "still.avif")
    }
    for orientation in range(1, 9):
        name = f"orientation-{orientation}.jpg"
        files[name] = (with_orientation(image, orientation, "JPEG", quality=90), OK)
    files |= {
        "cmyk.jpg": (whole["cmyk.jpg"], OK),
        "deep.png": (whole["deep.png"], OK),
        "deep.tif": (whole["deep.tif"], OK),
        "bilevel.png": (whole["bilevel.png"], OK),
        "palette-alpha.png": (whole["palette-alpha.png"], OK),
        "animated.gif": (whole["animated.gif"], OK),
        "animated.webp": (whole["animated.webp"], OK),
        "stereo.jpg": (whole["stereo.mpo"], OK),
        "png-inside.jpg": (whole["rgb.png"], OK),
        "jpeg-inside.png": (whole["baseline.jpg"], OK),
        "one-pixel.png": (encoded(image.crop((0, 0, 1, 1)), "PNG"), OK),
        "ribbon.png": (encoded(image.resize((30_000, 10)), "PNG"), OK),
        "column.jpg": (encoded(image.resize((10, 30_000)), "JPEG"), OK),
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"Dear diary, today I renamed a letter to .jpg.\n" * 20, "not_an_image"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not_an_image"),
        "document.jpg": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "not_an_image"),
        "zeros.jpg": (b"\0" * 10_000, "not_an_image"),
        "noise.jpg": (random.Random(5).randbytes(10_000), "not_an_image"),
        "drawing.png": (
            b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
            "unsupported_format",
        ),
        "layers.jpg": (
            b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3),
            "unsupported_format",
        ),
        "flipped.png": (_flipped(whole["rgb.png"]), "corrupt"),
        "no-pixels.jpg": (b"\xff\xd8\xff\xd9", "corrupt"),
        "bomb.png": (png_of_zeros(30_000, 30_000), "too_many_pixels"),
        "lie.jpg": (jpeg_with_size(whole["baseline.jpg"], 60_000, 60_000), "too_many_pixels"),
        "lie.png": (png_with_size(whole["rgb.png"], 60_000, 60_000), "too_many_pixels"),
    }
    return files


def _odd_entries(folder: Path, good: bytes) -> list[HostileFile]:
    """A folder, links and pipes under the names of pictures, and one without read permission."""
    entries = [HostileFile(os.fsencode(folder / "folder.jpg"), "is_directory")]
    (folder / "folder.jpg").mkdir()
    unreadable = folder / "unreadable.jpg"
    unreadable.write_bytes(good)
    unreadable.chmod(0)
    may_read = os.access(unreadable, os.R_OK)
    entries.append(HostileFile(os.fsencode(unreadable), OK if may_read else "not_readable"))
    makers: tuple[tuple[str, str, Callable[[Path], object]], ...] = (
        ("loop.jpg", "not_readable", lambda path: path.symlink_to(path)),
        ("dangling.jpg", "not_found", lambda path: path.symlink_to(path.with_name("gone.jpg"))),
        ("pipe.jpg", "not_readable", lambda path: os.mkfifo(path)),
    )
    for name, code, make in makers:
        try:
            make(folder / name)
        except (OSError, AttributeError):
            continue
        entries.append(HostileFile(os.fsencode(folder / name), code))
    return entries


def _flipped(png: bytes) -> bytes:
    middle = len(png) // 2
    return png[:middle] + bytes([png[middle] ^ 0x10]) + png[middle + 1 :]


# ------------------------------------------------------------------ bombs


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_zeros(width: int, height: int) -> bytes:
    """A whole black-and-white PNG of that size, a few kilobytes a hundred megapixels."""
    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def png_with_size(png: bytes, width: int, height: int) -> bytes:
    """The PNG with another size in its header."""
    header = struct.pack(">II", width, height) + png[24:29]
    return png[:8] + png_chunk(b"IHDR", header) + png[33:]


def jpeg_with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """The baseline JPEG with another size in its frame header."""
    at = jpeg.index(b"\xff\xc0")
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def jpeg_with_scans(progressive: bytes, count: int) -> bytes:
    """The progressive JPEG with its last scan repeated until there are about ``count``."""
    last = progressive.rindex(b"\xff\xda")
    return progressive[:-2] + progressive[last:-2] * count + b"\xff\xd9"


def solid_webp(width: int, height: int) -> bytes:
    """A whole lossless WebP of one colour: five codes of one symbol, so no bit for any pixel."""
    bits = (width - 1) | (height - 1) << 14
    at = 14 + 14 + 1 + 3 + 3
    for _ in range(5):
        bits |= 0b0001 << at
        at += 4
    body = b"\x2f" + bits.to_bytes(8, "little") + bytes(3)
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def tiff_of(entries: dict[int, tuple[int, int, int]], data: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory: tag -> (type, count, value), then ``data`` at 8."""
    body = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(entries)) + body + struct.pack("<I", 0)


def _grey_tiff(width: int, height: int, **more: tuple[int, int, int]) -> bytes:
    strip = zlib.compress(bytes(65_536))
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 8),
        262: (3, 1, 1),
        277: (3, 1, 1),
    }
    tiles = {322: more["across"], 323: more["down"], 324: (4, 1, 8), 325: (4, 1, len(strip))}
    strips = {273: (4, 1, 8), 278: (4, 1, height), 279: (4, 1, len(strip))}
    return tiff_of(entries | (tiles if more["across"][2] else strips), strip)


def declared_avif(avif: bytes, width: int, height: int) -> bytes:
    """The AVIF with another size in its property box; the AV1 stream stays as it is."""
    at = avif.index(b"ispe") + 8
    return avif[:at] + struct.pack(">II", width, height) + avif[at + 8 :]


def bmp_header(width: int, height: int, bits: int, packing: int = 0) -> bytes:
    """The 54 header bytes of a BMP and nothing else."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, 0, 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def gif_of(screen: tuple[int, int], frame: tuple[int, int], frames: int = 1) -> bytes:
    """A GIF whose every frame has the size ``frame`` and one line of pixels."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    one = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00"
    return head + one * frames + b";"


def many_frames(side: int, count: int) -> bytes:
    """A whole GIF of ``count`` black frames of that side."""
    black = encoded(Image.new("L", (side, side)), "GIF")
    at = black.index(b",")
    return black[:at] + black[at:-1] * count + b";"


def bombs(photo: Path) -> list[Bomb]:
    """Small files that ask for a great deal, each with the code it must be refused with."""
    image = _small(photo)
    jpeg, png = encoded(image, "JPEG"), encoded(image, "PNG")
    progressive = encoded(image, "JPEG", progressive=True)
    avif = encoded(image, "AVIF")
    few_zeros = png_of_zeros(100, 100)
    jpeg2000 = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(4096)
    no_tile, big_tile = (4, 1, 0), (4, 1, 30_000)
    return [
        Bomb("png-13000.png", png_of_zeros(13_000, 13_000), "too_many_pixels"),
        Bomb("png-30000.png", png_of_zeros(30_000, 30_000), "too_many_pixels"),
        Bomb("png-lie-60000.png", png_with_size(png, 60_000, 60_000), "too_many_pixels"),
        Bomb("png-lie-8900.png", png_with_size(few_zeros, 8_900, 8_900), "truncated"),
        Bomb("jpeg-lie-60000.jpg", jpeg_with_size(jpeg, 60_000, 60_000), "too_many_pixels"),
        Bomb("jpeg-lie-8900.jpg", jpeg_with_size(jpeg, 8_900, 8_900), "truncated"),
        Bomb("jpeg-500-scans.jpg", jpeg_with_scans(progressive, 500), "corrupt"),
        Bomb("webp-16383.webp", solid_webp(16_383, 16_383), "too_many_pixels"),
        Bomb("gif-screen.gif", gif_of((65_535, 65_535), (9, 9)), "too_many_pixels"),
        Bomb("gif-frame.gif", gif_of((9, 9), (65_535, 65_535), 60), "too_many_pixels"),
        Bomb(
            "tiff-40000.tif",
            _grey_tiff(40_000, 40_000, across=no_tile, down=no_tile),
            "too_many_pixels",
        ),
        Bomb("tiff-tile.tif", _grey_tiff(100, 100, across=big_tile, down=big_tile), "corrupt"),
        Bomb("avif-20000.avif", declared_avif(avif, 20_000, 20_000), "too_many_pixels"),
        Bomb("bmp-60000.bmp", bmp_header(60_000, 60_000, 1), "too_many_pixels"),
        Bomb("bmp-lie-8900.bmp", bmp_header(8_900, 8_900, 24), "truncated"),
        Bomb("bmp-rle.bmp", bmp_header(8_000, 8_000, 8, 1) + bytes(40_000), "unsupported_format"),
        Bomb("jpeg2000.jp2", jpeg2000, "unsupported_format"),
    ]


# ------------------------------------------------------------------ mutations


def mutated(source: random.Random, originals: Sequence[bytes]) -> bytes:
    """One of the originals, broken in one to three places.

    The same state of ``source`` gives the same file.
    """
    data = bytearray(source.choice(originals))
    for _ in range(source.choice((1, 1, 2, 3))):
        _MUTATIONS[source.randrange(len(_MUTATIONS))](source, data, originals)
    return bytes(data)


def _place(source: random.Random, data: bytearray) -> int:
    """A place in the file, half the time among the first bytes, where the headers are."""
    limit = len(data) if source.random() < 0.5 else min(len(data), 640)
    return source.randrange(max(1, limit))


def _flip_bits(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    for _index in range(source.randrange(1, 16)):
        if data:
            data[_place(source, data)] ^= 1 << source.randrange(8)


def _overwrite(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(source, data)
    data[at : at + source.randrange(1, 64)] = source.randbytes(source.randrange(1, 64))


def _write_extreme(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    number = source.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
    form = source.choice(("<I", ">I")) if number > 0xFFFF else source.choice(("<H", ">H", "<I"))
    at = _place(source, data)
    data[at : at + struct.calcsize(form)] = struct.pack(form, number)


def _cut_out(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(source, data)
    del data[at : at + source.randrange(1, 2_000)]


def _cut_off(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[source.randrange(max(1, len(data))) :]


def _double(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(source, data)
    data[at:at] = data[at : at + source.randrange(1, 2_000)]


def _blank(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = source.randrange(max(1, len(data)))
    data[at:] = bytes(max(0, len(data) - at))


def _splice(source: random.Random, data: bytearray, originals: Sequence[bytes]) -> None:
    other = source.choice(originals)
    data[source.randrange(max(1, len(data))) :] = other[source.randrange(len(other)) :]


_MUTATIONS: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], None], ...] = (
    _flip_bits,
    _flip_bits,
    _overwrite,
    _write_extreme,
    _write_extreme,
    _cut_out,
    _cut_off,
    _double,
    _blank,
    _splice,
)
