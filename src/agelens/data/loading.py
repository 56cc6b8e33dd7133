"""
Prepared faces as training reads them: shards, decoded chips, balanced draws, batches.

    ShardFolder      manifest.json and its Parquet shards: labels as arrays, chips decoded once
    PreparedFaces    one split of one or more folders, with its augmentation: a PyTorch data set
    BalancedDraws    which face comes when: a PyTorch sampler, a pure function of seed and epoch

Every draw carries the seed of its augmentation, so a batch is the same in whichever process it is
made, and a run can go on in the middle of an epoch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agelens.alignment import CropSpec
from agelens.data.augmentation import (
    Augmentation,
    AugmentationSettings,
    Chip,
    Crop,
    augmentation,
)
from agelens.errors import ArgumentError, DataError, MissingExtra
from agelens.results import AGE_COUNT

SCHEMA: Final = "agelens.prepared/1"
MANIFEST: Final = "manifest.json"
UNKNOWN: Final = -1
"""A label that is missing, in the integer arrays of ``Labels``."""

CellPart = Literal["dataset", "decade", "gender", "group"]
Sampling = Literal["balanced", "group_balanced", "uniform"]

_DECODED_AT_ONCE: Final = 512
_COLUMNS: Final = ("dataset", "split", "source_file", "age_min", "age_max", "age_std", "gender")


@dataclass(frozen=True)
class Labels:
    """What is known of each face, one array a column.

    Attributes:
        low: (N,) int16 first age of the label in completed years, -1 without one.
        high: (N,) int16 last age of the label; 100 stands for 100 or more.
        std: (N,) float32 spread of the raters in years, NaN without one.
        female: (N,) int8 1 female, 0 male, -1 unknown.
        dataset: (N,) text.
        split: (N,) text.
        source_file: (N,) text.
        group: (N,) text of the audit column, or of several, empty without one.
    """

    low: NDArray[np.int16]
    high: NDArray[np.int16]
    std: NDArray[np.float32]
    female: NDArray[np.int8]
    dataset: NDArray[np.str_]
    split: NDArray[np.str_]
    source_file: NDArray[np.str_]
    group: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.low)

    def take(self, rows: NDArray[np.int64]) -> Labels:
        """These rows, in this order."""
        return Labels(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    def without_answers(self) -> Labels:
        """The same faces with age and gender unknown."""
        return replace(
            self,
            low=np.full_like(self.low, UNKNOWN),
            high=np.full_like(self.high, UNKNOWN),
            std=np.full_like(self.std, np.nan),
            female=np.full_like(self.female, UNKNOWN),
        )

    @classmethod
    def joined(cls, parts: Sequence[Labels]) -> Labels:
        """One table after the other."""
        names = cls.__dataclass_fields__
        return cls(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


class ShardFolder:
    """A folder of prepared faces: ``manifest.json`` and Parquet shards.

    Attributes:
        path: The folder.
        size: Side of the prepared chips in pixels.
        margin: Their margin, see ``CropSpec``.
        landmarks: (5, 2) places of the landmarks in the unit face square.
        datasets: By name, ``licence`` and ``licence_class``.
        labels: Of every row of every shard.
        digest: SHA-256 of the manifest's list of shards: which faces these are.
    """

    def __init__(self, path: str | Path, *, group_column: str | Sequence[str] = "race") -> None:
        """Read the manifest and the labels; the pictures stay on disk.

        Args:
            path: The folder.
            group_column: Audit column of the groups, or several, whose combinations they are. A
                face without a label in one of them is of no group.

        Raises:
            DataError: The manifest or a shard is missing or contradicts the other.
        """
        self.path = Path(path)
        manifest = _read_manifest(self.path)
        try:
            self.size = int(manifest["size"])
            self.margin = float(manifest["margin"])
            self.landmarks = tuple((float(x), float(y)) for x, y in manifest["landmarks"])
            self.datasets: dict[str, dict[str, Any]] = dict(manifest["datasets"])
            self._shards = [
                (str(shard["file"]), int(shard["rows"]), str(shard["sha256"]))
                for shard in manifest["shards"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path / MANIFEST}: {error!r} is missing or of the wrong form; "
                "prepare the faces again"
            ) from error
        self.fill = CropSpec(self.size, self.margin).fill
        self.digest = hashlib.sha256(json.dumps(self._shards).encode()).hexdigest()
        columns = (group_column,) if isinstance(group_column, str) else tuple(group_column)
        self.labels = Labels.joined(
            [self._shard_labels(file, rows, columns) for file, rows, _ in self._shards]
        )

    def crop(self, margin: float) -> Crop:
        """The canonical crop of a network with this margin.

        Raises:
            ArgumentError: The chips were prepared with less margin.
        """
        return Crop.canonical(self.size, self.margin, margin)

    def chip(self, row: int) -> Chip:
        """(size, size, 3) uint8 RGB of one row, from the cache when ``cache`` has made it."""
        if self._cached is not None:
            return np.asarray(self._cached[row])
        return self._decode(row, self._encoded[row])

    def cache(self, *, threads: int = 2) -> Path:
        """Decode every chip into one file beside the shards, unless it is there already.

        Safe to run from several processes: each writes its own file, and the last one to finish
        takes the name.

        Args:
            threads: Decoders at a time.

        Returns:
            Path of the file: a NumPy array, (rows, size, size, 3) uint8.

        Raises:
            DataError: A shard is not the one of the manifest, a picture cannot be decoded, or the
                folder cannot be written to or is full.
        """
        path = self._cache_path
        if path.is_file():
            return path
        self._check_room(path)
        self._check_digests()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            self._write_cache(temporary, threads)
            os.replace(temporary, path)
        except OSError as error:
            raise DataError(
                f"{path}: the decoded chips cannot be written ({error}); make the folder writable "
                "or set data.cache = false"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        self.__dict__.pop("_cached", None)
        return path

    def __getstate__(self) -> dict[str, Any]:
        # Workers map the file themselves instead of receiving its contents.
        return {k: v for k, v in self.__dict__.items() if k not in ("_cached", "_encoded")}

    @cached_property
    def _cached(self) -> NDArray[np.uint8] | None:
        if not self._cache_path.is_file():
            return None
        chips: NDArray[np.uint8] = np.load(self._cache_path, mmap_mode="r")
        if chips.shape != (len(self.labels), self.size, self.size, 3):
            raise DataError(
                f"{self._cache_path}: holds {chips.shape}, expected "
                f"{(len(self.labels), self.size, self.size, 3)}; delete it"
            )
        return chips

    @cached_property
    def _encoded(self) -> list[bytes]:
        pq = _parquet()
        found: list[bytes] = []
        for file, _, _ in self._shards:
            found += pq.read_table(self.path / file, columns=["image"])["image"].to_pylist()
        return found

    @property
    def _cache_path(self) -> Path:
        return self.path / f"chips-{self.size}-{self.digest[:12]}.npy"

    def _shard_labels(self, file: str, rows: int, group_columns: Sequence[str]) -> Labels:
        pq, path = _parquet(), self.path / file
        if not path.is_file():
            raise DataError(f"{path}: named in {MANIFEST} but not there; prepare the faces again")
        names = pq.read_schema(path).names
        lacking = [name for name in ("image", *_COLUMNS) if name not in names]
        if lacking:
            raise DataError(f"{path}: the columns {', '.join(lacking)} are missing")
        table = pq.read_table(
            path, columns=[*_COLUMNS, *(name for name in group_columns if name in names)]
        )
        if table.num_rows != rows:
            raise DataError(
                f"{path}: {table.num_rows} rows, {MANIFEST} says {rows}; prepare the faces again"
            )
        columns = {name: table[name].to_pylist() for name in table.column_names}
        nothing = [None] * rows
        groups = [columns.get(name, nothing) for name in group_columns]
        return _labels(columns, _combined(groups, rows), where=str(path))

    def _write_cache(self, path: Path, threads: int) -> None:
        pq = _parquet()
        shape = (len(self.labels), self.size, self.size, 3)
        chips = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        start = 0
        with ThreadPoolExecutor(max_workers=threads) as pool:
            for file, rows, _ in self._shards:
                images = pq.read_table(self.path / file, columns=["image"])["image"].to_pylist()
                # In blocks, so that decoded chips do not pile up behind a slow disk.
                for first in range(0, rows, _DECODED_AT_ONCE):
                    block = images[first : first + _DECODED_AT_ONCE]
                    numbers = range(start + first, start + first + len(block))
                    decoded = pool.map(self._decode, numbers, block)
                    for row, chip in zip(numbers, decoded, strict=True):
                        chips[row] = chip
                start += rows
        chips.flush()

    def _decode(self, row: int, content: bytes) -> Chip:
        try:
            with Image.open(io.BytesIO(content)) as picture:
                chip = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.path} row {row}: cannot be decoded: {error}") from error
        if chip.shape != (self.size, self.size, 3):
            raise DataError(
                f"{self.path} row {row}: the chip is {chip.shape[1]}x{chip.shape[0]}, "
                f"{MANIFEST} says {self.size}x{self.size}"
            )
        return chip

    def _check_room(self, path: Path) -> None:
        needed = len(self.labels) * self.size * self.size * 3
        free = shutil.disk_usage(path.parent).free
        if free < needed * 1.05:
            raise DataError(
                f"{path}: decoding {len(self.labels):,} chips takes {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free; make room or set data.cache = false"
            )

    def _check_digests(self) -> None:
        for file, _, sha256 in self._shards:
            with (self.path / file).open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != sha256:
                raise DataError(
                    f"{self.path / file}: SHA-256 is {digest[:12]}..., {MANIFEST} says "
                    f"{sha256[:12]}...; prepare the faces again"
                )


class Draw(NamedTuple):
    """A face to take.

    Attributes:
        row: Of ``PreparedFaces``.
        seed: Of its augmentation.
    """

    row: int
    seed: int


class FaceBatch(NamedTuple):
    """What the loop gets.

    Attributes:
        chips: (B, S, S, 3) uint8 RGB.
        low: (B,) int64, see ``Labels``.
        high: (B,) int64.
        std: (B,) float32.
        female: (B,) int64.
        row: (B,) int64 of ``PreparedFaces``.
    """

    chips: Any
    low: Any
    high: Any
    std: Any
    female: Any
    row: Any


class PreparedFaces:
    """The faces of one split, as a map-style PyTorch data set whose index is a ``Draw``.

    Attributes:
        folders: Where the chips are.
        labels: Of each face.
        size: Side of the network's input in pixels.
    """

    def __init__(
        self,
        folders: Sequence[ShardFolder],
        *,
        split: str | None,
        size: int,
        margin: float,
        settings: AugmentationSettings | None = None,
        datasets: Sequence[str] = (),
        unlabelled: Sequence[ShardFolder] = (),
    ) -> None:
        """Choose the faces.

        Args:
            folders: Prepared faces.
            split: ``train``, ``val`` or ``test``; None takes all.
            size: Side of the network's input in pixels.
            margin: Margin of the network, see ``CropSpec``.
            settings: Augmentation; None gives the canonical crop.
            datasets: Names to keep; empty keeps all.
            unlabelled: Further folders, taken whole and without their labels.

        Raises:
            DataError: No face is left.
            ArgumentError: A folder was prepared with less margin than the network needs.
        """
        self.folders = [*folders, *unlabelled]
        self.size = size
        kept = [_kept(folder, split, datasets) for folder in folders]
        rows = [*kept, *(np.arange(len(folder.labels)) for folder in unlabelled)]
        parts = [f.labels.take(r) for f, r in zip(folders, kept, strict=True)]
        hidden = [folder.labels.without_answers() for folder in unlabelled]
        self.labels = Labels.joined([*parts, *hidden])
        if not len(self.labels):
            wanted = f" of {', '.join(datasets)}" if datasets else ""
            raise DataError(
                f"{', '.join(str(f.path) for f in folders)}: no face{wanted} in split {split!r}; "
                f"there are {_contents(folders)}"
            )
        self._folder: list[int] = [i for i, part in enumerate(rows) for _ in part]
        self._row: list[int] = np.concatenate(rows).tolist()
        self._augment: list[Augmentation] = [
            augmentation(settings, folder.crop(margin), size, folder.fill)
            for folder in self.folders
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> FaceBatch:
        return self.__getitems__([draw])

    def __getitems__(self, draws: Sequence[Draw]) -> FaceBatch:
        """A batch of draws, as NumPy arrays."""
        chips = np.empty((len(draws), self.size, self.size, 3), np.uint8)
        for i, (row, seed) in enumerate(draws):
            chips[i] = self.face(row, seed)
        rows = np.array([draw.row for draw in draws], np.int64)
        labels = self.labels
        return FaceBatch(
            chips,
            labels.low[rows].astype(np.int64),
            labels.high[rows].astype(np.int64),
            labels.std[rows],
            labels.female[rows].astype(np.int64),
            rows,
        )

    def face(self, row: int, seed: int = 0) -> Chip:
        """(S, S, 3) uint8 RGB of one face, augmented from the seed."""
        return self._augment[self._folder[row]](self.prepared_chip(row), seed)

    def prepared_chip(self, row: int) -> Chip:
        """The whole prepared chip of one face."""
        return self.folders[self._folder[row]].chip(self._row[row])

    def folder_of(self, row: int) -> ShardFolder:
        """The folder one face came from."""
        return self.folders[self._folder[row]]


class BalancedDraws:
    """The draws of an epoch, this process's share of them, from a position on.

    A face of a cell with n faces is drawn in proportion to 1 / sqrt(n), so that a cell counts by
    the square root of its size. Draws are systematic (one random offset, equal steps): each face
    comes as often as expected, rounded up or down, never by luck alone. Everything is a function
    of the seed and the epoch.
    """

    def __init__(
        self,
        weights: NDArray[np.float64],
        *,
        batch_size: int,
        batches: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Plan the epochs.

        Args:
            weights: (N,) how often each face comes, relative to the others.
            batch_size: Faces of a batch in one process.
            batches: Batches of an epoch in one process.
            seed: Of the run.
            rank: Number of this process.
            world: Number of processes; together they make the batches that one would make with a
                ``world`` times larger batch.
        """
        self._weights = weights
        self._batch_size, self._batches = batch_size, batches
        self._seed, self._rank, self._world = seed, rank, world
        self._epoch, self._start = 0, 0

    def go_to(self, epoch: int, batch: int = 0) -> None:
        """Where the next iteration starts."""
        self._epoch, self._start = epoch, batch

    def __len__(self) -> int:
        return (self._batches - self._start) * self._batch_size

    def __iter__(self) -> Iterator[Draw]:
        rows, seeds = self.epoch(self._epoch)
        for batch in range(self._start, self._batches):
            first = (batch * self._world + self._rank) * self._batch_size
            for place in range(first, first + self._batch_size):
                yield Draw(int(rows[place]), int(seeds[place]))

    def epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Rows and augmentation seeds of all processes' draws, in order."""
        count = self._batches * self._batch_size * self._world
        sequence = np.random.SeedSequence([self._seed, epoch])
        rng = np.random.default_rng(sequence)
        order = rng.permutation(len(self._weights))
        share = self._weights[order] / self._weights.sum() * count
        upto = np.floor(np.cumsum(share) + rng.random()).astype(np.int64)
        times = np.diff(upto, prepend=0)
        rows = rng.permutation(np.repeat(order, times))
        # The sum of the shares can miss the count by one rounding.
        rows = np.resize(rows, count)
        return rows, sequence.generate_state(count).astype(np.uint32)


