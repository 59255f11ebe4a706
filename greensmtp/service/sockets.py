"""Listening sockets that outlive their servers."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gevent import socket

from greensmtp._log import logger
from greensmtp.server.acceptor import Acceptor
from greensmtp.server.listener import listen

#: ``(host, port)``, or a unix path.
Address = tuple[str, int] | str

#: An address, and a number that distinguishes several with port 0.
Key = tuple[Address, int]


class Sockets:
    """The listening sockets of a service, by the addresses that the configuration names.

    :param inherited: listening sockets of systemd, or of the parent process. Each is used for its address, instead of
        binding a new one.
    :param reuse_port: bind with SO_REUSEPORT, so that each process has its own sockets at the same addresses.
    """

    def __init__(self, inherited: Iterable[Any] = (), *, reuse_port: bool = False) -> None:
        self.reuse_port = reuse_port
        self._inherited: list[Any] = list(inherited)
        self._open: dict[Key, Any] = {}
        #: The paths of unix sockets that were created here, and are removed in ``close``.
        self._made: dict[Key, str] = {}

    @classmethod
    def of(cls, opened: Mapping[Key, Any]) -> Sockets:
        """Return sockets that another process has opened: they are closed here, but unix paths stay."""
        sockets = cls()
        sockets._open = dict(opened)
        return sockets

    @property
    def opened(self) -> dict[Key, Any]:
        """The sockets that are open."""
        return dict(self._open)

    def open(self, key: Key, backlog: int | None) -> Any:
        """Return the listening socket of an address, opening it if necessary.

        :param backlog: as for ``listen(2)``; None: the server's default. It may be changed at any time.
        :raises OSError: the address cannot be bound.
        """
        queue = Acceptor.backlog if backlog is None else backlog
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = self._find_inherited(key[0]) or self._bind(key, queue)
        found.listen(queue)
        return found

    def _bind(self, key: Key, backlog: int) -> Any:
        address = key[0]
        if isinstance(address, str):
            bound = listen(address, backlog, socket.AF_UNIX)
            self._made[key] = address
            return bound
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        return listen(address, backlog, family, reuse_port=self.reuse_port)

    def _find_inherited(self, address: Address) -> Any:
        """Return the inherited socket with an address, and remove it from the list; None if there is none."""
        if not self._inherited:
            return None
        names = {address} if isinstance(address, str) else set(_resolved(address))
        for each in self._inherited:
            name = each.getsockname()
            if (os.fsdecode(name) if isinstance(name, str | bytes) else name[:2]) in names:
                self._inherited.remove(each)
                each.setblocking(False)
                return each
        return None

    def keep(self, keys: Collection[Key]) -> None:
        """Close all other sockets."""
        for key in [*self._open]:
            if key not in keys:
                self._open.pop(key).close()
                self._remove(self._made.pop(key, None))

    def warn_of_unused(self) -> None:
        """Log the inherited sockets that no listener uses: their clients would wait for ever."""
        for each in self._inherited:
            text = "the socket at %r was inherited, but no listener of the configuration uses it"
            logger.warning(text, each.getsockname())

    def close(self) -> None:
        """Close all sockets, and remove the paths of those that were created here."""
        self.keep(())

    @staticmethod
    def _remove(path: str | None) -> None:
        if path is not None:
            try:
                Path(path).unlink(missing_ok=True)
            except OSError as error:  # the folder belongs to root, and privileges have been dropped
                logger.debug("cannot remove %r: %s", path, error)


def _resolved(address: tuple[str, int]) -> Iterator[tuple[str, int]]:
    host, port = address
    yield address
    for found in socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
        yield str(found[4][0]), port


def keys_of(addresses: Iterable[Address]) -> list[Key]:
    """Return the key of each address: those with port 0 are distinguished by their order."""
    seen: dict[Address, int] = {}
    keys: list[Key] = []
    for address in addresses:
        number = seen[address] = seen.get(address, -1) + 1
        keys.append((address, number if isinstance(address, tuple) and address[1] == 0 else 0))
    return keys
