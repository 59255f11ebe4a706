"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greensmtp import SMTPServer
from greensmtp.delivery import Deliveries, Forward, Maildir
from greensmtp.testing.fixtures import MakeServer
from tests.delivery.forwarding import Script


@pytest.fixture
def maildir(tmp_path: Path) -> Maildir:
    return Maildir(tmp_path / "maildir")


@pytest.fixture
def relay(smtp_server: MakeServer) -> Iterator[Callable[..., SMTPServer]]:
    """Return a function that makes a server which forwards: ``relay(to, mode=...)``."""
    running: list[SMTPServer] = []

    def make(to: Any, *, server: dict[str, Any] | None = None, **options: Any) -> SMTPServer:
        made = smtp_server(start=False, hostname="relay.example.com", **(server or {}))
        Deliveries([Forward(to, timeout=10, **options)]).attach(made)
        made.start()
        running.append(made)
        return made

    yield make
    for each in running:  # before the next hops, which would wait for its connections
        each.stop(timeout=1)


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    running: list[Script] = []

    def start(**does: str) -> Script:
        running.append(Script(**does))
        return running[-1]

    yield start
    for each in running:
        each.server.stop(timeout=0)
