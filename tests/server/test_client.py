"""``agelens.Client`` against the real service."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agelens import Analysis, Analyzer, Client, ImageError, ServiceError
from agelens.errors import ArgumentError
from server.conftest import RunningServer, StartServer


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
