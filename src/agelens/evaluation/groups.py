"""
Who a model serves worse: every figure by group, the gaps between groups, and whether they are more
than noise.

    dimensions      audit columns, labelled gender and true age, as one label a face
    disaggregate    figures of every cell of every grouping, gaps, tests -> Disaggregation

Groups are split and compared by fairlearn's ``MetricFrame`` (Weerts et al., JMLR 2023); intervals
come from one cluster bootstrap of all faces, restricted to each cell, because fairlearn's own
draws single faces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError, DataError, MissingExtra
from agelens.evaluation.bootstrap import (
    DEFAULT_SAMPLES,
    MIN_CLUSTERS,
    Draws,
    Estimate,
    percentiles,
    weights,
    wilson,
)
from agelens.evaluation.evaluating import MOST_GROUPS, band_name, gender_words
from agelens.evaluation.metrics import METRICS, Metric, find_metric, weighted_mean
from agelens.evaluation.scored import UNKNOWN, Floats, ScoredFaces
from agelens.evaluation.values import AGE_BANDS, band_of

MIN_CELL: Final = 30
"""Faces under which a cell is listed and not judged."""
SIGNIFICANCE: Final = 0.05
"""Chance, over a whole audit, of calling any difference real where there is none."""
STANDARDISED: Final = ("age_mae", "age_bias", "age_crps", "range_distance", "gender_accuracy")
"""Figures that depend on age so much that a gap is also given with equal ages in all groups."""

AGE: Final = "age"
GENDER: Final = "gender"

PRIMARY: Final = (
    "age_mae",
    "age_bias",
    "range_distance",
    "coverage_90",
    "gender_accuracy",
    "detection_rate",
    "answered_rate",
)
"""Figures whose differences are tested first: named before anything is seen, and few."""

_PRIMARY_SHARE: Final = 0.8
"""Of the audit's chance of a false alarm; the other figures share the rest."""
_NORMAL_DRAWS: Final = 10_000
_NORMAL_AT_ONCE: Final = 2_000
_MIN_STRATUM: Final = 5
_MIN_SHARED: Final = 0.5

By = tuple[str, ...]


@dataclass(frozen=True)
class CellFigure:
    """One figure of one cell.

    Attributes:
        estimate: With its interval.
        difference: From all faces of the grouping together.
        p_value: Of a difference as large by noise alone; None where it cannot be tested.
        adjusted: The same, corrected for all the tests of the audit.
        standardised: As if the cell had the ages of all faces; None where that cannot be said.
    """

    estimate: Estimate
    difference: float
    p_value: float | None = None
    adjusted: float | None = None
    standardised: Estimate | None = None

    @property
    def significant(self) -> bool:
        """Whether the difference is more than noise."""
        return self.adjusted is not None and self.adjusted < SIGNIFICANCE

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            **self.estimate.to_dict(),
            "difference": self.difference,
            "p_value": self.p_value,
            "adjusted_p_value": self.adjusted,
            "significant": self.significant,
            "standardised": None if self.standardised is None else self.standardised.to_dict(),
        }


@dataclass(frozen=True)
class Cell:
    """The faces that share the values of one or two columns.

    Attributes:
        by: The columns.
        values: Their values.
        count: Faces in it.
        figures: By metric, where at least the minimum of faces carry it.
        too_few: Metrics with some faces in the cell, but fewer than the minimum: not judged.
    """

    by: By
    values: tuple[str, ...]
    count: int
    figures: Mapping[str, CellFigure]
    too_few: tuple[str, ...]

    @property
    def name(self) -> str:
        """As people read it: "race Black, gender female"."""
        return cell_name(self.by, self.values)

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "by": list(self.by),
            "values": list(self.values),
            "name": self.name,
            "count": self.count,
            "metrics": {name: figure.to_dict() for name, figure in self.figures.items()},
            "too_few": list(self.too_few),
        }


