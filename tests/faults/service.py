"""A server in processes of its own: plain, with workers, under gunicorn, or as a program of a library user."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from gevent import sleep

from tests.faults.clients import Client, Closed
from tests.faults.run import Run, Unavailable
from tests.helpers import replace_text

ROOT = Path(__file__).resolve().parent.parent.parent

#: What runs as a library user's program: an SMTPServer on an inherited socket, stored in a Maildir.
_PROGRAM = """
import sys
from gevent import monkey; monkey.patch_all()
from gevent import socket
import greensmtp
from greensmtp import SMTPServer
from greensmtp.delivery import Maildir
server = SMTPServer(socket.socket(fileno=int(sys.argv[1])), hostname=sys.argv[3])
Maildir(sys.argv[2]).attach(server)
greensmtp.run(server)
"""

#: Starts a program as systemd does: the socket is descriptor 3, and LISTEN_PID is the program's own number.
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""

#: mode -> the module that it needs
_NEEDS = {
    "workers": "greensmtp.service.arbiter",
    "gunicorn": "greensmtp.server.worker",
    "activated": "greensmtp.service.systemd",
}

#: What gunicorn is given: the server of the configuration's first listener.
_APPLICATION = """
from greensmtp.config.build import assemble
from greensmtp.config.load import load
from pathlib import Path
server = assemble(load(Path({config!r}))).serving[0].server
"""


def need_mode(mode: str) -> None:
    """Require that this checkout can serve in a mode.

    :raises Unavailable: it cannot.
    """
    module = _NEEDS.get(mode)
    try:
        known = module is None or find_spec(module) is not None
    except ModuleNotFoundError:
        known = False
    if not known:
        raise Unavailable(f"mode {mode} needs {module}, which is not there")


def free_port() -> int:
    """Return a free port, at random and below those that the kernel gives to clients: other runs do the same."""
    while True:
        port = random.randrange(10_000, 20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Service:
    """A server that can be started, killed and started again, on the same port and with the same Maildir."""

    def __init__(
        self,
        run: Run,
        config: str = "",
        *,
        limits: Mapping[str, object] | None = None,
        listener: str = "",
        stack: str = "middleware = []",
        maildir: Path | None = None,
        delivery: str | None = None,
        mode: str | None = None,
        environment: Mapping[str, str] | None = None,
        kept: socket.socket | None = None,
        name: str = "server",
    ) -> None:
        """
        :param config: sections to add to the configuration.
        :param listener: further keys of the first listener.
        :param stack: the middleware of all listeners, in TOML, at the top of the file.
        :param delivery: sections in the place of the one that stores mail in a Maildir.
        :param kept: a listening socket that outlives the server.
        """
        self.mode = run.mode if mode is None else mode
        need_mode(self.mode)
        self.folder = run.folder / name
        self.folder.mkdir()
        self.maildir = self.folder / "maildir" if maildir is None else maildir
        self.port = free_port() if kept is None else kept.getsockname()[1]
        #: Its name, in the banner, which no other server has.
        self.hostname = f"mx-{random.randrange(10**9)}.example.com"
        self.config = self.folder / "greensmtp.toml"
        self._log = self.folder / "log"
        self._kept = kept
        self._environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._known: set[int] = set()
        stored = f'[delivery]\nmaildir = "{self.maildir}"'
        bounds = "\n".join(f"{key} = {value}" for key, value in (limits or {}).items())
        self.config.write_text(
            f'hostname = "{self.hostname}"\n{stack}\n[[listeners]]\nurl = "smtp://127.0.0.1:{self.port}"\n{listener}\n'
            f"[limits]\n{bounds}\n{stored if delivery is None else delivery}\n{config}\n"
        )
        run.cleanup.callback(self.end)

    def _command(self) -> list[str]:
        if self.mode == "library":
            assert self._kept is not None
            return [sys.executable, "-c", _PROGRAM, str(self._kept.fileno()), str(self.maildir), self.hostname]
        if self.mode == "gunicorn":
            (self.folder / "app.py").write_text(_APPLICATION.format(config=str(self.config)))
            command = [sys.executable, "-m", "gunicorn", "-w", "2", "-k", "greensmtp.server.worker.SMTPWorker"]
            return [*command, "-b", f"127.0.0.1:{self.port}", "--chdir", str(self.folder), "app:server"]
        command = [sys.executable, "-m", "greensmtp", "serve", "--config", str(self.config)]
        return [*command, "--workers", "2"] if self.mode == "workers" else command

    def start(self, *, wait: bool = True) -> float:
        """Start it, and wait until it greets a client; return the seconds that this took."""
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        # The modules of tests/faults are plugins of the server.
        environment = clean | {"PYTHONPATH": str(ROOT)} | self._environment
        descriptors = [] if self._kept is None else [self._kept.fileno()]
        command = self._command()
        if self.mode == "activated":
            command = [sys.executable, "-c", _ACTIVATE, str(descriptors[0]), *command]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=self.folder,
                env=environment,
                pass_fds=descriptors,
            )
        return self.wait_ready() if wait else 0.0

    def wait_ready(self, seconds: float = 30.0) -> float:
        """Wait until a client gets a banner; return the seconds that this took."""
        began = monotonic()
        while True:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the server has ended with {self.process.returncode}: {self.log[-2000:]}")
            try:
                with Client(self.port, timeout=seconds) as client:
                    if client.reply().startswith(f"220 {self.hostname} ".encode()):
                        return monotonic() - began
            except (OSError, Closed):
                pass
            if monotonic() - began > seconds:
                raise AssertionError(f"no banner within {seconds:g} s: {self.log[-2000:]}")
            sleep(0.01)

    def rename(self) -> None:
        """Give the server another name in its configuration, which a reload reads."""
        before, self.hostname = self.hostname, f"mx-{random.randrange(10**9)}.example.com"
        replace_text(self.config, self.config.read_text().replace(before, self.hostname))

    @property
    def log(self) -> str:
        """The standard error so far."""
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The process that was started: the server, or the arbiter."""
        assert self.process is not None
        return self.process.pid

    @property
    def workers(self) -> list[int]:
        """The processes that serve."""
        found = _children(self.pid) if self.mode in ("workers", "gunicorn") else [self.pid]
        self._known.update(found)
        return found

    def signal(self, number: int) -> None:
        """Send a signal to the process that was started."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = 60.0) -> int:
        """Wait for the end of the process; return its status."""
        assert self.process is not None
        deadline = monotonic() + seconds
        while self.process.poll() is None:
            if monotonic() > deadline:
                raise AssertionError(f"the server has not ended within {seconds:g} s: {self.log[-2000:]}")
            sleep(0.01)
        return self.process.returncode

    def limit_descriptors(self, most: int) -> None:
        """Change how many descriptors each process may have."""
        for pid in {self.pid, *self.workers}:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))

    def end(self) -> None:
        """Kill what is left of it, and wait."""
        if self.process is None:
            return
        workers = set(self.workers) | self._known
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        for pid in workers - {self.process.pid}:
            if _is_ours(pid, self.folder):
                os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_ours(pid: int, folder: Path) -> bool:
    """Return True if a process still is one that was started in this folder: numbers are used again."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    except OSError:
        return False


def resident(pid: int) -> int:
    """Return the memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
