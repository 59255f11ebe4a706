"""SMTP and LMTP under gunicorn: a worker class, and hooks that put SMTP beside HTTP.

``gunicorn -k greensmtp.server.worker.SMTPWorker -b 0.0.0.0:25 app:server`` serves ``server`` of ``app.py`` in each
worker. The sockets belong to gunicorn's arbiter, so a worker that dies or is replaced closes no port.

In each worker the standard library is patched, as in gunicorn's own gevent worker, before the program is imported.
"""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from functools import reduce
from importlib import import_module
from typing import Any, NamedTuple

import gevent
from gevent import Greenlet, get_hub, joinall, monkey, sleep, socket, spawn
from gevent.event import Event
from gunicorn.workers.base import Worker  # type: ignore[import-untyped]

from greensmtp import _fork_key  # noqa: F401  # in the arbiter, so that all workers have the same
from greensmtp._hostport import address, is_unix_path
from greensmtp._log import logger
from greensmtp.log_writer import reopen_logs
from greensmtp.server.acceptor import Acceptor
from greensmtp.server.listener import listen as open_listener
from greensmtp.server.server import SMTPServer

#: Seconds between two heartbeats. Each also looks whether the arbiter is still there.
HEARTBEAT = 1.0

#: Seconds of ``graceful_timeout`` that are kept for what follows when the timeout of a drain is over.
RESERVE = 2.0

#: What an arbiter sends to workers.
WORKER_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

#: Seconds between two looks whether a worker of HTTP has been told to stop.
LOOK = 0.25


class BaseWorker(Worker):  # type: ignore[misc]  # gunicorn has no types
    """A gunicorn worker with a hub: heartbeats, signals, and the end."""

    sockets: list[Any]

    def init_process(self) -> None:
        """Patch the standard library and give this process a hub of its own; then start."""
        for number in WORKER_SIGNALS:  # the arbiter's handlers would forget the signal; nothing is served yet
            signal.signal(number, signal.SIG_IGN if number == signal.SIGUSR1 else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WORKER_SIGNALS)
        monkey.patch_all()
        gevent.reinit()
        self.stopping = Event()
        super().init_process()

    def init_signals(self) -> None:
        """Handle signals in the hub, except SIGABRT, which comes when the hub is blocked."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # Nothing but the arbiter decides about a reload; in a terminal, SIGINT comes to the whole process group.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGABRT, self.handle_abort)
        handlers = {
            signal.SIGTERM: self.stopping.set,
            signal.SIGQUIT: self.end_at_once,
            signal.SIGINT: self.end_at_once,
            signal.SIGUSR1: self.reopen,
            signal.SIGUSR2: self.retire,
        }
        self.watchers = {number: gevent.signal_handler(number, handler) for number, handler in handlers.items()}

    def end_at_once(self) -> None:
        """End without waiting for a transaction."""
        self.cfg.worker_int(self)
        logging.shutdown()
        os._exit(0)

    def handle_abort(self, number: int, frame: Any) -> None:
        """Log what blocks the hub, and end: gunicorn's timeout is over."""
        where = "".join(traceback.format_stack(frame)).rstrip()
        logger.critical(
            "the hub has been blocked for longer than the timeout; worker %d ends. Its stack:\n%s", self.pid, where
        )
        self.cfg.worker_abort(self)
        logging.shutdown()
        os._exit(1)

    def reopen(self) -> None:
        """Open log files again."""
        self.log.reopen_files()
        reopen_logs()

    def retire(self) -> None:
        """SIGUSR2, which gunicorn's own arbiter does not send."""

    def beat(self) -> None:
        """Tell the arbiter that the hub runs, and drain when the arbiter is gone. In the hub."""
        self.notify()
        if os.getppid() != self.ppid and not self.stopping.is_set():
            logger.error("the arbiter is gone; worker %d drains and ends", self.pid)
            self.stopping.set()

    def run(self) -> None:
        """Serve until SIGTERM, then drain."""
        timer = get_hub().loop.timer(0, HEARTBEAT)
        timer.start(self.beat)
        self.stopping.wait()
        self.drain()

    def drain(self) -> None:
        """Let transactions in progress finish."""
        raise NotImplementedError


class SMTPWorker(BaseWorker):
    """Serves the servers of a program: ``app:server``, where ``server`` is a server, a list of them, or returns them.

    With one server, it accepts on all addresses of gunicorn (``-b``); with several, each has the address of its place.
    The address that a server was made with is not used. SIGTERM drains for ``graceful_timeout``.
    """

    def load_wsgi(self) -> None:
        """Import the program, and start its servers."""
        self.wsgi = read_servers(self.app.app_uri)
        self._servers = _Servers(self.wsgi, self.sockets, shared=self.cfg.workers > 1)

    def drain(self) -> None:
        """Let transactions in progress finish."""
        self._servers.drain(self.cfg.graceful_timeout)


