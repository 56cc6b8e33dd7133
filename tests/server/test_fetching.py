"""Fetching pictures by address: only from listed hosts, never from inside, never too much."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agelens.errors import ArgumentError
from agelens.server.fetching import Fetcher, HostRule, Target, is_public, resolve
from agelens.server.problems import Problem
from agelens.settings import ServerSettings
from server.conftest import RunningServer, StartServer, serving

PICTURE = b"\xff\xd8\xff\xe0 the bytes of a picture"


# --- real servers ---------------------------------------------------------------------------------


class Origin:
    """A real HTTP server on loopback; counts connections, and answers what it is told to."""

    def __init__(self, family: socket.AddressFamily = socket.AF_INET) -> None:
        self.connections = 0
        self.hosts: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.names: list[str | None] = []
        self.status = 200
        self.answer: dict[str, str] = {"content-type": "image/jpeg"}
        self.body: Sequence[bytes] = [PICTURE]
        self.pause_s = 0.0
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                origin.hosts.append(self.headers["Host"])
                origin.headers.append({k.lower(): v for k, v in self.headers.items()})
                self.send_response(origin.status)
                for name, value in origin.answer.items():
                    self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                try:
                    for part in origin.body:
                        self.wfile.write(part)
                        self.wfile.flush()
                        time.sleep(origin.pause_s)
                except OSError:
                    pass

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            address_family = family
            daemon_threads = True
            block_on_close = False

            def get_request(self) -> tuple[socket.socket, Any]:
                found = super().get_request()
                origin.connections += 1
                return found

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        everywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"
        self.server = Server((everywhere, 0), Handler)
        self.port: int = self.server.server_address[1]

    @contextmanager
    def running(self) -> Iterator[Origin]:
        with serving(self.server):
            yield self


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin().running() as found:
        yield found


@pytest.fixture
def canary() -> Iterator[Origin]:
    with Origin().running() as found:
        yield found


class Names:
    """A resolver that knows some names; each answer of a name is used once, the last for ever."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.answers:
            raise OSError("no such name")
        given = self.answers[host]
        return given.pop(0) if len(given) > 1 else given[0]


def own(port: int, *, max_bytes: int = 10_000, timeout_s: float = 5, **options: Any) -> Fetcher:
    """Fetches from pics.test, a server of one's own at 127.0.0.1."""
    options.setdefault("resolver", Names(pics_test=[["127.0.0.1"]]))
    rule = HostRule.parse(f"pics.test:{port}", private=True)
    return Fetcher([rule], max_bytes=max_bytes, timeout_s=timeout_s, **options)


def fetch(fetcher: Fetcher, url: str) -> bytes:
    return asyncio.run(fetcher.fetch(url))


def refusal(fetcher: Fetcher, url: str) -> Problem:
    with pytest.raises(Problem) as refused:
        fetch(fetcher, url)
    return refused.value


# --- what is fetched ------------------------------------------------------------------------------


def test_picture_comes_from_a_listed_host_of_ones_own(origin: Origin) -> None:
    assert fetch(own(origin.port), f"http://pics.test:{origin.port}/a.jpg?size=1") == PICTURE
    assert origin.hosts == [f"pics.test:{origin.port}"]
    assert "cookie" not in origin.headers[0]
    assert "authorization" not in origin.headers[0]


def test_redirects_within_the_rules_are_followed_to_the_third(origin: Origin) -> None:
    origin.status, origin.answer = 302, {"location": "/again", "content-length": "0"}

    problem = refusal(own(origin.port), f"http://pics.test:{origin.port}/")
    assert (problem.code, "more than 3" in problem.detail) == ("fetch_failed", True)
    assert origin.connections == 4


