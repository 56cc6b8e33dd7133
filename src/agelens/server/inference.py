"""
Inside an inference process: load once, then decode, detect and estimate batch after batch.

Started by ``supervision`` as a program of its own, with one end of a socket pair. It outlives
neither the front process nor its place in it: when the other end closes, it ends.
"""

from __future__ import annotations

import os
import pickle
import resource
import select
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from agelens.analyzer import Analyzer, AnalyzerOptions, Scene
from agelens.errors import ImageError
from agelens.server.jobs import (
    ARRAY,
    CALL,
    DEFAULT_PICTURE,
    LENGTH,
    Answer,
    Batch,
    Done,
    Failed,
    Form,
    Message,
    PictureOptions,
    Ready,
    Setup,
    Task,
    Times,
    Written,
    pack,
)

_MEGABYTE: Final = 1 << 20
_STATM: Final = Path("/proc/self/statm")
_FULL: Final = 0.75
"""Share of its memory that a process may keep between batches."""
_KEPT_MODELS: Final = 4
_KEPT_VARIANTS: Final = 64


class Analyzers:
    """The analyzers of one inference process, by what is asked for; each model is loaded once.

    A few models and some dozen sets of options are kept, the latest used.
    """

    def __init__(self, base: AnalyzerOptions) -> None:
        self._base = base
        self._models: OrderedDict[str, Analyzer] = OrderedDict()
        self._variants: OrderedDict[PictureOptions, Analyzer] = OrderedDict()
        self._models[base.model] = Analyzer(base)

    def of(self, options: PictureOptions = DEFAULT_PICTURE) -> Analyzer:
        """The analyzer of these options.

        Raises:
            ModelError: The model or the detector cannot be used.
            LicenceNotAccepted: The model is for research only, which the server did not accept.
        """
        found = self._variants.get(options)
        if found is None:
            changes = options.changes(self._base)
            found = self._model(changes.pop("model", self._base.model)).variant(**changes)
            self._variants[options] = found
            if len(self._variants) > _KEPT_VARIANTS:
                self._variants.popitem(last=False)
        self._variants.move_to_end(options)
        return found

    def _model(self, name: str) -> Analyzer:
        if name not in self._models:
            self._models[name] = self._models[self._base.model].variant(model=name)
            if len(self._models) > _KEPT_MODELS:
                oldest = next(key for key in self._models if key not in (self._base.model, name))
                del self._models[oldest]
                self._variants.clear()
        self._models.move_to_end(name)
        return self._models[name]


def main(descriptor: int) -> None:
    """Serve one front process until it closes the other end.

    Args:
        descriptor: File descriptor of this end of the socket pair.
    """
    # The other cores have workers of their own.
    cv2.setNumThreads(1)
    with socket.socket(fileno=descriptor) as front:
        threading.Thread(target=_end_with, args=(front,), daemon=True).start()
        setup = _receive(front)
        assert isinstance(setup, Setup)
        try:
            analyzers = Analyzers(setup.base)
            _warm_up(analyzers.of())
        except Exception as error:
            _send(front, Failed(portable(error)))
            return
        os.nice(setup.nice)
        memory = _Memory(setup.memory_limit_mb)
        _send(front, Ready(analyzers.of().model, memory.resident_mb()))
        while True:
            batch = _receive(front)
            assert isinstance(batch, Batch)
            answers, times = work(analyzers, batch.tasks)
            resident_mb, is_full = memory.resident_mb(), memory.is_full()
            try:
                _send(front, Done(answers, times, resident_mb, is_full))
            except Exception as error:  # a function's value that cannot be pickled
                failed = Answer(error=portable(error))
                _send(front, Done((failed,) * len(answers), times, resident_mb, is_full))


def work(analyzers: Analyzers, tasks: Sequence[Task]) -> tuple[tuple[Answer, ...], Times]:
    """Do the tasks of a batch: pictures together, a function by itself."""
    if len(tasks) == 1 and tasks[0].kind == CALL:
        return (_call(analyzers, tasks[0]),), Times()
    return _PictureBatch(analyzers).work(tasks)


