"""
Bearer tokens of an identity provider: JWTs, checked against its published keys.

What is taken is fixed here and not by the token (RFC 8725): asymmetric algorithms only, a key of
the configured set that fits the algorithm, the configured issuer and audience, and an expiry.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jwt

from agelens.errors import ArgumentError
from agelens.server.keys import Scope, WatchedFile

if TYPE_CHECKING:
    from agelens.settings import ServerSettings

ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""No "none", and no HMAC: with it, who knows the public key could sign."""
SCOPE_PREFIX: Final = "agelens:"
"""Scopes may be written with it, where an identity provider serves more than this service."""

_FAMILIES: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_LONGEST_TOKEN: Final = 8192
_LARGEST_SET: Final = 256 * 1024
_LEEWAY_S: Final = 30
_FRESH_S: Final = 300.0
_PAUSE_S: Final = 30.0
"""Between two questions for a key that is not in the set, or after one that failed."""
_FETCH_TIMEOUT_S: Final = 5.0


class TokenRefused(Exception):
    """A token does not hold; says why, without a word of the token.

    Attributes:
        retry: True when the fault may be ours: the keys could not be fetched.
    """

    def __init__(self, why: str, *, retry: bool = False) -> None:
        self.retry = retry
        super().__init__(why)


@dataclass(frozen=True)
class Bearer:
    """Who a token speaks for.

    Attributes:
        id: A pseudonym of issuer and subject, fit for logs.
        scopes: Those of ours that it carries.
    """

    id: str
    scopes: frozenset[Scope]


