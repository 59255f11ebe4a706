"""The MX hosts of a recipient's domain as the next hop (RFC 5321 section 5.1)."""

from __future__ import annotations

import logging
import random
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from greensmtp.delivery.mta_sts import Policies
from greensmtp.delivery.next_hop import NextHop
from greensmtp.delivery.resolver import DNSResolver, LookupFailed, NoSuchDomain, Resolver
from greensmtp.protocol import hosts as host_names
from greensmtp.protocol.address import Address
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.reply import Reply

logger = logging.getLogger("greensmtp")

#: Maximum number of domains with kept connections.
KEPT = 1000

#: Maximum number of hosts of a domain that are tried.
MAX_HOSTS = 10

_NULL_MX = Reply(556, "5.1.10 The domain does not accept mail")  # RFC 7505 section 4.1
_NO_DOMAIN = Reply(550, "5.1.2 The domain does not exist")
_NO_HOST = Reply(550, "5.4.4 The domain has no host for mail")
_LOOP = Reply(554, "5.4.6 The mail of this domain would come back here")
_NO_ANSWER = Reply(451, "4.4.3 The domain cannot be looked up now")
_NOT_ALLOWED = Reply(451, "4.7.5 The policy of the domain (MTA-STS) allows none of its hosts")

_LITERAL = re.compile(r"\[(?:ipv6:)?([0-9a-f:.]+)\]")


class MX:
    """Find the next hop of each domain.

    Hosts are tried in the order of their preference, those with the same one in random order, each at all its addresses
    (RFC 8305). Without MX records, the domain itself is the host. TLS is used where it is offered, without
    verification. If an MTA-STS policy (RFC 8461) is enforced, only verified TLS is used, and only with hosts that match
    the policy. DANE is not supported: it needs a resolver that validates DNSSEC.

    :param hostname: this server's name: hosts of the same or a higher preference are left out, so mail does not come
        back.
    :param sts: apply MTA-STS policies.
    :param options: options of ``Pool``; ``size`` is the maximum number of connections for each domain.
    """

    def __init__(
        self, hostname: str, resolver: Resolver | None = None, *, port: int = 25, sts: bool = True, **options: Any
    ) -> None:
        self._hostname = hostname.lower()
        self._resolver = DNSResolver() if resolver is None else resolver
        self.policies = Policies(self._resolver) if sts else None
        self._port = port
        self._options = options
        #: (a set of hosts for each preference, whether their certificates are verified) -> the next hop.
        self._kept: OrderedDict[tuple[tuple[frozenset[str], ...], bool], NextHop] = OrderedDict()

    def next_hops(self, recipients: Sequence[Address]) -> Iterator[tuple[NextHop | Reply, list[Address]]]:
        """Yield the next hop of each group of recipients, or a Reply if there is none.

        Each domain is looked up only when its turn comes, so a slow name server does not delay the domains before it.
        """
        groups: dict[str, list[Address]] = {}
        for each in recipients:
            groups.setdefault(each.ascii_domain.lower(), []).append(each)
        for domain, group in groups.items():
            yield self.next_hop(domain), group

    def next_hop(self, domain: str) -> NextHop | Reply:
        """Return the next hop for a domain; a Reply if there is none.

        :param domain: with A-labels, or an address literal.
        """
        if literal := _LITERAL.fullmatch(domain):
            return self._to(((literal[1],),), verified=False) if _is_host(literal[1]) else _NO_DOMAIN
        try:
            tiers = self._tiers(domain)
        except NoSuchDomain:
            return _NO_DOMAIN
        except LookupFailed as error:
            logger.warning("MX: %s", error)
            return _NO_ANSWER
        if isinstance(tiers, Reply):
            return tiers
        policy = None if self.policies is None else self.policies.find(domain)
        if policy is None or policy.mode == "none":
            return self._to(tiers, verified=False)
        allowed = tuple(filter(None, (tuple(filter(policy.allows, tier)) for tier in tiers)))
        if policy.mode == "testing":
            if allowed != tiers:
                logger.info("MTA-STS: the policy of %s, in testing mode, does not allow all its hosts", domain)
            return self._to(tiers, verified=False)
        return self._to(allowed, verified=True) if allowed else _NOT_ALLOWED

    def hosts(self, domain: str) -> tuple[str, ...] | Reply:
        """Return the hosts of a domain, in the order in which to try them.

        :raises NoSuchDomain: the domain does not exist.
        :raises LookupFailed: there is no answer from DNS.
        """
        tiers = self._tiers(domain)
        return tiers if isinstance(tiers, Reply) else tuple(host for tier in tiers for host in tier)

    def _tiers(self, domain: str) -> tuple[tuple[str, ...], ...] | Reply:
        """Return the hosts of each preference, in random order; at most ``MAX_HOSTS`` in total."""
        found = list(self._resolver.mx(domain))
        if not found:
            if domain == self._hostname:
                return _LOOP
            return ((domain,),) if _is_host(domain) and self._resolver.has_address(domain) else _NO_HOST
        named = [each for each in found if each.host]
        if not named:
            return _NULL_MX
        random.shuffle(named)
        named.sort(key=lambda each: each.preference)  # stable: the order within a preference is random
        own = [each.preference for each in named if each.host == self._hostname]
        better = [each for each in named if not own or each.preference < min(own)]
        if not better:
            return _LOOP
        usable: dict[str, int] = {}
        for each in better:
            if _is_host(each.host):
                usable.setdefault(each.host, each.preference)
        if not usable:
            return _NO_HOST
        tiers: dict[int, list[str]] = {}
        for host in list(usable)[:MAX_HOSTS]:
            tiers.setdefault(usable[host], []).append(host)
        return tuple(map(tuple, tiers.values()))

    def _to(self, tiers: tuple[tuple[str, ...], ...], *, verified: bool) -> NextHop:
        key = (tuple(map(frozenset, tiers)), verified)
        kept = self._kept.get(key)
        if kept is None:
            options = {"starttls": "opportunistic", **self._options}
            if verified:  # an enforced policy overrides the options
                options["starttls"] = "require"
            kept = NextHop.of([(host, self._port) for tier in tiers for host in tier], **options)
            kept.open(self._hostname)
            self._kept[key] = kept
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)[1].close(timeout=0.1)
        self._kept.move_to_end(key)
        return kept

    def open(self, hostname: str) -> None:
        """Do nothing: connections are opened when they are needed."""

    def close(self, timeout: float = 5.0) -> None:
        """Close the connections."""
        while self._kept:
            self._kept.popitem()[1].close(timeout)


def _is_host(name: str) -> bool:
    """Return True if the name is a valid host name: names in DNS may contain any bytes."""
    try:
        host_names.fit(name)
    except (ValueError, ProtocolError):
        return False
    return True
