"""
Counts that leave the store, in lots: as multiples of the smallest number that may be shown.

Hiding small cells protects one table. A page with filters is many tables, and whoever subtracts
one from another finds what each of them hides. So nothing that is shown is a count of visitors. A
running total (of one camera, or of one group, zone or line of it) is begun at a point that only the
store knows, and what is shown is how many whole lots it went through. This is random rounding
(Fellegi 1975, as in the censuses of Canada and New Zealand), made once and for all: hours add up to
days, days to periods and cameras to sites, and asking again tells nothing new.

What is guaranteed, for visitors who are counted in one running total, whatever is added up or
subtracted: a stretch of it that is shown as 0 holds 0 to k - 1 of them, and one that is shown as n
holds n - k + 1 to n + k - 1; nothing narrower can be told, and nothing is off by more. Different
totals (hours, age groups, zones, lines) begin at unrelated points: compared with each other they
can narrow such a range, and do not add up exactly.

A running total lasts a month of the site's calendar. Of a month that retention has begun to delete
its whole weeks are one each, and its other days; so each visit is in three at most.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError

Count = int | None
"""Visitors, in lots; None where there are too few to be shown (which may be none)."""

Whole = NDArray[np.int64]

_WEEK: Final = 7


class Lots:
    """Turns running totals into lots. Holds no state; one instance serves all threads.

    Attributes:
        minimum: k, the size of a lot; 1 shows true counts.
    """

    def __init__(self, key: bytes, minimum: int) -> None:
        """Lots of one store.

        Args:
            key: Secret of the store.
            minimum: Fewest visitors that may be shown.

        Raises:
            ArgumentError: ``minimum`` is under 1.
        """
        if minimum < 1:
            raise ArgumentError(f"the smallest number shown must be 1 or more, got {minimum}")
        self._key = key
        self.minimum = minimum

    def phase(self, *names: str) -> int:
        """Where in a lot a running total begins, 0 to k - 1; unrelated for different names."""
        # With their lengths, so that no two lists of names read alike.
        text = "".join(f"{len(name)}:{name}" for name in (str(self.minimum), *names))
        digest = hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return int.from_bytes(digest[:8], "big") % self.minimum

    def between(self, before: int, after: int, *names: str) -> int:
        """Visitors between two points of a running total.

        Args:
            before: The total at the first point.
            after: The total at the second.
            names: Of the total.
        """
        phase = self.phase(*names)
        return self.minimum * ((after + phase) // self.minimum - (before + phase) // self.minimum)

    def steps(self, counts: Whole, *names: str) -> Whole:
        """(N,) what each step adds to a running total that begins with the first."""
        totals = self.phase(*names) + np.concatenate([[0], np.cumsum(counts)])
        return np.asarray(self.minimum * np.diff(totals // self.minimum))

    def shown(self, lots: int) -> Count:
        """A sum of lots as it may be shown."""
        return None if lots == 0 and self.minimum > 1 else int(lots)

    def surely(self, totals: int) -> int:
        """A sum of lots that at least k visitors stand behind, over so many running totals."""
        return self.minimum + totals * (self.minimum - 1)

    @property
    def variance(self) -> float:
        """Of the error of a stretch of one running total, in visitors squared."""
        return (self.minimum**2 - 1) / 6


@dataclass(frozen=True)
class Block:
    """Days that one running total lasts, and which of them are meant.

    Attributes:
        begins: Its first day.
        first: First day that is meant.
        last: Last day that is meant.
        name: Tells it from others.
    """

    begins: date
    first: date
    last: date
    name: str


def blocks(first: date, last: date, deleted_before: date | None = None) -> Iterator[Block]:
    """The running totals that days lie in, in order.

    Args:
        first: First day.
        last: Last day.
        deleted_before: First day that retention has left whole.
    """
    day = first
    while day <= last:
        begins, ends, name = _block_of(day, deleted_before)
        end = min(ends, last)
        yield Block(begins, day, end, name)
        day = end + timedelta(days=1)


def _block_of(day: date, deleted_before: date | None) -> tuple[date, date, str]:
    month = day.replace(day=1)
    after = (month + timedelta(days=31)).replace(day=1)
    if deleted_before is None or month >= deleted_before:
        return month, after - timedelta(days=1), f"{month:%Y-%m}"
    week = day - timedelta(days=day.weekday())
    sunday = week + timedelta(days=_WEEK - 1)
    if week >= max(month, deleted_before) and sunday < after:
        return week, sunday, f"{week:%G-W%V}"
    return day, day, day.isoformat()