class BearerVerifier:
    """Checks tokens of one issuer for one audience."""

    def __init__(
        self,
        issuer: str,
        audience: str,
        key_set: KeySet,
        scope_claim: str = "scope",
    ) -> None:
        """Take the settings as they are.

        Args:
            issuer: The ``iss`` that tokens must have, to the letter.
            audience: What ``aud`` must name.
            key_set: The issuer's keys.
            scope_claim: The claim that holds the scopes: words in one text or a list; dots lead
                into objects, as ``realm_access.roles``.
        """
        self._issuer = issuer
        self._audience = audience
        self._key_set = key_set
        self._scope_claim = scope_claim

    @classmethod
    def open(
        cls, settings: ServerSettings, on_problem: Callable[[str], None] = lambda _: None
    ) -> BearerVerifier | None:
        """By the settings ``oidc_...``; None when there is no issuer.

        Raises:
            ArgumentError: The audience or the keys are missing or cannot be read.
        """
        if settings.oidc_issuer is None:
            return None
        if not settings.oidc_audience or not settings.oidc_jwks:
            raise ArgumentError("oidc_issuer needs oidc_audience and oidc_jwks")
        return cls(
            settings.oidc_issuer,
            settings.oidc_audience,
            KeySet.open(settings.oidc_jwks, on_problem),
            settings.oidc_scope_claim,
        )

    async def verify(self, token: str) -> Bearer:
        """Who the token speaks for.

        Raises:
            TokenRefused: It does not hold.
        """
        claims = await self._claims(token)
        subject = claims.get("sub") or claims.get("client_id") or claims.get("azp")
        if not isinstance(subject, str) or not subject:
            raise TokenRefused("the token names no subject (sub)")
        # A subject may be a name or an address of a person; logs get a pseudonym.
        digest = hashlib.sha256(json.dumps([self._issuer, subject]).encode()).hexdigest()
        return Bearer(f"sub-{digest[:12]}", scopes_of(claims, self._scope_claim))

    async def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > _LONGEST_TOKEN:
            raise TokenRefused(f"the token is over {_LONGEST_TOKEN} characters")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise TokenRefused("this is neither a key of this service nor a JWT") from error
        algorithm = header.get("alg")
        if algorithm not in ALGORITHMS:
            raise TokenRefused(f"tokens must be signed with one of {', '.join(ALGORITHMS)}")
        jwk = await self._key_set.key(header.get("kid"), algorithm)
        try:
            found: dict[str, Any] = jwt.decode(
                token,
                jwk,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            raise TokenRefused(_why(error)) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise TokenRefused("the token is malformed") from error
        return found


def scopes_of(claims: Mapping[str, Any], claim: str) -> frozenset[Scope]:
    """Our scopes in a claim; words that are not ours are passed over.

    >>> sorted(scopes_of({"scope": "openid analyze agelens:gate"}, "scope"))
    [<Scope.ANALYZE: 'analyze'>, <Scope.GATE: 'gate'>]
    """
    found: Any = claims.get(claim)
    if found is None:
        found = claims
        for part in claim.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    words = found.split() if isinstance(found, str) else found
    if not isinstance(words, list):
        return frozenset()
    ours = {word.removeprefix(SCOPE_PREFIX) for word in words if isinstance(word, str)}
    return frozenset(scope for scope in Scope if scope.value in ours)


def _why(error: jwt.PyJWTError) -> str:
    reasons: dict[type[jwt.PyJWTError], str] = {
        jwt.ExpiredSignatureError: "the token has expired",
        jwt.ImmatureSignatureError: "the token is not valid yet",
        jwt.InvalidIssuedAtError: "the token is not valid yet",
        jwt.InvalidAudienceError: "the token is for another audience",
        jwt.InvalidIssuerError: "the token is of another issuer",
        jwt.InvalidSignatureError: "the token's signature does not hold",
        jwt.InvalidKeyError: "the issuer's key is too short or of the wrong kind",
    }
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token lacks the claim {error.claim}"
    return next(
        (text for kind, text in reasons.items() if isinstance(error, kind)), "no valid token"
    )


# --- the issuer's keys ----------------------------------------------------------------------------


class KeySet:
    """The public keys of an issuer (RFC 7517), from a file or an https address.

    A file is read again when it changes; an address is asked again when its answer is five minutes
    old, or names no key that a token names, but not more often than every half minute. What was
    good counts on while a newer one cannot be had. For one event loop.
    """

    def __init__(
        self,
        source: Path | str,
        on_problem: Callable[[str], None] = lambda _: None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read a file; an address is asked when the first token comes.

        Args:
            source: A file, or an https address.
            on_problem: Told why the keys could not be had.
            ssl_context: For the address; by default the system's trust.
            clock: Seconds.

        Raises:
            ArgumentError: The file holds no keys.
        """
        self.source = source
        self._file = (
            WatchedFile(source, _read_file, on_problem) if isinstance(source, Path) else None
        )
        self._on_problem = on_problem
        self._ssl_context = ssl_context
        self._clock = clock
        self._keys: list[dict[str, Any]] = []
        self._fetched = self._asked = -float("inf")
        self._lock = asyncio.Lock()

    @classmethod
    def open(cls, source: str, on_problem: Callable[[str], None] = lambda _: None) -> KeySet:
        """A set by a setting: a file is read at once, an address when the first token comes.

        Raises:
            ArgumentError: The address is not https, or the file holds no keys.
        """
        if "://" in source:
            if not source.lower().startswith("https://"):
                raise ArgumentError(f"oidc_jwks {source}: expected a file or an https address")
            return cls(source, on_problem)
        return cls(Path(source), on_problem)

    async def key(self, kid: Any, algorithm: str) -> jwt.PyJWK:
        """The key for a token.

        Args:
            kid: As the token's header names it; a set with one key needs no name.
            algorithm: One of ``ALGORITHMS``.

        Raises:
            TokenRefused: There is no such key, or it is of another kind.
        """
        await self._refresh(unknown=False)
        found = self._fitting(kid, algorithm)
        if len(found) != 1:
            await self._refresh(unknown=True)
            found = self._fitting(kid, algorithm)
        if not self._keys:
            raise TokenRefused("the issuer's keys cannot be had at the moment", retry=True)
        if len(found) != 1:
            raise TokenRefused("the token names no key of the issuer that fits its algorithm")
        try:
            return jwt.PyJWK(found[0], algorithm)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise TokenRefused("the issuer's key cannot be used") from error

    def _fitting(self, kid: Any, algorithm: str) -> list[dict[str, Any]]:
        return [
            key
            for key in self._keys
            if (kid is None or key.get("kid") == kid)
            and key.get("kty") == _FAMILIES[algorithm[:2]]
            and key.get("alg", algorithm) == algorithm
            and key.get("use", "sig") == "sig"
        ]

    async def _refresh(self, *, unknown: bool) -> None:
        if self._file is not None:
            self._keys = self._file.content()
            return
        url = str(self.source)
        async with self._lock:
            now = self._clock()
            fresh = now - self._fetched < _FRESH_S and not unknown
            if fresh or now - self._asked < _PAUSE_S:
                return
            self._asked = now
            try:
                self._keys = _parse(await self._fetch(url), url)
                self._fetched = now
            except ArgumentError as error:
                self._on_problem(str(error))

    async def _fetch(self, url: str) -> bytes:
        import httpx2

        verify = self._ssl_context or True
        try:
            async with (
                asyncio.timeout(_FETCH_TIMEOUT_S),
                httpx2.AsyncClient(verify=verify, follow_redirects=False) as client,
                client.stream("GET", url, headers={"accept": "application/json"}) as answer,
            ):
                if answer.status_code != 200:
                    raise ArgumentError(f"{url}: answered {answer.status_code}, expected keys")
                body = b""
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > _LARGEST_SET:
                        raise ArgumentError(f"{url}: over {_LARGEST_SET} bytes; no set of keys")
                return body
        except (httpx2.HTTPError, TimeoutError, OSError) as error:
            raise ArgumentError(f"{url}: cannot be fetched ({type(error).__name__})") from error


def _read_file(path: Path) -> list[dict[str, Any]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArgumentError(f"oidc_jwks {path}: cannot be read ({error.strerror})") from error
    return _parse(raw, str(path))


def _parse(raw: bytes, where: str) -> list[dict[str, Any]]:
    try:
        document = json.loads(raw)
        rows = document["keys"]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise TypeError("its keys are no list of objects")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArgumentError(f'{where}: no key set; expected {{"keys": [...]}}') from error
    # A symmetric key in a public set is no secret, and private halves have no place in it.
    found = [row for row in rows if row.get("kty") in _FAMILIES.values()]
    if not found:
        raise ArgumentError(f"{where}: holds no public key (RSA, EC or OKP)")
    if any("d" in row for row in found):
        raise ArgumentError(f"{where}: holds a private key; publish the public halves only")
    return found


__all__ = [
    "ALGORITHMS",
    "SCOPE_PREFIX",
    "Bearer",
    "BearerVerifier",
    "KeySet",
    "TokenRefused",
    "scopes_of",
]
