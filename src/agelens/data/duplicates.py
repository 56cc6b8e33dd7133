"""
The same picture twice: content hashes find copies, perceptual hashes find re-saved ones.

The perceptual hash is the sign pattern of the 256 lowest frequencies of a 64 x 64 grey picture
against their median (DCT hash, after Zauner, "Implementation and benchmarking of perceptual image
hash functions", 2010). Near pairs are found by multi-index hashing (Norouzi, Punjani and Fleet,
"Fast exact search in Hamming space with multi-index hashing", PAMI 2014), so that no pair is missed
and few are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from agelens.data.schema import FaceTable, picture_source
from agelens.data.workers import Progress, run_tasks
from agelens.errors import ArgumentError, ImageError
from agelens.images import load_image

HASH_BITS: Final = 256
DEFAULT_DISTANCE: Final = 24
"""Bits that re-saved pictures may differ in. Re-encoding, halving the size and changing the
brightness move at most 13 on UTKFace and FairFace; different pictures are 60 and more apart."""

_SIDE: Final = 64
_LOW: Final = 16
_BLANK_CONTRAST: Final = 4.0
_ROWS_A_TASK: Final = 500
_LONGEST_RUN: Final = 1024


@dataclass(frozen=True, eq=False)
class PictureFacts:
    """What reading every picture of a table told, one entry a row.

    Attributes:
        errors: Why a picture cannot be read, by row: code and message.
        sizes: (rows, 2) int32 width and height; 0 where it cannot be read.
        content: (rows,) 16 bytes: BLAKE2b of the encoded picture; zeros where there is none.
        hashes: (rows, 4) uint64 perceptual hash.
        mirrored: (rows, 4) uint64 perceptual hash of the mirrored picture.
        contrast: (rows,) float32 standard deviation of the grey levels; 0 for one flat colour.
    """

    errors: dict[int, tuple[str, str]]
    sizes: NDArray[np.int32]
    content: NDArray[np.void]
    hashes: NDArray[np.uint64]
    mirrored: NDArray[np.uint64]
    contrast: NDArray[np.float32]

    @classmethod
    def empty(cls, rows: int) -> Self:
        """Facts of pictures that were not read yet."""
        return cls(
            {},
            np.zeros((rows, 2), np.int32),
            np.zeros(rows, "V16"),
            np.zeros((rows, 4), np.uint64),
            np.zeros((rows, 4), np.uint64),
            np.zeros(rows, np.float32),
        )

    def record(self, row: int, encoded: bytes, pixels: NDArray[np.uint8] | None) -> None:
        """Note what one picture is.

        Args:
            row: Its row.
            encoded: The file's bytes.
            pixels: (H, W, 3) uint8 RGB, or None when it cannot be decoded.
        """
        self.content[row] = np.void(hashlib.blake2b(encoded, digest_size=16).digest())
        if pixels is None:
            return
        self.sizes[row] = (pixels.shape[1], pixels.shape[0])
        grey = _small_grey(pixels)
        self.contrast[row] = grey.std()
        self.hashes[row] = _hash_of(grey)
        self.mirrored[row] = _hash_of(grey[:, ::-1])

    @property
    def comparable(self) -> NDArray[np.bool_]:
        """(rows,) False where a perceptual hash says nothing: unreadable or blank pictures."""
        return (self.sizes[:, 0] > 0) & (self.contrast >= _BLANK_CONTRAST)

    @property
    def blank(self) -> NDArray[np.bool_]:
        """(rows,) True for pictures of one flat colour."""
        return (self.sizes[:, 0] > 0) & (self.contrast < _BLANK_CONTRAST)


@dataclass(frozen=True)
class DuplicateGroup:
    """Rows that show the same picture.

    Attributes:
        rows: Rising.
        copies: Those among them that are byte for byte the same, in sets of two and more.
        distance: Most differing bits along the links that hold the group together.
    """

    rows: tuple[int, ...]
    copies: tuple[tuple[int, ...], ...]
    distance: int

    @property
    def exact(self) -> bool:
        """True when all rows are byte for byte the same."""
        return self.copies == (self.rows,)


def read_pictures(
    table: FaceTable, *, workers: int | None = None, progress: Progress | None = None
) -> PictureFacts:
    """Read and hash every picture of a table.

    Args:
        table: The faces.
        workers: Processes; None takes one a core.
        progress: Told rows done and rows in all.
    """
    rows = table.num_rows
    facts = PictureFacts.empty(rows)
    tasks = [
        (table, first, min(_ROWS_A_TASK, rows - first)) for first in range(0, rows, _ROWS_A_TASK)
    ]
    done = 0
    for place, part in run_tasks(_read_some, tasks, workers=workers):
        first, count = tasks[place][1:]
        facts.errors.update({first + row: told for row, told in part.errors.items()})
        for name in ("sizes", "content", "hashes", "mirrored", "contrast"):
            getattr(facts, name)[first : first + count] = getattr(part, name)
        done += count
        if progress is not None:
            progress(done, rows)
    return facts


def _read_some(task: tuple[FaceTable, int, int]) -> PictureFacts:
    table, first, count = task
    facts = PictureFacts.empty(count)
    for start, batch in table.slice(first, count, ["image", "path"]):
        for offset, row in enumerate(batch.to_pylist()):
            place = start + offset - first
            file, _ = table.locate(start + offset)
            try:
                _read_one(facts, place, picture_source(row["image"], row["path"], file))
            except ImageError as error:
                facts.errors[place] = (error.code, error.message)
    return facts


def _read_one(facts: PictureFacts, place: int, source: bytes | Path) -> None:
    encoded = encoded_picture(source)
    facts.record(place, encoded, None)
    facts.record(place, encoded, load_image(encoded).pixels)


def encoded_picture(source: bytes | Path) -> bytes:
    """The bytes of a row's picture.

    Raises:
        ImageError: Its file cannot be read.
    """
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except FileNotFoundError as error:
        raise ImageError("not_found", "no such file", where=str(source)) from error
    except OSError as error:
        raise ImageError("not_readable", str(error), where=str(source)) from error


def perceptual_hash(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """256-bit perceptual hash of an (H, W, 3) uint8 RGB picture, as (4,) uint64."""
    return _hash_of(_small_grey(pixels))


def _small_grey(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    import cv2

    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def _hash_of(grey: NDArray[np.float32]) -> NDArray[np.uint64]:
    import cv2

    low = cv2.dct(np.ascontiguousarray(grey))[:_LOW, :_LOW].ravel()
    # The constant term is the brightness, which must not decide where the median lies.
    bits = low > np.median(low[1:])
    return np.packbits(bits).view(np.uint64)


def hamming(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Differing bits of hashes (..., 4) uint64."""
    differing: NDArray[np.int64] = np.bitwise_count(a ^ b).sum(-1, dtype=np.int64)
    return differing


