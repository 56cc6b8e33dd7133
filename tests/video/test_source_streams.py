"""Cameras as sources: what freezes, hangs up, dies, changes and comes back is survived and told.

Real servers on this computer; each picture says the tick of the camera's clock at which it was
made, so that how old it is and which were missed is read from its pixels.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import itertools
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agelens.identifiers import utc_now
from agelens.video.decoding import Decoder, open_stream
from agelens.video.live import LiveStream
from agelens.video.source import Frame, SourceOptions, SourceStatus, VideoSource, open_source
from video.streams import (
    MjpegCamera,
    RtspCamera,
    free_port,
    number_in,
    numbered,
    why_no_rtsp,
    write_clip,
)

QUICK = SourceOptions(
    open_timeout_s=1.0, read_timeout_s=0.7, stall_s=0.3, backoff_s=(0.05, 0.2), down_after_s=1.2
)
"""A camera of these tests sends 50 pictures a second: 0.3 s without one is long."""


class Reader:
    """Reads a source in a thread and keeps what tests ask for, but no picture."""

    def __init__(self, source: VideoSource, *, work_s: float = 0.0) -> None:
        self.source = source
        self.numbers: list[int] = []
        self.times: list[int] = []
        self.at: list[datetime] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.ages: list[float] = []
        self._work_s = work_s
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for frame in self.source.frames():
            self.numbers.append(number_in(frame.pixels))
            self.times.append(frame.pts_us)
            self.at.append(frame.at)
            self.shapes.add(frame.pixels.shape)
            self.ages.append(time.monotonic() - frame.received_s)
            time.sleep(self._work_s)

    def until(self, holds: Callable[[], bool], what: str, timeout_s: float = 8.0) -> float:
        """Seconds until something holds."""
        began_s = time.monotonic()
        while not holds():
            assert time.monotonic() - began_s < timeout_s, f"{what}: {self.source.status()}"
            time.sleep(0.01)
        return time.monotonic() - began_s

    def until_state(self, state: str, timeout_s: float = 8.0) -> float:
        return self.until(lambda: self.source.status().state == state, state, timeout_s)

    def until_more(self, frames: int = 5) -> float:
        wanted = len(self.numbers) + frames
        return self.until(lambda: len(self.numbers) >= wanted, f"{frames} more frames")

    def join(self) -> None:
        self._thread.join(5)
        assert not self._thread.is_alive(), "the frames did not end"


@contextlib.contextmanager
def watched(
    address: str, options: SourceOptions = QUICK, *, work_s: float = 0.0
) -> Iterator[Reader]:
    with open_source(address, options=options) as source:
        reader = Reader(source, work_s=work_s)
        yield reader
    reader.join()
    assert all(later > earlier for earlier, later in itertools.pairwise(reader.times))


def adds_up(status: SourceStatus) -> bool:
    return status.frames_in - status.delivered - status.dropped in (0, 1)


@pytest.fixture
def camera() -> Iterator[MjpegCamera]:
    with MjpegCamera(rate=50) as one:
        yield one


# --- frames ---------------------------------------------------------------------------------------


def test_a_stream_gives_the_pictures_of_now(camera: MjpegCamera) -> None:
    with watched(camera.address) as reader:
        reader.until_more(1)
        lags = []
        for _ in range(10):
            reader.until_more(2)
            lags.append(camera.tick - reader.numbers[-1])
        status = reader.source.status()

    assert max(lags) <= 12
    assert (
        status.state,
        status.width,
        status.height,
        status.reconnects,
        status.message,
    ) == ("running", 320, 240, 0, "")
    assert reader.source.is_live


def test_a_slow_reader_gets_the_newest_frame_and_the_others_are_counted() -> None:
    with MjpegCamera(rate=60) as fast, watched(fast.address, work_s=0.1) as reader:
        reader.until_more(15)
        lag_s = (fast.tick - reader.numbers[-1]) / 60
        sent = fast.sent
        status = reader.source.status()

    assert lag_s <= 0.3
    assert status.dropped >= 2 * status.delivered
    assert adds_up(status)
    assert status.frames_in >= sent - 30


def test_where_every_frame_is_wanted_a_slow_reader_drops_none() -> None:
    options = SourceOptions(realtime=False)
    with MjpegCamera() as one, watched(one.address, options, work_s=0.08) as reader:
        reader.until_more(10)
        status = reader.source.status()

    assert (status.dropped, status.state) == (0, "running")
    steps = {later - earlier for earlier, later in itertools.pairwise(reader.numbers)}
    assert steps <= {1, 2}


def test_times_follow_the_arrival_where_the_stream_has_no_clock() -> None:
    with MjpegCamera(rate=15) as slow, watched(slow.address) as reader:
        reader.until_more(16)

    seconds = (reader.times[-1] - reader.times[1]) / 1e6
    ticks = reader.numbers[-1] - reader.numbers[1]
    assert ticks / 15 == pytest.approx(seconds, abs=0.15)


def test_each_opening_is_an_epoch_of_its_own(camera: MjpegCamera) -> None:
    epochs = {open_source(camera.address).epoch for _ in range(3)}

    assert len(epochs) == 3
    assert camera.connections == 0


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_freeze_is_seen_at_once_and_the_stream_goes_on_afterwards(camera: MjpegCamera) -> None:
    with watched(camera.address) as reader:
        reader.until_more()
        camera.freeze()
        seen_s = reader.until_state("stalled")
        silent = reader.source.status()
        reader.until_state("down")
        down = reader.source.status()
        camera.thaw()
        back_s = reader.until_state("running")
        reader.until_more()
        status = reader.source.status()

    assert seen_s < 1.0
    assert back_s < 2.0
    assert "no frame since" in silent.message
    assert "no frame since" in down.message
    assert (status.reconnects, status.message) == (1, "")
    assert adds_up(status)


def test_a_short_freeze_needs_no_new_connection(camera: MjpegCamera) -> None:
    with watched(camera.address) as reader:
        reader.until_more()
        camera.freeze()
        reader.until_state("stalled")
        camera.thaw()
        reader.until_more()

        assert (reader.source.status().reconnects, camera.connections) == (0, 1)


def test_the_time_of_an_outage_is_part_of_the_streams_time(camera: MjpegCamera) -> None:
    with watched(camera.address) as reader:
        reader.until_more()
        camera.die()
        reader.until_state("reconnecting")
        time.sleep(0.5)
        camera.come_back()
        reader.until_more()

    seconds = (reader.times[-1] - reader.times[0]) / 1e6
    ticks = reader.numbers[-1] - reader.numbers[0]
    assert ticks / camera.rate == pytest.approx(seconds, abs=0.2)


def test_a_camera_that_dies_is_down_until_it_comes_back(camera: MjpegCamera) -> None:
    with watched(camera.address) as reader:
        reader.until_more()
        camera.die()
        reader.until_state("down")
        message = reader.source.status().message
        camera.come_back()
        reader.until_state("running")
        reader.until_more()

        assert reader.source.status().reconnects == 1
    assert "does not answer with a video" in message


def test_a_camera_that_was_never_there_is_down_and_no_error() -> None:
    with watched(f"http://127.0.0.1:{free_port()}/video.mjpg") as reader:
        reader.until_state("down")
        status = reader.source.status()

    assert (status.frames_in, status.last_frame_at) == (0, None)
    assert "check the address" in status.message


def test_a_camera_that_is_switched_on_later_is_found(camera: MjpegCamera) -> None:
    camera.die()
    with watched(camera.address) as reader:
        reader.until_state("reconnecting")
        camera.come_back()
        reader.until_state("running")

        assert reader.source.status().reconnects == 0


def test_a_change_of_resolution_is_survived(camera: MjpegCamera) -> None:
    with watched(camera.address) as reader:
        reader.until_more()
        for size in ((640, 480), (160, 120), (640, 360)):
            camera.drawing = functools.partial(numbered, size=size)
            reader.until_more(10)
        lag = camera.tick - reader.numbers[-1]
        camera.hang_up()
        reader.until_more(10)
        status = reader.source.status()

    assert lag <= 15
    assert sorted(reader.numbers) == reader.numbers
    assert (status.width, status.height) == (640, 360)


def test_spoiled_pictures_are_survived(camera: MjpegCamera) -> None:
    drawn = random.Random(5)

    def flip(picture: bytes) -> bytes:
        spoiled = bytearray(picture)
        for _ in range(20 if drawn.random() < 0.5 else 0):
            spoiled[drawn.randrange(len(spoiled))] ^= 1 << drawn.randrange(8)
        return bytes(spoiled)

    with watched(camera.address) as reader:
        reader.until_more()
        camera.spoil = flip
        time.sleep(1)
        camera.spoil = bytes
        reader.until_more(10)
        lag = camera.tick - reader.numbers[-1]
        status = reader.source.status()

    assert lag <= 15
    assert (adds_up(status), status.state) == (True, "running")


def test_the_time_of_day_may_be_set_back_and_forth(camera: MjpegCamera) -> None:
    shift = [timedelta(0)]
    source = LiveStream(
        "camera",
        lambda: open_stream(camera.address, QUICK),
        QUICK,
        now=lambda: utc_now() + shift[0],
    )
    with source:
        reader = Reader(source)
        for hours in (0, -1, 1, 0):
            shift[0] = timedelta(hours=hours)
            reader.until_more(10)
    reader.join()
    elapsed_s = (reader.times[-1] - reader.times[0]) / 1e6
    ticks = reader.numbers[-1] - reader.numbers[0]

    assert all(later > earlier for earlier, later in itertools.pairwise(reader.times))
    assert ticks / camera.rate == pytest.approx(elapsed_s, abs=0.12)
    assert max(reader.at) - min(reader.at) >= timedelta(hours=2)
    assert abs(reader.at[-1] - datetime.now(UTC)) < timedelta(seconds=5)


# --- letting go -----------------------------------------------------------------------------------


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts files in /proc")
def test_twenty_lost_connections_leave_no_thread_and_no_file_behind(camera: MjpegCamera) -> None:
    with watched(camera.address) as reader:
        reader.until_more(2)
        threads, files = threading.active_count(), open_files()
        for _ in range(20):
            camera.hang_up()
            reader.until_more(2)
        reader.until(lambda: open_files() <= files, "files closed")
        reader.until(lambda: threading.active_count() <= threads, "threads ended")

        assert reader.source.status().reconnects == 20


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts files in /proc")
def test_twenty_openings_leave_no_thread_and_no_file_behind(camera: MjpegCamera) -> None:
    for round_number in range(21):
        with watched(camera.address) as reader:
            reader.until_more(1)
        if round_number == 0:
            threads, files = threading.active_count(), open_files()
    reader.until(lambda: open_files() <= files, "files closed")
    reader.until(lambda: threading.active_count() <= threads, "threads ended")


def test_closing_ends_the_frames_of_a_frozen_camera(camera: MjpegCamera) -> None:
    with watched(camera.address) as reader:
        reader.until_more()
        camera.freeze()
        reader.until_state("stalled")
        began_s = time.monotonic()
    took_s = time.monotonic() - began_s

    assert took_s < 1.5
    assert reader.source.status().state == "ended"


def test_a_read_that_hangs_beyond_its_timeouts_is_left_behind(camera: MjpegCamera) -> None:
    """A driver may hang for ever; a decoder of a webcam knows no timeout."""
    options = SourceOptions(open_timeout_s=0.1, read_timeout_s=0.3, stall_s=0.2)
    release, openings = threading.Event(), []

    def opened() -> Decoder:
        openings.append(time.monotonic())
        if len(openings) == 1:
            release.wait(20)
        return open_stream(camera.address, QUICK)

    with LiveStream("camera", opened, options) as source:
        reader = Reader(source)
        reader.until(lambda: len(reader.numbers) >= 5, "frames by another thread")
        release.set()
        reader.until_more(5)
        reader.until(
            lambda: sum("camera" in one.name for one in threading.enumerate()) == 1, "one reader"
        )
    reader.join()


# --- what must never come out ---------------------------------------------------------------------

PASSWORD = "tr0ub4dor"


def test_a_password_is_used_and_never_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    with MjpegCamera(password=PASSWORD) as locked, watched(locked.address) as reader:
        reader.until_more()
        said += [repr(reader.source.status()), reader.source.name]
        locked.die()
        for state in ("reconnecting", "down"):
            reader.until_state(state)
            said.append(repr(reader.source.status()))
        said += [thread.name for thread in threading.enumerate()]
        said.append(repr(reader.source))

    assert PASSWORD not in " ".join(said) + caplog.text
    assert "/video.mjpg" in said[0] + said[1]


def test_what_decoders_print_themselves_holds_no_password(tmp_path: Path) -> None:
    """FFmpeg writes to the standard error of the process, past every logger."""
    with MjpegCamera(password=PASSWORD) as locked:
        wrong = locked.address.replace(PASSWORD, f"{PASSWORD}x")
        dead = f"rtsp://viewer:{PASSWORD}@127.0.0.1:{free_port()}/camera?key={PASSWORD}"
        program = f"""
