"""
Who is in front of the screen now, over HTTP: once, as events, as messages; and a page that adapts.

    GET /v1/audience          what is true now
    GET /v1/audience/slots    the content that the rules choose from, and each picture of it
    GET /v1/audience/events   Server-Sent Events, each a whole state
    WS  /v1/audience/stream   {"type": "hello", "key": ...}, then a message for each state
    GET /signage              a screen that shows what the rules choose

Each event replaces those before: nothing is replayed, and for a client that takes them slowly only
the newest waits. Counts and shares leave; nothing of a single person does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Request, WebSocket
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection
from starlette.responses import FileResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope
from starlette.websockets import WebSocketDisconnect

from agelens.server.auth import CALLER, Caller, Scope, admit, known, require
from agelens.server.logs import where_it_broke
from agelens.server.pages import page_answer
from agelens.server.problems import Problem
from agelens.server.rates import network_of
from agelens.server.service import service_of
from agelens.server.streams import Ended, Hall, first_message, say_goodbye
from agelens.video.rules import IMAGE_TYPES

if TYPE_CHECKING:
    from agelens.video.camera import Moment
    from agelens.video.present import AudienceEvent, LiveAudience
    from agelens.video.rules import RuleBook

router = APIRouter()

PROTOCOL: Final = 1
HEARTBEAT_S: Final = 2.0
"""Seconds without an event after which a sign of life is sent."""
_RETRY_MS: Final = 1000
_SIGN_OF_LIFE: Final = ": still here\n\n"
_LOOK_S: Final = 0.5
_RECHECK_S: Final = 3.0
"""Seconds after which the key is looked up again, so that a revoked one ends its streams."""
_SEND_S: Final = 10.0


class AudienceHub:
    """Takes events from the thread that makes them to the clients of one event loop.

    Attributes:
        live: What makes the events.
    """

    def __init__(self, live: LiveAudience) -> None:
        self.live = live

    def publish(self, moment: Moment) -> None:
        """Take what a camera sees; from any thread."""
        self.live.add(moment)

    @property
    def book(self) -> RuleBook | None:
        """The rules, or None."""
        return self.live.book

    @contextlib.contextmanager
    def subscribed(self) -> Iterator[Subscription]:
        """Events for one client, in the running event loop; the newest is there at once."""
        subscription = Subscription(asyncio.get_running_loop())
        end = self.live.listen(subscription.offer)
        subscription.offer(self.live.newest())
        try:
            yield subscription
        finally:
            end()


class Subscription:
    """What one client has not had yet: the newest event, or nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._newest: AudienceEvent | None = None
        self._there = asyncio.Event()

    def offer(self, event: AudienceEvent) -> None:
        """Take an event in place of the one that waits; from any thread."""
        with self._lock:
            is_first = self._newest is None
            self._newest = event
        if is_first:
            # The loop may be gone: the service ends before the cameras do.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._there.set)

    async def next(self, within_s: float) -> AudienceEvent | None:
        """The newest event that was not taken yet; None when none comes in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._there.wait()
        with self._lock:
            event, self._newest = self._newest, None
            self._there.clear()
        return event


def hub_of(connection: HTTPConnection) -> AudienceHub:
    """The hub of an application.

    Raises:
        Problem: 404 ``not_found``: it has none.
    """
    found: AudienceHub | None = getattr(connection.app.state, "audience", None)
    if found is None:
        raise Problem(404, "not_found", "this server watches no audience")
    return found


# --- what is answered -----------------------------------------------------------------------------


class GroupAnswer(BaseModel):
    """A group of people, as far as the faces tell."""

    name: str
    count: float = Field(description="Expected number of people in it.")
    share: float | None = Field(description="Of those whose faces allow an estimate.")
    confidence: float = Field(description="Probability that the share is right within 0.25.")
    known: int = Field(description="People whose faces allow an estimate.")


class ShowingAnswer(BaseModel):
    """What the rules choose."""

    slot: str
    rule: str | None = Field(description="Rule that chose it; null for the fallback.")
    since: datetime


class AudienceAnswer(BaseModel):
    """Who is in front of the screen now."""

    model_config = ConfigDict(protected_namespaces=())

    id: str = Field(description="As in the events.")
    version: Literal["agelens.audience/1"] = Field(alias="schema")
    site: str
    at: datetime
    cameras: int = Field(description="Cameras that were heard from lately; 0: nothing is known.")
    people: int
    attentive: int
    attention: float | None
    groups: list[GroupAnswer] = Field(
        description="Empty when there are too few people: see `shares_from` of the plan."
    )
    female: GroupAnswer | None
    gender_uncertain: int | None = Field(
        description="People without a clear perceived gender; null when too few are there."
    )
    age_s: float | None = Field(description="Seconds since the newest frame was taken.")
    showing: ShowingAnswer | None


class SlotAnswer(BaseModel):
    """One piece of content."""

    title: str
    text: str
    theme: str
    has_image: bool


class SlotsAnswer(BaseModel):
    """The content that the rules choose from."""

    revision: str = Field(description="Changes with the rules.")
    fallback: str
    slots: dict[str, SlotAnswer]


_Admitted = Annotated[Caller, Depends(require(Scope.AUDIENCE))]


@router.get(
    "/v1/audience",
    tags=["visitors"],
    summary="Who is in front of the screen now",
    response_model=AudienceAnswer,
)
async def audience(request: Request, caller: _Admitted) -> Response:
    """Counts, shares of groups with their confidence, and the content that the rules choose."""
    return Response(_json(hub_of(request).live.newest().to_dict()), media_type="application/json")


@router.get("/v1/audience/slots", tags=["visitors"], summary="The content to choose from")
async def slots(request: Request, caller: _Admitted) -> SlotsAnswer:
    """What a screen needs to show each slot by itself, also when the server is away."""
    return SlotsAnswer.model_validate(_book(request).slots_dict())


@router.get(
    "/v1/audience/slots/{name}/image",
    tags=["visitors"],
    summary="The picture of a slot",
    response_class=Response,
    responses={
        200: {
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in sorted(set(IMAGE_TYPES.values()))
            }
        }
    },
)
async def slot_image(request: Request, name: str, caller: _Admitted) -> Response:
    """The picture, as the rules name it."""
    path = _book(request).image_path(name)
    if path is None or not path.is_file():
        raise Problem(404, "not_found", "there is no such slot, or it has no picture")
    return FileResponse(path, media_type=IMAGE_TYPES[path.suffix.lower()])


def _book(request: Request) -> RuleBook:
    book = hub_of(request).book
    if book is None:
        raise Problem(404, "not_found", "this server has no rules; start it with --audience-rules")
    return book


# --- events ---------------------------------------------------------------------------------------


@router.get(
    "/v1/audience/events",
    tags=["visitors"],
    summary="Server-Sent Events, each a whole state",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(request: Request, caller: _Admitted) -> Response:
    """Events `audience` whose data is what `/v1/audience` answers; the newest comes at once.

    A `Last-Event-ID` leaves out the first event when it is the newest still. Nothing is replayed: a
    state replaces those before. Comments are sent as signs of life.
    """
    return EventStream(request, caller)


class EventStream(Response):
    """An answer without an end: the newest event whenever there is one."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, caller: Caller) -> None:
        # Not the constructor of Response: there is no body, and so no length of one.
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._request = request
        self._caller = caller

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Send events until the client goes, or the service ends."""
        service, hall = service_of(self._request), Hall.of(self._request)
        try:
            with hall.opened(self._caller.id, service):
                await send(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )

                async def say(text: str, *, more: bool = True) -> None:
                    body = text.encode()
                    await send({"type": "http.response.body", "body": body, "more_body": more})

                gone = asyncio.create_task(_wait_for_end(receive))
                try:
                    # A client whose key is revoked hears why when it connects again.
                    with contextlib.suppress(Problem):
                        await self._talk(say, gone)
                finally:
                    gone.cancel()
                await say("", more=False)
        except Ended as end:
            raise Problem(end.close - 4000, end.code, end.message) from end

    async def _talk(self, say: Callable[[str], Awaitable[None]], gone: asyncio.Task[None]) -> None:
        await say(f"retry: {_RETRY_MS}\n\n")
        before = self._request.headers.get("last-event-id")
        async with aclosing(_newest(self._request, gone, before=before)) as found:
            async for event in found:
                await say(_SIGN_OF_LIFE if event is None else _event_text(event))


def _event_text(event: AudienceEvent) -> str:
    return f"id: {event.id}\nevent: audience\ndata: {_json(event.to_dict())}\n\n"


async def _wait_for_end(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _newest(
    connection: HTTPConnection,
    gone: asyncio.Task[None],
    *,
    before: str | None = None,
    credential: str | None = None,
) -> AsyncGenerator[AudienceEvent | None]:
    """Events as they come, and None as a sign of life, until the client or the service goes.

    Args:
        connection: Of the client.
        gone: Done when the client is gone.
        before: Id of the event that it had last.
        credential: The key, where it came another way than by header.

    Raises:
        Problem: The key no longer counts.
    """
    service = service_of(connection)
    started = checked = told = time.monotonic()
    with hub_of(connection).subscribed() as subscription:
        while not (service.closing or gone.done()):
            event = await subscription.next(_LOOK_S)
            now = time.monotonic()
            if now - started > service.settings.stream_max_s:
                return
            if now - checked > _RECHECK_S:
                await known(connection, Scope.AUDIENCE, credential=credential)
                checked = now
            if event is not None and event.id != before:
                told = now
                yield event
            elif now - told >= HEARTBEAT_S:
                told = now
                yield None


def _json(wire: dict[str, Any]) -> str:
    return json.dumps(wire, ensure_ascii=False, separators=(",", ":"))


# --- messages -------------------------------------------------------------------------------------


class Hello(BaseModel):
    """The first message of a client."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["hello"]
    key: str | None = Field(default=None, min_length=1, max_length=4096)


