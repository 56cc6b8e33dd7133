"""
The record of a gate's decisions: lines that only grow, chained by SHA-256, under a signed head.

    FILE         JSON lines; each holds its number and the SHA-256 of the line before
    FILE.head    how many lines there are and the SHA-256 of the last one, signed (Ed25519)

The chain finds a changed, missing or moved line; the head finds a cut tail and a chain that was
written anew by someone without the key. Line and head are on disk (fsync) before ``append``
returns, so a decision that was answered is in the journal whatever happens afterwards. Whoever can
put back an older copy of both files can still hide what came after: keep copies of the head
elsewhere and give them to ``verify_journal`` as anchors.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from agelens import __version__
from agelens.errors import ArgumentError, JournalError, MissingExtra
from agelens.evaluation.signing import (
    KEY_VARIABLE,
    canonical_json,
    key_folder,
    public_key_text,
    read_public_key,
    sign,
    signing_key,
)
from agelens.identifiers import new_identifier, utc_now

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCHEMA: Final = "agelens.gate-journal/1"
HEAD_SCHEMA: Final = "agelens.gate-journal-head/1"
RECOVERED: Final = "recovered"
"""``event`` of the line that a journal writes when it was left by a crash."""

_START: Final = "0" * 64
_OWN_KEYS: Final = frozenset(("seq", "prev"))
_LARGEST_HEAD: Final = 65_536
_PIECE: Final = 1 << 16
_WAITS: Final = 20
_WAIT_S: Final = 0.05
"""How often and how long ``verify_journal`` waits for the head of a line that is being written."""


@dataclass(frozen=True)
class Receipt:
    """Where an entry stands.

    Attributes:
        seq: Number of its line, from 0; 0 is the journal's own first line.
        sha256: Of the line, with its line feed.
    """

    seq: int
    sha256: str


@dataclass(frozen=True)
class Recovery:
    """What a crash had left when the journal was opened.

    Attributes:
        unsigned: Whole lines after the signed head. They are kept: written, but not yet answered.
        torn_bytes: Bytes of a line that was being written. They are removed; their SHA-256 is in
            the line that records the recovery.
    """

    unsigned: int
    torn_bytes: int

    def __str__(self) -> str:
        lines = "1 line" if self.unsigned == 1 else f"{self.unsigned} lines"
        return (
            f"the gate was stopped while it wrote: {lines} after the signed head kept, "
            f"{self.torn_bytes} bytes of an unfinished line removed; no answer was given on these"
        )


@dataclass(frozen=True)
class _Head:
    journal: str
    count: int
    size: int
    last: str
    time: str
    key: str

    def document(self) -> dict[str, Any]:
        return {
            "schema": HEAD_SCHEMA,
            "journal": self.journal,
            "count": self.count,
            "bytes": self.size,
            "sha256": self.last,
            "time": self.time,
        }


def head_path(path: Path) -> Path:
    """The file that holds the signed head of a journal."""
    return path.with_name(f"{path.name}.head")


class Journal:
    """A journal that is open for writing; there is one writer at a time.

    Thread-safe. It is not for a forked child: open another one there, on another file.

    Attributes:
        path: The file.
        recovery: What a crash had left, or None.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: Ed25519PrivateKey | None = None,
        batch: int = 1,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Open a journal to go on with, or begin one.

        Only the end is checked, against the signed head; ``verify_journal`` reads it all.

        Args:
            path: The file; its folder is made when it is missing.
            key: Signs the head; None takes this installation's ``evaluation.signing.signing_key``.
            batch: Entries that one ``extend`` may write, so that no more can lie after the head.
            clock: Gives the time, with its zone.

        Raises:
            JournalError: It was changed or cut, its head is missing or signed by another key, or
                another gate writes to it.
            AuditError: The signing key cannot be used.
            MissingExtra: ``cryptography`` is not installed.
        """
        if batch < 1:
            raise ArgumentError(f"batch must be 1 or more, got {batch}")
        self.path = Path(path)
        self.recovery: Recovery | None = None
        self._key = signing_key() if key is None else key
        self._batch = batch
        self._clock = clock
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            self._file: int | None = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be opened: {error.strerror}") from error
        try:
            _lock(self._file, self.path)
            self._head = self._go_on(self._file)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another writer open the file; safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def count(self) -> int:
        """Lines so far, the journal's own first line among them."""
        return self._head.count

    def append(self, entry: Mapping[str, Any]) -> Receipt:
        """Write one entry; it is on disk and under the signed head when this returns.

        Args:
            entry: JSON values; ``seq`` and ``prev`` are the journal's own.

        Raises:
            ArgumentError: It is no JSON value, or has one of the journal's own keys.
            JournalError: It could not be written whole: no answer may be given on it.
        """
        (receipt,) = self.extend([entry])
        return receipt

    def extend(self, entries: Sequence[Mapping[str, Any]]) -> list[Receipt]:
        """Write several entries with one fsync; all are on disk when this returns.

        Raises:
            ArgumentError, JournalError: See ``append``, or there are more than ``batch``. Then
                none of them is written.
        """
        if len(entries) > self._batch:
            raise ArgumentError(
                f"{len(entries)} entries at once, and this journal takes {self._batch}; open it "
                "with a larger batch"
            )
        with self._mutex:
            file = self._writable()
            lines, receipts = self._chained(entries)
            if lines:
                self._write(file, b"".join(lines), receipts[-1])
            return receipts

    # --- writing ----------------------------------------------------------------------------------

    def _writable(self) -> int:
        if self._file is None:
            raise JournalError(f"{self.path}: the journal is closed")
        if os.getpid() != self._pid:
            raise JournalError(
                f"{self.path}: this process was forked from the one that writes the journal; open "
                "a journal of its own here"
            )
        return self._file

    def _chained(self, entries: Sequence[Mapping[str, Any]]) -> tuple[list[bytes], list[Receipt]]:
        lines, receipts = [], []
        seq, last = self._head.count, self._head.last
        for entry in entries:
            taken = _OWN_KEYS & set(entry)
            if taken:
                raise ArgumentError(f"an entry must not have the key {min(taken)!r}")
            line = canonical_json({"seq": seq, "prev": last, **entry}) + b"\n"
            last = hashlib.sha256(line).hexdigest()
            lines.append(line)
            receipts.append(Receipt(seq, last))
            seq += 1
        return lines, receipts

    def _write(self, file: int, content: bytes, last: Receipt) -> None:
        before = self._head
        try:
            _write_all(file, content)
            os.fsync(file)
            self._sign(last.seq + 1, before.size + len(content), last.sha256)
        except OSError as error:
            self._take_back(file, before)
            raise JournalError(
                f"{self.path}: the decision could not be written ({error.strerror}); give no "
                "answer on it, and make room or mend the disk"
            ) from error

    def _take_back(self, file: int, before: _Head) -> None:
        """Cut off what was written in part; a journal that cannot be cut is closed."""
        try:
            os.ftruncate(file, before.size)
            os.fsync(file)
            if _read_head(head_path(self.path), before.key) != before:  # a full disk takes no new
                self._put(before)
        except (OSError, JournalError):
            self.close()
        self._head = before

    def _sign(self, count: int, size: int, last: str) -> None:
        self._put(
            _Head(self._head.journal, count, size, last, self._time(), public_key_text(self._key))
        )

    def _put(self, head: _Head) -> None:
        document = sign(head.document(), self._key)
        _replace(head_path(self.path), canonical_json(document) + b"\n")
        self._head = head

    def _time(self) -> str:
        return self._clock().astimezone(UTC).isoformat(timespec="milliseconds")

    # --- opening ----------------------------------------------------------------------------------

    def _go_on(self, file: int) -> _Head:
        """The head to go on from, once the end of the file fits it."""
        size = os.fstat(file).st_size
        own = public_key_text(self._key)
        if not head_path(self.path).exists():
            if size:
                raise JournalError(
                    f"{self.path}: its head {head_path(self.path).name} is missing, so a cut tail "
                    "could not be found; put it back from a copy, or begin another file"
                )
            self._head = _Head(new_identifier(self._clock()), 0, 0, _START, self._time(), own)
            self._put(self._head)  # first, so that a journal without a head was tampered with
        else:
            self._head = _read_head(head_path(self.path), own)
            self._check_end(file, size)
        return self._recovered(file)

    def _check_end(self, file: int, size: int) -> None:
        head = self._head
        if size < head.size:
            raise JournalError(
                f"{self.path}: it was cut: {size:,} bytes, and the signed head counts "
                f"{head.size:,} ({head.count:,} lines); put it back from a copy, or begin another "
                "file and keep this one as evidence"
            )
        if head.count and hashlib.sha256(_last_line(file, head.size)).hexdigest() != head.last:
            raise JournalError(
                f"{self.path}: line {head.count:,} is not the one that the head signed; run "
                "`agelens gate verify-journal` on it, begin another file and keep this one as "
                "evidence"
            )

    def _recovered(self, file: int) -> _Head:
        """Take over what a crash left after the head, and say so in the journal."""
        after = _read_from(file, self._head.size)
        whole, torn = after[: after.rfind(b"\n") + 1], after[after.rfind(b"\n") + 1 :]
        count, last = self._head.count, self._head.last
        lines = [line + b"\n" for line in whole.split(b"\n")[:-1]]
        if len(lines) > self._batch:
            raise JournalError(
                f"{self.path}: {len(lines):,} lines come after the signed head, and a crash leaves "
                f"{self._batch} at most; begin another file and keep this one as evidence"
            )
        for line in lines:
            problem = _link_problem(_entry(line), count, last)
            if problem is not None:
                raise JournalError(
                    f"{self.path}: line {count + 1:,} comes after the signed head and {problem}: "
                    "it was not written by this gate; begin another file and keep this one as "
                    "evidence"
                )
            count, last = count + 1, hashlib.sha256(line).hexdigest()
        begun = self._head.count > 0
        if torn:
            os.ftruncate(file, self._head.size + len(whole))
        if lines:
            self._sign(count, self._head.size + len(whole), last)
        if count == 0:
            self._write_first(file)
        if begun and (lines or torn):
            self.recovery = Recovery(len(lines), len(torn))
            self.append(
                {
                    "event": RECOVERED,
                    "time": self._time(),
                    "unsigned": len(lines),
                    "torn_bytes": len(torn),
                    "torn_sha256": hashlib.sha256(torn).hexdigest(),
                }
            )
        return self._head

    def _write_first(self, file: int) -> None:
        first = {
            "schema": SCHEMA,
            "journal": self._head.journal,
            "time": self._time(),
            "agelens": __version__,
        }
        (line,), (receipt,) = self._chained([first])
        self._write(file, line, receipt)


