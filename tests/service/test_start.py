"""How a service starts: inherited sockets, systemd's notifications, the pid file, another user."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import gevent
import pytest

from greensmtp import _notify
from greensmtp.config.problems import ConfigError
from greensmtp.service.errors import StartError
from greensmtp.service.pid_file import pid_file
from greensmtp.service.privileges import acting_as, find_identity, look_up, naming_user, warn_of_unreadable_code
from greensmtp.service.sockets import Sockets, keys_of
from greensmtp.service.systemd import inherited_sockets, notifying
from greensmtp.testing import Peer
from tests.helpers import until
from tests.serve_process import ServeProcess

Serve = Callable[..., ServeProcess]

#: Starts a program as systemd does: the sockets are descriptors from 3 on, and LISTEN_PID is the program's own number.
ACTIVATE = """
import os, sys
count = int(sys.argv[1])
for number, descriptor in enumerate(sys.argv[2:2 + count]):
    os.dup2(int(descriptor), 3 + number)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "greensmtp", *sys.argv[2 + count:]])
"""

CONFIG = """
hostname = "mx.example.com"
middleware = []
[[listeners]]
url = "smtp://127.0.0.1:{port}"
[delivery]
maildir = "maildir"
[logging]
level = "info"
[service]
{service}
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens on for notifications."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def states(manager: socket.socket, until: str) -> list[str]:
    """Return the notifications up to one that begins so."""
    found: list[str] = []
    while not found or not found[-1].startswith(until):
        found.append(manager.recv(4096).decode())
    return found


def write(folder: Path, port: int, service: str = "") -> Path:
    path = folder / "greensmtp.toml"
    path.write_text(CONFIG.format(port=port, service=service))
    return path


def test_systemd_is_told_what_happens(serve: Serve, tmp_path: Path, manager: socket.socket) -> None:
    path = write(tmp_path, 0)
    environment = {**os.environ, "NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "40000"}
    server = serve("--config", path, listeners=1, env=environment)
    assert states(manager, "READY=1")[-1] == "READY=1\nSTATUS=listening on smtp://127.0.0.1:0"
    states(manager, "WATCHDOG=1")
    server.process.send_signal(signal.SIGHUP)
    assert "\nMONOTONIC_USEC=" in states(manager, "RELOADING=1")[-1]
    states(manager, "READY=1")
    path.write_text("nonsense = 1\n")
    server.process.send_signal(signal.SIGHUP)  # refused, but the service is ready again
    states(manager, "RELOADING=1")
    states(manager, "READY=1")
    with server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "354")
        server.process.send_signal(signal.SIGTERM)
        states(manager, "STOPPING=1")
        states(manager, "WATCHDOG=1")  # while it drains, too
        peer.line(".")
        peer.expect("250", "421")
    assert server.wait() == 0


