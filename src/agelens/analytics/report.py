"""
Reports of visitors: a period of one site or several as a page, as a PDF, or as CSV.

The page and the PDF hold the same words, tables and charts, refer to nothing outside of themselves,
and are made of an ``Overview`` alone: what it hides is in no report.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, get_args
from zoneinfo import ZoneInfo

from agelens import __version__
from agelens.analytics.charts import (
    CSV_HEAD,
    HIDDEN,
    Chart,
    Ground,
    Rows,
    Series,
    figure_cells,
    figures,
    overview_charts,
    place_words,
    svg,
    table,
    value_text,
)
from agelens.analytics.export import plain_cell
from agelens.analytics.hours import local_day
from agelens.analytics.lots import Count
from agelens.analytics.overview import Comparison, Overview, overview
from agelens.analytics.period import MONTHS, WEEKDAYS, Period, PeriodName
from agelens.analytics.presence import Selection
from agelens.analytics.profile import Confusions, GroupShare, find_confusion
from agelens.analytics.store import Store
from agelens.analytics.suppression import DEFAULT_MINIMUM
from agelens.data.schema import write_bytes, write_text
from agelens.errors import ArgumentError, MissingExtra
from agelens.evaluation.pages import Table, render
from agelens.identifiers import utc_now

ReportFormat = Literal["html", "pdf", "csv"]

_TEMPLATES: Final = Path(__file__).parent / "templates"
_LONGEST_LIST: Final = 12
_EVEN: Final = 0.005
"""A change of less than half a per cent is none."""


@dataclass(frozen=True)
class Report:
    """A period, as a whole and site by site.

    Attributes:
        title: Of the document.
        whole: All that was selected.
        parts: One each of several sites; empty for a single one.
    """

    title: str
    whole: Overview
    parts: tuple[Overview, ...]


def report_zone(store: Store, sites: tuple[str, ...] = ()) -> ZoneInfo | None:
    """Time zone of the first of these sites (or of all) whose zone the store knows, or None."""
    known = (one for one in store.sites() if not sites or one.name in sites)
    return next((one.zone for one in known), None)


def last_period(name: PeriodName, zone: ZoneInfo, *, now: datetime | None = None) -> Period:
    """The last day, week or month that is over, as a timer asks for it.

    Args:
        name: Which of them.
        zone: Time zone of the site.
        now: The present; None asks the clock.
    """
    running = Period.containing(name, local_day(now or utc_now(), zone), zone)
    return Period.containing(name, running.first - timedelta(days=1), zone)


def make_report(
    store: Store,
    period: Period,
    *,
    selection: Selection | None = None,
    title: str = "",
    minimum: int = DEFAULT_MINIMUM,
    now: datetime | None = None,
    confusions: Confusions = find_confusion,
) -> Report:
    """Gather what a report holds.

    Args:
        store: Where the visits are.
        period: Whole days.
        selection: Sites, cameras, a zone; None takes all.
        title: Of the document; empty for one made of the period and the site.
        minimum: Fewest visitors that are shown.
        now: The present; None asks the clock.
        confusions: Where the confusion of a model is found.

    Raises:
        ArgumentError: The store knows no such site or camera, or has none at all.
        StoreError: It cannot be read.
    """
    moment = now or utc_now()
    chosen = selection or Selection()

    def ask(one: Selection) -> Overview:
        return overview(
            store, period, selection=one, minimum=minimum, now=moment, confusions=confusions
        )

    whole = ask(chosen)
    if not whole.cameras:
        raise ArgumentError(f"{store.where}: no camera has ever written to this store")
    parts: tuple[Overview, ...] = ()
    if len(whole.sites) > 1:
        parts = tuple(
            ask(Selection((one.site,), chosen.cameras, chosen.zone)) for one in whole.sites
        )
    named = title or f"Visitors, {period.words}"
    return Report(named, whole, parts)


def write_report(report: Report, path: str | Path, *, format: ReportFormat | None = None) -> None:
    """Write a report to a file that appears when it is complete, or not at all.

    Args:
        report: What it holds.
        path: The file; it is replaced when it exists.
        format: None goes by the name's ending.

    Raises:
        ArgumentError: The format is not one of these.
        MissingExtra: The packages of ``report`` are not installed.
    """
    path = Path(path)
    chosen = format or path.suffix.lstrip(".").lower()
    if chosen not in get_args(ReportFormat):
        raise ArgumentError(
            f"{path}: a report is written as {', '.join(get_args(ReportFormat))}, got {chosen!r}"
        )
    if chosen == "pdf":
        write_bytes(path, report_pdf(report))
    else:
        write_text(path, report_html(report) if chosen == "html" else report_csv(report))


def report_html(report: Report) -> str:
    """The report as one page that needs no network.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    return _rendered("visitors.html.j2", report, "page")


