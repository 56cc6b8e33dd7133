"""
Labels most likely wrong: out-of-fold predictions against what the rows say.

After Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
JAIR 2021: a label is doubted when a model that never saw it gives another class at least the
confidence it usually has in that class. Ages are ordered, so here a label is also measured by how
far out it lies in the predicted distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agelens.data.duplicates import DuplicateGroup, RowSets
from agelens.data.schema import FaceTable, picture_source
from agelens.data.workers import Progress
from agelens.errors import ArgumentError, DataError, ImageError, MissingExtra
from agelens.images import load_image
from agelens.results import AGE_COUNT

BAND_STARTS: Final = (0, 3, 10, 20, 30, 40, 50, 60, 70)
"""Age bands that count as classes: those of FairFace."""

_LEAST_SPREAD: Final = 2.0
_MOST_COMPONENTS: Final = 256


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model that did not see a row says of it.

    Attributes:
        ages: (rows, 101) float64 distributions over ages.
        female: (rows,) float64 probability of "female"; NaN where it says nothing.
    """

    ages: NDArray[np.float64]
    female: NDArray[np.float64]


@dataclass(frozen=True)
class DoubtfulLabel:
    """One label that a model contradicts.

    Attributes:
        row: Its row.
        column: "age" or "gender".
        given: The label.
        expected: What the model expects instead.
        doubt: 0..1, the higher the less the label fits; comparable within a column only.
        flagged: True when confident learning calls it an error; the others are merely next in line.
    """

    row: int
    column: str
    given: str
    expected: str
    doubt: float
    flagged: bool

    def to_dict(self, name: str) -> dict[str, str | float | bool]:
        """Wire form, with the row's name."""
        return {
            "row": name,
            "column": self.column,
            "given": self.given,
            "expected": self.expected,
            "doubt": round(self.doubt, 6),
            "flagged": self.flagged,
        }


def load_predictions(path: Path, rows: int) -> Predictions:
    """Read out-of-fold predictions from a NumPy ``.npz`` with ``ages`` and ``female``.

    Raises:
        DataError: It is no such file, or holds another number of rows.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            ages, female = np.asarray(held["ages"]), np.asarray(held["female"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: is no .npz with 'ages' and 'female': {error}") from error
    if ages.shape != (rows, AGE_COUNT) or female.shape != (rows,):
        raise DataError(
            f"{path}: holds ages {ages.shape} and female {female.shape}, expected "
            f"({rows}, {AGE_COUNT}) and ({rows},)"
        )
    return Predictions(ages.astype(np.float64), female.astype(np.float64))


def rank_doubtful_ages(
    ages: ArrayLike, age_min: Sequence[int | None], age_max: Sequence[int | None]
) -> list[DoubtfulLabel]:
    """Age labels from the most to the least doubtful; rows without an age are left out.

    The doubt is 1 minus the two-sided tail probability of the label: of a distribution, the mass
    that lies no nearer its middle than the label does. A label is flagged when its tail is under
    5 % and another age band gets at least the confidence that is usual for faces labelled so.

    Args:
        ages: (rows, 101) out-of-fold distributions.
        age_min: Lowest age of each label, or None.
        age_max: Highest age.

    Raises:
        ArgumentError: The shapes differ, or the distributions do not sum to 1.
    """
    table = _checked_ages(ages, len(age_min))
    if len(age_min) != len(age_max):
        raise ArgumentError(f"got {len(age_min)} lowest and {len(age_max)} highest ages")
    known = [
        (row, min(low, AGE_COUNT - 1), min(high, AGE_COUNT - 1))
        for row, (low, high) in enumerate(zip(age_min, age_max, strict=True))
        if low is not None and high is not None
    ]
    if not known:
        return []
    rows, low, high = (np.array(part) for part in zip(*known, strict=True))
    predicted = table[rows]
    tail = _tail(predicted, low, high)
    given = np.searchsorted(BAND_STARTS, (low + high) / 2, side="right") - 1
    bands = np.add.reduceat(predicted, BAND_STARTS, axis=1)
    other = _confident_class(bands, given)
    flagged = (tail < 0.05) & (other != given)
    means = predicted @ np.arange(AGE_COUNT)
    found = [
        DoubtfulLabel(
            int(rows[at]),
            "age",
            str(low[at]) if low[at] == high[at] else f"{low[at]}-{high[at]}",
            f"about {means[at]:.0f}",
            float(1 - tail[at]),
            bool(flagged[at]),
        )
        for at in np.lexsort((rows, tail))
    ]
    return sorted(found, key=lambda label: not label.flagged)


def rank_doubtful_genders(female: ArrayLike, gender: Sequence[str | None]) -> list[DoubtfulLabel]:
    """Gender labels from the most to the least doubtful; rows without either are left out.

    The doubt is the probability of the other label. It is flagged when it reaches the confidence
    that is usual for faces labelled so.

    Args:
        female: (rows,) out-of-fold probability of "female".
        gender: Label of each row, or None.

    Raises:
        ArgumentError: The lengths differ.
    """
    probability = np.asarray(female, np.float64)
    if probability.shape != (len(gender),):
        raise ArgumentError(f"got {probability.shape} probabilities and {len(gender)} labels")
    rows = np.array(
        [r for r, g in enumerate(gender) if g is not None and math.isfinite(probability[r])],
        dtype=np.intp,
    )
    if len(rows) == 0:
        return []
    given = np.array([int(gender[row] == "female") for row in rows])
    classes = np.stack([1 - probability[rows], probability[rows]], axis=1)
    doubt = 1 - classes[np.arange(len(rows)), given]
    flagged = _confident_class(classes, given) != given
    names = ("male", "female")
    found = [
        DoubtfulLabel(
            int(rows[at]),
            "gender",
            names[given[at]],
            names[1 - given[at]],
            float(doubt[at]),
            bool(flagged[at]),
        )
        for at in np.lexsort((rows, -doubt))
    ]
    return sorted(found, key=lambda label: not label.flagged)


def _checked_ages(ages: ArrayLike, rows: int) -> NDArray[np.float64]:
    table = np.asarray(ages, np.float64)
    if table.shape != (rows, AGE_COUNT):
        raise ArgumentError(f"expected ({rows}, {AGE_COUNT}) age probabilities, got {table.shape}")
    if not np.isfinite(table).all() or table.min(initial=0) < 0:
        raise ArgumentError("age probabilities must be finite and not negative")
    if rows and np.abs(table.sum(1) - 1).max() > 1e-3:
        raise ArgumentError("age probabilities must sum to 1 in each row")
    return table


def _tail(
    ages: NDArray[np.float64], low: NDArray[np.intp], high: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Two-sided tail probability of labels: twice the mass on their far side, at most 1."""
    upto = np.cumsum(ages, axis=1)
    each = np.arange(len(ages))
    below = upto[each, high]
    above = 1 - np.where(low > 0, upto[each, np.maximum(low - 1, 0)], 0.0)
    tail: NDArray[np.float64] = np.clip(2 * np.minimum(below, above), 0, 1)
    return tail


