"""The recorder of Metrics: it counts what passes through, with one function for each verb.

Rules of this file:

- A label value is one of labels.py, whatever the client has sent.
- What counts a verb or a label value is looked up once, in tables, and not at each command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, cast

from gevent.ssl import SSLSocket

from greensmtp.chain.chain import Proceed
from greensmtp.middleware._message_replies import Replies, note_reply, outcome_of, told_replies
from greensmtp.middleware.metrics.labels import (
    ENDS,
    MECHANISMS,
    OTHER,
    OUTCOMES,
    TLS_VERSIONS,
    VERBS,
    EnhancedCodes,
    ReplyCodes,
)
from greensmtp.protocol.command import ACCEPT, CONNECT, DISCONNECT, END_OF_DATA, Command
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

if TYPE_CHECKING:
    from greensmtp.middleware.metrics.families import MetricFamilies
    from greensmtp.session.stream import MessageStream

#: Counts a command: called as a middleware is.
Record = Callable[[Session, Command, Proceed], Reply]


class Recorder:
    """Counts into the metrics of one registry and namespace."""

    def __init__(self, families: MetricFamilies) -> None:
        self._families = families
        self._refused = EnhancedCodes(families.refusals)
        self._connected = families.connections.inc
        self._opened, self._closed = families.open.inc, families.open.dec
        self._observe_seconds, self._observe_size = families.message_seconds.observe, families.message_size.observe
        self._messages = {name: families.messages.labels(name).inc for name in (*OUTCOMES, "lost")}
        self._recipients = {name: families.recipients.labels(name).inc for name in OUTCOMES}
        self._ends = {end: families.sessions.labels(end).inc for end in ENDS}
        #: verb -> what counts it. A verb has no time series before a client has sent it.
        self.by_verb: dict[str, Record] = {}

    def learn(self, verb: str) -> Record:
        """Return what counts a verb that was not seen before, and store it in ``by_verb``."""
        verb = verb if verb in VERBS else OTHER
        record = self.by_verb.get(verb)
        if record is None:
            record = self.by_verb[verb] = _MAKERS.get(verb, Recorder._plain)(self, verb)
        return record

    def _state(self, session: Session) -> SessionState:
        notes = session.notes
        state: SessionState | None = notes.get(self)
        if state is None:
            state = notes[self] = SessionState()
        return state

    # One function for each verb

    def _plain(self, verb: str) -> Record:
        """Count the verb's replies and their time."""
        codes = ReplyCodes(self._families.commands, verb)
        took = self._families.command_seconds.labels(verb).observe
        refused = self._refused

        def count(session: Session, command: Command, proceed: Proceed) -> Reply:
            began = perf_counter()
            reply = proceed(session, command)
            took(perf_counter() - began)
            code = reply.code
            codes[code]()
            if code >= 400:
                refused[reply.enhanced]()
            return reply

        return count

    def _accept(self, verb: str) -> Record:
        """ACCEPT: count the connection. The reply is counted if it is a refusal; otherwise CONNECT follows."""
        codes = ReplyCodes(self._families.commands, verb)

        def accept(session: Session, command: Command, proceed: Proceed) -> Reply:
            self._open(session)
            reply = proceed(session, command)
            if reply.code >= 400:
                codes[reply.code]()
                self._refused[reply.enhanced]()
            return reply

        return accept

    def _connect(self, verb: str) -> Record:
        count = self._plain(verb)

        def connect(session: Session, command: Command, proceed: Proceed) -> Reply:
            self._note_tls(session, self._open(session))
            return count(session, command, proceed)

        return connect

    def _reset(self, verb: str) -> Record:
        """RSET, HELO, EHLO and LHLO, which end a transaction. The first EHLO after STARTTLS shows that TLS is up."""
        count = self._plain(verb)

        def reset(session: Session, command: Command, proceed: Proceed) -> Reply:
            reply = count(session, command, proceed)
            state = self._state(session)
            self._lose_body(state)
            self._note_tls(session, state)
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
        codes = ReplyCodes(self._families.commands, verb)
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
                self._refused[reply.enhanced]()
            return reply

        return body

    def _end_of_data(self, verb: str) -> Record:
        codes = ReplyCodes(self._families.commands, verb)
        took = self._families.command_seconds.labels(verb).observe

        def end_of_data(session: Session, command: Command, proceed: Proceed) -> Reply:
            began = perf_counter()
            reply = proceed(session, command)
            took(perf_counter() - began)
            replies, message = self._state(session).replies, session.message
            note_reply(session, replies, reply)
            if len(replies) == 1 and message is not None:
                message.at_end(partial(self._end_message, session, message, len(session.to), codes))
            return reply

        return end_of_data

    def _auth(self, verb: str) -> Record:
        count = self._plain(verb)

        def auth(session: Session, command: Command, proceed: Proceed) -> Reply:
            mechanism = command.argument.partition(" ")[0].upper()
            reply = count(session, command, proceed)
            label = mechanism if mechanism in MECHANISMS else OTHER
            self._families.auth.labels(label, outcome_of(reply)).inc()
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
            self._note_tls(session, state)
            self._ends.get(command.argument, self._ends[OTHER])()
            return proceed(session, command)

        return disconnect

    # Within

    def _open(self, session: Session) -> SessionState:
        """Count the connection once. ``when`` may hide ACCEPT from this middleware, and let CONNECT through."""
        state = self._state(session)
        if not state.open:
            state.open = True
            self._connected()
            self._opened()
        return state

    def _end_message(self, session: Session, message: MessageStream, recipients: int, codes: ReplyCodes) -> None:
        """Count the replies to a message as the client was told them."""
        state = self._state(session)
        replies, state.replies = told_replies(session, state.replies, message), []
        lmtp = session.server.lmtp
        total = ""
        for reply in replies:
            if reply is None:
                return  # the connection has ended: DISCONNECT counts the message as lost
            codes[reply.code]()
            if reply.code >= 400:
                self._refused[reply.enhanced]()
            outcome = outcome_of(reply)
            self._recipients[outcome](1 if lmtp else recipients)
            if total != "accepted":  # a message is accepted if one recipient accepts it
                total = outcome
        if lmtp and len(replies) < recipients:
            return
        state.body = False
        self._messages[total]()
        if state.began:
            self._observe_seconds(perf_counter() - state.began)
        self._observe_size(message.size)

    def _lose_body(self, state: SessionState) -> None:
        if state.body:
            state.body = False
            self._messages["lost"]()

    def _note_tls(self, session: Session, state: SessionState) -> None:
        if session.tls and not state.tls:
            state.tls = True
            version = cast(SSLSocket, session.socket).version()  # None once it is closed
            self._families.tls.labels(version if version in TLS_VERSIONS else OTHER).inc()


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

    __slots__ = ("began", "body", "open", "replies", "tls")

    def __init__(self) -> None:
        #: The time of MAIL.
        self.began = 0.0
        #: A body is being received.
        self.body = False
        #: Counted as open.
        self.open = False
        #: The replies to the message.
        self.replies: Replies = []
        #: Counted as a TLS session.
        self.tls = False
