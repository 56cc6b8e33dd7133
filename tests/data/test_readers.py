"""Each published data set, in the folders and file formats its authors use."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from agelens.data.readers import (
    Cleaning,
    Reading,
    import_faces,
    read_agedb,
    read_appa_real,
    read_fairface,
    read_imdb_wiki,
    read_tree,
    read_utkface,
)
from agelens.data.readers.imdb_wiki import from_datenum
from agelens.data.schema import FaceRecord, FaceTable, batch_to_records
from agelens.errors import ArgumentError, DataError
from data.pictures import blob, encoded, save


def drawn(reading: Reading) -> dict[str, FaceRecord]:
    return {record.source_file: record for record in reading.records}


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])


# --- UTKFace --------------------------------------------------------------------------------------


def test_utkface_is_read_from_its_file_names(tmp_path: Path) -> None:
    save(tmp_path / "UTKFace/26_1_2_20170116174525125.jpg.chip.jpg")
    save(tmp_path / "UTKFace/116_0_0_20170120134921760.jpg.chip.jpg")
    save(tmp_path / "part1/1_0_4_20161219140623097.jpg")
    (tmp_path / "landmark_list_part1.txt").write_text("1_0_4_20161219140623097.jpg 1 2 3")

    rows = drawn(read_utkface(tmp_path))

    young = rows["UTKFace/26_1_2_20170116174525125.jpg.chip.jpg"]
    assert (young.age_min, young.age_max, young.gender) == (26, 26, "female")
    assert young.audit == {"race": "Asian"}
    assert (young.dataset, young.licence_class, young.age_kind) == (
        "utkface",
        "research",
        "apparent",
    )
    assert young.path is not None
    assert Path(young.path).is_file()
    old = rows["UTKFace/116_0_0_20170120134921760.jpg.chip.jpg"]
    assert (old.age_min, old.gender, old.audit["race"]) == (116, "male", "White")
    assert rows["part1/1_0_4_20161219140623097.jpg"].audit["race"] == "Others"


def test_the_known_malformed_names_of_utkface_are_reported_and_never_guessed(
    tmp_path: Path,
) -> None:
    known = [
        "61_1_20170109142408075.jpg.chip.jpg",
        "61_1_20170109150557335.jpg.chip.jpg",
        "39_1_20170116174525125.jpg.chip.jpg",
        "53__0_20170116184028385.jpg",
        "61_3_20170109150557335.jpg",
    ]
    for name in [*known, "55_0_0_20170116232725357jpg.chip.jpg", "24_0_1_20170116220224657 .jpg"]:
        save(tmp_path / name)

    reading = read_utkface(tmp_path)
    rows = drawn(reading)

    # A misspelt ending or a blank hides no field.
    assert sorted(rows) == [
        "24_0_1_20170116220224657 .jpg",
        "55_0_0_20170116232725357jpg.chip.jpg",
    ]
    assert sorted(problem.value for problem in reading.log.defects) == sorted(known)
    assert reading.log.problems == []


def test_any_other_malformed_name_stops_the_import_of_utkface(tmp_path: Path) -> None:
    save(tmp_path / "20_1_0_20170116174525125.jpg")
    save(tmp_path / "20_7_0_20170116174525126.jpg")
    save(tmp_path / "230_1_0_20170116174525127.jpg")
    out = tmp_path / "out.parquet"

    with pytest.raises(DataError) as caught:
        import_faces(read_utkface(tmp_path), out)

    assert "20_7_0_20170116174525126.jpg" in str(caught.value)
    assert "230_1_0_20170116174525127.jpg" in str(caught.value)
    assert not out.exists()
    assert import_faces(read_utkface(tmp_path), out, skip_bad_rows=True).rows == 1


# --- AgeDB ----------------------------------------------------------------------------------------


def test_agedb_names_its_subjects(tmp_path: Path) -> None:
    save(tmp_path / "AgeDB/0_MariaCallas_35_f.jpg")
    save(tmp_path / "AgeDB/10_MariaCallas_50_f.jpg")
    save(tmp_path / "AgeDB/9_José_Ferrer_101_m.jpg")
    save(tmp_path / "AgeDB/x.jpg")

    reading = read_agedb(tmp_path)
    rows = drawn(reading)

    maria = rows["AgeDB/0_MariaCallas_35_f.jpg"]
    assert (maria.age_min, maria.age_max, maria.gender, maria.subject) == (
        35,
        35,
        "female",
        "MariaCallas",
    )
    assert rows["AgeDB/10_MariaCallas_50_f.jpg"].subject == maria.subject
    jose = rows["AgeDB/9_José_Ferrer_101_m.jpg"]
    assert (jose.subject, jose.age_min, jose.gender) == ("José_Ferrer", 101, "male")
    assert [problem.value for problem in reading.log.problems] == ["x.jpg"]


# --- FairFace -------------------------------------------------------------------------------------

FAIRFACE = ("file", "age", "gender", "race", "service_test")


@pytest.mark.parametrize("folder", ["", "fairface-img-margin025-trainval"])
def test_fairface_ranges_become_intervals(tmp_path: Path, folder: str) -> None:
    ranges = {
        "0-2": (0, 2),
        "3-9": (3, 9),
        "10-19": (10, 19),
        "20-29": (20, 29),
        "30-39": (30, 39),
        "40-49": (40, 49),
        "50-59": (50, 59),
        "60-69": (60, 69),
        "more than 70": (70, 100),
    }
    rows = [
        (f"train/{i}.jpg", age, "Female", "East Asian", "True")
        for i, age in enumerate(ranges, start=1)
    ]
    write_csv(tmp_path / "fairface_label_train.csv", FAIRFACE, rows)
    write_csv(
        tmp_path / "fairface_label_val.csv",
        FAIRFACE,
        [("val/1.jpg", "20-29", "Male", "Latino_Hispanic", "False")],
    )
    for row in [*rows, ("val/1.jpg",)]:
        save(tmp_path / folder / row[0])

    read = drawn(read_fairface(tmp_path))

    assert [(r.age_min, r.age_max) for r in read.values()][:9] == list(ranges.values())
    assert read["train/1.jpg"].audit == {"race": "East Asian", "service_test": "True"}
    assert (read["train/1.jpg"].split, read["val/1.jpg"].split) == ("train", "val")
    assert (read["train/1.jpg"].gender, read["val/1.jpg"].gender) == ("female", "male")
    assert read["val/1.jpg"].licence_class == "commercial"


def test_a_fairface_table_that_a_spreadsheet_spoilt_is_told_row_by_row(tmp_path: Path) -> None:
    rows = [
        ("train/1.jpg", "20-29", "Male", "White", "False"),
        ("train/2.jpg", "Oct-19", "Male", "White", "False"),
        ("train/3.jpg", "9-Mar", "Other", "White", "False"),
        ("train/9.jpg", "20-29", "Male", "White", "False"),
    ]
    write_csv(tmp_path / "fairface_label_train.csv", FAIRFACE, rows)
    for name in ("1", "2", "3"):
        save(tmp_path / f"train/{name}.jpg")

    reading = read_fairface(tmp_path)

    assert list(drawn(reading)) == ["train/1.jpg"]
    told = [(p.row, p.column) for p in reading.log.problems]
    assert told == [(3, "age"), (4, "age"), (4, "gender"), (5, "file")]
    assert "spreadsheet" in reading.log.problems[0].reason


def test_a_folder_without_label_files_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fairface_label_train\.csv"):
        read_fairface(tmp_path)
    write_csv(tmp_path / "fairface_label_val.csv", ["file", "age"], [])
    with pytest.raises(DataError, match="no column 'gender'"):
        read_fairface(tmp_path)


# --- APPA-REAL ------------------------------------------------------------------------------------

APPA = ("file_name", "num_ratings", "apparent_age_avg", "apparent_age_std", "real_age")


def appa_real(root: Path, *, with_gender: bool = True) -> None:
    tables = {
        "train": [("000000.jpg", 36, 5.0556, 3.02, 4), ("000001.jpg", 36, 20.75, 4.355, 18)],
        "valid": [("004113.jpg", 38, 31.5, 5.5, 28)],
        "test": [("005613.jpg", 35, 62.4857, 6.61, 66)],
    }
    genders = {"000000.jpg": "male", "000001.jpg": "female", "004113.jpg": "female"}
    for part, rows in tables.items():
        write_csv(root / f"gt_avg_{part}.csv", APPA, rows)
        for row in rows:
            save(root / part / str(row[0]))
            save(root / part / f"{row[0]}_face.jpg")
        if with_gender:
            labels = [(n, g, "caucasian") for n, g in genders.items() if n in {r[0] for r in rows}]
            write_csv(root / f"allcategories_{part}.csv", ("file", "gender", "race"), labels)


def test_appa_real_apparent_ages_carry_the_spread_of_the_raters(tmp_path: Path) -> None:
    appa_real(tmp_path)

    rows = drawn(read_appa_real(tmp_path))

    child = rows["train/000000.jpg_face.jpg"]
    assert (child.age_min, child.age_max, child.age_kind, child.gender) == (
        5,
        5,
        "apparent",
        "male",
    )
    assert child.age_std == pytest.approx(3.02)
    assert (child.audit["real_age"], child.audit["race"]) == ("4", "caucasian")
    assert rows["train/000001.jpg_face.jpg"].age_min == 21  # 20.75 is nearest to 21
    adult = rows["valid/004113.jpg_face.jpg"]
    assert (adult.age_min, adult.split) == (32, "val")
    assert rows["test/005613.jpg_face.jpg"].gender is None
    assert adult.licence_class == "research"


def test_appa_real_real_ages_have_no_spread(tmp_path: Path) -> None:
    appa_real(tmp_path, with_gender=False)

    reading = read_appa_real(tmp_path, age="real", originals=True)
    rows = drawn(reading)

    face = rows["train/000001.jpg"]
    assert (face.age_min, face.age_kind, face.age_std, face.gender) == (18, "real", None, None)
    assert face.audit["apparent_age"] == "20.75"
    assert any("allcategories" in note for note in reading.notes)


def test_bad_rows_of_appa_real_are_named(tmp_path: Path) -> None:
    appa_real(tmp_path)
    rows = [("000000.jpg", 36, "x", 3.02, 400), ("000009.jpg", 36, 30, 3, 30)]
    write_csv(tmp_path / "gt_avg_train.csv", APPA, rows)

    reading = read_appa_real(tmp_path)
    drawn(reading)

    assert [(p.file, p.row, p.column) for p in reading.log.problems] == [
        ("gt_avg_train.csv", 2, "apparent_age_avg"),
        ("gt_avg_train.csv", 2, "real_age"),
        ("gt_avg_train.csv", 3, "file_name"),
    ]


# --- IMDB-WIKI ------------------------------------------------------------------------------------


def datenum(day: date) -> int:
    """Matlab's serial date number, by its definition: 1 January of the year 0 is day 1."""
    return (day - date(1, 1, 1)).days + 367


