"""Rate limits: counted exactly, told in headers, apart for each key and each true address."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agelens.server.keys import KeyFile, Scope
from agelens.server.rates import MovingWindow, network_of
from server.conftest import StartServer, close, launch


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0, 30), max_size=80), st.integers(1, 6))
def test_no_window_holds_more_than_the_limit_and_none_is_refused_below_it(
    pauses: list[float], limit: int
) -> None:
    clock = Hand()
    window = MovingWindow("key", limit, 60, clock=clock)
    admitted: list[float] = []
    for pause in pauses:
        clock.now += pause
        verdict = window.hit("a")
        recent = sum(1 for when in admitted if when > clock.now - 60)
        assert verdict.admitted == (recent < limit)
        admitted += [clock.now] if verdict.admitted else []


def test_verdict_tells_what_is_left_and_when_to_come_back() -> None:
    clock = Hand()
    window = MovingWindow("key", 2, 60, clock=clock)
    first = window.hit("a")
    clock.now += 10
    second = window.hit("a")
    clock.now += 5.5
    third = window.hit("a")

    assert first.headers == {
        "ratelimit-policy": '"key";q=2;w=60',
        "ratelimit": '"key";r=1;t=60',
    }
    assert second.headers["ratelimit"] == '"key";r=0;t=50'
    assert not third.admitted
    assert third.headers["retry-after"] == "45"
    clock.now += 45
    assert window.hit("a").admitted


def test_what_weighs_more_may_overdraw_once_and_is_paid_for() -> None:
    clock = Hand()
    window = MovingWindow("key", 10, 60, clock=clock)
    assert window.hit("a").admitted
    many = window.add("a", 31)
    assert (many.admitted, many.remaining) == (True, 0)
    assert not window.hit("a").admitted
    assert not window.add("a", 1).admitted
    clock.now += 59
    late = window.hit("a")
    assert (late.admitted, late.headers["retry-after"]) == (False, "1")
    clock.now += 1
    assert window.hit("a").remaining == 9


def test_one_who_is_over_the_limit_takes_nothing_from_another() -> None:
    window = MovingWindow("key", 3, clock=Hand())
    for _ in range(50):
        window.hit("a")

    assert [window.hit("b").admitted for _ in range(4)] == [True, True, True, False]


def test_memory_is_bounded_and_idle_names_are_forgotten() -> None:
    clock = Hand()
    window = MovingWindow("address", 5, 60, clock=clock, most=1000)
    for i in range(5000):
        window.hit(f"n{i}")
    crowded = len(window)
    clock.now += 61
    for _ in range(1000):
        window.hit("one")

    assert crowded == 1000
    assert len(window) == 1


@pytest.mark.parametrize(
    ("address", "counted_as"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address", "no address"),
    ],
)
def test_an_ipv6_customer_is_one_address(address: str, counted_as: str) -> None:
    assert network_of(address) == counted_as


# --- over HTTP ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limited:
    """A server behind a trusted proxy, with 20 requests for a key and 10 for an address."""

    client: httpx2.Client
    file: KeyFile

    def get(self, key: str, address: str) -> httpx2.Response:
        """As the proxy passes on a request, of a client that forges the header."""
        forwarded = f"198.51.100.200, {address}"
        headers = {"x-api-key": key, "x-forwarded-for": forwarded}
        return self.client.get("/v1/models", headers=headers)

    def key(self, name: str) -> str:
        return self.file.add(name, [Scope.ANALYZE]).text


@pytest.fixture(scope="module")
def limited(own_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limited]:
    folder = tmp_path_factory.mktemp("limited")
    file = KeyFile(folder / "keys.toml")
    file.add("first", [Scope.ANALYZE])
    limits = {"rate_per_minute": 20, "rate_per_address": 10, "proxy_headers": "true"}
    given = [part for name, value in limits.items() for part in ("--set", f"{name}={value}")]
    server = launch(folder, "--keys", str(file.path), "--workers", "1", *given, ready=False)
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        yield Limited(client, file)
    close(server)


def test_key_over_its_limit_gets_429_with_retry_after_and_others_do_not(limited: Limited) -> None:
    a, b = limited.key("a"), limited.key("b")
    answers = [limited.get(a, f"203.0.113.{i}") for i in range(200)]
    other = limited.get(b, "203.0.113.250")

    assert [answer.status_code for answer in answers] == [200] * 20 + [429] * 180
    assert answers[0].headers["ratelimit-policy"] == '"key";q=20;w=60'
    assert answers[0].headers["ratelimit"] == '"key";r=19;t=60'
    refused = answers[-1]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "rate_limited"
    assert other.status_code == 200


def test_keys_cannot_be_tried_out_faster_than_the_address_may_ask(limited: Limited) -> None:
    good = limited.key("good")
    tried = [limited.get(f"al_abcdefgh_{i:043}", "192.0.2.1").status_code for i in range(15)]

    assert tried == [401] * 10 + [429] * 5
    assert limited.get(good, "192.0.2.1").status_code == 429
    assert limited.get(good, "192.0.2.2").status_code == 200
    assert limited.client.get("/healthz").status_code == 200


def test_forwarded_address_of_an_untrusted_client_is_not_believed(
    tmp_path: Path, start_server: StartServer
) -> None:
    path = tmp_path / "keys.toml"
    key = KeyFile(path).add("a", [Scope.ANALYZE]).text
    server = start_server("--keys", str(path), "--set", "rate_per_address=3", ready=False)

    statuses = [
        server.get(
            "/v1/models", headers={"x-api-key": key, "x-forwarded-for": f"203.0.113.{i}"}
        ).status_code
        for i in range(6)
    ]
    assert statuses == [200] * 3 + [429] * 3


def test_each_picture_of_a_request_counts(limited: Limited) -> None:
    key = limited.key("many")
    files = [("image", (f"{n}", b"x", "image/jpeg")) for n in range(15)]

    def post(address: str) -> httpx2.Response:
        headers = {"x-api-key": key, "x-forwarded-for": address}
        return limited.client.post("/v1/analyze", files=files, headers=headers)

    first, second, third = post("203.0.114.1"), post("203.0.114.2"), post("203.0.114.3")

    assert first.headers["ratelimit"].startswith('"key";r=5;')
    assert second.headers["ratelimit"].startswith('"key";r=0;')
    assert 429 not in (first.status_code, second.status_code)
    assert third.status_code == 429
    assert limited.get(key, "203.0.114.4").status_code == 429
