"""ACCEPT, and a full server: no address can lock out the others."""

from __future__ import annotations

import gc
import socket as native_socket
from contextlib import ExitStack
from pathlib import Path
from time import sleep as native_sleep
from typing import TYPE_CHECKING, Any

import pytest
from gevent import Timeout, sleep
from gevent.event import Event
from greenlet import greenlet
from hypothesis import given
from hypothesis import strategies as st

from greensmtp import Ack, Command, MessageStream, Reject, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.chain.compose import compose, when
from greensmtp.middleware import AccessList, ConnectionLimit, EarlyTalker, RateLimit, Tarpit
from greensmtp.predicates import inside, over_tls
from greensmtp.server import registry
from greensmtp.server.places import Places, client_key
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

if TYPE_CHECKING:
    from tests.conftest import Certificate

MANY = "192.0.2.1"
OTHER = "198.51.100.1"


def wait_until(server: SMTPServer, connections: int) -> None:
    """Wait until the server has as many connections."""
    with Timeout(10):
        while len(server.connections) != connections:
            sleep(0.005)


class Seen:
    """A middleware without ``verbs`` that records pseudo-commands."""

    def __init__(self) -> None:
        self.life: list[str] = []

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb in ("ACCEPT", "CONNECT", "DISCONNECT"):
            self.life.append(command.verb)
        return proceed(session, command)


class Answer:
    """A middleware that answers ACCEPT, or raises."""

    verbs = ("ACCEPT",)

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


# ACCEPT


def test_accept_comes_first_and_disconnect_last(smtp_server: MakeServer) -> None:
    seen = Seen()
    server = smtp_server(middleware=[seen], start=False)
    with dial(server) as peer:
        peer.hello()
        peer.line("QUIT")
        peer.expect("221")
    wait_until(server, 0)
    assert seen.life == ["ACCEPT", "CONNECT", "DISCONNECT"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Reply(554, "5.7.1 no"), "554 5.7.1 no"),
        (Reply(550, "5.7.1 no"), "554 5.7.1 no"),
        (Reply(450, "4.7.1 later"), "421 4.7.1 later"),
        (Reject(550, "5.7.1 no"), "554 5.7.1 no"),
        (Reply(354, "go on"), "421"),
        (ValueError("a mistake"), "421 4.3.0"),
        (Timeout(1), "421 4.3.0"),
        ("no reply", "421 4.3.0"),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, Exception | Timeout) else str(part),
)
def test_a_connection_refused_at_accept_is_told_and_closed_at_once(
    smtp_server: MakeServer, answer: Any, told: str
) -> None:
    seen = Seen()
    server = smtp_server(middleware=[seen, Answer(answer)], start=False)
    with dial(server) as peer:
        peer.expect(told)
        peer.expect_end()
        wait_until(server, 0)
    assert seen.life == ["ACCEPT", "DISCONNECT"]


def test_a_burst_waits_in_the_listen_queue_instead_of_being_turned_away(smtp_server: MakeServer) -> None:
    server = smtp_server(hostname="mx.example.com")

    @server.on("connect")
    def take_time(session: Session, ack: Ack) -> None:
        native_sleep(0.0005)  # while one connection begins, several more could be accepted
        ack.accept()

    assert isinstance(server.address, tuple)
    address = server.address[:2]
    with ExitStack() as stack:
        # (The kernel completes the connections; the hub does not run meanwhile.)
        clients = [stack.enter_context(native_socket.create_connection(address)) for _ in range(600)]
        wait_until(server, 600)
        with Timeout(20):
            while server._registry.unbegun:
                sleep(0.005)
        for client in clients:
            client.settimeout(10)
            assert client.recv(1000) == b"220 mx.example.com ESMTP\r\n"


def test_a_middleware_that_answers_accept_by_itself_takes_a_place_all_the_same(smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[Answer(Reply(250))], start=False, max_connections=1)
    with dial(server) as first, dial(server) as second:
        first.hello()
        second.expect("421 4.7.0")
        second.expect_end()


