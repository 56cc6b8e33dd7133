"""The user's own table: one report names every bad row."""

from __future__ import annotations

import csv
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agelens.data.readers import ColumnMap, TableOptions, import_faces, read_table
from agelens.data.schema import FaceRecord, FaceTable, RowProblem
from agelens.errors import ArgumentError, DataError
from data.pictures import blob, encoded, save


def table(folder: Path, text: str, encoding: str = "utf-8", pictures: int = 9) -> Path:
    for number in range(pictures):
        save(folder / f"{number}.jpg", seed=number)
    path = folder / "faces.csv"
    path.write_bytes(text.encode(encoding))
    return path


def read(
    path: Path, options: TableOptions | None = None
) -> tuple[list[FaceRecord], list[RowProblem]]:
    reading = read_table(path, options)
    return list(reading.records), reading.log.problems


def test_usual_column_names_are_found(tmp_path: Path) -> None:
    path = table(tmp_path, "Filename,Age,Sex,Person ID\n0.jpg,34,f,anna\n1.jpg,20-29,M,otto\n")

    rows, problems = read(path)

    assert problems == []
    assert [(r.age_min, r.age_max, r.gender, r.subject) for r in rows] == [
        (34, 34, "female", "anna"),
        (20, 29, "male", "otto"),
    ]
    assert (rows[0].dataset, rows[0].age_kind) == ("faces", "real")


def test_every_bad_row_is_in_one_report_and_only_the_good_ones_go_on_when_told(
    tmp_path: Path,
) -> None:
    text = (
        "file,age,gender,note\n"
        "0.jpg,34,female,good\n"  # row 2
        "gone.jpg,30,male,\n"  # row 3: missing file
        "1.jpg,230,male,\n"  # row 4: impossible age
        "2.jpg,40,male,\n"  # row 5 and
        "2.jpg,41,male,\n"  # row 6: two ages for one file
        "3.jpg,25,hombre,\n"  # row 7: unknown gender word
        "4.jpg,50,female,M\udcfcller\n"  # row 8: a byte of another encoding
        "5.jpg,51,female\n"  # row 9: a cell too few
        "6.jpg,old,woman,\n"  # row 10: no age
        ",20,female,\n"  # row 11: no name
        "7.jpg,52,male,good\n"  # row 12
        "7.jpg,52,male,good\n"  # row 13: said twice
        "https://example.org/8.jpg,3,male,\n"  # row 14: a link
    )
    path = table(tmp_path, "")
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    out = tmp_path / "out/faces.parquet"
    options = TableOptions(columns=ColumnMap(audit=("note",)))

    with pytest.raises(DataError) as caught:
        import_faces(read_table(path, options), out)

    told = str(caught.value)
    assert "11 bad rows, 2 good ones; nothing was written" in told
    for row, column, word in [
        (3, "file", "no such file"),
        (4, "age", "no human age"),
        (5, "age", "two ages for 2.jpg: row 6 says 41"),
        (6, "age", "two ages for 2.jpg: row 5 says 40"),
        (7, "gender", "--gender-word 'hombre=female'"),
        (8, "note", "--encoding cp1252"),
        (10, "age", "no age"),
        (11, "file", "not named"),
        (13, "file", "in row 12 already"),
        (14, "file", "is a link"),
    ]:
        line = next(line for line in told.splitlines() if f"row {row}," in line)
        assert f"column '{column}'" in line
        assert word in line
    assert "faces.csv row 9: " in told
    assert "3 cells under 4 columns" in told
    assert not out.exists()
    with open(tmp_path / "out/faces.parquet.problems.csv", encoding="utf-8", newline="") as handle:
        listed = [int(line["row"]) for line in csv.DictReader(handle)]
    assert listed == [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14]

    report = import_faces(read_table(path, options), out, skip_bad_rows=True)

    assert (report.rows, len(report.problems)) == (2, 11)
    kept = FaceTable.open(out).labels(["source_file"])["source_file"].to_pylist()
    assert kept == ["0.jpg", "7.jpg"]


