"""
A stored audit as one page, for who has to answer for a model: the verdict first, in plain words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agelens.data.schema import write_text
from agelens.errors import DataError
from agelens.evaluation import plots
from agelens.evaluation.metrics import find_metric
from agelens.evaluation.pages import (
    COVERAGE_BOUNDS,
    Chart,
    Section,
    Table,
    Wire,
    check_schema,
    group_name,
    reading,
    render,
    slug,
    with_unit,
)
from agelens.evaluation.plots import Reading
from agelens.evaluation.signing import AUDIT_SCHEMA
from agelens.evaluation.tables import BLANK, estimate_text, p_value_text, per_cent

_SHOWN: Final = 8
_MOST_ROWS: Final = 30
_CHARTED: Final = ("age_mae", "age_bias", "range_distance", "gender_accuracy", "coverage_90")
_COMPARED: Final = (*_CHARTED, "answered_rate")
_GROUP_WORDS: Final = (
    "Dashed: all faces. Diamonds and bold type: fails the policy. Intervals of 95 %."
)


def write_audit_html(signed: Wire, path: Path, *, before: Wire | None = None) -> None:
    """Write a stored audit as one HTML file without any outside reference.

    Args:
        signed: The signed audit, as its JSON file holds it.
        path: File to write; it appears when it is complete, or not at all.
        before: An earlier audit to compare with, as of the model before a mitigation.

    Raises:
        DataError: It is no stored audit, or an old one that lacks a part.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    for one in (signed, before):
        if one is not None:
            check_schema(one, AUDIT_SCHEMA, "audit")
    try:
        context = _context(signed, before)
    except KeyError as error:
        raise DataError(f"this audit has no {error}; audit the model again") from error
    write_text(path, render("audit.html.j2", context))


def _context(signed: Wire, before: Wire | None) -> dict[str, Any]:
    files = ", ".join(f"{file['name']} ({file['rows']:,} faces)" for file in signed["data"])
    verdict = signed["verdict"]
    failing = [_failing(one) for one in signed["judgements"] if one["failures"]]
    unjudged = [one for one in signed["judgements"] if one["outcome"] == "unjudged"]
    return {
        "title": f"Audit of {signed['model']['name']}",
        "model": signed["model"]["name"],
        "policy": signed["policy"]["name"],
        "summary": signed["policy"]["summary"],
        "data": files,
        "made": f"Made {signed['created'][:10]}, holds until {signed['expires'][:10]}.",
        "verdict": verdict,
        "verdict_title": "The model passes." if verdict == "passed" else "The model fails.",
        "verdict_words": list(verdict_words(signed)),
        "failing": failing,
        "unjudged": unjudged,
        "unjudged_words": _unjudged_words(signed, unjudged),
        "comparison": None if before is None else _comparison(before, signed),
        "requirements": _requirements(signed),
        "min_cell": signed["settings"]["min_cell"],
        "sections": [
            section
            for section in (
                *_group_sections(signed),
                _gate_section(signed),
                _stress_section(signed),
            )
            if section.charts or section.tables
        ],
        "samples": f"{signed['settings']['samples']:,}",
        "tests_words": f"{signed['tests']['method']} {signed['tests']['count']:,} tests.",
        "notes": signed["notes"],
        "facts": _facts(signed),
        "policy_text": signed["policy"]["text"],
    }


def verdict_words(signed: Wire) -> Iterator[str]:
    """The verdict in sentences: how much of the policy fails, and for whom."""
    judgements = signed["judgements"]
    failed = [one for one in judgements if one["failures"]]
    unjudged = [one for one in judgements if one["outcome"] == "unjudged"]
    if failed:
        cells = list(dict.fromkeys(f["cell"] for one in failed for f in one["failures"]))
        yield (
            f"{len(failed)} of {len(judgements)} requirements are not met, in "
            f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}: {'; '.join(cells[:_SHOWN])}"
            f"{f'; and {len(cells) - _SHOWN} more' if len(cells) > _SHOWN else ''}."
        )
    elif signed["verdict"] == "passed":
        yield f"All {len(judgements) - len(unjudged)} requirements that could be judged are met."
    if unjudged:
        one = len(unjudged) == 1
        yield (
            f"{len(unjudged)} {'requirement' if one else 'requirements'} could not be judged on "
            f"these data{', which counts as failing' if not _is_note(signed, unjudged) else ''}."
        )


