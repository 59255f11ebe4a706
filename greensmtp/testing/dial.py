"""Connect a ``Peer`` to a server, with or without a network."""

from __future__ import annotations

from gevent import Timeout, socket

from greensmtp.server.server import SMTPServer
from greensmtp.testing.peer import TIMEOUT, DialogueError, Peer


def dial(server: SMTPServer, *, source: tuple[str, int] | None = None, timeout: float = TIMEOUT) -> Peer:
    """Connect to a server: over its listener if it has started, else over a socket pair without a network.

    :param source: the client address that the session sees, such as ``("192.0.2.1", 4711)``; with it, a socket pair is
        used in any case.
    """
    if source is not None or not server.started:
        ours, theirs = socket.socketpair()
        server.adopt(theirs, source or "")
        return Peer(ours, timeout=timeout)
    address = server.address
    if not isinstance(address, tuple):
        family = socket.AF_UNIX
    else:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    with Timeout(timeout, DialogueError(f"timed out after {timeout} s: connecting to {address!r}")):
        sock.connect(address)
    return Peer(sock, timeout=timeout)
