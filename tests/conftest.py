"""What many tests share: the photographs, a loaded analyzer, and no models of the user's own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from agelens import Analyzer
from agelens.bundle import HOME_VARIABLE

# A busy machine is no failure: how long an example takes is the business of the benchmarks.
settings.register_profile("agelens", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("agelens")

# A shell ignores Ctrl-C in background jobs, and programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def faces() -> Path:
    """The folder of the public-domain photographs."""
    return Path(__file__).parent / "faces"


@pytest.fixture(scope="session")
def analyzer() -> Analyzer:
    """The default analyzer; it holds weights only, so that all tests may share it."""
    return Analyzer()


@pytest.fixture(autouse=True, scope="session")
def own_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty model registry, so that models on this computer change no result."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        yield home
