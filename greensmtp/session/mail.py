"""Whole messages for handlers: ``server.on_mail`` calls its handler with a ``Mail`` once the body has arrived."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

from greensmtp._native import native
from greensmtp.protocol.address import Address
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.protocol.reply import Reply
from greensmtp.session.session import Session
from greensmtp.session.spool import Spool
from greensmtp.session.stream import MessageStream
from greensmtp.thread_pool import in_thread_pool

if TYPE_CHECKING:
    from email.message import EmailMessage

#: What a handler of ``on_mail`` may return.
Verdict = Reply | Mapping[str, Reply | None] | None

#: Octets of a message that are parsed in the hub; more are parsed in the thread pool.
_QUICKLY_PARSED = 64 * 1024
#: Octets of a message in which ``headers`` looks for the end of the header section.
_HEADERS = 1024 * 1024


class Mail:
    """A message that has arrived as a whole, for the time that its handler runs.

    It is kept in memory while it is small, else in a temporary file. Once the handler has returned it is gone; files
    that were opened before stay readable.
    """

    def __init__(self, session: Session, stream: MessageStream, spool: Spool) -> None:
        self.session = session
        #: The reverse-path; ``""`` for the null sender.
        self.sender: Address = session.from_ or Address("", "", "")
        #: The accepted recipients, in their order.
        self.recipients: tuple[Address, ...] = tuple(session.to)
        #: Octets that the client sent: without added fields, newlines as they came.
        self.size = stream.size
        self._spool = spool
        self._head = stream.take_fields()
        if self._head and HeaderSection().feed(spool.beginning, last=True) != spool.beginning:
            self._head += b"\r\n"  # the body has no header section: it is content, and continues no field
        self._thread = native("_thread", "get_ident")()
        self._headers: EmailMessage | None = None

    def open(self) -> BinaryIO:
        """Return the message as a binary file at its beginning, a new one at each call: added fields, then the body.

        :raises ValueError: the handler has returned.
        """
        return self._spool.open(self._head)

    def parse(self) -> EmailMessage:
        """Return the message as an ``EmailMessage``. Whatever the client has sent, neither this nor reading it raises.

        A large message is parsed in the thread pool.

        :raises ValueError: the handler has returned.
        """
        from greensmtp.protocol.lenient_message import parse

        with self.open() as file:
            # (In a thread of the pool there is no hub to keep free.)
            if self.size <= _QUICKLY_PARSED or native("_thread", "get_ident")() != self._thread:
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
                beginning = file.read(_HEADERS)
            self._headers = parse(io.BytesIO(beginning[: split(beginning)]), headers_only=True)
        return self._headers

    def __repr__(self) -> str:
        return f"<Mail from {str(self.sender)!r} to {list(map(str, self.recipients))!r}, {self.size} octets>"
