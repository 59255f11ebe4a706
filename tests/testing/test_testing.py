"""greensmtp.testing: a dialogue that differs from its script is an error that shows the difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gevent import socket, spawn

from greensmtp import Ack, MessageStream, Session, SMTPServer
from greensmtp.testing import DialogueError, Peer, dial
from greensmtp.testing.fixtures import MakeServer


def peer_of(wire: bytes) -> Peer:
    """Return a peer whose connection was closed after these bytes."""
    ours, theirs = socket.socketpair()
    theirs.sendall(wire)
    theirs.close()
    return Peer(ours, timeout=5)


@pytest.mark.parametrize(
    ("wire", "pattern"),
    [
        (b"250 fine\r\n", "250"),
        (b"250\r\n", "250"),
        (b"250 fine\r\n", "250 fine"),
        (b"250-one\r\n250 two\r\n", "250-one\n250 two"),
        (b"250-one\r\n250-two\r\n250 three\r\n", "250-one*three"),
        (b"550 5.7.1 relaying denied\r\n", "550 5.7.1 *denied"),
        (b"250 a.c (really)\r\n", "250 a.c ("),
    ],
)
def test_a_pattern_is_the_beginning_of_a_reply(wire: bytes, pattern: str) -> None:
    with peer_of(wire) as peer:
        assert peer.expect(pattern) == wire.decode().replace("\r\n", "\n").rstrip("\n")
        peer.expect_end()


@pytest.mark.parametrize(
    ("wire", "what"),
    [
        (b"550 no\r\n", "expected '250'; got '550 no'"),
        (b"", "the connection ended"),
        (b"250 no end", "unread: b'250 no end'"),
        (b"hello\r\n", "not a reply line: b'hello'"),
        (b"2500 x\r\n", "not a reply line"),
        (b"250 caf\xc3\xa9\r\n", "not a reply line"),
        (b"250-one\r\n251 two\r\n", "the code changes"),
    ],
)
def test_an_unexpected_reply_is_an_error_that_shows_it(wire: bytes, what: str) -> None:
    with peer_of(wire) as peer, pytest.raises(DialogueError) as raised:
        peer.expect("250")
    assert what in str(raised.value)


@pytest.mark.parametrize("piece", [b"250-x\r\n", b"x"])
def test_a_reply_without_an_end_is_an_error(piece: bytes) -> None:
    ours, theirs = socket.socketpair()

    def flood() -> None:
        try:
            while True:
                theirs.sendall(piece * 1000)
        except OSError:
            pass

    flooding = spawn(flood)
    with Peer(ours) as peer, pytest.raises(DialogueError, match="a reply of more than 1048576 bytes"):
        peer.reply()
    theirs.close()
    flooding.join()


def test_a_pattern_is_not_a_regular_expression() -> None:
    with peer_of(b"250 axc\r\n") as peer, pytest.raises(DialogueError):
        peer.expect("250 a.c")


def test_a_failing_dialogue_names_the_line_and_shows_the_transcript(smtp_server: MakeServer) -> None:
    script = """
        S: 220

        C: EHLO client.example
        S: 250
        C: XYZZY
        S: 250
    """
    with dial(smtp_server(start=False)) as peer, pytest.raises(DialogueError) as raised:
        peer.converse(script)
    text = str(raised.value)
    assert text.startswith("line 6 (S: 250): expected '250'; got '500 5.5.1 ")
    assert "C: EHLO client.example\nS: 250-mx.example.com" in text
    assert text.endswith(f"C: XYZZY\n{peer.transcript.splitlines()[-1]}")


def test_a_line_of_a_dialogue_begins_with_c_or_s(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer, pytest.raises(ValueError, match="C: or S:"):
        peer.converse("X: 220")


def test_a_missing_reply_times_out(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False), timeout=0.1) as peer:
        peer.hello()
        with pytest.raises(DialogueError, match=r"timed out after 0\.1 s: waiting for a reply") as raised:
            peer.reply()
    assert "EHLO client.example" in str(raised.value)


def test_expect_nothing_fails_if_something_arrives(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.expect_nothing()
        peer.line("NOOP", "QUIT")
        with pytest.raises(DialogueError, match="expected nothing; got b'250"):
            peer.expect_nothing()
        peer.expect("250", "221")
        with pytest.raises(DialogueError, match="ended"):
            peer.expect_nothing()


def test_expect_end_fails_if_more_arrives(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220")
        peer.line("QUIT")
        with pytest.raises(DialogueError, match="expected the end; got b'221"):
            peer.expect_end()


@pytest.mark.parametrize("body", [b"", b"x", b"x\r\n", b".\r\n", b"..\r\n.x\r\n", b"a\r\n.\r\nb"])
def test_deliver_stuffs_dots_and_ends_the_body(smtp_server: MakeServer, body: bytes) -> None:
    server = smtp_server(start=False)
    bodies: list[bytes] = []

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        bodies.append(stream.read())

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(body).startswith("250")
    assert bodies == [body if body.endswith(b"\r\n") or not body else body + b"\r\n"]


def test_deliver_expects_354(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        with pytest.raises(DialogueError, match="expected '354'; got '554"):
            peer.deliver()


def test_start_tls_refuses_unread_data_in_the_clear() -> None:
    with peer_of(b"220 go ahead\r\n250 injected\r\n") as peer:
        peer.expect("220")
        with pytest.raises(DialogueError, match="in the clear"):
            peer.start_tls()


@pytest.mark.parametrize("source", [None, ("192.0.2.1", 4711)])
def test_dial_accepts_any_source_address(smtp_server: MakeServer, source: Any) -> None:
    server = smtp_server()
    seen: list[Any] = []

    @server.on("connect")
    def look(session: Session, ack: Ack) -> None:
        seen.append(session.peer_host)
        ack.accept()

    with dial(server, source=source) as peer:
        peer.hello()
    assert seen == ["192.0.2.1" if source else "127.0.0.1"]


@pytest.mark.parametrize("listener", ["127.0.0.1:0", "[::1]:0", "unix"])
def test_dial_connects_to_every_kind_of_listener(smtp_server: MakeServer, listener: str, tmp_path: Path) -> None:
    with dial(smtp_server(listener=str(tmp_path / "mail") if listener == "unix" else listener)) as peer:
        peer.hello()


@pytest.mark.parametrize(
    ("end", "reason"), [(Peer.close, "closed"), (Peer.half_close, "closed"), (Peer.reset, "reset")]
)
def test_a_peer_can_close_half_close_and_reset(smtp_server: MakeServer, end: Any, reason: str) -> None:
    server = smtp_server()
    reasons: list[str] = []
    server.on("disconnect", lambda session, reason: reasons.append(reason))
    with dial(server) as peer:
        peer.hello()
        end(peer)
        peer.let_it_read()
    assert reasons == [reason]


def test_let_it_read_lets_the_server_answer(smtp_server: MakeServer) -> None:
    with dial(smtp_server()) as peer:
        peer.hello()
        for _ in range(50):
            peer.line("NOOP")
            peer.let_it_read()
            peer.socket.setblocking(False)
            assert peer.socket.recv(100).startswith(b"250")
            peer.socket.setblocking(True)


def test_cut_sends_in_two_pieces(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    chunks: list[bytes] = []

    @server.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        chunks.extend(stream)

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        peer.expect("354")
        peer.send(b"one\r\ntwo\r\n.\r\n", cut=5)
        peer.expect("250")
    assert chunks == [b"one\r\n", b"two\r\n"]


def test_a_long_body_is_shortened_in_the_transcript(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        reader = spawn(peer.socket.recv, 1)
        peer.send(b"x" * 100_000)
        assert len(peer.transcript) < 2000
        assert "(100000 bytes)" in peer.transcript
        reader.kill()


def test_the_fixture_makes_servers_like_any_other(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, hostname="other.example", max_errors=3)
    assert isinstance(server, SMTPServer)
    assert (server.started, server.hostname, server.limits.max_errors) == (False, "other.example", 3)
    assert smtp_server().started