# --- groups ---------------------------------------------------------------------------------------


def find_duplicates(
    facts: PictureFacts, *, max_distance: int = DEFAULT_DISTANCE, mirrored: bool = True
) -> list[DuplicateGroup]:
    """Groups of rows that show the same picture, in order of their first row.

    Args:
        facts: From ``read_pictures``.
        max_distance: Bits of the perceptual hash that may differ, 0..64.
        mirrored: Also find pictures that are the mirror image of another.

    Raises:
        ArgumentError: ``max_distance`` is out of range.
    """
    if not 0 <= max_distance <= 64:
        raise ArgumentError(f"max_distance must be within 0..64 bits, got {max_distance}")
    links = RowSets(len(facts.contrast))
    readable = np.flatnonzero(facts.sizes[:, 0] > 0)
    for run in _equal_runs(facts.content[readable]):
        rows = readable[run]
        for row in rows[1:]:
            links.join(int(rows[0]), int(row), 0)
    rows = np.flatnonzero(facts.comparable)
    hashes = facts.hashes[rows]
    seen = np.arange(len(rows))
    if mirrored:
        hashes = np.concatenate([hashes, facts.mirrored[rows]])
        seen = np.concatenate([seen, seen])
    for a, b, distance in near_pairs(hashes, max_distance):
        links.join(int(rows[seen[a]]), int(rows[seen[b]]), distance)
    return [_group(rows_of, far, facts) for rows_of, far in links.joined()]


def _group(rows: list[int], far: int, facts: PictureFacts) -> DuplicateGroup:
    same: dict[bytes, list[int]] = {}
    for row in rows:
        same.setdefault(facts.content[row].tobytes(), []).append(row)
    copies = tuple(tuple(held) for held in same.values() if len(held) > 1)
    return DuplicateGroup(tuple(rows), copies, far)


