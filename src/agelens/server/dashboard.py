"""
Visitors over HTTP: what the store says of a period, how the cameras are, and the pages for it.

    GET /v1/visitors            sites, cameras and zones; what can be asked for
    GET /v1/visitors/overview   a period with its charts
    GET /v1/visitors/csv        one chart of it as a table
    GET /v1/visitors/cameras    the cameras at this moment
    GET /v1/visitors/picture    the newest picture of a camera, to draw lines and zones on

Everything is read from sums with small cells hidden; no single visit leaves the store here. Answers
are made in threads and kept for a short while, so that many tabs cost as much as one.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, TypeVar
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from agelens.errors import ArgumentError, StoreError
from agelens.identifiers import utc_now
from agelens.server.auth import Caller, require
from agelens.server.description import BINARY
from agelens.server.intake import refuse_repeats
from agelens.server.keys import Scope
from agelens.server.logs import where_it_broke
from agelens.server.pages import page_answer
from agelens.server.problems import Problem
from agelens.server.service import service_of

if TYPE_CHECKING:
    from agelens.analytics.charts import Chart
    from agelens.analytics.overview import Overview
    from agelens.analytics.period import Period
    from agelens.analytics.watching import CameraStatus
    from agelens.settings import ServerSettings

Snapshot = Callable[[str], bytes | None]
"""The newest picture of a camera by its name, as JPEG; None while there is none."""
Made = TypeVar("Made")

LONGEST_DAYS: Final = 400
"""Days of a period that is asked for at most."""

_AT_ONCE: Final = 2
_KEPT: Final = 64
_KEPT_S: Final = 15.0
_NAME: Final = 200
_YEARS: Final = (2000, 2100)
_RETRY: Final = {"retry-after": "5"}


# --- what goes over the wire ----------------------------------------------------------------------


class ZoneRow(BaseModel):
    """A zone that somebody stayed in."""

    camera: str
    zone: str


class SiteRow(BaseModel):
    """A place with cameras."""

    name: str
    title: str = Field(description="What pages call it.")
    timezone: str = Field(description="Its days and hours are those of this zone.")
    today: date = Field(description="By its calendar.")
    cameras: list[str]
    zones: list[ZoneRow]


class PlacesAnswer(BaseModel):
    """What can be asked for."""

    sites: list[SiteRow]
    minimum: int = Field(description="Fewest visitors of a number that is shown.")
    live: bool = Field(description="GET /v1/audience tells who is there now.")
    pictures: list[str] = Field(description="Cameras whose newest picture can be asked for.")


class CameraRow(BaseModel):
    """How one camera is."""

    site: str
    camera: str
    state: str = Field(
        description="opening, running, stalled, reconnecting, down, ended, waiting, failed or done."
    )
    is_live: bool = Field(description="A stream or a webcam, not a file.")
    frames_in: int = Field(description="Frames that arrived in this run.")
    dropped: int = Field(description="Frames left out because there was no time for them.")
    reconnects: int
    silent_s: float | None = Field(description="Seconds since the newest frame; null before one.")
    width: int
    height: int
    message: str = Field(description="What is the matter; empty when nothing is.")

    @classmethod
    def of(cls, status: CameraStatus, now: datetime) -> CameraRow:
        """As the watching of the camera tells it."""
        last = status.last_frame_at
        return cls(
            site=status.site,
            camera=status.camera,
            state=status.state,
            is_live=status.is_live,
            frames_in=status.frames_in,
            dropped=status.dropped,
            reconnects=status.reconnects,
            silent_s=None if last is None else round(max(0.0, (now - last).total_seconds()), 1),
            width=status.width,
            height=status.height,
            message=status.message,
        )


class CamerasAnswer(BaseModel):
    """The cameras at this moment."""

    watched: bool = Field(description="False where the cameras are watched by another process.")
    cameras: list[CameraRow]


class OverviewQuery(BaseModel):
    """Which visitors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: str | None = Field(
        None, min_length=1, max_length=_NAME, description="Of this site; else of all."
    )
    camera: str | None = Field(
        None, min_length=1, max_length=_NAME, description="Before this camera; else before any."
    )
    zone: str | None = Field(
        None, min_length=1, max_length=_NAME, description="Who stayed in this zone; else everyone."
    )
    first: date | None = Field(None, description="First day, by the site's calendar; else today.")
    last: date | None = Field(None, description="Last day; else the first.")


