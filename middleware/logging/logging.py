"""Logging: a line for every session and every transaction, and every command on request, without the secrets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, cast

from gevent.ssl import SSLSocket

from greensmtp.chain.chain import Proceed
from greensmtp.errors import ArgumentError
from greensmtp.middleware.logging import format as log_lines
from greensmtp.middleware.logging.output import attach
from greensmtp.protocol.command import (
    ACCEPT,
    CONNECT,
    DISCONNECT,
    END_OF_DATA,
    KNOWN_BUT_NOT_IMPLEMENTED,
    PARSERS,
    PSEUDO_COMMANDS,
    UNKNOWN,
    Command,
)
from greensmtp.protocol.log_text import LISTED, reply_text, shown
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

if TYPE_CHECKING:
    from greensmtp.session.stream import MessageStream

_KNOWN = PSEUDO_COMMANDS | KNOWN_BUT_NOT_IMPLEMENTED | frozenset(PARSERS)

#: In a session's notes: AUTH was refused, or a line was garbled that may have been AUTH. Clients have been seen to go
#: on with user name and password all the same, which makes unknown commands of them.
_GUARDED = "greensmtp.middleware.logging.logging: guarded"

#: Refused recipients that are kept for the transaction's line; their number is told besides.
_REFUSED = 20

#: The lines of a transaction and a session tell what these would.
_TOLD_ELSEWHERE = frozenset({ACCEPT, END_OF_DATA, DISCONNECT})


class Logging:
    """Logs every session and every transaction at ``level``, when it ends, and every command at DEBUG.

    Records carry their facts as attributes, for formatters that make JSON of them: ``event`` (``"session"``,
    ``"transaction"`` or ``"command"``), ``session``, ``peer``, ``seconds``, and

    - of a transaction, which ends with the reply to its message, with RSET, with the connection ...: ``tls``,
      ``cipher``, ``identity``, ``sender``, ``recipients`` (the first 100), ``recipient_count``, ``refused``,
      ``refused_count``, ``size``, ``outcome`` (accepted, partial, deferred, refused, abandoned, lost), ``reason`` (the
      verb or the end of the connection that cut it short), ``reply``, ``reply_text``, ``queue_id``, and in LMTP
      ``replies``, one for each recipient;
    - of a session: ``tls``, ``cipher``, ``greeting``, ``hostname``, ``identity``, ``messages``, ``recipient_count``,
      ``octets``, ``reason``, and ``reply`` and ``reply_text`` where it was turned away at the door;
    - of a command: ``verb``, ``argument``, ``reply``, ``reply_text``.

    What is behind AUTH is shown as ``***``, and so is every unknown command after an AUTH that was refused; answers to
    challenges do not pass through here at all. What a peer says is bounded, and escaped so that it neither ends a
    line nor passes for another field of it.

    :param logger: where to, or its name; ``greensmtp.session`` when not given.
    :param level: of what is logged once a session or a transaction: a number, or a name like ``"INFO"``.
    :param format: None: handlers and formatters are the program's own. ``"text"`` or ``"json"`` (an object a line):
        the logger gets a handler that writes to standard error, in a thread of its own; it shows what is of ``level``
        and above, and passes nothing on.
    :raises ValueError, TypeError: an argument cannot be right; the text says what it takes.
    :raises ModuleNotFoundError: ``"json"`` without python-json-logger; the text says how to install it.
    """

    def __init__(
        self,
        logger: logging.Logger | str | None = None,
        level: int | str = logging.INFO,
        format: Literal["text", "json"] | None = None,
    ) -> None:
        if logger is None or isinstance(logger, str):
            logger = logging.getLogger(logger or "greensmtp.session")
        if not isinstance(logger, logging.Logger):
            raise TypeError(f"logger takes a logging.Logger, or the name of one, not {logger!r}")
        self.logger = logger
        self.level = _check_level(level)
        self.format = format
        if format is not None:
            attach(logger, format, self.level)
        #: Where this is not wanted, nothing is. (A logger's answer may change while the server runs.)
        self._highest = max(self.level, logging.DEBUG)
        self._wanted = logger.isEnabledFor
        self._hooks = {
            ACCEPT: self._accept,
            CONNECT: self._connect,
            "HELO": self._greet,
            "EHLO": self._greet,
            "LHLO": self._greet,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "BDAT": self._data,
            END_OF_DATA: self._end_of_data,
            "RSET": self._reset,
            DISCONNECT: self._disconnect,
        }

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """See the command pass, and its reply come back."""
        verb = command.verb
        hook = self._hooks.get(verb)
        wanted = self._wanted
        if hook is None:
            if wanted(logging.DEBUG):
                return self._command(session, command, proceed)
            reply = proceed(session, command)
            _guard(session, command, reply)  # commands may be asked for in the middle of a session
            return reply
        if not wanted(self._highest):
            return proceed(session, command)
        if not wanted(logging.DEBUG) or verb in _TOLD_ELSEWHERE:
            return hook(session, command, proceed)
        return self._command(session, command, lambda session, command: hook(session, command, proceed))

    def __repr__(self) -> str:
        name = "" if self.logger.name == "greensmtp.session" else f"{self.logger.name!r}, "
        form = "" if self.format is None else f", format={self.format!r}"
        return f"Logging({name}level={logging.getLevelName(self.level)!r}{form})"

    # The session

    def _accept(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        watch = session.notes[self] = _Watch(perf_counter())
        reply = proceed(session, command)
        if reply.code >= 400:
            watch.turned_away = reply
        return reply

    def _connect(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        watch = self._watch(session)
        if watch.began is None:
            watch.began = perf_counter()
        watch.see_tls(session)
        reply = proceed(session, command)
        if reply.code >= 400:
            watch.turned_away = reply
        return reply

    def _greet(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        self._watch(session).see_tls(session)
        return self._reset(session, command, proceed)

    def _disconnect(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        watch, reason = self._watch(session), command.argument
        if watch.transaction is not None:
            self._end(session, watch, "abandoned" if reason == "quit" else "lost", reason)
        away = watch.turned_away
        facts = {
            **watch.facts(session, "session", watch.began),
            "greeting": session.greeting,
            "hostname": None if session.hostname is None else shown(session.hostname),
            "messages": session.messages_accepted,
            "recipient_count": watch.recipients,
            "octets": watch.octets,
            "reason": reason,
            "reply": None if away is None else away.code,
            "reply_text": None if away is None else reply_text(away),
        }
        self._emit(self.level, log_lines.session_text, facts)
        session.notes.pop(self, None)
        return reply

    # The transaction

    def _mail(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        began = perf_counter()
        if session.from_ is not None:
            return proceed(session, command)
        reply = proceed(session, command)
        if reply.code < 300:
            session.stage(self._begin, session, began)
        elif reply.code >= 400 and reply.code != 503 and command.error is None:
            watch = self._watch(session)
            watch.transaction = _Transaction(began, session, getattr(command, "address", ""))
            self._end(session, watch, _refusal(reply), None, reply)
        return reply

    def _begin(self, session: Session, began: float) -> None:
        """A transaction has begun, if nothing further outside has refused it."""
        if session.from_ is None:
            return
        watch = self._watch(session)
        if watch.transaction is not None:  # somebody has reset the session, and no command of the peer's
            self._end(session, watch, "abandoned", "MAIL")
        watch.transaction = _Transaction(began, session)

    def _rcpt(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        transaction = self._watch(session).transaction
        if transaction is not None:
            transaction.recipients = session.to  # it may have been put in the place of another list
            if reply.code >= 400:
                transaction.refuse(getattr(command, "address", None) or command.argument, reply)
        return reply

    def _data(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        watch = self._watch(session)
        if watch.transaction is None and session.from_ is not None:
            watch.transaction = _Transaction(perf_counter(), session)  # refused once, and tried again
        before = session.message
        try:
            reply = proceed(session, command)
        finally:
            # Where the peer is lost, or a chunk refused, the session has forgotten the body by the time it is told.
            transaction = watch.transaction
            if transaction is not None and session.message is not None:
                transaction.message = session.message
        if reply.code >= 400 and transaction is not None and transaction.recipients:
            if before is not None:
                over = command.verb == "BDAT"  # a later chunk; DATA between two chunks ends nothing
            else:
                over = session.message is None or not session.message.opened  # else the reply comes at the end
            if over:
                self._end(session, watch, _refusal(reply), None, reply)
        return reply

    def _end_of_data(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        watch = self._watch(session)
        transaction = watch.transaction
        if transaction is None:  # logging has been switched on since
            transaction = watch.transaction = _Transaction(perf_counter(), session)
        transaction.recipients = session.to
        reply = proceed(session, command)
        recipient = getattr(command, "recipient", None)
        if recipient is None:
            accepted = len(session.to) if reply.code < 300 else 0
            worst = reply
        else:
            transaction.replies.append((recipient, reply))
            if recipient is not session.to[-1]:
                return reply
            accepted = sum(each.code < 300 for _, each in transaction.replies)
            worst = max((each for _, each in transaction.replies), key=lambda each: each.code)
        watch.recipients += accepted
        outcome = _refusal(worst) if not accepted else "accepted" if worst.code < 300 else "partial"
        self._end(session, watch, outcome, None, worst)
        return reply

    def _reset(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        if self._watch(session).transaction is not None:
            session.stage(self._abandon, session, command.verb)
        return reply

    def _abandon(self, session: Session, verb: str) -> None:
        watch = self._watch(session)
        if watch.transaction is not None and session.from_ is None:
            self._end(session, watch, "abandoned", verb)

    def _end(
        self, session: Session, watch: _Watch, outcome: str, reason: str | None, reply: Reply | None = None
    ) -> None:
        """One line for the transaction, which is over."""
        transaction = watch.transaction
        assert transaction is not None
        watch.transaction = None
        size = 0 if transaction.message is None else transaction.message.size
        watch.octets += size
        if reply is None and not transaction.recipients and transaction.refused:
            reply = transaction.refused[-1][1]  # given up, because nobody was left to send to
            outcome = _refusal(reply)
        recipients = transaction.recipients
        facts = {
            **watch.facts(session, "transaction", transaction.began),
            "sender": shown(transaction.sender),
            "recipients": [shown(each) for each in recipients[:LISTED]],
            "recipient_count": len(recipients),
            "refused": log_lines.replies(transaction.refused) if transaction.refused else [],
            "refused_count": transaction.refused_count,
            "size": size,
            "outcome": outcome,
            "reason": reason,
            "reply": None,
            "reply_text": None,
            "queue_id": None,
        }
        if reply is not None:
            facts["reply"] = reply.code
            facts["reply_text"] = reply_text(reply)
            facts["queue_id"] = log_lines.queue_id(reply)
        if transaction.replies:
            facts["replies"] = log_lines.replies(transaction.replies[:LISTED])
            facts["queue_id"] = log_lines.queue_id(*(each for _, each in transaction.replies))
        self._emit(self.level, log_lines.transaction_text, facts)

    # The command

    def _command(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """One line for the command, behind its reply."""
        verb, argument = command.verb, command.argument
        if command.is_secret:
            verb, argument = "AUTH", argument and "***"
        elif verb not in _KNOWN and _GUARDED in session.notes:
            verb, argument = UNKNOWN, "***"
        began = perf_counter()
        reply = proceed(session, command)
        _guard(session, command, reply)
        facts = {
            "event": "command",
            "session": session.id,
            "peer": _peer(session),
            "seconds": round(perf_counter() - began, 6),
            "verb": shown(verb),
            "argument": shown(argument),
            "reply": reply.code,
            "reply_text": reply_text(reply),
        }
        self._emit(logging.DEBUG, log_lines.command_text, facts)
        return reply

    # All three

    def _watch(self, session: Session) -> _Watch:
        notes = session.notes
        watch: _Watch | None = notes.get(self)
        if watch is None:  # no ACCEPT: logging has been switched on since
            watch = notes[self] = _Watch(None)
        return watch

    def _emit(self, level: int, text: Callable[[dict[str, Any]], str], facts: dict[str, Any]) -> None:
        logger = self.logger
        if not self._wanted(level):
            return
        # As logger.log does it, but without a walk up the stack to find out that it was this line.
        record = logger.makeRecord(logger.name, level, __file__, 0, log_lines.Line(text, facts), (), None, "Logging")
        record.__dict__.update(facts)
        logger.handle(record)


class _Watch:
    """What is known of one session, beyond what the session knows."""

    __slots__ = ("began", "cipher", "octets", "recipients", "tls", "transaction", "turned_away")

    def __init__(self, began: float | None) -> None:
        self.began = began
        self.tls: str | None = None
        self.cipher: str | None = None
        self.turned_away: Reply | None = None
        self.transaction: _Transaction | None = None
        #: Of accepted messages.
        self.recipients = 0
        #: Of all messages.
        self.octets = 0

    def see_tls(self, session: Session) -> None:
        """Ask the socket, while it is there: at the end of the session it has forgotten."""
        if session.tls and self.tls is None:
            socket = cast(SSLSocket, session.socket)
            self.tls = socket.version() or "TLS"
            self.cipher = (socket.cipher() or (None,))[0]

    def facts(self, session: Session, event: str, began: float | None) -> dict[str, Any]:
        """What records of sessions and transactions have in common."""
        return {
            "event": event,
            "session": session.id,
            "peer": _peer(session),
            "seconds": None if began is None else round(perf_counter() - began, 6),
            # (TLS that nobody has greeted over is called TLS.)
            "tls": self.tls or ("TLS" if session.tls else None),
            "cipher": self.cipher,
            "identity": None if session.identity is None else _identity(session.identity),
        }


class _Transaction:
    """What is known of one transaction; at its end the session has forgotten it."""

    __slots__ = ("began", "message", "recipients", "refused", "refused_count", "replies", "sender")

    def __init__(self, began: float, session: Session, sender: str | None = None) -> None:
        self.began = began
        self.sender = (session.from_ or "") if sender is None else sender
        self.recipients = session.to
        self.message: MessageStream | None = session.message
        self.refused: list[tuple[str, Reply]] = []
        self.refused_count = 0
        #: LMTP's.
        self.replies: list[tuple[str, Reply]] = []

    def refuse(self, recipient: str, reply: Reply) -> None:
        """RCPT was refused."""
        self.refused_count += 1
        if len(self.refused) < _REFUSED:
            self.refused.append((recipient, reply))


def _refusal(reply: Reply) -> str:
    return "refused" if reply.code >= 500 else "deferred"


def _peer(session: Session) -> str:
    return shown(session.peer_host or "unix")


def _identity(identity: Any) -> str:
    """Who has authenticated: the name alone, whatever else the identity holds."""
    return shown(getattr(identity, "authcid", identity))


def _guard(session: Session, command: Command, reply: Reply) -> None:
    """Passwords may follow."""
    if command.verb == UNKNOWN or (command.is_secret and not reply.is_positive):
        session.notes[_GUARDED] = True


def _check_level(level: int | str) -> int:
    names = logging.getLevelNamesMapping()
    if isinstance(level, str) and level.upper() in names:
        level = names[level.upper()]
    if isinstance(level, bool) or not isinstance(level, int) or level < 1:
        raise ArgumentError("level", f"takes a number of at least 1, or a name like 'INFO' or 'WARNING', not {level!r}")
    return level