@router.websocket("/v1/audience/stream")
async def stream(websocket: WebSocket) -> None:
    """Send a message for each state until one side ends it."""
    service, hall = service_of(websocket), Hall.of(websocket)
    started, code, sent = time.monotonic(), "closed", 0
    try:
        try:
            address = websocket.client.host if websocket.client else ""
            async with hall.greeted(network_of(address), service.settings.max_streams):
                await websocket.accept()
                hello = await first_message(websocket, Hello)
            caller = await admit(websocket, Scope.AUDIENCE, credential=hello.key)
            with hall.opened(caller.id, service):
                sent = await _talk(websocket, hello)
            raise Ended("over", 408, "the stream is over; connect again")
        except Problem as problem:
            raise Ended.by(problem) from problem
    except Ended as end:
        code = end.code
        await say_goodbye(websocket, end)
    except WebSocketDisconnect:
        pass
    except Exception as error:
        code = "internal"
        service.log.error("failed", **where_it_broke(error))
        await say_goodbye(websocket, Ended("internal", 500, "this is a fault of the server"))
    service.log.info(
        "audience_stream",
        request_id=uuid.uuid4().hex,
        caller=websocket.scope.get(CALLER),
        code=code,
        seconds=round(time.monotonic() - started, 1),
        events=sent,
    )


