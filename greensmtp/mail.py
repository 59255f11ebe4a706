"""Whole messages for handlers: ``server.on_mail`` calls its handler with a ``Mail`` once the body has arrived."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from greensmtp.ack import Ack
from greensmtp.errors import Reject
from greensmtp.log import logger
from greensmtp.native import native
from greensmtp.protocol import standard
from greensmtp.protocol.addresses import Address
from greensmtp.protocol.header_section import HeaderSection
from greensmtp.protocol.replies import Reply
from greensmtp.session import Session
from greensmtp.shapes import check_callable
from greensmtp.signals import Signals, handler_name
from greensmtp.spools import Spool
from greensmtp.stream import MessageStream, reply_to_failure
from greensmtp.thread_pool import in_thread_pool

if TYPE_CHECKING:
    from email.message import EmailMessage

#: What a handler of ``on_mail`` may return.
Verdict = Reply | Mapping[str, Reply | None] | None

Handler = TypeVar("Handler", bound=Callable[..., Any])

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

            from greensmtp.protocol.headers import split
            from greensmtp.protocol.lenient_message import parse

            with self.open() as file:
                beginning = file.read(_HEADERS)
            self._headers = parse(io.BytesIO(beginning[: split(beginning)]), headers_only=True)
        return self._headers

    def __repr__(self) -> str:
        return f"<Mail from {str(self.sender)!r} to {list(map(str, self.recipients))!r}, {self.size} octets>"


def connect_mail_handler(signals: Signals, handler: Handler, *, lmtp: bool) -> Handler:
    """Connect a handler that is called as ``(mail)``.

    :raises TypeError: it cannot be called so, or it is an ``async def`` or a generator.
    """
    check_callable(handler, "a handler of on_mail", ("mail",), "None or a Reply")
    receiver = _MailReceiver(handler)
    signals.on("message", receiver.accept)
    signals.on("received", receiver.receive_each if lmtp else receiver.receive)
    return handler


class _MailReceiver:
    """Keeps each message while it arrives, then has the handler decide."""

    def __init__(self, handler: Callable[[Mail], Verdict]) -> None:
        self._handler = self.__wrapped__ = handler  # the log names it, not the methods below

    def accept(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        """Accept the message, unless another handler has decided, and have the body flow into a spool."""
        if ack.decided and not ack.accepted:
            return
        spool = Spool()
        try:
            stream.pipe(spool, fields=False)
        except RuntimeError:
            name = handler_name(self._handler)
            raise RuntimeError(f"call server.on_mail({name}) before connecting handlers that read the body") from None
        message = session.notes[self] = _Message(spool)

        def end() -> None:
            if session.notes.get(self) is message:
                del session.notes[self]
            spool.close()

        stream.at_end(end)
        if not ack.decided:
            ack.accept()

    def receive(self, session: Session, ack: Ack) -> None:
        """Decide for the whole message."""
        if ack.decided and not ack.accepted:
            return
        verdict = self._ask(session)
        if isinstance(verdict, Mapping):
            raise self._wrong(verdict, "None or a Reply; replies for each recipient are LMTP's")
        self._decide(ack, verdict)

    def receive_each(self, session: Session, ack: Ack, recipient: Address) -> None:
        """LMTP: decide for one recipient; the handler is called for the first, and has decided for all."""
        if ack.decided and not ack.accepted:
            return
        message: _Message = session.notes[self]
        if not message.asked:
            # What is raised meanwhile is raised for the first recipient; the others are told that something was.
            message.asked, message.verdict = True, standard.LOCAL_ERROR
            try:
                message.verdict = self._checked(self._ask(session), session)
            except Reject as reject:
                message.verdict = Reply(reject.code, reject.message or "5.7.1 Message refused")
        verdict = message.verdict
        self._decide(ack, verdict.get(recipient) if isinstance(verdict, Mapping) else verdict)

    def _ask(self, session: Session) -> Verdict:
        stream = session.message
        assert stream is not None
        spool = session.notes[self].spool
        try:
            spool.finish()
            return self._handler(Mail(session, stream, spool))
        except OSError as error:
            reply = reply_to_failure(error)
            if reply is not standard.NO_STORAGE:
                raise
            logger.error("%s: %s: %s; replying 452", session.id, handler_name(self._handler), error)
            raise Reject(reply.code, f"{reply.enhanced} {reply.text}") from error

    def _checked(self, verdict: Verdict, session: Session) -> Verdict:
        """A mapping with a reply for an address that is no recipient is a mistake, and may lose mail."""
        if isinstance(verdict, Mapping):
            unknown = [str(key) for key in verdict if key not in session.to]
            if unknown:
                raise ValueError(f"{handler_name(self._handler)} replied for {unknown}, not among the recipients")
            for reply in verdict.values():
                if reply is not None and not isinstance(reply, Reply):
                    raise self._wrong(reply, "None or a Reply for each recipient")
        return verdict

    def _decide(self, ack: Ack, verdict: Any) -> None:
        """Make a decision of what the handler returned; where another handler has accepted, its reply stands."""
        if verdict is None:
            if not ack.decided:
                ack.accept()
            return
        if not isinstance(verdict, Reply):
            raise self._wrong(verdict, "None, a Reply, or in LMTP a mapping of recipients and replies")
        lines = verdict.lines
        if verdict.enhanced:
            lines = (f"{verdict.enhanced} {lines[0]}", *lines[1:])
        if verdict.code >= 400:
            # A next hop that closes its connection to us does not close ours to the client.
            raise Reject(451 if verdict.code == 421 else verdict.code, "\n".join(lines))
        if not ack.decided:
            ack.accept(verdict.code, lines)

    def _wrong(self, given: object, expected: str) -> TypeError:
        return TypeError(f"a handler of on_mail returns {expected}; {handler_name(self._handler)} returned {given!r}")


class _Message:
    """One message, and in LMTP what has been decided about it."""

    asked = False
    verdict: Verdict = None

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
