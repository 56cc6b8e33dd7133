"""
Training: from prepared faces to a model file with its card.

    recipe        one TOML file, checked
    network       backbone and heads
    losses        what each head is asked for
    distillation  what other models say
    describing    what networks that know faces see in them
    prior         taking back how common a network holds each age
    loop          the run
    checkpoint    its weights, and what they are
    validation    how good they are
    journal       the run's folder
    export        checkpoint to ONNX and card

Names are loaded at their first use: only ``Recipe`` works without the ``train`` extra. The function
``export`` is in the module of that name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agelens.training.checkpoint import Checkpoint, load_checkpoint
    from agelens.training.loop import RunResult, train
    from agelens.training.recipe import Recipe, shipped_recipes
    from agelens.training.validation import evaluate_checkpoint, predict_checkpoint

_HOMES = {
    "Checkpoint": "checkpoint",
    "Recipe": "recipe",
    "RunResult": "loop",
    "evaluate_checkpoint": "validation",
    "load_checkpoint": "checkpoint",
    "predict_checkpoint": "validation",
    "shipped_recipes": "recipe",
    "train": "loop",
}

__all__ = [
    "Checkpoint",
    "Recipe",
    "RunResult",
    "evaluate_checkpoint",
    "load_checkpoint",
    "predict_checkpoint",
    "shipped_recipes",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
