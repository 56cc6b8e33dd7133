"""
Which faces train, choose and test: by person and by picture, the same mix of ages in each part.

All rows of a person, and all copies of a picture, go to one side. Within an age decade and gender
the order is that of a hash, so that a split needs no state to be made again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from agelens.data.duplicates import DuplicateGroup, RowSets
from agelens.data.schema import FaceTable, FaceWriter, import_pyarrow, with_whole_paths
from agelens.errors import ArgumentError, DataError

DEFAULT_SHARES: Final[Mapping[str, float]] = MappingProxyType(
    {"train": 0.8, "val": 0.1, "test": 0.1}
)
Method = Literal["quota", "hash"]


@dataclass(frozen=True)
class SplitOptions:
    """How to split.

    Attributes:
        shares: Share of the faces of each split, summing to 1.
        seed: Another seed gives another split.
        method: "quota" gives each age decade and gender the shares as nearly as whole people
            allow; when faces are added, those near a border may change sides unless ``keep`` names
            the earlier split. "hash" decides each person by their hash alone: adding faces never
            moves another person, and the shares hold only on average.
    """

    shares: Mapping[str, float] = field(default_factory=lambda: DEFAULT_SHARES)
    seed: int = 0
    method: Method = "quota"

    def __post_init__(self) -> None:
        total = sum(self.shares.values())
        if not self.shares or min(self.shares.values()) < 0 or abs(total - 1) > 1e-6:
            raise ArgumentError(f"shares must be 0 or more and sum to 1, got {dict(self.shares)}")
        if self.method not in ("quota", "hash"):
            raise ArgumentError(f"method must be 'quota' or 'hash', got {self.method!r}")


@dataclass(frozen=True)
class SplitReport:
    """How a table was split.

    Attributes:
        splits: Split of each row.
        counts: Faces of each split.
        strata: Faces by stratum ("20-29 female") and split.
        families: Groups of rows that had to stay together, single rows included.
        largest: Rows of the largest of them.
    """

    splits: tuple[str, ...]
    counts: dict[str, int]
    strata: dict[str, dict[str, int]]
    families: int
    largest: int


def split_rows(
    names: Sequence[str],
    strata: Sequence[str],
    *,
    families: Sequence[Sequence[int]] = (),
    keep: Sequence[str | None] | None = None,
    options: SplitOptions | None = None,
) -> SplitReport:
    """Assign rows to splits.

    Args:
        names: Lasting name of each row, such as data set and source file; what the hash is of.
        strata: Stratum of each row.
        families: Rows that must stay together; families that share a row are one.
        keep: Split that a row has already and keeps, or None; its family follows it.
        options: How; None for the defaults.

    Raises:
        ArgumentError: The sequences differ in length.
        DataError: A family has rows with two different kept splits.
    """
    chosen = options or SplitOptions()
    held = [None] * len(names) if keep is None else list(keep)
    if not len(names) == len(strata) == len(held):
        raise ArgumentError(f"got {len(names)} names, {len(strata)} strata, {len(held)} splits")
    members = _families(len(names), families)
    placed: list[str] = [""] * len(names)
    open_families: dict[str, list[list[int]]] = defaultdict(list)
    quota: dict[str, Counter[str]] = defaultdict(Counter)
    for family in members:
        stratum = strata[_head(family, names)]
        split = _kept(family, held, names)
        if split is None:
            open_families[stratum].append(family)
        else:
            quota[stratum][split] += len(family)
            _place(placed, family, split)
    for stratum, waiting in sorted(open_families.items()):
        _split_stratum(placed, waiting, names, stratum, quota[stratum], chosen)
    table: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(chosen.shares, 0))
    for stratum, split in zip(strata, placed, strict=True):
        table[stratum][split] = table[stratum].get(split, 0) + 1
    counts = Counter(placed)
    return SplitReport(
        tuple(placed),
        {split: counts[split] for split in dict.fromkeys([*chosen.shares, *counts])},
        dict(sorted(table.items())),
        len(members),
        max((len(family) for family in members), default=0),
    )


def _split_stratum(
    placed: list[str],
    families: list[list[int]],
    names: Sequence[str],
    stratum: str,
    filled: Counter[str],
    options: SplitOptions,
) -> None:
    keyed = sorted(
        (_unit(options.seed, names[_head(family, names)]), family) for family in families
    )
    if options.method == "hash":
        for unit, family in keyed:
            _place(placed, family, _at(unit, options.shares))
        return
    waiting = sum(map(len, families))
    whole = waiting + sum(filled.values())
    # What kept rows hold already is not given out again.
    wanted = {s: max(0.0, share * whole - filled[s]) for s, share in options.shares.items()}
    shares = {split: rows / sum(wanted.values()) for split, rows in wanted.items()}
    # A stratum of two rows would always train; its own starting point makes that fair on average.
    start = _unit(options.seed, f"stratum {stratum}")
    before = 0
    for _, family in keyed:
        middle = (before + len(family) / 2) / waiting
        _place(placed, family, _at((start + middle) % 1.0, shares))
        before += len(family)


def _at(unit: float, shares: Mapping[str, float]) -> str:
    """The split whose part of 0..1 holds a number."""
    upto = 0.0
    last = ""
    for split, share in shares.items():
        upto += share
        last = split if share > 0 else last
        if unit < upto:
            return split
    return last


def _unit(seed: int, name: str) -> float:
    """A number within 0..1 that depends on the seed and the name alone."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _place(placed: list[str], family: Sequence[int], split: str) -> None:
    for row in family:
        placed[row] = split


