"""Messages for a Maildir, and the files that are in it."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from greensmtp.delivery import Maildir
from greensmtp.testing import Peer


def files(maildir: Maildir) -> list[str]:
    """Return the names of all files, with their folders."""
    return sorted(str(path.relative_to(maildir.path).parent) for path in maildir.path.rglob("*.mx.example.com"))


def begin(peer: Peer) -> None:
    """Begin a message, up to the body."""
    peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA")
    peer.expect("250", "250", "354")


def send(peer: Peer, body: bytes = b"Subject: Tea\r\n") -> str:
    """Send a message; return the last reply."""
    begin(peer)
    peer.send(body + b".\r\n")
    return peer.reply()


def wait_until(so: Callable[[], bool]) -> None:
    """Wait until a condition holds that a thread brings about."""
    with gevent.Timeout(10):
        while not so():
            gevent.sleep(0.005)


def all_is_well(peer: Peer, maildir: Maildir, before: int = 0) -> bool:
    """Check that the same connection delivers one more message."""
    return send(peer).startswith("250 2.0.0 Ok: queued as") and files(maildir) == ["new"] * (before + 1)
