"""A pytest fixture that starts and stops servers: ``pytest_plugins = ["greensmtp.testing.fixtures"]``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from greensmtp.server.server import SMTPServer


class MakeServer(Protocol):
    """The type of the fixture ``smtp_server``."""

    def __call__(self, *, listener: Any = ..., start: bool = ..., **options: Any) -> SMTPServer: ...


@pytest.fixture
def smtp_server() -> Iterator[MakeServer]:
    """Create a server: ``smtp_server(max_errors=3)`` listens on a free loopback port, in this thread's hub.

    It accepts the arguments of ``SMTPServer``. By default the host name is ``mx.example.com`` and the listener
    ``("127.0.0.1", 0)``. With ``start=False`` it does not listen: middleware can still be added, and ``dial`` connects
    over a socket pair. All servers are stopped when the test ends.
    """
    servers: list[SMTPServer] = []

    def make(*, listener: Any = ("127.0.0.1", 0), start: bool = True, **options: Any) -> SMTPServer:
        options.setdefault("hostname", "mx.example.com")
        server = SMTPServer(listener, **options)
        servers.append(server)
        if start:
            server.start()
        return server

    yield make
    for server in servers:
        server.stop(timeout=1)
