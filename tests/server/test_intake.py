"""Bodies that are too large, too slow, broken or lying, over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import uvicorn
from PIL import Image

from agelens.server.protocol import ConnectionLimits, LimitedProtocol
from server.conftest import RunningServer, close, launch

MIB = 1024 * 1024
POST = "POST /v1/analyze HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@dataclass(frozen=True)
class Raw:
    """An answer as it came over a socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        found = json.loads(self.body)
        assert found["status"] == self.status
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def strict(own_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of little patience, whose temporary files would be seen."""
    folder = tmp_path_factory.mktemp("strict")
    (folder / "tmp").mkdir()
    running = launch(
        folder,
        "--workers",
        "1",
        *("--set", "header_timeout_s=1.5"),
        *("--set", "body_timeout_s=2"),
        *("--set", f"max_bodies_bytes={60 * MIB}"),
        env={"TMPDIR": str(folder / "tmp")},
    )
    yield running
    close(running)


def _connect(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def _answer(connection: socket.socket) -> Raw:
    """Read one answer; an empty one has status 0."""
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            chunk = connection.recv(65536)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            return Raw(0, {}, data)
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return Raw(int(first.split()[1]), headers, body)


def _send(server: RunningServer, head: str, body: bytes = b"") -> Raw:
    with closing(_connect(server)) as connection:
        connection.sendall(head.encode("latin-1") + b"\r\n" + body)
        return _answer(connection)


def _multipart(
    *parts: bytes, boundary: str = "b0", end: bytes = b"--b0--\r\n"
) -> tuple[str, bytes]:
    body = b"".join(b"--b0\r\n" + part + b"\r\n" for part in parts) + end
    kind = f"multipart/form-data; boundary={boundary}"
    return f"{POST}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n", body


_PART = b'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'


# --- too large ------------------------------------------------------------------------------------


def test_a_body_that_says_that_it_is_too_large_is_refused_unread(strict: RunningServer) -> None:
    start = time.monotonic()

    answer = _send(strict, f"{POST}Content-Type: image/jpeg\r\nContent-Length: 600000000\r\n")

    assert (answer.status, answer.problem["code"]) == (413, "body_too_large")
    assert answer.problem["limit"] == 25 * MIB
    assert answer.headers["connection"] == "close"
    assert time.monotonic() - start < 1


def test_a_body_without_an_end_is_cut_off_and_takes_no_memory(strict: RunningServer) -> None:
    front = psutil.Process(strict.process.pid)
    before = front.memory_info().rss
    peak = before
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    sent = 0
    with closing(_connect(strict)) as connection:
        connection.sendall(
            f"{POST}Content-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        try:
            for _ in range(600):
                connection.sendall(chunk)
                sent += 1
                peak = max(peak, front.memory_info().rss)
        except OSError:
            pass
        answer = _answer(connection)

    assert (answer.status, answer.problem["code"]) == (413, "body_too_large")
    assert sent < 120
    assert peak - before < 50 * MIB


def test_all_bodies_together_have_a_limit_too(strict: RunningServer) -> None:
    head = f"{POST}Content-Type: image/jpeg\r\nContent-Length: {24 * MIB}\r\n\r\n".encode()
    held = [_connect(strict) for _ in range(2)]
    for connection in held:
        connection.sendall(head + bytes(23 * MIB))
    with closing(_connect(strict)) as third:
        third.sendall(head + bytes(15 * MIB))
        answer = _answer(third)
    for connection in held:
        connection.close()

    assert (answer.status, answer.problem["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "1"
    time.sleep(0.5)
    assert (
        _send(strict, f"{POST}Content-Type: image/jpeg\r\nContent-Length: 1\r\n", b"x").status
        == 422
    )


def test_a_head_that_is_too_large_is_refused(strict: RunningServer) -> None:
    one = _send(strict, f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: {'a' * MIB}\r\n")
    many = _send(strict, "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + "A: b\r\n" * 10_000)
    path = _send(strict, f"GET /{'a' * MIB} HTTP/1.1\r\nHost: 127.0.0.1\r\n")

    for answer in (one, many, path):
        assert (answer.status, answer.problem["code"]) == (431, "header_too_large")


def test_ten_thousand_parts_are_refused_at_the_first_too_many(strict: RunningServer) -> None:
    head, body = _multipart(*([_PART + b"x"] * 10_000))

    answer = _send(strict, head, body)

    assert (answer.status, answer.problem["code"]) == (422, "too_many_images")
    assert answer.problem["limit"] == 32


def test_a_part_with_a_header_of_a_megabyte_is_refused(strict: RunningServer) -> None:
    head, body = _multipart(b"X-Long: " + b"a" * MIB + b"\r\n" + _PART + b"x")

    answer = _send(strict, head, body)

    assert (answer.status, answer.problem["code"]) == (400, "bad_multipart")


def test_a_part_with_many_headers_is_refused(strict: RunningServer) -> None:
    head, body = _multipart(b"X: y\r\n" * 1000 + _PART + b"x")

    assert _send(strict, head, body).problem["code"] == "bad_multipart"


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"images":' * 50_000,
        b'{"images": [' + b'{"base64": ' * 10_000,
        b'{"images": [' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"]}",
    ],
    ids=["lists", "tables", "both", "closed"],
)
def test_deep_json_is_refused(strict: RunningServer, text: bytes) -> None:
    head = f"{POST}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n"

    answer = _send(strict, head, text)

    assert answer.status in (400, 422)
    assert answer.problem["code"] == "bad_json"


def test_a_huge_base64_text_is_answered_like_any_other(strict: RunningServer) -> None:
    text = b'{"images": [{"base64": "' + b"A" * (24 * MIB) + b'"}]}'

    answer = _send(
        strict, f"{POST}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n", text
    )

    assert (answer.status, answer.problem["code"]) == (422, "unreadable_image")


# --- too slow -------------------------------------------------------------------------------------


def test_a_head_that_trickles_is_ended_in_time(strict: RunningServer) -> None:
    start = time.monotonic()
    with closing(_connect(strict)) as connection:
        for byte in b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n":
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
            connection.settimeout(0.2)
            try:
                first = connection.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                first = b""
        connection.settimeout(10)
        answer = _answer(connection)

    assert first
    assert (answer.status, answer.problem["code"]) == (408, "header_timeout")
    assert 1 < time.monotonic() - start < 6


def test_a_connection_that_says_nothing_is_ended_in_time(strict: RunningServer) -> None:
    start = time.monotonic()
    with closing(_connect(strict)) as connection:
        answer = _answer(connection)
        ended = connection.recv(1)

    assert (answer.status, ended) == (408, b"")
    assert 1 < time.monotonic() - start < 6


def test_a_second_request_on_a_connection_has_its_own_time(strict: RunningServer) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with closing(_connect(strict)) as connection:
        connection.sendall(request)
        first = _answer(connection)
        time.sleep(2)  # idle between requests for longer than a head may take
        connection.sendall(request)
        second = _answer(connection)
        connection.sendall(request[:20])
        third = _answer(connection)

    assert (first.status, second.status, third.status) == (200, 200, 408)


def test_a_body_that_trickles_is_ended_in_time(strict: RunningServer) -> None:
    start = time.monotonic()
    with closing(_connect(strict)) as connection:
        connection.sendall(
            f"{POST}Content-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n".encode()
        )
        connection.settimeout(0.2)
        data = b""
        while not data and time.monotonic() - start < 10:
            connection.sendall(b"x")
            try:
                data = connection.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
        connection.settimeout(10)
        answer = _answer(connection)

    assert (answer.status, answer.problem["code"]) == (408, "body_timeout")
    assert 1.5 < time.monotonic() - start < 7


def test_what_trickles_on_after_its_answer_is_cut_off(strict: RunningServer) -> None:
    head = "POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
    start = time.monotonic()
    with closing(_connect(strict)) as connection:
        connection.sendall(head.encode())
        answer = _answer(connection)
        is_cut = False
        while not is_cut and time.monotonic() - start < 15:
            time.sleep(0.1)
            try:
                connection.sendall(b"x")
            except OSError:
                is_cut = True

    assert answer.status == 404
    assert is_cut
    assert time.monotonic() - start < 8


def test_a_client_that_fetches_no_answer_is_ended(strict: RunningServer) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    start = time.monotonic()
    is_cut = False
    with closing(_connect(strict)) as connection:
        connection.settimeout(0.2)
        while not is_cut and time.monotonic() - start < 20:
            try:
                connection.sendall(request * 20)
            except TimeoutError:
                continue
            except OSError:
                is_cut = True

    assert is_cut
    assert strict.get("/healthz").status_code == 200


def test_slow_clients_do_not_keep_others_waiting(strict: RunningServer) -> None:
    slow = [_connect(strict) for _ in range(200)]
    for connection in slow:
        connection.sendall(b"GET /hea")
    start = time.monotonic()

    answers = [strict.get("/healthz").status_code for _ in range(20)]

    elapsed = time.monotonic() - start
    for connection in slow:
        connection.close()
    assert answers == [200] * 20
    assert elapsed < 8


# --- broken and lying -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "body", "status", "code"),
    [
        ("Content-Type: image/jpeg\r\nContent-Length: -1\r\n", b"", 400, "bad_request"),
        ("Content-Type: image/jpeg\r\nContent-Length: x\r\n", b"", 400, "bad_request"),
        ("Content-Length: 1\r\nContent-Length: 2\r\n", b"xx", 400, "bad_request"),
        ("Transfer-Encoding: gzip\r\n", b"", 400, "bad_request"),
        ("Transfer-Encoding: chunked\r\n", b"zz\r\n", 400, "bad_request"),
        ("Content-Type: image/jpeg\r\n", b"", 422, "no_image"),
        ("Content-Type: image/jpeg\r\nContent-Length: 0\r\n", b"", 422, "no_image"),
        ("Content-Length: 1\r\n", b"x", 415, "unsupported_media_type"),
        ("Content-Type: text/html\r\nContent-Length: 1\r\n", b"x", 415, "unsupported_media_type"),
        (
            "Content-Type: image/png\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n",
            b"x",
            415,
            "unsupported_media_type",
        ),
        ("Content-Type: multipart/form-data\r\nContent-Length: 1\r\n", b"x", 400, "bad_multipart"),
        (
            f"Content-Type: multipart/form-data; boundary={'b' * 300}\r\nContent-Length: 1\r\n",
            b"x",
            400,
            "bad_multipart",
        ),
        ("Content-Type: application/json\r\nContent-Length: 1\r\n", b"{", 400, "bad_json"),
        ("Content-Type: application/json\r\nContent-Length: 2\r\n", b"[]", 422, "bad_json"),
        ("Content-Type: application/json\r\nContent-Length: 2\r\n", b"\xff\xfe", 400, "bad_json"),
        ("Content-Type: application/json\r\nContent-Length: 3\r\n", b"NaN", 422, "bad_json"),
        (
            "Content-Type: application/json\r\nContent-Length: 13\r\n",
            b'{"images":[]}',
            422,
            "bad_json",
        ),
    ],
)
def test_a_broken_request_is_told_what_is_wrong(
    strict: RunningServer, head: str, body: bytes, status: int, code: str
) -> None:
    answer = _send(strict, POST + head, body)

    assert (answer.status, answer.problem["code"]) == (status, code)
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("parts", "end", "code"),
    [
        ([], b"--b0--\r\n", "no_image"),
        ([_PART + b"x"], b"", "bad_multipart"),
        ([_PART + b"x"], b"--b0", "bad_multipart"),
        (
            [b'Content-Disposition: form-data; name="picture"\r\n\r\nx'],
            b"--b0--\r\n",
            "bad_multipart",
        ),
        ([b"\r\nx"], b"--b0--\r\n", "bad_multipart"),
        ([b"no header\r\n\r\nx"], b"--b0--\r\n", "bad_multipart"),
        ([b"Content-Transfer-Encoding: base64\r\n" + _PART + b"x"], b"--b0--\r\n", "bad_multipart"),
        ([_PART], b"--b0--\r\n", "unreadable_image"),
    ],
)
def test_a_broken_form_is_told_what_is_wrong(
    strict: RunningServer, parts: list[bytes], end: bytes, code: str
) -> None:
    head, body = _multipart(*parts, end=end)

    assert _send(strict, head, body).problem["code"] == code


def test_what_is_not_http_is_refused(strict: RunningServer) -> None:
    for data in (b"\x16\x03\x01\x02\x00\x01" + os.urandom(200), b"hello\r\n\r\n", b"\x00" * 100):
        with closing(_connect(strict)) as connection:
            connection.sendall(data + b"\r\n\r\n")
            answer = _answer(connection)
        assert (answer.status, answer.problem["code"]) == (400, "bad_request")


def test_a_client_that_leaves_in_the_middle_harms_nobody(strict: RunningServer) -> None:
    for _ in range(20):
        connection = _connect(strict)
        connection.sendall(
            f"{POST}Content-Type: image/jpeg\r\nContent-Length: 9999\r\n\r\nxx".encode()
        )
        connection.close()

    assert strict.get("/healthz").status_code == 200


def test_work_for_a_client_that_left_is_dropped(strict: RunningServer, photo: bytes) -> None:
    large = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize((3000, 3000)).save(large, "JPEG", quality=60)
    head, body = _multipart(*([_PART + large.getvalue()] * 32))
    before = strict.log.read_text().count('"client_gone"')
    connection = _connect(strict)
    connection.sendall(head.encode() + b"\r\n" + body)
    time.sleep(0.3)  # until the work has begun
    connection.close()

    end = time.monotonic() + 20
    while strict.log.read_text().count('"client_gone"') == before and time.monotonic() < end:
        time.sleep(0.1)
    assert strict.log.read_text().count('"client_gone"') == before + 1
    assert 'agelens_tasks_unfinished_total{reason="abandoned"}' in strict.get("/metrics").text


@dataclass(frozen=True)
class Small:
    """A server in this process that takes three connections of an address."""

    port: int
    limits: ConnectionLimits


@pytest.fixture(params=[False, True], ids=["clients", "proxy"])
def small(request: pytest.FixtureRequest) -> Iterator[Small]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    limits = ConnectionLimits(100, 8192, 10, 10, 10, 3, lambda _: request.param)
    protocol = partial(LimitedProtocol, limits=limits, refused=lambda *_: None)
    config = uvicorn.Config(
        app, http=cast("type[asyncio.Protocol]", protocol), log_config=None, lifespan="off"
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield Small(listener.getsockname()[1], limits)
    server.should_exit = True
    thread.join(20)


def test_one_address_cannot_take_all_connections_unless_it_is_a_proxys(small: Small) -> None:
    get = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    is_proxy = small.limits.is_shared("127.0.0.1")

    def ask() -> tuple[socket.socket, Raw]:
        connection = socket.create_connection(("127.0.0.1", small.port), timeout=10)
        connection.sendall(get)
        return connection, _answer(connection)

    held = [ask() for _ in range(5)]
    assert [raw.status for _, raw in held] == [204] * 5 if is_proxy else [204] * 3 + [503] * 2
    if not is_proxy:
        assert held[-1][1].problem["code"] == "overloaded"
        assert held[-1][1].headers["retry-after"] == "1"
    for connection, _ in held:
        connection.close()
    end = time.monotonic() + 10
    while small.limits.open and time.monotonic() < end:
        time.sleep(0.05)
    assert not small.limits.open
    connection, raw = ask()
    connection.close()
    assert raw.status == 204


def test_requests_in_one_packet_are_answered_in_order(strict: RunningServer) -> None:
    with closing(_connect(strict)) as connection:
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: 1\r\n\r\n"
            b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: 2\r\n\r\n"
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: 3\r\n\r\n"
        )
        data = b""
        while data.count(b"HTTP/1.1 ") < 3 or not data.endswith(b"}"):
            data += connection.recv(65536)

    ids = re.findall(rb"x-request-id: (\d)", data)
    assert ids == [b"1", b"2", b"3"]


def test_an_upload_never_touches_the_disk(strict: RunningServer, photo: bytes) -> None:
    temporary = strict.log.parent / "tmp"
    process = psutil.Process(strict.process.pid)
    before = {path.name for path in temporary.iterdir()}  # of the libraries that were loaded
    seen: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            seen.update(path.name for path in temporary.iterdir())
            for handle in Path(f"/proc/{process.pid}/fd").iterdir():
                try:
                    target = os.readlink(handle)
                except OSError:
                    continue
                if target.startswith("/") and "(deleted)" in target:
                    seen.add(target)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    padded = photo + bytes(8 * MIB)
    files = [("image", (f"{n}.jpg", padded, "image/jpeg")) for n in range(2)]
    answer = strict.post("/v1/analyze", files=files)
    ended.set()
    watcher.join()

    assert answer.status_code == 200
    assert seen - before == set()
