"""
A month of simulated visitors, and how long each page and report of it takes.

    python benchmarks/visitors_month.py [--visits 1000000] [--seed 1] [--store FILE] [--out FOLDER]

Two sites with five cameras in March 2026, over the change of the clocks on the 29th; in February
there are fewer visitors, for comparison. What the model says of a visitor is drawn from its own
measured confusion, so that the corrected shares can be held against the true ones, which are
printed. One camera is off for two days, and another one grows dim from the 20th on.

With --store the simulated store is kept, and taken from there the next time; with --out the report
is written as HTML, PDF and CSV.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from agelens.analytics.charts import csv_text, overview_charts, svg
from agelens.analytics.confusion import LABELS
from agelens.analytics.hours import day_start
from agelens.analytics.overview import Overview, overview
from agelens.analytics.period import Period
from agelens.analytics.presence import Selection
from agelens.analytics.profile import find_confusion
from agelens.analytics.records import Site, WatchedMinute
from agelens.analytics.report import make_report, report_csv, report_html, report_pdf
from agelens.analytics.store import Store, open_store
from agelens.data.schema import write_bytes, write_text
from agelens.identifiers import new_identifier
from agelens.results import GenderLabel
from agelens.video.health import HealthSample
from agelens.video.visit import COUNTED_BANDS, VISIT_BANDS, LineCrossing, Visit, ZoneStay

MODEL = "agelens-s@1.1"
FIRST, MARCH, LAST = date(2026, 2, 1), date(2026, 3, 1), date(2026, 3, 31)
BEFORE = 0.15
"""Visitors of a day in February for one in March: they need time to be made."""
OPEN, CLOSED = 9, 21
SITES = (
    Site("museum", "Europe/Berlin", "Museum of the City", "Ground floor"),
    Site("shop", "Europe/London", "Shop in the High Street"),
)
CAMERAS = (
    ("museum", "entrance", 0.3),
    ("museum", "hall", 0.2),
    ("museum", "screen", 0.1),
    ("shop", "door", 0.25),
    ("shop", "window", 0.15),
)
DARK = ("museum", "hall", date(2026, 3, 17), date(2026, 3, 18))
DIM = ("shop", "window", date(2026, 3, 20))
TRUE_BANDS = np.array([0.01, 0.06, 0.12, 0.22, 0.21, 0.15, 0.11, 0.08, 0.04])
TRUE_WOMEN = np.array([0.5, 0.5, 0.52, 0.56, 0.54, 0.5, 0.5, 0.52, 0.55])

Floats = NDArray[np.float64]
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model says: chances of each band and label by the true ones, and ages to write."""

    chances: Floats
    ages: tuple[tuple[float, ...], ...]


def answers() -> Answers:
    """The shipped model's confusion, and one age distribution for each band that it can say."""
    confusion = find_confusion(MODEL)
    if confusion is None:
        raise SystemExit(f"the confusion of {MODEL} is not here")
    counts = confusion.counts.astype(np.float64)
    chances = counts / counts.sum(axis=(2, 3), keepdims=True)
    true = np.stack([TRUE_BANDS * (1 - TRUE_WOMEN), TRUE_BANDS * TRUE_WOMEN], axis=1)
    cells = np.einsum("bg,bgpl->pl", true, chances)
    ages = []
    for low, high in COUNTED_BANDS:
        inside = [low <= start and end <= high for start, end in VISIT_BANDS]
        weights = np.where(inside, 1.0, 0.02)
        ages.append(tuple(float(p) for p in np.round(weights / weights.sum(), 6)))
    return Answers(cells, tuple(ages))


def simulated(visits: int, seed: int) -> Iterator[list[Visit]]:
    """Visits of each camera and day."""
    said = answers()
    rng = np.random.default_rng(seed)
    days = [FIRST + timedelta(days=n) for n in range((LAST - FIRST).days + 1)]
    busy = np.array([1.0, 0.9, 0.95, 1.0, 1.3, 1.8, 1.2])[[day.weekday() for day in days]]
    month = np.array([day >= MARCH for day in days])
    busy[~month] *= BEFORE
    for site, camera, share in CAMERAS:
        for day, weight in zip(days, busy / busy[month].sum(), strict=True):
            count = int(rng.poisson(visits * share * weight))
            if (site, camera) == DARK[:2] and DARK[2] <= day <= DARK[3]:
                count = 0
            yield of_day(site, camera, day, count, said, rng)


