"""
Reports as one page: HTML that stands alone, with the pictures in question as thumbnails.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from agelens.data.checks import CheckReport, Finding, RowGroup
from agelens.data.noise import DoubtfulLabel
from agelens.data.schema import FaceTable, picture_source, write_text
from agelens.data.stats import DEFAULT_EDGES, GENDER_ROWS, band_names
from agelens.errors import ImageError
from agelens.images import load_image

DEFAULT_SHOWN: Final = 48
"""Groups of rows that each finding shows; the JSON has all."""
_THUMBNAIL: Final = 96
_LONGEST_GROUP: Final = 12

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --error: #b3261e; --warning: #9a6700;
  --info: #2f6db3; }
@media (prefers-color-scheme: dark) { :root { --error: #ff897d; --warning: #f2c14e;
  --info: #8ab4f8; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h2 .tag { font-size: .8rem; padding: .1rem .5rem; border: 1px solid; border-radius: 1rem;
  margin-right: .4rem; }
.error .tag { color: var(--error); } .warning .tag { color: var(--warning); }
.info .tag { color: var(--info); }
table { border-collapse: collapse; } th, td { padding: .2rem .7rem; text-align: left;
  border-bottom: 1px solid var(--line); } td.number { text-align: right; }
.scroll { overflow-x: auto; }
ul.groups { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .8rem; }
ul.groups > li { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem; }
.faces { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; width: 8.5rem; font-size: .75rem; overflow-wrap: anywhere; }
figure img, figure .none { width: 96px; height: 96px; object-fit: contain; background: #8882;
  display: block; }
.note { font-size: .8rem; max-width: 28rem; margin: .3rem 0 0; }
"""


def write_html(
    report: CheckReport, output: Path, *, pictures: bool = True, shown: int = DEFAULT_SHOWN
) -> None:
    """Write a check report as one HTML file without any outside reference.

    Args:
        report: From ``check_faces``.
        output: File to write; it appears when it is complete, or not at all.
        pictures: Embed thumbnails of the faces in question. Such a report is personal data like the
            pictures themselves.
        shown: Most groups of rows shown for each finding.
    """
    body = [
        f"<h1>Data check of {report.table.num_rows:,} faces</h1>",
        f"<p>{_summary(report)}</p>",
        *_sections(report.findings, report.table, pictures, shown),
        _balance(report),
        _splits(report),
        _licences(report),
    ]
    write_text(output, _page("Data check", body))


def write_audit_html(
    doubts: Sequence[DoubtfulLabel],
    table: FaceTable,
    output: Path,
    *,
    pictures: bool = True,
    shown: int = 4 * DEFAULT_SHOWN,
) -> None:
    """Write the labels most likely wrong as one HTML file, the most doubtful first.

    Args:
        doubts: From ``noise.audit_labels``.
        table: The faces that were audited.
        output: File to write.
        pictures: Embed thumbnails.
        shown: Most labels shown of each kind.
    """
    findings = []
    for column in ("age", "gender"):
        flagged = [doubt for doubt in doubts if doubt.column == column and doubt.flagged]
        title = f"{len(flagged):,} {column} labels are most likely wrong"
        groups = tuple(
            RowGroup((d.row,), f"labelled {d.given}, the model expects {d.expected}")
            for d in flagged
        )
        advice = "Look at them, the most doubtful first; a model errs too."
        findings.append(Finding(f"doubtful-{column}", "warning", title, advice, groups))
    body = [
        f"<h1>Label audit of {table.num_rows:,} faces</h1>",
        "<p>Predictions of a model that did not see the face, against its label.</p>",
        *_sections(findings, table, pictures, shown),
    ]
    write_text(output, _page("Label audit", body))


def _sections(
    findings: Sequence[Finding], table: FaceTable, pictures: bool, shown: int
) -> list[str]:
    rows = {row for f in findings for g in f.groups[:shown] for row in _shown_rows(g)}
    details = _details(table, rows)
    thumbnails = thumbnails_of(table, rows) if pictures else {}
    return [_finding(finding, table, details, thumbnails, shown) for finding in findings]


def _page(title: str, body: Sequence[str]) -> str:
    content = "\n".join(body)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n{content}\n</body></html>\n"
    )


def _summary(report: CheckReport) -> str:
    kinds: list[str] = [f.severity for f in report.findings]
    counts = ", ".join(
        f"{kinds.count(kind)} {name}"
        for kind, name in (("error", "errors"), ("warning", "warnings"), ("info", "remarks"))
    )
    files = ", ".join(file.name for file in report.table.files)
    return f"{_text(counts)}; {report.seconds:.0f} s. Files: {_text(files)}"