def cells(values: Sequence[object]) -> np.ndarray[tuple[int, int], np.dtype[np.object_]]:
    array = np.empty((1, len(values)), object)
    array[0, :] = values
    return array


PEOPLE = [
    # dob, year taken, gender, name, face score, second face score
    (date(1981, 5, 5), 2009, 1.0, "Sami Jauhojärvi", 4.3, np.nan),
    (date(1981, 9, 5), 2009, 0.0, "Ann Other", 2.5, np.nan),
    (date(1950, 1, 1), 2000, np.nan, "No Gender", 3.0, np.nan),
    (date(1950, 1, 1), 2000, 1.0, "No Face", -np.inf, np.nan),
    (date(1950, 1, 1), 2000, 1.0, "Two Faces", 3.0, 2.6),
    (date(1950, 1, 1), 2000, 1.0, "Weak Face", 0.5, np.nan),
    (date(1700, 1, 1), 2000, 1.0, "Too Old", 3.0, np.nan),
    (date(2010, 1, 1), 2000, 1.0, "Not Born", 3.0, np.nan),
    (None, 2000, 1.0, "No Date", 3.0, np.nan),
]


def imdb_wiki(root: Path, name: str) -> None:
    """The nested 1 x 1 struct of 1 x N fields, with cells for text and boxes, as published."""
    paths = [f"{i % 100:02d}/{i}_{p[3]}.jpg".replace(" ", "") for i, p in enumerate(PEOPLE)]
    fields = {
        "dob": np.array([[0 if p[0] is None else datenum(p[0]) for p in PEOPLE]], np.int32),
        "photo_taken": np.array([[p[1] for p in PEOPLE]], np.uint16),
        "full_path": cells(paths),
        "gender": np.array([[p[2] for p in PEOPLE]], np.float64),
        "name": cells([p[3] for p in PEOPLE]),
        "face_location": cells([np.array([[10.0, 10.0, 90.0, 90.0]])] * len(PEOPLE)),
        "face_score": np.array([[p[4] for p in PEOPLE]], np.float64),
        "second_face_score": np.array([[p[5] for p in PEOPLE]], np.float64),
    }
    if name == "imdb":
        fields["celeb_names"] = cells(sorted({p[3] for p in PEOPLE}))
        fields["celeb_id"] = np.arange(1, len(PEOPLE) + 1, dtype=np.float64)[None]
    root.mkdir(parents=True)
    savemat(root / f"{name}.mat", {name: fields})
    for path in paths:
        save(root / path)


