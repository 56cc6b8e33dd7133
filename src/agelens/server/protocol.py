"""
HTTP/1.1 with limits of time and size: uvicorn has none for the head of a request.

A connection is closed when the head of a request does not arrive in time or is too large, when a
body trickles on after its answer, and when an answer is not fetched. Where the answer comes before
the body has arrived, the connection lingers: what still comes is thrown away for a moment, because
closing at once would make the system drop the answer on its way.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import h11
from typing_extensions import override
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from agelens.server.problems import MEDIA_TYPE, Problem
from agelens.server.rates import network_of

_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 64 * 1024 * 1024
_CLOSE: Final = (b"connection", b"close")


@dataclass(frozen=True)
class ConnectionLimits:
    """What one connection may take.

    Attributes:
        connections: Connections at a time; one more is refused.
        header_bytes: Of the head of a request: path, names and values.
        header_s: For the head of a request, from its first byte or the connection's start.
        body_s: For the rest of a request once its head is there.
        write_s: For a client to take a part of its answer.
        connections_of_address: Connections at a time of one address, or network of IPv6; streams
            have a limit of their own.
        is_shared: Whether an address stands for many clients, as a proxy's does.
        open: Connections by address, of all that have these limits.
    """

    connections: int
    header_bytes: int
    header_s: float
    body_s: float
    write_s: float
    connections_of_address: int
    is_shared: Callable[[str], bool]
    open: Counter[str] = field(default_factory=Counter)


Refused = Callable[[Problem, str], None]
"""Told of each problem that was answered here, with the request's id."""


