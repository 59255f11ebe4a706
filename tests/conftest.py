"""What several test files share: the servers' fixtures, and certificates made in memory."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, Protocol

import pytest
import trustme
from gevent import socket
from hypothesis import settings

from greensmtp.testing import Peer
from tests import forked
from tests.cuts import interesting_cuts

# (The second comes by its entry point, too, where this checkout is installed.)
pytest_plugins = ["greensmtp.testing.fixtures", "pytest_greensmtp"]

# What is slow is measured by tests of its own; how long one example takes on a busy machine means nothing.
settings.register_profile("short", deadline=None, max_examples=40)
settings.register_profile("long", deadline=None, max_examples=300)  # make test-all
settings.load_profile("short")


#: Fixtures that start processes; tests that use one need no marker of their own.
_PROCESSES = {"serve", "run", "program", "page"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start processes by a fixture, before ``-m`` selects."""
    for item in items:
        if not _PROCESSES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.subprocess)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the groups of pytest-xdist 3.8 work: it appends them to an attribute that pytest 9.2 no longer reads."""
    for item in session.items:
        grouped = vars(item).get("_nodeid")
        if grouped is not None and hasattr(item, "_id"):
            item._id = type(item._id).parse(grouped)


class Cuts(Protocol):
    """What the fixture ``cuts`` returns."""

    def __call__(self, wire: bytes, start: int = ..., stop: int | None = ..., step: int = ...) -> Iterable[int]: ...


@pytest.fixture(params=["interesting", pytest.param("every", marks=pytest.mark.exhaustive)])
def cuts(request: pytest.FixtureRequest) -> Cuts:
    """Return the places where a test cuts bytes: ``cuts(wire, start, stop)``.

    A test that uses it runs twice: with the interesting places (``make test``), and with every place, or every
    ``step``-th, which only ``make test-all`` does.
    """

    def places(wire: bytes, start: int = 1, stop: int | None = None, step: int = 1) -> Iterable[int]:
        end = len(wire) if stop is None else stop
        return range(start, end, step) if request.param == "every" else interesting_cuts(wire, start, end)

    return places


class Certificate(NamedTuple):
    """PEM files of a certificate for ``mx.example.com``, and of the authority that signed it."""

    certfile: Path
    keyfile: Path
    authority: Path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A server's certificate: ``smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile)``."""
    folder = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("mx.example.com", "localhost", "127.0.0.1")
    files = Certificate(folder / "cert.pem", folder / "key.pem", folder / "authority.pem")
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(files.certfile), append=number > 0)
    issued.private_key_pem.write_to_path(str(files.keyfile))
    authority.cert_pem.write_to_path(str(files.authority))
    return files


class ServeProcess:
    """``greensmtp serve`` in a process of its own, as seen from outside."""

    def __init__(
        self,
        command: Sequence[str | Path] | None,
        arguments: Sequence[str | Path],
        folder: Path,
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
        #: Where it listens, as it says itself.
        self.urls: list[str] = []

    @property
    def port(self) -> int:
        """That of its first listener."""
        return int(self.urls[0].rpartition(":")[2])

    @property
    def log(self) -> str:
        """Its standard error so far."""
        return self._log.read_text()

    @property
    def mail(self) -> list[bytes]:
        """The messages in ``new``, in the order in which they came."""
        return [path.read_bytes() for path in sorted((self.maildir / "new").iterdir())]

    def dial(self, number: int = 0) -> Peer:
        """Connect to one of its listeners."""
        where = self.urls[number].split(":", 1)[1]
        if where.startswith("//"):
            host, _, port = where.removeprefix("//").rpartition(":")
            return Peer(socket.create_connection((host.strip("[]"), int(port)), 10))
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(where)
        return Peer(connection)

    def line(self, patience: float = 20.0) -> str:
        """The next line of its standard output."""
        assert self.process.stdout is not None
        deadline = monotonic() + patience
        while b"\n" not in self._read:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - monotonic()))
            piece = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not piece:
                raise AssertionError(f"no line came, but {self._read!r}; its log: {self.log}")
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def lines(self) -> list[str]:
        """The rest of its standard output, once it has ended."""
        assert self.process.stdout is not None
        rest, self._read = self._read + self.process.stdout.read(), b""
        return rest.decode().splitlines()

    def wait(self, patience: float = 20.0) -> int:
        """Its exit status."""
        return self.process.wait(patience)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; gives the exit status."""
        self.process.send_signal(number)
        return self.wait()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServeProcess]]:
    """Start ``greensmtp serve`` with these options and wait until it listens; stopped when the test is over.

    It runs in the test's ``tmp_path``, listens on a free port unless ``--listen`` is among the options, and is called
    ``mx.example.com`` unless ``--hostname`` is. ``wait=False``: it is not waited for. ``listeners=2``: a configuration
    file names so many, and the rest, too. What else there is goes to Popen.

    It is forked from a process that has imported greensmtp, and runs the Python of ``first`` first. With a
    ``command``, a fresh process is started.
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
        serving = ServeProcess(command, ["serve", *given], tmp_path, **popen)
        running.append(serving)
        for _ in range((listeners or given.count("--listen")) if wait else 0):
            word, url = serving.line().split(" ")
            assert word == "listening"
            serving.urls.append(url)
        return serving

    yield start
    for serving in running:
        if serving.process.poll() is None:
            serving.process.kill()
            serving.wait()
        if serving.process.stdout is not None:
            serving.process.stdout.close()
