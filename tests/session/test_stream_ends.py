"""How a message stream ends: refused, lost, cleaned up; an incomplete message never looks complete."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
from gevent import spawn
from gevent.event import Event

from greensmtp import Ack, Command, ConnectionLost, MessageRefused, MessageStream, Reply, Session
from greensmtp.chain.chain import Proceed
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import begin_data
from tests.session.readers import Reader, at_once, by_iterating, by_lines, in_sevens, into_a_buffer, read_with


def not_at_all(stream: MessageStream) -> None:
    pass


READERS: list[Reader] = [not_at_all, at_once, by_iterating, in_sevens, by_lines, into_a_buffer]


# Refused while it comes


@pytest.mark.parametrize("reader", READERS)
def test_too_large_is_told_to_the_reader_and_drained_to_the_true_end(smtp_server: MakeServer, reader: Reader) -> None:
    server = smtp_server(start=False, max_message_size=1000)
    results = read_with(server, reader)
    received: list[Session] = []
    server.on("received", lambda session, ack: received.append(session))
    with dial(server) as peer:
        begin_data(peer)
        peer.send(b"QUIT\r\nRSET\r\nMAIL FROM:<evil@example.org>\r\n..\r\n" * 10_000 + b".\r\nNOOP\r\n")
        peer.expect("552 5.3.4", "250 2.0.0")
        peer.expect_nothing()
    assert not received
    if results != [None]:
        (error,) = results
        assert isinstance(error, MessageRefused)
        assert error.code == 552


def test_a_reader_that_swallows_the_refusal_changes_nothing(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_message_size=100)

    def swallow(stream: MessageStream) -> bytes:
        for _ in range(3):
            with pytest.raises(MessageRefused):
                stream.read()
        return b""

    results = read_with(server, swallow)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"x" * 1000).startswith("552 5.3.4")
    assert results == [b""]


def test_bare_newlines_are_told_to_the_reader(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, bare_newlines="reject")
    results = read_with(server, at_once)
    with dial(server) as peer:
        begin_data(peer)
        peer.send(b"one\ntwo\r\n.\r\nNOOP\r\n")
        peer.expect("554 5.6.0", "250")
    (error,) = results
    assert isinstance(error, MessageRefused)


# The peer vanishes


@pytest.mark.parametrize("how", [Peer.close, Peer.reset, Peer.half_close])
@pytest.mark.parametrize("reader", READERS)
def test_a_peer_that_vanishes_is_never_a_clean_end(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, reader: Reader, how: Callable[[Peer], None]
) -> None:
    ended: list[str] = []

    def note(session: Session, command: Command, proceed: Proceed) -> Reply:
        ended.append(f"{command.verb} {command.argument}")
        return proceed(session, command)

    note.verbs = ("END-OF-DATA", "DISCONNECT")  # type: ignore[attr-defined]
    server = smtp_server(middleware=[note])
    over = Event()
    results = read_with(server, reader)
    server.on("received", lambda session, ack: ended.append("received"))
    server.on("disconnect", lambda session, reason: over.set())
    with dial(server) as peer:
        begin_data(peer)
        peer.send(b"half a message\r\n" * 100)
        how(peer)
        assert over.wait(5)
    assert ended in (["DISCONNECT closed"], ["DISCONNECT reset"])
    if results != [None]:
        (error,) = results
        assert isinstance(error, ConnectionLost)
        assert ended == [f"DISCONNECT {error.reason}"]
    assert not caplog.records  # no error of the server's


@pytest.mark.parametrize("ending", [b"\r\n.", b"\r\n.\r", b".\r\n", b"\n.\n", b"\r\n"])
def test_an_end_that_is_not_whole_is_no_end(smtp_server: MakeServer, ending: bytes) -> None:
    server = smtp_server(bare_newlines="keep")
    over = Event()
    results = read_with(server, at_once)
    server.on("disconnect", lambda session, reason: over.set())
    with dial(server) as peer:
        begin_data(peer)
        peer.send(b"text" + ending)
        peer.close()
        assert over.wait(5)
    assert isinstance(results[0], ConnectionLost)


def test_a_reader_that_swallows_the_loss_still_delivers_nothing(smtp_server: MakeServer) -> None:
    server = smtp_server()
    over = Event()
    received: list[Session] = []
    server.on("received", lambda session, ack: received.append(session))
    server.on("disconnect", lambda session, reason: over.set())

    def swallow(stream: MessageStream) -> None:
        for _ in range(2):
            with pytest.raises(ConnectionLost):
                stream.read()

    results = read_with(server, swallow)
    with dial(server) as peer:
        begin_data(peer)
        peer.send("half")
        peer.close()
        assert over.wait(5)
    assert results == [None]
    assert not received


# at_end


@pytest.mark.parametrize("ending", ["accepted", "rejected", "aborted", "raised", "too large", "lost"])
def test_at_end_is_called_once_however_it_ended(smtp_server: MakeServer, ending: str) -> None:
    server = smtp_server(max_message_size=100)
    events: list[str] = []
    over = Event()
    server.on("disconnect", lambda session, reason: over.set())

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.at_end(lambda: events.append("one"))
        stream.at_end(lambda: events.append("two"))
        ack.accept()
        if ending == "aborted":
            stream.abort()
        elif ending == "raised":
            raise LookupError

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        events.append("received")
        (ack.reject if ending == "rejected" else ack.accept)()

    with dial(server) as peer:
        begin_data(peer)
        peer.send(b"x" * (200 if ending == "too large" else 50) + b"\r\n")
        if ending == "lost":
            peer.close()
        else:
            assert events == []
            peer.line(".")
            peer.expect("250" if ending == "accepted" else "")
            peer.close()
        assert over.wait(5)
    assert events == [*(["received"] if ending in ("accepted", "rejected") else []), "one", "two"]


def test_what_at_end_raises_is_logged_and_the_others_are_called(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(start=False)
    called: list[str] = []

    def message(stream: MessageStream) -> None:
        stream.at_end(lambda: called[10:][0])
        stream.at_end(lambda: called.append("second"))

    read_with(server, message)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("250")
        peer.line("NOOP")
        peer.expect("250")
    assert called == ["second"]
    assert "IndexError" in caplog.text


# Flow


def test_a_slow_reader_slows_the_peer(smtp_server: MakeServer) -> None:
    server = smtp_server()
    go_on = Event()
    sizes: list[int] = []

    def slow(stream: MessageStream) -> None:
        stream.read(1)
        go_on.wait(10)
        sizes.append(1 + sum(map(len, stream)))

    read_with(server, slow)
    piece = b"0123456789abcd\r\n" * 4096
    total = 400
    with dial(server) as peer:
        begin_data(peer)
        sent: list[int] = []

        def send_all() -> None:
            for _ in range(total):
                peer.socket.sendall(piece)
                sent.append(len(piece))

        sender = spawn(send_all)
        stalled_at = -1
        while len(sent) != stalled_at:  # until the sockets' buffers are full
            stalled_at = len(sent)
            sender.join(timeout=0.2)
        assert stalled_at < total
        go_on.set()
        sender.get(timeout=20)
        peer.line(".")
        peer.expect("250")
    assert sizes == [total * len(piece)]


def test_memory_stays_flat_however_large_the_message(smtp_server: MakeServer) -> None:
    server = smtp_server(max_message_size=None)
    peaks: list[int] = []

    def measure(stream: MessageStream) -> None:
        tracemalloc.start()
        try:
            for _ in stream:
                pass
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    read_with(server, measure)
    piece = b"0123456789abc.\r\n" * 16 * 1024
    with dial(server) as peer:
        begin_data(peer)
        for _ in range(128):  # 32 MB
            peer.socket.sendall(piece)
        peer.line(".")
        peer.expect("250")
    assert peaks[0] < 2 * 1024 * 1024


@pytest.mark.parametrize("command", ["DATA", "BDAT 5 LAST\r\nbody"])
def test_what_a_handler_registers_for_the_end_is_called_if_the_message_is_refused(
    smtp_server: MakeServer, command: str
) -> None:
    server = smtp_server(start=False)
    streams: list[MessageStream] = []
    ended: list[str] = []

    @server.on("message")
    def refuse(session: Session, stream: MessageStream, ack: Ack) -> None:
        streams.append(stream)
        stream.at_end(lambda: ended.append("end"))
        ack.reject(550)

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line(command)
        peer.expect("550")
        assert ended == ["end"]
        assert streams[0].closed


@pytest.mark.parametrize("read", [lambda stream: stream.read(), next, lambda stream: stream.readline()])
@pytest.mark.parametrize("accepted", [True, False])
def test_a_stream_that_is_kept_cannot_read_the_commands_behind_its_message(
    smtp_server: MakeServer, accepted: bool, read: Callable[[MessageStream], object]
) -> None:
    server = smtp_server(start=False)
    streams: list[MessageStream] = []
    caught: list[str] = []

    @server.on("message")
    def keep(session: Session, stream: MessageStream, ack: Ack) -> None:
        streams.append(stream)
        if accepted:
            ack.accept()
        else:
            ack.reject()

    @server.on("reset")
    def read_again(session: Session) -> None:
        with pytest.raises(ValueError, match="closed") as error:
            read(streams[0])
        caught.append(str(error.value))

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        if accepted:
            peer.expect("354")
            peer.line("text", ".")
        peer.expect("250" if accepted else "550")
        peer.line("RSET", "NOOP")
        peer.expect("250", "250")
    assert len(caught) == 1
