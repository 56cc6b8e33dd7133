"""What the user pointed at: folders, globs, Parquet tables, videos, and what is not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from agelens import Analyzer, SourceItem, expand
from agelens.errors import DataError, ImageError
from agelens.images import ImageLimits, load_image
from agelens.sources import count, video_frames

pa = pytest.importorskip("pyarrow", reason="Parquet needs the 'eval' extra")
pq = pytest.importorskip("pyarrow.parquet")

FACES = Path(__file__).parent / "faces"
HOPPER = (FACES / "hopper.jpg").read_bytes()

Place = str | os.PathLike[str]


def touch(folder: Path, *names: str) -> None:
    """Empty files of these names, with the folders they need."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_under(folder: Path, items: Iterator[SourceItem]) -> list[str]:
    return [os.path.relpath(item.name, folder) for item in items]


def as_many_as_counted(places: Sequence[Place], *, recursive: bool = False) -> list[SourceItem]:
    """The items, after a check that ``count`` foretells their number."""
    items = list(expand(places, recursive=recursive))
    assert count(places, recursive=recursive) == len(items)
    return items


# --- folders and globs ----------------------------------------------------------------------------


def test_a_folder_gives_its_pictures_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.PNG", "10.webp", "notes.txt", "noext", ".hidden.jpg", "sub/c.jpg")

    items = as_many_as_counted([tmp_path])

    assert names_under(tmp_path, iter(items)) == ["10.webp", "a.PNG", "b.jpg"]
    assert [item.image for item in items] == [item.name for item in items]


def test_recursion_goes_into_folders_but_not_hidden_ones(tmp_path: Path) -> None:
    touch(tmp_path, "z.jpg", "a/2.jpg", "a/1.jpg", "a/deep/3.png", ".git/4.jpg", "m.gif")

    items = as_many_as_counted([tmp_path], recursive=True)

    found = names_under(tmp_path, iter(items))
    assert found == ["a/1.jpg", "a/2.jpg", "a/deep/3.png", "m.gif", "z.jpg"]


def test_recursion_does_not_follow_a_link_back_up(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)

    items = as_many_as_counted([tmp_path], recursive=True)

    assert names_under(tmp_path, iter(items)) == ["a/1.jpg"]


def test_a_folder_named_like_a_picture_is_a_row_that_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg/inside.jpg", "b.jpg")

    items = as_many_as_counted([tmp_path])

    assert names_under(tmp_path, iter(items)) == ["a.jpg", "b.jpg"]
    assert items[0].image is not None
    with pytest.raises(ImageError) as caught:
        load_image(items[0].image)
    assert caught.value.code == "is_directory"


