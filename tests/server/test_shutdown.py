"""The end of the service, asked for and not: no accepted request is lost."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
import psutil
import pytest

from command_line import agelens
from server.conftest import RunningServer, StartServer

IMAGE = {"content-type": "image/jpeg"}


@dataclass
class Load:
    """Clients that ask one request after another until they are told to stop, or refused.

    Attributes:
        answers: Status by request id.
        failures: Requests without an answer.
    """

    server: RunningServer
    photo: bytes
    answers: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        with httpx2.Client(base_url=self.server.url, timeout=60) as client:
            while not self.ended.is_set():
                name = uuid.uuid4().hex
                try:
                    answer = client.post(
                        "/v1/analyze", content=self.photo, headers={**IMAGE, "x-request-id": name}
                    )
                except httpx2.TransportError as error:
                    self.failures[name] = type(error).__name__
                    return
                self.answers[name] = answer.status_code
                if answer.status_code == 503:
                    time.sleep(0.05)

    @contextmanager
    def running(self, clients: int) -> Iterator[None]:
        threads = [threading.Thread(target=self.ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ended.set()
            for thread in threads:
                thread.join()


def _logged(server: RunningServer) -> dict[str, int | None]:
    """Status by request id, of all requests for analyses that the server took in."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    return {
        line["request_id"]: line["status"]
        for line in lines
        if line.get("event") == "request" and line["route"] == "/v1/analyze"
    }


def test_sigterm_under_load_loses_no_accepted_request(
    start_server: StartServer, photo: bytes
) -> None:
    started = start_server("--workers", "1")
    load = Load(started, photo)
    with load.running(clients=8):
        while len(load.answers) < 16:
            time.sleep(0.05)
        asked = time.monotonic()
        started.process.send_signal(signal.SIGTERM)
        status = started.process.wait(30)
        took = time.monotonic() - asked

    assert status == 0
    assert took < 10.5
    assert set(load.answers.values()) <= {200, 503}
    assert _logged(started) == load.answers
    assert not set(load.failures) & set(_logged(started))


def test_an_idle_server_ends_at_once(start_server: StartServer) -> None:
    started = start_server("--workers", "1")
    workers = psutil.Process(started.process.pid).children(recursive=True)
    asked = time.monotonic()

    started.process.send_signal(signal.SIGINT)

    assert started.process.wait(20) == 0
    assert time.monotonic() - asked < 6
    assert workers
    assert not any(worker.is_running() for worker in workers)


def test_while_it_ends_it_is_not_ready_but_answers(start_server: StartServer, photo: bytes) -> None:
    started = start_server("--workers", "1")
    with httpx2.Client(base_url=started.url, timeout=30) as client:
        assert client.get("/readyz").status_code == 200
        started.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 5
        while (answer := client.get("/readyz")).status_code == 200 and time.monotonic() < end:
            time.sleep(0.01)
        last = client.post("/v1/analyze", content=photo, headers=IMAGE)

    assert answer.status_code == 503
    assert answer.json()["code"] == "not_ready"
    assert answer.headers["connection"] == "close"
    assert last.status_code == 200


def test_a_client_that_never_ends_does_not_keep_the_server(start_server: StartServer) -> None:
    started = start_server("--workers", "1", "--set", "grace_s=4")
    with socket.create_connection(("127.0.0.1", started.port)) as connection:
        connection.sendall(
            b"POST /v1/analyze HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 100\r\n\r\n"
        )
        time.sleep(0.2)
        asked = time.monotonic()
        started.process.send_signal(signal.SIGTERM)

        assert started.process.wait(20) == 0
        assert time.monotonic() - asked < 12  # the client alone would have had 20 s


def test_a_worker_that_is_killed_is_not_noticed(start_server: StartServer, photo: bytes) -> None:
    started = start_server("--workers", "2")
    before = _workers(started)
    load = Load(started, photo)
    with load.running(clients=6):
        while len(load.answers) < 6:
            time.sleep(0.05)
        killed = before[0]
        killed.kill()
        end = time.monotonic() + 60
        while time.monotonic() < end and "reason=" not in _restarts(started):
            time.sleep(0.1)
        count = len(load.answers)
        while len(load.answers) < count + 6:
            time.sleep(0.05)

    assert load.failures == {}
    assert set(load.answers.values()) == {200}
    assert _restarts(started) == 'agelens_worker_restarts_total{reason="died"} 1.0'
    end = time.monotonic() + 60
    while len(_workers(started)) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    assert len(_workers(started)) == 2
    assert killed not in _workers(started)


def _workers(server: RunningServer) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


def _restarts(server: RunningServer) -> str:
    lines = server.get("/metrics").text.splitlines()
    return next((x for x in lines if x.startswith("agelens_worker_restarts_total{")), "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "nobody"), "nobody"),
        (("--set", "models=nobody"), "nobody"),
        (("--set", "max_image_bytes=99999999"), "max_body_bytes"),
        (("--keys", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_what_cannot_work_is_said_before_anything_listens(
    arguments: tuple[str, ...], said: str
) -> None:
    outcome = agelens("serve", "--port", "0", *arguments)

    assert outcome.status == 2
    assert said in outcome.err
    assert outcome.out == ""
