"""Notices servers whose hub never runs, by one native thread for the process.

``server.start()`` works in any thread, but the connections are accepted by the hub of that thread. Where the thread
never yields to it (a synchronous worker, an asyncio program), the port is open and no client gets a banner. Only
another thread can notice that. It ends once every hub has run or has been reported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import Any

from greensmtp._native import native


class HubWatch:
    """Waits for hubs to run for the first time, and reports those that do not."""

    def __init__(self) -> None:
        self.start_afresh()

    def start_afresh(self) -> None:
        """Forget everything, in a forked process: the thread is not in it, and copied locks may stay locked."""
        #: Re-entrant, since a signal handler may stop a server at any moment.
        self._lock = native("_thread", "RLock")()
        #: Locked, except for the moment in which the thread is to check again.
        self._wake = native("_thread", "allocate_lock")()
        self._wake.acquire()
        #: token -> its deadline, and what is called then
        self._waiting: dict[object, tuple[float, Callable[[], None]]] = {}
        self._is_running = False

    def expect(self, loop: Any, seconds: float, complain: Callable[[], None]) -> Callable[[], None]:
        """Call ``complain`` in a native thread unless this thread's loop runs within ``seconds``.

        :param loop: the loop of the current thread's hub.
        :return: a function that ends the wait.
        """
        token = object()

        def forget() -> None:
            with self._lock:
                if self._waiting.pop(token, None) is not None and not self._waiting:
                    self._check_again()

        with self._lock:
            self._waiting[token] = (monotonic() + seconds, complain)
            if self._is_running:
                self._check_again()
            else:
                # The unpatched function, in a patched process too. The thread does not keep the process alive.
                native("_thread", "start_new_thread")(self._run, ())
                self._is_running = True
        loop.run_callback(forget)
        return forget

    def _check_again(self) -> None:
        if self._wake.locked():
            self._wake.release()

    def _run(self) -> None:
        while True:
            late: list[Callable[[], None]] = []
            with self._lock:
                now = monotonic()
                for token, (deadline, complain) in list(self._waiting.items()):
                    if deadline <= now:
                        del self._waiting[token]
                        late.append(complain)
                if not self._waiting and not late:
                    self._is_running = False
                    return
                seconds = min((deadline - now for deadline, _ in self._waiting.values()), default=0.0)
            for complain in late:
                complain()
            if not late:
                self._wake.acquire(True, seconds)


#: The watch of this process.
hub_watch = HubWatch()
os.register_at_fork(after_in_child=hub_watch.start_afresh)
