"""Bodies over a connection: DATA's, which is dot-stuffed, and BDAT's, which comes in counted chunks."""

from __future__ import annotations

from collections.abc import Callable

from greensmtp.protocol.chunking import ChunkDecoder
from greensmtp.protocol.command import ChunkCommand
from greensmtp.protocol.dot_stuffing import DotDecoder
from greensmtp.protocol.reply import Reply
from greensmtp.server.transport import BODY_PIECE, Connection


class DataBody(DotDecoder):
    """The body that follows 354, up to CRLF.CRLF (RFC 5321 section 4.1.1.4)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def open(self, reply: Reply) -> None:
        """Send 354."""
        self._connection.ask_for_body(reply.wire or reply.encode())

    def read_chunk(self) -> bytes:
        """Return the next bytes; ``b""`` only at the end."""
        connection = self._connection
        while True:
            chunk = self.feed(connection.read())
            if self.complete:
                connection.in_body = False
                if self.rest:
                    connection.unread(self.rest)
                return chunk
            if chunk:
                return chunk


class ChunkedBody(ChunkDecoder):
    """The bytes of one BDAT after another, up to the end of the last one (RFC 3030 section 2)."""

    __slots__ = ("_connection", "_next")

    def __init__(self, connection: Connection, first: ChunkCommand, next_chunk: Callable[[], ChunkCommand]) -> None:
        """
        :param next_chunk: answers the chunk that has ended, and returns the command that continues the body; raises
            TransactionReset if the client does not continue it.
        """
        super().__init__()
        self._connection = connection
        self._next = next_chunk
        self.begin(first.size, first.last)

    def open(self, reply: Reply) -> None:
        """Begin to measure the rate. There is nothing to send: the client does not wait for a reply."""
        self._connection.begin_body()

    def read_chunk(self) -> bytes:
        """Return the next bytes; ``b""`` only at the end."""
        while self.needs_command:
            command = self._next()
            self.begin(command.size, command.last)
        connection = self._connection
        data = self.feed(connection.read(min(self.left, BODY_PIECE)) if self.left else b"")
        if self.complete:
            connection.in_body = False
        return data


def skip(connection: Connection, size: int) -> None:
    """Read and drop the bytes of a refused chunk, so that none of them is run as a command."""
    connection.begin_body()
    while size:
        size -= len(connection.read(min(size, BODY_PIECE)))
    connection.in_body = False
