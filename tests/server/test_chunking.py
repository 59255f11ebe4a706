"""CHUNKING and BINARYMIME (RFC 3030): bodies that come by BDAT, and what may go wrong between two chunks."""

from __future__ import annotations

from typing import Any

import pytest
from gevent.event import Event

from greensmtp import Ack, ConnectionLost, IncompleteMessage, MessageStream, Session, SMTPServer, TransactionReset
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer


def take_mail(server: SMTPServer) -> list[Any]:
    """Accept and read every message; the list fills with bodies, and with what reading raised."""
    bodies: list[Any] = []

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        try:
            bodies.append(stream.read())
        except IncompleteMessage as error:
            bodies.append(error)
            raise

    return bodies


def begin(peer: Peer) -> None:
    peer.hello()
    peer.envelope()


# Bodies


@pytest.mark.parametrize(
    "chunks",
    [
        [b"Subject: one\r\n\r\nchunk\r\n"],
        [b"Sub", b"ject: three\r", b"\n\r\nchunks\r\n"],
        [b"QUIT\r\n", b".\r\n", b"..\r\n", b"\r\n.\r\n", b"BDAT 5 LAST\r\n"],
        [bytes(range(256)), b"bare\nnewlines\r", b"and \0 octets"],
        [b"", b"x", b"", b""],
        [b""],
        [b"x" * 300_000, b"y" * 200_000],
    ],
)
@pytest.mark.parametrize("pipelined", [True, False])
def test_a_body_in_chunks_arrives_octet_for_octet(
    smtp_server: MakeServer, chunks: list[bytes], pipelined: bool
) -> None:
    server = smtp_server(start=False, bare_newlines="keep")
    bodies = take_mail(server)
    with dial(server) as peer:
        begin(peer)
        wire = [b"BDAT %d%s\r\n%s" % (len(chunk), b"", chunk) for chunk in chunks[:-1]]
        wire.append(b"BDAT %d LAST\r\n%s" % (len(chunks[-1]), chunks[-1]))
        if pipelined:
            peer.send(b"".join(wire))
        for number, (piece, chunk) in enumerate(zip(wire, chunks, strict=True), 1):
            if not pipelined:
                peer.send(piece)
            peer.expect(f"250 2.0.0 {len(chunk)} octets" if number < len(chunks) else "250 2.0.0 Ok: queued")
        peer.line("NOOP")
        peer.expect("250 2.0.0")
    assert bodies == [b"".join(chunks)]


