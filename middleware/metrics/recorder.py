"""The recorder of Metrics: it counts what passes through, with one function for each verb.

Rules of this file:

- Every label has few values, whatever clients send: each value is a time series that is never dropped.
- What counts a verb or a label value is looked up once, in tables, and not at each command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, cast

from gevent.ssl import SSLSocket

from greensmtp.chain.chain import Proceed
from greensmtp.protocol.command import (
    ACCEPT,
    CONNECT,
    DISCONNECT,
    END_OF_DATA,
    KNOWN_BUT_NOT_IMPLEMENTED,
    PARSERS,
    PSEUDO_COMMANDS,
    Command,
)
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

if TYPE_CHECKING:
    from prometheus_client import Counter

    from greensmtp.middleware.metrics.families import MetricFamilies

#: The label value for everything unknown.
OTHER = "other"
_VERBS = frozenset(PARSERS) | KNOWN_BUT_NOT_IMPLEMENTED | PSEUDO_COMMANDS
#: The reasons of ``disconnect``.
_ENDS = frozenset(
    {
        *("quit", "closed", "reset", "timeout", "slow", "refused", "displaced", "foreign", "shutdown", "tls"),
        "error",
    }
)
_TLS_VERSIONS = frozenset({"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"})
_MECHANISMS = frozenset(
    {
        *("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER", "EXTERNAL", "GSSAPI", "NTLM"),
        *("SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"),
    }
)
#: Enhanced status codes that have a time series of their own: handlers may use any number of them.
_MAX_ENHANCED = 100

Record = Callable[[Session, Command, Proceed], Reply]


class Recorder:
    """Counts into the metrics of one registry and namespace."""

    def __init__(self, families: MetricFamilies) -> None:
        self._families = families
        self._enhanced: dict[str, Callable[[], None]] = {}
        self._connected = families.connections.inc
        self._opened, self._closed = families.open.inc, families.open.dec
        self._observe_seconds, self._observe_size = families.message_seconds.observe, families.message_size.observe
        self._messages = {name: families.messages.labels(name).inc for name in (*_OUTCOMES, "lost")}
        self._recipients = {name: families.recipients.labels(name).inc for name in _OUTCOMES}
        self._ends = {end: families.sessions.labels(end).inc for end in (*_ENDS, OTHER)}
        #: verb -> what counts it. A verb has no time series before a client has sent it.
        self.by_verb: dict[str, Record] = {}

    def learn(self, verb: str) -> Record:
        """Return what counts a verb that was not seen before, and store it in ``by_verb``."""
        verb = verb if verb in _VERBS else OTHER
        count = self.by_verb.get(verb)
        if count is None:
            count = self.by_verb[verb] = _MAKERS.get(verb, Recorder._plain)(self, verb)
        return count

    def _plain(self, verb: str) -> Record:
        """Count the verb's replies and their time."""
        codes = _Codes(self._families.commands, verb)
        took = self._families.command_seconds.labels(verb).observe
        refused = self._refused

        def count(session: Session, command: Command, proceed: Proceed) -> Reply:
            began = perf_counter()
            reply = proceed(session, command)
            took(perf_counter() - began)
            code = reply.code
            codes[code]()
            if code >= 400:
                refused(reply)
            return reply

        return count

    def _refused(self, reply: Reply) -> None:
        enhanced = reply.enhanced or "none"
        count = self._enhanced.get(enhanced)
        if count is None:
            known = len(self._enhanced) < _MAX_ENHANCED
            count = self._families.refusals.labels(enhanced if known else OTHER).inc
            if known:
                self._enhanced[enhanced] = count
        count()

    def _state(self, session: Session) -> SessionState:
        state: SessionState | None = session.notes.get(self)
        if state is None:
            state = session.notes[self] = SessionState()
        return state

    def _accept(self, verb: str) -> Record:
        """ACCEPT: count the connection. The reply is counted if it is a refusal; otherwise CONNECT follows."""
        codes = _Codes(self._families.commands, verb)

        def accept(session: Session, command: Command, proceed: Proceed) -> Reply:
            self._open(session)
            reply = proceed(session, command)
            if reply.code >= 400:
                codes[reply.code]()
                self._refused(reply)
            return reply

        return accept

    def _connect(self, verb: str) -> Record:
        count = self._plain(verb)

        def connect(session: Session, command: Command, proceed: Proceed) -> Reply:
            self._see_tls(session, self._open(session))
            return count(session, command, proceed)

        return connect

    def _open(self, session: Session) -> SessionState:
        """Count the connection once. ``when`` may hide ACCEPT from this middleware, and let CONNECT through."""
        state = self._state(session)
        if not state.open:
            state.open = True
            self._connected()
            self._opened()
        return state

    def _reset(self, verb: str) -> Record:
        """RSET, HELO, EHLO and LHLO, which end a transaction. The first EHLO after STARTTLS shows that TLS is up."""
        count = self._plain(verb)

        def reset(session: Session, command: Command, proceed: Proceed) -> Reply:
            reply = count(session, command, proceed)
            state = self._state(session)
            self._lose_body(state)
            self._see_tls(session, state)
            return reply

        return reset

    def _mail(self, verb: str) -> Record:
        count = self._plain(verb)

        def mail(session: Session, command: Command, proceed: Proceed) -> Reply:
            began = perf_counter()
            reply = count(session, command, proceed)
            if reply.code < 300:
                state = self._state(session)
                self._lose_body(state)
                state.began = began
            return reply

        return mail

    def _body(self, verb: str) -> Record:
        """DATA and BDAT."""
        codes = _Codes(self._families.commands, verb)
        goes_on = 354 if verb == "DATA" else 250

        def body(session: Session, command: Command, proceed: Proceed) -> Reply:
            try:
                reply = proceed(session, command)
            except BaseException:
                # When the client is lost, the session forgets the body before DISCONNECT.
                self._state(session).body = session.message is not None and session.message.opened
                raise
            code = reply.code
            codes[code]()
            if code == goes_on:
                self._state(session).body = True
            elif code >= 400:
                self._refused(reply)
            return reply

        return body

    def _end_of_data(self, verb: str) -> Record:
        count = self._plain(verb)

        def end_of_data(session: Session, command: Command, proceed: Proceed) -> Reply:
            state = self._state(session)
            reply = count(session, command, proceed)
            outcome = _outcome(reply)
            recipient = getattr(command, "recipient", None)
            if recipient is None:
                self._recipients[outcome](len(session.to))
            else:  # LMTP: one of several replies. The message is accepted if one recipient accepts it.
                self._recipients[outcome](1)
                if state.outcome != "accepted":
                    state.outcome = outcome
                if recipient is not session.to[-1]:
                    return reply
                outcome, state.outcome = state.outcome, ""
            state.body = False
            self._messages[outcome]()
            if state.began:
                self._observe_seconds(perf_counter() - state.began)
            if session.message is not None:
                self._observe_size(session.message.size)
            return reply

        return end_of_data

    def _auth(self, verb: str) -> Record:
        count = self._plain(verb)

        def auth(session: Session, command: Command, proceed: Proceed) -> Reply:
            mechanism = command.argument.partition(" ")[0].upper()
            reply = count(session, command, proceed)
            label = mechanism if mechanism in _MECHANISMS else OTHER
            self._families.auth.labels(label, _outcome(reply)).inc()
            return reply

        return auth

    def _disconnect(self, verb: str) -> Record:
        def disconnect(session: Session, command: Command, proceed: Proceed) -> Reply:
            state = self._state(session)
            del session.notes[self]
            if state.open:
                self._closed()
            else:
                self._connected()
            self._lose_body(state)
            self._see_tls(session, state)
            self._ends.get(command.argument, self._ends[OTHER])()
            return proceed(session, command)

        return disconnect

    def _lose_body(self, state: SessionState) -> None:
        if state.body:
            state.body = False
            self._messages["lost"]()

    def _see_tls(self, session: Session, state: SessionState) -> None:
        if session.tls and not state.tls:
            state.tls = True
            version = cast(SSLSocket, session.socket).version()  # None once it is closed
            self._families.tls.labels(version if version in _TLS_VERSIONS else OTHER).inc()


