"""
``agelens data``: bring a data set in, look it over, split it, and prepare it for training.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from agelens.cli.console import output_console, progress_bar

if TYPE_CHECKING:
    from agelens.data.checks import CheckReport
    from agelens.data.readers import Reading
    from agelens.data.stats import AgeCounts

app = typer.Typer(
    no_args_is_help=True,
    help="Import, check, split, prepare and describe sets of labelled faces.",
    rich_markup_mode="rich",
)
import_app = typer.Typer(
    no_args_is_help=True,
    help="Turn a data set, as its authors publish it, into one Parquet table of faces.",
    rich_markup_mode="rich",
)
app.add_typer(import_app, name="import")


class LicenceClass(StrEnum):
    """What weights trained on the faces may be used for."""

    commercial = "commercial"
    research = "research"


class AgeKind(StrEnum):
    """Ages from records, or as people saw them."""

    real = "real"
    apparent = "apparent"


class Encoding(StrEnum):
    """How chips are compressed."""

    webp = "webp"
    jpeg = "jpeg"


class Method(StrEnum):
    """How splits are drawn."""

    quota = "quota"
    hash = "hash"


class TableFormat(StrEnum):
    """How a table is printed."""

    table = "table"
    csv = "csv"
    json = "json"


Root = Annotated[Path, typer.Argument(help="Folder of the unpacked data set.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Parquet file to write; default: NAME.parquet."),
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Go on with the good rows when some are bad.")
]
Embed = Annotated[
    bool, typer.Option("--embed", help="Put the pictures into the file instead of their paths.")
]
Sources = Annotated[list[Path], typer.Argument(help="Parquet tables of faces, or folders of them.")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Processes; default: one a core.", min=1)
]
Near = Annotated[
    int,
    typer.Option(
        "--near", help="Bits of 256 that the same picture, saved again, may differ in.", max=64
    ),
]
Licence = Annotated[str | None, typer.Option("--licence", help="Licence of the pictures.")]
StatedClass = Annotated[
    LicenceClass | None,
    typer.Option("--licence-class", help="What weights trained on them may be used for."),
]
GenderWords = Annotated[
    list[str] | None,
    typer.Option("--gender-word", help="Meaning of a word, such as 'w=female' or 'd=none'."),
]
DatasetName = Annotated[str | None, typer.Option("--dataset", help="Name for the data set.")]
StatedKind = Annotated[
    AgeKind, typer.Option("--age-kind", help="Ages from records, or as people saw them.")
]


# --- import ---------------------------------------------------------------------------------------


@import_app.command("utkface")
def import_utkface(
    root: Root,
    output: Output = None,
    skip_bad_rows: SkipBadRows = False,
    embed: Embed = False,
) -> None:
    """Import UTKFace. Research only: weights trained on it are research-class."""
    from agelens.data.readers import read_utkface

    _import(read_utkface(root), output, skip_bad_rows, embed)


@import_app.command("fairface")
def import_fairface(
    root: Root,
    output: Output = None,
    skip_bad_rows: SkipBadRows = False,
    embed: Embed = False,
) -> None:
    """Import FairFace (CC BY 4.0): nine age ranges, gender, race as an audit column."""
    from agelens.data.readers import read_fairface

    _import(read_fairface(root), output, skip_bad_rows, embed)


@import_app.command("agedb")
def import_agedb(
    root: Root,
    output: Output = None,
    skip_bad_rows: SkipBadRows = False,
    embed: Embed = False,
) -> None:
    """Import AgeDB. Research only; the name in the file name is the subject."""
    from agelens.data.readers import read_agedb

    _import(read_agedb(root), output, skip_bad_rows, embed)


@import_app.command("appa-real")
def import_appa_real(
    root: Root,
    output: Output = None,
    age: Annotated[
        AgeKind, typer.Option("--age", help="Which age is the label; the other one is kept.")
    ] = AgeKind.apparent,
    originals: Annotated[
        bool, typer.Option("--originals", help="The whole pictures, not the authors' face crops.")
    ] = False,
    skip_bad_rows: SkipBadRows = False,
    embed: Embed = False,
) -> None:
    """Import APPA-REAL: apparent ages with the raters' spread, or real ages."""
    from agelens.data.readers import read_appa_real

    reading = read_appa_real(root, age=age.value, originals=originals)
    _import(reading, output, skip_bad_rows, embed)


