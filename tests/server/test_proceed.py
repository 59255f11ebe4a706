"""Middleware that proceeds more than once, in another greenlet, or with another command."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from gevent import spawn

from greensmtp import Ack, Address, Command, Mail, Reject, Reply, Session
from greensmtp.chain.chain import Proceed
from greensmtp.protocol.command import ChunkCommand, PathCommand
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import Deliveries, play

# Middleware that proceeds more than once, or elsewhere


class Proceeding:
    """A middleware for one verb that calls ``proceed`` in an unusual way."""

    def __init__(self, verb: str, how: Callable[[Session, Command, Proceed], Reply]) -> None:
        self.verbs = (verb,)
        self._how = how

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return self._how(session, command, proceed)


def twice(session: Session, command: Command, proceed: Proceed) -> Reply:
    proceed(session, command)
    return proceed(session, command)


def elsewhere(session: Session, command: Command, proceed: Proceed) -> Reply:
    replies: list[Reply] = []

    def go_on() -> None:
        try:
            replies.append(proceed(session, command))
        except RuntimeError as error:
            replies.append(Reply(451, str(error)))

    spawn(go_on).join(10)
    return replies[0]


def later(session: Session, command: Command, proceed: Proceed) -> Reply:
    session.notes["late"] = partial(proceed, session, command)
    return Reply(250, "later")


@pytest.mark.parametrize("verb", ["EHLO", "MAIL", "DATA", "BDAT", "END-OF-DATA", "RSET"])
def test_a_command_that_is_proceeded_with_twice_is_answered_once(smtp_server: MakeServer, verb: str) -> None:
    server = smtp_server(start=False, middleware=[Proceeding(verb, twice)])
    deliveries = Deliveries(server)
    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RCPT TO:<b@example.com>", "250"))
        if verb == "BDAT":
            play(peer, ("BDAT 5\r\none", "250"), ("BDAT 5 LAST\r\ntwo", "250"))
        else:
            play(peer, ("DATA", "354"), ("one\r\ntwo\r\n.", "250"))
        play(peer, ("NOOP", "250"), ("RSET", "250"), ("VRFY x", "252"))
    assert [mail[:2] for mail in deliveries.mail] == [("a@example.org", ["b@example.com"])]


@pytest.mark.parametrize("line", ["DATA", "BDAT 5"])
def test_a_message_is_not_taken_in_another_greenlet(smtp_server: MakeServer, line: str) -> None:
    server = smtp_server(start=False, middleware=[Proceeding(line[:4], elsewhere)])
    deliveries = Deliveries(server)
    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RCPT TO:<b@example.com>", "250"))
        peer.send(f"{line}\r\n".encode() + (b"" if line == "DATA" else b"NOOP\n"))
        peer.expect("451 4.3.0 a message is received in the connection")
        play(peer, ("NOOP", "250"), ("RSET", "250"))
    assert deliveries.mail == []


def test_a_message_is_not_taken_when_its_command_has_been_answered(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[Proceeding("DATA", later)])
    deliveries = Deliveries(server)
    sessions: list[Session] = []

    @server.on("connect")
    def note(session: Session, ack: Ack) -> None:
        sessions.append(session)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RCPT TO:<b@example.com>", "250"))
        peer.line("DATA")
        peer.expect("250")
        with pytest.raises(RuntimeError, match="own greenlet"):
            sessions[0].notes["late"]()
        play(peer, ("NOOP", "250"), ("RSET", "250"))
    assert deliveries.mail == []


def test_a_chunk_has_the_octets_that_the_client_sent_whatever_a_middleware_makes_of_it(smtp_server: MakeServer) -> None:
    def shorten(session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, ChunkCommand("BDAT", "0 LAST", 0, True))

    server = smtp_server(start=False, middleware=[Proceeding("BDAT", shorten)])
    deliveries = Deliveries(server)
    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RCPT TO:<b@example.com>", "250"))
        peer.send(b"BDAT 6 LAST\r\nNOOP\r\nVRFY x\r\n")
        peer.expect("250", "252")
    assert [mail[2] for mail in deliveries.mail] == [b"NOOP\r\n"]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({}, "250"),
        ({"c@example.com": 550}, "550"),
        ({"b@example.com": 550, "d@example.com": 451}, "451"),
        ({"b@example.com": 451, "d@example.com": 550}, "451"),
    ],
)
def test_lmtp_has_one_reply_for_a_recipient_that_a_middleware_makes_several_of(
    smtp_server: MakeServer, verdicts: dict[str, int], expected: str
) -> None:
    def expand(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.argument != "TO:<list@example.com>":
            return proceed(session, command)
        return [
            proceed(session, PathCommand("RCPT", command.argument, Address.parse(f"{name}@example.com")))
            for name in ("b", "c", "d")
        ][-1]

    server = smtp_server(start=False, lmtp=True, middleware=[Proceeding("RCPT", expand)])

    @server.on_mail
    def deliver(mail: Mail) -> dict[str, Reply]:
        return {name: Reply(code, "no") for name, code in verdicts.items()}

    with dial(server) as peer:
        peer.hello(verb="LHLO")
        for _ in range(2):
            play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RCPT TO:<y@example.com>", "250"))
            play(peer, ("RCPT TO:<list@example.com>", "250"), ("RCPT TO:<z@example.com>", "250"), ("DATA", "354"))
            peer.line(".")
            peer.expect("250", expected, "250")
            play(peer, ("VRFY x", "252"))


def test_a_staged_change_that_rejects_is_the_reply(smtp_server: MakeServer) -> None:
    def refuse(session: Session, command: Command, proceed: Proceed) -> Reply:
        def change() -> None:
            raise Reject(452, "4.3.1 no room")

        session.stage(change)
        return proceed(session, command)

    server = smtp_server(start=False, middleware=[Proceeding("END-OF-DATA", refuse)])
    Deliveries(server)
    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RCPT TO:<b@example.com>", "250"), ("DATA", "354"))
        play(peer, (".", "452 4.3.1 no room"), ("MAIL FROM:<a@example.org>", "250"))
