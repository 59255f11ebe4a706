"""Metrics: every number from real dialogues, and ``/metrics`` over real HTTP."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from gevent import sleep
from gevent.event import Event
from prometheus_client import CollectorRegistry, Counter, generate_latest

from greensmtp import Ack, Address, Command, MessageStream, Reject, Reply, Session
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import Metrics
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer
from tests.middleware.prometheus_text import Numbers, parse


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
    for line, end in [("GET / HTTP/1.1", "foreign"), ("XYZZY", "errors"), ("", "timeout")]:
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


@pytest.mark.parametrize("lmtp", [False, True])
def test_messages_that_fail_when_they_are_stored_count_as_the_client_is_told(
    count: Callable[..., Counted], lmtp: bool
) -> None:
    def full() -> None:
        raise Reject(452, "4.3.1 disk full")

    def store(session: Session, ack: Ack, **recipient: Address) -> None:
        session.stage(full)
        ack.accept()

    it = count(lmtp=lmtp)
    it.server.on("received", store)
    with it.dial() as peer:
        peer.hello(verb="LHLO" if lmtp else "EHLO")
        assert peer.deliver("Hi.\r\n", to=["a@example.com", "b@example.com"]) == "452 4.3.1 disk full"
        peer.expect(*["452"] * lmtp)
        assert outcomes(it) == {"deferred": 1}
    replies = 2 if lmtp else 1
    assert it["commands_total{code=452,verb=END-OF-DATA}"] == it["refusals_total{enhanced=4.3.1}"] == replies
    assert it["commands_total{code=250,verb=END-OF-DATA}"] == it["recipients_total{outcome=accepted}"] == 0
    assert it["recipients_total{outcome=deferred}"] == 2


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
    taken = Counter("greensmtp_refusals", "of another library", registry=registry)
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
