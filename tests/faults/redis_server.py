"""A redis-server that can be killed, stopped and started again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from typing import Any

from gevent import sleep, spawn
from gevent import socket as gevent_socket
from gevent.server import StreamServer

from tests.faults.clients import wait_for
from tests.faults.run import Run, Unavailable
from tests.faults.service import free_port


class SlowProxy:
    """Passes connections on to a Redis, and its answers back: each after ``delay`` seconds, or byte by byte."""

    def __init__(self, run: Run, server: RedisServer) -> None:
        self._target = server.port
        self.delay = 0.0
        #: Seconds between two bytes of an answer; 0: it comes at once.
        self.drip = 0.0
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.url = f"redis://127.0.0.1:{self._server.server_port}"
        run.cleanup.callback(self._server.stop, 0)

    def _serve(self, client: Any, peer: object) -> None:
        try:
            with gevent_socket.create_connection(("127.0.0.1", self._target)) as target:
                back = spawn(self._answer, target, client)
                while data := client.recv(65536):
                    target.sendall(data)
                back.kill()
        except OSError:
            pass  # either side has gone
        finally:
            client.close()

    def _answer(self, target: Any, client: Any) -> None:
        with suppress(OSError):
            while data := target.recv(65536):
                sleep(self.delay)
                if not self.drip:
                    client.sendall(data)
                    continue
                for number in range(len(data)):
                    client.sendall(data[number : number + 1])
                    sleep(self.drip)


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
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
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
