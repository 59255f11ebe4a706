"""ESMTP (RFC 5321 section 2.2): the table of extensions, what EHLO offers, the parameters of MAIL and RCPT, and xtext.

The server offers extensions with ``offer``; the client reads them with ``parse_offers``. Both read parameters with
``parse_parameters``. xtext (RFC 3461 section 4) is how a parameter's value holds the characters that it may not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from greensmtp._suggest import did_you_mean
from greensmtp.protocol.address import NO_PARAMETERS, Parameters, is_text
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.reply import Reply

# The table of extensions


class Extension(NamedTuple):
    """One service extension.

    A middleware that owns an extension has a tuple of these as its attribute ``extensions``. The server then accepts
    the parameters and the longer command lines. The middleware itself adds the EHLO keyword, with ``offer``, since it
    alone knows when to.
    """

    #: The EHLO keyword.
    keyword: str
    #: The parameters that it allows behind MAIL and behind RCPT.
    mail: frozenset[str] = frozenset()
    rcpt: frozenset[str] = frozenset()
    #: The bytes that it adds to the longest line of a command: verb -> bytes.
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

#: AUTH= of MAIL, without the verb; never offered. Clients send it whatever is offered, and a server that does not trust
#: them treats it as ``AUTH=<>`` (RFC 4954 section 5).
SUBMITTER = Extension("AUTH", mail=frozenset({"AUTH"}))

#: The extensions that the server implements itself, in the order in which it offers them.
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

#: The values of BODY= (RFC 6152 section 2, RFC 3030 section 3).
BODY_TYPES = frozenset({"7BIT", "8BITMIME", "BINARYMIME"})


def allowed_parameters(extensions: Iterable[Extension]) -> Mapping[str, frozenset[str]]:
    """Return the keywords that may stand behind each verb's path."""
    extensions = tuple(extensions)
    return {
        "MAIL": frozenset().union(*(extension.mail for extension in extensions)),
        "RCPT": frozenset().union(*(extension.rcpt for extension in extensions)),
    }


def line_room(extensions: Iterable[Extension]) -> Mapping[str, int]:
    """Return the bytes that the extensions together add to each verb's longest line (RFC 5321 section 4.5.3.1.4)."""
    room: dict[str, int] = {}
    for extension in extensions:
        for verb, size in extension.room.items():
            room[verb] = room.get(verb, 0) + size
    return room


# What EHLO offers (RFC 5321 section 4.1.1.1: ehlo-keyword, ehlo-param, ehlo-line)

_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_PARAMETER = re.compile(r"[!-~]+")
_OFFER = re.compile(rf"({_KEYWORD.pattern})(?:[ =](.*))?")

#: The extensions that the client uses by itself where they are offered.
USED = ("8BITMIME", "AUTH", "BINARYMIME", "CHUNKING", "PIPELINING", "SIZE", "SMTPUTF8", "STARTTLS")


@lru_cache(256)  # a client that comes again gets the same reply, and encoding it is most of the work of EHLO
def offer(reply: Reply, keyword: str, *parameters: str) -> Reply:
    """Return the reply to EHLO or LHLO with one more extension offered; return a refusal as it is.

    ``offer(proceed(session, command), "XFOO")``, ``offer(reply, "AUTH", "PLAIN", "LOGIN")``.

    :raises ValueError: the keyword or a parameter does not match RFC 5321 section 4.1.1.1.
    """
    if not reply.is_positive:
        return reply
    if not _KEYWORD.fullmatch(keyword):
        raise ValueError(f"an EHLO keyword has letters, digits and hyphens, like 'XFOO', not {keyword!r}")
    for parameter in parameters:
        if not _PARAMETER.fullmatch(parameter):
            raise ValueError(f"a parameter of an EHLO keyword is printable ASCII without spaces, not {parameter!r}")
    return Reply(reply.code, *reply.lines, " ".join((keyword, *parameters)), enhanced=None)


def parse_offers(reply: Reply, ignored: frozenset[str] = frozenset()) -> Mapping[str, str]:
    """Return the extensions that a reply to EHLO offers: keyword in upper case -> its parameters.

    :param ignored: keywords in upper case to leave out. Lines that are not offers are left out too.
    """
    offers: dict[str, str] = {}
    for line in reply.lines[1:]:
        match = _OFFER.fullmatch(line.strip())
        if match is None:
            continue
        keyword, parameters = match[1].upper(), (match[2] or "").strip()
        if keyword in ignored:
            continue
        if keyword in offers and parameters:  # AUTH=LOGIN beside AUTH PLAIN, as some servers have it
            parameters = f"{offers[keyword]} {parameters}".strip()
        offers[keyword] = parameters
    return MappingProxyType(offers)


def check_ignored(ignore: str | Iterable[str]) -> frozenset[str]:
    """Return the client's option ``ignore`` as keywords in upper case.

    :raises ValueError: the client does not use one of them.
    :raises TypeError: one of them is not a str.
    """
    keywords = [ignore] if isinstance(ignore, str) else list(ignore)
    for keyword in keywords:
        if not isinstance(keyword, str):
            raise TypeError(f"ignore must be keywords of extensions, not {keyword!r}")
        if keyword.upper() not in USED:
            raise ValueError(
                f"ignore must name extensions that the client uses: {', '.join(USED)}; not {keyword!r}"
                f"{did_you_mean(keyword.upper(), USED)}"
            )
    return frozenset(keyword.upper() for keyword in keywords)


# Parameters of MAIL and RCPT (RFC 5321 section 4.1.1.11)

_ESMTP_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^\x00-\x20=\x7f-\x9f]+))?")


def parse_parameters(text: str) -> Parameters:
    """Parse ``"SIZE=1000 BODY=8BITMIME SMTPUTF8"``; keywords become upper case.

    :raises ProtocolError: a parameter is malformed, or a keyword stands there twice.
    """
    if not text:
        return NO_PARAMETERS
    parameters: dict[str, str | None] = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _ESMTP_PARAMETER.fullmatch(word)
        if match is None or not is_text(word):
            raise ProtocolError(f"malformed parameter: {word[:40]!r}")
        keyword = match[1].upper()
        if keyword in parameters:
            raise ProtocolError(f"parameter given twice: {keyword}")
        parameters[keyword] = match[2]
    return parameters


# xtext (RFC 3461 section 4)

_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_HEXCHAR = re.compile(r"\+(..)")
_NOT_PLAIN = re.compile(rb"[^!-*,-<>-~]")


def is_xtext(text: str) -> bool:
    """Return True if the text is xtext already."""
    return _XTEXT.fullmatch(text) is not None


def encode_xtext(text: str) -> str:
    """Encode ``"jo+x@example.com"`` as ``"jo+2Bx@example.com"``; characters beyond ASCII become bytes of UTF-8.

    :raises ProtocolError: the text has lone surrogates.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ProtocolError(f"xtext cannot have lone surrogates in it: {text[:60]!r}") from None
    return _NOT_PLAIN.sub(lambda match: b"+%02X" % match[0][0], data).decode()


def decode_xtext(text: str) -> str:
    """Decode ``"jo+2Bx@example.com"`` to ``"jo+x@example.com"``.

    :raises ProtocolError: the text is not xtext, or the bytes that it encodes are not UTF-8.
    """
    if not _XTEXT.fullmatch(text):
        raise ProtocolError("malformed xtext: a + is followed by two hexadecimal digits in upper case")
    try:
        return _HEXCHAR.sub(lambda match: chr(int(match[1], 16)), text).encode("latin-1").decode()
    except UnicodeDecodeError:
        raise ProtocolError("malformed xtext: the bytes that it encodes are not UTF-8") from None
