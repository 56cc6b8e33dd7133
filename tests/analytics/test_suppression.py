"""Small cells are hidden, and nobody can work them out from what is shown."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog

from agelens.analytics.suppression import suppress, with_sums
from agelens.errors import ArgumentError

MINIMUM = 5

TABLES = st.tuples(st.integers(1, 5), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.sampled_from([0, 0, 1, 2, 3, 4, 5, 6, 9, 40]))
)


def possible_range(counts: np.ndarray, hidden: np.ndarray, cell: tuple[int, int]) -> list[float]:
    """Least and greatest value of a cell under all that is shown, by linear programming."""
    rows, columns = counts.shape
    number = np.arange(counts.size).reshape(counts.shape)
    equations, values = [], []
    for row in range(rows):
        line = np.zeros(counts.size)
        line[number[row, :-1]], line[number[row, -1]] = 1, -1
        equations.append(line)
        values.append(0)
    for column in range(columns):
        line = np.zeros(counts.size)
        line[number[:-1, column]], line[number[-1, column]] = 1, -1
        equations.append(line)
        values.append(0)
    bounds = [
        (0, None) if gone else (count, count)
        for count, gone in zip(counts.ravel(), hidden.ravel(), strict=True)
    ]
    goal = np.zeros(counts.size)
    goal[number[cell]] = 1
    if columns == 2:  # a list: its row sums are not published
        bounds = [
            (0, None) if place % 2 and place < 2 * (rows - 1) else bound
            for place, bound in enumerate(bounds)
        ]
    ends = []
    for sign in (1, -1):
        found = linprog(sign * goal, A_eq=np.array(equations), b_eq=values, bounds=bounds)
        ends.append(np.inf if found.status == 3 else sign * found.fun)
    return ends


@given(TABLES)
def test_every_small_cell_stays_uncertain_by_the_minimum_whatever_is_summed(
    counts: np.ndarray,
) -> None:
    whole = with_sums(counts)
    table = suppress(counts, MINIMUM)

    small = (whole > 0) & (whole < MINIMUM)
    assert table.hidden[small].all()
    for row, column in zip(*np.nonzero(small), strict=True):
        low, high = possible_range(whole, table.hidden, (int(row), int(column)))
        assert high - low >= MINIMUM - 1e-6
        assert low - 1e-6 <= whole[row, column] <= high + 1e-6


@given(TABLES)
def test_what_is_shown_is_true_and_hidden_values_are_not_in_the_result(counts: np.ndarray) -> None:
    table = suppress(counts, MINIMUM)

    whole = with_sums(counts)
    assert (table.counts[~table.hidden] == whole[~table.hidden]).all()
    assert (table.counts[table.hidden] == 0).all()


@given(TABLES)
def test_a_table_without_small_cells_is_shown_whole(counts: np.ndarray) -> None:
    large = counts * MINIMUM

    assert not suppress(large, MINIMUM).hidden.any()


def test_one_small_cell_takes_three_others_along() -> None:
    table = suppress([[30, 2, 50], [40, 20, 60], [70, 80, 90]], MINIMUM)

    hidden = {(int(r), int(c)) for r, c in zip(*np.nonzero(table.hidden), strict=True)}
    assert (0, 1) in hidden
    assert len(hidden) == 4
    rows = {row for row, _ in hidden}
    columns = {column for _, column in hidden}
    assert hidden == set(itertools.product(rows, columns))
    assert table.rows()[0][1] is None
    assert table.rows()[3][3] == 442


def test_a_list_with_its_sum_hides_a_second_entry() -> None:
    table = suppress([[40], [3], [12], [90]], MINIMUM)

    assert [row[0] for row in table.rows()] == [40, None, None, 90, 145]


@pytest.mark.parametrize(
    ("counts", "minimum", "words"),
    [
        ([[-1, 2]], 5, "0 or more"),
        ([[1, 2]], 0, "minimum 1"),
        ([[0.5, 2]], 5, "whole numbers"),
        ([1, 2], 5, "shape"),
    ],
)
def test_what_is_no_table_of_counts_is_refused(counts: object, minimum: int, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        suppress(counts, minimum)  # type: ignore[arg-type]
