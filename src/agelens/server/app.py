"""
The application: routes, errors and the life of the service, put together; and the running of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import resource
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, cast

import uvicorn
from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import _TrustedHosts

from agelens import __version__
from agelens.errors import ArgumentError
from agelens.server import api, dashboard, gates, headers, pages, problems, streams
from agelens.server.auth import CALLER
from agelens.server.description import describe
from agelens.server.intake import MeasuredBody
from agelens.server.logs import adopt_libraries, where_it_broke
from agelens.server.problems import Problem
from agelens.server.protocol import ConnectionLimits, LimitedProtocol, Refused
from agelens.server.rates import network_of
from agelens.server.service import Service, pool_problems
from agelens.settings import ServerSettings, is_loopback

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
# From SIGTERM on new requests are taken for so long, so that none is cut off in the backlog.
_LAST_CALL_S: Final = 1.0
# What is left of the grace for the workers to end and the journals to close.
_TIDY_S: Final = 1.0
# Files beside connections: workers, keys, policies, journals.
_OTHER_FILES: Final = 64


def create_app(settings: ServerSettings) -> FastAPI:
    """The application with all its routes; it starts its workers when it is served.

    Raises:
        AgeLensError: The model, the key file, a policy or the store cannot be used.
    """
    service = Service.open(settings)
    shown = () if service.visitors is None else (dashboard.router,)
    return assemble(service, (api.router, gates.router, *shown), streams.router)


def assemble(service: Service, described: Sequence[APIRouter], *others: APIRouter) -> FastAPI:
    """An application of routes, with what stands around each request, and the pages.

    Args:
        service: What the routes share.
        described: Those that are part of the API.
        *others: Those that OpenAPI cannot describe, as streams.

    Raises:
        ArgumentError: A host or an origin of the settings is none.
    """
    settings = service.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if service.analyses:
            service.start(getattr(app.state, "on_failure", lambda: None))
        yield
        await service.close()

    app = FastAPI(
        title="AgeLens",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        openapi_url="/openapi.json" if settings.docs else None,
    )
    app.state.service = service
    describe(app, service, described)
    problems.install(app)
    for router in (*described, *others):
        app.include_router(router)
    if settings.pages:
        app.include_router(pages.routes_of(service))
        if service.visitors is not None:
            app.include_router(dashboard.pages_router)
    app.add_middleware(Guard, service=service)
    headers.install(app, settings)
    app.add_middleware(Frame, service=service)
    return app


class Frame:
    """Outside of everything: the id of a request, its line in the log, and its counters."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; streams are let through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = scope["agelens.request_id"] = _request_id(scope)
        start = time.perf_counter()
        status: int | None = None

        async def framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(b"x-request-id", request_id.encode())]
                if self.service.closing:
                    added.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        self.service.metrics.in_flight.inc()
        try:
            await self.app(scope, receive, framed)
        finally:
            self.service.metrics.in_flight.dec()
            self.service.note(
                request_id,
                scope["method"] if scope["method"] in _METHODS else "other",
                _route(scope),
                status,
                scope.get("agelens.problem"),
                time.perf_counter() - start,
                scope.get(CALLER),
            )


