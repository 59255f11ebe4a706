"""``greensmtp serve --workers``: several processes on the same sockets, replaced and reloaded without a gap."""

from __future__ import annotations

import http.client
import os
import pwd
import re
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greensmtp.config.problems import ConfigError
from greensmtp.service import plan
from greensmtp.service.arbiter import ServiceArbiter
from greensmtp.testing import Peer
from tests.helpers import free_port, refused, replace_text, until
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
workers = 2
{service}
"""

pytestmark = [pytest.mark.subprocess, pytest.mark.timeout(120)]


class Served:
    """An arbiter with two workers."""

    def __init__(self, serve: Serve, folder: Path, **parts: str) -> None:
        self.path = folder / "greensmtp.toml"
        self.write("one.example.com", **parts)
        self.server = serve("--config", self.path, listeners=1, command=[sys.executable, "-m", "greensmtp"])

    def write(self, name: str, *, top: str = "middleware = []", more: str = "", service: str = "") -> None:
        replace_text(self.path, CONFIG.format(name=name, top=top, more=more, service=service))

    @property
    def pid(self) -> int:
        return self.server.process.pid

    @property
    def workers(self) -> set[int]:
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return {int(each) for each in text.split()}

    def hang_up(self, until_logged: str) -> None:
        seen = self.server.log.count(until_logged)
        os.kill(self.pid, signal.SIGHUP)
        until(lambda: self.server.log.count(until_logged) > seen, until_logged)

    def banner(self) -> str:
        with self.server.dial() as peer:
            return str(peer.expect("220"))


@pytest.fixture
def served(serve: Serve, tmp_path: Path) -> Callable[..., Served]:
    return lambda **parts: Served(serve, tmp_path, **parts)


def deliver(peer: Peer) -> str:
    """Send a message; return its ID."""
    peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA", "Subject: x", "", "body", ".")
    return str(peer.expect("250", "250", "354", "250")).rpartition("queued as ")[2].strip("\r\n ])'")


def test_a_worker_that_dies_is_replaced_and_the_port_stays_open(served: Callable[..., Served]) -> None:
    mx = served()
    until(lambda: len(mx.workers) == 2, "two workers")
    before = mx.workers
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    with mx.server.dial() as peer:  # it waits in the listen queue
        peer.hello()
        deliver(peer)
    until(lambda: len(mx.workers - before) == 2, "two other workers")
    assert mx.server.stop() == 0
    assert len(mx.server.mail) == 1
    assert "Traceback" not in mx.server.log


def test_ids_are_unique_and_limits_are_said_to_be_per_worker(served: Callable[..., Served]) -> None:
    mx = served(top='[[middleware]]\nuse = "ConnectionLimit"')
    assert mx.server.log.count("2 workers: each counts max_connections, ConnectionLimit by itself") == 1
    with ExitStack() as stack:
        peers = [stack.enter_context(mx.server.dial()) for _ in range(16)]
        for peer in peers:
            peer.hello()
        for peer in peers:
            deliver(peer)
    assert mx.server.stop() == 0
    names = [line.rpartition("queued as ")[2] for line in mx.server.lines() if line.startswith("message")]
    assert len(names) == len(set(names)) == 16
    files = {path.name for path in (mx.server.maildir / "new").iterdir()}
    assert all(any(name in file for file in files) for name in names)


def test_a_reload_lets_old_connections_go_on(served: Callable[..., Served]) -> None:
    mx = served()
    with mx.server.dial() as old:
        old.hello()
        mx.write("two.example.com")
        mx.hang_up("configuration reloaded")
        until(lambda: all("two." in mx.banner() for _ in range(4)), "the new configuration")
        deliver(old)
        old.line("QUIT")
        old.expect("221 2.0.0")
    until(lambda: len(mx.workers) == 2, "the old workers to end")
    assert mx.server.stop() == 0


def test_a_listener_that_is_gone_is_closed_in_all_processes(served: Callable[..., Served]) -> None:
    other = ("127.0.0.1", free_port())
    mx = served(more=f'[[listeners]]\nurl = "smtp://127.0.0.1:{other[1]}"')
    assert not refused(other)
    mx.write("two.example.com")
    mx.hang_up("configuration reloaded")
    until(lambda: refused(other), "the port to be closed")
    assert mx.server.stop() == 0


def test_after_the_grace_old_connections_drain(served: Callable[..., Served]) -> None:
    mx = served(service="reload_grace = 0.1")
    with mx.server.dial() as old:
        old.hello()
        mx.hang_up("configuration reloaded")
        old.expect("421 4.3.2")
        old.expect_end()
    assert mx.server.stop() == 0


def test_a_wrong_configuration_is_refused_and_a_replaced_worker_has_the_old_one(served: Callable[..., Served]) -> None:
    mx = served()
    mx.path.write_text("nonsense = 1\n")
    mx.hang_up("was not reloaded")
    assert f"{mx.path}:1: nonsense: there is no such key" in mx.server.log
    before = mx.workers
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert "one.example.com" in mx.banner()
    assert mx.server.stop() == 0


def test_what_only_workers_find_wrong_is_refused_too(served: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "class Late:\n def __call__(self, s, c, p): return p(s, c)\n"
        " def start(self, server): raise OSError('no start')\n"
    )
    mx = served()
    mx.write("two.example.com", top='[[middleware]]\nuse = "late:Late"')
    mx.hang_up("was not reloaded")
    assert "no start" in mx.server.log
    assert "one.example.com" in mx.banner()
    mx.write("three.example.com")
    mx.hang_up("configuration reloaded")
    assert mx.server.stop() == 0


def test_a_refused_reload_keeps_the_address_of_http(served: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "class Late:\n def __call__(self, s, c, p): return p(s, c)\n"
        " def start(self, server): raise OSError('no start')\n"
    )
    first, second = free_port(), free_port()

    def http_at(port: int) -> str:
        return f'[http]\nlisten = "127.0.0.1:{port}"'

    def is_ready() -> bool:
        with closing(http.client.HTTPConnection("127.0.0.1", first, timeout=20)) as connection:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200

    mx = served(service=http_at(first))
    mx.write("two.example.com", top='[[middleware]]\nuse = "late:Late"', service=http_at(second))
    mx.hang_up("was not reloaded")
    until(lambda: refused(("127.0.0.1", second)), "the new address to be closed")
    before = mx.workers
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(mx.workers - before) == 2 and not mx.workers & before, "other workers")
    assert is_ready()
    mx.write("three.example.com", service=http_at(first))
    mx.hang_up("configuration reloaded")
    assert is_ready()
    mx.write("four.example.com", service=http_at(second))
    mx.hang_up("configuration reloaded")
    until(lambda: refused(("127.0.0.1", first)), "the old address to be closed")
    assert not refused(("127.0.0.1", second))
    assert mx.server.stop() == 0


@pytest.mark.parametrize("answer", [b"", b'{"lines": ["a'])
def test_a_check_that_ends_without_its_answer_is_refused(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    """The kernel may end the child for its memory, in the middle of a write too."""

    def report(load: object, write: int) -> None:
        os.write(write, answer)
        os._exit(0)

    monkeypatch.setattr(plan, "_report", report)
    with pytest.raises(ConfigError, match="has ended without an answer"):
        plan.Check(lambda: pytest.fail("it is not called here")).wait()


def test_a_reload_that_raises_ends_no_service(caplog: pytest.LogCaptureFixture) -> None:
    """gunicorn ends all workers when something raises in its main loop."""

    class Broken:
        def result(self) -> None:
            raise OSError("no such descriptor")

    served: Any = SimpleNamespace(failed=False, plan=SimpleNamespace(urls=[], workers=0))
    arbiter: Any = ServiceArbiter.__new__(ServiceArbiter)
    arbiter._generation, arbiter._next, arbiter._check = served, None, Broken()
    arbiter._is_announced, arbiter._check_again, arbiter._keep = True, False, lambda plan: None
    arbiter.WORKERS, arbiter._num_workers = {}, 0
    for _ in range(2):
        arbiter.manage_workers()
    assert [record.getMessage() for record in caplog.records] == [
        "unexpected error in the reload; dropping the new configuration",
        "the configuration was not reloaded; the one before is still served",
    ]


def test_a_check_may_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_report", lambda load, write: signal.pause())
    check = plan.Check(lambda: pytest.fail("it is not called here"))
    assert check.result() is None
    check.cancel()
    assert os.waitstatus_to_exitcode(os.waitpid(check._pid, 0)[1]) == -signal.SIGKILL


def test_new_listeners_are_opened_and_old_ones_closed(served: Callable[..., Served], tmp_path: Path) -> None:
    mx = served()
    path = tmp_path / "socket"
    mx.write("two.example.com", more=f'[[listeners]]\nurl = "unix:{path}"')
    mx.hang_up("configuration reloaded")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        assert client.recv(100).startswith(b"220 two.example.com")
    mx.write("three.example.com")
    mx.hang_up("configuration reloaded")
    assert not path.exists()
    assert mx.server.stop() == 0


def test_each_worker_has_a_socket_of_its_own_where_asked(served: Callable[..., Served]) -> None:
    mx = served(service="reuse_port = true")
    port = f":{mx.server.port:04X}"
    table = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = [line for line in table if line.split()[1].endswith(port) and line.split()[3] == "0A"]
    assert len(listening) == 2
    for _ in range(2):
        mx.hang_up("configuration reloaded")
        for _ in range(8):
            assert "one.example.com" in mx.banner()
    assert mx.server.stop() == 0


def test_metrics_add_up_over_workers_that_are_gone_too(served: Callable[..., Served]) -> None:
    mx = served(top='[[middleware]]\nuse = "Metrics"', service='[http]\nlisten = "127.0.0.1:0"')
    port = int(re.findall(r":(\d+)/readyz", mx.server.line())[0])

    def page(path: str) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    assert page("/readyz")[0] == page("/healthz")[0] == 200
    with ExitStack() as stack:
        for _ in range(8):
            peer = stack.enter_context(mx.server.dial())
            peer.hello()
            deliver(peer)
        for _ in range(4):  # whichever worker answers
            text = page("/metrics")[1]
            assert "greensmtp_connections_open 8.0" in text
            assert 'greensmtp_messages_total{outcome="accepted"} 8.0' in text
        before = mx.workers
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(mx.workers - before) == 2 and not mx.workers & before, "other workers")
        text = page("/metrics")[1]
        assert "greensmtp_connections_open 8.0" not in text
        assert 'greensmtp_messages_total{outcome="accepted"} 8.0' in text
    assert mx.server.stop() == 0


def test_the_second_signal_ends_all_at_once(served: Callable[..., Served]) -> None:
    mx = served()
    with mx.server.dial() as busy:
        busy.hello()
        busy.line("MAIL FROM:<ann@example.com>")
        busy.expect("250")
        os.kill(mx.pid, signal.SIGTERM)
        until(lambda: refused(("127.0.0.1", mx.server.port)), "the port to close")
        os.kill(mx.pid, signal.SIGINT)
        assert mx.server.wait() == 1


def test_without_an_arbiter_workers_drain_and_end(served: Callable[..., Served]) -> None:
    mx = served()
    with mx.server.dial() as busy:
        busy.hello()
        busy.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA")
        busy.expect("250", "250", "354")
        os.kill(mx.pid, signal.SIGKILL)
        until(lambda: refused(("127.0.0.1", mx.server.port)), "the port to close")
        busy.line("Subject: x", ".")
        busy.expect("250", "421")
        busy.expect_end()
    assert len(mx.server.mail) == 1


def test_systemd_is_told_by_the_arbiter_and_its_socket_is_used(serve: Serve, tmp_path: Path) -> None:
    """The program starts as systemd would start it: the socket is descriptor 3."""
    activate = (
        "import os, sys\nos.dup2(int(sys.argv[1]), 3)\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'greensmtp', *sys.argv[2:]])"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as kept,
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager,
    ):
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        path = tmp_path / "greensmtp.toml"
        text = CONFIG.format(name="one.example.com", top="middleware = []", more="", service="")
        path.write_text(text.replace("127.0.0.1:0", f"127.0.0.1:{kept.getsockname()[1]}"))
        server = serve(
            *("--config", path),
            listeners=1,
            command=[sys.executable, "-c", activate, str(kept.fileno())],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"},
            pass_fds=[kept.fileno()],
        )

        def told(state: str) -> None:
            while not manager.recv(4096).decode().startswith(state):
                pass

        told("READY=1")
        told("WATCHDOG=1")
        os.kill(server.process.pid, signal.SIGHUP)
        told("RELOADING=1")
        told("READY=1")
        assert server.stop() == 0
        told("STOPPING=1")
        with socket.create_connection(kept.getsockname(), 10):
            pass  # systemd's socket goes on


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_workers_become_the_user_and_the_arbiter_does_not(served: Callable[..., Served], tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for folder in (Path(os.__file__), *Path(os.__file__).parents):
        if not folder.stat().st_mode & 0o001 and folder.is_dir():
            pytest.skip(f"another user cannot read the standard library: {folder}")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    os.chown(tmp_path, nobody.pw_uid, nobody.pw_gid)
    mx = served(service='user = "nobody"')
    assert Path(f"/proc/{mx.pid}").stat().st_uid == 0
    assert {Path(f"/proc/{pid}").stat().st_uid for pid in mx.workers} == {nobody.pw_uid}
    mx.hang_up("configuration reloaded")
    with mx.server.dial() as peer:
        peer.hello()
        deliver(peer)
    assert mx.server.stop() == 0
    assert mx.server.maildir.stat().st_uid == nobody.pw_uid


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_a_wrong_number_of_workers_is_a_usage_error(serve: Serve, text: str) -> None:
    server = serve("--workers", text, wait=False)
    assert server.wait() == 2
    assert "expected a number from 1 to 1024, or auto" in server.log


def test_without_gunicorn_the_extra_is_named(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "gunicorn.py").write_text("raise ModuleNotFoundError('hidden')\n")
    server = serve("--workers", "2", wait=False, first=f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert server.wait() == 1
    assert "--workers needs gunicorn: pip install 'greensmtp[workers]'" in server.log