def test_wiki_ages_are_those_of_the_middle_of_the_year(tmp_path: Path) -> None:
    imdb_wiki(tmp_path / "wiki_crop", "wiki")

    reading = read_imdb_wiki(tmp_path / "wiki_crop")
    rows = list(reading.records)

    assert [(r.age_min, r.age_max, r.gender) for r in rows] == [
        (28, 28, "male"),
        (27, 27, "female"),
        (50, 50, None),
    ]
    assert rows[0].subject == "Sami Jauhojärvi"
    assert (rows[0].dataset, rows[0].licence_class, rows[0].age_kind) == (
        "wiki",
        "research",
        "real",
    )
    assert rows[0].audit == {"face_score": "4.300"}
    assert dict(reading.log.filtered) == {
        "no face found by the authors": 1,
        "a second face in the picture": 1,
        "face score under 1": 1,
        "age outside 0..100": 2,
        "impossible birth date": 1,
    }


def test_cleaning_of_imdb_wiki_can_be_chosen(tmp_path: Path) -> None:
    imdb_wiki(tmp_path / "imdb_crop", "imdb")
    rules = Cleaning(
        min_face_score=0.0, max_second_face_score=3.0, need_gender=True, age="interval"
    )

    rows = list(read_imdb_wiki(tmp_path / "imdb_crop", cleaning=rules).records)

    assert [(r.age_min, r.age_max) for r in rows] == [(27, 28), (27, 28), (50, 50), (50, 50)]
    assert [r.subject for r in rows] == ["1", "2", "5", "6"]
    assert rows[0].dataset == "imdb"


