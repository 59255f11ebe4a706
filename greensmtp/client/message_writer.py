"""Write the body of a message after 354."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from greensmtp.client.chunks import CHUNK, send_chunks
from greensmtp.client.exchange import CommandExchange, first_refusal_or_last
from greensmtp.client.sources import Readable, Source
from greensmtp.errors import ProtocolError
from greensmtp.protocol.dot_stuffing import DotEncoder
from greensmtp.protocol.reply import Reply

#: Bytes that are buffered before they are sent.
FLUSH_BYTES = 64 * 1024


class BodyWriter:
    """Write a message in pieces of any size: ``with mail.message() as body: body.write(...)``.

    Dots are stuffed, bare CRs and LFs become CRLF, and no empty line is added at the end. Leaving the block ends the
    message and reads the reply; leaving it by an exception closes the connection, so that the server does not accept
    part of a message as a whole one.
    """

    def __init__(self, exchange: CommandExchange, refusal: Reply | None) -> None:
        if exchange.writing:
            raise ProtocolError("a message is being written already: finish that one first")
        self._exchange = exchange
        self._encoder = DotEncoder()
        self._buffer: list[bytes] = []
        self._size = 0
        #: The reply to the message, once the block is left; or the refusal of DATA. (Then nothing is sent, and written
        #: data is discarded.)
        self.reply: Reply | None = refusal
        self._refused = refusal is not None
        self._open = exchange.writing = refusal is None

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Write the next bytes; return their number.

        :raises Disconnected: the connection is lost.
        :raises TypeError: the data is not bytes.
        :raises ValueError: the message has ended.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"expected bytes; got {type(data).__name__}")
        if self._open:
            piece = self._encoder.feed(bytes(data))
            self._buffer.append(piece)
            self._size += len(piece)
            if self._size >= FLUSH_BYTES:
                self._flush()
        elif not self._refused:
            raise ValueError("this message has ended")
        return len(data)

    def finish(self) -> Reply:
        """End the message, and return the reply."""
        if self._open:
            self._open = False
            self._buffer.append(self._encoder.finish())
            self.reply = first_refusal_or_last(self._exchange.end_message(b"".join(self._buffer)))
        if self.reply is None:
            raise ValueError("this message was given up, and the connection closed")
        return self.reply

    def _flush(self) -> None:
        data = b"".join(self._buffer)
        self._buffer.clear()
        self._size = 0
        self._exchange.send_body(data)

    def __enter__(self) -> BodyWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.finish()
        elif self._open:
            self._open = False
            self._exchange.transport.close()


class ChunkWriter:
    """Write a message by BDAT (RFC 3030), in pieces of any size. They are sent unchanged, in chunks of 512 KiB.

    If a chunk is refused, ``reply`` is the refusal, and data that is written afterwards is discarded. Leaving the block
    by an exception closes the connection, as with ``BodyWriter``.
    """

    def __init__(self, exchange: CommandExchange) -> None:
        if exchange.writing:
            raise ProtocolError("a message is being written already: finish that one first")
        self._exchange = exchange
        self._buffer = bytearray()
        #: The reply to the message, once the block is left; or the refusal of a chunk.
        self.reply: Reply | None = None
        self._open = exchange.writing = True

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Write the next bytes; return their number. See ``BodyWriter.write``."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"expected bytes; got {type(data).__name__}")
        if self._open:
            self._buffer += data
            while len(self._buffer) >= CHUNK:
                chunk = bytes(self._buffer[:CHUNK])
                del self._buffer[:CHUNK]
                self._send(chunk, last=False)
        elif self.reply is None or self.reply.is_positive:
            raise ValueError("this message has ended")
        return len(data)

    def finish(self) -> Reply:
        """End the message, and return the reply."""
        if self._open:
            self._send(bytes(self._buffer), last=True)
        if self.reply is None:
            raise ValueError("this message was given up, and the connection closed")
        return self.reply

    def _send(self, chunk: bytes, *, last: bool) -> None:
        try:
            reply = first_refusal_or_last(send_chunks(self._exchange, [chunk], last=last))
        except BaseException:
            self._end()
            raise
        if last or not reply.is_positive:
            self.reply = reply
            self._end()

    def _end(self) -> None:
        self._open = self._exchange.writing = False
        self._buffer.clear()

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.finish()
        elif self._open:
            self._end()
            self._exchange.transport.close()


def pieces(source: bytes | bytearray | memoryview | Readable | Iterable[bytes]) -> Iterator[bytes]:
    """Return the bytes of a source, piece by piece.

    :raises TypeError: the source is text, or of another type.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield bytes(source)
    elif isinstance(source, str):
        raise TypeError("expected bytes; got str: encode it")
    elif hasattr(source, "read") or hasattr(source, "recv"):
        file = Source(source)
        while piece := file.read():
            yield piece
    else:
        yield from source
