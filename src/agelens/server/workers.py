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
import errno
import math
import time
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
    CALL,
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
_LEAST_SHARE: Final = 8
"""Part of the line that each caller may have, however many others there are: one eighth."""
_CONTESTED_S: Final = 10.0
"""For so long the line is shared after somebody was turned away."""
_PICTURES_S: Final = 10.0
"""For so long after a picture one worker is kept free of calls."""
_STALLED_S: Final = 120.0
"""Seconds of work, of the processor, after which a worker is taken for stuck."""
_CHECK_S: Final = 30.0
_LEAST_WORK_S: Final = 0.5
_LONGEST_WORK_S: Final = 600.0
_HOPELESS: Final = 2.0
"""How many times the time it has a request must take, as far as one can tell, to be given up."""
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
    """The answer was not there at the caller's deadline; nothing more is done for it.

    Attributes:
        retry_after_s: Seconds that another picture would wait now.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


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
    """Hears what the pool does, on its loop; for counters and the log.

    ============== ================================= ==========================================
    name           value                             labels
    ============== ================================= ==========================================
    queue_wait_s   seconds a task waited
    work_s         seconds of one stage              stage: decode, detect, estimate
    batch_pictures tasks that one worker took
    batch_faces    faces of one inference
    faces          faces found in one picture
    refused        tasks refused at the door         reason: queue, share, bytes, deadline, closing
    expired        tasks dropped at their deadline
    hopeless       tasks given up before it
    put_back       pictures that a worker had no time for
    abandoned      tasks whose caller went away
    retried        tasks whose worker died           (once each)
    poison         tasks that killed two workers
    restart        1                                 reason: died, memory, stalled, loading, faulty;
                                                     worker; status: 0, or minus a signal
    started        seconds it took to load           worker: its process id
    not_started    1                                 error: such as EMFILE
    printed        lines that a worker had printed   worker: its process id
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
        alive: Processes that have loaded and live.
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
        self._paces = {False: Pace(), True: Pace()}
        self._poison = Poison()
        self._workers: list[Worker] = []
        self._watch = Watch(self._worker_ready, self._worker_done, self._worker_gone)
        self._started: dict[Worker, asyncio.Future[Ready]] = {}
        self._alarms: dict[Worker, asyncio.TimerHandle] = {}
        self._why_ended: dict[Worker, str] = {}
        self._restarting: set[asyncio.Task[None]] = set()
        self._reaping: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._contested_until = -math.inf
        self._pictures_until = -math.inf
        self._wake: asyncio.TimerHandle | None = None
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
            queue: Tasks that may wait at most; one caller has at most half of it while others are
                there, and always an eighth.
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
                worker = await pool._start()
                pool._started[worker] = started = pool._loop.create_future()
                starting.append(started)
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
        caller: str | None = None,
    ) -> list[Analysis]:
        """Analyse pictures, each as ``Analyzer`` does; unreadable ones carry an ``error``.

        Args:
            images: Encoded pictures, or (H, W, 3) uint8 RGB arrays.
            options: What was asked for.
            deadline_s: Seconds from now after which the answer is of no use.
            caller: Who asks: callers take turns, however much each asks for.

        Returns:
            An analysis for each picture, in order; ``path`` is None.

        Raises:
            Overloaded: They cannot wait, or would wait longer than ``deadline_s``.
            DeadlineExceeded: It took longer; those that no worker had yet are dropped.
            WorkerLost: A picture killed two workers.
            ModelError, ArgumentError: A model, detector or option that there is not.
        """
        until = time.monotonic() + deadline_s
        tasks = [picture_task(image, options, until=until) for image in images]
        return await self._do(tasks, deadline_s, caller)

    async def write(
        self,
        images: Sequence[Image],
        options: PictureOptions = DEFAULT_PICTURE,
        form: Form = DEFAULT_FORM,
        *,
        names: Sequence[str | None] | None = None,
        deadline_s: float,
        caller: str | None = None,
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
            caller: As for ``analyze``.

        Raises:
            Overloaded, DeadlineExceeded, WorkerLost, ModelError, ArgumentError: As for ``analyze``.
        """
        called = [None] * len(images) if names is None else names
        pairs = zip(images, called, strict=True)
        until = time.monotonic() + deadline_s
        tasks = [picture_task(image, options, name, form, until=until) for image, name in pairs]
        return await self._do(tasks, deadline_s, caller)

    async def run(
        self, function: Function, payload: Any, *, deadline_s: float, caller: str | None = None
    ) -> Any:
        """Call ``function(analyzers, payload)`` in a worker, which does nothing else meanwhile.

        While there are pictures, calls leave them one worker of several.

        Args:
            function: Importable by name; ``analyzers.of(options)`` gives it an ``Analyzer``. It may
                be called twice, when its worker dies.
            payload: Picklable.
            deadline_s: Seconds from now after which the answer is of no use.
            caller: As for ``analyze``.

        Returns:
            What it returned: results, numbers and text; see ``jobs.unpack``.

        Raises:
            Overloaded, DeadlineExceeded, WorkerLost: As for ``analyze``.
            Exception: What the function raised.
        """
        task = call_task(function, payload, until=time.monotonic() + deadline_s)
        (value,) = await self._do([task], deadline_s, caller)
        return value

    def check_room(self) -> None:
        """Refuse as ``analyze`` would refuse one more picture now: before it is even received.

        Raises:
            Overloaded: The line is full, or the pool is closing.
        """
        self._admit(1, 0, math.inf, None)

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
        late = DeadlineExceeded("the server ended before this was answered", _GOODBYE_S)
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

    async def _do(self, tasks: Sequence[Task], deadline_s: float, caller: str | None) -> list[Any]:
        if not tasks:
            return []
        now, is_call = self._loop.time(), tasks[0].kind == CALL
        size = sum(len(task.content) for task in tasks)
        self._admit(len(tasks), size, deadline_s, caller, is_call=is_call)
        request = Request(
            self._loop.create_future(), [None] * len(tasks), len(tasks), caller, now + deadline_s
        )
        request.waiting = deque(Job(request, place, task, now) for place, task in enumerate(tasks))
        for job in request.waiting:
            if self._poison.holds(job, now):
                raise self._poisoned(job)
        if not is_call:
            self._pictures_until = now + _PICTURES_S
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

    def _admit(
        self, count: int, size: int, deadline_s: float, caller: str | None, *, is_call: bool = False
    ) -> None:
        """Refuse what cannot wait here; a request larger than the line waits alone."""
        line, alive = self._line, self._alive()
        wait_s = self._wait_s(count, caller, is_call=is_call)
        own = line.waiting_of(caller)
        most = self._share(caller)
        if self._closing:
            reason, message = "closing", "the server is ending"
        elif line.count and line.count + count > self._queue:
            reason, message = (
                "queue",
                f"{line.count} pictures are waiting, of at most {self._queue}",
            )
            if own + count <= self._queue // 2 or caller is None:
                self._contested_until = self._loop.time() + _CONTESTED_S
        elif own and own + count > most:
            reason, message = (
                "share",
                f"{own} of your pictures are waiting, of at most {most} while others wait too",
            )
        elif line.count and line.size + size > _QUEUE_BYTES:
            reason, message = "bytes", f"{line.size >> 20} MB of pictures are waiting"
        elif alive and wait_s > deadline_s:
            reason, message = "deadline", f"the answer would take {wait_s:.1f} s"
        else:
            return
        self._tell("refused", count, reason=reason)
        pace_s = self._paces[is_call].job_s / max(1, alive)
        excess = {"queue": line.count + count - self._queue, "share": own + count - most}
        room_s = max(1, excess.get(reason, 1)) * pace_s
        late_s = wait_s - deadline_s if alive else 1.0
        raise Overloaded(message, max(room_s, late_s))

    def _share(self, caller: str | None) -> int:
        """How much of the line one caller may have: all of it while nobody else is there."""
        if caller is None:
            return self._queue
        contested = self._loop.time() < self._contested_until
        parties = 1 + max(self._line.others(caller), int(contested))
        return max(1, self._queue // _LEAST_SHARE, self._queue // parties)

    def _wait_s(self, count: int, caller: str | None, *, is_call: bool) -> float:
        """Seconds until the last of so many tasks of a caller would begin, as far as one can tell.

        Infinite without a worker; 0 when one is free.
        """
        alive = self._alive()
        if not alive:
            return math.inf
        if any(worker.condition is Condition.IDLE for worker in self._workers):
            return 0.0
        line, now = self._line, self._loop.time()
        jobs, ahead_s = line.ahead(
            caller, count, lambda one: self._cost_s(one, is_call=is_call), is_call=is_call
        )
        if is_call:
            pictures = line.count - line.calls
            ahead_s += min(pictures * self._paces[False].job_s, jobs + 1.0)
        else:
            batches = math.ceil((jobs + count) / self._batch)
            ahead_s += min(line.calls, batches) * self._paces[True].job_s
        return (ahead_s + sum(self._left_s(worker, now) for worker in self._workers)) / alive

    def _cost_s(self, request: Request, *, is_call: bool) -> float:
        own = request.job_s
        return self._paces[is_call].job_s if own is None else own

    def _left_s(self, worker: Worker, now: float) -> float:
        """Seconds until a worker is free; one that takes longer than expected takes twice that."""
        if not worker.jobs:
            return 0.0
        spent_s = now - worker.since
        expected_s = sum(self._cost_s(job.request, is_call=job.is_call) for job in worker.jobs)
        return expected_s - spent_s if expected_s > spent_s else spent_s

    def _expire(self, request: Request, deadline_s: float) -> None:
        self._tell("expired", request.missing)
        self._line.leave(request)
        request.fail(DeadlineExceeded(f"no answer within {deadline_s:g} s", self._retry_s(request)))

    def _retry_s(self, request: Request) -> float:
        wait_s = self._wait_s(1, request.caller, is_call=False)
        return min(wait_s, _LONGEST_PAUSE_S)

    def _give_up_hopeless(self, requests: set[Request]) -> None:
        """Fail those at once that cannot be done in time, as their first pictures have shown."""
        now, alive = self._loop.time(), max(1, self._alive())
        for request in requests:
            if not request.waiting or request.job_s is None:
                continue
            needed_s = request.job_s * len(request.waiting) / alive
            if needed_s > _HOPELESS * (request.end - now):
                self._tell("hopeless", self._line.leave(request))
                message = (
                    f"a picture of this request takes {request.job_s:.1f} s, so that they would "
                    "not be done in time; send smaller ones, or fewer"
                )
                request.fail(DeadlineExceeded(message, self._retry_s(request)))

    # --- to and from the workers -----------------------------------------------------------------

    def _dispatch(self) -> None:
        for worker in self._workers:
            if not self._line.count:
                return
            if worker.condition is Condition.IDLE:
                self._give(worker)

    def _give(self, worker: Worker) -> None:
        # What waits is shared out evenly: the other workers will ask for theirs in a moment.
        share = math.ceil((self._line.count - self._line.calls) / max(1, self._alive()))
        jobs = self._line.take(max(1, min(self._batch, share)), calls=self._may_call())
        if not jobs:
            return
        worker.give(jobs)
        for job in jobs:
            self._tell("queue_wait_s", worker.since - job.since)
        self._tell("batch_pictures", len(jobs))
        spent_s = worker.cpu_s
        self._alarms[worker] = self._loop.call_later(
            _STALLED_S, self._check, worker, spent_s, spent_s
        )

    def _may_call(self) -> bool:
        """Whether a call may have a worker; while there are pictures, they keep one of several."""
        now, alive = self._loop.time(), self._alive()
        calling = sum(any(job.is_call for job in worker.jobs) for worker in self._workers)
        if alive < 2 or calling < alive - 1 or now >= self._pictures_until:
            return True
        if self._wake is None:
            self._wake = self._loop.call_at(self._pictures_until, self._woken)
        return False

    def _woken(self) -> None:
        self._wake = None
        self._dispatch()

    def _worker_done(self, worker: Worker, done: Done) -> None:
        self._alarms.pop(worker).cancel()
        jobs, worker.jobs = worker.jobs, ()
        if done.is_full:
            self._why_ended[worker] = "memory"
            worker.dismiss()
        for job, answer in zip(jobs, done.answers, strict=False):
            if answer.is_late:
                self._line.leave(job.request)
                late = DeadlineExceeded("no answer in time", self._retry_s(job.request))
                job.request.fail(late)
            elif answer.error is not None:
                self._line.leave(job.request)
                job.request.fail(answer.error)
            else:
                self._paces[job.is_call].learn(answer.seconds)
                job.request.answer(job.place, answer.value, answer.seconds)
        self._put_back(jobs[: len(done.answers)], jobs[len(done.answers) :])
        self._dispatch()
        self._tell_of(worker, done)
        self._note_idle()

    def _put_back(self, served: Sequence[Job], rest: Sequence[Job]) -> None:
        kept = [job for job in rest if not job.request.future.done()]
        if kept:
            self._tell("put_back", len(kept))
            self._line.put_back(kept, [job.request.caller for job in served])
        self._give_up_hopeless({job.request for job in (*served, *kept)})

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

    async def _start(self) -> Worker:
        worker = await Worker.start(self._setup, self._watch)
        self._workers.append(worker)
        worker.since = self._loop.time()
        self._alarms[worker] = self._loop.call_later(_LOADING_S, self._end, worker, "loading")
        return worker

    async def _restart(self, pause_s: float) -> None:
        """Start a process; when the system cannot, try again until it can."""
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self._start()
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "unknown")
                self._tell("not_started", 1, error=name)
                pause_s = min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)
            else:
                return

    def _worker_ready(self, worker: Worker, ready: Ready) -> None:
        self._alarms.pop(worker).cancel()
        self._model = ready.model
        self._pause_s = 0.0
        if worker in self._started:
            self._started.pop(worker).set_result(ready)
        self._tell("started", self._loop.time() - worker.since, worker=str(worker.pid))
        self._dispatch()

    def _check(self, worker: Worker, at_first: float | None, before: float | None) -> None:
        """End a worker that is stuck, but not one that others leave no time to work."""
        now = worker.cpu_s
        is_at_work = (
            now is not None
            and at_first is not None
            and before is not None
            and now - at_first < _STALLED_S
            and now - before >= _LEAST_WORK_S
            and self._loop.time() - worker.since < _LONGEST_WORK_S
        )
        if is_at_work:
            self._alarms[worker] = self._loop.call_later(
                _CHECK_S, self._check, worker, at_first, now
            )
        else:
            self._end(worker, "stalled")

    def _end(self, worker: Worker, why: str) -> None:
        self._why_ended[worker] = why
        worker.kill()

    def _worker_gone(self, worker: Worker) -> None:
        self._workers.remove(worker)
        if worker in self._alarms:
            self._alarms.pop(worker).cancel()
        why = self._why_ended.pop(worker, "faulty" if worker.is_faulty else "died")
        started = self._started.pop(worker, None)
        jobs, worker.jobs = worker.jobs, ()
        self._lost(jobs)
        is_wanted = started is None and (not self._closing or self._has_work())
        self._keep(self._reaping, self._reap(worker, why if is_wanted else None))
        if started is not None:
            if not started.done():
                started.set_exception(worker.error or _not_loaded(why, worker))
        elif is_wanted:
            self._restarts += 1
            if not worker.has_loaded:
                self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
            self._keep(self._restarting, self._restart(self._pause_s))
        self._dispatch()
        self._note_idle()

    async def _reap(self, worker: Worker, why: str | None) -> None:
        """Wait for the end of a process, and tell of one that was lost."""
        await asyncio.to_thread(worker.reap, _GOODBYE_S)
        name = str(worker.pid)
        if worker.printed:
            self._tell("printed", worker.printed, worker=name)
        if why is not None:
            self._tell("restart", 1, reason=why, worker=name, status=str(worker.exit_code))

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
    if worker.last_words:
        found = f"{found} ({worker.last_words})"
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
