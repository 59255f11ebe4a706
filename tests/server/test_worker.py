"""SMTP under gunicorn: the worker class, and hooks beside HTTP. Real arbiters and workers."""

from __future__ import annotations

import os
import re
import signal
import sys
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gevent import socket, subprocess

from greensmtp.server.worker import beside, read_servers
from greensmtp.testing import Peer
from tests.helpers import refused, until

pytestmark = [pytest.mark.subprocess, pytest.mark.timeout(120)]

APP = """
import os, pathlib, time
from greensmtp import SMTPServer
server = SMTPServer(("127.0.0.1", 0), hostname="mx.example.com")
other = SMTPServer(("127.0.0.1", 0), hostname="other.example.com")

@server.on_mail
def store(mail):
    if mail.sender == "block@example.com":
        import gevent.monkey
        gevent.monkey.get_original("time", "sleep")(60)

def http(environ, start_response):
    start_response("200 OK", [])
    return [b"hello from %d" % os.getpid()]

both = [server, other]
def make():
    return server
"""


class Gunicorn:
    """A running gunicorn with two workers."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        (folder / "app.py").write_text(APP)
        self._log = folder / "log"
        clean = {name: value for name, value in os.environ.items() if name != "GUNICORN_CMD_ARGS"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-w", "2", *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean | {"HOME": str(folder)},  # where gunicorn puts its control socket
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def ports(self) -> list[int]:
        until(lambda: "Listening at: " in self.log, f"gunicorn to listen: {self.log}")
        line = next(line for line in self.log.splitlines() if "Listening at: " in line)
        return [int(port) for port in re.findall(r":(\d+)[, ]", line.partition("Listening at: ")[2])]

    @property
    def workers(self) -> set[int]:
        pid = self.process.pid
        return {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    def dial(self, port: int) -> Peer:
        return Peer(socket.create_connection(("127.0.0.1", port), 30))

    def wait(self) -> int:
        return int(self.process.wait(timeout=30))


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Callable[..., Gunicorn]]:
    running: list[Gunicorn] = []

    def start(*arguments: str) -> Gunicorn:
        running.append(Gunicorn(tmp_path, *arguments))
        return running[-1]

    yield start
    for each in running:
        workers = each.workers if each.process.poll() is None else set()
        each.process.kill()
        each.process.wait()
        for pid in workers:  # they would drain
            os.kill(pid, signal.SIGKILL)


SMTP = ("-k", "greensmtp.server.worker.SMTPWorker")


def begin(peer: Peer, sender: str = "ann@example.com") -> None:
    peer.line(f"MAIL FROM:<{sender}>", "RCPT TO:<bob@example.org>", "DATA")
    peer.expect("250", "250", "354")


def test_workers_serve_and_are_replaced_and_sigterm_drains(gunicorn: Callable[..., Gunicorn]) -> None:
    mx = gunicorn(*SMTP, "-b", "127.0.0.1:0", "-b", "127.0.0.1:0", "app:server")
    for port in mx.ports:  # one server, two addresses
        with mx.dial(port) as peer:
            peer.hello()
    before = mx.workers
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    with mx.dial(mx.ports[0]) as idle, mx.dial(mx.ports[1]) as busy:
        idle.hello()
        busy.hello()
        begin(busy)
        mx.process.send_signal(signal.SIGTERM)
        idle.expect("421")
        busy.line("Subject: last orders", ".")
        busy.expect("250", "421")
    assert mx.wait() == 0
    assert "Traceback" not in mx.log


def test_several_servers_have_the_addresses_of_their_places(gunicorn: Callable[..., Gunicorn]) -> None:
    mx = gunicorn(*SMTP, "-b", "127.0.0.1:0", "-b", "127.0.0.1:0", "app:both")
    for port, name in zip(mx.ports, ("mx", "other"), strict=True):
        with mx.dial(port) as peer:
            peer.expect(f"220 {name}.example.com")


def test_a_blocked_hub_is_killed_and_named(gunicorn: Callable[..., Gunicorn]) -> None:
    mx = gunicorn(*SMTP, "-b", "127.0.0.1:0", "--timeout", "2", "app:make")
    with mx.dial(mx.ports[0]) as peer:
        peer.hello()
        begin(peer, "block@example.com")
        peer.line(".")
        peer.expect_end()
    until(lambda: "the hub has been blocked" in mx.log, f"the log: {mx.log}")
    assert "in store" in mx.log
    with mx.dial(mx.ports[0]) as peer:
        peer.hello()


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("app:http", "expected an SMTPServer"),
        ("app:missing", "missing"),
        ("nothing:server", "No module named 'nothing'"),
    ],
)
def test_what_is_no_server_ends_the_start(gunicorn: Callable[..., Gunicorn], program: str, complaint: str) -> None:
    mx = gunicorn(*SMTP, "-b", "127.0.0.1:0", program)
    assert mx.wait() != 0
    assert complaint in mx.log


def test_the_numbers_of_servers_and_addresses_must_agree(gunicorn: Callable[..., Gunicorn]) -> None:
    mx = gunicorn(*SMTP, *("-b", "127.0.0.1:0") * 3, "app:both")
    assert mx.wait() != 0
    assert "expected one server, or one for each of 3 addresses; got 2" in mx.log


def test_smtp_beside_http(gunicorn: Callable[..., Gunicorn], tmp_path: Path) -> None:
    path = tmp_path / "smtp"
    (tmp_path / "gunicorn.conf.py").write_text(
        "from greensmtp.server.worker import beside\n"
        'worker_class = "gevent"\n'
        f'on_starting, post_worker_init, worker_exit = beside("app:server", {str(path)!r})\n'
    )
    mx = gunicorn("-b", "127.0.0.1:0", "app:http")

    def dial() -> Peer:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30)
        connection.connect(str(path))
        return Peer(connection)

    port = mx.ports[0]
    answered: set[bytes] = set()

    def greet() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            answered.add(answer.read())
        return len(answered)

    until(lambda: greet() == 2, "two workers")
    for pid in mx.workers:
        os.kill(pid, signal.SIGKILL)
    until(lambda: greet() == 4, "two more workers")  # gunicorn's own forget a signal that comes while they start
    with dial() as busy:
        busy.hello()
        begin(busy)
        mx.process.send_signal(signal.SIGTERM)
        until(lambda: mx.process.poll() is not None or refused(("127.0.0.1", port)), "HTTP to stop")
        busy.line("Subject: last orders", ".")
        busy.expect("250", "421")
    assert mx.wait() == 0
    assert "Traceback" not in mx.log


SALTS = """
import os
from greensmtp import SMTPServer
from greensmtp.middleware import Auth

