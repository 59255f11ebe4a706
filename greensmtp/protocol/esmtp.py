"""ESMTP (RFC 5321 section 2.2): the table of extensions, what EHLO offers, and the parameters of MAIL and RCPT.

The server offers extensions with ``offer``; the client reads them with ``parse_offers``. Both read parameters with
``parse_parameters``. What the values of parameters mean is in ``options``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from greensmtp._suggest import did_you_mean
from greensmtp.protocol import canned, ehlo_parameters
from greensmtp.protocol.address import NO_PARAMETERS, Address, Parameters
from greensmtp.protocol.ehlo_parameters import EhloParameter
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.mailbox import is_text
from greensmtp.protocol.options import MailOptions
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
    #: The parameters that it allows behind MAIL and behind RCPT. How the server's own are parsed: ``options``.
    mail: frozenset[str] = frozenset()
    rcpt: frozenset[str] = frozenset()
    #: The bytes that it adds to the longest line of a command: verb -> bytes.
    room: Mapping[str, int] = MappingProxyType({})
    #: The verbs that it adds.
    verbs: frozenset[str] = frozenset()
    #: How what stands behind the keyword is written and read; None: nothing does.
    ehlo: EhloParameter | None = None
    #: The keywords of extensions without which it must not be offered.
    requires: frozenset[str] = frozenset()
    #: It is offered over TLS alone, and its parameters are refused without.
    needs_tls: bool = False
    #: A relay leaves its parameters out if the next hop does not offer it. Otherwise the message cannot be sent on.
    omittable: bool = False

    def offer_line(self, value: Any = None) -> str:
        """Return its line in the reply to EHLO.

        :param value: the value for ``ehlo``; None where it has no parameter.
        """
        text = "" if self.ehlo is None else self.ehlo.format(value)
        return f"{self.keyword} {text}" if text else self.keyword

    def read_offer(self, offers: Mapping[str, str]) -> Any:
        """Return the value behind its keyword in ``parse_offers(reply)``; None if there is none, or a malformed one."""
        return None if self.ehlo is None or self.keyword not in offers else self.ehlo.parse(offers[self.keyword])


def _names(*names: str) -> frozenset[str]:
    return frozenset(names)


PIPELINING = Extension("PIPELINING")  # RFC 2920
SIZE = Extension(  # RFC 1870 section 3
    "SIZE", mail=_names("SIZE"), room={"MAIL": 26}, ehlo=ehlo_parameters.NUMBER, omittable=True
)
EIGHTBITMIME = Extension("8BITMIME", mail=_names("BODY"), room={"MAIL": 17})  # RFC 6152 section 2
CHUNKING = Extension("CHUNKING")  # RFC 3030 section 2
#: RFC 3030 section 3. Its BODY=BINARYMIME is 8BITMIME's parameter, and fits the room of that.
BINARYMIME = Extension("BINARYMIME", requires=_names("CHUNKING", "8BITMIME"))
SMTPUTF8 = Extension(  # RFC 6531 sections 3.1, 3.4
    "SMTPUTF8",
    mail=_names("SMTPUTF8"),
    room={"MAIL": 10, "VRFY": 9, "EXPN": 9},
    requires=_names("8BITMIME"),
)
STARTTLS = Extension("STARTTLS", verbs=_names("STARTTLS"))  # RFC 3207
ENHANCEDSTATUSCODES = Extension("ENHANCEDSTATUSCODES")  # RFC 2034

DSN = Extension(  # RFC 3461 section 3
    "DSN",
    mail=_names("RET", "ENVID"),
    rcpt=_names("NOTIFY", "ORCPT"),
    # RFC 3461 section 5.4: the longest of both parameters together.
    room={"MAIL": 116, "RCPT": 536},
    omittable=True,
)
REQUIRETLS = Extension("REQUIRETLS", mail=_names("REQUIRETLS"), room={"MAIL": 11}, needs_tls=True)  # RFC 8689 section 3
MT_PRIORITY = Extension(  # RFC 6710 sections 3, 4.4
    "MT-PRIORITY", mail=_names("MT-PRIORITY"), room={"MAIL": 15}, ehlo=ehlo_parameters.WORD, omittable=True
)
DELIVERBY = Extension(  # RFC 2852 section 3
    "DELIVERBY", mail=_names("BY"), room={"MAIL": 17}, ehlo=ehlo_parameters.NUMBER
)
FUTURERELEASE = Extension(  # RFC 4865 section 4
    "FUTURERELEASE", mail=_names("HOLDFOR", "HOLDUNTIL"), room={"MAIL": 34}, ehlo=ehlo_parameters.FUTURE_RELEASE
)
RRVS = Extension("RRVS", rcpt=_names("RRVS"), room={"RCPT": 33})  # RFC 7293 section 3.1
LIMITS = Extension("LIMITS", ehlo=ehlo_parameters.LIMITS)  # RFC 9422
ETRN = Extension("ETRN", verbs=_names("ETRN"))  # RFC 1985
#: Postfix's XCLIENT_README and XFORWARD_README. Postfix takes lines of 2,048 bytes, and nginx sends one command only.
XCLIENT = Extension("XCLIENT", room={"XCLIENT": 1536}, verbs=_names("XCLIENT"), ehlo=ehlo_parameters.WORDS)
XFORWARD = Extension("XFORWARD", room={"XFORWARD": 1536}, verbs=_names("XFORWARD"), ehlo=ehlo_parameters.WORDS)

#: AUTH= of MAIL, without the verb; never offered. Clients send it whatever is offered, and a server that does not trust
#: them treats it as ``AUTH=<>`` (RFC 4954 section 5).
SUBMITTER = Extension("AUTH", mail=_names("AUTH"), omittable=True)

#: The extensions that the server offers unless they are switched off, in this order.
STANDARD = (
    PIPELINING,
    SIZE,
    EIGHTBITMIME,
    SMTPUTF8,
    CHUNKING,
    BINARYMIME,
    ENHANCEDSTATUSCODES,
    LIMITS,
    STARTTLS,
)
#: The extensions that the server offers where they are switched on, since the application must act on them.
OPTIONAL = (DSN, REQUIRETLS, MT_PRIORITY, DELIVERBY, FUTURERELEASE, RRVS, ETRN, XCLIENT, XFORWARD)

#: The values of BODY= (RFC 6152 section 2, RFC 3030 section 3).
BODY_TYPES = frozenset({"7BIT", "8BITMIME", "BINARYMIME"})


def choose(*, on: Iterable[str] = (), off: Iterable[str] = ()) -> tuple[Extension, ...]:
    """Return the extensions that a server offers: STANDARD, those that are on, and none that is off.

    What requires an extension that is off is left out too: BINARYMIME goes with CHUNKING.

    :raises ValueError: a keyword is unknown.
    """
    wanted = _known(on) | {extension.keyword for extension in STANDARD}
    wanted -= _known(off)
    chosen = [extension for extension in (*STANDARD, *OPTIONAL) if extension.keyword in wanted]
    return tuple(extension for extension in chosen if extension.requires <= wanted)


def _known(keywords: Iterable[str]) -> set[str]:
    known = [extension.keyword for extension in (*STANDARD, *OPTIONAL)]
    given = {keyword.upper() for keyword in keywords}
    for keyword in given.difference(known):
        raise ValueError(f"expected one of {', '.join(known)}; got {keyword!r}{did_you_mean(keyword, known)}")
    return given


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


class ParameterCheck:
    """Checks the parameters of MAIL and RCPT against what the server offers. One for each server."""

    def __init__(self, extensions: Iterable[Extension]) -> None:
        extensions = (*extensions, SUBMITTER)
        self._allowed = allowed_parameters(extensions)
        self._takes_binary = BINARYMIME in extensions
        secure = allowed_parameters(extension for extension in extensions if extension.needs_tls)
        self._secure = secure["MAIL"] | secure["RCPT"]

    def refusal(self, verb: str, address: Address, *, tls: bool) -> Reply | None:
        """Return the reply to MAIL or RCPT with these parameters if one of them is unsupported or malformed, else None.

        It is 555 5.5.4 where the extension is unknown or switched off (RFC 5321 section 4.1.1.11), 530 5.7.10 where it
        needs TLS (RFC 8689 section 4), and 501 5.5.4 where the value is malformed.
        """
        if not address.parameters:
            return None
        allowed = self._allowed[verb]
        for keyword in address.parameters:
            if keyword not in allowed:
                return unsupported(keyword)
            if keyword in self._secure and not tls:
                return canned.PARAMETER_NEEDS_TLS
        try:
            options = address._parse_options(verb)
        except ProtocolError as error:
            return Reply(501, f"5.5.4 {error}")
        if not self._takes_binary and isinstance(options, MailOptions) and options.body == "BINARYMIME":
            return unsupported("BODY=BINARYMIME")
        return None


def unsupported(parameter: str) -> Reply:
    """Return the refusal of a parameter whose extension is unknown or switched off."""
    return Reply(555, f"5.5.4 Unsupported parameter: {parameter}")


# What EHLO offers (RFC 5321 section 4.1.1.1: ehlo-keyword, ehlo-param, ehlo-line)

_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_PARAMETER = re.compile(r"[!-~]+")
_OFFER = re.compile(rf"({_KEYWORD.pattern})(?:[ =](.*))?")

#: The extensions that the client uses where they are offered: by itself, or when it is told to.
USED = tuple(sorted({"AUTH", *(each.keyword for each in (*STANDARD, *OPTIONAL) if each is not ENHANCEDSTATUSCODES)}))


@lru_cache(256)  # a client that comes again gets the same reply, and encoding it is most of the work of EHLO
def offer(reply: Reply, keyword: str, *parameters: str) -> Reply:
    """Return the reply to EHLO or LHLO with one more extension offered; return a refusal unchanged.

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
