"""
Whether corrected shares of visitors are nearer the truth than raw ones, and their intervals honest.

    python benchmarks/quantification.py FOLDER [--model agelens-s] [--keep FOLDER] [--draws 200]
    python benchmarks/quantification.py FOLDER --files fairface-val utkface-val     (to choose on)
    python benchmarks/quantification.py FOLDER --write [--measure fairface-val]

FOLDER holds ``{utkface,fairface}-{val,test}.parquet``. The model runs once over each file; with
--keep its answers are kept. A draw is one population with known shares, of which a number of
visitors come; its shares are taken back by a confusion that was measured on other faces.

    rates    visitors answer at the model's rates on the --files faces; the confusion is measured on
             as many faces of each cell as that beside the model's card, drawn at the same rates. So
             there can be any number of visitors: a week of one camera, or a month of a shop
    faces    the faces are split in halves (copies of one picture stay together); the confusion is
             measured on one, and visitors are taken from the other, no face twice: 300 at most

Populations, none of which is taken from the faces:

    any      shares of the bands drawn evenly from all that there are (Dirichlet 1), the share of
             women from 10 to 90 %, varying by band
    shops    one of twelve kinds of places (SHOPS), each time a little different
    natural  near the shares of the faces (Dirichlet 50): what a raw count does best, because a
             model's mistakes cancel out on the mix that it was fitted to

Compared are the raw shares (counted by the likeliest band; by the gender label, "uncertain" left
out), the adjusted count, EM with the true rates ("known": no method that sees the counts alone can
do much better), and the shipped correction. Error is the total variation distance: the share of
visitors who are counted in a wrong group. Raw gender shares are often right to a point or two, and
then nothing can be nearer; the last column counts the draws in which they are off by over 2 points.

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
    expected_shares,
    smoothed_confusion,
)
from agelens.analytics.summary import Share, correct_shares, draw_shares
from agelens.bundle import find_model
from agelens.evaluation.bootstrap import wilson
from agelens.evaluation.scored import DataFile, ScoredFaces
from agelens.evaluation.scoring import score
from agelens.evaluation.values import NINE_RANGES, Band

TESTS = ("utkface-test", "fairface-test")
WIDE: tuple[Band, ...] = ((0, 9), (10, 19), (20, 29), (30, 49), (50, 100))
POPULATIONS = ("any", "shops", "natural")
BANDS = len(NINE_RANGES)
METHODS = ("adjusted count", "known", "corrected")
FAR = 0.02
"""Raw shares that are off by more are wrong enough to be seen."""
SHOPS = {
    "toy shop": (
        (8, 30, 8, 8, 24, 14, 4, 3, 1),
        (48, 47, 47, 62, 64, 62, 60, 60, 58),
    ),
    "school": (
        (0, 35, 45, 4, 7, 5, 3, 1, 0),
        (49, 49, 49, 70, 70, 70, 68, 60, 50),
    ),
    "university": (
        (0, 0, 22, 58, 10, 4, 3, 2, 1),
        (50, 50, 55, 52, 48, 42, 38, 33, 30),
    ),
    "barber": (
        (1, 8, 18, 28, 20, 12, 7, 4, 2),
        (10, 8, 5, 6, 7, 8, 8, 8, 8),
    ),
    "perfumery": (
        (1, 1, 10, 26, 24, 18, 11, 6, 3),
        (60, 60, 80, 78, 76, 76, 78, 80, 82),
    ),
    "care home": (
        (1, 2, 2, 8, 10, 12, 14, 12, 39),
        (50, 50, 55, 75, 72, 70, 66, 62, 70),
    ),
    "football ground": (
        (0, 5, 15, 24, 21, 16, 11, 6, 2),
        (40, 30, 22, 20, 17, 16, 14, 12, 10),
    ),
    "nursery": (
        (32, 28, 2, 10, 20, 5, 2, 1, 0),
        (48, 48, 60, 80, 74, 70, 75, 70, 60),
    ),
    "pensioners' club": (
        (0, 0, 0, 1, 2, 4, 10, 33, 50),
        (50, 50, 50, 60, 60, 62, 60, 60, 63),
    ),
    "games shop": (
        (1, 8, 33, 33, 15, 6, 2, 1, 1),
        (40, 25, 18, 20, 24, 30, 35, 40, 40),
    ),
    "fashion": (
        (2, 3, 22, 33, 18, 11, 7, 3, 1),
        (60, 65, 84, 80, 76, 74, 76, 78, 80),
    ),
    "builders' market": (
        (1, 3, 4, 14, 24, 23, 18, 10, 3),
        (40, 40, 25, 20, 20, 20, 22, 24, 25),
    ),
}
"""Visitors of a kind of place in %, by band, and women among those of each; made up beforehand."""
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
                faces.clusters[rows] + number * 10_000_000,
            )
        )
    band, label, said_band, said_label, clusters = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return Pool(band, label, (said_band, said_label), clusters)


def halves(faces: Pool, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Rows of the two halves; copies of one picture are in one of them."""
    names = np.unique(faces.clusters)
    first = np.isin(faces.clusters, rng.permutation(names)[: len(names) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def known_shares(name: str, held: Floats, rng: np.random.Generator) -> Floats:
    """(2 BANDS,) shares of the true cells of one population; ``held`` are those of the faces."""
    if name == "shops":
        bands, women = list(SHOPS.values())[rng.integers(len(SHOPS))]
        weights = 0.4 * np.array(bands) + 0.3
        middle = np.array(women) / 100
        logits = np.log(middle / (1 - middle)) + 0.3 * rng.standard_normal()
        logits = logits + 0.3 * rng.standard_normal(BANDS)
    else:
        weights = np.ones(BANDS) if name == "any" else 50 * held
        share = rng.uniform(0.1, 0.9)
        logits = np.log(share / (1 - share)) + 0.5 * rng.standard_normal(BANDS)
    of_women = 1 / (1 + np.exp(-logits))
    drawn = rng.dirichlet(weights)
    return np.stack([drawn * (1 - of_women), drawn * of_women], axis=1).ravel()


@dataclass(frozen=True, eq=False)
class Meeting:
    """One population, what was said of its visitors, and the confusion to correct it by."""

    shares: Floats
    said: Counts
    measured: Counts
    rates: Floats


def meet_faces(faces: Pool, name: str, visitors: int, rng: np.random.Generator) -> Meeting:
    """Visitors taken from one half of the faces, the confusion measured on the other."""
    measured, rows = halves(faces, rng)
    by_cell = [rows[faces.cell[rows] == cell] for cell in range(2 * BANDS)]
    held = np.bincount(faces.band[rows], minlength=BANDS) / len(rows)
    for _ in range(1_000_000):
        shares = known_shares(name, held, rng)
        wanted = rng.multinomial(visitors, shares)
        if all(n <= len(cell) for n, cell in zip(wanted, by_cell, strict=True)):
            chosen = [
                rng.choice(cell, n, replace=False) for n, cell in zip(wanted, by_cell, strict=True)
            ]
            said = faces.visits(np.concatenate(chosen))
            return Meeting(shares, said, faces.counts(measured), rates_of(faces))
    raise SystemExit(f"no population of {visitors} visitors fits the faces; ask for fewer")


def meet_rates(
    faces: Pool, name: str, visitors: int, like: Counts, rng: np.random.Generator
) -> Meeting:
    """Visitors and faces to measure on, both drawn at the model's rates; ``like`` (BANDS, 2)."""
    rates = rates_of(faces)
    held = np.bincount(faces.band, minlength=BANDS) / len(faces.band)
    shares = known_shares(name, held, rng)
    said = rng.multinomial(visitors, shares @ rates).reshape(BANDS, len(LABELS))
    drawn = [rng.multinomial(n, row) for n, row in zip(like.ravel(), rates, strict=True)]
    return Meeting(shares, said, np.array(drawn).reshape(BANDS, 2, BANDS, len(LABELS)), rates)


def rates_of(faces: Pool) -> Floats:
    """(2 BANDS, C) how often each answer is given to faces of each true cell."""
    counts = faces.counts(np.arange(len(faces.band))).reshape(2 * BANDS, -1)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


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
    mixing: list[float] = field(default_factory=list)

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


def simulate(meetings: Iterator[Meeting]) -> Tally:
    """Correct each population's answers."""
    tally = Tally()
    for number, met in enumerate(meetings):
        truth = views(met.shares)
        confusion = Confusion("", "", "", NINE_RANGES, met.measured, ())
        drawn = draw_shares(met.said, confusion, seed=number)
        answer = correct_shares(met.said, confusion, draws=drawn)
        wide = correct_shares(met.said, confusion, bands=WIDE, draws=drawn)
        told = (answer.age, wide.age, answer.gender, answer.joint)
        for part, part_shares in zip(PARTS, told, strict=True):
            tally.note_shares(part, part_shares, truth[part])
        matrix = smoothed_confusion(confusion.counts)
        matrix /= matrix.sum(axis=1, keepdims=True)
        points = {
            "adjusted count": adjusted_count(matrix, met.said.ravel()),
            "known": expected_shares(met.rates, met.said.ravel()),
        }
        for method, found in points.items():
            for part, value in views(found).items():
                tally.note(method, part, value, truth[part])
        tally.mixing.append(answer.mixing)
    return tally


def result_rows(tally: Tally, draws: int) -> Iterator[list[str]]:
    """One row a part."""
    for part in PARTS:
        raw = np.array(tally.errors["raw", part])
        corrected = np.array(tally.errors["corrected", part])
        cells = [part, f"{100 * raw.mean():.1f}"]
        for method in METHODS:
            found = np.array(tally.errors[method, part])
            cells.append(f"{100 * found.mean():.1f} / {100 * (found < raw).mean():.1f}")
        low, high = wilson(float((corrected < raw).mean()), draws)
        cells.append(f"{100 * low:.0f}-{100 * high:.0f}")
        cells.append(f"{100 * np.mean(tally.held[part]):.1f}")
        cells.append(f"{100 * np.mean(tally.widths[part]):.1f}")
        cells.append(f"{100 * np.mean(tally.raw_held[part]):.1f}")
        far = raw > FAR
        share = (corrected < raw)[far].mean() if far.any() else float("nan")
        cells.append(f"{100 * share:.1f} of {far.sum()}")
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
    parser.add_argument("--visitors", type=int, nargs="+", default=[3000, 30_000])
    parser.add_argument("--populations", nargs="+", choices=POPULATIONS, default=[*POPULATIONS])
    parser.add_argument("--files", nargs="+", default=[*TESTS], help="files of the test faces")
    parser.add_argument("--ways", nargs="+", choices=("rates", "faces"), default=["rates", "faces"])
    parser.add_argument("--times", type=int, default=1, help="measure on so many times the faces")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measure", nargs="+", default=["fairface-val"])
    arguments = parser.parse_args()

    def scored(name: str) -> ScoredFaces:
        kept = None if arguments.keep is None else arguments.keep / f"{name}.npz"
        return score(arguments.model, arguments.folder / f"{name}.parquet", kept=kept)

    console = Console(width=150)
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
    like = arguments.times * read_confusion(confusion_path(find_model(arguments.model))).faces
    console.print(f"the confusion is measured on {int(like.sum()):,} faces: {like.T.tolist()}")
    runs = [("rates", visitors) for visitors in arguments.visitors] + [("faces", 300)]
    for way, visitors in runs:
        for name in arguments.populations if way in arguments.ways else ():
            rng = np.random.default_rng(arguments.seed)
            meetings = (
                meet_faces(faces, name, visitors, rng)
                if way == "faces"
                else meet_rates(faces, name, visitors, like, rng)
                for _ in range(arguments.draws)
            )
            tally = simulate(meetings)
            table = Table(
                title=f"{way}, populations {name!r}, {visitors:,} visitors, {arguments.draws} draws"
                f" (R-hat {np.median(tally.mixing):.2f} in the middle, at worst "
                f"{max(tally.mixing):.2f}): error in % of visitors / % of draws nearer than raw"
            )
            columns = ("raw", *METHODS, "95 %", "held %", "width", "raw held %", "raw off > 2")
            for column in ("shares", *columns):
                table.add_column(column, justify="left" if column == "shares" else "right")
            for row in result_rows(tally, arguments.draws):
                table.add_row(*row)
            console.print(table)


if __name__ == "__main__":
    main()