# --- verifying ------------------------------------------------------------------------------------


JournalState = Literal["intact", "unsigned", "broken"]


@dataclass(frozen=True)
class JournalCheck:
    """What ``verify_journal`` found.

    Attributes:
        lines: Whole lines that were read; up to the break when there is one.
        decisions: Lines among them that record a decision.
        recoveries: Numbers (from 1) of the lines that record a crash.
        signed: Lines under the signed head.
        signed_at: Time of the head, ISO 8601.
        key: Public key of the head; "" when it could not be read.
        problem: The first break in words, or None.
        line: Its line number, from 1; None when the break is in the head itself.
        unsigned: The problem is only that one line, or a part of one, comes after the signed head.
            A gate that was stopped while it wrote leaves that, and takes it over at its next start.
    """

    lines: int
    decisions: int
    recoveries: tuple[int, ...]
    signed: int
    signed_at: str
    key: str
    problem: str | None = None
    line: int | None = None
    unsigned: bool = False

    @property
    def intact(self) -> bool:
        """Nothing was changed, added, moved or cut, and all is under the signed head."""
        return self.problem is None

    @property
    def state(self) -> JournalState:
        """In one word."""
        if self.unsigned:
            return "unsigned"
        return "intact" if self.intact else "broken"


def verify_journal(
    path: str | os.PathLike[str],
    *,
    trusted_key: str | Path | None = None,
    anchors: Sequence[Path] = (),
) -> JournalCheck:
    """Read a whole journal and find the first place that is not as it was written.

    A gate may write to it meanwhile: what it adds is checked against the later head that covers it.

    Args:
        path: The journal; its head lies beside it.
        trusted_key: Public key that must have signed the head ("ed25519:BASE64", or a file with
            it); None takes the one that this installation signs with: that of the variable
            ``AGELENS_AUDIT_KEY`` when it is set, else ``audit.pub`` in its key folder.
        anchors: Copies of earlier heads that were kept elsewhere: what they signed must still be
            there.

    Raises:
        JournalError: There is no such journal, no key to trust, or an anchor is no signed head.
        AuditError: The trusted key is no key.
        MissingExtra: ``cryptography`` is not installed.
    """
    journal = Path(path)
    trusted = _trusted(trusted_key)
    kept = [_read_head(anchor, trusted) for anchor in anchors]
    try:
        head = _read_head(head_path(journal), trusted)
        problem = None
    except JournalError as error:
        head = _Head("", 0, 0, _START, "", "")
        problem = str(error)
    try:
        with open(journal, "rb") as file:
            reading = _Reading(frozenset(one.count for one in (*kept, head)), head.count)
            found: tuple[int | None, str] | None = reading.first_break(file, head, problem is None)
            if found is None and problem is None:
                found = _against(reading, (*kept, head))
            if found is None and problem is None:
                head, found = _followed(reading, file, head, head_path(journal))
    except OSError as error:
        raise JournalError(f"{journal}: cannot be read: {error.strerror}") from error
    unsigned = False
    if found is None and problem is None and reading.is_beyond(head):
        found = head.count + 1, reading.beyond(head)
        unsigned = reading.count - head.count + (reading.torn > 0) == 1
    line, words = found or (None, None)
    return JournalCheck(
        lines=reading.count,
        decisions=reading.decisions,
        recoveries=tuple(reading.recoveries),
        signed=head.count,
        signed_at=head.time,
        key=head.key,
        problem=words or problem,
        line=line,
        unsigned=unsigned,
    )


