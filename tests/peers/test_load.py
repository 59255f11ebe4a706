"""``greensmtp serve`` under load: flat memory, many sessions at once, and nothing lost that was acknowledged."""

from __future__ import annotations

import hashlib
import re
import signal
import smtplib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("serial")

Serve = Callable[..., Any]
Run = Callable[..., str]

MB = 1024 * 1024

#: Messages that are acknowledged before the server is ended.
ENOUGH = 50


def peak_memory(server: Any) -> int:
    """Return the most bytes that the server has taken so far."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kilobytes) * 1024


@pytest.mark.peer
def test_a_body_of_50_mb_takes_no_more_memory_than_a_small_one(serve: Serve, run: Run) -> None:
    server = serve("--max-size", "100M")
    address = server.urls[0].removeprefix("smtp://")
    run("smtp-source", "-l", "100000", "-t", "bob@example.org", address)
    before = peak_memory(server)
    run("smtp-source", "-l", "50000000", "-t", "bob@example.org", address)
    assert peak_memory(server) - before < 16 * MB
    sizes = sorted(path.stat().st_size for path in (server.maildir / "new").iterdir())
    assert sizes[0] > 100_000
    assert sizes[1] - sizes[0] == 50_000_000 - 100_000


@pytest.mark.peer
def test_many_sessions_at_once(serve: Serve, run: Run) -> None:
    server = serve()
    address = server.urls[0].removeprefix("smtp://")
    run("smtp-source", "-s", "20", "-m", "100", "-l", "4000", "-t", "bob@example.org", address)
    assert server.stop() == 0
    assert len(server.lines()) == 100
    bodies = {message[-4000:] for message in server.mail}
    assert len(server.mail) == 100
    assert len(bodies) == 1


class Sender(threading.Thread):
    """Sends one message after another until the server is gone; keeps the id of each that was acknowledged."""

    def __init__(self, port: int, seen: Callable[[], None]) -> None:
        super().__init__()
        self._port = port
        self._seen = seen
        self.acknowledged: dict[str, bytes] = {}
        self.refusal: int | None = None

    def run(self) -> None:
        try:
            with smtplib.SMTP("127.0.0.1", self._port, "client.example", timeout=20) as client:
                while True:
                    self._send(client)
        except smtplib.SMTPResponseException as error:
            self.refusal = error.smtp_code
        except (OSError, smtplib.SMTPException):
            pass  # gone in the middle of something

    def _send(self, client: smtplib.SMTP) -> None:
        text = f"{self.name} {len(self.acknowledged)} ".encode() * 3000
        body = b"Subject: %b\r\n\r\n%b\r\n" % (hashlib.sha256(text).hexdigest().encode(), text)
        client.ehlo_or_helo_if_needed()
        accepted(client.mail("ann@example.com"))
        accepted(client.rcpt("bob@example.org"))
        reply = accepted(client.data(body))
        self.acknowledged[reply.split()[-1].decode()] = body
        self._seen()


def accepted(answer: tuple[int, bytes]) -> bytes:
    """Return the text of a 250; raise anything else."""
    code, text = answer
    if code != 250:
        raise smtplib.SMTPResponseException(code, text)
    return text


def whole(message: bytes) -> bool:
    """Return True if its checksum is that of its body."""
    match = re.search(rb"\r\nSubject: (\w{64})\r\n\r\n(.*)\r\n\Z", message, re.DOTALL)
    return match is not None and hashlib.sha256(match[2]).hexdigest().encode() == match[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_acknowledged_is_there_whole_however_the_server_ends(serve: Serve, number: signal.Signals) -> None:
    server = serve()
    enough = threading.Semaphore(0)
    senders = [Sender(server.port, enough.release) for _ in range(8)]
    for sender in senders:
        sender.start()
    for _ in range(ENOUGH):
        assert enough.acquire(timeout=20)
    status = server.stop(number)
    for sender in senders:
        sender.join(20)
    acknowledged = {queue_id: body for sender in senders for queue_id, body in sender.acknowledged.items()}
    stored = {path.name.split(".")[1]: path.read_bytes() for path in (server.maildir / "new").iterdir()}
    assert len(acknowledged) >= ENOUGH
    assert acknowledged.keys() <= stored.keys()
    assert all(stored[queue_id].endswith(b"\r\n" + body) for queue_id, body in acknowledged.items())
    assert all(whole(message) for message in stored.values())
    if number == signal.SIGTERM:
        assert status == 0
        assert acknowledged.keys() == stored.keys()
        assert not [*(server.maildir / "tmp").iterdir()]
        assert {sender.refusal for sender in senders} == {421}
    # What was left behind does not trouble the next server.
    server = serve()
    with smtplib.SMTP("127.0.0.1", server.port, timeout=20) as client:
        client.sendmail("ann@example.com", ["bob@example.org"], b"Subject: Tea\r\n")
    assert len(server.mail) == len(stored) + 1
