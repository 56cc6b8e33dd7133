"""
The pages of a site beside its cameras: who came, who is there now, and where lines are drawn.

``agelens watch --listen`` serves them from a thread of its own. They are the routes of
``agelens serve`` with a store, behind the same keys, limits and headers, without any worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from zoneinfo import ZoneInfo

from fastapi import APIRouter, FastAPI
from fastapi.responses import RedirectResponse
from starlette.requests import Request

from agelens.errors import AgeLensError
from agelens.server import api, dashboard
from agelens.server.app import Server, address_of, assemble, listen
from agelens.server.dashboard import Snapshot, Visitors
from agelens.server.logs import adopt_server
from agelens.server.service import Service
from agelens.settings import ServerSettings

if TYPE_CHECKING:
    from agelens.analytics.watching import CameraStatus
    from agelens.server.audience import AudienceHub

_ABOUT: Final = frozenset({"/healthz", "/readyz", "/metrics"})


def create_site_app(
    settings: ServerSettings,
    *,
    store: str | Path,
    zone: ZoneInfo,
    audience: AudienceHub | None = None,
    statuses: Callable[[], Sequence[CameraStatus]] | None = None,
    snapshot: Snapshot | None = None,
) -> FastAPI:
    """The application of a site.

    Args:
        settings: Address, keys, limits, and the fewest visitors of a number that is shown.
        store: A file or a URL as for ``open_store``; it is opened to be read only.
        zone: Time zone of sites that the store knows none of.
        audience: Who is there now; None where that is not told.
        statuses: How the cameras are at this moment; called from any thread.
        snapshot: The newest picture of a camera as JPEG, or None; called from any thread. It is
            given on request, to those who may set cameras up, and kept nowhere.

    Raises:
        AgeLensError: The store or the key file cannot be used, or others can reach the address and
            there are no keys.
    """
    visitors = Visitors(
        store,
        zone=zone,
        minimum=settings.minimum,
        statuses=statuses,
        snapshot=snapshot,
    )
    try:
        service = Service.open_site(settings, visitors)
        about = APIRouter(
            routes=[route for route in api.router.routes if getattr(route, "path", "") in _ABOUT]
        )
        described = (dashboard.router, *_audience_api(audience), about)
        app = assemble(service, described, *_home(settings))
    except AgeLensError:
        visitors.close()
        raise
    app.state.audience = audience
    return app


def _audience_api(hub: AudienceHub | None) -> tuple[APIRouter, ...]:
    if hub is None:
        return ()
    from agelens.server import audience

    return (audience.router,)


def _home(settings: ServerSettings) -> tuple[APIRouter, ...]:
    if not settings.pages:
        return ()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def home(request: Request) -> RedirectResponse:
        """The page of visitors is the first one here."""
        return RedirectResponse(f"{request.scope.get('root_path', '')}/visitors")

    return (router,)


class SiteHandle:
    """A site that is being served.

    Attributes:
        address: As "http://127.0.0.1:8080".
    """

    def __init__(self, address: str, server: Server, thread: threading.Thread) -> None:
        self.address = address
        self._server = server
        self._thread = thread

    @property
    def is_alive(self) -> bool:
        """False once it has ended."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Answer what was accepted, and end; safe to call twice, from any other thread."""
        self._server.stop()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve_site(app: FastAPI) -> SiteHandle:
    """Serve a site from a thread of its own; it listens when this returns.

    Args:
        app: Of ``create_site_app``, whose settings say where; port 0 takes a free one.

    Raises:
        ArgumentError: The address is taken, or not one of this computer.
    """
    service: Service = app.state.service
    try:
        listener = listen(service.settings)
    except AgeLensError:
        assert service.visitors is not None
        service.visitors.close()
        raise
    adopt_server(service.log)
    server = Server(app, quiet=True)
    # A daemon: what goes wrong in the command must not leave a process that only serves pages.
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="site", daemon=True
    )
    thread.start()
    return SiteHandle(address_of(listener), server, thread)


__all__ = ["SiteHandle", "create_site_app", "serve_site"]