class ChartQuery(OverviewQuery):
    """Which visitors, and which chart of them."""

    chart: str = Field(
        pattern=r"^[a-z][a-z-]{0,39}$", description="Name of a chart of GET /v1/visitors/overview."
    )


class ChartRow(BaseModel):
    """One chart."""

    name: str
    title: str
    svg: str = Field(description="One `<svg>` element that takes its colours from the page.")
    head: list[str] = Field(description="Of the same figures as a table.")
    rows: list[list[str]]


class AgainstRow(BaseModel):
    """The same part of an earlier period."""

    title: str = Field(description="The earlier period, in words.")
    before: int | None = Field(description="Visitors then; null for too few, or where unknown.")
    change: float | None = Field(description="0.08 for 8 % more; null where unknown.")


class OverviewAnswer(BaseModel):
    """A period. Every count is a multiple of `minimum`; null stands for too few to be shown."""

    title: str = Field(description="The period, in words.")
    against: list[AgainstRow] = Field(description="The period before, and a week before.")
    overview: dict[str, Any] = Field(
        description="Counts, comparisons, profile, stays, lines, cameras, gaps, alarms and notes."
    )
    charts: list[ChartRow]


class PictureQuery(BaseModel):
    """Which camera."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    camera: str = Field(min_length=1, max_length=_NAME, description="Its name.")


class Kept:
    """What was made lately, by what it was made for; for one event loop.

    Who asks for what is being made already waits for that.
    """

    def __init__(
        self,
        *,
        most: int = _KEPT,
        seconds: float = _KEPT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._held: OrderedDict[Hashable, tuple[float, asyncio.Task[Any]]] = OrderedDict()

    async def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What was made for this key, or make it now, in a thread.

        Raises:
            Exception: What ``make`` raises; that is not kept.
        """
        until, task = self._held.get(key, (0.0, None))
        if task is None or (task.done() and self._clock() >= until):
            task = asyncio.create_task(self._made(key, make))
            self._held[key] = (float("inf"), task)
        self._held.move_to_end(key)
        while len(self._held) > self._most:
            self._held.popitem(last=False)
        # Who goes away must not take the answer from others who wait for it.
        found: Made = await asyncio.shield(task)
        return found

    async def _made(self, key: Hashable, make: Callable[[], Made]) -> Made:
        try:
            async with self._turns:
                made = await asyncio.to_thread(make)
        except BaseException:
            self._held.pop(key, None)
            raise
        if key in self._held:
            self._held[key] = (self._clock() + self._seconds, self._held[key][1])
        return made


@dataclass(frozen=True)
class Drawn:
    """A period and its charts by name."""

    overview: Overview
    charts: Mapping[str, Chart]

    def answer(self) -> OverviewAnswer:
        """Wire form."""
        from agelens.analytics.charts import svg, table

        rows = []
        for name, chart in self.charts.items():
            head, cells = table(chart)
            rows.append(
                ChartRow(
                    name=name,
                    title=chart.title,
                    svg=svg(chart),
                    head=list(head),
                    rows=[list(row) for row in cells],
                )
            )
        found = self.overview
        return OverviewAnswer(
            title=found.period.words,
            against=[
                AgainstRow(title=one.period.words, before=one.before, change=one.change)
                for one in (found.previous, found.week_before)
                if one is not None
            ],
            overview=found.to_dict(),
            charts=rows,
        )


