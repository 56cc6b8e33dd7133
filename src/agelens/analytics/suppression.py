"""
Small cells hidden, and as many others as it takes that no small one can be worked out from sums.

A table is published with its row sums, its column sums and its total. A count of 1 to k-1 is
hidden (primary suppression). What a reader can still conclude of it from the published rest is an
interval; further counts are hidden (complementary suppression) until that interval is at least k
wide for every small cell (Willenborg and de Waal, "Elements of Statistical Disclosure Control",
2001, chapter 6). Its ends are found exactly, as largest flows in the network that the sums form.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError

DEFAULT_MINIMUM: Final = 5
"""Fewest visitors of a cell that is shown."""

Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]
_Cell = tuple[int, int]


@dataclass(frozen=True, eq=False)
class SuppressedTable:
    """A table with its sums, some of them hidden.

    Attributes:
        counts: (R + 1, C + 1) int64; the last row and column are the sums, the corner the total.
            0 where hidden: the true values are not in here.
        hidden: (R + 1, C + 1) bool.
        minimum: Fewest visitors of a cell that is shown; 0 is shown too.
    """

    counts: Counts
    hidden: Mask
    minimum: int

    def rows(self) -> list[list[int | None]]:
        """The counts, None where hidden."""
        return [
            [None if gone else int(count) for count, gone in zip(*row, strict=True)]
            for row in zip(self.counts, self.hidden, strict=True)
        ]


def suppress(
    counts: Counts | Sequence[Sequence[int]], minimum: int = DEFAULT_MINIMUM
) -> SuppressedTable:
    """Hide small cells of a table of counts, and others with which they could be worked out.

    Args:
        counts: (R, C) whole numbers; a list of counts with their sum is a table of one column.
        minimum: k: counts of 1 to k-1 are hidden; 1 hides nothing.

    Raises:
        ArgumentError: No table of whole numbers of 0 or more, or ``minimum`` is under 1.
    """
    values = np.asarray(counts)
    if values.ndim != 2 or 0 in values.shape or not np.issubdtype(values.dtype, np.integer):
        raise ArgumentError(
            f"a table of whole numbers is needed, got {values.dtype} of the shape {values.shape}"
        )
    if values.min() < 0 or minimum < 1:
        raise ArgumentError(
            f"counts must be 0 or more and minimum 1 or more, got {values.min()} and {minimum}"
        )
    whole = with_sums(values)
    small = (whole > 0) & (whole < minimum)
    hidden = small.copy()
    is_list = values.shape[1] == 1
    if is_list:
        # The row sums of one column are the column again, and nobody publishes them.
        small[:-1, -1] = False
        hidden[:-1, -1] = True
    for cell in _cells(small):
        while True:
            low, high = feasible_range(whole, hidden, cell)
            if high is None or high - low >= minimum:
                break
            hidden[_cheapest(whole, hidden, cell)] = True
    if is_list:
        hidden[-1, 0] |= hidden[-1, -1]
        hidden[:, -1] = hidden[:, 0]
    shown = np.where(hidden, 0, whole)
    return SuppressedTable(shown, hidden, minimum)


def with_sums(values: NDArray[Any]) -> Counts:
    """(R + 1, C + 1) a table with its row sums, column sums and total."""
    whole = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.int64)
    whole[:-1, :-1] = values
    whole[-1, :-1] = values.sum(axis=0)
    whole[:, -1] = whole[:, :-1].sum(axis=1)
    return whole


def feasible_range(whole: Counts, hidden: Mask, cell: _Cell) -> tuple[int, int | None]:
    """Least and greatest value that the published cells leave for a hidden one.

    Args:
        whole: (R + 1, C + 1) the true table with its sums.
        hidden: (R + 1, C + 1) what is not published.
        cell: A hidden one.

    Returns:
        Both ends; the upper one is None when nothing bounds it.
    """
    value = int(whole[cell])
    tail, head = _ends(cell, hidden.shape)
    more = _largest_flow(whole, hidden, cell, head, tail)
    less = _largest_flow(whole, hidden, cell, tail, head)
    # Counts are not negative; less than that cannot be taken away.
    low = 0 if less is None else max(0, value - less)
    return low, None if more is None else value + more


def _cells(mask: Mask) -> list[_Cell]:
    return [(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)]


def _cheapest(whole: Counts, hidden: Mask, cell: _Cell) -> _Cell:
    """The next cell to hide: the smallest that closes a loop of hidden cells through this one.

    A cell can only change together with others of its row and of its column. Cells inside the
    table go before sums, and among equals those in a line with what is hidden already.
    """
    rows, columns = hidden.shape
    row, column = cell
    last = rows - 1, columns - 1
    in_row = [(row, c) for c in range(columns) if not hidden[row, c]]
    in_column = [(r, column) for r in range(rows) if not hidden[r, column]]
    lonely_row = hidden[row].sum() == 1 and in_row
    lonely_column = hidden[:, column].sum() == 1 and in_column
    if lonely_row:
        choice = in_row
    elif lonely_column:
        choice = in_column
    else:
        touched = [(r, c) for r, c in _cells(~hidden) if hidden[r].any() or hidden[:, c].any()]
        choice = touched or _cells(~hidden)

    def price(one: _Cell) -> tuple[bool, bool, int, int]:
        r, c = one
        is_sum = r == last[0] or c == last[1]
        lines = int(hidden[r].any()) + int(hidden[:, c].any())
        return is_sum, int(whole[one]) == 0, -lines, int(whole[one])

    return min(choice, key=price)


# --- flows ----------------------------------------------------------------------------------------
# Every cell is an edge between its row and its column, and the sums make what flows in flow out:
# cells inside go from row to column, row sums back from the last column, column sums into the last
# row, the total from the last row to the last column. A table that fits the sums is a circulation.


def _ends(cell: _Cell, shape: tuple[int, ...]) -> tuple[int, int]:
    """Nodes that a cell's edge leaves and enters; rows come first, then columns."""
    rows, columns = shape
    row, column = cell
    inner = (row < rows - 1) == (column < columns - 1)
    return (row, rows + column) if inner else (rows + column, row)


def _largest_flow(
    whole: Counts, hidden: Mask, without: _Cell, source: int, target: int
) -> int | None:
    """How much can be shifted from one node to another over hidden cells; None without bound."""
    nodes = sum(hidden.shape)
    room: list[dict[int, float]] = [{} for _ in range(nodes)]
    for cell in _cells(hidden):
        if cell == without:
            continue
        tail, head = _ends(cell, hidden.shape)
        room[tail][head] = float("inf")
        room[head][tail] = room[head].get(tail, 0.0) + float(whole[cell])
    total = 0.0
    while True:
        before = _shortest_path(room, source, target)
        if before is None:
            return int(total)
        path = [target]
        while path[-1] != source:
            path.append(before[path[-1]])
        steps = [(path[i + 1], path[i]) for i in range(len(path) - 1)]
        amount = min(room[tail][head] for tail, head in steps)
        if amount == float("inf"):
            return None
        for tail, head in steps:
            room[tail][head] -= amount
            room[head][tail] = room[head].get(tail, 0.0) + amount
        total += amount


def _shortest_path(
    room: Sequence[dict[int, float]], source: int, target: int
) -> dict[int, int] | None:
    before = {source: source}
    queue = deque([source])
    while queue:
        node = queue.popleft()
        if node == target:
            return before
        for other, amount in room[node].items():
            if amount > 0 and other not in before:
                before[other] = node
                queue.append(other)
    return None
