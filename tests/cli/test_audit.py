"""``agelens audit``: what it judges, writes, verifies and refuses, and with which exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fairlearn", reason="needs the 'eval' extra")
pytest.importorskip("cryptography", reason="needs the 'eval' extra")
pytest.importorskip("jinja2", reason="needs the 'eval' extra")
pytest.importorskip("matplotlib", reason="needs the 'eval' extra")
pytest.importorskip("onnx", reason="needs the 'train' extra")

import onnx_models
from agelens.bundle import HOME_VARIABLE
from agelens.data.schema import FaceRecord, FaceWriter
from agelens.evaluation.audit import audit
from agelens.evaluation.policy import AuditPolicy
from agelens.evaluation.scoring import ScoringOptions, score
from command_line import Outcome, agelens
from data.pictures import blob, encoded

COUNT = 80
QUICK = ("--detector", "none", "--samples", "100")
HEAD = 'schema = "agelens.audit-policy/1"\nname = "ours"\nvalidity_days = 30\nmin_cell = 10\n'
HARD = HEAD + '[[require]]\nmetric = "gender_accuracy"\nby = ["race"]\nmin = 0.99\n'
EASY = HEAD + '[[require]]\nmetric = "age_mae"\nmax = 100.0\n'


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, labelled pictures, and policies that it passes and fails."""
    folder = tmp_path_factory.mktemp("room")
    rng = np.random.default_rng(0)
    with FaceWriter(folder / "faces.parquet", ["race", "note"]) as writer:
        for row in range(COUNT):
            age = int(rng.integers(0, 90))
            writer.write(
                FaceRecord(
                    "ours",
                    f"{row}.jpg",
                    image=encoded(blob(row, 64)),
                    age_min=age,
                    age_max=age,
                    gender="female" if row % 2 else "male",
                    audit={"race": "one" if row % 3 else "other", "note": f"n{row}"},
                )
            )
    onnx_models.write_model(folder, onnx_models.distribution_network().graph)
    (folder / "hard.toml").write_text(HARD)
    (folder / "easy.toml").write_text(EASY)
    return folder


def audited(room: Path, policy: str | Path, *options: str | Path) -> Outcome:
    model, data = room / "small.onnx", room / "faces.parquet"
    return agelens("audit", model, data, "--policy", room / policy, *QUICK, *options, columns=140)


@pytest.fixture(scope="module")
def failed(room: Path) -> tuple[Path, Outcome]:
    out = room / "failed"
    return out, audited(room, "hard.toml", "--out", out)


def words(outcome: Outcome) -> str:
    return " ".join(outcome.out.split())


def test_a_model_that_fails_names_the_groups_and_exits_with_one(
    failed: tuple[Path, Outcome],
) -> None:
    _, done = failed

    assert done.status == 1
    assert "race other: Gender right is" in words(done)
    assert "failed: race one; race other" in words(done)
    assert "note: column 'note' has 80 values" in words(done)


def test_the_file_is_signed_and_holds_what_the_library_finds(
    failed: tuple[Path, Outcome], room: Path
) -> None:
    faces = score(str(room / "small.onnx"), room / "faces.parquet", ScoringOptions(detector="none"))
    expected = audit(faces, AuditPolicy.load(room / "hard.toml"), samples=100).to_dict()

    wire = json.loads((failed[0] / "audit.json").read_text("utf-8"))

    assert wire["signature"]["algorithm"] == "Ed25519"
    for part in ("cells", "gaps", "judgements", "overall", "gate", "sentences", "policy", "model"):
        assert wire[part] == expected[part], part
    assert wire["verdict"] == "failed"
    assert wire["expires"] > wire["created"]


def test_a_page_for_people_is_written_beside_it(failed: tuple[Path, Outcome]) -> None:
    page = (failed[0] / "audit.html").read_text("utf-8")

    assert page.startswith("<!doctype html>")
    assert "The model fails" in page
    assert "race other" in page


def test_a_model_that_passes_exits_with_nought(room: Path) -> None:
    done = audited(room, "easy.toml")

    assert done.status == 0
    assert "passed; holds until" in words(done)
    assert not (room / "audit.json").exists()


def test_an_earlier_audit_is_compared_with(failed: tuple[Path, Outcome], room: Path) -> None:
    before = failed[0] / "audit.json"

    done = audited(room, "easy.toml", "--out", room / "after", "--before", before)

    assert done.status == 0
    assert "2 failing; now 0: 2 no longer failing, 0 new" in words(done)
    assert "no longer failing: gender_accuracy, race one (limit: " in words(done)
    assert "the audit before was by another policy: what no longer fails may only not" in words(
        done
    )


