"""
``agelens analyze``: pictures in, faces out, as a table or a file.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.markup import escape

from agelens.cli.console import error_console, leave_closed_output, output_console
from agelens.cli.options import AcceptLicence, DetectorName
from agelens.errors import ArgumentError, ImageError

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod

    from agelens.analyzer import AnalyzerOptions
    from agelens.results import Analysis, Face
    from agelens.sources import SourceItem

_TABLE_ROWS_AT_ONCE = 25
_COLUMN_WIDTHS = {"face": 4, "age": 3, "interval": 6, "gender": 13}


class OutputFormat(StrEnum):
    """What is printed or written."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


def analyze(
    paths: Annotated[
        list[str],
        typer.Argument(help="Pictures, folders, globs, videos, Parquet files.", metavar="PATH"),
    ],
    format: Annotated[
        OutputFormat | None,
        typer.Option(help="Output form; by default a table, or what --output's suffix says."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write instead of printing.")
    ] = None,
    annotate: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write annotated pictures into this folder.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model: a name, a .onnx file with its card, or insightface:DIR.")
    ] = "default",
    detector: DetectorName = "default",
    distribution: Annotated[
        bool, typer.Option("--distribution", help="Add the probability of each age 0 to 100.")
    ] = False,
    age_groups: Annotated[
        str, typer.Option(help="Starts of the age groups.")
    ] = "0,13,18,25,35,50,65",
    level: Annotated[float, typer.Option(help="Level of the age interval, 0 to 1.")] = 0.9,
    crops: Annotated[
        bool,
        typer.Option(
            "--crops",
            help="Each picture is one face crop: take the whole picture when no face is found.",
        ),
    ] = False,
    min_face: Annotated[
        int, typer.Option(metavar="PX", help="Smallest face to look for; larger is faster.")
    ] = 24,
    max_faces: Annotated[
        int | None,
        typer.Option(help="Keep this many faces of a picture, the most prominent first."),
    ] = None,
    no_gender: Annotated[bool, typer.Option("--no-gender", help="Estimate age only.")] = False,
    always_answer: Annotated[
        bool,
        typer.Option("--always-answer", help="Estimate unusable faces too instead of abstaining."),
    ] = False,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average with the mirrored face: slower, a bit better.")
    ] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Go into the folders of a folder.")
    ] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between the frames taken from a video.")
    ] = 1.0,
    workers: Annotated[
        int | None, typer.Option(help="Threads that read and detect; by default one a core.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Largest file to open.")] = 50_000_000,
    max_pixels: Annotated[int, typer.Option(help="Largest picture to decode.")] = 80_000_000,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch paths that are http(s) addresses.")
    ] = False,
    accept_licence: AcceptLicence = False,
    blur: Annotated[
        bool,
        typer.Option("--blur", help="Make the found faces unrecognisable in annotated pictures."),
    ] = False,
) -> None:
    """Find the faces in pictures and estimate age and gender.

    One line a picture in the order given; a picture that cannot be read gives a line with its
    error and never stops the run. Exit status: 0 all were read, 1 some failed, 2 wrong usage,
    130 interrupted.

    [bold]Examples[/]

      agelens analyze photo.jpg

      agelens analyze photos/ -r --format jsonl -o faces.jsonl --annotate marked/

      agelens analyze crops/ --crops --age-groups 0,18,65 --format csv > faces.csv

      agelens analyze faces.parquet --detector none -o ages.parquet
    """
    from agelens.analyzer import Analyzer, AnalyzerOptions
    from agelens.images import ImageLimits
    from agelens.quality import QualityLimits
    from agelens.results import age_group_starts
    from agelens.sources import count, expand

    if "-" in paths:
        raise ArgumentError("standard input is not read; name files or folders")
    chosen = _format(format, output)
    edges = age_group_starts(_edges(age_groups))
    _check_ranges(level, every)
    if blur and annotate is None:
        raise ArgumentError("--blur is for the annotated pictures; pass --annotate DIR with it")
    if blur and (max_faces is not None or crops):
        raise ArgumentError(
            "--blur with --max-faces or --crops would leave the other faces recognisable; "
            "leave those out"
        )
    options = AnalyzerOptions(
        model=model,
        detector=detector,
        crops=crops,
        gender=not no_gender,
        min_face=min_face,
        max_faces=max_faces,
        flip=flip,
        allow_urls=allow_urls,
        accept_licence=accept_licence,
        quality=QualityLimits.off() if always_answer else QualityLimits(),
        limits=ImageLimits(max_bytes=max_bytes, max_pixels=max_pixels),
    )
    _keep_sources(paths, output, annotate, recursive=recursive)
    analyzer = Analyzer(options)
    tally = Tally()
    items: deque[SourceItem] = deque()
    try:
        with ExitStack() as stack:
            write = _open_output(stack, chosen, output, edges, level, distribution)
            draw = _annotator(annotate, options, level=level, blur=blur)
            advance = _progress(
                stack,
                lambda: count(paths, recursive=recursive),
                shown=output is not None or not sys.stdout.isatty() or chosen is OutputFormat.table,
            )
            wanted = expand(paths, recursive=recursive, every_s=every)
            if annotate is not None and allow_urls:
                wanted = _fetched(wanted, options)
            stream = analyzer.stream(_remembered(wanted, items), workers=workers)
            stack.callback(stream.close)
            for analysis in stream:
                write(analysis)
                draw(items.popleft(), analysis)
                tally.add(analysis)
                advance()
    except KeyboardInterrupt:
        _say_interrupted(tally, output)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader of our output went away (head, a closed pager): nothing is wrong.
        leave_closed_output()
        raise typer.Exit(0) from None
    tally.report(output, annotate)
    if tally.pictures == 0:
        error_console().print(
            "[yellow]no pictures there[/]: of a folder, files with an image suffix are taken "
            "(videos and Parquet files when named themselves); -r goes into its folders",
            soft_wrap=True,
        )
    raise typer.Exit(1 if tally.failed else 0)


