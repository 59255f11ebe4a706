"""RFC 8314 (implicit TLS) as server and client keep it. See docs/conformance/rfc8314.md."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

import pytest
from gevent import ssl as gevent_ssl

from greensmtp import Ack, Session
from greensmtp.client.tls import default_context
from greensmtp.delivery import received_field
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import accepting

if TYPE_CHECKING:
    from tests.conftest import Certificate


def test_a_client_in_the_clear_gets_no_banner(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = accepting(smtp_server, certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    with dial(server) as peer:
        peer.expect_nothing()
        peer.line("EHLO client.example")
        assert b"220" not in peer.rest()


def test_the_default_context_requires_tls_1_2_and_a_verified_name() -> None:
    context = default_context()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize(
    ("version", "suite"),
    [(ssl.TLSVersion.TLSv1_3, rb"TLS_[A-Z0-9_]+"), (ssl.TLSVersion.TLSv1_2, rb"0x[0-9A-F]{4}")],
)
def test_received_names_the_cipher_suite(
    smtp_server: MakeServer, certificate: Certificate, version: ssl.TLSVersion, suite: bytes
) -> None:
    server = accepting(smtp_server, certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    fields: list[bytes] = []

    @server.on("received")
    def note(session: Session, ack: Ack) -> None:
        fields.append(received_field(session))
        ack.accept()

    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    with dial(server) as peer:
        peer.start_tls(context)
        peer.hello()
        assert peer.deliver(b"Subject: x\r\n").startswith("250")
    assert re.search(rb"with ESMTPS id \S+\r\n\tfor <\S+>\r\n\ttls " + suite + rb";\r\n", fields[0])
