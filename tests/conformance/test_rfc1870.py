"""RFC 1870 (SIZE) as the server keeps it. See docs/conformance/rfc1870.md."""

from __future__ import annotations

from greensmtp import Ack, Address, Session
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer


def test_a_handler_of_to_sees_the_declared_size(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)

    @server.on("to")
    def small_messages_only(session: Session, address: Address, ack: Ack) -> None:
        if int(session.from_ext.get("SIZE") or 0) > 1000:
            ack.reject(552, "5.2.3 too large for this mailbox")
        else:
            ack.accept()

    with dial(server) as peer:
        peer.hello()
        peer.converse("""
            C: MAIL FROM:<jo@example.org> SIZE=1001
            S: 250
            C: RCPT TO:<ann@example.com>
            S: 552 5.2.3
            C: RSET
            S: 250
            C: MAIL FROM:<jo@example.org> SIZE=1000
            S: 250
            C: RCPT TO:<ann@example.com>
            S: 250
        """)
