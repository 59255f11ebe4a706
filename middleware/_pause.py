"""Waiting on purpose: one session waits, nobody else does, and a server that shuts down is not kept."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from gevent import sleep
from gevent.socket import wait_read

from greensmtp.session import Session

#: Seconds after which a pause sees that the server shuts down; nothing tells it.
_LOOK = 1.0

#: Seconds that an attempt to authenticate waits for others which are under way, and between two looks at them.
_LONGEST_WAIT = 10.0
_WAIT = 0.1


def pause(session: Session, seconds: float) -> None:
    """Let so many seconds pass, or fewer where the server begins to shut down."""
    deadline = monotonic() + seconds
    while not session.server.draining and (left := deadline - monotonic()) > 0:
        sleep(min(left, _LOOK))


def hears(session: Session, seconds: float) -> bool:
    """Wait until the client sends something, or hangs up; False: it has done neither for so many seconds, or the
    server shuts down."""
    descriptor = session.socket.fileno()
    deadline = monotonic() + seconds
    while not session.server.draining and (left := deadline - monotonic()) > 0:
        try:
            wait_read(descriptor, min(left, _LOOK))
        except TimeoutError:
            continue
        return True
    return False


def waiting(session: Session) -> Callable[[], bool]:
    """Return what waits a little for other attempts to end, and gives False when it has been called for too long, or
    the server shuts down."""
    deadline = monotonic() + _LONGEST_WAIT

    def wait() -> bool:
        if session.server.draining or monotonic() >= deadline:
            return False
        session.flush()
        sleep(_WAIT)
        return True

    return wait
