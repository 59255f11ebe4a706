"""RFC 8314 (implicit TLS) as server and client keep it. See docs/conformance/rfc8314.md."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from greensmtp.client.tls import default_context
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
