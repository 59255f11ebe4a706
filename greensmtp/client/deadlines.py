"""The deadline of one client connection, enforced by a single timer.

At most one greenlet waits on a connection at a time, so one deadline is enough. Starting a wait assigns two attributes;
it does not start a timer. The timer is not moved when the deadline moves: if it fires early, it is started
again, and if no wait is in progress, it stays off. So a timer is started about once per timeout, not once per wait.
"""

from __future__ import annotations

import ssl
from math import inf
from time import monotonic
from typing import Any

from gevent import get_hub, getcurrent
from gevent.hub import Hub
from greenlet import greenlet as Greenlet

from greensmtp.errors import Disconnected


class DeadlineExpired(BaseException):
    """Thrown from the hub into the waiting greenlet. Not an Exception, so that no ``except Exception`` swallows it."""


class DeadlineTimer:
    """The deadline of one connection, and the greenlet that it applies to."""

    __slots__ = ("_deadline", "_fires_at", "_hub", "_timer", "greenlet")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._deadline = inf
        self._fires_at = inf
        self._timer: Any = None
        #: The greenlet that is waiting; None if no wait is in progress.
        self.greenlet: Greenlet | None = None

    def set(self, seconds: float) -> None:
        """Start a wait of the current greenlet, of at most ``seconds``.

        :raises RuntimeError: another greenlet is waiting, or this is another native thread.
        """
        if self.greenlet is not None or get_hub() is not self._hub:
            raise in_use_error(self._hub)
        self.greenlet = getcurrent()
        self._deadline = deadline = monotonic() + seconds
        if deadline < self._fires_at:
            self._start(seconds)

    def extend(self, seconds: float) -> None:
        """Set the deadline of the current wait to ``seconds`` from now."""
        self._deadline = deadline = monotonic() + seconds
        if deadline < self._fires_at:
            self._start(seconds)

    def clear(self) -> None:
        """End the wait."""
        self.greenlet = None

    def interrupt(self, greenlet: Greenlet, error: BaseException | None = None) -> None:
        """Throw an error into the greenlet, if it is still waiting. Call this in the hub only."""
        if self.greenlet is greenlet:
            greenlet.throw(error or Disconnected("shutdown"))

    def close(self) -> None:
        """Release the timer. Closing twice is harmless."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _start(self, seconds: float) -> None:
        self.close()
        self._fires_at = monotonic() + seconds
        # ref=False: an idle connection must not keep the event loop running.
        self._timer = self._hub.loop.timer(seconds, ref=False)
        # update=True: the loop's clock does not advance while greenlets run.
        self._timer.start(self._on_timer, update=True)

    def _on_timer(self) -> None:
        self._fires_at = inf
        greenlet = self.greenlet
        if greenlet is None:
            return
        left = self._deadline - monotonic()
        if left > 0:
            self._start(left)
        else:
            greenlet.throw(DeadlineExpired())


def in_use_error(hub: Hub) -> RuntimeError:
    """Return the error for a second greenlet, or for a native thread other than the connection's own."""
    if get_hub() is not hub:
        return RuntimeError(
            "this connection belongs to the native thread that made it: connect() in each thread, or use a Pool"
        )
    return RuntimeError("this connection is in use by another greenlet: use one connection for each, or a Pool")


def is_callers_timeout(error: BaseException) -> bool:
    """True if a caller's timeout threw this OSError rather than the operating system.

    ``gevent.Timeout(5, TimeoutError)`` throws a TimeoutError, which is an OSError, but has no errno.
    """
    return isinstance(error, OSError) and error.errno is None and not isinstance(error, ssl.SSLError)
