"""
Who asks, what they may do, and how often: keys, bearer tokens, and this computer's own user.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.requests import HTTPConnection

from agelens.errors import ArgumentError
from agelens.server.bearer import BearerVerifier, TokenRefused
from agelens.server.headers import ANSWER_HEADERS, is_from_elsewhere
from agelens.server.keys import PREFIX, KeyRing
from agelens.server.keys import Scope as Scope
from agelens.server.logs import open_log
from agelens.server.problems import Problem

if TYPE_CHECKING:
    from agelens.server.rates import Verdict
    from agelens.server.service import Service
    from agelens.settings import ServerSettings

_REALM: Final = 'Bearer realm="agelens"'
_FORWARDED: Final = frozenset({"forwarded", "via", "x-real-ip", "cf-connecting-ip"})
_WIDER: Final = {Scope.AUDIENCE: (Scope.VISITORS,)}
"""Scopes that allow what another does: who may see all numbers may see those of now."""
CALLER: Final = "agelens.caller"
"""In an ASGI scope: the id of who was let in, for the log."""
_BEARER: Final = HTTPBearer(
    auto_error=False, description="A key of this service, or a token of its identity provider."
)
_API_KEY: Final = APIKeyHeader(
    name="X-API-Key", auto_error=False, description="A key of this service: al_..."
)


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        id: The key's id, a pseudonym of the token's subject, or "local"; fit for logs.
        scopes: What they may do.
        kind: How they are known.
    """

    id: str
    scopes: frozenset[Scope]
    kind: Literal["key", "bearer", "local"]


