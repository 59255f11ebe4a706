"""STARTTLS injection (CVE-2011-0411): all plaintext input, even half a line, is discarded when TLS starts."""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Any, cast

import pytest
from gevent.event import Event

from greensmtp import Ack, Address, Command, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.conftest import Certificate


@pytest.fixture
def tls_server(smtp_server: MakeServer, certificate: Certificate) -> SMTPServer:
    """A server with STARTTLS, without a listener."""
    return smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile)


class Watch:
    """Records the senders, the commands, and how the connection ends."""

    def __init__(self, server: SMTPServer) -> None:
        self.senders: list[Address] = []
        self.commands: list[tuple[str, bool]] = []
        self.reasons: list[str] = []
        self.over = Event()

        @server.on("from")
        def sender(session: Session, address: Address, ack: Ack) -> None:
            self.senders.append(address)
            ack.accept()

        @server.on("command")
        def command(session: Session, command: Command, ack: Ack) -> None:
            self.commands.append((command.verb, session.tls))

        @server.on("disconnect")
        def disconnect(session: Session, reason: str) -> None:
            self.reasons.append(reason)
            self.over.set()


INJECTED = [
    b"NOOP\r\n",
    b"MAIL FROM:<evil@example.net>\r\n",
    b"EHLO evil.example\r\nMAIL FROM:<evil@example.net>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\n",
    b"MAIL FROM:<evil@exam",
    b"M",
    b"NOOP\r",
    b"x" * 20_000,
    b"NOOP\r\n" * 3_000,
    b"\r\n",
    b"STARTTLS\r\n",
]


@pytest.mark.parametrize("injected", INJECTED, ids=lambda octets: repr(octets[:24]))
def test_what_comes_in_the_same_segment_is_dropped(tls_server: SMTPServer, injected: bytes) -> None:
    watch = Watch(tls_server)
    with dial(tls_server) as peer:
        peer.hello()
        # One read takes 16 KiB at most: what is still in the socket would be taken for the handshake, and end it.
        peer.send((b"STARTTLS\r\n" + injected)[:16_384])
        peer.expect("220 2.0.0")
        peer.start_tls()
        peer.line("NOOP", "EHLO client.example", "MAIL FROM:<good@example.org>", "QUIT")
        peer.expect("250 2.0.0", "250-mx.example.com", "250 2.1.0", "221")
        peer.expect_end()
    assert watch.senders == ["good@example.org"]
    assert watch.commands == [
        ("EHLO", False),
        ("STARTTLS", False),
        ("NOOP", True),
        ("EHLO", True),
        ("MAIL", True),
        ("QUIT", True),
    ]


@pytest.mark.parametrize("injected", [b"NOOP\r\n", b"MAIL FROM:<evil@exam", b"x"], ids=repr)
def test_no_cut_carries_plaintext_into_tls(tls_server: SMTPServer, injected: bytes) -> None:
    """After a cut behind STARTTLS, the rest is read as a handshake, which fails; after any other, it is dropped."""
    wire = b"STARTTLS\r\n" + injected
    for cut in range(1, len(wire)):
        watch = Watch(tls_server)
        with dial(tls_server) as peer:
            peer.hello()
            peer.send(wire, cut=cut)
            peer.expect("220")
            if cut >= len("STARTTLS\r\n"):
                peer.half_close()
                assert b"250" not in peer.rest()
            else:
                peer.start_tls()
                peer.line("NOOP", "QUIT")
                peer.expect("250", "221")
                peer.expect_end()
        assert watch.senders == []
        assert {verb for verb, _ in watch.commands} <= {"EHLO", "STARTTLS", "NOOP", "QUIT"}


def test_half_a_line_sent_before_is_no_part_of_the_first_line_inside(tls_server: SMTPServer) -> None:
    with dial(tls_server) as peer:
        peer.hello()
        peer.send("STARTTLS\r\nNOOP ")
        peer.expect("220")
        peer.start_tls()
        peer.line("MAIL FROM:<a@example.org>")
        peer.expect("503")
        peer.line("HELP")
        peer.expect("214")


def test_a_line_too_long_is_not_skipped_into_tls(tls_server: SMTPServer) -> None:
    with dial(tls_server) as peer:
        peer.hello()
        peer.send(b"STARTTLS\r\n" + b"x" * 16_000)
        peer.expect("220")
        peer.start_tls()
        peer.line("NOOP")
        peer.expect("250")


def test_replies_to_a_batch_before_starttls_come_in_the_clear(tls_server: SMTPServer) -> None:
    with dial(tls_server) as peer:
        peer.hello()
        peer.send("NOOP\r\nVRFY x\r\nSTARTTLS\r\nVRFY y\r\n")
        peer.expect("250", "252", "220")
        peer.start_tls()
        peer.line("HELP")
        peer.expect("214")


