"""greensmtp as tests/corpus expects a server: PORT LMTP_PORT CERT. It takes everything but one recipient."""

from __future__ import annotations

import sys

import greensmtp
from greensmtp import Ack, Address, MessageStream, Reject, Session, SMTPServer
from greensmtp.middleware import Auth

#: Beside the standard ones.
EXTENSIONS = {
    **dict.fromkeys(("DSN", "REQUIRETLS", "MT-PRIORITY", "DELIVERBY", "RRVS", "ETRN"), True),
    "FUTURERELEASE": 3600,
}


def make(port: int, *, lmtp: bool, cert: str) -> SMTPServer:
    """Return a server that throws messages away."""
    server = SMTPServer(
        ("127.0.0.1", port),
        hostname="mx.example.com",
        lmtp=lmtp,
        certfile=cert,
        max_message_size=1_000_000,
        extensions=EXTENSIONS,
        middleware=[Auth({"jo": "secret"}, allow_plaintext=True, failures_by_client=None, failures_by_account=None)],
    )

    @server.on("to")
    def recipient(session: Session, address: Address, ack: Ack) -> None:
        if address == "no@example.com":
            raise Reject(550, "5.1.1 No such user")
        ack.accept()

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()

    return server


smtp_port, lmtp_port, pem = sys.argv[1:]
greensmtp.run(make(int(smtp_port), lmtp=False, cert=pem), make(int(lmtp_port), lmtp=True, cert=pem))
