"""
``agelens watch``: cameras and videos to visits in a store, with a live table, and pages beside it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

import typer

from agelens.cli.console import error_console, output_console, print_table
from agelens.cli.options import AcceptLicence, DetectorName
from agelens.errors import ArgumentError, MissingExtra, StoreError

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from rich.table import Table

    from agelens.analytics.run_summary import RunSummary
    from agelens.analytics.watching import CameraStatus, Watch
    from agelens.video.camera import Moment
    from agelens.video.plan import CameraPlan, WatchPlan
    from agelens.video.present import LiveAudience
    from agelens.video.zones import Line, Point, Zone

Side = Literal["left", "right"]

_WRONG_USAGE: Final = 2
_SOME_FAILED: Final = 1
_INTERRUPTED: Final = 130
_TABLE_S: Final = 0.5
_LOOK_S: Final = 0.1
_LINE_S: Final = 60.0
"""Time between two lines about a camera of which nothing new can be said."""
_BAD: Final = ("failed", "down", "stalled", "reconnecting")
_PATIENCE_S: Final = 2.0
"""Time that one write waits for a PostgreSQL server before visits go to the spool."""


def watch(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Videos, folders, webcam numbers, rtsp:// or http(s):// addresses; NAME=SOURCE "
            "gives a camera its name.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="TOML file that says what to watch, instead of sources.")
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="Name of the place; by default here.", show_default=False)
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="File or postgresql:// URL for the visits; by default visits.sqlite.",
            show_default=False,
        ),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(
            help="Time zone of the site, as Europe/Berlin; by default this computer's.",
            show_default=False,
        ),
    ] = None,
    line: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:X,Y,X,Y[:SIDE]",
            help="A line to count crossings of, in fractions 0..1 of the picture; SIDE (left or "
            "right of its way, by default left) is in. May be repeated.",
        ),
    ] = None,
    zone: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:X,Y,X,Y,X,Y[,...]",
            help="An area to measure stays in, in fractions of the picture. May be repeated.",
        ),
    ] = None,
    starts_at: Annotated[
        datetime | None,
        typer.Option(
            help="When the files were taken, by the site's clock; by default what they say.",
            show_default=False,
        ),
    ] = None,
    retention_days: Annotated[
        int | None, typer.Option(help="Delete visits after so many days.", show_default=False)
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Count files anew that were counted before.")
    ] = False,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Play files at their own speed, as cameras.")
    ] = False,
    processes: Annotated[
        bool, typer.Option("--processes", help="A process for each camera.")
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve the pages of the site meanwhile."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Key file for --listen; made by `agelens keys`.")
    ] = None,
    audience_rules: Annotated[
        str | None, typer.Option(metavar="FILE", help="Rules that choose the content of a screen.")
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Tell a broker who is there: mqtt://[USER@]HOST[:PORT]."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model: a name, or a .onnx file with its card.", show_default=False),
    ] = None,
    detector: Annotated[DetectorName | None, typer.Option(show_default=False)] = None,
    min_face: Annotated[
        int | None,
        typer.Option(metavar="PX", help="Smallest face to look for.", show_default=False),
    ] = None,
    no_gender: Annotated[bool, typer.Option("--no-gender", help="Estimate age only.")] = False,
    accept_licence: AcceptLicence = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    progress: Annotated[
        bool, typer.Option("--progress/--no-progress", help="Tell how the cameras do.")
    ] = True,
) -> None:
    """Count visitors in videos and in front of cameras; keep their visits, never a picture.

    A video is counted as fast as possible, a camera in real time until Ctrl-C. Interrupted, even by
    kill -9, the same command goes on with a video where it was; a video that was counted to its end
    is not counted again. Exit status: 0 all well, 1 a source failed or is down, 2 wrong usage, 130
    interrupted before the end of a video.

    [bold]Examples[/]

      agelens watch clip.mp4

      agelens watch door=rtsp://camera.local/1 --line "gate:0.5,0,0.5,1" --listen 127.0.0.1:8080

      agelens watch --plan shop.toml
    """
    _hush_libraries()
    wanted = _plan(
        sources or [],
        plan,
        {
            "site": site,
            "store": store,
            "timezone": timezone,
            "retention_days": retention_days,
            "model": model,
            "detector": detector,
            "gender": False if no_gender else None,
            "accept_licence": accept_licence or None,
        },
        lines=line or [],
        zones=zone or [],
        min_face=min_face,
    )
    wanted = _with_audience(wanted, audience_rules, mqtt)
    if starts_at is not None or realtime:
        wanted = _with_options(wanted, starts_at, realtime=realtime)
    status = _watch(
        wanted,
        listen=None if listen is None else _address(listen),
        keys=keys,
        processes=processes,
        again=again,
        as_json=as_json,
        progress=progress,
    )
    raise typer.Exit(status)


def _hush_libraries() -> None:
    """What they say of a camera that is away is in its status, once."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)


