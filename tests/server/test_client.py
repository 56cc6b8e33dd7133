"""``agelens.Client`` against the real service."""

from __future__ import annotations

import io
import json
import pickle
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from agelens import Analysis, Analyzer, Client, ImageError, ServiceError
from agelens.errors import ArgumentError
from server.conftest import RunningServer, StartServer, serving


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def test_a_picture_gives_what_the_library_gives(
    client: Client, analyzer: Analyzer, faces: Path
) -> None:
    path = faces / "group.jpg"

    found, expected = client.analyze(path), analyzer(path)

    assert found == Analysis.from_dict(expected.to_dict(distribution=True))
    assert [face.age for face in found.faces] == [face.age for face in expected.faces]
    assert found.faces[0].age.interval(0.5) == expected.faces[0].age.interval(0.5)


def test_bytes_are_a_picture_without_a_path(client: Client, photo: bytes) -> None:
    analysis = client.analyze(photo, gender=False, max_faces=1)

    assert analysis.path is None
    assert [face.gender for face in analysis.faces] == [None]


def test_many_pictures_come_back_in_order_with_an_error_each(
    client: Client, faces: Path, tmp_path: Path
) -> None:
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(b"text")
    photo = faces / "hopper.jpg"
    paths = [photo, missing, broken, *[photo] * 18, tmp_path]

    found = client.analyze(paths)

    codes = [None if row.error is None else row.error.code for row in found]
    assert [row.path for row in found] == [str(path) for path in paths]
    assert codes == [None, "not_found", "not_an_image", *[None] * 18, "is_directory"]


def test_pictures_of_which_none_can_be_read_are_rows_too(client: Client) -> None:
    found = client.analyze([b"text", b"more text"])

    assert [row.error.code for row in found if row.error] == ["not_an_image", "not_an_image"]
    assert client.analyze([]) == []


