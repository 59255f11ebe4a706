"""What the reply to EHLO offers (RFC 5321 section 4.1.1.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from greensmtp.protocol.replies import Reply

_KEYWORD = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:[ =](.*))?")


def read(reply: Reply) -> Mapping[str, str]:
    """Keyword in upper case -> what stands behind it. A line that is no offer is passed over."""
    offers: dict[str, str] = {}
    for line in reply.lines[1:]:
        match = _KEYWORD.fullmatch(line.strip())
        if match is None:
            continue
        keyword, parameters = match[1].upper(), (match[2] or "").strip()
        if keyword in offers and parameters:  # AUTH=LOGIN beside AUTH PLAIN, as some servers have it
            parameters = f"{offers[keyword]} {parameters}".strip()
        offers[keyword] = parameters
    return MappingProxyType(offers)
