"""A clock that jumps, when every greenlet waits, to the next moment at which something is due.

trio has the same, called an autojump clock. The deadline monitors of servers run on it, and so does whatever calls its
``sleep``. Other waits are real: those of ``Peer``, ``gevent.sleep``, and threads, for which time flies.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from gevent import get_hub, idle
from gevent.event import Event


class VirtualClock:
    """The seconds, as a callable; also the event loop of a ``DeadlineMonitor``, as far as that uses one.

    Time stands still while any greenlet runs, so how fast the machine is makes no difference.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()
        self._not_empty = Event()

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Wait, while other greenlets run."""
        over = Event()
        self.call_later(seconds, over.set)
        over.wait()

    def block(self, seconds: float) -> None:
        """Let time pass while the hub does not run. Afterwards, it calls what is due before it reads any input."""
        self.now += seconds
        get_hub().loop.run_callback(self._catch_up)

    @contextmanager
    def takes(self, seconds: float) -> Iterator[None]:
        """Assert that a block takes so long, or a little longer: a deadline monitor checks at intervals."""
        began = self.now
        yield
        assert seconds * 0.9 < self.now - began < seconds * 1.3

    def timer(self, after: float, repeat: float) -> Timer:
        """Return a timer that is not started yet."""
        return Timer(self, after, repeat)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call something in the hub once so much time has passed."""
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), callback))
        self._not_empty.set()

    def run(self) -> None:
        """Move the time. In a greenlet of its own, until that is killed."""
        while True:
            self._not_empty.wait()
            # Twice, because this greenlet may continue before greenlets that have just become ready.
            for _ in range(2):
                idle()
            if self._queue:
                self.now = max(self.now, self._queue[0][0])
                get_hub().loop.run_callback(self._catch_up)

    def _catch_up(self) -> None:
        """Call what is due. In the hub."""
        while self._queue and self._queue[0][0] <= self.now:
            heapq.heappop(self._queue)[2]()
        if not self._queue:
            self._not_empty.clear()


class Timer:
    """A repeating timer of the clock."""

    def __init__(self, clock: VirtualClock, after: float, repeat: float) -> None:
        self._clock = clock
        self._after = after
        self._repeat = repeat
        self._callback: Callable[[], object] | None = None

    def start(self, callback: Callable[[], object]) -> None:
        """Call this whenever the time is over."""
        self._callback = callback
        self._clock.call_later(self._after, self._fire)

    def stop(self) -> None:
        """Do not call it any more."""
        self._callback = None

    close = stop

    def _fire(self) -> None:
        if self._callback is not None:
            self._clock.call_later(self._repeat, self._fire)
            self._callback()