class Authority:
    """Knows callers by key or token; with neither configured, this computer's user only."""

    def __init__(
        self,
        ring: KeyRing | None,
        bearer: BearerVerifier | None,
        *,
        origins: tuple[str, ...] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take what is configured.

        Args:
            ring: The keys.
            bearer: The identity provider's tokens.
            origins: Pages elsewhere that may use a server without keys.
            clock: The time that keys expire by.
        """
        self._ring = ring
        self._bearer = bearer
        self._origins = frozenset(origin.lower() for origin in origins)
        self._now = clock

    @classmethod
    def open(cls, settings: ServerSettings) -> Self:
        """By the settings.

        Raises:
            ArgumentError: The key file or the issuer's keys cannot be used, or a server that others
                can reach asks for neither.
        """
        from agelens.settings import is_loopback

        log = open_log(settings.log_level)

        def warn(problem: str) -> None:
            log.warning("keys_not_read", problem=problem)

        ring = None if settings.keys is None else KeyRing(settings.keys, warn)
        bearer = BearerVerifier.open(settings, warn)
        if ring is None and bearer is None and not is_loopback(settings.host):
            raise ArgumentError(
                f"host {settings.host} can be reached by others, and there are no keys; make one "
                "with `agelens keys add NAME --file keys.toml` and pass --keys keys.toml"
            )
        return cls(ring, bearer, origins=settings.cors_origins)

    @property
    def asks(self) -> bool:
        """True when callers need a key or a token."""
        return self._ring is not None or self._bearer is not None

    async def authenticate(
        self, connection: HTTPConnection, credential: str | None = None
    ) -> Caller:
        """Who is at the other end.

        Args:
            connection: A request or a WebSocket.
            credential: A key or token that came another way than by header.

        Raises:
            Problem: 401 ``unauthorized``; 403 ``forbidden`` for a page of another site that reaches
                for a server without keys.
        """
        if not self.asks:
            return self._local(connection)
        shown = _credentials(connection) if credential is None else [credential]
        if not shown:
            raise _unauthorized("send a key: Authorization: Bearer al_..., or X-API-Key")
        if len(shown) > 1:
            raise _unauthorized("send one key, in one header", "invalid_request")
        if shown[0].startswith(PREFIX):
            return self._by_key(shown[0])
        return await self._by_token(shown[0])

    def _by_key(self, text: str) -> Caller:
        key = None if self._ring is None else self._ring.find(text)
        if key is None:
            raise _unauthorized("there is no such key", "invalid_token")
        state = key.state(self._now())
        if state != "active":
            raise _unauthorized(f"the key {key.id} is {state}", "invalid_token")
        return Caller(key.id, frozenset(key.scopes), "key")

    async def _by_token(self, text: str) -> Caller:
        if self._bearer is None:
            raise _unauthorized("there is no such key", "invalid_token")
        try:
            found = await self._bearer.verify(text)
        except TokenRefused as error:
            if error.retry:
                raise Problem(
                    503, "overloaded", f"{error}; try again", headers={"retry-after": "30"}
                ) from error
            raise _unauthorized(str(error), "invalid_token") from error
        return Caller(found.id, found.scopes, "bearer")

    def _local(self, connection: HTTPConnection) -> Caller:
        if is_from_elsewhere(connection, self._origins):
            raise Problem(
                403,
                "forbidden",
                "a page of another site asks, and this server knows no keys; open its own page, "
                "or list the origin with --cors-origins",
            )
        is_here = connection.client is not None and _is_loopback(connection.client.host)
        if not is_here or _came_through_a_proxy(connection):
            raise _unauthorized(
                "this server knows no keys, so that it answers to programs on its own computer "
                "only; make a key with `agelens keys add` and start it with --keys"
            )
        return Caller("local", frozenset(Scope), "local")


async def admit(
    connection: HTTPConnection, scope: Scope, *, credential: str | None = None
) -> Caller:
    """Let a request in, or a stream: within the limits, by who may do this.

    The address is counted before the key is looked at, so that keys cannot be tried out at leisure.

    Raises:
        Problem: 429 ``rate_limited``, 401 ``unauthorized``, 403 ``forbidden``.
    """
    service: Service = connection.app.state.service
    if service.authority.asks:
        address = connection.client.host if connection.client else ""
        _count(connection, service.rates.of_address(address))
    caller = await known(connection, scope, credential=credential)
    connection.scope[CALLER] = caller.id
    if caller.kind != "local":
        _count(connection, service.rates.of_caller(caller.id))
    return caller


async def known(
    connection: HTTPConnection, scope: Scope, *, credential: str | None = None
) -> Caller:
    """Who asks and may do this, at this moment; counts nothing.

    Raises:
        Problem: 401 ``unauthorized``, 403 ``forbidden``.
    """
    service: Service = connection.app.state.service
    caller = await service.authority.authenticate(connection, credential)
    if caller.scopes.isdisjoint({scope, *_WIDER.get(scope, ())}):
        raise Problem(
            403,
            "forbidden",
            f"this needs the scope {scope.value}, which {caller.id} does not have",
            headers={
                "www-authenticate": f'{_REALM}, error="insufficient_scope", scope="{scope.value}"'
            },
        )
    return caller


def count_pictures(connection: HTTPConnection, caller: Caller, pictures: int) -> None:
    """Count the pictures of a request; the first came with the request itself.

    Raises:
        Problem: 429 ``rate_limited``: those of other requests took the limit in the meantime.
    """
    if caller.kind != "local" and pictures > 1:
        service: Service = connection.app.state.service
        _count(connection, service.rates.of_pictures(caller.id, pictures - 1))


def require(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """A dependency of routes: ``caller: Annotated[Caller, Depends(require(Scope.ANALYZE))]``."""

    async def admitted(
        request: Request,
        _bearer: Annotated[Any, Security(_BEARER)],
        _key: Annotated[Any, Security(_API_KEY)],
    ) -> Caller:
        return await admit(request, scope)

    return admitted


def _count(connection: HTTPConnection, verdict: Verdict) -> None:
    connection.scope[ANSWER_HEADERS] = verdict.headers
    if not verdict.admitted:
        raise Problem(
            429,
            "rate_limited",
            f"over {verdict.limit} requests or pictures in {verdict.window_s:g} s for this "
            f"{verdict.name}",
            headers=verdict.headers,
        )


def _credentials(connection: HTTPConnection) -> list[str]:
    found = []
    for value in connection.headers.getlist("authorization"):
        # Other schemes are not for us: a proxy in front may ask for a password of its own.
        scheme, _, text = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            found.append(text.strip())
    return found + [value.strip() for value in connection.headers.getlist("x-api-key")]


def _unauthorized(detail: str, error: str | None = None) -> Problem:
    challenge = _REALM if error is None else f'{_REALM}, error="{error}"'
    return Problem(401, "unauthorized", detail, headers={"www-authenticate": challenge})


def _came_through_a_proxy(connection: HTTPConnection) -> bool:
    """As far as it shows: by a header that proxies add, or by the HTTP/1.0 that nginx speaks."""
    if connection.scope.get("http_version") == "1.0":
        return True
    names = connection.headers.keys()
    return any(name in _FORWARDED or name.startswith("x-forwarded-") for name in names)


def _is_loopback(host: str) -> bool:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


__all__ = ["CALLER", "Authority", "Caller", "Scope", "admit", "count_pictures", "known", "require"]
