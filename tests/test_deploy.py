"""docs/deploy: each configuration is valid, each command runs, and the parts agree with each other."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import signal
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]
from gevent import socket, subprocess

from greensmtp.config.model import ServiceSection
from greensmtp.health import ROUTES
from greensmtp.testing import Peer
from tests import deployment, forked
from tests.helpers import free_port, until

if TYPE_CHECKING:
    from tests.conftest import Certificate

UNIT = "systemd/greensmtp.service"
COMPOSE = "container/compose.yaml"
GREENSMTP = "/opt/greensmtp/bin/greensmtp"

#: Seconds that a stop may take, by default.
STOP = ServiceSection().stop_timeout


def lines_of(name: str, key: str, separator: str = "=") -> list[str]:
    """Return the values of a key in a unit, or of an instruction in a Dockerfile."""
    return re.findall(rf"^{key}{separator}(.*)$", (deployment.FOLDER / name).read_text("utf-8"), re.MULTILINE)


def documents() -> dict[str, Any]:
    """Return the objects for Kubernetes, by kind."""
    found = yaml.safe_load_all((deployment.FOLDER / "kubernetes/greensmtp.yaml").read_text("utf-8"))
    return {each["kind"]: each for each in found}


def configurations() -> Iterator[tuple[str, str]]:
    for path in sorted(deployment.FOLDER.rglob("*.toml")):
        yield path.relative_to(deployment.FOLDER).as_posix(), path.read_text("utf-8")
    for name, text in documents()["ConfigMap"]["data"].items():
        yield f"kubernetes/{name}", text


@pytest.mark.parametrize(("name", "text"), list(configurations()))
def test_each_configuration_is_valid(
    name: str, text: str, tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD_OF_JO", "secret")
    changes = deployment.places(tmp_path, certificate) | {"/var/log/greensmtp": str(tmp_path)}
    (tmp_path / "greensmtp.toml").write_text(deployment.change(text, {k: v for k, v in changes.items() if k in text}))
    ran = forked.run(forked.command_line("check", "--quiet", "--config", "greensmtp.toml"), cwd=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


# systemd


@pytest.mark.subprocess
def test_the_commands_of_the_unit_run(tmp_path: Path, certificate: Certificate) -> None:
    """In a sandbox as far as a process can make one: no new rights, and no memory that is writable and executable."""
    port, http = free_port(), free_port()
    changes = deployment.places(tmp_path, certificate) | {
        "0.0.0.0:25": f"127.0.0.1:{port}",
        '[[listeners]]\nurl = "smtp://[::]:25"\n': "",  # not every machine has IPv6
        "/var/log/greensmtp": str(tmp_path),
        "127.0.0.1:9100": f"127.0.0.1:{http}",
    }
    (tmp_path / "greensmtp.toml").write_text(deployment.read("systemd/greensmtp.toml", changes))

    def command(line: str) -> list[str]:
        words = shlex.split(deployment.change(line, {"/etc/greensmtp/": f"{tmp_path}/"}))
        assert words[0] == GREENSMTP
        return [sys.executable, "-m", "greensmtp", *words[1:]]

    check, hang_up = lines_of(UNIT, "ExecReload")
    subprocess.run(command(check), check=True, cwd=tmp_path, timeout=30)
    assert hang_up == "/bin/kill -HUP $MAINPID"
    (line,) = lines_of(UNIT, "ExecStart")
    process = subprocess.Popen(
        command(line), cwd=tmp_path, stdout=subprocess.DEVNULL, preexec_fn=enter_sandbox, env=environment(tmp_path)
    )
    try:
        ready = [sys.executable, "-m", "greensmtp", "ready", f"http://127.0.0.1:{http}", "--wait", "30"]
        subprocess.run(ready, check=True, timeout=40)
        with Peer(socket.create_connection(("127.0.0.1", port), 10)) as peer:
            deliver(peer)
        os.kill(process.pid, signal.SIGHUP)
        until(lambda: "configuration reloaded" in (tmp_path / "mail.log").read_text(), "the reload")
        process.terminate()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
    assert len([*(tmp_path / "mail/example.com/you/new").iterdir()]) == 1


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "RUNTIME_DIRECTORY": str(folder / "run")}


def enter_sandbox() -> None:
    """NoNewPrivileges, and MemoryDenyWriteExecute where the kernel can do that without a filter (Linux 6.3)."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    libc.prctl(65, 1, 0, 0, 0)


def deliver(peer: Peer) -> None:
    """Send a message to the domain; a stranger is refused."""
    peer.hello()
    peer.line("MAIL FROM:<ann@example.net>", "RCPT TO:<stranger@example.org>", "RCPT TO:<you@example.com>", "DATA")
    peer.expect("250", "550", "250", "354")
    peer.line("Subject: x", "", "body", ".")
    peer.expect("250")


def test_the_socket_unit_has_the_addresses_of_the_configuration() -> None:
    config = tomllib.loads((deployment.FOLDER / "systemd/greensmtp.toml").read_text("utf-8"))
    urls = [each["url"].removeprefix("smtp://") for each in config["listeners"]]
    assert lines_of("systemd/greensmtp.socket", "ListenStream") == urls


