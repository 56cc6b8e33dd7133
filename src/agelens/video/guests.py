"""
Someone before a camera: how long, where, how attentive, which lines; in the end, a visit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import numpy as np

from agelens.identifiers import new_identifier
from agelens.results import Quality
from agelens.video.attention import Attention, AttentionRules
from agelens.video.evidence import Evidence
from agelens.video.visit import LineCrossing, Visit, ZoneStay, visit_ages
from agelens.video.zones import Box, Line, LinePassage, Zone, ZoneTime, middle_of

_STEPS: Final = 5
"""Sights that a speed is taken over."""
_STAFF_SHARE: Final = 0.5
"""Share of the time in view from which on one who is in a zone of the staff is of them."""
_STAFF_ZONE_S: Final = 60.0
"""Seconds there from which on one is in any case."""


class Step(NamedTuple):
    """Where a face was when: fractions of the picture."""

    seconds: float
    x: float
    y: float


class Sight(NamedTuple):
    """One sight of a face: when, where (fractions of the picture), and its pose where known."""

    seconds: float
    box: Box
    quality: Quality | None = None


@dataclass(frozen=True)
class VisitRules:
    """How visits are made of tracks.

    Attributes:
        lines: Of the camera.
        zones: Of the camera.
        attention: When a face is turned to the screen.
        rejoin_s: Seconds within which one who was lost may come back; 0 for never.
        staff_zones: Names of zones where only staff stay.
        staff_after_s: Whoever is in view for longer is staff; None for nobody.
    """

    lines: tuple[Line, ...] = ()
    zones: tuple[Zone, ...] = ()
    attention: AttentionRules = field(default_factory=AttentionRules)
    rejoin_s: float = 10.0
    staff_zones: frozenset[str] = frozenset()
    staff_after_s: float | None = None


class Guest:
    """Someone who is in view, or was a moment ago.

    Attributes:
        track: Number of the first track.
        first_s: When first seen, by the stream's clock.
        last: The last sight.
        start: ``first_s`` by our clock.
        end: When last seen, by our clock.
        unseen_s: Seconds after that in which nobody was looking, as the camera gave no pictures.
        recent: The last steps.
        opening: The first ones.
        evidence: What is known of them.
        attention: How long they were turned to the screen.
        is_undecided: Whether they may yet turn out to be one who was lost.
    """

    def __init__(self, track: int, first: Sight, start: datetime, rules: VisitRules) -> None:
        self.track = track
        self.first_s = first.seconds
        self.first_box = first.box
        self.last = first
        self.start, self.end = start, start
        self.unseen_s = 0.0
        self.evidence = Evidence()
        self.attention = Attention(rules.attention)
        self.is_undecided = False
        self._rules = rules
        self._lines = [LinePassage(line) for line in rules.lines]
        self._zones = [ZoneTime(zone) for zone in rules.zones]
        self._crossings: list[LineCrossing] = []
        self._seconds = 0.0
        self._is_away = True
        self.recent: deque[Step] = deque(maxlen=_STEPS)
        self.opening: list[Step] = []
        self.sights: list[tuple[Sight, datetime]] = []

    def see(self, sight: Sight, at: datetime) -> None:
        """Take one sight.

        Args:
            sight: Not before the last one.
            at: Its time by our clock.
        """
        if self.is_undecided:
            self.sights.append((sight, at))
        if not self._is_away:
            self._seconds += sight.seconds - self.last.seconds
        else:
            self.recent.clear()
        self._is_away, self.last, self.end = False, sight, max(at, self.end)
        self.unseen_s = 0.0
        step = Step(sight.seconds, *middle_of(sight.box))
        self.recent.append(step)
        if len(self.opening) < _STEPS:
            self.opening.append(step)
        for line in self._lines:
            passage = line.see(sight.box, sight.seconds)
            if passage is not None:
                when = at - timedelta(seconds=sight.seconds - passage.seconds)
                self._crossings.append(LineCrossing(line.line.name, passage.direction, when))
        for zone in self._zones:
            zone.see(sight.box, sight.seconds)
        if sight.quality is not None:
            self.attention.see(sight.seconds, sight.quality.yaw, sight.quality.pitch)

    def leave(self) -> None:
        """Out of view: no time counts until seen again; crossings go on from where it was."""
        self._is_away = True
        self.attention.pause()
        for zone in self._zones:
            zone.pause()

    def absorb(self, newcomer: Guest) -> None:
        """Go on as this newcomer, who is the same person."""
        self.leave()
        for sight, at in newcomer.sights:
            self.see(sight, at)
        self.evidence.absorb(newcomer.evidence)

    @property
    def seconds(self) -> float:
        """How long in view so far; the time away is left out."""
        return self._seconds

    @property
    def zones(self) -> tuple[str, ...]:
        """Names of the zones they are in."""
        return tuple(zone.zone.name for zone in self._zones if zone.inside)

    @property
    def is_staff(self) -> bool:
        """In view for long, or for half of their time, or a minute, in a zone of the staff."""
        rules = self._rules
        if rules.staff_after_s is not None and self._seconds > rules.staff_after_s:
            return True
        inside = [zone.seconds for zone in self._zones if zone.zone.name in rules.staff_zones]
        longest = max(inside, default=0.0)
        return longest >= _STAFF_ZONE_S or 0 < _STAFF_SHARE * self._seconds <= longest

    def visit(self, site: str, camera: str, epoch: str, model: str) -> Visit:
        """The visit as it stands."""
        first_pts = round(self.first_s * 1e6)
        key = "|".join((site, camera, epoch, str(self.track), str(first_pts)))
        votes = self.evidence.votes
        age, gender = self.evidence.age, self.evidence.gender
        return Visit(
            id=new_identifier(self.start, key=key),
            site=site,
            camera=camera,
            epoch=epoch,
            track=self.track,
            first_pts=first_pts,
            start=self.start,
            end=self.end,
            seconds=self._seconds,
            attentive_seconds=min(self.attention.seconds, self._seconds),
            age=None if age is None else visit_ages(age),
            female=None if gender is None else round(gender.female_probability, 6),
            gender=None if gender is None else gender.label,
            frames=len(votes),
            quality=round(float(np.mean([v.usability for v in votes])), 4) if votes else 0.0,
            model=model,
            abstained=age is None,
            staff=self.is_staff,
            stays=tuple(
                ZoneStay(zone.zone.name, min(zone.seconds, self._seconds))
                for zone in self._zones
                if zone.is_stay
            ),
            crossings=tuple(sorted(self._crossings, key=lambda crossing: crossing.at)),
        )


def staff_zones(zones: Sequence[Zone], named: Sequence[str]) -> frozenset[str]:
    """Names of the zones where only staff stay: those drawn so, and those named."""
    return frozenset(named) | {zone.name for zone in zones if zone.staff}


__all__ = ["Guest", "Sight", "Step", "VisitRules", "staff_zones"]
