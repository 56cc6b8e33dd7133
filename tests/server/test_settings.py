from __future__ import annotations

from pathlib import Path

import pytest

from agelens.errors import ArgumentError
from agelens.settings import ServerSettings
from command_line import agelens


def _refused(config: Path | None = None, **given: object) -> str:
    with pytest.raises(ArgumentError) as refused:
        ServerSettings.load(config, **given)
    return str(refused.value)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("port = 1\nqueue = 2\nbatch = 3\n")
    monkeypatch.setenv("AGELENS_PORT", "10")
    monkeypatch.setenv("AGELENS_QUEUE", "20")

    settings = ServerSettings.load(file, port=100)

    assert (settings.port, settings.queue, settings.batch) == (100, 20, 3)
    assert settings.max_images == ServerSettings().max_images


def test_lists_are_lists_in_the_file_and_separated_by_commas_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('cors_origins = ["https://a.example", "https://b.example"]\n')
    monkeypatch.setenv("AGELENS_ALLOWED_HOSTS", "a.example, b.example,")

    settings = ServerSettings.load(file)

    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.allowed_hosts == ("a.example", "b.example")


def test_an_unknown_setting_is_named_with_the_likely_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("max_image = 2\n")

    assert _refused(file) == f"{file}: max_image: unknown setting; did you mean max_images?"
    assert _refused(wokers=2) == "--wokers: unknown setting; did you mean workers?"
    monkeypatch.setenv("AGELENS_MAX_BODY", "1")
    assert "AGELENS_MAX_BODY: unknown setting; did you mean AGELENS_MAX_BODY_BYTES" in _refused()


def test_not_everybody_can_be_trusted_as_a_proxy() -> None:
    assert "trusted_proxies may not be *" in _refused(trusted_proxies="*")


def test_the_addresses_that_kubernetes_hands_out_are_no_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AGELENS_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("AGELENS_PORT_8000_TCP_ADDR", "10.0.0.1")

    assert ServerSettings.load().host == "127.0.0.1"


def test_a_wrong_value_is_shown_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("queue = 0\n")

    assert _refused(file).startswith(f"{file}: queue: input should be greater than or equal to 1")
    assert _refused(port=70000).startswith("--port: input should be less than or equal to 65535")
    monkeypatch.setenv("AGELENS_WORKERS", "many")
    assert _refused().startswith("AGELENS_WORKERS: input should be a valid integer")
    assert "'many'" in _refused()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "agelens.example", "128.0.0.1"])
def test_without_keys_others_are_not_listened_to(host: str) -> None:
    assert "agelens keys add" in _refused(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_without_keys_this_computer_is_listened_to(host: str) -> None:
    assert ServerSettings.load(host=host).host == host


def test_a_server_that_starts_closed_says_how_to_open_it() -> None:
    outcome = agelens("serve", "--host", "0.0.0.0", "--port", "0")

    assert outcome.status == 2
    assert "agelens keys add" in outcome.err


def test_an_issuer_needs_an_audience() -> None:
    assert "oidc_audience" in _refused(oidc_issuer="https://id.example", oidc_jwks="keys.json")


def test_a_file_that_is_no_toml_or_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    assert _refused(file).startswith(f"{file}: cannot be read")

    file.write_text("port 1\n")
    assert _refused(file).startswith(f"{file}: not valid TOML")


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = agelens("serve", "--port", str(taken.getsockname()[1]))

    assert outcome.status == 2
    assert "choose another port" in outcome.err


def test_a_setting_without_a_value_is_told() -> None:
    assert "expected NAME=VALUE" in agelens("serve", "--set", "max_images").err


def test_every_setting_stands_on_the_page_about_serving() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "serve.md").read_text("utf-8")

    assert [name for name in ServerSettings.model_fields if f"`{name}`" not in page] == []
