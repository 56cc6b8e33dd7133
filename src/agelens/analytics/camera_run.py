"""
One camera followed from its source to what the store keeps of it, and where a file can be resumed.

A file has quiet places: nobody is followed, and no visit is open. Such a place is handed over as a
``Position`` together with all visits before it. Gone on with there, after whatever ended the run,
the same visits follow as if nothing had happened; those that were stored beyond the place are made
again with the same keys, and change nothing.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from agelens.analytics.records import Position, WatchedMinute
from agelens.analyzer import Analyzer
from agelens.errors import AgeLensError, ArgumentError, DataError, ModelError
from agelens.identifiers import utc_now
from agelens.images import source_name
from agelens.video.camera import CameraWatch, Moment, Step
from agelens.video.frames import Frame, SourceStatus, VideoSource
from agelens.video.health import HealthSample
from agelens.video.plan import CameraPlan, StaffRules
from agelens.video.source import open_source
from agelens.video.visit import Visit

_FLUSH_S: Final = 5.0
"""Time after which what a camera has is handed over; finished visits are at once."""
_SILENT: Final = ("opening", "stalled", "reconnecting", "down")
_SNAPSHOT_QUALITY: Final = 85


@dataclass(frozen=True)
class Batch:
    """What a camera hands over at a time; the store takes all of it, or none.

    Attributes:
        visits: That have ended.
        watched: How long the camera was seen, by minute.
        health: How well it saw, by minute.
        position: Where its file can be gone on with after these visits; None: nowhere new.
    """

    visits: tuple[Visit, ...] = ()
    watched: tuple[WatchedMinute, ...] = ()
    health: tuple[HealthSample, ...] = ()
    position: Position | None = None

    @property
    def size(self) -> int:
        """How much of it has to be kept until it is stored."""
        return 1 + len(self.visits) + len(self.watched) + len(self.health)


@dataclass(frozen=True)
class CameraStatus:
    """How one camera does now.

    Attributes:
        site: Name of the place.
        camera: Its name.
        source: Where its pictures come from, without a password.
        state: As ``SourceStatus.state``; also "waiting" before it is opened, "failed" when it
            cannot be watched, "stopped" when a file was left before its end, and "known" for a
            file that was counted before.
        is_live: It is a stream or a webcam, not a file.
        frames_in: Frames that arrived in this run, dropped ones too.
        dropped: Frames that were left out because there was no time for them.
        detections: Frames that faces were looked for in.
        reconnects: How often the source was opened anew.
        restarts: How often its process was started anew.
        last_frame_at: When the newest frame arrived (UTC), or None.
        width: Pixels of its pictures; 0 before the first.
        height: Pixels of its pictures; 0 before the first.
        people: In view now.
        visits: That have ended; of a file all, also those of earlier runs.
        position_s: Seconds of the source that were watched.
        message: What is the matter, for people; empty when nothing is.
        epoch: Run of the source, as in ``Visit``; empty before it is opened.
    """

    site: str
    camera: str
    source: str
    state: str = "waiting"
    is_live: bool = False
    frames_in: int = 0
    dropped: int = 0
    detections: int = 0
    reconnects: int = 0
    restarts: int = 0
    last_frame_at: datetime | None = None
    width: int = 0
    height: int = 0
    people: int = 0
    visits: int = 0
    position_s: float = 0.0
    message: str = ""
    epoch: str = ""


@dataclass(frozen=True)
class CameraTask:
    """What a run has to do; plain values, so that it can be sent to a process.

    Attributes:
        plan: The camera.
        site: Name of the place.
        staff: Who is held for staff.
        positions: Where its files can be gone on with, by epoch.
    """

    plan: CameraPlan
    site: str
    staff: StaffRules
    positions: Mapping[str, Position] = field(default_factory=dict)

    def first_status(self) -> CameraStatus:
        """Before anything has begun."""
        source = source_name(self.plan.source) or f"webcam {self.plan.source}"
        return CameraStatus(self.site, self.plan.name, source)


class CameraRun:
    """Watches one camera until it ends or is stopped; ``run`` belongs to one thread.

    Attributes:
        task: What it has to do.
    """

    def __init__(
        self,
        task: CameraTask,
        analyzer: Callable[[], Analyzer],
        *,
        keep: Callable[[Batch], None],
        see: Callable[[Moment], None] | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            task: What it has to do.
            analyzer: Makes the analyzer, or gives one that others have too.
            keep: Takes what is to be stored; may wait, and raises ``StoreError`` when it never
                will be.
            see: Takes who is in view; must not wait.
        """
        self.task = task
        self._analyzer = analyzer
        self._keep, self._see = keep, see
        self._stopping = threading.Event()
        # Held while frames are counted: ``tick`` may end the visits of a camera that is down.
        self._counting = threading.Lock()
        self._status = task.first_status()
        self._source: VideoSource | None = None
        self._watch: CameraWatch | None = None
        self._frame: Frame | None = None
        self._settings = ""
        self._starts_at: datetime | None = None
        self._visits: list[Visit] = []
        self._health: list[HealthSample] = []
        self._last_health: HealthSample | None = None
        self._counted = 0
        self._quiet: Position | None = None
        self._is_played = False
        self._was_quiet = False
        self._flushed_s = 0.0
        self._seen = _SeenTime(task.site, task.plan.name)
        self._silence = _Silence(task.site, task.plan.name)

    # --- from outside -----------------------------------------------------------------------------

    def run(self) -> None:
        """Watch; returns when the source has ended, failed, or ``stop`` was called."""
        try:
            self._run()
        except (AgeLensError, OSError) as error:
            self._tell(state="failed", people=0, message=str(error))
        except Exception as error:
            # A camera that breaks must not take the others with it.
            self._tell(state="failed", people=0, message=f"{type(error).__name__}: {error}")

    def stop(self) -> None:
        """End the run soon; from any thread, more than once."""
        self._stopping.set()
        source = self._source
        if source is not None and source.is_live:
            found = source.status()
            never_came = found.last_frame_at is None and found.message != ""
            if found.state != "ended" and (found.state == "down" or never_came):
                # Once it is closed, nothing says that it was away.
                self._tell(state="down", people=0, message=found.message)
            source.close()

    def tick(self) -> None:
        """Look after a camera that sends nothing; to be called about once a second."""
        source, watch = self._source, self._watch
        if source is None or watch is None or not source.is_live or self._stopping.is_set():
            return
        status = source.status()
        with self._counting:
            self._silence.note(status, utc_now())
            if status.state == "down" and not watch.is_quiet and self._is_given_up():
                self._take(watch.finish())
            self._health += self._silence.ended(self._seen.minute)
            if status.state in _SILENT:
                self._tell(people=0)
            batch = self._batch() if self._is_due() else None
        if batch is not None:
            self._hand_over(batch)

    def _is_given_up(self) -> bool:
        """Whether a silent camera's people could not be gone on with if it came back now."""
        frame = self._frame
        return frame is None or time.monotonic() - frame.received_s > self.task.plan.rejoin_s

    def status(self) -> CameraStatus:
        """How it does; from any thread."""
        source, told = self._source, self._status
        if source is None:
            return told
        found = source.status()
        has_own_end = told.state in ("failed", "stopped", "known", "down")
        return replace(
            told,
            state=told.state if has_own_end else found.state,
            frames_in=found.frames_in,
            dropped=found.dropped,
            reconnects=found.reconnects,
            last_frame_at=found.last_frame_at,
            width=found.width,
            height=found.height,
            message=told.message if has_own_end else found.message,
        )

    def snapshot(self) -> bytes | None:
        """The newest picture as JPEG, from memory; None before the first."""
        frame = self._frame
        if frame is None:
            return None
        import cv2

        quality = [cv2.IMWRITE_JPEG_QUALITY, _SNAPSHOT_QUALITY]
        done, encoded = cv2.imencode(".jpg", frame.pixels[..., ::-1], quality)
        return encoded.tobytes() if done else None

    # --- the run ----------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._stopping.is_set():
            return
        plan = self.task.plan
        source = open_source(plan.source, options=plan.options)
        self._tell(epoch=source.epoch, is_live=source.is_live)
        position = None if source.is_live else self.task.positions.get(source.epoch)
        began = None if position is None else position.state.get("starts_at")
        if began is not None and plan.options.starts_at is None:
            # A copy of the file, or a touched one, has another time: the visits keep the first.
            source.close()
            options = replace(plan.options, starts_at=datetime.fromisoformat(began))
            source = open_source(plan.source, options=options)
        with source:
            self._source = source
            analyzer = self._analyzer()
            self._settings = settings_of(self.task, analyzer)
            self._silence.epoch = source.epoch
            if source.is_live:
                self._seen.longest_gap_s = plan.options.stall_s
            if position is not None and self._is_finished(position):
                return
            self._watch = CameraWatch(
                plan,
                analyzer,
                site=self.task.site,
                epoch=source.epoch,
                staff=self.task.staff,
            )
            if position is not None:
                self._resume(self._watch, position)
            self._follow(source, self._watch, 0 if position is None else position.pts_us)

    def _is_finished(self, position: Position) -> bool:
        """Whether the file was counted to its end before.

        Raises:
            ArgumentError: It was counted with other settings, in whole or in part.
        """
        state, name = position.state, self.task.plan.name
        if state["settings"] != self._settings:
            self._tell(epoch="")
            raise ArgumentError(
                f"{name}: this file was counted with other settings on {state['when']} (lines, "
                "zones, rates, rules or model); its visits stay as they are. Give --again to count "
                "it anew in their place, or another --store"
            )
        self._counted = int(state["visits"])
        self._tell(visits=self._counted, position_s=position.pts_us / 1e6)
        if state["finished"]:
            fault = f" ({state['fault']})" if state.get("fault") else ""
            self._tell(state="known", message=f"counted before, on {state['when']}{fault}")
            return True
        return False

    def _resume(self, watch: CameraWatch, position: Position) -> None:
        watch.restore(position.state["watch"])
        self._seen.restore(position.state["seen"])
        self._starts_at = datetime.fromisoformat(position.state["starts_at"])
        self._was_quiet = True

    def _follow(self, source: VideoSource, watch: CameraWatch, from_pts_us: int) -> None:
        is_live = source.is_live
        self._is_played = not is_live and bool(self.task.plan.options.realtime)
        self._flushed_s = time.monotonic()
        fault = None
        try:
            for frame in source.frames(from_pts_us):
                if self._stopping.is_set() and not is_live:
                    break
                self._feed(watch, frame, is_live)
        except DataError as error:
            # It is told at the end of what could be read, which counts.
            fault = error
        except ModelError:
            self._hand_over_open(watch, is_live)
            raise
        with self._counting:
            if self._stopping.is_set() and not is_live:
                self._tell(state="stopped", people=0)
            else:
                if is_live:
                    self._silence.note(source.status(), utc_now())
                self._finish(watch, is_live, fault=str(fault or ""))
            batch = self._batch()
        self._hand_over(batch)
        if fault is not None:
            raise fault

    def _feed(self, watch: CameraWatch, frame: Frame, is_live: bool) -> None:
        self._frame = frame
        with self._counting:
            step = watch.feed(frame)
            self._count(watch, frame, step, is_live)
            batch = self._batch() if self._is_due() else None
        if step.moment is not None and self._see is not None:
            self._see(step.moment)
        if batch is not None:
            self._hand_over(batch)

    def _hand_over_open(self, watch: CameraWatch, is_live: bool) -> None:
        """End the visits of a camera that breaks; those of a file are made again another time."""
        if not is_live:
            return
        with self._counting:
            self._finish(watch, is_live)
            batch = self._batch()
        self._hand_over(batch)

    def _count(self, watch: CameraWatch, frame: Frame, step: Step, is_live: bool) -> None:
        self._seen.add(frame.at)
        self._take(step)
        changes: dict[str, Any] = {"position_s": frame.pts_us / 1e6}
        if step.moment is not None:
            changes["people"] = len(step.moment.people)
            changes["detections"] = self._status.detections + 1
        self._tell(**changes)
        if is_live:
            return
        if self._starts_at is None:
            self._starts_at = frame.at - timedelta(microseconds=frame.pts_us)
        is_quiet = watch.is_quiet
        if is_quiet and (self._visits or not self._was_quiet or self._is_due()):
            self._quiet = self._position(watch, frame.pts_us + 1)
        self._was_quiet = is_quiet

    def _take(self, step: Step) -> None:
        self._visits += step.visits
        self._counted += len(step.visits)
        if step.health is not None:
            sample, before = self._silence.with_silence(step.health), self._last_health
            if before is not None and before.minute == sample.minute:
                # The visits of a camera that was down were ended within the minute.
                sample = before + sample
            self._last_health = sample
            self._health.append(sample)

    def _finish(self, watch: CameraWatch, is_live: bool, *, fault: str = "") -> None:
        self._take(watch.finish())
        if is_live:
            self._health += self._silence.ended(None, closing=True)
        else:
            end = round(self._status.position_s * 1e6) + 1
            self._quiet = self._position(watch, end, finished=True, fault=fault)
        self._tell(people=0)

    def _position(
        self, watch: CameraWatch, pts_us: int, *, finished: bool = False, fault: str = ""
    ) -> Position:
        state = {
            "settings": self._settings,
            "watch": watch.state(),
            "seen": self._seen.state(),
            "starts_at": None if self._starts_at is None else self._starts_at.isoformat(),
            "visits": self._counted,
            "finished": finished,
            "fault": fault,
            "when": f"{utc_now():%Y-%m-%d %H:%M} UTC",
        }
        task = self.task
        return Position(task.site, task.plan.name, self._status.epoch, pts_us, state)

    # --- handing over -----------------------------------------------------------------------------

    def _is_due(self) -> bool:
        has_more = bool(self._visits or self._health)
        return has_more or time.monotonic() - self._flushed_s >= _FLUSH_S

    def _batch(self) -> Batch:
        """All that is not handed over yet; the present minute as far as it has been seen."""
        if self._is_played and self._quiet is None:
            # Played again it drops other frames: a visit beyond the place would come twice.
            self._flushed_s = time.monotonic()
            return Batch()
        batch = Batch(tuple(self._visits), self._seen.minutes(), tuple(self._health), self._quiet)
        self._visits, self._health, self._quiet = [], [], None
        self._flushed_s = time.monotonic()
        self._tell(visits=self._counted)
        return batch

    def _hand_over(self, batch: Batch) -> None:
        if batch.size > 1 or batch.position is not None:
            self._keep(batch)

    def _tell(self, **changes: Any) -> None:
        self._status = replace(self._status, **changes)