FAILURES: dict[str, tuple[int, dict[str, str], Sequence[bytes], int, str]] = {
    "no picture": (200, {"content-type": "text/html"}, [PICTURE], 422, "no picture"),
    "no type": (200, {}, [PICTURE], 422, "no picture"),
    "compressed": (
        200,
        {"content-type": "image/png", "content-encoding": "gzip"},
        [PICTURE],
        422,
        "compressed",
    ),
    "not found": (404, {"content-type": "image/png"}, [PICTURE], 422, "answered 404"),
    "said to be large": (
        200,
        {"content-type": "image/png", "content-length": "10001"},
        [b""],
        413,
        "over 10000 bytes",
    ),
    "large without a word": (
        200,
        {"content-type": "image/png"},
        [b"x" * 1000] * 11,
        413,
        "over 10000 bytes",
    ),
    "cut short": (
        200,
        {"content-type": "image/png", "content-length": "99"},
        [b"x"],
        422,
        "connection failed",
    ),
}


@pytest.mark.parametrize("case", FAILURES.values(), ids=FAILURES)
def test_what_is_no_whole_picture_within_the_size_is_refused(
    origin: Origin, case: tuple[int, dict[str, str], Sequence[bytes], int, str]
) -> None:
    origin.status, origin.answer, origin.body, status, words = case

    problem = refusal(own(origin.port), f"http://pics.test:{origin.port}/")
    assert (problem.status, problem.code) == (status, "fetch_failed")
    assert words in problem.detail


def test_picture_that_trickles_in_is_given_up_in_time(origin: Origin) -> None:
    origin.body, origin.pause_s = [b"x"] * 100, 0.1

    start = time.monotonic()
    problem = refusal(own(origin.port, timeout_s=0.5), f"http://pics.test:{origin.port}/")
    assert problem.code == "fetch_failed"
    assert "0.5 s" in problem.detail
    assert time.monotonic() - start < 2


def test_pictures_of_a_request_are_fetched_at_the_same_time(origin: Origin) -> None:
    origin.body, origin.pause_s = [b"x"] * 4, 0.1
    urls = [f"http://pics.test:{origin.port}/{n}" for n in range(8)]
    counted: list[int] = []

    start = time.monotonic()
    found = asyncio.run(own(origin.port).fetch_all(urls, within_s=5, count=counted.append))

    assert time.monotonic() - start < 8 * 0.4
    assert found == [b"xxxx"] * 8
    assert sum(counted) == 32


def test_slow_pictures_together_take_no_longer_than_the_request_has(origin: Origin) -> None:
    origin.body, origin.pause_s = [b"x"] * 100, 0.1
    urls = [f"http://pics.test:{origin.port}/{n}" for n in range(32)]

    start = time.monotonic()
    found = asyncio.run(own(origin.port).fetch_all(urls, within_s=1))

    assert time.monotonic() - start < 3
    assert [isinstance(one, Problem) and one.code for one in found] == ["fetch_failed"] * 32


def test_waiting_for_ones_turn_is_not_the_other_sides_fault(origin: Origin) -> None:
    origin.body, origin.pause_s = [b"x"] * 20, 0.1
    url = f"http://pics.test:{origin.port}/"

    async def story() -> Problem:
        fetcher = own(origin.port)
        busy = [asyncio.create_task(fetcher.fetch(url)) for _ in range(16)]
        await asyncio.sleep(0.2)
        with pytest.raises(Problem) as refused:
            await fetcher.fetch_all([url], within_s=0.3)
        assert await asyncio.gather(*busy) == [b"x" * 20] * 16
        return refused.value

    problem = asyncio.run(story())
    assert (problem.status, problem.code) == (503, "overloaded")
    assert problem.headers["retry-after"] == "1"


def test_what_counts_the_bytes_may_end_the_transfer(origin: Origin) -> None:
    origin.body = [b"x" * 1000] * 5

    def count(size: int) -> None:
        raise Problem(413, "body_too_large", "enough")

    url = f"http://pics.test:{origin.port}/"
    with pytest.raises(Problem) as refused:
        asyncio.run(own(origin.port).fetch_all([url], within_s=5, count=count))
    assert refused.value.code == "body_too_large"


