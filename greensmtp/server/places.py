"""Places of connections, counted by client address, so that the busiest address is found at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any, Generic, TypeVar

Holder = TypeVar("Holder", bound=Hashable)


class Places(Generic[Holder]):
    """A limited number of places. Each holder has one place and is counted for one address.

    Taking a place, giving one back and finding the busiest address take constant time.

    :param limit: how many places there are; None: any number.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.taken = 0
        #: Address -> its holders, in the order in which they came. (Dicts here are ordered sets.)
        self._holders: dict[str, dict[Holder, None]] = {}
        #: Number of holders, if it is two or more -> the addresses that have so many.
        self._addresses: dict[int, dict[str, None]] = {}
        #: The greatest number of holders that an address has; 0 if none has two.
        self._most = 0

    @property
    def is_full(self) -> bool:
        """True if no place is left."""
        return self.limit is not None and self.taken >= self.limit

    def take(self, holder: Holder, address: str) -> None:
        """Give a place to a holder, even if none is left."""
        if self.limit is None:
            return  # nothing is ever full
        self.taken += 1
        holders = self._holders.get(address)
        if holders is None:
            self._holders[address] = {holder: None}
        else:
            holders[holder] = None
            self._move(address, len(holders) - 1, len(holders))

    def give_back(self, holder: Holder, address: str) -> None:
        """Take a holder's place back; do nothing if it has none."""
        holders = self._holders.get(address)
        if holders is None or holder not in holders:
            return
        self.taken -= 1
        del holders[holder]
        if holders:
            self._move(address, len(holders) + 1, len(holders))
        else:
            del self._holders[address]

    def move(self, holder: Holder, before: str, after: str) -> None:
        """Count a holder for another address; do nothing if it has no place."""
        if holder in self._holders.get(before, ()):
            self.give_back(holder, before)
            self.take(holder, after)

    def crowd(self, address: str) -> Iterable[Holder]:
        """Return the holders of the busiest address, first come first, one of which may be displaced by a newcomer.

        None are returned unless that address has at least two more than the newcomer's.
        """
        if self._most < len(self._holders.get(address, ())) + 2:
            return ()
        return self._holders[next(iter(self._addresses[self._most]))]

    def _move(self, address: str, before: int, after: int) -> None:
        if before > 1:
            del self._addresses[before][address]
            if not self._addresses[before]:
                del self._addresses[before]
        if after > 1:
            self._addresses.setdefault(after, {})[address] = None
        if after > self._most or self._most not in self._addresses:
            self._most = after if after > 1 else 0


@lru_cache(4096)
def _network(host: str) -> str:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(IPv6Address(int(address) >> 64 << 64))
        address = address.ipv4_mapped
    return str(address)


def client_key(peer: Any) -> str:
    """Return what a client is counted by: its IPv4 address or IPv6 /64; clients of a unix socket count as one.

    :param peer: the client's address as the socket gives it.
    """
    return _network(peer[0]) if isinstance(peer, tuple) and peer and isinstance(peer[0], str) else ""
