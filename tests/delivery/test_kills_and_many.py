"""Spool and Webhook: kill -9 under load, and many messages. What was acknowledged arrives; repeats have one ID."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import gevent
import pytest
from gevent import socket
from gevent.pywsgi import WSGIServer

from greensmtp.delivery.spool_folder import Folder
from greensmtp.testing import Peer
from greensmtp.testing.fixtures import MakeServer
from tests import helpers
from tests.helpers import free_port, until
from tests.serve_process import ServeProcess

pytestmark = [pytest.mark.subprocess, pytest.mark.timeout(150)]

KILLS = 8

CONFIG = """
hostname = "front.example.com"
middleware = []
[[listeners]]
url = "127.0.0.1:{port}"
limits.max_idle_commands = 1000
[service]
workers = {workers}
[[deliveries]]
{delivery}
"""


class End(Protocol):
    """Where messages arrive."""

    delivery: str

    def arrived(self) -> list[tuple[str, bytes]]:
        """Return the ID and the content of each message."""

    def is_done(self) -> bool:
        """Return True if nothing is on its way."""


class AtNextHop:
    """A server behind a spool."""

    def __init__(self, smtp_server: MakeServer, folder: Path) -> None:
        mx = smtp_server()
        self._got = helpers.Deliveries(mx)
        self._folder = Folder(folder / "spool")
        to = f"smtp://127.0.0.1:{mx.address[1]}"
        self.delivery = f'use = "Spool"\npath = "spool"\nto = "{to}"\nschedule = "1s*200"'

    def arrived(self) -> list[tuple[str, bytes]]:
        return [(re.findall(rb"\bid (\S+)", body)[0].decode(), body) for _, _, body in self._got.mail]

    def is_done(self) -> bool:
        return not self._folder.names()


class AtApplication:
    """An application behind a webhook."""

    def __init__(self, smtp_server: MakeServer, folder: Path) -> None:
        self._got: list[tuple[str, bytes]] = []
        self.server = WSGIServer(("127.0.0.1", 0), self._answer, log=None, error_log=None)
        self.server.start()
        self.delivery = f'use = "Webhook"\nurl = "http://127.0.0.1:{self.server.server_port}/"\nsecret = "x"'

    def _answer(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        self._got.append((json.loads(environ["HTTP_SMTP_ENVELOPE"])["id"], body))
        start_response("204 No Content", [])
        return []

    def arrived(self) -> list[tuple[str, bytes]]:
        return self._got

    def is_done(self) -> bool:
        return True


@pytest.fixture(params=[AtNextHop, AtApplication], ids=["spool", "webhook"])
def end(request: pytest.FixtureRequest, smtp_server: MakeServer, tmp_path: Path) -> Iterator[End]:
    made = request.param(smtp_server, tmp_path)
    yield made
    if isinstance(made, AtApplication):
        made.server.stop(timeout=0)


def resident(pid: int) -> int:
    """Return the memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", ["false", "2"])
def test_what_was_acknowledged_arrives(
    end: End, serve: Callable[..., ServeProcess], tmp_path: Path, workers: str
) -> None:
    port = free_port()
    (tmp_path / "greensmtp.toml").write_text(CONFIG.format(port=port, delivery=end.delivery, workers=workers))
    acknowledged: set[str] = set()
    ended = False

    def client() -> None:
        while not ended:
            try:
                with Peer(socket.create_connection(("127.0.0.1", port), 10)) as peer:
                    peer.hello()
                    while not ended:
                        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
                        peer.expect("250", "250", "354")
                        peer.send(b"Subject: x\r\n\r\nbody\r\n.\r\n")
                        acknowledged.add(peer.expect("250").split()[-1])
                        gevent.sleep(0.002)
            except (OSError, AssertionError, EOFError):
                gevent.sleep(0.05)

    def start() -> ServeProcess:
        return serve("--config", "greensmtp.toml", wait=False, listeners=1, command=[sys.executable, "-m", "greensmtp"])

    clients = [gevent.spawn(client) for _ in range(3)]
    server = start()
    chance = random.Random(4711)
    for _ in range(KILLS):
        enough = len(acknowledged) + 5
        until(lambda enough=enough: len(acknowledged) > enough, "some messages")  # type: ignore[misc]
        gevent.sleep(chance.random() / 5)
        for pid in (server.process.pid, *children(server.process.pid)):
            os.kill(pid, signal.SIGKILL)
        server.process.wait()
        server = start()
    until(lambda: len(acknowledged) > enough + 5, "some messages")
    ended = True
    gevent.joinall(clients, timeout=20)
    until(end.is_done, "the end")
    server.process.send_signal(signal.SIGTERM)
    arrived = end.arrived()
    assert acknowledged <= {identifier for identifier, _ in arrived}
    assert all(body.endswith(b"body\r\n") for _, body in arrived)
    # What was being sent when a process was killed may have been sent twice, under one ID: 20 at once in each process.
    assert len(arrived) - len({identifier for identifier, _ in arrived}) <= KILLS * 40


@pytest.mark.exhaustive
def test_ten_thousand_messages_take_no_memory(end: End, serve: Callable[..., ServeProcess], tmp_path: Path) -> None:
    port, count, clients = free_port(), 10_000, 10
    (tmp_path / "greensmtp.toml").write_text(CONFIG.format(port=port, delivery=end.delivery, workers="false"))
    server = serve("--config", "greensmtp.toml", listeners=1, command=[sys.executable, "-m", "greensmtp"])

    def send(messages: int) -> None:
        with Peer(socket.create_connection(("127.0.0.1", port), 60)) as peer:
            peer.hello()
            for _ in range(messages):
                peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
                peer.expect("250", "250", "354")
                peer.send(b"Subject: x\r\n\r\n" + b"y" * 1000 + b"\r\n.\r\n")
                peer.expect("250")

    memory: list[int] = []
    began = monotonic()
    for share in (0.2, 0.8):
        gevent.joinall([gevent.spawn(send, int(count * share / clients)) for _ in range(clients)], raise_error=True)
        until(end.is_done, "the end")
        memory.append(resident(server.process.pid))
    seconds = monotonic() - began
    assert len(end.arrived()) == count
    assert memory[1] - memory[0] < 8_000_000, memory
    print(f"{count / seconds:,.0f} messages a second, {memory[1] / 2**20:.1f} MB")
    server.process.send_signal(signal.SIGTERM)
