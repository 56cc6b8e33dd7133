"""The service with more to do than it can, and with workers that die: over real HTTP."""

from __future__ import annotations

import io
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import psutil
from PIL import Image

from .conftest import RunningServer, StartServer

JPEG = {"content-type": "image/jpeg"}


def ask(server: RunningServer, content: bytes, count: int, clients: int) -> list[httpx2.Response]:
    """Send so many requests from so many clients at a time, each on one connection."""

    def client(share: int) -> list[httpx2.Response]:
        with httpx2.Client(base_url=server.url, timeout=120) as http:
            return [http.post("/v1/analyze", content=content, headers=JPEG) for _ in range(share)]

    with ThreadPoolExecutor(clients) as pool:
        answered = pool.map(client, [count // clients] * clients)
        return [answer for answers in answered for answer in answers]


def test_what_is_too_much_is_refused_with_the_time_to_come_again(
    start_server: StartServer, faces: Path
) -> None:
    server = start_server("--workers", "1", "--set", "queue=2", "--set", "batch=1")

    answers = ask(server, (faces / "group.jpg").read_bytes(), 40, clients=10)

    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["code"] == "overloaded"
            assert 1 <= int(answer.headers["retry-after"]) < 60
            assert "x-content-type-options" in answer.headers
        else:
            assert len(answer.json()["analyses"][0]["faces"]) >= 10
    metrics = server.get("/metrics").text
    counted = 'agelens_requests_total{method="POST",route="/v1/analyze",status="503"} '
    assert f"{counted}{float(statuses[503])}" in metrics


def test_a_worker_that_is_killed_costs_no_request(start_server: StartServer, faces: Path) -> None:
    server = start_server("--workers", "2")
    workers = psutil.Process(server.process.pid).children()
    assert len(workers) == 2

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server, (faces / "group.jpg").read_bytes(), 24, 6)
        time.sleep(0.3)
        workers[0].send_signal(signal.SIGKILL)
        answers = asked.result()

    assert Counter(answer.status_code for answer in answers) == {200: 24}
    server.wait_until_ready()
    assert 'agelens_worker_restarts_total{reason="died"} 1.0' in server.get("/metrics").text


def heavy() -> bytes:
    """A picture of 49 megapixels in 48 kB: it takes the better part of a second."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((7000, 7000), np.uint8)).save(file, "PNG")
    return file.getvalue()


def form(pictures: list[bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", ("a", picture, "image/png")) for picture in pictures]


def test_a_request_that_takes_long_costs_others_no_more_than_a_moment(
    start_server: StartServer, photo: bytes
) -> None:
    server = start_server("--workers", "1")

    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(server.post, "/v1/analyze", files=form([heavy()] * 32))
        time.sleep(0.5)
        start = time.monotonic()
        answers = ask(server, photo, 4, clients=2)
        took_s = time.monotonic() - start
        refused = large.result()

    assert Counter(answer.status_code for answer in answers) == {200: 4}
    assert took_s < 8
    # What cannot be done in time is told so; a fast machine does it.
    assert refused.status_code == 200 or refused.json()["code"] == "deadline"


def test_bodies_that_are_refused_take_no_memory_from_others(
    start_server: StartServer, photo: bytes
) -> None:
    mebibyte = 1 << 20
    server = start_server(
        *("--workers", "1", "--set", "queue=1", "--set", "batch=1"),
        *("--set", f"max_image_bytes={mebibyte}", "--set", f"max_body_bytes={mebibyte}"),
        *("--set", "max_bodies_bytes=1300000", "--set", "body_timeout_s=20"),
    )
    head = (
        b"POST /v1/analyze HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        b"Content-Length: 1000000\r\n\r\n"
    )
    files = form([heavy()] * 4)
    with ThreadPoolExecutor(4) as pool:
        busy = [pool.submit(server.post, "/v1/analyze", files=files) for _ in range(4)]
        end = time.monotonic() + 20
        while "agelens_queue 0.0" in server.get("/metrics").text:
            assert time.monotonic() < end
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(head + bytes(985_000))
            for asked in busy:
                asked.result()
            answer = server.post("/v1/analyze", content=photo + bytes(500_000), headers=JPEG)

    assert answer.status_code == 200
