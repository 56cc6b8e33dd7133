"""The gate's papers: every figure is the measured one, and what is not known stays a blank."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html import unescape
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
    assert "audit policy strict on 2026-11-01 and failed" in told["practice-statement.html"]
    assert "failed on 2026-11-01 by the audit policy strict" in told["technical-file.md"]
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


# --- what the papers must not gloss over ----------------------------------------------------------

AUDIT_SHA256 = "ab" * 32


def plain(text: str) -> str:
    """The words of a paper, without tags and line breaks."""
    return " ".join(re.sub(r"<[^>]*>", " ", unescape(text)).split()).replace(" .", ".")


def told(report: Any, folder: Path, **options: Any) -> dict[str, str]:
    """The words of all papers by name, but for the stored figures."""
    papers = written(report, folder, **options)
    return {name: plain(text) for name, text in papers.items() if not name.endswith(".json")}


def passed_audit() -> VerifiedAudit:
    document = {"policy": {"name": "strict", "sha256": AUDIT_SHA256}}
    created, expires = datetime(2026, 11, 1, tzinfo=UTC), datetime(2027, 11, 1, tzinfo=UTC)
    return VerifiedAudit(document, "m@1", "strict", True, created, expires, "ed25519:AAAA")


AUDITED = ("gate-report.html", "practice-statement.html", "dpia.md", "technical-file.md")


def hand_set(**fields: Any) -> GateReport:
    """A gate whose limit was set by hand, on a few faces."""
    table = {"name": "g", "required_age": 18, "threshold": 0.9, **fields}
    faces = crowd(np.random.default_rng(4), 60, 60)
    return measure_gate(faces, GatePolicy.from_table(table), by=[], samples=20)


def test_an_audit_that_does_not_hold_is_told_with_its_reason(tmp_path: Path) -> None:
    problem = "audit.json: judged by another policy ('lenient')"
    journal = {"path": "journal.jsonl"}

    shut = told(hand_set(), tmp_path, problem=problem)
    opened = told(hand_set(override=OVERRIDE, journal=journal), tmp_path, problem=problem)

    for name in AUDITED:
        assert f"the gate stays shut: {problem}" in shut[name], name
        assert f"the gate opens on the word of A. Keeper only: {problem}" in opened[name], name
        assert "None was named" not in shut[name]
        assert "none named" not in shut[name].lower()
        assert "No audit of the model is named" not in shut[name]


def test_an_audit_that_is_too_old_is_not_said_to_hold(tmp_path: Path) -> None:
    problem = "the audit of m@1 is from 2026-11-01, and the policy takes none older than 5 days"

    papers = told(hand_set(), tmp_path, audit=passed_audit(), problem=problem)

    for name in AUDITED:
        assert problem in papers[name], name
        assert "holds until" not in papers[name]
        assert "valid until" not in papers[name]


def test_an_audit_holds_no_longer_than_the_policy_takes_it(tmp_path: Path) -> None:
    papers = told(hand_set(audit={"max_age_days": 10}), tmp_path, audit=passed_audit())

    for name in AUDITED:
        assert "until 2026-11-11" in papers[name], name
        assert "2027" not in papers[name]


def test_papers_name_the_audit_policy_by_its_hash_and_who_signed(tmp_path: Path) -> None:
    own = told(hand_set(), tmp_path, audit=passed_audit())
    named = told(hand_set(audit={"key": "ed25519:AAAA"}), tmp_path, audit=passed_audit())

    for name in AUDITED:
        assert f"audit policy strict (SHA-256 {AUDIT_SHA256})" in own[name], name
        assert "the operator's word, not that of an independent auditor" in own[name]
        assert "signed with the key that the policy names" in named[name]
    asked = "one by the audit policy lenient"
    lenient = hand_set(audit={"policy": "lenient"})
    assert asked in told(lenient, tmp_path)["practice-statement.html"]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("on_no_face", "no face"),
        ("on_unusable", "a face too poor for an estimate"),
        ("on_second_face", "more than one face"),
        ("on_failed_liveness", "a check against photographs and videos that is not passed"),
    ],
)
def test_a_gate_that_says_no_for_anything_is_not_said_to_refuse_nobody(
    key: str, words: str, tmp_path: Path
) -> None:
    papers = told(hand_set(**{key: "refuse"}), tmp_path)

    for name, text in papers.items():
        assert "nobody is refused outright" not in text, name
        assert "refuses nobody by itself" not in text, name
    said = f"Nobody is refused for the estimate; the answer is no for: {words}."
    assert said in papers["practice-statement.html"]
    assert "the gate refuses some people by itself" in papers["dpia.md"]
    mild = told(hand_set(), tmp_path)
    assert "nobody is refused outright" in mild["practice-statement.html"]
    assert "refuses nobody by itself" in mild["dpia.md"]


def test_what_follows_a_failed_check_of_the_frames_is_listed(tmp_path: Path) -> None:
    papers = told(hand_set(on_failed_liveness="step_up"), tmp_path)

    for name in AUDITED[1:]:
        said = "that is not passed: another proof is asked for"
        assert said in papers[name], name


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"frames": {"min": 3, "max": 20}}, "3 to 20 frames"),
        ({"frames": {"max": 1}}, "one frame"),
        ({"frames": {"min": 3, "max": 20}, "liveness": "challenge"}, "3 to 300 frames, all of"),
    ],
)
def test_frames_that_are_looked_at_are_counted_in_full(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    papers = told(hand_set(**fields), tmp_path)

    assert words in papers["practice-statement.html"]
    assert words in papers["dpia.md"]


def test_promise_is_said_to_be_of_one_try(report: GateReport, tmp_path: Path) -> None:
    papers = told(report, tmp_path)

    for name in AUDITED:
        assert "one try with one usable picture of each person" in papers[name], name
        assert "does not limit how often somebody tries" in papers[name], name
    assert "let in by mistake, at one try with one picture each" in papers["notice.html"]
    assert "AgeLens does not limit tries" in papers["dpia.md"]


def test_a_lower_correlation_is_said_to_be_outside_the_promise(tmp_path: Path) -> None:
    base = GatePolicy.load("shop-18").changed(frames={"correlation": 0.5})
    policy = fit_gate(crowd(np.random.default_rng(0), 300, 400), base=base).policy
    report = measure_gate(crowd(np.random.default_rng(1), 300, 400), policy, by=[], samples=20)

    papers = told(report, tmp_path)

    for name in AUDITED:
        assert "frames.correlation is 0.5" in papers[name], name
        assert "of that nothing is promised" in papers[name]


def test_a_fit_that_did_not_keep_its_limits_is_said_to_show_nothing(
    report: GateReport, tmp_path: Path
) -> None:
    wire = report.to_dict()
    del wire["policy"]["fit"]["fitted"]
    words = "nothing shows that these are still the fitted ones"

    bare = told(wire, tmp_path)
    assert words in bare["practice-statement.html"]
    assert all("With confidence" not in text for text in bare.values())
    assert words not in told(report, tmp_path)["practice-statement.html"]


def test_ages_that_the_fit_did_not_cover_are_told(tmp_path: Path) -> None:
    toddlers = faces_with([0.01] * 100 + [0.999] * 100, [3] * 50 + [9] * 50 + [40] * 100)
    policy = fit_gate(toddlers, minors=(0, 17)).policy
    report = measure_gate(crowd(np.random.default_rng(1), 100, 100), policy, by=[], samples=20)

    papers = told(report, tmp_path)

    for name in AUDITED:
        assert "of those under 18 (the faces of the fit were 3 to 9)" in papers[name], name


def test_a_promise_that_is_broken_on_these_faces_stands_in_the_public_papers(
    report: GateReport, tmp_path: Path
) -> None:
    hard = crowd(np.random.default_rng(10), 300, 300, skill=1.2)
    broken = measure_gate(hard, report.policy, by=[], samples=20)
    (check, *_) = [one for one in broken.checks if one.verdict == "broken"]

    papers = told(broken, tmp_path)

    rate = f"{100 * check.found.value:.1f}"
    for name in ("practice-statement.html", "notice.html", "dpia.md", "technical-file.md"):
        said = re.search(r"under 18, (\S+) .*? were accepted, and the promise is", papers[name])
        assert said is not None, name
        assert said[1] == rate, name
    assert "more often than we promise" in papers["notice.html"]
    assert "does not hold on these faces" not in told(report, tmp_path)["practice-statement.html"]


def test_too_few_faces_are_not_said_to_show_the_promise(report: GateReport, tmp_path: Path) -> None:
    three = measure_gate(faces_with([0.01] * 3, [15] * 3), report.policy, by=[], samples=20)

    page = told(three, tmp_path)["gate-report.html"]

    assert "too few to tell: 59 are needed" in page
    assert "below the bound" not in page


def test_only_the_files_are_said_not_to_be_those_of_the_fit(
    report: GateReport, tmp_path: Path
) -> None:
    card = find_model("agelens-s").card
    wire = report.to_dict()

    def on_file(sha256: str) -> dict[str, Any]:
        return {**wire, "data": [{**wire["data"][0], "sha256": sha256}]}

    papers = told(on_file("1" * 64), tmp_path, card=card)
    known = told(on_file(card.calibration.files[0].sha256), tmp_path, card=card)

    for name in ("practice-statement.html", "dpia.md", "technical-file.md"):
        assert "one of these files was used for the fit" in papers[name], name
        assert "the model was calibrated on this file" in known[name], name
    assert "nothing was fitted" not in papers["practice-statement.html"]
    assert "faces that the check may know" in known["notice.html"]
    assert "faces that the check may know" not in papers["notice.html"]


def test_papers_claim_no_more_of_record_policy_and_other_proof_than_there_is(
    report: GateReport, tmp_path: Path
) -> None:
    blank = told(report, tmp_path)
    filled = told(report, tmp_path, operator=Operator(other_way="a passport"))

    statement = blank["practice-statement.html"]
    assert "a change or a gap in it is found" not in statement
    assert "found only against copies of the head that are kept elsewhere" in statement
    assert "the policy is not signed" in blank["dpia.md"]
    assert "policy, model and audit are bound" not in blank["dpia.md"]
    open_to_all = "open to all, at no disadvantage: a passport"
    assert open_to_all in filled["practice-statement.html"]
    assert "the other proof of age is open to all" not in statement
    assert "open to all at no disadvantage: a passport" in filled["dpia.md"]
    assert "The other way, open to all" not in blank["dpia.md"]
