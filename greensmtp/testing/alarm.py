"""Alarms: one native thread wakes another, or a greenlet in it."""

from __future__ import annotations

from typing import Any

from gevent import with_timeout
from gevent._hub_local import get_hub_if_exists
from gevent.hub import Waiter

from greensmtp._native import native

#: The longest wait, in seconds: a lock cannot wait much longer.
_LONGEST = 1e6


class Alarm:
    """Wakes a thread without a hub. The sink's thread calls ``ring`` under its lock, which also guards ``close``."""

    def __init__(self) -> None:
        self._rung: Any = native("_thread", "allocate_lock")()
        self._rung.acquire()

    def ring(self) -> None:
        if self._rung.locked():
            self._rung.release()

    def wait(self, seconds: float) -> None:
        """Wait until ``ring`` is called, or the time is over."""
        self._rung.acquire(timeout=min(seconds, _LONGEST))

    def close(self) -> None:
        """Free the resources; ``ring`` is not called after this."""


class GreenletAlarm(Alarm):
    """Wakes a greenlet in a thread with a hub; other greenlets run meanwhile."""

    def __init__(self, hub: Any) -> None:
        self._waiter: Waiter[None] = Waiter(hub)
        self._watcher = hub.loop.async_()
        self._watcher.start(self._waiter.switch, None)

    def ring(self) -> None:
        self._watcher.send()

    def wait(self, seconds: float) -> None:
        with_timeout(min(seconds, _LONGEST), self._waiter.get, timeout_value=None)

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()


def make_alarm() -> Alarm:
    """Return an alarm for the current thread."""
    hub = get_hub_if_exists()
    return Alarm() if hub is None else GreenletAlarm(hub)
