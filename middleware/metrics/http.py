"""``/metrics`` over HTTP on gevent's pywsgi, open for as long as some server uses it."""

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

#: Seconds that a connection may last, however many scrapes it brings and however slowly: pywsgi itself waits for ever.
CONNECTION_SECONDS = 15.0

#: Connections at once; more wait to be accepted.
MAX_CONNECTIONS = 10

#: In a process with others beside it, prometheus-client keeps every value in files of this folder.
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
    """One HTTP listener for one registry; ``use`` and ``leave`` say for whom it stays open."""

    #: Those that are open. Two servers of one process, each with a stack of its own made from the same
    #: configuration, share one.
    _open: ClassVar[dict[tuple[Any, ...], MetricsServer]] = {}

    def __init__(self, key: tuple[Any, ...], registry: Any, host: str, port: int) -> None:
        self._key = key
        self._users: set[object] = set()
        self._server = _listen(_app(registry), host, port)
        #: Where it listens: ``("127.0.0.1", 9100)``.
        self.address: tuple[str, int] = self._server.address[:2]

    @classmethod
    def use(cls, user: object, registry: Any, host: str, port: int) -> MetricsServer:
        """The listener at this address, opened if need be.

        :raises OSError: the address cannot be had; the text names it.
        """
        # (A hub is a thread's own, and so are its listeners. Port 0 is another one each time.)
        key = (get_hub(), id(registry), host, port or user)
        exposition = cls._open.get(key)
        if exposition is None:
            exposition = cls._open[key] = cls(key, registry, host, port)
        exposition._users.add(user)
        return exposition

    def leave(self, user: object) -> None:
        """The last one closes it."""
        self._users.discard(user)
        if not self._users and self._open.pop(self._key, None) is not None:
            self._server.stop(timeout=0)


def _listen(app: App, host: str, port: int) -> Any:
    from gevent.pywsgi import WSGIHandler, WSGIServer

    class Handler(WSGIHandler):
        """Keeps to itself what is wrong with a request."""

        def read_request(self, raw_requestline: str) -> Any:
            try:
                return super().read_request(raw_requestline)
            except HTTPException as error:  # too many headers; of anything but a ValueError, pywsgi prints a traceback
                raise ValueError(str(error)) from error

    class Server(WSGIServer):
        """Hangs up in time."""

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
            # Each of them tells the numbers of all, so it does not matter which one is asked.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(16)
        # Without a name of ours it would ask the DNS for one.
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
            raise  # a host that is no name at all
        raise OSError(error.errno, f"{error.strerror} for the metrics, port {port} of {host}") from error
    return server


def _hang_up(sock: Any) -> None:
    """In the hub. Whoever reads or writes just now finds the connection over, as if the client had ended it."""
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
        told: list[Any] = []
        try:
            if several:  # files are read
                body = in_thread_pool(metrics, environ, lambda *answer: told.append(answer))
            else:
                body = metrics(environ, lambda *answer: told.append(answer))
        except Exception:
            logger.exception("the metrics cannot be told")
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"The log tells why\n"]
        start_response(*told[0])
        return body  # type: ignore[no-any-return]

    return app
