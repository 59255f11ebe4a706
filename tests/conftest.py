"""Fixtures for all tests: servers, a virtual clock, certificates, cuts."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest
import trustme
from gevent import get_hub, spawn
from hypothesis import settings

from greensmtp._compiled import is_compiled
from greensmtp.server.deadlines import DeadlineMonitor
from tests.cuts import interesting_cuts
from tests.serve_process import ServeProcess, serving
from tests.virtual_clock import VirtualClock

# For tests of benchmarks/. At the end, since the package that is installed, or compiled, comes first.
sys.path.append(str(Path(__file__).parents[1]))

# (The second comes by its entry point, too, where this checkout is installed.)
pytest_plugins = ["greensmtp.testing.fixtures", "pytest_greensmtp"]

# No deadline: separate tests measure speed, and the time of one example on a busy machine means nothing.
settings.register_profile("short", deadline=None, max_examples=40)
settings.register_profile("long", deadline=None, max_examples=300)  # make test-all
settings.load_profile("short")


def pytest_configure() -> None:
    """Do not test the sources where the compiled build is to be tested (make test-compiled)."""
    if os.environ.get("GREENSMTP_EXPECT_COMPILED") and not is_compiled():
        raise pytest.UsageError("expected the compiled build of greensmtp; found the sources: see PYTHONPATH")


#: Fixtures that start processes; tests that use one need no marker.
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
    """The type of the fixture ``cuts``."""

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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualClock]:
    """The clock of all servers' timeouts, which jumps ahead when nothing happens: a test of a timeout takes no time.

    A module that also uses ``smtp_server`` asks for it by ``usefixtures``, so that servers are stopped before it.
    """
    clock = VirtualClock()
    start = DeadlineMonitor.start

    def start_with_clock(monitor: DeadlineMonitor, loop: object) -> None:
        if loop is not get_hub().loop:  # a server in a thread of its own
            return start(monitor, loop)
        monitor.clock = clock
        return start(monitor, clock)

    monkeypatch.setattr(DeadlineMonitor, "start", start_with_clock)
    running = spawn(clock.run)
    yield clock
    running.kill()


class Certificate(NamedTuple):
    """PEM files of a certificate for ``mx.example.com``, and of the authority that signed it."""

    certfile: Path
    keyfile: Path
    authority: Path


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty folder with a short path, as unix sockets need: that of pytest's own grows with its runs."""
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Create a server's certificate: ``smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile)``."""
    folder = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("mx.example.com", "localhost", "127.0.0.1")
    files = Certificate(folder / "cert.pem", folder / "key.pem", folder / "authority.pem")
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(files.certfile), append=number > 0)
    issued.private_key_pem.write_to_path(str(files.keyfile))
    authority.cert_pem.write_to_path(str(files.authority))
    return files


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServeProcess]]:
    """Start ``greensmtp serve`` in the test's ``tmp_path``; see ``serving``."""
    with serving(tmp_path) as start:
        yield start