def test_changed_pictures_are_tried_where_the_policy_has_limits_on_them(
    room: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.toml").write_text(
        EASY + '[[stress]]\nslices = ["jpeg_20", "grey"]\nmetric = "age_mae"\nmax_worse = 90\n'
    )
    sample = ("--stress-faces", "20", "--out", tmp_path / "out")

    tried = audited(room, tmp_path / "p.toml", *sample)
    left_out = audited(room, tmp_path / "p.toml", "--no-stress")

    assert tried.status == 0
    wire = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))
    assert wire["stress"]["faces"] == 20
    assert left_out.status == 1
    assert "1 requirement could not be judged" in words(left_out)


def test_faces_without_an_audit_column_are_audited_by_gender_and_age(
    room: Path, tmp_path: Path
) -> None:
    with FaceWriter(tmp_path / "bare.parquet") as writer:
        for row in range(40):
            image = encoded(blob(row, 64))
            writer.write(FaceRecord("ours", f"{row}", image=image, age_min=row, age_max=row))
    command = ("audit", room / "small.onnx", tmp_path / "bare.parquet", "--policy")

    done = agelens(*command, room / "easy.toml", *QUICK)
    wanted = agelens(*command, room / "easy.toml", *QUICK, "--skin-tone")

    assert done.status == 0
    assert "skin tone can be measured on no face" in " ".join(done.err.split())
    assert wanted.status == 2
    assert "skin tone can be measured on none of these faces" in " ".join(wanted.err.split())


# --- verifying ------------------------------------------------------------------------------------


def test_verify_holds_file_model_data_and_policy_together(
    failed: tuple[Path, Outcome], room: Path
) -> None:
    whole = ("audit", "--verify", failed[0] / "audit.json", "--model", room / "small.onnx")

    done = agelens(*whole, room / "faces.parquet", "--policy", room / "hard.toml")
    other_policy = agelens(*whole, "--policy", room / "easy.toml")

    assert done.status == 1  # it verifies, and says that the model failed
    assert "signed and in date until" in done.out
    assert "failed by the policy ours" in words(done)
    assert other_policy.status == 2
    assert "judged by another policy" in other_policy.err


def test_verify_refuses_a_changed_file_and_a_stranger(
    failed: tuple[Path, Outcome], room: Path, tmp_path: Path
) -> None:
    content = json.loads((failed[0] / "audit.json").read_text("utf-8"))
    content["verdict"] = "passed"
    (tmp_path / "forged.json").write_text(json.dumps(content))

    forged = agelens("audit", "--verify", tmp_path / "forged.json", "--model", room / "small.onnx")
    stranger = agelens(
        "audit", "--verify", failed[0] / "audit.json", "--model", room / "small.onnx",
        "--key", "ed25519:" + "A" * 43 + "=",
    )  # fmt: skip

    assert forged.status == 2
    assert "signature does not fit the content" in " ".join(forged.err.split())
    assert stranger.status == 2
    assert "not the trusted one" in " ".join(stranger.err.split())


# --- wrong usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small.onnx"], "name a model and at least one table"),
        (["small.onnx", "faces.parquet", "--policy", "none.toml"], "no such policy"),
        (["small.onnx", "faces.parquet", "--by", "skin"], "no audit column 'skin'; these exist"),
        (["small.onnx", "none.parquet"], "no such file or folder"),
        (["none.onnx", "faces.parquet"], "no such file"),
        (["small.onnx", "faces.parquet", "--out", "hard.toml"], "is a file; name a folder"),
        (["small.onnx", "faces.parquet", "--before", "hard.toml"], "no JSON"),
        (["small.onnx", "faces.parquet", "--model", "cc0"], "--model goes with --verify"),
        (["--verify", "hard.toml"], "--verify needs --model"),
        (["small.onnx", "faces.parquet", "--out", "o", "--key", "hard.toml"], "no private key"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_usage_exits_with_two_and_says_what_is_wrong(
    room: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(room)
    quick = [] if "--verify" in arguments else QUICK
    policy = [] if {"--policy", "--verify"} & set(arguments) else ["--policy", "easy.toml"]

    done = agelens("audit", *arguments, *policy, *quick)

    assert done.status == 2
    assert message in " ".join(done.err.split())
    assert not (room / "o").exists()


def test_a_policy_on_a_column_that_is_not_there_is_an_error(room: Path, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(HARD.replace('"race"', '"device"'))

    done = agelens(
        "audit", room / "small.onnx", room / "faces.parquet", "--policy", tmp_path / "p.toml",
        *QUICK,
    )  # fmt: skip

    assert done.status == 2
    assert "by the column 'device', which is not among" in " ".join(done.err.split())
