"""``agelens gate``: what fitting and reporting print, write and refuse."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the 'gate' extra")
pytest.importorskip("scipy", reason="needs the 'gate' extra")
pytest.importorskip("matplotlib", reason="needs the 'gate' extra")
pytest.importorskip("jinja2", reason="needs the 'gate' extra")
pytest.importorskip("onnx", reason="needs the 'train' extra")

import onnx
from onnx import TensorProto, helper, numpy_helper

import onnx_models
from agelens.data.schema import FaceRecord, FaceWriter
from agelens.gate.policy import GatePolicy
from command_line import agelens
from data.pictures import blob, encoded

SIZE = 16
YEARS_PER_STEP = 0.5
DARKEST = 60.0
SPREAD = 4.0


def brightness_network() -> bytes:
    """The expected age is half a year a step of mean brightness over 60; the spread is 4 years."""
    ages = np.arange(101, dtype=np.float32)
    # -(a - m)^2 / 2s^2 without what all ages share: a m / s^2 - a^2 / 2s^2.
    slope = (ages * YEARS_PER_STEP / SPREAD**2)[None]
    offset = -(ages**2) / (2 * SPREAD**2) - ages * YEARS_PER_STEP * DARKEST / SPREAD**2
    floats = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", columns])
        for name, columns in (("age", 101), ("gender", 1))
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["values"], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "mean"], ["light"]),
            helper.make_node("Gemm", ["light", "slope", "offset"], ["age"]),
            helper.make_node("Gemm", ["light", "nothing"], ["gender"]),
        ],
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        floats,
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in (
                ("mean", np.full((SIZE * SIZE * 3, 1), 1 / (SIZE * SIZE * 3))),
                ("slope", slope),
                ("offset", offset),
                ("nothing", np.zeros((1, 1))),
            )
        ],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(network)
    content: bytes = network.SerializeToString()
    return content


def picture(seed: int, looks: float) -> bytes:
    """A picture whose mean brightness looks so many years old; two seeds look nothing alike."""
    texture = blob(seed, 48).astype(np.float64)
    texture -= texture.mean()
    light = DARKEST + looks / YEARS_PER_STEP
    return encoded(np.clip(light + 0.25 * texture, 0, 255).astype(np.uint8), "PNG")


def album(path: Path, seed: int, minors: int, adults: int) -> Path:
    """Faces of 13 to 17 and of 18 to 44, who look as old as they are, give or take two years."""
    rng = np.random.default_rng(seed)
    ages = [*rng.integers(13, 18, minors), *rng.integers(18, 25, adults // 2)]
    ages += [*rng.integers(25, 45, adults - adults // 2)]
    with FaceWriter(path, ["race"]) as writer:
        for row, age in enumerate(map(int, ages)):
            looks = age + rng.normal(0, 2)
            writer.write(
                FaceRecord(
                    "ours",
                    f"{row}.png",
                    image=picture(1000 * seed + row, looks),
                    age_min=age,
                    age_max=age,
                    gender="female" if row % 2 else "male",
                    audit={"race": "one"},
                )
            )
    return path


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "age-gate.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, faces to fit on, others to report on, and a policy that was fitted."""
    folder = tmp_path_factory.mktemp("gate")
    onnx_models.write_model(folder, brightness_network())
    album(folder / "val.parquet", 1, 140, 160)
    album(folder / "test.parquet", 2, 100, 100)
    done = agelens(
        *("gate", "fit", folder / "small.onnx", folder / "val.parquet", "--detector", "none"),
        *("--by", "gender", "--out", folder / "policy.toml", "--keep", folder / "val.npz"),
    )
    assert done.status == 0, done.err
    (folder / "fit.txt").write_text(done.out)
    return folder


@pytest.mark.parametrize("command", ["fit", "report"])
def test_every_option_that_the_page_gives_to_the_gate_exists(command: str) -> None:
    known = set(re.findall(r"--[a-z-]+", agelens("gate", command, "--help", columns=200).out))
    text = PAGE.read_text("utf-8").replace("\\\n", " ")
    lines = re.findall(rf"^agelens gate {command} .*$", text, re.MULTILINE)

    assert lines
    for line in lines:
        assert set(re.findall(r"(?<= )--[a-z-]+", line)) <= known


def test_the_policy_of_the_page_is_a_policy(tmp_path: Path) -> None:
    (written,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "policy.toml").write_text(written)

    assert GatePolicy.load(tmp_path / "policy.toml").name == "kiosk-18"


def test_fit_writes_a_policy_and_its_price(folder: Path) -> None:
    policy = GatePolicy.load(folder / "policy.toml")
    figures = json.loads((folder / "policy.fit.json").read_text())

    assert policy.require_ready().name == "small@2.1"
    assert policy.model is not None
    assert policy.model.detector == "none"
    assert policy.fit is not None
    assert policy.fit.by == ("gender",)
    assert {one.group for one in policy.fit.promises} == {"all", "gender=female", "gender=male"}
    assert figures["policy"]["sha256"] == policy.sha256
    assert policy.threshold in [point["limit"] for point in figures["price"]]
    assert figures["counts"]["under_age"] == 140


