"""
Whether the default model's intervals hold the ages that they should: before and after calibration.

    python benchmarks/coverage.py FOLDER [--model default] [--keep FOLDER] [--json FOLDER]

FOLDER holds ``{utkface,fairface}-{val,test}.parquet``. Every figure is of a test file, under

    raw        the network's own probabilities
    predicted  fitted on FairFace val, one central mass for all ages of a band of predicted age
    card       the model's card as it is
    own val    fitted as ``agelens calibrate`` does, on the val file of the same data set
    both val   the same, on the val files of both data sets

as the share of ages that the interval holds and, after the slash, its mean width in years. A label
that is a range counts by the model's own probabilities within it. Marked with * are figures outside
of 88 to 92 % (all faces) or of 85 to 95 % (groups of 100 faces or more), for a level of 90 %.
With --json the tables are stored too, as coverage-utkface.json and coverage-fairface.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from agelens.bundle import CalibrationFields, find_model
from agelens.calibration import fit_age
from agelens.conformal import AGE_BAND_STARTS
from agelens.data.schema import write_text
from agelens.evaluation.evaluating import band_name
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.scoring import recalibrated, score
from agelens.evaluation.values import AGE_BANDS, NINE_RANGES, band_of, covered, interval_widths

SETS = ("utkface", "fairface")
ENOUGH = 100
ALL_FACES, GROUPS = (-0.02, 0.02), (-0.05, 0.05)
"""How far from the level a figure may be."""


def fitted(*files: ScoredFaces, age_bands: Sequence[int] = AGE_BAND_STARTS) -> CalibrationFields:
    """A calibration of the ages on all these faces."""
    return fit_age(
        np.concatenate([faces.decoded_age for faces in files]),
        np.concatenate([faces.age_min for faces in files]),
        np.concatenate([faces.age_max for faces in files]),
        age_bands=age_bands,
    )


def groups_of(faces: ScoredFaces) -> dict[str, NDArray[np.bool_]]:
    """All faces, those of each age band, and those of each race label."""
    bands = AGE_BANDS if faces.exact.any() else NINE_RANGES
    place, race = band_of(faces, bands), faces.audit["race"]
    found = {"all": faces.has_age}
    found |= {f"age {band_name(band)}": place == i for i, band in enumerate(bands)}
    found |= {f"{label}": race == label for label in sorted(set(race.tolist()))}
    return {name: rows & faces.has_age for name, rows in found.items() if rows.any()}


def figure_rows(
    faces: ScoredFaces, calibrations: Mapping[str, CalibrationFields], level: float
) -> tuple[list[list[str]], dict[str, list[str]]]:
    """Coverage and width by group, and the groups outside their bounds by calibration."""
    held = {name: recalibrated(faces, fields) for name, fields in calibrations.items()}
    outside: dict[str, list[str]] = {name: [] for name in calibrations}
    table = []
    for group, rows in groups_of(faces).items():
        low, high = ALL_FACES if group == "all" else GROUPS
        cells = [group, f"{rows.sum():,}"]
        for name, answers in held.items():
            rate = float(covered(answers, level)[rows].mean())
            width = float(interval_widths(answers, level)[rows].mean())
            off = not low - 1e-9 <= rate - level <= high + 1e-9 and rows.sum() >= ENOUGH
            outside[name] += [group] if off else []
            cells.append(f"{100 * rate:.1f}{'*' if off else ''} / {width:.1f}")
        table.append(cells)
    return table, outside


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", default="default")
    parser.add_argument("--level", type=float, default=0.9)
    parser.add_argument("--keep", type=Path, help="folder for the model's answers")
    parser.add_argument("--json", type=Path, help="folder to store the tables in")
    arguments = parser.parse_args()
    faces = {
        name: score(
            arguments.model,
            arguments.folder / f"{name}.parquet",
            kept=None if arguments.keep is None else arguments.keep / f"{name}.npz",
        )
        for name in (f"{data}-{split}" for data in SETS for split in ("val", "test"))
    }
    console = Console(width=110)
    for data in SETS:
        calibrations = {
            "raw": CalibrationFields(),
            "predicted": fitted(faces["fairface-val"], age_bands=(0,)),
            "card": find_model(arguments.model).card.calibration,
            "own val": fitted(faces[f"{data}-val"]),
            "both val": fitted(faces["utkface-val"], faces["fairface-val"]),
        }
        rows, outside = figure_rows(faces[f"{data}-test"], calibrations, arguments.level)
        columns = ["group", "faces", *calibrations]
        title = f"{data}-test: {arguments.level:.0%} intervals, % that hold the age / years wide"
        table = Table(title=title)
        for place, name in enumerate(columns):
            table.add_column(name, justify="right" if place else "left")
        for cells in rows:
            table.add_row(*cells)
        console.print(table)
        for name, groups in outside.items():
            console.print(f"outside under {name!r}: {', '.join(groups) or 'none'}")
        if arguments.json is not None:
            stored = {
                "schema": "agelens.table/1",
                "command": "python benchmarks/coverage.py FOLDER",
                "model": faces[f"{data}-test"].provenance.model,
                "card_sha256": faces[f"{data}-test"].provenance.card_sha256,
                "columns": columns,
                "rows": rows,
            }
            text = json.dumps(stored, indent=1) + "\n"
            write_text(arguments.json / f"coverage-{data}.json", text)


if __name__ == "__main__":
    main()
