"""
Audits that can be trusted later: signed when they are made, verified where they are relied on.

    signing_key, public_key_text    the Ed25519 key pair of this installation, or the caller's own
    sign                            a document -> the same with a signature over its canonical form
    verify_audit                    a file -> a VerifiedAudit, or one clear reason why not

Verifying imports neither pandas nor fairlearn, so that an age gate can do it at every start.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from agelens.bundle import Bundle, user_folder
from agelens.errors import ArgumentError, AuditError, MissingExtra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from agelens.evaluation.policy import AuditPolicy

AUDIT_SCHEMA: Final = "agelens.audit/1"
KEY_VARIABLE: Final = "AGELENS_AUDIT_KEY"
"""Environment variable with the signing key: PEM text, or the path of a PEM file."""

_ALGORITHM: Final = "Ed25519"
_PREFIX: Final = "ed25519:"
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_CLOCK_SLACK: Final = timedelta(minutes=5)
_LARGEST_AUDIT: Final = 200_000_000
"""Bytes; a file beyond is no audit and is not read into memory."""


@dataclass(frozen=True)
class VerifiedAudit:
    """An audit whose signature, subject and dates hold.

    Attributes:
        document: The whole audit, as ``AuditResult.to_dict`` made it, without its signature.
        model: "name@version".
        policy: Name of the policy it was judged by.
        passed: Whether the model passed; a verified audit can be one that failed.
        created: When it was made, UTC.
        expires: Until when it holds, UTC.
        key: Public key that signed it, "ed25519:BASE64".
    """

    document: Mapping[str, Any]
    model: str
    policy: str
    passed: bool
    created: datetime
    expires: datetime
    key: str


def canonical_json(value: Any) -> bytes:
    """The one form of a JSON value that is hashed and signed.

    Keys sorted, no spaces, UTF-8, numbers as Python writes them; reading it and writing it again
    gives the same bytes.

    Raises:
        ArgumentError: It holds NaN or infinity, or what JSON has no word for.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"not a JSON value: {error}") from error


