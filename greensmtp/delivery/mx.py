"""MX as the next hop: the hosts that a recipient's domain names in DNS (RFC 5321 section 5.1)."""

from __future__ import annotations

import logging
import random
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from greensmtp.delivery.mta_sts import Policies
from greensmtp.delivery.next_hop import NextHop
from greensmtp.delivery.resolver import DNSResolver, LookupFailed, NoSuchDomain, Resolver
from greensmtp.protocol.address import Address
from greensmtp.protocol.reply import Reply

logger = logging.getLogger("greensmtp")

#: Domains whose connections are kept.
KEPT = 1000

#: Hosts of a domain that are tried, at most.
MAX_HOSTS = 10

_NULL_MX = Reply(556, "5.1.10 The domain does not accept mail")  # RFC 7505 section 4.1
_NO_DOMAIN = Reply(550, "5.1.2 The domain does not exist")
_NO_HOST = Reply(550, "5.4.4 The domain has no host for mail")
_LOOP = Reply(554, "5.4.6 The mail of this domain would come back here")
_NO_ANSWER = Reply(451, "4.4.3 The domain cannot be looked up now")
_NOT_ALLOWED = Reply(451, "4.7.5 The policy of the domain (MTA-STS) allows none of its hosts")

_LITERAL = re.compile(r"\[(?:ipv6:)?([0-9a-f:.]+)\]")


class MX:
    """Finds the next hop for each domain.

    Hosts are tried in the order of their preference, those with the same one in random order, each at all its addresses
    (RFC 8305). Without MX records, the domain itself is the host. TLS is used where it is offered, unverified; where
    MTA-STS (RFC 8461) is in force, only verified, and only at hosts that it names. There is no DANE: that needs a
    resolver that validates DNSSEC.

    :param hostname: this server's name: hosts of the same or a higher preference are left out, so mail does not come
        back.
    :param sts: heed MTA-STS.
    :param options: of ``Pool``; ``size`` is the most connections for each domain.
    """

    def __init__(
        self, hostname: str, resolver: Resolver | None = None, *, port: int = 25, sts: bool = True, **options: Any
    ) -> None:
        self._hostname = hostname.lower()
        self._resolver = DNSResolver() if resolver is None else resolver
        self.policies = Policies(self._resolver) if sts else None
        self._port = port
        self._options = options
        self._kept: OrderedDict[tuple[tuple[str, ...], bool], NextHop] = OrderedDict()

    def next_hops(self, recipients: Sequence[Address]) -> list[tuple[NextHop | Reply, list[Address]]]:
        """Return the next hop of each group of recipients; a Reply, where there is none."""
        groups: dict[str, list[Address]] = {}
        for each in recipients:
            groups.setdefault(each.ascii_domain.lower(), []).append(each)
        return [(self.next_hop(domain), group) for domain, group in groups.items()]

    def next_hop(self, domain: str) -> NextHop | Reply:
        """Return the next hop for a domain; a Reply, where there is none.

        :param domain: with A-labels, or an address literal.
        """
        if literal := _LITERAL.fullmatch(domain):
            return self._to((literal[1],), verified=False)
        try:
            hosts = self.hosts(domain)
        except NoSuchDomain:
            return _NO_DOMAIN
        except LookupFailed as error:
            logger.warning("MX: %s", error)
            return _NO_ANSWER
        if isinstance(hosts, Reply):
            return hosts
        policy = None if self.policies is None else self.policies.find(domain)
        if policy is None or policy.mode == "none":
            return self._to(hosts, verified=False)
        allowed = tuple(each for each in hosts if policy.allows(each))
        if policy.mode == "testing":
            if len(allowed) < len(hosts):
                logger.info("MTA-STS: the policy of %s, which is tested, does not allow all its hosts", domain)
            return self._to(hosts, verified=False)
        return self._to(allowed, verified=True) if allowed else _NOT_ALLOWED

    def hosts(self, domain: str) -> tuple[str, ...] | Reply:
        """Return the hosts of a domain, in the order in which to try them.

        :raises NoSuchDomain, LookupFailed: see there.
        """
        found = list(self._resolver.mx(domain))
        if not found:
            return (domain,) if self._resolver.has_address(domain) else _NO_HOST
        named = [each for each in found if each.host]
        if not named:
            return _NULL_MX
        random.shuffle(named)
        named.sort(key=lambda each: each.preference)  # stable: the order within a preference is random
        own = [each.preference for each in named if each.host == self._hostname]
        hosts = [each.host for each in named if not own or each.preference < min(own)]
        return tuple(dict.fromkeys(hosts))[:MAX_HOSTS] if hosts else _LOOP

    def _to(self, hosts: tuple[str, ...], *, verified: bool) -> NextHop:
        key = (tuple(sorted(hosts)), verified)
        kept = self._kept.get(key)
        if kept is None:
            policy = "require" if verified else "opportunistic"
            kept = NextHop.of([(host, self._port) for host in hosts], **{"starttls": policy, **self._options})
            kept.open(self._hostname)
            self._kept[key] = kept
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)[1].close(timeout=0.1)
        self._kept.move_to_end(key)
        return kept

    def open(self, hostname: str) -> None:
        """Nothing: connections are opened when they are needed."""

    def close(self, timeout: float = 5.0) -> None:
        """Close the connections."""
        while self._kept:
            self._kept.popitem()[1].close(timeout)
