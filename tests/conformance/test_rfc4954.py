"""RFC 4954 (AUTH) as server and client keep it. See docs/conformance/rfc4954.md."""

from __future__ import annotations

import re
from base64 import b64decode

import pytest

from greensmtp import Ack, Address, Session, SMTPServer
from greensmtp.middleware import Auth
from greensmtp.protocol import canned
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import accepting, auth_plain, b64


def server_with_auth(smtp_server: MakeServer) -> SMTPServer:
    """Make a server whose only user is jo, whose password is sesame; passwords may be sent in the clear."""
    return accepting(smtp_server, Auth({"jo": "sesame"}, allow_plaintext=True))


def test_a_challenge_is_base64_and_an_empty_one_keeps_its_space(smtp_server: MakeServer) -> None:
    with dial(server_with_auth(smtp_server)) as peer:
        peer.hello()
        peer.line("AUTH PLAIN")
        assert peer.reply() == "334 "
        peer.line("*", "AUTH CRAM-MD5")
        peer.expect("501 5.7.0")
        challenge = peer.reply()
        assert re.fullmatch(r"334 [A-Za-z0-9+/]+=*", challenge)
        assert b64decode(challenge[4:]).startswith(b"<")


def test_an_initial_response_where_the_server_begins_gets_501(smtp_server: MakeServer) -> None:
    with dial(server_with_auth(smtp_server)) as peer:
        peer.hello()
        peer.line(f"AUTH CRAM-MD5 {b64('jo')}", "NOOP")
        peer.expect("501 5.7.0", "250")


def test_an_equals_sign_is_an_empty_initial_response(smtp_server: MakeServer) -> None:
    """It is no challenge away from a refusal: PLAIN needs more than nothing."""
    with dial(server_with_auth(smtp_server)) as peer:
        peer.hello()
        peer.line("AUTH PLAIN =", "NOOP")
        peer.expect("501 5.5.2", "250")


@pytest.mark.parametrize("text", ["=AAA", "AAA=BBB", "AA==AA==", "AAAA=", "A", "AA", "AA.A", "\u00e4AAA", "AA-_"])
@pytest.mark.parametrize("initial", [False, True])
def test_what_is_not_base64_gets_501(smtp_server: MakeServer, text: str, initial: bool) -> None:
    with dial(server_with_auth(smtp_server)) as peer:
        peer.hello()
        if initial:
            peer.line(f"AUTH PLAIN {text}")
        else:
            peer.line("AUTH PLAIN")
            peer.expect("334")
            peer.line(text)
        peer.expect("501 5.5.")
        peer.line(auth_plain("jo", "sesame"))
        peer.expect("235")


def test_the_replies_have_the_codes_of_the_rfc() -> None:
    assert {(reply.code, reply.enhanced) for reply in vars(canned).values() if getattr(reply, "code", 0)} >= {
        (454, "4.7.0"),
        (500, "5.5.6"),
        (530, "5.7.0"),
        (534, "5.7.9"),
        (535, "5.7.8"),
        (538, "5.7.11"),
    }


def test_three_failed_logins_do_not_end_the_session(smtp_server: MakeServer) -> None:
    with dial(server_with_auth(smtp_server)) as peer:
        peer.hello()
        for _ in range(3):
            peer.line(auth_plain("jo", "guess"))
            peer.expect("535 5.7.8")
        peer.line(auth_plain("jo", "sesame"))
        peer.expect("235 2.7.0")


def submitter(peer: Peer, seen: list[str | None], value: str) -> str | None:
    """Send MAIL with this AUTH=, and return what the handler saw."""
    peer.line("RSET", f"MAIL FROM:<jo@example.org> AUTH={value}")
    peer.expect("250", "250")
    return seen.pop()


@pytest.mark.parametrize("with_auth", [False, True])
def test_auth_of_mail_counts_as_null_without_a_login(smtp_server: MakeServer, with_auth: bool) -> None:
    server = server_with_auth(smtp_server) if with_auth else accepting(smtp_server)
    seen: list[str | None] = []

    @server.on("from")
    def note(session: Session, address: Address, ack: Ack) -> None:
        seen.append(address.parameters["AUTH"])
        ack.accept()

    with dial(server) as peer:
        peer.hello()
        assert submitter(peer, seen, "<>") == "<>"
        assert submitter(peer, seen, "e+3Dmc2@example.com") == "<>"


def test_a_response_that_is_too_long_gets_500_and_is_no_command(smtp_server: MakeServer) -> None:
    with dial(server_with_auth(smtp_server)) as peer:
        peer.hello()
        peer.line("AUTH PLAIN")
        peer.expect("334")
        peer.line("A" * 12_288, "NOOP")
        peer.expect("500 5.5.6", "250")


def test_a_response_as_long_as_a_line_may_be_is_read(smtp_server: MakeServer) -> None:
    with dial(server_with_auth(smtp_server)) as peer:
        peer.hello()
        peer.line("AUTH PLAIN")
        peer.expect("334")
        peer.line(b64(f"\0jo\0{'x' * 9209}"))
        peer.expect("535 5.7.8")
