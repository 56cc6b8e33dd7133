"""
A stored calibration report as one page: before, after, and what was fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from agelens.data.schema import write_text
from agelens.errors import DataError
from agelens.evaluation import plots
from agelens.evaluation.calibrating import SCHEMA
from agelens.evaluation.metrics import find_metric
from agelens.evaluation.pages import (
    COVERAGE_BOUNDS,
    ENOUGH,
    Chart,
    Section,
    Table,
    Wire,
    check_schema,
    group_name,
    group_words,
    listed,
    reading,
    render,
    slug,
    with_unit,
)
from agelens.evaluation.plots import Reading
from agelens.evaluation.tables import estimate_text


def write_calibration_html(report: Wire, path: Path) -> None:
    """Write a stored calibration report as one HTML file: before, after, and what was fitted.

    Args:
        report: ``CalibrationReport.to_dict()``, or what its JSON file holds.
        path: File to write; it appears when it is complete, or not at all.

    Raises:
        DataError: It is no calibration report, or an old one that lacks a part.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    check_schema(report, SCHEMA, "calibration report")
    try:
        context = _calibration(report)
    except KeyError as error:
        raise DataError(f"this calibration report has no {error}; calibrate again") from error
    write_text(path, render("calibration.html.j2", context))


def _calibration(report: Wire) -> dict[str, Any]:
    provenance, before, after = report["provenance"], report["before"], report["after"]
    files = ", ".join(f"{file['name']} ({file['rows']:,} faces)" for file in provenance["data"])
    names = [name for name in before["metrics"] if name in after["metrics"]]
    rows = [
        [
            with_unit(find_metric(name).title, find_metric(name).shown_unit),
            *(
                estimate_text(side["metrics"][name], find_metric(name).text)
                for side in (before, after)
            ),
        ]
        for name in names
    ]
    return {
        "title": f"Calibration of {provenance['model']}",
        "model": provenance["model"],
        "data": files,
        "made": f"{report['created'][:10]}, AgeLens {report['agelens']}.",
        "folds": report["settings"]["folds"],
        "findings": list(_calibration_findings(before, after)),
        "charts": _calibration_charts(before, after),
        "figures": Table(("", "before", "after"), rows),
        "sections": list(_calibration_sections(before, after)),
        "facts": _calibration_facts(report),
        "notes": report["notes"],
    }


_LEVELS: Final = (50, 80, 90, 95)


def _calibration_findings(before: Wire, after: Wire) -> Iterator[str]:
    name = "coverage_90"
    if name in before["metrics"] and name in after["metrics"]:
        shares = [100 * side["metrics"][name]["value"] for side in (before, after)]
        yield (
            f"90 % intervals hold the age for {shares[0]:.1f} % of the faces before, and for "
            f"{shares[1]:.1f} % after."
        )
    low, high = COVERAGE_BOUNDS
    for words, side in (("before", before), ("after", after)):
        outside = [
            f"{group_words(column, group)} ({100 * found['value']:.0f} %)"
            for column, groups in side["groups"].items()
            for group in groups
            if (found := group["metrics"].get(name)) is not None
            and found["count"] >= ENOUGH
            and not low <= found["value"] <= high
        ]
        if outside:
            yield f"Outside of 85 to 95 % {words}: {listed(outside)}."
        else:
            yield f"No group of {ENOUGH} faces or more is outside of 85 to 95 % {words}."


def _calibration_charts(before: Wire, after: Wire) -> list[Chart]:
    series = {}
    for words, side in (("before", before), ("after", after)):
        pairs = [
            (level / 100, reading("", side["metrics"][f"coverage_{level}"]))
            for level in _LEVELS
            if f"coverage_{level}" in side["metrics"]
        ]
        if pairs:
            series[words] = pairs
    if not series:
        return []
    return [
        Chart(
            "Intervals",
            "Share of intervals that hold the label, against the level they state.",
            plots.interval_levels(series),
        )
    ]


def _calibration_sections(before: Wire, after: Wire) -> Iterator[Section]:
    for column, groups in before["groups"].items():
        later = {group["value"]: group for group in after["groups"].get(column, ())}
        pairs = [(one, later[one["value"]]) for one in groups if one["value"] in later]
        charts, rows = [], []
        for name, within in (("coverage_90", COVERAGE_BOUNDS), ("gender_brier", None)):
            held = [
                tuple(
                    reading(group_name(column, side["value"]), side["metrics"][name])
                    for side in pair
                )
                for pair in pairs
                if all(name in side["metrics"] for side in pair)
            ]
            if held:
                charts.append(_paired(column, name, [(a, b) for a, b in held], within))
        for one, two in pairs:
            cells = [
                estimate_text(side["metrics"].get(name), find_metric(name).text)
                for name in ("coverage_90", "interval_width_90", "gender_labelled_accuracy")
                for side in (one, two)
            ]
            rows.append([group_name(column, one["value"]), f"{one['count']:,}", *cells])
        head = [column, "faces"]
        for words in ("90 % holds, %", "width, years", "gender right when said, %"):
            head += [f"{words}, before", "after"]
        yield Section(f"By {column}", charts=charts, tables=[Table(head, rows)])


def _paired(
    column: str,
    name: str,
    pairs: Sequence[tuple[Reading, Reading]],
    within: tuple[float, float] | None,
) -> Chart:
    metric = find_metric(name)
    share = metric.unit == "share"
    caption = "The band is 85 to 95 %." if within else "Lower is better."
    return Chart(
        f"{metric.title} by {column}",
        caption,
        plots.paired_dots(
            pairs,
            axis=with_unit(metric.title, metric.shown_unit),
            name=slug(f"{name}-{column}"),
            title=f"{metric.title} by {column}, before and after",
            reference=metric.nominal,
            within=within,
            percent=share,
        ),
    )


def _calibration_facts(report: Wire) -> list[tuple[str, str]]:
    fields, settings, provenance = report["fields"], report["settings"], report["provenance"]
    zero, a_year = fields["age_smoothing"]
    return [
        (
            "ages",
            f"temperature {fields['age_temperature']:g}, smoothing {zero:g} + {a_year:g} a year",
        ),
        ("intervals", f"{len(fields['coverage'])} conformal tables by predicted age"),
        (
            "gender",
            f"temperature {fields['gender_temperature']:g}, bias {fields['gender_bias']:+g}, "
            f"a label from {fields['gender_threshold']:g} on",
        ),
        ("fitted by", settings["criterion"].upper()),
        ("groups looked after", settings["by"] or "none"),
        ("model", f"{provenance['model']}, weights SHA-256 {provenance['model_sha256']}"),
        *(
            (f"data {file['name']}", f"{file['rows']:,} faces, SHA-256 {file['sha256']}")
            for file in provenance["data"]
        ),
    ]
