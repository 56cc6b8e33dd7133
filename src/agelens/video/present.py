"""
The present: moments in from any thread, the state of the audience out to whoever listens.

    LiveAudience.add(moment)  ->  AudienceEvent(state, what is on the screen)  ->  every listener

One thread makes all events, so that rules see one sequence of states however many cameras there
are. Moments that come faster than events may be told are passed over: the newest wins.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from agelens.identifiers import utc_now
from agelens.video.audience import Audience, AudiencePlan, AudienceState
from agelens.video.rules import Playlist, RuleBook, Showing

if TYPE_CHECKING:
    from agelens.video.camera import Moment

_LEAST_S: Final = 0.1
"""Between two events."""
_LOOK_S: Final = 0.25
"""After which the state is looked at without a moment: cameras fall silent, rules run out."""
_REPEAT_S: Final = 5.0
"""After which the state is told though nothing changed, so that silence means trouble."""


@dataclass(frozen=True)
class AudienceEvent:
    """What is true now.

    Attributes:
        id: Run and number, "a1b2c3d4-17"; a later event of a run has a higher number.
        site: Name of the place.
        state: Who is there.
        showing: What is on the screen; None without rules.
    """

    id: str
    site: str
    state: AudienceState
    showing: Showing | None

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "id": self.id,
            "site": self.site,
            **self.state.to_dict(),
            "showing": None if self.showing is None else self.showing.to_dict(),
        }

    def says_the_same(self, other: AudienceEvent) -> bool:
        """Whether nothing but the time has changed."""
        passing = ("id", "at", "age_s")
        ours, theirs = self.to_dict(), other.to_dict()
        return all(ours[name] == theirs[name] for name in ours if name not in passing)


class LiveAudience:
    """Keeps the present of one site; a context manager, thread-safe.

    Attributes:
        site: Name of the place.
        plan: What counts.
        book: The rules, or None.
    """

    def __init__(
        self,
        plan: AudiencePlan,
        *,
        site: str,
        book: RuleBook | None = None,
        zone: tzinfo = UTC,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Begin with nothing known.

        Args:
            plan: What counts.
            site: Name of the place.
            book: The rules; None takes those that the plan names, if any.
            zone: Of the site, for times of day.
            clock: The time, in UTC.

        Raises:
            ArgumentError: The rules that the plan names cannot be used.
        """
        self.site = site
        self.plan = plan
        self.book = RuleBook.load(plan.rules) if book is None and plan.rules else book
        self._clock = clock
        self._audience = Audience(plan, () if self.book is None else self.book.group_rules())
        self._playlist = None if self.book is None else Playlist(self.book, zone=zone)
        self._run = secrets.token_hex(4)
        self._number = 0
        self._changed = threading.Condition()
        self._fresh = self._closing = False
        self._listeners: list[Callable[[AudienceEvent], None]] = []
        self._newest = self._event()
        self._thread = threading.Thread(target=self._tell, name="audience", daemon=True)

    def add(self, moment: Moment) -> None:
        """Take what a camera sees; from any thread, never waits long."""
        with self._changed:
            if self._audience.add(moment, arrived=self._clock()):
                self._fresh = True
                self._changed.notify_all()

    def newest(self) -> AudienceEvent:
        """What was told last."""
        with self._changed:
            return self._newest

    def listen(self, listener: Callable[[AudienceEvent], None]) -> Callable[[], None]:
        """Be told of every event from now on, in the thread that makes them; must not wait.

        Returns:
            Ends the listening.
        """
        with self._changed:
            self._listeners.append(listener)

        def end() -> None:
            with self._changed:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return end

    def open(self) -> None:
        """Begin to make events."""
        self._thread.start()

    def close(self) -> None:
        """Make no more events."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- making events ----------------------------------------------------------------------------

    def _tell(self) -> None:
        told_s = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fresh or self._closing, _LOOK_S)
                # What comes meanwhile is part of the same event.
                pause_s = told_s + _LEAST_S - time.monotonic()
                if pause_s > 0:
                    self._changed.wait_for(lambda: self._closing, pause_s)
                if self._closing:
                    return
                self._fresh = False
                event = self._event()
                is_due = time.monotonic() - told_s >= _REPEAT_S
                if event.says_the_same(self._newest) and not is_due:
                    continue
                self._number += 1
                self._newest = event
                told_s = time.monotonic()
                listeners = tuple(self._listeners)
            for listener in listeners:
                listener(event)

    def _event(self) -> AudienceEvent:
        now = self._clock()
        state = self._audience.state(now)
        showing = None if self._playlist is None else self._playlist.choose(state, now)
        return AudienceEvent(f"{self._run}-{self._number + 1}", self.site, state, showing)


__all__ = ["AudienceEvent", "LiveAudience"]
