"""Read the content of a message, and convert it to a form that a server can accept.

Content of up to MAX_MEMORY is kept in memory. Of a larger file, only the header section is. The rest is read twice, to
analyse it and to send it. Larger bytes objects are treated like a file, since processing them in one step would block
all other greenlets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, ParamSpec, TypeVar

from greensmtp.client.sources import Readable, Source, rewindable
from greensmtp.protocol import header_envelope
from greensmtp.protocol.dot_stuffing import DotEncoder, LineEncoder, with_crlf
from greensmtp.protocol.mime_lines import MimeLines, may_be_binary
from greensmtp.thread_pool import in_thread_pool

P = ParamSpec("P")
T = TypeVar("T")

#: Size in bytes from which a message is processed in the thread pool, since that takes milliseconds.
LARGE = 64 * 1024
#: Maximum size in bytes of a message that is kept in memory.
MAX_MEMORY = 4 * 1024 * 1024
#: Maximum size in bytes of a file's header section.
MAX_HEAD = 1024 * 1024


@dataclass(slots=True)
class Form:
    """A form in which the message is sent."""

    #: Its bytes; of a large file, only those of the header section.
    content: bytes
    #: Size of the whole message in bytes, as for the parameter SIZE (RFC 1870): with CRLFs, before dot-stuffing.
    size: int
    eight_bit: bool
    #: True if it needs BINARYMIME, since it cannot be sent as lines.
    binary: bool
    #: The part after the header section of a large message.
    rest: MessageRest | None = None
    stuffed: tuple[bytes, ...] | None = None
    #: The same form with its signature, once it was signed.
    signed: Form | None = None


def offload(length: int, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call a function; in the thread pool if ``length``, which determines its run time, is LARGE or more."""
    return in_thread_pool(function, *arguments, **options) if length > LARGE else function(*arguments, **options)


def in_lines(content: bytes) -> Form:
    """Return the form of a whole message, with CRLF at its line ends unless it is binary."""
    nul = b"\0" in content
    lines = with_crlf(content)
    # A message that declares binary content, but is unchanged as lines, does not need BINARYMIME. Searching for the
    # declaration is a pass over all of it.
    unchanged = lines is content and content.endswith(b"\r\n")
    binary = False
    if nul or (not unchanged and may_be_binary(content)):
        mime, needs_binary = offload(len(content), _mime_lines, content)
        binary = nul or needs_binary
        lines = mime if binary else lines
    if not binary and lines and not lines.endswith(b"\r\n"):
        lines += b"\r\n"
    return Form(lines, len(lines), not lines.isascii(), binary)


def _mime_lines(content: bytes) -> tuple[bytes, bool]:
    encoder = MimeLines()
    return encoder.feed(content) + encoder.finish(), encoder.needs_binary


class MessageRest:
    """The part after the header section of a large message. It is read again each time it is sent."""

    def __init__(self, file: BinaryIO, start: int, *, is_copy: bool = False) -> None:
        """
        :param start: its offset in the file.
        :param is_copy: True if the file is a temporary copy, which ``close`` closes.
        """
        self._file = file
        self._source = Source(file)
        self._start = start
        self._is_copy = is_copy
        #: True if it has bytes that are not ASCII.
        self.eight_bit = False
        #: True if it has binary parts, so that MimeLines must find its line ends.
        self._mime = False

    def close(self) -> None:
        if self._is_copy:
            self._file.close()

    def _pieces(self) -> Iterator[bytes]:
        self._file.seek(self._start)
        while piece := self._source.read():
            yield piece

    def scan(self, head: bytes) -> Form:
        """Read it to the end, and return the form of the message with this header section."""
        nul, binary, size = b"\0" in head, may_be_binary(head), 0
        overlap = b""
        encoder = LineEncoder()
        for piece in self._pieces():
            self.eight_bit = self.eight_bit or not piece.isascii()
            nul = nul or b"\0" in piece
            binary = binary or may_be_binary(overlap + piece)
            size += len(encoder.feed(piece))
            overlap = piece[piece.rfind(b"\n", -128) + 1 :][-128:]
        size += len(encoder.finish())
        if nul or binary:
            lines = MimeLines()
            lines.feed(head)
            size = sum(len(lines.feed(piece)) for piece in self._pieces()) + len(lines.finish())
            self._mime = nul or lines.needs_binary
        content = with_crlf(head)
        return Form(content, len(content) + size, self.eight_bit or not head.isascii(), self._mime, rest=self)

    def in_lines(self, head: bytes) -> Iterator[bytes]:
        """Yield it with CRLF at its line ends, except in binary parts, which the header section declares."""
        encoder: LineEncoder | MimeLines = LineEncoder()
        if self._mime:
            encoder = MimeLines()
            encoder.feed(head)
        for piece in self._pieces():
            yield encoder.feed(piece)
        yield encoder.finish()

    def stuffed(self, content: bytes) -> Iterator[bytes]:
        """Yield the header section and the rest with dots stuffed, and the final dot."""
        encoder = DotEncoder()
        yield encoder.feed(content)
        for piece in self._pieces():
            yield encoder.feed(piece)
        yield encoder.finish()


def read_message(message: bytes | bytearray | memoryview | Readable) -> tuple[bytes, MessageRest | None]:
    """Return all of a message; of a large file, its header section and the rest.

    :raises ValueError: the header section of a large file is longer than MAX_HEAD.
    :raises TypeError: it is not a binary file.
    """
    if isinstance(message, (bytes, bytearray, memoryview)):
        return bytes(message), None
    source = Source(message)
    pieces: list[bytes] = []
    size = 0
    while size <= MAX_MEMORY:
        piece = source.read()
        if not piece:
            return b"".join(pieces), None
        pieces.append(piece)
        size += len(piece)
    content = b"".join(pieces)
    end = header_envelope.split(content)
    if end > MAX_HEAD:
        raise ValueError(f"expected a header section of at most {MAX_HEAD} bytes; got {end} in {message!r:.80}")
    file = rewindable(source, content)
    # The message starts at the file's current position: the caller may have read something before.
    return content[:end], MessageRest(file, file.tell() - size + end, is_copy=file is not message)
