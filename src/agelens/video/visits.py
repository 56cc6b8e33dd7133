"""
From tracks to visits: a person is counted once, also when hidden or out of view for a moment.

    VisitBook    one camera's guests: update, rejoin, finished
    ├── guests.Guest          someone in view, or lost a moment ago
    │   └── evidence.Evidence what the best frames say
    └── returns.return_odds   whether a newcomer is someone who was lost
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from agelens.video.guests import Guest, Sight, VisitRules
from agelens.video.returns import ARRIVALS_S, Arrival, came_at_edge, return_odds
from agelens.video.visit import Visit
from agelens.video.zones import middle_of

_DECIDE_S: Final = 2.0
"""Longest time to wait for estimates before a newcomer is decided on."""
_DECIDE_VOTES: Final = 4
"""Estimates with which it is decided at once."""
_SURE_ODDS: Final = 2.0
"""Odds from which a newcomer is taken for one who was lost: two people taken for one lose a visitor
and mix two faces, one taken for two is one too many. In the scenes of ``benchmarks/scenes.py`` the
thirty who come back have 2.3 to 31, and of some hundred neighbours in time five have over 1."""


class VisitBook:
    """The guests of one camera; not for several threads at a time.

    What it says depends on nothing but what it was given.
    """

    def __init__(
        self, rules: VisitRules, *, site: str, camera: str, epoch: str, model: str
    ) -> None:
        """Begin with nobody.

        Args:
            rules: How visits are made.
            site: Of the visits.
            camera: Of the visits.
            epoch: Of the visits; see ``Visit``.
            model: "name@version" of what estimates.
        """
        self._rules = rules
        self._names = (site, camera, epoch, model)
        self._in_view: dict[int, Guest] = {}
        self._away: list[Guest] = []
        self._arrivals: deque[Arrival] = deque()

    @property
    def is_empty(self) -> bool:
        """No visit is open."""
        return not self._in_view and not self._away

    def guest(self, track: int) -> Guest | None:
        """Who has this track; None for one that is not confirmed or has ended."""
        return self._in_view.get(track)

    def in_view(self) -> tuple[Guest, ...]:
        """Those whom the tracker follows, by track."""
        return tuple(sorted(self._in_view.values(), key=lambda guest: guest.track))

    def update(
        self,
        seconds: float,
        at: datetime,
        *,
        seen: Mapping[int, Sight],
        begun: Mapping[int, Sequence[Sight]],
        ended: Sequence[int],
    ) -> None:
        """Take what the tracker says of one frame.

        Args:
            seconds: Of the frame, by the stream's clock.
            at: By ours.
            seen: The sight of each confirmed track that is in the frame.
            begun: For the tracks that were confirmed now, their sights before this one.
            ended: Tracks that have ended.
        """
        for track in ended:
            guest = self._in_view.pop(track, None)
            if guest is not None:
                guest.leave()
                self._away.append(guest)
        for track, sights in begun.items():
            self._in_view[track] = self._newcomer(track, [*sights, seen[track]], seconds, at)
        for track, sight in seen.items():
            if track not in begun:
                self._in_view[track].see(sight, at)

    def pause(self, seconds: float) -> None:
        """Nobody was looking for this time before the next frame: the camera gave no pictures."""
        for guest in self._everyone():
            guest.unseen_s += seconds

    def rejoin(self, seconds: float, aspect: float) -> tuple[int, ...]:
        """Decide which newcomers are guests who were lost.

        Args:
            seconds: Of the frame, by the stream's clock.
            aspect: Width of the picture over its height.

        Returns:
            Tracks whose guests go on with another: nothing may be said of them any more.
        """
        undecided = [one for one in self._everyone() if one.is_undecided]
        left = []
        for newcomer in sorted(undecided, key=lambda one: (one.first_s, one.track)):
            if _is_ready(newcomer, seconds):
                left += self._decide(newcomer, aspect)
        return tuple(left)

    def finished(self, seconds: float) -> tuple[Visit, ...]:
        """Visits of those who can't come back any more, by start; they are forgotten.

        Args:
            seconds: Now, by the stream's clock.
        """
        undecided = [one.first_s for one in self._everyone() if one.is_undecided]
        until = min([seconds, *undecided]) - self._rules.rejoin_s
        gone = [one for one in self._away if not one.is_undecided and one.last.seconds < until]
        self._away = [one for one in self._away if one not in gone]
        return self._visits(gone)

    def finish(self, seconds: float, aspect: float) -> tuple[Visit, ...]:
        """All visits, by start: nobody is seen any more."""
        for guest in self._in_view.values():
            guest.leave()
        self._away += self._in_view.values()
        self._in_view = {}
        self.rejoin(math.inf, aspect)
        gone, self._away = self._away, []
        return self._visits(gone)

    def state(self) -> list[list[float | bool]]:
        """What goes on while nobody is there: the arrivals."""
        return [list(one) for one in self._arrivals]

    def restore(self, state: Sequence[Sequence[float | bool]]) -> None:
        """Go on from what ``state`` gave."""
        self._arrivals = deque(
            Arrival(int(track), float(seconds), float(x), float(y), bool(at_edge))
            for track, seconds, x, y, at_edge in state
        )

    def _everyone(self) -> list[Guest]:
        return [*self._away, *self._in_view.values()]

    def _newcomer(self, track: int, sights: Sequence[Sight], seconds: float, at: datetime) -> Guest:
        def ours(sight: Sight) -> datetime:
            return at - timedelta(microseconds=round((seconds - sight.seconds) * 1e6))

        guest = Guest(track, sights[0], ours(sights[0]), self._rules)
        guest.is_undecided = True
        for sight in sights:
            guest.see(sight, ours(sight))
        return guest

    def _decide(self, newcomer: Guest, aspect: float) -> list[int]:
        """Let a newcomer go on as the likeliest guest, or arrive; tracks that are of no use now."""
        lost = [one for one in self._everyone() if not one.is_undecided]
        odds = [self._odds(guest, newcomer, aspect) for guest in lost]
        best = max(range(len(lost)), key=odds.__getitem__, default=None)
        if best is not None and odds[best] >= _SURE_ODDS:
            return self._join(lost[best], newcomer)
        self._settle(newcomer, aspect)
        return []

    def _odds(self, guest: Guest, newcomer: Guest, aspect: float) -> float:
        away_s = newcomer.first_s - guest.last.seconds
        if not 0 < away_s <= self._rules.rejoin_s:
            return 0.0
        return return_odds(guest, newcomer, self._arrivals, aspect)

    def _join(self, guest: Guest, newcomer: Guest) -> list[int]:
        """One goes on as the other."""
        guest.absorb(newcomer)
        newcomer.is_undecided = False
        old = [track for track, one in self._in_view.items() if one is guest]
        for track in old:
            del self._in_view[track]
        self._away = [one for one in self._away if one is not newcomer]
        for track, one in self._in_view.items():
            if one is newcomer:
                self._in_view[track] = guest
                self._away = [one for one in self._away if one is not guest]
                return old
        if guest not in self._away:
            self._away.append(guest)
        guest.leave()
        return old

    def _settle(self, newcomer: Guest, aspect: float) -> None:
        """A newcomer who is nobody who was lost has arrived."""
        newcomer.is_undecided, newcomer.sights = False, []
        place, at_edge = middle_of(newcomer.first_box), came_at_edge(newcomer, aspect)
        self._arrivals.append(Arrival(newcomer.track, newcomer.first_s, *place, at_edge))
        while self._arrivals[0].seconds < newcomer.first_s - ARRIVALS_S:
            self._arrivals.popleft()

    def _visits(self, guests: Sequence[Guest]) -> tuple[Visit, ...]:
        ordered = sorted(guests, key=lambda one: (one.first_s, one.track))
        return tuple(guest.visit(*self._names) for guest in ordered)


def _is_ready(newcomer: Guest, seconds: float) -> bool:
    """Whether enough is known of a newcomer, or ever will be."""
    enough = len(newcomer.evidence.votes) >= _DECIDE_VOTES
    return enough or seconds - newcomer.first_s >= _DECIDE_S


__all__ = ["VisitBook"]
