"""``send_many``: the end of a message and the next envelope in one write, the outcomes, and what can go wrong."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterable, Iterator
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest
from gevent import spawn
from gevent.event import AsyncResult

from greensmtp import (
    DataRefused,
    Disconnected,
    ProtocolError,
    RecipientsRefused,
    SenderRefused,
    SMTPClient,
    connect,
)
from greensmtp.client.message import CHUNKING_PAYS
from greensmtp.protocol.send_result import SendResult
from tests.client.conftest import Script as ScriptedSide
from tests.client.counter import Counter
from tests.client.inbox import Inbox, composed
from tests.client.scripts import for_ever, session, take

if TYPE_CHECKING:
    from tests.client.conftest import Converse, Script, Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"
MESSAGE = b"Subject: hi\r\n\r\nho\r\n"


def mails(*texts: str, recipients: Iterable[str] = (TO,)) -> list[tuple[bytes, str, list[str]]]:
    """Return a message with each of these texts."""
    return [(f"{text}\r\n".encode(), FROM, list(recipients)) for text in texts]


def envelope(script: Script, *recipients: str) -> None:
    """Expect an envelope, and accept it."""
    recipients = recipients or (TO,)
    script.expect(f"MAIL FROM:<{FROM}>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA")
    script.say("250 Ok", *("250 Ok" for _ in recipients), "354 go")


# What is on the wire


def test_the_next_envelope_is_sent_with_the_end_of_a_message(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        envelope(script)
        for _ in range(2):
            script.body()
            # It is here before the message is answered.
            script.expect("MAIL", "RCPT", "DATA")
            script.say("250 Ok", "250 Ok", "250 Ok", "354 go")
        assert script.body() == b"three\r\n"
        script.say("250 Ok")
        script.expect("QUIT")
        script.say("221 bye")

    with scripted(script).connect() as mail:
        outcomes = list(mail.send_many(mails("one", "two", "three")))
    assert all(isinstance(outcome, SendResult) for outcome in outcomes)
    assert len(outcomes) == 3


def test_replies_at_every_cut(converse: Converse) -> None:
    bodies: list[bytes] = []

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        envelope(script)
        bodies.append(script.body())
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250-2.0.0 Ok", "250 2.0.0 queued", "250 Ok", "250 Ok", "354 go")
        bodies.append(script.body())
        script.say("250 Ok")
        script.rest()
        script.say("221 bye")

    def client(mail: SMTPClient) -> None:
        bodies.clear()
        first, second = mail.send_many(mails("one", "two"))
        assert isinstance(first, SendResult)
        assert first.reply.lines == ("Ok", "queued")
        assert isinstance(second, SendResult)
        assert bodies == [b"one\r\n", b"two\r\n"]

    converse.at_every_cut(script, client)


def test_an_envelope_that_the_server_discards_is_sent_again(scripted: Start) -> None:
    """As Haraka does, which replies 503 to each command that came before the reply to the message."""

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        envelope(script)
        script.body()
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 Ok", "503 pipelined", "503 pipelined", "503 pipelined")
        for _ in range(2):
            envelope(script)
            script.body()
            assert script._buffer == b""
            script.say("250 Ok")
        script.rest()
        script.say("221 bye")

    with scripted(script).connect() as mail:
        outcomes = list(mail.send_many(mails("one", "two", "three")))
    assert [type(outcome) for outcome in outcomes] == [SendResult] * 3


@pytest.mark.parametrize("offers", [(), ("8BITMIME",)])
def test_without_pipelining_every_command_waits(scripted: Start, offers: tuple[str, ...]) -> None:
    def script(script: Script) -> None:
        script.greet(*offers)
        for _ in range(2):
            for verb, reply in (("MAIL", "250 Ok"), ("RCPT", "250 Ok"), ("DATA", "354 go")):
                script.expect(verb)
                assert script._buffer == b""
                script.say(reply)
            script.body()
            assert script._buffer == b""
            script.say("250 Ok")
        script.rest()
        script.say("221 bye")

    with scripted(script).connect() as mail:
        assert len(list(mail.send_many(mails("one", "two")))) == 2


@pytest.mark.parametrize("offers", [("PIPELINING",), ()])
def test_a_message_may_be_changed_for_the_next_recipient(scripted: Start, offers: tuple[str, ...]) -> None:
    """It is encoded before: without 8BITMIME, that is done for each server."""
    bodies: list[bytes] = []

    def script(script: Script) -> None:
        script.greet(*offers)
        for _ in range(3):
            for verb, reply in (("MAIL", "250 Ok"), ("RCPT", "250 Ok"), ("DATA", "354 go")):
                script.expect(verb)
                script.say(reply)
            bodies.append(script.body())
            script.say("250 Ok")
        script.rest()
        script.say("221 bye")

    def letters() -> Iterator[tuple[EmailMessage, str, str]]:
        letter = EmailMessage()
        for name in ("one", "two", "three"):
            letter.set_content(f"F\u00fcr {name}\n", cte="8bit")
            yield letter, FROM, f"{name}@example.com"

    with scripted(script).connect() as mail:
        assert [type(each) for each in mail.send_many(letters())] == [SendResult] * 3
    assert [name in body for name, body in zip((b"one", b"two", b"three"), bodies, strict=True)] == [True] * 3
    assert [b"two" in body for body in bodies] == [False, True, False]


def test_a_large_file_may_be_closed_when_the_next_message_is_taken(inbox: Inbox) -> None:
    def files() -> Iterator[tuple[io.BytesIO, str, str]]:
        for name in (b"one", b"two"):
            with io.BytesIO(b"Subject: x\r\n\r\n" + (name * 20 + b"\r\n") * 90_000) as file:
                yield file, FROM, TO

    with connect(*inbox.server.address, timeout=10) as mail:
        assert [type(each) for each in mail.send_many(files())] == [SendResult] * 2


def test_a_signer_that_fails_does_so_in_its_turn(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        envelope(script)
        script.body()
        script.say("250 Ok")
        script.rest()
        script.say("221 bye")

    def sign(content: bytes) -> bytes:
        if b"two" in content:
            raise LookupError("no key")
        return b"X-Signed: yes\r\n"

    with scripted(script).connect() as mail:
        outcomes = mail.send_many(mails("one", "two"), sign=sign)
        assert isinstance(next(outcomes), SendResult)
        with pytest.raises(LookupError):
            next(outcomes)


def test_messages_of_all_kinds(inbox: Inbox) -> None:
    large = b"Subject: x\r\n\r\n" + b"y" * CHUNKING_PAYS + b"\r\n"
    messages: list[Any] = [
        composed(From=FROM, To=TO),
        (MESSAGE, FROM, TO),
        (io.BytesIO(b".one\n.two\n"), "", [TO, "c@example.com"]),
        (large, FROM, TO),  # by BDAT
        ("Subject: gr\u00fc\u00dfe\n\n\u00fc\n".encode(), "j\u00f6@example.com", TO),
        (MESSAGE, FROM, TO),
    ]
    with connect(*inbox.server.address, timeout=10) as mail:
        outcomes = list(mail.send_many(iter(messages)))
        assert mail.send(MESSAGE, FROM, TO).reply.code == 250  # nothing is left over
    assert all(isinstance(outcome, SendResult) for outcome in outcomes)
    assert inbox.senders == [FROM, FROM, "", FROM, "j\u00f6@example.com", FROM, FROM]
    assert inbox.bodies[1:4] == [MESSAGE, b".one\r\n.two\r\n", large]
    assert b"\r\nDate: " in b"\r\n" + inbox.bodies[0]


def test_options_are_for_all_messages(scripted: Start) -> None:
    script, bodies, lines = take("PIPELINING", "DSN")
    signed: list[bytes] = []

    def sign(content: bytes) -> bytes:
        signed.append(content)
        return b"X-Signature: 1\r\n"

    with scripted(script).connect() as mail:
        list(mail.send_many(mails("A: 1\r\n", "B: 2\r\n"), ret="HDRS", sign=sign))
    assert [line.split(">")[1] for line in lines] == [" RET=HDRS"] * 2
    assert bodies == [b"X-Signature: 1\r\nA: 1\r\n\r\n", b"X-Signature: 1\r\nB: 2\r\n\r\n"]
    assert len(signed) == 2


def test_no_message_sends_nothing(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.say("220 hello")
        script.expect("QUIT")
        script.say("221 bye")

    with scripted(script).connect() as mail:
        assert list(mail.send_many([])) == []


def test_a_trace_shows_the_commands_when_they_are_sent(scripted: Start) -> None:
    script, _, _ = take("PIPELINING")
    with scripted(script).connect() as mail:
        mail.begin()
        shown: list[str] = []
        mail.trace(shown.append)
        list(mail.send_many(mails("one", "two")))
    assert shown[6:10] == [
        "> (8 bytes of the message, and its end)",
        f"> MAIL FROM:<{FROM}>",
        f"> RCPT TO:<{TO}>",
        "> DATA",
    ]
    assert shown[10:15] == ["< 250 Ok", "< 250 Ok", "< 250 Ok", "< 354 go", "> (8 bytes of the message, and its end)"]


# Refusals


def test_a_refusal_is_an_outcome_and_the_others_are_sent(inbox: Inbox) -> None:
    messages = [
        (MESSAGE, FROM, TO),
        (MESSAGE, FROM, "no@example.com"),
        (MESSAGE, FROM, TO),
        (MESSAGE, "refuse@example.com", TO),
        (MESSAGE, FROM, [TO, "no@example.com"]),
        (MESSAGE, FROM, TO),
    ]
    with connect(*inbox.server.address, timeout=10) as mail:
        outcomes = list(mail.send_many(messages))
    kinds = [SendResult, RecipientsRefused, SendResult, DataRefused, SendResult, SendResult]
    assert [type(outcome) for outcome in outcomes] == kinds
    partial = outcomes[4]
    assert isinstance(partial, SendResult)
    assert list(partial.refused) == ["no@example.com"]
    assert len(inbox.bodies) == 4


def test_a_refused_message_does_not_change_the_next(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        envelope(script)
        script.body()
        script.expect("MAIL", "RCPT", "DATA")
        script.say("554 spam", "550 no", "503 no", "503 no")
        script.expect("RSET", "MAIL", "RCPT", "DATA")
        script.say("250 Ok", "250 Ok", "250 Ok", "354 go")
        script.body()
        script.say("250 Ok")
        script.rest()

    with scripted(script).connect() as mail:
        outcomes = list(mail.send_many(mails("one", "two", "three")))
    assert [type(outcome) for outcome in outcomes] == [DataRefused, SenderRefused, SendResult]


def test_recipients_that_must_be_sent_again_come_before_the_next_message(scripted: Start) -> None:
    heard: list[str] = []

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        room = 1
        while line := script.hear():
            heard.append(line[:4])
            if line.startswith("MAIL"):
                room = 1
            if line.startswith("RCPT") and not room:
                script.say("452 4.5.3 too many")
                continue
            room -= line.startswith("RCPT")
            if line == "DATA":
                script.say("354 go")
                script.body()
            script.say("250 Ok")

    two = mails("one", recipients=[TO, "c@example.com"])
    with scripted(script).connect() as mail:
        first, second = mail.send_many([*two, *mails("two")])
    assert isinstance(first, SendResult)
    assert first.accepted == (TO, "c@example.com")
    assert isinstance(second, SendResult)
    assert heard == ["MAIL", "RCPT", "RCPT", "DATA", "MAIL", "RCPT", "DATA", "MAIL", "RCPT", "DATA", "QUIT"]


# Limits and LMTP


@pytest.mark.parametrize("limit", ["RCPTMAX=1", "RCPTDOMAINMAX=1", "MAILMAX=1"])
def test_limits_hold(scripted: Start, limit: str) -> None:
    script, bodies, lines = take("PIPELINING", f"LIMITS {limit}")
    messages = [*mails("one"), *mails("two", recipients=[TO, "c@example.org"]), *mails("three")]
    server = scripted(script)
    with server.connect() as mail:
        outcomes = list(mail.send_many(messages))
    assert [len(outcome.accepted) for outcome in outcomes if isinstance(outcome, SendResult)] == [1, 2, 1]
    assert set(bodies) == {b"one\r\n", b"two\r\n", b"three\r\n"}
    assert server.connections == {"RCPTMAX=1": 1, "RCPTDOMAINMAX=1": 3, "MAILMAX=1": 3}[limit]
    assert len(lines) >= 3


def test_lmtp_has_replies_for_each_recipient(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.say("220 hello")
        script.expect("LHLO")
        script.say("250-mx", "250 PIPELINING")
        envelope(script)
        script.body()
        script.expect("MAIL", "RCPT", "RCPT", "DATA")
        script.say("250 one", "250 Ok", "250 Ok", "250 Ok", "354 go")
        script.body()
        assert script._buffer == b""  # one of the recipients might have to be sent again
        script.say("250 b", "550 c")
        envelope(script)
        script.body()
        script.say("250 three")
        script.rest()

    messages = [*mails("one"), *mails("two", recipients=[TO, "c@example.com"]), *mails("three")]
    with scripted(script).connect(lmtp=True) as mail:
        outcomes = [outcome for outcome in mail.send_many(messages) if isinstance(outcome, SendResult)]
    assert [{to: str(reply) for to, reply in outcome.recipients.items()} for outcome in outcomes] == [
        {TO: "250 one"},
        {TO: "250 b", "c@example.com": "550 c"},
        {TO: "250 three"},
    ]


# The caller


def test_a_loop_that_is_left_early_closes_the_connection(scripted: Start) -> None:
    mail = scripted(for_ever).connect()
    for _ in mail.send_many(mails("one", "two", "three")):
        break
    assert mail.closed


def test_a_loop_that_is_left_at_its_end_keeps_the_connection(counter: Counter, server: Any) -> None:
    with connect(*server.address, timeout=10) as mail:
        for number, _ in enumerate(mail.send_many(mails("one", "two"))):
            if number == 1:
                break
        assert mail.send(MESSAGE, FROM, TO).reply.code == 250
    assert len(counter.bodies) == 3


def test_nothing_else_can_be_sent_in_the_loop(counter: Counter, server: Any) -> None:
    calls: list[Callable[[SMTPClient], Any]] = [
        lambda mail: mail.noop(),
        lambda mail: mail.reset(),
        lambda mail: mail.send(b"x\r\n", FROM, "other@example.com"),
        lambda mail: mail.bdat(b"x"),
        lambda mail: mail.login("jo", "secret", allow_plaintext=True),
    ]
    with connect(*server.address, timeout=10) as mail:
        for number, outcome in enumerate(mail.send_many(mails("one", "two", "three"))):
            assert isinstance(outcome, SendResult)
            if number < 2:
                assert mail.expects_message
                for call in calls:
                    with pytest.raises(ProtocolError, match=r"send_many\(\) has begun the next message"):
                        call(mail)
        assert not mail.expects_message
        assert mail.noop().code == 250
    assert counter.bodies == [b"one\r\n", b"two\r\n", b"three\r\n"]


def test_a_with_block_that_ends_in_the_loop_sends_no_quit(scripted: Start) -> None:
    left: Any = AsyncResult()

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        envelope(script)
        script.body()
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 Ok", "250 Ok", "250 Ok", "354 go")
        left.set(script.rest())

    with scripted(script).connect() as mail:
        next(outcomes := mail.send_many(mails("one", "two")))
    assert mail.closed
    assert left.get(timeout=10) == b""
    outcomes.close()


@pytest.mark.parametrize("bad", [(MESSAGE, FROM, "no mailbox"), (MESSAGE, FROM, []), ("text", FROM, TO)])
def test_a_bad_argument_is_raised_in_its_turn(counter: Counter, server: Any, bad: Any) -> None:
    outcomes: list[Any] = []
    with connect(*server.address, timeout=10) as mail:
        with pytest.raises((ProtocolError, ValueError, TypeError)):
            outcomes += iter_into(outcomes, mail.send_many([*mails("one"), bad, *mails("three")]))
        assert [type(outcome) for outcome in outcomes] == [SendResult]
        assert mail.noop().code == 250
    assert counter.bodies == [b"one\r\n"]


def iter_into(found: list[Any], outcomes: Iterator[Any]) -> list[Any]:
    for outcome in outcomes:
        found.append(outcome)  # noqa: PERF402 - what has come before an error counts
    return []


def test_what_the_iterable_raises_is_raised_in_its_turn(counter: Counter, server: Any) -> None:
    def messages() -> Iterator[Any]:
        yield from mails("one")
        raise KeyError("gone")

    outcomes: list[Any] = []
    with connect(*server.address, timeout=10) as mail, pytest.raises(KeyError, match="gone"):
        iter_into(outcomes, mail.send_many(messages()))
    assert [type(outcome) for outcome in outcomes] == [SendResult]
    assert counter.bodies == [b"one\r\n"]


# Lost connections


def test_a_connection_that_is_lost_after_a_reply_leaves_the_next_message_safe(scripted: Start) -> None:
    mail = scripted(session(after=1)).connect()
    outcomes = mail.send_many(mails("one", "two"))
    assert isinstance(next(outcomes), SendResult)
    with pytest.raises(Disconnected) as caught:
        next(outcomes)
    assert caught.value.safe_to_retry
    assert not caught.value.after_content


def test_a_connection_that_is_lost_before_the_reply_leaves_the_message_unknown(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        envelope(script)
        script.body()

    mail = scripted(script).connect()
    with pytest.raises(Disconnected) as caught:
        next(mail.send_many(mails("one", "two")))
    assert caught.value.after_content
    assert not caught.value.safe_to_retry
    assert mail.closed


def test_421_to_a_message_ends_the_loop(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        envelope(script)
        script.body()
        script.say("421 going down")

    mail = scripted(script).connect()
    with pytest.raises(DataRefused) as caught:
        next(mail.send_many(mails("one", "two")))
    assert caught.value.safe_to_retry
    assert mail.closed


def test_421_instead_of_the_body_of_the_next_message_is_safe(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        envelope(script)
        script.body()
        script.say("250 Ok", "250 Ok", "250 Ok", "354 go", "421 too slow")

    mail = scripted(script).connect()
    outcomes = mail.send_many(mails("one", "two"))
    assert isinstance(next(outcomes), SendResult)
    with pytest.raises((Disconnected, DataRefused)) as caught:
        next(outcomes)
    assert caught.value.safe_to_retry
    assert caught.value.reply is not None
    assert caught.value.reply.code == 421


def test_a_message_that_has_gone_out_is_unknown_even_if_the_next_envelope_has_not(pair: tuple[Any, Any]) -> None:
    """The kernel takes the end of the message, and a part of the envelope behind it; then the server is gone."""
    ours, theirs = pair
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel's least

    def serve() -> None:
        script = ScriptedSide(theirs)
        script.greet("PIPELINING")
        envelope(script)
        script.body()
        theirs.close()

    serving = spawn(serve)
    many = [f"{'x' * 60}{number}@{'y' * 60}.{'z' * 60}.example" for number in range(98)]
    with connect(stream=ours, timeout=10, local_hostname="x.example") as mail:
        with pytest.raises(Disconnected) as caught:
            next(mail.send_many([*mails("one"), *mails("two", recipients=many)]))
        serving.get()
    assert caught.value.after_content
    assert not caught.value.safe_to_retry


def test_an_unsolicited_reply_ends_the_connection(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        envelope(script)
        script.body()
        script.say("250 Ok", "250 Ok", "250 Ok", "354 go", "250 and more")

    mail = scripted(script).connect()
    outcomes = mail.send_many(mails("one", "two"))
    assert isinstance(next(outcomes), SendResult)
    with pytest.raises(ProtocolError, match="unsolicited"):
        next(outcomes)
    assert mail.closed