class LimitedProtocol(H11Protocol):
    """One connection."""

    def __init__(
        self, *args: Any, limits: ConnectionLimits, refused: Refused, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._refused = refused
        self._timer: asyncio.TimerHandle | None = None
        self._lingering: int | None = None
        self._counted_as: str | None = None
        self.app = self._watched(self.app)

    # --- life of the connection ------------------------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != getattr(socket, "AF_UNIX", None):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(_Lingering(transport, self))  # type: ignore[arg-type]
        self._arm(self._limits.header_s, self._header_late)
        if len(self.connections) > self._limits.connections:
            self._refuse_connection("there are too many connections")
        elif self._is_one_too_many():
            self._refuse_connection("there are too many connections from this address")

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._uncount()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._lingering -= len(data)
            if self._lingering < 0:
                self.transport.abort()
            return
        if self._timer is None and self._is_idle():
            self._arm(self._limits.header_s, self._header_late)
        super().data_received(data)

    @override
    def eof_received(self) -> None:
        if self._lingering is not None:
            self._end()

    @override
    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._disarm()
        self._uncount()
        assert isinstance(self.transport, _Lingering)
        self.transport = self.transport.whole
        super().handle_websocket_upgrade(event)

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._lingering is not None or not self._is_idle():
            return
        if self.conn.trailing_data[0]:  # the head of a next request has begun to arrive
            self._arm(self._limits.header_s, self._header_late)
        else:
            self._disarm()

    def shutdown(self) -> None:
        """Close as soon as nothing is being answered."""
        if self._lingering is not None:
            self._end()
        else:
            super().shutdown()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    # --- how many there are ----------------------------------------------------------------------

    def _is_one_too_many(self) -> bool:
        """Count the connection with its address; True when that has more than it may."""
        address = self.client[0] if self.client else ""
        if not address or self._limits.is_shared(address):
            return False
        self._counted_as = network_of(address)
        self._limits.open[self._counted_as] += 1
        return self._limits.open[self._counted_as] > self._limits.connections_of_address

    def _uncount(self) -> None:
        if self._counted_as is not None:
            self._limits.open[self._counted_as] -= 1
            if not self._limits.open[self._counted_as]:
                del self._limits.open[self._counted_as]
            self._counted_as = None

    def _refuse_connection(self, why: str) -> None:
        wait = {"retry-after": "1"}
        self._refuse(Problem(503, "overloaded", f"{why}; try again later", headers=wait))

    # --- time ------------------------------------------------------------------------------------

    def _arm(self, seconds: float, late: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _header_late(self) -> None:
        self._refuse(
            Problem(
                408,
                "header_timeout",
                f"the head of the request did not arrive in {self._limits.header_s:g} s",
            )
        )

    def _body_late(self) -> None:
        if self.cycle.more_body:
            self.transport.abort()

    def _answer_late(self, cycle: RequestResponseCycle) -> None:
        if self.cycle is cycle and self.transport.get_write_buffer_size():
            self.transport.abort()

    # --- around the application ------------------------------------------------------------------

    def _watched(self, app: ASGI3Application) -> ASGI3Application:
        async def watched(scope: Any, receive: Any, send: Any) -> None:
            cycle = self.cycle
            # What comes in one packet never was an incomplete head, which h11 would have limited.
            if _head_bytes(scope) > self._limits.header_bytes:
                self._refuse(_head_too_large())
                return
            # The application answers a slow body itself; this ends what it does not read.
            self._arm(self._limits.body_s + 1, self._body_late)

            async def heard() -> Any:
                message = await receive()
                if not cycle.more_body:
                    self._disarm()
                return message

            async def said(message: Any) -> None:
                if message["type"] == "http.response.start" and cycle.more_body:
                    message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
                try:
                    async with asyncio.timeout(self._limits.write_s):
                        await send(message)
                except TimeoutError:
                    self.transport.abort()
                if cycle.response_complete and self.transport.get_write_buffer_size():
                    self.loop.call_later(self._limits.write_s, self._answer_late, cycle)

            if not cycle.more_body:
                self._disarm()
            await app(scope, heard, said)

        return watched

    # --- endings ---------------------------------------------------------------------------------

    def linger(self) -> bool:
        """Keep reading for a moment instead of closing; False when there is nothing to await."""
        if self._lingering is not None:
            return True
        if self.cycle is None or not self.cycle.more_body or self.transport.is_closing():
            return False
        self._start_lingering()
        return True

    def _start_lingering(self) -> None:
        self._lingering = _LINGER_BYTES
        self._unset_keepalive_if_required()
        self._arm(_LINGER_S, self._end)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def _end(self) -> None:
        """Close as soon as the answer is on its way, or the client has had the time to fetch it."""
        self._arm(self._limits.write_s, self.transport.abort)
        assert isinstance(self.transport, _Lingering)  # a stream never lingers
        self.transport.whole.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; called while the parser's error is being handled."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == 431:
            self._refuse(_head_too_large())
        else:
            self._refuse(Problem(400, "bad_request", "this is not a valid HTTP/1.1 request"))

    def _refuse(self, problem: Problem) -> None:
        """Answer with a problem outside the application, then close."""
        self._disarm()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
            cycle.response_complete = True
        request_id = uuid.uuid4().hex
        body = json.dumps(problem.to_dict(request_id)).encode()
        headers = {
            "content-type": MEDIA_TYPE,
            "content-length": str(len(body)),
            "x-request-id": request_id,
            "x-content-type-options": "nosniff",
            "connection": "close",
            **problem.headers,
        }
        head = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
        line = b"HTTP/1.1 %d %s\r\n" % (problem.status, STATUS_PHRASES[problem.status])
        self.transport.write(line + head + b"\r\n" + body)
        self._refused(problem, request_id)
        self._start_lingering()


def _head_bytes(scope: Any) -> int:
    target = len(scope["raw_path"]) + len(scope["query_string"])
    return target + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _head_too_large() -> Problem:
    return Problem(431, "header_too_large", "the head of the request is too large; shorten it")


class _Lingering:
    """A transport whose ``close`` waits for what a client is still sending."""

    def __init__(self, whole: asyncio.Transport, protocol: LimitedProtocol) -> None:
        self.whole = whole
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def close(self) -> None:
        if not self._protocol.linger():
            self.whole.close()