def test_the_session_begins_anew(tls_server: SMTPServer) -> None:
    sessions: list[Session] = []

    @tls_server.on("tls")
    def tls(session: Session) -> None:
        sessions.append(session)
        facts: list[Any] = [session.greeting, session.hostname, session.identity, session.from_, session.message]
        assert facts == [None] * 5
        assert session.to == []
        assert session.tls

    @tls_server.on("command")
    def authenticate(session: Session, command: Command, ack: Ack) -> None:
        if command.verb == "AUTH":
            session.identity = cast(Any, "somebody")
            ack.replace(235, "2.7.0 welcome")

    with dial(tls_server) as peer:
        peer.hello("evil.example")
        peer.line("AUTH X", "MAIL FROM:<evil@example.net>", "RCPT TO:<victim@example.com>", "STARTTLS")
        peer.expect("235", "250", "250", "220")
        peer.start_tls()
        peer.converse("""
            C: RCPT TO:<victim@example.com>
            S: 503
            C: DATA
            S: 503
            C: MAIL FROM:<a@example.org>
            S: 503
            C: EHLO good.example
            S: 250
            C: DATA
            S: 503
            C: MAIL FROM:<a@example.org>
            S: 250
        """)
        assert sessions[0].hostname == "good.example"
        assert sessions[0].identity is None
        assert sessions[0].to == []


def test_starttls_is_not_offered_and_not_taken_inside_tls(tls_server: SMTPServer) -> None:
    with dial(tls_server) as peer:
        assert "STARTTLS" in peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.start_tls()
        peer.line("EHLO client.example", "STARTTLS")
        assert "STARTTLS" not in peer.expect("250")
        peer.expect("503")
        peer.line("NOOP")
        peer.expect("250")


def test_starttls_is_not_taken_under_implicit_tls(smtp_server: MakeServer, certificate: Certificate) -> None:
    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    with dial(server) as peer:
        peer.start_tls()
        assert "STARTTLS" not in peer.hello()
        peer.line("STARTTLS")
        peer.expect("502")


@pytest.mark.parametrize("line", ["STARTTLS now", "STARTTLS TLSv1"])
def test_starttls_takes_no_argument(tls_server: SMTPServer, line: str) -> None:
    with dial(tls_server) as peer:
        peer.hello()
        peer.line(line, "NOOP")
        peer.expect("501", "250")


def test_starttls_is_refused_before_a_greeting_and_within_chunks(tls_server: SMTPServer) -> None:
    tls_server.on("message", lambda session, stream, ack: ack.accept())
    with dial(tls_server) as peer:
        peer.expect("220")
        peer.line("STARTTLS", "EHLO client.example")
        peer.expect("503", "250")
        peer.envelope()
        peer.send("BDAT 2\r\nhiSTARTTLS\r\nBDAT 0 LAST\r\n")
        peer.expect("250", "503", "250 2.0.0")


NO_HANDSHAKES = [
    b"EHLO client.example\r\n",
    b"MAIL FROM:<evil@example.net>\r\n" * 20,
    b"\x16\x03\x01\x00\x05hello",
    b"\x16\x03\x01\xff\xff" + b"\0" * 100,
    b"\x80\x2e\x01\x00\x02",
    b"\0" * 512,
]


@pytest.mark.parametrize("octets", NO_HANDSHAKES, ids=lambda octets: repr(octets[:12]))
def test_a_failed_handshake_closes_and_is_worth_a_debug_line(
    tls_server: SMTPServer, caplog: pytest.LogCaptureFixture, octets: bytes
) -> None:
    caplog.set_level(logging.DEBUG, logger="greensmtp")
    watch = Watch(tls_server)
    with dial(tls_server) as peer:
        peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        peer.send(octets)
        peer.half_close()
        # Perhaps a TLS alert, but never a reply in the clear.
        assert b"250" not in peer.rest()
        assert watch.over.wait(5)
    assert watch.reasons == ["tls"]
    assert watch.senders == []
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


@pytest.mark.parametrize("implicit", [False, True], ids=["STARTTLS", "implicit"])
def test_a_peer_that_vanishes_before_the_handshake_is_worth_a_debug_line(
    smtp_server: MakeServer, certificate: Certificate, caplog: pytest.LogCaptureFixture, implicit: bool
) -> None:
    caplog.set_level(logging.DEBUG, logger="greensmtp")
    server = smtp_server(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=implicit)
    for leave in (Peer.close, Peer.reset, Peer.half_close):
        watch = Watch(server)
        peer = dial(server)
        if not implicit:
            peer.hello()
            peer.line("STARTTLS")
            peer.expect("220")
        leave(peer)
        assert watch.over.wait(5)
        peer.close()
        assert watch.reasons == ["tls"]
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


def test_a_handshake_below_tls_1_2_fails(tls_server: SMTPServer) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with dial(tls_server) as peer:
        peer.hello()
        peer.line("STARTTLS")
        peer.expect("220")
        with pytest.raises(OSError, match=r"(?i)ssl|tls|alert|eof|reset"):
            peer.start_tls(context)


def test_a_middleware_that_refuses_starttls_keeps_the_connection_in_the_clear(
    smtp_server: MakeServer, certificate: Certificate
) -> None:
    def not_now(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(454, "4.7.0 not now") if command.verb == "STARTTLS" else reply

    server = smtp_server(start=False, certfile=certificate.certfile, keyfile=certificate.keyfile, middleware=[not_now])
    with dial(server) as peer:
        peer.hello()
        peer.line("STARTTLS", "NOOP", "STARTTLS", "NOOP")
        peer.expect("454", "250", "454", "250")
