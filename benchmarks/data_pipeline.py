"""
The data pipeline on real sets: times, memory, findings, and a kill in the middle of the shards.

    python benchmarks/data_pipeline.py DATA OUT [--workers 2] [--skip noise ...]

DATA is a folder of Parquet tables of faces (column ``image``). OUT is a folder for reports and
shards; it ends with ``OUT/prepared``, which training can use. Needs psutil.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from agelens.data.checks import check_faces
from agelens.data.duplicates import find_duplicates, near_pairs, read_pictures
from agelens.data.noise import (
    describe_chip,
    predict_out_of_fold,
    rank_doubtful_ages,
    rank_doubtful_genders,
)
from agelens.data.prepare import PrepareOptions, prepare_faces
from agelens.data.report import write_html
from agelens.data.schema import FaceTable, file_sha256
from agelens.data.splits import SplitOptions, split_table
from agelens.data.stats import count_faces, draw
from agelens.images import load_image

STEPS = ("check", "prepare", "kill", "duplicates", "split", "stats", "noise")


class Memory:
    """Greatest memory of this process and its children, looked at ten times a second."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._stop.wait(0.1):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_mb = max(self.peak_mb, total / 1e6)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def measured(name: str, results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Time and memory of a step, beside what the step itself puts into the given dictionary."""
    row: dict[str, Any] = {}
    begin, used = time.monotonic(), cpu_seconds()
    with Memory() as memory:
        yield row
    row = {
        "seconds": round(time.monotonic() - begin, 1),
        "cpu_seconds": round(cpu_seconds() - used, 1),
        "peak_mb": round(memory.peak_mb),
        **row,
    }
    results[name] = row
    print(f"{name}: {json.dumps(row)}", flush=True)


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def run_check(table: FaceTable, out: Path, workers: int, results: dict[str, Any]) -> None:
    with measured("check", results) as row:
        report = check_faces(table, workers=workers)
        row["faces"] = table.num_rows
        row["findings"] = {
            f"{finding.severity} {finding.code}": len(finding.groups) for finding in report.findings
        }
    (out / "check.json").write_text(json.dumps(report.to_dict(), indent=1), encoding="utf-8")
    with measured("check report", results) as row:
        write_html(report, out / "check.html")
        row["html_mb"] = round((out / "check.html").stat().st_size / 1e6, 2)


def run_prepare(table: FaceTable, out: Path, workers: int, results: dict[str, Any]) -> None:
    with measured("prepare", results) as row:
        report = prepare_faces(
            table, out / "prepared", PrepareOptions(crops=True), workers=workers, overwrite=True
        )
        row |= {
            "chips": report.rows,
            "shards": report.shards,
            "whole_pictures": report.whole_pictures,
            "left_out": len(report.skipped),
        }
    row["chips_per_second"] = round(report.rows / row_seconds(results, "prepare"), 1)
    size = sum(file.stat().st_size for file in (out / "prepared").glob("*.parquet"))
    print(f"  {size / 1e6:.0f} MB of shards, {row['chips_per_second']} chips a second")


def row_seconds(results: dict[str, Any], name: str) -> float:
    return max(0.1, float(results[name]["seconds"]))


def run_kill(data: list[Path], out: Path, workers: int, results: dict[str, Any]) -> None:
    """Kill the run when half of the rows are done, start it again, and compare every file."""
    table = FaceTable.open(data)
    command = [sys.executable, __file__, *map(str, data), str(out), "--workers", str(workers)]
    with subprocess.Popen([*command, "--only-prepare"], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if int(line) >= table.num_rows // 2:
                run.send_signal(signal.SIGKILL)
                break
    before = sorted(path.name for path in (out / "killed").iterdir())
    with measured("restart after kill", results) as row:
        report = prepare_faces(table, out / "killed", PrepareOptions(crops=True), workers=workers)
        row["reused_shards"] = report.reused
        row["shards"] = report.shards
    row = results["restart after kill"]
    row["manifest_after_kill"] = "manifest.json" in before
    row["same_files"] = hashes(out / "killed") == hashes(out / "prepared")
    print(f"  same files as the undisturbed run: {row['same_files']}")


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: file_sha256(path) for path in folder.iterdir() if not path.name.endswith("npy")
    }


def run_duplicates(table: FaceTable, workers: int, results: dict[str, Any]) -> None:
    with measured("hash pictures", results):
        facts = read_pictures(table, workers=workers)
    for distance in (8, 16, 24, 32):
        with measured(f"duplicates within {distance} of 256 bits", results) as row:
            groups = find_duplicates(facts, max_distance=distance)
            row["groups"] = len(groups)
            row["exact"] = sum(group.exact for group in groups)
    rng = np.random.default_rng(0)
    for factor in (1, 2, 4):
        # Real hashes with a quarter of their bits drawn anew keep their skew and are no duplicates.
        many = np.concatenate([scrambled(facts.hashes, rng) for _ in range(factor)])
        with measured(f"near pairs among {len(many):,} hashes", results) as row:
            row["pairs"] = sum(1 for _ in near_pairs(many, 24))