def test_one_picture_that_cannot_be_read_is_an_image_error(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as refused:
        client.analyze(b"text")
    assert refused.value.code == "not_an_image"

    with pytest.raises(ImageError) as refused:
        client.analyze(tmp_path / "missing.jpg")
    assert (refused.value.code, refused.value.where) == ("not_found", str(tmp_path / "missing.jpg"))


def test_a_problem_is_an_error_with_its_code(client: Client, photo: bytes) -> None:
    with pytest.raises(ServiceError) as refused:
        client.analyze(photo, model="nobody")

    error = refused.value
    assert (error.code, error.status) == ("unknown_model", 422)
    assert error.request_id
    assert "agelens-s" in error.message


def test_a_service_that_takes_fewer_pictures_gets_fewer(
    start_server: StartServer,
) -> None:
    small = _encoded(Image.new("RGB", (40, 40)))
    large = _encoded(Image.effect_noise((700, 700), 90))
    huge = _encoded(Image.effect_noise((1200, 1200), 90))
    limits = {"max_images": 3, "max_body_bytes": 1_000_000, "max_image_bytes": 1_000_000}
    started = start_server(
        *("--workers", "1"),
        *(part for name, value in limits.items() for part in ("--set", f"{name}={value}")),
    )
    sizes = [len(one) for one in (small, large, huge)]
    assert sizes[0] < 10_000 < 340_000 < sizes[1] < 990_000 < 1_000_000 < sizes[2]

    with Client(started.url) as client:
        many = client.analyze([small] * 10)
        heavy = client.analyze([large, large, huge, large, large])
        with pytest.raises(ServiceError) as refused:
            client.analyze(huge)

    assert [row.error for row in many] == [None] * 10
    assert [row.error and row.error.code for row in heavy] == [
        *(None, None, "body_too_large", None, None)
    ]
    assert (refused.value.code, refused.value.status) == ("body_too_large", 413)


def _encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_every_kind_of_bytes_is_a_picture(client: Client, faces: Path, photo: bytes) -> None:
    expected = client.analyze(photo)
    with (faces / "astronaut.jpg").open("rb") as opened:
        given: list[Any] = [io.BytesIO(photo), bytearray(photo), memoryview(photo), opened]
        found = [client.analyze(one) for one in given]
    again = client.analyze([io.BytesIO(photo), bytearray(photo), faces / "astronaut.jpg"])

    assert [row.faces for row in (*found, *again)] == [expected.faces] * 7
    assert [row.path for row in found] == [None, None, None, str(faces / "astronaut.jpg")]


def test_what_is_no_source_is_told(client: Client) -> None:
    wrong: list[Any] = [io.StringIO("text"), [3], [None]]
    for source in wrong:
        with pytest.raises(ArgumentError, match="binary mode"):
            client.analyze(source)


class _Scripted:
    """A real HTTP server that refuses as the service does, which real pictures rarely bring about.

    Attributes:
        asked: Pictures of each request.
        turned_away: Requests that are still to be answered with 429.
    """

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []
        self.turned_away = 0
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
                parts = [part for part in body.split(b"--" + boundary) if b"\r\n\r\n" in part]
                pictures = [part.partition(b"\r\n\r\n")[2][:-2] for part in parts]
                script.asked.append(pictures)
                if script.turned_away:
                    script.turned_away -= 1
                    self._answer(429, {"code": "rate_limited", "detail": "later"})
                elif b"poison" in pictures:
                    place = pictures.index(b"poison")
                    self._answer(422, {"code": "poison", "detail": "it kills", "index": place})
                else:
                    row = Analysis(None, 1, 1, (), None, "m@1").to_dict()
                    self._answer(200, {"analyses": [row] * len(pictures)})

            def _answer(self, status: int, answer: dict[str, Any]) -> None:
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                if status == 429:
                    self.send_header("retry-after", "1")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def scripted() -> Iterator[_Scripted]:
    found = _Scripted()
    with serving(found.server):
        yield found


def test_a_picture_that_kills_workers_is_one_row_and_not_the_end(scripted: _Scripted) -> None:
    with Client(scripted.url) as client:
        found = client.analyze([b"a", b"poison", b"b", b"poison"])
        with pytest.raises(ServiceError) as refused:
            client.analyze(b"poison")

    assert [row.error and row.error.code for row in found] == [None, "poison", None, "poison"]
    assert scripted.asked[2] == [b"a", b"b"]
    assert (refused.value.code, refused.value.status) == ("poison", 422)


def test_who_asked_too_often_asks_again_when_told_to(scripted: _Scripted) -> None:
    scripted.turned_away = 1
    with Client(scripted.url) as patient:
        assert patient.analyze(b"a").ok
    scripted.turned_away = 1
    with Client(scripted.url, retries=0) as hasty, pytest.raises(ServiceError) as refused:
        hasty.analyze(b"a")

    assert len(scripted.asked) == 3
    assert (refused.value.code, refused.value.retry_after_s) == ("rate_limited", 1.0)
    assert pickle.loads(pickle.dumps(refused.value)).retry_after_s == 1.0


def test_models_and_health(client: Client) -> None:
    (model,) = client.models()

    assert (model.name, model.default, model.licence_class) == ("agelens-s", True, "commercial")
    assert client.health() is True


def test_a_service_that_starts_is_waited_for(start_server: StartServer, photo: bytes) -> None:
    started = start_server("--workers", "1", ready=False)

    with Client(started.url, retries=0) as hasty:
        assert hasty.health() is False
        with pytest.raises(ServiceError) as refused:
            hasty.analyze(photo)
    with Client(started.url, retries=60) as patient:
        assert len(patient.analyze(photo).faces) == 1

    assert (refused.value.code, refused.value.status) == ("not_ready", 503)


def test_a_key_is_sent_and_never_shown(start_server: StartServer, tmp_path: Path) -> None:
    from agelens.server.keys import KeyFile, Scope

    file = tmp_path / "keys.toml"
    key = KeyFile(file).add("till", [Scope.ANALYZE]).text
    started = start_server("--workers", "1", "--keys", str(file))

    with Client(started.url, key=key) as client:
        assert client.models()[0].default
        assert key not in repr(client)
    with Client(started.url) as stranger, pytest.raises(ServiceError) as refused:
        stranger.models()
    assert (refused.value.code, refused.value.status) == ("unauthorized", 401)
    with Client(started.url, key=key) as client, pytest.raises(ServiceError) as refused:
        client.policies()
    assert (refused.value.code, refused.value.status) == ("forbidden", 403)


def test_no_service_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(ServiceError) as refused:
        client.health()

    assert (refused.value.code, refused.value.status) == ("unreachable", None)


def test_another_service_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p/>"

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ServiceError) as refused:
            client.models()
        thread.join()

    assert refused.value.code == "bad_answer"
    assert "text/html" in str(refused.value)


@pytest.mark.parametrize("options", [{"url": "ftp://a"}, {"retries": -1}, {"timeout_s": 0}])
def test_a_wrong_argument_is_told(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError):
        Client(**options)  # type: ignore[arg-type]
