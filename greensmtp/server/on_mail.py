"""``server.on_mail``: calls a handler with each whole message, and replies with what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from greensmtp._callables import handler_name
from greensmtp._log import logger
from greensmtp.chain.validate import check_callable
from greensmtp.errors import Reject, reply_of
from greensmtp.protocol import canned
from greensmtp.protocol.address import Address
from greensmtp.protocol.reply import Reply
from greensmtp.session.ack import Ack
from greensmtp.session.body_pipes import reply_to_failure
from greensmtp.session.mail import Mail, Verdict
from greensmtp.session.session import Session
from greensmtp.session.signals import Signals
from greensmtp.session.spool import Spool
from greensmtp.session.stream import MessageStream

Handler = TypeVar("Handler", bound=Callable[..., Any])


def connect_mail_handler(signals: Signals, handler: Handler, *, lmtp: bool) -> Handler:
    """Connect a handler that is called as ``handler(mail)``.

    :raises TypeError: it cannot be called so, or it is an ``async def`` or a generator.
    """
    check_callable(handler, "a handler of on_mail", ("mail",), "None or a Reply")
    receiver = _MailReceiver(handler)
    signals.on("message", receiver.accept)
    signals.on("received", receiver.receive_each if lmtp else receiver.receive)
    return handler


class _MailReceiver:
    """Spools each message while it arrives, then calls the handler to decide."""

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
            # If the handler raises, that is raised for the first recipient; the others get 451.
            message.asked, message.verdict = True, canned.LOCAL_ERROR
            try:
                message.verdict = self._checked(self._ask(session), session)
            except Reject as reject:
                message.verdict = reply_of(reject, "5.7.1 Message refused")
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
            if reply.code != canned.NO_STORAGE.code:
                raise
            logger.error("%s: %s: %s; replying 452", session.log_id, handler_name(self._handler), error)
            raise Reject(reply.code, f"{reply.enhanced} {reply.text}") from error

    def _checked(self, verdict: Verdict, session: Session) -> Verdict:
        """Return the verdict if it is valid. A reply for an address that is no recipient could lose mail.

        :raises ValueError, TypeError: it is not valid.
        """
        if isinstance(verdict, Mapping):
            known = set(session.to)
            unknown = [str(key) for key in verdict if key not in known]
            if unknown:
                raise ValueError(f"{handler_name(self._handler)} replied for {unknown}, not among the recipients")
            for reply in verdict.values():
                if reply is not None and not isinstance(reply, Reply):
                    raise self._wrong(reply, "None or a Reply for each recipient")
        return verdict

    def _decide(self, ack: Ack, verdict: Any) -> None:
        """Decide the ack by what the handler returned. If another handler has accepted already, its reply stands."""
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
            # 421 from a next hop must not close the connection to the client.
            raise Reject(451 if verdict.code == 421 else verdict.code, "\n".join(lines))
        if not ack.decided:
            ack.accept(verdict.code, lines)

    def _wrong(self, given: object, expected: str) -> TypeError:
        return TypeError(f"a handler of on_mail returns {expected}; {handler_name(self._handler)} returned {given!r}")


class _Message:
    """One message, and in LMTP the verdict for all recipients."""

    asked = False
    verdict: Verdict = None

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