def test_recursion_goes_into_a_folder_named_like_a_picture(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg/inside.jpg", "b.jpg")

    items = as_many_as_counted([tmp_path], recursive=True)

    assert names_under(tmp_path, iter(items)) == ["a.jpg/inside.jpg", "b.jpg"]


@contextmanager
def without_privileges() -> Iterator[None]:
    """As a user whom permissions bind, also where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_folder_that_may_not_be_read_is_a_row_and_not_the_end() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        touch(folder, "closed/1.jpg", "open/2.jpg")
        folder.chmod(0o755)
        (folder / "closed").chmod(0)
        try:
            with without_privileges():
                counted = count([folder], recursive=True)
                items = list(expand([folder], recursive=True))
        finally:
            (folder / "closed").chmod(0o755)

    assert names_under(folder, iter(items)) == ["closed", "open/2.jpg"]
    assert items[0].error is not None
    assert items[0].error.code == "not_readable"
    assert counted == 2


def test_a_glob_gives_what_it_matches_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b1.jpg", "b10.jpg", "a1.jpg", "sub/b2.jpg")

    flat = as_many_as_counted([f"{tmp_path}/b*.jpg"])
    deep = as_many_as_counted([f"{tmp_path}/**/b*.jpg"])

    assert names_under(tmp_path, iter(flat)) == ["b1.jpg", "b10.jpg"]
    assert names_under(tmp_path, iter(deep)) == ["b1.jpg", "b10.jpg", "sub/b2.jpg"]


def test_a_glob_that_matches_nothing_is_a_row(tmp_path: Path) -> None:
    (item,) = as_many_as_counted([f"{tmp_path}/*.jpg"])

    assert item.name == f"{tmp_path}/*.jpg"
    assert item.error is not None
    assert item.error.code == "not_found"


def test_a_file_whose_name_looks_like_a_glob_is_taken_as_it_is(tmp_path: Path) -> None:
    touch(tmp_path, "photo[1].jpg", "photo1.jpg")

    items = as_many_as_counted([tmp_path / "photo[1].jpg"])

    assert names_under(tmp_path, iter(items)) == ["photo[1].jpg"]


def test_the_order_given_is_kept_and_so_is_what_is_named_twice(tmp_path: Path) -> None:
    touch(tmp_path, "z.jpg", "f/b.jpg", "f/a.jpg")

    items = as_many_as_counted([tmp_path / "z.jpg", tmp_path / "f", tmp_path / "z.jpg"])

    assert names_under(tmp_path, iter(items)) == ["z.jpg", "f/a.jpg", "f/b.jpg", "z.jpg"]


def test_a_path_that_is_not_there_becomes_an_error_row(analyzer: Analyzer, tmp_path: Path) -> None:
    items = as_many_as_counted([tmp_path / "gone.jpg", FACES / "hopper.jpg"])

    missing, found = analyzer.stream(items)

    assert missing.path == str(tmp_path / "gone.jpg")
    assert missing.error is not None
    assert missing.error.code == "not_found"
    assert len(found.faces) == 1


def write_odd_name(folder: Path) -> str:
    """A photograph under a name that is not UTF-8; gives its path."""
    path = os.path.join(os.fsencode(folder), b"caf\xe9.jpg")
    try:
        Path(os.fsdecode(path)).write_bytes(HOPPER)
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    return os.fsdecode(path)


@pytest.mark.parametrize("by", ["path", "folder", "glob"])
def test_a_name_that_is_not_utf8_is_read_and_shown_escaped(tmp_path: Path, by: str) -> None:
    path = write_odd_name(tmp_path)
    place = {"path": path, "folder": str(tmp_path), "glob": f"{tmp_path}/*.jpg"}[by]

    (item,) = as_many_as_counted([place])

    assert item.name == f"{tmp_path}/caf\\xe9.jpg"
    assert item.image is not None
    assert load_image(item.image).width == 512


def test_a_glob_that_is_not_utf8_has_a_name_that_can_be_written(tmp_path: Path) -> None:
    (item,) = expand([os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9*.jpg")])

    assert item.name.encode("utf-8").endswith(b"/caf\\xe9*.jpg")


@pytest.mark.parametrize("address", ["https://a.example/p.jpg", "http://a.example/p.jpg?w=1&h=[2]"])
def test_an_address_is_one_picture_and_no_glob(address: str) -> None:
    (item,) = as_many_as_counted([address])

    assert (item.image, item.error) == (address, None)


def test_the_name_of_an_address_keeps_its_secrets() -> None:
    (item,) = expand(["https://user:secret@a.example/p.jpg?token=secret"])

    assert "a.example/p.jpg" in item.name
    assert "secret" not in item.name


# --- Parquet --------------------------------------------------------------------------------------


def write_table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_each_row_of_a_table_is_a_picture(tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "t.parquet", {"id": [7, 8, 9], "image": [b"one", b"two", b"three"]}
    )

    items = as_many_as_counted([table])

    assert [item.name for item in items] == [f"{table}#{row}" for row in range(3)]
    assert [item.image for item in items] == [b"one", b"two", b"three"]


def test_rows_of_several_batches_and_row_groups_keep_their_numbers(tmp_path: Path) -> None:
    contents = [str(row).encode() for row in range(301)]
    table = write_table(tmp_path / "t.pq", {"image": contents}, row_group_size=100)

    items = as_many_as_counted([table])

    assert [item.image for item in items] == contents
    assert items[-1].name == f"{table}#300"


def test_pictures_wrapped_in_a_structure_are_unwrapped(tmp_path: Path) -> None:
    rows = [{"bytes": b"one", "path": "a.jpg"}, {"bytes": b"two", "path": None}]
    table = write_table(tmp_path / "t.parquet", {"image": rows})

    assert [item.image for item in as_many_as_counted([table])] == [b"one", b"two"]


def test_a_structure_without_bytes_points_at_its_file(tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": "pictures/a.jpg"}]
    schema = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, schema)}), tmp_path / "t.parquet")

    (item,) = as_many_as_counted([tmp_path / "t.parquet"])

    assert item.error is None
    assert item.image == tmp_path / "pictures" / "a.jpg"


def test_paths_in_a_table_start_at_its_folder(analyzer: Analyzer, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(HOPPER)
    table = write_table(
        tmp_path / "t.parquet", {"path": ["pictures/a.jpg", str(FACES / "hopper.jpg"), "gone.jpg"]}
    )

    near, far, gone = analyzer.stream(as_many_as_counted([table]))

    assert [len(near.faces), len(far.faces)] == [1, 1]
    assert gone.error is not None
    assert (gone.path, gone.error.code) == (f"{table}#2", "not_found")


def test_the_picture_itself_goes_before_its_path(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", {"path": ["a.jpg"], "image": [b"one"]})

    assert [item.image for item in expand([table])] == [b"one"]


def test_a_row_without_a_picture_is_an_error_row(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", {"image": [b"one", None, b"three"]})

    items = as_many_as_counted([table])

    assert [item.error and item.error.code for item in items] == [None, "empty", None]
    assert items[1].name == f"{table}#1"
    assert "image" in str(items[1].error)


def test_a_table_without_pictures_is_refused_with_its_columns(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", {"photo": [b"one"], "age": [3]})

    with pytest.raises(DataError, match=r"t\.parquet.*'image'.*'path'.*photo, age"):
        list(expand([table]))


def test_a_column_of_something_else_is_refused_with_its_type(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", {"image": [1, 2]})

    with pytest.raises(DataError, match=r"t\.parquet.*'image'.*int64"):
        list(expand([table]))


def test_a_table_of_no_rows_gives_no_pictures(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", {"image": pa.array([], pa.binary())})

    assert as_many_as_counted([table]) == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table at all" * 100], ids=len)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(content)

    for read in (lambda: list(expand([broken])), lambda: count([broken])):
        with pytest.raises(DataError, match=r"broken\.parquet.*not a readable Parquet"):
            read()


def test_a_table_broken_in_the_middle_is_refused_with_the_row(tmp_path: Path) -> None:
    contents = [bytes(np.random.default_rng(row).bytes(1000)) for row in range(200)]
    table = write_table(
        tmp_path / "t.parquet",
        {"image": contents},
        row_group_size=50,
        use_dictionary=False,
        compression="zstd",
    )
    broken = bytearray(table.read_bytes())
    middle = len(broken) // 2
    broken[middle : middle + 60_000] = b"\xff" * 60_000
    table.write_bytes(broken)

    before: list[SourceItem] = []
    with pytest.raises(DataError, match=r"t\.parquet.*row \d+"):
        before.extend(expand([table]))

    assert [item.image for item in before] == contents[: len(before)]
    assert len(before) >= 50


def test_a_table_that_is_not_there_is_an_error_row(tmp_path: Path) -> None:
    (item,) = as_many_as_counted([tmp_path / "gone.parquet"])

    assert item.image == str(tmp_path / "gone.parquet")


# --- videos ---------------------------------------------------------------------------------------

RATE = 10


def photographs(size: tuple[int, int] = (128, 160)) -> list[NDArray[np.uint8]]:
    """Both portraits and one of them mirrored, in RGB."""
    images = [Image.open(FACES / f"{name}.jpg").convert("RGB") for name in ("astronaut", "hopper")]
    made = [np.asarray(image.resize(size)) for image in images]
    return [*made, np.ascontiguousarray(made[0][:, ::-1])]


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Three seconds at ten frames a second; each second shows another photograph."""
    path = tmp_path / "clip.avi"
    pictures = photographs()
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (width, height))
    assert writer.isOpened()
    for picture in pictures:
        for _ in range(RATE):
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def test_a_video_gives_a_frame_a_second(video: Path) -> None:
    items = list(expand([video]))

    assert [item.name for item in items] == [f"{video}#t={second}.000" for second in range(3)]
    for item, picture in zip(items, photographs(), strict=True):
        assert isinstance(item.image, np.ndarray)
        assert item.image.shape == picture.shape
        # JPEG changes a channel by a few levels; red taken for blue would be off by dozens.
        assert np.abs(item.image.astype(int) - picture).mean() < 8


