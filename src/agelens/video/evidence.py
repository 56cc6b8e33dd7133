"""
What the frames say of one person: the best ones' estimates, and whether another is worth its time.

Age and gender are fused with the discount for what the frames of a person share (``fusion``). Only
distributions are kept, of a few frames, and they end with the visit.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from agelens.fusion import fuse, fuse_genders
from agelens.results import AgeDistribution, GenderEstimate, Quality

FRAMES_CORRELATION: Final = 0.8
"""Correlation of the errors of two frames of one person before one camera, of age and of gender:
0.80 by ``benchmarks/frames_correlation.py`` on 300 people of UTKFace's test part (agelens-s 1.1).
The fused 90 % interval then contains the age of 90 % of them; of 52 % with a plain product."""

_ENOUGH_FRAMES: Final = 5
"""Frames after which more of the same kind say nothing new: with the correlation above five are
worth 1.19 independent ones, and all there can ever be 1.25."""
_MOST_FRAMES: Final = 8
"""Best frames whose estimates are kept of a person."""
_WORTH_A_VOTE: Final = 0.6
"""Share of the usability of the best frame under which a frame has no vote."""
_APART_S: Final = 0.25
"""Seconds between two estimates of a person: the frames between are nearly the same picture."""
_REFRESH_S: Final = 5.0
"""Seconds after which one who is known well is looked at again, if the frame is a good one."""
_MUCH_BETTER: Final = 1.25
"""Ratio of usabilities from which a frame is worth its estimate at any time."""

_SHARP_AT: Final = 0.8
_LARGE_AT_PX: Final = 96.0


def usability(quality: Quality) -> float:
    """How much an estimate of this face is worth, 0 (nothing) to 1 (a good portrait).

    A product of size, sharpness, light and pose, each 1 where more of it no longer helps; 0 for a
    face that is not usable.
    """
    if not quality.usable:
        return 0.0
    turned = math.radians(max(abs(quality.yaw or 0.0), abs(quality.pitch or 0.0)))
    light = 1 - abs(2 * quality.exposure - 1) ** 4
    size = math.sqrt(min(1.0, quality.size_px / _LARGE_AT_PX))
    return size * math.sqrt(min(1.0, quality.sharpness / _SHARP_AT)) * light * math.cos(turned)


class Vote(NamedTuple):
    """What one frame says of a person."""

    usability: float
    seconds: float
    age: AgeDistribution
    gender: GenderEstimate | None


class Evidence:
    """The best frames' estimates of one person; distributions only, never pixels."""

    def __init__(self) -> None:
        self._votes: list[Vote] = []
        self._last_s = -math.inf
        self._fused: tuple[AgeDistribution | None, GenderEstimate | None] | None = None

    @property
    def votes(self) -> tuple[Vote, ...]:
        """Those that count: the best frames, and of others those that are not much worse."""
        if not self._votes:
            return ()
        least = _WORTH_A_VOTE * self._votes[0].usability
        return tuple(vote for vote in self._votes if vote.usability >= least)

    def worth(self, usable: float, seconds: float) -> float:
        """How much this person needs an estimate of this frame; 0 for not at all.

        Args:
            usable: ``usability`` of the face in it.
            seconds: Of the frame, by the stream's clock.
        """
        passed = seconds - self._last_s
        if usable <= 0 or passed < _APART_S:
            return 0.0
        if len(self._votes) < _ENOUGH_FRAMES:
            return 1.0 / (1 + len(self._votes))
        gain = usable / self._votes[_ENOUGH_FRAMES - 1].usability
        if gain >= _MUCH_BETTER or (gain >= 1 and passed >= _REFRESH_S):
            return gain / (10 * _ENOUGH_FRAMES)
        return 0.0

    def add(self, vote: Vote) -> None:
        """Take the estimate of one frame; beyond the best ``_MOST_FRAMES`` the worst one goes."""
        self._last_s, self._fused = max(self._last_s, vote.seconds), None
        if not vote.age.abstained:
            ranked = sorted([*self._votes, vote], key=lambda v: (-v.usability, v.seconds))
            self._votes = ranked[:_MOST_FRAMES]

    def absorb(self, other: Evidence) -> None:
        """Take what is known of the same person from elsewhere."""
        for vote in other._votes:
            self.add(vote)

    @property
    def age(self) -> AgeDistribution | None:
        """What the frames say together; None without one."""
        return self._together()[0]

    @property
    def gender(self) -> GenderEstimate | None:
        """Likewise; None too where it is switched off."""
        return self._together()[1]

    def _together(self) -> tuple[AgeDistribution | None, GenderEstimate | None]:
        if self._fused is None:
            votes = self.votes
            genders = [vote.gender for vote in votes if vote.gender is not None]
            age = fuse([vote.age for vote in votes], correlation=FRAMES_CORRELATION).age
            self._fused = (
                age if votes else None,
                fuse_genders(genders, correlation=FRAMES_CORRELATION),
            )
        return self._fused


__all__ = ["FRAMES_CORRELATION", "Evidence", "Vote", "usability"]
