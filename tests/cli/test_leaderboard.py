"""``agelens leaderboard``: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the 'eval' extra")
pytest.importorskip("matplotlib", reason="needs the 'eval' extra")
pytest.importorskip("onnx", reason="needs the 'train' extra")

import onnx_models
from agelens.data.schema import FaceRecord, FaceWriter
from command_line import Outcome, agelens
from data.pictures import blob, encoded

QUICK = ("--detector", "none", "--samples", "50", "--no-peers")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "faces.parquet"
    rng = np.random.default_rng(0)
    with FaceWriter(path, ["race"]) as writer:
        for row in range(70):
            age = int(rng.integers(0, 90))
            writer.write(
                FaceRecord(
                    "ours",
                    f"{row}.jpg",
                    image=encoded(blob(row, 64)),
                    age_min=age,
                    age_max=age,
                    gender="female" if row % 2 else "male",
                    audit={"race": "one" if row % 4 < 2 else "two"},
                )
            )
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two models, as --models takes them."""
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for seed, name in ((1, "small"), (2, "other")):
        network = onnx_models.distribution_network(seed=seed)
        card = onnx_models.distribution_card(network.graph, path=f"{name}.onnx")
        card = {**card, "name": name}
        paths.append(onnx_models.write_model(folder, network.graph, card, stem=name))
    return ",".join(map(str, paths))


@pytest.fixture(scope="module")
def done(data: Path, models: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("out")
    outcome = agelens("leaderboard", data, "--models", models, "--out", out, *QUICK, columns=120)
    assert outcome.status == 0, outcome.err
    return out, outcome


def test_it_prints_the_figures_that_it_stores(done: tuple[Path, Outcome]) -> None:
    out, outcome = done
    wire = json.loads((out / "leaderboard.json").read_text("utf-8"))

    assert {entry["name"].split("@")[0] for entry in wire["entries"]} == {"small", "other"}
    for entry in wire["entries"]:
        found = entry["figures"]["age_mae"]
        text = f"{found['value']:.2f} ({found['low']:.2f}–{found['high']:.2f})"
        assert entry["name"] in outcome.out
        assert text in outcome.out
    for suffix in ("json", "md", "csv", "svg", "png"):
        assert (out / f"leaderboard.{suffix}").is_file()
        assert f"leaderboard.{suffix}" in outcome.err


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_no_figure_is_cut_whatever_the_width(
    columns: int, data: Path, models: str, done: tuple[Path, Outcome]
) -> None:
    out, _ = done
    wire = json.loads((out / "leaderboard.json").read_text("utf-8"))

    printed = agelens(
        "leaderboard", data, "--models", models, "--out", out, *QUICK, columns=columns
    ).out

    assert "…" not in printed
    for entry in wire["entries"]:
        assert f"{entry['figures']['age_mae']['value']:.2f}" in printed
        assert f"{100 * entry['figures']['gender']['value']:.1f}" in printed


def test_answers_are_kept_beside_the_table(done: tuple[Path, Outcome]) -> None:
    out, _ = done

    assert len(list((out / "answers").glob("*.npz"))) == 2


def test_peers_that_are_missing_are_told_and_are_no_error(data: Path, models: str) -> None:
    outcome = agelens(
        *("leaderboard", data, "--models", models, "--detector", "none", "--samples", "20"),
        *("--max-faces", "12"),
    )

    assert outcome.status == 0, outcome.err
    text = " ".join(outcome.out.split())
    assert "deepface: " in text
    assert "12 of 12 faces" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.parquet",), "nowhere.parquet"),
        (("{data}", "--models", "nowhere"), "no model named 'nowhere'"),
        (("{data}", "--audit", "tribe"), "the data has no audit column 'tribe'"),
    ],
)
def test_wrong_input_is_named(arguments: tuple[str, ...], message: str, data: Path) -> None:
    outcome = agelens("leaderboard", *(a.format(data=data) for a in arguments), *QUICK)

    assert outcome.status == 2
    assert message in " ".join(outcome.err.split())


def test_data_without_labels_is_refused(models: str, tmp_path: Path) -> None:
    path = tmp_path / "faces.parquet"
    with FaceWriter(path) as writer:
        for row in range(3):
            writer.write(FaceRecord("ours", f"{row}.jpg", image=encoded(blob(row, 64))))

    outcome = agelens("leaderboard", path, "--models", models, *QUICK)

    assert outcome.status == 2
    assert "'age_min', 'age_max' and 'gender'" in " ".join(outcome.err.split())


def test_an_empty_table_is_refused(models: str, tmp_path: Path) -> None:
    path = tmp_path / "faces.parquet"
    with FaceWriter(path):
        pass

    outcome = agelens("leaderboard", path, "--models", models, *QUICK)

    assert outcome.status == 2
    assert "holds no rows" in " ".join(outcome.err.split())
