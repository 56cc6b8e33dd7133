"""``agelens models``: the list, the cards, the check of the files, and models of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import onnx_models
from agelens.bundle import HOME_VARIABLE
from command_line import agelens

HOPPER = Path(__file__).parents[1] / "faces" / "hopper.jpg"


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry for this test; gives where models go."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home" / "models"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The ONNX file of a linear network, its card beside it."""
    return onnx_models.write_model(tmp_path / "made", onnx_models.distribution_network().graph)


def small_with(folder: Path, **changes: Any) -> Path:
    graph = onnx_models.distribution_network().graph
    card = onnx_models.distribution_card(graph) | changes
    return onnx_models.write_model(folder, graph, card)


def in_one_line(text: str) -> str:
    return " ".join(text.split())


# --- list and show --------------------------------------------------------------------------------


def test_the_list_shows_the_default_with_its_licence() -> None:
    outcome = agelens("models", "list", columns=160)

    line = next(line for line in outcome.out.splitlines() if line.startswith("agelens-s@"))
    assert outcome.status == 0
    assert "(default)" in line
    assert "Apache-2.0" in line
    assert "commercial" in line


@pytest.mark.parametrize("columns", [60, 160])
def test_the_list_fits_the_terminal(columns: int) -> None:
    lines = agelens("models", "list", columns=columns).out.splitlines()

    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize(
    ("name", "model", "files"),
    [
        (None, "agelens-s@", ["agelens-s.onnx"]),
        ("default", "agelens-s@", ["agelens-s.onnx"]),
        ("cc0", "cc0@", ["age-v1.onnx", "gender-v1.onnx"]),
    ],
)
def test_a_card_is_shown_with_licence_limits_and_files(
    name: str | None, model: str, files: list[str]
) -> None:
    outcome = agelens("models", "show", *([] if name is None else [name]))

    assert outcome.status == 0
    assert outcome.out.startswith(model)
    for key in ("licence", "calibrated on", "limit", "file", *files):
        assert key in outcome.out


def test_a_model_that_is_not_there_is_refused_with_those_that_are() -> None:
    outcome = agelens("models", "show", "nonesuch")

    assert outcome.status == 2
    assert "'nonesuch'" in outcome.err
    assert "cc0" in outcome.err


@pytest.mark.parametrize("arguments", [["models"], ["models", "--help"]])
def test_the_help_names_the_four_commands(arguments: list[str]) -> None:
    outcome = agelens(*arguments)

    assert all(name in outcome.out + outcome.err for name in ("list", "show", "verify", "add"))


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "model"),
    [([], "agelens-s"), (["default"], "agelens-s"), ([], "cc0"), (["cc0"], "cc0")],
)
def test_whole_models_are_verified(names: list[str], model: str) -> None:
    outcome = agelens("models", "verify", *names)

    assert outcome.status == 0
    assert f"ok {model}@" in in_one_line(outcome.out)
    assert ("ok yunet (detector)" in in_one_line(outcome.out)) is not bool(names)


def test_a_damaged_model_is_found_and_the_others_are_still_checked(
    small: Path, registry: Path
) -> None:
    agelens("models", "add", small)
    weights = registry / "small" / "small.onnx"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)

    outcome = agelens("models", "verify")

    assert outcome.status == 1
    report = in_one_line(outcome.out)
    assert "ok cc0@" in report
    assert "broken small@2.1" in report
    assert "SHA-256" in report


def test_a_damaged_model_does_not_run(small: Path) -> None:
    agelens("models", "add", small)
    small.write_bytes(small.read_bytes() + b"\0")

    outcome = agelens("analyze", HOPPER, "--model", small, "--format", "jsonl")

    assert (outcome.status, outcome.out) == (2, "")
    assert "SHA-256" in outcome.err
    assert "Traceback" not in outcome.err


# --- add ------------------------------------------------------------------------------------------


def test_an_added_model_is_listed_shown_and_used_by_name(small: Path, registry: Path) -> None:
    added = agelens("models", "add", small)
    listed = agelens("models", "list", columns=160)
    shown = agelens("models", "show", "small")
    used = agelens("analyze", HOPPER, "--model", "small", "--format", "jsonl")

    assert added.status == 0
    assert "small@2.1" in added.out
    assert str(registry) in in_one_line(added.out)
    assert [line.split()[0] for line in listed.out.splitlines()][1:] == [
        "agelens-s@1.1",
        "agelens-s-research@1.1",
        "cc0@1.0",
        "small@2.1",
    ]
    assert "Knows nothing of faces." in shown.out
    assert used.status == 0
    assert used.lines[0]["model"] == "small@2.1"
    assert used.lines[0]["faces"][0]["age"]["mean"] is not None


def test_a_model_is_replaced_only_on_request(tmp_path: Path, small: Path) -> None:
    newer = small_with(tmp_path / "newer", version="3.0")
    agelens("models", "add", small)

    refused = agelens("models", "add", newer)
    kept = agelens("models", "list", columns=160).out
    replaced = agelens("models", "add", newer, "--overwrite")

    assert refused.status == 2
    assert "--overwrite" in refused.err
    assert "small@2.1" in kept
    assert replaced.status == 0
    assert "small@3.0" in agelens("models", "list", columns=160).out


def test_a_model_under_the_name_of_a_bundled_one_is_refused(tmp_path: Path) -> None:
    outcome = agelens("models", "add", small_with(tmp_path / "made", name="cc0"))

    assert outcome.status == 2
    assert "cc0" in outcome.err


def test_a_model_without_its_card_is_refused(small: Path) -> None:
    small.with_suffix(".toml").unlink()

    outcome = agelens("models", "add", small)

    assert outcome.status == 2
    assert "small.toml is missing" in in_one_line(outcome.err)


def test_a_card_with_a_wrong_field_is_refused_with_its_name(tmp_path: Path) -> None:
    outcome = agelens("models", "add", small_with(tmp_path, licence_class="free"))

    assert outcome.status == 2
    assert "licence_class" in outcome.err


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x04")

    outcome = agelens("models", "add", tmp_path / "model.pt")

    assert outcome.status == 2
    assert "ONNX" in outcome.err


@pytest.mark.parametrize("content", ["", "not toml", 'schema = "agelens.card/9"'])
def test_a_broken_card_in_the_registry_does_not_stop_other_models(
    registry: Path, content: str
) -> None:
    (registry / "broken").mkdir(parents=True)
    (registry / "broken" / "broken.toml").write_text(content)

    used = agelens("analyze", HOPPER, "--format", "jsonl")
    listed = agelens("models", "list", columns=160)
    verified = agelens("models", "verify")

    assert used.status == 0
    assert listed.status == 0
    assert "cc0@" in listed.out
    assert verified.status == 1
    assert "broken.toml" in in_one_line(verified.out + verified.err)


# --- licences -------------------------------------------------------------------------------------


def test_a_research_model_runs_only_with_its_licence_accepted(tmp_path: Path) -> None:
    (tmp_path / "genderage.onnx").write_bytes(onnx_models.genderage().graph)
    arguments = ("analyze", HOPPER, "--model", f"insightface:{tmp_path}", "--format", "jsonl")

    refused = agelens(*arguments)
    accepted = agelens(*arguments, "--accept-licence")

    assert (refused.status, refused.out) == (2, "")
    assert "--accept-licence" in refused.err
    assert accepted.status == 0
    assert accepted.lines[0]["faces"][0]["gender"] is not None
