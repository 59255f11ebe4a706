"""examples/plugin, installed into a new environment, listed, and acting on mail."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from greensmtp import Ack, MessageStream, Session, SMTPServer

#: One environment for all.
pytestmark = [pytest.mark.subprocess, pytest.mark.xdist_group("example plugin")]

PLUGIN = Path(__file__).resolve().parents[2] / "examples" / "plugin"

Serve = Callable[..., Any]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without the Python settings of this process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False, timeout=50
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a new environment with the packages of this one and the plugin."""
    folder = tmp_path_factory.mktemp("fresh")
    source = folder / "source"  # a build leaves files beside the sources
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__"))
    environment = folder / "venv"
    made = run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    assert made.returncode == 0, made.stderr
    (packages,) = environment.glob("lib/python*/site-packages")
    # addsitedir also reads the .pth files there: greensmtp itself may be installed by one.
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "parent.pth").write_text("\n".join(lines))
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet")
    done = run(*pip, "--no-deps", "--no-index", "--no-build-isolation", source, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return environment / "bin" / "python"


@pytest.fixture
def serve_there(python: Path, serve: Serve) -> Serve:
    """Start ``greensmtp serve`` with the packages of the new environment."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    return partial(serve, first=f"import site; site.addsitedir({str(packages)!r})")


def test_the_plugins_are_listed(python: Path, tmp_path: Path) -> None:
    ran = run(python, "-m", "greensmtp", "plugins", "--check", cwd=tmp_path, ALLOWED_DOMAINS="example.com")
    lines = ran.stdout.splitlines()
    package = "greensmtp-courtesy\t1.0.0\tgreensmtp_courtesy"
    assert (ran.returncode, lines[:2]) == (
        0,
        [
            f"allow-list\tplugin\t{package}.allow_list\tok",
            f"vacation\tplugin\t{package}.vacation:install\tok",
        ],
    ), ran.stderr
    assert f"RequireTLS\tmiddleware\t{package}.require_tls:RequireTLS\tok" in lines


def test_the_plugins_act_on_mail_without_code(serve_there: Serve) -> None:
    notices: Queue[tuple[str | None, list[str], bytes]] = Queue()
    smarthost = SMTPServer(("127.0.0.1", 0), hostname="smarthost.example")

    @smarthost.on("message")
    def take(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        notices.put((session.from_, list(session.to), stream.read()))

    with smarthost.in_thread():
        settings = {
            "ALLOWED_DOMAINS": "example.com",
            "VACATION_FILE": str(PLUGIN / "vacation.toml"),
            "VACATION_SMARTHOST": f"127.0.0.1:{smarthost.address[1]}",
        }
        server = serve_there("--plugin", "all", env=os.environ | settings)
        with server.dial() as peer:
            peer.hello()
            peer.line("MAIL FROM:<ann@example.org>", "RCPT TO:<jo@example.net>", "RCPT TO:<jo@example.com>")
            peer.expect("250", "550 5.7.1 mail for that domain is not accepted here", "250")
            peer.line("DATA", "From: ann@example.org", "To: jo@example.com", "Subject: Tea", "", "At four.", ".")
            peer.expect("354", "250")
        sender, recipients, notice = notices.get(timeout=20)
        assert server.stop() == 0
    assert (sender, recipients) == ("", ["ann@example.org"])
    assert b"\r\nSubject: Auto: Tea\r\n" in notice
    assert b"I am in the mountains" in notice
    assert len(server.mail) == 1
    assert server.log == ""


def test_a_plugin_that_is_not_named_does_nothing(serve_there: Serve) -> None:
    server = serve_there()
    with server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.org>", "RCPT TO:<jo@example.net>")
        peer.expect("250", "250")


@pytest.mark.parametrize("optional", [False, True])
def test_a_plugin_without_settings_stops_the_start_or_is_skipped(serve_there: Serve, optional: bool) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("ALLOWED_DOMAINS", "VACATION_FILE")}
    server = serve_there("--plugin", "all,optional" if optional else "all", env=clean, wait=optional)
    if optional:
        assert server.stop() == 0
        assert server.log.count("WARNING skipped an optional plugin") == 2
    else:
        assert server.wait() == 2
    log = " ".join(server.log.split())
    assert (
        "plugin 'allow-list' of greensmtp-courtesy 1.0.0: cannot import greensmtp_courtesy.allow_list: Runtime" in log
    )
    assert "set ALLOWED_DOMAINS" in log
    assert "Traceback" not in log


def test_the_plugins_own_tests_pass(tmp_path: Path) -> None:
    source = tmp_path / "plugin"
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__"))
    ran = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=source, PYTHONPATH=str(source))
    assert ran.returncode == 0, ran.stdout + ran.stderr
