"""The connections of one server: which have a place, which wait for ACCEPT, which are being closed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from gevent import get_hub, getcurrent
from gevent.event import Event

from greensmtp.server.deadlines import DeadlineMonitor, Monitored
from greensmtp.server.limits import Limits
from greensmtp.server.places import Places

#: Connections that may wait for ACCEPT's answer at once, beside ``max_connections``.
MAX_ARRIVING = 256

#: Connections that are accepted before their greenlets have run. The others wait in the kernel's listen queue: a burst
#: must not fill the places of those that wait for ACCEPT's answer.
MAX_UNBEGUN = 64

#: Connections that have been told to go and whose client has not gone, beside ``max_connections``.
MAX_LINGERING = 100


class Registered(Monitored, Hashable, Protocol):
    """A connection, as the registry sees it. All methods are called in the hub."""

    #: What its client is counted by: see ``client_key``.
    address: str
    #: True if it counts for ``max_connections``.
    has_place: bool
    #: The greenlet; None once DISCONNECT has been handled.
    greenlet: Any

    @property
    def displaceable(self) -> int:
        """How little is lost if it is closed: 0 (it must not be) to 3 (it is idle)."""

    def displace(self) -> None:
        """Close it in favour of another."""

    def dismiss(self, reason: str) -> None:
        """Close it as soon as it waits for its client."""

    def cut_off(self, reason: str) -> None:
        """Close it in the middle of whatever it is doing."""


Connection = TypeVar("Connection", bound=Registered)


class Registry(Generic[Connection]):
    """Keeps account of a server's connections, and decides which gives way when there are too many.

    A connection arrives (``add``), begins once its greenlet runs (``begin``), takes a place once ACCEPT lets it, may
    linger after its last reply, leaves (``begin_leaving``) while DISCONNECT is handled, and is gone (``remove``).
    """

    def __init__(self, limits: Limits) -> None:
        self._limit = limits.max_connections
        #: True while the server stops: no new transaction begins.
        self.draining = False
        #: From the moment they are accepted until the client has gone.
        self.connections: set[Connection] = set()
        #: Those whose DISCONNECT is being handled.
        self.leaving: set[Connection] = set()
        #: Those that count for ``max_connections``.
        self.places: Places[Connection] = Places(limits.max_connections)
        #: Those that ACCEPT has not answered.
        self.arriving: Places[Connection] = Places(None if limits.max_connections is None else MAX_ARRIVING)
        #: How many have a greenlet that has not run.
        self.unbegun = 0
        #: Those that have been told to go, in that order. (An ordered set.)
        self.lingering: dict[Connection, None] = {}
        self.monitor = DeadlineMonitor((self.connections, self.leaving), limits)
        #: Set when a connection leaves.
        self._departure = Event()

    def has_room(self, address: str) -> bool:
        """Return True if a connection from this address may arrive; it may displace one that arrived before.

        Only an address with at least two more arriving connections has one displaced.
        """
        if not self.arriving.is_full:
            return True
        for other in self.arriving.crowd(address):
            self.has_arrived(other)
            get_hub().loop.run_callback(other.cut_off, "displaced")
            return True
        return False

    def add(self, connection: Connection, loop: Any) -> None:
        """Add a new connection, and watch its deadlines."""
        self.arriving.take(connection, connection.address)
        self.unbegun += 1
        if not self.connections:
            self.monitor.start(loop)
        self.connections.add(connection)

    def share_places(self, other: Registry[Connection]) -> None:
        """Count the connections of another server, which this one replaces, for ``max_connections`` as well."""
        if self._limit is not None and other._limit is not None:
            self.places = other.places
            self.places.limit = self._limit

    @property
    def is_behind(self) -> bool:
        """True if no more connections should be accepted until some of them have begun."""
        return self.unbegun >= MAX_UNBEGUN

    def begin(self) -> None:
        """Note that the greenlet of a connection runs."""
        self.unbegun -= 1

    def has_arrived(self, connection: Connection) -> None:
        """Note that ACCEPT has been answered."""
        self.arriving.give_back(connection, connection.address)

    def readdress(self, connection: Connection, address: str) -> None:
        """Count a connection for another address from now on: a proxy has named its client."""
        for places in (self.arriving, self.places):
            places.move(connection, connection.address, address)
        connection.address = address

    def give_place(self, connection: Connection) -> bool:
        """Give a connection one of the ``max_connections``; return False if there is none for it.

        At the limit, the address with the most connections gives one up to a newcomer from an address that has fewer:
        an idle one if possible.
        """
        if self.places.is_full:
            displaced, best = None, 0
            for other in self.places.crowd(connection.address):
                displaceable = other.displaceable
                if displaceable > best:
                    displaced, best = other, displaceable
                    if best == 3:
                        break
            if displaced is None:
                return False
            self.take_place_back(displaced)
            get_hub().loop.run_callback(displaced.displace)
        self.places.take(connection, connection.address)
        connection.has_place = True
        return True

    def take_place_back(self, connection: Connection) -> None:
        """Stop counting a connection for ``max_connections``."""
        self.places.give_back(connection, connection.address)
        connection.has_place = False

    def let_linger(self, connection: Connection) -> None:
        """Let a connection that has been told to go wait for its client to close; it needs no place for that.

        If too many wait already, the first of them is closed.
        """
        self.take_place_back(connection)
        if len(self.lingering) >= MAX_LINGERING:
            first = next(iter(self.lingering))
            del self.lingering[first]
            get_hub().loop.run_callback(first.dismiss, "timeout")
        self.lingering[connection] = None

    def begin_leaving(self, connection: Connection) -> None:
        """Free everything that a connection holds before its DISCONNECT is handled, which may take long."""
        self.has_arrived(connection)
        if connection.has_place:
            self.take_place_back(connection)
        self.lingering.pop(connection, None)
        self.connections.discard(connection)
        self.leaving.add(connection)
        self._departure.set()

    def remove(self, connection: Connection) -> None:
        """Forget a connection whose DISCONNECT has been handled."""
        self.leaving.discard(connection)
        if not self.connections and not self.leaving:
            self.monitor.stop()
        self._departure.set()

    # For the end of the server. A handler that calls stop() cannot wait for its own connection.

    def open_connections(self) -> list[Connection]:
        """Return the open connections, without that of the current greenlet."""
        current = getcurrent()
        return [each for each in self.connections if each.greenlet is not current]

    def all_connections(self) -> list[Connection]:
        """Return the open and the leaving connections, without that of the current greenlet."""
        current = getcurrent()
        return [each for each in (*self.connections, *self.leaving) if each.greenlet is not current]

    def wait_until_none(self, of: Callable[[], list[Connection]], timeout: float) -> None:
        """Wait until ``of`` returns no connection, for ``timeout`` seconds at most."""
        deadline = monotonic() + timeout
        while of() and (left := deadline - monotonic()) > 0:
            self._departure.clear()
            self._departure.wait(left)
