"""Where a server listens: checks, and sockets on addresses and unix paths."""

from __future__ import annotations

import socket as native
import stat
from pathlib import Path
from typing import Any

from gevent import socket

from greensmtp._hostport import is_port, is_unix_path, split


def check_listener(listener: Any) -> None:
    """Check an argument early, since gevent finds an error late and does not name it.

    :raises TypeError, ValueError: it names no place to listen.
    """
    if hasattr(listener, "accept") or is_unix_path(listener):
        return
    port: Any = None
    if isinstance(listener, str):
        try:
            port = split(listener if ":" in listener else f":{listener}")[1]
        except ValueError:
            pass
    elif isinstance(listener, tuple) and len(listener) in (2, 4) and isinstance(listener[0], str):
        port = listener[1]
    elif isinstance(listener, int):
        port = listener
    if not is_port(port):
        kind = ValueError if isinstance(listener, str | tuple) else TypeError
        raise kind(
            f'listener takes (host, port), "host:port", a listening socket, or a unix path that begins with / or ., '
            f"not {listener!r}"
        )


def listen(address: Any, backlog: int, family: int, *, reuse_port: bool = False) -> Any:
    """Return a listening socket on an address or a unix path.

    A socket that a dead server left at a path is replaced; nothing else is. (gevent's own function leaves a socket that
    cannot be bound to the garbage collector.)

    :param reuse_port: set SO_REUSEPORT: other processes of this user may bind the same port.
    :raises OSError: the address cannot be bound; the text names it.
    """
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            _remove_stale(address)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror or error}: {address!r}") from error
    return listener


def disable_nagle(listener: Any) -> None:
    """Set TCP_NODELAY for the connections that are accepted here.

    Every reply is sent in one piece, so there is nothing to gather. After the last flight of a TLS 1.3 handshake,
    Nagle's algorithm would hold the next reply back until the client's delayed acknowledgement, 40 ms later.
    """
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        try:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # those it accepts inherit it
        except OSError:
            pass  # a listening socket of the caller's, of another protocol


def _remove_stale(path: str) -> None:
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        return  # bind raises
    with native.socket(native.AF_UNIX, native.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError:
            pass  # alive but busy
