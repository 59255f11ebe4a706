"""What the connections of one server share: chains composed for each verb, limits, what follows which command."""

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
)
from greensmtp.protocol.reply import Reply
from greensmtp.server.dispatcher import Dispatcher
from greensmtp.server.limits import Limits

#: ``(conversation, command, reply) -> go on``: sends the reply, and sees to a body, a handshake, the end.
Continuation = Callable[[Any, Command, Reply], bool]

#: Verbs that bring a message nearer, and so are not counted by ``max_idle_commands``. (AUTH needs several tries.)
_USEFUL = frozenset({"MAIL", "RCPT", "DATA", "BDAT", "QUIT"})


class Route(NamedTuple):
    """What becomes of one verb."""

    handle: Proceed
    #: Counted by ``max_idle_commands``.
    idle: bool
    #: Sees to what follows the command, reply included: a body, a handshake, the end. Gives False for the end.
    follow: Continuation | None = None


class Routes:
    """All that the connections of a server share: limits, composed chains, verbs. Made once, at its start."""

    def __init__(
        self,
        chain: Chain,
        dispatcher: Dispatcher,
        limits: Limits,
        room: Mapping[str, int],
        follow: Mapping[str, Continuation],
        *,
        lmtp: bool,
    ) -> None:
        """
        :param room: verb -> octets that extensions add to its longest line.
        :param follow: verb -> what sees to what follows it.
        """
        self.dispatcher = dispatcher
        self.limits = limits
        self.lmtp = lmtp
        self._lines = {verb: limits.max_line_length + octets for verb, octets in room.items()}
        self._lines["AUTH"] = limits.max_auth_line_length
        self.line_limit = max(limits.max_line_length, *self._lines.values())

        def compose(verb: str) -> Proceed:
            return chain.compose(verb, dispatcher.terminal(verb))

        verbs = (frozenset(PARSERS) | KNOWN_BUT_NOT_IMPLEMENTED | chain.verbs) - PSEUDO_COMMANDS
        self.routes = {verb: Route(compose(verb), idle=verb not in _USEFUL, follow=follow.get(verb)) for verb in verbs}
        self.unknown = Route(chain.compose(None, dispatcher.terminal(UNKNOWN)), idle=True)
        self.accept = compose(ACCEPT)
        self.connect = compose(CONNECT)
        self.end_of_data = compose(END_OF_DATA)
        self.disconnect = compose(DISCONNECT)

    def line_length(self, verb: str) -> int:
        """Octets in the longest line of this verb, CRLF included."""
        return self._lines.get(verb, self.limits.max_line_length)
