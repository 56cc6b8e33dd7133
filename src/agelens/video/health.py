"""
How well a camera sees: the sums of one of its minutes, which drift is told from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from agelens.errors import ArgumentError
from agelens.video.visit import whole_milliseconds

_COUNTS: Final = ("frames_in", "dropped", "detections", "faces", "usable", "reconnects")
_SUMS: Final = ("quality_sum", "age_sum", "down_s")


@dataclass(frozen=True)
class HealthSample:
    """Sums over one minute of one camera; the store gives sums over longer times in it too.

    Attributes:
        site: Name of the place.
        camera: Name of the camera, one of its kind at the site.
        minute: Any moment of the (first) minute, with a time zone; kept as its beginning in UTC.
        frames_in: Frames that arrived, dropped ones too.
        dropped: Frames that were left out because there was no time for them.
        detections: Frames that faces were looked for in.
        faces: Faces found, in all frames together.
        usable: Faces among them that allowed an estimate.
        quality_sum: Sum of the usability (0..1) of the faces found.
        age_sum: Sum of the mean ages (years) of the usable faces.
        reconnects: How often the source was opened anew.
        down_s: Seconds in which the source gave nothing.
        epoch: Which run of the source it belongs to, as in ``Visit``: samples of one minute with
            the same epoch are one measurement, of which the store keeps the longest; those of
            different epochs add up.
    """

    site: str
    camera: str
    minute: datetime
    frames_in: int = 0
    dropped: int = 0
    detections: int = 0
    faces: int = 0
    usable: int = 0
    quality_sum: float = 0.0
    age_sum: float = 0.0
    reconnects: int = 0
    down_s: float = 0.0
    epoch: str = ""

    def __post_init__(self) -> None:
        for complaint in _complaints(self):
            raise ArgumentError(f"health of {self.camera!r} at {self.minute}: {complaint}")
        start = whole_milliseconds(self.minute).replace(second=0, microsecond=0)
        object.__setattr__(self, "minute", start)

    def __add__(self, other: HealthSample) -> HealthSample:
        """Both together, under the site, camera, minute and epoch of the first."""
        names = (*_COUNTS, *_SUMS)
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def usable_share(self) -> float:
        """Share of the faces that allowed an estimate; NaN without faces."""
        return self.usable / self.faces if self.faces else math.nan

    @property
    def quality(self) -> float:
        """Mean usability of the faces, 0..1; NaN without faces."""
        return self.quality_sum / self.faces if self.faces else math.nan

    @property
    def age(self) -> float:
        """Mean age of the usable faces in years; NaN without."""
        return self.age_sum / self.usable if self.usable else math.nan

    @property
    def faces_a_frame(self) -> float:
        """Faces found in a frame that was looked at; NaN when none was."""
        return self.faces / self.detections if self.detections else math.nan


def _complaints(sample: HealthSample) -> Iterator[str]:
    for name in ("site", "camera"):
        value = getattr(sample, name)
        if not value or not value.isprintable():
            yield f"the {name} needs a printable name, got {value!r}"
    if sample.minute.tzinfo is None:
        yield "the minute must have a time zone"
    for name in (*_COUNTS, *_SUMS):
        value = getattr(sample, name)
        if not (math.isfinite(value) and value >= 0):
            yield f"{name} must be finite and 0 or more, got {value}"
    if sample.usable > sample.faces:
        yield f"{sample.usable} faces of {sample.faces} cannot be usable"
