"""What must not grow: system calls, Python frames, memory and copies, counted on scripted sessions. Never time.

``BOUNDS`` has today's figures and a little room. If you make something cheaper, lower them. If you must raise one, give
the reason in the commit.
"""

from __future__ import annotations

import gc
import logging
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from gevent import Timeout, idle
from gevent import socket as gevent_socket
from gevent.event import Event

from greensmtp import Ack, MessageStream, Session, SMTPServer
from greensmtp._compiled import is_compiled
from greensmtp.log_writer import LogHandler
from greensmtp.middleware import Auth, Logging, RateLimit
from greensmtp.service.tally import Tally
from greensmtp.service.tracer import Tracer, Wanted
from greensmtp.testing.fixtures import MakeServer
from tests.counting import BLINKER, MESSAGES, OURS, Counted, counted_frames, frames_below, holds, left_to_the_collector
from tests.counting import small_heap as small_heap

pytestmark = pytest.mark.xdist_group("serial")

MEGABYTE = 1024 * 1024

#: what is counted -> the most there may be of it
BOUNDS: dict[str, float] = {
    # calls of functions of ours and of blinker's, generators' resumptions included
    "plain: frames a message": 52,
    "plain: frames a pipelined message": 51,
    "full: frames a message": 89,
    "full: frames a pipelined message": 88,
    "logged: frames a message": 132,
    "logged: frames a pipelined message": 131,
    # at once, recv's room of 128 KiB included, of which it gives back what it did not need
    "plain: bytes a message": 138_000,
    "full: bytes a message": 138_000,
    "logged: bytes a message": 138_000,
    "DATA: bytes at once": 700_000,
    "BDAT: bytes at once": 700_000,
    # greenlet, session and buffers, as Python counts them
    "plain: bytes an idle connection": 6_100,
    "full: bytes an idle connection": 6_100,
    "logged: bytes an idle connection": 6_400,
    # those that the garbage collector looks at, the client's among them
    "plain: objects an idle connection": 31.1,  # (a reply that is kept is one object, once)
    "full: objects an idle connection": 31.1,
    "logged: objects an idle connection": 32.1,
    # the last, which ends with the message
    "DATA: chunks copied": 1,
    "BDAT: chunks copied": 1,
}

if is_compiled():  # native functions are no frames; fields of native classes are a little larger
    BOUNDS |= {
        "plain: frames a message": 3,
        "plain: frames a pipelined message": 3,
        "full: frames a message": 19,
        "full: frames a pipelined message": 19,
        "logged: frames a message": 25,
        "logged: frames a pipelined message": 25,
        "plain: bytes an idle connection": 6_500,
        "full: bytes an idle connection": 6_500,
        "logged: bytes an idle connection": 6_900,
    }

ENVELOPE = (b"MAIL FROM:<a@example.org>\r\n", b"RCPT TO:<b@example.com>\r\n", b"DATA\r\n")
BODY = b"Subject: costs\r\n\r\n" + b"x" * 76 + b"\r\n.\r\n"


class Script:
    """A client with almost no cost of its own, in the same hub as the server."""

    def __init__(self, server: SMTPServer) -> None:
        self.socket, theirs = gevent_socket.socketpair()
        self.smtp_server = server
        self.server = Counted(theirs)
        server.adopt(self.server, ("192.0.2.1", 4711))  # RateLimit counts no peers without an address
        self.hear()
        self.say(b"EHLO client.example\r\n")

    def hear(self) -> bytes:
        """Return what has come."""
        with Timeout(10):
            return self.socket.recv(65536)

    def say(self, octets: bytes) -> bytes:
        """Send, and return the answer, which comes in one piece."""
        self.socket.sendall(octets)
        return self.hear()

    def message(self) -> None:
        """Send a message, one command at a time."""
        for command in ENVELOPE:
            self.say(command)
        assert self.say(BODY).startswith(b"250")

    def pipelined(self) -> None:
        """Send a message in two groups (RFC 2920)."""
        assert self.say(b"".join(ENVELOPE)).count(b"\r\n") == 3
        assert self.say(BODY).startswith(b"250")

    def close(self) -> None:
        """Send QUIT, and close."""
        self.say(b"QUIT\r\n")
        self.socket.close()


