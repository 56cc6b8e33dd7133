"""
Whether corrected shares of visitors are nearer the truth than raw ones, and their intervals honest.

    python benchmarks/quantification.py FOLDER [--model agelens-s] [--keep FOLDER] [--draws 200]
    python benchmarks/quantification.py FOLDER --write [--measure fairface-val]

FOLDER holds ``{utkface,fairface}-{val,test}.parquet``. The model runs once over each file; with
--keep its answers are kept. A draw is one population: the test faces are split in halves (copies of
one picture stay together), the confusion is measured on one half, and visitors are taken from the
other, no face twice, so that their shares by age and gender follow known ones:

    any      shares of the bands drawn evenly from all that there are (Dirichlet 1)
    even     near equal shares (Dirichlet 20)
    natural  near the shares of the test faces (Dirichlet 50)

The share of women is drawn from 10 to 90 %, and varies by band. Shares for which the half has too
few faces are drawn again. Compared are the raw shares (counted by the likeliest band; by the gender
label, "uncertain" left out), the adjusted count, EM on soft answers, and the shipped correction.
Error is the total variation distance: the share of visitors who are counted in a wrong group.

With --write the model's confusion is measured on the --measure files and written beside its card.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from agelens.analytics.confusion import (
    LABELS,
    Confusion,
    confusion_path,
    measure_confusion,
    read_confusion,
    said_cells,
    true_cells,
    write_confusion,
)
from agelens.analytics.quantification import (
    adjusted_count,
    smoothed_confusion,
    soft_expected_shares,
)
from agelens.analytics.summary import Share, correct_shares, draw_shares
from agelens.bundle import find_model
from agelens.evaluation.bootstrap import wilson
from agelens.evaluation.scored import DataFile, ScoredFaces
from agelens.evaluation.scoring import score
from agelens.evaluation.values import NINE_RANGES, Band

TESTS = ("utkface-test", "fairface-test")
WIDE: tuple[Band, ...] = ((0, 9), (10, 19), (20, 29), (30, 49), (50, 100))
POPULATIONS = {"any": 1.0, "even": 20.0, "natural": 50.0}
BANDS = len(NINE_RANGES)
METHODS = ("adjusted count", "EM, soft", "corrected")
PARTS = ("age, nine bands", "age, five bands", "gender", "age x gender")

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Pool:
    """Test faces that can be counted: true band, gender, answers, and what they are copies of."""

    band: Rows
    female: Rows
    said: tuple[Rows, Rows]
    soft: Floats
    clusters: NDArray[np.int64]

    @property
    def cell(self) -> Rows:
        """True cell: 2 band + female."""
        return np.asarray(2 * self.band + self.female)

    def counts(self, rows: Rows) -> Counts:
        """Confusion counts of these faces."""
        found = np.zeros((BANDS, 2, BANDS, len(LABELS)), np.int64)
        cells = (self.band[rows], self.female[rows], self.said[0][rows], self.said[1][rows])
        np.add.at(found, cells, 1)
        return found

    def visits(self, rows: Rows) -> Counts:
        """The same faces as visits: by what was said alone."""
        return np.asarray(self.counts(rows).sum(axis=(0, 1)))


def pool(sets: Sequence[ScoredFaces]) -> Pool:
    """All countable faces of several files."""
    parts = []
    for number, faces in enumerate(sets):
        band, counted = true_cells(faces)
        rows = np.flatnonzero(counted)
        ages = np.add.reduceat(faces.age[rows], [low for low, _ in NINE_RANGES], axis=1)
        female = faces.female[rows]
        parts.append(
            (
                band[rows],
                faces.female_label[rows].astype(np.intp),
                *said_cells(ages, female, faces.gender_threshold),
                np.stack([ages * (1 - female)[:, None], ages * female[:, None]], axis=2).reshape(
                    len(rows), -1
                ),
                faces.clusters[rows] + number * 10_000_000,
            )
        )
    band, label, said_band, said_label, soft, clusters = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return Pool(band, label, (said_band, said_label), np.maximum(soft, 1e-6), clusters)


def halves(faces: Pool, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Rows of the two halves; copies of one picture are in one of them."""
    names = np.unique(faces.clusters)
    first = np.isin(faces.clusters, rng.permutation(names)[: len(names) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def population(
    faces: Pool, rows: Rows, visitors: int, weight: float, rng: np.random.Generator
) -> tuple[Floats, Rows, int]:
    """Known shares (2 BANDS,), faces that follow them, and how often the draw was repeated."""
    by_cell = [rows[faces.cell[rows] == cell] for cell in range(2 * BANDS)]
    held = np.bincount(faces.band[rows], minlength=BANDS) / len(rows)
    centre = BANDS * held if weight == POPULATIONS["natural"] else np.ones(BANDS)
    for repeated in range(1_000_000):
        bands = rng.dirichlet(weight * centre / (1 if weight == 1 else BANDS))
        middle = rng.uniform(0.1, 0.9)
        logit = np.log(middle / (1 - middle)) + 0.5 * rng.standard_normal(BANDS)
        women = 1 / (1 + np.exp(-logit))
        shares = np.stack([bands * (1 - women), bands * women], axis=1).ravel()
        wanted = rng.multinomial(visitors, shares)
        if all(n <= len(cell) for n, cell in zip(wanted, by_cell, strict=True)):
            chosen = [
                rng.choice(cell, n, replace=False) for n, cell in zip(wanted, by_cell, strict=True)
            ]
            return shares, np.concatenate(chosen), repeated
    raise SystemExit(f"no population of {visitors} visitors fits the faces; ask for fewer")


def views(shares: Floats) -> dict[str, Floats]:
    """Shares of true cells (2 BANDS,) by the parts that are reported."""
    cells = shares.reshape(BANDS, 2)
    places = [[low for low, _ in NINE_RANGES].index(low) for low, _ in WIDE]
    bands = cells.sum(axis=1)
    return dict(
        zip(PARTS, (bands, np.add.reduceat(bands, places), cells.sum(axis=0), shares), strict=True)
    )


@dataclass
class Tally:
    """Errors of each method, and whether intervals held the truth, draw by draw."""

    errors: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    held: dict[str, list[float]] = field(default_factory=dict)
    widths: dict[str, list[float]] = field(default_factory=dict)
    raw_held: dict[str, list[float]] = field(default_factory=dict)
    repeated: int = 0

    def note(self, method: str, part: str, shares: Floats, truth: Floats) -> None:
        """Error of one method's shares."""
        distance = float(np.abs(shares - truth).sum() / 2)
        self.errors.setdefault((method, part), []).append(distance)

    def note_shares(self, part: str, shares: Sequence[Share], truth: Floats) -> None:
        """Raw and corrected shares with their intervals."""
        self.note("raw", part, np.array([share.raw.value for share in shares]), truth)
        self.note("corrected", part, np.array([s.corrected.value for s in shares]), truth)
        ends = np.array([(share.corrected.low, share.corrected.high) for share in shares])
        inside = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        self.held.setdefault(part, []).append(float(inside.mean()))
        self.widths.setdefault(part, []).append(float((ends[:, 1] - ends[:, 0]).mean()))
        raw = np.array([(share.raw.low, share.raw.high) for share in shares])
        raw_inside = (raw[:, 0] <= truth) & (truth <= raw[:, 1])
        self.raw_held.setdefault(part, []).append(float(raw_inside.mean()))


def simulate(faces: Pool, visitors: int, weight: float, draws: int, seed: int) -> Tally:
    """Draw populations and correct each."""
    rng = np.random.default_rng(seed)
    tally = Tally()
    for number in range(draws):
        measured, others = halves(faces, rng)
        shares, rows, repeated = population(faces, others, visitors, weight, rng)
        tally.repeated += repeated
        truth = views(shares)
        confusion = Confusion("", "", "", NINE_RANGES, faces.counts(measured), ())
        said = faces.visits(rows)
        drawn = draw_shares(said, confusion, seed=number)
        answer = correct_shares(said, confusion, draws=drawn)
        wide = correct_shares(said, confusion, bands=WIDE, draws=drawn)
        told = (answer.age, wide.age, answer.gender, answer.joint)
        for part, part_shares in zip(PARTS, told, strict=True):
            tally.note_shares(part, part_shares, truth[part])
        matrix = smoothed_confusion(confusion.counts, 10.0)
        matrix /= matrix.sum(axis=1, keepdims=True)
        points = {
            "adjusted count": adjusted_count(matrix, said.ravel()),
            "EM, soft": soft_expected_shares(faces.soft[rows], faces.soft[measured].mean(axis=0)),
        }
        for method, found in points.items():
            for part, value in views(found).items():
                tally.note(method, part, value, truth[part])
    return tally


def result_rows(tally: Tally, draws: int) -> Iterator[list[str]]:
    """One row a part."""
    for part in PARTS:
        raw = np.array(tally.errors["raw", part])
        cells = [part, f"{100 * raw.mean():.1f}"]
        for method in METHODS:
            found = np.array(tally.errors[method, part])
            cells.append(f"{100 * found.mean():.1f} / {100 * (found < raw).mean():.1f}")
        low, high = wilson(float((np.array(tally.errors["corrected", part]) < raw).mean()), draws)
        cells.append(f"{100 * low:.0f}-{100 * high:.0f}")
        cells.append(f"{100 * np.mean(tally.held[part]):.1f}")
        cells.append(f"{100 * np.mean(tally.widths[part]):.1f}")
        cells.append(f"{100 * np.mean(tally.raw_held[part]):.1f}")
        yield cells


def measured_together(sets: Sequence[ScoredFaces]) -> Confusion:
    """One confusion from several files."""
    found = [measure_confusion(faces) for faces in sets]
    files: tuple[DataFile, ...] = sum((one.data for one in found), ())
    classes = {one.licence_class for one in found}
    return Confusion(
        model=found[0].model,
        model_sha256=found[0].model_sha256,
        card_sha256=found[0].card_sha256,
        bands=found[0].bands,
        counts=np.sum([one.counts for one in found], axis=0),
        data=files,
        licence_class=found[0].licence_class if len(classes) == 1 else "research",
        date=found[0].date,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", default="agelens-s")
    parser.add_argument("--keep", type=Path, help="folder for the model's answers")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--visitors", type=int, nargs="+", default=[300])
    parser.add_argument("--populations", nargs="+", choices=POPULATIONS, default=[*POPULATIONS])
    parser.add_argument("--files", nargs="+", default=[*TESTS], help="files of the test faces")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measure", nargs="+", default=["fairface-val"])
    arguments = parser.parse_args()

    def scored(name: str) -> ScoredFaces:
        kept = None if arguments.keep is None else arguments.keep / f"{name}.npz"
        return score(arguments.model, arguments.folder / f"{name}.parquet", kept=kept)

    console = Console(width=130)
    if arguments.write:
        bundle = find_model(arguments.model)
        path = confusion_path(bundle)
        write_confusion(measured_together([scored(name) for name in arguments.measure]), path)
        written = read_confusion(path, bundle=bundle)
        console.print(f"{path}: {int(written.counts.sum()):,} faces, by band and gender:")
        console.print(written.faces.T.tolist())
        return
    faces = pool([scored(name) for name in arguments.files])
    console.print(
        f"{len(faces.band):,} faces; by band, male and female: "
        f"{np.bincount(faces.cell, minlength=2 * BANDS).reshape(BANDS, 2).T.tolist()}"
    )
    for visitors in arguments.visitors:
        for name in arguments.populations:
            tally = simulate(faces, visitors, POPULATIONS[name], arguments.draws, arguments.seed)
            table = Table(
                title=f"populations {name!r}, {visitors} visitors, {arguments.draws} draws "
                f"({tally.repeated} repeated): error in % of visitors / % of draws nearer than raw"
            )
            for column in ("shares", "raw", *METHODS, "95 %", "held %", "width", "raw held %"):
                table.add_column(column, justify="left" if column == "shares" else "right")
            for row in result_rows(tally, arguments.draws):
                table.add_row(*row)
            console.print(table)


if __name__ == "__main__":
    main()