def _confident_class(classes: NDArray[np.float64], given: NDArray[np.intp]) -> NDArray[np.intp]:
    """Class of each row by confident learning, the given one where no other is confident.

    A class is confident in a row when its probability reaches the mean that it has over the rows
    labelled with it; among several the most probable one counts.
    """
    count = classes.shape[1]
    usual = np.array(
        [
            classes[given == label, label].mean() if (given == label).any() else np.inf
            for label in range(count)
        ]
    )
    confident = np.where(classes >= usual, classes, -np.inf)
    best = confident.argmax(axis=1)
    # Northcutt et al.: where no class is confident, the row is not counted.
    return np.where(np.isneginf(confident.max(axis=1)), given, best)


# --- predictions without a network ----------------------------------------------------------------


def predict_out_of_fold(
    features: ArrayLike,
    age_min: Sequence[int | None],
    age_max: Sequence[int | None],
    gender: Sequence[str | None],
    *,
    groups: Sequence[int | str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Predictions:
    """Predict every row by simple models that were fitted without it.

    Ridge regression of the middle of the age label, with a normal distribution as wide as its
    leave-one-out errors at that predicted age; logistic regression of the gender.

    Args:
        features: (rows, dimensions) numbers that say something of a face, such as the embeddings
            of any network that was not trained on these labels, or ``describe_chip``.
        age_min: Lowest age of each label, or None.
        age_max: Highest age.
        gender: Label, or None.
        groups: Rows of one group (a person, copies of a picture) are always left out together.
        folds: Parts, 2 and more.
        seed: Of the assignment to parts.

    Raises:
        ArgumentError: The shapes differ.
        DataError: There are fewer labelled groups than folds.
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.model_selection import GroupKFold
    except ImportError as error:
        raise MissingExtra("eval", "the label-noise audit without a network") from error
    table = np.asarray(features, np.float32)
    rows = len(age_min)
    if table.ndim != 2 or not len(table) == rows == len(age_max) == len(gender):
        raise ArgumentError(f"got features {table.shape} for {rows} ages and {len(gender)} genders")
    keys = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    if len(np.unique(keys)) < folds or folds < 2:
        raise DataError(f"{len(np.unique(keys))} groups of faces are too few for {folds} folds")
    middle = np.array(
        [
            np.nan if low is None or high is None else (low + high) / 2
            for low, high in zip(age_min, age_max, strict=True)
        ]
    )
    female = np.array([np.nan if g is None else float(g == "female") for g in gender])
    ages = np.full((rows, AGE_COUNT), 1 / AGE_COUNT)
    probability = np.full(rows, np.nan)
    splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    for train, held in splitter.split(table, groups=keys):
        mean, spread = table[train].mean(0), table[train].std(0)
        scale = np.where(spread > 1e-9, spread, np.float32(1))
        fit, ask = _reduced((table[train] - mean) / scale, (table[held] - mean) / scale)
        ages[held] = _age_distributions(fit, middle[train], ask)
        probability[held] = _female_probabilities(fit, female[train], ask)
    return Predictions(ages, probability)


def _reduced(
    fit: NDArray[np.float32], ask: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features as their first principal components, those of the fitted part."""
    from sklearn.decomposition import PCA

    if min(fit.shape) > _MOST_COMPONENTS:
        model = PCA(_MOST_COMPONENTS, svd_solver="covariance_eigh").fit(fit)
        fit, ask = model.transform(fit), model.transform(ask)
    return fit.astype(np.float64), ask.astype(np.float64)


def _age_distributions(
    fit: NDArray[np.float64], middle: NDArray[np.float64], ask: NDArray[np.float64]
) -> NDArray[np.float64]:
    from sklearn.linear_model import RidgeCV

    known = np.isfinite(middle)
    if known.sum() < 10:
        return np.full((len(ask), AGE_COUNT), 1 / AGE_COUNT)
    model = RidgeCV(alphas=np.logspace(-1, 5, 7), store_cv_results=True)
    model.fit(fit[known], middle[known])
    best = int(np.argmin(model.cv_results_.mean(0)))
    errors = np.sqrt(model.cv_results_[:, best])
    centre = model.predict(ask)
    spread = _spread_at(model.predict(fit[known]), errors, centre)
    edges = (np.arange(1, AGE_COUNT)[None] - 0.5 - centre[:, None]) / spread[:, None]
    below = _normal_cdf(edges)
    ones = np.ones((len(ask), 1))
    table: NDArray[np.float64] = np.diff(np.concatenate([0 * ones, below, ones], axis=1), axis=1)
    return table


def _spread_at(
    predicted: NDArray[np.float64], errors: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Typical error near a predicted age: medians over tenths of the predictions, interpolated.

    Medians, since the means are what wrong labels would widen first.
    """
    parts = np.array_split(np.argsort(predicted, kind="stable"), min(10, len(predicted)))
    at = np.array([predicted[part].mean() for part in parts])
    # The median of a normal distribution's absolute error is 0.6745 of its spread.
    width = np.array([np.median(np.abs(errors[part])) / 0.6745 for part in parts])
    spread: NDArray[np.float64] = np.maximum(np.interp(wanted, at, width), _LEAST_SPREAD)
    return spread


def _normal_cdf(z: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import ndtr

    values: NDArray[np.float64] = ndtr(z)
    return values


def _female_probabilities(
    fit: NDArray[np.float64], female: NDArray[np.float64], ask: NDArray[np.float64]
) -> NDArray[np.float64]:
    from sklearn.linear_model import LogisticRegression

    known = np.isfinite(female)
    if len(np.unique(female[known])) < 2:
        return np.full(len(ask), np.nan)
    model = LogisticRegression(C=0.01, max_iter=300)
    model.fit(fit[known], female[known])
    probabilities: NDArray[np.float64] = model.predict_proba(ask)[:, 1]
    return probabilities


def describe_chip(chip: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Numbers that say something of an aligned face, for audits without a network.

    Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) of the middle of a prepared chip:
    8 x 8 cells of 9 directions, normalised over blocks of 2 x 2 cells; and the mean colours of 4 x
    4 fields.

    Args:
        chip: (size, size, 3) uint8 RGB, prepared with a margin of about 0.7.

    Returns:
        (1812,) float32.
    """
    import cv2

    side = chip.shape[0]
    edge = round(side * _MIDDLE_FROM)
    face = cv2.resize(chip[edge : side - edge, edge : side - edge], (96, 96))
    colours = cv2.resize(face, (4, 4), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.concatenate([_gradients(grey), colours.ravel()])


_FEATURES: Final = 1812
_MIDDLE_FROM: Final = 0.2
"""Share of a chip's side to leave away on each side, so that little beyond the head is seen."""


def _gradients(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    dy, dx = np.gradient(grey)
    strength = np.hypot(dx, dy)
    direction = (np.arctan2(dy, dx) % np.pi) / np.pi * 9
    lower = np.floor(direction).astype(int)
    weight = direction - lower
    cell = np.arange(96) // 12
    cells = cell[:, None] * 8 + cell[None]
    bins = np.zeros(64 * 9)
    for part, share in ((lower % 9, 1 - weight), ((lower + 1) % 9, weight)):
        bins += np.bincount(
            (cells * 9 + part).ravel(), weights=(strength * share).ravel(), minlength=64 * 9
        )
    grid = bins.reshape(8, 8, 9)
    blocks = np.concatenate([grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:]], axis=2)
    norm = np.sqrt((blocks**2).sum(axis=2, keepdims=True) + 1.0)
    described: NDArray[np.float32] = (blocks / norm).ravel().astype(np.float32)
    return described


def describe_faces(table: FaceTable, *, progress: Progress | None = None) -> NDArray[np.float32]:
    """``describe_chip`` of every picture of a table of prepared faces.

    Args:
        table: Opened on a folder of prepared shards.
        progress: Told rows done and rows in all.

    Returns:
        (rows, 1812) float32.

    Raises:
        DataError: A picture cannot be read.
    """
    described = np.zeros((table.num_rows, _FEATURES), np.float32)
    for start, batch in table.batches(["image", "path"]):
        for offset, row in enumerate(batch.to_pylist()):
            number = start + offset
            source = picture_source(row["image"], row["path"], table.locate(number)[0])
            try:
                described[number] = describe_chip(load_image(source).pixels)
            except ImageError as error:
                raise DataError(f"{table.name_of(number)}: {error}") from error
        if progress is not None:
            progress(start + batch.num_rows, table.num_rows)
    return described


# --- a whole table --------------------------------------------------------------------------------


def audit_labels(
    table: FaceTable,
    predictions: Predictions | None = None,
    *,
    split: str | None = None,
    duplicates: Sequence[DuplicateGroup] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[DoubtfulLabel]:
    """Age and gender labels of a table, from the most to the least doubtful of each.

    Args:
        table: Faces; prepared ones when there are no ``predictions``.
        predictions: Out-of-fold ones for every row of the table; None makes them without a network.
        split: Judge the rows of this split only.
        duplicates: Copies, which are never used to predict each other.
        seed: Of the folds.
        progress: Told rows described and rows in all.

    Raises:
        DataError: A picture cannot be read, or there are too few faces.
        MissingExtra: scikit-learn is not installed and there are no predictions.
    """
    columns = ["age_min", "age_max", "gender", "subject", "dataset", "split"]
    labels = table.labels(columns).to_pydict()
    if predictions is None:
        predictions = predict_out_of_fold(
            describe_faces(table, progress=progress),
            labels["age_min"],
            labels["age_max"],
            labels["gender"],
            groups=_together(labels["dataset"], labels["subject"], duplicates),
            seed=seed,
        )
    judged = [split is None or name == split for name in labels["split"]]
    hidden = {
        name: [
            value if wanted else None for value, wanted in zip(labels[name], judged, strict=True)
        ]
        for name in ("age_min", "age_max", "gender")
    }
    return [
        *rank_doubtful_ages(predictions.ages, hidden["age_min"], hidden["age_max"]),
        *rank_doubtful_genders(predictions.female, hidden["gender"]),
    ]


def _together(
    datasets: Sequence[str], subjects: Sequence[str | None], duplicates: Sequence[DuplicateGroup]
) -> list[int]:
    """A group number for each row: its person's and its copies'."""
    sets = RowSets(len(datasets))
    first: dict[tuple[str, str], int] = {}
    for row, (dataset, subject) in enumerate(zip(datasets, subjects, strict=True)):
        if subject is not None:
            sets.join(first.setdefault((dataset, subject), row), row)
    for group in duplicates:
        for row in group.rows[1:]:
            sets.join(group.rows[0], row)
    numbers = [0] * len(datasets)
    for number, rows in enumerate(sets.all()):
        for row in rows:
            numbers[row] = number
    return numbers
