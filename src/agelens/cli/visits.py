"""
``agelens visits``: what to do with a store of visits: export, delete the old, check, copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from agelens.cli.console import error_console
from agelens.cli.options import (
    FirstDay,
    LastDay,
    VisitCameras,
    VisitSites,
    VisitStore,
    parse_day,
)
from agelens.errors import ArgumentError

if TYPE_CHECKING:
    from agelens.analytics.records import Scope

app = typer.Typer(
    help="Export, thin out, check or copy the visits that `agelens watch` stores.",
    no_args_is_help=True,
)


@app.command("export")
def export(
    output: Annotated[Path, typer.Argument(help="A new .csv or .parquet file.")],
    store: VisitStore,
    first: FirstDay = None,
    last: LastDay = None,
    site: VisitSites = None,
    camera: VisitCameras = None,
    staff: Annotated[bool, typer.Option("--staff", help="Visits of staff too.")] = False,
    timezone: Annotated[
        str,
        typer.Option(help="Time zone of the days; the times in the file are UTC."),
    ] = "UTC",
) -> None:
    """Write visits to a table, one row each: rows of single people, not for publishing.

    What may leave the house are reports and the CSVs of the dashboard, whose counts are in lots.

    [bold]Example[/]

      agelens visits export march.parquet --store visits.sqlite --from 2026-03-01 --to 2026-03-31
    """
    from agelens.analytics.export import export_visits
    from agelens.analytics.store import open_store

    scope = _scope(first, last, timezone, tuple(site or ()), tuple(camera or ()), staff)
    with open_store(store, read_only=True) as opened:
        count = export_visits(opened, output, scope=scope)
    error_console().print(f"{count:,} visits -> {escape(str(output))}", soft_wrap=True)


@app.command("retain")
def retain(
    days: Annotated[
        int, typer.Option(min=0, help="Whole days to keep besides today; older visits go.")
    ],
    store: VisitStore,
    timezone: Annotated[str, typer.Option(help="Time zone of the days.")] = "UTC",
    minimum: Annotated[int, typer.Option(min=1, help="Fewest visitors of a sum that is kept.")] = 5,
) -> None:
    """Delete old visits; sums of whole days stay, small ones hidden.

    For a timer, where `retention_days` of a running `agelens watch` is not enough.
    """
    from agelens.analytics.hours import site_zone
    from agelens.analytics.store import open_store

    zone = site_zone(timezone)
    with open_store(store) as opened:
        deleted = opened.retain(days, zone, minimum=minimum)
    error_console().print(f"{deleted:,} visits deleted")


@app.command("check")
def check(store: VisitStore) -> None:
    """Look for damage: the file's own check, and whether all sums are those of the visits.

    Exit status 0 when nothing is wrong, 1 otherwise.
    """
    from agelens.analytics.store import open_store

    with open_store(store, read_only=True) as opened:
        problems = opened.check()
    for problem in problems:
        error_console().print(escape(problem), soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    error_console().print("nothing is wrong")


@app.command("copy")
def copy(
    target: Annotated[str, typer.Argument(help="Store to copy into: a file or a URL.")],
    store: VisitStore,
) -> None:
    """Copy a store into another one, as from SQLite to PostgreSQL.

    What is there already is left as it is; an interrupted copy goes on with the same command.
    """
    from agelens.analytics.copying import copy_visits
    from agelens.analytics.store import open_store

    with open_store(store, read_only=True) as source, open_store(target) as opened:
        added = copy_visits(source, opened)
    error_console().print(
        f"{added.stored:,} visits copied, {added.known:,} were there, "
        f"{added.expired:,} older than what is kept there"
    )


def _scope(
    first: str | None,
    last: str | None,
    timezone: str,
    sites: tuple[str, ...],
    cameras: tuple[str, ...],
    staff: bool,
) -> Scope:
    from datetime import timedelta

    from agelens.analytics.hours import day_start, site_zone
    from agelens.analytics.records import Scope

    if first is None:
        if last is not None:
            raise ArgumentError("--to needs --from: which day is the first?")
        return Scope(sites=sites, cameras=cameras, staff=staff)
    zone = site_zone(timezone)
    begin = parse_day("--from", first)
    final = begin if last is None else parse_day("--to", last)
    if final < begin:
        raise ArgumentError(f"--to {final} is before --from {begin}")
    end = day_start(final + timedelta(days=1), zone)
    return Scope(day_start(begin, zone), end, sites, cameras, staff)