@pytest.mark.parametrize(
    ("every_s", "times"),
    [(0.5, [0, 0.5, 1, 1.5, 2, 2.5]), (0.25, [0, 0.3, 0.5, 0.8]), (2, [0, 2]), (60, [0])],
)
def test_the_time_between_frames_can_be_chosen(
    video: Path, every_s: float, times: list[float]
) -> None:
    names = [item.name for item in expand([video], every_s=every_s)]

    assert names[: len(times)] == [f"{video}#t={time:.3f}" for time in times]
    assert len(names) == -(-3 // every_s)


def test_no_time_between_frames_gives_every_frame(video: Path) -> None:
    assert len(list(expand([video], every_s=0.01))) == 3 * RATE


def test_only_reading_a_video_tells_how_many_frames_it_has(video: Path) -> None:
    assert count([FACES, video]) is None


@pytest.mark.parametrize("content", [b"", b"this is no video" * 100], ids=["empty", "text"])
def test_a_file_that_is_no_video_is_an_error_row(tmp_path: Path, content: bytes) -> None:
    fake = tmp_path / "fake.mp4"
    fake.write_bytes(content)

    (item,) = expand([fake])

    assert item.name == str(fake)
    assert item.error is not None
    assert item.error.code == "corrupt"


def test_a_video_cut_short_gives_the_frames_it_has(video: Path) -> None:
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])

    items = list(expand([video]))

    assert 1 <= sum(item.error is None for item in items) <= 2


