"""
Time and memory of a whole evaluation: inference, then all figures with their intervals.

    python benchmarks/evaluation_speed.py FACES.parquet [--model cc0] [--samples 1000]

FACES are labelled faces, as ``agelens evaluate`` takes them. Prints seconds of the two parts and
the most memory that the process held.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from agelens.evaluation.evaluating import evaluate
from agelens.evaluation.scoring import score


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FACES.parquet")
    parser.add_argument("--model", default="cc0")
    parser.add_argument("--samples", type=int, default=1000)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    faces = score(arguments.model, arguments.files)
    scored = time.perf_counter()
    result = evaluate(faces, samples=arguments.samples)
    done = time.perf_counter()
    figures = sum(len(group.metrics) for groups in result.groups.values() for group in groups)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(faces):,} faces, {len(result.metrics) + figures:,} figures with intervals")
    print(f"inference   {scored - begin:7.1f} s")
    print(f"evaluation  {done - scored:7.1f} s")
    print(f"most memory {peak:7.0f} MB")


if __name__ == "__main__":
    main()
