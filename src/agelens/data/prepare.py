"""
From pictures to training shards: detect, align, and write Parquet once, in a way that survives a
kill.

A shard is a function of its input rows and the options alone. It is written under a temporary name
and renamed when it is whole; the ledger remembers its hash, so that a restart redoes only what is
missing, and ends with the same bytes as a run that nobody disturbed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agelens import __version__
from agelens.alignment import CropSpec, align, align_box
from agelens.data.schema import (
    MANIFEST,
    FaceTable,
    arrow_schema,
    file_sha256,
    find_row_problems,
    import_pyarrow,
    picture_source,
    write_text,
)
from agelens.data.workers import Progress, run_tasks
from agelens.detection import Detector, intersection_over_union, load_detector
from agelens.errors import ArgumentError, DataError, ImageError
from agelens.images import load_image

PREPARED_SCHEMA: Final = "agelens.prepared/1"
LEDGER: Final = "ledger.jsonl"
_LOCK: Final = ".lock"
_NOT_STATED: Final = "not stated"
_ANCHOR_SHARE: Final = 0.25

Encoding = Literal["webp", "jpeg"]


@dataclass(frozen=True)
class PrepareOptions:
    """How faces become chips.

    Attributes:
        size: Side of a chip in pixels; larger than a network's input, so that training can crop.
        margin: Extra around the face square on each side, as a share of its side; larger than a
            network's, for the same reason.
        crops: The pictures are face crops: when no face is found, the whole picture is the face.
            Without, such pictures are left out and listed.
        encoding: "webp" or "jpeg".
        quality: Of the encoding, 90..100.
        shard_rows: Input rows of a shard.
        detector: Name as for ``detection.load_detector``.
        min_score: Least confidence of a face, 0..1.
        skip_bad_rows: Leave out rows with impossible labels instead of refusing the table.
    """

    size: int = 192
    margin: float = 0.7
    crops: bool = False
    encoding: Encoding = "webp"
    quality: int = 90
    shard_rows: int = 2000
    detector: str = "default"
    min_score: float = 0.7
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        if self.encoding not in ("webp", "jpeg"):
            raise ArgumentError(f"encoding must be 'webp' or 'jpeg', got {self.encoding!r}")
        if not 90 <= self.quality <= 100:
            raise ArgumentError(
                f"quality must be within 90..100, got {self.quality}: artefacts look like age"
            )
        if self.shard_rows < 1:
            raise ArgumentError(f"shard_rows must be 1 or more, got {self.shard_rows}")
        self.crop  # noqa: B018

    @property
    def crop(self) -> CropSpec:
        """The crop of the chips."""
        return CropSpec(self.size, self.margin)


class Skipped(NamedTuple):
    """A row that gave no chip: its number in the table, ``FILE#ROW``, and why."""

    row: int
    name: str
    reason: str


@dataclass(frozen=True)
class PrepareReport:
    """What was made of a table.

    Attributes:
        output: The folder.
        rows: Chips in all shards.
        shards: Number of shards.
        reused: Shards of an earlier run that were still good.
        whole_pictures: Chips cut from the whole picture, for want of a found face.
        skipped: Rows that gave no chip.
        seconds: Time that it took.
    """

    output: Path
    rows: int
    shards: int
    reused: int
    whole_pictures: int
    skipped: tuple[Skipped, ...]
    seconds: float


class _Shard(NamedTuple):
    """One line of the ledger."""

    number: int
    file: str
    rows: int
    sha256: str
    whole_pictures: int
    datasets: dict[str, dict[str, str]]
    skipped: list[Skipped]