def of_day(
    site: str, camera: str, day: date, count: int, said: Answers, rng: np.random.Generator
) -> list[Visit]:
    """So many visits between opening and closing time, most in the afternoon."""
    zone = next(ZoneInfo(one.timezone) for one in SITES if one.name == site)
    opens = datetime(day.year, day.month, day.day, OPEN, tzinfo=zone).astimezone(UTC)
    starts = np.sort(rng.beta(2.2, 1.8, count)) * 3600 * (CLOSED - OPEN)
    seconds = np.round(rng.gamma(1.5, 25.0, count) + 1, 3)
    looked = np.round(seconds * rng.beta(2, 3, count), 3)
    cells = rng.choice(said.chances.size, count, p=said.chances.ravel() / said.chances.sum())
    blind = rng.random(count) < 0.06
    staff = rng.random(count) < 0.01
    enters = rng.random(count) < 0.55
    found = []
    for number in range(count):
        at = opens + timedelta(seconds=float(starts[number]))
        band, label = divmod(int(cells[number]), len(LABELS))
        gender: GenderLabel = ("male", "female", "uncertain")[label]
        fields: dict[str, Any] = {
            "age": None if blind[number] else said.ages[band],
            "female": None if blind[number] else (0.1, 0.9, 0.5)[label],
            "gender": None if blind[number] else gender,
            "abstained": bool(blind[number]),
        }
        stays: tuple[ZoneStay, ...] = (ZoneStay("front", round(float(seconds[number]) * 0.6, 3)),)
        if enters[number]:
            stays = (*stays, ZoneStay("counter", round(float(seconds[number]) * 0.3, 3)))
        way = "in" if number % 2 else "out"
        found.append(
            Visit(
                id=new_identifier(at, key=f"{site}/{camera}/{day}/{number}"),
                site=site,
                camera=camera,
                epoch=day.isoformat(),
                track=number,
                first_pts=round(1e6 * float(starts[number])),
                start=at,
                end=at + timedelta(seconds=float(seconds[number])),
                seconds=float(seconds[number]),
                attentive_seconds=float(looked[number]),
                frames=0 if blind[number] else 12,
                quality=0.7,
                model=MODEL,
                staff=bool(staff[number]),
                stays=stays,
                crossings=(LineCrossing("doorstep", way, at),),  # type: ignore[arg-type]
                **fields,
            )
        )
    return found


def watched(rng: np.random.Generator) -> Iterator[tuple[list[WatchedMinute], list[HealthSample]]]:
    """Minutes that cameras watched, and how well they saw, by camera and day."""
    for site, camera, _ in CAMERAS:
        zone = next(ZoneInfo(one.timezone) for one in SITES if one.name == site)
        day = FIRST
        while day <= LAST:
            is_dark = (site, camera) == DARK[:2] and DARK[2] <= day <= DARK[3]
            is_dim = (site, camera) == DIM[:2] and day >= DIM[2]
            opens = datetime(day.year, day.month, day.day, OPEN, tzinfo=zone).astimezone(UTC)
            minutes, health = [], []
            for number in range(0 if is_dark else 60 * (CLOSED - OPEN)):
                at = opens + timedelta(minutes=number)
                minutes.append(WatchedMinute(site, camera, at, 60.0))
                faces = int(rng.poisson(300))
                usable = int(rng.binomial(faces, 0.6 if is_dim else 0.9))
                quality = faces * float(rng.normal(0.45 if is_dim else 0.7, 0.02))
                age = usable * float(rng.normal(37, 1.5))
                seen = 1500, 20, 480, faces, usable, quality, age
                health.append(HealthSample(site, camera, at, *seen, epoch=day.isoformat()))
            yield minutes, health
            day += timedelta(days=1)


