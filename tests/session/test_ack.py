"""Acks: which handler decides, the arguments of a decision, and decisions that are made twice or fail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from gevent import spawn

from greensmtp import (
    Ack,
    Address,
    AlreadyAcknowledged,
    Command,
    GreenSMTPError,
    MessageStream,
    Reject,
    Session,
    SMTPServer,
)
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import collect_reasons

Handler = Callable[..., Any]


def ask_for_recipient(server: SMTPServer, *handlers: Handler) -> str:
    """Return the reply to RCPT with these handlers; assert that the connection is usable afterwards."""
    for handler in handlers:
        server.on("to", handler)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "NOOP")
        peer.expect("250")
        reply = peer.reply()
        peer.expect("250 2.0.0")
    return reply


# Decisions


@pytest.mark.parametrize("decider", [0, 1, 2])
def test_whichever_receiver_decides_decides_for_all(smtp_server: MakeServer, decider: int) -> None:
    heard: list[int] = []

    def make(number: int) -> Handler:
        def handler(session: Session, address: Address, ack: Ack) -> None:
            heard.append(number)
            assert ack.decided == (number > decider)
            if number == decider:
                ack.reject(550, "5.1.1 unknown")

        return handler

    assert ask_for_recipient(smtp_server(start=False), *map(make, range(3))) == "550 5.1.1 unknown"
    assert heard == [0, 1, 2]


def test_receivers_for_other_sessions_do_not_count_as_listeners(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    @server.on("connect")
    def first_one_is_deaf(session: Session, ack: Ack) -> None:
        server.signals.to.connect(forget, sender=other, weak=False)
        ack.accept()

    def forget(session: Session, address: Address, ack: Ack) -> None:
        raise AssertionError("not this session")

    other = object()
    assert ask_for_recipient(server).startswith("250")


# Twice


@pytest.mark.parametrize("second", ["accept", "reject"])
@pytest.mark.parametrize("first", ["accept", "reject"])
@pytest.mark.parametrize("caught", [True, False])
def test_a_second_decision_raises_in_its_handler_and_is_a_451(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, first: str, second: str, caught: bool
) -> None:
    server = smtp_server(start=False)
    raised: list[Exception] = []
    recipients: list[list[Address]] = []

    def decides(session: Session, address: Address, ack: Ack) -> None:
        getattr(ack, first)()

    def meddles(session: Session, address: Address, ack: Ack) -> None:
        try:
            getattr(ack, second)()
        except AlreadyAcknowledged as error:
            raised.append(error)
            if not caught:
                raise
        recipients.append(session.to)

    assert ask_for_recipient(server, decides, meddles).startswith("451 4.3.0")
    assert len(raised) == 1
    assert recipients == [[]] * caught
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "meddles" in record.getMessage()


def test_one_receiver_cannot_decide_twice_either(smtp_server: MakeServer) -> None:
    def twice(session: Session, address: Address, ack: Ack) -> None:
        ack.accept()
        ack.accept()

    assert ask_for_recipient(smtp_server(start=False), twice).startswith("451")


def test_a_second_decision_after_354_is_told_at_the_end(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    received: list[Session] = []
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("received", lambda session, ack: received.append(session))
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("451")
        peer.line("NOOP")
        peer.expect("250")
    assert not received


def test_two_late_decisions_before_the_reply_are_451(smtp_server: MakeServer) -> None:
    raised: list[Exception] = []

    def late(session: Session, address: Address, ack: Ack) -> None:
        def decide_twice(ack: Ack) -> None:
            ack.accept()
            try:
                ack.accept()
            except AlreadyAcknowledged as error:
                raised.append(error)

        spawn(decide_twice, ack)

    assert ask_for_recipient(smtp_server(start=False), late).startswith("451")
    assert len(raised) == 1


def test_a_decision_after_the_reply_raises_and_says_nothing_to_the_peer(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    acks: list[Ack] = []

    @server.on("to")
    def keep(session: Session, address: Address, ack: Ack) -> None:
        acks.append(ack)
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        with pytest.raises(AlreadyAcknowledged):
            acks[0].reject()
        peer.expect_nothing()
        peer.line("NOOP")
        peer.expect("250")


# Raising


@pytest.mark.parametrize(
    ("reject", "reply"),
    [
        (Reject(), "550 5.7.1 "),
        (Reject(452), "452 4."),
        (Reject(550, "5.1.1 nobody here"), "550 5.1.1 nobody here"),
        (Reject(450, "two\nlines"), "450-4.2.0 two\n450 4.2.0 lines"),
    ],
)
def test_reject_raised_is_the_reply(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, reject: Reject, reply: str
) -> None:
    def refuse(session: Session, address: Address, ack: Ack) -> None:
        raise reject

    assert ask_for_recipient(smtp_server(start=False), refuse).startswith(reply)
    assert not caplog.records


def test_reject_421_raised_ends_the_connection(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    @server.on("from")
    def away(session: Session, address: Address, ack: Ack) -> None:
        raise Reject(421, "4.3.2 come back tomorrow")

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("421 4.3.2 come back tomorrow")
        peer.expect_end()


@pytest.mark.parametrize("decided", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyError, OSError, ConnectionError, TimeoutError, GreenSMTPError])
def test_what_a_handler_raises_is_451_and_stays_in_the_log(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, error: type[Exception], decided: bool
) -> None:
    def clumsy(session: Session, address: Address, ack: Ack) -> None:
        if decided:
            ack.accept()
        raise error("the password is hunter2")

    reply = ask_for_recipient(smtp_server(start=False), clumsy)
    assert reply.startswith("451 4.3.0 ")
    assert "hunter2" not in reply
    (record,) = caplog.records
    assert "clumsy" in record.getMessage()
    assert "hunter2" in caplog.text  # with its traceback
    assert "Traceback" in caplog.text


# What a decision may say


@pytest.mark.parametrize(
    ("name", "call", "wrong"),
    [
        ("connect", "accept", [250, 354, 421, 554]),
        ("greeting", "accept", [220, 354, 451, 550, 251]),
        ("from", "accept", [354, 450, 550, 100, 999, 0, -250]),
        ("to", "accept", [354, 450, "550", "abc", "", 2.5e9]),
        ("message", "accept", [250, 220, 554]),
        ("received", "accept", [354, 451, 550]),
        ("connect", "reject", [220, 250]),
        ("greeting", "reject", [250, 354]),
        ("from", "reject", [250, 354, 399, 600]),
        ("to", "reject", [250, "250", "abc", ["550"]]),
        ("message", "reject", [250, 354]),
        ("received", "reject", [250, 354]),
    ],
)
def test_a_code_of_the_wrong_class_raises_at_the_call(
    smtp_server: MakeServer, name: Any, call: str, wrong: list[Any]
) -> None:
    server = smtp_server(start=False)
    raised: list[Any] = []

    def decide(session: Session, *, ack: Ack, **fields: Any) -> None:
        for code in wrong:
            with pytest.raises(ValueError, match=call):
                getattr(ack, call)(code)
            assert not ack.decided
            raised.append(code)
        ack.accept()  # a mistake that was caught does no harm

    server.on(name, decide)
    if name != "message":
        server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("250")
    assert raised == wrong


def test_an_enhanced_code_of_the_wrong_class_raises_at_the_call(smtp_server: MakeServer) -> None:
    def decide(session: Session, address: Address, ack: Ack) -> None:
        with pytest.raises(ValueError, match=r"5\.1\.1"):
            ack.accept(250, "5.1.1 no such user")
        ack.reject(550, "5.1.1 no such user")

    assert ask_for_recipient(smtp_server(start=False), decide) == "550 5.1.1 no such user"


@pytest.mark.parametrize(("code", "reply"), [(251, "251 "), ("251", "251 "), ("250", "250 2.1.5 Ok")])
def test_a_code_may_be_a_numeric_string(smtp_server: MakeServer, code: Any, reply: str) -> None:
    handler = lambda session, address, ack: ack.accept(code)  # noqa: E731
    assert ask_for_recipient(smtp_server(start=False), handler).startswith(reply)


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        (None, "550 5.7.1 Recipient refused"),
        ("5.1.1 no", "550 5.1.1 no"),
        ("no", "550 5.0.0 no"),
        ("", "550 5.0.0"),
        ([], "550 5.0.0"),
        (["5.1.1 one"], "550 5.1.1 one"),
        (["5.1.1 one", "two"], "550-5.1.1 one\n550 5.1.1 two"),
        (("5.1.1 one", "5.1.1 two"), "550-5.1.1 one\n550 5.1.1 two"),
        (iter(["5.1.1 one", "two"]), "550-5.1.1 one\n550 5.1.1 two"),
        ("5.1.1 one\ntwo", "550-5.1.1 one\n550 5.1.1 two"),
        ("5.1.1 one\r\ntwo", "550-5.1.1 one\n550 5.1.1 two"),
        ("5.1.1 one\rtwo", "550-5.1.1 one\n550 5.1.1 two"),
        (["5.1.1 one\ntwo", "three"], "550-5.1.1 one\n550-5.1.1 two\n550 5.1.1 three"),
        ("5.1.1 caf\u00e9 \u2028 \x00\x1b[31m", "550 5.1.1 caf? ? ??[31m"),
    ],
)
def test_a_message_is_a_line_or_several(smtp_server: MakeServer, message: Any, reply: str) -> None:
    handler = lambda session, address, ack: ack.reject(550, message)  # noqa: E731
    assert ask_for_recipient(smtp_server(start=False), handler) == reply


def test_a_message_that_is_too_long_for_a_line_is_folded(smtp_server: MakeServer) -> None:
    text = " ".join(["5.1.1", *("word" for _ in range(400))])
    reply = ask_for_recipient(smtp_server(start=False), lambda session, address, ack: ack.reject(550, text))
    lines = reply.split("\n")
    assert len(lines) > 1
    assert all(len(line) <= 510 for line in lines)
    assert sum(line.count("word") for line in lines) == 400


@pytest.mark.parametrize("message", [42, b"bytes", [b"bytes"], ["text", None]])
def test_a_message_that_is_no_text_raises_at_the_call(smtp_server: MakeServer, message: Any) -> None:
    def decide(session: Session, address: Address, ack: Ack) -> None:
        with pytest.raises(TypeError, match="iterable"):
            ack.accept(250, message)
        ack.accept()

    assert ask_for_recipient(smtp_server(start=False), decide).startswith("250")


def test_an_ack_shows_what_became_of_it(smtp_server: MakeServer) -> None:
    shown: list[str] = []

    def decide(session: Session, address: Address, ack: Ack) -> None:
        shown.append(repr(ack))
        ack.reject(550, "5.1.1 no")
        shown.append(repr(ack))

    ask_for_recipient(smtp_server(start=False), decide)
    assert shown == ["<Ack 'undecided'>", "<Ack '550 5.1.1 no'>"]


def test_the_text_of_an_accepted_message_is_the_354s(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept(354, "go ahead"))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
        peer.expect("250", "250", "354 go ahead")
        peer.line(".")
        peer.expect("250")


def test_a_command_whose_handler_decides_another_ack_again_does_not_pass(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(start=False)
    kept: list[Ack] = []

    @server.on("command")
    def decide(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "NOOP":
            kept[0].accept()  # that of EHLO
        else:
            kept.append(ack)
            ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line("NOOP", "VRFY x")
        peer.expect("451", "252")
    assert "decide raised" in caplog.text


def test_a_raised_reject_that_is_no_reply_any_more_is_a_451_with_its_traceback(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    def decide(session: Session, address: Address, ack: Ack) -> None:
        reject = Reject(550, "5.1.1 unknown")
        reject.code = 250
        raise reject

    assert ask_for_recipient(smtp_server(start=False), decide).startswith("451")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "decide raised a Reject that is no reply" in record.getMessage()
    assert record.exc_info


@pytest.mark.parametrize("code", [400, 499, 500, 599])
def test_every_4xx_and_5xx_refuses_a_message_before_its_body(smtp_server: MakeServer, code: int) -> None:
    server = smtp_server(start=False)
    accepted: list[bool] = []

    @server.on("message")
    def refuse(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.reject(code, "no")
        accepted.append(ack.accepted)

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA", "NOOP")
        peer.expect("250", "250", f"{code} ", "250")
    assert accepted == [False]


def test_a_client_that_goes_while_a_handler_waits_for_it_is_no_fault_of_the_handler(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(start=False)
    reasons = collect_reasons(server)
    server.on("from", lambda session, address, ack: session.challenge("Your name?") and ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("334 Your name")
        peer.half_close()
        peer.expect_end()
    assert reasons == ["closed"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
