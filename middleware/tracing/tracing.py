"""Tracing: OpenTelemetry spans for each session and each message.

How it works. A session has a span, and each transaction a trace of its own, linked to the session's: a session may last
for hours, and a message's trace should end with the message. Within a transaction are the spans ``receive``, while the
body arrives, and ``deliver``, from its end to the reply.

The rules of this file:

- The current span is set in the connection's greenlet, which has a context of its own (PEP 567).
  It is set where a span begins and where one ends, rather than around each call: staged changes run when the stack has
  answered, and what they log belongs to the message as well.
- A session without a valid span (there is no SDK) has no state, and each command costs one look for it.
- The state ends with DISCONNECT, and every span that is open then is ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from greensmtp.chain.chain import Proceed
from greensmtp.middleware._message_replies import Replies, note_reply, told_replies
from greensmtp.middleware.tracing.spans import (
    Attributes,
    TracerProvider,
    enter,
    envelope_attributes,
    fail,
    make_tracer,
    note_reply_in,
    session_attributes,
    tls_attributes,
)
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
from greensmtp.protocol.log_text import shown
from greensmtp.protocol.reply import Reply
from greensmtp.session import Session

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

#: Commands whose span has their name; all others are ``other``.
_NAMED = (frozenset(PARSERS) | KNOWN_BUT_NOT_IMPLEMENTED) - PSEUDO_COMMANDS

#: How a session ends by a fault of the server's.
_FAULTS = frozenset({"error"})


class Tracing:
    """OpenTelemetry spans for each session and each message. Stack it outermost.

    Spans of handlers and of other middleware, and log records that carry the current span, become children of the
    message's span. Needs opentelemetry-api: ``pip install 'greensmtp[tracing]'``. The SDK and an exporter are set up by
    the program; without them nothing is recorded.

    :param tracer_provider: makes the tracer. Default: the one that the program has set, or sets later.
    :param addresses: record senders, recipients and users: personal data.
    :param commands: a span for each command, too.
    :raises ModuleNotFoundError: opentelemetry-api is missing; the text says how to install it.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, *, addresses: bool = False, commands: bool = False
    ) -> None:
        self._tracer = make_tracer(tracer_provider)
        self.addresses = addresses
        self.commands = commands
        self._hooks: dict[str, Callable[[_SessionSpan, Session, Command, Proceed], Reply]] = {
            CONNECT: self._connect,
            **dict.fromkeys(("HELO", "EHLO", "LHLO", "RSET"), self._reset),
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            **dict.fromkeys(("DATA", "BDAT"), self._data),
            END_OF_DATA: self._end_of_data,
            DISCONNECT: self._disconnect,
        }
        self.verbs: frozenset[str] | None = None if commands else frozenset({ACCEPT, *self._hooks})

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Record what the command begins or ends, and pass it on."""
        verb = command.verb
        state: _SessionSpan | None = session.notes.get(self)
        if state is None:
            return self._begin(session, command, proceed) if verb in (ACCEPT, CONNECT) else proceed(session, command)
        if self.commands and verb not in PSEUDO_COMMANDS:
            proceed = partial(self._command, state, proceed)
        hook = self._hooks.get(verb)
        return proceed(session, command) if hook is None else hook(state, session, command, proceed)

    def __repr__(self) -> str:
        return f"Tracing(addresses={self.addresses}, commands={self.commands})"

    # The session

    def _begin(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Begin the session's span at ACCEPT, or at CONNECT if ACCEPT is hidden from this middleware."""
        from opentelemetry.context import Context, get_current
        from opentelemetry.trace import SpanKind

        attributes = session_attributes(session)
        protocol = attributes["network.protocol.name"].upper()
        span = self._tracer.start_span(
            f"{protocol} session", context=Context(), kind=SpanKind.SERVER, attributes=attributes
        )
        if not span.get_span_context().is_valid:
            return proceed(session, command)
        state = session.notes[self] = _SessionSpan(protocol, span, get_current())
        state.leave()
        if command.verb == CONNECT:
            return self._connect(state, session, command, proceed)
        return state.refusal_of(proceed(session, command))

    def _connect(self, state: _SessionSpan, session: Session, command: Command, proceed: Proceed) -> Reply:
        state.note_tls(session)
        return state.refusal_of(proceed(session, command))

    def _disconnect(self, state: _SessionSpan, session: Session, command: Command, proceed: Proceed) -> Reply:
        from opentelemetry.context import attach

        reason = command.argument
        if state.message is not None:
            self._abandon(state, session, reason, failed=reason != "quit")
        try:
            return proceed(session, command)
        finally:
            span = state.span
            span.set_attribute("smtp.session.end", reason)
            span.set_attribute("smtp.session.messages", session.messages_accepted)
            if reason in _FAULTS:
                fail(span, reason)
            span.end()
            attach(state.outer)
            session.notes.pop(self, None)

    # The transaction

    def _mail(self, state: _SessionSpan, session: Session, command: Command, proceed: Proceed) -> Reply:
        if session.from_ is not None:
            return proceed(session, command)
        if state.message is not None:  # a handler has reset the session, or an outer middleware has refused MAIL
            self._abandon(state, session, "MAIL")
        message = state.message = self._begin_message(state, session)
        reply = proceed(session, command)
        if self.addresses:
            message.sender = str(getattr(command, "address", ""))
        if reply.code >= 400:
            message.reply = reply
            self._end(state, session)
        return reply

    def _begin_message(self, state: _SessionSpan, session: Session) -> _MessageSpan:
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, SpanKind

        attributes = session_attributes(session)
        attributes["smtp.transaction.id"] = session.transaction_id
        span = self._tracer.start_span(
            f"{state.protocol} transaction",
            context=Context(),
            kind=SpanKind.SERVER,
            attributes=attributes,
            links=[Link(state.span.get_span_context())],
        )
        return _MessageSpan(span, enter(span, Context()))

    def _rcpt(self, state: _SessionSpan, session: Session, command: Command, proceed: Proceed) -> Reply:
        reply = proceed(session, command)
        message = state.message
        if message is None:
            return reply
        message.recipients = session.to  # the session replaces its list
        if reply.code >= 400:
            refused: Attributes = {"smtp.reply.code": reply.code, "smtp.reply.enhanced_code": reply.enhanced or ""}
            if self.addresses:
                refused["smtp.recipient"] = shown(getattr(command, "address", None) or command.argument)
            message.span.add_event("recipient refused", refused)
        return reply

    def _data(self, state: _SessionSpan, session: Session, command: Command, proceed: Proceed) -> Reply:
        message = state.message
        if message is None:
            return proceed(session, command)
        if message.phase is None and session.to:
            message.begin(self._tracer.start_span(f"{state.protocol} receive", context=message.context))
        reply = proceed(session, command)
        flows = session.message is not None and session.message.opened
        if reply.code >= 400 and not flows and message.phase is not None:
            note_reply_in(message.phase, reply)
            message.end_phase()
            message.reply = reply  # the outcome, unless the client tries again
        return reply

    def _end_of_data(self, state: _SessionSpan, session: Session, command: Command, proceed: Proceed) -> Reply:
        message = state.message
        if message is None:
            return proceed(session, command)
        if not message.replies:
            message.end_phase()
            message.begin(self._tracer.start_span(f"{state.protocol} deliver", context=message.context))
            message.recipients = session.to  # the session replaces its list
        reply = proceed(session, command)
        note_reply(session, message.replies, reply, partial(self._answered, state, message, session))
        return reply

    def _answered(self, state: _SessionSpan, message: _MessageSpan, session: Session) -> None:
        """End a message's spans when the client has been told the replies."""
        told = [reply for reply in told_replies(session, message.replies) if reply is not None]
        if state.message is not message or not told:
            return  # the connection has ended: see DISCONNECT
        message.reply = max(told, key=attrgetter("code"))
        if message.phase is not None:
            note_reply_in(message.phase, message.reply)
        if session.message is not None:
            message.span.set_attribute("smtp.message.size", session.message.size)
        self._end(state, session)

    def _reset(self, state: _SessionSpan, session: Session, command: Command, proceed: Proceed) -> Reply:
        state.note_tls(session)
        reply = proceed(session, command)
        if state.message is not None and reply.code < 300:
            session.stage(self._abandon, state, session, command.verb)
        return reply

    def _abandon(self, state: _SessionSpan, session: Session, reason: str, *, failed: bool = False) -> None:
        """End a transaction without a reply to its message."""
        message = state.message
        if message is None:
            return
        message.span.set_attribute("smtp.transaction.end", reason)
        if failed:
            fail(message.span, reason)
        self._end(state, session)

    def _end(self, state: _SessionSpan, session: Session) -> None:
        """End the spans of a transaction, with its outcome."""
        message = state.message
        assert message is not None
        message.span.set_attribute("smtp.recipients.count", len(message.recipients))
        if self.addresses:
            message.span.set_attributes(envelope_attributes(session, message.sender, message.recipients))
        if message.reply is not None:
            note_reply_in(message.span, message.reply)
        state.end_message()

    # The command

    def _command(self, state: _SessionSpan, proceed: Proceed, session: Session, command: Command) -> Reply:
        """Pass a command on within a span of its own."""
        verb = command.verb if command.verb in _NAMED else "other"
        with self._tracer.start_as_current_span(
            f"{state.protocol} {verb}", record_exception=False, set_status_on_exception=False
        ) as span:
            reply = proceed(session, command)
            note_reply_in(span, reply)
            return reply


