"""Cameras watched: what is seen is in the store, once; one that fails takes no other with it."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest

from agelens.analytics.camera_run import Batch, CameraStatus
from agelens.analytics.records import Position
from agelens.analytics.store import Scope, Store, open_store
from agelens.analytics.store_writer import joined
from agelens.analytics.watching import Watch
from agelens.video.camera import Moment
from agelens.video.frames import SourceOptions
from agelens.video.plan import CameraPlan, WatchPlan
from agelens.video.visit import Visit
from analytics.people import crowd
from analytics.watched import EVERY_S, FPS, SIDE, SIZE, camera_of, write_visits
from video.scenes import Pixels, Truth
from video.scenes_small import portraits, wall
from video.streams import MjpegCamera

PEOPLE = 3
ALL = Scope(staff=True)
BEGAN = datetime(2026, 3, 10, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    path = tmp_path_factory.mktemp("clip") / "door.mp4"
    return path, write_visits(path, people=PEOPLE)


@pytest.fixture(scope="module")
def clip(recorded: tuple[Path, Truth]) -> Path:
    return recorded[0]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "visits.sqlite") as store:
        yield store


def plan_of(*cameras: CameraPlan, **changes: object) -> WatchPlan:
    return replace(WatchPlan(cameras=cameras, timezone="UTC"), **changes)  # type: ignore[arg-type]


def watched(plan: WatchPlan, store: Store, *, again: bool = False) -> tuple[CameraStatus, ...]:
    """How the cameras were when a run was over."""
    watch = Watch(plan, store=store, again=again)
    watch.run()
    return watch.statuses()


def crossed(visits: list[Visit]) -> Counter[str]:
    return Counter(one.direction for visit in visits for one in visit.crossings)


# --- files ----------------------------------------------------------------------------------------


def test_everyone_in_a_video_is_counted_once_with_crossings_time_and_health(
    recorded: tuple[Path, Truth], kept: Store
) -> None:
    path, truth = recorded
    camera = replace(camera_of(path), options=SourceOptions(starts_at=BEGAN))

    (status,) = watched(plan_of(camera, site="museum", timezone="Europe/Berlin"), kept)

    visits = list(kept.visits(ALL))
    frames = round(EVERY_S * PEOPLE * FPS)
    assert len(visits) == truth.visitors == PEOPLE == status.visits
    assert crossed(visits) == Counter(one.direction for one in truth.crossings)
    assert all(visit.site == "museum" and visit.camera == "door" for visit in visits)
    assert all(len(visit.stays) == 1 for visit in visits)
    seen = [visit.start.timestamp() - BEGAN.timestamp() for visit in visits]
    assert np.allclose(seen, [one.enters_s for one in truth.people], atol=0.5)
    assert [(one.name, one.timezone) for one in kept.sites()] == [("museum", "Europe/Berlin")]
    assert sum(row[3] for row in kept.watched_quarters()) == pytest.approx(
        (frames - 1) / FPS, abs=0.01
    )
    assert sum(sample.frames_in for sample in kept.health()) == frames
    assert status.state == "ended"
    assert kept.check() == ()


def test_a_video_that_was_counted_to_its_end_is_not_counted_again_nor_is_a_copy_of_it(
    clip: Path, kept: Store, tmp_path: Path
) -> None:
    watched(plan_of(camera_of(clip)), kept)
    before = kept.checksum()
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())

    (status,) = watched(plan_of(camera_of(copy)), kept)

    assert (status.state, status.visits) == ("known", PEOPLE)
    assert status.message.startswith("counted before, on ")
    assert kept.checksum() == before


def test_other_settings_do_not_mix_with_the_first_ones_and_again_counts_anew(
    clip: Path, kept: Store
) -> None:
    watched(plan_of(camera_of(clip)), kept)
    before = kept.checksum()
    other = plan_of(replace(camera_of(clip), lines=(), zones=()))

    (status,) = watched(other, kept)
    assert status.state == "failed"
    assert "--again" in status.message
    assert kept.checksum() == before

    (status,) = watched(other, kept, again=True)
    visits = list(kept.visits(ALL))
    assert (status.state, len(visits)) == ("ended", PEOPLE)
    assert crossed(visits) == Counter()
    assert (kept.lines(), kept.zones()) == ([], [])
    assert kept.check() == ()


def test_a_file_that_cannot_be_read_takes_no_other_camera_with_it(
    clip: Path, kept: Store, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    cameras = (camera_of(broken, "broken"), camera_of(clip), camera_of(tmp_path / "none", "none"))

    states = {one.camera: one.state for one in watched(plan_of(*cameras), kept)}

    assert states == {"broken": "failed", "door": "ended", "none": "failed"}
    assert len(list(kept.visits(ALL))) == PEOPLE


@pytest.mark.parametrize("realtime", [None, True], ids=["read", "played"])
def test_who_is_in_view_where_a_recording_is_cut_is_a_visit_and_the_cut_is_told(
    kept: Store, tmp_path: Path, realtime: bool | None
) -> None:
    path = tmp_path / "cut.avi"
    write_visits(path, people=1)
    whole = path.read_bytes()
    path.write_bytes(whole[: round(len(whole) * 1.6 / EVERY_S)])
    camera = replace(camera_of(path), options=SourceOptions(realtime=realtime))

    (status,) = watched(plan_of(camera), kept)

    (visit,) = kept.visits(ALL)
    assert 0.5 < visit.seconds < 1.6
    assert (status.state, status.visits) == ("failed", 1)
    assert "cut short" in status.message
    assert status.frames_in > 10

    (status,) = watched(plan_of(camera), kept)
    assert (status.state, status.visits) == ("known", 1)
    assert "cut short" in status.message
    assert list(kept.visits(ALL)) == [visit]


def test_visits_older_than_retention_keeps_are_told_and_not_stored(clip: Path, kept: Store) -> None:
    old = replace(
        camera_of(clip), options=SourceOptions(starts_at=datetime(2020, 1, 1, tzinfo=UTC))
    )
    watch = Watch(plan_of(old, retention_days=30), store=kept)

    watch.run()

    assert watch.expired == PEOPLE
    assert list(kept.visits(ALL)) == []


def test_who_is_in_view_is_told_while_it_happens(clip: Path, kept: Store) -> None:
    told: list[Moment] = []

    Watch(plan_of(camera_of(clip)), store=kept, on_moment=told.append).run()

    assert {moment.camera for moment in told} == {"door"}
    assert [moment.pts_us for moment in told] == sorted(moment.pts_us for moment in told)
    assert max(len(moment.people) for moment in told) == 1
    assert told[-1].people == ()


def test_a_camera_process_that_dies_is_started_again_and_counts_as_if_it_had_not(
    clip: Path, kept: Store, tmp_path: Path
) -> None:
    plan = plan_of(camera_of(clip))
    has_begun = threading.Event()

    def kill_at_first(_: Moment) -> None:
        if not has_begun.is_set():
            has_begun.set()
            for process in multiprocessing.active_children():
                process.kill()

    watch = Watch(plan, store=kept, processes=True, on_moment=kill_at_first)
    states = set()
    with running(watch):
        assert has_begun.wait(30)
        while watch.statuses()[0].state != "ended":
            states.add(watch.statuses()[0].state)
            time.sleep(0.005)

    assert "down" in states
    assert watch.statuses()[0].restarts == 1
    with open_store(tmp_path / "undisturbed.sqlite") as other:
        watched(plan, other)
        assert kept.checksum() == other.checksum()
    assert kept.check() == ()


# --- streams --------------------------------------------------------------------------------------


def standing(_: int) -> Pixels:
    """Somebody who stands before the camera, (H, W, 3) uint8 RGB."""
    return np.ascontiguousarray(_standing_bgr()[..., ::-1])


def _standing_bgr() -> Pixels:
    from video.scenes import Person, Scene, Walk

    walk = Walk(((0.0, SIZE[0] / 2, SIZE[1] / 2, 1.5 * SIDE), (1.0, SIZE[0] / 2, SIZE[1] / 2, 60)))
    background = np.asarray(cv2.resize(wall(SIZE), SIZE), np.uint8)
    scene = Scene("standing", background, (Person(portraits()[0], walk),), 1.0, 2.0)
    return next(iter(scene.frames())).pixels


@pytest.fixture(scope="module")
def picture() -> Pixels:
    return standing(0)


@contextmanager
def running(watch: Watch) -> Iterator[None]:
    """While a run goes on in another thread; it is over afterwards."""
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield
    finally:
        watch.stop()
        thread.join(30)
        assert not thread.is_alive()


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def stream_of(address: str, **changes: object) -> CameraPlan:
    quick = {"stall_s": 0.5, "read_timeout_s": 0.5, "backoff_s": (0.1, 0.2), "down_after_s": 1.0}
    options = SourceOptions(**{**quick, **changes})  # type: ignore[arg-type]
    return CameraPlan("screen", address, rejoin_s=1.0, options=options)


def test_who_is_in_view_when_a_stream_is_stopped_is_a_visit(picture: Pixels, kept: Store) -> None:
    with MjpegCamera(lambda _: picture, rate=10) as camera:
        watch = Watch(plan_of(stream_of(camera.address)), store=kept)
        with running(watch):
            wait_until(lambda: watch.statuses()[0].people == 1)
            snapshot = watch.snapshot("screen")
            assert list(kept.visits(ALL)) == []

    (visit,) = kept.visits(ALL)
    assert visit.camera == "screen"
    assert watch.statuses()[0].state == "ended"
    assert snapshot is not None
    shown = cv2.imdecode(np.frombuffer(snapshot, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert shown.shape == picture.shape


def test_a_stream_that_dies_is_down_with_its_visits_ended_and_goes_on_when_it_is_back(
    picture: Pixels, kept: Store
) -> None:
    with MjpegCamera(lambda _: picture, rate=10) as camera:
        watch = Watch(plan_of(stream_of(camera.address)), store=kept)
        with running(watch):
            wait_until(lambda: watch.statuses()[0].people == 1)
            camera.die()
            wait_until(lambda: watch.statuses()[0].state == "down")
            wait_until(lambda: len(list(kept.visits(ALL))) == 1)
            assert watch.statuses()[0].people == 0
            camera.come_back()
            wait_until(lambda: watch.statuses()[0].people == 1)

    assert watch.statuses()[0].state == "ended"
    first, second = kept.visits(ALL)
    assert second.start > first.end
    silent = sum(sample.down_s for sample in kept.health())
    assert silent >= 1
    assert sum(sample.reconnects for sample in kept.health()) == 1
    seen = sum(row[3] for row in kept.watched_quarters())
    assert seen < (second.end - first.start).total_seconds() - 0.5
    assert kept.check() == ()


def test_who_stands_before_a_stream_that_is_away_for_less_than_rejoin_s_is_one_visit(
    picture: Pixels, kept: Store
) -> None:
    with MjpegCamera(lambda _: picture, rate=10) as camera:
        watch = Watch(plan_of(replace(stream_of(camera.address), rejoin_s=60.0)), store=kept)
        with running(watch):
            wait_until(lambda: watch.statuses()[0].people == 1)
            camera.die()
            wait_until(lambda: watch.statuses()[0].state == "down")
            # Longer than a track is followed without a sight.
            time.sleep(2.5)
            camera.come_back()
            wait_until(lambda: watch.statuses()[0].people == 1)
            time.sleep(1)

    (visit,) = kept.visits(ALL)
    assert (visit.end - visit.start).total_seconds() > visit.seconds + 2.5


def test_a_stream_that_never_comes_is_shown_as_down_and_says_why(kept: Store) -> None:
    from video.streams import free_port

    watch = Watch(plan_of(stream_of(f"http://me:secret@127.0.0.1:{free_port()}/")), store=kept)
    with running(watch):
        wait_until(lambda: watch.statuses()[0].state == "down")
        (status,) = watch.statuses()

    assert status.message
    assert "secret" not in f"{status}"
    assert status.last_frame_at is None
    after = watch.statuses()[0]
    assert (after.state, after.message) == ("down", status.message)


# --- handing over ---------------------------------------------------------------------------------


def test_batches_are_joined_so_that_no_place_comes_before_its_visits() -> None:
    visits = crowd(4)
    place = Position("museum", "door-1", "run-1", 10)
    later = replace(place, pts_us=20)
    batches = [
        Batch((visits[0],), position=place),
        Batch((visits[1],)),
        Batch((visits[2],), position=later),
        Batch((visits[3],), position=replace(place, camera="door-2")),
    ]

    found = joined(batches)

    assert [one.position for one in found] == [None, later, replace(place, camera="door-2")]
    assert [one.visits for one in found] == [
        (visits[1],),
        (visits[0], visits[2]),
        (visits[3],),
    ]
