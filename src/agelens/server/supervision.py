"""
One inference process seen from the front: started, fed, watched, ended.

A worker is a program of its own at one end of a socket pair. Its death closes that end, so that
the front learns of it at once, whatever the reason; the death of the front does the same to it.
What it prints is counted, never passed on: libraries print what they find in pictures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Any, Final, cast

from agelens.bundle import HOME_VARIABLE
from agelens.server.batching import Job
from agelens.server.jobs import (
    LENGTH,
    Answer,
    Batch,
    Done,
    Failed,
    Message,
    Ready,
    Setup,
    pack,
    unpack,
)

_LONGEST_MESSAGE: Final = 1 << 28
_TOLD_BYTES: Final = 2000
# A terminal and a service manager signal the whole group; the front ends its workers in order.
_PROGRAM: Final = (
    "import json, signal, sys\n"
    "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
    "    signal.signal(number, signal.SIG_IGN)\n"
    "sys.path[:] = json.loads(sys.argv[2])\n"
    "from agelens.server.inference import main\n"
    "main(int(sys.argv[1]))\n"
)


class Condition(Enum):
    """What a worker is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    GONE = "gone"


@dataclass(frozen=True)
class Watch:
    """Whom a worker tells.

    Attributes:
        ready: It has loaded.
        done: It has answered the batch that ``Worker.jobs`` still holds.
        gone: It is no more; ``Worker.jobs`` holds what it had not answered.
    """

    ready: Callable[[Worker, Ready], None]
    done: Callable[[Worker, Done], None]
    gone: Callable[[Worker], None]


class Worker(asyncio.Protocol):
    """One inference process.

    Attributes:
        condition: What it is doing.
        jobs: What it is working on.
        error: Why it could not load, or None.
        has_loaded: It was ready once.
        is_faulty: It sent what no worker sends, and was ended.
        since: Loop time at which it got its batch.
        answered: Batches it has answered.
        resident_mb: Memory it took after its last batch.
    """

    def __init__(self, watch: Watch) -> None:
        self.condition = Condition.STARTING
        self.jobs: Sequence[Job] = ()
        self.error: Exception | None = None
        self.has_loaded = False
        self.is_faulty = False
        self.since = 0.0
        self.answered = 0
        self.resident_mb = 0.0
        self._watch = watch
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._murmur = _Murmur()

    @classmethod
    async def start(cls, setup: Setup, watch: Watch) -> Worker:
        """Start a process; ``watch`` hears when it has loaded or could not."""
        worker = cls(watch)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                worker._process = _spawn(theirs.fileno())
            loop = asyncio.get_running_loop()
            worker._murmur.pipe = worker._process.stderr
            await loop.connect_read_pipe(lambda: worker._murmur, worker._murmur.pipe)
            await loop.create_unix_connection(lambda: worker, sock=ours)
        except BaseException:
            ours.close()
            worker._murmur.close()
            if worker._process is not None:
                worker.kill()
                worker.reap(0)
            raise
        worker._send(setup)
        return worker

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None  # set by ``start``
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    @property
    def cpu_s(self) -> float | None:
        """Processor time it has used; None where the system does not tell."""
        try:
            after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        user, system = after_name[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def printed(self) -> int:
        """Lines it has printed on standard error."""
        return self._murmur.lines

    @property
    def last_words(self) -> str:
        """The last line it printed before it had loaded, when it had seen no picture yet."""
        lines = self._murmur.told.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def give(self, jobs: Sequence[Job]) -> None:
        """Have it work on these; it must be idle."""
        assert self.condition is Condition.IDLE
        self.condition = Condition.BUSY
        self.jobs = jobs
        self.since = asyncio.get_running_loop().time()
        self._send(Batch(tuple(job.task for job in jobs)))

    def kill(self) -> None:
        """End it at once, as after a hang."""
        assert self._process is not None
        self._process.kill()

    def dismiss(self) -> None:
        """Let it end; what it was working on is lost."""
        self.condition = Condition.GONE
        if self._transport is not None:
            self._transport.abort()

    def reap(self, patience_s: float) -> None:
        """Wait for its end, and kill it when it takes longer. Blocks: for a thread."""
        assert self._process is not None
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # --- the socket ------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        assert self._transport is not None
        content = pack(message)
        self._transport.writelines((LENGTH.pack(len(content)), content))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket pair is joined to the loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """A part of a message, or several messages."""
        self._received += data
        while len(self._received) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._received)
            end = LENGTH.size + length
            if length > _LONGEST_MESSAGE:
                self._distrust()
                return
            if len(self._received) < end:
                return
            try:
                with memoryview(self._received) as view:
                    message = unpack(view[LENGTH.size : end])
            except Exception:
                self._distrust()
                return
            del self._received[:end]
            self._hear(message)

    def _hear(self, message: Any) -> None:
        is_first = self.condition is Condition.STARTING
        if self.condition is Condition.BUSY and _answers(message, len(self.jobs)):
            self.condition = Condition.IDLE
            self.answered += 1
            self.resident_mb = message.resident_mb
            self._watch.done(self, message)
        elif is_first and isinstance(message, Ready):
            self.condition = Condition.IDLE
            self.has_loaded = True
            self._murmur.is_secret = True
            self.resident_mb = message.resident_mb
            self._watch.ready(self, message)
        elif is_first and isinstance(message, Failed):
            self.error = message.error
        elif self.condition is not Condition.GONE:
            self._distrust()

    def _distrust(self) -> None:
        self.is_faulty = True
        self._received.clear()
        self.kill()
        self.dismiss()

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended, or was let go."""
        self.condition = Condition.GONE
        self._murmur.close()
        self._watch.gone(self)


def _answers(message: Any, jobs: int) -> bool:
    """Whether a message answers at least the first of so many jobs."""
    return (
        isinstance(message, Done)
        and isinstance(message.answers, tuple)
        and 1 <= len(message.answers) <= jobs
        and all(isinstance(answer, Answer) for answer in message.answers)
    )


class _Murmur(asyncio.Protocol):
    """What a worker prints on standard error.

    Attributes:
        lines: How many lines it was.
        told: The end of it, of the time before the first picture.
        is_secret: From now on it may tell of pictures: it is counted only.
        pipe: What it comes through.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.told = b""
        self.is_secret = False
        self.pipe: IO[bytes] | None = None
        self._transport: asyncio.ReadTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.ReadTransport", transport)

    def data_received(self, data: bytes) -> None:
        self.lines += data.count(b"\n")
        if not self.is_secret:
            self.told = (self.told + data)[-_TOLD_BYTES:]

    def close(self) -> None:
        """Take what is still there, and close the pipe."""
        if self.pipe is None or (self._transport and self._transport.is_closing()):
            return
        if self._transport is None:
            self.pipe.close()
            return
        with contextlib.suppress(BlockingIOError):
            self.data_received(os.read(self.pipe.fileno(), 1 << 16))
        self._transport.close()


def _spawn(descriptor: int) -> subprocess.Popen[bytes]:
    """A process with one end of a socket pair.

    It looks at untrusted pictures, so that it gets none of the server's secrets.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == HOME_VARIABLE or not name.startswith("AGELENS_")
    }
    command = [sys.executable, "-P", "-c", _PROGRAM, str(descriptor), json.dumps(sys.path)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(descriptor,),
        env=environment,
    )
