"""Small helpers for several test files: commands, scripted dialogues, servers that record, parametrization."""

from __future__ import annotations

import itertools
import os
import socket
from base64 import b64encode
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout, sleep

from greensmtp import Ack, MessageStream, Session, SMTPServer
from greensmtp.testing import Peer

if TYPE_CHECKING:
    from greensmtp.testing.fixtures import MakeServer


#: Each worker of pytest-xdist has ports of its own, below those that the kernel gives to clients: two HAProxies that
#: listen on one port both succeed, since they share it (SO_REUSEPORT).
_FIRST_PORT = 20_000 + 1000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10)
_ports = itertools.cycle(range(_FIRST_PORT, _FIRST_PORT + 1000))


def free_port() -> int:
    """Return a free port, for servers that cannot choose one themselves."""
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the range of ports has no end")


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something is true."""
    with Timeout(30, AssertionError(f"waited 30 s for {what}")):
        while not condition():
            sleep(0.01)


def b64(text: str | bytes) -> str:
    """Encode text, or bytes, in base64."""
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def auth_plain(name: str, password: str) -> str:
    """Return the AUTH PLAIN command with its initial response (RFC 4616)."""
    return f"AUTH PLAIN {b64(f'{chr(0)}{name}{chr(0)}{password}')}"


def chunk(body: bytes, *, last: bool = False) -> bytes:
    """Return a BDAT command with its bytes (RFC 3030)."""
    return b"BDAT %d%s\r\n" % (len(body), b" LAST" if last else b"") + body


def begin_data(peer: Peer) -> None:
    """Say hello, an envelope and DATA; the body may follow."""
    peer.hello()
    peer.envelope()
    peer.line("DATA")
    peer.expect("354")


def covering(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return the rows of a parametrization, of which ``make test`` runs a few in which each value occurs in its column.

    All others are marked ``exhaustive``. It is for tests that start a process or several, where one column makes no
    difference to what another one proves.
    """
    rows = list(rows)
    missing = {value for row in rows for value in enumerate(row)}
    chosen: list[tuple[Any, ...]] = []
    while missing:
        chosen.append(max(rows, key=lambda row: len(missing.intersection(enumerate(row)))))
        missing.difference_update(enumerate(chosen[-1]))
    return [row if row in chosen else pytest.param(*row, marks=pytest.mark.exhaustive) for row in rows]


def pairwise_orders(members: Iterable[str]) -> list[tuple[str, ...]]:
    """Return orders in which each member takes each place, and stands directly before and behind each other one.

    They are the rows of a Latin square whose neighbours are balanced (E. J. Williams, 1949), and the same rows
    backwards: 2n orders, where permutations are n!.
    """
    items = list(members)
    count = len(items)
    zigzag = [place // 2 if place % 2 == 0 else count - (place + 1) // 2 for place in range(count)]
    rows = [tuple(items[(shift + step) % count] for step in zigzag) for shift in range(count)]
    return [*rows, *(row[::-1] for row in rows)]


def accepting(smtp_server: MakeServer, *middleware: Any, **options: Any) -> SMTPServer:
    """Make a server that accepts every message and reads none; ``dial`` reaches it over a socket pair."""
    server = smtp_server(start=False, middleware=middleware, **options)
    server.on("message", lambda session, stream, ack: ack.accept())
    return server


def collect_bodies(server: SMTPServer) -> list[bytes]:
    """Accept every message; the list fills with their bodies."""
    bodies: list[bytes] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        bodies.append(stream.read())

    return bodies


class Deliveries:
    """Accepts every message of a server; ``mail`` fills with sender, recipients and body of each."""

    def __init__(self, server: SMTPServer) -> None:
        self.mail: list[tuple[str, list[str], bytes]] = []

        @server.on("message")
        def take(session: Session, stream: MessageStream, ack: Ack) -> None:
            ack.accept()
            sender, to = str(session.from_), list(map(str, session.to))
            body = stream.read()
            self.mail.append((sender, to, body))


def collect_reasons(server: SMTPServer) -> list[str]:
    """Return a list that fills with the reasons for which connections end."""
    reasons: list[str] = []
    server.on("disconnect", lambda session, reason: reasons.append(reason))
    return reasons


def play(peer: Peer, *steps: tuple[str, str]) -> None:
    """Send lines, and expect a reply to each: ``play(peer, ("NOOP", "250"), ...)``."""
    for line, pattern in steps:
        peer.line(line)
        peer.expect(pattern)


def replace_text(path: Path, text: str) -> None:
    """Give a file another text at once: a server that reads it meanwhile must not find half of it."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


def refused(address: Any) -> bool:
    """Return True if nothing listens at a TCP address."""
    with socket.socket() as probe:
        return probe.connect_ex(address) != 0