def settings_of(task: CameraTask, analyzer: Analyzer) -> str:
    """A fingerprint of everything that decides what is counted of a file."""
    plan, options = task.plan, analyzer.options
    starts_at = plan.options.starts_at
    told = {
        "lines": [asdict(line) for line in plan.lines],
        "zones": [asdict(zone) for zone in plan.zones],
        "detections_per_second": plan.detections_per_second,
        "min_face": plan.min_face,
        "rejoin_s": plan.rejoin_s,
        "attention": asdict(plan.attention),
        "picture_rate": plan.options.picture_rate,
        "starts_at": None if starts_at is None else starts_at.isoformat(),
        "staff": asdict(task.staff),
        "model": analyzer.model,
        "detector": options.detector,
        "gender": options.gender,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


# --- time that was seen, and time that was not ----------------------------------------------------

_LONGEST_GAP_S: Final = 60.0
"""Two frames of a file that are further apart do not show what was between them."""


def _minute_of(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


class _SeenTime:
    """How long a camera was seen, by minute; from the times of its frames.

    Attributes:
        longest_gap_s: Two frames that are further apart do not show what was between them.
    """

    def __init__(self, site: str, camera: str) -> None:
        self._place = site, camera
        self.longest_gap_s = _LONGEST_GAP_S
        self._last: datetime | None = None
        self._seconds: dict[datetime, float] = {}

    @property
    def minute(self) -> datetime | None:
        """That of the newest frame."""
        return None if self._last is None else _minute_of(self._last)

    def add(self, at: datetime) -> None:
        """Take the time of a frame."""
        last, self._last = self._last, at
        if last is None or not timedelta(0) < at - last <= timedelta(seconds=self.longest_gap_s):
            return
        _spread(self._seconds, last, at)

    def minutes(self) -> tuple[WatchedMinute, ...]:
        """Those that are not told yet, and the present one as far as it is."""
        found = tuple(
            WatchedMinute(*self._place, minute, min(60.0, seconds))
            for minute, seconds in self._seconds.items()
        )
        self._seconds = {m: s for m, s in self._seconds.items() if m == self.minute}
        return found

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "last": None if self._last is None else self._last.isoformat(),
            "seconds": {m.isoformat(): s for m, s in self._seconds.items() if m == self.minute},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        last = state["last"]
        self._last = None if last is None else datetime.fromisoformat(last)
        seconds = state["seconds"].items()
        self._seconds = {datetime.fromisoformat(minute): float(s) for minute, s in seconds}


class _Silence:
    """How long a live camera sent nothing, and how often it was opened anew, by minute.

    Attributes:
        epoch: Run of the source.
    """

    def __init__(self, site: str, camera: str) -> None:
        self._place = (site, camera)
        self.epoch = ""
        self._down: dict[datetime, float] = {}
        self._reconnects: dict[datetime, int] = {}
        self._until: datetime | None = None
        self._opened = 0

    def note(self, status: SourceStatus, now: datetime) -> None:
        """Take how its source does now."""
        if status.reconnects > self._opened:
            minute = _minute_of(now)
            more = status.reconnects - self._opened
            self._reconnects[minute] = self._reconnects.get(minute, 0) + more
            self._opened = status.reconnects
        since = max((t for t in (self._until, status.last_frame_at) if t), default=now)
        if status.state in _SILENT and since < now:
            _spread(self._down, since, now)
        self._until = now

    def with_silence(self, sample: HealthSample) -> HealthSample:
        """A minute's sample with what is known of its silence."""
        down_s = self._down.pop(sample.minute, 0.0)
        return replace(
            sample,
            reconnects=sample.reconnects + self._reconnects.pop(sample.minute, 0),
            down_s=min(60.0, sample.down_s + down_s),
        )

    def ended(self, last_seen: datetime | None, *, closing: bool = False) -> Iterator[HealthSample]:
        """Minutes that are over without a frame.

        Args:
            last_seen: The minute of the newest frame, whose sample is still to come.
            closing: The present minute is over too.
        """
        present = None if self._until is None or closing else _minute_of(self._until)
        for minute in sorted({*self._down, *self._reconnects} - {last_seen, present}):
            yield self.with_silence(HealthSample(*self._place, minute, epoch=self.epoch))


def _spread(seconds: dict[datetime, float], start: datetime, end: datetime) -> None:
    """Add the time between two moments to the minutes that it lies in."""
    while start < end:
        minute = _minute_of(start)
        stop = min(end, minute + timedelta(minutes=1))
        seconds[minute] = seconds.get(minute, 0.0) + (stop - start).total_seconds()
        start = stop


__all__ = ["Batch", "CameraRun", "CameraStatus", "CameraTask", "settings_of"]
