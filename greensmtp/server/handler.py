"""One connection from banner to close: read a command, pass it through the chain, write the reply."""

from __future__ import annotations

import ssl
import traceback
from collections.abc import Mapping
from typing import Any, Protocol

from gevent import GreenletExit, Timeout, getcurrent, spawn_raw

from greensmtp._callables import handler_name
from greensmtp._log import logger
from greensmtp.errors import ConnectionLost, IncompleteMessage, MalformedAnswer, Reject, TransactionReset, reply_of
from greensmtp.protocol import canned
from greensmtp.protocol.command import (
    ACCEPT,
    CONNECT,
    DISCONNECT,
    END_OF_DATA,
    UNKNOWN,
    ChunkCommand,
    Command,
    EndOfData,
    is_foreign,
    parse_command,
)
from greensmtp.protocol.line_reader import BadLine
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import State
from greensmtp.server.body import ChunkedBody, DataBody, skip
from greensmtp.server.places import client_key
from greensmtp.server.routes import Continuation, Routes
from greensmtp.server.transport import Connection
from greensmtp.session import Change, ServerInfo, Session
from greensmtp.session.ack import ENDINGS, HandlerTimeout
from greensmtp.session.stream import MessageStream

#: Lines that need no parsing.
_LONE = {verb.encode(): Command(verb) for verb in ("DATA", "RSET", "NOOP", "QUIT")}

#: SMTP's, which is the same for every message.
_END_OF_DATA = EndOfData()

#: What a peer that is dropped is told, by ConnectionLost's reason.
_FAREWELLS = {
    "timeout": canned.TIMED_OUT,
    "slow": canned.TOO_SLOW,
    "shutdown": canned.SHUTTING_DOWN,
    "displaced": canned.DISPLACED,
    "foreign": canned.NOT_SMTP,
}

#: Verbs whose positive reply tells the client that its greeting or its transaction has changed.
_PROMISES = frozenset({"HELO", "EHLO", "LHLO", "MAIL", "RCPT", "RSET"})

#: What is staged before a command is handled.
_NOTHING: tuple[Change, ...] = ()

#: ``spent`` before a sweep has seen the command being handled.
_UNSEEN = -1.0

#: The key in the transaction's notes of the recipients that a middleware has added to a RCPT: their places in ``to``.
_FURTHER = object()

_ELSEWHERE = (
    "a message is taken in the connection's own greenlet, and in no other: call proceed there for DATA and BDAT"
)

#: Seconds after a HandlerTimeout until the next one, where the handlers go on, and how many they get.
_GRACE = 5.0
_THROWS = 3

#: Seconds to get a farewell to a peer that may not be reading.
_FAREWELL_TIMEOUT = 2.0


class Owner(ServerInfo, Protocol):
    """What a connection needs of its server: its places, and to be told how far the connection is."""

    def has_arrived(self, conversation: ConnectionHandler) -> None:
        """ACCEPT has been answered."""

    def give_place(self, conversation: ConnectionHandler) -> bool:
        """Give it one of the ``max_connections``."""

    def take_place_back(self, conversation: ConnectionHandler) -> None:
        """It no longer counts for ``max_connections``."""

    def let_linger(self, conversation: ConnectionHandler) -> None:
        """It has been told to go, and waits for its client."""

    def forget(self, conversation: ConnectionHandler) -> None:
        """It is over; DISCONNECT comes next."""

    def gone(self, conversation: ConnectionHandler) -> None:
        """Nothing of it is left."""


