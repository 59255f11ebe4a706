"""``greensmtp top`` and ``greensmtp trace`` with a real server: what they print, and how they end."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import pwd
import signal
import struct
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import os as gevent_os

from tests import forked
from tests.helpers import until
from tests.serve_process import ServeProcess

Serve = Callable[..., ServeProcess]

CONFIG = """
hostname = "mx.example.com"
middleware = []
[[listeners]]
url = "127.0.0.1:0"
[service]
control = "control"
"""


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    """The folder of each test, with room for the path of a socket in it."""
    return short_path


@pytest.fixture
def server(serve: Serve, tmp_path: Path) -> ServeProcess:
    """A running server whose control sockets are in ./control."""
    (tmp_path / "greensmtp.toml").write_text(CONFIG)
    return serve("--config", "greensmtp.toml", listeners=1)


def run(*arguments: str, folder: Path, **options: Any) -> tuple[int, str, str]:
    ran = forked.run(forked.command_line(*arguments), cwd=folder, **options)
    return ran.returncode, ran.stdout, ran.stderr


def send(server: ServeProcess, recipient: str = "bob@example.org") -> None:
    """Send a message whose body is secret, and a recipient that is refused."""
    with server.dial() as peer:
        peer.line("EHLO client.example", "MAIL FROM:<ann@example.com>", "RCPT TO:<x>", f"RCPT TO:<{recipient}>", "DATA")
        peer.expect("220", "250", "250", "501", "250", "354")
        peer.send(b"Subject: Tea\r\n\r\nAt four.\r\n.\r\n")
        peer.expect("250")
        peer.line("QUIT")
        peer.expect("221")


def send_when_looked_at(server: ServeProcess, folder: Path) -> None:
    """Send the message once ``top`` has connected: the kernel lists the connection beside the socket itself."""
    control = f"{folder}/control/greensmtp-"
    until(lambda: Path("/proc/net/unix").read_text().count(control) > 1, "a client of the control socket")
    gevent.sleep(0.1)  # the server has the request
    send(server)


@contextmanager
def following(folder: Path, *arguments: str) -> Iterator[forked.Process]:
    """Run ``greensmtp trace`` until the end of the block; begin it when it follows."""
    with (folder / "said").open("wb") as said:
        process = forked.start(
            forked.command_line("trace", *arguments), cwd=folder, stdout=forked.PIPE, stderr=said.fileno()
        )
    try:
        with gevent.Timeout(20):
            while "following" not in (folder / "said").read_text() and process.poll() is None:
                gevent.sleep(0.01)
        gevent.sleep(0.1)  # the server has the request
        yield process
    finally:
        process.kill()
        if process.stdout is not None:
            process.stdout.close()


def read(process: forked.Process) -> list[str]:
    """Return the lines of a program that has ended."""
    assert process.stdout is not None
    return process.stdout.read().decode().splitlines()


def test_top_prints_the_figures_of_a_server(server: ServeProcess, tmp_path: Path) -> None:
    with server.dial() as idle:
        idle.expect("220")
        sending = gevent.spawn(send_when_looked_at, server, tmp_path)
        status, out, error = run("top", "--once", "--interval", "1.5", "--control", "control", folder=tmp_path)
        sending.get()
    assert (status, error) == (0, "")
    assert f"process {server.process.pid}  on 127.0.0.1:{server.port}" in out
    for line in ("connections 1 (0 TLS)   transactions 0   messages in flight 0   hub lag ", "ann@example.com"):
        assert line in out
    assert "1  RCPT  501 5.1.3  an address needs a domain: 'x'" in out
    assert "\x1b" not in out


@pytest.mark.subprocess
def test_top_sees_every_worker(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "greensmtp.toml").write_text(CONFIG + "workers = 2\n")
    server = serve("--config", "greensmtp.toml", listeners=1, command=[sys.executable, "-m", "greensmtp"])
    status, out, err = run("top", "--control", "control", "--once", "--json", "--interval", "0.2", folder=tmp_path)
    assert (status, err) == (0, "")
    pids = {each["pid"] for each in json.loads(out)["processes"]}
    assert len(pids) == 2
    assert server.process.pid not in pids
    assert server.stop() == 0
    assert not [*(tmp_path / "control").iterdir()]


def test_top_prints_json(server: ServeProcess, tmp_path: Path) -> None:
    sending = gevent.spawn(send_when_looked_at, server, tmp_path)
    arguments = ("top", "--json", "--once", "--interval", "1.5", "--config", "greensmtp.toml")
    status, out, _ = run(*arguments, folder=tmp_path)
    sending.get()
    assert status == 0
    report = json.loads(out)
    assert report["total"]["totals"]["messages"] == 1
    assert report["total"]["rates"]["messages"] > 0
    assert [each["pid"] for each in report["processes"]] == [server.process.pid]


def test_top_adds_up_all_processes_and_skips_those_that_have_ended(
    server: ServeProcess, serve: Serve, tmp_path: Path
) -> None:
    second = serve("--config", "greensmtp.toml", listeners=1)
    third = serve("--config", "greensmtp.toml", listeners=1)
    third.process.kill()
    assert len([*(tmp_path / "control").iterdir()]) == 3
    with server.dial(), second.dial():
        _, out, _ = run("top", "--json", "--once", "--interval", "0.2", "--control", "control", folder=tmp_path)
    report = json.loads(out)
    assert {each["pid"] for each in report["processes"]} == {server.process.pid, second.process.pid}
    assert report["total"]["connections"] == 2
    assert len([*(tmp_path / "control").iterdir()]) == 2
    server.stop()
    assert len([*(tmp_path / "control").iterdir()]) == 1


def test_top_on_a_terminal_ends_with_q(server: ServeProcess, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    os.set_blocking(ours, False)
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    before = termios.tcgetattr(theirs)
    process = forked.start(
        forked.command_line("top", "--control", "control", "--interval", "0.2"),
        cwd=tmp_path,
        env=environment | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    try:
        shown = b""
        with gevent.Timeout(20):
            while b"q ends it" not in shown or b"Connections" not in shown:
                shown += gevent_os.nb_read(ours, 65536)
            os.write(ours, b"q")
            while b"\x1b[?1049l" not in shown:  # the other screen again
                shown += gevent_os.nb_read(ours, 65536)
        assert process.wait() == 0
        assert termios.tcgetattr(theirs)[3] == before[3]
    finally:
        process.kill()
        os.close(ours)
        os.close(theirs)


def test_trace_prints_a_dialogue_without_the_message(server: ServeProcess, tmp_path: Path) -> None:
    with following(tmp_path, "--peer", "127.0.0.0/8", "--control", "control", "--limit", "40") as process:
        send(server)
        send(server)
        assert process.wait() == 0
        lines = read(process)
    assert len(lines) == 40
    first = [line.partition(f" {lines[0].split()[2]} ")[2] for line in lines]
    assert first[0] == "* connected"
    assert first[1:3] == ["S: 220 mx.example.com ESMTP", "C: EHLO client.example"]
    end = first.index("* ended: quit")
    assert first[end - 8 : end - 3] == [
        "S: 250 2.1.0 Ok",
        "S: 501 5.1.3 an address needs a domain: 'x'",
        "S: 250 2.1.5 Ok",
        "S: 354 End data with <CR><LF>.<CR><LF>",
        "C: (26 bytes of a message)",
    ]
    assert "Tea" not in "".join(lines)


def test_trace_prints_json(server: ServeProcess, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("following")
    program = forked.command_line(
        "trace", "--from", "ann@example.com", "--json", "--control", "control", "--limit", "3"
    )
    process = forked.start(program, cwd=tmp_path, stdout=forked.PIPE)
    with gevent.Timeout(20):
        while process.poll() is None:
            send(server)
            gevent.sleep(0.05)
    lines = [json.loads(line) for line in read(process)]
    assert process.stdout is not None
    process.stdout.close()
    assert lines[0]["event"] == "begin"
    for line in lines:
        assert set(line) == {"time", "session", "peer", "event", "text", "pid"}
        assert line["pid"] == server.process.pid


def test_trace_ends_with_ctrl_c_and_with_the_server(server: ServeProcess, tmp_path: Path) -> None:
    with following(tmp_path, "--peer", "unix", "--control", "control") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    (tmp_path / "said").unlink()
    with following(tmp_path, "--peer", "unix", "--control", "control") as process:
        server.stop()
        assert process.wait() == 1
    assert "Error: the server has ended" in (tmp_path / "said").read_text()


def test_trace_goes_on_after_a_reload(server: ServeProcess, tmp_path: Path) -> None:
    with server.dial() as before, following(tmp_path, "--peer", "127.0.0.1", "--control", "control") as process:
        before.expect("220")
        (tmp_path / "greensmtp.toml").write_text(CONFIG.replace("mx.", "mx2."))
        server.process.send_signal(signal.SIGHUP)
        with gevent.Timeout(20):
            banner = ""
            while "mx2" not in banner:
                gevent.sleep(0.2)  # (a new server is seen within a tenth of a second)
                with server.dial() as after:
                    banner = after.expect("220")
                    after.line("NOOP after")
                    after.expect("250")
        before.line("NOOP before")
        before.expect("250")
        gevent.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        said = "\n".join(read(process))
    assert "C: NOOP after" in said
    assert "S: 220 mx2.example.com ESMTP" in said
    assert said.count("C: NOOP before") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_sees_a_server_that_has_become_another_user(serve: Serve, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_uid == 0 and not each.stat().st_mode & 0o001:
            each.chmod(0o755)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        config = CONFIG.replace('"control"', f'"{folder}/c"\nuser = "nobody"\n[delivery]\nmaildir = false')
        (tmp_path / "greensmtp.toml").write_text(config)
        server = serve("--config", "greensmtp.toml", listeners=1)
        (socket,) = Path(folder, "c").iterdir()
        assert (socket.stat().st_uid, socket.parent.stat().st_uid) == (nobody.pw_uid, nobody.pw_uid)
        status, out, error = run("top", "--once", "--interval", "0.1", "--config", "greensmtp.toml", folder=tmp_path)
        assert (status, error) == (0, ""), server.log
        assert f"process {server.process.pid} " in out
        assert server.stop() == 0
        assert not socket.exists()


@pytest.mark.parametrize("command", [("top", "--once"), ("trace", "--peer", "::1")])
def test_without_a_server_the_error_says_where_it_was_sought(command: tuple[str, ...], tmp_path: Path) -> None:
    status, out, error = run(*command, "--control", "none", folder=tmp_path)
    assert (status, out) == (1, "")
    assert error.startswith("Error: no running server was found. Looked in:\n  none\nIs it running?")


def test_wrong_options_are_usage_errors(tmp_path: Path) -> None:
    status, _, error = run("trace", folder=tmp_path)
    assert status == 2
    assert "name the clients: --peer ADDRESS, --from SENDER or --session ID" in error
    status, _, error = run("trace", "--peer", "example.com", folder=tmp_path)
    assert status == 2
    assert "expected an address, a network or `unix`" in error
    (tmp_path / "greensmtp.toml").write_text("[service]\ncontrol = false\n")
    status, _, error = run("top", "--config", "greensmtp.toml", folder=tmp_path)
    assert (status, error) == (1, "Error: greensmtp.toml has no control socket: [service] control is false\n")


def test_a_configured_folder_that_cannot_be_used_stops_the_server(tmp_path: Path) -> None:
    (tmp_path / "greensmtp.toml").write_text(CONFIG.replace('"control"', '"/no/such/folder"'))
    status, out, error = run("serve", "--config", "greensmtp.toml", folder=tmp_path)
    assert (status, out) == (1, "")
    assert error == "Error: cannot make the control socket in '/no/such/folder': No such file or directory\n"


def test_without_a_control_socket_the_folder_is_not_made(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "greensmtp.toml").write_text(CONFIG.replace('"control"', "false"))
    server = serve("--config", "greensmtp.toml", listeners=1, env=dict(os.environ, RUNTIME_DIRECTORY=str(tmp_path)))
    assert [*tmp_path.glob("**/*.sock")] == []
    assert server.stop() == 0
