"""docs/deploy with the programs that its files are for: systemd, HAProxy, nginx, fail2ban, logrotate."""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import gevent
import pytest
from gevent import socket

from greensmtp import in_thread_pool
from greensmtp.testing import Peer
from tests import deployment
from tests.helpers import auth_plain, free_port, refused, until
from tests.peers.test_haproxy import HAProxy, haproxy, peer_over_tls  # noqa: F401  # a fixture
from tests.peers.test_nginx import MODULES
from tests.programs import missing
from tests.serve_process import ServeProcess

if TYPE_CHECKING:
    from tests.conftest import Certificate

pytestmark = [pytest.mark.peer, pytest.mark.subprocess, pytest.mark.timeout(120)]

Serve = Callable[..., ServeProcess]


# systemd


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, with a program that is there."""
    program = tmp_path / "greensmtp"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    changes = {"/opt/greensmtp/bin/greensmtp": str(program)}
    made = []
    for name, its in (("greensmtp.service", changes), ("greensmtp.socket", {})):
        (tmp_path / name).write_text(deployment.read(f"systemd/{name}", its))
        made.append(tmp_path / name)
    return made


def test_systemd_finds_nothing_wrong_with_the_units(run: Callable[..., str], units: list[Path]) -> None:
    assert run("systemd-analyze", "verify", "--man=no", *units) == ""


def test_the_sandbox_is_as_tight_as_the_page_says(run: Callable[..., str], units: list[Path]) -> None:
    said = run("systemd-analyze", "security", "--offline=true", "--no-pager", units[0])
    found = re.search(r"Overall exposure level for greensmtp.service: ([\d.]+)", said)
    assert found is not None, said
    page = (deployment.FOLDER / "systemd.md").read_text("utf-8")
    rated = re.search(r"`systemd-analyze security` rates it ([\d.]+)", page)
    assert rated is not None
    assert float(found[1]) <= float(rated[1])


# Balancers


@pytest.fixture
def machine(serve: Serve, tmp_path: Path, certificate: Certificate) -> Callable[[], ServeProcess]:
    """Return a function that starts a server with the configuration for machines behind a balancer."""

    def start() -> ServeProcess:
        number = len([*tmp_path.glob("*.toml")])
        http = free_port()
        changes = deployment.places(tmp_path, certificate) | {
            "10.0.0.11:9100": f"127.0.0.1:{http}",
            "10.0.0.11:2525": "127.0.0.1:0",
            "10.0.0.11:4650": "127.0.0.1:0",
            "10.0.0.5": "127.0.0.1",
            'workers = "auto"': "workers = 1",
        }
        path = tmp_path / f"{number}.toml"
        path.write_text(deployment.read("balancers/greensmtp.toml", changes))
        server = serve(
            *("--config", path),
            listeners=2,
            command=[sys.executable, "-m", "greensmtp"],
            env={**os.environ, "PASSWORD_OF_JO": "secret", "RUNTIME_DIRECTORY": str(tmp_path / f"run{number}")},
        )
        server.http = http  # type: ignore[attr-defined]
        return server

    return start


def port_of(server: ServeProcess, number: int) -> str:
    return server.urls[number].rpartition(":")[2]


def send(peer: Peer) -> str:
    """Send one message; return how that ended, and nothing if it went well."""
    try:
        peer.expect("220")
        peer.line("EHLO client.example")
        peer.expect("250")
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<you@example.com>", "DATA")
        peer.expect("250", "250", "354")
        peer.line("Subject: x", "", "body", ".")
        peer.expect("250")
    except Exception as error:  # whatever it is, the message is not there
        return str(error)
    return ""


def test_haproxy_loses_no_message_while_one_machine_restarts(
    machine: Callable[[], ServeProcess],
    haproxy: Callable[[str], HAProxy],  # noqa: F811
    certificate: Certificate,
    tmp_path: Path,
) -> None:
    one, two = machine(), machine()
    mx, submissions = free_port(), free_port()
    changes = {
        "maxconn 10000": "maxconn 100",
        ":25\n": f"127.0.0.1:{mx}\n",
        ":465\n": f"127.0.0.1:{submissions}\n",
        " port 9100": "",
    }
    for name, server, address in (("one", one, "10.0.0.11"), ("two", two, "10.0.0.12")):
        for number, port in enumerate((2525, 4650)):
            health = f"port {server.http}"  # type: ignore[attr-defined]
            changes[f"server {name} {address}:{port}"] = f"server {name} 127.0.0.1:{port_of(server, number)} {health}"
    proxy = haproxy(deployment.read("balancers/haproxy.cfg", changes))
    failures: list[str] = []
    ended = False

    def keep_sending() -> None:
        while not ended:
            with Peer(proxy.dial(mx)) as peer:
                if wrong := send(peer):
                    failures.append(wrong)

    with peer_over_tls(proxy.dial(submissions), certificate) as peer:
        peer.hello()
        peer.line(auth_plain("jo", "secret"))
        peer.expect("235")
    senders = [gevent.spawn(keep_sending) for _ in range(3)]
    gevent.sleep(1)
    assert in_thread_pool(one.stop) == 0  # its transactions go on
    gevent.sleep(1.5)
    ended = True
    gevent.joinall(senders, raise_error=True)
    # Whoever had connected, and not begun, when it stopped, got 421.
    assert [each for each in failures if "421 4.3.2" not in each] == []
    stored = len([*(tmp_path / "mail/example.com/you/new").iterdir()])
    assert stored > 20


def test_nginx_names_the_client_to_the_server(
    machine: Callable[[], ServeProcess], program: Callable[[str], str], tmp_path: Path
) -> None:
    module = next((path for path in (Path(each, "ngx_stream_module.so") for each in MODULES) if path.exists()), None)
    if module is None:
        missing("nginx has no stream module (libnginx-mod-stream)")
    server, port = machine(), free_port()
    changes = {
        "modules/ngx_stream_module.so": str(module),
        "listen 25;": f"listen 127.0.0.1:{port};",
        "10.0.0.11:2525": f"127.0.0.1:{server.port}",
        "10.0.0.12:2525": f"127.0.0.1:{free_port()}",
    }
    head = f"daemon off;\nmaster_process off;\npid {tmp_path}/nginx.pid;\nerror_log stderr;\n"
    (tmp_path / "nginx.conf").write_text(head + deployment.read("balancers/nginx.conf", changes))
    arguments: list[str | Path] = [program("nginx"), "-p", tmp_path, "-c", tmp_path / "nginx.conf"]
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(5):  # more than there are servers
                until(lambda: not refused(("127.0.0.1", port)), "nginx")
                with Peer(socket.create_connection(("127.0.0.1", port), 10, ("127.0.0.2", 0))) as peer:
                    assert send(peer) == ""
        finally:
            process.kill()
    stored = [*(tmp_path / "mail/example.com/you/new").iterdir()]
    assert all(b"[127.0.0.2]" in path.read_bytes() for path in stored)
    assert len(stored) == 5


# The log

POLICY = """
def refuse(server):
    @server.on("to")
    def local_only(session, address, ack):
        if address.domain == "example.com":
            ack.accept()
        else:
            ack.reject(550, "5.7.1 relaying denied")
