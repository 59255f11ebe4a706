"""The Logging middleware's line for each transaction and session, however it ends, and with hostile peers."""

from __future__ import annotations

import gc
import logging
import re
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
from gevent import sleep
from gevent.event import Event
from prometheus_client import CollectorRegistry

from greensmtp import Ack, Address, Command, MessageStream, Reject, Reply, Session
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import Logging, Metrics
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

SOURCE = ("192.0.2.1", 4711)
ALL_EVENTS = ("session", "transaction", "command")


class Log:
    """A server with Logging, and what it has logged."""

    def __init__(self, make: MakeServer, caplog: pytest.LogCaptureFixture, **options: Any) -> None:
        caplog.set_level(logging.INFO)
        stack = options.pop("middleware", [])
        self._caplog = caplog
        self._over = Event()
        self.server = make(start=False, middleware=[Logging(), *stack], **options)
        self.server.on("message", self._take)
        self.server.on("disconnect", lambda session, reason: self._over.set())

    def _take(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.read()

    def dial(self) -> Peer:
        return dial(self.server, source=SOURCE)

    def over(self) -> None:
        """Wait for the end of the session."""
        assert self._over.wait(5)
        sleep(0)

    def records(self, event: str) -> list[dict[str, Any]]:
        return [record.__dict__ for record in self._caplog.records if record.__dict__.get("event") == event]

    def transaction(self) -> dict[str, Any]:
        """Return the only transaction's record."""
        (facts,) = self.records("transaction")
        return facts

    def session(self) -> dict[str, Any]:
        (facts,) = self.records("session")
        return facts

    def lines(self) -> list[str]:
        records = self._caplog.records
        return [record.getMessage() for record in records if record.__dict__.get("event") in ALL_EVENTS]


def fail_with(error: Exception) -> None:
    """A staged change that fails, as the Maildir's does when the disk is full."""
    raise error


@pytest.fixture
def log(smtp_server: MakeServer, caplog: pytest.LogCaptureFixture) -> Callable[..., Log]:
    return lambda **options: Log(smtp_server, caplog, **options)


# How transactions end


def test_an_accepted_message_is_logged_with_its_queue_id(log: Callable[..., Log]) -> None:
    it = log()
    it.server.on("received", lambda session, ack: ack.accept(250, "2.0.0 Ok: queued as 4f2a1.3"))
    with it.dial() as peer:
        peer.hello()
        assert peer.deliver("Hi.\r\n").startswith("250")
        assert peer.deliver("Hi again.\r\n").startswith("250")
    first, second = it.records("transaction")
    assert (first["outcome"], first["queue_id"], first["size"]) == ("accepted", "4f2a1.3", 5)
    assert second["size"] == 11


@pytest.mark.parametrize(("code", "outcome"), [(451, "deferred"), (550, "refused")])
def test_a_message_refused_at_its_end(log: Callable[..., Log], code: int, outcome: str) -> None:
    it = log()
    it.server.on("received", lambda session, ack: ack.reject(code, "not queued as this"))
    with it.dial() as peer:
        peer.hello()
        peer.deliver("Hi.\r\n")
    facts = it.transaction()
    assert (facts["outcome"], facts["reply"], facts["queue_id"]) == (outcome, code, None)
    assert facts["recipients"] == ["recipient@example.com"]


@pytest.mark.parametrize("verb", ["DATA", "BDAT 5"])
def test_a_message_refused_at_its_beginning(log: Callable[..., Log], verb: str) -> None:
    it = log()

    @it.server.on("command")
    def refuse(session: Session, command: Command, ack: Ack) -> None:
        if command.verb in verb:
            ack.reject(554, "5.7.1 no")

    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.send(f"{verb}\r\n" + ("12345" if "5" in verb else ""))
        peer.expect("554")
        peer.line("RSET", "QUIT")
        peer.expect("250", "221")
        peer.expect_end()
    it.over()
    facts = it.transaction()
    assert (facts["outcome"], facts["reply_text"], facts["size"]) == ("refused", "5.7.1 no", 0)


def test_a_second_data_is_logged_again(log: Callable[..., Log]) -> None:
    it = log()
    refusals = [Reject(451, "4.3.0 later")]

    def busy(session: Session, stream: MessageStream, ack: Ack) -> None:
        if refusals:
            raise refusals.pop()
        ack.accept()

    it.server.signals.message.receivers.clear()
    it.server.on("message", busy)
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        peer.expect("451")
        peer.line("DATA")
        peer.expect("354")
        peer.line("Hi.", ".")
        peer.expect("250")
        peer.envelope()
        refusals.append(Reject(451))
        peer.line("DATA")
        peer.expect("451")
        peer.line("DATA")
        peer.expect("354")
    it.over()
    outcomes = [facts["outcome"] for facts in it.records("transaction")]
    assert outcomes == ["deferred", "accepted", "deferred", "lost"]


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_a_refusal_during_the_body_is_logged_once(log: Callable[..., Log], verb: str) -> None:
    def late(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(554, "5.7.1 on second thoughts") if command.verb == verb else reply

    it = log(middleware=[late])
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.send("DATA\r\n" if verb == "DATA" else "BDAT 5 LAST\r\nHi.\r\n")
        if verb == "DATA":
            peer.expect("354")
            peer.line("Hi.", ".")
        peer.expect("554 5.7.1 on second thoughts")
    facts = it.transaction()
    assert (facts["outcome"], facts["reply"], facts["size"]) == ("refused", 554, 5)


def test_a_refused_chunk_is_logged_once(log: Callable[..., Log]) -> None:
    chunks: list[str] = []

    def one_only(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "BDAT":
            chunks.append(command.argument)
            if len(chunks) > 1:
                return Reply(452, "4.3.1 no more")
        return proceed(session, command)

    it = log(middleware=[one_only])
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.send("BDAT 5\r\nHi.\r\nBDAT 5\r\nHi.\r\nRSET\r\n")
        peer.expect("250", "452 4.3.1 no more", "250")
    facts = it.transaction()
    assert (facts["outcome"], facts["reply"], facts["size"]) == ("deferred", 452, 5)


def test_a_refusal_that_ends_nothing_ends_nothing(log: Callable[..., Log]) -> None:
    it = log()

    @it.server.on("command")
    def refuse(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "RSET":
            ack.reject(550)

    with it.dial() as peer:
        peer.expect("220")
        peer.line("MAIL FROM:<jo@example.org>", "EHLO client.example")
        peer.expect("503", "250")
        peer.envelope()
        peer.line("RSET", "MAIL FROM:<jo@example.org>", "EHLO")
        peer.expect("550", "503", "501")
        peer.send("BDAT 5\r\nHi.\r\nDATA\r\nBDAT 0 LAST\r\n")
        peer.expect("250", "503", "250")
    assert it.transaction()["outcome"] == "accepted"


def test_one_that_a_middleware_has_ended(log: Callable[..., Log]) -> None:
    def meddling(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        if command.verb == "NOOP":
            session.reset()
        elif command.verb == "RCPT":
            session.stage(lambda: session.to.extend(session.to))
        return reply

    it = log(middleware=[meddling])
    with it.dial() as peer:
        peer.hello()
        peer.envelope(to="a@example.com")
        peer.line("NOOP")
        peer.expect("250")
        peer.envelope(to="b@example.com")
    it.over()
    first, second = it.records("transaction")
    assert (first["outcome"], first["reason"], first["recipients"]) == ("abandoned", "MAIL", ["a@example.com"] * 2)
    assert (second["outcome"], second["recipients"]) == ("lost", ["b@example.com"] * 2)


@pytest.mark.parametrize("verb", ["RSET", "EHLO again.example", "QUIT"])
@pytest.mark.parametrize("chunk", ["", "BDAT 5\r\nHi.\r\n"])
def test_one_that_is_given_up(log: Callable[..., Log], verb: str, chunk: str) -> None:
    it = log()
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.send(f"{chunk}{verb}\r\n")
        peer.expect(*["250"] * bool(chunk), "2")
    it.over()
    facts = it.transaction()
    assert (facts["outcome"], facts["reply"]) == ("abandoned", None)
    assert facts["reason"] == {"QUIT": "quit"}.get(verb, verb.split(maxsplit=1)[0])
    assert facts["size"] == len(chunk and "Hi.\r\n")
    assert facts["recipients"] == ["recipient@example.com"]
    assert any(" -> abandoned, " in line for line in it.lines())


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "body", "chunk"])
def test_one_that_is_lost(log: Callable[..., Log], stage: str) -> None:
    it = log()
    with it.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<jo@example.org>")
        peer.expect("250")
        if stage != "MAIL":
            peer.line("RCPT TO:<a@example.com>")
            peer.expect("250")
        if stage == "body":
            peer.line("DATA")
            peer.expect("354")
            peer.send("Hi.\r\nand")
            peer.let_it_read()
        elif stage == "chunk":
            peer.send("BDAT 5\r\nHi.\r\n")
            peer.expect("250")
    it.over()
    facts = it.transaction()
    assert (facts["outcome"], facts["reason"], facts["reply"]) == ("lost", "closed", None)
    assert facts["sender"] == "jo@example.org"
    assert facts["recipients"] == ([] if stage == "MAIL" else ["a@example.com"])
    assert (facts["size"] > 0) == (stage in ("body", "chunk"))
    assert it.session()["octets"] == facts["size"]


def test_a_sender_that_is_refused_has_a_line(log: Callable[..., Log]) -> None:
    it = log()
    it.server.on("from", lambda session, address, ack: ack.reject(550, "5.7.1 not you"))
    with it.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<jo@example.org>", "MAIL FROM:jo", "MAIL FROM:<jo@example.org> FOO=1", "RCPT TO:<a@b>")
        peer.expect("550", "501", "555", "503")
    refused, unsupported = it.records("transaction")  # a line that cannot be read is no transaction
    assert (refused["outcome"], refused["sender"], refused["reply"]) == ("refused", "jo@example.org", 550)
    assert unsupported["reply"] == 555


def test_refused_recipients_are_logged_with_the_message(log: Callable[..., Log]) -> None:
    it = log()

    @it.server.on("to")
    def local_only(session: Session, address: Address, ack: Ack) -> None:
        ack.accept() if address.domain == "example.com" else ack.reject(550, "5.7.1 relaying denied")

    with it.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", "RCPT TO:<a@example.net>", "RCPT TO:<a@example.com>", "RSET")
        peer.expect("250", "550", "250", "250")
        peer.line("MAIL FROM:<>", *["RCPT TO:<a@example.net>"] * 2, "DATA", "QUIT")
        peer.expect("250", "550", "550", "503", "221")
        peer.expect_end()
    it.over()
    given_up, nobody = it.records("transaction")
    assert given_up["refused"] == [
        {"recipient": "a@example.net", "reply": 550, "reply_text": "5.7.1 relaying denied"},
    ]
    assert (given_up["outcome"], given_up["sender"], given_up["recipients"]) == ("abandoned", "", ["a@example.com"])
    assert (nobody["outcome"], nobody["reply"], nobody["refused_count"]) == ("refused", 550, 2)
    assert any(" to=<a@example.com> refused=<a@example.net>:550 size=0 " in line for line in it.lines())


def test_lmtp_has_one_line_with_the_reply_for_each_recipient(log: Callable[..., Log]) -> None:
    it = log(lmtp=True)

    @it.server.on("received")
    def deliver(session: Session, ack: Ack, recipient: Address) -> None:
        if recipient.local_part == "full":
            ack.reject(452, "4.2.2 mailbox full; really")
        else:
            ack.accept(250, "2.0.0 Ok: queued as 77")

    with it.dial() as peer:
        peer.hello(verb="LHLO")
        peer.deliver("Hi.\r\n", to=["a@example.com", "full@example.com", "a@example.com"])
        peer.expect("452", "250")
        peer.deliver("Hi.\r\n", to=["full@example.com"])
        peer.line("QUIT")
        peer.rest()
    it.over()
    mixed, full = it.records("transaction")
    assert [each["reply"] for each in mixed["replies"]] == [250, 452, 250]
    assert [each["recipient"] for each in mixed["replies"]] == mixed["recipients"]
    assert (mixed["outcome"], mixed["reply"], mixed["queue_id"]) == ("partial", 452, "77")
    assert (full["outcome"], full["reply"]) == ("deferred", 452)
    assert it.session()["recipient_count"] == 2
    assert (
        "-> <a@example.com> 250 2.0.0 Ok: queued as 77; <full@example.com> 452 4.2.2 mailbox full, really; "
        "<a@example.com> 250 2.0.0 Ok: queued as 77 ("
    ) in it.lines()[0]


def test_a_message_that_fails_when_it_is_stored_is_logged_with_what_the_client_is_told(log: Callable[..., Log]) -> None:
    it = log()

    @it.server.on("received")
    def store(session: Session, ack: Ack) -> None:
        session.stage(fail_with, Reject(452, "4.3.1 disk full"))
        ack.accept()

    with it.dial() as peer:
        peer.hello()
        assert peer.deliver("Hi.\r\n") == "452 4.3.1 disk full"
        facts = it.transaction()
    it.over()
    assert (facts["outcome"], facts["reply"], facts["size"]) == ("deferred", 452, 5)
    assert it.session()["recipient_count"] == 0


@pytest.mark.parametrize(("code", "outcome"), [(250, "accepted"), (550, "refused")])
def test_a_message_whose_handler_resets_the_session(log: Callable[..., Log], code: int, outcome: str) -> None:
    registry = CollectorRegistry()
    it = log(middleware=[Metrics(registry)])

    @it.server.on("received")
    def reset(session: Session, ack: Ack) -> None:
        session.reset()
        ack.accept() if code == 250 else ack.reject(code)

    with it.dial() as peer:
        peer.hello()
        for _ in range(2):
            assert peer.deliver("Hi.\r\n").startswith(str(code))
    assert [facts["outcome"] for facts in it.records("transaction")] == [outcome] * 2
    assert registry.get_sample_value("greensmtp_messages_total", {"outcome": outcome}) == 2


def test_a_logged_and_counted_message_is_freed_without_the_collector(smtp_server: MakeServer) -> None:
    seen = []

    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        seen.append(weakref.ref(stream))
        ack.accept()

    own = Logging("greensmtp.tests.freed")
    own.logger.setLevel(logging.INFO)
    server = smtp_server(start=False, middleware=[own, Metrics(CollectorRegistry())])
    server.on("message", take)
    gc.collect()
    gc.disable()
    try:
        with dial(server) as peer:
            peer.hello()
            peer.deliver("Hi.\r\n")
            peer.deliver("Hi.\r\n")
            assert seen[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("fails", ["a", "b"])
def test_in_lmtp_a_recipient_whose_message_cannot_be_stored_is_logged_so(log: Callable[..., Log], fails: str) -> None:
    it = log(lmtp=True)

    @it.server.on("received")
    def store(session: Session, ack: Ack, recipient: Address) -> None:
        if recipient.local_part == fails:
            session.stage(fail_with, Reject(452, "4.3.1 disk full"))
        ack.accept()

    with it.dial() as peer:
        peer.hello(verb="LHLO")
        told = [peer.deliver("Hi.\r\n", to=["a@example.com", "b@example.com"]), peer.reply()]
    it.over()
    facts = it.transaction()
    assert [str(each["reply"]) for each in facts["replies"]] == [reply[:3] for reply in told]
    assert facts["outcome"] == "partial"
    assert it.session()["recipient_count"] == 1


def test_a_message_that_an_outer_middleware_refuses_is_not_logged_as_accepted(
    smtp_server: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(451) if command.verb == "END-OF-DATA" else reply

    caplog.set_level(logging.INFO)
    server = smtp_server(start=False, middleware=[refuse, Logging()])
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server) as peer:
        peer.hello()
        assert peer.deliver("Hi.\r\n").startswith("451")
        peer.line("QUIT")
        peer.rest()
    sleep(0)
    assert "accepted" not in [record.__dict__.get("outcome") for record in caplog.records]


# Sessions


def test_a_session_line_has_tls_and_identity(log: Callable[..., Log], certificate: Any) -> None:
    class Identity:
        authcid = "jo"
        password = "hunter2"

    def login(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "NOOP":
            session.identity = cast(Any, Identity())
        return proceed(session, command)

    it = log(certfile=certificate.certfile, keyfile=certificate.keyfile, middleware=[login])
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO client.example", "NOOP")
        peer.expect("250", "250")
        peer.deliver("Hi.\r\n")
    it.over()
    given_up, message = it.records("transaction")
    assert (given_up["outcome"], given_up["reason"]) == ("abandoned", "EHLO")
    for facts in (message, it.session()):
        assert facts["tls"].startswith("TLSv1.")
        assert facts["cipher"].startswith(("TLS_", "ECDHE"))
        assert facts["identity"] == "jo"
    assert f" tls={message['tls']}/{message['cipher']} greeting=ehlo:client.example identity=jo " in it.lines()[-1]
    assert "hunter2" not in "".join(it.lines())


def test_implicit_tls_is_logged_without_any_command(log: Callable[..., Log], certificate: Any) -> None:
    it = log(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    with it.dial() as peer:
        peer.start_tls()
        peer.expect("220")
        peer.line("QUIT")
        peer.expect("221")
    it.over()
    assert it.session()["tls"].startswith("TLSv1.")


def test_a_handshake_that_fails_is_a_session_too(log: Callable[..., Log], certificate: Any) -> None:
    it = log(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    with it.dial() as peer:
        peer.send(b"EHLO client.example\r\n")
        peer.rest()
    it.over()
    facts = it.session()
    assert (facts["reason"], facts["tls"]) == ("tls", None)
    assert facts["seconds"] is not None
    assert it.lines()[0].endswith(" ms)")


def test_a_session_refused_before_the_banner_is_logged_with_the_reply(log: Callable[..., Log]) -> None:
    it = log()
    it.server.on("connect", lambda session, ack: ack.reject(554, "5.7.1 not from there"))
    with it.dial() as peer:
        peer.expect("554")
        peer.expect_end()
    it.over()
    assert (it.session()["reason"], it.session()["reply"]) == ("refused", 554)
    assert " -> refused: 554 5.7.1 not from there (" in it.lines()[0]


# Hostile input


def test_an_address_cannot_pass_for_the_fields_behind_it(
    log: Callable[..., Log], caplog: pytest.LogCaptureFixture
) -> None:
    it = log()
    caplog.set_level(logging.DEBUG)
    evil = '"> to=<root@bank.example> size=1 peer=127.0.0.1 -> 250 2.0.0 Ok; <x"@example.org'
    with it.dial() as peer:
        peer.expect("220")
        peer.line("EHLO x=<y>;tls=no->")
        peer.expect("250")
        peer.line(f"MAIL FROM:<{evil}>", f"RCPT TO:<{evil}>", "DATA")
        peer.expect("250", "250", "354")
        peer.line("Hi.", ".", f"NOOP {evil}", "QUIT")
        peer.rest()
    it.over()
    for line in it.lines():
        fields = line.partition(" -> ")[0].split(" ")
        if fields[1] == "message":
            assert re.fullmatch(r"from=<[^<> ;]+> to=<[^<> ;]+>", " ".join(fields[2:4]))
        if fields[1] in ("message", "session"):
            assert [field.partition("=")[0] for field in fields[2:]] == (
                ["from", "to", "size", "peer"]
                if fields[1] == "message"
                else ["peer", "tls", "greeting", "identity", "messages", "recipients", "octets"]
            )
            assert "peer=192.0.2.1" in fields
        elif fields[1] in ("NOOP", "MAIL", "RCPT"):
            assert evil[-20:] in line.partition(" -> ")[0]  # the first arrow is the line's own
    assert it.transaction()["sender"] == evil  # in the facts it is what it is


def test_what_is_not_printable_is_escaped_wherever_it_comes_from(
    log: Callable[..., Log], caplog: pytest.LogCaptureFixture
) -> None:
    def forging(session: Session, command: Command, proceed: Proceed) -> Reply:
        session.identity = cast(Any, "jo\nx message from=<>")
        reply = proceed(session, command)
        return Reply(250, "one\x1b[31m", "two\u2028!") if command.verb == "END-OF-DATA" else reply

    it = log(middleware=[forging])
    caplog.set_level(logging.DEBUG)
    with dial(it.server, source=("fe80::1%\n", 1)) as peer:
        peer.hello()
        peer.deliver("Hi.\r\n", sender="a\u200dz@example.org> SMTPUTF8")
        peer.line("QUIT")
        peer.rest()
    it.over()
    facts = it.transaction()
    assert facts["sender"] == r"a\u200dz@example.org"
    assert facts["identity"] == r"jo\nx message from=<>"
    assert facts["reply_text"] == r"2.0.0 one\x1b[31m | two\u2028!"
    assert facts["peer"] == r"fe80::1%\n"
    assert all(line.isprintable() for line in it.lines())


def test_values_are_bounded(log: Callable[..., Log], caplog: pytest.LogCaptureFixture) -> None:
    def talkative(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(250, *["2.0.0 " + "z" * 400] * 100) if command.verb in ("NOOP", "END-OF-DATA") else reply

    it = log(middleware=[talkative], max_line_length=20_000, max_idle_commands=1000)
    it.server.on("to", lambda session, address, ack: ack.reject() if address.local_part == "x" else ack.accept())
    caplog.set_level(logging.DEBUG)
    with it.dial() as peer:
        peer.hello()
        peer.line("NOOP " + "a" * 15_000, "B" * 15_000, "MAIL FROM:<>", *["RCPT TO:<x@example.com>"] * 18)
        peer.expect("250", "500", "250", *["550"] * 18)
        peer.line(*["RCPT TO:<b@example.com>"] * 500, "DATA", "Hi.", ".")
        peer.expect(*["250"] * 500, "354", "250")
    transaction = it.transaction()
    assert (len(transaction["recipients"]), transaction["recipient_count"]) == (100, 500)
    assert ",...(400 more) " in next(line for line in it.lines() if " message " in line)
    for record in caplog.records:
        assert len(record.getMessage()) < 5_000
        facts = [value for name, value in record.__dict__.items() if name != "message" and isinstance(value, str)]
        assert all(len(value) < 600 for value in facts)


def test_a_long_list_of_refused_recipients_is_cut(log: Callable[..., Log]) -> None:
    it = log(max_errors=1000)
    it.server.on("to", lambda session, address, ack: ack.reject())
    with it.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<>", *["RCPT TO:<x@example.com>"] * 300, "RSET")
        peer.expect("250", *["550"] * 300, "250")
    facts = it.transaction()
    assert (len(facts["refused"]), facts["refused_count"]) == (20, 300)
    assert ",...(280 more) " in it.lines()[0]


def test_passwords_are_hidden_even_if_debug_is_enabled_later(
    log: Callable[..., Log], caplog: pytest.LogCaptureFixture
) -> None:
    it = log()
    with it.dial() as peer:
        peer.hello()
        peer.line("AUTH LOGIN")
        peer.expect("502")
        caplog.set_level(logging.DEBUG)  # in the middle of it
        peer.line("hunter2")
        peer.expect("500")
    assert "hunter2" not in "".join(f"{record.__dict__!r}{record.getMessage()}" for record in caplog.records).lower()


def test_logging_may_be_switched_on_in_the_middle(log: Callable[..., Log], caplog: pytest.LogCaptureFixture) -> None:
    it = log()
    caplog.set_level(logging.WARNING)
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        peer.expect("354")
        caplog.set_level(logging.INFO)
        peer.line("Hi.", ".")
        peer.expect("250")
    it.over()
    assert (it.transaction()["outcome"], it.transaction()["sender"]) == ("accepted", "sender@example.org")
    assert (it.session()["seconds"], it.session()["messages"]) == (None, 1)
