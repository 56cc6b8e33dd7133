"""
MQTT: what is true now, told to a broker, for screens and controllers that speak no HTTP.

    TOPIC/SITE/status     online, or offline: from the broker itself when the connection is lost
    TOPIC/SITE/audience   who is there now, as JSON
    TOPIC/SITE/slot       the content that the rules choose, as JSON

All are retained, so that who subscribes later has the present at once. Only the newest is ever
sent: while the broker is away or slow nothing is stored up.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote, urlsplit

from agelens.errors import ArgumentError, MissingExtra

if TYPE_CHECKING:
    from paho.mqtt.client import Client

    from agelens.video.present import AudienceEvent

PASSWORD_VARIABLE: Final = "AGELENS_MQTT_PASSWORD"
"""Variable of the environment that the password is read from when no file is given."""

_PORTS: Final = {False: 1883, True: 8883}
_SCHEMES: Final = {"mqtt": False, "mqtts": True}
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*)\.?")
_NO_TOPIC: Final = re.compile(r"[+#\x00-\x1f\x7f]")
_ESCAPED: Final = re.compile(r"[%/+#$\x00-\x1f\x7f]")
_LONGEST_TOPIC: Final = 200
_LARGEST_FILE: Final = 4096
_KEEPALIVE_S: Final = 10
_RETRY_S: Final = (1, 30)
_IN_FLIGHT: Final = 8
"""Messages that may wait for a broker that takes them and confirms none."""
_LEAVE_S: Final = 2.0


@dataclass(frozen=True)
class MqttPlan:
    """To which broker, and how.

    Attributes:
        host: Name or address.
        port: None takes 8883 with ``tls`` and 1883 without.
        topic: What all topics begin with; no wildcard, no slash at its ends.
        user: Name to sign in with; None signs in without.
        password_file: File whose first line is the password; None reads the variable
            AGELENS_MQTT_PASSWORD.
        tls: Encrypt, and check the broker's certificate.
        ca: File of the authorities to trust; None takes the system's.
        certificate: File of the client's own certificate, where the broker asks for one.
        key: File of its private key.
        plain_password: Send the password without TLS to another computer.
    """

    host: str
    port: int | None = None
    topic: str = "agelens"
    user: str | None = None
    password_file: str | None = None
    tls: bool = False
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    plain_password: bool = False

    def __post_init__(self) -> None:
        if not (_HOST.fullmatch(self.host) or _is_address(self.host)):
            raise ArgumentError(
                f"mqtt: host {self.host!r}: expected a host name or an address, without scheme "
                "and port"
            )
        if self.port is not None and not 1 <= self.port <= 65_535:
            raise ArgumentError(f"mqtt: port must be within 1..65535, got {self.port}")
        parts = self.topic.split("/")
        if "" in parts or _NO_TOPIC.search(self.topic) or len(self.topic) > _LONGEST_TOPIC:
            raise ArgumentError(
                f"mqtt: topic {self.topic!r}: expected words with a single / between, without + "
                f"and #, at most {_LONGEST_TOPIC} characters"
            )
        if not self.tls and (self.ca or self.certificate or self.key):
            raise ArgumentError("mqtt: ca, certificate and key are for TLS; set tls = true")
        if (self.certificate is None) != (self.key is None):
            raise ArgumentError("mqtt: certificate and key go together; give both or neither")
        if self.user is None and self.password_file is not None:
            raise ArgumentError("mqtt: there is a password and no user; give user as well")
        if self.user and not (self.tls or self.plain_password or _is_here(self.host)):
            raise ArgumentError(
                f"mqtt: the password would go to {self.host} unencrypted; set tls = true, or "
                "plain_password = true where the network is trusted"
            )

    @property
    def address(self) -> str:
        """The broker, as people read it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port or _PORTS[self.tls]}"

    @classmethod
    def of_url(cls, url: str) -> MqttPlan:
        """A plan from an address, as the command line has it.

        >>> MqttPlan.of_url("mqtts://player@broker.example/shop/audience").topic
        'shop/audience'

        Args:
            url: mqtt:// or mqtts://, then [USER@]HOST[:PORT][/TOPIC].

        Raises:
            ArgumentError: It is none, or holds a password, which others could read in the list of
                processes.
        """
        wanted = "expected mqtt://[USER@]HOST[:PORT][/TOPIC], or mqtts:// for TLS"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ArgumentError(f"mqtt: this is no address; {wanted}") from error
        if parts.password is not None:
            raise ArgumentError(
                "mqtt: the address holds a password, which others on this computer could read; "
                f"put it into the variable {PASSWORD_VARIABLE} or a file"
            )
        if parts.scheme not in _SCHEMES or not parts.hostname or set("?#") & set(url):
            raise ArgumentError(f"mqtt: {url!r} is no address; {wanted}")
        return cls(
            host=parts.hostname,
            port=port,
            topic=unquote(parts.path).strip("/") or "agelens",
            user=unquote(parts.username) if parts.username else None,
            tls=_SCHEMES[parts.scheme],
        )

    def password(self) -> str | None:
        """The password; None when the plan names no user.

        Raises:
            ArgumentError: There is none, or its file cannot be read.
        """
        if self.user is None:
            return None
        if self.password_file is None:
            found = os.environ.get(PASSWORD_VARIABLE, "")
            if not found:
                raise ArgumentError(
                    f"mqtt: there is no password for {self.user!r}; give password_file, or the "
                    f"variable {PASSWORD_VARIABLE}"
                )
            return found
        path = Path(self.password_file).expanduser()
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise ArgumentError(f"mqtt: {path}: over {_LARGEST_FILE} bytes; no password")
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(
                f"mqtt: password_file {path}: cannot be read ({type(error).__name__})"
            ) from error
        if not lines or not lines[0]:
            raise ArgumentError(f"mqtt: password_file {path}: its first line is empty")
        return lines[0]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_here(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


# --- publishing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MqttStatus:
    """How it goes.

    Attributes:
        connected: The broker is there and took the client in.
        sent: Messages that it confirmed.
        connections: Times that it was connected.
        message: What is wrong; empty when nothing is. It holds no password.
    """

    connected: bool
    sent: int
    connections: int
    message: str


@dataclass(eq=False)
class _Newest:
    """What a topic should say, and whether the broker knows it."""

    text: str | None = None
    version: int = 0
    told: int = 0


class MqttPublisher:
    """Tells a broker what is true now; a context manager, thread-safe.

    It connects in the background, again and again when the broker is away, and says the newest as
    soon as it is back. ``publish`` never waits.
    """

    def __init__(
        self,
        plan: MqttPlan,
        *,
        site: str,
        on_change: Callable[[MqttStatus], None] = lambda _: None,
    ) -> None:
        """Read the password and the certificates; connects with ``open``.

        Args:
            plan: To which broker, and how.
            site: Part of the topics; what a topic cannot hold is escaped as in addresses.
            on_change: Told when the connection comes or goes; must not wait.

        Raises:
            ArgumentError: The password or a certificate cannot be read.
            MissingExtra: paho-mqtt is not installed.
        """
        self.plan = plan
        place = _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", site)
        self.topic = f"{plan.topic}/{place}"
        self._on_change = on_change
        self._lock = threading.Condition()
        self._newest = {name: _Newest() for name in ("status", "audience", "slot")}
        self._connected = self._closing = self._refused = False
        self._connections = self._sent = 0
        self._message = "not connected yet"
        self._client = _client(plan, f"{self.topic}/status", self._failed)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._threads = (
            threading.Thread(target=self._network, name="mqtt-network", daemon=True),
            threading.Thread(target=self._sender, name="mqtt-sender", daemon=True),
        )

    @property
    def status(self) -> MqttStatus:
        """How it goes at this moment."""
        with self._lock:
            return MqttStatus(self._connected, self._sent, self._connections, self._message)

    def open(self) -> None:
        """Begin to connect; returns at once."""
        self._client.connect_async(
            self.plan.host, self.plan.port or _PORTS[self.plan.tls], _KEEPALIVE_S
        )
        for thread in self._threads:
            thread.start()

    def publish(self, event: AudienceEvent) -> None:
        """Say what is true now; takes the place of what was not sent yet."""
        with self._lock:
            self._say("audience", json.dumps(event.state.to_dict(), ensure_ascii=False))
            if event.showing is not None:
                self._say("slot", json.dumps(event.showing.to_dict(), ensure_ascii=False))
            self._lock.notify_all()

    def _say(self, name: str, text: str) -> None:
        newest = self._newest[name]
        if newest.text != text:
            newest.text = text
            newest.version += 1

    def close(self) -> None:
        """Say that it is offline, and leave; within a few seconds even when the broker hangs."""
        with self._lock:
            if self._closing:
                return
            self._say("status", "offline")
            self._lock.notify_all()
            self._lock.wait_for(lambda: not self._connected or self._is_told("status"), _LEAVE_S)
            self._closing = True
            self._lock.notify_all()
        self._client.disconnect()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_LEAVE_S)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the connection -------------------------------------------------------------------------

    def _network(self) -> None:
        try:
            self._client.loop_forever(retry_first_connection=True)
        except Exception as error:
            self._changed(False, f"stopped: {type(error).__name__}: {error}")

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _: Any) -> None:
        with self._lock:
            self._refused = reason.is_failure
        if reason.is_failure:
            self._changed(False, f"{self.plan.address} refused: {reason}")
            return
        with self._lock:
            if self._closing:
                client.disconnect()
                return
            self._connections += 1
            self._say("status", "online")
            for newest in self._newest.values():
                newest.told = 0
        self._changed(True, "")

    def _on_disconnect(self, _client: Client, _data: Any, _flags: Any, reason: Any, _: Any) -> None:
        # A refusal says more than the hanging up that follows it.
        if not self._refused:
            self._changed(False, f"{self.plan.address} is gone: {reason}")

    def _failed(self, error: OSError) -> None:
        self._changed(False, f"{self.plan.address} cannot be reached: {error}")

    def _changed(self, connected: bool, message: str) -> None:
        with self._lock:
            news = (connected, message) != (self._connected, self._message)
            self._connected, self._message = connected, message
            closing = self._closing
            self._lock.notify_all()
        if news and not closing:
            self._on_change(self.status)

    # --- the messages ---------------------------------------------------------------------------

    def _sender(self) -> None:
        """Send the newest of each topic, one message at a time, each when the last is confirmed."""
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closing or (self._connected and self._due()))
                if self._closing:
                    return
                name = self._due()
                assert name is not None
                newest, version = self._newest[name], self._newest[name].version
                text, connection = newest.text, self._connections
            # Without the lock: paho calls back while it holds locks of its own.
            message = self._client.publish(f"{self.topic}/{name}", text, qos=1, retain=True)
            while message.rc == 0 and not message.is_published():
                message.wait_for_publish(0.1)
                with self._lock:
                    if self._closing or self._connections != connection or not self._connected:
                        break
            with self._lock:
                if message.rc == 0 and message.is_published() and self._connections == connection:
                    newest.told = version
                    self._sent += 1
                    self._lock.notify_all()
                elif self._connected:
                    self._lock.wait(0.1)

    def _due(self) -> str | None:
        return next((n for n in self._newest if not self._is_told(n)), None)

    def _is_told(self, name: str) -> bool:
        newest = self._newest[name]
        return newest.text is None or newest.told == newest.version


