"""``start`` and ``stop`` of middleware: in order, once each, and nothing is left half open."""

from __future__ import annotations

import logging
import re
import socket
from typing import Any

import pytest

from greensmtp import Command, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

Told = list[tuple[str, str, SMTPServer, bool]]


class Lively:
    """Records calls of ``start`` and ``stop``, and whether the server was listening."""

    def __init__(self, name: str, told: Told, failing: str = "") -> None:
        self.name = name
        self.told = told
        self.failing = failing

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, command)

    def start(self, server: SMTPServer) -> None:
        self._note("start", server)

    def stop(self, server: SMTPServer) -> None:
        self._note("stop", server)

    def _note(self, what: str, server: SMTPServer) -> None:
        self.told.append((self.name, what, server, server.started))
        if what == self.failing:
            raise OSError(98, f"{self.name} cannot {what}")


def passing(session: Session, command: Command, proceed: Proceed) -> Reply:
    """A middleware without ``start`` and ``stop``."""
    return proceed(session, command)


def test_it_is_told_before_the_server_listens_and_after_it_has_stopped(smtp_server: MakeServer) -> None:
    told: Told = []
    server = smtp_server(middleware=[Lively("a", told), passing, Lively("b", told)])
    assert told == [("a", "start", server, False), ("b", "start", server, False)]
    server.start()  # has started
    with dial(server) as peer:
        peer.hello()
        server.close()
        assert len(told) == 2  # connections go on, and so does what they need
        peer.line("QUIT")
        peer.expect("221")
    server.stop()
    server.stop()
    assert told[2:] == [("b", "stop", server, False), ("a", "stop", server, False)]


def test_it_is_told_again_when_the_server_starts_again(smtp_server: MakeServer) -> None:
    told: Told = []
    server = smtp_server(middleware=[Lively("a", told)])
    server.stop()
    server.use(Lively("b", told))
    server.start()
    server.stop()
    assert [(name, what) for name, what, _, _ in told] == [
        *(("a", "start"), ("a", "stop")),
        *(("a", "start"), ("b", "start"), ("b", "stop"), ("a", "stop")),
    ]


def test_a_start_after_close_starts_only_new_middleware(smtp_server: MakeServer) -> None:
    told: Told = []
    server = smtp_server(middleware=[Lively("a", told)])
    server.close()
    server.use(Lively("b", told))
    server.start()
    assert [(name, what) for name, what, _, _ in told] == [("a", "start"), ("b", "start")]


def test_one_that_cannot_start_stops_the_start(smtp_server: MakeServer) -> None:
    told: Told = []
    server = smtp_server(start=False, middleware=[Lively("a", told), Lively("b", told, "start"), Lively("c", told)])
    with pytest.raises(OSError, match="b cannot start"):
        server.start()
    assert not server.started
    assert [(name, what) for name, what, _, _ in told] == [("a", "start"), ("b", "start"), ("a", "stop")]


def test_a_listener_that_cannot_be_had_is_told_as_a_stop(smtp_server: MakeServer) -> None:
    told: Told = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = smtp_server(listener=taken.getsockname(), start=False, middleware=[Lively("a", told)])
        with pytest.raises(OSError, match="in use"):
            server.start()
    assert [(name, what) for name, what, _, _ in told] == [("a", "start"), ("a", "stop")]
    server.start()  # and now it can be had
    assert told[-1][1] == "start"


def test_one_that_cannot_stop_is_logged_and_the_others_are_told(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    told: Told = []
    server = smtp_server(middleware=[Lively("a", told), Lively("b", told, "stop")])
    server.stop()
    assert [name for name, what, _, _ in told if what == "stop"] == ["b", "a"]
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert re.search(r"stop of middleware \S+Lively raised", record.getMessage())


@pytest.mark.parametrize("name", ["start", "stop"])
@pytest.mark.parametrize("hook", [lambda: None, "now", lambda server, more: None])
def test_what_cannot_be_called_so_is_refused_when_it_is_stacked(smtp_server: MakeServer, name: str, hook: Any) -> None:
    lively = Lively("a", [])
    setattr(lively, name, hook)
    server = smtp_server(start=False)
    with pytest.raises(TypeError, match=rf"{name} of .*Lively is called as \(server\) -> None"):
        server.use(lively)
