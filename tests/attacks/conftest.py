"""Play bytes to a server, whole and cut in two, and record what the server did."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import gevent
import pytest

from greensmtp import Ack, Address, MessageStream, Session, SMTPServer
from greensmtp.testing import Peer, dial

if TYPE_CHECKING:
    from tests.conftest import Cuts

#: One reply: lines of one code with a hyphen, then one without.
REPLY = re.compile(rb"(?:(\d{3})-[ -~]*\r\n(?=\1))*\d{3}(?: [ -~]*)?\r\n")


class Outcome(NamedTuple):
    """What a server did with the bytes that it got."""

    #: Every reply, the banner first; lines joined by newlines.
    replies: list[str]
    #: The bodies of the messages that were delivered: those for which ``received`` was emitted.
    messages: list[bytes]
    #: Sender and recipients of each of them.
    envelopes: list[tuple[str | None, tuple[str, ...]]]
    #: The sender of every MAIL, accepted or not.
    senders: list[str]

    @property
    def codes(self) -> list[int]:
        """The replies' codes."""
        return [int(reply[:3]) for reply in self.replies]


class Play(Protocol):
    """The type of the fixture ``play``: ``play(wire, at=[17], late=True, bare_newlines="keep")``."""

    def __call__(
        self, wire: bytes, *, at: Iterable[int] = ..., late: bool = ..., lazy: bool = ..., **options: Any
    ) -> Outcome: ...


class PlayCut(Protocol):
    """The type of the fixture ``play_cut``."""

    def __call__(
        self, wire: bytes, *, start: int = ..., stop: int | None = ..., step: int = ..., **options: Any
    ) -> Outcome: ...


def split_replies(data: bytes) -> list[str]:
    """Return the replies in the bytes of a server; assert that they are well-formed."""
    found = [match[0] for match in REPLY.finditer(data)]
    assert b"".join(found) == data, f"not a sequence of well-formed replies: {data!r}"
    assert all(len(line) <= 512 for line in data.splitlines(keepends=True)), "a line longer than RFC 5321 allows"
    texts = [reply.decode("ascii").removesuffix("\r\n").replace("\r\n", "\n") for reply in found]
    return [re.sub(r"(?<=Ok: queued as )\S+", "ID", text) for text in texts]  # every message has its own


class _Appender:
    def __init__(self, body: bytearray) -> None:
        self._body = body

    def write(self, data: bytes) -> None:
        self._body.extend(data)


class Player:
    """A server whose handlers accept everything and note it; each play has a connection of its own.

    :param late: acks are decided by another greenlet, and bodies are drained into a pipe.
    :param lazy: bodies are drained into a pipe, though acks are decided at once.
    :param options: of the server.
    """

    def __init__(self, *, late: bool = False, lazy: bool = False, **options: Any) -> None:
        options.setdefault("hostname", "mx.example.com")
        self._server = SMTPServer(("127.0.0.1", 0), **options)
        self._late = late
        self._piped = late or lazy
        self._outcome = Outcome([], [], [], [])
        for name, handler in (
            ("greeting", self._accept),
            ("from", self._sender),
            ("to", self._accept),
            ("message", self._message),
            ("received", self._received),
        ):
            cast(Any, self._server).on(name, handler)

    def play(self, wire: bytes, at: Iterable[int] = ()) -> Outcome:
        """Send bytes over a new connection, half-close it, and read until the end.

        :param at: where to cut: the server has read what is before a cut when it gets the rest.
        """
        self._outcome = outcome = Outcome([], [], [], [])
        cuts = sorted({0, len(wire), *at})
        with dial(self._server) as peer:
            if len(cuts) > 2 or len(wire) > 32_768:
                reading = gevent.spawn(peer.rest)
                self._send(peer, [wire[begin:end] for begin, end in itertools.pairwise(cuts)])
                sent = reading.get(timeout=30)
            else:
                self._send(peer, [wire])
                sent = peer.rest()
        outcome.replies.extend(split_replies(sent))
        return outcome

    def _send(self, peer: Peer, pieces: list[bytes]) -> None:
        try:
            for number, piece in enumerate(pieces):
                if number:
                    peer.let_it_read()
                peer.send(piece)
            peer.half_close()
        except ConnectionError:
            pass  # the server has closed: its replies tell why

    def _accept(self, session: Session, ack: Ack, **fields: Any) -> None:
        if self._late:
            gevent.spawn(ack.accept)
        else:
            ack.accept()

    def _sender(self, session: Session, address: Address, ack: Ack) -> None:
        self._outcome.senders.append(str(address))
        self._accept(session, ack)

    def _message(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        body = bytearray()
        session.notes["body"] = body
        if self._piped:
            stream.pipe(_Appender(body))
            self._accept(session, ack)
        else:
            self._accept(session, ack)
            for chunk in stream:
                body.extend(chunk)

    def _received(self, session: Session, ack: Ack, recipient: Address | None = None) -> None:
        self._outcome.messages.append(bytes(session.notes["body"]))
        self._outcome.envelopes.append((session.from_, tuple(session.to)))
        self._accept(session, ack)


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that nothing in this test is logged as a warning or above."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture
def play(quiet: None) -> Play:
    """Send bytes to a server that accepts everything; one server for all plays of a test with the same options."""
    players: dict[str, Player] = {}

    def play(wire: bytes, *, at: Iterable[int] = (), **options: Any) -> Outcome:
        key = repr(sorted(options.items()))
        if key not in players:
            players[key] = Player(**options)
        return players[key].play(wire, at)

    return play


@pytest.fixture
def play_cut(play: Play, cuts: Cuts) -> PlayCut:
    """Play bytes uncut, then cut in two (from ``start`` to ``stop``), then byte by byte.

    All must have the same outcome, which is returned.
    """

    def play_all(wire: bytes, *, start: int = 1, stop: int | None = None, step: int = 1, **options: Any) -> Outcome:
        whole = play(wire, **options)
        for cut in cuts(wire, start, stop, step):
            assert play(wire, at=[cut], **options) == whole, f"cut at {cut}: {wire[:cut]!r} | {wire[cut:]!r}"
        assert play(wire, at=range(start, len(wire)), **options) == whole, "byte by byte"
        return whole

    return play_all


@pytest.fixture
def measure_memory() -> Callable[[Callable[[], object]], int]:
    """Return a function that measures the peak of Python's memory while something runs, in bytes."""
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