def test_fit_prints_rule_promises_and_price(folder: Path) -> None:
    printed = (folder / "fit.txt").read_text()

    assert "Accepted when the estimated probability of being 18 or over is" in printed
    assert "13 to 17, gender=female" in printed
    assert "price of other limits" in printed
    assert "of those of age in these data are not accepted at once" in printed


def test_fit_without_out_prints_the_policy_as_toml(folder: Path) -> None:
    done = agelens(
        *("gate", "fit", folder / "small.onnx", folder / "val.parquet", "--detector", "none"),
        *("--base", "shop-18", "--name", "ours", "--keep", folder / "val.npz"),
        *("--max-false-accept", "0.1", "--max-false-refuse", "0"),
    )

    assert done.status == 0, done.err
    table = tomllib.loads(done.out)
    assert table["name"] == "ours"
    assert table["liveness"] == "consistency"
    assert table["fit"]["max_false_accept"] == 0.1
    assert table["refuse_below"] == 0.0


def test_fit_with_too_few_minors_refuses_with_the_numbers(folder: Path) -> None:
    done = agelens(
        *("gate", "fit", folder / "small.onnx", folder / "val.parquet", "--detector", "none"),
        *("--max-false-accept", "0.01", "--out", folder / "none.toml"),
        *("--keep", folder / "val.npz"),
    )

    assert done.status == 2
    assert "needs 299 independent faces" in done.err
    assert "140  aged 13-17" in done.err
    assert not (folder / "none.toml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--minor-band", "13"), "--minor-band 13: write two ages as 13-17"),
        (("--base", "nowhere.toml"), "nowhere.toml: no such policy"),
        (("--base", "shop-18", "--required-age", "21"), "that policy is for 18"),
        (("--base", "challenge-25", "--rule", "probability"), "has the rule 'challenge'"),
    ],
)
def test_wrong_options_are_refused_before_any_face_is_read(
    folder: Path, options: tuple[str, ...], message: str
) -> None:
    done = agelens("gate", "fit", folder / "small.onnx", folder / "nothing.parquet", *options)

    assert done.status == 2
    assert message in done.err.replace("\n", " ")


def test_report_measures_other_faces_and_fills_the_papers(folder: Path) -> None:
    done = agelens(
        *("gate", "report", folder / "small.onnx", folder / "test.parquet"),
        *("--policy", folder / "policy.toml", "--out", folder / "papers", "--samples", "50"),
        *("--operator", "Corner Shop", "--other-way", "a passport"),
    )

    assert done.status == 0, done.err
    assert "every promise of the fit holds on these faces" in done.out
    wire = json.loads((folder / "papers" / "gate-report.json").read_text())
    assert wire["counts"]["under_age"] == 100
    assert wire["data"][0]["name"] == "test.parquet"
    assert "Corner Shop" in (folder / "papers" / "notice.html").read_text()
    assert "warning" not in done.err
    assert "too good" not in (folder / "papers" / "practice-statement.html").read_text()


def test_report_on_the_faces_of_the_fit_is_warned_of(folder: Path) -> None:
    done = agelens(
        *("gate", "report", folder / "small.onnx", folder / "val.parquet"),
        *("--policy", folder / "policy.toml", "--out", folder / "same", "--samples", "50"),
        *("--keep", folder / "val.npz"),
    )

    assert "the gate was fitted on this file" in done.err.replace("\n", " ")
    for name in ("gate-report.html", "practice-statement.html"):
        assert "too good" in (folder / "same" / name).read_text()


def test_report_exits_with_1_when_a_promise_is_broken(folder: Path, tmp_path: Path) -> None:
    # Minors who look over 30.
    with FaceWriter(tmp_path / "old.parquet") as writer:
        for row in range(40):
            image = picture(5000 + row, 45.0)
            writer.write(FaceRecord("ours", f"{row}.png", image=image, age_min=15, age_max=15))

    done = agelens(
        *("gate", "report", folder / "small.onnx", tmp_path / "old.parquet", "--by", ""),
        *("--policy", folder / "policy.toml", "--out", tmp_path / "papers", "--samples", "50"),
    )

    assert done.status == 1, done.err
    assert "broken" in done.out
    assert "over the bound" in (tmp_path / "papers" / "gate-report.html").read_text()


def test_report_refuses_an_audit_that_does_not_verify(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text("{}")

    done = agelens(
        *("gate", "report", folder / "small.onnx", folder / "test.parquet"),
        *("--policy", folder / "policy.toml", "--out", tmp_path / "papers"),
        *("--audit", tmp_path / "audit.json"),
    )

    assert done.status == 2
    assert "no audit" in done.err
    assert not (tmp_path / "papers").exists()
