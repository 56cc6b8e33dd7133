"""
``agelens report``: the visitors of a period as a page, a PDF or CSV.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer
from rich.markup import escape

from agelens.cli.console import error_console, output_console
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
    from zoneinfo import ZoneInfo

    from agelens.analytics.period import Period
    from agelens.analytics.store import Store

PeriodName = Literal["day", "week", "month"]
ReportFormat = Literal["html", "pdf", "csv"]


def report(
    store: VisitStore,
    period: Annotated[
        PeriodName | None,
        typer.Option(help="The last one that is over; with --from the one with that day."),
    ] = None,
    first: FirstDay = None,
    last: LastDay = None,
    site: VisitSites = None,
    camera: VisitCameras = None,
    zone: Annotated[
        str | None, typer.Option(help="Only visitors who stayed in this zone.", show_default=False)
    ] = None,
    format_: Annotated[
        ReportFormat | None,
        typer.Option(
            "--format", help="By default that of --output's ending, or html.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File, or folder for a file named after the period; - prints."
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Title of the report.", show_default=False)
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(
            help="Time zone of sites that the store has none of; by default that of the others, "
            "or this computer's.",
            show_default=False,
        ),
    ] = None,
    minimum: Annotated[
        int, typer.Option(min=1, help="Fewest visitors that are shown; 1 shows true counts.")
    ] = 5,
) -> None:
    """Write a report of the visitors of a day, a week, a month or any days.

    It compares with the period before, says when cameras were missing and how far off figures may
    be, and shows every count in lots of --minimum, so that nobody can be singled out. It can run
    while `agelens watch` writes to the store.

    [bold]Examples[/]

      agelens report --store visits.sqlite --period week -o reports/

      agelens report --store visits.sqlite --from 2026-03-01 --to 2026-03-15 --format pdf

      agelens report --store postgresql://db/visits --site shop --site museum -o march.html
    """
    from agelens.analytics.presence import Selection
    from agelens.analytics.report import make_report, report_csv, report_html, write_report
    from agelens.analytics.store import open_store

    sites = tuple(site or ())
    with open_store(store, read_only=True) as opened:
        days = _period(period, first, last, _zone(opened, timezone, sites))
        found = make_report(
            opened,
            days,
            selection=Selection(sites, tuple(camera or ()), zone),
            title=title or "",
            minimum=minimum,
        )
    chosen = format_ or _format_of(output)
    if output is not None and str(output) == "-":
        if chosen == "pdf":
            raise ArgumentError("a PDF is not printed; name a file with --output")
        text = report_csv(found) if chosen == "csv" else report_html(found)
        output_console().file.write(text)
        return
    path = _path(output, days, chosen)
    write_report(found, path, format=chosen)
    error_console().print(f"-> {escape(str(path))}", soft_wrap=True)


def _zone(store: Store, timezone: str | None, sites: tuple[str, ...]) -> ZoneInfo:
    from agelens.analytics.hours import site_zone
    from agelens.analytics.report import report_zone
    from agelens.video.plan import system_timezone

    if timezone is not None:
        return site_zone(timezone)
    return report_zone(store, sites) or site_zone(system_timezone())


def _period(name: PeriodName | None, first: str | None, last: str | None, zone: ZoneInfo) -> Period:
    from agelens.analytics.period import Period
    from agelens.analytics.report import last_period

    if first is None:
        if last is not None:
            raise ArgumentError("--to needs --from: which day is the first?")
        return last_period(name or "week", zone)
    begin = parse_day("--from", first)
    if name is None:
        return Period(begin, begin if last is None else parse_day("--to", last), zone)
    if last is not None:
        raise ArgumentError("give --period or --to, not both")
    return Period.containing(name, begin, zone)


def _format_of(output: Path | None) -> ReportFormat:
    ending = "" if output is None else output.suffix.lstrip(".").lower()
    return next((one for one in get_args(ReportFormat) if one == ending), "html")


def _path(output: Path | None, days: Period, format_: ReportFormat) -> Path:
    name = f"visitors-{days.first}" + ("" if days.days == 1 else f"-to-{days.last}")
    if output is None:
        return Path(f"{name}.{format_}")
    return output / f"{name}.{format_}" if output.is_dir() else output


__all__ = ["report"]
