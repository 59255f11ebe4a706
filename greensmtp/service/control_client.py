"""The client of control sockets: send a request to all processes of a server, and merge their lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from select import select
from time import monotonic
from typing import Any

from greensmtp.service.control_folder import connect_each

#: Maximum length in bytes of a line from a server.
MAX_LINE = 1024 * 1024


class ControlClient:
    """Connections to all processes that have a socket in some folders.

    :param request: the request to each of them.
    :raises PermissionError: the sockets belong to another user.
    """

    def __init__(self, folders: Iterable[Path], request: dict[str, Any]) -> None:
        #: The IDs of the connected processes, in the order in which they were found.
        self.pids: list[int] = []
        self._folders = [*folders]
        self._request = json.dumps(request).encode() + b"\n"
        self._connections: dict[Any, tuple[int, bytearray]] = {}
        self.find_more()

    def find_more(self) -> None:
        """Connect to new processes."""
        for pid, connection in connect_each(self._folders, self.pids):
            try:
                connection.sendall(self._request)
            except OSError:
                connection.close()
                continue
            self._connections[connection] = (pid, bytearray())
            self.pids.append(pid)

    def lines(self, seconds: float | None, also: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each line with the ID of the process that has sent it.

        :param seconds: the time after which the iteration ends; None: when no process is connected.
        :param also: a descriptor; the iteration ends as soon as it is readable.
        """
        deadline = None if seconds is None else monotonic() + seconds
        while self._connections or seconds is not None:
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                return
            waiting = [*self._connections, *([] if also is None else [also])]
            ready, _, _ = select(waiting, [], [], left)
            if also in ready:
                return
            for connection in ready:
                yield from self._read(connection)

    def _read(self, connection: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        pid, buffer = self._connections[connection]
        try:
            piece = connection.recv(65536)
        except OSError:
            piece = b""
        buffer += piece
        if not piece or len(buffer) > MAX_LINE:
            del self._connections[connection]
            self.pids.remove(pid)
            connection.close()
            return
        *lines, rest = bytes(buffer).split(b"\n")
        buffer[:] = rest
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if isinstance(said, dict):
                yield pid, said

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self.pids.clear()