# --- what to watch --------------------------------------------------------------------------------

_NAMED: Final = re.compile(r"([^=/\\:?]+)=(.+)")


def _plan(
    sources: Sequence[str],
    file: Path | None,
    changes: dict[str, Any],
    *,
    lines: Sequence[str],
    zones: Sequence[str],
    min_face: int | None,
) -> WatchPlan:
    from agelens.video.plan import CameraPlan, WatchPlan, read_plan

    if (file is None) == (not sources):
        raise ArgumentError("give sources to watch, or --plan FILE (one of both)")
    given = {name: value for name, value in changes.items() if value is not None}
    if file is not None:
        if lines or zones or min_face is not None:
            raise ArgumentError(
                "--line, --zone and --min-face go with sources; put them into the plan"
            )
        return replace(read_plan(file), **given)
    named = [_named(source) for source in sources]
    _require_different_names([name for name, _ in named])
    more: dict[str, Any] = {} if min_face is None else {"min_face": min_face}
    cameras = tuple(
        CameraPlan(
            name,
            source,
            lines=tuple(_line(text) for text in lines),
            zones=tuple(_zone(text) for text in zones),
            **more,
        )
        for name, source in named
    )
    return WatchPlan(cameras=cameras, **given)


def _named(text: str) -> tuple[str, str | int]:
    from agelens.video.plan import camera_name

    found = None if Path(text).exists() else _NAMED.fullmatch(text)
    name, source = (found[1].strip(), found[2]) if found else (None, text)
    where = int(source) if source.isdecimal() and not Path(source).exists() else source
    return name or camera_name(where), where


def _require_different_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArgumentError(
            f"two sources would be called {twice[0]!r}; give each a name, as door=FILE"
        )


def _line(text: str) -> Line:
    from agelens.video.zones import Line

    wanted = f"--line {text}: expected NAME:X,Y,X,Y or NAME:X,Y,X,Y:right, as gate:0.5,0,0.5,1"
    name, mark, rest = text.partition(":")
    numbers, _, side = rest.partition(":")
    points = _points(numbers, wanted)
    if not mark or len(points) != 2 or (side and side not in get_args(Side)):
        raise ArgumentError(wanted)
    return Line(name, points[0], points[1], "right" if side == "right" else "left")


def _zone(text: str) -> Zone:
    from agelens.video.zones import Zone

    wanted = f"--zone {text}: expected NAME:X,Y,X,Y,X,Y, as shelf:0.6,0,1,0,1,1"
    name, mark, numbers = text.partition(":")
    if not mark:
        raise ArgumentError(wanted)
    return Zone(name, _points(numbers, wanted))


def _points(text: str, wanted: str) -> tuple[Point, ...]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ArgumentError(wanted) from error
    if len(values) % 2:
        raise ArgumentError(wanted)
    return tuple(zip(values[::2], values[1::2], strict=True))


def _with_audience(plan: WatchPlan, rules: str | None, mqtt: str | None) -> WatchPlan:
    from agelens.video.audience import AudiencePlan
    from agelens.video.mqtt import MqttPlan

    if rules is not None:
        plan = replace(plan, audience=replace(plan.audience or AudiencePlan(), rules=rules))
    if mqtt is not None:
        plan = replace(plan, mqtt=MqttPlan.of_url(mqtt))
    return plan


def _with_options(plan: WatchPlan, starts_at: datetime | None, *, realtime: bool) -> WatchPlan:
    from agelens.analytics.hours import site_zone
    from agelens.video.plan import system_timezone

    changes: dict[str, Any] = {"realtime": True} if realtime else {}
    if starts_at is not None:
        zone = site_zone(plan.timezone or system_timezone())
        changes["starts_at"] = starts_at if starts_at.tzinfo else starts_at.replace(tzinfo=zone)

    def changed(camera: CameraPlan) -> CameraPlan:
        return replace(camera, options=replace(camera.options, **changes))

    return replace(plan, cameras=tuple(changed(camera) for camera in plan.cameras))


# --- watching -------------------------------------------------------------------------------------


