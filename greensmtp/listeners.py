"""Listening on a unix path; gevent does the rest."""

from __future__ import annotations

import socket as native
import stat
from pathlib import Path
from typing import Any

from gevent import socket


def is_unix_path(listener: Any) -> bool:
    """A str (or Path) that begins with ``.`` or ``/`` names a unix socket."""
    return isinstance(listener, Path) or (isinstance(listener, str) and listener.startswith(("/", ".")))


def check_listener(listener: Any) -> None:
    """Raise TypeError or ValueError unless it names a place to listen: gevent finds out late, and names nothing."""
    if hasattr(listener, "accept") or is_unix_path(listener):
        return
    port: Any = None
    if isinstance(listener, str):
        port = listener.rpartition(":")[2]
        port = int(port) if port.isascii() and port.isdigit() else None
    elif isinstance(listener, tuple) and len(listener) in (2, 4) and isinstance(listener[0], str):
        port = listener[1]
    elif isinstance(listener, int):
        port = listener
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        kind = ValueError if isinstance(listener, str | tuple) else TypeError
        raise kind(
            f'listener takes (host, port), "host:port", a listening socket, or a unix path that begins with / or ., '
            f"not {listener!r}"
        )


def listen_unix(path: str, backlog: int) -> Any:
    """A listening socket at this path. What a dead server left there is replaced; nothing else is.

    :raises OSError: a live server listens there already, or the path is something else than a socket.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(path)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror}: {path!r}") from error
    return listener


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
