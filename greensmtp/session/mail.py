"""Whole messages for handlers: ``server.on_mail`` calls its handler with a ``Mail`` once the body has arrived."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

from greensmtp._native import native
from greensmtp.protocol.address import Address
from greensmtp.protocol.header_section import joint
from greensmtp.protocol.reply import Reply
from greensmtp.session.session import Session
from greensmtp.session.spool import Spool
from greensmtp.session.stream import MessageStream
from greensmtp.thread_pool import in_thread_pool

if TYPE_CHECKING:
    from email.message import EmailMessage

#: The result of a handler of ``on_mail``.
Verdict = Reply | Mapping[str, Reply | None] | None

#: The largest message, in bytes, that is parsed in the hub; larger ones are parsed in the thread pool.
_PARSED_IN_HUB = 64 * 1024
#: The bytes of a message in which ``headers`` looks for the end of the header section.
_MAX_HEADERS = 1024 * 1024


class Mail:
    """A whole message, for as long as its handler runs.

    A small one is kept in memory, a larger one in a temporary file. It is deleted when the handler returns, but open
    files stay readable.
    """

    def __init__(self, session: Session, stream: MessageStream, spool: Spool) -> None:
        self.session = session
        #: ``session.transaction_id``, which the client is told if the handler accepts without a text.
        self.id: str = session.transaction_id
        #: The reverse-path; ``""`` for the null sender.
        self.sender: Address = session.from_ or Address("", "", "")
        #: The accepted recipients, in their order.
        self.recipients: tuple[Address, ...] = tuple(session.to)
        #: The bytes that the client sent, without added fields, newlines as they came.
        self.size: int = stream.size
        self._spool = spool
        self._head = stream.take_fields()
        if self._head:
            self._head += joint(spool.beginning)
        self._thread = native("_thread", "get_ident")()
        self._headers: EmailMessage | None = None

    def open(self) -> BinaryIO:
        """Return the message as a binary file at its beginning, a new one at each call: added fields, then the body.

        :raises ValueError: the handler has returned.
        """
        return self._spool.open(self._head)

    def parse(self) -> EmailMessage:
        """Return the message as an ``EmailMessage``. Neither this nor reading it raises, whatever the client sent.

        A large message is parsed in the thread pool.

        :raises ValueError: the handler has returned.
        """
        from greensmtp.protocol.lenient_message import parse

        with self.open() as file:
            # A thread of the pool has no hub to keep free.
            if self.size <= _PARSED_IN_HUB or native("_thread", "get_ident")() != self._thread:
                return parse(file)
            return in_thread_pool(parse, file)

    @property
    def headers(self) -> EmailMessage:
        """The header section alone, as an ``EmailMessage`` without content: ``mail.headers["Subject"]``.

        :raises ValueError: the handler has returned.
        """
        if self._headers is None:
            import io

            from greensmtp.protocol.header_envelope import split
            from greensmtp.protocol.lenient_message import parse

            with self.open() as file:
                beginning = file.read(_MAX_HEADERS)
            self._headers = parse(io.BytesIO(beginning[: split(beginning)]), headers_only=True)
        return self._headers

    def __repr__(self) -> str:
        return f"<Mail from {str(self.sender)!r} to {list(map(str, self.recipients))!r}, {self.size} bytes>"