_OUTCOMES = ("accepted", "deferred", "refused")


def _outcome(reply: Reply) -> str:
    return "accepted" if reply.code < 400 else "deferred" if reply.code < 500 else "refused"


#: verb -> what makes its Record, where more is counted than its replies and their time
_MAKERS: Mapping[str, Callable[[Recorder, str], Record]] = {
    ACCEPT: Recorder._accept,
    CONNECT: Recorder._connect,
    **dict.fromkeys(("RSET", "HELO", "EHLO", "LHLO"), Recorder._reset),
    "MAIL": Recorder._mail,
    **dict.fromkeys(("DATA", "BDAT"), Recorder._body),
    END_OF_DATA: Recorder._end_of_data,
    "AUTH": Recorder._auth,
    DISCONNECT: Recorder._disconnect,
}


class SessionState:
    """The state of one session."""

    __slots__ = ("began", "body", "open", "outcome", "tls")

    def __init__(self) -> None:
        #: The time of MAIL.
        self.began = 0.0
        #: A body is being received.
        self.body = False
        #: Counted as open.
        self.open = False
        #: LMTP: the outcome of the message so far.
        self.outcome = ""
        #: Counted as a TLS session.
        self.tls = False


class _Codes(dict[int, Callable[[], None]]):
    """Reply code -> what counts it, for one verb."""

    def __init__(self, commands: Counter, verb: str) -> None:
        self._commands = commands
        self._verb = verb

    def __missing__(self, code: int) -> Callable[[], None]:
        count = self[code] = self._commands.labels(self._verb, str(code)).inc
        return count
