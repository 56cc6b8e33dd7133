"""What stands around answers: security headers, served host names, pages of other sites."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import websockets

from agelens.errors import ArgumentError
from agelens.server.app import create_app
from agelens.server.keys import KeyFile, Scope
from agelens.settings import ServerSettings
from server.conftest import RunningServer, close, launch


@dataclass(frozen=True)
class Listing:
    """A server with a key that lists hosts and an origin."""

    server: RunningServer
    key: str


@pytest.fixture(scope="module")
def listing(own_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listing]:
    folder = tmp_path_factory.mktemp("listing")
    path = folder / "keys.toml"
    key = KeyFile(path).add("shop", [Scope.ANALYZE]).text
    hosts = ("--set", "allowed_hosts=age.example,*.shop.example")
    origins = ("--set", "cors_origins=https://shop.example")
    server = launch(folder, "--keys", str(path), "--workers", "1", *hosts, *origins, ready=False)
    yield Listing(server, key)
    close(server)


KINDS = {
    "data": "/v1/models",
    "health": "/healthz",
    "nothing there": "/nowhere",
    "refused": "/v1/models?",
    "page": "/",
    "static file": "/static/palette.css",
    "description": "/openapi.json",
}


@pytest.mark.parametrize("path", KINDS.values(), ids=KINDS)
def test_every_answer_has_the_security_headers(server: RunningServer, path: str) -> None:
    headers = server.get(path).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "geolocation=()" in headers["permissions-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "server" not in headers
    for name in ("x-frame-options", "content-security-policy", "cache-control"):
        assert len(headers.get_list(name)) == 1


def test_pages_run_their_own_files_and_nothing_inline(server: RunningServer) -> None:
    answer = server.get("/")
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )

    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert not any("unsafe" in sources or "http" in sources for sources in policy.values())
    assert "<script>" not in answer.text
    assert " style=" not in answer.text
    assert " onclick=" not in answer.text


@pytest.mark.parametrize("path", ["/v1/models", "/healthz", "/nowhere", "/metrics"])
def test_answers_are_not_stored(server: RunningServer, path: str) -> None:
    assert server.get(path).headers["cache-control"] == "no-store"


# --- host names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_loopback_server_answers_to_its_own_names(server: RunningServer, host: str) -> None:
    for name in (host, f"{host}:{server.port}"):
        assert server.get("/v1/models", headers={"host": name}).status_code == 200


FOREIGN = ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "xlocalhost"]
FOREIGN += ["evil.example:80", "127.0.0.2", "2130706433", "localhost.", "0.0.0.0", ""]


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("path", ["/v1/models", "/", "/healthz"])
def test_name_that_was_pointed_at_loopback_is_refused(
    server: RunningServer, host: str, path: str
) -> None:
    answer = server.get(path, headers={"host": host})

    assert answer.status_code == 400
    assert answer.json()["code"] == "host_not_allowed"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<html" not in answer.text


def test_listed_names_are_served_besides_those_of_loopback(listing: Listing) -> None:
    hosts = {
        "age.example": 200,
        "AGE.example:8443": 200,
        "a.shop.example": 200,
        "localhost": 200,
        "shop.example": 400,
        "xshop.example": 400,
        "evil.example": 400,
    }

    found = {
        host: listing.server.get("/healthz", headers={"host": host}).status_code for host in hosts
    }
    assert found == hosts


@pytest.mark.parametrize("name", ["https://age.example", "age.example:80", "a b", "*x.example"])
def test_listed_name_that_is_none_ends_the_start(name: str) -> None:
    with pytest.raises(ArgumentError, match="allowed_hosts"):
        create_app(ServerSettings.load(allowed_hosts=(name,)))


def test_any_name_is_served_with_keys_only(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    KeyFile(keys).add("a", [Scope.ANALYZE])

    with pytest.raises(ArgumentError, match=r"allowed_hosts \*.*--keys"):
        create_app(ServerSettings.load(allowed_hosts=("age.example", "*")))
    create_app(ServerSettings.load(allowed_hosts=("*",), keys=keys))


# --- pages of other sites -------------------------------------------------------------------------

ELSEWHERE = {
    "another site": {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    "another port": {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"},
    "an older browser": {"origin": "http://evil.example"},
    "a sandboxed frame": {"origin": "null"},
    "an image": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    "a plain form": {
        "origin": "https://evil.example",
        "content-type": "multipart/form-data; boundary=x",
    },
    "the same host over https": {"origin": "https://127.0.0.1:PORT"},
}


@pytest.mark.parametrize("headers", ELSEWHERE.values(), ids=ELSEWHERE)
def test_page_elsewhere_cannot_use_a_visitors_server(
    server: RunningServer, photo: bytes, headers: dict[str, str]
) -> None:
    told = {name: value.replace("PORT", str(server.port)) for name, value in headers.items()}
    asked = server.get("/v1/models", headers=told)
    sent = server.post("/v1/analyze", content=photo, headers={"content-type": "text/plain", **told})

    for answer in (asked, sent):
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "access-control-allow-origin" not in answer.headers


def test_own_page_and_programs_can(server: RunningServer) -> None:
    own = {"origin": server.url, "sec-fetch-site": "same-origin"}
    typed = {"sec-fetch-site": "none"}

    for headers in (own, typed, {}):
        assert server.get("/v1/models", headers=headers).status_code == 200


def test_preflight_of_a_page_elsewhere_is_not_granted(server: RunningServer) -> None:
    asking = {
        "origin": "https://evil.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-api-key",
    }
    answer = httpx2.options(f"{server.url}/v1/analyze", headers=asking)

    assert answer.status_code >= 400
    assert not any(name.startswith("access-control-allow") for name in answer.headers)


def test_stream_from_a_page_elsewhere_is_refused(server: RunningServer) -> None:
    async def opened(origin: str | None, host: str | None = None) -> bool:
        uri = f"ws://127.0.0.1:{server.port}/v1/stream"
        headers = {} if host is None else {"host": host}
        try:
            async with websockets.connect(uri, origin=origin, additional_headers=headers) as stream:  # type: ignore[arg-type]
                await stream.send('{"type": "hello"}')
                return '"welcome"' in str(await asyncio.wait_for(stream.recv(), 10))
        except websockets.WebSocketException:
            return False

    assert asyncio.run(opened(None))
    assert asyncio.run(opened(server.url))
    assert not asyncio.run(opened("https://evil.example"))
    assert not asyncio.run(opened("null"))


def test_listed_origin_may_use_a_server_with_its_key_and_no_other_may(listing: Listing) -> None:
    server, key = listing.server, listing.key

    def preflight(origin: str) -> httpx2.Response:
        asking = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "x-api-key,content-type",
        }
        return httpx2.options(f"{server.url}/v1/analyze", headers=asking)

    def allowed(answer: httpx2.Response) -> str | None:
        return answer.headers.get("access-control-allow-origin")

    good, bad = "https://shop.example", "https://evil.example"
    assert (preflight(good).status_code, allowed(preflight(good))) == (200, good)
    assert (preflight(bad).status_code, allowed(preflight(bad))) == (400, None)
    answer = server.get("/v1/models", headers={"origin": good, "x-api-key": key})
    assert (answer.status_code, allowed(answer)) == (200, good)
    assert "access-control-allow-credentials" not in answer.headers
    refused = server.get("/v1/models", headers={"origin": good})
    assert (refused.status_code, allowed(refused)) == (401, good)
    assert allowed(server.get("/v1/models", headers={"origin": bad, "x-api-key": key})) is None


@pytest.mark.parametrize("origin", ["*", "shop.example", "https://shop.example/", "null"])
def test_origin_that_is_none_or_every_page_at_once_ends_the_start(origin: str) -> None:
    with pytest.raises(ArgumentError, match="cors_origins"):
        create_app(ServerSettings.load(cors_origins=(origin,)))
