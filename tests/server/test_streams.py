"""Streams: the newest frame wins, tracks have ids, limits hold, and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from agelens.fusion import fuse, fuse_genders
from agelens.results import AgeDistribution, GenderEstimate
from agelens.server.app import create_app
from agelens.server.keys import KeyFile, Scope
from agelens.settings import ServerSettings
from server.conftest import RunningServer, close, launch

HELLO = '{"type": "hello"}'


def address(server: RunningServer) -> str:
    return server.url.replace("http://", "ws://") + "/v1/stream"


@contextlib.contextmanager
def streaming(
    url: str, options: Mapping[str, Any] | None = None, **hello: Any
) -> Iterator[ClientConnection]:
    """A stream after its welcome."""
    with connect(url, max_size=None) as stream:
        stream.send(json.dumps({"type": "hello", "options": dict(options or {}), **hello}))
        assert receive(stream)["type"] == "welcome"
        yield stream


def receive(stream: ClientConnection, timeout_s: float = 60) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stream.recv(timeout_s))
    return found


def asked(stream: ClientConnection, frame: bytes) -> dict[str, Any]:
    stream.send(frame)
    return receive(stream)


def ending(stream: ClientConnection) -> tuple[str, int]:
    """The code that the server gives for the end, and the close code."""
    said = receive(stream)
    assert said["type"] == "error"
    assert said["message"]
    with pytest.raises(ConnectionClosed) as closed:
        stream.recv(10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.reason == said["code"]
    return said["code"], closed.value.rcvd.code


def shifted(picture: bytes, right: int) -> bytes:
    """The picture on a larger grey one, moved to the right."""
    image = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    canvas = np.full((image.shape[0], image.shape[1] + 300, 3), 128, np.uint8)
    canvas[:, right : right + image.shape[1]] = image
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"distribution": True, "age_groups": "0,18,65", "level": 0.8}, {"gender": False}],
    ids=["as-is", "distribution", "no-gender"],
)
def test_a_frame_gives_what_a_request_gives(
    server: RunningServer, photo: bytes, options: dict[str, Any]
) -> None:
    query = {name: str(value).lower() for name, value in options.items()}
    answer = server.post(
        "/v1/analyze", content=photo, params=query, headers={"content-type": "image/jpeg"}
    )
    (expected,) = answer.json()["analyses"]

    with streaming(address(server), options) as stream:
        result = asked(stream, photo)

    faces = [
        {name: value for name, value in face.items() if name not in ("track_id", "fused")}
        for face in result["faces"]
    ]
    assert faces == expected["faces"]
    for name in ("width", "height", "model", "error"):
        assert result[name] == expected[name]
    assert (result["type"], result["frame"], result["dropped"]) == ("result", 1, 0)
    assert 0 < result["latency_ms"] < 60_000


def test_a_face_that_moves_has_one_id_and_an_estimate_of_all_its_frames(
    server: RunningServer, photo: bytes
) -> None:
    with streaming(address(server), {"distribution": True}) as stream:
        results = [asked(stream, shifted(photo, 20 * step)) for step in range(6)]

    faces = [result["faces"][0] for result in results]
    assert [face["track_id"] for face in faces] == [None, None, 1, 1, 1, 1]
    assert faces[0]["fused"] is None
    assert [face["fused"]["frames"] for face in faces[2:]] == [1, 2, 3, 4]
    seen = faces[2:]
    ages = fuse([AgeDistribution.from_dict(face["age"]) for face in seen], correlation=1.0).age
    assert AgeDistribution.from_dict(faces[-1]["fused"]["age"]).probabilities == pytest.approx(
        ages.probabilities, abs=1e-6
    )
    shares = [face["gender"]["female_probability"] for face in seen]
    gender = fuse_genders([GenderEstimate(share) for share in shares], correlation=1.0)
    assert gender is not None
    assert faces[-1]["fused"]["gender"]["female_probability"] == pytest.approx(
        gender.female_probability, abs=1e-3
    )


def test_each_face_of_a_group_has_an_id_of_its_own(server: RunningServer, faces: Path) -> None:
    group = (faces / "group.jpg").read_bytes()
    with streaming(address(server)) as stream:
        for _ in range(3):
            result = asked(stream, group)

    assert result["type"] == "result"
    ids = [face["track_id"] for face in result["faces"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    assert len(ids) > 1


def test_streams_know_nothing_of_each_other(server: RunningServer, photo: bytes) -> None:
    with streaming(address(server)) as one, streaming(address(server)) as other:
        for _ in range(3):
            asked(one, photo)
        first = asked(other, photo)

    assert first["frame"] == 1
    assert first["faces"][0]["track_id"] is None


def test_the_newest_frame_wins_and_the_dropped_are_counted(
    server: RunningServer, photo: bytes
) -> None:
    with streaming(address(server)) as stream:
        for _ in range(40):
            stream.send(photo)
        results = [receive(stream)]
        while results[-1]["frame"] < 40:
            results.append(receive(stream))
        after = asked(stream, photo)

    numbers = [result["frame"] for result in results]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + results[-1]["dropped"] == 40
    assert results[-1]["dropped"] > 0
    assert (after["frame"], after["dropped"]) == (41, results[-1]["dropped"])


def test_a_frame_that_cannot_be_read_is_answered_and_the_stream_goes_on(
    server: RunningServer, photo: bytes
) -> None:
    with streaming(address(server)) as stream:
        broken, whole = asked(stream, photo[:2000]), asked(stream, photo)

    assert broken["error"]["code"] == "truncated"
    assert broken["faces"] == []
    assert len(whole["faces"]) == 1


def test_a_client_that_reads_nothing_for_a_while_gets_the_newest_answer_next(
    server: RunningServer, photo: bytes
) -> None:
    with streaming(address(server)) as stream:
        end = time.monotonic() + 2
        sent = 0
        while time.monotonic() < end:
            stream.send(photo)
            sent += 1
            time.sleep(0.02)
        last = receive(stream)
        while last["frame"] < sent:
            last = receive(stream)

    assert last["latency_ms"] < 5000


# --- who may --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Closed:
    """A server that asks for keys and has short limits."""

    server: RunningServer
    keys: Mapping[str, str]
    ring: KeyFile


@pytest.fixture(scope="module")
def closed(own_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    folder = tmp_path_factory.mktemp("streams")
    ring = KeyFile(folder / "keys.toml")
    keys = {scope.value: ring.add(scope.value, [scope]).text for scope in Scope}
    server = launch(
        folder,
        *("--keys", str(folder / "keys.toml"), "--workers", "1"),
        *("--set", "streams_per_key=2", "--set", "stream_idle_s=1.5", "--set", "stream_max_s=8"),
        *("--set", "stream_frame_bytes=200000", "--set", "rate_per_minute=100000"),
    )
    yield Closed(server, keys, ring)
    close(server)


def test_a_key_comes_in_the_hello_or_in_a_header(closed: Closed, photo: bytes) -> None:
    url, key = address(closed.server), closed.keys["analyze"]

    with streaming(url, key=key) as stream:
        assert asked(stream, photo)["faces"]
    with connect(url, additional_headers={"authorization": f"Bearer {key}"}) as stream:
        stream.send(HELLO)
        assert receive(stream)["type"] == "welcome"


@pytest.mark.parametrize(
    ("which", "code", "status"),
    [
        (None, "unauthorized", 4401),
        ("al_wrong", "unauthorized", 4401),
        ("gate", "forbidden", 4403),
    ],
    ids=["none", "wrong", "another-scope"],
)
def test_without_a_key_that_may_there_is_no_stream(
    closed: Closed, which: str | None, code: str, status: int
) -> None:
    hello: dict[str, Any] = {"type": "hello"}
    if which is not None:
        hello["key"] = closed.keys.get(which, which)

    with connect(address(closed.server)) as stream:
        stream.send(json.dumps(hello))
        assert ending(stream) == (code, status)


def test_a_key_has_so_many_streams_and_no_more(closed: Closed) -> None:
    url, key = address(closed.server), closed.keys["analyze"]

    with streaming(url, key=key), streaming(url, key=key), connect(url) as third:
        third.send(json.dumps({"type": "hello", "key": key}))
        assert ending(third) == ("rate_limited", 4429)
    with streaming(url, key=key):
        pass


def test_a_stream_ends_when_no_frame_comes(closed: Closed) -> None:
    with streaming(address(closed.server), key=closed.keys["analyze"]) as stream:
        assert ending(stream) == ("idle", 4408)


def test_a_stream_ends_after_its_time(closed: Closed, photo: bytes) -> None:
    with streaming(address(closed.server), key=closed.keys["analyze"]) as stream:
        said = asked(stream, photo)
        while said["type"] == "result":
            said = asked(stream, photo)

    assert said["code"] == "too_long"


def test_a_key_that_is_revoked_ends_its_streams(closed: Closed, photo: bytes) -> None:
    made = closed.ring.add("short-lived", [Scope.ANALYZE])

    with streaming(address(closed.server), key=made.text) as stream:
        assert asked(stream, photo)["type"] == "result"
        closed.ring.revoke(made.key.id)
        said = asked(stream, photo)
        while said["type"] == "result":
            said = asked(stream, photo)

    assert said["code"] == "unauthorized"


def test_a_key_that_loses_its_scope_ends_its_streams(closed: Closed, photo: bytes) -> None:
    made = closed.ring.add("moved", [Scope.ANALYZE])
    whole = closed.ring.path.read_text()
    head, mine = whole.split(made.key.id)
    assert mine.count('"analyze"') == 1

    with streaming(address(closed.server), key=made.text) as stream:
        closed.ring.path.write_text(head + made.key.id + mine.replace('"analyze"', '"gate"'))
        said = asked(stream, photo)
        while said["type"] == "result":
            said = asked(stream, photo)

    assert said["code"] == "forbidden"


def test_a_frame_over_the_limit_ends_the_stream(closed: Closed) -> None:
    with streaming(address(closed.server), key=closed.keys["analyze"]) as stream:
        stream.send(b"\xff\xd8" + bytes(300_000))
        with pytest.raises(ConnectionClosed) as end:
            stream.recv(10)

    assert end.value.rcvd is not None
    assert end.value.rcvd.code == 1009


# --- malformed ------------------------------------------------------------------------------------


BAD_HELLOS: list[tuple[str, str | bytes, str, int]] = [
    ("binary", b"\xff\xd8\xff", "bad_message", 4400),
    ("empty", "", "bad_message", 4400),
    ("no-json", "hello", "bad_message", 4400),
    ("a-list", "[]", "bad_message", 4400),
    ("another-type", '{"type": "hi"}', "bad_message", 4400),
    ("unknown-member", '{"type": "hello", "admin": true}', "bad_message", 4400),
    ("deep", "[" * 4000, "bad_message", 4400),
    ("long", json.dumps({"type": "hello", "key": "x" * 9000}), "bad_message", 4400),
    ("unknown-option", '{"type": "hello", "options": {"race": true}}', "bad_option", 4422),
    ("option-range", '{"type": "hello", "options": {"level": 2}}', "bad_option", 4422),
    ("model", '{"type": "hello", "options": {"model": "none"}}', "unknown_model", 4422),
]


@pytest.mark.parametrize(
    ("first", "code", "status"), [pytest.param(*rest, id=name) for name, *rest in BAD_HELLOS]
)
def test_a_hello_that_is_none_is_answered_and_the_stream_closed(
    server: RunningServer, first: str | bytes, code: str, status: int
) -> None:
    with connect(address(server)) as stream:
        stream.send(first)
        assert ending(stream) == (code, status)


@pytest.mark.parametrize("message", ["hello", "", b"", HELLO], ids=["text", "empty", "none", "hi"])
def test_after_the_hello_only_frames_are_taken(server: RunningServer, message: str | bytes) -> None:
    with streaming(address(server)) as stream:
        stream.send(message)
        assert ending(stream) == ("bad_message", 4400)


def test_a_client_that_says_nothing_is_sent_away(server: RunningServer) -> None:
    begun = time.monotonic()
    with connect(address(server)) as stream:
        assert ending(stream) == ("hello_timeout", 4408)

    assert 4.5 < time.monotonic() - begun < 20


def test_a_page_of_another_site_gets_no_stream_of_a_server_without_keys(
    server: RunningServer,
) -> None:
    with connect(address(server), origin=Origin("https://elsewhere.example")) as stream:
        stream.send(HELLO)
        assert ending(stream) == ("forbidden", 4403)


# --- nothing stays --------------------------------------------------------------------------------


@dataclass
class Inside:
    """A server in this process, whose tasks can be counted."""

    port: int
    loop: asyncio.AbstractEventLoop
    app: Any

    def tasks(self) -> int:
        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(10)

    def settled(self, most: int, timeout_s: float = 20) -> bool:
        """Whether the tasks come down to so many."""
        end = time.monotonic() + timeout_s
        while self.tasks() > most and time.monotonic() < end:
            time.sleep(0.1)
        return self.tasks() <= most


@pytest.fixture(scope="module")
def inside(own_registry: Path) -> Iterator[Inside]:
    settings = ServerSettings.load(
        workers=1,
        streams_per_key=64,
        rate_per_address=10**6,
        pages=False,
        docs=False,
        log_level="error",
    )
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    end = time.monotonic() + 90
    while not (server.started and app.state.service.ready) and time.monotonic() < end:
        time.sleep(0.1)
    assert app.state.service.ready
    yield Inside(listener.getsockname()[1], loops[0], app)
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


async def _in_turns(work: Callable[[int], Coroutine[Any, Any, None]], count: int) -> None:
    gate = asyncio.Semaphore(8)

    async def one(number: int) -> None:
        async with gate:
            await work(number)

    await asyncio.gather(*(one(number) for number in range(count)))


def rubbish(rng: random.Random) -> str | bytes:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return "".join(chr(rng.randrange(32, 0x2FFF)) for _ in range(rng.randrange(100)))
    if kind == 2:
        return HELLO[: rng.randrange(len(HELLO))]
    if kind == 3:
        return json.dumps({"type": rng.choice(["hello", "bye", 7]), "x": rng.random()})
    if kind == 4:
        return json.dumps({"type": "hello", "options": {"level": rng.uniform(2, 9)}})
    return "[" * rng.randrange(1, 5000)


def test_2000_malformed_messages_are_each_answered_and_leave_no_task(inside: Inside) -> None:
    url = f"ws://127.0.0.1:{inside.port}/v1/stream"
    before = inside.tasks()
    answers: list[str] = []

    async def one(number: int) -> None:
        rng = random.Random(number)
        async with connect_async(url) as stream:
            if number % 2:
                await stream.send(HELLO)
                assert json.loads(await stream.recv())["type"] == "welcome"
                messages: list[str | bytes] = ["", "frame", "{}", HELLO, b""]
                await stream.send(rng.choice(messages))
            else:
                await stream.send(rubbish(rng))
            answers.append(json.loads(await stream.recv())["code"])
            with pytest.raises(ConnectionClosed):
                await stream.recv()

    asyncio.run(_in_turns(one, 2000))

    assert len(answers) == 2000
    assert set(answers) == {"bad_message", "bad_option"}
    assert inside.settled(before)
    assert inside.app.state.streams.open.total() == 0
    assert inside.app.state.streams.greeting == {}


def test_50_clients_that_vanish_leave_no_task_and_no_stream(inside: Inside, photo: bytes) -> None:
    before = inside.tasks()

    async def one(number: int) -> None:
        url = f"ws://127.0.0.1:{inside.port}/v1/stream"
        stream = await connect_async(url)
        await stream.send(HELLO)
        await stream.recv()
        for _ in range(number % 4):
            await stream.send(photo)
        stream.transport.abort()

    asyncio.run(_in_turns(one, 50))

    assert inside.settled(before)
    assert inside.app.state.streams.open.total() == 0
    with streaming(f"ws://127.0.0.1:{inside.port}/v1/stream") as stream:
        assert asked(stream, photo)["frame"] == 1


def test_bytes_that_are_no_websocket_leave_nothing(inside: Inside) -> None:
    before = inside.tasks()
    rng = random.Random(5)
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", inside.port), 10) as raw:
            raw.sendall(
                b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            assert b"101" in raw.recv(4096)
            # Without a mask, with reserved bits, of unknown kinds, or of absurd lengths.
            raw.sendall(
                rng.choice([b"\x82\x05", b"\xf2\x85", b"\x8f\x80", b"\x82\xff" + b"\x7f" * 8])
            )
            raw.sendall(rng.randbytes(64))

    assert inside.settled(before)
    assert inside.app.state.streams.greeting == {}


def test_too_many_connections_without_a_hello_are_refused(inside: Inside) -> None:
    url = f"ws://127.0.0.1:{inside.port}/v1/stream"
    with contextlib.ExitStack() as held:
        for _ in range(16):
            held.enter_context(connect(url))
        with pytest.raises(InvalidStatus) as refused, connect(url):
            pass

    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["retry-after"] == "1"
    assert json.loads(refused.value.response.body or b"")["code"] == "overloaded"
    assert inside.settled(1 << 10)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
def test_a_few_who_say_nothing_do_not_keep_out_another(inside: Inside) -> None:
    url = f"ws://127.0.0.1:{inside.port}/v1/stream"
    with contextlib.ExitStack() as held:
        silent = [
            held.enter_context(connect(url, source_address=(f"127.0.0.{host}", 0)))
            for host in range(1, 5)
            for _ in range(16)
        ]
        with connect(url, source_address=("127.0.0.9", 0)) as stream:
            stream.send(HELLO)
            assert receive(stream)["type"] == "welcome"
        assert ending(silent[0]) == ("hello_timeout", 4408)
        with pytest.raises(InvalidStatus), connect(url, source_address=("127.0.0.2", 0)):
            pass

    assert inside.settled(1 << 10)