def _is_note(signed: Wire, unjudged: Sequence[Wire]) -> bool:
    """Whether what cannot be judged is left as a note: then no sentence of failure names it."""
    named = [f"Not judged: {one['text']}" for one in unjudged]
    return not any(said.startswith(words) for said in signed["sentences"] for words in named)


def _unjudged_words(signed: Wire, unjudged: Sequence[Wire]) -> str:
    if _is_note(signed, unjudged):
        return "The policy leaves these as notes."
    return "The policy counts what is not shown as failing: audit on data that can show it."


def _failing(judgement: Wire) -> dict[str, Any]:
    lines = [_capital(failure["sentence"]) for failure in judgement["failures"]]
    return {
        "text": _capital(judgement["text"]),
        "why": judgement["why"],
        "shown": lines[:_SHOWN],
        "rest": lines[_SHOWN:],
    }


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _requirements(signed: Wire) -> Table:
    rows = [
        [
            _capital(one["text"]),
            one["outcome"],
            f"{one['judged']:,}",
            f"{len(one['failures']):,}",
            f"{one['too_few']:,}",
        ]
        for one in signed["judgements"]
    ]
    marked = [n for n, one in enumerate(signed["judgements"]) if one["outcome"] == "failed"]
    head = ("requirement", "outcome", "cells judged", "failing", "too few faces")
    return Table(head, rows, left=2, marked=frozenset(marked), wide=True)


# --- groups ---------------------------------------------------------------------------------------


def _group_sections(signed: Wire) -> Iterator[Section]:
    failing = {(one["cell"], one["metric"]) for one in signed["failures"]}
    for column in signed["columns"]:
        cells = [cell for cell in signed["cells"] if cell["by"] == [column]]
        charts = list(_cell_charts(signed, column, cells, failing))
        tables = [_cell_table(signed, column, cells, failing), gap_table(signed, [column])]
        yield Section(f"By {column}", _GROUP_WORDS, charts, [t for t in tables if t.rows])
    pairs = [cell for cell in signed["cells"] if len(cell["by"]) == 2]
    table = _intersections(signed, pairs, failing)
    if table.rows:
        words = (
            "Two columns together, where a cell fails or differs from all faces by more than "
            f"noise; {_MOST_ROWS} at most are shown, the JSON file has all {len(pairs):,} cells."
        )
        yield Section("Intersections", words, tables=[table])


def _cell_charts(
    signed: Wire, column: str, cells: Sequence[Wire], failing: set[tuple[str, str]]
) -> Iterator[Chart]:
    for name in (name for name in _told(signed) if name in _CHARTED):
        metric, overall = find_metric(name), signed["overall"].get(name)
        rows = [
            reading(
                group_name(column, cell["values"][0]),
                cell["metrics"][name],
                marked=(cell["name"], name) in failing,
            )
            for cell in cells
            if name in cell["metrics"]
        ]
        if not rows:
            continue
        yield Chart(
            metric.title,
            f"By {column}.",
            plots.dots(
                rows,
                axis=with_unit(metric.title, metric.shown_unit),
                name=slug(f"{name}-{column}"),
                title=f"{metric.title} by {column}",
                reference=None if overall is None else overall["value"],
                within=COVERAGE_BOUNDS if name == "coverage_90" else None,
                percent=metric.unit == "share",
            ),
        )


def _cell_table(
    signed: Wire, column: str, cells: Sequence[Wire], failing: set[tuple[str, str]]
) -> Table:
    names = [n for n in _told(signed) if any(n in cell["metrics"] for cell in cells)]
    metrics = [find_metric(name) for name in names]
    rows = []
    for cell in cells:
        figures = [_cell_text(cell, metric.name) for metric in metrics]
        rows.append([group_name(column, cell["values"][0]), f"{cell['count']:,}", *figures])
    marked = frozenset(
        (row, 2 + place)
        for row, cell in enumerate(cells)
        for place, name in enumerate(names)
        if (cell["name"], name) in failing
    )
    head = [column, "faces", *(with_unit(m.title, m.shown_unit) for m in metrics)]
    caption = "A star: differs from all faces by more than noise, all tests corrected."
    return Table(head, rows, title="Cells", caption=caption, marked_cells=marked)


