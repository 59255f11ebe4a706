"""LMTP and BDAT: a refusal of BDAT LAST may come once, or once for each recipient (RFC 2033 section 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout, sleep

from greensmtp import DataRefused, PeerProtocolError, RecipientsRefused, SMTPServer, connect
from greensmtp.client.message import CHUNKING_PAYS

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM, A, B = "a@example.com", "a@example.com", "b@example.com"
HELLO = ("250-mx", "250-CHUNKING", "250 PIPELINING")
MESSAGE = b"x" * CHUNKING_PAYS


def refuses(*replies: str, hello: tuple[str, ...] = HELLO) -> Callable[[Script], Any]:
    """Reply to BDAT LAST with the first of these, and with the others after the LHLO that follows."""

    def script(script: Script) -> None:
        script.say("220 mx LMTP")
        script.expect("LHLO x.example")
        script.say(*HELLO)
        script.expect("MAIL", "RCPT", "RCPT")
        script.say("250 Ok", "250 A", "250 B")
        script.exactly(int(script.hear().split()[1]))
        script.say(replies[0])
        script.expect("LHLO x.example")
        for reply in replies[1:]:
            script.say(reply)
            sleep(0.01)
        script.say(*hello)
        script.rest()

    return script


@pytest.mark.parametrize(
    ("replies", "accepted"), [(("554 no",), ()), (("452 A", "550 B"), ()), (("452 A", "250 B"), (B,))]
)
def test_a_refusal_of_the_last_chunk(scripted: Start, replies: tuple[str, ...], accepted: tuple[str, ...]) -> None:
    with scripted(refuses(*replies)).connect(lmtp=True, local_hostname="x.example") as mail:
        if accepted:
            outcome: Any = mail.send(MESSAGE, FROM, [A, B])
            assert outcome.accepted == accepted
        else:
            with pytest.raises(DataRefused) as caught:
                mail.send(MESSAGE, FROM, [A, B])
            outcome = caught.value
            assert outcome.transient == (replies[0][0] == "4")
        assert [str(reply) for reply in outcome.recipients.values()] == [replies[0], replies[-1]]
        assert not mail.closed


@pytest.mark.parametrize("replies", [("452 A", "550 B", "550 C"), ("452 A", "550 B", "250 mx")])
def test_more_replies_to_the_last_chunk_than_recipients(scripted: Start, replies: tuple[str, ...]) -> None:
    mail = scripted(refuses(*replies)).connect(lmtp=True, local_hostname="x.example")
    with pytest.raises(PeerProtocolError, match="expected 1 or 2 replies") as caught:
        mail.send(MESSAGE, FROM, [A, B])
    assert not caught.value.safe_to_retry
    assert mail.closed


def test_421_after_a_refusal_of_the_last_chunk(scripted: Start) -> None:
    mail = scripted(refuses("550 A", "421 going down")).connect(lmtp=True, local_hostname="x.example")
    with pytest.raises(DataRefused) as caught:
        mail.send(MESSAGE, FROM, [A, B])
    assert [reply.code for reply in caught.value.recipients.values()] == [550, 421]
    assert mail.closed


def test_a_disconnect_after_a_refusal_of_the_last_chunk(scripted: Start) -> None:
    mail = scripted(refuses("550 A", hello=())).connect(lmtp=True, local_hostname="x.example", timeout=0.2)
    with pytest.raises(Exception, match="timeout") as caught:
        mail.send(MESSAGE, FROM, [A, B])
    error: Any = caught.value
    assert [(recipient, reply.code) for recipient, reply in error.recipients.items()] == [(A, 550)]
    assert not error.safe_to_retry


def test_greensmtp_refuses_a_message_in_chunks_over_lmtp() -> None:
    """Its handler rejects the message before the body, which is one reply for all recipients."""
    server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", lmtp=True)
    server.on("message", lambda session, stream, ack: ack.reject(554, "5.6.0 no"))
    server.start()
    try:
        with connect(*server.address, lmtp=True, timeout=5) as mail:
            for _ in range(2):
                with pytest.raises(DataRefused, match=r"554 5\.6\.0 no"):
                    mail.send(MESSAGE, FROM, [A, B])
    finally:
        server.stop()


def test_354_without_a_recipient_closes_the_connection(scripted: Start) -> None:
    """RFC 2033 section 4.2 forbids it; how many replies the empty message would get is unknown."""

    def script(script: Script) -> None:
        script.say("220 mx LMTP")
        script.expect("LHLO ")
        script.say("250-mx", "250 PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 Ok", "550 no", "354 go")
        script.rest()

    mail = scripted(script).connect(lmtp=True)
    with Timeout(2), pytest.raises(RecipientsRefused, match="550 no"):
        mail.send(b"x", FROM, A)
    assert mail.closed
