"""``agelens gate``: what fitting and reporting print, write and refuse."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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
from agelens import Analyzer
from agelens.data.schema import FaceRecord, FaceWriter
from agelens.evaluation.signing import public_key_text
from agelens.gate.policy import GatePolicy
from command_line import agelens
from data.pictures import blob, encoded
from gate.papers import write_audit

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
    album(folder / "test.parquet", 2, 160, 320)
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


def test_the_policies_of_the_page_are_policies(tmp_path: Path) -> None:
    found = []
    for written in re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        (tmp_path / "policy.toml").write_text(written)
        policy = GatePolicy.load(tmp_path / "policy.toml")
        found.append((policy.name, policy.admit))

    assert found == [("kiosk-18", "over"), ("children-13", "under")]


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
    assert "of those 18 or over in these data are not accepted at once" in printed


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


def test_fit_says_what_it_left_out_whether_it_writes_a_file_or_not(
    folder: Path, tmp_path: Path
) -> None:
    with FaceWriter(tmp_path / "ranges.parquet") as writer:
        for row in range(7):
            image = picture(7000 + row, 18.0)
            writer.write(FaceRecord("ours", f"{row}.png", image=image, age_min=10, age_max=19))
    fit = (
        *("gate", "fit", folder / "small.onnx", folder / "val.parquet"),
        *(tmp_path / "ranges.parquet", "--detector", "none", "--keep", tmp_path / "kept.npz"),
    )
    said = "Not counted: 7 whose label is a range across the required age."

    printed, written = agelens(*fit), agelens(*fit, "--out", tmp_path / "policy.toml")

    assert said in " ".join(printed.err.split())
    assert tomllib.loads(printed.out)["fit"]["left_out"]["label_straddles"] == 7
    assert said in " ".join(written.out.split())


def test_faces_that_the_model_was_calibrated_on_are_warned_of(folder: Path, tmp_path: Path) -> None:
    graph, content = brightness_network(), (folder / "val.parquet").read_bytes()
    file = {"name": "val.parquet", "sha256": hashlib.sha256(content).hexdigest(), "faces": 300}
    card = {**onnx_models.distribution_card(graph), "calibration": {"files": [file]}}
    onnx_models.write_model(tmp_path, graph, card)
    fit = ("gate", "fit", tmp_path / "small.onnx", "--detector", "none")

    known = agelens(*fit, folder / "val.parquet", "--out", tmp_path / "policy.toml")
    report = agelens(
        *("gate", "report", tmp_path / "small.onnx", folder / "val.parquet", "--by", ""),
        *("--policy", tmp_path / "policy.toml", "--out", tmp_path / "papers", "--samples", "20"),
    )
    other = agelens(*fit, folder / "test.parquet")

    words = "val.parquet: the model was calibrated on this file"
    assert words in " ".join(known.err.split())
    assert words in " ".join(report.err.split())
    assert "calibrated on" not in other.err


def test_report_on_three_faces_shows_nothing(folder: Path, tmp_path: Path) -> None:
    with FaceWriter(tmp_path / "three.parquet") as writer:
        for row in range(3):
            image = picture(8000 + row, 14.0)
            writer.write(FaceRecord("ours", f"{row}.png", image=image, age_min=14, age_max=14))

    done = agelens(
        *("gate", "report", folder / "small.onnx", tmp_path / "three.parquet", "--by", ""),
        *("--policy", folder / "policy.toml", "--out", tmp_path / "papers", "--samples", "20"),
    )

    said = " ".join(done.out.split())
    assert "too few to tell: 13 to 17: 3 faces, and a rate under 5 % needs 59" in said
    assert "every promise of the fit holds" not in said


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
        (("--base", "site-18", "--admit", "under"), "that policy has admit = 'over'"),
        (("--admit", "under", "--rule", "challenge"), "--admit under and --rule challenge do not"),
        (("--max-false-accept", "5"), "--max-false-accept must be between 0 and 1, got 5; 5 % is"),
        (("--confidence", "2"), "--confidence must be between 0 and 1, got 2"),
        (("--max-false-refuse", "-1"), "--max-false-refuse must be between 0 and 1, got -1"),
        (("--minor-band", "15-19"), "--minor-band must rise and stay within 0 to 17, got 15 to 19"),
        (("--adult-band", "30-20"), "--adult-band must rise and stay within 18 to 100"),
        (("--admit", "under", "--adult-band", "9-20"), "--adult-band must rise and stay within 18"),
        (("--name", "n" * 81), "--name must have 1 to 80 characters, got 81"),
        (("--out", "."), "--out .: is a folder; name a file for the policy"),
        (("--keep", "."), "--keep .: is a folder; name a file for the answers"),
    ],
)
def test_wrong_options_are_refused_before_any_face_is_read(
    folder: Path, options: tuple[str, ...], message: str
) -> None:
    done = agelens("gate", "fit", folder / "small.onnx", folder / "nothing.parquet", *options)

    assert done.status == 2
    assert message in done.err.replace("\n", " ")


@pytest.mark.parametrize("by", ["nosuch", "gender,nosuch", "race+nosuch"])
@pytest.mark.parametrize("command", ["fit", "report"])
def test_a_column_that_is_not_in_the_data_is_named_before_any_face_is_asked_about(
    folder: Path, tmp_path: Path, command: str, by: str
) -> None:
    more = ("--policy", folder / "policy.toml", "--out", tmp_path / "out") * (command == "report")

    done = agelens(
        *("gate", command, tmp_path / "no model.onnx", folder / "test.parquet", "--by", by), *more
    )

    assert done.status == 2
    said = " ".join(done.err.split())
    assert f"--by {by}: there is no column 'nosuch' in the data; there are: gender, race" in said


def test_a_file_of_something_else_is_not_taken_for_kept_answers(
    folder: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "thesis.npz"
    for content in (b"years of work", (folder / "policy.toml").read_bytes()):
        foreign.write_bytes(content)

        done = agelens(
            *("gate", "fit", folder / "small.onnx", folder / "test.parquet"),
            *("--detector", "none", "--keep", foreign),
        )

        assert done.status == 2
        said = " ".join(done.err.split())
        assert "thesis.npz: is no file of kept answers, or a broken one; name another path" in said
        assert not re.search("delete|pickle", said)
        assert foreign.read_bytes() == content


@pytest.mark.parametrize("columns", [30, 80])
def test_no_figure_is_cut_however_narrow_the_terminal(folder: Path, columns: int) -> None:
    fit = (
        *("gate", "fit", folder / "small.onnx", folder / "val.parquet", "--detector", "none"),
        *("--by", "gender", "--out", folder / "narrow.toml", "--keep", folder / "val.npz"),
    )
    report = (
        *("gate", "report", folder / "small.onnx", folder / "val.parquet", "--by", "gender,race"),
        *("--policy", folder / "policy.toml", "--out", folder / "wide", "--samples", "20"),
        *("--keep", folder / "val.npz"),
    )
    for arguments in (fit, report):
        wide, narrow = (agelens(*arguments, columns=width) for width in (300, columns))

        assert narrow.out.split() == wide.out.split()
        assert "…" not in narrow.out


def test_a_policy_that_cannot_be_reported_on_is_refused_before_any_face_is_read(
    folder: Path, tmp_path: Path
) -> None:
    def refused(model: str | Path, policy: str | Path) -> str:
        done = agelens(
            *("gate", "report", model, tmp_path / "nothing.parquet", "--policy", policy),
            *("--out", tmp_path / "papers"),
        )
        assert done.status == 2
        return " ".join(done.err.split())

    assert "shop-18: the policy has no threshold yet" in refused(folder / "small.onnx", "shop-18")
    assert "the policy was fitted for small@2.1" in refused("cc0", folder / "policy.toml")


def test_report_says_that_there_is_no_audit(folder: Path, tmp_path: Path) -> None:
    policy = GatePolicy.load(folder / "policy.toml")
    override = {"text": "Trial week, staff check everybody.", "name": "A. Keeper"}
    policy.save(tmp_path / "shut.toml")
    policy.changed(
        override={**override, "date": "2026-11-24"}, journal={"path": "journal.jsonl"}
    ).save(tmp_path / "open.toml")

    def printed(name: str) -> str:
        done = agelens(
            *("gate", "report", folder / "small.onnx", folder / "val.parquet", "--by", ""),
            *("--policy", tmp_path / name, "--out", tmp_path / "papers", "--samples", "20"),
            *("--keep", folder / "val.npz"),
        )
        assert done.status == 0, done.err
        return " ".join(done.out.split())

    shut = printed("shut.toml")
    assert "no valid audit, the gate stays shut: there is no audit at" in shut
    assert f"make one with `agelens audit {folder / 'small.onnx'} DATA --out FOLDER`" in shut
    assert "no valid audit, the gate opens on the override of A. Keeper only" in printed(
        "open.toml"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"verdict": "failed"}, "the gate stays shut: small@2.1 failed the audit by the policy"),
        ({"days": 40}, "the gate stays shut: the audit of small@2.1 is from"),
        ({"days": 100}, "the gate stays shut: "),
        (
            {"policy": {"name": "strict", "sha256": "e" * 64}},
            "judged by another policy ('strict', SHA-256",
        ),
        ({}, "audit passed by the policy 'strict', holds until"),
    ],
    ids=["failed", "older than the policy takes", "expired", "homemade", "passed"],
)
@pytest.mark.parametrize("given", [False, True], ids=["of the policy", "--audit"])
def test_report_says_on_what_the_gate_will_open(
    folder: Path, tmp_path: Path, fields: dict[str, Any], words: str, given: bool
) -> None:
    pytest.importorskip("cryptography", reason="needs the 'gate' extra")
    policy = GatePolicy.load(folder / "policy.toml")
    policy.changed(audit={"max_age_days": 30}).save(tmp_path / "policy.toml")
    path = tmp_path / ("elsewhere.json" if given else "audit.json")
    write_audit(path, Analyzer(model=str(folder / "small.onnx"), detector="none"), **fields)

    done = agelens(
        *("gate", "report", folder / "small.onnx", folder / "val.parquet", "--by", ""),
        *("--policy", tmp_path / "policy.toml", "--out", tmp_path / "papers", "--samples", "20"),
        *("--keep", folder / "val.npz", *(("--audit", path) * given)),
    )

    if given and (fields.get("days") == 100 or "policy" in fields):
        assert done.status == 2
        assert "expired" in done.err or words in " ".join(done.err.split())
        return
    assert words in " ".join(done.out.split())
    statement = (tmp_path / "papers" / "practice-statement.html").read_text()
    assert ("the gate stays shut" in statement) == bool(fields)
    assert "No audit of the model is named" not in statement
    until = datetime.now(UTC) + timedelta(days=29)
    assert (f"holds until {until:%Y-%m-%d}" in done.out) == (not fields)


def test_report_finds_the_auditors_key_beside_the_policy(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="needs the 'gate' extra")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    (tmp_path / "auditor.pub").write_text(public_key_text(key))
    write_audit(
        tmp_path / "audit.json",
        Analyzer(model=str(folder / "small.onnx"), detector="none"),
        key=key,
    )
    policy = GatePolicy.load(folder / "policy.toml").changed(audit={"key": "auditor.pub"})
    policy.save(tmp_path / "policy.toml")

    done = agelens(
        *("gate", "report", folder / "small.onnx", folder / "val.parquet", "--by", ""),
        *("--policy", tmp_path / "policy.toml", "--out", tmp_path / "papers", "--samples", "20"),
        *("--keep", folder / "val.npz"),
    )

    assert "audit passed by the policy 'strict'" in done.out


def test_report_names_the_promises_that_it_cannot_check(folder: Path, tmp_path: Path) -> None:
    with FaceWriter(tmp_path / "plain.parquet") as writer:
        for row in range(20):
            image = picture(7000 + row, 14.0)
            writer.write(FaceRecord("ours", f"{row}.png", image=image, age_min=14, age_max=14))

    done = agelens(
        *("gate", "report", folder / "small.onnx", tmp_path / "plain.parquet", "--by", ""),
        *("--policy", folder / "policy.toml", "--out", tmp_path / "papers", "--samples", "20"),
    )

    said = " ".join(done.out.split())
    assert "not checked, for there are no such faces here: under 18, gender=female" in said
    assert "every promise" not in said


def test_a_gate_for_the_young_is_fitted_reported_and_told_apart(
    folder: Path, tmp_path: Path
) -> None:
    fitted = agelens(
        *("gate", "fit", folder / "small.onnx", folder / "val.parquet", "--detector", "none"),
        *("--admit", "under", "--out", tmp_path / "young.toml", "--keep", folder / "val.npz"),
        *("--max-false-accept", "0.1"),
    )
    assert fitted.status == 0, fitted.err
    assert "Accepted when the estimated probability of being under 18 is" in fitted.out
    assert "of those under 18 in these data are not accepted at once" in fitted.out

    done = agelens(
        *("gate", "report", folder / "small.onnx", folder / "test.parquet", "--by", ""),
        *("--policy", tmp_path / "young.toml", "--out", tmp_path / "papers", "--samples", "50"),
        *("--operator", "Playground"),
    )

    assert done.status == 0, done.err
    assert "every promise of the fit holds on these faces" in done.out
    policy = GatePolicy.load(tmp_path / "young.toml")
    assert (policy.admit, policy.name, policy.required_age) == ("under", "under-18", 18)
    wire = json.loads((tmp_path / "papers" / "gate-report.json").read_text())
    assert {tuple(one["ages"]) for one in wire["decisions"] if one["kept_out"]} == {
        (18, 100),
        (18, 22),
    }
    notice = (tmp_path / "papers" / "notice.html").read_text()
    assert "Playground must not let in anybody 18 or over" in notice


def test_report_measures_other_faces_and_fills_the_papers(folder: Path) -> None:
    done = agelens(
        *("gate", "report", folder / "small.onnx", folder / "test.parquet"),
        *("--policy", folder / "policy.toml", "--out", folder / "papers", "--samples", "50"),
        *("--operator", "Corner Shop", "--other-way", "a passport"),
    )

    assert done.status == 0, done.err
    assert "every promise of the fit holds on these faces" in done.out
    wire = json.loads((folder / "papers" / "gate-report.json").read_text())
    assert wire["counts"]["under_age"] == 160
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
