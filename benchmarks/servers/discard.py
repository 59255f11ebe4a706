"""A plugin of ``greensmtp serve`` that accepts every message and discards it."""

from __future__ import annotations

from benchmarks.servers.plain import take
from greensmtp import SMTPServer


def attach(server: SMTPServer) -> None:
    """Connect the receiver."""
    server.on("message", take)