class Users:
    scram_iterations, scram_salt_length = 4096, 16
    def get_scram_keys(self, username):
        return None

server = SMTPServer(("127.0.0.1", 0), hostname=f"w{os.getpid()}.example.com",
                    middleware=[Auth(Users(), allow_plaintext=True)])
"""


def test_workers_show_unknown_users_the_same_salt(gunicorn: Callable[..., Gunicorn], tmp_path: Path) -> None:
    (tmp_path / "salts.py").write_text(SALTS)
    mx = gunicorn(*SMTP, "-b", "127.0.0.1:0", "salts:server")
    salts: dict[str, str] = {}
    first = b64encode(b"n,,n=nobody,r=rOprNGfwEbeRWgbNEkqO").decode()

    def ask() -> bool:
        with mx.dial(mx.ports[0]) as peer:
            name = str(peer.expect("220")).split()[1]
            peer.line("EHLO client.example", f"AUTH SCRAM-SHA-256 {first}")
            challenge = str(peer.expect("250", "334"))
            salts[name] = re.findall(
                r",s=([^,]+),", b64decode(challenge.split("334 ")[1].split(maxsplit=1)[0]).decode()
            )[0]
        return len(salts) == 2

    until(ask, "both workers to answer")
    assert len(set(salts.values())) == 1


def test_arguments_are_checked_early() -> None:
    with pytest.raises(TypeError, match="an address to listen on"):
        beside("app:server")
    with pytest.raises(ValueError, match="listen takes"):
        beside("app:server", "nonsense")
    with pytest.raises(TypeError, match="expected an SMTPServer"):
        read_servers(lambda: [])
