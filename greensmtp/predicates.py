"""Predicates for ``when``: where a connection comes from, how it came, and who it is.

They combine: ``outside("10.0.0.0/8") & ~over_tls``, ``authenticated | inside("192.0.2.0/24")``, with each other and
with any ``(session) -> bool`` on the right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from greensmtp._hostport import address, is_unix_path
from greensmtp.chain.validate import check_callable, describe
from greensmtp.session import Session

if TYPE_CHECKING:
    from greensmtp.server.server import SMTPServer

#: How many clients' addresses a predicate remembers its answer for.
REMEMBERED = 4096

#: Bits of ``::ffff:0:0/96``, where IPv6 has the addresses of IPv4 (RFC 4291 section 2.5.5.2).
_MAPPED = 96

#: Stands for unix sockets among networks.
UNIX = "unix"


class Predicate:
    """A ``(session) -> bool`` that can be combined by ``~``, ``&`` and ``|``, and that tells what it asks.

    ``&`` and ``|`` ask the right side only where the left one has not settled it, as ``and`` and ``or`` do.

    :raises TypeError: it cannot be called as ``(session)``.
    """

    def __init__(self, test: Callable[[Session], Any], name: str | None = None) -> None:
        check_callable(test, "a predicate", ("session",), "bool")
        self._test = test
        self._name = describe(test) if name is None else name

    def __call__(self, session: Session) -> bool:
        """Ask."""
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


# Where it comes from


def inside(*networks: str) -> Predicate:
    """The client's address is in one of these networks: ``"192.0.2.0/24"``, ``"2001:db8::/32"``, one address; or
    ``"unix"``, for the clients of unix sockets, which have no address.

    An IPv4 client of an IPv6 socket (``::ffff:192.0.2.1``) is taken for the IPv4 client it is, and a network of those
    for the IPv4 network.

    :raises ValueError: not a network; one is needed at least.
    """
    return Predicate(_inside("inside", networks), f"inside({', '.join(map(repr, networks))})")


def outside(*networks: str) -> Predicate:
    """The client's address is in none of these networks, which are written as for ``inside``.

    :raises ValueError: not a network; one is needed at least.
    """
    found = _inside("outside", networks)
    return Predicate(lambda session: not found(session), f"outside({', '.join(map(repr, networks))})")


def _inside(name: str, networks: tuple[str, ...]) -> Callable[[Session], bool]:
    if not networks:
        raise ValueError(f"{name} takes networks, like {name}('192.0.2.0/24', '2001:db8::/32')")
    ranges = [_network(name, network) for network in networks if network != UNIX]

    # The client's address is the same for all of a connection's commands, but for a proxy's word at its beginning.
    @lru_cache(REMEMBERED)
    def contained(host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in ranges)

    def test(session: Session) -> bool:
        host = session.peer_host
        return UNIX in networks if host is None else contained(host)

    return test


def _network(name: str, network: str) -> IPv4Network | IPv6Network:
    try:
        found = ip_network(network)
        if isinstance(found, IPv6Network) and found.prefixlen >= _MAPPED and found[0].ipv4_mapped is not None:
            return IPv4Network((found[0].ipv4_mapped, found.prefixlen - _MAPPED))
        return found
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} takes networks, like '192.0.2.0/24', '2001:db8::/32' or 'unix': {error}") from None


# How it came


def on_listener(*listeners: SMTPServer | tuple[str, int] | str) -> Predicate:
    """It came in by one of these: servers, or the addresses of their listeners: ``("127.0.0.1", 587)``,
    ``"127.0.0.1:587"``, ``"[::1]:587"``, a unix path. An address is what the server was told to listen on.

    :raises ValueError: not such an address; one is needed at least.
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


def _server_name(server: SMTPServer) -> str:
    address = server.address
    return repr("{}:{}".format(*address[:2]) if isinstance(address, tuple) else address)


def _is_over_tls(session: Session) -> bool:
    # Under implicit TLS it is so at ACCEPT already, which comes before the handshake: a list of denied networks that is
    # for such connections must not be passed over there. (A stand-in for a session may have no server.)
    return session.tls or getattr(getattr(session, "server", None), "implicit_tls", False)


over_tls = Predicate(_is_over_tls, "over_tls")


# Who it is

authenticated = Predicate(lambda session: session.identity is not None, "authenticated")
unauthenticated = Predicate(lambda session: session.identity is None, "unauthenticated")