def _followed(
    reading: _Reading, file: Any, head: _Head, path: Path
) -> tuple[_Head, tuple[int | None, str] | None]:
    """The head that covers what a gate at work wrote meanwhile, and the first break up to it."""
    for wait in range(_WAITS + 1):
        if not reading.is_beyond(head):
            break
        if wait:
            time.sleep(_WAIT_S)
        try:
            later = _read_head(path, head.key)
        except JournalError as error:
            return head, (None, str(error))
        if later.count <= head.count:
            continue
        found = reading.read_on(file, later) or _against(reading, (later,))
        head = later
        if found is not None:
            return head, found
    return head, None


class _Reading:
    """One pass over the lines of a journal.

    ``signed`` are the counts whose hash is kept, and all from ``head`` on: a later head may sign
    any of them.
    """

    def __init__(self, signed: frozenset[int], head: int) -> None:
        self.signed = signed
        self.head = head
        self.last = _START
        self.end = 0
        self.count = 0
        self.decisions = 0
        self.recoveries: list[int] = []
        self.hashes: dict[int, str] = {}
        self.journal = ""
        self.torn = 0

    def first_break(self, file: Any, head: _Head, known: bool) -> tuple[int, str] | None:
        """The first line that does not fit, and why; ``known`` says that the head holds."""
        return self._break_in(_with_next(file), head, known)

    def read_on(self, file: Any, head: _Head) -> tuple[int, str] | None:
        """The same for the lines that a later head signed, and no further."""
        if self.count >= head.count:
            return None
        file.seek(self.end)
        self.torn = 0
        return self._break_in(islice(_with_next(file), head.count - self.count), head, True)

    def is_beyond(self, head: _Head) -> bool:
        """Whether something comes after the lines that the head signed."""
        return self.count > head.count or self.torn > 0

    def beyond(self, head: _Head) -> str:
        """What comes after them, in words."""
        return (
            f"{self.count - head.count:,} whole lines and {self.torn:,} bytes come after the "
            "signed head: left by a crash (the gate takes them over at its next start), being "
            "written now, or added by another hand"
        )

    def _break_in(
        self, lines: Iterable[tuple[bytes, bytes]], head: _Head, known: bool
    ) -> tuple[int, str] | None:
        for line, following in lines:
            if not line.endswith(b"\n"):
                if known and self.count >= head.count:
                    self.torn = len(line)
                    return None
                return self.count + 1, "the line is not whole: its end was cut"
            entry = _entry(line)
            problem = _link_problem(entry, self.count, self.last)
            if problem is not None:
                return self._blamed(line, following, head, problem)
            assert entry is not None  # that would have been a problem
            self.last = hashlib.sha256(line).hexdigest()
            self.end += len(line)
            self._note(entry)
        return None

    def _blamed(self, line: bytes, following: bytes, head: _Head, problem: str) -> tuple[int, str]:
        """Whether this line was changed or the one before it, which it vouches for."""
        entry = _entry(line)
        if self.count and entry is not None and entry.get("seq") == self.count:
            own = hashlib.sha256(line).hexdigest()
            after = _entry(following)
            vouched = head.last if not following else after and after.get("prev")
            if vouched == own:
                return self.count, "the line was changed: the next line states another SHA-256"
        return self.count + 1, problem

    def _note(self, entry: Mapping[str, Any]) -> None:
        self.count += 1
        if self.count in self.signed or self.count >= self.head:
            self.hashes[self.count] = self.last
        if self.count == 1:
            self.journal = str(entry.get("journal"))
        elif entry.get("event") == RECOVERED:
            self.recoveries.append(self.count)
        else:
            self.decisions += 1


