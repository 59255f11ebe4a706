"""``greensmtp.run``: serve until SIGINT or SIGTERM, then drain. And the signals of a process that serves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from gevent import get_hub, joinall, signal_handler, spawn, wait
from gevent.baseserver import BaseServer
from gevent.event import Event

from greensmtp import _notify
from greensmtp._log import logger


class GeventServer(Protocol):
    """Any gevent server. (Their base class is generic, which means nothing here.)"""

    def start(self) -> None: ...
    def stop(self, timeout: float | None = ...) -> None: ...


Server = TypeVar("Server", bound=GeventServer)


def run(*servers: Server, started: Callable[[Server], object] | None = None) -> None:
    """Start the servers, serve until SIGINT or SIGTERM, let transactions in progress finish, and return.

    Each server gets its own ``stop_timeout`` seconds to drain, all at the same time. A second SIGINT or SIGTERM ends
    the process at once, with exit status 1. SIGHUP is ignored and logged, since there is nothing to reload. If systemd
    has started the process with ``Type=notify``, it is told when the servers are ready, and when they drain.
    ``run`` also returns when every server has been stopped some other way. It restores the signal handlers that it
    has replaced.

    :param servers: any gevent servers; one that has already been started goes on.
    :param started: called with each server once it listens: the place to print its address.
    :raises RuntimeError: this is not the main thread; Python handles signals only there.
    :raises OSError: an address cannot be bound. Whatever ``start`` raises, the servers that have started are stopped
        first.
    """
    for server in servers:
        if not isinstance(server, BaseServer):
            raise TypeError(f"run takes servers as separate arguments, not {server!r}")
    if not servers:
        raise TypeError("run needs at least one server")
    if started is not None and not callable(started):
        raise TypeError(f"started must be callable with a server, not {started!r}")
    stopping = Event()
    running: list[Server] = []
    with signals_handled(stopping), notifications_retried():
        try:
            for server in dict.fromkeys(servers):
                server.start()
                running.append(server)
                if started is not None:
                    started(server)
            _notify.ready("serving")
            wait_for_stop(stopping, running)
        finally:
            _notify.stopping()
            joinall([spawn(server.stop) for server in running])


@contextmanager
def notifications_retried() -> Iterator[None]:
    """Retry notifications that systemd's full socket did not take, while the block runs."""
    if not _notify.is_managed():
        yield
        return
    timer = get_hub().loop.timer(_notify.RETRY_SECONDS, repeat=_notify.RETRY_SECONDS)
    timer.start(_notify.retry)
    try:
        yield
    finally:
        timer.stop()
        timer.close()


def wait_for_stop(stopping: Event, servers: Sequence[GeventServer]) -> None:
    """Wait for the event, or until every server has been stopped by other means."""

    def wait_for_each() -> None:
        for server in servers:
            waiting: Any = server
            waiting._stop_event.wait()  # what gevent's own serve_forever waits for

    all_stopped = spawn(wait_for_each)
    either: list[Any] = [stopping, all_stopped]
    try:
        wait(either, count=1)
    finally:
        all_stopped.kill()


def _check_thread() -> None:
    try:
        # Python allows this call in the main thread only. Thread identifiers cannot tell: in a patched process they
        # are those of greenlets, and after a fork they are stale.
        signal.set_wakeup_fd(signal.set_wakeup_fd(-1))
    except ValueError:
        raise RuntimeError(
            "greensmtp.run handles signals, so call it in the main thread; in another thread use "
            "server.serve_forever(), or server.in_thread() from the main one"
        ) from None


def _ignore_hangup() -> None:
    logger.warning("SIGHUP ignored: the configuration cannot be reloaded; restart the server to apply changes")


@contextmanager
def signals_handled(
    stopping: Event, hangup: Callable[[], object] = _ignore_hangup, *, before_end: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Have SIGINT and SIGTERM set the event, and the second of them end the process with status 1.

    :param hangup: called in the hub at SIGHUP, unless the process was started to ignore it, as ``nohup`` does.
    :param before_end: called before the second signal ends the process.
    :raises RuntimeError: this is not the main thread.
    """
    _check_thread()

    def stop() -> None:
        if stopping.is_set():
            before_end()
            os._exit(1)
        stopping.set()

    wanted: dict[int, Callable[[], object]] = {signal.SIGINT: stop, signal.SIGTERM: stop}
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (*wanted, signal.SIGHUP)}
    if before[signal.SIGHUP] is not signal.SIG_IGN:  # nohup has set this; leave it
        wanted[signal.SIGHUP] = hangup
    # gevent's function rather than signal.signal, since it wakes a waiting loop.
    watchers = [(number, signal_handler(number, handler)) for number, handler in wanted.items()]
    try:
        yield
    finally:
        for number, watcher in watchers:
            watcher.cancel()
            if before[number] is not None:  # None: not set by Python, so Python cannot put it back
                signal.signal(number, before[number])
