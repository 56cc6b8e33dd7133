"""
Whether a face is turned to the screen, and for how long: from its head pose, with hysteresis.

The pose comes from five landmarks and is good to some ten degrees (``quality.head_pose``). It is
smoothed over ``smooth_s``, and a face that is attentive stays so until it has turned ``release``
further than a face may that becomes it: one at the edge is not counted on and off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from agelens.errors import ArgumentError


@dataclass(frozen=True)
class AttentionRules:
    """When a face counts as turned to the screen.

    Attributes:
        yaw: Most degrees to either side of ``screen_yaw`` of a face that becomes attentive.
        pitch: Most degrees up or down from ``screen_pitch``, likewise.
        release: Degrees further out after which it no longer is.
        screen_yaw: Yaw of a face that looks at the middle of the screen, as the camera sees it:
            over 0 where the screen is to the right of the camera in the picture.
        screen_pitch: Pitch of such a face: under 0 where the screen is below the camera.
        least_s: Seconds that it must last to be counted.
        smooth_s: Seconds over which a pose is averaged.
        hold_s: Longest time between two sights of a face that may count.
    """

    yaw: float = 25.0
    pitch: float = 25.0
    release: float = 8.0
    screen_yaw: float = 0.0
    screen_pitch: float = 0.0
    least_s: float = 0.5
    smooth_s: float = 0.3
    hold_s: float = 1.0

    def __post_init__(self) -> None:
        degrees = ("yaw", "pitch", "release", "screen_yaw", "screen_pitch")
        for name in (*degrees, "least_s", "smooth_s", "hold_s"):
            value = getattr(self, name)
            low, high = (-90 if name.startswith("screen") else 0), (90 if name in degrees else 60)
            if isinstance(value, bool) or not math.isfinite(value) or not low <= value <= high:
                raise ArgumentError(
                    f"attention: {name} must be within {low}..{high}, got {value!r}"
                )


class Attention:
    """How long one face was turned to the screen.

    Attributes:
        rules: When it counts as that.
        now: Whether it was when last seen.
    """

    def __init__(self, rules: AttentionRules) -> None:
        self.rules = rules
        self.now = False
        self._counted_s = 0.0
        self._spell_s = 0.0
        self._seen_s = -math.inf
        self._pose: tuple[float, float] | None = None

    @property
    def seconds(self) -> float:
        """How long it was in all, spells under ``least_s`` left out."""
        counts = self._spell_s >= self.rules.least_s
        return self._counted_s + (self._spell_s if counts else 0.0)

    def see(self, seconds: float, yaw: float | None, pitch: float | None) -> None:
        """Take one sight of the face.

        The time since the sight before counts when the face was attentive then.

        Args:
            seconds: When, by the stream's clock; never falling.
            yaw: Degrees to the right of the picture; None where no pose is known, which is not
                attentive.
            pitch: Degrees up; None likewise.
        """
        passed = seconds - self._seen_s
        if passed > self.rules.hold_s:
            self._end_spell()
        elif self.now:
            self._spell_s += passed
        self._seen_s = seconds
        self._pose = None if yaw is None or pitch is None else self._smoothed((yaw, pitch), passed)
        self.now = self._pose is not None and self._is_to_screen(self._pose)
        if not self.now:
            self._end_spell()

    def pause(self) -> None:
        """The face is out of view: no time counts until it is seen again."""
        self._end_spell()
        self._pose, self._seen_s = None, -math.inf

    def _end_spell(self) -> None:
        self._counted_s, self._spell_s, self.now = self.seconds, 0.0, False

    def _smoothed(self, pose: tuple[float, float], passed: float) -> tuple[float, float]:
        if self._pose is None or self.rules.smooth_s == 0:
            return pose
        kept = math.exp(-passed / self.rules.smooth_s)
        old_yaw, old_pitch = self._pose
        return kept * old_yaw + (1 - kept) * pose[0], kept * old_pitch + (1 - kept) * pose[1]

    def _is_to_screen(self, pose: tuple[float, float]) -> bool:
        rules = self.rules
        slack = rules.release if self.now else 0.0
        off_yaw, off_pitch = abs(pose[0] - rules.screen_yaw), abs(pose[1] - rules.screen_pitch)
        return off_yaw <= rules.yaw + slack and off_pitch <= rules.pitch + slack


__all__ = ["Attention", "AttentionRules"]
