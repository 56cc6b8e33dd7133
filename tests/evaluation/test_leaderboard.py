"""Models and packages side by side: the same faces, the right figures, and reasons for blanks."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the 'eval' extra")
pytest.importorskip("scipy", reason="needs the 'eval' extra")
pytest.importorskip("matplotlib", reason="needs the 'eval' extra")
pytest.importorskip("onnx", reason="needs the 'train' extra")

import onnx_models
from agelens.data.schema import FaceRecord, FaceWriter
from agelens.errors import DataError, ModelError, ModelNotFound
from agelens.evaluation.bootstrap import weights
from agelens.evaluation.leaderboard import (
    as_scored,
    columns,
    gap_metric,
    run_leaderboard,
    write_leaderboard,
)
from agelens.evaluation.peers import Peer, PeerAnswer
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.scoring import ScoringOptions, score
from agelens.evaluation.tables import (
    LEADERBOARD_SCHEMA,
    leaderboard_csv,
    leaderboard_markdown,
    leaderboard_notes,
    leaderboard_page,
    read_result,
)
from data.pictures import blob, encoded
from evaluation.simulation import in_ranges, normal_masses, scored, simulated

WHOLE = ScoringOptions(detector="none")


def draws_of(faces: ScoredFaces) -> np.ndarray:
    return weights(faces.clusters, 200)


# --- columns --------------------------------------------------------------------------------------


def point_answers(ages: list[float], labels: list[int]) -> ScoredFaces:
    """Answers that are sure of these ages, labelled with those."""
    count = len(ages)
    return scored(
        normal_masses(np.array(ages, float), np.full(count, 1e-6)),
        np.full(count, 0.9),
        np.array(labels),
        np.array(labels),
        np.ones(count, int),
        intervals=False,
    )


def test_each_column_stands_on_the_faces_that_it_names() -> None:
    true = [1, 8, 12, 13, 15, 17, 30, 59, 60, 90]
    said = [2, 8, 15, 24, 25, 40, 30, 50, 50, 100]
    faces = point_answers([float(age) for age in said], true)
    by_name = {column.name: column for column in columns(None) if column.metric is not None}

    found = {name: column.measure(faces, draws_of(faces)) for name, column in by_name.items()}

    errors = np.abs(np.subtract(said, true))
    expected = {
        "age_mae": errors.mean(),
        "age_cs5": np.mean(errors <= 5),
        "children_mae": errors[:3].mean(),
        "elderly_mae": errors[8:].mean(),
        "minors_over_25": 2 / 3,
        "gender": 1.0,
    }
    for name, value in expected.items():
        estimate = found[name]
        assert estimate is not None
        assert estimate.value == pytest.approx(value), name
    children = found["children_mae"]
    assert children is not None
    assert children.count == 3


def test_an_open_range_counts_as_elderly_and_a_range_over_a_border_does_not() -> None:
    faces = in_ranges(simulated(400, seed=1))
    elderly = next(column for column in columns(None) if column.name == "elderly_mae")
    minors = next(column for column in columns(None) if column.name == "minors_over_25")

    assert elderly.rows is not None
    assert minors.rows is not None
    assert set(faces.age_min[elderly.rows(faces)].tolist()) == {60, 70}
    assert not minors.rows(faces).any()  # 10 to 19 is not all of it 13 to 17


def test_the_gap_is_that_of_the_best_and_the_worst_group_within_a_data_set() -> None:
    count = 240
    faces = simulated(count, seed=3)
    right = np.zeros(count, bool)
    group, dataset = np.empty(count, object), np.empty(count, object)
    # 80 % and 60 % right in one set; 100 % in another, which must not be set against the 60 %.
    for start, (name, label, share) in enumerate(
        (("a", "one", 0.8), ("a", "two", 0.6), ("b", "one", 1.0), ("b", "two", 1.0))
    ):
        rows = slice(60 * start, 60 * (start + 1))
        group[rows], dataset[rows] = label, name
        right[rows] = np.arange(60) < round(60 * share)
    female = np.where(right == (faces.female_label == 1), 0.9, 0.1)
    faces = replace(faces, female=female, audit={"race": group}, dataset=dataset)

    metric = gap_metric("race")
    ones = np.ones((1, count), np.uint8)

    assert metric.estimate(faces, ones)[0] == pytest.approx(0.2)
    assert metric.rows(faces).sum() == count


def test_a_group_that_is_too_small_makes_no_gap() -> None:
    faces = simulated(100, seed=4)
    group = np.full(100, "many", object)
    group[:29] = "few"

    rows = gap_metric("race").rows(replace(faces, audit={"race": group}))

    assert not rows.any()


def test_point_answers_keep_their_age_and_say_nothing_where_there_is_none() -> None:
    reference = simulated(4, seed=5)
    age = np.array([17.0, 42.5, np.nan, 100.0])

    faces = as_scored(reference, age, np.array([1.0, 0.0, np.nan, 0.3]), np.ones(4, bool), 7.0)

    np.testing.assert_allclose(faces.mean_age, age)
    assert faces.answered.tolist() == [True, True, False, True]
    assert faces.age_min.tolist() == reference.age_min.tolist()
    assert faces.provenance.milliseconds == {"total": 7.0}


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seventy labelled pictures in two groups."""
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
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = onnx_models.distribution_network()
    return onnx_models.write_model(tmp_path_factory.mktemp("model"), network.graph)


