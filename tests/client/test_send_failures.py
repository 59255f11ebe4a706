"""``send``: refusals, LMTP, and servers that break at the extensions that they offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from greensmtp import (
    Ack,
    Address,
    ClientError,
    DataRefused,
    NotOffered,
    PartiallyRefused,
    Pool,
    RecipientsRefused,
    Refused,
    SenderRefused,
    Session,
    SMTPServer,
    connect,
)
from greensmtp.client.message import CHUNKING_PAYS
from greensmtp.testing.fixtures import MakeServer
from tests.client.inbox import Inbox

if TYPE_CHECKING:
    from tests.client.conftest import Script, Scripted

    Start = Callable[..., Scripted]

FROM, TO = "a@example.com", "b@example.com"


# Refusals


def test_partial_refusals_are_in_the_result(inbox: Inbox) -> None:
    sent = inbox.send(b"x", FROM, [TO, "no@example.com", "later@example.com"])
    assert sent.accepted == (TO,)
    assert {recipient: reply.code for recipient, reply in sent.refused.items()} == {
        "no@example.com": 550,
        "later@example.com": 450,
    }
    with pytest.raises(PartiallyRefused, match="2 of 3") as caught:
        inbox.send(b"x", FROM, [TO, "no@example.com", "later@example.com"], raise_on_partial=True)
    assert caught.value.result.accepted == (TO,)
    assert not caught.value.safe_to_retry


def test_all_recipients_refused(inbox: Inbox) -> None:
    with pytest.raises(RecipientsRefused) as caught:
        inbox.send(b"x", FROM, ["no@example.com"])
    assert not caught.value.transient
    assert caught.value.safe_to_retry
    assert caught.value.recipients["no@example.com"].enhanced == "5.1.1"
    with pytest.raises(RecipientsRefused) as caught:
        inbox.send(b"x", FROM, ["no@example.com", "later@example.com"])
    assert caught.value.transient


def test_the_sender_refused(inbox: Inbox) -> None:
    inbox.server.on("from", lambda session, address, ack: ack.reject(450, "4.7.1 wait"))
    with pytest.raises(SenderRefused, match=r"4\.7\.1 wait") as caught:
        inbox.send(b"x", FROM, TO)
    assert caught.value.transient


def test_the_message_refused(inbox: Inbox) -> None:
    with pytest.raises(DataRefused, match=r"5\.7\.1"):
        inbox.send(b"x", "refuse@example.com", TO)
    inbox.server.on("received", lambda session, ack: ack.reject(451, "4.3.0 no"))
    with pytest.raises(DataRefused) as caught:
        inbox.send(b"x", FROM, TO)
    assert caught.value.transient
    assert isinstance(caught.value, Refused)
    assert isinstance(caught.value, ClientError)


def test_a_message_above_the_servers_size_is_refused(smtp_server: MakeServer) -> None:
    inbox = Inbox(smtp_server(max_message_size=100))
    with pytest.raises(SenderRefused, match="552"):
        inbox.send(b"x" * 200, FROM, TO)


def test_a_refusal_leaves_the_connection_usable(inbox: Inbox) -> None:
    with connect(*inbox.server.address, timeout=10) as mail:
        for _ in range(3):
            with pytest.raises(RecipientsRefused):
                mail.send(b"x", FROM, "no@example.com")
            with pytest.raises(DataRefused):
                mail.send(b"x", "refuse@example.com", TO)
            with pytest.raises(RecipientsRefused):
                mail.send(b"x" * CHUNKING_PAYS, FROM, "no@example.com")
            mail.send(b"x", FROM, TO)
    assert [list(to) for to in inbox.recipients] == [[TO]] * 3


def test_354_without_recipients_gets_an_empty_message(scripted: Start) -> None:
    """RFC 2920 section 3.1: DATA was pipelined, and the server accepts it although every RCPT was refused."""

    def script(script: Script) -> None:
        script.greet("PIPELINING")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "550 no", "354 go")
        assert script.body() == b""
        script.say("554 nobody")
        script.expect("NOOP")
        script.say("250 Ok")
        script.rest()

    with scripted(script).connect() as mail:
        with pytest.raises(RecipientsRefused):
            mail.send(b"the secret body", FROM, TO)
        assert mail.noop().code == 250


@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA", "body"])
def test_421_at_every_point(scripted: Start, at: str) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING")
        for verb, reply in (("MAIL", "250 1"), ("RCPT", "250 2"), ("DATA", "354 go")):
            script.expect(verb)
            if verb == at:
                script.say("421 4.3.2 bye")
                return
            script.say(reply)
        script.body()
        script.say("421 4.3.2 bye")

    mail = scripted(script).connect()
    with pytest.raises(Refused) as caught:
        mail.send(b"x", FROM, TO)
    assert caught.value.reply is not None
    assert caught.value.reply.code == 421
    assert caught.value.transient
    assert caught.value.safe_to_retry
    assert mail.closed


# LMTP


@pytest.fixture
def lmtp(smtp_server: MakeServer) -> SMTPServer:
    server = smtp_server(lmtp=True)
    Inbox(server)

    @server.on("received")
    def deliver(session: Session, ack: Ack, recipient: Address) -> None:
        if recipient.local_part == "full":
            ack.reject(452, "4.2.2 mailbox full")
        else:
            ack.accept(250, f"2.0.0 stored for {recipient.local_part}")

    return server


@pytest.mark.parametrize("size", [10, CHUNKING_PAYS])
def test_lmtp_has_a_reply_for_each_recipient(lmtp: SMTPServer, size: int) -> None:
    with connect(*lmtp.address, lmtp=True, timeout=10) as mail:
        for _ in range(2):
            sent = mail.send(b"x" * size, FROM, ["full@example.com", "no@example.com", "jo@example.com"])
            assert {recipient: str(reply) for recipient, reply in sent.recipients.items()} == {
                "full@example.com": "452 4.2.2 mailbox full",
                "no@example.com": "550 5.1.1 no such user",
                "jo@example.com": "250 2.0.0 stored for jo",
            }
            assert sent.reply.text == "stored for jo"
        with pytest.raises(DataRefused) as caught:
            mail.send(b"x" * size, FROM, ["full@example.com", "no@example.com"])
        assert caught.value.recipients["full@example.com"].code == 452
        assert mail.send(b"x", FROM, ["jo@example.com"]).accepted == ("jo@example.com",)


def test_lmtp_by_hand(lmtp: SMTPServer) -> None:
    with connect(*lmtp.address, timeout=10) as mail:
        assert mail.lhlo("client.example").code == 250
        mail.from_(FROM)
        mail.to("full@example.com")
        mail.to("jo@example.com")
        mail.data()
        assert mail.message(b"x").code == 452
        assert [reply.code for reply in mail.replies] == [452, 250]
        assert mail.noop().code == 250


# Extensions that a server offers and breaks at


def ignores_pipelining(script: Script) -> None:
    """Offer PIPELINING and CHUNKING, and handle neither."""
    script.greet("PIPELINING", "CHUNKING", "8BITMIME", "SIZE")
    for verb in ("MAIL FROM:<a@example.com>", "RCPT", "DATA"):
        script.expect(verb)
        assert not script._buffer
        script.say("354 go" if verb == "DATA" else "250 Ok")
    script.body()
    script.say("250 Ok")
    script.rest()


@pytest.mark.parametrize("ignore", [("CHUNKING", "PIPELINING"), ["chunking", "Pipelining"], {"PIPELINING", "CHUNKING"}])
def test_extensions_are_ignored(scripted: Start, ignore: Any) -> None:
    body = b"x" * (CHUNKING_PAYS + 1)
    with scripted(ignores_pipelining).connect(ignore=ignore) as mail:
        assert mail.send(body, FROM, TO).reply.code == 250
        assert set(mail.extensions) == {"8BITMIME", "SIZE"}
        with pytest.raises(NotOffered):
            mail.bdat(b"x")
    server = scripted(ignores_pipelining)
    with Pool("127.0.0.1", server.port, ignore=ignore, timeout=5) as pool:
        assert pool.send(body, FROM, TO).reply.code == 250


def test_one_extension_is_ignored(scripted: Start) -> None:
    def script(script: Script) -> None:
        script.greet("PIPELINING", "STARTTLS")
        script.expect("MAIL", "RCPT", "DATA")
        script.say("250 1", "250 2", "354 go")
        script.body()
        script.say("250 Ok")
        script.rest()

    with scripted(script).connect(ignore="starttls") as mail:
        assert mail.send(b"x", FROM, TO).reply.code == 250


@pytest.mark.parametrize(
    ("ignore", "hint"),
    [("CHUNKNIG", "did you mean 'CHUNKING'"), (["PIPELINE"], "'PIPELINING'"), ("X-MAGIC", "SMTPUTF8")],
)
def test_unknown_extensions_cannot_be_ignored(ignore: Any, hint: str) -> None:
    for call in (lambda: connect("127.0.0.1", 1, ignore=ignore), lambda: Pool(ignore=ignore)):
        with pytest.raises(ValueError, match=hint):
            call()
