"""Waiting on purpose. Only the session waits, and a server that shuts down is not held up."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from gevent import sleep
from gevent.socket import wait_read

from greensmtp.session import Session

#: Seconds between two checks for a shutdown, which does not interrupt a pause.
_CHECK_INTERVAL = 1.0

#: Seconds that an attempt to authenticate waits for others under way, and seconds between two checks.
_MAX_WAIT = 10.0
_WAIT_INTERVAL = 0.1


def pause(session: Session, seconds: float) -> None:
    """Sleep; return early when the server begins to shut down."""
    deadline = monotonic() + seconds
    while not session.server.draining and (left := deadline - monotonic()) > 0:
        sleep(min(left, _CHECK_INTERVAL))


def wait_readable(session: Session, seconds: float) -> bool:
    """Wait until the client sends something or hangs up.

    :return: False after so many seconds, or when the server shuts down.
    """
    descriptor = session.socket.fileno()
    deadline = monotonic() + seconds
    while not session.server.draining and (left := deadline - monotonic()) > 0:
        try:
            wait_read(descriptor, min(left, _CHECK_INTERVAL))
        except TimeoutError:
            continue
        return True
    return False


def waiting(session: Session) -> Callable[[], bool]:
    """Return a function that waits a little for other attempts to end.

    It returns False once it has been called for ten seconds, or when the server shuts down.
    """
    deadline = monotonic() + _MAX_WAIT

    def wait() -> bool:
        if session.server.draining or monotonic() >= deadline:
            return False
        session.flush()
        sleep(_WAIT_INTERVAL)
        return True

    return wait
