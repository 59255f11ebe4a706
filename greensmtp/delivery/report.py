"""Delivery status notifications: the report to a sender that a message was, or was not, delivered (RFC 3464, RFC 3462).

``delivery_report`` returns the bytes of one: a text for people, the status for programs, and the message or its header
section. Send it with the null sender, so that no report answers a report (RFC 5321 section 4.5.5).

It is written without ``email``'s generator, which raises on some messages that a server has to return.
"""

from __future__ import annotations

import re
from binascii import b2a_qp
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime, make_msgid
from typing import Literal
from uuid import uuid4

from greensmtp.errors import ProtocolError
from greensmtp.protocol.enhanced_status import default_for
from greensmtp.protocol.header_envelope import split
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.xtext import decode_xtext

Action = Literal["failed", "delayed", "delivered", "relayed", "expanded"]

_SUBJECTS: dict[Action, str] = {
    "failed": "Undelivered mail: returned to sender",
    "delayed": "Delayed mail: still being tried",
    "delivered": "Delivered mail",
    "relayed": "Relayed mail: no further report",
    "expanded": "Delivered mail: sent on to a list",
}

_TEXTS: dict[Action, str] = {
    "failed": "Your message could not be delivered to these recipients. No further attempt is made.",
    "delayed": "Your message has not been delivered to these recipients yet. You need not send it again.",
    "delivered": "Your message was delivered to these recipients.",
    "relayed": "Your message was handed to a server that sends no reports of delivery.",
    "expanded": "Your message was delivered to these lists, which have sent it on.",
}

#: Control characters and line ends, which a field's value must not have.
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")

#: Maximum length of a value in bytes: an address (RFC 5321 section 4.5.3.1) fits, and two values fit in 998 bytes.
_MAX_VALUE = 480

#: Maximum size in bytes of an included header section.
_MAX_HEADERS = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class RecipientStatus:
    """The delivery status of one recipient (RFC 3464 section 2.3).

    :param recipient: the address.
    :param action: ``"failed"``, ``"delayed"``, ``"delivered"``, ``"relayed"`` or ``"expanded"``.
    :param reply: the final reply, from this server or from ``remote``.
    :param remote: the host that sent the reply; None: this server.
    :param original: the ORCPT parameter of RCPT, in xtext.
    :param will_retry_until: for ``"delayed"``: the time of the last attempt.
    """

    recipient: str
    reply: Reply
    action: Action = "failed"
    remote: str | None = None
    original: str | None = None
    last_attempt: datetime | None = None
    will_retry_until: datetime | None = None

    @property
    def status(self) -> str:
        """The enhanced status code: ``"5.1.1"``. It is that of the reply, or ``"X.0.0"`` of its class."""
        return self.reply.enhanced or default_for(self.reply.code) or f"{self.reply.code // 100}.0.0"

    def fields(self) -> bytes:
        """Return the fields of this recipient, a block of ``message/delivery-status``."""
        kind, _, original = (self.original or "").partition(";")
        address_type = "rfc822" if self.recipient.isascii() else "utf-8"
        return _fields(
            ("Original-Recipient", self.original and f"{kind};{_decoded(original)}"),
            ("Final-Recipient", f"{address_type};{self.recipient}"),
            ("Action", self.action),
            ("Status", self.status),
            ("Remote-MTA", self.remote and f"dns;{self.remote}"),
            ("Diagnostic-Code", f"smtp;{self.reply.code} {self._said()}"),
            ("Last-Attempt-Date", self.last_attempt),
            ("Will-Retry-Until", self.will_retry_until),
        )

    def _said(self) -> str:
        return " ".join(filter(None, (self.reply.enhanced, self.reply.text)))


