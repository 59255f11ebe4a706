"""Where to listen: checks, and sockets on addresses and unix paths."""

from __future__ import annotations

import socket as native
import stat
from pathlib import Path
from typing import Any

from gevent import socket

from greensmtp._hostport import is_port, is_unix_path, split


def check_listener(listener: Any) -> None:
    """Raise TypeError or ValueError unless it names a place to listen: gevent finds out late, and names nothing."""
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


def listen(address: Any, backlog: int, family: int) -> Any:
    """A listening socket at this address, or unix path. What a dead server left at a path is replaced; nothing else is.

    (gevent's own leaves a socket that cannot be bound to the garbage collector.)

    :raises OSError: the address cannot be had; the text names it.
    """
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            _remove_stale(address)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror or error}: {address!r}") from error
    return listener


def send_at_once(listener: Any) -> None:
    """Have the connections that are accepted here send what they are given at once (TCP_NODELAY).

    Every reply is sent in one piece, so that there is nothing to gather; and behind what a handshake of TLS 1.3 sends
    last, Nagle's algorithm would hold the next reply back until the peer's delayed acknowledgement, 40 ms later.
    """
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        try:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # those it accepts inherit it
        except OSError:
            pass  # a listener of the caller's, and of another protocol


def _remove_stale(path: str) -> None:
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        return  # bind refuses it
    with native.socket(native.AF_UNIX, native.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError:
            pass  # alive, only busy