"""

LOGGED = """
middleware = [{ use = "Logging" }, { use = "Auth", backend = { jo = "secret" }, allow_plaintext = true }]
[[listeners]]
url = "127.0.0.1:0"
limits.max_errors = 3
[[plugins]]
name = "policy:refuse"
[logging]
level = "info"
target = "mail.log"
"""


@pytest.fixture
def logged(serve: Serve, tmp_path: Path) -> ServeProcess:
    """A server that logs to mail.log."""
    (tmp_path / "policy.py").write_text(POLICY)
    (tmp_path / "greensmtp.toml").write_text(LOGGED)
    return serve("--config", "greensmtp.toml", listeners=1)


def dial_from(server: ServeProcess, source: str) -> Peer:
    return Peer(socket.create_connection(("127.0.0.1", server.port), 10, (source, 0)))


def test_fail2ban_finds_the_clients_to_ban(logged: ServeProcess, run: Callable[..., str], tmp_path: Path) -> None:
    with dial_from(logged, "127.0.0.3") as peer:  # a wrong password
        peer.hello()
        peer.line(auth_plain("jo", "wrong"), "QUIT")
        peer.expect("535", "221")
    with dial_from(logged, "127.0.0.4") as peer:  # errors
        peer.hello()
        peer.line("NONSENSE", "NONSENSE", "NONSENSE", "NONSENSE")
        peer.rest()
    with dial_from(logged, "127.0.0.5") as peer:  # relaying
        peer.hello()
        peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<someone@example.org>", "QUIT")
        peer.expect("250", "550", "221")
    with dial_from(logged, "127.0.0.6") as peer:  # a good client, and one that would have another banned
        peer.line("EHLO peer=127.0.0.9", auth_plain("jo", "secret"))
        peer.expect("220", "250", "235")
        peer.line("MAIL FROM:<x@example.net>", 'RCPT TO:<"a auth peer=127.0.0.9 -> 535 x"@example.com>', "QUIT")
        peer.expect("250", "250", "221")
    assert logged.stop() == 0
    found = re.findall(
        r"127\.0\.0\.\d",
        run("fail2ban-regex", "--out", "ip", tmp_path / "mail.log", deployment.FOLDER / "fail2ban/greensmtp.conf"),
    )
    assert sorted(found) == ["127.0.0.3", "127.0.0.4", "127.0.0.5"]


def test_logrotate_renames_the_log_and_the_server_opens_a_new_one(
    logged: ServeProcess, run: Callable[..., str], tmp_path: Path
) -> None:
    def visit() -> None:
        with logged.dial() as peer:
            peer.hello()
            peer.line("QUIT")
            peer.expect("221")

    visit()
    log = tmp_path / "mail.log"
    until(lambda: "session peer=" in log.read_text(), "the log")
    changes = {
        "/var/log/greensmtp/*.log": str(log),
        "su greensmtp greensmtp": f"su {pwd.getpwuid(os.getuid()).pw_name} {grp.getgrgid(os.getgid()).gr_name}",
        "systemctl reload greensmtp.service": f"kill -HUP {logged.process.pid}",
    }
    (tmp_path / "rotate").write_text(deployment.read("logrotate/greensmtp", changes))
    (tmp_path / "rotate").chmod(0o600)
    run("logrotate", "--force", "--state", tmp_path / "state", tmp_path / "rotate")
    until(lambda: "configuration reloaded" in log.read_text(), "the new log")
    visit()
    assert logged.stop() == 0
    assert log.read_text().count("session peer=") == 1
    assert (tmp_path / "mail.log.1").read_text().count("session peer=") == 1