def scrambled(hashes: Any, rng: np.random.Generator) -> Any:
    bits = np.unpackbits(hashes.view(np.uint8).reshape(len(hashes), 32), axis=1)
    anew = rng.random(bits.shape) < 0.25
    bits[anew] = rng.integers(0, 2, int(anew.sum()), dtype=np.uint8)
    return np.packbits(bits, axis=1).view(np.uint64)


def run_split(table: FaceTable, workers: int, results: dict[str, Any]) -> None:
    duplicates = find_duplicates(read_pictures(table, workers=workers))
    with measured("split", results) as row:
        report = split_table(table, SplitOptions(), duplicates=duplicates)
        row |= {"counts": report.counts, "families": report.families, "largest": report.largest}
    worst = max(abs(held["test"] - 0.1 * sum(held.values())) for held in report.strata.values())
    print(f"  furthest from its share in any stratum: {worst:.1f} test faces")


def run_stats(table: FaceTable, out: Path, results: dict[str, Any]) -> None:
    with measured("stats", results) as row:
        counts = count_faces(table)
        draw(counts, out / "ages.png")
        row["groups"] = list(counts.groups)
    if "race" in table.audit:
        draw(count_faces(table, by="race", split="train"), out / "ages_by_race.png")


def run_noise(out: Path, results: dict[str, Any]) -> None:
    """Plant 5 % of wrong labels on the exactly labelled validation faces, and look for them."""
    table = FaceTable.open(out / "prepared")
    labels = table.labels(["age_min", "age_max", "gender", "split"]).to_pydict()
    chosen = [
        row
        for row in range(table.num_rows)
        if labels["split"][row] == "val" and labels["age_min"][row] == labels["age_max"][row]
    ]
    ages = np.array([labels["age_min"][row] for row in chosen])
    female = np.array([labels["gender"][row] == "female" for row in chosen])
    rng = np.random.default_rng(0)
    count = len(chosen) // 20
    wrong_age = rng.choice(len(chosen), count, replace=False)
    wrong_gender = rng.choice(len(chosen), count, replace=False)
    planted = ages.copy()
    planted[wrong_age] = (ages[wrong_age] + rng.integers(25, 60, count)) % 90
    said = female.copy()
    said[wrong_gender] = ~said[wrong_gender]
    words = ["female" if value else "male" for value in said]
    with measured("label noise", results) as row:
        features = described(table, chosen)
        told = [int(age) for age in planted]
        made = predict_out_of_fold(features, told, told, words)
        by_age = rank_doubtful_ages(made.ages, told, told)
        by_gender = rank_doubtful_genders(made.female, words)
        row |= {
            "faces": len(chosen),
            "mae": round(float(np.abs(made.ages @ np.arange(101) - ages).mean()), 2),
            "gender_accuracy": round(float(((made.female > 0.5) == female).mean()), 3),
            "chance": 0.05,
            "age_precision_at_k": precision(by_age, wrong_age, count),
            "age_precision_at_quarter_k": precision(by_age, wrong_age, count // 4),
            "gender_precision_at_k": precision(by_gender, wrong_gender, count),
            "gender_precision_at_quarter_k": precision(by_gender, wrong_gender, count // 4),
        }


def described(table: FaceTable, rows: list[int]) -> Any:
    features = []
    for first in range(0, len(rows), 500):
        held = table.take(rows[first : first + 500], ["image"])
        features += [describe_chip(load_image(held[row]["image"]).pixels) for row in sorted(held)]
    return np.stack(features)


def precision(doubts: list[Any], wrong: Any, count: int) -> float:
    planted = {int(row) for row in wrong}
    return round(float(np.mean([doubt.row in planted for doubt in doubts[:count]])), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+", help="folder or files of faces")
    parser.add_argument("out", type=Path, help="folder for reports and shards")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--skip", nargs="*", choices=STEPS, default=[])
    parser.add_argument("--only-prepare", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    table = FaceTable.open(given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.only_prepare:
        prepare_faces(
            table,
            given.out / "killed",
            PrepareOptions(crops=True),
            workers=given.workers,
            progress=lambda done, _: print(done, flush=True),
            overwrite=True,
        )
        return
    results: dict[str, Any] = {}
    steps: dict[str, Callable[[], None]] = {
        "check": lambda: run_check(table, given.out, given.workers, results),
        "prepare": lambda: run_prepare(table, given.out, given.workers, results),
        "kill": lambda: run_kill(given.data, given.out, given.workers, results),
        "duplicates": lambda: run_duplicates(table, given.workers, results),
        "split": lambda: run_split(table, given.workers, results),
        "stats": lambda: run_stats(table, given.out, results),
        "noise": lambda: run_noise(given.out, results),
    }
    for name, step in steps.items():
        if name not in given.skip:
            step()
    findings = Counter(results.get("check", {}).get("findings", {}))
    print(f"{sum(findings.values())} groups of rows in findings")
    (given.out / "data_pipeline.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