def test_ages_follow_from_dates(tmp_path: Path) -> None:
    text = (
        "file;Geburtsdatum;Aufnahme;Geschlecht\n"
        "0.jpg;15.06.1990;14.06.2020;w\n"
        "1.jpg;15.06.1990;15.06.2020;m\n"
        "2.jpg;1990;2020;d\n"
        "3.jpg;15.06.2021;15.06.2020;m\n"
        "4.jpg;;15.06.2020;m\n"
        "5.jpg;31.02.1990;15.06.2020;m\n"
    )
    options = TableOptions(
        columns=ColumnMap(birth_date="Geburtsdatum", photo_date="Aufnahme", gender="Geschlecht"),
        gender_words={"d": None},
    )

    rows, problems = read(table(tmp_path, text), options)

    assert [(r.source_file, r.age_min, r.age_max, r.gender) for r in rows] == [
        ("0.jpg", 29, 29, "female"),
        ("1.jpg", 30, 30, "male"),
        ("2.jpg", 29, 30, None),
        ("4.jpg", None, None, "male"),
    ]
    assert [(p.row, p.column) for p in problems] == [(5, "Geburtsdatum"), (7, "Geburtsdatum")]
    assert "older than the person" in problems[0].reason


def test_two_columns_can_be_a_range(tmp_path: Path) -> None:
    text = "file,age_from,age_to\n0.jpg,20,29\n1.jpg,30,25\n2.jpg,,\n3.jpg,18,\n"

    rows, problems = read(table(tmp_path, text))

    assert [(r.age_min, r.age_max) for r in rows] == [(20, 29), (None, None)]
    assert [(p.row, p.column) for p in problems] == [(3, "age_from"), (5, "age_to")]


@pytest.mark.parametrize(
    ("encoding", "given"),
    [
        ("utf-8", "auto"),
        ("utf-8-sig", "auto"),
        ("utf-16", "auto"),
        ("utf-16-le", "utf-16-le"),
        ("cp1252", "cp1252"),
    ],
)
def test_encodings_are_read(tmp_path: Path, encoding: str, given: str) -> None:
    path = table(tmp_path, "file,age,subject\n0.jpg,34,Müller\n", encoding)

    rows, problems = read(path, TableOptions(encoding=given))

    assert problems == []
    assert rows[0].subject == "Müller"


def test_a_wrong_encoding_is_told_with_what_to_do(tmp_path: Path) -> None:
    text = "file,age,subject\n0.jpg,34,Müller\n1.jpg,35,Smith\n"

    rows, problems = read(table(tmp_path, text, "cp1252"))
    assert [r.subject for r in rows] == ["Smith"]
    assert (problems[0].row, problems[0].column) == (2, "subject")
    assert "--encoding cp1252" in problems[0].reason

    rows, problems = read(table(tmp_path, text), TableOptions(encoding="cp1252"))
    assert [r.subject for r in rows] == ["Smith"]
    assert "'Müller' was meant); pass --encoding utf-8" in problems[0].reason

    with pytest.raises(DataError, match="pass --encoding utf-16-le"):
        read(table(tmp_path, text, "utf-16-le"))
    with pytest.raises(ArgumentError, match="no encoding 'utf-99'"):
        TableOptions(encoding="utf-99")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_found(tmp_path: Path, delimiter: str) -> None:
    text = delimiter.join(["file", "age", "note"]) + "\n"
    text += delimiter.join(["0.jpg", "34", '"a, b; c"']) + "\n"

    rows, problems = read(table(tmp_path, text), TableOptions(columns=ColumnMap(audit=("note",))))

    assert problems == []
    assert (rows[0].age_min, rows[0].audit["note"]) == (34, "a, b; c")


def test_faces_of_a_group_picture_are_told_apart_by_their_boxes(tmp_path: Path) -> None:
    text = (
        "file,age,bbox\n"
        '0.jpg,34,"10 10 40 40"\n'
        '0.jpg,9,"50,10,80,40"\n'
        '0.jpg,7,"50,10,80,40"\n'
        '1.jpg,7,"50,10,20,40"\n'
        '2.jpg,7,"1 2 3"\n'
    )

    rows, problems = read(table(tmp_path, text))

    assert [r.box for r in rows] == [(10, 10, 40, 40)]
    assert [(p.row, p.column) for p in problems] == [
        (3, "age"),
        (4, "age"),
        (5, "bbox"),
        (6, "bbox"),
    ]


