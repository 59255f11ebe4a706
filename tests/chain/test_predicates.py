"""Predicates: networks, TLS, identity, and their combinations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greensmtp import Command, Reply, Session, when
from greensmtp.chain.chain import Proceed
from greensmtp.predicates import (
    Predicate,
    authenticated,
    inside,
    on_listener,
    outside,
    over_tls,
    unauthenticated,
)
from greensmtp.testing import dial
from greensmtp.testing.fixtures import MakeServer


class Refusing:
    """Rejects every NOOP, which shows whether it was applied."""

    verbs = ("NOOP",)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        return Reply(550)


def applies(smtp_server: MakeServer, predicate: Any, source: Any = None, **options: Any) -> bool:
    """Return the result of a predicate for a real session."""
    server = smtp_server(start=False, middleware=[when(predicate, Refusing())], **options)
    with dial(server, source=source) as peer:
        peer.hello()
        peer.line("NOOP")
        return peer.reply().startswith("550")


@pytest.mark.parametrize(
    ("client", "networks", "is_inside"),
    [
        ("192.0.2.7", ("192.0.2.0/24",), True),
        ("192.0.3.7", ("192.0.2.0/24",), False),
        ("192.0.3.7", ("192.0.2.0/24", "192.0.3.7"), True),
        ("2001:db8::7", ("2001:db8::/32",), True),
        ("2001:db9::7", ("2001:db8::/32", "10.0.0.0/8"), False),
        ("::ffff:192.0.2.7", ("192.0.2.0/24",), True),
        ("::ffff:192.0.2.7", ("::ffff:192.0.2.0/120",), True),
        ("192.0.3.7", ("::ffff:192.0.2.0/120",), False),
        ("192.0.2.7", ("::/0",), False),
        ("fe80::1%eth0", ("fe80::/10",), True),
        ("no address", ("0.0.0.0/0", "::/0"), False),
        (None, ("0.0.0.0/0", "::/0"), False),
        (None, ("10.0.0.0/8", "unix"), True),
        ("192.0.2.7", ("unix",), False),
    ],
)
def test_networks(smtp_server: MakeServer, client: str | None, networks: tuple[str, ...], is_inside: bool) -> None:
    source = None if client is None else (client, 4711)
    assert applies(smtp_server, inside(*networks), source) == is_inside
    assert applies(smtp_server, outside(*networks), source) == (not is_inside)


def test_a_client_that_changes_its_address_is_asked_again() -> None:
    # As a proxy's word about the real one does.
    class Moving:
        peer_host = "192.0.2.1"

    session: Any = Moving()
    here = inside("192.0.2.0/24")
    assert here(session)
    session.peer_host = "198.51.100.1"
    assert not here(session)


@pytest.mark.parametrize("make", [inside, outside])
@pytest.mark.parametrize("networks", [(), ("192.0.2.1/24",), ("example.com",), ("10.0.0.0/8", ""), (None,)])
def test_what_is_no_network_is_refused(make: Any, networks: Any) -> None:
    with pytest.raises(ValueError, match=f"{make.__name__} takes networks, like"):
        make(*networks)


def test_identity() -> None:
    class Somebody:
        identity: Any = None

    session: Any = Somebody()
    assert unauthenticated(session)
    assert not authenticated(session)
    session.identity = "jo"
    assert authenticated(session)
    assert not unauthenticated(session)


def test_tls(smtp_server: MakeServer, certificate: Any) -> None:
    server = smtp_server(
        start=False,
        middleware=[when(over_tls, Refusing())],
        certfile=certificate.certfile,
        keyfile=certificate.keyfile,
    )
    with dial(server) as peer:
        peer.hello()
        peer.line("NOOP", "STARTTLS")
        peer.expect("250", "220")
        peer.start_tls()
        peer.line("NOOP")
        peer.expect("550")


def test_listeners(smtp_server: MakeServer, tmp_path: Path) -> None:
    middleware = Refusing()
    one, two = smtp_server(start=False), smtp_server(start=False)
    path = str(tmp_path / "socket")
    three = smtp_server(start=False, listener=path)
    four = smtp_server(start=False, listener="[::1]:0")
    only = on_listener(one, path, "192.0.2.1:25")
    for server in (one, two, three, four):
        server.use(when(only, middleware))
        server.start()
    for server, reply in ((one, "550"), (two, "250"), (three, "550"), (four, "250")):
        with dial(server) as peer:
            peer.hello()
            peer.line("NOOP")
            peer.expect(reply)
    port = one.address[1]
    addresses: tuple[Any, ...] = (f"127.0.0.1:{port}", ("127.0.0.1", port))
    for address in addresses:
        assert on_listener(address)(_session(one))
        assert not on_listener(address)(_session(two))
    assert on_listener(f"[::1]:{four.address[1]}")(_session(four))


def _session(server: Any) -> Any:
    class Came:
        pass

    session: Any = Came()
    session.server = server
    return session


@pytest.mark.parametrize("address", [(), ("587",), ("mail",), (":587",), ("127.0.0.1:smtp",)])
def test_what_is_no_listener_is_refused(address: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="on_listener takes"):
        on_listener(*address)


def test_they_combine_as_and_or_not_do() -> None:
    asked: list[str] = []

    def answer(name: str, value: bool) -> Predicate:
        def test(session: Session) -> bool:
            asked.append(name)
            return value

        return Predicate(test, name)

    session: Any = None
    yes, no = answer("yes", True), answer("no", False)
    for combined, expected, questions in (
        (yes & no, False, ["yes", "no"]),
        (no & yes, False, ["no"]),
        (yes | no, True, ["yes"]),
        (no | yes, True, ["no", "yes"]),
        (~yes, False, ["yes"]),
        (~(no | no), True, ["no", "no"]),
        (no | (lambda session: 1), True, ["no"]),
    ):
        asked.clear()
        assert combined(session) is expected
        assert asked == questions


def test_they_tell_what_they_ask() -> None:
    assert repr(outside("10.0.0.0/8", "unix") & ~over_tls) == "(outside('10.0.0.0/8', 'unix') & ~over_tls)"
    assert repr(~(authenticated | over_tls)) == "~(authenticated | over_tls)"
    assert repr(on_listener("127.0.0.1:587")) == "on_listener('127.0.0.1:587')"
