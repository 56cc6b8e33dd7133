"""
``agelens evaluate``: all the evidence about a model from labelled faces, as JSON and as a page.
"""

from __future__ import annotations

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
    from collections.abc import Sequence

    from rich.table import Table

    from agelens.evaluation.bootstrap import Estimate
    from agelens.evaluation.evaluating import EvaluationResult
    from agelens.evaluation.metrics import Metric

_GROUP_COLUMNS = ("age_mae", "age_bias", "range_distance", "coverage_90", "gender_accuracy")


def evaluate(
    model: ModelName,
    data: FaceTables,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for evaluation.json and evaluation.html."),
    ],
    compare: Annotated[
        str | None,
        typer.Option(metavar="MODEL_B", help="Another model: say which of the two is better."),
    ] = None,
    crops: Crops = True,
    flip: Flip = False,
    detector: DetectorName = "default",
    samples: Samples = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    accept_licence: AcceptLicence = False,
    pictures: Annotated[
        bool,
        typer.Option("--pictures", help="Show the worst cases' faces in the page: personal data."),
    ] = False,
    keep: Keep = None,
) -> None:
    """Measure a model on labelled faces: errors, calibration, groups, with 95 % intervals.

    All faces with an estimate count, also those on which analyze would abstain. OUT gets
    evaluation.json with every figure, and evaluation.html made of it.

    [bold]Examples[/]

      agelens evaluate cc0 utkface-test.parquet --out results/

      agelens evaluate models/ours.onnx faces.parquet --out results/ --compare cc0
    """
    from agelens.errors import ArgumentError
    from agelens.evaluation.evaluating import evaluate as run
    from agelens.evaluation.report import write_evaluation_html
    from agelens.evaluation.scoring import ScoringOptions, score

    if out.exists() and not out.is_dir():
        raise ArgumentError(f"--out {out}: is a file; name a folder")
    options = ScoringOptions(
        detector=detector, crops=crops, flip=flip, accept_licence=accept_licence, timed=True
    )
    with progress_bar(f"asking {model}") as progress:
        faces = score(model, data, options, kept=keep, progress=progress)
    other = None
    if compare is not None:
        kept = None if keep is None else keep.with_name(f"{keep.stem}-compared{keep.suffix}")
        with progress_bar(f"asking {compare}") as progress:
            other = score(compare, data, options, kept=kept, progress=progress)
    result = run(faces, other=other, samples=samples, seed=seed)
    result.save(out / "evaluation.json")
    _print(result)
    shown = _worst_pictures(data, result, faces.names.tolist()) if pictures else None
    write_evaluation_html(result.to_dict(), out / "evaluation.html", faces=shown)
    for name in ("evaluation.json", "evaluation.html"):
        error_console().print(f"-> {escape(str(out / name))}", soft_wrap=True)


def _worst_pictures(
    data: Sequence[Path], result: EvaluationResult, names: Sequence[str]
) -> dict[str, str]:
    """Thumbnails of the worst cases by name, as data addresses."""
    from agelens.data.report import thumbnails_of
    from agelens.data.schema import FaceTable

    row_of = {name: row for row, name in enumerate(names)}
    wanted = {case["name"] for cases in result.worst.values() for case in cases}
    found = thumbnails_of(FaceTable.open(data), [row_of[name] for name in wanted])
    return {names[row]: address for row, address in found.items()}


def _print(result: EvaluationResult) -> None:
    console = output_console()
    counts, model = result.faces, result.provenance["model"]
    said = f"{counts['estimated']:,} with an estimate, {counts['answered']:,} answered"
    if counts["unreadable"]:
        said += f", {counts['unreadable']:,} pictures could not be read"
    console.print(f"[bold]{escape(model)}[/] on {counts['rows']:,} faces: {said}", soft_wrap=True)
    console.print(_figure_table(result), crop=False)
    for column in result.groups:
        console.print()
        console.print(_group_table(result, column), crop=False)
    if result.comparison is not None:
        console.print()
        console.print(_comparison_table(result), crop=False)
    for note in result.notes:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def _figure_table(result: EvaluationResult) -> Table:
    from agelens.evaluation.metrics import METRICS

    rows = []
    for name, estimate in result.metrics.items():
        metric, answered = METRICS[name], result.answered.get(name)
        rows.append(
            (
                metric.title,
                metric.text(estimate.value),
                _interval(metric, estimate),
                metric.shown_unit,
                f"{estimate.count:,}",
                "" if answered is None else metric.text(answered.value),
            )
        )
    for name, value in result.provenance["milliseconds"].items():
        rows.append((f"CPU time a face, {name}", f"{value:.2f}", "", "ms", "", ""))
    return _table(("", "all faces", "95 % interval", "unit", "faces", "answered only"), rows)


def _interval(metric: Metric, estimate: Estimate, *, signed: bool = False) -> str:
    low, high = (metric.text(end, signed=signed) for end in (estimate.low, estimate.high))
    return "" if low == "-" else f"{low} to {high}"


def _group_table(result: EvaluationResult, column: str) -> Table:
    from agelens.evaluation.metrics import METRICS

    groups = result.groups[column]
    held = [name for name in _GROUP_COLUMNS if any(name in group.metrics for group in groups)]
    if "age_mae" in held:
        held.remove("range_distance")
    head = [
        f"{METRICS[name].title}, {METRICS[name].shown_unit}".removesuffix(", ") for name in held
    ]
    rows = [
        (
            group.value,
            f"{group.count:,}",
            *(
                METRICS[name].text(group.metrics[name].value) if name in group.metrics else ""
                for name in held
            ),
        )
        for group in groups
    ]
    return _table((f"by {column}", "faces", *head), rows, wrap_heads=True)


def _comparison_table(result: EvaluationResult) -> Table:
    from agelens.evaluation.evaluating import read_comparison
    from agelens.evaluation.metrics import METRICS

    assert result.comparison is not None  # there are figures of it
    one, other = result.provenance["model"], result.comparison["other"]["model"]
    said = {"better": f"{one} is better", "worse": f"{other} is better"}
    rows = [
        (
            METRICS[name].title,
            METRICS[name].text(found.one.value),
            METRICS[name].text(found.other.value),
            METRICS[name].text(found.difference.value, signed=True),
            _interval(METRICS[name], found.difference, signed=True),
            METRICS[name].shown_unit,
            said.get(found.verdict, found.verdict),
        )
        for name, found in read_comparison(result).items()
    ]
    return _table(("", one, other, "difference", "95 % interval", "unit", "verdict"), rows)


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, wrap_heads: bool = False
) -> Table:
    """Text to the left, figures to the right; a figure that is cut short would be a wrong one."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for place, title in enumerate(head):
        cells = [row[place] for row in rows]
        table.add_column(
            escape(title),
            justify="left" if place == 0 or title in ("unit", "verdict") else "right",
            min_width=max(map(len, cells if wrap_heads else [title, *cells]), default=0),
        )
    for row in rows:
        table.add_row(*map(escape, row))
    return table
