"""The body of a message on its way out, behind 354."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from greensmtp.client.exchange import CommandExchange, first_refusal_or_last
from greensmtp.client.sources import Readable, Source
from greensmtp.errors import ProtocolError
from greensmtp.protocol.dot_stuffing import DotEncoder
from greensmtp.protocol.reply import Reply

#: Octets that are gathered before they are written.
GATHER = 64 * 1024


class BodyWriter:
    """Write a message's octets, in any pieces: ``with mail.message() as body: body.write(...)``.

    Dots are stuffed, bare CRs and LFs become CRLF, and no empty line is added at the end. Leaving the block ends the
    message and reads the reply; leaving it by an exception closes the connection, since half a message must not
    pass for a whole one.
    """

    def __init__(self, exchange: CommandExchange, refusal: Reply | None) -> None:
        if exchange.writing:
            raise ProtocolError("a message is being written already: finish that one first")
        self._exchange = exchange
        self._encoder = DotEncoder()
        self._gathered: list[bytes] = []
        self._size = 0
        #: What the peer said: to the message, once the block is left; or to DATA, where it refused. (Then nothing is
        #: sent, and what is written is dropped.)
        self.reply: Reply | None = refusal
        self._refused = refusal is not None
        self._open = exchange.writing = refusal is None

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """The next octets.

        :raises Disconnected: the peer is gone.
        :raises TypeError: they are none.
        :raises ValueError: the message has been ended.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"a message is made of bytes, not {type(data).__name__}")
        if self._open:
            piece = self._encoder.feed(bytes(data))
            self._gathered.append(piece)
            self._size += len(piece)
            if self._size >= GATHER:
                self._flush()
        elif not self._refused:
            raise ValueError("this message has been ended")
        return len(data)

    def finish(self) -> Reply:
        """End the message, and read the reply."""
        if self._open:
            self._open = False
            self._gathered.append(self._encoder.finish())
            self.reply = first_refusal_or_last(self._exchange.end_message(b"".join(self._gathered)))
        if self.reply is None:
            raise ValueError("this message has been given up")
        return self.reply

    def _flush(self) -> None:
        data = b"".join(self._gathered)
        self._gathered.clear()
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


def pieces(source: bytes | bytearray | memoryview | Readable | Iterable[bytes]) -> Iterator[bytes]:
    """The octets of a source, piece by piece.

    :raises TypeError: it is text, or none of these.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield bytes(source)
    elif isinstance(source, str):
        raise TypeError("a message is made of bytes, not str: encode it")
    elif hasattr(source, "read") or hasattr(source, "recv"):
        file = Source(source)
        while piece := file.read():
            yield piece
    else:
        yield from source