class Visitors:
    """What is shown of visitors: a store that is only read, and the cameras beside it."""

    def __init__(
        self,
        store: str | Path,
        *,
        zone: ZoneInfo,
        minimum: int,
        statuses: Callable[[], Sequence[CameraStatus]] | None = None,
        snapshot: Snapshot | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Open the store.

        Args:
            store: As for ``open_store``.
            zone: Time zone of sites that the store knows none of.
            minimum: Fewest visitors of a number that is shown.
            statuses: How the cameras are at this moment, or None where none are watched here.
            snapshot: See ``Snapshot``; or None.
            now: The present.

        Raises:
            StoreError: There is none, or it cannot be read.
        """
        from agelens.analytics.store import open_store

        self.store = open_store(store, read_only=True)
        self.zone = zone
        self.minimum = minimum
        self.statuses = statuses
        self.snapshot = snapshot
        self.now = now
        self.kept = Kept()

    @classmethod
    def open(cls, settings: ServerSettings) -> Self | None:
        """By the settings; None where they name no store.

        Raises:
            AgeLensError: The store cannot be read, or there is no such time zone.
        """
        if settings.store is None:
            return None
        from agelens.analytics.hours import site_zone

        return cls(settings.store, zone=site_zone(settings.timezone), minimum=settings.minimum)

    def close(self) -> None:
        """Let go of the store; safe to call twice."""
        self.store.close()

    @property
    def has_pictures(self) -> bool:
        """Cameras are watched here, so that their pictures can be asked for."""
        return self.snapshot is not None

    # --- what can be asked for --------------------------------------------------------------------

    def places(self, *, live: bool) -> PlacesAnswer:
        """Sites and cameras of the store, and of those that are watched now; reads the store.

        Args:
            live: Who is there now is told beside.
        """
        known = {site.name: site for site in self.store.sites()}
        places = self._places()
        zones = self.store.zones()
        today = self.now()
        return PlacesAnswer(
            sites=[
                SiteRow(
                    name=name,
                    title=(known[name].title if name in known else "") or name,
                    timezone=self.zone_of(name).key,
                    today=today.astimezone(self.zone_of(name)).date(),
                    cameras=sorted(c for site, c in places if site == name and c is not None),
                    zones=[
                        ZoneRow(camera=camera, zone=zone)
                        for site, camera, zone, *_ in zones
                        if site == name
                    ],
                )
                for name in sorted({site for site, _ in places})
            ],
            minimum=self.minimum,
            live=live,
            pictures=[one.camera for one in self._statuses()] if self.has_pictures else [],
        )

    def zone_of(self, site: str | None) -> ZoneInfo:
        """The time zone of a site; of all together that of the first."""
        for one in self.store.sites():
            if site in (None, one.name):
                return one.zone
        return self.zone

    def _statuses(self) -> Sequence[CameraStatus]:
        return () if self.statuses is None else self.statuses()

    def overview(self, query: OverviewQuery) -> Drawn:
        """A period with its charts; reads the store.

        Raises:
            ArgumentError: There is no such site or camera, or the period is none.
        """
        from agelens.analytics.charts import overview_charts
        from agelens.analytics.overview import overview
        from agelens.analytics.presence import Selection

        self._require_known(query)
        selection = Selection(
            sites=() if query.site is None else (query.site,),
            cameras=() if query.camera is None else (query.camera,),
            zone=query.zone,
        )
        found = overview(
            self.store,
            self._period(query),
            selection=selection,
            minimum=self.minimum,
            now=self.now(),
        )
        return Drawn(found, overview_charts(found))

    def _require_known(self, query: OverviewQuery) -> None:
        places = self._places()
        if query.site is not None and query.site not in {site for site, _ in places}:
            raise ArgumentError("site: there is no such site; GET /v1/visitors names them")
        here = {camera for site, camera in places if query.site in (None, site)}
        if query.camera is not None and query.camera not in here:
            raise ArgumentError("camera: there is no such camera; GET /v1/visitors names them")

    def _places(self) -> set[tuple[str, str | None]]:
        """Sites with each of their cameras; a site that has none yet stands with None."""
        watched = {(one.site, one.camera) for one in self._statuses()}
        named = {(site.name, None) for site in self.store.sites()}
        return {*self.store.cameras(), *watched, *named}

    def _period(self, query: OverviewQuery) -> Period:
        from agelens.analytics.period import Period

        zone = self.zone_of(query.site)
        first = query.first or self.now().astimezone(zone).date()
        last = query.last or first
        known = _YEARS[0] <= first.year and last.year <= _YEARS[1]
        if not known or not 0 <= (last - first).days < LONGEST_DAYS:
            raise ArgumentError(
                f"last: expected 1 to {LONGEST_DAYS} days of {_YEARS[0]} to {_YEARS[1]}, got "
                f"{first} to {last}"
            )
        return Period(first, last, zone)

    def cameras(self) -> CamerasAnswer:
        """How the cameras are at this moment."""
        return CamerasAnswer(
            watched=self.statuses is not None,
            cameras=[CameraRow.of(one, self.now()) for one in self._statuses()],
        )

    def picture(self, camera: str) -> bytes:
        """The newest picture of a camera.

        Raises:
            Problem: 422 ``unknown_camera``; 503 ``no_picture`` while there is none.
        """
        names = [one.camera for one in self._statuses()]
        if self.snapshot is None or camera not in names:
            there_are = "none is watched here" if not names else f"there are: {', '.join(names)}"
            raise Problem(422, "unknown_camera", f"no such camera; {there_are}")
        found = self.snapshot(camera)
        if found is None:
            raise Problem(
                503, "no_picture", "the camera has given no picture yet; try again", headers=_RETRY
            )
        return found


# --- routes ---------------------------------------------------------------------------------------

router = APIRouter()

_CALLER = Annotated[Caller, Depends(require(Scope.VISITORS))]


def visitors_of(request: Request) -> Visitors:
    """What is shown of visitors; routes of it are only there with a store."""
    found = service_of(request).visitors
    assert found is not None
    return found


async def _read(request: Request, key: Hashable, make: Callable[[], Made]) -> Made:
    """Made in a thread, or kept from before.

    Raises:
        Problem: 503 ``store_failed``; 422 ``bad_option``.
    """
    try:
        return await visitors_of(request).kept.get(key, make)
    except StoreError as error:
        service_of(request).log.error("store_failed", **where_it_broke(error))
        raise Problem(
            503, "store_failed", "the visits cannot be read now; try again", headers=_RETRY
        ) from error
    except ArgumentError as error:
        raise Problem(422, "bad_option", str(error)) from error


@router.get("/v1/visitors", tags=["visitors"], summary="What can be asked for")
async def places(request: Request, caller: _CALLER) -> PlacesAnswer:
    """Sites with their cameras, and the fewest visitors of a number that is shown."""
    refuse_repeats(request)
    live = getattr(request.app.state, "audience", None) is not None
    return await _read(request, "places", partial(visitors_of(request).places, live=live))


@router.get("/v1/visitors/overview", tags=["visitors"], summary="A period with its charts")
async def overview(
    request: Request, wanted: Annotated[OverviewQuery, Query()], caller: _CALLER
) -> OverviewAnswer:
    """Who came in a period, against the period before; at most 400 days.

    Days and hours are those of the site's time zone. Counts come in lots, so that no small number
    can be worked out of any two answers.
    """
    refuse_repeats(request)
    found = await _read(request, ("drawn", wanted), partial(visitors_of(request).overview, wanted))
    return await _read(request, ("answer", wanted), found.answer)


@router.get(
    "/v1/visitors/csv",
    tags=["visitors"],
    summary="One chart of a period as a table",
    response_class=Response,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
async def chart_csv(
    request: Request, wanted: Annotated[ChartQuery, Query()], caller: _CALLER
) -> Response:
    """The figures of a chart of the overview, as CSV; those that are hidden say so."""
    from agelens.analytics.charts import csv_text

    refuse_repeats(request)
    query = OverviewQuery(**wanted.model_dump(exclude={"chart"}))
    found = await _read(request, ("drawn", query), partial(visitors_of(request).overview, query))
    if wanted.chart not in found.charts:
        there_are = ", ".join(found.charts) or "none"
        raise Problem(422, "bad_option", f"chart: no such chart of this period; it has {there_are}")
    name = f"{wanted.chart}-{found.overview.period.first}-{found.overview.period.last}.csv"
    return Response(
        csv_text(found.charts[wanted.chart]),
        media_type="text/csv",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


@router.get("/v1/visitors/cameras", tags=["visitors"], summary="The cameras at this moment")
async def cameras(request: Request, caller: _CALLER) -> CamerasAnswer:
    """State, frames and trouble of each camera that this process watches."""
    return await asyncio.to_thread(visitors_of(request).cameras)


@router.get(
    "/v1/visitors/picture",
    tags=["visitors"],
    summary="The newest picture of a camera",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {"schema": BINARY}}}},
)
async def picture(
    request: Request,
    wanted: Annotated[PictureQuery, Query()],
    caller: Annotated[Caller, Depends(require(Scope.ADMIN))],
) -> Response:
    """To draw lines and zones on. It comes from memory and is kept nowhere; wants `admin`."""
    refuse_repeats(request)
    found = await asyncio.to_thread(visitors_of(request).picture, wanted.camera)
    return Response(found, media_type="image/jpeg")


# --- pages ----------------------------------------------------------------------------------------

pages_router = APIRouter(include_in_schema=False)


@pages_router.api_route("/visitors", methods=["GET", "HEAD"])
async def visitors_page(request: Request) -> HTMLResponse:
    """See who came."""
    return page_answer(request, "visitors")


@pages_router.api_route("/visitors/setup", methods=["GET", "HEAD"])
async def setup_page(request: Request) -> HTMLResponse:
    """Draw lines and zones."""
    return page_answer(request, "setup")


__all__ = ["Kept", "Snapshot", "Visitors", "pages_router", "router", "visitors_of"]
