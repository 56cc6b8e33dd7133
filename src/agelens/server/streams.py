"""
WebSocket /v1/stream: frames in, faces with track ids out; the newest frame wins.

    client -> {"type": "hello", "key": ..., "options": {...}}, then binary frames
    server -> welcome, then for each frame that was looked at a result, or busy
    either -> close; after an error the server closes with 4000 plus the HTTP status of the problem

One frame of a stream is in work and one waits; a newer one takes the place of the one that waits.
What a stream remembers, its tracks and their latest estimates, ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from agelens.fusion import fuse, fuse_genders
from agelens.results import AgeDistribution, Analysis, AnalysisError, Face, GenderEstimate
from agelens.server.api import picture_options
from agelens.server.auth import CALLER, Scope, admit, known
from agelens.server.jobs import PictureOptions
from agelens.server.logs import where_it_broke
from agelens.server.problems import CODES, Problem, faults_of
from agelens.server.rates import network_of
from agelens.server.service import Service, pool_problems, service_of, turns_of
from agelens.server.wire import AnalyzeQuery
from agelens.video.tracking import Tracker

First = TypeVar("First", bound=BaseModel)

router = APIRouter()

PROTOCOL: Final = 1
HELLO_S: Final = 5.0
"""Seconds from the connection to the first message."""
_LONGEST_TEXT: Final = 8192
_GREETINGS_OF_ADDRESS: Final = 16
_ANSWER_S: Final = 5.0
"""Deadline of a frame: later the answer is of no use to a live picture."""
_SEND_S: Final = 10.0
"""Seconds in which the client takes an answer."""
_RECHECK_S: Final = 3.0
"""Seconds after which the key is looked up again, so that a revoked one ends its streams."""
_FUSED_FRAMES: Final = 25
_CORRELATION: Final = 1.0
"""Of the errors of two frames of a person: more frames make an estimate steadier, never surer."""
_LONGEST_REASON: Final = 120


class Hello(BaseModel):
    """The first message of a client."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(pattern="^hello$")
    key: str | None = Field(default=None, min_length=1, max_length=4096)
    options: AnalyzeQuery = Field(default_factory=lambda: AnalyzeQuery.model_validate({}))


class Ended(Exception):
    """The server ends the stream.

    Attributes:
        code: As of a problem, or one of the stream's own.
        close: Close code of the WebSocket.
        message: What was found, what is expected.
    """

    def __init__(self, code: str, status: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.close = 4000 + status
        self.message = message

    @classmethod
    def by(cls, problem: Problem) -> Ended:
        """The end that a problem is."""
        return cls(problem.code, problem.status, str(problem.detail))


@dataclass(eq=False)
class Hall:
    """The streams of one application, so that no caller takes them all.

    Attributes:
        greeting: Until when those that have not said hello yet may do so, by address or network,
            the oldest first.
        open: Streams, by caller.
    """

    greeting: dict[str, list[asyncio.Timeout]] = field(default_factory=dict)
    open: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, connection: HTTPConnection) -> Hall:
        """That of the application behind a connection."""
        state = connection.app.state
        if not hasattr(state, "streams"):
            state.streams = cls()
        found: Hall = state.streams
        return found

    @contextlib.asynccontextmanager
    async def greeted(self, network: str, most: int) -> AsyncIterator[None]:
        """While a connection has not said hello yet.

        Raises:
            Ended: It took too long, too many of its network do so at a time, or all together do and
                no network does more than its own.
        """
        mine = len(self.greeting.get(network, ()))
        if mine >= _GREETINGS_OF_ADDRESS:
            raise Ended("overloaded", 503, "too many connections that have not said hello")
        if sum(map(len, self.greeting.values())) >= most:
            self._make_room(mine)
        try:
            async with asyncio.timeout(HELLO_S) as until:
                self.greeting.setdefault(network, []).append(until)
                try:
                    yield
                finally:
                    self._forget(network, until)
        except TimeoutError as error:
            raise Ended("hello_timeout", 408, f"no hello within {HELLO_S:g} s") from error

    def _make_room(self, mine: int) -> None:
        """End the oldest greeting of the network that has most, so that nobody can take all."""
        network = max(self.greeting, key=lambda name: len(self.greeting[name]))
        if len(self.greeting[network]) <= mine:
            raise Ended("overloaded", 503, "too many connections that have not said hello")
        oldest = self.greeting[network][0]
        self._forget(network, oldest)
        oldest.reschedule(0)

    def _forget(self, network: str, until: asyncio.Timeout) -> None:
        there = self.greeting.get(network, [])
        if until in there:
            there.remove(until)
        if not there:
            self.greeting.pop(network, None)

    @contextlib.contextmanager
    def opened(self, caller: str, service: Service) -> Iterator[None]:
        """While a stream is open.

        Raises:
            Ended: The caller, or all together, have as many as allowed.
        """
        settings = service.settings
        if self.open[caller] >= settings.streams_per_key:
            limit = settings.streams_per_key
            raise Ended("rate_limited", 429, f"{limit} streams are open for this key; close one")
        if self.open.total() >= settings.max_streams:
            raise Ended("overloaded", 503, "too many streams are open; try again later")
        with _counted(self.open, caller), service.metrics.streams.track_inprogress():
            yield


