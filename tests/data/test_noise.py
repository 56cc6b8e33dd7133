"""Planted mistakes rise to the top of the list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from agelens.data.duplicates import DuplicateGroup
from agelens.data.noise import (
    audit_labels,
    describe_chip,
    load_predictions,
    predict_out_of_fold,
    rank_doubtful_ages,
    rank_doubtful_genders,
)
from agelens.data.report import write_audit_html
from agelens.data.schema import FaceRecord, FaceTable, FaceWriter
from agelens.errors import ArgumentError, DataError
from data.pictures import blob, encoded

ROWS = 600


def planted() -> tuple[np.ndarray, list[int], list[str], set[int], set[int]]:
    """Features that tell age and gender with noise; 5 % of each label is wrong."""
    rng = np.random.default_rng(0)
    ages = rng.integers(0, 90, ROWS)
    female = rng.random(ROWS) < 0.5
    features = rng.normal(size=(ROWS, 20))
    features[:, 0] += ages / 8
    features[:, 1] += np.sqrt(ages)
    features[:, 2] += 3.0 * female
    wrong_age = rng.choice(ROWS, ROWS // 20, replace=False)
    wrong_gender = rng.choice(ROWS, ROWS // 20, replace=False)
    labels = ages.copy()
    labels[wrong_age] = (ages[wrong_age] + rng.integers(35, 55, len(wrong_age))) % 90
    gender = female.copy()
    gender[wrong_gender] = ~gender[wrong_gender]
    words = ["female" if is_female else "male" for is_female in gender]
    return features, [int(a) for a in labels], words, set(wrong_age), set(wrong_gender)


def test_planted_mistakes_are_found_far_above_chance() -> None:
    features, ages, genders, wrong_age, wrong_gender = planted()

    predictions = predict_out_of_fold(features, ages, ages, genders)
    by_age = rank_doubtful_ages(predictions.ages, ages, ages)
    by_gender = rank_doubtful_genders(predictions.female, genders)

    count = len(wrong_age)
    assert np.mean([d.row in wrong_age for d in by_age[:count]]) > 0.6  # chance is 0.05
    assert np.mean([d.row in wrong_gender for d in by_gender[:count]]) > 0.6
    flagged = [d for d in by_age if d.flagged]
    assert np.mean([d.row in wrong_age for d in flagged]) > 0.5
    assert len(flagged) < 0.15 * ROWS
    assert len(by_age) == len(by_gender) == ROWS


def test_the_models_never_saw_the_row_or_its_family() -> None:
    """With nothing but noise to go by, a copy of the answer must not help a row's own group."""
    rng = np.random.default_rng(1)
    identity = np.repeat(np.eye(30), 4, axis=0) * 10
    features = np.concatenate([identity, rng.normal(size=(120, 2))], axis=1)
    ages = np.repeat(rng.integers(0, 90, 30), 4).tolist()
    groups = np.repeat(np.arange(30), 4).tolist()

    def error(together: list[int] | None) -> float:
        made = predict_out_of_fold(features, ages, ages, [None] * 120, groups=together)
        return float(np.abs(made.ages @ np.arange(101) - ages).mean())

    assert error(None) < 5
    assert error(groups) > 15


def test_ages_are_doubted_by_their_tail() -> None:
    mean, spread = 40.0, 5.0
    edges = np.concatenate([[-np.inf], np.arange(100) + 0.5, [np.inf]])
    one = np.diff(norm.cdf(edges, mean, spread))
    low, high = [40, 20, 35, 60, None], [40, 20, 45, 69, None]

    doubts = {d.row: d for d in rank_doubtful_ages(np.tile(one, (5, 1)), low, high)}

    assert list(doubts) == [1, 3, 0, 2] or [d.row for d in doubts.values()][2:] == [0, 2]
    assert doubts[1].doubt == pytest.approx(1 - 2 * norm.cdf(20.5, mean, spread), abs=1e-9)
    assert doubts[3].doubt == pytest.approx(1 - 2 * norm.sf(59.5, mean, spread), abs=1e-9)
    assert doubts[0].doubt == doubts[2].doubt == 0
    assert (doubts[3].given, doubts[3].expected) == ("60-69", "about 40")
    assert 4 not in doubts