def prepare_faces(
    table: FaceTable,
    output: Path,
    options: PrepareOptions | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> PrepareReport:
    """Detect, align and write shards; goes on where an interrupted run stopped.

    Of several faces in a picture the one is taken whose centre is nearest the picture's, among
    those with at least a quarter of the largest one's area; of a row with a ``box``, the one that
    overlaps it most, or the box itself when no face is found there.

    Args:
        table: Faces; see ``FaceTable.open``.
        output: Folder for ``shard-00000.parquet`` and so on, ``manifest.json`` and the ledger.
        options: How; None for the defaults.
        workers: Processes; None takes one a core.
        progress: Told input rows done and input rows in all.
        overwrite: Throw away what another source or other options left in the folder.

    Raises:
        DataError: The folder holds shards of another source or other options, another run works in
            it, the table has rows with impossible labels, or no face was found at all.
        MissingExtra: pyarrow is not installed.
    """
    begin = time.monotonic()
    chosen = options or PrepareOptions()
    output.mkdir(parents=True, exist_ok=True)
    with _only_one(output):
        if not chosen.skip_bad_rows:
            _refuse_bad_rows(table)
        key = _key(table, chosen)
        ledger = _Ledger(output / LEDGER)
        kept = ledger.open(key, overwrite=overwrite)
        shards = _good_shards(output, kept)
        reused = len(shards)
        _sweep(output, shards)
        ledger.rewrite(key, shards)
        todo = [task for task in _tasks(table, output, chosen) if task.number not in shards]
        done = table.num_rows - sum(task.rows for task in todo)
        if progress is not None:
            progress(done, table.num_rows)
        for place, shard in run_tasks(
            _make_shard, todo, workers=workers, setup=_load_detector, setup_args=(chosen,)
        ):
            shards[shard.number] = shard
            ledger.add(shard)
            done += todo[place].rows
            if progress is not None:
                progress(done, table.num_rows)
        report = _finish(output, key, ledger, shards, chosen)
    return PrepareReport(**report, reused=reused, seconds=time.monotonic() - begin)


def _finish(
    output: Path,
    key: dict[str, Any],
    ledger: _Ledger,
    shards: dict[int, _Shard],
    options: PrepareOptions,
) -> dict[str, Any]:
    """Write ledger and manifest in the order of the shards, whatever order they came in."""
    ordered = [shards[number] for number in sorted(shards)]
    rows = sum(shard.rows for shard in ordered)
    skipped = tuple(told for shard in ordered for told in shard.skipped)
    if rows == 0:
        why = f"; the first: {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise DataError(f"{output}: not one face was prepared{why}")
    ledger.rewrite(key, dict(enumerate(ordered)))
    write_text(output / MANIFEST, _manifest(ordered, rows, options))
    return {
        "output": output,
        "rows": rows,
        "shards": len(ordered),
        "whole_pictures": sum(shard.whole_pictures for shard in ordered),
        "skipped": skipped,
    }


def _manifest(shards: list[_Shard], rows: int, options: PrepareOptions) -> str:
    datasets: dict[str, dict[str, str]] = {}
    for shard in shards:
        for name, terms in shard.datasets.items():
            datasets[name] = _stricter(datasets.get(name), terms)
    manifest = {
        "schema": PREPARED_SCHEMA,
        "size": options.size,
        "margin": options.margin,
        "landmarks": [list(point) for point in options.crop.landmarks],
        "rows": rows,
        "shards": [
            {"file": shard.file, "rows": shard.rows, "sha256": shard.sha256} for shard in shards
        ],
        "datasets": dict(sorted(datasets.items())),
    }
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def _stricter(known: dict[str, str] | None, terms: dict[str, str]) -> dict[str, str]:
    """The terms that bind when rows of one data set differ: research-only ones."""
    if known is None or (known["licence_class"], terms["licence_class"]) == (
        "commercial",
        "research",
    ):
        return terms
    return known


# --- what may be reused ---------------------------------------------------------------------------


def _key(table: FaceTable, options: PrepareOptions) -> dict[str, Any]:
    """What the shards depend on, in the form that JSON gives back."""
    key = {
        "schema": PREPARED_SCHEMA,
        "agelens": __version__,
        "options": asdict(options),
        "crop": asdict(options.crop),
        "rows": table.num_rows,
        "source_sha256": table.fingerprint(),
    }
    return dict(json.loads(json.dumps(key)))


class _Ledger:
    """One line of JSON for what the shards depend on, then one a finished shard."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, key: dict[str, Any], *, overwrite: bool) -> list[_Shard]:
        """Shards that an earlier run with the same source and options finished.

        Raises:
            DataError: The folder holds something else, and ``overwrite`` is off.
        """
        lines = list(self._lines())
        if overwrite:
            return []
        if not lines:
            if any(self.path.parent.glob("shard-*.parquet")):
                raise DataError(
                    f"{self.path.parent}: holds shards but no {LEDGER}; choose another folder or "
                    "pass --overwrite"
                )
            return []
        if lines[0] != key:
            raise DataError(
                f"{self.path.parent}: {_difference(lines[0], key)}; choose another folder, or pass "
                "--overwrite to make the shards anew"
            )
        return [_shard(line) for line in lines[1:]]

    def rewrite(self, key: dict[str, Any], shards: Mapping[int, _Shard]) -> None:
        """Write the whole ledger, in the order of the shards."""
        lines = [key, *(shards[number]._asdict() for number in sorted(shards))]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, shard: _Shard) -> None:
        """Append one finished shard, on disk before this returns."""
        with open(self.path, "a", encoding="utf-8", newline="\n") as handle:
            handle.write(json.dumps(shard._asdict()) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                # A kill in the middle of an append leaves half a last line.
                return


def _shard(line: dict[str, Any]) -> _Shard:
    return _Shard(**{**line, "skipped": [Skipped(*told) for told in line["skipped"]]})


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    if old.get("source_sha256") != new["source_sha256"]:
        return "was prepared from other files, or the files have changed since"
    before, now = old.get("options", {}), new["options"]
    changed = [name for name, value in now.items() if before.get(name) != value]
    if changed:
        name = changed[0]
        return f"was prepared with {name} = {before.get(name)!r}, now it is {now[name]!r}"
    return "was prepared by another version"


def _good_shards(output: Path, listed: list[_Shard]) -> dict[int, _Shard]:
    """Shards whose files are still what the ledger says."""
    return {
        shard.number: shard
        for shard in listed
        if shard.rows == 0 or _is_whole(output / shard.file, shard.sha256)
    }


def _is_whole(file: Path, sha256: str) -> bool:
    return file.is_file() and file_sha256(file) == sha256


def _sweep(output: Path, good: Mapping[int, _Shard]) -> None:
    """Remove half-written files, and shards that the ledger does not vouch for."""
    kept = {shard.file for shard in good.values()}
    for leftover in output.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    for shard in output.glob("shard-*.parquet"):
        if shard.name not in kept:
            shard.unlink()
    # The manifest says that all is there; it comes back at the end.
    (output / MANIFEST).unlink(missing_ok=True)


@contextmanager
def _only_one(output: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the lock goes with the process, however it ends.

    Raises:
        DataError: Another run works in the folder.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    with open(output / _LOCK, "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{output}: another 'data prepare' works in this folder") from error
        yield
        (output / _LOCK).unlink(missing_ok=True)


def _refuse_bad_rows(table: FaceTable) -> None:
    columns = [c for c in table.columns if c != "image"]
    for start, batch in table.batches(columns, size=4096):
        for problem in find_row_problems(batch, "", start):
            if problem.column != "image" and problem.row is not None:
                raise DataError(
                    f"{table.name_of(problem.row)}, column {problem.column!r}: {problem.value!r}: "
                    f"{problem.reason}; 'agelens data check' lists all such rows, and "
                    "--skip-bad-rows leaves them out"
                )


# --- one shard ------------------------------------------------------------------------------------


class _Task(NamedTuple):
    number: int
    first: int
    rows: int
    table: FaceTable
    output: Path
    options: PrepareOptions


def _tasks(table: FaceTable, output: Path, options: PrepareOptions) -> list[_Task]:
    step = options.shard_rows
    return [
        _Task(number, first, min(step, table.num_rows - first), table, output, options)
        for number, first in enumerate(range(0, table.num_rows, step))
    ]


@lru_cache(maxsize=1)
def _detector(name: str, min_score: float) -> Detector | None:
    """The detector of this process, loaded once."""
    return load_detector(name, score_threshold=min_score)


def _load_detector(options: PrepareOptions) -> None:
    _detector(options.detector, options.min_score)


def _make_shard(task: _Task) -> _Shard:
    options = task.options
    detector = _detector(options.detector, options.min_score)
    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for start, batch in task.table.slice(task.first, task.rows):
        bad = _bad_offsets(batch) if options.skip_bad_rows else {}
        for offset, row in enumerate(batch.to_pylist()):
            number = start + offset
            try:
                if offset in bad:
                    raise DataError(bad[offset])
                rows.append(_prepared_row(row, task.table.locate(number)[0], detector, options))
            except (ImageError, DataError) as error:
                reason = error.message if isinstance(error, ImageError) else str(error)
                skipped.append(Skipped(number, task.table.name_of(number), reason))
    file = f"shard-{task.number:05d}.parquet"
    sha256 = _write_shard(task.output / file, rows, task.table.audit) if rows else ""
    whole = sum(row["origin"] == "whole_picture" for row in rows)
    return _Shard(task.number, file, len(rows), sha256, whole, _terms(rows), skipped)


def _bad_offsets(batch: Any) -> dict[int, str]:
    light = batch.select([name for name in batch.schema.names if name != "image"])
    return {
        problem.row: f"{problem.column} {problem.value!r}: {problem.reason}"
        for problem in find_row_problems(light, "", 0)
        if problem.row is not None and problem.column != "image"
    }


def _terms(rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    terms: dict[str, dict[str, str]] = {}
    for row in rows:
        # What is not stated counts as research-only: that is the side on which nobody is harmed.
        stated = {
            "licence": row["licence"] or _NOT_STATED,
            "licence_class": row["licence_class"] or "research",
        }
        name = row["dataset"]
        terms[name] = _stricter(terms.get(name), stated)
    return terms


def _prepared_row(
    row: dict[str, Any], file: Path, detector: Detector | None, options: PrepareOptions
) -> dict[str, Any]:
    source = picture_source(row["image"], row["path"], file)
    picture = load_image(source)
    face = find_face(
        picture.pixels, detector, box=_scaled_box(row["box"], picture.scale), crops=options.crops
    )
    chip = cut_chip(picture.pixels, face, options.crop)
    sx, sy = picture.scale
    points = None if face.landmarks is None else face.landmarks * np.array([sx, sy])
    prepared = {name: value for name, value in row.items() if name != "path"}
    prepared.update(
        image=encode_chip(chip, options.encoding, options.quality),
        box=[float(v) for v in np.asarray(face.box) * np.array([sx, sy, sx, sy])],
        landmarks=None if points is None else [float(v) for v in points.ravel()],
        score=face.score,
        origin=face.origin,
    )
    return prepared


def _scaled_box(box: list[float] | None, scale: tuple[float, float]) -> list[float] | None:
    if box is None:
        return None
    return [v / s for v, s in zip(box, (*scale, *scale), strict=True)]


class FoundFace(NamedTuple):
    """The one face of a picture that its label means.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the given picture.
        landmarks: (5, 2) float32 or None.
        score: Detector confidence; 1 for a given box or the whole picture.
        origin: "detector", "caller" (the row's own box) or "whole_picture".
    """

    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float32] | None
    score: float
    origin: Literal["detector", "caller", "whole_picture"]


def find_face(
    pixels: NDArray[np.uint8],
    detector: Detector | None,
    *,
    box: list[float] | None = None,
    crops: bool = False,
) -> FoundFace:
    """The face that a label means; see ``prepare_faces`` for the choice among several.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        detector: A ``detection.Detector``, or None to look for no face.
        box: The labelled face's box when the data set has one.
        crops: Take the whole picture when no face is found.

    Raises:
        DataError: No face was found and neither ``box`` nor ``crops`` helps.
    """
    height, width = pixels.shape[:2]
    row = None
    if detector is not None:
        found = detector.detect(pixels)
        row = _on_box(found.boxes, box) if box is not None else _central(found.boxes, width, height)
    if row is not None:
        points = None if found.landmarks is None else found.landmarks[row]
        x0, y0, x1, y1 = (float(v) for v in found.boxes[row])
        return FoundFace((x0, y0, x1, y1), points, float(found.scores[row]), "detector")
    if box is not None:
        x0, y0, x1, y1 = box
        return FoundFace((x0, y0, x1, y1), None, 1.0, "caller")
    if crops or detector is None:
        return FoundFace((0.0, 0.0, float(width), float(height)), None, 1.0, "whole_picture")
    raise DataError("no face was found; pass --crops when every picture is the crop of a face")


def _central(boxes: NDArray[np.float32], width: int, height: int) -> int | None:
    if len(boxes) == 0:
        return None
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    far = np.hypot(*(centres - np.array([width, height], np.float32) / 2).T)
    # A face in the background may lie nearer the centre than the one that was meant.
    far = np.where(areas >= _ANCHOR_SHARE * areas.max(), far, np.inf)
    return int(np.argmin(far))


def _on_box(boxes: NDArray[np.float32], box: list[float]) -> int | None:
    if len(boxes) == 0:
        return None
    overlap = intersection_over_union(np.asarray(box, np.float32), boxes)
    best = int(np.argmax(overlap))
    return best if overlap[best] > 0.1 else None


def cut_chip(pixels: NDArray[np.uint8], face: FoundFace, crop: CropSpec) -> NDArray[np.uint8]:
    """The chip of a found face: (size, size, 3) uint8 RGB."""
    if face.landmarks is not None:
        return align(pixels, face.landmarks, crop)
    return align_box(pixels, face.box, crop, whole_picture=face.origin == "whole_picture")


def encode_chip(chip: NDArray[np.uint8], encoding: Encoding, quality: int) -> bytes:
    """A chip as WebP or JPEG bytes."""
    from PIL import Image

    encoded = io.BytesIO()
    if encoding == "webp":
        Image.fromarray(chip).save(encoded, "WEBP", quality=quality, method=4)
    else:
        # Full colour resolution: skin tone is part of what is learned.
        Image.fromarray(chip).save(encoded, "JPEG", quality=quality, subsampling=0)
    return encoded.getvalue()


def _write_shard(path: Path, rows: list[dict[str, Any]], audit: tuple[str, ...]) -> str:
    """Write a shard under a temporary name, rename it, and return its SHA-256."""
    pa = import_pyarrow()
    import pyarrow.parquet as pq

    base = arrow_schema(audit)
    fields = [field for field in base if field.name != "path"]
    fields += [pa.field("score", pa.float32()), pa.field("origin", pa.string())]
    schema = pa.schema(fields, metadata={"schema": PREPARED_SCHEMA})
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=schema)
    # Chips are compressed already; row groups let a reader fetch a part.
    pq.write_table(table, data, compression="zstd", row_group_size=500)
    content = data.getvalue()
    try:
        with open(partial, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return hashlib.sha256(content).hexdigest()
