"""Where a client connects to, and the connected socket."""

from __future__ import annotations

import socket as stdlib_socket
import ssl
from collections.abc import Mapping
from typing import Any

from gevent import Timeout, socket
from gevent import ssl as gevent_ssl

from greensmtp.errors import CannotConnect
from greensmtp.wire import Timeouts

#: Implicit TLS (RFC 8314), LMTP's customary port, and everybody else's.
PORTS = {"smtps": 465, "lmtp": 24, "smtp": 25}


def sort_out(where: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Tell ``connect``'s positional arguments apart by their type, and put them among its keywords.

    :raises TypeError: one is of no type that we know, or says what another one says.
    """
    sorted_out = {name: value for name, value in options.items() if value is not None}
    for argument in where:
        for name, value in _named(argument).items():
            if name in sorted_out:
                raise TypeError(f"connect got two values for {name}: {sorted_out[name]!r} and {value!r}")
            if name not in options:
                raise TypeError(f"connect has no option {name!r} (it has: {', '.join(options)})")
            sorted_out[name] = value
    return sorted_out


def _named(argument: Any) -> Mapping[str, Any]:
    if isinstance(argument, str):
        return {"path" if argument.startswith((".", "/")) else "host": argument}
    if isinstance(argument, int) and not isinstance(argument, bool):
        return {"port": argument}
    if isinstance(argument, tuple) and len(argument) >= 2:
        return {"host": argument[0], "port": argument[1]}
    if isinstance(argument, ssl.SSLContext):
        return {"ssl_context": argument}
    if isinstance(argument, Timeouts):
        return {"timeout": argument}
    if isinstance(argument, Mapping):
        return argument
    if hasattr(argument, "recv") and hasattr(argument, "send"):
        return {"stream": argument}
    if callable(argument):
        return {"on_secure": argument}
    raise TypeError(
        "connect takes a host name, a port, a unix path (it begins with . or /), a connected socket, an SSLContext, "
        f"Timeouts, a handler for secure, or a mapping of options, not {argument!r}"
    )


def dial(
    host: str | None, port: int | None, path: str | None, source_address: tuple[str, int] | None, seconds: float
) -> Any:
    """A connected gevent socket.

    :raises CannotConnect: there is nobody, or not in time.
    """
    name = path if path is not None else f"{host}:{port}"
    sock: Any = None
    late = Timeout(seconds)
    try:
        with late:
            if path is not None:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.connect(path)
            else:
                # An own deadline, for all addresses together, name look-up included.
                sock = socket.create_connection((host, port), timeout=None, source_address=source_address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except Timeout as expired:
        if sock is not None:
            sock.close()
        if expired is not late:
            raise
        raise CannotConnect(f"cannot connect to {name}: no answer within {seconds:g} s") from None
    except (OSError, UnicodeError) as error:
        if sock is not None:
            sock.close()
        raise CannotConnect(f"cannot connect to {name}: {getattr(error, 'strerror', None) or error}") from error
    return sock


def adopt(stream: Any) -> Any:
    """The caller's connected socket, as a gevent socket; a socket of the standard library's is taken over.

    :raises TypeError: that cannot be.
    """
    if isinstance(stream, (socket.socket, gevent_ssl.SSLSocket)):
        return stream
    if isinstance(stream, ssl.SSLSocket):
        raise TypeError("stream= takes gevent's SSLSocket: the standard library's would block the hub")
    if isinstance(stream, stdlib_socket.socket):
        family, kind, number = stream.family, stream.type, stream.proto
        return socket.socket(family, kind, number, fileno=stream.detach())
    raise TypeError(f"stream= takes a connected socket, not {stream!r}")