def test_columns_are_mapped_by_hand(tmp_path: Path) -> None:
    text = "id,bild,alter,age\n7,0.jpg,34,x\n"

    rows, problems = read(
        table(tmp_path, text), TableOptions(columns=ColumnMap(file="bild", age="alter"))
    )

    assert problems == []
    assert rows[0].age_min == 34


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("id,age", ColumnMap(), "no column names the picture"),
        ("file,age", ColumnMap(age="years"), "no column 'years'"),
        ("file,age,age", ColumnMap(), "two columns are called 'age'"),
        ("file,birth_date", ColumnMap(), "photo_date is not"),
        ("file,age,birth_date,photo_date", ColumnMap(), "in two ways"),
        ("", ColumnMap(), "is empty"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(
    tmp_path: Path, header: str, columns: ColumnMap, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(table(tmp_path, header + "\n"), TableOptions(columns=columns))


def test_an_age_mapped_by_hand_leaves_the_dates_alone(tmp_path: Path) -> None:
    text = "file,age,birth_date,photo_date\n0.jpg,34,1900-01-01,2000-01-01\n"

    rows, _ = read(table(tmp_path, text), TableOptions(columns=ColumnMap(age="age")))

    assert rows[0].age_min == 34


def test_a_quote_left_open_is_told(tmp_path: Path) -> None:
    path = table(tmp_path, 'file,age\n0.jpg,34\n1.jpg,"35\n' + "2.jpg,36\n" * 40_000)

    with pytest.raises(DataError, match="quote left open"):
        read(path, TableOptions(delimiter=","))


def test_windows_paths_and_other_folders_are_found(tmp_path: Path) -> None:
    save(tmp_path / "pictures/a/b.jpg")
    path = tmp_path / "faces.csv"
    path.write_text("file,age\na\\b.jpg,34\n" + f"{tmp_path / 'pictures/a/b.jpg'},34\n")

    rows, problems = read(path, TableOptions(images=tmp_path / "pictures"))

    assert len(rows) == 2
    assert problems == []


def test_a_parquet_table_is_read_too(tmp_path: Path) -> None:
    save(tmp_path / "0.jpg")
    pq.write_table(
        pa.table(
            {
                "photo": ["0.jpg", "gone.jpg"],
                "born": [date(1990, 6, 15), date(1990, 6, 15)],
                "taken": [date(2020, 6, 14), date(2020, 6, 14)],
                "sex": ["F", None],
            }
        ),
        tmp_path / "staff.parquet",
    )

    rows, problems = read(tmp_path / "staff.parquet")

    assert [(r.age_min, r.gender, r.dataset) for r in rows] == [(29, "female", "staff")]
    assert [(p.row, p.column) for p in problems] == [(1, "photo")]


def test_pictures_inside_a_parquet_table_are_taken_over(tmp_path: Path) -> None:
    held = pa.table({"jpg": [encoded(blob(1)), None], "age": [3, 4]})
    pq.write_table(held, tmp_path / "x.parquet")

    rows, problems = read(tmp_path / "x.parquet", TableOptions(columns=ColumnMap(image="jpg")))

    assert [(r.image, r.age_min) for r in rows] == [(encoded(blob(1)), 3)]
    assert [(p.row, p.column) for p in problems] == [(1, "jpg")]


def test_a_listing_cell_is_no_spreadsheet_formula(tmp_path: Path) -> None:
    path = table(tmp_path, "file,age\n0.jpg,=HYPERLINK(1)\n1.jpg,3\n")
    out = tmp_path / "x.parquet"

    import_faces(read_table(path), out, skip_bad_rows=True)

    listing = (tmp_path / "x.parquet.problems.csv").read_text()
    assert "'=HYPERLINK(1)" in listing
