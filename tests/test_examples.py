"""The examples, run as their readers run them, and spoken to."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gevent import socket
from gevent import ssl as gevent_ssl

from greensmtp import connect
from greensmtp.testing import Peer

if TYPE_CHECKING:
    from tests.conftest import Certificate

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
#: Run by tests/client/test_examples.py; all others are servers.
CLIENTS = {"client.py", "send_many.py"}


class Example:
    """A running example: its port, and what it has printed once it is over."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("listening on 127.0.0.1:"), ready
        self.port = int(ready.rpartition(":")[2])

    def dial(self) -> Peer:
        return Peer(socket.create_connection(("127.0.0.1", self.port), timeout=10))

    def stop(self) -> str:
        """Ctrl-C; it ends without a complaint. What it has printed since it was ready."""
        self._process.send_signal(signal.SIGINT)
        printed, complaints = self._process.communicate(timeout=20)
        assert (self._process.returncode, complaints) == (0, "")
        return printed


@contextmanager
def running(name: str, *arguments: str) -> Iterator[Example]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            yield Example(process)
        finally:
            process.kill()


@pytest.mark.parametrize("name", sorted({path.name for path in EXAMPLES.glob("*.py")} - CLIENTS))
def test_every_server_takes_a_port_tells_it_and_ends_in_peace(name: str) -> None:
    with running(name, "0") as example:
        with example.dial() as peer:
            peer.hello()
            peer.line("QUIT")
            peer.expect("221")
        example.stop()


def test_local_only_takes_mail_for_localhost_and_prints_it() -> None:
    with running("local_only.py", "0") as example:
        with example.dial() as peer:
            peer.converse("""
                S: 220 localhost
                C: helo client.example
                S: 250
                C: mail from:<beep@localhost>
                S: 250
                C: rcpt to:<boop@elsewhere.example>
                S: 550 5.7.1 relaying denied
                C: rcpt to:<boop@localhost>
                S: 250
                C: rcpt to:<root@LOCALHOST>
                S: 250
                C: data
                S: 354
                C: Beep boop.
                C: I am a computer.
                C: .
                S: 250
                C: quit
                S: 221
                S: END
            """)
        printed = example.stop()
    assert printed.splitlines() == [
        "from: beep@localhost",
        "to: boop@localhost, root@LOCALHOST",
        "Beep boop.",
        "I am a computer.",
    ]


def test_per_connection_tells_what_each_connection_does() -> None:
    with running("per_connection.py", "0") as example:
        with example.dial() as peer:
            peer.hello()
            assert peer.deliver("Hello.\r\n", sender="a@example.org", to=["b@example.com", "c@example.com"]) > "250"
            peer.line("QUIT")
            peer.expect("221")
            peer.expect_end()
        with example.dial() as peer:
            peer.hello()
        with example.dial() as peer:  # it has heard the last one hang up when it answers this one
            peer.hello()
            peer.line("QUIT")
            peer.expect("221")
            peer.expect_end()
        printed = example.stop()
    lines = printed.splitlines()
    assert lines[:4] == [
        "[127.0.0.1] from: a@example.org",
        "[127.0.0.1] to: b@example.com, c@example.com",
        "Hello.",
        "[127.0.0.1] said good-bye",
    ]
    assert sorted(lines[4:]) == ["[127.0.0.1] hung up", "[127.0.0.1] said good-bye"]


def test_per_connection_tells_who_fell_asleep() -> None:
    with running("per_connection.py", "0", "1") as example:
        with example.dial() as peer:
            peer.hello()
            peer.expect("421 4.4.2")
            peer.expect_end()
        printed = example.stop()
    assert printed == "[127.0.0.1] fell asleep\n"


def test_submission_lets_users_in_and_send_under_their_own_name(certificate: Certificate) -> None:
    context = gevent_ssl.create_default_context(cafile=str(certificate.authority))
    with running("submission.py", "0", str(certificate.certfile), str(certificate.keyfile)) as example:
        with connect("127.0.0.1", example.port, starttls="never") as mail:
            mail.ehlo()
            assert mail.extensions["AUTH"] == "SCRAM-SHA-256 CRAM-MD5"
            assert mail.from_("beep@example.com").code == 530
            assert mail.login("beep", "boop").code == 235
            mail.send(b"x\r\n", "beep@example.com", "you@example.org")
        with connect("127.0.0.1", example.port, starttls="require", ssl_context=context) as mail:
            mail.begin()
            assert "PLAIN" in mail.extensions["AUTH"].split()
            assert mail.login("beep", "wrong").code == 535
            assert mail.login("beep", "boop", "PLAIN").code == 235
            assert mail.from_("root@example.com").text == "beep sends as beep@example.com"
            mail.send(b"x\r\n", "beep@example.com", ["you@example.org", "me@example.org"])
        printed = example.stop()
    assert printed.splitlines() == [
        "beep (SCRAM-SHA-256) -> you@example.org: 3 octets",
        "beep (PLAIN) -> you@example.org, me@example.org: 3 octets",
    ]