def test_nobody_listening_is_a_failure_and_no_crash() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    assert refusal(own(port), f"http://pics.test:{port}/").code == "fetch_failed"


# --- what is never reached ------------------------------------------------------------------------

SPELLINGS = re.findall(
    r"\S+",
    """
http://127.0.0.1:PORT/            http://localhost:PORT/            http://LOCALHOST:PORT/
http://localhost.:PORT/           http://127.0.0.1.:PORT/           http://127.1:PORT/
http://127.0.1:PORT/              http://2130706433:PORT/           http://0x7f000001:PORT/
http://0x7f.0.0.1:PORT/           http://0x7f.1:PORT/               http://017700000001:PORT/
http://0177.0.0.1:PORT/           http://0177.1:PORT/               http://127.000.000.001:PORT/
http://127.0.0.2:PORT/            http://127.255.255.254:PORT/      http://0.0.0.0:PORT/
http://0:PORT/                    http://0x0:PORT/                  http://00000.0:PORT/
http://[::1]:PORT/                http://[::]:PORT/                 http://[0:0:0:0:0:0:0:1]:PORT/
http://[::ffff:127.0.0.1]:PORT/   http://[::ffff:7f00:1]:PORT/      http://[::127.0.0.1]:PORT/
http://[64:ff9b::7f00:1]:PORT/    http://[64:ff9b::127.0.0.1]:PORT/ http://[64:ff9b:1::7f00:1]:PORT/
http://[2002:7f00:1::]:PORT/      http://[2001:0:0:0:0:0:80ff:fffe]:PORT/
http://[::1%25lo]:PORT/           http://[fe80::1%25lo]:PORT/       http://[fe80::1]:PORT/
http://[fc00::1]:PORT/            http://[fd00::1]:PORT/            http://[ff02::1]:PORT/
http://[::ffff:0:127.0.0.1]:PORT/ http://[0:0:0:0:0:ffff:7f00:1]:PORT/
http://①②⑦.⓪.⓪.①:PORT/            http://①②⑦.0.0.1:PORT/            http://１２７.0.0.1:PORT/
http://127。0。0。1:PORT/           http://ｌocalhost:PORT/           http://loc%61lhost:PORT/
http://127.0.0.1%00.pics.test:PORT/                                 http://%31%32%37.0.0.1:PORT/
http://pics.test@127.0.0.1:PORT/  http://pics.test:80@127.0.0.1:PORT/
http://127.0.0.1:PORT@pics.test/  http://127.0.0.1:PORT#@pics.test/ http://127.0.0.1:PORT\\@pics.test/
http:\\\\127.0.0.1:PORT/          http:127.0.0.1:PORT/              http:///127.0.0.1:PORT/
//127.0.0.1:PORT/                 ///127.0.0.1:PORT                 127.0.0.1:PORT/
http://inside.test:PORT/          http://mixed.test:PORT/           http://mapped.test:PORT/
http://localhost.localdomain:PORT/ http://ip6-localhost:PORT/       http://ip6-loopback:PORT/
http://10.0.0.1:PORT/             http://172.16.0.1:PORT/           http://192.168.1.1:PORT/
http://169.254.169.254/latest/    http://169.254.169.254:PORT/      http://[fd00:ec2::254]:PORT/
http://2852039166/latest/         http://metadata.test/computeMetadata/
http://100.64.0.1:PORT/           http://192.0.0.192:PORT/          http://198.18.0.1:PORT/
http://224.0.0.1:PORT/            http://240.0.0.1:PORT/            http://255.255.255.255:PORT/
file:///etc/passwd                file://127.0.0.1:PORT/etc/passwd  ftp://127.0.0.1:PORT/
gopher://127.0.0.1:PORT/_GET      data:image/png;base64,AAAA        javascript:alert(1)
dict://127.0.0.1:PORT/            ws://127.0.0.1:PORT/              unix:///run/docker.sock
jar:http://127.0.0.1:PORT/!/      http+unix://127.0.0.1:PORT/       HTTP://127.0.0.1:PORT/
http://127.0.0.1:PORT             http://127.0.0.1:0PORT/           http://127.0.0.1:+PORT/
""",
)
INSIDE = Names(
    inside_test=[["127.0.0.1"]],
    mixed_test=[["93.184.216.34", "127.0.0.1"]],
    mapped_test=[["::ffff:127.0.0.1"]],
    metadata_test=[["169.254.169.254"]],
)


