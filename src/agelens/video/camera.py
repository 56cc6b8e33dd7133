"""
One camera: frames in, who is in view now and which visits have ended out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np

from agelens.analyzer import Analyzer, Cutout, Scene
from agelens.errors import ArgumentError, ModelError
from agelens.images import Picture
from agelens.results import AgeDistribution, GenderEstimate
from agelens.video.evidence import Vote, usability
from agelens.video.guests import Sight, VisitRules, staff_zones
from agelens.video.health import HealthSample
from agelens.video.plan import CameraPlan, StaffRules
from agelens.video.source import Frame
from agelens.video.tracking import Tracker, TrackerOptions
from agelens.video.visit import Visit
from agelens.video.visits import VisitBook
from agelens.video.zones import Box

_DOUBTFUL_SCORE: Final = 0.4
"""Detector's confidence from which a face may go on with a track."""
_LIKELY_SCORE: Final = 0.5
"""Confidence from which it may begin one, which a sure face then has to confirm."""
_MOST_ESTIMATES: Final = 4
"""Faces of one frame that are estimated, beside those of whom nothing is known yet."""
_TRACKED_HEIGHT: Final = 720.0
"""Height of the picture in the tracker's units, so that a stream may change its resolution."""
_OFTEN: Final = 4.0
"""Detections a second from which a false one of two frames is worth telling apart by a third."""
_IN_VIEW_S: Final = 0.6
"""Seconds for which one who is not found counts as in view."""
_PACE: Final = 0.2
_SLOWEST_S: Final = 2.0


@dataclass(frozen=True)
class Person:
    """Someone who is in view.

    Attributes:
        track: Number of the visit's first track; the same for as long as the person is followed.
        box: x0 y0 x1 y1 of the face as fractions 0..1 of the picture; may reach outside.
        seconds: In view so far.
        attentive: Whether the face is turned to the screen now.
        attentive_seconds: How long it was so far.
        age: What the best frames say together; None as long as none allowed an estimate.
        gender: Likewise; None too where it is switched off.
        zones: Names of those the person is in.
        staff: The rules of the site hold the person for staff.
    """

    track: int
    box: tuple[float, float, float, float]
    seconds: float
    attentive: bool
    attentive_seconds: float
    age: AgeDistribution | None
    gender: GenderEstimate | None
    zones: tuple[str, ...]
    staff: bool


@dataclass(frozen=True)
class Moment:
    """Who was in view in one frame.

    Attributes:
        camera: Name of the camera.
        at: When the frame was taken, by our clock, in UTC.
        pts_us: By the stream's clock, in microseconds.
        people: Those in view, by track.
        latency_s: From the arrival of the frame to this result.
    """

    camera: str
    at: datetime
    pts_us: int
    people: tuple[Person, ...]
    latency_s: float


@dataclass(frozen=True)
class Step:
    """What one frame brought.

    Attributes:
        moment: Who is in view; None when the frame was not looked at.
        visits: Those that have ended, by start.
        health: The minute that has ended, or None.
    """

    moment: Moment | None
    visits: tuple[Visit, ...] = ()
    health: HealthSample | None = None