def report_pdf(report: Report) -> bytes:
    """The report on paper, A4.

    Raises:
        MissingExtra: jinja2 or weasyprint is not installed.
    """
    page = _rendered("visitors_paper.html.j2", report, "paper")
    try:
        from weasyprint import HTML
    except (ImportError, OSError) as error:  # OSError: the libraries below it are missing
        raise MissingExtra("report", "writing a PDF") from error
    document: Any = HTML(string=page, url_fetcher=_refuse)
    return bytes(document.write_pdf())


def _refuse(url: str, *_: object, **__: object) -> NoReturn:
    """Nothing is fetched: a report is whole in itself."""
    raise ValueError(f"a report refers to nothing outside of itself, got {url[:80]}")


def report_csv(report: Report) -> str:
    """All figures of a report, one a line.

    Columns: site (empty for all together), chart, then ``charts.CSV_HEAD``. Totals come first.
    """
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(("site", "chart", *CSV_HEAD))
    for part in (report.whole, *report.parts):
        site = part.sites[0].site if len(part.sites) == 1 else ""
        for name, chart in {"total": _totals(part), **overview_charts(part)}.items():
            for figure in figures(chart):
                writer.writerow((plain_cell(site), name, *figure_cells(figure)))
    return output.getvalue()


def _totals(found: Overview) -> Rows:
    compared = [found.previous, *([found.week_before] if found.week_before else [])]
    values = (found.visitors, *(one.before for one in compared))
    names = (found.period.words, *(one.period.words for one in compared))
    return Rows(
        found.period.words, "visitors", "count", "period", names, (Series("visitors", values),)
    )


# --- words ----------------------------------------------------------------------------------------


def summary_sentences(found: Overview) -> Iterator[str]:
    """What a period was like, for readers who read nothing else."""
    yield _visitors_sentence(found)
    busiest = _busiest_sentence(found)
    if busiest:
        yield busiest
    yield from _profile_sentences(found)
    if found.stay.seconds is not None:
        words = f"They stayed {duration_text(found.stay.seconds)} on average"
        share = found.stay.attentive_share
        looked = found.stay.attentive_seconds
        if share is not None and looked is not None:
            words += f", and looked at the screen for {duration_text(looked)} of it ({share:.0%})"
        yield words.replace("%", " %") + "."
    yield from _camera_sentences(found)


def _visitors_sentence(found: Overview) -> str:
    so_far = " so far" if found.is_running else ""
    words = f"{count_text(found.visitors).capitalize()} visitors{so_far}"
    if found.visitors is None:
        return f"Too few visitors to be shown{so_far}."
    told = [comparison_words(one) for one in (found.previous, found.week_before) if one is not None]
    known = [one for one in told if one]
    return f"{words}{', ' if known else ''}{'; '.join(known)}."


def comparison_words(compared: Comparison) -> str:
    """As "8 % more than in 2 to 8 March 2026 (385)"; empty when nothing can be compared."""
    if compared.change is None:
        return ""
    name = f"{compared.period.words} ({count_text(compared.before)})"
    if abs(compared.change) < _EVEN:
        return f"as many as in {name}"
    way = "more" if compared.change > 0 else "fewer"
    words = f"{abs(compared.change):.0%}".replace("%", " %")
    if compared.change >= 1:
        words = f"{compared.change + 1:.1f} times"
        return f"{words} as many as in {name}"
    return f"{words} {way} than in {name}"


def _busiest_sentence(found: Overview) -> str:
    parts = []
    days = [(one.visitors, one.day) for one in found.days if one.visitors]
    if len(days) > 1:
        count, day = max(days)
        name = f"{WEEKDAYS[day.weekday()]} {day.day} {MONTHS[day.month - 1]}"
        parts.append(f"on {name} with {count:,}")
    hours = [(one.visitors, one.hour) for one in found.hours if one.visitors]
    if len(hours) > 1:
        count, hour = max(hours)
        parts.append(f"in the hour from {hour}:00 with {count:,}")
    return f"Most came {' and '.join(parts)}." if parts else ""


def _profile_sentences(found: Overview) -> Iterator[str]:
    profile = found.profile
    groups = [(_told(one), one) for one in profile.age]
    known = [(value, one) for value, one in groups if value is not None]
    if not known:
        return
    how = (
        "corrected for the model's errors" if profile.is_corrected else "as counted, not corrected"
    )
    _, largest = max(known, key=lambda pair: pair[0])
    words = (
        f"The largest age group was {largest.name.replace('-', '–')} with {_share_words(largest)}"
    )
    women = next((one for one in profile.gender if one.name == "female"), None)
    if women is not None and _told(women) is not None:
        words += f"; {_share_words(women)} were perceived as female"
    yield f"{words} ({how})."


