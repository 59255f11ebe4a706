"""Monkey patching: the library needs none, works with it, and the command line patches without a warning."""

from __future__ import annotations

import os
import smtplib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.subprocess

Serve = Callable[..., Any]

BODY = b"Subject: Tea\r\n\r\nAt four.\r\n"


def run(program: str, folder: Path) -> str:
    """Run a program in another process, with warnings as errors; return its output."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout


IMPORTS_EVERYTHING = """
import importlib, pkgutil
import socket, select, ssl, subprocess, threading, time
plain = {name: vars(module).copy() for name, module in list(globals().items()) if hasattr(module, "__spec__")}
import greensmtp
names = [module.name for module in pkgutil.walk_packages(greensmtp.__path__, "greensmtp.")]
for name in names:
    importlib.import_module(name)
from gevent import monkey
print([name for name, was in plain.items() if any(vars(globals()[name]).get(key) is not was[key] for key in was)])
print(sorted(monkey.saved))
print("greensmtp.__main__" in names, "greensmtp.cli" in names)
"""


def test_importing_any_of_it_patches_nothing(tmp_path: Path) -> None:
    assert run(IMPORTS_EVERYTHING, tmp_path).splitlines() == ["[]", "[]", "True True"]


#: The client is the standard library's, and blocks: in a native thread of an unpatched process, in a greenlet of a
#: patched one.
DELIVERS = """
import smtplib, ssl, sys
from greensmtp import SMTPServer
from greensmtp.delivery import Maildir

def deliver(server):
    with smtplib.SMTP(*server.address, timeout=10) as client:
        client.starttls(context=ssl.create_default_context(cafile={authority!r}))
        for number in range(3):
            client.sendmail("ann@example.com", ["bob@example.org"], {body!r})
    return "delivered"

server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com", certfile={certfile!r}, keyfile={keyfile!r})
Maildir("maildir").attach(server)
"""

IN_A_GREENLET = """
import gevent
with server:
    print(gevent.spawn(deliver, server).get(timeout=20))
"""

IN_ANOTHER_THREAD = """
from gevent import get_hub
with server:
    print(get_hub().threadpool.apply(deliver, (server,)))
"""

SERVER_IN_ITS_THREAD = """
with server.in_thread():
    print(deliver(server))
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", IN_ANOTHER_THREAD),
        ("", SERVER_IN_ITS_THREAD),
        ("from gevent import monkey; monkey.patch_all()\n", IN_A_GREENLET),
        ("from gevent import monkey; monkey.patch_all()\n", SERVER_IN_ITS_THREAD),
    ],
    ids=["unpatched", "unpatched, server in a thread", "patched", "patched, server in a thread"],
)
def test_mail_is_delivered(tmp_path: Path, certificate: Any, before: str, after: str) -> None:
    files = {name: str(path) for name, path in certificate._asdict().items()}
    program = before + DELIVERS.format(body=BODY, **files) + after
    assert run(program, tmp_path) == "delivered\n"
    mail = [path.read_bytes() for path in (tmp_path / "maildir" / "new").iterdir()]
    assert [message.endswith(b"\r\n" + BODY) for message in mail] == [True] * 3
    assert all(b" with ESMTPS id " in message for message in mail)


SLEEPER = """
import time
from greensmtp import signals

@signals.to.connect
def take_your_time(session, address, ack):
    if address.local_part == "slow":
        time.sleep(30)
    ack.accept()
"""


def test_the_command_line_patches_for_its_plugins_and_warns_of_nothing(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    command = [sys.executable, "-m", "greensmtp"]
    server = serve("-v", "--plugin", "sleeper", command=command, env=os.environ | {"PYTHONWARNINGS": "error"})
    with server.dial() as slow:
        slow.hello()
        slow.line("MAIL FROM:<ann@example.com>")
        slow.expect("250")
        slow.line("RCPT TO:<slow@example.org>")
        with smtplib.SMTP("127.0.0.1", server.port, timeout=10) as client:
            client.sendmail("ann@example.com", ["bob@example.org"], BODY)
    assert len(server.mail) == 1
    assert "Warning" not in server.log
