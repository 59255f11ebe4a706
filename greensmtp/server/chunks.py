"""From one BDAT to the next: the replies and the commands between the chunks of one message (RFC 3030)."""

from __future__ import annotations

from greensmtp.errors import ConnectionLost, TransactionReset
from greensmtp.protocol.command import ChunkCommand
from greensmtp.protocol.reply import Reply
from greensmtp.server.body import skip
from greensmtp.server.command_loop import CommandLoop
from greensmtp.server.replier import Replier, further_recipients

#: Commands that end the body when they come between two chunks (RFC 3030 section 2).
_ENDS_CHUNKS = frozenset({"RSET", "QUIT", "HELO", "EHLO", "LHLO"})


#: Bytes below which a chunk costs more than it brings, so that it counts as an idle command.
SMALL_CHUNK = 256


def is_wasteful(command: ChunkCommand) -> bool:
    """Return True if a chunk counts as an idle command: a client could send any number of such for one message."""
    return command.size < SMALL_CHUNK and not command.last


def repeat_refusal(connection: Replier, command: ChunkCommand, reply: Reply) -> None:
    """LMTP: write all but one of the replies to the last chunk of a message that was refused.

    BDAT LAST gets one reply for each accepted RCPT (RFC 2033 section 4.3), and a client waits for all of them.
    """
    if command.last and connection.routes.lmtp and not reply.ends_connection:
        session = connection.session
        for _ in range(len(session.to) - len(further_recipients(session)) - 1):
            connection.transport.write(reply.encode())


class ChunkSequence:
    """The chunks of one message.

    The handler that reads the body is handling BDAT all the while; the commands between two chunks are handled within
    its ``read``.
    """

    __slots__ = ("_loop", "_pending")

    def __init__(self, loop: CommandLoop, first: ChunkCommand) -> None:
        self._loop = loop
        #: The reply that the present chunk gets at its end.
        self._pending: Reply | None = Reply(250, f"2.0.0 {first.size} octets received")

    def next_chunk(self) -> ChunkCommand:
        """Reply to the chunk that has ended, and return the next BDAT; commands before it are answered as usual.

        :raises TransactionReset: the client gives the body up, or its next chunk was refused.
        :raises ConnectionLost: a reply was the last one, or the client is gone.
        """
        loop = self._loop
        session = loop.session
        if self._pending is not None:
            loop.transport.write(self._pending.encode())
            self._pending = None
        while True:
            command = loop.read_command()
            if command.verb in _ENDS_CHUNKS:
                loop.next_command = command
                raise TransactionReset("the peer gave the transaction up between two chunks")
            route = loop.routes.route(command)
            outer = loop.current, loop.spent, session._staged
            loop.begin_command(command)
            try:
                reply = loop.settle(route.handle(session, command))
            except BaseException as error:
                reply = loop.settle(loop.error_reply(error, command.shown_verb))
            finally:
                loop.current, loop.spent, session._staged = outer
            loop.identity_before = session.identity
            if isinstance(command, ChunkCommand) and command.error is None and reply.code < 300:
                self._pending = reply
                if is_wasteful(command) and not loop.count_idle():
                    raise ConnectionLost("refused")
                return command
            if isinstance(command, ChunkCommand):
                repeat_refusal(loop, command, reply)
            if not loop.tell(command, reply) or (route.idle and not loop.count_idle()):
                raise ConnectionLost("refused")
            if isinstance(command, ChunkCommand):
                skip(loop.transport, command.size)
                raise TransactionReset("a chunk was refused")
