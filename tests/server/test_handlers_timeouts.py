"""gevent's Timeout, a BaseException: handlers that set one themselves, and catch it or not."""

from __future__ import annotations

from typing import Any

import pytest
from gevent import Timeout, sleep

from greensmtp import Ack, Command, MessageStream, Reply, Session
from greensmtp.chain.chain import Proceed
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer


def give_up(*args: Any, **fields: Any) -> None:
    """Let a Timeout of one's own expire."""
    with Timeout(0.01):
        sleep(30)


class Stuck:
    """A pipe whose write times out."""

    def write(self, data: bytes) -> None:
        give_up()


def take(session: Session, stream: MessageStream, ack: Ack) -> None:
    ack.accept()


def replies_of(peer: Peer) -> list[str]:
    """Play a whole session, whatever is rejected in it; return the codes of the replies."""
    replies = [peer.reply()[:3]]
    for line in ("EHLO x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA", "RSET", "QUIT"):
        peer.line(line)
        replies.append(peer.reply()[:3])
        if replies[-1] == "354":
            peer.send("text\r\n.\r\n")
            replies.append(peer.reply()[:3])
    peer.expect_end()
    return replies


@pytest.mark.parametrize(
    ("name", "expected"),
    [
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
def test_one_that_a_handler_lets_go_is_an_error_like_others(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, name: Any, expected: str
) -> None:
    server = smtp_server(start=False)
    if name != "message":
        server.on("message", take)
    server.on(name, give_up)
    with dial(server) as peer:
        assert " ".join(replies_of(peer)) == expected
    server.stop()
    assert "Timeout: 0.01 seconds" in caplog.text


def test_one_of_lmtps_replies_may_be_one(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, lmtp=True)
    server.on("message", take)
    server.on(
        "received", lambda session, recipient, ack: give_up() if recipient.domain == "example.com" else ack.accept()
    )
    with dial(server) as peer:
        peer.hello(verb="LHLO")
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "RCPT TO:<c@example.org>", "DATA")
        peer.expect("250", "250", "250", "354")
        peer.line(".")
        peer.expect("451", "250")


def test_one_before_the_banner_turns_the_peer_away(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("connect", give_up)
    with dial(server) as peer:
        peer.expect("421 4.3.0")
        peer.expect_end()


@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
def test_one_that_a_pipe_lets_go_fails_the_message(smtp_server: MakeServer, reads: bool) -> None:
    """Even if the receiver catches it as its own."""
    server = smtp_server(start=False)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.pipe(Stuck())
        ack.accept()
        if reads:
            try:
                stream.read()
            except Timeout:
                pass

    with dial(server) as peer:
        assert " ".join(replies_of(peer)) == "220 250 250 250 354 451 250 221"


def test_one_at_the_end_of_a_transaction_changes_nothing(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.at_end(give_up)
        ack.accept()

    with dial(server) as peer:
        assert " ".join(replies_of(peer)) == "220 250 250 250 354 250 250 221"


@pytest.mark.parametrize("ask", ["DATA", "BDAT 4 LAST\r\ntext"], ids=["DATA", "BDAT"])
def test_one_before_a_message_is_accepted_ends_the_message(smtp_server: MakeServer, ask: str) -> None:
    server = smtp_server(start=False)
    over: list[MessageStream] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        stream.at_end(lambda: over.append(stream))
        give_up()

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.send(f"{ask}\r\n" if ask == "DATA" else ask)
        peer.expect("451")
        assert [stream.closed for stream in over] == [True]
        peer.line("NOOP")
        peer.expect("250")


def test_a_middleware_catches_its_own(smtp_server: MakeServer) -> None:
    """Even if an inner handler was waiting."""

    def hurry(session: Session, command: Command, proceed: Proceed) -> Reply:
        try:
            with Timeout(0.05):
                return proceed(session, command)
        except Timeout:
            return Reply(450, "4.3.2 Too busy")

    server = smtp_server(start=False, middleware=[hurry])
    server.on("to", lambda session, address, ack: sleep(30))
    with dial(server) as peer:
        assert " ".join(replies_of(peer)) == "220 250 250 450 503 250 221"
