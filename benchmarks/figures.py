"""
The figures that README and docs print: measured, stored in docs/results, written into pages.

    python benchmarks/figures.py                  write every block from docs/results
    python benchmarks/figures.py --check          say which blocks differ; exit status 1 if one does
    python benchmarks/figures.py --measure DATA   measure the default model again; DATA is the
                                                  folder with utkface-test.parquet and the others

A block stands between two comments, and what is between them is never written by hand:

    <!-- figures: leaderboard leaderboard.json columns=age_mae,gender only=measured -->
    <!-- figures: metrics utkface-test.json fairface-test.json names=age_mae,gender_accuracy -->
    <!-- figures: groups utkface-test.json column=age names=age_mae,age_bias -->
    <!-- figures: audit utkface-test-audit.json -->
    <!-- figures: table quality.json -->
    ...
    <!-- /figures -->

A figure within a sentence is <!-- figure: FILE PATH digits=1 -->6.0<!-- /figure -->. Its path is
metrics/NAME, answered/NAME, faces/NAME, groups/COLUMN/VALUE/NAME (VALUE may be lowest or highest,
or lowest-name and highest-name for the group itself), or entries/MODEL/NAME of a leaderboard.
Shares are written in per cent.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agelens.errors import DataError
from agelens.evaluation.card import figures_markdown, read_evaluation
from agelens.evaluation.metrics import find_metric
from agelens.evaluation.pages import group_table
from agelens.evaluation.tables import (
    LEADERBOARD_SCHEMA,
    leaderboard_markdown,
    markdown,
    read_result,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
TABLE_SCHEMA = "agelens.table/1"
AUDIT_SCHEMA = "agelens.audit-summary/1"
EVALUATED = ("utkface-test", "fairface-test")
DEFAULT, COMPARED = "agelens-s", "agelens-s,agelens-s-research,cc0"

_BLOCK = re.compile(
    r"(<!-- figures: (?P<words>[^>]*?) -->\n)(?P<held>.*?)(<!-- /figures -->)", re.S
)
_INLINE = re.compile(r"(<!-- figure: (?P<words>[^>]*?) -->)(?P<held>[^<]*?)(<!-- /figure -->)")


@dataclass(frozen=True)
class Block:
    """One place of a page that holds figures.

    Attributes:
        page: The file.
        words: What the first comment asks for.
        held: What stands there.
        wanted: What the stored results give.
    """

    page: Path
    words: str
    held: str
    wanted: str


def pages() -> list[Path]:
    """The files that may hold blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page.

    Raises:
        DataError: A block asks for what no stored result has; the message names the page.
    """
    text = page.read_text("utf-8")
    for pattern, give in ((_BLOCK, block_text), (_INLINE, inline_text)):
        for match in pattern.finditer(text):
            try:
                wanted = give(match["words"])
            except (DataError, KeyError, ValueError) as error:
                raise DataError(f"{page.name}: {match['words']}: {error}") from error
            yield Block(page, match["words"], match["held"], wanted)


def unclosed(page: Path) -> list[str]:
    """Comments that open or close a block without their other half."""
    text = page.read_text("utf-8")
    left = _INLINE.sub("", _BLOCK.sub("", text))
    return re.findall(r"<!-- /?figures?\b[^>]*-->", left)


def write(page: Path) -> bool:
    """Write a page's blocks from the stored results; whether anything changed."""
    text = page.read_text("utf-8")
    new = _BLOCK.sub(lambda m: m[1] + block_text(m["words"]) + m[4], text)
    new = _INLINE.sub(lambda m: m[1] + inline_text(m["words"]) + m[4], new)
    if new != text:
        page.write_text(new, "utf-8")
    return new != text


# --- what a block asks for ------------------------------------------------------------------------


def block_text(words: str) -> str:
    """A table, with a line break at its end."""
    kind, *rest = words.split()
    files = [RESULTS / word for word in rest if "=" not in word]
    options = dict(word.split("=", 1) for word in rest if "=" in word)
    names = options["names"].split(",") if "names" in options else None
    if kind == "leaderboard":
        wire = read_result(files[0], LEADERBOARD_SCHEMA, "agelens leaderboard")
        columns = options["columns"].split(",") if "columns" in options else None
        if options.get("only") == "measured":
            measured = [entry for entry in wire["entries"] if entry["state"] == "measured"]
            wire = {**wire, "entries": measured}
        return leaderboard_markdown(wire, columns) + "\n"
    if kind == "metrics":
        held = [read_evaluation(file) for file in files]
        return (figures_markdown(held, names) if names else figures_markdown(held)) + "\n"
    if kind == "groups":
        column = options["column"]
        groups = read_evaluation(files[0])["groups"][column]
        table = group_table(column, groups, names or list(groups[0]["metrics"]))
        return markdown(table.head, table.rows) + "\n"
    if kind == "table":
        wire = read_result(files[0], TABLE_SCHEMA, "python benchmarks/figures.py --measure DATA")
        return markdown(wire["columns"], wire["rows"]) + "\n"
    if kind == "audit":
        wire = read_result(files[0], AUDIT_SCHEMA, "python benchmarks/figures.py --measure DATA")
        return "".join(f"- {sentence}\n" for sentence in wire["sentences"])
    raise ValueError(f"no kind {kind!r}; there are leaderboard, metrics, groups, audit, table")