def _told(group: GroupShare) -> float | None:
    found = group.corrected or group.raw
    return None if found is None else found.value


def _share_words(group: GroupShare) -> str:
    found = group.corrected or group.raw
    if found is None:
        return HIDDEN
    low, high = (value_text(end, "share") for end in (found.low, found.high))
    return f"{value_text(found.value, 'share')} (95 % interval {low} to {high})"


def _camera_sentences(found: Overview) -> Iterator[str]:
    if found.expected_hours > 0:
        share = found.watched_hours / found.expected_hours
        words = f"Cameras watched {share:.1%}".replace("%", " %")
        words += " of the hours in which they usually do"
        if found.gaps:
            longest = found.gaps[0]
            camera = place_words(found, longest.site, longest.camera)
            words += f"; the longest gap was {longest.hours:.1f} hours at {camera}"
        yield f"{words}."
    if found.alarms:
        count = len({(one.site, one.camera) for one in found.alarms})
        yield f"{count} camera{'s' if count > 1 else ''} saw otherwise than before; see the alarms."


def count_text(count: Count) -> str:
    """A count as people read it."""
    return HIDDEN if count is None else f"{count:,}"


def duration_text(seconds: float) -> str:
    """As "40 s" or "2 min 5 s"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def change_text(change: float | None) -> str:
    """As "+8 %"; a dash when nothing can be compared."""
    if change is None:
        return "–"
    return f"{100 * change:+.0f} %".replace("-", "−")


# --- the document ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A chart of the document, with the table of the same figures."""

    title: str
    caption: str
    svg: str
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the document under one heading."""

    title: str
    words: tuple[str, ...] = ()
    charts: tuple[Shown, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Card:
    """One large figure of the cover."""

    title: str
    value: str
    unit: str
    note: str


_CAPTIONS: Final = {
    "by-hour": "By the clocks of each site.",
    "heat-map": "For each hour that a camera watched.",
    "pyramid": "Bars with their 95 % intervals.",
    "age": "Bars with their 95 % intervals.",
    "gender": "Perceived gender of those with a certain label.",
    "zones": "Whoever was in a zone counts once for each visit.",
    "lines": "Each crossing counts.",
    "coverage": "Missing are hours in which the camera usually watches.",
}


def _rendered(template: str, report: Report, ground: Ground) -> str:
    try:
        return render(template, _context(report, ground), folder=_TEMPLATES)
    except MissingExtra as error:
        raise MissingExtra("report", "writing a report") from error


def _context(report: Report, ground: Ground) -> dict[str, Any]:
    whole = report.whole
    return {
        "title": report.title,
        "places": ", ".join(one.title for one in whole.sites),
        "period": whole.period.words,
        "zone": ", ".join(sorted({one.zone for one in whole.sites})),
        "made": f"{whole.made_at.astimezone(whole.period.zone):%Y-%m-%d %H:%M}",
        "version": __version__,
        "summary": list(summary_sentences(whole)),
        "site_notes": [(one.title, one.note) for one in whole.sites if one.note],
        "alarms": [one.words for one in whole.alarms],
        "cards": _cards(whole),
        "sections": list(_sections(report, ground)),
        "notes": list(_method(whole)),
    }


def _cards(found: Overview) -> list[Card]:
    compared = found.week_before or found.previous
    stay, share = found.stay.seconds, found.stay.attentive_share
    cards = [
        Card("Visitors", "–" if found.visitors is None else f"{found.visitors:,}", "",
             HIDDEN if found.visitors is None else f"in lots of {found.minimum}"
             if found.minimum > 1 else "counted"),
        Card("Change", change_text(compared.change), "", f"against {compared.period.words}"),
    ]  # fmt: skip
    if stay is not None:
        cards.append(Card("Mean stay", duration_text(stay), "", "in view of a camera"))
    if share is not None:
        cards.append(Card("Attention", f"{100 * share:.0f}", "%", "of the stay"))
    if found.expected_hours > 0:
        watched = 100 * found.watched_hours / found.expected_hours
        note = "of the hours that cameras usually watch"
        cards.append(Card("Coverage", f"{watched:.1f}", "%", note))
    return cards


def _sections(report: Report, ground: Ground) -> Iterator[Section]:
    found = report.whole
    charts = overview_charts(found)

    def shown(*names: str) -> tuple[Shown, ...]:
        return tuple(_shown(name, charts[name], ground) for name in names if name in charts)

    yield Section("When they came", charts=shown("by-hour", "by-day", "heat-map"))
    who = shown("pyramid", "age", "gender")
    words = tuple(_profile_words(found))
    yield Section("Who came", words, who)
    where = shown("cameras", "zones", "zone-stays", "lines")
    if where:
        yield Section("Where they were", charts=where)
    yield Section(
        "Comparison",
        tables=(_comparison_table(found), *([_site_table(found)] if len(found.sites) > 1 else [])),
    )
    yield Section(
        "Cameras",
        tuple(_camera_sentences(found)),
        shown("coverage"),
        tuple(_camera_tables(found)),
    )
    for part in report.parts:
        own = overview_charts(part)
        names = [name for name in ("by-hour", "by-day", "pyramid") if name in own]
        yield Section(
            part.sites[0].title,
            (" ".join(summary_sentences(part)),),
            tuple(_shown(name, own[name], ground) for name in names),
        )


def _shown(name: str, chart: Chart, ground: Ground) -> Shown:
    head, rows = table(chart)
    return Shown(chart.title, _CAPTIONS.get(name, ""), svg(chart, ground=ground), Table(head, rows))


def _profile_words(found: Overview) -> Iterator[str]:
    profile = found.profile
    if profile.unknown_share is not None:
        yield (
            f"Of {count_text(profile.visitors)} visitors age and gender could be estimated; of "
            f"{value_text(profile.unknown_share, 'share')} of all they could not, and these are in "
            "no share. Gender is how a face is perceived by the model"
            + (
                f"; for {value_text(profile.uncertain_share, 'share')} it was uncertain."
                if profile.uncertain_share is not None
                else "."
            )
        )
    if profile.reason:
        yield profile.reason


def _comparison_table(found: Overview) -> Table:
    rows = [
        [
            one.period.words,
            count_text(one.now),
            count_text(one.before),
            change_text(one.change),
            "–" if one.watched_share != one.watched_share else f"{100 * one.watched_share:.0f} %",
        ]
        for one in (found.previous, found.week_before)
        if one is not None
    ]
    part = "the part that is over" if found.is_running else "the whole"
    return Table(
        ("compared with", "visitors now", "visitors then", "change", "hours watched then"),
        rows,
        caption=f"Compared is {part} of {found.period.words}; hours watched then are for 100 now.",
        wide=True,
    )


def _site_table(found: Overview) -> Table:
    rows = [
        [one.title, one.zone, count_text(one.visitors), count_text(one.before)]
        for one in found.sites
    ]
    head = ("site", "clocks", "visitors", "in the period before")
    return Table(head, rows, left=2, wide=True)


def _camera_tables(found: Overview) -> Iterator[Table]:
    rows = [
        [
            place_words(found, one.site, one.camera),
            count_text(one.visitors),
            "–" if one.stay.seconds is None else duration_text(one.stay.seconds),
            _percent(one.stay.attentive_share),
            f"{one.watched_hours:,.1f}",
            f"{one.missing_hours:,.1f}",
            _percent(one.usable_share),
            "–" if one.quality is None else f"{one.quality:.2f}",
            _percent(one.dropped_share),
            str(one.reconnects),
        ]
        for one in found.cameras
    ]
    yield Table(
        ("camera", "visitors", "mean stay", "attention", "hours watched", "hours missing",
         "usable faces", "quality", "frames dropped", "reconnects"),
        rows,
        wide=True,
    )  # fmt: skip
    if found.gaps:
        zones = {one.site: ZoneInfo(one.zone) for one in found.sites}
        listed = found.gaps[:_LONGEST_LIST]
        rows = [
            [
                place_words(found, gap.site, gap.camera),
                f"{gap.start.astimezone(zones[gap.site]):%Y-%m-%d %H:%M}",
                f"{gap.end.astimezone(zones[gap.site]):%Y-%m-%d %H:%M}",
                f"{gap.hours:.1f}",
            ]
            for gap in listed
        ]
        more = len(found.gaps) - len(listed)
        yield Table(
            ("camera", "gap from", "until", "hours"),
            rows,
            caption=f"The longest gaps{f'; {more} shorter ones are not listed' if more else ''}.",
            left=3,
            wide=True,
        )


def _percent(share: float | None) -> str:
    return "–" if share is None else value_text(share, "share")


def _method(found: Overview) -> Iterator[str]:
    """How the figures were made, and how far off they may be."""
    yield from found.notes
    if found.profile.is_corrected:
        yield (
            f"Shares of age and gender are corrected by what the model confuses, measured for "
            f"{found.profile.confusion}. Intervals hold 95 % of what the truth may be, given few "
            "visitors, few test faces and the rounding; they do not hold what no measurement "
            "tells: pictures worse than the test faces, or other people on them."
        )
    yield (
        "Counted is who came into view long enough to be followed; whoever comes back after the "
        "time that the site allows counts again. Staff, as the site's rules tell them, are left "
        "out. No picture and no likeness of a face is stored."
    )