def _watch(
    plan: WatchPlan,
    *,
    listen: tuple[str, int] | None,
    keys: Path | None,
    processes: bool,
    again: bool,
    as_json: bool,
    progress: bool,
) -> int:
    try:
        from agelens.analytics.run_summary import summarise_run
        from agelens.analytics.store import open_store
        from agelens.analytics.watching import Watch
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("agelens"):
            raise
        raise MissingExtra("visitors", "watching cameras") from error
    from agelens.identifiers import utc_now

    since = utc_now()
    with ExitStack() as stack:
        opened = stack.enter_context(open_store(plan.store, patience_s=_PATIENCE_S))
        audience: list[LiveAudience] = []

        def see(moment: Moment) -> None:
            for one in audience:
                one.add(moment)

        told = bool(listen or plan.audience or plan.mqtt)
        watching = Watch(
            plan,
            store=opened,
            on_moment=see if told else None,
            processes=processes,
            again=again,
        )
        if told:
            audience.append(_audience(plan, watching, stack))
        stay = threading.Event()
        stop = _Stop(watching, stay)
        stack.enter_context(stop.on_signals())
        if listen is not None:
            _serve(plan, watching, audience[0], listen, keys, stack)
        failure = None
        with _told(watching, progress=progress):
            try:
                watching.run()
            except StoreError as error:
                failure = error
        statuses = watching.statuses()
        status = _status(statuses, failed=failure is not None, stopped=stop.asked)
        if failure is not None:
            error_console().print(f"error: {failure}", style="bold red", markup=False)
            return status
        with open_store(plan.store, read_only=True) as patient:
            summary = summarise_run(patient, statuses, watching.analyzer.bundle, since=since)
        if as_json:
            output_console().print(json.dumps(summary.to_dict()), markup=False, soft_wrap=True)
        else:
            _print_summary(summary, watching.site.zone)
        _print_notes(watching, statuses, told=progress and not error_console().is_terminal)
        if listen is not None and not stop.asked:
            error_console().print("all sources have ended; still serving, Ctrl-C ends it")
            stay.wait()
    return status


