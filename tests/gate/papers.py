"""What a gate needs to open: a policy that is fitted for a model, and a signed audit of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agelens import Analyzer
from agelens.evaluation.policy import AuditPolicy
from agelens.evaluation.scoring import card_sha256, model_sha256
from agelens.evaluation.signing import AUDIT_SCHEMA, canonical_json, sign
from agelens.gate.policy import GatePolicy


def policy_for(analyzer: Analyzer, **fields: Any) -> GatePolicy:
    """A policy with limits set by hand for an analyzer's model; with a journal for an override."""
    table: dict[str, Any] = {
        "schema": "agelens.gate-policy/1",
        "name": "door",
        "required_age": 18,
        "threshold": 0.9,
        "refuse_below": 0.2,
        "model": {
            "name": analyzer.model,
            "sha256": model_sha256(analyzer.bundle),
            "card_sha256": card_sha256(analyzer.bundle.card),
        },
    }
    if fields.get("override") is not None:
        table["journal"] = {"path": f"{fields.get('name', 'door')}-overridden.jsonl"}
    return GatePolicy.from_table({k: v for k, v in (table | fields).items() if v is not None})


def write_audit(
    path: Path, analyzer: Analyzer, *, key: Any = None, days: float = 1, **fields: Any
) -> Path:
    """A signed audit that the model passed some days ago and that holds for 90."""
    created = datetime.now(UTC) - timedelta(days=days)
    document: dict[str, Any] = {
        "schema": AUDIT_SCHEMA,
        "created": created.isoformat(),
        "expires": (created + timedelta(days=90)).isoformat(),
        "verdict": "passed",
        "model": {
            "name": analyzer.model,
            "sha256": model_sha256(analyzer.bundle),
            "card_sha256": card_sha256(analyzer.bundle.card),
        },
        "data_sha256": "d" * 64,
        "policy": {"name": "strict", "sha256": AuditPolicy.load("strict").sha256},
        "options": {
            "detector": analyzer.options.detector,
            "crops": True,
            "flip": analyzer.options.flip,
        },
    }
    path.write_bytes(canonical_json(sign(document | fields, key)))
    return path


OVERRIDE = {
    "text": "Trial before staff only, until the audit is there.",
    "name": "A. Operator",
    "date": "2026-11-24",
}
