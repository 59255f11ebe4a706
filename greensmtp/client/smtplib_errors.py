"""Convert the client's errors to those of smtplib, which some frameworks expect."""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Mapping

from greensmtp.errors import (
    AuthenticationFailed,
    CannotConnect,
    DataRefused,
    Disconnected,
    GreenSMTPError,
    HelloRefused,
    NotOffered,
    RecipientsRefused,
    Refused,
    SenderRefused,
)
from greensmtp.protocol.reply import Reply


def _words(reply: Reply | None, otherwise: int) -> tuple[int, bytes]:
    """Return a reply in smtplib's form: the code, and the text with the enhanced status code."""
    if reply is None:
        return otherwise, b""
    return reply.code, f"{reply.enhanced or ''} {reply.text}".strip().encode()


def _recipients(error: Refused, _sender: str) -> smtplib.SMTPException:
    return smtplib.SMTPRecipientsRefused({each: _words(reply, 550) for each, reply in error.recipients.items()})


#: The client's error -> a function of it and the sender that returns smtplib's. The first matching row applies.
_ROWS: Mapping[type[GreenSMTPError], Callable[..., smtplib.SMTPException]] = {
    RecipientsRefused: _recipients,
    SenderRefused: lambda error, sender: smtplib.SMTPSenderRefused(*_words(error.reply, 550), sender),
    DataRefused: lambda error, _: smtplib.SMTPDataError(*_words(error.reply, 554)),
    HelloRefused: lambda error, _: smtplib.SMTPHeloError(*_words(error.reply, 550)),
    AuthenticationFailed: lambda error, _: smtplib.SMTPAuthenticationError(
        *(_words(error.reply, 535) if error.reply else (535, str(error)))
    ),
    NotOffered: lambda error, _: smtplib.SMTPNotSupportedError(str(error)),
    Disconnected: lambda error, _: smtplib.SMTPServerDisconnected(str(error)),
    CannotConnect: lambda error, _: smtplib.SMTPConnectError(
        *(_words(error.reply, 554) if error.reply else (-1, str(error)))
    ),
}


def smtplib_error(error: GreenSMTPError, sender: str = "") -> smtplib.SMTPException:
    """Return the corresponding error of smtplib; raise it ``from`` the original."""
    for kind, make in _ROWS.items():
        if isinstance(error, kind):
            return make(error, sender)
    return smtplib.SMTPException(str(error))