class _SessionSpan:
    """The span of a session, and those of its transaction."""

    __slots__ = ("_has_tls", "context", "message", "outer", "protocol", "span")

    def __init__(self, protocol: str, span: Span, outer: Context) -> None:
        from opentelemetry import trace

        self.protocol = protocol
        self.span = span
        #: The context before the session's.
        self.outer = outer
        self.context: Context = trace.set_span_in_context(span, outer)
        self.message: _MessageSpan | None = None
        self._has_tls = False

    def leave(self) -> None:
        """Make the session's span the current one."""
        from opentelemetry.context import attach

        attach(self.context)

    def note_tls(self, session: Session) -> None:
        """Note TLS version and cipher, once they are known."""
        if session.tls and not self._has_tls:
            self._has_tls = True
            self.span.set_attributes(tls_attributes(session))

    def refusal_of(self, reply: Reply) -> Reply:
        """Note a refusal of the connection; return the reply."""
        if reply.code >= 400:
            note_reply_in(self.span, reply)
        return reply

    def end_message(self) -> None:
        """End the spans of the transaction."""
        message, self.message = self.message, None
        assert message is not None
        if message.phase is not None:
            message.phase.end()
        message.span.end()
        self.leave()


class _MessageSpan:
    """The span of a transaction, and that of its phase: ``receive`` or ``deliver``."""

    __slots__ = ("context", "phase", "recipients", "replies", "reply", "sender", "span")

    def __init__(self, span: Span, context: Context) -> None:
        self.span = span
        self.context = context
        self.phase: Span | None = None
        self.replies: Replies = []
        #: The outcome so far.
        self.reply: Reply | None = None
        self.sender = ""
        self.recipients: Sequence[str] = ()

    def begin(self, phase: Span) -> None:
        """Begin a phase."""
        self.phase = phase
        enter(phase, self.context)

    def end_phase(self) -> None:
        """End the phase, if one has begun."""
        from opentelemetry.context import attach

        if self.phase is not None:
            self.phase.end()
            self.phase = None
            attach(self.context)
