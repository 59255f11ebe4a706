"""What the reply to EHLO offers (RFC 5321 section 4.1.1.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from greensmtp._suggest import did_you_mean
from greensmtp.protocol.reply import Reply

_KEYWORD = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:[ =](.*))?")


#: Extensions that the client makes use of by itself where they are offered.
USED = ("8BITMIME", "AUTH", "BINARYMIME", "CHUNKING", "PIPELINING", "SIZE", "SMTPUTF8", "STARTTLS")


def check_ignored(ignore: str | Iterable[str]) -> frozenset[str]:
    """Return the keywords in upper case.

    :raises ValueError: the client makes no use of one of them.
    """
    keywords = [ignore] if isinstance(ignore, str) else list(ignore)
    for keyword in keywords:
        if not isinstance(keyword, str):
            raise TypeError(f"ignore must be keywords of extensions, not {keyword!r}")
        if keyword.upper() not in USED:
            raise ValueError(
                f"ignore must name extensions that the client uses: {', '.join(USED)}; not {keyword!r}"
                f"{did_you_mean(keyword, USED)}"
            )
    return frozenset(keyword.upper() for keyword in keywords)


def read(reply: Reply, ignored: frozenset[str] = frozenset()) -> Mapping[str, str]:
    """Keyword in upper case -> what stands behind it. A line that is no offer is passed over, and so is one of those
    ignored."""
    offers: dict[str, str] = {}
    for line in reply.lines[1:]:
        match = _KEYWORD.fullmatch(line.strip())
        if match is None:
            continue
        keyword, parameters = match[1].upper(), (match[2] or "").strip()
        if keyword in ignored:
            continue
        if keyword in offers and parameters:  # AUTH=LOGIN beside AUTH PLAIN, as some servers have it
            parameters = f"{offers[keyword]} {parameters}".strip()
        offers[keyword] = parameters
    return MappingProxyType(offers)
