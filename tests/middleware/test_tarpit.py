"""Tarpit: errors are delayed, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from gevent import socket, spawn
from gevent.event import Event

from greensmtp import Session
from greensmtp.middleware import Tarpit, tarpit
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

HERE, THERE = ("192.0.2.1", 1), ("198.51.100.1", 1)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses, in seconds, instead of sleeping."""
    pauses: list[float] = []
    monkeypatch.setattr(tarpit, "pause", lambda session, seconds: pauses.append(seconds))
    return pauses


def test_each_error_costs_more_than_the_last_up_to_a_maximum(smtp_server: MakeServer, slept: list[float]) -> None:
    with dial(smtp_server(start=False, middleware=[Tarpit(1, 2, 5)]), source=HERE) as peer:
        peer.hello()
        peer.line("XYZZY", "RCPT TO:<a@example.com>", "NOOP", "MAIL FROM:<", "AUTH PLAIN", "HELO")
        peer.expect("500", "503", "250", "501", "502", "501")
        peer.line("QUIT")
        peer.expect("221")
    assert slept == [1, 2, 4, 5, 5]


def test_the_first_may_be_free_and_4xx_may_count(smtp_server: MakeServer, slept: list[float]) -> None:
    server = smtp_server(start=False, middleware=[Tarpit(1, 3, free=1, transient=True)])
    server.on("to", lambda session, address, ack: ack.reject(450, "4.2.1 later"))
    with dial(server, source=HERE) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.com>", *["RCPT TO:<b@example.com>"] * 3)
        peer.expect("250", "450", "450", "450")
    assert slept == [1, 3]


def test_by_session_an_accepted_message_wipes_the_slate(smtp_server: MakeServer, slept: list[float]) -> None:
    server = smtp_server(start=False, middleware=[Tarpit(1, 2)])
    server.on("message", lambda session, stream, ack: ack.accept())
    with dial(server, source=HERE) as peer:
        peer.hello()
        peer.line("XYZZY", "XYZZY")
        peer.expect("500", "500")
        assert peer.deliver().startswith("250")
        peer.line("XYZZY")
        peer.expect("500")
    assert slept == [1, 2, 1]


def test_by_address_all_connections_count_together(
    smtp_server: MakeServer, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = smtp_server(start=False, middleware=[Tarpit(1, 2, by="address", forget=100)])

    def err(host: str) -> None:
        with dial(server, source=(host, 1)) as peer:
            peer.expect("220")
            peer.line("XYZZY")
            peer.expect("500")

    now = monotonic()
    monkeypatch.setattr(tarpit, "monotonic", lambda: now)
    for host in ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "192.0.2.1"):
        err(host)
    assert slept == [1, 2, 1, 1, 2, 4]
    now += 101
    err("192.0.2.1")
    assert slept[-1] == 1


def test_what_is_remembered_of_addresses_is_bounded(
    smtp_server: MakeServer, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarpit, "_MAX_ADDRESSES", 3)
    pit = Tarpit(1, 2, by="address")
    server = smtp_server(start=False, middleware=[pit])
    for number in (1, 2, 1, 3, 4, 5, 1):
        with dial(server, source=(f"10.0.0.{number}", 1)) as peer:
            peer.expect("220")
            peer.line("XYZZY")
            peer.expect("500")
    assert list(pit._errors) == ["10.0.0.4", "10.0.0.5", "10.0.0.1"]
    assert slept == [1, 1, 2, 1, 1, 1, 1]  # forgotten, the one that was good for longest first


def test_lmtp_delays_the_replies_to_one_message_once(smtp_server: MakeServer, slept: list[float]) -> None:
    server = smtp_server(start=False, lmtp=True, middleware=[Tarpit(1, 2)])
    server.on("message", lambda session, stream, ack: ack.accept())
    server.on("received", lambda session, ack, recipient: ack.reject(552, "5.2.2 full"))
    with dial(server, source=HERE) as peer:
        peer.hello(verb="LHLO")
        assert peer.deliver(to=["a@example.com", "b@example.com", "c@example.com"]).startswith("552")
        peer.expect("552", "552")
    assert slept == [4]  # the third error's


