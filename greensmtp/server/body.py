"""Message bodies over a transport: DATA's dot-stuffed lines and BDAT's counted chunks."""

from __future__ import annotations

from collections.abc import Callable

from greensmtp.protocol.chunking import ChunkDecoder
from greensmtp.protocol.command import ChunkCommand
from greensmtp.protocol.dot_stuffing import DotDecoder
from greensmtp.protocol.reply import Reply
from greensmtp.server.line_transport import BODY_PIECE, LineTransport


class DataBody(DotDecoder):
    """The body that follows 354, up to CRLF.CRLF (RFC 5321 section 4.1.1.4)."""

    def __init__(self, transport: LineTransport) -> None:
        self._transport = transport

    def open(self, reply: Reply) -> None:
        """Send 354 at once: the handler may do something else before it reads."""
        transport = self._transport
        transport.write(reply.wire or reply.encode())
        transport.flush(transport.limits.command_timeout)
        transport.begin_body()

    def read_chunk(self) -> bytes:
        """Return the next bytes; ``b""`` only at the end."""
        transport = self._transport
        while True:
            chunk = self.feed(transport.read())
            if self.complete:
                transport.in_body = False
                if self.rest:
                    transport.unread(self.rest)
                return chunk
            if chunk:
                return chunk


class ChunkedBody(ChunkDecoder):
    """The bytes of one BDAT after another, up to the end of the last (RFC 3030 section 2)."""

    __slots__ = ("_next", "_transport")

    def __init__(self, transport: LineTransport, first: ChunkCommand, next_chunk: Callable[[], ChunkCommand]) -> None:
        """
        :param next_chunk: replies to the chunk that has ended, and returns the next BDAT; it raises TransactionReset if
            the client does something else.
        """
        super().__init__()
        self._transport = transport
        self._next = next_chunk
        self.begin(first.size, first.last)

    def open(self, reply: Reply) -> None:
        """Begin to measure; a client sends a chunk without waiting for a reply."""
        self._transport.begin_body()

    def read_chunk(self) -> bytes:
        """Return the next bytes; ``b""`` only at the end."""
        while self.needs_command:
            command = self._next()
            self.begin(command.size, command.last)
        transport = self._transport
        data = self.feed(transport.read(min(self.left, BODY_PIECE)) if self.left else b"")
        if self.complete:
            transport.in_body = False
        return data


def skip(transport: LineTransport, size: int) -> None:
    """Read and drop the ``size`` bytes of a refused chunk, so that none of them is taken for a command."""
    transport.begin_body()
    while size:
        size -= len(transport.read(min(size, BODY_PIECE)))
    transport.in_body = False
