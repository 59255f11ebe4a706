"""The lock of counts that several native threads share: servers may run in several, and the thread pool has some."""

from __future__ import annotations

from threading import Lock

from gevent.monkey import get_original


def native_lock() -> Lock:
    """Return an unpatched lock. Never hold it across a switch of greenlets: the thread would stop."""
    lock: Lock = get_original("_thread", "allocate_lock")()
    return lock
