"""The typed keywords of ``from_``, ``to`` and ``send`` for the parameters of MAIL and RCPT.

Each has the name and the meaning of a field of ``MailOptions`` or ``RcptOptions``. A simpler form is allowed where it
can mean only one thing: ``notify="NEVER"``, ``orcpt="jo@example.com"``, ``valid_since=time``. None stands for a keyword
that is not given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from greensmtp._suggest import did_you_mean
from greensmtp.errors import ProtocolError
from greensmtp.protocol.address import NO_PARAMETERS, Parameters
from greensmtp.protocol.option_values import BodyType, DeliverBy, Notify, OriginalRecipient, Ret, ValidSince
from greensmtp.protocol.options import MailOptions, RcptOptions

if TYPE_CHECKING:
    from datetime import datetime


class MessageOptions(TypedDict, total=False):
    """The parameters of MAIL that apply to a whole message."""

    auth: str | None
    ret: Ret | None
    envid: str | None
    require_tls: bool | None
    priority: int | None
    deliver_by: DeliverBy | None
    hold_for: int | None
    hold_until: datetime | None


class MailKeywords(MessageOptions, total=False):
    """The keywords of ``from_``. ``send`` computes these three itself."""

    size: int | None
    body: BodyType | None
    smtputf8: bool | None


class RcptKeywords(TypedDict, total=False):
    """The keywords of ``to``."""

    notify: Notify | Iterable[Notify] | None
    orcpt: str | OriginalRecipient | None
    valid_since: datetime | ValidSince | None


class SendKeywords(MessageOptions, total=False):
    """The keywords of ``send``; those of RCPT apply to every recipient."""

    notify: Notify | Iterable[Notify] | None
    valid_since: datetime | ValidSince | None


MAIL_KEYWORDS = frozenset(MailKeywords.__annotations__)
RCPT_KEYWORDS = frozenset(RcptKeywords.__annotations__)
SEND_KEYWORDS = frozenset(SendKeywords.__annotations__)


def mail_parameters(given: Mapping[str, Any], known: frozenset[str] = MAIL_KEYWORDS) -> Parameters:
    """Return the parameters of MAIL that these keywords stand for; those of RCPT are ignored where they are known.

    :raises TypeError: a keyword is not known.
    :raises ProtocolError: a value is malformed.
    """
    if not given:
        return NO_PARAMETERS
    return MailOptions(**_pick(given, known, MAIL_KEYWORDS)).parameters()


def rcpt_parameters(given: Mapping[str, Any], known: frozenset[str] = RCPT_KEYWORDS) -> Parameters:
    """Return the parameters of RCPT that these keywords stand for; see ``mail_parameters``."""
    if not given:
        return NO_PARAMETERS
    options = _pick(given, known, RCPT_KEYWORDS)
    notify, orcpt, since = (options.get(name) for name in ("notify", "orcpt", "valid_since"))
    if notify is not None:
        options["notify"] = frozenset({notify} if isinstance(notify, str) else notify)
    if isinstance(orcpt, str):
        options["orcpt"] = OriginalRecipient("rfc822" if orcpt.isascii() else "utf-8", orcpt)
    if since is not None and not isinstance(since, ValidSince):
        options["valid_since"] = ValidSince(since)
    return RcptOptions(**options).parameters()


def merged(first: Parameters, second: Parameters) -> Parameters:
    """Return the parameters of both.

    :raises ProtocolError: a parameter is in both.
    """
    if not second:
        return first
    twice = first.keys() & second.keys()
    if twice:
        raise ProtocolError(f"parameter given twice: {min(twice)}")
    return {**first, **second}


def _pick(given: Mapping[str, Any], known: frozenset[str], wanted: frozenset[str]) -> dict[str, Any]:
    for name in given:
        if name not in known:
            raise TypeError(f"expected one of {', '.join(sorted(known))}; got {name!r}{did_you_mean(name, known)}")
    return {name: value for name, value in given.items() if name in wanted and value is not None}
