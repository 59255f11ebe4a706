"""ConnectionLimit: the number of connections at a time, however they end."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from gevent.event import Event

from greensmtp import Command, Reply, Session, SMTPServer
from greensmtp.chain.chain import Proceed
from greensmtp.middleware import ConnectionLimit
from greensmtp.testing import Peer, dial
from greensmtp.testing.fixtures import MakeServer

ONE, OTHER, NEIGHBOUR = ("192.0.2.1", 1), ("198.51.100.1", 1), ("192.0.2.2", 1)


class Ends:
    """Wait for the end of connections."""

    def __init__(self, server: SMTPServer) -> None:
        self._over = Event()
        server.on("disconnect", lambda session, reason: self._over.set())

    def wait(self) -> None:
        assert self._over.wait(5)
        self._over.clear()


def test_one_more_than_allowed_gets_421_until_another_is_gone(smtp_server: MakeServer) -> None:
    limit = ConnectionLimit(per_address=2)
    server = smtp_server(start=False, middleware=[limit])
    ends = Ends(server)
    first, second = dial(server, source=ONE), dial(server, source=ONE)
    first.expect("220")
    second.expect("220")
    with dial(server, source=ONE) as third:
        third.expect("421 4.7.0 Too many connections at once")
        third.expect_end()
    with dial(server, source=OTHER) as other:
        other.expect("220")
    ends.wait()
    assert limit.count("192.0.2.1") == 2
    first.line("QUIT")
    first.expect("221")
    first.expect_end()
    ends.wait()
    with dial(server, source=ONE) as fourth:
        fourth.expect("220")
    second.close()
    first.close()


def test_a_network_is_counted_as_one(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[ConnectionLimit(per_address=None, per_network=1)])
    for here, neighbour, stranger in (
        ("192.0.2.1", "192.0.2.255", "192.0.3.1"),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", "2001:db8:0:1::1"),
        ("::ffff:10.0.0.1", "10.0.0.2", "::ffff:10.0.1.2"),
    ):
        with dial(server, source=(here, 1)) as one, dial(server, source=(neighbour, 1)) as two:
            with dial(server, source=(stranger, 1)) as three:
                three.expect("220")
            one.expect("220")
            two.expect("421 4.7.0")


def test_an_address_of_two_families_is_one_address(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[ConnectionLimit(per_address=1, per_network=None)])
    with dial(server, source=ONE) as one, dial(server, source=("::ffff:192.0.2.1", 1)) as two:
        one.expect("220")
        two.expect("421")
    with dial(server, source=NEIGHBOUR) as three:
        three.expect("220")


def leave(peer: Peer) -> None:
    peer.expect("220")
    peer.line("QUIT")
    peer.expect("221")


def hang_up(peer: Peer) -> None:
    peer.expect("220")
    peer.close()


def reset(peer: Peer) -> None:
    peer.expect("220")
    peer.reset()


def reset_in_a_body(peer: Peer) -> None:
    peer.hello()
    peer.envelope()
    peer.line("DATA")
    peer.expect("354")
    peer.line("half a")
    peer.reset()


def fall_asleep(peer: Peer) -> None:
    peer.expect("220", "421 4.4.2")


def speak_http(peer: Peer) -> None:
    peer.expect("220")
    peer.line("GET / HTTP/1.1")
    peer.expect("421")


def make_errors(peer: Peer) -> None:
    peer.expect("220")
    peer.line("XYZZY", "XYZZY")
    peer.expect("500", "500", "421")


@pytest.mark.parametrize(
    "end", [leave, hang_up, reset, reset_in_a_body, fall_asleep, speak_http, make_errors], ids=lambda end: end.__name__
)
def test_every_way_to_end_gives_the_place_back(smtp_server: MakeServer, end: Callable[[Peer], None]) -> None:
    limit = ConnectionLimit(per_address=1)
    server = smtp_server(middleware=[limit], command_timeout=0.2 if end is fall_asleep else 30, max_errors=2)
    server.on("message", lambda session, stream, ack: ack.accept())
    ends = Ends(server)
    for _ in range(2):
        with dial(server) as peer:
            end(peer)
            peer.close()  # or the server lingers
            ends.wait()
            assert limit.count("127.0.0.1") == limit.count("127.0.0.0/24") == 0


def test_a_server_that_cuts_connections_off_gives_their_places_back(smtp_server: MakeServer) -> None:
    limit = ConnectionLimit()
    server = smtp_server(middleware=[limit])
    with dial(server) as peer:
        peer.hello()
        peer.line("MAIL FROM:<a@example.com>")
        peer.expect("250")
        assert limit.count("127.0.0.1") == 1
        server.stop(timeout=0)
    assert limit.count("127.0.0.1") == 0


def refuse(session: Session, command: Command, proceed: Proceed) -> Reply:
    return Reply(554, "5.7.1 no") if command.verb == "CONNECT" else proceed(session, command)


def fail(session: Session, command: Command, proceed: Proceed) -> Reply:
    if command.verb == "CONNECT":
        raise RuntimeError("meant to happen")
    return proceed(session, command)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(("other", "reply"), [(refuse, "554"), (fail, "421")])
def test_a_connection_refused_by_another_middleware_takes_no_place(
    smtp_server: MakeServer, other: Any, reply: str, inside: bool
) -> None:
    limit = ConnectionLimit(per_address=1)
    server = smtp_server(start=False, middleware=[limit, other] if inside else [other, limit])
    ends = Ends(server)
    for _ in range(3):
        with dial(server, source=ONE) as peer:
            peer.expect(reply)
            peer.expect_end()
        ends.wait()
    assert limit.count("192.0.2.1") == 0


def test_a_disconnect_that_another_middleware_swallows_is_made_good(smtp_server: MakeServer) -> None:
    def swallow(session: Session, command: Command, proceed: Proceed) -> Reply:
        if command.verb == "DISCONNECT":
            over.set()
            return Reply(221, "bye")
        return proceed(session, command)

    over = Event()
    server = smtp_server(start=False, middleware=[swallow, ConnectionLimit(per_address=1)])
    for _ in range(3):
        over.clear()
        with dial(server, source=ONE) as peer:
            leave(peer)
            peer.expect_end()
        assert over.wait(5)
        peer.let_it_read()
        gc.collect()  # a session and its connection know each other


def test_refused_connections_do_not_prolong_the_wait(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[ConnectionLimit(per_address=1)])
    ends = Ends(server)
    knocking = []
    with dial(server, source=ONE) as first:
        first.expect("220")
        for _ in range(5):
            knocking.append(dial(server, source=ONE))
            knocking[-1].expect("421")  # and it stays, so that the server lingers
        first.line("QUIT")
        first.expect("221")
        ends.wait()
        with dial(server, source=ONE) as again:
            again.expect("220")
    for peer in knocking:
        peer.close()


def test_unix_sockets_are_not_counted(smtp_server: MakeServer) -> None:
    server = smtp_server(start=False, middleware=[ConnectionLimit(per_address=1, per_network=1)], lmtp=True)
    with dial(server) as one, dial(server) as two:
        one.expect("220")
        two.expect("220")


def test_nothing_is_kept_of_closed_connections(smtp_server: MakeServer) -> None:
    limit = ConnectionLimit()
    server = smtp_server(start=False, middleware=[limit])
    ends = Ends(server)
    for number in range(50):
        with dial(server, source=(f"10.{number}.0.1", 1)) as peer:
            peer.expect("220")
        ends.wait()
    assert limit._counts == {}
    assert not limit._dropped


def test_two_servers_with_one_limit_count_together(smtp_server: MakeServer) -> None:
    limit = ConnectionLimit(per_address=1)
    first, second = smtp_server(start=False, middleware=[limit]), smtp_server(start=False, middleware=[limit])
    with dial(first, source=ONE) as one, dial(second, source=ONE) as two:
        one.expect("220")
        two.expect("421")


def test_code_and_text_are_ones_own(smtp_server: MakeServer) -> None:
    limit = ConnectionLimit(per_address=1, code=554, message="enough\nis enough")
    server = smtp_server(start=False, middleware=[limit])
    with dial(server, source=ONE) as one, dial(server, source=ONE) as two:
        one.expect("220")
        assert two.reply() == "554-5.7.0 enough\n554 5.7.0 is enough"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"per_address": 0}, "per_address takes a whole number of at least 1, not 0"),
        ({"per_network": 1.5}, "per_network takes a whole number"),
        ({"per_address": True}, "per_address takes a whole number"),
        ({"per_address": None, "per_network": None}, "limits nothing"),
        ({"ipv4_prefix": 33}, "ipv4_prefix takes a whole number of at least 1 and at most 32"),
        ({"ipv6_prefix": 0}, "ipv6_prefix takes"),
        ({"code": 250}, "code takes a whole number of at least 400 and at most 599, not 250"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ConnectionLimit(**arguments)


def test_its_repr_says_what_it_limits() -> None:
    assert repr(ConnectionLimit(5)) == "ConnectionLimit(per_address=5, per_network=100)"
