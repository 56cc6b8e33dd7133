"""
Tokens that say "the holder is over N" (or "under N") and nothing else, signed by the gate.

    TokenKeys      a folder of Ed25519 keys: one signs, earlier ones still verify, one JWKS document
    TokenIssuer    a JWT (EdDSA, RFC 7519 and 8037): over or under, iss, aud, nonce, iat, exp, jti
    TokenVerifier  from the JWKS alone; each reason to refuse has a code of its own
    ReplayCache    each token counts once

There is no claim for an age, a probability or a picture, and a token that has one is refused.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from agelens.errors import ArgumentError, GateError, MissingExtra, TokenError
from agelens.identifiers import utc_now

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEYS_SCHEMA: Final = "agelens.gate-keys/1"
CLAIMS: Final = ("over", "iss", "aud", "nonce", "iat", "exp", "jti")
"""All that a token holds; that of a gate for those under an age has "under" in place of "over"."""
LONGEST_LIFETIME_S: Final = 86_400
"""Longest life of a token, and so the time that a rotated key goes on verifying."""

_SAID: Final = ("over", "under")
_SHARED_CLAIMS: Final = CLAIMS[1:]
_ALGORITHM: Final = "EdDSA"
_INDEX: Final = "keys.json"
_LONGEST_TOKEN: Final = 4096
_LONGEST_NONCE: Final = 256

Clock = Callable[[], datetime]


# --- keys -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PublicKey:
    """One key that verifies tokens.

    Attributes:
        kid: Its JWK thumbprint (RFC 7638), by which tokens name it.
        x: The key, base64url.
        created: When it was made.
        until: When it stops to verify; None for the one that signs.
    """

    kid: str
    x: str
    created: datetime
    until: datetime | None

    def to_jwk(self) -> dict[str, str]:
        """As a JSON Web Key."""
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": self.x,
            "kid": self.kid,
            "use": "sig",
            "alg": _ALGORITHM,
        }


class TokenKeys:
    """A folder of token keys.

    ``keys.json`` lists the public keys; ``KID.pem`` is the private half of the one that signs,
    readable by its owner only. The private half of a key is deleted when the next one takes over.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: Path, keys: tuple[PublicKey, ...]) -> None:
        """Use ``create`` or ``open``."""
        self.folder = folder
        self._keys = keys

    @classmethod
    def create(cls, folder: Path, *, clock: Clock = utc_now) -> Self:
        """Make a folder with a first key.

        Raises:
            GateError: There are keys already.
            MissingExtra: ``cryptography`` is not installed.
        """
        _imports()  # a missing package leaves no empty folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _one_at_a_time(folder):
            if (folder / _INDEX).exists():
                raise GateError(
                    f"{folder}: has keys already; replace the one that signs with "
                    "`agelens gate keys rotate`"
                )
            keys = cls(folder, ())
            keys._add(clock())
        return keys

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the folder.

        Raises:
            GateError: There are no keys, or the list is not one.
        """
        path = folder / _INDEX
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema"] != KEYS_SCHEMA:
                raise ValueError(f"its schema is {document['schema']!r}")
            keys = tuple(_read_key(row) for row in document["keys"])
        except FileNotFoundError as error:
            raise GateError(
                f"{folder}: no token keys; make them with `agelens gate keys init {folder}`"
            ) from error
        except OSError as error:
            raise GateError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise GateError(f"{path}: no list of keys ({KEYS_SCHEMA}): {error!r}") from error
        if sum(key.until is None for key in keys) != 1:
            raise GateError(f"{path}: exactly one key must sign (until = null)")
        return cls(folder, keys)

    @property
    def signing(self) -> PublicKey:
        """The key that signs new tokens."""
        (active,) = (key for key in self._keys if key.until is None)
        return active

    def private_key(self) -> Ed25519PrivateKey:
        """The private half of the key that signs.

        Raises:
            GateError: It is missing, open to other users, or not the one of the list.
            MissingExtra: ``cryptography`` is not installed.
        """
        _, ed25519, serialization = _imports()
        path = self._private_path(self.signing.kid)
        try:
            # A group may read: secrets that Kubernetes or systemd hand to a service are 0440.
            if os.name == "posix" and path.stat().st_mode & 0o027:
                raise GateError(
                    f"{path}: other users can read this private key; replace it with "
                    "`agelens gate keys rotate --now`, or run chmod 600 on it if nobody else had "
                    "access"
                )
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise GateError(
                f"{path}: the signing key cannot be read ({error.strerror}); put it back, or make "
                "a new one with `agelens gate keys rotate`"
            ) from error
        except (ValueError, TypeError) as error:
            raise GateError(f"{path}: no private key in PEM form") from error
        if not isinstance(key, ed25519.Ed25519PrivateKey) or _public_x(key) != self.signing.x:
            raise GateError(f"{path}: not the private half of the key {self.signing.kid}")
        private: Ed25519PrivateKey = key
        return private

    def jwks(self, now: datetime | None = None) -> dict[str, Any]:
        """The JSON Web Key Set (RFC 7517) that verifiers fetch; the signing key comes first.

        Args:
            now: Keys that stopped to verify before it are left out; None takes the clock's time.
        """
        return {"keys": [key.to_jwk() for key in self.verifying(now)]}

    def verifying(self, now: datetime | None = None) -> tuple[PublicKey, ...]:
        """The keys whose tokens hold: the one that signs, then earlier ones, latest first.

        Args:
            now: The time; None takes the clock's.
        """
        moment = utc_now() if now is None else now
        alive = [key for key in self._keys if key.until is None or key.until > moment]
        alive.sort(key=lambda key: (key.until is not None, -key.created.timestamp()))
        return tuple(alive)

    def rotate(self, *, at_once: bool = False, clock: Clock = utc_now) -> PublicKey:
        """Make a new signing key; the one before goes on verifying what it signed.

        Verifiers that keep the JWKS must fetch it again when they meet an unknown ``kid``. The
        public half is in ``jwks()`` until the last token it signed has expired.

        Args:
            at_once: Every earlier key stops to verify now, and with it every token that it signed:
                for a key that others have got hold of.
            clock: Gives the time.

        Raises:
            GateError: Another process changes the keys.
        """
        now = clock()
        until = now if at_once else now + timedelta(seconds=LONGEST_LIFETIME_S)
        with _one_at_a_time(self.folder):
            self._keys = self.open(self.folder)._keys
            before = self.signing
            ended = [
                PublicKey(key.kid, key.x, key.created, min(until, key.until or until))
                for key in self._keys
            ]
            self._keys = tuple(key for key in ended if key.until is not None and key.until > now)
            added = self._add(now)
            self._private_path(before.kid).unlink(missing_ok=True)
        return added

    def _add(self, now: datetime) -> PublicKey:
        _, ed25519, serialization = _imports()
        private = ed25519.Ed25519PrivateKey.generate()
        x = _public_x(private)
        added = PublicKey(thumbprint(x), x, now, None)
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write(self._private_path(added.kid), pem)
        self._keys = (*self._keys, added)
        document = {"schema": KEYS_SCHEMA, "keys": [_key_row(key) for key in self._keys]}
        _write(self.folder / _INDEX, (json.dumps(document, indent=2) + "\n").encode())
        return added

    def _private_path(self, kid: str) -> Path:
        return self.folder / f"{kid}.pem"


def thumbprint(x: str) -> str:
    """The RFC 7638 thumbprint of an Ed25519 key: SHA-256 of its canonical JWK, base64url."""
    canonical = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": x}, separators=(",", ":"))
    return _base64url(hashlib.sha256(canonical.encode()).digest())


# --- issuing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """A token as the holder gets it.

    Attributes:
        text: The JWT in compact form.
        jti: Its identifier, random; it says nothing of the decision it came from.
        expires: When it ends.
    """

    text: str
    jti: str
    expires: datetime

    def __repr__(self) -> str:
        return f"Token(jti={self.jti!r}, expires={self.expires.isoformat()})"


@dataclass(frozen=True)
class TokenIssuer:
    """Issues tokens; thread-safe. Make a new one after a rotation of the keys.

    Attributes:
        issuer: Claim ``iss``: the gate.
        audience: Claim ``aud``: who accepts the tokens.
        lifetime_s: Seconds until they expire, 1 to ``LONGEST_LIFETIME_S``.
        kid: Key that signs.
        clock: Gives the time.
    """

    issuer: str
    audience: str
    lifetime_s: int
    kid: str
    _private: Ed25519PrivateKey = field(repr=False)
    clock: Clock = utc_now

    @classmethod
    def of(
        cls,
        keys: TokenKeys,
        *,
        issuer: str,
        audience: str,
        lifetime_s: int = 300,
        clock: Clock = utc_now,
    ) -> Self:
        """An issuer that signs with the current key of a folder.

        Raises:
            ArgumentError: The lifetime is out of range, or a name is empty.
            GateError, MissingExtra: See ``TokenKeys.private_key``.
        """
        if not 1 <= lifetime_s <= LONGEST_LIFETIME_S:
            raise ArgumentError(
                f"lifetime_s must be within 1..{LONGEST_LIFETIME_S}, got {lifetime_s}"
            )
        if not issuer or not audience:
            raise ArgumentError("a token needs an issuer and an audience")
        return cls(issuer, audience, lifetime_s, keys.signing.kid, keys.private_key(), clock)

    def issue(self, over: int, nonce: str) -> Token:
        """Sign that the holder is over an age.

        Args:
            over: Completed years, 1..100.
            nonce: The value that the accepting party gave for this one occasion.

        Raises:
            ArgumentError: ``over`` or ``nonce`` is out of range.
        """
        return self._issue("over", over, nonce)

    def issue_under(self, under: int, nonce: str) -> Token:
        """Sign that the holder has not reached an age.

        Args:
            under: Completed years, 1..100.
            nonce: As of ``issue``.

        Raises:
            ArgumentError: ``under`` or ``nonce`` is out of range.
        """
        return self._issue("under", under, nonce)

    def _issue(self, said: str, age: int, nonce: str) -> Token:
        if isinstance(age, bool) or not isinstance(age, int) or not 1 <= age <= 100:
            raise ArgumentError(f"{said} must be a whole number within 1..100, got {age!r}")
        if not nonce or len(nonce) > _LONGEST_NONCE:
            raise ArgumentError(f"the nonce must have 1 to {_LONGEST_NONCE} characters")
        jwt, _, _ = _imports()
        issued = int(self.clock().timestamp())
        claims = {
            said: age,
            "iss": self.issuer,
            "aud": self.audience,
            "nonce": nonce,
            "iat": issued,
            "exp": issued + self.lifetime_s,
            "jti": secrets.token_urlsafe(16),
        }
        text = jwt.encode(claims, self._private, algorithm=_ALGORITHM, headers={"kid": self.kid})
        expires = datetime.fromtimestamp(issued + self.lifetime_s, UTC)
        return Token(text, str(claims["jti"]), expires)


# --- verifying ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claims:
    """What a token that holds says.

    Attributes:
        over: The holder is over this age; None when the token speaks of ``under``.
        issuer: Who says so.
        jti: Identifier of the token.
        expires: When it ends.
        under: The holder has not reached this age; None when the token speaks of ``over``.
    """

    over: int | None
    issuer: str
    jti: str
    expires: datetime
    under: int | None = None


class ReplayCache:
    """Remembers tokens until they expire, so that each counts once. Thread-safe.

    In memory it forgets with the process; with a file several processes share it and a restart
    opens no gap. It holds identifiers and times only. Closes as a context manager.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Open the cache.

        Args:
            path: An SQLite file; None keeps it in memory.

        Raises:
            GateError: The file cannot be used.
        """
        self._lock = threading.Lock()
        where = ":memory:" if path is None else os.fspath(path)
        try:
            self._store = sqlite3.connect(where, isolation_level=None, check_same_thread=False)
            self._store.execute(
                "CREATE TABLE IF NOT EXISTS seen (jti TEXT PRIMARY KEY, expires REAL) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            raise GateError(f"{where}: cannot keep the used tokens there: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._store.close()

    def first_use(self, jti: str, expires: datetime, now: datetime) -> bool:
        """Note the use of a token; False when it was used before.

        Args:
            jti: Its identifier.
            expires: It is remembered until then.
            now: Tokens that expired before are forgotten.

        Raises:
            GateError: It cannot be noted; the token must not be accepted.
        """
        try:
            with self._lock:
                self._store.execute("DELETE FROM seen WHERE expires < ?", (now.timestamp(),))
                added = self._store.execute(
                    "INSERT OR IGNORE INTO seen VALUES (?, ?)", (jti, expires.timestamp())
                )
                return added.rowcount == 1
        except sqlite3.Error as error:
            raise GateError(f"the use of a token cannot be noted: {error}") from error


class TokenVerifier:
    """Checks tokens with nothing but the issuer's JWKS document. Thread-safe."""

    def __init__(
        self,
        jwks: Mapping[str, Any],
        *,
        issuer: str,
        audience: str,
        replays: ReplayCache,
        leeway_s: int = 0,
    ) -> None:
        """Make a verifier.

        Args:
            jwks: The issuer's key set; make a new verifier when it changes.
            issuer: Expected ``iss``.
            audience: Expected ``aud``: this service.
            replays: Remembers used tokens.
            leeway_s: Seconds by which the clocks of issuer and verifier may differ.

        Raises:
            ArgumentError: The key set has no Ed25519 key.
            MissingExtra: PyJWT is not installed.
        """
        jwt, _, _ = _imports()
        try:
            keys = jwt.PyJWKSet.from_dict(dict(jwks)).keys
        except (jwt.PyJWTError, AttributeError, TypeError) as error:
            raise ArgumentError(f"not a JSON Web Key Set with usable keys: {error}") from error
        self._keys = {
            key.key_id: key for key in keys if key.key_type == "OKP" and key.key_id is not None
        }
        if not self._keys:
            raise ArgumentError("the JSON Web Key Set has no Ed25519 key with a kid")
        self._issuer, self._audience = issuer, audience
        self._replays, self._leeway_s = replays, leeway_s

    def verify(
        self, token: str, *, nonce: str, at_least: int | None = None, under: int | None = None
    ) -> Claims:
        """Accept a token once.

        Args:
            token: The JWT in compact form.
            nonce: The value that this service gave the holder for this occasion.
            at_least: Age that the holder must be over.
            under: Age that the holder must not have reached; one of the two is asked.

        Raises:
            TokenError: It is refused; ``code`` says why.
            ArgumentError: Neither an age nor a limit was asked for, or both.
        """
        if (at_least is None) == (under is None):
            raise ArgumentError("ask for one of at_least and under: what the token must say")
        claims = self._decoded(token)
        said = "under" if "under" in claims else "over"
        expected = {said, *_SHARED_CLAIMS}
        if set(claims) != expected:
            odd = sorted(set(claims) ^ expected)
            raise TokenError(
                "wrong_claims",
                f"the token must hold {' or '.join(_SAID)}, {', '.join(_SHARED_CLAIMS)} and no "
                f"more; see {odd}",
            )
        if not all(type(claims[name]) is int for name in (said, "iat", "exp")):
            raise TokenError("wrong_claims", f"{said}, iat and exp must be whole numbers")
        if not isinstance(claims["nonce"], str):
            raise TokenError("wrong_claims", "nonce must be text")
        if not hmac.compare_digest(claims["nonce"].encode(), nonce.encode()):
            raise TokenError("wrong_nonce", "the token was made for another occasion (its nonce)")
        _require_age(said, claims[said], at_least, under)
        expires = datetime.fromtimestamp(claims["exp"], UTC)
        kept_until = expires + timedelta(seconds=self._leeway_s)
        if not self._replays.first_use(claims["jti"], kept_until, utc_now()):
            raise TokenError("replayed", "the token was used before; each counts once")
        return Claims(
            claims.get("over"), claims["iss"], claims["jti"], expires, claims.get("under")
        )

    def _decoded(self, token: str) -> dict[str, Any]:
        jwt, _, _ = _imports()
        errors = jwt.exceptions
        try:
            if len(token) > _LONGEST_TOKEN or not all(map(_is_base64url, token.split("."))):
                raise errors.DecodeError("not base64url, or too long")
            header = jwt.get_unverified_header(token)
            key = self._keys.get(header.get("kid"))
            if key is None:
                raise TokenError(
                    "unknown_key",
                    f"signed by the key {str(header.get('kid'))[:60]!r}, which is not in the key "
                    "set; fetch the set again, the keys may have been rotated",
                )
            decoded: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={"require": list(_SHARED_CLAIMS), "strict_aud": True},
            )
            return decoded
        except errors.InvalidSignatureError as error:
            raise TokenError("altered", "the signature does not fit the token") from error
        except errors.InvalidAlgorithmError as error:
            raise TokenError("altered", f"the token is not signed with {_ALGORITHM}") from error
        except errors.ExpiredSignatureError as error:
            raise TokenError("expired", "the token has expired") from error
        except errors.ImmatureSignatureError as error:
            raise TokenError(
                "not_yet_valid", "the token was issued in the future; compare the clocks"
            ) from error
        except errors.InvalidAudienceError as error:
            raise TokenError(
                "wrong_audience", f"the token is not for {self._audience!r}"
            ) from error
        except errors.InvalidIssuerError as error:
            raise TokenError("wrong_issuer", f"the token is not by {self._issuer!r}") from error
        except errors.DecodeError as error:
            raise TokenError("malformed", f"not a JSON Web Token: {error}") from error
        except errors.InvalidTokenError as error:
            raise TokenError("wrong_claims", f"{error}") from error


