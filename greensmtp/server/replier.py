"""From the chain's reply to the client: staged changes take effect, the reply is written, errors are counted.

The rules of this file:

- What a command changes is staged (``Session.stage``), and takes effect only if the reply to the client is positive. If
  not, nothing has changed.
- Client and server agree about the transaction. A positive reply to a verb of ``PROMISES`` that changed nothing (a
  middleware has answered by itself) drops the transaction, or a recipient would be lost or get the wrong message.
- A method that returns a bool returns False if the reply was the last one of the connection.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from gevent import Timeout

from greensmtp._callables import handler_name
from greensmtp._log import logger
from greensmtp.errors import ConnectionLost, Reject, reply_of
from greensmtp.protocol import canned
from greensmtp.protocol.command import Command, EndOfData
from greensmtp.protocol.reply import Reply
from greensmtp.server.supervised import UNSEEN, Supervised
from greensmtp.session import Session
from greensmtp.session.ack_state import ENDINGS

#: Verbs whose positive reply tells the client that its greeting or its transaction has changed.
PROMISES: Final = frozenset({"HELO", "EHLO", "LHLO", "MAIL", "RCPT", "RSET"})


#: Key in the transaction's notes (LMTP): the indexes in ``session.to`` of recipients that a middleware has added to a
#: RCPT.
_FURTHER: Final = object()


def further_recipients(session: Session) -> Collection[int]:
    """Return the indexes in ``session.to`` of recipients that have no reply of their own (LMTP)."""
    notes = session._transaction_notes
    return () if notes is None else notes.get(_FURTHER, ())


class Replier(Supervised):
    """One connection: what becomes of a reply."""

    __slots__ = ()

    def begin_command(self, command: Command) -> None:
        """Note that handlers and middleware handle this command from now on."""
        self.current = command
        self.spent = UNSEEN
        self.identity_before = self.session.identity
        self.session._staged = ()

    def error_reply(self, error: BaseException, verb: str) -> Reply:
        """Return the reply for what the chain has raised and what is no Exception; raise all else again.

        gevent's Timeout and asyncio's CancelledError are such. They are caught here rather than in the chain, since
        whatever raises them, anywhere in the chain, may mean to catch them further out. Call it in an ``except`` block.
        """
        if isinstance(error, (Exception, *ENDINGS)):
            raise error
        kind = "gevent.Timeout" if isinstance(error, Timeout) else type(error).__name__
        logger.exception("%s: uncaught %s while handling %s; replying 451", self.session.log_id, kind, verb)
        return canned.LOCAL_ERROR

    # What a command changes

    def settle(self, reply: Reply) -> Reply:
        """Make the staged changes if the reply is positive, else forget them. Return the reply to write."""
        if 300 <= reply.code < 400:
            logger.error("%s: unexpected intermediate reply %r; replying 451", self.session.log_id, reply)
            reply = canned.LOCAL_ERROR
        if reply.code >= 300:
            self.forget_changes()
        elif self.session._staged or (self.current is not None and self.current.verb in PROMISES):
            return self.take_effect(reply)
        return reply

    def forget_changes(self) -> None:
        """Forget what the refused command has staged, and an identity that was set directly.

        An identity that was given up stays given up.
        """
        session = self.session
        session._staged = ()
        if session.identity is not self.identity_before and session.identity is not None:
            session.identity = self.identity_before

    def take_effect(self, reply: Reply) -> Reply:
        """Make the changes that the current command has staged. Return the reply to write.

        If a change raises, that is 451 or its Reject, and the transaction is dropped.
        """
        session = self.session
        command = self.current
        if self.has_left or command is None:  # the handler came back after its connection had been closed
            raise ConnectionLost("closed")
        changes, greeting = session._changes, (session.greeting, session.hostname)
        recipients = len(session.to)
        staged, session._staged = session._staged, ()
        for change, arguments in staged:
            try:
                said = change(*arguments)
                if isinstance(said, Reply) and said.code == 250 and isinstance(reply, canned.QueuedAs):
                    reply = said  # the next hop's reply
            except ENDINGS:
                raise
            except BaseException as error:
                if error is self.transport.close_error:
                    raise  # no client is left to reply to
                if isinstance(error, Reject):
                    reply = reply_of(error)
                else:
                    logger.exception(
                        "%s: %s, staged at %s, raised; replying 451",
                        session.log_id,
                        handler_name(change),
                        command.shown_verb,
                    )
                    reply = canned.LOCAL_ERROR
                session.greeting, session.hostname = greeting
                self.forget_changes()
                if not (isinstance(command, EndOfData) and command.recipient is not None):
                    # (In LMTP, the transaction goes on for the other recipients.)
                    self._drop_transaction(reply)
                return reply
        if self.routes.lmtp and len(session.to) > recipients + 1:
            # A middleware has made several recipients of one RCPT, to which the client expects one reply.
            session.transaction_notes.setdefault(_FURTHER, set()).update(range(recipients + 1, len(session.to)))
        if session._changes == changes and command.verb in PROMISES:
            logger.warning(
                "%s: %s was answered %s, but not by the server's own action; the transaction is dropped",
                session.log_id,
                command.shown_verb,
                reply.code,
            )
            self._drop_transaction(canned.LOCAL_ERROR)
        return reply

    def _drop_transaction(self, reply: Reply) -> None:
        stream = self.session.message
        if stream is not None and stream.opened:
            stream.fail(reply)  # the client gets the reply at the end of the body
        else:
            self.session.reset()

    # Replies

    def answer(self, command: Command, reply: Reply) -> bool:
        """Settle a reply, write it, and count it."""
        return self.tell(command, self.settle(reply))

    def tell(self, command: Command, reply: Reply) -> bool:
        """Write a reply that has been settled, and count it."""
        if not self.say(reply):
            return False
        if reply.code >= 500:
            return self.count_error()
        return reply.code < 300 or self._count_deferral(command)

    def say(self, reply: Reply) -> bool:
        """Write a reply; note a 5xx as an error."""
        self.transport.write(reply.wire or reply.encode())
        if reply.code < 300:
            return True
        if reply.code >= 500:
            self.session.errors += 1
        return not reply.ends_connection

    # Counts

    def count_error(self) -> bool:
        """Return False, with a 421, if there have been ``max_errors``."""
        if self.session.errors < self.routes.limits.max_errors:
            return True
        self.closing = "errors"
        self.transport.write(canned.TOO_MANY_ERRORS.encode())
        return False

    def count_idle(self) -> bool:
        """Count a command that brings no message nearer; return False, with a 421, beyond ``max_idle_commands``."""
        session = self.session
        session._idle_commands += 1
        if session._idle_commands <= self.routes.limits.max_idle_commands:
            return True
        self.closing = "commands"
        self.transport.write(canned.TOO_MANY_COMMANDS.encode())
        return False

    def _count_deferral(self, command: Command) -> bool:
        """Count a 4xx reply as an idle command, so that a client cannot have it again and again.

        A surplus RCPT behind an accepted one is not counted until there are ``max_recipients``, and is an error then:
        the client must be able to send to the recipients that were accepted.
        """
        session = self.session
        if command.verb == "RCPT" and session.to:
            self.deferred_recipients += 1
            if self.deferred_recipients <= self.routes.limits.max_recipients:
                return True
            session.errors += 1
            return self.count_error()
        return self.routes.route(command).idle or self.count_idle()  # (an idle command is counted as such)
