"""What DATA, BDAT and the end of a message do: the body is offered to the receivers, and they decide. No sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from operator import call

from greensmtp.protocol import canned
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import ChunkCommand, Command, EndOfData
from greensmtp.protocol.content_checks import LineLength, NoBareNewlines, NormalNewlines
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import State
from greensmtp.server.limits import Limits
from greensmtp.session import Session
from greensmtp.session.ack_rules import UsualReply
from greensmtp.session.emitter import Emitter
from greensmtp.session.interfaces import Body, BodyCheck
from greensmtp.session.stream import ServedStream


class MessageActions:
    """The part of the dispatcher that deals with messages. One for each server."""

    def __init__(self, limits: Limits, emitters: Mapping[str, Emitter]) -> None:
        self._message, self._received = emitters["message"], emitters["received"]
        self._max_size = inf if limits.max_message_size is None else limits.max_message_size
        #: Whether newlines are normalized, and factories of the checks of a body, unless it is BINARYMIME.
        self._normalizes = limits.bare_newlines == "normalize"
        self._checks: list[Callable[[], BodyCheck]] = []
        if limits.bare_newlines == "reject":
            self._checks.append(NoBareNewlines)
        if limits.max_body_line_length is not None:
            self._checks.append(partial(LineLength, limits.max_body_line_length))

    def _data(self, session: Session, command: Command) -> Reply:
        sender = session.from_
        # (Not `if sender`: the null sender is an empty str, and may have parameters.)
        if sender is not None and sender.parameters and _is_binary(sender):
            return canned.BINARY_NEEDS_BDAT
        if session.message is not None and session.message.opened:
            return canned.START_MAIL  # a middleware proceeds again; the client is sending already
        return self._take_message(session, session._connection.data_body(), binary=False)

    def _bdat(self, session: Session, command: ChunkCommand) -> Reply:
        accepted = Reply(250, f"2.0.0 {command.size} octets received")
        if session.state is State.CHUNKS:
            return accepted
        body = session._connection.chunked_body(command)
        session.state = State.CHUNKS
        reply = self._take_message(session, body, binary=_is_binary(session.from_))
        if reply.code == 354:
            return accepted
        session.state = State.RECIPIENTS  # the continuation drops the transaction, once each recipient has its reply
        return reply

    def _take_message(self, session: Session, body: Body, *, binary: bool) -> Reply:
        """Offer the message to the receivers.

        :param binary: pass the body on unchanged and unchecked, except for its size.
        :return: 354 if the body flows or has flowed, and END-OF-DATA comes next; else a refusal.
        """
        if session._wrap_body is not None:
            body = session._wrap_body(body)
        newlines: NormalNewlines | None = None
        checks: tuple[BodyCheck, ...] = ()
        if not binary:
            if self._normalizes:
                newlines = NormalNewlines()
            if self._checks:
                checks = tuple(map(call, self._checks))
        stream = session.message = ServedStream(session, body, self._max_size, checks, newlines)
        reply = self._message.collect(session, stream.open, stream=stream)
        assert reply is not None
        if reply.code == 354:
            if not stream.opened:
                stream.open(reply)  # accepted in another greenlet; 354 is sent in this one
        elif stream.opened:
            # The receiver failed after it had accepted. The client is sending, and gets the reply at the end.
            stream.fail(reply)
        else:
            stream.end()
            session.message = None
            return reply
        return canned.START_MAIL

    def _end_of_data(self, session: Session, command: EndOfData) -> Reply:
        stream = session.message
        assert stream is not None
        if stream.failure is not None:
            return stream.failure
        emitter = self._received
        if not emitter.own.receivers and not emitter.shared.receivers:
            return canned.QueuedAs(session.transaction_id)
        fields = {} if command.recipient is None else {"recipient": command.recipient}
        reply = emitter.collect(session, **fields)
        assert reply is not None
        return canned.QueuedAs(session.transaction_id) if isinstance(reply, UsualReply) else reply


def _is_binary(sender: Address | None) -> bool:
    """Return True if the client has announced a body that is not made of lines (RFC 3030 section 3)."""
    return sender is not None and (sender.parameters.get("BODY") or "").upper() == "BINARYMIME"
