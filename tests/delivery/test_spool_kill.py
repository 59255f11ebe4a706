"""kill -9 of processes that spool and send: what was acknowledged arrives; repeats are told apart by their IDs."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent import socket

from greensmtp.delivery.spool_folder import Folder
from greensmtp.testing import Peer
from greensmtp.testing.fixtures import MakeServer
from tests import helpers
from tests.helpers import free_port, until
from tests.serve_process import ServeProcess

pytestmark = [pytest.mark.subprocess, pytest.mark.timeout(120)]

KILLS = 8

CONFIG = """
hostname = "front.example.com"
middleware = []
[[listeners]]
url = "127.0.0.1:{port}"
[[deliveries]]
use = "Spool"
path = "spool"
to = "smtp://127.0.0.1:{next_hop}"
schedule = "1s*200"
[service]
workers = {workers}
"""


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", ["false", "2"])
def test_what_was_acknowledged_arrives(
    smtp_server: MakeServer, serve: Callable[..., ServeProcess], tmp_path: Path, workers: str
) -> None:
    mx = smtp_server()
    got = helpers.Deliveries(mx)
    port = free_port()
    (tmp_path / "greensmtp.toml").write_text(CONFIG.format(port=port, next_hop=mx.address[1], workers=workers))
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
    folder = Folder(tmp_path / "spool")
    until(lambda: not folder.names(), "the spool to be empty")
    server.process.send_signal(signal.SIGTERM)
    arrived = [re.findall(rb"\bid (\S+)", body)[0].decode() for _, _, body in got.mail]
    assert acknowledged <= {*arrived}
    assert all(body.endswith(b"body\r\n") for _, _, body in got.mail)
    # What was being sent when a process was killed may have been sent twice, under one ID: 20 at once in each process.
    assert len(arrived) - len({*arrived}) <= KILLS * 40
