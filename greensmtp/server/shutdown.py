"""How a server's connections end when it stops: drain, then cut off, then give up."""

from __future__ import annotations

from time import monotonic
from typing import Any

from greensmtp.server.handler import ConnectionHandler
from greensmtp.server.registry import Registry

#: Seconds given to connections that have been cut off, and as many again.
KILL_SECONDS = 0.4

#: Seconds given to handlers of ``disconnect`` at most, of what is left of the timeout.
LEAVE_SECONDS = 5.0


def end_connections(registry: Registry[ConnectionHandler], loop: Any, timeout: float) -> None:
    """End all connections but that of the current greenlet, and wait for it.

    Clients between two transactions get 421 at once, the others when their transaction is over. After ``timeout``
    seconds the rest gets 421 in the middle of whatever it is doing.

    :param loop: the event loop of the thread that serves.
    """
    deadline = monotonic() + timeout
    registry.draining = True
    if registry.open_connections():
        loop.run_callback(_dismiss_idle, registry)
    registry.wait_until_none(registry.open_connections, deadline - monotonic())
    for _ in range(2):  # the second time, those that linger, and handlers that have ignored the first
        for connection in registry.open_connections():
            loop.run_callback(connection.cut_off, "shutdown")
        registry.wait_until_none(registry.open_connections, KILL_SECONDS)
    # What is left are handlers of `disconnect`: give them time, end them, and forget those that do not end.
    seconds = max(min(deadline - monotonic(), LEAVE_SECONDS), KILL_SECONDS)
    registry.wait_until_none(registry.all_connections, seconds)
    for end in (ConnectionHandler.kill, ConnectionHandler.abandon):
        for connection in registry.all_connections():
            loop.run_callback(end, connection)
        registry.wait_until_none(registry.all_connections, KILL_SECONDS)


def _dismiss_idle(registry: Registry[ConnectionHandler]) -> None:
    for connection in list(registry.connections):
        if connection.is_idle:
            connection.cut_off("shutdown")