def read_servers(program: str | Callable[[], Any]) -> list[SMTPServer]:
    """Return the servers of a program.

    :param program: ``module:attribute``, or a callable that returns servers.
    :raises TypeError: there is something else.
    """
    found: Any = program
    if isinstance(program, str):
        module, _, name = program.partition(":")
        found = reduce(getattr, (name or "server").split("."), import_module(module))
    try:
        made = found() if callable(found) else found
        servers = [made] if isinstance(made, SMTPServer) else list(made)
        if servers and all(isinstance(each, SMTPServer) for each in servers):
            return servers
    except TypeError as error:  # what takes arguments, such as a WSGI application, or is no list
        logger.debug("%r gives no servers", found, exc_info=error)
    raise TypeError(f"expected an SMTPServer, a list of them, or a callable that returns them; got {found!r}")


class _Servers:
    """The servers of one worker, on sockets that the arbiter has opened.

    :param shared: other processes accept on the same sockets.
    :raises ValueError: the numbers of servers and of addresses differ.
    """

    def __init__(self, servers: list[SMTPServer], listeners: Sequence[Any], *, shared: bool) -> None:
        if len(servers) not in (1, len(listeners)):
            raise ValueError(f"expected one server, or one for each of {len(listeners)} addresses; got {len(servers)}")
        self._servers = servers
        self._acceptors: list[Acceptor] = [*servers]
        for number, listener in enumerate(listeners):
            # A duplicate of the descriptor: the server closes what it has, and the arbiter's goes on.
            own = socket.socket(listener.family, listener.type, fileno=os.dup(listener.fileno()))
            if number < len(servers):
                servers[number].set_listener(own)
            else:
                self._acceptors.append(_Door(servers[0], own))
        for each in self._acceptors:
            if shared:
                each.max_accept = 1  # the next connection is for a process that is not busy
            each.start()

    def drain(self, graceful_timeout: float) -> None:
        """Stop within gunicorn's ``graceful_timeout``, after which the arbiter kills the worker."""
        for each in self._acceptors:
            each.close()
        timeout = max(graceful_timeout - RESERVE, graceful_timeout / 2)
        joinall([spawn(server.stop, timeout) for server in self._servers])


class _Door(Acceptor):
    """One more listening socket of a server."""

    def __init__(self, server: SMTPServer, listener: Any) -> None:
        self._server = server
        super().__init__(listener)

    def do_read(self) -> Any:
        """Accept one connection, unless the server has many that have not begun. In the hub."""
        return None if self._server._registry.is_behind else super().do_read()

    def do_handle(self, socket: Any, peer: Any) -> None:
        """Let the server serve it."""
        self._server.do_handle(socket, peer)


class Hooks(NamedTuple):
    """Hooks of a gunicorn configuration, in the order in which to assign them."""

    on_starting: Callable[[Any], None]
    post_worker_init: Callable[[Any], None]
    worker_exit: Callable[[Any, Any], None]


def beside(program: str | Callable[[], Any], *listen: str | tuple[str, int]) -> Hooks:
    """Return hooks that serve SMTP in the workers of a gunicorn that serves HTTP; for ``gunicorn.conf.py``::

        from greensmtp.server.worker import beside

        worker_class = "gevent"
        on_starting, post_worker_init, worker_exit = beside("mail:server", "0.0.0.0:25")

    The arbiter opens the sockets, and each worker serves on them, in the same hub as HTTP. When a worker is told to
    stop, both drain at the same time, within ``graceful_timeout``.

    :param program: as for SMTPWorker, but imported in each worker only.
    :param listen: where to listen: one or more of ``"host:port"``, ``(host, port)``, or a unix path.
    :raises TypeError, ValueError: an address is wrong.
    """
    if not listen:
        raise TypeError('beside needs an address to listen on, like "0.0.0.0:25"')
    addresses = [_parse(each) for each in listen]
    listeners: list[Any] = []
    running: dict[Any, Greenlet[..., None]] = {}

    def on_starting(arbiter: Any) -> None:
        listeners.extend(open_listener(where, Acceptor.backlog, family) for where, family in addresses)

    def post_worker_init(worker: Any) -> None:
        servers = _Servers(read_servers(program), listeners, shared=worker.cfg.workers > 1)
        running[worker] = spawn(drain_in_the_end, worker, servers)

    def drain_in_the_end(worker: Any, servers: _Servers) -> None:
        while worker.alive:  # gunicorn's own workers look once a second, too
            sleep(LOOK)
        servers.drain(worker.cfg.graceful_timeout)

    def worker_exit(arbiter: Any, worker: Any) -> None:
        if worker in running:  # not a worker that could not start
            worker.alive = False
            running.pop(worker).join()

    return Hooks(on_starting, post_worker_init, worker_exit)


def _parse(listen: object) -> tuple[Any, int]:
    """Return an address as ``bind`` takes it, and its family."""
    if is_unix_path(listen):
        return str(listen), socket.AF_UNIX
    found = address(listen)
    if found is None:
        raise ValueError(f'listen takes "host:port", (host, port), or a unix path, not {listen!r}')
    return found, socket.AF_INET6 if ":" in found[0] else socket.AF_INET