def _against(reading: _Reading, heads: Sequence[_Head]) -> tuple[int, str] | None:
    """What signed heads say of a file whose chain holds."""
    for one in heads:
        if one.count > reading.count:
            return reading.count + 1, (
                f"the end was cut: {reading.count:,} lines, and the head of {one.time} signed "
                f"{one.count:,}"
            )
        if one.count and reading.hashes[one.count] != one.last:
            return one.count, f"the line is not the one that the head of {one.time} signed"
        if one.count and one.journal != reading.journal:
            return 1, "the journal is another one than the head is of"
    return None


def _link_problem(entry: Mapping[str, Any] | None, seq: int, last: str) -> str | None:
    """Why a line's content does not follow the line whose SHA-256 is ``last``."""
    if entry is None:
        return "is not a JSON object"
    found = entry.get("seq")
    if found == seq and type(found) is int:
        if entry.get("prev") == last:
            return None
        return "states another SHA-256 for the line before it"
    if type(found) is int and found > seq:
        return f"has the number {found}, expected {seq}: lines before it are missing"
    return f"has the number {found!r}, expected {seq}"


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _with_next(file: Any) -> Iterator[tuple[bytes, bytes]]:
    """Each line with the one after it; empty after the last."""
    line = file.readline()
    while line:
        following = file.readline()
        yield line, following
        line = following


