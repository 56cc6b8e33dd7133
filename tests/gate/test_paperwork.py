"""The gate's papers: every figure is the measured one, and what is not known stays a blank."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the 'gate' extra")
pytest.importorskip("matplotlib", reason="needs the 'gate' extra")
pytest.importorskip("jinja2", reason="needs the 'gate' extra")

from agelens.bundle import find_model
from agelens.errors import DataError
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.signing import VerifiedAudit
from agelens.gate.fitting import fit_gate
from agelens.gate.measuring import GateReport, measure_gate
from agelens.gate.paperwork import Operator, people, rule_words, write_paperwork
from agelens.gate.policy import GatePolicy
from gate.people import crowd, faces_with

PAPERS = (
    "gate-report.json",
    "gate-report.html",
    "practice-statement.html",
    "notice.html",
    "dpia.md",
    "technical-file.md",
)
OVERRIDE = {
    "text": "Trial week, staff check everybody again.",
    "name": "A. Keeper",
    "date": "2026-11-24",
}


@pytest.fixture(scope="module")
def report() -> GateReport:
    """A gate for 18 that was fitted by gender, on faces it was not fitted on."""
    base = GatePolicy.load("site-18")
    policy = fit_gate(crowd(np.random.default_rng(0), 300, 400), by=["gender"], base=base).policy
    return measure_gate(crowd(np.random.default_rng(1), 300, 400), policy, samples=50)


def written(report: Any, folder: Path, **options: Any) -> dict[str, str]:
    """All papers by name."""
    return {path.name: path.read_text() for path in write_paperwork(report, folder, **options)}


class References(HTMLParser):
    """Every address that a page would load or link."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]


def test_six_papers_are_written_from_one_measurement(report: GateReport, tmp_path: Path) -> None:
    papers = written(report, tmp_path / "new" / "folder")

    assert tuple(papers) == PAPERS
    assert json.loads(papers["gate-report.json"]) == json.loads(json.dumps(report.to_dict()))


def test_stored_report_gives_the_same_papers(report: GateReport, tmp_path: Path) -> None:
    first = written(report, tmp_path)

    assert written(json.loads(first["gate-report.json"]), tmp_path) == first


def test_papers_show_the_measured_rates_and_no_others(report: GateReport, tmp_path: Path) -> None:
    papers = written(report, tmp_path)
    (minors,) = [d for d in report.decisions if d.ages == (13, 17) and d.group == "all"]
    low, high = minors.accept.interval
    shown = f"{100 * minors.accept.value:.1f} ({100 * low:.1f}–{100 * high:.1f})"

    for name in ("gate-report.html", "practice-statement.html", "dpia.md", "technical-file.md"):
        assert shown in papers[name], name
    per_hundred = f"{100 * minors.accept.value:.0f} of 100 people aged 13 to 17 were let in"
    assert per_hundred in papers["notice.html"]
    assert f"{report.policy.threshold:g}" in papers["practice-statement.html"]


def test_pages_stand_alone(report: GateReport, tmp_path: Path) -> None:
    for name, text in written(report, tmp_path).items():
        if name.endswith(".html"):
            outside = [one for one in References(text).found if not one.startswith("#")]
            assert outside == [], name
            assert "default-src 'none'" in text


def test_what_only_the_operator_knows_is_a_blank_until_it_is_given(
    report: GateReport, tmp_path: Path
) -> None:
    blank = written(report, tmp_path)
    filled = written(
        report,
        tmp_path,
        operator=Operator(
            name="Corner <Shop> Ltd",
            contact="help@shop.example",
            place="the door",
            other_way="show a passport to the staff",
            purpose="tobacco",
        ),
    )

    assert "[operator: address that answers]" in blank["practice-statement.html"]
    assert "help@shop.example" in filled["practice-statement.html"]
    assert "[operator: address that answers]" not in filled["practice-statement.html"]
    assert "show a passport to the staff" in filled["notice.html"]
    assert "Corner &lt;Shop&gt; Ltd" in filled["notice.html"]
    assert "Corner <Shop> Ltd" in filled["dpia.md"]


def test_promise_is_stated_with_its_confidence_and_checked(
    report: GateReport, tmp_path: Path
) -> None:
    papers = written(report, tmp_path)

    promise = (
        "With confidence 0.95, fewer than 5.0 % of those under 18 and of those 13 to 17 are "
        "accepted, overall and in each group by gender."
    )
    for name in PAPERS[1:3] + PAPERS[4:]:
        assert promise in papers[name], name
    assert "below the bound" in papers["gate-report.html"]


def test_limits_set_by_hand_promise_nothing(tmp_path: Path) -> None:
    policy = GatePolicy.load("challenge-25")
    faces = crowd(np.random.default_rng(2), 100, 100)

    papers = written(measure_gate(faces, policy, samples=20), tmp_path)

    assert "set by hand, not fitted: nothing is promised" in papers["practice-statement.html"]
    assert "the estimated age is 25 or more" in papers["notice.html"] + papers["dpia.md"]
    assert "nobody is refused outright" in papers["practice-statement.html"]


