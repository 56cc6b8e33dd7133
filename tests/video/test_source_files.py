"""Recordings as sources: every frame once and at its time, the same at each run; or a clear error.

The pictures say their own numbers, so that which frame came is read from its pixels.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import re
import shutil
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import cv2
import numpy as np
import pytest

from agelens.errors import AgeLensError, ArgumentError, DataError
from agelens.sources import SteadyFile
from agelens.video.source import Frame, SourceOptions, open_source
from video.streams import Drawing, jpeg, number_in, numbered, with_other_times, write_clip

NOON = datetime(2026, 3, 29, 12, tzinfo=UTC)
OPTIONS = SourceOptions(starts_at=NOON)


def read(where: Path | str, from_pts_us: int = 0, options: SourceOptions = OPTIONS) -> list[Frame]:
    with open_source(where, options=options) as source:
        return list(source.frames(from_pts_us))


def facts(frames: list[Frame]) -> list[tuple[int, int, int, datetime]]:
    return [(number_in(one.pixels), one.number, one.pts_us, one.at) for one in frames]


def numbered_from(first: int) -> Drawing:
    return lambda number: numbered(first + number)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 frames, 4 seconds."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 100)


CONTAINERS = (
    ("clip.mp4", "mp4v"),
    ("clip.mov", "mp4v"),
    ("clip.avi", "MJPG"),
    ("clip.mkv", "mp4v"),
    ("clip.webm", "VP80"),
    ("clip.ts", "MPG2"),
)


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_every_frame_comes_once_in_order_and_at_its_time(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = write_clip(tmp_path / name, 60, codec=codec)
    found = facts(read(path))

    assert [(n, n, 40_000 * n, NOON + timedelta(milliseconds=40 * n)) for n in range(60)] == found


def test_colours_are_red_green_blue(tmp_path: Path) -> None:
    orange = np.full((64, 64, 3), (250, 120, 10), np.uint8)
    write_clip(tmp_path / "orange.avi", 2, drawing=lambda _: orange, codec="MJPG")
    (tmp_path / "orange.png").write_bytes(cv2.imencode(".png", orange[:, :, ::-1])[1].tobytes())

    for name in ("orange.avi", "orange.png"):
        pixels = read(tmp_path / name)[0].pixels
        assert np.abs(pixels.astype(int) - orange).max() < 12
        assert pixels.flags.c_contiguous


def test_two_runs_of_a_file_are_the_same(clip: Path) -> None:
    assert facts(read(clip)) == facts(read(clip))


def test_the_epoch_is_that_of_the_content_wherever_it_lies(clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "another name.mp4"
    shutil.copy(clip, copy)
    changed = tmp_path / "changed.mp4"
    changed.write_bytes(clip.read_bytes()[:-1] + b"\0")

    epochs = [open_source(path).epoch for path in (clip, copy, changed)]

    assert epochs[0] == epochs[1] != epochs[2]


def test_the_epoch_of_a_large_file_sees_its_length_its_beginning_and_its_end(
    clip: Path, tmp_path: Path
) -> None:
    content = clip.read_bytes()
    large = content + bytes(20_000_000)
    epochs = set()
    for number, edit in enumerate((large, large + b"\0", large[:-1] + b"\1")):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(edit)
        epochs.add(open_source(path).epoch)

    assert len(epochs) == 3


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
@pytest.mark.parametrize("number", [1, 37, 59])
def test_resuming_gives_what_the_whole_run_gives_from_there(
    tmp_path: Path, name: str, codec: str, number: int
) -> None:
    path = write_clip(tmp_path / name, 60, codec=codec)

    assert facts(read(path))[number:] == facts(read(path, 40_000 * (number - 1) + 1))


def test_resuming_beyond_the_end_gives_nothing(clip: Path) -> None:
    assert read(clip, 4_000_000) == []


def test_frames_can_be_read_again_from_the_same_source(clip: Path) -> None:
    with open_source(clip) as source:
        first = [one.pts_us for one in source.frames()]
        again = [one.pts_us for one in source.frames()]

    assert first == again


def test_a_folder_is_its_videos_and_pictures_in_their_natural_order(tmp_path: Path) -> None:
    write_clip(tmp_path / "part10.mp4", 3, drawing=numbered_from(10))
    write_clip(tmp_path / "part2.avi", 3, drawing=numbered, codec="MJPG")
    (tmp_path / "part9.jpg").write_bytes(jpeg(numbered(9)))
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".hidden.jpg").write_bytes(jpeg(numbered(1)))
    (tmp_path / "part3.mp4").mkdir()

    found = facts(read(tmp_path))

    assert [number for number, *_ in found] == [0, 1, 2, 9, 10, 11, 12]
    assert [40_000 * place for place in range(7)] == [pts_us for _, _, pts_us, _ in found]
    assert list(range(7)) == [number for _, number, _, _ in found]


def test_resuming_within_a_folder_gives_what_the_whole_run_gives(tmp_path: Path) -> None:
    for part in range(3):
        write_clip(tmp_path / f"{part}.mp4", 10, drawing=numbered_from(10 * part))

    assert facts(read(tmp_path))[17:] == facts(read(tmp_path, 17 * 40_000))


def test_pictures_of_a_folder_are_a_film_of_the_stated_rate(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(numbered(number)))

    options = SourceOptions(starts_at=NOON, picture_rate=2)

    assert [one.pts_us for one in read(tmp_path, options=options)] == [
        0,
        500_000,
        1_000_000,
        1_500_000,
    ]


def test_one_broken_file_of_a_folder_is_said_after_the_others_were_read(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", 3)
    (tmp_path / "b.mp4").write_bytes(b"nothing like a video")
    write_clip(tmp_path / "c.mp4", 3, drawing=numbered_from(5))
    frames: list[Frame] = []

    with (
        open_source(tmp_path) as source,
        pytest.raises(DataError, match=r"1 of its 3 files .*b\.mp4: not a video"),
    ):
        frames.extend(source.frames())

    assert [number_in(one.pixels) for one in frames] == [0, 1, 2, 5, 6, 7]


def test_a_file_begins_its_length_before_it_was_last_written(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    shutil.copy(clip, path)
    written = datetime(2026, 10, 25, 1, 0, 2, tzinfo=UTC)
    os.utime(path, (written.timestamp(), written.timestamp()))

    times = [one.at for one in read(path, options=SourceOptions())]

    assert written - timedelta(seconds=4) == times[0]
    assert timedelta(seconds=4) - timedelta(milliseconds=40) == times[-1] - times[0]


def test_a_start_in_another_zone_is_the_same_moment_in_utc(clip: Path) -> None:
    local = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    frame = read(clip, options=SourceOptions(starts_at=local))[0]

    assert (frame.at, frame.at.tzinfo) == (NOON, UTC)


def test_a_whole_file_says_that_it_has_ended_and_what_it_gave(clip: Path) -> None:
    with open_source(clip) as source:
        before = source.status()
        count = sum(1 for _ in source.frames())
        after = source.status()

    assert (before.state, before.frames_in) == ("opening", 0)
    assert ("ended", count, count, 0, 320, 240, "") == (
        after.state,
        after.frames_in,
        after.delivered,
        after.dropped,
        after.width,
        after.height,
        after.message,
    )


def test_closing_from_within_ends_the_frames(clip: Path) -> None:
    source = open_source(clip)
    seen = []
    for frame in source.frames():
        seen.append(frame.number)
        if frame.number == 4:
            source.close()

    assert seen == [0, 1, 2, 3, 4]
    assert source.status().state == "ended"
    with pytest.raises(ArgumentError, match="closed; open it again"):
        next(source.frames())


def test_the_page_about_cameras_prints_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "cameras.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    write_clip(tmp_path / "entrance.mp4", 3)
    monkeypatch.chdir(tmp_path)

    exec(code, {})
    *frames, status = capsys.readouterr().out.splitlines()

    assert [line.split()[:2] for line in frames] == [["0", "0.0"], ["1", "0.04"], ["2", "0.08"]]
    assert status == "ended 3"


# --- times that a container states ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("wrap", lambda ticks: ticks + (1 << 33) - 90_000 - 3_600 * 30),
        ("reset", lambda ticks: ticks if ticks < 90_000 + 3_600 * 30 else ticks - 3_600 * 30),
        ("hour back", lambda t: t + (400_000_000 if t < 90_000 + 3_600 * 30 else 76_000_000)),
    ],
)
def test_a_clock_that_starts_anew_within_a_file_adds_no_more_than_a_frame(
    tmp_path: Path, name: str, change: object
) -> None:
    assert callable(change)
    path = write_clip(tmp_path / "clip.ts", 60, codec="MPG2")
    path.write_bytes(with_other_times(path.read_bytes(), change))

    frames = read(path)
    times = [one.pts_us for one in frames]

    assert list(range(60)) == [number_in(one.pixels) for one in frames]
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    assert abs(times[-1] - 59 * 40_000) <= 40_000


# --- at its own speed ----------------------------------------------------------------------------


def test_a_file_in_real_time_takes_its_time_and_drops_what_a_slow_reader_misses(
    clip: Path,
) -> None:
    options = SourceOptions(starts_at=NOON, realtime=True)
    with open_source(clip, options=options) as source:
        began_s = time.monotonic()
        numbers = []
        for frame in source.frames(2_000_000):
            numbers.append(number_in(frame.pixels))
            time.sleep(0.15)
        took_s = time.monotonic() - began_s
        status = source.status()

    assert 1.9 < took_s < 3.5
    assert sorted(set(numbers)) == numbers
    assert (numbers[0], numbers[-1]) == (50, 99)
    assert len(numbers) < 25
    assert 50 == status.frames_in == status.delivered + status.dropped
    assert ("ended", len(numbers)) == (status.state, status.delivered)


def test_a_file_in_real_time_can_be_closed_in_the_middle(clip: Path) -> None:
    with open_source(clip, options=SourceOptions(realtime=True)) as source:
        next(source.frames())
        began_s = time.monotonic()

    assert time.monotonic() - began_s < 1


def test_a_file_in_real_time_keeps_its_fingerprint_and_can_be_read_again(clip: Path) -> None:
    played = open_source(clip, options=SourceOptions(realtime=True))

    assert (open_source(clip).epoch, False) == (played.epoch, played.is_live)


# --- what is no recording ------------------------------------------------------------------------


def hostile_files(folder: Path) -> dict[str, bytes]:
    """What names other files, or is none; by name."""
    secret = write_clip(folder / "secret.mp4", 25)
    address = secret.as_uri()
    return {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{address}\n".encode(),
        "list.m3u8": f"#EXTM3U\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n".encode(),
        "concat.avi": b"ffconcat version 1.0\nfile secret.mp4\n",
        "session.mkv": b"v=0\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 26\n",
        "manifest.mp4": b"<?xml version='1.0'?><MPD><BaseURL>secret.mp4</BaseURL></MPD>",
        "text.mp4": b"hello " * 100,
        "empty.mp4": b"",
        "head.mp4": b"\0\0\0\x18ftypisom" + bytes(2000),
        "noise.mkv": b"\x1a\x45\xdf\xa3" + random.Random(1).randbytes(4000),
        "noise.ts": (b"\x47" + bytes(187)) * 40,
        "cut.mp4": secret.read_bytes()[:-600],
    }


def test_files_that_name_others_or_hold_no_frame_are_refused_by_name(tmp_path: Path) -> None:
    for name, content in hostile_files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read(path)


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        ("nowhere.mp4", DataError, "no such file"),
        ("/dev/null", DataError, "a pipe, socket or device"),
        ("concat:a.mp4|b.mp4", ArgumentError, "not the address of a camera"),
        ("file:///etc/hostname", ArgumentError, "not the address of a camera"),
        ("udp://127.0.0.1:5000", ArgumentError, "not the address of a camera"),
        ("rtsp:///camera", ArgumentError, "not the address of a camera"),
        ("http://[::1", ArgumentError, "not the address of a camera"),
        ("rtsp://u:s3cret@host/a b", ArgumentError, "special character of a password"),
        (-1, ArgumentError, "webcam must be 0 or more"),
        (True, ArgumentError, "webcam must be 0 or more"),
    ],
)
def test_what_is_no_source_is_refused_with_the_reason(
    where: str | int, error: type[AgeLensError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        open_source(where)

    assert "s3cret" not in str(caught.value)


def test_a_folder_without_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no video and no picture"):
        open_source(tmp_path)


def test_names_that_mean_something_to_decoders_are_only_names(tmp_path: Path, clip: Path) -> None:
    for name in ("%03d.jpg.mp4", "concat:x.mp4", "a|b.mp4", "-i.mp4", "caf\udce9.mp4"):
        path = tmp_path / name
        shutil.copy(clip, path)
        assert len(read(path)) == 100


def test_frames_that_are_too_large_are_refused(clip: Path) -> None:
    with pytest.raises(DataError, match=r"320 x 240 are over 50,000 pixels; scale it down"):
        open_source(clip, options=SourceOptions(max_pixels=50_000))


def test_a_recording_cut_anywhere_gives_its_frames_and_says_that_it_is_cut(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.avi", 100, codec="MJPG").read_bytes()
    for percent in range(5, 85, 5):
        path = tmp_path / f"cut{percent}.avi"
        path.write_bytes(whole[: len(whole) * percent // 100])
        frames: list[Frame] = []
        with pytest.raises(DataError, match=path.name):
            frames.extend(open_source(path).frames())
        # The last picture is cut itself.
        numbers = [number_in(one.pixels) for one in frames[:-1]]

        assert list(range(len(numbers))) == numbers
        if percent >= 20:
            assert abs(len(numbers) - percent) <= 8


def test_a_cut_recording_says_so_in_its_status_too(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "cut.mkv", 100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_source(path) as source:
        with pytest.raises(DataError, match=r"it ends after 1\.\d s of 4\.0 s"):
            list(source.frames())

        assert "cut short" in source.status().message


def test_a_place_before_the_beginning_of_a_file_is_no_crash(tmp_path: Path) -> None:
    """The index of this file lies at a negative offset, which FFmpeg seeks to."""
    whole = bytearray(write_clip(tmp_path / "clip.avi", 30, codec="MJPG").read_bytes())
    stream = SteadyFile(io.BytesIO(bytes(whole)))

    assert stream.seek(-5) == -1
    assert stream.seek(1 << 70) == -1
    assert stream.seek(0) == 0
    assert stream.read(4) == b"RIFF"


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_damaged_recordings_end_with_frames_or_a_clear_error(
    tmp_path: Path, name: str, codec: str
) -> None:
    whole = write_clip(tmp_path / name, 30, codec=codec).read_bytes()
    drawn = random.Random(name)
    for _ in range(12):
        damaged = bytearray(whole)
        for _ in range(drawn.choice((1, 10, 200))):
            damaged[drawn.randrange(len(damaged))] = drawn.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        times = []
        said = name
        try:
            with open_source(tmp_path / name) as source:
                times = [one.pts_us for one in source.frames()]
        except DataError as error:
            said = str(error)

        assert name in said
        assert all(later > earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize(
    "options",
    [
        {"open_timeout_s": 0},
        {"stall_s": float("nan")},
        {"backoff_s": (5.0, 1.0)},
        {"down_after_s": -1},
        {"picture_rate": 0},
        {"max_pixels": 0},
        {"starts_at": datetime(2026, 1, 1)},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        SourceOptions(**options)  # type: ignore[arg-type]
