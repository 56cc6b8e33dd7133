"""Signed audits: what they are made with, and everything that makes one invalid."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="needs the 'eval' extra")
pytest.importorskip("onnx", reason="needs the 'train' extra")

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

import onnx_models
from agelens.bundle import HOME_VARIABLE, Bundle, find_model
from agelens.errors import ArgumentError, AuditError, ModelCorrupt
from agelens.evaluation.policy import AuditPolicy
from agelens.evaluation.scoring import card_sha256, model_sha256
from agelens.evaluation.signing import (
    KEY_VARIABLE,
    canonical_json,
    data_fingerprint,
    key_folder,
    public_key_text,
    read_public_key,
    sign,
    signing_key,
    verify_audit,
)

MADE = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = MADE + timedelta(days=30)
DATA = data_fingerprint(["a" * 64, "b" * 64])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    return tmp_path / "home"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return onnx_models.write_model(tmp_path / "model", onnx_models.distribution_network().graph)


def document(bundle: Bundle, **changes: Any) -> dict[str, Any]:
    policy = AuditPolicy.load("strict")
    return {
        "schema": "agelens.audit/1",
        "created": MADE.isoformat(),
        "expires": (MADE + timedelta(days=180)).isoformat(),
        "verdict": "passed",
        "model": {
            "name": bundle.card.identifier,
            "sha256": model_sha256(bundle),
            "card_sha256": card_sha256(bundle.card),
        },
        "data_sha256": DATA,
        "policy": {"name": policy.name, "sha256": policy.sha256, "text": policy.text},
        "cells": [{"name": "race Ä", "metrics": {"age_mae": {"value": 5.25e-7}}}],
        **changes,
    }


def written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def audit(tmp_path: Path, network: Path) -> Path:
    return written(tmp_path / "audit.json", sign(document(find_model(str(network)))))


# --- what holds -----------------------------------------------------------------------------------


def test_a_signed_audit_of_this_model_verifies(audit: Path, network: Path) -> None:
    bundle = find_model(str(network))

    found = verify_audit(
        audit, bundle=bundle, data_sha256=DATA, policy=AuditPolicy.load("strict"), now=LATER
    )

    assert found.passed
    assert (found.model, found.policy) == ("small@2.1", "strict")
    assert found.expires == MADE + timedelta(days=180)
    assert found.key == public_key_text(signing_key())
    assert found.document["cells"][0]["name"] == "race Ä"


def test_layout_does_not_count(audit: Path, network: Path) -> None:
    content = json.loads(audit.read_text("utf-8"))
    audit.write_text(json.dumps(dict(reversed(content.items()))), encoding="utf-8")

    assert verify_audit(audit, bundle=find_model(str(network)), now=LATER).passed


def test_an_audit_that_failed_verifies_as_failed(tmp_path: Path, network: Path) -> None:
    bundle = find_model(str(network))
    path = written(tmp_path / "a.json", sign(document(bundle, verdict="failed")))

    assert not verify_audit(path, bundle=bundle, now=LATER).passed


def test_verifying_loads_neither_pandas_nor_fairlearn(audit: Path, network: Path) -> None:
    code = (
        "import sys, datetime; from pathlib import Path\n"
        "from agelens.bundle import find_model\n"
        "from agelens.evaluation.policy import AuditPolicy\n"
        "from agelens.evaluation.signing import verify_audit\n"
        "now = datetime.datetime(2026, 4, 1, tzinfo=datetime.UTC)\n"
        "verify_audit(Path(sys.argv[1]), bundle=find_model(sys.argv[2]), now=now,\n"
        "             policy=AuditPolicy.load('strict'))\n"
        "heavy = {'pandas', 'fairlearn', 'sklearn', 'scipy', 'torch', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(audit), str(network)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip

    assert done.stdout.strip() == "[]"


# --- what does not --------------------------------------------------------------------------------


def change_value(content: dict[str, Any]) -> None:
    content["cells"][0]["metrics"]["age_mae"]["value"] = 1.0


def change_verdict(content: dict[str, Any]) -> None:
    content["verdict"] = "failed"


def add_a_field(content: dict[str, Any]) -> None:
    content["approved"] = True


def drop_a_field(content: dict[str, Any]) -> None:
    del content["cells"]


def change_the_signature(content: dict[str, Any]) -> None:
    value = content["signature"]["value"]
    content["signature"]["value"] = ("B" if value[0] == "A" else "A") + value[1:]


def empty_the_signature(content: dict[str, Any]) -> None:
    content["signature"]["value"] = ""


@pytest.mark.parametrize(
    "change",
    [
        change_value,
        change_verdict,
        add_a_field,
        drop_a_field,
        change_the_signature,
        empty_the_signature,
    ],
    ids=lambda change: change.__name__,
)
def test_a_changed_audit_is_refused(
    audit: Path, network: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    content = json.loads(audit.read_text("utf-8"))
    change(content)
    written(audit, content)

    with pytest.raises(AuditError, match="signature does not fit the content"):
        verify_audit(audit, bundle=find_model(str(network)), now=LATER)


def test_an_unsigned_audit_is_refused(tmp_path: Path, network: Path) -> None:
    bundle = find_model(str(network))
    signing_key()
    path = written(tmp_path / "a.json", document(bundle))

    with pytest.raises(AuditError, match="not signed"):
        verify_audit(path, bundle=bundle, now=LATER)


def test_groups_that_the_policy_asks_for_may_not_be_left_out(tmp_path: Path, network: Path) -> None:
    bundle = find_model(str(network))
    policy = AuditPolicy.load("strict")
    few = sign(document(bundle, settings={"min_cell": policy.min_cell + 1}))
    path = written(tmp_path / "a.json", few)

    with pytest.raises(AuditError, match="left out groups of fewer than 31 faces"):
        verify_audit(path, bundle=bundle, policy=policy, now=LATER)
    assert verify_audit(path, bundle=bundle, now=LATER).passed


def test_another_key_is_not_trusted(tmp_path: Path, network: Path) -> None:
    bundle = find_model(str(network))
    signing_key()
    stranger = Ed25519PrivateKey.generate()
    path = written(tmp_path / "a.json", sign(document(bundle), stranger))

    with pytest.raises(AuditError, match="is not the trusted one"):
        verify_audit(path, bundle=bundle, now=LATER)
    assert verify_audit(
        path, bundle=bundle, now=LATER, trusted_key=public_key_text(stranger)
    ).passed


def test_nobody_is_trusted_where_no_audit_was_ever_signed(
    audit: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = (key_folder() / "audit.pub").read_text()
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "elsewhere"))
    bundle = find_model(str(network))

    with pytest.raises(AuditError, match="no key to trust"):
        verify_audit(audit, bundle=bundle, now=LATER)
    (tmp_path / "theirs.pub").write_text(public)
    found = verify_audit(audit, bundle=bundle, now=LATER, trusted_key=tmp_path / "theirs.pub")
    assert found.passed


def test_changed_weights_make_it_invalid(audit: Path, network: Path) -> None:
    network.write_bytes(network.read_bytes()[:-1] + b"\x00")

    with pytest.raises(ModelCorrupt, match="SHA-256"):
        verify_audit(audit, bundle=find_model(str(network)), now=LATER)


def test_another_model_makes_it_invalid(audit: Path, tmp_path: Path) -> None:
    other = onnx_models.distribution_network(seed=2).graph
    path = onnx_models.write_model(tmp_path / "other", other)

    with pytest.raises(AuditError, match="another model, or a changed one"):
        verify_audit(audit, bundle=find_model(str(path)), now=LATER)


def test_another_calibration_makes_it_invalid(audit: Path, network: Path) -> None:
    card = onnx_models.distribution_card(network.read_bytes())
    card["calibration"] = {"age_temperature": 1.5}
    onnx_models.write_card(network.with_suffix(".toml"), card)

    with pytest.raises(AuditError, match=r"card of small@2\.1 has changed since the audit"):
        verify_audit(audit, bundle=find_model(str(network)), now=LATER)


def test_other_data_make_it_invalid(audit: Path, network: Path) -> None:
    other = data_fingerprint(["b" * 64, "a" * 64])

    with pytest.raises(AuditError, match="made on other faces"):
        verify_audit(audit, bundle=find_model(str(network)), data_sha256=other, now=LATER)


def test_another_policy_makes_it_invalid(audit: Path, network: Path) -> None:
    with pytest.raises(AuditError, match=r"judged by another policy \('strict'"):
        verify_audit(
            audit, bundle=find_model(str(network)), policy=AuditPolicy.load("lenient"), now=LATER
        )


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (MADE + timedelta(days=180), "expired on 2026-08-28"),
        (MADE + timedelta(days=400), "expired on 2026-08-28"),
        (MADE - timedelta(days=1), "still to come by this clock"),
    ],
)
def test_it_holds_from_its_making_to_its_expiry(
    audit: Path, network: Path, now: datetime, message: str
) -> None:
    with pytest.raises(AuditError, match=message):
        verify_audit(audit, bundle=find_model(str(network)), now=now)


def test_a_time_without_zone_is_refused(audit: Path, network: Path) -> None:
    with pytest.raises(ArgumentError, match="time zone"):
        verify_audit(audit, bundle=find_model(str(network)), now=datetime(2026, 4, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1]", "schema is None"),
        ('{"schema": "agelens.evaluation/1"}', "schema is 'agelens.evaluation/1'"),
        ('{"schema": "agelens.audit/1", "x": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "not JSON"),
    ],
    ids=["empty", "list", "other", "nan", "deep"],
)
def test_what_is_no_audit_is_refused(
    tmp_path: Path, network: Path, text: str, message: str
) -> None:
    (tmp_path / "a.json").write_text(text)

    with pytest.raises(AuditError, match=message):
        verify_audit(tmp_path / "a.json", bundle=find_model(str(network)), now=LATER)


def test_a_missing_file_is_named(tmp_path: Path, network: Path) -> None:
    with pytest.raises(AuditError, match=r"none\.json: the audit cannot be read"):
        verify_audit(tmp_path / "none.json", bundle=find_model(str(network)), now=LATER)


# --- keys -----------------------------------------------------------------------------------------


def test_the_key_pair_is_made_once_and_only_its_owner_can_read_it() -> None:
    first, again = signing_key(), signing_key()

    assert public_key_text(first) == public_key_text(again)
    assert public_key_text(first) == read_public_key(key_folder() / "audit.pub")
    if os.name == "posix":
        assert stat.S_IMODE((key_folder() / "audit.key").stat().st_mode) == 0o600
    assert sorted(file.name for file in key_folder().iterdir()) == ["audit.key", "audit.pub"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_private_key_that_others_can_read_is_refused() -> None:
    signing_key()
    (key_folder() / "audit.key").chmod(0o644)

    with pytest.raises(AuditError, match="other users can read this private key"):
        signing_key()


def pem(key: Any, encryption: Any = None) -> bytes:
    found: bytes = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()
    )
    return found


def test_a_key_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "k.pem").write_bytes(pem(key))

    assert public_key_text(signing_key(tmp_path / "k.pem")) == public_key_text(key)
    for value in (str(tmp_path / "k.pem"), pem(key).decode()):
        monkeypatch.setenv(KEY_VARIABLE, value)
        assert public_key_text(signing_key()) == public_key_text(key)
    assert not key_folder().exists()


def test_a_wrong_key_is_refused_by_what_it_is(tmp_path: Path) -> None:
    cases = {
        "protected by a password": pem(
            Ed25519PrivateKey.generate(), BestAvailableEncryption(b"secret")
        ),
        "an Ed25519 key is needed": pem(generate_private_key(SECP256R1())),
        "no private key in PEM form": b"ssh-ed25519 AAAA",
    }
    for message, content in cases.items():
        (tmp_path / "k.pem").write_bytes(content)
        with pytest.raises(AuditError, match=message):
            signing_key(tmp_path / "k.pem")
    with pytest.raises(AuditError, match="the signing key cannot be read"):
        signing_key(tmp_path / "none.pem")
    with pytest.raises(AuditError, match="no public key"):
        read_public_key("ed25519:AAAA")


# --- the canonical form ---------------------------------------------------------------------------


def test_the_canonical_form_survives_a_round_trip() -> None:
    value = {"b": [1, 2.5e-9, None, True], "a": {"ü": "x", "A": 0.1 + 0.2}}

    once = canonical_json(value)

    assert once == '{"a":{"A":0.30000000000000004,"ü":"x"},"b":[1,2.5e-09,null,true]}'.encode()
    assert canonical_json(json.loads(once)) == once


def test_nan_cannot_be_signed() -> None:
    with pytest.raises(ArgumentError, match="not a JSON value"):
        sign({"value": float("nan")})
