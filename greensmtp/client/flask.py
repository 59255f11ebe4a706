"""``Mail``: send mail from Flask over pooled connections, with the settings of Flask-Mail.

``mail = Mail(app)``, then ``mail.send(Message("Hello", recipients=["jo@example.com"], body="It works."))``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formataddr
from mimetypes import guess_type
from pathlib import PurePath
from typing import Any

from flask import Flask, current_app

from greensmtp.client.pool import Pool
from greensmtp.protocol.send_result import SendResult

#: ``"jo@example.com"``, ``"Jo <jo@example.com>"``, ``("Jo", "jo@example.com")``.
Address = str | tuple[str, str]


@dataclass(frozen=True)
class Attachment:
    """A file in a message."""

    filename: str
    content_type: str
    data: bytes
    disposition: str = "attachment"


@dataclass
class Message:
    """A message, with Flask-Mail's names."""

    subject: str = ""
    recipients: list[Address] = field(default_factory=list)
    body: str | None = None
    html: str | None = None
    #: ``MAIL_DEFAULT_SENDER`` by default.
    sender: Address | None = None
    cc: list[Address] = field(default_factory=list)
    bcc: list[Address] = field(default_factory=list)
    reply_to: Address | None = None
    attachments: list[Attachment] = field(default_factory=list)
    extra_headers: Mapping[str, str] = field(default_factory=dict)

    def add_recipient(self, recipient: Address) -> None:
        """Add a recipient to To."""
        self.recipients.append(recipient)

    def attach(
        self, filename: str, content_type: str | None = None, data: bytes = b"", disposition: str = "attachment"
    ) -> None:
        """Attach a file. Its type is guessed from its name by default."""
        kind = content_type or guess_type(PurePath(filename).name)[0] or "application/octet-stream"
        self.attachments.append(Attachment(filename, kind, data, disposition))

    def as_email(self, default_sender: Address | None = None) -> EmailMessage:
        """Return the message as an ``EmailMessage``.

        :raises ValueError: it has no sender, no recipients, or a line break in a header field.
        """
        sender = self.sender or default_sender
        if not sender:
            raise ValueError("expected a sender; got none: pass sender=, or set MAIL_DEFAULT_SENDER")
        if not (self.recipients or self.cc or self.bcc):
            raise ValueError("expected at least one recipient; got none")
        message = EmailMessage()
        message["Subject"] = self.subject
        message["From"] = _written([sender])
        for name, addresses in (("To", self.recipients), ("Cc", self.cc), ("Bcc", self.bcc)):
            if addresses:
                message[name] = _written(addresses)
        if self.reply_to:
            message["Reply-To"] = _written([self.reply_to])
        for name, value in self.extra_headers.items():
            message[name] = value
        if self.body is not None or self.html is None:
            message.set_content(self.body or "")
        if self.html is not None and self.body is not None:
            message.add_alternative(self.html, subtype="html")
        elif self.html is not None:
            message.set_content(self.html, subtype="html")
        for each in self.attachments:
            main, _, sub = each.content_type.partition("/")
            message.add_attachment(
                each.data, maintype=main, subtype=sub, filename=each.filename, disposition=each.disposition
            )
        return message


def _written(addresses: Iterable[Address]) -> str:
    return ", ".join(each if isinstance(each, str) else formataddr(each) for each in addresses)


class _State:
    """The state of ``Mail`` for one application."""

    def __init__(self, config: Mapping[str, Any], *, testing: bool) -> None:
        tls, ssl = bool(config.get("MAIL_USE_TLS")), bool(config.get("MAIL_USE_SSL"))
        if tls and ssl:
            raise ValueError("MAIL_USE_TLS and MAIL_USE_SSL exclude each other: set one of them")
        options: dict[str, Any] = {
            "host": config.get("MAIL_SERVER", "127.0.0.1"),
            "port": config.get("MAIL_PORT"),
            "timeout": config.get("MAIL_TIMEOUT"),
            "tls": ssl,
            "starttls": "require" if tls else None if ssl else "never",
        }
        if config.get("MAIL_USERNAME"):
            options |= {"username": config["MAIL_USERNAME"], "password": config.get("MAIL_PASSWORD")}
        self.pool = Pool(**{**options, **config.get("MAIL_POOL", {})})
        self.sender: Address | None = config.get("MAIL_DEFAULT_SENDER")
        suppress = config.get("MAIL_SUPPRESS_SEND")
        self.suppress = testing if suppress is None else bool(suppress)
        #: The lists of ``record_messages``.
        self.outboxes: list[list[EmailMessage]] = []


class Mail:
    """Send mail from Flask: ``Mail(app)``, or ``mail = Mail()`` and ``mail.init_app(app)`` for several applications.

    It reads ``MAIL_SERVER``, ``MAIL_PORT``, ``MAIL_USE_TLS`` (STARTTLS), ``MAIL_USE_SSL``, ``MAIL_USERNAME``,
    ``MAIL_PASSWORD``, ``MAIL_DEFAULT_SENDER``, ``MAIL_TIMEOUT``, ``MAIL_SUPPRESS_SEND`` (by default, the value of
    TESTING), and ``MAIL_POOL``, a mapping of more options of ``Pool``.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._app = app
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the settings of an application.

        :raises TypeError, ValueError: a setting is invalid.
        """
        app.extensions["mail"] = _State(app.config, testing=app.testing)

    @property
    def pool(self) -> Pool:
        """The pool of the current application."""
        return self._state().pool

    def _state(self) -> _State:
        app = self._app or current_app
        try:
            state: _State = app.extensions["mail"]
        except KeyError:
            raise RuntimeError("this application has no Mail: call mail.init_app(app)") from None
        return state

    def send(self, message: Message | EmailMessage, **options: Any) -> SendResult | None:
        """Send a message, and return the result; None if ``MAIL_SUPPRESS_SEND`` is set.

        :param options: keywords of ``Pool.send``.
        :raises ClientError: the message was not sent; see ``Pool.send``.
        :raises ValueError: the message lacks a sender or recipients.
        """
        state = self._state()
        email = message.as_email(state.sender) if isinstance(message, Message) else message
        sent = None if state.suppress else state.pool.send(email, **options)
        for outbox in state.outboxes:
            outbox.append(email)
        return sent

    def send_message(self, *args: Any, **fields: Any) -> SendResult | None:
        """Send a ``Message`` with these arguments."""
        return self.send(Message(*args, **fields))

    @contextmanager
    def record_messages(self) -> Iterator[list[EmailMessage]]:
        """``with mail.record_messages() as outbox:`` collects the messages sent in the block, for tests."""
        outboxes = self._state().outboxes
        outbox: list[EmailMessage] = []
        outboxes.append(outbox)
        try:
            yield outbox
        finally:
            outboxes[:] = [each for each in outboxes if each is not outbox]