async def _talk(websocket: WebSocket, hello: Hello) -> int:
    """Send what there is; the number of states."""
    sent = 0
    gone = asyncio.create_task(_listen(websocket))
    try:
        await _send(websocket, {"type": "welcome", "protocol": PROTOCOL})
        async with aclosing(_newest(websocket, gone, credential=hello.key)) as found:
            async for event in found:
                if event is None:
                    await _send(websocket, {"type": "alive"})
                else:
                    sent += 1
                    await _send(websocket, {"type": "audience", **event.to_dict()})
        if gone.done():
            gone.result()
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError, Ended, WebSocketDisconnect):
            await gone
    return sent


async def _listen(websocket: WebSocket) -> None:
    """Wait for the client to go; after its hello it has nothing to say.

    Raises:
        WebSocketDisconnect: It is gone.
        Ended: It said something.
    """
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    raise Ended("bad_message", 400, "after the hello, only the server speaks")


async def _send(websocket: WebSocket, message: dict[str, Any]) -> None:
    try:
        async with asyncio.timeout(_SEND_S):
            await websocket.send_text(_json(message))
    except TimeoutError as error:
        raise Ended("send_timeout", 408, f"messages were not read for {_SEND_S:g} s") from error


# --- the page -------------------------------------------------------------------------------------


@router.api_route("/signage", methods=["GET", "HEAD"], include_in_schema=False)
async def signage_page(request: Request) -> HTMLResponse:
    """A screen that shows what the rules choose."""
    if not service_of(request).settings.pages:
        raise Problem(404, "not_found", "this server has no pages")
    return page_answer(request, "signage")


__all__ = ["HEARTBEAT_S", "AudienceHub", "EventStream", "Subscription", "hub_of", "router"]
