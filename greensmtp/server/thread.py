"""A server in a native thread with its own hub."""

from __future__ import annotations

import atexit
import os
import threading  # noqa: F401  # Python takes the thread that imports it first for the main one, and waits for that at exit
from typing import Any, Generic, Protocol, TypeVar

from gevent import Timeout, get_hub
from gevent.hub import Waiter

from greensmtp._native import native


class Startable(Protocol):
    """A server that can run in a thread."""

    @property
    def started(self) -> bool:
        """True once ``start`` has been called."""

    def start(self) -> None:
        """Listen."""

    def stop(self, timeout: float | None = None) -> None:
        """Drain, and return when all connections are over."""


Server = TypeVar("Server", bound=Startable)

#: Seconds that the process waits at its end for a server that has not been stopped.
EXIT_SECONDS = 5.0

#: Threads whose servers are running.
_running: set[ServerThread[Any]] = set()


class Bell:
    """Set once from any thread; waited for in the hub of the thread that made it."""

    def __init__(self) -> None:
        hub = get_hub()
        self._waiter: Waiter[None] = Waiter(hub)
        self._watcher: Any = hub.loop.async_()
        self._watcher.start(self._waiter.switch, None)

    def ring(self) -> None:
        """Wake the waiting greenlet, now or when it begins to wait."""
        self._watcher.send()

    def wait(self) -> None:
        """Wait for ``ring``; other greenlets of this hub go on."""
        try:
            self._waiter.get()
        finally:
            self.close()

    def close(self) -> None:
        """Close the file descriptor; ``wait`` does so by itself."""
        self._watcher.stop()
        self._watcher.close()


class ServerThread(Generic[Server]):
    """A server in a native thread, for programs that are not gevent's; a context manager that starts and stops it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._error: BaseException | None = None
        self._please_stop: Bell | None = None
        self._stopped: Bell | None = None
        self._timeout: float | None = None
        #: The process in which the thread runs.
        self._pid = 0

    def start(self) -> Server:
        """Start the thread, and return the server when it listens.

        :raises OSError: the address cannot be bound.
        :raises RuntimeError: the server has been started already, here or elsewhere.
        """
        if self._please_stop is not None:
            raise RuntimeError("the server is already running in its thread; call stop() before starting it again")
        if self.server.started:
            raise RuntimeError(
                "the server has already been started; call in_thread().start() instead of server.start()"
            )
        started = Bell()
        # The unpatched function: in a patched process, threading.Thread would be a greenlet.
        try:
            native("_thread", "start_new_thread")(self._run, (started,))
        except BaseException:
            started.close()
            raise
        started.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error
        self._pid = os.getpid()
        _running.add(self)
        return self.server

    def stop(self, timeout: float | None = None) -> None:
        """Call ``server.stop(timeout)`` in the thread, and return when that is over. In a forked child: do nothing."""
        if self._please_stop is None:
            return
        _running.discard(self)
        if self._pid != os.getpid():
            self._please_stop = None
            return
        self._timeout = timeout
        self._stopped = stopped = Bell()
        self._please_stop.ring()
        self._please_stop = None
        stopped.wait()

    def _run(self, started: Bell) -> None:
        hub = get_hub()
        please_stop = Bell()
        try:
            self.server.start()
        except BaseException as error:  # raised again in the thread that called start()
            self._error = error
            please_stop.close()
            hub.destroy(destroy_loop=True)
            started.ring()
            return
        self._please_stop = please_stop
        started.ring()
        try:
            please_stop.wait()
            self.server.stop(self._timeout)
        finally:
            hub.destroy(destroy_loop=True)
            # Last, since the process may end as soon as it is rung, and this hub must be destroyed by then.
            assert self._stopped is not None
            self._stopped.ring()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


@atexit.register
def _stop_at_exit() -> None:
    """Stop the servers that the program has left running, and cut their clients off.

    At its end Python stops other threads wherever they are; a greenlet that is running then crashes or never ends.
    """
    for thread in list(_running):
        with Timeout(EXIT_SECONDS, False):  # type: ignore[arg-type]
            thread.stop(timeout=0.0)