def inline_text(words: str) -> str:
    """One figure."""
    file, path, *rest = words.split()
    options = dict(word.split("=", 1) for word in rest)
    first, *parts = path.split("/")
    if first == "entries":
        wire = read_result(RESULTS / file, LEADERBOARD_SCHEMA, "agelens leaderboard")
        return _of_entry(wire, *parts, digits=options.get("digits"))
    evaluation = read_evaluation(RESULTS / file)
    if first == "faces":
        return f"{evaluation['faces'][parts[0]]:,}"
    if first == "groups":
        column, value, name = parts
        group = _group(evaluation["groups"][column], value.removesuffix("-name"), name)
        if value.endswith("-name"):
            return str(group["value"])
        found = group["metrics"][name]
    else:
        name = parts[0]
        found = evaluation[first][name]
    return _number(name, found["value"], options.get("digits"))


def _group(groups: Sequence[Mapping[str, Any]], value: str, name: str) -> Mapping[str, Any]:
    held = [group for group in groups if name in group["metrics"]]
    if value in ("lowest", "highest"):
        choose = min if value == "lowest" else max
        return choose(held, key=lambda group: group["metrics"][name]["value"])
    return next(group for group in held if group["value"] == value)


def _number(name: str, value: float, digits: str | None) -> str:
    metric = find_metric(name)
    if digits is None:
        return metric.text(value)
    return f"{100 * value if metric.unit == 'share' else value:.{int(digits)}f}"


def _of_entry(wire: Mapping[str, Any], model: str, name: str, *, digits: str | None) -> str:
    entry = next(entry for entry in wire["entries"] if entry["name"] == model)
    places = int(digits or 1)
    if name in ("network", "total"):
        return f"{entry['milliseconds'][name]:.{places}f}"
    unit = next(column["unit"] for column in wire["columns"] if column["name"] == name)
    value = entry["figures"][name]["value"]
    return f"{100 * value if unit == '%' else value:.{places}f}"


# --- measuring ------------------------------------------------------------------------------------


def measure(data: Path) -> None:
    """Measure the default model and store the results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name in EVALUATED:
            file, kept = str(data / f"{name}.parquet"), str(out / f"{name}.npz")
            _agelens("evaluate", DEFAULT, file, "--out", str(out / name), "--keep", kept)
            _keep(out / name / "evaluation.json", RESULTS / f"{name}.json")
            _audit(Path(file), Path(kept), out / name, RESULTS / f"{name}-audit.json")
        files = [str(data / f"{name}.parquet") for name in EVALUATED]
        board = str(out / "leaderboard")
        words = ("--models", COMPARED, "--accept-licence", "--flip", "--out", board)
        _agelens("leaderboard", *files, *words)
        _keep(out / "leaderboard" / "leaderboard.json", RESULTS / "leaderboard.json")
    quality = [sys.executable, str(ROOT / "benchmarks" / "quality.py")]
    quality += [str(data / "utkface-val.parquet"), "--json", str(RESULTS / "quality.json")]
    subprocess.run(quality, check=True)
    coverage = [sys.executable, str(ROOT / "benchmarks" / "coverage.py")]
    subprocess.run([*coverage, str(data), "--json", str(RESULTS)], check=True)


def _agelens(*words: str, statuses: Sequence[int] = (0,)) -> None:
    done = subprocess.run([sys.executable, "-m", "agelens", *words], check=False)
    if done.returncode not in statuses:
        raise SystemExit(f"agelens {' '.join(words)}: exit status {done.returncode}")


def _audit(data: Path, kept: Path, out: Path, stored: Path) -> None:
    """An audit by the strict policy; what documentation needs of it."""
    words = ("audit", DEFAULT, str(data), "--out", str(out), "--keep", str(kept))
    _agelens(*words, statuses=(0, 1))
    whole = json.loads((out / "audit.json").read_text("utf-8"))
    names = ("agelens", "created", "verdict", "model", "data", "settings", "failures", "sentences")
    summary = {
        "schema": AUDIT_SCHEMA,
        "command": f"agelens audit {DEFAULT} {data.name} --out OUT",
        "policy": whole["policy"]["name"],
        **{name: whole[name] for name in names},
    }
    stored.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _keep(made: Path, stored: Path) -> None:
    stored.write_bytes(made.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--measure", type=Path, metavar="DATA", help="measure first")
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
    differing = 0
    for page in pages():
        wrong = [block for block in blocks(page) if block.held != block.wanted]
        for block in wrong:
            print(f"{page.relative_to(ROOT)}: {block.words}")
        differing += len(wrong)
        if wrong and not options.check:
            write(page)
    sys.exit(1 if differing and options.check else 0)


if __name__ == "__main__":
    main()