def _client(plan: MqttPlan, status: str, on_failure: Callable[[OSError], None]) -> Client:
    try:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
    except ImportError as error:
        raise MissingExtra("visitors", "telling an MQTT broker") from error

    class Telling(Client):
        """Tells why it cannot connect, which the library keeps to itself."""

        def reconnect(self) -> MQTTErrorCode:
            try:
                return super().reconnect()
            except OSError as error:
                on_failure(error)
                raise

    client = Telling(CallbackAPIVersion.VERSION2)
    client.will_set(status, "offline", qos=1, retain=True)
    client.reconnect_delay_set(*_RETRY_S)
    client.max_inflight_messages_set(_IN_FLIGHT)
    client.max_queued_messages_set(_IN_FLIGHT)
    if plan.user is not None:
        client.username_pw_set(plan.user, plan.password())
    if plan.tls:
        client.tls_set_context(_tls(plan))
    return client


def _tls(plan: MqttPlan) -> ssl.SSLContext:
    named = {"ca": plan.ca, "certificate": plan.certificate, "key": plan.key}
    paths = {n: None if p is None else Path(p).expanduser() for n, p in named.items()}
    for name, path in paths.items():
        if path is not None and not path.is_file():
            raise ArgumentError(f"mqtt: {name}: there is no file {path}")
    try:
        context = ssl.create_default_context(cafile=paths["ca"])
        if paths["certificate"] is not None:
            context.load_cert_chain(paths["certificate"], paths["key"])
    except (OSError, ssl.SSLError) as error:
        raise ArgumentError(
            f"mqtt: the certificates cannot be used ({type(error).__name__}: {error}); expected "
            "PEM files, and the key of that certificate"
        ) from error
    return context


__all__ = ["PASSWORD_VARIABLE", "MqttPlan", "MqttPublisher", "MqttStatus"]
