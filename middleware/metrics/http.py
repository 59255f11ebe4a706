"""``/metrics`` over HTTP by gevent's pywsgi, open while a server uses it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from http.client import HTTPException
from typing import Any, ClassVar

from gevent import get_hub, socket

from greensmtp._hostport import address
from greensmtp.errors import ArgumentError
from greensmtp.thread_pool import in_thread_pool

logger = logging.getLogger("greensmtp")

#: Seconds that a connection may last, with any number of scrapes: pywsgi itself has no timeout.
CONNECTION_SECONDS = 15.0

#: Open connections; more wait to be accepted.
MAX_CONNECTIONS = 10

#: With several processes, prometheus-client keeps every value in files of the folder that this variable names.
SEVERAL_PROCESSES = "PROMETHEUS_MULTIPROC_DIR"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def parse_address(listen: object) -> tuple[str, int]:
    """``"127.0.0.1:9100"``, ``"[::1]:9100"`` or ``("127.0.0.1", 9100)``.

    :raises ValueError: it is something else; the text says what it takes.
    """
    found = address(listen)
    if found is None:
        raise ArgumentError("listen", f'takes "host:port" or (host, port), like "127.0.0.1:9100", not {listen!r}')
    return found


class MetricsServer:
    """One HTTP listener for one registry. It is open from the first ``use`` to the last ``leave``."""

    #: The open ones. Two servers in one process share one if their stacks have the same ``listen`` and registry.
    _open: ClassVar[dict[tuple[Any, ...], MetricsServer]] = {}

    def __init__(self, key: tuple[Any, ...], registry: Any, host: str, port: int) -> None:
        self._key = key
        self._users: set[object] = set()
        self._server = _listen(_app(registry), host, port)
        #: The address that it listens at: ``("127.0.0.1", 9100)``.
        self.address: tuple[str, int] = self._server.address[:2]

    @classmethod
    def use(cls, user: object, registry: Any, host: str, port: int) -> MetricsServer:
        """Return the listener at this address, opened if it is not open.

        :raises OSError: the address cannot be bound; the text names it.
        """
        # A hub belongs to a thread, and so do its listeners. Port 0 is a different port each time.
        key = (get_hub(), id(registry), host, port or user)
        server = cls._open.get(key)
        if server is None:
            server = cls._open[key] = cls(key, registry, host, port)
        server._users.add(user)
        return server

    def leave(self, user: object) -> None:
        """Stop using the listener; the last user closes it."""
        self._users.discard(user)
        if not self._users and self._open.pop(self._key, None) is not None:
            self._server.stop(timeout=0)


def _listen(app: App, host: str, port: int) -> Any:
    from gevent.pywsgi import WSGIHandler, WSGIServer

    class Handler(WSGIHandler):
        """A handler that prints nothing when a request is malformed."""

        def read_request(self, raw_requestline: str) -> Any:
            try:
                return super().read_request(raw_requestline)
            except HTTPException as error:  # too many headers; pywsgi prints a traceback unless it is a ValueError
                raise ValueError(str(error)) from error

    class Server(WSGIServer):
        """A server that closes each connection after CONNECTION_SECONDS."""

        def handle(self, sock: Any, address: Any) -> None:
            timer = get_hub().loop.timer(CONNECTION_SECONDS)
            timer.start(_hang_up, sock)
            try:
                super().handle(sock, address)
            finally:
                timer.stop()
                timer.close()

    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if SEVERAL_PROCESSES in os.environ:
            # Each process serves the numbers of all, so any of them may answer.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(16)
        # SERVER_NAME is given, since pywsgi would ask the DNS for it.
        server = Server(
            listener,
            app,
            log=None,
            error_log=None,
            handler_class=Handler,
            spawn=MAX_CONNECTIONS,
            environ={"SERVER_NAME": "localhost"},
        )
        server.start()
    except Exception as error:
        listener.close()
        if not isinstance(error, OSError):
            raise  # the host is not a valid name
        raise OSError(error.errno, f"{error.strerror} for the metrics, port {port} of {host}") from error
    return server


def _hang_up(sock: Any) -> None:
    """Shut the connection down. Runs in the hub; a greenlet that reads or writes sees the end of the connection."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _app(registry: Any) -> App:
    from prometheus_client import CollectorRegistry, make_wsgi_app, multiprocess

    several = SEVERAL_PROCESSES in os.environ
    if several:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    metrics = make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"The metrics are at /metrics\n"]
        started: list[Any] = []
        try:
            if several:  # files are read
                body = in_thread_pool(metrics, environ, lambda *answer: started.append(answer))
            else:
                body = metrics(environ, lambda *answer: started.append(answer))
        except Exception:
            logger.exception("the metrics cannot be collected; replying 500")
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"See the log for the cause\n"]
        start_response(*started[0])
        return body  # type: ignore[no-any-return]

    return app
