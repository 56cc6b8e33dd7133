"""Pictures in: every form of source and file, upright and whole, or an error that says why."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from agelens.errors import IMAGE_ERROR_CODES, ArgumentError, ImageError
from agelens.images import (
    DEFAULT_LIMITS,
    ImageLimits,
    Picture,
    display_name,
    load_image,
    read_pixels,
)
from hostile import (
    LAYING_DOWN,
    OK,
    bmp_header,
    bombs,
    declared_avif,
    deep_grey,
    encoded,
    encodings,
    gif_of,
    jpeg_with_size,
    many_frames,
    mutated,
    png_chunk,
    png_of_zeros,
    tiff_of,
    with_gradient_alpha,
    with_orientation,
    write_hostile_folder,
)

PHOTO = Path(__file__).parent / "faces" / "astronaut.jpg"
LOSSLESS = (
    "rgb.png",
    "animated.png",
    "lossless.webp",
    "raw.tif",
    "lzw.tif",
    "deflate.tif",
    "packbits.tif",
    "big.tif",
    "pages.tif",
    "rgb.bmp",
)
LOSSY = (
    "baseline.jpg",
    "progressive.jpg",
    "restarts.jpg",
    "cmyk.jpg",
    "stereo.mpo",
    "lossy.webp",
    "animated.webp",
    "still.gif",
    "animated.gif",
    "jpeg.tif",
    "palette.png",
    "palette.tif",
    "palette.bmp",
    "cmyk.tif",
    "still.avif",
    "animated.avif",
)
ORIENTED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO")


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    """A photograph of 300 x 200, neither square nor symmetric."""
    with Image.open(PHOTO) as opened:
        return opened.convert("RGB").crop((100, 0, 400, 200))


@pytest.fixture(scope="module")
def files(portrait: Image.Image) -> dict[str, bytes]:
    return encodings(portrait)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


def mean_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found.astype(int) - expected.astype(int)).mean())


def attempt(source: Any) -> Picture | ImageError:
    try:
        return load_image(source)
    except ImageError as error:
        return error


def code_of(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    return caught.value.code


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_file_gives_exactly_the_pixels_that_were_saved(
    name: str, files: dict[str, bytes], portrait: Image.Image
) -> None:
    picture = load_image(files[name])

    assert np.array_equal(picture.pixels, pixels_of(portrait))
    assert (picture.width, picture.height, picture.scale) == (300, 200, (1.0, 1.0))


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_file_gives_nearly_the_pixels_that_were_saved(
    name: str, files: dict[str, bytes], portrait: Image.Image
) -> None:
    found = load_image(files[name]).pixels

    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert mean_difference(found, pixels_of(portrait)) < 6


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "grey.jpg"])
def test_grey_file_gives_three_equal_channels(
    name: str, files: dict[str, bytes], portrait: Image.Image
) -> None:
    found = load_image(files[name]).pixels

    assert np.array_equal(found[..., 0], found[..., 1])
    assert np.array_equal(found[..., 0], found[..., 2])
    assert mean_difference(found[..., 0], np.asarray(portrait.convert("L"))) < 4


@pytest.mark.parametrize("name", ["bilevel.png", "bilevel.bmp", "group4.tif"])
def test_bilevel_file_gives_black_and_white(
    name: str, files: dict[str, bytes], portrait: Image.Image
) -> None:
    expected = np.asarray(portrait.convert("1")).astype(np.uint8) * 255

    assert np.array_equal(load_image(files[name]).pixels[..., 1], expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_samples_are_scaled_to_the_nearest_of_8_bits(form: str) -> None:
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    expected = np.round(ramp / 257.0).astype(np.uint8)

    found = load_image(encoded(Image.fromarray(ramp), form)).pixels

    assert np.array_equal(found[..., 0], expected)


def test_16_bit_tiff_that_stores_black_as_white_is_not_read_as_a_negative() -> None:
    samples = np.array([[0, 65535, 257]], dtype="<u2")
    data = tiff_of(
        {
            256: (4, 1, 3),
            257: (4, 1, 1),
            258: (3, 1, 16),
            259: (3, 1, 1),
            262: (3, 1, 0),
            273: (4, 1, 8),
            277: (3, 1, 1),
            278: (4, 1, 1),
            279: (4, 1, 6),
        },
        samples.tobytes(),
    )

    assert load_image(data).pixels[0, :, 0].tolist() == [255, 0, 254]


@pytest.mark.parametrize("name", ["alpha.png", "alpha.webp", "alpha.tif", "alpha.avif"])
def test_transparency_is_laid_over_white(
    name: str, files: dict[str, bytes], portrait: Image.Image
) -> None:
    alpha = np.asarray(with_gradient_alpha(portrait))[..., 3:] / 255.0
    expected = pixels_of(portrait) * alpha + 255 * (1 - alpha)

    found = load_image(files[name]).pixels

    assert mean_difference(found, expected) < (4 if name in ("alpha.webp", "alpha.avif") else 1)
    assert found[0].min() > 250


def test_clear_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])

    for form in ("PNG", "GIF"):
        found = load_image(encoded(image, form, transparency=0)).pixels
        assert found.tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_heic_is_read_upright_with_its_extra(portrait: Image.Image) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    if not pillow_heif.libheif_info()["encoders"]:
        pytest.skip("this pillow-heif can't write HEIC")
    pillow_heif.register_heif_opener()

    for orientation in range(1, 9):
        data = with_orientation(portrait, orientation, "HEIF", quality=90)
        assert mean_difference(load_image(data).pixels, pixels_of(portrait)) < 4
        assert code_of(data[: len(data) // 2]) == "truncated"


def test_heic_without_its_extra_names_the_extra(tmp_path: Path) -> None:
    box = struct.pack(">I4s4sI4s", 20, b"ftyp", b"heic", 0, b"heic")
    ispe = struct.pack(">I4sIII", 20, b"ispe", 0, 8, 8)
    ipco = struct.pack(">I4s", 8 + len(ispe), b"ipco") + ispe
    iprp = struct.pack(">I4s", 8 + len(ipco), b"iprp") + ipco
    iinf = struct.pack(">I4sIH", 14, b"iinf", 0, 0)
    iloc = struct.pack(">I4sIBBH", 16, b"iloc", 0, 0x44, 0, 0)
    meta = struct.pack(">I4sI", 12 + len(iinf + iloc + iprp), b"meta", 0) + iinf + iloc + iprp
    (tmp_path / "phone.heic").write_bytes(box + meta)
    script = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from agelens.images import load_image\n"
        "from agelens.errors import ImageError\n"
        "try: load_image(sys.argv[1])\n"
        "except ImageError as error: print(error.code, error.message)\n"
    )

    said = run_python(script, str(tmp_path / "phone.heic"))

    assert said.startswith("unsupported_format")
    assert "agelens[heif]" in said


def run_python(script: str, *arguments: str) -> str:
    source = Path(__file__).parents[1] / "src"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(source), *sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    return done.stdout


# ------------------------------------------------------------------ upright, at every scale


@pytest.mark.parametrize("work_side", [None, 150, 75])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ORIENTED_FORMATS)
def test_exif_orientation_is_undone(
    form: str, orientation: int, work_side: int | None, portrait: Image.Image
) -> None:
    data = with_orientation(portrait, orientation, form, quality=95)
    factor = {None: 1, 150: 2, 75: 4}[work_side]
    expected = pixels_of(portrait).reshape(200 // factor, factor, 300 // factor, factor, 3)

    picture = load_image(data, work_side=work_side)

    assert mean_difference(picture.pixels, expected.mean(axis=(1, 3))) < 3
    assert (picture.width, picture.height) == (300, 200)
    assert picture.scale == (factor, factor)


def test_compressed_tiff_is_turned_once(portrait: Image.Image) -> None:
    data = with_orientation(portrait, 6, "TIFF", compression="tiff_lzw")

    assert np.array_equal(load_image(data).pixels, pixels_of(portrait))


@pytest.mark.parametrize(
    ("exif", "what"),
    [
        (
            b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
            "orientation 9",
        ),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", "directory beyond the end"),
        (b"Exif\0\0garbage", "no TIFF structure"),
        (
            b"Exif\0\0II*\0\x08\0\0\0\x02\0"
            + struct.pack("<HHII", 0x010F, 2, 4000, 4000)
            + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0),
            "a field beyond the end",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_costs_neither_the_picture_nor_a_warning(
    form: str, exif: bytes, what: str, portrait: Image.Image
) -> None:
    data = encoded(portrait, form, exif=exif)

    picture = load_image(data)

    is_turned = what == "a field beyond the end"
    assert (picture.width, picture.height) == ((200, 300) if is_turned else (300, 200))


@pytest.mark.parametrize(
    ("long_side", "work_side", "factor"),
    [
        (8191, 4096, 1),
        (8192, 4096, 2),
        (16384, 4096, 4),
        (40000, 4096, 8),
        (8192, None, 1),
        (1001, 500, 2),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_long_side_stays_at_least_the_work_side(
    form: str, long_side: int, work_side: int | None, factor: int, portrait: Image.Image
) -> None:
    data = encoded(portrait.resize((long_side, 16)), form)

    picture = load_image(data, work_side=work_side)

    assert picture.pixels.shape == (16 // factor, -(-long_side // factor), 3)
    assert (picture.width, picture.height) == (long_side, 16)
    assert picture.scale == (long_side / picture.pixels.shape[1], factor)


def test_reduction_averages_colours_not_palette_numbers() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([0, 0, 0, 9, 9, 9, 9, 9, 9, 200, 0, 0])
    image.putdata([0, 3] * 8)

    picture = load_image(encoded(image, "PNG"), work_side=2)

    assert picture.pixels.tolist() == [[[100, 0, 0]] * 2] * 2


# ------------------------------------------------------------------ sources


def test_every_kind_of_source_gives_the_same_pixels(
    tmp_path: Path, files: dict[str, bytes], portrait: Image.Image
) -> None:
    data = files["rgb.png"]
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    expected = pixels_of(portrait)

    with open(path, "rb") as buffered, open(path, "rb", buffering=0) as raw:
        sources: list[Any] = [
            str(path),
            path,
            data,
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            buffered,
            raw,
            portrait,
            expected,
        ]
        for source in sources:
            assert np.array_equal(load_image(source).pixels, expected)
            if hasattr(source, "seek"):
                source.seek(0)
            assert np.array_equal(read_pixels(source), expected)


def test_picture_is_named_after_its_path_or_as_told(
    tmp_path: Path, files: dict[str, bytes], portrait: Image.Image
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(files["rgb.png"])

    with path.open("rb") as file:
        assert load_image(path).name == load_image(file).name == str(path)
    assert load_image(path, name="row 7").name == "row 7"
    assert load_image(files["rgb.png"]).name is None
    assert load_image(portrait).name is None


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_file_name_that_is_not_utf8_is_read_and_shown_as_text(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(path)).write_bytes(files["baseline.jpg"])

    picture = load_image(os.fsdecode(path))

    assert picture.name == f"{tmp_path}/caf\\xe9.jpg"
    assert picture.name.encode() == display_name(path).encode()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 255]], np.uint8), [[0] * 3, [255] * 3]),
        (np.array([[[7], [9]]], np.uint8), [[7] * 3, [9] * 3]),
        (np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), [[1, 2, 3], [4, 5, 6]]),
        (np.array([[[1, 2, 3, 255], [4, 5, 6, 0]]], np.uint8), [[1, 2, 3], [255] * 3]),
        (np.array([[True, False]]), [[255] * 3, [0] * 3]),
        (np.array([[0, 65535]], np.uint16), [[0] * 3, [255] * 3]),
        (np.array([[257 * 8, 257 * 8 + 129]], np.uint16), [[8] * 3, [9] * 3]),
        (np.array([[[256, 514, 771]]], ">u2"), [[1, 2, 3]]),
        (np.arange(12, dtype=np.uint8).reshape(1, 4, 3)[:, ::-2], [[9, 10, 11], [3, 4, 5]]),
    ],
    ids=["grey", "one channel", "RGB", "RGBA", "bool", "16 bit", "16 bit", "big-endian", "strided"],
)
def test_array_becomes_rgb(array: NDArray[Any], expected: list[list[int]]) -> None:
    picture = load_image(array)

    assert picture.pixels.tolist() == [expected]
    assert picture.pixels.flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.zeros((4, 4, 3), np.float32), "multiply by 255"),
        (np.zeros((4, 4, 3), np.int64), "astype('uint8')"),
        (np.zeros((3, 40, 50), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((2, 40, 50, 3), np.uint8), "one picture at a time"),
        (np.zeros((40, 50, 5), np.uint8), "channels"),
        (np.zeros((0, 5, 3), np.uint8), "(height, width"),
        (np.zeros(5, np.uint8), "(height, width"),
    ],
)
def test_array_of_another_kind_is_refused_with_advice(array: NDArray[Any], advice: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(array)

    assert caught.value.code == "bad_array"
    assert advice in caught.value.message
    assert str(array.shape) in caught.value.message


def test_read_pixels_gives_memory_of_its_own(portrait: Image.Image) -> None:
    array = pixels_of(portrait).copy()

    assert np.shares_memory(load_image(array).pixels, array)
    assert not np.shares_memory(read_pixels(array), array)
    assert read_pixels(array).flags.writeable


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16"]
)
def test_pil_image_of_any_mode_is_read_and_left_as_it_was(mode: str, portrait: Image.Image) -> None:
    image = deep_grey(portrait) if mode == "I;16" else portrait.convert(mode)
    before = (image.mode, image.size, image.tobytes(), dict(image.info))

    picture = load_image(image)

    expected = portrait.convert("L").convert("RGB") if mode == "I;16" else image
    assert mean_difference(picture.pixels, pixels_of(expected)) < 1
    assert (image.mode, image.size, image.tobytes(), dict(image.info)) == before


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_pil_image_is_turned_by_its_exif(form: str, portrait: Image.Image) -> None:
    data = with_orientation(portrait, 6, form, quality=95)

    with Image.open(io.BytesIO(data)) as opened:
        found = load_image(opened).pixels
        stored_size = opened.size

    assert mean_difference(found, pixels_of(portrait)) < 3
    assert stored_size == ((300, 200) if form == "TIFF" else (200, 300))


def test_orientation_that_the_caller_took_out_of_a_pil_image_is_not_applied(
    portrait: Image.Image,
) -> None:
    with Image.open(io.BytesIO(with_orientation(portrait, 3, "PNG"))) as opened:
        del opened.getexif()[0x0112]

        found = load_image(opened).pixels

    assert np.array_equal(found, pixels_of(portrait)[::-1, ::-1])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pil_image_whose_numbers_are_no_colours_is_refused(mode: str) -> None:
    assert code_of(Image.new(mode, (4, 4))) == "unsupported_format"


def test_pil_image_without_pixels_or_that_is_closed_is_refused(files: dict[str, bytes]) -> None:
    closed = Image.open(io.BytesIO(files["rgb.png"]))
    closed.close()

    assert code_of(Image.new("RGB", (0, 4))) == "empty"
    assert code_of(closed) in ("corrupt", "not_readable")


@pytest.mark.parametrize("source", [None, 7, ["a.jpg"], {"path": "a.jpg"}])
def test_thing_that_is_no_source_is_an_argument_error(source: Any) -> None:
    with pytest.raises(ArgumentError, match="pass a path"):
        load_image(source)


# ------------------------------------------------------------------ file objects


def test_file_object_is_read_from_where_it_stands(files: dict[str, bytes]) -> None:
    file = io.BytesIO(b"preamble" + files["rgb.png"])
    file.seek(8)

    assert load_image(file).width == 300
    assert file.tell() == 8 + len(files["rgb.png"])


def test_file_object_at_its_end_says_to_seek(files: dict[str, bytes]) -> None:
    file = io.BytesIO()
    file.write(files["rgb.png"])

    with pytest.raises(ImageError, match="seek") as caught:
        load_image(file)

    assert caught.value.code == "empty"


def test_file_opened_as_text_says_to_open_it_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "photo.txt"
    path.write_text("text")

    with path.open() as file, pytest.raises(ImageError, match="'rb'") as caught:
        load_image(file)  # type: ignore[arg-type]

    assert caught.value.code == "not_readable"


class EndlessFile(io.RawIOBase):
    """A stream without end that counts what is taken from it."""

    def __init__(self) -> None:
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), 10_000)
        buffer[:count] = bytes(count)
        self.taken += count
        return count


def test_no_more_than_the_limit_and_one_byte_is_read_of_a_file_object() -> None:
    file = EndlessFile()

    assert code_of(file, limits=ImageLimits(max_bytes=123_456)) == "too_many_bytes"
    assert file.taken == 123_457


class FailingFile:
    """A file object whose connection is lost."""

    def read(self, size: int = -1) -> bytes:
        raise ConnectionResetError("peer went away")


def test_file_object_that_fails_is_not_readable() -> None:
    with pytest.raises(ImageError, match="peer went away") as caught:
        load_image(FailingFile())  # type: ignore[arg-type]

    assert caught.value.code == "not_readable"


# ------------------------------------------------------------------ limits


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_too_many_bytes_are_refused_and_the_limit_is_settable(
    kind: str, tmp_path: Path, files: dict[str, bytes]
) -> None:
    data = files["rgb.png"]
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    source: Any = {"path": path, "bytes": data, "file": io.BytesIO(data)}[kind]

    code = code_of(source, limits=ImageLimits(max_bytes=len(data) - 1))
    source = io.BytesIO(data) if kind == "file" else source

    assert code == "too_many_bytes"
    assert load_image(source, limits=ImageLimits(max_bytes=len(data))).width == 300


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_too_many_pixels_are_refused_in_every_format(name: str, files: dict[str, bytes]) -> None:
    assert code_of(files[name], limits=ImageLimits(max_pixels=59_999)) == "too_many_pixels"
    assert load_image(files[name], limits=ImageLimits(max_pixels=60_000)).width == 300


def test_arrays_and_pil_images_are_held_to_the_pixel_limit(portrait: Image.Image) -> None:
    limits = ImageLimits(max_pixels=59_999)

    assert code_of(portrait, limits=limits) == "too_many_pixels"
    assert code_of(pixels_of(portrait), limits=limits) == "too_many_pixels"


def test_default_limits_are_50_mb_and_80_megapixels() -> None:
    assert (DEFAULT_LIMITS.max_bytes, DEFAULT_LIMITS.max_pixels) == (50_000_000, 80_000_000)
    assert load_image(png_of_zeros(10_000, 8_000)).width == 10_000
    assert code_of(png_of_zeros(10_000, 8_001)) == "too_many_pixels"


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"max_pixels": -1}, {"max_pixels": 1.5}])
def test_impossible_limits_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        ImageLimits(**options)


@pytest.mark.parametrize("work_side", [0, -4, 1.5, True])
def test_impossible_work_side_is_refused(work_side: Any, portrait: Image.Image) -> None:
    with pytest.raises(ArgumentError, match="work_side"):
        load_image(portrait, work_side=work_side)


# ------------------------------------------------------------------ hostile files


def test_every_file_of_a_hostile_folder_comes_to_what_it_must(tmp_path: Path) -> None:
    for file in write_hostile_folder(tmp_path, PHOTO):
        path = os.fsdecode(file.path)
        start = time.perf_counter()
        found = attempt(path)

        assert time.perf_counter() - start < 2, path
        assert (OK if isinstance(found, Picture) else found.code) == file.expected, path
        if isinstance(found, ImageError):
            assert found.where == display_name(path)
            assert len(found.message) > 20
            assert not found.message.endswith(".")
            assert pickle.loads(pickle.dumps(found)).message == found.message


def test_hostile_folder_holds_at_least_thirty_kinds_of_trouble(tmp_path: Path) -> None:
    written = write_hostile_folder(tmp_path, PHOTO)

    assert len(written) >= 40
    assert {file.expected for file in written} <= {OK, *IMAGE_ERROR_CODES}


def test_bombs_are_refused_at_once(tmp_path: Path) -> None:
    for bomb in bombs(PHOTO):
        path = tmp_path / bomb.name
        path.write_bytes(bomb.data)
        start = time.perf_counter()

        assert code_of(path) == bomb.expected, bomb.name
        assert time.perf_counter() - start < 0.1, bomb.name


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_bombs_cost_no_memory(tmp_path: Path) -> None:
    for bomb in bombs(PHOTO):
        (tmp_path / bomb.name).write_bytes(bomb.data)
    script = (
        "import json, os, resource, sys\n"
        "from agelens.images import load_image\n"
        "from agelens.errors import ImageError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "load_image(sys.argv[2])\n"
        "before = peak()\n"
        "for name in sorted(os.listdir(sys.argv[1])):\n"
        "    try: load_image(os.path.join(sys.argv[1], name))\n"
        "    except ImageError: pass\n"
        "print(json.dumps(peak() - before))\n"
    )

    assert json.loads(run_python(script, str(tmp_path), str(PHOTO))) < 50


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_reduced_jpeg_is_never_held_at_full_size(tmp_path: Path, portrait: Image.Image) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(encoded(portrait.resize((9_000, 6_000)), "JPEG"))
    script = (
        "import resource, sys\n"
        "from agelens.images import load_image\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "load_image(sys.argv[2])\n"
        "before = peak()\n"
        "pixels = load_image(sys.argv[1]).pixels\n"
        "print(pixels.shape, peak() - before)\n"
    )

    shape, grown_mb = run_python(script, str(path), str(PHOTO)).rsplit(" ", 1)

    # 54 megapixels are 216 MB in Pillow; a quarter of them is 54 MB, and 41 MB as the array.
    assert shape == "(3000, 4500, 3)"
    assert float(grown_mb) < 150


def test_animation_of_large_frames_costs_one_frame() -> None:
    data = many_frames(4_000, 60)

    picture = load_image(data)

    assert (picture.width, picture.height) == (4_000, 4_000)
    assert not picture.pixels.any()


def test_size_that_an_av1_stream_states_counts_not_only_the_boxes(portrait: Image.Image) -> None:
    lying = declared_avif(encoded(portrait, "AVIF"), 64, 64)

    assert code_of(lying, limits=ImageLimits(max_pixels=10_000)) == "too_many_pixels"


def test_canvas_out_of_proportion_to_its_first_frame_is_corrupt(files: dict[str, bytes]) -> None:
    animated = files["animated.webp"]
    huge = animated[:24] + (8_000).to_bytes(3, "little") * 2 + animated[30:]

    assert code_of(huge) == "corrupt"
    assert code_of(gif_of((8_000, 8_000), (9, 9))) == "corrupt"
    assert code_of(declared_avif(files["still.avif"], 3_000, 3_000)) == "corrupt"


@pytest.mark.parametrize("name", sorted(set(LOSSLESS + LOSSY) | {"grey.jpg", "deep.tif"}))
def test_file_cut_short_never_gives_another_picture(name: str, files: dict[str, bytes]) -> None:
    data = files[name]
    whole = load_image(data).pixels
    has_more_behind_its_picture = name in ("stereo.mpo", "pages.tif")

    for part in range(1, 100):
        found = attempt(data[: len(data) * part // 100])
        if isinstance(found, Picture):
            # Cut behind the first picture: only later pictures or metadata are lost.
            assert np.array_equal(found.pixels, whole), (name, part)
            assert has_more_behind_its_picture or name.endswith(".tif"), (name, part)
            assert has_more_behind_its_picture or part > 90, (name, part)
        else:
            assert found.code in ("truncated", "corrupt"), (name, part)


@pytest.mark.parametrize("name", ["baseline.jpg", "rgb.png", "lossy.webp", "still.gif", "rgb.bmp"])
def test_file_that_lacks_its_last_byte_is_truncated(name: str, files: dict[str, bytes]) -> None:
    assert code_of(files[name][:-1]) == "truncated"


def test_changed_pixel_data_of_a_png_is_corrupt(files: dict[str, bytes]) -> None:
    data = bytearray(files["rgb.png"])
    data[len(data) // 2] ^= 1

    assert code_of(bytes(data)) == "corrupt"


def test_jpeg_that_claims_more_pixels_than_it_can_hold_is_truncated(
    files: dict[str, bytes],
) -> None:
    assert code_of(jpeg_with_size(files["baseline.jpg"], 8_900, 8_900)) == "truncated"


def test_mutated_files_give_pictures_or_typed_errors(portrait: Image.Image) -> None:
    originals = list(encodings(portrait.resize((90, 60))).values())

    for seed in range(1_500):
        found = attempt(mutated(random.Random(seed), originals))

        assert isinstance(found, Picture) or found.code != "internal", (seed, found)


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_format", "PostScript"),
        (b"SIMPLE  =                    T", "unsupported_format", "FITS"),
        (b"\0\0\x01\0\x01\0\x10\x10" + bytes(90), "unsupported_format", "icon"),
        (b"P6 2 2 255 " + bytes(12), "unsupported_format", "PNM"),
        (b"<?xml version='1.0'?><svg/>", "unsupported_format", "SVG"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp41", "not_an_image", "video"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not_an_image", "sound"),
        (b"PK\x03\x04" + bytes(40), "not_an_image", "zip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_an_image", "git lfs pull"),
        (b"\x93NUMPY\x01\0", "not_an_image", "NumPy"),
        ("Grüße aus Köln, leider kein Bild".encode(), "not_an_image", "text"),
        (bmp_header(9, 9, 2) + bytes(900), "unsupported_format", "BMP"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_foreign_content_is_named(data: bytes, code: str, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(data)

    assert caught.value.code == code
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ({254: (4, 1, 1)}, "unsupported_format"),
        ({50706: (1, 4, 0x0401)}, "unsupported_format"),
        ({259: (3, 1, 6)}, "unsupported_format"),
        ({339: (3, 1, 3)}, "unsupported_format"),
        ({256: (4, 0, 0)}, "corrupt"),
        ({256: (3, 2, 0x00020002)}, "corrupt"),
        ({278: (4, 1, 1)}, "corrupt"),
        ({279: (4, 1, 3)}, "corrupt"),
        ({273: (4, 1, 4_000)}, "truncated"),
        ({320: (3, 768, 100_000)}, "truncated"),
        ({271: (2, 4_000, 100_000), 272: (99, 7, 7)}, OK),
    ],
    ids=[
        "preview",
        "DNG",
        "old JPEG",
        "float",
        "empty",
        "two widths",
        "strips missing",
        "strip too short",
        "strip outside",
        "palette outside",
        "metadata outside",
    ],
)
def test_tiff_directory_is_checked_before_it_is_believed(
    entries: dict[int, tuple[int, int, int]], code: str
) -> None:
    plain = {
        256: (4, 1, 2),
        257: (4, 1, 2),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (4, 1, 2),
        279: (4, 1, 4),
    }
    data = tiff_of(plain | entries, bytes([1, 2, 3, 4]))

    if code == OK:
        assert load_image(data).pixels[..., 0].tolist() == [[1, 2], [3, 4]]
    else:
        assert code_of(data) == code


def test_animated_png_with_impossible_control_chunk_gives_its_still_picture(
    files: dict[str, bytes], portrait: Image.Image
) -> None:
    png = files["rgb.png"]
    data = png[:33] + png_chunk(b"acTL", bytes(8)) * 2 + png[33:]

    assert np.array_equal(load_image(data).pixels, pixels_of(portrait))


def test_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no FIFO on this system")
    os.mkfifo(tmp_path / "pipe.jpg")

    assert code_of(tmp_path / "pipe.jpg") == "not_readable"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero on this system")
def test_device_is_refused() -> None:
    assert code_of("/dev/zero") == "not_readable"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("missing.jpg", "not_found"),
        ("", "not_found"),
        (__file__ + "/photo.jpg", "not_found"),
        ("a\0b.jpg", "not_readable"),
        ("x" * 5_000, "not_readable"),
    ],
    ids=["missing", "empty", "in a file", "zero character", "too long"],
)
def test_path_that_leads_nowhere_says_so(path: str, code: str) -> None:
    assert code_of(path) == code


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_file_without_read_permission_is_not_readable(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(PHOTO.read_bytes())
    path.chmod(0)

    assert code_of(path) == "not_readable"


# ------------------------------------------------------------------ Pillow's own settings


def test_settings_of_pillow_neither_matter_nor_change(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    expected = {name: load_image(data).pixels for name, data in files.items()}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 59_000)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)

    for name, data in files.items():
        assert np.array_equal(load_image(data).pixels, expected[name]), name
        assert code_of(data[: len(data) // 4]) in ("truncated", "corrupt"), name

    assert Image.MAX_IMAGE_PIXELS == 59_000
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_picture_above_pillows_own_limit_is_read_when_ours_allows(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)

    for name in ("rgb.png", "baseline.jpg", "lzw.tif", "still.gif", "still.avif", "rgb.bmp"):
        assert load_image(files[name]).width == 300


def test_import_is_light_and_plugins_load_when_needed() -> None:
    script = (
        "import sys, agelens.images\n"
        "heavy = ('cv2', 'onnxruntime', 'urllib.request', 'ssl', 'PIL.TiffImagePlugin',\n"
        "         'PIL._avif', 'PIL.EpsImagePlugin', 'pillow_heif')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "agelens.images.load_image(sys.argv[1])\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )

    assert run_python(script, str(PHOTO)).splitlines() == ["[]", "[]"]


def test_eight_threads_read_what_one_reads(files: dict[str, bytes]) -> None:
    expected = {name: load_image(data).pixels for name, data in files.items()}
    jobs = list(files.items()) * 8
    random.Random(3).shuffle(jobs)

    def is_same(job: tuple[str, bytes]) -> bool:
        return np.array_equal(load_image(job[1]).pixels, expected[job[0]])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_same, jobs))


# ------------------------------------------------------------------ the picture itself


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 8, 3), np.uint8)[:, ::2],
        np.zeros((9, 4, 3), np.uint8),
    ],
    ids=["grey", "RGBA", "float", "strided", "larger than the picture"],
)
def test_picture_holds_only_what_it_promises(pixels: NDArray[Any]) -> None:
    with pytest.raises(ArgumentError, match="pixels"):
        Picture(pixels, 4, 4, None)


# ------------------------------------------------------------------ addresses


class Site(BaseHTTPRequestHandler):
    """A small site with good, lying, endless and wandering addresses."""

    photo = PHOTO.read_bytes()

    def do_GET(self) -> None:
        if self.path == "/photo.jpg":
            self._answer(200, self.photo, {"Content-Length": str(len(self.photo))})
        elif self.path == "/short.jpg":
            self._answer(200, self.photo[:2_000], {"Content-Length": str(len(self.photo))})
        elif self.path == "/announced.jpg":
            self._answer(200, b"", {"Content-Length": "999999999999"})
        elif self.path == "/endless.jpg":
            self._answer(200, bytes(3_000_000), {})
        elif self.path == "/page.jpg":
            self._answer(200, b"<html>please log in</html>", {})
        elif self.path.startswith("/to/"):
            self._answer(302, b"", {"Location": self.path[4:]})
        elif self.path == "/round":
            self._answer(302, b"", {"Location": "/round"})
        else:
            self._answer(404, b"gone", {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            return

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_address_is_fetched_only_when_asked_for(site: str) -> None:
    address = f"{site}/photo.jpg"

    with pytest.raises(ImageError, match="allow_urls=True") as caught:
        load_image(address)
    picture = load_image(address, allow_urls=True)

    assert caught.value.code == "url_disabled"
    assert np.array_equal(picture.pixels, load_image(PHOTO).pixels)
    assert picture.name == address


def test_redirects_are_followed_to_http_alone(site: str) -> None:
    assert load_image(f"{site}/to//photo.jpg", allow_urls=True).width == 512
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:image/png,x"):
        assert code_of(f"{site}/to/{target}", allow_urls=True) == "fetch_failed"
    assert code_of(f"{site}/round", allow_urls=True) == "fetch_failed"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/missing.jpg", "fetch_failed"),
        ("/short.jpg", "fetch_failed"),
        ("/announced.jpg", "too_many_bytes"),
        ("/endless.jpg", "too_many_bytes"),
        ("/page.jpg", "not_an_image"),
    ],
)
def test_address_that_gives_no_picture_says_why(site: str, path: str, code: str) -> None:
    limits = ImageLimits(max_bytes=1_000_000)

    assert code_of(site + path, allow_urls=True, limits=limits) == code


def test_address_where_nobody_answers_is_a_failed_fetch(site: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as closed:
        port = closed.server_port

    assert code_of(f"http://127.0.0.1:{port}/photo.jpg", allow_urls=True) == "fetch_failed"
    assert code_of("http://[broken/photo.jpg", allow_urls=True) == "fetch_failed"


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "data:image/png;base64,iVBO",
        "ftp://host/a.jpg",
        "s3://bucket/a.jpg",
    ],
)
def test_other_schemes_are_refused_even_when_addresses_are_allowed(address: str) -> None:
    with pytest.raises(ImageError, match="never read") as caught:
        load_image(address, allow_urls=True)

    assert caught.value.code == "url_disabled"


def test_error_about_an_address_hides_its_password_and_query() -> None:
    with pytest.raises(ImageError) as caught:
        load_image("https://ada:secret@example.org/a.jpg?token=secret")

    assert caught.value.where == "https://example.org/a.jpg"
    assert "secret" not in str(caught.value)


def test_all_eight_orientations_were_meant() -> None:
    assert set(LAYING_DOWN) == set(range(2, 9))
