from __future__ import annotations

import json
import re
import time

import pytest

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
