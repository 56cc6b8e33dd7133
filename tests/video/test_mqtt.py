from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("paho.mqtt", reason="needs the 'visitors' extra")

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from agelens.errors import ArgumentError
from agelens.video.audience import AudienceState
from agelens.video.mqtt import PASSWORD_VARIABLE, MqttPlan, MqttPublisher, MqttStatus
from agelens.video.present import AudienceEvent
from agelens.video.rules import Showing
from video.brokers import Broker
from video.moments import NOON
from video.streams import free_port


def event(people: int, slot: str = "house") -> AudienceEvent:
    state = AudienceState(NOON, cameras=1, people=people, age_s=0.0)
    return AudienceEvent(f"a-{people}", "shop", state, Showing(slot, None, NOON))


class Listener:
    """A client that subscribes to everything and remembers it in order."""

    def __init__(self, broker: Broker, **options: object) -> None:
        self.heard: list[tuple[str, str, bool]] = []
        self._changed = threading.Condition()
        self.client = Client(CallbackAPIVersion.VERSION2)
        self.client.on_connect = lambda client, *_: client.subscribe("#", 1)
        self.client.on_message = lambda _client, _data, message: self._take(
            message.topic, message.payload.decode(), bool(message.retain)
        )
        if options:
            self.client.username_pw_set(**options)  # type: ignore[arg-type]
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()

    def _take(self, topic: str, text: str, retained: bool) -> None:
        with self._changed:
            self.heard.append((topic, text, retained))
            self._changed.notify_all()

    def newest(self, topic: str) -> str | None:
        with self._changed:
            return next((text for name, text, _ in reversed(self.heard) if name == topic), None)

    def wait(self, topic: str, fits: Callable[[str], bool], within_s: float = 10) -> None:
        def there() -> bool:
            return any(name == topic and fits(text) for name, text, _ in self.heard[-3:])

        with self._changed:
            assert self._changed.wait_for(there, within_s), self.heard

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@contextmanager
def listening(broker: Broker, **options: object) -> Iterator[Listener]:
    listener = Listener(broker, **options)
    try:
        yield listener
    finally:
        listener.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    running = Broker(tmp_path)
    yield running
    running.stop()


