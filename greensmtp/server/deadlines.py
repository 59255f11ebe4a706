"""Client and handler timeouts, enforced by a single timer.

The rules of this file:

- A server has one timer, which checks all of its connections, at least once a second. A wait has no timer:
  the greenlet notes how long it may take, and ``check`` compares.
- A check runs in the hub, so each greenlet is waiting for something at that moment, and whatever is thrown into it
  arrives exactly there.
- The monitor has its own clock, which stops while something blocks the hub. Input that came meanwhile could
  not be read, so a slow handler must not make its clients time out.

How late: a wait begins between two checks, is first seen by the second one, and is found late by another. So a timeout
is late by two intervals at most, an eighth of the shortest timeout.

Invariant: the timer runs exactly while the server has connections.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import chain
from time import monotonic
from typing import Any, Protocol

from greensmtp.server.limits import Limits


class Monitored(Protocol):
    """A connection, as the monitor sees it."""

    def check(self, now: float, elapsed: float) -> None:
        """End what has taken too long. In the hub, while the connection's greenlet waits for something.

        :param now: the monitor's clock, in seconds; never 0.
        :param elapsed: seconds on that clock since the last check.
        """


class DeadlineMonitor:
    """Checks all connections of a server at intervals.

    :param connections: collections of what is checked; each is read anew at every check.
    :param clock: returns the time in seconds; the monotonic clock by default.
    """

    def __init__(
        self,
        connections: Iterable[Collection[Monitored]],
        limits: Limits,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._connections = tuple(connections)
        #: Seconds between two checks: a sixteenth of the shortest timeout, one second at most.
        self.interval = min(1.0, limits.shortest_timeout / 16, (limits.data_rate_grace or 8.0) / 8)
        self.clock = clock
        self._timer: Any = None
        self._now = 0.0
        #: When ``clock`` was last read.
        self._last = 0.0

    def start(self, loop: Any) -> None:
        """Start the timer if it is not running.

        :param loop: the event loop of the thread that serves.
        """
        if self._timer is not None:
            return
        self._last = self.clock()
        self._timer = loop.timer(self.interval, self.interval)
        self._timer.start(self.tick)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def tick(self) -> None:
        """Check every connection. In the hub; the timer calls it."""
        now = self.clock()
        elapsed = min(now - self._last, 2 * self.interval)  # more than that: the hub was blocked
        self._last = now
        self.advance(elapsed)

    def advance(self, seconds: float) -> None:
        """Move the clock on by so many seconds, and check every connection. In the hub.

        A test calls it through ``loop.run_callback`` instead of waiting: once to have a wait noticed, and once more to
        have it time out.
        """
        self._now += seconds
        # (A copy: a connection that is found late may leave at once.)
        for connection in tuple(chain.from_iterable(self._connections)):
            connection.check(self._now, seconds)
