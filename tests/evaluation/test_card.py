"""The model card: stored results and nothing else, of this model and no other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the 'eval' extra")
pytest.importorskip("scipy", reason="needs the 'eval' extra")
pytest.importorskip("onnx", reason="needs the 'train' extra")

import onnx_models
from agelens.bundle import find_model, read_card
from agelens.errors import ArgumentError, AuditError, DataError, ModelNotFound
from agelens.evaluation.audit import audit
from agelens.evaluation.card import card_figures, write_card, write_figures
from agelens.evaluation.evaluating import evaluate
from agelens.evaluation.policy import AuditPolicy
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.scoring import card_sha256, model_sha256
from command_line import agelens
from evaluation.simulation import in_ranges, simulated

HEADINGS = (  # of Mitchell et al. 2019, then what they leave to the reader
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Calibration",
    "Audit",
    "Ethical considerations",
    "Caveats and recommendations",
    "Energy and cost",
    "How to cite",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = onnx_models.distribution_network()
    return onnx_models.write_model(tmp_path_factory.mktemp("model"), network.graph)


def of_model(faces: ScoredFaces, model: Path, file: str = "faces.parquet") -> ScoredFaces:
    """Simulated answers as those of this model."""
    bundle = find_model(str(model))
    data = replace(faces.provenance.data[0], name=file)
    return replace(
        faces,
        provenance=replace(
            faces.provenance,
            model=bundle.card.identifier,
            model_sha256=model_sha256(bundle),
            card_sha256=card_sha256(bundle.card),
            data=(data,),
            milliseconds={"network": 1.25, "total": 4.5},
        ),
    )


def stored(faces: ScoredFaces, folder: Path, name: str = "evaluation.json") -> Path:
    groups = np.array(["one" if row % 3 else "two" for row in range(len(faces))], object)
    path = folder / name
    evaluate(replace(faces, audit={"race": groups}), samples=50).save(path)
    return path


@pytest.fixture(scope="module")
def evaluation(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(of_model(simulated(600, seed=1), model), tmp_path_factory.mktemp("results"))


def figures(path: Path) -> dict[str, Any]:
    wire: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return wire


def written(model: Path, out: Path, *evaluations: Path, **options: Any) -> str:
    write_card(str(model), out, evaluations=evaluations, **options)
    return out.read_text("utf-8")


def test_it_has_the_headings_of_a_model_card_in_their_order(
    model: Path, evaluation: Path, tmp_path: Path
) -> None:
    page = written(model, tmp_path / "CARD.md", evaluation)

    titles = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert titles == list(HEADINGS)


def test_its_figures_are_those_of_the_evaluation(
    model: Path, evaluation: Path, tmp_path: Path
) -> None:
    page, wire = written(model, tmp_path / "CARD.md", evaluation), figures(evaluation)

    mae = wire["metrics"]["age_mae"]
    assert f"| MAE, years | {mae['value']:.2f} ({mae['low']:.2f}–{mae['high']:.2f}) |" in page
    right = wire["metrics"]["gender_accuracy"]
    assert f"| Gender right, % | {100 * right['value']:.1f} (" in page
    for group in (*wire["groups"]["age"], *wire["groups"]["race"]):
        name = group["value"].replace("-", "–")
        assert f"| {name} | {group['count']:,} | {group['metrics']['age_mae']['value']:.2f}" in page
    for held in wire["reliability"]["intervals"]:
        assert f"| {100 * held['level']:g} | {100 * held['share']:.1f} (" in page
    assert "1.2 ms of CPU for the network, 4.5 ms for the whole chain" in page
    assert wire["provenance"]["data"][0]["sha256"][:16] in page
    assert f"agelens evaluate {wire['provenance']['model']} faces.parquet --samples 50" in page


def test_several_evaluations_stand_side_by_side(
    model: Path, evaluation: Path, tmp_path: Path
) -> None:
    ranges = in_ranges(simulated(300, seed=2))
    other = stored(of_model(ranges, model, "ranges.parquet"), tmp_path, "other.json")

    page = written(model, tmp_path / "CARD.md", evaluation, other)

    assert "|  | faces (600) | ranges (300) |" in page
    row = next(line for line in page.splitlines() if line.startswith("| MAE, years"))
    assert row.endswith("| – |")
    row = next(line for line in page.splitlines() if line.startswith("| In the labelled range"))
    assert row.split(" | ")[1] == "–"


def test_licences_and_limits_are_those_of_the_toml_card(evaluation: Path, tmp_path: Path) -> None:
    network = onnx_models.distribution_network(seed=5)
    card = {
        **onnx_models.distribution_card(network.graph, path="ours.onnx"),
        "name": "ours",
        "licence_class": "research",
        "limits": ["Faces under 24 px were never seen."],
        "training_data": [
            {"name": "Set | One", "licence": "CC BY 4.0", "licence_class": "research", "rows": 1234}
        ],
    }
    ours = onnx_models.write_model(tmp_path, network.graph, card, stem="ours")
    results = stored(of_model(simulated(200, seed=3), ours), tmp_path)

    page = written(ours, tmp_path / "CARD.md", results)

    assert "| Set \\| One | CC BY 4.0 | research | 1,234 |" in page
    assert "- Faces under 24 px were never seen." in page
    assert "commercial use, which the licence does not allow" in page


def test_an_unaudited_model_is_said_to_be_one(
    model: Path, evaluation: Path, tmp_path: Path
) -> None:
    page = written(model, tmp_path / "CARD.md", evaluation)

    assert "Not audited here" in page


# --- audit ----------------------------------------------------------------------------------------

POLICY = """
schema = "agelens.audit-policy/1"
name = "of the test"
validity_days = 90