def test_faces_of_a_video_carry_their_time(analyzer: Analyzer, video: Path) -> None:
    rows = list(analyzer.stream(expand([video])))

    assert [row.path for row in rows] == [f"{video}#t={second}.000" for second in range(3)]
    assert [len(row.faces) for row in rows] == [1, 1, 1]


# --- videos in memory -----------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Twelve frames, ten a second, each a little lighter than the one before."""
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for row in range(12):
        writer.write(np.full((48, 64, 3), 20 * row, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("every_s", [0.0, 0.25, 0.5])
def test_a_video_in_memory_gives_the_frames_of_its_file(clip: Path, every_s: float) -> None:
    of_file = list(video_frames(str(clip), every_s=every_s))
    of_bytes = list(video_frames(clip.read_bytes(), every_s=every_s))

    assert len(of_bytes) == {0.0: 12, 0.25: 5, 0.5: 3}[every_s]
    for one, other in zip(of_file, of_bytes, strict=True):
        assert one.name.rpartition("#")[2] == other.name.rpartition("#")[2]
        assert np.array_equal(one.image, other.image)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"]
)
def test_a_playlist_in_memory_reads_no_file(clip: Path, text: str) -> None:
    (item,) = video_frames(text.format(clip).encode())

    assert item.image is None
    assert item.error is not None
    assert item.error.code == "unsupported_format"


def test_a_video_of_large_pictures_is_refused_before_one_is_decoded(clip: Path) -> None:
    (item,) = video_frames(clip.read_bytes(), limits=ImageLimits(max_pixels=64 * 48 - 1))

    assert item.error is not None
    assert item.error.code == "too_many_pixels"