@import_app.command("imdb-wiki")
def import_imdb_wiki(
    root: Annotated[Path, typer.Argument(help="Folder imdb_crop or wiki_crop.")],
    output: Output = None,
    min_face_score: Annotated[
        float, typer.Option(help="Least score of the authors' face detector.")
    ] = 1.0,
    max_second_face_score: Annotated[
        float | None, typer.Option(help="Most score of a second face; default: none may be there.")
    ] = None,
    min_age: Annotated[int, typer.Option(help="Lowest age kept.")] = 0,
    max_age: Annotated[int, typer.Option(help="Highest age kept.")] = 100,
    need_gender: Annotated[
        bool, typer.Option("--need-gender", help="Drop rows without gender.")
    ] = False,
    age_interval: Annotated[
        bool,
        typer.Option("--age-interval", help="Keep both ages that a year of taking allows."),
    ] = False,
    skip_bad_rows: SkipBadRows = False,
    embed: Embed = False,
) -> None:
    """Import IMDB-WIKI (one of its two parts). Research only; labels were crawled: clean them."""
    from agelens.data.readers import Cleaning, read_imdb_wiki

    cleaning = Cleaning(
        min_face_score=min_face_score,
        max_second_face_score=max_second_face_score,
        min_age=min_age,
        max_age=max_age,
        need_gender=need_gender,
        age="interval" if age_interval else "midyear",
    )
    _import(read_imdb_wiki(root, cleaning=cleaning), output, skip_bad_rows, embed)


@import_app.command("csv")
def import_csv(
    table: Annotated[Path, typer.Argument(help="CSV (with a header row) or Parquet file.")],
    output: Output = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder that file names are meant from.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            help="Where something is, as MEANING=COLUMN; meanings: file, image, age, age_min, "
            "age_max, age_std, birth_date, photo_date, gender, subject, split, box.",
        ),
    ] = None,
    audit: Annotated[
        list[str] | None, typer.Option("--audit", help="Further column to keep for audits.")
    ] = None,
    encoding: Annotated[
        str, typer.Option("--encoding", help="auto, utf-8, cp1252, utf-16, ...")
    ] = "auto",
    delimiter: Annotated[str, typer.Option("--delimiter", help="auto, or the character.")] = "auto",
    date_format: Annotated[
        list[str] | None,
        typer.Option("--date-format", help="Form of the dates, such as '%d/%m/%Y'."),
    ] = None,
    gender_word: GenderWords = None,
    dataset: DatasetName = None,
    age_kind: StatedKind = AgeKind.real,
    licence: Licence = None,
    licence_class: StatedClass = None,
    skip_bad_rows: SkipBadRows = False,
    embed: Embed = False,
) -> None:
    """Import your own table: exact ages, ranges, or dates of birth and photograph.

    Columns with usual names are found; one report names every bad row.

    [bold]Example[/]: agelens data import csv staff.csv --images photos --licence-class commercial
    """
    from agelens.data.readers import TableOptions, read_table

    options = TableOptions(
        dataset=dataset,
        images=images,
        columns=_columns(column or [], audit or []),
        encoding=encoding,
        delimiter=delimiter.replace("\\t", "\t") if delimiter != "auto" else delimiter,
        date_formats=tuple(date_format or ()),
        gender_words=_gender_words(gender_word or []),
        age_kind=age_kind.value,
        licence=licence,
        licence_class=licence_class.value if licence_class else None,
    )
    _import(read_table(table, options), output, skip_bad_rows, embed)


@import_app.command("tree")
def import_tree(
    root: Annotated[Path, typer.Argument(help="Top folder, such as ROOT/20-29/female/a.jpg.")],
    output: Output = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help="What the folders mean from the top down: age, gender, subject, split, - for "
            "nothing, or the name of an audit column.",
        ),
    ] = "age/gender",
    gender_word: GenderWords = None,
    dataset: DatasetName = None,
    age_kind: StatedKind = AgeKind.real,
    licence: Licence = None,
    licence_class: StatedClass = None,
    skip_bad_rows: SkipBadRows = False,
    embed: Embed = False,
) -> None:
    """Import a folder tree whose folder names are the labels."""
    from agelens.data.readers import read_tree

    reading = read_tree(
        root,
        layout=layout,
        dataset=dataset,
        gender_words=_gender_words(gender_word or []),
        age_kind=age_kind.value,
        licence=licence,
        licence_class=licence_class.value if licence_class else None,
    )
    _import(reading, output, skip_bad_rows, embed)


