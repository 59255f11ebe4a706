"""What several test files say or build: base64, AUTH PLAIN, chunks, the beginning of DATA, servers that accept."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

from greensmtp import Ack, MessageStream, Session, SMTPServer
from greensmtp.testing import Peer

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer


def b64(text: str | bytes) -> str:
    """Encode text, or bytes, in base64."""
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def auth_plain(name: str, password: str) -> str:
    """Return the AUTH PLAIN command with its initial response (RFC 4616)."""
    return f"AUTH PLAIN {b64(f'{chr(0)}{name}{chr(0)}{password}')}"


def chunk(body: bytes, *, last: bool = False) -> bytes:
    """Return a BDAT command with its bytes (RFC 3030)."""
    return b"BDAT %d%s\r\n" % (len(body), b" LAST" if last else b"") + body


def begin_data(peer: Peer) -> None:
    """Say hello, an envelope and DATA; the body may follow."""
    peer.hello()
    peer.envelope()
    peer.line("DATA")
    peer.expect("354")


def accepting(smtp_server: MakeServer, *middleware: Any, **options: Any) -> SMTPServer:
    """Make a server that accepts every message and reads none; ``dial`` reaches it over a socket pair."""
    server = smtp_server(start=False, middleware=middleware, **options)
    server.on("message", lambda session, stream, ack: ack.accept())
    return server


def collect_bodies(server: SMTPServer) -> list[bytes]:
    """Accept every message; the list fills with their bodies."""
    bodies: list[bytes] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        bodies.append(stream.read())

    return bodies
