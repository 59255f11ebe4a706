"""The networks whose hosts a server believes when they speak for another client: proxies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from greensmtp.errors import ArgumentError
from greensmtp.networks import read_address, read_network

#: Stands for unix sockets among networks, as in ``predicates``.
UNIX = "unix"


class TrustedNetworks:
    """Networks, and perhaps unix sockets: ``peer in trusted``."""

    def __init__(self, networks: Iterable[str]) -> None:
        """
        :raises ValueError: one of them is not a network.
        """
        names = tuple(networks)
        self._unix = UNIX in names
        self._networks = [read_network(name) for name in names if name != UNIX]

    def __contains__(self, peer: Any) -> bool:
        """Return True if a peer, as the socket gives it, is in one of these networks."""
        if not isinstance(peer, tuple):
            return self._unix
        try:
            address = read_address(str(peer[0]))
        except ValueError:
            return False  # a name that was given to adopt()
        return any(address in network for network in self._networks)


def check_networks(name: str, networks: Iterable[str] | None) -> TrustedNetworks | None:
    """Return the networks of an argument; None if there are none.

    :raises TypeError: it is not a list of str.
    :raises ArgumentError: one of them is not a network.
    """
    if networks is None:
        return None
    if isinstance(networks, str) or not isinstance(networks, Iterable):
        raise TypeError(f"{name} takes a list of networks, like ['192.0.2.0/24'], not {networks!r}")
    names: list[Any] = list(networks)
    try:
        for wrong in (each for each in names if not isinstance(each, str)):
            raise TypeError(f"{wrong!r} is no str")  # (a whole number would pass for an address)
        return TrustedNetworks(names) if names else None
    except (ValueError, TypeError) as error:
        raise ArgumentError(
            name, f"takes networks and addresses, like '192.0.2.0/24' or '2001:db8::1', or 'unix': {error}"
        ) from None
