"""
A stored evaluation as one page: HTML that stands alone, made of nothing but the stored figures.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from agelens.data.schema import write_text
from agelens.errors import DataError
from agelens.evaluation import plots
from agelens.evaluation.audit_page import write_audit_html as write_audit_html
from agelens.evaluation.calibration_page import write_calibration_html as write_calibration_html
from agelens.evaluation.evaluating import SCHEMA as EVALUATION_SCHEMA
from agelens.evaluation.metrics import METRICS, find_metric
from agelens.evaluation.pages import (
    COVERAGE_BOUNDS,
    ENOUGH,
    Chart,
    Section,
    Table,
    Wire,
    check_schema,
    ends,
    group_name,
    group_table,
    group_words,
    listed,
    readings,
    render,
    slug,
    with_unit,
)
from agelens.evaluation.plots import Bin, Reading
from agelens.evaluation.tables import BLANK, estimate_text, p_value_text

_CARDS: Final = (
    "age_mae",
    "age_bias",
    "age_cs5",
    "range_distance",
    "nine_ranges_exact",
    "gender_accuracy",
    "gender_labelled",
    "coverage_90",
    "answered_rate",
)
_BAND_COLUMNS: Final = (
    "age_mae",
    "age_median_error",
    "age_bias",
    "age_cs5",
    "range_distance",
    "nine_ranges_exact",
    "coverage_90",
    "interval_width_90",
    "gender_accuracy",
)
_GROUP_COLUMNS: Final = (
    "age_mae",
    "age_bias",
    "range_distance",
    "nine_ranges_exact",
    "coverage_90",
    "gender_accuracy",
    "gender_labelled",
    "answered_rate",
)


def write_evaluation_html(
    result: Wire, path: Path, *, faces: Mapping[str, str] | None = None
) -> None:
    """Write a stored evaluation as one HTML file without any outside reference.

    Args:
        result: ``EvaluationResult.to_dict()``, or what its JSON file holds.
        path: File to write; it appears when it is complete, or not at all.
        faces: Thumbnails of worst cases by name, as data URIs. A page with them is personal data
            like the pictures themselves.

    Raises:
        DataError: It is no stored evaluation, or an old one that lacks a part.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    check_schema(result, EVALUATION_SCHEMA, "evaluation")
    try:
        context = _evaluation(result, faces or {})
    except KeyError as error:
        raise DataError(f"this evaluation has no {error}; evaluate the model again") from error
    write_text(path, render("evaluation.html.j2", context))


# --- the page of an evaluation --------------------------------------------------------------------


def _evaluation(result: Wire, faces: Mapping[str, str]) -> dict[str, Any]:
    provenance = result["provenance"]
    return {
        "title": f"Evaluation of {provenance['model']}",
        "model": provenance["model"],
        "data": _data_words(result),
        "made": f"{result['created'][:10]}, AgeLens {result['agelens']}.",
        "interval_words": interval_words(result),
        "cards": _cards(result),
        "findings": list(findings(result)),
        "comparison": _comparison(result),
        "sections": [
            section
            for section in (
                _age_section(result),
                _certainty_section(result),
                _threshold_section(result),
                _gender_section(result),
                *_group_sections(result),
            )
            if section.charts or section.tables
        ],
        "worst_cases": _worst_cases(result, faces),
        "figures": _all_figures(result),
        "facts": _facts(result),
        "notes": [*result["notes"], *_unreadable(result)],
    }


def evaluation_command(result: Wire) -> str:
    """The command that makes this stored evaluation, with names instead of paths."""
    provenance, options = result["provenance"], result["provenance"]["options"]
    words = ["agelens", "evaluate", provenance["model"]]
    words += [file["name"] for file in provenance["data"]]
    if result.get("comparison"):
        words += ["--compare", result["comparison"]["other"]["model"]]
    words += ["--flip"] if options.get("flip") else []
    words += [] if options.get("crops", True) else ["--no-crops"]
    if options.get("detector", "default") != "default":
        words += ["--detector", options["detector"]]
    settings = result["settings"]
    words += ["--samples", str(settings["samples"])] if settings["samples"] != 1000 else []
    words += ["--seed", str(settings["seed"])] if settings["seed"] else []
    return shlex.join([*words, "--out", "OUT"])


