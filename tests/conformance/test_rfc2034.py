"""RFC 2034 (ENHANCEDSTATUSCODES) as the server keeps it. See docs/conformance/rfc2034.md."""

from __future__ import annotations

import pytest

from greensmtp import Ack, Address, Session
from greensmtp.protocol import canned
from greensmtp.protocol.reply import Reply
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import accepting


@pytest.mark.parametrize(("code", "enhanced"), [(550, "5.0.0"), (450, "4.2.0")])
def test_a_text_of_a_handler_gets_the_code_of_its_class(smtp_server: MakeServer, code: int, enhanced: str) -> None:
    server = smtp_server(start=False)

    @server.on("to")
    def refuse(session: Session, address: Address, ack: Ack) -> None:
        ack.reject(code, ["not here", "and not there"])

    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<jo@example.org>", "RCPT TO:<ann@example.com>")
        peer.expect("250")
        assert peer.reply() == f"{code}-{enhanced} not here\n{code} {enhanced} and not there"


def test_intermediate_replies_have_no_enhanced_code() -> None:
    replies = [reply for reply in vars(canned).values() if isinstance(reply, Reply)]
    assert {reply.enhanced for reply in replies if reply.is_intermediate} == {None}
    assert None not in {reply.enhanced for reply in replies if not reply.is_intermediate}


def test_the_codes_do_not_depend_on_ehlo(smtp_server: MakeServer) -> None:
    with dial(accepting(smtp_server)) as peer:
        peer.converse("""
            S: 220
            C: NOOP
            S: 250 2.0.0
            C: DATA
            S: 503 5.5.1
            C: HELO client.example
            S: 250
            C: MAIL FROM:<jo@example.org>
            S: 250 2.1.0
        """)
