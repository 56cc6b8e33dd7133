"""
Results on disk as JSON lines, CSV or Parquet: a file is whole when it has its name.

Rows go to ``NAME.partial``, which is renamed when the last one is written. An interrupted run
leaves the finished rows there, readable, and never a half-written ``NAME``.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Protocol, Self

from agelens.errors import ArgumentError, MissingExtra
from agelens.results import (
    DEFAULT_AGE_GROUPS,
    DEFAULT_LEVEL,
    Analysis,
    AnalysisDict,
    FaceDict,
    age_group_starts,
)

FORMATS: Final = ("jsonl", "csv", "parquet")
_PARQUET_ROWS: Final = 2000

Row = dict[str, Any]


def json_line(
    analysis: Analysis,
    *,
    edges: Sequence[int] = DEFAULT_AGE_GROUPS,
    level: float = DEFAULT_LEVEL,
    distribution: bool = False,
) -> str:
    """One analysis as one line of JSON, without the line's end."""
    wire = analysis.to_dict(edges=edges, level=level, distribution=distribution)
    return json.dumps(wire, allow_nan=False, separators=(", ", ": "))


def flat_rows(wire: AnalysisDict) -> list[Row]:
    """An analysis as flat rows: one a face; one without a face when there is none."""
    head: Row = {
        "path": wire["path"],
        "width": wire["width"],
        "height": wire["height"],
        "model": wire["model"],
    }
    error = wire["error"]
    tail: Row = {
        "error_code": error["code"] if error else None,
        "error_message": error["message"] if error else None,
    }
    if not wire["faces"]:
        return [{**head, "face": None, **tail}]
    return [{**head, "face": i, **_flat_face(face), **tail} for i, face in enumerate(wire["faces"])]


def _flat_face(face: FaceDict) -> Row:
    age, gender, quality = face["age"], face["gender"], face["quality"]
    row: Row = dict(zip(("x0", "y0", "x1", "y1"), face["box"], strict=True))
    row |= {
        "score": face["score"],
        "origin": face["origin"],
        "age_mean": age["mean"],
        "age_std": age["std"],
        "age_median": age["median"],
        "age_low": age["interval"]["low"],
        "age_high": age["interval"]["high"],
        "at_least_18": age["at_least_18"],
        "abstained": age["abstained"],
        "gender": gender["label"] if gender else None,
        "gender_probability": gender["probability"] if gender else None,
        "female_probability": gender["female_probability"] if gender else None,
        "size_px": quality["size_px"],
        "sharpness": quality["sharpness"],
        "exposure": quality["exposure"],
        "yaw": quality["yaw"],
        "pitch": quality["pitch"],
        "roll": quality["roll"],
        "usable": quality["usable"],
        "reasons": "; ".join(quality["reasons"]),
    }
    row |= {_group_name(g["low"], g["high"]): g["probability"] for g in age["groups"]}
    if "distribution" in age:
        row["distribution"] = age["distribution"]
    return row


def _group_name(low: int, high: int) -> str:
    return f"age_{low}_{high}"


def column_types(edges: Sequence[int], *, distribution: bool) -> dict[str, str]:
    """Names and types of the flat columns, in order."""
    starts = age_group_starts(edges)
    groups = {
        _group_name(start, end - 1): "float"
        for start, end in zip(starts, [*starts[1:], 101], strict=True)
    }
    return {
        "path": "str",
        "width": "int",
        "height": "int",
        "model": "str",
        "face": "int",
        "x0": "float",
        "y0": "float",
        "x1": "float",
        "y1": "float",
        "score": "float",
        "origin": "str",
        "age_mean": "float",
        "age_std": "float",
        "age_median": "int",
        "age_low": "int",
        "age_high": "int",
        "at_least_18": "float",
        "abstained": "bool",
        "gender": "str",
        "gender_probability": "float",
        "female_probability": "float",
        "size_px": "int",
        "sharpness": "float",
        "exposure": "float",
        "yaw": "float",
        "pitch": "float",
        "roll": "float",
        "usable": "bool",
        "reasons": "str",
        **groups,
        **({"distribution": "floats"} if distribution else {}),
        "error_code": "str",
        "error_message": "str",
    }


