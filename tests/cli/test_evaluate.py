"""``agelens evaluate``: what it measures, prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the 'eval' extra")
pytest.importorskip("matplotlib", reason="needs the 'eval' extra")
pytest.importorskip("jinja2", reason="needs the 'eval' extra")
pytest.importorskip("onnx", reason="needs the 'train' extra")

import onnx_models
from agelens.data.schema import FaceRecord, FaceWriter
from agelens.evaluation.evaluating import EvaluationResult, evaluate, read_comparison
from agelens.evaluation.metrics import METRICS
from agelens.evaluation.scoring import ScoringOptions, score
from command_line import Outcome, agelens
from data.pictures import blob, encoded

COUNT = 60
QUICK = ("--detector", "none", "--samples", "100")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty labelled pictures, one of them unreadable."""
    path = tmp_path_factory.mktemp("data") / "faces.parquet"
    rng = np.random.default_rng(0)
    with FaceWriter(path, ["race", "note"]) as writer:
        for row in range(COUNT):
            age = int(rng.integers(0, 90))
            writer.write(
                FaceRecord(
                    "ours",
                    f"{row}.jpg",
                    image=encoded(blob(row, 64)) if row != 5 else b"no picture",
                    age_min=age,
                    age_max=age,
                    gender="female" if row % 2 else "male",
                    audit={"race": "one" if row % 3 else "other", "note": f"n{row}"},
                )
            )
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = onnx_models.distribution_network()
    return onnx_models.write_model(tmp_path_factory.mktemp("model"), network.graph)


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, table: Path, model: Path
) -> tuple[Path, Outcome]:
    """The folder and the output of one evaluation with a comparison."""
    out = tmp_path_factory.mktemp("out") / "results"
    other = onnx_models.distribution_network(seed=2)
    card = {**onnx_models.distribution_card(other.graph, path="other.onnx"), "name": "other"}
    against = onnx_models.write_model(out.parent / "other", other.graph, card, stem="other")
    done = agelens(
        *("evaluate", model, table, "--out", out, "--compare", against, *QUICK), columns=140
    )
    assert done.status == 0, done.err
    return out, done


def figures(folder: Path) -> dict[str, Any]:
    wire: dict[str, Any] = json.loads((folder / "evaluation.json").read_text("utf-8"))
    return wire


def test_the_file_holds_what_the_library_measures(
    written: tuple[Path, Outcome], table: Path, model: Path
) -> None:
    faces = score(str(model), table, ScoringOptions(detector="none"))
    expected = evaluate(faces, samples=100)

    found = EvaluationResult.load(written[0] / "evaluation.json")

    for part in ("metrics", "answered", "groups", "risk_coverage", "reliability", "worst"):
        assert found.to_dict()[part] == expected.to_dict()[part], part
    assert found.provenance["card_sha256"] == faces.provenance.card_sha256


def test_the_file_says_what_it_is_and_of_what(written: tuple[Path, Outcome]) -> None:
    wire = figures(written[0])

    assert wire["schema"] == "agelens.evaluation/1"
    assert wire["provenance"]["model"] == "small@2.1"
    assert wire["provenance"]["data"][0]["name"] == "faces.parquet"
    assert wire["provenance"]["options"]["detector"] == "none"
    assert wire["settings"] == {"samples": 100, "seed": 0, "level": 0.95}
    assert wire["faces"]["rows"] == COUNT
    assert wire["faces"]["estimated"] == COUNT - 1
    assert list(wire["unreadable"]) == ["faces.parquet#5"]
    assert wire["provenance"]["milliseconds"]["network"] > 0


def test_groups_and_tables_add_up(written: tuple[Path, Outcome]) -> None:
    wire = figures(written[0])

    assert sum(group["count"] for group in wire["groups"]["race"]) == COUNT
    assert {group["value"] for group in wire["groups"]["gender"]} == {"female", "male"}
    assert np.sum(wire["scatter"]["counts"]) == COUNT - 1
    assert np.sum(wire["confusion"]["gender"]["counts"]) == COUNT - 1
    assert np.sum(wire["confusion"]["nine_ranges"]["counts"]) == COUNT - 1
    assert "note" not in wire["groups"]
    assert any("'note' has 60 values" in note for note in wire["notes"])


def test_worst_cases_are_the_largest_errors_by_name(written: tuple[Path, Outcome]) -> None:
    wire = figures(written[0])
    errors = [case["error"] for case in wire["worst"]["age"]]

    assert errors == sorted(errors, reverse=True)
    assert errors[0] > wire["metrics"]["age_mae"]["value"]
    assert all(case["name"].startswith("faces.parquet#") for case in wire["worst"]["age"])


def test_no_face_is_in_the_file_but_the_worst(written: tuple[Path, Outcome]) -> None:
    wire = figures(written[0])
    named = {case["name"] for cases in wire["worst"].values() for case in cases}
    text = json.dumps({**wire, "worst": {}, "unreadable": {}})

    assert len(named) < COUNT
    assert "faces.parquet#" not in text


def test_the_printed_table_is_that_of_the_file(written: tuple[Path, Outcome]) -> None:
    wire, printed = figures(written[0]), written[1].out

    for name, estimate in wire["metrics"].items():
        metric = METRICS[name]
        line = next(line for line in printed.splitlines() if line.startswith(f"{metric.title} "))
        words = line.removeprefix(metric.title).split()
        assert words[0] == metric.text(estimate["value"]), line
        assert f"{metric.text(estimate['low'])} to {metric.text(estimate['high'])}" in line


