"""RFC 6531 (SMTPUTF8) as server and client keep it. See docs/conformance/rfc6531.md."""

from __future__ import annotations

import pytest

from greensmtp import ArgumentError
from greensmtp.client.message import PreparedMessage
from greensmtp.protocol.esmtp import parse_offers
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.reply_parser import ReplyParser
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer


@pytest.mark.parametrize("verb", ["VRFY", "EXPN"])
def test_vrfy_and_expn_take_smtputf8_and_stay_ascii(smtp_server: MakeServer, verb: str) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        peer.line(f"{verb} jo SMTPUTF8", f"{verb} j\u00f6 SMTPUTF8", f"{verb} j\u00f6")
        replies = [peer.reply() for _ in range(3)]
    assert [reply[:9] for reply in replies[:2]] == ["252 2.5.2"] * 2
    assert all(reply.isascii() for reply in replies)


@pytest.mark.parametrize("command", ["MAIL FROM:<j\u00f6@example.org>", "RCPT TO:<j\u00f6@example.com>"])
def test_an_address_beyond_ascii_without_smtputf8_gets_553(smtp_server: MakeServer, command: str) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.hello()
        if command.startswith("RCPT"):
            peer.line("MAIL FROM:<jo@example.org>")
            peer.expect("250")
        peer.line(command)
        peer.expect("553 5.6.7")


def test_the_name_of_the_server_is_ascii(smtp_server: MakeServer) -> None:
    with pytest.raises(ArgumentError, match="takes ASCII"):
        smtp_server(start=False, hostname="b\u00fccher.example")


def test_the_text_of_a_reply_is_ascii(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("to", lambda session, address, ack: ack.reject(551, "5.1.6 try <j\u00f6@example.org>"))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<jo@example.org> SMTPUTF8", "RCPT TO:<jo@example.com>")
        peer.expect("250")
        assert peer.reply() == "551 5.1.6 try <j?@example.org>"


def test_a_parameter_behind_the_keyword_is_ignored() -> None:
    offers = parse_offers(Reply(250, "mx.example.com", "SMTPUTF8 2", "8BITMIME", enhanced=None))
    prepared = PreparedMessage(b"Subject: x\r\n\r\n", "j\u00f6@example.org", ["ann@example.com"])
    assert b" SMTPUTF8" in prepared.mail_line(offers)


def test_smtputf8_is_not_sent_without_need() -> None:
    offers = parse_offers(Reply(250, "mx.example.com", "SMTPUTF8", "8BITMIME", enhanced=None))
    prepared = PreparedMessage("Subject: x\r\n\r\n\u00e4\r\n".encode(), "jo@example.org", ["ann@example.com"])
    assert prepared.mail_line(offers) == b"MAIL FROM:<jo@example.org> BODY=8BITMIME\r\n"


def test_a_reply_in_utf8_is_read() -> None:
    parser = ReplyParser()
    parser.feed("251 2.1.5 User not local; will forward to <j\u00f6@example.org>\r\n".encode())
    reply = parser.next_reply()
    assert reply is not None
    assert reply.code == 251
    assert "<j\u00f6@example.org>" in reply.text
