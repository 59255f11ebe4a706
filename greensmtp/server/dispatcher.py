"""What each verb does: its checks, its signal, and what its acceptance changes. No sockets.

The rules of this file:

- A command is checked in this order: the ``command`` signal, its syntax, the transition table, its verb's own checks,
  its verb's signal.
- What a command changes in the session is staged (``Session.stage``). It takes effect when the whole stack has replied.
- No canned reply is compared by identity. An ``accept()`` without a text is a UsualReply, which is worded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, cast

from greensmtp.chain.chain import Proceed, before_banner
from greensmtp.protocol import canned, esmtp
from greensmtp.protocol.command import (
    ACCEPT,
    CONNECT,
    DISCONNECT,
    END_OF_DATA,
    KNOWN_BUT_NOT_IMPLEMENTED,
    Command,
    HelloCommand,
    PathCommand,
)
from greensmtp.protocol.esmtp import Extension
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import REFUSALS, State
from greensmtp.server.limits import Limits
from greensmtp.server.message_actions import MessageActions
from greensmtp.server.parameters import refuse_values
from greensmtp.server.xclient import ProxyVerbs
from greensmtp.session import Session
from greensmtp.session.ack_rules import UsualReply
from greensmtp.session.emitter import Emitter
from greensmtp.session.signals import FIELDS, Signals

# Changes that the dispatcher stages. (A name of the module costs less to look up than an attribute of a class.)
begin, add_recipient, hello = Session._begin, Session._add_recipient, Session._hello


class Dispatcher(MessageActions):
    """The innermost end of the chain: the default action of every command and pseudo-command. One for each server."""

    def __init__(
        self,
        *,
        proxy_verbs: ProxyVerbs,
        hostname: str,
        lmtp: bool,
        tls: bool,
        limits: Limits,
        signals: Signals,
        extensions: Iterable[Extension],
    ) -> None:
        self._proxy_verbs = proxy_verbs
        self._hostname = hostname
        self._lmtp = lmtp
        self._tls = tls
        self._limits = limits
        self._parameters = esmtp.allowed_parameters((*extensions, esmtp.SUBMITTER))
        self.emitters = {name: Emitter(name, signals) for name in FIELDS}
        super().__init__(limits, self.emitters)
        self._from, self._to = self.emitters["from"], self.emitters["to"]
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
        wrong_hello = _always(canned.LMTP_SPOKEN_HERE if self._lmtp else canned.SMTP_SPOKEN_HERE)
        behaviours: dict[str, Callable[[Session, Any], Reply]] = {
            "HELO": wrong_hello if self._lmtp else self._helo,
            "EHLO": wrong_hello if self._lmtp else self._ehlo,
            "LHLO": self._ehlo if self._lmtp else wrong_hello,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "BDAT": self._bdat,
            "RSET": self._rset,
            "NOOP": _always(canned.OK),
            "VRFY": _always(canned.CANNOT_VERIFY),
            "EXPN": _always(canned.CANNOT_EXPAND),
            "HELP": _always(self._help),
            "QUIT": self._quit,
        }
        if self._tls:
            behaviours["STARTTLS"] = self._starttls
        return self._proxy_verbs.added_to(behaviours)

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

    def _starttls(self, session: Session, command: Command) -> Reply:
        if session.tls:
            return canned.TLS_ALREADY
        session._tls_requested = True
        return canned.START_TLS

    # The envelope

    def _mail(self, session: Session, command: PathCommand) -> Reply:
        address = command.address
        if address.parameters:
            refusal = self._refuse_parameters(session, command) or refuse_values(address.parameters, self._max_size)
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
            refusal = self._refuse_parameters(session, command)
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

    def _refuse_parameters(self, session: Session, command: PathCommand) -> Reply | None:
        # A client that said HELO has not been offered any (RFC 5321 section 4.1.1.1).
        allowed = self._parameters[command.verb] if session.greeting != "helo" else frozenset()
        for keyword in command.address.parameters:
            if keyword not in allowed:
                return Reply(555, f"5.5.4 Unsupported parameter: {keyword}")
        return None

    def _rset(self, session: Session, command: Command) -> Reply:
        session.stage(self._reset, session)
        return canned.OK

    def _reset(self, session: Session) -> None:
        session.reset()
        self.emitters["reset"].emit(session)

    # The rest

    def _unknown(self, session: Session, command: Command) -> Reply:
        known = command.verb in KNOWN_BUT_NOT_IMPLEMENTED or command.verb == "STARTTLS"
        return canned.NOT_IMPLEMENTED if known else canned.UNKNOWN_COMMAND


def _always(reply: Reply) -> Callable[[Session, Any], Reply]:
    return lambda session, command: reply


@lru_cache(256)
def _greeted(first: str, offers: tuple[str, ...]) -> Reply:
    """Return the usual reply to a greeting. A client that comes again says the same name, and the reply is encoded."""
    return Reply(250, first, *offers, enhanced=None)