def balance_weights(labels: Labels, parts: Sequence[CellPart]) -> NDArray[np.float64]:
    """(N,) 1 / sqrt of the size of each face's cell.

    Args:
        labels: Of the faces; what is unknown is a value of its own.
        parts: What makes a cell.
    """
    _, codes, sizes = np.unique(_cells(labels, parts), return_inverse=True, return_counts=True)
    return 1 / np.sqrt(sizes[codes].astype(np.float64))


def _cells(labels: Labels, parts: Sequence[CellPart]) -> NDArray[np.int64]:
    """(N,) number of each face's cell."""
    values: dict[CellPart, NDArray[Any]] = {
        "dataset": labels.dataset,
        "decade": age_decades(labels),
        "gender": labels.female,
        "group": labels.group,
    }
    cell = np.zeros(len(labels), np.int64)
    for part in parts:
        _, codes = np.unique(values[part], return_inverse=True)
        cell = cell * (int(codes.max(initial=0)) + 1) + codes
    return cell


def group_balance_weights(labels: Labels, parts: Sequence[CellPart]) -> NDArray[np.float64]:
    """(N,) such that every group is drawn equally often, whatever its size.

    Within a group, cells count by the square root of their size, as in ``balance_weights``. Faces
    without a group keep their natural share. A group of few faces is seen again and again: look at
    its size first.

    Args:
        labels: Of the faces.
        parts: What makes a cell within a group.

    Raises:
        DataError: Fewer than two groups are labelled.
    """
    groups, codes = np.unique(labels.group, return_inverse=True)
    named = groups != ""
    if named.sum() < 2:
        found = ", ".join(repr(str(group)) for group in groups[named]) or "none"
        raise DataError(
            f"the audit column of data.group_column names {found} in these {len(labels)} faces; "
            "group_balanced sampling needs two groups or more"
        )
    sizes = np.bincount(codes)
    unnamed = float(sizes[~named].sum()) / len(labels)
    shares = np.where(named, (1 - unnamed) / named.sum(), unnamed)
    inside = balance_weights(labels, tuple(dict.fromkeys((*parts, "group"))))
    return np.asarray(inside / np.bincount(codes, inside)[codes] * shares[codes])


