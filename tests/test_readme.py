"""README's Python is run as it stands, but for the port, and does what the text says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gevent
import pytest

from greensmtp import SMTPServer
from greensmtp.testing import dial

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_are_as_many_blocks_as_tests_below() -> None:
    assert len(BLOCKS) == 5


def test_the_example_takes_mail_for_localhost(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    names: dict[str, SMTPServer] = {}
    source = BLOCKS[0].replace("9025", "0").replace("greensmtp.run(server)", "server.start()")
    exec(compile(source, "README.md", "exec"), names)
    with names["server"] as server, dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "RCPT TO:<b@localhost>", "DATA")
        peer.expect("250", "550 5.7.1 relaying denied", "250", "354")
        peer.line("Subject: hi", "", "..dot", ".", "QUIT")
        peer.expect("250", "221")
    assert capfdbinary.readouterr().out == b"Subject: hi\r\n\r\n.dot\r\n"


def test_the_tarpit_delays_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(gevent, "sleep", slept.append)
    server = SMTPServer("127.0.0.1:0", hostname="mx.example.com")
    exec(compile(BLOCKS[1], "README.md", "exec"), {"server": server})
    with dial(server) as peer:
        peer.hello()
        peer.line("RCPT TO:<a@example.com>", "NOOP")
        peer.expect("503", "250")
    assert slept == [2]


@pytest.mark.subprocess
def test_the_tests_of_ones_own_pass(tmp_path: Path) -> None:
    setup, test = BLOCKS[2].split("\n\n", 1)
    (tmp_path / "conftest.py").write_text(setup)
    (tmp_path / "test_own.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 passed" in run.stdout


@pytest.mark.parametrize("block", [3, 4])
def test_the_client_sends_to_the_example(block: int, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    names: dict[str, SMTPServer] = {}
    source = BLOCKS[0].replace("9025", "0").replace("greensmtp.run(server)", "server.start()")
    exec(compile(source, "README.md", "exec"), names)
    with names["server"] as server:
        exec(
            compile(
                BLOCKS[block].replace('"localhost", 9025', f'"127.0.0.1", {server.address[1]}'), "README.md", "exec"
            ),
            {},
        )
    out = capfdbinary.readouterr().out
    assert b"250 2.0.0 Ok" in out