def _import(reading: Reading, output: Path | None, skip_bad_rows: bool, embed: bool) -> None:
    from agelens.data.readers import import_faces

    target = output or Path(f"{reading.dataset}.parquet")
    report = import_faces(reading, target, skip_bad_rows=skip_bad_rows, embed=embed)
    console = output_console()
    for note in report.notes:
        console.print(f"  {escape(note)}", soft_wrap=True)
    for reason, count in report.filtered.items():
        console.print(f"  left out {count:,}: {escape(reason)}", soft_wrap=True)
    for title, problems in (("bad", report.problems), ("known defect", report.defects)):
        for problem in problems:
            console.print(f"  [yellow]{title}[/]: {escape(str(problem))}", soft_wrap=True)
    console.print(f"[bold]{report.rows:,} faces[/] -> {escape(str(report.output))}", soft_wrap=True)


def _columns(pairs: list[str], audit: list[str]) -> Any:
    from dataclasses import fields

    from agelens.data.readers import ColumnMap

    known = [f.name for f in fields(ColumnMap) if f.name != "audit"]
    named = {}
    for pair in pairs:
        meaning, equals, name = pair.partition("=")
        if not equals or meaning not in known:
            raise typer.BadParameter(
                f"{pair!r} is not MEANING=COLUMN; the meanings are {', '.join(known)}"
            )
        named[meaning] = name
    return ColumnMap(**named, audit=tuple(audit))


def _gender_words(pairs: list[str]) -> dict[str, Any]:
    meanings = {"female": "female", "male": "male", "none": None}
    words = {}
    for pair in pairs:
        word, equals, meaning = pair.rpartition("=")
        if not equals or meaning not in meanings:
            raise typer.BadParameter(f"{pair!r} is not WORD=female, WORD=male or WORD=none")
        words[word] = meanings[meaning]
    return words


# --- check, split, prepare, stats -----------------------------------------------------------------


