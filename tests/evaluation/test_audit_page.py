"""The page of an audit: the verdict in plain words, who it fails for, and nothing hidden."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the 'eval' extra")
pytest.importorskip("fairlearn", reason="needs the 'eval' extra")
pytest.importorskip("matplotlib", reason="needs the 'eval' extra")
pytest.importorskip("jinja2", reason="needs the 'eval' extra")

from agelens.errors import DataError
from agelens.evaluation.audit import audit
from agelens.evaluation.audit_page import verdict_words, write_audit_html
from agelens.evaluation.policy import AuditPolicy
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.tables import p_value_text
from evaluation.simulation import simulated
from evaluation.test_report import _Elements, charts_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = """
schema = "agelens.audit-policy/1"
name = "of the test"
summary = "Groups are served alike."
validity_days = 90
min_cell = 30
unjudged = "{unjudged}"

[[require]]
metric = "age_mae"
by = ["race"]
max = 9.0
why = "Nobody is off by much."

[[require]]
metric = "gender_accuracy"
by = ["race"]
min = 0.2

[[require]]
metric = "age_bias"
by = ["age"]
only = ["10-12"]
max = 100.0
why = "Shown only with enough children."
"""


def with_gap(count: int = 600, years: float = 0.0) -> ScoredFaces:
    """Two groups, the second of which comes out older by so many years; gender is not labelled."""
    faces, shifted = simulated(count, seed=1), simulated(count, seed=1, shift=years)
    group = np.array(["one" if row % 2 else "<two>" for row in range(count)], object)
    rows = group == "<two>"
    return replace(
        faces,
        age=np.where(rows[:, None], shifted.age, faces.age),
        interval_low=np.where(rows[:, None], shifted.interval_low, faces.interval_low),
        interval_high=np.where(rows[:, None], shifted.interval_high, faces.interval_high),
        audit={"race": group},
    )


def audited(faces: ScoredFaces, unjudged: str = "note") -> dict[str, Any]:
    policy = AuditPolicy.parse(POLICY.replace("{unjudged}", unjudged))
    return audit(faces, policy, samples=100, now=NOW).to_dict()


@pytest.fixture(scope="module")
def failed() -> dict[str, Any]:
    return audited(with_gap(years=15))


@pytest.fixture(scope="module")
def passed() -> dict[str, Any]:
    return audited(with_gap())


def written(wire: dict[str, Any], folder: Path, **options: Any) -> str:
    write_audit_html(wire, folder / "audit.html", **options)
    return (folder / "audit.html").read_text("utf-8")


def test_the_verdict_comes_first_in_plain_words(failed: dict[str, Any], tmp_path: Path) -> None:
    text = _Elements(written(failed, tmp_path)).text

    start = text.index("The model fails.")
    assert start < text.index("What fails") < text.index("What the policy asks")
    assert "1 of 3 requirements are not met, in 1 cell: race <two>." in text
    assert "Made 2026-03-01, holds until 2026-05-30." in text


def test_a_model_that_passes_is_said_to(passed: dict[str, Any], tmp_path: Path) -> None:
    page = written(passed, tmp_path)

    assert "The model passes." in _Elements(page).text
    assert "What fails" not in page
    assert 'class="verdict passed"' in page


def test_every_failing_cell_is_named_with_its_figure(
    failed: dict[str, Any], tmp_path: Path
) -> None:
    text = _Elements(written(failed, tmp_path)).text

    assert failed["sentences"]
    for failure in failed["failures"]:
        assert failure["sentence"] in text
    assert "Nobody is off by much." in text


def test_every_requirement_stands_with_its_outcome(failed: dict[str, Any], tmp_path: Path) -> None:
    text = _Elements(written(failed, tmp_path)).text

    for one in failed["judgements"]:
        row = f"{one['text']} {one['outcome']} {one['judged']} {len(one['failures'])}"
        assert row in text


def test_failing_cells_are_marked_in_chart_and_table(
    failed: dict[str, Any], passed: dict[str, Any], tmp_path: Path
) -> None:
    bad, good = (written(wire, tmp_path) for wire in (failed, passed))

    assert len(re.findall(r'<td class="number bad">', bad)) == 1
    assert "number bad" not in good
    chart = next(c for c in charts_of(bad) if 'aria-label="MAE by race"' in c)
    assert re.search(r'font(-weight)?: (700|bold)[^"]*"[^>]*>&lt;two&gt;', chart)


@pytest.mark.parametrize(
    ("unjudged", "verdict", "words"),
    [
        ("note", "passed", "The policy leaves these as notes."),
        ("fail", "failed", "The policy counts what is not shown as failing"),
    ],
)
def test_what_could_not_be_judged_is_not_hidden(
    unjudged: str, verdict: str, words: str, tmp_path: Path
) -> None:
    faces = with_gap(100)
    wire = audited(faces, unjudged)

    text = _Elements(written(wire, tmp_path)).text

    assert wire["verdict"] == verdict
    assert "What these data cannot show" in text
    assert words in text
    counts = "which counts as failing" in " ".join(verdict_words(wire))
    assert counts is (unjudged == "fail")


def test_hashes_policy_and_signer_are_on_the_page(failed: dict[str, Any], tmp_path: Path) -> None:
    signed = failed | {"signature": {"public_key": "ed25519:abc", "algorithm": "Ed25519"}}

    text = _Elements(written(signed, tmp_path)).text

    for expected in (
        failed["model"]["sha256"],
        failed["model"]["card_sha256"],
        failed["data"][0]["sha256"],
        failed["policy"]["sha256"],
        "ed25519:abc",
        'why = "Nobody is off by much."',
    ):
        assert expected in text
    assert "this audit is not signed" in _Elements(written(failed, tmp_path)).text


def test_labels_cannot_become_markup_and_nothing_is_fetched(
    failed: dict[str, Any], tmp_path: Path
) -> None:
    page = written(failed, tmp_path)
    tags = _Elements(page).tags

    assert "<two>" not in page
    assert "script" not in {tag for tag, _ in tags}
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in tags:
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith("#")


def test_no_chart_is_empty(failed: dict[str, Any], tmp_path: Path) -> None:
    charts = charts_of(written(failed, tmp_path))

    assert len(charts) > 10
    assert all(re.search(r"var\(--plot-[12]", chart) for chart in charts)


def test_errors_of_age_checks_are_given_by_age(failed: dict[str, Any], tmp_path: Path) -> None:
    text = _Elements(written(failed, tmp_path)).text

    minors = next(
        one
        for one in failed["gate"]["errors"]
        if one["rule"] == "challenge_25" and one["ages"] == [13, 17] and one["column"] == "all"
    )
    assert f"{minors['wrong']:,} of {minors['count']:,}" in text
    assert "13–17 race <two>" in text


# --- before and after -----------------------------------------------------------------------------


def test_a_mitigation_is_shown_before_and_after(
    failed: dict[str, Any], passed: dict[str, Any], tmp_path: Path
) -> None:
    text = _Elements(written(passed, tmp_path, before=failed)).text

    (failure,) = failed["failures"]
    assert f"Failed before, and not now: {failure['sentence']}" in text
    assert "failed, 1 failing cells. After:" in text
    gaps = [
        next(g for g in one["gaps"] if g["metric"] == "age_mae" and g["by"] == ["race"])["gap"]
        for one in (failed, passed)
    ]
    assert f"MAE, years race {gaps[0]['value']:.2f} (" in text
    assert f") {gaps[1]['value']:.2f} (" in text


def test_a_mitigation_that_fails_somewhere_else_is_told(
    failed: dict[str, Any], passed: dict[str, Any], tmp_path: Path
) -> None:
    text = _Elements(written(failed, tmp_path, before=passed)).text

    assert f"Fails now, and not before: {failed['failures'][0]['sentence']}" in text


def test_audits_on_different_data_are_not_set_against_each_other(
    failed: dict[str, Any], passed: dict[str, Any], tmp_path: Path
) -> None:
    other = copy.deepcopy(failed) | {"data_sha256": "0" * 64}

    text = _Elements(written(passed, tmp_path, before=other)).text

    assert "audited on different data" in text
    assert "Failed before, and not now" not in text


# --- refusals -------------------------------------------------------------------------------------


def test_another_result_is_no_audit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the schema 'agelens\.audit/1'"):
        write_audit_html({"schema": "agelens.evaluation/1"}, tmp_path / "x.html")

    assert not (tmp_path / "x.html").exists()


def test_an_audit_that_lacks_a_part_is_named(failed: dict[str, Any], tmp_path: Path) -> None:
    old = {name: part for name, part in failed.items() if name != "gaps"}

    with pytest.raises(DataError, match="no 'gaps'; audit the model again"):
        write_audit_html(old, tmp_path / "x.html")


def test_no_p_value_is_nought() -> None:
    assert [p_value_text(p) for p in (None, 0.0, 0.0009, 0.25)] == [
        "–",
        "< 0.001",
        "< 0.001",
        "0.250",
    ]
