"""
``agelens keys``: make, list, revoke and replace the keys that callers of the service show.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from agelens.cli.console import error_console, output_console, print_table

if TYPE_CHECKING:
    from agelens.server.keys import NewKey

app = typer.Typer(
    help="Make, list, revoke and replace the API keys of the service.", no_args_is_help=True
)

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class ScopeName(StrEnum):
    """What a key may be used for."""

    analyze = "analyze"
    gate = "gate"
    audience = "audience"
    visitors = "visitors"
    admin = "admin"


_File = Annotated[
    Path,
    typer.Option(
        "--file", "-f", envvar="AGELENS_KEYS", help="The key file that the service reads."
    ),
]
_Which = Annotated[
    str, typer.Argument(metavar="KEY", help="The key's id, or the name of one active key.")
]


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what the key is for.")],
    file: _File,
    scope: Annotated[
        list[ScopeName] | None,
        typer.Option(help="What it may be used for; several times for more. [analyze]"),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="Lifetime, as 90d, 12h or 30m. [none]")
    ] = None,
) -> None:
    """Make a key; it is printed once, and the file keeps its SHA-256 only.

    [bold]Example[/]: agelens keys add till-3 --file keys.toml --scope analyze --expires 90d
    """
    from agelens.server.keys import KeyFile, Scope

    scopes = [Scope(one.value) for one in scope or [ScopeName.analyze]]
    lifetime = None if expires is None else _span(expires, "--expires")
    _print_new(file, KeyFile(file).add(name, scopes, lifetime=lifetime))


@app.command(name="list")
def list_keys(
    file: _File,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """The keys with their scopes and dates; the keys themselves are not known.

    [bold]Example[/]: agelens keys list --file keys.toml
    """
    import json

    from agelens.server.keys import KeyFile

    keys = KeyFile(file).read()
    now = datetime.now(UTC)
    if as_json:
        rows = [
            {**key.model_dump(mode="json", exclude={"sha256"}), "state": key.state(now)}
            for key in keys
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    head = ("id", "name", "state", "scopes", "created", "expires")
    lines = [
        (
            key.id,
            key.name,
            key.state(now),
            " ".join(key.scopes),
            _date(key.created),
            _date(key.expires),
        )
        for key in keys
    ]
    print_table(head, lines, left=len(head))


@app.command()
def revoke(key: _Which, file: _File) -> None:
    """End a key at once; a running service takes note without a restart.

    [bold]Example[/]: agelens keys revoke till-3 --file keys.toml
    """
    from agelens.server.keys import KeyFile

    ended = KeyFile(file).revoke(key)
    output_console().print(f"revoked {ended.id} {escape(ended.name)}", soft_wrap=True)


@app.command()
def rotate(
    key: _Which,
    file: _File,
    overlap: Annotated[
        str, typer.Option(metavar="TIME", help="How long the key before still counts.")
    ] = "24h",
) -> None:
    """Make a key with the same name, scopes and lifetime; the one before ends after a while.

    [bold]Example[/]: agelens keys rotate till-3 --file keys.toml --overlap 7d
    """
    from agelens.server.keys import KeyFile

    _print_new(file, KeyFile(file).rotate(key, overlap=_span(overlap, "--overlap")))


def _span(text: str, option: str) -> timedelta:
    from agelens.errors import ArgumentError

    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise ArgumentError(f"{option} {text}: write a number and s, m, h or d, as 90d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _print_new(file: Path, made: NewKey) -> None:
    key = made.key
    until = "" if key.expires is None else f", until {_date(key.expires)}"
    error_console().print(
        f"{escape(str(file))}: key {key.id} for {escape(key.name)} "
        f"({', '.join(key.scopes)}{until}); it is shown once:",
        soft_wrap=True,
    )
    typer.echo(made.text)


def _date(when: datetime | None) -> str:
    return "" if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")
