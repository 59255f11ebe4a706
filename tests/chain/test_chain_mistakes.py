"""Faulty middleware: exceptions, wrong signatures, results that are not replies or come too late."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from greensmtp import Ack, Command, MessageStream, Reject, Reply, Session, when
from greensmtp.chain.chain import Proceed, middleware
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import collect_reasons


def answering(verb: str, answer: Callable[[Session, Command, Proceed], Any]) -> Any:
    """Return a middleware that does this at one verb."""

    def middleware(session: Session, command: Command, proceed: Proceed) -> Any:
        return answer(session, command, proceed) if command.verb == verb else proceed(session, command)

    return middleware


# What it raises and returns


@pytest.mark.parametrize("verb", ["EHLO", "MAIL", "RCPT", "DATA", "END-OF-DATA", "NOOP"])
def test_what_it_raises_is_451_and_in_the_log_with_its_name(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    failures: list[str] = []

    def clumsy(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == verb and not failures:
            failures.append(verb)
            raise LookupError("the password is hunter2")
        return proceed(session, command)

    server = smtp_server(start=False, middleware=[clumsy])
    server.on("message", lambda session, stream, ack: ack.accept())
    steps = [
        *("EHLO client.example", "NOOP", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA"),
        "text\r\n.",
    ]
    with dial(server) as peer:
        peer.expect("220")
        for _ in range(2):  # it fails once; then all is as ever
            for step in steps:
                peer.line(step)
                reply = peer.reply()
                if reply.startswith("451"):
                    assert "hunter2" not in reply
                    break
            else:
                assert reply.startswith("250")
            peer.line("RSET")
            peer.expect("250")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "clumsy" in record.getMessage()
    assert verb in record.getMessage()
    assert "hunter2" in caplog.text


def test_what_it_raises_at_connect_closes(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    def clumsy(session: Session, command: Command, proceed: Proceed) -> Reply:
        raise LookupError

    server = smtp_server(start=False, middleware=[answering("CONNECT", clumsy)])
    with dial(server) as peer:
        peer.expect("4")
        peer.expect_end()
    assert caplog.records


@pytest.mark.parametrize("given", [None, "250 Ok", 250, True, b"250", ("250", "Ok"), Reply])
def test_what_is_no_reply_is_451_and_in_the_log(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, given: Any
) -> None:
    def absent_minded(session: Session, command: Command, proceed: Proceed) -> Any:
        return given if command.verb == "NOOP" else proceed(session, command)

    with dial(smtp_server(start=False, middleware=[absent_minded])) as peer:
        peer.hello()
        peer.line("NOOP", "RSET")
        peer.expect("451 4.3.0", "250")
    (record,) = caplog.records
    assert "absent_minded" in record.getMessage()
    assert "NOOP" in record.getMessage()


@pytest.mark.parametrize(
    ("reject", "reply"),
    [
        (Reject(), "550 5."),
        (Reject(451, "4.7.1 wait"), "451 4.7.1 wait"),
        (Reject(550, "one\ntwo"), "550-5.0.0 one\n550 5.0.0 two"),
    ],
)
def test_reject_raised_is_the_reply(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, reject: Reject, reply: str
) -> None:
    outer: list[int] = []

    def raising(session: Session, command: Command, proceed: Proceed) -> Reply:
        raise reject

    def around(session: Session, command: Command, proceed: Proceed) -> Reply:
        answer = proceed(session, command)
        outer.append(answer.code)
        return answer

    server = smtp_server(start=False, middleware=[answering("NOOP", around), answering("NOOP", raising)])
    with dial(server) as peer:
        peer.hello()
        peer.line("NOOP")
        peer.expect(reply)
    assert outer == [reject.code]  # those outside see a reply, not an exception
    assert not caplog.records


# What use() takes


def right(session: Session, command: Command, proceed: Proceed) -> Reply:
    return proceed(session, command)


class Method:
    def right(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, command)

    def wrong(self, session: Session, command: Command) -> Reply:
        raise AssertionError


@pytest.mark.parametrize(
    "middleware",
    [
        right,
        Method().right,
        answering("NOOP", lambda *_: Reply(250)),
        partial(lambda extra, session, command, proceed: proceed(session, command), 1),
        lambda *arguments: arguments[2](*arguments[:2]),
        lambda session, command, proceed, extra=None: proceed(session, command),
    ],
)
def test_any_callable_that_fits_is_a_middleware(smtp_server: MakeServer, middleware: Any) -> None:
    with dial(smtp_server(start=False, middleware=[middleware])) as peer:
        peer.hello()


@pytest.mark.parametrize(
    ("middleware", "hint"),
    [
        (lambda session, command: None, "takes (session, command)"),
        (lambda: None, "takes ()"),
        (Method().wrong, "wrong"),
        (lambda session, command, proceed, more: None, "more"),
        (lambda *, session, command, proceed: None, "proceed"),
        ("log", "'log'"),
        (None, "None"),
    ],
)
@pytest.mark.parametrize("how", ["use", "constructor"])
def test_the_wrong_shape_is_refused_with_the_right_one(
    smtp_server: MakeServer, middleware: Any, hint: str, how: str
) -> None:
    server = smtp_server(start=False)
    give: Any = server.use if how == "use" else lambda it: smtp_server(start=False, middleware=[it])
    with pytest.raises(TypeError, match=r"\(session, command, proceed\)") as raised:
        give(middleware)
    assert hint in str(raised.value)


class Recorder:
    """A middleware whose constructor takes arguments."""

    def __init__(self, verbs: Any = None) -> None:
        self.verbs = verbs

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return proceed(session, command)


def test_a_class_is_refused_with_a_hint_to_make_an_instance(smtp_server: MakeServer) -> None:
    with pytest.raises(TypeError, match=r"write Recorder\(\.\.\.\), not Recorder"):
        smtp_server(start=False, middleware=[Recorder])


def test_verbs_as_one_string_are_refused(smtp_server: MakeServer) -> None:
    with pytest.raises(TypeError, match="verbs"):
        smtp_server(start=False, middleware=[Recorder("MAIL")])


def test_the_stack_is_frozen_once_the_server_has_started(smtp_server: MakeServer) -> None:
    server = smtp_server()
    with pytest.raises(RuntimeError, match=r"before start\(\)"):
        server.use(right)
    assert server.stack == ()


# Replies that promise a body, and replies that come too late


@pytest.mark.parametrize("line", ["NOOP", "DATA"])
def test_354_without_a_body_is_451(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, line: str) -> None:
    server = smtp_server(start=False, middleware=[answering(line, lambda *_: Reply(354, "go ahead"))])
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.line(line, "NOPE")
        peer.expect("451", "500")
    assert "354" in caplog.text


@pytest.mark.parametrize(
    ("late", "reply"),
    [(Reply(550, "5.7.1 changed my mind"), "550 5.7.1 changed my mind"), (Reply(250, "Ok"), "451"), (None, "451")],
)
@pytest.mark.parametrize("read", [True, False])
def test_a_refusal_after_354_is_told_at_the_end(
    smtp_server: MakeServer, late: Reply | None, reply: str, read: bool
) -> None:
    received: list[Session] = []

    def too_late(session: Session, command: Command, proceed: Proceed) -> Any:
        assert proceed(session, command).code == 354
        return late

    server = smtp_server(start=False, middleware=[answering("DATA", too_late)])
    server.on("received", lambda session, ack: received.append(session))

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        if read:
            stream.read()

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver(b"QUIT\r\n" * 1000).startswith(reply)
        peer.line("NOOP")
        peer.expect("250 2.0.0")
    assert not received


def test_one_that_raises_at_connect_is_421_and_close(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    def clumsy(session: Session, command: Command, proceed: Proceed) -> Reply:
        raise LookupError

    with dial(smtp_server(start=False, middleware=[answering("CONNECT", clumsy)])) as peer:
        peer.expect("421 4.3.0")
        peer.expect_end()
    assert "raised at CONNECT" in caplog.text


@pytest.mark.parametrize(
    ("line", "shown"), [("AUTH=hunter2", "AUTH"), ("hunter2", "UNKNOWN"), ("hunter2 and more", "UNKNOWN")]
)
def test_a_secret_that_looks_like_a_verb_is_not_logged(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, line: str, shown: str
) -> None:
    def clumsy(session: Session, command: Command, proceed: Proceed) -> Reply:
        raise LookupError

    with dial(smtp_server(start=False, middleware=[answering(line.split(maxsplit=1)[0].upper(), clumsy)])) as peer:
        peer.expect("220")
        peer.line(line)
        peer.expect("451")
    assert f"raised at {shown};" in caplog.text
    assert "hunter2" not in caplog.text.lower()


CODES = [(400, 421), (451, 421), (499, 421), (500, 554), (550, 554), (421, 421), (554, 554)]


@pytest.mark.parametrize(("code", "sent"), CODES)
@pytest.mark.parametrize(("verb", "by_handler"), [("ACCEPT", False), ("CONNECT", False), ("CONNECT", True)])
def test_a_refusal_before_the_banner_has_the_same_code_for_outer_middleware_and_client(
    smtp_server: MakeServer, code: int, sent: int, verb: str, by_handler: bool
) -> None:
    seen: list[int] = []

    @middleware(verbs=(verb,))
    def outer(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        seen.append(reply.code)
        return reply

    @middleware(verbs=(verb,))
    def refuse(session: Session, command: Command, proceed: Proceed) -> Reply:
        return Reply(code, "no")

    server = smtp_server(start=False, middleware=[outer] if by_handler else [outer, refuse])
    if by_handler:
        server.on("connect", lambda session, ack: ack.reject(code))
    with dial(server) as peer:
        peer.expect(str(sent))
        peer.expect_end()
    assert seen == [sent]


def test_a_client_that_goes_while_a_predicate_waits_for_it_is_no_fault_of_the_predicate(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    @middleware(verbs=("NOOP",))
    def never(session: Session, command: Command, proceed: Proceed) -> Reply:
        raise NotImplementedError

    server = smtp_server(start=False, middleware=[when(lambda session: session.challenge("Your name?"), never)])
    reasons = collect_reasons(server)
    with dial(server) as peer:
        peer.expect("220")
        peer.line("NOOP")
        peer.expect("334 Your name")
        peer.half_close()
        peer.expect_end()
    assert reasons == ["closed"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
