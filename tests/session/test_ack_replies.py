"""Replies as decisions: passed to an ack, returned by a handler, raised in a Reject."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from gevent import spawn
from gevent.monkey import get_original

from greensmtp import Ack, Address, Command, MessageStream, Reject, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer

Decide = Callable[[Ack, Reply], Any]


def by_ack(ack: Ack, reply: Reply) -> None:
    (ack.reject if reply.code >= 400 else ack.accept)(reply)


def by_return(ack: Ack, reply: Reply) -> Reply:
    return reply


def by_reject(ack: Ack, reply: Reply) -> None:
    raise Reject(reply)


def later(ack: Ack, reply: Reply) -> None:
    spawn(by_ack, ack, reply)


def from_a_thread(ack: Ack, reply: Reply) -> None:
    get_original("_thread", "start_new_thread")(by_ack, (ack, reply))


def reply_to_rcpt(server: SMTPServer, decide: Callable[[Ack], Any]) -> str:
    """Return the reply to RCPT; assert that the connection is usable afterwards."""
    server.on("to", lambda session, address, ack: decide(ack))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "NOOP")
        peer.expect("250")
        reply = peer.reply()
        peer.expect("250 2.0.0 Ok")
        return reply


REFUSALS = {
    "an enhanced code": (Reply(550, "5.1.1 no such user"), "550 5.1.1 no such user"),
    "several lines": (Reply(450, "4.2.0 not", "now"), "450-4.2.0 not\n450 4.2.0 now"),
    "421": (Reply(421, "4.3.2 shutting down"), "451 4.3.2 shutting down"),
    "421 without a code": (Reply(421, "bye", enhanced=None), "451 4.3.0 bye"),
    "no enhanced code": (Reply(554, "no", enhanced=None), "554 5.0.0 no"),
    "what only looks like one": (Reply(554, "4.7.1 no", enhanced=None), "554 5.0.0 4.7.1 no"),
}


@pytest.mark.parametrize("decide", [by_ack, by_return, by_reject, later, from_a_thread])
@pytest.mark.parametrize("what", REFUSALS)
def test_a_next_hops_refusal_is_handed_on(smtp_server: MakeServer, decide: Decide, what: str) -> None:
    reply, expected = REFUSALS[what]
    assert reply_to_rcpt(smtp_server(start=False), lambda ack: decide(ack, reply)) == expected


@pytest.mark.parametrize("decide", [by_ack, by_return, later, from_a_thread])
def test_a_next_hops_agreement_is_handed_on(smtp_server: MakeServer, decide: Decide) -> None:
    server = smtp_server(start=False)
    assert reply_to_rcpt(server, lambda ack: decide(ack, Reply(251, "2.1.5 will forward"))) == "251 2.1.5 will forward"


@pytest.mark.parametrize("raises", [True, False])
def test_a_middlewares_reject_of_a_reply_is_handed_on(smtp_server: MakeServer, raises: bool) -> None:
    def refuse(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "RCPT":
            raise Reject(Reply(421, "4.3.2 shutting down"))
        return proceed(session, command)

    server = smtp_server(start=False, middleware=[refuse])
    assert reply_to_rcpt(server, lambda ack: ack.accept()) == "451 4.3.2 shutting down"


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("connect", Reply(220, "hello"), "220"),
        ("connect", Reply(550, "5.7.1 no"), "554"),
        ("connect", Reply(250, "hello"), "421"),
        ("greeting", Reply(250, "pleased"), "250 mx.example.com pleased"),
        ("greeting", Reply(550, "5.7.1 no"), "550 5.7.1 no"),
        ("greeting", Reply(251, "pleased"), "451"),
        ("from", Reply(250, "2.1.0 fine"), "250 2.1.0 fine"),
        ("from", Reply(354, "fine"), "451"),
        ("message", Reply(354, "go on"), "354 go on"),
        ("message", Reply(250, "fine"), "451"),
        ("message", Reply(450, "4.3.0 no"), "450 4.3.0 no"),
        ("received", Reply(250, "2.0.0 queued"), "250 2.0.0 queued"),
        ("received", Reply(421, "4.3.2 no"), "451 4.3.2 no"),
        ("received", Reply(354, "more"), "451"),
    ],
)
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
def test_what_a_handler_returns_decides(
    smtp_server: MakeServer, name: Any, given: Reply, expected: str, lmtp: bool
) -> None:
    server = smtp_server(start=False, lmtp=lmtp)
    if name == "received" and lmtp:
        server.on(name, lambda session, recipient, ack: given)
    else:
        server.on(name, lambda session, **fields: given)
    if name != "message":
        server.on("message", lambda session, stream, ack: ack.accept())
    script = {
        "connect": "",
        "greeting": "LHLO x" if lmtp else "HELO x",
        "from": "MAIL FROM:<a@example.org>",
        "to": "RCPT TO:<b@example.com>",
        "message": "DATA",
        "received": "text\r\n.",
    }
    with dial(server) as peer:
        for step, line in script.items():
            if line:
                peer.line(line)
            reply = peer.reply()
            if step == name:
                first = reply.partition("\n")[0].replace("250-", "250 ")
                assert first.startswith(expected)
                return
            assert reply[0] in "23"


WRONG = [True, False, 250, "250", b"", (), object, Reply, spawn]


@pytest.mark.parametrize("given", WRONG, ids=repr)
@pytest.mark.parametrize("decides", [True, False])
def test_anything_else_returned_is_a_451_that_names_the_handler(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, given: Any, decides: bool
) -> None:
    server = smtp_server(start=False)

    def clumsy(session: Session, address: Address, ack: Ack) -> Any:
        if decides:
            ack.accept()
        return given

    server.on("to", clumsy)
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA")
        peer.expect("250", "451 4.3.0", "503")
    (record,) = caplog.records
    assert "clumsy returned" in record.getMessage()


@pytest.mark.parametrize("name", ["reset", "quit", "disconnect"])
@pytest.mark.parametrize("given", [1, Reply(250)])
def test_a_handler_without_an_ack_returns_nothing(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture, name: Any, given: Any
) -> None:
    server = smtp_server(start=False)

    def clumsy(session: Session, **fields: Any) -> Any:
        return given

    server.on(name, clumsy)
    with dial(server) as peer:
        peer.hello()
        peer.line("RSET", "QUIT")
        peer.expect("250", "221")
        peer.expect_end()
    server.stop()
    (record,) = caplog.records
    assert f"clumsy for signal {name!r} returned" in record.getMessage()


def test_a_reply_returned_after_a_decision_is_a_second_decision(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def twice(session: Session, stream: MessageStream, ack: Ack) -> Reply:
        ack.accept()
        stream.read()
        return Reply(354)

    with dial(server) as peer:
        peer.hello()
        assert peer.deliver().startswith("451")
    assert "twice called accept() or reject() on an ack that was already decided" in caplog.text


def raised(call: Callable[[], Any]) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


#: For what a type checker would not let pass.
reject: Any = Reject


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda ack: ack.accept(Reply(550)), "ValueError: accept takes a code from 200 to 299 here, not 550"),
        (lambda ack: ack.accept(Reply(354)), "ValueError: accept takes"),
        (lambda ack: ack.reject(Reply(250)), "ValueError: reject takes a 4xx or 5xx"),
        (lambda ack: ack.reject(Reply(354)), "ValueError: reject takes a 4xx or 5xx"),
        (lambda ack: ack.reject(Reply(550), "text"), "TypeError: give a Reply or a message, not both"),
        (lambda ack: ack.accept(Reply(250), "text"), "TypeError: give a Reply or a message, not both"),
        (lambda ack: ack.reject(550, "4.7.1 x"), "ValueError: enhanced status code 4.7.1 does not go with"),
        (lambda ack: ack.accept(250, "5.7.1 x"), "ValueError: enhanced status code 5.7.1 does not go with"),
        (lambda ack: ack.reject("5.7.1 no"), "ValueError: reject takes a reply code first"),
        (lambda ack: ack.reject(550.5), "ValueError: reject takes a reply code first"),
        (lambda ack: ack.replace(250), "TypeError: replace() takes the place of a default action"),
        (lambda ack: Reject(250), "ValueError: Reject: expected a 4xx or 5xx reply code; got 250"),
        (lambda ack: Reject(Reply(250)), "ValueError: Reject: expected a 4xx or 5xx reply; got 250"),
        (lambda ack: Reject(Reply(354)), "ValueError: Reject: expected a 4xx or 5xx reply"),
        (lambda ack: Reject(Reply(550), "x"), "TypeError: Reject: expected a Reply or a message; got both"),
        (lambda ack: Reject(550, "4.7.1 x"), "ValueError: enhanced status code 4.7.1 does not go with"),
        (lambda ack: Reject("4.7.1 x"), "ValueError: enhanced status code 4.7.1 does not go with"),
        (lambda ack: Reject("550 5.7.1 no"), "ValueError: Reject: expected code and text apart"),
        (lambda ack: reject(None), "ValueError: Reject: expected a reply code like 550, a text or a Reply"),
        (lambda ack: reject(550.5), "ValueError: Reject: expected a reply code like 550, a text or a Reply"),
        (lambda ack: Reject("no", "no"), "ValueError: Reject: expected a 4xx or 5xx reply code; got 'no'"),
        (lambda ack: reject(550, 5), "TypeError: message: expected a str"),
        (lambda ack: reject(550, b"x"), "TypeError: message: expected a str"),
    ],
)
def test_what_is_no_decision_raises_at_the_call(smtp_server: MakeServer, call: Any, expected: str) -> None:
    errors: list[str] = []

    def decide(ack: Ack) -> None:
        errors.append(raised(lambda: call(ack)))
        ack.accept()  # a mistake that was caught does no harm

    assert reply_to_rcpt(smtp_server(start=False), decide).startswith("250")
    assert errors[0].startswith(expected)


@pytest.mark.parametrize(
    ("reject", "expected"),
    [
        (Reject("5.7.1 no"), "550 5.7.1 no"),
        (Reject("no"), "550 5.0.0 no"),
        (Reject("450", "later"), "450 4.2.0 later"),
        (Reject("450"), "450 4.1.1 "),
        (Reject(550, ["5.7.1 one", "two"]), "550-5.7.1 one\n550 5.7.1 two"),
        (Reject(), "550 5.7.1 Recipient refused"),
    ],
    ids=str,
)
def test_what_reject_takes(smtp_server: MakeServer, reject: Reject, expected: str) -> None:
    def decide(ack: Ack) -> None:
        raise reject

    reply = reply_to_rcpt(smtp_server(start=False), decide)
    assert reply.startswith(expected[:4]) if expected.startswith("450 4.1.1") else reply == expected
    again = pickle.loads(pickle.dumps(reject))
    assert (again.code, again.message, again.reply) == (reject.code, reject.message, reject.reply)


# The signal `command`


def test_command_may_be_accepted_replaced_or_refused(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    @server.on("command")
    def decide(session: Session, command: Command, ack: Ack) -> Any:
        match command.verb:
            case "VRFY":
                ack.replace(252, "2.1.5 perhaps")
            case "EXPN":
                ack.replace("550", ["5.7.1 no", "lists"])
            case "HELP":
                ack.replace(Reply(421, "4.3.2 bye"))
            case "NOOP":
                return Reply(250, "2.0.0 nothing done")
            case "XYZZY":
                ack.reject(500, "5.5.1 what?")
            case "RSET":
                raise Reject("5.7.1 never")
            case "ETRN":
                ack.replace()
            case _:
                ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.line("VRFY x", "EXPN x", "HELP", "NOOP", "XYZZY", "RSET", "ETRN x", "MAIL FROM:<a@example.org>", "PLUGH")
        peer.expect("252 2.1.5 perhaps", "550-5.7.1 no", "451 4.3.2 bye", "250 2.0.0 nothing done", "500 5.5.1 what?")
        peer.expect("550 5.7.1 never", "250 2.0.0 Ok", "250 2.1.0 Ok", "500")


@pytest.mark.parametrize(
    "call",
    [
        lambda ack: ack.accept(250),
        lambda ack: ack.accept(message="hi"),
        lambda ack: ack.accept(Reply(250)),
        lambda ack: ack.replace(354),
        lambda ack: ack.replace(Reply(354)),
        lambda ack: ack.replace(250, "5.0.0 hi"),
        lambda ack: ack.replace("hello"),
    ],
)
def test_what_command_cannot_say_raises_at_the_call(smtp_server: MakeServer, call: Any) -> None:
    server = smtp_server(start=False)
    errors: list[str] = []

    @server.on("command")
    def decide(session: Session, command: Command, ack: Ack) -> None:
        errors.append(raised(lambda: call(ack)))

    with dial(server) as peer:
        peer.hello()
        peer.line("NOOP")
        peer.expect("250 2.0.0 Ok")
    assert all(error.startswith("ValueError") for error in errors)
    assert len(errors) == 2


def test_commands_ack_is_decided_once(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = smtp_server(start=False)
    server.on("command", lambda session, command, ack: ack.accept())
    server.on("command", lambda session, command, ack: ack.replace(250))
    with dial(server) as peer:
        peer.expect("220")
        peer.line("NOOP")
        peer.expect("451")
    assert "called accept() or reject() on an ack that was already decided" in caplog.text


@pytest.mark.parametrize(
    ("line", "replaced", "expected"),
    [
        ("DATA", (250, "2.0.0 fine"), "250"),
        ("STARTTLS", (220, "2.0.0 come on"), "454"),
        ("STARTTLS", (250, "2.0.0 fine"), "250"),
        ("BDAT 6\r\nRSET\r\n", (250, "2.0.0 fine"), "451"),
        ("BDAT 6 LAST\r\nRSET\r\n", (250, "2.0.0 fine"), "451"),
        ("QUIT", (250, "2.0.0 stay"), "250"),
        ("RCPT TO:<c@example.com>", (250, "2.1.5 fine"), "250"),
    ],
)
def test_the_framework_stays_in_step_whatever_replaces_a_command(
    smtp_server: MakeServer, certificate: Any, line: str, replaced: tuple[int, str], expected: str
) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)
    heard: list[str] = []

    @server.on("command")
    def replace(session: Session, command: Command, ack: Ack) -> None:
        heard.append(command.verb)
        first = command.argument == "TO:<recipient@example.com>"
        if line.startswith(command.verb) and not first and "NOOP" not in heard:
            ack.replace(*replaced)

    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.send(line if line.startswith("BDAT") else f"{line}\r\n")
        peer.expect(expected)
        peer.line("NOOP", "EHLO again")
        peer.expect("250 2.0.0 Ok", "250")
        assert peer.deliver().startswith("250")
    assert "RSET" not in heard


def test_auth_heeds_the_signal_command_too(smtp_server: MakeServer) -> None:
    from greensmtp.middleware import Auth

    server = smtp_server(start=False, middleware=[Auth({"beep": "boop"}, allow_plaintext=True)])
    server.on("command", lambda session, command, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        peer.line("AUTH PLAIN AGJlZXAAYm9vcA==")
        peer.expect("235")


@pytest.mark.parametrize("code", [400, 499, 500, 599])
@pytest.mark.parametrize(
    ("signal", "lines"),
    [
        ("greeting", ["EHLO x", "MAIL FROM:<a@example.org>"]),
        ("from", ["EHLO x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>"]),
        ("to", ["EHLO x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA"]),
    ],
)
def test_every_4xx_and_5xx_refuses_what_a_signal_asks(
    smtp_server: MakeServer, signal: Any, lines: list[str], code: int
) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on(signal, lambda session, ack, **fields: ack.reject(code, "no"))
    with dial(server) as peer:
        peer.expect("220")
        for number, line in enumerate(lines):
            peer.line(line)
            peer.expect("250" if number < len(lines) - 2 else f"{code} " if number == len(lines) - 2 else "503")


@pytest.mark.parametrize("code", [400, 499, 500, 599])
def test_a_refusal_without_a_text_that_replaces_a_command_has_that_of_a_refusal(
    smtp_server: MakeServer, code: int
) -> None:
    server = smtp_server(start=False)
    server.on("command", lambda session, command, ack: ack.replace(code) if command.verb == "NOOP" else None)
    with dial(server) as peer:
        peer.hello()
        peer.line("NOOP", "NOOP")
        peer.expect(f"{code} {code // 100}.*Refused")