def test_missing_failed_and_overridden_audits_are_told(report: GateReport, tmp_path: Path) -> None:
    failed = VerifiedAudit(
        {},
        "simulated@1",
        "strict",
        False,
        datetime(2026, 11, 1, tzinfo=UTC),
        datetime(2027, 11, 1, tzinfo=UTC),
        "ed25519:AAAA",
    )
    overridden = measure_gate(
        crowd(np.random.default_rng(3), 100, 100),
        report.policy.changed(override=OVERRIDE),
        samples=20,
    )

    assert "No audit of the model is named" in written(report, tmp_path)["practice-statement.html"]
    told = written(report, tmp_path, audit=failed)
    assert "audited on 2026-11-01 and failed" in told["practice-statement.html"]
    assert "failed on 2026-11-01 by the policy strict" in told["technical-file.md"]
    for name in PAPERS[1:3] + PAPERS[4:]:
        assert "Trial week, staff check everybody again." in written(overridden, tmp_path)[name]


def test_technical_file_takes_limits_and_licence_from_the_card(
    report: GateReport, tmp_path: Path
) -> None:
    card = find_model("cc0").card

    text = written(report, tmp_path, card=card)["technical-file.md"]

    assert card.licence in text
    assert all(limit in text for limit in card.limits)


def test_markdown_tables_are_whole(report: GateReport, tmp_path: Path) -> None:
    papers = written(report, tmp_path)

    for name in ("dpia.md", "technical-file.md"):
        lines = papers[name].splitlines()
        for before, line in pairwise(lines):
            if before.startswith("|") and line.startswith("|"):
                assert before.count("|") == line.count("|"), (name, line)
            if line.startswith("| ") and not before.startswith("|"):
                assert before == "", (name, line)


def test_something_else_than_a_gate_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a stored gate report has the schema"):
        write_paperwork({"schema": "agelens.evaluation/1"}, tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ages", "group", "words"),
    [
        ((0, 17), "all", "under 18"),
        ((13, 17), "gender=female", "13 to 17, gender=female"),
        ((60, 100), "all", "60 and over"),
        ((16, 16), "all", "16"),
        ((0, 100), "all", "all ages"),
    ],
)
def test_people_are_named_in_words(ages: tuple[int, int], group: str, words: str) -> None:
    assert people(ages, group) == words


def test_rule_in_words_names_both_limits() -> None:
    policy = GatePolicy.from_table(
        {"name": "g", "required_age": 16, "threshold": 0.975, "refuse_below": 0.25}
    )

    text = " ".join(rule_words(policy.to_table()))

    assert re.search(r"being 16 or over is 0\.975 or more.*under 0\.25.*another proof", text)


# --- a gate for the young -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def children() -> GateReport:
    """A gate for those under 13, fitted on one half of simulated faces, seen on the other."""
    rng = np.random.default_rng(8)

    def faces() -> ScoredFaces:
        under = np.concatenate([rng.beta(3, 1, 300), rng.beta(1, 3, 400)])
        ages = np.concatenate([rng.integers(0, 13, 300), rng.integers(13, 28, 400)])
        return faces_with(1 - under, ages)

    base = GatePolicy.load("site-18").changed(name="area-13", required_age=13, admit="under")
    return measure_gate(faces(), fit_gate(faces(), base=base).policy, by=[], samples=50)


def test_papers_of_a_gate_for_the_young_say_who_is_let_in_and_who_is_not(
    children: GateReport, tmp_path: Path
) -> None:
    papers = written(children, tmp_path)
    told = {name: " ".join(text.split()) for name, text in papers.items()}

    assert "must not let in anybody 13 or over" in told["notice.html"]
    assert "estimates whether you are under 13" in told["notice.html"]
    assert "people aged 13 to 17 were let in by mistake" in told["notice.html"]
    assert "Of those aged 10 to 12" in told["notice.html"]
    promise = "fewer than 5.0 % of those 13 and over and of those 13 to 17 are accepted"
    for name in PAPERS[1:3] + PAPERS[4:]:
        assert promise in told[name], name
        assert "probability of being under 13" in told[name], name
    assert "a token that says “under 13”" in told["practice-statement.html"]
    assert "what is kept to those under 13" in told["practice-statement.html"]
    assert "somebody 13 or over is accepted" in told["technical-file.md"]
    assert "Those 13 or over who are accepted" in told["gate-report.html"]
    assert "Those under 13 who are not accepted at once" in told["gate-report.html"]


def test_papers_of_a_gate_for_the_young_hold_no_words_of_the_other_kind(
    children: GateReport, tmp_path: Path
) -> None:
    foreign = re.compile(r"under age\b|those of age|being 13 or over|a child is")

    for name, text in written(children, tmp_path).items():
        if name != "gate-report.json":
            assert foreign.search(text) is None, name


def test_error_rate_of_a_gate_for_the_young_is_the_share_of_grown_ups_let_in(
    children: GateReport, tmp_path: Path
) -> None:
    (grown,) = [one for one in children.decisions if one.ages == (13, 100)]
    low, high = grown.accept.interval
    shown = f"{100 * grown.accept.value:.1f} ({100 * low:.1f}–{100 * high:.1f})"

    papers = written(children, tmp_path)

    assert grown.accept.faces == 400
    for name in ("gate-report.html", "practice-statement.html", "dpia.md", "technical-file.md"):
        assert shown in papers[name], name
