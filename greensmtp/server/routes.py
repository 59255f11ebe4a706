"""What all connections of a server share: a composed chain for each verb, limits, continuations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from greensmtp.chain.chain import Chain, Middleware, Proceed
from greensmtp.protocol.command import (
    ACCEPT,
    CONNECT,
    DISCONNECT,
    END_OF_DATA,
    KNOWN_BUT_NOT_IMPLEMENTED,
    PARSERS,
    PSEUDO_COMMANDS,
    UNKNOWN,
    Command,
    parse_command,
)
from greensmtp.protocol.reply import Reply
from greensmtp.server.dispatcher import Dispatcher
from greensmtp.server.limits import Limits
from greensmtp.session import Session

#: ``(handler, command, reply) -> go on``: writes the reply, and sees to what follows it: a body, a handshake, the end.
Continuation = Callable[[Any, Command, Reply], bool]

#: Verbs that bring a message nearer, and so are not counted by ``max_idle_commands``.
_USEFUL = frozenset({"MAIL", "RCPT", "DATA", "BDAT", "QUIT"})


class Route(NamedTuple):
    """How one verb is handled."""

    handle: Proceed
    #: True if it is counted by ``max_idle_commands``.
    idle: bool
    #: Called instead of writing the reply; returns False to end the connection.
    continuation: Continuation | None = None


class Routes:
    """Limits, composed chains and verbs of a server. Made once, when it starts."""

    def __init__(
        self,
        chain: Chain,
        dispatcher: Dispatcher,
        limits: Limits,
        extra_length: Mapping[str, int],
        continuations: Mapping[str, Continuation],
        *,
        lmtp: bool,
        parse: Callable[[bytes], Command] = parse_command,
        tls_context: Callable[[], Any],
    ) -> None:
        """
        :param extra_length: verb -> bytes that extensions add to its longest line.
        :param continuations: verb -> its continuation.
        :param parse: parses a command line, strictly or leniently.
        :param tls_context: returns the context for a handshake.
        """
        self.dispatcher = dispatcher
        self.limits = limits
        self.lmtp = lmtp
        self.parse = parse
        self.tls_context = tls_context
        self._lines = {verb: limits.max_line_length + extra for verb, extra in extra_length.items()}
        self._lines["AUTH"] = limits.max_auth_line_length
        self.line_limit = max(limits.max_line_length, *self._lines.values())

        def compose(verb: str) -> Proceed:
            return chain.compose(verb, dispatcher.terminal(verb))

        verbs = (frozenset(PARSERS) | KNOWN_BUT_NOT_IMPLEMENTED | chain.verbs) - PSEUDO_COMMANDS
        self.routes = {verb: Route(compose(verb), verb not in _USEFUL, continuations.get(verb)) for verb in verbs}
        # Connections keep this row, so what handles it is looked up: an observer may stand around it.
        self.unknown = Route(self._unknown, idle=True)
        self._handle_unknown = chain.compose(None, dispatcher.terminal(UNKNOWN))
        #: None if no middleware wants ACCEPT.
        self.accept = compose(ACCEPT) if chain.wants(ACCEPT) else None
        self.connect = compose(CONNECT)
        self.end_of_data = compose(END_OF_DATA)
        self.disconnect = compose(DISCONNECT)
        #: Middleware around the whole stack, for as long as an operator looks; and what is there without it.
        self._observers: tuple[Middleware, ...] = ()
        self._unobserved: dict[str, Any] = {}

    def line_length(self, verb: str) -> int:
        """Return how many bytes a line of this verb may have, CRLF included."""
        return self._lines.get(verb, self.limits.max_line_length)

    def route(self, command: Command) -> Route:
        """Return how a command is handled."""
        return self.routes.get(command.verb, self.unknown)

    def _unknown(self, session: Session, command: Command) -> Reply:
        return self._handle_unknown(session, command)

    # Observers

    def observe(self, observer: Middleware) -> None:
        """Put a middleware around the whole stack, for the connections that are open too. Twice is once.

        While there is none, nothing is called and nothing is checked: what handles each verb is exchanged. It must not
        raise, nor change a reply.
        """
        if observer not in self._observers:
            self._exchange((*self._observers, observer))

    def forget(self, observer: Middleware) -> None:
        """Take an observer away."""
        if observer in self._observers:
            self._exchange(tuple(each for each in self._observers if each is not observer))

    def _exchange(self, observers: tuple[Middleware, ...]) -> None:
        """Restore what handles each verb, and put the observers around it."""
        names = ("accept", "connect", "end_of_data", "disconnect", "_handle_unknown")
        if not self._observers:
            self._unobserved = {name: getattr(self, name) for name in names} | {"routes": dict(self.routes)}
        before, self._observers = self._unobserved, observers

        def around(handle: Proceed) -> Proceed:
            for observer in reversed(observers):
                handle = partial(_observed, observer, handle)
            return handle

        for name in names:
            setattr(self, name, None if before[name] is None else around(before[name]))
        for verb, route in before["routes"].items():
            self.routes[verb] = route._replace(handle=around(route.handle))  # (connections have this dict)


def _observed(observer: Middleware, handle: Proceed, session: Session, command: Command) -> Reply:
    return observer(session, command, handle)
