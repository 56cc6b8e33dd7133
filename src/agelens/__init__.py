"""
AgeLens: age and gender of faces as calibrated distributions, with reasons when it cannot tell.

    >>> import agelens
    >>> analysis = agelens.analyze("tests/faces/astronaut.jpg")
    >>> analysis.faces[0].gender.label
    'female'

Names are loaded at their first use, so that ``import agelens`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agelens.alignment import CropSpec
    from agelens.analyzer import Analyzer, AnalyzerOptions, analyze
    from agelens.bundle import Bundle, ModelCard, find_model, list_models
    from agelens.client import Client
    from agelens.detection import Detections, Detector, load_detector
    from agelens.drawing import annotate, blur_faces, plot_age
    from agelens.errors import AgeLensError, ImageError, ModelError, ServiceError
    from agelens.estimation import Estimator
    from agelens.images import ImageLimits, load_image
    from agelens.quality import QualityLimits
    from agelens.results import (
        AgeDistribution,
        AgeInterval,
        Analysis,
        Face,
        GenderEstimate,
        Quality,
        analysis_json_schema,
    )
    from agelens.sources import SourceItem, expand

__version__ = "0.1.0"

_HOMES = {
    "AgeDistribution": "results",
    "AgeInterval": "results",
    "AgeLensError": "errors",
    "Analysis": "results",
    "Analyzer": "analyzer",
    "AnalyzerOptions": "analyzer",
    "Bundle": "bundle",
    "Client": "client",
    "CropSpec": "alignment",
    "Detections": "detection",
    "Detector": "detection",
    "Estimator": "estimation",
    "Face": "results",
    "GenderEstimate": "results",
    "ImageError": "errors",
    "ImageLimits": "images",
    "ModelCard": "bundle",
    "ModelError": "errors",
    "Quality": "results",
    "QualityLimits": "quality",
    "ServiceError": "errors",
    "SourceItem": "sources",
    "analysis_json_schema": "results",
    "analyze": "analyzer",
    "annotate": "drawing",
    "blur_faces": "drawing",
    "expand": "sources",
    "find_model": "bundle",
    "list_models": "bundle",
    "load_detector": "detection",
    "load_image": "images",
    "plot_age": "drawing",
}

__all__ = [
    "AgeDistribution",
    "AgeInterval",
    "AgeLensError",
    "Analysis",
    "Analyzer",
    "AnalyzerOptions",
    "Bundle",
    "Client",
    "CropSpec",
    "Detections",
    "Detector",
    "Estimator",
    "Face",
    "GenderEstimate",
    "ImageError",
    "ImageLimits",
    "ModelCard",
    "ModelError",
    "Quality",
    "QualityLimits",
    "ServiceError",
    "SourceItem",
    "analysis_json_schema",
    "analyze",
    "annotate",
    "blur_faces",
    "expand",
    "find_model",
    "list_models",
    "load_detector",
    "load_image",
    "plot_age",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agelens' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"agelens.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