def draw_weights(
    labels: Labels, sampling: Sampling, parts: Sequence[CellPart]
) -> NDArray[np.float64]:
    """(N,) how often each face is drawn, relative to the others.

    Args:
        labels: Of the faces.
        sampling: ``balanced`` as ``balance_weights``, ``group_balanced`` as
            ``group_balance_weights``, ``uniform`` the same for all.
        parts: What makes a cell.

    Raises:
        DataError: See ``group_balance_weights``.
    """
    if sampling == "group_balanced":
        return group_balance_weights(labels, parts)
    return balance_weights(labels, parts if sampling == "balanced" else ())


def loss_weights(
    labels: Labels,
    parts: Sequence[CellPart],
    *,
    power: float,
    limit: float,
    drawn: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """(N,) factor of each face's losses; smaller cells count more.

    Args:
        labels: Of the faces; what is unknown is a value of its own.
        parts: What makes a cell.
        power: A face of a cell with n faces counts by n to the power of minus this: at 1 all cells
            count the same, at 0 all faces.
        limit: Largest factor; the mean is 1.
        drawn: (N,) how often each face is drawn; the mean is that of the draws. None draws all
            alike.

    Returns:
        (N,) float32 over 0.
    """
    _, codes, sizes = np.unique(_cells(labels, parts), return_inverse=True, return_counts=True)
    often = np.ones(len(labels)) if drawn is None else drawn
    share = often / often.sum()
    factors = sizes[codes].astype(np.float64) ** -power
    factors /= share @ factors
    while factors.max() > limit * (1 + 1e-9):
        # What is cut off goes to all the others, which may bring them to the limit in turn.
        at_limit = factors >= limit
        rest = share[~at_limit] @ factors[~at_limit]
        factors[at_limit] = limit
        factors[~at_limit] *= (1 - limit * share[at_limit].sum()) / rest
    return factors.astype(np.float32)


def age_decades(labels: Labels) -> NDArray[np.int64]:
    """(N,) decade of the middle of each age label, -1 without one."""
    middle = (labels.low.astype(np.int64) + labels.high) // 2
    return np.where(labels.low >= 0, middle // 10, UNKNOWN)


def to_tensors(batch: FaceBatch) -> FaceBatch:
    """Collate function: the arrays of a batch as tensors that share their memory."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("train", "training") from error
    return FaceBatch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in batch))


def start_worker(worker: int) -> None:
    """Worker start: one thread each, as there are already several workers."""
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


# --- reading --------------------------------------------------------------------------------------


def _read_manifest(folder: Path) -> Mapping[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: not there; give a folder that 'agelens data prepare' has written"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    found = manifest.get("schema") if isinstance(manifest, dict) else None
    if found != SCHEMA:
        raise DataError(
            f"{path}: schema is {found!r}, expected {SCHEMA!r}; prepare the faces again"
        )
    return dict(manifest)


def _labels(columns: Mapping[str, Sequence[Any]], groups: Sequence[str], *, where: str) -> Labels:
    low = np.array([UNKNOWN if v is None else v for v in columns["age_min"]], np.int64)
    high = np.array([UNKNOWN if v is None else v for v in columns["age_max"]], np.int64)
    wrong = ((low < 0) != (high < 0)) | (low > high)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{where} row {row}: age_min is {columns['age_min'][row]}, age_max is "
            f"{columns['age_max'][row]}; expected both or neither, rising"
        )
    genders = {"female": 1, "male": 0, None: UNKNOWN}
    strange = [g for g in columns["gender"] if g not in genders]
    if strange:
        raise DataError(f"{where}: gender is {strange[0]!r}, expected female, male or nothing")
    std = [np.nan if v is None else v for v in columns["age_std"]]
    return Labels(
        low=np.minimum(low, AGE_COUNT - 1).astype(np.int16),
        high=np.minimum(high, AGE_COUNT - 1).astype(np.int16),
        std=np.array(std, np.float32),
        female=np.array([genders[g] for g in columns["gender"]], np.int8),
        dataset=_text(columns["dataset"]),
        split=_text(columns["split"]),
        source_file=_text(columns["source_file"]),
        group=_text(groups),
    )


def _combined(columns: Sequence[Sequence[Any]], count: int) -> list[str]:
    """One name for each row's values; empty where one of them is missing."""
    if not columns:
        return [""] * count
    return [
        "" if any(value in (None, "") for value in values) else " / ".join(map(str, values))
        for values in zip(*columns, strict=True)
    ]


def _text(values: Sequence[Any]) -> NDArray[np.str_]:
    return np.array(["" if v is None else str(v) for v in values], dtype=np.str_)


def _kept(folder: ShardFolder, split: str | None, datasets: Sequence[str]) -> NDArray[np.int64]:
    unknown = sorted(set(datasets) - set(folder.labels.dataset.tolist()))
    if unknown:
        raise ArgumentError(
            f"{folder.path}: holds no data set {', '.join(unknown)}; "
            f"there are {_contents([folder])}"
        )
    keep = np.ones(len(folder.labels), bool)
    if split is not None:
        keep &= folder.labels.split == split
    if datasets:
        keep &= np.isin(folder.labels.dataset, list(datasets))
    return np.flatnonzero(keep)


def _contents(folders: Sequence[ShardFolder]) -> str:
    pairs: dict[str, int] = {}
    for folder in folders:
        for name, split in zip(folder.labels.dataset, folder.labels.split, strict=True):
            pairs[f"{name} {split}"] = pairs.get(f"{name} {split}", 0) + 1
    return ", ".join(f"{name}: {count}" for name, count in sorted(pairs.items())) or "no faces"


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("train", "reading prepared faces") from error
    return pyarrow.parquet


__all__ = [
    "MANIFEST",
    "SCHEMA",
    "UNKNOWN",
    "BalancedDraws",
    "Draw",
    "FaceBatch",
    "Labels",
    "PreparedFaces",
    "Sampling",
    "ShardFolder",
    "age_decades",
    "balance_weights",
    "draw_weights",
    "group_balance_weights",
    "loss_weights",
    "start_worker",
    "to_tensors",
]
