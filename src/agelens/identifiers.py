"""
What names a record: the moment it was made, and an identifier that sorts by it.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from datetime import UTC, datetime
from typing import Final

_RANDOM_BITS: Final = 74


def utc_now() -> datetime:
    """The time by this computer's clock, in UTC."""
    return datetime.now(UTC)


def new_identifier(moment: datetime, *, key: str | None = None) -> str:
    """A UUID of version 7 (RFC 9562): the time in milliseconds, then 74 bits.

    Args:
        moment: With a time zone.
        key: The bits are those of its SHA-256, so that the same record made twice has one
            identifier; None draws them at random.

    >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> new_identifier(noon, key="door 1") == new_identifier(noon, key="door 1")
    True
    """
    if key is None:
        bits = secrets.randbits(_RANDOM_BITS)
    else:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        bits = int.from_bytes(digest, "big") >> (256 - _RANDOM_BITS)
    milliseconds = int(moment.timestamp() * 1000) & ((1 << 48) - 1)
    high, low = bits >> 62, bits & ((1 << 62) - 1)
    value = (milliseconds << 80) | (7 << 76) | (high << 64) | (2 << 62) | low
    return str(uuid.UUID(int=value))


__all__ = ["new_identifier", "utc_now"]
