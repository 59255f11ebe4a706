"""What a command changes takes effect only if the client is told that it has worked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
from gevent import Timeout, spawn
from gevent.event import Event

from greensmtp import Ack, Address, Command, Mail, MessageStream, Reject, Reply, Session, SMTPServer, compose, when
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import Auth, Logging
from greensmtp.protocol.command import ChunkCommand, PathCommand
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

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
    """Passes one command on, once, and then does what ``ending`` does."""

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


class Box:
    """What has been delivered."""

    def __init__(self, server: SMTPServer) -> None:
        self.mail: list[tuple[str, list[str], bytes]] = []

        @server.on("message")
        def take(session: Session, stream: MessageStream, ack: Ack) -> None:
            ack.accept()
            sender, to = str(session.from_), list(map(str, session.to))
            body = stream.read()
            self.mail.append((sender, to, body))


def play(peer: Peer, *steps: tuple[str, str]) -> None:
    for line, pattern in steps:
        peer.line(line)
        peer.expect(pattern)


every_ending = pytest.mark.parametrize("ending", ENDINGS)


@every_ending
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
def test_a_recipient_that_was_refused_after_proceed_gets_no_mail(
    smtp_server: MakeServer, ending: Ending, lmtp: bool
) -> None:
    server = smtp_server(start=False, lmtp=lmtp, middleware=[Turn("RCPT TO:<b@example.com>", ending)])
    box = Box(server)
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
    assert [mail[:2] for mail in box.mail] == [("a@example.org", ["c@example.com"])]


@every_ending
def test_a_sender_that_was_refused_after_proceed_begins_nothing(smtp_server: MakeServer, ending: Ending) -> None:
    server = smtp_server(start=False, middleware=[Turn("MAIL FROM:<a@example.org>", ending)])
    box = Box(server)
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
    assert [mail[:2] for mail in box.mail] == [("z@example.org", ["b@example.com"])]


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
    box = Box(server)
    resets: list[Session] = []
    server.on("reset", resets.append)
    with dial(server) as peer:
        peer.hello("first.example")
        peer.envelope("a@example.org", "b@example.com")
        play(peer, (line, "4"), ("DATA", "354"), (".", "250"))
    assert [mail[:2] for mail in box.mail] == [("a@example.org", ["b@example.com"])]
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
    Box(server)
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
    """RFC 3030 section 2: the client has given the body up, and what follows must not pass for it."""
    server = smtp_server(start=False, middleware=[Turn("RSET", refuse)])
    box = Box(server)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.send("BDAT 2\r\nhiRSET\r\nBDAT 2 LAST\r\nhoNOOP\r\n")
        peer.expect("250", "451", "503", "250")
    assert box.mail == []


def test_one_recipient_may_become_several(smtp_server: MakeServer) -> None:
    def alias(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb != "RCPT":
            return proceed(session, command)
        for name in ("x", "y"):
            reply = proceed(session, PathCommand("RCPT", "", Address.parse(f"{name}@example.com")))
        return reply

    server = smtp_server(start=False, max_recipients=2, middleware=[alias])
    box = Box(server)
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
    assert box.mail[0][1] == ["x@example.com", "y@example.com"]


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
def test_a_recipient_whom_only_a_middleware_accepts_ends_in_503(
    smtp_server: MakeServer, passes: bool, lmtp: bool, order: list[str]
) -> None:
    """Never is a message taken for fewer recipients than the client believes."""
    server = smtp_server(start=False, lmtp=lmtp, middleware=[turned("RCPT", passes)])
    no_is_refused(server)
    box = Box(server)
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
    assert box.mail == []


@pytest.mark.parametrize("passes", [True, False])
def test_a_sender_whom_only_a_middleware_accepts_ends_in_503(smtp_server: MakeServer, passes: bool) -> None:
    """Above all where there is an older transaction, whose recipients would get the mail."""
    server = smtp_server(start=False, middleware=[turned("MAIL", passes)])
    no_is_refused(server)
    box = Box(server)
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
    assert box.mail == []


@pytest.mark.parametrize("line", ["RSET", "EHLO x.example"])
@pytest.mark.parametrize("how", ["middleware", "command"])
def test_a_reset_that_only_a_middleware_grants_drops_the_transaction(
    smtp_server: MakeServer, line: str, how: str
) -> None:
    verb = line.partition(" ")[0]

    def grants(session: Session, command: Command, proceed: Proceed) -> Reply:
        return Reply(250, "2.0.0 fine") if command.verb == verb and session.from_ else proceed(session, command)

    server = smtp_server(start=False, middleware=[grants] if how == "middleware" else [])
    box = Box(server)
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
    assert [mail[:2] for mail in box.mail] == [("new@example.org", ["new@example.com"])]


def test_a_recipient_whom_a_middleware_accepts_between_two_chunks_fails_the_message(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[turned("RCPT", True)])
    with dial(server) as peer:
        Box(server)
        peer.hello()
        peer.envelope()
        peer.send("BDAT 2\r\nhiRCPT TO:<no@example.com>\r\nBDAT 2 LAST\r\nhoNOOP\r\n")
        peer.expect("250", "250", "451", "250")


def test_a_message_that_has_failed_is_not_accepted_by_a_middleware(smtp_server: MakeServer) -> None:
    def yes(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(250, "2.0.0 sure") if command.verb == "END-OF-DATA" else reply

    server = smtp_server(start=False, max_message_size=10, middleware=[yes])
    Box(server)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        play(peer, ("DATA", "354"), ("much too much\r\n.", "552"), ("NOOP", "250"))


# Who looks on


def test_logging_tells_what_the_client_was_told(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "greensmtp.session")
    turn = Turn("MAIL FROM:<a@example.org>", refuse)
    stack = [turn, Logging(), Auth({"beep": "boop"}, allow_plaintext=True)]
    server = smtp_server(start=False, middleware=stack)
    Box(server)
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
    Box(server)
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
    Box(server)
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


# Middleware that proceeds more than once, or elsewhere


class Proceeding:
    """A middleware for one verb, which proceeds in its own way."""

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
    box = Box(server)
    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RCPT TO:<b@example.com>", "250"))
        if verb == "BDAT":
            play(peer, ("BDAT 5\r\none", "250"), ("BDAT 5 LAST\r\ntwo", "250"))
        else:
            play(peer, ("DATA", "354"), ("one\r\ntwo\r\n.", "250"))
        play(peer, ("NOOP", "250"), ("RSET", "250"), ("VRFY x", "252"))
    assert [mail[:2] for mail in box.mail] == [("a@example.org", ["b@example.com"])]


@pytest.mark.parametrize("line", ["DATA", "BDAT 5"])
def test_a_message_is_not_taken_in_another_greenlet(smtp_server: MakeServer, line: str) -> None:
    server = smtp_server(start=False, middleware=[Proceeding(line[:4], elsewhere)])
    box = Box(server)
    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RCPT TO:<b@example.com>", "250"))
        peer.send(f"{line}\r\n".encode() + (b"" if line == "DATA" else b"NOOP\n"))
        peer.expect("451 4.3.0 a message is received in the connection")
        play(peer, ("NOOP", "250"), ("RSET", "250"))
    assert box.mail == []


def test_a_message_is_not_taken_when_its_command_has_been_answered(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[Proceeding("DATA", later)])
    box = Box(server)
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
    assert box.mail == []


def test_a_chunk_has_the_octets_that_the_client_sent_whatever_a_middleware_makes_of_it(smtp_server: MakeServer) -> None:
    def shorten(session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, ChunkCommand("BDAT", "0 LAST", 0, True))

    server = smtp_server(start=False, middleware=[Proceeding("BDAT", shorten)])
    box = Box(server)
    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RCPT TO:<b@example.com>", "250"))
        peer.send(b"BDAT 6 LAST\r\nNOOP\r\nVRFY x\r\n")
        peer.expect("250", "252")
    assert [mail[2] for mail in box.mail] == [b"NOOP\r\n"]


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
    Box(server)
    with dial(server) as peer:
        peer.hello()
        play(peer, ("MAIL FROM:<a@example.org>", "250"), ("RCPT TO:<b@example.com>", "250"), ("DATA", "354"))
        play(peer, (".", "452 4.3.1 no room"), ("MAIL FROM:<a@example.org>", "250"))