def interval_words(result: Wire) -> str:
    """How the intervals of a stored result were made."""
    settings, counts = result["settings"], result["faces"]
    return (
        f"{100 * settings['level']:g} % intervals by a cluster bootstrap of "
        f"{settings['samples']:,} draws over {counts['clusters']:,} clusters (faces of one subject "
        "and copies of one picture stand together)."
    )


def _data_words(result: Wire) -> str:
    files = ", ".join(file["name"] for file in result["provenance"]["data"])
    return f"{result['faces']['rows']:,} labelled faces of {files}"


def _cards(result: Wire) -> list[dict[str, str]]:
    shown = []
    for name in _CARDS:
        found = result["metrics"].get(name)
        # On exact labels this is the MAE once more.
        if found is None or (name == "range_distance" and "age_mae" in result["metrics"]):
            continue
        metric = find_metric(name)
        note = estimate_text(found, metric.text).partition(" ")[2]
        value = metric.text(found["value"])
        shown.append(
            {"title": metric.title, "value": value, "unit": metric.shown_unit, "note": note}
        )
    return shown


def findings(result: Wire) -> Iterator[str]:
    """What a reader should not miss, in sentences, from the stored figures alone."""
    groups = result["groups"]
    for direction, word in ((1, "old"), (-1, "young")):
        biased = [
            f"{group_name('age', group['value'])} by {abs(bias['value']):.1f} years"
            for group in groups.get("age", ())
            if (bias := group["metrics"].get("age_bias")) is not None
            and bias["low"] is not None
            and min(direction * bias["low"], direction * bias["high"]) > 0
            and abs(bias["value"]) >= 2
        ]
        if biased:
            yield f"These true ages come out too {word}: {'; '.join(biased)}."
    for column, found in groups.items():
        held = [
            (group, group["metrics"]["coverage_90"])
            for group in found
            if group["metrics"].get("coverage_90", {"count": 0})["count"] >= ENOUGH
        ]
        low, high = COVERAGE_BOUNDS
        for wrong, words in (
            ([pair for pair in held if pair[1]["value"] < low], "less often than they state"),
            ([pair for pair in held if pair[1]["value"] > high], "more often than they state"),
        ):
            named = [
                f"{group_words(column, g)} ({100 * share['value']:.0f} %)" for g, share in wrong
            ]
            if named:
                yield f"90 % intervals hold the age {words} for {listed(named)}."
    for column, found in groups.items():
        if column != "age":
            yield from _widest_gap(column, found, "gender_accuracy", "Gender is right for")
            yield from _widest_gap(column, found, "age_mae", "The mean error is")
    unanswered = 1 - result["faces"]["answered"] / max(1, result["faces"]["rows"])
    if unanswered >= 0.02:
        yield f"The analyzer abstains on {100 * unanswered:.0f} % of the faces."


def _widest_gap(column: str, groups: Sequence[Wire], name: str, words: str) -> Iterator[str]:
    """The best and the worst group, where their intervals do not meet."""
    held = [
        (group, group["metrics"][name])
        for group in groups
        if name in group["metrics"] and group["metrics"][name]["count"] >= ENOUGH
    ]
    held = [(group, found) for group, found in held if found["low"] is not None]
    if len(held) < 2:
        return
    least = min(held, key=lambda pair: pair[1]["value"])
    most = max(held, key=lambda pair: pair[1]["value"])
    if least[1]["high"] >= most[1]["low"]:
        return
    metric = find_metric(name)
    ends = [
        f"{metric.text(found['value'])} {metric.shown_unit} of {group_words(column, group)}"
        if metric.unit == "share"
        else f"{metric.text(found['value'])} years for {group_words(column, group)}"
        for group, found in (least, most)
    ]
    yield f"{words} {ends[0]} and {ends[1]}."


# --- sections -------------------------------------------------------------------------------------


