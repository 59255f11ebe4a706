"""Staging: a command takes effect only if the client gets a positive reply."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest
from gevent import Timeout, spawn
from gevent.event import Event

from greensmtp import Ack, Address, Command, MessageStream, Reject, Reply, Session, compose, when
from greensmtp.chain.chain import Proceed, middleware
from greensmtp.middleware import Auth, Logging
from greensmtp.protocol.command import PathCommand
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import Deliveries, play

if TYPE_CHECKING:
    from tests.conftest import Certificate

Ending = Callable[[Reply], Reply]


def refuse(reply: Reply) -> Reply:
    return Reply(451, "4.7.1 on second thoughts")


def fail(reply: Reply) -> Reply:
    raise LookupError("after proceed")


def reject(reply: Reply) -> Reply:
    raise Reject(450, "4.7.1 no")


def leave(reply: Reply) -> Reply:
    sys.exit(3)


def expire(reply: Reply) -> Reply:
    raise Timeout(0.1)


def promise(reply: Reply) -> Reply:
    return Reply(354, "go on")


def forget(reply: Reply) -> Reply:
    return None  # type: ignore[return-value]


ENDINGS: list[Ending] = [refuse, fail, reject, leave, expire, promise, forget]


class Turn:
    """A middleware that calls ``ending`` after it has proceeded with one command, once."""

    def __init__(self, line: str, ending: Ending) -> None:
        self.line = line
        self.ending = ending
        self.on = True

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        if self.on and f"{command.verb} {command.argument}".rstrip() == self.line:
            self.on = False
            assert reply.code < 400
            return self.ending(reply)
        return reply


every_ending = pytest.mark.parametrize("ending", ENDINGS)


@every_ending
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
def test_a_recipient_that_was_refused_after_proceed_gets_no_mail(
    smtp_server: MakeServer, ending: Ending, lmtp: bool
) -> None:
    server = smtp_server(start=False, lmtp=lmtp, middleware=[Turn("RCPT TO:<b@example.com>", ending)])
    deliveries = Deliveries(server)
    with dial(server) as peer:
        peer.hello(verb="LHLO" if lmtp else "EHLO")
        play(
            peer,
            ("MAIL FROM:<a@example.org>", "250"),
            ("RCPT TO:<b@example.com>", "4"),
            ("DATA", "503"),
            ("RCPT TO:<c@example.com>", "250"),
            ("DATA", "354"),
            (".", "250"),
            ("NOOP", "250"),
        )
    assert [mail[:2] for mail in deliveries.mail] == [("a@example.org", ["c@example.com"])]


@every_ending
def test_a_sender_that_was_refused_after_proceed_begins_nothing(smtp_server: MakeServer, ending: Ending) -> None:
    server = smtp_server(start=False, middleware=[Turn("MAIL FROM:<a@example.org>", ending)])
    deliveries = Deliveries(server)
    with dial(server) as peer:
        peer.hello()
        play(
            peer,
            ("MAIL FROM:<a@example.org>", "4"),
            ("RCPT TO:<b@example.com>", "503"),
            ("MAIL FROM:<z@example.org>", "250"),
            ("RCPT TO:<b@example.com>", "250"),
            ("DATA", "354"),
            (".", "250"),
        )
    assert [mail[:2] for mail in deliveries.mail] == [("z@example.org", ["b@example.com"])]


@every_ending
@pytest.mark.parametrize(("verb", "lmtp"), [("HELO", False), ("EHLO", False), ("LHLO", True)])
def test_a_greeting_that_was_refused_after_proceed_was_none(
    smtp_server: MakeServer, ending: Ending, verb: str, lmtp: bool
) -> None:
    sessions: list[Session] = []
    server = smtp_server(start=False, lmtp=lmtp, middleware=[Turn(f"{verb} x.example", ending)])
    server.on("quit", sessions.append)
    with dial(server) as peer:
        peer.expect("220")
        play(peer, (f"{verb} x.example", "4"), ("MAIL FROM:<a@example.org>", "503"), ("QUIT", "221"))
    assert (sessions[0].greeting, sessions[0].hostname) == (None, None)


@every_ending
@pytest.mark.parametrize("line", ["RSET", "EHLO again.example", "HELO again.example"])
def test_a_reset_that_was_refused_after_proceed_resets_nothing(
    smtp_server: MakeServer, ending: Ending, line: str
) -> None:
    server = smtp_server(start=False, middleware=[Turn(line, ending)])
    deliveries = Deliveries(server)
    resets: list[Session] = []
    server.on("reset", resets.append)
    with dial(server) as peer:
        peer.hello("first.example")
        peer.envelope("a@example.org", "b@example.com")
        play(peer, (line, "4"), ("DATA", "354"), (".", "250"))
    assert [mail[:2] for mail in deliveries.mail] == [("a@example.org", ["b@example.com"])]
    assert resets == []


def credentials(name: str) -> str:
    import base64

    return base64.b64encode(f"\0{name}\0boop".encode()).decode()


@every_ending
def test_an_identity_that_was_refused_after_proceed_is_none(smtp_server: MakeServer, ending: Ending) -> None:
    line = f"AUTH PLAIN {credentials('beep')}"
    stack = [Turn(line, ending), Auth({"beep": "boop"}, required=True, allow_plaintext=True)]
    server = smtp_server(start=False, middleware=stack)
    with dial(server) as peer:
        peer.hello()
        play(
            peer, (line, "4"), ("MAIL FROM:<a@example.org>", "530"), (line, "235"), ("MAIL FROM:<a@example.org>", "250")
        )


@every_ending
@pytest.mark.parametrize("line", ["XAUTH me", "NOOP", "MAIL FROM:<a@example.org>", "DATA", "RSET"])
def test_an_identity_that_a_middleware_sets_itself_goes_with_the_refusal(
    smtp_server: MakeServer, ending: Ending, line: str
) -> None:
    def knows(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == line.partition(" ")[0]:
            session.identity = cast(Any, "me")
            return Reply(235, "2.7.0 welcome") if command.verb == "XAUTH" else proceed(session, command)
        return proceed(session, command)

    if (line, ending) == ("DATA", promise):
        return  # which is what DATA promises
    server = smtp_server(start=False, middleware=[Turn(line, ending), knows])
    Deliveries(server)
    sessions: list[Session] = []
    server.on("quit", sessions.append)
    with dial(server) as peer:
        peer.hello()
        if line == "DATA":
            peer.envelope()
        peer.line(line)
        if line == "DATA":
            peer.expect("354")
            peer.line(".")
        peer.expect("4")
        play(peer, ("QUIT", "221"))
    assert sessions[0].identity is None


def test_an_identity_that_a_middleware_takes_away_stays_away(smtp_server: MakeServer) -> None:
    def revoke(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "XLOCK":
            session.identity = None
            return Reply(535, "5.7.8 locked")
        if command.verb == "XAUTH":
            session.identity = cast(Any, "me")
            return Reply(235, "2.7.0 welcome")
        return proceed(session, command)

    server = smtp_server(start=False, middleware=[revoke])
    sessions: list[Session] = []
    server.on("quit", sessions.append)
    with dial(server) as peer:
        peer.expect("220")
        play(peer, ("XAUTH", "235"), ("NOPE", "500"), ("XLOCK", "535"), ("QUIT", "221"))
    assert sessions[0].identity is None


@pytest.mark.parametrize("wrap", [compose, lambda it: when(lambda session: True, it)], ids=["compose", "when"])
@every_ending
def test_it_holds_in_composed_middleware_too(smtp_server: MakeServer, wrap: Any, ending: Ending) -> None:
    server = smtp_server(start=False, middleware=[wrap(Turn("RCPT TO:<b@example.com>", ending))])
    with dial(server) as peer:
        peer.hello()
        play(
            peer,
            ("MAIL FROM:<a@example.org>", "250"),
            ("RCPT TO:<b@example.com>", "4"),
            ("DATA", "503"),
        )


@every_ending
def test_between_two_chunks_it_holds_too(smtp_server: MakeServer, ending: Ending) -> None:
    def knows(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "XAUTH":
            session.stage(setattr, session, "identity", command.argument)
            return Reply(235, "2.7.0 welcome")
        return proceed(session, command)

    server = smtp_server(start=False, middleware=[Turn("XAUTH one", ending), knows])
    seen: list[Any] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.read()
        seen.append(session.identity)

    with dial(server) as peer:
        for name, reply in (("one", "4"), ("two", "235")):
            if name == "one":
                peer.hello()
            peer.envelope()
            peer.send(f"BDAT 2\r\nhiXAUTH {name}\r\nBDAT 2 LAST\r\nho")
            peer.expect("250", reply, "250")
    assert seen == [None, "two"]


@pytest.mark.parametrize("late", [lambda ack: ack.accept(), lambda ack: spawn(ack.accept)], ids=["at once", "later"])
def test_a_handlers_decision_counts_no_more_than_the_reply(smtp_server: MakeServer, late: Any) -> None:
    server = smtp_server(start=False, middleware=[Turn("RCPT TO:<b@example.com>", refuse)])

    @server.on("to")
    def decide(session: Session, address: Address, ack: Ack) -> None:
        late(ack)

    with dial(server) as peer:
        peer.hello()
        play(
            peer,
            ("MAIL FROM:<a@example.org>", "250"),
            ("RCPT TO:<b@example.com>", "451"),
            ("DATA", "503"),
            ("RCPT TO:<b@example.com>", "250"),
            ("DATA", "554"),
        )


# What middleware stages


def test_staged_changes_are_made_in_order_before_the_next_command(smtp_server: MakeServer) -> None:
    log: list[str] = []

    def outer(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        log.append(f"{command.verb} {session.from_}")
        session.stage(lambda: log.append(f"then {session.from_}"))
        return reply

    server = smtp_server(start=False, middleware=[outer])
    with dial(server) as peer:
        peer.expect("220")
        log.clear()
        peer.line("EHLO x")
        peer.expect("250")
        peer.line("MAIL FROM:<a@example.org>", "NOPE", "RSET")
        peer.expect("250", "500", "250")
    assert log[:6] == [
        *("EHLO None", "then None"),
        *("MAIL None", "then a@example.org"),
        "NOPE a@example.org",
        "RSET a@example.org",
    ]


@pytest.mark.parametrize("error", [LookupError("x"), SystemExit(1), Timeout(0.1)])
def test_a_staged_change_that_fails_is_a_451_and_drops_the_transaction(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def broken() -> None:
        raise error

    def stages(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        if command.verb == "RCPT":
            session.stage(broken)
        return reply

    server = smtp_server(start=False, middleware=[stages])
    with dial(server) as peer:
        peer.hello()
        play(
            peer,
            ("MAIL FROM:<a@example.org>", "250"),
            ("RCPT TO:<b@example.com>", "451"),
            ("DATA", "503"),
            ("MAIL FROM:<a@example.org>", "250"),
        )
    assert "broken, staged at RCPT, raised" in caplog.text


@pytest.mark.parametrize(
    ("returned", "wanted"),
    [
        (Reply(250, "2.6.0 taken"), "250 2.6.0 taken"),
        (Reply(221, "2.0.0 bye"), "250 2.0.0 Ok: queued as "),
        (Reply(550, "5.7.1 no"), "250 2.0.0 Ok: queued as "),
        ("250 text", "250 2.0.0 Ok: queued as "),
    ],
)
@pytest.mark.parametrize("lmtp", [False, True])
def test_a_250_that_a_staged_change_returns_takes_the_place_of_the_usual_reply_to_a_message(
    smtp_server: MakeServer, returned: object, wanted: str, *, lmtp: bool
) -> None:
    def stages(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        session.stage(lambda: returned)
        return reply

    server = smtp_server(start=False, middleware=[stages], lmtp=lmtp)
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.expect("220")
        peer.line("LHLO x" if lmtp else "EHLO x")
        peer.expect("250")
        play(
            peer,
            ("MAIL FROM:<a@example.org>", "250 2.1.0 Ok"),
            ("RCPT TO:<b@example.com>", "250 2.1.5 Ok"),
            ("DATA", "354"),
            (".", wanted),
        )


def test_what_is_staged_too_late_is_forgotten(smtp_server: MakeServer) -> None:
    sessions: list[Session] = []
    made: list[str] = []
    server = smtp_server(start=False)

    @server.on("connect")
    def note(session: Session, ack: Ack) -> None:
        sessions.append(session)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        sessions[0].stage(made.append, "too late")
        play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RCPT TO:<b@example.com>", "250"))
    assert made == []


def test_a_challenge_that_is_staged_may_lose_the_connection(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    def asks(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        if command.verb == "MAIL":
            session.stage(session.challenge, "well?")
        return reply

    reasons: list[str] = []
    over = Event()
    server = smtp_server(start=False, middleware=[asks])

    @server.on("disconnect")
    def note(session: Session, reason: str) -> None:
        reasons.append(reason)
        over.set()

    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<a@example.org>", "334"))
    assert over.wait(5)
    assert reasons[0] in ("closed", "reset")
    assert not caplog.records


def test_a_reset_between_two_chunks_ends_the_body_even_where_it_is_refused(smtp_server: MakeServer) -> None:
    """The client has given the body up, so what follows must not be taken for the rest of it (RFC 3030 section 2)."""
    server = smtp_server(start=False, middleware=[Turn("RSET", refuse)])
    deliveries = Deliveries(server)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.send("BDAT 2\r\nhiRSET\r\nBDAT 2 LAST\r\nhoNOOP\r\n")
        peer.expect("250", "451", "503", "250")
    assert deliveries.mail == []


def test_one_recipient_may_become_several(smtp_server: MakeServer) -> None:
    def alias(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb != "RCPT":
            return proceed(session, command)
        for name in ("x", "y"):
            reply = proceed(session, PathCommand("RCPT", "", Address.parse(f"{name}@example.com")))
        return reply

    server = smtp_server(start=False, max_recipients=2, middleware=[alias])
    deliveries = Deliveries(server)
    with dial(server) as peer:
        peer.hello()
        play(
            peer,
            ("MAIL FROM:<a@example.org>", "250"),
            ("RCPT TO:<b@example.com>", "250"),
            ("RCPT TO:<b@example.com>", "452"),
            ("DATA", "354"),
            (".", "250"),
        )
    assert deliveries.mail[0][1] == ["x@example.com", "y@example.com"]


# Observers


def test_logging_tells_what_the_client_was_told(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "greensmtp.session")
    turn = Turn("MAIL FROM:<a@example.org>", refuse)
    stack = [turn, Logging(), Auth({"beep": "boop"}, allow_plaintext=True)]
    server = smtp_server(start=False, middleware=stack)
    Deliveries(server)
    with dial(server) as peer:
        peer.hello()
        play(
            peer,
            (f"AUTH PLAIN {credentials('beep')}", "235"),
            ("MAIL FROM:<a@example.org>", "451"),
            ("MAIL FROM:<b@example.org>", "250"),
            ("RCPT TO:<c@example.com>", "250"),
            ("DATA", "354"),
            (".", "250"),
            ("QUIT", "221"),
        )
        peer.expect_end()
    server.stop()
    facts = [record.__dict__ for record in caplog.records if record.__dict__.get("event") == "transaction"]
    assert [(each["sender"], each["outcome"], each["identity"]) for each in facts] == [
        ("b@example.org", "accepted", "beep"),
    ]
    assert facts[0]["recipients"] == ["c@example.com"]


def test_counters_count_what_the_client_was_told(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[Turn("END-OF-DATA", refuse), Turn("NOOP", lambda _: Reply(550))])
    Deliveries(server)
    sessions: list[Session] = []
    server.on("quit", sessions.append)
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("451")
        play(peer, ("NOOP", "550"))
        assert server.connections
        (conversation,) = server.connections
        assert (conversation.session.messages_accepted, conversation.session.errors) == (0, 1)
        assert peer.deliver().startswith("250")
        play(peer, ("QUIT", "221"))
    assert (sessions[0].messages_accepted, sessions[0].errors) == (1, 0)


# The transaction's notes


@pytest.mark.parametrize("end", ["RSET", "EHLO x.example", "message", "refused message", "STARTTLS"])
def test_transaction_notes_last_as_long_as_the_transaction(smtp_server: MakeServer, certificate: Any, end: str) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)
    Deliveries(server)
    seen: list[dict[Any, Any]] = []

    @server.on("from")
    def sender(session: Session, address: Address, ack: Ack) -> None:
        seen.append(dict(session.transaction_notes))
        session.transaction_notes["sender"] = str(address)
        if address.local_part == "no":
            ack.reject()
        else:
            ack.accept()

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        assert session.transaction_notes == {"sender": "a@example.org"}
        if end == "refused message":
            ack.reject()
        else:
            ack.accept()

    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<no@example.org>", "550"))
        peer.envelope("a@example.org")
        if "message" in end:
            play(peer, ("DATA", "354"))
            peer.line(".")
            peer.reply()
        else:
            peer.line(end)
            peer.expect("2")
        if end == "STARTTLS":
            peer.start_tls()
            play(peer, ("EHLO x", "250"))
        play(peer, ("MAIL FROM:<a@example.org>", "250"))
    assert seen == [{}, {}, {}]


def test_a_refused_reset_keeps_the_transactions_notes(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[Turn("RSET", refuse)])
    seen: list[Any] = []

    @server.on("from")
    def note(session: Session, address: Address, ack: Ack) -> None:
        session.transaction_notes["a"] = 1
        ack.accept()

    @server.on("to")
    def look(session: Session, address: Address, ack: Ack) -> None:
        seen.append(session.transaction_notes)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RSET", "451"), ("RCPT TO:<b@example.com>", "250"))
    assert seen == [{"a": 1}]


def test_a_middleware_that_answers_starttls_by_itself_begins_no_handshake(
    smtp_server: MakeServer, certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    @middleware(verbs=("STARTTLS",))
    def ready(session: Session, command: Command, proceed: Proceed) -> Reply:
        return Reply(220, "2.0.0 ready")

    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile, middleware=[ready])
    with dial(server) as peer:
        peer.hello()
        peer.line("STARTTLS", "NOOP")
        peer.expect("454", "250")
    assert "not by the server's own action" in caplog.text
