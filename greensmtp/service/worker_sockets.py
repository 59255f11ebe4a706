"""The listening sockets that an arbiter opens for its workers."""

from __future__ import annotations

import socket as native
from collections.abc import Iterable
from typing import Any

from greensmtp._hostport import address
from greensmtp.config.urls import Listen
from greensmtp.http_listener import open_socket
from greensmtp.server.acceptor import Acceptor
from greensmtp.server.listener import listen
from greensmtp.service.errors import StartError
from greensmtp.service.plan import Plan
from greensmtp.service.sockets import Key, Sockets


class WorkerSockets:
    """The sockets of the current plan; during a reload, those of the next one as well.

    :param inherited: as for ``Sockets``.
    :param reuse_port: each worker has its own sockets.
    """

    def __init__(self, inherited: Iterable[Any], *, reuse_port: bool) -> None:
        self._first = Sockets(inherited, reuse_port=reuse_port)
        #: With SO_REUSEPORT, the sockets of the second worker and those after it.
        self._more: dict[int, dict[Key, Any]] = {}
        #: ``[http] listen`` -> its socket. In a reload there may be two, until the new configuration is served.
        self._http: dict[str, Any] = {}

    @property
    def all(self) -> list[Any]:
        """All sockets that are open."""
        every: list[dict[Any, Any]] = [self._first.opened, *self._more.values(), self._http]
        return [each for opened in every for each in opened.values()]

    def opened(self, slot: int) -> dict[Key, Any]:
        """Return the sockets of a worker."""
        return self._first.opened | self._more.get(slot, {})

    def http(self, plan: Plan) -> Any:
        """Return the socket of the HTTP listener, which all workers share; None if there is none."""
        return None if plan.http is None else self._http.get(plan.http)

    def open(self, plan: Plan) -> None:
        """Open the missing sockets of a plan.

        :raises StartError: an address cannot be bound.
        """
        for number, (key, backlog) in enumerate(zip(plan.keys, plan.backlogs, strict=True)):
            try:
                first = self._first.open(key, backlog)
                if self._first.reuse_port and first.getsockopt(native.SOL_SOCKET, native.SO_REUSEPORT):
                    self._open_more(plan.workers, key, first, backlog)
            except OSError as error:
                reason = (error.strerror or str(error)).partition(":")[0]
                url = Listen.parse(plan.urls[number]).url()
                raise StartError(f"{plan.places[number]}: cannot listen on {url}: {reason}") from error
        self._open_http(plan)

    def _open_more(self, workers: int, key: Key, first: Any, backlog: int | None) -> None:
        for slot in range(1, workers):
            opened = self._more.setdefault(slot, {})
            if key not in opened:
                queue = Acceptor.backlog if backlog is None else backlog
                opened[key] = listen(first.getsockname(), queue, first.family, reuse_port=True)

    def _open_http(self, plan: Plan) -> None:
        where = address(plan.http)
        if plan.http is None or where is None or plan.http in self._http:
            return
        try:
            self._http[plan.http] = open_socket(*where)
        except OSError as error:
            raise StartError(f"http.listen: {error.strerror}") from error

    def keep(self, plan: Plan) -> None:
        """Close all sockets except those of a plan."""
        self._first.keep(plan.keys)
        for slot, opened in [*self._more.items()]:
            for key in [*opened]:
                if key not in plan.keys or slot >= plan.workers:
                    opened.pop(key).close()
        for text in [*self._http]:
            if text != plan.http:
                self._http.pop(text).close()

    def warn_of_unused(self) -> None:
        """Log the inherited sockets that no listener uses."""
        self._first.warn_of_unused()

    def close(self) -> None:
        """Close all sockets, and remove the unix paths that were created here."""
        for each in self.all:
            each.close()
        self._first.close()
