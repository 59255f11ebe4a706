"""The keys of a RateLimit: what it counts, and by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from greensmtp.middleware._validate import check_count
from greensmtp.networks import network_around
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import Command, PathCommand
from greensmtp.session import Session

By = Literal["address", "network", "identity", "sender", "recipient"]
On = Literal["connections", "messages", "recipients", "bytes", "auth_failures"]

#: ``(session, command) -> key``; None: not limited.
Key = Callable[[Session, Command], str | None]

#: on -> the values of ``by`` that are known when it is counted
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "connections": ("address", "network"),
    "messages": ("address", "network", "identity", "sender"),
    "recipients": ("address", "network", "identity", "sender", "recipient"),
    "bytes": ("address", "network", "identity", "sender"),
    "auth_failures": ("address", "network"),
}

#: All values of ``by``.
BY = _KNOWN["recipients"]

#: by -> the default prefix lengths of IPv4 and IPv6. A host chooses its IPv6 addresses from a /64 (RFC 6177).
_PREFIXES = {"address": (32, 64), "network": (24, 64)}


def make_key(
    on: str, by: str | Callable[[Session], str | None], ipv4_prefix: int | None, ipv6_prefix: int | None
) -> Key:
    """Return the function that gives the key.

    :raises ValueError: ``by`` is not known when ``on`` is counted, or a prefix is out of range.
    """
    if callable(by):
        function = by
        return lambda session, command: function(session)
    if by not in _KNOWN[on]:
        known = ", ".join(map(repr, _KNOWN[on]))
        raise ValueError(f"on={on!r} takes by={known} or a function: {by!r} is not known then")
    if by not in _PREFIXES:
        return _KEYS[by]
    prefixes = _PREFIXES[by]
    ipv4 = prefixes[0] if ipv4_prefix is None else check_count("ipv4_prefix", ipv4_prefix, most=32)
    ipv6 = prefixes[1] if ipv6_prefix is None else check_count("ipv6_prefix", ipv6_prefix, most=128)

    def network(session: Session, command: Command) -> str | None:
        host = session.peer_host
        return None if host is None else network_around(host, ipv4, ipv6)

    return network


def _identity(session: Session, command: Command) -> str | None:
    identity = session.identity
    return None if identity is None else str(getattr(identity, "authcid", identity)).casefold()


def _sender(session: Session, command: Command) -> str | None:
    sender = command.address if command.verb == "MAIL" and isinstance(command, PathCommand) else session.from_
    return _folded(sender) if sender else None


def _recipient(session: Session, command: Command) -> str | None:
    return _folded(command.address) if isinstance(command, PathCommand) else None


def _folded(address: Address) -> str:
    """Return one text for all ways to write an address: letters in either case, the domain in U-labels or A-labels."""
    return address.casefold() if address.isascii() else f"{address.local_part}@{address.ascii_domain}".casefold()


_KEYS: Mapping[str, Key] = {"identity": _identity, "sender": _sender, "recipient": _recipient}
