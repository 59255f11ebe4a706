"""Predicates for ``when``: where a connection comes from, how it arrived, and whether the client has authenticated.

They combine: ``outside("10.0.0.0/8") & ~over_tls``, ``authenticated | inside("192.0.2.0/24")``, with each other and
with any ``(session) -> bool`` on the right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from greensmtp._hostport import address, is_unix_path
from greensmtp.chain.validate import check_callable, describe
from greensmtp.networks import IPNetwork, read_address, read_network
from greensmtp.session import ServerInfo, Session

#: Client addresses for which a predicate keeps its answer.
REMEMBERED = 4096

#: Stands for unix sockets among networks.
UNIX = "unix"


class Predicate:
    """A ``(session) -> bool`` that combines with others by ``~``, ``&`` and ``|``, and whose repr shows what it tests.

    ``&`` and ``|`` call the right side only if the left one has not settled the result, as ``and`` and ``or`` do.

    :raises TypeError: the test cannot be called as ``(session)``.
    """

    def __init__(self, test: Callable[[Session], Any], name: str | None = None) -> None:
        check_callable(test, "a predicate", ("session",), "bool")
        self._test = test
        self._name = describe(test) if name is None else name

    def __call__(self, session: Session) -> bool:
        """Return whether the test is true of this session."""
        return bool(self._test(session))

    def __invert__(self) -> Predicate:
        return Predicate(lambda session: not self(session), f"~{self._name}")

    def __and__(self, other: Callable[[Session], Any]) -> Predicate:
        other = _predicate(other)
        return Predicate(lambda session: self(session) and other(session), f"({self!r} & {other!r})")

    def __or__(self, other: Callable[[Session], Any]) -> Predicate:
        other = _predicate(other)
        return Predicate(lambda session: self(session) or other(session), f"({self!r} | {other!r})")

    def __repr__(self) -> str:
        return self._name


def _predicate(test: Callable[[Session], Any]) -> Predicate:
    return test if isinstance(test, Predicate) else Predicate(test)


# Where the connection comes from


def inside(*networks: str) -> Predicate:
    """Return a predicate: is the client's address in one of these networks?

    An IPv4 client of an IPv6 socket (``::ffff:192.0.2.1``) counts as the IPv4 client that it is.

    :param networks: ``"192.0.2.0/24"``, ``"2001:db8::/32"``, a single address; or ``"unix"``, for the clients of unix
        sockets, which have no address. At least one.
    :raises ValueError: one of them is not a network, or none is given.
    """
    return Predicate(_inside("inside", networks), f"inside({', '.join(map(repr, networks))})")


def outside(*networks: str) -> Predicate:
    """Return a predicate: is the client's address in none of these networks? They are written as for ``inside``.

    :raises ValueError: one of them is not a network, or none is given.
    """
    found = _inside("outside", networks)
    return Predicate(lambda session: not found(session), f"outside({', '.join(map(repr, networks))})")


def _inside(name: str, networks: tuple[str, ...]) -> Callable[[Session], bool]:
    if not networks:
        raise ValueError(f"{name} takes networks, like {name}('192.0.2.0/24', '2001:db8::/32')")
    ranges = [_network(name, network) for network in networks if network != UNIX]

    # Cached because the predicate is called for every command of a connection, with the same address.
    @lru_cache(REMEMBERED)
    def contained(host: str) -> bool:
        try:
            address = read_address(host)
        except ValueError:
            return False
        return any(address in network for network in ranges)

    def test(session: Session) -> bool:
        host = session.peer_host
        return UNIX in networks if host is None else contained(host)

    return test


def _network(name: str, network: str) -> IPNetwork:
    try:
        return read_network(network)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} takes networks, like '192.0.2.0/24', '2001:db8::/32' or 'unix': {error}") from None


# How it arrived


def on_listener(*listeners: ServerInfo | tuple[str, int] | str) -> Predicate:
    """Return a predicate: did the client connect to one of these listeners?

    :param listeners: servers, or addresses that servers were told to listen on: ``("127.0.0.1", 587)``,
        ``"127.0.0.1:587"``, ``"[::1]:587"``, a unix path. At least one.
    :raises ValueError: one of them is not an address, or none is given.
    """
    if not listeners:
        raise ValueError("on_listener takes servers or addresses, like on_listener('127.0.0.1:587')")
    wanted = [_address(each) if isinstance(each, str | tuple) else each for each in listeners]

    def test(session: Session) -> bool:
        server = session.server
        address = server.address
        if isinstance(address, tuple):
            address = address[:2]  # IPv6 has more
        return any(server is each or address == each for each in wanted)

    names = (repr(each) if isinstance(each, str | tuple) else _server_name(each) for each in listeners)
    return Predicate(test, f"on_listener({', '.join(names)})")


def _address(listener: str | tuple[str, int]) -> str | tuple[str, int]:
    if isinstance(listener, tuple):
        return listener[:2]
    if is_unix_path(listener):
        return listener
    found = address(listener)
    if found is None:
        raise ValueError(f"on_listener takes '127.0.0.1:587', '[::1]:587' or a unix path, not {listener!r}")
    return found


def _server_name(server: ServerInfo) -> str:
    address = server.address
    return repr("{}:{}".format(*address[:2]) if isinstance(address, tuple) else address)


def _is_over_tls(session: Session) -> bool:
    # With implicit TLS it is true at ACCEPT already, before the handshake: an access list for TLS connections must not
    # be skipped there. (A test's stand-in for a session may have no server.)
    return session.tls or getattr(getattr(session, "server", None), "implicit_tls", False)


over_tls: Predicate = Predicate(_is_over_tls, "over_tls")


# Which client it is

authenticated: Predicate = Predicate(lambda session: session.identity is not None, "authenticated")
unauthenticated: Predicate = Predicate(lambda session: session.identity is None, "unauthenticated")
