"""examples/celery_pipeline: two frontends behind HAProxy, Redis and two workers; each is killed in turn.

Celery takes a task off a list of Redis, and notes it in a second step (kombu 5.7, _pause_brpop). A worker that is
killed in between loses that task: Redis' log has LPUSH and RPOP, and no HSET. It is sent again from the store.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent import socket, subprocess

from greensmtp.testing import Peer
from tests.helpers import free_port, until

pytestmark = [pytest.mark.peer, pytest.mark.subprocess, pytest.mark.timeout(150)]

KILLS = ("frontend-one", "worker-one", "redis", "frontend-one", "worker-one")

SCRIPT = Path(__file__).resolve().parents[2] / "examples/celery_pipeline/run.py"


def children(pid: int) -> dict[str, int]:
    """Return the processes of the script, by a word of their command lines."""
    words = {"redis-server": "redis", "one.toml": "frontend-one", "one@": "worker-one"}
    found: dict[str, int] = {}
    for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        line = Path(f"/proc/{each}/cmdline").read_text()
        found.update({name: int(each) for word, name in words.items() if word in line})
    return found


def test_what_was_acknowledged_is_processed_whoever_is_killed(program: Callable[[str], str], tmp_path: Path) -> None:
    for name in ("haproxy", "redis-server"):
        program(name)
    port = free_port()
    folder = tmp_path / "pipeline"
    acknowledged: set[str] = set()
    ended = False

    def client(number: int) -> None:
        body = b"x" * (100_000 if number == 0 else 10)
        while not ended:
            try:
                with Peer(socket.create_connection(("127.0.0.1", port), 20)) as peer:
                    peer.hello()
                    while not ended:
                        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<bob@example.org>", "DATA")
                        peer.expect("250", "250", "354")
                        peer.send(b"Subject: x\r\n\r\n" + body + b"\r\n.\r\n")
                        acknowledged.add(peer.expect("250").split()[-1])
                        gevent.sleep(0.02)
            except (OSError, AssertionError, EOFError):  # killed, or 451: the queue does not answer
                gevent.sleep(0.1)

    # Tasks of a dead worker are given to the other one after three seconds; what is lost is sent again after five.
    environment = {**os.environ, "VISIBILITY": "3", "RESEND": "5"}
    command = [sys.executable, str(SCRIPT), str(port), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    clients = [gevent.spawn(client, number) for number in range(3)]
    try:
        until(lambda: len(acknowledged) > 20, "the pipeline")
        for name in KILLS:
            until(lambda name=name: name in children(process.pid), name)  # type: ignore[misc]
            os.kill(children(process.pid)[name], signal.SIGKILL)
            enough = len(acknowledged) + 20
            until(lambda enough=enough: len(acknowledged) > enough, "more mail")  # type: ignore[misc]
        ended = True
        gevent.joinall(clients, timeout=30)

        def missing() -> set[str]:
            return acknowledged - {path.stem for path in (folder / "received").glob("*.eml")}

        until(lambda: not missing(), "every message")
        # What stays is what the client was refused when the broker was killed.
        until(lambda: not acknowledged & {path.stem for path in (folder / "store").glob("*.eml")}, "the store")
    finally:
        ended = True
        process.terminate()
        process.wait(60)
    assert not (folder / "dead").exists()
    sizes = {path.stat().st_size > 100_000 for path in (folder / "received").glob("*.eml")}
    assert sizes == {True, False}