def test_what_is_owed_goes_out_before_the_pause(smtp_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that pipelines a hundred bad recipients must not think the server dead."""
    go_on = Event()
    monkeypatch.setattr(tarpit, "pause", lambda session, seconds: go_on.wait(5))
    with dial(smtp_server(start=False, middleware=[Tarpit()]), source=HERE) as peer:
        peer.expect("220")
        peer.line("NOOP", "NOOP", "XYZZY", "NOOP")
        peer.expect("250", "250")
        peer.expect_nothing(0.01)
        go_on.set()
        peer.expect("500", "250")


def test_two_hundred_in_the_pit_and_another_is_served_without_delay(smtp_server: MakeServer) -> None:
    server = smtp_server(middleware=[Tarpit(60, maximum=60)], max_connections=300)
    server.on("message", lambda session, stream, ack: ack.accept())
    stuck = [dial(server) for _ in range(200)]
    for peer in stuck:
        peer.expect("220")
        peer.line("NOOP", "XYZZY")
        peer.expect("250")  # the other one is held back from now on
    began = monotonic()
    with dial(server) as peer:
        peer.hello()
        for _ in range(10):
            assert peer.deliver().startswith("250")
        peer.line("QUIT")
        peer.expect("221")
    assert monotonic() - began < 30  # half of what any of the others waits
    for peer in stuck:
        assert peer._buffer == b""
    assert len(server.connections) >= 200
    # And a shutdown keeps none of them: the replies go out, and the good-bye.
    began = monotonic()
    stopping = spawn(server.stop, 50)
    for peer in stuck:
        peer.expect("500", "421 4.3.2")
        peer.close()
    stopping.join(30)
    assert monotonic() - began < 30
    assert not server.connections


def test_a_hang_up_during_a_delay_is_noticed_after_it(smtp_server: MakeServer, slept: list[float]) -> None:
    reasons: list[str] = []
    over = Event()
    server = smtp_server(start=False, middleware=[Tarpit()])

    @server.on("disconnect")
    def gone(session: Session, reason: str) -> None:
        reasons.append(reason)
        over.set()

    with dial(server, source=HERE) as peer:
        peer.expect("220")
        peer.line("NOOP", "XYZZY")
        peer.reset()
    assert over.wait(5)
    assert reasons[0] in ("closed", "reset")


def test_unix_sockets_and_refused_connections_are_not_delayed(
    smtp_server: MakeServer, slept: list[float], tmp_path: Path
) -> None:
    smtp_server(listener=str(tmp_path / "socket"), middleware=[Tarpit()])
    ours = socket.socket(socket.AF_UNIX)
    ours.connect(str(tmp_path / "socket"))
    with Peer(ours) as peer:
        peer.expect("220")
        peer.line("XYZZY")
        peer.expect("500")
    refusing = smtp_server(start=False, middleware=[Tarpit()])
    refusing.on("connect", lambda session, ack: ack.reject())
    with dial(refusing, source=THERE) as peer:
        peer.expect("554")
    assert slept == []


def test_its_delays_do_not_overflow() -> None:
    assert Tarpit(1, 1e300, 30).delay_of(1_000_000) == 30
    assert Tarpit(0).delay_of(5) == 0
    assert [Tarpit(1, 1, 30).delay_of(number) for number in (0, 1, 99)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"delay": -1}, "delay takes a number of at least 0 and at most 60, not -1"),
        ({"delay": "1"}, "delay takes a number"),
        ({"factor": 0.5}, "factor takes a number of at least 1, not 0.5"),
        ({"factor": float("inf")}, "factor takes a number"),
        ({"maximum": 61}, "maximum takes a number of at least 0 and at most 60"),
        ({"free": -1}, "free takes a whole number of at least 0"),
        ({"by": "network"}, "by takes 'session' or 'address', not 'network'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Tarpit(**arguments)


def test_its_repr_is_short() -> None:
    assert repr(Tarpit()) == "Tarpit(delay=1, factor=2, maximum=30, by='session')"
