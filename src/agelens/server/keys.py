"""
API keys: a file with the SHA-256 of each, its scopes and dates; and the ring that a server asks.

A key is ``al_ID_SECRET``. The secret is 256 random bits, so that one plain SHA-256 of the whole
text is as good a lock as a slow hash would be; the text itself is shown once and kept nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Generic, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from agelens.errors import ArgumentError
from agelens.identifiers import utc_now
from agelens.toml import checked_table, parsed_toml, toml_text

SCHEMA: Final = "agelens.api-keys/1"
PREFIX: Final = "al_"
"""What every key begins with, so that a token of another kind is told apart."""

_KEY: Final = re.compile(r"al_([a-z2-7]{8})_[A-Za-z0-9_-]{43}")
_ID_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_LARGEST_FILE: Final = 4 * 1024 * 1024
_QUICK_S: Final = 0.01
_NO_KEY: Final = hashlib.sha256(b"no key has this text").hexdigest()

Clock = Callable[[], datetime]
Content = TypeVar("Content")


class Scope(StrEnum):
    """What a key may be used for."""

    ANALYZE = "analyze"
    GATE = "gate"
    AUDIENCE = "audience"
    VISITORS = "visitors"
    ADMIN = "admin"


class ApiKey(BaseModel):
    """One key as the file holds it.

    Attributes:
        id: The eight letters that the key's text names it by.
        name: Who or what it was made for.
        sha256: Of the key's text, in hex.
        scopes: What it may be used for.
        created: When it was made.
        expires: From when on it no longer counts, or None.
        revoked: When it was revoked, or None.
        replaces: The id of the key that it was made to follow, or None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[a-z2-7]{8}$")]
    name: Annotated[str, Field(min_length=1, max_length=100)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    replaces: str | None = None

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """Whether it counts."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and now >= self.expires:
            return "expired"
        return "active"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal["agelens.api-keys/1"] = Field(alias="schema")
    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _each_id_once(self) -> _Document:
        ids = [key.id for key in self.keys]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"key {twice[0]} is listed twice")
        return self


@dataclass(frozen=True)
class NewKey:
    """A key that was just made.

    Attributes:
        key: What the file holds of it.
        text: The key itself; this is the only place that it stands in.
    """

    key: ApiKey
    text: str = field(repr=False)


# --- the file -------------------------------------------------------------------------------------


class KeyFile:
    """The TOML file of keys; each change is whole or not made at all.

    Attributes:
        path: The file; ``add`` makes it.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        self.path = Path(path)
        self._now = clock or utc_now

    def read(self) -> tuple[ApiKey, ...]:
        """The keys, those that no longer count included.

        Raises:
            ArgumentError: The file is not there, not to be read, open to others, or no key file.
        """
        return _read(self.path)

    def add(
        self, name: str, scopes: Sequence[Scope], *, lifetime: timedelta | None = None
    ) -> NewKey:
        """Make a key, and the file if there is none.

        Raises:
            ArgumentError: A key of that name is active, or the name or the scopes are empty.
        """
        now = self._now().replace(microsecond=0)
        if not 1 <= len(name) <= 100 or not name.isprintable():
            raise ArgumentError(f"key name {name!r}: expected 1 to 100 printable characters")
        if not scopes:
            raise ArgumentError(f"key {name}: expected one scope or more of {', '.join(Scope)}")
        if lifetime is not None and lifetime <= timedelta(0):
            raise ArgumentError(f"key {name}: expected a lifetime over 0")
        with _changing(self.path) as write:
            keys = self.read() if self.path.exists() else ()
            if any(key.name == name and key.state(now) == "active" for key in keys):
                raise ArgumentError(
                    f"{self.path}: there is an active key {name!r}; take another name, or "
                    f"`agelens keys rotate {name!r}`"
                )
            made = _make(keys, name, tuple(dict.fromkeys(scopes)), now, lifetime)
            write((*keys, made.key))
        return made

    def revoke(self, which: str) -> ApiKey:
        """End a key at once.

        Args:
            which: Its id, or the name of one active key.

        Raises:
            ArgumentError: There is no such key, or it is revoked already.
        """
        now = self._now().replace(microsecond=0)
        with _changing(self.path) as write:
            keys = self.read()
            found = self._named(keys, which, now)
            if found.revoked is not None:
                raise ArgumentError(f"{self.path}: key {found.id} is revoked already")
            ended = found.model_copy(update={"revoked": now})
            write(tuple(ended if key is found else key for key in keys))
        return ended

    def rotate(self, which: str, *, overlap: timedelta) -> NewKey:
        """Make a key like another, with a lifetime of its own; both count for a while.

        Args:
            which: The key's id, or the name of one active key.
            overlap: How long both count.

        Raises:
            ArgumentError: There is no such key, or it no longer counts.
        """
        now = self._now().replace(microsecond=0)
        if overlap < timedelta(0):
            raise ArgumentError(f"overlap {overlap}: expected 0 or more")
        with _changing(self.path) as write:
            keys = self.read()
            found = self._named(keys, which, now)
            if found.state(now) != "active":
                raise ArgumentError(
                    f"{self.path}: key {found.id} is {found.state(now)}; make a new one with "
                    "`agelens keys add`"
                )
            lifetime = None if found.expires is None else found.expires - found.created
            made = _make(keys, found.name, found.scopes, now, lifetime, found.id)
            last = min(now + overlap, found.expires or now + overlap)
            ending = found.model_copy(update={"expires": last})
            write((*(ending if key is found else key for key in keys), made.key))
        return made

    def _named(self, keys: tuple[ApiKey, ...], which: str, now: datetime) -> ApiKey:
        for key in keys:
            if key.id == which:
                return key
        found = [key for key in keys if key.name == which and key.state(now) == "active"]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(key.id for key in found)
            raise ArgumentError(f"{self.path}: {which!r} names the keys {ids}; give an id")
        raise ArgumentError(
            f"{self.path}: no key {which!r}, by id or by name of an active one; "
            "see `agelens keys list`"
        )


def _make(
    keys: tuple[ApiKey, ...],
    name: str,
    scopes: tuple[Scope, ...],
    now: datetime,
    lifetime: timedelta | None,
    replaces: str | None = None,
) -> NewKey:
    taken = {key.id for key in keys}
    while (number := "".join(secrets.choice(_ID_LETTERS) for _ in range(8))) in taken:
        pass
    text = f"{PREFIX}{number}_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        id=number,
        name=name,
        sha256=_digest(text),
        scopes=scopes,
        created=now,
        expires=None if lifetime is None else now + lifetime,
        replaces=replaces,
    )
    return NewKey(key, text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path) -> tuple[ApiKey, ...]:
    try:
        with open(path, "rb") as file:
            _check_mode(path, os.fstat(file.fileno()).st_mode)
            raw = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError as error:
        raise ArgumentError(
            f"{path}: no key file; make one with `agelens keys add NAME --file {path}`"
        ) from error
    except OSError as error:
        raise ArgumentError(f"{path}: the key file cannot be read ({error.strerror})") from error
    if len(raw) > _LARGEST_FILE:
        raise ArgumentError(f"{path}: over {_LARGEST_FILE} bytes; this is no key file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: not UTF-8 at byte {error.start}") from error
    try:
        return checked_table(_Document, parsed_toml(text, str(path)), str(path)).keys
    except ArgumentError as error:
        # The message repeats what was found, and ends in a log; a key may stand there by mistake.
        raise ArgumentError(_KEY.sub("al_...", str(error))) from None