@contextlib.contextmanager
def _counted(counter: Counter[str], name: str) -> Iterator[None]:
    counter[name] += 1
    try:
        yield
    finally:
        counter[name] -= 1
        if not counter[name]:
            del counter[name]


@router.websocket("/v1/stream")
async def stream(websocket: WebSocket) -> None:
    """Answer frames with faces until one side ends it."""
    service, hall = service_of(websocket), Hall.of(websocket)
    started, code, frames = time.monotonic(), "closed", Counter[str]()
    try:
        try:
            address = websocket.client.host if websocket.client else ""
            async with hall.greeted(network_of(address), service.settings.max_streams):
                await websocket.accept()
                hello = await first_message(websocket, Hello)
            caller = await admit(websocket, Scope.ANALYZE, credential=hello.key)
            picture = picture_options(hello.options, service)
            with hall.opened(caller.id, service):
                talk = _Talk(websocket, service, hello, picture, frames, turns_of(caller))
                await talk.run()
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
    seconds = round(time.monotonic() - started, 1)
    service.log.info(
        "stream",
        request_id=uuid.uuid4().hex,
        caller=websocket.scope.get(CALLER),
        code=code,
        seconds=seconds,
        frames=frames.total(),
        answered=frames["answered"],
    )


async def first_message(websocket: WebSocket, model: type[First]) -> First:
    """The first message of a client.

    Args:
        websocket: An accepted one.
        model: What the message has to be; its faults under "options" are told as such.

    Raises:
        Ended: It is none.
    """
    message = await websocket.receive()
    _require_open(message)
    text = message.get("text")
    if text is None:
        raise Ended("bad_message", 400, 'the first message must be text: {"type": "hello"}')
    if len(text) > _LONGEST_TEXT:
        raise Ended("bad_message", 400, f"the hello is longer than {_LONGEST_TEXT} characters")
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        _, (fault, *_) = faults_of(error, "hello")
        is_option = fault["name"].split(".")[0] == "options"
        code = ("bad_option", 422) if is_option else ("bad_message", 400)
        raise Ended(*code, f"hello: {fault['name']}: {fault['message']}") from error


def _require_open(message: Mapping[str, Any]) -> None:
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))


async def say_goodbye(websocket: WebSocket, end: Ended) -> None:
    """Tell why, and close; a client that is gone or takes nothing is left alone."""
    words = {"type": "error", "code": end.code, "message": end.message}
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(_SEND_S):
            if websocket.application_state.name == "CONNECTING" and end.code in CODES:
                wait = {"retry-after": "1"}
                problem = Problem(end.close - 4000, end.code, end.message, headers=wait)
                await websocket.send_denial_response(problem.response())
                return
            if websocket.application_state.name == "CONNECTED":
                await websocket.send_text(json.dumps(words, ensure_ascii=False))
            await websocket.close(end.close, end.code[:_LONGEST_REASON])


# --- frames ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Frame:
    number: int
    data: bytes
    received: float


@dataclass(eq=False)
class _Memory:
    """The latest estimates of one track."""

    ages: deque[AgeDistribution] = field(default_factory=lambda: deque(maxlen=_FUSED_FRAMES))
    genders: deque[GenderEstimate] = field(default_factory=lambda: deque(maxlen=_FUSED_FRAMES))