class ConnectionHandler:
    """One connection's greenlet: the `Connection` of its session."""

    __slots__ = (
        "_deferred_recipients",
        "_dismissed",
        "_has_left",
        "_identity",
        "_is_storing",
        "_next",
        "_pending",
        "_program",
        "_quit",
        "_server",
        "_throws",
        "_tls_first",
        "address",
        "connection",
        "current",
        "greenlet",
        "has_place",
        "session",
        "spent",
    )

    def __init__(self, server: Owner, program: Routes, socket: Any, peer: Any, *, tls_first: bool) -> None:
        self._server = server
        self._program = program
        self._tls_first = tls_first
        self.connection = Connection(socket, program.limits, program.line_length, program.line_limit)
        self.session = Session(server, self, peer, program.dispatcher.emitters)
        #: What it is counted by among the server's connections.
        self.address = client_key(peer)
        #: It counts for ``max_connections``.
        self.has_place = False
        #: The reason that it is to be closed for, as soon as it waits for its client; "": it is not.
        self._dismissed = ""
        #: Under implicit TLS nothing can be said before the handshake.
        self.connection.mute = tls_first and not self.connection.encrypted
        #: RCPTs that got a 4xx behind an accepted one, since the last accepted message.
        self._deferred_recipients = 0
        #: A command that was read while a body was expected, and ended it.
        self._next: Command | None = None
        self._quit = False
        #: The reply that the chunk being read will get at its end.
        self._pending: Reply | None = None
        #: The greenlet, until DISCONNECT has been handled.
        self.greenlet: Any = None
        #: The command that handlers and middleware are handling; None: none. Seconds that they have spent on it, as far
        #: as the sweep has seen; how many times it has told them to stop.
        self.current: Command | None = None
        self.spent = _UNSEEN
        self._throws = 0
        #: The session's identity before that command.
        self._identity: Any = None
        #: What the message has staged is taking effect: a delivery may be past its point of no return.
        self._is_storing = False
        #: DISCONNECT has come.
        self._has_left = False

    def run(self) -> None:
        """Speak, to the end. Raises nothing."""
        connection = self.connection
        connection.begin()
        self.greenlet = getcurrent()
        reason, linger = "error", False
        try:
            if self._admit():
                if connection.encrypted:  # it was when it was adopted
                    self._note_tls()
                elif self._tls_first:
                    self._start_tls()
                if self._greet():
                    self._converse()
                # A client that says QUIT closes; others have been told to go, and may be in the middle of something.
                reason, linger = ("quit", False) if self._quit else ("refused", True)
            else:
                reason = "refused"
        except ConnectionLost as lost:
            reason = lost.reason
            linger = self._say_farewell(reason)
            logger.debug("%s: connection lost: %s", self.session.id, reason)
        except GreenletExit:
            reason = self._dismissed or "shutdown"
            linger, self._dismissed = bool(self._dismissed), ""
        except KeyboardInterrupt:
            raise
        except BaseException:  # Expired, too, where another greenlet has waited with this session
            logger.exception("%s: the conversation failed; connection closed", self.session.id)
        finally:
            self.current = None
            try:
                if linger:
                    self._server.let_linger(self)
                connection.close(linger=linger)
            finally:  # whatever cuts the lingering short
                self._leave(reason)
                if self.greenlet is None:
                    del self.session  # which knows this one, and may be kept: no cycle is left to the garbage collector

    def _leave(self, reason: str) -> None:
        """Free the place of the connection, and have the stack handle DISCONNECT, once."""
        if self._has_left:
            return
        self._has_left = True
        # First of all, so that no handler that hangs holds the place.
        self._server.forget(self)
        self.greenlet = getcurrent()
        session, command = self.session, Command(DISCONNECT, reason)
        try:
            self._handle(command)
            session.reset()
            self._program.disconnect(session, command)
        except ENDINGS:
            raise
        except BaseException:
            logger.exception("%s: at the end of the connection", session.id)
        finally:
            self.greenlet = self.current = self._identity = None
            session._disconnect_receivers()
            self._server.gone(self)

    def _say_farewell(self, reason: str) -> bool:
        """Tell a peer that is dropped why, if it can be told."""
        if self.connection.mute:
            return False
        farewell = _FAREWELLS.get(reason)
        if farewell is None:
            return reason == "refused"  # told already
        self.connection.write(farewell.encode())
        try:
            self.connection.flush(_FAREWELL_TIMEOUT)
        except ConnectionLost:
            return False
        return True

    def look(self, now: float, elapsed: float) -> None:
        """The server's sweep comes by: is the peer late, or are the handlers?"""
        if self.greenlet is None:
            return  # it is over
        decision = self.session._ack_state
        if self.connection.timeout:
            if self._dismissed:
                self.dismiss(self._dismissed)
                return
            self.connection.look(now, elapsed)
            if decision is not None:
                decision.since = 0.0  # while the peer is waited for, the receivers cannot help it
            return
        limits = self._program.limits
        if self.spent == _UNSEEN:
            self.spent = 0.0
            self._throws = 0
        elif decision is None or not decision.waiting:  # an ack that is decided elsewhere has ack_timeout alone
            self.spent += elapsed
        if decision is not None and decision.is_late(now, limits.ack_timeout):
            decision.since += min(limits.ack_timeout, _GRACE)
            self._interrupt("ack_timeout", limits.ack_timeout)
        elif self.spent > limits.handler_timeout and self.current is not None:
            self.spent -= min(limits.handler_timeout, _GRACE)
            self._interrupt("handler_timeout", limits.handler_timeout)

    def _interrupt(self, limit: str, seconds: float) -> None:
        """Tell handlers and middleware to stop; leave those that do not stop to themselves."""
        verb = "?" if self.current is None else self.current.shown_verb
        self._throws += 1
        if self._throws <= _THROWS:
            self.greenlet.throw(HandlerTimeout(limit, seconds, verb))
            return
        where = "".join(traceback.format_stack(self.greenlet.gr_frame)).rstrip()
        logger.error(
            "%s: what handles %s goes on after %d HandlerTimeouts; connection closed. It is at:\n%s",
            self.session.id,
            verb,
            _THROWS,
            where,
        )
        self.abandon()

    def abandon(self) -> None:
        """Close the connection of a greenlet that does not end, and forget the greenlet. In the hub.

        The client gets the replies that it is owed, and 421 (RFC 5321 section 3.8).
        """
        self.greenlet = self.current = None
        if not self._has_left:
            self.connection.say_at_once(canned.GIVEN_UP.encode())
        self.connection.abandon()
        if self._has_left:
            self._server.gone(self)
        else:
            spawn_raw(self._leave, "error")

    # The place at the server

    def take_place(self) -> Reply:
        """Take one of the server's ``max_connections``; a refusal if there is none."""
        if self.has_place or self._server.give_place(self):
            return canned.OK
        return canned.TOO_MANY_CONNECTIONS

    @property
    def is_idle(self) -> bool:
        """True if it waits for a command outside of a transaction."""
        return self.connection.awaiting_command and self.session.from_ is None

    @property
    def displaceable(self) -> int:
        """How little is lost when it is closed: 3: it is idle; 2: it waits for its client; 1: handlers are at work, and
        there is no message yet; 0: handlers have a message, which may be stored already."""
        if self.is_idle:
            return 3
        if self.connection.timeout:
            return 2
        return 1 if self.session.message is None else 0

    def displace(self) -> None:
        """Close it in favour of another. For the hub."""
        if self.connection.greenlet is None:
            return  # it is over
        if self.connection.timeout or self.session.message is not None:
            self.dismiss("displaced")
        else:  # what pauses or looks something up must not keep the place
            self.cut_off("displaced")

    def dismiss(self, reason: str) -> None:
        """Close it with 421 as soon as it waits for its client. For the hub."""
        if self.connection.timeout:
            self._dismissed = ""
            self.connection.expire(reason)
        else:
            self._dismissed = reason

    def cut_off(self, reason: str) -> None:
        """Close it with 421, in the middle of whatever it is doing (RFC 5321 section 3.8). For the hub."""
        connection = self.connection
        if connection.timeout:
            connection.expire(reason)
        elif self._is_storing:
            self._dismissed = reason  # 421 would contradict the 250 that is due in an instant
        elif connection.greenlet is not None:
            self._dismissed = reason
            connection.say_at_once(_FAREWELLS[reason].encode())
            connection.greenlet.throw(GreenletExit)

    # The loop

    def _handle(self, command: Command) -> None:
        """From here on, handlers and middleware handle this."""
        self.current = command
        self.spent = _UNSEEN
        self._identity = self.session.identity
        self.session._staged = ()

    def _admit(self) -> bool:
        """ACCEPT, before TLS: may this client stay? If not, it is told where that can be done in the clear."""
        command = Command(ACCEPT)
        self._handle(command)
        try:
            reply = self._program.accept(self.session, command)
        except BaseException as error:
            reply = self._error_reply(error, ACCEPT)
        reply = self._settle(reply)
        self._server.has_arrived(self)
        if reply.is_positive:
            reply = self.take_place()  # a middleware that answers by itself has not taken it
            if reply.is_positive:
                return True
        self._server.take_place_back(self)
        if not self.connection.mute:
            self.connection.write(_turning_away(reply).encode())
        return False

    def _greet(self) -> bool:
        command = Command(CONNECT)
        self._handle(command)
        try:
            reply = self._program.connect(self.session, command)
        except BaseException as error:
            reply = self._error_reply(error, CONNECT)
        if reply.code != 220 and reply.code < 400:
            logger.error("%s: %r is no reply to a connection; answered 421", self.session.id, reply)
            reply = canned.SHUTTING_DOWN
        reply = self._settle(reply)
        if reply.code >= 400:
            reply = _turning_away(reply)
        self.connection.write(reply.encode())
        return reply.code == 220

    def _converse(self) -> None:
        """Commands in, replies out. What has been pipelined is worked off before anything is written."""
        session = self.session
        read_command = self._read_command
        write = self.connection.write
        routes, unknown = self._program.routes, self._program.unknown
        while True:
            self.current = None
            command = read_command()
            handle, idle, follow = routes.get(command.verb, unknown)
            # (As _handle does it, and so on: this runs for every command.)
            self.current = command
            self.spent = _UNSEEN
            self._identity = session.identity
            session._staged = _NOTHING  # what was staged after its command had been answered, from elsewhere
            if session.from_ is None:
                session._transaction_notes = None  # what was noted before belongs to no transaction
            try:
                reply = handle(session, command)
            except BaseException as error:
                reply = self._error_reply(error, command.shown_verb)
            if follow is not None:
                if not follow(self, command, reply):
                    return
            elif reply.code < 300:
                if session._staged or command.verb in _PROMISES:
                    reply = self._take_effect(reply)
                write(reply.wire or reply.encode())
            elif not self._answer(command, reply):
                return
            if idle and not self._count_idle():
                return

    def _error_reply(self, error: BaseException, verb: str) -> Reply:
        """A handler or a middleware has let go what is no Exception: gevent's Timeout, asyncio's CancelledError. It is
        caught out here, and not where exceptions are: what has set it, anywhere in the chain, may mean to catch it."""
        if isinstance(error, (Exception, *ENDINGS)):
            raise error
        kind = "gevent.Timeout" if isinstance(error, Timeout) else type(error).__name__
        logger.exception("%s: uncaught %s while handling %s; replying 451", self.session.id, kind, verb)
        return canned.LOCAL_ERROR

    # What a command changes

    def _settle(self, reply: Reply) -> Reply:
        """Have what the current command changes take effect, if the client is told that it has worked; forget it
        otherwise. Return the reply to send."""
        session = self.session
        if 300 <= reply.code < 400:
            logger.error("%s: unexpected intermediate reply %r; replying 451", session.id, reply)
            reply = canned.LOCAL_ERROR
        if reply.code < 300:
            return self._take_effect(reply)
        self._forget_changes()
        return reply

    def _forget_changes(self) -> None:
        """The client has been refused: nothing has changed. An identity that was given up stays given up."""
        session = self.session
        session._staged = ()
        if session.identity is not self._identity and session.identity is not None:
            session.identity = self._identity

    def _take_effect(self, reply: Reply) -> Reply:
        """The client is told that its command has worked: make the changes that were staged."""
        session = self.session
        command = self.current
        assert command is not None
        changes, greeting = session._changes, (session.greeting, session.hostname)
        recipients = len(session.to)
        staged, session._staged = session._staged, ()
        for change, arguments in staged:
            try:
                change(*arguments)
            except ENDINGS:
                raise
            except BaseException as error:
                if error is self.connection.lost:
                    raise  # there is nobody to answer
                if isinstance(error, Reject):
                    reply = reply_of(error)
                else:
                    logger.exception(
                        "%s: %s, staged at %s, raised; replying 451",
                        session.id,
                        handler_name(change),
                        command.shown_verb,
                    )
                    reply = canned.LOCAL_ERROR
                session.greeting, session.hostname = greeting
                self._forget_changes()
                self._drop_transaction(reply)
                return reply
        if self._program.lmtp and len(session.to) > recipients + 1:  # of one RCPT: the client waits for one reply
            session.transaction_notes.setdefault(_FURTHER, set()).update(range(recipients + 1, len(session.to)))
        if session._changes == changes and command.verb in _PROMISES:
            # Client and server would disagree about the transaction: a recipient be lost, or an old one get the mail.
            logger.warning(
                "%s: %s was answered %s, but not by the server's own action; the transaction is dropped",
                session.id,
                command.shown_verb,
                reply.code,
            )
            self._drop_transaction(canned.LOCAL_ERROR)
        return reply

    def _drop_transaction(self, reply: Reply) -> None:
        stream = self.session.message
        if stream is not None and stream.opened:
            stream.fail(reply)  # at its end, the client is told
        else:
            self.session.reset()

    def _read_command(self) -> Command:
        """The next command, as good as it is."""
        command = self._next
        if command is not None:
            self._next = None
            return command
        if self._server.draining and self.session.from_ is None:
            raise ConnectionLost("shutdown")  # what has been pipelined begins no new transaction
        connection = self.connection
        try:
            line = connection.read_line()
        except BadLine as bad:
            if bad.reply is canned.NOT_SMTP:
                raise ConnectionLost("foreign") from None
            return Command(UNKNOWN, "", bad.reply)
        command = _LONE.get(line)
        if command is None:
            command = parse_command(line)
            if (command.verb not in self._program.routes or b" HTTP/" in line) and is_foreign(line):
                raise ConnectionLost("foreign")
        return command

    def _answer(self, command: Command, reply: Reply) -> bool:
        """Settle an ordinary reply, and write it; False: it was the last one."""
        return self._tell(command, self._settle(reply))

    def _tell(self, command: Command, reply: Reply) -> bool:
        """Write a reply that has been settled; False: it was the last one."""
        if not self._say(reply):
            return False
        if reply.code >= 500:
            return self._count_errors()
        return reply.code < 300 or self._count_deferral(command)

    def _say(self, reply: Reply) -> bool:
        """Write a reply that is final; False: it tells the peer to go."""
        self.connection.write(reply.encode())
        if reply.code < 300:
            return True
        if reply.code >= 500:
            self.session.errors += 1
        return not reply.ends_connection

    def _count_errors(self) -> bool:
        if self.session.errors < self._program.limits.max_errors:
            return True
        self.connection.write(canned.TOO_MANY_ERRORS.encode())
        return False

    def _count_deferral(self, command: Command) -> bool:
        """Count a 4xx reply as an idle command, so that a client cannot have it for ever.

        RCPT in a transaction that has recipients gets ``max_recipients`` for nothing, and is an error from there on: a
        client whose surplus is deferred must be able to send to the others.
        """
        limits, session = self._program.limits, self.session
        if command.verb == "RCPT" and session.to:
            self._deferred_recipients += 1
            if self._deferred_recipients <= limits.max_recipients:
                return True
            session.errors += 1
            return self._count_errors()
        # (An idle command is counted as such.)
        idle = command is not _END_OF_DATA and self._program.routes.get(command.verb, self._program.unknown).idle
        return idle or self._count_idle()

    def _count_idle(self) -> bool:
        session = self.session
        session._idle_commands += 1
        if session._idle_commands <= self._program.limits.max_idle_commands:
            return True
        self.connection.write(canned.TOO_MANY_COMMANDS.encode())
        return False

    # What follows some commands

    def _after_quit(self, command: Command, reply: Reply) -> bool:
        if reply.code != 221:
            return self._answer(command, reply)
        self._settle(reply)
        self.connection.write(reply.encode())
        self._quit = True
        return False

    def _after_starttls(self, command: Command, reply: Reply) -> bool:
        session = self.session
        requested, session._tls_requested = session._tls_requested, False
        if not requested and reply.code == 220:
            logger.error("%s: %r to STARTTLS, but not by the server's own action; replying 454", session.id, reply)
            reply = canned.TLS_UNAVAILABLE
        elif requested and reply.code == 220:
            reply = self._settle(reply)
        if reply.code != 220:
            return self._answer(command, reply)
        self.connection.write(reply.encode())
        self.connection.flush(self._program.limits.command_timeout)
        session._reset_all()
        self._start_tls()
        return True

    def _start_tls(self) -> None:
        context = self._server.tls_context
        assert isinstance(context, ssl.SSLContext)
        self.connection.start_tls(context)
        self._note_tls()

    def _note_tls(self) -> None:
        self._handle(Command("STARTTLS"))
        self.session.tls = True
        self.session._emitters["tls"].emit(self.session)

    def _after_data(self, command: Command, reply: Reply) -> bool:
        session = self.session
        stream = session.message
        if stream is None or not stream.opened:
            self._forget_message()
            return self._answer(command, reply)
        if reply.code == canned.START_MAIL.code and session._staged:
            reply = self._take_effect(reply)
        if reply.code != canned.START_MAIL.code:
            self._overrule(reply)
        return self._finish_body()

    def _after_bdat(self, command: Command, reply: Reply) -> bool:
        assert isinstance(command, ChunkCommand)
        stream = self.session.message
        if stream is None or not stream.opened:
            self._forget_message()
            go_on = self._answer(command, canned.LOCAL_ERROR if reply.code < 300 else reply)
            if go_on and not command.last and not command.size:
                go_on = self._count_idle()
            if self.session.state > State.SENDER:
                # Whoever has refused it: what follows must not pass for the message (RFC 3030 section 2).
                self.session.reset()
            if go_on:
                skip(self.connection, command.size)
            return go_on
        if reply.is_positive and self.session._staged:
            reply = self._take_effect(reply)
        if not reply.is_positive:
            self._overrule(reply)
        return self._finish_body()

    def _forget_message(self) -> None:
        """It was refused: none of it has been read."""
        session = self.session
        if session.message is not None:  # what is no Exception has left it there
            session.message.end()
            session.message = None

    def _overrule(self, reply: Reply) -> None:
        """A middleware has refused what flows already: the peer is told at the end."""
        stream = self.session.message
        assert stream is not None
        self._forget_changes()
        if reply.code < 400:
            logger.error("%s: unexpected reply %r to a message; replying 451", self.session.id, reply)
            reply = canned.LOCAL_ERROR
        stream.fail(reply)

    def _finish_body(self) -> bool:
        session = self.session
        stream = session.message
        assert stream is not None
        if not stream.complete:
            self._drain(stream)
        if stream.error is not None:
            if isinstance(stream.error, ConnectionLost):
                raise stream.error
            if isinstance(stream.error, TransactionReset):
                # The chunks have been answered; the command that ended them comes next.
                self.connection.in_body = False
                session.reset()
                return True
        if self._program.lmtp:
            return self._answer_each()
        reply = self._end(_END_OF_DATA)
        session.reset()
        if reply.code >= 300:
            return self._answer(_END_OF_DATA, reply)
        session.messages_accepted += 1
        session.errors = session._idle_commands = self._deferred_recipients = 0
        self.connection.write(reply.wire or reply.encode())
        return True

    def _end(self, command: EndOfData) -> Reply:
        """Have the chain answer the message."""
        session = self.session
        self.current = command
        self.spent = _UNSEEN
        self._identity = session.identity
        try:
            reply = self._program.end_of_data(session, command)
        except BaseException as error:
            reply = self._error_reply(error, END_OF_DATA)
        failure = None if session.message is None else session.message.failure
        if failure is not None and reply.code < 300:
            logger.error("%s: %r to a message that has failed; replying %s", session.id, reply, failure)
            reply = failure
        if not session._staged and reply.code < 300:
            return reply
        self._is_storing = True
        try:
            return self._settle(reply)
        finally:
            self._is_storing = False

    def _answer_each(self) -> bool:
        """LMTP: a reply for each RCPT that was accepted, in that order (RFC 2033 section 4.2).

        Each reply is owed as soon as it is known. If the connection is cut off before the last one, the client still
        learns which recipients have the message, and does not send it to them again.

        Where a middleware has made several recipients of one, a refusal goes before the others' 250, and 4xx before
        5xx: the client must not take a message for delivered that one of them has not got.
        """
        session = self.session
        further = session.transaction_notes.get(_FURTHER, ())
        accepted, go_on = False, True
        owed: Reply | None = None
        for number, recipient in enumerate(session.to):
            reply = self._end(EndOfData(recipient))
            accepted = accepted or reply.code < 300
            if owed is None or owed.is_positive or (reply.is_transient_failure and owed.is_permanent_failure):
                owed = reply
            if number + 1 not in further:
                go_on = self._say(owed) and go_on
                owed = None
        session.reset()
        if accepted:
            session.messages_accepted += 1
            session.errors = session._idle_commands = self._deferred_recipients = 0
            return go_on
        return go_on and self._count_errors() and self._count_idle()

    def _drain(self, stream: MessageStream) -> None:
        """Read what the receivers have left; it still flows to the pipes."""
        while not stream.complete:
            try:
                stream.drain()
            except IncompleteMessage:
                return
            except Reject:
                pass  # a pipe's; the reply is settled
            except ENDINGS:
                raise
            except BaseException:
                logger.exception("%s: a pipe of the message raised; replying %s", self.session.id, stream.failure)

    # The connection beneath the session

    @property
    def socket(self) -> Any:
        """The gevent socket."""
        return self.connection.socket

    @property
    def close_error(self) -> ConnectionLost | None:
        """What was raised when the peer was lost."""
        return self.connection.lost

    def flush(self) -> None:
        """Send the replies that are owed."""
        self.connection.flush(self._program.limits.command_timeout)

    def challenge(self, reply: Reply) -> bytes:
        """Send a reply, and wait for the line that answers it."""
        connection = self.connection
        if connection.greenlet is not getcurrent():
            if connection.greenlet is None:
                raise ConnectionLost("closed" if connection.lost is None else connection.lost.reason)
            raise RuntimeError("session.challenge waits for the peer in the connection's own greenlet, and in no other")
        room = self._program.limits.max_auth_line_length
        connection.write(reply.encode())
        try:
            line = connection.read_line(room)
        except BadLine as bad:
            raise MalformedAnswer(bad.reply) from None
        return line

    def data_body(self) -> DataBody:
        """The body that DATA announces.

        :raises RuntimeError: this is another greenlet than the connection's own, or the command has been answered.
        """
        if self.connection.greenlet is not getcurrent():
            raise RuntimeError(_ELSEWHERE)
        return DataBody(self.connection)

    def chunked_body(self, command: ChunkCommand) -> ChunkedBody:
        """The body that begins with this BDAT.

        :raises RuntimeError: this is another greenlet than the connection's own, or the command has been answered.
        """
        if self.connection.greenlet is not getcurrent():
            raise RuntimeError(_ELSEWHERE)
        self._pending = Reply(250, f"2.0.0 {command.size} octets received")
        # What a middleware has made of the command does not change how many octets the client sends.
        as_sent = self.current if isinstance(self.current, ChunkCommand) else command
        return ChunkedBody(self.connection, as_sent, self._next_chunk)

    def _next_chunk(self) -> ChunkCommand:
        """Answer the chunk that has ended, and go on until the next; commands between two are answered as usual.

        :raises TransactionReset: the peer does not go on with this body, or may not.
        """
        session = self.session
        if self._pending is not None:
            self.connection.write(self._pending.encode())
            self._pending = None
        while True:
            command = self._read_command()
            if command.verb in _ENDS_CHUNKS:
                self._next = command
                raise TransactionReset("the peer gave the transaction up between two chunks")
            route = self._program.routes.get(command.verb, self._program.unknown)
            # The handler that reads the body is handling a command, too.
            outer = self.current, self.spent, session._staged
            self._handle(command)
            try:
                reply = self._settle(route.handle(session, command))
            except BaseException as error:
                reply = self._settle(self._error_reply(error, command.shown_verb))
            finally:
                self.current, self.spent, session._staged = outer
            self._identity = session.identity
            if isinstance(command, ChunkCommand) and command.error is None and reply.code < 300:
                self._pending = reply
                if not command.size and not command.last and not self._count_idle():
                    raise ConnectionLost("refused")
                return command
            if not self._tell(command, reply) or (route.idle and not self._count_idle()):
                raise ConnectionLost("refused")
            if isinstance(command, ChunkCommand):
                skip(self.connection, command.size)
                raise TransactionReset("a chunk was refused")


def _turning_away(reply: Reply) -> Reply:
    """One of the two ways in which RFC 5321 section 3.1 has a client turned away before the banner."""
    return Reply(554 if reply.code >= 500 else 421, *reply.lines, enhanced=reply.enhanced)


#: Between two chunks these give the body up (RFC 3030 section 2).
_ENDS_CHUNKS = frozenset({"RSET", "QUIT", "HELO", "EHLO", "LHLO"})

#: verb -> what sees to what follows it, for Routes.
CONTINUATIONS: Mapping[str, Continuation] = {
    "QUIT": ConnectionHandler._after_quit,
    "STARTTLS": ConnectionHandler._after_starttls,
    "DATA": ConnectionHandler._after_data,
    "BDAT": ConnectionHandler._after_bdat,
}
