"""
What lives as long as the server does: pool, keys, limits, gates and counters, opened and closed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection
from structlog.typing import FilteringBoundLogger

from agelens.analyzer import AnalyzerOptions
from agelens.bundle import find_model
from agelens.images import ImageLimits
from agelens.server.fetching import Fetcher
from agelens.server.logs import open_log, where_it_broke
from agelens.server.metrics import Metrics
from agelens.server.problems import Problem
from agelens.server.rates import Rates
from agelens.server.workers import (
    DeadlineExceeded,
    Overloaded,
    PoolState,
    WorkerLost,
    WorkerPool,
)
from agelens.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from agelens.server.auth import Authority, Caller
    from agelens.server.dashboard import Visitors
    from agelens.server.gates import Gates


@dataclass(eq=False)
class Service:
    """The parts that routes share; one for each application.

    Attributes:
        settings: What the server was told.
        authority: Knows who asks.
        rates: Counts requests by key and address.
        models: Names that requests may give, with what each stands for: "default" and the name
            of the default model come first.
        gates: Policies by name.
        fetcher: Fetches pictures from addresses, or None when that is off.
        metrics: Counters.
        log: Structured log.
        bodies: Bytes of all bodies in memory.
        closing: True from SIGTERM on: what was accepted is still answered.
        failed: Why the workers could not start, or None.
        visitors: What the pages about visitors show, or None without a store.
        analyses: It takes pictures; False where it only shows visitors, without any worker.
    """

    settings: ServerSettings
    authority: Authority
    rates: Rates
    models: Mapping[str, str]
    gates: Gates
    fetcher: Fetcher | None
    metrics: Metrics
    log: FilteringBoundLogger
    bodies: int = 0
    closing: bool = False
    failed: Exception | None = None
    visitors: Visitors | None = None
    analyses: bool = True
    _pool: WorkerPool | None = None
    _end: float = 0.0
    _opening: asyncio.Task[None] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, settings: ServerSettings) -> Service:
        """Check what can be checked at once: model, keys, policies, store. Starts no worker.

        Raises:
            AgeLensError: The model, the key file, a policy or the store cannot be used.
        """
        from agelens.server.auth import Authority
        from agelens.server.dashboard import Visitors
        from agelens.server.gates import Gates

        return cls(
            settings,
            Authority.open(settings),
            Rates(settings),
            _models(settings),
            Gates.open(settings),
            Fetcher.open(settings),
            Metrics(),
            open_log(settings.log_level),
            visitors=Visitors.open(settings),
        )

    @classmethod
    def open_site(cls, settings: ServerSettings, visitors: Visitors) -> Service:
        """A service that shows visitors and takes no pictures.

        Raises:
            ArgumentError: The key file cannot be used, or others can reach it and there is none.
        """
        from agelens.server.auth import Authority
        from agelens.server.gates import Gates

        return cls(
            settings,
            Authority.open(settings),
            Rates(settings),
            {},
            Gates(()),
            None,
            Metrics(),
            open_log(settings.log_level),
            visitors=visitors,
            analyses=False,
        )

    def start(self, on_failure: Callable[[], None]) -> None:
        """Start the workers in the background; ``on_failure`` is called if they cannot."""
        self._opening = asyncio.create_task(self._open_pool(on_failure))

    async def _open_pool(self, on_failure: Callable[[], None]) -> None:
        settings = self.settings
        try:
            self._pool = await WorkerPool.open(
                analyzer_options(settings),
                workers=settings.workers,
                queue=settings.queue,
                batch=settings.batch,
                memory_limit_mb=settings.memory_limit_mb,
                on_event=self._pool_event,
            )
        except Exception as error:
            self.failed = error
            self.log.error("workers_failed", **where_it_broke(error))
            on_failure()
        else:
            state = self._pool.state()
            self.log.info("ready", workers=state.workers, model=state.model)

    def _pool_event(self, name: str, value: float, **labels: str) -> None:
        """Count what the pool tells, and log what an operator may have to look after."""
        self.metrics.pool_event(name, value, **labels)
        if name == "started":
            self.log.info("worker_started", pid=int(labels["worker"]), seconds=round(value, 1))
        elif name == "restart":
            self.log.warning(
                "worker_lost",
                pid=int(labels["worker"]),
                reason=labels["reason"],
                status=int(labels["status"]),
            )
        elif name == "not_started":
            self.log.error("worker_not_started", reason=labels["error"])
        elif name == "poison":
            self.log.warning("poison")
        elif name == "printed":
            self.log.warning("worker_printed", pid=int(labels["worker"]), lines=int(value))

    def note(
        self,
        request_id: str,
        method: str,
        route: str,
        status: int | None,
        code: str | None,
        seconds: float,
        caller: str | None = None,
    ) -> None:
        """Count a request that was answered and write its line in the log."""
        self.metrics.requests.labels(method, route, str(status or "none")).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if code is not None:
            self.metrics.problems.labels(code).inc()
        self.log.info(
            "request",
            request_id=request_id,
            caller=caller,
            method=method,
            route=route,
            status=status,
            code=code,
            ms=round(seconds * 1000, 1),
        )

    @property
    def pool(self) -> WorkerPool:
        """The workers.

        Raises:
            Problem: They are not warm yet; 503 ``not_ready``.
        """
        if self._pool is None:
            raise Problem(
                503,
                "not_ready",
                "the workers are still loading the model; ask again in a moment",
                headers={"retry-after": "1"},
            )
        return self._pool

    @property
    def pool_state(self) -> PoolState | None:
        """How the workers are; None before all have started for the first time."""
        return None if self._pool is None else self._pool.state()

    @property
    def ready(self) -> bool:
        """True when a worker is warm, or none is needed, and the server is not about to end."""
        if self.closing or not self.analyses:
            return not self.closing
        return self._pool is not None and self._pool.state().ready

    def begin_closing(self) -> None:
        """The grace begins: not ready any more, but what comes is still answered."""
        if not self.closing:
            self.closing = True
            self._end = time.monotonic() + self.settings.grace_s
            self.log.info("closing")

    async def close(self) -> None:
        """Answer what was accepted within the grace, end the workers, close the journals."""
        self.begin_closing()
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._pool is not None:
            await self._pool.close(max(0.0, self._end - time.monotonic()))
        self.gates.close()
        if self.visitors is not None:
            self.visitors.close()
        self.log.info("closed")


def _models(settings: ServerSettings) -> dict[str, str]:
    """Models by the names of their cards, so that no request has to know, or sees, a path."""
    names = {"default": settings.model}
    for place in (settings.model, *settings.models):
        bundle = find_model(place)
        bundle.require_licence(settings.accept_licence)
        names.setdefault(bundle.card.name, place)
    return names


def analyzer_options(settings: ServerSettings) -> AnalyzerOptions:
    """How the workers' analyzers are made."""
    return AnalyzerOptions(
        model=settings.model,
        detector=settings.detector,
        max_faces=settings.max_faces,
        accept_licence=settings.accept_licence,
        limits=ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_pixels),
    )


@contextmanager
def pool_problems() -> Iterator[None]:
    """Around what is asked of the workers: their refusals become problems.

    Raises:
        Problem: ``overloaded``, ``deadline`` and ``worker_lost`` (503, with Retry-After),
            ``poison`` (422).
    """
    try:
        yield
    except Overloaded as error:
        wait = {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
        raise Problem(503, "overloaded", str(error), headers=wait) from error
    except DeadlineExceeded as error:
        wait = {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
        raise Problem(503, "deadline", str(error), headers=wait) from error
    except WorkerLost as error:
        if error.poison:
            detail = f"picture {error.place}: {error}"
            raise Problem(422, "poison", detail, index=error.place) from error
        raise Problem(503, "worker_lost", str(error), headers={"retry-after": "1"}) from error


def turns_of(caller: Caller) -> str | None:
    """Whose turns in the line a caller's pictures take; None where all are one, without keys."""
    return None if caller.kind == "local" else caller.id


def service_of(connection: HTTPConnection) -> Service:
    """The service behind a request or a stream."""
    found: Service = connection.app.state.service
    return found
