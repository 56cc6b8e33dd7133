"""
Stored results as text: read back with their schema checked, printed as tables.

    read_result     any result that a command of evaluation has stored
    estimate_text   one figure with its 95 % interval, as people read it
    leaderboard_*   the leaderboard as Markdown and CSV

Nothing is measured here: what is printed is what is stored.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agelens.errors import DataError

LEADERBOARD_SCHEMA: Final = "agelens.leaderboard/1"
BLANK: Final = "–"
"""Stands where there is no figure."""

_COSTS: Final = ("network_ms", "total_ms", "megabytes")


def read_result(path: Path, schema: str, command: str) -> dict[str, Any]:
    """Read a stored result of one kind.

    Args:
        path: The JSON file.
        schema: What its "schema" must be.
        command: What makes one, for the message.

    Raises:
        DataError: There is no such file, it is empty or no JSON, or of another schema.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; `{command}` makes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not text.strip():
        raise DataError(f"{path}: is empty; `{command}` makes one")
    try:
        wire = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: no JSON ({error.msg}); `{command}` makes one"
        ) from error
    found = wire.get("schema") if isinstance(wire, dict) else None
    if not isinstance(wire, dict) or found != schema:
        raise DataError(
            f"{path}: its schema is {found!r}, expected {schema!r}; `{command}` makes one"
        )
    return wire


def estimate_text(
    found: Mapping[str, Any] | None, text: Callable[[float], str], *, interval: bool = True
) -> str:
    """A figure with its interval, or a dash where there is none.

    Args:
        found: "value", "low", "high" of a stored estimate.
        text: How one number is written.
        interval: Write the interval in brackets, where there is one.
    """
    if found is None or found["value"] is None:
        return BLANK
    value = text(found["value"])
    if not interval or found["low"] is None:
        return value
    low, high = text(found["low"]), text(found["high"])
    # A dash between signed numbers would read as one more sign.
    between = " to " if low[0] in "+-" or high[0] in "+-" else "–"
    return f"{value} ({low}{between}{high})"


def p_value_text(value: float | None) -> str:
    """A p-value with three decimals; no test gives nought."""
    if value is None:
        return BLANK
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def years(value: float) -> str:
    """Years with two decimals."""
    return f"{value:.2f}"


def signed_years(value: float) -> str:
    """Years with their sign."""
    return f"{value:+.2f}"


