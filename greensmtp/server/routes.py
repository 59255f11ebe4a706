"""What all connections of a server share: a composed chain for each verb, limits, continuations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from greensmtp.chain.chain import Chain, Proceed
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
        self.unknown = Route(chain.compose(None, dispatcher.terminal(UNKNOWN)), idle=True)
        #: None if no middleware wants ACCEPT.
        self.accept = compose(ACCEPT) if chain.wants(ACCEPT) else None
        self.connect = compose(CONNECT)
        self.end_of_data = compose(END_OF_DATA)
        self.disconnect = compose(DISCONNECT)

    def line_length(self, verb: str) -> int:
        """Return how many bytes a line of this verb may have, CRLF included."""
        return self._lines.get(verb, self.limits.max_line_length)

    def route(self, command: Command) -> Route:
        """Return how a command is handled."""
        return self.routes.get(command.verb, self.unknown)