def _cell_text(cell: Wire, name: str) -> str:
    found = cell["metrics"].get(name)
    if found is None:
        return "too few" if name in cell["too_few"] else BLANK
    star = " *" if found["significant"] else ""
    return estimate_text(found, find_metric(name).text) + star


def gap_table(signed: Wire, by: Sequence[str]) -> Table:
    """How far the groups of a column are apart in each figure, and whether it is more than noise.

    Args:
        signed: A stored audit.
        by: The column, or two of them.
    """
    rows = []
    for gap in signed["gaps"]:
        if gap["by"] != list(by) or gap["metric"] not in _told(signed):
            continue
        metric = find_metric(gap["metric"])
        rows.append(
            [
                metric.title,
                f"{gap['worst_name']}: {metric.text(gap['worst_value'])}",
                f"{gap['best_name']}: {metric.text(gap['best_value'])}",
                estimate_text(gap["gap"], _apart(metric.unit)),
                estimate_text(gap["standardised_gap"], _apart(metric.unit)),
                "yes" if gap["significant"] else "no",
                p_value_text(gap["adjusted_p_value"]),
            ]
        )
    head = ("figure", "worst", "best", "apart", "at equal ages", "more than noise", "p")
    return Table(head, rows, title="How far the groups are apart", left=3, wide=True)


def _told(signed: Wire) -> tuple[str, ...]:
    """Figures that groups are compared by; on exact labels years outside the label are the MAE."""
    exact = "age_mae" in signed["overall"]
    return tuple(n for n in _COMPARED if not (exact and n == "range_distance"))


def _apart(unit: str) -> Any:
    return per_cent if unit == "share" else lambda value: f"{value:.2f}"


def _intersections(signed: Wire, cells: Sequence[Wire], failing: set[tuple[str, str]]) -> Table:
    held, told = [], _told(signed)
    for cell in cells:
        for name, found in cell["metrics"].items():
            fails = (cell["name"], name) in failing
            if name in told and (fails or found["significant"]):
                metric = find_metric(name)
                p = found["adjusted_p_value"]
                row = [
                    cell["name"],
                    metric.title,
                    estimate_text(found, metric.text),
                    metric.text(found["difference"], signed=True),
                    f"{found['count']:,}",
                    p_value_text(p),
                ]
                held.append((not fails, 1.0 if p is None else p, row))
    held.sort(key=lambda one: one[:2])
    shown = held[:_MOST_ROWS]
    marked = [n for n, one in enumerate(shown) if not one[0]]
    head = ("cell", "figure", "value", "difference from all", "faces", "p")
    return Table(head, [row for *_, row in shown], left=2, marked=frozenset(marked), wide=True)


# --- the age check and changed pictures -----------------------------------------------------------

_KINDS: Final = {
    "false_acceptance": "too young, and let in",
    "false_refusal": "old enough, and turned away",
}


def _gate_section(signed: Wire) -> Section:
    errors = signed["gate"]["errors"]
    charts = []
    for rule, about in signed["gate"]["rules"].items():
        for kind, words in _KINDS.items():
            years = [
                _rate(str(one["ages"][0]), one)
                for one in errors
                if (one["rule"], one["kind"], one["column"]) == (rule, kind, "all")
                and one["ages"][0] == one["ages"][1]
            ]
            if years:
                charts.append(
                    Chart(
                        _capital(about["title"]),
                        f"Faces that are {words}, by true age.",
                        plots.dots(
                            years,
                            axis=f"{words}, per cent",
                            name=slug(f"gate-{rule}-{kind}"),
                            title=f"{about['title']}: {words}, by true age",
                            percent=True,
                        ),
                    )
                )
    words = (
        "What simple rules would get wrong at a door: per cent of faces, with exact intervals "
        "(Clopper and Pearson) and counts. Only exact ages count, and each subject once. All bands "
        "by group are in the JSON file."
    )
    tables = [_gate_table(signed, kind) for kind in _KINDS]
    return Section("Age checks", words, charts, [table for table in tables if table.rows])