@dataclass(frozen=True)
class Gap:
    """How far apart the judged cells of one grouping are in one figure.

    Attributes:
        metric: The figure.
        by: The grouping.
        cells: Cells that are compared.
        worst: Values of the cell that is farthest from where good figures lie.
        worst_value: Its figure.
        best: Values of the cell that is nearest.
        best_value: Its figure.
        gap: Highest less lowest figure; the interval is that of the difference of these two cells.
        ratio: Highest over lowest figure; None for figures around 0 or with a nominal value.
        adjusted: Least corrected p-value of the cells; None where none can be tested.
        standardised: The gap as if all cells had the ages of all faces, or None.
        standardised_over: Age bands that all cells have and that the standardised gap is over.
    """

    metric: str
    by: By
    cells: int
    worst: tuple[str, ...]
    worst_value: float
    best: tuple[str, ...]
    best_value: float
    gap: Estimate
    ratio: float | None
    adjusted: float | None
    standardised: Estimate | None = None
    standardised_over: tuple[str, ...] = ()

    @property
    def significant(self) -> bool:
        """Whether any cell differs from all faces by more than noise."""
        return self.adjusted is not None and self.adjusted < SIGNIFICANCE

    def to_dict(self) -> dict[str, Any]:
        """Wire form."""
        return {
            "metric": self.metric,
            "by": list(self.by),
            "cells": self.cells,
            "worst": list(self.worst),
            "worst_name": cell_name(self.by, self.worst),
            "worst_value": self.worst_value,
            "best": list(self.best),
            "best_name": cell_name(self.by, self.best),
            "best_value": self.best_value,
            "gap": self.gap.to_dict(),
            "ratio": self.ratio,
            "adjusted_p_value": self.adjusted,
            "significant": self.significant,
            "standardised_gap": None if self.standardised is None else self.standardised.to_dict(),
            "standardised_over": list(self.standardised_over),
        }


