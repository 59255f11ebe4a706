"""Which deliveries take a recipient: ``for = "*@inbox.example"`` of the configuration, and ``Route`` in Python.

The patterns of ``for``, without regard to case:

    user@inbox.example     one address
    *@inbox.example        a domain
    user-*@inbox.example   ``*`` is any text, also none; ``*@*.example`` any subdomain
    module:function        a predicate: ``(session, address) -> bool``
    others                 what no delivery with patterns takes

A delivery without patterns takes every recipient. One recipient may have several deliveries: all of them get the
message. ``<postmaster>`` counts as ``postmaster@HOSTNAME``, and if nothing takes it, the first delivery does: a server
must accept it (RFC 5321 section 4.5.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from greensmtp.chain.validate import check_callable
from greensmtp.delivery.contract import Delivery
from greensmtp.protocol.address import Address
from greensmtp.protocol.mailbox import ascii_domain, lower
from greensmtp.session import Session

#: ``(session, address) -> bool``
Predicate = Callable[[Session, Address], object]

#: The pattern for what no other delivery takes.
OTHERS = "others"


def check_pattern(pattern: str) -> str:
    """Return a pattern with an ``@``, or ``others``, if it can match an address.

    :raises ValueError: it cannot.
    """
    local_part, at, domain = pattern.rpartition("@")
    if pattern != OTHERS and not (at and local_part and domain):
        raise ValueError(
            'expected an address like "jo@example.com" or "*@example.com", a predicate "module:function", or '
            f'"{OTHERS}"; got {pattern!r}'
        )
    return pattern


class Route:
    """A delivery, and the recipients that it is for.

    :param wanted: patterns and predicates, one or several; None for every recipient.
    :raises ValueError: a pattern cannot match an address, or the list is empty.
    :raises TypeError: a predicate cannot be called as ``(session, address)``.
    """

    def __init__(self, delivery: Delivery, wanted: str | Predicate | Iterable[str | Predicate] | None = None) -> None:
        if not isinstance(delivery, Delivery):
            raise TypeError(f"expected a Delivery; got {delivery!r}")
        if isinstance(wanted, str) or callable(wanted):
            wanted = (wanted,)
        self.delivery = delivery
        #: Whether the delivery takes every recipient, and those that no other takes.
        self.for_all = wanted is None
        given = () if wanted is None else tuple(wanted)
        if not given and not self.for_all:
            raise ValueError("expected at least one pattern, or none at all for every recipient; got an empty list")
        self.for_others = OTHERS in given
        self._addresses: set[str] = set()
        self._domains: set[str] = set()
        self._others: list[Predicate] = []
        for each in given:
            if isinstance(each, str):
                self._add(check_pattern(each))
            else:
                check_callable(each, "a predicate of recipients", ("session", "address"), "bool")
                self._others.append(each)

    def _add(self, pattern: str) -> None:
        if pattern == OTHERS:
            return
        local_part, _, domain = pattern.rpartition("@")
        domain = lower(domain)
        if "*" not in domain:
            domain = ascii_domain(domain)
            if local_part == "*":
                self._domains.add(domain)
                return
            if "*" not in local_part:
                self._addresses.add(f"{local_part.lower()}@{domain}")
                return
        text = ".*".join(map(re.escape, f"{local_part.lower()}@{domain}".split("*")))
        match = re.compile(text, re.DOTALL).fullmatch
        self._others.append(lambda session, address: match(_key(address.local_part, address.ascii_domain)))

    def takes(self, session: Session, address: Address) -> bool:
        """Return whether a pattern or predicate takes a recipient."""
        domain = address.ascii_domain
        if domain in self._domains or (self._addresses and _key(address.local_part, domain) in self._addresses):
            return True
        return any(test(session, address) for test in self._others)

    def overlaps(self, other: Route) -> bool:
        """Return whether there is certainly a recipient that both take. Of predicates and ``*`` it cannot be known."""
        if self.for_all or other.for_all or (self.for_others and other.for_others):
            return True
        return any(
            one._domains & two._domains
            or one._addresses & two._addresses
            or any(address.rpartition("@")[2] in two._domains for address in one._addresses)
            for one, two in ((self, other), (other, self))
        )

    def __repr__(self) -> str:
        return f"<Route to {type(self.delivery).__name__}>"


def _key(local_part: str, domain: str) -> str:
    return f"{local_part.lower()}@{domain}"


class Routing:
    """The routes of a server."""

    def __init__(self, given: Sequence[Route]) -> None:
        self._first = given[0].delivery
        routes = self._routes = sorted(given, key=lambda route: not route.delivery.answers)
        #: Each delivery once, in the order of the routes; those that ``answers`` come first.
        self.deliveries: tuple[Delivery, ...] = tuple(dict.fromkeys(route.delivery for route in routes))
        #: Those that take every recipient.
        self.for_all: frozenset[Delivery] = frozenset(route.delivery for route in routes if route.for_all)
        #: True if no recipient is refused.
        self.takes_all = bool(self.for_all) or any(route.for_others for route in routes)
        self._is_plain = len(self.for_all) == len(self.deliveries)

    def check(self) -> None:
        """Check that no recipient has two deliveries that are answered by other systems, as far as that can be seen.

        :raises ValueError: one has.
        """
        answering = [route for route in self._routes if route.delivery.answers]
        for number, one in enumerate(answering):
            for two in answering[:number]:
                if one.delivery is not two.delivery and one.overlaps(two):
                    raise ValueError(
                        f"{type(two.delivery).__name__} and {type(one.delivery).__name__}: a recipient may have only "
                        "one delivery that is answered by another system: if one accepts a message and the next one "
                        "refuses it, it can neither be accepted nor taken back. Give them different recipients"
                    )

    def choose(self, session: Session, address: Address) -> tuple[Delivery, ...]:
        """Return the deliveries that take a recipient."""
        if self._is_plain:
            return self.deliveries
        if not address.domain:
            hostname = session.server.hostname
            address = Address(f"{address.local_part}@{hostname}", address.local_part, hostname, address.parameters)
            return self._choose(session, address) or (self._first,)
        return self._choose(session, address)

    def _choose(self, session: Session, address: Address) -> tuple[Delivery, ...]:
        chosen = {route.delivery for route in self._routes if not route.for_all and route.takes(session, address)}
        if not chosen:
            chosen = {route.delivery for route in self._routes if route.for_others}
        chosen |= self.for_all
        return tuple(each for each in self.deliveries if each in chosen)

    def by_delivery(self, session: Session) -> tuple[dict[Delivery, list[Address]], list[Address]]:
        """Return the transaction's recipients by their deliveries, and those that no delivery takes."""
        if self._is_plain:
            return dict.fromkeys(self.deliveries, session.to), []
        found: dict[Delivery, list[Address]] = {each: [] for each in self.deliveries}
        untaken = []
        for address in session.to:
            chosen = self.choose(session, address)
            for delivery in chosen:
                found[delivery].append(address)
            if not chosen:
                untaken.append(address)
        return {delivery: addresses for delivery, addresses in found.items() if addresses}, untaken
