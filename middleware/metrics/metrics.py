"""Metrics: connections, sessions, commands, messages and refusals in numbers, for Prometheus."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, cast

from gevent.ssl import SSLSocket

from greensmtp.chain.chain import Proceed
from greensmtp.errors import ArgumentError
from greensmtp.middleware.metrics.counters import Codes, Numbers, Registry, check_registry
from greensmtp.middleware.metrics.http import MetricsServer, parse_address
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

# Every label has few values, whatever peers say: each value is a time series, and kept for ever.

#: What is no verb of these counts as this; other labels have the same.
OTHER = "other"
_VERBS = frozenset(PARSERS) | KNOWN_BUT_NOT_IMPLEMENTED | PSEUDO_COMMANDS
#: How sessions end, as ``disconnect`` tells it.
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
#: Enhanced codes are the handlers' choice, and one may be made of whatever they like.
_MAX_ENHANCED = 100

_NAMESPACE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

Counting = Callable[[Session, Command, Proceed], Reply]


class Metrics:
    """Counts what passes through; stack it outermost, so that it sees what the others answer.

    ===================================== =====================================================================
    ``connections_open``                  gauge
    ``connections_total``
    ``sessions_total{end}``               quit, closed, reset, timeout, slow, refused, displaced, foreign, tls ...
    ``tls_sessions_total{version}``
    ``commands_total{verb,code}``         answered commands; CONNECT, END-OF-DATA, refused ACCEPT too
    ``command_seconds{verb}``             histogram; not of DATA and BDAT, whose bodies flow meanwhile
    ``messages_total{outcome}``           accepted, deferred (4xx), refused (5xx), lost (its body had begun)
    ``message_seconds``                   histogram: from MAIL to the last reply
    ``message_size_bytes``                histogram
    ``recipients_total{outcome}``         of those messages
    ``auth_total{mechanism,outcome}``     accepted, deferred, refused
    ``refusals_total{enhanced}``          4xx and 5xx replies by enhanced status code: limits and policy are x.7.y
    ===================================== =====================================================================

    Connections that are turned away at ACCEPT are counted, also those that ``max_connections`` refuses. Needs
    prometheus-client: ``pip install 'greensmtp[metrics]'``.

    :param registry: a ``prometheus_client.CollectorRegistry``; the library's own by default, which tells of the
        process besides. Several Metrics of one registry and namespace count together.
    :param namespace: what the names begin with, and an underscore.
    :param listen: ``"127.0.0.1:9100"``: tell them at ``http://127.0.0.1:9100/metrics``, from the start of the first
        server that uses it to the stop of the last; whoever can connect there may read them.
    :raises ValueError, TypeError: an argument cannot be right; the text says what it takes.
    :raises ModuleNotFoundError: prometheus-client is missing; the text says how to install it.
    """

    def __init__(
        self,
        registry: Registry | None = None,
        namespace: str = "greensmtp",
        listen: str | tuple[str, int] | None = None,
    ) -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise ArgumentError(
                "namespace", f"takes letters, digits and underscores, like 'greensmtp', not {namespace!r}"
            )
        self._listen = None if listen is None else parse_address(listen)
        #: Where the numbers are kept.
        self.registry = check_registry(registry)
        self._namespace = namespace
        self._numbers = numbers = Numbers.of(self.registry, namespace)
        self._expositions: dict[Any, MetricsServer] = {}
        self._enhanced: dict[str, Callable[[], None]] = {}
        # What a label's value stands for is looked up here, once, and not at each command.
        self._connected = numbers.connections.inc
        self._opened, self._closed = numbers.open.inc, numbers.open.dec
        self._took, self._weighed = numbers.message_seconds.observe, numbers.message_size.observe
        self._messages = {name: numbers.messages.labels(name).inc for name in (*_OUTCOMES, "lost")}
        self._recipients = {name: numbers.recipients.labels(name).inc for name in _OUTCOMES}
        self._ends = {end: numbers.sessions.labels(end).inc for end in (*_ENDS, OTHER)}
        #: verb -> what counts it. A verb nobody has said yet has no time series.
        self._counting: dict[str, Counting] = {}

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Count it."""
        count = self._counting.get(command.verb)
        if count is None:
            count = self._learn(command.verb)
        return count(session, command, proceed)

    def __repr__(self) -> str:
        where = "" if self._listen is None else f", listen={_shown(self._listen)!r}"
        return f"Metrics(namespace={self._namespace!r}{where})"

    # The listener

    @property
    def address(self) -> tuple[str, int] | None:
        """Where ``/metrics`` is being told; with port 0, the real one. None: nowhere just now."""
        return next((exposition.address for exposition in self._expositions.values()), None)

    def start(self, server: Any) -> None:
        """A server starts that uses this.

        :raises OSError: the address of ``listen`` cannot be had.
        """
        if self._listen is not None:
            self._expositions[server] = MetricsServer.use(self, self.registry, *self._listen)

    def stop(self, server: Any) -> None:
        """It has stopped."""
        exposition = self._expositions.pop(server, None)
        if exposition is not None and exposition not in self._expositions.values():
            exposition.leave(self)

    # Counting

    def _learn(self, verb: str) -> Counting:
        verb = verb if verb in _VERBS else OTHER
        count = self._counting.get(verb)
        if count is None:
            count = self._counting[verb] = _COUNTING.get(verb, Metrics._plain)(self, verb)
        return count

    def _plain(self, verb: str) -> Counting:
        """Count a command's replies, and its time."""
        codes = Codes(self._numbers.commands, verb)
        took = self._numbers.command_seconds.labels(verb).observe
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
            count = self._numbers.refusals.labels(enhanced if known else OTHER).inc
            if known:
                self._enhanced[enhanced] = count
        count()

    def _state(self, session: Session) -> _State:
        state: _State | None = session.notes.get(self)
        if state is None:
            state = session.notes[self] = _State()
        return state

    def _accept(self, verb: str) -> Counting:
        """Where a connection begins. Its answer is counted if it is a refusal: nearly all go on to CONNECT."""
        codes = Codes(self._numbers.commands, verb)

        def accept(session: Session, command: Command, proceed: Proceed) -> Reply:
            self._open(session)
            reply = proceed(session, command)
            if reply.code >= 400:
                codes[reply.code]()
                self._refused(reply)
            return reply

        return accept

    def _connect(self, verb: str) -> Counting:
        count = self._plain(verb)

        def connect(session: Session, command: Command, proceed: Proceed) -> Reply:
            self._see_tls(session, self._open(session))
            return count(session, command, proceed)

        return connect

    def _open(self, session: Session) -> _State:
        """Count the connection, once: ``when`` may keep ACCEPT from this middleware, and let CONNECT through."""
        state = self._state(session)
        if not state.open:
            state.open = True
            self._connected()
            self._opened()
        return state

    def _reset(self, verb: str) -> Counting:
        """RSET, and the greetings, which end a transaction too; TLS is up when the first is said over it."""
        count = self._plain(verb)

        def reset(session: Session, command: Command, proceed: Proceed) -> Reply:
            reply = count(session, command, proceed)
            state = self._state(session)
            self._lose_body(state)
            self._see_tls(session, state)
            return reply

        return reset

    def _mail(self, verb: str) -> Counting:
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

    def _body(self, verb: str) -> Counting:
        """DATA and BDAT."""
        codes = Codes(self._numbers.commands, verb)
        goes_on = 354 if verb == "DATA" else 250

        def body(session: Session, command: Command, proceed: Proceed) -> Reply:
            try:
                reply = proceed(session, command)
            except BaseException:
                # Where the peer is lost, the session has forgotten the body by the time it is told.
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

    def _end_of_data(self, verb: str) -> Counting:
        count = self._plain(verb)

        def end_of_data(session: Session, command: Command, proceed: Proceed) -> Reply:
            state = self._state(session)
            reply = count(session, command, proceed)
            outcome = _outcome(reply)
            recipient = getattr(command, "recipient", None)
            if recipient is None:
                self._recipients[outcome](len(session.to))
            else:  # LMTP: one of several. The message has been accepted, if it has for one of them.
                self._recipients[outcome](1)
                if state.outcome != "accepted":
                    state.outcome = outcome
                if recipient is not session.to[-1]:
                    return reply
                outcome, state.outcome = state.outcome, ""
            state.body = False
            self._messages[outcome]()
            if state.began:
                self._took(perf_counter() - state.began)
            if session.message is not None:
                self._weighed(session.message.size)
            return reply

        return end_of_data

    def _auth(self, verb: str) -> Counting:
        count = self._plain(verb)

        def auth(session: Session, command: Command, proceed: Proceed) -> Reply:
            mechanism = command.argument.partition(" ")[0].upper()
            reply = count(session, command, proceed)
            label = mechanism if mechanism in _MECHANISMS else OTHER
            self._numbers.auth.labels(label, _outcome(reply)).inc()
            return reply

        return auth

    def _disconnect(self, verb: str) -> Counting:
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

    def _lose_body(self, state: _State) -> None:
        if state.body:
            state.body = False
            self._messages["lost"]()

    def _see_tls(self, session: Session, state: _State) -> None:
        if session.tls and not state.tls:
            state.tls = True
            version = cast(SSLSocket, session.socket).version()  # None once it is closed
            self._numbers.tls.labels(version if version in _TLS_VERSIONS else OTHER).inc()


#: verb -> what makes its counting, where there is more to it than its replies and its time
_COUNTING: Mapping[str, Callable[[Metrics, str], Counting]] = {
    ACCEPT: Metrics._accept,
    CONNECT: Metrics._connect,
    **dict.fromkeys(("RSET", "HELO", "EHLO", "LHLO"), Metrics._reset),
    "MAIL": Metrics._mail,
    **dict.fromkeys(("DATA", "BDAT"), Metrics._body),
    END_OF_DATA: Metrics._end_of_data,
    "AUTH": Metrics._auth,
    DISCONNECT: Metrics._disconnect,
}


class _State:
    """What is known of one session."""

    __slots__ = ("began", "body", "open", "outcome", "tls")

    def __init__(self) -> None:
        #: When its transaction has begun.
        self.began = 0.0
        #: A body is being received.
        self.body = False
        #: Counted as open.
        self.open = False
        #: LMTP: of the message so far.
        self.outcome = ""
        #: Counted as a TLS session.
        self.tls = False


_OUTCOMES = ("accepted", "deferred", "refused")


def _outcome(reply: Reply) -> str:
    return "accepted" if reply.code < 400 else "deferred" if reply.code < 500 else "refused"


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