def per_cent(value: float) -> str:
    """A share as per cent with one decimal."""
    return f"{100 * value:.1f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table.

    Args:
        head: Column titles.
        rows: As many cells each.
        left: Columns aligned to the left; the others are figures.
    """
    marks = ["---" if number < left else "---:" for number in range(len(head))]
    lines = [head, marks, *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


# --- the leaderboard ------------------------------------------------------------------------------


def leaderboard_cell(
    entry: Mapping[str, Any], column: Mapping[str, Any], *, interval: bool = True
) -> str:
    """One cell of a stored leaderboard."""
    name = column["name"]
    if name in _COSTS:
        value = entry["megabytes"]
        if name != "megabytes":
            value = entry["milliseconds"].get(name.removesuffix("_ms"))
        return BLANK if value is None else f"{value:.1f}"
    text = per_cent if column["unit"] == "%" else years
    return estimate_text(entry["figures"].get(name), text, interval=interval)


def leaderboard_columns(
    wire: Mapping[str, Any], names: Sequence[str] | None = None
) -> list[Mapping[str, Any]]:
    """The stored columns of these names; None takes those that have a figure.

    Raises:
        DataError: The stored leaderboard has no column of that name.
    """
    if names is None:
        return [
            column
            for column in wire["columns"]
            if any(leaderboard_cell(entry, column) != BLANK for entry in wire["entries"])
        ]
    held = {column["name"]: column for column in wire["columns"]}
    for name in names:
        if name not in held:
            raise DataError(f"the leaderboard has no column {name!r}; it has {', '.join(held)}")
    return [held[name] for name in names]


def leaderboard_rows(
    wire: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], *, interval: bool = True
) -> list[list[str]]:
    """Name and cells of each entry; one that was not run says why in its first cell."""
    rows = []
    for entry in wire["entries"]:
        name = entry["name"] + (" (peer)" if entry["kind"] == "peer" else "")
        if entry["state"] == "measured":
            cells = [leaderboard_cell(entry, column, interval=interval) for column in shown]
        else:
            cells = [entry["state"], *[BLANK] * (len(shown) - 1)]
        rows.append([name, *cells])
    return rows


def leaderboard_markdown(
    wire: Mapping[str, Any], names: Sequence[str] | None = None, *, interval: bool = True
) -> str:
    """The stored leaderboard as a Markdown table.

    Args:
        wire: The stored result.
        names: Columns wanted; None takes those that have a figure.
        interval: Write the 95 % intervals.
    """
    shown = leaderboard_columns(wire, names)
    head = ["model", *(f"{column['title']}, {column['unit']}" for column in shown)]
    return markdown(head, leaderboard_rows(wire, shown, interval=interval))


def leaderboard_notes(wire: Mapping[str, Any]) -> list[str]:
    """What the table means, in sentences; then why an entry was not run, or answered less."""
    files = ", ".join(f"{file['name']} ({file['rows']:,} faces)" for file in wire["data"])
    notes = [
        f"Data: {files}. {wire['compared']:,} of {wire['faces']:,} faces have an answer of every "
        "row that was run, and all figures are of those.",
        f"In brackets: 95 % intervals by a cluster bootstrap of {wire['samples']:,} draws.",
        "MAE and CS@5: exact labels only. Nine ranges: the rounded age lies in the range of "
        "FairFace that holds the label. Gender: the likelier one, also where the label would be "
        "“uncertain”. Gap: the best less the worst group of "
        f"{wire['min_group']} faces or more within a data set. 13–17 taken for 25+: an expected "
        "age of 25 or more.",
        "Time: CPU milliseconds a face, one at a time on one thread: the network alone, and from "
        "the encoded picture to the answer. Weights: age and gender networks, without detectors.",
    ]
    for entry in wire["entries"]:
        if entry["state"] != "measured":
            notes.append(f"{entry['name']}: {entry['state']}. {entry['note']}".rstrip())
        elif entry["answered"] < wire["faces"]:
            notes.append(
                f"{entry['name']} answered {entry['answered']:,} of {wire['faces']:,} faces."
            )
    return notes


def leaderboard_page(wire: Mapping[str, Any]) -> str:
    """The whole stored leaderboard as a Markdown page."""
    notes = "\n".join(f"- {note}" for note in leaderboard_notes(wire))
    made = f"`{wire['command']}`, {wire['created'][:10]}, AgeLens {wire['agelens']}"
    return f"# Leaderboard\n\n{made}\n\n{leaderboard_markdown(wire)}\n\n{notes}\n"


def leaderboard_csv(wire: Mapping[str, Any]) -> str:
    """The stored leaderboard as CSV: one line an entry, each figure with interval and faces."""
    text = io.StringIO()
    plain = ["kind", "state", "note", "licence", "licence_class", "answered"]
    figures = [column["name"] for column in wire["columns"] if column["name"] not in _COSTS]
    parts = {"": "value", "_low": "low", "_high": "high", "_faces": "count"}
    names = ["model", *plain, *(f"{name}{part}" for name in figures for part in parts), *_COSTS]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for entry in wire["entries"]:
        row = {"model": entry["name"], **{name: entry[name] for name in plain}}
        for name in figures:
            found = entry["figures"].get(name, {})
            row |= {f"{name}{part}": found.get(key) for part, key in parts.items()}
        row |= {f"{name}_ms": entry["milliseconds"].get(name) for name in ("network", "total")}
        writer.writerow(row | {"megabytes": entry["megabytes"]})
    return text.getvalue()
