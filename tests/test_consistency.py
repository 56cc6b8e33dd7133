"""The same picture gives the same answer, whichever way it goes in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import agelens
from agelens.estimation import estimate_in_batches

FACES = Path(__file__).parent / "faces"
PHOTOS = [str(FACES / name) for name in ("astronaut.jpg", "hopper.jpg", "group.jpg")]
TOLERANCE = 1e-4


def numbers(analysis: agelens.Analysis) -> np.ndarray:
    """All that was estimated, as one row a face: 101 ages, P(female), box."""
    rows = [
        np.r_[
            face.age.probabilities,
            face.gender.female_probability if face.gender else np.nan,
            np.asarray(face.box) / 1000,
        ]
        for face in analysis.faces
    ]
    return np.stack(rows)


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    analyzer = agelens.Analyzer()
    return [numbers(analyzer(photo)) for photo in PHOTOS]


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_inside_an_inference_do_not_change_the_answer(
    threads: int, expected: list[np.ndarray]
) -> None:
    analyzer = agelens.Analyzer(threads=threads)

    for photo, wanted in zip(PHOTOS, expected, strict=True):
        np.testing.assert_allclose(numbers(analyzer(photo)), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("batch", [1, 2, 8, 32, 64])
def test_the_batch_size_does_not_change_the_answer(batch: int) -> None:
    analyzer = agelens.Analyzer()
    chips = np.repeat(analyzer.chips(PHOTOS[2]), 6, axis=0)
    one_by_one = estimate_in_batches(analyzer.estimator, chips, batch=1)

    together = estimate_in_batches(analyzer.estimator, chips, batch=batch)

    assert together.gender is not None
    assert one_by_one.gender is not None
    np.testing.assert_allclose(together.age, one_by_one.age, atol=TOLERANCE)
    np.testing.assert_allclose(together.gender, one_by_one.gender, atol=TOLERANCE)


def test_a_stream_gives_what_single_calls_give(expected: list[np.ndarray]) -> None:
    streamed = list(agelens.Analyzer().stream(PHOTOS))

    for analysis, wanted in zip(streamed, expected, strict=True):
        np.testing.assert_allclose(numbers(analysis), wanted, atol=TOLERANCE)


def test_the_command_line_gives_what_python_gives(
    tmp_path: Path, expected: list[np.ndarray]
) -> None:
    output = tmp_path / "faces.jsonl"
    command = [sys.executable, "-m", "agelens", "analyze", *PHOTOS, "--distribution"]
    subprocess.run([*command, "--output", str(output)], check=True, capture_output=True)

    for line, wanted in zip(output.read_text().splitlines(), expected, strict=True):
        ages = [face["age"]["distribution"] for face in json.loads(line)["faces"]]
        np.testing.assert_allclose(ages, wanted[:, :101], atol=TOLERANCE)
