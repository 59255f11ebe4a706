"""XCLIENT and XFORWARD (Postfix's XCLIENT_README, XFORWARD_README): attributes of the client that a proxy speaks for.

XCLIENT replaces the client: access rules and limits hold for the one that is named. XFORWARD is for logs only. Both are
for trusted networks alone, since whatever they say is believed.

``ATTRIBUTES`` has a row for each attribute: the verbs that take it, what it takes (for the error), and its pattern. A
value is xtext (RFC 3461 section 4), or one of two words that say that there is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.xtext import decode_xtext, encode_xtext


class Missing(Enum):
    """The value of an attribute that the proxy does not know."""

    #: There is none: the address has no name in DNS.
    UNAVAILABLE = "[UNAVAILABLE]"
    #: It cannot be found now: the name server did not answer.
    TEMPORARILY = "[TEMPUNAVAIL]"


#: Name in upper case -> the value, decoded. An address is without ``IPV6:``.
Attributes = Mapping[str, str | Missing]

#: Characters of a value (XFORWARD_README: a name has at most 255).
MAX_VALUE = 255


class Attribute(NamedTuple):
    """A row of the table."""

    verbs: frozenset[str]
    takes: str
    pattern: str


_BOTH = frozenset({"XCLIENT", "XFORWARD"})
_XCLIENT = frozenset({"XCLIENT"})
_XFORWARD = frozenset({"XFORWARD"})
_NAME = r"[^ ]+"
_PORT = r"0|[1-9][0-9]{0,4}"
_ADDRESS = r"[0-9.]+|IPV6:[0-9A-Fa-f:.]+"

ATTRIBUTES: Mapping[str, Attribute] = {
    "NAME": Attribute(_BOTH, "a host name", _NAME),
    "ADDR": Attribute(_BOTH, "an address, like 192.0.2.1 or IPV6:2001:db8::1", _ADDRESS),
    "PORT": Attribute(_BOTH, "a port", _PORT),
    "PROTO": Attribute(_BOTH, "SMTP or ESMTP", r"E?SMTP"),
    "HELO": Attribute(_BOTH, "a host name", r".+"),
    "LOGIN": Attribute(_XCLIENT, "a user name", r".+"),
    "DESTADDR": Attribute(_XCLIENT, "an address, like 192.0.2.1 or IPV6:2001:db8::1", _ADDRESS),
    "DESTPORT": Attribute(_XCLIENT, "a port", _PORT),
    "IDENT": Attribute(_XFORWARD, "the name of a message in the proxy's queue", _NAME),
    "SOURCE": Attribute(_XFORWARD, "LOCAL or REMOTE", r"LOCAL|REMOTE"),
}

_ADDRESSES = frozenset({"ADDR", "DESTADDR"})
_PORTS = frozenset({"PORT", "DESTPORT"})


def names(verb: str) -> tuple[str, ...]:
    """Return the attributes of a verb, as EHLO offers them."""
    return tuple(name for name, row in ATTRIBUTES.items() if verb in row.verbs)


def parse(verb: str, argument: str) -> Attributes:
    """Parse ``NAME=client.example ADDR=192.0.2.1``.

    :param verb: ``XCLIENT`` or ``XFORWARD``.
    :raises ProtocolError: an attribute is unknown, given twice, or malformed; a server replies ``501 5.5.4``.
    """
    found: dict[str, str | Missing] = {}
    for word in argument.split():
        name, separator, text = word.partition("=")
        name = name.upper()
        row = ATTRIBUTES.get(name)
        if row is None or verb not in row.verbs or not separator:
            raise ProtocolError(f"{verb} takes {', '.join(names(verb))}, each with a value; got {word[:40]!r}")
        if name in found:
            raise ProtocolError(f"{name} is given twice")
        found[name] = _parse_value(name, row, text)
    if not found:
        raise ProtocolError(f"{verb} needs at least one attribute")
    return found


def format(verb: str, attributes: Attributes) -> str:
    """Return the argument of the verb.

    :raises ProtocolError: an attribute is unknown, or its value malformed.
    """
    argument = " ".join(f"{name.upper()}={_format_value(name.upper(), value)}" for name, value in attributes.items())
    parse(verb, argument)
    return argument


def _parse_value(name: str, row: Attribute, text: str) -> str | Missing:
    for missing in Missing:
        if text.upper() == missing.value:
            return missing
    try:
        value = decode_xtext(text)
        if len(value) > MAX_VALUE or not value.isprintable() or not re.fullmatch(row.pattern, value, re.IGNORECASE):
            raise ValueError(value)
        if name in _ADDRESSES:
            return str(IPv6Address(value[5:])) if ":" in value else str(IPv4Address(value))
        if name in _PORTS and int(value) > 65535:
            raise ValueError(value)
    except (ValueError, ProtocolError):
        raise ProtocolError(f"{name} takes {row.takes}; got {text[:60]!r}") from None
    return value.upper() if name in ("PROTO", "SOURCE") else value


def _format_value(name: str, value: str | Missing) -> str:
    if isinstance(value, Missing):
        return value.value
    return encode_xtext(f"IPV6:{value}" if name in _ADDRESSES and ":" in value else value)