def _age_section(result: Wire) -> Section:
    bands = result["groups"].get("age", ())
    charts = []
    if any("age_mae" in band["metrics"] for band in bands):
        charts.append(
            Chart(
                "Error by age",
                "Lower is better for the error; the bias should be near 0.",
                plots.error_by_age(
                    readings("age", bands, "age_mae"), readings("age", bands, "age_bias")
                ),
            )
        )
    if result["scatter"]:
        charts.append(
            Chart(
                "Predicted against true age",
                "Exact labels only; the stronger the colour, the more. Best on the dashed line.",
                plots.predicted_against_true(
                    result["scatter"]["counts"],
                    result["scatter"]["true_edges"],
                    result["scatter"]["predicted_edges"],
                ),
            )
        )
    if "nine_ranges" in result["confusion"]:
        found = result["confusion"]["nine_ranges"]
        charts.append(
            Chart(
                "Nine ranges",
                "Which range the rounded age falls in, by that of the label.",
                plots.confusion(
                    found["counts"], [group_name("age", label) for label in found["labels"]]
                ),
            )
        )
    tables = [group_table("age", bands, _BAND_COLUMNS, "By true age")] if bands else []
    return Section("Age", charts=charts, tables=tables)


def _certainty_section(result: Wire) -> Section:
    reliability = result["reliability"]
    charts = []
    if "intervals" in reliability:
        charts.append(
            Chart(
                "Intervals",
                "Share of intervals that hold the label, against the level they state.",
                plots.interval_levels({"all faces": _levels(reliability["intervals"])}),
            )
        )
    if "age" in reliability:
        bins = [Bin(one["level"], one["share"], *ends(one)) for one in reliability["age"]]
        charts.append(
            Chart(
                "Quantiles",
                "Share of labels under each quantile of the predicted distribution. A curve that "
                "is flat at both ends: the distributions are wider than they need to be.",
                plots.reliability(
                    {"all faces": bins},
                    predicted="quantile of the predicted distribution",
                    observed="share of labels under it",
                    name="quantiles",
                ),
            )
        )
    charts += _coverage_charts(result)
    charts += [_risk_chart(result, curve) for curve in result["risk_coverage"]]
    return Section(
        "Certainty",
        "Intervals are calibrated on other faces than these; here it shows whether they hold.",
        charts,
    )


def _coverage_charts(result: Wire) -> Iterator[Chart]:
    for column, groups in result["groups"].items():
        rows = readings(column, groups, "coverage_90")
        if rows:
            yield Chart(
                f"Coverage by {column}",
                "Share of 90 % intervals that hold the label; the band is 85 to 95 %.",
                plots.dots(
                    rows,
                    axis="90 % intervals that hold the label, per cent",
                    name=f"coverage-{slug(column)}",
                    title=f"Coverage of 90 % intervals by {column}",
                    reference=0.9,
                    within=COVERAGE_BOUNDS,
                    percent=True,
                ),
            )


_RISKS: Final = {
    ("age", "spread"): "the narrowest distributions first",
    ("age", "quality"): "the best pictures first",
    ("gender", "confidence"): "the surest first",
    ("gender", "quality"): "the best pictures first",
}


def _risk_chart(result: Wire, curve: Wire) -> Chart:
    target, order = curve["target"], curve["order"]
    factor, unit = (1, "years outside the label") if target == "age" else (100, "per cent wrong")
    values, lows, highs = (
        [math.nan if value is None else factor * value for value in curve[name]]
        for name in ("error", "low", "high")
    )
    points = [Reading("", *ends) for ends in zip(values, lows, highs, strict=True)]
    return Chart(
        f"{target.capitalize()} error when some are left out",
        f"Faces answered, {_RISKS[target, order]}; a curve that rises means that the order helps.",
        plots.risk_coverage(
            curve["share"],
            points,
            axis=unit,
            order=_RISKS[target, order],
            name=f"risk-{target}-{order}",
        ),
    )


