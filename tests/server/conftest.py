"""The service as its users meet it: the real command in a process of its own, over real HTTP."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import HTTPServer
from pathlib import Path

import httpx2
import pytest

from command_line import command


@dataclass(frozen=True)
class RunningServer:
    """A server that was started by the command.

    Attributes:
        url: Its address, without a slash at the end.
        process: The front process.
        log: File that takes its standard error.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str, **options: object) -> httpx2.Response:
        """One GET on a connection of its own."""
        return httpx2.get(self.url + path, timeout=30, **options)  # type: ignore[arg-type]

    def post(self, path: str, **options: object) -> httpx2.Response:
        """One POST on a connection of its own."""
        return httpx2.post(self.url + path, timeout=60, **options)  # type: ignore[arg-type]

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rsplit(":", 1)[1])

    def wait_until_ready(self, timeout_s: float = 60) -> None:
        """Wait for every worker to be warm."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.log.read_text()}")
            try:
                if self.get("/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not ready in {timeout_s} s:\n{self.log.read_text()}")

    def stop(self, timeout_s: float = 20) -> int:
        """Ask it to end and give its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextmanager
def serving(server: HTTPServer) -> Iterator[None]:
    """Answer requests to a server of the standard library in a thread, and close it afterwards."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


StartServer = Callable[..., RunningServer]
"""``start_server(*arguments, env={}, ready=True)`` runs ``agelens serve --port 0 ARGUMENTS``."""


def launch(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, ready: bool = True
) -> RunningServer:
    """Start ``agelens serve --port 0`` with further arguments; its log goes to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"server-{time.monotonic_ns()}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command("serve", "--port", "0", *arguments),
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(env or {})},
        )
    server = RunningServer(_address(process, log), process, log)
    if ready:
        server.wait_until_ready()
    return server


def _address(process: subprocess.Popen[bytes], log: Path, timeout_s: float = 60) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(timeout_s):
            _kill(process)
            raise AssertionError(f"the server said nothing in {timeout_s} s:\n{log.read_text()}")
    line = process.stdout.readline().decode()
    if not line.startswith("listening on http://"):
        _kill(process)
        raise AssertionError(f"expected an address, got {line!r}:\n{log.read_text()}")
    return line.removeprefix("listening on ").strip()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def close(server: RunningServer) -> None:
    """End a server, whatever state it is in."""
    try:
        server.stop()
    finally:
        assert server.process.stdout is not None
        server.process.stdout.close()


@pytest.fixture(scope="session")
def server(own_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One open server on loopback for all tests that leave it as it was."""
    running = launch(tmp_path_factory.mktemp("server"), "--set", "rate_per_address=1000000")
    yield running
    close(running)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers of special kinds, and ends them after the test."""
    started: list[RunningServer] = []

    def start(
        *arguments: str, env: Mapping[str, str] | None = None, ready: bool = True
    ) -> RunningServer:
        running = launch(tmp_path / "server", *arguments, env=env, ready=ready)
        started.append(running)
        return running

    yield start
    for running in started:
        close(running)


@pytest.fixture(scope="session")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a month of made-up visits; see ``visitors_month``."""
    pytest.importorskip("sqlalchemy", reason="needs the 'visitors' extra")
    from server.visitors_month import write_month

    return write_month(tmp_path_factory.mktemp("month") / "visits.sqlite")


@pytest.fixture(scope="session")
def photo(faces: Path) -> bytes:
    """A photograph with one face, as JPEG."""
    return (faces / "astronaut.jpg").read_bytes()


__all__ = ["RunningServer", "StartServer", "close", "launch"]
