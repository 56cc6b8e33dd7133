"""
Pictures from addresses that a request names, without becoming anybody's way into the network.

Off unless switched on, and then from listed hosts only. One name is resolved once; every address
that it has must be a public one, and the connection goes to an address that was checked and to no
other, so that a name cannot change its mind (DNS rebinding). A redirect is a new address and goes
through the same door. TLS is still asked for the name, by SNI and certificate.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urljoin, urlsplit

import httpcore2

from agelens.errors import ArgumentError
from agelens.server.problems import Problem

if TYPE_CHECKING:
    from agelens.settings import ServerSettings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str], Awaitable[Sequence[str]]]
"""From a host name to its addresses, in order of preference."""
Count = Callable[[int], None]

PORTS: Final = (80, 443)
"""Open to every listed host; another port has to be listed with its host."""
MAX_REDIRECTS: Final = 3
TIMEOUT_S: Final = 10.0
"""For one picture, redirects included."""

_LONGEST_URL: Final = 2048
_AT_A_TIME: Final = 16
_OF_A_REQUEST: Final = 8
_OF_A_PICTURE: Final = frozenset({"url_refused", "fetch_failed"})
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_LABEL: Final = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_TUNNELS: Final = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))
_PRIVATE: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1")
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class HostRule:
    """Where pictures may come from.

    Attributes:
        host: A name or address; with ``suffix`` every name under it; empty with ``suffix`` for any.
        suffix: Whether names under ``host`` are meant, and not ``host`` itself.
        port: The one port, or None for ``PORTS``.
        private: Whether it may lie in a private network.
    """

    host: str
    suffix: bool
    port: int | None
    private: bool = False

    @classmethod
    def parse(cls, text: str, *, private: bool = False) -> HostRule:
        """From ``HOST``, ``*.SUFFIX`` or ``*``, and ``:PORT`` for another port than 80 and 443.

        Raises:
            ArgumentError: It is none of these, or a private one is not one exact host.
        """
        setting = "fetch_allow_private" if private else "fetch_hosts"
        host, port = _split_port(text.strip().lower(), f"{setting} {text!r}")
        suffix = host == "*" or host.startswith("*.")
        bare = "" if host == "*" else host.removeprefix("*.")
        if private and suffix:
            raise ArgumentError(f"{setting} {text!r}: name each host of a private network exactly")
        if host != "*" and _host(bare) is None:
            raise ArgumentError(
                f"{setting} {text!r}: expected a host name, *.SUFFIX or *, and :PORT if need be"
            )
        return cls(bare if suffix else str(_host(bare)), suffix, port, private)

    def covers(self, host: str, port: int) -> bool:
        """Whether a URL's host and port are meant."""
        if port not in (PORTS if self.port is None else (self.port,)):
            return False
        if self.suffix:
            return not self.host or host.endswith(f".{self.host}")
        return host == self.host