class _Talk:
    """One stream after its hello."""

    def __init__(
        self,
        websocket: WebSocket,
        service: Service,
        hello: Hello,
        picture: PictureOptions,
        frames: Counter[str],
        turns: str | None,
    ) -> None:
        self._turns = turns
        self._websocket = websocket
        self._service = service
        self._hello = hello
        self._picture = picture
        self._frames = frames
        self._tracker = Tracker()
        self._memories: dict[int, _Memory] = {}
        self._waiting: _Frame | None = None
        self._arrived = asyncio.Event()
        self._received = 0
        self._dropped = 0

    async def run(self) -> None:
        """Take and answer frames until the client goes.

        Raises:
            Ended: A limit was reached, or a message was none.
        """
        settings = self._service.settings
        await self._send(self._welcome(self._service.pool.state().model))
        tasks = {asyncio.create_task(self._take()), asyncio.create_task(self._answer())}
        try:
            done, _ = await asyncio.wait(
                tasks, timeout=settings.stream_max_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            if not done:
                raise Ended("too_long", 408, f"over {settings.stream_max_s:g} s; connect again")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._waiting is not None:
                self._count("unanswered")

    def _welcome(self, model: str) -> dict[str, Any]:
        settings = self._service.settings
        return {
            "type": "welcome",
            "protocol": PROTOCOL,
            "model": model,
            "limits": {
                "frame_bytes": settings.stream_frame_bytes,
                "pixels": settings.max_pixels,
                "in_work": 1,
                "waiting": 1,
                "idle_s": settings.stream_idle_s,
                "total_s": settings.stream_max_s,
                "streams": settings.streams_per_key,
            },
        }

    async def _take(self) -> None:
        """Take frames as they come; the one that waits is replaced."""
        checked = time.monotonic()
        while True:
            data = await self._next()
            self._received += 1
            if self._waiting is not None:
                self._drop("replaced")
            self._waiting = _Frame(self._received, data, time.monotonic())
            self._arrived.set()
            if time.monotonic() - checked > _RECHECK_S:
                await known(self._websocket, Scope.ANALYZE, credential=self._hello.key)
                checked = time.monotonic()

    async def _next(self) -> bytes:
        idle_s = self._service.settings.stream_idle_s
        try:
            async with asyncio.timeout(idle_s):
                message = await self._websocket.receive()
        except TimeoutError as error:
            raise Ended("idle", 408, f"no frame for {idle_s:g} s; connect again") from error
        _require_open(message)
        data: bytes | None = message.get("bytes")
        if not data:
            raise Ended(
                "bad_message", 400, "after the hello, messages are frames: binary, one each"
            )
        if len(data) > self._service.settings.stream_frame_bytes:
            limit = self._service.settings.stream_frame_bytes
            raise Ended("body_too_large", 413, f"a frame has {len(data):,} bytes, of {limit:,}")
        return data

    async def _answer(self) -> None:
        """Answer the frame that waits, then the next, each with the newest there is."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            frame, self._waiting = self._waiting, None
            if frame is None:
                continue
            try:
                with pool_problems():
                    (analysis,) = await self._service.pool.analyze(
                        [frame.data],
                        self._picture,
                        deadline_s=min(_ANSWER_S, self._service.settings.deadline_s),
                        caller=self._turns,
                    )
            except Problem as problem:
                await self._give_up(frame, problem)
                continue
            self._count("answered" if analysis.ok else "unreadable")
            await self._send(self._result(frame, analysis))

    async def _give_up(self, frame: _Frame, problem: Problem) -> None:
        """Tell of a frame that was not looked at, and leave the workers in peace for a while."""
        if problem.code == "poison":
            self._count("unreadable")
            error = AnalysisError("internal", str(problem.detail))
            await self._send(self._result(frame, Analysis(None, 0, 0, (), error)))
            return
        self._drop("refused")
        pause_s = float(problem.headers.get("retry-after", "1"))
        await self._send(
            {
                "type": "busy",
                "frame": frame.number,
                "dropped": self._dropped,
                "code": problem.code,
                "retry_after_ms": round(1000 * pause_s),
            }
        )
        await asyncio.sleep(pause_s)

    def _drop(self, why: str) -> None:
        self._dropped += 1
        self._count(why)

    def _count(self, outcome: str) -> None:
        self._frames[outcome] += 1
        self._service.metrics.stream_frames.labels(outcome).inc()

    async def _send(self, message: Mapping[str, Any]) -> None:
        """Send one message; a client that does not read it in time is left."""
        try:
            async with asyncio.timeout(_SEND_S):
                await self._websocket.send_text(json.dumps(message, ensure_ascii=False))
        except TimeoutError as error:
            raise Ended("send_timeout", 408, f"answers were not read for {_SEND_S:g} s") from error

    # --- answers ----------------------------------------------------------------------------------

    def _result(self, frame: _Frame, analysis: Analysis) -> dict[str, Any]:
        options = self._hello.options
        written = options.written(analysis)
        ids = self._followed(frame, analysis)
        faces = [
            {**wire, "track_id": track, "fused": self._fused(analysis, face, track)}
            for wire, face, track in zip(written["faces"], analysis.faces, ids, strict=True)
        ]
        return {
            "type": "result",
            "frame": frame.number,
            "dropped": self._dropped,
            "latency_ms": round(1000 * (time.monotonic() - frame.received), 1),
            "width": written["width"],
            "height": written["height"],
            "model": written["model"],
            "faces": faces,
            "error": written["error"],
        }

    def _followed(self, frame: _Frame, analysis: Analysis) -> tuple[int | None, ...]:
        """The track of each face; a frame that cannot be read leaves the tracks as they are."""
        if not analysis.ok:
            return ()
        faces = analysis.faces
        update = self._tracker.update(
            [face.box for face in faces], [face.score for face in faces], frame.received
        )
        for track in update.ended:
            self._memories.pop(track.id, None)
        for face, name in zip(faces, update.ids, strict=True):
            if name is not None and not face.age.abstained:
                memory = self._memories.setdefault(name, _Memory())
                memory.ages.append(face.age)
                if face.gender is not None:
                    memory.genders.append(face.gender)
        return update.ids

    def _fused(self, analysis: Analysis, face: Face, track: int | None) -> dict[str, Any] | None:
        """What the latest frames of a track say together; None before there is one."""
        memory = None if track is None else self._memories.get(track)
        if memory is None:
            return None
        fused = replace(
            face,
            age=fuse(memory.ages, correlation=_CORRELATION).age,
            gender=fuse_genders(memory.genders, correlation=_CORRELATION),
        )
        (wire,) = self._hello.options.written(replace(analysis, faces=(fused,)))["faces"]
        return {"age": wire["age"], "gender": wire["gender"], "frames": len(memory.ages)}