@dataclass
class Tally:
    """What a run did, for its last line and its exit status."""

    pictures: int = 0
    faces: int = 0
    abstained: int = 0
    failed: int = 0

    def add(self, analysis: Analysis) -> None:
        """Count one picture."""
        self.pictures += 1
        self.faces += len(analysis.faces)
        self.abstained += sum(face.age.abstained for face in analysis.faces)
        self.failed += not analysis.ok

    def report(self, output: Path | None, annotated: Path | None) -> None:
        """Print the last line to standard error."""
        line = f"{_counted(self.pictures, 'picture')}, {_counted(self.faces, 'face')}"
        if self.abstained:
            line += f" ({self.abstained} without an estimate)"
        if self.failed:
            line += f", [red]{self.failed} could not be read[/]"
        for place in (output, annotated):
            if place is not None:
                line += f" -> {escape(str(place))}"
        error_console().print(line, soft_wrap=True)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _format(format: OutputFormat | None, output: Path | None) -> OutputFormat:
    """The form asked for, or the one that the output's suffix names."""
    suffixes = {
        ".jsonl": OutputFormat.jsonl,
        ".ndjson": OutputFormat.jsonl,
        ".csv": OutputFormat.csv,
        ".parquet": OutputFormat.parquet,
    }
    if format is None:
        if output is None:
            return OutputFormat.table
        if output.suffix.lower() not in suffixes:
            raise ArgumentError(
                f"--output {output}: cannot tell the form from the name; end it with .jsonl, .csv "
                "or .parquet, or pass --format"
            )
        return suffixes[output.suffix.lower()]
    if format is OutputFormat.parquet and output is None:
        raise ArgumentError("--format parquet needs --output FILE")
    if format is OutputFormat.table and output is not None:
        raise ArgumentError("a table is for reading; write --format jsonl, csv or parquet")
    return format


