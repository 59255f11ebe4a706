"""What each verb does: its checks, its signal, and what its acceptance changes. No sockets.

The rules of this file:

- A command is checked in this order: the ``command`` signal, its syntax, the transition table, its verb's own checks,
  its verb's signal. A verb that the server does not implement, or whose extension is switched off, has no behaviour.
- What a command changes in the session is staged (``Session.stage``). It takes effect when the whole stack has replied.
- No canned reply is compared by identity. An ``accept()`` without a text is a UsualReply, which is worded here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, cast

from greensmtp.chain.chain import Proceed, before_banner
from greensmtp.protocol import canned
from greensmtp.protocol.address import Address
from greensmtp.protocol.command import (
    ACCEPT,
    CONNECT,
    DISCONNECT,
    END_OF_DATA,
    KNOWN_BUT_NOT_IMPLEMENTED,
    PARSERS,
    Command,
    HelloCommand,
    LookupCommand,
    PathCommand,
    QueueCommand,
)
from greensmtp.protocol.esmtp import CHUNKING, ETRN, SMTPUTF8, STARTTLS, ParameterCheck, unsupported
from greensmtp.protocol.lenient_path import explain
from greensmtp.protocol.reply import Reply
from greensmtp.protocol.state import REFUSALS, State
from greensmtp.protocol.verb_arguments import parse_help
from greensmtp.server.extensions import Offer
from greensmtp.server.help import help_replies
from greensmtp.server.limits import Limits
from greensmtp.server.message_actions import MessageActions
from greensmtp.server.xclient import Behaviour, ProxyVerbs
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
        limits: Limits,
        signals: Signals,
        offer: Offer,
    ) -> None:
        self._proxy_verbs = proxy_verbs
        self._hostname = hostname
        self._lmtp = lmtp
        self._limits = limits
        self._offer = offer
        #: A client that said HELO has been offered no extensions (RFC 5321 section 4.1.1.1).
        self._no_parameters = ParameterCheck(())
        self.emitters = {name: Emitter(name, signals) for name in FIELDS}
        super().__init__(limits, self.emitters)
        self._from, self._to = self.emitters["from"], self.emitters["to"]
        self._banner = Reply(220, f"{hostname} {'LMTP' if lmtp else 'ESMTP'}", enhanced=None)
        self._behaviours = self._behaviour_of_each_verb()
        other_hello = {"HELO", "EHLO"} if lmtp else {"LHLO"}
        verbs = dict.fromkeys((*(verb for verb in self._behaviours if verb not in other_hello), *sorted(offer.verbs)))

        @cache
        def help_without(hidden: frozenset[str]) -> dict[str, Reply]:
            return help_replies((verb for verb in verbs if verb not in hidden), offer.extensions)

        self._help_without = help_without

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
        behaviour = self._behaviours.get(verb)
        if behaviour is None:
            return self._act_on_unknown(verb)
        refused = REFUSALS.get(verb, {})
        # A malformed path is the usual fault of a device: its reply says what is wrong.
        refuse = explain if verb in ("MAIL", "RCPT") else _error_of
        # A tuple by the state's number: hashing an Enum member calls a Python function.
        refusals = tuple(refused.get(state) for state in State)
        emitter = self.emitters["command"]
        shared, own = emitter.shared, emitter.own

        def act(session: Session, command: Command) -> Reply:
            if own.receivers or shared.receivers:
                reply = emitter.collect(session, command=command)
                if reply is not None:
                    return reply
            if command.error is not None:
                return refuse(command)
            return refusals[session.state] or behaviour(session, command)

        return act

    def _act_on_unknown(self, verb: str) -> Proceed:
        """Return the default action of a verb that the server does not implement."""
        is_known = verb in PARSERS or verb in KNOWN_BUT_NOT_IMPLEMENTED
        emitter = self.emitters["command"]

        def act(session: Session, command: Command) -> Reply:
            reply = emitter.collect(session, command=command)
            if reply is not None:
                return reply
            return canned.NOT_IMPLEMENTED if is_known else command.error or canned.UNKNOWN_COMMAND

        return act

    def _behaviour_of_each_verb(self) -> dict[str, Callable[[Session, Any], Reply]]:
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
            "VRFY": _parsed(LookupCommand, self._look_up(self.emitters["vrfy"])),
            "EXPN": _parsed(LookupCommand, self._look_up(self.emitters["expn"])),
            "HELP": self._give_help,
            "QUIT": self._quit,
            "STARTTLS": self._starttls,
            "ETRN": _parsed(QueueCommand, self._etrn),
        }
        for verb, extension in (("BDAT", CHUNKING), ("STARTTLS", STARTTLS), ("ETRN", ETRN)):
            if extension not in self._offer.extensions:
                del behaviours[verb]
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
        offers = self._offer.lines(tls=session.tls)
        if self.emitters["expn"].has_receivers(session):
            offers = (*offers, "EXPN")  # RFC 5321 section 3.5.2
        return self._greet(session, greeting, offers)

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

    def _starttls(self, session: Session, command: Command) -> Reply:
        if session.tls:
            return canned.TLS_ALREADY
        session._tls_requested = True
        return canned.START_TLS

    # The envelope

    def _mail(self, session: Session, command: PathCommand) -> Reply:
        address = command.address
        if address.parameters:
            if session.identity is None and address.parameters.get("AUTH", "<>") != "<>":
                address = address.with_parameters({**address.parameters, "AUTH": "<>"})
            refusal = self._refuse_parameters(session, "MAIL", address) or self._offer.refusal(address.mail_options)
            if refusal is not None:
                return refusal
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
            refusal = self._refuse_parameters(session, "RCPT", address)
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

    def _refuse_parameters(self, session: Session, verb: str, address: Address) -> Reply | None:
        check = self._no_parameters if session.greeting == "helo" else self._offer.parameters
        return check.refusal(verb, address, tls=session.tls)

    def _rset(self, session: Session, command: Command) -> Reply:
        session.stage(self._reset, session)
        return canned.OK

    def _reset(self, session: Session) -> None:
        session.reset()
        self.emitters["reset"].emit(session)

    # VRFY, EXPN, ETRN, HELP

    def _look_up(self, emitter: Emitter) -> Callable[[Session, LookupCommand], Reply]:
        takes_utf8 = SMTPUTF8 in self._offer.extensions

        def look_up(session: Session, command: LookupCommand) -> Reply:
            lookup = command.lookup
            if lookup.smtputf8 and not takes_utf8:
                return unsupported("SMTPUTF8")
            if not lookup.smtputf8 and not lookup.name.isascii():
                return canned.NEED_SMTPUTF8  # RFC 6531 section 3.7.4.2
            return cast(Reply, emitter.collect(session, command=command))

        return look_up

    def _etrn(self, session: Session, command: QueueCommand) -> Reply:
        return cast(Reply, self.emitters["etrn"].collect(session, command=command))

    def _give_help(self, session: Session, command: Command) -> Reply:
        replies = self._help_without(self._proxy_verbs.hidden_from(session))
        return replies.get(parse_help(command.argument), canned.NO_SUCH_HELP)


def _error_of(command: Command) -> Reply:
    assert command.error is not None
    return command.error


def _parsed(kind: type[Command], behaviour: Behaviour) -> Behaviour:
    """Return a behaviour that also takes a plain Command, as a middleware makes it, and parses its argument."""

    def act(session: Session, command: Command) -> Reply:
        if not isinstance(command, kind):
            command = PARSERS[command.verb](command.verb, command.argument)
            if command.error is not None:
                return command.error
        return behaviour(session, command)

    return act


def _always(reply: Reply) -> Callable[[Session, Any], Reply]:
    return lambda session, command: reply


@lru_cache(256)
def _greeted(first: str, offers: tuple[str, ...]) -> Reply:
    """Return the usual reply to a greeting. A client that comes again says the same name, and the reply is encoded."""
    return Reply(250, first, *offers, enhanced=None)
