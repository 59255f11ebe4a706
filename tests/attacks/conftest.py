"""Plays octets to fresh servers, whole and cut in two at every place, and tells what has come of them."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import gevent
import pytest

from greensmtp import Ack, Address, MessageStream, Session, SMTPServer
from greensmtp.testing import Peer, dial

#: One reply: lines of one code with a hyphen, then one without.
REPLY = re.compile(rb"(?:(\d{3})-[ -~]*\r\n(?=\1))*\d{3}(?: [ -~]*)?\r\n")


class Outcome(NamedTuple):
    """What a server has made of the octets that it was sent."""

    #: Every reply, the banner first; lines joined by newlines.
    replies: list[str]
    #: The bodies of the messages that were delivered: those for which ``received`` was emitted.
    messages: list[bytes]
    #: Sender and recipients of each of them.
    envelopes: list[tuple[str | None, tuple[str, ...]]]
    #: The sender of every MAIL, whatever became of it.
    senders: list[str]

    @property
    def codes(self) -> list[int]:
        """The replies' codes."""
        return [int(reply[:3]) for reply in self.replies]


class Play(Protocol):
    """What the fixture ``play`` gives: ``play(wire, at=17, late=True, bare_newlines="keep")``."""

    def __call__(
        self, wire: bytes, *, at: Iterable[int] = ..., late: bool = ..., lazy: bool = ..., **options: Any
    ) -> Outcome: ...


class PlayCut(Protocol):
    """What the fixture ``play_cut`` gives."""

    def __call__(
        self, wire: bytes, *, start: int = ..., stop: int | None = ..., step: int = ..., **options: Any
    ) -> Outcome: ...


def split_replies(octets: bytes) -> list[str]:
    """The replies in what a server has sent, all of which must be well-formed ones."""
    found = [match[0] for match in REPLY.finditer(octets)]
    assert b"".join(found) == octets, f"not a sequence of well-formed replies: {octets!r}"
    assert all(len(line) <= 512 for line in octets.splitlines(keepends=True)), "a line longer than RFC 5321 allows"
    return [reply.decode("ascii").removesuffix("\r\n").replace("\r\n", "\n") for reply in found]


def _connect_handlers(server: SMTPServer, outcome: Outcome, *, late: bool, lazy: bool) -> None:
    """Accept everything, at once or from another greenlet, and note what comes."""

    def accept(ack: Ack) -> None:
        if late:
            gevent.spawn(ack.accept)
        else:
            ack.accept()

    @server.on("greeting")
    def greeting(session: Session, greeting: Any, ack: Ack) -> None:
        accept(ack)

    @server.on("from")
    def sender(session: Session, address: Address, ack: Ack) -> None:
        outcome.senders.append(str(address))
        accept(ack)

    @server.on("to")
    def recipient(session: Session, address: Address, ack: Ack) -> None:
        accept(ack)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        body = bytearray()
        session.notes["body"] = body
        if late or lazy:
            stream.pipe(_Appender(body))
            accept(ack)
        else:
            accept(ack)
            for chunk in stream:
                body.extend(chunk)

    @server.on("received")
    def received(session: Session, ack: Ack, recipient: Address | None = None) -> None:
        outcome.messages.append(bytes(session.notes["body"]))
        outcome.envelopes.append((session.from_, tuple(session.to)))
        accept(ack)


class _Appender:
    def __init__(self, body: bytearray) -> None:
        self._body = body

    def write(self, data: bytes) -> None:
        self._body.extend(data)


def _send(peer: Peer, pieces: list[bytes]) -> None:
    try:
        for number, piece in enumerate(pieces):
            if number:
                peer.let_it_read()
            peer.send(piece)
        peer.half_close()
    except ConnectionError:
        pass  # the server has closed: its replies tell why


def play_once(
    wire: bytes, *, at: Iterable[int] = (), late: bool = False, lazy: bool = False, **options: Any
) -> Outcome:
    """Send octets to a fresh server, hang up one half, and read until the end.

    :param at: where to cut: the server has read what is before a cut when it gets the rest.
    :param late: acks are decided by another greenlet, and bodies are drained into a pipe.
    :param lazy: bodies are drained into a pipe, though acks are decided at once.
    :param options: of the server.
    """
    options.setdefault("hostname", "mx.example.com")
    server = SMTPServer(("127.0.0.1", 0), **options)
    outcome = Outcome([], [], [], [])
    _connect_handlers(server, outcome, late=late, lazy=lazy)
    cuts = sorted({0, len(wire), *at})
    with dial(server) as peer:
        reading = gevent.spawn(peer.rest)
        _send(peer, [wire[begin:end] for begin, end in itertools.pairwise(cuts)])
        outcome.replies.extend(split_replies(reading.get(timeout=30)))
    return outcome


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever the peer has done in this test, it is not worth a warning."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture
def play(quiet: None) -> Play:
    """Send octets to a fresh server; see ``play_once``."""
    return play_once


@pytest.fixture
def play_cut(quiet: None) -> PlayCut:
    """Play octets uncut, then cut in two at every place (from ``start`` to ``stop``), then octet by octet; all must
    have the same outcome, which is given back."""

    def play_all(wire: bytes, *, start: int = 1, stop: int | None = None, step: int = 1, **options: Any) -> Outcome:
        whole = play_once(wire, **options)
        for cut in range(start, len(wire) if stop is None else stop, step):
            assert play_once(wire, at=[cut], **options) == whole, f"cut at {cut}: {wire[:cut]!r} | {wire[cut:]!r}"
        assert play_once(wire, at=range(start, len(wire)), **options) == whole, "octet by octet"
        return whole

    return play_all


@pytest.fixture
def measure_memory() -> Callable[[Callable[[], object]], int]:
    """The most octets that Python held at once while something ran, above what it held before."""
    import tracemalloc

    def measure(run: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            run()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return peak - before

    return measure
