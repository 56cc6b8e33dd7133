"""
Some thousand made-up requests against the service's own OpenAPI description.

Runs the test that holds the service to its description with more cases than the suite has time
for: valid and invalid requests to every operation, every check of schemathesis on each answer. A
case sends up to four requests, with and without a key.

    python benchmarks/fuzz_api.py --cases 5000
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from pathlib import Path

TEST = Path(__file__).parent.parent / "tests" / "server" / "test_openapi.py"
RUNS = 12
"""Six operations, each with valid and with invalid requests; three more take nothing to vary."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    examples = math.ceil(arguments.cases / RUNS)
    start = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(TEST), "-q", "-s", "--durations=20"),
            *("-k", "description_says", f"--hypothesis-seed={arguments.seed}"),
        ],
        env={**os.environ, "FUZZ_EXAMPLES": str(examples)},
        check=False,
    )
    verdict = "all checks passed" if done.returncode == 0 else "FAILED"
    print(f"{RUNS} runs of {examples} cases in {time.monotonic() - start:.0f} s: {verdict}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