def take(session: Session, stream: MessageStream, ack: Ack) -> None:
    """Accept a message, and discard its body."""
    ack.accept()
    for _ in stream:
        pass


def plain(smtp_server: MakeServer) -> SMTPServer:
    """Make a server with one receiver, as in the benchmark of that name."""
    server = smtp_server(start=False, max_message_size=None, max_connections=None)
    server.on("message", take)
    return server


def full(smtp_server: MakeServer) -> SMTPServer:
    """Make a server with Logging, RateLimit and Auth, and receivers on five signals."""
    return with_stack(smtp_server, Logging())


def logged(smtp_server: MakeServer) -> SMTPServer:
    """Make the same server with a log."""
    logger = logging.Logger("costs", logging.INFO)  # not below the root logger, which has pytest's handlers
    logger.addHandler(LogHandler("text", os.devnull))
    return with_stack(smtp_server, Logging(logger))


def with_stack(smtp_server: MakeServer, log: Logging) -> SMTPServer:
    server = smtp_server(start=False, middleware=[log, RateLimit("100000/minute"), Auth({"beep": "boop"})])
    server.on("message", take)
    server.on("greeting", lambda session, greeting, ack: ack.accept())
    server.on("from", lambda session, address, ack: ack.accept())
    server.on("to", lambda session, address, ack: ack.accept())
    server.on("received", lambda session, ack: ack.accept())
    return server


SERVERS = {"plain": plain, "full": full, "logged": logged}


