"""The parameters of a keyword in the reply to EHLO: formatted by the server, parsed by the client.

Parsing never raises: what is malformed is None, as if it were not there (RFC 9422 section 3 demands it of LIMITS).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from greensmtp.protocol.option_values import format_date_time, parse_date_time
from greensmtp.protocol.options import MailOptions

if TYPE_CHECKING:
    from datetime import datetime

#: The greatest value that LIMITS can express (RFC 9422 section 4).
_MAX_LIMIT = 999_999


class EhloParameter(NamedTuple):
    """How the parameters of one keyword are written and read."""

    #: Takes the value; None stands for no parameter, unless the formatter has a use for it.
    format: Callable[[Any], str]
    #: Takes the text behind the keyword.
    parse: Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class OfferedLimits:
    """LIMITS (RFC 9422): what a server accepts in one session. None: no limit is known."""

    #: MAIL commands in a session.
    mail_max: int | None = None
    #: RCPT commands in a transaction.
    rcpt_max: int | None = None
    #: Different domains among the recipients of a session.
    rcpt_domain_max: int | None = None


@dataclass(frozen=True, slots=True)
class FutureReleaseLimits:
    """FUTURERELEASE (RFC 4865 section 4): how long a server holds a message."""

    max_seconds: int
    max_time: datetime

    def allow(self, options: MailOptions, now: datetime) -> bool:
        """Return True if a message may be held as long as its HOLDFOR or HOLDUNTIL says.

        :param now: the present time, with a time zone.
        """
        from datetime import timedelta

        if options.hold_for is not None:
            wait = timedelta(seconds=options.hold_for)
        elif options.hold_until is not None:
            wait = options.hold_until - now
        else:
            return True
        return wait <= min(timedelta(seconds=self.max_seconds), self.max_time - now)


_LIMITS = {"MAILMAX": "mail_max", "RCPTMAX": "rcpt_max", "RCPTDOMAINMAX": "rcpt_domain_max"}


def _format_limits(limits: OfferedLimits) -> str:
    values = ((name, getattr(limits, field)) for name, field in _LIMITS.items())
    return " ".join(f"{name}={min(value, _MAX_LIMIT)}" for name, value in values if value)


def _parse_limits(text: str) -> OfferedLimits:
    found: dict[str, int] = {}
    for word in text.split():
        name, _, value = word.partition("=")
        field = _LIMITS.get(name.upper())
        if field is not None and re.fullmatch(r"[0-9]{1,6}", value) and int(value):
            found[field] = int(value)
    return OfferedLimits(**found)


def _format_number(value: int | None) -> str:
    return "" if value is None else str(value)


def _parse_number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None


def _format_future_release(limits: FutureReleaseLimits) -> str:
    return f"{limits.max_seconds} {format_date_time(limits.max_time)}"


def _parse_future_release(text: str) -> FutureReleaseLimits | None:
    seconds, _, time = text.partition(" ")
    if not re.fullmatch(r"[0-9]{1,9}", seconds):
        return None
    try:
        return FutureReleaseLimits(int(seconds), parse_date_time(time.strip()))
    except ValueError:
        return None


def _parse_word(text: str) -> str | None:
    return text if re.fullmatch(r"[!-~]+", text) else None


def _format_words(words: Iterable[str]) -> str:
    return " ".join(words)


def _parse_words(text: str) -> tuple[str, ...]:
    return tuple(text.upper().split())


#: A number, or none: SIZE (RFC 1870 section 3), DELIVERBY (RFC 2852 section 3).
NUMBER = EhloParameter(_format_number, _parse_number)
#: The name of a profile, or none: MT-PRIORITY (RFC 6710 section 3).
WORD = EhloParameter(lambda word: word or "", _parse_word)
#: Names: XCLIENT, XFORWARD.
WORDS = EhloParameter(_format_words, _parse_words)
LIMITS = EhloParameter(_format_limits, _parse_limits)
FUTURE_RELEASE = EhloParameter(_format_future_release, _parse_future_release)
