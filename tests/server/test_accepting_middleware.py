"""A positive reply by a middleware, where the server's own action was not taken."""

from __future__ import annotations

from typing import Any

import pytest

from greensmtp import Ack, Address, Command, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import Deliveries, play

# The reverse: a positive reply that the server's own action does not stand behind


def turned(verb: str, passes: bool) -> Any:
    def middleware(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb != verb or "no" not in command.argument:
            return proceed(session, command)
        if passes:
            assert proceed(session, command).code >= 400
        return Reply(250, "2.0.0 well, yes")

    return middleware


def no_is_refused(server: SMTPServer) -> None:
    def decide(session: Session, address: Address, ack: Ack) -> None:
        if address.local_part == "no":
            ack.reject(550, "5.1.1 no such user")
        else:
            ack.accept()

    server.on("to", decide)
    server.on("from", decide)


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
@pytest.mark.parametrize("order", [["no"], ["b", "no"], ["no", "b"], ["b", "no", "b"]])
def test_a_recipient_that_only_a_middleware_accepts_ends_in_503(
    smtp_server: MakeServer, passes: bool, lmtp: bool, order: list[str]
) -> None:
    """A message is never accepted for fewer recipients than the client believes."""
    server = smtp_server(start=False, lmtp=lmtp, middleware=[turned("RCPT", passes)])
    no_is_refused(server)
    deliveries = Deliveries(server)
    with dial(server) as peer:
        peer.hello(verb="LHLO" if lmtp else "EHLO")
        play(peer, ("MAIL FROM:<a@example.org>", "250"))
        for name in order:
            peer.line(f"RCPT TO:<{name}@example.com>")
            peer.reply()
        play(peer, ("DATA", "503"), ("NOOP", "250"))
        peer.send("BDAT 4 LAST\r\nNOPE")
        peer.expect("503")
        peer.line("NOOP")
        peer.expect("250")
    assert deliveries.mail == []


@pytest.mark.parametrize("passes", [True, False])
def test_a_sender_that_only_a_middleware_accepts_ends_in_503(smtp_server: MakeServer, passes: bool) -> None:
    """Otherwise the recipients of an older transaction would get the mail."""
    server = smtp_server(start=False, middleware=[turned("MAIL", passes)])
    no_is_refused(server)
    deliveries = Deliveries(server)
    with dial(server) as peer:
        peer.hello()
        play(
            peer,
            ("MAIL FROM:<a@example.org>", "250"),
            ("RCPT TO:<old@example.com>", "250"),
            ("MAIL FROM:<no@example.org>", "250"),
            ("RCPT TO:<new@example.com>", "503"),
            ("DATA", "503"),
        )
    assert deliveries.mail == []


@pytest.mark.parametrize("line", ["RSET", "EHLO x.example"])
@pytest.mark.parametrize("how", ["middleware", "command"])
def test_a_reset_that_only_a_middleware_grants_drops_the_transaction(
    smtp_server: MakeServer, line: str, how: str
) -> None:
    verb = line.partition(" ")[0]

    def grants(session: Session, command: Command, proceed: Proceed) -> Reply:
        return Reply(250, "2.0.0 fine") if command.verb == verb and session.from_ else proceed(session, command)

    server = smtp_server(start=False, middleware=[grants] if how == "middleware" else [])
    deliveries = Deliveries(server)
    if how == "command":

        @server.on("command")
        def replace(session: Session, command: Command, ack: Ack) -> None:
            if command.verb == verb and session.from_:
                ack.replace(250, "2.0.0 fine")

    with dial(server) as peer:
        peer.hello()
        peer.envelope("old@example.org", "old@example.com")
        play(
            peer,
            (line, "250"),
            ("MAIL FROM:<new@example.org>", "250"),
            ("RCPT TO:<new@example.com>", "250"),
            ("DATA", "354"),
            (".", "250"),
        )
    assert [mail[:2] for mail in deliveries.mail] == [("new@example.org", ["new@example.com"])]


def test_a_recipient_that_a_middleware_accepts_between_two_chunks_fails_the_message(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[turned("RCPT", True)])
    with dial(server) as peer:
        Deliveries(server)
        peer.hello()
        peer.envelope()
        peer.send("BDAT 2\r\nhiRCPT TO:<no@example.com>\r\nBDAT 2 LAST\r\nhoNOOP\r\n")
        peer.expect("250", "250", "451", "250")


def test_a_message_that_has_failed_is_not_accepted_by_a_middleware(smtp_server: MakeServer) -> None:
    def yes(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(250, "2.0.0 sure") if command.verb == "END-OF-DATA" else reply

    server = smtp_server(start=False, max_message_size=10, middleware=[yes])
    Deliveries(server)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        play(peer, ("DATA", "354"), ("much too much\r\n.", "552"), ("NOOP", "250"))