@dataclass(frozen=True)
class Disaggregation:
    """Every figure by every grouping.

    Attributes:
        columns: Values of each dimension.
        cells: In the order of groupings, then of values.
        gaps: By metric and grouping, where at least two cells can be compared.
        min_cell: Faces that a cell needs.
        tests: How many differences were tested together.
        notes: Columns that were left out and why.
    """

    columns: Mapping[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    gaps: tuple[Gap, ...]
    min_cell: int
    tests: int
    notes: tuple[str, ...]

    def gap(self, metric: str, by: Sequence[str]) -> Gap | None:
        """The gap of a figure in a grouping, whatever the order of its columns; None without."""
        return next(
            (g for g in self.gaps if g.metric == metric and sorted(g.by) == sorted(by)), None
        )

    def of(self, by: Sequence[str]) -> tuple[Cell, ...]:
        """The cells of a grouping, whatever the order of its columns."""
        return tuple(cell for cell in self.cells if sorted(cell.by) == sorted(by))


def cell_name(by: Sequence[str], values: Sequence[str]) -> str:
    """A cell as people read it: "race Black, gender female"."""
    return ", ".join(f"{column} {value}" for column, value in zip(by, values, strict=True))


# --- dimensions -----------------------------------------------------------------------------------


def dimensions(
    faces: ScoredFaces, columns: Sequence[str] | None = None
) -> tuple[dict[str, NDArray[np.object_]], tuple[str, ...]]:
    """What faces are grouped by.

    Args:
        faces: Labelled faces.
        columns: Audit columns wanted; None takes all that can be used.

    Returns:
        (N,) labels by name, None where a face has none: the audit columns, then "gender" and "age"
        where there are such labels; and notes on the columns that were left out.

    Raises:
        DataError: A named column does not exist, or an audit column is called like one of ours.
    """
    for name in (AGE, GENDER):
        if name in faces.audit:
            raise DataError(
                f"the audit column {name!r} has the name of a label; rename that column, as "
                f"{name}_group"
            )
    for name in columns or ():
        if name not in faces.audit:
            there = ", ".join(repr(column) for column in faces.audit) or "none"
            raise DataError(f"there is no audit column {name!r}; these exist: {there}")
    found: dict[str, NDArray[np.object_]] = {}
    notes = []
    for name in faces.audit if columns is None else columns:
        column = faces.audit[name]
        values = {value for value in column.tolist() if value is not None}
        if len(values) > MOST_GROUPS:
            notes.append(
                f"column {name!r} has {len(values):,} values, more than {MOST_GROUPS}: it is not "
                "taken as an audit column"
            )
        elif not values:
            notes.append(f"column {name!r} is empty in all {len(faces):,} rows: no groups by it")
        else:
            if len(values) == 1:
                notes.append(
                    f"column {name!r} holds one value only, {next(iter(values))!r}: there is "
                    "nothing to compare it with"
                )
            found[name] = column
    genders = gender_words(faces)
    if any(word is not None for word in genders):
        found[GENDER] = genders
    if (faces.age_min != UNKNOWN).any():
        found[AGE] = age_groups(faces)
    return found, tuple(notes)


def age_groups(faces: ScoredFaces) -> NDArray[np.object_]:
    """(N,) band of true age that holds the label, as "13-17"; None without a label.

    A range that no band holds, as "10-19", is a group of its own.
    """
    place = band_of(faces)
    groups = np.full(len(faces), None, object)
    for row in np.flatnonzero(faces.age_min != UNKNOWN):
        own = (int(faces.age_min[row]), int(faces.age_max[row]))
        groups[row] = band_name(AGE_BANDS[place[row]] if place[row] >= 0 else own)
    return groups


def groupings(names: Sequence[str]) -> tuple[By, ...]:
    """Each column, then each pair of columns."""
    return (*((name,) for name in names), *combinations(names, 2))


def _sort_key(value: str) -> tuple[int, float, str]:
    """Ages by number, words by letter."""
    start = value.rstrip("+").split("-")[0]
    return (0, float(start), value) if start.isdigit() else (1, 0.0, value)


# --- disaggregating -------------------------------------------------------------------------------


@dataclass(eq=False)
class _Grouping:
    """One way to split the faces.

    ``place`` is the (N,) number of each face's cell, -1 for faces that lack a label.
    """

    by: By
    values: list[tuple[str, ...]]
    place: NDArray[np.intp]

    @property
    def counts(self) -> NDArray[np.intp]:
        return np.bincount(self.place[self.place >= 0], minlength=len(self.values))


@dataclass(eq=False)
class _Figures:
    """One metric in one grouping: C judged cells and S draws.

    Attributes:
        cells: (C,) numbers of the judged cells.
        values: (C,) figures.
        counts: (C,) faces that carry them.
        clusters: (C,) independent clusters among these.
        draws: (S, C).
        all_value: Figure of all faces of the grouping.
        all_draws: (S,).
        all_count: Faces that carry it.
        gap: Highest less lowest figure, from the MetricFrame.
        ratio: Lowest over highest figure, from the MetricFrame.
    """

    metric: Metric
    grouping: _Grouping
    cells: NDArray[np.intp]
    values: Floats
    counts: NDArray[np.intp]
    clusters: NDArray[np.intp]
    draws: Floats
    all_value: float
    all_draws: Floats
    all_count: int
    gap: float
    ratio: float


def disaggregate(
    faces: ScoredFaces,
    *,
    columns: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    min_cell: int = MIN_CELL,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    draws: Draws | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Disaggregation:
    """Figures of every cell: by each column, gender and age, and by each pair of these.

    Each judged cell is tested against all faces of its grouping, by the difference over its
    bootstrap standard error (for means this is the test against all other faces); the standard
    error of a cell that happens to agree too well is taken to be at least that of all faces at its
    size. All tests of the audit are corrected together (``step_down``): the chance that any
    difference is called real where there is none stays at 5 %, four fifths of it for ``PRIMARY``.

    Ages differ between the groups of most data sets, and errors grow with age. For the figures of
    ``STANDARDISED`` the gap is therefore also given by direct standardisation: each cell's figure
    in each age band, weighted by the ages of all faces, over the bands that all cells have.

    Args:
        faces: Labelled faces with answers.
        columns: Audit columns; None takes all.
        metrics: Figures; None takes all.
        min_cell: Faces that a cell needs to be judged, 2 or more.
        samples: Bootstrap draws.
        seed: Of the draws.
        draws: (S, N) draws made before, instead of ``samples`` and ``seed``.
        progress: Told groupings done and groupings in all.

    Raises:
        DataError: There is no column to group by, or a named one does not exist.
        ArgumentError: An unknown metric, or ``min_cell`` under 2.
        MissingExtra: fairlearn, pandas or scipy is not installed.
    """
    if min_cell < 2:
        raise ArgumentError(
            f"min_cell must be 2 or more, got {min_cell}: a group of one is a person"
        )
    columns_of, notes = dimensions(faces, columns)
    if not columns_of:
        raise DataError(
            "there is nothing to group faces by: no audit column, and the columns 'gender', "
            "'age_min' and 'age_max' are empty"
        )
    held = weights(faces.clusters, samples, seed) if draws is None else draws
    wanted = [find_metric(name) for name in (METRICS if metrics is None else metrics)]
    wanted = [metric for metric in wanted if metric.rows(faces).any()]
    plans = groupings(list(columns_of))
    strata = columns_of.get(AGE)
    found: list[_Figures] = []
    split: list[_Grouping] = []
    for done, by in enumerate(plans, start=1):
        grouping = _split(by, columns_of)
        split.append(grouping)
        found += _figures(faces, grouping, wanted, min_cell, held)
        if progress is not None:
            progress(done, len(plans))
    tests = _Tests(found, seed)
    cells: list[Cell] = []
    gaps: list[Gap] = []
    for grouping in split:
        own = [(number, one) for number, one in enumerate(found) if one.grouping is grouping]
        even = {
            one.metric.name: _standardised(faces, one, strata, held)
            for _, one in own
            if one.metric.name in STANDARDISED and AGE not in grouping.by
        }
        cells += _cells(faces, grouping, own, wanted, tests, even)
        gaps += [
            _gap(one, tests.adjusted[number], even.get(one.metric.name))
            for number, one in own
            if len(one.cells) > 1
        ]
    return Disaggregation(
        {name: _values(column) for name, column in columns_of.items()},
        tuple(cells),
        tuple(gaps),
        min_cell,
        tests.count,
        notes,
    )


def _values(column: NDArray[np.object_]) -> tuple[str, ...]:
    return tuple(
        sorted({str(value) for value in column.tolist() if value is not None}, key=_sort_key)
    )


def _split(by: By, columns: Mapping[str, NDArray[np.object_]]) -> _Grouping:
    labels = [columns[name] for name in by]
    rows = list(zip(*(column.tolist() for column in labels), strict=True))
    whole = [None if None in row else tuple(map(str, row)) for row in rows]
    values = sorted(
        {row for row in whole if row is not None}, key=lambda row: [_sort_key(v) for v in row]
    )
    number = {row: place for place, row in enumerate(values)}
    place = np.array([-1 if row is None else number[row] for row in whole], np.intp)
    return _Grouping(by, values, place)


def _figures(
    faces: ScoredFaces,
    grouping: _Grouping,
    metrics: Sequence[Metric],
    min_cell: int,
    draws: Draws,
) -> list[_Figures]:
    """Figures of the judged cells of a grouping, with their draws."""
    carried = {metric.name: metric.rows(faces) & (grouping.place >= 0) for metric in metrics}
    counts = {
        name: np.bincount(grouping.place[rows], minlength=len(grouping.values))
        for name, rows in carried.items()
    }
    held = [metric for metric in metrics if (counts[metric.name] >= min_cell).any()]
    if not held:
        return []
    frame = _metric_frame(faces, grouping, held, counts, min_cell)
    by_group, differences, ratios = frame.by_group, frame.difference(), frame.ratio()
    parts: dict[int, ScoredFaces] = {}

    def part(number: int) -> ScoredFaces:
        return parts.setdefault(number, faces.take(np.flatnonzero(grouping.place == number)))

    found = []
    once = np.ones((1, len(faces)), np.uint8)
    inside = np.flatnonzero(grouping.place >= 0)
    everyone = faces if len(inside) == len(faces) else faces.take(inside)
    for metric in held:
        key = [v[0] if len(grouping.by) == 1 else v for v in grouping.values]
        values = by_group[metric.name].reindex(key).to_numpy(np.float64)
        cells = np.flatnonzero(~np.isnan(values))
        if len(cells) == 0:
            continue
        if metric.values is not None:
            own = metric.values(faces)
            member = grouping.place[:, None] == cells
            spread = weighted_mean(draws, np.where(member, own[:, None], np.nan))
            whole = np.where(grouping.place >= 0, own, np.nan)
            all_value = float(weighted_mean(once, whole)[0])
            all_draws = weighted_mean(draws, whole)
        else:
            spread = np.stack(
                [
                    metric.estimate(part(int(c)), draws[:, np.flatnonzero(grouping.place == c)])
                    for c in cells
                ],
                axis=1,
            )
            all_value = float(metric.estimate(everyone, once[:, inside])[0])
            all_draws = metric.estimate(everyone, draws[:, inside])
        rows = carried[metric.name]
        found.append(
            _Figures(
                metric,
                grouping,
                cells,
                values[cells],
                counts[metric.name][cells],
                np.array(
                    [len(np.unique(faces.clusters[rows & (grouping.place == c)])) for c in cells]
                ),
                spread,
                all_value,
                all_draws,
                int(rows.sum()),
                float(differences[metric.name]),
                float(ratios[metric.name]),
            )
        )
    return found


def _metric_frame(
    faces: ScoredFaces,
    grouping: _Grouping,
    metrics: Sequence[Metric],
    counts: Mapping[str, NDArray[np.intp]],
    min_cell: int,
) -> Any:
    """Fairlearn's MetricFrame over these faces; cells with too few faces are NaN in it."""
    try:
        from fairlearn.metrics import MetricFrame
    except ImportError as error:
        raise MissingExtra("eval", "an audit by groups") from error
    inside = np.flatnonzero(grouping.place >= 0)

    def function(metric: Metric) -> Callable[[Any, Any], float]:
        own = None if metric.values is None else metric.values(faces)

        def figure(rows: Any, _: Any) -> float:
            numbers = np.asarray(rows, np.intp)
            cells = np.unique(grouping.place[numbers])
            if len(cells) == 1 and counts[metric.name][cells[0]] < min_cell:
                return math.nan
            if own is not None:
                carried = own[numbers]
                carried = carried[~np.isnan(carried)]
                return float(carried.mean()) if len(carried) else math.nan
            part = faces.take(numbers)
            return float(metric.estimate(part, np.ones((1, len(part)), np.uint8))[0])

        return figure

    features = {
        name: np.array([grouping.values[c][k] for c in grouping.place[inside]], object)
        for k, name in enumerate(grouping.by)
    }
    return MetricFrame(
        metrics={metric.name: function(metric) for metric in metrics},
        y_true=inside,
        y_pred=inside,
        sensitive_features=features,
    )


# --- tests ----------------------------------------------------------------------------------------


class _Tests:
    """All differences of an audit, tested together.

    Attributes:
        p_values: By place of the figures, (C,) raw p-values; NaN where a cell cannot be tested.
        adjusted: The same after the correction, to be held to ``SIGNIFICANCE``.
        count: Tests.
    """

    def __init__(self, figures: Sequence[_Figures], seed: int) -> None:
        self.p_values = [np.full(len(one.cells), np.nan) for one in figures]
        self.adjusted = [np.full(len(one.cells), np.nan) for one in figures]
        self.count = 0
        for share, is_primary in ((_PRIMARY_SHARE, True), (1 - _PRIMARY_SHARE, False)):
            places, scores, moved = [], [], []
            for number, one in enumerate(figures):
                if (one.metric.name in PRIMARY) != is_primary:
                    continue
                for cell in range(len(one.cells)):
                    tested = _test(one, cell)
                    if tested is not None:
                        places.append((number, cell))
                        scores.append(tested[0])
                        moved.append(tested[1])
            if not places:
                continue
            self.count += len(places)
            corrected = step_down(np.array(scores), np.stack(moved, axis=1), seed=seed) / share
            for (number, cell), score, p_value in zip(places, scores, corrected, strict=True):
                self.p_values[number][cell] = 2 * NormalDist().cdf(-score)
                self.adjusted[number][cell] = min(1.0, p_value)


def _test(one: _Figures, cell: int) -> tuple[float, Floats] | None:
    """Score of one difference, as of a normal variable, and its standardised (S,) draws."""
    if one.clusters[cell] < MIN_CLUSTERS or one.all_count <= one.counts[cell]:
        return None
    moved = one.draws[:, cell] - one.all_draws
    held = ~np.isnan(moved)
    if 2 * held.sum() < len(moved):
        return None
    own = float(np.std(moved[held]))
    # A small cell in which all agree has no spread of its own, which is no certainty.
    whole = float(np.nanstd(one.all_draws)) * math.sqrt(one.all_count / one.counts[cell] - 1)
    if own == 0 or whole == 0:
        return None
    noise = np.where(held, (moved - moved[held].mean()) / own, 0.0)
    score = abs(one.values[cell] - one.all_value) / max(own, whole)
    return _as_normal(score, int(one.clusters[cell]) - 1), noise


def _as_normal(score: float, freedom: int) -> float:
    """The normal score as unlikely as a Student score: a small cell knows its spread badly."""
    from scipy.special import ndtri_exp
    from scipy.stats import t

    return float(-ndtri_exp(t.logsf(score, freedom)))


def step_down(scores: Floats, noise: Floats, *, seed: int = 0) -> Floats:
    """p-values corrected for being many.

    The largest score is held to the largest of all scores under noise, the next to the largest of
    those that are left, and so on: what Holm (Scandinavian Journal of Statistics 1979) does with
    Bonferroni's bound. In place of the bound stands the distribution of the largest of normal
    variables that are correlated as the bootstrap draws are (Hothorn, Bretz and Westfall,
    Biometrical Journal 2008), so that ten tests of nearly the same thing do not count as ten.

    Args:
        scores: (M,) absolute scores.
        noise: (S, M) draws of the same under noise alone, mean 0 and variance 1.
        seed: Of the normal variables.

    Returns:
        (M,) p-values that hold for all tests together; the least possible is 1 / 10,001.
    """
    order = np.argsort(scores, kind="stable")  # the largest last
    ordered = np.ascontiguousarray(noise[:, order], np.float32)
    rng = np.random.default_rng(seed)
    exceeded = np.zeros(len(scores))
    for _ in range(_NORMAL_DRAWS // _NORMAL_AT_ONCE):
        normal = rng.standard_normal((_NORMAL_AT_ONCE, len(noise)), np.float32)
        # Sums of draws with normal weights have the covariance of the draws.
        drawn = np.abs(normal @ ordered) / math.sqrt(len(noise))
        exceeded += (np.maximum.accumulate(drawn, axis=1) >= scores[order]).sum(axis=0)
    p_values = (1 + exceeded) / (_NORMAL_DRAWS + 1)
    adjusted = np.empty(len(scores))
    adjusted[order] = np.maximum.accumulate(p_values[::-1])[::-1]
    return adjusted


# --- standardisation ------------------------------------------------------------------------------


@dataclass(eq=False)
class _Standardised:
    """Figures as if all judged cells had the ages of all faces: (C,) values, (S, C) draws."""

    values: Floats
    draws: Floats
    bands: tuple[str, ...]


def _standardised(
    faces: ScoredFaces, one: _Figures, strata: NDArray[np.object_] | None, draws: Draws
) -> _Standardised | None:
    if strata is None or one.metric.values is None:
        return None
    own = one.metric.values(faces)
    carried = ~np.isnan(own) & (one.grouping.place >= 0) & (strata != np.array(None))
    bands, shares, columns = [], [], []
    for band in _values(strata[carried]):
        rows = carried & (strata == band)
        member = rows[:, None] & (one.grouping.place[:, None] == one.cells)
        if (member.sum(axis=0) >= _MIN_STRATUM).all():
            bands.append(band)
            shares.append(float(rows.sum()))
            columns.append(np.where(member, own[:, None], np.nan))
    if not bands or sum(shares) < _MIN_SHARED * carried.sum():
        return None
    share = np.array(shares) / sum(shares)
    once = np.ones((1, len(faces)), np.uint8)
    values = sum(s * weighted_mean(once, c)[0] for s, c in zip(share, columns, strict=True))
    spread = sum(s * weighted_mean(draws, c) for s, c in zip(share, columns, strict=True))
    return _Standardised(np.asarray(values), np.asarray(spread), tuple(bands))


# --- results --------------------------------------------------------------------------------------


def _cells(
    faces: ScoredFaces,
    grouping: _Grouping,
    figures: Sequence[tuple[int, _Figures]],
    metrics: Sequence[Metric],
    tests: _Tests,
    even: Mapping[str, _Standardised | None],
) -> Iterator[Cell]:
    places = {one.metric.name: {int(c): k for k, c in enumerate(one.cells)} for _, one in figures}
    for number, (values, count) in enumerate(zip(grouping.values, grouping.counts, strict=True)):
        held = {}
        for place, one in figures:
            column = places[one.metric.name].get(number)
            if column is not None:
                held[one.metric.name] = _cell_figure(
                    one, column, tests, place, even.get(one.metric.name)
                )
        inside = grouping.place == number
        few = [m.name for m in metrics if m.name not in held and (m.rows(faces) & inside).any()]
        yield Cell(grouping.by, values, int(count), held, tuple(few))


def _cell_figure(
    one: _Figures, column: int, tests: _Tests, place: int, even: _Standardised | None
) -> CellFigure:
    estimate = _estimate(one, column)
    p_value, adjusted = tests.p_values[place][column], tests.adjusted[place][column]
    return CellFigure(
        estimate,
        float(one.values[column] - one.all_value),
        None if np.isnan(p_value) else float(p_value),
        None if np.isnan(adjusted) else float(adjusted),
        None
        if even is None
        else _with_ends(float(even.values[column]), even.draws[:, column], estimate.count),
    )


def _estimate(one: _Figures, column: int) -> Estimate:
    value, count = float(one.values[column]), int(one.counts[column])
    clusters = int(one.clusters[column])
    if clusters < MIN_CLUSTERS:
        return Estimate(value, math.nan, math.nan, count)
    low, high = percentiles(one.draws[:, column])
    if one.metric.unit == "share" and one.metric.values is not None and low == high:
        low, high = wilson(value, clusters)
    return Estimate(value, low, high, count)


def _with_ends(value: float, samples: Floats, count: int) -> Estimate:
    return Estimate(value, *percentiles(samples), count)


def _gap(one: _Figures, adjusted: Floats, even: _Standardised | None) -> Gap:
    losses = one.metric.loss(one.values)
    worst, best = int(losses.argmax()), int(losses.argmin())
    low, high = int(one.values.argmin()), int(one.values.argmax())
    count = int(one.counts[low] + one.counts[high])
    plain = one.metric.better in ("lower", "higher")
    comparable = plain and one.values.min() > 0 and not math.isnan(one.ratio)
    standardised = None
    if even is not None:
        least, most = int(even.values.argmin()), int(even.values.argmax())
        standardised = _with_ends(
            float(even.values[most] - even.values[least]),
            even.draws[:, most] - even.draws[:, least],
            int(one.counts[least] + one.counts[most]),
        )
    return Gap(
        metric=one.metric.name,
        by=one.grouping.by,
        cells=len(one.cells),
        worst=one.grouping.values[one.cells[worst]],
        worst_value=float(one.values[worst]),
        best=one.grouping.values[one.cells[best]],
        best_value=float(one.values[best]),
        gap=_with_ends(one.gap, one.draws[:, high] - one.draws[:, low], count),
        ratio=1 / one.ratio if comparable else None,
        adjusted=None if np.isnan(adjusted).all() else float(np.nanmin(adjusted)),
        standardised=standardised,
        standardised_over=() if even is None else even.bands,
    )
