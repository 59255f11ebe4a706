"""The middleware chain: order, verbs, and what a middleware may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gevent import Greenlet, spawn
from gevent.event import Event

from greensmtp import Ack, Address, Command, ConnectionLost, ProtocolError, Reply, Session
from greensmtp.chain.chain import Proceed
from greensmtp.protocol.esmtp import Extension
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer


class Recorder:
    """Records every command before and after ``proceed``."""

    def __init__(self, name: str, log: list[str], verbs: Any = None) -> None:
        self.name = name
        self.log = log
        if verbs is not None:
            self.verbs = verbs

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        self.log.append(f"{self.name}>{command.verb}")
        reply = proceed(session, command)
        self.log.append(f"{reply.code}<{self.name}")
        return reply


def answering(verb: str, answer: Callable[[Session, Command, Proceed], Any]) -> Any:
    """Return a middleware that does this at one verb."""

    def middleware(session: Session, command: Command, proceed: Proceed) -> Any:
        return answer(session, command, proceed) if command.verb == verb else proceed(session, command)

    return middleware


# Order


def test_the_first_is_the_outermost(smtp_server: MakeServer) -> None:
    log: list[str] = []
    server = smtp_server(start=False, middleware=[Recorder("one", log), Recorder("two", log)])
    server.use(Recorder("three", log))
    server.on("command", lambda session, command, ack: log.append(f"signal {command.verb}"))
    with dial(server) as peer:
        peer.expect("220")
        log.clear()
        peer.line("NOOP")
        peer.expect("250")
    assert log[:7] == ["one>NOOP", "two>NOOP", "three>NOOP", "signal NOOP", "250<three", "250<two", "250<one"]


def test_use_works_as_a_decorator_and_stack_shows_the_stack(smtp_server: MakeServer) -> None:
    first = Recorder("first", [])
    given = [first]
    server = smtp_server(start=False, middleware=given)

    @server.use
    def second(session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, command)

    given.append(Recorder("too late", []))
    assert server.stack == (first, second)


def test_what_is_used_before_a_later_start_counts(smtp_server: MakeServer) -> None:
    log: list[str] = []
    server = smtp_server(start=False)
    with dial(server) as peer:
        peer.hello()
    server.use(Recorder("m", log))
    with dial(server) as peer:
        peer.hello()
    assert "m>EHLO" in log


# Which middleware sees which command


def test_without_verbs_it_sees_the_whole_life_of_a_connection(smtp_server: MakeServer) -> None:
    log: list[str] = []
    server = smtp_server(start=False, middleware=[Recorder("m", log)])
    server.on("message", lambda session, stream, ack: ack.accept())
    over = Event()
    server.on("disconnect", lambda session, reason: over.set())
    with dial(server) as peer:
        peer.hello()
        peer.deliver()
        peer.line("xyzzy", "quit")
        peer.expect("500", "221")
        peer.expect_end()
        assert over.wait(5)
        peer.let_it_read()
    assert [entry[2:] for entry in log if entry.startswith("m>")] == [
        *("ACCEPT", "CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END-OF-DATA", "XYZZY", "QUIT", "DISCONNECT"),
    ]


@pytest.mark.parametrize("verbs", [{"MAIL", "QUIT"}, ["mail", "Quit"], ("MAIL", "QUIT"), frozenset({"MAIL", "QUIT"})])
def test_with_verbs_it_sees_those_alone(smtp_server: MakeServer, verbs: Any) -> None:
    log: list[str] = []
    server = smtp_server(start=False, middleware=[Recorder("m", log, verbs)])
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "XYZZY", "QUIT")
        peer.expect("250", "250", "500", "221")
        peer.expect_end()
    assert log == ["m>MAIL", "250<m", "m>QUIT", "221<m"]


@pytest.mark.parametrize("verb", ["ACCEPT", "CONNECT", "END-OF-DATA", "DISCONNECT"])
def test_pseudo_commands_can_be_asked_for_by_name(smtp_server: MakeServer, verb: str) -> None:
    log: list[str] = []
    server = smtp_server(start=False, middleware=[Recorder("m", log, {verb})])
    server.on("message", lambda session, stream, ack: ack.accept())
    over = Event()
    server.on("disconnect", lambda session, reason: over.set())
    with dial(server) as peer:
        peer.hello()
        peer.deliver()
        peer.close()
        assert over.wait(5)
    assert log[0] == f"m>{verb}"
    assert len([entry for entry in log if ">" in entry]) == 1


@pytest.mark.parametrize("line", ["ACCEPT", "CONNECT", "END-OF-DATA", "DISCONNECT", "connect", "end-of-data now"])
def test_no_peer_can_say_a_pseudo_command(smtp_server: MakeServer, line: str) -> None:
    log: list[str] = []
    verbs = {"ACCEPT", "CONNECT", "END-OF-DATA", "DISCONNECT"}
    server = smtp_server(start=False, middleware=[Recorder("one", log, verbs), Recorder("all", log)])
    with dial(server) as peer:
        peer.hello()
        log.clear()
        peer.line(line)
        peer.expect("500")
        assert log == ["all>UNKNOWN", "500<all"]


def test_in_lmtp_end_of_data_comes_once_for_each_recipient(smtp_server: MakeServer) -> None:
    seen: list[str] = []

    def each(session: Session, command: Command, proceed: Proceed) -> Reply:
        seen.append(command.argument)
        return proceed(session, command) if command.argument.startswith("a") else Reply(552, "5.2.2 full")

    server = smtp_server(start=False, lmtp=True, middleware=[answering("END-OF-DATA", each)])
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello(verb="LHLO")
        assert peer.deliver(to=["a@example.com", "b@example.com"]).startswith("250")
        peer.expect("552 5.2.2 full")
    assert seen == ["a@example.com", "b@example.com"]


def test_malformed_commands_come_through_too(smtp_server: MakeServer) -> None:
    seen: list[tuple[str, bool]] = []

    def look(session: Session, command: Command, proceed: Proceed) -> Reply:
        seen.append((command.verb, command.error is None))
        return proceed(session, command)

    server = smtp_server(start=False, middleware=[look])
    with dial(server) as peer:
        peer.expect("220")
        peer.line("EHLO", "RSET now", "NOOP")
        peer.expect("501", "501", "250")
        assert seen[2:] == [("EHLO", False), ("RSET", False), ("NOOP", True)]


# What it may do


def test_it_may_answer_without_passing_on(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[answering("MAIL", lambda *_: Reply(450, "4.7.1 greylisted"))])
    asked: list[str] = []
    server.on("command", lambda session, command, ack: asked.append(command.verb))
    server.on("from", lambda session, address, ack: asked.append("from"))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        peer.expect("450 4.7.1 greylisted", "503")
    assert asked == ["EHLO", "RCPT"]


def test_it_may_change_the_answer(smtp_server: MakeServer) -> None:
    def offer(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(reply.code, *reply.lines, "X-MINE", enhanced=None)

    server = smtp_server(start=False, middleware=[answering("EHLO", offer)])
    with dial(server) as peer:
        assert peer.hello().endswith("\n250 X-MINE")


@pytest.mark.parametrize(("reply", "goes_on"), [(Reply(220, "mine", enhanced=None), True), (Reply(554), False)])
def test_it_may_answer_a_connection(smtp_server: MakeServer, reply: Reply, goes_on: bool) -> None:
    server = smtp_server(start=False, middleware=[answering("CONNECT", lambda *_: reply)])
    with dial(server) as peer:
        peer.expect("220 mine" if goes_on else "554")
        if goes_on:
            peer.line("NOOP")
            peer.expect("250")
        else:
            peer.expect_end()


@pytest.mark.parametrize("asks_first", [True, False])
def test_it_may_refuse_a_message_at_its_end(smtp_server: MakeServer, asks_first: bool) -> None:
    received: list[Session] = []

    def refuse(session: Session, command: Command, proceed: Proceed) -> Reply:
        if asks_first:
            proceed(session, command)
        return Reply(554, "5.6.0 no")

    server = smtp_server(start=False, middleware=[answering("END-OF-DATA", refuse)])
    server.on("message", lambda session, stream, ack: ack.accept())

    @server.on("received")
    def accept(session: Session, ack: Ack) -> None:
        received.append(session)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver() == "554 5.6.0 no"
        peer.line("NOOP")
        peer.expect("250")
    assert bool(received) == asks_first


def test_it_may_own_a_verb_that_the_server_does_not_know(smtp_server: MakeServer) -> None:
    class Xyzzy:
        verbs = frozenset({"XYZZY"})

        def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
            return Reply(250, f"2.0.0 nothing happens {command.argument}")

    with dial(smtp_server(start=False, middleware=[Xyzzy()])) as peer:
        peer.hello()
        peer.line("xyzzy twice", "PLUGH")
        peer.expect("250 2.0.0 nothing happens twice", "500")


def test_the_answer_to_disconnect_goes_nowhere(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    over = Event()

    def at_the_end(session: Session, command: Command, proceed: Proceed) -> Reply:
        proceed(session, command)
        over.set()
        return Reply(550, "anything")

    server = smtp_server(start=False, middleware=[answering("DISCONNECT", at_the_end)])
    with dial(server) as peer:
        peer.hello()
        peer.line("QUIT")
        peer.expect("221")
        peer.expect_end()
        assert over.wait(5)
    assert not caplog.records


# Owning an extension


class Colour:
    """An extension: COLOUR= in MAIL and RCPT, with room for a long value."""

    verbs = ("EHLO",)
    extensions = (
        Extension("COLOUR", mail=frozenset({"COLOUR"}), rcpt=frozenset({"SHADE"}), room={"MAIL": 300, "RCPT": 10}),
    )

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(reply.code, *reply.lines, "COLOUR", enhanced=None) if reply.is_positive else reply


def test_extensions_add_parameters(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[Colour()])
    seen: list[Any] = []

    @server.on("to")
    def look(session: Session, address: Address, ack: Ack) -> None:
        seen.append(dict(session.from_ext))
        ack.accept()

    with dial(server) as peer:
        assert "COLOUR" in peer.hello()
        peer.line("MAIL FROM:<a@example.org> SHADE=dark", "MAIL FROM:<a@example.org> COLOUR=red SIZE=1")
        peer.expect("555", "250")
        peer.line("RCPT TO:<b@example.com> COLOUR=red", "RCPT TO:<b@example.com> SHADE=dark")
        peer.expect("555", "250")
    assert seen == [{"COLOUR": "red", "SIZE": "1"}]


def test_extensions_add_room_to_the_line(smtp_server: MakeServer) -> None:
    def longest_mail(peer: Peer) -> int:
        """Return the length of the longest MAIL line that is accepted, CRLF included."""
        peer.hello()
        low, high = 100, 2000
        while low < high:
            length = (low + high + 1) // 2
            line = f"MAIL FROM:<a@example.org> COLOUR={'x' * 2000}"[: length - 2]
            peer.line(line, "RSET")
            if peer.reply().startswith("500"):
                high = length - 1
            else:
                low = length
            peer.expect("250")
        return low

    with dial(smtp_server(start=False)) as plain, dial(smtp_server(start=False, middleware=[Colour()])) as extended:
        assert longest_mail(extended) - longest_mail(plain) == 300


# Challenges


def knock(session: Session, command: Command, proceed: Proceed) -> Reply:
    who = session.challenge("who is there?")
    second = session.challenge(f"{who.decode('ascii', 'replace')} who?", code=334)
    return Reply(250, f"2.0.0 {second!r}")


def test_a_challenge_is_a_question_and_its_answer(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False, middleware=[answering("KNOCK", knock)])) as peer:
        peer.hello()
        peer.converse("""
            C: KNOCK
            S: 334 who is there?
            C: boo
            S: 334 boo who?
            C: QUIT
            S: 250 2.0.0 b'QUIT'
            C: QUIT
            S: 221
        """)


def test_answers_may_be_pipelined_and_are_no_commands(smtp_server: MakeServer) -> None:
    seen: list[str] = []
    server = smtp_server(start=False, middleware=[answering("KNOCK", knock)])
    server.on("command", lambda session, command, ack: seen.append(command.verb))
    with dial(server) as peer:
        peer.hello()
        peer.line("KNOCK", "RSET", "", "NOOP")
        peer.expect("334 who", "334 RSET who?", "250 2.0.0 b''", "250 2.0.0 Ok")
    assert seen == ["EHLO", "NOOP"]


@pytest.mark.parametrize("answer", [b"x" * 20_000 + b"\r\n", b"half\nanswer\r\n", b"cr\rin the middle\n"])
def test_an_answer_that_is_no_line_raises(smtp_server: MakeServer, answer: bytes) -> None:
    raised: list[Exception] = []

    def careful(session: Session, command: Command, proceed: Proceed) -> Reply:
        try:
            session.challenge("go on")
        except ProtocolError as error:
            raised.append(error)
            return Reply(500, "5.5.6 no")
        return Reply(250, "Ok")

    with dial(smtp_server(start=False, middleware=[answering("KNOCK", careful)])) as peer:
        peer.hello()
        peer.line("KNOCK")
        peer.expect("334 go on")
        peer.send(answer)
        peer.expect("500 5.5.6 no")
    assert len(raised) == 1


def test_a_peer_that_vanishes_instead_of_answering_is_just_gone(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(middleware=[answering("KNOCK", knock)])
    reasons: list[str] = []
    over = Event()

    @server.on("disconnect")
    def disconnected(session: Session, reason: str) -> None:
        reasons.append(reason)
        over.set()

    with dial(server) as peer:
        peer.hello()
        peer.line("KNOCK")
        peer.expect("334")
        peer.close()
        assert over.wait(5)
    assert reasons == ["closed"]
    assert not caplog.records


def test_a_challenge_waits_in_the_connections_own_greenlet_only(smtp_server: MakeServer) -> None:
    failures: list[BaseException] = []

    def asks(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "AUTH":
            waiting = spawn(session.challenge)
            waiting.join()
            assert waiting.exception is not None
            failures.append(waiting.exception)
        return proceed(session, command)

    with dial(smtp_server(start=False, middleware=[asks])) as peer:
        peer.hello()
        peer.line("AUTH X", "NOOP")
        peer.expect("502", "250")
    assert [type(failure) for failure in failures] == [RuntimeError]


def test_challenge_after_the_end_of_a_session_raises(smtp_server: MakeServer) -> None:
    """What the client sent after QUIT is not an answer."""
    server = smtp_server(start=False)
    sessions: list[Session] = []
    server.on("quit", sessions.append)
    with dial(server) as peer:
        peer.hello()
        peer.line("QUIT", "an answer", "and another")
        peer.expect("221")
        peer.expect_end()
    with pytest.raises(ConnectionLost):
        sessions[0].challenge()


@pytest.mark.usefixtures("clock")
def test_a_middleware_that_waits_for_another_greenlets_ack_gets_451_at_its_timeout(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[Ack] = []
    asking: list[Greenlet[..., Any]] = []

    def asks(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "AUTH":
            asking.append(spawn(session.ask, "auth", identity="jo"))
            asking[0].join()
        return proceed(session, command)

    server = smtp_server(start=False, ack_timeout=0.1, middleware=[asks])
    server.on("auth", lambda session, identity, ack: kept.append(ack))
    reasons: list[str] = []
    server.on("disconnect", lambda session, reason: reasons.append(reason))
    with dial(server) as peer:
        peer.hello()
        peer.line("AUTH X", "QUIT")
        peer.expect("451", "221")
        peer.expect_end()
    assert reasons == ["quit"]
    assert "asks ran too long: ack_timeout of 0.1 s exceeded at AUTH" in caplog.text
    kept.pop().accept()
    asking.pop().join()
