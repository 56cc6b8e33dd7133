"""The present of an audience over real HTTP, server-sent events and WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="needs the 'serve' extra")
pytest.importorskip("sqlalchemy", reason="needs the 'visitors' extra")

import httpx2
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from agelens.server.audience import HEARTBEAT_S, AudienceAnswer, SlotsAnswer, Subscription
from agelens.server.keys import KeyFile, Scope
from agelens.video.audience import AudiencePlan, AudienceState
from agelens.video.present import AudienceEvent
from agelens.video.rules import RuleBook
from server.sites import AudienceSite, audience_site, blocks
from video.moments import NOON, person

RULES = """
schema = "agelens.audience-rules/1"
fallback = "house"
minimum_s = 0
steady_s = 0
release_s = 0
[slots.house]
title = "Welcome"
[slots.crowd]
title = "Upstairs"
image = "up.png"
[[rules]]
slot = "crowd"
people_from = 3
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AudienceSite]:
    folder = tmp_path_factory.mktemp("site")
    Image.new("RGB", (8, 8), (200, 30, 30)).save(folder / "up.png")
    (folder / "rules.toml").write_text(RULES)
    with audience_site(folder, book=RuleBook.load(folder / "rules.toml")) as running:
        yield running


class Events:
    """A client of the events, a block at a time."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._text = response.iter_text()
        self._held = ""

    def block(self) -> dict[str, str]:
        """The next event or comment, by field."""
        while "\n\n" not in self._held:
            self._held += next(self._text)
        text, self._held = self._held.split("\n\n", 1)
        return dict(blocks(text)[0])

    def event(self) -> dict[str, Any]:
        """The data of the next event."""
        while True:
            block = self.block()
            if "data" in block:
                assert block["event"] == "audience"
                data: dict[str, Any] = json.loads(block["data"])
                assert data["id"] == block["id"]
                return data

    def drain(self) -> None:
        """Read until the server ends it."""
        for _ in self._text:
            pass

    def until(self, people: int) -> dict[str, Any]:
        """The next event with so many people."""
        while (event := self.event())["people"] != people:
            pass
        return event


@contextmanager
def events(site: AudienceSite, **headers: str) -> Iterator[Events]:
    with httpx2.stream(
        "GET", f"{site.url}/v1/audience/events", headers=headers, timeout=10
    ) as response:
        yield Events(response)


def told(site: AudienceSite, people: int) -> None:
    """Let so many people be seen, and wait until the site knows."""
    site.see(*[person()] * people)
    end = time.monotonic() + 5
    while site.hub.live.newest().state.people != people:
        assert time.monotonic() < end
        time.sleep(0.01)


# --- once -----------------------------------------------------------------------------------------


def test_who_is_there_now_is_answered_with_shares_and_what_is_shown(site: AudienceSite) -> None:
    told(site, 3)

    answer = httpx2.get(f"{site.url}/v1/audience")

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    found = AudienceAnswer.model_validate_json(answer.text)
    assert (found.site, found.people, found.attentive) == ("shop", 3, 3)
    assert sum(group.count for group in found.groups) == pytest.approx(3, abs=0.05)
    assert found.showing is not None
    assert found.showing.slot == "crowd"
    assert not {"track", "box", "seconds"} & set(answer.text.replace('"', " ").split())


def test_the_content_and_its_pictures_can_be_fetched(site: AudienceSite) -> None:
    found = SlotsAnswer.model_validate_json(httpx2.get(f"{site.url}/v1/audience/slots").text)
    picture = httpx2.get(f"{site.url}/v1/audience/slots/crowd/image")

    assert (found.fallback, found.slots["crowd"].title) == ("house", "Upstairs")
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
    assert picture.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["house", "cellar", "..%2f..%2fvisits.sqlite", "%2e%2e", "a%00b"])
def test_nothing_else_can_be_fetched_as_a_picture(site: AudienceSite, name: str) -> None:
    answer = httpx2.get(f"{site.url}/v1/audience/slots/{name}/image")

    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


# --- events ---------------------------------------------------------------------------------------


def test_the_newest_comes_at_once_and_each_change_in_well_under_half_a_second(
    site: AudienceSite,
) -> None:
    told(site, 1)
    with events(site) as client:
        assert client.response.headers["content-type"].startswith("text/event-stream")
        assert client.block() == {"retry": "1000"}
        assert client.event()["people"] == 1
        passed = []
        for count in (2, 5, 0, 4):
            begun = time.monotonic()
            site.see(*[person()] * count)
            client.until(count)
            passed.append(time.monotonic() - begun)

    assert max(passed) < 0.4


def test_a_client_that_had_the_newest_is_not_told_it_again(site: AudienceSite) -> None:
    told(site, 2)
    newest = site.hub.live.newest().id
    with events(site, **{"Last-Event-ID": newest}) as client:
        site.see(*[person()] * 3)
        assert client.event()["people"] == 3
    for other in ("", "nonsense", "00000000-1", newest + "0"):
        with events(site, **{"Last-Event-ID": other}) as client:
            assert client.event()["people"] == 3


def test_silence_is_broken_by_a_sign_of_life(site: AudienceSite) -> None:
    told(site, 2)
    with events(site) as client:
        client.event()
        begun = time.monotonic()
        assert client.block() == {"": "still here"}

    assert time.monotonic() - begun < HEARTBEAT_S + 1.5


def test_a_client_that_reads_nothing_holds_up_nobody_and_then_has_the_newest(
    site: AudienceSite,
) -> None:
    parts = urlsplit(site.url)
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), 10) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        lazy.sendall(b"GET /v1/audience/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with events(site) as client:
            for count in [1, 2, 3] * 4:
                begun = time.monotonic()
                site.see(*[person()] * count)
                client.until(count)
                assert time.monotonic() - begun < 0.5
            site.see(*[person()] * 7)
            client.until(7)
        lazy.settimeout(5)
        heard = b""
        while b'"people":7' not in heard:
            heard += lazy.recv(65536)


def test_of_what_a_client_did_not_take_only_the_newest_waits() -> None:
    async def offered() -> tuple[list[str], AudienceEvent | None]:
        subscription = Subscription(asyncio.get_running_loop())
        for number in range(1000):
            subscription.offer(AudienceEvent(f"a-{number}", "shop", AudienceState(NOON), None))
        first = await subscription.next(1)
        assert first is not None
        return [first.id], await subscription.next(0.05)

    assert asyncio.run(offered()) == (["a-999"], None)


# --- messages -------------------------------------------------------------------------------------


def received(stream: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(stream.recv(10))
    return message


def rest_of(stream: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """The messages until the server closes, and the code that it closes with."""
    messages: list[dict[str, Any]] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(received(stream))
    assert stream.close_code is not None
    return messages, stream.close_code


def greeted(stream: ClientConnection, key: str | None = None) -> dict[str, Any]:
    stream.send(json.dumps({"type": "hello"} | ({} if key is None else {"key": key})))
    return received(stream)


def test_a_stream_says_the_newest_and_then_each_change(site: AudienceSite) -> None:
    told(site, 1)
    with connect(site.websocket) as stream:
        assert greeted(stream) == {"type": "welcome", "protocol": 1}
        first = received(stream)
        site.see(*[person()] * 4)
        second = received(stream)

    assert (first["type"], first["people"]) == ("audience", 1)
    assert (second["type"], second["people"]) == ("audience", 4)
    assert second["showing"]["slot"] == "crowd"
    assert second["id"] != first["id"]


@pytest.mark.parametrize(
    ("first", "then", "code"),
    [
        ('{"type": "hallo"}', None, "bad_message"),
        ('{"type": "hello", "more": 1}', None, "bad_message"),
        (b"\x00", None, "bad_message"),
        ('{"type": "hello"}', "more", "bad_message"),
    ],
)
def test_a_stream_ends_when_the_client_says_what_it_should_not(
    site: AudienceSite, first: str | bytes, then: str | None, code: str
) -> None:
    with connect(site.websocket) as stream:
        stream.send(first)
        if then is not None:
            stream.send(then)
        messages, close = rest_of(stream)

    assert messages[-1]["type"] == "error"
    assert messages[-1]["code"] == code
    assert close == 4400


# --- who may --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[AudienceSite, dict[Scope, str], KeyFile]]:
    """A site that asks for keys, one for each scope."""
    folder = tmp_path_factory.mktemp("closed")
    keys = KeyFile(folder / "keys.toml")
    texts = {scope: keys.add(scope.value, [scope]).text for scope in Scope}
    book = RuleBook.parse(RULES.replace('image = "up.png"', ""))
    with audience_site(folder, book=book, keys=keys.path, streams_per_key=2) as running:
        yield running, texts, keys


ROUTES = ("/v1/audience", "/v1/audience/slots", "/v1/audience/events", "/v1/audience/slots/x/image")


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_asks_for_a_key_of_its_scope(
    closed: tuple[AudienceSite, dict[Scope, str], KeyFile], path: str
) -> None:
    site, keys, _ = closed

    def status(scope: Scope | None) -> int:
        headers = {} if scope is None else {"Authorization": f"Bearer {keys[scope]}"}
        with httpx2.stream("GET", site.url + path, headers=headers, timeout=10) as response:
            return response.status_code

    allowed = 404 if path.endswith("image") else 200
    assert status(None) == 401
    assert {scope: status(scope) for scope in (Scope.ANALYZE, Scope.GATE)} == {
        Scope.ANALYZE: 403,
        Scope.GATE: 403,
    }
    assert status(Scope.AUDIENCE) == allowed
    assert status(Scope.VISITORS) == allowed


def test_a_stream_asks_for_a_key_in_its_hello(
    closed: tuple[AudienceSite, dict[Scope, str], KeyFile],
) -> None:
    site, keys, _ = closed
    for key, code, close in ((None, "unauthorized", 4401), (keys[Scope.GATE], "forbidden", 4403)):
        with connect(site.websocket) as stream:
            assert greeted(stream, key)["code"] == code
            assert rest_of(stream) == ([], close)
    with connect(site.websocket) as stream:
        assert greeted(stream, keys[Scope.AUDIENCE])["type"] == "welcome"


def test_a_revoked_key_ends_what_it_opened(
    closed: tuple[AudienceSite, dict[Scope, str], KeyFile],
) -> None:
    site, _, file = closed
    made = file.add("screen", [Scope.AUDIENCE])
    time.sleep(0.1)
    with events(site, Authorization=f"Bearer {made.text}") as client:
        client.event()
        with connect(site.websocket) as stream:
            assert greeted(stream, made.text)["type"] == "welcome"
            file.revoke(made.key.id)
            begun = time.monotonic()
            _, close = rest_of(stream)
        client.drain()

    assert close == 4401
    assert time.monotonic() - begun < 6


def test_one_key_has_so_many_streams_and_no_more(
    closed: tuple[AudienceSite, dict[Scope, str], KeyFile],
) -> None:
    site, keys, _ = closed
    key = keys[Scope.VISITORS]
    bearer = {"Authorization": f"Bearer {key}"}
    with events(site, **bearer) as one, connect(site.websocket) as two:
        one.event()
        assert greeted(two, key)["type"] == "welcome"
        with events(site, **bearer) as three:
            three.response.read()
            assert three.response.status_code == 429
            assert three.response.json()["code"] == "rate_limited"
    end = time.monotonic() + 5
    while True:
        with events(site, **bearer) as again:
            if again.response.status_code == 200:
                break
        assert time.monotonic() < end


def test_a_page_of_another_site_learns_nothing(site: AudienceSite) -> None:
    elsewhere = {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    for path in ROUTES:
        with httpx2.stream("GET", site.url + path, headers=elsewhere) as response:
            assert response.status_code == 403
    with connect(site.websocket, additional_headers=elsewhere) as stream:
        assert greeted(stream)["code"] == "forbidden"


# --- the end --------------------------------------------------------------------------------------


def test_open_streams_do_not_hold_up_the_end(tmp_path: Path) -> None:
    with (
        audience_site(tmp_path, grace_s=10.0) as site,
        events(site) as client,
        connect(site.websocket) as stream,
    ):
        client.event()
        greeted(stream)
        begun = time.monotonic()
        site.handle.stop()
        client.drain()

    assert time.monotonic() - begun < 5


def test_a_site_without_rules_says_so_and_still_tells_the_audience(tmp_path: Path) -> None:
    with audience_site(tmp_path, plan=AudiencePlan()) as site:
        told(site, 1)
        assert httpx2.get(f"{site.url}/v1/audience").json()["showing"] is None
        answer = httpx2.get(f"{site.url}/v1/audience/slots")

    assert answer.status_code == 404
    assert "--audience-rules" in answer.json()["detail"]
