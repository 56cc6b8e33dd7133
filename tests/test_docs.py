"""The documentation says what is so: its code runs, its options exist, its output is real."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from command_line import agelens

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
LIBRARY_PAGES = [ROOT / "README.md", ROOT / "docs" / "tutorial" / "first-photograph.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", LIBRARY_PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(faces, tmp_path / "tests" / "faces")
    shutil.copytree(faces, tmp_path / "photos")
    shutil.copy(faces / "astronaut.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    code = blocks(page, "python")

    assert code
    exec("\n".join(code), {})


def test_the_tutorial_shows_the_output_of_its_command(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(faces, tmp_path / "tests" / "faces")
    monkeypatch.chdir(tmp_path)
    (shown, *_) = blocks(LIBRARY_PAGES[1], "text")

    printed = agelens("analyze", "tests/faces/astronaut.jpg", columns=80).out

    assert [line.split() for line in printed.splitlines()] == [
        line.split() for line in shown.splitlines()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_that_a_page_gives_to_analyze_exists(page: Path) -> None:
    known = set(re.findall(r"--[a-z-]+", agelens("analyze", "--help", columns=200).out))
    lines = [
        line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()
    ]

    for line in lines:
        command = line.split("#")[0]
        if command.strip().startswith("agelens analyze"):
            assert set(re.findall(r"(?<= )--[a-z-]+", command)) <= known


def test_the_command_line_page_names_every_option_of_analyze() -> None:
    known = set(re.findall(r"--[a-z-]+", agelens("analyze", "--help", columns=200).out))
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8")

    assert [name for name in sorted(known - {"--help"}) if name not in page] == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
