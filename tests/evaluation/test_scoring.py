"""Labelled faces put to a model: the answers users get, labels checked, and work done once."""

from __future__ import annotations

import io
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the 'eval' extra")

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

from agelens import Analyzer
from agelens.bundle import CalibrationFields, bundled_folder, find_model
from agelens.data.schema import FaceRecord, FaceWriter
from agelens.errors import DataError, LicenceNotAccepted, ModelNotFound
from agelens.evaluation.scored import LEVELS, ScoredFaces
from agelens.evaluation.scoring import (
    ScoringOptions,
    load_scored,
    recalibrated,
    save_scored,
    score,
)
from data.pictures import FACES, blob, encoded

ALBERT = {"dataset": "ours", "age_min": 40, "age_max": 40, "gender": "male"}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A table of faces; each row's ``image`` is bytes or ``path`` a file."""
    audit = sorted({name for row in rows for name in row.get("audit", {})})
    with FaceWriter(path, audit) as writer:
        for number, row in enumerate(rows):
            writer.write(FaceRecord(**{"dataset": "ours", "source_file": f"{number}.jpg", **row}))
    return path


def photograph(name: str = "astronaut", *, blur: float = 0, shrink: int = 1) -> bytes:
    """A photograph of the repository as JPEG bytes, blurred or made smaller."""
    with Image.open(FACES / f"{name}.jpg") as image:
        changed, data = image.convert("RGB").reduce(shrink), io.BytesIO()
    if blur:
        changed = changed.filter(ImageFilter.GaussianBlur(blur))
    changed.save(data, "JPEG", quality=95)
    return data.getvalue()


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face, a blurred face, a picture without a face, no picture, the first one saved again."""
    return write(
        tmp_path_factory.mktemp("album") / "album.parquet",
        [
            {"image": photograph(), "age_min": 40, "age_max": 40, "gender": "female"},
            {
                "image": photograph("hopper", blur=12),
                "age_min": 60,
                "age_max": 69,
                "gender": "female",
                "subject": "hopper",
            },
            {"image": encoded(blob(1)), "age_min": 3, "age_max": 9, "audit": {"race": "Other"}},
            {"image": b"no picture", "age_min": 3, "age_max": 9},
            {
                "image": photograph(shrink=2),
                "gender": "female",
            },
            {"image": encoded(blob(2)), "gender": "male", "subject": "hopper"},
        ],
    )


@pytest.fixture(scope="module")
def faces(album: Path) -> ScoredFaces:
    return score("cc0", [album])


# --- answers --------------------------------------------------------------------------------------


def test_answers_are_those_that_analyze_gives(faces: ScoredFaces) -> None:
    analysis = Analyzer(model="cc0", crops=True)(photograph())
    (face,) = analysis.faces

    assert faces.answered[0]
    assert faces.detected[0]
    assert face.gender is not None
    np.testing.assert_allclose(faces.age[0], face.age.probabilities, atol=1e-6)
    assert faces.female[0] == pytest.approx(face.gender.female_probability, abs=1e-6)
    intervals = [face.age.interval(level) for level in LEVELS]
    assert faces.interval_low[0].tolist() == [low for low, _ in intervals]
    assert faces.interval_high[0].tolist() == [high for _, high in intervals]
    assert faces.gender_threshold == face.gender.threshold
    assert faces.quality["size_px"][0] == pytest.approx(face.quality.size_px)


def test_a_face_on_which_analyze_abstains_has_an_answer_all_the_same(faces: ScoredFaces) -> None:
    assert not faces.answered[1]
    assert faces.has_age[1]
    assert faces.age[1].sum() == pytest.approx(1)


def test_a_picture_without_a_face_is_taken_whole_as_a_crop_only(
    album: Path, faces: ScoredFaces
) -> None:
    whole = score("cc0", [album], ScoringOptions(crops=False))

    assert not faces.detected[2]
    assert not np.isnan(faces.age[2, 0])
    assert np.isnan(whole.age[2]).all()
    assert not whole.answered[2]
    assert not np.isnan(whole.age[0, 0])


def test_a_picture_that_cannot_be_read_is_a_row_without_an_answer(faces: ScoredFaces) -> None:
    assert np.isnan(faces.age[3]).all()
    assert not faces.answered[3]
    assert list(faces.errors) == ["album.parquet#3"]
    assert "picture" in faces.errors["album.parquet#3"]


def test_labels_come_as_they_are(faces: ScoredFaces) -> None:
    assert faces.names.tolist() == [f"album.parquet#{row}" for row in range(6)]
    assert faces.age_min.tolist() == [40, 60, 3, 3, -1, -1]
    assert faces.age_max.tolist() == [40, 69, 9, 9, -1, -1]
    assert faces.female_label.tolist() == [1, 1, -1, -1, 1, 0]
    assert faces.audit["race"].tolist() == [None, None, "Other", None, None, None]


def test_subjects_and_copies_share_a_cluster(faces: ScoredFaces) -> None:
    clusters = faces.clusters.tolist()

    assert clusters[0] == clusters[4]
    assert clusters[1] == clusters[5]
    assert len(set(clusters)) == 4


def test_subjects_of_two_data_sets_are_two_people(tmp_path: Path) -> None:
    rows = [
        {"image": encoded(blob(seed)), "dataset": name, "subject": "7", "gender": "male"}
        for seed, name in enumerate(["one", "other", "one"])
    ]

    clusters = score("cc0", write(tmp_path / "faces.parquet", rows)).clusters.tolist()

    assert clusters[0] == clusters[2] != clusters[1]


def test_a_mirrored_average_is_that_of_analyze(album: Path) -> None:
    (face,) = Analyzer(model="cc0", crops=True, flip=True)(photograph()).faces

    flipped = score("cc0", [album], ScoringOptions(flip=True))

    np.testing.assert_allclose(flipped.age[0], face.age.probabilities, atol=1e-6)


def test_rows_are_spread_over_the_data(tmp_path: Path) -> None:
    rows = [{"image": encoded(blob(seed, 32)), **ALBERT, "age_min": seed} for seed in range(9)]

    faces = score(
        "cc0",
        write(tmp_path / "faces.parquet", rows),
        ScoringOptions(detector="none", max_rows=3),
    )

    assert faces.age_min.tolist() == [0, 4, 8]
    assert faces.names.tolist() == [f"faces.parquet#{row}" for row in (0, 4, 8)]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = [
        write(tmp_path / folder / "faces.parquet", [{"image": encoded(blob(1)), **ALBERT}])
        for folder in ("a", "b")
    ]

    assert score("cc0", files).names.tolist() == ["a/faces.parquet#0", "b/faces.parquet#0"]


def test_pictures_beside_the_table_are_found_and_hashed(tmp_path: Path) -> None:
    (tmp_path / "face.jpg").write_bytes(photograph())
    table = write(tmp_path / "faces.parquet", [{"path": "face.jpg", **ALBERT}])
    before = score("cc0", table)

    (tmp_path / "face.jpg").write_bytes(photograph("hopper"))
    after = score("cc0", table)

    assert before.detected[0]
    assert before.provenance.data[0].rows == 1
    assert before.provenance.data[0].sha256 != after.provenance.data[0].sha256


def test_time_is_measured_when_asked_for(album: Path, faces: ScoredFaces) -> None:
    timed = score("cc0", [album], ScoringOptions(timed=True)).provenance.milliseconds

    assert faces.provenance.milliseconds == {}
    assert 0 < timed["network"] < timed["total"]


def test_progress_ends_at_the_number_of_faces(album: Path) -> None:
    told: list[tuple[int, int]] = []

    score("cc0", [album], progress=lambda done, total: told.append((done, total)))

    assert told[-1] == (6, 6)


# --- models ---------------------------------------------------------------------------------------


def changed_card(folder: Path, change: Callable[[str], str], name: str = "changed") -> str:
    """The cc0 model under a card of our own."""
    text = (bundled_folder() / "cc0.toml").read_text("utf-8")
    card = folder / f"{name}.toml"
    card.write_text(change(text), "utf-8")
    return str(card)


def test_a_model_without_a_gender_has_none(tmp_path: Path, album: Path) -> None:
    pytest.importorskip("onnx", reason="needs the 'train' extra")
    import onnx_models

    network = onnx_models.distribution_network()
    card = onnx_models.distribution_card(network.graph)
    del card["gender"]
    model = onnx_models.write_model(tmp_path, network.graph, card)

    faces = score(str(model), [album])

    assert np.isnan(faces.female).all()
    assert not np.isnan(faces.age[0]).any()


def test_a_research_model_needs_consent(tmp_path: Path, album: Path) -> None:
    model = changed_card(
        tmp_path, lambda text: text.replace('class = "commercial"', 'class = "research"')
    )

    with pytest.raises(LicenceNotAccepted):
        score(model, [album])
    assert len(score(model, [album], ScoringOptions(accept_licence=True))) == 6


def test_an_unknown_model_is_named(album: Path) -> None:
    with pytest.raises(ModelNotFound, match="nobody"):
        score("nobody", [album])


# --- calibration ----------------------------------------------------------------------------------


def other_calibration(text: str) -> str:
    for name, number in (("age_temperature", 0.7), ("gender_bias", 0.9)):
        text, found = re.subn(rf"(?m)^{name} = .*$", f"{name} = {number}", text)
        assert found == 1
    return text


def test_another_calibration_gives_what_the_model_with_it_gives(
    tmp_path: Path, album: Path, faces: ScoredFaces
) -> None:
    model = changed_card(tmp_path, other_calibration)
    fresh = score(model, [album])

    again = recalibrated(faces, find_model(model).card)

    assert not np.allclose(fresh.age[0], faces.age[0], atol=1e-3)
    np.testing.assert_array_equal(again.age, fresh.age)
    np.testing.assert_array_equal(again.female, fresh.female)
    np.testing.assert_array_equal(again.interval_low, fresh.interval_low)
    np.testing.assert_array_equal(again.interval_high, fresh.interval_high)
    np.testing.assert_array_equal(again.decoded_age, faces.decoded_age)


def test_no_calibration_leaves_what_was_decoded(faces: ScoredFaces) -> None:
    plain = recalibrated(faces, CalibrationFields())

    np.testing.assert_allclose(plain.age, plain.decoded_age, atol=1e-4)
    assert plain.gender_threshold == 0.5


# --- keeping --------------------------------------------------------------------------------------


def test_scored_faces_survive_their_file(tmp_path: Path, faces: ScoredFaces) -> None:
    save_scored(faces, tmp_path / "kept.npz")
    read = load_scored(tmp_path / "kept.npz")

    for name in faces.__dataclass_fields__:
        wanted, found = getattr(faces, name), getattr(read, name)
        if isinstance(wanted, np.ndarray):
            assert found.dtype == wanted.dtype, name
            np.testing.assert_array_equal(found, wanted, err_msg=name)
        elif name in ("audit", "quality"):
            for column in wanted:
                np.testing.assert_array_equal(found[column], wanted[column], err_msg=column)
        else:
            assert found == wanted, name
    assert [path.name for path in tmp_path.iterdir()] == ["kept.npz"]


def asked(model: str, data: Path, kept: Path, options: ScoringOptions | None = None) -> bool:
    """Whether the network was asked again."""
    told: list[int] = []
    score(model, [data], options, kept=kept, progress=lambda done, _: told.append(done))
    return bool(told)


def test_kept_answers_are_taken_while_nothing_changed(tmp_path: Path, album: Path) -> None:
    kept = tmp_path / "kept.npz"

    assert asked("cc0", album, kept)
    assert not asked("cc0", album, kept)
    assert asked("cc0", album, kept, ScoringOptions(flip=True))
    assert not asked("cc0", album, kept, ScoringOptions(flip=True))
    assert asked("cc0", album, kept)


def test_kept_answers_are_not_taken_for_other_data(tmp_path: Path, album: Path) -> None:
    kept, other = tmp_path / "kept.npz", tmp_path / "other.parquet"
    assert asked("cc0", album, kept)
    pq.write_table(pq.read_table(album).slice(0, 5), other)

    assert asked("cc0", other, kept)


def test_kept_answers_are_taken_for_another_calibration_of_the_same_model(
    tmp_path: Path, album: Path
) -> None:
    kept = tmp_path / "kept.npz"
    model = changed_card(tmp_path, other_calibration)
    assert asked("cc0", album, kept)
    told: list[int] = []

    again = score(model, [album], kept=kept, progress=lambda done, _: told.append(done))

    assert not told
    np.testing.assert_array_equal(again.age, score(model, [album]).age)
    assert again.provenance.card_sha256 != score("cc0", [album], kept=kept).provenance.card_sha256


def test_kept_answers_are_not_taken_for_another_crop(tmp_path: Path, album: Path) -> None:
    kept = tmp_path / "kept.npz"
    assert asked("cc0", album, kept)

    model = changed_card(tmp_path, lambda text: text.replace("margin = 0.2", "margin = 0.3"))

    assert asked(model, album, kept)


def test_kept_answers_are_timed_later_without_asking_again(tmp_path: Path, album: Path) -> None:
    kept = tmp_path / "kept.npz"
    assert asked("cc0", album, kept)

    assert not asked("cc0", album, kept, ScoringOptions(timed=True))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_a_broken_kept_file_is_named(tmp_path: Path, album: Path, content: bytes) -> None:
    kept = tmp_path / "kept.npz"
    kept.write_bytes(content)

    with pytest.raises(DataError, match=r"kept\.npz"):
        score("cc0", [album], kept=kept)


def test_an_archive_of_something_else_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", ages=np.zeros(3))

    with pytest.raises(DataError, match=r"other\.npz"):
        load_scored(tmp_path / "other.npz")


def test_objects_in_a_kept_file_are_not_loaded(tmp_path: Path, faces: ScoredFaces) -> None:
    save_scored(faces, tmp_path / "kept.npz")
    with np.load(tmp_path / "kept.npz") as held:
        arrays = dict(held)
    np.savez(tmp_path / "evil.npz", **{**arrays, "age": np.array([print], object)})

    with pytest.raises(DataError, match=r"evil\.npz"):
        load_scored(tmp_path / "evil.npz")


# --- wrong labels ---------------------------------------------------------------------------------

IMAGE = encoded(blob(3, 32))


def raw_table(path: Path, columns: dict[str, Any], count: int = 3) -> Path:
    pq.write_table(pa.table({"image": [IMAGE] * count, **columns}), path)
    return path


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        pytest.param({"years": [1, 2, 3]}, ["'age_min'", "'gender'", "years"], id="no labels"),
        pytest.param({"age_min": [1, 2, 3]}, ["'age_max'", "missing"], id="half an age"),
        pytest.param(
            {"age_min": [1.0, 2.0, float("nan")], "age_max": [1.0, 2.0, 3.0]},
            ["row 2", "column 'age_min'", "nan"],
            id="NaN",
        ),
        pytest.param(
            {"age_min": [1.0, 2.5, 3.0], "age_max": [1.0, 2.5, 3.0]},
            ["row 1", "column 'age_", "2.5"],
            id="half a year",
        ),
        pytest.param(
            {"age_min": [1, 200, 3], "age_max": [1, 200, 3]},
            ["row 1", "'age_min'", "200"],
            id="impossible",
        ),
        pytest.param(
            {"age_min": [1, None, 70_000], "age_max": [1, None, 3]},
            ["row 2", "'age_min'", "70000"],
            id="far from possible",
        ),
        pytest.param(
            {"age_min": [-4, 2, 3], "age_max": [1, 2, 3]},
            ["row 0", "'age_min'", "-4"],
            id="negative",
        ),
        pytest.param(
            {"age_min": [1, 2, 30], "age_max": [1, 2, 20]},
            ["row 2", "'age_min'", "ends at 20"],
            id="backwards",
        ),
        pytest.param(
            {"age_min": [1, None, 3], "age_max": [1, 2, 3]},
            ["row 1", "'age_min'"],
            id="one end",
        ),
        pytest.param(
            {"age_min": ["a", "b", "c"], "age_max": [1, 2, 3]},
            ["'age_min'", "string"],
            id="words for ages",
        ),
        pytest.param(
            {"gender": ["female", "male", "F"]}, ["row 2", "'gender'", "'F'"], id="gender word"
        ),
        pytest.param(
            {"gender": pa.nulls(3, pa.string())}, ["'gender'", "empty in all 3 rows"], id="no value"
        ),
    ],
)
def test_wrong_labels_name_file_column_and_row(
    tmp_path: Path, columns: dict[str, Any], words: list[str]
) -> None:
    table = raw_table(tmp_path / "wrong.parquet", columns)

    with pytest.raises(DataError, match=r"wrong\.parquet") as raised:
        score("cc0", table)

    for word in words:
        assert word in str(raised.value)


def test_whole_ages_kept_as_decimals_are_read(tmp_path: Path) -> None:
    columns = {"age_min": [1.0, None, 3.0], "age_max": [1.0, None, 3.0]}

    faces = score("cc0", raw_table(tmp_path / "faces.parquet", columns))

    assert faces.age_min.tolist() == [1, -1, 3]


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.parquet.*no rows"):
        score("cc0", write(tmp_path / "none.parquet", []))


def test_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.parquet"):
        score("cc0", tmp_path / "gone.parquet")


def test_pictures_that_all_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    rows = [{"image": b"nothing", **ALBERT}, {"path": "gone.jpg", **ALBERT}]

    with pytest.raises(DataError, match=r"none of the 2 pictures.*faces\.parquet#0"):
        score("cc0", write(tmp_path / "faces.parquet", rows))


def test_a_card_hash_is_of_what_it_says_not_of_how_it_is_written(
    tmp_path: Path, album: Path, faces: ScoredFaces
) -> None:
    spaced = changed_card(tmp_path, lambda text: f"# a remark\n\n{text}")
    reworded = changed_card(
        tmp_path, lambda text: text.replace("too high", "far too high"), "reworded"
    )

    assert tomllib.loads(Path(spaced).read_text("utf-8"))["name"] == "cc0"
    assert score(spaced, [album]).provenance == faces.provenance
    other = score(reworded, [album]).provenance
    assert other.card_sha256 != faces.provenance.card_sha256
    assert replace(other, card_sha256=faces.provenance.card_sha256) == faces.provenance
