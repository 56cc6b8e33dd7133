"""The description of the API, and whether the service is what it says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode

from agelens.server.keys import KeyFile, Scope
from agelens.server.problems import CODES
from server.conftest import RunningServer, close, launch

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))


@dataclass(frozen=True)
class Closed:
    """A server that wants keys, and one that may do everything."""

    server: RunningServer
    key: str


@pytest.fixture(scope="module")
def closed(
    own_registry: Path, month: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Closed]:
    folder = tmp_path_factory.mktemp("closed")
    key = KeyFile(folder / "keys.toml").add("fuzz", list(Scope)).text
    running = launch(
        folder,
        *("--keys", str(folder / "keys.toml"), "--workers", "1", "--set", f"store={month}"),
        *("--set", "rate_per_minute=1000000", "--set", "rate_per_address=1000000"),
    )
    yield Closed(running, key)
    close(running)


@pytest.fixture(scope="module")
def description(closed: Closed) -> dict[str, Any]:
    found = closed.server.get("/openapi.json").json()
    assert isinstance(found, dict)
    return found


def operations(description: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, item in description["paths"].items()
        for method, operation in item.items()
    ]


def test_it_is_openapi_3_1(description: dict[str, Any]) -> None:
    assert description["openapi"].startswith("3.1")
    assert {path for path, _, _ in operations(description)} >= {
        "/v1/analyze",
        "/v1/gate",
        "/v1/gate/challenge",
        "/v1/models",
        "/v1/policies",
        "/.well-known/jwks.json",
        "/healthz",
        "/readyz",
        "/metrics",
    }


def test_every_operation_says_all_that_it_may_answer(description: dict[str, Any]) -> None:
    open_to_all = {"/healthz", "/readyz", "/.well-known/jwks.json"}
    for path, method, operation in operations(description):
        where = f"{method} {path}"
        statuses = set(operation["responses"])
        assert operation["summary"], where
        assert operation["description"], where
        assert len(operation["tags"]) == 1, where
        assert {"200", "400", "431", "500", "503"} <= statuses, where
        assert ("security" in operation) == (path not in open_to_all), where
        assert ({"401", "403", "429"} <= statuses) == (path not in open_to_all), where
        if method == "post":
            assert {"408", "413", "415", "422"} <= statuses, where
            assert operation["requestBody"]["required"], where
        for status, answer in operation["responses"].items():
            if status != "200":
                assert set(answer["content"]) == {"application/problem+json"}, where


def test_every_name_in_it_is_defined(description: dict[str, Any]) -> None:
    names = set(description["components"]["schemas"])

    def check(node: Any) -> None:
        if isinstance(node, dict):
            reference = node.get("$ref", "")
            assert not reference or reference.rpartition("/")[2] in names, reference
            for value in node.values():
                check(value)
        elif isinstance(node, list):
            for value in node:
                check(value)

    check(description)
    assert "HTTPValidationError" not in names


def test_every_code_of_a_problem_is_in_it(description: dict[str, Any]) -> None:
    code = description["components"]["schemas"]["ProblemDetails"]["properties"]["code"]

    assert code["enum"] == sorted(CODES)


def test_every_code_stands_in_the_reference() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "http-api.md").read_text("utf-8")

    assert [code for code in CODES if f"`{code}`" not in page] == []


def test_its_examples_are_what_they_are_examples_of(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    checked = 0
    for name, schema in schemas.items():
        for example in schema.get("examples", ()):
            whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
            jsonschema_rs.Draft202012Validator(whole).validate(example)
            checked += 1

    assert checked >= 3


def test_it_says_the_limits_of_this_server(description: dict[str, Any]) -> None:
    images = description["components"]["schemas"]["ImagesBody"]["properties"]["images"]
    parameters = description["paths"]["/v1/analyze"]["post"]["parameters"]
    (model,) = [p["schema"]["enum"] for p in parameters if p["name"] == "model"]

    assert images["maxItems"] == 32
    assert model == ["default", "agelens-s"]


# --- the service against its description ----------------------------------------------------------

OPERATIONS = [
    ("POST", "/v1/analyze"),
    ("POST", "/v1/gate"),
    ("POST", "/v1/gate/challenge"),
    ("GET", "/v1/models"),
    ("GET", "/v1/policies"),
    ("GET", "/v1/visitors"),
    ("GET", "/v1/visitors/overview"),
    ("GET", "/v1/visitors/csv"),
    ("GET", "/v1/visitors/cameras"),
    ("GET", "/v1/visitors/picture"),
    ("GET", "/.well-known/jwks.json"),
    ("GET", "/metrics"),
    ("GET", "/readyz"),
    ("GET", "/healthz"),
]


def fuzzed(description: dict[str, Any], base_url: str) -> Any:
    """The description as schemathesis reads it, with what cannot be said in a schema."""
    config = SchemathesisConfig.from_dict(
        {
            "checks": {
                # No schema says that bytes are a picture, or that a policy exists.
                "positive_data_acceptance": {"expected-statuses": ["2xx", 403, 413, 415, 422, 503]},
                "negative_data_rejection": {"expected-statuses": ["4xx", 503]},
            }
        }
    )
    schema = schemathesis.openapi.from_dict(description, config=config)
    schema.config.update(base_url=base_url)
    return schema


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_service_does_what_its_description_says(
    closed: Closed, description: dict[str, Any], method: str, path: str, mode: str
) -> None:
    operation = fuzzed(description, closed.server.url)[path][method]
    strategy = operation.as_strategy(generation_mode=GenerationMode(mode))

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(case=strategy)
    def check(case: Any) -> None:
        if case.headers:  # of the two ways to send a key one is enough
            case.headers.pop("X-API-Key", None)
        case.call_and_validate(timeout=30, headers={"Authorization": f"Bearer {closed.key}"})

    try:
        check()
    except Unsatisfiable:
        assert mode == "negative", "valid requests can be made of every operation"
