"""
What a run of ``agelens watch`` saw: visitors, crossings, ages and genders, counted and corrected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from agelens.analytics.camera_run import CameraStatus
from agelens.analytics.confusion import LABELS, confusion_path, read_confusion
from agelens.analytics.records import Scope
from agelens.analytics.store import Store
from agelens.analytics.summary import Demographics, correct_shares
from agelens.bundle import Bundle
from agelens.errors import AgeLensError
from agelens.evaluation.evaluating import band_name
from agelens.video.visit import COUNTED_BANDS, Visit


@dataclass(frozen=True)
class CameraSummary:
    """What one camera saw.

    Attributes:
        camera: Its name.
        visitors: Staff left out.
        staff: Held for staff.
        crossings: By line and direction.
    """

    camera: str
    visitors: int
    staff: int
    crossings: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class RunSummary:
    """What a run saw; a file that is resumed, or was counted before, is told whole.

    Attributes:
        site: Name of the place.
        first: When the first visitor came, in UTC; None without visitors.
        last: When the last one left.
        cameras: Of the run, in the order of the plan.
        ages: Visitors by band of age ("13-17") as counted, the likeliest band of each.
        genders: Visitors by label as counted.
        unknown: Visitors whose age could not be estimated.
        demographics: Shares as counted and corrected for the model's error; None where the model's
            error is not known.
        note: Why the shares are not corrected; empty when they are.
    """

    site: str
    first: datetime | None
    last: datetime | None
    cameras: tuple[CameraSummary, ...]
    ages: tuple[tuple[str, int], ...]
    genders: tuple[tuple[str, int], ...]
    unknown: int
    demographics: Demographics | None
    note: str

    @property
    def visitors(self) -> int:
        """Of all cameras."""
        return sum(one.visitors for one in self.cameras)

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        shares = self.demographics
        return {
            "schema": "agelens.watch/1",
            "site": self.site,
            "first": None if self.first is None else self.first.isoformat(),
            "last": None if self.last is None else self.last.isoformat(),
            "visitors": self.visitors,
            "cameras": [
                {
                    "camera": one.camera,
                    "visitors": one.visitors,
                    "staff": one.staff,
                    "crossings": [
                        {"line": line, "direction": direction, "count": count}
                        for line, direction, count in one.crossings
                    ],
                }
                for one in self.cameras
            ],
            "ages": dict(self.ages),
            "genders": dict(self.genders),
            "unknown": self.unknown,
            "shares": None if shares is None else shares.to_dict(),
            "note": self.note,
        }


def summarise_run(
    store: Store, statuses: Sequence[CameraStatus], bundle: Bundle, *, since: datetime
) -> RunSummary:
    """Add up what the cameras of a run saw.

    Args:
        store: That the run wrote to.
        statuses: Of its cameras, when it was over.
        bundle: The model.
        since: When the run began: what streams saw before is another run's.
    """
    found = {one.camera: list(_visits_of(store, one, since)) for one in statuses}
    everyone = [visit for visits in found.values() for visit in visits]
    visitors = [visit for visit in everyone if not visit.staff]
    bands = Counter(visit.band for visit in visitors)
    labels = Counter(visit.gender for visit in visitors)
    demographics, note = _corrected(visitors, bundle)
    return RunSummary(
        site=statuses[0].site,
        first=min((visit.start for visit in visitors), default=None),
        last=max((visit.end for visit in visitors), default=None),
        cameras=tuple(_camera(name, visits) for name, visits in found.items()),
        ages=tuple((band_name(band), bands[row]) for row, band in enumerate(COUNTED_BANDS)),
        genders=tuple((label, labels[label]) for label in LABELS),
        unknown=bands[None],
        demographics=demographics,
        note=note,
    )


def _visits_of(store: Store, status: CameraStatus, since: datetime) -> Iterable[Visit]:
    scope = Scope(
        start=since if status.is_live else None,
        sites=(status.site,),
        cameras=(status.camera,),
        staff=True,
    )
    # A stream has as many epochs as it was opened; a file has one for ever.
    return (visit for visit in store.visits(scope) if status.is_live or visit.epoch == status.epoch)


def _camera(name: str, visits: Sequence[Visit]) -> CameraSummary:
    crossings = Counter(
        (one.line, one.direction) for visit in visits if not visit.staff for one in visit.crossings
    )
    staff = sum(visit.staff for visit in visits)
    rows = tuple((line, direction, n) for (line, direction), n in sorted(crossings.items()))
    return CameraSummary(name, len(visits) - staff, staff, rows)


def _corrected(visitors: Sequence[Visit], bundle: Bundle) -> tuple[Demographics | None, str]:
    said = np.zeros((len(COUNTED_BANDS), len(LABELS)), np.int64)
    unknown = 0
    for visit in visitors:
        if visit.band is None or visit.gender is None:
            unknown += 1
        else:
            said[visit.band, LABELS.index(visit.gender)] += 1
    if said.sum() == 0:
        return None, "nobody was seen whose age and gender could be estimated"
    try:
        confusion = read_confusion(confusion_path(bundle), bundle=bundle)
        return correct_shares(said, confusion, unknown=unknown), ""
    except AgeLensError as error:
        return None, f"shares are not corrected for the model's error: {error}"


__all__ = ["CameraSummary", "RunSummary", "summarise_run"]
