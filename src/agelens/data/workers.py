"""
Worker processes for rows of a table: spawned, single-threaded, and gone when their parent is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from agelens.errors import ArgumentError, DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


def default_workers() -> int:
    """As many processes as this one may use cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int | None = None,
    setup: Callable[..., None] | None = None,
    setup_args: tuple[Any, ...] = (),
) -> Iterator[tuple[int, Result]]:
    """Run a function on tasks in several processes; results come as they are finished.

    Args:
        function: Importable by name, since it is sent to other processes.
        tasks: Picklable.
        workers: Processes; 1 runs everything in this one; None takes one a core.
        setup: Called once in each process before its first task, with ``setup_args``.
        setup_args: Picklable.

    Yields:
        Place of the task in ``tasks``, and its result.

    Raises:
        DataError: A process was killed. Errors of the function come through as they are.
        ArgumentError: ``workers`` is under 1.
    """
    count = min(default_workers() if workers is None else workers, max(1, len(tasks)))
    if count < 1:
        raise ArgumentError(f"workers must be 1 or more, got {workers}")
    if count == 1:
        if setup is not None:
            setup(*setup_args)
        for place, task in enumerate(tasks):
            yield place, function(task)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_start, initargs=(setup, setup_args)
    )
    try:
        yield from _drain(pool, function, tasks, in_flight=2 * count)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died, most likely for lack of memory; try again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _drain(
    pool: ProcessPoolExecutor,
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    in_flight: int,
) -> Iterator[tuple[int, Result]]:
    waiting: dict[Future[Result], int] = {}
    upcoming = iter(enumerate(tasks))
    while True:
        for place, task in upcoming:
            waiting[pool.submit(function, task)] = place
            if len(waiting) >= in_flight:
                break
        if not waiting:
            return
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield waiting.pop(future), future.result()


def _start(setup: Callable[..., None] | None, setup_args: tuple[Any, ...]) -> None:
    # Ctrl-C is the parent's to handle; it ends the workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _one_thread_each()
    if setup is not None:
        setup(*setup_args)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # The queue would wait for ever for a parent that was killed.
        os._exit(1)


def _one_thread_each() -> None:
    import cv2

    from agelens.data.schema import import_pyarrow

    cv2.setNumThreads(1)
    import_pyarrow().set_cpu_count(1)