def test_the_unit_waits_longer_than_the_server() -> None:
    assert int(lines_of(UNIT, "TimeoutStopSec")[0]) > STOP


# Containers


@pytest.mark.subprocess
@pytest.mark.parametrize("first", [False, True], ids=["a process", "process 1"])
def test_the_container_starts_is_healthy_and_stops(tmp_path: Path, first: bool) -> None:
    wrapper: list[str] = []
    if first:
        wrapper = ["unshare", "--pid", "--fork", "--kill-child"]
        if subprocess.run([*wrapper, "true"], check=False, capture_output=True).returncode:
            pytest.skip("no right to make a namespace of processes")
    port, http = free_port(), free_port()
    changes = deployment.places(tmp_path) | {"0.0.0.0:2525": f"127.0.0.1:{port}", "0.0.0.0:9100": f"127.0.0.1:{http}"}
    (tmp_path / "greensmtp.toml").write_text(deployment.read("container/greensmtp.toml", changes))

    def words(instruction: str) -> list[str]:
        (line,) = lines_of("container/Dockerfile", instruction, " ")
        found: list[str] = json.loads(line[line.index("[") :])
        return found

    entry = words("ENTRYPOINT")
    assert entry == [GREENSMTP]
    program = [sys.executable, "-m", "greensmtp"]
    command = [each.replace("/etc/greensmtp", str(tmp_path)) for each in words("CMD")]
    assert str(tmp_path / "greensmtp.toml") in command
    health = words("HEALTHCHECK")
    assert health[0] == GREENSMTP
    check = [*program, *(each.replace("127.0.0.1:9100", f"127.0.0.1:{http}") for each in health[1:]), "--wait", "30"]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            [*wrapper, *program, *command],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment(tmp_path),
        )
    try:
        subprocess.run(check, check=True, timeout=40)
        with Peer(socket.create_connection(("127.0.0.1", port), 10)) as peer:
            deliver(peer)
        pid = process.pid
        if first:
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        os.kill(pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
    records = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert any("message from=<ann@example.net>" in record["message"] for record in records)


def test_the_parts_of_the_container_agree() -> None:
    service = yaml.safe_load((deployment.FOLDER / COMPOSE).read_text("utf-8"))["services"]["greensmtp"]
    context = (deployment.FOLDER / COMPOSE).parent / service["build"]["context"]
    assert (context / service["build"]["dockerfile"]).samefile(deployment.FOLDER / "container/Dockerfile")
    assert (context / "requirements/serve.txt").is_file()
    config = tomllib.loads((deployment.FOLDER / "container/greensmtp.toml").read_text("utf-8"))
    listening = [config["listeners"][0]["url"].rpartition(":")[2], config["http"]["listen"].rpartition(":")[2]]
    assert [each.rpartition(":")[2] for each in service["ports"]] == listening
    assert lines_of("container/Dockerfile", "EXPOSE", " ") == [" ".join(listening)]
    assert int(service["stop_grace_period"].removesuffix("s")) > STOP
    home = lines_of("container/Dockerfile", "VOLUME", " ")[0]
    assert config["deliveries"][0]["path"].startswith(f"{home}/")
    assert f"mail:{home}" in service["volumes"]


def test_the_parts_for_kubernetes_agree() -> None:
    found = documents()
    spec = found["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    config = tomllib.loads(found["ConfigMap"]["data"]["greensmtp.toml"])
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert config["listeners"][0]["url"] == f"smtp://0.0.0.0:{ports['smtp']}"
    assert config["http"]["listen"] == f"0.0.0.0:{ports['http']}"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in ROUTES
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= wait + STOP
    (user,) = re.findall(r"^USER (\d+)$", (deployment.FOLDER / "container/Dockerfile").read_text(), re.MULTILINE)
    assert spec["securityContext"]["runAsUser"] == int(user)
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert config["deliveries"][0]["path"].startswith(f"{mounts['mail']}/")


# Certificates


@pytest.mark.subprocess
def test_the_hook_of_certbot_installs_the_certificate(tmp_path: Path, certificate: Certificate) -> None:
    (text,) = re.findall(r"```sh\n(.*?)```", (deployment.FOLDER / "dns.md").read_text("utf-8"), re.DOTALL)
    lineage = tmp_path / "lineage"
    lineage.mkdir()
    (lineage / "fullchain.pem").write_bytes(certificate.certfile.read_bytes())
    (lineage / "privkey.pem").write_bytes(certificate.keyfile.read_bytes())
    hook = tmp_path / "hook"
    group = os.getgid()
    hook.write_text(deployment.change(text, {" -g greensmtp": f" -g {group}", "/etc/greensmtp": f"{tmp_path}/etc"}))
    (tmp_path / "etc").mkdir()
    subprocess.run(["sh", hook], check=True, env={**os.environ, "RENEWED_LINEAGE": str(lineage)}, timeout=20)
    installed = tmp_path / "etc/tls"
    assert (installed / "privkey.pem").read_bytes() == certificate.keyfile.read_bytes()
    assert (installed / "privkey.pem").stat().st_mode & 0o777 == 0o640
    assert (installed / "fullchain.pem").exists()
