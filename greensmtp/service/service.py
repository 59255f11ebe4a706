"""A service: the servers of a configuration, which can be reloaded while clients are connected.

Each reload creates a *generation* of servers on the same listening sockets. The connections of the previous one keep
their configuration until they end or ``reload_grace`` is over; then they drain, as at a stop. The listening sockets
are never closed in between, so no client is refused.

Rules of this file:

- A reload that fails changes nothing: the former servers go on, with their own limits.
- If a server cannot start, the StartError names the place in the configuration.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gevent import Greenlet, joinall, spawn

from greensmtp import _notify, health
from greensmtp._hostport import address
from greensmtp._log import logger
from greensmtp.chain.chain import Middleware
from greensmtp.chain.start import start_each
from greensmtp.config.build import Assembled, ConfiguredServer, assemble
from greensmtp.config.load import Loaded
from greensmtp.config.problems import ConfigError
from greensmtp.config.urls import Listen
from greensmtp.http_listener import HTTPListener
from greensmtp.log_writer import reopen_logs
from greensmtp.plugins.discovery import FAILURES, describe_error
from greensmtp.server.server import SMTPServer
from greensmtp.service.errors import StartError
from greensmtp.service.sockets import Key, Sockets, keys_of
from greensmtp.signals import handler_name


@dataclass(slots=True, eq=False)
class _Generation:
    """The servers of one version of the configuration."""

    assembled: Assembled
    keys: list[Key]
    http: HTTPListener | None = None

    @property
    def loaded(self) -> Loaded:
        return self.assembled.loaded

    @property
    def servers(self) -> list[SMTPServer]:
        return [each.server for each in self.assembled.serving]

    def release(self) -> None:
        """Undo side effects that outlive the servers."""
        self.assembled.release()
        if self.http is not None:
            self.http.leave(self)


class Service:
    """The servers of one process.

    :param load: reads the configuration; called at the start and at each reload.
    :param sockets: listening sockets that are already open.
    :param outermost: middleware to put in front of every stack; the same objects in each generation.
    :param http: a listening socket for ``[http]``, if another process has opened it.
    :param accept: called with a configuration once it is accepted, to set up logging.
    """

    def __init__(
        self,
        load: Callable[[], Loaded],
        *,
        sockets: Sockets | None = None,
        outermost: Iterable[Middleware] = (),
        http: Any = None,
        accept: Callable[[Loaded], object] = lambda loaded: None,
    ) -> None:
        self._load = load
        self.sockets = Sockets() if sockets is None else sockets
        self._outermost = tuple(outermost)
        self._http = http
        self._accept = accept
        self._current: _Generation | None = None
        #: The replaced generations, and the greenlets that wait for their connections.
        self._replaced: dict[int, tuple[_Generation, Greenlet[..., Any]]] = {}
        self._is_stopping = False

    @property
    def loaded(self) -> Loaded:
        """The current configuration.

        :raises RuntimeError: the service has not started.
        """
        return self._generation().loaded

    @property
    def serving(self) -> list[ConfiguredServer]:
        """The servers that accept connections, with their places in the configuration."""
        return [] if self._current is None else self._current.assembled.serving

    @property
    def servers(self) -> list[SMTPServer]:
        """The servers that accept connections."""
        return [each.server for each in self.serving]

    @property
    def all_servers(self) -> list[SMTPServer]:
        """The servers, including replaced ones that still have connections."""
        return [server for each, _ in self._replaced.values() for server in each.servers] + self.servers

    @property
    def draining(self) -> bool:
        """True once ``stop`` has been called."""
        return self._is_stopping

    def _generation(self) -> _Generation:
        if self._current is None:
            raise RuntimeError("the service has not started")
        return self._current

    # Start

    def bind(self, loaded: Loaded) -> None:
        """Open the listening sockets of a configuration before ``start``, while the process still runs as root.

        :raises StartError: an address cannot be bound.
        """
        self._open(loaded)

    def start(self, loaded: Loaded | None = None) -> None:
        """Start the servers.

        :param loaded: the configuration, if it has been read.
        :raises ConfigError: the configuration is wrong.
        :raises StartError: a server cannot start.
        """
        loaded = self._load() if loaded is None else loaded
        self._is_stopping = False
        health.remove("draining")
        try:
            self._accept(loaded)
            self._current = self._begin(loaded, None)
        except BaseException:
            self.sockets.close()
            joinall([greenlet for _, greenlet in self._replaced.values()])
            raise
        self.sockets.warn_of_unused()

    def _open(self, loaded: Loaded) -> list[tuple[Key, Any]]:
        """Open the socket of each listener."""
        listeners = loaded.config.listeners
        addresses = [Listen.parse(each.url).address for each in listeners]
        opened = []
        for number, (key, listener) in enumerate(zip(keys_of(addresses), listeners, strict=True)):
            try:
                opened.append((key, self.sockets.open(key, listener.backlog)))
            except OSError as error:
                raise StartError(_cannot_listen(error, loaded, number)) from error
        return opened

    def _begin(self, loaded: Loaded, before: _Generation | None) -> _Generation:
        """Start the servers of a configuration. If one fails, those that have started are stopped."""
        assembled = assemble(loaded, self._outermost, previous=None if before is None else before.assembled)
        generation = _Generation(assembled, [])
        old = {} if before is None else dict(zip(before.keys, before.servers, strict=True))
        replaced: list[tuple[SMTPServer, SMTPServer]] = []
        try:
            generation.http = self._open_http(loaded, generation, before)
            opened = self._open(loaded)
            for each, (key, socket) in zip(assembled.serving, opened, strict=True):
                generation.keys.append(key)
                server = each.server
                server.stop_timeout = loaded.config.service.stop_timeout
                # A duplicate of the descriptor: the server closes its own, and the socket stays open.
                try:
                    server.set_listener(socket.dup())
                except OSError as error:  # out of descriptors
                    raise StartError(_cannot_listen(error, loaded, len(generation.keys) - 1)) from error
                if key in old:
                    server.replace(old[key])
                    replaced.append((old[key], server))
                try:
                    server.start()
                except FAILURES as error:
                    logger.debug("cannot start", exc_info=error)
                    raise StartError(_explain(error, each, loaded)) from error
                if before is not None and key not in old:
                    logger.info("listening on %s", each.listen.url(server.address))
        except BaseException:
            for former, server in replaced:
                former.replace(server)
            # Connections that they have already accepted are served.
            self._let_go(generation, loaded.config.service.reload_grace if before else 0.0)
            raise
        return generation

    def _open_http(self, loaded: Loaded, generation: _Generation, before: _Generation | None) -> HTTPListener | None:
        """Serve health, and the metrics if there are any, at the address of ``[http]``."""
        where = address(loaded.config.http.listen)
        if where is None:
            return None
        if before is not None and before.http is not None and loaded.config.http == before.loaded.config.http:
            where = (where[0], before.http.address[1])  # keep the port that was chosen for port 0
        routes = dict(health.ROUTES)
        if any(entry.use == "Metrics" for _, stack in loaded.config.stacks() for entry in stack):
            from prometheus_client import REGISTRY

            from greensmtp.middleware.metrics.http import metrics_app

            routes["/metrics"] = metrics_app(REGISTRY)
        try:
            return HTTPListener.use(generation, *where, routes, listener=self._http)
        except OSError as error:
            raise StartError(f"{loaded.source.place(('http', 'listen'))}: {error.strerror}") from error

    @property
    def http_address(self) -> tuple[str, int] | None:
        """The address of health and metrics, with the real port; None if they are not served."""
        http = None if self._current is None else self._current.http
        return None if http is None else http.address

    # Reload

    def reload(self) -> bool:
        """Read the configuration again, and serve it from now on. Log files are reopened in any case.

        If it is invalid, the errors are logged, and the old configuration stays in use.

        :return: True if the new configuration is served.
        """
        before = self._generation()
        if self._is_stopping:
            return False
        reopen_logs()
        _notify.reloading()
        try:
            return self._reload(before)
        finally:
            self.tell_ready()

    def _reload(self, before: _Generation) -> bool:
        try:
            loaded = self._load()
            generation = self._begin(loaded, before)
        except (ConfigError, StartError) as error:
            lines = error.lines if isinstance(error, ConfigError) else [str(error)]
            for line in lines:
                logger.error("%s", line)
            logger.error("the configuration was not reloaded; the one before is still served")
            self.sockets.keep(before.keys)
            return False
        except Exception:
            logger.exception("the configuration was not reloaded; the one before is still served")
            self.sockets.keep(before.keys)
            return False
        self._current = generation
        self.sockets.keep(generation.keys)
        self._let_go(before, loaded.config.service.reload_grace)
        if loaded.config.logging != before.loaded.config.logging:
            try:
                self._accept(loaded)
            except ConfigError as error:
                logger.error("cannot change the log, keeping the old one: %s", "; ".join(error.lines))
            except Exception:
                logger.exception("cannot change the log, keeping the old one")
        logger.info("configuration reloaded")
        return True

    def _let_go(self, generation: _Generation, grace: float) -> None:
        """Stop accepting in a generation, and wait for its connections in a greenlet."""
        for server in generation.servers:
            server.close()

        def end() -> None:
            try:
                joinall([spawn(server.stop, grace=grace) for server in generation.servers])
            finally:
                generation.release()
                self._replaced.pop(id(generation), None)

        self._replaced[id(generation)] = (generation, spawn(end))

    # Stop

    def retire(self) -> None:
        """Stop listening, and let the connections go on for ``reload_grace``; then drain. For a replaced worker."""
        generation = self._generation()
        if generation.http is not None:  # other workers serve HTTP
            generation.http.leave(generation)
        self._let_go(generation, generation.loaded.config.service.reload_grace)
        self._current = None
        self.sockets.close()
        joinall([greenlet for _, greenlet in self._replaced.values()])

    def stop(self, timeout: float | None = None) -> None:
        """Stop listening, let transactions in progress finish, and return when all connections have ended.

        :param timeout: seconds; None: ``stop_timeout`` of the configuration.
        """
        self._is_stopping = True
        health.add("draining", lambda: "the server is stopping")
        servers = self.all_servers
        for server in servers:
            server.close()
        self.sockets.close()
        joinall([spawn(server.stop, timeout) for server in servers])
        if self._current is not None:
            self._current.release()
            self._current = None
        joinall([greenlet for _, greenlet in self._replaced.values()])

    def tell_ready(self) -> None:
        """Tell the service manager that the service is up."""
        _notify.ready("listening on " + ", ".join(each.url for each in self.loaded.config.listeners))


def _cannot_listen(error: OSError, loaded: Loaded, number: int) -> str:
    url = Listen.parse(loaded.config.listeners[number].url).url()
    # Without the address after the colon, since the URL already has it.
    reason = (error.strerror or str(error)).partition(":")[0]
    return f"{loaded.source.place(('listeners', number, 'url'))}: cannot listen on {url}: {reason}"


def _explain(error: BaseException, failed: ConfiguredServer, loaded: Loaded) -> str:
    """Return in one line why a server did not start: in most cases, because of one of its middleware."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is start_each.__code__:
            middleware = frame.f_locals["each"]
            places = (f"{loaded.source.place(path)}: {use}" for path, use, made in failed.stack if made is middleware)
            # What a plugin has added has no place, and neither has the middleware that starts deliveries.
            notes = [each for each in getattr(error, "__notes__", ()) if each.startswith("delivery ")]
            place = next(places, notes[0] if notes else f"middleware {handler_name(middleware)}")
            return f"{place}: cannot start: {describe_error(error)}"
    return f"{loaded.source.place(failed.path)}: cannot start: {describe_error(error)}"
