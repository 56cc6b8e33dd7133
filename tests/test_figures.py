"""The figures that README and documentation print are the stored ones, of the model as it is."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("pyarrow", reason="needs the 'eval' extra")

from agelens.bundle import find_model
from agelens.errors import DataError
from agelens.evaluation.scoring import card_sha256, model_sha256

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_is_what_the_stored_results_give(
    page: Path, figures: ModuleType
) -> None:
    assert figures.unclosed(page) == []
    for block in figures.blocks(page):
        assert block.held == block.wanted, f"{block.words}: python benchmarks/figures.py"


@pytest.mark.parametrize("name", ["README.md", "docs/explanation/numbers.md"])
def test_pages_that_speak_of_accuracy_hold_blocks(name: str, figures: ModuleType) -> None:
    assert list(figures.blocks(ROOT / name))


def test_stored_results_are_of_the_default_model_as_it_is() -> None:
    bundle = find_model("default")

    for path in RESULTS.glob("*-test.json"):
        made = json.loads(path.read_text("utf-8"))["provenance"]
        assert made["model_sha256"] == model_sha256(bundle), path.name
        assert made["card_sha256"] == card_sha256(bundle.card), (
            f"{path.name}: the card has changed; python benchmarks/figures.py --measure DATA"
        )
    for path in RESULTS.glob("*-audit.json"):
        audited = json.loads(path.read_text("utf-8"))["model"]
        assert audited["sha256"] == model_sha256(bundle), path.name
        assert audited["card_sha256"] == card_sha256(bundle.card), path.name
    board = json.loads((RESULTS / "leaderboard.json").read_text("utf-8"))
    ours = next(e for e in board["entries"] if e["name"] == bundle.card.identifier)
    assert ours["model_sha256"] == model_sha256(bundle)


def test_stored_results_agree_with_each_other() -> None:
    """The leaderboard was run on the faces of both evaluations, in one run."""
    board = json.loads((RESULTS / "leaderboard.json").read_text("utf-8"))
    held = {path.name: json.loads(path.read_text("utf-8")) for path in RESULTS.glob("*-test.json")}
    files = [file for wire in held.values() for file in wire["provenance"]["data"]]
    assert sorted(file["sha256"] for file in board["data"]) == sorted(f["sha256"] for f in files)

    name = find_model("default").card.identifier
    ours = next(entry for entry in board["entries"] if entry["name"] == name)["figures"]
    exact = held["utkface-test.json"]["metrics"]["age_mae"]
    assert ours["age_mae"]["value"] == pytest.approx(exact["value"])
    right = [(w["metrics"]["gender_accuracy"], w) for w in held.values()]
    mean = sum(m["value"] * m["count"] for m, _ in right) / sum(m["count"] for m, _ in right)
    assert ours["gender"]["value"] == pytest.approx(mean)


def test_stored_results_name_no_place_of_the_machine_that_made_them() -> None:
    for path in RESULTS.glob("*.json"):
        words = re.findall(r'"([^"]*)"', path.read_text("utf-8"))
        absolute = [word for word in words if re.search(r"(^|\s)(/\w|[A-Za-z]:\\)", word)]
        assert absolute == [], path.name
        assert path.stat().st_size < 200_000


def test_a_block_that_was_changed_by_hand_is_found_and_mended(
    tmp_path: Path, figures: ModuleType
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "MAE <!-- figure: utkface-test.json metrics/age_mae digits=1 -->0.1<!-- /figure --> years\n"
        "<!-- figures: metrics utkface-test.json names=age_mae -->\nold\n<!-- /figures -->\n"
    )
    before = [block.held == block.wanted for block in figures.blocks(page)]

    figures.write(page)

    value = json.loads((RESULTS / "utkface-test.json").read_text("utf-8"))["metrics"]["age_mae"]
    assert before == [False, False]
    assert all(block.held == block.wanted for block in figures.blocks(page))
    assert f"-->{value['value']:.1f}<!--" in page.read_text()
    assert f"| MAE, years | {value['value']:.2f} (" in page.read_text()
    assert figures.write(page) is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("metrics nothing.json", "no such file"),
        ("metrics leaderboard.json", "expected 'agelens.evaluation/1'"),
        ("leaderboard leaderboard.json columns=beauty", "no column 'beauty'"),
        ("poem utkface-test.json", "no kind 'poem'"),
    ],
)
def test_a_block_without_its_source_is_named(
    words: str, message: str, tmp_path: Path, figures: ModuleType
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"<!-- figures: {words} -->\n<!-- /figures -->\n")

    with pytest.raises(DataError) as raised:
        list(figures.blocks(page))

    assert message in str(raised.value)
    assert "page.md" in str(raised.value)


def test_a_block_that_is_not_closed_is_found(tmp_path: Path, figures: ModuleType) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- figures: metrics utkface-test.json -->\n| a |\n")

    assert figures.unclosed(page) == ["<!-- figures: metrics utkface-test.json -->"]