import logging, time
logging.basicConfig(level=logging.DEBUG)
from agelens.video.source import SourceOptions, open_source
options = SourceOptions(open_timeout_s=1, read_timeout_s=1, backoff_s=(0.1, 0.1))
for address in {[wrong, dead]!r}:
    source = open_source(address, options=options)
    import threading
    threading.Timer(0.4, source.close).start()
    print(list(source.frames()), source.status(), source.name)
"""
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
        )

    assert done.returncode == 0, done.stderr
    assert "check the address, the password" in done.stdout
    assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{address}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {address}\n",
        "ffconcat version 1.0\nfile {path}\n",
    ],
)
def test_a_playlist_of_a_camera_cannot_name_files_of_this_computer(
    tmp_path: Path, playlist: str
) -> None:
    secret = write_clip(tmp_path / "secret.mp4", 25)
    served = tmp_path / "served"
    served.mkdir()
    text = playlist.format(address=secret.as_uri(), path=secret)
    (served / "live.m3u8").write_text(text)
    write_clip(served / "open.mp4", 25)
    with served_folder(served) as address:
        with watched(f"{address}/live.m3u8") as reader:
            reader.until_state("reconnecting")
        assert reader.numbers == []
        with watched(f"{address}/open.mp4") as reader:
            reader.until_more(5)


def test_a_film_behind_an_address_is_played_at_its_speed_and_ends(tmp_path: Path) -> None:
    write_clip(tmp_path / "film.mp4", 25)
    with served_folder(tmp_path) as address, watched(f"{address}/film.mp4") as reader:
        began_s = time.monotonic()
        reader.join()
        took_s = time.monotonic() - began_s

    assert list(range(25)) == reader.numbers
    assert 0.7 < took_s < 3


@contextlib.contextmanager
def served_folder(folder: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# --- RTSP -----------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(why_no_rtsp()), reason=why_no_rtsp())
def test_an_rtsp_camera_that_freezes_and_dies_is_read_again() -> None:
    """The steps between its frames are those of its own clock, not of their arrival."""
    with RtspCamera() as rtsp, watched(rtsp.address, QUICK) as reader:
        reader.until_more(40)
        steps = sorted(later - earlier for earlier, later in itertools.pairwise(reader.times))
        rtsp.freeze()
        stalled_s = reader.until_state("stalled")
        reader.until_state("reconnecting")
        rtsp.thaw()
        back_s = reader.until_state("running")
        reader.until_more(10)
        rtsp.die()
        reader.until_state("reconnecting")
        rtsp.come_back()
        reader.until_state("running")
        reader.until_more(10)
        status = reader.source.status()

    assert steps[len(steps) // 2] == pytest.approx(40_000, abs=1_000)
    assert stalled_s < 1.5
    assert back_s < 5
    assert (status.reconnects, adds_up(status)) == (2, True)


def test_frames_are_read_by_one_thread_at_a_time(camera: MjpegCamera) -> None:
    with watched(camera.address) as reader:
        reader.until_more(1)
        with pytest.raises(Exception, match="being read already"):
            next(reader.source.frames())


def frame_of(camera: MjpegCamera) -> Frame:
    with open_source(camera.address) as source:
        return next(iter(source.frames()))


def test_a_frame_is_red_green_blue_and_of_utc(camera: MjpegCamera) -> None:
    def orange(_: int) -> object:
        picture = numbered(0)
        picture[:] = (250, 120, 10)
        return picture

    camera.drawing = orange  # type: ignore[assignment]
    frame = frame_of(camera)

    assert abs(frame.pixels[100, 100].astype(int) - (250, 120, 10)).max() < 12
    assert frame.at.tzinfo is UTC
    assert abs(frame.at - datetime.now(UTC)) < timedelta(seconds=5)
    assert 0 <= time.monotonic() - frame.received_s < 5