def until(fits: Callable[[], bool], within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while not fits():
        assert time.monotonic() < end
        time.sleep(0.02)


def has_people(count: int) -> Callable[[str], bool]:
    return lambda text: json.loads(text)["people"] == count


# --- a broker -------------------------------------------------------------------------------------


def test_who_subscribes_later_has_the_present_at_once(broker: Broker) -> None:
    with MqttPublisher(MqttPlan("127.0.0.1", broker.port), site="shop") as publisher:
        publisher.publish(event(2))
        publisher.publish(event(3, "crowd"))
        until(lambda: publisher.status.sent >= 3)
        with listening(broker) as listener:
            listener.wait("agelens/shop/audience", has_people(3))
            listener.wait("agelens/shop/slot", lambda text: json.loads(text)["slot"] == "crowd")
            assert listener.newest("agelens/shop/status") == "online"
            assert {retained for _, _, retained in listener.heard} == {True}
            publisher.close()
            listener.wait("agelens/shop/status", lambda text: text == "offline")


def test_the_broker_itself_says_offline_when_the_publisher_dies(broker: Broker) -> None:
    script = (
        "import sys, time\n"
        "from agelens.video.mqtt import MqttPlan, MqttPublisher\n"
        f"MqttPublisher(MqttPlan('127.0.0.1', {broker.port}), site='shop').open()\n"
        "time.sleep(60)\n"
    )
    with listening(broker) as listener:
        dying = subprocess.Popen([sys.executable, "-c", script])
        listener.wait("agelens/shop/status", lambda text: text == "online", 20)
        dying.kill()
        dying.wait()
        listener.wait("agelens/shop/status", lambda text: text == "offline")


def test_a_broker_that_was_away_hears_the_newest_and_nothing_older(broker: Broker) -> None:
    told: list[MqttStatus] = []
    plan = MqttPlan("127.0.0.1", broker.port)
    with MqttPublisher(plan, site="shop", on_change=told.append) as publisher:
        publisher.publish(event(1))
        until(lambda: publisher.status.sent >= 3)
        broker.stop()
        until(lambda: not publisher.status.connected)
        for count in range(2, 200):
            publisher.publish(event(count))
        broker.start()
        with listening(broker) as listener:
            listener.wait("agelens/shop/audience", has_people(199), 15)
            listener.wait("agelens/shop/status", lambda text: text == "online")
            heard = {
                json.loads(t)["people"] for n, t, _ in listener.heard if n.endswith("audience")
            }

    assert heard <= {1, 199}
    assert [status.connected for status in told] == [True, False, True]
    assert "is gone" in told[1].message or "cannot be reached" in told[1].message


def test_a_broker_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    broker.stop()
    with MqttPublisher(MqttPlan("127.0.0.1", broker.port), site="shop") as publisher:
        publisher.publish(event(4))
        until(lambda: "cannot be reached" in publisher.status.message)
        broker.start()
        with listening(broker) as listener:
            listener.wait("agelens/shop/audience", has_people(4), 15)
    broker.stop()


def test_a_broker_that_hangs_costs_no_memory_and_holds_up_nobody(broker: Broker) -> None:
    with MqttPublisher(MqttPlan("127.0.0.1", broker.port), site="shop") as publisher:
        publisher.publish(event(1))
        until(lambda: publisher.status.sent >= 3)
        broker.freeze()
        begun = time.monotonic()
        for count in range(2, 5000):
            publisher.publish(event(count))
        published_s = time.monotonic() - begun
        time.sleep(0.3)
        waiting = len(publisher._client._out_packet) + len(publisher._client._out_messages)
        begun = time.monotonic()
        publisher.close()
        closed_s = time.monotonic() - begun
        broker.thaw()

    assert published_s < 2
    assert waiting <= 8
    assert closed_s < 12


# --- signing in -----------------------------------------------------------------------------------

SECRET = "correct horse battery staple"


@pytest.fixture
def closed_broker(tmp_path: Path) -> Iterator[Broker]:
    running = Broker(tmp_path, user="player", password=SECRET)
    yield running
    running.stop()


def test_the_password_comes_from_a_file_and_is_never_told(
    closed_broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "secret").write_text(SECRET + "\n")
    plan = MqttPlan(
        "127.0.0.1", closed_broker.port, user="player", password_file=str(tmp_path / "secret")
    )
    told: list[MqttStatus] = []
    with MqttPublisher(plan, site="shop", on_change=told.append) as publisher:
        publisher.publish(event(5))
        with listening(closed_broker, username="player", password=SECRET) as listener:
            listener.wait("agelens/shop/audience", has_people(5))

    assert SECRET not in repr((plan, told, vars(publisher.plan))) + caplog.text


def test_a_wrong_password_is_said_and_tried_again(
    closed_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong " + SECRET)
    plan = MqttPlan("127.0.0.1", closed_broker.port, user="player")
    told: list[MqttStatus] = []
    with MqttPublisher(plan, site="shop", on_change=told.append) as publisher:
        until(lambda: "refused" in publisher.status.message)
        assert not publisher.status.connected

    assert told[0].message == f"127.0.0.1:{closed_broker.port} refused: Not authorized"
    assert SECRET not in repr(told)


def test_without_a_password_there_is_nothing_to_sign_in_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    with pytest.raises(ArgumentError, match="no password for 'player'; give password_file, or the"):
        MqttPlan("localhost", user="player").password()
    with pytest.raises(ArgumentError, match=r"password_file .*nothing: cannot be read"):
        MqttPlan("localhost", user="player", password_file=str(tmp_path / "nothing")).password()
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ArgumentError, match="its first line is empty"):
        MqttPlan("localhost", user="player", password_file=str(tmp_path / "empty")).password()


# --- TLS ------------------------------------------------------------------------------------------


def certified(folder: Path, name: str, *, days: int = 30) -> None:
    """A certificate authority in ca.pem, and a certificate of it for a host name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def subject(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])

    now = datetime.now(UTC)
    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    made = (
        x509.CertificateBuilder()
        .issuer_name(subject("tests"))
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
    )
    root = (
        made.subject_name(subject("tests"))
        .public_key(authority.public_key())
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                key_cert_sign=True, crl_sign=True, digital_signature=False,
                content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False
        )
        .sign(authority, hashes.SHA256())
    )  # fmt: skip
    leaf = (
        made.subject_name(subject(name))
        .public_key(own.public_key())
        .serial_number(2)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            critical=False,
        )
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(root.public_bytes(pem))
    (folder / "own.pem").write_bytes(leaf.public_bytes(pem))
    (folder / "own.key").write_bytes(
        own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("name", "trusted"), [("localhost", True), ("elsewhere.example", False)])
def test_tls_takes_only_a_broker_that_can_prove_its_name(
    tmp_path: Path, name: str, trusted: bool
) -> None:
    certified(tmp_path, name)
    broker = Broker(tmp_path, f"certfile {tmp_path / 'own.pem'}", f"keyfile {tmp_path / 'own.key'}")
    plan = MqttPlan("localhost", broker.port, tls=True, ca=str(tmp_path / "ca.pem"))
    with MqttPublisher(plan, site="shop") as publisher:
        publisher.publish(event(1))
        if trusted:
            until(lambda: publisher.status.sent >= 3)
        else:
            until(lambda: "CERTIFICATE_VERIFY_FAILED" in publisher.status.message)
            assert publisher.status.connections == 0
    broker.stop()


# --- the plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker.local", MqttPlan("broker.local")),
        ("mqtts://broker.example:8884/shop/hall", MqttPlan(
            "broker.example", 8884, topic="shop/hall", tls=True)),
        ("mqtts://player@broker.example", MqttPlan("broker.example", user="player", tls=True)),
        ("mqtt://[::1]:1884/", MqttPlan("::1", 1884)),
    ],
)  # fmt: skip
def test_an_address_says_it_all(url: str, expected: MqttPlan) -> None:
    assert MqttPlan.of_url(url) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://broker", "expected mqtt://"),
        ("mqtt://", "expected mqtt://"),
        ("mqtt://broker:99999", "this is no address"),
        ("mqtt://broker/a/#", "expected mqtt://"),
        ("mqtt://broker/a//b", "expected words with a single /"),
        ("mqtt://player:hunter2@broker", "the address holds a password"),
        ("mqtt://player@broker.example", "the password would go to broker.example unencrypted"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str, message: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        MqttPlan.of_url(url)

    assert message in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"host": "a b"}, "expected a host name"),
        ({"host": "x", "port": 0}, "port must be within 1..65535"),
        ({"host": "x", "topic": "/a"}, "expected words with a single /"),
        ({"host": "x", "topic": "a/+/b"}, "without [+] and #"),
        ({"host": "x", "ca": "ca.pem"}, "set tls = true"),
        ({"host": "x", "tls": True, "key": "k.pem"}, "certificate and key go together"),
        ({"host": "x", "password_file": "p"}, "give user as well"),
    ],
)
def test_an_impossible_plan_is_refused(plan: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        MqttPlan(**plan)  # type: ignore[arg-type]


def test_a_site_with_signs_of_its_own_stays_one_part_of_the_topic() -> None:
    publisher = MqttPublisher(MqttPlan("localhost", free_port()), site="Hall 1/2 + Café #3")

    assert publisher.topic == "agelens/Hall 1%2F2 %2B Café %233"


def test_certificates_that_are_none_are_refused_with_their_name(tmp_path: Path) -> None:
    plan = MqttPlan("localhost", tls=True, ca=str(tmp_path / "ca.pem"))
    with pytest.raises(ArgumentError, match=r"mqtt: ca: there is no file .*ca\.pem"):
        MqttPublisher(plan, site="shop")
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ArgumentError, match="the certificates cannot be used"):
        MqttPublisher(plan, site="shop")
