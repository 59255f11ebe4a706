"""A pytest fixture that starts servers, and stops them: ``pytest_plugins = ["greensmtp.testing.fixtures"]``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greensmtp.server import SMTPServer


@pytest.fixture
def smtp_server() -> Iterator[Callable[..., SMTPServer]]:
    """Make a server that listens on a free loopback port, in this thread's hub: ``smtp_server(max_errors=3)``.

    It takes what ``SMTPServer`` takes but the listener; ``listener=`` and ``start=False`` where they matter. Its
    name is ``mx.example.com`` unless you say so. All are stopped when the test is over.
    """
    servers = []

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
