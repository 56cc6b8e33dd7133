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
    """What is assumed before the first face; the defaults were chosen on validation faces.

    Attributes:
        bands: Dirichlet weight of each band of age: 1 holds all mixes for equally likely.
        confusion: Weight (in faces) with which the answers on one cell follow those on both genders
            of its band, as if age and gender were mistaken independently. Much more would count the
            same faces twice, and make the intervals too short.
        ages: Weight (in faces) with which the ages said of a band are those of it and, ever less,
            of its neighbours.
        labels: Weight (in faces) with which the labels of a cell follow those of like bands.
        women: Standard deviation of the logit of the share of women among all visitors.
        spread: Scale of the standard deviation of that logit between the bands.
    """

    bands: float = 1.0
    confusion: float = 15.0
    ages: float = 6.0
    labels: float = 4.0
    women: float = 1.5
    spread: float = 0.7


def smoothed_confusion(counts: Counts, priors: Priors | None = None) -> Floats:
    """Confusion counts with pseudo-faces, so that what was rare on few faces is not impossible.

    Args:
        counts: (B, 2, P, L) test faces by true band, gender, predicted band and predicted label.
        priors: How many pseudo-faces.

    Returns:
        (2 B, P L) float64 over 0: Dirichlet weights of what is said of each true cell.

    Raises:
        ArgumentError: The shape is another, a count is negative, or a band has no face.
    """
    chosen = priors or Priors()
    bands = _checked_counts(counts)
    closeness = np.exp(-np.abs(np.subtract.outer(np.arange(len(bands)), np.arange(len(bands)))))
    unseen = closeness / closeness.sum(axis=1, keepdims=True)
    ages = bands.sum(axis=(1, 3)) + chosen.ages * unseen
    ages /= ages.sum(axis=1, keepdims=True)
    labels = bands.sum(axis=2)
    near = np.einsum("ij,jgl->igl", closeness, labels) + 0.5
    near /= near.sum(axis=2, keepdims=True)
    labels = labels + chosen.labels * near
    labels /= labels.sum(axis=2, keepdims=True)
    prior = chosen.confusion * ages[:, None, :, None] * labels[:, :, None, :]
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

CHAINS: Final = 16

_WARM_UP: Final = 60
_ENOUGH_VISITS: Final = 500
_ENOUGH_A_FACE: Final = 0.5
"""More visits for each test face are weighed as if they were no more: the confusion blurs what they
would add, the intervals get a little too wide, and the chains can move."""
_PATH: Final = 1.5
_STEPS: Final = (4, 14)
_ACCEPTED: Final = 0.75


def sample_shares(
    counts: Counts, said: Counts, *, priors: Priors | None = None, draws: int = 150, seed: int = 0
) -> Floats:
    """Draws of the true shares given what was said: sampling and confusion both uncertain.

    Bayesian quantification (Ziegler and Czyz, "Bayesian quantification with black-box estimators",
    TMLR 2024): the answers to the test faces and to the visits are multinomial with the same
    unknown confusion matrix. The logits of the share of women of the bands come from one normal
    distribution whose mean and spread are unknown too, so that a band with few visits leans on the
    others as far as the others agree. Shares and confusion are drawn together by Hamiltonian Monte
    Carlo (Neal, "MCMC using Hamiltonian dynamics", 2011) with the curvature of the posterior as the
    metric; dealing the visits to the true cells (Gibbs) hardly moves where they are many.

    Args:
        counts: (B, 2, P, L) test faces, as for ``smoothed_confusion``.
        said: (P, L) visits by predicted band and label.
        priors: What is assumed before.
        draws: Kept from each of the ``CHAINS`` chains.
        seed: The same seed gives the same draws.

    Returns:
        (CHAINS draws, B, 2) float64: shares of the true cells, each draw sums to 1; the draws of
        a chain follow each other.

    Raises:
        ArgumentError: The shapes do not fit, or a band has no test face.
    """
    return Chains(counts, said, priors=priors, seed=seed).draw(draws)


