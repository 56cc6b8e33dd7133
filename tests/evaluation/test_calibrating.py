"""Calibration from scored faces: what is fitted, judged on faces left out, written, and refused."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import onnx_models
from agelens.bundle import (
    CalibrationFields,
    CalibrationFile,
    ModelCard,
    bundled_folder,
    find_model,
    read_card,
)
from agelens.calibration import calibrate_gender, fit_age, fit_gender
from agelens.errors import ArgumentError, CardError, DataError
from agelens.evaluation.calibrating import (
    CalibrationOptions,
    CalibrationReport,
    calibrate,
    fit_fields,
    write_calibration,
)
from agelens.evaluation.scored import DataFile, ScoredFaces
from agelens.evaluation.scoring import recalibrated
from agelens.evaluation.values import covered
from agelens.toml import toml_text
from evaluation.simulation import in_ranges, simulated

UNCALIBRATED = CalibrationFields(gender_threshold=0.75)
QUICK = CalibrationOptions(samples=50)


@pytest.fixture(scope="module")
def card() -> ModelCard:
    """A card without a calibration."""
    return read_card(bundled_folder() / "cc0.toml").model_copy(update={"calibration": UNCALIBRATED})


def with_race(faces: ScoredFaces, seed: int = 0) -> ScoredFaces:
    rng = np.random.default_rng(seed)
    return replace(faces, audit={"race": rng.choice(["one", "other"], len(faces)).astype(object)})


@pytest.fixture(scope="module")
def report(card: ModelCard) -> CalibrationReport:
    """Of a model that is twice too sure."""
    return calibrate(with_race(simulated(900, seed=1, narrow=0.5)), card, QUICK)


# --- fitting --------------------------------------------------------------------------------------


def test_what_is_fitted_is_what_the_library_s_fits_give() -> None:
    faces = simulated(300, seed=2, narrow=0.5)
    ages = fit_age(faces.decoded_age, faces.age_min, faces.age_max)
    gender = fit_gender(faces.decoded_female, faces.female_label == 1)

    fields = fit_fields(faces, UNCALIBRATED)

    assert fields.age_temperature == ages.age_temperature
    assert fields.age_smoothing == ages.age_smoothing
    assert fields.coverage == ages.coverage
    assert fields.gender_temperature == gender.gender_temperature
    assert fields.gender_bias == gender.gender_bias
    assert fields.gender_threshold == 0.75


@pytest.mark.parametrize("labels", ["exact", "ranges"])
@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_a_model_that_is_too_sure_holds_its_level_on_fresh_faces(level: float, labels: str) -> None:
    faces = simulated(1200, seed=3, narrow=0.5)
    fields = fit_fields(in_ranges(faces) if labels == "ranges" else faces, UNCALIBRATED)
    fresh = simulated(2500, seed=4, narrow=0.5)

    before, after = (
        float(np.mean(covered(recalibrated(fresh, each), level))) for each in (UNCALIBRATED, fields)
    )

    error = math.sqrt(level * (1 - level) * (1 / 1200 + 1 / 2500))
    assert before < level - 0.1
    # Ranges say little of a model's spread: drawn inside them, ages are as the model wants them.
    slack = 0.05 if labels == "ranges" else 0.0
    assert level - 3 * error - slack <= after <= level + 3 * error + 0.05


def test_faces_without_an_estimate_or_a_label_do_not_count() -> None:
    faces = simulated(300, seed=5)
    ages, low = faces.decoded_age.copy(), faces.age_min.copy()
    ages[:40] = np.nan
    low[40:60] = -1
    female = faces.decoded_female.copy()
    female[:40] = np.nan
    holed = replace(faces, decoded_age=ages, decoded_female=female, age_min=low, age_max=low)

    fields = fit_fields(holed, UNCALIBRATED, CalibrationOptions(gender=False))

    kept = faces.take(np.arange(60, 300))
    assert fields == fit_fields(kept, UNCALIBRATED, CalibrationOptions(gender=False))


def test_the_threshold_is_the_least_that_is_right_often_enough() -> None:
    faces = simulated(2000, seed=6)

    fields = fit_fields(faces, UNCALIBRATED, CalibrationOptions(threshold_accuracy=0.95))

    female = calibrate_gender(faces.decoded_female, fields)
    likelier, right = np.maximum(female, 1 - female), (female > 0.5) == (faces.female_label == 1)

    def accuracy(threshold: float) -> float:
        return float(right[likelier >= threshold].mean())

    assert accuracy(fields.gender_threshold) >= 0.95
    assert accuracy(fields.gender_threshold - 0.01) < 0.95


def test_the_threshold_holds_for_the_worst_group() -> None:
    faces = with_race(simulated(3000, seed=7))
    wrong = (faces.audit["race"] == "other") & (np.random.default_rng(0).random(3000) < 0.06)
    faces = replace(faces, female_label=np.where(wrong, 1 - faces.female_label, faces.female_label))
    wanted = CalibrationOptions(threshold_accuracy=0.9)

    thresholds = [
        fit_fields(faces, UNCALIBRATED, replace(wanted, by=by)).gender_threshold
        for by in (None, "race")
    ]

    assert thresholds[1] > thresholds[0]


def test_an_accuracy_out_of_reach_is_refused_with_the_best_there_is() -> None:
    faces = simulated(400, seed=8)
    coin = np.random.default_rng(1).integers(0, 2, 400).astype(np.int8)

    with pytest.raises(ArgumentError, match=r"no gender threshold makes 95% .* the best is 5"):
        fit_fields(
            replace(faces, female_label=coin),
            UNCALIBRATED,
            CalibrationOptions(threshold_accuracy=0.95),
        )


def test_the_tables_take_the_levels_asked_for() -> None:
    fields = fit_fields(
        simulated(200, seed=9), UNCALIBRATED, CalibrationOptions(levels=(0.9, 0.5), gender=False)
    )

    assert {band.levels for band in fields.coverage} == {(0.0, 0.5, 0.9, 1.0)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gender_threshold": 0.4}, r"0\.5 to 1, got 0\.4"),
        ({"threshold_accuracy": 1.0}, r"under 1, got 1\.0"),
        ({"threshold_accuracy": 0.9, "gender_threshold": 0.8}, "not both"),
        ({"levels": (0.5, 1.5)}, r"within 0\.\.1, got 1\.5"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        CalibrationOptions(**options)


# --- groups ---------------------------------------------------------------------------------------


def harder_for_some(count: int, seed: int) -> ScoredFaces:
    """One face in four is of a group that the model errs on two and a half times as much."""
    faces = simulated(count, seed=seed, intervals=False)
    rng = np.random.default_rng(seed)
    some = rng.random(count) < 0.25
    error = np.where(some, rng.normal(0, 14, count), 0).round().astype(np.int16)
    age = np.clip(faces.age_min + error, 0, 100).astype(np.int16)
    race = np.where(some, "some", "most").astype(object)
    return replace(faces, age_min=age, age_max=age, audit={"race": race})


def test_by_a_column_the_worst_group_is_held_at_the_level_too() -> None:
    faces, fresh = harder_for_some(2000, 10), harder_for_some(4000, 11)
    rates = {}
    for by in (None, "race"):
        fields = fit_fields(faces, UNCALIBRATED, CalibrationOptions(by=by, gender=False))
        inside = covered(recalibrated(fresh, fields))
        rates[by] = {
            group: inside[fresh.audit["race"] == group].mean() for group in ("some", "most")
        }

    error = math.sqrt(0.9 * 0.1 * (1 / 500 + 1 / 1000))
    assert rates["race"]["some"] >= 0.9 - 3 * error
    assert rates[None]["some"] < 0.88
    assert rates["race"]["most"] >= rates[None]["most"]


def test_a_group_too_small_to_look_after_is_named(card: ModelCard) -> None:
    faces = simulated(400, seed=12)
    race = np.array(["many"] * 360 + ["few"] * 40, object)

    found = calibrate(replace(faces, audit={"race": race}), card, replace(QUICK, by="race"))

    assert "group 'few' of 'race' has 40 faces, fewer than 100: its level is not looked after" in (
        found.notes
    )
    assert found.fields.group_column == "race"


def column(*values: str | None) -> Any:
    return lambda count: np.resize(np.array(values, object), count)


@pytest.mark.parametrize(
    ("by", "race", "message"),
    [
        ("tone", column("one", "other"), "no column 'tone'; there are: dataset, gender, race"),
        ("race", column("one"), "column 'race' holds 'one' only"),
        ("race", column(None), "column 'race' is empty"),
        ("dataset", column("one", "other"), "column 'dataset' holds 'simulated' only"),
        ("race", column(*map(str, range(31))), "column 'race' has 31 values, more than 30"),
        (
            "race",
            column(*"abcdef"),
            "no group in column 'race' has 100 faces; the largest, 'a', has 50",
        ),
    ],
    ids=["missing", "one value", "empty", "one data set", "no groups", "all small"],
)
def test_a_column_that_names_no_groups_is_refused(by: str, race: Any, message: str) -> None:
    faces = replace(simulated(300, seed=13, intervals=False), audit={"race": race(300)})

    with pytest.raises(DataError, match=message):
        fit_fields(faces, UNCALIBRATED, CalibrationOptions(by=by))


# --- the report -----------------------------------------------------------------------------------


def test_before_is_the_card_and_after_is_nearer_to_the_level(report: CalibrationReport) -> None:
    before, after = report.before.metrics, report.after.metrics

    assert before["coverage_90"].value < 0.75
    assert after["coverage_90"].value == pytest.approx(0.915, abs=0.03)
    assert after["age_nll"].value < before["age_nll"].value - 0.2
    assert after["age_calibration_error"].value < before["age_calibration_error"].value / 2


def test_the_figures_before_are_those_of_the_card(
    report: CalibrationReport, card: ModelCard
) -> None:
    faces = with_race(simulated(900, seed=1, narrow=0.5))

    inside = covered(recalibrated(faces, card))

    assert report.before.metrics["coverage_90"].value == pytest.approx(inside.mean())
    groups = {group.value: group for group in report.before.groups["race"]}
    for name in ("one", "other"):
        rows = faces.audit["race"] == name
        assert groups[name].count == rows.sum()
        assert groups[name].metrics["coverage_90"].value == pytest.approx(inside[rows].mean())


def test_no_face_is_judged_under_a_calibration_that_has_seen_its_person(card: ModelCard) -> None:
    """Five people, three women and two men, of whom the model cannot say anything.

    Whoever leaves a woman out sees as many women as men, and says 1/2; whoever leaves a man out
    sees three women and one man, and says 3/4 of him.
    """
    faces = simulated(200, seed=14)
    person = np.arange(200) % 5
    faces = replace(
        faces,
        clusters=person,
        female_label=(person < 3).astype(np.int8),
        decoded_female=np.full(200, 0.5),
    )

    found = calibrate(faces, card, QUICK)

    expected = (3 * 0.5**2 + 2 * 0.75**2) / 5
    assert found.after.metrics["gender_brier"].value == pytest.approx(expected, abs=0.01)
    assert recalibrated(faces, found.fields).female == pytest.approx(3 / 5, abs=0.01)


def test_bands_are_of_exact_labels_and_ranges_stand_apart(card: ModelCard) -> None:
    exact, ranges = simulated(200, seed=15), in_ranges(simulated(200, seed=16))
    faces = replace(
        exact,
        age_min=np.where(np.arange(200) % 2, exact.age_min, ranges.age_min),
        age_max=np.where(np.arange(200) % 2, exact.age_max, ranges.age_max),
    )

    groups = calibrate(faces, card, QUICK).after.groups

    assert sum(group.count for group in groups["age"]) <= 200 - sum(
        group.count for group in groups["age range"]
    )
    assert {group.value for group in groups["age range"]} <= {
        "0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+",
    }  # fmt: skip


def test_a_report_survives_json(report: CalibrationReport, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")

    wire = json.loads((tmp_path / "report.json").read_text("utf-8"))

    assert CalibrationReport.from_dict(wire) == report
    assert wire["schema"] == "agelens.calibration/1"


@pytest.mark.parametrize(
    ("change", "message"), [({"schema": "x"}, "this is 'x'"), ({"after": None}, "has no")]
)
def test_what_is_no_report_is_refused(
    report: CalibrationReport, change: dict[str, Any], message: str
) -> None:
    wire = {key: value for key, value in (report.to_dict() | change).items() if value is not None}

    with pytest.raises(DataError, match=message):
        CalibrationReport.from_dict(wire)


def test_the_fields_say_what_they_were_fitted_on(card: ModelCard) -> None:
    faces = simulated(300, seed=17)
    names = np.array([f"{'a' if i < 200 else 'b'}.parquet#{i}" for i in range(300)], object)
    dataset = np.array(["fairface"] * 200 + ["utkface"] * 100, object)
    data = (DataFile("a.parquet", "a" * 64, 200), DataFile("b.parquet", "b" * 64, 100))
    faces = replace(
        faces, names=names, dataset=dataset, provenance=replace(faces.provenance, data=data)
    )

    found = calibrate(faces, card, QUICK)

    assert found.fields.files == (
        CalibrationFile(name="a.parquet", sha256="a" * 64, faces=200, licence_class="commercial"),
        CalibrationFile(name="b.parquet", sha256="b" * 64, faces=100, licence_class="research"),
    )
    assert found.fields.data.startswith("a.parquet (200 faces), b.parquet (100 faces); CC BY 4.0")
    assert found.fields.date == found.created[:10]
    assert any("b.parquet: faces for research only" in note for note in found.notes)


def test_faces_of_unknown_terms_give_no_class(report: CalibrationReport) -> None:
    assert [file.licence_class for file in report.fields.files] == [None]


# --- what cannot be calibrated --------------------------------------------------------------------


def changed(**changes: Any) -> ScoredFaces:
    faces = simulated(200, seed=18, intervals=False)
    arrays = {
        name: change(np.array(getattr(faces, name))) if callable(change) else change
        for name, change in changes.items()
    }
    return replace(faces, **arrays)


def filled(value: float) -> Any:
    return lambda array: np.full_like(array, value)


def broken(array: NDArray[np.float64]) -> NDArray[np.float64]:
    array[7, 30] = np.nan
    return array


def endless(array: NDArray[np.float64]) -> NDArray[np.float64]:
    array[9] = np.inf
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"female_label": filled(1)}, "column 'gender' holds 'female' only .*--no-gender"),
        ({"female_label": filled(0)}, "column 'gender' holds 'male' only"),
        ({"age_min": filled(30), "age_max": filled(30)}, "hold one label only, 30 to 30"),
        ({"decoded_age": broken}, "faces.parquet#7: simulated@1 gives ages that are not finite"),
        ({"decoded_female": endless}, "faces.parquet#9: .* gender that is not finite"),
        ({"decoded_age": filled(np.nan)}, "needs 125 faces .* got 0 of 200"),
        (
            {"age_min": filled(-1), "age_max": filled(-1), "female_label": filled(-1)},
            "nothing to calibrate: no ages: the columns 'age_min' and 'age_max' are empty or "
            "missing; no gender: the column 'gender' is empty",
        ),
    ],
    ids=["women only", "men only", "one age", "NaN", "inf", "no faces found", "no labels"],
)
def test_faces_that_allow_no_calibration_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_fields(changed(**changes), UNCALIBRATED)


def test_too_few_faces_are_refused() -> None:
    with pytest.raises(DataError, match=r"calibration needs 125 faces or more .* got 124 of"):
        fit_fields(simulated(124, seed=19, intervals=False), UNCALIBRATED)


def test_the_fewest_faces_that_are_taken_are_enough_for_every_fold(card: ModelCard) -> None:
    assert calibrate(simulated(125, seed=19), card, QUICK).fields.coverage


def test_a_model_without_gender_keeps_the_card_s_and_says_so(card: ModelCard) -> None:
    faces = changed(decoded_female=filled(np.nan))

    found = calibrate(faces, card, QUICK)

    assert "gender is not calibrated: simulated@1 gives no gender" in found.notes
    assert found.fields.gender_threshold == card.calibration.gender_threshold
    assert found.fields.gender_temperature == 1.0
    assert "gender_accuracy" not in found.after.metrics


def test_faces_without_ages_calibrate_the_gender_alone(card: ModelCard) -> None:
    faces = changed(age_min=filled(-1), age_max=filled(-1))

    found = calibrate(faces, card, QUICK)

    assert found.fields.coverage == ()
    assert any(note.startswith("ages are not calibrated: the columns") for note in found.notes)
    assert "gender_brier" in found.after.metrics


def test_one_gender_only_is_taken_when_the_gender_is_left_alone(card: ModelCard) -> None:
    found = calibrate(changed(female_label=filled(1)), card, replace(QUICK, gender=False))

    assert found.fields.coverage
    assert "gender is not calibrated: it was not asked for" in found.notes


# --- the card -------------------------------------------------------------------------------------

NETWORK = onnx_models.distribution_network()
HAND_WRITTEN = """# Ours, by hand.

