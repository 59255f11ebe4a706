"""ConnectionLimit: a limit on the open connections of one address and one network."""

from __future__ import annotations

from collections import deque

from gevent.monkey import get_original

from greensmtp.chain.chain import Proceed
from greensmtp.middleware._validate import check_count, make_refusal
from greensmtp.networks import network_around
from greensmtp.protocol.command import ACCEPT, DISCONNECT, Command
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

_TOO_MANY = Reply(421, "4.7.0 Too many connections at once from your address or network, try again later")


class _Slot:
    """The place of one connection in the counts. It is given back once, at the latest when its session is collected."""

    __slots__ = ("_dropped", "keys")

    def __init__(self, keys: tuple[str, ...], dropped: deque[tuple[str, ...]]) -> None:
        self.keys = keys
        self._dropped = dropped

    def __del__(self) -> None:
        # A deque's append, and nothing that locks: the collector may run this while the lock is held.
        if self.keys:
            self._dropped.append(self.keys)


class ConnectionLimit:
    """Refuses a connection with 421 4.7.0 when its address or its network has too many open.

    Connections count from ACCEPT, which comes before TLS, to DISCONNECT, in this process, over all servers that have
    this object in their stack. Refused connections do not count, so that a client may try again at once. Clients on
    unix sockets do not count.

    :param per_address: open connections from one address; None: no limit.
    :param per_network: open connections from one network; None: no limit.
    :param ipv4_prefix: the prefix length of an IPv4 network.
    :param ipv6_prefix: the prefix length of an IPv6 network.
    :param code: the code of the refusal; None: 421. At ACCEPT a 4xx is sent as 421, a 5xx as 554.
    :param message: its text.
    :raises ValueError: an argument is out of range.
    """

    verbs = (ACCEPT, DISCONNECT)

    def __init__(
        self,
        per_address: int | None = 20,
        per_network: int | None = 100,
        *,
        ipv4_prefix: int = 24,
        ipv6_prefix: int = 64,
        code: int | None = None,
        message: str | None = None,
    ) -> None:
        if per_address is None and per_network is None:
            raise ValueError("ConnectionLimit takes per_address, per_network, or both; with neither it limits nothing")
        self.per_address = None if per_address is None else check_count("per_address", per_address)
        self.per_network = None if per_network is None else check_count("per_network", per_network)
        self.ipv4_prefix = check_count("ipv4_prefix", ipv4_prefix, most=32)
        self.ipv6_prefix = check_count("ipv6_prefix", ipv6_prefix, most=128)
        self._refusal = make_refusal(code, message, _TOO_MANY)
        limits = ((32, 128, self.per_address), (self.ipv4_prefix, self.ipv6_prefix, self.per_network))
        #: Prefix lengths of IPv4 and IPv6, and how many connections may be open from there.
        self._limits = [(ipv4, ipv6, most) for ipv4, ipv6, most in limits if most is not None]
        self._counts: dict[str, int] = {}
        #: Keys of connections whose DISCONNECT has not arrived here, because an outer middleware failed.
        self._dropped: deque[tuple[str, ...]] = deque()
        # The unpatched lock, since servers may run in several native threads. It is never held across a switch.
        self._lock = get_original("_thread", "allocate_lock")()

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Count the connection in at ACCEPT, or refuse it; count it out at DISCONNECT."""
        if command.verb == DISCONNECT:
            slot = session.notes.pop(self, None)
            if slot is not None:
                self._give_back(slot)
            return proceed(session, command)
        return proceed(session, command) if self._take(session) else self._refusal

    def count(self, host: str) -> int:
        """Return the open connections from this address (``"192.0.2.1"``) or network (``"192.0.2.0/24"``)."""
        return self._counts.get(host, 0)

    def _take(self, session: Session) -> bool:
        host = session.peer_host
        if host is None:
            return True
        limits = [(network_around(host, ipv4, ipv6), most) for ipv4, ipv6, most in self._limits]
        keys = tuple(dict(limits))  # a network may be one address
        with self._lock:
            while self._dropped:
                self._count_out(self._dropped.popleft())
            if any(self._counts.get(key, 0) >= most for key, most in limits):
                return False
            for key in keys:
                self._counts[key] = self._counts.get(key, 0) + 1
        session.notes[self] = _Slot(keys, self._dropped)
        return True

    def _give_back(self, slot: _Slot) -> None:
        with self._lock:
            keys, slot.keys = slot.keys, ()
            self._count_out(keys)

    def _count_out(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            left = self._counts[key] - 1
            if left:
                self._counts[key] = left
            else:
                del self._counts[key]

    def __repr__(self) -> str:
        return f"ConnectionLimit(per_address={self.per_address}, per_network={self.per_network})"