def test_confident_learning_counts_as_in_the_paper() -> None:
    """By hand: the thresholds are the mean confidences 0.75 (female) and 0.7 (male)."""
    female = [0.9, 0.9, 0.45, 0.1, 0.2, 0.6, 0.76]
    gender = ["female", "female", "female", "male", "male", "male", None]

    doubts = rank_doubtful_genders(female, gender)
    confident = rank_doubtful_genders([*female[:5], 0.8], [*gender[:5], "male"])

    assert [d.row for d in doubts] == [5, 2, 4, 0, 1, 3]
    assert [d.flagged for d in doubts] == [False] * 6
    assert next((d.row, d.flagged, d.expected) for d in confident) == (5, True, "female")
    assert doubts[0].doubt == pytest.approx(0.6)


def test_rows_without_labels_or_predictions_are_left_out() -> None:
    assert rank_doubtful_genders([0.5, float("nan")], [None, "male"]) == []
    assert rank_doubtful_ages(np.full((1, 101), 1 / 101), [None], [None]) == []


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"expected \(1, 101\)"):
        rank_doubtful_ages(np.ones((1, 100)) / 100, [3], [3])
    with pytest.raises(ArgumentError, match="sum to 1"):
        rank_doubtful_ages(np.ones((1, 101)), [3], [3])
    with pytest.raises(ArgumentError, match="features"):
        predict_out_of_fold(np.ones((2, 3)), [1], [1], ["male"])
    with pytest.raises(DataError, match="too few"):
        predict_out_of_fold(np.ones((3, 3)), [1] * 3, [1] * 3, ["male"] * 3)


def test_a_chip_is_described_by_its_edges_and_not_by_its_brightness() -> None:
    chip = blob(2, 192)
    paler = (chip * 0.5 + 60).astype(np.uint8)

    one, same, other = (describe_chip(c)[:1764] for c in (chip, paler, blob(3, 192)))

    assert one.shape == (1764,)
    assert np.abs(one - same).mean() < 0.25 * np.abs(one - other).mean()


def test_a_table_is_audited_with_given_predictions(tmp_path: Path) -> None:
    ages = np.full((30, 101), 1e-9)
    ages[:, 30] = 1
    ages /= ages.sum(1, keepdims=True)
    female = np.full(30, 0.95)
    np.savez(tmp_path / "p.npz", ages=ages, female=female)
    with FaceWriter(tmp_path / "t.parquet") as writer:
        for row in range(30):
            age = 75 if row in (4, 20) else 30
            writer.write(
                FaceRecord(
                    dataset="d",
                    source_file=str(row),
                    image=encoded(blob(row, 32)),
                    split="test" if row < 10 else "train",
                    age_min=age,
                    age_max=age,
                    gender="male" if row == 11 else "female",
                )
            )
    table = FaceTable.open(tmp_path / "t.parquet")

    doubts = audit_labels(table, load_predictions(tmp_path / "p.npz", 30), split="train")
    write_audit_html(doubts, table, tmp_path / "n.html")

    assert [(d.row, d.column) for d in doubts if d.flagged] == [(20, "age"), (11, "gender")]
    assert all(d.row >= 10 for d in doubts)
    page = (tmp_path / "n.html").read_text(encoding="utf-8")
    assert "labelled 75, the model expects about 30" in page
    assert page.count('<img alt="" src="data:image/jpeg') == 2
    assert json.dumps(doubts[0].to_dict(table.name_of(doubts[0].row)))
    with pytest.raises(DataError, match="expected"):
        load_predictions(tmp_path / "p.npz", 31)
    with pytest.raises(DataError, match=r"no \.npz"):
        load_predictions(tmp_path / "t.parquet", 30)


def test_a_table_is_audited_without_a_network(tmp_path: Path) -> None:
    """Bright pictures are called old here; two labels say the contrary."""
    rng = np.random.default_rng(0)
    old = rng.random(60) < 0.5
    with FaceWriter(tmp_path / "t.parquet") as writer:
        for row in range(60):
            pixels = (blob(row, 64) * 0.3 + (150 if old[row] else 20)).astype(np.uint8)
            says_old = old[row] != (row in (7, 31))
            writer.write(
                FaceRecord(
                    dataset="d",
                    source_file=str(row),
                    image=encoded(pixels),
                    age_min=70 if says_old else 20,
                    age_max=70 if says_old else 20,
                    gender="female" if says_old else "male",
                )
            )
    table = FaceTable.open(tmp_path / "t.parquet")

    doubts = audit_labels(table, duplicates=[DuplicateGroup((0, 1), ((0, 1),), 0)])

    assert {d.row for d in doubts if d.column == "age"} == set(range(60))
    top = [d.row for d in doubts if d.column == "age"][:6]
    assert {7, 31} <= set(top)