class _Stop:
    """Signals end the run in order; a second one ends it at once."""

    def __init__(self, watching: Watch, stay: threading.Event) -> None:
        self._watching = watching
        self._stay = stay
        self.asked = False

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._watching.stop()
        self._stay.set()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """While the run lasts; only the main thread may set them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def _status(statuses: Sequence[CameraStatus], *, failed: bool, stopped: bool) -> int:
    if failed or any(one.state in ("failed", "down") for one in statuses):
        return _SOME_FAILED
    if stopped and any(one.state in ("stopped", "waiting") for one in statuses):
        return _INTERRUPTED
    return 0


def _audience(plan: WatchPlan, watching: Watch, stack: ExitStack) -> LiveAudience:
    from agelens.video.audience import AudiencePlan
    from agelens.video.present import LiveAudience

    live = LiveAudience(plan.audience or AudiencePlan(), site=plan.site, zone=watching.site.zone)
    if plan.mqtt is not None:
        from agelens.video.mqtt import MqttPublisher

        publisher = stack.enter_context(
            MqttPublisher(
                plan.mqtt,
                site=plan.site,
                on_change=lambda status: _say(f"mqtt: {status.message or 'connected'}"),
            )
        )
        live.listen(publisher.publish)
    return stack.enter_context(live)


def _serve(
    plan: WatchPlan,
    watching: Watch,
    live: LiveAudience,
    listen: tuple[str, int],
    keys: Path | None,
    stack: ExitStack,
) -> None:
    try:
        from agelens.server.audience import AudienceHub
        from agelens.server.site import create_site_app, serve_site
        from agelens.settings import PREFIX, ServerSettings
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("agelens"):
            raise
        raise MissingExtra("serve", "the pages of a site") from error
    given = {
        "host": listen[0],
        "port": listen[1],
        "keys": keys,
        "minimum": plan.minimum,
        # A page asks for live numbers all the time; a line for each would bury what is told here.
        "log_level": os.environ.get(f"{PREFIX}LOG_LEVEL", "warning"),
    }
    app = create_site_app(
        ServerSettings.load(None, **{k: v for k, v in given.items() if v is not None}),
        store=plan.store,
        zone=watching.site.zone,
        audience=AudienceHub(live),
        statuses=watching.statuses,
        snapshot=watching.snapshot,
    )
    handle = stack.enter_context(serve_site(app))
    error_console().print(f"pages at {handle.address}", markup=False)


def _address(text: str) -> tuple[str, int]:
    host, mark, port = text.rpartition(":")
    if not mark or not port.isdecimal():
        raise ArgumentError(f"--listen {text}: expected HOST:PORT, as 127.0.0.1:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


# --- telling --------------------------------------------------------------------------------------


@contextmanager
def _told(watching: Watch, *, progress: bool) -> Iterator[None]:
    """Tell how the cameras do: a table in a terminal, lines elsewhere."""
    if not progress:
        yield
        return
    ended = threading.Event()
    console = error_console()
    tell = _keep_table if console.is_terminal else _keep_lines
    thread = threading.Thread(target=tell, args=(watching, ended), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _keep_table(watching: Watch, ended: threading.Event) -> None:
    from rich.live import Live

    with Live(console=error_console(), auto_refresh=False) as live:
        while True:
            is_over = ended.wait(_TABLE_S)
            live.update(_table(watching), refresh=True)
            if is_over:
                return


def _table(watching: Watch) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False, caption=escape(watching.message))
    for title in ("camera", "state", "watched", "frames", "dropped", "in view", "visits", ""):
        table.add_column(title, justify="left" if title in ("camera", "state", "") else "right")
    for one in watching.statuses():
        table.add_row(
            escape(one.camera),
            one.state,
            _clock(one.position_s),
            str(one.frames_in),
            str(one.dropped),
            str(one.people),
            str(one.visits),
            escape(one.message),
            style="red" if one.state in _BAD else None,
        )
    return table


def _keep_lines(watching: Watch, ended: threading.Event) -> None:
    told: dict[str, tuple[str, str]] = {}
    last_s = time.monotonic()
    message = ""
    while True:
        is_over = ended.wait(_LOOK_S)
        is_time = time.monotonic() - last_s >= _LINE_S
        for one in watching.statuses():
            news = one.state, one.message
            if is_time or told.get(one.camera) != news:
                told[one.camera] = news
                _say(_in_words(one))
        if watching.message != message:
            message = watching.message
            _say(f"store: {message or 'all well again'}")
        if is_time:
            last_s = time.monotonic()
        if is_over:
            return


def _in_words(one: CameraStatus) -> str:
    told = f"{one.camera}: {one.state}, {_clock(one.position_s)} watched, {one.visits} visits"
    told += f", {one.dropped} frames dropped" if one.dropped else ""
    return f"{told}; {one.message}" if one.message else told


def _say(text: str) -> None:
    error_console().print(text, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _print_notes(watching: Watch, statuses: Sequence[CameraStatus], *, told: bool) -> None:
    """What is to be known at the end; ``told``: how each camera ended stands there already."""
    for one in statuses:
        if one.state == "known":
            _say(f"{one.camera}: {one.message}; not counted again (--again counts it anew)")
        elif one.state == "stopped":
            _say(
                f"{one.camera}: stopped at {_clock(one.position_s)}; the same command goes on "
                "from there, and counts those who were in view"
            )
        elif one.state in _BAD and not told:
            _say(f"{one.camera}: {one.state}: {one.message}")
    if watching.expired:
        _say(
            f"{watching.expired} visits were not stored: they are older than retention keeps "
            "(retention_days)"
        )


def _print_summary(summary: RunSummary, zone: ZoneInfo) -> None:
    console = output_console()
    console.print(_headline(summary, zone), markup=False, soft_wrap=True)
    print_table(
        ("camera", "visitors", "staff", "crossings"),
        [
            (
                one.camera,
                str(one.visitors),
                str(one.staff),
                ", ".join(f"{line} {way} {count}" for line, way, count in one.crossings) or "-",
            )
            for one in summary.cameras
        ],
        left=1,
    )
    if not summary.visitors:
        return
    shares = summary.demographics
    known = summary.visitors - summary.unknown
    rows: list[tuple[str, ...]] = []
    counted = (*summary.ages, *((name, n) for name, n in summary.genders))
    corrected = {} if shares is None else {s.name: s for s in (*shares.age, *shares.gender)}
    for name, count in counted:
        row = (name, str(count), f"{count / known:.0%}" if known else "-")
        share = corrected.get(name)
        if share is None:
            rows.append((*row, "-", "-"))
        else:
            found = share.corrected
            rows.append((*row, f"{found.value:.0%}", f"{found.low:.0%} to {found.high:.0%}"))
    console.print()
    print_table(("looks", "counted", "share", "corrected", "95 % interval"), rows, left=1)
    if summary.unknown:
        rest = f"{summary.unknown} without an estimate are in no share."
        console.print(rest, markup=False, soft_wrap=True)
    told = summary.note or (
        "Corrected: what the model confuses on test faces is taken back; the interval holds that "
        "and the small number of visitors."
    )
    console.print(told, markup=False, soft_wrap=True)


def _headline(summary: RunSummary, zone: ZoneInfo) -> str:
    who = "1 visitor" if summary.visitors == 1 else f"{summary.visitors} visitors"
    if summary.first is None or summary.last is None:
        return f"{who} at {summary.site}"
    first, last = summary.first.astimezone(zone), summary.last.astimezone(zone)
    return f"{who} at {summary.site}, {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S %Z}"
