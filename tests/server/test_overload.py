"""The service with more to do than it can, and with workers that die: over real HTTP."""

from __future__ import annotations

import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil

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