def _require_age(said: str, age: int, at_least: int | None, under: int | None) -> None:
    """Refuse a token that speaks of the other side, or of too little on this one."""
    if at_least is not None and (said != "over" or age < at_least):
        raise TokenError("too_young", f"the token says {said} {age}, not over {at_least}")
    if under is not None and (said != "under" or age > under):
        raise TokenError("too_old", f"the token says {said} {age}, not under {under}")


# --- files and forms ------------------------------------------------------------------------------


def _imports() -> tuple[Any, Any, Any]:
    """The packages ``jwt``, ``ed25519`` and ``serialization``."""
    try:
        import jwt
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtra("gate", "age tokens") from error
    return jwt, ed25519, serialization


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _is_base64url(text: str) -> bool:
    """Whether it is the one spelling of its bytes."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:  # of binascii too
        return False
    return _base64url(raw) == text


def _public_x(key: Ed25519PrivateKey) -> str:
    return _base64url(key.public_key().public_bytes_raw())


def _key_row(key: PublicKey) -> dict[str, str | None]:
    return {
        "kid": key.kid,
        "x": key.x,
        "created": key.created.astimezone(UTC).isoformat(timespec="seconds"),
        "until": (
            None if key.until is None else key.until.astimezone(UTC).isoformat(timespec="seconds")
        ),
    }


def _read_key(row: Mapping[str, Any]) -> PublicKey:
    key = PublicKey(
        str(row["kid"]),
        str(row["x"]),
        datetime.fromisoformat(row["created"]),
        None if row["until"] is None else datetime.fromisoformat(row["until"]),
    )
    if thumbprint(key.x) != key.kid:
        raise ValueError(f"{key.kid!r} is not the thumbprint of its key")
    return key


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep a second change of the keys out.

    Raises:
        GateError: Another process changes them, or one that did so was stopped.
    """
    path = folder / ".changing"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError as error:
        raise GateError(
            f"{folder}: another process changes the keys; delete {path} if none does"
        ) from error
    try:
        yield
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """Write a file, for its owner only, that appears when it is complete."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


__all__ = [
    "CLAIMS",
    "Claims",
    "PublicKey",
    "ReplayCache",
    "Token",
    "TokenIssuer",
    "TokenKeys",
    "TokenVerifier",
    "thumbprint",
]
