"""/healthz, /readyz, ``greensmtp ready``, and a hub that is blocked."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from click.testing import CliRunner

from greensmtp import health, in_thread_pool
from greensmtp._native import native
from greensmtp.cli import cli
from greensmtp.service.blocked_hub import blocking_reported
from greensmtp.thread_pool import BoundedPool
from tests.serve_process import ServeProcess

Serve = Callable[..., ServeProcess]

CONFIG = """
hostname = "mx.example.com"
middleware = [{middleware}]
[[listeners]]
url = "smtp://127.0.0.1:0"
[delivery]
maildir = "maildir"
[http]
listen = "127.0.0.1:0"
[service]
{service}
"""


def start(serve: Serve, folder: Path, *, service: str = "", middleware: str = "") -> tuple[ServeProcess, str]:
    """Start a server; return it and the URL of its health."""
    path = folder / "greensmtp.toml"
    path.write_text(CONFIG.format(service=service, middleware=middleware))
    server = serve("--config", path, listeners=1)
    word, url = server.line().split()
    assert word == "health"
    return server, url.removesuffix("/readyz")


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture(autouse=True)
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(health, "_stores", {})  # those of other tests
    yield
    for name in ("database", "draining"):
        health.remove(name)


def test_ready_until_it_drains(serve: Serve, tmp_path: Path) -> None:
    server, url = start(serve, tmp_path, middleware='{ use = "Metrics" }')
    assert get(f"{url}/healthz") == (200, '{"status": "ok"}\n')
    assert get(f"{url}/readyz") == (200, '{"status": "ready"}\n')
    assert "greensmtp_" in get(f"{url}/metrics")[1]
    assert get(f"{url}/") == (404, "There is /healthz, /metrics, /readyz\n")
    run = CliRunner().invoke(cli, ["ready", url])
    assert (run.exit_code, run.output) == (0, "ready\n")
    server.process.send_signal(signal.SIGHUP)
    assert get(f"{url}/readyz")[0] == 200
    with server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.org>", "DATA")
        peer.expect("250", "250", "354")
        server.process.send_signal(signal.SIGTERM)
        with gevent.Timeout(20):
            while get(f"{url}/readyz")[0] == 200:
                gevent.sleep(0.01)
        status, body = get(f"{url}/readyz")
        assert (status, json.loads(body)["failures"]) == (503, {"draining": "the server is stopping"})
        assert get(f"{url}/healthz")[0] == 200
        run = CliRunner().invoke(cli, ["ready", url])
        assert (run.exit_code, run.output) == (1, "Error: not ready: draining: the server is stopping\n")
        peer.line(".")
        peer.expect("250")
    assert server.wait() == 0


def test_without_http_there_are_no_metrics_and_no_health(serve: Serve) -> None:
    server = serve()
    assert server.stop() == 0
    assert server.lines() == []


def test_checks_may_be_added_and_may_fail(tmp_path: Path) -> None:
    health.add("database", lambda: None)
    assert health.failures() == {}
    health.add("database", lambda: "gone")
    assert health.failures() == {"database": "gone"}
    health.add("database", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert health.failures() == {"database": "raised ZeroDivisionError"}
    with pytest.raises(TypeError, match="a check is called without arguments"):
        health.add("database", "gone")  # type: ignore[arg-type]


def test_a_check_that_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.05)
    health.add("database", lambda: gevent.sleep(30))
    assert health.failures() == {"database": "takes too long"}


def test_a_store_that_hangs_takes_one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hangs = native("threading", "Event")()
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(health, "_store_pool", BoundedPool(1))
    monkeypatch.setattr(health, "_first_unwritable", lambda folders: hangs.wait(20))
    health.add_store(tmp_path)
    try:
        for _ in range(12):
            assert health.failures()["store"] == "takes too long"
        with gevent.Timeout(5):
            assert in_thread_pool(lambda: "free") == "free"
    finally:
        hangs.set()
        health.remove_store(tmp_path)


def test_a_store_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    missing = tmp_path / "maildir"
    health.add_store(missing)
    health.add_store(missing)
    health.remove_store(missing)
    assert health.failures() == {"store": f"{missing} cannot be written"}
    missing.mkdir()
    assert health.failures() == {}
    health.remove_store(missing)
    assert str(missing) not in health.stores()


def test_ready_asks_a_listener(serve: Serve, tmp_path: Path) -> None:
    unix = tmp_path / "socket"
    server = serve("--listen", "127.0.0.1:0", "--listen", f"unix:{unix}")
    for target in (f"127.0.0.1:{server.port}", f"smtp://127.0.0.1:{server.port}", f"unix:{unix}"):
        run = CliRunner().invoke(cli, ["ready", target])
        assert (run.exit_code, run.output) == (0, "ready\n"), run.output
    assert server.stop() == 0
    run = CliRunner().invoke(cli, ["ready", f"127.0.0.1:{server.port}"])
    assert run.output == f"Error: not ready: smtp://127.0.0.1:{server.port}: Connection refused\n"


def test_ready_reads_the_configuration_and_waits(serve: Serve, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = tmp_path / "greensmtp.toml"
    path.write_text(CONFIG.format(service="", middleware="").replace('"127.0.0.1:0"', f'"127.0.0.1:{port}"'))
    asking = gevent.get_hub().threadpool.spawn(CliRunner().invoke, cli, ["ready", "-c", str(path), "--wait", "30"])
    server = serve("--config", path, listeners=1)
    found: Any = asking.get(timeout=30)
    assert found.output == "ready\n"
    assert server.stop() == 0


@pytest.mark.parametrize("target", ["http://nonsense", "ftp://127.0.0.1:21", "nonsense"])
def test_a_wrong_target_is_explained(target: str) -> None:
    run = CliRunner().invoke(cli, ["ready", target])
    assert run.exit_code == 2
    assert "expected a URL like http://127.0.0.1:9100" in run.output


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"failures": 1}', b'{"detail": "no"}', b"7"])
def test_another_http_server_is_not_ready(body: bytes) -> None:
    def answer(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.0 503 Not\x1b now\r\n\r\n" + body)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        answering = gevent.get_hub().threadpool.spawn(answer, listening)
        run = CliRunner().invoke(cli, ["ready", f"http://127.0.0.1:{listening.getsockname()[1]}"])
        answering.get(timeout=10)
    assert run.exit_code == 1
    assert "not ready: the answer is 503 Not" in run.output
    assert "\x1b" not in run.output


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "soon"])
def test_a_wrong_time_to_wait_is_a_usage_error(seconds: str) -> None:
    run = CliRunner().invoke(cli, ["ready", "--wait", seconds, "127.0.0.1:1"])
    assert run.exit_code == 2
    assert f"expected a number of seconds; got '{seconds}'" in run.output


def test_a_banner_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greensmtp.cli.ready.QUESTION_SECONDS", 0.2)
    over = native("threading", "Event")()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            while not over.wait(0.05):
                connection.sendall(b"2")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        dripping = gevent.get_hub().threadpool.spawn(drip, listening)
        run = CliRunner().invoke(cli, ["ready", f"127.0.0.1:{listening.getsockname()[1]}"])
        over.set()
        dripping.get(timeout=10)
    assert run.exit_code == 1
    assert "no banner within 0.2 s" in run.output


def busy_wait(seconds: float) -> None:
    time.sleep(seconds)


def test_what_blocks_the_hub_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with blocking_reported(0.1):
        gevent.sleep(0.3)  # waiting is not blocking
        busy_wait(0.5)
        with gevent.Timeout(10):
            while len(caplog.records) < 2:
                gevent.sleep(0.02)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("the hub has been blocked for 0.")
    assert "in busy_wait" in first
    assert "time.sleep(seconds)" in first
    assert second.startswith("the hub runs again; it was blocked for 0.")


BLOCKS = """
from gevent.monkey import get_original
def look_up(session, address, ack):
    get_original("time", "sleep")(0.6)
    ack.accept()
def install(server):
    server.on("from", look_up)
"""


def test_a_served_plugin_that_blocks_is_named(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(BLOCKS)
    path = tmp_path / "greensmtp.toml"
    text = CONFIG.format(service="report_blocked = 0.1", middleware="")
    path.write_text(text + '[[plugins]]\nname = "slow:install"\n')
    server = serve("--config", path, listeners=1)
    with server.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<ann@example.com>")
        peer.expect("250")
    assert server.stop() == 0
    assert "the hub has been blocked for" in server.log
    assert 'slow.py", line 4, in look_up' in server.log
