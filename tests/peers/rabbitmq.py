"""A RabbitMQ of a test's own: its own node, ports, folder, and port mapper (epmd)."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from gevent import socket, subprocess

from tests.helpers import until
from tests.programs import missing

#: Debian's wrapper in PATH changes to the user rabbitmq and to its folder; this is the script behind it.
_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"


class RabbitMQ:
    """A broker, which is started again with the same data after ``kill``."""

    def __init__(self, folder: Path) -> None:
        if not Path(_SERVER).exists():
            missing("rabbitmq-server is not installed")
        folder.mkdir()
        (folder / "plugins").write_text("[].\n")
        self.port, mapper, nodes = _free_ports(3)
        self._folder = folder
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),  # Erlang's cookie
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(nodes),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": str(folder / "log" / "rabbit.log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }
        (folder / "log").mkdir()
        # Not by the server, whose port mapper would outlive it.
        self._mapper = subprocess.Popen(["epmd", "-port", str(mapper), "-address", "127.0.0.1"], env=self._environment)
        until(lambda: _listens(mapper), "epmd")
        self._server: Any = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with (self._folder / "output").open("ab") as output:
            self._server = subprocess.Popen(
                [_SERVER], env=self._environment, stdout=output, stderr=output, cwd=self._folder, start_new_session=True
            )
        until(lambda: _listens(self.port), "RabbitMQ")

    def kill(self) -> None:
        """End all of its processes, as ``kill -9`` does."""
        if self._server is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait(20)
            self._server = None
            until(lambda: not _listens(self.port), "RabbitMQ's end")

    def stop(self) -> None:
        """End it and its port mapper."""
        self.kill()
        self._mapper.kill()
        self._mapper.wait(20)


def _free_ports(number: int) -> list[int]:
    """Return ports that differ: one that was found free is found again once it is released."""
    with ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(number)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in found]


def _listens(port: int) -> bool:
    """Return True if a server listens: RabbitMQ does when it is ready. A connection to itself does not count."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            return bool(connection.getsockname() != connection.getpeername())
    except OSError:
        return False