@dataclass(frozen=True)
class Target:
    """One address as it will be asked: what a URL says, and nothing that it merely hints at.

    Attributes:
        scheme: "http" or "https".
        host: A lower-case name or an address without brackets.
        port: The port.
        path: Path and query.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Target:
        """Take a URL apart, strictly: one spelling for each host.

        Raises:
            Problem: ``url_refused``.
        """
        if len(url) > _LONGEST_URL:
            raise _refused(f"the address is over {_LONGEST_URL} characters")
        if re.fullmatch(r"[!-~]+", url) is None or "\\" in url:
            raise _refused("an address is printable ASCII without spaces and backslashes")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _refused("this is no address") from error
        if parts.scheme not in ("http", "https"):
            raise _refused("expected an address that begins with https:// or http://")
        if "@" in parts.netloc:
            raise _refused("an address must not hold a user name or a password")
        netloc = parts.netloc.lower()
        name = netloc.rpartition(":")[0] if re.search(r":[0-9]*$", netloc) else netloc
        host = _host(name)
        if host is None:
            raise _refused("its host is neither a name nor an address in its usual spelling")
        if port is None:
            port = 443 if parts.scheme == "https" else 80
        path = parts.path or "/"
        return cls(parts.scheme, host, port, f"{path}?{parts.query}" if parts.query else path)

    @property
    def url(self) -> str:
        """The whole address again."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """Host and port, as the header Host has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.scheme == "https" else 80)
        return host if usual else f"{host}:{self.port}"


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, seen through what wraps it.

    >>> [is_public(ipaddress.ip_address(a)) for a in ("9.9.9.9", "10.0.0.1", "::ffff:127.0.0.1")]
    [True, False, False]
    """
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not (address.is_multicast or address.is_reserved)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    # 6to4 and Teredo end at whatever IPv4 address stands in them; nothing good needs them.
    if address.scope_id is not None or any(address in net for net in _TUNNELS):
        return False
    return address in _GLOBAL_UNICAST and address.is_global


def is_private_network(address: Address) -> bool:
    """Whether it may be a server of one's own: loopback or private, and nothing special.

    Link-local is not: there clouds keep the credentials of a machine (169.254.169.254).
    """
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return is_private_network(address.ipv4_mapped)
    return any(address in network for network in _PRIVATE)


async def resolve(host: str) -> list[str]:
    """The addresses of a name, asked of the system."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Fetcher:
    """Fetches pictures from listed hosts. Keeps no connection and no cookie between two."""

    def __init__(
        self,
        rules: Iterable[HostRule],
        *,
        max_bytes: int,
        timeout_s: float = TIMEOUT_S,
        resolver: Resolver = resolve,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Take the rules.

        Args:
            rules: Where pictures may come from.
            max_bytes: Largest picture.
            timeout_s: For one picture, redirects included.
            resolver: From a name to its addresses.
            ssl_context: For https; by default the system's trust.
        """
        self._rules = tuple(rules)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolve = resolver
        self._ssl_context = ssl_context
        self._turn = asyncio.Semaphore(_AT_A_TIME)

    @classmethod
    def open(cls, settings: ServerSettings) -> Self | None:
        """By the settings ``fetch_...``; None when it is off.

        Raises:
            ArgumentError: A listed host is none.
        """
        if not settings.fetch_urls:
            return None
        private = settings.fetch_allow_private
        rules = [HostRule.parse(text, private=True) for text in private]
        rules += [HostRule.parse(text) for text in settings.fetch_hosts]
        if not rules:
            raise ArgumentError("fetch_urls needs fetch_hosts: the host names to fetch from")
        return cls(rules, max_bytes=settings.max_image_bytes)

    async def fetch(
        self, url: str, *, within_s: float = TIMEOUT_S, count: Count = lambda _: None
    ) -> bytes:
        """The bytes of a picture.

        Args:
            url: Where it is.
            within_s: Seconds from now, the wait for a turn included.
            count: Told of the bytes as they come; what it raises ends the transfer.

        Raises:
            Problem: ``url_refused`` (403) for an address that is not fetched, before anything is
                sent there; ``fetch_failed`` (422) when the other side does not give a picture;
                ``overloaded`` (503) when other pictures are fetched all the time.
        """
        target, end = Target.parse(url), asyncio.get_running_loop().time() + within_s
        try:
            async with asyncio.timeout_at(end):
                await self._turn.acquire()
        except TimeoutError as error:
            raise Problem(
                503,
                "overloaded",
                "too many pictures are being fetched; try again later",
                headers={"retry-after": "1"},
            ) from error
        limit_s = min(self._timeout_s, end - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(limit_s):
                return await self._follow(target, count)
        except TimeoutError as error:
            raise _failed(f"no whole picture came within {limit_s:.3g} s") from error
        finally:
            self._turn.release()

    async def fetch_all(
        self, urls: Sequence[str], *, within_s: float, count: Count = lambda _: None
    ) -> list[bytes | Problem]:
        """The bytes of each picture, or why there are none; several are fetched at a time.

        Args:
            urls: Where they are.
            within_s: Seconds for all of them.
            count: As for ``fetch``.

        Raises:
            Problem: It is not a picture's fault, but ``overloaded``, or what ``count`` raises.
        """
        end = asyncio.get_running_loop().time() + within_s
        turn = asyncio.Semaphore(_OF_A_REQUEST)

        async def one(url: str) -> bytes | Problem:
            async with turn:
                left_s = end - asyncio.get_running_loop().time()
                if left_s <= 0:
                    return _failed(f"the pictures before it took all of the {within_s:g} s")
                try:
                    return await self.fetch(url, within_s=left_s, count=count)
                except Problem as problem:
                    if problem.code in _OF_A_PICTURE:
                        return problem
                    raise

        tasks = [asyncio.create_task(one(url)) for url in urls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, target: Target, count: Count) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._get(target, await self._checked_address(target), count)
            if isinstance(found, bytes):
                return found
            if target.scheme == "https" and found.scheme == "http":
                raise _refused("it redirects from https to http")
            target = found
        raise _failed(f"it redirects more than {MAX_REDIRECTS} times")

    async def _checked_address(self, target: Target) -> Address:
        rule = next((r for r in self._rules if r.covers(target.host, target.port)), None)
        if rule is None:
            raise _refused("this host and port are not among those that pictures come from")
        literal = _literal(target.host)
        if literal is not None:
            found: list[Address] = [literal]
        else:
            try:
                answers = await self._resolve(target.host)
                found = [ipaddress.ip_address(answer) for answer in answers]
            except (OSError, ValueError, UnicodeError) as error:
                raise _failed("its host name has no address") from error
        if not found:
            raise _failed("its host name has no address")
        # One wrong address among right ones is how a rebinding answer looks.
        for address in found:
            if not (is_public(address) or (rule.private and is_private_network(address))):
                raise _refused("its host lies in a network that is not public")
        return found[0]

    async def _get(self, target: Target, address: Address, count: Count) -> bytes | Target:
        scheme, host = target.scheme.encode(), target.host.encode()
        if target.scheme == "https" and self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        connection = httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(scheme, host, target.port),
            ssl_context=self._ssl_context,
            network_backend=_Pinned(address),
        )
        request = httpcore2.Request(
            "GET",
            httpcore2.URL(scheme=scheme, host=host, port=target.port, target=target.path.encode()),
            headers={
                "host": target.authority,
                "accept": "image/*",
                "accept-encoding": "identity",
                "user-agent": "AgeLens",
                "connection": "close",
            },
            extensions={"timeout": dict.fromkeys(("connect", "read", "write"), self._timeout_s)},
        )
        try:
            answer = await connection.handle_async_request(request)
            try:
                return await self._taken(target, answer, count)
            finally:
                await answer.aclose()
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.TimeoutException,
            OSError,
        ) as error:
            raise _failed(f"the connection failed ({type(error).__name__})") from error
        finally:
            await connection.aclose()

    async def _taken(
        self, target: Target, answer: httpcore2.Response, count: Count
    ) -> bytes | Target:
        headers = {name.decode("latin-1").lower(): value for name, value in answer.headers}
        if answer.status in _REDIRECTS:
            place = headers.get("location", b"").decode("latin-1")
            try:
                return Target.parse(urljoin(target.url, place))
            except ValueError as error:
                raise _refused("it redirects to what is no address") from error
        if answer.status != 200:
            raise _failed(f"the other side answered {answer.status}")
        kind = headers.get("content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if not kind.startswith("image/"):
            raise _failed("the other side answered with something that is no picture")
        if headers.get("content-encoding", b"identity").strip().lower() != b"identity":
            raise _failed("the other side compressed the picture, which was not asked for")
        length = headers.get("content-length", b"")
        if length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        async for part in answer.aiter_stream():
            body += part
            if len(body) > self._max_bytes:
                raise self._too_large()
            count(len(part))
        return bytes(body)

    def _too_large(self) -> Problem:
        return Problem(413, "fetch_failed", f"the picture is over {self._max_bytes} bytes")


class _Pinned(httpcore2.AsyncNetworkBackend):
    """Connects to one address, whatever the host is called."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        return await self._backend.connect_tcp(str(self._address), port, timeout)


def _split_port(text: str, where: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.*[^:]|\[.*\]):([0-9]{1,5})", text)
    if match is None or (":" in match[1] and not match[1].startswith("[")):
        return text, None
    port = int(match[2])
    if not 0 < port < 65536:
        raise ArgumentError(f"{where}: {port} is no port")
    return match[1], port


def _host(text: str) -> str | None:
    """A lower-case host in its one spelling, or None: a name, a dotted quad, or [IPv6]."""
    if text.startswith("[") and text.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            return None
    if len(text) > 253 or _NAME.fullmatch(text) is None:
        return None
    # Names that end in a number are addresses to some resolvers: 127.1, 0x7f000001, 0177.0.0.1.
    if _NUMBER.fullmatch(text.rpartition(".")[2]) is None:
        return text
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        return None


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _refused(detail: str) -> Problem:
    return Problem(403, "url_refused", detail)


def _failed(detail: str) -> Problem:
    return Problem(422, "fetch_failed", detail)


__all__ = [
    "Fetcher",
    "HostRule",
    "Resolver",
    "Target",
    "is_private_network",
    "is_public",
    "resolve",
]
