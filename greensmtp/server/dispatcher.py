"""What each verb does: its checks, its signal, and what its acceptance changes. No sockets.

The rules of this file:

- A command is checked in this order: the ``command`` signal, its syntax, the transition table, its verb's own checks,
  its verb's signal.
- What a command changes in the session is staged (``Session.stage``). It takes effect when the whole stack has replied.
- No canned reply is compared by identity. An ``accept()`` without a text is a UsualReply, which is worded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from math import inf
from operator import call
from typing import Any, cast

from greensmtp.chain.chain import Proceed, before_banner
from greensmtp.protocol import canned, esmtp
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import (
    ACCEPT,
    CONNECT,
    DISCONNECT,
    END_OF_DATA,
    KNOWN_BUT_NOT_IMPLEMENTED,
    ChunkCommand,
    Command,
    EndOfData,
    HelloCommand,
    PathCommand,
)
from greensmtp.protocol.content_checks import LineLength, NoBareNewlines, NormalNewlines
from greensmtp.protocol.esmtp import Extension
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import REFUSALS, State
from greensmtp.server.limits import Limits
from greensmtp.session import Session
from greensmtp.session.ack_rules import UsualReply
from greensmtp.session.emitter import Emitter
from greensmtp.session.interfaces import Body, BodyCheck
from greensmtp.session.signals import FIELDS, Signals
from greensmtp.session.stream import MessageStream

# Changes that the dispatcher stages. (A name of the module costs less to look up than an attribute of a class.)
begin, add_recipient, hello = Session._begin, Session._add_recipient, Session._hello


class Dispatcher:
    """The innermost end of the chain: the default action of every command and pseudo-command. One for each server."""

    def __init__(
        self,
        *,
        hostname: str,
        lmtp: bool,
        tls: bool,
        limits: Limits,
        signals: Signals,
        extensions: Iterable[Extension],
    ) -> None:
        self._hostname = hostname
        self._lmtp = lmtp
        self._tls = tls
        self._limits = limits
        self._max_size = inf if limits.max_message_size is None else limits.max_message_size
        #: Whether newlines are normalized, and factories of the checks of a body, unless it is BINARYMIME.
        self._normalizes = limits.bare_newlines == "normalize"
        self._checks: list[Callable[[], BodyCheck]] = []
        if limits.bare_newlines == "reject":
            self._checks.append(NoBareNewlines)
        if limits.max_body_line_length is not None:
            self._checks.append(partial(LineLength, limits.max_body_line_length))
        self._parameters = esmtp.allowed_parameters((*extensions, esmtp.SUBMITTER))
        self.emitters = {name: Emitter(name, signals) for name in FIELDS}
        self._from, self._to = self.emitters["from"], self.emitters["to"]
        self._message, self._received = self.emitters["message"], self.emitters["received"]
        self._banner = Reply(220, f"{hostname} {'LMTP' if lmtp else 'ESMTP'}", enhanced=None)
        #: The lines of EHLO's reply after the first, by whether TLS is up.
        self._offers = {up: tuple(self._offer(tls_is_up=up)) for up in (False, True)}
        self._help = Reply(214, f"2.0.0 {' '.join(self.verbs)}", "2.0.0 See RFC 5321")

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs that the server implements without middleware."""
        greetings = ("LHLO",) if self._lmtp else ("HELO", "EHLO")
        rest = ("MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "EXPN", "HELP", "QUIT")
        return (*greetings, *rest, *(("STARTTLS",) if self._tls else ()))

    def terminal(self, verb: str) -> Proceed:
        """Return the default action of a verb, with the checks that come before it."""
        life = {
            ACCEPT: self._accept,
            CONNECT: self._connect,
            END_OF_DATA: self._end_of_data,
            DISCONNECT: self._disconnect,
        }
        if verb in life:
            return cast(Proceed, life[verb])
        behaviour = self._behaviours().get(verb, self._unknown)
        refused = REFUSALS.get(verb, {})
        # A tuple by the state's number: hashing an Enum member calls a Python function.
        refusals = tuple(refused.get(state) for state in State)
        emitter = self.emitters["command"]
        shared, own = emitter.shared, emitter.own

        def act(session: Session, command: Command) -> Reply:
            if own.receivers or shared.receivers:
                reply = emitter.collect(session, command=command)
                if reply is not None:
                    return reply
            return command.error or refusals[session.state] or behaviour(session, command)

        return act

    def _behaviours(self) -> dict[str, Callable[[Session, Any], Reply]]:
        # RFC 2033 section 4.1: LMTP has LHLO, and neither HELO nor EHLO.
        behaviours: dict[str, Callable[[Session, Any], Reply]] = {
            "HELO": self._refuse_hello if self._lmtp else self._helo,
            "EHLO": self._refuse_hello if self._lmtp else self._ehlo,
            "LHLO": self._ehlo if self._lmtp else self._refuse_lhlo,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "BDAT": self._bdat,
            "RSET": self._rset,
            "NOOP": lambda session, command: canned.OK,
            "VRFY": lambda session, command: canned.CANNOT_VERIFY,
            "EXPN": lambda session, command: canned.CANNOT_EXPAND,
            "HELP": lambda session, command: self._help,
            "QUIT": self._quit,
        }
        if self._tls:
            behaviours["STARTTLS"] = self._starttls
        return behaviours

    # The connection

    def _accept(self, session: Session, command: Command) -> Reply:
        return session._connection.take_place()

    def _connect(self, session: Session, command: Command) -> Reply:
        reply = self.emitters["connect"].collect(session)
        assert reply is not None
        if reply.code >= 400:
            return before_banner(reply)
        if isinstance(reply, UsualReply):
            return self._banner
        first, *rest = reply.lines
        return Reply(220, f"{self._hostname} {first}".rstrip(), *rest, enhanced=None)

    def _disconnect(self, session: Session, command: Command) -> Reply:
        emitter = self.emitters["disconnect"]
        if emitter.own.receivers or emitter.shared.receivers:
            emitter.emit(session, reason=command.argument)
        return canned.BYE

    def _quit(self, session: Session, command: Command) -> Reply:
        self.emitters["quit"].emit(session)
        return canned.BYE

    # HELO, EHLO, LHLO, STARTTLS

    def _helo(self, session: Session, greeting: HelloCommand) -> Reply:
        return self._greet(session, greeting, ())

    def _ehlo(self, session: Session, greeting: HelloCommand) -> Reply:
        return self._greet(session, greeting, self._offers[session.tls])

    def _greet(self, session: Session, greeting: HelloCommand, offers: tuple[str, ...]) -> Reply:
        reply = self.emitters["greeting"].collect(session, greeting=greeting)
        assert reply is not None
        if reply.code >= 400:
            return reply
        session._staged += ((hello, (session, greeting.verb.lower(), greeting.hostname)),)
        if isinstance(reply, UsualReply):
            return _greeted(f"{self._hostname} greets {greeting.hostname}", offers)
        first, *rest = reply.lines
        return Reply(250, f"{self._hostname} {first}".rstrip(), *rest, *offers, enhanced=None)

    def _offer(self, *, tls_is_up: bool) -> Iterable[str]:
        for extension in esmtp.STANDARD:
            if extension is esmtp.SIZE:
                yield f"SIZE {self._limits.max_message_size or 0}"
            elif extension is not esmtp.STARTTLS or (self._tls and not tls_is_up):
                yield extension.keyword

    def _refuse_hello(self, session: Session, command: Command) -> Reply:
        return canned.LMTP_SPOKEN_HERE

    def _refuse_lhlo(self, session: Session, command: Command) -> Reply:
        return canned.SMTP_SPOKEN_HERE

    def _starttls(self, session: Session, command: Command) -> Reply:
        if session.tls:
            return canned.TLS_ALREADY
        session._tls_requested = True
        return canned.START_TLS

    # The envelope

    def _mail(self, session: Session, command: PathCommand) -> Reply:
        address = command.address
        if address.parameters:
            refusal = self._check_parameters(session, command) or self._check_mail(address)
            if refusal is not None:
                return refusal
            if session.identity is None and address.parameters.get("AUTH", "<>") != "<>":
                address = address.with_parameters({**address.parameters, "AUTH": "<>"})
        if not address.isascii() and "SMTPUTF8" not in address.parameters:
            return canned.NEED_SMTPUTF8
        emitter = self._from
        if emitter.own.receivers or emitter.shared.receivers:
            reply = emitter.collect(session, address=address)
            assert reply is not None
            if reply.code >= 400:
                return reply
        else:
            reply = canned.SENDER_OK
        # As in Session.stage, which would be one more call for each message.
        session._staged += ((begin, (session, address)),)
        return reply

    def _rcpt(self, session: Session, command: PathCommand) -> Reply:
        address = command.address
        if address.parameters:
            refusal = self._check_parameters(session, command)
            if refusal is not None:
                return refusal
        if not address.isascii() and not session.smtputf8:
            return canned.NEED_SMTPUTF8
        count = len(session.to)
        if session._staged:  # a middleware may make several recipients of one
            count += [change for change, _ in session._staged].count(add_recipient)
        if count >= self._limits.max_recipients:
            return canned.TOO_MANY_RECIPIENTS
        emitter = self._to
        if emitter.own.receivers or emitter.shared.receivers:
            reply = emitter.collect(session, address=address)
            assert reply is not None
            if reply.code >= 400:
                return reply
        else:
            reply = canned.RECIPIENT_OK
        session._staged += ((add_recipient, (session, address)),)
        return reply

    def _check_parameters(self, session: Session, command: PathCommand) -> Reply | None:
        # A client that said HELO has not been offered any (RFC 5321 section 4.1.1.1).
        allowed = self._parameters[command.verb] if session.greeting != "helo" else frozenset()
        for keyword in command.address.parameters:
            if keyword not in allowed:
                return Reply(555, f"5.5.4 Unsupported parameter: {keyword}")
        return None

    def _check_mail(self, address: Address) -> Reply | None:
        """Check the values of the parameters that the server itself offers; return a refusal or None."""
        parameters = address.parameters
        if "SIZE" in parameters:
            size = parameters["SIZE"]
            if size is None or not size.isascii() or not size.isdigit() or len(size) > 20:
                return Reply(501, "5.5.4 SIZE takes a number of octets")
            if self._limits.max_message_size is not None and int(size) > self._limits.max_message_size:
                return canned.TOO_LARGE
        if "BODY" in parameters and (parameters["BODY"] or "").upper() not in esmtp.BODY_TYPES:
            return Reply(501, "5.5.4 BODY takes 7BIT, 8BITMIME or BINARYMIME")
        if parameters.get("SMTPUTF8") is not None:
            return Reply(501, "5.5.4 SMTPUTF8 takes no value")
        return None

    def _rset(self, session: Session, command: Command) -> Reply:
        session.stage(self._reset, session)
        return canned.OK

    def _reset(self, session: Session) -> None:
        session.reset()
        self.emitters["reset"].emit(session)

    # The message

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
        # The chunks after this one must not pass for a message (RFC 3030 section 2).
        session.reset()
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
        stream = session.message = MessageStream(session, body, self._max_size, checks, newlines)
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
            return canned.MESSAGE_OK
        fields = {} if command.recipient is None else {"recipient": command.recipient}
        reply = emitter.collect(session, **fields)
        assert reply is not None
        return reply

    # The rest

    def _unknown(self, session: Session, command: Command) -> Reply:
        known = command.verb in KNOWN_BUT_NOT_IMPLEMENTED or command.verb == "STARTTLS"
        return canned.NOT_IMPLEMENTED if known else canned.UNKNOWN_COMMAND


@lru_cache(256)
def _greeted(first: str, offers: tuple[str, ...]) -> Reply:
    """Return the usual reply to a greeting. A client that comes again says the same name, and the reply is encoded."""
    return Reply(250, first, *offers, enhanced=None)


def _is_binary(sender: Address | None) -> bool:
    """Return True if the client has announced a body that is not made of lines (RFC 3030 section 3)."""
    return sender is not None and (sender.parameters.get("BODY") or "").upper() == "BINARYMIME"
