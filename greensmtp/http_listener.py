"""A small HTTP listener for operators: metrics and health, by gevent's pywsgi. It is open while it has users.

Rules of this file, so that slow clients do not block ``/readyz`` for the others:

- The headers of a request must arrive within ``HEADER_SECONDS``; a connection lasts ``CONNECTION_SECONDS`` at most.
- Beyond ``MAX_CONNECTIONS``, a new connection closes the oldest one that waits for a request, or else the oldest one. A
  normal client sends its request at once, so it rarely waits.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from typing import Any, ClassVar

from gevent import get_hub, socket

#: Seconds that a connection may last, with any number of requests: pywsgi itself has no timeout.
CONNECTION_SECONDS = 15.0

#: Timeout of a request's headers in seconds, from the start of the connection or the end of the previous response.
HEADER_SECONDS = 3.0

#: Maximum number of open connections; one more closes the oldest.
MAX_CONNECTIONS = 10

#: Maximum number of greenlets: of open connections, and of closed ones whose checks still run. Further connections wait
#: to be accepted.
MAX_GREENLETS = 30

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class HTTPListener:
    """One address. It is open from the first ``use`` to the last ``leave``; each user brings paths of its own.

    There is no password: every client that can connect may read.
    """

    #: The open ones. A hub belongs to a thread, and so do its listeners.
    _open: ClassVar[dict[tuple[Any, ...], HTTPListener]] = {}

    def __init__(self, host: str, port: int, *, reuse_port: bool, listener: Any) -> None:
        #: user -> path -> what answers
        self._users: dict[object, Mapping[str, App]] = {}
        self._server = _serve(
            self._answer, open_socket(host, port, reuse_port=reuse_port) if listener is None else listener
        )
        #: The address that it listens at: ``("127.0.0.1", 9100)``.
        self.address: tuple[str, int] = self._server.address[:2]
        self._key = (get_hub(), host, self.address[1])

    @classmethod
    def use(
        cls,
        user: object,
        host: str,
        port: int,
        routes: Mapping[str, App],
        *,
        reuse_port: bool = False,
        listener: Any = None,
    ) -> HTTPListener:
        """Return the listener at this address, opened if it is not open, with these routes.

        :param user: any object; the same one for ``leave``.
        :param reuse_port: set SO_REUSEPORT, so that several processes can answer at one address.
        :param listener: a listening socket that is there already.
        :raises OSError: the address cannot be bound, or another user answers differently at one of the paths.
        """
        found = cls._open.get((get_hub(), host, port))
        if found is None:
            found = cls(host, port, reuse_port=reuse_port, listener=listener)
            cls._open[found._key] = found
        for path, app in routes.items():
            if found._find(path) not in (None, app):
                raise OSError(errno.EADDRINUSE, f"something else is served at http://{host}:{port}{path}")
        found._users[user] = routes
        return found

    def leave(self, user: object) -> None:
        """Stop using the listener; the last user closes it."""
        self._users.pop(user, None)
        if not self._users and self._open.pop(self._key, None) is not None:
            self._server.stop(timeout=0)

    def _find(self, path: str) -> App | None:
        return next((routes[path] for routes in self._users.values() if path in routes), None)

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        app = self._find(environ["PATH_INFO"])
        if app is not None:
            return app(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        paths = sorted({path for routes in self._users.values() for path in routes})
        return [f"There is {', '.join(paths)}\n".encode()]


def open_socket(host: str, port: int, *, reuse_port: bool = False) -> Any:
    """Return a listening socket.

    :raises OSError: the address cannot be bound; the text names it.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(16)
    except Exception as error:
        listener.close()
        if not isinstance(error, OSError):
            raise  # the host is not a valid name
        raise OSError(error.errno, f"{error.strerror} for HTTP, port {port} of {host}") from error
    return listener


class _Connections:
    """The open connections of a listener, oldest first."""

    def __init__(self) -> None:
        #: Socket -> the timer of its request's headers; None while a request is being handled.
        self._open: dict[Any, Any] = {}

    def add(self, sock: Any) -> None:
        """Add a connection. If there are too many, close the oldest that waits for a request, or else the oldest."""
        if len(self._open) >= MAX_CONNECTIONS:
            oldest = next((each for each, timer in self._open.items() if timer is not None), next(iter(self._open)))
            self.remove(oldest)
            _hang_up(oldest)
        self._open[sock] = None

    def expect_request(self, sock: Any) -> None:
        """Close a connection unless ``handle_request`` is called in time."""
        if sock in self._open:
            timer = self._open[sock] = get_hub().loop.timer(HEADER_SECONDS)
            timer.start(_hang_up, sock)

    def handle_request(self, sock: Any) -> None:
        """Note that the headers of a request have arrived."""
        timer = self._open.get(sock)
        if timer is not None:
            self._open[sock] = None
            timer.stop()
            timer.close()

    def remove(self, sock: Any) -> None:
        """Forget a connection."""
        self.handle_request(sock)
        self._open.pop(sock, None)


def _serve(app: App, listener: Any) -> Any:
    from gevent.pywsgi import WSGIHandler, WSGIServer

    connections = _Connections()

    class Handler(WSGIHandler):
        """A handler that prints nothing when a request is malformed, and waits for its headers for a limited time."""

        def handle_one_request(self) -> Any:
            connections.expect_request(self.socket)
            return super().handle_one_request()

        def handle_one_response(self) -> None:
            connections.handle_request(self.socket)
            super().handle_one_response()

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
            connections.add(sock)
            try:
                super().handle(sock, address)
            finally:
                connections.remove(sock)
                timer.stop()
                timer.close()

    # SERVER_NAME is given, since pywsgi would ask the DNS for it.
    server = Server(
        listener,
        app,
        log=None,
        error_log=None,
        handler_class=Handler,
        spawn=MAX_GREENLETS,
        environ={"SERVER_NAME": "localhost"},
    )
    server.start()
    return server


def _hang_up(sock: Any) -> None:
    """Shut the connection down. Runs in the hub; a greenlet that reads or writes sees the end of the connection."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
