"""Running ``agelens`` as a user does, in this process or in one of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest

from agelens.cli import main

Argument = str | os.PathLike[str]

_TERMINAL_VARIABLES = (
    "CLICOLOR_FORCE",
    "FORCE_COLOR",
    "GITHUB_ACTIONS",
    "PY_COLORS",
    "TERMINAL_WIDTH",
)


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines; anything else on it is an error."""
        return [json.loads(line) for line in self.out.splitlines()]


def agelens(*arguments: Argument, columns: int = 100) -> Outcome:
    """Run ``agelens ARGUMENTS`` in this process, output to no terminal."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in _TERMINAL_VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "argv", ["agelens", *(os.fspath(item) for item in arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    status = ended.value.code
    assert isinstance(status, int | None)
    return Outcome(status or 0, out.getvalue(), err.getvalue())


def command(*arguments: Argument) -> list[str]:
    """The command for a process of its own."""
    return [sys.executable, "-m", "agelens", *(os.fspath(item) for item in arguments)]


def agelens_apart(*arguments: Argument, timeout_s: float = 60) -> Outcome:
    """Run ``python -m agelens ARGUMENTS`` in a process of its own."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
