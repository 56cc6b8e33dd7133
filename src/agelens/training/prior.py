"""
Taking back what a network has learned of how common ages are.

Trained where faces of twenty to forty are many and old ones are few, a network leans towards the
many wherever it doubts: the old come out too young, the young too old. Dividing its probabilities
by a power of how common it holds each age (logit adjustment: Menon et al. 2021, "Long-Tail Learning
via Logit Adjustment", ICLR) takes that back, at a little cost where the many are. It is one vector
added to the bias of the distribution head, so that the exported network is no larger or slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

try:
    import torch
    from torch import nn
except ImportError as error:
    from agelens.errors import MissingExtra

    raise MissingExtra("train", "training") from error

import numpy as np
from numpy.typing import NDArray

from agelens.data.loading import UNKNOWN, Labels, age_decades
from agelens.errors import ArgumentError
from agelens.results import AGE_COUNT
from agelens.training.network import AgeGenderNetwork

STRENGTHS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SMOOTHING_YEARS: Final = 4.0
_LEAST_SHARE: Final = 1e-5
_WIDEST_LABEL: Final = 10
_FEWEST_FACES: Final = 20
_OPEN_FROM: Final = 60
_OPEN_EXCESS: Final = 8.0
"""Years by which people are older than 70 on average, of those who are that or more.

About 78 by the age pyramid of the world (United Nations, World Population Prospects).
"""


def held_prior(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """How common a network holds each age: the mean of its answers, smoothed.

    Args:
        probabilities: (N, 101) of faces as they come.

    Returns:
        (101,), sums to 1.
    """
    ages = np.arange(AGE_COUNT)
    kernel = np.exp(-0.5 * ((ages[:, None] - ages) / _SMOOTHING_YEARS) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    prior = np.maximum(probabilities.mean(axis=0, dtype=np.float64) @ kernel, _LEAST_SHARE)
    normalised: NDArray[np.float64] = prior / prior.sum()
    return normalised


def adjusted(
    probabilities: NDArray[np.floating], prior: NDArray[np.float64], strength: float
) -> NDArray[np.float64]:
    """Probabilities divided by a power of the prior, anew summing to 1.

    Args:
        probabilities: (N, 101).
        prior: (101,), see ``held_prior``.
        strength: The power: 0 changes nothing, 1 takes the whole prior back.
    """
    divided = probabilities * prior**-strength
    result: NDArray[np.float64] = divided / divided.sum(axis=1, keepdims=True)
    return result


def fairest_strength(
    probabilities: NDArray[np.floating],
    labels: Labels,
    strengths: Sequence[float] = STRENGTHS,
) -> float:
    """The strength at which no decade of true ages comes out too old or too young.

    The least mean over the decades of how far the mean expected age lies from the mean of the
    labels' middles. Exact ages alone count where there are some. Without, a range of ten years or
    less has a middle, and an open one such as "70 and over" the mean age of the people in it, eight
    years over its start; both are guesses.

    Args:
        probabilities: (N, 101) of a split that was not learned from.
        labels: Of the same faces.
        strengths: To choose from.

    Raises:
        ArgumentError: No decade has twenty faces with such a label.
    """
    low, high = labels.low.astype(np.float64), labels.high.astype(np.float64)
    is_open = (low >= _OPEN_FROM) & (high == AGE_COUNT - 1) & (high > low)
    known = (labels.low != UNKNOWN) & ((high - low < _WIDEST_LABEL) | is_open)
    exact = known & (low == high)
    known = exact if exact.any() else known
    decades = np.where(known, age_decades(labels), UNKNOWN)
    groups = [
        rows
        for decade in np.unique(decades[known])
        if len(rows := np.flatnonzero(decades == decade)) >= _FEWEST_FACES
    ]
    if not groups:
        raise ArgumentError(
            f"no decade of ages has {_FEWEST_FACES} faces with a label of {_WIDEST_LABEL} years or "
            f"less, or open at the end; there are {int(known.sum())} such faces in all"
        )
    prior = held_prior(probabilities)
    # Completed years: who is 24 has lived half a year more on average, in label and answer alike.
    middle = np.where(is_open, low + _OPEN_EXCESS, (low + high) / 2)

    def unfairness(strength: float) -> float:
        mean = adjusted(probabilities, prior, strength) @ np.arange(AGE_COUNT)
        return float(np.mean([abs((mean[rows] - middle[rows]).mean()) for rows in groups]))

    return min(strengths, key=unfairness)


def take_back_prior(network: AgeGenderNetwork, prior: NDArray[np.float64], strength: float) -> None:
    """Change a network's distribution head so that its answers are ``adjusted`` ones.

    Args:
        network: Changed in place.
        prior: (101,), see ``held_prior``.
        strength: See ``adjusted``.

    Raises:
        ArgumentError: Its age is not that of a distribution head.
    """
    if network.heads_settings.age_output != "distribution":
        raise ArgumentError(
            f"the network's age comes from its {network.heads_settings.age_output} head; a prior "
            "can be taken back from a distribution head only"
        )
    head = cast("nn.Linear", network.heads["distribution"])
    with torch.no_grad():
        head.bias.sub_(strength * torch.from_numpy(np.log(prior)).to(head.bias))


__all__ = ["STRENGTHS", "adjusted", "fairest_strength", "held_prior", "take_back_prior"]
