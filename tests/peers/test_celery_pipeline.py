"""examples/celery_pipeline: two frontends behind HAProxy, Redis and two workers; each is killed in turn.

Celery takes a task off a list of Redis, and notes it in a second step. A busy worker may have taken its next task
(kombu 5.7, _pause_brpop), and if it is killed, that task is lost: Redis' log has LPUSH and RPOP, and no HSET. So one
task for each killed worker may be missing.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent import socket, subprocess

from greensmtp.testing import Peer
from tests.helpers import free_port, until

pytestmark = [pytest.mark.peer, pytest.mark.subprocess, pytest.mark.timeout(150)]

KILLS = ("frontend-one", "redis", "frontend-one", "worker-one", "worker-one")

SCRIPT = Path(__file__).resolve().parents[2] / "examples/celery_pipeline/run.py"


def children(pid: int) -> dict[str, int]:
    """Return the processes of the script, by a word of their command lines."""
    words = {"redis-server": "redis", "one.toml": "frontend-one", "one@": "worker-one"}
    found: dict[str, int] = {}
    for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        line = Path(f"/proc/{each}/cmdline").read_text()
        found.update({name: int(each) for word, name in words.items() if word in line})
    return found


def test_acknowledged_mail_is_processed_but_for_what_a_killed_worker_fetched(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    for name in ("haproxy", "redis-server"):
        program(name)
    port = free_port()
    folder = tmp_path / "pipeline"
    acknowledged: set[str] = set()
    ended = False

    def client(number: int) -> None:
        body = b"x" * (100_000 if number == 0 else 10)  # the first one's go by way of the store
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

    # Tasks of a dead worker are given to the other one after three seconds.
    environment = {**os.environ, "VISIBILITY": "3"}
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

        def settled() -> bool:
            """Nothing is missing, or no task has come for longer than those of a dead worker take to come again."""
            times = [path.stat().st_mtime for path in (folder / "received").glob("*.eml")]
            return not missing() or (bool(times) and time.time() - max(times) > 15)

        until(settled, "the tasks")
        assert len(missing()) <= KILLS.count("worker-one")
        # What stays is what the client was refused when the broker was killed, and what is missing.
        store = folder / "store"
        until(lambda: acknowledged & {path.stem for path in store.glob("*.eml")} <= missing(), "the store")
    finally:
        ended = True
        process.terminate()
        process.wait(60)
    assert not (folder / "dead").exists()
    sizes = {path.stat().st_size > 100_000 for path in (folder / "received").glob("*.eml")}
    assert sizes == {True, False}
