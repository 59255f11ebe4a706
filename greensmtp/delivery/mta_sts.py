"""MTA-STS (RFC 8461): policies of domains that accept mail over verified TLS only, for hosts that they list.

A policy is fetched over HTTPS when the TXT record at ``_mta-sts.DOMAIN`` has another ID, and is valid for
``max_age`` seconds, even if its DNS record disappears. It is fetched again once a day, and when it has expired. Each
process keeps policies in memory.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from greensmtp.delivery.resolver import LookupFailed, NoSuchDomain, Resolver
from greensmtp.errors import ArgumentError
from greensmtp.http_poster import MAX_RESPONSE, HTTPFailed, HTTPPoster

logger = logging.getLogger("greensmtp")

#: Timeout of fetching a policy, in seconds (section 3.3: at most a minute).
FETCH_SECONDS = 15.0

#: Seconds between a failed fetch and the next one (section 3.3).
RETRY_SECONDS = 300.0

#: Seconds after which a policy is fetched again even if its record is unchanged (section 3.3).
REFRESH_SECONDS = 86_400.0

#: Maximum number of policies in memory.
KEPT = 10_000

#: Maximum of ``max_age`` in seconds: a year (section 3.2).
MAX_AGE = 31_557_600

_VERSION = re.compile(r"v=STSv1\s*;")
_RECORD = re.compile(r"v=STSv1\s*;(?:.*;)?\s*id=([A-Za-z0-9]{1,32})\s*(?:;.*)?", re.DOTALL)


@dataclass(frozen=True)
class Policy:
    """A domain's policy."""

    #: ``enforce``, ``testing`` or ``none``.
    mode: str
    #: Hosts, ``*.example.com`` for one label.
    mx: tuple[str, ...] = ()
    max_age: int = 0

    def allows(self, host: str) -> bool:
        """Return True if mail may go to a host (section 4.1)."""
        parent = host.partition(".")[2]
        return any(host == each or (each.startswith("*.") and parent == each[2:]) for each in self.mx)


def parse_policy(text: str) -> Policy:
    """Parse the text of a policy (section 3.2).

    :raises ValueError: the policy is malformed.
    """
    fields: dict[str, str] = {}
    hosts: list[str] = []
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not line.strip():
            continue
        if not colon:
            raise ValueError(f"a line without a colon: {line[:60]!r}")
        if name == "mx":
            hosts.append(value.rstrip(".").lower())
        else:
            fields.setdefault(name, value)
    mode, max_age = fields.get("mode"), fields.get("max_age", "")
    if fields.get("version") != "STSv1" or mode not in ("enforce", "testing", "none"):
        raise ValueError("no version STSv1, or no mode")
    if not re.fullmatch(r"[0-9]{1,10}", max_age) or (mode != "none" and not hosts):
        raise ValueError("no max_age, or no mx")
    return Policy(mode, tuple(hosts), min(int(max_age), MAX_AGE))


@dataclass
class _Kept:
    policy: Policy | None
    #: The ID of the TXT record for which it was fetched.
    identifier: str
    #: When the policy expires, and when it may be fetched again, on the monotonic clock.
    ends: float
    again: float


def fetch(domain: str) -> str:
    """Return the text of a domain's policy.

    :raises HTTPFailed: there is no policy, or it cannot be fetched now.
    """
    try:
        poster = HTTPPoster(f"https://mta-sts.{domain}/.well-known/mta-sts.txt", timeout=FETCH_SECONDS)
    except ArgumentError as error:
        raise HTTPFailed(str(error)) from error
    try:
        response = poster.get({"User-Agent": "greensmtp"})
    finally:
        poster.close()
    types = (value for name, value in response.headers.items() if name.lower() == "content-type")
    kind = next(types, "").partition(";")[0].strip().lower()
    if response.status != 200 or kind != "text/plain":
        raise HTTPFailed(f"mta-sts.{domain}: status {response.status}, {kind or 'no type'}")
    if len(response.body) >= MAX_RESPONSE:  # a truncated policy might lack hosts
        raise HTTPFailed(f"mta-sts.{domain}: expected a policy of less than {MAX_RESPONSE} bytes; got more")
    return response.body.decode("utf-8", "replace")


class Policies:
    """The policies of domains.

    :param get: fetches the text of a policy; raises ``HTTPFailed``.
    """

    def __init__(self, resolver: Resolver, get: Callable[[str], str] = fetch) -> None:
        self._resolver = resolver
        self._get = get
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def find(self, domain: str) -> Policy | None:
        """Return the current policy of a domain; None if it has none."""
        now = monotonic()
        kept = self._kept.get(domain)
        if kept is not None:
            self._kept.move_to_end(domain)
        valid = kept.policy if kept is not None and now < kept.ends else None
        identifier = self._identifier(domain)
        if (
            kept is not None and now < kept.again and kept.identifier in (identifier, "")
        ):  # "" means that the last fetch failed
            return valid
        if identifier is None:
            return valid
        try:
            policy = parse_policy(self._get(domain))
        except (HTTPFailed, ValueError) as error:
            logger.warning("MTA-STS: the policy of %s cannot be used: %s", domain, error)
            self._keep(domain, _Kept(valid, "", now if kept is None else kept.ends, now + RETRY_SECONDS))
            return valid
        self._keep(domain, _Kept(policy, identifier, now + policy.max_age, now + min(policy.max_age, REFRESH_SECONDS)))
        return policy

    def _identifier(self, domain: str) -> str | None:
        try:
            records = [each for each in self._resolver.txt(f"_mta-sts.{domain}") if _VERSION.match(each)]
        except (NoSuchDomain, LookupFailed):
            return None
        found = _RECORD.fullmatch(records[0].strip()) if len(records) == 1 else None
        return None if found is None else found[1]

    def _keep(self, domain: str, kept: _Kept) -> None:
        self._kept[domain] = kept
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
