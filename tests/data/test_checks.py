"""The check finds what was planted, says where, and finds nothing in clean data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agelens.data.checks import CODES, CheckOptions, CheckReport, check_faces
from agelens.data.report import write_html
from agelens.data.schema import FaceRecord, FaceTable, FaceWriter, arrow_schema, records_to_batch
from agelens.errors import ArgumentError
from data.pictures import blob, encoded


def face(seed: int, **changed: Any) -> FaceRecord:
    values: dict[str, Any] = {
        "dataset": "staff",
        "source_file": f"{seed}.jpg",
        "image": encoded(blob(seed)),
        "split": "train",
        "age_min": 20 + seed % 40,
        "age_max": 20 + seed % 40,
        "age_kind": "real",
        "gender": ("female", "male")[seed % 2],
        "licence_class": "commercial",
    }
    return FaceRecord(**{**values, **changed})


def write(path: Path, faces: list[FaceRecord]) -> FaceTable:
    with FaceWriter(path) as writer:
        for record in faces:
            writer.write(record)
    return FaceTable.open(path)


def check(table: FaceTable, options: CheckOptions | None = None) -> CheckReport:
    return check_faces(table, options, workers=1)


def by_code(report: CheckReport) -> dict[str, list[tuple[int, ...]]]:
    return {f.code: [group.rows for group in f.groups] for f in report.findings}


def test_a_clean_data_set_has_no_errors(tmp_path: Path) -> None:
    faces = [
        face(seed, age_min=age, age_max=age, split=("train", "test")[seed % 5 == 0])
        for seed, age in enumerate(range(0, 90, 2))
    ]

    report = check(write(tmp_path / "f.parquet", faces), CheckOptions(licence_class="commercial"))

    assert report.findings == ()
    assert not report.has_errors
    assert report.splits == {"test": 9, "train": 36}


@pytest.fixture
def planted(tmp_path: Path) -> FaceTable:
    near = encoded(blob(1), "WEBP", 60)
    faces = [
        face(0),
        face(1),
        face(2, image=encoded(blob(0)), split="test", age_min=20, age_max=20, gender="female"),
        face(3, image=near, split="test", age_min=21, age_max=21, gender="male"),
        face(4),
        face(5, image=encoded(blob(4)), age_min=60, age_max=60),
        face(6, image=encoded(blob(4)), age_min=24, age_max=24, gender="male"),
        face(7, subject="anna"),
        face(8, subject="anna", split="test"),
        face(9, subject="anna", dataset="other", split="test"),
        face(10, image=b"no picture"),
        face(11, image=None, path="gone.jpg"),
        face(12, image=encoded(blob(12, 20))),
        face(13, image=encoded(np.full((64, 64, 3), 9, np.uint8))),
        face(14, age_min=104, age_max=104),
        face(15, age_min=10, age_max=60),
        face(16, age_min=60, age_max=100),
        face(17, age_min=None, age_max=None, gender=None),
        face(18, licence_class="research", age_kind="apparent"),
        face(19, licence_class=None),
    ]
    return write(tmp_path / "f.parquet", faces)


def test_everything_that_was_planted_is_found(planted: FaceTable) -> None:
    report = check(planted, CheckOptions(licence_class="commercial"))
    found = by_code(report)

    assert found["copies-across-splits"] == [(0, 2)]
    assert found["near-copies-across-splits"] == [(1, 3)]
    assert found["copies-disagree"] == [(4, 5, 6)]
    assert found["copies"] == [(4, 5, 6)]
    assert found["subject-across-splits"] == [(7, 8)]
    assert found["unreadable"] == [(10,)]
    assert found["missing-file"] == [(11,)]
    assert found["small-picture"] == [(12,)]
    assert found["blank-picture"] == [(13,)]
    assert found["suspicious-age"] == [(14,), (15,)]
    assert found["unlabelled"] == [(17,)]
    assert "18 of 20" not in str(report.findings)
    severities = {f.code: f.severity for f in report.findings}
    assert severities["licence-class"] == "error"
    assert severities["licence-unknown"] == "error"
    assert severities["mixed-age-kinds"] == "info"
    assert severities["few-of-an-age"] == "warning"
    assert report.has_errors
    assert [f.severity for f in report.findings] == sorted(
        severities.values(), key=["error", "warning", "info"].index
    )
    notes = {f.code: f.groups[0].note for f in report.findings if f.groups}
    assert "female and male" in notes["copies-disagree"]
    assert "ages 24 and 60" in notes["copies-disagree"]


def test_research_rows_are_no_error_when_the_weights_may_be_research_class(
    planted: FaceTable,
) -> None:
    found = {f.code: f.severity for f in check(planted).findings}

    assert found["licence-mixed"] == "info"
    assert found["licence-unknown"] == "warning"
    assert "licence-class" not in found


def test_near_copies_may_be_a_birthday_apart_but_not_more(tmp_path: Path) -> None:
    again = encoded(blob(0), "WEBP", 60)
    for years, wanted in ((2, []), (3, [(0, 1)])):
        faces = [face(0), face(1, image=again, age_min=20 + years, age_max=20 + years)]
        faces[1] = FaceRecord(**{**_fields(faces[1]), "gender": "female"})
        report = check(write(tmp_path / f"{years}.parquet", faces))

        assert by_code(report).get("near-copies-disagree", []) == wanted


def test_one_file_with_two_labels_is_an_error_even_beside_a_near_copy(tmp_path: Path) -> None:
    again = encoded(blob(0), "WEBP", 60)
    faces = [
        face(0),
        face(40, image=encoded(blob(0)), age_min=70, age_max=70),
        face(2, image=again),
    ]

    found = by_code(check(write(tmp_path / "f.parquet", faces)))

    assert found["copies-disagree"] == [(0, 1)]
    assert "near-copies-disagree" not in found
    assert found["copies"] == [(0, 1, 2)]


def test_one_file_in_two_splits_is_told_as_such_even_beside_a_near_copy(tmp_path: Path) -> None:
    faces = [
        face(0),
        face(40, image=encoded(blob(0)), age_min=20, age_max=20, split="test"),
        face(2, image=encoded(blob(0), "WEBP", 60)),
    ]

    found = by_code(check(write(tmp_path / "f.parquet", faces)))

    assert found["copies-across-splits"] == [(0, 1, 2)]
    assert "near-copies-across-splits" not in found


def _fields(record: FaceRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def test_overlapping_ranges_do_not_disagree(tmp_path: Path) -> None:
    same = {"image": encoded(blob(0)), "gender": "female"}
    faces = [
        face(0, age_min=20, age_max=29, **same),
        face(1, age_min=25, age_max=25, **same),
        face(2, age_min=28, age_max=35, **same),
    ]
    assert "copies-disagree" in by_code(check(write(tmp_path / "a.parquet", faces)))
    assert "copies-disagree" not in by_code(check(write(tmp_path / "b.parquet", faces[:2])))


def test_a_row_that_no_face_can_have_is_an_error_and_does_not_stop_the_check(
    tmp_path: Path,
) -> None:
    rows = records_to_batch([face(0), face(1)]).to_pylist()
    rows[1]["age_max"] = 230
    rows[1]["gender"] = "Frau"
    pq.write_table(pa.Table.from_pylist(rows, arrow_schema()), tmp_path / "f.parquet")

    report = check(FaceTable.open(tmp_path))

    (finding,) = [f for f in report.findings if f.code == "bad-label"]
    assert finding.groups[0].rows == (1,)
    assert "230" in finding.groups[0].note
    assert "'Frau'" in finding.groups[0].note


def test_a_gender_that_is_hardly_there_is_told(tmp_path: Path) -> None:
    faces = [face(seed, gender="male" if seed < 4 else "female") for seed in range(20)]

    report = check(write(tmp_path / "f.parquet", faces))

    assert any("only 20% male" in f.title for f in report.findings)


def test_errors_can_be_allowed_by_code(planted: FaceTable) -> None:
    report = check(planted, CheckOptions(allowed=("copies-disagree",)))

    severities = {f.code: f.severity for f in report.findings}
    assert severities["copies-disagree"] == "warning"
    assert severities["copies-across-splits"] == "error"
    with pytest.raises(ArgumentError, match="no finding is called 'typo'"):
        CheckOptions(allowed=("typo",))


def test_without_reading_only_labels_are_checked(planted: FaceTable) -> None:
    report = check_faces(planted, read=False)

    assert "subject-across-splits" in by_code(report)
    assert not {"copies", "missing-file"} & by_code(report).keys()


def test_every_code_is_explained(planted: FaceTable) -> None:
    assert {f.code for f in check(planted).findings} <= CODES.keys()


def test_the_json_report_names_every_row(planted: FaceTable) -> None:
    wire = json.loads(json.dumps(check(planted).to_dict()))

    (finding,) = [f for f in wire["findings"] if f["code"] == "copies-disagree"]
    assert finding["groups"][0]["rows"] == ["f.parquet#4", "f.parquet#5", "f.parquet#6"]
    assert wire["schema"] == "agelens.data-check/1"
    assert wire["rows"] == 20
    assert sum(wire["splits"].values()) == 20


def test_the_page_stands_alone_and_shows_the_pictures_in_question(
    planted: FaceTable, tmp_path: Path
) -> None:
    report = check(planted)

    write_html(report, tmp_path / "with.html")
    write_html(report, tmp_path / "without.html", pictures=False)

    page = (tmp_path / "with.html").read_text(encoding="utf-8")
    bare = (tmp_path / "without.html").read_text(encoding="utf-8")
    figures = re.findall(r"<figure>(<img [^>]+>)?", page)
    readable = [f for f in figures if f]
    assert len(readable) == len(figures) - 2  # one picture is broken, one is gone
    assert all('src="data:image/jpeg;base64,' in tag for tag in readable)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//|file:)""", page)
    assert "<img" not in bare
    assert "data:image/" not in bare
    for text in (page, bare):
        assert "f.parquet#4" in text
        assert "age 60" in text


def test_texts_of_the_data_are_no_html(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>.jpg"
    faces = [face(0, source_file=name, age_min=110, age_max=110), face(1)]

    write_html(check(write(tmp_path / "f.parquet", faces)), tmp_path / "r.html")

    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_long_lists_are_cut_in_the_page_and_whole_in_the_json(tmp_path: Path) -> None:
    faces = [face(seed, age_min=110, age_max=110) for seed in range(30)]
    report = check(write(tmp_path / "f.parquet", faces))

    write_html(report, tmp_path / "r.html", shown=10)

    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 10
    assert "and 20 more" in page
    (wire,) = [f for f in report.to_dict()["findings"] if f["code"] == "suspicious-age"]
    assert len(wire["groups"]) == 30
