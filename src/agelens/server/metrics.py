"""
Counters for Prometheus: what was asked, how long it took, what waits; nothing about who asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Final, Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0

if TYPE_CHECKING:
    from agelens.server.workers import PoolState

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_1_0_0
Stage = Literal["receive", "fetch", "analyze", "queue", "decode", "detect", "estimate", "decide"]
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PICTURES: Final = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The registry of one application; two applications in a process share nothing.

    Labels are closed sets: route templates, methods, statuses, stages and problem codes. No label
    and no value tells of a caller, an address, a key, a file or a person.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "agelens_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "agelens_request_seconds",
            "Time from the head of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "agelens_stage_seconds",
            "Time of a stage of a request.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.problems = Counter(
            "agelens_problems", "Problems answered.", ("code",), registry=self.registry
        )
        self.pictures = Counter(
            "agelens_pictures", "Pictures analysed.", ("outcome",), registry=self.registry
        )
        self.faces = Counter("agelens_faces", "Faces found.", ("estimate",), registry=self.registry)
        self.batch_pictures = Histogram(
            "agelens_batch_pictures",
            "Pictures that a worker took at a time.",
            buckets=_PICTURES,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "agelens_requests_in_flight", "Requests being answered.", registry=self.registry
        )
        self.streams = Gauge("agelens_streams", "Open WebSocket streams.", registry=self.registry)
        self.stream_frames = Counter(
            "agelens_stream_frames",
            "Frames that came over streams.",
            ("outcome",),
            registry=self.registry,
        )
        self.batch_faces = Histogram(
            "agelens_batch_faces",
            "Faces of one inference.",
            buckets=_PICTURES,
            registry=self.registry,
        )
        self.tasks = Counter(
            "agelens_tasks_unfinished",
            "Pictures that workers did not finish, by why.",
            ("reason",),
            registry=self.registry,
        )
        self.restarts = Counter(
            "agelens_worker_restarts", "Workers started anew.", ("reason",), registry=self.registry
        )
        self._memory = Gauge(
            "agelens_worker_resident_bytes",
            "Memory of the worker that finished a batch last.",
            registry=self.registry,
        )
        self._waiting = Gauge("agelens_queue", "Pictures that wait.", registry=self.registry)
        self._working = Gauge(
            "agelens_pictures_in_work", "Pictures that workers hold.", registry=self.registry
        )
        self._workers = Gauge("agelens_workers", "Workers that live.", registry=self.registry)
        self._ready = Gauge(
            "agelens_ready", "1 when the service takes requests.", registry=self.registry
        )
        for stage in get_args(Stage):
            self.stage_seconds.labels(stage)

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Time a stage, whether it ends well or not."""
        start = perf_counter()
        try:
            yield
        finally:
            self.stage_seconds.labels(name).observe(perf_counter() - start)

    def pool_event(self, name: str, value: float, **labels: str) -> None:
        """Take in what the pool of workers tells; see ``workers.OnEvent``."""
        if name == "queue_wait_s":
            self.stage_seconds.labels("queue").observe(value)
        elif name == "work_s":
            self.stage_seconds.labels(labels["stage"]).observe(value)
        elif name == "batch_pictures":
            self.batch_pictures.observe(value)
        elif name == "batch_faces":
            self.batch_faces.observe(value)
        elif name == "refused":
            self.tasks.labels(f"refused_{labels['reason']}").inc(value)
        elif name in ("expired", "hopeless", "abandoned", "put_back", "retried", "poison"):
            self.tasks.labels(name).inc(value)
        elif name == "restart":
            self.restarts.labels(labels["reason"]).inc(value)
        elif name == "resident_mb":
            self._memory.set(value * (1 << 20))

    def text(self, pool: PoolState | None) -> bytes:
        """All values in Prometheus' text form."""
        self._ready.set(pool is not None and pool.ready)
        if pool is not None:
            self._waiting.set(pool.waiting)
            self._working.set(pool.in_flight)
            self._workers.set(pool.alive)
        return generate_latest(self.registry)
