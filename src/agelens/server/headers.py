"""
What stands around every answer: host names that are served, security headers, and who may call
from a page elsewhere (nobody, unless listed).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agelens.errors import ArgumentError
from agelens.server.problems import Problem

if TYPE_CHECKING:
    from agelens.settings import ServerSettings

PAGE_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content security of pages: their own files only, nothing inline, nobody's frame."""
DATA_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"
"""Of all other answers, should a browser ever show one."""

ANSWER_HEADERS: Final = "agelens.headers"
"""In an ASGI scope: headers that the answer to come must carry."""

_ALWAYS: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=(), usb=(), payment=()",
}
_TWO_YEARS: Final = "max-age=63072000"
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
_ORIGIN: Final = re.compile(
    r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?"
)


def install(app: FastAPI, settings: ServerSettings) -> None:
    """Put it around an application.

    Raises:
        ArgumentError: A listed host or origin is none, or every page could call a server that asks
            for no key.
    """
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=_origins(settings),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
            expose_headers=["ratelimit", "ratelimit-policy", "retry-after", "x-request-id"],
        )
    app.add_middleware(Surround, hosts=served_hosts(settings))


def served_hosts(settings: ServerSettings) -> tuple[str, ...]:
    """Names that a request may be addressed to; ``*`` for any.

    A server on loopback answers to loopback's names only, unless told others: a page elsewhere
    could point a name of its own to 127.0.0.1 and read the answers as its own (DNS rebinding).

    Raises:
        ArgumentError: A listed host is none, or any name would reach a server that asks for no key.
    """
    from agelens.settings import is_loopback

    if "*" in settings.allowed_hosts and not settings.is_open:
        raise ArgumentError(
            "allowed_hosts *: every page in a browser here could point a name of its own to this "
            "server, which asks for no key; list the names, or pass --keys"
        )
    for name in settings.allowed_hosts:
        if re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]", name) is None:
            raise ArgumentError(
                f"allowed_hosts {name!r}: expected a host name without scheme and port, or *.SUFFIX"
            )
    if settings.allowed_hosts:
        return (*(name.lower() for name in settings.allowed_hosts), *_LOOPBACK_NAMES)
    return _LOOPBACK_NAMES if is_loopback(settings.host) else ("*",)


def is_from_elsewhere(connection: HTTPConnection, origins: Iterable[str] = ()) -> bool:
    """Whether a browser says that a page of another site asks.

    Programs send neither Origin nor Sec-Fetch-Site; every browser in use sends one of them with all
    that can have an effect.

    Args:
        connection: A request or a WebSocket.
        origins: Origins elsewhere that may ask.
    """
    origin = connection.headers.get("origin")
    if origin is not None and origin.lower() in origins:
        return False
    if connection.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    if origin is None:
        return False
    scheme = connection.url.scheme.replace("ws", "http")
    return origin.lower() != f"{scheme}://{connection.headers.get('host', '').lower()}"


class Surround:
    """Refuses host names that are not served, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or stream."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def surrounded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                _add(MutableHeaders(scope=message), scope)
            await send(message)

        if self._serves(Headers(scope=scope).getlist("host")):
            await self.app(scope, receive, surrounded)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            scope["agelens.problem"] = "host_not_allowed"
            problem = Problem(
                400,
                "host_not_allowed",
                "this server does not answer to the host name of the request; list it with "
                "--allowed-hosts",
            )
            await problem.response(scope.get("agelens.request_id"))(scope, receive, surrounded)

    def _serves(self, given: list[str]) -> bool:
        if self.hosts == ("*",):
            return True
        if len(given) != 1:
            return False
        name = re.sub(r":[0-9]*$", "", given[0].lower())
        return any(
            name == host or host == "*" or (host[:2] == "*." and name.endswith(host[1:]))
            for host in self.hosts
        )


def _add(headers: MutableHeaders, scope: Scope) -> None:
    page = headers.get("content-type", "").startswith("text/html")
    found = {
        **_ALWAYS,
        "content-security-policy": PAGE_POLICY if page else DATA_POLICY,
        "cache-control": "no-store",
        **scope.get(ANSWER_HEADERS, {}),
    }
    if scope.get("scheme") == "https":
        found["strict-transport-security"] = _TWO_YEARS
    for name, value in found.items():
        headers.setdefault(name, value)


def _origins(settings: ServerSettings) -> list[str]:
    found = [origin.lower() for origin in settings.cors_origins]
    for origin in found:
        if origin == "*" and not settings.is_open:
            raise ArgumentError(
                "cors_origins *: every page in a browser here could use this server, which asks "
                "for no key; list the origins, or pass --keys"
            )
        if origin != "*" and _ORIGIN.fullmatch(origin) is None:
            raise ArgumentError(
                f"cors_origins {origin!r}: expected an origin, as https://shop.example"
            )
    return found


__all__ = [
    "ANSWER_HEADERS",
    "DATA_POLICY",
    "PAGE_POLICY",
    "Surround",
    "install",
    "is_from_elsewhere",
    "served_hosts",
]