def _gate_table(signed: Wire, kind: str) -> Table:
    """Age bands of all faces, then groups at the ages that matter most; a column a rule."""
    rules = signed["gate"]["rules"]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for one in signed["gate"]["errors"]:
        low, high = one["ages"]
        everybody = one["column"] == "all"
        legal = rules[one["rule"]]["legal_age"]
        if (
            one["kind"] != kind
            or low == high
            or not (everybody or (low, high) == (13, 17) or (low == legal and high >= _OLDEST))
        ):
            continue
        who = "all" if everybody else f"{one['column']} {one['value']}"
        found = {"value": one["rate"], "low": one["low"], "high": one["high"]}
        text = f"{estimate_text(found, per_cent)}, {one['wrong']:,} of {one['count']:,}"
        ages = f"{low}–{high}" if high < _OLDEST else f"{low}+"
        cells.setdefault((ages, who), {})[one["rule"]] = text
    ordered = sorted(cells.items(), key=lambda item: item[0][1] != "all")
    rows = [[*key, *(held.get(rule, BLANK) for rule in rules)] for key, held in ordered]
    head = ["true age", "who", *(_capital(about["title"]) for about in rules.values())]
    return Table(head, rows, title=_capital(_KINDS[kind]), left=2)


_OLDEST: Final = 100


def _rate(label: str, error: Wire) -> Reading:
    return Reading(label, error["rate"], error["low"], error["high"], error["count"])


def _stress_section(signed: Wire) -> Section:
    stress = signed["stress"]
    if stress is None:
        return Section("Changed pictures")
    failing = {(one["cell"], one["metric"]) for one in signed["failures"]}
    charts = []
    for name in ("age_mae", "range_distance", "gender_accuracy"):
        if name == "range_distance" and "age_mae" in signed["overall"]:
            continue
        metric = find_metric(name)
        rows = [
            reading(one["title"], one["all"][name]["worse"], marked=(one["name"], name) in failing)
            for one in stress["slices"]
            if name in one["all"]
        ]
        if rows:
            charts.append(
                Chart(
                    f"{metric.title}, how much worse",
                    "On all faces with an estimate; right of the line is worse.",
                    plots.dots(
                        rows,
                        axis=f"{metric.title}, worse by "
                        f"({'points' if metric.unit == 'share' else metric.unit})",
                        name=slug(f"stress-{name}"),
                        title=f"{metric.title} on changed pictures, how much worse",
                        reference=0.0,
                        percent=metric.unit == "share",
                    ),
                )
            )
    words = (
        f"The same {stress['faces']:,} faces with their pictures changed. “Answered” counts the "
        "faces that the analyzer still answers: abstaining on a bad picture is right."
    )
    return Section("Changed pictures", words, charts, [_stress_table(stress)])


def _stress_table(stress: Wire) -> Table:
    names = [
        name
        for name in ("age_mae", "range_distance", "age_bias", "gender_accuracy")
        if any(name in one["answers"] for one in stress["slices"])
    ]
    if "age_mae" in names and "range_distance" in names:
        names.remove("range_distance")
    rows = []
    for one in stress["slices"]:
        cells = [
            one["title"],
            f"{one['faces']:,}",
            per_cent(one["detected"] / max(1, one["faces"])),
        ]
        cells.append(per_cent(one["answered"] / max(1, one["faces"])))
        for name in names:
            change, metric = one["answers"].get(name), find_metric(name)
            cells.append(
                BLANK
                if change is None
                else f"{metric.text(change['before'])} → {metric.text(change['after'])}"
            )
        rows.append(cells)
    head = ["change", "faces", "found, %", "answered, %"]
    head += [
        f"{with_unit(find_metric(n).title, find_metric(n).shown_unit)}, of the answered"
        for n in names
    ]
    return Table(head, rows)


# --- before and after -----------------------------------------------------------------------------