def _edges(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ArgumentError(
            f"--age-groups {text!r} must be whole ages separated by commas, as 0,18,65"
        ) from error


def _check_ranges(level: float, every: float) -> None:
    if not 0 < level < 1:
        raise ArgumentError(f"--level must be over 0 and under 1, got {level}")
    if not every > 0:
        raise ArgumentError(f"--every must be over 0 seconds, got {every}")


def _keep_sources(
    paths: list[str], output: Path | None, annotate: Path | None, *, recursive: bool
) -> None:
    """Refuse to write over what is to be read.

    Raises:
        ArgumentError: The output is one of the sources, or annotated pictures would lie among them.
    """
    from agelens.sources import matching

    for text in paths:
        for match in matching(text):
            source = Path(match).resolve()
            if output is not None and output.resolve() == source:
                raise ArgumentError(f"--output {output}: is a source itself; name another file")
            if annotate is None:
                continue
            target = annotate.resolve()
            folder = source if source.is_dir() else source.parent
            if target == folder or (recursive and source.is_dir() and folder in target.parents):
                raise ArgumentError(
                    f"--annotate {annotate}: holds the pictures themselves; name a folder apart "
                    "from them"
                )


def _remembered(wanted: Iterator[SourceItem], items: deque[SourceItem]) -> Iterator[SourceItem]:
    """Keep each item until its result is drawn; the stream asks only for a few ahead."""
    for item in wanted:
        items.append(item)
        yield item


def _fetched(wanted: Iterator[SourceItem], options: AnalyzerOptions) -> Iterator[SourceItem]:
    """Fetch addresses once: a second answer may be another picture than the one analysed."""
    from agelens.images import load_image

    for item in wanted:
        if isinstance(item.image, str) and "://" in item.image:
            try:
                picture = load_image(
                    item.image, limits=options.limits, work_side=None, allow_urls=True
                )
                yield replace(item, image=picture.pixels)
            except ImageError as error:
                yield replace(item, image=None, error=error)
        else:
            yield item


def _open_output(
    stack: ExitStack,
    format: OutputFormat,
    output: Path | None,
    edges: tuple[int, ...],
    level: float,
    distribution: bool,
) -> Callable[[Analysis], None]:
    from agelens.writing import ResultWriter, open_sink

    if format is OutputFormat.table:
        return stack.enter_context(TablePrinter(output_console(), level)).add
    if output is not None:
        writer = ResultWriter(
            output, format.value, edges=edges, level=level, distribution=distribution
        )
        return stack.enter_context(writer).write
    sink = open_sink(sys.stdout, format.value, edges=edges, level=level, distribution=distribution)
    stack.callback(sink.close)
    return sink.write


def _annotator(
    folder: Path | None, options: AnalyzerOptions, *, level: float, blur: bool
) -> Callable[[SourceItem, Analysis], None]:
    """Writes annotated pictures into a folder under names of their own."""
    if folder is None:
        return lambda item, analysis: None
    from agelens.drawing import annotate
    from agelens.images import load_image
    from agelens.sources import IMAGE_SUFFIXES
    from agelens.writing import save_picture

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"--annotate {folder}: the folder cannot be made ({error.strerror}); name another"
        ) from error
    used: Counter[str] = Counter()
    taken: set[str] = set()

    def draw(item: SourceItem, analysis: Analysis) -> None:
        if not analysis.ok or item.image is None:
            return
        name = Path(item.name).name
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            name = Path(name).stem
        stem = re.sub(r"[^\w.=-]+", "-", name)
        # Room for a number, the suffix and what a file is called until it is whole.
        stem = stem.encode()[:200].decode(errors="ignore")
        name = stem
        while name.lower() in taken or name == "":
            used[stem] += 1
            name = f"{stem}-{used[stem] + 1}"
        taken.add(name.lower())
        try:
            pixels = load_image(
                item.image, limits=options.limits, work_side=None, allow_urls=options.allow_urls
            ).pixels
        except ImageError as error:  # it was there a moment ago
            error_console().print(f"[yellow]not annotated:[/] {escape(str(error))}")
            return
        save_picture(annotate(pixels, analysis, level=level, blur=blur), folder / f"{name}.jpg")

    return draw


