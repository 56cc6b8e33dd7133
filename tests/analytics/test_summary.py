"""Corrected shares are those that were there, and their intervals say how far off they may be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agelens.analytics.confusion import (
    LABELS,
    Confusion,
    confusion_path,
    count_answers,
    measure_confusion,
    read_confusion,
    write_confusion,
)
from agelens.analytics.quantification import (
    adjusted_count,
    expected_shares,
    sample_shares,
    smoothed_confusion,
    soft_expected_shares,
)
from agelens.analytics.summary import correct_shares
from agelens.bundle import find_model
from agelens.errors import ArgumentError, DataError, ModelError
from agelens.evaluation.scored import DataFile
from agelens.evaluation.scoring import card_sha256, model_sha256
from evaluation.simulation import simulated

BANDS = ((0, 12), (13, 24), (25, 54), (55, 100))
SIZE = len(BANDS)


def true_matrix() -> np.ndarray:
    """(4, 2, 4, 3) P(said band and label | true band and gender), made up."""
    ages = np.array(
        [
            [0.90, 0.10, 0.00, 0.00],
            [0.15, 0.60, 0.25, 0.00],
            [0.00, 0.15, 0.75, 0.10],
            [0.00, 0.00, 0.30, 0.70],
        ]
    )
    labels = np.array(
        [
            [[0.50, 0.20, 0.30], [0.15, 0.55, 0.30]],
            [[0.85, 0.05, 0.10], [0.05, 0.85, 0.10]],
            [[0.92, 0.03, 0.05], [0.04, 0.90, 0.06]],
            [[0.88, 0.04, 0.08], [0.10, 0.80, 0.10]],
        ]
    )
    return np.asarray(ages[:, None, :, None] * labels[:, :, None, :])


def confusion(faces: int, seed: int = 0) -> Confusion:
    """Measured on so many made-up faces of each true cell."""
    rng = np.random.default_rng(seed)
    rows = true_matrix().reshape(2 * SIZE, -1)
    counts = rng.multinomial(faces, rows).reshape(SIZE, 2, SIZE, 3)
    return Confusion("m@1", "a" * 64, "b" * 64, BANDS, counts, (DataFile("f", "c" * 64, 1),))


def said(shares: np.ndarray, visitors: int, seed: int = 0) -> np.ndarray:
    """Answers to so many visitors with these shares by band and gender."""
    rng = np.random.default_rng([seed, 1])
    rates = shares.ravel() @ true_matrix().reshape(2 * SIZE, -1)
    return rng.multinomial(visitors, rates / rates.sum()).reshape(SIZE, 3)


SHARES = np.array([[0.02, 0.03], [0.04, 0.05], [0.30, 0.16], [0.25, 0.15]])


def test_with_many_faces_and_visitors_the_truth_comes_out_where_the_count_is_off() -> None:
    found = correct_shares(said(SHARES, 200_000), confusion(50_000))

    for share, truth in zip(found.age, SHARES.sum(axis=1), strict=True):
        assert share.corrected.value == pytest.approx(truth, abs=0.01)
        assert share.corrected.low <= truth <= share.corrected.high
    assert [share.raw.value for share in found.age] != pytest.approx(SHARES.sum(axis=1), abs=0.04)
    for share, truth in zip(found.gender, SHARES.sum(axis=0), strict=True):
        assert share.corrected.value == pytest.approx(truth, abs=0.01)
    for share, truth in zip(found.joint, SHARES.ravel(), strict=True):
        assert share.corrected.value == pytest.approx(truth, abs=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say_and_corrected_beats_raw() -> None:
    rng = np.random.default_rng(7)
    held, nearer, draws = [], [], 40
    for number in range(draws):
        bands = rng.dirichlet(np.ones(SIZE))
        women = rng.uniform(0.2, 0.8, SIZE)
        shares = np.stack([bands * (1 - women), bands * women], axis=1)
        found = correct_shares(said(shares, 400, number), confusion(80, number))
        truth = shares.sum(axis=1)
        held += [
            s.corrected.low <= t <= s.corrected.high for s, t in zip(found.age, truth, strict=True)
        ]
        raw = sum(abs(s.raw.value - t) for s, t in zip(found.age, truth, strict=True))
        corrected = sum(abs(s.corrected.value - t) for s, t in zip(found.age, truth, strict=True))
        nearer.append(corrected < raw)

    # 160 intervals in 40 groups: two standard errors about the promised 95 % are over 3 %.
    assert 0.90 <= np.mean(held) <= 0.99
    assert np.mean(nearer) >= 0.75


@given(
    shares=st.lists(st.floats(0.02, 1), min_size=2 * SIZE, max_size=2 * SIZE),
    visitors=st.integers(0, 500),
)
@settings(max_examples=6)
def test_shares_are_shares(shares: list[float], visitors: int) -> None:
    truth = np.array(shares).reshape(SIZE, 2) / sum(shares)

    found = correct_shares(said(truth, visitors), confusion(60))

    for part in (found.age, found.gender, found.joint):
        assert sum(share.corrected.value for share in part) == pytest.approx(1)
        for share in part:
            assert 0 <= share.corrected.low <= share.corrected.value <= share.corrected.high <= 1
        if visitors:
            assert sum(share.raw.value for share in found.age) == pytest.approx(1)


@pytest.mark.parametrize(
    ("faces", "visitors"),
    [((200, 20), (400, 400)), ((200, 200), (4000, 40))],
    ids=["faces", "visits"],
)
def test_fewer_faces_or_visitors_make_wider_intervals(
    faces: tuple[int, int], visitors: tuple[int, int]
) -> None:
    widths = [
        np.mean(
            [
                s.corrected.high - s.corrected.low
                for s in correct_shares(said(SHARES, n), confusion(m)).age
            ]
        )
        for m, n in zip(faces, visitors, strict=True)
    ]

    assert widths[1] > 1.3 * widths[0]


def test_without_visitors_nothing_is_known() -> None:
    found = correct_shares(np.zeros((SIZE, 3), np.int64), confusion(60), unknown=3)

    assert (found.visitors, found.unknown) == (0, 3)
    assert all(np.isnan(share.raw.value) for share in found.age)
    assert all(share.corrected.high - share.corrected.low > 0.5 for share in found.age)
    assert found.to_dict()["age"][0]["raw"]["value"] is None


def test_wider_bands_are_the_sums_of_the_narrow_ones() -> None:
    counts = said(SHARES, 500)

    narrow = correct_shares(counts, confusion(100))
    wide = correct_shares(counts, confusion(100), bands=((0, 24), (25, 100)))

    values = [share.corrected.value for share in narrow.age]
    assert [s.name for s in wide.age] == ["0-24", "25+"]
    assert [s.corrected.value for s in wide.age] == pytest.approx(
        [values[0] + values[1], values[2] + values[3]]
    )
    with pytest.raises(ArgumentError, match="18 years"):
        correct_shares(counts, confusion(100), bands=((0, 17), (18, 100)))


def test_the_order_of_the_genders_does_not_matter() -> None:
    one = confusion(400)
    counts = said(SHARES, 2000)
    swapped = replace(one, counts=one.counts[:, ::-1][..., [1, 0, 2]])

    plain = correct_shares(counts, one)
    other = correct_shares(counts[:, [1, 0, 2]], swapped)

    assert [s.corrected.value for s in plain.gender] == pytest.approx(
        [s.corrected.value for s in other.gender][::-1], abs=0.02
    )


def test_a_cell_that_few_test_faces_stand_for_says_so() -> None:
    counts = confusion(100).counts.copy()
    counts[0, 1] = 0
    counts[0, 1, 0, 1] = 3
    found = correct_shares(said(SHARES, 300), replace(confusion(100), counts=counts))

    assert [share.is_well_measured for share in found.joint] == [True, False, *[True] * 6]
    assert found.joint[1].test_faces == 3


def test_a_band_without_a_test_face_is_refused() -> None:
    counts = confusion(100).counts.copy()
    counts[2] = 0

    with pytest.raises(ArgumentError, match="number 2"):
        correct_shares(said(SHARES, 300), replace(confusion(100), counts=counts))


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (np.zeros((3, 3), np.int64), "shape"),
        (np.full((4, 3), 0.5), "whole numbers"),
        (np.full((4, 3), -1), "negative"),
    ],
)
def test_counts_that_do_not_fit_are_refused(counts: np.ndarray, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        correct_shares(counts, confusion(60))


def test_all_methods_agree_where_nothing_is_uncertain() -> None:
    matrix = true_matrix().reshape(2 * SIZE, -1)
    visitors = 10_000_000
    expected = np.rint(visitors * SHARES.ravel() @ matrix).astype(np.int64)
    many = np.rint(10_000_000 * true_matrix()).astype(np.int64)

    draws = sample_shares(many, expected.reshape(SIZE, 3))

    truth = SHARES.ravel()
    assert adjusted_count(matrix, expected) == pytest.approx(truth, abs=1e-3)
    assert expected_shares(matrix, expected, rounds=50_000) == pytest.approx(truth, abs=5e-3)
    assert draws.mean(axis=0).ravel() == pytest.approx(truth, abs=5e-3)


def test_em_on_soft_answers_finds_shares_from_calibrated_answers() -> None:
    rng = np.random.default_rng(5)
    prior = np.array([0.5, 0.5])
    truth = rng.random(20_000) < 0.15
    value = rng.normal(np.where(truth, 1.0, -1.0), 1.2)
    positive = 1 / (1 + np.exp(-2 * value / 1.2**2))  # exact under the prior

    found = soft_expected_shares(np.stack([1 - positive, positive], axis=1), prior)

    assert found[1] == pytest.approx(truth.mean(), abs=0.01)
    assert positive.mean() > truth.mean() + 0.05


def test_no_answer_is_impossible_after_smoothing() -> None:
    weights = smoothed_confusion(confusion(30).counts)

    assert (weights > 0).all()
    assert weights.sum(axis=1) == pytest.approx(45.0)


# --- measuring ------------------------------------------------------------------------------------


def test_measured_counts_are_those_of_the_labels_and_answers() -> None:
    faces = simulated(400)
    wide = ((0, 17), (18, 39), (40, 100))

    found = measure_confusion(faces, wide)

    expected = np.zeros((3, 2, 3, 3), int)
    for row in range(len(faces)):
        if not faces.answered[row] or faces.age_min[row] < 0 or faces.female_label[row] < 0:
            continue
        true = [
            i
            for i, (a, b) in enumerate(wide)
            if a <= faces.age_min[row] and faces.age_max[row] <= b
        ]
        if not true:
            continue
        mass = [faces.age[row, a : b + 1].sum() for a, b in wide]
        female = faces.female[row]
        threshold = faces.gender_threshold
        label = 1 if female >= threshold else 0 if 1 - female >= threshold else 2
        expected[true[0], faces.female_label[row], int(np.argmax(mass)), label] += 1
    assert found.counts.tolist() == expected.tolist()


def test_bands_without_a_face_and_bands_with_gaps_are_refused() -> None:
    faces = simulated(50)
    few = faces.take(faces.age_min >= 18)

    with pytest.raises(DataError, match="0 to 17 years"):
        measure_confusion(few, ((0, 17), (18, 100)))
    with pytest.raises(ArgumentError, match="gap"):
        measure_confusion(faces, ((0, 17), (19, 100)))


def test_the_file_is_read_back_and_holds_for_its_model_alone(tmp_path: Path) -> None:
    bundle = find_model("default")
    own = replace(
        confusion(40),
        model=bundle.card.identifier,
        model_sha256=model_sha256(bundle),
        card_sha256=card_sha256(bundle.card),
    )
    path = tmp_path / "m.confusion.json"
    write_confusion(own, path)

    found = read_confusion(path, bundle=bundle)

    assert found.counts.tolist() == own.counts.tolist()
    assert (found.bands, found.data, found.model) == (own.bands, own.data, own.model)
    for change, words in (
        ({"model_sha256": "0" * 64}, "weights"),
        ({"card_sha256": "0" * 64}, "card"),
    ):
        write_confusion(replace(own, **change), path)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match=words):
            read_confusion(path, bundle=bundle)
    assert confusion_path(bundle).name == f"{bundle.card.name}.confusion.json"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"agelens.confusion/1"', '"agelens.other/1"'),
        ('"uncertain"', '"unsure"'),
        ("[0, 12]", "[0, 11]"),
        ('"counts": [', '"counts": [[], '),
    ],
)
def test_a_file_that_was_changed_into_nonsense_is_refused(
    tmp_path: Path, old: str, new: str
) -> None:
    path = tmp_path / "m.confusion.json"
    write_confusion(confusion(40), path)
    text = path.read_text()
    compact = text.replace("[\n   0,\n   12\n  ]", "[0, 12]")
    assert old in compact
    path.write_text(compact.replace(old, new))

    with pytest.raises(DataError, match=r"m\.confusion\.json"):
        read_confusion(path)


def test_a_missing_file_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_confusion(tmp_path / "none.json")


def test_answers_are_counted_with_uncertain_labels_apart() -> None:
    ages = np.array([[0.6, 0.4], [0.5, 0.5], [0.1, 0.9]])

    counts = count_answers(ages, np.array([0.9, 0.5, 0.3]), 0.75)

    assert LABELS == ("male", "female", "uncertain")
    assert counts.tolist() == [[0, 1, 1], [0, 0, 1]]