def delivery_report(
    statuses: Iterable[RecipientStatus],
    *,
    sender: str,
    hostname: str,
    message: bytes | None = None,
    headers_only: bool = True,
    envelope_id: str | None = None,
    arrival: datetime | None = None,
    now: datetime | None = None,
) -> bytes:
    """Return a report (``multipart/report``) to the sender of a message.

    :param statuses: one for each reported recipient; at least one.
    :param sender: the reverse-path of the message.
    :param hostname: the name of this server, for ``Reporting-MTA`` and the From field.
    :param message: the message to include; None: it is not included.
    :param headers_only: include its header section only; pass False for ``RET=FULL`` (RFC 3461 section 4.3).
    :param envelope_id: the ENVID parameter of MAIL, in xtext.
    :param arrival: when the message arrived.
    :param now: the time of the report. Default: the current time.
    :raises ValueError: there is no status, or the sender is the null sender, which gets no report.
    """
    reported = list(statuses)
    if not reported:
        raise ValueError("statuses: expected at least one RecipientStatus; got none")
    if not sender:
        raise ValueError("sender: expected an address; got the null sender, which gets no report")
    boundary = f"=_{uuid4().hex}"
    head = _fields(
        ("From", f"Mail Delivery System <MAILER-DAEMON@{hostname}>"),
        ("To", f"<{sender}>"),
        ("Subject", _SUBJECTS[reported[0].action]),
        ("Date", datetime.now().astimezone() if now is None else now),
        ("Message-ID", make_msgid(domain=_text(hostname))),
        ("Auto-Submitted", "auto-replied"),  # RFC 3834 section 5
        ("MIME-Version", "1.0"),
        ("Content-Type", f'multipart/report; report-type=delivery-status; boundary="{boundary}"'),
    )
    about = _fields(
        ("Original-Envelope-Id", envelope_id and _decoded(envelope_id)),
        ("Reporting-MTA", f"dns;{hostname}"),
        ("Arrival-Date", arrival),
    )
    status = b"\r\n".join((about, *(each.fields() for each in reported)))
    if all(each.recipient.isascii() for each in reported) and sender.isascii():
        status = status.decode().encode(
            "ascii", "backslashreplace"
        )  # non-ASCII in a reply text alone must not require SMTPUTF8
    # RFC 6533 section 3: addresses in UTF-8 have a type of their own.
    status_type = f"message/{'' if status.isascii() else 'global-'}delivery-status"
    parts = [("text/plain; charset=utf-8", _explanation(reported, hostname)), (status_type, status)]
    if message is not None:
        header = message[:_MAX_HEADERS]
        parts.append(("text/rfc822-headers", header[: split(header)]) if headers_only else ("message/rfc822", message))
    pieces = [head]
    for kind, content in parts:
        encoding = "7bit" if content.isascii() else "8bit"
        if encoding == "8bit" and kind.startswith("text/"):  # RFC 6522 section 4: avoids the need for 8BITMIME
            encoding, content = "quoted-printable", b2a_qp(content)  # noqa: PLW2901
        about_part = _fields(("Content-Type", kind), ("Content-Transfer-Encoding", encoding))
        pieces.append(b"\r\n--%b\r\n%b\r\n%b" % (boundary.encode(), about_part, content))
    return b"".join(pieces) + b"\r\n--%b--\r\n" % boundary.encode()


def _explanation(statuses: Iterable[RecipientStatus], hostname: str) -> bytes:
    lines = [f"This is the mail server {_text(hostname)}.", ""]
    told: Action | None = None
    for each in statuses:
        if each.action != told:
            told = each.action
            lines += [_TEXTS[told], ""]
        by = f"{_text(each.remote)} said: " if each.remote else ""
        lines += [f"  {_text(each.recipient)}", f"    {by}{each.reply.code} {_text(each._said())}", ""]
    return "\r\n".join(lines).encode()


def _fields(*fields: tuple[str, str | datetime | None]) -> bytes:
    """Return the fields that have a value, each one line."""
    texts = ((name, format_datetime(value) if isinstance(value, datetime) else value) for name, value in fields)
    return "".join(f"{name}: {_text(value)}\r\n" for name, value in texts if value).encode()


def _text(value: str) -> str:
    """Return a text that is not empty, has no line ends, and fits in a line."""
    text = _NOT_TEXT.sub(" ", value[:_MAX_VALUE]).encode()[:_MAX_VALUE]
    return text.decode(errors="ignore").strip() or "?"


def _decoded(xtext: str) -> str:
    try:
        return decode_xtext(xtext)
    except ProtocolError:
        return xtext