def _threshold_section(result: Wire) -> Section:
    charts, rows = [], []
    for age in (18, 21):
        if f"over{age}" in result["reliability"]:
            charts.append(
                Chart(
                    f"{age} or over",
                    "Share that is, against the probability given; on the diagonal it means what "
                    "it says.",
                    plots.reliability(
                        {"all faces": _bins(result["reliability"][f"over{age}"])},
                        predicted=f"predicted P({age} or over)",
                        observed=f"share that is {age} or over",
                        name=f"over{age}",
                    ),
                )
            )
        for name in (f"over{age}_auc", f"over{age}_brier"):
            if name in result["metrics"]:
                rows.append([find_metric(name).title, *_figure_cells(result, name)])
    tables = [Table(_FIGURE_HEAD, rows, title="Thresholds")] if rows else []
    words = (
        "For orientation. Whether a model may decide about an age is a question for "
        "agelens audit, which looks at minors who pass and adults who are refused."
    )
    return Section("Over an age", words, charts, tables)


def _gender_section(result: Wire) -> Section:
    charts, tables = [], []
    if "female" in result["reliability"]:
        charts.append(
            Chart(
                "P(female)",
                "Share labelled female, against the probability given.",
                plots.reliability(
                    {"all faces": _bins(result["reliability"]["female"])},
                    predicted="predicted P(female)",
                    observed="share labelled female",
                    name="female",
                ),
            )
        )
    if "gender" in result["confusion"]:
        found = result["confusion"]["gender"]
        rows = []
        for label, counts in zip(found["labels"], found["counts"], strict=True):
            total = max(1, sum(counts))
            rows.append([label, *(f"{n:,} ({100 * n / total:.1f} %)" for n in counts)])
        head = ["labelled", *(f"said {word}" for word in found["said"])]
        tables.append(Table(head, rows, title="What was said, by label"))
    return Section("Gender presentation", charts=charts, tables=tables)


def _group_sections(result: Wire) -> Iterator[Section]:
    for column, groups in result["groups"].items():
        if column == "age":
            continue
        charts = []
        for name in ("age_mae", "range_distance", "age_bias", "gender_accuracy"):
            rows = readings(column, groups, name)
            if not rows or (name == "range_distance" and "age_mae" in result["metrics"]):
                continue
            metric, overall = find_metric(name), result["metrics"].get(name)
            charts.append(
                Chart(
                    f"{metric.title} by {column}",
                    "Dashed: all faces.",
                    plots.dots(
                        rows,
                        axis=f"{metric.title}, {metric.shown_unit}",
                        name=f"{name}-{slug(column)}".replace("_", "-"),
                        title=f"{metric.title} by {column}",
                        reference=None if overall is None else overall["value"],
                        percent=metric.unit == "share",
                    ),
                )
            )
        table = group_table(column, groups, _GROUP_COLUMNS, "Figures")
        title = _GROUP_TITLES.get(column, f"Groups by {column}")
        yield Section(title, _GROUP_WORDS, charts, [table])


_GROUP_WORDS: Final = (
    "Groups also differ in age and in the quality of their pictures, and so does their error; "
    "agelens audit looks at intersections and asks whether a gap is more than noise."
)
_GROUP_TITLES: Final = {
    "gender": "Groups by labelled gender",
    "dataset": "Groups by data set",
}


def _comparison(result: Wire) -> dict[str, Any] | None:
    held = result["comparison"]
    if not held:
        return None
    one, other = result["provenance"]["model"], held["other"]["model"]
    rows = []
    for name, found in held["figures"].items():
        metric = find_metric(name)
        verdict = found["verdict"]
        rows.append(
            [
                with_unit(metric.title, metric.shown_unit),
                {"better": one, "worse": other}.get(verdict, BLANK),
                metric.text(found["one"]["value"]),
                metric.text(found["other"]["value"]),
                estimate_text(found["difference"], partial(metric.text, signed=True)),
                p_value_text(found["p_value"]),
            ]
        )
    won = sum(row[1] == one for row in rows)
    lost = sum(row[1] == other for row in rows)
    words = (
        f"Of {len(rows)} figures {one} is better in {won} and {other} in {lost}; the others do not "
        "differ beyond noise. Paired bootstrap on the faces that both have an estimate for; of "
        "many figures some will differ by chance."
    )
    head = ["", "better", one, other, "difference", "p"]
    return {"other": other, "words": words, "table": Table(head, rows, left=2)}


