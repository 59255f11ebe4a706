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
