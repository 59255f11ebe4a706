"""Recorder, the base class of Logging: keep a record of each session and transaction, and log it at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from time import perf_counter
from typing import Final

from greensmtp._compiled import mypyc_attr
from greensmtp.chain.chain import Proceed
from greensmtp.log_writer import sole_handler
from greensmtp.middleware._message_replies import note_reply, outcome_of, told_replies
from greensmtp.middleware.logging.facts import peer_of, seconds_since
from greensmtp.middleware.logging.format import Line, auth_text, command_text, session_text
from greensmtp.middleware.logging.records import SessionRecord, auth_facts, session_facts
from greensmtp.middleware.logging.redaction import note_secrets, shown_command
from greensmtp.middleware.logging.transaction import TransactionRecord
from greensmtp.protocol.command import ACCEPT, CONNECT, DISCONNECT, END_OF_DATA, Command
from greensmtp.protocol.log_text import reply_text
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

#: Handles one verb and updates the session's record; called like a middleware.
Hook = Callable[[Session, Command, Proceed], Reply]

#: Verbs without their own line: the lines of transaction and session have the same facts.
_WITHOUT_LINE: Final = frozenset({ACCEPT, END_OF_DATA, DISCONNECT})


@mypyc_attr(allow_interpreted_subclasses=True)
class Recorder:
    """The middleware behind Logging. Its arguments must be checked already."""

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self.logger = logger
        self.level = level
        #: If this level is disabled, nothing is logged. A logger's level may change while the server runs.
        self._highest = max(self.level, logging.DEBUG)
        self._is_enabled = logger.isEnabledFor
        self._hooks: dict[str, Hook] = {
            ACCEPT: self._accept,
            CONNECT: self._connect,
            "HELO": self._hello,
            "EHLO": self._hello,
            "LHLO": self._hello,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "BDAT": self._data,
            END_OF_DATA: self._end_of_data,
            "AUTH": self._auth,
            "RSET": self._reset,
            DISCONNECT: self._disconnect,
        }

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass the command on; log it, and the transaction or session that it ends."""
        hook = self._hooks.get(command.verb, _other)
        if hook is not _other and not self._is_enabled(self._highest):
            return proceed(session, command) if command.verb != "AUTH" else _other(session, command, proceed)
        if self._is_enabled(logging.DEBUG) and command.verb not in _WITHOUT_LINE:
            return self._command(session, command, proceed, hook)
        return hook(session, command, proceed)

    # The session

    def _accept(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        record = session.notes[self] = SessionRecord(perf_counter())
        reply = proceed(session, command)
        if reply.code >= 400:
            record.refusal = reply
        return reply

    def _connect(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        record = self._record(session)
        if record.began is None:
            record.began = perf_counter()
        record.note_tls(session)
        reply = proceed(session, command)
        if reply.code >= 400:
            record.refusal = reply
        return reply

    def _hello(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        self._record(session).note_tls(session)
        return self._reset(session, command, proceed)

    def _disconnect(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        record, reason = self._record(session), command.argument
        if record.transaction is not None:
            self._end(session, record, "abandoned" if reason == "quit" else "lost", reason)
        level = min(self.level, logging.DEBUG) if _is_of_proxy(session, record, reason) else self.level
        if self._is_enabled(level):
            self._emit(level, Line(session_text, session_facts(session, record, reason)))
        session.notes.pop(self, None)
        return reply

    # The transaction

    def _mail(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        if session.from_ is not None:
            return proceed(session, command)
        began = perf_counter()
        reply = proceed(session, command)
        if reply.code < 300:
            session.stage(self._begin, session, began)
        elif reply.code >= 400 and reply.code != 503 and command.error is None:
            record = self._record(session)
            record.transaction = TransactionRecord(began, session, getattr(command, "address", ""))
            self._end(session, record, outcome_of(reply), None, reply)
        return reply

    def _begin(self, session: Session, began: float) -> None:
        """Begin a transaction, unless a middleware has answered MAIL without the server."""
        if session.from_ is None:
            return
        record = self._record(session)
        if record.transaction is not None:  # a handler has reset the session; the client has sent no RSET
            self._end(session, record, "abandoned", "MAIL")
        record.transaction = TransactionRecord(began, session)

    def _rcpt(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        transaction = self._record(session).transaction
        if transaction is not None:
            transaction.recipients = session.to  # the session may have replaced its list
            if reply.code >= 400:
                transaction.refuse(getattr(command, "address", None) or command.argument, reply)
        return reply

    def _data(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        record = self._record(session)
        if record.transaction is None and session.from_ is not None:
            record.transaction = TransactionRecord(perf_counter(), session)  # DATA was refused, and is tried again
        before = session.message
        try:
            reply = proceed(session, command)
        finally:
            # When the client is lost, or a chunk refused, the session forgets the body before the transaction is
            # logged.
            transaction = record.transaction
            if transaction is not None and session.message is not None:
                transaction.message = session.message
        if reply.code >= 400 and transaction is not None and transaction.recipients:
            if before is not None:
                over = command.verb == "BDAT"  # a later chunk; DATA between two chunks ends nothing
            else:
                over = session.message is None or not session.message.opened  # else the reply comes at the end
            if over:
                self._end(session, record, outcome_of(reply), None, reply)
        return reply

    def _end_of_data(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        record = self._record(session)
        transaction = record.transaction
        if transaction is None:  # logging has been enabled since
            transaction = record.transaction = TransactionRecord(perf_counter(), session)
        transaction.recipients = session.to
        reply = proceed(session, command)
        note_reply(session, transaction.replies, reply, partial(self._end_message, session, record))
        return reply

    def _end_message(self, session: Session, record: SessionRecord) -> None:
        """Log a transaction whose message has been answered, once the client has been told all replies."""
        transaction = record.transaction
        assert transaction is not None
        replies = told_replies(session, transaction.replies)
        transaction.replies = list(replies)
        recipients = len(transaction.recipients)
        told = list(filter(None, replies))
        if len(told) < (recipients if session.server.lmtp else 1):
            return  # the connection has ended, or an outer middleware has refused the message
        if session.server.lmtp:
            worst = max(told, key=attrgetter("code"))
            accepted = sum(reply.code < 300 for reply in told)
        else:
            worst = told[0]
            accepted = recipients if worst.code < 300 else 0
        record.recipients += accepted
        self._end(session, record, "partial" if accepted and worst.code >= 300 else outcome_of(worst), None, worst)

    def _reset(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        if self._record(session).transaction is not None:
            session.stage(self._abandon, session, command.verb)
        return reply

    def _abandon(self, session: Session, verb: str) -> None:
        record = self._record(session)
        if record.transaction is not None and session.from_ is None:
            self._end(session, record, "abandoned", verb)

    def _end(
        self, session: Session, record: SessionRecord, outcome: str, reason: str | None, reply: Reply | None = None
    ) -> None:
        """Log a transaction that is over."""
        transaction = record.transaction
        assert transaction is not None
        record.transaction = None
        if reply is None and not transaction.recipients and transaction.refused:
            reply = transaction.refused[-1][1]  # given up: all recipients were refused
            outcome = outcome_of(reply)
        transaction.end(session, outcome, reason, reply, tls=record.tls, cipher=record.cipher)
        record.size += transaction.size
        if self._is_enabled(self.level):
            self._emit(self.level, transaction)

    # The commands

    def _auth(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        began = perf_counter()
        reply = _other(session, command, proceed)
        if reply.code >= 400 and self._is_enabled(self.level):
            self._emit(self.level, Line(auth_text, auth_facts(session, began, reply)))
        return reply

    def _command(self, session: Session, command: Command, proceed: Proceed, hook: Hook) -> Reply:
        """Log a command with its reply."""
        verb, argument = shown_command(session, command)
        transaction = session.transaction_id if verb == "MAIL" or session.from_ is not None else None
        began = perf_counter()
        reply = hook(session, command, proceed)
        facts = {
            "event": "command",
            "session": session.id,
            "transaction": transaction,
            "peer": peer_of(session),
            "seconds": seconds_since(began),
            "verb": verb,
            "argument": argument,
            "reply": reply.code,
            "reply_text": reply_text(reply),
        }
        self._emit(logging.DEBUG, Line(command_text, facts))
        return reply

    # Records

    def _record(self, session: Session) -> SessionRecord:
        notes = session.notes
        try:
            record: SessionRecord = notes[self]
        except KeyError:  # no ACCEPT: logging has been enabled since
            record = notes[self] = SessionRecord(None)
        return record

    def _emit(self, level: int, event: Line | TransactionRecord) -> None:
        logger = self.logger
        handler = sole_handler(logger, level)
        if handler is not None:
            handler.write(logger.name, level, event)
            return
        # As logger.log, without its search of the stack for this line.
        record = logger.makeRecord(logger.name, level, __file__, 0, event, (), None, "Logging")
        record.__dict__.update(event.facts())
        logger.handle(record)


def _is_of_proxy(session: Session, record: SessionRecord, reason: str) -> bool:
    """Return whether a session was a proxy's own, without mail: a health check, or what came before XCLIENT."""
    proxy = session.proxy
    is_local = proxy is not None and (proxy.is_local or proxy.source is None)
    return (is_local or reason == "xclient") and not session.messages_accepted and record.refusal is None


def _other(session: Session, command: Command, proceed: Proceed) -> Reply:
    """The hook of all other verbs. DEBUG may be enabled in the middle of a session, so secrets are always noted."""
    reply = proceed(session, command)
    note_secrets(session, command, reply)
    return reply
