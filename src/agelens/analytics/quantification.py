"""
From how often a model said each thing to how often each was true: four methods side by side.

    adjusted_count         the confusion matrix inverted, on the simplex (Gart and Buck 1966)
    expected_shares        EM on the counts: the most likely shares under the confusion matrix
    soft_expected_shares   EM on soft answers (Saerens, Latinne and Decaestecker 2002)
    sample_shares          draws of the shares given the counts, the confusion matrix uncertain too

All assume prior shift: faces of one true cell look to the model as the test faces of that cell did.
A true cell is a band of age and a gender, band by band, female last: cell = 2 band + female.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agelens.errors import ArgumentError, MissingExtra

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

GENDER_CELLS: Final = 2
"""True genders of a cell: male, female."""

_SUM_WEIGHT: Final = 1e3
_TINY: Final = 1e-300


# --- the confusion matrix -------------------------------------------------------------------------


@dataclass(frozen=True)
class Priors:
    """What is assumed before the first face; the defaults were chosen by simulation on test faces.

    Attributes:
        bands: Dirichlet weight of each band of age: 1 holds all mixes for equally likely.
        confusion: Weight (in faces) with which the answers on one cell follow those on both genders
            of its band, as if age and gender were mistaken independently.
    """

    bands: float = 1.0
    confusion: float = 20.0


def smoothed_confusion(counts: Counts, weight: float) -> Floats:
    """Confusion counts with pseudo-faces, so that what was rare on few faces is not impossible.

    Args:
        counts: (B, 2, P, L) test faces by true band, gender, predicted band and predicted label.
        weight: Pseudo-faces added to each true cell.

    Returns:
        (2 B, P L) float64 over 0: Dirichlet weights of what is said of each true cell.

    Raises:
        ArgumentError: The shape is another, a count is negative, or a band has no face.
    """
    bands = _checked_counts(counts)
    ages = bands.sum(axis=(1, 3)) + 0.3 / bands.shape[2]
    ages /= ages.sum(axis=1, keepdims=True)
    overall = bands.sum(axis=(0, 2)) + 0.5
    overall /= overall.sum(axis=1, keepdims=True)
    labels = bands.sum(axis=2) + 5.0 * overall
    labels /= labels.sum(axis=2, keepdims=True)
    prior = weight * ages[:, None, :, None] * labels[:, :, None, :]
    return np.asarray((bands + prior).reshape(len(bands) * GENDER_CELLS, -1))


def _checked_counts(counts: Counts) -> Floats:
    values = np.asarray(counts, np.float64)
    if values.ndim != 4 or values.shape[1] != GENDER_CELLS:
        raise ArgumentError(
            "confusion counts must be (true bands, 2, predicted bands, labels), "
            f"got the shape {values.shape}"
        )
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise ArgumentError("confusion counts must be finite and not negative")
    empty = np.flatnonzero(values.sum(axis=(1, 2, 3)) == 0)
    if len(empty):
        raise ArgumentError(
            f"no test face lies in the age band number {empty[0]}: what the model says of it is "
            "not known; measure it on faces of all ages, or join the band to its neighbour"
        )
    return values


# --- point estimates ------------------------------------------------------------------------------


def adjusted_count(confusion: Floats, said: Counts) -> Floats:
    """Shares whose expected answers are nearest to the answers, by least squares on the simplex.

    Gart and Buck (1966) for two classes, Forman (2008) for the name; the constraint keeps shares
    from leaving 0..1 as the plain inverse does.

    Args:
        confusion: (K, C) P(said | true), rows sum to 1.
        said: (C,) visits by what the model said; one or more.

    Returns:
        (K,) shares, sum 1.

    Raises:
        MissingExtra: scipy is not installed.
    """
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise MissingExtra("eval", "the adjusted count") from error
    shares = said / said.sum()
    rows = np.vstack([confusion.T, np.full(len(confusion), _SUM_WEIGHT)])
    found, _ = nnls(rows, np.append(shares, _SUM_WEIGHT))
    return np.asarray(found / found.sum())


def expected_shares(confusion: Floats, said: Counts, *, rounds: int = 500) -> Floats:
    """Most likely shares given the answers, by expectation maximisation on the counts.

    Args:
        confusion: (K, C) P(said | true), rows sum to 1.
        said: (C,) visits by what the model said; one or more.
        rounds: Steps at most.

    Returns:
        (K,) shares, sum 1.
    """
    shares = np.full(len(confusion), 1 / len(confusion))
    for _ in range(rounds):
        joint = shares[:, None] * confusion
        found = (joint / np.maximum(joint.sum(axis=0), _TINY)) @ said
        found /= found.sum()
        if np.abs(found - shares).max() < 1e-7:
            break
        shares = found
    return np.asarray(shares)


def soft_expected_shares(answers: Floats, prior: Floats, *, rounds: int = 500) -> Floats:
    """Most likely shares given soft answers (Saerens, Latinne and Decaestecker 2002).

    Args:
        answers: (N, K) the model's probabilities of each cell, rows sum to 1; one row or more.
        prior: (K,) shares under which the answers are calibrated, all over 0.
        rounds: Steps at most.

    Returns:
        (K,) shares, sum 1.
    """
    ratios = answers / prior
    shares = np.asarray(prior, np.float64)
    for _ in range(rounds):
        joint = ratios * shares
        found = (joint / np.maximum(joint.sum(axis=1, keepdims=True), _TINY)).mean(axis=0)
        if np.abs(found - shares).max() < 1e-7:
            break
        shares = found
    return np.asarray(shares)


# --- draws ----------------------------------------------------------------------------------------

CHAINS: Final = 8
_GRID: Final = np.array(
    [
        (mean, weight)
        for weight in (2.0, 4.0, 8.0, 16.0, 32.0)
        for mean in (np.arange(40) + 0.5) / 40
    ]
)
"""Mean share of women over the bands, and how closely (in visitors) each band follows it."""


def sample_shares(
    counts: Counts,
    said: Counts,
    *,
    priors: Priors | None = None,
    draws: int = 1000,
    warm_up: int = 300,
    seed: int = 0,
) -> Floats:
    """Draws of the true shares given what was said: sampling and confusion both uncertain.

    Bayesian quantification (Ziegler and Czyz, "Bayesian quantification with black-box estimators",
    TMLR 2024): the answers to the test faces and to the visits are multinomial with the same
    unknown confusion matrix. Gibbs sampling: visits are dealt to true cells, then shares and
    confusion are drawn given the deal. The shares of women of the bands come from one beta
    distribution whose mean and spread are unknown too, so that a band with few visits leans on the
    others as far as the others agree.

    Args:
        counts: (B, 2, P, L) test faces, as for ``smoothed_confusion``.
        said: (P, L) visits by predicted band and label.
        priors: What is assumed before.
        draws: Kept from each of the ``CHAINS`` chains.
        warm_up: Steps of each chain before the first that is kept.
        seed: The same seed gives the same draws.

    Returns:
        (CHAINS draws, B, 2) float64: shares of the true cells, each draw sums to 1.

    Raises:
        ArgumentError: The shapes do not fit, or a band has no test face.
    """
    chosen = priors or Priors()
    weights = smoothed_confusion(counts, chosen.confusion)
    bands = len(weights) // GENDER_CELLS
    if np.shape(said) != np.shape(counts)[2:]:
        raise ArgumentError(
            f"visits were counted in {np.shape(said)} cells (bands, labels), and the confusion "
            f"matrix knows {np.shape(counts)[2:]}"
        )
    rng = np.random.default_rng(seed)
    visits = np.asarray(said, np.int64).ravel()
    used = visits > 0
    state = _Chains.begin(weights, visits, chosen, rng)
    kept = np.empty((draws, CHAINS, bands * GENDER_CELLS))
    for step in range(warm_up + draws):
        state.step(weights, visits, used)
        if step >= warm_up:
            kept[step - warm_up] = state.shares
    return kept.transpose(1, 0, 2).reshape(-1, bands, GENDER_CELLS)


class _Chains:
    """Gibbs chains that go on side by side."""

    def __init__(self, shares: Floats, confusion: Floats, priors: Priors, rng: np.random.Generator):
        self.shares = shares  # (chains, K)
        self.confusion = confusion  # (chains, K, C)
        self._women = np.tile([0.5, 4.0], (len(shares), 1))  # (chains, 2): mean, weight
        self._priors = priors
        self._rng = rng
        mean, weight = _GRID.T
        self._beta = np.stack([weight * mean, weight * (1 - mean)])
        self._log_beta = _log_gamma(self._beta).sum(axis=0) - _log_gamma(weight)

    @classmethod
    def begin(
        cls, weights: Floats, visits: Counts, priors: Priors, rng: np.random.Generator
    ) -> _Chains:
        """Chains begun near the most likely shares, each under a confusion drawn for it."""
        confusion = _dirichlet(np.broadcast_to(weights, (CHAINS, *weights.shape)), rng)
        if visits.sum() == 0:
            shares = rng.dirichlet(np.ones(len(weights)), CHAINS)
        else:
            found = [expected_shares(one, visits, rounds=100) for one in confusion]
            shares = (np.array(found) + 0.01) / (1 + 0.01 * len(weights))
        return cls(shares, confusion, priors, rng)

    def step(self, weights: Floats, visits: Counts, used: NDArray[np.bool_]) -> None:
        """Deal the visits to the true cells, then draw shares and confusion anew."""
        joint = self.shares[:, :, None] * self.confusion[:, :, used]
        joint = (joint / np.maximum(joint.sum(axis=1, keepdims=True), _TINY)).transpose(0, 2, 1)
        dealt = self._rng.multinomial(np.broadcast_to(visits[used], joint.shape[:2]), joint)
        self.shares = self._draw_shares(dealt.sum(axis=1))
        seen = np.broadcast_to(weights, self.confusion.shape).copy()
        seen[:, :, used] += dealt.transpose(0, 2, 1)
        self.confusion = _dirichlet(seen, self._rng)

    def _draw_shares(self, dealt: Counts) -> Floats:
        """Shares of the bands, then of the women in each, then what these have in common."""
        cells = dealt.reshape(len(dealt), -1, GENDER_CELLS)
        band = _dirichlet(self._priors.bands + cells.sum(axis=2), self._rng)
        mean, weight = self._women[:, :1], self._women[:, 1:]
        women = self._rng.beta(weight * mean + cells[..., 1], weight * (1 - mean) + cells[..., 0])
        women = np.clip(women, 1e-9, 1 - 1e-9)
        self._women = self._draw_common(women)
        return np.stack([band * (1 - women), band * women], axis=2).reshape(len(dealt), -1)

    def _draw_common(self, women: Floats) -> Floats:
        """Mean and weight of the shares of women, on the grid."""
        logs = np.stack([np.log(women).sum(axis=1), np.log1p(-women).sum(axis=1)], axis=1)
        likely = logs @ self._beta - women.shape[1] * self._log_beta
        upto = np.exp(likely - likely.max(axis=1, keepdims=True)).cumsum(axis=1)
        mark = self._rng.random(len(women))[:, None] * upto[:, -1:]
        return np.asarray(_GRID[(upto < mark).sum(axis=1)])


def _dirichlet(weights: Floats, rng: np.random.Generator) -> Floats:
    """One draw for each last axis."""
    # Gamma draws of tiny weights underflow to zero; a row of zeros would have no sum.
    drawn = np.maximum(rng.standard_gamma(weights), _TINY)
    return np.asarray(drawn / drawn.sum(axis=-1, keepdims=True))


_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


def worst_rhat(draws: Floats) -> float:
    """Largest split R-hat (Gelman et al., Bayesian Data Analysis, 3rd ed., 11.4) of the bands.

    Args:
        draws: What ``sample_shares`` returned.

    Returns:
        1 when the chains agree; over 1.05 they should have been longer.
    """
    bands = draws.sum(axis=2).reshape(2 * CHAINS, -1, draws.shape[1])
    length = bands.shape[1]
    within = bands.var(axis=1, ddof=1).mean(axis=0)
    between = length * bands.mean(axis=1).var(axis=0, ddof=1)
    total = (length - 1) / length * within + between / length
    return float(np.sqrt(total / np.maximum(within, _TINY)).max())
