"""A server in a native thread with a hub of its own."""

from __future__ import annotations

import atexit
import os
import threading  # noqa: F401  # Python takes the thread that imports it first for the main one, and waits for that at exit
from typing import Any, Generic, Protocol, TypeVar

from gevent import Timeout, get_hub
from gevent.hub import Waiter

from greensmtp._native import native

#: Seconds that the end of the process waits for a server that has not been stopped.
EXIT_SECONDS = 5.0

#: Those whose servers run.
_running: set[ServerThread[Any]] = set()


class Bell:
    """Rung once from any thread; heard in the hub of the thread that made it."""

    def __init__(self) -> None:
        hub = get_hub()
        self._waiter: Waiter[None] = Waiter(hub)
        self._watcher: Any = hub.loop.async_()
        self._watcher.start(self._waiter.switch, None)

    def ring(self) -> None:
        """Wake who waits, or will."""
        self._watcher.send()

    def wait(self) -> None:
        """Wait for it; other greenlets of this hub go on."""
        try:
            self._waiter.get()
        finally:
            self.close()

    def close(self) -> None:
        """Give its descriptor back, where it is not waited for."""
        self._watcher.stop()
        self._watcher.close()


class Startable(Protocol):
    """What can run in a thread: an ``SMTPServer``."""

    @property
    def started(self) -> bool:
        """True if it listens."""

    def start(self) -> None:
        """Listen."""

    def stop(self, timeout: float | None = None) -> None:
        """Stop listening, and let connections end for so many seconds."""


Server = TypeVar("Server", bound=Startable)


class ServerThread(Generic[Server]):
    """A server in a native thread, for programs that are not gevent's; a context manager that starts and stops it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._error: BaseException | None = None
        self._please_stop: Bell | None = None
        self._stopped: Bell | None = None
        self._timeout: float | None = None
        #: The process that has the thread.
        self._pid = 0

    def start(self) -> Server:
        """Start, and return when the server listens.

        :raises OSError: the address cannot be bound.
        :raises RuntimeError: the server has been started already, here or elsewhere.
        """
        if self._please_stop is not None:
            raise RuntimeError("this server runs in its thread already")
        if self.server.started:
            raise RuntimeError(
                "this server has been started in another thread: call in_thread().start() instead of server.start()"
            )
        started = Bell()
        # The real thing, in a patched process too, where threading.Thread would be a greenlet.
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
        """``server.stop(timeout)`` in its thread; return when that is over. A forked child has no such thread."""
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
        except BaseException as error:  # it is raised again in the thread that called start()
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
            # Last of all: the process may end as soon as it is heard, and must not find this hub half undone.
            assert self._stopped is not None
            self._stopped.ring()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


@atexit.register
def _stop_at_exit() -> None:
    """Stop the servers that the program has left running, and cut their clients off.

    Python ends by ending other threads wherever they are. In the middle of a greenlet that crashes, or never ends.
    """
    for thread in list(_running):
        with Timeout(EXIT_SECONDS, False):  # type: ignore[arg-type]
            thread.stop(timeout=0.0)
