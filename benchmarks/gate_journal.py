"""
What a gate's journal costs: writing one decision safely, and verifying a large journal.

    python benchmarks/gate_journal.py [--decisions 100000] [--folder DIR]

``--folder`` chooses the disk. Writing is measured twice: decision by decision, as a gate does, and
in batches, by which the large journal is made.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agelens.evaluation.signing import public_key_text
from agelens.gate.journal import Journal, head_path, verify_journal
from agelens.identifiers import new_identifier

BATCH = 1000
SINGLES = 500


def entry(number: int) -> dict[str, Any]:
    """A decision of the usual size."""
    now = datetime.now(UTC)
    return {
        "schema": "agelens.gate-decision/1",
        "id": new_identifier(now),
        "time": now.isoformat(timespec="milliseconds"),
        "outcome": ("accept", "step_up", "refuse", "retry")[number % 4],
        "reasons": [{"code": "over_limit", "text": "over the limit of the policy"}],
        "confidence": 0.95,
        "frames": {"given": 10, "used": 8},
        "policy": {"name": "site-18", "sha256": "5" * 64},
        "model": {"name": "cc0@1.0", "sha256": "6" * 64, "card_sha256": "7" * 64},
        "audit": {"status": "passed", "created": "2026-11-01T00:00:00+00:00", "key": "ed25519:x"},
        "token": None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    key = Ed25519PrivateKey.generate()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "gate.jsonl"
        singles = []
        with Journal(path, key=key, batch=BATCH) as journal:
            for number in range(min(SINGLES, options.decisions)):
                began = time.perf_counter()
                journal.append(entry(number))
                singles.append(time.perf_counter() - began)
            began, left = time.perf_counter(), options.decisions - len(singles)
            for start in range(0, left, BATCH):
                journal.extend([entry(n) for n in range(start, min(start + BATCH, left))])
            batched = time.perf_counter() - began
        began = time.perf_counter()
        found = verify_journal(path, trusted_key=public_key_text(key))
        verified = time.perf_counter() - began
        size = path.stat().st_size
        began = time.perf_counter()
        Journal(path, key=key).close()
        opened = time.perf_counter() - began
        head = head_path(path).stat().st_size
    if not found.intact or found.decisions != options.decisions:
        raise SystemExit(f"the journal does not verify: {found.problem}")
    ordered = sorted(singles)
    rows = [
        ("decisions", f"{found.decisions:,}"),
        ("journal, MB", f"{size / 1e6:.1f}"),
        ("head, bytes", f"{head}"),
        ("one decision, median ms", f"{1000 * statistics.median(ordered):.2f}"),
        ("one decision, 99 % ms", f"{1000 * ordered[int(0.99 * (len(ordered) - 1))]:.2f}"),
        (f"in batches of {BATCH:,}, ms each", f"{1000 * batched / max(1, left):.3f}"),
        ("verify all, s", f"{verified:.2f}"),
        ("open again, ms", f"{1000 * opened:.1f}"),
    ]
    for name, value in rows:
        print(f"{name:32} {value:>12}")


if __name__ == "__main__":
    main()