def _progress(
    stack: ExitStack, counted: Callable[[], int | None], *, shown: bool
) -> Callable[[], None]:
    """A bar on standard error, where that is a terminal and there is something to wait for."""
    console = error_console()
    if not shown or not console.is_terminal:
        return lambda: None
    total = counted()
    if total == 1:
        return lambda: None
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    progress = stack.enter_context(
        Progress(
            TextColumn("analysing"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
    )
    task = progress.add_task("analysing", total=total)
    return lambda: progress.advance(task)


def _say_interrupted(tally: Tally, output: Path | None) -> None:
    line = f"[yellow]interrupted[/] after {_counted(tally.pictures, 'picture')}"
    if output is not None and tally.pictures:
        partial = escape(f"{output}.partial")
        line += f"; the finished rows are in {partial}, and {escape(str(output))} was not written"
    error_console().print(line, soft_wrap=True)


class TablePrinter:
    """Prints faces as a table that grows while the work goes on."""

    def __init__(self, console: Console, level: float) -> None:
        self._console = console
        self._level = level
        self._rows: list[tuple[str, ...]] = []
        self._header_shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()

    def add(self, analysis: Analysis) -> None:
        """Add the rows of one picture."""
        path = escape(_shortened(analysis.path or "-"))
        if analysis.error is not None:
            message = escape(f"{analysis.error.code}: {analysis.error.message}")
            self._rows.append((path, "", "", "", "[red]error[/]", f"[red]{message}[/]"))
        elif not analysis.faces:
            self._rows.append((path, "", "", "", "[dim]no face[/]", ""))
        for number, face in enumerate(analysis.faces):
            self._rows.append((path if number == 0 else "", str(number), *self._cells(face)))
        if len(self._rows) >= _TABLE_ROWS_AT_ONCE:
            self._flush()

    def _cells(self, face: Face) -> tuple[str, ...]:
        x0, y0, x1, y1 = face.box
        place = f"{x1 - x0:.0f}x{y1 - y0:.0f} at {x0:.0f},{y0:.0f}"
        if face.origin == "whole_picture":
            place = "whole picture"
        if face.age.abstained:
            return ("?", "", "[yellow]cannot tell[/]", "; ".join(face.quality.reasons))
        low, high = face.age.interval(self._level)
        gender = ""
        if face.gender is not None:
            gender = f"{face.gender.label} {100 * face.gender.probability:.0f}%"
        return (f"[bold]{face.age.mean:.0f}[/]", f"{low}-{high}", gender, place)

    def _flush(self) -> None:
        if not self._rows:
            return
        from rich.table import Table

        # Widths are fixed, so that the next rows stand under these.
        room = self._console.width - sum(_COLUMN_WIDTHS.values()) - 2 * (len(_COLUMN_WIDTHS) + 1)
        notes = max(12, room // 2)
        table = Table(box=None, show_header=not self._header_shown, pad_edge=False, padding=(0, 1))
        table.add_column("picture", width=max(10, room - notes), overflow="fold")
        for name, width in _COLUMN_WIDTHS.items():
            right = name in ("face", "age")
            title = f"{100 * self._level:g}%" if name == "interval" else name
            side: JustifyMethod = "right" if right else "left"
            table.add_column(title, min_width=width, max_width=width, justify=side)
        table.add_column("where", width=notes, overflow="fold")
        for row in self._rows:
            table.add_row(*row)
        self._console.print(table)
        self._header_shown = True
        self._rows = []


def _shortened(path: str, limit: int = 60) -> str:
    return path if len(path) <= limit else f"...{path[-limit + 3 :]}"