def fill(store: Store, visits: int, seed: int) -> None:
    """Make the months."""
    for site in SITES:
        store.set_site(site)
    for found in simulated(visits, seed):
        store.add(found)
    for minutes, health in watched(np.random.default_rng(seed)):
        store.add(watched=minutes, health=health)


def timed(what: str, work: Callable[[], Made], repeats: int = 3) -> Made:
    """Run it, and print the first and the shortest of several times."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        made = work()
        times.append(time.perf_counter() - start)
    mark = "" if times[0] < 1 else "   over 1 s"
    print(f"{what:<44}{1000 * times[0]:9.0f}{1000 * min(times):10.0f}{mark}", flush=True)
    return made


def show_profile(found: Overview) -> None:
    """The true shares beside what is told."""
    print(f"\n{'age':>8}{'true':>8}{'counted':>9}{'corrected':>11}   95 % interval")
    for true, group in zip(TRUE_BANDS, found.profile.age, strict=True):
        raw = group.raw.value if group.raw else float("nan")
        told = group.corrected
        words = f"{told.value:11.3f}   {told.low:.3f} to {told.high:.3f}" if told else ""
        print(f"{group.name:>8}{true:8.3f}{raw:9.3f}{words}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--visits", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.store or Path(folder) / "visitors.sqlite"
        if not path.exists():
            with open_store(path) as store:
                start = time.perf_counter()
                fill(store, chosen.visits, chosen.seed)
                taken = time.perf_counter() - start
                print(f"{chosen.visits:,} visits of March and what belongs to them: {taken:.0f} s")
        with open_store(path, read_only=True) as store:
            measure(store, chosen.out)


def measure(store: Store, out: Path | None) -> None:
    """Time what a dashboard and a report ask for."""
    zone = ZoneInfo(SITES[0].timezone)
    now = day_start(LAST + timedelta(days=1), zone) + timedelta(hours=12)
    month = Period.containing("month", LAST, zone)
    week = Period.containing("week", date(2026, 3, 25), zone)
    friday = Period.containing("day", date(2026, 3, 27), zone)
    afternoon = friday.start + timedelta(hours=15)

    def ask(name: str, period: Period, chosen: Selection, moment: datetime) -> Overview:
        return timed(
            f"overview, {name}", lambda: overview(store, period, selection=chosen, now=moment)
        )

    everything = Selection()
    print(f"{'milliseconds':<44}{'first':>9}{'shortest':>10}")
    found = ask("month, two sites", month, everything, now)
    ask("month, one site", month, Selection(sites=("shop",)), now)
    ask("month, one camera", month, Selection(cameras=("door",)), now)
    ask("month, one zone", month, Selection(zone="counter"), now)
    ask("week of the clock change", week, everything, now)
    ask("a day that is not over", friday, everything, afternoon)
    ask("30 days over two months", Period(date(2026, 2, 26), friday.last, zone), everything, now)
    ask("two months", Period(FIRST, LAST, zone), everything, now)
    timed(
        "the same, month, without the correction",
        lambda: overview(store, month, now=now, confusions=lambda _: None),
    )
    charts = overview_charts(found)
    timed("charts, SVG, all", lambda: [svg(chart) for chart in charts.values()])
    timed("charts, CSV, all", lambda: [csv_text(chart) for chart in charts.values()])
    timed("JSON", found.to_dict)
    report = timed("report of two sites, gathered", lambda: make_report(store, month, now=now), 1)
    page = timed("report, HTML", lambda: report_html(report))
    text = timed("report, CSV", lambda: report_csv(report))
    paper = timed("report, PDF", lambda: report_pdf(report), 1)
    if out is not None:
        write_text(out / "visitors.html", page)
        write_text(out / "visitors.csv", text)
        write_bytes(out / "visitors.pdf", paper)
    show_profile(found)
    print()
    for alarm in found.alarms:
        print(f"- {alarm.words}")
    for note in found.notes:
        print(f"- {note}")


if __name__ == "__main__":
    main()
