"""
Cameras for tests: real servers on this computer that freeze, hang up, change and come back.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import random
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Drawing = Callable[[int], Pixels]
"""The picture of a number, (H, W, 3) uint8, RGB."""
CodedDrawing = Callable[[int], Pixels | bytes]
"""The same, which may be JPEG already."""

_CELLS: Final = 16
_BOUNDARY: Final = b"frame"


def numbered(number: int, *, size: tuple[int, int] = (320, 240)) -> Pixels:
    """A picture that says its number in 16 black or white cells, readable after lossy coding."""
    width, height = size
    bits = [(number >> place) & 1 for place in range(_CELLS)]
    cells = np.array(bits, np.uint8).reshape(4, 4) * 215 + 20
    grey = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.repeat(grey[:, :, None], 3, axis=2)


def number_in(pixels: Pixels) -> int:
    """The number that ``numbered`` drew."""
    height, width = pixels.shape[:2]
    rows = [height * (2 * row + 1) // 8 for row in range(4)]
    columns = [width * (2 * column + 1) // 8 for column in range(4)]
    bits = (pixels[np.ix_(rows, columns)].mean(axis=2) > 128).ravel()
    return sum(int(bit) << place for place, bit in enumerate(bits))


def write_clip(
    path: Path, frames: int, *, rate: float = 25, drawing: Drawing = numbered, codec: str = "mp4v"
) -> Path:
    """A video of the pictures 0, 1, 2, ..."""
    height, width = drawing(0).shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (width, height))
    assert writer.isOpened(), f"no encoder for {codec}"
    for number in range(frames):
        writer.write(cv2.cvtColor(drawing(number), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def free_port() -> int:
    """A port of this computer that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class MjpegCamera:
    """A camera that sends JPEG pictures over HTTP for ever, one for each tick of its clock.

    Args:
        drawing: The picture of a tick.
        rate: Ticks a second.
        password: What the user "viewer" must send; None asks for nothing.
    """

    def __init__(
        self, drawing: CodedDrawing = numbered, *, rate: float = 25, password: str | None = None
    ) -> None:
        self.drawing = drawing
        self.rate = rate
        self.spoil: Callable[[bytes], bytes] = bytes
        """What becomes of the bytes of a picture on their way."""
        self.port = free_port()
        self.connections = 0
        self.sent = 0
        """Pictures, over all connections."""
        self._allowed = password and base64.b64encode(f"viewer:{password}".encode()).decode()
        self._login = f"viewer:{password}@" if password else ""
        self.born_s = time.monotonic()
        """When its clock stood at 0."""
        self._running = threading.Event()
        self._running.set()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server: socketserver.ThreadingTCPServer | None = None

    @property
    def address(self) -> str:
        """What to open."""
        return f"http://{self._login}127.0.0.1:{self.port}/video.mjpg"

    @property
    def tick(self) -> int:
        """Number of the picture of now."""
        return int((time.monotonic() - self.born_s) * self.rate)

    def freeze(self) -> None:
        """Keep the connections and send nothing."""
        self._running.clear()

    def thaw(self) -> None:
        """Go on with the picture of now."""
        self._running.set()

    def hang_up(self) -> None:
        """Cut every connection; new ones are welcome."""
        with self._lock:
            sockets = list(self._sockets)
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def die(self) -> None:
        """Cut every connection and refuse new ones."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        self.hang_up()

    def come_back(self) -> None:
        """Listen, on the same port."""
        camera = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                camera._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        self.come_back()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.die()
        self.thaw()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._sockets.add(client)
            self.connections += 1
        try:
            with contextlib.suppress(OSError):
                request = client.recv(65536).decode("latin-1")
                if self._allowed and f"Basic {self._allowed}" not in request:
                    client.sendall(
                        b"HTTP/1.0 401 No\r\nWWW-Authenticate: Basic realm=x\r\n"
                        b"Content-Length: 0\r\n\r\n"
                    )
                    return
                client.sendall(
                    b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary="
                    + _BOUNDARY
                    + b"\r\n\r\n"
                )
                self._send_pictures(client)
        finally:
            with self._lock:
                self._sockets.discard(client)

    def _send_pictures(self, client: socket.socket) -> None:
        sent = -1
        while self._server is not None:
            self._running.wait()
            tick = self.tick
            if tick == sent:
                time.sleep(0.2 / self.rate)
                continue
            sent = tick
            picture = self.drawing(tick)
            body = self.spoil(picture if isinstance(picture, bytes) else jpeg(picture))
            head = b"--%s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
            client.sendall(head % (_BOUNDARY, len(body)) + body + b"\r\n")
            self.sent += 1


def jpeg(pixels: Pixels) -> bytes:
    """The picture as JPEG."""
    done, coded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done
    return coded.tobytes()


class FlippingProxy:
    """A line between a camera and its reader on which single bits flip.

    Args:
        port: Of the camera, on this computer.
        share: Of the pieces that the camera sends, of 1400 bytes at most, how many get a wrong bit.
        seed: Chooses them.
    """

    def __init__(self, port: int, *, share: float, seed: int = 0) -> None:
        self.share = share
        self.flipped = self.pieces = 0
        self._drawn = random.Random(seed)
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", port)) as camera,
                ):
                    asking = threading.Thread(
                        target=proxy._carry, args=(self.request, camera, 0.0), daemon=True
                    )
                    asking.start()
                    proxy._carry(camera, self.request, None)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _carry(self, sender: socket.socket, taker: socket.socket, share: float | None) -> None:
        """Carry until one of them hangs up; then neither hears more."""
        with contextlib.suppress(OSError):
            while piece := sender.recv(1400):
                taker.sendall(self._spoiled(piece, self.share if share is None else share))
        for one in (sender, taker):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _spoiled(self, piece: bytes, share: float) -> bytes:
        if not share:
            return piece
        self.pieces += 1
        if self._drawn.random() >= share:
            return piece
        self.flipped += 1
        spoiled = bytearray(piece)
        spoiled[self._drawn.randrange(len(spoiled))] ^= 1 << self._drawn.randrange(8)
        return bytes(spoiled)


_RTSP_PROGRAM: Final = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
port, launch = sys.argv[1:3]
server = GstRtspServer.RTSPServer(service=port, address="127.0.0.1")
factory = GstRtspServer.RTSPMediaFactory(launch=launch, shared=False)
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""
_SYSTEM_PYTHON: Final = "/usr/bin/python3"
BALL: Final = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width={width},height={height},"
    "framerate={rate}/1 ! x264enc tune=zerolatency speed-preset=ultrafast threads=1 "
    "key-int-max={rate} ! rtph264pay name=pay0 pt=96 )"
)
"""A moving ball, for ever."""
STILL: Final = (
    "( filesrc location={path} ! jpegdec ! imagefreeze is-live=true ! videoconvert ! videoscale "
    "! video/x-raw,format=I420,width={width},height={height},framerate={rate}/1 ! x264enc "
    "tune=zerolatency speed-preset=ultrafast threads=1 key-int-max={rate} "
    "! rtph264pay name=pay0 pt=96 )"
)
"""A JPEG picture, for ever."""
CLIP: Final = (
    "( filesrc location={path} ! qtdemux ! mpeg4videoparse config-interval=1 "
    "! rtpmp4vpay name=pay0 pt=96 )"
)
"""A file that ``write_clip`` wrote, from its start for each who connects."""


@functools.cache
def why_no_rtsp() -> str:
    """What is missing for an RTSP server; "" when nothing is."""
    if not os.access(_SYSTEM_PYTHON, os.X_OK):
        return f"there is no {_SYSTEM_PYTHON}"
    program = "import gi; gi.require_version('GstRtspServer', '1.0'); "
    program += "from gi.repository import Gst, GstRtspServer; Gst.init(None); "
    program += "assert Gst.ElementFactory.find('x264enc') and Gst.ElementFactory.find('qtdemux')"
    try:
        done = subprocess.run([_SYSTEM_PYTHON, "-c", program], capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return "" if done.returncode == 0 else "gir1.2-gst-rtsp-server-1.0 and its plugins are missing"


class RtspCamera:
    """An RTSP server in a process of its own, so that it can be frozen as a whole.

    Args:
        launch: What it plays, in the words of gst-launch.
    """

    def __init__(self, launch: str = BALL.format(width=320, height=240, rate=25)) -> None:
        self.launch = launch
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """What to open."""
        return f"rtsp://127.0.0.1:{self.port}/camera"

    def freeze(self) -> None:
        """Stop the whole process; its connections stay."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def die(self) -> None:
        """Kill it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def come_back(self) -> None:
        """Start it, on the same port."""
        arguments = [_SYSTEM_PYTHON, "-c", _RTSP_PROGRAM, str(self.port), self.launch]
        self._process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Self:
        self.come_back()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.die()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def with_other_times(stream: bytes, change: Callable[[int], int]) -> bytes:
    """An MPEG transport stream whose clock says something else.

    Args:
        stream: Packets of 188 bytes.
        change: New time for an old one, both in ticks of 90 kHz; the 33 bits that there are room
            for are kept.
    """
    packets = bytearray(stream)
    for start in range(0, len(packets) - 187, 188):
        has_adaptation, has_payload = packets[start + 3] & 0x20, packets[start + 3] & 0x10
        at = start + 4
        if has_adaptation:
            if packets[at] and packets[at + 1] & 0x10:
                _change_pcr(packets, at + 2, change)
            at += 1 + packets[at]
        begins = packets[start + 1] & 0x40
        if has_payload and begins and packets[at : at + 3] == b"\x00\x00\x01":
            flags = packets[at + 7] >> 6
            for place in range((flags >> 1) + (flags & 1)):
                _change_time(packets, at + 9 + 5 * place, change)
    return bytes(packets)


def _change_pcr(packets: bytearray, at: int, change: Callable[[int], int]) -> None:
    old = int.from_bytes(packets[at : at + 6], "big")
    base = change(old >> 15) & ((1 << 33) - 1)
    packets[at : at + 6] = (base << 15 | old & 0x7FFF).to_bytes(6, "big")


def _change_time(packets: bytearray, at: int, change: Callable[[int], int]) -> None:
    a, b, c, d, e = packets[at : at + 5]
    old = (a >> 1 & 7) << 30 | b << 22 | (c >> 1) << 15 | d << 7 | e >> 1
    new = change(old) & ((1 << 33) - 1)
    packets[at : at + 5] = bytes(
        (
            a & 0xF0 | (new >> 30) << 1 | 1,
            new >> 22 & 0xFF,
            (new >> 15 & 0x7F) << 1 | 1,
            new >> 7 & 0xFF,
            (new & 0x7F) << 1 | 1,
        )
    )