def _finding(
    finding: Finding,
    table: FaceTable,
    details: Mapping[int, Mapping[str, Any]],
    thumbnails: Mapping[int, str],
    shown: int,
) -> str:
    groups = finding.groups[:shown]
    rest = len(finding.groups) - len(groups)
    items = "\n".join(_group(group, table, details, thumbnails) for group in groups)
    return "\n".join(
        [
            f'<section class="{finding.severity}">',
            f'<h2><span class="tag">{finding.severity}</span>{_text(finding.title)}</h2>',
            f"<p>{_text(finding.advice)} <small>({finding.code})</small></p>",
            *([f'<ul class="groups">\n{items}\n</ul>'] if groups else []),
            *([f"<p>and {rest:,} more; the JSON report names all.</p>"] if rest else []),
            "</section>",
        ]
    )


def _shown_rows(group: RowGroup) -> Sequence[int]:
    return group.rows[:_LONGEST_GROUP]


def _group(
    group: RowGroup,
    table: FaceTable,
    details: Mapping[int, Mapping[str, Any]],
    thumbnails: Mapping[int, str],
) -> str:
    faces = "".join(
        _face(table.name_of(row), details[row], thumbnails.get(row), bool(thumbnails))
        for row in _shown_rows(group)
    )
    rest = len(group.rows) - len(_shown_rows(group))
    more = f" (and {rest:,} more rows)" if rest else ""
    note = f'<p class="note">{_text(group.note + more)}</p>' if group.note or more else ""
    return f'<li><div class="faces">{faces}</div>{note}</li>'


def _face(name: str, row: Mapping[str, Any], thumbnail: str | None, with_pictures: bool) -> str:
    picture = ""
    if thumbnail is not None:
        picture = f'<img alt="" src="{thumbnail}">'
    elif with_pictures:
        picture = '<span class="none"></span>'
    low, high = row["age_min"], row["age_max"]
    age = "no age" if low is None else f"age {low}" if low == high else f"age {low}-{high}"
    told = [age, row["gender"] or "no gender", row["split"], row["dataset"], row["source_file"]]
    caption = " · ".join(_text(part) for part in told if part)
    return f"<figure>{picture}<figcaption><b>{_text(name)}</b><br>{caption}</figcaption></figure>"


def _details(table: FaceTable, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
    columns = ["age_min", "age_max", "gender", "split", "dataset", "source_file"]
    return table.take(rows, columns)


def thumbnails_of(table: FaceTable, rows: Iterable[int]) -> dict[int, str]:
    """Small JPEGs of these rows' pictures as data URIs; those that cannot be read are left out."""
    pictures = table.take(rows, ["image", "path"])
    small = {}
    for row, held in pictures.items():
        file, _ = table.locate(row)
        encoded = _thumbnail(picture_source(held["image"], held["path"], file))
        if encoded is not None:
            small[row] = encoded
    return small


def _thumbnail(source: bytes | Path) -> str | None:
    """A picture as the data URI of a small JPEG; None when it cannot be read."""
    from PIL import Image

    try:
        pixels = load_image(source).pixels
    except ImageError:
        return None
    small = Image.fromarray(np.asarray(pixels))
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def _balance(report: CheckReport) -> str:
    counts = report.counts
    bands = counts.banded(DEFAULT_EDGES)
    head = [counts.by, "gender", *band_names(DEFAULT_EDGES), "no age"]
    rows = [
        [group, gender, *(f"{v:,.0f}" for v in bands[g, k]), f"{counts.without_age[g, k]:,}"]
        for g, group in enumerate(counts.groups)
        for k, gender in enumerate(GENDER_ROWS)
        if bands[g, k].any() or counts.without_age[g, k]
    ]
    note = "<p>Labels that are ranges count evenly for each of their years.</p>"
    return "<h2>Ages by gender by data set</h2>" + note + _table(head, rows)


def _splits(report: CheckReport) -> str:
    rows = [[name, f"{count:,}"] for name, count in report.splits.items()]
    return "<h2>Splits</h2>" + _table(["split", "faces"], rows)


def _licences(report: CheckReport) -> str:
    rows = [[name, lic, kind, f"{count:,}"] for name, lic, kind, count in report.licences]
    return "<h2>Licences</h2>" + _table(["data set", "licence", "class", "faces"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    lines = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>{lines}</table></div>'


def _cell(text: str) -> str:
    kind = ' class="number"' if text.replace(",", "").isdecimal() else ""
    return f"<td{kind}>{_text(text)}</td>"


def _text(value: object) -> str:
    return html.escape(str(value))
