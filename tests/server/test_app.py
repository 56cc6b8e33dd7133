from __future__ import annotations

import io
import json
import re
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from server.conftest import RunningServer, StartServer


def test_the_process_answers(server: RunningServer) -> None:
    answer = server.get("/healthz")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_readiness_waits_for_the_workers(start_server: StartServer, photo: bytes) -> None:
    started = start_server("--workers", "1", ready=False)

    health, ready = started.get("/healthz"), started.get("/readyz")
    asked = started.post("/v1/analyze", content=photo, headers={"content-type": "image/jpeg"})

    assert health.status_code == 200
    assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
    assert (asked.status_code, asked.json()["code"]) == (503, "not_ready")
    assert int(asked.headers["retry-after"]) >= 1
    started.wait_until_ready()
    assert started.get("/readyz").json() == {"ready": True}


def test_a_request_keeps_its_id(server: RunningServer) -> None:
    answer = server.get("/nowhere", headers={"x-request-id": "order-66.b_2"})

    assert answer.headers["x-request-id"] == "order-66.b_2"
    assert answer.json()["request_id"] == "order-66.b_2"


@pytest.mark.parametrize("given", ["", "a" * 65, "a b", "<script>", "a/b"])
def test_an_odd_id_is_replaced(server: RunningServer, given: str) -> None:
    answer = server.get("/healthz", headers={"x-request-id": given})

    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_a_path_without_anything_is_a_problem(server: RunningServer) -> None:
    answer = server.get("/v2/analyze")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["status"]) == ("not_found", 404)
    assert problem["type"] == "urn:agelens:problem:not_found"


def test_a_wrong_method_is_told_the_right_ones(server: RunningServer) -> None:
    answer = server.get("/v1/analyze")

    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_models_are_listed_with_their_licence(server: RunningServer) -> None:
    (model,) = server.get("/v1/models").json()["models"]

    assert (model["name"], model["default"], model["gender"]) == ("agelens-s", True, True)
    assert model["licence_class"] == "commercial"
    assert model["model"] == f"agelens-s@{model['version']}"


def _counter(text: str, line: str) -> float:
    found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_counters_count_what_was_asked(server: RunningServer, photo: bytes) -> None:
    requests = 'agelens_requests_total{method="POST",route="/v1/analyze",status="200"}'
    problems = 'agelens_problems_total{code="unreadable_image"}'
    faces = 'agelens_faces_total{estimate="given"}'
    estimates = 'agelens_stage_seconds_count{stage="estimate"}'
    before = server.get("/metrics").text

    server.post("/v1/analyze", content=photo, headers={"content-type": "image/jpeg"})
    server.post("/v1/analyze", content=b"text", headers={"content-type": "image/jpeg"})

    after = server.get("/metrics").text
    for line in (requests, problems, faces, estimates):
        assert _counter(after, line) == _counter(before, line) + 1, line
    assert _counter(after, "agelens_ready") == 1
    assert _counter(after, "agelens_workers") >= 1
    assert _counter(after, "agelens_queue") == 0


def test_a_path_that_is_made_up_makes_no_counter(server: RunningServer) -> None:
    server.get("/made-up-7261")
    server.get("/healthz?who=made-up-7261")

    text = server.get("/metrics").text
    assert "made-up-7261" not in text
    assert 'route="unknown"' in text
    assert "127.0.0.1" not in text


def test_the_log_is_json_and_tells_nothing_of_what_was_sent(
    server: RunningServer, photo: bytes
) -> None:
    server.post(
        "/v1/analyze?level=0.87654",
        files=[("image", ("canary-name.jpg", photo, "image/jpeg"))],
        headers={"x-request-id": "log-1", "authorization": "Bearer al_canary_key"},
    )
    server.post(
        "/v1/analyze?level=canary",
        content=b'{"images": [{"base64": "canary-body"}]}',
        headers={"content-type": "application/json", "x-request-id": "log-2"},
    )
    server.get("/canary-path?canary=query")

    end = time.monotonic() + 10
    while "log-2" not in server.log.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    text = server.log.read_text()
    lines = {line.get("request_id"): line for line in map(json.loads, text.splitlines())}
    assert lines["log-1"]["route"] == "/v1/analyze"
    assert (lines["log-1"]["status"], lines["log-1"]["code"]) == (200, None)
    assert (lines["log-2"]["status"], lines["log-2"]["code"]) == (422, "bad_option")
    for secret in ("canary", "0.87654", "agelens-s", "female", "127.0.0.1"):
        lines_of_requests = [line for line in text.splitlines() if '"request"' in line]
        assert not any(secret in line for line in lines_of_requests), secret