@app.command()
def check(
    sources: Sources,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the report as one HTML page.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the report as JSON, naming every row.")
    ] = None,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="No faces in the HTML page.")
    ] = False,
    no_read: Annotated[
        bool, typer.Option("--no-read", help="Labels only: no files, sizes or duplicates.")
    ] = False,
    licence_class: Annotated[
        LicenceClass | None,
        typer.Option("--licence-class", help="What the weights are meant for."),
    ] = None,
    near: Near = 24,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="Code of a finding that is no error.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Look for missing files, wrong labels, leaks between splits, imbalance and licences.

    Exit status 1 when there are errors.

    [bold]Example[/]: agelens data check faces.parquet --html check.html --licence-class commercial
    """
    from agelens.data.checks import CheckOptions, check_faces
    from agelens.data.report import write_html
    from agelens.data.schema import FaceTable

    options = CheckOptions(
        licence_class=licence_class.value if licence_class else None,
        max_distance=near,
        allowed=tuple(allow or ()),
    )
    with progress_bar("reading pictures") as progress:
        report = check_faces(
            FaceTable.open(sources),
            options,
            read=not no_read,
            workers=workers,
            progress=progress,
        )
    _print_report(report)
    if json is not None:
        _write_json(json, report.to_dict())
    if html is not None:
        write_html(report, html, pictures=not no_pictures)
    raise typer.Exit(1 if report.has_errors else 0)


def _print_report(report: CheckReport) -> None:
    colours = {"error": "bold red", "warning": "yellow", "info": "cyan"}
    console = output_console()
    for finding in report.findings:
        console.print(
            f"[{colours[finding.severity]}]{finding.severity}[/] {escape(finding.title)} "
            f"[dim]({finding.code})[/]\n  {escape(finding.advice)}",
            soft_wrap=True,
        )
    console.print(
        f"[bold]{report.table.num_rows:,} faces[/] in {report.seconds:.0f} s: "
        + ", ".join(f"{name} {count:,}" for name, count in report.splits.items()),
        soft_wrap=True,
    )


@app.command()
def split(
    sources: Sources,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Parquet file to write, with its split column.")
    ],
    train: Annotated[float, typer.Option(help="Share of faces to train on.")] = 0.8,
    val: Annotated[float, typer.Option(help="Share of faces to choose by.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of faces to report on.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Another seed gives another split.")] = 0,
    method: Annotated[
        Method,
        typer.Option(
            "--method", help="quota: exact shares; hash: nobody ever moves when faces are added."
        ),
    ] = Method.quota,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="Earlier table whose faces keep their split.")
    ] = None,
    keep_own: Annotated[
        bool, typer.Option("--keep-own", help="Faces that have a split keep it.")
    ] = False,
    no_duplicates: Annotated[
        bool, typer.Option("--no-duplicates", help="Do not look for copies (reads no pictures).")
    ] = False,
    near: Near = 24,
    workers: Workers = None,
) -> None:
    """Split by person and by picture, with the same mix of ages and genders in each part.

    [bold]Example[/]: agelens data split faces.parquet -o split.parquet --seed 1
    """
    from agelens.data.duplicates import find_duplicates, read_pictures
    from agelens.data.schema import FaceTable
    from agelens.data.splits import SplitOptions, split_table, write_split

    table = FaceTable.open(sources)
    duplicates = []
    if not no_duplicates:
        with progress_bar("reading pictures") as progress:
            facts = read_pictures(table, workers=workers, progress=progress)
        duplicates = find_duplicates(facts, max_distance=near)
    report = split_table(
        table,
        SplitOptions({"train": train, "val": val, "test": test}, seed, method.value),
        duplicates=duplicates,
        keep=None if keep is None else FaceTable.open(keep),
        keep_own=keep_own,
    )
    write_split(table, report, output)
    counts = ", ".join(f"{name} {count:,}" for name, count in report.counts.items())
    output_console().print(
        f"[bold]{table.num_rows:,} faces[/] of {report.families:,} families: {counts} -> "
        f"{escape(str(output))}",
        soft_wrap=True,
    )


@app.command()
def prepare(
    sources: Sources,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the shards.")],
    size: Annotated[int, typer.Option(help="Side of a chip in pixels.")] = 192,
    margin: Annotated[
        float, typer.Option(help="Extra around the face, as a share of its side.")
    ] = 0.7,
    crops: Annotated[
        bool,
        typer.Option("--crops", help="Pictures are face crops: no face found, the whole is it."),
    ] = False,
    encoding: Annotated[Encoding, typer.Option("--encoding", help="webp or jpeg.")] = Encoding.webp,
    quality: Annotated[int, typer.Option(help="Of the encoding, 90 to 100.")] = 90,
    shard_rows: Annotated[int, typer.Option(help="Input rows of a shard.", min=1)] = 2000,
    detector: Annotated[
        str, typer.Option("--detector", help="default, none, or insightface:DIR.")
    ] = "default",
    skip_bad_rows: SkipBadRows = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away what other options left there.")
    ] = False,
    workers: Workers = None,
) -> None:
    """Detect, align and write shards for training; a restart goes on where a kill stopped it.

    [bold]Example[/]: agelens data prepare split.parquet -o prepared
    """
    from agelens.data.prepare import PrepareOptions, prepare_faces
    from agelens.data.schema import FaceTable

    options = PrepareOptions(
        size=size,
        margin=margin,
        crops=crops,
        encoding=encoding.value,
        quality=quality,
        shard_rows=shard_rows,
        detector=detector,
        skip_bad_rows=skip_bad_rows,
    )
    with progress_bar("preparing faces") as progress:
        report = prepare_faces(
            FaceTable.open(sources),
            output,
            options,
            workers=workers,
            progress=progress,
            overwrite=overwrite,
        )
    console = output_console()
    for told in report.skipped[:20]:
        console.print(f"  left out {escape(told.name)}: {escape(told.reason)}", soft_wrap=True)
    if len(report.skipped) > 20:
        console.print(f"  and {len(report.skipped) - 20:,} more; the ledger lists all")
    console.print(
        f"[bold]{report.rows:,} faces[/] in {report.shards} shards ({report.reused} were there "
        f"already), {report.whole_pictures:,} without a found face, {len(report.skipped):,} left "
        f"out, {report.seconds:.0f} s -> {escape(str(report.output))}",
        soft_wrap=True,
    )


@app.command()
def stats(
    sources: Sources,
    by: Annotated[
        str, typer.Option("--by", help="Column to group by: dataset, split, an audit column.")
    ] = "dataset",
    split: Annotated[str | None, typer.Option("--split", help="Only this split.")] = None,
    bands: Annotated[
        str, typer.Option("--bands", help="Starts of the age bands, from 0.")
    ] = "0,3,10,13,18,25,35,45,55,65,75",
    draw: Annotated[
        Path | None, typer.Option("--draw", help="Draw ages by gender to a PNG, SVG or PDF.")
    ] = None,
    format: Annotated[
        TableFormat, typer.Option("--format", help="How to print.")
    ] = TableFormat.table,
) -> None:
    """Count ages by gender by group; ranges count evenly for each of their years.

    [bold]Example[/]: agelens data stats prepared --by race --draw ages.png
    """
    from agelens.data.schema import FaceTable
    from agelens.data.stats import count_faces
    from agelens.data.stats import draw as draw_counts

    edges = _edges(bands)
    counts = count_faces(FaceTable.open(sources), by=by, split=split)
    if format is TableFormat.json:
        import json

        typer.echo(json.dumps(counts.to_dict(edges), indent=2, ensure_ascii=False))
    elif format is TableFormat.csv:
        import csv
        import sys

        writer = csv.DictWriter(
            sys.stdout, [by, "gender", "ages", "faces", "share"], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(counts.rows(edges))
    else:
        output_console().print(_stats_table(counts, edges), crop=False)
    if draw is not None:
        draw_counts(counts, draw)


def _stats_table(counts: AgeCounts, edges: list[int]) -> Any:
    from rich.table import Table

    from agelens.data.stats import GENDER_ROWS, band_names

    bands = counts.banded(edges)
    lines = [[counts.by, "gender", *band_names(edges), "no age", "all"]]
    for g, group in enumerate(counts.groups):
        for k, gender in enumerate(GENDER_ROWS):
            without = int(counts.without_age[g, k])
            total = float(bands[g, k].sum()) + without
            if total:
                cells = [f"{v:,.0f}" for v in bands[g, k]]
                lines.append([group, gender, *cells, f"{without:,}", f"{total:,.0f}"])
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for place, column in enumerate(zip(*lines, strict=True)):
        # A number that is cut short is a wrong number: rather let a narrow terminal wrap.
        table.add_column(
            escape(column[0]),
            justify="left" if place < 2 else "right",
            no_wrap=True,
            min_width=max(map(len, column)),
        )
    for line in lines[1:]:
        table.add_row(*map(escape, line))
    return table


def _edges(bands: str) -> list[int]:
    try:
        return [int(part) for part in bands.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"--bands are whole years such as 0,18,65, got {bands!r}"
        ) from error


@app.command()
def noise(
    sources: Annotated[list[Path], typer.Argument(help="Folders of prepared faces.")],
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the doubtful labels with their faces.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write every flagged label as JSON.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Judge only this split.")] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            help="NumPy .npz with out-of-fold 'ages' (rows, 101) and 'female' (rows,); default: "
            "simple models on gradients of the faces.",
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Labels to print of each kind.")] = 10,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="No faces in the HTML page.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
    workers: Workers = None,
) -> None:
    """Find the labels most likely wrong, by predictions that did not see them.

    [bold]Example[/]: agelens data noise prepared --split train --html noise.html
    """
    from agelens.data.duplicates import find_duplicates, read_pictures
    from agelens.data.noise import audit_labels, load_predictions
    from agelens.data.report import write_audit_html
    from agelens.data.schema import FaceTable

    table = FaceTable.open(sources)
    given = None if predictions is None else load_predictions(predictions, table.num_rows)
    duplicates = []
    if given is None:
        with progress_bar("reading pictures") as progress:
            facts = read_pictures(table, workers=workers, progress=progress)
        duplicates = find_duplicates(facts)
    with progress_bar("describing faces") as progress:
        doubts = audit_labels(
            table, given, split=split, duplicates=duplicates, seed=seed, progress=progress
        )
    console = output_console()
    for column in ("age", "gender"):
        flagged = [doubt for doubt in doubts if doubt.column == column and doubt.flagged]
        console.print(f"[bold]{len(flagged):,} {column} labels are most likely wrong[/]")
        for doubt in flagged[:top]:
            console.print(
                f"  {escape(table.name_of(doubt.row))}: labelled {doubt.given}, expected "
                f"{doubt.expected} (doubt {doubt.doubt:.4f})",
                soft_wrap=True,
            )
    if json is not None:
        _write_json(json, [d.to_dict(table.name_of(d.row)) for d in doubts if d.flagged])
    if html is not None:
        write_audit_html(doubts, table, html, pictures=not no_pictures)


def _write_json(path: Path, value: Any) -> None:
    import json

    from agelens.data.schema import write_text

    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