def _worst_cases(result: Wire, faces: Mapping[str, str]) -> list[dict[str, Any]]:
    shown = []
    ages = [
        [
            case["name"],
            _label_words(case["label"]),
            f"{case['estimate']:.1f}",
            f"{case['interval'][0]}–{case['interval'][1]}",
            f"{case['error']:.1f}",
            "yes" if case["answered"] else "abstains",
        ]
        for case in result["worst"]["age"]
    ]
    genders = [
        [
            case["name"],
            case["label"],
            f"{case['female_probability']:.3f}",
            "yes" if case["answered"] else "abstains",
        ]
        for case in result["worst"]["gender"]
    ]
    heads = {
        "Farthest from the labelled age": (
            ["row", "label", "estimate", "90 % interval", "years off", "answered"],
            ages,
        ),
        "Surest of the wrong gender": (["row", "label", "P(female)", "answered"], genders),
    }
    for title, (head, rows) in heads.items():
        if rows:
            pictures = [
                {
                    "name": row[0],
                    "uri": faces[row[0]],
                    "words": f"label {row[1]}, estimate {row[2]}",
                }
                for row in rows
                if row[0] in faces
            ]
            shown.append({"title": title, "faces": pictures, "table": Table(head, rows, left=2)})
    return shown


def _label_words(label: Sequence[int]) -> str:
    low, high = label
    return f"{low}" if low == high else f"{low}–{high}"


_FIGURE_HEAD: Final = ("", "all faces", "faces", "answered")


def _all_figures(result: Wire) -> Table:
    held = [name for name in METRICS if name in result["metrics"]]
    held += [name for name in result["metrics"] if name not in METRICS]
    rows = [
        [with_unit(find_metric(n).title, find_metric(n).shown_unit), *_figure_cells(result, n)]
        for n in held
    ]
    for stage, spent in result["provenance"]["milliseconds"].items():
        words = {"network": "the network alone", "total": "the whole chain"}.get(stage, stage)
        rows.append([f"CPU time a face, {words}, ms", f"{spent:.2f}", BLANK, BLANK])
    return Table(_FIGURE_HEAD, rows)


def _figure_cells(result: Wire, name: str) -> list[str]:
    metric = find_metric(name)
    found = result["metrics"][name]
    return [
        estimate_text(found, metric.text),
        f"{found['count']:,}",
        estimate_text(result["answered"].get(name), metric.text),
    ]


def _facts(result: Wire) -> list[tuple[str, str]]:
    provenance, counts = result["provenance"], result["faces"]
    files = [
        (f"data {file['name']}", f"{file['rows']:,} faces, SHA-256 {file['sha256']}")
        for file in provenance["data"]
    ]
    options = ", ".join(f"{name} {value}" for name, value in provenance["options"].items())
    return [
        ("command", evaluation_command(result)),
        ("model", f"{provenance['model']}, weights SHA-256 {provenance['model_sha256']}"),
        ("card", f"SHA-256 {provenance['card_sha256']}"),
        *files,
        ("options", options),
        (
            "faces",
            f"{counts['rows']:,}: {counts['estimated']:,} with an estimate, "
            f"{counts['answered']:,} answered, {counts['unreadable']:,} unreadable",
        ),
        (
            "labels",
            f"{counts['exact_age']:,} exact ages, {counts['range_age']:,} ranges, "
            f"{counts['gender']:,} genders",
        ),
        ("intervals", interval_words(result)),
    ]


def _unreadable(result: Wire) -> Iterator[str]:
    for name, message in list(result["unreadable"].items())[:20]:
        yield f"{name}: {message}"


def _levels(found: Sequence[Wire]) -> list[tuple[float, Reading]]:
    return [(one["level"], Reading("", one["share"], *ends(one))) for one in found]


def _bins(found: Sequence[Wire]) -> list[Bin]:
    return [Bin(one["predicted"], one["observed"], *ends(one), one["count"]) for one in found]
