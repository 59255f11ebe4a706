"""RFC 3207 (STARTTLS) as the server keeps it. See docs/conformance/rfc3207.md."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
from gevent import socket

from greensmtp import ProtocolError, Reply, connect
from greensmtp.chain.chain import Proceed
from greensmtp.protocol.command import PSEUDO_COMMANDS, Command
from greensmtp.session import Session
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import accepting

if TYPE_CHECKING:
    from tests.conftest import Certificate


def test_mail_is_accepted_without_tls_by_default(smtp_server: MakeServer, certificate: Certificate) -> None:
    with dial(accepting(smtp_server, certfile=certificate.certfile, keyfile=certificate.keyfile)) as peer:
        assert "250-STARTTLS" in peer.hello().replace("250 ", "250-").split("\n")
        assert peer.deliver(b"Subject: x\r\n").startswith("250")


def test_a_middleware_may_require_tls_as_the_rfc_says(smtp_server: MakeServer, certificate: Certificate) -> None:
    free = PSEUDO_COMMANDS | {"NOOP", "EHLO", "STARTTLS", "QUIT"}

    def require_tls(session: Session, command: Command, proceed: Proceed) -> Reply:
        if session.tls or command.verb in free:
            return proceed(session, command)
        return Reply(530, "5.7.0 Must issue a STARTTLS command first")

    server = accepting(smtp_server, require_tls, certfile=certificate.certfile, keyfile=certificate.keyfile)
    with dial(server) as peer:
        peer.converse("""
            S: 220
            C: EHLO client.example
            S: 250
            C: NOOP
            S: 250
            C: MAIL FROM:<jo@example.org>
            S: 530 5.7.0
            C: VRFY jo
            S: 530 5.7.0
            C: STARTTLS
            S: 220
        """)
        peer.start_tls()
        peer.line("EHLO client.example")
        peer.expect("250")
        peer.envelope()


def test_the_client_sends_starttls_once(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = accepting(smtp_server, certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    context = ssl.create_default_context(cafile=str(certificate.authority))
    ours, theirs = socket.socketpair()
    server.adopt(theirs, "test")
    with connect(stream=ours, server_hostname="mx.example.com", tls=context) as mail:
        with pytest.raises(ProtocolError, match="TLS is up already"):
            mail.starttls()
        assert mail.noop().code == 250