async def system_and_more(host: str) -> Sequence[str]:
    """What the system resolves, and some names of our own that lead inside."""
    return await (INSIDE(host) if host in INSIDE.answers else resolve(host))


def test_there_are_sixty_spellings_at_least() -> None:
    assert len(set(SPELLINGS)) >= 60


@pytest.fixture(scope="module")
def canaries() -> Iterator[tuple[Origin, Origin]]:
    """One that listens at every IPv4 address of this computer, one at every IPv6 address."""
    with Origin().running() as four, Origin(socket.AF_INET6).running() as six:
        yield four, six


@pytest.mark.parametrize("url", SPELLINGS)
def test_no_spelling_leads_inside_even_when_every_host_is_listed(
    url: str, canaries: tuple[Origin, Origin]
) -> None:
    for canary in canaries:
        rules = [HostRule.parse("*"), HostRule.parse(f"*:{canary.port}")]
        fetcher = Fetcher(rules, max_bytes=999, timeout_s=3, resolver=system_and_more)
        problem = refusal(fetcher, url.replace("PORT", str(canary.port)))

        assert problem.code in ("url_refused", "fetch_failed")
        assert canary.connections == 0


def test_the_canary_does_sing_when_its_address_is_allowed(canary: Origin) -> None:
    rule = HostRule.parse(f"127.0.0.1:{canary.port}", private=True)

    assert fetch(Fetcher([rule], max_bytes=999), f"http://127.0.0.1:{canary.port}/") == PICTURE
    assert canary.connections == 1


PLACES = re.findall(
    r"\S+",
    """
http://127.0.0.1:PORT/   http://localhost:PORT/       http://[::ffff:127.0.0.1]:PORT/
//127.0.0.1:PORT/        http://2130706433:PORT/      http://inside.test:PORT/
http://169.254.169.254/  file:///etc/passwd           data:image/png;base64,AAAA
gopher://127.0.0.1:PORT/ http://pics.test@127.0.0.1:PORT/  http://other.test/a.png
""",
)


@pytest.mark.parametrize("place", PLACES)
def test_redirect_goes_through_the_same_door(origin: Origin, canary: Origin, place: str) -> None:
    there = place.replace("PORT", str(canary.port))
    origin.status, origin.answer = 302, {"location": there, "content-length": "0"}
    names = Names(pics_test=[["127.0.0.1"]], inside_test=[["127.0.0.1"]])

    problem = refusal(own(origin.port, resolver=names), f"http://pics.test:{origin.port}/")
    assert problem.code == "url_refused"
    assert (origin.connections, canary.connections) == (1, 0)


def test_name_that_changes_its_mind_is_asked_once_and_connected_as_checked(origin: Origin) -> None:
    # Were the name asked again for the connection, 127.0.0.9 would take it: nobody listens there.
    names = Names(pics_test=[["127.0.0.1"], ["10.255.255.1"]])

    assert fetch(own(origin.port, resolver=names), f"http://pics.test:{origin.port}/") == PICTURE
    assert names.asked == ["pics.test"]


def test_name_that_turns_inward_between_two_redirects_is_refused(
    origin: Origin, canary: Origin
) -> None:
    origin.status = 302
    origin.answer = {"location": f"http://pub.test:{canary.port}/", "content-length": "0"}
    rules = [
        HostRule.parse(f"pics.test:{origin.port}", private=True),
        HostRule.parse(f"pub.test:{canary.port}"),
    ]
    names = Names(pics_test=[["127.0.0.1"]], pub_test=[["127.0.0.1"]])
    fetcher = Fetcher(rules, max_bytes=999, resolver=names)

    assert refusal(fetcher, f"http://pics.test:{origin.port}/").code == "url_refused"
    assert canary.connections == 0


