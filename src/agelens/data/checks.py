"""
What is wrong with a data set before it is trained on: files, labels, leaks, balance and licences.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from agelens.data.duplicates import (
    DEFAULT_DISTANCE,
    DuplicateGroup,
    PictureFacts,
    find_duplicates,
    read_pictures,
)
from agelens.data.schema import OPEN_AGE, FaceTable, LicenceClass, RowProblem, find_row_problems
from agelens.data.stats import DEFAULT_EDGES, AgeCounts, band_names, count_labels
from agelens.data.workers import Progress
from agelens.errors import ArgumentError

REPORT_SCHEMA: Final = "agelens.data-check/1"
Severity = Literal["error", "warning", "info"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "info")

CODES: Final[dict[str, str]] = {
    "missing-file": "a picture's file is not there",
    "unreadable": "a picture cannot be decoded",
    "bad-label": "a row holds what no face can have",
    "unlabelled": "a face has neither age nor gender",
    "suspicious-age": "an age is possible but unlikely to be right",
    "small-picture": "a picture is too small for a face",
    "blank-picture": "a picture is one flat colour",
    "copies-across-splits": "the same file is in two splits",
    "near-copies-across-splits": "the same picture, saved again, is in two splits",
    "copies-disagree": "the same file has two different labels",
    "near-copies-disagree": "the same picture, saved again, has two different labels",
    "copies": "the same picture is there more than once within a split",
    "subject-across-splits": "one person is in two splits",
    "few-of-an-age": "an age band has hardly any faces",
    "gender-balance": "one gender has hardly any faces",
    "licence-class": "research-only rows are in a set meant for commercial weights",
    "licence-unknown": "rows do not state their licence class",
    "licence-mixed": "commercial and research-only rows are together",
    "mixed-age-kinds": "real and apparent ages are together",
}
"""Codes of findings and what each means."""


@dataclass(frozen=True)
class CheckOptions:
    """What to look for.

    Attributes:
        licence_class: What the weights are meant for; "commercial" makes research-only rows an
            error.
        max_distance: Differing bits of 256 up to which two pictures are the same one, saved again.
        mirrored: Also compare with mirror images.
        min_side: Least width and height of a picture in pixels.
        oldest_usual: Ages above are possible but suspicious.
        widest_range: Ranges of more years are suspicious, unless they are open at the top.
        near_tolerance: Years by which the ages of near copies may differ.
        min_band_share: Least share of the faces with an age that each age band should have.
        min_gender_share: Least share of the labelled faces that each gender should have.
        allowed: Codes whose errors are made warnings.
    """

    licence_class: LicenceClass | None = None
    max_distance: int = DEFAULT_DISTANCE
    mirrored: bool = True
    min_side: int = 32
    oldest_usual: int = 100
    widest_range: int = 30
    near_tolerance: int = 2
    min_band_share: float = 0.01
    min_gender_share: float = 0.35
    allowed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [code for code in self.allowed if code not in CODES]
        if unknown:
            raise ArgumentError(f"no finding is called {unknown[0]!r}; they are {', '.join(CODES)}")


@dataclass(frozen=True)
class RowGroup:
    """Rows that one remark is about: a single face, or several that belong together.

    Attributes:
        rows: Row numbers in the table.
        note: What is the matter with them.
    """

    rows: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong, with every row it concerns.

    Attributes:
        code: One of ``CODES``.
        severity: "error", "warning" or "info".
        title: What was found, with numbers.
        advice: What to do.
        groups: The rows, in groups.
    """

    code: str
    severity: Severity
    title: str
    advice: str
    groups: tuple[RowGroup, ...] = ()


