"""
How often one may ask: at most so many pictures and other requests in any minute, for each key, and
so many requests for each address.

A moving window, kept in this process: it admits the limit and not twice the limit around a turn of
the minute, on a clock that nobody sets.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agelens.settings import ServerSettings

WINDOW_S: Final = 60.0
_MOST_TABLES: Final = 100_000
"""Keys or addresses remembered at a time; beyond it those go first that asked the longest ago."""


@dataclass(frozen=True)
class Verdict:
    """What a limit says of one request.

    Attributes:
        name: The limit: "key" or "address".
        admitted: Whether the request is within it.
        limit: Requests, or pictures, in any window.
        remaining: Further requests that would be admitted now.
        reset_s: Until one more is admitted, when there is none left; else until all are.
        window_s: Length of the window.
    """

    name: str
    admitted: bool
    limit: int
    remaining: int
    reset_s: float
    window_s: float

    @property
    def headers(self) -> dict[str, str]:
        """``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-10)."""
        found = {
            "ratelimit-policy": f'"{self.name}";q={self.limit};w={math.ceil(self.window_s)}',
            "ratelimit": f'"{self.name}";r={self.remaining};t={math.ceil(self.reset_s)}',
        }
        if not self.admitted:
            found["retry-after"] = str(max(1, math.ceil(self.reset_s)))
        return found


class MovingWindow:
    """At most ``limit`` hits of one name in any ``window_s`` seconds. For one thread.

    What weighs more than one is admitted while there is room for one, and may overdraw; what comes
    after it waits the longer.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        window_s: float = WINDOW_S,
        *,
        clock: Callable[[], float] = time.monotonic,
        most: int = _MOST_TABLES,
    ) -> None:
        self.name = name
        self.limit = limit
        self.window_s = window_s
        self._clock = clock
        self._most = most
        self._hits: OrderedDict[str, deque[float]] = OrderedDict()

    def hit(self, who: str) -> Verdict:
        """Count a request if it is within the limit; a refused one does not count."""
        return self._count(who, 1, self.limit - 1)

    def add(self, who: str, weight: int) -> Verdict:
        """Count more of a request that was admitted; refused where others have overdrawn."""
        return self._count(who, weight, self.limit)

    def _count(self, who: str, weight: int, most_before: int) -> Verdict:
        now = self._clock()
        hits = self._hits.setdefault(who, deque())
        self._hits.move_to_end(who)
        while hits and hits[0] <= now - self.window_s:
            hits.popleft()
        admitted = len(hits) <= most_before
        if admitted:
            hits.extend([now] * weight)
        self._forget(now)
        remaining = max(0, self.limit - len(hits))
        turning = hits[-1] if remaining else hits[len(hits) - self.limit]
        reset_s = turning + self.window_s - now
        return Verdict(self.name, admitted, self.limit, remaining, reset_s, self.window_s)

    def _forget(self, now: float) -> None:
        # Two a hit at most: the table shrinks as fast as it can grow, and no hit pays for all.
        for _ in range(2):
            who, hits = next(iter(self._hits.items()))
            if hits[-1] > now - self.window_s and len(self._hits) <= self._most:
                return
            del self._hits[who]
            if not self._hits:
                return

    def __len__(self) -> int:
        return len(self._hits)


class Rates:
    """The limits of one server: for each key, and for each address before its key is looked at."""

    def __init__(
        self, settings: ServerSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys = MovingWindow("key", settings.rate_per_minute, clock=clock)
        self._addresses = MovingWindow("address", settings.rate_per_address, clock=clock)

    def of_address(self, address: str) -> Verdict:
        """Count a request from an address."""
        return self._addresses.hit(network_of(address))

    def of_caller(self, caller_id: str) -> Verdict:
        """Count a request of a key, or of a bearer of tokens."""
        return self._keys.hit(caller_id)

    def of_pictures(self, caller_id: str, count: int) -> Verdict:
        """Count further pictures of a request of theirs."""
        return self._keys.add(caller_id, count)


def network_of(address: str) -> str:
    """What an address is counted as: itself, or its /64, which is what one IPv6 customer gets.

    >>> network_of("203.0.113.9"), network_of("2001:db8:1:2:3::4"), network_of("::ffff:203.0.113.9")
    ('203.0.113.9', '2001:db8:1:2::/64', '203.0.113.9')
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((found, 64), strict=False))


__all__ = ["WINDOW_S", "MovingWindow", "Rates", "Verdict", "network_of"]
