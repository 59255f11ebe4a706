"""RFC 2920 (PIPELINING) as the server keeps it. See docs/conformance/rfc2920.md."""

from __future__ import annotations

from greensmtp import Ack, Session
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import accepting


def test_ehlo_offers_pipelining_without_a_parameter(smtp_server: MakeServer) -> None:
    with dial(smtp_server(start=False)) as peer:
        assert "250-PIPELINING" in peer.hello().split("\n")


def test_data_in_a_group_without_a_valid_recipient_gets_503(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("to", lambda session, address, ack: ack.reject(550, "5.1.1 unknown"))
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<jo@example.org>", "RCPT TO:<a@example.com>", "RCPT TO:<b@example.com>", "DATA", "NOOP")
        peer.expect("250", "550", "550", "503", "250")


def test_a_reply_goes_out_when_the_input_is_empty(smtp_server: MakeServer) -> None:
    with dial(accepting(smtp_server)) as peer:
        peer.hello()
        for command in ("NOOP", "VRFY jo", "XYZZY", "MAIL FROM:<jo@example.org>"):
            peer.line(command)
            peer.reply()
            peer.expect_nothing(0)


def test_354_goes_out_before_the_body_is_read(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    @server.on("message")
    def message(session: Session, stream: object, ack: Ack) -> None:
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.send("NOOP\r\nDATA\r\nSubject: x")
        peer.expect("250", "354")
        peer.line("", ".")
        peer.expect("250")
