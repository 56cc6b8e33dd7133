"""
The pages of the service, for people: a photograph, the age check, visitors, the interface.

They are shells: each holds its words and forms, and modules of ``static/`` ask the service for
everything else, with the visitor's own key. So a page needs no key and holds no result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from starlette.requests import Request

from agelens import __version__
from agelens.evaluation.pages import render
from agelens.evaluation.plots import PLOT_STYLE
from agelens.server.problems import CODES, Problem
from agelens.server.service import Service, service_of

_HERE: Final = Path(__file__).parent
_PALETTE: Final = "palette.css"
_KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_CACHING: Final = "no-cache"
"""Kept by the browser but asked for again, so that an update reaches it at once."""

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class StaticFile:
    """A file that the pages load.

    Attributes:
        content: Its bytes.
        media_type: For the header Content-Type.
        etag: Changes with the content.
    """

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, name: str, content: bytes) -> StaticFile:
        """A file by its name, whose ending says what it is."""
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, _KINDS[Path(name).suffix], etag)


@cache
def static_files() -> Mapping[str, StaticFile]:
    """Every file that the pages may load, by its name; no other is ever opened for a request.

    The palette is that of the report pages, so that the product has one face.
    """
    found = {
        path.name: path.read_bytes()
        for path in sorted((_HERE / "static").iterdir())
        if path.suffix in _KINDS
    }
    found[_PALETTE] = PLOT_STYLE.encode()
    return MappingProxyType({name: StaticFile.of(name, raw) for name, raw in found.items()})


@dataclass(frozen=True)
class Link:
    """A page in the navigation: name of its template, path, and title."""

    name: str
    path: str
    title: str


def _links(service: Service) -> tuple[Link, ...]:
    found = []
    if service.analyses:
        found += [Link("analyze", "/", "Photograph"), Link("gate", "/gate", "Age check")]
    if service.visitors is not None:
        found.append(Link("visitors", "/visitors", "Visitors"))
        if service.visitors.has_pictures:
            found.append(Link("setup", "/visitors/setup", "Set up"))
    if service.settings.docs:
        found.append(Link("docs", "/docs", "API"))
    return tuple(found)


@lru_cache(maxsize=64)
def _page(name: str, root: str, links: tuple[Link, ...], analyses: bool) -> str:
    context = {
        "root": root,
        "version": __version__,
        "current": name,
        "links": links,
        "analyses": analyses,
        "codes": CODES,
    }
    return render(f"{name}.html.j2", context, folder=_HERE / "templates")


def page_answer(request: Request, name: str) -> HTMLResponse:
    """The page of a template ``NAME.html.j2``, the same for everybody."""
    service = service_of(request)
    root = str(request.scope.get("root_path", ""))
    page = _page(name, root, _links(service), service.analyses)
    return HTMLResponse(page, headers={"Cache-Control": _CACHING})


def routes_of(service: Service) -> APIRouter:
    """The pages that a service has, and the files that they load."""
    left_out = set() if service.settings.docs else {"/docs"}
    if not service.analyses:
        left_out |= {"/", "/gate"}
    kept = [route for route in router.routes if getattr(route, "path", "") not in left_out]
    return APIRouter(routes=kept)


@router.api_route("/", methods=["GET", "HEAD"])
async def analyze_page(request: Request) -> HTMLResponse:
    """Try a photograph or the camera."""
    return page_answer(request, "analyze")


@router.api_route("/gate", methods=["GET", "HEAD"])
async def gate_page(request: Request) -> HTMLResponse:
    """Go through an age check."""
    return page_answer(request, "gate")


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs_page(request: Request) -> HTMLResponse:
    """Read how to call the service."""
    return page_answer(request, "docs")


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def static_file(name: str, request: Request) -> Response:
    """A style sheet, module or drawing of the pages.

    Raises:
        Problem: There is no such file.
    """
    file = static_files().get(name)
    if file is None:
        raise Problem(404, "not_found", "the pages have no such file")
    headers = {"ETag": file.etag, "Cache-Control": _CACHING}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


__all__ = ["Link", "StaticFile", "page_answer", "router", "routes_of", "static_files"]
