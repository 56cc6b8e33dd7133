"""
Whether a fitted gate keeps its bound: in simulation, and fitted on one split, seen on another.

    python benchmarks/gate_bound.py FOLDER [--model NAME ...] [--keep FOLDER]

FOLDER holds utkface-val.parquet and utkface-test.parquet (``agelens data import`` and ``data
split``). ``--fit`` and ``--test`` name other files in it; a model must have been neither trained
nor calibrated on the files of ``--fit``. ``--model`` can be given several times, for a table side
by side.

Prints three things:

- simulation: minors and adults whose true error rates are known, 500 data sets a row, and the share
  of them whose fitted limit breaks a bound;
- refusals: what the fit says where the faces are too few;
- for each model and promise: the limit fitted, the false acceptance on the test files overall, by
  gender and next to the required age, and its price.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import beta

from agelens.errors import DataError
from agelens.evaluation.scored import ScoredFaces
from agelens.evaluation.scoring import ScoringOptions, score
from agelens.gate.fitting import fit_gate, highest_refusal, limits, lowest_limit
from agelens.gate.measuring import Band, GateReport, errors_allowed, measure_gate
from agelens.gate.policy import GatePolicy, Rule

DRAWS = 500
ADULTS = (18, 100)
YOUNG = ((18, 20), (21, 24))
GROUPS = {
    "one": (3.0,),
    "five, one is hard": (3.0, 9.0, 9.0, 9.0, 9.0),
    "five, equally hard": (3.0,) * 5,
}


@dataclass(frozen=True)
class Promise:
    """What is asked of a fit."""

    bound: float = 0.05
    confidence: float = 0.95
    by: tuple[str, ...] = ()
    minors: Band | None = None
    rule: Rule = "probability"

    def __str__(self) -> str:
        low, high = self.minors or (13, 17)
        ages = "0-17" if low == 0 else f"0-17 and {low}-{high}"
        by = f", by {', '.join(self.by)}" if self.by else ""
        rule = ", challenge" if self.rule == "challenge" else ""
        return f"{ages}{by}: {100 * self.bound:g} % at {self.confidence:g}{rule}"


PROMISES = (
    Promise(minors=(0, 17), by=("gender",)),
    Promise(),
    Promise(by=("gender",)),
    Promise(bound=0.1, by=("gender",)),
    Promise(by=("gender", "race")),
    Promise(rule="challenge", minors=(0, 17), by=("gender",)),
    Promise(rule="challenge"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", action="append", metavar="NAME")
    parser.add_argument("--fit", nargs="+", default=["utkface-val.parquet"], metavar="FILE")
    parser.add_argument("--test", nargs="+", default=["utkface-test.parquet"], metavar="FILE")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for answers, to be reused")
    asked = parser.parse_args()
    console = Console(width=150)
    console.print(simulation())
    for model in asked.model or ["cc0"]:
        fitted_on = answers(model, asked.folder, asked.fit, asked.keep)
        tested_on = answers(model, asked.folder, asked.test, asked.keep)
        console.print(side_by_side(model, fitted_on, tested_on, console))


# --- simulation -----------------------------------------------------------------------------------


def simulation() -> Table:
    """The share of 500 data sets whose limit breaks its bound."""
    table = Table(title=f"simulation, {DRAWS} data sets a row: share whose limit breaks its bound")
    for column in ("promise", "groups", "faces each", "at most", "broken", "adults lost, %"):
        table.add_column(column, justify="left" if column in ("promise", "groups") else "right")
    rng = np.random.default_rng(0)
    for bound, confidence in ((0.05, 0.95), (0.01, 0.95), (0.1, 0.9)):
        for count in (60, 300, 1000):
            for groups, shapes in GROUPS.items():
                if errors_allowed(count, bound, confidence) < 0:
                    continue
                broken, lost = _broken(rng, bound, confidence, count, shapes)
                table.add_row(
                    f"accepted under {100 * bound:g} % at {confidence:g}",
                    groups,
                    str(count),
                    f"{1 - confidence:.3f}",
                    f"{broken:.3f}",
                    f"{100 * lost:.1f}",
                )
    refused = _refusals_broken(rng)
    table.add_row("refused under 5 % at 0.95", "one", "300", "0.050", f"{refused:.3f}", "")
    return table


def _broken(
    rng: np.random.Generator,
    bound: float,
    confidence: float,
    count: int,
    shapes: Sequence[float],
) -> tuple[float, float]:
    """Share of limits that break the bound in any group, and adults lost for want of knowledge.

    P(of age) is Beta(1, shape) for the minors of each group and Beta(3, 1) for adults. Lost are
    those whom the limit of perfect knowledge would accept and the fitted one does not.
    """
    allowed, grid = errors_allowed(count, bound, confidence), limits("probability", 18)
    limit = np.array(
        [
            max(lowest_limit(np.sort(rng.beta(1, s, count)), allowed, grid) for s in shapes)
            for _ in range(DRAWS)
        ]
    )
    needed = max(beta.isf(bound, 1, shape) for shape in shapes)
    worst = np.max([beta.sf(limit, 1, shape) for shape in shapes], axis=0)
    lost = beta.cdf(limit, 3, 1) - beta.cdf(needed, 3, 1)
    return float((worst > bound).mean()), float(lost.mean())


def _refusals_broken(rng: np.random.Generator) -> float:
    allowed, grid = errors_allowed(300, 0.05, 0.95), limits("probability", 18)
    limit = np.array(
        [highest_refusal(np.sort(rng.beta(3, 1, 300)), allowed, grid) for _ in range(DRAWS)]
    )
    return float((beta.cdf(limit, 3, 1) > 0.05).mean())


# --- faces ----------------------------------------------------------------------------------------


def answers(model: str, folder: Path, files: Sequence[str], keep: Path | None) -> ScoredFaces:
    """A model's answers on files of the folder."""
    name = "-".join([Path(model).stem, *(Path(file).stem for file in files)])
    return score(
        model,
        [folder / file for file in files],
        ScoringOptions(accept_licence=True),
        kept=None if keep is None else keep / f"{name}.npz",
    )


