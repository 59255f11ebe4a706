"""The extensions of ESMTP between our client and our server: what the client asks for is what handlers see."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from greensmtp import Ack, Address, LookupCommand, MessageStream, QueueCommand, Session, SMTPServer, connect
from greensmtp.protocol.option_values import DeliverBy, OriginalRecipient, ValidSince
from greensmtp.protocol.options import MailOptions, RcptOptions
from greensmtp.testing.fixtures import MakeServer

EVERYTHING = {
    "DSN": True,
    "MT-PRIORITY": True,
    "DELIVERBY": 60,
    "FUTURERELEASE": (86_400, datetime.now(UTC) + timedelta(days=2)),
    "RRVS": True,
    "ETRN": True,
}
SINCE = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def seen(smtp_server: MakeServer) -> tuple[SMTPServer, list[Any]]:
    """Return a server with all extensions that need no TLS, and the options and commands that its handlers see."""
    server, seen = smtp_server(extensions=EVERYTHING, max_recipients=2), list[Any]()

    @server.on("from")
    def sender(session: Session, address: Address, ack: Ack) -> None:
        seen.append(address.mail_options)
        ack.accept()

    @server.on("to")
    def recipient(session: Session, address: Address, ack: Ack) -> None:
        seen.append((str(address), address.rcpt_options))
        ack.accept()

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()

    @server.on("vrfy")
    def verify(session: Session, command: LookupCommand, ack: Ack) -> None:
        seen.append(command.lookup.name)
        ack.accept(250, "<jo@example.com>")

    @server.on("etrn")
    def release(session: Session, command: QueueCommand, ack: Ack) -> None:
        seen.append(command.queue.name)
        ack.accept()

    return server, seen


def test_typed_parameters_reach_the_handlers(seen: tuple[SMTPServer, list[Any]]) -> None:
    server, options = seen
    with connect(*server.address) as mail:
        mail.ehlo("client.example")
        mail.from_("a@example.com", ret="HDRS", envid="QQ+1", priority=3, deliver_by=DeliverBy(120, "N"), hold_for=60)
        mail.to("b@example.com", notify=("SUCCESS", "DELAY"), orcpt="c+d@example.com", valid_since=SINCE)
    assert options == [
        MailOptions(ret="HDRS", envid="QQ+1", priority=3, deliver_by=DeliverBy(120, "N"), hold_for=60),
        (
            "b@example.com",
            RcptOptions(
                notify=frozenset({"SUCCESS", "DELAY"}),
                orcpt=OriginalRecipient("rfc822", "c+d@example.com"),
                valid_since=ValidSince(SINCE),
            ),
        ),
    ]


def test_a_message_is_split_as_limits_says(seen: tuple[SMTPServer, list[Any]]) -> None:
    server, options = seen
    recipients = [f"{name}@example.com" for name in "abcde"]
    with connect(*server.address) as mail:
        sent = mail.send(b"Subject: x\r\n\r\nHi\r\n", "s@example.com", recipients, notify="NEVER")
    assert sent.accepted == tuple(recipients)
    kinds = [isinstance(each, MailOptions) for each in options]
    assert kinds == [True, False, False, True, False, False, True, False]
    assert [each[0] for each in options if isinstance(each, tuple)] == recipients


def test_lookups_and_queues_reach_the_handlers(seen: tuple[SMTPServer, list[Any]]) -> None:
    server, asked = seen
    with connect(*server.address) as mail:
        mail.ehlo("client.example")
        assert mail.vrfy("Jo").text == "<jo@example.com>"
        assert mail.etrn("example.org").is_positive
    assert asked == ["Jo", "example.org"]
