"""``greensmtp.run``: start, serve, drain at a signal, and leave the process as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

import greensmtp
from greensmtp import SMTPServer
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

pytestmark = pytest.mark.subprocess

PROGRAM = """
import sys
{patch}
import greensmtp
from greensmtp import SMTPServer

servers = [SMTPServer(("127.0.0.1", 0), hostname="mx.example.com") for _ in range(2)]
for server in servers:
    server.on("message", lambda session, stream, ack: ack.accept())
greensmtp.run(*servers, started=lambda server: print(server.address[1], flush=True))
print("drained", flush=True)
"""

PATCH = "from gevent import monkey; monkey.patch_all()"


class Program:
    """A process that runs two servers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.ports = [int(process.stdout.readline()) for _ in range(2)]

    def dial(self, number: int = 0) -> Peer:
        return Peer(socket.create_connection(("127.0.0.1", self.ports[number]), timeout=10))

    def end(self) -> tuple[int, str, str]:
        """Return the exit status, and what it has printed and logged since it was ready."""
        printed, log = self.process.communicate(timeout=20)
        return self.process.returncode, printed, log


@contextmanager
def running(patch: str = "") -> Iterator[Program]:
    command = [sys.executable, "-c", PROGRAM.format(patch=patch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


def begin_mail(peer: Peer) -> None:
    peer.hello()
    peer.envelope()
    peer.line("DATA")
    peer.expect("354")


@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_every_server_and_run_returns(number: signal.Signals, patch: str) -> None:
    with running(patch) as program:
        with program.dial(0) as first, program.dial(1) as second, program.dial(1) as idle:
            begin_mail(first)
            begin_mail(second)
            idle.hello()
            program.process.send_signal(number)
            idle.expect("421 4.3.2")
            # Neither waits for the other.
            second.line("Subject: x", "", ".")
            second.expect("250", "421")
            first.line("Subject: x", "", ".")
            first.expect("250", "421")
        assert program.end() == (0, "drained\n", "")


@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
def test_a_second_signal_ends_the_process_at_once(patch: str) -> None:
    with running(patch) as program, program.dial(0) as busy, program.dial(1) as idle:
        begin_mail(busy)
        idle.hello()
        program.process.send_signal(signal.SIGTERM)
        idle.expect("421")
        program.process.send_signal(signal.SIGINT)
        assert program.end() == (1, "", "")


@pytest.fixture
def default_sighup() -> Iterator[None]:
    """Let SIGHUP end new processes, as it does by default, even if the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("default_sighup")
def test_sighup_is_ignored_and_logged() -> None:
    with running() as program:
        with program.dial() as peer:
            program.process.send_signal(signal.SIGHUP)
            peer.hello()
        program.process.send_signal(signal.SIGTERM)
        status, printed, log = program.end()
    assert (status, printed) == (0, "drained\n")
    assert "SIGHUP ignored" in log


def kill_once_it_runs(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def own_handlers() -> Iterator[dict[int, object]]:
    """Install signal handlers, as the program that calls ``run`` may have."""

    def mine(*arguments: object) -> None:
        raise AssertionError("not while greensmtp.run runs")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, mine) for number in numbers}
    yield dict.fromkeys(numbers, mine)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signal_handlers_are_restored(smtp_server: MakeServer, own_handlers: dict[int, object]) -> None:
    server = smtp_server(start=False)
    greensmtp.run(server, started=lambda _: kill_once_it_runs(signal.SIGTERM))
    assert not server.started
    assert {number: signal.getsignal(number) for number in own_handlers} == own_handlers
    with pytest.raises(AssertionError, match="not while"):
        os.kill(os.getpid(), signal.SIGINT)


def test_an_ignored_sighup_stays_ignored(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    """As it is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        def hang_up_and_stop(server: SMTPServer) -> None:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)

        greensmtp.run(smtp_server(start=False), started=hang_up_and_stop)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not caplog.records


def test_it_returns_when_a_handler_stops_every_server(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    @server.on("quit")
    def stop(session: greensmtp.Session) -> None:
        gevent.spawn(server.stop)

    def say_quit() -> None:
        with dial(server) as peer:
            peer.hello()
            peer.line("QUIT")
            peer.expect("221")

    with gevent.Timeout(10):
        greensmtp.run(server, started=lambda _: gevent.spawn(say_quit))


@pytest.mark.parametrize("in_a_middleware", [False, True])
def test_a_server_that_cannot_start_stops_the_others_and_raises(smtp_server: MakeServer, in_a_middleware: bool) -> None:
    first = smtp_server(start=False)
    if in_a_middleware:

        class Failing:
            def start(self, server: SMTPServer) -> None:
                raise LookupError("no such thing")

            def __call__(
                self, session: greensmtp.Session, command: greensmtp.Command, proceed: greensmtp.Proceed
            ) -> greensmtp.Reply:
                return proceed(session, command)

        second = smtp_server(start=False, middleware=[Failing()])
        with pytest.raises(LookupError, match="no such thing"):
            greensmtp.run(first, second)
    else:
        taken = smtp_server()
        with pytest.raises(OSError, match="in use"):
            greensmtp.run(first, smtp_server(start=False, listener=taken.address))
    assert not first.started
    assert first.closed


def test_other_servers_of_gevent_run_beside_it(smtp_server: MakeServer) -> None:
    other = StreamServer(("127.0.0.1", 0), lambda sock, peer: sock.sendall(b"hello"))

    def talk(server: Any) -> None:
        if server is other:
            with socket.create_connection(("127.0.0.1", server.address[1]), 10) as connection:
                assert connection.recv(10) == b"hello"
            kill_once_it_runs(signal.SIGTERM)

    greensmtp.run(smtp_server(start=False), other, started=talk)
    assert not other.started


def test_run_in_another_thread_is_an_error_that_says_what_to_do(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    caught: list[BaseException] = []

    def call() -> None:
        try:
            greensmtp.run(server)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)
    assert "main thread" in str(caught[0])
    assert "in_thread" in str(caught[0])
    assert not server.started


def test_run_refuses_a_list(smtp_server: MakeServer) -> None:
    with pytest.raises(TypeError, match="at least one"):
        greensmtp.run()
    with pytest.raises(TypeError, match="as separate arguments"):
        greensmtp.run([smtp_server(start=False)])  # type: ignore[type-var]


def test_what_cannot_be_called_when_a_server_has_started_is_refused_before(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    with pytest.raises(TypeError, match="started must be callable with a server, not 3"):
        greensmtp.run(server, started=3)  # type: ignore[arg-type]
    assert not server.started
