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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from agelens.analyzer import Analyzer, AnalyzerOptions, Scene
from agelens.containers import open_container
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
    unpack,
)

_MEGABYTE: Final = 1 << 20
_STATM: Final = Path("/proc/self/statm")
_FULL: Final = 0.75
"""Share of its memory that a process may keep between batches."""
_WORK_S: Final = 1.0
"""Seconds of work after which a batch ends: the rest goes back into the line."""
_HEAVY_PIXELS: Final = 16_000_000
"""From so many on a picture is worked on alone, so that it holds up no others."""
_HEAD_BYTES: Final = 1 << 16
_FACE_S: Final = 0.005
_KEPT_MODELS: Final = 4
_KEPT_VARIANTS: Final = 64


class Analyzers:
    """The analyzers of one inference process, by what is asked for; each model is loaded once.

    A few models and some dozen sets of options are kept, the latest used.

    Attributes:
        face_s: Seconds that the estimate of a face took lately.
    """

    def __init__(self, base: AnalyzerOptions) -> None:
        self._base = base
        self._models: OrderedDict[str, Analyzer] = OrderedDict()
        self._variants: OrderedDict[PictureOptions, Analyzer] = OrderedDict()
        self._models[base.model] = Analyzer(base)
        self.face_s = _FACE_S

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
            _send(front, Done(answers, times, memory.resident_mb(), memory.is_full()))


def work(analyzers: Analyzers, tasks: Sequence[Task]) -> tuple[tuple[Answer, ...], Times]:
    """Do the tasks of a batch: pictures together, a function by itself.

    Returns:
        An answer for each task, or for the first ones when the rest should go to the next worker
        that is free; and how long they took.
    """
    if len(tasks) == 1 and tasks[0].kind == CALL:
        return (_call(analyzers, tasks[0]),), Times()
    return _PictureBatch(analyzers).work(tasks)


@dataclass(frozen=True, eq=False)
class _Seen:
    """A picture in which faces were looked for.

    Attributes:
        place: Which task of the batch it is.
        analyzer: Of its options.
        scene: What was found.
        form: How the answer is written.
    """

    place: int
    analyzer: Analyzer
    scene: Scene
    form: Form | None


class _PictureBatch:
    """Pictures on their way through the stages, and how long each stage took."""

    def __init__(self, analyzers: Analyzers) -> None:
        self._analyzers = analyzers
        self._times = Times()

    def work(self, tasks: Sequence[Task]) -> tuple[tuple[Answer, ...], Times]:
        """Analyse; the faces of all pictures of one model are estimated in one go."""
        start = time.perf_counter()
        answers: list[Answer] = []
        groups: dict[tuple[str, bool, bool], list[_Seen]] = {}
        faces, is_heavy = 0, False
        for place, task in enumerate(tasks):
            spent_s = time.perf_counter() - start
            was_heavy, is_heavy = is_heavy, _pixels(task) >= _HEAVY_PIXELS
            is_enough = was_heavy or spent_s + faces * self._analyzers.face_s > _WORK_S
            if groups and (is_heavy or is_enough):
                break
            if time.monotonic() > task.until:
                answers.append(Answer(is_late=True))
                is_heavy = False
                continue
            try:
                analyzer = self._analyzers.of(task.options)
                scene = self._scene(analyzer, task)
            except Exception as error:  # one request must not end the others
                answers.append(Answer(error=portable(error)))
                continue
            answers.append(Answer(seconds=time.perf_counter() - start - spent_s))
            faces += _usable(scene)
            options = analyzer.options
            key = (options.model, options.flip, options.gender)
            groups.setdefault(key, []).append(_Seen(place, analyzer, scene, task.form))
        for group in groups.values():
            self._finish(group, answers)
        return tuple(answers), self._times

    def _finish(self, group: Sequence[_Seen], answers: list[Answer]) -> None:
        """Put the answers of one model's pictures in their places."""
        start = time.perf_counter()
        found = self._estimate(group[0].analyzer, [seen.scene for seen in group])
        done = [
            answer if seen.form is None else _written(answer, seen.form)
            for seen, answer in zip(group, found, strict=True)
        ]
        share_s = (time.perf_counter() - start) / len(group)
        for seen, answer in zip(group, done, strict=True):
            answers[seen.place] = replace(answer, seconds=answers[seen.place].seconds + share_s)

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
        faces = sum(map(_usable, scenes))
        if faces:
            taken_s = time.perf_counter() - start
            self._times.estimate_s.append(taken_s)
            self._times.batch_faces.append(faces)
            self._analyzers.face_s += (taken_s / faces - self._analyzers.face_s) / 4
        return answers


def _usable(scene: Scene) -> int:
    """Faces of a picture that will be estimated."""
    return sum(face.quality.usable for face in scene.faces)


def _pixels(task: Task) -> int:
    """Pixels that a picture says it has; 0 when it does not say so at its beginning."""
    if task.kind == ARRAY:
        return 0
    try:
        open_container(task.content[:_HEAD_BYTES], _look_no_further)
    except _Declared as declared:
        return declared.pixels
    except Exception:  # what is wrong with it is found out in its turn
        return 0
    return 0


class _Declared(Exception):
    def __init__(self, pixels: int) -> None:
        super().__init__(pixels)
        self.pixels = pixels


def _look_no_further(width: int, height: int) -> None:
    raise _Declared(width * height)


def _written(answer: Answer, form: Form) -> Answer:
    if answer.error is not None:
        return answer
    try:
        return Answer(Written.of(answer.value, form))
    except Exception as error:  # the form is the caller's
        return Answer(error=portable(error))


def _call(analyzers: Analyzers, task: Task) -> Answer:
    if time.monotonic() > task.until:
        return Answer(is_late=True)
    start = time.perf_counter()
    try:
        function, payload = pickle.loads(task.content)
        value = function(analyzers, payload)
        unpack(pickle.dumps(value, protocol=5))  # the front would take it for an attack
    except Exception as error:  # the caller's to judge; the worker goes on
        return Answer(error=portable(error))
    return Answer(value, seconds=time.perf_counter() - start)


def portable(error: Exception) -> Exception:
    """The error if it survives the way to the front, else one that says the same."""
    try:
        copy = unpack(pickle.dumps(error))
    except Exception:
        copy = None
    if type(copy) is type(error):
        return error
    # numpy, for one, has a MemoryError of its own.
    known = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    if known is MemoryError:
        return MemoryError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


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