class Sink(Protocol):
    """Takes analyses one by one; ``close`` writes what is still held back."""

    def write(self, analysis: Analysis) -> None:
        """Add one analysis."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


class ResultWriter:
    """Writes analyses to a file that gets its name when it is whole; a context manager.

    Not thread-safe: one writer a file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: str,
        *,
        edges: Sequence[int] = DEFAULT_AGE_GROUPS,
        level: float = DEFAULT_LEVEL,
        distribution: bool = False,
    ) -> None:
        """Open ``PATH.partial``.

        Args:
            path: The file to make; one that is there is replaced at the end.
            format: "jsonl", "csv" or "parquet".
            edges: Starts of the age groups.
            level: Level of the intervals.
            distribution: Add the 101 probabilities.

        Raises:
            ArgumentError: An unknown format, or the folder is not there.
            MissingExtra: Parquet without pyarrow.
        """
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        if not self.path.parent.is_dir():
            raise ArgumentError(f"{self.path}: its folder does not exist; make it first")
        if self.path.is_dir():
            raise ArgumentError(f"{self.path}: is a folder; name a file")
        self.rows = 0
        mode = "wb" if format == "parquet" else "w"
        encoding = None if format == "parquet" else "utf-8"
        newline = None if format == "parquet" else ""
        try:
            self._file: IO[Any] = self.partial.open(mode, encoding=encoding, newline=newline)
        except OSError as error:
            raise ArgumentError(f"{self.path}: cannot be written ({error.strerror})") from error
        try:
            self._sink = open_sink(
                self._file, format, edges=edges, level=level, distribution=distribution
            )
        except BaseException:
            self._file.close()
            self.partial.unlink(missing_ok=True)
            raise

    def write(self, analysis: Analysis) -> None:
        """Add one analysis."""
        self._sink.write(analysis)
        self.rows += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._sink.close()
        finally:
            self._file.close()
        if kind is None:
            os.replace(self.partial, self.path)
        elif self.rows == 0:
            self.partial.unlink(missing_ok=True)


def open_sink(
    file: IO[Any],
    format: str,
    *,
    edges: Sequence[int] = DEFAULT_AGE_GROUPS,
    level: float = DEFAULT_LEVEL,
    distribution: bool = False,
) -> Sink:
    """A writer of one format on an open file (binary for Parquet), which it does not close.

    Raises:
        ArgumentError: An unknown format.
        MissingExtra: Parquet without pyarrow.
    """
    options = {"edges": edges, "level": level, "distribution": distribution}
    sinks: dict[str, Callable[[IO[Any], dict[str, Any]], Sink]] = {
        "jsonl": _JsonLines,
        "csv": _Csv,
        "parquet": _Parquet,
    }
    age_group_starts(edges)
    if format not in sinks:
        raise ArgumentError(f"unknown format {format!r}; there are: {', '.join(FORMATS)}")
    return sinks[format](file, options)


class _JsonLines:
    def __init__(self, file: IO[Any], options: dict[str, Any]) -> None:
        self._options = options
        self._file = file

    def write(self, analysis: Analysis) -> None:
        self._file.write(json_line(analysis, **self._options) + "\n")
        # Whole lines at once, for who reads them from a pipe while the work goes on.
        self._file.flush()

    def close(self) -> None:
        self._file.flush()


class _Csv:
    def __init__(self, file: IO[Any], options: dict[str, Any]) -> None:
        self._options = options
        names = list(column_types(options["edges"], distribution=options["distribution"]))
        self._file = file
        self._writer = csv.DictWriter(file, names, lineterminator="\n")
        self._writer.writeheader()

    def write(self, analysis: Analysis) -> None:
        for row in flat_rows(analysis.to_dict(**self._options)):
            if "distribution" in row:
                row["distribution"] = " ".join(str(value) for value in row["distribution"])
            self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.flush()


class _Parquet:
    def __init__(self, file: IO[Any], options: dict[str, Any]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingExtra("eval", "writing Parquet") from error
        self._arrow = pyarrow
        self._options = options
        types = {
            "str": pyarrow.string(),
            "int": pyarrow.int32(),
            "float": pyarrow.float32(),
            "bool": pyarrow.bool_(),
            "floats": pyarrow.list_(pyarrow.float32()),
        }
        columns = column_types(options["edges"], distribution=options["distribution"])
        self._schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[Row] = []

    def write(self, analysis: Analysis) -> None:
        self._rows += flat_rows(analysis.to_dict(**self._options))
        if len(self._rows) >= _PARQUET_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
            self._rows = []


def save_picture(picture: Any, path: Path) -> None:
    """Write a PIL picture so that it is whole when it has its name; the suffix names the format."""
    buffer = io.BytesIO()
    suffix = path.suffix.lower().lstrip(".")
    picture.save(buffer, {"jpg": "JPEG", "jpeg": "JPEG"}.get(suffix, suffix.upper()), quality=92)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(buffer.getvalue())
    os.replace(partial, path)
