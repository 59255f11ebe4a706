"""Programs in processes of their own, forked from one that has imported greensmtp: a start takes milliseconds.

A child has its own process id, descriptors, folder, environment and exit, and is patched by gevent or not, as the
program would be. A test of the start itself (the script, the order of imports, variables that the interpreter reads)
needs a real one: ``subprocess``.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket as native_socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import IO, Any

from gevent import Timeout, socket

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL

#: The command line, which patches; and unpatched programs, in which a warning is an error.
PATCHED, UNPATCHED = ("patched",), ("unpatched", "-W", "error")


def command_line(*arguments: object, first: str = "") -> dict[str, Any]:
    """Return the program ``greensmtp ARGUMENTS``; ``first`` is Python that runs before it."""
    program: dict[str, Any] = {"argv": ["greensmtp", *map(str, arguments)]}
    return program | {"code": f"{first}\nfrom greensmtp.__main__ import main; main()"} if first else program


def python(code: str, *arguments: object) -> dict[str, Any]:
    """Return the program that ``python -c CODE ARGUMENTS`` is."""
    return {"argv": ["-c", *map(str, arguments)], "code": code}


def script(path: Path, *arguments: object) -> dict[str, Any]:
    """Return the program that ``python PATH ARGUMENTS`` is."""
    return {"argv": [str(path), *map(str, arguments)], "script": str(path)}


class Process:
    """A forked process: the part of ``subprocess.Popen`` that tests use. Waiting lets other greenlets run."""

    def __init__(self, status: Any, stdout: int | None) -> None:
        self._status = status
        self._said = b""
        self.returncode: int | None = None
        self.stdout = None if stdout is None else os.fdopen(stdout, "rb")
        while b" " not in self._said:
            assert self._read(), "the fork server has ended"
        self.pid = int(self._said.split()[0])

    def _read(self) -> bool:
        piece: bytes = self._status.recv(100)
        self._said += piece
        return bool(piece)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, negative for a signal, or raise ``TimeoutExpired``."""
        if self.returncode is None:
            with Timeout(timeout, subprocess.TimeoutExpired(f"forked process {self.pid}", timeout or 0)):
                while self._read():
                    pass
            self.returncode = int(self._said.split()[1])
            self._status.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended, and wait for the end."""
        self.send_signal(signal.SIGKILL)
        self.wait()


class _ForkServer:
    """A running ``fork_server.py``, for programs that are patched or not, with options of ``python``."""

    def __init__(self, patched: str, options: Sequence[str]) -> None:
        ours, theirs = native_socket.socketpair(native_socket.AF_UNIX, native_socket.SOCK_SEQPACKET)
        script = Path(__file__).with_name("fork_server.py")
        self._control = ours
        self._process = subprocess.Popen(
            [sys.executable, *options, str(script), str(theirs.fileno()), patched],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
        theirs.close()
        atexit.register(self.stop)

    def fork(self, program: Mapping[str, Any], descriptors: Sequence[int]) -> Any:
        """Start a program; return the socket that tells its process id and its exit status."""
        ours, theirs = socket.socketpair()
        with theirs:
            message = json.dumps(program).encode()
            native_socket.send_fds(self._control, [message], [theirs.fileno(), *descriptors])
        return ours

    def stop(self) -> None:
        """Let it end, and wait for it."""
        self._control.close()
        self._process.wait()


#: One for each way in which programs are started; made when the first one is.
_server = cache(_ForkServer)


def start(
    program: Mapping[str, Any],
    *,
    how: Sequence[str] = PATCHED,
    cwd: str | Path = ".",
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] = DEVNULL,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    closed: Collection[int] = (),
) -> Process:
    """Start a program.

    The streams are descriptors or files; ``stdin`` may be ``DEVNULL``, ``stdout`` may be ``PIPE``. Descriptors in
    ``closed`` are closed in the child.
    """
    patched, *options = how
    server = _server(patched, tuple(options))
    environment = dict(os.environ if env is None else env)
    whole = {**program, "cwd": str(Path(cwd).absolute()), "env": environment, "closed": [*closed]}
    with ExitStack() as stack:
        reading = None
        if stdout == PIPE:
            reading, stdout = os.pipe()
            stack.callback(os.close, stdout)
        if stdin == DEVNULL:
            stdin = stack.enter_context(Path(os.devnull).open("rb"))
        # None is the stream of this process.
        streams = [stdin, 1 if stdout is None else stdout, 2 if stderr is None else stderr]
        descriptors = [stream if isinstance(stream, int) else stream.fileno() for stream in streams]
        status = server.fork(whole, descriptors)
    return Process(status, reading)


def run(
    program: Mapping[str, Any], *, input: bytes = b"", timeout: float = 30, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; return its status and what it has printed, like ``subprocess.run``."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(input)
        stdin.seek(0)
        process = start(program, **{"stdin": stdin, "stdout": stdout, "stderr": stderr} | options)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(program["argv"], status, stdout.read().decode(), stderr.read().decode())