class Guard:
    """Inside of the headers: the limits of a body, and the last resort for what went wrong."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; streams are let through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        body = scope["agelens.body"] = MeasuredBody(receive, self.service)
        try:
            body.check_length(scope)
            if self.service.analyses and _is_analysis(scope):
                await self._shed(body)
            await self.app(scope, body.receive, guarded)
        except Exception as error:
            problem = self._explained(error, scope, gone=body.is_gone)
            scope["agelens.problem"] = problem.code
            if not started and not body.is_gone:
                await problem.response(scope["agelens.request_id"])(scope, receive, send)
        finally:
            body.release()

    async def _shed(self, body: MeasuredBody) -> None:
        """Refuse at a full line before anything is spent on the request.

        The body is received, and dropped, so that the connection can be kept.
        """
        if not self.service.ready:
            return
        try:
            with pool_problems():
                self.service.pool.check_room()
        except Problem:
            dropped, most = 0, self.service.settings.max_body_bytes
            while dropped <= most:
                message = await body.receive()
                body.release()
                dropped += len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
            raise

    def _explained(self, error: Exception, scope: Scope, *, gone: bool) -> Problem:
        if isinstance(error, Problem):
            return error
        if gone:
            return Problem(400, "client_gone", "the client went away")
        request_id = scope["agelens.request_id"]
        self.service.log.error("failed", request_id=request_id, **where_it_broke(error))
        return Problem(
            500, "internal", "this is a fault of the server; report it with the request's id"
        )


def _is_analysis(scope: Scope) -> bool:
    return bool(scope["method"] == "POST" and scope["path"] == _ANALYZE)


def _route(scope: Scope) -> str:
    """The template of the route; also of what was refused before a route was looked for."""
    found = str(getattr(scope.get("route"), "path", "unknown"))
    return _ANALYZE if found == "unknown" and _is_analysis(scope) else found


_ANALYZE: Final = "/v1/analyze"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(text):
                return str(text)
    return uuid.uuid4().hex


def _refused(service: Service) -> Refused:
    def refused(problem: Problem, request_id: str) -> None:
        service.note(request_id, "other", "unknown", problem.status, problem.code, 0.0)

    return refused


def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT; prints the address on standard output when it listens.

    Raises:
        AgeLensError: The settings cannot be used, the address is taken, or the workers fail.
    """
    app = create_app(settings)
    service: Service = app.state.service
    listener = listen(settings)
    adopt_libraries(service.log)
    _raise_file_limit(settings, service)
    server = Server(app)
    app.state.on_failure = server.stop
    server.run(sockets=[listener])
    if service.failed is not None:
        raise service.failed


def _config(app: FastAPI) -> uvicorn.Config:
    service: Service = app.state.service
    settings = service.settings
    limits = ConnectionLimits(
        settings.max_connections,
        settings.max_header_bytes,
        settings.header_timeout_s,
        settings.body_timeout_s,
        settings.body_timeout_s,
        settings.connections_per_address,
        _shared_addresses(settings),
    )
    protocol = partial(LimitedProtocol, limits=limits, refused=_refused(service))
    return uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", protocol),
        h11_max_incomplete_event_size=settings.max_header_bytes,
        timeout_keep_alive=math.ceil(settings.keep_alive_s),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=settings.proxy_headers,
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=max(
            1, int(settings.grace_s - min(_LAST_CALL_S, settings.grace_s / 4) - _TIDY_S)
        ),
        ws_max_size=settings.stream_frame_bytes,
        # Encoded pictures do not shrink, and a bomb must not unfold.
        ws_per_message_deflate=False,
    )


def _raise_file_limit(settings: ServerSettings, service: Service) -> None:
    """Take all open files that the system grants, and warn where they are too few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    granted, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_connections + _OTHER_FILES
    if granted != resource.RLIM_INFINITY and granted < needed:
        service.log.warning("few_open_files", granted=granted, needed=needed)


def _shared_addresses(settings: ServerSettings) -> Callable[[str], bool]:
    """Tells addresses that stand for many clients: trusted proxies, and this computer."""
    trusted = _TrustedHosts(list(settings.trusted_proxies) if settings.proxy_headers else [])
    return lambda address: (
        address in trusted or is_loopback(address) or is_loopback(network_of(address))
    )


def listen(settings: ServerSettings) -> socket.socket:
    """The socket to serve on.

    Raises:
        ArgumentError: The address is taken, or not one of this computer.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ArgumentError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; "
            "choose another port"
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Where a socket listens, as "http://127.0.0.1:8000"."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """Takes its leave in an orderly way, and says where it listens unless it is quiet."""

    def __init__(self, app: FastAPI, *, quiet: bool = False) -> None:
        super().__init__(_config(app))
        self._service: Service = app.state.service
        self._quiet = quiet

    def stop(self) -> None:
        """End it, from any thread."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; as in uvicorn."""
        await super().startup(sockets)
        assert sockets is not None
        if not self._quiet:
            print(f"listening on {address_of(sockets[0])}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was accepted, and end; as in uvicorn."""
        self._service.begin_closing()
        await asyncio.sleep(min(_LAST_CALL_S, self._service.settings.grace_s / 4))
        await super().shutdown(sockets)
        # Ending on request is a success: uvicorn would die of the signal it caught.
        self._captured_signals.clear()
