"""POST /v1/analyze: every form of body, every option, the same answers as the library gives."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from agelens import Analyzer, analysis_json_schema
from server.conftest import RunningServer


@pytest.fixture(scope="module")
def crowd(faces: Path) -> bytes:
    return (faces / "group.jpg").read_bytes()


def _post(server: RunningServer, data: bytes, query: str = "") -> dict[str, Any]:
    answer = server.post(
        f"/v1/analyze{query}", content=data, headers={"content-type": "application/octet-stream"}
    )
    assert answer.status_code == 200, answer.text
    (analysis,) = answer.json()["analyses"]
    assert isinstance(analysis, dict)
    return analysis


def _body(*images: dict[str, str]) -> dict[str, Any]:
    return {"json": {"images": list(images)}}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("form", ["raw", "octets", "multipart", "json"])
def test_each_form_of_body_gives_what_the_library_gives(
    server: RunningServer, analyzer: Analyzer, photo: bytes, form: str
) -> None:
    sent: dict[str, dict[str, Any]] = {
        "raw": {"content": photo, "headers": {"content-type": "image/jpeg"}},
        "octets": {"content": photo, "headers": {"content-type": "application/octet-stream"}},
        "multipart": {"files": [("image", ("a.jpg", photo, "image/jpeg"))]},
        "json": _body({"name": "a.jpg", "base64": _base64(photo)}),
    }

    answer = server.post("/v1/analyze", **sent[form])

    name = None if form in ("raw", "octets") else "a.jpg"
    expected = {**analyzer(photo).to_dict(), "path": name}
    assert answer.status_code == 200
    assert answer.json() == {"analyses": [expected]}


@pytest.mark.parametrize(
    ("query", "options", "written"),
    [
        ("?gender=false", {"gender": False}, {}),
        ("?min_face=400", {"min_face": 400}, {}),
        ("?max_faces=1", {"max_faces": 1}, {}),
        ("?flip=true", {"flip": True}, {}),
        ("?detector=none", {"detector": "none"}, {}),
        ("?crops=true", {"crops": True}, {}),
        ("?distribution=true", {}, {"distribution": True}),
        ("?age_groups=0,18,65", {}, {"edges": (0, 18, 65)}),
        ("?age_groups=18", {}, {"edges": (18,)}),
        ("?level=0.5", {}, {"level": 0.5}),
        ("?model=agelens-s", {}, {}),
        ("?model=default", {}, {}),
    ],
)
def test_an_option_does_what_it_does_in_the_library(
    server: RunningServer,
    crowd: bytes,
    query: str,
    options: dict[str, Any],
    written: dict[str, Any],
) -> None:
    found = _post(server, crowd, query)

    assert found == Analyzer(**options)(crowd).to_dict(**written)


def test_pictures_come_back_in_order_and_a_broken_one_has_an_error(
    server: RunningServer, faces: Path
) -> None:
    paths = [*sorted(faces.glob("*.jpg")), faces / "astronaut.jpg"][:4]
    files = [("image", (path.name, path.read_bytes(), "image/jpeg")) for path in paths]
    files.insert(2, ("image", ("broken.jpg", b"no picture", "image/jpeg")))

    answer = server.post("/v1/analyze", files=files)

    analyses = answer.json()["analyses"]
    assert answer.status_code == 200
    assert [row["path"] for row in analyses] == [name for _, (name, _, _) in files]
    assert [row["error"] is None for row in analyses] == [True, True, False, True, True]
    assert analyses[2]["error"]["code"] == "not_an_image"
    assert analyses[2]["faces"] == []


def test_when_no_picture_can_be_read_it_is_a_problem_that_names_each(
    server: RunningServer,
) -> None:
    answer = server.post(
        "/v1/analyze",
        **_body(
            {"name": "one", "base64": _base64(b"text")},
            {"base64": _base64(b"\x89PNG\r\n\x1a\n")},
        ),
    )

    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "unreadable_image")
    assert [(e["index"], e["name"]) for e in problem["errors"]] == [(0, "one"), (1, None)]
    assert problem["errors"][0]["code"] == "not_an_image"


def test_an_answer_is_what_the_schema_of_the_library_says(
    server: RunningServer, crowd: bytes
) -> None:
    import jsonschema_rs

    analysis = _post(server, crowd, "?distribution=true")

    jsonschema_rs.Draft202012Validator(analysis_json_schema()).validate(analysis)


@pytest.mark.parametrize(
    ("query", "code", "name"),
    [
        ("?model=nobody", "unknown_model", None),
        ("?model=/etc/passwd", "unknown_model", None),
        ("?model=insightface:/etc", "unknown_model", None),
        ("?detector=insightface:/etc", "bad_option", "detector"),
        ("?gender=1", "bad_option", "gender"),
        ("?gender=", "bad_option", "gender"),
        ("?min_face=0", "bad_option", "min_face"),
        ("?min_face=1.5", "bad_option", "min_face"),
        ("?min_face=%2B5", "bad_option", "min_face"),
        ("?min_face=" + "9" * 40, "bad_option", "min_face"),
        ("?max_faces=-1", "bad_option", "max_faces"),
        ("?level=1", "bad_option", "level"),
        ("?level=nan", "bad_option", "level"),
        ("?age_groups=", "bad_option", "age_groups"),
        ("?age_groups=5,5", "bad_option", "age_groups"),
        ("?age_groups=0,101", "bad_option", "age_groups"),
        ("?age_groups=x", "bad_option", "age_groups"),
        ("?colour=red", "bad_option", "colour"),
        ("?no_gender=true", "bad_option", "no_gender"),
        ("?flip=true&flip=false", "bad_option", None),
    ],
)
def test_a_wrong_option_is_named(
    server: RunningServer, photo: bytes, query: str, code: str, name: str | None
) -> None:
    answer = server.post(
        f"/v1/analyze{query}", content=photo, headers={"content-type": "image/jpeg"}
    )

    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, code)
    if name is not None:
        assert [fault["name"] for fault in problem["faults"]] == [name]


def test_a_wrong_option_is_refused_before_the_body_is_read(server: RunningServer) -> None:
    answer = server.post(
        "/v1/analyze?level=7", content=b"text", headers={"content-type": "text/plain"}
    )

    assert answer.json()["code"] == "bad_option"


def test_an_address_is_not_fetched_unless_the_server_allows_it(server: RunningServer) -> None:
    answer = server.post("/v1/analyze", **_body({"url": "https://example.com/a.jpg"}))

    assert (answer.status_code, answer.json()["code"]) == (403, "url_disabled")


def test_a_name_of_any_script_survives(server: RunningServer, photo: bytes) -> None:
    answer = server.post("/v1/analyze", **_body({"name": "Zoë 写真.jpg", "base64": _base64(photo)}))

    assert answer.json()["analyses"][0]["path"] == "Zoë 写真.jpg"


def test_the_answers_of_many_at_once_are_those_of_one(
    server: RunningServer, faces: Path, analyzer: Analyzer
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    pictures = [path.read_bytes() for path in sorted(faces.glob("*.jpg"))] * 3

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda data: _post(server, data), pictures))

    alone = [_post(server, data) for data in pictures[: len(pictures) // 3]]
    for row, expected in zip(found, alone * 3, strict=True):
        assert len(row["faces"]) == len(expected["faces"])
        for face, same in zip(row["faces"], expected["faces"], strict=True):
            assert face["box"] == same["box"]
            assert face["age"]["mean"] == pytest.approx(same["age"]["mean"], abs=0.011)
    assert json.dumps(alone[0]) == json.dumps(analyzer(pictures[0]).to_dict())
