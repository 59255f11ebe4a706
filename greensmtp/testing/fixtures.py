"""A pytest fixture that starts servers, and stops them: ``pytest_plugins = ["greensmtp.testing.fixtures"]``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from greensmtp.server.server import SMTPServer


class MakeServer(Protocol):
    """What the fixture ``smtp_server`` gives, for annotations."""

    def __call__(self, *, listener: Any = ..., start: bool = ..., **options: Any) -> SMTPServer: ...


@pytest.fixture
def smtp_server() -> Iterator[MakeServer]:
    """Make a server: ``smtp_server(max_errors=3)`` listens on a free loopback port, in this thread's hub.

    It takes what ``SMTPServer`` takes; its name is ``mx.example.com`` and its listener ``("127.0.0.1", 0)`` unless
    you say so. With ``start=False`` it does not listen: middleware can still be stacked, and ``dial`` reaches it
    over a socket pair. All are stopped when the test is over.
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
