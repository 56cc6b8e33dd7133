"""
Options that several commands have, each said once.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from agelens.errors import ArgumentError

AcceptLicence = Annotated[
    bool, typer.Option("--accept-licence", help="Use a model licensed for research only.")
]
Crops = Annotated[
    bool,
    typer.Option(
        "--crops/--no-crops",
        help="Each picture is one face crop: take the whole picture when no face is found.",
    ),
]
DetectorName = Annotated[
    str, typer.Option(help="default, none (each picture is one face), or insightface:DIR.")
]
FaceTables = Annotated[
    list[Path],
    typer.Argument(help="Parquet tables of labelled faces, or folders of them.", metavar="DATA"),
]
Flip = Annotated[
    bool, typer.Option("--flip", help="Average with the mirrored face, as analyze --flip.")
]
Keep = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Keep each face's answers (.npz), and take them from there when model and data "
        "are the same.",
    ),
]
ModelName = Annotated[
    str, typer.Argument(help="Model: a name, a .onnx file with its card, or insightface:DIR.")
]
Samples = Annotated[int, typer.Option(min=1, help="Bootstrap draws behind the 95 % intervals.")]
FirstDay = Annotated[
    str | None, typer.Option("--from", metavar="DATE", help="First day, as 2026-03-01.")
]
LastDay = Annotated[
    str | None, typer.Option("--to", metavar="DATE", help="Last day; by default the first.")
]
VisitCameras = Annotated[
    list[str] | None,
    typer.Option(
        "--camera", help="Name of a camera; may be repeated; by default all.", show_default=False
    ),
]
VisitSites = Annotated[
    list[str] | None,
    typer.Option(
        "--site", help="Name of a site; may be repeated; by default all.", show_default=False
    ),
]
VisitStore = Annotated[str, typer.Option(help="File, or postgresql:// URL, with the visits.")]


def parse_day(option: str, text: str) -> date:
    """The day that an option names.

    Raises:
        ArgumentError: It is none.
    """
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ArgumentError(f"{option} {text}: expected a day as 2026-03-01") from error
