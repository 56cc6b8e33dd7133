"""
The gate's papers, all filled from one stored measurement: what a regulator, a visitor and the
operator read.

    gate-report.json         every figure (``measuring.GateReport``)
    gate-report.html         the figures as a page, in the manner of NIST's evaluation
    practice-statement.html  public: what the gate does and how often it errs, arranged after
                             ISO/IEC 27566-1
    notice.html              for the people in front of the camera, to be printed
    dpia.md                  data-protection impact assessment, begun (GDPR Art. 35)
    technical-file.md        technical documentation, begun (EU AI Act, Annex IV)

What only the operator can know is left as a blank that stands out. A promise that does not hold on
the faces of the report is told in all of them, the public ones too. None of it is legal advice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from agelens.bundle import ModelCard
from agelens.data.schema import write_text
from agelens.evaluation import plots
from agelens.evaluation.pages import Chart, Section, Table, check_schema, render
from agelens.evaluation.plots import Palette, Reading
from agelens.evaluation.signing import VerifiedAudit
from agelens.evaluation.tables import BLANK, estimate_text, markdown, per_cent, signed_years, years
from agelens.gate.fitting import left_out_words
from agelens.gate.measuring import (
    ALL,
    OLDEST,
    REPORT_SCHEMA,
    GateReport,
    known_to_the_model,
    whole_sides,
)
from agelens.gate.policy import (
    MOST_CHALLENGE_FRAMES,
    Admit,
    AuditPart,
    admitted_words,
    kept_out_words,
    reaches_the_age,
)

Wire = Mapping[str, Any]

_TEMPLATES: Final = Path(__file__).parent / "templates"
_WORDS: Final = {
    "below": "below the bound",
    "too_few": "too few to tell",
    "above": "over the bound, but no more than chance explains",
    "broken": "over the bound",
    "unknown": "no such faces",
}
_OPTIONAL: Final = ("model", "token", "journal", "refuse_below", "refuse_under_age")
"""Keys that a policy may lack and that the templates ask for."""
_FALLBACKS: Final = {
    "on_no_face": "No face",
    "on_unusable": "A face too poor for an estimate",
    "on_second_face": "More than one face",
    "on_failed_liveness": "A check against photographs and videos that is not passed",
}
"""What keeps the gate from deciding by age, by the policy's key for it."""
_FALLBACK_WORDS: Final = {
    "step_up": "another proof is asked for",
    "refuse": "the answer is no",
    "retry": "new pictures are asked for",
}
_LIVENESS_WORDS: Final = {
    "none": "None. A photograph or a screen held up to the camera is not told from a person.",
    "consistency": "Consistency of the frames. It stops a still photograph, not a played video.",
    "challenge": "Consistency of the frames, and a head turn in a random order. It stops a still "
    "photograph and most videos made before, not a live face swap or a good mask.",
}


@dataclass(frozen=True)
class Operator:
    """What the papers have to say of the operator; what is None stays a blank to be filled in.

    Attributes:
        name: Who answers for the gate.
        contact: Where to complain or ask.
        place: Where the gate stands: a shop, a site, a machine.
        other_way: The proof that is asked for when the gate does not accept.
        purpose: What the gate keeps to those it lets in, and by which law.
    """

    name: str | None = None
    contact: str | None = None
    place: str | None = None
    other_way: str | None = None
    purpose: str | None = None


