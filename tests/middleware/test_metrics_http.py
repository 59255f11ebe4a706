"""Metrics: ``/metrics`` over real HTTP."""

from __future__ import annotations

import os
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from gevent import Timeout, get_hub, sleep, socket
from prometheus_client import CollectorRegistry

from greensmtp import SMTPServer, http_listener
from greensmtp.middleware import Metrics
from greensmtp.middleware.metrics import http
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer
from tests import forked
from tests.middleware.prometheus_text import parse


def get(metrics: Metrics, path: str = "/metrics", *, send: bytes = b"") -> tuple[bytes, bytes]:
    """Return the status line and the body of a response."""
    assert metrics.address is not None
    with socket.create_connection(metrics.address, timeout=10) as connection:
        connection.sendall(send or f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], body


def listening(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return bool(probe.connect_ex(address) == 0)


@pytest.fixture
def told(smtp_server: MakeServer) -> tuple[SMTPServer, Metrics]:
    metrics = Metrics(CollectorRegistry(), listen="127.0.0.1:0")
    return smtp_server(middleware=[metrics]), metrics


def test_metrics_are_served_over_http(told: tuple[SMTPServer, Metrics]) -> None:
    server, metrics = told
    with dial(server) as peer:
        peer.hello()
    assert metrics.address is not None
    url = "http://{}:{}/metrics".format(*metrics.address)
    # (A client that blocks, so in another thread than the server's.)
    answer = get_hub().threadpool.apply(lambda: urllib.request.urlopen(url, timeout=10).read())
    assert parse(answer.decode())["greensmtp_commands_total{code=250,verb=EHLO}"] == 1
    assert get(metrics, "/")[0] == b"HTTP/1.1 404 Not Found"
    post = b"POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    assert get(metrics, send=post)[0].startswith(b"HTTP/1.1 405 ")


def test_the_listener_lives_from_the_first_start_to_the_last_stop(smtp_server: MakeServer) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, listen="127.0.0.1:0")
    first, second = (smtp_server(start=False, middleware=[metrics]) for _ in range(2))
    assert metrics.address is None
    first.start()
    address = metrics.address
    assert address is not None
    # Another stack of the same configuration.
    alike = smtp_server(start=False, middleware=[Metrics(registry, listen=address)])
    second.start()
    assert metrics.address == address
    first.stop()
    assert listening(address)
    second.stop()
    assert not listening(address)
    assert metrics.address is None
    first.start()
    first.stop()
    alike.start()
    assert listening(address)
    alike.stop()
    assert not listening(address)


def test_a_server_in_a_thread_serves_its_metrics_there() -> None:
    metrics = Metrics(CollectorRegistry(), listen="127.0.0.1:0")
    with SMTPServer(("127.0.0.1", 0), middleware=[metrics]).in_thread():
        assert metrics.address is not None
        address = metrics.address
        with urllib.request.urlopen("http://{}:{}/metrics".format(*address), timeout=10) as answer:
            assert parse(answer.read().decode())["greensmtp_connections_open"] == 0
    assert not listening(address)


def test_an_address_that_is_another_machines_stops_the_start(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[Metrics(CollectorRegistry(), listen="192.0.2.1:9100")])
    with pytest.raises(OSError, match=r"Cannot assign requested address for HTTP, port 9100 of 192\.0\.2\.1"):
        server.start()
    assert not server.started


def test_two_stacks_with_one_address_share_it(smtp_server: MakeServer) -> None:
    registry = CollectorRegistry()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    servers = [smtp_server(middleware=[Metrics(registry, listen=address)]) for _ in range(2)]
    servers[0].stop()
    assert listening(address)
    servers[1].stop()
    assert not listening(address)


