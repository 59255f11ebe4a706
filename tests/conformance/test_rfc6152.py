"""RFC 6152 (8BITMIME) as the server keeps it. See docs/conformance/rfc6152.md."""

from __future__ import annotations

import pytest

from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests.helpers import collect_bodies


def test_the_line_end_before_the_final_dot_belongs_to_the_content(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False)
    bodies = collect_bodies(server)
    with dial(server) as peer:
        peer.hello()
        for content in (b"x\r\n", b"x\r\n\r\n", b""):
            peer.envelope()
            peer.line("DATA")
            peer.expect("354")
            peer.send(content + b".\r\n")
            peer.expect("250")
    assert bodies == [b"x\r\n", b"x\r\n\r\n", b""]


@pytest.mark.parametrize("parameter", ["", " BODY=7BIT", " BODY=8bitmime"])
def test_bytes_beyond_ascii_that_were_not_announced_are_kept(smtp_server: MakeServer, parameter: str) -> None:
    content = bytes(range(128, 256)) + b"\r\n"
    server = smtp_server(start=False)
    bodies = collect_bodies(server)
    with dial(server) as peer:
        peer.hello()
        peer.envelope(f"jo@example.org>{parameter}")
        peer.line("DATA")
        peer.expect("354")
        peer.send(content + b".\r\n")
        peer.expect("250")
    assert bodies == [content]
