"""A mosquitto of the tests' own: started, stopped, frozen and gone on with."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from video.streams import free_port

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
PASSWORDS = shutil.which("mosquitto_passwd")


class Broker:
    """A broker on a free port of this computer; the same port after a restart."""

    def __init__(
        self, folder: Path, *lines: str, user: str | None = None, password: str = ""
    ) -> None:
        if MOSQUITTO is None:
            pytest.skip("there is no mosquitto on this computer")
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        settings = [f"listener {self.port} 127.0.0.1", "user root", *lines]
        if user is None:
            settings.append("allow_anonymous true")
        else:
            if PASSWORDS is None:
                pytest.skip("there is no mosquitto_passwd on this computer")
            passwords = folder / "passwords"
            subprocess.run([PASSWORDS, "-b", "-c", passwords, user, password], check=True)
            settings += ["allow_anonymous false", f"password_file {passwords}"]
        (folder / "mosquitto.conf").write_text("\n".join(settings) + "\n")
        self.start()

    def start(self) -> None:
        assert MOSQUITTO is not None
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [MOSQUITTO, "-v", "-c", self._folder / "mosquitto.conf"], stdout=log, stderr=log
            )
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"mosquitto does not start:\n{self.log}") from None
                time.sleep(0.02)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def stop(self) -> None:
        """End it; what it retained is lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it hang: connections stay open and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
