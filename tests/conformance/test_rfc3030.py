"""RFC 3030 (CHUNKING, BINARYMIME) as the server keeps it. See docs/conformance/rfc3030.md."""

from __future__ import annotations

import pytest

from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import accepting, chunk, collect_bodies


def test_a_chunk_behind_the_last_one_gets_503_and_its_bytes_are_dropped(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    bodies = collect_bodies(server)
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.send(chunk(b"Subject: x\r\n", last=True) + chunk(b"QUIT\r\n", last=True) + b"NOOP\r\n")
        peer.expect("250", "503 5.5.1", "250")
    assert bodies == [b"Subject: x\r\n"]


def test_a_failed_chunk_ends_the_transaction_and_rset_follows(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    server.on("message", lambda session, stream, ack: ack.reject(554, "5.6.0 not this one"))
    with dial(server) as peer:
        peer.hello()
        peer.envelope()
        peer.send(chunk(b"QUIT\r\n") + chunk(b"QUIT\r\n", last=True) + b"RSET\r\n")
        peer.expect("554 5.6.0", "503 5.5.1", "250")
        peer.envelope()


def test_binarymime_needs_bdat(smtp_server: MakeServer) -> None:
    with dial(accepting(smtp_server)) as peer:
        peer.hello()
        peer.envelope("jo@example.org> BODY=BINARYMIME")
        peer.line("DATA")
        peer.expect("503 5.5.1")


@pytest.mark.parametrize("body", ["7BIT", "8BITMIME"])
def test_a_binary_part_in_a_message_that_is_not_announced_so_is_accepted(smtp_server: MakeServer, body: str) -> None:
    content = b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: binary\r\n\r\n\x00\xff\r\n"
    server = smtp_server(start=False)
    bodies = collect_bodies(server)
    with dial(server) as peer:
        peer.hello()
        peer.envelope(f"jo@example.org> BODY={body}")
        peer.send(chunk(content, last=True))
        peer.expect("250")
    assert bodies == [content]