class CameraWatch:
    """Watches one camera; not for several threads at a time.

    Faces are looked for in the first frame of each interval of the stream's clock, so that what it
    says depends on the frames alone. A live source whose reader drops frames is looked at as often
    as frames come. Only the faces that need it are estimated, in one batch.

    Example:
        watch = CameraWatch(plan, Analyzer(), site="shop", epoch=source.epoch, staff=StaffRules())
        for frame in source.frames():
            store.add(watch.feed(frame).visits)
        store.add(watch.finish().visits)
    """

    def __init__(
        self, plan: CameraPlan, analyzer: Analyzer, *, site: str, epoch: str, staff: StaffRules
    ) -> None:
        """Begin with an empty picture.

        Args:
            plan: The camera.
            analyzer: Its options hold, but for ``min_face``, which is that of the plan.
            site: Name of the place.
            epoch: Which run of the source it is; see ``Visit``.
            staff: Who is held for staff.
        """
        self.plan = plan
        self._site, self._epoch = site, epoch
        sure = analyzer.options.min_score
        self._analyzer = analyzer.variant(
            min_face=plan.min_face, min_score=min(sure, _DOUBTFUL_SCORE)
        )
        self._sure = sure
        self._interval_s = 1 / plan.detections_per_second
        self._tracker = Tracker(tracker_options(plan.detections_per_second, sure))
        rules = VisitRules(
            lines=plan.lines,
            zones=plan.zones,
            attention=plan.attention,
            rejoin_s=plan.rejoin_s,
            staff_zones=staff_zones(plan.zones, staff.zones),
            staff_after_s=staff.longer_than_s,
        )
        self._book = VisitBook(
            rules, site=site, camera=plan.name, epoch=epoch, model=analyzer.model
        )
        self._fed_s: float | None = None
        self._looked: tuple[int, float] | None = None
        self._seconds = 0.0
        self._aspect = 1.0
        self._number: int | None = None
        self._health: HealthSample | None = None

    def feed(self, frame: Frame) -> Step:
        """Take the next frame.

        Args:
            frame: Not before the one before by the stream's clock.

        Raises:
            ArgumentError: Its time runs backwards.
            ModelError: The network failed.
        """
        health = self._count_frame(frame)
        self._note_gap(frame.pts_us / 1e6)
        interval = int(frame.pts_us * self.plan.detections_per_second // 1_000_000)
        if self._looked is not None and interval <= self._looked[0]:
            return Step(None, (), health)
        self._pace(interval, frame.pts_us / 1e6)
        moment = self._look(frame)
        return Step(moment, self._book.finished(self._seconds), health)

    def finish(self) -> Step:
        """End all visits, as at the end of the source; what has passed of the minute is told too.

        A frame that follows is watched as with an empty picture before it.
        """
        self._tracker.finish()
        visits = self._book.finish(self._seconds, self._aspect)
        health, self._health = self._health, None
        return Step(None, visits, health)

    @property
    def is_quiet(self) -> bool:
        """Nobody is followed and no visit is open: a place to resume from."""
        return self._tracker.is_idle and self._book.is_empty

    def state(self) -> dict[str, Any]:
        """What goes on beyond a quiet place, as plain values for JSON.

        Raises:
            ArgumentError: It is not quiet.
        """
        if not self.is_quiet:
            raise ArgumentError(f"camera {self.plan.name}: somebody is followed; wait for is_quiet")
        return {
            "last_id": self._tracker.last_id,
            "looked": None if self._looked is None else list(self._looked),
            "interval_s": self._interval_s,
            "aspect": self._aspect,
            "number": self._number,
            "arrivals": self._book.state(),
            "health": None if self._health is None else _plain_health(self._health),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave at a quiet place, with the frame after it.

        Raises:
            ArgumentError: It is not such a state.
        """
        try:
            options = self._tracker.options
            self._tracker = Tracker(options, last_id=int(state["last_id"]))
            looked, number, health = state["looked"], state["number"], state["health"]
            self._looked = None if looked is None else (int(looked[0]), float(looked[1]))
            self._interval_s, self._aspect = float(state["interval_s"]), float(state["aspect"])
            self._number = None if number is None else int(number)
            self._book.restore(state["arrivals"])
            self._health = None if health is None else _health_of(health)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ArgumentError(
                f"camera {self.plan.name}: this is no state of a camera: {error!r}"
            ) from error

    # --- one frame --------------------------------------------------------------------------------

    def _look(self, frame: Frame) -> Moment:
        """Find the faces of a frame, follow them and estimate those who need it."""
        height, width = frame.pixels.shape[:2]
        self._aspect, self._seconds = width / height, frame.pts_us / 1e6
        picture = Picture(np.ascontiguousarray(frame.pixels), width, height, None)
        scene = self._analyzer.locate(picture)
        if scene.error is not None:
            raise ModelError(f"camera {self.plan.name}: {scene.error.message}")
        faces = self._follow(scene.faces, frame)
        self._estimate(scene, faces)
        for track in self._book.rejoin(self._seconds, self._aspect):
            self._tracker.forget(track)
        self._count_faces(faces)
        people = self._people()
        latency_s = time.monotonic() - frame.received_s
        return Moment(self.plan.name, frame.at, frame.pts_us, people, latency_s)

    def _follow(self, faces: Sequence[Cutout], frame: Frame) -> dict[int, Cutout]:
        """The face of each confirmed track in the frame."""
        height, width = frame.pixels.shape[:2]
        scale = _TRACKED_HEIGHT / height
        boxes = [[value * scale for value in face.box] for face in faces]
        update = self._tracker.update(boxes, [min(1.0, f.score) for f in faces], self._seconds)
        found = {name: face for name, face in zip(update.ids, faces, strict=True) if name}
        size = (width * scale, _TRACKED_HEIGHT)
        begun = {
            one.id: [Sight(seconds, _fractions(box, size)) for seconds, box in one.sights[:-1]]
            for one in update.begun
        }
        seen = {
            name: Sight(self._seconds, _fractions(face.box, (width, height)), face.quality)
            for name, face in found.items()
        }
        self._book.update(
            self._seconds,
            frame.at,
            seen=seen,
            begun=begun,
            ended=[track.id for track in update.ended],
        )
        return found

    def _estimate(self, scene: Scene, faces: dict[int, Cutout]) -> None:
        """Estimate the faces that need it most."""
        worth = {}
        for track, face in faces.items():
            guest = self._book.guest(track)
            if guest is not None and face.score >= self._sure:
                worth[track] = guest.evidence.worth(usability(face.quality), self._seconds)
        ranked = sorted((t for t in worth if worth[t] > 0), key=lambda t: (-worth[t], t))
        unknown = sum(worth[track] >= 1 for track in ranked)
        chosen = ranked[: max(_MOST_ESTIMATES, unknown)]
        if not chosen:
            return
        asked = replace(scene, faces=tuple(faces[track] for track in chosen))
        (analysis,) = self._analyzer.estimate([asked])
        if analysis.error is not None:
            raise ModelError(f"camera {self.plan.name}: {analysis.error.message}")
        for track, told in zip(chosen, analysis.faces, strict=True):
            guest = self._book.guest(track)
            assert guest is not None  # it was there a moment ago
            vote = Vote(usability(told.quality), self._seconds, told.age, told.gender)
            guest.evidence.add(vote)

    def _people(self) -> tuple[Person, ...]:
        patience_s = max(_IN_VIEW_S, 2.5 * self._interval_s)
        return tuple(
            Person(
                guest.track,
                guest.last.box,
                guest.seconds,
                guest.attention.now,
                guest.attention.seconds,
                guest.evidence.age,
                guest.evidence.gender,
                guest.zones,
                guest.is_staff,
            )
            for guest in self._book.in_view()
            if self._seconds - guest.last.seconds <= patience_s
        )

    def _note_gap(self, seconds: float) -> None:
        """Tell the time without pictures from that in which nobody was in view."""
        before, self._fed_s = self._fed_s, seconds
        if before is not None and seconds - before > self._tracker.options.lost_s:
            self._book.pause(seconds - before - self._interval_s)

    def _pace(self, interval: int, seconds: float) -> None:
        """Know how often frames are looked at, which a slow machine or stream decides."""
        if self._looked is not None:
            passed = min(seconds - self._looked[1], _SLOWEST_S)
            self._interval_s += _PACE * (passed - self._interval_s)
            self._tracker.options = tracker_options(1 / self._interval_s, self._sure)
        self._looked = (interval, seconds)

    # --- health -----------------------------------------------------------------------------------

    def _count_frame(self, frame: Frame) -> HealthSample | None:
        """Count the frame; the minute that has ended with it, if one has."""
        passed = 1 if self._number is None else max(1, frame.number - self._number)
        self._number = frame.number
        fresh = HealthSample(
            site=self._site,
            camera=self.plan.name,
            minute=frame.at,
            frames_in=passed,
            dropped=passed - 1,
            epoch=self._epoch,
        )
        before, self._health = self._health, fresh
        if before is None or before.minute != fresh.minute:
            return before
        self._health = before + fresh
        return None

    def _count_faces(self, faces: dict[int, Cutout]) -> None:
        usable, quality_sum, age_sum = 0, 0.0, 0.0
        for track, face in faces.items():
            guest = self._book.guest(track)
            age = None if guest is None else guest.evidence.age
            quality_sum += usability(face.quality)
            if face.quality.usable and age is not None:
                usable += 1
                age_sum += age.mean
        assert self._health is not None  # the frame was counted
        self._health = replace(
            self._health,
            detections=self._health.detections + 1,
            faces=self._health.faces + len(faces),
            usable=self._health.usable + usable,
            quality_sum=self._health.quality_sum + quality_sum,
            age_sum=self._health.age_sum + age_sum,
        )


def tracker_options(per_second: float, sure: float = 0.7) -> TrackerOptions:
    """How faces are followed where they are looked for so often.

    Args:
        per_second: Detections a second.
        sure: Score that a face needs once for its track to be confirmed, 0..1.
    """
    interval_s = 1 / per_second
    return TrackerOptions(
        high_score=min(sure, _LIKELY_SCORE),
        low_score=min(sure, _DOUBTFUL_SCORE),
        confirm_score=sure,
        confirm_hits=3 if per_second >= _OFTEN else 2,
        tentative_s=max(0.5, 2.5 * interval_s),
        lost_s=max(2.0, 4 * interval_s),
    )


def _fractions(box: Sequence[float], size: tuple[float, float]) -> Box:
    x0, y0, x1, y1 = box
    return x0 / size[0], y0 / size[1], x1 / size[0], y1 / size[1]


def _plain_health(sample: HealthSample) -> dict[str, Any]:
    return {**asdict(sample), "minute": sample.minute.isoformat()}


def _health_of(plain: dict[str, Any]) -> HealthSample:
    return HealthSample(**{**plain, "minute": datetime.fromisoformat(plain["minute"])})


__all__ = ["CameraWatch", "Moment", "Person", "Step", "tracker_options"]
