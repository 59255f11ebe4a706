"""``greensmtp serve`` in a process of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from gevent import socket

from greensmtp.testing import Peer
from tests import forked


class ServeProcess:
    """A running ``greensmtp serve``: its output, its log, its mail, connections to it."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        folder: Path,
        command: Sequence[str | Path] | None = None,
        first: str = "",
        **popen: Any,
    ) -> None:
        self.maildir = folder / "maildir"
        self._log = folder / "log"
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.process: subprocess.Popen[bytes] | forked.Process
        with self._log.open("wb") as log:
            options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log, "cwd": folder, "env": clean} | popen
            if command is None:
                self.process = forked.start(forked.command_line(*arguments, first=first), **options)
            else:
                self.process = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL, **options)
        self._read = b""
        #: The listeners, as the process printed them.
        self.urls: list[str] = []

    @property
    def port(self) -> int:
        """The port of the first listener."""
        return int(self.urls[0].rpartition(":")[2])

    @property
    def log(self) -> str:
        """The standard error so far."""
        return self._log.read_text()

    @property
    def mail(self) -> list[bytes]:
        """The messages in ``new``, in order of arrival."""
        return [path.read_bytes() for path in sorted((self.maildir / "new").iterdir())]

    def dial(self, number: int = 0) -> Peer:
        """Connect to one of the listeners."""
        where = self.urls[number].split(":", 1)[1]
        if where.startswith("//"):
            host, _, port = where.removeprefix("//").rpartition(":")
            return Peer(socket.create_connection((host.strip("[]"), int(port)), 10))
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(where)
        return Peer(connection)

    def line(self, timeout: float = 20.0) -> str:
        """Return the next line of the standard output."""
        assert self.process.stdout is not None
        deadline = monotonic() + timeout
        while b"\n" not in self._read:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - monotonic()))
            piece = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not piece:
                raise AssertionError(f"no line came, but {self._read!r}; its log: {self.log}")
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def lines(self) -> list[str]:
        """Return the rest of the standard output, after the process has ended."""
        assert self.process.stdout is not None
        rest, self._read = self._read + self.process.stdout.read(), b""
        return rest.decode().splitlines()

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for the end, and return the exit status."""
        return self.process.wait(timeout)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        self.process.send_signal(number)
        return self.wait()


@contextmanager
def serving(folder: Path) -> Iterator[Callable[..., ServeProcess]]:
    """Give a function that starts ``greensmtp serve`` with options and waits until it listens.

    The server runs in the folder, and is killed at the end. It listens on a free port unless ``--listen`` is among the
    options, and is called ``mx.example.com`` unless ``--hostname`` is. With ``wait=False``, the function does not wait.
    ``listeners=2``: a configuration file names that many listeners, and everything else.

    The process is forked from one that has imported greensmtp, and first runs the Python of ``first``. With a
    ``command``, a fresh process is started. Other arguments go to ``forked.start`` or Popen.
    """
    running: list[ServeProcess] = []

    def start(
        *options: str | Path,
        command: Sequence[str | Path] | None = None,
        wait: bool = True,
        listeners: int = 0,
        **popen: Any,
    ) -> ServeProcess:
        given = list(options)
        if "--listen" not in given and not listeners:
            given += ["--listen", "127.0.0.1:0"]
        if "--hostname" not in given and not listeners:
            given += ["--hostname", "mx.example.com"]
        process = ServeProcess(["serve", *given], folder, command, **popen)
        running.append(process)
        for _ in range((listeners or given.count("--listen")) if wait else 0):
            while (line := process.line()).startswith("storing mail in "):
                pass
            word, url = line.split(" ")
            assert word == "listening"
            process.urls.append(url)
        return process

    try:
        yield start
    finally:
        for process in running:
            if process.process.poll() is None:
                process.process.kill()
                process.wait()
            if process.process.stdout is not None:
                process.process.stdout.close()