def _until(holds: Callable[[], bool], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


def _events(log: Path, name: str) -> list[dict[str, object]]:
    return [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == name]


def test_a_worker_that_is_lost_is_in_the_log_and_makes_the_service_unready(
    start_server: StartServer, photo: bytes
) -> None:
    started = start_server("--workers", "1")
    (worker,) = psutil.Process(started.process.pid).children()

    worker.send_signal(signal.SIGKILL)

    _until(lambda: started.get("/readyz").status_code == 503)
    _until(lambda: len(_events(started.log, "worker_started")) == 2)
    (lost,) = _events(started.log, "worker_lost")
    assert (lost["pid"], lost["reason"], lost["status"]) == (worker.pid, "died", -9)
    assert next(line["pid"] for line in _events(started.log, "worker_started")) == worker.pid
    started.wait_until_ready()


def test_the_reason_for_not_being_ready_is_true(start_server: StartServer) -> None:
    started = start_server("--workers", "1", ready=False)

    assert started.get("/readyz").json()["detail"] == "the service is loading its models"
    started.wait_until_ready()
    (worker,) = psutil.Process(started.process.pid).children()
    worker.send_signal(signal.SIGKILL)
    _until(lambda: started.get("/readyz").status_code == 503)
    assert started.get("/readyz").json()["detail"] == "the service is replacing its workers"


def test_every_line_of_standard_error_is_json_and_none_tells_of_a_body(
    start_server: StartServer,
) -> None:
    """What parsers and decoders would print of a broken body or picture."""
    started = start_server("--workers", "1")
    kind = {"content-type": "multipart/form-data; boundary=X"}
    part = b'--X\r\nContent-Disposition: form-data; name="image"\r\n\r\ncanary\r\n--X--\r\n'
    started.post("/v1/analyze", content=part + b"and canary behind the end", headers=kind)
    started.post("/v1/analyze", content=b"canary" + part, headers=kind)
    started.post("/v1/analyze", content=_broken_tiff(), headers={"content-type": "image/tiff"})

    started.stop()

    lines = [json.loads(line) for line in started.log.read_text().splitlines()]
    assert {line["event"] for line in lines} >= {"ready", "request", "closed"}
    text = started.log.read_text()
    assert not any(word in text for word in ("canary", "tempfile", "boundary character"))
    # Both were said, without their words.
    assert any(line.get("logger", "").startswith("python_multipart") for line in lines)
    assert any(line["event"] == "worker_printed" and line["lines"] >= 1 for line in lines)


def _broken_tiff() -> bytes:
    """A TIFF whose compressed strip breaks off, of which libtiff complains on standard error."""
    file = io.BytesIO()
    noise = np.random.default_rng(7).integers(0, 255, (120, 160, 3), np.uint8)
    Image.fromarray(noise).save(file, "TIFF", compression="tiff_lzw")
    content = bytearray(file.getvalue())
    middle = len(content) // 2
    content[middle : middle + 64] = b"\xff" * 64
    return bytes(content)


def test_an_idle_connection_is_kept_as_long_as_the_setting_says(start_server: StartServer) -> None:
    started = start_server("--workers", "1", "--set", "keep_alive_s=1", ready=False)
    with socket.create_connection(("127.0.0.1", started.port), timeout=20) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = connection.recv(65536)
        start = time.monotonic()
        while connection.recv(65536):
            pass
        idle_s = time.monotonic() - start

    assert received.startswith(b"HTTP/1.1 200")
    assert 0.5 < idle_s < 10


def test_the_server_takes_all_open_files_it_may_and_says_when_they_are_few(
    start_server: StartServer,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        started = start_server("--set", "max_connections=2000000000", ready=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert psutil.Process(started.process.pid).rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)
    (warning,) = _events(started.log, "few_open_files")
    assert (warning["granted"], warning["needed"]) == (hard, 2_000_000_064)