def test_a_port_that_is_taken_stops_the_start_and_leaves_nothing_open(smtp_server: MakeServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        host, port = taken.getsockname()
        metrics = Metrics(CollectorRegistry(), listen=(host, port))
        server = smtp_server(start=False, middleware=[metrics])
        with pytest.raises(OSError, match=f"Address already in use for HTTP, port {port} of 127.0.0.1"):
            server.start()
        assert not server.started
        assert metrics.address is None
    server.start()  # now it is free
    assert metrics.address == (host, port)


def test_where_the_server_cannot_listen_the_metrics_do_not_either(smtp_server: MakeServer) -> None:
    heard: list[tuple[str, int]] = []

    class Peek(Metrics):
        def start(self, server: Any) -> None:
            super().start(server)
            assert self.address is not None
            heard.append(self.address)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = smtp_server(
            listener=taken.getsockname(), start=False, middleware=[Peek(CollectorRegistry(), listen="127.0.0.1:0")]
        )
        with pytest.raises(OSError, match="in use"):
            server.start()
    assert not listening(heard[0])


def test_nothing_is_said_on_standard_error_whatever_comes(
    capfd: pytest.CaptureFixture[str], told: tuple[SMTPServer, Metrics], caplog: pytest.LogCaptureFixture
) -> None:
    _, metrics = told
    nonsense = [
        b"EHLO client.example\r\n\r\n",
        b"\x16\x03\x01\x00\xff" * 20 + b"\r\n\r\n",
        b"GET /metrics?name[]=%ff&name[]=x HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\nConnection: close\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
    ]
    for octets in nonsense:
        try:
            get(metrics, send=octets)
        except ConnectionError:
            pass  # it was not interested in the rest
    assert get(metrics)[0] == b"HTTP/1.1 200 OK"
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_a_collector_that_fails_is_a_500_and_in_the_log(
    told: tuple[SMTPServer, Metrics], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def describe(self) -> list[Any]:
            return []

        def collect(self) -> Any:
            raise LookupError("broken")

    _, metrics = told
    metrics.registry.register(Broken())
    assert get(metrics)[0] == b"HTTP/1.1 500 Internal Server Error"
    assert "LookupError: broken" in caplog.text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /metr"])
def test_a_connection_is_over_in_time_whatever_it_does(
    told: tuple[SMTPServer, Metrics], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], sent: bytes
) -> None:
    monkeypatch.setattr(http_listener, "CONNECTION_SECONDS", 0.05)
    _, metrics = told
    with Timeout(10):
        get(metrics, send=sent or b"\r\n")
    assert capfd.readouterr() == ("", "")


def dialled(metrics: Metrics) -> Any:
    assert metrics.address is not None
    return socket.create_connection(metrics.address, timeout=10)


@pytest.mark.parametrize("sent", [b"", b"GET /metr", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_slow_clients_are_closed_for_new_ones(told: tuple[SMTPServer, Metrics], sent: bytes) -> None:
    """More than there is room for, which send nothing, a part of a request, or one request."""
    _, metrics = told
    with ExitStack() as stack, Timeout(5):
        slow = []
        for _ in range(2 * http_listener.MAX_CONNECTIONS):
            slow.append(stack.enter_context(closing(dialled(metrics))))
            slow[-1].sendall(sent)
        for _ in range(3):
            assert get(metrics)[0] == b"HTTP/1.1 200 OK"
        if sent.endswith(b"\r\n\r\n"):
            assert slow[0].recv(65536).startswith(b"HTTP/1.1 404 ")
        assert slow[0].recv(100) == b""  # the oldest
        slow[-1].setblocking(False)
        if not sent.endswith(b"\r\n\r\n"):
            with pytest.raises(BlockingIOError):
                slow[-1].recv(100)


def test_clients_that_do_not_read_are_closed_for_new_ones(
    told: tuple[SMTPServer, Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their requests are handled, so that none of them waits for a request."""
    _, metrics = told
    large = [b"x" * 65536] * 1000

    def answer(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return iter(large)

    assert metrics.address is not None
    listener = http_listener.HTTPListener.use(told, *metrics.address, {"/large": answer})
    try:
        with ExitStack() as stack, Timeout(10):
            for _ in range(http_listener.MAX_CONNECTIONS):
                each = stack.enter_context(closing(dialled(metrics)))
                each.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
                assert each.recv(10)
            assert get(metrics)[0] == b"HTTP/1.1 200 OK"
    finally:
        listener.leave(told)


@pytest.mark.parametrize("sent", [b"", b"GET /metr", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_the_headers_of_each_request_must_arrive_in_time(
    told: tuple[SMTPServer, Metrics], monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http_listener, "HEADER_SECONDS", 0.05)
    _, metrics = told
    with Timeout(5), closing(dialled(metrics)) as slow:
        slow.sendall(sent)
        while slow.recv(65536):
            pass


def test_a_check_may_take_longer_than_headers(
    told: tuple[SMTPServer, Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_listener, "HEADER_SECONDS", 0.05)
    _, metrics = told

    def answer(environ: Any, start_response: Any) -> Any:
        sleep(0.2)
        start_response("200 OK", [])
        return [b"well"]

    assert metrics.address is not None
    listener = http_listener.HTTPListener.use(told, *metrics.address, {"/slow": answer})
    assert get(metrics, "/slow") == (b"HTTP/1.1 200 OK", b"well")
    listener.leave(told)


def test_a_process_that_is_creating_its_files_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prometheus-client cannot read a file that has no length yet."""
    monkeypatch.setenv(http.SEVERAL_PROCESSES, str(tmp_path))
    file = tmp_path / "counter_1.db"
    file.touch()
    monkeypatch.setattr(http, "sleep", lambda seconds: file.write_bytes(bytes(4096)))
    answers: list[Any] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}
    list(http.metrics_app(CollectorRegistry())(environ, lambda *answer: answers.append(answer)))
    assert [status for status, _ in answers] == ["200 OK"]


#: Greets a server of its own, says where the metrics are, and goes on until its standard input is closed.
SERVING = """
import sys
from gevent import get_hub
from greensmtp import SMTPServer
from greensmtp.middleware import Metrics
from greensmtp.testing import dial

metrics = Metrics(listen=sys.argv[1])
with SMTPServer(("127.0.0.1", 0), middleware=[metrics]) as server, dial(server) as peer:
    peer.hello()
    print(metrics.address[1], flush=True)
    get_hub().threadpool.apply(sys.stdin.read)
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("how", [forked.UNPATCHED, forked.PATCHED], ids=["unpatched", "patched"])
def test_each_process_serves_the_numbers_of_all(tmp_path: Path, how: tuple[str, ...]) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    processes: list[forked.Process] = []
    waiting, go = os.pipe()
    try:
        address = "127.0.0.1:0"
        for _ in range(2):
            program = forked.python(SERVING, address)
            process = forked.start(program, how=how, env=environment, stdin=waiting, stdout=forked.PIPE)
            processes.append(process)
            assert process.stdout is not None
            with process.stdout:
                address = f"127.0.0.1:{int(process.stdout.readline())}"
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            numbers = parse(answer.read().decode())
        assert numbers["greensmtp_connections_open"] == 2
        assert numbers["greensmtp_commands_total{code=250,verb=EHLO}"] == 2
        os.close(go)
        assert [process.wait(20) for process in processes] == [0, 0]
    finally:
        os.close(waiting)
        for process in processes:
            process.kill()