@pytest.fixture(params=list(SERVERS))
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of each server."""
    return str(request.param)


@pytest.fixture
def script(smtp_server: MakeServer, name: str) -> Iterator[Script]:
    """Yield a connection that has sent EHLO and two messages."""
    made = Script(SERVERS[name](smtp_server))
    made.message()
    made.pipelined()
    yield made
    made.close()


# System calls


def test_every_batch_is_one_recv_and_one_send(script: Script, name: str) -> None:
    calls = script.server.calls
    calls.clear()
    for _ in range(MESSAGES):
        script.message()
    assert calls == {"recv": 4 * MESSAGES, "send": 4 * MESSAGES}
    calls.clear()
    for _ in range(MESSAGES):
        script.pipelined()
    assert calls == {"recv": 2 * MESSAGES, "send": 2 * MESSAGES}


# Python


def test_frames_a_message(script: Script, name: str) -> None:
    with counted_frames() as counts:
        for _ in range(MESSAGES):
            script.message()
    holds(BOUNDS, f"{name}: frames a message", frames_below(counts, *OURS, BLINKER) / MESSAGES)
    with counted_frames() as counts:
        for _ in range(MESSAGES):
            script.pipelined()
    holds(BOUNDS, f"{name}: frames a pipelined message", frames_below(counts, *OURS, BLINKER) / MESSAGES)


def test_observers_cost_no_call_when_nobody_looks(script: Script, name: str) -> None:
    """Not before, and not after, somebody has looked, on the same connection."""

    class Everything:
        wanted = Wanted()

        def put(self, event: object) -> None:
            pass

    def count() -> int:
        with counted_frames() as counts:
            for _ in range(MESSAGES):
                script.message()
        return frames_below(counts, *OURS, BLINKER)

    (handler,) = script.smtp_server.connections
    routes = handler.routes
    before, tally, tracer, watcher = count(), Tally(), Tracer(), Everything()
    tracer.join(watcher, [script.smtp_server])
    for observer in (tally, tracer):
        routes.observe(observer)
    looking = count()
    tracer.leave(watcher)
    for observer in (tally, tracer):
        routes.forget(observer)
    assert looking > before
    assert count() == before


def test_a_signal_without_receivers_costs_no_call_of_blinker(smtp_server: MakeServer) -> None:
    """The only receiver is that of ``message``, and no message comes."""
    script = Script(plain(smtp_server))
    with counted_frames() as counts:
        script.say(b"EHLO client.example\r\n")
        script.say(ENVELOPE[0])
        script.say(ENVELOPE[1])
        script.say(b"RSET\r\n")
        script.say(b"NOOP\r\n")
        script.close()
    assert frames_below(counts, *OURS) > 0
    assert frames_below(counts, BLINKER) == 0


# Memory


def test_messages_leave_nothing_and_no_cycles(script: Script, name: str) -> None:
    """Everything is freed by its reference count: nothing is left to the garbage collector."""
    assert left_to_the_collector(script.message) == []
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(MESSAGES):
        script.message()
    assert len(gc.get_objects()) - before < MESSAGES, "objects for each message"


def test_a_connection_leaves_no_cycles(smtp_server: MakeServer, name: str) -> None:
    server = SERVERS[name](smtp_server)

    def come_and_go() -> None:
        script = Script(server)
        script.message()
        script.close()
        idle()

    come_and_go()
    assert left_to_the_collector(come_and_go) == []


@pytest.mark.parametrize("late", [False, True], ids=["closed", "late"])
def test_a_connection_that_is_lost_leaves_no_cycles(smtp_server: MakeServer, late: bool) -> None:
    server = smtp_server(start=False, command_timeout=0.02)
    gone = Event()
    server.on("disconnect", lambda session, reason: gone.set())

    def come_and_go() -> None:
        script = Script(server)
        if late:
            assert script.hear().startswith(b"421")
        script.socket.close()
        assert gone.wait(10)
        gone.clear()
        idle()  # the greenlet has a line or two to go

    come_and_go()
    assert left_to_the_collector(come_and_go) == []


@contextmanager
def traced() -> Iterator[Callable[[], tuple[int, int]]]:
    """Yield a function that returns the bytes that Python has allocated since, now and at the peak."""
    gc.collect()
    tracemalloc.start()
    try:
        yield tracemalloc.get_traced_memory
    finally:
        tracemalloc.stop()


def test_memory_of_a_message(script: Script, name: str) -> None:
    with traced() as memory:
        script.message()
        tracemalloc.reset_peak()
        script.message()
        _, peak = memory()
    holds(BOUNDS, f"{name}: bytes a message", peak)


def test_memory_of_an_idle_connection(smtp_server: MakeServer, name: str) -> None:
    server = SERVERS[name](smtp_server)
    count = 200
    first = Script(server)
    scripts: list[Script] = []
    gc.collect()
    objects = len(gc.get_objects())
    with traced() as memory:
        scripts.extend(Script(server) for _ in range(count))
        current, _ = memory()
    gc.collect()
    holds(BOUNDS, f"{name}: bytes an idle connection", current / count)
    holds(BOUNDS, f"{name}: objects an idle connection", (len(gc.get_objects()) - objects) / count)
    for each in (*scripts, first):
        each.close()


# Bodies


def pump(script: Script, verb: str, megabytes: int, lines: bytes) -> None:
    """Send a message of so many megabytes."""
    for command in ENVELOPE[:2]:
        script.say(command)
    piece = lines * (65536 // len(lines))
    if verb == "DATA":
        script.say(ENVELOPE[2])
        for _ in range(megabytes * MEGABYTE // len(piece)):
            script.socket.sendall(piece)
        assert script.say(b".\r\n").startswith(b"250")
    else:
        script.socket.sendall(b"BDAT %d LAST\r\n" % (len(piece) * (megabytes * MEGABYTE // len(piece))))
        for _ in range(megabytes * MEGABYTE // len(piece) - 1):
            script.socket.sendall(piece)
        assert script.say(piece).startswith(b"250")


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_a_body_is_not_copied(smtp_server: MakeServer, verb: str) -> None:
    """A receiver gets the very objects that came from the socket, except at the beginning and the end."""
    server = smtp_server(start=False)
    chunks: list[bytes] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        chunks.extend(stream)

    script = Script(server)
    script.server.keep()
    pump(script, verb, 1, b"x" * 76 + b"\r\n")
    came = {id(each) for each in script.server.received}
    assert len(chunks) > 4
    copied = sum(id(each) not in came for each in chunks)
    assert copied <= BOUNDS[f"{verb}: chunks copied"]
    script.close()


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
@pytest.mark.parametrize("lines", [b"x" * 76 + b"\r\n", b"..\r\n"], ids=["lines", "dots"])
def test_memory_stays_flat_however_large_the_message(smtp_server: MakeServer, verb: str, lines: bytes) -> None:
    script = Script(plain(smtp_server))
    script.message()
    with traced() as memory:
        pump(script, verb, 16, lines)
        _, peak = memory()
    holds(BOUNDS, f"{verb}: bytes at once", peak)
    script.close()