def test_host_of_ones_own_may_be_private_but_not_the_metadata_of_a_cloud(canary: Origin) -> None:
    for address in (
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "fe80::1",
        "::",
        "::ffff:169.254.1.1",
    ):
        names = Names(pics_test=[[address]])
        fetcher = own(canary.port, resolver=names)
        assert refusal(fetcher, f"http://pics.test:{canary.port}/").code == "url_refused"
    assert canary.connections == 0


def test_unlisted_host_or_port_is_not_even_resolved(canary: Origin) -> None:
    names = Names()
    fetcher = Fetcher(
        [HostRule.parse("a.test"), HostRule.parse("*.b.test")], max_bytes=999, resolver=names
    )
    hosts = ("c.test", "xa.test", "a.test.c.test", "b.test", "xb.test", f"a.test:{canary.port}")
    for host in hosts:
        assert refusal(fetcher, f"http://{host}/").code == "url_refused"
    assert names.asked == []

    for host in ("a.test", "x.b.test", "x.y.b.test", "A.TEST"):
        assert refusal(fetcher, f"https://{host}/").code == "fetch_failed"
    assert names.asked == ["a.test", "x.b.test", "x.y.b.test", "a.test"]


def test_public_means_what_the_registries_say() -> None:
    public = ("1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::5db8:d822")
    inside = (
        *("0.0.0.0", "10.1.1.1", "100.64.0.1", "127.0.0.1", "169.254.1.1", "172.31.0.1"),
        *("192.0.2.1", "192.168.0.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "255.255.255.255"),
        *("::", "::1", "::7f00:1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "100::1"),
        *("2001:db8::1", "2001::1", "2002:a00:1::", "fc00::1", "fe80::1", "fec0::1", "ff0e::1"),
        *("3fff::1",) * (not ipaddress.ip_address("3fff::1").is_global),
    )

    assert [a for a in public if not is_public(ipaddress.ip_address(a))] == []
    assert [a for a in inside if is_public(ipaddress.ip_address(a))] == []


NO_HOSTS = (
    *("", "http://a.test", "a.test/x", "a b", "*.", "*a.test", "a.*.test", "127.1", "a.test:0"),
    *("a.test:99999", "user@a.test", "0x7f000001", "[::1", "a_.test.:x"),
)


@pytest.mark.parametrize("text", NO_HOSTS)
def test_listed_host_that_is_none_is_refused_at_start(text: str) -> None:
    with pytest.raises(ArgumentError, match="fetch_hosts"):
        HostRule.parse(text)


@pytest.mark.parametrize("text", ["*", "*.lan.test"])
def test_private_hosts_are_named_one_by_one(text: str) -> None:
    with pytest.raises(ArgumentError, match="fetch_allow_private"):
        HostRule.parse(text, private=True)


# --- https ----------------------------------------------------------------------------------------


class _Named(Origin):
    """The same over TLS, with a certificate for pics.test."""

    contexts: ClassVar[list[ssl.SSLContext]] = []

    def wrap(self, folder: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")

        def note(_socket: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
            self.names.append(name)

        context.sni_callback = note
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for pics.test."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pics.test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("pics.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


def _trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


def test_https_asks_for_the_name_and_checks_it_though_the_address_is_pinned(
    certificate: Path,
) -> None:
    found = _Named()
    found.wrap(certificate)
    with found.running() as origin:
        fetcher = own(origin.port, ssl_context=_trusting(certificate))
        assert fetch(fetcher, f"https://pics.test:{origin.port}/a.png") == PICTURE
    assert found.names == ["pics.test"]


def test_https_with_the_wrong_name_or_an_unknown_issuer_is_refused(certificate: Path) -> None:
    found = _Named()
    found.wrap(certificate)
    with found.running() as origin:
        names = Names(pics_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])
        rules = [
            HostRule.parse(f"{host}:{origin.port}", private=True)
            for host in ("pics.test", "other.test")
        ]
        trusting = _trusting(certificate)
        for host, context in (("other.test", trusting), ("pics.test", None)):
            fetcher = Fetcher(rules, max_bytes=999, resolver=names, ssl_context=context)
            assert refusal(fetcher, f"https://{host}:{origin.port}/").code == "fetch_failed"
    assert found.hosts == []


def test_redirect_from_https_to_http_is_refused(certificate: Path, canary: Origin) -> None:
    found = _Named()
    found.wrap(certificate)
    found.status = 302
    found.answer = {"location": f"http://pics.test:{canary.port}/", "content-length": "0"}
    with found.running() as origin:
        rules = [
            HostRule.parse(f"pics.test:{port}", private=True) for port in (origin.port, canary.port)
        ]
        fetcher = Fetcher(
            rules,
            max_bytes=999,
            resolver=Names(pics_test=[["127.0.0.1"]]),
            ssl_context=_trusting(certificate),
        )
        assert refusal(fetcher, f"https://pics.test:{origin.port}/").code == "url_refused"
    assert canary.connections == 0


def test_address_is_read_one_way_only() -> None:
    target = Target.parse("HTTPS://Pics.Test/a/../b%2e?q=1#x")

    assert target == Target("https", "pics.test", 443, "/a/../b%2e?q=1")
    assert target.authority == "pics.test"
    assert Target.parse("http://[2606:4700:0::1111]:8080").url == "http://[2606:4700::1111]:8080/"


# --- the whole service ----------------------------------------------------------------------------


def test_service_fetches_what_is_listed_and_touches_nothing_else(
    start_server: StartServer, origin: Origin, canary: Origin, photo: bytes
) -> None:
    origin.body = [photo]
    allowed = f"fetch_allow_private=127.0.0.1:{origin.port}"
    everything = f"fetch_hosts=*,*:{canary.port}"
    server = start_server(
        *("--workers", "1", "--set", "fetch_urls=true", "--set", allowed, "--set", everything)
    )
    inside = f"http://127.0.0.1:{canary.port}/"
    urls = [
        f"http://127.0.0.1:{origin.port}/face.jpg",
        *(inside, f"http://localhost:{canary.port}/", f"http://[::ffff:127.0.0.1]:{canary.port}/"),
        *("http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "http://2130706433/"),
    ]
    answer = server.post("/v1/analyze", json={"images": [{"url": url} for url in urls]})
    origin.status, origin.answer = 302, {"location": inside, "content-length": "0"}
    redirected = server.post("/v1/analyze", json={"images": [{"url": urls[0]}]})

    assert answer.status_code == 200
    fetched, *refused = answer.json()["analyses"]
    assert (fetched["error"], len(fetched["faces"])) == (None, 1)
    assert {one["error"]["code"] for one in refused} == {"url_refused"}
    assert redirected.json()["errors"][0]["code"] == "url_refused"
    assert (origin.connections, canary.connections) == (2, 0)


def test_service_fetches_nothing_unless_told_to(server: RunningServer, canary: Origin) -> None:
    asked = {"images": [{"url": f"http://127.0.0.1:{canary.port}/"}]}
    answer = server.post("/v1/analyze", json=asked)

    assert (answer.status_code, answer.json()["code"]) == (403, "url_disabled")
    assert canary.connections == 0


def test_settings_that_would_fetch_from_anywhere_by_mistake_are_refused() -> None:
    for hosts in ((), ("http://a.test",), ("127.1",)):
        with pytest.raises(ArgumentError, match="fetch_hosts"):
            Fetcher.open(ServerSettings.load(fetch_urls=True, fetch_hosts=hosts))
    assert Fetcher.open(ServerSettings.load(fetch_hosts=("a.test",))) is None