class RowSets:
    """Rows joined to sets (union-find with path halving)."""

    def __init__(self, rows: int) -> None:
        self._parent = list(range(rows))
        self._far: dict[int, int] = {}

    def join(self, a: int, b: int, distance: int = 0) -> None:
        """Put two rows, and all that were joined to them, into one set."""
        first, second = self._root(a), self._root(b)
        low, high = min(first, second), max(first, second)
        if low != high:
            self._far[low] = max(self._far.get(low, 0), self._far.pop(high, 0), distance)
            self._parent[high] = low

    def all(self) -> list[list[int]]:
        """Every set with its rows rising, single rows included, by first row."""
        members: dict[int, list[int]] = {}
        for row in range(len(self._parent)):
            members.setdefault(self._root(row), []).append(row)
        return list(members.values())

    def joined(self) -> list[tuple[list[int], int]]:
        """Sets of two rows and more, each with the greatest distance that it was joined over."""
        return [(rows, self._far[rows[0]]) for rows in self.all() if len(rows) > 1]

    def _root(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row


def near_pairs(hashes: NDArray[np.uint64], max_distance: int) -> Iterator[tuple[int, int, int]]:
    """Pairs of hashes that differ in at most ``max_distance`` bits, with their distance.

    Equal hashes are given as a chain, not as all their pairs. The bits are dealt to
    ``max_distance + 2`` bands: two hashes that near agree in at least two whole bands, so only
    those that agree in some two bands are compared.

    Args:
        hashes: (N, 4) uint64.
        max_distance: Bits, 0..64.
    """
    unique, inverse = np.unique(hashes, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    order = np.argsort(inverse, kind="stable")
    starts = np.flatnonzero(np.diff(inverse[order], prepend=-1))
    first = order[starts]
    for at, row in enumerate(order[1:], start=1):
        if inverse[row] == inverse[order[at - 1]]:
            yield int(order[at - 1]), int(row), 0
    if max_distance == 0:
        return
    for a, b, distance in _distinct_pairs(unique, max_distance):
        yield int(first[a]), int(first[b]), distance


def _distinct_pairs(
    hashes: NDArray[np.uint64], max_distance: int
) -> Iterator[tuple[int, int, int]]:
    bands = _bands(hashes, max_distance + 2)
    known: set[int] = set()
    for one, two in combinations(range(bands.shape[1]), 2):
        key = bands[:, one] << np.uint64(32) | bands[:, two]
        for left, right in _pairs_of_equal(key):
            distance = hamming(hashes[left], hashes[right])
            near = np.flatnonzero(distance <= max_distance)
            for at in near:
                a, b = sorted((int(left[at]), int(right[at])))
                # The same pair agrees in many bands.
                if a * len(hashes) + b not in known:
                    known.add(a * len(hashes) + b)
                    yield a, b, int(distance[at])


def _bands(hashes: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """(N, count) uint64: the bits dealt to bands in turn, since neighbours go together."""
    bits = np.unpackbits(hashes.view(np.uint8).reshape(len(hashes), HASH_BITS // 8), axis=1)
    bands = np.zeros((len(hashes), count), np.uint64)
    for bit in range(HASH_BITS):
        band = bit % count
        bands[:, band] = bands[:, band] << np.uint64(1) | bits[:, bit].astype(np.uint64)
    return bands


def _pairs_of_equal(key: NDArray[np.uint64]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Index pairs with equal keys, in blocks.

    Each is paired with the 1,024 that follow it among its equals, so that a flood of pictures that
    are alike in two bands costs no more than that times its length.
    """
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    begin = np.arange(len(key))
    for step in range(1, _LONGEST_RUN + 1):
        begin = begin[begin + step < len(key)]
        begin = begin[ordered[begin] == ordered[begin + step]]
        if len(begin) == 0:
            return
        yield order[begin], order[begin + step]


def _equal_runs(values: NDArray[np.void]) -> Iterator[NDArray[np.intp]]:
    """Indices of values that occur more than once, each value's together."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(counts)
    for value in np.flatnonzero(counts > 1):
        yield order[ends[value] - counts[value] : ends[value]]


def group_of_rows(groups: Sequence[DuplicateGroup], rows: int) -> list[int | None]:
    """Number of the group each row belongs to; None for pictures that are there once."""
    numbers: list[int | None] = [None] * rows
    for number, group in enumerate(groups):
        for row in group.rows:
            numbers[row] = number
    return numbers