def _comparison(before: Wire, after: Wire) -> dict[str, Any]:
    cells = [
        {(one["cell"], one["metric"], one["limit"]): one["sentence"] for one in audit["failures"]}
        for audit in (before, after)
    ]
    mended = [said for key, said in cells[0].items() if key not in cells[1]]
    fresh = [said for key, said in cells[1].items() if key not in cells[0]]
    words = (
        f"Before: {before['model']['name']}, {before['created'][:10]}, {before['verdict']}, "
        f"{len(cells[0])} failing cells. After: {after['model']['name']}, {after['created'][:10]}, "
        f"{after['verdict']}, {len(cells[1])} failing cells."
    )
    same = before["data_sha256"] == after["data_sha256"]
    if not same:
        words += " They were audited on different data, so differences are not of the model alone."
    if before["policy"]["sha256"] != after["policy"]["sha256"]:
        words += " They were judged by different policies."
    lines = [f"Failed before, and not now: {said}" for said in mended if same]
    lines += [f"Fails now, and not before: {said}" for said in fresh if same]
    return {
        "words": words,
        "lines": lines,
        "charts": list(_compared_charts(before, after)),
        "tables": [_compared_overall(before, after), _compared_gaps(before, after)],
    }


def _compared_charts(before: Wire, after: Wire) -> Iterator[Chart]:
    for column in after["columns"]:
        for name in ("age_mae", "age_bias", "gender_accuracy", "coverage_90"):
            sides = [
                {
                    cell["values"][0]: reading(
                        group_name(column, cell["values"][0]), cell["metrics"][name]
                    )
                    for cell in audit["cells"]
                    if cell["by"] == [column] and name in cell["metrics"]
                }
                for audit in (before, after)
            ]
            pairs = [
                (sides[0][value], found) for value, found in sides[1].items() if value in sides[0]
            ]
            if pairs:
                metric = find_metric(name)
                yield Chart(
                    f"{metric.title} by {column}",
                    "Before and after.",
                    plots.paired_dots(
                        pairs,
                        axis=with_unit(metric.title, metric.shown_unit),
                        name=slug(f"compared-{name}-{column}"),
                        title=f"{metric.title} by {column}, before and after",
                        within=COVERAGE_BOUNDS if name == "coverage_90" else None,
                        percent=metric.unit == "share",
                    ),
                )


def _compared_overall(before: Wire, after: Wire) -> Table:
    rows = []
    for name in _COMPARED:
        if name in before["overall"] and name in after["overall"]:
            metric = find_metric(name)
            texts = [estimate_text(one["overall"][name], metric.text) for one in (before, after)]
            rows.append([with_unit(metric.title, metric.shown_unit), *texts])
    return Table(("all faces", "before", "after"), rows, title="All faces")


def _compared_gaps(before: Wire, after: Wire) -> Table:
    earlier = {(gap["metric"], tuple(gap["by"])): gap for gap in before["gaps"]}
    rows = []
    for gap in after["gaps"]:
        was = earlier.get((gap["metric"], tuple(gap["by"])))
        if was is None or gap["metric"] not in _COMPARED or len(gap["by"]) > 1:
            continue
        metric = find_metric(gap["metric"])
        texts = [estimate_text(one["gap"], _apart(metric.unit)) for one in (was, gap)]
        unit = "points" if metric.unit == "share" else metric.shown_unit
        rows.append([with_unit(metric.title, unit), ", ".join(gap["by"]), *texts])
    head = ("gap between groups", "by", "before", "after")
    return Table(head, rows, title="Gaps between groups", left=2)


# --- the seal -------------------------------------------------------------------------------------


def _facts(signed: Wire) -> list[tuple[str, str]]:
    model, policy, counts = signed["model"], signed["policy"], signed["faces"]
    signature: Mapping[str, str] = signed.get("signature") or {}
    options = ", ".join(f"{name} {value}" for name, value in signed["options"].items())
    return [
        ("model", model["name"]),
        ("weights", f"SHA-256 {model['sha256']}"),
        ("card", f"SHA-256 {model['card_sha256']}"),
        *(
            (f"data {file['name']}", f"{file['rows']:,} faces, SHA-256 {file['sha256']}")
            for file in signed["data"]
        ),
        ("policy", f"{policy['name']}, SHA-256 {policy['sha256']}"),
        ("made", f"{signed['created']} by AgeLens {signed['agelens']}"),
        ("holds until", f"{signed['expires']} ({policy['validity_days']} days)"),
        ("signed by", signature.get("public_key", "nobody: this audit is not signed")),
        ("options", options),
        (
            "faces",
            f"{counts['rows']:,}: {counts['estimated']:,} with an estimate, "
            f"{counts['answered']:,} answered, {counts['unreadable']:,} unreadable",
        ),
    ]
