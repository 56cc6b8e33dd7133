"""
One camera in a process of its own: started, heard, and started again when it dies.

What a camera hands over comes through a pipe, and is written by the process that started it. The
death of either closes the pipe, so that the other learns of it at once, whatever the reason.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from agelens.analytics.camera_run import Batch, CameraRun, CameraStatus, CameraTask
from agelens.analyzer import Analyzer, AnalyzerOptions
from agelens.errors import StoreError
from agelens.video.camera import Moment

_STATUS_S: Final = 0.5
_SNAPSHOT_S: Final = 2.0
_END_S: Final = 10.0
"""Time that a process has to end after it was asked to."""
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_HEALTHY_S: Final = 60.0
"""Time after which a process that dies is not held for one that cannot live."""
_MOST_DEATHS: Final = 5
"""Deaths of one file without a new position, after which it is given up."""


class CameraProcess:
    """As ``CameraRun``, in a process of its own.

    Attributes:
        task: What it has to do.
    """

    def __init__(
        self,
        task: CameraTask,
        options: AnalyzerOptions,
        *,
        keep: Callable[[Batch], None],
        see: Callable[[Moment], None] | None = None,
    ) -> None:
        """Prepare a run; see ``CameraRun``."""
        self.task = task
        self._options = options
        self._keep, self._see = keep, see
        self._stopping = threading.Event()
        self._status = task.first_status()
        self._restarts = 0
        self._deaths = 0
        self._has_ended = False
        self._connection: Connection | None = None
        self._sending = threading.Lock()
        self._pictures = threading.Condition()
        self._picture: tuple[int, bytes | None] = (0, None)
        self._positions = dict(task.positions)

    def run(self) -> None:
        """Watch; returns when the source has ended, failed, or ``stop`` was called."""
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began_s = time.monotonic()
            process = self._start()
            try:
                self._listen()
            except StoreError as error:
                self._tell(state="failed", people=0, message=str(error))
                return
            finally:
                code = _ended(process)
            if self._has_ended or self._stopping.is_set():
                break
            self._deaths += 1
            if time.monotonic() - began_s >= _HEALTHY_S:
                pause_s, self._deaths = _FIRST_PAUSE_S, 1
            if self._deaths >= _MOST_DEATHS and not self._status.is_live:
                self._tell(
                    state="failed",
                    people=0,
                    message=f"its process died {self._deaths} times ({_cause(code)})",
                )
                return
            self._restarts += 1
            self._tell(
                state="down",
                people=0,
                restarts=self._restarts,
                message=f"its process died ({_cause(code)}); it is started again",
            )
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if not self._has_ended:
            self._tell(state="stopped", people=0)

    def stop(self) -> None:
        """End the run soon; from any thread, more than once."""
        self._stopping.set()
        self._send("stop")

    def tick(self) -> None:
        """Nothing: the process looks after its camera itself."""

    def status(self) -> CameraStatus:
        """How it did half a second ago at most; from any thread."""
        return self._status

    def snapshot(self) -> bytes | None:
        """The newest picture as JPEG, from the process's memory; None before the first."""
        with self._pictures:
            asked = self._picture[0]
            if not self._send("snapshot"):
                return None
            self._pictures.wait_for(lambda: self._picture[0] > asked, _SNAPSHOT_S)
            number, picture = self._picture
            self._picture = (number, None)
            return picture if number > asked else None

    # --- hearing ----------------------------------------------------------------------------------

    def _start(self) -> SpawnProcess:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        task = replace(self.task, positions=dict(self._positions))
        process = context.Process(
            target=watch_camera,
            args=(theirs, task, self._options, self._see is not None),
            name=f"agelens camera {self.task.plan.name}",
            daemon=True,
        )
        process.start()
        theirs.close()
        with self._sending:
            self._connection = ours
        if self._stopping.is_set():
            self._send("stop")
        return process

    def _listen(self) -> None:
        """Take what the process says until it says no more."""
        connection = self._connection
        assert connection is not None  # it was started a moment ago
        try:
            while True:
                try:
                    what, value = connection.recv()
                except (EOFError, OSError):
                    return
                self._hear(what, value)
        finally:
            with self._sending:
                connection.close()
                self._connection = None

    def _hear(self, what: str, value: Any) -> None:
        if what == "batch":
            self._keep(value)
            if value.position is not None:
                # One that dies goes on at its newest place, on disk or not: nothing before is lost.
                self._positions[value.position.epoch] = value.position
                self._deaths = 0
        elif what == "moment" and self._see is not None:
            self._see(value)
        elif what == "status":
            self._status = replace(value, restarts=self._restarts)
        elif what == "snapshot":
            with self._pictures:
                self._picture = (self._picture[0] + 1, value)
                self._pictures.notify_all()
        elif what == "end":
            self._has_ended = True

    def _send(self, what: str) -> bool:
        with self._sending:
            if self._connection is None:
                return False
            with contextlib.suppress(OSError):
                self._connection.send(what)
                return True
        return False

    def _tell(self, **changes: Any) -> None:
        self._status = replace(self._status, **changes)


def _ended(process: SpawnProcess) -> int | None:
    """The exit status of a process that has no more to say."""
    process.join(_END_S)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit status {code}"


# --- in the process -------------------------------------------------------------------------------


def watch_camera(
    connection: Connection, task: CameraTask, options: AnalyzerOptions, wants_moments: bool
) -> None:
    """Run one camera and tell all of it to the other end of a pipe."""
    # A terminal and a service manager signal the whole group; the parent ends its cameras itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sending = threading.Lock()

    def send(what: str, value: Any = None) -> None:
        with sending:
            connection.send((what, value))

    run = CameraRun(
        task,
        lambda: Analyzer(options),
        keep=lambda batch: send("batch", batch),
        see=(lambda moment: send("moment", moment)) if wants_moments else None,
    )
    for target in (_obey, _report):
        threading.Thread(target=target, args=(connection, run, send), daemon=True).start()
    run.run()
    with contextlib.suppress(OSError):
        send("status", run.status())
        send("end")


def _obey(connection: Connection, run: CameraRun, send: Callable[..., None]) -> None:
    while True:
        try:
            what = connection.recv()
        except (EOFError, OSError):
            # Nobody is left who could store anything.
            os._exit(1)
        if what == "stop":
            run.stop()
        elif what == "snapshot":
            send("snapshot", run.snapshot())


def _report(connection: Connection, run: CameraRun, send: Callable[..., None]) -> None:
    ticked_s = 0.0
    while True:
        with contextlib.suppress(OSError):
            send("status", run.status())
            if time.monotonic() - ticked_s >= 1:
                run.tick()
                ticked_s = time.monotonic()
        time.sleep(_STATUS_S)


__all__ = ["CameraProcess", "watch_camera"]
