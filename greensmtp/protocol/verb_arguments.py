"""The arguments of VRFY, EXPN, ETRN and HELP: text in, a value out, or ProtocolError, which is a ``501 5.5.4``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from greensmtp.protocol.address import Address
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.mailbox import check_domain, lower

#: The name of a queue; RFC 1985 section 5.3 leaves it to the server.
_QUEUE = re.compile(r"[^\s\x00-\x1f\x7f]{1,255}")


@dataclass(frozen=True, slots=True)
class Lookup:
    """What VRFY and EXPN ask for (RFC 5321 sections 3.5, 4.1.1.6, 4.1.1.7)."""

    #: The user or the list, as the client wrote it, without angle brackets.
    name: str
    #: The same as a mailbox; None if it is not one.
    address: Address | None
    #: The client understands a reply in UTF-8, and may ask for a name in it (RFC 6531 section 3.7.4.2).
    smtputf8: bool = False


def parse_lookup(argument: str) -> Lookup:
    """Parse the argument of VRFY or EXPN: ``jo``, ``jo@example.com``, ``<jo@example.com> SMTPUTF8``.

    A name beyond ASCII without SMTPUTF8 is not an error here; a server replies ``553 5.6.7`` to it.

    :raises ProtocolError: there is no name.
    """
    name, _, keyword = argument.rpartition(" ")
    smtputf8 = keyword.upper() == "SMTPUTF8" and name.strip() != ""
    name = name.strip() if smtputf8 else argument.strip()
    bare = name[1:-1].strip() if name.startswith("<") and name.endswith(">") else name
    if not bare:
        raise ProtocolError("expected the name of a user or a list")
    try:
        address = Address.parse(bare)
    except ProtocolError:
        return Lookup(bare, None, smtputf8)
    return Lookup(bare, address, smtputf8)


@dataclass(frozen=True, slots=True)
class QueueRequest:
    """What ETRN asks a server to send (RFC 1985 section 5)."""

    #: ``"domain"``: the mail for one domain; ``"subdomains"`` (``@``): for it and all below; ``"queue"`` (``#``).
    kind: Literal["domain", "subdomains", "queue"]
    #: A domain in lower case, or the name of a queue.
    name: str


def parse_etrn(argument: str) -> QueueRequest:
    """Parse the argument of ETRN: ``example.com``, ``@example.com``, ``#queue``.

    :raises ProtocolError: it is none of these.
    """
    argument = argument.strip()
    if argument.startswith("#"):
        if not _QUEUE.fullmatch(argument[1:]):
            raise ProtocolError("expected the name of a queue behind #")
        return QueueRequest("queue", argument[1:])
    name = lower(argument.removeprefix("@"))
    check_domain(name)
    return QueueRequest("subdomains" if argument.startswith("@") else "domain", name)


def parse_help(argument: str) -> str:
    """Return the verb that HELP asks about, in upper case; ``""`` if it asks about none (RFC 5321 section 4.1.1.8)."""
    return argument.split(maxsplit=1)[0].upper() if argument.strip() else ""
