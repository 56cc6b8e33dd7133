"""
Who is next: the line before the workers, fair between callers and between requests of each.

Plain data without a clock of its own, so that every rule can be read and tested by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    def is_call(self) -> bool:
        """Whether a function is called, which has a worker for itself."""
        return self.task.kind == CALL

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
        caller: Who asks; requests of one caller share its turns.
        end: Loop time after which nobody waits for it.
        waiting: Its jobs that no worker has yet.
        job_s: Seconds that a job of its own took on average; None before one is done.
    """

    future: asyncio.Future[list[Any]]
    values: list[Any]
    missing: int
    caller: str | None = None
    end: float = math.inf
    waiting: deque[Job] = field(default_factory=deque)
    job_s: float | None = None

    def answer(self, place: int, value: Any, seconds: float = 0.0) -> None:
        """Take one answer, and how long it took; the last one wakes the caller."""
        self.values[place] = value
        done = len(self.values) - self.missing
        self.job_s = ((self.job_s or 0.0) * done + seconds) / (done + 1)
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.values)

    def fail(self, error: Exception) -> None:
        """Wake the caller with an error."""
        if not self.future.done():
            self.future.set_exception(error)


class _Turns:
    """Requests that wait: callers take turns, and so do the requests of each."""

    def __init__(self) -> None:
        self._callers: OrderedDict[str | None, deque[Request]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._callers)

    def __iter__(self) -> Iterator[Request]:
        return (request for requests in self._callers.values() for request in requests)

    def __contains__(self, request: Request) -> bool:
        return request in self._callers.get(request.caller, ())

    def join(self, request: Request) -> None:
        self._callers.setdefault(request.caller, deque()).append(request)

    def leave(self, request: Request) -> None:
        requests = self._callers.get(request.caller, deque())
        if request in requests:
            requests.remove(request)
            if not requests:
                del self._callers[request.caller]

    def take(self) -> Job:
        """The next job; its caller and its request then wait for their next turns."""
        caller, requests = self._callers.popitem(last=False)
        request = requests.popleft()
        job = request.waiting.popleft()
        if request.waiting:
            requests.append(request)
        if requests:
            self._callers[caller] = requests
        return job

    def put_back(self, job: Job, *, first: bool) -> None:
        """Let a job that was taken wait again, and be the first of its request."""
        request = job.request
        request.waiting.appendleft(job)
        requests = self._callers.setdefault(request.caller, deque())
        if request not in requests:
            requests.appendleft(request)
        if first:
            self._callers.move_to_end(request.caller, last=False)

    def ahead(
        self, caller: str | None, count: int, cost: Callable[[Request], float]
    ) -> tuple[int, float]:
        """What has its turn before the last of ``count`` further jobs of a caller.

        Returns:
            Jobs, and the seconds that one worker takes for them.
        """
        own = [(min(len(one.waiting), count), cost(one)) for one in self._callers.get(caller, ())]
        jobs, seconds = sum(many for many, _ in own), sum(many * each for many, each in own)
        turns = jobs + count
        for other, requests in self._callers.items():
            if other == caller:
                continue
            waiting = sum(len(one.waiting) for one in requests)
            share = min(1.0, turns / waiting)
            jobs += min(waiting, turns)
            seconds += share * sum(len(one.waiting) * cost(one) for one in requests)
        return jobs, seconds