def test_a_socket_of_systemd_is_used(serve: Serve, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept, socket.create_server(("127.0.0.1", 0)) as unused:
        port = kept.getsockname()[1]
        path = write(tmp_path, port)
        descriptors = [each.fileno() for each in (kept, unused)]
        command = [sys.executable, "-c", ACTIVATE, "2", *map(str, descriptors)]
        waiting = socket.create_connection(("127.0.0.1", port))  # before the server runs
        server = serve("--config", path, listeners=1, command=command, pass_fds=descriptors)
        with Peer(gevent.socket.socket(fileno=waiting.detach())) as peer:
            peer.hello()
        until(
            lambda: f"the socket at {unused.getsockname()!r} was inherited, but no listener" in server.log,
            "the warning",
        )
        server.process.send_signal(signal.SIGHUP)
        with server.dial() as peer:
            peer.hello()
        assert server.stop() == 0
        with socket.create_connection(("127.0.0.1", port)):
            pass  # systemd's socket still listens


@pytest.mark.parametrize(
    ("number", "complaint"), [("x", "expected a number of sockets in LISTEN_FDS; got 'x'"), ("100000", "is no socket")]
)
def test_wrong_sockets_are_an_error(monkeypatch: pytest.MonkeyPatch, number: str, complaint: str) -> None:
    monkeypatch.setenv("LISTEN_FDS", number)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setattr("greensmtp.service.systemd.FIRST", 100_000)
    with pytest.raises(StartError, match=complaint):
        inherited_sockets()
    assert "LISTEN_FDS" not in os.environ


@pytest.mark.parametrize(("pid", "why"), [("1", "LISTEN_PID is '1'"), (None, "there is no LISTEN_PID")])
def test_sockets_for_another_process_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pid: str | None, why: str
) -> None:
    """sd_listen_fds(3): without this process's own ID in LISTEN_PID, descriptor 3 is something else."""
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.delenv("LISTEN_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("LISTEN_PID", pid)
    assert inherited_sockets() == []
    assert "LISTEN_FDS" not in os.environ
    (record,) = caplog.records
    assert record.getMessage() == f"ignoring LISTEN_FDS: {why}, but the ID of this process is {os.getpid()}"


def test_what_systemd_had_no_room_for_is_sent_again(
    tmp_path: Path, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order in which it happened, and watchdog messages are not kept."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setattr(_notify, "RETRY_SECONDS", 0.02)
    sent = 0
    while _notify.notify("WATCHDOG=1"):  # until the queue is full
        sent += 1
    with notifying():
        _notify.ready("one")
        _notify.reloading()
        _notify.ready("two")
        for _ in range(sent):
            assert manager.recv(100) == b"WATCHDOG=1"
        manager.setblocking(False)
        found: list[str] = []
        with gevent.Timeout(10):
            while len(found) < 3:
                try:
                    found.append(manager.recv(4096).decode())
                except BlockingIOError:
                    gevent.sleep(0.01)
    assert [each.partition("\n")[0] for each in found] == ["READY=1", "RELOADING=1", "READY=1"]
    assert found[-1].endswith("two")


def test_an_inherited_socket_is_found_by_its_address(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    tcp, unix = gevent.socket.socket(), gevent.socket.socket(gevent.socket.AF_UNIX)
    tcp.bind(("127.0.0.1", 0))
    unix.bind(path)
    port = tcp.getsockname()[1]
    sockets = Sockets([tcp, unix])
    assert sockets.open((path, 0), None) is unix
    assert sockets.open((("localhost", port), 0), 5) is tcp
    sockets.close()
    assert Path(path).exists()  # not ours to remove
    tcp.close(), unix.close()


def test_keys_tell_free_ports_apart() -> None:
    free, fixed = ("127.0.0.1", 0), ("127.0.0.1", 25)
    assert keys_of([free, fixed, free, fixed]) == [(free, 0), (fixed, 0), (free, 1), (fixed, 0)]


def test_servers_of_one_user_can_share_a_port(serve: Serve, tmp_path: Path) -> None:
    first = serve("--config", write(tmp_path, 0, "reuse_port = true"), listeners=1)
    second = serve("--config", write(tmp_path, first.port, "reuse_port = true"), listeners=1)
    assert second.port == first.port
    assert first.stop() == 0
    with second.dial() as peer:
        peer.hello()
    third = serve("--config", write(tmp_path, first.port), listeners=1, wait=False)
    assert third.wait() == 1
    assert second.stop() == 0


def test_the_pid_file_is_held_and_removed(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "run" / "pid"
    path.parent.mkdir()
    path.write_text("1\n" * 20)  # of a server that was killed
    config = write(tmp_path, 0, f'pid_file = "{path}"')
    server = serve("--config", config, listeners=1)
    assert path.read_text() == f"{server.process.pid}\n"
    second = serve("--config", config, listeners=1, wait=False)
    assert second.wait() == 1
    complaint = f"Error: the pid file {str(path)!r} is held by a running server, process {server.process.pid}\n"
    assert complaint in server.log
    assert server.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize("what", ["a folder", "no folder", "a symlink"])
def test_a_pid_file_that_cannot_be_written_is_an_error(tmp_path: Path, what: str) -> None:
    path = tmp_path / "pid"
    if what == "a folder":
        path.mkdir()
    elif what == "no folder":
        path = tmp_path / "none" / "pid"
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="cannot write the pid file"), pid_file(str(path)):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("user", "group", "complaint"),
    [
        ("no-such-user", None, "there is no user 'no-such-user'"),
        ("4294967296000", None, "there is no user"),
        ("nobody", "no-such-group", "there is no group 'no-such-group'"),
        (None, "nogroup", "a group needs a user with it"),
    ],
)
def test_wrong_users_and_groups_are_named(user: str | None, group: str | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        find_identity(user, group)


def test_this_user_needs_no_change() -> None:
    assert find_identity(None, None) is None
    assert find_identity(str(os.geteuid()), str(os.getegid())) is None


def test_a_user_who_is_not_root_cannot_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(ValueError, match="only root can become"):
        find_identity("nobody", None)


def test_code_that_the_new_user_cannot_read_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    identity = look_up("nobody", None)
    assert identity is not None
    monkeypatch.setattr("os.access", lambda path, mode: True)
    warn_of_unreadable_code(identity)
    assert not caplog.records
    monkeypatch.setattr("os.access", lambda path, mode: path != os.__file__)
    warn_of_unreadable_code(identity)
    (record,) = caplog.records
    assert f"user 'nobody' cannot read the code in {Path(os.__file__).parent}, so" in record.getMessage()


def test_an_error_after_the_change_names_the_user() -> None:
    identity = look_up("nobody", None)
    with pytest.raises(ConfigError) as raised, naming_user(identity):
        raise ConfigError(["greensmtp.toml:2: tls_key: 'key.pem' cannot be read: Permission denied"])
    assert raised.value.lines[1:] == ["this was checked as user 'nobody', which [service] names"]
    with pytest.raises(ConfigError) as raised, naming_user(None):
        raise ConfigError(["wrong"])
    assert raised.value.lines == ["wrong"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_the_new_user_cannot_write_names_the_user(serve: Serve, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    server = serve("--config", write(tmp_path, 0, 'user = "nobody"'), wait=False)  # root's folder
    assert server.wait() == 2
    assert "delivery.maildir: cannot write to" in server.log
    assert "this was checked as user 'nobody', which [service] names" in server.log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_acting_as_a_user_has_none_of_roots_groups() -> None:
    """Else the log would be opened where only a group of root's may write."""
    identity = find_identity("nobody", None)
    assert identity is not None
    groups = os.getgroups()
    try:
        os.setgroups([0, 12345])
        with acting_as(identity):
            assert (os.geteuid(), os.getegid()) == (identity.uid, identity.gid)
            assert set(os.getgroups()) == set(identity.groups)
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, 0, [0, 12345])
    finally:
        os.setgroups(groups)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_becomes_another_user_once_it_listens(serve: Serve, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    mail = tmp_path / "mail"
    mail.mkdir()
    os.chown(mail, nobody.pw_uid, nobody.pw_gid)
    held = tmp_path / "held"
    held.mkdir(mode=0o700)  # only root can write the pid file
    path = write(tmp_path, 0, f'user = "nobody"\npid_file = "{held}/pid"')
    path.write_text(path.read_text().replace('maildir = "maildir"', f'maildir = "{mail}/box"'))
    server = serve("--config", path, listeners=1)
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    assert f"Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}\t{nobody.pw_uid}\t{nobody.pw_uid}" in status
    assert f"Gid:\t{nobody.pw_gid}\t{nobody.pw_gid}\t{nobody.pw_gid}\t{nobody.pw_gid}" in status
    assert "Groups:\t0" not in status
    assert (mail / "box" / "new").stat().st_uid == nobody.pw_uid
    server.process.send_signal(signal.SIGHUP)
    with server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA", "", ".")
        peer.expect("250", "250", "354", "250")
    assert server.stop() == 0
    assert (held / "pid").read_text() == ""