[[require]]
metric = "age_mae"
max = 0.1
why = "Nobody is ever wrong."
"""


def sealed(model: Path, folder: Path, *, days_ago: int = 1) -> Path:
    """A signed audit of this model that fails."""
    pytest.importorskip("fairlearn", reason="needs the 'eval' extra")
    pytest.importorskip("cryptography", reason="needs the 'eval' extra")
    faces = of_model(simulated(300, seed=4), model)
    groups = np.array(["one" if row % 3 else "two" for row in range(300)], object)
    made = datetime.now(UTC) - timedelta(days=days_ago)
    result = audit(
        replace(faces, audit={"race": groups}), AuditPolicy.parse(POLICY), samples=50, now=made
    )
    result.save(folder / "audit.json")
    return folder / "audit.json"


def test_a_failed_audit_stands_in_the_card(model: Path, evaluation: Path, tmp_path: Path) -> None:
    seal = sealed(model, tmp_path)

    page = written(model, tmp_path / "CARD.md", evaluation, audit=seal)

    wire = json.loads(seal.read_text("utf-8"))
    assert "the model **failed**" in page
    assert "**It failed the audit by the policy “of the test”**" in page
    assert f"- {wire['sentences'][0]}" in page
    assert "Gaps between groups by race" in page
    assert "Not audited here" not in page


def test_an_audit_that_was_changed_is_refused(
    model: Path, evaluation: Path, tmp_path: Path
) -> None:
    seal = sealed(model, tmp_path)
    seal.write_text(seal.read_text("utf-8").replace('"failed"', '"passed"'))

    with pytest.raises(AuditError, match="signature"):
        write_card(str(model), tmp_path / "CARD.md", evaluations=[evaluation], audit=seal)


def test_an_expired_audit_is_refused(model: Path, evaluation: Path, tmp_path: Path) -> None:
    seal = sealed(model, tmp_path, days_ago=100)

    with pytest.raises(AuditError, match="expired"):
        write_card(str(model), tmp_path / "CARD.md", evaluations=[evaluation], audit=seal)


def test_an_audit_of_another_model_is_refused(
    model: Path, evaluation: Path, tmp_path: Path
) -> None:
    network = onnx_models.distribution_network(seed=9)
    other = onnx_models.write_model(tmp_path / "other", network.graph)

    with pytest.raises(AuditError, match="another model, or a changed one"):
        write_card(
            str(model), tmp_path / "C.md", evaluations=[evaluation], audit=sealed(other, tmp_path)
        )


# --- refusals -------------------------------------------------------------------------------------


def test_an_evaluation_of_other_weights_is_refused(evaluation: Path, tmp_path: Path) -> None:
    network = onnx_models.distribution_network(seed=9)
    other = onnx_models.write_model(tmp_path, network.graph)

    with pytest.raises(DataError, match=r"evaluation\.json: it evaluates .*evaluate this model"):
        write_card(str(other), tmp_path / "CARD.md", evaluations=[evaluation])

    assert not (tmp_path / "CARD.md").exists()


def test_an_evaluation_before_the_calibration_changed_is_refused(
    model: Path, evaluation: Path, tmp_path: Path
) -> None:
    shutil.copytree(model.parent, tmp_path / "model")
    changed = tmp_path / "model" / model.name
    card = changed.with_suffix(".toml")
    card.write_text(card.read_text() + "\n[calibration]\nage_temperature = 1.5\n")

    with pytest.raises(DataError, match=r"the card of .* has changed since .*evaluate the model"):
        write_card(str(changed), tmp_path / "CARD.md", evaluations=[evaluation])


def test_without_an_evaluation_there_is_no_card(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="--evaluation"):
        write_card(str(model), tmp_path / "CARD.md", evaluations=[])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; `agelens evaluate` makes one"),
        ("", "is empty"),
        ('{"schema": "agelens.leaderboard/1"}', "expected 'agelens.evaluation/1'"),
    ],
)
def test_what_is_no_evaluation_is_named(
    content: str | None, message: str, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(DataError) as raised:
        write_card(str(model), tmp_path / "CARD.md", evaluations=[path])

    assert message in str(raised.value)


def test_a_model_that_is_not_there_is_named(evaluation: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        write_card("nowhere", tmp_path / "CARD.md", evaluations=[evaluation])


# --- training -------------------------------------------------------------------------------------


def test_time_and_device_of_the_training_run_are_told(
    model: Path, evaluation: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    environment = {"processor": "a processor", "cores": 2, "run": {"device": "cpu"}}
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "timings.csv").write_text("epoch,seconds\n1,1800\n2,3600\n")

    page = written(model, tmp_path / "CARD.md", evaluation, run=run)

    assert "2 epochs in 1.50 hours of wall clock on cpu (a processor, 2 cores)" in page
    assert "Energy was not measured" in page


def test_a_folder_that_is_no_run_is_named(model: Path, evaluation: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder of a training run .environment\.json"):
        write_card(str(model), tmp_path / "C.md", evaluations=[evaluation], run=tmp_path)


# --- figures of the TOML card ---------------------------------------------------------------------


def test_figures_go_into_the_toml_card_and_leave_the_evaluation_valid(
    model: Path, evaluation: Path, tmp_path: Path
) -> None:
    shutil.copytree(model.parent, tmp_path / "model")
    own = tmp_path / "model" / model.name
    before = read_card(own.with_suffix(".toml"))

    write_figures(find_model(str(own)), [figures(evaluation)])

    card = read_card(own.with_suffix(".toml"))
    by_name = {figure.metric: figure for figure in card.figures}
    wire = figures(evaluation)["metrics"]
    assert by_name["age_mae"].value == round(wire["age_mae"]["value"], 4)
    assert by_name["age_mae"].low == round(wire["age_mae"]["low"], 4)
    assert by_name["age_mae"].unit == "years"
    assert by_name["gender_accuracy"].data == "faces.parquet, 600 faces"
    assert by_name["age_mae"].command.startswith("agelens evaluate ")
    assert card.model_copy(update={"figures": before.figures}) == before
    written(own, tmp_path / "CARD.md", evaluation)  # still of this card


def test_figures_are_shown_by_models_show(model: Path, evaluation: Path, tmp_path: Path) -> None:
    shutil.copytree(model.parent, tmp_path / "model")
    own = tmp_path / "model" / model.name
    write_figures(find_model(str(own)), [figures(evaluation)])

    shown = agelens("models", "show", own, columns=200).out

    assert (
        f"age_mae on faces.parquet, 600 faces: {card_figures([figures(evaluation)])[0].value:g}"
        in shown
    )


def test_the_card_of_a_bundled_model_is_not_written() -> None:
    with pytest.raises(ArgumentError, match="comes with the package"):
        write_figures(find_model("cc0"), [])


# --- the command ----------------------------------------------------------------------------------


def test_the_command_writes_the_card_and_the_figures(
    model: Path, evaluation: Path, tmp_path: Path
) -> None:
    shutil.copytree(model.parent, tmp_path / "model")
    own = tmp_path / "model" / model.name

    done = agelens(
        *("card", own, "--evaluation", evaluation, "--out", tmp_path / "CARD.md", "--figures")
    )

    assert done.status == 0, done.err
    assert done.out == ""
    assert (tmp_path / "CARD.md").read_text().startswith("# Model card: ")
    assert read_card(own.with_suffix(".toml")).figures


def test_the_command_says_what_is_wrong(model: Path, tmp_path: Path) -> None:
    done = agelens("card", model, "-e", tmp_path / "none.json", "-o", tmp_path / "CARD.md")

    assert done.status == 2
    assert "none.json: no such file" in " ".join(done.err.split())