def _head(family: Sequence[int], names: Sequence[str]) -> int:
    """The row that speaks for a family, whatever order rows come in."""
    return min(family, key=lambda row: names[row])


def _kept(family: Sequence[int], held: Sequence[str | None], names: Sequence[str]) -> str | None:
    splits = sorted({split for split in (held[row] for row in family) if split is not None})
    if len(splits) > 1:
        rows = ", ".join(f"{names[row]} ({held[row]})" for row in family if held[row] is not None)
        raise DataError(
            f"these faces belong together but are in {' and '.join(splits)} already: {rows}; "
            "clear the split of some of them first"
        )
    return splits[0] if splits else None


def _families(rows: int, families: Sequence[Sequence[int]]) -> list[list[int]]:
    sets = RowSets(rows)
    for family in families:
        for row in family[1:]:
            sets.join(family[0], row)
    return sets.all()


# --- tables ---------------------------------------------------------------------------------------


def split_table(
    table: FaceTable,
    options: SplitOptions | None = None,
    *,
    duplicates: Sequence[DuplicateGroup] = (),
    keep: FaceTable | None = None,
    keep_own: bool = False,
) -> SplitReport:
    """Split a table by subject and duplicate group, stratified by age decade and gender.

    Args:
        table: The faces; their pictures are not read.
        options: How; None for the defaults.
        duplicates: From ``duplicates.find_duplicates``.
        keep: An earlier table whose faces keep their split; matched by data set and source file.
        keep_own: Rows of this table that have a split keep it.

    Raises:
        DataError: Faces that belong together are on two sides of a split that is to be kept.
    """
    columns = ["dataset", "source_file", "split", "age_min", "age_max", "gender", "subject"]
    labels = table.labels(columns).to_pydict()
    names = [
        f"{dataset}/{file if file is not None else row}"
        for row, (dataset, file) in enumerate(
            zip(labels["dataset"], labels["source_file"], strict=True)
        )
    ]
    strata = [
        stratum_of(low, high, gender)
        for low, high, gender in zip(
            labels["age_min"], labels["age_max"], labels["gender"], strict=True
        )
    ]
    families: list[Sequence[int]] = [group.rows for group in duplicates]
    families += _by_subject(labels["dataset"], labels["subject"])
    earlier = _earlier_splits(keep) if keep is not None else {}
    held = [
        (own if keep_own else None) or earlier.get(name)
        for own, name in zip(labels["split"], names, strict=True)
    ]
    return split_rows(names, strata, families=families, keep=held, options=options)


def stratum_of(low: int | None, high: int | None, gender: str | None) -> str:
    """Age decade and gender of a label, such as "20-29 female"."""
    if low is None or high is None:
        ages = "no age"
    else:
        decade = min((low + high) // 20, 9) * 10
        ages = f"{decade}-{decade + 9}" if decade < 90 else "90+"
    return f"{ages} {gender or 'unlabelled'}"


def _by_subject(datasets: Sequence[str], subjects: Sequence[str | None]) -> list[list[int]]:
    rows_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, (dataset, subject) in enumerate(zip(datasets, subjects, strict=True)):
        if subject is not None:
            rows_of[dataset, subject].append(row)
    return list(rows_of.values())


def _earlier_splits(table: FaceTable) -> dict[str, str]:
    labels = table.labels(["dataset", "source_file", "split"]).to_pydict()
    told = zip(labels["dataset"], labels["source_file"], labels["split"], strict=True)
    return {f"{dataset}/{file}": split for dataset, file, split in told if split is not None}


def write_split(table: FaceTable, report: SplitReport, output: Path) -> None:
    """Write the table with its new split column to one Parquet file, whole or not at all.

    Raises:
        DataError: The report is of another table.
    """
    if len(report.splits) != table.num_rows:
        raise DataError(
            f"the split is of {len(report.splits)} rows, the table has {table.num_rows}"
        )
    pa = import_pyarrow()
    with FaceWriter(output, table.audit) as writer:
        for start, batch in table.batches():
            splits = pa.array(report.splits[start : start + batch.num_rows], pa.string())
            place = batch.schema.get_field_index("split")
            file, _ = table.locate(start)
            writer.write_batch(with_whole_paths(batch.set_column(place, "split", splits), file))
