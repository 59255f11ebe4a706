"""The Sender Rewriting Scheme: rewrite the reverse-paths of forwarded mail, so that it passes SPF and bounces return.

A server that passes mail on is usually not authorized by the SPF record of the sender's domain. So it writes a
reverse-path of its own domain, which encodes the sender's address with a date and a hash. Only this server can make
such an address, so it does not become an open relay.

    jo@example.com           becomes  SRS0=HASH=DATE=example.com=jo@relay.example
    SRS0=...@other.example   becomes  SRS1=HASH=other.example==...@relay.example: it has been forwarded before

The format is that of Mail::SRS and postsrsd (https://www.libsrs2.net/srs/srs.pdf), so that it can replace them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from base64 import b64encode
from collections.abc import Callable, Sequence

from greensmtp.errors import ArgumentError, ProtocolError
from greensmtp.protocol.mailbox import check_domain

#: Days for which an address is valid.
MAX_DAYS = 21

#: Characters of the hash: 24 bits.
_HASH = 4

_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_SRS0 = re.compile(r"SRS0[=+-]([^=]+)=([^=]{2})=([^=]+)=(.*)", re.IGNORECASE | re.DOTALL)
_SRS1 = re.compile(r"SRS1[=+-]([^=]+)=([^=]+)=([=+-].*)", re.IGNORECASE | re.DOTALL)
_ANY = re.compile(r"SRS[01][=+-]", re.IGNORECASE)


class SRS:
    """Rewrite reverse-paths, and restore the original address of a bounce.

    :param domain: the domain of the new addresses. Its mail must be delivered to this server, or bounces are lost.
    :param secrets: the first one signs; all are accepted, so that it can be replaced.
    :param now: returns seconds since 1970.
    :raises ArgumentError: the domain is malformed, or there is no secret.
    """

    def __init__(self, domain: str, secrets: str | Sequence[str], *, now: Callable[[], float] = time.time) -> None:
        try:
            check_domain(domain)
        except ProtocolError as error:
            raise ArgumentError("srs_domain", str(error)) from None
        self.domain = domain
        given = [secrets] if isinstance(secrets, str) else list(secrets)
        if not given or not all(given):
            raise ArgumentError("srs_secret", "expected a secret, or several")
        self._secrets = [each.encode() for each in given]
        self._now = now

    def __repr__(self) -> str:
        return f"SRS({self.domain!r})"

    def forward(self, address: str) -> str:
        """Return the reverse-path for mail that is passed on. The null sender and our own domain are unchanged."""
        local, at, domain = address.rpartition("@")
        if not at or domain.lower() == self.domain.lower():
            return address
        if found := _SRS0.fullmatch(local):
            rest = local[4:]
            return f"SRS1={self._hash(domain, rest)}={domain}={rest}@{self.domain}"
        if found := _SRS1.fullmatch(local):
            first, rest = found[2], found[3]
            return f"SRS1={self._hash(first, rest)}={first}={rest}@{self.domain}"
        day = self._day()
        return f"SRS0={self._hash(day, domain, local)}={day}={domain}={local}@{self.domain}"

    def reverse(self, address: str) -> str | None:
        """Return the address that a bounce is for; None if the address is not an SRS address of ours.

        :raises ValueError: it is an SRS address of our domain, but its hash is wrong or it has expired.
        """
        local, _, domain = address.rpartition("@")
        if domain.lower() != self.domain.lower() or not _ANY.match(local):
            return None
        if found := _SRS0.fullmatch(local):
            given, day, host, user = found.groups()
            self._check(given, day, host, user)
            if (self._today() - _number(day)) % 1024 > MAX_DAYS:
                raise ValueError("the address is too old")
            return f"{user}@{host}"
        if found := _SRS1.fullmatch(local):
            given, host, rest = found.groups()
            self._check(given, host, rest)
            return f"SRS0{rest}@{host}"
        raise ValueError("malformed")

    def _check(self, given: str, *parts: str) -> None:
        # Case is ignored, since some servers change it.
        wanted = [self._hash(*parts, secret=secret).lower() for secret in self._secrets]
        if not any(hmac.compare_digest(given.lower().encode(), each.encode()) for each in wanted):
            raise ValueError("the hash is wrong")

    def _hash(self, *parts: str, secret: bytes | None = None) -> str:
        text = "".join(parts).lower().encode()
        digest = hmac.new(self._secrets[0] if secret is None else secret, text, hashlib.sha1).digest()
        return b64encode(digest).decode()[:_HASH]

    def _today(self) -> int:
        return int(self._now() // 86400) % 1024

    def _day(self) -> str:
        day = self._today()
        return _BASE32[day >> 5] + _BASE32[day & 31]


def _number(day: str) -> int:
    try:
        high, low = (_BASE32.index(each) for each in day.upper())
    except ValueError:
        raise ValueError("the date is malformed") from None
    return high << 5 | low