def _check_mode(path: Path, mode: int) -> None:
    # A group may read: secrets that Kubernetes or systemd hand to a service are 0440.
    if os.name == "posix" and stat.S_IMODE(mode) & 0o027:
        raise ArgumentError(
            f"{path}: mode {stat.S_IMODE(mode):04o}: others can read or change the keys; "
            f"chmod 600 {path}"
        )


@contextmanager
def _changing(path: Path) -> Iterator[Callable[[tuple[ApiKey, ...]], None]]:
    """Keep a second change out, and give a function that puts the new keys in place.

    Raises:
        ArgumentError: Another process changes the file, or its folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.changing")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ArgumentError(
            f"{path}: another process changes it; delete {partial} if none does"
        ) from error
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be written ({error.strerror})") from error

    def write(keys: tuple[ApiKey, ...]) -> None:
        rows = [key.model_dump(mode="json", exclude_none=True) for key in keys]
        table = {"schema": SCHEMA, "keys": rows}
        file.write(toml_text(table).encode())
        file.flush()
        _keep_readers(path, file.fileno())
        os.fsync(file.fileno())
        os.replace(partial, path)

    with os.fdopen(handle, "wb") as file:
        try:
            yield write
        finally:
            partial.unlink(missing_ok=True)


def _keep_readers(path: Path, handle: int) -> None:
    """A service that reads the file as a member of its group still can when it is replaced."""
    if os.name != "posix" or not path.exists():
        return
    found = path.stat()
    if os.geteuid() == 0:
        os.fchown(handle, found.st_uid, found.st_gid)
    elif found.st_gid != os.fstat(handle).st_gid:
        os.fchown(handle, -1, found.st_gid)
    os.fchmod(handle, stat.S_IMODE(found.st_mode) & 0o640 | 0o600)


# --- the ring -------------------------------------------------------------------------------------


class WatchedFile(Generic[Content]):
    """What a file holds, read again when it changes.

    A file that turns unreadable changes nothing: what was good counts on, and it is tried again at
    each question, for it may have been the reading that failed and not the file.
    """

    def __init__(
        self, path: Path, read: Callable[[Path], Content], on_problem: Callable[[str], None]
    ) -> None:
        """Read the file.

        Args:
            path: The file.
            read: From the file to what it holds; an ``ArgumentError`` says why it cannot be taken.
            on_problem: Told why a changed file is not taken, once for each change.

        Raises:
            ArgumentError: It cannot be taken now.
        """
        self._path = path
        self._parse = read
        self._on_problem = on_problem
        self._taken = self._told = _signature(path)
        self._content = read(path)
        self._not_before = 0.0

    def content(self) -> Content:
        """What it holds now, or held when it last could be taken."""
        now = _signature(self._path)
        if now != self._taken and (now != self._told or time.monotonic() >= self._not_before):
            self._take(now)
        return self._content

    def _take(self, signature: tuple[int, ...]) -> None:
        start = time.monotonic()
        try:
            self._content = self._parse(self._path)
        except ArgumentError as error:
            took_s = time.monotonic() - start
            # A large broken file must not be parsed for each question that anybody asks.
            self._not_before = start + (10 * took_s if took_s > _QUICK_S else 0)
            if signature != self._told:
                self._on_problem(str(error))
        else:
            self._taken = signature
        self._told = signature


class KeyRing:
    """The keys that a server knows: the file is read again when it changes.

    A file that turns unreadable while the server runs changes nothing: the last good keys count, so
    that a slip of the pen locks nobody out and lets nobody in.

    Attributes:
        path: The file.
    """

    def __init__(
        self, path: str | os.PathLike[str], on_problem: Callable[[str], None] = lambda _: None
    ) -> None:
        """Read the file.

        Args:
            path: The file.
            on_problem: Told why a changed file is not taken, once for each change.

        Raises:
            ArgumentError: As ``KeyFile.read``.
        """
        self.path = Path(path)
        self._file = WatchedFile(self.path, _by_id, on_problem)

    def find(self, text: str) -> ApiKey | None:
        """The key with this text, whether it still counts or not; None when there is none."""
        keys = self._file.content()
        match = _KEY.fullmatch(text)
        key = keys.get(match[1]) if match else None
        # An unknown id costs the same comparison as a wrong secret.
        same = hmac.compare_digest(_digest(text), key.sha256 if key else _NO_KEY)
        return key if same else None


def _by_id(path: Path) -> dict[str, ApiKey]:
    return {key.id: key for key in _read(path)}


def _signature(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; empty while there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


__all__ = ["PREFIX", "SCHEMA", "ApiKey", "KeyFile", "KeyRing", "NewKey", "Scope", "WatchedFile"]
