"""
One inference process seen from the front: started, fed, watched, ended.

A worker is a program of its own at one end of a socket pair. Its death closes that end, so that
the front learns of it at once, whatever the reason; the death of the front does the same to it.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, cast

from agelens.bundle import HOME_VARIABLE
from agelens.server.batching import Job
from agelens.server.jobs import (
    LENGTH,
    Batch,
    Done,
    Failed,
    Message,
    Ready,
    Setup,
    pack,
)

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
        since: Loop time at which it got its batch.
        answered: Batches it has answered.
        resident_mb: Memory it took after its last batch.
    """

    def __init__(self, watch: Watch) -> None:
        self.condition = Condition.STARTING
        self.jobs: Sequence[Job] = ()
        self.error: Exception | None = None
        self.since = 0.0
        self.answered = 0
        self.resident_mb = 0.0
        self._watch = watch
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()

    @classmethod
    async def start(cls, setup: Setup, watch: Watch) -> Worker:
        """Start a process; ``watch`` hears when it has loaded or could not."""
        worker = cls(watch)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                worker._process = _spawn(theirs.fileno())
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: worker, sock=ours)
        except BaseException:
            ours.close()
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
            if len(self._received) < end:
                return
            with memoryview(self._received) as view:
                message = pickle.loads(view[LENGTH.size : end])
            del self._received[:end]
            self._hear(message)

    def _hear(self, message: Message) -> None:
        if isinstance(message, Done):
            self.condition = Condition.IDLE
            self.answered += 1
            self.resident_mb = message.resident_mb
            self._watch.done(self, message)
        elif isinstance(message, Ready):
            self.condition = Condition.IDLE
            self.resident_mb = message.resident_mb
            self._watch.ready(self, message)
        elif isinstance(message, Failed):
            self.error = message.error

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended, or was let go."""
        self.condition = Condition.GONE
        self._watch.gone(self)


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
        pass_fds=(descriptor,),
        env=environment,
    )