def test_a_picture_that_the_metadata_names_but_is_not_there_is_a_bad_row(tmp_path: Path) -> None:
    root = tmp_path / "wiki_crop"
    imdb_wiki(root, "wiki")
    (root / "00/0_SamiJauhojärvi.jpg").unlink()

    reading = read_imdb_wiki(root)

    assert len(list(reading.records)) == 2
    assert [(p.row, p.column) for p in reading.log.problems] == [(0, "full_path")]


def test_other_matlab_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one of imdb\.mat and wiki\.mat"):
        read_imdb_wiki(tmp_path)
    savemat(tmp_path / "wiki.mat", {"wiki": {"dob": np.zeros((1, 2))}})
    with pytest.raises(DataError, match="no field 'photo_taken'"):
        read_imdb_wiki(tmp_path)
    (tmp_path / "wiki.mat").write_bytes(b"not matlab at all" * 20)
    with pytest.raises(DataError, match="not the metadata as published"):
        read_imdb_wiki(tmp_path)


def test_matlab_days_are_those_of_matlabs_own_examples() -> None:
    """datenum(2000,1,1) is 730486 and datenum(1970,1,1) is 719529 in Matlab's documentation."""
    assert from_datenum(730486) == date(2000, 1, 1)
    assert from_datenum(719529.75) == date(1970, 1, 1)
    assert from_datenum(0) is None
    assert from_datenum(float("nan")) is None


