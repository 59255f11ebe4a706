"""The lines of MAIL and RCPT: mailboxes as they are sent, and the parameters that a server understands."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from greensmtp.errors import NotOffered
from greensmtp.protocol import command_builder
from greensmtp.protocol.address import NO_PARAMETERS, Parameters
from greensmtp.protocol.command_builder import Ext
from greensmtp.protocol.esmtp import parse_parameters

#: Parameters of DSN and AUTH, with their extensions. If the server does not offer these, the parameters are left out,
#: as a relay does (RFC 3461 section 5.2.2, RFC 4954 section 5).
_OMITTABLE = {"RET": "DSN", "ENVID": "DSN", "NOTIFY": "DSN", "ORCPT": "DSN", "AUTH": "AUTH"}
#: Parameters that change what happens to the message, so that the message cannot be sent without their extensions
#: (RFC 2852, RFC 4865, RFC 6710, RFC 8689).
_REQUIRED = {
    "BY": "DELIVERBY",
    "HOLDFOR": "FUTURERELEASE",
    "HOLDUNTIL": "FUTURERELEASE",
    "MT-PRIORITY": "MT-PRIORITY",
    "REQUIRETLS": "REQUIRETLS",
    "RRVS": "RRVS",
}
#: Parameters that are computed from this message: a session's parameters describe another one.
_COMPUTED = frozenset({"SIZE", "BODY", "SMTPUTF8"})


def parse_ext(ext: Ext) -> Parameters:
    """Return the parameters that the caller gave.

    :raises ProtocolError: they are malformed.
    """
    text = command_builder.parameters(ext)
    return parse_parameters(text) if text else NO_PARAMETERS


def offered(given: Parameters, extensions: Mapping[str, str]) -> list[str]:
    """Return the parameters that a server with these extensions understands, as words of a command.

    :raises NotOffered: a parameter cannot be left out.
    """
    words: list[str] = []
    for keyword, value in given.items():
        if keyword in _COMPUTED or _OMITTABLE.get(keyword, "") not in ("", *extensions):
            continue
        needed = _REQUIRED.get(keyword)
        if needed is not None and needed not in extensions:
            raise NotOffered(needed, f"the parameter {keyword} was given")
        words.append(keyword if value is None else f"{keyword}={value}")
    return words


@lru_cache(maxsize=1024)
def rcpt_line(address: str) -> bytes:
    """Return RCPT without parameters. Cached, since programs send to the same recipients again and again."""
    return command_builder.rcpt(address)


#: Returns the mailbox as it is sent.
sent_mailbox = lru_cache(maxsize=1024)(command_builder.mailbox)
