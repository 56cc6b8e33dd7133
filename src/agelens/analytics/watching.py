"""
The cameras of a site, watched: a thread or a process for each, and one writer of the store.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from agelens.analytics.camera_process import CameraProcess
from agelens.analytics.camera_run import Batch, CameraRun, CameraStatus, CameraTask
from agelens.analytics.records import Site
from agelens.analytics.store import Store
from agelens.analytics.store_writer import StoreWriter
from agelens.analytics.suppression import DEFAULT_MINIMUM
from agelens.analyzer import Analyzer, AnalyzerOptions
from agelens.video.camera import Moment
from agelens.video.plan import CameraPlan, WatchPlan, system_timezone
from agelens.video.source import open_source

_TICK_S: Final = 1.0
_JOIN_S: Final = 15.0
"""Time that the cameras have to end after they were asked to."""


class _Runner(Protocol):
    """A camera's run, here or in a process of its own."""

    task: CameraTask

    def run(self) -> None: ...
    def stop(self) -> None: ...
    def tick(self) -> None: ...
    def status(self) -> CameraStatus: ...
    def snapshot(self) -> bytes | None: ...


class Watch:
    """Runs the cameras of a plan, and writes what they see to one store.

    Example:
        with open_store("visits.sqlite") as store:
            Watch(plan, store=store).run()

    Attributes:
        plan: What is watched.
        site: The place, with its time zone.
    """

    def __init__(
        self,
        plan: WatchPlan,
        *,
        store: Store,
        on_moment: Callable[[Moment], None] | None = None,
        processes: bool = False,
        again: bool = False,
        spool: Path | None = None,
    ) -> None:
        """Load the model and look up where files can be gone on with.

        Args:
            plan: What to watch.
            store: Open for writing; this process is its only writer where it is a file.
            on_moment: Told who is in view, from the cameras' threads; must not wait.
            processes: A process for each camera; otherwise a thread.
            again: Count files anew that were counted before: their visits are deleted first.
            spool: File where visits wait while a PostgreSQL server is away; None: in the working
                folder, named after the site, the cameras and the server.

        Raises:
            ArgumentError: There is no such time zone.
            StoreError: The store cannot be read or written.
            ModelError: The model or the detector cannot be used.
        """
        self.plan = plan
        self._store = store
        self._stopping = threading.Event()
        # Set when there is something to look at before the next tick: a camera's end, or the stop.
        self._news = threading.Event()
        self._over: list[_Runner] = []
        self.site = _noted_site(plan, store)
        self._writer = StoreWriter(
            store,
            spool=spool or spool_path(plan, store),
            retention_days=plan.retention_days,
            minimum=plan.minimum or DEFAULT_MINIMUM,
            zone=self.site.zone,
        )
        options = AnalyzerOptions(
            model=plan.model,
            detector=plan.detector,
            gender=plan.gender,
            accept_licence=plan.accept_licence,
        )
        self.analyzer = Analyzer(options)
        if again:
            for camera in plan.cameras:
                self._forget(camera)
        self._runners = [
            self._runner(camera, on_moment, processes=processes) for camera in plan.cameras
        ]

    def _forget(self, camera: CameraPlan) -> None:
        with open_source(camera.source, options=camera.options) as source:
            if not source.is_live:
                self._store.forget(self.site.name, camera.name, source.epoch)

    def _runner(
        self, camera: CameraPlan, see: Callable[[Moment], None] | None, *, processes: bool
    ) -> _Runner:
        positions = {
            one.epoch: one
            for one in self._store.positions()
            if (one.site, one.camera) == (self.site.name, camera.name)
        }
        task = CameraTask(camera, self.site.name, self.plan.staff, positions)
        keep = self._keep
        if processes:
            return CameraProcess(task, self.analyzer.options, keep=keep, see=see)
        return CameraRun(task, lambda: self.analyzer, keep=keep, see=see)

    def _keep(self, batch: Batch) -> None:
        self._writer.submit(batch)

    # --- running ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Watch until all sources have ended, or ``stop`` is called; everything is stored then.

        Raises:
            StoreError: The store takes nothing more; what it has acknowledged is kept.
        """
        with self._writer as writer:
            threads = [
                threading.Thread(
                    target=self._run_one, args=(one,), name=one.task.plan.name, daemon=True
                )
                for one in self._runners
            ]
            for thread in threads:
                thread.start()
            try:
                while len(self._over) < len(threads):
                    self._news.wait(_TICK_S)
                    self._news.clear()
                    if self._stopping.is_set() or writer.error is not None:
                        break
                    for one in self._runners:
                        one.tick()
            finally:
                for one in self._runners:
                    one.stop()
                for thread in threads:
                    thread.join(_JOIN_S)
            # What waits for a server is not stored yet; who cannot wait stops the run.
            while not self._stopping.is_set() and not writer.settled(_TICK_S):
                pass
        if writer.error is not None:
            raise writer.error

    def _run_one(self, runner: _Runner) -> None:
        try:
            runner.run()
        finally:
            self._over.append(runner)
            self._news.set()

    def stop(self) -> None:
        """End the run soon; from any thread or a signal handler, more than once."""
        self._stopping.set()
        self._news.set()

    # --- what is going on -------------------------------------------------------------------------

    def statuses(self) -> tuple[CameraStatus, ...]:
        """How each camera does now; from any thread."""
        return tuple(one.status() for one in self._runners)

    def snapshot(self, camera: str) -> bytes | None:
        """The newest picture of a camera as JPEG, from memory; None when there is none."""
        for one in self._runners:
            if one.task.plan.name == camera:
                return one.snapshot()
        return None

    @property
    def message(self) -> str:
        """What is the matter with the store; empty when nothing is."""
        return self._writer.message

    @property
    def expired(self) -> int:
        """Visits that were not stored, because they are older than retention keeps."""
        return self._writer.expired


def _noted_site(plan: WatchPlan, store: Store) -> Site:
    """The site as the store knows it, with what the plan says of it."""
    known = next((one for one in store.sites() if one.name == plan.site), None)
    site = known or Site(plan.site, plan.timezone or system_timezone())
    if plan.timezone is not None:
        site = replace(site, timezone=plan.timezone)
    if site != known:
        store.set_site(site)
    return site


def spool_path(plan: WatchPlan, store: Store) -> Path:
    """Where visits wait for a server: of its own for each site, cameras and server."""
    names = "\n".join((store.where, plan.site, *sorted(one.name for one in plan.cameras)))
    return Path(f"waiting-{hashlib.sha256(names.encode()).hexdigest()[:8]}.sqlite")


__all__ = ["CameraStatus", "Watch", "spool_path"]