def test_a_connection_refused_after_proceed_holds_no_place(smtp_server: MakeServer) -> None:
    refusing = True

    def refuse(session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        return Reply(554, "5.7.1 no") if refusing else reply

    refuse.verbs = ("ACCEPT",)  # type: ignore[attr-defined]
    server = smtp_server(middleware=[refuse], start=False, max_connections=1)
    for _ in range(3):
        with dial(server) as peer:
            peer.expect("554")
    refusing = False
    with dial(server) as peer:
        peer.hello()


@pytest.mark.parametrize(
    "middleware",
    [
        AccessList(deny=[MANY]),
        RateLimit("1/hour", on="connections"),
        ConnectionLimit(per_address=1),
    ],
    ids=repr,
)
def test_address_limits_come_before_the_handshake(
    smtp_server: MakeServer, certificate: Certificate, middleware: Any
) -> None:
    seen = Seen()
    server = smtp_server(
        middleware=[seen, middleware],
        start=False,
        max_connections=3,
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
        implicit_tls=True,
    )
    silent = [dial(server, source=(MANY, port)) for port in range(50)]
    for peer in silent[1:]:
        assert peer.rest() == b""  # not a word in the clear
    with dial(server, source=(OTHER, 1)) as other:
        other.start_tls()
        other.hello()
    for peer in silent:
        peer.close()
    wait_until(server, 0)
    assert seen.life.count("ACCEPT") == seen.life.count("DISCONNECT") == 51
    if isinstance(middleware, ConnectionLimit):
        assert middleware.count(MANY) == middleware.count(OTHER) == 0


def test_over_tls_holds_at_accept_under_implicit_tls(smtp_server: MakeServer, certificate: Certificate) -> None:
    """An access list for TLS connections must apply, although it is asked before the handshake."""
    server = smtp_server(
        middleware=[when(over_tls, AccessList(deny=[MANY]))],
        start=False,
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
        implicit_tls=True,
    )
    with dial(server, source=(MANY, 1)) as denied:
        assert denied.rest() == b""
    with dial(server, source=(OTHER, 1)) as peer:
        peer.start_tls()
        peer.hello()


def test_a_tarpit_does_not_delay_refusals_at_accept(smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[Tarpit(delay=30, maximum=30), AccessList(deny=[MANY])], start=False)
    with dial(server, source=(MANY, 1), timeout=5) as peer:
        peer.expect("554 5.7.1")
        peer.expect_end()


def test_when_shows_disconnect_to_what_has_seen_accept(smtp_server: MakeServer) -> None:
    limit = ConnectionLimit(per_address=1)
    server = smtp_server(middleware=[when(lambda session: True, compose(limit))], start=False)
    for _ in range(3):
        with dial(server, source=(MANY, 1)) as peer:
            peer.hello()
            assert limit.count(MANY) == 1
        wait_until(server, 0)
        assert limit.count(MANY) == 0


# max_connections


def test_a_newcomer_displaces_an_idle_connection_of_the_busiest_address(smtp_server: MakeServer) -> None:
    reasons: list[str] = []
    server = smtp_server(start=False, max_connections=4)
    server.on("disconnect", lambda session, reason: reasons.append(reason))
    peers = [dial(server, source=(MANY, port)) for port in range(4)]
    for peer in peers:
        peer.hello()
    peers[0].envelope()  # the oldest, but within a transaction
    with dial(server, source=(OTHER, 1)) as other:
        other.hello()
        peers[1].expect("421 4.7.0 Too many connections from your address")
        peers[1].expect_end()
        for peer in (peers[0], peers[2], peers[3], other):
            peer.line("NOOP")
            peer.expect("250")
        with dial(server, source=(MANY, 9)) as more:
            more.expect("421 4.7.0 Too many connections, try")
            more.expect_end()
        with dial(server, source=(OTHER, 2)) as second:  # two and two
            second.hello()
            with dial(server, source=(OTHER, 3)) as third:
                third.expect("421 4.7.0 Too many connections, try")
    for peer in peers:
        peer.close()
    wait_until(server, 0)
    assert reasons.count("displaced") == 2


def test_a_newcomer_displaces_a_connection_that_sends_a_body(smtp_server: MakeServer) -> None:
    """If none is idle: all of them may be sending slowly on purpose."""
    server = smtp_server(start=False, max_connections=2)
    lost: list[str] = []

    @server.on("message")
    def message(session: Session, stream: MessageStream, ack: Ack) -> None:
        ack.accept()
        try:
            stream.read()
        except ConnectionError as error:
            lost.append(str(error))
            raise

    peers = [dial(server, source=(MANY, port)) for port in range(2)]
    for peer in peers:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        peer.expect("354")
    with dial(server, source=(OTHER, 1)) as other:
        other.hello()
    peers[0].expect("421 4.7.0")
    assert lost == ["connection lost: displaced"]
    for peer in peers:
        peer.close()


def test_a_connection_whose_handler_has_a_message_is_not_displaced(smtp_server: MakeServer) -> None:
    """The message may be stored already, and its client would send it once more."""
    server = smtp_server(start=False, max_connections=2)
    server.on("message", lambda session, stream, ack: ack.accept())
    go_on = Event()

    @server.on("received")
    def received(session: Session, ack: Ack) -> None:
        go_on.wait(10)
        ack.accept()

    peers = [dial(server, source=(MANY, port)) for port in range(2)]
    for peer in peers:
        peer.hello()
        peer.envelope()
        peer.line("DATA")
        peer.expect("354")
        peer.line("x", ".")
        peer.let_it_read()
    with dial(server, source=(OTHER, 1)) as other:
        other.expect("421 4.7.0")
    go_on.set()
    for peer in peers:
        peer.expect("250")
        peer.close()


PAUSES = {"EarlyTalker": when(inside(MANY), EarlyTalker(10)), "Tarpit": when(inside(MANY), Tarpit(30, maximum=30))}


@pytest.mark.usefixtures("short_kill")
@pytest.mark.parametrize("pausing", ["connect", "from", *PAUSES])
def test_a_connection_in_a_pause_without_a_message_is_displaced(smtp_server: MakeServer, pausing: Any) -> None:
    """Otherwise an address that connects faster than the pauses end would hold all places."""
    server = smtp_server(
        middleware=[PAUSES[pausing]] if pausing in PAUSES else [],
        start=False,
        max_connections=3,
    )

    def wait(session: Session, ack: Ack, **fields: Any) -> None:
        if session.peer_host == MANY:
            Event().wait(10)
        ack.accept()

    if pausing in ("connect", "from"):
        server.on(pausing, wait)
    peers = [dial(server, source=(MANY, port)) for port in range(3)]
    if pausing in ("from", "Tarpit"):
        for peer in peers:
            peer.hello()
            peer.line("MAIL FROM:<a@example.org>" if pausing == "from" else "WHAT")
    peers[0].let_it_read()
    with dial(server, source=(OTHER, 1)) as other:
        other.hello()
        peers[0].expect("421 4.7.0 Too many connections from your address")
        peers[0].expect_end()
    server.stop(0)  # the pauses of the others would go on
    for peer in peers:
        peer.close()


def test_addresses_of_one_ipv6_network_count_as_one(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, max_connections=3)
    peers = [dial(server, source=(f"2001:db8::{number}", 1)) for number in range(1, 4)]
    for peer in peers:
        peer.hello()
    with dial(server, source=("2001:db8::99", 1)) as same:
        same.expect("421")
    with dial(server, source=("2001:db8:0:1::1", 1)) as other:
        other.hello()
    for peer in peers:
        peer.close()


@pytest.mark.parametrize("denied", ["AccessList", "connect", "no"])
def test_an_address_that_connects_again_and_again_keeps_none_of_the_others_out(
    smtp_server: MakeServer, denied: str
) -> None:
    server = smtp_server(
        middleware=[AccessList(deny=[MANY])] if denied == "AccessList" else [], start=False, max_connections=10
    )

    @server.on("connect")
    def connect(session: Session, ack: Ack) -> None:
        if denied == "connect" and session.peer_host == MANY:
            ack.reject(554, "5.7.1 no")
        else:
            ack.accept()

    flooding: list[Peer] = []
    for number in range(50):
        flooding += [dial(server, source=(MANY, port)) for port in range(10)]
        with dial(server, source=(f"198.51.100.{number}", 1)) as peer:
            peer.hello()
            peer.line("QUIT")
            peer.expect("221")
    for peer in flooding:
        peer.close()
    wait_until(server, 0)


def test_connections_that_linger_hold_no_place_and_are_bounded(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MAX_LINGERING", 5)
    small = smtp_server(start=False, max_connections=2)
    small.on("connect", lambda session, ack: ack.reject() if session.peer_host == MANY else ack.accept())
    peers = [dial(small, source=(MANY, port)) for port in range(30)]
    for peer in peers:
        peer.expect("554")
    with dial(small, source=(OTHER, 1)) as one, dial(small, source=(OTHER, 2)) as two:
        one.hello()
        two.hello()
        with Timeout(10):
            while len(small.connections) > 7:  # the first of them are let go
                sleep(0.005)
    for peer in peers:
        peer.close()
    wait_until(small, 0)


def test_connections_that_wait_at_accept_are_bounded_and_others_come_through(
    smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MAX_ARRIVING", 5)
    go_on = Event()

    def ask_elsewhere(session: Session, command: Command, proceed: Proceed) -> Reply:
        if session.peer_host == MANY:
            go_on.wait(10)
        return proceed(session, command)

    ask_elsewhere.verbs = ("ACCEPT",)  # type: ignore[attr-defined]
    small = smtp_server(middleware=[ask_elsewhere], start=False, max_connections=20)
    peers = [dial(small, source=(MANY, port)) for port in range(5)]
    sleep(0)
    with dial(small, source=(MANY, 6)) as more:
        more.expect("421 4.7.0")
    with dial(small, source=(OTHER, 1)) as other:
        other.hello()
    go_on.set()
    told = [peer.reply()[:3] for peer in peers]
    assert sorted(told) == ["220"] * 4 + ["421"]
    for peer in peers:
        peer.close()


def living_greenlets() -> int:
    """Count greenlets by their type: ``isinstance`` asks objects, and lazy ones of libraries may raise."""
    gc.collect()
    return sum(issubclass(type(each), greenlet) and not each.dead for each in gc.get_objects())


def test_two_thousand_quick_connects_leave_nothing_behind(smtp_server: MakeServer) -> None:
    limit = ConnectionLimit(per_address=50, per_network=None)
    server = smtp_server(middleware=[limit, AccessList(deny=["203.0.113.0/24"])], max_connections=20)

    def come_and_go(number: int) -> None:
        source = (f"203.0.113.{number % 9}" if number % 3 else f"192.0.2.{number % 9}", number)
        peer = dial(server, source=source)
        if number % 4:
            sleep(0)
        (peer.close, peer.reset)[number % 2]()

    come_and_go(0)
    wait_until(server, 0)
    descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
    greenlets = living_greenlets()
    for number in range(2_000):
        come_and_go(number)
        if not number % 50:
            sleep(0.001)
    wait_until(server, 0)
    sleep(0.05)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) <= descriptors
    assert living_greenlets() <= greenlets + 5
    assert not limit._counts
    for places in (server._registry.places, server._registry.arriving):
        assert (places.taken, places._holders, places._addresses, places._most) == (0, {}, {}, 0)
    assert not server._registry.lingering


# The counting


@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abcd"))))
def test_the_busiest_address_is_always_known(steps: list[tuple[int, str]]) -> None:
    places: Places[int] = Places(10)
    held: dict[int, str] = {}
    for holder, address in steps:
        if holder in held:
            places.give_back(holder, held.pop(holder))
            places.give_back(holder, address)  # once more does no harm
        else:
            places.take(holder, address)
            held[holder] = address
        counts = {each: list(held.values()).count(each) for each in "abcd"}
        most = max(counts.values())
        assert places.taken == len(held)
        assert places.is_full is (len(held) >= 10)
        for each in "abcd":
            crowd = list(places.crowd(each))
            if most < counts[each] + 2:
                assert crowd == []
            else:
                assert len(crowd) == most
                assert len({held[holder] for holder in crowd}) == 1


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        (("192.0.2.1", 1), "192.0.2.1"),
        (("::ffff:192.0.2.1", 1, 0, 0), "192.0.2.1"),
        (("2001:db8::1", 1, 0, 0), "2001:db8::"),
        (("2001:db8:0:0:ffff::1", 1, 0, 0), "2001:db8::"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::"),
        (("localhost", 1), "localhost"),
        ("", ""),
        (b"", ""),
        (None, ""),
        ((), ""),
    ],
)
def test_what_a_client_is_counted_by(peer: Any, key: str) -> None:
    assert client_key(peer) == key
