"""The values of the parameters of MAIL and RCPT: their types, parsers and formatters. The table is in ``options``.

A parser takes the text of a value and returns the value. It raises ValueError or ProtocolError where the text is
malformed. A formatter takes what the parser returns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.mailbox import parse_mailbox
from greensmtp.protocol.xtext import decode_unitext, decode_xtext, encode_unitext, encode_xtext

if TYPE_CHECKING:
    from datetime import datetime  # imported where it is used: few messages need it

#: BODY= (RFC 6152 section 2, RFC 3030 section 3), RET= (RFC 3461 section 4.3), NOTIFY= (RFC 3461 section 4.1).
BodyType = Literal["7BIT", "8BITMIME", "BINARYMIME"]
Ret = Literal["FULL", "HDRS"]
Notify = Literal["NEVER", "SUCCESS", "FAILURE", "DELAY"]

#: Characters of xtext in ENVID= and of the value of ORCPT= (RFC 3461 sections 4.4, 4.2).
MAX_ENVID = 100
MAX_ORCPT = 500

# These patterns are not compiled at import: few messages have such parameters.
SECONDS = r"[1-9][0-9]{0,8}"
PRIORITY = r"-?[1-9]|0"
_BY = r"([+-]?[0-9]{1,9});([NRnr])([Tt]?)"
#: ``date-time`` of RFC 3339 section 5.6.
_DATE_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,12})?(?:Z|[+-][0-9]{2}:[0-9]{2})"
_ADDRESS_TYPE = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_PRINTABLE = r"[ -~]+"


@dataclass(frozen=True, slots=True)
class DeliverBy:
    """BY= (RFC 2852 section 4): the message is to be delivered within ``seconds``, which may be 0 or less."""

    seconds: int
    #: After that time, ``"R"`` returns the message, ``"N"`` notifies its sender and goes on.
    mode: Literal["N", "R"]
    #: Each relay reports that it has passed the message on.
    trace: bool = False


@dataclass(frozen=True, slots=True)
class OriginalRecipient:
    """ORCPT= (RFC 3461 section 4.2): the recipient as the sender wrote it, with its type: ``rfc822``, ``utf-8``."""

    address_type: str
    address: str


@dataclass(frozen=True, slots=True)
class ValidSince:
    """RRVS= (RFC 7293 section 3.1): the mailbox must have had the same owner since then."""

    since: datetime
    #: What a relay does if the next hop lacks RRVS: ``"C"`` continues, ``"R"`` refuses; None: as ``"R"``.
    otherwise: Literal["C", "R"] | None = None


def parse_date_time(text: str) -> datetime:
    """Parse a ``date-time`` (RFC 3339 section 5.6); the result is in UTC.

    :raises ValueError: it is malformed, or there is no such time.
    """
    from datetime import UTC, datetime

    if not re.fullmatch(_DATE_TIME, text.upper()):
        raise ValueError(f"a time is like 2030-01-31T12:00:00Z, not {text[:40]!r}")
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text} is before the year 1 or after 9999 in UTC") from None


def format_date_time(time: datetime) -> str:
    """Return a time as RFC 3339 has it, in UTC.

    :raises ValueError: the time has no time zone.
    """
    from datetime import UTC

    if time.tzinfo is None:
        raise ValueError(f"a time needs a time zone, such as datetime.UTC: {time!r}")
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def format_by(by: DeliverBy) -> str:
    """Return the value of BY=."""
    return f"{by.seconds};{by.mode}{'T' if by.trace else ''}"


def format_notify(words: frozenset[str]) -> str:
    """Return the value of NOTIFY=.

    :raises ValueError: a word is unknown.
    """
    if not words <= _NOTIFY:
        raise ValueError(f"got {', '.join(map(repr, sorted(words - _NOTIFY)))}")
    return ",".join(word for word in get_args(Notify) if word in words)


def format_valid_since(valid: ValidSince) -> str:
    """Return the value of RRVS=."""
    time = format_date_time(valid.since)
    return time if valid.otherwise is None else f"{time};{valid.otherwise}"


def parse_size(text: str) -> int:
    """Parse SIZE= (RFC 1870 section 6), which most messages have."""
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise ValueError(text)
    return int(text)


def number(pattern: str) -> Callable[[str], int]:
    """Return a parser of numbers that match."""

    def parse(text: str) -> int:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return int(text)

    return parse


def one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    """Return a parser of words, in any case."""

    def parse(text: str) -> str:
        if text.upper() not in words:
            raise ValueError(text)
        return text.upper()

    return parse


def parse_auth(text: str) -> str:
    """Parse AUTH= (RFC 4954 section 5): a mailbox, or ``""`` for ``<>``.

    A value that is not a mailbox means ``<>``: Dovecot's submission service sends the user's login name.
    """
    if text == "<>":
        return ""
    try:
        # (An Address: a middleware has decoded it.)
        return parse_mailbox(decode_xtext(text) if type(text) is str else text)[0]
    except ProtocolError:
        return ""


def parse_envid(text: str) -> str:
    """Parse ENVID= (RFC 3461 section 4.4)."""
    if len(text) > MAX_ENVID:
        raise ValueError(text)
    return _printable(decode_xtext(text))


def format_auth(mailbox: str) -> str:
    """Return the value of AUTH= (RFC 4954 section 5) for a mailbox, or for ``""``, which is ``<>``."""
    return encode_xtext(parse_mailbox(mailbox)[0]) or "<>"


def format_envid(text: str) -> str:
    """Return the value of ENVID=."""
    return encode_xtext(_printable(text))


def _printable(text: str) -> str:
    if not re.fullmatch(_PRINTABLE, text):
        raise ValueError(text)
    return text


def parse_by(text: str) -> DeliverBy:
    """Parse BY= (RFC 2852 section 4)."""
    match = re.fullmatch(_BY, text)
    if match is None:
        raise ValueError(text)
    seconds, mode = int(match[1]), match[2].upper()
    if mode == "R" and seconds <= 0:  # RFC 2852 section 4
        raise ValueError(text)
    return DeliverBy(seconds, "R" if mode == "R" else "N", bool(match[3]))


def parse_notify(text: str) -> frozenset[str]:
    """Parse NOTIFY= (RFC 3461 section 4.1)."""
    words = frozenset(text.upper().split(","))
    if not words <= _NOTIFY or (len(words) > 1 and "NEVER" in words):
        raise ValueError(text)
    return words


_NOTIFY = frozenset(get_args(Notify))


def parse_orcpt(text: str) -> OriginalRecipient:
    """Parse ORCPT= (RFC 3461 section 4.2; for the type utf-8, RFC 6533 section 3).

    An address beyond ASCII of the type rfc822 becomes one of the type utf-8.
    """
    address_type, separator, address = text.partition(";")
    if len(text.encode()) > MAX_ORCPT or not separator or not re.fullmatch(_ADDRESS_TYPE, address_type):
        raise ValueError(text)
    if address_type.lower() == "utf-8":
        return OriginalRecipient("utf-8", decode_unitext(address))
    decoded = decode_xtext(address)
    if address_type.lower() == "rfc822" and not decoded.isascii():
        # Postfix sends addresses beyond ASCII so. RFC 6533 section 3 has the type utf-8 for them.
        return parse_orcpt(f"utf-8;{encode_unitext(decoded)}")
    return OriginalRecipient(address_type.lower(), _printable(decoded))


def format_orcpt(original: OriginalRecipient) -> str:
    """Return the value of ORCPT=."""
    if original.address_type == "utf-8":
        return f"utf-8;{encode_unitext(original.address)}"
    return f"{original.address_type};{encode_xtext(_printable(original.address))}"


def parse_valid_since(text: str) -> ValidSince:
    """Parse RRVS= (RFC 7293 section 3.1)."""
    time, separator, otherwise = text.partition(";")
    if separator and otherwise.upper() not in ("C", "R"):
        raise ValueError(text)
    return ValidSince(parse_date_time(time), ("C" if otherwise.upper() == "C" else "R") if separator else None)
