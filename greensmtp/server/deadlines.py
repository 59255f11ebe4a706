"""Time-outs: one timer that looks at every connection of a server now and then, instead of one for each wait."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain
from time import monotonic
from typing import Any, Protocol

from greensmtp.server.limits import Limits


class Monitored(Protocol):
    """What a sweep looks at."""

    def check(self, now: float, elapsed: float) -> None:
        """Is it late? Called in the hub, while the greenlet waits for something.

        :param now: on the sweep's clock, in seconds; never 0.
        :param elapsed: seconds since the last sweep, on that clock.
        """


class DeadlineMonitor:
    """Sweeps over a server's conversations, from the first connection to the last.

    Whoever waits is first seen by one sweep and found late by another, so a time-out is late by two intervals at most.
    The sweep's clock stands still while somebody blocks the hub: what has come meanwhile could not be taken, and a
    peer is not late because a handler is slow.
    """

    def __init__(self, conversations: Iterable[Collection[Monitored]], limits: Limits) -> None:
        self._conversations = tuple(conversations)
        #: Often enough that a time-out is late by an eighth of the shortest one at most, and by two seconds.
        self.interval = min(1.0, limits.shortest_timeout / 16, (limits.data_rate_grace or 8.0) / 8)
        self._timer: Any = None
        self._clock = 0.0
        #: When it swept last, on the monotonic clock.
        self._last = 0.0

    def start(self, loop: Any) -> None:
        """Begin, unless it has begun; ``loop`` is that of the thread that serves."""
        if self._timer is not None:
            return
        self._last = monotonic()
        self._timer = loop.timer(self.interval, self.interval)
        self._timer.start(self._sweep)

    def stop(self) -> None:
        """Rest, where there is nobody to look at."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _sweep(self) -> None:
        """Runs in the hub: every connection's greenlet is waiting for something just now."""
        now = monotonic()
        elapsed = min(now - self._last, 2 * self.interval)
        self._last = now
        self._clock += elapsed
        # (A copy: who is found late may leave at once.)
        for conversation in tuple(chain.from_iterable(self._conversations)):
            conversation.check(self._clock, elapsed)
