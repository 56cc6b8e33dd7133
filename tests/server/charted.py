"""Whether a CSV says what a table shows."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

import pytest

_SHOWN = re.compile(r"([\d,]+(?:\.\d+)?)\s*(%|s|h)?")


def check_csv(text: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Compare each line of a CSV with the cell that is shown, as exactly as that is shown."""
    shown = {
        (row[0], column): cell
        for row in rows
        for column, cell in zip(head[1:], row[1:], strict=True)
    }
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(line["row"].lstrip("'"), line["column"]) for line in lines] == list(shown)
    for line in lines:
        cell = shown[line["row"].lstrip("'"), line["column"]]
        if line["state"]:
            assert (cell, line["value"]) == (line["state"], "")
            continue
        found = _SHOWN.match(cell)
        assert found is not None, cell
        number, unit = found.groups()
        places = len(number.partition(".")[2])
        value = float(line["value"]) * (100 if unit == "%" else 1)
        assert float(number.replace(",", "")) == pytest.approx(value, abs=0.51 * 10**-places), cell
