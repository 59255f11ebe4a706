"""Metrics: every number from real dialogues, and ``/metrics`` over real HTTP."""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gevent import Timeout, get_hub, sleep, socket
from gevent.event import Event
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from greensmtp import Ack, Address, Command, MessageStream, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import Metrics
from greensmtp.middleware.metrics import http as exposition
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests import forked

#: "name{label=value,...}" -> value
Numbers = dict[str, float]


def parse(text: str) -> Numbers:
    numbers = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            numbers[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return numbers


class Counted:
    """A server with Metrics in a registry of its own."""

    def __init__(self, make: MakeServer, *, inside: Any = (), **options: Any) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.server = make(start=False, middleware=[self.metrics, *inside], **options)
        self.server.on("message", self._take)
        self._over = Event()
        self.server.on("disconnect", lambda session, reason: self._over.set())

    def _take(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        stream.read()

    def dial(self) -> Peer:
        self._over.clear()
        return dial(self.server, source=("192.0.2.1", 4711))

    def over(self) -> None:
        assert self._over.wait(5)
        sleep(0)

    def numbers(self) -> Numbers:
        return parse(generate_latest(self.registry).decode())

    def __getitem__(self, name: str) -> float:
        return self.numbers().get(f"greensmtp_{name}", 0.0)


@pytest.fixture
def count(smtp_server: MakeServer) -> Callable[..., Counted]:
    return lambda **options: Counted(smtp_server, **options)


# Connections and sessions


def test_connections_are_counted_while_they_are_open_and_by_their_end(count: Callable[..., Counted]) -> None:
    it = count()
    with it.dial() as first, it.dial() as second:
        first.hello()
        second.hello()
        assert (it["connections_open"], it["connections_total"]) == (2, 2)
        first.line("QUIT")
        first.expect("221")
        first.expect_end()
        it.over()
        assert it["connections_open"] == 1
        it._over.clear()
    it.over()
    assert (it["connections_open"], it["connections_total"]) == (0, 2)
    assert (it["sessions_total{end=quit}"], it["sessions_total{end=closed}"]) == (1, 1)


def test_ends_that_the_server_makes(count: Callable[..., Counted]) -> None:
    it = count(max_errors=1, command_timeout=0.05)
    for line, end in [("GET / HTTP/1.1", "foreign"), ("XYZZY", "refused"), ("", "timeout")]:
        with it.dial() as peer:
            peer.hello()
            if line:
                peer.line(line)
            peer.rest()
        it.over()
        assert it[f"sessions_total{{end={end}}}"] == 1
    assert it["connections_open"] == 0


def test_one_that_is_turned_away_is_counted(count: Callable[..., Counted]) -> None:
    it = count()
    it.server.on("connect", lambda session, ack: ack.reject(554, "5.7.1 no"))
    with it.dial() as peer:
        peer.expect("554")
        peer.expect_end()
    it.over()
    assert it["commands_total{code=554,verb=CONNECT}"] == 1
    assert it["sessions_total{end=refused}"] == 1
    assert it["refusals_total{enhanced=5.7.1}"] == 0  # a banner has no enhanced code of its own
    assert it["refusals_total{enhanced=none}"] == 1


@pytest.mark.parametrize("implicit", [True, False])
def test_tls_sessions_are_counted_by_version(count: Callable[..., Counted], certificate: Any, implicit: bool) -> None:
    it = count(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=implicit)
    with it.dial() as peer:
        if not implicit:
            peer.hello()
            peer.line("STARTTLS")
            peer.expect("220")
        peer.start_tls()
        if implicit:
            peer.expect("220")
        peer.line("EHLO client.example", "EHLO client.example", "QUIT")
        peer.expect("250", "250", "221")
        version = peer.socket.version()
    it.over()
    assert {name: value for name, value in it.numbers().items() if "tls_sessions_total" in name} == {
        f"greensmtp_tls_sessions_total{{version={version}}}": 1
    }


def test_a_handshake_that_fails_is_counted_once_and_leaves_the_gauge_alone(
    count: Callable[..., Counted], certificate: Any
) -> None:
    it = count(certfile=certificate.certfile, keyfile=certificate.keyfile, implicit_tls=True)
    with it.dial() as peer:
        peer.send(b"EHLO client.example\r\n")
        peer.rest()
    it.over()
    assert (it["connections_open"], it["connections_total"], it["sessions_total{end=tls}"]) == (0, 1, 1)


# Commands


def test_commands_are_counted_by_verb_and_code(count: Callable[..., Counted]) -> None:
    it = count()
    it.server.on("to", lambda session, address, ack: ack.reject(550, "5.7.1 no") if "@b" in address else ack.accept())
    with it.dial() as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@b>", "RCPT TO:<a@b>", "RCPT TO:<a@c>", "RCPT TO:<d@c>", "NOOP", "QUIT")
        peer.expect("250", "550", "250", "250", "250", "221")
    it.over()
    numbers = {name: value for name, value in it.numbers().items() if "_commands_total" in name}
    assert numbers == {
        "greensmtp_commands_total{code=220,verb=CONNECT}": 1,
        "greensmtp_commands_total{code=250,verb=EHLO}": 1,
        "greensmtp_commands_total{code=250,verb=MAIL}": 1,
        "greensmtp_commands_total{code=250,verb=RCPT}": 2,
        "greensmtp_commands_total{code=550,verb=RCPT}": 1,
        "greensmtp_commands_total{code=250,verb=NOOP}": 1,
        "greensmtp_commands_total{code=221,verb=QUIT}": 1,
    }
    assert it["refusals_total{enhanced=5.7.1}"] == 1
    assert it["command_seconds_count{verb=RCPT}"] == 3


def test_no_peer_makes_labels(count: Callable[..., Counted]) -> None:
    def enhanced(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "VRFY":
            return Reply(550, "no", enhanced=f"5.9.{command.argument}")
        return proceed(session, command)

    it = count(inside=[enhanced], max_errors=5000, max_idle_commands=5000)
    with it.dial() as peer:
        peer.hello()
        strange = ["CONNECT", "END-OF-DATA", "DISCONNECT", "UNKNOWN", "OTHER", "\u00e9"]
        peer.line(*strange, "XYZZY", "AUTH X", "AUTHX", "VRFY 0")
        peer.expect(*["5"] * (len(strange) + 4))
        before = it.numbers()
        for number in range(1, 200):
            peer.line(f"XYZZY{number}", f"AUTH X{number}", f"AUTHX{number}", f"VRFY {number}")
        peer.expect(*["5"] * 199 * 4)
        numbers = it.numbers()
    assert numbers["greensmtp_commands_total{code=500,verb=other}"] == len(strange) + 2 + 199 * 2
    assert numbers["greensmtp_auth_total{mechanism=other,outcome=refused}"] == 200
    # Enhanced codes are the server's own choice, and bounded all the same.
    new = numbers.keys() - before.keys()
    assert all("refusals_" in name for name in new)
    assert len({name for name in numbers if "refusals_total" in name}) == 101
    assert numbers["greensmtp_refusals_total{enhanced=other}"] > 90


def test_the_time_of_a_command_is_that_of_its_answer(count: Callable[..., Counted]) -> None:
    it = count()

    @it.server.on("from")
    def slow(session: Session, address: Address, ack: Ack) -> None:
        sleep(0.03)
        ack.accept()

    with it.dial() as peer:
        peer.hello()
        peer.deliver("Hi.\r\n")
    assert it["command_seconds_bucket{le=0.025,verb=MAIL}"] == 0
    assert it["command_seconds_bucket{le=60.0,verb=MAIL}"] == 1
    assert it["command_seconds_sum{verb=MAIL}"] >= 0.03
    assert it["message_seconds_sum"] >= 0.03
    assert it["command_seconds_count{verb=DATA}"] == 0


def test_auth_is_counted_by_mechanism(count: Callable[..., Counted]) -> None:
    def login(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb != "AUTH":
            return proceed(session, command)
        return Reply({"good": 235, "busy": 454}.get(command.argument.partition(" ")[2], 535))

    it = count(inside=[login])
    with it.dial() as peer:
        peer.hello()
        peer.line("AUTH PLAIN good", "auth plain bad", "AUTH cram-md5 busy", "AUTH hunter2")
        peer.expect("235", "535", "454", "535")
    assert it["auth_total{mechanism=PLAIN,outcome=accepted}"] == 1
    assert it["auth_total{mechanism=PLAIN,outcome=refused}"] == 1
    assert it["auth_total{mechanism=CRAM-MD5,outcome=deferred}"] == 1
    assert it["auth_total{mechanism=other,outcome=refused}"] == 1
    assert "hunter2" not in generate_latest(it.registry).decode()


# Messages


def outcomes(it: Counted) -> dict[str, float]:
    """Return the number of messages by outcome, without zeros."""
    names = ("accepted", "deferred", "refused", "lost")
    return {name: value for name in names if (value := it[f"messages_total{{outcome={name}}}"])}


def test_messages_are_counted_with_size_time_and_recipients(count: Callable[..., Counted]) -> None:
    it = count()
    with it.dial() as peer:
        peer.hello()
        peer.deliver("x" * 998 + "\r\n", to=["a@example.com", "b@example.com"])
        peer.deliver("x" * 70_000)
    assert outcomes(it) == {"accepted": 2}
    assert it["recipients_total{outcome=accepted}"] == 3
    assert it["message_size_bytes_sum"] == 1000 + 70_002
    assert it["message_size_bytes_bucket{le=1024.0}"] == 1
    assert it["message_size_bytes_bucket{le=262144.0}"] == 2
    assert it["message_seconds_count"] == 2
    assert 0 < it["message_seconds_sum"] < 10


@pytest.mark.parametrize(("code", "outcome"), [(452, "deferred"), (550, "refused")])
def test_refused_messages(count: Callable[..., Counted], code: int, outcome: str) -> None:
    it = count()
    it.server.on("received", lambda session, ack: ack.reject(code))
    with it.dial() as peer:
        peer.hello()
        peer.deliver("Hi.\r\n")
    assert outcomes(it) == {outcome: 1}
    assert it[f"recipients_total{{outcome={outcome}}}"] == 1


def test_lmtp_messages_are_counted_once_and_recipients_each(count: Callable[..., Counted]) -> None:
    it = count(lmtp=True)

    @it.server.on("received")
    def deliver(session: Session, ack: Ack, recipient: Address) -> None:
        codes = {"full": 452, "gone": 550}
        ack.reject(codes[recipient.local_part]) if recipient.local_part in codes else ack.accept()

    with it.dial() as peer:
        peer.hello(verb="LHLO")
        peer.deliver("Hi.\r\n", to=["a@example.com", "full@example.com", "gone@example.com"])
        peer.expect("452", "550")
        peer.deliver("Hi.\r\n", to=["full@example.com"])
    assert outcomes(it) == {"accepted": 1, "deferred": 1}
    assert [it[f"recipients_total{{outcome={name}}}"] for name in ("accepted", "deferred", "refused")] == [1, 2, 1]
    assert it["message_size_bytes_count"] == 2


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("begun", ["DATA\r\n", "BDAT 5\r\nHi.\r\n"])
def test_messages_that_are_lost(count: Callable[..., Counted], begun: str, reads: bool) -> None:
    it = count()
    if not reads:
        it.server.signals.message.receivers.clear()
        it.server.on("message", lambda session, stream, ack: ack.accept())
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.send(begun)
        peer.expect("2" if "BDAT" in begun else "354")
        peer.send("Hi" if "DATA" in begun else "")
        peer.let_it_read()
    it.over()
    assert outcomes(it) == {"lost": 1}


@pytest.mark.parametrize("verb", ["RSET", "EHLO client.example", "QUIT"])
def test_messages_that_are_given_up_midway_are_lost_too(count: Callable[..., Counted], verb: str) -> None:
    it = count()
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.send(f"BDAT 5\r\nHi.\r\n{verb}\r\n")
        peer.expect("250", "2")
        if verb != "QUIT":
            assert outcomes(it) == {"lost": 1}
            peer.deliver("Hi.\r\n")
    it.over()
    assert outcomes(it) == ({"lost": 1} if verb == "QUIT" else {"lost": 1, "accepted": 1})


def test_envelopes_that_are_given_up_are_no_messages(count: Callable[..., Counted]) -> None:
    it = count()
    with it.dial() as peer:
        peer.hello()
        peer.envelope()
        peer.line("RSET")
        peer.expect("250")
        peer.envelope()
    it.over()
    assert outcomes(it) == {}


# Registries and arguments


def test_several_of_one_registry_count_together(smtp_server: MakeServer) -> None:
    registry = CollectorRegistry()
    for _ in range(2):
        with dial(smtp_server(start=False, middleware=[Metrics(registry)])) as peer:
            peer.hello()
    Metrics(registry, "other_namespace")
    numbers = parse(generate_latest(registry).decode())
    assert numbers["greensmtp_commands_total{code=250,verb=EHLO}"] == 2
    assert numbers["other_namespace_connections_total"] == 0


def test_the_registry_is_the_librarys_own_by_default() -> None:
    from prometheus_client import REGISTRY

    assert Metrics(namespace="greensmtp_test_default").registry is REGISTRY
    assert "process_cpu_seconds_total" in parse(generate_latest(REGISTRY).decode())


def test_names_that_are_taken_are_an_error_and_leave_nothing_behind() -> None:
    registry = CollectorRegistry()
    taken = Counter("greensmtp_refusals", "somebody's", registry=registry)
    with pytest.raises(ValueError, match="namespace 'greensmtp' is taken by other metrics in this registry"):
        Metrics(registry)
    registry.unregister(taken)
    Metrics(registry)


@pytest.mark.parametrize(
    "listen", ["9100", 9100, "localhost", "a:b", ":9100", "::1:9100", "1.2.3.4:65536", ("a", "1"), ("a", True), "a:-1"]
)
def test_where_to_listen_is_checked_at_once(listen: Any) -> None:
    with pytest.raises(ValueError, match=r'listen takes "host:port" or \(host, port\), like "127.0.0.1:9100", not '):
        Metrics(CollectorRegistry(), listen=listen)


def test_other_arguments_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="namespace takes letters, digits and underscores"):
        Metrics(CollectorRegistry(), "green-smtp")
    with pytest.raises(TypeError, match=r"registry takes a prometheus_client\.CollectorRegistry"):
        Metrics("default")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'greensmtp\[metrics\]'"):
        Metrics()


def test_it_shows_in_a_stack() -> None:
    registry = CollectorRegistry()
    assert repr(Metrics(registry)) == "Metrics(namespace='greensmtp')"
    assert repr(Metrics(registry, listen=("::1", 9100))) == "Metrics(namespace='greensmtp', listen='[::1]:9100')"


# /metrics


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
    with pytest.raises(OSError, match=r"Cannot assign requested address for the metrics, port 9100 of 192\.0\.2\.1"):
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
        with pytest.raises(OSError, match=f"Address already in use for the metrics, port {port} of 127.0.0.1"):
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
    monkeypatch.setattr(exposition, "CONNECTION_SECONDS", 0.05)
    _, metrics = told
    with Timeout(10):
        get(metrics, send=sent or b"\r\n")
    assert capfd.readouterr() == ("", "")


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
