"""Close the connections of a native thread, and destroy its hub, when the thread ends.

gevent does not destroy the hub: its two descriptors and its thread pool would stay. A web server that starts a thread
for each request (Flask's and Django's development servers) would run out of descriptors after 500 messages.

Python ends daemon threads at any point when the process exits; in the middle of ``destroy``, that crashes the process.
So the exit waits for threads that are destroying their hubs, and other threads then do not destroy theirs.
"""

from __future__ import annotations

import atexit
import os
from typing import Any, Protocol
from weakref import WeakSet, finalize

from gevent import get_hub
from gevent.hub import Hub, set_hub  # type: ignore[attr-defined]  # (the stubs lack it)

from greensmtp._native import native

#: Seconds that the exit of the process waits for each hub that is being destroyed.
EXIT_SECONDS = 1.0


class _Endpoint(Protocol):
    def abandon(self, why: str, /) -> None: ...


class _ThreadEnd:
    """A thread-local variable, which is garbage-collected when its native thread ends."""

    def __init__(self) -> None:
        self.endpoints: WeakSet[_Endpoint] = WeakSet()


_this_thread = native("threading", "local")()
#: A lock for each hub that is being destroyed, held until it is.
_ending: set[Any] = set()
_exiting = False


def endpoints_of_this_thread() -> WeakSet[_Endpoint]:
    """Return the connections to close at the end of this native thread. From now on, its hub is destroyed then, too.

    The hub of the main thread is kept.
    """
    end: _ThreadEnd | None = getattr(_this_thread, "end", None)
    if end is None:
        _this_thread.end = end = _ThreadEnd()
        hub = get_hub()
        if not hub.loop.default:
            finalize(end, _end, hub, end.endpoints).atexit = False
    return end.endpoints


def _end(hub: Hub, endpoints: WeakSet[_Endpoint]) -> None:
    # The connections come first: closing a socket would make a new hub.
    for endpoint in list(endpoints):
        endpoint.abandon("the end of its native thread")
    lock = native("_thread", "allocate_lock")()
    with lock:
        _ending.add(lock)
        # The thread's owner may have destroyed it: gevent does so in the threads of its pools.
        if not _exiting and hub.loop is not None:
            set_hub(hub)  # gevent's own variable of this thread may be gone; destroy() would make another hub then
            hub.destroy(destroy_loop=True)
        _ending.discard(lock)


@atexit.register
def _wait_for_ending() -> None:
    global _exiting  # noqa: PLW0603 - the process is one
    _exiting = True
    for lock in list(_ending):
        lock.acquire(timeout=EXIT_SECONDS)


os.register_at_fork(after_in_child=_ending.clear)
