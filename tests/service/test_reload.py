"""SIGHUP: a new configuration on the same sockets, while clients are connected."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest

from greensmtp import SMTPServer
from greensmtp.config.load import load
from greensmtp.service.errors import StartError
from greensmtp.service.service import Service
from greensmtp.testing import Peer
from tests.helpers import replace_text, until
from tests.serve_process import ServeProcess

Serve = Callable[..., ServeProcess]

CONFIG = """
hostname = "{name}"
{top}
[[listeners]]
url = "smtp://127.0.0.1:0"
{more}
[delivery]
maildir = "maildir"
[logging]
level = "info"
[service]
{service}
"""


class Served:
    """A server with a configuration file that can be changed."""

    def __init__(self, serve: Serve, folder: Path, **parts: str) -> None:
        self.path = folder / "greensmtp.toml"
        self.write("one.example.com", **parts)
        self.server = serve("--config", self.path, listeners=parts.get("more", "").count("[[listeners]]") + 1)

    def write(self, name: str, *, top: str = "middleware = []", more: str = "", service: str = "") -> None:
        replace_text(self.path, CONFIG.format(name=name, top=top, more=more, service=service))

    def hang_up(self, until: str) -> None:
        """Send SIGHUP, and wait until the log says something once more."""
        seen = self.server.log.count(until)
        self.server.process.send_signal(signal.SIGHUP)
        with gevent.Timeout(20):
            while self.server.log.count(until) == seen:
                gevent.sleep(0.01)

    def reload(self, name: str, **parts: str) -> None:
        self.write(name, **parts)
        self.hang_up("configuration reloaded")

    @property
    def descriptors(self) -> int:
        """How many descriptors the process has open."""
        return sum(1 for _ in Path(f"/proc/{self.server.process.pid}/fd").iterdir())

    def banner(self, number: int = 0) -> str:
        with self.server.dial(number) as peer:
            return str(peer.expect("220"))


@pytest.fixture
def served(serve: Serve, tmp_path: Path) -> Callable[..., Served]:
    return lambda **parts: Served(serve, tmp_path, **parts)


def begin(peer: Peer) -> None:
    """Begin a message, up to the 354."""
    peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA")
    peer.expect("250", "250", "354")


def test_new_connections_get_the_new_configuration_and_old_ones_go_on(served: Callable[..., Served]) -> None:
    mx = served()
    with mx.server.dial() as busy, mx.server.dial() as idle:
        busy.hello()
        begin(busy)
        idle.hello()
        mx.reload("two.example.com")
        assert "two.example.com" in mx.banner()
        busy.line("Subject: before", "", "body", ".")
        busy.expect("250 2.0.0")
        begin(busy)  # and another one, after the reload
        busy.line("Subject: after", "", "body", ".")
        busy.expect("250 2.0.0")
        idle.line("NOOP")
        idle.expect("250")
        mx.reload("three.example.com")
        assert "three.example.com" in mx.banner()
        idle.line("NOOP", "QUIT")
        idle.expect("250", "221")
        assert mx.server.stop() == 0
        busy.expect("421 4.3.2")
    assert len(mx.server.mail) == 2


def test_a_wrong_configuration_is_refused_and_the_old_one_served(served: Callable[..., Served]) -> None:
    mx = served()
    mx.path.write_text('hostname = "two.example.com"\nnonsense = 1\n[limits]\nmax_recipients = "many"\n')
    mx.hang_up("was not reloaded")
    assert f"{mx.path}:2: nonsense: there is no such key" in mx.server.log
    assert f"{mx.path}:4: limits.max_recipients" in mx.server.log
    assert "one.example.com" in mx.banner()
    mx.path.unlink()
    mx.hang_up("was not reloaded")
    assert "one.example.com" in mx.banner()
    mx.reload("three.example.com")
    assert "three.example.com" in mx.banner()
    assert mx.server.stop() == 0


def test_what_cannot_start_is_refused_and_leaves_nothing_open(served: Callable[..., Served], tmp_path: Path) -> None:
    mx = served()
    unix = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        more = f'[[listeners]]\nurl = "unix:{unix}"\n[[listeners]]\nurl = "smtp://127.0.0.1:{port}"'
        mx.write("two.example.com", more=more)
        mx.hang_up("was not reloaded")
    assert f"cannot listen on smtp://127.0.0.1:{port}: Address already in use" in mx.server.log
    assert not unix.exists()
    assert "one.example.com" in mx.banner()
    assert mx.server.stop() == 0


def test_listeners_come_and_go(served: Callable[..., Served], tmp_path: Path) -> None:
    mx = served()
    unix = tmp_path / "socket"
    mx.reload("two.example.com", more=f'[[listeners]]\nurl = "unix:{unix}"')
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(unix))
        assert client.recv(100).startswith(b"220 two.example.com")
        mx.reload("three.example.com")
        assert not unix.exists()
        client.sendall(b"NOOP\r\n")
        assert client.recv(100).startswith(b"250")
    assert mx.server.stop() == 0


def test_after_the_grace_old_connections_drain(served: Callable[..., Served]) -> None:
    mx = served()
    with mx.server.dial() as idle:
        idle.hello()
        mx.reload("two.example.com", service="reload_grace = 0.1")
        idle.expect("421 4.3.2")
        idle.expect_end()
    assert mx.server.stop() == 0


LIMIT = '[[middleware]]\nuse = "RateLimit"\nlimit = "1/hour"\n'


def test_a_limit_is_not_reset(served: Callable[..., Served]) -> None:
    mx = served(top=LIMIT)
    with mx.server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>")
        peer.expect("250")
    mx.reload("two.example.com", top=LIMIT)
    with mx.server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>")
        peer.expect("450 4.7.1")
    mx.reload("three.example.com", top=LIMIT.replace("1/", "5/"))
    with mx.server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>")
        peer.expect("250")
    assert mx.server.stop() == 0


def test_connections_from_before_count_for_the_limit(served: Callable[..., Served]) -> None:
    top = "middleware = []\nlimits.max_connections = 1"
    mx = served(top=top)
    with mx.server.dial() as before:
        before.hello()
        mx.reload("two.example.com", top=top)
        with mx.server.dial() as peer:
            peer.expect("421")
        before.line("QUIT")
        before.expect("221")
        before.expect_end()
    assert "two.example.com" in mx.banner()
    assert mx.server.stop() == 0


def test_the_log_file_is_opened_again(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "mail.log"
    path = tmp_path / "greensmtp.toml"
    text = CONFIG.format(name="one.example.com", top="middleware = []", more="", service="")
    path.write_text(text.replace("[logging]", f'[logging]\ntarget = "{log}"'))
    server = serve("--config", path, listeners=1)
    log.rename(tmp_path / "mail.log.1")
    server.process.send_signal(signal.SIGHUP)
    with gevent.Timeout(20):
        while not log.exists() or "reloaded" not in log.read_text():
            gevent.sleep(0.01)
    assert server.stop() == 0


def test_many_reloads_in_a_row(served: Callable[..., Served]) -> None:
    mx = served()
    open_before = mx.descriptors
    for number in range(20):
        mx.reload(f"mx{number}.example.com")
        assert f"mx{number}.example.com" in mx.banner()
    assert mx.descriptors <= open_before + 1
    assert mx.server.stop() == 0
    assert "Traceback" not in mx.server.log


def test_nohup_is_respected(serve: Serve, tmp_path: Path) -> None:
    server = serve(first="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    server.process.send_signal(signal.SIGHUP)
    with server.dial() as peer:
        peer.hello()
    assert server.stop() == 0
    assert server.log == ""


def test_reloads_keep_no_old_servers(tmp_path: Path) -> None:
    path = tmp_path / "greensmtp.toml"

    def write(name: str) -> None:
        path.write_text(
            f'hostname = "{name}.example"\n[[middleware]]\nuse = "Tarpit"\n[[listeners]]\nurl = "127.0.0.1:0"\n'
            f'[delivery]\nmaildir = "{tmp_path}/mail"\n[service]\nreload_grace = 0.01\n'
        )

    def servers() -> int:
        gc.collect()
        return sum(type(each) is SMTPServer and each.hostname.startswith("kept-") for each in gc.get_objects())

    write("kept-0")
    service = Service(lambda: load(path, [], {}, None))
    service.start()
    try:
        for number in range(1, 6):
            write(f"kept-{number}")
            assert service.reload()
        until(lambda: servers() == 1, "the old servers to be forgotten")
    finally:
        service.stop()


@pytest.mark.parametrize("failure", ["dup", "start"])
def test_a_server_that_cannot_start_leaves_everything_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    """No descriptor may be left to duplicate a socket, at the start and at a reload."""
    path = tmp_path / "greensmtp.toml"

    def write(limit: int) -> None:
        path.write_text(
            'middleware = []\n[[listeners]]\nurl = "127.0.0.1:0"\n'
            f'[delivery]\nmaildir = "{tmp_path}/mail"\n[limits]\nmax_connections = {limit}\n'
        )

    class Full:
        """A socket that cannot be duplicated."""

        def dup(self) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def start(server: SMTPServer) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    write(5)
    service = Service(lambda: load(path, [], {}, None))
    service.start()
    (server,) = service.servers
    try:
        with monkeypatch.context() as patch:
            if failure == "dup":
                patch.setattr(service.sockets, "open", lambda key, backlog: Full())
                complaint = "cannot listen on smtp://127.0.0.1:0: Too many open files"
            else:
                patch.setattr(SMTPServer, "start", start)
                complaint = "cannot start: OSError: [Errno 24] Too many open files"
            write(7)
            assert not service.reload()
            assert complaint in caplog.text
            other = Service(lambda: load(path, [], {}, None), sockets=service.sockets)
            if failure == "dup":
                monkeypatch.setattr(service.sockets, "close", lambda: None)
                with pytest.raises(StartError, match=complaint):
                    other.start()
        assert service.servers == [server]
        assert server._registry.places.limit == 5
    finally:
        monkeypatch.undo()
        service.stop()
