"""The warning about a server whose hub never runs."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from gevent import get_hub, sleep

from greensmtp import SMTPServer
from greensmtp.server.hub_watch import HubWatch
from greensmtp.testing.fixtures import MakeServer

pytestmark = pytest.mark.xdist_group("serial")

WARNING = "no client gets a banner"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make servers warn after a short time."""
    monkeypatch.setattr(SMTPServer, "hub_timeout", 0.05)


def wait_natively(caplog: pytest.LogCaptureFixture, seconds: float = 5.0) -> bool:
    """Block the hub until there is a warning."""
    deadline = time.monotonic() + seconds
    while WARNING not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    return WARNING in caplog.text


def test_a_server_whose_hub_never_runs_is_warned_of(
    smtp_server: MakeServer, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server()
    assert wait_natively(caplog)
    assert str(server.address) in caplog.text
    assert "serve_forever" in caplog.text
    assert "in_thread" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_so_is_one_in_a_thread_of_another_kind(quick: None, caplog: pytest.LogCaptureFixture) -> None:
    servers: list[SMTPServer] = []

    def work() -> None:
        server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
        server.start()
        servers.append(server)
        assert wait_natively(caplog)
        server.stop(0)
        get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert servers
    assert WARNING in caplog.text


def test_a_server_that_serves_is_not_warned_of(
    smtp_server: MakeServer, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    smtp_server()
    sleep(0)
    assert not wait_natively(caplog, 0.2)


def test_a_server_that_has_stopped_is_not_warned_of(
    smtp_server: MakeServer, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    smtp_server().stop(0)
    assert not wait_natively(caplog, 0.2)


def test_a_server_in_a_thread_of_its_own_is_not_warned_of(quick: None, caplog: pytest.LogCaptureFixture) -> None:
    with SMTPServer(("127.0.0.1", 0), hostname="mx.example.com").in_thread():
        assert not wait_natively(caplog, 0.2)


def test_one_watch_serves_many_hubs_and_its_thread_ends() -> None:
    watch = HubWatch()
    loop = get_hub().loop
    late: list[int] = []
    ends = [watch.expect(loop, 0.05 if number % 2 else 60, partial(late.append, number)) for number in range(6)]
    deadline = time.monotonic() + 5
    while len(late) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(late) == [1, 3, 5]
    sleep(0)  # the hub runs
    while watch._is_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not watch._is_running
    for end in ends:
        end()  # once more does no harm


@pytest.mark.subprocess
def test_it_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from greensmtp import SMTPServer\n"
        "SMTPServer(('127.0.0.1', 0), hostname='mx.example.com').start()\n"
        "print('done')\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "done\n"
    assert done.stderr == ""
    assert time.monotonic() - began < SMTPServer.hub_timeout + 4


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_thread_whose_server_cannot_start_leaves_no_descriptors() -> None:
    class Unwilling:
        verbs = ()

        def __call__(self, session: object, command: object, proceed: object) -> object:
            raise NotImplementedError

        def start(self, server: SMTPServer) -> None:
            raise RuntimeError("not today")

    sleep(0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        before = descriptors()
        for _ in range(5):
            with pytest.raises(OSError, match="in use"):
                SMTPServer(taken.getsockname(), hostname="mx.example.com").in_thread().start()
            with pytest.raises(RuntimeError, match="not today"):
                SMTPServer(("127.0.0.1", 0), middleware=[Unwilling()]).in_thread().start()  # type: ignore[list-item]
        assert descriptors() <= before