class Chains:
    """Markov chains over shares and confusion that go on side by side, and further when asked."""

    def __init__(
        self, counts: Counts, said: Counts, *, priors: Priors | None = None, seed: int = 0
    ) -> None:
        """Begin near the likeliest shares and warm up; see ``sample_shares``."""
        if np.shape(said) != np.shape(counts)[2:]:
            raise ArgumentError(
                f"visits were counted in {np.shape(said)} cells (bands, labels), and the confusion "
                f"matrix knows {np.shape(counts)[2:]}"
            )
        chosen = priors or Priors()
        weights = smoothed_confusion(counts, chosen)
        visits = np.asarray(said, np.float64).ravel()
        enough = max(_ENOUGH_VISITS, _ENOUGH_A_FACE * float(np.sum(counts)))
        self._posterior = _Posterior(
            weights, visits * min(1.0, enough / max(1.0, visits.sum())), chosen
        )
        self._rng = np.random.default_rng(seed)
        self._step = 0.25
        start = self._posterior.start()
        self._metric = _Metric(self._posterior, start)
        self._at = start + 0.5 * self._metric.velocity(self._metric.momenta(self._rng))
        self._density, self._slope = self._posterior.density(self._at)
        self._warm_up()

    def draw(self, count: int) -> Floats:
        """(CHAINS count, B, 2) further draws, those of a chain one after another."""
        kept = np.empty((count, CHAINS, self._posterior.bands, GENDER_CELLS))
        for place in range(count):
            self._move()
            kept[place] = self._posterior.shares(self._at)
        return kept.transpose(1, 0, 2, 3).reshape(-1, *kept.shape[2:])

    def _warm_up(self) -> None:
        """Find the length of a step, and where the curvature is to be taken."""
        half, later, step = _WARM_UP // 2, 3 * _WARM_UP // 4, math.log(self._step)
        places: list[Floats] = []
        for number in range(1, _WARM_UP + 1):
            accepted = self._move()
            since = number if number <= half else number - half
            step += 0.6 * (accepted - _ACCEPTED) / math.sqrt(1 + since / 5)
            step = min(max(step, -5.0), 0.7)
            self._step = math.exp(step)
            if number > _WARM_UP // 4:
                places.append(self._at.mean(axis=0))
            if number in (half, later):
                self._metric = _Metric(self._posterior, np.mean(places, axis=0))
                places = []

    def _move(self) -> float:
        """One trajectory of each chain; the mean probability that it was accepted."""
        metric, at, slope, density = self._metric, self._at, self._slope, self._density
        momenta = metric.momenta(self._rng)
        before = 0.5 * (momenta * metric.velocity(momenta)).sum(axis=1) - density
        step = self._step * self._rng.uniform(0.8, 1.2)
        count = int(np.clip(round(_PATH / self._step), *_STEPS))
        # A step too long overflows: it is refused below, and shortened in the warm-up.
        with np.errstate(over="ignore", invalid="ignore"):
            momenta = momenta + 0.5 * step * slope
            for number in range(count):
                at = at + step * metric.velocity(momenta)
                density, slope = self._posterior.density(at)
                momenta = momenta + (step if number < count - 1 else 0.5 * step) * slope
            after = 0.5 * (momenta * metric.velocity(momenta)).sum(axis=1) - density
            gain = np.nan_to_num(before - after, nan=-np.inf)
        accepted = np.exp(np.minimum(0.0, gain))
        taken = self._rng.random(CHAINS) < accepted
        self._at = np.where(taken[:, None], at, self._at)
        self._slope = np.where(taken[:, None], slope, self._slope)
        self._density = np.where(taken, density, self._density)
        return float(accepted.mean())