def data_fingerprint(hashes: Sequence[str]) -> str:
    """One SHA-256 for files of faces, from that of each (``scoring.data_sha256``), in order."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


# --- keys -----------------------------------------------------------------------------------------


def key_folder() -> Path:
    """Where the keys of this installation lie: ``$AGELENS_HOME/keys``, or the data folder."""
    return user_folder().parent / "keys"


def signing_key(source: Path | None = None) -> Ed25519PrivateKey:
    """The private key that audits are signed with.

    Args:
        source: A PEM file (PKCS #8) with an Ed25519 key. None takes the one in the environment
            variable ``AGELENS_AUDIT_KEY`` (PEM text, or a path), or the key pair of this
            installation, which is made at first use: ``audit.key``, readable by its owner only,
            and ``audit.pub`` in ``key_folder()``.

    Raises:
        AuditError: The key cannot be read, is of another kind, or is open to other users.
        MissingExtra: ``cryptography`` is not installed.
    """
    if source is not None:
        return _private_key(_read_key(source), str(source))
    given = os.environ.get(KEY_VARIABLE, "").strip()
    if given.startswith("-----BEGIN"):
        return _private_key(given.encode(), f"the variable {KEY_VARIABLE}")
    if given:
        return _private_key(_read_key(Path(given).expanduser()), given)
    own = key_folder() / "audit.key"
    if not own.exists():
        _make_pair(own)
    if os.name == "posix" and own.stat().st_mode & 0o077:
        raise AuditError(
            f"{own}: other users can read this private key, so its signatures prove nothing; "
            "delete it and audit again, or run chmod 600 on it if nobody else had access"
        )
    return _private_key(_read_key(own), str(own))


def public_key_text(key: Ed25519PrivateKey) -> str:
    """The public half of a key pair as one word, "ed25519:BASE64"."""
    raw = key.public_key().public_bytes_raw()
    return _PREFIX + base64.b64encode(raw).decode()


def read_public_key(source: str | Path) -> str:
    """A public key as one word, from that word itself or from a file that holds it.

    Raises:
        AuditError: There is no such key.
    """
    text = str(source).strip()
    if not text.startswith(_PREFIX):
        try:
            text = Path(source).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise AuditError(
                f"{source}: neither a public key ({_PREFIX}...) nor a file with one: {error}"
            ) from error
    _bytes_of_key(text, str(source))
    return text


def _bytes_of_key(text: str, where: str) -> bytes:
    try:
        raw = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not text.startswith(_PREFIX) or len(raw) != _KEY_BYTES:
        raise AuditError(f"{where}: no public key; one looks like {_PREFIX}... (44 characters)")
    return raw


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AuditError(f"{path}: the signing key cannot be read: {error.strerror}") from error


def _private_key(pem: bytes, where: str) -> Ed25519PrivateKey:
    ed25519 = _import_ed25519()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise AuditError(
            f"{where}: the signing key is protected by a password; give one without, from a "
            "secret store"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuditError(f"{where}: no private key in PEM form (PKCS #8)") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise AuditError(f"{where}: an Ed25519 key is needed, this is {type(key).__name__}")
    found: Ed25519PrivateKey = key
    return found


def _make_pair(path: Path) -> None:
    """Write a new key pair; of several processes that do so at once, one wins and all use it."""
    ed25519 = _import_ed25519()
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)  # unlike a rename, it never replaces another's key
        except FileExistsError:
            key = _private_key(_read_key(path), str(path))
    finally:
        partial.unlink(missing_ok=True)
    _write_public(path.with_suffix(".pub"), public_key_text(key))


def _write_public(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _import_ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtra("eval", "signing and verifying audits") from error
    return ed25519


# --- sign -----------------------------------------------------------------------------------------


def sign(document: Mapping[str, Any], key: Ed25519PrivateKey | None = None) -> dict[str, Any]:
    """Add a signature over everything that a document holds.

    Args:
        document: JSON values; a ``signature`` in it is replaced.
        key: Private key; None takes ``signing_key()``.

    Returns:
        The document with ``signature``: algorithm, public key and value.

    Raises:
        ArgumentError: The document is no JSON value.
        AuditError, MissingExtra: See ``signing_key``.
    """
    content = {name: value for name, value in document.items() if name != "signature"}
    signer = signing_key() if key is None else key
    value = signer.sign(canonical_json(content))
    signature = {
        "algorithm": _ALGORITHM,
        "public_key": public_key_text(signer),
        "value": base64.b64encode(value).decode(),
    }
    return {**content, "signature": signature}


# --- verify ---------------------------------------------------------------------------------------


def verify_audit(
    path: Path,
    *,
    bundle: Bundle,
    data_sha256: str | None = None,
    policy: AuditPolicy | None = None,
    now: datetime | None = None,
    trusted_key: str | Path | None = None,
) -> VerifiedAudit:
    """Check that an audit is whole, trusted, in date, and about this model.

    Whether the model passed is not judged here: see ``VerifiedAudit.passed``.

    Args:
        path: The signed JSON file.
        bundle: The model that is to be used. Its files are hashed again; its card, calibration
            included, must be the one that was audited.
        data_sha256: ``data_fingerprint`` of the files it must have been made on; None does not
            ask.
        policy: The policy it must have been judged by; None does not ask.
        now: The time, with its zone; None takes the clock's.
        trusted_key: Public key (the word, or a file with it) that must have signed. None takes the
            one of this installation: a signature by any key proves nothing about who made it.

    Raises:
        AuditError: One of these does not fit; the message says which, what was found and what is
            expected.
        ModelNotFound, ModelCorrupt: A file of the model is missing or is not the one that its card
            states.
        MissingExtra: ``cryptography`` is not installed.
    """
    moment = datetime.now(UTC) if now is None else now
    if moment.tzinfo is None:
        raise ArgumentError(f"now must have a time zone, got {moment.isoformat()}")
    document = _read_audit(path)
    key = _check_signature(path, document, _trusted(trusted_key))
    content = {name: value for name, value in document.items() if name != "signature"}
    verified = _opened(path, content, key)
    _check_dates(path, verified, moment)
    _check_model(path, content, bundle)
    found = content["data_sha256"]
    if data_sha256 is not None and found != data_sha256:
        raise AuditError(
            f"{path}: it was made on other faces (SHA-256 {_short(found)}) than these "
            f"({_short(data_sha256)}); audit the model on these"
        )
    if policy is not None and content["policy"]["sha256"] != policy.sha256:
        raise AuditError(
            f"{path}: it was judged by another policy ({verified.policy!r}, SHA-256 "
            f"{_short(content['policy']['sha256'])}) than {policy.name!r} "
            f"({_short(policy.sha256)}); audit the model by this policy"
        )
    settings = content.get("settings", {})
    if policy is not None and settings.get("min_cell", policy.min_cell) > policy.min_cell:
        raise AuditError(
            f"{path}: it left out groups of fewer than {settings['min_cell']} faces, and "
            f"{policy.name!r} asks for those of {policy.min_cell} and more; leave out --min-cell"
        )
    return verified


def _read_audit(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_AUDIT:
            raise AuditError(f"{path}: no audit: it is larger than {_LARGEST_AUDIT:,} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise AuditError(f"{path}: the audit cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise AuditError(f"{path}: no audit: it is not UTF-8 text") from error
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise AuditError(f"{path}: no audit: it is not JSON: {error}") from error
    found = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(document, dict) or found != AUDIT_SCHEMA:
        raise AuditError(f"{path}: no audit: its schema is {found!r}, expected {AUDIT_SCHEMA!r}")
    return document


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _trusted(trusted_key: str | Path | None) -> str:
    if trusted_key is not None:
        return read_public_key(trusted_key)
    own = key_folder() / "audit.pub"
    if not own.exists():
        raise AuditError(
            f"no key to trust: {own} does not exist, because no audit was signed here; pass the "
            "public key of whoever signs your audits (their audit.pub) as trusted_key or --key"
        )
    return read_public_key(own)


def _check_signature(path: Path, document: Mapping[str, Any], trusted: str) -> str:
    """The key that signed, once it is the trusted one and its signature fits."""
    ed25519 = _import_ed25519()
    from cryptography.exceptions import InvalidSignature

    signature = document.get("signature")
    if not isinstance(signature, Mapping):
        raise AuditError(f"{path}: the audit is not signed; make it with `agelens audit`")
    key, value = str(signature.get("public_key")), signature.get("value")
    if signature.get("algorithm") != _ALGORITHM:
        raise AuditError(
            f"{path}: signed by {signature.get('algorithm')!r}, expected {_ALGORITHM!r}"
        )
    if key != trusted:
        raise AuditError(
            f"{path}: signed by the key {key[:60]}, which is not the trusted one ({trusted}); pass "
            "the public key of whoever signs your audits as trusted_key or --key"
        )
    content = {name: item for name, item in document.items() if name != "signature"}
    try:
        raw = base64.b64decode(str(value), validate=True)
        if len(raw) != _SIGNATURE_BYTES:
            raise ValueError
        public = ed25519.Ed25519PublicKey.from_public_bytes(_bytes_of_key(key, str(path)))
        public.verify(raw, canonical_json(content))
    except (InvalidSignature, ValueError) as error:
        raise AuditError(
            f"{path}: the signature does not fit the content: the audit was changed after it was "
            "signed; get the file again, or make a new audit"
        ) from error
    return key


def _opened(path: Path, content: Mapping[str, Any], key: str) -> VerifiedAudit:
    try:
        for part in (content["model"], content["policy"]):
            str(part["sha256"])
        str(content["model"]["card_sha256"]), str(content["data_sha256"])
        return VerifiedAudit(
            document=content,
            model=str(content["model"]["name"]),
            policy=str(content["policy"]["name"]),
            passed=content["verdict"] == "passed",
            created=_moment(content["created"]),
            expires=_moment(content["expires"]),
            key=key,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AuditError(f"{path}: the audit lacks or garbles a field: {error!r}") from error


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment


def _check_dates(path: Path, audit: VerifiedAudit, now: datetime) -> None:
    if now >= audit.expires:
        raise AuditError(
            f"{path}: the audit expired on {audit.expires:%Y-%m-%d %H:%M} UTC; audit the model "
            "again"
        )
    if now < audit.created - _CLOCK_SLACK:
        raise AuditError(
            f"{path}: the audit was made on {audit.created:%Y-%m-%d %H:%M} UTC, which is still to "
            f"come by this clock ({now:%Y-%m-%d %H:%M}); set the clock right"
        )


def _check_model(path: Path, content: Mapping[str, Any], bundle: Bundle) -> None:
    from agelens.evaluation.scoring import card_sha256, model_sha256

    bundle.verify()
    audited, model = content["model"], bundle.card.identifier
    if audited["sha256"] != model_sha256(bundle):
        raise AuditError(
            f"{path}: it audits {audited['name']} with the weights {_short(audited['sha256'])}; "
            f"{model} has {_short(model_sha256(bundle))}: another model, or a changed one. Audit "
            "the model that is to be used"
        )
    if audited["card_sha256"] != card_sha256(bundle.card):
        raise AuditError(
            f"{path}: the card of {model} has changed since the audit (its calibration, crop or "
            f"another field: SHA-256 {_short(card_sha256(bundle.card))}, audited "
            f"{_short(audited['card_sha256'])}); audit the model again"
        )


def _short(sha256: object) -> str:
    return f"{str(sha256)[:12]}..."
