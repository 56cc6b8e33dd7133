"""
Who is next: the bounded line before the workers, fair between requests, and what it refuses.

Plain data without a clock of its own, so that every rule can be read and tested by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from agelens.server.jobs import CALL, Task

_BATCH_BYTES: Final = 2 << 20
"""Encoded bytes from which on nothing more joins a batch: a large picture would hold up others."""
_POISON_KEPT: Final = 1024
_POISON_S: Final = 600.0
_FIRST_GUESS_S: Final = 0.05
_MEMORY_OF_RATE: Final = 0.1


@dataclass(eq=False)
class Job:
    """One task of a request, waiting or in work.

    Attributes:
        request: Whose it is.
        place: Which answer of the request it gives.
        task: What is to be done.
        since: Loop time at which it began to wait.
        losses: Workers that died while they had it.
    """

    request: Request
    place: int
    task: Task
    since: float
    losses: int = 0

    @property
    def digest(self) -> bytes:
        """SHA-256 of the content."""
        return hashlib.sha256(self.task.content).digest()


@dataclass(eq=False)
class Request:
    """The tasks that one caller waits for.

    Attributes:
        future: Gets the list of values in order, or the first error.
        values: Answers so far.
        missing: Answers that are still to come.
        waiting: Its jobs that no worker has yet.
    """

    future: asyncio.Future[list[Any]]
    values: list[Any]
    missing: int
    waiting: deque[Job] = field(default_factory=deque)

    def answer(self, place: int, value: Any) -> None:
        """Take one answer; the last one wakes the caller."""
        self.values[place] = value
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.values)

    def fail(self, error: Exception) -> None:
        """Wake the caller with an error."""
        if not self.future.done():
            self.future.set_exception(error)


class Line:
    """The jobs that wait, each request taking turns with the others.

    Attributes:
        count: Jobs that wait.
        size: Bytes that wait.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size = 0
        self._turns: deque[Request] = deque()
        self._again: deque[Job] = deque()

    def join(self, request: Request) -> None:
        """Let the jobs of a request wait."""
        self._turns.append(request)
        self.count += len(request.waiting)
        self.size += sum(len(job.task.content) for job in request.waiting)

    def join_again(self, job: Job) -> None:
        """Let a job whose worker died wait; it goes first, and alone."""
        self._again.append(job)
        self._count(job, 1)

    def leave(self, request: Request) -> int:
        """Drop what a request still has waiting; returns how many jobs that were."""
        dropped = [*request.waiting, *(job for job in self._again if job.request is request)]
        request.waiting.clear()
        self._again = deque(job for job in self._again if job.request is not request)
        if request in self._turns:
            self._turns.remove(request)
        for job in dropped:
            self._count(job, -1)
        return len(dropped)

    def take(self, most: int) -> list[Job]:
        """The next jobs for one worker: pictures of as many requests as possible, or one call.

        Args:
            most: Jobs at most, 1 or more.
        """
        if self._again:
            return [self._count(self._again.popleft(), -1)]
        taken: list[Job] = []
        size = 0
        while self._turns and len(taken) < most and size < _BATCH_BYTES:
            job = self._turns[0].waiting[0]
            if taken and job.task.kind == CALL:
                break
            request = self._turns.popleft()
            request.waiting.popleft()
            if request.waiting:
                self._turns.append(request)
            taken.append(self._count(job, -1))
            size += len(job.task.content)
            if job.task.kind == CALL:
                break
        return taken

    def requests(self) -> Iterable[Request]:
        """Those who have a job waiting."""
        return {*self._turns, *(job.request for job in self._again)}

    def _count(self, job: Job, step: int) -> Job:
        self.count += step
        self.size += step * len(job.task.content)
        return job


class Pace:
    """How fast the workers have been, smoothed over the last dozens of batches."""

    def __init__(self) -> None:
        self._job_s = _FIRST_GUESS_S

    def learn(self, seconds: float, jobs: int) -> None:
        """Take in how long one worker took for so many jobs."""
        weight = 1 - (1 - _MEMORY_OF_RATE) ** jobs
        self._job_s += weight * (seconds / jobs - self._job_s)

    def wait_s(self, jobs: int, workers: int) -> float:
        """Seconds until so many jobs are done; infinite without a worker."""
        return self._job_s * jobs / workers if workers else math.inf


class Poison:
    """Contents that killed two workers, remembered for ten minutes."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, job: Job, now: float) -> None:
        """Remember what a job held."""
        self._until[job.digest] = now + _POISON_S
        if len(self._until) > _POISON_KEPT:
            self._until.popitem(last=False)

    def holds(self, job: Job, now: float) -> bool:
        """Whether a job holds such a content."""
        while self._until and next(iter(self._until.values())) < now:
            self._until.popitem(last=False)
        # The hash is only worth its time where there is something to find.
        return bool(self._until) and job.digest in self._until
