"""The recorder of Metrics: it counts what passes through.

Rules of this file:

- A label value is one of labels.py, whatever the client has sent.
- What counts a verb or a label value is looked up once, in tables, and not at each command.
- What is counted once a message has the message's ID as its exemplar. Not every one: three exemplars take 38,000
  instructions, more than all that is counted of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING

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

#: Of the accepted messages, one is an exemplar in EXEMPLAR_SECONDS, and each that took at least SLOW_SECONDS.
EXEMPLAR_SECONDS = 1.0
SLOW_SECONDS = 1.0

#: Counts a command: called as a middleware is.
Record = Callable[[Session, Command, Proceed], Reply]
#: ``(recorder, session, command, reply, began)``: counts something more.
After = Callable[["Recorder", Session, Command, Reply, float], None]


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
        #: When an accepted message was last an exemplar. (The clock may have begun with the machine, seconds ago.)
        self._exemplar_seen = -inf
        #: verb -> what counts it. A verb has no time series before a client has sent it.
        self.by_verb: dict[str, Record] = {}

    def learn(self, verb: str) -> Record:
        """Return what counts a verb that was not seen before, and store it in ``by_verb``."""
        verb = verb if verb in VERBS else OTHER
        record = self.by_verb.get(verb)
        if record is None:
            record = self.by_verb[verb] = self._make(verb)
        return record

    def _make(self, verb: str) -> Record:
        codes = ReplyCodes(self._families.commands, verb)
        if verb == ACCEPT:
            return partial(self._accept, codes)
        if verb in ("DATA", "BDAT"):
            return partial(self._body, codes, 354 if verb == "DATA" else 250)
        if verb == DISCONNECT:
            return self._disconnect
        took = self._families.command_seconds.labels(verb).observe
        if verb == END_OF_DATA:
            return partial(self._end_of_data, codes, took)
        return self._usual(codes, took, _AFTER.get(verb))

    def _usual(self, codes: ReplyCodes, took: Callable[[float], None], after: After | None) -> Record:
        """Return what counts a verb's replies and their time."""
        refused = self._refused

        def count(session: Session, command: Command, proceed: Proceed) -> Reply:
            began = perf_counter()
            reply = proceed(session, command)
            took(perf_counter() - began)
            code = reply.code
            codes[code]()
            if code >= 400:
                refused[reply.enhanced]()
            if after is not None:
                after(self, session, command, reply, began)
            return reply

        return count

    # What else some verbs count, after the reply

    def _after_connect(self, session: Session, command: Command, reply: Reply, began: float) -> None:
        self._note_tls(session, self._open(session))

    def _after_reset(self, session: Session, command: Command, reply: Reply, began: float) -> None:
        """RSET, HELO, EHLO and LHLO end a transaction. The first EHLO after STARTTLS shows that TLS is up."""
        state = self._state(session)
        self._lose_body(state)
        self._note_tls(session, state)

    def _after_mail(self, session: Session, command: Command, reply: Reply, began: float) -> None:
        if reply.code < 300:
            state = self._state(session)
            self._lose_body(state)
            state.began = began

    def _after_auth(self, session: Session, command: Command, reply: Reply, began: float) -> None:
        mechanism = command.argument.partition(" ")[0].upper()
        self._families.auth.labels(mechanism if mechanism in MECHANISMS else OTHER, outcome_of(reply)).inc()

    # Verbs that are counted in other ways

    def _accept(self, codes: ReplyCodes, session: Session, command: Command, proceed: Proceed) -> Reply:
        """ACCEPT: count the connection. The reply is counted if it is a refusal; otherwise CONNECT follows."""
        self._open(session)
        reply = proceed(session, command)
        if reply.code >= 400:
            self._count_reply(codes, reply)
        return reply

    def _body(self, codes: ReplyCodes, goes_on: int, session: Session, command: Command, proceed: Proceed) -> Reply:
        """DATA and BDAT: no time, which would be that of the body."""
        try:
            reply = proceed(session, command)
        except BaseException:
            # When the client is lost, the session forgets the body before DISCONNECT.
            if session.message is not None and session.message.opened:
                self._state(session).begin_body(session)
            raise
        self._count_reply(codes, reply)
        if reply.code == goes_on:
            self._state(session).begin_body(session)
        return reply

    def _end_of_data(
        self, codes: ReplyCodes, took: Callable[[float], None], session: Session, command: Command, proceed: Proceed
    ) -> Reply:
        state = self._state(session)
        if not state.replies:
            state.recipients = len(session.to)
        began = perf_counter()
        reply = proceed(session, command)
        took(perf_counter() - began)
        note_reply(session, state.replies, reply, partial(self._end_message, session, codes))
        return reply

    def _disconnect(self, session: Session, command: Command, proceed: Proceed) -> Reply:
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

    # Within

    def _count_reply(self, codes: ReplyCodes, reply: Reply) -> None:
        codes[reply.code]()
        if reply.code >= 400:
            self._refused[reply.enhanced]()

    def _state(self, session: Session) -> SessionState:
        notes = session.notes
        state: SessionState | None = notes.get(self)
        if state is None:
            state = notes[self] = SessionState()
        return state

    def _open(self, session: Session) -> SessionState:
        """Count the connection once. ``when`` may hide ACCEPT from this middleware, and let CONNECT through."""
        state = self._state(session)
        if not state.open:
            state.open = True
            self._connected()
            self._opened()
        return state

    def _end_message(self, session: Session, codes: ReplyCodes) -> None:
        """Count the replies to a message as the client was told them."""
        state = self._state(session)
        replies, state.replies = told_replies(session, state.replies), []
        lmtp = session.server.lmtp
        total = ""
        for reply in replies:
            if reply is None:
                return  # the client was not told: the message is counted as lost at the next MAIL or DISCONNECT
            self._count_reply(codes, reply)
            outcome = outcome_of(reply)
            self._recipients[outcome](1 if lmtp else state.recipients)
            if total != "accepted":  # a message is accepted if one recipient accepts it
                total = outcome
        if lmtp and len(replies) < state.recipients:
            return
        state.body = False
        now = perf_counter()
        seconds = now - state.began if state.began else 0.0
        exemplar: dict[str, str] | None = None
        if total != "accepted" or seconds >= SLOW_SECONDS:
            exemplar = {"transaction_id": state.transaction_id}
        elif now - self._exemplar_seen >= EXEMPLAR_SECONDS:
            self._exemplar_seen = now
            exemplar = {"transaction_id": state.transaction_id}
        self._messages[total](1, exemplar)
        if state.began:
            self._observe_seconds(seconds, exemplar)
        if session.message is not None:
            self._observe_size(session.message.size, exemplar)

    def _lose_body(self, state: SessionState) -> None:
        if state.body:
            state.body = False
            self._messages["lost"](1, {"transaction_id": state.transaction_id})

    def _note_tls(self, session: Session, state: SessionState) -> None:
        if session.tls and not state.tls:
            state.tls = True
            version = session.tls_version  # None once the socket is closed
            self._families.tls.labels(version if version in TLS_VERSIONS else OTHER).inc()


#: verb -> what else it counts
_AFTER: Mapping[str, After] = {
    CONNECT: Recorder._after_connect,
    **dict.fromkeys(("RSET", "HELO", "EHLO", "LHLO"), Recorder._after_reset),
    "MAIL": Recorder._after_mail,
    "AUTH": Recorder._after_auth,
}


class SessionState:
    """The state of one session."""

    __slots__ = ("began", "body", "open", "recipients", "replies", "tls", "transaction_id")

    def __init__(self) -> None:
        #: The time of MAIL.
        self.began = 0.0
        #: A body is being received.
        self.body = False
        #: The message, for exemplars.
        self.transaction_id = ""
        #: Counted as open.
        self.open = False
        #: The recipients of the message, and the replies to it.
        self.recipients = 0
        self.replies: Replies = []
        #: Counted as a TLS session.
        self.tls = False

    def begin_body(self, session: Session) -> None:
        """Note that a body is being received."""
        self.body = True
        self.transaction_id = session.transaction_id