class _Posterior:
    """Density of shares and confusion in coordinates without bounds.

    A place is (D,): logs of gamma variables whose shares are those of the bands (B), standard
    normal deviations of the logits of women (B), their mean, the log of their spread, and logs of
    gamma variables whose shares are the rows of the confusion matrix (2 B C).
    """

    def __init__(self, weights: Floats, visits: Floats, priors: Priors) -> None:
        self.weights = weights
        self.visits = visits
        self.priors = priors
        self.bands = len(weights) // GENDER_CELLS
        self.size = 2 * self.bands + 2 + weights.size

    def start(self) -> Floats:
        """(D,) near the likeliest shares under the mean confusion."""
        confusion = self.weights / self.weights.sum(axis=1, keepdims=True)
        shares = np.full(len(confusion), 1 / len(confusion))
        for _ in range(200):
            joint = shares[:, None] * confusion
            shares = (joint / joint.sum(axis=0)) @ self.visits + 1.0
            shares /= shares.sum()
        cells = shares.reshape(-1, GENDER_CELLS)
        band, women = cells.sum(axis=1), cells[:, 1] / cells.sum(axis=1)
        mean = math.log(cells[:, 1].sum() / cells[:, 0].sum())
        apart = np.clip(2 * (np.log(women / (1 - women)) - mean), -2, 2)
        return np.concatenate(
            [
                np.log(band * self.bands * self.priors.bands),
                apart,
                [mean, math.log(0.5)],
                np.log(np.maximum(self.weights, 0.05)).ravel(),
            ]
        )

    def parts(self, at: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """(N, D) places cut into what they are made of."""
        b = self.bands
        confusion = at[:, 2 * b + 2 :].reshape(len(at), *self.weights.shape)
        return at[:, :b], at[:, b : 2 * b], at[:, 2 * b], at[:, 2 * b + 1], confusion

    def band_and_women(self, at: Floats) -> tuple[Floats, Floats]:
        """(N, B) shares of the bands, and of women in each."""
        band, apart, mean, spread, _ = self.parts(at)
        shares = np.exp(band - band.max(axis=1, keepdims=True))
        logits = mean[:, None] + np.exp(spread)[:, None] * apart
        return shares / shares.sum(axis=1, keepdims=True), 1 / (1 + np.exp(-logits))

    def shares(self, at: Floats) -> Floats:
        """(N, B, 2) shares of the true cells."""
        band, women = self.band_and_women(at)
        return np.stack([band * (1 - women), band * women], axis=2)

    def density(self, at: Floats) -> tuple[Floats, Floats]:
        """(N,) log density up to a constant, and (N, D) its slope."""
        log_band, apart, mean, log_spread, log_gamma = self.parts(at)
        spread = np.exp(log_spread)[:, None]
        band, women = self.band_and_women(at)
        cells = np.stack([band * (1 - women), band * women], axis=2).reshape(len(at), -1)
        gamma = np.exp(log_gamma)
        confusion = gamma / gamma.sum(axis=2, keepdims=True)
        said = np.maximum((cells[:, None, :] @ confusion)[:, 0], _TINY)
        ratio = self.visits / said
        gain = (confusion @ ratio[:, :, None])[:, :, 0]
        free = np.exp(log_band)
        chosen = self.priors
        density = (
            (self.visits * np.log(said)).sum(axis=1)
            + (self.weights * log_gamma - gamma).sum(axis=(1, 2))
            + (chosen.bands * log_band - free).sum(axis=1)
            - 0.5 * (apart**2).sum(axis=1)
            - 0.5 * (mean / chosen.women) ** 2
            - 0.5 * (spread[:, 0] / chosen.spread) ** 2
            + log_spread
        )
        b = self.bands
        men_gain, women_gain = gain[:, 0::2], gain[:, 1::2]
        of_band = men_gain * (1 - women) + women_gain * women
        of_logit = band * women * (1 - women) * (women_gain - men_gain)
        slope = np.empty_like(at)
        slope[:, :b] = band * (of_band - (band * of_band).sum(axis=1, keepdims=True))
        slope[:, :b] += chosen.bands - free
        slope[:, b : 2 * b] = spread * of_logit - apart
        slope[:, 2 * b] = of_logit.sum(axis=1) - mean / chosen.women**2
        slope[:, 2 * b + 1] = (spread * apart * of_logit).sum(axis=1)
        slope[:, 2 * b + 1] += 1 - (spread[:, 0] / chosen.spread) ** 2
        rows = cells[:, :, None] * confusion * (ratio[:, None, :] - gain[:, :, None])
        slope[:, 2 * b + 2 :] = (rows + self.weights - gamma).reshape(len(at), -1)
        return density, slope


class _Metric:
    """Curvature P + J' W J of the posterior at one place: the prior's and that of the visits.

    P is diagonal and J has few rows, so that nothing of the size (D, D) is ever made.
    """

    def __init__(self, posterior: _Posterior, place: Floats) -> None:
        b = posterior.bands
        _, apart, _, log_spread, log_gamma = posterior.parts(place[None])
        band, women = (one[0] for one in posterior.band_and_women(place[None]))
        spread = math.exp(float(log_spread[0]))
        confusion = np.exp(log_gamma[0])
        confusion /= confusion.sum(axis=1, keepdims=True)
        cells = posterior.shares(place[None]).ravel()
        said = cells @ confusion
        answers = len(said)
        visits = posterior.visits.sum()
        priors = posterior.priors
        self._prior = np.concatenate(
            [
                np.full(b, max(priors.bands, 0.3)),
                np.ones(b),
                [1 / priors.women**2, 1.0],
                np.maximum(posterior.weights, 0.3).ravel(),
            ]
        )
        of_band = confusion[0::2] * (1 - women)[:, None] + confusion[1::2] * women[:, None]
        of_logit = (band * women * (1 - women))[:, None] * (confusion[1::2] - confusion[0::2])
        jacobian = np.zeros((answers, posterior.size))
        jacobian[:, :b] = (band[:, None] * (of_band - said)).T
        jacobian[:, b : 2 * b] = spread * of_logit.T
        jacobian[:, 2 * b] = of_logit.sum(axis=0)
        jacobian[:, 2 * b + 1] = (spread * apart[0][:, None] * of_logit).sum(axis=0)
        rows = -confusion[:, :, None] * confusion[:, None, :]
        each = np.arange(answers)
        rows[:, each, each] += confusion
        rows *= cells[:, None, None]
        jacobian[:, 2 * b + 2 :] = rows.transpose(1, 0, 2).reshape(answers, -1)
        rate = visits / np.maximum(said, 0.5 / max(1.0, visits))
        self._root = jacobian * np.sqrt(rate)[:, None]
        self._scaled = self._root / self._prior
        inner = np.eye(answers) + self._scaled @ self._root.T
        self._inverse = np.linalg.solve(inner, self._scaled)

    def velocity(self, momenta: Floats) -> Floats:
        """(N, D) momenta times the inverse of the curvature (Woodbury)."""
        return np.asarray(momenta / self._prior - (momenta @ self._scaled.T) @ self._inverse)

    def momenta(self, rng: np.random.Generator) -> Floats:
        """(CHAINS, D) normal draws with the curvature as covariance."""
        own = rng.standard_normal((CHAINS, self._root.shape[1])) * np.sqrt(self._prior)
        return np.asarray(own + rng.standard_normal((CHAINS, len(self._root))) @ self._root)


def worst_rhat(draws: Floats) -> float:
    """Largest split R-hat (Gelman et al., Bayesian Data Analysis, 3rd ed., 11.4) of the bands.

    Args:
        draws: What ``sample_shares`` returned.

    Returns:
        1 when the chains agree; over 1.1 they should have been longer.
    """
    bands = draws.sum(axis=2).reshape(2 * CHAINS, -1, draws.shape[1])
    length = bands.shape[1]
    within = bands.var(axis=1, ddof=1).mean(axis=0)
    between = length * bands.mean(axis=1).var(axis=0, ddof=1)
    total = (length - 1) / length * within + between / length
    return float(np.sqrt(total / np.maximum(within, _TINY)).max())
