"""Clients of other protocols that an attacker points at the server: closed at once, and nothing is executed."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
from gevent.event import Event

from greensmtp import Ack, Address, Session
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.attacks.conftest import Play, PlayCut

MAIL = (
    b"EHLO evil.example\r\nMAIL FROM:<evil@example.net>\r\nRCPT TO:<victim@example.com>\r\n"
    b"DATA\r\nSubject: from a browser\r\n\r\nHello.\r\n.\r\nQUIT\r\n"
)
HEADERS = b"Host: mx.example.com:25\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(MAIL)

REQUEST_LINES = [
    b"GET / HTTP/1.1",
    b"POST / HTTP/1.1",
    b"POST / HTTP/1.0",
    b"POST /",
    b"post / http/1.1",
    b"HEAD / HTTP/1.1",
    b"PUT /x HTTP/1.1",
    b"DELETE /x HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"TRACE / HTTP/1.1",
    b"PATCH / HTTP/1.1",
    b"CONNECT mx.example.com:25 HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"PROPFIND /dav HTTP/1.1",
    b"WHATEVER http://mx.example.com/ HTTP/1.1",
    b"NOOP / HTTP/1.1",
    b"HELP / HTTP/1.1",
    b"VRFY / HTTP/1.1",
    b"RSET / HTTP/1.1",
    b"EHLO / HTTP/1.1",
    b"GET /" + b"a" * 600 + b" HTTP/1.1",
    b"POST /?" + b"a" * 5_000 + b" HTTP/1.1",
    b"POST /?" + b"a" * 100_000 + b" HTTP/1.1",
    b"PROPFIND /" + b"a" * 600 + b" HTTP/1.1",
    b"GET /\xc3\xa9 HTTP/1.1",
    b"GET /\xff\x01 HTTP/1.1",
]


@pytest.mark.parametrize("newline", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize("line", REQUEST_LINES, ids=lambda line: repr(line[:30]))
def test_an_http_request_is_closed_at_its_first_line(play: Play, line: bytes, newline: bytes) -> None:
    for before, codes in [(b"", [220]), (b"EHLO x\r\n", [220, 250])]:
        outcome = play(before + line + newline + HEADERS.replace(b"\r\n", newline) + MAIL)
        assert outcome.codes == [*codes, 421], before
        assert outcome.senders == []
        assert outcome.messages == []


@pytest.mark.parametrize("line", [b"POST / HTTP/1.1", b"POST /" + b"a" * 600 + b" HTTP/1.1", b"NOOP / HTTP/1.1"])
def test_no_cut_makes_an_http_request_pass(play_cut: PlayCut, line: bytes) -> None:
    outcome = play_cut(line + b"\r\n" + HEADERS + MAIL, stop=len(line) + 20, step=3)
    assert outcome.codes == [220, 421]
    assert outcome.senders == []


def test_the_reason_is_told_to_those_who_listen(smtp_server: MakeServer) -> None:
    server = smtp_server()
    over = Event()
    reasons: list[str] = []

    @server.on("disconnect")
    def disconnect(session: Session, reason: str) -> None:
        reasons.append(reason)
        over.set()

    for line in ("GET / HTTP/1.1", "GET /" + "a" * 600 + " HTTP/1.1", "GET / HTTP/1.1\nHost: x"):
        over.clear()
        with dial(server) as peer:
            peer.expect("220")
            peer.line(line)
            peer.expect("421 4.7.0")
            peer.expect_end()
            peer.close()
            assert over.wait(5)
    assert reasons == ["foreign"] * 3


def client_hello(context: ssl.SSLContext) -> bytes:
    """Return the first bytes of a real TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="mx.example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_a_tls_hello_on_a_plain_port_is_closed(play: Play) -> None:
    context = ssl.create_default_context()
    for _ in range(20):  # each has random bytes, sometimes newlines among them
        hello = client_hello(context)
        for at in ([], [3], [len(hello) // 2]):
            outcome = play(hello + b"\r\n" + MAIL, at=at)
            assert outcome.codes == [220, 421]
            assert outcome.senders == []


@pytest.mark.parametrize("newlines", [b"", b"\n", b"\r\n", b"\n\n\r\n"], ids=repr)
def test_a_tls_hello_is_closed_at_once_whatever_is_in_it(smtp_server: MakeServer, newlines: bytes) -> None:
    with dial(smtp_server(start=False)) as peer:
        peer.expect("220")
        peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"r" * 16 + newlines + b"r" * 16)
        peer.expect("421 4.7.0")
        peer.expect_end()


@pytest.mark.parametrize(
    "octets",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 25\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),
        b"XCLIENT ADDR=192.0.2.1 LOGIN=root\r\n",
        b"XFORWARD ADDR=192.0.2.1\r\n",
    ],
    ids=lambda octets: repr(octets[:12]),
)
def test_an_unknown_client_cannot_claim_another_identity(smtp_server: MakeServer, octets: bytes) -> None:
    server = smtp_server(start=False)
    peers: list[object] = []

    @server.on("to")
    def recipient(session: Session, address: Address, ack: Ack) -> None:
        peers.append((session.peer, session.identity))
        ack.accept()

    with dial(server, source=("198.51.100.7", 4711)) as peer:
        peer.expect("220")
        peer.send(octets + b"\r\n")
        peer.line("EHLO x", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "QUIT")
        peer.half_close()
        codes = [line[:3] for line in peer.rest().decode().splitlines()]
    assert codes[0] in ("500", "502")
    assert codes[-1] == "221"
    assert peers == [(("198.51.100.7", 4711), None)]


@pytest.mark.parametrize(
    "octets",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"* OK [CAPABILITY IMAP4rev1] ready\r\n",
        b"+OK POP3 ready\r\n",
        b"USER anonymous\r\nPASS x\r\n",
        b"RTSP/1.0 200 OK\r\n",
        b"\0\0\0\x2f\xff\x53\x4d\x42\x72",
        b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\1\0\x08\0\3\0\0\0",
        b"*1\r\n$4\r\nINFO\r\n",
        b"\x80\x2e\x01\x03\x01" + bytes(40),
        bytes(range(256)) * 4 + b"\r\n",
    ],
    ids=lambda octets: repr(octets[:12]),
)
def test_whatever_else_speaks_gets_errors_and_is_not_heard(play: Play, octets: bytes) -> None:
    outcome = play(octets)
    assert set(outcome.codes[1:]) <= {500, 421}


def test_a_client_of_another_protocol_that_goes_on_sending_gets_its_reply(smtp_server: MakeServer) -> None:
    """Closing a socket with unread input sends a reset, which can overtake the 421."""
    with dial(smtp_server()) as peer:
        peer.send(b"POST / HTTP/1.1\r\n" + HEADERS + b"x" * 300_000)
        peer.half_close()
        assert everything(peer).endswith(b"the input is not SMTP\r\n")


def everything(peer: Peer) -> bytes:
    pieces = []
    while piece := peer.socket.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)
