"""A redis-server that can be killed, stopped and started again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess

from tests.faults.clients import wait_for
from tests.faults.run import Run, Unavailable
from tests.helpers import free_port


class RedisServer:
    """A redis-server on a loopback port of its own, without persistence."""

    def __init__(self, run: Run) -> None:
        """
        :raises Unavailable: it is not installed.
        """
        program = shutil.which("redis-server")
        if program is None:
            raise Unavailable("redis-server is needed: apt install redis-server")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        keep_nothing = ["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(run.folder)]
        self._command = [program, "--bind", "127.0.0.1", "--port", str(self.port), *keep_nothing]
        self._process: subprocess.Popen[bytes] | None = None
        run.cleanup.callback(self.kill)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, **quiet)
        wait_for(self._listens, what="redis-server to listen")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Stop it, so that it keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