def test_the_comparison_is_printed_with_its_verdict(written: tuple[Path, Outcome]) -> None:
    result = EvaluationResult.load(written[0] / "evaluation.json")
    comparison = read_comparison(result)
    said = {"better": "small@2.1 is better", "worse": "other@2.1 is better"}

    assert result.comparison is not None
    assert result.comparison["other"]["model"] == "other@2.1"
    mae = result.metrics["age_mae"].value
    assert comparison["age_mae"].one.value == pytest.approx(mae)
    for name, found in comparison.items():
        title = METRICS[name].title
        lines = [line for line in written[1].out.splitlines() if line.startswith(f"{title} ")]
        assert any(said.get(found.verdict, found.verdict) in line for line in lines), name


def test_the_page_holds_the_figures_and_no_picture(written: tuple[Path, Outcome]) -> None:
    page = (written[0] / "evaluation.html").read_text("utf-8")
    mae = figures(written[0])["metrics"]["age_mae"]["value"]

    assert METRICS["age_mae"].text(mae) in page
    assert "data:image/jpeg" not in page


def test_pictures_of_the_worst_cases_are_shown_when_asked_for(
    tmp_path: Path, table: Path, model: Path
) -> None:
    done = agelens("evaluate", model, table, "--out", tmp_path, "--pictures", *QUICK)

    assert done.status == 0, done.err
    assert "data:image/jpeg" in (tmp_path / "evaluation.html").read_text("utf-8")


def test_kept_answers_give_the_same_figures(tmp_path: Path, table: Path, model: Path) -> None:
    keep = tmp_path / "answers.npz"
    arguments = ("evaluate", model, table, "--keep", keep, *QUICK)

    first = agelens(*arguments, "--out", tmp_path / "a")
    again = agelens(*arguments, "--out", tmp_path / "b")

    assert (first.status, again.status) == (0, 0)
    assert keep.is_file()
    assert figures(tmp_path / "a")["metrics"] == figures(tmp_path / "b")["metrics"]


def test_figures_are_the_same_again_and_the_seed_moves_the_intervals(
    tmp_path: Path, table: Path, model: Path, written: tuple[Path, Outcome]
) -> None:
    done = agelens("evaluate", model, table, "--out", tmp_path, *QUICK, "--seed", "1")

    first, second = figures(written[0])["metrics"], figures(tmp_path)["metrics"]
    assert done.status == 0
    assert second["age_mae"]["value"] == first["age_mae"]["value"]
    assert second["age_mae"]["low"] != first["age_mae"]["low"]


# --- what is refused ------------------------------------------------------------------------------


def refused(*arguments: Any) -> str:
    done = agelens("evaluate", *arguments, columns=200)
    assert done.status == 2, done.out
    assert "Traceback" not in done.err
    return done.err


def test_missing_columns_are_named(tmp_path: Path, model: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [b""], "years": [3]}), tmp_path / "odd.parquet")

    said = refused(model, tmp_path / "odd.parquet", "--out", tmp_path / "out")

    assert "odd.parquet" in said
    assert "'age_min'" in said
    assert "years" in said
    assert not (tmp_path / "out").exists()


def test_a_research_licence_is_asked_for(tmp_path: Path, table: Path) -> None:
    network = onnx_models.distribution_network()
    card = {**onnx_models.distribution_card(network.graph), "licence_class": "research"}
    path = onnx_models.write_model(tmp_path / "model", network.graph, card)

    said = refused(path, table, "--out", tmp_path / "out", *QUICK)

    assert "--accept-licence" in said
    done = agelens("evaluate", path, table, "--out", tmp_path, "--accept-licence", *QUICK)
    assert done.status == 0, done.err


@pytest.mark.parametrize(
    ("model_name", "file", "words"),
    [
        pytest.param("nobody", None, "nobody", id="model"),
        pytest.param(None, "gone.parquet", "gone.parquet", id="data"),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, table: Path, model: Path, model_name: str | None, file: str | None, words: str
) -> None:
    data = table if file is None else tmp_path / file

    assert words in refused(model_name or model, data, "--out", tmp_path / "out", *QUICK)


def test_a_file_for_the_folder_is_refused_before_the_work(
    tmp_path: Path, table: Path, model: Path
) -> None:
    (tmp_path / "out").write_text("here already")

    assert "is a file" in refused(model, table, "--out", tmp_path / "out", *QUICK)


def test_faces_that_no_detector_finds_are_an_error_without_crops(
    tmp_path: Path, table: Path, model: Path
) -> None:
    said = refused(model, table, "--out", tmp_path / "out", "--no-crops")

    assert "no estimate for any of the 60" in said


def test_a_model_without_a_gender_is_measured_on_ages(tmp_path: Path, table: Path) -> None:
    network = onnx_models.distribution_network()
    card = onnx_models.distribution_card(network.graph)
    del card["gender"]
    path = onnx_models.write_model(tmp_path / "model", network.graph, card)

    done = agelens("evaluate", path, table, "--out", tmp_path / "out", *QUICK, columns=200)

    assert done.status == 0, done.err
    assert "the model small@2.1 gives no gender" in done.out
    assert "gender_auc" not in figures(tmp_path / "out")["metrics"]