@dataclass(frozen=True, eq=False)
class CheckReport:
    """Everything that was found.

    Attributes:
        table: The faces that were looked at.
        findings: Errors first.
        counts: Ages by gender by data set.
        splits: Faces by split; "(none)" for faces without one.
        licences: Faces by data set, licence and licence class.
        pictures: What reading the pictures told, or None when they were not read.
        duplicates: Groups of the same picture.
        seconds: Time that the check took.
    """

    table: FaceTable
    findings: tuple[Finding, ...]
    counts: AgeCounts
    splits: dict[str, int]
    licences: tuple[tuple[str, str, str, int], ...]
    pictures: PictureFacts | None
    duplicates: tuple[DuplicateGroup, ...]
    seconds: float

    @property
    def has_errors(self) -> bool:
        """True when a finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Wire form, naming every row as ``FILE#ROW``."""
        return {
            "schema": REPORT_SCHEMA,
            "files": [file.name for file in self.table.files],
            "rows": self.table.num_rows,
            "seconds": round(self.seconds, 1),
            "findings": [self._wire(finding) for finding in self.findings],
            "splits": self.splits,
            "balance": self.counts.to_dict(),
            "licences": [
                {"dataset": name, "licence": licence, "licence_class": kind, "rows": rows}
                for name, licence, kind, rows in self.licences
            ],
        }

    def _wire(self, finding: Finding) -> dict[str, Any]:
        return {
            "code": finding.code,
            "severity": finding.severity,
            "title": finding.title,
            "advice": finding.advice,
            "groups": [
                {"rows": [self.table.name_of(row) for row in group.rows], "note": group.note}
                for group in finding.groups
            ],
        }