class _PictureBatch:
    """Pictures on their way through the stages, and how long each stage took."""

    def __init__(self, analyzers: Analyzers) -> None:
        self._analyzers = analyzers
        self._times = Times()

    def work(self, tasks: Sequence[Task]) -> tuple[tuple[Answer, ...], Times]:
        """Analyse; the faces of all pictures of one model are estimated in one go."""
        answers: list[Answer | None] = [None] * len(tasks)
        groups: dict[tuple[str, bool, bool], list[tuple[int, Analyzer, Scene, Form | None]]] = {}
        for place, task in enumerate(tasks):
            try:
                analyzer = self._analyzers.of(task.options)
                scene = self._scene(analyzer, task)
            except Exception as error:  # one request must not end the others
                answers[place] = Answer(error=portable(error))
                continue
            options = analyzer.options
            key = (options.model, options.flip, options.gender)
            groups.setdefault(key, []).append((place, analyzer, scene, task.form))
        for group in groups.values():
            places, analyzers, scenes, forms = zip(*group, strict=True)
            found = self._estimate(analyzers[0], scenes)
            for place, form, answer in zip(places, forms, found, strict=True):
                answers[place] = answer if form is None else _written(answer, form)
        return tuple(answer for answer in answers if answer is not None), self._times

    def _scene(self, analyzer: Analyzer, task: Task) -> Scene:
        start = time.perf_counter()
        source = pickle.loads(task.content) if task.kind == ARRAY else task.content
        try:
            picture = analyzer.read(source)
        except ImageError as error:
            return Scene.unreadable(error, task.name)
        finally:
            decoded = time.perf_counter()
            self._times.decode_s.append(decoded - start)
        scene = replace(analyzer.locate(picture), name=task.name)
        self._times.detect_s.append(time.perf_counter() - decoded)
        return scene

    def _estimate(self, analyzer: Analyzer, scenes: Sequence[Scene]) -> list[Answer]:
        start = time.perf_counter()
        try:
            answers = [Answer(analysis) for analysis in analyzer.estimate(scenes)]
        except Exception as error:  # the worker goes on
            return [Answer(error=portable(error))] * len(scenes)
        faces = sum(face.quality.usable for scene in scenes for face in scene.faces)
        if faces:
            self._times.estimate_s.append(time.perf_counter() - start)
            self._times.batch_faces.append(faces)
        return answers


def _written(answer: Answer, form: Form) -> Answer:
    if answer.error is not None:
        return answer
    try:
        return Answer(Written.of(answer.value, form))
    except Exception as error:  # the form is the caller's
        return Answer(error=portable(error))


def _call(analyzers: Analyzers, task: Task) -> Answer:
    try:
        function, payload = pickle.loads(task.content)
        return Answer(function(analyzers, payload))
    except Exception as error:  # the caller's to judge; the worker goes on
        return Answer(error=portable(error))


def portable(error: Exception) -> Exception:
    """The error if it survives the way to the front, else one that says the same."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    return error if type(copy) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")


class _Memory:
    """What this process may take: allocations fail beyond it, so that no bomb takes all there is.

    The limit is one of address space, set so that resident memory stays under the given one.
    """

    def __init__(self, limit_mb: int | None) -> None:
        self._full_at: float | None = None
        # A core file would put people's pictures on the disk.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if limit_mb is None or not _STATM.exists():
            return
        mapped, resident = _statm()
        room = max(0.0, limit_mb * _MEGABYTE - resident)
        self._full_at = mapped + _FULL * room
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        ceiling = int(mapped + room)
        if hard == resource.RLIM_INFINITY or ceiling < hard:
            resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))

    def is_full(self) -> bool:
        """Whether so much is kept that large pictures no longer fit."""
        return self._full_at is not None and _statm()[0] > self._full_at

    def resident_mb(self) -> float:
        """Resident megabytes; the peak where the system tells no more."""
        if _STATM.exists():
            return _statm()[1] / _MEGABYTE
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (_MEGABYTE if sys.platform == "darwin" else 1024)


def _statm() -> tuple[int, int]:
    """Bytes mapped and bytes resident."""
    mapped, resident = _STATM.read_text().split()[:2]
    page = resource.getpagesize()
    return int(mapped) * page, int(resident) * page


def _warm_up(analyzer: Analyzer) -> None:
    grey = np.full((240, 320, 3), 128, np.uint8)
    analyzer(grey)
    size = analyzer.bundle.card.input.size
    analyzer.estimator.estimate(np.full((1, size, size, 3), 128, np.uint8))


def _end_with(front: socket.socket) -> None:
    """End this process as soon as the other end is gone, also in the middle of a batch."""
    poller = select.poll()
    poller.register(front.fileno(), getattr(select, "POLLRDHUP", 0))
    poller.poll()
    os._exit(0)


def _receive(front: socket.socket) -> Any:
    (length,) = LENGTH.unpack(_exactly(front, LENGTH.size))
    return pickle.loads(_exactly(front, length))


def _exactly(front: socket.socket, count: int) -> bytearray:
    buffer = bytearray(count)
    view, filled = memoryview(buffer), 0
    while filled < count:
        received = front.recv_into(view[filled:])
        if not received:
            os._exit(0)
        filled += received
    return buffer


def _send(front: socket.socket, message: Message) -> None:
    content = pack(message)
    front.sendall(LENGTH.pack(len(content)) + content)
