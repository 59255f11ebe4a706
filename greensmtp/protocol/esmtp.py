"""The table of ESMTP extensions (RFC 5321 section 2.2): what EHLO offers, what each adds to MAIL and RCPT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from greensmtp.protocol.reply import Reply

#: RFC 5321 section 4.1.1.1: ehlo-keyword and ehlo-param.
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_PARAMETER = re.compile(r"[!-~]+")


class Extension(NamedTuple):
    """One service extension.

    A middleware that owns an extension has a tuple of these as its attribute ``extensions``; the server then
    accepts the parameters and the longer command lines. The EHLO keyword of such an extension is the middleware's
    to add, with ``offer``, since only it knows when to.
    """

    #: The EHLO keyword.
    keyword: str
    #: Parameters that it allows behind MAIL and behind RCPT.
    mail: frozenset[str] = frozenset()
    rcpt: frozenset[str] = frozenset()
    #: How many octets it adds to the longest line of a command: verb -> octets.
    room: Mapping[str, int] = MappingProxyType({})


PIPELINING = Extension("PIPELINING")  # RFC 2920
SIZE = Extension("SIZE", mail=frozenset({"SIZE"}), room={"MAIL": 26})  # RFC 1870 section 3
EIGHTBITMIME = Extension("8BITMIME", mail=frozenset({"BODY"}), room={"MAIL": 17})  # RFC 6152 section 2
CHUNKING = Extension("CHUNKING")  # RFC 3030 section 2
BINARYMIME = Extension("BINARYMIME")  # RFC 3030 section 3; its BODY=BINARYMIME fits 8BITMIME's room
SMTPUTF8 = Extension(  # RFC 6531 sections 3.1, 3.4
    "SMTPUTF8", mail=frozenset({"SMTPUTF8"}), room={"MAIL": 10, "VRFY": 9, "EXPN": 9}
)
STARTTLS = Extension("STARTTLS")  # RFC 3207
ENHANCEDSTATUSCODES = Extension("ENHANCEDSTATUSCODES")  # RFC 2034

#: AUTH= of MAIL, without the verb: clients send it whatever is offered, and a server that does not trust them takes
#: it for ``AUTH=<>`` (RFC 4954 section 5). Never offered.
SUBMITTER = Extension("AUTH", mail=frozenset({"AUTH"}))

#: What the server does by itself, in the order in which EHLO's reply offers it.
STANDARD = (
    PIPELINING,
    SIZE,
    EIGHTBITMIME,
    SMTPUTF8,
    CHUNKING,
    BINARYMIME,
    ENHANCEDSTATUSCODES,
    STARTTLS,
)

#: RFC 6152 section 2 and RFC 3030 section 3: the values of BODY=.
BODY_TYPES = frozenset({"7BIT", "8BITMIME", "BINARYMIME"})


def offer(reply: Reply, keyword: str, *parameters: str) -> Reply:
    """Return the reply to EHLO or LHLO with one more extension offered; a refusal is returned as it is.

    ``offer(proceed(session, command), "XFOO")``, ``offer(reply, "AUTH", "PLAIN", "LOGIN")``.

    :raises ValueError: the keyword or a parameter is not one by RFC 5321 section 4.1.1.1.
    """
    if not reply.is_positive:
        return reply
    if not _KEYWORD.fullmatch(keyword):
        raise ValueError(f"an EHLO keyword has letters, digits and hyphens, like 'XFOO', not {keyword!r}")
    for parameter in parameters:
        if not _PARAMETER.fullmatch(parameter):
            raise ValueError(f"a parameter of an EHLO keyword is printable ASCII without spaces, not {parameter!r}")
    return Reply(reply.code, *reply.lines, " ".join((keyword, *parameters)), enhanced=None)


def allowed_parameters(extensions: Iterable[Extension]) -> Mapping[str, frozenset[str]]:
    """verb -> the keywords that may stand behind its path."""
    extensions = tuple(extensions)
    return {
        "MAIL": frozenset().union(*(extension.mail for extension in extensions)),
        "RCPT": frozenset().union(*(extension.rcpt for extension in extensions)),
    }


def line_room(extensions: Iterable[Extension]) -> Mapping[str, int]:
    """verb -> octets that the extensions together add to its longest line (RFC 5321 section 4.5.3.1.4)."""
    room: dict[str, int] = {}
    for extension in extensions:
        for verb, octets in extension.room.items():
            room[verb] = room.get(verb, 0) + octets
    return room
