"""``sys.exit()`` in a handler or a middleware, by argparse and click too, and what else is no Exception: 451, a
traceback, and the server lives on."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from typing import Any

import pytest
from gevent import GreenletExit
from gevent.event import Event

from greensmtp import Ack, Command, MessageStream, Reply, Session, compose, when
from greensmtp.chain.chain import Proceed
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer


def leave(*args: Any, **fields: Any) -> Any:
    sys.exit(3)


def parse(*args: Any, **fields: Any) -> Any:
    argparse.ArgumentParser().parse_args(["--nonsense"])


def cancel(*args: Any, **fields: Any) -> Any:
    raise asyncio.CancelledError


def fail(*args: Any, **fields: Any) -> Any:
    pytest.fail("in a handler")


WAYS = {leave: "SystemExit", parse: "SystemExit", cancel: "CancelledError", fail: "Failed: in a handler"}


def take(session: Session, stream: MessageStream, ack: Ack) -> None:
    ack.accept()
    stream.read()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("connect", "421"),
        ("command", "220 451 451 451 451 451 451"),
        ("greeting", "220 451 503 503 503 250 221"),
        ("from", "220 250 451 503 503 250 221"),
        ("to", "220 250 250 451 503 250 221"),
        ("message", "220 250 250 250 451 250 221"),
        ("received", "220 250 250 250 354 451 250 221"),
        ("reset", "220 250 250 250 354 250 250 221"),
        ("quit", "220 250 250 250 354 250 250 221"),
        ("disconnect", "220 250 250 250 354 250 250 221"),
    ],
)
def test_in_a_handler(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, way: Any, name: Any, expected: str
) -> None:
    server = smtp_server(start=False)
    if name != "message":
        server.on("message", take)
    server.on(name, way)
    for _ in range(2):
        with dial(server) as peer:
            replies = [peer.reply()[:3]]
            for line in ("EHLO x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA", "RSET", "QUIT"):
                if name == "connect":
                    break
                peer.line(line)
                replies.append(peer.reply()[:3])
                if replies[-1] == "354":
                    peer.send("text\r\n.\r\n")
                    replies.append(peer.reply()[:3])
            assert " ".join(replies) == expected
    server.stop()
    assert f", in {way.__name__}\n" in caplog.text  # the traceback
    assert WAYS[way] in caplog.text


def middleware(session: Session, command: Command, proceed: Proceed) -> Reply:
    if command.verb == "MAIL":
        sys.exit(3)
    return proceed(session, command)


def passes(session: Session, command: Command, proceed: Proceed) -> Reply:
    return proceed(session, command)


passes.verbs = ("MAIL",)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("stacked", "name"),
    [
        (middleware, "test_system_exit.middleware"),
        (compose(middleware), "test_system_exit.middleware"),
        (when(lambda session: True, middleware), "test_system_exit.middleware"),
        (when(leave, passes), "test_system_exit.leave"),
    ],
)
def test_in_middleware_and_predicates(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, stacked: Any, name: str
) -> None:
    with dial(smtp_server(start=False, middleware=[stacked])) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "NOOP")
        peer.expect("451 4.3.0", "250")
    assert name in caplog.text
    assert "SystemExit" in caplog.text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reads", [True, False])
def test_in_a_pipe_and_at_the_end(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, way: Any, reads: bool
) -> None:
    class Pipe:
        def write(self, data: bytes) -> None:
            way()

    server = smtp_server(start=False)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.at_end(way)
        stream.pipe(Pipe())
        ack.accept()
        if reads:
            stream.read()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("451")
        peer.line("NOOP")
        peer.expect("250")
    assert f"test_system_exit.{way.__name__} raised at the end of a message" in caplog.text


class Hooked:
    """A middleware that exits at the start, or at the stop."""

    verbs = ("NOOP",)

    def __init__(self, at: str) -> None:
        setattr(self, at, leave)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, command)


def test_in_a_start_hook_it_is_an_error_of_the_start(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[Hooked("start")])
    with pytest.raises(RuntimeError, match=r"start of .*Hooked called sys\.exit\(3\)"):
        server.start()
    assert not server.started


def test_in_a_stop_hook_it_is_logged(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    told = Event()

    class Told(Hooked):
        def stop(self, server: Any) -> None:
            told.set()

    server = smtp_server(middleware=[Told("unused"), Hooked("stop")])
    server.stop()
    assert told.is_set()
    assert re.search(r"stop of middleware \S+Hooked raised", caplog.text)


def test_greenlet_exit_ends_the_connection_alone(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = smtp_server(start=False)
    reasons: list[str] = []

    @server.on("to")
    def kill(session: Session, **fields: Any) -> None:
        raise GreenletExit

    server.on("disconnect", lambda session, reason: reasons.append(reason))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        peer.expect("250")
        peer.expect_end()
    with dial(server) as peer:
        peer.hello()
    assert reasons[0] == "shutdown"
    assert not caplog.records


def test_keyboard_interrupt_goes_where_it_belongs(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    @server.on("to")
    def interrupt(session: Session, **fields: Any) -> None:
        raise KeyboardInterrupt

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        with pytest.raises(KeyboardInterrupt):
            peer.rest()
