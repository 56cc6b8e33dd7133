"""
The pool of inference processes: what the rest of the server asks to look at pictures.

    WorkerPool         analyze pictures, or run a function, in supervised processes
    PictureOptions     what a request may ask for
    Form, Written      how answers are written, and a written one
    PoolState          how the pool is
    Overloaded         the line is full: come again
    DeadlineExceeded   it took longer than the caller would wait
    WorkerLost         the process that had it died, twice when it is ``poison``

No untrusted picture is decoded in the front process. A picture whose worker died gets one more
try, alone on another worker; a picture that ends that one too is refused for ten minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agelens.analyzer import AnalyzerOptions
from agelens.data.workers import default_workers
from agelens.errors import AgeLensError, ArgumentError
from agelens.results import Analysis
from agelens.server.batching import Job, Line, Pace, Poison, Request
from agelens.server.jobs import (
    DEFAULT_FORM,
    DEFAULT_PICTURE,
    Done,
    Form,
    Function,
    Image,
    PictureOptions,
    Ready,
    Setup,
    Task,
    Written,
    call_task,
    picture_task,
)
from agelens.server.supervision import Condition, Watch, Worker

DEFAULT_QUEUE: Final = 64
DEFAULT_BATCH: Final = 16
_LOADED: Final = (Condition.IDLE, Condition.BUSY)
_NICE: Final = 5
_QUEUE_BYTES: Final = 256 << 20
_STALLED_S: Final = 120.0
_LOADING_S: Final = 120.0
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 10.0
_GOODBYE_S: Final = 2.0


class Overloaded(AgeLensError, RuntimeError):
    """The line before the workers is full, or the pool is closing.

    Attributes:
        retry_after_s: Seconds until there should be room, from how fast the workers have been.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{message}; try again in {retry_after_s:.1f} s")


class DeadlineExceeded(AgeLensError, TimeoutError):
    """The answer was not there at the caller's deadline; nothing more is done for it."""


class WorkerLost(AgeLensError, RuntimeError):
    """The process that had a task died.

    Attributes:
        poison: Two processes died of it: it will not be tried again for ten minutes.
        place: Which of the request's tasks it was, from 0.
    """

    def __init__(self, message: str, *, poison: bool, place: int) -> None:
        self.poison = poison
        self.place = place
        super().__init__(message)


class OnEvent(Protocol):
    """Hears what the pool does, on its loop; for counters.

    ============== ================================= ==========================================
    name           value                             labels
    ============== ================================= ==========================================
    queue_wait_s   seconds a task waited
    work_s         seconds of one stage              stage: decode, detect, estimate
    batch_pictures tasks that one worker took
    batch_faces    faces of one inference
    faces          faces found in one picture
    refused        tasks refused at the door         reason: queue, bytes, deadline, closing
    expired        tasks dropped at their deadline
    abandoned      tasks whose caller went away
    retried        tasks whose worker died           (once each)
    poison         tasks that killed two workers
    restart        1                                 reason: died, memory, stalled, loading
    resident_mb    memory of a worker after a batch  worker: its process id
    ============== ================================= ==========================================
    """

    def __call__(self, name: str, value: float, **labels: str) -> None:
        """Take in one event."""
        ...


@dataclass(frozen=True)
class PoolState:
    """How the pool is.

    Attributes:
        ready: At least one worker takes work, and the pool is not closing.
        workers: Processes there should be.
        alive: Processes that have loaded.
        waiting: Tasks that no worker has yet.
        in_flight: Tasks in work.
        restarts: Processes that had to be replaced since the pool was opened.
        model: "name@version" of the server's own model.
        processes: Process ids, of those that load too.
    """

    ready: bool
    workers: int
    alive: int
    waiting: int
    in_flight: int
    restarts: int
    model: str
    processes: tuple[int, ...]


