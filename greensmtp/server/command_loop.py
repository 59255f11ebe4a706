"""Commands in, replies out: reads a command, passes it through its chain, and has the reply written.

The rules of this file:

- What has been pipelined is handled before anything is written: replies are gathered in the transport, which sends them
  before it waits for input (RFC 2920).
- This is the hot path, whose calls are counted by tests/test_costs.py. So the steps of ``read_command``,
  ``begin_command`` and ``answer`` stand in the loop itself too.
- A few verbs have a continuation, which writes the reply by itself, and sees to what follows: a body, a handshake, the
  end.
"""

from __future__ import annotations

from typing import Final

from greensmtp.errors import ConnectionLost
from greensmtp.protocol.command import UNKNOWN, Command, is_foreign
from greensmtp.protocol.line_reader import BadLine
from greensmtp.server.dispatcher import add_recipient, begin, hello
from greensmtp.server.replier import PROMISES, Replier
from greensmtp.server.supervised import UNSEEN
from greensmtp.session import Change

#: Lines that need no parsing.
_LONE: Final = {verb.encode(): Command(verb) for verb in ("DATA", "RSET", "NOOP", "QUIT")}

#: Part of every HTTP request line. (``find`` takes half the time of ``in``: CPython first tries the bytes as an int,
#: and raises and drops a TypeError.)
_HTTP: Final = b" HTTP/"

_NOTHING: Final[tuple[Change, ...]] = ()

#: Changes of the dispatcher's that raise nothing.
_CANNOT_FAIL: Final = frozenset({begin, add_recipient, hello})


class CommandLoop(Replier):
    """One connection: its commands, one after the other."""

    __slots__ = ()

    def handle_commands(self) -> None:
        """Handle commands until a reply was the last one.

        :raises ConnectionLost: the client is gone or late, it speaks another protocol, or the server is draining.
        """
        session, registry, transport = self.session, self.registry, self.transport
        routes, unknown, parse = self.routes.routes, self.routes.unknown, self.routes.parse
        while True:
            self.current = None
            if registry.draining or self.next_command is not None:
                command = self.read_command()
            else:
                # As in read_command:
                try:
                    line = transport.read_line()
                    command = _LONE.get(line) or parse(line)
                    if (command.verb not in routes or line.find(_HTTP) >= 0) and is_foreign(line):
                        raise ConnectionLost("foreign")
                except BadLine as bad:
                    command = _refused(bad)
            handle, idle, continuation = routes.get(command.verb, unknown)
            # As in begin_command:
            self.current = command
            self.spent = UNSEEN
            self.identity_before = session.identity
            session._staged = _NOTHING  # what was staged from elsewhere, after its command had been answered
            if session.from_ is None:
                # What was noted before belongs to no transaction.
                session._transaction_notes = session._transaction_id = None
                if session._at_end:
                    session._end_transaction()  # of a MAIL that was refused
            try:
                reply = handle(session, command)
            except BaseException as error:
                reply = self.error_reply(error, command.shown_verb)
            if continuation is not None:
                if not continuation(self, command, reply):
                    return
            elif reply.code < 300:
                staged = session._staged
                if len(staged) == 1 and staged[0][0] in _CANNOT_FAIL:
                    # As in take_effect:
                    session._staged = _NOTHING
                    change, arguments = staged[0]
                    change(*arguments)
                elif staged or command.verb in PROMISES:
                    reply = self.take_effect(reply)
                transport.write(reply.wire or reply.encode())
            elif not self.answer(command, reply):
                return
            if idle and not self.count_idle():
                return

    def read_command(self) -> Command:
        """Return the next command; a malformed line yields a Command with ``error`` set.

        :raises ConnectionLost: see ``handle_commands``.
        """
        command = self.next_command
        if command is not None:
            self.next_command = None
            return command
        if self.registry.draining and self.session.from_ is None:
            raise ConnectionLost("shutdown")  # a pipelined command must not begin another transaction
        try:
            line = self.transport.read_line()
        except BadLine as bad:
            return _refused(bad)
        command = self.routes.parse(line)
        if (command.verb not in self.routes.routes or line.find(_HTTP) >= 0) and is_foreign(line):
            raise ConnectionLost("foreign")
        return command


def _refused(bad: BadLine) -> Command:
    """Return a command for a line that cannot be one.

    :raises ConnectionLost: it belongs to another protocol.
    """
    if bad.is_foreign:
        raise ConnectionLost("foreign") from None
    return Command(UNKNOWN, "", bad.reply)