def constant_peer(name: str, age: float, *, module: str = "numpy") -> Peer:
    """A package of which one is installed, that says the same of each picture."""
    return Peer(
        name, module, "free", "commercial", tuple, tuple,
        lambda: lambda pixels: PeerAnswer(age, 1.0, True),
    )  # fmt: skip


@pytest.fixture(scope="module")
def wire(data: Path, model: Path) -> dict[str, Any]:
    return run_leaderboard(
        [data],
        [str(model)],
        peers=[constant_peer("numpy", 40.0), constant_peer("no-such-package", 1.0)],
        options=WHOLE,
        flip=True,
        samples=100,
    )


def entry_of(wire: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of this name, or the first that begins with it."""
    entries: list[dict[str, Any]] = wire["entries"]
    named = [entry for entry in entries if entry["name"] == name]
    return (named or [entry for entry in entries if entry["name"].startswith(name)])[0]


def test_figures_of_a_model_are_those_of_its_scored_faces(
    wire: dict[str, Any], data: Path, model: Path
) -> None:
    faces = score(str(model), [data], WHOLE)
    entry = entry_of(wire, faces.provenance.model)

    error = np.abs(faces.mean_age - faces.age_min)
    right = (faces.female > 0.5) == (faces.female_label == 1)
    inside = (faces.interval_low[:, 2] <= faces.age_min) & (
        faces.age_min <= faces.interval_high[:, 2]
    )
    groups = faces.audit["race"]
    shares = [right[groups == name].mean() for name in ("one", "two")]

    figures = entry["figures"]
    assert figures["age_mae"]["value"] == pytest.approx(error.mean())
    assert figures["age_cs5"]["value"] == pytest.approx((error <= 5).mean())
    assert figures["gender"]["value"] == pytest.approx(right.mean())
    assert figures["coverage_90"]["value"] == pytest.approx(inside.mean())
    assert figures["gender_gap"]["value"] == pytest.approx(max(shares) - min(shares))
    assert entry["model_sha256"] == faces.provenance.model_sha256
    assert entry["milliseconds"]["total"] > entry["milliseconds"]["network"] > 0


def test_a_mirrored_run_is_a_row_of_its_own(wire: dict[str, Any]) -> None:
    names = [entry["name"] for entry in wire["entries"] if entry["kind"] == "model"]

    assert len(names) == 2
    assert sum(name.endswith(" + flip") for name in names) == 1


def test_a_package_with_one_number_has_no_coverage(wire: dict[str, Any], data: Path) -> None:
    import pyarrow.parquet as pq

    ages = np.array(pq.read_table(data).column("age_min").to_pylist())
    entry = entry_of(wire, "numpy@")

    assert entry["state"] == "measured"
    assert entry["figures"]["age_mae"]["value"] == pytest.approx(np.abs(ages - 40).mean())
    assert "coverage_90" not in entry["figures"]


def test_a_package_that_is_not_there_is_a_row_that_says_so(wire: dict[str, Any]) -> None:
    entry = entry_of(wire, "no-such-package")

    assert entry["state"] == "not installed"
    assert entry["figures"] == {}
    assert wire["entries"][-1] == entry
    assert any("no-such-package: not installed" in note for note in leaderboard_notes(wire))


def test_the_least_error_stands_first(wire: dict[str, Any]) -> None:
    errors = [
        entry["figures"]["age_mae"]["value"]
        for entry in wire["entries"]
        if entry["state"] == "measured"
    ]

    assert errors == sorted(errors)


def test_only_faces_that_all_have_an_answer_for_are_compared(data: Path, model: Path) -> None:
    def load() -> Any:
        answers = iter(range(70))
        return lambda pixels: (
            PeerAnswer(float("nan"), float("nan"), False)
            if next(answers) % 10 == 0
            else PeerAnswer(30.0, 0.0, True)
        )

    shy = Peer("numpy", "numpy", "", "commercial", tuple, tuple, load)

    wire = run_leaderboard([data], [str(model)], peers=[shy], options=WHOLE, samples=50)

    assert (wire["faces"], wire["compared"]) == (70, 63)
    assert entry_of(wire, "numpy")["answered"] == 63
    assert all(entry["figures"]["age_mae"]["count"] == 63 for entry in wire["entries"])
    assert any("answered 63 of 70 faces" in note for note in leaderboard_notes(wire))


def test_an_interrupted_run_goes_on_from_what_is_kept(
    data: Path, model: Path, tmp_path: Path
) -> None:
    peer = constant_peer("numpy", 40.0)
    first = run_leaderboard(
        [data], [str(model)], peers=[peer], options=WHOLE, kept=tmp_path, samples=50
    )
    asked = []

    def load() -> Any:
        asked.append(True)
        return lambda pixels: PeerAnswer(1.0, 0.0, True)

    again = run_leaderboard(
        [data],
        [str(model)],
        peers=[replace(peer, load=load)],
        options=WHOLE,
        kept=tmp_path,
        samples=50,
    )

    assert asked == []
    assert again["entries"] == first["entries"]


def test_kept_answers_for_other_faces_are_not_taken(
    data: Path, model: Path, tmp_path: Path
) -> None:
    peer = constant_peer("numpy", 40.0)
    few = replace(WHOLE, max_rows=35)
    run_leaderboard([data], [str(model)], peers=[peer], options=few, kept=tmp_path, samples=50)

    wire = run_leaderboard(
        [data], [str(model)], peers=[peer], options=WHOLE, kept=tmp_path, samples=50
    )

    assert all(entry["figures"]["age_mae"]["count"] == 70 for entry in wire["entries"])


def test_a_research_model_is_a_row_until_its_licence_is_accepted(
    data: Path, model: Path, tmp_path: Path
) -> None:
    network = onnx_models.distribution_network(seed=2)
    card = onnx_models.distribution_card(network.graph, path="theirs.onnx")
    card = {**card, "name": "theirs", "licence_class": "research"}
    theirs = onnx_models.write_model(tmp_path, network.graph, card, stem="theirs")

    wire = run_leaderboard([data], [str(model), str(theirs)], peers=(), options=WHOLE, samples=50)
    accepted = run_leaderboard(
        [data], [str(theirs)], peers=(), options=replace(WHOLE, accept_licence=True), samples=50
    )

    assert entry_of(wire, "theirs")["state"] == "licence not accepted"
    assert "--accept-licence" in entry_of(wire, "theirs")["note"]
    assert entry_of(accepted, "theirs")["state"] == "measured"


def test_a_model_without_gender_has_blanks_and_the_others_do_not(
    data: Path, model: Path, tmp_path: Path
) -> None:
    network = onnx_models.distribution_network(seed=3)
    card = {**onnx_models.distribution_card(network.graph, path="ages.onnx"), "name": "ages"}
    del card["gender"]
    ages = onnx_models.write_model(tmp_path, network.graph, card, stem="ages")

    wire = run_leaderboard([data], [str(model), str(ages)], peers=(), options=WHOLE, samples=50)

    assert "gender" not in entry_of(wire, "ages")["figures"]
    others = [entry for entry in wire["entries"] if not entry["name"].startswith("ages")]
    assert all("gender" in entry["figures"] for entry in others)
    row = next(line for line in leaderboard_markdown(wire).splitlines() if "| ages@" in line)
    assert "–" in row


def test_data_with_gender_labels_only_is_measured_by_them(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "faces.parquet"
    with FaceWriter(path) as writer:
        for row in range(12):
            writer.write(
                FaceRecord(
                    "ours", f"{row}.jpg", image=encoded(blob(row, 64)),
                    gender="female" if row % 2 else "male",
                )
            )  # fmt: skip

    wire = run_leaderboard([path], [str(model)], peers=(), options=WHOLE, samples=50)

    assert set(wire["entries"][0]["figures"]) == {"gender"}
    assert "MAE" not in leaderboard_markdown(wire)


def test_a_model_that_is_named_must_be_there(data: Path) -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        run_leaderboard([data], ["nowhere"], peers=(), options=WHOLE)


def test_without_any_model_there_is_nothing_to_compare(data: Path, tmp_path: Path) -> None:
    network = onnx_models.distribution_network(seed=2)
    card = onnx_models.distribution_card(network.graph, path="theirs.onnx")
    card = {**card, "name": "theirs", "licence_class": "research"}
    theirs = onnx_models.write_model(tmp_path, network.graph, card, stem="theirs")

    with pytest.raises(ModelError, match=r"none of the models can be run .*theirs.*research"):
        run_leaderboard([data], [str(theirs)], peers=(), options=WHOLE)


# --- what is written ------------------------------------------------------------------------------


def test_the_csv_holds_what_the_json_holds(wire: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(wire))))

    assert [row["model"] for row in rows] == [entry["name"] for entry in wire["entries"]]
    for row, entry in zip(rows, wire["entries"], strict=True):
        for name, found in entry["figures"].items():
            assert float(row[name]) == found["value"]
            assert int(row[f"{name}_faces"]) == found["count"]


def test_the_markdown_holds_every_figure_with_its_interval(wire: dict[str, Any]) -> None:
    page = leaderboard_page(wire)

    for entry in wire["entries"]:
        if "age_mae" in entry["figures"]:
            found = entry["figures"]["age_mae"]
            assert f"{found['value']:.2f} ({found['low']:.2f}–{found['high']:.2f})" in page
    assert wire["command"] in page


def test_files_are_written_and_read_back(wire: dict[str, Any], tmp_path: Path) -> None:
    written = write_leaderboard(wire, tmp_path)

    names = {path.name for path in written}
    assert names == {f"leaderboard.{kind}" for kind in ("json", "md", "csv", "svg", "png")}
    assert read_result(tmp_path / "leaderboard.json", LEADERBOARD_SCHEMA, "x") == wire
    assert (tmp_path / "leaderboard.png").read_bytes().startswith(b"\x89PNG")
    picture = (tmp_path / "leaderboard.svg").read_text("utf-8")
    assert all(name in picture for name in ("numpy@", "+ flip", "AgeLens", "peer"))


def test_the_result_is_plain_json(wire: dict[str, Any]) -> None:
    assert json.loads(json.dumps(wire, allow_nan=False)) == wire


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; `agelens leaderboard` makes one"),
        ("", "is empty"),
        ("{", "line 1: no JSON"),
        ("[]", "its schema is None, expected 'agelens.leaderboard/1'"),
        ('{"schema": "agelens.evaluation/1"}', "its schema is 'agelens.evaluation/1'"),
    ],
)
def test_a_file_that_is_no_leaderboard_is_named(
    content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "leaderboard.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(DataError) as raised:
        read_result(path, LEADERBOARD_SCHEMA, "agelens leaderboard")

    assert message in str(raised.value)
    assert str(path) in str(raised.value)
