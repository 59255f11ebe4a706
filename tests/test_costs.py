"""What must not grow: system calls, Python frames, memory and copies, counted on scripted sessions. Never time.

``BOUNDS`` has today's figures and a little room. If you make something cheaper, lower them. If you must raise one, give
the reason in the commit.
"""

from __future__ import annotations

import collections
import gc
import logging
import os
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import blinker
import greenlet
import pytest
from gevent import Timeout, idle, spawn
from gevent import socket as gevent_socket
from gevent.event import Event
from gevent.server import StreamServer

import greensmtp
from greensmtp import Ack, MessageStream, Pool, Session, SMTPClient, SMTPServer, connect
from greensmtp._compiled import is_compiled
from greensmtp.log_writer import LogHandler
from greensmtp.middleware import Auth, Logging, RateLimit
from greensmtp.service.tally import Tally
from greensmtp.service.tracer import Tracer, Wanted
from greensmtp.testing.fixtures import MakeServer

pytestmark = pytest.mark.xdist_group("serial")

MEGABYTE = 1024 * 1024

#: what is counted -> the most there may be of it
BOUNDS: dict[str, float] = {
    # calls of functions of ours and of blinker's, generators' resumptions included
    "plain: frames a message": 52,
    "plain: frames a pipelined message": 51,
    "full: frames a message": 89,
    "full: frames a pipelined message": 88,
    "logged: frames a message": 131,
    "logged: frames a pipelined message": 130,
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
    # calls of functions of ours, to send a message of 1 kB
    "send: frames a message": 38,
    "send_many: frames a message": 40.1,  # (the first envelope is one more)
    "pool: frames a message": 54,
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
#: Messages in which to count.
MESSAGES = 20


class Counted(gevent_socket.socket):
    """A gevent socket that counts the system calls of its input and output, tries that found nothing included, and
    keeps what it has received while ``keep`` is true."""

    class _gevent_sock_class(gevent_socket.socket._gevent_sock_class):  # type: ignore[name-defined, misc]
        """The class with which gevent makes system calls."""

        calls: collections.Counter[str]
        keep = False
        received: list[bytes]

        def recv(self, *arguments: Any) -> bytes:
            self.calls["recv"] += 1
            data: bytes = super().recv(*arguments)
            if self.keep:
                self.received.append(data)
            return data

        def recv_into(self, *arguments: Any) -> int:
            self.calls["recv"] += 1
            taken: int = super().recv_into(*arguments)
            return taken

        def send(self, *arguments: Any) -> int:
            self.calls["send"] += 1
            sent: int = super().send(*arguments)
            return sent

        def sendall(self, *arguments: Any) -> None:
            self.calls["send"] += 1
            super().sendall(*arguments)

    _sock: Any

    def __init__(self, other: Any) -> None:
        super().__init__(other.family, other.type, other.proto, other.detach())
        #: ``recv`` and ``send``, and how many of them.
        self.calls: collections.Counter[str] = collections.Counter()
        #: What recv gave, after ``keep``.
        self.received: list[bytes] = []
        self._sock.calls, self._sock.received = self.calls, self.received

    def keep(self) -> None:
        """Keep what is received from now on."""
        self._sock.keep = True


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


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """Keep what exists already from the garbage collector, which looks at all of it in every collection otherwise."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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


def holds(what: str, measured: float) -> None:
    """Assert that a bound holds, and that something was counted at all."""
    assert 0 < measured <= BOUNDS[what], what


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


#: Where our frames run, by whatever name, and blinker's.
PACKAGE = Path(greensmtp.__file__).parent
OURS = (str(PACKAGE), str((PACKAGE / "middleware").resolve()))
BLINKER = str(Path(blinker.__file__).parent)


@contextmanager
def counted_frames() -> Iterator[collections.Counter[CodeType]]:
    """Count the calls of Python functions, whatever greenlet they run in."""
    counts: collections.Counter[CodeType] = collections.Counter()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            counts[frame.f_code] += 1

    def switched(event: str, arguments: Any) -> None:
        sys.setprofile(profile)  # which is each greenlet's own

    before, traced = sys.getprofile(), greenlet.gettrace()
    greenlet.settrace(switched)
    sys.setprofile(profile)
    try:
        yield counts
    finally:
        sys.setprofile(before)
        greenlet.settrace(traced)


def frames_below(counts: collections.Counter[CodeType], *folders: str) -> int:
    """Return the number of calls of code in these folders, resumed generators included."""
    return sum(number for code, number in counts.items() if code.co_filename.startswith(folders))


def test_frames_a_message(script: Script, name: str) -> None:
    with counted_frames() as counts:
        for _ in range(MESSAGES):
            script.message()
    holds(f"{name}: frames a message", frames_below(counts, *OURS, BLINKER) / MESSAGES)
    with counted_frames() as counts:
        for _ in range(MESSAGES):
            script.pipelined()
    holds(f"{name}: frames a pipelined message", frames_below(counts, *OURS, BLINKER) / MESSAGES)


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


def left_to_the_collector(act: Callable[[], object]) -> list[Any]:
    """Do it a few times, and return the objects of greensmtp that are in a cycle afterwards."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            act()
        gc.collect()
        return [each for each in gc.garbage if type(each).__module__.startswith("greensmtp")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


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
    holds(f"{name}: bytes a message", peak)


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
    holds(f"{name}: bytes an idle connection", current / count)
    holds(f"{name}: objects an idle connection", (len(gc.get_objects()) - objects) / count)
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
    holds(f"{verb}: bytes at once", peak)
    script.close()


# The client


def answer(sock: Any) -> None:
    """Serve a client at almost no cost: one reply a line, all replies to a batch in one write."""
    with closing(sock):
        sock.sendall(b"220 mx.example.com\r\n")
        in_body = False
        while data := sock.recv(65536):
            replies = []
            for line in data.splitlines():
                if in_body:
                    if line == b".":
                        in_body = False
                        replies.append(b"250 Ok\r\n")
                elif line == b"DATA":
                    in_body = True
                    replies.append(b"354 go\r\n")
                elif line.startswith(b"EHLO"):
                    replies.append(b"250-mx.example.com\r\n250-SIZE 10000000\r\n250 PIPELINING\r\n")
                else:
                    replies.append(b"250 Ok\r\n")
            sock.sendall(b"".join(replies))


CONTENT = b"Subject: costs\r\n\r\n" + (b"x" * 76 + b"\r\n") * 13
MAIL: Any = (CONTENT, "a@example.org", ["b@example.com"])


@pytest.fixture
def counted_client() -> Iterator[tuple[SMTPClient, Counted]]:
    """Yield a client that has sent two messages, and its socket."""
    ours, theirs = gevent_socket.socketpair()
    serving = spawn(answer, theirs)
    counted = Counted(ours)
    with Timeout(20), connect(stream=counted, local_hostname="client.example") as mail:
        for _ in range(2):
            mail.send(*MAIL)
        yield mail, counted
    serving.join(10)


@contextmanager
def counted_switches() -> Iterator[collections.Counter[Any]]:
    """Count how often this greenlet gives control to another one."""
    counts: collections.Counter[Any] = collections.Counter()
    own, before = greenlet.getcurrent(), greenlet.gettrace()

    def switched(event: str, arguments: Any) -> None:
        counts["away"] += arguments[0] is own

    greenlet.settrace(switched)
    try:
        yield counts
    finally:
        greenlet.settrace(before)


def test_a_sent_message_is_two_writes_and_two_reads(counted_client: tuple[SMTPClient, Counted]) -> None:
    mail, sock = counted_client
    sock.calls.clear()
    with counted_switches() as switches:
        for _ in range(MESSAGES):
            mail.send(*MAIL)
    assert sock.calls == {"send": 2 * MESSAGES, "recv": 2 * MESSAGES}
    assert switches == {"away": 2 * MESSAGES}


def test_one_of_many_messages_is_one_write_and_one_read(counted_client: tuple[SMTPClient, Counted]) -> None:
    mail, sock = counted_client
    sock.calls.clear()
    with counted_switches() as switches:
        assert len(list(mail.send_many([MAIL] * MESSAGES))) == MESSAGES
    # and the first envelope
    assert sock.calls == {"send": MESSAGES + 1, "recv": MESSAGES + 1}
    assert switches == {"away": MESSAGES + 1}


def test_frames_of_the_client_a_message(counted_client: tuple[SMTPClient, Counted]) -> None:
    mail, _ = counted_client
    with counted_frames() as counts:
        for _ in range(MESSAGES):
            mail.send(*MAIL)
    holds("send: frames a message", frames_below(counts, *OURS) / MESSAGES)
    with counted_frames() as counts:
        list(mail.send_many([MAIL] * MESSAGES))
    holds("send_many: frames a message", frames_below(counts, *OURS) / MESSAGES)


def test_frames_of_a_pool_a_message() -> None:
    server = StreamServer(("127.0.0.1", 0), lambda sock, _: answer(sock))
    server.start()
    address: Any = server.address
    with Timeout(20), Pool(*address) as pool:
        for _ in range(2):
            pool.send(*MAIL)
        with counted_frames() as counts:
            for _ in range(MESSAGES):
                pool.send(*MAIL)
    holds("pool: frames a message", frames_below(counts, *OURS) / MESSAGES)
    server.stop()


def test_sent_messages_leave_nothing_and_no_cycles(counted_client: tuple[SMTPClient, Counted]) -> None:
    mail, _ = counted_client
    assert left_to_the_collector(lambda: mail.send(*MAIL)) == []
    assert left_to_the_collector(lambda: list(mail.send_many([MAIL] * 3))) == []
