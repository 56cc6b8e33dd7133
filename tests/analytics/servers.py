"""A PostgreSQL server of the tests' own, in a temporary folder: started, stopped and crashed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_USER = "postgres"


def _programs() -> Path | None:
    """Folder of initdb and pg_ctl."""
    found = shutil.which("pg_ctl")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return versions[-1].parent if versions else None


class PostgresServer:
    """A server that listens on a socket in its folder only."""

    def __init__(self) -> None:
        pytest.importorskip("psycopg")
        programs = _programs()
        if programs is None:
            pytest.skip("no PostgreSQL server is installed")
        self._programs = programs
        self._prefix: list[str] = []
        # pytest's own folders can be entered by their owner only.
        self.folder = Path(tempfile.mkdtemp(prefix="agelens-pg-"))
        if os.geteuid() == 0:
            if shutil.which("runuser") is None:
                pytest.skip("PostgreSQL does not run as root, and there is no runuser")
            try:
                shutil.chown(self.folder, _USER, _USER)
            except LookupError:
                pytest.skip(f"PostgreSQL does not run as root, and there is no user {_USER}")
            self._prefix = ["runuser", "-u", _USER, "--"]
        self._run("initdb", "-D", self.data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{_USER}@/{database}?host={self.folder}"

    def start(self) -> None:
        # A process that dies loses nothing without fsync; only a machine that does would.
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync=off"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", self.data, "-o", options, "-l", log, "-w", "-t", "120", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; "immediate" is a crash."""
        self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def remove(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def empty(self) -> str:
        """A database without tables, always the same one, which is much faster; its URL."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return self.url()

    def create(self, name: str) -> str:
        """A new database; its URL."""
        self._run("createdb", "-h", str(self.folder), "-U", _USER, name)
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._prefix, str(self._programs / program), *arguments],
            check=True,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=180,
        )
