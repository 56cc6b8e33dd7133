"""
What another network says of faces: kept beside the run, reduced, and learned from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from numpy.typing import NDArray

from agelens.alignment import CropSpec
from agelens.data.loading import Labels, PreparedFaces, ShardFolder
from agelens.errors import DataError
from agelens.training import losses
from agelens.training.describing import describe_faces, hints, judge
from agelens.training.distillation import within_labels

Tiny = Callable[..., dict[str, Any]]


class Colours:
    """Describes a face by the mean colours of its quarters: little, but a description."""

    licence = "CC0-1.0"
    licence_class = "commercial"
    crop = CropSpec(16, 0.2)

    def __init__(self, identity: str = "colours") -> None:
        self.identity = identity
        self.asked = 0

    def describe(self, chips: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert chips.shape[1:] == (16, 16, 3)
        self.asked += len(chips)
        quarters = chips.reshape(len(chips), 2, 8, 2, 8, 3).mean(axis=(2, 4))
        described: NDArray[np.float32] = (quarters.reshape(len(chips), -1) / 255).astype(np.float32)
        return described


def faces_of(prepared: Path) -> PreparedFaces:
    return PreparedFaces([ShardFolder(prepared)], split="train", size=32, margin=0.4)


def labels_of(*ranges: tuple[int, int], female: Any = -1) -> Labels:
    low, high = (np.array(ends, np.int16) for ends in zip(*ranges, strict=True))
    count = len(ranges)
    text = np.array([""] * count)
    return Labels(
        low=low,
        high=high,
        std=np.full(count, np.nan, np.float32),
        female=np.broadcast_to(np.asarray(female, np.int8), count),
        dataset=text,
        split=text,
        source_file=text,
        group=text,
    )


def test_every_face_is_described_once_and_in_order(prepared: Path, tmp_path: Path) -> None:
    faces, describer, kept = faces_of(prepared), Colours(), tmp_path / "kept.npz"

    first = describe_faces(describer, faces, kept, batch_size=7)
    again = describe_faces(describer, faces, kept)
    one = describe_faces(describer, faces, tmp_path / "other.npz", batch_size=1)

    assert describer.asked == 2 * len(faces)
    assert first.shape == (len(faces), 12)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, one)


def test_mirrored_descriptions_are_the_mean_over_a_face_and_its_mirror_image(
    prepared: Path, tmp_path: Path
) -> None:
    faces = faces_of(prepared)
    plain = describe_faces(Colours(), faces, tmp_path / "plain.npz")

    found = describe_faces(Colours(), faces, tmp_path / "mirrored.npz", mirrored=True)

    # In a mirror the left quarters' colours are the right ones'.
    quarters = plain.reshape(-1, 2, 2, 3)
    wanted = (quarters + quarters[:, :, ::-1]) / 2
    np.testing.assert_allclose(found, wanted.reshape(found.shape), atol=2e-3)


def test_descriptions_without_mirror_images_are_not_taken_for_those_with(
    prepared: Path, tmp_path: Path
) -> None:
    faces, again, kept = faces_of(prepared), Colours(), tmp_path / "kept.npz"
    describe_faces(Colours(), faces, kept)

    describe_faces(again, faces, kept, mirrored=True)

    assert again.asked == 2 * len(faces)


def test_descriptions_of_another_describer_are_not_taken_up(prepared: Path, tmp_path: Path) -> None:
    faces, other, kept = faces_of(prepared), Colours("other colours"), tmp_path / "kept.npz"
    describe_faces(Colours(), faces, kept)

    describe_faces(other, faces, kept)

    assert other.asked == len(faces)


def test_damaged_descriptions_are_named(prepared: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.npz"
    kept.write_bytes(b"no array")

    with pytest.raises(DataError, match=r"kept\.npz: cannot be read .*delete it"):
        describe_faces(Colours(), faces_of(prepared), kept)


def test_hints_are_principal_components_of_standardised_descriptions() -> None:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 20)) + rng.normal(size=(300, 20)) / 9
    wanted = PCA(4).fit_transform(StandardScaler().fit_transform(values))

    found = hints(values.astype(np.float32), 4)

    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-3)


def test_a_description_without_variance_does_no_harm() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    values[:, 1] = 4

    assert np.isfinite(hints(values)).all()
    assert hints(values).shape == (50, 3)


def test_feature_distance_is_one_minus_the_cosine() -> None:
    import torch

    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 6, 9))
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)

    found = losses.feature_distance(torch.from_numpy(one), torch.from_numpy(other))

    np.testing.assert_allclose(found.numpy(), 1 - cosine)


def test_teachers_are_heard_within_the_label_only() -> None:
    age = np.random.default_rng(0).dirichlet(np.ones(101), 3).astype(np.float32)

    found = within_labels(age, labels_of((20, 29), (35, 35), (-1, -1)))

    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert found[0, :20].sum() == found[0, 30:].sum() == 0
    share = (age[0, 20:30] + 1e-4) / (age[0, 20:30] + 1e-4).sum()
    np.testing.assert_allclose(found[0, 20:30], share, rtol=1e-4)
    assert found[1, 35] == 1
    np.testing.assert_allclose(found[2], age[2], atol=1e-3)


def test_a_label_the_teachers_rule_out_is_weighed_evenly() -> None:
    age = np.zeros((1, 101), np.float32)
    age[0, 70] = 1

    found = within_labels(age, labels_of((3, 9)))

    np.testing.assert_allclose(found[0, 3:10], 1 / 7, rtol=1e-5)


def faces_with_answers(
    count: int, seed: int
) -> tuple[NDArray[np.float32], Labels, NDArray[np.float32]]:
    """Descriptions that hold gender and one of three ranges, among noise; labels; what they say."""
    rng = np.random.default_rng(seed)
    female, group = rng.integers(0, 2, count), rng.integers(0, 3, count)
    told = np.column_stack([female, *(group == one for one in range(3))]).astype(float)
    descriptions = np.concatenate([2 * told, rng.normal(size=(count, 12))], axis=1)
    ranges = [((0, 9), (30, 39), (60, 69))[one] for one in group]
    labels = labels_of(*ranges, female=female)
    even = np.full((count, 101), 1 / 101, np.float32)
    return descriptions.astype(np.float32), labels, within_labels(even, labels)


def test_judge_finds_what_the_descriptions_hold() -> None:
    descriptions, labels, ages = faces_with_answers(4000, seed=0)

    said = judge(descriptions, labels, ages)

    inside = [
        row[low : high + 1].sum()
        for row, low, high in zip(said.age, labels.low, labels.high, strict=True)
    ]
    assert np.mean(inside) > 0.8
    assert ((said.female > 0.5) == (labels.female == 1)).mean() > 0.95
    np.testing.assert_allclose(said.age.sum(axis=1), 1, atol=1e-5)


def test_judge_never_repeats_the_label_it_was_given() -> None:
    """Labels that the descriptions do not hold cannot be right more often than a coin."""
    rng = np.random.default_rng(1)
    descriptions, labels, ages = faces_with_answers(3000, seed=1)
    order = rng.permutation(len(labels))

    said = judge(descriptions, labels.take(order), ages[order])

    right = (said.female > 0.5) == (labels.take(order).female == 1)
    # Four standard errors of 3,000 tosses.
    assert abs(right.mean() - 0.5) < 4 * 0.5 / np.sqrt(3000)


def test_judge_answers_for_faces_without_labels() -> None:
    descriptions, labels, ages = faces_with_answers(4000, seed=2)
    hidden = labels.without_answers()
    half = np.arange(4000) < 2000
    mixed = Labels(
        **{
            name: np.where(half, getattr(labels, name), getattr(hidden, name))
            for name in Labels.__dataclass_fields__
        }
    )

    said = judge(descriptions, mixed, ages)

    right = (said.female > 0.5) == (labels.female == 1)
    assert right[~half].mean() > 0.95


def test_several_judges_are_less_surprised_by_the_truth_than_one_of_them_is() -> None:
    descriptions, labels, ages = faces_with_answers(1500, seed=4)

    several = judge(descriptions, labels, ages, judges=3)
    each = [judge(descriptions, labels, ages, seed=seed) for seed in range(3)]

    def surprise(female: NDArray[np.float32]) -> float:
        right = np.where(labels.female == 1, female, 1 - female)
        return float(-np.log(right).mean())

    assert surprise(several.female) < np.mean([surprise(one.female) for one in each])
    np.testing.assert_allclose(several.age.sum(axis=1), 1, atol=1e-5)


def test_judge_says_the_same_again() -> None:
    descriptions, labels, ages = faces_with_answers(300, seed=3)

    one, other = judge(descriptions, labels, ages), judge(descriptions, labels, ages)

    np.testing.assert_array_equal(one.age, other.age)
    np.testing.assert_array_equal(one.female, other.female)