def test_every_cut_of_the_input_gives_the_same(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    bodies = take_mail(server)
    wire = b"BDAT 6\r\n.\r\n.\r\nBDAT 0\r\nbdat 3 last\r\nabcNOOP\r\n"
    with dial(server) as peer:
        peer.hello()
        for cut in range(1, len(wire)):
            peer.envelope()
            peer.send(wire, cut=cut)
            peer.expect("250 2.0.0 6 octets", "250 2.0.0 0 octets", "250 2.0.0 Ok: queued", "250 2.0.0 Ok")
    assert bodies == [b".\r\n.\r\nabc"] * (len(wire) - 1)


def test_received_answers_for_the_last_chunk(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    take_mail(server)
    server.on("received", lambda session, ack: ack.reject(554, "5.6.0 no"))
    with dial(server) as peer:
        begin(peer)
        peer.send("BDAT 1\r\nxBDAT 1 LAST\r\ny")
        peer.expect("250", "554 5.6.0 no")
        peer.line("RCPT TO:<b@example.com>")
        peer.expect("503")


def test_a_binary_body_comes_by_bdat_alone(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    bodies = take_mail(server)
    with dial(server) as peer:
        peer.hello()
        peer.envelope("a@example.org> BODY=BINARYMIME")
        peer.line("DATA")
        peer.expect("503")
        peer.send(b"BDAT 4 LAST\r\n\n\0\r\xff")
        peer.expect("250")
    assert bodies == [b"\n\0\r\xff"]


# Refused chunks


@pytest.mark.parametrize("last", ["", " LAST"])
@pytest.mark.parametrize("state", ["no greeting", "no sender", "no recipient", "nobody listens", "rejected", "raised"])
def test_a_refused_chunks_octets_are_consumed(smtp_server: MakeServer, state: str, last: str) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        if state == "raised":
            raise LookupError
        ack.reject(550, "5.7.1 no")

    if state == "nobody listens":
        server.signals.message.disconnect(message)
    reply = {"nobody listens": "554", "rejected": "550 5.7.1 no", "raised": "451"}.get(state, "503")
    with dial(server) as peer:
        peer.expect("220")
        if state != "no greeting":
            peer.line("EHLO client.example")
            peer.expect("250")
        if state not in ("no greeting", "no sender"):
            peer.line("MAIL FROM:<a@example.org>")
            peer.expect("250")
        if state not in ("no greeting", "no sender", "no recipient"):
            peer.line("RCPT TO:<b@example.com>")
            peer.expect("250")
        peer.send(f"BDAT 6{last}\r\nQUIT\r\nNOOP\r\n")
        peer.expect(reply, "250 2.0.0")
        peer.expect_nothing()


def test_the_chunks_behind_a_refused_one_are_no_message(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    offered: list[Session] = []

    @server.on("message")
    def refuse(session: Session, stream: MessageStream, ack: Ack) -> None:
        offered.append(session)
        ack.reject(550, "5.7.1 no")

    with dial(server) as peer:
        begin(peer)
        peer.send("BDAT 4\r\nhalfBDAT 6\r\nQUIT\r\nBDAT 4 LAST\r\nrestNOOP\r\n")
        peer.expect("550", "503", "503", "250 2.0.0")
    assert len(offered) == 1


def test_a_line_that_is_no_bdat_has_no_octets(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    take_mail(server)
    with dial(server) as peer:
        begin(peer)
        for line in ("BDAT", "BDAT x", "BDAT -1", "BDAT 1.5", "BDAT 5 FIRST", "BDAT LAST", "BDAT 0x5", "BDAT +5"):
            peer.line(line, "NOOP")
            peer.expect("501 5.5.4", "250 2.0.0")


@pytest.mark.parametrize("read", [True, False])
def test_a_body_too_large_is_refused_and_every_chunk_consumed(smtp_server: MakeServer, read: bool) -> None:
    server = smtp_server(start=False, max_message_size=10)
    received: list[Session] = []
    server.on("received", lambda session, ack: received.append(session))

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        if read:
            stream.read()

    with dial(server) as peer:
        begin(peer)
        peer.send("BDAT 8\r\n12345678BDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nRSET\r\nNOOP\r\n")
        replies = [peer.reply() for _ in range(4)]
        assert "552 5.3.4" in "\n".join(replies)
        assert replies[-1].startswith("250 2.0.0 Ok")
        peer.expect_nothing()
    assert not received


def test_bdat_and_data_do_not_mix(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    bodies = take_mail(server)
    with dial(server) as peer:
        begin(peer)
        peer.send("BDAT 2\r\nab")
        peer.expect("250")
        peer.line("DATA")
        peer.expect("503")
        peer.send("BDAT 2 LAST\r\ncd")
        peer.expect("250")
        peer.send("BDAT 2 LAST\r\nef")
        peer.expect("503")
    assert bodies == [b"abcd"]


@pytest.mark.parametrize("switches", [{}, {"CHUNKING": False}])
def test_lmtp_has_a_refusal_of_the_last_chunk_for_each_recipient(
    smtp_server: MakeServer, switches: dict[str, bool]
) -> None:
    """RFC 2033 section 4.3."""
    server = smtp_server(start=False, lmtp=True, extensions=switches)
    server.on("message", lambda session, stream, ack: ack.reject())
    with dial(server) as peer:
        peer.hello(verb="LHLO")
        peer.envelope(to=["a@example.com", "b@example.com"])
        peer.send("BDAT 3 LAST\r\na\r\nNOOP\r\nDATA\r\n")
        refusal = "502" if switches else "550"
        peer.expect(refusal, refusal, "250", "503")


# Between two chunks


def test_commands_between_two_chunks_are_answered(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    bodies = take_mail(server)
    with dial(server) as peer:
        begin(peer)
        peer.send("BDAT 2\r\nab")
        peer.expect("250 2.0.0 2 octets")
        peer.converse("""
            C: NOOP
            S: 250
            C: MAIL FROM:<evil@example.org>
            S: 503
            C: RCPT TO:<evil@example.com>
            S: 503
            C: VRFY jo
            S: 252
            C: XYZZY
            S: 500
        """)
        peer.send("BDAT 2 LAST\r\ncd")
        peer.expect("250")
    assert bodies == [b"abcd"]


def test_a_garbled_bdat_gives_the_body_up(smtp_server: MakeServer) -> None:
    """The number of bytes that follow is unknown, so they must not be joined to the beginning."""
    server = smtp_server(start=False)
    bodies = take_mail(server)
    with dial(server) as peer:
        begin(peer)
        peer.send("BDAT 4\r\nhalfBDAT what\r\nBDAT 4 LAST\r\nrestNOOP\r\n")
        peer.expect("250", "501", "503", "250 2.0.0 Ok")
    assert isinstance(bodies.pop(), TransactionReset)


@pytest.mark.parametrize("line", ["RSET", "EHLO client.example", "HELO client.example"])
def test_what_resets_gives_the_body_up(smtp_server: MakeServer, line: str) -> None:
    server = smtp_server(start=False)
    bodies = take_mail(server)
    received: list[Session] = []

    @server.on("received")
    def count(session: Session, ack: Ack) -> None:
        received.append(session)
        ack.accept()

    with dial(server) as peer:
        begin(peer)
        peer.send("BDAT 4\r\nhalf")
        peer.expect("250")
        peer.line(line, "RCPT TO:<b@example.com>")
        peer.expect("250", "503")
        assert isinstance(bodies.pop(), TransactionReset)
        assert not received
        peer.envelope()
        peer.send("BDAT 5 LAST\r\nwhole")
        peer.expect("250")
    assert bodies == [b"whole"]
    assert len(received) == 1


@pytest.mark.parametrize("reads", [True, False])
def test_quit_between_two_chunks_delivers_nothing(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, reads: bool
) -> None:
    server = smtp_server(start=False)
    received: list[Session] = []
    server.on("received", lambda session, ack: received.append(session))

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        if reads:
            stream.read()

    with dial(server) as peer:
        begin(peer)
        peer.send("BDAT 4\r\nhalfQUIT\r\n")
        peer.expect("250", "221")
        peer.expect_end()
    assert not received
    assert not caplog.records


@pytest.mark.parametrize("wire", ["BDAT 100\r\nhalf", "BDAT 4\r\nhalf", "BDAT 4\r\nhalfBDAT 4 LA"])
def test_a_peer_that_vanishes_within_or_between_chunks_delivers_nothing(smtp_server: MakeServer, wire: str) -> None:
    server = smtp_server()
    bodies = take_mail(server)
    over = Event()
    received: list[Session] = []
    server.on("received", lambda session, ack: received.append(session))
    server.on("disconnect", lambda session, reason: over.set())
    with dial(server) as peer:
        begin(peer)
        peer.send(wire)
        peer.half_close()
        assert over.wait(5)
    (error,) = bodies
    assert isinstance(error, ConnectionLost)
    assert not received


def test_abort_answers_for_the_last_chunk(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def abort(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.abort(554, "5.6.0 no")

    with dial(server) as peer:
        begin(peer)
        peer.send("BDAT 4\r\nhalfBDAT 4 LAST\r\nrestNOOP\r\n")
        replies = [peer.reply() for _ in range(3)]
        assert "554 5.6.0 no" in replies[:2]
        assert replies[2].startswith("250 2.0.0 Ok")


# LMTP (RFC 2033 section 4.3)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("code", ["554", "451"])
def test_lmtp_refuses_the_last_chunk_once_for_each_recipient(smtp_server: MakeServer, after: int, code: str) -> None:
    server = smtp_server(start=False, lmtp=True)
    take_mail(server)

    @server.on("command")
    def refuse(session: Session, command: Any, ack: Ack) -> None:
        if command.verb == "BDAT" and command.last:
            ack.reject(code)

    with dial(server) as peer:
        peer.hello(verb="LHLO")
        peer.envelope(to=["one@example.com", "two@example.com", "three@example.com"])
        peer.send("BDAT 4\r\nmore" * after + "BDAT 4 LAST\r\nlastNOOP\r\n")
        peer.expect(*["250 2.0.0 4 octets"] * after, *[code] * 3, "250 2.0.0")


def test_lmtp_refuses_a_last_chunk_without_recipients_once(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, lmtp=True)
    with dial(server) as peer:
        peer.hello(verb="LHLO")
        peer.send("BDAT 4 LAST\r\nlastNOOP\r\n")
        peer.expect("503", "250 2.0.0")
