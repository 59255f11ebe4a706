"""RFC 2033 (LMTP) as the server keeps it. See docs/conformance/rfc2033.md."""

from __future__ import annotations

import pytest
from gevent import socket, spawn

from greensmtp import Ack, Address, HelloRefused, Session, connect
from greensmtp.client.dial import PORTS
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import accepting


@pytest.mark.parametrize("verb", ["HELO", "EHLO"])
def test_helo_and_ehlo_get_500_and_change_nothing(smtp_server: MakeServer, verb: str) -> None:
    with dial(accepting(smtp_server, lmtp=True)) as peer:
        peer.converse(f"""
            S: 220 *LMTP
            C: {verb} client.example
            S: 500 5.5.1
            C: MAIL FROM:<jo@example.org>
            S: 503
            C: LHLO client.example
            S: 250
        """)


def test_lhlo_offers_what_the_rfc_requires(smtp_server: MakeServer) -> None:
    with dial(accepting(smtp_server, lmtp=True)) as peer:
        offers = peer.hello(verb="LHLO").split("\n")[1:]
    assert {"PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME"} <= {offer[4:] for offer in offers}


@pytest.mark.parametrize("command", ["DATA", "BDAT 0 LAST"])
def test_a_message_without_a_recipient_gets_one_503(smtp_server: MakeServer, command: str) -> None:
    with dial(accepting(smtp_server, lmtp=True)) as peer:
        peer.converse(f"""
            S: 220
            C: LHLO client.example
            S: 250
            C: MAIL FROM:<jo@example.org>
            S: 250
            C: {command}
            S: 503 5.5.1
            C: NOOP
            S: 250
        """)


def test_each_accepted_rcpt_gets_its_reply_in_order_twice_the_same_too(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, lmtp=True)
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on(
        "to",
        lambda session, address, ack: ack.reject(550) if address.local_part == "no" else ack.accept(),
    )

    @server.on("received")
    def received(session: Session, recipient: Address, ack: Ack) -> None:
        ack.accept(250, f"2.1.5 {recipient}")

    with dial(server) as peer:
        peer.converse("""
            S: 220
            C: LHLO client.example
            S: 250
            C: MAIL FROM:<jo@example.org>
            S: 250
            C: RCPT TO:<ann@example.com>
            S: 250
            C: RCPT TO:<no@example.com>
            S: 550
            C: RCPT TO:<bob@example.com>
            S: 250
            C: RCPT TO:<ann@example.com>
            S: 250
            C: DATA
            S: 354
            C: .
            S: 250 2.1.5 ann@example.com
            S: 250 2.1.5 bob@example.com
            S: 250 2.1.5 ann@example.com
            C: NOOP
            S: 250
        """)


def test_only_the_last_chunk_has_a_reply_for_each_recipient(smtp_server: MakeServer) -> None:
    with dial(accepting(smtp_server, lmtp=True)) as peer:
        peer.hello(verb="LHLO")
        peer.envelope(to=["ann@example.com", "bob@example.com"])
        peer.send("BDAT 3\r\nabcBDAT 2 LAST\r\n\r\nNOOP\r\n")
        peer.expect("250 2.0.0 3 octets", "250", "250", "250")
        peer.expect_nothing()


def test_the_client_does_not_fall_back_to_helo() -> None:
    ours, theirs = socket.socketpair()

    def refuse() -> list[bytes]:
        with theirs:
            theirs.sendall(b"220 mx.example.com LMTP\r\n")
            heard = theirs.recv(1000)
            theirs.sendall(b"500 5.5.1 what?\r\n")
            return [heard, theirs.recv(1000)]

    server = spawn(refuse)
    with connect(stream=ours, lmtp=True, timeout=10) as mail, pytest.raises(HelloRefused, match="LHLO"):
        mail.begin()
    assert [line.split()[0] for line in server.get(timeout=10)] == [b"LHLO", b"QUIT"]


def test_the_clients_default_port_is_not_25() -> None:
    assert PORTS["lmtp"] not in (25, 0)