schema = "agelens.card/1"
name = "small"
version = "2.1"  # the good one
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file with its card."""
    return onnx_models.write_model(tmp_path / "model", NETWORK.graph)


def test_the_card_written_in_place_is_the_old_one_with_the_new_calibration(
    model: Path, report: CalibrationReport
) -> None:
    before = tomllib.loads(model.with_suffix(".toml").read_text("utf-8"))

    path = write_calibration(find_model(str(model)), report.fields)

    after = tomllib.loads(path.read_text("utf-8"))
    assert path == model.with_suffix(".toml")
    assert {k: v for k, v in after.items() if k != "calibration"} == {
        k: v for k, v in before.items() if k != "calibration"
    }
    assert find_model(str(model)).card.calibration == report.fields
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []


def test_comments_and_order_of_a_hand_written_card_stay(
    model: Path, report: CalibrationReport
) -> None:
    card = model.with_suffix(".toml")
    table = tomllib.loads(card.read_text("utf-8"))
    crop = toml_text({"crop": table.pop("crop")}).replace("[crop]", "[crop] # as cut")
    old = (
        "[calibration]  # old\nage_temperature = 3.0\n\n[[calibration.coverage]]\nlow = 0\n"
        "high = 101\nlevels = [0, 1]\nmasses = [0, 1]\n"
    )
    rest = {k: v for k, v in table.items() if k not in ("schema", "name", "version")}
    card.write_text("\n".join([HAND_WRITTEN + toml_text(rest), old, crop]), "utf-8")
    find_model(str(model))

    write_calibration(find_model(str(model)), report.fields)

    text = card.read_text("utf-8")
    assert text.startswith(HAND_WRITTEN)
    assert "[crop] # as cut\n" in text
    assert text.index("[calibration]") < text.index("[crop] # as cut")
    assert "3.0" not in text
    assert text.count("[calibration]") == 1
    assert find_model(str(model)).card.calibration == report.fields


def test_a_limit_that_says_not_calibrated_goes(model: Path, report: CalibrationReport) -> None:
    card = model.with_suffix(".toml")
    table = tomllib.loads(card.read_text("utf-8"))
    table["limits"] = ["Not calibrated: so far.", "Small."]
    onnx_models.write_card(card, table)
    card.write_text("# Kept.\n" + card.read_text("utf-8"), "utf-8")

    write_calibration(find_model(str(model)), report.fields, version="2.2")

    assert card.read_text("utf-8").startswith("# Kept.\n")
    read = read_card(card)
    assert (read.limits, read.version) == (("Small.",), "2.2")
    assert read.calibration == report.fields


def test_the_bundled_model_gets_a_card_of_its_own(
    tmp_path: Path, report: CalibrationReport
) -> None:
    bundle = find_model("cc0")

    path = write_calibration(bundle, report.fields, tmp_path / "mine.toml")

    assert find_model(str(path)).card.calibration == report.fields
    assert find_model(str(path)).path("age") == bundle.path("age")
    assert find_model("cc0").card == bundle.card


def test_the_bundled_card_is_not_changed_in_place(report: CalibrationReport) -> None:
    with pytest.raises(ArgumentError, match=r"comes with the package .*--out CARD\.toml"):
        write_calibration(find_model("cc0"), report.fields)


@pytest.mark.parametrize("name", ["small", "default"])
def test_a_card_in_another_folder_takes_its_weights_along(
    model: Path, tmp_path: Path, report: CalibrationReport, name: str
) -> None:
    bundle = find_model(str(model) if name == "small" else name)

    away = find_model(str(write_calibration(bundle, report.fields, tmp_path / "new" / "mine.toml")))

    assert away.card.calibration == report.fields
    assert away.path().parent == (tmp_path / "new").resolve()
    assert away.read() == bundle.read()


def test_weights_of_another_model_are_not_replaced(
    model: Path, tmp_path: Path, report: CalibrationReport
) -> None:
    other = tmp_path / "new" / model.name
    other.parent.mkdir()
    other.write_bytes(b"another")

    with pytest.raises(ArgumentError, match=r"small\.onnx: exists and is not the file of small"):
        write_calibration(find_model(str(model)), report.fields, other.parent / "mine.toml")

    assert [path.read_bytes() for path in other.parent.iterdir()] == [b"another"]


def test_a_card_beside_its_weights_is_another_of_the_same_model(
    model: Path, report: CalibrationReport
) -> None:
    beside = write_calibration(find_model(str(model)), report.fields, model.parent / "mine.toml")

    assert find_model(str(beside)).card.calibration == report.fields


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("card.json", None, "a card is a .toml file"),
        ("notes.toml", 'title = "mine"\n', "exists and is no card"),
        ("other.toml", "other", "exists and is the card of 'small', not of 'cc0'"),
    ],
)
def test_no_other_file_is_replaced(
    tmp_path: Path,
    model: Path,
    report: CalibrationReport,
    name: str,
    content: str | None,
    message: str,
) -> None:
    out = tmp_path / name
    if content == "other":
        content = model.with_suffix(".toml").read_text("utf-8")
    if content is not None:
        out.write_text(content, "utf-8")

    with pytest.raises(ArgumentError, match=message):
        write_calibration(find_model("cc0"), report.fields, out)

    assert (out.read_text("utf-8") if out.exists() else None) == content


def test_an_earlier_calibration_of_the_same_model_is_replaced(
    tmp_path: Path, report: CalibrationReport
) -> None:
    out = write_calibration(find_model("cc0"), UNCALIBRATED, tmp_path / "mine.toml")

    write_calibration(find_model("cc0"), report.fields, out)

    assert read_card(out).calibration == report.fields


def test_faces_for_research_make_the_card_one_for_research(tmp_path: Path) -> None:
    file = CalibrationFile(name="u.parquet", sha256="0" * 64, faces=9, licence_class="research")

    out = write_calibration(
        find_model("cc0"), CalibrationFields(files=(file,)), tmp_path / "mine.toml"
    )

    assert find_model("cc0").card.licence_class == "commercial"
    assert read_card(out).licence_class == "research"
    assert read_card(out).licence == "CC0-1.0; calibrated on faces for research only"
    text = out.read_text("utf-8").replace('licence_class = "research"', "", 1)
    text = text.replace("[[files]]", 'licence_class = "commercial"\n\n[[files]]', 1)
    out.write_text(text, "utf-8")
    with pytest.raises(CardError, match=r"u\.parquet, on which it is calibrated, is for research"):
        read_card(out)


@pytest.mark.parametrize("name", ["default", "cc0"])
def test_shipped_cards_were_calibrated_on_faces_that_allow_commercial_use(name: str) -> None:
    files = find_model(name).card.calibration.files

    assert files
    assert {file.licence_class for file in files} == {"commercial"}
