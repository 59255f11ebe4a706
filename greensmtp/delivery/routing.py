"""Choose the deliveries of a recipient: ``for = "*@inbox.example"`` in the configuration, and ``Route`` in Python.

The patterns of ``for``, which ignore case:

    user@inbox.example     one address
    *@inbox.example        all addresses of a domain
    user-*@inbox.example   ``*`` is any text, even empty; ``*@*.example`` any subdomain
    module:function        a predicate: ``(session, address) -> bool``
    others                 every recipient that no delivery with patterns takes

A delivery without patterns takes every recipient. One recipient may have several deliveries: all of them get the
message. ``<postmaster>`` counts as ``postmaster@HOSTNAME``. If no delivery takes it, the first one does, since a server
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

#: The pattern for recipients that no other delivery takes.
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


def _expression(pattern: str) -> str:
    """Return the regular expression of a pattern with ``*``.

    Each text between two of them is matched at its first place, for good: trying the others is useless, and takes
    seconds if there are many.
    """
    first, *others = map(re.escape, pattern.split("*"))
    if not others:
        return first
    *between, last = others
    return "".join((first, *(f"(?>.*?{each})" for each in between), ".*", last))


class Route:
    """A delivery, and its recipients.

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
        match = re.compile(_expression(f"{local_part.lower()}@{domain}"), re.DOTALL).fullmatch
        self._others.append(lambda session, address: match(_key(address.local_part, address.ascii_domain)))

    @property
    def names(self) -> Iterable[str]:
        """The addresses and domains of this route, as lookup keys: ``jo@example.com``, ``@example.com``."""
        return self._addresses | {f"@{domain}" for domain in self._domains}

    @property
    def has_tests(self) -> bool:
        """True if it has predicates, or patterns that cannot be looked up."""
        return bool(self._others)

    def tests(self, session: Session, address: Address) -> bool:
        """Return True if a predicate, or a pattern that cannot be looked up, takes a recipient."""
        return any(test(session, address) for test in self._others)

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
        #: The deliveries that take every recipient.
        self.for_all: frozenset[Delivery] = frozenset(route.delivery for route in routes if route.for_all)
        #: True if no recipient is refused.
        self.takes_all = bool(self.for_all) or any(route.for_others for route in routes)
        self._is_plain = len(self.for_all) == len(self.deliveries)
        # There may be hundreds of routes, each for a domain, so names are looked up instead of trying each route.
        self._order = {delivery: number for number, delivery in enumerate(self.deliveries)}
        self._for_others = {route.delivery for route in routes if route.for_others}
        #: Address, or ``@`` and a domain -> the deliveries that take it.
        self._by_name: dict[str, set[Delivery]] = {}
        for route in routes:
            for name in () if route.for_all else route.names:
                self._by_name.setdefault(name, set()).add(route.delivery)
        self._trying = [route for route in routes if route.has_tests]

    def check(self) -> None:
        """Check that no recipient has two deliveries that ``answers``. Predicates and wildcards cannot be checked here.

        :raises ValueError: a recipient has two.
        """
        answering = [route for route in self._routes if route.delivery.answers]
        for whole in (route.delivery for route in answering if route.for_all):
            others = [route.delivery for route in answering if route.delivery is not whole]
            if others:
                raise self._two_answer(whole, others[0])
        first: dict[str, Delivery] = {}
        # A lookup, since comparing each route with each other is quadratic.
        for route in answering:
            for name in [*route.names, *([OTHERS] if route.for_others else ())]:
                found = first.setdefault(name, route.delivery)
                if found is not route.delivery:
                    raise self._two_answer(found, route.delivery)
        for route in answering:
            for name in route.names:
                found = first.get(f"@{name.rpartition('@')[2]}", route.delivery)
                if found is not route.delivery:
                    raise self._two_answer(found, route.delivery)

    def _two_answer(self, *deliveries: Delivery) -> ValueError:
        names = " and ".join(type(each).__name__ for each in sorted(deliveries, key=self._order.__getitem__))
        return ValueError(
            f"expected at most one delivery per recipient that another system answers; got {names}. If one accepted a "
            "message and the other refused it, no reply would be right. Give them different recipients"
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
        domain = address.ascii_domain
        by_name = self._by_name
        chosen = {*by_name.get(f"@{domain}", ()), *by_name.get(_key(address.local_part, domain), ())}
        for route in self._trying:
            # Predicates are not called if their delivery is chosen already.
            if route.delivery not in chosen and route.tests(session, address):
                chosen.add(route.delivery)
        return tuple(sorted((chosen or self._for_others) | self.for_all, key=self._order.__getitem__))

    def by_delivery(self, session: Session) -> tuple[dict[Delivery, list[Address]], list[Address]]:
        """Return the transaction's recipients by their deliveries, and those that no delivery takes."""
        if self._is_plain:
            return dict.fromkeys(self.deliveries, session.to), []
        found: dict[Delivery, list[Address]] = {}
        untaken = []
        for address in session.to:
            chosen = self.choose(session, address)
            for delivery in chosen:
                found.setdefault(delivery, []).append(address)
            if not chosen:
                untaken.append(address)
        return {each: found[each] for each in sorted(found, key=self._order.__getitem__)}, untaken
