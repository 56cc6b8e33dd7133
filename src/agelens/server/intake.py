"""
From the body of a request to pictures in memory: limits while it arrives, nothing on disk.

    MeasuredBody    around the body of any request: size, time, and memory of all bodies together
    read_parts      multipart/form-data
    read_bytes      any other body
    read_json       a JSON body as the object that it describes
    decoded         base64 text as bytes
    while_connected stops work whose client has gone
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Message, Receive, Scope

from agelens.images import display_name
from agelens.server.problems import Problem, faults_of

if TYPE_CHECKING:
    from agelens.server.service import Service

Wanted = TypeVar("Wanted", bound=BaseModel)
Result = TypeVar("Result")

_HEADERS_OF_A_PART: Final = 8
_HEADER_BYTES: Final = 4096
_NAME_LENGTH: Final = 255
_MOST_COMMAS: Final = 65_536
"""Of a JSON body, many times what pictures need: a parsed member takes fifty times its text."""


class MeasuredBody:
    """The body of one request as it arrives.

    Raises from ``receive``:
        Problem: 413 when it is too large, 408 when it comes too slowly, 503 when the bodies of
            all requests together take too much memory.
    """

    def __init__(self, receive: Receive, service: Service) -> None:
        self._receive = receive
        self._service = service
        self._settings = service.settings
        self._end = asyncio.get_running_loop().time() + service.settings.body_timeout_s
        self._size = 0
        self._is_whole = False
        self.is_gone = False

    @staticmethod
    def of(request: Request) -> MeasuredBody:
        """That of a request."""
        found: MeasuredBody = request.scope["agelens.body"]
        return found

    def check_length(self, scope: Scope) -> None:
        """Refuse at once a body that says itself that it is too large."""
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._settings.max_body_bytes:
                raise self._too_large(f"has {int(value):,} bytes")

    async def receive(self) -> Message:
        """The next message; as in ASGI."""
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError as error:
            raise Problem(
                408,
                "body_timeout",
                f"the body did not arrive in {self._settings.body_timeout_s:g} s; send smaller "
                "pictures, or fewer",
            ) from error
        if message["type"] == "http.disconnect":
            self.is_gone = True
            return message
        self.add(len(message.get("body", b"")))
        self._is_whole = not message.get("more_body", False)
        return message

    def add(self, count: int) -> None:
        """Count further bytes that are held for the request, such as pictures fetched for it.

        Raises:
            Problem: 413 or 503, as for the body itself.
        """
        self._size += count
        self._service.bodies += count
        if self._size > self._settings.max_body_bytes:
            raise self._too_large("goes on")
        if self._service.bodies > self._settings.max_bodies_bytes:
            raise Problem(
                503,
                "overloaded",
                "other requests fill the memory for bodies; try again later",
                headers={"retry-after": "1"},
            )

    def release(self) -> None:
        """The request is over and its body is no longer held."""
        self._service.bodies -= self._size
        self._size = 0

    def _too_large(self, found: str) -> Problem:
        limit = self._settings.max_body_bytes
        return Problem(
            413,
            "body_too_large",
            f"the body {found}, over the limit of {limit:,}; send smaller pictures, or fewer",
            limit=limit,
        )


@dataclass
class Part:
    """One part of a multipart body.

    Attributes:
        name: Name of the form field.
        filename: What the client calls the file, or None where it is no file.
        content_type: What the client says of it, in lower case, without parameters.
        data: The content.
    """

    name: str = ""
    filename: str | None = None
    content_type: str = ""
    data: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        """The content as text.

        Raises:
            Problem: It is not UTF-8.
        """
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Problem(400, "bad_multipart", f"part {self.name!r} is not UTF-8 text") from error


async def read_bytes(request: Request) -> bytes:
    """The whole body; limits hold while it arrives."""
    return b"".join([chunk async for chunk in request.stream()])


async def read_json(request: Request, model: type[Wanted]) -> Wanted:
    """A JSON body as the object that it describes, strict about types.

    Raises:
        Problem: It is not JSON (400 ``bad_json``), not that object (422 ``bad_json``), or its list
            is too long (422 ``too_many_images``).
    """
    body = await read_bytes(request)
    if body.count(b",") > _MOST_COMMAS:
        raise Problem(
            422, "bad_json", f"the body has over {_MOST_COMMAS:,} members; send several requests"
        )
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        kind, faults = faults_of(error, "body")
        is_json = kind != "json_invalid"
        code = "too_many_images" if kind == "too_long" else "bad_json"
        raise Problem(
            422 if is_json else 400, code, f"body: {faults[0]['message']}", faults=faults
        ) from error


async def read_parts(request: Request, limit: int, allowed: Sequence[str]) -> list[Part]:
    """The parts of a multipart/form-data body, in order, all in memory.

    Args:
        request: Its content type is multipart/form-data.
        limit: Parts to accept at most.
        allowed: Names of the form fields to accept.

    Raises:
        Problem: The body is not multipart (400 ``bad_multipart``), or has too many parts
            (422 ``too_many_images``).
    """
    _, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise Problem(
            400, "bad_multipart", "the content type has no boundary; let the client set it"
        )
    collector = _Collector(limit, allowed)
    try:
        parser = MultipartParser(
            boundary,
            collector.callbacks(),  # type: ignore[arg-type]
            max_header_count=_HEADERS_OF_A_PART,
            max_header_size=_HEADER_BYTES,
        )
        async for chunk in request.stream():
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, "bad_multipart", f"the multipart body is broken: {error}") from error
    if not collector.is_ended:
        raise Problem(400, "bad_multipart", "the multipart body ends before its last boundary")
    return collector.parts


class _Collector:
    """Takes what the multipart parser finds."""

    def __init__(self, limit: int, allowed: Sequence[str]) -> None:
        self.parts: list[Part] = []
        self.is_ended = False
        self._limit = limit
        self._allowed = allowed
        self._name = bytearray()
        self._value = bytearray()

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == self._limit:
            raise Problem(
                422,
                "too_many_images",
                f"there are more than {self._limit} parts; send several requests",
                limit=self._limit,
            )
        self.parts.append(Part())

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += memoryview(data)[start:end]

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name, value = bytes(self._name).lower(), bytes(self._value)
        self._name, self._value = bytearray(), bytearray()
        part = self.parts[-1]
        if name == b"content-disposition":
            kind, options = parse_options_header(value)
            if kind == b"form-data":
                part.name = display_name(options.get(b"name", b""))
                filename = options.get(b"filename")
                part.filename = None if filename is None else shown_name(display_name(filename))
        elif name == b"content-type":
            part.content_type = display_name(parse_options_header(value)[0])
        elif name == b"content-transfer-encoding" and value.lower() not in _PLAIN:
            raise Problem(
                400,
                "bad_multipart",
                "a part has a Content-Transfer-Encoding; send its bytes as they are",
            )

    def _headers_end(self) -> None:
        part = self.parts[-1]
        if part.name not in self._allowed:
            raise Problem(
                422,
                "bad_multipart",
                f"part {len(self.parts)} is not named {' or '.join(map(repr, self._allowed))}",
            )

    def _end(self) -> None:
        self.is_ended = True


_PLAIN: Final = (b"binary", b"8bit", b"7bit")


def shown_name(name: str) -> str:
    """A client's name for a picture, short enough to be carried through."""
    return name[:_NAME_LENGTH]


def decoded(text: str, where: str) -> bytes:
    """The bytes that base64 text stands for.

    Raises:
        Problem: It is not base64; 422 ``bad_json``.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(
            422,
            "bad_json",
            f"{where}: not base64 (RFC 4648, with padding and without line breaks or a data: "
            "prefix)",
        ) from error


def refuse_repeats(request: Request) -> None:
    """A parameter that is given twice would silently count once.

    Raises:
        Problem: 422 ``bad_option``.
    """
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if count > 1:
            raise Problem(422, "bad_option", f"{shown_name(name)}: given more than once")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do work for a request, and stop as soon as its client goes away.

    Args:
        request: Its body has been read.
        work: What is cancelled when the connection is closed.

    Raises:
        Problem: The client went away; nobody will read it.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Problem(400, "client_gone", "the client went away")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def media_type(request: Request) -> str:
    """The content type in lower case, without parameters.

    Raises:
        Problem: The body is encoded as a whole, as with gzip; 415.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Problem(
            415, "unsupported_media_type", "the body has a Content-Encoding; send it as it is"
        )
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
