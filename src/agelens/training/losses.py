"""
Losses: what each head is asked for, one number a face, and how the tasks are weighed.

Ages are labels ``low..high`` in completed years, both ends included and equal when the age is
exact. Every function here takes whole batches and gives one loss a face; which faces count, and
what they are divided by, is decided once, in ``Objectives``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    from agelens.errors import MissingExtra

    raise MissingExtra("train", "training") from error

from agelens.results import AGE_COUNT
from agelens.training.recipe import DistributionHead, HeadsPart, OrdinalHead, RegressionHead

_LARGEST_LOG_VARIANCE: Final = 12.0
_TINY: Final = 1e-30
_NO_FEATURES: Final = torch.empty(0, 0)
_NO_WEIGHT: Final = torch.empty(0)


class Targets(NamedTuple):
    """What is known of each face of a batch; what is not is masked.

    Attributes:
        low: (N,) int64 completed years, -1 without an age.
        high: (N,) int64, as ``low``; equal to it when the age is exact.
        std: (N,) float32 spread of the raters in years, NaN without one.
        female: (N,) int64 1 female, 0 male, -1 unknown.
        teacher_age: (N, 101) float32 of the teachers, or (N, 0) without any.
        teacher_female: (N,) float32 of the teachers, or (0,) without any; NaN where they have none.
        teacher_features: (N, D) float32 description of each face by another network, or (N, 0).
        weight: (N,) float32 factor of each face's losses, or (0,) when all count the same.
    """

    low: Tensor
    high: Tensor
    std: Tensor
    female: Tensor
    teacher_age: Tensor
    teacher_female: Tensor
    teacher_features: Tensor = _NO_FEATURES
    weight: Tensor = _NO_WEIGHT

    @property
    def has_age(self) -> Tensor:
        """(N,) bool."""
        return self.low >= 0

    @property
    def is_exact(self) -> Tensor:
        """(N,) bool."""
        return (self.low >= 0) & (self.low == self.high)


# --- one class an age -----------------------------------------------------------------------------


def expected_age(probabilities: Tensor) -> Tensor:
    """(N, 101) probabilities to (N,) years."""
    return probabilities @ ages_like(probabilities)


def gaussian_targets(age: Tensor, sigma: Tensor) -> Tensor:
    """Normal densities at the whole years, normalised over 0..100.

    Deep label distribution learning, Gao et al. 2017, "Deep Label Distribution Learning with Label
    Ambiguity", IEEE TIP, equation 1.

    Args:
        age: (N,) years.
        sigma: (N,) years, over 0.

    Returns:
        (N, 101).
    """
    distance = (ages_like(sigma) - age[:, None].to(sigma.dtype)) / sigma[:, None]
    return torch.softmax(-0.5 * distance**2, dim=1)


def label_sigma(age: Tensor, std: Tensor, head: DistributionHead) -> Tensor:
    """Width of each label distribution: the raters' spread, or growing with the age.

    Args:
        age: (N,) years.
        std: (N,) float, the raters' spread, NaN without one.
        head: Base, slope, and whether the raters count.

    Returns:
        (N,) years, 0.3 or more.
    """
    sigma = head.sigma_base + head.sigma_slope * age.to(std.dtype)
    if head.rater_spread:
        sigma = torch.where(torch.isfinite(std), std, sigma)
    return sigma.clamp(min=0.3)


def label_distribution(logits: Tensor, age: Tensor, sigma: Tensor) -> Tensor:
    """DLDL: Kullback-Leibler divergence from the label's normal distribution.

    Gao et al. 2017, "Deep Label Distribution Learning with Label Ambiguity", IEEE TIP.

    Args:
        logits: (N, 101).
        age: (N,) years.
        sigma: (N,) width of the label's distribution in years.
    """
    target = gaussian_targets(age, sigma.to(logits.dtype))
    return kl_divergence(target, F.log_softmax(logits, dim=1))


def label_distribution_v2(
    logits: Tensor, age: Tensor, sigma: Tensor, expectation_weight: float = 1.0
) -> Tensor:
    """DLDL-v2: DLDL plus the distance of the expected age.

    Gao et al. 2018, "Age Estimation Using Expectation of Label Distribution Learning", IJCAI.

    Args:
        logits: (N, 101).
        age: (N,) years.
        sigma: (N,) width of the label's distribution in years.
        expectation_weight: The paper's lambda.
    """
    expectation = expected_age(torch.softmax(logits, dim=1))
    distance = (expectation - age.to(logits.dtype)).abs()
    return label_distribution(logits, age, sigma) + expectation_weight * distance


def mean_variance(
    logits: Tensor, age: Tensor, mean_weight: float = 0.2, variance_weight: float = 0.05
) -> Tensor:
    """Cross-entropy plus half the squared error of the mean plus the variance.

    Pan et al. 2018, "Mean-Variance Loss for Deep Age Estimation from a Face", CVPR.

    Args:
        logits: (N, 101).
        age: (N,) int64 years.
        mean_weight: The paper's lambda 1.
        variance_weight: The paper's lambda 2.
    """
    probabilities = torch.softmax(logits, dim=1)
    mean = expected_age(probabilities)
    variance = (probabilities * (ages_like(logits) - mean[:, None]) ** 2).sum(dim=1)
    cross_entropy = F.cross_entropy(logits, age, reduction="none")
    squared = (mean - age.to(logits.dtype)) ** 2
    return cross_entropy + mean_weight * squared / 2 + variance_weight * variance


def censored(logits: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """-log of the probability of the label's interval.

    The likelihood of an interval-censored observation (Turnbull 1976, "The Empirical Distribution
    Function with Arbitrarily Grouped, Censored and Truncated Data", JRSS B). For an exact age it is
    the cross-entropy.

    Args:
        logits: (N, 101).
        low: (N,) int64 first age of the interval.
        high: (N,) int64 last age of the interval.
    """
    ages = torch.arange(AGE_COUNT, device=logits.device)
    inside = (ages >= low[:, None]) & (ages <= high[:, None])
    # Both sums in the log domain: a face far outside its interval still gets a gradient.
    within = torch.logsumexp(logits.masked_fill(~inside, -torch.inf), dim=1)
    return torch.logsumexp(logits, dim=1) - within


def roughness(logits: Tensor) -> Tensor:
    """Mean squared second difference of the log-probabilities; 0 when they form a straight line.

    Keeps the mass inside a censored interval from piling up at arbitrary ages (a discrete
    roughness penalty, Whittaker 1923).

    Args:
        logits: (N, 101).
    """
    return torch.diff(logits, n=2, dim=1).square().mean(dim=1)


# --- regression -----------------------------------------------------------------------------------


def absolute_error(mean: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Years from the label's interval, 0 inside; for an exact age the L1 loss.

    Args:
        mean: (N,) years.
        low: (N,) years.
        high: (N,) years.
    """
    return (low - mean).clamp(min=0) + (mean - high).clamp(min=0)


def huber(mean: Tensor, low: Tensor, high: Tensor, delta: float) -> Tensor:
    """Huber loss of the distance from the interval, in years (Huber 1964).

    Quadratic up to ``delta`` and divided by it, so that its slope is 1 beyond, as that of L1.

    Args:
        mean: (N,) years.
        low: (N,) years.
        high: (N,) years.
        delta: Years.
    """
    distance = absolute_error(mean, low, high)
    quadratic = distance.clamp(max=delta)
    return quadratic**2 / (2 * delta) + (distance - quadratic)


def normal_nll(mean: Tensor, log_variance: Tensor, age: Tensor) -> Tensor:
    """Heteroscedastic negative log-likelihood without its constant.

    Kendall and Gal 2017, "What Uncertainties Do We Need in Bayesian Deep Learning for Computer
    Vision?", NeurIPS, equation 8.

    Args:
        mean: (N,) years.
        log_variance: (N,) of years squared.
        age: (N,) years.
    """
    log_variance = _bounded(log_variance)
    return 0.5 * (torch.exp(-log_variance) * (age - mean) ** 2 + log_variance)


def censored_normal(mean: Tensor, log_variance: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """-log of a normal distribution's mass from half a year under ``low`` to half over ``high``.

    The Tobit likelihood of an interval (Tobin 1958; Amemiya 1973).

    Args:
        mean: (N,) years.
        log_variance: (N,) of years squared.
        low: (N,) years.
        high: (N,) years.
    """
    inverse = torch.exp(-0.5 * _bounded(log_variance))
    upper = (high + 0.5 - mean) * inverse
    lower = (low - 0.5 - mean) * inverse
    # By symmetry both bounds can be taken to the left tail, where log_ndtr keeps its digits.
    flip = lower > 0
    a = torch.where(flip, -upper, lower)
    b = torch.where(flip, -lower, upper)
    log_b = torch.special.log_ndtr(b)
    mass: Tensor = log_b + _log1mexp(torch.special.log_ndtr(a) - log_b)
    return -mass


# --- ranges ---------------------------------------------------------------------------------------


def ranges_cross_entropy(
    logits: Tensor, low: Tensor, high: Tensor, starts: Sequence[int]
) -> Tensor:
    """-log of the probability of the ranges that the label touches; cross-entropy when it is one.

    Args:
        logits: (N, K).
        low: (N,) int64 first age of the label.
        high: (N,) int64 last age of the label.
        starts: First age of each of the K ranges.
    """
    first = torch.tensor(starts, device=logits.device)
    last = torch.tensor([*(start - 1 for start in starts[1:]), AGE_COUNT], device=logits.device)
    touched = (last >= low[:, None]) & (first <= high[:, None])
    within = torch.logsumexp(logits.masked_fill(~touched, -torch.inf), dim=1)
    return torch.logsumexp(logits, dim=1) - within


# --- ordinal --------------------------------------------------------------------------------------


def coral(logits: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """CORAL: a binary cross-entropy for each threshold whose side is known.

    Cao et al. 2020, "Rank Consistent Ordinal Regression for Neural Networks with Application to
    Age Estimation", Pattern Recognition Letters. An interval says nothing of the thresholds inside.

    Args:
        logits: (N, 100) of P(age > k).
        low: (N,) int64 first age of the label.
        high: (N,) int64 last age of the label.
    """
    thresholds = torch.arange(AGE_COUNT - 1, device=logits.device)
    over = thresholds < low[:, None]
    under = thresholds >= high[:, None]
    terms = torch.where(over, F.logsigmoid(logits), F.logsigmoid(-logits))
    return -(terms * (over | under)).sum(dim=1)


def corn(logits: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """CORN: the likelihood of conditional steps P(age > k | age >= k).

    Shi et al. 2023, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based on
    Conditional Probabilities", Pattern Analysis and Applications. One sum a face, where the paper
    divides a batch by its number of steps. An interval is passed to ``low`` and left by ``high``.

    Args:
        logits: (N, 100) of the conditional steps.
        low: (N,) int64 first age of the label.
        high: (N,) int64 last age of the label.
    """
    thresholds = torch.arange(AGE_COUNT - 1, device=logits.device)
    steps = F.logsigmoid(logits)
    passed = (steps * (thresholds < low[:, None])).sum(dim=1)
    inside = (thresholds >= low[:, None]) & (thresholds <= high[:, None])
    staying = (steps * inside).sum(dim=1)
    # Nobody leaves the last age, so an interval that reaches it ends with certainty.
    ends = high < AGE_COUNT - 1
    leaving = torch.where(ends, _log1mexp(torch.where(ends, staying, staying.new_tensor(-1.0))), 0)
    return -(passed + leaving)


# --- gender and teachers --------------------------------------------------------------------------


def gender_cross_entropy(logit: Tensor, female: Tensor, smoothing: float) -> Tensor:
    """Binary cross-entropy with label smoothing (Szegedy et al. 2016, CVPR).

    Args:
        logit: (N,) of female.
        female: (N,) 0 or 1.
        smoothing: Share of the label that is spread evenly over both.
    """
    target = female.to(logit.dtype) * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logit, target, reduction="none")


def distillation(log_probabilities: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teachers' softened distribution, times T squared.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network".

    Args:
        log_probabilities: (N, 101) of the student.
        teacher: (N, 101) probabilities.
        temperature: The paper's T.
    """
    softened = torch.softmax(teacher.clamp(min=1e-8).log() / temperature, dim=1)
    student = F.log_softmax(log_probabilities / temperature, dim=1)
    return temperature**2 * kl_divergence(softened, student)


def feature_distance(features: Tensor, wanted: Tensor) -> Tensor:
    """1 - cosine of the angle between the student's and the teacher's description of a face.

    A hint in the sense of Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", ICLR; only the
    direction counts, since the length of such a vector tells more of the picture than of the face.

    Args:
        features: (N, D) of the student.
        wanted: (N, D) of the teacher.
    """
    return 1 - F.cosine_similarity(features, wanted, dim=1)


def kl_divergence(target: Tensor, log_probabilities: Tensor) -> Tensor:
    """KL(target || prediction) of each row."""
    return (torch.xlogy(target, target) - target * log_probabilities).sum(dim=1)


# --- all tasks together ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskSum:
    """A task's losses over a batch.

    Attributes:
        total: () sum over the faces that have the label.
        count: Number of those faces, as a float.
    """

    total: Tensor
    count: Tensor


class UncertaintyWeights(nn.Module):
    """Learned weights by homoscedastic uncertainty.

    Kendall et al. 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
    and Semantics", CVPR. With s the log-variance of a task, a likelihood counts exp(-s) L + s / 2
    and an absolute error (a Laplace distribution) exp(-s) L + s.

    Attributes:
        log_variances: (T,) one a task, in the order of ``tasks``.
    """

    def __init__(self, tasks: Sequence[str], absolute: Sequence[str], limit: float) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.limit = limit
        self._price = [1.0 if task in absolute else 0.5 for task in tasks]
        self.log_variances = nn.Parameter(torch.zeros(len(self.tasks)))

    def forward(self, losses: Tensor, factors: Tensor, share: float = 1.0) -> Tensor:
        """Weigh the losses of a step and add what the uncertainty costs.

        Args:
            losses: (T,) mean loss of each task.
            factors: (T,) fixed factor of each task; 0 for one without labels in this step, whose
                weight then rests.
            share: Share of the step that this call is, when it is one of several.

        Returns:
            () weighted sum.
        """
        s = self.log_variances
        price = s.new_tensor(self._price) * s * share
        return (factors * (torch.exp(-s) * losses + price)).sum()

    @torch.no_grad()
    def settle(self, losses: Tensor, present: Tensor) -> None:
        """Start where the weighted sum is lowest for these losses.

        From zero the log-variances would need thousands of steps to get there, and a task whose
        loss is a fraction of another's would wait all that time.

        Args:
            losses: (T,) mean loss of each task in the first step.
            present: (T,) 1 for a task with labels in it, else 0.
        """
        lowest = torch.log(losses.clamp(min=1e-3) / losses.new_tensor(self._price))
        self.log_variances.copy_(torch.where(present > 0, lowest, 0))
        self.clamp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring the log-variances back within their limit; to be called after each step."""
        self.log_variances.clamp_(-self.limit, self.limit)


class Objectives:
    """The tasks of a recipe: from a network's outputs and the labels to one sum a task.

    Holds settings only.

    Attributes:
        tasks: Names: the kinds of the age heads, ``spread`` of a regression whose loss is not a
            likelihood, ``gender``, ``distillation_age`` and ``distillation_gender`` when there
            are teachers, and ``distillation_features`` when there is a describer.
        absolute: Those whose loss is an absolute error in years.
        weights: Fixed factor of each task.
    """

    def __init__(
        self,
        heads: HeadsPart,
        *,
        interval_weight: float = 1.0,
        distillation_weight: float = 0.0,
        subjects: Sequence[str] = ("age", "gender"),
        features_weight: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        self._heads = heads
        self._interval_weight = interval_weight
        self._temperature = temperature
        weights: dict[str, float] = {k: float(getattr(heads, k).weight) for k in heads.ages}
        regression = heads.regression
        fits_mean_only = regression is not None and regression.loss != "nll"
        if fits_mean_only:
            weights["spread"] = 1.0
        if heads.gender is not None:
            weights["gender"] = heads.gender.weight
        if distillation_weight > 0 and "age" in subjects:
            weights["distillation_age"] = distillation_weight
        if distillation_weight > 0 and "gender" in subjects and heads.gender is not None:
            weights["distillation_gender"] = distillation_weight
        if features_weight > 0:
            weights["distillation_features"] = features_weight
        self.weights = weights
        self.tasks = tuple(weights)
        self.absolute = ("regression",) if fits_mean_only else ()

    def counts(self, targets: Targets) -> Tensor:
        """(T,) float, faces of a batch that have each task's label."""
        known = {
            "gender": targets.female >= 0,
            "distillation_age": torch.full_like(targets.has_age, targets.teacher_age.shape[1] > 0),
            "distillation_gender": torch.isfinite(targets.teacher_female),
            "distillation_features": torch.ones_like(targets.has_age),
        }
        counts = [known.get(task, targets.has_age).sum() for task in self.tasks]
        return torch.stack(counts).to(torch.float32)

    def sums(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, TaskSum]:
        """Sum each task's losses over the faces that have its label.

        Args:
            outputs: Of the network: a kind of age head or ``gender`` to its raw output; the key
                ``log_probabilities`` (N, 101) of the exported age when there are teachers, and
                ``features`` (N, D) when there is a describer.
            targets: Labels.
        """
        counts = dict(zip(self.tasks, self.counts(targets), strict=True))
        losses: dict[str, Tensor] = {
            kind: self._age_loss(kind, outputs[kind], targets) for kind in self._heads.ages
        }
        if "spread" in self.tasks:
            losses["spread"] = self._age_loss("spread", outputs["regression"], targets)
        if self._heads.gender is not None:
            logit = outputs["gender"][:, 0]
            smoothing = self._heads.gender.label_smoothing
            known = targets.female >= 0
            loss = gender_cross_entropy(logit, targets.female.clamp(min=0), smoothing)
            losses["gender"] = torch.where(known, loss, 0)
        if "distillation_age" in self.tasks:
            losses["distillation_age"] = distillation(
                outputs["log_probabilities"], targets.teacher_age, self._temperature
            )
        if "distillation_gender" in self.tasks:
            known = torch.isfinite(targets.teacher_female)
            wanted = torch.where(known, targets.teacher_female, 0.5)
            loss = gender_cross_entropy(outputs["gender"][:, 0], wanted, smoothing=0.0)
            losses["distillation_gender"] = torch.where(known, loss, 0)
        if "distillation_features" in self.tasks:
            losses["distillation_features"] = feature_distance(
                outputs["features"], targets.teacher_features
            )
        if len(targets.weight):
            losses = {task: loss * targets.weight for task, loss in losses.items()}
        return {task: TaskSum(losses[task].sum(), counts[task]) for task in self.tasks}

    def _age_loss(self, kind: str, output: Tensor, targets: Targets) -> Tensor:
        # Masked rows get a harmless label first: a NaN would survive being multiplied by 0.
        low = torch.where(targets.has_age, targets.low, 0)
        high = torch.where(targets.has_age, targets.high, AGE_COUNT - 1)
        if kind == "distribution":
            exact, interval = self._distribution(output, low, high, targets.std)
        elif kind == "regression":
            exact, interval = self._regression(output, low, high)
        elif kind == "spread":
            # The mean is held fixed here, so that the spread learns without moving it.
            exact, interval = _normal_losses(output[:, 0].detach(), output[:, 1], low, high)
        elif kind == "ranges":
            assert self._heads.ranges is not None
            exact = interval = ranges_cross_entropy(output, low, high, self._heads.ranges.starts)
        else:
            assert isinstance(self._heads.ordinal, OrdinalHead)
            loss = coral if self._heads.ordinal.loss == "coral" else corn
            exact = interval = loss(output, low, high)
        chosen = torch.where(targets.is_exact, exact, self._interval_weight * interval)
        return torch.where(targets.has_age, chosen, 0)

    def _distribution(
        self, logits: Tensor, low: Tensor, high: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor]:
        head = self._heads.distribution
        assert isinstance(head, DistributionHead)
        interval = censored(logits, low, high) + head.smoothness * roughness(logits)
        if head.loss == "cross_entropy":
            return censored(logits, low, low), interval
        if head.loss == "mean_variance":
            exact = mean_variance(logits, low, head.mean_weight, head.variance_weight)
            return exact, interval
        sigma = label_sigma(low, std, head)
        if head.loss == "dldl":
            return label_distribution(logits, low, sigma), interval
        return label_distribution_v2(logits, low, sigma, head.expectation_weight), interval

    def _regression(self, output: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        head = self._heads.regression
        assert isinstance(head, RegressionHead)
        mean = output[:, 0]
        if head.loss == "nll":
            return _normal_losses(mean, output[:, 1], low, high)
        if head.loss == "huber":
            distance = huber(mean, low, high, head.huber_delta)
        else:
            distance = absolute_error(mean, low, high)
        return distance, distance


# --- numbers --------------------------------------------------------------------------------------


def ages_like(values: Tensor) -> Tensor:
    """(101,) the ages, of the dtype and on the device of ``values``."""
    return torch.arange(AGE_COUNT, dtype=values.dtype, device=values.device)


def _normal_losses(
    mean: Tensor, log_variance: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    exact = normal_nll(mean, log_variance, low)
    return exact, censored_normal(mean, log_variance, low, high)


def _bounded(log_variance: Tensor) -> Tensor:
    return log_variance.clamp(-_LARGEST_LOG_VARIANCE, _LARGEST_LOG_VARIANCE)


def _log1mexp(value: Tensor) -> Tensor:
    # log(1 - exp(value)) for value < 0 (Maechler 2012); each branch is fed only what it can take,
    # because the gradient of the one not taken is computed too.
    near = value > -math.log(2)
    close = torch.where(near, value, -1.0).clamp(max=-_TINY)
    far = torch.where(near, -1.0, value)
    return torch.where(near, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))


__all__ = [
    "Objectives",
    "Targets",
    "TaskSum",
    "UncertaintyWeights",
    "absolute_error",
    "censored",
    "censored_normal",
    "coral",
    "corn",
    "distillation",
    "expected_age",
    "feature_distance",
    "gaussian_targets",
    "gender_cross_entropy",
    "huber",
    "kl_divergence",
    "label_distribution",
    "label_distribution_v2",
    "label_sigma",
    "mean_variance",
    "normal_nll",
    "ranges_cross_entropy",
    "roughness",
]
