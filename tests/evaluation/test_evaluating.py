"""One evaluation as a whole: its tables agree with scikit-learn and survive their file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the 'eval' extra")
pytest.importorskip("scipy", reason="needs the 'eval' extra")

from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from agelens.errors import DataError
from agelens.evaluation.evaluating import EvaluationResult, evaluate
from agelens.evaluation.metrics import METRICS, measure
from agelens.evaluation.scored import ScoredFaces
from evaluation.simulation import RANGE_ENDS, in_ranges, simulated


@pytest.fixture(scope="module")
def faces() -> ScoredFaces:
    faces = simulated(700, 1)
    groups = np.array(["a", "b", None], object)[np.arange(700) % 3]
    answered = np.arange(700) % 10 != 0
    return replace(faces, audit={"group": groups}, answered=answered)


@pytest.fixture(scope="module")
def result(faces: ScoredFaces) -> EvaluationResult:
    return evaluate(faces, samples=50)


def test_figures_are_of_all_faces_and_those_of_the_answered_stand_beside_them(
    faces: ScoredFaces, result: EvaluationResult
) -> None:
    assert result.metrics["age_mae"].value == measure(faces, ["age_mae"])["age_mae"].value
    assert result.metrics["age_mae"].count == 700
    assert result.answered["age_mae"].count == 630
    assert result.faces["answered"] == 630


def test_groups_have_the_figures_of_their_faces(
    faces: ScoredFaces, result: EvaluationResult
) -> None:
    errors = np.abs(faces.mean_age - faces.age_min)
    (first, second) = result.groups["group"]

    assert (first.value, second.value) == ("a", "b")
    assert first.count == (faces.audit["group"] == "a").sum()
    assert first.metrics["age_mae"].value == pytest.approx(
        errors[faces.audit["group"] == "a"].mean()
    )
    assert sum(band.count for band in result.groups["age"]) == 700


def test_bands_do_not_take_the_faces_of_bands_that_are_not_there(faces: ScoredFaces) -> None:
    young = evaluate(faces.take(faces.age_min < 18), samples=5).groups["age"]

    assert [band.value for band in young] == ["0-2", "3-9", "10-12", "13-17"]
    assert young[-1].count == ((faces.age_min >= 13) & (faces.age_min < 18)).sum()


def test_a_column_with_a_value_a_face_is_no_audit_column(faces: ScoredFaces) -> None:
    found = evaluate(replace(faces, audit={"file": faces.names}), samples=5)

    assert "file" not in found.groups
    assert any("'file' has 700 values" in note for note in found.notes)


def test_a_column_named_age_does_not_replace_the_age_bands(
    faces: ScoredFaces, result: EvaluationResult
) -> None:
    column = np.array(["young", "old"] * 350, dtype=object)

    found = evaluate(replace(faces, audit={"age": column}), samples=5)

    assert [one.value for one in found.groups["age"]] == [one.value for one in result.groups["age"]]
    assert any("column 'age' is not taken" in note for note in found.notes)


def test_reliability_is_that_of_scikit_learn(faces: ScoredFaces, result: EvaluationResult) -> None:
    observed, predicted = calibration_curve(faces.female_label, faces.female, n_bins=10)
    bins = result.reliability["female"]

    np.testing.assert_allclose([one["observed"] for one in bins], observed)
    np.testing.assert_allclose([one["predicted"] for one in bins], predicted)
    assert sum(one["count"] for one in bins) == 700


def test_confusion_is_that_of_scikit_learn(faces: ScoredFaces, result: EvaluationResult) -> None:
    likelier = np.where(faces.female > 0.5, 0, 1)
    unsure = np.maximum(faces.female, 1 - faces.female) < 0.75
    said = np.where(unsure, 2, likelier)
    ranges = [
        np.searchsorted(RANGE_ENDS, np.minimum(np.rint(ages), 100))
        for ages in (faces.age_min, faces.mean_age)
    ]

    expected = confusion_matrix(1 - faces.female_label, said, labels=[0, 1, 2])[:2]
    assert result.confusion["gender"]["counts"] == expected.tolist()
    assert result.confusion["nine_ranges"]["counts"] == confusion_matrix(*ranges).tolist()


def test_the_scatter_counts_true_against_predicted_ages(
    faces: ScoredFaces, result: EvaluationResult
) -> None:
    assert result.scatter is not None
    counts, edges = np.array(result.scatter["counts"]), result.scatter["true_edges"]
    row = int(np.searchsorted(edges, 40, side="right")) - 1
    within = (faces.age_min >= edges[row]) & (faces.age_min < edges[row + 1])

    assert counts.sum() == 700
    assert counts[row].sum() == within.sum()
    spread = np.histogram(faces.mean_age[within], bins=edges)[0]
    assert counts[row].tolist() == spread.tolist()


def test_ranges_are_told_what_is_missing(faces: ScoredFaces) -> None:
    found = evaluate(in_ranges(faces), samples=5)

    assert found.scatter is None
    assert "age_mae" not in found.metrics
    assert any("age_mae" in note and "exact ages are needed" in note for note in found.notes)


def test_every_metric_is_either_there_or_explained(result: EvaluationResult) -> None:
    explained = " ".join(result.notes)

    for name in METRICS:
        assert (name in result.metrics) != (name in explained), name


def test_an_evaluation_survives_its_file(tmp_path: Path, result: EvaluationResult) -> None:
    result.save(tmp_path / "evaluation.json")
    read = EvaluationResult.load(tmp_path / "evaluation.json")

    assert read.to_dict() == result.to_dict()
    assert read.metrics == result.metrics
    wire = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    assert wire["definitions"]["coverage_90"]["nominal"] == 0.9


@pytest.mark.parametrize("content", ["", "{}", "no", "[1]", '{"schema": "agelens.evaluation/1"}'])
def test_a_file_that_is_no_evaluation_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "odd.json").write_text(content)

    with pytest.raises(DataError, match=r"odd\.json"):
        EvaluationResult.load(tmp_path / "odd.json")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json.*agelens evaluate"):
        EvaluationResult.load(tmp_path / "gone.json")


def test_a_model_that_never_answers_cannot_be_evaluated(faces: ScoredFaces) -> None:
    silent = replace(
        faces, age=np.full_like(faces.age, np.nan), female=np.full_like(faces.female, np.nan)
    )

    with pytest.raises(DataError, match="no estimate for any of the 700"):
        evaluate(silent)