def check_faces(
    table: FaceTable,
    options: CheckOptions | None = None,
    *,
    read: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Look a data set over.

    Args:
        table: The faces.
        options: What to look for.
        read: Read the pictures; without, files, sizes and duplicates are not checked.
        workers: Processes that read; None takes one a core.
        progress: Told rows read and rows in all.

    Raises:
        DataError: The table cannot be read.
    """
    begin = time.monotonic()
    chosen = options or CheckOptions()
    problems = _bad_rows(table)
    labels = _Labels(table)
    facts = read_pictures(table, workers=workers, progress=progress) if read else None
    duplicates: list[DuplicateGroup] = []
    if facts is not None:
        duplicates = find_duplicates(
            facts, max_distance=chosen.max_distance, mirrored=chosen.mirrored
        )
    counts = count_labels(
        labels.age_min, labels.age_max, labels.gender, labels.dataset, by="dataset"
    )
    found: list[Finding] = [
        *_label_findings(labels, problems, chosen),
        *(_picture_findings(facts, chosen) if facts is not None else ()),
        *_duplicate_findings(duplicates, labels, chosen),
        *_subject_findings(labels),
        *_balance_findings(labels, chosen),
        *_licence_findings(labels, chosen),
    ]
    judged = [_allowed(finding, chosen.allowed) for finding in found]
    return CheckReport(
        table,
        tuple(sorted(judged, key=lambda finding: SEVERITIES.index(finding.severity))),
        counts,
        dict(sorted(Counter(name or "(none)" for name in labels.split).items())),
        _licence_table(labels),
        facts,
        tuple(duplicates),
        time.monotonic() - begin,
    )


def _allowed(finding: Finding, allowed: Sequence[str]) -> Finding:
    if finding.severity == "error" and finding.code in allowed:
        return replace(finding, severity="warning", title=f"{finding.title} (allowed)")
    return finding


class _Labels:
    """The label columns of a table as lists, one entry a row."""

    def __init__(self, table: FaceTable) -> None:
        columns = table.labels(_LABEL_COLUMNS).to_pydict()
        self.age_min: list[int | None] = columns["age_min"]
        self.age_max: list[int | None] = columns["age_max"]
        self.age_kind: list[str | None] = columns["age_kind"]
        self.gender: list[str | None] = columns["gender"]
        self.dataset: list[str] = columns["dataset"]
        self.split: list[str | None] = columns["split"]
        self.subject: list[str | None] = columns["subject"]
        self.licence: list[str | None] = columns["licence"]
        self.licence_class: list[str | None] = columns["licence_class"]

    def __len__(self) -> int:
        return len(self.dataset)

    def ages(self, row: int) -> tuple[int, int] | None:
        """Lowest and highest age of a row, or None."""
        low, high = self.age_min[row], self.age_max[row]
        return None if low is None or high is None else (low, high)

    def splits_of(self, rows: Iterable[int]) -> list[str]:
        """Names of the splits that rows are in, sorted."""
        return sorted({name for name in (self.split[row] for row in rows) if name is not None})


_LABEL_COLUMNS: Final = (
    "age_min",
    "age_max",
    "age_kind",
    "gender",
    "dataset",
    "split",
    "subject",
    "licence",
    "licence_class",
)


def _singles(rows: Iterable[int], note: Callable[[int], str] | str = "") -> tuple[RowGroup, ...]:
    return tuple(RowGroup((row,), note if isinstance(note, str) else note(row)) for row in rows)


def _faces(count: int) -> str:
    return f"{count:,} face{'' if count == 1 else 's'}"


# --- labels and pictures --------------------------------------------------------------------------


def _bad_rows(table: FaceTable) -> dict[int, list[RowProblem]]:
    problems: dict[int, list[RowProblem]] = defaultdict(list)
    columns = [c for c in table.columns if c not in ("image", "licence")]
    for start, batch in table.batches(columns, size=4096):
        for problem in find_row_problems(batch, "", start):
            # Whether there is a picture is told by reading it.
            if problem.row is not None and problem.column != "image":
                problems[problem.row].append(problem)
    return dict(problems)


def _label_findings(
    labels: _Labels, problems: dict[int, list[RowProblem]], options: CheckOptions
) -> list[Finding]:
    findings = []
    if problems:
        notes = {
            row: "; ".join(f"{p.column} {p.value!r}: {p.reason}" for p in found)
            for row, found in problems.items()
        }
        findings.append(
            Finding(
                "bad-label",
                "error",
                f"{_faces(len(problems))} hold what no face can have",
                "Correct these rows where they come from, or drop them.",
                _singles(problems, lambda row: notes[row]),
            )
        )
    bare = [
        row
        for row in range(len(labels))
        if labels.ages(row) is None and labels.gender[row] is None and row not in problems
    ]
    if bare:
        findings.append(
            Finding(
                "unlabelled",
                "warning",
                f"{_faces(len(bare))} have neither age nor gender",
                "They teach nothing but as unlabelled faces in distillation.",
                _singles(bare),
            )
        )
    odd = {
        row: reason
        for row in range(len(labels))
        if row not in problems and (reason := _suspicion(labels.ages(row), options)) is not None
    }
    if odd:
        findings.append(
            Finding(
                "suspicious-age",
                "warning",
                f"{_faces(len(odd))} have an unlikely age",
                "Look at them; outright mistakes are cheaper to drop than to train on.",
                _singles(odd, lambda row: odd[row]),
            )
        )
    kinds = Counter(kind for kind in labels.age_kind if kind is not None)
    if len(kinds) > 1:
        told = " and ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
        findings.append(
            Finding(
                "mixed-age-kinds",
                "info",
                f"{told} ages are together",
                "How old somebody is and how old they look are two questions; report them apart.",
            )
        )
    return findings


def _suspicion(ages: tuple[int, int] | None, options: CheckOptions) -> str | None:
    if ages is None:
        return None
    low, high = ages
    if low > options.oldest_usual:
        return f"age {low} is very rare"
    if high - low > options.widest_range and high < OPEN_AGE:
        return f"the range {low}-{high} says little"
    return None


def _picture_findings(facts: PictureFacts, options: CheckOptions) -> list[Finding]:
    findings = []
    missing = sorted(row for row, told in facts.errors.items() if told[0] == "not_found")
    broken = sorted(row for row, told in facts.errors.items() if told[0] != "not_found")
    for code, rows, title in (
        ("missing-file", missing, "are not there"),
        ("unreadable", broken, "cannot be read"),
    ):
        if rows:
            findings.append(
                Finding(
                    code,
                    "error",
                    f"{len(rows):,} picture{'' if len(rows) == 1 else 's'} {title}",
                    "Fetch or unpack them again, or drop these rows.",
                    _singles(rows, lambda row: ": ".join(facts.errors[row])),
                )
            )
    sides = facts.sizes.min(axis=1)
    small = np.flatnonzero((sides > 0) & (sides < options.min_side)).tolist()
    if small:
        findings.append(
            Finding(
                "small-picture",
                "warning",
                f"{len(small):,} pictures are under {options.min_side} pixels",
                "Faces this small say little of an age; drop them or keep them for hard tests.",
                _singles(small, lambda row: "{} x {} px".format(*facts.sizes[row])),
            )
        )
    blank = np.flatnonzero(facts.blank).tolist()
    if blank:
        findings.append(
            Finding(
                "blank-picture",
                "warning",
                f"{len(blank):,} pictures are one flat colour",
                "Drop them.",
                _singles(blank),
            )
        )
    return findings


# --- duplicates and subjects ----------------------------------------------------------------------


def _duplicate_findings(
    duplicates: Sequence[DuplicateGroup], labels: _Labels, options: CheckOptions
) -> list[Finding]:
    across: dict[bool, list[RowGroup]] = {True: [], False: []}
    clash: dict[bool, list[RowGroup]] = {True: [], False: []}
    within: list[RowGroup] = []
    for group in duplicates:
        splits = labels.splits_of(group.rows)
        if len(splits) > 1:
            same_file = any(len(labels.splits_of(rows)) > 1 for rows in group.copies)
            across[same_file].append(RowGroup(group.rows, _kinship(group, splits)))
        elif _count_repeats(group.rows, labels):
            within.append(RowGroup(group.rows, _kinship(group, splits)))
        exact, said = _clashes(group, labels, options)
        clash[exact] += said
    findings = []
    for exact, groups in across.items():
        if groups:
            findings.append(_across_finding(exact, groups))
    for exact, groups in clash.items():
        if groups:
            findings.append(_clash_finding(exact, groups))
    if within:
        extra = sum(len(group.rows) - 1 for group in within)
        findings.append(
            Finding(
                "copies",
                "info",
                f"{len(within):,} pictures are there more than once ({extra:,} copies too many)",
                "Keep one of each; 'agelens data split' keeps them on one side.",
                tuple(within),
            )
        )
    return findings


def _clashes(
    group: DuplicateGroup, labels: _Labels, options: CheckOptions
) -> tuple[bool, list[RowGroup]]:
    """Contradictions within a group: those of one file when there are any, else those of all."""
    of_files = [
        RowGroup(rows, said) for rows in group.copies if (said := _disagreement(rows, labels, 0))
    ]
    if of_files or group.exact:
        return True, of_files
    said = _disagreement(group.rows, labels, options.near_tolerance)
    return False, [RowGroup(group.rows, said)] if said else []


def _count_repeats(rows: Sequence[int], labels: _Labels) -> bool:
    return any(count > 1 for count in Counter(labels.split[row] for row in rows).values())


def _kinship(group: DuplicateGroup, splits: Sequence[str]) -> str:
    how = "the same file" if group.exact else f"saved again, up to {group.distance} bits differ"
    return f"{how}, in {' and '.join(splits)}" if splits else how


def _across_finding(exact: bool, groups: Sequence[RowGroup]) -> Finding:
    code = "copies-across-splits" if exact else "near-copies-across-splits"
    what = "are" if exact else "are, saved again,"
    return Finding(
        code,
        "error",
        f"{len(groups):,} pictures {what} in more than one split",
        "What was trained on must not be tested on: drop them from the training part, or split "
        "again with 'agelens data split'.",
        tuple(groups),
    )


def _clash_finding(exact: bool, groups: Sequence[RowGroup]) -> Finding:
    code = "copies-disagree" if exact else "near-copies-disagree"
    return Finding(
        code,
        "error" if exact else "warning",
        f"{len(groups):,} pictures have copies{'' if exact else ', saved again,'} that are "
        "labelled differently",
        "At most one label is right: correct it, or drop all copies from the training part.",
        tuple(groups),
    )


def _disagreement(rows: Sequence[int], labels: _Labels, tolerance: int) -> str:
    """How the labels of copies contradict each other; empty when they do not."""
    genders = sorted({g for g in (labels.gender[row] for row in rows) if g is not None})
    ages = [a for a in (labels.ages(row) for row in rows) if a is not None]
    said = [" and ".join(genders)] if len(genders) > 1 else []
    if ages and max(low for low, _ in ages) - min(high for _, high in ages) > tolerance:
        said.append("ages " + " and ".join(_ages_text(a) for a in sorted(set(ages))))
    return "labelled " + ", ".join(said) if said else ""


def _ages_text(ages: tuple[int, int]) -> str:
    return str(ages[0]) if ages[0] == ages[1] else f"{ages[0]}-{ages[1]}"


def _subject_findings(labels: _Labels) -> list[Finding]:
    rows_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, subject in enumerate(labels.subject):
        if subject is not None:
            rows_of[labels.dataset[row], subject].append(row)
    groups = [
        RowGroup(tuple(rows), f"subject {subject!r} is in {' and '.join(splits)}")
        for (_, subject), rows in rows_of.items()
        if len(splits := labels.splits_of(rows)) > 1
    ]
    if not groups:
        return []
    return [
        Finding(
            "subject-across-splits",
            "error",
            f"{len(groups):,} people are in more than one split",
            "A network knows a person again: split by subject with 'agelens data split'.",
            tuple(groups),
        )
    ]


# --- balance and licence --------------------------------------------------------------------------


def _balance_findings(labels: _Labels, options: CheckOptions) -> list[Finding]:
    """Balance of the training part; of everything when there is none."""
    training = [row for row, name in enumerate(labels.split) if name == "train"]
    rows = training or list(range(len(labels)))
    counts = count_labels(
        [labels.age_min[row] for row in rows],
        [labels.age_max[row] for row in rows],
        [labels.gender[row] for row in rows],
        ["all"] * len(rows),
    )
    if not counts.groups:
        return []
    part = "the training part" if training else "the set"
    bands = counts.banded(DEFAULT_EDGES)[0].sum(0)
    findings = []
    thin = [
        f"{name} ({faces:,.0f} faces, {faces / bands.sum():.1%})"
        for name, faces in zip(band_names(DEFAULT_EDGES), bands, strict=True)
        if bands.sum() > 0 and faces / bands.sum() < options.min_band_share
    ]
    if thin:
        findings.append(
            Finding(
                "few-of-an-age",
                "warning",
                f"{part} has hardly any faces of {', '.join(thin)}",
                "Expect large errors there; add such faces or sample them more often.",
            )
        )
    female, male = (float(counts.ages[0, k].sum() + counts.without_age[0, k]) for k in (0, 1))
    if female + male > 0:
        share, name = min((female, "female"), (male, "male"))
        if share / (female + male) < options.min_gender_share:
            findings.append(
                Finding(
                    "gender-balance",
                    "warning",
                    f"{part} has only {share / (female + male):.0%} {name} faces",
                    "Add such faces or sample them more often, and report errors by gender.",
                )
            )
    return findings


def _licence_findings(labels: _Labels, options: CheckOptions) -> list[Finding]:
    research = [row for row, kind in enumerate(labels.licence_class) if kind == "research"]
    unknown = [row for row, kind in enumerate(labels.licence_class) if kind is None]
    findings = []
    if research and options.licence_class == "commercial":
        findings.append(
            Finding(
                "licence-class",
                "error",
                f"{_faces(len(research))} are for research only: {_by_dataset(labels, research)}",
                "Weights trained on them are research-class; leave these data sets out, or accept "
                "that with --licence-class research.",
            )
        )
    elif 0 < len(research) < len(labels) - len(unknown):
        findings.append(
            Finding(
                "licence-mixed",
                "info",
                f"{_faces(len(research))} of {len(labels):,} are for research only: "
                f"{_by_dataset(labels, research)}",
                "Weights trained on all of them are research-class.",
            )
        )
    if unknown:
        findings.append(
            Finding(
                "licence-unknown",
                "error" if options.licence_class == "commercial" else "warning",
                f"{_faces(len(unknown))} do not state a licence class: "
                f"{_by_dataset(labels, unknown)}",
                "State it when importing: --licence and --licence-class. Until then they count as "
                "research-only.",
            )
        )
    return findings


def _by_dataset(labels: _Labels, rows: Sequence[int]) -> str:
    counts = Counter(labels.dataset[row] for row in rows)
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _licence_table(labels: _Labels) -> tuple[tuple[str, str, str, int], ...]:
    told = zip(labels.dataset, labels.licence, labels.licence_class, strict=True)
    counts = Counter(
        (name, licence or "not stated", kind or "not stated") for name, licence, kind in told
    )
    return tuple((*key, count) for key, count in sorted(counts.items()))