def write_paperwork(
    report: GateReport | Wire,
    folder: Path,
    *,
    operator: Operator | None = None,
    audit: VerifiedAudit | None = None,
    problem: str | None = None,
    card: ModelCard | None = None,
) -> tuple[Path, ...]:
    """Write all papers of a measured gate.

    Args:
        report: The measurement, or its stored JSON.
        folder: For the six files; each appears when it is complete, or not at all.
        operator: What is known of the operator.
        audit: The verified audit of the model; None when there is none, or none that verifies.
        problem: Why the gate does not open on an audit; None when it does.
        card: Card of the model, for the technical file; None leaves its parts blank.

    Raises:
        DataError: It is no stored measurement of a gate.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    wire = report.to_dict() if isinstance(report, GateReport) else report
    check_schema(wire, REPORT_SCHEMA, "gate report")
    context = _context(wire, operator or Operator(), audit, problem, card)
    texts = {
        "gate-report.json": json.dumps(wire, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "gate-report.html": render(
            "gate_report.html.j2", {**context, **_page(wire)}, folder=_TEMPLATES
        ),
        **{
            name: render(f"{template}.j2", context, folder=_TEMPLATES)
            for name, template in (
                ("practice-statement.html", "practice_statement.html"),
                ("notice.html", "notice.html"),
                ("dpia.md", "dpia.md"),
                ("technical-file.md", "technical_file.md"),
            )
        },
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return tuple(folder / name for name in texts)


# --- words ----------------------------------------------------------------------------------------


def people(ages: Sequence[int], group: str = ALL) -> str:
    """A kind of people in words: "13 to 17, gender=female"; "60 and over"; "18"."""
    low, high = ages
    if low == 0 and high >= OLDEST:
        words = "all ages"
    elif high >= OLDEST:
        words = f"{low} and over"
    elif low == high:
        words = f"{low}"
    elif low == 0:
        words = f"under {high + 1}"
    else:
        words = f"{low} to {high}"
    return words if group == ALL else f"{words}, {group}"


def rule_words(policy: Wire) -> list[str]:
    """What the gate compares, and what it answers."""
    if policy["rule"] == "probability":
        accept, refuse = policy["threshold"], policy.get("refuse_below", 0.0)
        what = f"the estimated probability of being {_admitted(policy)}"
    else:
        accept, refuse = policy["challenge_age"], policy.get("refuse_under_age", 0.0)
        what = "the estimated age"
    lines = [f"Accepted when {what} is {accept:g} or more."]
    others = [words.lower() for key, words in _FALLBACKS.items() if policy.get(key) == "refuse"]
    if refuse:
        lines.append(f"Refused when it is under {refuse:g}.")
        lines.append("In between, another proof of age is asked for.")
    elif others:
        lines.append("Otherwise another proof of age is asked for.")
        lines.append(
            f"Nobody is refused for the estimate; the answer is no for: {', '.join(others)}."
        )
    else:
        lines.append("Otherwise another proof of age is asked for; nobody is refused outright.")
    return lines


def _refuses(policy: Wire) -> bool:
    """Whether anything makes the gate say no by itself."""
    limits = policy.get("refuse_below") or policy.get("refuse_under_age")
    return bool(limits) or any(policy.get(key) == "refuse" for key in _FALLBACKS)


def _frames(policy: Wire) -> str:
    """How many frames of one person are looked at."""
    least, most = policy["frames"]["min"], policy["frames"]["max"]
    if policy["liveness"] == "challenge":
        return (
            f"{least} to {MOST_CHALLENGE_FRAMES} frames, all of them for the head turn, and at "
            f"most {most} for the age"
        )
    return f"{least} to {most} frames" if most > 1 else "one frame"


def _admit(policy: Wire) -> Admit:
    return "under" if policy.get("admit") == "under" else "over"


def _admitted(policy: Wire) -> str:
    return admitted_words(policy["required_age"], _admit(policy))


def _kept_out(policy: Wire) -> str:
    return kept_out_words(policy["required_age"], _admit(policy))


def _whole_sides(policy: Wire) -> tuple[list[int], list[int]]:
    """Ages of all who are to be kept out, and of all who are to be let in."""
    out, let_in = whole_sides(policy["required_age"], _admit(policy))
    return list(out), list(let_in)


def _rate(found: Wire | None, *, with_interval: bool = True) -> str:
    """A stored rate as per cent with its interval."""
    return estimate_text(found, per_cent, interval=with_interval)


def _per_hundred(found: Wire) -> str:
    """A stored rate for a notice: "2 of 100", never a zero that was not shown."""
    if found["value"] is None:
        return "an unknown number"
    value = 100 * found["value"]
    if value < 0.5:
        return f"fewer than {max(1, math.ceil(100 * found['high']))} of 100"
    return f"{value:.0f} of 100"


def _rows(report: Wire, **wanted: Any) -> list[Wire]:
    return [
        one
        for one in report["decisions"]
        if all(one[name] == value for name, value in wanted.items())
    ]


# --- what the templates are filled with -----------------------------------------------------------


def _context(
    report: Wire,
    operator: Operator,
    audit: VerifiedAudit | None,
    problem: str | None,
    card: ModelCard | None,
) -> dict[str, Any]:
    policy = report["policy"]
    age = policy["required_age"]
    return {
        "policy": {**dict.fromkeys(_OPTIONAL), **policy},
        "fit": policy.get("fit"),
        "age": age,
        "admit": _admit(policy),
        "admitted": _admitted(policy),
        "kept_out": _kept_out(policy),
        "rules": rule_words(policy),
        "fallbacks": [(words, _FALLBACK_WORDS[policy[key]]) for key, words in _FALLBACKS.items()],
        "refuses": _refuses(policy),
        "frames": _frames(policy),
        "liveness": _LIVENESS_WORDS[policy["liveness"]],
        "operator": operator,
        "audit": None if audit is None else _audit(audit, policy),
        "problem": problem,
        "shut": _shut_words(policy),
        "override": policy.get("override"),
        "card": card,
        "model": report["model"],
        "data": report["data"],
        "counts": report["counts"],
        "fresh": _is_fresh(report),
        "known": ()
        if card is None
        else known_to_the_model(report["data"], report.get("datasets", ()), card),
        "left_out": left_out_words(report["counts"]),
        "promised": _promised_words(policy),
        "broken": _broken_words(report),
        "decisions": _decision_table(report, _overall(report)),
        "groups": _group_table(report),
        "by_age": _age_table(report),
        "checks": _check_table(report),
        "errors": _error_table(report, {ALL}),
        "nist": _nist_table(report, {ALL}),
        "hardest": _next_to_the_age(report, kept_out=True),
        "payers": _next_to_the_age(report, kept_out=False),
        "per_hundred": _per_hundred,
        "people": people,
        "rate": _rate,
        "markdown": lambda table: markdown(table.head, table.rows, left=table.left),
    }


def _is_fresh(report: Wire) -> bool:
    """Whether no file of the report was fitted on."""
    fit = report["policy"].get("fit") or {"data": []}
    fitted = {one["sha256"] for one in fit["data"]}
    return all(one["sha256"] not in fitted for one in report["data"])


def _audit(audit: VerifiedAudit, policy: Wire) -> dict[str, str]:
    until = AuditPart(**policy["audit"]).holds_until(audit.created, audit.expires)
    sha256 = audit.document.get("policy", {}).get("sha256", "")
    return {
        "policy": audit.policy,
        "by": f"{audit.policy}" + (f" (SHA-256 {sha256})" if sha256 else ""),
        "verdict": "passed" if audit.passed else "failed",
        "created": f"{audit.created:%Y-%m-%d}",
        "until": f"{until:%Y-%m-%d}",
        "key": audit.key,
        "signed": "signed with the key that the policy names"
        if policy["audit"].get("key")
        else "signed with a key of the operator's own: it is the operator's word, not that of an "
        "independent auditor",
    }


def _shut_words(policy: Wire) -> str:
    """What follows when no audit holds."""
    override = policy.get("override")
    if override is None:
        return "the gate stays shut"
    return f"the gate opens on the word of {override['name']} only"


def _promised_words(policy: Wire) -> list[str]:
    fit = policy.get("fit")
    if fit is None:
        return [
            "The limits were set by hand, not fitted: nothing is promised of the rate of errors."
        ]
    if fit.get("fitted") is None:
        return [
            "Nothing is promised of the rate of errors: the fit did not write down which limits it "
            "found, so nothing shows that these are still the fitted ones. Fit again."
        ]
    groups = ", ".join(fit["by"])
    bands = dict.fromkeys(
        tuple(one["ages"]) for one in fit["promises"] if one["error"] == "false_acceptance"
    )
    covered = {
        tuple(one["ages"]): one.get("covered") for one in fit["promises"] if one["group"] == ALL
    }
    kinds = " and of those ".join(
        people(band) + _covered_words(band, covered.get(band), policy) for band in bands
    )
    lines = [
        f"With confidence {fit['confidence']:g}, fewer than {per_cent(fit['max_false_accept'])} % "
        f"of those {kinds} are accepted"
        + (f", overall and in each group by {groups}." if groups else ".")
    ]
    adjacent, payers = (
        (fit["minor_band"], fit["adult_band"])
        if _admit(policy) == "over"
        else (fit["adult_band"], fit["minor_band"])
    )
    if list(adjacent) == _whole_sides(policy)[0]:
        rest = "small children" if _admit(policy) == "over" else "grown-ups"
        lines.append(
            "Nothing is promised of those next to the required age by themselves; they are "
            f"accepted more often than {rest}, so look at their rate."
        )
    if fit.get("max_false_refuse"):
        lines.append(
            f"With the same confidence, fewer than {per_cent(fit['max_false_refuse'])} % of those "
            f"{_admitted(policy)}, and of those {people(payers)}, are refused for the estimate."
        )
    lines.append(
        "This is about one try with one usable picture of each person. The gate does not limit how "
        "often somebody tries: whoever tries again is accepted more often."
    )
    correlation = policy["frames"]["correlation"]
    if correlation < 1:
        lines.append(
            f"This gate takes several frames for more than one (frames.correlation is "
            f"{correlation:g}), and decides on them together: of that nothing is promised."
        )
    return lines


def _covered_words(ages: Sequence[int], covered: Sequence[int] | None, policy: Wire) -> str:
    """What the faces of the fit leave out next to the required age."""
    if covered is None or reaches_the_age(ages, covered, policy["required_age"]):
        return ""
    return f" (the faces of the fit were {people(covered)})"


def _broken_words(report: Wire) -> list[str]:
    """The promises that do not hold on the faces of the report."""
    return [
        f"Of those {people(one['promise']['ages'], one['promise']['group'])}, "
        f"{_rate(one['found'])} % were "
        + ("accepted" if one["promise"]["error"] == "false_acceptance" else "refused")
        + f", and the promise is fewer than {per_cent(one['bound'])} %."
        for one in report["checks"]
        if one["verdict"] == "broken"
    ]


def _overall(report: Wire) -> list[Wire]:
    return _rows(report, group=ALL)


def _decision_table(report: Wire, rows: Sequence[Wire]) -> Table:
    bound = (report["policy"].get("fit") or {"max_false_accept": 1.0})["max_false_accept"]
    return Table(
        head=("true age", "faces", "accepted, %", "another proof, %", "refused, %"),
        rows=[
            (
                people(one["ages"], one["group"]),
                f"{one['accept']['faces']:,}",
                _rate(one["accept"]),
                _rate(one["step_up"]),
                _rate(one["refuse"]),
            )
            for one in rows
        ],
        title="What the gate says to whom",
        caption=f"In brackets: exact 95 % interval. Of those {_kept_out(report['policy'])}, who is "
        "accepted is the error"
        + ("; marked where there are more than the bound." if bound < 1 else "."),
        marked=frozenset(
            number
            for number, one in enumerate(rows)
            if one["kept_out"] and one["accept"]["value"] > bound
        ),
    )


def _group_table(report: Wire) -> Table:
    rows = [
        one
        for one in report["decisions"]
        if one["group"] != ALL and (one["kept_out"] or _borders(one, report["policy"]))
    ]
    return _decision_table(report, rows)


def _age_table(report: Wire) -> Table:
    table = _decision_table(report, report["by_age"])
    return Table(table.head, table.rows, "By exact age", table.caption, marked=table.marked)


def _check_table(report: Wire) -> Table:
    rows, marked = [], set()
    for number, one in enumerate(report["checks"]):
        promise = one["promise"]
        error = "accepted" if promise["error"] == "false_acceptance" else "refused outright"
        covered = _covered_words(promise["ages"], promise.get("covered"), report["policy"])
        verdict = _WORDS[one["verdict"]]
        if one["verdict"] == "too_few":
            verdict += f": {one['needed']} are needed"
        rows.append(
            (
                people(promise["ages"], promise["group"]) + covered,
                f"{error} under {per_cent(one['bound'])} %",
                verdict,
                f"{promise['errors']:,} of {promise['faces']:,}",
                per_cent(promise["upper"]),
                f"{one['found']['events']:,} of {one['found']['faces']:,}",
                _rate(one["found"]),
            )
        )
        if one["verdict"] == "broken":
            marked.add(number)
    return Table(
        head=(
            "true age",
            "promised",
            "here",
            "in the fit",
            "upper bound, %",
            "on these faces",
            "rate, %",
        ),
        rows=rows,
        title="The promise, on faces that the gate was not fitted on"
        if _is_fresh(report)
        else "The promise, on the faces of the fit: too good to count",
        caption="Upper bound: one-sided, at the stated confidence, on the faces of the fit.",
        left=3,
        marked=frozenset(marked),
    )


def _error_table(report: Wire, groups: set[str] | None) -> Table:
    rows = [
        (
            people(one["ages"], one["group"]),
            f"{one['mae']['count']:,}",
            estimate_text(one["mae"], years),
            estimate_text(one["bias"], signed_years),
        )
        for one in report["ages"]
        if groups is None or one["group"] in groups
    ]
    return Table(
        head=("true age", "faces", "mean absolute error, years", "bias, years"),
        rows=rows,
        title="Error of the expected age",
        caption="In brackets: 95 % bootstrap interval. Bias over 0: too old.",
    )


def _nist_table(report: Wire, groups: set[str] | None) -> Table:
    nist = report["nist"]
    rows = []
    if nist["mae"] is not None:
        words = f"MAE 18 to 30 ({nist['mae_cells']} of 26 cells), years"
        rows.append((words, ALL, f"{nist['mae']['count']:,}", estimate_text(nist["mae"], years)))
    for name, title in _NIST_TITLES.items():
        rows += [
            (title, group, f"{rate['faces']:,}", _rate(rate))
            for group, rate in nist[name].items()
            if groups is None or group in groups
        ]
    return Table(
        head=("figure", "group", "faces", "value"),
        rows=rows,
        title="The figures that NIST reports",
        caption="After the definitions below, on these faces; not on NIST's, and not by NIST.",
        left=2,
    )


_NIST_TITLES: Final = {
    "challenge_25": "Challenge 25: 14 to 17 taken for 25 or over, %",
    "child_13_16": "13 to 16 taken for 13 to 16, %",
    "child_8_12": "8 to 12 taken for 13 to 16, %",
    "child_17_22": "17 to 22 taken for 13 to 16, %",
}


def _borders(one: Wire, policy: Wire) -> bool:
    """Whether the ages of a row begin or end at the required age."""
    age = policy["required_age"]
    return age in (one["ages"][0], one["ages"][1] + 1)


def _next_to_the_age(report: Wire, *, kept_out: bool) -> Wire | None:
    """The narrowest band next to the required age on one side: whom the notice speaks of."""
    policy = report["policy"]
    whole = _whole_sides(policy)[0 if kept_out else 1]
    rows = [
        one
        for one in _rows(report, group=ALL, kept_out=kept_out)
        if _borders(one, policy) and (kept_out or list(one["ages"]) != whole)
    ]
    return min(rows, key=lambda one: one["ages"][1] - one["ages"][0], default=None)


# --- the page of the report -----------------------------------------------------------------------


def _page(report: Wire) -> dict[str, Any]:
    return {
        "title": f"Gate report: {report['policy']['name']}",
        "cards": _cards(report),
        "price_charts": _price_charts(report),
        "age_charts": _age_charts(report),
        "sections": [
            Section("The error of the expected age", tables=(_error_table(report, None),)),
            Section(
                "In NIST's manner",
                "Definitions follow NIST's evaluation of age estimation and verification (FATE "
                "AEV). The faces are not NIST's, so the figures can be compared in kind only.",
                tables=(_nist_table(report, None),),
            ),
        ],
        "definitions": list(report["nist"]["definitions"].values()),
        "undecided": [
            (group, _rate(rate), f"{rate['faces']:,}")
            for group, rate in report["undecided"].items()
        ],
        "facts": _facts(report),
    }


def _cards(report: Wire) -> list[dict[str, str]]:
    cards = []
    let_in = _whole_sides(report["policy"])[1]
    wanted: list[tuple[str, Wire | None, str]] = [
        (people(one["ages"]), one, "accept") for one in _rows(report, group=ALL, kept_out=True)
    ]
    wanted += [
        (people(one["ages"]), one, key)
        for one in _rows(report, group=ALL, ages=let_in)
        for key in ("step_up", "refuse")
    ]
    notes = {"accept": "accepted", "step_up": "asked for another proof", "refuse": "refused"}
    for title, one, key in wanted:
        if one is not None:
            found = one[key]
            cards.append(
                {
                    "title": f"{title}: {notes[key]}",
                    "value": _rate(found, with_interval=False),
                    "unit": "%",
                    "note": f"95 %: {per_cent(found['low'])} to {per_cent(found['high'])}; "
                    f"{found['faces']:,} faces",
                }
            )
    return cards


def _price_charts(report: Wire) -> list[Chart]:
    policy = report["policy"]
    limit = policy.get("threshold") or policy.get("challenge_age")
    bound = (policy.get("fit") or {}).get("max_false_accept")
    points = report["price"]
    wrong = list(points[0]["false_accept"])
    right = list(points[0]["not_accepted"])[:4]
    axis = (
        f"accepted from P({_admitted(policy)})"
        if policy["rule"] == "probability"
        else "accepted from the expected age, years"
    )
    wrong_title = f"Those {_kept_out(policy)} who are accepted"
    right_title = f"Those {_admitted(policy)} who are not accepted at once"
    return [
        Chart(
            wrong_title,
            "Share by the limit. Dashed across: the bound. Dashed up: the limit of this gate.",
            _price_chart(
                points, "false_accept", wrong, axis, limit, bound, "kept-out", wrong_title
            ),
        ),
        Chart(
            right_title,
            "The price of each limit, by true age. They are asked for another proof, or refused.",
            _price_chart(points, "not_accepted", right, axis, limit, None, "let-in", right_title),
        ),
    ]


def _price_chart(
    points: Sequence[Wire],
    key: str,
    bands: Sequence[str],
    axis: str,
    limit: float | None,
    bound: float | None,
    name: str,
    title: str,
) -> str:
    by_odds = "P(" in axis
    # A probability is shown by its odds: all that matters happens next to 1.
    place: Callable[[float], float] = (
        (lambda value: math.log10(value / (1 - value))) if by_odds else float
    )

    def draw(axes: Any, colours: Palette) -> None:
        places = [place(point["limit"]) for point in points]
        for number, band in enumerate(bands):
            values = [point[key][band] for point in points]
            axes.plot(
                places,
                [math.nan if value is None else 100 * value for value in values],
                color=colours.series[number % 4],
                linestyle=("-", "--", ":", "-.")[number % 4],
                label=band,
            )
        if bound is not None:
            axes.axhline(100 * bound, color=colours.muted, linestyle="--", linewidth=1)
        if limit is not None and limit > 0 and (not by_odds or limit < 1):
            axes.axvline(place(limit), color=colours.ink, linestyle="--", linewidth=1)
        if by_odds:
            ticks = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999]
            axes.set_xticks([place(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
        axes.set_xlabel(axis)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("per cent")
        axes.legend(loc="best", title="true age")

    return plots.svg(draw, f"price-{name}", title, height=3.4)


def _age_charts(report: Wire) -> list[Chart]:
    by_age = [one for one in report["by_age"] if one["ages"][0] == one["ages"][1]]
    fit = report["policy"].get("fit")
    groups = _rows(report, kept_out=True)
    charts = [
        Chart(
            "Accepted, by exact age",
            "With exact 95 % intervals: wide where there are few faces.",
            _acceptance_chart(by_age, report["policy"]),
        )
    ]
    if groups:
        shown = [
            Reading(
                people(one["ages"], one["group"]),
                math.nan if one["accept"]["value"] is None else one["accept"]["value"],
                one["accept"]["low"],
                one["accept"]["high"],
                one["accept"]["faces"],
                marked=bool(fit) and one["accept"]["low"] > fit["max_false_accept"],
            )
            for one in groups
        ]
        svg = plots.dots(
            shown,
            axis="accepted, per cent",
            name="by-group",
            title=f"Share accepted of those {_kept_out(report['policy'])}, by group",
            reference=fit["max_false_accept"] if fit else None,
            reference_label="the bound" if fit else "",
            percent=True,
        )
        charts.append(Chart("Accepted by mistake, by group", "Faces beside each group.", svg))
    return charts


def _acceptance_chart(by_age: Sequence[Wire], policy: Wire) -> str:
    sides = (
        (f"to be kept out: {_kept_out(policy)}", True),
        (f"let in: {_admitted(policy)}", False),
    )

    def draw(axes: Any, colours: Palette) -> None:
        for number, (words, kept_out) in enumerate(sides):
            rows = [one for one in by_age if one["kept_out"] is kept_out]
            values = [100 * one["accept"]["value"] for one in rows]
            below = [v - 100 * one["accept"]["low"] for v, one in zip(values, rows, strict=True)]
            above = [100 * one["accept"]["high"] - v for v, one in zip(values, rows, strict=True)]
            spread = np.maximum([below, above], 0)
            colour = colours.series[1 - number]
            axes.errorbar(
                [one["ages"][0] for one in rows], values, yerr=spread, fmt="sD"[number],
                color=colour, ecolor=colour, elinewidth=1.1, capsize=2, label=words,
            )  # fmt: skip
        axes.axvline(policy["required_age"] - 0.5, color=colours.muted, linestyle="--", linewidth=1)
        axes.set_ylim(-2, 102)
        axes.set_xlabel("true age, years")
        axes.set_ylabel("accepted, per cent")
        axes.legend(loc="best")

    return plots.svg(draw, "by-age", "Share accepted by exact age", height=3.4)


def _facts(report: Wire) -> list[tuple[str, str]]:
    counts, policy, model = report["counts"], report["policy"], report["model"]
    files = ", ".join(
        f"{one['name']} ({one['rows']:,} rows, SHA-256 {one['sha256'][:12]}…)"
        for one in report["data"]
    )
    return [
        ("Policy", f"{policy['name']}, SHA-256 {policy['sha256']}"),
        ("Model", f"{model['name']}, weights SHA-256 {model['sha256'][:12]}…"),
        ("Card, with its calibration", f"SHA-256 {model['card_sha256'][:12]}…"),
        ("Faces", f"{counts['faces']:,}, {counts['independent']:,} independent; {files}"),
        (
            "Counted",
            f"{counts['under_age']:,} under {policy['required_age']}, {counts['of_age']:,} of "
            f"{policy['required_age']} or over",
        ),
        ("Not counted", ", ".join(left_out_words(counts)) or BLANK),
        (
            "Options",
            ", ".join(f"{name} {value}" for name, value in report["options"].items()) or BLANK,
        ),
    ]
