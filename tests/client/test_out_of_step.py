"""Replies that cannot answer the command: an error and a closed connection, never a wrong result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from gevent import spawn

from greensmtp import (
    DataRefused,
    Disconnected,
    HelloRefused,
    NotOffered,
    PeerProtocolError,
    ProtocolError,
    SMTPClient,
    connect,
)
from greensmtp.client.message import CHUNKING_PAYS

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"


def answering(*replies: str) -> Callable[[Script], Any]:
    """Send the banner, and answer each line with the next reply; nothing may follow the last one."""

    def script(script: Script) -> None:
        script.greet("PIPELINING", "CHUNKING", "STARTTLS", "AUTH PLAIN LOGIN")
        for reply in replies:
            script.hear()
            script.say(reply)
        script.rest()

    return script


COMMANDS: dict[str, Callable[[SMTPClient], Any]] = {
    "noop": lambda mail: mail.noop(),
    "ehlo": lambda mail: mail.ehlo(),
    "from_": lambda mail: mail.from_(FROM),
    "to": lambda mail: mail.to(TO),
    "reset": lambda mail: mail.reset(),
    "starttls": lambda mail: mail.starttls(),
    "quit": lambda mail: mail.quit(),
    "vrfy": lambda mail: mail.vrfy("jo"),
    "command": lambda mail: mail.command("XADR jo"),
    "bdat": lambda mail: mail.bdat(b""),
    "bdat, last": lambda mail: mail.bdat(b"", last=True),
}


@pytest.mark.parametrize("code", [334, 354, 399])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_unexpected_3xx_reply_closes_the_connection(scripted: Start, name: str, code: int) -> None:
    mail = scripted(answering(f"{code} go on")).connect()
    mail.ehlo()
    with pytest.raises(PeerProtocolError, match=f"{code} go on"):
        COMMANDS[name](mail)
    assert mail.closed


@pytest.mark.parametrize("reply", ["334 ", "355 go", "250 Ok", "221 bye"])
def test_only_354_starts_the_message(scripted: Start, reply: str) -> None:
    mail = scripted(answering("250 1", "250 2", reply)).connect()
    mail.ehlo()
    mail.from_(FROM)
    mail.to(TO)
    with pytest.raises(PeerProtocolError, match="unexpected reply"):
        mail.data()
    assert mail.closed
    with pytest.raises(ProtocolError, match="call data"):
        mail.message(b"x")


@pytest.mark.parametrize("replies", [("354 go",), ("334 ", "354 go"), ("334 ", "334 ", "354 go")])
def test_only_334_continues_auth(scripted: Start, replies: tuple[str, ...]) -> None:
    mail = scripted(answering(*replies)).connect()
    mail.ehlo()
    with pytest.raises(PeerProtocolError) as caught:
        mail.login("jo", "secret", "LOGIN", allow_plaintext=True)
    assert mail.closed
    assert "c2VjcmV0" not in str(caught.value)  # the line before that reply


@pytest.mark.parametrize("reply", ["334 go on", "235 in", "250 fine"])
def test_a_cancelled_auth_must_be_refused(scripted: Start, reply: str) -> None:
    """Otherwise the server would take the next command for a response."""
    mail = scripted(answering("334 not base64!", reply)).connect()
    mail.ehlo()
    with pytest.raises(PeerProtocolError):
        mail.login("jo", "secret", "CRAM-MD5")
    assert mail.closed
    assert not mail.authenticated


@pytest.mark.parametrize(
    "replies",
    [
        ["354 1", "250 2", "354 3"],
        ["250 1", "354 2", "354 3"],
        ["354 3", "354 3", "354 3"],
        ["250 1", "334 2", "503 3"],
        ["250 1", "250 2", "250 3"],
        ["250 1", "250 2", "399 3"],
    ],
)
def test_a_3xx_reply_in_the_envelope_closes_the_connection(scripted: Start, replies: list[str]) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say(*replies)
        assert script.rest() == b""  # no byte of the message

    mail = scripted(script).connect()
    with pytest.raises(PeerProtocolError) as caught:
        mail.send(b"the secret body", FROM, TO)
    assert caught.value.safe_to_retry
    assert mail.closed


@pytest.mark.parametrize("extra", ["250 2.0.0 queued", "550 no", "250-half"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_reply_before_the_message_is_an_error(scripted: Start, extra: str, chunked: bool) -> None:
    """It would be taken for the reply to the message, which has not been sent."""

    def script(script: Script) -> None:
        script.greet("PIPELINING", *(["CHUNKING"] if chunked else []))
        script.expect("MAIL", "RCPT", *([] if chunked else ["DATA"]))
        script.say("250 1", "250 2", *([] if chunked else ["354 go"]), extra)
        assert script.rest() == b""

    mail = scripted(script).connect()
    with pytest.raises(PeerProtocolError, match="unsolicited reply") as caught:
        mail.send(b"x" * (CHUNKING_PAYS if chunked else 10), FROM, TO)
    assert caught.value.safe_to_retry
    assert mail.closed


def test_a_reply_before_a_written_message_is_an_error(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "250 2", "354 go", "250 2.0.0 queued")
        script.rest()

    mail = scripted(script).connect()
    mail.ehlo()
    with mail.pipeline() as batch:
        batch.from_(FROM)
        batch.to(TO)
        batch.data()
    with pytest.raises(PeerProtocolError):
        mail.message(b"x")


@pytest.mark.parametrize("reply", ["354 go on", "334 "])
def test_a_3xx_reply_to_a_message_closes_the_connection(scripted: Start, reply: str) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "250 2", "354 go")
        script.body()
        script.say(reply)
        assert script.rest() == b""

    mail = scripted(script).connect()
    with pytest.raises(PeerProtocolError) as caught:
        mail.send(b"x", FROM, TO)
    assert caught.value.after_content
    assert not caught.value.safe_to_retry


def test_a_refused_chunk_and_an_accepted_message_is_an_error(scripted: Start) -> None:
    """RFC 3030 section 2 forbids it; half a message may have been delivered."""

    def script(script: Script) -> None:
        script.greet("PIPELINING", "CHUNKING")
        script.expect("MAIL", "RCPT")
        script.say("250 1", "250 2")
        for reply in ("452 4.3.1 no room", "250 2.0.0 queued"):
            script.exactly(int(script.hear().split()[1]))
            script.say(reply)
        script.rest()

    mail = scripted(script).connect(timeout=20)
    with pytest.raises(PeerProtocolError, match=r"4\.3\.1 no room.*2\.0\.0 queued") as caught:
        mail.send(b"y" * 600_000, FROM, TO)
    assert not caught.value.safe_to_retry


def test_the_refusal_of_a_chunk_is_reported(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING", "CHUNKING")
        script.expect("MAIL", "RCPT")
        script.say("250 1", "250 2")
        for reply in ("452 4.3.1 no room", "503 5.5.1 what message?"):
            script.exactly(int(script.hear().split()[1]))
            script.say(reply)
        script.expect("NOOP")
        script.say("250 Ok")
        script.rest()

    with scripted(script).connect(timeout=20) as mail:
        with pytest.raises(DataRefused, match="no room") as caught:
            mail.send(b"y" * 600_000, FROM, TO)
        assert caught.value.transient
        assert mail.noop().code == 250


def test_bdat_without_chunking_is_not_offered(scripted: Start) -> None:
    """The server would take the bytes for commands."""

    def script(script: Script) -> None:
        script.greet("PIPELINING", "BINARYMIME", "8BITMIME")
        assert script.rest() == b"QUIT\r\n"

    with scripted(script).connect() as mail:
        mail.ehlo()
        with pytest.raises(NotOffered, match="CHUNKING"):
            mail.bdat(b"MAIL FROM:<x@y.z>\r\n", last=True)
        for ext in (None, "BODY=8BITMIME", "BODY=BINARYMIME"):
            with pytest.raises(NotOffered, match="CHUNKING"):
                mail.send(b"\0\r\nMAIL FROM:<x@y.z>\r\n", FROM, TO, from_ext=ext)


@pytest.mark.parametrize("offers", [("PIPELINING",), ("PIPELINING", "CHUNKING"), ("CHUNKING",), ()])
def test_421_to_the_last_recipient(scripted: Start, offers: tuple[str, ...]) -> None:
    """The recipient before was accepted, but the message reaches no recipient."""

    def script(script: Script) -> None:
        script.greet(*offers)
        for reply in ("250 Ok", "250 Ok", "421 4.3.2 bye"):
            script.hear()
            script.say(reply)
        script.rest()

    mail = scripted(script).connect()
    with pytest.raises(DataRefused, match="421") as caught:
        mail.send(b"x" * CHUNKING_PAYS, FROM, [FROM, TO, "c@example.com"])
    assert [reply.code for reply in caught.value.recipients.values()] == [250, 421, 421]
    assert caught.value.safe_to_retry
    assert mail.closed


@pytest.mark.parametrize("name", ["noop", "from_", "reset", "vrfy"])
def test_421_ends_the_connection(scripted: Start, name: str) -> None:
    mail = scripted(answering("421 4.3.2 bye")).connect()
    mail.ehlo()
    assert COMMANDS[name](mail).code == 421
    assert mail.closed
    with pytest.raises(Disconnected):
        mail.noop()


def test_421_to_ehlo_and_to_starttls(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.say("220 hi")
        script.hear()
        script.say("421 4.3.2 bye")
        assert script.rest() == b""

    with pytest.raises(HelloRefused, match="421"):
        scripted(script).connect().send(b"x", FROM, TO)
    mail = scripted(answering("421 4.3.2 bye")).connect()
    with pytest.raises(Exception, match=r"STARTTLS.*421"):
        mail.send(b"x", FROM, TO)
    assert mail.closed


def test_a_second_greenlet_is_refused_while_the_first_awaits_a_reply(pair: tuple[Any, Any]) -> None:
    """The reply has arrived, and the greenlet that waits for it has not run yet."""
    ours, theirs = pair
    theirs.sendall(b"220 hi\r\n")
    mail = connect(stream=ours, timeout=20)
    waiting = spawn(mail.noop)
    assert theirs.recv(100) == b"NOOP\r\n"
    theirs.sendall(b"250 Ok\r\n")
    with pytest.raises(RuntimeError, match="another greenlet"):
        mail.noop()
    assert waiting.get(timeout=20).code == 250
    assert not mail.closed
    mail.close()


def test_two_writers_at_once_are_an_error(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet()
        for reply in ("250 1", "250 2", "354 go"):
            script.hear()
            script.say(reply)
        assert script.body() == b"one\r\n"
        script.say("250 Ok")
        script.rest()

    with scripted(script).connect() as mail:
        mail.ehlo()
        mail.from_(FROM)
        mail.to(TO)
        mail.data()
        with mail.message() as body:
            body.write(b"one")
            with pytest.raises(ProtocolError, match="being written"):
                mail.message(b"two")
        with pytest.raises(ValueError, match="has ended"):
            body.write(b"more")
        assert body.finish().code == 250


class Blocking:
    """A file whose read returns None where it would block."""

    def read(self, size: int = -1, /) -> Any:
        return None


def test_none_from_read_is_not_the_end_of_the_message(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.say("220 hi")
        assert script.rest() == b"QUIT\r\n"

    with scripted(script).connect() as mail, pytest.raises(TypeError, match="NoneType"):
        mail.send(Blocking(), FROM, TO)
