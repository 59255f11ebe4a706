"""What sending must not grow: system calls, hub switches, Python frames. As tests/test_costs.py, never time."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import greenlet
import pytest
from gevent import Timeout, spawn
from gevent import socket as gevent_socket
from gevent.server import StreamServer

from greensmtp import Pool, SMTPClient, connect
from tests.counting import MESSAGES, OURS, Counted, counted_frames, frames_below, holds, left_to_the_collector
from tests.counting import small_heap as small_heap

pytestmark = pytest.mark.xdist_group("serial")

#: Calls of functions of ours, to send a message of 1 kB -> the most there may be.
BOUNDS = {
    "send: frames a message": 38,
    "send_many: frames a message": 50,  # (10 of them encode a message before the next one is asked for)
    "pool: frames a message": 54,
}


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
    holds(BOUNDS, "send: frames a message", frames_below(counts, *OURS) / MESSAGES)
    with counted_frames() as counts:
        list(mail.send_many([MAIL] * MESSAGES))
    holds(BOUNDS, "send_many: frames a message", frames_below(counts, *OURS) / MESSAGES)


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
    holds(BOUNDS, "pool: frames a message", frames_below(counts, *OURS) / MESSAGES)
    server.stop()


def test_sent_messages_leave_nothing_and_no_cycles(counted_client: tuple[SMTPClient, Counted]) -> None:
    mail, _ = counted_client
    assert left_to_the_collector(lambda: mail.send(*MAIL)) == []
    assert left_to_the_collector(lambda: list(mail.send_many([MAIL] * 3))) == []