# --- folder trees ---------------------------------------------------------------------------------


def test_a_folder_tree_is_its_own_label_table(tmp_path: Path) -> None:
    save(tmp_path / "20-29/female/anna.jpg")
    save(tmp_path / "34/male/2019/otto.png")
    save(tmp_path / "70+/unknown/x.webp")
    (tmp_path / "34/notes.txt").write_text("taken in May")

    reading = read_tree(tmp_path, dataset="club", licence_class="commercial")
    rows = drawn(reading)

    anna = rows["20-29/female/anna.jpg"]
    assert (anna.age_min, anna.age_max, anna.gender) == (20, 29, "female")
    assert (anna.dataset, anna.licence_class, anna.age_kind) == ("club", "commercial", "real")
    assert rows["34/male/2019/otto.png"].age_min == 34
    assert rows["70+/unknown/x.webp"].gender is None
    assert dict(reading.log.filtered) == {"not a picture by its name": 1}


def test_a_tree_can_be_laid_out_in_other_ways(tmp_path: Path) -> None:
    save(tmp_path / "train/batch7/anna/herr/45/a.jpg")

    reading = read_tree(
        tmp_path, layout="split/-/subject/gender/age", gender_words={"Herr": "male"}
    )
    (row,) = reading.records

    assert (row.split, row.subject, row.gender, row.age_min) == ("train", "anna", "male", 45)
    with pytest.raises(ArgumentError, match="each level once"):
        read_tree(tmp_path, layout="age/age")
    with pytest.raises(ArgumentError, match="'licence'"):
        read_tree(tmp_path, layout="licence/age")


def test_folders_that_are_no_labels_are_reported(tmp_path: Path) -> None:
    for name in ("adult/female/a.jpg", "30/lady/b.jpg", "30/c.jpg", "30/male/d.jpg"):
        save(tmp_path / name)

    reading = read_tree(tmp_path)

    assert list(drawn(reading)) == ["30/male/d.jpg"]
    assert [(p.file, p.column) for p in reading.log.problems] == [
        ("30/c.jpg", "folder"),
        ("30/lady/b.jpg", "gender"),
        ("adult/female/a.jpg", "age"),
    ]


# --- import ---------------------------------------------------------------------------------------


def test_an_import_writes_paths_or_the_pictures_themselves(tmp_path: Path) -> None:
    picture = save(tmp_path / "set/30/male/d.jpg")
    plain, whole = tmp_path / "plain.parquet", tmp_path / "whole.parquet"

    import_faces(read_tree(tmp_path / "set"), plain)
    import_faces(read_tree(tmp_path / "set"), whole, embed=True)

    (by_path,) = [r for _, b in FaceTable.open(plain).batches() for r in batch_to_records(b)]
    (by_bytes,) = [r for _, b in FaceTable.open(whole).batches() for r in batch_to_records(b)]
    assert (by_path.path, by_path.image) == (str(picture.resolve()), None)
    assert (by_bytes.path, by_bytes.image) == (None, encoded(blob(0)))


def test_an_empty_data_set_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()

    with pytest.raises(DataError, match="no usable row"):
        import_faces(read_tree(tmp_path / "set"), tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()
    with pytest.raises(DataError, match="no such folder"):
        read_utkface(tmp_path / "missing")
