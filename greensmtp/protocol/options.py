"""The parameters of MAIL and RCPT as typed options: parsed from a client's command, and formatted for a server's.

The rules of this file:

- ``MAIL`` and ``RCPT`` have a row for each parameter: its field, what it takes (for the error), its parser and its
  formatter. Which extension owns a parameter is in ``esmtp``.
- Nothing is parsed before ``Address.mail_options`` or ``Address.rcpt_options`` is read. Without parameters these cost
  one comparison.
- Options that are parsed have only the fields that were given; the others are read from the class. With every field
  set, a MAIL with SIZE= and BODY= would cost a server a tenth more.
- A malformed value raises ProtocolError with the name of the parameter: a server replies ``501 5.5.4`` and that text.
- ``parse`` undoes ``parameters``. Parameters without a row belong to other extensions, and are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from greensmtp.protocol import option_values as values
from greensmtp.protocol.errors import ProtocolError
from greensmtp.protocol.option_values import BodyType, DeliverBy, Notify, OriginalRecipient, Ret, ValidSince

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True)
class MailOptions:
    """The parameters of MAIL. None, or False: the client has not given this one."""

    #: Bytes in the message, by the client's estimate (RFC 1870 section 6).
    size: int | None = None
    body: BodyType | None = None
    #: RFC 6531 section 3.4.
    smtputf8: bool = False
    #: The mailbox of the submitter; ``""`` for ``<>``, and for a value that is not a mailbox (RFC 4954 section 5).
    auth: str | None = None
    #: What a delivery status notification returns of the message.
    ret: Ret | None = None
    #: The sender's name for the envelope, decoded (RFC 3461 section 4.4).
    envid: str | None = None
    #: RFC 8689 section 2.
    require_tls: bool = False
    #: -9 to 9; more is more urgent (RFC 6710 section 3).
    priority: int | None = None
    deliver_by: DeliverBy | None = None
    #: Hold the message for so many seconds, or until then (RFC 4865 section 4). One of the two.
    hold_for: int | None = None
    hold_until: datetime | None = None

    def __post_init__(self) -> None:
        if self.hold_for is not None and self.hold_until is not None:
            raise ProtocolError("HOLDFOR and HOLDUNTIL exclude each other")

    @classmethod
    def parse(cls, parameters: Mapping[str, str | None]) -> MailOptions:
        """Return the options in the parameters of MAIL.

        :raises ProtocolError: a value is malformed; the text names the parameter.
        """
        if not parameters:
            return _NO_MAIL_OPTIONS
        options = object.__new__(cls)
        options.__dict__.update(_parse(MAIL, parameters))
        if "HOLDFOR" in parameters:
            options.__post_init__()
        return options

    def parameters(self) -> dict[str, str | None]:
        """Return the options as parameters, for ``command_builder.mail``.

        :raises ProtocolError: an option is not one that ``parse`` returns.
        """
        return _format(MAIL, self)


@dataclass(frozen=True)
class RcptOptions:
    """The parameters of RCPT. None: the client has not given this one."""

    #: When to notify the sender: some of SUCCESS, FAILURE and DELAY, or NEVER alone (RFC 3461 section 4.1).
    notify: frozenset[Notify] | None = None
    orcpt: OriginalRecipient | None = None
    valid_since: ValidSince | None = None

    @classmethod
    def parse(cls, parameters: Mapping[str, str | None]) -> RcptOptions:
        """Return the options in the parameters of RCPT.

        :raises ProtocolError: a value is malformed; the text names the parameter.
        """
        if not parameters:
            return _NO_RCPT_OPTIONS
        options = object.__new__(cls)
        options.__dict__.update(_parse(RCPT, parameters))
        return options

    def parameters(self) -> dict[str, str | None]:
        """Return the options as parameters, for ``command_builder.rcpt``.

        :raises ProtocolError: an option is not one that ``parse`` returns.
        """
        return _format(RCPT, self)


_NO_MAIL_OPTIONS = MailOptions()
_NO_RCPT_OPTIONS = RcptOptions()


class Parameter(NamedTuple):
    """A row of the tables."""

    #: The field of the options.
    field: str
    #: What it takes, for the error.
    takes: str
    #: Parses the value; None: the parameter has no value, and the field is a bool.
    parse: Callable[[str], Any] | None
    format: Callable[[Any], str] = str


#: keyword -> its row
MAIL: Mapping[str, Parameter] = {
    "SIZE": Parameter("size", "a number of bytes", values.parse_size),
    "BODY": Parameter("body", "7BIT, 8BITMIME or BINARYMIME", values.one_of(get_args(BodyType))),
    "SMTPUTF8": Parameter("smtputf8", "no value", None),
    "AUTH": Parameter("auth", "a mailbox as xtext, or <>", values.parse_auth, values.format_auth),
    "RET": Parameter("ret", "FULL or HDRS", values.one_of(get_args(Ret))),
    "ENVID": Parameter(
        "envid",
        f"printable ASCII as xtext, of at most {values.MAX_ENVID} characters",
        values.parse_envid,
        values.format_envid,
    ),
    "REQUIRETLS": Parameter("require_tls", "no value", None),
    "MT-PRIORITY": Parameter("priority", "a number from -9 to 9", values.number(values.PRIORITY)),
    "BY": Parameter(
        "deliver_by",
        "seconds and a mode, like 3600;R or 3600;NT (R needs more than 0 seconds)",
        values.parse_by,
        values.format_by,
    ),
    "HOLDFOR": Parameter("hold_for", "a number of seconds, of at most 9 digits", values.number(values.SECONDS)),
    "HOLDUNTIL": Parameter(
        "hold_until", "a time like 2030-01-31T12:00:00Z", values.parse_date_time, values.format_date_time
    ),
}
RCPT: Mapping[str, Parameter] = {
    "NOTIFY": Parameter(
        "notify", "NEVER, or a list of SUCCESS, FAILURE and DELAY", values.parse_notify, values.format_notify
    ),
    "ORCPT": Parameter(
        "orcpt",
        f"a type and an address as xtext, like rfc822;jo@example.com, of at most {values.MAX_ORCPT} characters",
        values.parse_orcpt,
        values.format_orcpt,
    ),
    "RRVS": Parameter(
        "valid_since",
        "a time and perhaps C or R, like 2030-01-31T12:00:00Z;C",
        values.parse_valid_since,
        values.format_valid_since,
    ),
}


def _parse(table: Mapping[str, Parameter], parameters: Mapping[str, str | None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for keyword, value in parameters.items():
        row = table.get(keyword)
        if row is None:
            continue
        parse = row.parse
        try:
            if parse is not None and value is not None:
                found[row.field] = parse(value)
                continue
        except (ValueError, ProtocolError):
            pass
        if parse is not None or value is not None:
            raise ProtocolError(f"{keyword} takes {row.takes}")
        found[row.field] = True
    return found


def _format(table: Mapping[str, Parameter], options: object) -> dict[str, str | None]:
    parameters: dict[str, str | None] = {}
    for keyword, row in table.items():
        value = getattr(options, row.field)
        if value is None or value is False:
            continue
        try:
            text = None if row.parse is None else _format_value(row, value)
        except (ValueError, ProtocolError) as error:
            raise ProtocolError(f"{keyword} takes {row.takes}: {error}") from None
        _parse({keyword: row}, {keyword: text})
        parameters[keyword] = text
    return parameters


def _format_value(row: Parameter, value: Any) -> str:
    try:
        return row.format(value)
    except (AttributeError, TypeError):
        raise TypeError(f"{row.field} is of the wrong type: {value!r}") from None
