"""Where a client connects to, and the connected socket."""

from __future__ import annotations

import socket as stdlib_socket
import ssl
from collections.abc import Mapping
from typing import Any

from gevent import Timeout, socket
from gevent import ssl as gevent_ssl

from greensmtp.deadlines import Timeouts, is_foreign
from greensmtp.errors import CannotConnect, ProtocolError
from greensmtp.protocol import command_lines

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
    name = path if path is not None else f"[{host}]:{port}" if ":" in (host or "") else f"{host}:{port}"
    late = Timeout(seconds)
    try:
        # An own deadline, for all addresses together, name look-up included.
        with late:
            if path is not None:
                return _connected(socket.AF_UNIX, 0, path, None)
            places = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
            for number, (family, _, protocol, _, address) in enumerate(places, 1):
                try:
                    sock = _connected(family, protocol, address, source_address)
                except OSError as error:
                    if number == len(places) or is_foreign(error):
                        raise
                    continue
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            raise CannotConnect(f"cannot connect to {name}: it has no address")
    except Timeout as expired:
        if expired is not late:
            raise
        raise CannotConnect(f"cannot connect to {name}: no answer within {seconds:g} s") from None
    except (OSError, UnicodeError) as error:
        if isinstance(error, CannotConnect) or is_foreign(error):
            raise
        raise CannotConnect(f"cannot connect to {name}: {getattr(error, 'strerror', None) or error}") from error


def _connected(family: int, protocol: int, address: Any, source_address: tuple[str, int] | None) -> Any:
    """One attempt. (``create_connection`` leaves the socket open when a greenlet is killed in it.)"""
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        sock.settimeout(None)
        if source_address is not None:
            sock.bind(source_address)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
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


def own_name(sock: Any) -> str:
    """RFC 5321 section 4.1.4: a name with a domain, or an address literal. No look-up: that could take long."""
    name = socket.gethostname()
    if "." in name and name.isascii() and name.isprintable() and " " not in name:
        return str(name)
    address = sock.getsockname()
    if isinstance(address, tuple) and address:
        host = address[0].partition("%")[0]
        return f"[IPv6:{host}]" if ":" in host else f"[{host}]"
    return "localhost"


def check_name(name: str, what: str) -> str:
    """Give it back: what EHLO can say.

    :raises ProtocolError: it is empty, or has a space or a control character in it.
    """
    if not command_lines.check(name, what) or " " in name:
        raise ProtocolError(f"{what} is a host name or an address literal, not {name!r}")
    return name


def check_port(port: Any) -> int:
    """Give it back.

    :raises ValueError: it is none.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"port is 1 to 65535, not {port!r}")
    return int(port)
