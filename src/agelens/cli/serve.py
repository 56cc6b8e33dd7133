"""
``agelens serve``: REST, streams and pages.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from agelens.errors import ArgumentError, MissingExtra


def serve(
    config: Annotated[
        Path | None, typer.Option(help="TOML file with settings; see the reference.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; by default 127.0.0.1.", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port, by default 8000; 0 takes a free one.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Inference processes; by default one a core.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model that answers; by default our own.", show_default=False)
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="Key file; made by `agelens keys`.")] = None,
    policies: Annotated[
        Path | None, typer.Option(help="Folder of the gates' policies NAME.toml.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Use models licensed for research only.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; may be repeated."),
    ] = None,
) -> None:
    """Answer over HTTP: REST under /v1, WebSocket streams, and pages to try it.

    Without --keys (or OIDC settings) it listens on this computer only. Every setting can also
    come from the environment as AGELENS_NAME or from the file of --config. Stops on SIGTERM or
    Ctrl-C when what was accepted is answered.

    [bold]Examples[/]

      agelens serve

      agelens serve --host 0.0.0.0 --keys keys.toml --workers 4

      agelens serve --config /etc/agelens/serve.toml --set max_images=8
    """
    if sys.platform == "win32":
        raise ArgumentError("the service runs on Linux and macOS; on Windows use WSL")
    try:
        from agelens.server.app import serve as run
        from agelens.settings import ServerSettings
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("agelens"):
            raise
        raise MissingExtra("serve", "the service") from error
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "workers": workers,
        "model": model,
        "keys": keys,
        "policies": policies,
        "accept_licence": accept_licence or None,
    }
    run(ServerSettings.load(config, **{**_pairs(set_ or []), **_given(given)}))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _pairs(items: list[str]) -> dict[str, str]:
    pairs = {}
    for item in items:
        name, mark, value = item.partition("=")
        if not mark or not name.strip():
            raise ArgumentError(f"--set {item}: expected NAME=VALUE, as max_images=8")
        pairs[name.strip().replace("-", "_")] = value.strip()
    return pairs