# --- heads ----------------------------------------------------------------------------------------


def _trusted(trusted_key: str | Path | None) -> str:
    if trusted_key is not None:
        return read_public_key(trusted_key)
    if os.environ.get(KEY_VARIABLE, "").strip():
        return public_key_text(signing_key())
    own = key_folder() / "audit.pub"
    if not own.exists():
        raise JournalError(
            f"no key to trust: {own} does not exist, because nothing was signed here; pass the "
            "public key that the gate signs with (audit.pub of its installation, or the public "
            f"half of the key in {KEY_VARIABLE}) as trusted_key or --key"
        )
    return read_public_key(own)


def _read_head(path: Path, trusted: str) -> _Head:
    """A head, once its signature by the trusted key fits.

    Raises:
        JournalError: It is missing, is no head, or its signature does not fit.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_LARGEST_HEAD)
    except OSError as error:
        raise JournalError(f"{path}: the head cannot be read: {error.strerror}") from error
    document = _entry(raw)
    if document is None or document.get("schema") != HEAD_SCHEMA:
        raise JournalError(f"{path}: no head of a journal (schema {HEAD_SCHEMA!r})")
    signature = document.pop("signature", None)
    key = signature.get("public_key") if isinstance(signature, dict) else None
    if key != trusted:
        raise JournalError(
            f"{path}: signed by the key {str(key)[:60]}, which is not the trusted one "
            f"({trusted}); name the right key with --key: that of {KEY_VARIABLE} when the gate "
            "runs with it, else audit.pub of its installation; or begin another journal if the key "
            "was replaced"
        )
    whole = canonical_json({**document, "signature": signature}) + b"\n"
    if whole != raw or not _signature_fits(document, signature, trusted):
        raise JournalError(f"{path}: the head was changed after it was signed")
    try:
        return _Head(
            journal=str(document["journal"]),
            count=int(document["count"]),
            size=int(document["bytes"]),
            last=str(document["sha256"]),
            time=str(document["time"]),
            key=trusted,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise JournalError(f"{path}: the head lacks or garbles a field: {error!r}") from error


def _signature_fits(document: Mapping[str, Any], signature: Mapping[str, Any], key: str) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise MissingExtra("gate", "verifying a gate's journal") from error
    text = str(signature.get("value"))
    if signature != {"algorithm": "Ed25519", "public_key": key, "value": text}:
        return False  # these words are not under the signature
    try:
        value = base64.b64decode(text, validate=True)
        if base64.b64encode(value).decode() != text:  # another spelling of the same bytes
            return False
        public = base64.b64decode(key.partition(":")[2], validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(value, canonical_json(document))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


# --- files ----------------------------------------------------------------------------------------


def _lock(file: int, path: Path) -> None:
    """Keep a second writer out; the lock goes with the process, however it ends.

    Raises:
        JournalError: Another writer has it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file, 1 << 40, os.SEEK_SET)  # beyond the content, which stays readable
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise JournalError(
            f"{path}: another gate writes to this journal; give each gate a file of its own"
        ) from error


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def _replace(path: Path, content: bytes) -> None:
    """Put a file in place of an older one so that after a crash one of the two is whole."""
    partial = path.with_name(f".{path.name}.tmp")
    handle = os.open(
        partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600
    )
    try:
        try:
            _write_all(handle, content)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _last_line(file: int, end: int) -> bytes:
    """The line that ends at byte ``end``."""
    content = b""
    start = end
    while start > 0 and b"\n" not in content[:-1]:
        step = min(_PIECE, start)
        start -= step
        content = _read_at(file, start, step) + content
    return content[content.rfind(b"\n", 0, len(content) - 1) + 1 :]


def _read_from(file: int, start: int) -> bytes:
    return _read_at(file, start, max(0, os.fstat(file).st_size - start))


def _read_at(file: int, start: int, count: int) -> bytes:
    os.lseek(file, start, os.SEEK_SET)
    pieces = []
    while count > 0:
        piece = os.read(file, count)
        if not piece:
            break
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


__all__ = [
    "HEAD_SCHEMA",
    "RECOVERED",
    "SCHEMA",
    "Journal",
    "JournalCheck",
    "JournalState",
    "Receipt",
    "Recovery",
    "head_path",
    "verify_journal",
]