def side_by_side(
    model: str, fitted_on: ScoredFaces, tested_on: ScoredFaces, console: Console
) -> Table:
    """Each promise: its limit, its false acceptance on the test files, its price."""
    files = [
        ", ".join(file.name for file in faces.provenance.data) for faces in (fitted_on, tested_on)
    ]
    table = Table(
        title=f"{model}: fitted on {files[0]}, seen on {files[1]}, per cent", show_lines=True
    )
    for column in (
        "promise", "limit", "0-17 accepted", "female", "male", "13-17 accepted",
        "kept", "of age not accepted", "18-20", "21-24", "refused",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "promise" else "right")
    for promise in PROMISES:
        try:
            fit = fit_gate(
                fitted_on, 18, promise.bound, promise.confidence, promise.by, promise.rule,
                minors=promise.minors,
            )  # fmt: skip
        except DataError as error:
            console.print(f"{model}, {promise}: refused: {error}\n", highlight=False)
            table.add_row(str(promise), "refused", *[""] * 9)
            continue
        report = measure_gate(tested_on, fit.policy, by=["gender"], samples=100)
        table.add_row(str(promise), *_cells(report, fit.policy))
    return table


def _cells(report: GateReport, policy: GatePolicy) -> list[str]:
    found = {(one.ages, one.group): one for one in report.decisions}
    minors = [(0, 17), (0, 17), (0, 17), (13, 17)]
    of_whom = ["all", "gender=female", "gender=male", "all"]
    accepted = [found[key].accept for key in zip(minors, of_whom, strict=True)]
    kept = [check for check in report.checks if check.promise.error == "false_acceptance"]
    verdicts = {check.verdict for check in kept if check.found.faces}
    price = [1 - found[ages, "all"].accept.value for ages in (ADULTS, *YOUNG)]
    return [
        f"{policy.accept_from:g}",
        *(f"{100 * rate.value:.1f} ({rate.events}/{rate.faces})" for rate in accepted),
        "yes" if verdicts == {"below"} else ", ".join(sorted(verdicts - {"below"})),
        *(f"{100 * share:.0f}" for share in price),
        f"{100 * found[ADULTS, 'all'].refuse.value:.1f}",
    ]


if __name__ == "__main__":
    main()