class WorkerPool:
    """Supervised inference processes behind one bounded line.

    Belongs to the event loop it was opened on. Make one with ``open``, end it with ``close``.
    """

    def __init__(
        self, setup: Setup, *, workers: int, queue: int, batch: int, on_event: OnEvent | None
    ) -> None:
        """For ``open``, which also starts the processes."""
        self._setup = setup
        self._wanted = workers
        self._queue = queue
        self._batch = batch
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._line = Line()
        self._pace = Pace()
        self._poison = Poison()
        self._workers: list[Worker] = []
        self._watch = Watch(self._worker_ready, self._worker_done, self._worker_gone)
        self._started: dict[Worker, asyncio.Future[Ready]] = {}
        self._alarms: dict[Worker, asyncio.TimerHandle] = {}
        self._why_ended: dict[Worker, str] = {}
        self._restarting: set[asyncio.Task[None]] = set()
        self._reaping: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._is_open = False
        self._pause_s = 0.0
        self._restarts = 0
        self._closing = False
        self._model = ""

    @classmethod
    async def open(
        cls,
        base: AnalyzerOptions,
        *,
        workers: int | None = None,
        queue: int = DEFAULT_QUEUE,
        batch: int = DEFAULT_BATCH,
        memory_limit_mb: int | None = None,
        on_event: OnEvent | None = None,
    ) -> WorkerPool:
        """Start the processes and wait until each has loaded and estimated a first face.

        Args:
            base: Model, limits and licence for all requests; ``threads`` of each process.
            workers: Processes; None starts one a core.
            queue: Tasks that may wait at most.
            batch: Pictures that one worker takes at most.
            memory_limit_mb: Resident megabytes that a worker may grow to: allocations beyond it
                fail, and a worker that keeps three quarters of it is replaced after its batch.
                None sets no limit. Decoding takes 4 to 16 bytes a pixel.
            on_event: Hears what happens, for counters.

        Raises:
            ModelError, LicenceNotAccepted: The model or the detector cannot be used.
            ArgumentError: A number out of range.
            WorkerLost: A process died while it loaded, or took over two minutes.
        """
        count = default_workers() if workers is None else workers
        for name, number in (("workers", count), ("queue", queue), ("batch", batch)):
            if number < 1:
                raise ArgumentError(f"{name} must be 1 or more, got {number}")
        setup = Setup(base, _NICE, memory_limit_mb)
        pool = cls(setup, workers=count, queue=queue, batch=batch, on_event=on_event)
        starting: list[asyncio.Future[Ready]] = []
        try:
            for _ in range(count):
                starting.append(await pool._start())
            await asyncio.gather(*starting)
        except BaseException:
            await pool.close(0)
            await asyncio.gather(*starting, return_exceptions=True)
            raise
        pool._is_open = True
        return pool

    # --- what callers ask ------------------------------------------------------------------------

    async def analyze(
        self,
        images: Sequence[Image],
        options: PictureOptions = DEFAULT_PICTURE,
        *,
        deadline_s: float,
    ) -> list[Analysis]:
        """Analyse pictures, each as ``Analyzer`` does; unreadable ones carry an ``error``.

        Args:
            images: Encoded pictures, or (H, W, 3) uint8 RGB arrays.
            options: What was asked for.
            deadline_s: Seconds from now after which the answer is of no use.

        Returns:
            An analysis for each picture, in order; ``path`` is None.

        Raises:
            Overloaded: They cannot wait, or would wait longer than ``deadline_s``.
            DeadlineExceeded: It took longer; those that no worker had yet are dropped.
            WorkerLost: A picture killed two workers.
            ModelError, ArgumentError: A model, detector or option that there is not.
        """
        return await self._do([picture_task(image, options) for image in images], deadline_s)

    async def write(
        self,
        images: Sequence[Image],
        options: PictureOptions = DEFAULT_PICTURE,
        form: Form = DEFAULT_FORM,
        *,
        names: Sequence[str | None] | None = None,
        deadline_s: float,
    ) -> list[Written]:
        """Analyse pictures and write the answers down as JSON, both in the workers.

        Writing the answer to a face takes several times as long as handing it on, which the one
        front process would have to do for all workers.

        Args:
            images: As for ``analyze``.
            options: As for ``analyze``.
            form: How the analyses are written.
            names: What their ``path`` becomes; None leaves it empty.
            deadline_s: As for ``analyze``.

        Raises:
            Overloaded, DeadlineExceeded, WorkerLost, ModelError, ArgumentError: As for ``analyze``.
        """
        called = [None] * len(images) if names is None else names
        pairs = zip(images, called, strict=True)
        tasks = [picture_task(image, options, name, form) for image, name in pairs]
        return await self._do(tasks, deadline_s)

    async def run(self, function: Function, payload: Any, *, deadline_s: float) -> Any:
        """Call ``function(analyzers, payload)`` in a worker, which does nothing else meanwhile.

        Args:
            function: Importable by name; ``analyzers.of(options)`` gives it an ``Analyzer``. It may
                be called twice, when its worker dies.
            payload: Picklable.
            deadline_s: Seconds from now after which the answer is of no use.

        Returns:
            What it returned; picklable.

        Raises:
            Overloaded, DeadlineExceeded, WorkerLost: As for ``analyze``.
            Exception: What the function raised.
        """
        (value,) = await self._do([call_task(function, payload)], deadline_s)
        return value

    def check_room(self) -> None:
        """Refuse as ``analyze`` would refuse one more picture now: before it is even received.

        Raises:
            Overloaded: The line is full, or the pool is closing.
        """
        self._admit(1, 0, math.inf)

    def state(self) -> PoolState:
        """How the pool is now."""
        alive = self._alive()
        return PoolState(
            ready=alive > 0 and not self._closing,
            workers=self._wanted,
            alive=alive,
            waiting=self._line.count,
            in_flight=sum(len(worker.jobs) for worker in self._workers),
            restarts=self._restarts,
            model=self._model,
            processes=tuple(worker.pid for worker in self._workers),
        )

    async def close(self, grace_s: float) -> None:
        """Take nothing more, answer what was accepted, and end the processes.

        Args:
            grace_s: Seconds to answer in; what is not answered then fails with
                ``DeadlineExceeded``.
        """
        self._closing = True
        if self._has_work():
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace_s)
        late = DeadlineExceeded("the server ended before this was answered")
        for request in [*self._line.requests(), *self._in_work()]:
            self._line.leave(request)
            request.fail(late)
        for task in self._restarting:
            task.cancel()
        await asyncio.gather(*self._restarting, return_exceptions=True)
        for worker in self._workers:
            worker.dismiss()
        while self._workers or self._reaping:
            # A worker is in the list until its end of the socket is closed, then it is reaped.
            await asyncio.sleep(0.001)
            await asyncio.gather(*self._reaping)

    # --- at the door -----------------------------------------------------------------------------

    async def _do(self, tasks: Sequence[Task], deadline_s: float) -> list[Any]:
        if not tasks:
            return []
        now = self._loop.time()
        self._admit(len(tasks), sum(len(task.content) for task in tasks), deadline_s)
        request = Request(self._loop.create_future(), [None] * len(tasks), len(tasks))
        request.waiting = deque(Job(request, place, task, now) for place, task in enumerate(tasks))
        for job in request.waiting:
            if self._poison.holds(job, now):
                raise self._poisoned(job)
        self._line.join(request)
        self._dispatch()
        alarm = self._loop.call_later(deadline_s, self._expire, request, deadline_s)
        try:
            return await request.future
        finally:
            alarm.cancel()
            abandoned = self._line.leave(request) if request.missing else 0
            if abandoned:
                self._tell("abandoned", abandoned)

    def _admit(self, count: int, size: int, deadline_s: float) -> None:
        """Refuse what cannot wait here; a request larger than the line waits alone."""
        line, alive = self._line, self._alive()
        wait_s = self._pace.wait_s(line.count, alive)
        if self._closing:
            reason, message = "closing", "the server is ending"
        elif line.count and line.count + count > self._queue:
            reason, message = (
                "queue",
                f"{line.count} pictures are waiting, of at most {self._queue}",
            )
        elif line.count and line.size + size > _QUEUE_BYTES:
            reason, message = "bytes", f"{line.size >> 20} MB of pictures are waiting"
        elif alive and wait_s > deadline_s:
            reason, message = "deadline", f"the answer would take {wait_s:.1f} s"
        else:
            return
        self._tell("refused", count, reason=reason)
        room_s = self._pace.wait_s(max(1, line.count + count - self._queue), max(1, alive))
        late_s = wait_s - deadline_s if alive else 1.0
        raise Overloaded(message, max(room_s, late_s))

    def _expire(self, request: Request, deadline_s: float) -> None:
        self._tell("expired", request.missing)
        self._line.leave(request)
        request.fail(DeadlineExceeded(f"no answer within {deadline_s:g} s"))

    # --- to and from the workers -----------------------------------------------------------------

    def _dispatch(self) -> None:
        for worker in self._workers:
            if not self._line.count:
                return
            if worker.condition is Condition.IDLE:
                self._give(worker)

    def _give(self, worker: Worker) -> None:
        # What waits is shared out evenly: the other workers will ask for theirs in a moment.
        share = math.ceil(self._line.count / max(1, self._alive()))
        jobs = self._line.take(min(self._batch, share))
        worker.give(jobs)
        for job in jobs:
            self._tell("queue_wait_s", worker.since - job.since)
        self._tell("batch_pictures", len(jobs))
        self._alarms[worker] = self._loop.call_later(_STALLED_S, self._end, worker, "stalled")

    def _worker_done(self, worker: Worker, done: Done) -> None:
        self._alarms.pop(worker).cancel()
        jobs, worker.jobs = worker.jobs, ()
        self._pace.learn(self._loop.time() - worker.since, len(jobs))
        if done.is_full:
            self._why_ended[worker] = "memory"
            worker.dismiss()
        for job, answer in zip(jobs, done.answers, strict=True):
            if answer.error is not None:
                self._line.leave(job.request)
                job.request.fail(answer.error)
            else:
                job.request.answer(job.place, answer.value)
        self._dispatch()
        self._tell_of(worker, done)
        self._note_idle()

    def _tell_of(self, worker: Worker, done: Done) -> None:
        times = done.times
        stages = (("decode", times.decode_s), ("detect", times.detect_s))
        for stage, taken in (*stages, ("estimate", times.estimate_s)):
            for seconds in taken:
                self._tell("work_s", seconds, stage=stage)
        for faces in times.batch_faces:
            self._tell("batch_faces", faces)
        for answer in done.answers:
            if isinstance(answer.value, Written):
                self._tell("faces", answer.value.faces)
            elif isinstance(answer.value, Analysis):
                self._tell("faces", len(answer.value.faces))
        self._tell("resident_mb", done.resident_mb, worker=str(worker.pid))

    def _lost(self, jobs: Sequence[Job]) -> None:
        """Give what a dead worker had another try, or up."""
        for job in jobs:
            if job.request.future.done():
                continue
            job.losses += 1
            if job.losses == 1:
                self._tell("retried", 1)
                self._line.join_again(job)
            else:
                self._tell("poison", 1)
                self._poison.add(job, self._loop.time())
                self._line.leave(job.request)
                job.request.fail(self._poisoned(job))

    def _poisoned(self, job: Job) -> WorkerLost:
        message = (
            f"picture {job.place + 1} ended two processes that looked at it; it is not tried again"
        )
        return WorkerLost(message, poison=True, place=job.place)

    # --- supervision -----------------------------------------------------------------------------

    async def _start(self) -> asyncio.Future[Ready]:
        worker = await Worker.start(self._setup, self._watch)
        self._workers.append(worker)
        self._started[worker] = started = self._loop.create_future()
        self._alarms[worker] = self._loop.call_later(_LOADING_S, self._end, worker, "loading")
        return started

    async def _restart(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        await self._start()

    def _worker_ready(self, worker: Worker, ready: Ready) -> None:
        self._alarms.pop(worker).cancel()
        self._model = ready.model
        self._pause_s = 0.0
        self._started.pop(worker).set_result(ready)
        self._dispatch()

    def _end(self, worker: Worker, why: str) -> None:
        self._why_ended[worker] = why
        worker.kill()

    def _worker_gone(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self._keep(self._reaping, asyncio.to_thread(worker.reap, _GOODBYE_S))
        if worker in self._alarms:
            self._alarms.pop(worker).cancel()
        why = self._why_ended.pop(worker, "died")
        started = self._started.pop(worker, None)
        jobs, worker.jobs = worker.jobs, ()
        self._lost(jobs)
        if not self._is_open:
            if started is not None and not started.done():
                started.set_exception(worker.error or _not_loaded(why, worker))
        elif not self._closing or self._has_work():
            self._restarts += 1
            self._tell("restart", 1, reason=why)
            self._keep(self._restarting, self._restart(self._pause_s))
            if started is not None:
                self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        self._dispatch()
        self._note_idle()

    def _keep(self, tasks: set[asyncio.Task[None]], coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _alive(self) -> int:
        """Workers that have loaded."""
        return sum(worker.condition in _LOADED for worker in self._workers)

    def _in_work(self) -> set[Request]:
        return {job.request for worker in self._workers for job in worker.jobs}

    def _has_work(self) -> bool:
        return bool(self._line.count or any(worker.jobs for worker in self._workers))

    def _note_idle(self) -> None:
        if self._closing and not self._has_work():
            self._idle.set()

    def _tell(self, name: str, value: float, **labels: str) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(name, value, **labels)
        except Exception as error:  # a counter must not cost an answer
            context = {"message": f"on_event failed on {name!r}", "exception": error}
            self._loop.call_exception_handler(context)


def _not_loaded(why: str, worker: Worker) -> WorkerLost:
    code = worker.exit_code
    found = "took over two minutes" if why == "loading" else f"ended with status {code}"
    return WorkerLost(f"an inference process {found} while it loaded", poison=False, place=0)


__all__ = [
    "DeadlineExceeded",
    "Form",
    "Function",
    "Image",
    "OnEvent",
    "Overloaded",
    "PictureOptions",
    "PoolState",
    "WorkerLost",
    "WorkerPool",
    "Written",
]
