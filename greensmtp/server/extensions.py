"""The extensions that a server offers: its argument ``extensions``, what EHLO says of them, and the limits behind them.

The rules of this file:

- ``VALUES`` has a row for each extension that takes more than true and false. What an extension is stands in
  ``protocol.esmtp``.
- Everything is computed once for each server. One line of EHLO moves with the clock: that of FUTURERELEASE without a
  last time, to the minute.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any, NamedTuple

from greensmtp._suggest import did_you_mean
from greensmtp.errors import ArgumentError
from greensmtp.protocol import canned, esmtp
from greensmtp.protocol.ehlo_parameters import FutureReleaseLimits, OfferedLimits
from greensmtp.protocol.esmtp import Extension
from greensmtp.protocol.option_values import parse_date_time
from greensmtp.protocol.options import MailOptions
from greensmtp.protocol.reply import Reply
from greensmtp.server.limits import Limits

#: The extensions that ``extensions`` switches. (The trusted networks switch XCLIENT and XFORWARD.)
SWITCHABLE: Mapping[str, Extension] = {
    extension.keyword: extension
    for extension in (*esmtp.STANDARD, *esmtp.OPTIONAL)
    if extension not in (esmtp.XCLIENT, esmtp.XFORWARD)
}


class Value(NamedTuple):
    """How an extension is switched on with more than true."""

    #: What it takes beside false, for the error.
    takes: str
    #: Returns the value; raises ValueError if it is wrong.
    read: Callable[[Any], Any]
    #: True alone switches it on.
    may_be_true: bool = True


class _HoldLimits(NamedTuple):
    """FUTURERELEASE: the longest time that a message may be held."""

    max_seconds: int
    #: None: it is as long from now on, always.
    max_time: datetime | None

    def at(self, now: datetime) -> FutureReleaseLimits:
        """Return the limits at this time."""
        return FutureReleaseLimits(self.max_seconds, self.max_time or now + timedelta(seconds=self.max_seconds))


def _seconds(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 999_999_999:
        raise ValueError(value)
    return value


def _profile(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", value):
        raise ValueError(value)
    return value


def _hold_limits(value: Any) -> _HoldLimits:
    seconds, time = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)
    if isinstance(time, str):
        time = parse_date_time(time)
    if time is not None and (not isinstance(time, datetime) or time.tzinfo is None):
        raise ValueError(value)
    return _HoldLimits(_seconds(seconds), time)


#: keyword -> what it takes beside true and false
VALUES: Mapping[str, Value] = {
    "MT-PRIORITY": Value("the name of a priority profile, like 'MIXER'", _profile),
    "DELIVERBY": Value("the least number of seconds for BY=...;R", _seconds),
    "FUTURERELEASE": Value(
        "the most seconds that a message may be held, or these and a last time with its time zone", _hold_limits, False
    ),
}


def read_switch(keyword: str, value: Any) -> Any:
    """Return what one extension is switched to: True, False, or the value behind its keyword.

    :raises ValueError: it takes something else; the text is the rest of a sentence that begins with the keyword.
    """
    row = VALUES.get(keyword)
    if value is False or (value is True and (row is None or row.may_be_true)):
        return value
    if row is None:
        raise ValueError(f"takes true or false, not {value!r}")
    try:
        return row.read(value)
    except ValueError:
        others = "true or false" if row.may_be_true else "or false"
        raise ValueError(f"takes {row.takes}, {others}, not {value!r}") from None


def read_switches(given: Any) -> dict[str, Any]:
    """Return the argument ``extensions``, checked: keyword in upper case -> True, False or its value.

    :raises ArgumentError: a keyword is unknown, or its value is wrong.
    :raises TypeError: it is not a mapping.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"extensions takes a mapping, like {{'DSN': True, 'CHUNKING': False}}, not {given!r}")
    switches: dict[str, Any] = {}
    for name, value in given.items():
        keyword = str(name).upper()
        if keyword in ("XCLIENT", "XFORWARD"):
            raise ArgumentError("extensions", f"{keyword} is offered to trusted networks: {keyword.lower()}_from=[...]")
        if keyword not in SWITCHABLE:
            hint = did_you_mean(keyword, SWITCHABLE)
            raise ArgumentError("extensions", f"takes {', '.join(SWITCHABLE)}, not {name!r}{hint}")
        try:
            switches[keyword] = read_switch(keyword, value)
        except ValueError as error:
            raise ArgumentError("extensions", f"{keyword} {error}") from None
    return switches


class Offer:
    """What a server offers. One for each server.

    :param switches: see ``read_switches``.
    :param starttls: STARTTLS is possible.
    :param others: the extensions that middleware owns.
    """

    def __init__(
        self, switches: Mapping[str, Any], limits: Limits, *, starttls: bool, others: Iterable[Extension] = ()
    ) -> None:
        on = [keyword for keyword, value in switches.items() if value is not False]
        off = [keyword for keyword in SWITCHABLE if switches.get(keyword) is False]
        own = esmtp.choose(on=on, off=off if starttls else [*off, "STARTTLS"])
        #: The extensions: the server's own, then those of middleware.
        self.extensions: tuple[Extension, ...] = (*own, *others)
        self.verbs = frozenset().union(*(extension.verbs for extension in self.extensions))
        self.parameters = esmtp.ParameterCheck(self.extensions)
        self._max_size = inf if limits.max_message_size is None else limits.max_message_size
        given = {keyword: value for keyword, value in switches.items() if value is not True}
        self._least_time: int = given.get("DELIVERBY") or 0
        self._hold: _HoldLimits | None = given.get("FUTURERELEASE") or None
        values = {
            "SIZE": limits.max_message_size or 0,
            "LIMITS": OfferedLimits(rcpt_max=limits.max_recipients),
            **given,
        }
        self._moves = self._hold is not None and self._hold.max_time is None
        #: The lines of EHLO's reply behind the first, by whether TLS is up; without those that move with the clock.
        self._lines = {
            tls: tuple(
                extension.offer_line(values.get(extension.keyword))
                for extension in own
                if (not tls if extension is esmtp.STARTTLS else tls or not extension.needs_tls)
                and extension is not esmtp.FUTURERELEASE
            )
            for tls in (False, True)
        }
        if self._hold is not None and not self._moves:
            line = esmtp.FUTURERELEASE.offer_line(self._hold.at(datetime.now(UTC)))
            self._lines = {tls: (*lines, line) for tls, lines in self._lines.items()}

    def lines(self, *, tls: bool) -> tuple[str, ...]:
        """Return the lines of the reply to EHLO behind the first.

        :param tls: TLS is up.
        """
        lines = self._lines[tls]
        if self._hold is None or not self._moves:
            return lines
        limits = self._hold.at(datetime.now(UTC).replace(second=0, microsecond=0))
        return (*lines, esmtp.FUTURERELEASE.offer_line(limits))

    def refusal(self, options: MailOptions) -> Reply | None:
        """Return the reply to MAIL if it asks for more than the server offers, else None."""
        if options.size is not None and options.size > self._max_size:
            return canned.TOO_LARGE
        by = options.deliver_by
        if by is not None and by.mode == "R" and by.seconds < self._least_time:
            return canned.DELIVER_BY_TOO_SOON
        if self._hold is None or (options.hold_for is None and options.hold_until is None):
            return None
        now = datetime.now(UTC)
        return None if self._hold.at(now).allow(options, now) else canned.HOLD_TOO_LONG
