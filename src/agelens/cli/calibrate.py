"""
``agelens calibrate``: temperatures and conformal tables from labelled faces into a model's card.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from agelens.cli.console import error_console, output_console, progress_bar
from agelens.cli.options import (
    AcceptLicence,
    Crops,
    DetectorName,
    FaceTables,
    Flip,
    Keep,
    ModelName,
    Samples,
)

if TYPE_CHECKING:
    from rich.table import Table

    from agelens.evaluation.bootstrap import Estimate
    from agelens.evaluation.calibrating import CalibrationReport
    from agelens.evaluation.evaluating import GroupFigures

_GROUP_FIGURES = {
    "coverage_90": "in 90 % interval, %",
    "interval_width_90": "its width, years",
    "gender_accuracy": "gender right, %",
}
"""What is shown of a group, and how it is called where there is little room."""


class Criterion(StrEnum):
    """What temperature and smoothing are fitted by."""

    nll = "nll"
    crps = "crps"


def calibrate(
    model: ModelName,
    data: FaceTables,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="CARD.toml", help="Write the calibrated card here."),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Write into the model's own card.")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Hold the worst group of this column at each level, not only the average.",
        ),
    ] = None,
    criterion: Annotated[
        Criterion, typer.Option(help="What temperature and smoothing are fitted by.")
    ] = Criterion.nll,
    levels: Annotated[
        str | None,
        typer.Option(metavar="0.5,0.9,...", help="Levels that the tables hold a mass for."),
    ] = None,
    gender: Annotated[
        bool, typer.Option("--gender/--no-gender", help="Calibrate the gender too.")
    ] = True,
    gender_threshold: Annotated[
        float | None,
        typer.Option(help="Probability that a gender label needs; as in the card when left out."),
    ] = None,
    threshold_accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Take the least threshold at which this share of labels is right."
        ),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Version in the new card; the old one when left out.")
    ] = None,
    crops: Crops = True,
    flip: Flip = False,
    detector: DetectorName = "default",
    seed: Annotated[int, typer.Option(help="Of the folds and the bootstrap.")] = 0,
    samples: Samples = 1000,
    accept_licence: AcceptLicence = False,
    keep: Keep = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for calibration.json and calibration.html: the figures."
        ),
    ] = None,
) -> None:
    """Calibrate a model on labelled faces, and show what it changes.

    Intervals then hold the age at the rate they state, for each band of predicted age and, near
    enough, for each band of true age. Figures "after" are of each face under a calibration that was
    fitted without it. Without --out or --in-place nothing is written.

    Calibrate on faces that the model was not trained on, and measure on others again.

    [bold]Examples[/]

      agelens calibrate models/ours.onnx val.parquet --in-place

      agelens calibrate cc0 val.parquet --out calibrated.toml --by race

      agelens analyze photo.jpg --model calibrated.toml
    """
    from agelens.bundle import find_model
    from agelens.errors import ArgumentError
    from agelens.evaluation.calibrating import (
        CalibrationOptions,
        check_target,
        write_calibration,
    )
    from agelens.evaluation.calibrating import calibrate as run
    from agelens.evaluation.scoring import ScoringOptions, score

    if out is not None and in_place:
        raise ArgumentError("--out and --in-place: name one of them")
    if report is not None and report.exists() and not report.is_dir():
        raise ArgumentError(f"--report {report}: is a file; name a folder")
    options = CalibrationOptions(
        by=by,
        criterion=criterion.value,
        levels=_levels(levels),
        gender=gender,
        gender_threshold=gender_threshold,
        threshold_accuracy=threshold_accuracy,
        seed=seed,
        samples=samples,
    )
    bundle = find_model(model)
    if out is not None or in_place:
        check_target(bundle, out)  # before minutes of work
    scoring = ScoringOptions(
        detector=detector, crops=crops, flip=flip, accept_licence=accept_licence
    )
    with progress_bar(f"asking {model}") as progress:
        faces = score(model, data, scoring, kept=keep, progress=progress)
    found = run(faces, bundle.card, options)
    _print(found, len(faces))
    if report is not None:
        from agelens.evaluation.calibration_page import write_calibration_html

        found.save(report / "calibration.json")
        write_calibration_html(found.to_dict(), report / "calibration.html")
        for name in ("calibration.json", "calibration.html"):
            error_console().print(f"-> {escape(str(report / name))}", soft_wrap=True)
    if out is None and not in_place:
        error_console().print("nothing written: name --out CARD.toml or --in-place")
        return
    path = write_calibration(bundle, found.fields, out, version=version)
    error_console().print(f"-> {escape(str(path))}", soft_wrap=True)


def _levels(text: str | None) -> tuple[float, ...]:
    from agelens.errors import ArgumentError

    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise ArgumentError(f"--levels {text}: write numbers such as 0.5,0.8,0.9") from error


def _print(found: CalibrationReport, count: int) -> None:
    console = output_console()
    fields = found.fields
    console.print(
        f"[bold]{escape(found.provenance['model'])}[/] on {count:,} faces: age temperature "
        f"{fields.age_temperature:g}, smoothing {fields.age_smoothing[0]:g} years and "
        f"{fields.age_smoothing[1]:g} a year of age; gender temperature "
        f"{fields.gender_temperature:g}, bias {fields.gender_bias:g}, threshold "
        f"{fields.gender_threshold:g}",
        soft_wrap=True,
    )
    console.print(_figure_table(found))
    for column in found.after.groups:
        console.print()
        console.print(_group_table(found, column))
    folds = found.settings["folds"]
    console.print(
        f"[dim]before: the card as it was; after: each face under a calibration fitted without it "
        f"({folds} folds)[/]",
        soft_wrap=True,
    )
    for note in found.notes:
        error_console().print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def _figure_table(found: CalibrationReport) -> Table:
    from agelens.evaluation.metrics import find_metric

    table = _table("", "before", "after", "95 % interval", "unit")
    for name, after in found.after.metrics.items():
        metric, before = find_metric(name), found.before.metrics.get(name)
        low, high = metric.text(after.low), metric.text(after.high)
        table.add_row(
            metric.title,
            "-" if before is None else metric.text(before.value),
            metric.text(after.value),
            "" if low == "-" else f"{low} to {high}",
            metric.shown_unit,
        )
    return table


def _group_table(found: CalibrationReport, column: str) -> Table:
    before = {group.value: group for group in found.before.groups.get(column, ())}
    after = found.after.groups[column]
    names = [name for name in _GROUP_FIGURES if any(name in group.metrics for group in after)]
    table = _table(f"by {column}", "faces", *(_GROUP_FIGURES[name] for name in names))
    for group in after:
        table.add_row(
            group.value,
            f"{group.count:,}",
            *(_change(before.get(group.value), group, name) for name in names),
        )
    return table


def _change(before: GroupFigures | None, after: GroupFigures, name: str) -> str:
    from agelens.evaluation.metrics import find_metric

    text = find_metric(name).text
    one = None if before is None else before.metrics.get(name)
    other = after.metrics.get(name)
    return f"{_value(one, text)} -> {_value(other, text)}"


def _value(found: Estimate | None, text: Callable[[float], str]) -> str:
    return "-" if found is None else text(found.value)


def _table(*heads: str) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for place, title in enumerate(heads):
        left = place == 0 or title == "unit"
        table.add_column(escape(title), justify="left" if left else "right")
    return table