class Line:
    """The jobs that wait: pictures and calls, each in turns.

    Attributes:
        count: Jobs that wait.
        size: Bytes that wait.
        calls: Calls that wait.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size = 0
        self.calls = 0
        self._pictures = _Turns()
        self._functions = _Turns()
        self._again: deque[Job] = deque()
        self._call_is_next = False

    def join(self, request: Request) -> None:
        """Let the jobs of a request wait."""
        self._turns(request.waiting[0]).join(request)
        for job in request.waiting:
            self._count(job, 1)

    def join_again(self, job: Job) -> None:
        """Let a job whose worker died wait; it goes first, and alone."""
        self._again.append(job)
        self._count(job, 1)

    def put_back(self, jobs: Sequence[Job], served: Iterable[str | None]) -> None:
        """Let jobs wait that a worker had no time for.

        Args:
            jobs: In the order in which they were taken.
            served: Callers of whom it did something; the others come first.
        """
        had = set(served)
        for job in reversed(jobs):
            self._turns(job).put_back(job, first=job.request.caller not in had)
            self._count(job, 1)

    def leave(self, request: Request) -> int:
        """Drop what a request still has waiting; returns how many jobs that were."""
        dropped = [*request.waiting, *(job for job in self._again if job.request is request)]
        request.waiting.clear()
        self._again = deque(job for job in self._again if job.request is not request)
        self._pictures.leave(request)
        self._functions.leave(request)
        for job in dropped:
            self._count(job, -1)
        return len(dropped)

    def take(self, most: int, *, calls: bool = True) -> list[Job]:
        """The next jobs for one worker: pictures of as many callers as possible, or one call.

        Args:
            most: Jobs at most, 1 or more.
            calls: Whether it may be a call; where both wait they take turns.
        """
        for place, job in enumerate(self._again):
            if calls or not job.is_call:
                del self._again[place]
                return [self._count(job, -1)]
        if calls and self._functions and (self._call_is_next or not self._pictures):
            self._call_is_next = False
            return [self._count(self._functions.take(), -1)]
        self._call_is_next = True
        taken: list[Job] = []
        size = 0
        while self._pictures and len(taken) < most and size < _BATCH_BYTES:
            job = self._count(self._pictures.take(), -1)
            taken.append(job)
            size += len(job.task.content)
        return taken

    def requests(self) -> Iterable[Request]:
        """Those who have a job waiting."""
        waiting = (*self._pictures, *self._functions, *(job.request for job in self._again))
        return set(waiting)

    def waiting_of(self, caller: str | None) -> int:
        """Jobs of one caller that wait."""
        return sum(len(one.waiting) for one in self.requests() if one.caller == caller)

    def others(self, caller: str | None) -> int:
        """Callers beside this one that have a job waiting."""
        return len({one.caller for one in self.requests()} - {caller})

    def ahead(
        self, caller: str | None, count: int, cost: Callable[[Request], float], *, is_call: bool
    ) -> tuple[int, float]:
        """Pictures, or calls, that have their turn before the last of so many of a caller.

        Args:
            caller: Who would ask.
            count: For how many.
            cost: Seconds that a job of a request takes.
            is_call: Whether for calls.

        Returns:
            Jobs, and the seconds that one worker takes for them.
        """
        turns = self._functions if is_call else self._pictures
        return turns.ahead(caller, count, cost)

    def _turns(self, job: Job) -> _Turns:
        return self._functions if job.is_call else self._pictures

    def _count(self, job: Job, step: int) -> Job:
        self.count += step
        self.calls += step * job.is_call
        self.size += step * len(job.task.content)
        return job


class Pace:
    """Seconds that jobs of one kind have taken, smoothed over the last dozens."""

    def __init__(self) -> None:
        self.job_s = _FIRST_GUESS_S

    def learn(self, seconds: float) -> None:
        """Take in how long one job took."""
        self.job_s += _MEMORY_OF_RATE * (seconds - self.job_s)


class Poison:
    """Contents that killed two workers, remembered for ten minutes."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, job: Job, now: float) -> None:
        """Remember what a job held."""
        self._until[job.digest] = now + _POISON_S
        self._until.move_to_end(job.digest)
        if len(self._until) > _POISON_KEPT:
            self._until.popitem(last=False)

    def holds(self, job: Job, now: float) -> bool:
        """Whether a job holds such a content."""
        while self._until and next(iter(self._until.values())) < now:
            self._until.popitem(last=False)
        # The hash is only worth its time where there is something to find.
        return bool(self._until) and job.digest in self._until
