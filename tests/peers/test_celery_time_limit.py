"""A task that its hard time limit ends, in a real worker: its message is a dead letter, and it is reported once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from gevent import subprocess

from greensmtp.thread_pool import in_thread_pool
from tests.helpers import free_port, refused, until

pytestmark = [pytest.mark.peer, pytest.mark.subprocess, pytest.mark.timeout(120)]

TASKS = """
import os, time
from pathlib import Path
from celery import Celery
from greensmtp.delivery.mail_task import mail_task

app = Celery("tasks", broker=os.environ["BROKER"])

def report(message, sender):
    with open("reports", "a") as file:
        file.write(sender + "\\n")

@mail_task(app, "tasks.receive", time_limit=1, dead_letters="dead", report=report)
def receive(envelope, content):
    Path("began").touch()
    time.sleep(100)
"""

ENVELOPE: dict[str, Any] = {
    "id": "1-2-3",
    "sender": "ann@example.net",
    "recipients": ["bob@example.org"],
    **dict.fromkeys(("peer", "hello", "identity")),
    "server": "mx.example.com",
    "time": 0.0,
}


@pytest.fixture
def broker(program: Callable[[str], str], tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        until(lambda: not refused(("127.0.0.1", port)), "redis-server")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait(20)


def test_a_hard_time_limit_settles_the_message(broker: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    stored = tmp_path / "1-2-3.eml"
    stored.write_bytes(b"Subject: Tea\r\n\r\n")
    environment = {**os.environ, "BROKER": broker}
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--concurrency=1", "--loglevel=WARNING"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    app = Celery("client", broker=broker, set_as_current=False)
    try:
        arguments = [ENVELOPE, {"path": str(stored)}]
        in_thread_pool(app.send_task, "tasks.receive", args=arguments, task_id="1-2-3", ignore_result=True)
        until((tmp_path / "began").exists, "the task")
        until(stored.with_suffix(".done").exists, "the end of the message")
        app.close()
    finally:
        process.terminate()
        process.wait(60)
    assert (tmp_path / "dead" / "1-2-3.eml").read_bytes() == b"Subject: Tea\r\n\r\n"
    about = json.loads((tmp_path / "dead" / "1-2-3.json").read_text())
    assert about["error"].startswith("TimeLimitExceeded")
    assert (tmp_path / "reports").read_text() == "ann@example.net\n"
    assert not stored.exists()
